"""The published registry: what a reader that has nothing but Redis must know about the views.

``describe`` gives it as JSON-able data, ``parse`` reads it back. A field that a newer version adds is passed over.
"""

import json
from typing import Any, Literal

import msgspec

from unskew.features.errors import LayoutError
from unskew.features.plan import AggregationName, KeyType, Plan, Scalar, ValueType, ViewPlan

FORMAT = 1


class RegisteredEntity(msgspec.Struct, frozen=True, kw_only=True):
    """Key columns in order, each with its type."""

    name: str
    keys: tuple[str, ...]
    types: tuple[KeyType, ...]


class RegisteredWindow(msgspec.Struct, frozen=True, kw_only=True):
    """A window's shape, enough to place its old edge: see ``windows.old_edge_us``.

    ``hop_us`` and ``extent_us`` of a calendar are a nominal day; its real ones follow from ``tz``.
    """

    text: str
    kind: Literal["sliding", "tumbling", "calendar"]
    hop_us: int
    extent_us: int
    span: int
    tz: str | None = None


class RegisteredFeature(msgspec.Struct, frozen=True, kw_only=True):
    """One feature as readers see it.

    ``window``: index into the view's windows. ``empty``: the value where no event is in the window. ``default``: what to
    read in place of null.
    """

    name: str
    type: ValueType
    function: AggregationName
    window: int
    value: str | None
    filter: str | None
    empty: Scalar | None
    default: Scalar | None
    description: str
    owner: str


class RegisteredView(msgspec.Struct, frozen=True, kw_only=True):
    """One view as readers see it."""

    name: str
    version: int
    entity: RegisteredEntity
    stream: str
    topic: str
    partitioned: bool
    where: str | None
    windows: tuple[RegisteredWindow, ...]
    features: tuple[RegisteredFeature, ...]
    state_fingerprint: str
    presentation_fingerprint: str
    description: str
    owner: str

    @property
    def id(self) -> str:
        """``name@version``: how the view is called in keys and shards."""
        return f"{self.name}@{self.version}"

    def feature(self, name: str) -> RegisteredFeature | None:
        """Give the feature of that name; None where there is none."""
        return next((feature for feature in self.features if feature.name == name), None)

    def window_of(self, feature: RegisteredFeature) -> RegisteredWindow:
        """Give the window of one of this view's features."""
        return self.windows[feature.window]


class _Registry(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    views: tuple[RegisteredView, ...]


def register(view: ViewPlan) -> RegisteredView:
    """Give the readers' side of a compiled view."""
    return RegisteredView(
        name=view.name,
        version=view.version,
        entity=RegisteredEntity(name=view.entity.name, keys=view.entity.keys, types=view.entity.types),
        stream=view.stream.name,
        topic=view.stream.topic,
        partitioned=view.partitioned,
        where=view.where.text if view.where else None,
        windows=tuple(
            RegisteredWindow(text=w.text, kind=w.kind, hop_us=w.hop_us, extent_us=w.extent_us, span=w.span, tz=w.tz)
            for w in view.windows
        ),
        features=tuple(
            RegisteredFeature(
                name=f.name,
                type=f.dtype,
                function=f.function,
                window=f.window,
                value=view.values[f.value].text if f.value >= 0 else None,
                filter=view.filters[f.filter].text if f.filter >= 0 else None,
                empty=f.empty,
                default=f.default,
                description=f.description,
                owner=f.owner,
            )
            for f in view.features
        ),
        state_fingerprint=view.state_fingerprint,
        presentation_fingerprint=view.presentation_fingerprint,
        description=view.description,
        owner=view.owner,
    )


def describe(plan: Plan) -> dict[str, Any]:
    """Give the registry of all views as data that ``json.dumps`` takes: ``{"format": 1, "views": [...]}``."""
    registry = _Registry(format=FORMAT, views=tuple(register(view) for view in plan.views.values()))
    described: dict[str, Any] = msgspec.to_builtins(registry)
    return described


def merge(stored: str | bytes | None, text: str) -> str:
    """Give the stored registry with the views of ``text`` in place of those of the same names; both are JSON.

    A stored registry that cannot be read, or of another format, is replaced whole. Fields that this version does not know
    stay with their views.
    """
    new = json.loads(text)
    try:
        old = {} if stored is None else json.loads(stored)
        if old.get("format") != new.get("format"):
            return text
        views = {view["name"]: view for view in old["views"]}
    except (ValueError, TypeError, AttributeError, KeyError):
        return text
    views.update((view["name"], view) for view in new["views"])
    return json.dumps({**new, "views": [views[name] for name in sorted(views)]})


def parse(published: str | bytes | dict[str, Any]) -> dict[str, RegisteredView]:
    """Read a registry, as JSON text or as data, back: view name -> view.

    Raises ``LayoutError`` where it is not one that this version reads.
    """
    try:
        if isinstance(published, dict):
            registry = msgspec.convert(published, _Registry)
        else:
            registry = msgspec.json.decode(published, type=_Registry)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise LayoutError(
            f"the published registry cannot be read: {error}; publish it again with unskew run"
        ) from error
    if registry.format != FORMAT:
        raise LayoutError(
            f"the published registry has format {registry.format}, this version reads {FORMAT}; "
            "use the version of unskew that published it, or publish it again with unskew run"
        )
    return {view.name: _typed(view) for view in registry.views}


def _typed(view: RegisteredView) -> RegisteredView:
    # JSON has one kind of number: 0 of a float64 feature comes back as an int where another writer wrote it so.
    def number(value: Scalar | None, dtype: ValueType) -> Scalar | None:
        return float(value) if value is not None and dtype == "float64" else value

    features = tuple(
        msgspec.structs.replace(f, empty=number(f.empty, f.type), default=number(f.default, f.type))
        for f in view.features
    )
    return msgspec.structs.replace(view, features=features)
