"""Compilation of definitions to a plan: every check is made here, once, and all faults are reported together."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar, get_args

import msgspec
import polars as pl

from unskew.features.definitions.agg import count, first_time, last_time
from unskew.features.definitions.expressions import unknown_column
from unskew.features.definitions.fingerprints import presentation_fingerprint, state_fingerprint
from unskew.features.definitions.on_demand import planned_on_demand
from unskew.features.definitions.services import planned_service
from unskew.features.definitions.slots import (
    OBJECT_NAME,
    Slots,
    column_name_faults,
    did_you_mean,
    mentions,
    text_faults,
    version_faults,
)
from unskew.features.definitions.streams import column_names, is_pattern, planned_stream, planned_table
from unskew.features.definitions.vocabulary import (
    Definition,
    Derived,
    Entity,
    Feature,
    FeatureView,
    OnDemand,
    Service,
    Session,
    Sessions,
    Stream,
    Table,
)
from unskew.features.definitions.windows import plan_window
from unskew.features.errors import DefinitionError, shown
from unskew.features.kernel.program import value_width
from unskew.features.plan import (
    MAX_FEATURES,
    DerivedPlan,
    FeaturePlan,
    FilterPlan,
    History,
    Plan,
    StreamPlan,
    ViewPlan,
)
from unskew.features.types import TIMESTAMP
from unskew.features.versions import Versions
from unskew.features.view import KeyType, View, ViewEntity, ViewSessions

# Besides the columns of the log: the column that holds a row's key on its way to the sinks.
RESERVED_FEATURES = frozenset({"key"})
RESERVED_VIEWS = frozenset({"registry", "clock", "late"})
LOG_COLUMNS = frozenset(
    {"available_at", "event_time", "partition", "offset", "cause", "written_at", "shard", "seq", "day"},
)
MAX_VALUE_WORDS = 4_096
# Every session has these columns.
SESSION_COLUMNS: Mapping[str, pl.DataType] = {
    "start": TIMESTAMP,
    "end": TIMESTAMP,
    "length_s": pl.Float64(),
    "events": pl.Int64(),
}


def compile(*definitions: Definition | Iterable[Definition]) -> Plan:  # noqa: A001 - the word that users know
    """Check definitions and number them: views with everything they refer to.

    Takes entities, streams, sessions, views, on-demand features and services, or iterables of them. What a view holds
    need not be given separately.
    Raises one ``DefinitionError`` with every fault found; each says what is wrong, where, and what to do.
    """
    return compiled(definitions)


def compiled(definitions: Iterable[Any], *, complete: bool = True) -> Plan:
    """Compile as ``compile`` does. ``complete``: false if other definitions could not be read.

    Then names that are not found, which may be theirs, are no faults.
    """
    faults: list[str] = []
    entities, streams, sessions, views, on_demand, services = _sorted(definitions, faults)
    stream_plans: dict[str, StreamPlan] = {}
    faulty: dict[str, StreamPlan] = {}
    for name, entity in entities.items():
        faults += text_faults(f"entity {name}", entity)
    for name, stream in streams.items():
        faults += text_faults(f"stream {name}", stream)
        of_stream: list[str] = []
        plan_of = partial(planned_table, stream) if isinstance(stream, Table) else partial(planned_stream, stream)
        planned = _without_surprise(f"stream {name}", partial(plan_of, of_stream), faults)
        faults += [f"stream {name}: {fault}" for fault in of_stream]
        if planned is not None:
            (faulty if of_stream else stream_plans)[name] = planned
    faults += _shared_topics(stream_plans.values())
    view_plans: list[ViewPlan] = []
    broken: set[str] = set()
    for beside in _by_name(views).values():
        faults += _unclear_serving(beside)
        for view in beside:
            compiler = _ViewCompiler(
                view,
                entities,
                streams,
                sessions,
                stream_plans,
                faults,
                faulty,
                alone=len(beside) == 1,
                complete=complete,
            )
            plan = _without_surprise(f"view {compiler.name}", compiler.plan, faults)
            if plan is None:
                broken.add(view.name)
            else:
                view_plans.append(plan)
    used = {id(view.stream) for view in views} | {view.stream for view in views if isinstance(view.stream, str)}
    for name, unused in sessions.items():
        if not used & {id(unused), name}:
            _UnusedSessions(unused, entities, streams, sessions, stream_plans, faults).check()
    for name, one in on_demand.items():
        faults += text_faults(f"on-demand {name}", one)
    for name, service in services.items():
        faults += text_faults(f"service {name}", service)
    found = Plan(streams=stream_plans, views=Versions(view_plans))
    known = found.published
    # What other definitions are called is not known where some could not be read.
    unchecked = broken if complete else None
    demanded = _each(
        "on-demand",
        on_demand,
        lambda one, of_one: planned_on_demand(one, known, of_one, unchecked),
        faults,
    )
    broken |= on_demand.keys() - demanded.keys()
    pinned = _each(
        "service",
        services,
        lambda one, of_one: planned_service(one, known, demanded, of_one, unchecked),
        faults,
    )
    if faults:
        raise DefinitionError(list(dict.fromkeys(faults)))
    return replace(found, on_demand=demanded, services=pinned)


Given = TypeVar("Given")
Planned = TypeVar("Planned")


def _each(
    kind: str,
    given: Mapping[str, Given],
    plan: Callable[[Given, list[str]], Planned | None],
    faults: list[str],
) -> dict[str, Planned]:
    """Return what is planned without a fault, by name; add the faults of the others to ``faults``."""
    found: dict[str, Planned] = {}
    for name, one in given.items():
        of_one: list[str] = []
        planned = _without_surprise(f"{kind} {name}", partial(plan, one, of_one), faults)
        faults += [f"{kind} {name}: {fault}" for fault in of_one]
        if planned is not None and not of_one:
            found[name] = planned
    return found


def compile_view(view: FeatureView, stream: StreamPlan) -> ViewPlan:
    """Check one view over a stream that is planned already. Raises ``DefinitionError`` with every fault found."""
    faults: list[str] = []
    compiler = _ViewCompiler(view, {}, {}, {}, {stream.name: stream}, faults)
    plan = _without_surprise(f"view {compiler.name}", compiler.plan, faults)
    if plan is None:
        raise DefinitionError(list(dict.fromkeys(faults)))
    return plan


def _without_surprise(place: str, plan: Callable[[], Planned], faults: list[str]) -> Planned | None:
    """Return the plan; None, and a fault, if a value is of a kind that nobody has thought of."""
    try:
        return plan()
    except DefinitionError:
        raise
    except Exception as error:  # noqa: BLE001
        faults.append(f"{place}: it cannot be read ({type(error).__name__}: {error}); correct its types and values")
        return None


def _flat(definitions: Iterable[Any]) -> Iterable[Any]:
    for each in definitions:
        if isinstance(each, Iterable) and not isinstance(each, (str, Mapping)):
            yield from _flat(each)
        else:
            yield each


def _sorted(
    definitions: Iterable[Any], faults: list[str]
) -> tuple[
    dict[str, Entity],
    dict[str, Stream | Table],
    dict[str, Sessions],
    list[FeatureView],
    dict[str, OnDemand],
    dict[str, Service],
]:
    entities: dict[str, Entity] = {}
    streams: dict[str, Stream | Table] = {}
    sessions: dict[str, Sessions] = {}
    views: dict[str, FeatureView] = {}
    on_demand: dict[str, OnDemand] = {}
    services: dict[str, Service] = {}
    tables: dict[type, tuple[str, dict[str, Any]]] = {
        Entity: ("entity", entities),
        Stream: ("stream", streams),
        Table: ("stream", streams),
        Sessions: ("sessions", sessions),
        FeatureView: ("view", views),
        OnDemand: ("on-demand", on_demand),
        Service: ("service", services),
    }
    found: list[Any] = []
    for each in _flat(definitions):
        found.append(each)
        held = [each.entity, each.stream] if isinstance(each, FeatureView) else []
        held += [part.stream for part in (each, *held) if isinstance(part, Sessions)]
        found += [part for part in held if isinstance(part, (Entity, Stream, Table, Sessions))]
    for each in found:
        if type(each) not in tables:
            faults.append(
                f"{each!r} is not a definition; give Entity, Stream, Table, Sessions, FeatureView, OnDemand and Service objects"
            )
            continue
        kind, known = tables[type(each)]
        if not isinstance(each.name, str) or not each.name.strip():
            faults.append(f"{kind} {each.name!r}: it has no name; give it one")
            continue
        # A definition may come twice (held by two views, imported by two files) and counts once.
        is_view = isinstance(each, FeatureView)
        name = f"{each.name}@{shown(each.version)}" if is_view else each.name
        if known.setdefault(name, each) is not each and not _same(known[name], each):
            what = f"version {shown(each.version)}" if is_view else "it"
            other = ", or give one another version" if is_view else ""
            faults.append(f"{kind} {each.name}: {what} is defined twice, with differences; rename or remove one{other}")
    called = {name: f"stream {name}" for name in streams}
    for name, stream in streams.items():
        called |= dict.fromkeys(column_names(stream.aliases) or (), f"stream {name}, by an alias,")
    faults += [
        f"sessions {name}: the {called[name]} has that name too; rename one" for name in sessions if name in called
    ]
    faults += [
        f"stream {name}: its alias {alias} is the name of another stream; leave the alias out"
        for name, stream in streams.items()
        for alias in column_names(stream.aliases) or ()
        if alias in streams and alias != name
    ]
    return entities, streams, sessions, list(views.values()), on_demand, services


def _by_name(views: Iterable[FeatureView]) -> dict[str, list[FeatureView]]:
    """Return the versions of each view, in the order of the definitions."""
    found: dict[str, list[FeatureView]] = {}
    for view in views:
        found.setdefault(view.name, []).append(view)
    return found


def _unclear_serving(versions: Sequence[FeatureView]) -> list[str]:
    """Return the faults of versions of one view that do not say which of them serves."""
    name = versions[0].name
    faults = [
        f"{name}: serving {shown(view.serving)} is not true or false; write serving=True in the version that {name}:feature "
        "means, and leave it out of the others"
        for view in versions
        if not isinstance(view.serving, bool)
    ]
    said = [view for view in versions if view.serving is True]
    if faults or len(versions) == 1 or len(said) == 1:
        return faults
    which = f"{_and(said)} say that they serve" if said else "none says that it serves"
    remedy = f"write serving=True (in YAML, serving: true) in exactly one of them, which {name}:feature then means"
    return [f"{name}: it has the versions {_and(versions)}, and {which}; {remedy}"]


def _and(versions: Iterable[FeatureView]) -> str:
    *first, last = (shown(view.version) for view in versions)
    return f"{', '.join(first)} and {last}"


def _shared_topics(streams: Iterable[StreamPlan]) -> list[str]:
    """Return the faults of streams that read the same topic, which is archived only once, by one schema."""
    known = list(streams)
    return [
        f"stream {other.name}: its topic {topic} already belongs to the stream {one.name}; use that stream, or an alias of it"
        for number, one in enumerate(known)
        for other in known[number + 1 :]
        if (topic := _shared(one, other)) is not None
    ]


def _shared(one: StreamPlan, other: StreamPlan) -> str | None:
    """Return a topic of both streams, or a name under which both would be archived; None if there is none.

    Two different patterns are not compared, because nothing says which topics both match.
    """
    for left, right in ((one, other), (other, one)):
        for topic in (*left.sources, left.topic):
            matched = any(is_pattern(each) and re.match(each, topic) for each in right.sources)
            if topic in (*right.sources, right.topic) or (matched and not is_pattern(topic)):
                return topic
    return None


def _same(one: Any, other: Any) -> bool:
    """Return true if two definitions say the same; ``==`` of Polars expressions and frames gives no truth value."""
    if one is other:
        return True
    if isinstance(one, pl.Expr) or isinstance(other, pl.Expr):
        return isinstance(one, pl.Expr) and isinstance(other, pl.Expr) and one.meta.eq(other)
    if isinstance(one, pl.LazyFrame) or isinstance(other, pl.LazyFrame):
        return isinstance(one, pl.LazyFrame) and isinstance(other, pl.LazyFrame) and one.explain() == other.explain()
    if isinstance(one, msgspec.Struct):
        fields = one.__struct_fields__
        return type(one) is type(other) and all(_same(getattr(one, field), getattr(other, field)) for field in fields)
    if isinstance(one, Mapping):
        return (
            isinstance(other, Mapping) and list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
        )
    if isinstance(one, (list, tuple)):
        return isinstance(other, (list, tuple)) and len(one) == len(other) and all(map(_same, one, other))
    return type(one) is type(other) and bool(one == other)


def _session_columns(sessions: ViewPlan) -> dict[str, pl.DataType]:
    """Return the columns of the sessions that an inner view keeps."""
    return {
        **sessions.entity.columns,
        **SESSION_COLUMNS,
        **{feature.name: feature.dtype.polars for feature in sessions.features},
    }


class _ViewCompiler:
    """The compiler of one version of a view: it resolves the entity and the stream, and collects the faults.

    ``faulty``: streams that have faults, but whose columns are known. ``alone``: whether there is no other version.
    ``complete``: false if a stream or an entity may be defined where
    nothing could be read. ``name``: names the view in messages.
    """

    def __init__(
        self,
        view: FeatureView,
        entities: Mapping[str, Entity],
        streams: Mapping[str, Stream | Table],
        sessions: Mapping[str, Sessions],
        stream_plans: Mapping[str, StreamPlan],
        faults: list[str],
        faulty: Mapping[str, StreamPlan] = {},
        *,
        alone: bool = True,
        complete: bool = True,
    ) -> None:
        self._complete = complete
        self._view = view
        self._alone = alone
        self.name = view.name if alone else f"{view.name}@{shown(view.version)}"
        self._sessions = sessions
        self._entities = entities
        self._streams = streams
        self._stream_plans = stream_plans
        self._faulty = faulty
        self._faults = faults

    def plan(self) -> ViewPlan | None:
        view = self._view
        n_faults = len(self._faults)
        self._check_view()
        over = self._over_sessions()
        stream = self._stream(view.stream if over is None else over.stream)
        entity = self._entity(stream)
        columns = stream.columns if stream else None
        sessions: ViewPlan | None = None
        if over is not None:
            sessions = self._plan_sessions(over, stream, entity)
            columns = None if sessions is None else _session_columns(sessions)
        slots = Slots(columns, self._faults, stream.unread if stream and over is None else None)
        where = slots.condition(self.name, view.where, view.filter)
        defined = self._features(entity)
        features = [
            slots.feature(f"{self.name}.{feature.name}", feature, view.owner)
            for feature in defined
            if isinstance(feature, Feature)
        ]
        planned = [feature for feature in features if feature is not None]
        if (n_words := sum(map(value_width, planned))) > MAX_VALUE_WORDS:
            self._fault(
                self.name,
                f"its row of values has {n_words} words, more than {MAX_VALUE_WORDS}, because its lists and maps are long; shorten "
                "them, or split the view in two",
            )
        names = [feature.name for feature in defined if isinstance(feature, Derived) and isinstance(feature.name, str)]
        without_plan = {feature.name for feature in defined if isinstance(feature, Feature)} - {f.name for f in planned}
        derived = [
            slots.derived(f"{self.name}.{feature.name}", feature, planned, names, view.owner)
            for feature in defined
            # One that reads a faulty feature would be reported for a missing column.
            if isinstance(feature, Derived) and not mentions(feature.expression, without_plan)
        ]
        if len(self._faults) > n_faults or stream is None or stream.name in self._faulty or entity is None:
            return None
        plan = self._put_together(
            view, stream, entity, slots, where, planned, [each for each in derived if each is not None], sessions
        )
        published = msgspec.structs.replace(plan.published, serving=self._alone or view.serving)
        return replace(plan, history=view.history, published=published)

    def _put_together(
        self,
        named: FeatureView | Sessions,
        stream: StreamPlan,
        entity: ViewEntity,
        slots: Slots,
        where: FilterPlan | None,
        features: Sequence[FeaturePlan],
        derived: Sequence[DerivedPlan] = (),
        sessions: ViewPlan | None = None,
    ) -> ViewPlan:
        parts: dict[str, Any] = {
            "stream": stream,
            "where": where,
            "filters": slots.filters,
            "values": slots.values,
            "features": tuple(features),
            "derived": tuple(derived),
            "sessions": sessions,
        }
        columns = tuple(each.published for each in (*features, *derived))
        deprecated = named.deprecated if isinstance(named, FeatureView) else ""
        published = View(
            name=named.name,
            version=self._view.version,
            entity=entity,
            stream=stream.name,
            topic=", ".join(stream.sources),
            partitioned=stream.partitioned_by == entity.keys,
            where=where.text if where else None,
            windows=slots.windows,
            features=columns,
            state_fingerprint=state_fingerprint(entity=entity, windows=slots.windows, **parts),
            presentation_fingerprint=presentation_fingerprint(
                description=named.description,
                owner=named.owner,
                features=columns,
                tags=named.tags,
                deprecated=deprecated,
            ),
            description=named.description,
            owner=named.owner,
            tags=dict(named.tags),
            deprecated=deprecated,
            sessions=ViewSessions.of(sessions.published) if sessions else None,
        )
        return ViewPlan(published=published, **parts)

    def _over_sessions(self) -> Sessions | None:
        wanted = self._view.stream
        if isinstance(wanted, Sessions):
            return wanted
        return self._sessions.get(wanted) if isinstance(wanted, str) else None

    def _plan_sessions(
        self, sessions: Sessions, stream: StreamPlan | None, entity: ViewEntity | None
    ) -> ViewPlan | None:
        """Return the inner view that keeps the sessions of the view's entity; its features are their columns."""
        place = self._sessions_place(sessions)
        n_faults = len(self._faults)
        self._faults += text_faults(place, sessions)
        window = Session(sessions.gap, sessions.hop)
        try:
            plan_window(window)
        except DefinitionError as error:
            self._fault(place, error)
            return None
        slots = Slots(stream.columns if stream else None, self._faults, stream.unread if stream else None)
        where = slots.condition(place, sessions.where, sessions.filter)
        wanted = {"start": first_time(), "end": last_time(), "events": count()}
        if not isinstance(sessions.values, Mapping):
            self._fault(
                place, f"values={sessions.values!r} is not a mapping; map the name of each column to its aggregation"
            )
            return None
        if 3 + len(sessions.values) > MAX_FEATURES:
            self._fault(
                place,
                f"it has {len(sessions.values)} values, more than {MAX_FEATURES - 3}; leave out those that no view reads",
            )
        for key in entity.keys if entity else ():
            if key.lower() in SESSION_COLUMNS:
                self._fault(
                    place,
                    f"the key column {key!r} has the name of a column of sessions; rename it in the reader schema",
                )
        # DuckDB, which recounts, ignores case.
        taken = {*SESSION_COLUMNS, *(key.lower() for key in (entity.keys if entity else ()))}
        for name, aggregation in sessions.values.items():
            if column_name_faults(name) or name.lower() in taken:
                self._fault(
                    place,
                    f"the column name {name!r} is not allowed or already taken; use letters, digits and _, and none of the names "
                    f"{', '.join(sorted(taken))}",
                )
            wanted[name] = aggregation
        features = [
            slots.feature(f"{place}: {name}", Feature(name, aggregation, window), sessions.owner)
            for name, aggregation in wanted.items()
        ]
        for feature in features:
            if feature is not None and feature.dtype.nesting:
                self._fault(
                    place, f"the column {feature.name} is {feature.dtype}; a column of sessions holds a single value"
                )
        if len(self._faults) > n_faults or stream is None or stream.name in self._faulty or entity is None:
            return None
        planned = [feature for feature in features if feature is not None]
        return self._put_together(sessions, stream, entity, slots, where, planned)

    def _sessions_place(self, sessions: Sessions) -> str:
        return f"{self.name}: sessions {sessions.name}"

    def _fault(self, where: str, error: DefinitionError | str) -> None:
        for fault in [error] if isinstance(error, str) else error.faults:
            self._faults.append(f"{where}: {fault}")

    def _check_view(self) -> None:
        view = self._view
        if not OBJECT_NAME.fullmatch(view.name):
            self._fault(
                self.name, "the name is not allowed; use lower-case letters, digits and _, and begin with a letter"
            )
        if view.name in RESERVED_VIEWS:
            self._fault(self.name, f"the name is reserved; rename the view, for example {view.name}_features")
        self._faults += [f"{self.name}: {fault}" for fault in version_faults(view.version)]
        if view.history not in get_args(History):
            self._fault(self.name, f'history {shown(view.history)} is not known; write "archive" or "none"')
        self._faults += text_faults(self.name, view)

    def _stream(self, wanted: Stream | Table | Sessions | str) -> StreamPlan | None:
        if isinstance(wanted, (Stream, Table)):
            return self._planned(wanted.name)
        name = wanted.name if isinstance(wanted, Sessions) else wanted
        if isinstance(name, str) and name in self._sessions:
            # The sessions that the view itself is over were already resolved to their stream.
            self._fault(self.name, f"{name!r} are sessions, but sessions are made of a stream's events; name a stream")
            return None
        names = [
            *self._streams,
            *self._sessions,
            *(alias for s in self._streams.values() for alias in column_names(s.aliases) or ()),
        ]
        matches = [s.name for s in self._streams.values() if wanted == s.name]
        matches = matches or [s.name for s in self._streams.values() if wanted in (column_names(s.aliases) or ())]
        if not matches and not self._complete:
            return None
        if not matches:
            self._fault(self.name, f"no stream is called {wanted!r}; {did_you_mean(str(wanted), names)}")
            return None
        if len(matches) > 1:
            self._fault(self.name, f"{wanted!r} is an alias of several streams ({', '.join(matches)}); name one")
            return None
        return self._planned(matches[0])

    def _planned(self, stream: str) -> StreamPlan | None:
        return self._stream_plans.get(stream) or self._faulty.get(stream)

    def _entity_definition(self) -> Entity | None:
        wanted = self._view.entity
        if isinstance(wanted, Entity):
            return wanted
        if isinstance(wanted, str) and wanted in self._entities:
            return self._entities[wanted]
        by_key = [entity for entity in self._entities.values() if column_names(entity.key) == column_names(wanted)]
        if len(by_key) == 1:
            return by_key[0]
        if by_key:
            names = ", ".join(entity.name for entity in by_key)
            self._fault(self.name, f"{wanted!r} is the key of several entities ({names}); name one")
            return None
        if not self._complete:
            return None
        keys = [key for entity in self._entities.values() for key in column_names(entity.key) or ()]
        self._fault(
            self.name,
            f"no entity has the name or key {wanted!r}; {did_you_mean(str(wanted), [*self._entities, *keys])}",
        )
        return None

    def _entity(self, stream: StreamPlan | None) -> ViewEntity | None:
        entity = self._entity_definition()
        if entity is None:
            return None
        place = f"{self.name}: entity {entity.name}"
        keys = column_names(entity.key)
        if keys is None or len(set(keys)) < len(keys):
            self._fault(place, f"key {entity.key!r} is not a column name; give one, or a list of different ones")
            return None
        if len({key.lower() for key in keys}) < len(keys):
            self._fault(place, f"key {entity.key!r} names columns that differ only in upper and lower case; rename one")
        # Some tools that read the log ignore case.
        for key in sorted(key for key in keys if key.lower() in LOG_COLUMNS):
            self._fault(
                place, f"the key column {key!r} has the name of a column of the log; rename it in the reader schema"
            )
        if stream is None:
            return None
        types: list[KeyType] = []
        for key in keys:
            dtype = stream.columns.get(key)
            if dtype is None:
                self._fault(place, f"key: {unknown_column(key, stream.columns)}")
            elif dtype.is_integer():
                types.append("int64")
            elif dtype == pl.String():
                types.append("string")
            else:
                self._fault(place, f"the key column {key!r} is {dtype}; keys are whole numbers or strings")
        declared = column_names(entity.type)
        if len(types) < len(keys):
            return None
        if entity.type is not None and declared != tuple(types):
            self._fault(
                place,
                f"its type is declared as {entity.type!r}, but the stream has {', '.join(types)}; correct one of them",
            )
        return ViewEntity(name=entity.name, keys=keys, types=tuple(types))

    def _features(self, entity: ViewEntity | None) -> list[Feature | Derived]:
        view = self._view
        if isinstance(view.features, (str, Mapping)) or not isinstance(view.features, Iterable):
            self._fault(self.name, f"features={view.features!r} is not a list; give a list of Feature objects")
            return []
        features: list[Feature | Derived] = []
        for feature in view.features:
            if isinstance(feature, (Feature, Derived)):
                features.append(feature)
            else:
                self._fault(self.name, f"{feature!r} is not a feature; give Feature and Derived objects")
        n_kept = sum(isinstance(feature, Feature) for feature in features)
        if not n_kept:
            self._fault(self.name, "it has no features; give it at least one")
        if n_kept > MAX_FEATURES:
            self._fault(self.name, f"it has {n_kept} features, more than {MAX_FEATURES}; split the view in two")
        names: dict[str, str] = {}
        for feature in features:
            name = feature.name
            place = f"{self.name}.{name}"
            if wrong := column_name_faults(name):
                self._faults += [f"{place}: {fault}" for fault in wrong]
                continue
            # Some tools that read the log ignore case.
            lower = name.lower()
            if lower in LOG_COLUMNS:
                self._fault(place, f"a column of the log has this name; rename the feature, for example feature_{name}")
            if lower in RESERVED_FEATURES:
                self._fault(place, f"the name is reserved; rename the feature, for example feature_{name}")
            if entity is not None and lower in {key.lower() for key in entity.keys}:
                self._fault(place, "a key column of the entity has this name; rename the feature")
            if (first := names.get(lower)) is not None:
                again = "is used twice" if first == name else f"differs from {first} only in upper and lower case"
                self._fault(place, f"the name {again}; rename one")
            names.setdefault(lower, name)
        return features


class _UnusedSessions(_ViewCompiler):
    """The check of sessions that no view is over: everything but what depends on an entity."""

    def __init__(self, sessions: Sessions, *known: Any) -> None:
        name = f"sessions {sessions.name}"
        super().__init__(FeatureView(name, entity=(), stream=sessions, features=()), *known)

    def check(self) -> None:
        sessions = self._view.stream
        assert isinstance(sessions, Sessions)
        _without_surprise(self.name, lambda: self._plan_sessions(sessions, self._stream(sessions.stream), None), [])

    def _sessions_place(self, sessions: Sessions) -> str:
        return f"sessions {sessions.name}"
