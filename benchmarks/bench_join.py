"""Compare point-in-time joins of labels with a log: ours, ``join_asof`` of Polars, and ``ASOF`` of DuckDB.

    python benchmarks/bench_join.py [--rows 10_000_000] [--labels 1_000_000] [--key string|int64] [--repeats 3]

All three read the same Parquet files in our layout and return one row per label, in the labels' order; their values are
compared one by one. Entities of rows and labels follow a Zipf distribution (s = 1.1). Our first run, which may compile,
is not timed, and neither are the first runs of the others.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import duckdb
import numpy as np
import polars as pl

from unskew.features.frames import read_table
from unskew.features.view import View, ViewEntity, ViewFeature, ViewWindow
from unskew.offline.join import historical_features
from unskew.sinks.tables.layout import coverage_file, day_directory, file_name, view_root
from unskew.sinks.tables.parquet import encode

DAY_US = 86_400_000_000
START_US = 1_483_228_800_000_000
INSTANT = pl.Datetime("us", "UTC")
KeyKind = Literal["int64", "string"]
COUNTS = [f"count_{n}" for n in range(4)]
SUMS = [f"sum_{n}" for n in range(5)]


def the_view(kind: KeyKind) -> View:
    common: dict[str, Any] = {
        "value": None,
        "filter": None,
        "default": None,
        "description": "",
        "owner": "",
        "window": 0,
    }
    return View(
        name="purchases",
        version=1,
        entity=ViewEntity(name="user", keys=("user_id",), types=(kind,)),
        stream="events",
        topic="events",
        partitioned=False,
        where=None,
        windows=(ViewWindow(text="30d", kind="sliding", hop_us=7_200_000_000, extent_us=30 * DAY_US, span=360),),
        features=(
            *(ViewFeature(name=name, type="int64", function="count", empty=0, **common) for name in COUNTS),
            *(ViewFeature(name=name, type="float64", function="sum", empty=0.0, **common) for name in SUMS),
        ),
        state_fingerprint="bench",
        presentation_fingerprint="bench",
        description="",
        owner="",
    )


def write_log(
    root: Path, view: View, n_rows: int, n_entities: int, n_days: int, n_shards: int, *, n_counts: int = 1_000
) -> int:
    """Write a log as compaction leaves it: a file per day and shard, rows by (instant, key); return the file count.

    ``n_counts``: the number of different counts; few of them compress well.
    """
    rng = np.random.default_rng(0)
    table = view_root(root, view.name, view.version)
    sequence = [0] * n_shards
    n_files = 0
    for day in range(n_days):
        begin_us = START_US + day * DAY_US
        n = n_rows // n_days
        entity = zipf(rng, n, n_entities)
        # Instants of one shard and entity must differ, because an entity never has two rows at one instant.
        instants = begin_us + np.sort(rng.choice(DAY_US // 1_000, n, replace=False)) * 1_000
        frame = pl.DataFrame(
            {
                "user_id": keys(entity, view.entity.types[0]),
                **{name: rng.integers(0, n_counts, n) for name in COUNTS},
                **{name: rng.random(n) * 1_000 for name in SUMS},
                "available_at": pl.Series(instants).cast(INSTANT),
                "event_time": pl.Series(instants - 5_000).cast(INSTANT),
                "partition": pl.Series(np.zeros(n, np.int32)),
                "offset": pl.Series(np.arange(day * n, (day + 1) * n)),
                "cause": pl.Series(["event"]).new_from_index(0, n),
                "written_at": pl.Series(instants + 250_000).cast(INSTANT),
            }
        )
        folder = table / day_directory(frame["available_at"][0].date())
        folder.mkdir(parents=True)
        for shard in range(n_shards):
            mine = frame.filter(pl.Series(entity % n_shards == shard))
            first = sequence[shard]
            sequence[shard] = first + len(mine)
            mine = mine.with_columns(
                pl.lit(f"h{shard}").alias("shard"), pl.int_range(first, first + pl.len(), dtype=pl.Int64).alias("seq")
            )
            path = folder / file_name(f"h{shard}", first, sequence[shard] - 1)
            path.write_bytes(encode(mine, {"unskew.state_fingerprint": view.state_fingerprint}))
            n_files += 1
    for shard in range(n_shards):
        path = coverage_file(table, f"h{shard}")
        path.parent.mkdir(exist_ok=True)
        covered = {"since": START_US, "complete_to": START_US + n_days * DAY_US, "seq": sequence[shard]}
        path.write_text(json.dumps(covered))
    return n_files


def zipf(rng: np.random.Generator, n: int, n_entities: int) -> np.ndarray:
    weights = 1 / np.arange(1, n_entities + 1) ** 1.1
    return rng.choice(n_entities, n, p=weights / weights.sum())


def keys(entity: np.ndarray, kind: KeyKind) -> pl.Series:
    numbers = pl.Series("user_id", entity.astype(np.int64))
    return numbers if kind == "int64" else ("user-" + numbers.cast(pl.String)).alias("user_id")


def the_labels(view: View, n: int, n_entities: int, n_days: int) -> pl.DataFrame:
    rng = np.random.default_rng(1)
    instants = START_US + rng.integers(0, n_days * DAY_US, n)
    return pl.DataFrame(
        {
            "user_id": keys(zipf(rng, n, n_entities), view.entity.types[0]),
            "event_timestamp": pl.Series(instants).cast(INSTANT),
        }
    )


def by_unskew(root: Path, view: View, labels: pl.DataFrame, references: list[str]) -> pl.DataFrame:
    found = historical_features(root, {view.name: view}, read_table(labels), references, inclusive=True, outside="null")
    return labels.hstack(found.columns)


def by_polars(files: list[Path], labels: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    log = pl.scan_parquet(files, hive_partitioning=False).select("user_id", "available_at", *names).sort("available_at")
    return (
        labels.lazy()
        .with_row_index("_row")
        .sort("event_timestamp")
        .join_asof(log, left_on="event_timestamp", right_on="available_at", by="user_id", check_sortedness=False)
        .sort("_row")
        .drop("_row", "available_at")
        .collect()
    )


def by_duckdb(files: list[Path], labels: pl.DataFrame, names: list[str]) -> pl.DataFrame:
    columns = ", ".join(names)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("labels", labels.with_row_index("_row").to_arrow())
        query = f"""
            SELECT l.user_id, l.event_timestamp, {columns}
            FROM labels l ASOF LEFT JOIN read_parquet({[str(file) for file in files]!r}, hive_partitioning = false) r
            ON l.user_id = r.user_id AND l.event_timestamp >= r.available_at
            ORDER BY l._row
        """
        return connection.sql(query).pl()


Task = Callable[[], pl.DataFrame]


def timed(tasks: dict[str, Task], repeats: int) -> dict[str, tuple[pl.DataFrame, list[float]]]:
    """Return answers and seconds of tasks that run in turns, so that a busy moment of the machine affects them all."""
    results: dict[str, tuple[pl.DataFrame, list[float]]] = {name: (task(), []) for name, task in tasks.items()}
    for _ in range(repeats):
        for name, task in tasks.items():
            gc.collect()
            start = time.perf_counter()
            task()
            results[name][1].append(time.perf_counter() - start)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--labels", type=int, default=1_000_000)
    parser.add_argument("--entities", type=int, default=100_000)
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--key", choices=["string", "int64"], default="string")
    given = parser.parse_args()
    view = the_view(given.key)
    names = [*COUNTS, *SUMS]
    labels = the_labels(view, given.labels, given.entities, given.days)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        n_files = write_log(root, view, given.rows, given.entities, given.days, given.shards)
        files = sorted(view_root(root, view.name, view.version).glob("day=*/*.parquet"))
        size = sum(file.stat().st_size for file in files)
        references = [f"purchases:{name}" for name in names]
        tasks: dict[str, Task] = {
            "unskew": lambda: by_unskew(root, view, labels, references),
            "Polars join_asof": lambda: by_polars(files, labels, names),
            "DuckDB ASOF": lambda: by_duckdb(files, labels, names),
        }
        results = timed(tasks, given.repeats)
    # The peers have no values for empty windows: a null of theirs corresponds to a count and a sum of 0.
    ours = results["unskew"][0]
    for name, (answer, _) in results.items():
        same = answer.select(ours.columns).with_columns(pl.col(names).fill_null(0)).cast(ours.schema).equals(ours)
        if not same:
            raise SystemExit(f"{name} gives another answer")
    best = min(results["unskew"][1])
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Polars {pl.__version__}, DuckDB {duckdb.__version__}, {platform.python_version()}"
    )
    print(
        f"{given.labels:,} labels on {given.rows:,} rows ({n_files} files, {size / 1e6:,.0f} MB), {given.entities:,} entities "
        f"(Zipf 1.1), {given.key} key, {len(names)} features; results identical\n"
    )
    print("| join | best | median | labels/s | beside unskew |")
    print("|---|---|---|---|---|")
    for name, (_, seconds) in results.items():
        fastest = min(seconds)
        print(
            f"| {name} | {fastest:.2f} s | {statistics.median(seconds):.2f} s | {given.labels / fastest:,.0f} | {fastest / best:.2f} x |"
        )


if __name__ == "__main__":
    main()
