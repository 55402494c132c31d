"""The published registry: what a reader that has nothing but Redis must know about the views.

``describe`` gives it as JSON-able data, ``parse`` reads it back. A field that a newer version adds is passed over. Of empty
values and defaults a decimal is text in JSON, a timestamp its microseconds.
"""

import datetime as dt
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from decimal import Decimal, DecimalException
from typing import Any, Literal

import msgspec

from unskew.features.errors import DefinitionError, LayoutError
from unskew.features.plan import (
    AggregationName,
    CalendarUnit,
    FeaturePlan,
    KeyType,
    Output,
    Parameters,
    Plan,
    Scalar,
    ViewPlan,
    WindowKind,
    WindowPlan,
)
from unskew.features.time import EPOCH, instant_us
from unskew.features.types import Type

FORMAT = 1

# Parameters whose zero means something where the function takes them; elsewhere it stands for none.
_MAY_BE_ZERO: Mapping[str, Sequence[str]] = {"quantile": ("q", "bits"), "var": ("ddof",), "std": ("ddof",)}


class RegisteredEntity(msgspec.Struct, frozen=True, kw_only=True):
    """Key columns in order, each with its type."""

    name: str
    keys: tuple[str, ...]
    types: tuple[KeyType, ...]


class RegisteredWindow(msgspec.Struct, frozen=True, kw_only=True):
    """A window's shape, enough to place its old edge: see ``windows.old_edge_us``.

    ``hop_us`` and ``extent_us`` of a calendar are nominal; its real ones follow from ``unit``, a day where it is None, and
    ``tz``. Those of a lifetime are 0.
    """

    text: str
    kind: WindowKind
    hop_us: int
    extent_us: int
    span: int
    tz: str | None = None
    unit: CalendarUnit | None = None


class RegisteredFeature(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One feature as readers see it.

    ``window``: index into the view's windows; None for a derived feature, whose ``value`` is the expression over the features
    that ``inputs`` names. ``parameters``: those of ``plan.Parameters`` that the function takes. ``by``: what the keys of a map
    are. ``empty``: the value where no event is in the window. ``default``: what to read in place of null; both are scalars
    of ``type``, whose name is the text of ``dtype``.
    """

    name: str
    type: str
    function: AggregationName | Literal["derived"]
    window: int | None
    value: str | None
    filter: str | None
    empty: Any
    default: Any
    description: str
    owner: str
    by: str | None = None
    parameters: dict[str, int | float | tuple[float, ...]] = {}
    inputs: tuple[str, ...] = ()

    @property
    def dtype(self) -> Type:
        return Type.parse(self.type)


class RegisteredSessions(msgspec.Struct, frozen=True, kw_only=True):
    """The sessions that a view aggregates in place of events: the gap as a window, and their columns as features in it."""

    window: RegisteredWindow
    where: str | None
    columns: tuple[RegisteredFeature, ...]


class RegisteredView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One view as readers see it; ``features`` are the columns of its values, derived ones last."""

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
    sessions: RegisteredSessions | None = None

    @property
    def id(self) -> str:
        """``name@version``: how the view is called in keys and shards."""
        return f"{self.name}@{self.version}"

    def feature(self, name: str) -> RegisteredFeature | None:
        """Give the feature of that name; None where there is none."""
        return next((feature for feature in self.features if feature.name == name), None)

    def windows_of(self, feature: RegisteredFeature) -> tuple[RegisteredWindow, ...]:
        """Give what one of this view's features is a value over: its window, or every one of those it is derived from."""
        if feature.window is not None:
            return (self.windows[feature.window],)
        inputs = (self.feature(name) for name in feature.inputs)
        return tuple(dict.fromkeys(window for one in inputs if one is not None for window in self.windows_of(one)))


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
        topic=", ".join(view.stream.sources),
        partitioned=view.partitioned,
        where=view.where.text if view.where else None,
        windows=tuple(_window(window) for window in view.windows),
        features=tuple(_feature(view, output) for output in view.outputs),
        state_fingerprint=view.state_fingerprint,
        presentation_fingerprint=view.presentation_fingerprint,
        description=view.description,
        owner=view.owner,
        sessions=None if view.sessions is None else _sessions(view.sessions),
    )


def _window(window: WindowPlan) -> RegisteredWindow:
    return RegisteredWindow(
        text=window.text,
        kind=window.kind,
        hop_us=window.hop_us,
        extent_us=window.extent_us,
        span=window.span,
        tz=window.tz,
        unit=window.unit,
    )


def _feature(view: ViewPlan, output: Output) -> RegisteredFeature:
    shown: dict[str, Any] = {
        "name": output.name,
        "type": str(output.dtype),
        "empty": output.empty,
        "default": output.default,
        "description": output.description,
        "owner": output.owner,
    }
    if not isinstance(output, FeaturePlan):
        return RegisteredFeature(
            **shown, function="derived", window=None, value=output.text, filter=None, inputs=output.inputs
        )
    return RegisteredFeature(
        **shown,
        function=output.function,
        window=output.window,
        value=view.values[output.value].text if output.value >= 0 else None,
        filter=view.filters[output.filter].text if output.filter >= 0 else None,
        by=view.values[output.by].text if output.by >= 0 else None,
        parameters=_parameters(output),
    )


def _parameters(feature: FeaturePlan) -> dict[str, int | float | tuple[float, ...]]:
    takes = _MAY_BE_ZERO.get(feature.function, ())
    return {
        one.name: value
        for one in fields(Parameters)
        if (value := getattr(feature.parameters, one.name)) != one.default or one.name in takes
    }


def _sessions(inner: ViewPlan) -> RegisteredSessions:
    return RegisteredSessions(
        window=_window(inner.windows[0]),
        where=inner.where.text if inner.where else None,
        columns=tuple(_feature(inner, output) for output in inner.outputs),
    )


def describe(plan: Plan) -> dict[str, Any]:
    """Give the registry of all views as data that ``json.dumps`` takes: ``{"format": 1, "views": [...]}``."""
    registry = _Registry(format=FORMAT, views=tuple(_written(register(view)) for view in plan.views.values()))
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


def _written(view: RegisteredView) -> RegisteredView:
    """Scalars as JSON has them."""

    def written(value: Scalar | None, _type: str) -> Scalar | None:
        match value:
            case dt.datetime():
                return instant_us(value)
            case Decimal():
                return format(value, "f")
            case _:
                return value

    return _with_scalars(view, written)


def _typed(view: RegisteredView) -> RegisteredView:
    """Scalars in their types, as ``_written`` wrote them."""

    def typed(value: Any, name: str) -> Scalar | None:
        try:
            dtype = Type.parse(name)
        except DefinitionError as error:
            raise LayoutError(
                f"the published registry has a feature of type {name!r} in {view.id}, which this version does not know; "
                "use the version of unskew that published it"
            ) from error
        if value is None:
            return None
        try:
            match None if dtype.nesting else dtype.scalar:
                case "float64":
                    # JSON has one kind of number: another writer may write 0.
                    return float(value)
                case "timestamp":
                    return EPOCH + dt.timedelta(microseconds=value)
                case "decimal":
                    return Decimal(value)
                case _:
                    scalar: Scalar = value
                    return scalar
        except (ValueError, TypeError, OverflowError, DecimalException) as error:
            raise LayoutError(
                f"the published registry cannot be read: {value!r} in {view.id} is no {dtype}; "
                "publish it again with unskew run"
            ) from error

    return _with_scalars(view, typed)


def _with_scalars(view: RegisteredView, change: Callable[[Any, str], Any]) -> RegisteredView:
    def changed(features: Sequence[RegisteredFeature]) -> tuple[RegisteredFeature, ...]:
        return tuple(
            msgspec.structs.replace(f, empty=change(f.empty, f.type), default=change(f.default, f.type))
            for f in features
        )

    sessions = view.sessions
    if sessions is not None:
        sessions = msgspec.structs.replace(sessions, columns=changed(sessions.columns))
    return msgspec.structs.replace(view, features=changed(view.features), sessions=sessions)
