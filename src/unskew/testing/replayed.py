"""The values of a view, or of on-demand features, at instants: a few events through the kernel, and then the join.

Nothing is computed here. Events pass through evaluation, ordering, repeats and kernel as in a rebuild from an archive,
and the values are read as a training set reads them.
"""

import datetime as dt
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.definitions.load import load_definitions
from unskew.features.definitions.vocabulary import Definition, FeatureView, OnDemand
from unskew.features.errors import RequestError, shown
from unskew.features.frames import Table, read_table
from unskew.features.nearest import nearest
from unskew.features.on_demand import OnDemandView
from unskew.features.plan import Plan, StreamPlan, ViewPlan
from unskew.features.references import key_columns
from unskew.features.time import MAX_INSTANT_US, MIN_INSTANT_US, instant_us, moment_of
from unskew.features.view import View
from unskew.offline.history import entity_row
from unskew.offline.join import historical_features
from unskew.offline.log_reader import RebuiltLog
from unskew.pipelines.history.archive import Piece
from unskew.pipelines.history.rebuild import Rebuilt, rebuild_pieces
from unskew.pipelines.state.ordering import shard_names
from unskew.testing.given import Arrival, Events, events_of, rows_of

Subject = FeatureView | OnDemand | str
_Parts = str | os.PathLike[str] | Iterable[Definition | str | os.PathLike[str]]
Definitions = Plan | _Parts
Instant = dt.datetime | str
Values = dict[str, Any]
"""Feature -> value."""
Key = Any
"""An entity's key; a tuple if it has several columns."""

_AT = "_at"
_MOST_PLANS = 32


def values(
    view: Subject,
    events: Table | Mapping[str, Table],
    *,
    at: Instant | Iterable[Instant],
    entity: object = None,
    definitions: Definitions = (),
    inputs: Mapping[str, Any] | None = None,
    arrival: Arrival = None,
    skip_refused: bool = False,
) -> dict[Any, Any]:
    """Return the values that a model would read at an instant, had a pipeline seen these events: feature -> value.

    ``view``: a view, or on-demand features: the definition, or its name among ``definitions``; ``"purchases@2"`` names
    a version. ``definitions``: a plan, definition files and folders, or definitions; needed for a name, and for what
    the definition itself only names.

    ``events``: of the view's stream, as dicts (records inside are dicts) or as a frame of Polars or pandas; or several
    streams by name. They may lack what has a default or may be null. Times are datetimes, UTC if they have no zone, or
    text with an offset.
    ``arrival``: when an event arrived: the name of a field that says so, or a timedelta after the event time. Without
    it, and where an event lacks the field, it arrived when it happened. The value at an instant counts what had arrived
    by then, that instant included. Events that arrived at one instant count in the order in which they are given.
    ``skip_refused``: leave out events that the stream or the view cannot take, as a pipeline does; they are an error
    otherwise.

    ``entity``: the key of the entity; a tuple or a mapping for several columns. Without it, the answer has the values
    of each entity that has an event: key -> feature -> value.
    ``at``: an instant, or several; then the answer has those of each: instant -> ....
    ``inputs``: of on-demand features, which also need an entity if they read views; ``now`` is the instant.

    The stream is taken to be known from long before the first event on, so no value is warming.
    Raises ``DefinitionError`` as ``compile`` does; ``RequestError`` for events, entities and instants that do not fit.
    """
    several = not isinstance(at, Instant)
    instants: list[Any] = list(at) if isinstance(at, Iterable) and not isinstance(at, str) else [at]
    if not instants:
        raise RequestError("at has no instants; give one, or several")
    replay = replayed(view, events, instants, definitions, inputs, arrival=arrival, skip_refused=skip_refused)
    rows = replay.rows(entity)
    found = iter(replay.values([(instant, row) for instant in instants for row in rows]))
    answer: dict[Any, Any] = {}
    for instant in instants:
        by_key = {key_of(row): next(found) for row in rows}
        answer[instant] = by_key if entity is None and replay.views else next(iter(by_key.values()))
    return answer if several else next(iter(answer.values()))


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Events that were computed, for reading.

    ``subject``: what was asked for. ``views``: the views that are read, by the name by which it reads them. ``events``:
    by the topic of their stream.
    """

    plan: Plan
    subject: ViewPlan | OnDemandView
    views: Mapping[str, ViewPlan]
    events: Mapping[str, Events]
    rebuilt: Mapping[str, Rebuilt]
    inputs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The features."""
        return [one.name for one in _features(self.subject)]

    def keys(self) -> list[Key]:
        """Return the key of each entity that has an event. Raises ``RequestError`` for on-demand features."""
        if isinstance(self.subject, OnDemandView):
            raise RequestError(
                f"{self.subject.name} is computed for one entity at a time: give entity, with "
                f"{', '.join(dict.fromkeys(key for view in self.views.values() for key in view.entity.keys))}"
            )
        return [_key(row) for row in self._present(self.subject)]

    def row(self, entity: object) -> dict[str, Any]:
        """Return an entity's key by column. Raises ``RequestError`` for one that has no event."""
        found: dict[str, Any] = {}
        for view in self.views.values():
            if isinstance(entity, Mapping):
                row = {key: entity[key] for key in view.entity.keys if key in entity}
            else:
                row = entity_row(view.published, entity)
            (key,) = key_columns(view.published, read_table([row])).rows()
            present = self._present(view)
            # Without any event there is nothing that this could be a misspelling of.
            if present and key not in present:
                known = {str(_key(one)): _key(one) for one in present}
                raise RequestError(
                    f"no event of stream {view.stream.name!r} is about {named(view.published, key)}; "
                    f"{nearest(str(_key(key)), known, 'entities are')}"
                )
            found |= dict(zip(view.entity.keys, key, strict=True))
        return found

    def rows(self, entity: object = None) -> list[dict[str, Any]]:
        """Return the key by column of an entity, or of each that has an event; one without columns if none is read."""
        if not self.views:
            return [{}]
        return [self.row(one) for one in (self.keys() if entity is None else [entity])]

    def values(self, asked: Sequence[tuple[Instant, Mapping[str, Any]]]) -> list[Values]:
        """Return feature -> value for each instant and key by column."""
        references = [f"{self.subject.id}:{name}" for name in self.names]
        return [dict(zip(self.names, one, strict=True)) for one in self.read(references, asked)]

    def read(
        self, references: Sequence[str], asked: Sequence[tuple[Instant, Mapping[str, Any]]]
    ) -> list[tuple[Any, ...]]:
        """Return the values of references for each instant and key by column."""
        if not asked:
            return []
        labels = [{**self.inputs, **row, _AT: moment_of(checked_us(instant))} for instant, row in asked]
        answer = historical_features(
            self._log,
            self.plan.published,
            read_table(labels),
            references,
            timestamp=_AT,
            inclusive=True,
            full_feature_names=True,
            on_demand=self.plan.on_demand,
        )
        return list(zip(*(answer.columns[one.column].to_list() for one in answer.asked), strict=True))

    def _present(self, view: ViewPlan) -> list[tuple[Any, ...]]:
        """Return the keys of all events of a view's stream, in the order in which they first come."""
        frame = self.events[view.stream.topic].frame
        return key_columns(view.published, read_table(frame)).drop_nulls().unique(maintain_order=True).rows()

    def _log(self, view: View) -> RebuiltLog:
        one = self.rebuilt[view.id]
        return RebuiltLog(
            view=view,
            title=f"the test's events of {view.id}",
            rows=one.rows,
            since_us=one.since_us,
            first_since_us=one.first_since_us,
            complete_to_us=one.complete_to_us,
        )


def _refuse_never_there(arrival: str, tables: Iterable[tuple[StreamPlan, Table]]) -> None:
    """Raise ``RequestError`` if there are events, and none of any stream has the field that names the arrival."""
    names = dict.fromkeys(name for stream, table in tables for row in rows_of(stream, table) for name in row)
    if names and arrival not in names:
        raise RequestError(
            f"arrival names the field {arrival!r}, which no event has; {nearest(arrival, names, 'their fields are')}"
        )


def replayed(
    view: Subject,
    events: Table | Mapping[str, Table],
    instants: Sequence[Instant],
    definitions: Definitions,
    inputs: Mapping[str, Any] | None,
    *,
    arrival: Arrival,
    skip_refused: bool,
) -> Replay:
    """Compute a view, or what on-demand features read, up to the last of some instants; arguments as for ``values``."""
    until_us = max(map(checked_us, instants))
    plan, subject = _found(view, definitions)
    views: dict[str, ViewPlan] = {}
    if isinstance(subject, OnDemandView):
        for reference in subject.references:
            name = reference.partition(":")[0]
            views[name] = plan.views.find(name)
    else:
        views[subject.id] = subject
        if inputs:
            raise RequestError(f"{subject.id} is a view and takes no inputs; those are of on-demand features")
    streams = {one.stream.topic: one.stream for one in views.values()}
    tables = _by_stream(plan, streams, events)
    if isinstance(arrival, str):
        _refuse_never_there(arrival, tables.values())
    given = {
        topic: events_of(stream, table, arrival=arrival, skip_refused=skip_refused)
        for topic, (stream, table) in tables.items()
    }
    rebuilt: dict[str, Rebuilt] = {}
    for topic, one in given.items():
        mine = list({view.id: view for view in views.values() if view.stream.topic == topic}.values())
        rebuilt |= _rebuilt(mine, one, until_us, skip_refused=skip_refused)
    return Replay(plan=plan, subject=subject, views=views, events=given, rebuilt=rebuilt, inputs=inputs or {})


def _rebuilt(views: Sequence[ViewPlan], given: Events, until_us: int, *, skip_refused: bool) -> dict[str, Rebuilt]:
    """Compute views of one stream from all events that arrived through an instant, as of one partition."""
    piece = Piece(
        partition=0,
        events=given.frame.filter(pl.col("_arrival").to_physical() <= until_us),
        clock_us=until_us + 1,
        first_us=MIN_INSTANT_US,
        ended=False,
    )
    shards = {view.id: shard_names(view, [0], 1) for view in views}
    rebuilt, feed = rebuild_pieces(views, [piece], shards, n_partitions=1)
    if feed.where is not None and not skip_refused:
        raise given.refused(feed.where[1], str(feed.why))
    return rebuilt


def checked_us(instant: object) -> int:
    """Return the microseconds of an instant, UTC if it has no zone. Raises ``RequestError``."""
    try:
        found = instant_us(instant)  # type: ignore[arg-type]  # it refuses everything else
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise RequestError(
            f"{shown(instant)} is not an instant; write it as in 2026-03-01T12:00:00Z, or give a datetime"
        ) from error
    if not MIN_INSTANT_US <= found < MAX_INSTANT_US:
        raise RequestError(f"{instant} is not between the years 1900 and 2200; correct it")
    return found


def named(view: View, key: Sequence[Any]) -> str:
    """Return an entity's key as text: ``user_id 'u-1'``."""
    return ", ".join(f"{name} {part!r}" for name, part in zip(view.entity.keys, key, strict=True))


def key_of(row: Mapping[str, Any]) -> Key:
    """Return an entity's key from its columns."""
    return _key(tuple(row.values()))


def _key(parts: Sequence[Any]) -> Key:
    return parts[0] if len(parts) == 1 else tuple(parts)


def _features(subject: ViewPlan | OnDemandView) -> Sequence[Any]:
    return subject.features if isinstance(subject, OnDemandView) else subject.outputs


def _by_stream(
    plan: Plan, streams: Mapping[str, StreamPlan], events: Table | Mapping[str, Table]
) -> dict[str, tuple[StreamPlan, Table]]:
    """Return, by topic, the streams that are read, each with its events; none were given for some of several."""
    if not isinstance(events, Mapping):
        if len(streams) > 1:
            names = ", ".join(repr(one.name) for one in streams.values())
            raise RequestError(
                f"events of several streams are read ({names}): give them by name, as in {{name: events}}"
            )
        return {topic: (stream, events) for topic, stream in streams.items()}
    for name in events:
        if name not in plan.streams:
            raise RequestError(
                f"events are given by stream, and there is no stream {name!r}; {nearest(str(name), plan.streams, 'streams are')}"
            )
    return {topic: (stream, events.get(stream.name, [])) for topic, stream in streams.items()}


# What was compiled last, each with the objects that it was made from: a property has hundreds of examples.
_plans: list[tuple[tuple[object, ...], Plan]] = []


def _compiled(definitions: Sequence[Definition]) -> Plan:
    for objects, plan in _plans:
        if len(objects) == len(definitions) and all(
            one is other for one, other in zip(objects, definitions, strict=True)
        ):
            return plan
    plan = compile_definitions(*definitions)
    _plans.insert(0, (tuple(definitions), plan))
    del _plans[_MOST_PLANS:]
    return plan


def compiled(definitions: Definitions) -> Plan:
    """Return the plan of definitions, whatever they are given as."""
    return definitions if isinstance(definitions, Plan) else _compiled(_read(definitions))


def _found(view: Subject, definitions: Definitions) -> tuple[Plan, ViewPlan | OnDemandView]:
    """Return the plan, and in it what was asked for."""
    if not isinstance(view, (FeatureView, OnDemand, str)):
        raise RequestError(f"give a FeatureView, an OnDemand, or the name of one, not {shown(view)}")
    if isinstance(definitions, Plan):
        plan = definitions
    else:
        known = _read(definitions)
        if not isinstance(view, str) and not any(one is view for one in known):
            known.append(view)
        if not known:
            raise RequestError(f"{view!r} is a name: give the definitions in which it is one, with definitions=")
        plan = _compiled(known)
    name = view if isinstance(view, str) else f"{view.name}@{view.version}"
    on_demand = {key: one for one in plan.on_demand.values() for key in (one.name, one.id)}
    if name in on_demand:
        return plan, on_demand[name]
    if name.partition("@")[0] not in plan.views.names:
        known_names = [*plan.views.names, *plan.on_demand]
        raise RequestError(f"there is no view {name!r}; {nearest(name, known_names, 'there are')}")
    return plan, plan.views.find(name)


def _read(definitions: _Parts) -> list[Definition]:
    """Return definitions, those of files among them read."""
    if isinstance(definitions, str | os.PathLike):
        return load_definitions([Path(definitions)])
    found: list[Definition] = []
    for one in definitions:
        found += load_definitions([Path(one)]) if isinstance(one, str | os.PathLike) else [one]
    return found
