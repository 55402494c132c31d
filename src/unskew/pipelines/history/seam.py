"""The seam check: what a backfill has taken up to the place where the stream goes on, held against the archive."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import polars as pl

from unskew.features.errors import LayoutError
from unskew.features.plan import ViewPlan
from unskew.features.time import format_instant
from unskew.pipelines.history.archive import BEGINNING, Archive, Cut
from unskew.pipelines.history.rebuild import rebuild
from unskew.pipelines.state.ordering import Shard
from unskew.pipelines.state.seeds import OFFSETS, Taken, again

SAMPLED = 1_000
"""Entities of a backfill that are computed a second time, in one go."""
_MOST_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Seam:
    """A seam without a fault.

    ``offsets``: the next offset of each partition. ``events``: events up to there. ``since_us``, ``clock_us``: where
    the first shard begins, and where the last one ends. ``rows``: rows of the log. ``compared``: entities that were
    computed again. ``rejected``: events, of those that were read now, that the view cannot take; a stream's are dead
    letters. ``why``: the reason of the first one. ``unfinished``: shards that other processes compute, and that are not
    there yet.
    """

    view: str
    events: int
    rows: int
    since_us: int | None
    clock_us: int | None
    offsets: Mapping[int, int]
    compared: int
    rejected: int = 0
    why: str | None = None
    unfinished: Sequence[str] = ()

    def of_table(self) -> str:
        """Return what was checked, of a view over a table."""
        return (
            f"{self.view}: seam check: each of the {self.events:,} rows that were taken of its table so far was counted "
            f"once{self._compared()}{self._rejected()}"
        )

    def __str__(self) -> str:
        places = ", ".join(f"{partition}: {offset:,}" for partition, offset in sorted(self.offsets.items()))
        span = ""
        if self.since_us is not None and self.clock_us is not None:
            span = f" from {format_instant(self.since_us)} to {format_instant(self.clock_us)}"
        return (
            f"{self.view}: its history is there: {self.events:,} archived events{span}, {self.rows:,} rows of the log. Seam check: "
            f"each event up to the next offsets (partition {places}) was taken once{self._compared()}{self._rejected()}{self._unfinished()}"
        )

    def _unfinished(self) -> str:
        if not self.unfinished:
            return ""
        more = f" and {len(self.unfinished) - _MOST_SHOWN} more" if len(self.unfinished) > _MOST_SHOWN else ""
        return (
            f". Not there yet, because other processes compute them: {', '.join(self.unfinished[:_MOST_SHOWN])}{more}"
        )

    def _compared(self) -> str:
        return f"; {self.compared:,} entities equal an uninterrupted rebuild" if self.compared else ""

    def _rejected(self) -> str:
        if not self.rejected:
            return ""
        return f". {self.rejected:,} events count nowhere, because the view cannot take them; the first: {self.why}"


def check_taken(view: ViewPlan, archive: Archive, end: Cut, taken: Mapping[str, Mapping[int, Taken]]) -> None:
    """Check that shards have taken each archived event before ``end`` once, from where the last check came.

    ``taken``: by shard. Raises ``LayoutError`` if a shard has not taken exactly these, or if files are missing.
    """

    @cache
    def counted_from(partition: int, begin: int) -> tuple[int, int]:
        return archive.count({partition: begin}, {partition: end[partition]})[partition]

    def counted(partition: int, begin: int) -> tuple[int, int]:
        # What begins with the archive was counted a moment ago, and a count reads every file.
        return counted_from(partition, begin if begin > archive.begins(partition) else BEGINNING)

    _refuse_hole(view, archive, end, taken, counted)
    # Shards differ in where they were last checked, if the process was killed right after that.
    for name, shard in taken.items():
        for partition, one in shard.items():
            n_events, total = counted(partition, one.checked)
            if (one.n_events, one.sum_offsets, one.end) != (n_events, total % OFFSETS, end[partition].offset):
                raise LayoutError(
                    f"{view.id}: the seam of its backfill does not fit: from offset {one.checked} to {end[partition].offset} of "
                    f"partition {partition}, {archive.root} holds {n_events} events, and shard {name} has taken {one.n_events}, up "
                    f"to offset {one.end}; {again(view)}"
                )


def _refuse_hole(
    view: ViewPlan,
    archive: Archive,
    end: Cut,
    taken: Mapping[str, Mapping[int, Taken]],
    counted: Callable[[int, int], tuple[int, int]],
) -> None:
    """Refuse an archive that lacks events that were written, other than old ones that were removed on purpose."""
    places = {(p, one.begin, one.before) for shard in taken.values() for p, one in shard.items()}
    for partition, first, n_earlier in sorted(places, key=lambda place: place[:2]):
        n_written = archive.n_written(partition)
        if n_written is None or archive.cut[partition].offset > end[partition].offset:
            continue
        begin, n_before = first, archive.n_before(partition, first) if n_earlier is None else n_earlier
        removed = archive.removed.get(partition)
        if removed is not None and removed.next_sequence > begin:
            begin, n_before = removed.next_sequence, removed.n_rows
        elif archive.is_cut(partition) and archive.begins(partition) > begin:
            # Removed by other means since the backfill began, which has taken them if it could go on.
            continue
        if n_before is None:
            continue
        n_events, _ = counted(partition, begin)
        if n_events != n_written - n_before:
            raise LayoutError(
                f"{archive.root}: partition {partition} holds {n_events} events from offset {begin} on, and {n_written - n_before} "
                f"were written, so the history of {view.id} would have a hole: files were removed. Restore them; or {again(view)} "
                '--from an instant after the hole; or let the view begin now (history="none")'
            )


def compare(
    view: ViewPlan,
    archive: Archive,
    end: Cut,
    shards: Sequence[Shard],
    taken: Mapping[str, Mapping[int, Taken]],
    *,
    since_us: int | None,
    n_partitions: int,
    n_hashes: int,
    n_entities: int = SAMPLED,
) -> int:
    """Compute some entities of these shards again, in one go, and return how many; all must have the same values.

    Raises ``LayoutError`` otherwise: then a chunk or a restart of the backfill has changed a value; and if an entity is
    in the shards of two partitions, which processes that have one of them each do not see.
    """
    rows = _current(shards)
    if rows is not None and (twice := rows["key"].is_duplicated()).any():
        raise LayoutError(
            f"{view.name}: entity {rows.filter(twice).item(0, 'key')} is in two partitions, but stream {view.stream.name} declares "
            f"partitioned_by {', '.join(view.stream.partitioned_by)}; partition the topic by that key, or drop partitioned_by, and {again(view)}"
        )
    begin = {partition: one.begin for shard in taken.values() for partition, one in shard.items()}
    if any(archive.begins(partition) > offset for partition, offset in begin.items()):
        # The first events are not there any more: they were, when the check before this one was made.
        return 0
    if rows is None or not rows.height:
        return 0
    rows = rows.gather_every(max(1, rows.height // n_entities))
    once = rebuild(
        [view],
        archive,
        begin=begin,
        end={partition: end[partition] for partition in begin},
        since_us=since_us,
        keys={view.id: rows["key"]},
        n_partitions=n_partitions,
        n_hashes=n_hashes,
    )[view.id]
    clocks = {one.state.shard: one.state.clock_us for one in once.shards}
    if any((one.state.clock_us or 0) > (clocks[one.state.shard] or 0) for one in shards if one.state.shard in clocks):
        # A hand-over was further: for a flow, a partition that has ended holds no other back. It was checked then.
        return 0
    others = _current(once.shards)
    if others is None or not others.equals(rows):
        pairs = zip(rows.iter_rows(named=True), () if others is None else others.iter_rows(named=True), strict=False)
        key = next((one["key"] for one, other in pairs if one != other), rows.item(0, "key"))
        raise LayoutError(
            f"{view.id}: the values of entity {key} after its backfill are not those of an uninterrupted rebuild; report this, and "
            f"{again(view)}"
        )
    return rows.height


def _current(shards: Sequence[Shard]) -> pl.DataFrame | None:
    """Return the current rows of all entities, by key."""
    parts = [part.current for shard in shards if shard.state.clock_us is not None for part in shard.everything(1 << 16)]
    return pl.concat(parts).sort("key") if parts else None
