"""A log and an archive that grow as a pipeline would write them, and the same log read as plain files."""

import random
from pathlib import Path

import polars as pl

from tests.support.plans import DAY, HOUR, SECOND, Wanted, WantedOfOthers, events, sliding, view
from unskew.features.evaluate import evaluate
from unskew.features.keys import encode_keys, shard_of
from unskew.features.plan import Plan, ViewPlan
from unskew.features.shard_state import ShardState
from unskew.offline.compaction import Limits, compact, log_tables
from unskew.sinks.tables.kinds import ArchiveTable, LogTable
from unskew.sinks.tables.layout import published_files, view_root

T0 = 1_500_000_000 * SECOND  # a multiple of 20 s
WINDOW = sliding(2 * HOUR, 60 * SECOND)
VIEW = view(
    Wanted("count", "count", WINDOW),
    Wanted("sum", "sum", WINDOW, "x"),
    Wanted("mean", "mean", WINDOW, "x"),
    Wanted("last", "last", WINDOW, "n", "int64", default=-1),
    derived=(WantedOfOthers("ratio", "sum / count"),),
    name="clicks",
)
PLAN = Plan(streams={}, views={"clicks": VIEW})
FEATURES = [f"clicks:{output.name}" for output in VIEW.outputs]
LAG_US = 30 * SECOND
USERS = [f"u{n}" for n in range(12)]


class Growing:
    """A log of two shards that grows, as a pipeline would write it; ``LAG_US`` after the clock of each batch."""

    def __init__(self, root: Path, plan: ViewPlan = VIEW) -> None:
        self.root, self.plan, self._now_us = root, plan, 0
        self._shards = [
            (ShardState(plan, f"h{n}"), LogTable(root, plan, f"h{n}", None, now_us=lambda: self._now_us))
            for n in range(2)
        ]

    def feed(self, given: pl.DataFrame, clock_us: int, n_epochs: int = 6) -> None:
        places = shard_of(encode_keys(given, self.plan.entity), 2)
        for number, (state, table) in enumerate(self._shards):
            mine = given.filter(pl.Series(places == number))
            size = -(-len(mine) // n_epochs) or 1
            for at in range(0, len(mine), size):
                batch = mine[at : at + size]
                clock = int(batch["_arrival"].to_physical()[-1])
                self._now_us = clock + LAG_US
                table.append(state.apply(evaluate(self.plan, batch).events, clock))
                table.snapshot()
            self._now_us = clock_us + LAG_US
            table.append(state.apply(None, clock_us))
            table.snapshot()
            table.settle()


def some_events(seed: int, begin_us: int, end_us: int, n: int) -> pl.DataFrame:
    pick = random.Random(seed)
    at = sorted(pick.randrange(begin_us, end_us) for _ in range(n))
    return events(
        [
            (t, t, {"user": pick.choice(USERS), "x": pick.choice([None, pick.gauss(0, 1)]), "n": pick.randrange(90)})
            for t in at
        ]
    )


FIRST = some_events(1, T0, T0 + 2 * DAY, 500)
SECOND_HALF = some_events(2, T0 + 2 * DAY + HOUR, T0 + 4 * DAY, 500)


def grow(log: Growing) -> None:
    log.feed(SECOND_HALF, T0 + 5 * DAY)


def compacted(log: Growing) -> None:
    (table,) = log_tables(log.root)
    before = len(published_files(table.root))
    compact(table, Limits(grace_s=0), now_s=10**10)
    assert len(published_files(table.root)) < before


class GrowingArchive:
    """An archive of two partitions that grows; the second one is an hour behind."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._tables = [ArchiveTable(root, VIEW.stream.topic, number, None) for number in range(2)]
        self._offsets = [0, 0]

    def feed(self, given: pl.DataFrame, clock_us: int) -> None:
        behind = given["_arrival"].to_physical() < clock_us - HOUR
        for number, table in enumerate(self._tables):
            mine = given.filter((pl.int_range(pl.len()) % 2 == number) & ((number == 0) | behind))
            first = self._offsets[number]
            self._offsets[number] += len(mine)
            offsets = pl.int_range(first, first + pl.len(), dtype=pl.Int64)
            table.append(
                mine.with_columns(pl.lit(number, pl.Int32).alias("_partition"), offsets.alias("_offset")),
                first_us=T0,
                clock_us=clock_us - number * HOUR,
            )
            table.snapshot()
            table.snapshot()


def rows_of(log: Growing) -> dict[str, list[tuple[int, dict]]]:
    """By user, every row of the log, read as plain files."""
    frame = pl.read_parquet(
        [file.path for file in published_files(view_root(log.root, "clicks", 1))], hive_partitioning=False
    ).sort("available_at")
    found: dict[str, list[tuple[int, dict]]] = {}
    for row in frame.iter_rows(named=True):
        found.setdefault(row["user"], []).append((round(row["available_at"].timestamp() * 1e6), row))
    return found
