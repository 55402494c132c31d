"""The backfill: a view's past from the archive, into its log and a state from which the flow continues.

It goes in chunks. After each, a chunk's rows are staged, then the seeds of its shards are replaced, and with the next
chunk the rows are published: the protocol of an epoch, with the seeds in the place of the recovery store. So it can be
killed anywhere and goes on where it was, and its log holds each row once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from unskew.features.errors import LayoutError
from unskew.features.events import Events
from unskew.features.plan import ViewPlan
from unskew.features.shard_state import ShardState
from unskew.features.updates import StepRows, Updates
from unskew.pipelines.history.archive import Archive, Cut, Piece, columns_of
from unskew.pipelines.history.rebuild import Feed, pieces
from unskew.pipelines.history.seam import Seam, check_taken, compare
from unskew.pipelines.state.changelog import Changelogs
from unskew.pipelines.state.ordering import Shard, Siblings, Slice, shard_names
from unskew.pipelines.state.seeds import LAYOUT, OFFSETS, Seed, Seeds, Taken, after_check, again
from unskew.pipelines.state.whole import WholeState
from unskew.sinks.tables.kinds import LogTable
from unskew.sinks.wall import wall_us

CHUNK_EVENTS = 2_000_000
"""Events between two chunks' ends: after a kill about so many are read again."""
CHUNK_ROWS = 2_000_000
"""Rows of the log after which a chunk ends earlier, because they are held in memory until then."""


@dataclass(frozen=True, kw_only=True)
class Backfill:
    """What a backfill computes and where it writes it.

    ``shards``: the names of the view's shards that this process computes. ``end``: where it stops, for the partitions
    that feed them. ``since_us``: the instant from which it begins; None for the beginning of the archive. ``log``: root
    of the log. ``still_ours``: raises if another process has taken over. ``going_on``: raises if this one should stop.
    """

    view: ViewPlan
    archive: Archive
    end: Cut
    shards: Sequence[str]
    n_partitions: int
    n_hashes: int
    log: Path
    seeds: Seeds
    changelogs: Changelogs
    since_us: int | None = None
    still_ours: Callable[[], None] = lambda: None
    going_on: Callable[[], None] = lambda: None
    chunk_events: int = CHUNK_EVENTS


def backfill(job: Backfill, report: Callable[[int], None] = lambda _: None) -> Seam:
    """Compute the shards of ``job`` from where their seeds are up to its end, write log and seeds, and check the end.

    ``report``: called with the number of events read so far. Raises ``LayoutError`` if the archive is damaged, lacks
    events or columns, or if seeds and log do not belong together; ``StoreUnavailable`` if the disk fails. The call can
    then be repeated.
    """
    siblings = Siblings()
    shards = {f"{job.view.id}/{name}": _Shard(job, name, siblings) for name in job.shards}
    begin = _begin(job, shards)
    feed = Feed([job.view], shards, n_partitions=job.n_partitions, n_hashes=job.n_hashes)
    n_events = n_since = 0
    end = {partition: job.end[partition] for partition in begin}
    for piece in pieces(job.archive, begin, end, columns_of(job.view), since_us=job.since_us):
        for shard in _fed(job, shards, piece.partition):
            shard.note(piece)
        feed.give(piece)
        n_events += piece.events.height
        n_since += piece.events.height
        report(n_events)
        if n_since >= job.chunk_events or sum(shard.table.n_buffered for shard in shards.values()) >= CHUNK_ROWS:
            n_since = 0
            _save(shards)
            job.going_on()
    _save(shards)
    for shard in shards.values():
        shard.settle()
    seam = _checked(job, end, shards)
    for shard in shards.values():
        # What was checked stays so, even if days of the archive are removed before a run takes the shard over.
        shard.note_check()
    return replace(seam, rejected=feed.rejected, why=feed.why)


def _checked(job: Backfill, end: Cut, shards: Mapping[str, "_Shard"]) -> Seam:
    taken = {shard.name: shard.taken for shard in shards.values()}
    states = [shard.shard for shard in shards.values()]
    sinces = [one.state.since_us for one in states if one.state.since_us is not None]
    clocks = [one.state.clock_us for one in states if one.state.clock_us is not None]
    return Seam(
        view=job.view.id,
        events=_checked_events(job, end, taken),
        rows=sum(shard.table.next_sequence for shard in shards.values()),
        since_us=min(sinces, default=None),
        clock_us=max(clocks, default=None),
        offsets={partition: reached.offset for partition, reached in end.items()},
        compared=compare(
            job.view,
            job.archive,
            end,
            states,
            taken,
            since_us=job.since_us,
            n_partitions=job.n_partitions,
            n_hashes=job.n_hashes,
        ),
    )


def _checked_events(job: Backfill, end: Cut, taken: Mapping[str, Mapping[int, Taken]]) -> int:
    check_taken(job.view, job.archive, end, taken)
    return sum({partition: one.total for shard in taken.values() for partition, one in shard.items()}.values())


def _begin(job: Backfill, shards: Mapping[str, "_Shard"]) -> dict[int, int]:
    """Return the first offset to read of each partition, and set it for shards that begin."""
    begin: dict[int, int] = {}
    for partition in job.end:
        at = min(0, job.archive.begins(partition))
        if job.since_us is not None:
            at = job.archive.offset_at(partition, job.since_us)
        fed = _fed(job, shards, partition)
        if not fed:
            continue
        for shard in fed:
            if partition not in shard.taken:
                first = max(at, job.archive.begins(partition))
                shard.taken[partition] = Taken.beginning(first, job.archive.n_before(partition, first))
        least = min((shard.taken[partition] for shard in fed), key=lambda taken: taken.end)
        begin[partition] = least.end
        _refuse_hole(job, partition, least, at)
    return begin


def _refuse_hole(job: Backfill, partition: int, taken: Taken, at: int) -> None:
    """Refuse to go on where the archive no longer has the next events."""
    files = job.archive.files.get(partition, ())
    begin = taken.end
    if begin > at and files and files[0].first > begin and not _has_all_before(job.archive, partition, taken):
        raise LayoutError(
            f"{job.archive.root}: the backfill of {job.view.id} had reached offset {begin} of partition {partition}, and the archive "
            f"now begins at {files[0].first}: the events between were removed; restore these days of the archive, or begin "
            "the backfill again from a later instant (--again --from)"
        )
    wanted = job.end[partition].offset
    if begin > wanted:
        raise LayoutError(
            f"the backfill of {job.view.id} has reached offset {begin} of partition {partition} of {job.archive.root}, which is past "
            f"{wanted}, where the pipeline is: the state is older than the archive; restore both from one backup"
        )


def _has_all_before(archive: Archive, partition: int, taken: Taken) -> bool:
    """Return whether all events that are not there any more were taken; not every offset is one of an event."""
    n_gone = archive.n_gone(partition)
    return n_gone is not None and taken.before is not None and n_gone == taken.before + taken.total


def _fed(job: Backfill, shards: Mapping[str, "_Shard"], partition: int) -> list["_Shard"]:
    """Return the shards that a partition feeds."""
    names = shard_names(job.view, [partition], job.n_hashes)
    return [shard for shard in (shards.get(f"{job.view.id}/{name}") for name in names) if shard is not None]


def _save(shards: Mapping[str, "_Shard"]) -> None:
    for shard in shards.values():
        shard.save()


class _Shard:
    """A shard that is backfilled, with its share of the log."""

    def __init__(self, job: Backfill, name: str, siblings: Siblings) -> None:
        self._job = job
        self.name = name
        view = job.view
        seed = self._seed = job.seeds.read(view, name)
        if seed is not None and seed.since_us != job.since_us:
            raise LayoutError(
                f"the backfill of {view.id} began with another --from; go on with that, or begin again (--again)"
            )
        self.table = self._open_table(job, name, None if seed is None else seed.log)
        self.taken: dict[int, Taken] = {} if seed is None else dict(seed.taken)
        if seed is None:
            self.shard = Shard(ShardState(view, name), siblings, WholeState(job.changelogs, view, name, None))
        else:
            self.shard = Shard.from_snapshot(view, siblings, job.changelogs, seed.snapshot, WholeState)

    @staticmethod
    def _open_table(job: Backfill, name: str, saved: Mapping[str, Any] | None) -> LogTable:
        try:
            return LogTable(job.log, job.view, name, saved, now_us=wall_us, still_ours=job.still_ours)
        except LayoutError as error:
            if not job.seeds.has(job.view.id):
                raise
            raise LayoutError(
                f"{job.view.id}: what is left of its backfill and its log do not belong together; check --log and --state, or {again(job.view)} ({error})"
            ) from error

    def note(self, piece: Piece) -> None:
        """Count the events of a piece that are new to the shard."""
        taken = self.taken[piece.partition]
        offsets = piece.events["_offset"].to_numpy()
        offsets = offsets[np.searchsorted(offsets, taken.end) :]
        end = int(offsets[-1]) + 1 if len(offsets) else taken.end
        if not piece.events.height:
            end = max(end, self._job.end[piece.partition].offset)
        self.taken[piece.partition] = Taken(
            begin=taken.begin,
            end=end,
            n_events=taken.n_events + len(offsets),
            # A sum of 64 bits is right modulo 2**64, so it is modulo half of that.
            sum_offsets=(taken.sum_offsets + int(offsets.sum())) % OFFSETS,
            checked=taken.checked,
            total=taken.total + len(offsets),
            before=taken.before,
        )
        self._from = taken.end

    def take(self, piece: Slice) -> None:
        """Apply what is new to the shard, and append what it puts out to the log."""
        events = piece.events
        if events is not None and events.height and int(events.frame.item(0, "offset")) < self._from:
            new = events.frame.filter(pl.col("offset") >= self._from)
            piece = msgspec.structs.replace(piece, events=Events(new))
        updates = self.shard.take(piece)
        if isinstance(updates, Updates) and updates.closed_rows.height:
            backfilled = pl.lit("backfill").cast(updates.closed.schema["cause"])
            updates = updates.but(
                closed_rows=StepRows(updates.closed.with_columns(cause=backfilled), updates.closed_rows.first)
            )
        if updates is not None:
            self.table.append(updates)

    def save(self) -> None:
        """End a chunk: publish the rows of the one before, stage those of this one, and make the seed durable."""
        log = self.table.snapshot()
        self._seed = Seed(
            layout=LAYOUT,
            fingerprint=self._job.view.state_fingerprint,
            snapshot=self.shard.to_snapshot(),
            log=log,
            taken=self.taken,
            since_us=self._job.since_us,
        )
        self._write_seed()
        kept = self.shard.changelog
        assert isinstance(kept, WholeState)
        kept.settle()

    def note_check(self) -> None:
        """Make durable that all that was taken up to the last chunk's end is checked; nothing else has changed."""
        assert self._seed is not None
        self.taken = after_check(self.taken)
        self._seed = msgspec.structs.replace(self._seed, taken=self.taken)
        self._write_seed()

    def _write_seed(self) -> None:
        assert self._seed is not None
        self._job.seeds.write(self._job.view, self.name, self._seed, self._job.still_ours)

    def settle(self) -> None:
        """Publish the last chunk."""
        self.table.settle()
