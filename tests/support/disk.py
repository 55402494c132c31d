"""Prediction of a loss of power: it watches system calls, and bytes and names that no fsync made durable."""

import errno
import io
import os
from pathlib import Path

import pytest


class Disk:
    """A watch on files and folders under ``root``.

    ``calls``: (call, name) in order. ``faults``: names that were renamed while their bytes were not durable.
    ``lose()``: names that a loss of power now would remove, or whose older file it would bring back.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.calls: list[tuple[str, str]] = []
        self.faults: list[str] = []
        self._root = root
        self._synced: set[Path] = set()
        self._unsynced: set[Path] = set()
        for owner, name, note in [
            (os, "open", self._opened),
            (io, "open", self._opened),
            (os, "mkdir", self._made),
            (os, "rename", self._renamed),
            (os, "replace", self._renamed),
            (os, "unlink", self._removed),
            (os, "rmdir", self._removed),
            (os, "fsync", self._fsynced),
            (os, "fdatasync", self._fsynced),
        ]:
            self._watch(monkeypatch, owner, name, note)

    def lose(self, *apart: str) -> list[str]:
        """``apart``: patterns of names that need not be durable."""
        names = {self._name(path) for path in self._unsynced if not any(path.match(pattern) for pattern in apart)}
        return sorted(names)

    def _watch(self, monkeypatch, owner, name, note):
        real = getattr(owner, name)

        def watched(*arguments, **options):
            # Where a descriptor leads is asked while it is open; a call that fails has changed nothing.
            paths = [self._path(one) for one in arguments[:2]]
            result = real(*arguments, **options)
            if paths[0] is not None and self._root in (paths[0], *paths[0].parents):
                note(*paths, *arguments[1:2])
            return result

        monkeypatch.setattr(owner, name, watched)

    def _path(self, one: object) -> Path | None:
        if isinstance(one, int):
            held = Path(f"/proc/self/fd/{one}")
            return held.readlink() if held.exists() else None
        return Path(os.fsdecode(one)) if isinstance(one, (str, bytes, os.PathLike)) else None

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._root))

    def _opened(self, path: Path, _: object, mode: object = "r") -> None:
        created = mode & os.O_CREAT if isinstance(mode, int) else set(mode) & set("wxa")
        if created:
            self._synced.discard(path)
            self._unsynced.add(path)

    def _made(self, path: Path, *_: object) -> None:
        self._unsynced.add(path)

    def _renamed(self, source: Path, target: Path, *_: object) -> None:
        self.calls.append(("rename", self._name(target)))
        if source not in self._synced:
            self.faults.append(self._name(target))
        self._unsynced.discard(source)
        self._unsynced.add(target)
        self._synced.add(target)

    def _removed(self, path: Path, *_: object) -> None:
        self._unsynced.discard(path)

    def _fsynced(self, path: Path, *_: object) -> None:
        self.calls.append(("fsync", self._name(path)))
        self._synced.add(path)
        self._unsynced = {one for one in self._unsynced if one.parent != path}


def refuse(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Let the disk fail once, when this file or folder is fsynced."""
    real, left = os.fsync, [path]

    def fsync(descriptor):
        if left and os.path.samestat(os.fstat(descriptor), path.stat()):
            left.clear()
            raise OSError(errno.EIO, "the disk failed")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
