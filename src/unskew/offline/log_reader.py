"""The published log of one view: its files, their coverage, and their rows in order of days."""

import bisect
import datetime as dt
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import polars as pl

from unskew.features.errors import LayoutError
from unskew.features.keys import encode_keys, shard_of
from unskew.features.ledger import NOTHING_LATE, Ledger
from unskew.features.time import format_instant, moment_of
from unskew.features.types import Type
from unskew.features.view import View
from unskew.sinks.tables.checksum import RESTORE
from unskew.sinks.tables.layout import (
    INSTANT,
    Coverage,
    TableFile,
    parse,
    published_files,
    read_coverage,
    read_kept_from,
    read_shards,
    view_root,
)
from unskew.sinks.tables.reading import answer, gone, metadata_of, n_left_out

_Answer = TypeVar("_Answer")

# What is read at once: bytes as they are compressed, and about as many as the join needs for them in memory. Counts
# that are mostly 0 take a hundredth of their memory on disk, and texts may take more memory than they are counted with.
_CHUNK_BYTES = 64 << 20
_MEMORY_BYTES = 128 << 20
# A large day of a partitioned view is read once for each of its parts, so these may be larger.
_PART_PIECES = 3
# The join numbers and groups rows beside their columns.
_BYTES_PER_ROW = 32


@dataclass(frozen=True, kw_only=True)
class LogStats:
    """Figures of a view's log.

    ``causes``: rows by cause. ``first``, ``last``: the bounds of ``available_at``, None without rows. ``kept_from``:
    the instant before which old days were removed, so that only the last row of each entity is left; None if none were.
    ``ledger``: the events that did not count: late events and repeats.
    """

    rows: int
    entities: int
    files: int
    bytes: int
    shards: int
    first: dt.datetime | None
    last: dt.datetime | None
    since: dt.datetime | None
    kept_from: dt.datetime | None
    complete_to: dt.datetime | None
    causes: dict[str, int]
    ledger: Ledger


@dataclass(frozen=True, kw_only=True)
class RebuiltLog:
    """The log of a view as it would be, had the view been computed: rows in memory, and what they cover.

    ``rows``: as in a log, each shard's in the order of their instants. ``title``: names it in errors.
    """

    view: View
    title: str
    rows: pl.DataFrame
    since_us: int | None
    first_since_us: int | None
    complete_to_us: int | None
    coverage: None = None

    def n_rows(self, *, upto: dt.date | None = None) -> int:
        """Return the number of rows that ``newest_first`` yields."""
        del upto
        return self.rows.height

    def newest_first(self, columns: Sequence[str], *, upto: dt.date | None = None) -> Iterator[pl.DataFrame]:
        """Yield all rows, as ``ViewLog.newest_first`` does; ``upto`` leaves out none."""
        del upto
        yield self.rows.select(columns)

    def rows_of(
        self, key: Mapping[str, Any], columns: Sequence[str], progress: Callable[[str, int, int], None]
    ) -> pl.DataFrame:
        """Return all rows of one entity, as ``ViewLog.rows_of`` does."""
        del progress
        return self.rows.filter(**key).sort("available_at", maintain_order=True).select(columns)


@dataclass(frozen=True, slots=True)
class _Part:
    """The present location of rows: a whole file, or its rows ``within`` two sequence numbers, both inclusive."""

    path: Path
    within: tuple[int, int] | None = None


@dataclass
class _Piece:
    """Files that are read at once, or in ``n_parts``: each has the rows of other entities."""

    files: list[TableFile]
    n_parts: int = 1

    def part(self, number: int, keys: Sequence[str]) -> pl.Expr:
        """Return which rows are those of a part."""
        if self.n_parts == 1:
            return pl.lit(value=True)
        return pl.struct(keys).hash(seed=0) % self.n_parts == number


@dataclass(frozen=True)
class _Dated:
    """A file, or a part of one, and the days between which its rows lie, both inclusive."""

    file: TableFile
    n_bytes: int
    first_day: dt.date
    last_day: dt.date

    def divided(self, most_rows: int) -> "list[_Dated]":
        """Return the file as several, of at most so many rows, in the order of their rows."""
        starts = range(self.file.first, self.file.last + 1, most_rows)
        ends = [min(self.file.last, first + most_rows - 1) for first in starts]
        return [self.part(first, last, self.first_day, self.last_day) for first, last in zip(starts, ends, strict=True)]

    def part(self, first: int, last: int, first_day: dt.date, last_day: dt.date) -> "_Dated":
        file = replace(self.file, first=first, last=last)
        n_bytes = self.n_bytes * _n_named(file) // max(1, _n_named(self.file))
        return _Dated(file, n_bytes, first_day, last_day)


class ViewLog:
    """The rows of one view's log that were published when it was opened, wherever compaction moves them meanwhile.

    ``at``: an earlier coverage of the log, to read it as it was then: rows past it are left out. ``after``: by shard,
    the sequence number of the first row to read; earlier rows are left out. Raises ``LayoutError`` if rows below the
    covered sequence are missing, if the log was written with another definition than ``view``, or if it does not reach
    ``at``; reading raises it if a file has disappeared and no other file holds its rows.
    """

    def __init__(
        self, log_root: Path, view: View, *, at: Coverage | None = None, after: Mapping[str, int] | None = None
    ) -> None:
        self.view = view
        self.title = f"the log of {view.id} under {view_root(log_root, view.name, view.version)}"
        self.root = view_root(log_root, view.name, view.version)
        # In this order, because the rows of a coverage file are published before it.
        self.coverage = read_coverage(self.root)
        files = published_files(self.root)
        if self.coverage is not None:
            # After the listing, because what it says was written before the files of which old rows were removed.
            self.coverage = replace(self.coverage, kept_from_us=read_kept_from(self.root))
        _refuse_gaps(files, self.coverage, self.root)
        if at is not None:
            files = _upto(files, at, self.coverage, self.root)
            self.coverage = replace(at, kept_from_us=read_kept_from(self.root))
        if after is not None:
            files = _from(files, after)
        sizes = self._found(files, lambda parts: [part.path.stat().st_size for part in parts])
        dated = [
            _Dated(file, n_bytes, self._first_day(file), file.last_day)
            for file, n_bytes in zip(files, sizes, strict=True)
        ]
        self._dated = sorted(dated, key=_order)
        self._refuse_other_definitions()

    @property
    def files(self) -> list[TableFile]:
        """The files by (first day, shard, sequence), as they were when the log was opened."""
        return [one.file for one in self._dated]

    @property
    def ends(self) -> dict[str, int]:
        """The sequence number after the last row of each shard that has rows here; ``after`` of a later reading."""
        ends: dict[str, int] = {}
        for file in self.files:
            ends[file.writer] = max(ends.get(file.writer, 0), file.last + 1)
        return ends

    @property
    def since_us(self) -> int | None:
        """The instant from which every shard has seen its events; None before the first event."""
        return None if self.coverage is None else self.coverage.since_us

    @property
    def first_since_us(self) -> int | None:
        """The instant before which no shard has seen anything; None before the first event."""
        return None if self.coverage is None else self.coverage.first_since_us

    @property
    def complete_to_us(self) -> int | None:
        """The last instant that every shard has closed; None before the first."""
        return None if self.coverage is None else self.coverage.complete_to_us

    def n_rows(self, *, upto: dt.date | None = None) -> int:
        """Return the number of rows that ``newest_first`` yields."""
        return sum(_n_named(one.file) for one in self._through(upto))

    def newest_first(self, columns: Sequence[str], *, upto: dt.date | None = None) -> Iterator[pl.DataFrame]:
        """Yield the rows of all days through ``upto`` in bounded pieces, the newest piece first.

        Rows of later days may be among them. Within a piece each shard's rows are in the order of their instants; every
        row of an entity in a piece is later than its rows in the pieces that follow. An entity of a partitioned view
        may have rows in several shards, so a large day of such a view is divided by entity.
        """
        yield from _one_ahead(self._read(self._pieces(columns, upto), columns))

    def oldest_first(self, columns: Sequence[str], *, upto: dt.date | None = None) -> Iterator[pl.DataFrame]:
        """Yield the same pieces as ``newest_first``, the oldest piece first."""
        yield from _one_ahead(self._read(reversed(list(self._pieces(columns, upto))), columns))

    def _read(self, pieces: "Iterable[_Piece]", columns: Sequence[str]) -> Iterator[pl.DataFrame]:
        for piece in pieces:
            n_rows = 0
            for part in range(piece.n_parts):
                own = piece.part(part, self.view.entity.keys)
                rows = self._rows(piece.files, lambda rows, own=own: rows.filter(own).select(columns).collect())  # type: ignore[misc]
                n_rows += rows.height
                if part == piece.n_parts - 1:
                    self._refuse_other_numbers(piece.files, n_rows)
                yield rows

    def rows_of(
        self, key: Mapping[str, Any], columns: Sequence[str], progress: Callable[[str, int, int], None]
    ) -> pl.DataFrame:
        """Return all rows of one entity, in the order of time; reads all files that may have some, in bounded pieces.

        ``key``: by key column. ``progress``: called with the view's id, the rows that were looked at, and all rows.
        """
        found = [_none(self.view, columns)]
        n_seen, n_all = 0, self.n_rows()
        has_entity = self._shards_of(key)
        for piece in self._pieces(["shard", "seq"], None):
            files = [file for file in piece.files if has_entity(file.writer)]
            if files:
                found.append(
                    self._rows(files, lambda rows: rows.filter(**key).select(*columns, "shard", "seq").collect())
                )
            n_seen += sum(map(_n_named, piece.files))
            progress(self.view.id, n_seen, n_all)
        rows = pl.concat(found, how="diagonal")
        return rows.sort("available_at", "shard", "seq").select(columns) if len(rows) else rows.select(columns)

    def _shards_of(self, key: Mapping[str, Any]) -> Callable[[str], bool]:
        """Return which shards may have rows of an entity: those of its hash, as far as all shards are known."""
        hash_of = {
            name: name.rpartition(".")[2] if self.view.partitioned else name[1:] for name in read_shards(self.root)
        }
        hashes = set(hash_of.values())
        is_known = hashes == {str(number) for number in range(len(hashes))}
        if not is_known or not {file.writer for file in self.files} <= hash_of.keys():
            return lambda _shard: True
        own = str(shard_of(encode_keys(pl.DataFrame([key]), self.view.entity), len(hashes))[0])
        return lambda shard: hash_of[shard] == own

    def _pieces(self, columns: Sequence[str], upto: dt.date | None) -> "Iterator[_Piece]":
        """Yield what is read at once of all days through ``upto``, the newest first."""
        types = {feature.name: feature.dtype for feature in self.view.features}
        bytes_per_row = _BYTES_PER_ROW + sum(_width(types.get(name)) for name in columns)
        taken: list[list[_Dated]] = []
        size = memory = 0
        for ones in self._inseparable(upto, max(1, _MEMORY_BYTES // bytes_per_row)):
            share = sum(one.n_bytes for one in ones)
            needed = sum(_n_named(one.file) for one in ones) * bytes_per_row
            if taken and (size + share > _CHUNK_BYTES or memory + needed > _MEMORY_BYTES):
                yield self._piece(taken, memory)
                taken = []
                size = memory = 0
            taken.append(ones)
            size += share
            memory += needed
        if taken:
            yield self._piece(taken, memory)

    def _piece(self, taken: "Sequence[list[_Dated]]", memory: int) -> "_Piece":
        """Return the piece of these files, given from new to old, that need so many bytes of memory."""
        files = [one.file for ones in reversed(taken) for one in ones]
        return _Piece(files, max(1, -(-memory // (_PART_PIECES * _MEMORY_BYTES))) if self.view.partitioned else 1)

    def _inseparable(self, upto: dt.date | None, most_rows: int) -> "Iterator[list[_Dated]]":
        """Yield files, or parts of them, that must be in one piece, the newest first.

        A file of more than ``most_rows`` is divided by its sequence, so that each entity's rows stay in order. Of a
        partitioned view, files whose days overlap stay together; if these are many rows, files of several days are
        divided where the days of the others begin and end.
        """
        dated = self._through(upto)
        if not self.view.partitioned:
            # By their last days, so that a label finds a row of its day before older rows of other shards are read.
            dated.sort(key=lambda one: (one.last_day, one.file.writer, one.file.first))
            yield from ([part] for one in reversed(dated) for part in reversed(one.divided(most_rows)))
            return
        for ones in reversed(_overlapping(dated)):
            is_large = sum(_n_named(one.file) for one in ones) > most_rows or (
                sum(one.n_bytes for one in ones) > _CHUNK_BYTES
            )
            if not is_large or all(one.first_day == one.last_day for one in ones):
                yield ones
                continue
            days = sorted({day for one in ones for day in (one.first_day, one.last_day + dt.timedelta(days=1))})
            parts = [part for one in ones for part in self._divided(one, days)]
            yield from reversed(_overlapping(sorted(parts, key=_order)))

    def _divided(self, one: "_Dated", days: Sequence[dt.date]) -> "list[_Dated]":
        """Return a file as several, each of which begins with one of ``days`` or with the file."""
        days = [day for day in days if one.first_day < day <= one.last_day]
        if not days:
            return [one]
        last_of = self._rows(
            [one.file],
            lambda rows: rows.group_by(pl.col("available_at").dt.date()).agg(pl.col("seq").max()).collect(),
        )
        ends = [last_of.filter(pl.col("available_at") < day)["seq"].max() for day in days]
        parts = []
        first, first_day = one.file.first, one.first_day
        for day, end in [*zip(days, ends, strict=True), (one.last_day + dt.timedelta(days=1), one.file.last)]:
            if isinstance(end, int) and end >= first:
                parts.append(one.part(first, end, first_day, day - dt.timedelta(days=1)))
                first = end + 1
            first_day = day
        return parts

    def _through(self, upto: dt.date | None) -> "list[_Dated]":
        return [one for one in self._dated if upto is None or one.first_day <= upto]

    def _first_day(self, file: TableFile) -> dt.date:
        """Return the first day of which a file may have rows: any, of the base that took the place of old days."""
        is_base = not file.first and self.coverage is not None and self.coverage.kept_from_us is not None
        return dt.date.min if is_base else file.first_day

    def head(self, n_rows: int) -> pl.DataFrame:
        """Return the first rows by ``available_at``; a frame without columns if nothing is published."""
        found = [*self._some(n_rows, _overlapping(self._dated), _first)]
        return pl.concat(found) if found else pl.DataFrame()

    def tail(self, n_rows: int) -> pl.DataFrame:
        """Return the last rows by ``available_at``; a frame without columns if nothing is published."""
        found = [*self._some(n_rows, _overlapping(self._dated)[::-1], _last)]
        return pl.concat(found[::-1]) if found else pl.DataFrame()

    def _some(
        self, n_rows: int, groups: Sequence[Sequence[_Dated]], take: Callable[..., tuple[pl.DataFrame, pl.DataFrame]]
    ) -> Iterator[pl.DataFrame]:
        """Yield rows of one group of files after the other, until there are so many."""
        for ones in groups:
            files = [one.file for one in ones]
            found, n_found = self._rows(files, partial(take, n_rows=n_rows))
            self._refuse_other_numbers(files, n_found.item())
            yield found
            n_rows -= len(found)
            if n_rows <= 0:
                return

    def stats(self) -> LogStats:
        """Return figures of the whole log; reads keys, instants and causes."""
        files = self.files
        first = last = None
        rows = entities = 0
        causes: dict[str, int] = {}
        if files:
            by_cause, n_entities = self._rows(files, self._counts)
            causes = dict(by_cause.select("cause", "n").iter_rows())
            first, last = by_cause.select(pl.col("first").min(), pl.col("last").max()).row(0)
            rows, entities = sum(causes.values()), n_entities.item()
            self._refuse_other_numbers(files, rows)
        return LogStats(
            rows=rows,
            entities=entities,
            files=len(files),
            bytes=sum(one.n_bytes for one in self._dated),
            shards=0 if self.coverage is None else len(self.coverage.shards),
            first=first,
            last=last,
            since=_instant(self.since_us),
            kept_from=_instant(None if self.coverage is None else self.coverage.kept_from_us),
            complete_to=_instant(self.complete_to_us),
            causes=causes,
            ledger=NOTHING_LATE if self.coverage is None else self.coverage.ledger,
        )

    def _counts(self, rows: pl.LazyFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Return rows and first and last instant by cause, and the number of entities."""
        counts = rows.group_by("cause").agg(
            n=pl.len(), first=pl.col("available_at").min(), last=pl.col("available_at").max()
        )
        unique = rows.select(self.view.entity.keys).unique().select(pl.len())
        by_cause, n_entities = pl.collect_all([counts.sort("cause"), unique])
        return by_cause, n_entities

    def _refuse_other_definitions(self) -> None:
        for file in [*self.files[:1], *self.files[1:][-1:]]:
            metadata = self._found([file], lambda parts: metadata_of(parts[0].path))
            written = metadata.get("unskew.state_fingerprint")
            if written != self.view.state_fingerprint:
                raise LayoutError(
                    f"{file.path} was written with another definition of {self.view.name}@{self.view.version} "
                    f"(state fingerprint {written}, now {self.view.state_fingerprint}); "
                    "read it with the definition it was written with (without definitions the log says which), or give the "
                    "changed view a new version"
                )

    def _rows(self, files: Sequence[TableFile], query: Callable[[pl.LazyFrame], _Answer]) -> _Answer:
        """Return the answer of ``query`` to the rows of ``files``, in their order."""
        fingerprint = self.view.state_fingerprint.encode()
        return self._found(
            files,
            lambda parts: answer(
                parts, lambda part: part.path, lambda ones: query(_scanned(ones)), footer_has=fingerprint
            ),
        )

    def _refuse_other_numbers(self, files: Sequence[TableFile], n_rows: int) -> None:
        """Refuse files whose names promise another number of rows than they have."""
        if n_rows == sum(map(_n_named, files)):
            return
        # Only a log from which somebody was erased, or old days were removed, comes here undamaged.
        if self.coverage is not None and read_kept_from(self.root) != self.coverage.kept_from_us:
            raise LayoutError(f"{self.root}: old days were removed while the log was read; read it again")
        if self._found(files, lambda parts: sum(map(_n_left_out, parts))) == sum(map(_n_named, files)) - n_rows:
            return
        for file in files:
            held = self._rows([file], lambda rows: int(rows.select(pl.len()).collect().item()))
            lacks = _n_named(file) - held
            if not 0 <= lacks <= self._found([file], lambda parts: _n_left_out(parts[0])):
                raise LayoutError(f"{file.path} has {held} rows, and its name says {_n_named(file)}; {RESTORE}")

    def _found(self, files: Sequence[TableFile], use: Callable[[Sequence[_Part]], _Answer]) -> _Answer:
        """Return the result of ``use`` for the locations of the rows of ``files``.

        Compaction deletes merged files after a grace period, which a slow reader may exceed. The rows are then read
        from the file that covers them.
        """
        parts = [_part(file, file.path) for file in files]
        while True:
            try:
                return use(parts)
            except FileNotFoundError as error:
                places = self._places(files)
                if places == parts:
                    raise gone(self.root, error) from error
                parts = places

    def _places(self, files: Sequence[TableFile]) -> list[_Part]:
        published = published_files(self.root)
        starts = [(file.writer, file.first) for file in published]
        parts = []
        for file in files:
            place = bisect.bisect_right(starts, (file.writer, file.first)) - 1
            holder = published[place] if place >= 0 else None
            if holder is None or holder.writer != file.writer or holder.last < file.last:
                raise LayoutError(f"{file.path} is gone, and no other file holds its rows; restore it")
            parts.append(_part(file, holder.path))
        return parts


def _one_ahead(pieces: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Yield the same pieces; while one is used, another thread reads the next.

    What is done with a piece mostly takes one core, and reading takes all.
    """
    with ThreadPoolExecutor(1, "unskew-log") as reading:
        ahead = reading.submit(next, pieces, None)
        while (piece := ahead.result()) is not None:
            ahead = reading.submit(next, pieces, None)
            yield piece


def _part(file: TableFile, path: Path) -> _Part:
    """Return the rows of ``file`` as a part of the file at ``path``, which may hold others too."""
    held = parse(path)
    is_whole = held is not None and (held.first, held.last) == (file.first, file.last)
    return _Part(path, None if is_whole else (file.first, file.last))


def _scanned(parts: Sequence[_Part]) -> pl.LazyFrame:
    """Return the rows of the parts, one after the other."""
    scans = []
    for holder, grouped in itertools.groupby(parts, lambda part: None if part.within is None else part.path):
        ones = list(grouped)
        if holder is None:
            scans.append(pl.scan_parquet([one.path for one in ones], hive_partitioning=False, glob=False))
        else:
            # A shard's files are in order of sequence, so there are no other rows between the first and the last.
            ranges = [one.within for one in ones if one.within is not None]
            within = pl.col("seq").is_between(ranges[0][0], ranges[-1][1])
            scans.append(pl.scan_parquet(holder, hive_partitioning=False, glob=False).filter(within))
    return scans[0] if len(scans) == 1 else pl.concat(scans)


def _order(one: _Dated) -> tuple[dt.date, str, int]:
    return one.first_day, one.file.writer, one.file.first


def _overlapping(dated: Sequence[_Dated]) -> list[list[_Dated]]:
    """Put those together whose days overlap; ``dated``: in the order of their first days."""
    found: list[list[_Dated]] = []
    reached = dt.date.min
    for one in dated:
        if not found or one.first_day > reached:
            found.append([])
        found[-1].append(one)
        reached = max(reached, one.last_day)
    return found


def _width(dtype: Type | None) -> int:
    """Return about how many bytes of memory a value takes; ``dtype`` is None for one that is not of a feature."""
    if dtype is not None and dtype.nesting:
        return 64
    return 16 if dtype is not None and dtype.scalar in {"string", "decimal"} else 8


def _none(view: View, columns: Sequence[str]) -> pl.DataFrame:
    """Return no rows, with the types of a log's columns."""
    types = {
        **view.entity.columns,
        **{feature.name: feature.dtype.polars for feature in view.features},
        "available_at": INSTANT,
        "event_time": INSTANT,
        "cause": pl.String(),
        "partition": pl.Int32(),
        "offset": pl.Int64(),
    }
    return pl.DataFrame(schema={name: types[name] for name in columns})


def _n_left_out(part: _Part) -> int:
    """Return how many rows were erased from a file; of a part of a larger file, the most that may be."""
    return n_left_out(part.path)


def _first(rows: pl.LazyFrame, *, n_rows: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the first rows, and how many there are in all."""
    first, n_all = pl.collect_all([rows.sort("available_at", "shard", "seq").head(n_rows), rows.select(pl.len())])
    return first, n_all


def _last(rows: pl.LazyFrame, *, n_rows: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the last rows, and how many there are in all."""
    last, n_all = pl.collect_all([rows.sort("available_at", "shard", "seq").tail(n_rows), rows.select(pl.len())])
    return last, n_all


def _n_named(file: TableFile) -> int:
    """Return the number of rows that a file's name promises: a log has a row for each number."""
    return file.last - file.first + 1


def _instant(t_us: int | None) -> dt.datetime | None:
    return None if t_us is None else moment_of(t_us)


def _upto(files: Sequence[TableFile], at: Coverage, present: Coverage | None, root: Path) -> list[TableFile]:
    """Return the files up to an earlier coverage; one that goes on past it ends there.

    Raises ``LayoutError`` if the log does not reach that coverage, or began at another instant: it is another log.
    """
    reached = {file.writer: file.last + 1 for file in files}
    for writer, shard in at.shards.items():
        now = None if present is None else present.shards.get(writer)
        has = max(reached.get(writer, 0), 0 if now is None else now.next_sequence)
        if has < shard.next_sequence:
            raise LayoutError(
                f"{root}: shard {writer} has rows up to {has - 1}, and the training set was made with rows up to "
                f"{shard.next_sequence - 1}; give the log that it was made with, or restore it"
            )
        if shard.since_us is not None and now is not None and now.since_us not in {None, shard.since_us}:
            raise LayoutError(
                f"{root}: shard {writer} has seen its first event at {format_instant(now.since_us or 0)}, and at "
                f"{format_instant(shard.since_us)} when the training set was made: the log was begun anew; give the log that "
                "it was made with"
            )
    ends = {writer: shard.next_sequence for writer, shard in at.shards.items()}
    return [
        replace(file, last=min(file.last, ends[file.writer] - 1))
        for file in files
        if file.first < ends.get(file.writer, 0)
    ]


def _from(files: Sequence[TableFile], after: Mapping[str, int]) -> list[TableFile]:
    """Return the files from sequence numbers on; one that begins before begins there."""
    return [
        replace(file, first=max(file.first, after.get(file.writer, 0)))
        for file in files
        if file.last >= after.get(file.writer, 0)
    ]


def _refuse_gaps(files: Sequence[TableFile], coverage: Coverage | None, root: Path) -> None:
    """Refuse a log that lacks rows that coverage includes; later rows may still be on their way."""
    if coverage is None:
        return
    next_sequence: dict[str, int] = {}
    for file in files:
        expected = next_sequence.get(file.writer, 0)
        shard = coverage.shards.get(file.writer)
        if file.first > expected and shard is not None and expected < shard.next_sequence:
            raise LayoutError(
                f"{root}: rows {expected} to {file.first - 1} of shard {file.writer} are missing; restore their file"
            )
        next_sequence[file.writer] = file.last + 1
    for writer, shard in coverage.shards.items():
        if next_sequence.get(writer, 0) < shard.next_sequence:
            raise LayoutError(
                f"{root}: rows {next_sequence.get(writer, 0)} to {shard.next_sequence - 1} of shard {writer} are "
                "missing; restore their files"
            )
