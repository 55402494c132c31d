"""The Bytewax adapter: sources, shards and sinks as its operators.

An item is a batch and a key is a shard or a table, so Bytewax's work per item and per key stays small. An epoch cuts
source offsets, shard states and sink positions together. Bytewax requests the snapshot of an epoch only when the epoch
before it is durable, and the sinks' publishing rests on that.
"""

import datetime as dt
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import bytewax.operators as op
import msgspec
from bytewax.dataflow import Dataflow
from bytewax.operators import KeyedStream, StatefulBatchLogic
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from typing_extensions import override

from unskew.features.plan import Plan, ViewPlan
from unskew.features.shard_state import ShardState
from unskew.features.updates import NothingToCome, Updates
from unskew.pipelines.cluster import Failures
from unskew.pipelines.kafka.source import KafkaSource
from unskew.pipelines.kafka.turns import ALWAYS_DUE, Turns
from unskew.pipelines.progress import Epochs, Progress
from unskew.pipelines.routing import Router, TableRows
from unskew.pipelines.state.changelog import Changelog, Changelogs
from unskew.pipelines.state.ordering import Shard, Siblings, Slice
from unskew.pipelines.state.saved import SHARDS, SINK_PARTITIONS, TABLES, input_of
from unskew.pipelines.state.seeds import Seeds
from unskew.sinks.aside import Aside
from unskew.sinks.objects import ObjectPath, together
from unskew.sinks.patience import Patience
from unskew.sinks.redis.scrub import Pace
from unskew.sinks.redis.writer import RedisWriter
from unskew.sinks.tables.kinds import ArchiveTable, DeadLetterTable, LogTable, Roots, Table, append_waiting
from unskew.sinks.tables.layout import view_root
from unskew.sinks.tables.parquet import record_shards, refuse_earlier

ROWS_PER_REFILL = 20_000
MOST_HELD_BYTES = 1 << 26
"""The states of all tables of a process hold at most about so many bytes of rows."""
FEW_BYTES = 1 << 20
MOST_LARGE_BYTES = 4 << 20
"""Tables with more than ``FEW_BYTES`` go into states only until these hold so many; staging more takes less."""

_Answer = TypeVar("_Answer")

Steps = Updates | NothingToCome


@dataclass(frozen=True)
class Shards:
    """By view id, every shard that the topic's partitions feed.

    ``own``: ``view@version/shard`` of this process's shards; None if no other process has any. ``retired``: the views,
    by id, that earlier runs on the same state computed and this one does not.
    """

    by_view: Mapping[str, Sequence[str]]
    own: frozenset[str] | None = None
    retired: Sequence[str] = ()


class Step(msgspec.Struct, frozen=True):
    """A step on its way to the sinks, which may be in another process of a cluster.

    Between processes a step only names its view, because the view's tables are many times larger than the step.
    """

    taken: Steps

    def here(self, views: Mapping[str, ViewPlan]) -> Steps:
        """Return the step with its view."""
        view: ViewPlan | str = self.taken.view
        return replace(self.taken, view=views[view]) if isinstance(view, str) else self.taken

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        parts = {field.name: getattr(self.taken, field.name) for field in fields(self.taken)}
        return _arrived, (type(self.taken), {**parts, "view": self.taken.view.id})


def _arrived(kind: type[Steps], parts: dict[str, Any]) -> Step:
    return Step(kind(**parts))


class _ShardLogic(StatefulBatchLogic[Slice, Step, dict[str, Any]]):
    """A shard as Bytewax sees it; its saved state or its first slice identifies it."""

    def __init__(
        self,
        plan: Plan,
        siblings: Siblings,
        changelogs: Changelogs,
        seeds: Seeds,
        disk: Patience,
        sink: "RedisSink",
        progress: Progress,
        accepted: Callable[[], None],
        saved: dict[str, Any] | None,
    ) -> None:
        self._seeds = seeds
        self._sink = sink
        self._redis = sink.writer
        self._pace: Pace | None = None
        self._scrub: Iterator[Updates] | None = None
        self._refill: Iterator[Updates] | None = None
        self._losses_seen = 0
        self._accepted = accepted
        self._plan = plan
        self._siblings = siblings
        self._changelogs = changelogs
        self._disk = disk
        self._progress = progress
        self._saved = saved
        self._shard: Shard | None = None
        view = None if saved is None else _views_by_id(plan).get(saved["view"])
        # The saved state of a view that is no longer defined is kept unread.
        if saved is not None and view is not None:
            self._shard = self._restored(view, saved)

    def _restored(self, view: ViewPlan, saved: Mapping[str, Any]) -> Shard:
        shard = Shard.from_snapshot(view, self._siblings, self._changelogs, saved)
        clock_us = shard.state.clock_us
        if clock_us is not None and self._redis.is_behind(view, saved["shard"], clock_us):
            self._refill = shard.everything(ROWS_PER_REFILL)
        return shard

    def _begun(self, first: Slice) -> Shard:
        """Return a shard that the recovery store does not hold: as a backfill left it, or without a past."""
        view = _views_by_id(self._plan)[first.view]
        seed = self._seeds.read(view, first.shard)
        if seed is not None:
            return self._restored(view, seed.snapshot)
        changelog = Changelog(self._changelogs, view, first.shard, None)
        return Shard(ShardState(view, first.shard), self._siblings, changelog)

    def on_batch(self, values: list[Slice]) -> tuple[Iterable[Step], bool]:
        if self._shard is None:
            self._shard = self._begun(values[0])
        was_behind = self._shard.behind
        refill = self._next_refill(self._shard)
        updates = self._shard.take_all(values)
        first = self._next_refill(self._shard) if was_behind else []
        if first:
            # No clock may be sent before the first part of the refill, so these updates wait for it.
            updates = [update.but(behind=True) if isinstance(update, Updates) else update for update in updates]
        for update in updates:
            if isinstance(update, Updates):
                self._progress.count(update)
        self._progress.epochs.moved()
        updates = [*refill, *updates, *first, *self._next_comparison(self._shard)]
        return [Step(update) for update in updates], StatefulBatchLogic.RETAIN

    @override
    def on_notify(self) -> tuple[Iterable[Step], bool]:
        refill = [] if self._shard is None else self._next_refill(self._shard)
        return [Step(update) for update in refill], StatefulBatchLogic.RETAIN

    @override
    def notify_at(self) -> dt.datetime | None:
        waits = self._refill is not None and self._shard is not None and not self._shard.behind
        return ALWAYS_DUE if waits else None

    def _next_refill(self, shard: Shard) -> list[Updates]:
        """Return a part of the current rows if Redis lacks them; a part, so that the flow can continue.

        A refill begins only when the rows are as late as any that a reader has seen.
        """
        if shard.behind:
            return []
        if self._losses_seen != self._redis.lost and shard.state.clock_us is not None:
            self._losses_seen = self._redis.lost
            self._refill = shard.everything(ROWS_PER_REFILL)
        if self._refill is None:
            return []
        part = next(self._refill)
        if part.refill == "last":
            self._refill = None
        return [part]

    def _next_comparison(self, shard: Shard) -> list[Updates]:
        """Return a part of the current rows, to be compared with Redis, when it is due."""
        if self._sink.scrub_us is None or shard.behind or shard.state.clock_us is None:
            return []
        if self._refill is not None:
            # All rows are being rewritten.
            self._scrub = None
            return []
        state, now_us = shard.state, self._sink.now_us()
        if self._pace is None:
            self._pace = Pace(
                self._sink.scrub_us, (zlib.crc32(f"{state.view.id}/{state.shard}".encode()) % 1000) / 1000
            )
        n_entities = len(state)
        if not self._pace.is_due(now_us, n_entities, hurried=self._redis.is_doubted(state.view, state.shard)):
            return []
        n_rows = self._pace.n_rows(n_entities)
        if self._scrub is None:
            self._scrub = shard.everything(n_rows)
        parts = [next(self._scrub)]
        if parts[0].refill == "part" and parts[0].current_rows.height < n_rows:
            parts.append(next(self._scrub))
        if parts[-1].refill == "last":
            self._scrub = None
        return [part.but(refill=None, scrub=part.refill) for part in parts]

    def snapshot(self) -> dict[str, Any]:
        # When an epoch ends here, every source and shard has loaded its saved state, and the epoch is not durable yet.
        self._accepted()
        if self._shard is None:
            if self._saved is None:
                raise RuntimeError("the state of a shard is requested before its first slice")
            return self._saved
        with self._progress.epochs.snapshot("shard"):
            state = self._shard.state
            self._progress.note_size(state.view.id, state.shard, entities=len(state), tiles=state.n_tiles)
            return self._disk.until_done(self._shard.to_snapshot)


class _Sink(FixedPartitionedSink[Any, Any]):
    """A sink over fixed partitions; a key always belongs to the same one."""

    def list_parts(self) -> list[str]:
        return SINK_PARTITIONS

    def part_fn(self, item_key: str) -> int:
        return zlib.crc32(item_key.encode())


class ParquetSink(_Sink):
    """The log, the event archive and dead letters; rows are published only once their epoch is durable."""

    def __init__(
        self,
        plan: Plan,
        log: Path,
        archive: Path,
        dead_letters: Path,
        now_us: Callable[[], int],
        shards: Shards,
        disk: Patience,
        objects: Patience,
        epochs: Epochs,
        still_ours: Callable[[], None],
        require_room: Callable[[int], None],
        seeds: Seeds,
        aside: Aside,
    ) -> None:
        self.seeds = seeds
        self._aside = aside
        self.disk = disk
        self._objects = objects
        self._require_room = require_room
        self.epochs = epochs
        self.still_ours = still_ours
        self._shards = shards
        self._begun = False
        self.built = threading.Event()
        """Set when Bytewax builds the flow: the processes of a cluster have found each other by then."""
        self.views = _views_by_id(plan)
        self._roots = Roots(log=log, archive=archive, dead_letters=dead_letters)
        self._now_us = now_us
        self._parts: list[_ParquetPart] = []

    @override
    def list_parts(self) -> list[str]:
        self.built.set()
        return super().list_parts()

    @override
    def build_part(self, step_id: str, for_part: str, resume_state: dict[str, Any] | None) -> "_ParquetPart":
        part = _ParquetPart(self, resume_state or {})
        self._parts.append(part)
        return part

    def open(self, saved: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Table]:
        """Open tables by name (``Roots.open``), with their saved state, except those of views not defined any more."""
        return self.at_once(
            {
                name: partial(self._opened, name, state)
                for name, state in saved.items()
                if not name.startswith("log/") or name.split("/")[1] in self.views
            }
        )

    def _opened(self, name: str, saved: Mapping[str, Any] | None) -> Table:
        kind, place, part = name.split("/")
        if kind == "log" and saved is None and (seed := self.seeds.read(self.views[place], part)) is not None:
            saved = seed.log
        return self._roots.open(
            name, saved, self.views, now_us=self._now_us, still_ours=self.still_ours, aside=self._aside
        )

    def store_of(self, name: str) -> Patience:
        """Return the store of a table, by its name."""
        return self._objects if isinstance(self._roots.of(name), ObjectPath) else self.disk

    def at_once(self, calls: Mapping[str, Callable[[], _Answer]]) -> dict[str, _Answer]:
        """Return the answers to calls of tables, by name.

        Several calls are made at the same time: an object store takes as long for one request as for many, and a disk
        makes what several threads ask it to make durable durable together.
        """
        done: dict[str, _Answer] = {}

        def call_the_rest(names: Iterable[str]) -> None:
            # What succeeded must not be done again: the next snapshot of a table, for example, publishes this one.
            together(lambda name: done.update({name: calls[name]()}), [name for name in names if name not in done])

        for store in (self._objects, self.disk):
            if names := [name for name in calls if self.store_of(name) is store]:
                store.until_done(partial(call_the_rest, names))
        return {name: done[name] for name in calls}

    def require_room_for_rows(self) -> None:
        """Raise ``StoreUnavailable`` if the recovery store may lack the room for what the tables' states hold."""
        self._require_room(self.n_held)

    @property
    def n_held(self) -> int:
        """The number of bytes of rows that the tables' states hold."""
        return sum(part.n_held for part in self._parts)

    def refuse_earlier(self, shards: Iterable[str], partitions: Iterable[str]) -> None:
        """Raise ``LayoutError`` if an earlier run published rows of these writers, none of which has a saved state.

        ``shards``: ``view@version/shard``. ``partitions``: ``topic/p0``.
        """
        for name in sorted(shards):
            view_id, _, shard = name.partition("/")
            view = self.views[view_id]
            refuse_earlier(view_root(self._roots.log, view.name, view.version), shard)
        for name in sorted(partitions):
            topic, _, writer = name.rpartition("/")
            for root in (self._roots.archive, self._roots.dead_letters):
                refuse_earlier(root / topic, writer)

    def begin(self) -> None:
        """Record the list of shards once, with the first item, when all saved state has been validated."""
        if not self._begun:
            for view_id, names in self._shards.by_view.items():
                view = self.views[view_id]
                root = view_root(self._roots.log, view.name, view.version)
                mine = self._shards.own
                own = None if mine is None else {name.removeprefix(f"{view_id}/") for name in mine}
                self.store_of("log").until_done(
                    lambda root=root, names=names, own=own, view=view: record_shards(  # type: ignore[misc]
                        root, names, own, view=view
                    )
                )
            self._begun = True

    def append_waiting(self) -> None:
        """Make frames of the rows that wait in logs, of all shards of a view together, whichever part they are of."""
        by_view: dict[str, list[LogTable]] = {}
        for part in self._parts:
            for view_id, table in part.waiting():
                by_view.setdefault(view_id, []).append(table)
        for tables in by_view.values():
            append_waiting(tables)

    def encode_rest(self) -> None:
        """Encode what is left of rows that are encoded ahead, of all tables at once, whichever part they are of."""
        together(lambda table: table.encode_rest(), [table for part in self._parts for table in part.ahead()])

    def settle(self) -> None:
        """Publish the last epoch: only after the flow has returned without an error."""
        for part in self._parts:
            part.settle()


class _ParquetPart(StatefulSinkPartition[Any, dict[str, Any]]):
    def __init__(self, sink: ParquetSink, saved: dict[str, Any]) -> None:
        self._sink = sink
        self._tables = sink.open(saved)
        self.n_held = 0
        # Saved positions of tables whose views are no longer defined are kept.
        self._retired = {name: state for name, state in saved.items() if name not in self._tables}

    def write_batch(self, values: list[Step | TableRows]) -> None:
        self._sink.begin()
        for value in values:
            if isinstance(value, Step):
                step = value.here(self._sink.views)
                table = self._table(f"log/{step.view.id}/{step.shard}")
                assert isinstance(table, LogTable)
                table.append(step)
                continue
            table = self._table(f"{'dead' if value.dead else 'archive'}/{value.topic}/{value.partition}")
            if isinstance(table, ArchiveTable):
                table.append(value.rows, first_us=value.first_us, clock_us=value.clock_us)
            else:
                assert isinstance(table, DeadLetterTable)
                table.append(value.rows)

    def _table(self, name: str) -> Table:
        table = self._tables.get(name)
        if table is None:
            opened = self._sink.open({name: None})
            if name not in opened:
                raise RuntimeError(f"rows for {name}, which is not in the plan")
            table = self._tables[name] = opened[name]
        return table

    def snapshot(self) -> dict[str, Any]:
        with self._sink.epochs.snapshot("sink"):
            self._sink.still_ours()
            if any(self.waiting()):
                self._sink.append_waiting()
            if any(self.ahead()):
                self._sink.encode_rest()
            kept = self._kept()
            rest = {name: table.snapshot for name, table in self._tables.items() if name not in kept}
            tables = {**kept, **self._sink.at_once(rest)}
            # Last of all that an epoch does before the recovery store is written, and tables may share its disk.
            self._sink.disk.until_done(self._sink.require_room_for_rows)
        return {**self._retired, **tables}

    def ahead(self) -> Iterator[Table]:
        """Yield the tables whose rows are encoded ahead of the epoch's end."""
        return (table for table in self._tables.values() if table.is_ahead)

    def waiting(self) -> Iterator[tuple[str, LogTable]]:
        """Yield the logs in which rows wait, with their views."""
        for name, table in self._tables.items():
            if isinstance(table, LogTable) and table.has_waiting:
                yield name.split("/")[1], table

    def _kept(self) -> dict[str, dict[str, Any]]:
        """Return, by name, the states of those tables whose rows they can hold."""
        kept: dict[str, dict[str, Any]] = {}
        self.n_held = 0
        held = self._sink.n_held
        for name, table in self._tables.items():
            n_held = held + self.n_held
            state = table.kept(min(MOST_HELD_BYTES - n_held, max(FEW_BYTES, MOST_LARGE_BYTES - n_held)))
            if state is not None:
                kept[name] = state
                self.n_held += table.n_held
        return kept

    def settle(self) -> None:
        self._sink.at_once({name: table.settle for name, table in self._tables.items()})


class RedisSink(_Sink):
    """Current values for Redis, through one writer that all partitions of the process share.

    What the items of one turn change is sent together, before the next turn: a request for each shard and view would
    cost more than the values of a few events. ``scrub_us``: the time in which all values are compared with Redis once;
    None for never.
    """

    def __init__(
        self,
        plan: Plan,
        writer: RedisWriter,
        now_us: Callable[[], int],
        shards: Shards,
        server: Patience,
        epochs: Epochs,
        turns: Turns,
        scrub_us: int | None = None,
    ) -> None:
        self.scrub_us = scrub_us
        self.turns = turns
        turns.before_turn, turns.before_rest = self.send, self.rest
        self.now_us = now_us
        self.views = _views_by_id(plan)
        self.server = server
        self.epochs = epochs
        self.writer = writer
        self._shards = shards
        self._begun = False

    @override
    def build_part(self, step_id: str, for_part: str, resume_state: None) -> "_RedisPart":
        return _RedisPart(self, self.writer, self.now_us)

    def begin(self) -> None:
        """Announce the shards once, as ``ParquetSink.begin`` does."""
        if not self._begun:
            self.server.until_done(
                lambda: self.writer.expect(self._shards.by_view, self._shards.own, self._shards.retired)
            )
            self._begun = True

    def send(self, *, resting: bool = False) -> None:
        """Send what waits, if it is due; ``resting``: the flow rests."""
        if self.writer.has_work:
            self.server.until_done(lambda: self.writer.flush_if_due(self.now_us(), resting=resting))

    def rest(self) -> bool:
        """Send what waits, because the flow rests; return true if something is still on its way or not due."""
        self.send(resting=True)
        return self.writer.has_work


class _RedisPart(StatefulSinkPartition[Step, None]):
    """A partition without saved state, because values are absolute.

    Redis acknowledges an epoch's changes before the epoch ends.
    """

    def __init__(self, sink: RedisSink, writer: RedisWriter, now_us: Callable[[], int]) -> None:
        self._sink = sink
        self._writer = writer
        self._now_us = now_us

    def write_batch(self, values: list[Step]) -> None:
        self._sink.begin()
        for value in values:
            step = value.here(self._sink.views)
            if isinstance(step, Updates) and step.scrub is not None:
                self._writer.compare(step, self._now_us())
            else:
                self._writer.add(step)
        if not self._sink.turns.come:
            # Other processes give this one all that it gets.
            self._sink.send()

    def snapshot(self) -> None:
        with self._sink.epochs.snapshot("sink"):
            self._sink.server.until_done(lambda: self._writer.flush(self._now_us()))


def build_flow(
    name: str,
    plan: Plan,
    sources: Mapping[str, KafkaSource],
    routers: Mapping[str, Router],
    parquet: ParquetSink,
    redis: RedisSink,
    changelogs: Changelogs,
    progress: Progress,
    accepted: Callable[[], None],
    going_on: Callable[[], None] = lambda: None,
    failures: Failures | None = None,
) -> Dataflow:
    """Wire sources, shards and sinks; ``sources`` and ``routers`` are by topic.

    ``going_on``: raises if the process should stop; it is called before the saved state of each shard is loaded.

    ``accepted`` is called at the end of every epoch that had items, before the epoch is durable; by then all saved
    state has been validated. ``failures``: notes the errors of all operators; None if Bytewax reports them.
    """
    if failures is not None:
        for source in sources.values():
            failures.of_parts(source, "next_batch", "next_awake", "snapshot", "close")
        for sink in (parquet, redis):
            failures.of_parts(sink, "write_batch", "snapshot", "close")
    noting = _as_it_is if failures is None else failures.noting
    flow = Dataflow(name)
    routed = []
    for topic, source in sources.items():
        polls = op.input(input_of(topic), flow, source)
        routed.append(op.flat_map_batch(f"{topic.replace('.', '+')}_route", polls, noting(routers[topic].route)))
    items = op.merge("routed", *routed)
    kinds = op.branch("kind", items, lambda item: isinstance(item[1], Slice))
    siblings = Siblings()

    def shard(saved: dict[str, Any] | None) -> _ShardLogic:
        if saved is not None:
            going_on()
        logic = _ShardLogic(plan, siblings, changelogs, parquet.seeds, parquet.disk, redis, progress, accepted, saved)
        return logic if failures is None else failures.of(logic, "on_batch", "on_notify", "snapshot")

    slices = cast("KeyedStream[Slice]", kinds.trues)
    updates = op.stateful_batch(SHARDS, slices, noting(shard))
    op.output("redis", updates, redis)
    op.output(TABLES, op.merge("rows", kinds.falses, updates), parquet)
    return flow


def _as_it_is(call: Callable[..., Any]) -> Callable[..., Any]:
    return call


def _views_by_id(plan: Plan) -> dict[str, ViewPlan]:
    return {view.id: view for view in plan.views.values()}
