"""``unskew serve`` with many clients at once: while Redis fails, among slow ones, and at its limit of open files."""

import asyncio
import contextlib
import http.client
import json
import os
import resource
import socket
import ssl
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest

from tests.serving.test_http import Server, detail, fill, serving
from tests.support.servers.certificates import certified
from tests.support.servers.valkey import Valkey, wait_until
from unskew.serving.http import Application, Limits
from unskew.serving.online import OnlineReader

ASKED = {"entities": {"user": ["u7"], "hotel": [1]}, "features": ["stays:nights"]}
BODY = json.dumps(ASKED).encode()
HEAD = b"POST /get-online-features HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(BODY)
# What the server promises, and what a machine that does other things besides may add for the slowest of many requests.
PROMISED_S = 1.0
WITHIN_S = 10.0


class Asked(NamedTuple):
    """When a request was sent and how long its answer took, by the clock of the test; its code and its values."""

    at_s: float
    took_s: float
    code: int
    values: Any
    provisional: Any


class Client:
    """A client that asks again and again over one connection, which it never opens anew."""

    def __init__(self, server: Server) -> None:
        self.answers: list[Asked] = []
        self._connection = server.connection()
        self._connection.connect()
        self._connection.auto_open = 0

    def ask_until(self, stop: threading.Event) -> None:
        while not stop.is_set():
            began_s = time.monotonic()
            self._connection.request("POST", "/get-online-features", BODY)
            answer = self._connection.getresponse()
            found = json.loads(answer.read())
            took_s = time.monotonic() - began_s
            if answer.status == 200:
                values, about = found["results"][2]["values"], found["metadata"]["views"]["stays"]
                self.answers.append(Asked(began_s, took_s, 200, values, about["provisional"]))
            else:
                self.answers.append(Asked(began_s, took_s, answer.status, detail(found), None))
        self._connection.close()


class Load:
    """Clients that ask at the same time, each over a connection of its own, while the ``with`` statement lasts."""

    def __init__(self, server: Server, n_clients: int) -> None:
        self.clients = [Client(server) for _ in range(n_clients)]
        self.failed: list[BaseException] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._watched, args=(one,)) for one in self.clients]

    def _watched(self, client: Client) -> None:
        try:
            client.ask_until(self._stop)
        except BaseException as error:  # noqa: BLE001 - it is raised in the test's own thread
            self.failed.append(error)

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        assert not any(thread.is_alive() for thread in self._threads), "a request hangs"
        assert self.failed == []

    def all_get(self, code: int, n: int = 5) -> float:
        """Wait until each client has got this code for so many requests that it sends from now on; return now."""
        now_s = time.monotonic()

        def have() -> bool:
            got = [[one for one in client.answers if one.at_s > now_s and one.code == code] for client in self.clients]
            return bool(self.failed) or all(len(answers) >= n for answers in got)

        wait_until(have, f"all clients get {code}", 60)
        assert self.failed == []
        return now_s


@contextlib.contextmanager
def killed(redis: Valkey) -> Iterator[None]:
    """``kill -9``; afterwards it is started at the same port, and filled again."""
    redis.kill()
    yield
    redis.start()
    fill(redis.url)


@pytest.mark.parametrize("failing", [killed, Valkey.paused])
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_redis_that_fails_under_load_gives_every_client_503_within_a_second_and_is_found_again(
    tmp_path: Path, failing: Callable[[Valkey], contextlib.AbstractContextManager[None]], workers: int
) -> None:
    with Valkey(tmp_path / "one") as redis:
        fill(redis.url)
        with serving(redis.url, "--workers", str(workers)) as server:
            with Load(server, 16) as load:
                load.all_get(200)
                with failing(redis):
                    since_s = load.all_get(503)
                    assert server.get("/ready")[0] == 503
                    assert server.get("/health") == (200, {"status": "ok"})
                    assert server.get("/v1/features")[0] == 503
                    until_s = time.monotonic()
                load.all_get(200)
            assert server.get("/ready") == (200, {"ready": True})
            assert server.post(ASKED)[1]["results"][2]["values"] == [7]

    answers = [one for client in load.clients for one in client.answers]
    assert {one.code for one in answers} == {200, 503}
    away = [one.took_s for one in answers if since_s < one.at_s < until_s and one.code == 503]
    assert statistics.median(away) < PROMISED_S
    assert max(one.took_s for one in answers) < WITHIN_S
    for one in answers:
        # While it is filled again, the registry is there before the values, and what lacks is provisional.
        assert one.code == 503 or one.values == [7] or one.provisional == [True], one
        if one.code == 503:
            assert one.values[0] == "FeastError"
            assert "Redis" in one.values[1] or "nothing is published" in one.values[1], one


@contextlib.contextmanager
def as_many_files(n: int) -> Iterator[int]:
    """Let this process open so many files, or as many as it may; yield how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    permitted = n if hard == resource.RLIM_INFINITY else min(n, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, permitted), hard))
    yield permitted
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Slow:
    """A connection that does nothing, or sends a byte of a head or of a body at each ``move``, or half of a body."""

    def __init__(self, port: int, kind: int) -> None:
        self._port = port
        self._rest = {0: b"", 1: HEAD + BODY, 2: HEAD + BODY[: len(BODY) // 2], 3: HEAD + BODY}[kind]
        self._kind = kind
        self.n_opened = 0
        self._open()

    def _open(self) -> None:
        self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=30)
        self._socket.setblocking(False)
        self.n_opened += 1
        self._n_sent = 0
        if self._kind in {2, 3}:
            self._n_sent = self._socket.send(self._rest if self._kind == 2 else HEAD)

    def move(self) -> None:
        """Send what comes next; come again if the server has cut the connection off."""
        try:
            # One byte before the last it stops, because the last one would make an ordinary request of it.
            if self._kind in {1, 3} and self._n_sent < len(self._rest) - 1:
                self._n_sent += self._socket.send(self._rest[self._n_sent : self._n_sent + 1])
            is_cut_off = self._socket.recv(1 << 10) is not None
        except BlockingIOError:
            return
        except OSError:
            is_cut_off = True
        if is_cut_off:
            self._socket.close()
            self._open()

    def close(self) -> None:
        self._socket.close()


def n_files(server: Server) -> int:
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def test_five_thousand_idle_and_slow_connections_stop_nobody(tmp_path: Path) -> None:
    wanted, spare = 5_000, 600
    with Valkey(tmp_path / "one") as redis, as_many_files(wanted + spare) as permitted:
        fill(redis.url)
        n = permitted - spare
        # It begins with the limit that many systems give, and raises it.
        with serving(redis.url, files="-Sn 1024") as server, contextlib.ExitStack() as stack:
            crowd: list[Slow] = []
            for number in range(n):
                crowd.append(stack.enter_context(contextlib.closing(Slow(server.port, number % 4))))
                if number % 500 == 499:
                    # No more come at once than the system lets wait, or their next try would be seconds later.
                    wait_until(lambda number=number: n_files(server) > number, "it has taken them", 60)
            stop, failed, held = threading.Event(), list[BaseException](), list[int]()

            def move() -> None:
                try:
                    while not stop.is_set():
                        for one in crowd:
                            one.move()
                except BaseException as error:  # noqa: BLE001 - it is raised in the test's own thread
                    failed.append(error)

            moving = threading.Thread(target=move)
            moving.start()
            try:
                took_s = []
                with contextlib.closing(server.connection()) as kept:
                    for number in range(60):
                        if number % 20 == 10:
                            # So that connections to Redis, too, are made past all others.
                            redis.client.client_kill_filter(_type="normal", skipme=True)
                        for ask in (server.post, lambda body: over(kept, body)):
                            began_s = time.monotonic()
                            code, answer = ask(ASKED)
                            took_s.append(time.monotonic() - began_s)
                            assert code == 200, (number, answer, took_s)
                            assert answer["results"][2]["values"] == [7]
                        assert server.get("/health") == (200, {"status": "ok"})
                        held.append(n_files(server))
                    assert server.get("/ready") == (200, {"ready": True})
            finally:
                stop.set()
                moving.join(60)
            assert failed == []
            assert max(took_s) < WITHIN_S
            # It cuts many off at once, ten seconds after they all came, and they come again.
            assert statistics.median(held) > 0.9 * n, f"of {n:,} connections it held {held}"
    if n < wanted:
        pytest.skip(f"the limit of open files permits {n:,} connections, which stop nobody; {wanted:,} were not tried")


def over(connection: http.client.HTTPConnection, body: object) -> tuple[int, Any]:
    connection.request("POST", "/get-online-features", json.dumps(body))
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def processor_s(server: Server) -> float:
    words = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def test_a_server_that_may_open_no_more_files_refuses_new_clients_politely_and_goes_on_for_the_others(
    tmp_path: Path,
) -> None:
    with Valkey(tmp_path / "one") as redis:
        fill(redis.url)
        server = Server(redis.url, files="-n 120")
        with contextlib.closing(server.connection()) as kept, contextlib.ExitStack() as stack:
            assert over(kept, ASKED)[0] == 200
            crowd = [
                stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
                for _ in range(200)
            ]

            # 30 of its files are left for all else. Those who ask are told, once those who do not are gone.
            def refused() -> tuple[int, Any]:
                with contextlib.suppress(ConnectionError, http.client.HTTPException):
                    return server.get("/health")
                return 0, None

            wait_until(lambda: refused()[0] == 503, "a client is told")
            code, answer = refused()
            assert (code, detail(answer)) == (
                503,
                (
                    "FeastError",
                    "this server has 90 connections, for which this process may have open files (ulimit -n); try again",
                ),
            )
            # Of the others none is disturbed, nor is a new connection to Redis.
            redis.client.client_kill_filter(_type="normal", skipme=True)
            assert over(kept, ASKED)[1]["results"][2]["values"] == [7]
            before_s, began_s = processor_s(server), time.monotonic()
            time.sleep(1)
            assert processor_s(server) - before_s < 0.5 * (time.monotonic() - began_s), "it spins"
            for one in crowd:
                one.close()
            wait_until(lambda: refused()[0] == 200, "clients are taken again")
            assert server.post(ASKED)[0] == 200
        assert server.stop() == 0
        assert server.process.stderr is not None
        with server.process.stderr as errors:
            assert errors.read() == (
                "clients are refused beyond 90 connections, for which this process may have open files (ulimit -n)\n"
            )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Valkey(tmp_path_factory.mktemp("valkey")) as redis:
        fill(redis.url)
        with serving(redis.url) as server:
            server.redis = redis  # type: ignore[attr-defined]
            yield server


def all_of(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(1 << 16), b""))


def test_a_client_that_sends_no_more_after_its_requests_gets_their_answers(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(HEAD + BODY)
        client.shutdown(socket.SHUT_WR)
        head, _, body = all_of(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in head
    assert json.loads(body)["results"][2]["values"] == [7]

    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(2 * (HEAD + BODY) + b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        got = all_of(client)
    assert (got.count(b"HTTP/1.1 200 "), got.count(b"connection: close")) == (3, 1)
    assert got.endswith(b'{"status":"ok"}')

    # Also where the answer takes its time.
    with server.redis.paused(), socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:  # type: ignore[attr-defined]
        client.sendall(HEAD + BODY)
        client.shutdown(socket.SHUT_WR)
        assert all_of(client).startswith(b"HTTP/1.1 503 ")


@pytest.mark.parametrize("sent", [b"", HEAD[:30], HEAD + BODY[:10], HEAD + BODY + HEAD + BODY[:10]])
def test_a_client_that_sends_no_more_in_the_middle_is_let_go(server: Server, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(sent)
        client.shutdown(socket.SHUT_WR)
        all_of(client)

    assert server.post(ASKED)[0] == 200


def test_over_tls_a_client_that_closes_its_side_is_let_go(tmp_path: Path) -> None:
    made = certified(tmp_path / "tls")
    trusting = ssl.create_default_context(cafile=str(made.authority))
    options = ["--tls-cert", str(made.certificate), "--tls-key", str(made.key)]
    with Valkey(tmp_path / "one") as redis:
        fill(redis.url)
        with serving(redis.url, *options, tls=trusting) as server:
            for _ in range(3):
                with (
                    socket.create_connection(("127.0.0.1", server.port), timeout=20) as client,
                    trusting.wrap_socket(client, server_hostname="127.0.0.1") as spoken,
                ):
                    spoken.sendall(HEAD + BODY)
                    with contextlib.suppress(OSError):
                        spoken.unwrap().close()
            assert server.post(ASKED)[0] == 200
            assert server.stop() == 0
            assert server.process.stderr is not None
            assert server.process.stderr.read() == ""


def test_clients_that_are_slow_to_send_bodies_do_not_count_as_requests_that_are_answered(tmp_path: Path) -> None:
    with Valkey(tmp_path / "one") as redis, contextlib.ExitStack() as stack:
        fill(redis.url)
        with serving(redis.url, "--max-requests", "2") as server:
            for _ in range(20):
                slow = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
                slow.sendall(HEAD + BODY[:10])
                last = slow
            assert [server.post(ASKED)[0] for _ in range(5)] == [200] * 5
            last.sendall(BODY[10:])
            assert last.recv(1 << 16).startswith(b"HTTP/1.1 200 ")

            # While Redis stands still, two are being answered, and the body of another has come.
            with redis.paused():
                busy = [
                    stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
                    for _ in range(2)
                ]
                for one in busy:
                    one.sendall(HEAD + BODY)
                wait_until(lambda: server.post(ASKED)[0] == 503, "a third one is refused")


def test_bodies_that_are_on_their_way_have_a_bounded_part_of_the_memory_together() -> None:
    app = Application(OnlineReader("redis://127.0.0.1:1/0"), Limits(body_bytes=1_000, coming_bytes=1_500))
    codes: list[int] = []

    async def ask(parts: list[bytes], more: asyncio.Event) -> None:
        async def receive() -> dict[str, Any]:
            if not parts:
                await more.wait()
                return {"type": "http.request", "body": b"x", "more_body": False}
            return {"type": "http.request", "body": parts.pop(), "more_body": True}

        async def send(message: Any) -> None:
            codes.append(message.get("status", 0))

        await app({"type": "http", "path": "/get-online-features", "method": "POST", "headers": []}, receive, send)

    async def several() -> None:
        more = asyncio.Event()
        first = asyncio.create_task(ask([b"x" * 900], more))
        await asyncio.sleep(0)
        await ask([b"x" * 700], more)
        assert codes == [503, 0]
        # The first one is read to its end, where it is no request; then there is room again.
        more.set()
        await first
        await ask([b"x" * 700], more)
        assert codes == [503, 0, 422, 0, 422, 0]

    asyncio.run(several())
