"""While values are written, an answer that is not provisional is the log's row at its ``as_of``, bit for bit.

The kernel computes values of every type, the pipeline's writers bring them to Redis and to the log, and readers ask all
the while; for none of them does the ``as_of`` of such answers go back. DuckDB reads the log, and plain Python looks up
its rows. By hand, with more rows for each reader, and a cluster:

    python -m tests.agreement.test_read_while_written 100000 --cluster
"""

import asyncio
import bisect
import contextlib
import datetime as dt
import http.client
import itertools
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import polars as pl
import pytest

from tests.serving.test_http import Server, in_json, serving
from tests.support.plans import DAY, HOUR, MINUTE, SECOND, events
from tests.support.servers.valkey import Cluster, Valkey, cluster  # noqa: F401 - a fixture
from tests.support.typed import AWKWARD, DEFAULTS, NAMES, ORDERS
from unskew import FeatureStore
from unskew.features.evaluate import evaluate
from unskew.features.keys import encode_keys, shard_of
from unskew.features.plan import Plan
from unskew.features.registry import describe
from unskew.features.shard_state import ShardState
from unskew.features.versions import Versions
from unskew.sinks.redis.cluster_slots import slot_of
from unskew.sinks.redis.writer import RedisWriter
from unskew.sinks.tables.kinds import LogTable

T0 = 17_000 * DAY
SHARDS = ["h0", "h1", "h2"]
USERS = [f"u {number}/ä" for number in range(120)]
STRANGER = "nobody"
FEATURES = [f"orders:{name}" for name in NAMES]
COLUMNS = {
    "price": pl.Decimal(38, 2),
    "shop": pl.String(),
    "gift": pl.Boolean(),
    "paid_at": pl.Datetime("us", "UTC"),
}
LEAST_STEPS = 40
MOST_STEPS = 20_000
N_ROWS = 100
# That are not provisional, for each of the three readers: 100,000 together.
N_EXACT = 33_400
UNKNOWN = -1


class Answered(NamedTuple):
    """One row of an answer: by whom, of which user, what it is the value of."""

    reader: str
    user: str
    as_of_us: int
    provisional: bool
    values: str


class Writing:
    """Events of random users through the kernel into Redis and the log, step by step."""

    def __init__(self, url: str, log: Path, seed: int) -> None:
        self._random = random.Random(seed)
        self._writer = RedisWriter(url, "unskew", "main")
        self._writer.publish_registry(json.dumps(describe(Plan(streams={}, views=Versions([ORDERS])))))
        self._writer.expect({ORDERS.id: SHARDS})
        self._states = {shard: ShardState(ORDERS, shard) for shard in SHARDS}
        self._tables = {shard: LogTable(log, ORDERS, shard, None, now_us=lambda: T0) for shard in SHARDS}
        self._clock_us = T0
        self.n_steps = 0

    def step(self) -> None:
        """Some minutes or hours: a few events, some of them late, and all that leaves its window meanwhile."""
        pick = self._random
        before, self._clock_us = self._clock_us, self._clock_us + pick.choice([MINUTE, 17 * MINUTE, HOUR, 5 * HOUR])
        arrivals = sorted(pick.randrange(before, self._clock_us) for _ in range(pick.randrange(8)))
        rows = [(at, max(T0, at - pick.choice([0, SECOND, 3 * HOUR])), self._payload()) for at in arrivals]
        batch = events(rows, columns=COLUMNS).with_columns(pl.col("_offset") + 100 * self.n_steps)
        places = shard_of(encode_keys(batch, ORDERS.entity), len(SHARDS))
        for number, shard in enumerate(SHARDS):
            mine = batch.filter(pl.Series(places == number))
            updates = self._states[shard].apply(evaluate(ORDERS, mine).events if len(mine) else None, self._clock_us)
            self._tables[shard].append(updates)
            self._writer.add(updates)
        self._writer.flush(time.time_ns() // 1000)
        self.n_steps += 1

    def _payload(self) -> dict[str, Any]:
        pick = self._random
        price = pick.choice([None, Decimal(pick.randrange(-10_000, 10_000)).scaleb(-2)])
        return {
            "user": pick.choice(USERS),
            "x": pick.choice([None, pick.uniform(-1, 1) * 10 ** pick.randrange(-5, 20), 1 / 3]),
            "n": pick.randrange(-(2**50), 2**50),
            "price": price,
            "shop": pick.choice([None, "a", "", AWKWARD, "ü"]),
            "gift": pick.choice([None, True, False]),
            "paid_at": dt.datetime.fromtimestamp(pick.randrange(2**31), dt.UTC),
        }

    def close(self) -> None:
        for table in self._tables.values():
            table.snapshot()
            table.settle()
        self._writer.close()


def bits(values: Sequence[Any]) -> str:
    """A text that is the same for the same bits alone: the texts of floats and decimals are exact."""
    # Most rows are read again and again, and all that were read are kept.
    return sys.intern(repr([in_utc(value) for value in values]))


def in_utc(value: Any) -> Any:
    """An instant has one text, whichever object says UTC."""
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC)
    return [in_utc(one) for one in value] if isinstance(value, list) else value


def asked(pick: random.Random) -> list[str]:
    return pick.sample([*USERS, STRANGER], N_ROWS)


def of_answer(
    reader: str, users: Sequence[str], columns: dict[str, list[Any]], about: dict[str, list[Any]]
) -> list[Answered]:
    rows = zip(*(columns[name] for name in NAMES), strict=True)
    return [
        Answered(reader, user, UNKNOWN if as_of is None else as_of, provisional, bits(row))
        for user, as_of, provisional, row in zip(users, about["as_of"], about["provisional"], rows, strict=True)
    ]


def micros(instants: pl.Series) -> list[int | None]:
    return instants.to_physical().to_list()


def by_sdk(url: str, pick: random.Random) -> Iterator[list[Answered]]:
    with FeatureStore(redis_url=url) as store:
        while True:
            users = asked(pick)
            found = store.get_online_features(FEATURES, [{"user": user} for user in users])
            about = found.metadata["orders"]
            judged = {"as_of": micros(about["as_of"]), "provisional": about["provisional"].to_list()}
            yield of_answer("sdk", users, found.to_dict(), judged)


def by_async(url: str, pick: random.Random) -> Iterator[list[Answered]]:
    """Three reads at once, over one connection."""

    async def read(store: FeatureStore, users: list[str]) -> list[Answered]:
        found = await store.get_online_features_async(FEATURES, [{"user": user} for user in users])
        about = found.metadata["orders"]
        judged = {"as_of": micros(about["as_of"]), "provisional": about["provisional"].to_list()}
        return of_answer("async", users, found.to_dict(), judged)

    async def several(store: FeatureStore) -> list[list[Answered]]:
        return await asyncio.gather(*(read(store, asked(pick)) for _ in range(3)))

    with FeatureStore(redis_url=url) as store, asyncio.Runner() as runner:
        while True:
            # Of answers to reads that were in flight together none is the later one.
            for number, found in enumerate(runner.run(several(store))):
                yield [row._replace(reader=f"async {number}") for row in found]


def by_http(server: Server, pick: random.Random) -> Iterator[list[Answered]]:
    with contextlib.closing(server.connection()) as connection:
        while True:
            users = asked(pick)
            yield of_http(connection, users)


def of_http(connection: http.client.HTTPConnection, users: list[str]) -> list[Answered]:
    connection.request("POST", "/get-online-features", json.dumps({"entities": {"user": users}, "features": FEATURES}))
    answer = json.load(connection.getresponse())
    names = answer["metadata"]["feature_names"]
    columns = {name: one["values"] for name, one in zip(names, answer["results"], strict=True)}
    about = answer["metadata"]["views"]["orders"]
    as_of = [None if at is None else micros_of(at) for at in about["as_of"]]
    return of_answer("http", users, columns, {"as_of": as_of, "provisional": about["provisional"]})


def micros_of(text: str) -> int:
    return (dt.datetime.fromisoformat(text) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)


class Log:
    """The rows of a log by user, each the last one of its instant, as DuckDB reads the files."""

    def __init__(self, root: Path) -> None:
        files = str(root / "orders" / "v1" / "day=*" / "*.parquet")
        names = ", ".join(f'"{name}"' for name in NAMES)
        with duckdb.connect() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            table = connection.sql(
                f'SELECT "user", epoch_us(available_at), {names} FROM read_parquet(?) ORDER BY "user", available_at',
                params=[files],
            ).to_arrow_table()
        rows = pl.DataFrame(pl.from_arrow(table)).rows()
        self._instants: dict[str, list[int]] = {}
        self._rows: dict[str, list[list[Any]]] = {}
        for user, at, *values in rows:
            self._instants.setdefault(user, []).append(at)
            self._rows.setdefault(user, []).append(values)
        self.n_rows = len(rows)
        assert all(len(set(its)) == len(its) for its in self._instants.values()), "two rows of one instant"

    def at(self, user: str, instant_us: int) -> list[Any]:
        """What a reader gets: the last row that is there at the instant, with the defaults of what it lacks."""
        place = bisect.bisect_right(self._instants.get(user, []), instant_us)
        row = self._rows[user][place - 1] if place else [None] * len(NAMES)
        return [DEFAULTS[name] if value is None else value for name, value in zip(NAMES, row, strict=True)]


def moving(target: Cluster, stop: threading.Event) -> int:
    """Move the slots of users to another node and back, until it is to stop; return how often."""
    for n_moves, user in enumerate(itertools.cycle(USERS), 1):
        slot = slot_of(f"unskew:orders@1:{{{encode_keys(pl.DataFrame({'user': [user]}), ORDERS.entity)[0]}}}")
        home = target.owner_of(slot)
        target.move(slot, next(node for node in target.masters if node is not home))
        if stop.is_set():
            return n_moves
    raise AssertionError


def compared(url: str, log: Path, n_wanted: int, moved: Cluster | None = None, seed: int = 1) -> Counter[str]:
    """Read while it is written until each reader has so many rows that are not provisional; compare; return counts."""
    writing = Writing(url, log, seed)
    writing.step()
    stop, failed = threading.Event(), []
    found: dict[str, list[Answered]] = {}
    counts: Counter[str] = Counter()

    def reading(name: str, answers: Iterator[list[Answered]]) -> None:
        rows = found.setdefault(name, [])
        latest: dict[tuple[str, str], Answered] = {}
        n_exact = 0
        for answer in answers:
            for row in answer:
                if row.provisional or row.as_of_us == UNKNOWN:
                    continue
                before = latest.get((row.reader, row.user), row)
                assert row.as_of_us >= before.as_of_us, f"as_of went back from {before} to {row}"
                latest[row.reader, row.user] = row
                n_exact += 1
            rows += answer
            if (n_exact >= n_wanted and writing.n_steps >= LEAST_STEPS) or stop.is_set():
                break
            # The writer shares this process, and should come to its turn.
            time.sleep(0.01)
        answers.close()  # type: ignore[attr-defined]
        if n_exact < n_wanted:
            failed.append(AssertionError(f"{name} read {n_exact} rows that are not provisional"))

    def watched(act: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            try:
                act()
            except BaseException as error:  # noqa: BLE001 - it is raised in the test's own thread
                failed.append(error)
                stop.set()

        return run

    with serving(url) as server:
        readers = {
            "sdk": by_sdk(url, random.Random(seed)),
            "async": by_async(url, random.Random(seed + 1)),
            "http": by_http(server, random.Random(seed + 2)),
        }
        threads = [
            threading.Thread(target=watched(lambda name=name, answers=answers: reading(name, answers)))
            for name, answers in readers.items()
        ]
        done = threading.Event()
        if moved is not None:
            threads.append(threading.Thread(target=watched(lambda: counts.update(moves=moving(moved, done)))))
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads[:3]) and writing.n_steps < MOST_STEPS:
            writing.step()
        stop.set()
        done.set()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads), "a reader hangs"
    writing.close()
    if failed:
        raise failed[0]
    logged = Log(log)
    for name, rows in found.items():
        for row in rows:
            if row.provisional or row.as_of_us == UNKNOWN:
                counts["provisional"] += 1
                continue
            expected = logged.at(row.user, row.as_of_us)
            if name == "http":
                expected = [in_json(in_utc(value)) for value in expected]
            assert row.values == bits(expected), (row, expected)
            counts[name] += 1
    counts["steps"], counts["log rows"] = writing.n_steps, logged.n_rows
    return counts


@pytest.mark.long
def test_what_is_read_while_it_is_written_is_what_the_log_has(tmp_path: Path) -> None:
    with Valkey(tmp_path / "valkey") as redis:
        counts = compared(redis.url, tmp_path / "log", N_EXACT)

    assert sum(counts[name] for name in ("sdk", "async", "http")) >= 100_000
    assert min(counts[name] for name in ("sdk", "async", "http")) >= N_EXACT
    assert counts["steps"] >= LEAST_STEPS
    assert counts["provisional"] > 0


@pytest.mark.long
def test_what_is_read_from_a_cluster_whose_slots_move_is_what_the_log_has(tmp_path: Path, cluster: Cluster) -> None:  # noqa: F811
    cluster.flush()
    counts = compared(cluster.url, tmp_path / "log", N_EXACT, moved=cluster)

    assert sum(counts[name] for name in ("sdk", "async", "http")) >= 100_000
    assert min(counts[name] for name in ("sdk", "async", "http")) >= N_EXACT
    assert counts["steps"] >= LEAST_STEPS
    assert counts["provisional"] > 0
    assert counts["moves"] > 100


if __name__ == "__main__":
    wanted = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        several = "--cluster" in sys.argv
        store = stack.enter_context(Cluster(Path(folder) / "redis") if several else Valkey(Path(folder) / "redis"))
        print(dict(compared(store.url, Path(folder) / "log", wanted, store if isinstance(store, Cluster) else None)))
