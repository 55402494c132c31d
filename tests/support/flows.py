"""Steps of one view, sent to Redis wherever it is, and what stands there then."""

import json
import time
from dataclasses import replace

from tests.support.plans import DAY, Wanted, sliding, view
from tests.support.updates import updates
from unskew.features.plan import Plan
from unskew.features.registry import describe
from unskew.features.updates import Updates
from unskew.sinks.redis.keyspace import connect
from unskew.sinks.redis.url import Client
from unskew.sinks.redis.writer import RedisWriter

VIEW = view(
    Wanted("n", "count", sliding(30 * DAY, DAY)),
    Wanted("mean", "mean", sliding(30 * DAY, DAY), "x"),
    name="purchases",
)
NOW = time.time_ns() // 1000
STATE = "one-history"
KEYS = [f"u-{number}" for number in range(600)]


def step(clock_us: int, n: int, keys: list[str] = KEYS, *, gone: bool = False, shard: str = "h0") -> Updates:
    """A row for each key; every third has a null, and so is a transaction."""
    rows = [
        {
            "key": key,
            "n": n,
            "mean": None if (number + n) % 3 == 0 else 0.5,
            "_at": clock_us,
            "_until": clock_us + 9,
            "_empty_at": NOW,
            "_gone": gone,
        }
        for number, key in enumerate(keys)
    ]
    return replace(updates(VIEW, clock_us, rows), applied=n, shard=shard)


def part(clock_us: int, n: int, keys: list[str] = KEYS, *, last: bool = False, shard: str = "h0") -> Updates:
    """A part of what a shard holds, as it is written again."""
    return replace(step(clock_us, n, keys, shard=shard), refill="last" if last else "part")


def writing(source: Client | str, state: str = STATE) -> RedisWriter:
    """A writer of a process that has just started."""
    writer = RedisWriter(source, "unskew", "main", state)
    writer.look()
    writer.publish_registry(json.dumps(describe(Plan(streams={}, views={VIEW.name: VIEW}))))
    writer.expect({VIEW.id: ["h0", "h1"]})
    return writer


def send(writer: RedisWriter, *steps: Updates) -> None:
    for taken in steps:
        writer.add(taken)
    writer.flush(NOW)


def values(url: str) -> dict[str, int]:
    with connect(url) as client:
        names = [name.decode() for name in client.scan_iter(match="unskew:purchases@1:*", count=10_000)]
        commands = client.pipeline(transaction=False)
        for name in names:
            commands.hget(name, "n")
        return {name.partition("{")[2][:-1]: int(n) for name, n in zip(names, commands.execute(), strict=True)}


def clock(url: str, shard: str = "h0") -> int | None:
    with connect(url) as client:
        text = client.hget("unskew:clock:main", f"{VIEW.id}/{shard}")
    return None if text is None else int(text)
