"""Requests of one kind over several connections, as fast as answers come; run by bench_serving.py.

    python load_http.py PORT PATH BODY_FILE CONNECTIONS SECONDS

Prints JSON: the number of answers, the seconds, and p50 and p99 of the time of an answer in milliseconds. It knows the
length of an answer from the first one; answers of other lengths end it.
"""

import asyncio
import json
import sys
import time
from pathlib import Path

import uvloop


class Client(asyncio.Protocol):
    """One connection: the next request leaves when the answer has come."""

    def __init__(self, request: bytes, length: int, until: float, times: list[float], ended: asyncio.Event) -> None:
        self._request, self._length, self._until, self._times, self._ended = request, length, until, times, ended
        self._n_bytes = 0
        self._began = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._ask()

    def _ask(self) -> None:
        self._began = time.perf_counter()
        self._transport.write(self._request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._n_bytes += len(data)
        if self._n_bytes < self._length:
            return
        if self._n_bytes > self._length or not data.rstrip().endswith(b"}"):
            raise SystemExit("an answer has another length than the first one")
        self._n_bytes = 0
        now = time.perf_counter()
        self._times.append(now - self._began)
        if now < self._until:
            self._ask()
        else:
            self._ended.set()


async def length_of(port: int, request: bytes) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise SystemExit(head.decode())
    (line,) = (line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    writer.close()
    return len(head) + int(line.partition(b":")[2])


async def load(port: int, request: bytes, n_connections: int, seconds: float) -> dict[str, float]:
    length = await length_of(port, request)
    times: list[float] = []
    began = time.perf_counter()
    ended = [asyncio.Event() for _ in range(n_connections)]
    for event in ended:
        await asyncio.get_running_loop().create_connection(
            lambda event=event: Client(request, length, began + seconds, times, event), "127.0.0.1", port
        )
    await asyncio.gather(*(event.wait() for event in ended))
    took = time.perf_counter() - began
    times.sort()
    p50, p99 = (times[int(len(times) * share)] * 1e3 for share in (0.5, 0.99))
    return {"answers": len(times), "seconds": took, "p50": p50, "p99": p99}


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
