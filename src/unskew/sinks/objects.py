"""Objects of an object store as paths: what tables need of S3, Google Cloud Storage, Azure and servers that speak S3.

An ``ObjectPath`` is a ``Path`` whose text is its address, ``s3://bucket/prefix/name``. Listing, reading and deleting
work as they do for files; nothing can be renamed. Whatever a path of this machine could do and an object cannot is a
``TypeError``, and never an operation on a file that happens to have that name. There are no folders: one exists as long
as an object is in it.

Two operations are added: ``versioned`` reads an object with its version, and ``replace_if`` replaces it if it still has
that version. All else that tables promise on an object store rests on the latter, so ``probe`` tries it out.

Readers of Parquet read files of this machine: ``at_hand`` copies objects there. Each is read whole, because its
checksum is over all of its bytes.
"""

import contextlib
import datetime as dt
import errno
import fcntl
import fnmatch
import os
import re
import shutil
import stat
import tempfile
import threading
import uuid
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PosixPath
from typing import IO, Any, Self, TypeVar

from typing_extensions import override

from unskew.features.errors import RequestError, StoreUnavailable
from unskew.features.extras import needed
from unskew.features.local import local_path
from unskew.features.printing import printable

Version = Mapping[str, str]
"""Identifies the content of an object, as its store does."""

SCHEMES = ("s3", "gs", "az")
_ADDRESS = re.compile(rf"({'|'.join(SCHEMES)})://(.*)", re.DOTALL)
_VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_REGION; for a server other than Amazon's AWS_ENDPOINT_URL, and "
    "AWS_ALLOW_HTTP=true if it has no TLS",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or another credential",
}
_AT_ONCE = 16
_COPIES_BYTES = 1 << 30
_CHUNK_BYTES = 4 << 20
_PAGE = 1_000
# The flow waits for a store that is away by itself (``patience.py``), and a signal to stop should not wait for long.
_RETRIES = {"max_retries": 2, "retry_timeout": dt.timedelta(seconds=10)}
_TIMES = {"connect_timeout": "5s", "read_timeout": "20s", "timeout": "300s"}

_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")


class Superseded(Exception):
    """An object has another version than the one that should be replaced, or exists although it should not."""


class ObjectPath(PosixPath):
    """The address of an object, or of what is under it; see the module.

    Raises ``StoreUnavailable`` if the store does not answer or refuses, and ``FileNotFoundError`` for an object that is
    not there.
    """

    known: os.stat_result | None = None
    """Size and time as a listing gave them; objects of tables do not change."""
    e_tag: str | None = None

    @override
    def __str__(self) -> str:
        scheme, *rest = self.parts or (".",)
        # What is relative to an address has no scheme.
        return f"{scheme}//{'/'.join(rest)}" if scheme.endswith(":") else "/".join(self.parts)

    @override
    def __fspath__(self) -> str:
        raise TypeError(f"{self} is an object of a store, not a file of this machine")

    @property
    def key(self) -> str:
        """The name within the bucket."""
        return "/".join(self.parts[2:])

    @override
    def is_absolute(self) -> bool:
        return True

    @override
    def absolute(self) -> Self:
        return self

    @override
    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        if self.known is None:
            found = _of(self, "head", self.key)
            self.know(found)
        assert self.known is not None
        return self.known

    @override
    def exists(self, **_options: Any) -> bool:
        return self.__class__(*self.parts).is_file() or self.is_dir()

    @override
    def is_file(self, **_options: Any) -> bool:
        """Return whether there is such an object; one that was listed is not asked for again."""
        if self.known is not None:
            return True
        try:
            _of(self, "head", self.key)
        except FileNotFoundError:
            return False
        return True

    @override
    def is_dir(self, **_options: Any) -> bool:
        return next(iter(self.objects(page=1)), None) is not None

    def objects(self, *, page: int = _PAGE, after: str | None = None) -> Iterator["ObjectPath"]:
        """Yield every object under this address, page by page, in the order of their names.

        ``after``: only those whose names, from this address on, come after this one.
        """
        options = {} if after is None else {"offset": f"{self.key}/{after}"}
        pages = _of(self, "list", self.key, chunk_size=page, **options)
        while True:
            with _failures(self):
                found = next(pages, None)
            if found is None:
                return
            yield from map(self._found, found)

    @override
    def iterdir(self) -> Generator["ObjectPath", None, None]:
        found = _of(self, "list_with_delimiter", self.key)
        for prefix in found["common_prefixes"]:
            yield self.__class__(self.parts[0], self.parts[1], prefix)
        yield from map(self._found, found["objects"])

    @override
    def glob(self, pattern: str, **_options: Any) -> Generator["ObjectPath", None, None]:
        first, _, rest = pattern.partition("/")
        for path in self.iterdir():
            if fnmatch.fnmatchcase(path.name, first):
                yield from path.glob(rest) if rest else (path,)

    @override
    def rglob(self, pattern: str, **_options: Any) -> Generator["ObjectPath", None, None]:
        """Yield the objects under this address whose last names match."""
        yield from (path for path in self.objects() if fnmatch.fnmatchcase(path.name, pattern))

    @override
    def open(self, mode: str = "r", *_arguments: Any, **_options: Any) -> IO[Any]:  # type: ignore[override]
        """Open a copy of the object for reading bytes."""
        if mode != "rb":
            raise TypeError(
                f"{self} is an object of a store, which is replaced whole and cannot be opened for {mode!r}"
            )
        return _copies().path_of(self).open("rb")

    @override
    def read_bytes(self) -> bytes:
        return self.versioned()[0]

    @override
    def write_bytes(self, data: Any) -> int:
        """Write an object, in place of the one before."""
        self._put(data)
        return len(data)

    def versioned(self) -> tuple[bytes, Version]:
        """Return content and version of the object."""
        found = _of(self, "get", self.key)
        with _failures(self):
            return bytes(found.bytes()), _version(found.meta)

    def replace_if(self, data: bytes, version: Version | None) -> Version:
        """Write an object in place of the one of this version, None if there must be none; return its version.

        Raises ``Superseded`` if there is another, or if the store says so: some say it too while another write is under
        way. After ``StoreUnavailable`` it may have been written nevertheless.
        """
        mode = "create" if version is None else dict(version)
        try:
            return _version(_of(self, "put", self.key, data, mode=mode, use_multipart=False))
        except FileNotFoundError as error:
            if version is None:
                raise StoreUnavailable(f"{self}: there is no such bucket") from error
            # The object to be replaced is gone.
            raise Superseded(str(self)) from error

    def upload(self, file: Path) -> None:
        """Write an object with the content of a file."""
        self._put(file)

    def _put(self, content: Any) -> None:
        try:
            _of(self, "put", self.key, content)
        except FileNotFoundError as error:
            raise StoreUnavailable(f"{self}: there is no such bucket") from error

    @override
    def unlink(self, missing_ok: bool = False) -> None:
        with contextlib.suppress(FileNotFoundError):
            _of(self, "delete", self.key)

    def remove_all(self) -> None:
        """Delete every object under this address."""
        page: list[str] = []
        for path in self.objects():
            page.append(path.key)
            if len(page) == _PAGE:
                _of(self, "delete", page)
                page = []
        if page:
            _of(self, "delete", page)

    @override
    def mkdir(self, *_arguments: Any, **_options: Any) -> None:
        """Do nothing: there are no folders."""

    @override
    def rmdir(self) -> None:
        """Do nothing: there are no folders."""

    def _found(self, listed: Mapping[str, Any]) -> "ObjectPath":
        path = self.__class__(self.parts[0], self.parts[1], listed["path"])
        path.know(listed)
        return path

    def know(self, found: Mapping[str, Any]) -> None:
        """Keep what the store says of the object."""
        # In whole seconds, because some requests give no more.
        changed_s = int(found["last_modified"].timestamp())
        mode = stat.S_IFREG | 0o600
        times = {"st_mtime": float(changed_s), "st_mtime_ns": changed_s * 10**9}
        self.known = os.stat_result(
            (mode, 0, 0, 1, 0, 0, found["size"], changed_s, changed_s, changed_s),
            times,
        )
        self.e_tag = found["e_tag"]


def table_path(path: str | os.PathLike[str], what: str) -> Path:
    """Return the root of tables: a folder of this machine, or an address of an object store.

    ``what``: the option or argument that gives it, for the error. Raises ``RequestError`` for an address of another
    kind, one with credentials, one without a name in its bucket, or if obstore is not installed.
    """
    if isinstance(path, ObjectPath):
        return path
    text = os.fspath(path)
    found = _ADDRESS.fullmatch(text)
    if found is None:
        return local_path(text, what)
    # A secret may hold a slash, so the bucket may be only the first part of it.
    if {"@", ":"} & set(found[2].partition("/")[0]) or "?" in found[2] or "#" in found[2]:
        # Not shown: whatever it is, it may be a secret.
        raise RequestError(
            f"{what} {found[1]}://...: the address must not hold credentials or parameters, because addresses are logged; "
            f"give {found[1]}://bucket/name, and set {_VARIABLES[found[1]]}"
        )
    bucket, _, key = found[2].partition("/")
    parts = key.strip("/").split("/")
    if not bucket or not all(parts) or {".", ".."} & {bucket, *parts} or not text.isprintable() or "\\" in text:
        raise RequestError(
            f"{what} {printable(text)}: give a bucket and a name in it, for example {found[1]}://bucket/{what.strip('-')}"
        )
    with needed(f"{what} {text}", "obstore"):
        return ObjectPath(f"{found[1]}:", bucket, *parts)


def probe(root: ObjectPath, option: str) -> None:
    """Refuse a store that does not do what tables rely on.

    Some servers ignore the conditions of a write; two processes could then publish over each other, and nobody would
    notice. Raises ``RequestError`` with the reason, ``StoreUnavailable`` if the store cannot be reached or refuses.
    """
    place = root / "_probe" / uuid.uuid4().hex

    def refuse(why: str) -> RequestError:
        return RequestError(
            f"{option} {root}: its object store {why}, so it could lose rows or keep them twice without an error; use a store that "
            "keeps the conditions of writes (If-Match, If-None-Match), as Amazon S3 does, or a folder"
        )

    with _explained(root, option):
        try:
            first = place.replace_if(b"1", None)
        except Superseded as error:
            raise refuse("says that a new object exists already") from error
        try:
            with contextlib.suppress(Superseded):
                place.replace_if(b"2", None)
                raise refuse("writes an object although it exists and must not (If-None-Match)")
            try:
                second = place.replace_if(b"33", first)
            except Superseded as error:
                raise refuse("does not replace an object whose version is the right one (If-Match)") from error
            with contextlib.suppress(Superseded):
                place.replace_if(b"4", first)
                raise refuse("replaces an object although its version is another one (If-Match)")
            content, version = place.versioned()
            if content != b"33" or version != second:
                raise refuse("does not return what was written last")
            if place.key not in {one.key for one in place.parent.objects()}:
                raise refuse("does not list an object that was just written")
        finally:
            place.unlink()


@contextlib.contextmanager
def at_hand(paths: Iterable[Path]) -> Iterator[Mapping[Path, Path]]:
    """Give the paths at which these files can be read on this machine; objects are copied, and their copies held.

    Raises ``FileNotFoundError`` for an object that is gone.
    """
    wanted = list(dict.fromkeys(paths))
    objects = [path for path in wanted if isinstance(path, ObjectPath)]
    there: dict[Path, Path] = {path: path for path in wanted}
    if not objects:
        yield there
        return
    copies = _copies()
    with contextlib.ExitStack() as held:
        there.update(zip(objects, together(lambda path: held.enter_context(copies.held(path)), objects), strict=True))
        yield there


def together(call: Callable[[_Item], _Answer], items: Sequence[_Item]) -> list[_Answer]:
    """Return the answers to calls that wait for a store, made at once; all have ended when one's error is raised."""
    if len(items) < 2:
        return [call(item) for item in items]
    with ThreadPoolExecutor(min(_AT_ONCE, len(items))) as threads:
        return list(threads.map(call, items))


_Name = tuple[str, str]
"""The address of an object, and the tag of its content."""


class _Copies:
    """Copies of objects in a temporary folder of this process: up to ``most_bytes``, or as many as are held at once.

    A copy is used again if the object is known to be the same. Folders that killed processes left are removed.
    """

    def __init__(self, most_bytes: int = _COPIES_BYTES) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._kept: dict[_Name, tuple[Path, int]] = {}
        self._held: dict[_Name, int] = {}
        # In the order of their last use.
        self._idle: dict[_Name, None] = {}
        self._n_bytes = 0
        made = Path(tempfile.mkdtemp(prefix="unskew-new-"))
        self._alive = os.open(made / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._alive, fcntl.LOCK_EX)
        # Only now do others look at it, and find it locked.
        self.folder = made.rename(made.with_name(made.name.replace("new", "objects", 1)))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        for left in self.folder.parent.glob("unskew-objects-*"):
            with contextlib.suppress(OSError), (left / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left, ignore_errors=True)

    @contextlib.contextmanager
    def held(self, path: ObjectPath) -> Iterator[Path]:
        """Give the path of a copy, which stays as long as the body."""
        name, copy = self._taken(path, hold=True)
        try:
            yield copy
        finally:
            with self._lock:
                self._held[name] -= 1
                if not self._held[name]:
                    del self._held[name]
                    self._idle[name] = None
                self._drop()

    def path_of(self, path: ObjectPath) -> Path:
        """Return the path of a copy, which must be opened at once."""
        return self._taken(path, hold=False)[1]

    def _taken(self, path: ObjectPath, *, hold: bool) -> tuple[_Name, Path]:
        name = (str(path), path.e_tag or "")
        with self._lock:
            if path.e_tag is not None and name in self._kept:
                self._use(name, hold=hold)
                return name, self._kept[name][0]
        copy = self.folder / uuid.uuid4().hex
        found = _of(path, "get", path.key)
        try:
            with copy.open("wb") as file, _failures(path):
                for chunk in found.stream(min_chunk_size=_CHUNK_BYTES):
                    file.write(chunk)
        except BaseException:
            copy.unlink(missing_ok=True)
            raise
        with self._lock:
            name = (str(path), found.meta["e_tag"] or uuid.uuid4().hex)
            if name in self._kept:
                # Another thread has copied it meanwhile.
                copy.unlink()
                copy = self._kept[name][0]
            else:
                n_bytes = copy.stat().st_size
                self._kept[name] = (copy, n_bytes)
                self._n_bytes += n_bytes
            self._use(name, hold=hold)
            self._drop(but=name)
        return name, copy

    def _use(self, name: _Name, *, hold: bool) -> None:
        self._idle.pop(name, None)
        if hold:
            self._held[name] = self._held.get(name, 0) + 1
        elif name not in self._held:
            self._idle[name] = None

    def _drop(self, but: _Name | None = None) -> None:
        """Remove the copies that were not used for the longest time, until the others are few enough."""
        while self._n_bytes > self._most_bytes and self._idle:
            name = next(iter(self._idle))
            if name == but:
                # The one used last, so there is no other.
                return
            del self._idle[name]
            copy, n_bytes = self._kept.pop(name)
            self._n_bytes -= n_bytes
            copy.unlink(missing_ok=True)


@cache
def _copies() -> _Copies:
    return _Copies()


@dataclass
class _Client:
    """The client of a bucket. ``answered``: whether the store has ever done what it was asked to."""

    store: Any
    answered: bool = False


@cache
def _client(scheme: str, bucket: str) -> _Client:
    """Return the client of a bucket; the environment holds its credentials."""
    from obstore import store  # noqa: PLC0415 - an extra

    # As ``client_options`` they would replace those that the environment sets.
    options: dict[str, Any] = {"config": _TIMES, "retry_config": _RETRIES}
    if scheme == "s3:":
        return _Client(store.S3Store(bucket, **options))
    if scheme == "gs:":
        return _Client(store.GCSStore(bucket, **options))
    return _Client(store.AzureStore(bucket, **options))


def _of(path: ObjectPath, name: str, *arguments: Any, **options: Any) -> Any:
    """Return what a function of obstore returns for the bucket of a path."""
    import obstore  # noqa: PLC0415 - an extra

    with _failures(path, conditional="mode" in options):
        client = _client(*path.parts[:2])
        found = getattr(obstore, name)(client.store, *arguments, **options)
        # A listing has not asked anything yet.
        client.answered |= name != "list"
        return found


@contextlib.contextmanager
def _failures(path: ObjectPath, *, conditional: bool = False) -> Iterator[None]:
    from obstore import exceptions  # noqa: PLC0415 - an extra

    try:
        yield
    except (FileNotFoundError, exceptions.NotFoundError) as error:
        raise FileNotFoundError(errno.ENOENT, "there is no such object", str(path)) from error
    except exceptions.BaseError as error:
        if conditional and isinstance(error, (exceptions.AlreadyExistsError, exceptions.PreconditionError)):
            raise Superseded(str(path)) from error
        raise StoreUnavailable(f"{path}: {_reason(str(error))}{_hint(path)}") from None


def _hint(path: ObjectPath) -> str:
    """Return what could be wrong with the configuration, if the store has not answered yet."""
    with contextlib.suppress(Exception):
        if _client(*path.parts[:2]).answered:
            return ""
    variables = _VARIABLES[path.parts[0].removesuffix(":")]
    return f"; credentials and address come from the environment: set {variables}"


@contextlib.contextmanager
def _explained(root: ObjectPath, option: str) -> Iterator[None]:
    """Name the option in an error, in place of the object."""
    try:
        yield
    except StoreUnavailable as error:
        raise StoreUnavailable(f"{option} {root}: {str(error).partition(': ')[2]}") from error


def _version(found: Mapping[str, Any]) -> Version:
    return {name: found[name] for name in ("e_tag", "version") if found.get(name) is not None}


def _reason(text: str) -> str:
    """Return the reason in an error of obstore, without what may be secret in an address."""
    said = re.search(r"<Code>(.*?)</Code>.*?<Message>(.*?)</Message>", text, re.DOTALL)
    first = text.partition("\n")[0]
    reason = first.rpartition(" - ")[2] if said is None else f"{said[1]}: {said[2]}"
    system = re.search(r'message: "([^"<]+)"', text)
    if said is None and system is not None:
        reason = f"{reason} ({system[1]})"
    reason = re.sub(r"(\w+://)[^/\s@]*@", r"\1", reason)
    return re.sub(r"\?\S+", "", reason)


def concerns(*paths: Path | None) -> bool:
    """Return whether any of these paths is in an object store."""
    return any(isinstance(path, ObjectPath) for path in paths)


def reading(paths: Sequence[Path]) -> Iterator[bytes | None]:
    """Yield the contents of small files in their order, objects several at once; None for one that is gone."""
    if concerns(*paths):
        yield from together(_content, paths)
    else:
        yield from map(_content, paths)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
