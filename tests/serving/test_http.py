"""``unskew serve`` as a process: answers, errors, limits, and what it does while Redis or the network fails."""

import asyncio
import contextlib
import datetime as dt
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from redis import Redis as Client

from tests.support.on_demand import PLAN as SHOP
from tests.support.plans import DAY, HOUR, Wanted, republished, sliding, view
from tests.support.servers.certificates import certified
from tests.support.servers.tls import TlsFront
from tests.support.servers.valkey import Valkey, quiet_port, wait_until
from tests.support.typed import DEFAULTS, EMPTY, FULL, NAMES, ORDERS
from tests.support.updates import closing
from unskew import FeatureStore, LayoutError, Service, StoreUnavailable
from unskew.features.definitions.services import pinned
from unskew.features.plan import Plan
from unskew.features.registry import Published, describe
from unskew.features.time import moment_of
from unskew.features.versions import Versions
from unskew.serving.listing import listing
from unskew.serving.sample import read_served
from unskew.sinks.redis.writer import RedisWriter

STAYS = view(
    Wanted("nights", "sum", sliding(DAY, HOUR), "n", of="int64"),
    Wanted("last", "last", sliding(DAY, HOUR), "x"),
    keys={"user": "string", "hotel": "int64"},
    name="stays",
)
CLOCK = 17_000 * DAY
FEATURES = [f"orders:{name}" for name in NAMES]


class Server:
    """A running ``unskew serve``. ``files``: the option of ``ulimit`` that it is begun under, as in ``-Sn 1024``."""

    def __init__(self, redis_url: str, *options: str, tls: ssl.SSLContext | None = None, files: str = "") -> None:
        self.port = quiet_port()
        self.tls = tls
        command = [sys.executable, "-m", "unskew", "serve", "--redis-url", redis_url, "--listen", str(self.port)]
        if files:
            command = ["sh", "-c", f'ulimit {files} && exec "$@"', "sh", *command]
        self.process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.said = self.process.stderr.readline()
        until_s = time.monotonic() + 60
        while time.monotonic() < until_s:
            with contextlib.suppress(OSError):
                self.get("/health")
                return
            time.sleep(0.02)
        raise AssertionError(f"it does not answer: {self.said}")

    def connection(self, timeout: float = 20.0) -> http.client.HTTPConnection:
        if self.tls is not None:
            return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=timeout, context=self.tls)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def get(self, path: str) -> tuple[int, Any]:
        return self.ask("GET", path)

    def post(self, body: object, path: str = "/get-online-features", **headers: str) -> tuple[int, Any]:
        return self.ask("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), headers)

    def ask(self, method: str, path: str, body: bytes | None = None, headers: Any = None) -> tuple[int, Any]:
        with contextlib.closing(self.connection()) as connection:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            text = answer.read()
            is_json = answer.headers.get("content-type", "").startswith("application/json")
            return answer.status, json.loads(text) if is_json else text.decode()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@contextlib.contextmanager
def serving(redis_url: str, *options: str, tls: ssl.SSLContext | None = None, files: str = "") -> Iterator[Server]:
    server = Server(redis_url, *options, tls=tls, files=files)
    try:
        yield server
        assert server.stop() == 0
    finally:
        server.process.kill()
        server.process.wait()
        assert server.process.stderr is not None
        server.process.stderr.close()


def fill(url: str) -> None:
    writer = RedisWriter(url, "unskew", "main")
    plan = Plan(streams={}, views=Versions([ORDERS, STAYS]))
    checkout = pinned(Service("checkout", ["stays:nights", "orders:n"]), plan.published)
    writer.publish_registry(json.dumps(describe(replace(plan, services={"checkout": checkout}))))
    writer.expect({ORDERS.id: ["h0"], STAYS.id: ["h0"]})
    rows = [
        {"key": "full", **FULL, "_at": CLOCK - 5},
        {"key": "empty", **EMPTY, "_at": CLOCK - 5},
        {"key": "bare", "_at": CLOCK - 7},
    ]
    writer.add(closing(ORDERS, CLOCK, rows, since_us=CLOCK - 2 * DAY))
    stays = [{"key": f"u{i}|{i % 3}", "nights": i, "last": i / 7, "_at": CLOCK - i} for i in range(50)]
    writer.add(closing(STAYS, CLOCK, stays, since_us=CLOCK - 2 * DAY))
    writer.flush(time.time_ns() // 1000)
    writer.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Valkey(tmp_path_factory.mktemp("valkey")) as redis:
        fill(redis.url)
        with serving(redis.url, "--max-rows", "100", "--max-body", "20000") as server:
            server.redis = redis  # type: ignore[attr-defined]
            yield server


def detail(answer: Any) -> tuple[str, str]:
    """The class and the message of an error, as Feast's client reads them."""
    assert isinstance(answer, str)
    found = json.loads(answer)
    assert found["module"] == "feast.errors"
    return found["class"], found["message"]


def in_json(value: Any) -> Any:
    """A value of the SDK as HTTP has it."""
    match value:
        case dt.datetime():
            return value.isoformat(timespec="microseconds").replace("+00:00", "Z")
        case Decimal():
            return str(value)
        case [] | {}:
            return None
        case [{"key": _, "value": _}, *_]:
            return {one["key"]: in_json(one["value"]) for one in value}
        case list():
            return [in_json(one) for one in value]
        case _:
            return value


def test_values_of_every_type_are_those_of_the_sdk_and_of_its_async_twin(server):
    rows = [{"user": user} for user in ("full", "empty", "bare", "nobody", None)]
    store = FeatureStore(redis_url=server.redis.url)
    served = store.get_online_features(FEATURES, rows)

    code, answer = server.post({"entities": {"user": [row["user"] for row in rows]}, "features": FEATURES})

    async def twin() -> Any:
        async_store = FeatureStore(redis_url=server.redis.url)
        found = await async_store.get_online_features_async(FEATURES, rows)
        async_store.close()
        return found

    also = asyncio.run(twin())
    assert code == 200
    assert also.to_dict() == served.to_dict()
    assert also.metadata["orders"].equals(served.metadata["orders"])
    assert answer["metadata"]["feature_names"] == ["user", *NAMES]
    values = {
        name: one["values"] for name, one in zip(answer["metadata"]["feature_names"], answer["results"], strict=True)
    }
    assert values == {name: [in_json(value) for value in column] for name, column in served.to_dict().items()}
    assert [values[name][0] for name in NAMES] == [in_json(FULL[name]) for name in NAMES]
    assert [values[name][3] for name in NAMES] == [in_json(DEFAULTS[name]) for name in NAMES]
    about = answer["metadata"]["views"]["orders"]
    judged = served.metadata["orders"].to_dict(as_series=False)
    assert about["version"] == 1
    assert about["as_of"] == [in_json(instant) for instant in judged["as_of"]]
    assert (about["status"], about["provisional"]) == (judged["status"], judged["provisional"])
    statuses = {name: one["statuses"] for name, one in zip(["user", *NAMES], answer["results"], strict=True)}
    assert statuses["user"] == ["PRESENT"] * 4 + ["NULL_VALUE"]
    assert statuses["gift"] == ["PRESENT", "NULL_VALUE", "NULL_VALUE", "NOT_FOUND", "NOT_FOUND"]
    assert statuses["n"] == ["PRESENT", "PRESENT", "NULL_VALUE", "PRESENT", "NOT_FOUND"]
    assert answer["results"][1]["event_timestamps"][0] == about["as_of"][0]


def test_floats_have_a_point_because_clients_infer_their_type(server):
    with contextlib.closing(server.connection()) as connection:
        body = json.dumps({"entities": {"user": ["u7"], "hotel": [1]}, "features": ["stays:last", "stays:nights"]})
        connection.request("POST", "/get-online-features", body)
        text = connection.getresponse().read().decode()

    assert '{"values":[1.0],"statuses":["PRESENT"]' in text
    assert '{"values":[7],"statuses":["PRESENT"]' in text


def test_an_entitys_name_stands_for_its_key_and_columns_may_be_full_names(server):
    code, answer = server.post({"entities": {"entity": ["full"]}, "features": ["orders:n"], "full_feature_names": True})

    assert code == 200
    assert answer["metadata"]["feature_names"] == ["entity", "orders__n"]
    assert [one["values"] for one in answer["results"]] == [["full"], [FULL["n"]]]


def test_colons_in_keys_and_in_references_are_not_taken_for_names(server):
    for user in ("a:b", ":" * 50, '"user":', "\\u003a", ': ":'):
        for more in ({}, {"full_feature_names": False}, {"now": "2026-01-01T00:00:00Z"}, {"features": []}):
            body = {"entities": {"user": [user]}, "features": ["orders:n", "orders@1:spend"], **more}
            code, answer = server.post(body)
            assert code == (422 if more == {"features": []} else 200), answer
            assert "twice" not in str(answer)


def test_a_key_column_goes_before_the_name_of_its_entity(server):
    code, answer = server.post({"entities": {"entity": ["bare"], "user": ["full"]}, "features": ["orders:n"]})

    assert (code, [one["values"] for one in answer["results"]]) == (200, [["bare"], ["full"], [FULL["n"]]])


def test_no_entities_give_no_values(server):
    code, answer = server.post({"entities": {"user": []}, "features": ["orders:n"]})

    assert (code, [one["values"] for one in answer["results"]]) == (200, [[], []])


@pytest.mark.parametrize(("body", "code", "name", "message"), [
    ({"entities": {"user": ["a"]}, "features": ["order:n"]}, 404, "FeatureViewNotFoundException", "did you mean 'orders'"),
    ({"entities": {"user": ["a"]}, "features": ["orders@2:n"]}, 404, "FeatureViewVersionNotFound", "there is orders@1"),
    ({"entities": {"user": ["a"]}, "features": ["orders:m"]}, 404, "FeastObjectNotFoundException", "no feature 'm'"),
    ({"entities": {"user": ["a"]}, "features": ["orders"]}, 422, "FeastError", "write view:feature"),
    ({"entities": {"user": ["a"]}, "features": []}, 422, "FeastError", "no features"),
    ({"entities": {"user": ["a"]}}, 422, "FeastError", "no features"),
    ({"entities": {"user": ["a"]}, "feature_service": "chekout"}, 404, "FeatureServiceNotFoundException", "did you mean 'checkout'"),
    ({"entities": {"user": ["a"]}, "feature_service": "orders:n"}, 422, "FeastError", "is a reference"),
    ({"entities": {"user": ["a"]}, "feature_service": "checkout", "features": ["orders:n"]}, 422, "FeastError", "both"),
    ({"entities": {"usr": ["a"]}, "features": ["orders:n"]}, 422, "FeastError", "is it 'usr'? then rename that"),
    ({"entities": {"user": [1.5]}, "features": ["orders:n"]}, 422, "FeastError", "'user' is string, and 1.5 of row 0"),
    ({"entities": {"user": ["a"], "hotel": [2**70]}, "features": ["stays:nights"]}, 422, "FeastError", "hotel"),
    ({"entities": {"user": ["a", "b"], "hotel": [1]}, "features": ["stays:nights"]}, 422, "FeastError", "different lengths"),
    ({"entities": {"user": ["a"], "n": [1]}, "features": ["orders:n"]}, 422, "FeastError", "would replace the column 'n'"),
    ({"entities": {"user": [["a"]]}, "features": ["orders:n"]}, 422, "FeastError", "entities"),
    ({"entities": {"user": ["a"] * 101}, "features": ["orders:n"]}, 422, "FeastError", "101 entities are more than"),
    ({"entities": ["a"], "features": ["orders:n"]}, 422, "FeastError", "the body is not a request"),
    ({"entities": {}, "features": ["orders:n"]}, 422, "FeastError", "no entities"),
    ({"entities": {"user": ["a"]}, "features": ["orders:n"], "full_features_names": True}, 422, "FeastError", "did you mean 'full_feature_names'?"),
    ({"entities": {"user": ["a"]}, "features": ["orders:n"], "xyz": 1}, 422, "FeastError", "unknown field `xyz` (there are entities, features, feature_service, "),
    (b'{"entities": {"user": ["a"], "user": ["full"]}, "features": ["orders:n"]}', 422, "FeastError", "the name 'user' stands twice"),
    (b'{"entities": {"user": ["a"], "\\u0075ser": ["b"]}, "features": ["orders\\u003an"]}', 422, "FeastError", "the name 'user' stands twice"),
    (b'{"entities": {"user": ["a"]}, "features": ["orders:n"], "features": ["orders:n"]}', 422, "FeastError", "the name 'features' stands twice"),
    (b'{"entities": {"user": ["a"]}, "features": ["orders:n"], "entities": {"user": ["b"]}}', 422, "FeastError", "the name 'entities' stands twice"),
    (b'{"now": "2026-01-01T00:00:00Z", "entities": {"user": [":"]}, "feature_service": "a:b", "now": "2026-01-01"}', 422, "FeastError", "the name 'now' stands twice"),
    (b"", 422, "FeastError", "the body is not a request"),
    (b"{", 422, "FeastError", "the body is not a request"),
    (b"\xff\xfe", 422, "FeastError", "the body is not a request"),
    (b'{"entities": {"user": ["\\ud800"]}, "features": ["orders:n"]}', 422, "FeastError", ""),
    (b"[" * 9_000, 422, "FeastError", "the body is not a request"),
    (b'{"entities":' * 1_500, 422, "FeastError", "the body is not a request"),
    (b" " * 20_001, 413, "FeastError", "longer than 20,000 bytes"),
])  # fmt: skip
def test_a_request_that_cannot_be_answered_says_why_in_the_words_of_feasts_client(server, body, code, name, message):
    found, answer = server.post(body)

    assert found == code
    said = detail(answer)
    assert said[0] == name
    assert message in said[1]


def test_paths_and_methods_that_are_not_answered_say_so(server):
    for path in ("/push", "/write-to-online-store", "/materialize", "/materialize-incremental", "/search"):
        assert server.post({}, path)[0] == 501
    assert server.get("/get-online-features")[0] == 405
    assert server.ask("DELETE", "/health")[0] == 405
    assert server.post({}, "/")[0] == server.post({}, "/other")[0] == server.get("/a/b")[0] == 404
    assert "/ready" in detail(server.get("/other")[1])[1]


def test_a_body_in_pieces_without_a_length_is_bounded_too(server):
    with contextlib.closing(server.connection()) as connection:
        connection.request("POST", "/get-online-features", iter([b" " * 4_000] * 6), encode_chunked=True)
        answer = connection.getresponse()
        assert (answer.status, detail(json.loads(answer.read()))[0]) == (413, "FeastError")


def test_health_readiness_and_metrics(server):
    server.post({"entities": {"user": ["full"]}, "features": ["orders:n"]})
    server.post({"entities": {"user": ["full"]}, "features": ["orders:no"]})

    assert server.get("/health") == (200, {"status": "ok"})
    assert server.get("/ready") == (200, {"ready": True})
    code, text = server.get("/metrics")
    assert code == 200
    for line in (
        'unskew_requests_total{code="404",service=""}',
        'unskew_rows_total{status="present",view="orders@1"}',
        "unskew_request_seconds_bucket",
    ):
        assert line in text


def test_a_lag_is_measured_from_when_values_were_read_not_from_the_instant_that_a_request_gives(server):
    server.post({"entities": {"user": ["full"]}, "features": ["orders:n"], "now": "2150-01-01T00:00:00Z"})
    after = time.time()

    _, text = server.get("/metrics")
    (line,) = [line for line in text.splitlines() if line.startswith('unskew_read_lag_seconds{view="orders@1"}')]
    assert after - CLOCK / 1e6 - 60 < float(line.split()[1]) <= after - (CLOCK - 5) / 1e6


def test_what_can_be_read_is_listed_with_types_keys_and_services(server):
    code, listed = server.get("/v1/features")

    assert code == 200
    by_reference = {one["reference"]: one for one in listed["features"]}
    assert list(by_reference) == [*FEATURES, "stays:nights", "stays:last"]
    assert by_reference["orders:dearest"] == {
        "reference": "orders:dearest",
        "view": "orders@1",
        "type": "decimal(38,2)",
        "entity": "entity",
        "keys": {"user": "string"},
        "inputs": {},
        "function": "max",
        "window": "sliding(86400000000, 3600000000)",
        "default": "-1.00",
        "description": "",
        "owner": "",
    }
    (checkout,) = listed["services"]
    assert checkout["features"] == [
        {"reference": "stays:nights", "view": "stays@1", "type": "int64"},
        {"reference": "orders:n", "view": "orders@1", "type": "int64"},
    ]
    assert checkout["keys"] == {"user": "string", "hotel": "int64"}
    # What is listed can be read as it is listed.
    rows = {key: ["full"] if kind == "string" else [1] for key, kind in checkout["keys"].items()}
    assert server.post({"entities": rows, "features": list(by_reference), "full_feature_names": True})[0] == 200
    assert server.post({"entities": rows, "feature_service": checkout["name"]})[0] == 200


def test_several_versions_are_listed_by_the_references_that_mean_them():
    both = [republished(STAYS, version=number, serving=number == 1) for number in (1, 2)]
    only = [republished(ORDERS, version=3)]
    listed = listing(Published(views=Versions(one.published for one in (*both, *only))))["features"]

    found = {(one["reference"].partition(":")[0], one["view"]) for one in listed}
    assert found == {("stays", "stays@1"), ("stays@2", "stays@2"), ("orders", "orders@3")}


def test_on_demand_features_are_listed_with_their_inputs_and_the_keys_of_all_that_they_read():
    listed = listing(Published.of(SHOP))

    distance, share = (
        next(one for one in listed["features"] if one["reference"] == f"checkout:{name}")
        for name in ("distance_km", "share")
    )
    (service,) = listed["services"]
    assert [distance[name] for name in ("view", "function", "type", "entity", "owner")] == [
        "checkout@1", "derived", "float64", "store", "checkout team",
    ]  # fmt: skip
    store, place = {"chain": "string", "store_id": "int64"}, {"lat": "float64", "lon": "float64"}
    assert (distance["keys"], distance["inputs"]) == (store, place)
    assert (share["keys"], share["inputs"]) == ({}, {"amount": "float64"})
    assert (service["keys"], service["inputs"]) == (store | {"user_id": "string"}, place | {"amount": "float64"})


def test_many_clients_at_once_get_each_their_own(server):
    def ask(number: int) -> list[Any]:
        users = [(number + i) % 50 for i in range(7)]
        with contextlib.closing(server.connection()) as connection:
            for _ in range(10):
                body = {
                    "entities": {"user": [f"u{u}" for u in users], "hotel": [u % 3 for u in users]},
                    "features": ["stays:nights"],
                }
                connection.request("POST", "/get-online-features", json.dumps(body))
                found = json.loads(connection.getresponse().read())["results"][2]["values"]
                assert found == users
        return users

    with ThreadPoolExecutor(16) as clients:
        assert len(list(clients.map(ask, range(64)))) == 64


def test_a_head_that_never_ends_is_cut_off(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(b"GET /health HTTP/1.1\r\n")
        n_taken = 0
        with contextlib.suppress(OSError):
            while n_taken < 10_000:
                client.sendall(b"x: " + b"y" * 1_000 + b"\r\n")
                n_taken += 1
        assert n_taken < 10_000
    body = json.dumps(
        {"entities": {"user": ["full"] * 90}, "features": ["orders:n"], "full_feature_names": False}
    ).encode()
    for _ in range(3):
        assert server.post(body + b" " * 18_000)[0] == 200


def test_a_head_that_is_slow_is_cut_off_in_its_time_also_when_an_answer_leaves_meanwhile(server):
    asked = b'{"entities": {"user": ["full"]}, "features": ["orders:n"]}'
    whole = b"POST /get-online-features HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (
        len(asked),
        asked,
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=40) as client:
        with server.redis.paused():
            client.sendall(whole)
            time.sleep(0.2)
            began_s = time.monotonic()
            client.sendall(b"GET /health HTTP/1.1\r\n")
            got = client.recv(1 << 16)
        while part := client.recv(1 << 16):
            got += part

    assert got.startswith(b"HTTP/1.1 503 ")
    assert got.count(b"HTTP/1.1 ") == 1
    assert 5 < time.monotonic() - began_s < 35


@pytest.mark.parametrize("text", ["1,5", "1_0", " 1", "+1", "01", "1.5", "1\n"])
def test_a_number_that_unskew_did_not_write_poisons_nobodys_values(tmp_path, text):
    with Valkey(tmp_path / "one") as redis:
        fill(redis.url)
        redis.client.hset("unskew:stays@1:{u7|1}", "nights", text)
        body = {"entities": {"user": ["u7", "u8", "u9"], "hotel": [1, 2, 0]}, "features": ["stays:nights"]}
        store = FeatureStore(redis_url=redis.url)
        with serving(redis.url) as server:
            code, answer = server.post(body)

            assert code == 500
            assert "stays@1:nights that unskew did not write" in detail(answer)[1]
        with pytest.raises(LayoutError, match="stays@1:nights"):
            store.get_online_features(["stays:nights"], [{"user": "u7", "hotel": 1}])


def test_a_frozen_redis_is_given_up_by_all_requests_at_once(tmp_path):
    with Valkey(tmp_path / "one") as redis:
        fill(redis.url)
        body = {"entities": {"user": ["u7"], "hotel": [1]}, "features": ["stays:nights"]}
        with serving(redis.url, "--timeout", "2s") as server:
            assert server.post(body)[0] == 200
            with redis.paused():
                began = time.monotonic()
                with ThreadPoolExecutor(24) as clients:
                    codes = list(clients.map(lambda _: server.post(body)[0], range(24)))
                took = time.monotonic() - began
            assert codes == [503] * 24
            # One after the other, they would take 24 times the time-out and more.
            assert took < 24 * 2
            assert server.post(body)[0] == 200
            assert "unskew_redis_errors_total 24.0" in server.get("/metrics")[1]


def test_a_process_that_forks_reads_on_both_sides(tmp_path):
    script = """if True:
        import asyncio, os, sys
        from unskew import FeatureStore
        store = FeatureStore(redis_url=sys.argv[1], timeout="10s")
        async def read():
            found = await store.get_online_features_async(["stays:nights"], [{"user": "u7", "hotel": 1}])
            return found.to_dict()["nights"]
        def read_here():
            found = store.get_online_features(["stays:nights"], [{"user": "u7", "hotel": 1}])
            return found.to_dict()["nights"]
        assert asyncio.run(read()) == read_here() == [7]
        child = os.fork()
        for _ in range(50):
            assert asyncio.run(read()) == read_here() == [7]
        if child == 0:
            os._exit(0)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    with Valkey(tmp_path / "one") as redis:
        fill(redis.url)
        # From Python 3.12 on, every fork of a process with threads brings a warning.
        command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", script, redis.url]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

        assert (ended.returncode, ended.stderr) == (0, "")


def test_what_is_answered_over_http_is_sampled_bit_for_bit(tmp_path):
    with Valkey(tmp_path / "one") as redis:
        fill(redis.url)
        with serving(redis.url, "--sample", str(tmp_path / "sample")) as server:
            code, answer = server.post({"entities": {"user": ["full"]}, "features": FEATURES})

    (row,), n_others = read_served(tmp_path / "sample", ORDERS.published)

    assert (code, n_others) == (200, 0)
    assert (row.view, row.key, row.as_of_us) == (ORDERS.id, "full", CLOCK)
    assert answer["metadata"]["views"]["orders"]["as_of"] == [in_json(moment_of(CLOCK))]
    for name in NAMES:
        dtype = ORDERS.published.feature(name).dtype.polars
        sampled, given = (pl.Series([value], dtype=dtype).to_list() for value in (row.values[name], FULL[name]))
        assert repr(sampled) == repr(given)


def test_a_folder_of_samples_that_cannot_be_written_stops_no_answer(tmp_path):
    (tmp_path / "file").write_text("")
    with Valkey(tmp_path / "one") as redis:
        fill(redis.url)
        with serving(redis.url, "--sample", str(tmp_path / "file" / "sample")) as server:
            codes = [server.post({"entities": {"user": ["full"]}, "features": FEATURES})[0] for _ in range(3)]

    assert codes == [200, 200, 200]


def test_a_cache_gives_the_answer_of_its_instant_again(tmp_path):
    body = {"entities": {"user": ["u7"], "hotel": [1]}, "features": ["stays:nights"]}
    with Valkey(tmp_path / "one") as redis:
        fill(redis.url)
        with serving(redis.url, "--cache", "1h") as server:
            first = server.post(body)
            redis.client.hset(f"unskew:{STAYS.id}:{{u7|1}}", "nights", "8")

            assert server.post(body) == first
            assert server.post({**body, "full_feature_names": True})[1]["results"][2]["values"] == [8]


def workers_of(server: Server) -> set[int]:
    pid = server.process.pid
    children = map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
    return {child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()}


@pytest.mark.long
def test_workers_count_together_and_one_that_dies_is_replaced(tmp_path, monkeypatch):
    # Where the workers keep their counts.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    body = {"entities": {"user": ["u7"], "hotel": [1]}, "features": ["stays:nights"]}

    def ask(_: int) -> int:
        return server.post(body)[0]

    def all_say(n_requests: int) -> bool:
        wanted = (
            f'unskew_requests_total{{code="200",service=""}} {n_requests}.0',
            f'unskew_request_seconds_count{{service=""}} {n_requests}.0',
        )
        return all(all(line in server.get("/metrics")[1] for line in wanted) for _ in range(8))

    def saved() -> int:
        counts = [json.loads(path.read_text()) for path in tmp_path.glob("unskew-serve-*/*.json")]
        return sum(one["n_by_code"][""]["200"] for one in counts)

    with Valkey(tmp_path / "one") as redis:
        fill(redis.url)
        with serving(redis.url, "--workers", "2") as server, ThreadPoolExecutor(16) as clients:
            assert set(clients.map(ask, range(60))) == {200}
            wait_until(lambda: saved() == 60, "each worker shows what it has counted")
            wait_until(lambda: all_say(60), "each worker says what all have counted")
            first = workers_of(server)
            assert len(first) == 2
            os.kill(min(first), signal.SIGKILL)
            assert [ask(0) for _ in range(20)] == [200] * 20
            wait_until(lambda: len(workers_of(server)) == 2 and min(first) not in workers_of(server), "it is replaced")
            wait_until(lambda: all_say(80), "what the dead one had counted is still counted")
            last = workers_of(server)
        assert not any(Path(f"/proc/{worker}").exists() for worker in last)


@pytest.mark.long
def test_workers_end_with_the_process_that_began_them(tmp_path):
    with Valkey(tmp_path / "one") as redis:
        fill(redis.url)
        server = Server(redis.url, "--workers", "2")
        workers = workers_of(server)
        server.process.kill()
        server.process.wait()
        assert server.process.stderr is not None
        server.process.stderr.close()
        wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), "the workers end")


def test_the_server_says_where_it_listens(server):
    assert server.said == f"unskew serves http://127.0.0.1:{server.port}\n"


def test_requests_that_were_begun_come_to_their_end_when_the_server_is_stopped(server, tmp_path):
    with Valkey(tmp_path / "one") as redis:
        fill(redis.url)
        server = Server(redis.url, "--timeout", "20s")
        body = {"entities": {"user": ["u7"], "hotel": [1]}, "features": ["stays:nights"]}
        server.post(body)
        with contextlib.closing(server.connection(60.0)) as asking:
            with redis.paused():
                asking.request("POST", "/get-online-features", json.dumps(body).encode())
                # With the second answer, the server has read all that came before it was asked for the first.
                for _ in range(2):
                    assert server.get("/health")[0] == 200
                server.process.send_signal(signal.SIGTERM)
                time.sleep(0.3)
            assert asking.getresponse().status == 200
        assert server.process.wait(60) == 0
        assert server.process.stderr is not None
        assert server.process.stderr.read() == ""
        server.process.stderr.close()


def test_a_token_is_asked_for_and_tls_is_spoken_if_they_are_given(tmp_path):
    made = certified(tmp_path / "tls")
    (tmp_path / "token").write_text("s3cret\n")
    trusting = ssl.create_default_context(cafile=str(made.authority))
    options = ["--token-file", str(tmp_path / "token"), "--tls-cert", str(made.certificate), "--tls-key", str(made.key)]
    with Valkey(tmp_path / "one") as redis:
        fill(redis.url)
        body = {"entities": {"user": ["u7"], "hotel": [1]}, "features": ["stays:nights"]}
        with serving(redis.url, *options, tls=trusting) as server:
            assert server.said.startswith("unskew serves https://")
            assert server.post(body)[0] == 401
            assert server.post(body, Authorization="Bearer s3cre")[0] == 401
            assert server.post(body, Authorization="Bearer s3cret")[0] == 200
            assert server.post(body, Authorization="bearer s3cret")[0] == 200
            assert server.get("/health")[0] == 200
            assert server.get("/metrics")[0] == 401
            refused, answer = server.get("/v1/features")
            assert (refused, answer["message"]) == (401, "send the token of this server: Authorization: Bearer TOKEN")
            assert server.ask("GET", "/v1/features", headers={"Authorization": "Bearer s3cret"})[0] == 200
            # A client that keeps its connection for a next request does not hold up the end.
            with contextlib.closing(server.connection()) as idle:
                idle.request("GET", "/health")
                idle.getresponse().read()
                assert server.stop() == 0
            assert server.process.stderr is not None
            assert server.process.stderr.read() == ""


def test_the_async_twin_reads_a_cluster_and_over_tls_and_after_its_connection_was_closed(cluster, tmp_path):
    fill(cluster.url)
    rows = [{"user": f"u{i}", "hotel": i % 3} for i in range(50)]

    async def read(store: FeatureStore, n: int = 20) -> list[Any]:
        asked = [store.get_online_features_async(["stays:nights"], rows) for _ in range(n)]
        return [answer.to_dict()["nights"] for answer in await asyncio.gather(*asked)]

    async def through_closings(redis: Valkey) -> None:
        store = FeatureStore(redis_url=redis.url, timeout="10s")
        for _ in range(3):
            assert await read(store) == [list(range(50))] * 20
            redis.client.client_kill_filter(_type="normal", skipme=True)
        store.close()

    async def through_standing_still(redis: Valkey) -> None:
        # What the URL says goes before the store's own.
        store = FeatureStore(redis_url=f"{redis.url}?socket_timeout=0.1", timeout="1h")
        await read(store)
        with redis.paused(), pytest.raises(StoreUnavailable):
            await read(store, 1)
        assert await read(FeatureStore(redis_url=redis.url, timeout="10s")) == [list(range(50))] * 20

    assert asyncio.run(read(FeatureStore(redis_url=cluster.url, timeout="10s"))) == [list(range(50))] * 20
    with Valkey(tmp_path / "one") as redis:
        fill(redis.url)
        made = certified(tmp_path / "tls")
        with TlsFront(redis.port, made) as front:
            url = f"rediss://127.0.0.1:{front.port}/0?ssl_ca_certs={made.authority}"
            assert asyncio.run(read(FeatureStore(redis_url=url, timeout="10s"))) == [list(range(50))] * 20
        asyncio.run(through_closings(redis))
        asyncio.run(through_standing_still(redis))


def test_event_loops_one_after_the_other_leave_no_connections(tmp_path):
    with Valkey(tmp_path / "one") as redis:
        fill(redis.url)
        store = FeatureStore(redis_url=redis.url)
        for _ in range(120):
            found = asyncio.run(store.get_online_features_async(["stays:nights"], [{"user": "u7", "hotel": 1}]))
            assert found.to_dict()["nights"] == [7]
        # That of the last loop, and this test's own.
        assert len(redis.client.client_list(_type="normal")) <= 3
        store.close()


@pytest.mark.parametrize(("options", "message"), [
    (["--listen", "x"], "--listen 'x': give HOST:PORT"),
    (["--listen", "256.1.1.1:80"], "cannot listen at 256.1.1.1:80"),
    (["--timeout", "soon"], "--timeout"),
    (["--tls-cert", __file__], "give --tls-cert and --tls-key"),
    (["--tls-cert", __file__, "--tls-key", __file__], "give a certificate and its own private key"),
    (["--timeout", "0s"], "timeout"),
    (["--cache", "long"], "--cache"),
    (["--token-file", __file__], "one token"),
    (["--redis-url", "nothing"], "the Redis URL cannot be read"),
])  # fmt: skip
def test_a_server_that_cannot_begin_says_why(options: list[str], message: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "unskew", "serve", *options], capture_output=True, text=True, timeout=60, check=False
    )

    assert ended.returncode != 0
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr


def test_an_address_that_is_taken_is_named(server) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "unskew", "serve", "--listen", str(server.port)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == 1
    assert f"error: cannot listen at 127.0.0.1:{server.port}" in ended.stderr


def test_a_service_gives_its_columns_in_its_order_over_http_and_in_the_sdk(server: Server) -> None:
    entities = {"user": ["u4", "nobody"], "hotel": [1, 2]}
    code, answer = server.post({"entities": entities, "feature_service": "checkout"})
    rows = [dict(zip(entities, row, strict=True)) for row in zip(*entities.values(), strict=True)]
    with FeatureStore(redis_url=server.redis.url) as store:  # type: ignore[attr-defined]
        read = store.get_online_features("checkout", rows).to_dict()
        (service,) = store.services().values()
        assert store.get_online_features(service, rows).to_dict() == read

    assert code == 200
    assert answer["metadata"]["feature_names"] == list(read) == ["user", "hotel", "nights", "n"]
    assert [result["values"] for result in answer["results"]] == list(read.values())
    assert read["nights"] == [4, 0]


def test_reads_of_a_service_are_counted_in_redis_when_the_server_stops(tmp_path: Path) -> None:
    with Valkey(tmp_path) as redis:
        fill(redis.url)
        body = {"entities": {"user": ["a"], "hotel": [1]}}
        with serving(redis.url) as server:
            assert [server.post({**body, "feature_service": "checkout"})[0] for _ in range(3)] == [200] * 3
            assert server.post({**body, "feature_service": "other"})[0] == 404
            assert server.post({**body, "features": ["orders:n"]})[0] == 200
        with Client.from_url(redis.url) as client:
            counts = {key: client.hvals(key) for key in client.scan_iter("unskew:usage:*")}

    assert counts == {b"unskew:usage:checkout": [b"3"]}
