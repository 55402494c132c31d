"""The published registry: what a reader that has nothing but Redis, or nothing but a log, must know about the views.

``describe`` returns it as data that can be written as JSON, and ``parse`` reads it back. A field that a newer version
adds is ignored. In JSON, an empty value or default that is a decimal is text; one that is a timestamp is a number of
microseconds.
"""

import datetime as dt
import json
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, DecimalException
from typing import Any, NamedTuple

import msgspec

from unskew.features.errors import DefinitionError, LayoutError, RequestError, UnknownName
from unskew.features.nearest import nearest
from unskew.features.on_demand import OnDemandView
from unskew.features.plan import Plan
from unskew.features.service import Service, ServiceFeature
from unskew.features.time import instant_us, moment_of, unit_boundaries
from unskew.features.types import ScalarName, Type
from unskew.features.versions import Versions
from unskew.features.view import Scalar, View, ViewFeature, ViewWindow

FORMAT = 1
CLAIM = "claim"
"""The field, in what is stored, of a version that says that it serves: numbers of a later one are higher."""
APPLIED = "applied"
"""The field, in what is stored, that says by record which revision was applied and which versions it lets serve."""
# What has one version of each name.
_BY_NAME = ("services", "on_demand")
# Longer than any window may be, and short enough for sums of instants.
_LONGEST_US = 2**60
# What reading anything else as a registry may raise; a text may nest deeper than Python follows.
NO_REGISTRY = (ValueError, TypeError, AttributeError, KeyError, RecursionError)


class _Registry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    format: int
    views: tuple[View, ...]
    on_demand: tuple[OnDemandView, ...] = ()
    services: tuple[Service, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Published:
    """What is published: all versions of views, and on-demand features and services by name."""

    views: Versions[View]
    on_demand: Mapping[str, OnDemandView] = field(default_factory=dict)
    services: Mapping[str, Service] = field(default_factory=dict)

    @classmethod
    def of(cls, plan: Plan) -> "Published":
        """Return what is published of a plan."""
        return cls(views=plan.published, on_demand=plan.on_demand, services=plan.services)

    def service(self, name: str) -> Service:
        """Return a service. Raises ``RequestError`` if there is none of that name."""
        if name not in self.services:
            known = nearest(name, self.services, "services are")
            raise UnknownName("service", f"there is no service {name!r}; {known}")
        return self.services[name]

    def views_of(self, service: Service) -> Versions[View]:
        """Return the views that a service reads; a bare name means the version that the service has pinned.

        Raises ``RequestError`` if a view or feature is gone, or is not what was promised.
        """
        bare = {one.view for one in service.of_views if one.is_bare}
        found: dict[str, View] = {}
        for one in service.of_views:
            view = self.on_demand.get(one.view.partition("@")[0]) or self.views.get(one.view)
            if difference := f"and {one.view} is not published" if view is None else _difference(one, view):
                owner = f" (owner: {service.owner})" if service.owner else ""
                raise RequestError(
                    f"service {service.name}{owner} reads {one.reference}, {difference}; publish a service that fits the views, or "
                    "the views that it was made for"
                )
            if isinstance(view, View):
                found[one.view] = msgspec.structs.replace(view, serving=one.view in bare)
        return Versions(found.values())


def pin(
    reference: str, view: View | OnDemandView, feature: ViewFeature, reads: Sequence[ServiceFeature] = ()
) -> ServiceFeature:
    """Return a feature with all that a reader of ``reference`` is promised of it.

    ``reads``: of an on-demand feature, what it reads of views.
    """
    return ServiceFeature(
        reference=reference,
        view=view.id,
        type=feature.type,
        fingerprint=view.state_fingerprint if isinstance(view, View) else view.fingerprint,
        default=json_scalar(feature.default),
        reads=tuple(reads),
    )


def _difference(one: ServiceFeature, view: View | OnDemandView) -> str | None:
    """Return what of a view is not as a service was promised, as the end of a sentence; None if it is."""
    feature = view.feature(one.feature)
    if feature is None:
        return f"and {one.view} has no such feature"
    now = pin(one.reference, view, feature)
    if now.view != one.view:
        return f"and {now.view} has replaced {one.view}"
    if now.fingerprint != one.fingerprint:
        return f"and {one.view} is computed from another definition"
    if now.type != one.type:
        return f"and its type is {now.type}, not {one.type}"
    if now.default != one.default:
        return f"and its default is {feature.default!r}, not {one.default!r}"
    return None


def describe(plan: Plan) -> dict[str, Any]:
    """Return the registry as data that ``json.dumps`` takes: ``{"format": 1, "views": [...], "services": [...]}``.

    On-demand features are under ``on_demand``.
    """
    registry = _Registry(
        format=FORMAT,
        views=tuple(map(as_json, plan.published.values())),
        on_demand=tuple(map(on_demand_as_json, plan.on_demand.values())),
        services=tuple(plan.services.values()),
    )
    described: dict[str, Any] = msgspec.to_builtins(registry)
    return described


def merge(stored: str | bytes | None, text: str, *, anew: bool = False) -> str:
    """Return the stored registry with the views of ``text``, which replace those of the same versions; both are JSON.

    Other versions stay. A service replaces the one of its name, and so do on-demand features.
    Of the versions of a view the one serves that was applied last, see ``revision.with_applied``, once it is published.
    Where nothing was applied, of the versions that say that they serve, and that are published apart, the one that
    began to say so last serves, whoever publishes again: a number in the field ``claim`` keeps that order. ``anew``:
    what ``text`` says is new. A stored registry that cannot be read, or has another format, is replaced as a whole.
    Views that stay keep fields that this version of unskew does not know.
    """
    new = json.loads(text)
    try:
        old = {} if stored is None else json.loads(stored)
        return _merged(old if old.get("format") == new.get("format") else {}, new, anew=anew)
    except NO_REGISTRY:
        return _merged({}, new, anew=anew)


def _merged(old: Mapping[str, Any], new: Mapping[str, Any], *, anew: bool) -> str:
    views = {(view["name"], view["version"]): view for view in old.get("views", ())}
    applied, outdated = _last_applied(old.get(APPLIED, {}), new.get(APPLIED, {}))
    by_name = {
        kind: {
            one["name"]: one
            for part, gone in ((old, outdated.of_old), (new, outdated.of_new))
            for one in part.get(kind, ())
            if (kind, one["name"]) not in gone
        }
        for kind in _BY_NAME
    }
    last: dict[str, int] = {}
    for view in old.get("views", ()):
        last[view["name"]] = max(last.get(view["name"], 0), view.get(CLAIM, 0))
    for view in new["views"]:
        key = view["name"], view["version"]
        claim = None if anew else views.get(key, {}).get(CLAIM, view.get(CLAIM))
        if not (view.get("serving", True) or CLAIM in view):
            views[key] = view
            continue
        if claim is None:
            claim = last[view["name"]] = last.get(view["name"], 0) + 1
        views[key] = {**view, CLAIM: claim}
    serving = {key[0]: key for _, key in sorted((view[CLAIM], key) for key, view in views.items() if CLAIM in view)}
    for name, version in _applied_versions(applied).items():
        if (name, version) in views:
            serving[name] = name, version
    for key, view in views.items():
        # What an earlier version of unskew has published has no number.
        if key[0] in serving:
            others = {name: value for name, value in view.items() if name != "serving"}
            views[key] = others if serving[key[0]] == key else {**others, "serving": False}
    # In the order in which they came. Earlier versions of unskew keep the last version of a view, so the one that
    # serves comes last.
    place = {name: number for number, name in enumerate(dict.fromkeys(name for name, _ in views))}
    ordered = sorted(views.values(), key=lambda view: (place[view["name"]], view.get("serving", True), view["version"]))
    merged = {name: value for name, value in new.items() if name not in {*_BY_NAME, APPLIED}}
    merged |= {kind: list(those.values()) for kind, those in by_name.items() if those}
    merged |= {APPLIED: applied} if applied else {}
    return json.dumps({**merged, "views": ordered, "serves": _serves(ordered)})


def _serves(views: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return, for each name, the version that it means, as ``Versions.serving`` says; for readers without Python."""
    beside = Counter(view["name"] for view in views)
    return {view["name"]: view["version"] for view in views if view.get("serving", True) or beside[view["name"]] == 1}


class _Outdated(NamedTuple):
    """Services and on-demand features, by kind and name, that a later revision has removed or replaced."""

    of_old: set[tuple[str, str]]
    of_new: set[tuple[str, str]]


def _last_applied(old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[dict[str, Any], _Outdated]:
    """Return what was applied last from each record; a view belongs to the record that named it last."""
    known = {record: {**one, "serves": dict(one["serves"])} for record, one in old.items()}
    # What was applied is not replaced by what is published without a record.
    outdated = _Outdated(set(), {name for record, one in old.items() if record not in new for name in _named_in(one)})
    for record, one in new.items():
        stored = known.get(record)
        if stored is not None and stored["revision"] >= one["revision"]:
            if stored["revision"] > one["revision"]:
                outdated.of_new.update(_named_in(one))
            continue
        for other in known.values():
            other["serves"] = {name: version for name, version in other["serves"].items() if name not in one["serves"]}
        if stored is not None:
            outdated.of_old.update(_named_in(stored) - _named_in(one))
        known[record] = one
    return known, outdated


def _named_in(applied: Mapping[str, Any]) -> set[tuple[str, str]]:
    return {(kind, name) for kind in _BY_NAME for name in applied.get(kind, ())}


def _applied_versions(applied: Mapping[str, Any]) -> dict[str, int]:
    return {name: version for one in applied.values() for name, version in one["serves"].items()}


def own_part(stored: str | bytes, text: str) -> str:
    """Return those parts of a stored registry, as they stand there, that ``text`` has, too.

    Services and on-demand features of a record from which ``text`` was applied count as its own.
    """
    given, registry = json.loads(text), json.loads(stored)
    own = {(view["name"], view["version"]) for view in given["views"]}
    part = {**registry, "views": [view for view in registry["views"] if (view["name"], view["version"]) in own]}
    applied = [registry.get(APPLIED, {}).get(record, {}) for record in given.get(APPLIED, {})]
    for kind in _BY_NAME:
        names = {one["name"] for one in given.get(kind, ())}.union(*(one.get(kind, ()) for one in applied))
        mine = [one for one in part.pop(kind, ()) if one["name"] in names]
        part |= {kind: mine} if mine else {}
    return json.dumps(part)


def displaced(stored: str, text: str) -> dict[str, str]:
    """Return, by id, the views of ``text`` that say that they serve, and for each the one that serves instead.

    Views of which what was applied decides are left out.
    """
    decided = _applied_versions(json.loads(stored).get(APPLIED, {}))
    serving = {
        view["name"]: f"{view['name']}@{view['version']}"
        for view in json.loads(stored)["views"]
        if view.get("serving", True)
    }
    asked = {
        f"{view['name']}@{view['version']}": view["name"]
        for view in json.loads(text)["views"]
        if view.get("serving", True)
    }
    return {
        view_id: serving[name]
        for view_id, name in asked.items()
        if name not in decided and serving.get(name, view_id) != view_id
    }


def typed(view: View, name: str) -> View:
    """Return a view that ``as_json`` returned as it was; ``name``: where it stands, for messages.

    Raises ``LayoutError`` if this version cannot read it.
    """
    try:
        found = _typed(view)
        _check(found)
    except _Unreadable as error:
        raise LayoutError(f"{name} cannot be read: {error}") from error
    return found


def named(stored: str | bytes | None) -> list[str]:
    """Return the view versions of the stored registry; none if it cannot be read."""
    try:
        registry = {"views": []} if stored is None else json.loads(stored)
        return [f"{view['name']}@{view['version']}" for view in registry["views"]]
    except NO_REGISTRY:
        return []


def without(stored: str | bytes | None, view_ids: Container[str]) -> str | None:
    """Return the stored registry without these view versions; None if it has none of them, or cannot be read."""
    try:
        registry = {} if stored is None else json.loads(stored)
        kept = [view for view in registry["views"] if f"{view['name']}@{view['version']}" not in view_ids]
        n_views = len(registry["views"])
    except NO_REGISTRY:
        return None
    if len(kept) == n_views:
        return None
    return json.dumps({**registry, "views": kept, **({"serves": _serves(kept)} if "serves" in registry else {})})


def parse(published: str | bytes | dict[str, Any], key: str | None = None) -> Published:
    """Read a registry from JSON text or data. ``key``: where it stands in Redis, for messages.

    Raises ``LayoutError`` if this version cannot read it.
    """
    name = "the published registry" if key is None else f"the published registry, {key!r} in Redis,"
    try:
        if isinstance(published, dict):
            registry = msgspec.convert(published, _Registry)
        else:
            registry = msgspec.json.decode(published, type=_Registry)
        if registry.format != FORMAT:
            raise LayoutError(
                f"{name} has format {registry.format}, but this version reads {FORMAT}; "
                "use the version of unskew that published it, or publish it again with unskew run"
            )
        views = Versions(map(_typed, registry.views))
        for view in views.values():
            _check(view)
        on_demand = [_with_defaults(one, _read_scalar(one.id)) for one in registry.on_demand]
        for one in on_demand:
            _check_on_demand(one, views)
        for service in registry.services:
            _check_service(service)
    except _Unreadable as error:
        raise LayoutError(f"{name} cannot be read: {error}") from error
    # A text may nest deeper than any reader follows.
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        why = str(error) or type(error).__name__
        raise LayoutError(f"{name} cannot be read: {why}; publish it again with unskew run") from error
    return Published(
        views=views,
        on_demand={one.name: one for one in on_demand},
        services={service.name: service for service in registry.services},
    )


def describe_one(view: View) -> dict[str, Any]:
    """Return one view as data that ``json.dumps`` takes; not whether it serves, which may change any day."""
    described: dict[str, Any] = msgspec.to_builtins(as_json(msgspec.structs.replace(view, serving=True)))
    return described


def parse_one(described: object, place: str) -> View:
    """Read a view from data. ``place``: where it stands, for messages. Raises ``LayoutError`` if it cannot be read."""
    try:
        return typed(msgspec.convert(described, View), f"the definition in {place}")
    except (msgspec.MsgspecError, RecursionError) as error:
        raise LayoutError(f"the definition in {place} cannot be read: {error}") from error


class _Unreadable(Exception):
    """Half a sentence about what a registry says that no version of unskew publishes, and what to do."""


def _check(view: View) -> None:
    """Refuse a view that does not hold together: readers rely on what compiling promises."""
    names = [feature.name for feature in view.features]
    _require(
        view, bool(names) and len(set(names)) == len(names) and all(names), "its features have no names of their own"
    )
    keys = view.entity.keys
    _require(
        view,
        0 < len(set(keys)) == len(keys) == len(view.entity.types),
        "its entity's keys and their types do not match",
    )
    _check_windows(view, view.windows, view.features)
    if view.sessions is not None:
        _check_windows(view, (view.sessions.window,), view.sessions.columns)


def on_demand_as_json(one: OnDemandView) -> OnDemandView:
    """Return on-demand features with their defaults as JSON values."""
    return _with_defaults(one, _written)


def typed_on_demand(one: OnDemandView, name: str) -> OnDemandView:
    """Return on-demand features that ``on_demand_as_json`` returned as they were. Raises ``LayoutError``.

    ``name``: where they stand, for messages. Their texts are checked by whoever evaluates them.
    """
    try:
        found = _with_defaults(one, _read_scalar(one.id))
        _check_on_demand(found, Versions([]))
    except _Unreadable as error:
        raise LayoutError(f"{name} cannot be read: {error}") from error
    return found


def _check_on_demand(one: OnDemandView, views: Versions[View]) -> None:
    """Refuse on-demand features that do not hold together; what their texts say is checked where they are read."""
    names = [*one.inputs, *(feature.name for feature in one.features)]
    is_right = one.name not in views.names and bool(one.name and one.features) and len(set(names)) == len(names)
    is_right = is_right and all(each.function == "derived" and each.value is not None for each in one.features)
    try:
        is_right = is_right and not any(Type.parse(text).nesting for text in one.inputs.values())
    except DefinitionError:
        is_right = False
    if not is_right:
        raise _Unreadable(f"on-demand {one.id} does not hold together; publish it again with unskew run")


def _check_service(service: Service) -> None:
    if not (service.name and service.features and all(one.feature and one.view for one in service.features)):
        raise _Unreadable(f"service {service.name!r} has no features, or no name; publish it again with unskew run")


def _check_windows(view: View, windows: Sequence[ViewWindow], features: Sequence[ViewFeature]) -> None:
    aggregated = {feature.name for feature in features if feature.window is not None}
    for feature in features:
        if feature.window is None:
            is_right = feature.function == "derived" and aggregated.issuperset(feature.inputs)
        else:
            is_right = feature.function != "derived" and 0 <= feature.window < len(windows)
        _require(view, is_right, f"its feature {feature.name!r} has no window and no inputs")
    for window in windows:
        least = 0 if window.kind == "lifetime" else 1
        _require(
            view,
            least <= window.hop_us <= _LONGEST_US and least <= window.extent_us <= _LONGEST_US,
            f"its window {window.text!r} has no length",
        )
        if window.kind == "calendar":
            try:
                unit_boundaries(window.unit or "day", window.tz or "UTC")
            except DefinitionError as error:
                raise _Unreadable(f"{view.id}: {error}; publish it again with unskew run") from error


def _require(view: View, is_right: bool, otherwise: str) -> None:  # noqa: FBT001 - the condition itself
    if not is_right:
        raise _Unreadable(f"{view.id}: {otherwise}; publish it again with unskew run")


def json_scalar(value: Scalar | None) -> int | float | bool | str | None:
    """Return a scalar as JSON has it: an instant is a number of microseconds, a decimal is text."""
    match value:
        case dt.datetime():
            return instant_us(value)
        case Decimal():
            return format(value, "f")
        case _:
            return value


def as_json(view: View) -> View:
    """Return the view with its scalars as JSON values."""
    return _with_scalars(view, _written)


def _written(value: Scalar | None, _type: str) -> int | float | bool | str | None:
    return json_scalar(value)


def _typed(view: View) -> View:
    """Return a view that ``as_json`` returned with its scalars in their own types."""
    return _with_scalars(view, _read_scalar(view.id))


def _read_scalar(where: str) -> Callable[[Any, str], Any]:
    """Return a function that returns a value of JSON in the type of that name. ``where``: for its errors."""

    def read(value: Any, name: str) -> Any:
        try:
            dtype = Type.parse(name)
        except DefinitionError as error:
            raise _Unreadable(
                f"it has a feature of type {name!r} in {where}, which this version does not know; "
                "use the version of unskew that published it"
            ) from error
        if value is None:
            return value
        try:
            found = _scalar(value, dtype)
        except (ValueError, TypeError, OverflowError, DecimalException) as error:
            raise _Unreadable(
                f"{value!r:.80} in {where} is not of type {dtype}; publish it again with unskew run"
            ) from error
        return found

    return read


def _with_defaults(one: OnDemandView, change: Callable[[Any, str], Any]) -> OnDemandView:
    features = (msgspec.structs.replace(each, default=change(each.default, each.type)) for each in one.features)
    return msgspec.structs.replace(one, features=tuple(features))


_PYTHON: Mapping[ScalarName, type] = {"int64": int, "bool": bool, "string": str}


def _scalar(value: Any, dtype: Type) -> Any:
    """Return a value of JSON in its own type. Raises what conversions raise."""
    if dtype.nesting:
        raise TypeError("a list or map has no such value")
    match dtype.scalar:
        case "float64":
            # JSON has one kind of number: another writer may write 0 for 0.0.
            return float(value)
        case "timestamp":
            return moment_of(value)
        case "decimal":
            return Decimal(value)
        case _:
            if type(value) is not _PYTHON[dtype.scalar]:
                raise TypeError(value)
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise OverflowError(value)
            return value


def _with_scalars(view: View, change: Callable[[Any, str], Any]) -> View:
    def changed(features: Sequence[ViewFeature]) -> tuple[ViewFeature, ...]:
        return tuple(
            msgspec.structs.replace(f, empty=change(f.empty, f.type), default=change(f.default, f.type))
            for f in features
        )

    sessions = view.sessions
    if sessions is not None:
        sessions = msgspec.structs.replace(sessions, columns=changed(sessions.columns))
    return msgspec.structs.replace(view, features=changed(view.features), sessions=sessions)
