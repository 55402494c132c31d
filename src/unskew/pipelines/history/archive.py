"""The event archive of a stream as it was published: its partitions, and their events in order.

The events of a partition are those that were imported, whose offsets are negative, and then those of the topic, from
the offset on at which the topic takes over.
"""

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import polars as pl

from unskew.features.errors import LayoutError
from unskew.features.plan import StreamPlan, ViewPlan
from unskew.features.time import DAY_US, day_of
from unskew.sinks.objects import at_hand
from unskew.sinks.tables.imported import HandOver, read_imported
from unskew.sinks.tables.layout import (
    IMPORTED,
    INSTANT,
    Removed,
    ShardCoverage,
    TableFile,
    archive_writer,
    origin_of,
    published_files,
    read_coverage,
    read_kept_from,
    read_removed,
)
from unskew.sinks.tables.reading import answer, answer_of_table, gone, schema_of

BATCH_ROWS = 1 << 18
"""Events that are read at once: a row group as Polars writes them."""
META = ("_partition", "_offset", "_arrival", "_event_time")
BEGINNING = IMPORTED
"""An offset that no event of an archive is before."""


@dataclass(frozen=True, kw_only=True)
class Reached:
    """How far a partition has been read: its next offset and its clock, None before one. ``ended``: it has ended."""

    offset: int
    clock_us: int | None
    ended: bool = False


Cut = Mapping[int, Reached]
"""A place in a stream: how far each of its partitions has been read."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Some events of one partition, in offset order, and the partition's clock after them.

    ``first_us``: the arrival of the partition's first record, in its first piece; None in the others.
    """

    partition: int
    events: pl.DataFrame
    clock_us: int | None
    first_us: int | None
    ended: bool


@dataclass(frozen=True, kw_only=True)
class Archive:
    """The published events of a stream, as of when they were listed, wherever compaction moves them meanwhile.

    ``covered``: by partition, what its coverage says. ``hand_overs``: by partition, where its topic takes over from
    events that were imported. ``kept_from_us``: old days were removed up to this instant; None if ``unskew retain``
    removed none. ``removed``: by partition, what that removed, with the offset after it as its sequence number.
    """

    root: Path
    stream: StreamPlan
    files: Mapping[int, Sequence[TableFile]]
    cut: Cut
    covered: Mapping[int, ShardCoverage] = field(default_factory=dict)
    hand_overs: Mapping[int, HandOver] = field(default_factory=dict)
    kept_from_us: int | None = None
    removed: Mapping[int, Removed] = field(default_factory=dict)

    @classmethod
    def open(cls, archive_root: Path, stream: StreamPlan, *, imports: bool = True) -> "Archive":
        """List what is published. Raises ``LayoutError`` for a folder that is not an archive.

        ``imports``: false leaves out what was imported.
        """
        root = archive_root / stream.topic
        # In this order, because the rows that a coverage file counts are published before it.
        hand_overs = read_imported(root).partitions if imports else {}
        coverage = read_coverage(root)
        listed: dict[str, list[TableFile]] = {}
        for file in published_files(root):
            listed.setdefault(file.writer, []).append(file)
        shards = {} if coverage is None else coverage.shards
        files: dict[int, Sequence[TableFile]] = {}
        cut: dict[int, Reached] = {}
        covered: dict[int, ShardCoverage] = {}
        handed: dict[int, HandOver] = {}
        for writer in sorted(listed.keys() | shards.keys()):
            partition = _partition(writer, root)
            if origin_of(writer) == IMPORTED:
                continue
            found: Sequence[TableFile] = listed.get(writer, [])
            shard = shards.get(writer)
            if shard is not None:
                clock_us = None if shard.complete_to_us is None else shard.complete_to_us + 1
                cut[partition] = Reached(offset=shard.next_sequence, clock_us=clock_us)
            before = archive_writer(partition, imported=True)
            hand_over = hand_overs.get(partition)
            if hand_over is not None and not _lacks_start(found, shard, hand_over.offset):
                handed[partition] = hand_over
                found, shard = _joined(listed.get(before, []), shards.get(before), found, shard, hand_over)
            if found:
                files[partition] = found
            if shard is not None:
                covered[partition] = shard
        # After the files: what they lack was recorded before it was removed.
        recorded = read_removed(root)
        removed: dict[int, Removed] = {}
        for partition in covered:
            imported = partition in handed
            writer = archive_writer(partition, imported=imported)
            if (one := recorded.get(writer)) is not None:
                removed[partition] = replace(one, next_sequence=one.next_sequence + origin_of(writer))
        archive = cls(
            root=root,
            stream=stream,
            files=files,
            cut=cut,
            covered=covered,
            hand_overs=handed,
            kept_from_us=read_kept_from(root),
            removed=removed,
        )
        for partition, found in files.items():
            if cut.get(partition, Reached(offset=0, clock_us=None)).offset <= found[-1].last:
                # Published after the coverage was read, or by an earlier version, which wrote none.
                last = archive.last(partition)
                cut[partition] = Reached(offset=last.item(0, "_offset") + 1, clock_us=_us(last))
        return archive

    def __bool__(self) -> bool:
        return bool(self.files)

    @property
    def partitions(self) -> list[int]:
        return sorted(self.cut.keys() | self.files.keys())

    @cached_property
    def first_us(self) -> Mapping[int, int]:
        """By partition, the instant from which its events are there.

        That is its beginning, also if that was not an event; if the first days were removed, it is where the latest of
        all removals ended.
        """
        # Days are removed whole, so a partition of which some are gone is whole from the beginning of its first one.
        removed = {p: _midnight_us(found[0].first_day) for p, found in self.files.items() if self.is_cut(p)}
        begun = {p: one.since_us for p, one in self.covered.items() if one.since_us is not None}
        firsts = {p: _us(self._edge(found[0], first=True)) for p, found in self.files.items() if p not in begun}
        # Not where ``unskew retain`` cut: an import, or a table that was taken anew, may have brought those days back.
        bound_us = max(removed.values(), default=-(2**63))
        return {p: max(bound_us, first_us) for p, first_us in {**firsts, **begun, **removed}.items()}

    def begins(self, partition: int) -> int:
        """Return the offset of a partition's first event that is there; 0 without one."""
        files = self.files.get(partition)
        return files[0].first if files else 0

    def most(self, end: Cut, begin: Mapping[int, int] | None = None) -> int:
        """Return how many events there can be between two places; by default from the beginning on."""
        total = 0
        for partition, reached in end.items():
            first = max((begin or {}).get(partition, BEGINNING), self.begins(partition))
            hand_over = self.hand_overs.get(partition)
            if hand_over is not None and first < hand_over.offset:
                total += max(0, min(reached.offset, IMPORTED + hand_over.rows) - first)
                first = hand_over.offset
            total += max(0, reached.offset - first)
        return total

    def is_cut(self, partition: int) -> bool:
        """Return whether the first events of a partition were removed."""
        first = None if partition not in self.covered else self.covered[partition].first
        files = self.files.get(partition)
        if first is None and self.kept_from_us is not None:
            # An archive that an earlier version began does not say what it held.
            return True
        return first is not None and (not files or files[0].first != first)

    def n_written(self, partition: int) -> int | None:
        """Return how many events of a partition were ever written up to its place; None if that is not known."""
        one = self.covered.get(partition)
        reached = self.cut.get(partition)
        if one is None or reached is None or reached.offset != one.next_sequence:
            return None
        return one.n_events

    def n_before(self, partition: int, offset: int) -> int | None:
        """Return how many events of a partition were ever written before an offset; None if that is not known.

        An offset at which the events begin that are there has those before it that were removed on purpose.
        """
        removed = self.removed.get(partition)
        if offset <= self.begins(partition):
            if not self.is_cut(partition):
                return 0
            if removed is not None and removed.next_sequence <= offset:
                return removed.n_rows
        return self._n_missing(partition, offset)

    def n_gone(self, partition: int) -> int | None:
        """Return how many events of a partition were written and are not there; None if that is not known."""
        return self._n_missing(partition, BEGINNING)

    def _n_missing(self, partition: int, begin: int) -> int | None:
        n_written = self.n_written(partition)
        return None if n_written is None else n_written - self._count(partition, begin, self.cut[partition].offset)[0]

    def last(self, partition: int) -> pl.DataFrame:
        """Return offset and arrival of a partition's last event."""
        return self._edge(self.files[partition][-1], first=False)

    def read(self, partition: int, begin: int, end: int, columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        """Yield the events of a partition with ``begin`` <= offset < ``end``, in order and in bounded pieces.

        ``columns``: besides those of ``META``. Raises ``LayoutError`` for a file that is damaged or lacks a column.
        """
        at = begin
        files = self.files.get(partition, ())
        while True:
            try:
                for group in _groups([file for file in files if file.last >= at and file.first < end]):
                    for rows in self._batches(partition, group, [*columns, *META], at, end):
                        yield rows
                        at = int(rows.item(-1, "_offset")) + 1
            except FileNotFoundError as error:
                # Compaction deletes merged files after a grace period, which a long replay may exceed.
                again = self._listed(partition)
                if again == files:
                    raise gone(self.root, error) from error
                files = again
            else:
                return

    def first_of(self, file: TableFile, columns: Sequence[str], n_events: int) -> pl.DataFrame:
        """Return the first events of a file, at most so many.

        ``columns``: besides those of ``META``. Raises ``LayoutError`` for a file that is damaged or lacks a column, and
        ``FileNotFoundError`` for one that compaction has removed meanwhile.
        """
        return self._scanned([file], [*columns, *META], n_rows=n_events)

    def offset_at(self, partition: int, instant_us: int) -> int:
        """Return the offset of a partition's first event that arrived at ``instant_us`` or later; past all if none."""
        day = day_of(instant_us)
        for file in self.files.get(partition, ()):
            if file.last_day >= day:
                there = self._within(partition, BEGINNING, 2**63 - 1)
                late = self._scanned(
                    [file], ["_offset", "_arrival"], (pl.col("_arrival").to_physical() >= instant_us) & there
                )
                if late.height:
                    return int(late.item(0, "_offset"))
        return self.cut[partition].offset if partition in self.cut else 0

    def count(self, begin: Mapping[int, int], end: Cut) -> Mapping[int, tuple[int, int]]:
        """Return, by partition, how many events lie between two places, and the sum of their offsets.

        It lists the files anew and reads them in one query, so that it shares nothing with ``read``.
        """
        return {
            partition: self._count(partition, begin.get(partition, BEGINNING), reached.offset)
            for partition, reached in end.items()
        }

    def _count(self, partition: int, begin: int, end: int) -> tuple[int, int]:
        within = self._within(partition, begin, end)
        total = pl.col("_offset").filter(within).cast(pl.Int128).sum()
        counted = [0, 0]
        for imported in (True, False) if partition in self.hand_overs else (False,):
            n_events, sum_offsets = answer_of_table(
                self.root,
                lambda paths: (
                    scanned(paths, self.stream, ["_offset"])
                    .select(within.sum().cast(pl.Int64), total.alias("sum"))
                    .collect()
                    .row(0)
                    if paths
                    else (0, 0)
                ),
                writer=archive_writer(partition, imported=imported),
            )
            counted[0] += int(n_events or 0)
            counted[1] += int(sum_offsets or 0)
        return counted[0], counted[1]

    def _within(self, partition: int, begin: int, end: int) -> pl.Expr:
        """Return whether an event lies between two offsets, and is not one that imported events replace."""
        within = pl.col("_offset").is_between(begin, end - 1)
        hand_over = self.hand_overs.get(partition)
        if hand_over is None:
            return within
        return within & ~pl.col("_offset").is_between(IMPORTED + hand_over.rows, hand_over.offset - 1)

    def _listed(self, partition: int) -> Sequence[TableFile]:
        """List the files of a partition anew."""
        found = published_files(self.root, archive_writer(partition))
        hand_over = self.hand_overs.get(partition)
        if hand_over is None:
            return found
        return _joined(
            published_files(self.root, archive_writer(partition, imported=True)), None, found, None, hand_over
        )[0]

    def require(self, columns: Sequence[str], begin: Mapping[int, int]) -> None:
        """Raise ``LayoutError`` if the events from a place on lack one of these columns: it came later."""
        for partition, files in self.files.items():
            wanted = [file for file in files if file.last >= begin.get(partition, BEGINNING)]
            if not wanted or not (lacking := self._lacking(wanted[0], columns)):
                continue
            low, high = 0, len(wanted)
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if self._lacking(wanted[middle], columns) else (low, middle)
            way = 'let the view begin now (history="none")'
            if high < len(wanted):
                way = f"the archive has it from {wanted[high].first_day} on: backfill from there (--from), or {way}"
            raise LayoutError(
                f"{wanted[0].path} has no column {lacking!r}, because stream {self.stream.name} did not have it when "
                f"these events were archived; {way}"
            )

    def _lacking(self, file: TableFile, columns: Sequence[str]) -> str | None:
        there = answer([file], lambda one: one.path, lambda ones: schema_of(ones[0].path))
        return next((name for name in columns if name not in there), None)

    def _edge(self, file: TableFile, *, first: bool) -> pl.DataFrame:
        bound = file.first if first else file.last
        return self._scanned([file], ["_offset", "_arrival"], pl.col("_offset") == bound)

    def _batches(
        self, partition: int, files: Sequence[TableFile], columns: Sequence[str], begin: int, end: int
    ) -> Iterator[pl.DataFrame]:
        within = self._within(partition, begin, end)
        if len(files) > 1 or files[0].last - files[0].first < BATCH_ROWS:
            # Nearly all of it is wanted, and a filter of rows in memory costs less than one of each file as it is read.
            rows = self._scanned(files, columns).filter(within)
            if rows.height:
                yield rows
            return
        # A large file is verified once, and then read a row group at a time.
        path = files[0].path
        n_rows = answer(files, lambda file: file.path, lambda ones: _n_rows(ones[0].path))
        for start in range(0, n_rows, BATCH_ROWS):
            with at_hand([path]) as there:
                rows = scanned([there[path]], self.stream, columns).slice(start, BATCH_ROWS).filter(within).collect()
            if rows.height:
                yield rows

    def _scanned(
        self,
        files: Sequence[TableFile],
        columns: Sequence[str],
        where: pl.Expr | None = None,
        n_rows: int | None = None,
    ) -> pl.DataFrame:
        def read(ones: Sequence[TableFile]) -> pl.DataFrame:
            found = scanned([one.path for one in ones], self.stream, columns)
            found = found if n_rows is None else found.head(n_rows)
            return (found if where is None else found.filter(where)).collect()

        return answer(files, lambda file: file.path, read)


def columns_of(view: ViewPlan) -> list[str]:
    """Return the columns of the stream that a view reads."""
    # A view over sessions reads events only through the sessions.
    reads = view.sessions or view
    expressions = [reads.where, *reads.filters, *reads.values]
    roots = {name for one in expressions if one is not None for name in one.expr.meta.root_names()}
    if view.stream.event_id is not None and view.stream.dedupe_within_us is not None:
        roots.add(view.stream.event_id)
    keys = list(reads.entity.keys)
    return [*keys, *sorted(roots - set(keys))]


def _groups(files: Sequence[TableFile]) -> Iterator[list[TableFile]]:
    """Yield files that are read together: many small ones, or one large one."""
    group: list[TableFile] = []
    n_rows = 0
    for file in files:
        size = file.last - file.first + 1
        if group and n_rows + size > BATCH_ROWS:
            yield group
            group, n_rows = [], 0
        group.append(file)
        n_rows += size
    if group:
        yield group


def scanned(paths: Sequence[Path], stream: StreamPlan, columns: Sequence[str]) -> pl.LazyFrame:
    """Return these columns of a stream's events; a file of another schema may have more, or narrower numbers."""
    known = {**stream.columns, "_partition": pl.Int32(), "_offset": pl.Int64()}
    types = {name: known.get(name, INSTANT) for name in columns}
    return pl.scan_parquet(
        list(paths),
        hive_partitioning=False,
        glob=False,
        schema=types,
        extra_columns="ignore",
        cast_options=pl.ScanCastOptions(integer_cast="upcast", float_cast="upcast"),
    )


def _n_rows(path: Path) -> int:
    return int(pl.scan_parquet(path, glob=False).select(pl.len()).collect().item())


def _lacks_start(files: Sequence[TableFile], shard: ShardCoverage | None, offset: int) -> bool:
    """Return whether events of a topic were removed that imported rows do not replace; then these rows are cut off.

    ``offset``: the first offset of the topic that counts.
    """
    first = None if shard is None else shard.first
    if first is None or (files and files[0].first == first):
        return False
    return not files or files[0].first > offset


def _joined(
    before: Sequence[TableFile],
    before_shard: ShardCoverage | None,
    files: Sequence[TableFile],
    shard: ShardCoverage | None,
    hand_over: HandOver,
) -> tuple[Sequence[TableFile], ShardCoverage | None]:
    """Return files and coverage of a partition from its imported events on.

    ``files``, ``shard``: those of its topic.
    """
    moved = [
        replace(file, first=file.first + IMPORTED, last=file.last + IMPORTED)
        for file in before
        if file.first < hand_over.rows
    ]
    rest = [file for file in files if file.last >= hand_over.offset]
    joined: Sequence[TableFile] = [*moved, *rest]
    if shard is None:
        return joined, None
    n_before: int | None = hand_over.rows
    first = IMPORTED if hand_over.rows else joined[0].first if joined else None
    if before_shard is not None and before_shard.next_sequence == hand_over.rows:
        # Otherwise another import goes on.
        n_before = before_shard.n_events
    n_events = None
    # Removed days of the topic whose events imported rows replace make no hole, but leave their number unknown.
    if (not files or shard.first == files[0].first) and shard.n_events is not None and n_before is not None:
        n_events = n_before + shard.n_events - hand_over.skipped
    return joined, replace(shard, since_us=hand_over.since_us, first=first, n_events=n_events)


def _partition(writer: str, root: Path) -> int:
    number = writer[1:] if origin_of(writer) == IMPORTED else writer.removeprefix("p")
    if not number.isdecimal():
        raise LayoutError(
            f"{root} is not an archive: it has files of {writer!r}; give the folder of unskew run --archive"
        )
    return int(number)


def _midnight_us(day: dt.date) -> int:
    return (day - dt.date(1970, 1, 1)).days * DAY_US


def _us(event: pl.DataFrame) -> int:
    return int(event["_arrival"].to_physical()[0])
