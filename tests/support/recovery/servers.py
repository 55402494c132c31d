"""A Redis that can be killed, paused and started again at the same address, and a disk that can be full."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
import redis

from tests.support.recovery.processes import free_port
from unskew.demo.embedded import _valkey_path
from unskew.sinks.redis.keyspace import connect


class RestartableRedis:
    """Valkey in memory alone, on a port of its own that it keeps."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._server: subprocess.Popen[bytes] | None = None
        self.url = f"redis://127.0.0.1:{self._port}/0"

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        options = ["--bind", "127.0.0.1", "--port", str(self._port), "--save", "", "--dir", str(self._folder)]
        self._server = subprocess.Popen(
            [str(_valkey_path()), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        with connect(self.url) as client:
            for _ in range(1000):
                with contextlib.suppress(redis.ConnectionError):
                    client.ping()
                    return
                time.sleep(0.01)
        raise AssertionError(f"no answer from Redis on port {self._port}")

    def kill(self) -> None:
        """``kill -9``: what it held is gone."""
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stand still, connections open, while the body lasts."""
        assert self._server is not None
        os.kill(self._server.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._server.pid, signal.SIGCONT)

    @contextlib.contextmanager
    def out_of_memory(self) -> Iterator[None]:
        """Refuse whatever needs memory while the body lasts."""
        with connect(self.url) as client:
            client.config_set("maxmemory", 1)
            yield
            client.config_set("maxmemory", 0)

    @contextlib.contextmanager
    def demoted(self) -> Iterator[None]:
        """Be the replica of a primary that nobody reaches, and so read-only, while the body lasts."""
        with connect(self.url) as client:
            client.replicaof("127.0.0.1", 1)  # type: ignore[no-untyped-call]
            yield
            client.replicaof("NO", "ONE")  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


@contextlib.contextmanager
def small_disk(folder: Path, n_megabytes: int) -> Iterator[None]:
    """A file system of that size, mounted at ``folder``; the test is skipped where this process may not mount any."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={n_megabytes}m", "tmpfs", str(folder)]
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
def filled_up(folder: Path) -> Iterator[None]:
    """Not a byte is free on the file system of ``folder`` while the body lasts."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    try:
        yield
    finally:
        ballast.unlink()
