"""What a feature takes in Redis, against what a real server says."""

import random
import string
from pathlib import Path

import polars as pl
import pytest

from tests.support.plans import DAY, HOUR, SECOND, Wanted, WantedOfOthers, events, republished, sliding, view
from tests.support.servers.valkey import Valkey
from unskew.features.definitions.without import without
from unskew.features.evaluate import evaluate
from unskew.features.plan import ViewPlan
from unskew.features.shard_state import ShardState
from unskew.features.view import View
from unskew.sinks.redis.keyspace import connect, value_key
from unskew.sinks.redis.sizes import Sizes, bytes_of, entry_bytes
from unskew.sinks.redis.texts import text_of
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

    assert (entry_bytes(pl.Series(TEXTS)) + 1 + 1 + 1).to_list() == found


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
    plans = [PLAN, *(republished(without(PLAN, [name]), name=f"one{number}") for number, name in enumerate(names))]
    with Valkey(tmp_path / "one") as server:
        client = connect(server.url)
        usage = [used(client, server.url, plan, history) for plan in plans]
        client.close()
    sizes = Sizes(PLAN.published)
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


COUNTS = view(Wanted("n", "count", WINDOW), name="counts")
MANY = view(
    *(Wanted(f"count_{n}", "count", WINDOW) for n in range(10)),
    *(Wanted(f"a_longer_name_of_a_sum_{n}", "sum", WINDOW, "x") for n in range(10)),
    name="many",
)
STAYS = view(
    Wanted("last", "last", WINDOW, "s", of="string"), Wanted("when", "last_time", WINDOW), keys={"user": "string", "shop": "int64"}, name="texts",
)  # fmt: skip
LONG = view(Wanted("top", "last", WINDOW, "s", of="string"), Wanted("n", "count", WINDOW), name="long")


def values(of: View, n: int, least: int, most: int) -> pl.DataFrame:
    draw = random.Random(3)

    def drawn(kind: str) -> object:
        match kind:
            case "int64":
                return draw.randrange(10 ** draw.randrange(1, 12)) - draw.randrange(2)
            case "float64":
                return None if draw.random() < 0.2 else draw.choice([float(draw.randrange(90)), draw.random() * 1e4])
            case "timestamp":
                return 1_490_400_000_000_000 + draw.randrange(10**12)
        return "".join(draw.choices(string.ascii_letters + "é", k=draw.randint(least, most)))

    keys = [(f"u-{number * 7919}" if kind == "string" else number) for number in range(n) for kind in of.entity.types]
    columns = {name: keys[at :: len(of.entity.keys)] for at, name in enumerate(of.entity.keys)}
    features = {one.name: pl.Series([drawn(one.type) for _ in range(n)]).cast(one.dtype.polars) for one in of.features}
    return pl.DataFrame({**columns, **features})


@pytest.mark.parametrize(
    ("of", "least", "most", "within"),
    [(COUNTS, 1, 5, 0.05), (MANY, 1, 5, 0.05), (STAYS, 0, 30, 0.05), (STAYS, 40, 60, 0.05), (LONG, 65, 300, 0.1)],
    ids=["one feature", "many features", "texts and two keys", "longer texts", "texts too long for a listpack"],
)
def test_the_bytes_of_hashes_are_what_valkey_uses(of, least: int, most: int, within: float, tmp_path: Path) -> None:
    n = 4_000
    published = of.published
    rows = values(published, n, least, most)
    texts = rows.select(
        *published.entity.keys, *(text_of(pl.col(one.name), one.dtype).alias(one.name) for one in published.features)
    )
    # A server of its own: another's memory also grows and shrinks with what came before.
    with Valkey(tmp_path) as server, connect(server.url) as client:
        before = client.info("memory")["used_memory"]
        pipeline = client.pipeline(transaction=False)
        keys = []
        for number, row in enumerate(texts.iter_rows(named=True)):
            key = value_key("unskew", of.id, "|".join(str(row.pop(name)) for name in published.entity.keys))
            fields = {name: text for name, text in row.items() if text is not None}
            pipeline.hset(
                key, mapping={"_at": 1_490_400_000_000_000 + number, "_until": 1_490_500_000_000_000, **fields}
            )
            keys.append(key)
            if number % 2_000 == 1_999:
                pipeline.execute()
        grown = client.info("memory")["used_memory"] - before
        usage = [client.memory_usage(key) for key in keys[:: n // 200]]

    found = bytes_of(rows, published)

    # Of few keys, buffers of clients and the room that the table of keys keeps for more are a part of the growth.
    assert found.sum() == pytest.approx(grown, rel=0.2)
    # MEMORY USAGE leaves out the place in the table of keys.
    assert found.mean() == pytest.approx(sum(usage) / len(usage) + 14, rel=within)
