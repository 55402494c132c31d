r"""The changelog: a shard's events since its last base, in files beside the recovery store.

A shard's state is a base, which is the whole state as of some epoch, and the events applied since then, in order. So an
epoch costs only what it brought. The same kernel makes the same state from the base and these events; the sequence
number and the clock in the manifest verify it. The order of steps is the contract:

1. ``append`` notes events as they are applied. Another thread makes them durable in a file, many at once; a file only
   ever grows.
2. ``snapshot``, at the end of an epoch, returns the manifest: the files, the number of bytes of each that count, and
   the events that are in none of them. If these are few, the manifest keeps them itself, and another thread writes them
   to a file later; otherwise ``snapshot`` makes them durable in a file first. So shards with few events cost an
   epoch's end no fsync of their own: that of the recovery store makes all of them durable together.
3. The caller makes the manifest durable, with the rest of the epoch.
4. The next ``snapshot``, which is requested only when the epoch before is durable, removes the files that the manifest
   of that epoch no longer named.

When there are many events since the base, a new base is made from the old one and the files so far, which the flow no
longer writes. A separate thread reads them as a restart would, for one shard at a time. The bytes of a small state are
taken at once, and another thread writes them. The manifest after that names the base.

At a start, bytes past those that the manifest counts are cut off, and files that no manifest names are removed. The
events that the manifest keeps are written again. Files::

    state/changelog/{view}/{shard}/{number}.events    records: u32 length, u32 CRC-32, then events as Arrow IPC
    state/changelog/{view}/{shard}/{number}.base      ``ShardState.to_bytes`` as of the end of the events of that number
"""

import contextlib
import io
import logging
import os
import struct
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import BinaryIO

import msgspec
import polars as pl

from unskew.features.errors import LayoutError, StoreUnavailable
from unskew.features.kernel.repeats import Repeats
from unskew.features.plan import ViewPlan
from unskew.features.selecting import joined, own_texts
from unskew.features.shard_state import ShardState
from unskew.sinks import durable
from unskew.sinks.aside import Aside, never
from unskew.sinks.gathered import Gathered
from unskew.sinks.ipc import from_ipc, to_ipc

CHUNK_EVENTS = 5_000
"""Another thread makes so many events durable at once, between commits."""
SOON_EVENTS = 2_000
"""And so many, when an epoch's end is near, so that few are left to it."""
APPLIED_AT_ONCE = 100_000
SMALL_STATE = 50_000
"""The bytes of a state of at most so many entities, tiles and items are taken within a commit, in milliseconds."""
TAKEN_BYTES = 1 << 26
"""Once so many of them wait to be written, the bases of other shards wait for a later epoch's end."""
FIRST_BASES = (8, 4, 6, 2, 7, 3, 5, 1)
"""In eighths of the events after which others are: when the first small bases of successive shards are due.

So few are due together, also those after them, of shards with as many events.
"""
LEAST_EVENTS = 100_000
TILES_PER_EVENT = 4
"""A base is due when the events since the last one are at least the state's size, divided by this.

It bounds both the time of a restart and the work of making bases, which is then constant per event.
"""
KEPT_BYTES = 1 << 20
"""A manifest keeps at most so many bytes of events; more are made durable in a file within the commit."""
MOST_KEPT_BYTES = 1 << 26
"""All manifests of a process keep at most so many."""
ASIDE_BYTES = 1 << 15
"""Another thread writes the events that a manifest keeps once they are so many bytes: a file costs an fsync."""
LONGEST_FILE_BYTES = 1 << 26
WRITTEN_AT_ONCE = 1 << 23
PAUSE_S = 0.05
"""The pause after each ``WRITTEN_AT_ONCE`` bytes of a base that is made in the background, which is not urgent."""
GIVE_UP_S = 0.3
"""How long the end of a run waits for a base that is being made; its thread checks after every piece."""

Data = bytes | memoryview

_HEAD = struct.Struct("<II")

_log = logging.getLogger("unskew.state")


class EventsFile(msgspec.Struct, frozen=True):
    """A file of events as a manifest names it; ``newest_us``: the latest arrival in it."""

    number: int
    n_bytes: int
    n_events: int
    newest_us: int


class Kept(msgspec.Struct, frozen=True):
    """Events, encoded as in a file; ``newest_us``: the latest arrival among them."""

    data: bytes
    n_events: int
    newest_us: int


class Manifest(msgspec.Struct, frozen=True):
    """The parts of a shard's state.

    ``base``: the number of its base, 0 if it has none. ``base_bytes``: the length of the base. ``events``: files from
    old to new; those after the base are applied to it, and the others only give the ids of earlier events. ``applied``:
    all events so far. ``dropped``: all repeats so far. ``kept``: the events after all those files, which no file has.
    """

    fingerprint: str
    clock_us: int | None
    since_us: int | None
    seq: int
    applied: int
    dropped: int
    base: int
    base_bytes: int
    events: tuple[EventsFile, ...]
    kept: Kept | None = None

    @property
    def since_base(self) -> int:
        """The number of events that a restart applies."""
        kept = 0 if self.kept is None else self.kept.n_events
        return kept + sum(file.n_events for file in self.events if file.number > self.base)

    def names(self) -> set[str]:
        """Return the names of the files that the state needs."""
        return {events_name(file.number) for file in self.events} | ({base_name(self.base)} if self.base else set())

    def to_bytes(self) -> bytes:
        """Return the manifest as a recovery store or a seed holds it."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """Return what ``to_bytes`` wrote, also in an earlier version."""
        # Those kept no events, and wrote JSON.
        decode = msgspec.json.decode if data.startswith(b"{") else msgspec.msgpack.decode
        return decode(data, type=cls)


def events_name(number: int) -> str:
    return f"{number:08d}.events"


def base_name(number: int) -> str:
    return f"{number:08d}.base"


class Changelogs:
    """The changelogs of all shards of this process, under one folder.

    One thread writes, and one shard at a time gets a new base. ``still_ours``: raises if another process has taken over
    the folder; each changelog calls it before it creates or renames a file. ``going_on``: raises if the process should
    stop; it is called while events are applied to a saved state. ``kept_bytes``: how many bytes of events a manifest
    keeps at most; with 0, all of them are in files. ``aside``: does what an epoch's end leaves undone; None for the
    thread that writes.
    """

    def __init__(
        self,
        root: Path,
        still_ours: Callable[[], None] = lambda: None,
        going_on: Callable[[], None] = lambda: None,
        *,
        kept_bytes: int = 0,
        aside: Aside | None = None,
    ) -> None:
        self.root = root
        self._aside = aside
        self.kept_bytes = kept_bytes
        self.still_ours = still_ours
        self.going_on = going_on
        self.rebases = 0
        self._writer: ThreadPoolExecutor | None = None
        self._turn = threading.Lock()
        self._making: threading.Thread | None = None
        self._has_lacked_memory = False
        self._sizes: dict[Path, int] = {}
        self._kept: dict[Path, int] = {}
        self.n_kept = 0
        """The number of bytes of events that the manifests keep."""
        self.first_bases = cycle(FIRST_BASES)
        # The bytes of small states that wait to be written; other threads write them.
        self._n_taken = 0
        self._counting = threading.Lock()
        self.opened: list[Changelog] = []
        self.closed = threading.Event()

    def folder(self, view: ViewPlan, shard: str) -> Path:
        return self.root / view.id / shard

    def soon(self, write: Callable[[], None]) -> None:
        """Run a write in another thread."""
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, "unskew-changelog")
        self._writer.submit(write)

    def after_the_end(self, call: Callable[[], None]) -> None:
        """Run a call in another thread, once the epoch's end is over."""
        (self.soon if self._aside is None else self._aside.soon)(call)

    def near(self) -> Callable[[], bool]:
        """Return a function as ``Aside.near`` does."""
        return never if self._aside is None else self._aside.near()

    def aside(self, make: Callable[[], None]) -> bool:
        """Make a base in a separate thread, unless one is being made for another shard; return true if it has begun."""
        if not self._turn.acquire(blocking=False):
            return False

        def work() -> None:
            try:
                make()
                self.rebases += 1
            except MemoryError as error:
                self._lacks_memory(error)
            finally:
                self._turn.release()

        # A daemon: the end of a run does not wait long for it, and the next start removes an unfinished base.
        thread = threading.Thread(target=work, name="unskew-base", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            self._turn.release()
            self._lacks_memory(error)
            return False
        self._making = thread
        return True

    def _lacks_memory(self, error: Exception) -> None:
        if not self._has_lacked_memory:
            self._has_lacked_memory = True
            _log.warning(
                "this process lacks memory to write a shard's whole state anew (%s); it tries again, and until then its "
                "events stay on the disk, and a start takes longer; give it more memory",
                error,
            )

    @property
    def may_take(self) -> bool:
        """Whether the bytes of another small state may wait to be written."""
        return self._n_taken < TAKEN_BYTES

    def take(self, n_bytes: int) -> None:
        """Count bytes of a small state that begin to wait; negative if they no longer do."""
        with self._counting:
            self._n_taken += n_bytes

    def note_size(self, folder: Path, n_bytes: int, n_kept: int) -> None:
        self._sizes[folder] = n_bytes
        self.n_kept += n_kept - self._kept.get(folder, 0)
        self._kept[folder] = n_kept

    def room(self, folder: Path) -> int:
        """Return how many bytes of events the manifest of a shard may keep."""
        return min(self.kept_bytes, MOST_KEPT_BYTES - self.n_kept + self._kept.get(folder, 0))

    @property
    def n_bytes(self) -> int:
        """The number of bytes on disk that the shards' states need."""
        return sum(list(self._sizes.values()))

    def events(self, view: ViewPlan, shard: str, manifest: Manifest) -> Iterator[pl.DataFrame]:
        """Yield the events of a manifest, those in files and those that it keeps, in their order."""
        folder = self.folder(view, shard)
        for file in manifest.events:
            yield from _read(folder, file)
        yield from _read_kept(folder, manifest)

    def close(self) -> None:
        """End the threads; their unfinished work is not needed."""
        self.closed.set()
        if self._making is not None:
            self._making.join(GIVE_UP_S)
        if self._writer is not None:
            self._writer.shutdown(cancel_futures=True)
        for changelog in self.opened:
            changelog.close()


class Changelog:
    """The changelog of one shard.

    ``saved``: the last durable manifest; None if there is none. ``applied``: number of all events so far. Raises
    ``StoreUnavailable`` if the disk fails; every call can then be repeated.
    """

    def __init__(self, all_of_them: Changelogs, view: ViewPlan, shard: str, saved: Manifest | None) -> None:
        self.view = view
        self.shard = shard
        self.folder = all_of_them.folder(view, shard)
        self._all = all_of_them
        self.applied = 0 if saved is None else saved.applied
        self._files: list[EventsFile] = [] if saved is None else list(saved.events)
        self._base, self._base_bytes = (0, 0) if saved is None else (saved.base, saved.base_bytes)
        self._number = 1 + max([self._base, *(file.number for file in self._files)])
        self._named: set[str] = set() if saved is None else saved.names()
        self._outgoing: set[str] = set()
        self._is_end_near = all_of_them.near()
        self._first_base = next(all_of_them.first_bases)
        self._waiting = Gathered()
        # Shared with the writing thread, under the lock.
        self._lock = threading.Lock()
        self._chunks: deque[_Chunk] = deque()
        if saved is not None and saved.kept is not None:
            self._chunks.append(_Chunk(kept=saved.kept))
        self._current: Growing | None = None
        self._made: tuple[int, int] | None = None
        self._making = False
        self._fault: LayoutError | None = None
        all_of_them.opened.append(self)
        with durable.disk(self.folder):
            self._clean(saved)

    def append(self, events: pl.DataFrame) -> None:
        """Note events that are being applied, in their order."""
        if not events.height:
            return
        self._waiting.append(events)
        self.applied += events.height
        n_waiting = self._waiting.n_rows
        if n_waiting >= CHUNK_EVENTS or (n_waiting >= SOON_EVENTS and self._is_end_near()):
            self._hand_over()
            self._all.soon(self._write_aside)

    def snapshot(self, state: ShardState, dropped: int) -> Manifest:
        """Make the noted events durable, and return what to continue from; the module says when to call it."""
        with durable.disk(self.folder):
            if self._outgoing:
                # In another thread, because removing a large file takes long. The next start removes what is left.
                outgoing, self._outgoing = self._outgoing, set()
                self._all.after_the_end(lambda: self._remove(outgoing))
            self._hand_over()
            with self._lock:
                may_keep = self._may_keep()
                if self._current is not None or not may_keep:
                    # What is open may not be what has the name by now.
                    self._all.still_ours()
                if not may_keep:
                    self._write_durably()
                self._adopt()
                self._rebase_if_due(state, dropped)
                self._let_go(state.clock_us)
                manifest = self._manifest(state, dropped)
        names = manifest.names()
        self._outgoing = self._named - names
        self._named = names
        n_kept = 0 if manifest.kept is None else len(manifest.kept.data)
        self._all.note_size(self.folder, self._base_bytes + sum(file.n_bytes for file in manifest.events), n_kept)
        if n_kept >= ASIDE_BYTES:
            self._all.after_the_end(self._write_aside)
        return manifest

    def close(self) -> None:
        """Close the open file."""
        self._roll()

    def _manifest(self, state: ShardState, dropped: int) -> Manifest:
        return Manifest(
            fingerprint=state.view.state_fingerprint,
            clock_us=state.clock_us,
            since_us=state.since_us,
            seq=state.seq,
            applied=self.applied,
            dropped=dropped,
            base=self._base,
            base_bytes=self._base_bytes,
            events=(*self._files, *([] if self._current is None else [self._current.described()])),
            kept=_joined([chunk.encoded() for chunk in self._chunks]),
        )

    def _may_keep(self) -> bool:
        """Return whether the manifest may keep the events that are in no file yet."""
        if self._current is not None and not self._current.is_durable:
            return False
        return sum(len(chunk.encoded().data) for chunk in self._chunks) <= self._all.room(self.folder)

    def _hand_over(self) -> None:
        if self._waiting.n_rows:
            self._chunks.append(_Chunk(self._waiting.frames()))
            self._waiting.clear()

    def _remove(self, names: set[str]) -> None:
        # They may belong to another process by now; the next epoch's end reports it.
        with contextlib.suppress(LayoutError):
            self._all.still_ours()
            for name in sorted(names):
                with contextlib.suppress(OSError):
                    (self.folder / name).unlink()

    def _write_aside(self) -> None:
        """Make durable what no file has, so that the next manifest need not keep it.

        A failure is not reported; the next snapshot tries again and reports it.
        """
        with contextlib.suppress(OSError), self._lock:
            self._write_durably()

    def _write_durably(self) -> None:
        self._write()
        if self._current is not None:
            self._current.sync()

    def _write(self) -> None:
        while self._chunks:
            if self._current is None:
                durable.make_folder(self.folder)
                self._current = Growing(self.folder, self._number, self._all.still_ours)
                self._number += 1
            self._current.add(self._chunks[0].encoded())
            self._chunks.popleft()

    def _roll(self) -> None:
        """Continue in another file."""
        if self._current is not None:
            self._files.append(self._current.described())
            self._current.close()
            self._current = None

    def _adopt(self) -> None:
        """Replace the files from which a base was made by that base."""
        if self._fault is not None:
            raise self._fault
        if self._made is None:
            return
        self._base, self._base_bytes = self._made
        self._made = None

    def _rebase_if_due(self, state: ShardState, dropped: int) -> None:
        if self._current is not None and self._current.n_bytes >= LONGEST_FILE_BYTES:
            self._roll()
        # In this order: a base may be finished meanwhile.
        if self._making or self._made is not None:
            return
        size = len(state) + state.n_tiles + state.n_items
        since = sum(file.n_events for file in self._files if file.number > self._base)
        since += 0 if self._current is None else self._current.n_events
        since += sum(chunk.encoded().n_events for chunk in self._chunks)
        if size <= SMALL_STATE:
            due = size + LEAST_EVENTS // TILES_PER_EVENT
            if since >= max(1, due if self._base else due * self._first_base // 8) and self._all.may_take:
                self._write_durably()
                self._roll()
                number, data = self._files[-1].number, state.to_bytes()
                self._all.take(len(data))
                self._making = True
                self._all.after_the_end(lambda: self._make_base(number, lambda: self._write_taken(number, data)))
            return
        if since < max(LEAST_EVENTS, size // TILES_PER_EVENT):
            return
        # A base ends where a file does.
        self._write_durably()
        self._roll()
        manifest = self._manifest(state, dropped)
        number = self._files[-1].number
        # Before its thread begins: that may end at once, and says so here.
        self._making = True
        if not self._all.aside(lambda: self._make_base(number, lambda: self._compute_base(number, manifest))):
            self._making = False

    def _compute_base(self, number: int, manifest: Manifest) -> int | None:
        state = _applied(self.folder, self.view, self.shard, manifest, self._all.closed)
        if state is None:
            return None
        n_bytes = self._write_base(number, state.to_pieces(), pause_s=PAUSE_S)
        state.dissolve()
        return n_bytes

    def _write_taken(self, number: int, data: bytes) -> int | None:
        try:
            return self._write_base(number, [data])
        finally:
            self._all.take(-len(data))

    def _write_base(self, number: int, pieces: Iterable[Data], pause_s: float = 0.0) -> int | None:
        return write_base(self.folder, number, pieces, self._all.closed, self._all.still_ours, pause_s=pause_s)

    def _make_base(self, number: int, make: Callable[[], int | None]) -> None:
        """Make a base aside; ``make`` returns its length, and None if the process ends."""
        try:
            n_bytes = make()
            if n_bytes is not None:
                self._made = number, n_bytes
        except (OSError, StoreUnavailable):
            # The next snapshots try again; a full disk stops those too, and they report it.
            with contextlib.suppress(OSError):
                (self.folder / base_name(number)).with_suffix(".tmp").unlink(missing_ok=True)
        except LayoutError as error:
            self._fault = error
        finally:
            self._making = False

    def _let_go(self, clock_us: int | None) -> None:
        """Drop from the list the files that the base covers, except those with ids that may still be repeated."""
        within_us = self.view.stream.dedupe_within_us
        if within_us is None or clock_us is None:
            self._files = [file for file in self._files if file.number > self._base]
            return
        self._files = [
            file for file in self._files if file.number > self._base or file.newest_us >= clock_us - within_us
        ]

    def _clean(self, saved: Manifest | None) -> None:
        if not self.folder.is_dir():
            return
        remove(self.folder, except_for=self._named)
        for file in () if saved is None else saved.events:
            path = self.folder / events_name(file.number)
            if path.exists() and path.stat().st_size > file.n_bytes:
                os.truncate(path, file.n_bytes)


def remove(folder: Path, *, except_for: set[str]) -> None:
    """Remove the files of a shard that no manifest names."""
    for path in folder.iterdir():
        if path.name not in except_for:
            path.unlink()


def restored(
    all_of_them: Changelogs, view: ViewPlan, shard: str, manifest: Manifest
) -> tuple[ShardState, Repeats | None]:
    """Return a shard's state and the ids of its repeats as saved.

    Raises ``LayoutError`` if a file is gone or damaged, or if the definition has changed.
    """
    folder = all_of_them.folder(view, shard)
    if manifest.fingerprint != view.state_fingerprint:
        raise LayoutError(
            f"{view.id}: its state in shard {shard} is that of another definition (fingerprint "
            f"{manifest.fingerprint[:12]}, now {view.state_fingerprint[:12]}); give the changed view the version "
            f"{view.version + 1}, see that 'unskew check' accepts it, and start 'unskew run' again with the same folders: "
            "all other views continue, and the new version begins where they are"
        )
    state = _applied(folder, view, shard, manifest, threading.Event(), all_of_them.going_on)
    assert state is not None
    within_us = view.stream.dedupe_within_us
    if within_us is None:
        return state, None
    repeats = Repeats(view, shard)
    clock_us = manifest.clock_us
    for file in manifest.events:
        if clock_us is None or file.newest_us < clock_us - within_us:
            continue
        for events in _read(folder, file):
            all_of_them.going_on()
            repeats.drop(events, int(events.item(-1, "arrival")))
    for events in _read_kept(folder, manifest):
        repeats.drop(events, int(events.item(-1, "arrival")))
    if clock_us is not None:
        repeats.drop(None, clock_us)
    repeats.dropped = manifest.dropped
    return state, repeats


def _applied(
    folder: Path,
    view: ViewPlan,
    shard: str,
    manifest: Manifest,
    closed: threading.Event,
    going_on: Callable[[], None] = lambda: None,
) -> ShardState | None:
    """Return the manifest's base with its events applied; None if ``closed`` is set meanwhile."""
    state = read_base(folder, view, shard, manifest)
    # Set before the events, because the state would otherwise begin at the first arrival among them.
    state.since_us = manifest.since_us
    files = [_read(folder, file) for file in manifest.events if file.number > manifest.base]
    for part in (*files, _read_kept(folder, manifest)):
        for events in _gathered(part):
            if closed.is_set():
                return None
            going_on()
            state.replay(events, int(events.item(-1, "arrival")))
    if manifest.clock_us is not None:
        state.replay(None, manifest.clock_us)
    if (state.seq, state.clock_us) != (manifest.seq, manifest.clock_us):
        raise LayoutError(
            f"{folder}: base and events give {state.seq} rows up to {state.clock_us}, but the recovery store says "
            f"{manifest.seq} up to {manifest.clock_us}: the files do not belong to it, or another version of unskew wrote them; "
            + REMEDY
        )
    return state


REMEDY = (
    "stop, restore the state folder and the log from one backup, or start over: 'unskew run' with an empty --state, --log, "
    "--archive and --dead-letters"
)


def read_base(folder: Path, view: ViewPlan, shard: str, manifest: Manifest) -> ShardState:
    """Return the state of a manifest's base alone, without the events since."""
    if not manifest.base:
        return ShardState(view, shard)
    path = folder / base_name(manifest.base)
    with _open(path, manifest.base_bytes) as file:
        try:
            return ShardState.from_bytes(view, shard, file)
        except LayoutError as error:
            raise LayoutError(f"{path} is damaged ({error}); {REMEDY}") from error
        except OSError as error:
            raise StoreUnavailable(f"cannot read {path}: {error.strerror}") from error


def _read(folder: Path, file: EventsFile) -> Iterator[pl.DataFrame]:
    """Yield the events of a file, record by record."""
    path = folder / events_name(file.number)
    with _open(path, file.n_bytes) as stream:
        yield from _records(stream, file.n_bytes, str(path))


def _read_kept(folder: Path, manifest: Manifest) -> Iterator[pl.DataFrame]:
    """Yield the events that a manifest keeps."""
    if manifest.kept is not None:
        data = manifest.kept.data
        yield from _records(io.BytesIO(data), len(data), f"what the recovery store keeps of {folder}")


def _records(stream: BinaryIO, n_bytes: int, what: str) -> Iterator[pl.DataFrame]:
    place = 0
    while place < n_bytes:
        head = stream.read(_HEAD.size)
        length, checksum = _HEAD.unpack(head) if len(head) == _HEAD.size else (0, 0)
        body = stream.read(length)
        place += _HEAD.size + length
        if not body or len(body) != length or place > n_bytes or zlib.crc32(body) != checksum:
            raise LayoutError(
                f"{what} is damaged: the record that ends at byte {place} of {n_bytes} does not match its checksum; "
                + REMEDY
            )
        yield from_ipc(body)


def _gathered(frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Yield the same events in fewer and larger frames."""
    held: list[pl.DataFrame] = []
    n_held = 0
    for frame in frames:
        held.append(frame)
        n_held += frame.height
        if n_held >= APPLIED_AT_ONCE:
            yield pl.concat(held)
            held, n_held = [], 0
    if held:
        yield pl.concat(held)


def _open(path: Path, n_bytes: int) -> BinaryIO:
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise LayoutError(f"{path} is gone, and the recovery store needs it; {REMEDY}") from error
    except OSError as error:
        raise StoreUnavailable(f"cannot read {path}: {error.strerror}") from error
    found = os.fstat(file.fileno()).st_size
    if found < n_bytes:
        file.close()
        raise LayoutError(f"{path} is damaged: it has {found} bytes of {n_bytes}; {REMEDY}")
    return file


class _Chunk:
    """Events that are in no file yet, encoded once."""

    def __init__(self, frames: list[pl.DataFrame] | None = None, kept: Kept | None = None) -> None:
        self._frames = frames
        self._kept = kept

    def encoded(self) -> Kept:
        if self._kept is None:
            assert self._frames is not None
            self._kept = encoded(self._frames)
            self._frames = None
        return self._kept


def encoded(frames: Sequence[pl.DataFrame]) -> Kept:
    """Return events as a record of a file; no frame is empty."""
    body = to_ipc([own_texts(joined(frames))])
    n_events = sum(frame.height for frame in frames)
    return Kept(_HEAD.pack(len(body), zlib.crc32(body)) + body, n_events, int(frames[-1].item(-1, "arrival")))


def _joined(parts: list[Kept]) -> Kept | None:
    if not parts:
        return None
    return Kept(b"".join(part.data for part in parts), sum(part.n_events for part in parts), parts[-1].newest_us)


class Growing:
    """A file of events that is being written; the next write overwrites what a failed one left behind."""

    def __init__(self, folder: Path, number: int, still_ours: Callable[[], None]) -> None:
        self.number = number
        self.n_bytes = 0
        self.n_events = 0
        self._newest_us = 0
        self._synced = 0
        still_ours()
        self._file = durable.create(folder / events_name(number))
        try:
            durable.sync(folder)
        except OSError:
            self.close()
            raise

    @property
    def is_durable(self) -> bool:
        return self._synced == self.n_bytes

    def add(self, events: Kept) -> None:
        durable.write_at(self._file, events.data, self.n_bytes)
        self.n_bytes += len(events.data)
        self.n_events += events.n_events
        self._newest_us = events.newest_us

    def sync(self) -> None:
        if not self.is_durable:
            os.fdatasync(self._file)
            self._synced = self.n_bytes

    def described(self) -> EventsFile:
        return EventsFile(self.number, self.n_bytes, self.n_events, self._newest_us)

    def close(self) -> None:
        os.close(self._file)


def write_base(
    folder: Path,
    number: int,
    pieces: Iterable[Data],
    closed: threading.Event,
    still_ours: Callable[[], None],
    *,
    pause_s: float = 0.0,
) -> int | None:
    """Write a base, whole and durable or not at all, and return its length; None if ``closed`` is set meanwhile.

    ``pieces``: the bytes of the state. ``pause_s``: pause after every ``WRITTEN_AT_ONCE`` bytes.
    """
    path = folder / base_name(number)
    temporary = path.with_suffix(".tmp")
    with durable.new_file(temporary) as file:
        n_since = 0
        for piece in pieces:
            part = memoryview(piece).cast("B")
            for begin in range(0, len(part), WRITTEN_AT_ONCE):
                n_since += file.write(part[begin : begin + WRITTEN_AT_ONCE])
                if n_since >= WRITTEN_AT_ONCE:
                    n_since = 0
                    file.flush()
                    # Begin to write it to the disk, without waiting. Otherwise the end of an epoch, which makes little
                    # durable, would queue behind all of it; without the pause it would do so all the same.
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    closed.wait(pause_s)
                if closed.is_set():
                    return None
        durable.flush(file)
        n_bytes = file.tell()
    if closed.is_set():
        return None
    durable.rename(temporary, path, still_ours)
    return n_bytes
