"""Compaction: merges the many small files of a table into few, while writers and readers continue.

The order of steps is the contract:

1. Take the table's lock, so that only one compaction works on it, and remove what an interrupted one left in
   ``_compacting``. In an object store, what is being merged is on this machine's disk.
2. Merge a run of files (of one writer, consecutive in sequence, of one day or, if asked to, of days that are over and
   lie in one span) into a file in ``_compacting``, fsync it, and compare it with them, row by row.
3. Rename it to where readers look, and fsync the directory. From now on it supersedes those files: its name covers
   theirs. Its folder is that of the day, or of the days from the first to the last.
4. If asked to, move those files into ``_superseded``, where nobody who lists the folders of days meets them.
5. Delete them once the merged file has been there for the grace period, in this compaction or a later one, and the
   folders that are empty then.

Spans are intervals of so many days, counted from 1970, so that later compactions find the same ones, and no file grows
beyond its span.

After a stop between any two steps readers still find every row once. Writers look at published files only at their
start, when a merged file replaces the files that it covers.
"""

import contextlib
import datetime as dt
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from pathlib import Path

from unskew.features.errors import LayoutError, RequestError, StoreUnavailable
from unskew.offline.merging import Source, Unmergeable, merge, n_rows, source, verify, whole
from unskew.sinks import durable
from unskew.sinks.lease import locked
from unskew.sinks.objects import ObjectPath, probe, together
from unskew.sinks.tables import layout
from unskew.sinks.tables.checksum import RESTORE
from unskew.sinks.tables.layout import TableFile, view_roots

Progress = Callable[[int, int], None]
_LOCK = f"{layout.COMPACTING}/lock"
_EPOCH = dt.date(1970, 1, 1).toordinal()
BUSY = "another command is at work on it (compact, retain, erase or publish)"
"""What is said of a table whose lock another process has."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A folder of ``day=`` folders.

    ``sequence``: the column of the sequence numbers, None if no column holds them. ``gapless``: whether a writer has a
    row for each number.
    """

    name: str
    root: Path
    sequence: str | None
    gapless: bool

    @property
    def is_log(self) -> bool:
        """True for the log of a view."""
        return self.sequence == "seq"

    @property
    def is_archive(self) -> bool:
        """True for the archive of a topic."""
        return self.sequence == "_offset"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of merging.

    ``target_bytes``: the maximum size of a merged file, compressed; a file of at least half of that is left alone.
    ``min_files``: the number of small files that are needed for a merge in the current day; in a past day two are
    enough. ``span_days``: the number of days of which one file may hold rows. ``grace_s``: how long merged files stay,
    for readers that have listed them. ``set_aside``: whether they are moved at once, for those who read whatever lies
    in the folders of days.
    """

    target_bytes: int = 128 << 20
    min_files: int = 8
    span_days: int = 1
    grace_s: float = 3600.0
    set_aside: bool = False


@dataclass(frozen=True, kw_only=True)
class Compacted:
    """The result of a compaction, or of a dry run: published files and their bytes before and after.

    ``n_deleted``: merged files that were deleted. ``n_waiting``: merged files that wait for the end of their grace
    period. ``notes``: what was left alone, and why. ``faults``: what was left alone because it is damaged or does not
    match its name.
    """

    table: Table
    files_before: int
    files_after: int
    bytes_before: int
    bytes_after: int
    n_deleted: int = 0
    n_waiting: int = 0
    notes: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sized:
    file: TableFile
    n_bytes: int


def log_tables(log_root: Path) -> list[Table]:
    """Return the log tables of every version of every view, by name and version."""
    return [
        Table(name=f"log {name}@{version}", root=path, sequence="seq", gapless=True)
        for name, version, path in view_roots(log_root)
        if _is_table(path)
    ]


def archive_tables(archive_root: Path) -> list[Table]:
    """Return the archive tables of every topic."""
    return [
        Table(name=f"archive {path.name}", root=path, sequence="_offset", gapless=False)
        for path in sorted(archive_root.iterdir())
        if _is_table(path)
    ]


def refuse_swapped(log_root: Path | None, archive_root: Path | None) -> None:
    """Raise ``RequestError`` if a folder given for the log holds an archive, or the other way round."""
    if log_root is not None and log_root.is_dir() and (found := archive_tables(log_root)):
        raise RequestError(f"{log_root}: {found[0].root.name} there is a topic's archive, not a log; correct --log")
    if archive_root is not None and archive_root.is_dir() and (found := log_tables(archive_root)):
        raise RequestError(f"{archive_root}: {found[0].root} is the log of a view, not an archive; correct --archive")


def dead_letter_tables(dead_letters_root: Path) -> list[Table]:
    """Return the dead letter tables of every topic."""
    return [
        Table(name=f"dead letters {path.name}", root=path, sequence=None, gapless=True)
        for path in sorted(dead_letters_root.iterdir())
        if _is_table(path)
    ]


def compact(
    table: Table,
    limits: Limits,
    *,
    now_s: float,
    dry_run: bool = False,
    progress: Progress = lambda _done, _total: None,
    publish: Callable[[], object] = lambda: None,
) -> Compacted:
    """Merge a table's small files, and delete those whose rows have been in a merged file for the grace period.

    ``now_s``: the present on the clock of the disk's file times. ``dry_run``: writes nothing; ``bytes_after`` then
    equals ``bytes_before``, although merging makes it smaller. ``progress``: called with the number of merged files and
    of all files to merge. ``publish``: called before files are merged and again before any is deleted, so that metadata
    for other engines follow. Safe beside running writers and readers.

    Files that cannot be merged (with different columns or metadata, damaged, or not matching their names) are left
    alone and reported; so is the whole table if another command works on it. Raises ``StoreUnavailable`` if the disk
    fails, and ``LayoutError`` for a link to nowhere; nothing is lost, and the call can be repeated.
    """
    work = _Work(table, limits, now_s, progress, publish)
    try:
        if dry_run:
            return work.foreseen()
        with lock(table.root) as held:
            if held is None:
                return replace(work.state(), notes=(f"{table.root}: {BUSY}; left alone",))
            return work.done(held)
    except FileNotFoundError as error:
        if error.filename is not None and os.path.lexists(error.filename):
            raise LayoutError(f"{error.filename} is a link to a file that is not there; {RESTORE}") from error
        raise StoreUnavailable(
            f"{table.root}: files disappeared while they were merged ({error}); try again"
        ) from error
    except OSError as error:
        raise StoreUnavailable(f"cannot compact {table.root}: {error}") from error


def delete_superseded(table: Table, grace_s: float, now_s: float) -> tuple[int, int, tuple[str, ...]]:
    """Delete superseded files whose grace period is over; the caller holds the table's lock.

    Returns how many these are, how many wait, and what was left alone because it is damaged.
    """
    work = _Work(table, Limits(grace_s=grace_s), now_s, lambda _done, _total: None)
    work.look_at_clock()
    n_deleted, n_waiting = work.delete()
    return n_deleted, n_waiting, tuple(dict.fromkeys(work.faults))


class _Work:
    """One compaction of one table."""

    def __init__(
        self,
        table: Table,
        limits: Limits,
        now_s: float,
        progress: Progress,
        publish: Callable[[], object] = lambda: None,
    ) -> None:
        self._table = table
        self._root = table.root
        self._limits = limits
        self._now_s = now_s
        self._progress = progress
        self._publish_metadata = publish
        self._notes: list[str] = []
        self.faults: list[str] = []
        self._n_merged = 0
        self._n_to_merge = 0
        self._held: Held | None = None

    def look_at_clock(self) -> None:
        """Take the present of an object store from its own clock, of which the times of its objects are, too."""
        if isinstance(self._root, ObjectPath):
            self._now_s = (self._root / _LOCK).stat().st_mtime

    def state(self) -> Compacted:
        """Return the table as it is."""
        n_files, n_bytes = self._size()
        return Compacted(
            table=self._table, files_before=n_files, files_after=n_files, bytes_before=n_bytes, bytes_after=n_bytes
        )

    def foreseen(self) -> Compacted:
        """Return what ``done`` would do; ``files_after`` is an upper bound."""
        before = self.state()
        fewer = 0
        for run in self._runs():
            for group in self._alike(run):
                rest: Sequence[Source] = group
                while len(rest) >= 2:
                    taken = _fitting(rest, self._limits.target_bytes)
                    fewer += len(taken) - 1
                    rest = rest[len(taken) :]
        n_deleted, n_waiting = self.delete(dry_run=True)
        return replace(
            before,
            files_after=before.files_before - fewer,
            n_deleted=n_deleted,
            n_waiting=n_waiting,
            notes=tuple(self._notes),
            faults=tuple(dict.fromkeys(self.faults)),
        )

    def done(self, held: "Held") -> Compacted:
        """Delete what is due, merge, and delete again: without a grace period the files just merged are due too."""
        self._held = held
        self.look_at_clock()
        before = self.state()
        self._publish_metadata()
        n_earlier, _ = self.delete()
        planned = self._runs()
        self._n_to_merge = sum(map(len, planned))
        for run in planned:
            for group in self._alike(run):
                self._merge_all(group)
        self._publish_metadata()
        if self._limits.set_aside:
            self._set_aside()
        n_now, n_waiting = self.delete()
        n_files, n_bytes = self._size()
        return replace(
            before,
            files_after=n_files,
            bytes_after=n_bytes,
            n_deleted=n_earlier + n_now,
            n_waiting=n_waiting,
            notes=tuple(self._notes),
            faults=tuple(dict.fromkeys(self.faults)),
        )

    def _size(self) -> tuple[int, int]:
        files = layout.published_files(self._root)
        return len(files), sum(file.path.stat().st_size for file in files)

    def _runs(self) -> list[Sequence[Sized]]:
        sized = [Sized(file, file.path.stat().st_size) for file in layout.published_files(self._root)]
        return [
            run
            for _, ones in groupby(sized, lambda one: one.file.writer)
            for run in runs(list(ones), self._limits, gapless=self._table.gapless)
        ]

    def _alike(self, run: Sequence[Sized]) -> list[list[Source]]:
        """Split a run into groups, of at least two files each, that may be merged into one file."""
        found: list[list[Source]] = [[]]
        for one in run:
            try:
                read = source(one.file, one.n_bytes)
            except Unmergeable as error:
                self.faults.append(str(error))
                found.append([])
                continue
            before = found[-1][-1] if found[-1] else read
            if not read.like(before):
                self._notes.append(
                    f"{read.path} has other columns or metadata than {before.path.name}; they stay apart"
                )
                found.append([])
            else:
                # All share one schema object, because there may be many files.
                read = replace(read, schema=before.schema)
            found[-1].append(read)
        return [group for group in found if len(group) >= 2]

    def _merge_all(self, group: Sequence[Source]) -> None:
        rest = group
        while len(rest) >= 2:
            assert self._held is not None
            temporary = self._held.folder / f"{rest[0].path.name}.tmp"
            try:
                taken = merge(rest, temporary, target_bytes=self._limits.target_bytes, progress=self._one_more)
                verify(temporary, taken, sequence=self._table.sequence, gapless=self._table.gapless)
                self._publish(temporary, taken)
            except Unmergeable as error:
                self.faults.append(str(error))
                return
            finally:
                temporary.unlink(missing_ok=True)
            rest = rest[len(taken) :]

    def _one_more(self, _source: Source) -> None:
        self._n_merged += 1
        self._progress(self._n_merged, self._n_to_merge)

    def _publish(self, temporary: Path, taken: Sequence[Source]) -> None:
        first, last = taken[0].file, taken[-1].file
        every = [day for one in taken for day in (one.file.first_day, one.file.last_day)]
        days = min(every), max(every)
        # Where no number may lack, those taken have all of the range: listing a day of many writers for each would take
        # longer than merging. Elsewhere only whoever has the lock changes other days.
        if not self._table.gapless:
            there = layout.published_files(self._root, first.writer, days=days)
            covered = [file for file in there if first.first <= file.first <= last.last]
            if covered != [one.file for one in taken]:
                raise Unmergeable(f"{first.path} to {last.path.name}: there are other files between them; left alone")
        # The grace period begins now, regardless of the duration of the merge.
        os.utime(temporary)
        # Another user may compact than the one who writes, and others may read.
        durable.like(temporary, first.path)
        folder = self._root / layout.day_directory(*days)
        if not folder.is_dir():
            durable.make_folder(folder)
            durable.like(folder, self._root)
        target = folder / layout.file_name(first.writer, first.first, last.last)
        assert self._held is not None
        durable.rename(temporary, target, self._held.still_ours)

    def _set_aside(self) -> None:
        """Move superseded files out of the folders of days; our readers then find their rows in their covers."""
        if isinstance(self._root, ObjectPath):
            self._notes.append(f"{self._root}: nothing can be moved in an object store, so no file was set aside")
            return
        unsynced: set[Path] = set()
        for file, _ in layout.superseded_files(self._root):
            target = self._root / layout.SUPERSEDED / file.path.parent.name / file.path.name
            if not target.parent.is_dir():
                durable.make_folder(target.parent, unsynced)
                for folder in (target.parent.parent, target.parent):
                    durable.like(folder, self._root)
            unsynced.add(file.path.parent)
            durable.rename(file.path, target, unsynced=unsynced)
        durable.sync_folders(unsynced)

    def _superseded(self) -> list[tuple[TableFile, Sequence[TableFile]]]:
        """Return all superseded files, in their places and set aside, each with the files that cover it."""
        found: list[tuple[TableFile, Sequence[TableFile]]] = [*layout.superseded_files(self._root)]
        aside = layout.set_aside_files(self._root)
        published = layout.published_files(self._root) if aside else []
        for file in aside:
            covers = [
                one
                for one in published
                if one.writer == file.writer and one.first <= file.first <= file.last <= one.last
            ]
            if covers:
                found.append((file, covers))
            else:
                self.faults.append(f"{file.path}: no published file holds its rows; {RESTORE}")
        return found

    def _is_old(self, cover: TableFile) -> bool:
        # Without a grace period merged files are deleted at once, though their cover is newer than ``now_s``.
        grace_s = self._limits.grace_s
        return not grace_s or self._now_s - cover.path.stat().st_mtime >= grace_s

    def delete(self, *, dry_run: bool = False) -> tuple[int, int]:
        """Delete superseded files whose grace period is over; return how many these are, and how many still wait."""
        n_deleted = n_waiting = 0
        by_cover: dict[TableFile, list[TableFile]] = {}
        for file, covers in self._superseded():
            # One such cover is enough: a reader that listed after its publication has it, or a file that covers it.
            ripe = [one for one in covers if self._is_old(one)]
            if ripe:
                by_cover.setdefault(ripe[0], []).append(file)
            else:
                n_waiting += 1
        for cover, files in by_cover.items():
            try:
                # What the cover holds is all that is left in the end, so it is read once more.
                held = n_rows(whole(cover.path))
                wanted = sum(n_rows(one.path) for one in layout.without_superseded(files))
            except Unmergeable as error:
                self.faults.append(str(error))
                continue
            if held < wanted:
                self.faults.append(
                    f"{cover.path} has {held} rows, and the {len(files)} files that its name covers have {wanted}; "
                    "left alone"
                )
                continue
            n_deleted += len(files)
            if not dry_run and isinstance(self._root, ObjectPath):
                together(lambda file: file.path.unlink(missing_ok=True), files)
            elif not dry_run:
                for file in files:
                    file.path.unlink(missing_ok=True)
        if not dry_run and not isinstance(self._root, ObjectPath):
            self._remove_empty_folders()
        return n_deleted, n_waiting

    def _remove_empty_folders(self) -> None:
        aside = self._root / layout.SUPERSEDED
        if aside.is_dir():
            durable.remove_empty([*aside.glob("day=*"), aside])
        # A writer may just have made the newest one.
        older = sorted(folder for folder in self._root.glob("day=*") if folder.is_dir())[:-1]
        durable.remove_empty(folder for folder in older if not any(folder.iterdir()))


def runs(files: Sequence[Sized], limits: Limits, *, gapless: bool) -> list[Sequence[Sized]]:
    """Return the runs of a writer's files, given in sequence order, that should be merged.

    A run lies within one span, without a file of another span in between: the merged file's name would cover that file
    too. In a span that is over everything is merged. Until then, days that are over are merged each for itself, and
    with each other as files of the current day are: a run has at least ``min_files`` files, and none of them is larger
    than all others together, so a row is copied only as often as its file can double.
    """
    found: list[Sequence[Sized]] = []
    newest = max((one.file.last_day for one in files), default=dt.date.min)
    current = (_span(newest, newest, limits), True)
    run: list[Sized] = []
    before: tuple[int | None, bool] | None = None
    for one in [*files, None]:
        small = one is not None and 2 * one.n_bytes < limits.target_bytes
        first, last = (newest, newest) if one is None else (one.file.first_day, one.file.last_day)
        place = (_span(first, last, limits), last == newest)
        small = small and place[0] is not None
        follows = bool(
            run and one is not None and place == before and (not gapless or one.file.first == run[-1].file.last + 1)
        )
        if run and before is not None and not (small and follows):
            found += _parts(run, limits, is_over=before[0] != current[0], is_newest=before[1])
            run = []
        if small and one is not None:
            run.append(one)
            before = place
    return found


def _span(first: dt.date, last: dt.date, limits: Limits) -> int | None:
    """Return the number of the span that holds these days; None if they lie in several."""
    begin, end = (day.toordinal() - _EPOCH for day in (first, last))
    return begin // limits.span_days if begin // limits.span_days == end // limits.span_days else None


def _parts(run: Sequence[Sized], limits: Limits, *, is_over: bool, is_newest: bool) -> list[Sequence[Sized]]:
    """Return which consecutive files of a run are merged with each other.

    ``is_over``: whether its span is. ``is_newest``: whether its files are of the current day.
    """
    begin = 0 if is_over else _beginning([one.n_bytes for one in run], limits.min_files)
    found = [] if begin is None else [run[begin:]]
    if not is_newest:
        rest = groupby(run[:begin], lambda one: (one.file.first_day, one.file.last_day))
        found = [*(list(ones) for (first, last), ones in rest if first == last), *found]
    return [part for part in found if len(part) >= 2]


def _beginning(sizes: Sequence[int], min_files: int) -> int | None:
    """Return the first position that leaves at least ``min_files``, none of them larger than all others together."""
    sums = list(accumulate(reversed(sizes)))[::-1]
    largest = list(accumulate(reversed(sizes), max))[::-1]
    fitting = (at for at in range(len(sizes) - min_files + 1) if 2 * largest[at] <= sums[at])
    return next(fitting, None)


def _fitting(sources: Sequence[Source], target_bytes: int) -> Sequence[Source]:
    """Return the first sources that fit into one file if merging does not shrink them; at least two."""
    n_fitting = sum(n_bytes <= target_bytes for n_bytes in accumulate(one.n_bytes for one in sources))
    return sources[: max(2, n_fitting)]


@dataclass(frozen=True, kw_only=True)
class Held:
    """The lock of a table. ``folder``: for what is being merged. ``still_ours``: raises if the lock was lost."""

    folder: Path
    still_ours: Callable[[], None] = lambda: None


@contextlib.contextmanager
def lock(root: Path) -> Iterator[Held | None]:
    """Yield the lock of a table, whose interrupted compactions have left nothing; None if another process has it."""
    if isinstance(root, ObjectPath):
        probe(root, "the table")
        with locked(root / _LOCK) as still_ours:
            if still_ours is None:
                yield None
                return
            with tempfile.TemporaryDirectory(prefix="unskew-compacting-") as work:
                yield Held(folder=Path(work), still_ours=still_ours)
        return
    folder = root / layout.COMPACTING
    path = root / _LOCK
    new = not path.exists()
    folder.mkdir(exist_ok=True)
    with path.open("wb") as file:
        if new:
            durable.like(folder, root)
            durable.like_file(path, folder)
        try:
            # The system releases the lock when the process ends for whatever reason.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        for left in folder.glob("*.tmp"):
            left.unlink(missing_ok=True)
        yield Held(folder=folder)


@contextlib.contextmanager
def holding(root: Path) -> Iterator[Held]:
    """Hold the lock of a table for the body.

    Raises ``StoreUnavailable`` if another command has it, or the disk fails.
    """
    with durable.disk(root), lock(root) as found:
        if found is None:
            raise StoreUnavailable(f"{root}: {BUSY}; wait for its end and try again")
        yield found


def _is_table(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(("_", ".")) and any(path.glob("day=*"))
