"""How one writer's files of a table are staged and published: by renaming, or in an object store by its coverage.

``StagedTable`` says when, and which rows; the order of steps is in ``parquet.py``. Both ways have the same steps:

| step | on a disk | in an object store |
|---|---|---|
| stage | written into ``_staged``, fsynced | written under the final name, which has this run's |
| publish | renamed to the final name; the coverage is replaced | the coverage is replaced, if it is the one before |
| begin | staged files past the saved sequence are removed | the coverage gets this run, then the same are removed |
| taken over | the lease is gone (``still_ours``) | the coverage is another one |
"""

import contextlib
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from unskew.features.errors import LayoutError, StoreUnavailable
from unskew.sinks import durable
from unskew.sinks.objects import ObjectPath, Superseded, Version, together
from unskew.sinks.tables import checksum, layout
from unskew.sinks.tables.layout import RUNS, SEQUENCE, Published, TableFile

MOST_REMOVALS = 100
"""So often at most other writers remove the folder of a day right before a file is written there."""


class Publication(Protocol):
    """A writer's files: ``run`` is part of the names of those that it stages."""

    @property
    def run(self) -> str | None: ...

    def found(self) -> tuple[list[TableFile], list[TableFile]]:
        """Return the published and the staged files."""

    def begin(self, keep: Sequence[TableFile], drop: Sequence[TableFile]) -> None:
        """Let the next call of ``publish`` publish the staged files ``keep``; those of ``drop`` are removed."""

    def stage(self, files: Iterable[tuple[str, str, bytes]]) -> None:
        """Make files durable, given as name, day and content, in place of those that were staged since ``publish``."""

    def publish(self, coverage: Mapping[str, Any], next_sequence: int) -> None:
        """Publish what is staged, and the coverage that holds then; ``next_sequence``: the one after the last row."""

    def end(self) -> None:
        """Leave nothing that an empty folder would be."""


class ByRename:
    """Publication on a disk."""

    run = None

    def __init__(self, root: Path, writer: str, still_ours: Callable[[], None]) -> None:
        self._root = root
        self._writer = writer
        self._still_ours = still_ours
        self._staged: list[Path] = []
        self._staging: list[Path] = []
        self._unsynced: set[Path] = set()
        self._written_coverage: dict[str, Any] | None = None

    def found(self) -> tuple[list[TableFile], list[TableFile]]:
        return layout.published_files(self._root, self._writer), layout.staged_files(self._root, self._writer)

    def begin(self, keep: Sequence[TableFile], drop: Sequence[TableFile]) -> None:
        for path in (self._root / layout.STAGED).glob(f"day=*/{self._writer}-*.tmp"):
            path.unlink(missing_ok=True)
        for file in drop:
            file.path.unlink(missing_ok=True)
        self._staged = [file.path for file in keep]

    def stage(self, files: Iterable[tuple[str, str, bytes]]) -> None:
        written = []
        for name, day, data in files:
            directory = self._root / layout.STAGED / day
            written.append(_write(directory / name, data, self._unsynced, self._still_ours))
        durable.sync_folders(self._unsynced)
        self._staged = written

    def publish(self, coverage: Mapping[str, Any], next_sequence: int) -> None:
        # In order, so that the files that a reader lists meanwhile have no gap before the last of them.
        while self._staged:
            source = self._staged[0]
            target = self._root / source.parent.name / source.name
            durable.make_folder(target.parent, self._unsynced)
            try:
                durable.rename(source, target, self._still_ours, self._unsynced)
            except FileNotFoundError:
                # Compaction removed the folder, which was empty, in between.
                durable.make_folder(target.parent, self._unsynced)
                durable.rename(source, target, self._still_ours, self._unsynced)
            del self._staged[0]
            self._staging.append(source.parent)
        durable.sync_folders(self._unsynced)
        if coverage:
            self._write_coverage(_whole(coverage, next_sequence))
        # A process runs for years, and the folder of a day that is over would stay for each of them.
        newest = self._staging[-1:]
        _remove_empty(folder for folder in dict.fromkeys(self._staging) if folder not in newest)
        self._staging = newest

    def _write_coverage(self, coverage: dict[str, Any]) -> None:
        if coverage == self._written_coverage:
            return
        path = layout.coverage_file(self._root, self._writer)
        temporary = path.with_suffix(".tmp")
        if self._written_coverage is None:
            path.parent.mkdir(parents=True, exist_ok=True)
        # Not fsynced: start-up writes it again from the saved state, and until then an older file only promises less.
        temporary.write_bytes(checksum.sealed_json(coverage))
        self._still_ours()
        temporary.replace(path)
        self._written_coverage = coverage

    def end(self) -> None:
        _remove_empty((self._root / layout.STAGED).glob("day=*"))


class ByCoverage:
    """Publication in an object store: one conditional write of the coverage.

    Whoever begins writes the coverage too, so a process that was taken over finds another one when it publishes. Files
    that it still writes have the name of its run, which ended with that.
    """

    def __init__(self, root: ObjectPath, writer: str, still_ours: Callable[[], None]) -> None:
        self.run = uuid.uuid4().hex[:12]
        self._root = root
        self._writer = writer
        self._still_ours = still_ours
        self._path = root / layout.COVERAGE / f"{writer}.json"
        self._version: Version | None = None
        self._before = Published()
        self._runs: list[tuple[str, int, int | None]] | None = None
        self._written: dict[str, Any] | None = None
        self._runs_with_files: set[str] = set()
        self._dead: list[TableFile] = []

    def found(self) -> tuple[list[TableFile], list[TableFile]]:
        """Return the published and the staged files; those of runs that are not known are neither, and stay."""
        self._version = None
        self._before = Published()
        # Before the listing: what it publishes is there.
        with contextlib.suppress(FileNotFoundError):
            data, self._version = self._path.versioned()
            self._before = layout.read_published(self._path, data)[1]
        files = layout.all_files(self._root, self._writer)
        if self._version is None and (lost := [file for file in files if file.run is not None]):
            raise LayoutError(
                f"{self._path} is gone, which says which of the files of {self._writer} are published, for example {lost[0].path}; "
                "restore it from a backup"
            )
        published = [file for file in files if self._before.includes(file)]
        known = {run for run, _, _ in self._before.runs}
        others = [file for file in files if file.run in known and not self._before.includes(file)]
        staged = [file for file in others if self._before.is_of_run(file)]
        # Written by a process that had been taken over, or left when another start died.
        self._dead = [file for file in others if not self._before.is_of_run(file)]
        self._runs_with_files = known.intersection(file.run or "" for file in files)
        return layout.without_superseded(published), layout.without_superseded(staged)

    def begin(self, keep: Sequence[TableFile], drop: Sequence[TableFile]) -> None:
        # What is kept is published by the coverage; and only once that has this run, no other process can publish more.
        del keep
        self._dead += drop

    def stage(self, files: Iterable[tuple[str, str, bytes]]) -> None:
        for name, day, data in files:
            # A process that stood still need not write what nobody will read.
            self._still_ours()
            (self._root / day / name).write_bytes(data)

    def publish(self, coverage: Mapping[str, Any], next_sequence: int) -> None:
        if self._runs is None:
            # Those without any file are no longer needed: compaction merges the files of runs that have ended.
            earlier = [one for one in self._before.runs if one[0] in self._runs_with_files]
            ended = [(run, begin, next_sequence if end is None else end) for run, begin, end in earlier]
            self._runs = [*ended, (self.run, next_sequence, None)]
        content = {**(_whole(coverage, next_sequence) if coverage else {SEQUENCE: next_sequence}), RUNS: self._runs}
        if content == self._written:
            return
        data = checksum.sealed_json(content)
        self._still_ours()
        try:
            self._version = self._path.replace_if(data, self._version)
        except Superseded as error:
            self._version = self._own(data, error)
        self._written = content
        together(lambda file: file.path.unlink(missing_ok=True), self._dead)
        self._dead = []

    def _own(self, data: bytes, error: Superseded) -> Version:
        """Return the version of the coverage if this process wrote it, and only the store's answer was lost."""
        there: bytes | None = None
        version: Version | None = None
        with contextlib.suppress(FileNotFoundError):
            there, version = self._path.versioned()
        if version is not None and there == data:
            return version
        if version == self._version:
            # Amazon S3 answers so while another write of the same object is under way.
            raise StoreUnavailable(f"{self._path}: the store has not replaced it, and nobody else has") from error
        raise LayoutError(
            f"{self._path} was written by another process, so this one was taken over and stops; it has published nothing since. "
            "Find out which of the two should continue, and start that one alone"
        ) from error

    def end(self) -> None:
        """Do nothing: there are no folders."""


def _whole(coverage: Mapping[str, Any], next_sequence: int) -> dict[str, Any]:
    return {"since": None, "complete_to": None, **coverage, SEQUENCE: next_sequence}


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        # It may hold another writer's files, or another writer may have removed it already.
        with contextlib.suppress(OSError):
            folder.rmdir()


def _write(path: Path, data: bytes, unsynced: set[Path], still_ours: Callable[[], None]) -> Path:
    temporary = path.with_name(f"{path.name}.tmp")
    for left in reversed(range(MOST_REMOVALS)):
        durable.make_folder(path.parent, unsynced)
        try:
            durable.write(temporary, data)
        except FileNotFoundError:
            # Another writer, of which there may be hundreds, removed the empty folder in between.
            if not left:
                raise
        else:
            break
    # A process that took over has read this folder, so nothing may appear in it after that.
    durable.rename(temporary, path, still_ours, unsynced)
    return path
