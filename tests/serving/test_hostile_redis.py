"""Whatever stands in Redis, readers answer or name the key that unskew did not write, and say what to do."""

import copy
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from click.testing import CliRunner

from tests.support.plans import (
    DAY,
    HOUR,
    MINUTE,
    SECOND,
    Wanted,
    WantedOfOthers,
    local_day,
    session,
    sessions,
    sliding,
    tumbling,
    view,
)
from tests.support.updates import closing, ledger_after
from unskew.cli import main
from unskew.features.errors import LayoutError, UnskewError
from unskew.features.plan import Plan
from unskew.features.registry import describe, parse
from unskew.serving.live import read_live
from unskew.serving.online import OnlineReader
from unskew.sinks.redis.writer import RedisWriter

CLOCK = 17_000 * DAY
CLICKS = view(
    Wanted("n", "count", sliding(HOUR, MINUTE)),
    Wanted("x", "last", sliding(DAY, HOUR), "x", default=0.5),
    Wanted("price", "sum", tumbling(HOUR), "n", "decimal(38,2)"),
    Wanted("at", "last_time", local_day("Europe/Berlin")),
    Wanted("gift", "last", session(HOUR, MINUTE), "x > 0", "bool"),
    Wanted("shops", "top_k", sliding(DAY, HOUR), "n", "int64", parameters={"n": 3}),
    Wanted("by", "count", sliding(DAY, HOUR), by="n", parameters={"keys": 4}),
    derived=[WantedOfOthers("share", "x / n", default=1.0)],
    sessions=sessions(10 * MINUTE, MINUTE),
    keys={"user": "string", "shop": "int64"},
    name="clicks",
)
REFERENCES = [f"clicks:{output.name}" for output in CLICKS.outputs]
REGISTRY = json.loads(json.dumps(describe(Plan(streams={}, views={"clicks": CLICKS}))))
ROW = "unskew:clicks@1:{u|7}"
ENTITY = {"user": "u", "shop": 7}


@pytest.fixture
def filled(redis_client: redis.Redis) -> redis.Redis:
    writer = RedisWriter(redis_client, "unskew", "main")
    writer.publish_registry(json.dumps(REGISTRY))
    writer.expect({"clicks@1": ["h0"]})
    step = closing(CLICKS, CLOCK, [{"key": "u|7", "n": 1, "x": 2.5, "_at": CLOCK - 5, "_until": CLOCK + HOUR}])
    writer.add(ledger_after(step, [1], [], worst_us=SECOND))
    writer.flush(time.time_ns() // 1000)
    return redis_client


def read_all(client: redis.Redis, **options: Any) -> None:
    """Ask everything of Redis that a reader can ask, and turn the answers into Python's objects."""
    reader = OnlineReader(client, now_us=lambda: CLOCK + HOUR, max_lag_us=DAY, **options)
    answer = reader.read(REFERENCES, [ENTITY, {"user": "nobody", "shop": 1}])
    answer.to_dict()
    answer.metadata["clicks"].rows()
    reader.keys("clicks")


NUMBERS = ["", "x", "1.5", str(2**70), str(2**63), "-" + "9" * 19, "9" * 5000, b"\xff\xfe", "nan", "[1]", "12 s"]


@pytest.mark.parametrize("word", NUMBERS)
@pytest.mark.parametrize(
    ("key", "field", "readers"),
    [
        (ROW, "_at", "online"),
        ("unskew:clock:main", "clicks@1/h0", "both"),
        ("unskew:clock:main", "clicks@1/h0#since", "both"),
        ("unskew:sent:main", "clicks@1/h0", "online"),
        ("unskew:late:main", "clicks@1/h0", "live"),
    ],
)
def test_a_damaged_number_is_named_with_its_key_and_field(filled, redis_url, key, field, word, readers):
    filled.hset(key, field, word)

    if readers in {"online", "both"}:
        with pytest.raises(LayoutError) as caught:
            read_all(filled)
        assert (key if key != ROW else "clicks@1:_at") in str(caught.value)
        assert ";" in str(caught.value)  # what to do
    if readers in {"live", "both"}:
        with pytest.raises(LayoutError) as caught:
            read_live(filled, "unskew", "main")
        assert key in str(caught.value)
        shown = CliRunner().invoke(main, ["describe", "--live", "--redis-url", redis_url])
        assert shown.exit_code == 1
        assert shown.output.startswith("error: ")


@pytest.mark.parametrize("word", ["", "x", "[", str(2**70), b"\xff", '{"a":' * 2000, "[" * 5000, "1" * 100_000])
@pytest.mark.parametrize("field", ["n", "x", "price", "at", "gift", "shops", "by", "share"])
def test_a_value_that_is_not_of_its_type_is_named(filled, field, word):
    if field in {"x", "share"} and word == str(2**70):
        word = "1e400"
    filled.hset(ROW, field, word)

    with pytest.raises(LayoutError, match=f"clicks@1:{field} that unskew did not write"):
        read_all(filled)


@pytest.mark.parametrize("junk", ["text", "list", "number of another type"])
@pytest.mark.parametrize("key", [ROW, "unskew:registry", "unskew:clock:main", "unskew:sent:main", "unskew:late:main"])
def test_a_key_of_another_type_is_named(filled, redis_url, key, junk):
    filled.delete(key)
    if junk == "list" or key == "unskew:registry":
        filled.rpush(key, "a")
    elif junk == "text":
        filled.set(key, "a")
    else:
        filled.zadd(key, {"a": 1})

    if key != "unskew:late:main":
        with pytest.raises(LayoutError) as caught:
            read_all(filled)
        assert repr(key) in str(caught.value)
        shown = CliRunner().invoke(main, ["get", "clicks", "u", "7", "--redis-url", redis_url])
        assert shown.exit_code == 1
        assert shown.output.startswith("error: ")
        assert repr(key) in shown.output
    if key not in {ROW, "unskew:sent:main"}:
        with pytest.raises(LayoutError) as caught:
            read_live(filled, "unskew", "main")
        assert repr(key) in str(caught.value)


def test_a_client_that_decodes_names_bytes_that_are_not_text_or_says_what_names_them(filled, redis_url):
    filled.hset(ROW, "x", b"\xff")
    filled.hset("unskew:late:main", "clicks@1/h0", b"\xff")
    client = redis.Redis.from_url(redis_url, decode_responses=True)

    with pytest.raises(LayoutError, match="clicks@1:x"):
        read_all(client)
    with pytest.raises(LayoutError, match="not UTF-8"):
        read_live(client, "unskew", "main")


TEXTS = [
    b"", b"\xff\xfe", b'{"format":1,"views":"\xff"}', b"null", b"[]", b"1", b'"x"', b"{", json.dumps(REGISTRY).encode()[:-40],
    b'{"format":1}', b'{"format":"1","views":[]}', b'{"format":1e400,"views":[]}', b'{"format":1,"views":[1]}',
    b"[" * 100_000, b'{"format":1,"views":' + b"[" * 100_000, b'{"a":' * 100_000, b'{"format":99999999999999999999999,"views":[]}',
    json.dumps(REGISTRY).encode("utf-16"),
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_a_registry_that_is_none_is_named(filled, redis_url, text):
    filled.set("unskew:registry", text)

    for read in (lambda: read_all(filled), lambda: read_live(filled, "unskew", "main")):
        with pytest.raises(LayoutError, match="'unskew:registry'"):
            read()
    for arguments in (["get", "clicks", "u", "7"], ["describe", "--live"]):
        shown = CliRunner().invoke(main, [*arguments, "--redis-url", redis_url])
        assert shown.exit_code == 1
        assert shown.output.startswith("error: ")


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in JSON data."""
    yield path
    if isinstance(data, dict):
        for name, inner in data.items():
            yield from places(inner, (*path, name))
    elif isinstance(data, list):
        for number, inner in enumerate(data):
            yield from places(inner, (*path, number))


JUNK = [None, True, 0, -1, 10**6, 2**70, 1.5, "", "x", "share", [], ["x"], [[]], {}, {"a": 1}, ...]


def test_a_registry_with_anything_in_any_place_is_read_or_refused(filled):
    refused = 0
    for path in list(places(REGISTRY))[1:]:
        for junk in JUNK:
            damaged = copy.deepcopy(REGISTRY)
            holder: Any = damaged
            for step in path[:-1]:
                holder = holder[step]
            if junk is ...:
                del holder[path[-1]]
            else:
                holder[path[-1]] = junk
            try:
                views = parse(json.dumps(damaged).encode()).views
                if "clicks" in views:
                    read_all(filled, views=views)
                filled.set("unskew:registry", json.dumps(damaged))
                read_live(filled, "unskew", "main")
            except UnskewError:
                refused += 1
            except Exception as error:  # noqa: BLE001
                pytest.fail(f"{path} = {junk!r}: {type(error).__name__}: {error}")
    assert refused > 1000
