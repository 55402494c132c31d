"""``unskew serve`` against clients that send what nobody should, and thousands of them; and while Redis is away."""

import contextlib
import datetime as dt
import json
import random
import socket
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.serving.test_http import FEATURES, STAYS, Server, detail, fill, serving
from tests.support.servers.valkey import Valkey
from tests.support.typed import ORDERS
from unskew import Derived, OnDemand, Service
from unskew.features.definitions.on_demand import plan_on_demand
from unskew.features.definitions.services import pinned
from unskew.features.plan import Plan
from unskew.features.registry import describe
from unskew.features.versions import Versions
from unskew.sinks.redis.writer import RedisWriter

ASKED = OnDemand(
    "asked",
    inputs={
        "f": "float64",
        "i": "int64",
        "b": "bool",
        "s": "string",
        "t": "timestamp",
        "d": "decimal(38,2)",
    },
    features=[
        Derived("ratio", "f / i"),
        Derived("square", "i * i"),
        Derived("not_b", "NOT b"),
        Derived("length", "char_length(s)"),
        Derived("number", "TRY_CAST(s AS BIGINT)"),
        Derived("hour", "extract(hour FROM t)"),
        Derived("seconds", "seconds_between(t, now)"),
        Derived("later", "coalesce(t, now)"),
        Derived("dear", "d > 1"),
        Derived("to_nights", "f / stays:nights"),
    ],
)
ON_DEMAND = [f"asked:{feature.name}" for feature in ASKED.features]
BODY = {"entities": {"user": ["u7"], "hotel": [1]}, "features": ["stays:nights"]}


def fill_all(url: str) -> None:
    """What ``fill`` writes, and on-demand features with inputs of every type."""
    fill(url)
    views = Versions([ORDERS, STAYS])
    published = Plan(streams={}, views=views).published
    plan = Plan(streams={}, views=views, on_demand={"asked": plan_on_demand(ASKED, published)})
    checkout = pinned(Service("checkout", ["stays:nights", "orders:n"]), plan.published)
    writer = RedisWriter(url, "unskew", "main")
    writer.publish_registry(json.dumps(describe(replace(plan, services={"checkout": checkout}))))
    writer.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that must have written nothing into its log when the test is over."""
    with Valkey(tmp_path / "valkey") as redis:
        fill_all(redis.url)
        with serving(redis.url) as server:
            server.redis = redis  # type: ignore[attr-defined]
            yield server
            assert server.stop() == 0
            assert server.process.stderr is not None
            assert server.process.stderr.read() == ""


# Texts of JSON, among them some that are none.
CELLS = [
    "null", "true", "false", "0", "-0", "-0.0", "1", "-1", "1.0", "1.5", "0.1", "1e308", "-1e308", "1e309", "1e-400", "5e-324",
    "9007199254740993", "9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809",
    "18446744073709551615", "18446744073709551616", "1" + "0" * 40, "1" * 400, "9223372036854775807.0", "1e18", "1e19",
    "NaN", "Infinity", "-Infinity", "01", "+1", ".5", "0x10", "''", "nul",
    '""', '"u7"', '"full"', '"empty"', '"nobody"', '"1"', '" "', '"a|b"', '"%7C"', '"{u7}"', '"*"', '"\\u0000"', '"a\\u0000b"',
    '"\\ud800"', '"\\udc00\\ud800"', '"\\ud83d\\ude00"', '"\\uffff"', '"\\r\\n*1\\r\\n$7\\r\\nFLUSHALL\\r\\n"', '"' + "x" * 5_000 + '"',
    '"2026-03-01T12:00:00Z"', '"2026-03-01"', '"2026-03-01T12:00:00"', '"0001-01-01T00:00:00Z"', '"9999-12-31T23:59:59.999999Z"',
    '"0001-01-01T00:00:00+23:59"', '"9999-12-31T23:59:59-23:59"', '"2026-02-30T00:00:00Z"', '"2026-03-01T24:00:00Z"',
    '"2026-03-01T12:00:60Z"', '"1.23"', '"1.234"', '"1e5"', '"1E+30"', '"1e999999999"', '"-1e-999999999"', '"NaN"', '"sNaN"',
    '"Infinity"', '"' + "9" * 40 + '"', '"-0"', '"\\u0661"', '"1_000"',
    "[]", "{}", "[1]", '{"a": 1}', "[" * 1_200 + "]" * 1_200, '{"a":' * 1_200 + "1" + "}" * 1_200,
]  # fmt: skip
NOWS = [
    '"2026-03-01T12:00:00Z"', '"now"', '""', '"1900-01-01T00:00:00Z"', '"1899-12-31T23:59:59Z"', '"2200-01-01T00:00:00Z"',
    '"9999-12-31T23:59:59-23:59"', '"0001-01-01T00:00:00+23:59"', '"2026-W09-1"', '"20260301T120000Z"', '"2026-03-01T12:00:00+99:99"',
    '"2026-03-01T12:00:00.1234567890Z"', '"\\ud800"', '"\\u0000"', "1", "1e400", "null", "true", "[]", '"' + "2" * 5_000 + '"',
    '"2026-03-01T12:00:00 Europe/Berlin"', '"\\u0662026-03-01"',
]  # fmt: skip
NAMED = [
    *FEATURES, *ON_DEMAND, "stays:nights", "stays:last", "stays@1:nights", "stays@2:nights", "stays@0:nights", "asked@1:length",
    "asked@2:length", "asked:", "asked", ":", "", "@", "stays@:nights", "stays@99999999999999999999:nights", "stays:nights:last",
    "stays@-1:nights", "stays@1@1:nights", "nights", "user", "checkout", "__class__:x", "asked:now", "a" * 3_000, "é:ü", "\0", "\ud800:a",
    "stays@\u0661:nights", "stays@1 :nights", "{}", "%s:%d", "stays__nights",
]  # fmt: skip
COLUMNS = [
    "user", "hotel", "entity", "f", "i", "b", "s", "t", "d", "now", "nights", "stays:nights", "=", "", "\0", "user ", "USER", "é", "\ud800",
    "_at", "length", "x" * 500,
]  # fmt: skip


def hostile_body(pick: random.Random) -> bytes:
    """A request in which some things are wrong, as the text of its JSON."""
    n_rows = pick.choice([0, 1, 1, 1, 2, 3, 40])
    # Many are well formed but for a cell or two, so that they come far.
    tame = pick.random() < 0.5

    def cells(fitting: list[str]) -> str:
        if pick.random() < 0.03:
            return pick.choice(CELLS)
        n = n_rows if pick.random() < 0.97 else pick.randrange(5)
        wild = 0.08 if tame else 0.4
        return "[{}]".format(",".join(pick.choice(CELLS if pick.random() < wild else fitting) for _ in range(n)))

    fitting = {
        "user": ['"u7"', '"full"', '"empty"', '"nobody"', "null"],
        "hotel": ["1", "2", "null"],
        "f": ["1.5", "1", "null", "1e308"],
        "i": ["3", "0", "null", "4611686018427387904"],
        "b": ["true", "null"],
        "s": ['"12"', '"x"', '""', "null"],
        "t": ['"2026-03-01T12:00:00Z"', '"9999-12-31T23:59:59Z"', "null"],
        "d": ['"1.25"', "3", "null"],
    }
    names = list(fitting) if tame else pick.sample(COLUMNS, pick.randrange(6))
    if pick.random() < 0.2:
        names.append(pick.choice(COLUMNS))
    entities = ",".join(f"{json.dumps(name)}:{cells(fitting.get(name, CELLS))}" for name in names)
    features = pick.sample([*ON_DEMAND, "stays:nights", "orders:n"] if tame else NAMED, pick.randrange(1, 6))
    members = [f'"entities":{{{entities}}}' if pick.random() < 0.97 else f'"entities":{pick.choice(CELLS)}']
    kind = pick.random()
    if kind < 0.85:
        members.append(f'"features":{json.dumps(features)}')
    elif kind < 0.9:
        members.append(f'"features":{cells(CELLS)}')
    if kind > 0.82:
        service = json.dumps(pick.choice(["checkout", *NAMED])) if pick.random() < 0.7 else pick.choice(CELLS)
        members.append(f'"feature_service":{service}')
    if pick.random() < 0.3:
        members.append(f'"now":{pick.choice(NOWS)}')
    if pick.random() < 0.3:
        members.append(f'"full_feature_names":{pick.choice(["true", "false", *CELLS])}')
    if pick.random() < 0.2:
        members.append(
            f'"{pick.choice(["unknown", "include_feature_view_version_metadata", "__proto__"])}":{pick.choice(CELLS)}'
        )
    if pick.random() < 0.1:
        # A name twice.
        members.append(pick.choice(members))
    pick.shuffle(members)
    text = "{{{}}}".format(",".join(members))
    data = text.encode("utf-8", "surrogatepass")
    if pick.random() < 0.05:
        at = pick.randrange(len(data))
        data = (
            data[:at] + pick.choice([b"", b"\xff", b"\0", b"\xed\xa0\x80", b"}", b'"']) + data[at + pick.randrange(3) :]
        )
    return data


def strictly(text: bytes | str) -> Any:
    """Read JSON as it is defined: without NaN, and each text is Unicode."""

    def refuse(word: str) -> Any:
        raise AssertionError(f"{word} is not JSON")

    found = json.loads(text, parse_constant=refuse)
    json.dumps(found, ensure_ascii=False).encode()
    return found


def check_answer(code: int, text: bytes) -> None:
    """Check that Feast's client can read an answer: features with as many values as rows, or an error of its own."""
    found = strictly(text)
    if code != 200:
        assert code in {401, 404, 405, 408, 409, 413, 422, 501}, found
        name, message = detail(found)
        assert name.isidentifier()
        assert message
        strictly(found)
        return
    names, results = found["metadata"]["feature_names"], found["results"]
    assert len(names) == len(results)
    assert dt.datetime.fromisoformat(found["metadata"]["now"]).utcoffset() == dt.timedelta()
    n_rows = {len(one[part]) for one in results for part in ("values", "statuses", "event_timestamps")}
    assert len(n_rows) == 1
    for one in results:
        assert {*one["statuses"]} <= {"PRESENT", "NULL_VALUE", "NOT_FOUND", "OUTSIDE_MAX_AGE"}
        for instant in one["event_timestamps"]:
            dt.datetime.fromisoformat(instant)
        assert all(
            value is None for value, status in zip(one["values"], one["statuses"], strict=True) if status[0] == "N"
        )


def test_hostile_bodies_are_answered_in_json_that_feasts_client_reads_and_leave_no_traceback(server: Server) -> None:
    pick = random.Random(12)
    codes: Counter[int] = Counter()
    faults = []
    with contextlib.closing(server.connection()) as connection:
        for _ in range(4_000):
            body = hostile_body(pick)
            connection.request("POST", "/get-online-features", body)
            answer = connection.getresponse()
            text = answer.read()
            codes[answer.status] += 1
            try:
                check_answer(answer.status, text)
            except (AssertionError, ValueError, KeyError) as error:
                faults.append((answer.status, repr(error)[:300], body[:1_000], text[:500]))

    assert not faults, (len(faults), faults[:5])
    # The bodies reach every part: some are read, some name nothing, some are refused.
    assert min(codes[code] for code in (200, 404, 422)) > 100
    assert server.post(BODY)[1]["results"][2]["values"] == [7]


HEADS = [b"Host: a", b"Host: b", b"Host", b": a", b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: 1e3",
    b"Content-Length: \xb2", b"Content-Length: 99999999999999999999999", b"Content-Length: 2000000", b"Content-Length: " + b"9" * 5_000,
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", b"Transfer-Encoding: identity", b"Expect: 100-continue",
    b"Connection: close", b"Connection: upgrade", b"Upgrade: websocket", b"Upgrade: h2c", b"Sec-WebSocket-Key: x",
    b"Unskew-Expect: x", b"Unskew-Expect: \xff\xfe", b"Unskew-Expect: " + b"0" * 64, b"Unskew-Expect: " + b"f" * 10_000,
    b"Authorization: Bearer \xff", b"Content-Type: text/xml", b"Content-Encoding: gzip", b"X: " + b"y" * 70_000, b"X:\0", b"X: a\r b",
    b" folded", b"\xff\xfe: \xff", b"X: \xf0\x9f\x98\x80", b"Cookie: " + b"a=b;" * 1_000,
]  # fmt: skip
LINES = [
    b"POST /get-online-features HTTP/1.1", b"POST /get-online-features HTTP/1.0", b"POST /get-online-features?a=b HTTP/1.1",
    b"GET /get-online-features HTTP/1.1", b"POST /get-online-features/ HTTP/1.1", b"POST //get-online-features HTTP/1.1",
    b"POST /get%2Donline%2Dfeatures HTTP/1.1", b"POST /get-online-features%00 HTTP/1.1", b"POST /%ff%fe HTTP/1.1",
    b"POST /%ed%a0%80 HTTP/1.1", b"POST /\xff HTTP/1.1", b"POST * HTTP/1.1", b"OPTIONS * HTTP/1.1", b"CONNECT a:1 HTTP/1.1",
    b"POST http://a:99999/get-online-features HTTP/1.1", b"POST http://[::1/x HTTP/1.1", b"POST ../../etc/passwd HTTP/1.1", b"HEAD /health HTTP/1.1",
    b"HEAD /get-online-features HTTP/1.1", b"DELETE /v1/features HTTP/1.1", b"POST /health HTTP/1.1", b"TRACE /ready HTTP/1.1",
    b"PUT /push HTTP/1.1", b"POST /push HTTP/1.1", b"PRI * HTTP/2.0", b"POST /get-online-features HTTP/9.9", b"POST /get-online-features",
    b"\x16\x03\x01\x02\x00\x01", b"*1\r\n$4\r\nPING", b"", b"\0" * 100, b"post /get-online-features HTTP/1.1", b"GET /v1/features HTTP/1.1",
    b"GET /ready HTTP/1.1", b"GET /" + b"a" * 30_000 + b" HTTP/1.1", b"GET /%s%n HTTP/1.1", b"GET /x?" + b"%ff" * 100 + b" HTTP/1.1",
    b"GET /metrics HTTP/1.1", b"GET /%E2%80%A8%0D%0A HTTP/1.1", b"GET /x%23y#z HTTP/1.1",
]  # fmt: skip
REST = [
    b"",
    b"hello",
    b"{}",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"zz\r\n",
    b"ffffffffffffffffff\r\n",
    b"-1\r\n",
    json.dumps(BODY).encode(),
]


def hostile_request(pick: random.Random, number: int) -> tuple[bytes, bytes]:
    """Return the first line of a request, and all of it.

    Half of them are right but for a line or two, so that they get past the parser.
    """
    body = json.dumps(BODY).encode()
    if number % 2:
        line = pick.choice([LINES[0], pick.choice(LINES)])
        heads = [b"Host: localhost", b"Content-Length: %d" % len(body), *pick.sample(HEADS, pick.randrange(2))]
        heads.append(b"Connection: close")
        return line, b"\r\n".join([line, *heads, b"", body])
    heads = pick.sample(HEADS, pick.randrange(4))
    line = LINES[number // 2 % len(LINES)]
    end = pick.choice([b"\r\n", b"\r\n", b"\r\n", b"\n", b"\r"])
    known = [b"Host: localhost"] if pick.random() < 0.7 else []
    return line, end.join([line, *known, *heads, b"", b""]) + pick.choice(REST)


def answer_of(client: socket.socket, *, waits: bool) -> bytes:
    """Return all that a server sends until it closes the connection.

    The client sends no more, and closes its side: at once, or once the server waits for more.
    """
    client.settimeout(0.3 if waits else 20)
    got = b""
    with contextlib.suppress(ConnectionError):
        if not waits:
            client.shutdown(socket.SHUT_WR)
        while True:
            try:
                piece = client.recv(1 << 16)
            except TimeoutError:
                client.settimeout(20)
                client.shutdown(socket.SHUT_WR)
                continue
            if not piece:
                break
            got += piece
    return got


def test_hostile_heads_are_answered_or_cut_off_and_leave_no_traceback(server: Server) -> None:
    pick = random.Random(21)
    codes: Counter[int] = Counter()
    faults = []
    for number in range(600):
        line, sent = hostile_request(pick, number)
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
            # The server may close the connection before it has read everything.
            with contextlib.suppress(ConnectionError):
                client.sendall(sent)
            got = answer_of(client, waits=number % 4 < 2)
        if not got:
            codes[0] += 1
            continue
        head, _, body = got.partition(b"\r\n\r\n")
        # An interim answer comes before the answer.
        while head.startswith(b"HTTP/1.1 100"):
            head, _, body = body.partition(b"\r\n\r\n")
        if not head:
            codes[100] += 1
            continue
        code = int(head.split()[1])
        codes[code] += 1
        is_json = b"content-type: application/json" in head.lower()
        try:
            assert code < 500 or code == 501, code
            if is_json and not line.startswith(b"HEAD"):
                (n_bytes,) = (
                    int(one.split(b":")[1]) for one in head.split(b"\r\n") if one.lower().startswith(b"content-length:")
                )
                found = strictly(body[:n_bytes])
                if code != 200 and not line.split()[1].startswith(b"/v1/"):
                    detail(found)
            elif not is_json:
                assert code == 400 or b"text/plain; version=0.0.4" in head, head
        except (AssertionError, ValueError) as error:
            faults.append((repr(error)[:300], sent[:300], got[:500]))

    assert not faults, (len(faults), faults[:5])
    assert min(codes[code] for code in (200, 400, 404, 405, 422)) > 5
    assert server.post(BODY)[1]["results"][2]["values"] == [7]
