r"""The journal: what a process decided about records, durable before anything that depends on it is shown.

A topic holds each record's timestamp. It does not hold which marks a partition announced, which records were refused
because their timestamps lay past the present, or where a partition without saved state began. Values in Redis depend on
these decisions long before the epoch is durable, so a restart must find them. The order of steps is the contract:

1. The source notes each decision (``Placed``, ``Refused``), and another thread begins to write it to the disk.
2. The router decodes the poll, notes which records it refused because of another server's answer, and calls ``ensure``,
   which returns once all of this is on the disk and the process still holds its lease. Only then do slices go to the
   shards.
3. When an epoch is durable, ``durable`` drops the facts that the recovery store now holds.

A restart requests the ``Script`` of each partition. It places the records below ``until`` as they were placed,
announces each mark at the offset at which it was announced, and decides for itself from there on.

Each process of a deployment has one file. It holds facts, which stay true: a stale fact does no harm, and a fact may
occur twice. The file is appended to. At the start, and when it has grown long, a shorter file replaces it. A process
that stood still while another took over still has the old file open, and writes where nobody reads. A torn last record
is ignored. Files::

    state/journal/{process}.journal    records: u32 length, u32 CRC-32, then JSON; the first
                                       holds layout and state, each other one the facts of one write
"""

import os
import threading
import time
import zlib
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from operator import itemgetter
from pathlib import Path
from struct import Struct

import msgspec

from unskew.features.errors import LayoutError, StoreUnavailable
from unskew.features.rejection import Kind
from unskew.pipelines.progress import Durations
from unskew.sinks import durable

LAYOUT = 1
LONGEST_BYTES = 1 << 16
"""A longer file is replaced, at the next durable epoch, by one with only the facts that no recovery store holds."""

_HEAD = Struct("<II")
# The first bytes of the body of a record of facts.
_BEGIN = b'[["'
_SUFFIX = ".journal"
_READS = 5


class Placed(msgspec.Struct, frozen=True, array_like=True, tag="placed"):
    """A partition went from offset ``begins`` to ``next``, and its clock was ``clock_us`` then.

    ``floor_us``: the clock that the partition announced at ``begins``, before any record there; None if only records
    moved the clock. ``ended``: the partition reached its end offset and left the minimum over partitions. Clocks are
    None before the first. ``n_partitions``: how many partitions the stream had; None if an earlier version noted this.
    ``schema_id``: the schema id with which the partition's records began; None if not known.
    """

    place: str
    begins: int
    next: int
    clock_us: int | None
    floor_us: int | None = None
    ended: bool = False
    n_partitions: int | None = None
    schema_id: int | None = None


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="refused"):
    """Records of a partition became dead letters for a reason that may not hold at another moment.

    ``runs``: first and last offset of each run of such records. ``kind``: the kind of dead letter. ``reason``: the
    reason that all share; empty if the source makes it from each record.
    """

    place: str
    runs: tuple[tuple[int, int], ...]
    kind: Kind
    reason: str

    @classmethod
    def of(cls, place: str, offsets: Sequence[int], kind: Kind, reason: str) -> "Refused":
        """Make the fact from ``offsets``: ascending, at least one."""
        runs: list[tuple[int, int]] = []
        for offset in offsets:
            if runs and offset == runs[-1][1] + 1:
                runs[-1] = runs[-1][0], offset
            else:
                runs.append((offset, offset))
        return cls(place, tuple(runs), kind, reason)


Fact = Placed | Refused


class _Head(msgspec.Struct, frozen=True):
    layout: int
    state: str


class Script:
    """The decisions about one partition past its saved place, for a restart to repeat.

    ``begins``: the first offset that they cover. ``until``: records below this offset are decided. ``clock_us``: the
    partition's clock after all of them; None if it has none. ``marks``: (offset, clock) of each announced clock, in
    order. ``ended``: the partition ended at ``until``. ``schema_id``: as in ``Placed``.
    """

    def __init__(self, facts: Iterable[Fact]) -> None:
        facts = list(facts)
        placed = [fact for fact in facts if isinstance(fact, Placed)]
        self.begins = min((fact.begins for fact in placed), default=0)
        self.until = max((fact.next for fact in placed), default=0)
        self.clock_us = max((fact.clock_us for fact in placed if fact.clock_us is not None), default=None)
        self.ended = any(fact.ended for fact in placed if fact.next == self.until)
        self.schema_id = next((fact.schema_id for fact in placed if fact.schema_id is not None), None)
        self.marks: deque[tuple[int, int]] = deque()
        for offset, mark_us in sorted((fact.begins, fact.floor_us) for fact in placed if fact.floor_us is not None):
            if not self.marks or mark_us > self.marks[-1][1]:
                self.marks.append((offset, mark_us))
        refused = [(run, fact) for fact in facts if isinstance(fact, Refused) for run in fact.runs]
        self._refused = sorted(refused, key=itemgetter(0))

    def refused(self, first: int, last: int) -> Iterator[tuple[int, Refused]]:
        """Yield each refused offset from ``first`` to ``last``, with the fact that gives the reason."""
        # Runs may occur twice, but do not overlap otherwise.
        place = bisect_left(self._refused, first, key=lambda one: one[0][1])
        for (begin, end), fact in self._refused[place:]:
            if begin > last:
                return
            for offset in range(max(first, begin), min(last, end) + 1):
                yield offset, fact


class Journal:
    """The journal of this process; at the start it reads those of all processes of the deployment.

    ``state``: names the history; facts of other histories are not read. ``process``, ``n_processes``: this process's
    number and how many there are; it takes over the journals of higher numbers. ``durably``: repeats a call that raises
    ``StoreUnavailable`` until it succeeds. ``still_ours``: raises if another process has taken over.

    ``note``, ``ensure``, ``script`` and ``durable`` are for one thread. ``waits``: how long ``ensure`` took. Raises
    ``LayoutError`` for files of another version.
    """

    def __init__(
        self,
        folder: Path,
        state: str,
        *,
        process: int = 0,
        n_processes: int = 1,
        durably: Callable[[Callable[[], None]], None],
        still_ours: Callable[[], None],
    ) -> None:
        self._folder = folder
        self._path = folder / f"{process}{_SUFFIX}"
        self._head = _Head(LAYOUT, state)
        self._durably = durably
        self.still_ours = still_ours
        self._found: dict[str, list[Fact]] = {}
        self._live: dict[str, list[Fact]] = {}
        self._owned: set[str] = set()
        self._orphans: list[Path] = []
        found = self._read_all()
        # True if any process of the deployment left a journal.
        self.existed = bool(found)
        for path, facts in found.items():
            number = int(path.stem)
            if number >= n_processes:
                self._orphans.append(path)
            for fact in facts:
                self._found.setdefault(fact.place, []).append(fact)
                if number == process or number >= n_processes:
                    self._live.setdefault(fact.place, []).append(fact)
        self.waits = Durations()
        # All facts noted so far; only the flow's thread writes it. ``_durable`` says how many of them are on the disk;
        # only the holder of the lock writes it.
        self.noted = 0
        self._pending: deque[Fact] = deque()
        self._writing = threading.Lock()
        self._durable = 0
        self._unwritten: list[Fact] = []
        self._file: int | None = None
        self._unsynced: set[Path] = set()
        self._end = 0
        self._failed = False
        self._aside: ThreadPoolExecutor | None = None
        self._begun = False
        self._replacing = False

    def latest_us(self, stream: str) -> int | None:
        """Return the latest clock noted for any partition of a stream before this start; None if there is none.

        The journals of all processes count.
        """
        return max((fact.clock_us for fact in self._placed(stream) if fact.clock_us is not None), default=None)

    def n_partitions(self, stream: str) -> int | None:
        """Return the least number of partitions that a stream had before this start; None if nothing is noted.

        The journals of all processes count. They keep the last place of every partition that was read.
        """
        placed = list(self._placed(stream))
        n_places = len({fact.place for fact in placed})
        return min((fact.n_partitions or n_places for fact in placed), default=None)

    def _placed(self, stream: str) -> Iterator[Placed]:
        prefix = place_of(stream, "")
        for place, facts in self._found.items():
            if place.startswith(prefix):
                yield from (fact for fact in facts if isinstance(fact, Placed))

    def schema_ids(self, stream: str) -> dict[str, int]:
        """Return, by place, the schema ids with which the records of a stream began, as noted before this start.

        The journals of all processes count.
        """
        return {fact.place: fact.schema_id for fact in self._placed(stream) if fact.schema_id is not None}

    def script(self, place: str, offset: int | None, clock_us: int | None) -> Script | None:
        """Return the decisions about a partition of this process past its saved place; None if there are none.

        ``offset``, ``clock_us``: the saved place; None if nothing is saved.
        """
        self._owned.add(place)
        facts = [fact for fact in self._found.get(place, ()) if _is_past(fact, offset, clock_us)]
        self._live[place] = facts
        return Script(facts) if any(isinstance(fact, Placed) for fact in facts) else None

    def note(self, fact: Fact) -> int:
        """Take a fact, and return a ticket for ``ensure`` and ``holds``."""
        facts = self._live.setdefault(fact.place, [])
        merged = _merged(facts[-2:], fact)
        if merged is None:
            facts.append(fact)
        else:
            facts[-1] = merged
        self._pending.append(fact)
        self.noted += 1
        return self.noted

    def begin(self) -> None:
        """Write the noted facts in another thread."""
        if self._begun:
            return
        self._begun = True
        self._soon(self._write_quietly)

    def holds(self, ticket: int) -> bool:
        """Return true if ``ensure`` would return at once, or would have to deal with a failed write."""
        return self._durable >= ticket or self._failed

    def ensure(self, ticket: int) -> None:
        """Return once the facts up to ``ticket`` are durable and this process still holds its lease.

        Waits while the disk is unavailable. Raises ``LayoutError`` if another process holds the lease.
        """
        began_s = time.monotonic()
        if self._durable < ticket:
            self._durably(self._write)
        if ticket:
            self.waits.note(time.monotonic() - began_s)
        # After the write: a process that takes over takes the lease first and reads the journals then.
        self.still_ours()

    def durable(self, place: str, offset: int, clock_us: int | None) -> None:
        """Drop the facts about a partition that the recovery store holds durably, now that it is at this place."""
        for other in self._live.keys() - self._owned:
            # Another process reads this partition, and the epoch is durable for it too.
            del self._live[other]
        facts = self._live.get(place, [])
        kept = [fact for fact in facts if _is_past(fact, offset, clock_us)]
        # The last place stays: a partition that had ended and continues needs to know how far the others have come.
        if not any(isinstance(fact, Placed) for fact in kept):
            kept += [fact for fact in facts if isinstance(fact, Placed)][-1:]
        self._live[place] = kept
        if self._end > LONGEST_BYTES and not self._replacing:
            self._replacing = True
            self._soon(self._replace_quietly)

    def close(self) -> None:
        """End the thread, and close the file."""
        if self._aside is not None:
            self._aside.shutdown()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _soon(self, work: Callable[[], None]) -> None:
        if self._aside is None:
            self._aside = ThreadPoolExecutor(1, "unskew-journal")
        self._aside.submit(work)

    def _write_quietly(self) -> None:
        # Reset first: a fact that is noted from here on needs another write.
        self._begun = False
        with suppress(StoreUnavailable):
            self._write()

    def _write(self) -> None:
        with self._writing:
            noted = self.noted
            if self._durable >= noted:
                return
            while self._pending:
                self._unwritten.append(self._pending.popleft())
            # One record, whose checksum shows whether all of it reached the disk.
            data = _record(self._unwritten)
            try:
                with durable.disk(self._folder):
                    if self._file is None:
                        self._replace()
                    assert self._file is not None
                    # A replacement may have left this undone; without it, a loss of power would restore the old file.
                    durable.sync_folders(self._unsynced)
                    # This overwrites whatever a failed try left behind the end.
                    durable.write_at(self._file, data, self._end)
                    os.fdatasync(self._file)
            except StoreUnavailable:
                self._failed = True
                raise
            self._end += len(data)
            self._unwritten = []
            self._failed = False
            self._durable = noted

    def _replace_quietly(self) -> None:
        try:
            with suppress(OSError), self._writing:
                self._replace()
        finally:
            self._replacing = False

    def _replace(self) -> None:
        """Continue in a new file with the facts that no recovery store holds.

        Raises ``OSError``. The file in use is then the one that has the name; the name may not be durable yet.
        """
        # No fact of the old file is lost: ``note`` adds a fact to these lists before it hands the fact to the writer.
        facts = [fact for facts in list(self._live.values()) for fact in list(facts)]
        data = _image(self._head, facts)
        durable.make_folder(self._folder, self._unsynced)
        temporary = self._path.with_suffix(".tmp")
        file = durable.create(temporary)
        try:
            durable.write_at(file, data, 0)
            os.fsync(file)
            durable.rename(temporary, self._path, self.still_ours, self._unsynced)
        except BaseException:
            os.close(file)
            raise
        if self._file is not None:
            os.close(self._file)
        self._file, self._end = file, len(data)
        durable.sync_folders(self._unsynced)
        for path in self._orphans:
            path.unlink(missing_ok=True)
        self._orphans = []

    def _read_all(self) -> dict[Path, list[Fact]]:
        """Read the facts of every file; other processes may replace their files meanwhile."""
        for _ in range(_READS):
            found: dict[Path, list[Fact]] = {}
            try:
                for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
                    found[path] = self._read(path)
            except FileNotFoundError:
                continue
            return found
        raise StoreUnavailable(f"cannot read {self._folder}: its files keep changing")

    def _read(self, path: Path) -> list[Fact]:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise LayoutError(f"{path} cannot be read ({error.strerror}); make it readable, or {_WITHOUT}") from error
        head, facts = _parse(path, data)
        return facts if head.state == self._head.state else []


_WITHOUT = (
    "restore it from the backup that holds the state, or remove it: values that were shown since the last durable epoch may then "
    "be contradicted by the log"
)
_FACTS = msgspec.json.Decoder(list[Fact])


def place_of(stream: str, name: str) -> str:
    """Return the name that facts use for a partition.

    ``stream``: the stream's topic. ``name``: the broker's name of the partition.
    """
    return f"{stream} {name}"


def _is_past(fact: Fact, offset: int | None, clock_us: int | None) -> bool:
    """Return true if a fact goes beyond a saved place."""
    if offset is None:
        return True
    if isinstance(fact, Refused):
        return fact.runs[-1][1] >= offset
    return fact.next > offset or (fact.clock_us is not None and (clock_us is None or fact.clock_us > clock_us))


def _merged(last: Sequence[Fact], fact: Fact) -> Fact | None:
    """Merge the next fact into the last one; None if both are needed.

    One fact is enough for consecutive places that only records led to. Of the marks at one offset, the first is needed,
    because a shard's coverage may begin there, and the latest.
    """
    if not last or not isinstance(last[-1], Placed) or not isinstance(fact, Placed):
        return None
    before = last[-1]
    if before.n_partitions != fact.n_partitions:
        # A start that finds no place of a partition must know that the stream was once read without it.
        return None
    if before.floor_us is None and fact.floor_us is None:
        return msgspec.structs.replace(fact, begins=before.begins)
    if len(last) < 2 or not isinstance(last[0], Placed):
        return None
    marks = [one for one in (*last, fact) if isinstance(one, Placed) and one.floor_us is not None]
    same = len(marks) == 3 and marks[0].begins == marks[1].begins == marks[2].begins
    return fact if same and marks[1].next == marks[1].begins else None


def _record(content: _Head | Sequence[Fact]) -> bytes:
    body = msgspec.json.encode(content)
    return _HEAD.pack(len(body), zlib.crc32(body)) + body


def _image(head: _Head, facts: Sequence[Fact]) -> bytes:
    """Return the bytes of a whole file."""
    return _record(head) + _record(facts)


def _body(data: bytes, at: int) -> bytes | None:
    """Return the body of the record at ``at``; None if there is no complete one."""
    if not 0 <= at <= len(data) - _HEAD.size:
        return None
    length, checksum = _HEAD.unpack_from(data, at)
    body = data[at + _HEAD.size : at + _HEAD.size + length]
    # Zeros, which a file system may leave at the end of a file, would be a record without a body.
    return body if body and len(body) == length and zlib.crc32(body) == checksum else None


def _parse(path: Path, data: bytes) -> tuple[_Head, list[Fact]]:
    """Return the content of a file, up to a torn last record.

    A record is written once the one before it is durable, so only the last one can be torn. Raises ``LayoutError`` for
    a damaged file or one of another version.
    """
    bodies: list[bytes] = []
    at = 0
    while (body := _body(data, at)) is not None:
        bodies.append(body)
        at += _HEAD.size + len(body)
    later = at + _HEAD.size
    while bodies and (later := data.find(_BEGIN, later + 1)) >= 0:
        if _body(data, later - _HEAD.size) is not None:
            break
    if not bodies or later >= 0:
        raise LayoutError(f"{path} is damaged: the record at byte {at} does not match its checksum; {_WITHOUT}")
    try:
        head = msgspec.json.decode(bodies[0], type=_Head)
        if head.layout == LAYOUT:
            return head, [fact for body in bodies[1:] for fact in _FACTS.decode(body)]
    except msgspec.DecodeError as error:
        raise LayoutError(f"{path} is not a journal of unskew ({error}); {_WITHOUT}") from error
    raise LayoutError(
        f"{path} has layout {head.layout}, this version reads {LAYOUT}; run the version that wrote it, or {_WITHOUT}"
    )
