"""Files that survive a loss of power: a name always refers to a complete file, and an older one never comes back.

A file's bytes are durable once the file is fsynced, and a name once its folder is. The order of steps is the contract:

1. The bytes go to a new file under a temporary name, which is fsynced.
2. ``still_ours`` is called: it raises if another process has taken over.
3. The temporary name is renamed to the final one.
4. The folder is fsynced.

A stop between any two steps leaves either the old file or the new one, complete. If many names are made in few folders,
step 4 can be deferred: the folders are added to the set ``unsynced``, and ``sync_folders`` fsyncs them all. A folder
leaves the set once it is fsynced, so a call that failed can be repeated.

An object store (``objects.py``) does all of this in one request, and has no folders.

Every function raises ``OSError`` if the disk fails; ``disk`` turns it into a ``StoreUnavailable``.
"""

import contextlib
import fcntl
import glob
import itertools
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from unskew.features.errors import StoreUnavailable
from unskew.sinks.objects import ObjectPath, Superseded

_TRIES = 10
"""How often a temporary file is written if other processes remove it."""


def replace(path: Path, data: bytes, still_ours: Callable[[], None] = lambda: None, *, at_once: bool = False) -> None:
    """Replace the file at ``path``, if any, with one that holds these bytes; the temporary name ends in ``.tmp``.

    ``at_once``: other processes may replace the file at the same time, so each has a temporary name of its own.
    """
    if isinstance(path, ObjectPath):
        still_ours()
        path.write_bytes(data)
        return
    if at_once:
        _of_many(path, data, lambda temporary: rename(temporary, path, still_ours))
        return
    temporary = path.with_suffix(".tmp")
    write(temporary, data)
    rename(temporary, path, still_ours)


def create_whole(path: Path, data: bytes) -> None:
    """Write a file that must not be there yet, in a folder that is. Of several processes that try, one succeeds.

    Raises ``Superseded`` if there is another. If an object store fails, the object may have been written nevertheless.
    """
    if isinstance(path, ObjectPath):
        try:
            path.replace_if(data, None)
        except (Superseded, StoreUnavailable):
            # A request that the client repeated finds what its first try has written.
            with contextlib.suppress(FileNotFoundError, StoreUnavailable):
                if path.read_bytes() == data:
                    return
            raise
        return
    # A rename would replace a file of that name.
    try:
        _of_many(path, data, path.hardlink_to)
    except FileExistsError as error:
        raise Superseded(str(path)) from error
    sync(path.parent)


def _of_many(path: Path, data: bytes, name: Callable[[Path], None]) -> None:
    """Write the bytes to a temporary file and call ``name``, which gives that file the name ``path``.

    Other processes may do the same meanwhile, each with a temporary name of its own, so what a killed process left is
    never overwritten. Therefore each locks its file, and removes files that nobody has locked. On a file system without
    locks they stay.
    """
    for tries_left in reversed(range(_TRIES)):
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            with contextlib.suppress(OSError), left.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with new_file(temporary) as file:
                with contextlib.suppress(OSError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.write(data)
                flush(file)
                name(temporary)
                return
        except FileNotFoundError:
            # Another process removed it before it was locked, or does not see the locks of this machine.
            if not tries_left:
                raise
        finally:
            temporary.unlink(missing_ok=True)


def write(path: Path, data: bytes) -> None:
    """Write these bytes to a new file and fsync it; its name is not durable yet."""
    with new_file(path) as file:
        file.write(data)
        flush(file)


def new_file(path: Path) -> IO[bytes]:
    """Open a new file for writing; the caller calls ``flush``."""
    return os.fdopen(create(path), "wb")


def create(path: Path) -> int:
    """Create a file and return its descriptor; the process's umask says who may read it.

    It is never the file that was there before: a process that froze while another took over may still have that one
    open, and would write into it.
    """
    path.unlink(missing_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)


def write_at(file: int, data: bytes, at: int) -> None:
    """Write all of ``data`` at an offset of an open file."""
    left = memoryview(data)
    while left:
        written = os.pwrite(file, left, at)
        left, at = left[written:], at + written


def flush(file: IO[bytes]) -> None:
    """Make everything written to an open file durable."""
    file.flush()
    os.fsync(file.fileno())


def rename(
    source: Path, target: Path, still_ours: Callable[[], None] = lambda: None, unsynced: set[Path] | None = None
) -> None:
    """Rename a file or folder whose content is durable; ``unsynced`` as in the module, None to fsync the folder now.

    ``target`` may be an object, which is then written with the content of the file.
    """
    still_ours()
    if isinstance(target, ObjectPath):
        target.upload(source)
        source.unlink()
        return
    if unsynced is not None:
        unsynced.add(target.parent)
    source.rename(target)
    if unsynced is None:
        sync(target.parent)


def make_folder(folder: Path, unsynced: set[Path] | None = None) -> None:
    """Make a folder and its parents; ``unsynced`` as in the module, None to fsync each parent now."""
    if isinstance(folder, ObjectPath) or folder.is_dir():
        return
    make_folder(folder.parent, unsynced)
    folder.mkdir(exist_ok=True)
    if unsynced is not None:
        unsynced.add(folder.parent)
        return
    try:
        sync(folder.parent)
    except OSError:
        # Another try must not find the folder and assume that its name is durable.
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise


def missing(folder: Path) -> list[Path]:
    """Return the folders that ``make_folder`` would make, the innermost first."""
    if isinstance(folder, ObjectPath):
        return []
    return list(itertools.takewhile(lambda path: not path.exists(), (folder, *folder.parents)))


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of these folders that are empty."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that it holds, if it is there."""
    if isinstance(folder, ObjectPath):
        folder.remove_all()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def like(path: Path, other: Path) -> None:
    """Let those read a file or folder who read the other one, as far as this process may say so."""
    if isinstance(path, ObjectPath) or isinstance(other, ObjectPath):
        return
    found = other.stat()
    with contextlib.suppress(PermissionError):
        os.chown(path, found.st_uid, found.st_gid)
    path.chmod(stat.S_IMODE(found.st_mode))


def like_file(path: Path, folder: Path) -> None:
    """Let those read a file who read a folder, see ``like``."""
    like(path, folder)
    if not isinstance(path, ObjectPath):
        path.chmod(path.stat().st_mode & 0o666)


def sync_folders(unsynced: set[Path]) -> None:
    """Make the names in these folders durable; each folder leaves the set when it is done."""
    while unsynced:
        folder = next(iter(unsynced))
        sync(folder)
        unsynced.discard(folder)


def sync(path: Path) -> None:
    """Make the bytes of a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[None]:
    """Raise ``StoreUnavailable`` if the disk fails in the body, which writes to ``folder``."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(f"cannot write to {folder}: {error}") from error
