"""A disk of a test's own that can be full or read-only."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(folder: Path, n_megabytes: int) -> Iterator[None]:
    """A file system of that size, mounted at ``folder``; the test is skipped where this process may not mount any."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={n_megabytes}m,mode=0700", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs the right to mount a file system: {getattr(error, 'stderr', '') or error}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Make the file system mounted at ``folder`` read-only during the body; no file on it may be open for writing."""
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)


@contextlib.contextmanager
def filled_up(folder: Path, *, leave: int = 0) -> Iterator[None]:
    """At most ``leave`` bytes are free on the file system of ``folder`` while the body lasts."""
    ballast = folder / f"ballast-{leave}"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while (disk := os.statvfs(folder)).f_bavail * disk.f_frsize > leave or not leave:
            file.write(bytes(4096))
    try:
        yield
    finally:
        ballast.unlink()
