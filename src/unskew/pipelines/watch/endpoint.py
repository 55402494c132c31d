"""The HTTP endpoint that exposes a process's metrics and health."""

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from socketserver import TCPServer
from typing import Any, Protocol
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer
from typing_extensions import override

from unskew.features.errors import RequestError

_SILENT_CLIENT_S = 10.0
_STOP_POLL_S = 0.05

_log = logging.getLogger("unskew.metrics")

_Start = Callable[[str, list[tuple[str, str]]], object]
_App = Callable[[dict[str, Any], _Start], Iterable[bytes]]


class Watched(Protocol):
    """What a process says of its health.

    ``dead_reasons``: why to restart it; empty while it works. ``unready_reasons``: why it is not at work; empty while
    it is. ``facts``: what accompanies both, as JSON.
    """

    def dead_reasons(self) -> list[str]: ...
    def unready_reasons(self) -> list[str]: ...
    def facts(self) -> dict[str, object]: ...


class _Handler(WSGIRequestHandler):
    # A client that connects and sends nothing holds a thread for at most this long.
    timeout = _SILENT_CLIENT_S

    @override
    def log_message(self, format: str, *args: object) -> None:
        """Log nothing for each request."""


class _Server(ThreadingWSGIServer):
    @override
    def server_bind(self) -> None:
        # HTTPServer's own method asks the resolver for this machine's full name, which may take seconds.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a client that disconnects early at debug level only."""
        _log.debug("a request from %s was not answered", client_address, exc_info=True)


def _server_of(family: socket.AddressFamily) -> type[_Server]:
    class OfFamily(_Server):
        address_family = family

    return OfFamily


@contextmanager
def answering(address: tuple[str, int], metrics: CollectorRegistry, watched: Watched) -> Iterator[None]:
    """Serve HTTP at ``address`` (host, port) only, until the end of the block.

    ``/metrics``: for Prometheus. ``/health``: 200 while the process works or knowingly waits, else 503: restart it.
    ``/ready``: 200 while it is at work, else 503. Both answer JSON with reasons. Raises ``RequestError`` if the address
    cannot be used.
    """
    host, port = address
    try:
        family, _, _, _, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        server = _server_of(family)((str(found[0]), port), _Handler)
    except OSError as error:
        raise RequestError(
            f"metrics at {host}:{port}: {error.strerror or error}; choose another HOST:PORT with --metrics, or omit it"
        ) from error
    server.set_app(_app(metrics, watched))
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": _STOP_POLL_S}, name="unskew-metrics", daemon=True
    )
    thread.start()
    _log.info("metrics at http://%s:%d/metrics", host, port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _app(registry: CollectorRegistry, watched: Watched) -> _App:
    """Return the WSGI application."""
    metrics: _App = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start: _Start) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return metrics(environ, start)
        if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            return _reply(start, "405 Method Not Allowed", {"error": "only GET is answered"})
        if path in {"/health", "/ready"}:
            reasons = watched.dead_reasons() if path == "/health" else watched.unready_reasons()
            status = "503 Service Unavailable" if reasons else "200 OK"
            return _reply(start, status, {"ok": not reasons, "reasons": reasons, **watched.facts()})
        return _reply(
            start, "404 Not Found", {"error": f"{path} is not here", "paths": ["/metrics", "/health", "/ready"]}
        )

    return answer


def _reply(start: _Start, status: str, body: dict[str, object]) -> list[bytes]:
    text = json.dumps(body).encode() + b"\n"
    start(status, [("Content-Type", "application/json"), ("Content-Length", str(len(text)))])
    return [text]
