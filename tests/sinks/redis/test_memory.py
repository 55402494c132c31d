"""The arithmetic of memory against what Valkey says that it uses."""

import random
import string

import polars as pl
import pytest
from redis import Redis

from tests.support.plans import DAY, HOUR, Wanted, sliding, view
from unskew.features.view import View
from unskew.sinks.redis.keyspace import value_key
from unskew.sinks.redis.memory import bytes_of
from unskew.sinks.redis.texts import text_of

WINDOW = sliding(DAY, HOUR)
COUNTS = view(Wanted("n", "count", WINDOW), name="counts")
MANY = view(
    *(Wanted(f"count_{n}", "count", WINDOW) for n in range(10)),
    *(Wanted(f"a_longer_name_of_a_sum_{n}", "sum", WINDOW, "x") for n in range(10)),
    name="many",
)
TEXTS = view(
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
    [(COUNTS, 1, 5, 0.05), (MANY, 1, 5, 0.05), (TEXTS, 0, 30, 0.05), (TEXTS, 40, 60, 0.05), (LONG, 65, 300, 0.1)],
    ids=["one feature", "many features", "texts and two keys", "longer texts", "texts too long for a listpack"],
)
def test_the_bytes_of_hashes_are_what_valkey_uses(
    of, least: int, most: int, within: float, redis_client: Redis
) -> None:
    n = 4_000
    published = of.published
    rows = values(published, n, least, most)
    texts = rows.select(
        *published.entity.keys, *(text_of(pl.col(one.name), one.dtype).alias(one.name) for one in published.features)
    )
    before = redis_client.info("memory")["used_memory"]
    pipeline = redis_client.pipeline(transaction=False)
    keys = []
    for number, row in enumerate(texts.iter_rows(named=True)):
        key = value_key("unskew", of.id, "|".join(str(row.pop(name)) for name in published.entity.keys))
        fields = {name: text for name, text in row.items() if text is not None}
        pipeline.hset(key, mapping={"_at": 1_490_400_000_000_000 + number, "_until": 1_490_500_000_000_000, **fields})
        keys.append(key)
        if number % 2_000 == 1_999:
            pipeline.execute()
    grown = redis_client.info("memory")["used_memory"] - before
    usage = [redis_client.memory_usage(key) for key in keys[:: n // 200]]

    found = bytes_of(rows, published)

    # Of few keys, buffers of clients and the room that the table of keys keeps for more are a part of the growth.
    assert found.sum() == pytest.approx(grown, rel=0.2)
    # MEMORY USAGE leaves out the place in the table of keys.
    assert found.mean() == pytest.approx(sum(usage) / len(usage) + 14, rel=within)
