import json
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import polars as pl
import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from tests.support.plans import DAY, MINUTE, SECOND, Wanted, republished, sliding, view
from tests.support.typed import FULL, NAMES, ORDERS, TEXTS
from tests.support.updates import closing, current, ledger_after
from unskew.features.errors import RequestError, StoreUnavailable
from unskew.features.ledger import ledger_of, read_ledger
from unskew.features.plan import Plan
from unskew.features.registry import describe, parse
from unskew.features.updates import NothingToCome
from unskew.sinks.redis.eviction import LOOK_EVERY_US
from unskew.sinks.redis.keyspace import connect
from unskew.sinks.redis.pacing import LEAST_ROWS_ASIDE
from unskew.sinks.redis.resp import RowEncoder
from unskew.sinks.redis.writer import RedisWriter

PURCHASES = view(
    Wanted("n", "count", sliding(30 * DAY, DAY)),
    Wanted("mean", "mean", sliding(30 * DAY, DAY), "x"),
    Wanted("last_online", "last", sliding(30 * DAY, DAY), "x > 0", of="bool"),
    name="purchases",
)
NOW = time.time_ns() // 1000
LONG_AGO = NOW - 14 * DAY
ROW = {"key": "u-1", "n": 3, "mean": 0.1, "last_online": True, "_at": 5, "_until": 9, "_empty_at": LONG_AGO}


@pytest.fixture
def writer(redis_client):
    return RedisWriter(redis_client, "unskew", "main")


def row(client, key="u-1"):
    return {name.decode(): text.decode() for name, text in client.hgetall(f"unskew:purchases@1:{{{key}}}").items()}


def clocks(client):
    return {name.decode(): int(us) for name, us in client.hgetall("unskew:clock:main").items()}


def test_a_row_is_a_hash_that_any_client_reads(writer, redis_client):
    writer.add(closing(PURCHASES, 7, [ROW]))
    writer.flush(NOW)

    assert row(redis_client) == {"n": "3", "mean": "0.1", "last_online": "1", "_at": "5", "_until": "9"}


def typed_row(client, key):
    found = client.hgetall(f"unskew:orders@1:{{{key}}}")
    return {name.decode(): text.decode() for name, text in found.items()}


def test_a_value_of_every_type_is_text_that_any_client_reads(writer, redis_client):
    writer.add(closing(ORDERS, 7, [{"key": "a", **FULL, "_at": 5}, {"key": "b", "n": 0, "shop": "", "_at": 6}]))
    writer.flush(NOW)

    assert typed_row(redis_client, "a") == {**TEXTS, "_at": "5"}
    assert typed_row(redis_client, "b") == {"n": "0", "shop": "", "_at": "6"}


@pytest.mark.parametrize("name", NAMES)
def test_a_value_of_any_type_is_removed_where_it_becomes_null_and_the_last_of_a_key_wins(writer, redis_client, name):
    writer.add(closing(ORDERS, 7, [{"key": "a", **FULL, "_at": 5}, {"key": "b", **FULL, "_at": 5}]))
    writer.flush(NOW)
    writer.add(closing(ORDERS, 8, [{"key": "a", "_at": 6}]))
    writer.add(closing(ORDERS, 9, [{"key": "a", **FULL, name: None, "_at": 7}]))
    writer.flush(NOW)

    assert typed_row(redis_client, "a") == {**{n: text for n, text in TEXTS.items() if n != name}, "_at": "7"}
    assert typed_row(redis_client, "b") == {**TEXTS, "_at": "5"}


def test_many_rows_of_every_type_arrive_whole(writer, redis_client):
    n = 6_000
    rows = [{"key": f"u-{i}", **FULL, "shop": f"s{i}", "counts": [i] if i % 3 else None, "_at": i} for i in range(n)]
    writer.add(closing(ORDERS, 7, rows))
    writer.flush(NOW)

    found = redis_client.pipeline(transaction=False)
    for i in range(n):
        found.hmget(f"unskew:orders@1:{{u-{i}}}", "shop", "counts", "spend_by_shop", "_at")
    assert found.execute() == [
        [b"s%d" % i, b"[%d]" % i if i % 3 else None, TEXTS["spend_by_shop"].encode(), b"%d" % i] for i in range(n)
    ]


def test_fields_that_become_null_are_removed_and_the_others_stay(writer, redis_client):
    writer.add(closing(PURCHASES, 7, [ROW, {**ROW, "key": "u-2"}]))
    writer.flush(NOW)
    writer.add(closing(PURCHASES, 8, [{"key": "u-1", "n": 0, "_at": 6}, {**ROW, "key": "u-2", "last_online": False}]))
    writer.flush(NOW)

    assert row(redis_client) == {"n": "0", "_at": "6"}
    assert row(redis_client, "u-2")["last_online"] == "0"


def test_an_entity_that_is_gone_has_no_key(writer, redis_client):
    writer.add(closing(PURCHASES, 7, [ROW, {**ROW, "key": "u-2"}]))
    writer.flush(NOW)
    writer.add(closing(PURCHASES, 8, [{"key": "u-1", "n": 0, "_gone": True}]))
    writer.flush(NOW)

    assert row(redis_client) == {}
    assert row(redis_client, "u-2") != {}


def test_no_key_expires_and_one_of_an_older_version_loses_its_expiry_when_it_is_rewritten(writer, redis_client):
    redis_client.hset("unskew:purchases@1:{u-1}", "n", 1)
    redis_client.pexpire("unskew:purchases@1:{u-1}", 1_000_000)
    rows = [{**ROW, "_empty_at": NOW + DAY}, {**ROW, "key": "u-2", "mean": None, "_empty_at": NOW + DAY}]
    writer.add(closing(PURCHASES, 7, rows))
    writer.flush(NOW)

    assert [redis_client.pttl(f"unskew:purchases@1:{{{key}}}") for key in ("u-1", "u-2")] == [-1, -1]


def test_a_key_expires_after_it_empties_if_that_is_asked_for(redis_client):
    writer = RedisWriter(redis_client, "unskew", "main", expire_after_us=7 * DAY)
    empty_at = NOW + DAY
    writer.add(closing(PURCHASES, 7, [{**ROW, "_empty_at": empty_at}, {**ROW, "key": "u-2", "mean": None}]))
    writer.add(closing(PURCHASES, 7, [{**ROW, "key": "u-3", "mean": None, "_empty_at": empty_at}]))
    writer.flush(NOW)

    expected_ms = math.ceil((empty_at + 7 * DAY) / 1000)
    for key in ("u-1", "u-3"):
        assert redis_client.pexpiretime(f"unskew:purchases@1:{{{key}}}") == expected_ms
    # Its week is over, and it stays: history that is replayed must not vanish.
    assert redis_client.pttl("unskew:purchases@1:{u-2}") == -1


def test_of_several_rows_of_one_key_only_the_last_is_sent(writer, redis_client):
    other = view(Wanted("n", "count", sliding(DAY, DAY)), name="other")
    writer.add(closing(PURCHASES, 7, [{**ROW, "n": 1}, {**ROW, "key": "u-2"}]))
    writer.add(closing(other, 7, [{"key": "u-1", "n": 40, "_at": 1, "_until": 2}]))
    writer.add(closing(PURCHASES, 8, [{"key": "u-1", "n": 0, "_gone": True}]))
    writer.add(closing(PURCHASES, 9, [{**ROW, "n": 2}]))
    writer.flush(NOW)

    assert row(redis_client)["n"] == "2"
    assert redis_client.hget("unskew:other@1:{u-1}", "n") == b"40"
    assert (writer.rows_sent, writer.rows_conflated, writer.flushes) == (3, 2, 1)


def test_clocks_and_first_arrivals_stand_under_the_pipeline(writer, redis_client):
    writer.add(closing(PURCHASES, 7, shard="h0", since_us=3))
    writer.add(closing(PURCHASES, 8, shard="p1.0", since_us=None))
    writer.flush(NOW)

    assert clocks(redis_client) == {"purchases@1/h0": 7, "purchases@1/h0#since": 3, "purchases@1/p1.0": 8}


@pytest.mark.parametrize("mean", [0.1, None])
def test_a_value_of_another_type_is_named_removed_and_written(writer, redis_client, caplog, mean):
    redis_client.set("unskew:purchases@1:{u-1}", "a string where the hash should be")
    redis_client.lpush("unskew:purchases@1:{u-2}", 1)
    writer.add(closing(PURCHASES, 7, [{**ROW, "mean": mean, "key": key} for key in ("u-0", "u-1", "u-2")]))
    writer.flush(NOW)

    assert [row(redis_client, key)["n"] for key in ("u-0", "u-1", "u-2")] == ["3", "3", "3"]
    assert clocks(redis_client)["purchases@1/h0"] == 7
    assert writer.strangers == 2
    assert "unskew:purchases@1:{u-1} (string), unskew:purchases@1:{u-2} (list)" in caplog.text


WORDS = ["unskew:clock:main", "unskew:sent:main", "unskew:late:main", "unskew:sent:main:{3560}", "unskew:registry"]


@pytest.mark.parametrize("when", ["before the start", "before the list", "during the run"])
@pytest.mark.parametrize("key", WORDS)
def test_a_word_of_another_type_is_named_removed_and_written(redis_client, caplog, key, when):
    def spoil(moment):
        if when == moment:
            redis_client.delete(key)
            redis_client.lpush(key, "somebody's")

    spoil("before the start")
    writer = RedisWriter(redis_client, "unskew", "main")
    writer.look()
    spoil("before the list")
    writer.expect({"purchases@1": ["h0"]})
    writer.publish_registry('{"format": 1, "views": []}')
    writer.add(closing(PURCHASES, 7, [ROW]))
    writer.flush(NOW)
    spoil("during the run")
    writer.add(ledger_after(closing(PURCHASES, 8, [{**ROW, "n": 4}]), [1], worst_us=5))
    writer.flush(NOW)
    if writer.lost:
        # The words that went said what the servers had acknowledged.
        writer.add(replace(closing(PURCHASES, 8, [{**ROW, "n": 4}]), refill="part"))
        writer.add(replace(closing(PURCHASES, 8), refill="last"))
        writer.flush(NOW)
    writer.publish_registry('{"format": 1, "views": []}')

    assert row(redis_client)["n"] == "4"
    assert redis_client.hget("unskew:clock:main", "purchases@1/h0") == b"8"
    assert redis_client.type(key) == (b"string" if key == "unskew:registry" else b"hash")
    assert key in caplog.text


def test_a_server_that_is_not_there_is_unavailable_and_what_waits_is_kept():
    writer = RedisWriter("redis://127.0.0.1:1/0", "unskew", "main")
    writer.add(closing(PURCHASES, 7, [ROW]))

    with pytest.raises(StoreUnavailable, match="Redis"):
        writer.flush(NOW)

    assert writer.n_waiting == 1


def test_no_error_shows_the_password():
    for url in ("redis://:s3cret#@localhost:1/0", "s3cret://host", "redis://host:s3cret"):
        with pytest.raises(RequestError) as refused:
            connect(url)
        assert "s3cret" not in str(refused.value)
        assert refused.value.__cause__ is None
    with pytest.raises(StoreUnavailable) as unavailable:
        RedisWriter("redis://:s3cret@127.0.0.1:1/0", "unskew", "main").publish_registry("{}")
    assert "s3cret" not in str(unavailable.value)


def test_many_rows_arrive_whole(writer, redis_client):
    n = 12_345
    writer.add(
        closing(PURCHASES, 7, [{**ROW, "key": f"u-{i}", "n": i, "mean": i if i % 3 else None} for i in range(n)])
    )
    writer.flush(NOW)

    found = redis_client.pipeline(transaction=False)
    for i in range(n):
        found.hmget(f"unskew:purchases@1:{{u-{i}}}", "n", "mean")
    assert [(int(n), None if mean is None else float(mean)) for n, mean in found.execute()] == [
        (i, float(i) if i % 3 else None) for i in range(n)
    ]


def test_the_interval_between_flushes_grows_with_the_lag_up_to_a_second(writer):
    for lag_us, expected_us in [(0, 0), (16_000, 1_000), (1_600_000, 100_000), (60 * SECOND, SECOND), (-5, 0)]:
        writer.add(closing(PURCHASES, NOW - lag_us - 1))
        assert writer.interval_us(NOW) == expected_us
        writer.flush(NOW)


def test_a_flush_is_due_when_its_interval_is_over(writer):
    def step(now_us):
        writer.add(closing(PURCHASES, NOW - 16 * SECOND, [ROW]))
        return writer.flush_if_due(now_us)

    assert step(NOW)
    assert not step(NOW + SECOND - 1)
    assert step(NOW + SECOND)
    assert not writer.flush_if_due(NOW + MINUTE), "nothing waits"


def many(n_rows, **values):
    return [{**ROW, "key": f"u-{i}", **values} for i in range(n_rows)]


def test_many_rows_are_sent_aside_and_a_flush_returns_when_they_are_acknowledged(writer, redis_client):
    writer.add(closing(PURCHASES, 7, many(LEAST_ROWS_ASIDE, n=1)))
    assert writer.flush_if_due(NOW)
    writer.add(closing(PURCHASES, 8, many(LEAST_ROWS_ASIDE, n=2)))
    writer.flush(NOW)

    assert writer.n_waiting == 0
    assert {row(redis_client, f"u-{i}")["n"] for i in range(LEAST_ROWS_ASIDE)} == {"2"}
    assert clocks(redis_client)["purchases@1/h0"] == 8
    assert (writer.rows_sent, writer.flushes) == (2 * LEAST_ROWS_ASIDE, 2)


def test_no_clock_is_seen_before_the_values_that_it_speaks_of(writer, redis_client):
    for clock in range(1, 40):
        writer.add(closing(PURCHASES, clock, many(LEAST_ROWS_ASIDE, n=clock)))
        writer.flush_if_due(NOW + clock * MINUTE)
        seen = clocks(redis_client).get("purchases@1/h0", 0)
        last = row(redis_client, f"u-{LEAST_ROWS_ASIDE - 1}")
        assert int(last.get("n", 0)) >= seen
    writer.flush(NOW)

    assert clocks(redis_client)["purchases@1/h0"] == 39


def test_rows_refused_aside_wait_before_those_that_came_since(writer, redis_client):
    redis_client.config_set("maxmemory", 1)
    try:
        writer.add(closing(PURCHASES, 7, many(LEAST_ROWS_ASIDE, n=1)))
        assert writer.flush_if_due(NOW)
        writer.add(closing(PURCHASES, 8, [{**ROW, "n": 2}], shard="h1"))

        with pytest.raises(StoreUnavailable, match=r"OOM .*the server is at its maxmemory: raise it, or free memory"):
            writer.flush(NOW)
        assert clocks(redis_client) == {}
        assert writer.n_waiting == LEAST_ROWS_ASIDE + 1
    finally:
        redis_client.config_set("maxmemory", 0)

    writer.flush(NOW)
    assert row(redis_client)["n"] == "2"
    assert row(redis_client, "u-0")["n"] == "1"
    assert clocks(redis_client) == {
        name: us
        for shard, clock in (("h0", 7), ("h1", 8))
        for name, us in ((f"purchases@1/{shard}", clock), (f"purchases@1/{shard}#since", 0))
    }


@given(
    st.lists(
        st.floats(allow_nan=False, allow_infinity=False).filter(lambda x: math.copysign(1, x) > 0 or x), min_size=1
    )
)
def test_floats_read_back_to_the_same_bits_and_are_as_short_as_pythons(values):
    texts = pl.Series(values, dtype=pl.Float64).cast(pl.String).to_list()

    assert [float(text) for text in texts] == values
    assert [digits(text) for text in texts] == [digits(repr(value)) for value in values]


def digits(text: str) -> str:
    return text.partition("e")[0].replace(".", "").strip("-0")


@given(
    st.lists(st.tuples(st.text(max_size=4), st.none() | st.integers(-(2**63), 2**63 - 1)), unique_by=lambda kv: kv[0])
)
def test_what_is_encoded_is_what_a_plain_client_would_send(rows):
    plan = view(Wanted("n", "last", sliding(DAY, DAY), "n", of="int64"), name="v")
    before = {"key": "before", "n": None, "_until": 3}
    frame = current(plan, [before, *({"key": key, "n": n, "_at": 1, "_until": 2} for key, n in rows)])

    # Rows are sent in slices, whose values do not begin where their frame's do.
    encoded = RowEncoder(plan, "é").encode(frame.slice(1), NOW)

    connection = redis.Redis().connection_pool.make_connection()
    expected = []
    for key, n in rows:
        name = f"é:v@1:{{{key}}}"
        if n is None:
            expected += [("MULTI",), ("HSET", name, "_at", 1, "_until", 2), ("HDEL", name, "n"), ("EXEC",)]
        else:
            expected.append(("HSET", name, "n", n, "_at", 1, "_until", 2))
    assert encoded.data == b"".join(connection.pack_commands(expected))
    assert encoded.n_replies == len(expected)


@given(st.lists(st.none() | st.text(max_size=5)))
def test_any_text_is_encoded_as_a_plain_client_would_send_it(values):
    plan = view(
        Wanted("x", "last", sliding(DAY, DAY), "x"),
        Wanted("s", "last", sliding(DAY, DAY), "s", of="string"),
        Wanted("m", "mean", sliding(DAY, DAY), "x"),
        Wanted("t", "first", sliding(DAY, DAY), "s", of="string"),
    )
    before = {"key": "before", "s": "x", "t": None, "_at": 1}
    rows = [
        {"key": f"{i}", "x": 0.5, "m": -1.0, "s": value, "t": f"{value}!", "_at": i} for i, value in enumerate(values)
    ]

    encoded = RowEncoder(plan, "p").encode(current(plan, [before, *rows]).slice(1), NOW)

    connection = redis.Redis().connection_pool.make_connection()
    expected = []
    for i, value in enumerate(values):
        fields = [("x", "0.5"), ("s", value), ("m", "-1.0"), ("t", f"{value}!"), ("_at", i)]
        given_fields = [part for name, text in fields if text is not None for part in (name, text)]
        key = f"p:view@1:{{{i}}}"
        null = [name for name, text in fields if text is None] + ["_until"]
        expected += [("MULTI",), ("HSET", key, *given_fields), ("HDEL", key, *null), ("EXEC",)]
    assert encoded.data == b"".join(connection.pack_commands(expected))


def test_pipelines_on_one_prefix_keep_each_others_views_in_the_registry(writer, redis_client):
    def published(*views):
        return json.dumps(describe(Plan(streams={}, views={one.id: one for one in views})))

    visits = republished(PURCHASES, name="visits")
    other = RedisWriter(redis_client, "unskew", "other")
    writer.publish_registry(published(PURCHASES))
    other.publish_registry(published(visits))
    writer.publish_registry(published(republished(PURCHASES, version=2)))

    views = parse(redis_client.get("unskew:registry")).views
    assert {one.id for one in views.values()} == {"purchases@1", "purchases@2", "visits@1"}
    assert views["purchases"].version == 2

    # A version that does not serve takes nothing from one that another pipeline published.
    other.publish_registry(published(republished(PURCHASES, version=3, serving=False)))
    assert parse(redis_client.get("unskew:registry")).views["purchases"].version == 2

    # Side by side, of which the older one serves: earlier versions of unskew take the last one of a name.
    writer.publish_registry(published(PURCHASES, republished(PURCHASES, version=2, serving=False)))
    stored = redis_client.get("unskew:registry")
    assert parse(stored).views["purchases"].version == 1
    assert [
        (one["version"], one.get("serving")) for one in json.loads(stored)["views"] if one["name"] == "purchases"
    ] == [
        (2, False),
        (3, False),
        (1, None),
    ]


def test_of_versions_of_two_pipelines_the_newest_serves_whichever_starts_again(redis_client, caplog):
    def published(version, **changes):
        view = republished(PURCHASES, version=version, **changes)
        return json.dumps(describe(Plan(streams={}, views={view.id: view})))

    def serving():
        return parse(redis_client.get("unskew:registry")).views["purchases"].version

    old, new = RedisWriter(redis_client, "unskew", "main"), RedisWriter(redis_client, "unskew", "main")
    old.publish_registry(published(1))
    new.publish_registry(published(2))
    assert serving() == 2
    # A restart, by whichever pipeline, and in whatever order after Redis was emptied.
    for writer, version in ((old, 1), (new, 2), (old, 1)):
        writer.publish_registry(published(version))
        assert serving() == 2
    assert "purchases@1 does not serve, because another pipeline published purchases@2 later" in caplog.text
    for order in ((old, new), (new, old)):
        redis_client.flushdb()
        for writer in order:
            writer.publish_registry(writer._registry)
        assert serving() == 2
    # One that is asked to, and a version that leaves the name to others.
    old.publish_registry(published(1), anew=True)
    assert serving() == 1
    new.publish_registry(published(2))
    assert serving() == 1
    old.publish_registry(published(1, serving=False))
    assert serving() == 2


def test_a_registry_published_by_another_meanwhile_is_not_lost(redis_client):
    names = [f"view{index}" for index in range(24)]

    def publish(name):
        text = json.dumps(describe(Plan(streams={}, views={name: republished(PURCHASES, name=name)})))
        RedisWriter(redis_client, "unskew", name).publish_registry(text)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(publish, names))

    assert sorted(parse(redis_client.get("unskew:registry")).views) == sorted(names)


def test_a_damaged_registry_is_replaced(writer, redis_client):
    redis_client.set("unskew:registry", '{"format": 1, "views": 3}')
    writer.publish_registry(json.dumps(describe(Plan(streams={}, views={"purchases": PURCHASES}))))

    assert list(parse(redis_client.get("unskew:registry")).views) == ["purchases"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda client, _: client.delete("unskew:registry"),
        lambda client, _: client.set("unskew:registry", "x"),
        lambda client, _: client.set("unskew:registry", b"\xff"),
        lambda client, others: client.set("unskew:registry", others),
        lambda client, _: [client.delete("unskew:registry"), client.hset("unskew:registry", "a", "b")],
    ],
    ids=["removed", "garbage", "bytes", "others", "type"],
)
def test_a_registry_that_loses_the_views_of_a_writer_gets_them_again(writer, redis_client, spoil, caplog):
    def described(name):
        return json.dumps(describe(Plan(streams={}, views={name: republished(PURCHASES, name=name)})))

    def flush(now_us):
        writer.add(closing(PURCHASES, now_us + 7))
        writer.flush(now_us)

    writer.publish_registry(described("purchases"))
    flush(0)
    spoil(redis_client, described("others"))
    flush(LOOK_EVERY_US - 1)
    assert "lacked views" not in caplog.text
    flush(LOOK_EVERY_US)

    assert "purchases" in parse(redis_client.get("unskew:registry")).views
    assert "Redis lacked views in unskew:registry" in caplog.text
    caplog.clear()
    flush(2 * LOOK_EVERY_US)
    assert not caplog.records


def test_a_writer_whose_redis_is_emptied_publishes_again_what_was_applied_meanwhile(redis_client):
    def applied(number, serves):
        others = {"a": {"revision": number, "serves": {"purchases": serves}, "services": []}}
        plan = Plan(
            streams={}, views={one.id: one for one in (PURCHASES, republished(PURCHASES, version=2, serving=False))}
        )
        return json.dumps({**describe(plan), "applied": others})

    writer = RedisWriter(redis_client, "unskew", "main")
    writer.publish_registry(applied(1, 1))
    RedisWriter(redis_client, "unskew", "main").publish_registry(applied(2, 2))
    for look in (1, 2):
        writer.add(closing(PURCHASES, look))
        writer.flush(look * LOOK_EVERY_US)
        if look == 1:
            redis_client.flushdb()

    assert parse(redis_client.get("unskew:registry")).views["purchases"].version == 2


@pytest.mark.parametrize("query", ["foo=bar", "db=x", "timeout=5", "credential_provider=b", "parser_class=x"])
def test_a_url_with_a_bad_query_is_a_request_error_that_keeps_the_password(query):
    with pytest.raises(RequestError, match="the Redis URL cannot be read") as caught:
        connect(f"redis://:s3cret@127.0.0.1:1/0?{query}")

    assert "s3cret" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_the_list_of_shards_withdraws_what_an_earlier_run_said_of_empty_shards_and_leaves_other_views(redis_client):
    writer = RedisWriter(redis_client, "unskew", "main")
    redis_client.hset("unskew:clock:main", mapping={"other@1/h7": "5", "other@1#shards": "h7"})
    writer.expect({PURCHASES.id: ["p0.0", "p1.0"]})
    writer.add(NothingToCome(PURCHASES, "p1.0"))
    writer.flush(0)
    assert redis_client.hget("unskew:clock:main", f"{PURCHASES.id}/p1.0") == b"ended"

    writer.expect({PURCHASES.id: ["p0.0", "p1.0"]})

    assert redis_client.hgetall("unskew:clock:main") == {
        b"other@1/h7": b"5",
        b"other@1#shards": b"h7",
        f"{PURCHASES.id}#shards".encode(): b"p0.0 p1.0",
    }


def ledgers(client):
    return {name.decode(): read_ledger(text) for name, text in client.hgetall("unskew:late:main").items()}


def test_a_shards_ledger_is_written_when_it_changes_and_only_then(writer, redis_client):
    step = ledger_after(closing(PURCHASES, 7), [0, 3], [], [7], worst_us=5, duplicates=1)
    writer.add(step)
    writer.flush(NOW)
    assert ledgers(redis_client) == {"purchases@1/h0": ledger_of(step)}

    redis_client.delete("unskew:late:main")
    writer.add(replace(step, clock_us=20))
    writer.flush(NOW)
    assert ledgers(redis_client) == {}

    writer.add(ledger_after(closing(PURCHASES, 30), [0, 3], [], [7], worst_us=5, duplicates=2))
    writer.flush(NOW)
    assert ledgers(redis_client)["purchases@1/h0"].duplicates == 2


def test_a_ledger_that_was_not_acknowledged_is_sent_with_the_next_flush(writer, redis_client):
    step = ledger_after(closing(PURCHASES, 7), [0], [], [])
    writer.add(step)
    redis_client.config_set("maxmemory", 1)
    try:
        with pytest.raises(StoreUnavailable):
            writer.flush(NOW)
    finally:
        redis_client.config_set("maxmemory", 0)

    writer.flush(NOW)

    assert ledgers(redis_client) == {"purchases@1/h0": ledger_of(step)}
    assert clocks(redis_client)["purchases@1/h0"] == 7


def test_the_list_of_shards_withdraws_ledgers_of_shards_that_are_no_more(writer, redis_client):
    for shard in ("h0", "h1"):
        writer.add(ledger_after(closing(PURCHASES, 7, shard=shard), [0], [], []))
    writer.flush(NOW)
    redis_client.hset("unskew:late:main", "other@1/h7", "{}")

    writer.expect({PURCHASES.id: ["h0"]})

    assert set(ledgers(redis_client)) == {"purchases@1/h0", "other@1/h7"}
