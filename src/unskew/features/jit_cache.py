"""The folder in which compiled functions are kept, so that a machine compiles them once and not for each process.

numba's own cache keeps an index beside the functions, which two processes may overwrite; it does not notice that a
function of another file, which was compiled into this one, has changed; and it raises where a folder cannot be written
or a file is damaged. Here each function with its argument types is one file, whose name is a hash of everything that
the result depends on. A file is complete or not there, so any number of processes may share the folder.

    {folder}/unskew-{version}/{module}.{function}-{hash}.nbc    version: a hash of Python, numba and the kernel

The files are pickles. So a folder is used only if nobody but this user and root can have put files there.
"""

import contextlib
import hashlib
import logging
import os
import pickle
import shutil
import stat
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numba
from numba.core import config
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps
from numba.misc.appdirs import AppDirs
from typing_extensions import override

_SUFFIX = ".nbc"
_CHECKSUM_BYTES = hashlib.sha256().digest_size
_NAME = "unskew-"
_MOST_VERSIONS = 4
"""The number of versions whose functions stay in a folder."""
_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH

SAY_AFTER_S = 2.0
"""Seconds of compiling after which a process says why it does not go on."""

_log = logging.getLogger("unskew.kernel")


@cache
def version() -> str:
    """Return a hash of Python, numba and the sources of the functions that are compiled into others."""
    room = Path(__file__).parent
    shared = [*room.glob("kernel/*.py"), room / "jit.py", room / "text_buffers.py", room / "updates.py"]
    found = hashlib.sha256(f"{numba.__version__} {sys.version}".encode())
    for path in sorted(shared):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:16]


@dataclass
class Places:
    """The folders of this version's functions; ``writable``: where new ones are kept, None if nowhere."""

    readable: Sequence[Path]
    writable: Path | None


_suggested: list[Path] = []


def suggest(folder: Path) -> None:
    """Suggest a folder, which only this user can write, for a machine where no usual one can be written."""
    if folder not in _suggested:
        _suggested.append(folder)
        if places.cache_info().currsize and places().writable is None:
            places.cache_clear()


@cache
def places() -> Places:
    """Return the folders of this process, and say so once if nothing can be kept.

    A folder that cannot be written is read all the same: that of an image that runs read-only, or as another user,
    holds what was compiled into it.
    """
    readable: list[Path] = []
    for make, folder in _candidates():
        place = folder / f"{_NAME}{version()}"
        with contextlib.suppress(OSError):
            make(folder)
            if place.is_dir():
                readable.append(place)
            place.mkdir(exist_ok=True)
            tempfile.TemporaryFile(dir=place).close()
            _sweep(folder)
            return Places([*readable, place], place)
    _log.warning(
        "no folder for compiled functions can be written, so every process compiles them again; "
        "set NUMBA_CACHE_DIR to a folder that only this user can write"
    )
    return Places(readable, None)


def _candidates() -> Iterator[tuple[Callable[[Path], object], Path]]:
    """Yield how to make each possible folder, and the folder."""
    if given := getattr(config, "CACHE_DIR", None):
        # The user has decided that it is safe.
        yield partial(Path.mkdir, parents=True, exist_ok=True), Path(given)
    # Whoever can write here can change the sources beside it.
    yield partial(Path.mkdir, exist_ok=True), Path(__file__).parents[1] / "__pycache__"
    yield _make_own, Path(AppDirs("unskew", appauthor=False).user_cache_dir)
    for folder in _suggested:
        yield _make_own, folder
    with contextlib.suppress(OSError):
        yield _make_own, Path(tempfile.gettempdir()) / f"unskew-{os.getuid()}"


def _make_own(folder: Path) -> None:
    """Make a folder that only this user can write. Raises ``PermissionError`` if somebody else may have made it."""
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & _WRITABLE_BY_OTHERS:
        raise PermissionError(f"{folder} may hold files of other users")


def _sweep(folder: Path) -> None:
    """Remove what the versions compiled that were begun longest ago."""
    versions = sorted(folder.glob(f"{_NAME}*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in versions[_MOST_VERSIONS:]:
        shutil.rmtree(old, ignore_errors=True)


class _Waiting:
    """The compilation that a process waits for: said once, if it takes long and nobody else says so."""

    def __init__(self) -> None:
        self._depth = 0
        self._timer: threading.Timer | None = None

    def begin(self) -> None:
        """Note that a function is compiled; those that it calls are compiled meanwhile."""
        if self._timer is None:
            self._timer = threading.Timer(SAY_AFTER_S, self._say)
            self._timer.daemon = True
            self._timer.start()
        self._depth += 1

    def end(self) -> None:
        """Note that the function is compiled."""
        self._depth -= 1
        if self._depth == 0 and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _say(self) -> None:
        if not _said.is_set():
            _said.set()
            _log.warning(
                "functions are being compiled, once for each installation and processor, which can take a minute; "
                "`unskew warm` does it ahead"
            )


_waiting = _Waiting()
_said = threading.Event()


def say_nothing() -> None:
    """Leave it to the caller to say that this process compiles."""
    _said.set()


class FunctionCache(_Cache):  # type: ignore[misc,unused-ignore]
    """The cache of one function, as numba's dispatcher uses it. What cannot be read is compiled again."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._enabled = True

    @property
    @override
    def cache_path(self) -> str | None:
        writable = places().writable
        return None if writable is None else str(writable)

    def holds(self, signature: Any, target_context: Any) -> bool:
        """Return true if the function is there for these types of arguments, and is not damaged."""
        return self._read(signature, target_context) is not None

    @override
    def load_overload(self, sig: Any, target_context: Any) -> Any:
        if (found := self._load(sig, target_context)) is None:
            # numba compiles it now, and then calls ``save_overload``.
            _waiting.begin()
        return found

    def _load(self, sig: Any, target_context: Any) -> Any:
        if not self._enabled or (content := self._read(sig, target_context)) is None:
            return None
        try:
            signature, payload = pickle.loads(content)  # noqa: S301 - only we can write the folder
            if signature == sig:
                return CompileResult._rebuild(target_context, *payload)  # noqa: SLF001 - as numba's own cache does
        # A file that is complete and yet not what it should be may raise anything.
        except Exception as error:  # noqa: BLE001
            name = self._name(sig, target_context.codegen())
            _log.warning("the compiled %s cannot be used (%s: %s) and is made again", name, type(error).__name__, error)
        return None

    @override
    def save_overload(self, sig: Any, data: Any) -> None:
        _waiting.end()
        place = places().writable
        if not self._enabled or place is None or data.library.has_dynamic_globals:
            return
        path = place / self._name(sig, data.codegen)
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        content = dumps((sig, data._reduce()))  # noqa: SLF001 - as numba's own cache does
        try:
            temporary.write_bytes(hashlib.sha256(content).digest() + content)
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            places().writable = None
            _log.warning("compiled functions cannot be kept in %s: %s", place, error)

    @override
    def enable(self) -> None:
        self._enabled = True

    @override
    def disable(self) -> None:
        self._enabled = False

    @override
    def flush(self) -> None:
        """Do nothing: a name stands for one content."""

    def _name(self, signature: Any, codegen: Any) -> str:
        """Return the name of the file for these types of arguments on this processor."""
        code = self._function.__code__
        identity = repr((code.co_firstlineno, signature, codegen.magic_tuple())).encode()
        digest = hashlib.sha256(identity + _source(code.co_filename)).hexdigest()[:24]
        return f"{self._function.__module__.rpartition('.')[2]}.{self._function.__name__}-{digest}{_SUFFIX}"

    def _read(self, signature: Any, target_context: Any) -> bytes | None:
        target_context.refresh()
        name = self._name(signature, target_context.codegen())
        for place in places().readable:
            with contextlib.suppress(OSError):
                data = (place / name).read_bytes()
                if hashlib.sha256(data[_CHECKSUM_BYTES:]).digest() == data[:_CHECKSUM_BYTES]:
                    return data[_CHECKSUM_BYTES:]
                _log.warning("%s is damaged and is made again", place / name)
        return None


@cache
def _source(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        # A function of a notebook, for example; its line and types identify it well enough for one process.
        return b""
