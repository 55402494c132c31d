"""A status means the same online and in training: read at one instant, both sides give the same one."""

import json
import random
import time
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
import redis

from tests.support.plans import (
    DAY,
    HOUR,
    MINUTE,
    SECOND,
    Wanted,
    WantedOfOthers,
    events,
    lifetime,
    local_day,
    session,
    sliding,
    tumbling,
    view,
)
from tests.support.written import write_log
from unskew.features.frames import read_table
from unskew.features.plan import Plan
from unskew.features.registry import describe
from unskew.offline.join import historical_features
from unskew.serving.online import OnlineReader
from unskew.sinks.redis.writer import RedisWriter

T0 = 1_490_400_000 * SECOND
VIEW = view(
    Wanted("hour", "count", sliding(HOUR, 5 * MINUTE)),
    Wanted("dear", "count", sliding(DAY, HOUR), filter="x > 2"),
    Wanted("sum", "sum", sliding(HOUR, 5 * MINUTE), "x"),
    Wanted("whole", "sum", tumbling(HOUR), "n", "int64"),
    Wanted("mean", "mean", sliding(2 * HOUR, 5 * MINUTE), "x", default=-1.0),
    Wanted("spread", "var", sliding(HOUR, 5 * MINUTE), "x", parameters={"ddof": 1}),
    Wanted("today", "last", local_day("Europe/Berlin"), "n", "int64"),
    Wanted("visit", "top_k", session(30 * MINUTE, 5 * MINUTE), "n", "int64", parameters={"n": 2}),
    Wanted("before", "count", lifetime(), filter="n = 3"),
    derived=[WantedOfOthers("odd", "1 / (hour - 2)", default=7.0), WantedOfOthers("share", "sum / hour")],
    name="clicks",
)
NAMES = [output.name for output in VIEW.outputs]
USERS = ["a", "b", "c", "d", "never", None]


def history(chance: random.Random) -> pl.DataFrame:
    """A day of four users, with quiet hours in which all windows but the longest empty, sums of zero, and nulls."""
    at_us = T0
    rows = []
    for _ in range(60):
        at_us += chance.choice([SECOND, MINUTE, 10 * MINUTE, 40 * MINUTE, 3 * HOUR])
        payload = {
            "user": chance.choice("abcd"),
            "x": chance.choice([0.0, 1.5, -1.5, 3.0, None]),
            "n": chance.choice([0, 1, 3]),
        }
        rows.append((at_us, at_us - chance.choice([0, 0, 5 * MINUTE, 2 * HOUR]), payload))
    return events(rows)


@pytest.mark.parametrize("seed", range(3))
def test_online_and_training_give_every_value_the_same_status(tmp_path: Path, redis_client: redis.Redis, seed: int):
    chance = random.Random(seed)
    had = history(chance)
    last_us = int(had["_arrival"].to_physical()[-1])
    found: Counter[str] = Counter()
    for number in range(8):
        clock_us = chance.choice(
            [chance.randrange(T0 + HOUR, last_us), last_us + chance.choice([1, HOUR, DAY, 3 * DAY])]
        )
        folder = tmp_path / str(number)
        redis_client.flushdb()
        writer = RedisWriter(redis_client, "unskew", "main")
        writer.publish_registry(json.dumps(describe(Plan(streams={}, views={"clicks": VIEW}))))
        came = had.filter(pl.col("_arrival").to_physical() < clock_us)
        for step in write_log(folder, VIEW, came, clock_us, n_shards=1):
            writer.add(step)
        writer.flush(time.time_ns() // 1000)
        rows = pl.DataFrame({"user": USERS})
        reader = OnlineReader(redis_client, now_us=lambda: 0)
        labels = rows.with_columns(event_timestamp=pl.lit(clock_us - 1).cast(pl.Datetime("us", "UTC")))
        answer = historical_features(
            folder, {"clicks": VIEW.published}, read_table(labels), [f"clicks:{name}" for name in NAMES],
            inclusive=True, with_status=True,
        ).columns  # fmt: skip
        for name in NAMES:
            online = reader.read([f"clicks:{name}"], rows)
            about = online.metadata["clicks"]
            assert about["as_of"].drop_nulls().to_physical().to_list() == [clock_us - 1] * (len(USERS) - 1)
            assert not about["provisional"].any()
            assert about["status"].to_list() == answer[f"{name}__status"].to_list(), (name, clock_us)
            assert online.columns[name].to_list() == answer[name].to_list()
            found.update(about["status"].to_list())
        together = reader.read([f"clicks:{name}" for name in NAMES], rows).metadata["clicks"]["status"].to_list()
        for user, status in enumerate(together):
            ones = {answer[f"{name}__status"][user] for name in NAMES}
            assert status == next(one for one in ("no_key", "warming", "present", "default") if one in ones)
    assert min(found[status] for status in ("no_key", "warming", "present", "default")) >= 3
