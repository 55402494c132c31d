"""The process of ``unskew serve``: uvicorn on a socket that is bound already."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from typing_extensions import override

from unskew.serving.http import Application

_GRACE_S = 10
"""Seconds that requests which were begun have to come to their end after SIGTERM."""
_IDLE_S = 75
"""Seconds after which a connection without a request is closed."""


def run(application: Application, listener: socket.socket, tls_cert: Path | None, tls_key: Path | None) -> None:
    """Answer until SIGTERM or SIGINT."""
    config = uvicorn.Config(
        application,
        http="httptools",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=_GRACE_S,
        ssl_certfile=None if tls_cert is None else str(tls_cert),
        ssl_keyfile=None if tls_key is None else str(tls_key),
    )
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_Server(config).serve(sockets=[listener]))


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
