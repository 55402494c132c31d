"""Append-only Parquet tables whose rows become readable only once the epoch that wrote them is durable.

The order of steps is the contract:

1. ``snapshot()`` of an epoch writes the rows appended since the previous one: each file is written under a temporary
   name, fsynced, and renamed into ``_staged``; then the directories are fsynced; then the sequence to resume from is
   returned.
2. The caller makes that return value durable, with the rest of the epoch.
3. The next ``snapshot()``, which is called only once the previous epoch is durable, renames those files to where
   readers look, fsyncs the directories, and replaces the coverage file.

In an object store the files have their final names from the beginning, and replacing the coverage publishes them, see
``publication.py``.

After a stop between any two steps, start-up recovers from the saved sequence alone: files up to it are published,
because their epoch is durable, and staged files past it are removed, because their rows will come again. A published
file past it means that the saved state is older than the table; this cannot be repaired, so it is an error, and nothing
is changed.
"""

import contextlib
import io
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from unskew.features.errors import LayoutError
from unskew.features.registry import describe_one
from unskew.features.time import DAY_US, day_of
from unskew.features.view import View
from unskew.sinks import durable
from unskew.sinks.objects import ObjectPath
from unskew.sinks.tables import checksum, layout
from unskew.sinks.tables.publication import ByCoverage, ByRename, Publication

_NEXT = "next"


def _as_they_are(rows: pl.DataFrame) -> pl.DataFrame:
    return rows


class StagedTable:
    """One writer's share of an append-only Parquet table, published only once durable.

    ``day_column``: a Datetime in UTC that determines a row's day. ``sequence_column``: Int64, strictly increasing over
    all rows ever appended, with or without gaps; None numbers the rows in the order in which they are appended. The
    sequence number of a row is its value less ``layout.origin_of`` the writer.
    ``saved``: the value that the last durable ``snapshot()`` returned, None if there is no saved state. ``at_staging``:
    a last transformation of rows before they are written. ``still_ours``: raises if another process has taken over the
    table; it is called before each rename.

    The constructor finishes or undoes what the previous run left, see the module. It raises ``LayoutError`` if the
    table and the saved state do not belong together, naming the file and the remedy, and then changes nothing; it
    raises ``StoreUnavailable`` if the disk fails, and then the same call can be repeated.
    """

    def __init__(
        self,
        root: Path,
        writer: str,
        *,
        day_column: str,
        sequence_column: str | None,
        metadata: Mapping[str, str],
        saved: Mapping[str, Any] | None,
        at_staging: Callable[[pl.DataFrame], pl.DataFrame] = _as_they_are,
        still_ours: Callable[[], None] = lambda: None,
    ) -> None:
        if "-" in writer:
            raise ValueError(f"writer {writer!r}: '-' separates the parts of a file's name")
        self._root = root
        self._writer = writer
        self._day_column = day_column
        self._sequence_column = sequence_column
        self._origin = layout.origin_of(writer)
        self._metadata = {"unskew.layout": layout.LAYOUT, **metadata, **dict([checksum.METADATA])}
        self._at_staging = at_staging
        self._next = 0 if saved is None else saved[_NEXT]
        self._buffered: list[tuple[int, pl.DataFrame]] = []
        self._n_buffered = 0
        self._staged_next = self._next
        self._coverage = {name: value for name, value in (saved or {}).items() if name != _NEXT}
        self._staged_coverage = dict(self._coverage)
        self._publication: Publication = (
            ByCoverage(root, writer, still_ours) if isinstance(root, ObjectPath) else ByRename(root, writer, still_ours)
        )
        with durable.disk(root):
            self._recover(saved)

    @property
    def next_sequence(self) -> int:
        """The last appended sequence number plus 1; 0 before any."""
        return self._next

    @property
    def n_buffered(self) -> int:
        """The number of rows appended since the last snapshot."""
        return self._n_buffered

    def append(self, rows: pl.DataFrame) -> None:
        """Append rows in sequence order; they stay in memory until the next snapshot. ``rows`` may be empty.

        Raises ``ValueError`` for a sequence number that was appended before or is out of order: a fault of the caller.
        """
        n_rows = rows.height
        if not n_rows:
            return
        first = self._next
        if self._sequence_column is None:
            after = first + n_rows
        else:
            # This is called for each table and poll, mostly with few rows, so it uses numpy, whose calls are cheap.
            sequence = rows.get_column(self._sequence_column).to_numpy()
            first, after = int(sequence[0]) - self._origin, int(sequence[-1]) + 1 - self._origin
            if first < self._next or not (sequence[1:] > sequence[:-1]).all():
                raise ValueError(
                    f"{self._root}: rows of {self._writer} from sequence number {first} to {after - 1} are not "
                    f"past {self._next - 1} in increasing order"
                )
        self._buffered.append((first, rows))
        self._n_buffered += n_rows
        self._next = after

    def cover(self, coverage: Mapping[str, Any]) -> None:
        """Set the coverage that holds once the rows appended so far are published; a value of None is not known yet."""
        self._coverage.update({name: value for name, value in coverage.items() if value is not None})

    def snapshot(self) -> dict[str, Any]:
        """Publish the files of the previous snapshot, stage the rows since, and return the state to resume from.

        Call it only when the previous snapshot's return value is durable. After ``StoreUnavailable`` the call can be
        repeated: nothing is lost, and nothing is published twice.
        """
        with durable.disk(self._root):
            self._publish()
            self._stage()
        return {_NEXT: self._staged_next, **self._staged_coverage}

    def settle(self) -> None:
        """Publish the files of the last snapshot, when the flow has ended and that snapshot is durable.

        Rows appended after that snapshot are not written; a resumed run gets them again.
        """
        with durable.disk(self._root):
            self._publish()
            self._publication.end()

    def _recover(self, saved: Mapping[str, Any] | None) -> None:
        published, staged = self._publication.found()
        self._refuse_strangers(saved, published, staged)
        self._publication.begin(
            [file for file in staged if file.first < self._next], [file for file in staged if file.first >= self._next]
        )
        self._publish()
        self._publication.end()

    def _refuse_strangers(
        self, saved: Mapping[str, Any] | None, published: list[layout.TableFile], staged: list[layout.TableFile]
    ) -> None:
        if saved is None:
            _refuse_earlier(self._root, self._writer, published)
            return
        for file in published:
            if file.last >= self._next:
                raise LayoutError(
                    f"{file.path} holds rows past {self._next - 1}, where the saved state of {self._writer} ends: the "
                    "recovery store is older than the table. Start with the newest recovery store, or move "
                    f"{self._root} away and start over without one"
                )
        for file in staged:
            if file.first < self._next <= file.last:
                raise LayoutError(
                    f"{file.path} was not written by the run whose saved state of {self._writer} ends at "
                    f"{self._next - 1}: start with the recovery store that belongs to {self._root}"
                )
        if self._next > 0 and not any(file.first < self._next <= file.last + 1 for file in (*published, *staged)):
            raise LayoutError(
                f"{self._root} lacks the rows of {self._writer} up to {self._next - 1} that the saved state says were "
                "written: give the directory that the recovery store was used with, or start over without the store"
            )

    def _publish(self) -> None:
        self._publication.publish(self._staged_coverage, self._staged_next)

    def _stage(self) -> None:
        self._publication.stage((name, day, encode(rows, self._metadata)) for name, day, rows in self._files())
        self._staged_next = self._next
        self._staged_coverage = dict(self._coverage)
        self._buffered = []
        self._n_buffered = 0

    def _files(self) -> Iterator[tuple[str, str, pl.DataFrame]]:
        """Yield name, day and rows of each file to stage: one file for each run of consecutive rows of one day."""
        if not self._buffered:
            return
        first = self._buffered[0][0]
        rows = self._at_staging(pl.concat([rows for _, rows in self._buffered]))
        instants = rows.get_column(self._day_column).cast(pl.Int64).to_numpy()
        days = instants // DAY_US
        sequence = None if self._sequence_column is None else rows.get_column(self._sequence_column)
        start = 0
        for end in (*(np.flatnonzero(np.diff(days)) + 1).tolist(), rows.height):
            part = rows if end - start == rows.height else rows.slice(start, end - start)
            low, high = first + start, first + end - 1
            if sequence is not None:
                low, high = int(sequence[start]) - self._origin, int(sequence[end - 1]) - self._origin
            day = layout.day_directory(day_of(int(instants[start])))
            yield layout.file_name(self._writer, low, high, self._publication.run), day, part
            start = end


def refuse_earlier(root: Path, writer: str) -> None:
    """Raise ``LayoutError`` if the table at ``root`` holds files of this writer, which has no saved state.

    ``StagedTable`` refuses them too, but only once the writer has rows.
    """
    with durable.disk(root):
        _refuse_earlier(root, writer, layout.published_files(root, writer))


def _refuse_earlier(root: Path, writer: str, published: Sequence[layout.TableFile]) -> None:
    if published:
        raise LayoutError(
            f"{published[-1].path} was published by an earlier run, but there is no saved state for {writer}: start with "
            f"that run's recovery store, or write to another directory (or move {root} away) to start over"
        )


def record_shards(
    root: Path,
    shards: Sequence[str],
    own: Container[str] | None = None,
    *,
    view: View,
    stream: Mapping[str, Any] | None = None,
    member: int = 0,
) -> None:
    """Write the list of shards of the log at ``root``, at the start of a run, before any of its coverage.

    ``view``, ``stream``: the definitions of the view and of its stream (``layout.STREAM``), which stay with the log, so
    that it can be read, and its view computed, when nothing else holds them any more.
    Entries of earlier runs saying that a shard ended without a clock are removed, because this run may go further. In
    an object store these entries publish files too, and are replaced when their tables are opened.
    ``own``: the shards for which they are removed, if other processes write the others; None for all. ``member``: the
    number of this process among those that may call this at the same time. Raises ``StoreUnavailable`` if the disk
    fails.
    """
    with durable.disk(root):
        path = layout.shards_file(root)
        durable.make_folder(path.parent)
        listed: dict[str, Any] = {"shards": list(shards), layout.DEFINITION: describe_one(view)}
        if stream is not None:
            listed[layout.STREAM] = stream
        durable.replace(path, checksum.sealed_json(listed), member=member)
        before = None if isinstance(root, ObjectPath) else layout.read_coverage(root)
        for shard, coverage in before.shards.items() if before else ():
            if coverage.ended and (own is None or shard in own):
                layout.coverage_file(root, shard).unlink(missing_ok=True)


@contextlib.contextmanager
def recorded_shards(
    root: Path,
    shards: Sequence[str],
    own: Container[str] | None = None,
    *,
    view: View,
    stream: Mapping[str, Any] | None = None,
    member: int = 0,
) -> Iterator[None]:
    """Call ``record_shards`` for a table that the body writes; if it fails before it has, leave nothing behind."""
    made = durable.missing(root)
    record_shards(root, shards, own, view=view, stream=stream, member=member)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError, LayoutError):
            found = layout.read_coverage(root)
            if not layout.every_file(root) and not (found and found.shards):
                layout.shards_file(root).unlink(missing_ok=True)
                durable.remove_empty([layout.shards_file(root).parent, *made])
        raise
    if not layout.shards_file(root).is_file():
        # Another member began and failed meanwhile.
        record_shards(root, shards, own, view=view, stream=stream, member=member)


def encode(rows: pl.DataFrame, metadata: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    # Level 1 takes a quarter less time than the default at the same size, on logs of counts and sums.
    rows.write_parquet(buffer, compression="zstd", compression_level=1, metadata=dict(metadata))
    return checksum.seal(buffer.getvalue())
