"""What a feature takes in Redis, against what a real server says."""

import random

import polars as pl

from tests.support.plans import DAY, HOUR, SECOND, Wanted, WantedOfOthers, events, republished, sliding, view
from tests.support.servers.valkey import Valkey
from unskew.features.definitions.without import without
from unskew.features.evaluate import evaluate
from unskew.features.plan import ViewPlan
from unskew.features.shard_state import ShardState
from unskew.sinks.redis.keyspace import connect
from unskew.sinks.redis.memory import FieldSizes, item_bytes
from unskew.sinks.redis.writer import RedisWriter

WINDOW = sliding(DAY, HOUR)
NOW_US = 1_700_000_000_000_000
TEXTS = [
    *("0", "1", "127", "128", "-1", "-4096", "-4097", "4095", "4096", "32767", "32768", "-32769", "8388607", "8388608"),
    *("-8388609", "2147483647", "2147483648", "-2147483649", "9223372036854775807", "9223372036854775808"),
    *("-9223372036854775808", "-0", "007", "+7", "1.5", "1e+300", "", "é", "a text", "x" * 62, "x" * 63, "x" * 64),
    *("x" * 125, "x" * 126, "x" * 127, "x" * 128, "x" * 4095, "x" * 4096, "x" * 16_380),
]


def test_an_entry_takes_the_bytes_that_the_server_takes_for_it(tmp_path):
    settings = {"rdbcompression": "no", "hash-max-listpack-value": "100000"}
    with Valkey(tmp_path / "one", settings) as server:
        client = connect(server.url)
        client.hset("without", "field", "1")
        known = list_bytes(client.dump("without"))
        found = []
        for text in TEXTS:
            client.delete("with")
            client.hset("with", mapping={"field": "1", "n": text})
            found.append(list_bytes(client.dump("with")) - known)
        client.close()

    sizes = pl.DataFrame({"text": TEXTS}).select(item_bytes(pl.col("text"))).to_series()
    # The name, n, has a head, a byte, and its length.
    assert (sizes + 3).to_list() == found


def list_bytes(dumped: bytes) -> int:
    """The length of the compact list in the answer of DUMP: its type, its length, the list, and ten bytes of checks."""
    prefix = {0: 1, 1: 2, 2: 5}[dumped[1] >> 6]
    return len(dumped) - 1 - prefix - 10


PLAN = republished(
    view(
        Wanted("a_count_with_a_long_name", "count", WINDOW),
        Wanted("spend", "sum", WINDOW, "x"),
        Wanted("mean_amount", "mean", WINDOW, "x"),
        Wanted("largest", "max", WINDOW, "n", "int64"),
        Wanted("noted", "last", WINDOW, "n", "int64", filter="n > 500000"),
        derived=(WantedOfOthers("share", "largest / spend"),),
        shared=True,
    ),
    topic="stream",
)


def test_a_feature_takes_what_memory_usage_differs_by_without_it(tmp_path):
    draw = random.Random(1)
    history = events(
        [
            (
                at * SECOND,
                at * SECOND,
                {"user": f"u{at % 300}", "x": draw.uniform(0, 99), "n": draw.randrange(1_000_000)},
            )
            for at in range(900)
        ]
    )
    names = ["a_count_with_a_long_name", "mean_amount", "noted", "share"]
    plans = [PLAN, *(republished(without(PLAN, [name]), name=f"vie{number}") for number, name in enumerate(names))]
    with Valkey(tmp_path / "one") as server:
        client = connect(server.url)
        usage = [used(client, server.url, plan, history) for plan in plans]
        client.close()
    sizes = FieldSizes(PLAN.published)
    sizes.add(closed(PLAN, history).unique("user", keep="last"))

    for name, less in zip(names, usage[1:], strict=True):
        # The allocator rounds what a list takes up, by at most a quarter of the list.
        assert 0.95 < (usage[0] - less) / sizes.means()[name] < 1.4, name


def closed(plan: ViewPlan, history: pl.DataFrame) -> pl.DataFrame:
    return ShardState(plan, "h0").apply(evaluate(plan, history).events, 1_000 * SECOND).closed


def used(client: object, url: str, plan: ViewPlan, history: pl.DataFrame) -> float:
    """The mean of MEMORY USAGE over the hashes of a view's entities; the key counts, so names have one length."""
    writer = RedisWriter(url, "unskew", "main")
    writer.add(ShardState(plan, "h0").apply(evaluate(plan, history).events, 1_000 * SECOND))
    writer.flush(NOW_US)
    writer.close()
    keys = list(client.scan_iter(f"unskew:{plan.id}:*"))
    assert len(keys) == 300
    return sum(client.memory_usage(key, samples=0) for key in keys) / len(keys)
