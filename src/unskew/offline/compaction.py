"""Compaction: the many small files of a table merged into few, beside writers and readers that go on.

The order of steps is the contract:

1. The table's lock is taken, so that one compaction is at work on it; what a broken-off one left in ``_compacting`` is removed.
2. A run of files, of one writer, one day, and consecutive in sequence, is merged into a file in ``_compacting``, which is
   fsynced, and compared with them, row by row.
3. It is renamed to where readers look, and the directory fsynced. From now on it supersedes those files: its name covers theirs.
4. Once it has been there for the grace period, those files are deleted, by this compaction or a later one.

A stop between any two steps leaves readers every row once. Writers never look at what they have published, but for their
start, where a merged file stands for those that it covers.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from pathlib import Path

from unskew.features.errors import StoreUnavailable
from unskew.offline.merging import Source, Unmergeable, merge, n_rows, source, verify
from unskew.sinks import durable
from unskew.sinks.tables import layout
from unskew.sinks.tables.layout import TableFile

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A folder of ``day=`` folders; ``sequence``: the column of its sequence numbers, None where no column holds them.

    ``gapless``: whether a writer has a row for each number.
    """

    name: str
    root: Path
    sequence: str | None
    gapless: bool


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How far files are merged.

    ``target_bytes``: what a merged file may have, compressed. A file of half of that is left alone. ``min_files``: so many
    small files make a merge in a day that goes on; in one that is over, two do. ``grace_s``: for how long files that were
    merged stay, for readers that listed them before.
    """

    target_bytes: int = 128 << 20
    min_files: int = 8
    grace_s: float = 3600.0


@dataclass(frozen=True, kw_only=True)
class Compacted:
    """What became of a table, or would: published files and their bytes before and after.

    ``n_deleted``, ``n_waiting``: files that were merged, and are gone, or wait for their grace period. ``notes``: what was
    left alone, and why; ``faults``: what was because it is damaged or not what its name promises.
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
    """The log of every version of every view, by name and version."""
    versions = (path for path in log_root.glob("*/v*") if path.name[1:].isdecimal() and _is_table(path))
    ordered = sorted(versions, key=lambda path: (path.parent.name, int(path.name[1:])))
    return [
        Table(name=f"log {path.parent.name}@{path.name[1:]}", root=path, sequence="seq", gapless=True)
        for path in ordered
    ]


def archive_tables(archive_root: Path) -> list[Table]:
    """The archived events of every topic."""
    return [
        Table(name=f"archive {path.name}", root=path, sequence="_offset", gapless=False)
        for path in sorted(archive_root.iterdir())
        if _is_table(path)
    ]


def dead_letter_tables(dead_letters_root: Path) -> list[Table]:
    """The dead letters of every topic."""
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
) -> Compacted:
    """Merge a table's small files, and delete those whose rows have been in a merged file for the grace period.

    ``now_s``: the present as the disk's files are stamped. ``dry_run``: nothing is written; bytes after are then those
    before, which merging makes fewer. ``progress``: files merged, of how many. Safe beside running writers and readers.

    What cannot be merged (of different columns or metadata, damaged, or not what the names promise) is left alone and
    told, as is the whole table where another compaction is at work on it. Raises ``StoreUnavailable`` where the disk
    fails; nothing is lost, and it can be repeated.
    """
    work = _Work(table, limits, now_s, progress)
    try:
        if dry_run:
            return work.foreseen()
        with _lock(table.root) as free:
            if not free:
                busy = f"{table.root}: another compaction is at work on it; left alone"
                return replace(work.state(), notes=(busy,))
            return work.done()
    except FileNotFoundError as error:
        raise StoreUnavailable(f"{table.root}: files went away while they were merged ({error}); try again") from error
    except OSError as error:
        raise StoreUnavailable(f"cannot compact {table.root}: {error}") from error


class _Work:
    """One compaction of one table."""

    def __init__(self, table: Table, limits: Limits, now_s: float, progress: Progress) -> None:
        self._table = table
        self._root = table.root
        self._limits = limits
        self._now_s = now_s
        self._progress = progress
        self._notes: list[str] = []
        self._faults: list[str] = []
        self._n_merged = 0
        self._n_to_merge = 0

    def state(self) -> Compacted:
        """The table as it is."""
        n_files, n_bytes = self._size()
        return Compacted(
            table=self._table, files_before=n_files, files_after=n_files, bytes_before=n_bytes, bytes_after=n_bytes
        )

    def foreseen(self) -> Compacted:
        """What ``done`` would do, at most so many files left."""
        before = self.state()
        fewer = 0
        for run in self._runs():
            for group in self._alike(run):
                rest: Sequence[Source] = group
                while len(rest) >= 2:
                    taken = _fitting(rest, self._limits.target_bytes)
                    fewer += len(taken) - 1
                    rest = rest[len(taken) :]
        n_deleted, n_waiting = self._delete(dry_run=True)
        return replace(
            before,
            files_after=before.files_before - fewer,
            n_deleted=n_deleted,
            n_waiting=n_waiting,
            notes=tuple(self._notes),
            faults=tuple(dict.fromkeys(self._faults)),
        )

    def done(self) -> Compacted:
        """Delete what may go, merge, and delete again: without a grace period what was just merged may go too."""
        before = self.state()
        n_earlier, _ = self._delete()
        planned = self._runs()
        self._n_to_merge = sum(map(len, planned))
        for run in planned:
            for group in self._alike(run):
                self._merge_all(group)
        n_now, n_waiting = self._delete()
        n_files, n_bytes = self._size()
        return replace(
            before,
            files_after=n_files,
            bytes_after=n_bytes,
            n_deleted=n_earlier + n_now,
            n_waiting=n_waiting,
            notes=tuple(self._notes),
            faults=tuple(dict.fromkeys(self._faults)),
        )

    def _size(self) -> tuple[int, int]:
        files = layout.published_files(self._root)
        return len(files), sum(file.path.stat().st_size for file in files)

    def _runs(self) -> list[Sequence[Sized]]:
        sized = [Sized(file, file.path.stat().st_size) for file in layout.settled_files(self._root)]
        return [
            run
            for _, ones in groupby(sized, lambda one: one.file.writer)
            for run in runs(list(ones), self._limits, gapless=self._table.gapless)
        ]

    def _alike(self, run: Sequence[Sized]) -> list[list[Source]]:
        """Those of a run that may be in one file, at least two in each group."""
        found: list[list[Source]] = [[]]
        for one in run:
            try:
                read = source(one.file, one.n_bytes)
            except Unmergeable as error:
                self._faults.append(str(error))
                found.append([])
                continue
            before = found[-1][-1] if found[-1] else read
            if not read.like(before):
                self._notes.append(
                    f"{read.path} has other columns or metadata than {before.path.name}; they stay apart"
                )
                found.append([])
            else:
                # One schema for all: there may be many files.
                read = replace(read, schema=before.schema)
            found[-1].append(read)
        return [group for group in found if len(group) >= 2]

    def _merge_all(self, group: Sequence[Source]) -> None:
        rest = group
        while len(rest) >= 2:
            temporary = self._root / layout.COMPACTING / f"{rest[0].path.name}.tmp"
            try:
                taken = merge(rest, temporary, target_bytes=self._limits.target_bytes, progress=self._one_more)
                verify(temporary, taken, sequence=self._table.sequence, gapless=self._table.gapless)
                self._publish(temporary, taken)
            except Unmergeable as error:
                self._faults.append(str(error))
                return
            finally:
                temporary.unlink(missing_ok=True)
            rest = rest[len(taken) :]

    def _one_more(self, _source: Source) -> None:
        self._n_merged += 1
        self._progress(self._n_merged, self._n_to_merge)

    def _publish(self, temporary: Path, taken: Sequence[Source]) -> None:
        first, last = taken[0].file, taken[-1].file
        covered = [
            file for file in layout.published_files(self._root, first.writer) if first.first <= file.first <= last.last
        ]
        if covered != [one.file for one in taken]:
            raise Unmergeable(f"{first.path} to {last.path.name}: there are other files between them; left alone")
        # The grace period begins now, however long the merge took.
        os.utime(temporary)
        durable.rename(temporary, first.path.with_name(layout.file_name(first.writer, first.first, last.last)))

    def _is_old(self, cover: TableFile) -> bool:
        # Without a grace period what is merged goes at once: it is newer than the present that was told.
        grace_s = self._limits.grace_s
        return not grace_s or self._now_s - cover.path.stat().st_mtime >= grace_s

    def _delete(self, *, dry_run: bool = False) -> tuple[int, int]:
        """Delete superseded files whose grace period is over; how many those are, and how many wait."""
        n_deleted = n_waiting = 0
        by_cover: dict[TableFile, list[TableFile]] = {}
        for file, covers in layout.superseded_files(self._root):
            # Any will do: a reader that listed since it was there holds it, or one that covers it in turn.
            ripe = [one for one in covers if self._is_old(one)]
            if ripe:
                by_cover.setdefault(ripe[0], []).append(file)
            else:
                n_waiting += 1
        for cover, files in by_cover.items():
            try:
                held, wanted = n_rows(cover.path), sum(n_rows(one.path) for one in layout.without_superseded(files))
            except Unmergeable as error:
                self._faults.append(str(error))
                continue
            if held < wanted:
                self._faults.append(
                    f"{cover.path} has {held} rows, and the {len(files)} files that its name covers have {wanted}; left alone"
                )
                continue
            for file in files:
                n_deleted += 1
                if not dry_run:
                    file.path.unlink(missing_ok=True)
        return n_deleted, n_waiting


def runs(files: Sequence[Sized], limits: Limits, *, gapless: bool) -> list[Sequence[Sized]]:
    """Which of a writer's files, given in sequence order, are to be merged with each other.

    A run is of one day, without a file of another day between: the merged file's name would cover that one too. In a
    day that goes on, a run is ``min_files`` long at least, and no file in it is larger than all others together: so a row is
    copied no more often than its file can double.
    """
    found: list[Sequence[Sized]] = []
    newest = max((one.file.day for one in files), default=None)
    run: list[Sized] = []
    for one in [*files, None]:
        small = one is not None and 2 * one.n_bytes < limits.target_bytes
        follows = bool(
            run
            and one is not None
            and one.file.day == run[-1].file.day
            and (not gapless or one.file.first == run[-1].file.last + 1)
        )
        if run and not (small and follows):
            begin = 0 if run[0].file.day != newest else _beginning([each.n_bytes for each in run], limits.min_files)
            if begin is not None and len(run) - begin >= 2:
                found.append(run[begin:])
            run = []
        if small and one is not None:
            run.append(one)
    return found


def _beginning(sizes: Sequence[int], min_files: int) -> int | None:
    """The first place from which on there are ``min_files``, none of them larger than all others together."""
    sums = list(accumulate(reversed(sizes)))[::-1]
    largest = list(accumulate(reversed(sizes), max))[::-1]
    fitting = (at for at in range(len(sizes) - min_files + 1) if 2 * largest[at] <= sums[at])
    return next(fitting, None)


def _fitting(sources: Sequence[Source], target_bytes: int) -> Sequence[Source]:
    """The first sources that fit into one file if it is no smaller than they are; two at least."""
    n_fitting = sum(n_bytes <= target_bytes for n_bytes in accumulate(one.n_bytes for one in sources))
    return sources[: max(2, n_fitting)]


@contextlib.contextmanager
def _lock(root: Path) -> Iterator[bool]:
    """Whether the table is ours to compact; what a compaction left that was broken off is then removed."""
    folder = root / layout.COMPACTING
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("wb") as file:
        try:
            # The system gives it back when the process ends, however that comes.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        for path in folder.glob("*.tmp"):
            path.unlink(missing_ok=True)
        yield True


def _is_table(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(("_", ".")) and any(path.glob("day=*"))
