"""The layout of a Parquet table: names of directories and files, and the files that are readable.

    {root}/day=2017-03-01/{writer}-{first}-{last}.parquet        published: immutable, never withdrawn
    {root}/day=2017-03-01/{writer}-{first}-{last}.{run}.parquet  published once its writer's coverage includes it
    {root}/day=2017-03-01--2017-03-30/...                    files with rows of several days, merged by compaction
    {root}/_staged/day=2017-03-01/...                        durable, but of an epoch that may still be undone
    {root}/_compacting/...                                   of a compaction that is running or was interrupted
    {root}/_superseded/day=2017-03-01/...                    set aside by a compaction that was asked to
    {root}/_coverage/{writer}.json                           the instant up to which a writer's rows are complete
    {root}/_coverage/_shards.json                            the list of writers, also those without a file yet, and,
                                                             of a log, the definition of its view
    {root}/_coverage/_imported.json                          what was imported into an archive (``imported.py``)
    {root}/_coverage/_retained.json                          the instant before which old days were removed, and, of an
                                                             archive, the rows that were removed of each writer

``first`` and ``last`` are the sequence numbers of a file's first and last row among all rows of its writer, whose files
are published in that order. A merged file covers the range of the files that it was made from, and replaces them; they
stay for a while, for readers that have listed them. Readers skip every name that begins with ``_``.

A folder's name says from which to which day its files may have rows, both inclusive; it is never wider than what
compaction was allowed. An interval has a name that is no date, so whoever reads only the folders of some days by their
names does not take it for one of them.

Where nothing can be renamed (an object store), files get their final names before their epoch is durable. Their names
then have the ``run`` of the process that wrote them, and they are published by the writer's coverage, which is replaced
in one step: its ``seq`` is the sequence number from which nothing is published yet, and its ``runs`` are triples of a
run, the sequence number with which it began, and the one with which the next run began, null for the last. A file
counts if it ends before ``seq`` and lies within its run. So what a process still writes that was taken over from, at
whatever time, is never read.
"""

import datetime as dt
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import polars as pl

from unskew.features.errors import LayoutError
from unskew.features.ledger import NOTHING_LATE, Ledger, read_ledger, together
from unskew.features.plan import ViewPlan
from unskew.features.registry import parse_one
from unskew.features.view import View
from unskew.sinks.objects import ObjectPath, reading
from unskew.sinks.tables.checksum import RESTORE, read_json

LAYOUT = "1"
STAGED = "_staged"
COMPACTING = "_compacting"
SUPERSEDED = "_superseded"
COVERAGE = "_coverage"
LEFT_OUT = "unskew.left_out"
"""The entry of a file's metadata that says how many rows its name covers and it does not hold: they were erased."""
LEDGER = "ledger"
"""The entry of a shard's coverage that holds its late events and repeats."""
DEFINITION = "view"
"""The entry, beside the list of shards, that holds the definition of a log's view."""
STREAM = "stream"
"""The entry, beside it, that holds the definition of the view's stream, as ``definitions.recorded`` gives it."""
FIRST, EVENTS = "first", "events"
"""The entries of a partition's coverage in an archive: the offset of its first event, and how many there have been."""
SEQUENCE, RUNS = "seq", "runs"
"""The entries of a writer's coverage that publish its files, see the module; ``runs`` only where files have them."""
INSTANT = pl.Datetime("us", "UTC")
FROM, REMOVED = "from", "removed"
"""The entries of what says which days were removed: the instant, and by writer the place and the number of rows."""
IMPORTED = -(10**12)
"""The offset of a partition's first imported event. Imported events lie before every offset of a topic."""

_SUFFIX = ".parquet"
_DAY = "day="
_TO = "--"


@dataclass(frozen=True, kw_only=True)
class TableFile:
    """One Parquet file, and the sequence numbers of its writer's rows that it covers, both inclusive.

    ``run``: the run of its writer, if coverage publishes it; None if its name does.
    """

    path: Path
    writer: str
    first: int
    last: int
    run: str | None = None

    @property
    def first_day(self) -> dt.date:
        """The first day of which the file may have rows, by the folder that holds it.

        The base that retention leaves of a log is in the folder of the last days that it replaced; its rows may be
        older.
        """
        return days_of(self.path.parent.name)[0]

    @property
    def last_day(self) -> dt.date:
        """The last day of which the file may have rows, by the folder that holds it."""
        return days_of(self.path.parent.name)[1]


@dataclass(frozen=True, kw_only=True)
class Removed:
    """The first rows of a writer, which were removed: ``n_rows``, before sequence number ``next_sequence``.

    ``n_rows``: None if a removed file could not be read.
    """

    next_sequence: int
    n_rows: int | None


@dataclass(frozen=True, kw_only=True)
class ShardCoverage:
    """The coverage of one shard's log.

    ``since_us``: every event from this instant on was seen, None before the first. ``begins_us``: nothing before this
    instant was seen, None if not known. ``complete_to_us``: the last closed instant, None before one. ``ended``: the
    shard ended without any event or clock, and holds nothing back. ``ledger``: the late events and the repeats up to
    ``complete_to_us``, and a few after it. ``first``, ``n_events``: of a partition of an archive, the offset of the
    first event that was ever written, and how many were; None if not known.
    """

    since_us: int | None
    complete_to_us: int | None
    next_sequence: int
    ended: bool = False
    ledger: Ledger = NOTHING_LATE
    begins_us: int | None = None
    first: int | None = None
    n_events: int | None = None


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """The instants that a view's log can answer: up to ``complete_to_us``, exact for windows from ``since_us`` on.

    ``since_us``: the latest over the shards, None if no shard has seen an event. ``complete_to_us``: the earliest over
    the shards, None if one has not closed any instant yet. ``waiting``: the shards that have no clock yet, in order;
    while there are any, both instants are None. ``kept_from_us``: old days were removed up to this instant; None if
    none were.
    """

    shards: Mapping[str, ShardCoverage]
    waiting: tuple[str, ...] = ()
    kept_from_us: int | None = None

    @property
    def since_us(self) -> int | None:
        if self.waiting:
            return None
        return max(self._sinces, default=None)

    @property
    def first_since_us(self) -> int | None:
        """The earliest over the shards, or where old days were removed: before it nothing is known.

        None if no shard has seen an event.
        """
        first_us = min(self._sinces, default=None)
        return first_us if first_us is None or self.kept_from_us is None else max(first_us, self.kept_from_us)

    @property
    def _sinces(self) -> list[int]:
        return [shard.since_us for shard in self.shards.values() if shard.since_us is not None]

    @property
    def ledger(self) -> Ledger:
        """The late events and repeats of all shards together."""
        return together(shard.ledger for shard in self.shards.values())

    @property
    def complete_to_us(self) -> int | None:
        open_ended = [shard for shard in self.shards.values() if not shard.ended]
        closed = [shard.complete_to_us for shard in open_ended if shard.complete_to_us is not None]
        return min(closed) if closed and len(closed) == len(open_ended) and not self.waiting else None


def archive_writer(partition: int, *, imported: bool = False) -> str:
    """Return the writer of a partition's events in an archive; ``imported``: of those that were imported."""
    return f"{'i' if imported else 'p'}{partition}"


def origin_of(writer: str) -> int:
    """Return what a writer's rows have in their sequence column where their sequence number is 0."""
    return IMPORTED if writer[:1] == "i" and writer[1:].isdecimal() else 0


def view_root(log_root: Path, name: str, version: int) -> Path:
    """Return the folder of one view version's table."""
    return log_root / name / f"v{version}"


def view_roots(log_root: Path) -> list[tuple[str, int, Path]]:
    """Return name, version and folder of every view version that has a folder in a log, by name and version."""
    return sorted(
        (path.parent.name, int(path.name[1:]), path)
        for path in log_root.glob("*/v*")
        if path.name[1:].isdecimal() and not path.parent.name.startswith(("_", "."))
    )


def log_schema(view: ViewPlan) -> dict[str, pl.DataType]:
    """Return the columns of a view's log, in order."""
    return {
        **view.entity.columns,
        **{output.name: output.dtype.polars for output in view.outputs},
        "available_at": INSTANT,
        "event_time": INSTANT,
        "partition": pl.Int32(),
        "offset": pl.Int64(),
        "cause": pl.String(),
        "written_at": INSTANT,
        "shard": pl.String(),
        "seq": pl.Int64(),
    }


Days = tuple[dt.date, dt.date]
"""The first and the last of some days."""


def day_directory(day: dt.date, last: dt.date | None = None) -> str:
    """Return the name of the folder of a day, or of the days from it through ``last``, an interval of ISO 8601."""
    return f"{_DAY}{day.isoformat()}{'' if last in {None, day} else f'{_TO}{last}'}"


def days_of(name: str) -> Days:
    """Return the first and the last day of a folder's name. Raises ``LayoutError`` for another name."""
    first, to, last = name.removeprefix(_DAY).partition(_TO)
    try:
        return dt.date.fromisoformat(first), dt.date.fromisoformat(last if to else first)
    except ValueError as error:
        raise LayoutError(
            f"{name} is not the folder of a day, as in {_DAY}2026-03-01, or of several, as in {_DAY}2026-03-01{_TO}2026-03-30; move "
            "what is not of this table away, or read it with the version of unskew that wrote it"
        ) from error


def file_name(writer: str, first: int, last: int, run: str | None = None) -> str:
    return f"{writer}-{first:020d}-{last:020d}{'' if run is None else f'.{run}'}{_SUFFIX}"


def parse(path: Path) -> TableFile | None:
    """Parse a file's name; return None for a name that is not of this layout."""
    if path.name.startswith(("_", ".")) or not path.name.endswith(_SUFFIX):
        return None
    parts = path.name.removesuffix(_SUFFIX).rsplit("-", 2)
    if len(parts) != 3:
        return None
    writer, first, rest = parts
    last, dot, run = rest.partition(".")
    if not writer or not (first.isdecimal() and last.isdecimal()) or bool(dot) != run.isalnum():
        return None
    return TableFile(path=path, writer=writer, first=int(first), last=int(last), run=run or None)


def published_files(root: Path, writer: str | None = None, *, days: Days | None = None) -> list[TableFile]:
    """Return every published file, of one writer or of all, ordered by writer and sequence; none if there is no table.

    Files that are published meanwhile may be among them, but before a returned file no file of its writer is left out.
    ``days``: only the folders that begin with one of these days, the first and the last of them; a file that one in
    another folder covers is then among them.
    A file whose sequence range another file of its writer covers is superseded and left out, so that every listing
    contains each row once.
    """
    return without_superseded(_all_published(root, writer, days))


def every_file(root: Path) -> list[Path]:
    """Return every Parquet file of a table: published, superseded, staged, and what an interrupted writer left."""
    return sorted(path for path in root.rglob(f"*{_SUFFIX}*") if path.is_file())


def superseded_files(root: Path) -> list[tuple[TableFile, list[TableFile]]]:
    """Return every published file that others of its writer cover, each with the files that cover it, widest first."""
    found: list[tuple[TableFile, list[TableFile]]] = []
    covers: list[TableFile] = []
    for file in _ordered(_all_published(root, None)):
        # Ranges are disjoint or nested, and the wider ones come first.
        covers = [cover for cover in covers if cover.writer == file.writer and file.last <= cover.last]
        if covers:
            found.append((file, list(covers)))
        covers.append(file)
    return found


def set_aside_files(root: Path) -> list[TableFile]:
    """Return the superseded files that were set aside, ordered by writer and sequence."""
    return all_files(root / SUPERSEDED)


def staged_files(root: Path, writer: str) -> list[TableFile]:
    """Return a writer's staged files, in sequence order."""
    return all_files(root / STAGED, writer)


def all_files(folder: Path, writer: str | None = None) -> list[TableFile]:
    """Return the files in the folders of days, of one writer or of all, whether published or not, in sequence order."""
    return _ordered(_parsed(folder, writer, _listed(folder, writer)))


def without_superseded(files: Iterable[TableFile]) -> list[TableFile]:
    """Return the files that no other file of the same writer covers, ordered by writer and sequence."""
    kept: list[TableFile] = []
    for file in _ordered(files):
        if kept and kept[-1].writer == file.writer and file.last <= kept[-1].last:
            continue
        kept.append(file)
    return kept


def coverage_file(root: Path, writer: str) -> Path:
    return root / COVERAGE / f"{writer}.json"


def shards_file(root: Path) -> Path:
    """Return the path of the list of all writers of a view's log."""
    return root / COVERAGE / "_shards.json"


def retained_file(root: Path) -> Path:
    """Return the path of what says up to which instant old days were removed."""
    return root / COVERAGE / "_retained.json"


def read_kept_from(root: Path) -> int | None:
    """Return the instant up to which old days were removed from a table; None if none were.

    It is written before anything is removed. So after a listing of files it says what they may lack.
    """
    found = _read_retained(root)
    return None if found is None else found[0]


def read_removed(root: Path) -> dict[str, Removed]:
    """Return, by writer, which rows were removed from an archive, as far as that is recorded."""
    found = _read_retained(root)
    return {} if found is None else found[1]


def _read_retained(root: Path) -> tuple[int, dict[str, Removed]] | None:
    path = retained_file(root)
    try:
        found = read_json(path.read_bytes())
        removed = {
            str(writer): Removed(next_sequence=int(after), n_rows=None if n_rows is None else int(n_rows))
            for writer, (after, n_rows) in found.get(REMOVED, {}).items()
        }
        return int(found[FROM]), removed
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise LayoutError(
            f"{path} does not say which days were removed ({error}); restore it from a backup, or run unskew retain again"
        ) from error


def read_coverage(root: Path) -> Coverage | None:
    """Read the coverage of the table at ``root``; None if no run has begun yet.

    Read it before listing files: rows up to ``complete_to_us`` were published before it was written. Raises
    ``LayoutError`` for an incomplete file (power was lost while it was being replaced).
    """
    shards = {}
    listed = read_shards(root)
    paths = [path for path in sorted((root / COVERAGE).glob("*.json")) if not path.name.startswith(("_", "."))]
    for path, data in zip(paths, _contents(paths), strict=True):
        # A run that begins removes the entry of a shard that had ended.
        if data is None:
            continue
        try:
            found = read_json(data)
            if RUNS in found and "since" not in found:
                # It only publishes files, or a run has only just begun.
                continue
            shards[path.stem] = ShardCoverage(
                since_us=None if found["since"] is None else int(found["since"]),
                complete_to_us=None if found["complete_to"] is None else int(found["complete_to"]),
                next_sequence=int(found["seq"]),
                ended=found["complete_to"] is None and bool(found.get("ended")),
                ledger=read_ledger(found.get(LEDGER, {})),
                begins_us=None if found.get("begins") is None else int(found["begins"]),
                first=None if found.get(FIRST) is None else int(found[FIRST]),
                n_events=None if found.get(EVENTS) is None else int(found[EVENTS]),
            )
        except (ValueError, KeyError, TypeError, LayoutError) as error:
            raise _unreadable_coverage(path, error) from error
    if not shards and not listed:
        return None
    waiting = tuple(shard for shard in listed if shard not in shards)
    return Coverage(shards=shards, waiting=waiting, kept_from_us=read_kept_from(root))


def read_definition(root: Path) -> View | None:
    """Read the definition with which the log at ``root`` was last written; None if an earlier version wrote it.

    Raises ``LayoutError`` if it cannot be read.
    """
    described = _read_list(shards_file(root)).get(DEFINITION)
    return None if described is None else parse_one(described, str(shards_file(root)))


def read_stream(root: Path) -> Mapping[str, Any] | None:
    """Read how the stream of the log at ``root`` was read when it was last written; None if it does not say.

    Raises ``LayoutError`` if the file cannot be read.
    """
    found = _read_list(shards_file(root)).get(STREAM)
    return found if isinstance(found, Mapping) else None


def read_shards(root: Path) -> list[str]:
    """Read the list of shards of the log at ``root``; empty if no list was ever written."""
    return [str(shard) for shard in _read_list(shards_file(root))["shards"]]


def _read_list(path: Path) -> dict[str, Any]:
    """Read the file of the list of shards; an empty list if none was ever written."""
    try:
        found = read_json(path.read_bytes())
        return {**found, "shards": list(found["shards"])}
    except FileNotFoundError:
        return {"shards": []}
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise LayoutError(
            f"{path} does not say which shards there are ({error}); restart the pipeline, which writes it again"
        ) from error


def _all_published(root: Path, writer: str | None, days: Days | None = None) -> list[TableFile]:
    """Return the published files, including superseded ones; every row published before the call is among them.

    A listing is not a snapshot. A listing that began before a merged file was there may miss that file, and also the
    files that it was made from, if they are deleted before the listing reaches them. They were in the previous listing,
    so their absence is noticed, and the table is listed again.

    Files that are published meanwhile come in the order of sequence, but a listing may contain one and miss the one
    before it. Files before one of the previous listing were there when this one began. So those past it are left out.
    """
    before = _listed(root, writer, days)
    # In this order, because the files that a coverage publishes were there before it.
    covered = _covered(root, _parsed(root, writer, _of_runs(before)))
    while True:
        now = _listed(root, writer, days)
        come = now.keys() - before.keys()
        files = published(_parsed(root, writer, {one: now[one] for one in now if one not in come}), covered)
        gone = published(_parsed(root, writer, {one: before[one] for one in before.keys() - now.keys()}), covered)
        if come:
            reached = _reached([*files, *gone])
            new = published(_parsed(root, writer, {one: now[one] for one in come}), covered)
            files += [file for file in new if file.last <= reached.get(file.writer, -1)]
        if set(gone).isdisjoint(without_superseded([*files, *gone]) if gone else ()):
            return files
        before = now


def _reached(files: Iterable[TableFile]) -> dict[str, int]:
    """Return the last sequence number of each writer."""
    reached: dict[str, int] = {}
    for file in files:
        reached[file.writer] = max(file.last, reached.get(file.writer, -1))
    return reached


Listed = Mapping[tuple[str, str], ObjectPath | None]
"""Directory and name of everything that may be a file of a table; of an object also its path, with size and time."""


def _listed(root: Path, writer: str | None, days: Days | None = None) -> Listed:
    prefix = "" if writer is None else f"{writer}-"
    if isinstance(root, ObjectPath):
        found = root.objects() if days is None else _objects_of(root, days)
        objects = ((one.parts[len(root.parts) :], one) for one in found)
        return {
            (parts[0], parts[1]): one
            for parts, one in objects
            if len(parts) == 2 and parts[0].startswith(_DAY) and parts[1].startswith(prefix)
        }
    folders = [name for name in _names(root) if name.startswith(_DAY) and (days is None or _begins_in(name, days))]
    return {(folder, name): None for folder in folders for name in _names(root / folder) if name.startswith(prefix)}


def _objects_of(root: ObjectPath, days: Days) -> Iterator[ObjectPath]:
    """Yield the objects in the folders that begin with one of these days: a page or two of a table of a million."""
    # After the day before, because some stores leave out the folder of that name.
    there = root.objects(after=f"{day_directory(days[0] - dt.timedelta(days=1))}~")
    return takewhile(lambda one: _begins_in(one.parts[len(root.parts)], days), there)


def _begins_in(folder: str, days: Days) -> bool:
    return day_directory(days[0]) <= folder[: len(day_directory(days[0]))] <= day_directory(days[1])


def _parsed(root: Path, writer: str | None, listed: Listed) -> list[TableFile]:
    files = (parse(root / day / name if known is None else known) for (day, name), known in listed.items())
    return [file for file in files if file is not None and writer in {None, file.writer}]


def _of_runs(listed: Listed) -> Listed:
    """Return those names that may have a run; parsing each would take longer than listing."""
    return {one: known for one, known in listed.items() if one[1].rpartition("-")[2].count(".") > 1}


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a writer's coverage publishes; ``runs``: name, first sequence number, and that of the next run or None."""

    next_sequence: int = 0
    runs: Sequence[tuple[str, int, int | None]] = ()

    def is_of_run(self, file: TableFile) -> bool:
        """Return whether a file of a run is one that the run wrote before the next run began."""
        return any(
            run == file.run and begin <= file.first and (end is None or file.last < end)
            for run, begin, end in self.runs
        )

    def includes(self, file: TableFile) -> bool:
        """Return whether readers may see a file."""
        return file.run is None or (file.last < self.next_sequence and self.is_of_run(file))


def published(files: Iterable[TableFile], covered: Mapping[str, Published]) -> list[TableFile]:
    """Return the files that readers may see; ``covered``: what coverage publishes, by writer."""
    return [file for file in files if file.run is None or covered.get(file.writer, Published()).includes(file)]


def read_published(path: Path, data: bytes) -> tuple[dict[str, object], Published]:
    """Return a coverage file's content, and what it publishes. Raises ``LayoutError`` if it is damaged."""
    try:
        found = read_json(data)
        runs = [(str(run), int(begin), None if end is None else int(end)) for run, begin, end in found.get(RUNS, ())]
        return found, Published(next_sequence=int(found[SEQUENCE]), runs=runs)
    except (ValueError, KeyError, TypeError) as error:
        raise LayoutError(f"{path} does not say which files are published ({error}); {RESTORE}") from error


def _covered(root: Path, files: Collection[TableFile]) -> dict[str, Published]:
    writers = sorted({file.writer for file in files if file.run is not None})
    paths = [coverage_file(root, writer) for writer in writers]
    contents = zip(writers, paths, _contents(paths), strict=True)
    return {writer: read_published(path, data)[1] for writer, path, data in contents if data is not None}


def _contents(paths: Sequence[Path]) -> Iterator[bytes | None]:
    try:
        yield from reading(paths)
    except OSError as error:
        raise _unreadable_coverage(error.filename, error) from error


def _unreadable_coverage(path: object, error: Exception) -> LayoutError:
    return LayoutError(
        f"{path} does not say what the log covers ({error}); restart the pipeline, which writes it again"
    )


def _names(folder: Path) -> Iterator[str]:
    if isinstance(folder, ObjectPath):
        yield from (one.name for one in folder.iterdir())
        return
    # Not found: another writer's ``settle`` removed an empty directory. Not a directory: it cannot hold files.
    with suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        for entry in entries:
            yield entry.name


def _ordered(files: Iterable[TableFile]) -> list[TableFile]:
    # Among files with the same first number, the longest comes first, so that it is the one kept; and before a file of
    # a run the one that took its place, which has none.
    return sorted(files, key=lambda file: (file.writer, file.first, -file.last, file.run is not None))
