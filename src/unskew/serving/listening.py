"""The process of ``unskew serve``: uvicorn on a socket that is bound already."""

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast

import uvicorn
from typing_extensions import override
from uvicorn.config import STARTUP_FAILURE
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.supervisors.multiprocess import Multiprocess

from unskew.features.errors import RequestError
from unskew.serving import feast
from unskew.serving.http import WHOLE, Application, Headers

GRACE_S = 10
"""Seconds that requests which were begun have to come to their end after SIGTERM."""
IDLE_S = 75
"""Seconds after which a connection without a request is closed."""
CLOSING_S = 1
"""Seconds that a client has, when the server stops, to do its part in the end of a connection that asks for nothing."""
HEALTH_S = 30
"""Seconds after which a worker that does not answer to its supervisor is killed and replaced."""
HEAD_S = 10
"""Seconds that the head of a request may take to come."""
HEAD_BYTES = 1 << 16
"""Bytes that the head of a request may have, and a piece of the network besides."""
MOST_FILES = 1 << 16
"""Open files that a process asks the system for; each connection is one."""
SPARE_FILES = 256
"""Of these, what clients leave for Redis and all else, or a quarter if a process may have few; a quarter of it is for
connections that are refused."""
WAITING = 1 << 15
"""Clients that may wait to be taken, if the system permits it; one that finds no place tries again after seconds."""

_NEVER_S = float("inf")
_log = logging.getLogger("unskew.serve")


def configured(
    make: Callable[[], Application], tls_cert: Path | None, tls_key: Path | None, n_workers: int = 1
) -> uvicorn.Config:
    """Return how to answer; ``make`` is called in each process. Raises ``RequestError`` for an unusable certificate."""
    try:
        if tls_cert is not None:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls_cert, tls_key, password="")
    except (ssl.SSLError, OSError) as error:
        raise RequestError(
            f"--tls-cert {tls_cert}, --tls-key {tls_key}: {error}; give a certificate and its own private key, in PEM, without a "
            "password"
        ) from error
    return uvicorn.Config(
        make,
        factory=True,
        workers=n_workers,
        backlog=WAITING,
        http=_Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=GRACE_S,
        timeout_worker_healthcheck=HEALTH_S,
        ssl_certfile=None if tls_cert is None else str(tls_cert),
        ssl_keyfile=None if tls_key is None else str(tls_key),
    )


def run(config: uvicorn.Config, listener: socket.socket) -> None:
    """Answer until SIGTERM or SIGINT, in this process or, if there are several workers, in processes of their own.

    A worker that dies, or that does nothing for a long time, is replaced. Workers stop with this process, even if it is
    killed. Raises ``RequestError`` if a worker cannot begin.
    """
    raise_file_limit()
    if config.workers == 1:
        quiet()
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(_Server(config).serve(sockets=[listener]))
        return
    supervisor = Multiprocess(config, sockets=[listener])
    supervisor.run()
    if any(worker.exitcode == STARTUP_FAILURE for worker in supervisor.processes):
        raise RequestError("a worker could not begin; its messages say why")


def quiet() -> None:
    """Leave out of the log what clients send that is not HTTP: it is no matter of this process."""
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)


def raise_file_limit() -> None:
    """Let this process, and those that it starts, have as many open files as the system permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # A system may permit less than it says.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@cache
def _most_connections() -> tuple[int, int]:
    """Return how many connections this process has at once, and how many with those that it refuses."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    n_files = MOST_FILES if soft == resource.RLIM_INFINITY else soft
    spare = min(SPARE_FILES, n_files // 4)
    return n_files - spare, n_files - spare + spare // 4


@cache
def _full() -> bytes:
    """Return the answer to a client that comes when there are as many connections as may be; the log says so once."""
    most = f"{_most_connections()[0]:,} connections, for which this process may have open files (ulimit -n)"
    _log.warning("clients are refused beyond %s", most)
    body = feast.error(f"this server has {most}; try again")
    head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: "
    return b"%b%d\r\n\r\n%b" % (head.encode(), len(body), body)


def end_with(parent: int) -> None:
    """Let this process end, as if it were asked to, once ``parent`` is not its parent any more."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="unskew-parent", daemon=True).start()


class _Server(uvicorn.Server):
    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at a signal; uvicorn's own method would end the process by the same signal then, as if it had failed."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Protocol(HttpToolsProtocol):
    """One connection, whose requests must come with their heads in bounded time and space; uvicorn waits for ever."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._in_head = True
        self._n_head_bytes = 0
        self._ends_at_s = _NEVER_S
        self._timer: asyncio.TimerHandle | None = None
        self._is_refused = False

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast("asyncio.Transport", _Together(transport, self.loop)))
        most, most_with_refused = _most_connections()
        n_connections = len(self.connections)
        self._is_refused = n_connections > most
        if n_connections > most_with_refused:
            self._end()
        else:
            self._wait(CLOSING_S if self._is_refused else IDLE_S)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    @override
    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            # Not before the client has asked: an answer is lost if what it sends meets a connection that is closed.
            self.transport.write(_full())
            self._end()
            return
        is_first = self._in_head and not self._n_head_bytes
        if self._in_head:
            self._n_head_bytes += len(data)
        super().data_received(data)
        # A piece may end a head and begin a body, so the parser sees it first; it nearly always has all of a head.
        if self._in_head and self._n_head_bytes:
            if self._n_head_bytes > HEAD_BYTES:
                self._end()
            elif is_first:
                self._wait(HEAD_S)

    @override
    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Answer what was asked to a client that sends no more, but still reads; over TLS no connection can do that."""
        # None before the first request, though uvicorn does not say so.
        asked = cast("RequestResponseCycle | None", self.cycle)
        if self.scheme != "http" or asked is None or asked.response_complete or asked.more_body:
            return None
        asked.keep_alive = False
        return True

    @override
    def on_headers_complete(self) -> None:
        self._in_head = False
        self._wait(None)
        super().on_headers_complete()
        self.scope["extensions"] = {WHOLE: _Whole(self.cycle)}  # type: ignore[dict-item]

    @override
    def on_message_complete(self) -> None:
        self._in_head, self._n_head_bytes = True, 0
        super().on_message_complete()

    @override
    def on_response_complete(self) -> None:
        """Do what uvicorn does, with the timer that each connection has, and not with one for each request."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif not self._n_head_bytes:
            # Otherwise the next head has begun, and has its own time.
            self._wait(IDLE_S)

    @override
    def shutdown(self) -> None:
        super().shutdown()
        # Over TLS, the end of a connection waits for the client, which may not look at it before its next request.
        if self.transport.is_closing():
            self.loop.call_later(CLOSING_S, self.transport.abort)

    def _wait(self, seconds: float | None) -> None:
        """Close the connection after some time, unless this is called again before; with None, never."""
        if seconds is None:
            self._ends_at_s = _NEVER_S
            return
        self._ends_at_s = self.loop.time() + seconds
        # A timer that is due before is moved then: most connections are asked again, and nothing is done meanwhile.
        if self._timer is None or self._timer.when() > self._ends_at_s:
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_at(self._ends_at_s, self._look_at_the_time)

    def _look_at_the_time(self) -> None:
        self._timer = None
        if self.loop.time() >= self._ends_at_s:
            self._end()
        elif self._ends_at_s != _NEVER_S:
            self._set_timer()

    def _end(self) -> None:
        self._wait(None)
        if not self.transport.is_closing():
            self.transport.close()


class _Together:
    """A transport that sends what is written in one turn of the loop at once: the head of an answer and its body."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send bytes, with all that is written in this turn."""
        if not self._held:
            self._loop.call_soon(self._send)
        self._held.append(data)

    def write_whole(self, data: bytes) -> None:
        """Send bytes that nothing belongs to."""
        if self._held:
            self._held.append(data)
        else:
            self._transport.write(data)

    def close(self) -> None:
        """Close once everything is sent."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._held:
            data, self._held = b"".join(self._held), []
            self._transport.write(data)


class _Whole:
    """The request and the answer of a cycle, see ``http.Whole``."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    def body(self) -> bytes | None:
        cycle = self._cycle
        is_whole = not (cycle.more_body or cycle.waiting_for_100_continue or cycle.disconnected)
        return bytes(cycle.body) if is_whole else None

    async def send(self, code: int, headers: Headers, body: bytes) -> None:
        """Do what ``cycle.send`` does for a head and a body, with one write and without checks of what is our own."""
        cycle = self._cycle
        if cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if cycle.disconnected:
            return
        cycle.response_started, cycle.waiting_for_100_continue = True, False
        lines = [STATUS_LINE[code], *[b"%b: %b\r\n" % header for header in headers]]
        if CLOSE_HEADER in headers:
            cycle.keep_alive = False
        elif not cycle.keep_alive:
            lines.append(b"%b: %b\r\n" % CLOSE_HEADER)
        lines += (b"\r\n", b"" if cycle.scope["method"] == "HEAD" else body)
        cast("_Together", cycle.transport).write_whole(b"".join(lines))
        cycle.response_complete = True
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()
