"""Answer every request with the same bytes: what HTTP alone costs; run by bench_serving.py.

    python bare_http.py PORT BYTES

The server is that of ``unskew serve``: uvicorn, with its loop and its parser.
"""

import socket
import sys

from unskew.serving.http import WHOLE, Receive, Scope, Send
from unskew.serving.listening import configured, run


class Bare:
    def __init__(self, body: bytes) -> None:
        self._headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = ""
        while scope["type"] == "lifespan" and kind != "lifespan.shutdown":
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
        if scope["type"] == "http":
            await receive()
            await scope["extensions"][WHOLE].send(200, self._headers, self._body)


def main() -> None:
    port, n_bytes = map(int, sys.argv[1:])
    listener = socket.create_server(("127.0.0.1", port))
    run(configured(lambda: Bare(b"{%b}" % (b" " * (n_bytes - 2))), None, None), listener)  # type: ignore[arg-type,return-value]


if __name__ == "__main__":
    main()
