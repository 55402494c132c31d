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

With ``aside``, few rows need no file at an epoch's end, so that it does not grow with the number of tables, and many
are encoded while the epoch goes on (``ahead.py``), so that it does not grow with the number of rows:

1. ``kept()`` of an epoch returns a state that holds the rows since the previous one, or the files that were encoded of
   them with the rows that came after, or None if they are too many: then ``snapshot()`` is called, and stages them as
   above.
2. The caller makes that state durable, with the rest of the epoch.
3. Once the epoch's end is over, another thread stages these rows, and the states of later epochs need not hold them.
   If their epoch turns out not to be durable, start-up removes the files, as it would those of a snapshot.
4. Once the end of the next epoch is over, another thread publishes them, in the order of epochs. The next epoch's rows
   are staged only then.
5. If that fails, the next ``kept()`` returns None, and ``snapshot()`` does it again and reports the failure.

After a stop between any two steps, start-up recovers from the saved state alone: files up to its sequence are
published, because their epoch is durable, then the rows that the state holds and no published file has; staged files
past it are removed, because their rows will come again. A published file past it means that the saved state is older
than the table; this cannot be repaired, so it is an error, and nothing is changed.
"""

import contextlib
import io
import threading
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.features.definitions.recorded import words_of
from unskew.features.errors import LayoutError
from unskew.features.plan import ViewPlan
from unskew.features.registry import describe_one
from unskew.features.selecting import joined
from unskew.features.time import DAY_US, day_of
from unskew.sinks import durable
from unskew.sinks.aside import Aside, never
from unskew.sinks.gathered import Gathered
from unskew.sinks.ipc import from_ipc, to_ipc
from unskew.sinks.objects import ObjectPath
from unskew.sinks.tables import checksum, layout
from unskew.sinks.tables.ahead import Ahead, Piece
from unskew.sinks.tables.encodings import COMPRESSION, LEVEL
from unskew.sinks.tables.publication import ByCoverage, ByRename, Publication

KEPT_BYTES = 1 << 23
"""A state holds at most about so many bytes of a table's rows, uncompressed or as files; more are staged."""
AHEAD_CELLS = 1 << 16
"""Once there are so many rows, times columns, they are encoded while the epoch goes on: 4,096 rows of 16 columns."""
SOON_ROWS = 1 << 10
"""And so many rows, when the epoch's end is near, so that few are left to it."""
MERGED_BYTES = 1 << 18
"""Rows that came after a file of at most so many bytes ended, near the epoch's end, become one file with its rows."""
KEPT_PARTS = 8
"""So many epochs may wait to be published; then the flow waits for the disk."""
_NEXT = "next"
_FILES = "files"
_ROWS = "rows"
_REST = "rest"
_SHOWN, _KEPT = "shown", "kept"
"""The entries of a state that holds rows: the part before them, which files have, and the parts that they are."""


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What one epoch brings: rows, and the coverage that holds once they are published.

    ``first``: the sequence number of the first row. ``next_sequence``: the one after the last row. ``files``: those
    that were encoded of the rows. ``rows``: the others, which come after them; None if there are none. ``data``: these
    as Arrow IPC. All are empty once the rows are staged.
    """

    first: int
    next_sequence: int
    coverage: Mapping[str, Any]
    rows: pl.DataFrame | None = None
    data: bytes = field(default=b"", repr=False)
    files: Sequence[Piece] = field(default=(), repr=False)
    number: int = 0

    @property
    def n_bytes(self) -> int:
        return len(self.data) + _size(self.files)

    @property
    def is_staged(self) -> bool:
        """Whether staged files have its rows, if there are any."""
        return self.rows is None and not self.files

    def staged(self) -> "_Part":
        """Return it as it is once staged files have its rows."""
        return replace(self, rows=None, data=b"", files=())

    @property
    def first_of_rows(self) -> int:
        """The number of the first of ``rows``, if the table numbers its rows."""
        return self.files[-1].last + 1 if self.files else self.first

    def saved(self) -> dict[str, Any]:
        described = {"first": self.first, _NEXT: self.next_sequence, "coverage": dict(self.coverage)}
        # A version that expects either files or rows would leave out the files; without ``_ROWS``, it stops.
        described[_REST if self.files and self.data else _ROWS] = self.data
        return {**described, _FILES: [tuple(file) for file in self.files]} if self.files else described

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> "_Part":
        data = saved[_REST] if _REST in saved else saved[_ROWS]
        return cls(
            first=saved["first"],
            next_sequence=saved[_NEXT],
            coverage=saved["coverage"],
            rows=from_ipc(data) if data else None,
            data=data,
            files=[Piece(*file) for file in saved.get(_FILES, ())],
        )


def without_entry(saved: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a saved state without one entry of its coverage."""

    def without(part: Mapping[str, Any]) -> dict[str, Any]:
        return {**part, "coverage": {key: value for key, value in part["coverage"].items() if key != name}}

    rest = {key: value for key, value in saved.items() if key != name}
    if _KEPT in rest:
        rest |= {_SHOWN: without(rest[_SHOWN]), _KEPT: [without(part) for part in rest[_KEPT]]}
    return rest


def rows_of(saved: Mapping[str, Any]) -> list[pl.DataFrame]:
    """Return the rows that a saved state holds; they may have been published since."""
    parts = [_Part.of(part) for part in saved.get(_KEPT, ())]
    files = [frame for part in parts for frame in _read(part.files)]
    return [*files, *(part.rows for part in parts if part.rows is not None)]


def without_rows(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return a saved state without the rows that it holds, all of which were published."""
    return {key: value for key, value in saved.items() if key not in {_SHOWN, _KEPT}}


def _size(files: Iterable[Piece]) -> int:
    return sum(len(file.content) for file in files)


def _read(files: Iterable[Piece]) -> list[pl.DataFrame]:
    return [pl.read_parquet(io.BytesIO(file.content)) for file in files]


def _as_they_are(rows: pl.DataFrame) -> pl.DataFrame:
    return rows


class StagedTable:
    """One writer's share of an append-only Parquet table, published only once durable.

    ``day_column``: a Datetime in UTC that determines a row's day. ``sequence_column``: Int64, strictly increasing over
    all rows ever appended, with or without gaps; None numbers the rows in the order in which they are appended. The
    sequence number of a row is its value less ``layout.origin_of`` the writer.
    ``saved``: the value that the last durable ``snapshot()`` returned, None if there is no saved state. ``at_staging``:
    a last transformation of rows before they are written. ``still_ours``: raises if another process has taken over the
    table; it is called before each rename. ``aside``: publishes while the caller goes on; None to do it in
    ``snapshot()``.

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
        aside: Aside | None = None,
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
        self._buffered = Gathered()
        self._ahead = Ahead(lambda rows, first: self._pieces(at_staging(rows), first), self._metadata)
        # Whether a file of them has ended, because the epoch's end is near.
        self._has_ended = False
        # The sequence number of the first row since the last snapshot.
        self._first = self._next
        self._coverage = {name: value for name, value in without_rows(saved or {}).items() if name != _NEXT}
        self._aside = aside
        self._is_end_near = never if aside is None else aside.near()
        self._failed = False
        # Parts that are to be published, the oldest first, and what is before them. Another thread publishes those that
        # are durable, under the lock: it replaces ``_shown`` and then takes the part out, so whoever copies ``_parts``
        # before ``_shown`` misses nothing. Of the others it stages the first.
        self._lock = threading.Lock()
        self._shown = _Part(first=self._next, next_sequence=self._next, coverage=dict(self._coverage))
        self._parts: deque[_Part] = deque()
        self._n_ends = 0
        if saved is not None and _KEPT in saved:
            self._shown = _Part.of(saved[_SHOWN])
            self._parts.extend(map(_Part.of, saved[_KEPT]))
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
        return self._ahead.n_rows + self._buffered.n_rows

    @property
    def n_held(self) -> int:
        """The number of bytes of rows that the last state holds, at most."""
        return sum(part.n_bytes for part in list(self._parts))

    @property
    def is_ahead(self) -> bool:
        """Whether a file of rows since the last snapshot has begun, and gets those that come."""
        return self._ahead.is_open

    def is_file_due(self, n_rows: int = 0) -> bool:
        """Whether a file of the rows since the last snapshot should end now, because the epoch's end is near.

        ``n_rows``: so many are about to be appended.
        """
        enough = self.n_buffered + n_rows >= SOON_ROWS and not self._has_ended
        return enough and self._is_end_near()

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
        if not self.n_buffered:
            self._first = first
        self._buffered.append(rows)
        self._next = after
        if self._aside is None:
            return
        is_file_due = self.is_file_due()
        if is_file_due or self._buffered.n_rows * rows.width >= AHEAD_CELLS:
            self._hand_over()
            if is_file_due:
                self._ahead.end_file()
                self._has_ended = True
            self._aside.at_once(self._ahead.encode)

    def cover(self, coverage: Mapping[str, Any]) -> None:
        """Set the coverage that holds once the rows appended so far are published; a value of None is not known yet."""
        self._coverage.update({name: value for name, value in coverage.items() if value is not None})

    def files_ahead(self) -> Sequence[Piece]:
        """Return the files of rows since the last snapshot; none if no rows were encoded ahead.

        Those that came since a file ended, when the epoch's end was near, are in none. If a file has not ended, what is
        left is encoded first, which the calls of several tables may do in as many threads.
        """
        if not self._ahead.n_rows:
            return ()
        if self.is_ahead and self._buffered.n_rows:
            self._hand_over()
        return self._ahead.files()

    def kept(self, room: int = KEPT_BYTES) -> dict[str, Any] | None:
        """Return the state to resume from, with the rows that no file has; None if ``snapshot()`` must be called.

        ``room``: how many bytes of rows it may hold. Call it only when the previous state is durable.
        """
        if self._aside is None or self._failed:
            return None
        parts = list(self._parts)
        files = self.files_ahead()
        n_bytes = sum(part.n_bytes for part in parts) + _size(files)
        if self._buffered.n_rows:
            n_bytes += int(self._buffered.whole().estimated_size())
        if n_bytes > min(room, KEPT_BYTES) or len(parts) >= KEPT_PARTS:
            return None
        n_durable = self._n_ends
        coverage = dict(self._coverage)
        last = parts[-1] if parts else self._shown
        if self.n_buffered or last.coverage != coverage:
            rows = self._completed() if self._buffered.n_rows else None
            self._add(self._part(rows, b"" if rows is None else to_ipc([rows]), files))
        state = self._state()
        if self._parts:
            self._aside.soon(lambda: self._go_on_aside(n_durable))
        return state

    def snapshot(self) -> dict[str, Any]:
        """Publish what the state before holds or has staged, stage the rows since, and return the state to resume from.

        Call it only when the previous snapshot's return value is durable. After ``StoreUnavailable`` the call can be
        repeated: nothing is lost, and nothing is published twice.
        """
        with durable.disk(self._root), self._lock:
            self._publish_all()
            self._failed = False
            files = self.files_ahead()
            rows = self._completed() if self._buffered.n_rows else None
            part = self._part(rows, files=files)
            self._publication.stage(self._named(self._files_of(part)))
            self._add(part.staged())
        return self._state()

    def settle(self) -> None:
        """Publish all of the last state, when the flow has ended and that state is durable.

        Rows appended after it are not written; a resumed run gets them again.
        """
        with durable.disk(self._root), self._lock:
            self._publish_all()
            self._publication.end()

    def _state(self) -> dict[str, Any]:
        parts = list(self._parts)
        shown = self._shown
        if parts and parts[0].is_staged:
            shown = parts.pop(0)
        held = {_SHOWN: shown.saved(), _KEPT: [part.saved() for part in parts]}
        return {_NEXT: self._next, **self._coverage, **(held if parts else {})}

    def _recover(self, saved: Mapping[str, Any] | None) -> None:
        published, staged = self._publication.found()
        done = max((file.last for file in published), default=-1)
        while self._parts and self._parts[0].next_sequence <= done + 1:
            self._shown = self._parts.popleft()
        self._refuse_strangers(saved, published, staged)
        # What the state holds is staged again: an earlier run may have staged a part of it.
        begin = self._shown.next_sequence
        self._publication.begin(
            [file for file in staged if file.first < begin], [file for file in staged if file.first >= begin]
        )
        self._publication.publish(self._shown.coverage, self._shown.next_sequence)
        self._publish_all(past=done)
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
        shown = self._shown.next_sequence
        if shown > 0 and not any(file.first < shown <= file.last + 1 for file in (*published, *staged)):
            raise LayoutError(
                f"{self._root} lacks the rows of {self._writer} up to {shown - 1} that the saved state says were "
                "written: give the directory that the recovery store was used with, or start over without the store"
            )

    def _go_on_aside(self, n_durable: int) -> None:
        """Publish the parts of the first ``n_durable`` epochs' ends, and stage the next one.

        ``snapshot()`` may have done so meanwhile.
        """
        try:
            with self._lock:
                while self._parts and self._parts[0].number <= n_durable:
                    self._publish_first()
                if self._parts and not (part := self._parts[0]).is_staged:
                    self._publication.stage(self._named(self._files_of(part)))
                    self._parts[0] = part.staged()
        except Exception:  # noqa: BLE001  the next snapshot does it again, and reports what fails
            self._failed = True

    def _publish_all(self, past: int = -1) -> None:
        while self._parts:
            self._publish_first(past)

    def _publish_first(self, past: int = -1) -> None:
        """Publish the oldest part; ``past``: the last row that was published of it, if any."""
        part = self._parts[0]
        if not part.is_staged:
            self._publication.stage(self._named(self._files_of(part, past)))
        self._publication.publish(part.coverage, part.next_sequence)
        self._shown = part.staged()
        self._parts.popleft()

    def _files_of(self, part: _Part, past: int = -1) -> Iterator[Piece]:
        """Yield the files of a part that is not staged; ``past``: the last of its rows that was published, if any."""
        files = [file for file in part.files if file.last > past]
        rows, first = part.rows, part.first_of_rows
        if rows is not None and files and _size(files) <= MERGED_BYTES:
            rows, first = joined([*_read(files), rows]), files[0].first
            files = []
        yield from files
        if rows is not None:
            n_done = int(np.searchsorted(self._numbers(rows, first), past, side="right"))
            yield from self._encoded(rows.slice(n_done), first + n_done)

    def _part(self, rows: pl.DataFrame | None, data: bytes = b"", files: Sequence[Piece] = ()) -> _Part:
        """Return the part that this epoch has brought."""
        return _Part(
            first=self._first if self.n_buffered else self._next,
            next_sequence=self._next,
            coverage=dict(self._coverage),
            rows=rows,
            data=data,
            files=files,
            number=self._n_ends + 1,
        )

    def _add(self, part: _Part) -> None:
        self._n_ends = part.number
        self._parts.append(part)
        self._ahead.clear()
        self._buffered.clear()
        self._has_ended = False

    def _hand_over(self) -> None:
        """Let the rows that are buffered be encoded ahead of the epoch's end."""
        self._ahead.add(self._buffered.frames(), self._first + self._ahead.n_rows)
        self._buffered.clear()

    def _numbers(self, rows: pl.DataFrame, first: int) -> npt.NDArray[np.int64]:
        """Return the sequence numbers of rows; ``first``: that of the first one, for those that are numbered here."""
        if self._sequence_column is None:
            return np.arange(first, first + rows.height)
        return rows.get_column(self._sequence_column).to_numpy() - self._origin

    def _pieces(self, rows: pl.DataFrame, first: int) -> Iterator[Piece]:
        """Yield each run of consecutive rows of one day; ``first``: as in ``_numbers``."""
        numbers = self._numbers(rows, first)
        instants = rows.get_column(self._day_column).cast(pl.Int64).to_numpy()
        days = instants // DAY_US
        start = 0
        for end in (*(np.flatnonzero(np.diff(days)) + 1).tolist(), *([rows.height] if rows.height else [])):
            part = rows if end - start == rows.height else rows.slice(start, end - start)
            day = layout.day_directory(day_of(int(instants[start])))
            yield Piece(day, int(numbers[start]), int(numbers[end - 1]), part)
            start = end

    def _encoded(self, rows: pl.DataFrame, first: int) -> Iterator[Piece]:
        """Yield rows as files, one for each of their pieces."""
        for piece in self._pieces(rows, first):
            yield piece._replace(content=encode(piece.content, self._metadata))

    def _named(self, files: Iterable[Piece]) -> Iterator[tuple[str, str, bytes]]:
        """Yield name, day and content of files."""
        for file in files:
            yield layout.file_name(self._writer, file.first, file.last, self._publication.run), file.day, file.content

    def _completed(self) -> pl.DataFrame:
        return self._at_staging(self._buffered.whole())


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


def record_shards(root: Path, shards: Sequence[str], own: Container[str] | None = None, *, view: ViewPlan) -> None:
    """Write the list of shards of the log at ``root``, at the start of a run, before any of its coverage.

    ``view``: its definition and that of its stream stay with the log, so that it can be read, and the view computed,
    when nothing else holds them any more.
    Entries of earlier runs saying that a shard ended without a clock are removed, because this run may go further. In
    an object store these entries publish files too, and are replaced when their tables are opened.
    ``own``: the shards for which they are removed, if other processes, which may call this at the same time, write the
    others; None for all. Raises ``StoreUnavailable`` if the disk fails.
    """
    with durable.disk(root):
        path = layout.shards_file(root)
        durable.make_folder(path.parent)
        definitions = {layout.DEFINITION: describe_one(view.published), layout.STREAM: words_of(view.stream)}
        listed = {"shards": list(shards), **definitions}
        durable.replace(path, checksum.sealed_json(listed), at_once=True)
        before = None if isinstance(root, ObjectPath) else layout.read_coverage(root)
        for shard, coverage in before.shards.items() if before else ():
            if coverage.ended and (own is None or shard in own):
                layout.coverage_file(root, shard).unlink(missing_ok=True)


@contextlib.contextmanager
def recorded_shards(
    root: Path, shards: Sequence[str], own: Container[str] | None = None, *, view: ViewPlan
) -> Iterator[None]:
    """Call ``record_shards`` for a table that the body writes; if it fails before it has, leave nothing behind."""
    made = durable.missing(root)
    record_shards(root, shards, own, view=view)
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
        # Another process began and failed meanwhile.
        record_shards(root, shards, own, view=view)


def encode(rows: pl.DataFrame, metadata: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    rows.write_parquet(buffer, compression=COMPRESSION, compression_level=LEVEL, metadata=dict(metadata))
    return checksum.seal(buffer.getvalue())
