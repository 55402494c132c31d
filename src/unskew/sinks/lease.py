"""Leases, with owner and age, on the right to write in a folder: a second deployment on the same folder is refused.

    {root}/_leases/{name}.json    one for each process that writes there; locked (flock) and renewed every ``RENEW_S``

A lock ends with its process, however that ends, and is visible to every process of the same machine. Other machines
that share the disk may not see the lock; for them, a lease is held as long as it is renewed. They determine this by
watching the file, not by comparing instants, because the clocks of two machines differ. A lease that is not renewed for
``STALE_S`` is taken over, and its former holder notices this before it next publishes anything.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from unskew.features.errors import LayoutError, StoreUnavailable
from unskew.sinks import durable
from unskew.sinks.objects import ObjectPath, Superseded, Version, probe

LEASES = "_leases"
RENEW_S = 5.0
STALE_S = 30.0
GONE_S = 10.0
EVERYTHING = "everything"
"""The name that stands for all names in a folder: such a lease allows no other."""
_LOOK_S = 0.2
# The file is rewritten in place, so that a lease can be renewed even if the disk is full.
_BYTES = 4096
_MOST_SHOWN = 3
_READS = 4
_WORDS = {"owner", "group", "member", "machine", "writers", "renewed_at"}

_log = logging.getLogger("unskew.lease")


def _machine() -> str:
    """Return an identifier of this boot of this machine."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()


@dataclass(frozen=True, kw_only=True)
class Owner:
    """A process that asks for a lease.

    ``text``: its name, for people. ``group``: processes of one group, with different ``member``, may have the same
    writers. ``machine``: identifies the boot of the machine that runs it; processes of one machine see each other's
    locks.
    """

    text: str
    group: str
    member: int
    machine: str = field(default_factory=_machine)


class Lease:
    """One process's lease on one folder; ``writers``: the names within the folder that only this process writes.

    The constructor takes the lease. It raises ``LayoutError`` if another process writes any of these names, and
    ``StoreUnavailable`` if the disk fails. If it is unknown whether another machine's process is alive, its lease is
    watched for ``stale_s``, or taken over at once with ``take_over``. ``going_on``: raises if this process should stop
    meanwhile.
    """

    def __init__(
        self,
        root: Path,
        option: str,
        owner: Owner,
        writers: frozenset[str],
        *,
        take_over: bool = False,
        stale_s: float = STALE_S,
        going_on: Callable[[], None] = lambda: None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self.root = root
        self._option = option
        self._owner = owner
        self._writers = writers
        self._take_over = take_over
        self._stale_s = stale_s
        self._going_on = going_on
        self._now_s = now_s
        self._renewals = 0
        self._path = root / LEASES / f"{uuid.uuid4().hex}.json"
        self._made = durable.missing(root)
        try:
            # Tables and state are made durable inside this folder, so its own name must be durable too.
            durable.make_folder(root)
            self._path.parent.mkdir(exist_ok=True)
            with _alone(self._path.parent):
                for path in sorted(self._path.parent.glob("*.json")):
                    self._settle_with(path)
                self._take()
        except OSError as error:
            durable.remove_empty([self._path.parent, *self._made])
            if error.errno in {errno.ENOLCK, errno.EOPNOTSUPP}:
                raise LayoutError(
                    f"{root}: its file system does not support locks ({error.strerror}); name another {option}"
                ) from error
            if root.exists() and not root.is_dir():
                raise LayoutError(f"{root}: it is not a folder; name another {option}") from error
            raise StoreUnavailable(f"cannot write to {root}: {error}") from error

    def _take(self) -> None:
        self._file = self._path.open("xb", buffering=0)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self.renew()
        except OSError:
            # A lease that the disk could not take names nobody, and would refuse the next try of this very process.
            self._path.unlink(missing_ok=True)
            self._file.close()
            raise

    def renew(self) -> None:
        """Write that this process is alive. Raises ``OSError``."""
        self._renewals += 1
        content = {
            "owner": self._owner.text,
            "group": self._owner.group,
            "member": self._owner.member,
            "machine": self._owner.machine,
            "writers": sorted(self._writers),
            "renewed_at": round(self._now_s(), 3),
            # Whoever watches the file sees that this process lives, also while its wall clock stands still.
            "renewals": self._renewals,
        }
        data = json.dumps(content).encode()
        os.pwrite(self._file.fileno(), data.ljust(-(-len(data) // _BYTES) * _BYTES), 0)

    def check(self) -> None:
        """Raise ``LayoutError`` if this process may no longer write here.

        Another process has taken the lease over, because this one stood still for too long; or the folder is gone.
        """
        try:
            held = os.path.samestat(self._path.stat(), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            held = False
        except OSError:
            # The disk is away; the next write reports that, and waits.
            return
        if not held and not self._path.parent.is_dir():
            # Who gives a lease back removes the folder of leases too.
            ended = ", or another process has taken it over and ended" if self.root.is_dir() else ""
            intact = "If its files are all there, start again. Otherwise b" if ended else "B"
            raise LayoutError(
                f"{self.root} was deleted, moved or unmounted while this process wrote there{ended}, so this one stops. "
                f"{intact}ring the folder back as it was, or restore all four folders from one backup, and start again; "
                f"name another {self._option} only to start over"
            )
        if not held:
            raise LayoutError(
                f"{self.root}: the lease of this process was taken over, because it was not renewed for "
                f"{self._stale_s:.0f} s; another process may write there now, so this one stops. Find out which should "
                "continue, and start that one alone"
            )

    def release(self) -> None:
        """Give the lease back, and remove what this process made and nobody has written to."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        self._file.close()
        # Another process that is about to take a lease there finds no folder, and tries again.
        durable.remove_empty([self._path.parent, *self._made])

    def _settle_with(self, path: Path) -> None:
        """Return if the lease at ``path`` allows this one, or was left behind and is removed; otherwise raise."""
        try:
            other = path.open("r+b", buffering=0)
        except FileNotFoundError:
            return
        with other:
            locked, content = _is_locked(other), _read(other)
            if not locked and (content is None or self._is_left_behind(other, content)):
                path.unlink(missing_ok=True)
                return
        if content is None:
            raise LayoutError(f"{path} is locked by a process that it does not name; stop that process first")
        if self._allows(content):
            return
        both = sorted(self._writers & set(content["writers"])) or sorted(content["writers"])
        more = f" and {len(both) - _MOST_SHOWN} more" if len(both) > _MOST_SHOWN else ""
        raise LayoutError(
            f"{self.root} is in use by {content['owner']} (its lease was renewed {self._age(content)} ago), which writes "
            f"{', '.join(both[:_MOST_SHOWN])}{more} there too; stop that one first, or name another {self._option}"
        )

    @property
    def folder(self) -> Path:
        """The folder of the leases on the same root."""
        return self._path.parent

    def is_of_this_machine(self, content: dict[str, Any] | None) -> bool:
        """Return true if a lease is of a process whose lock this one would see."""
        return content is None or content["machine"] == self._owner.machine

    def is_of_another_member(self, content: dict[str, Any]) -> bool:
        """Return true if a lease is of another member of this group."""
        return bool(content["group"] == self._owner.group and content["member"] != self._owner.member)

    def _allows(self, content: dict[str, Any]) -> bool:
        """Return true if another lease has other writers, or the same ones as another member of this group."""
        either = self._writers.union(content["writers"])
        apart = EVERYTHING not in either and self._writers.isdisjoint(content["writers"])
        return self.is_of_another_member(content) or apart

    def _is_left_behind(self, other: IO[bytes], content: dict[str, Any]) -> bool:
        """Return true if the process of an unlocked lease is gone."""
        if self.is_of_this_machine(content):
            return True
        if self._allows(content):
            return False
        if not self._take_over:
            _log.warning(
                "%s: the lease of %s was renewed %s ago; it is taken over unless renewed again within %.0f s",
                *(self.root, content["owner"], self._age(content), self._stale_s),
            )
            until_s = time.monotonic() + self._stale_s
            while time.monotonic() < until_s:
                self._going_on()
                time.sleep(min(_LOOK_S, self._stale_s / 10))
                if _is_locked(other) or _read(other) != content:
                    return False
        _log.warning(
            "%s: the lease of %s, renewed %s ago, is taken over", self.root, content["owner"], self._age(content)
        )
        return True

    def _age(self, content: dict[str, Any]) -> str:
        return f"{max(0.0, self._now_s() - float(content['renewed_at'])):.0f} s"


class Members:
    """The other members of a lease's group, watched for one that is gone.

    ``numbers``: the members that there should be. A member is gone if its process ended without giving its lease back;
    if it gave it back ``gone_s`` ago, because members that end together do not end at the same moment; or if its
    machine is another one and its lease was not renewed for ``stale_s``.
    """

    def __init__(
        self, lease: Lease, numbers: Collection[int], *, gone_s: float = GONE_S, stale_s: float = STALE_S
    ) -> None:
        self._lease = lease
        self._numbers = sorted(numbers)
        self._gone_s = gone_s
        self._stale_s = stale_s
        self._seen: dict[int, _Seen] = {}
        self._began_s = time.monotonic()

    def begin(self) -> None:
        """From now on, each member is the process that holds its lease now, and not one that takes its place later."""
        self._began_s = time.monotonic()
        self._seen = {number: _Seen(path, content) for number, path, content in self._look()}

    def absent(self) -> list[int]:
        """Return the members that hold no lease."""
        present = {number for number, _, _ in self._look()}
        return [number for number in self._numbers if number not in present]

    def lost(self) -> int | None:
        """Return a member that is gone; None while all are there, or while the disk is away."""
        now_s = time.monotonic()
        for number in self._numbers:
            seen = self._seen.get(number)
            try:
                if self._is_gone(seen, now_s):
                    return number
            except OSError:
                continue
        return None

    def _is_gone(self, seen: "_Seen | None", now_s: float) -> bool:
        if seen is None:
            return now_s - self._began_s >= self._gone_s
        try:
            with seen.path.open("r+b", buffering=0) as file:
                locked, content = _is_locked(file), _read(file)
        except FileNotFoundError:
            return now_s - seen.at_s >= self._gone_s
        if locked or content != seen.content:
            seen.at_s, seen.content = now_s, content
            return False
        return self._lease.is_of_this_machine(content or seen.content) or now_s - seen.at_s >= self._stale_s

    def _look(self) -> list[tuple[int, Path, dict[str, Any]]]:
        """Return number, path and content of the leases of other members that may be held."""
        found = []
        for path in sorted(self._lease.folder.glob("*.json")):
            with contextlib.suppress(OSError), path.open("r+b", buffering=0) as file:
                locked, content = _is_locked(file), _read(file)
                if content is None or not self._lease.is_of_another_member(content):
                    continue
                if locked or not self._lease.is_of_this_machine(content):
                    found.append((int(content["member"]), path, content))
        return found


@dataclass
class _Seen:
    """A member's lease, its last content, and when it was last known to be held, by the monotonic clock."""

    path: Path
    content: dict[str, Any] | None
    at_s: float = field(default_factory=time.monotonic)


class Leases:
    """The leases of one process, renewed by a thread of their own until they are released."""

    def __init__(self) -> None:
        self._held: list[Lease | _LockObject] = []
        self._released = threading.Event()
        self._thread: threading.Thread | None = None

    def take(self, root: Path, option: str, owner: Owner, writers: frozenset[str]) -> None:
        """Take and add a lease, as ``Lease`` does; in an object store, locks that only callers of this take.

        There, pipelines take none, see ``publication.py``: a lock keeps commands of upkeep apart, one for each view
        version or topic (and member of a group), and that of ``EVERYTHING`` from all others.
        """
        if not isinstance(root, ObjectPath):
            self.add(Lease(root, option, owner, writers))
            return
        probe(root, option)
        folder = root / LEASES
        # Members of one group divide a view's shards, so each has a lock of its own.
        member = f"+{owner.member}" if owner.member else ""
        own = [folder / f"{name}{member}.lock" for name in sorted({one.partition("/")[0] for one in writers})]
        for path in own:
            lock = _LockObject(path)
            if not lock.take(STALE_S):
                raise _busy(root, option, path)
            self.add(lock)
        # Only now, so that of two processes at least one sees the other.
        everything = folder / f"{EVERYTHING}.lock"
        for path in folder.glob("*.lock") if everything in own else [everything]:
            if path not in own and path.is_file():
                other = _LockObject(path)
                if not other.take(STALE_S):
                    raise _busy(root, option, path)
                other.release()

    def add(self, lease: "Lease | _LockObject") -> None:
        self._held.append(lease)
        if self._thread is None:
            self._thread = threading.Thread(target=self._renew, name="unskew-leases", daemon=True)
            self._thread.start()

    def check(self) -> None:
        """Check all leases, as ``Lease.check`` does."""
        for lease in self._held:
            lease.check()

    def release(self) -> None:
        self._released.set()
        if self._thread is not None:
            self._thread.join()
        for lease in self._held:
            lease.release()

    def _renew(self) -> None:
        while not self._released.wait(RENEW_S):
            for lease in list(self._held):
                # If the disk is away for long, the lease may be lost; the next publication notices that.
                with contextlib.suppress(OSError, StoreUnavailable):
                    lease.renew()


@dataclass(frozen=True, kw_only=True)
class Held:
    """A lease that a process holds, or may hold on another machine. ``owner``: its name, for people.

    ``writers``: the names that it writes. ``age_s``: for how long it has not been renewed, by the clock of this host.
    """

    owner: str
    writers: frozenset[str]
    age_s: float


def held(root: Path, now_s: Callable[[], float] = time.time) -> list[Held]:
    """Return the leases on a folder, and change nothing. Raises ``StoreUnavailable`` if they cannot be read.

    A lease of another machine is left out once it has not been renewed for ``STALE_S``.
    """
    found = []
    try:
        folder = root / LEASES
        if not folder.is_dir():
            return []
        with _alone(folder):
            for path in sorted(folder.glob("*.json")):
                with contextlib.suppress(FileNotFoundError), path.open("rb", buffering=0) as file:
                    is_locked, content = _is_locked(file), _read(file)
                    if content is None:
                        continue
                    age_s = max(0.0, now_s() - float(content["renewed_at"]))
                    if is_locked or (content["machine"] != _machine() and age_s < STALE_S):
                        found.append(Held(owner=content["owner"], writers=frozenset(content["writers"]), age_s=age_s))
    except OSError as error:
        raise StoreUnavailable(
            f"{root}: its leases cannot be read ({error.strerror}); correct its permissions"
        ) from error
    return found


@contextlib.contextmanager
def locked(path: ObjectPath, *, stale_s: float = STALE_S) -> Iterator[Callable[[], None] | None]:
    """Lock the object at ``path`` for the body; yield what raises if the lock was lost, None if another process has it.

    Object stores have no locks: whoever holds this one replaces the object every ``RENEW_S``, and is taken for dead if
    it has not done so for ``stale_s``. Raises ``StoreUnavailable``, also if the lock was lost.
    """
    lock = _LockObject(path)
    if not lock.take(stale_s):
        yield None
        return
    ended = threading.Event()
    thread = threading.Thread(target=lock.renew_until, args=(ended,), name="unskew-lock", daemon=True)
    thread.start()
    try:
        yield lock.check
    finally:
        ended.set()
        thread.join()
        lock.release()


class _LockObject:
    def __init__(self, path: ObjectPath) -> None:
        self._path = path
        self._version: Version | None = None
        self._writing = threading.Lock()

    def take(self, stale_s: float) -> bool:
        try:
            _, self._version = self._path.versioned()
            _log.warning("%s is there; it is taken over unless renewed within %.0f s", self._path, stale_s)
            until_s = time.monotonic() + stale_s
            while time.monotonic() < until_s:
                time.sleep(min(_LOOK_S, stale_s / 10))
                if self._path.versioned()[1] != self._version:
                    return False
        except FileNotFoundError:
            # There was none, or it was given back meanwhile.
            self._version = None
        try:
            self._write()
        except (Superseded, FileNotFoundError):
            return False
        return True

    def check(self) -> None:
        """Replace the object; raises ``StoreUnavailable`` if another process has it."""
        try:
            self._write()
        except Superseded as error:
            raise StoreUnavailable(
                f"{self._path}: another process has taken this lock over, because this one stood still; try again"
            ) from error

    def renew(self) -> None:
        self.check()

    def renew_until(self, ended: threading.Event) -> None:
        while not ended.wait(RENEW_S):
            # What is written next finds out that the lock is lost.
            with contextlib.suppress(StoreUnavailable):
                self.check()

    def release(self) -> None:
        with contextlib.suppress(StoreUnavailable):
            self.check()
            self._path.unlink()

    def _write(self) -> None:
        with self._writing:
            self._version = self._path.replace_if(uuid.uuid4().hex.encode(), self._version)


def _busy(root: ObjectPath, option: str, path: ObjectPath) -> LayoutError:
    return LayoutError(
        f"{option} {root}: another command is at work on {path.name.removesuffix('.lock')} there, because {path} is being renewed; wait "
        "for its end and try again"
    )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time look at leases and take one; none can be taken in a folder removed meanwhile."""
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _is_locked(file: IO[bytes]) -> bool:
    """Return true if another process, of this machine or of one whose locks are visible here, holds the file's lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def _read(file: IO[bytes]) -> dict[str, Any] | None:
    """Read a lease; None if it is incomplete, because its process died while taking it."""
    for _ in range(_READS):
        try:
            content = json.loads(os.pread(file.fileno(), 1 << 24, 0))
        except ValueError:
            # It may be in the middle of a renewal.
            time.sleep(_LOOK_S / _READS)
            continue
        return content if isinstance(content, dict) and content.keys() >= _WORDS else None
    return None
