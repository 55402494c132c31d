"""Requests of one kind over several connections, as fast as answers come; run by bench_serving.py.

    python load_http.py PORT PATH BODY_FILE CONNECTIONS SECONDS

Prints JSON: the number of answers, the seconds, p50 and p99 of the time of an answer in milliseconds, and the bytes of
the last answer without its head. An answer that is not 200, or that does not say its length, ends it.
"""

import asyncio
import json
import sys
import time
from functools import partial
from pathlib import Path

import uvloop


class Client(asyncio.Protocol):
    """One connection: the next request leaves when the answer has come."""

    def __init__(self, request: bytes, until: float, times: list[float], ended: asyncio.Future[None]) -> None:
        self._request, self._until, self._times, self._ended = request, until, times, ended
        self._found = b""
        self._length: int | None = None
        self.n_body_bytes = 0
        self._began = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._found, self._length = b"", None
        self._began = time.perf_counter()
        self._transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._found += data
        if self._length is None:
            self._length = self._whole()
        if self._length is None or len(self._found) < self._length:
            return
        now = time.perf_counter()
        self._times.append(now - self._began)
        if now < self._until:
            self._ask()
        elif not self._ended.done():
            self._ended.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_exception(SystemExit(f"the server closed a connection: {error}"))

    def _whole(self) -> int | None:
        """Return how long the answer is with its head; None if that has not come yet."""
        head, end, _ = self._found.partition(b"\r\n\r\n")
        if not end:
            return None
        _, named, rest = head.lower().partition(b"\r\ncontent-length:")
        if not head.startswith(b"HTTP/1.1 200 ") or not named:
            self._ended.set_exception(SystemExit(self._found[:1_000].decode(errors="replace")))
            return None
        self.n_body_bytes = int(rest.partition(b"\r")[0])
        return len(head) + 4 + self.n_body_bytes


async def load(port: int, request: bytes, n_connections: int, seconds: float) -> dict[str, float]:
    times: list[float] = []
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    ended = [loop.create_future() for _ in range(n_connections)]
    made = [partial(Client, request, began + seconds, times, one) for one in ended]
    clients = [(await loop.create_connection(one, "127.0.0.1", port))[1] for one in made]
    await asyncio.gather(*ended)
    took = time.perf_counter() - began
    times.sort()
    p50, p99 = (times[int(len(times) * share)] * 1e3 for share in (0.5, 0.99))
    n_bytes = clients[0].n_body_bytes
    return {"answers": len(times), "seconds": took, "p50": p50, "p99": p99, "bytes": n_bytes}


def main() -> None:
    port, path, body_file, n_connections, seconds = sys.argv[1:]
    body = Path(body_file).read_bytes()
    request = (
        b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        % (
            path.encode(),
            len(body),
            body,
        )
    )
    print(json.dumps(uvloop.run(load(int(port), request, int(n_connections), float(seconds)))))


if __name__ == "__main__":
    main()
