"""Join 100,000 labels with 20 features of The Complete Journey, in four ways, and compare every value.

    python benchmarks/bench_journey.py [--labels 100_000] [--runs 2] [--feast-python .venv-feast/bin/python]

Baskets of a year: count, sum, mean, min and max of the lines' cents over 1, 7, 14 and 30 days, by household. The log is
that of a backfill. The ways: the join with the log, the computation from archived events, a range join of DuckDB over
the raw lines, and Feast's ``get_historical_features`` over the log's rows with each of its local stores, in an
environment of its own. All values are integers, or quotients of integers, so all answers are equal to the last bit.

Feast reads the log as one Parquet file, written before its time is taken. Its time is that of the call, without
starting Python and without ``apply``.
"""

import argparse
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl

from unskew import Entity, Feature, FeatureStore, FeatureView, Sliding, Stream, agg
from unskew.demo import journey
from unskew.demo.topics import partition_of
from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.plan import Plan
from unskew.pipelines.history.archive import Archive
from unskew.pipelines.history.backfill import Backfill, backfill
from unskew.pipelines.history.rebuild import whole
from unskew.pipelines.state.changelog import Changelogs
from unskew.pipelines.state.seeds import Seeds
from unskew.sinks.tables.kinds import ArchiveTable

HERE = Path(__file__).parent
N_PARTITIONS = 4
INSTANT = pl.Datetime("us", "UTC")
HOUR_US = 3_600_000_000
# Extent and hop, in hours.
WINDOWS = {"1d": (24, 1), "7d": (7 * 24, 1), "14d": (14 * 24, 1), "30d": (30 * 24, 2)}
SCHEMA = {
    "type": "record",
    "name": "Line",
    "fields": [
        {"name": "household_id", "type": "long"},
        {"name": "cents", "type": "long"},
        {"name": "event_time", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    ],
}


def definitions() -> Plan:
    stream = Stream("lines", topic="lines", schema=SCHEMA, event_time="event_time", partitioned_by="household_id")
    features = [
        Feature(f"{name}_{window}", aggregation, Sliding(window, hop=f"{hop}h"))
        for window, (_, hop) in WINDOWS.items()
        for name, aggregation in (
            ("n", agg.count()),
            ("sum", agg.sum("cents")),
            ("mean", agg.mean("cents")),
            ("min", agg.min("cents")),
            ("max", agg.max("cents")),
        )
    ]
    return compile_definitions(
        FeatureView("spending", entity=Entity("household", key="household_id"), stream=stream, features=features)
    )


def write_archive(root: Path) -> pl.DataFrame:
    lines = journey.transactions()
    households = lines["household_id"].unique()
    partitions = pl.DataFrame(
        {
            "household_id": households,
            "_partition": pl.Series([partition_of(key, N_PARTITIONS) for key in households], dtype=pl.Int32),
        }
    )
    events = lines.join(partitions, on="household_id", maintain_order="left").select(
        "household_id",
        (pl.col("sales_value") * 100).round().cast(pl.Int64).alias("cents"),
        pl.col("event_time").cast(INSTANT),
        "_partition",
        _offset=pl.int_range(pl.len(), dtype=pl.Int64).over("_partition"),
        _arrival=pl.col("event_time").cast(INSTANT),
        _event_time=pl.col("event_time").cast(INSTANT),
    )
    at_us = events["event_time"].to_physical()
    for (partition,), mine in events.group_by("_partition"):
        table = ArchiveTable(root, "lines", int(partition), None)
        table.append(mine, first_us=int(at_us[0]), clock_us=int(at_us[-1]))
        table.snapshot()
        table.snapshot()
        table.settle()
    return events


def write_log(plan: Plan, root: Path) -> None:
    (view,) = plan.views.values()
    archive = Archive.open(root / "archive", view.stream)
    changelogs = Changelogs(root / "state" / "changelog")
    backfill(
        Backfill(
            view=view,
            archive=archive,
            end=whole(archive),
            shards=[f"p{n}.0" for n in range(N_PARTITIONS)],
            n_partitions=N_PARTITIONS,
            n_hashes=1,
            log=root / "log",
            seeds=Seeds(root / "state"),
            changelogs=changelogs,
        )
    )
    changelogs.close()


def range_join(events: pl.DataFrame, labels: pl.DataFrame) -> pl.DataFrame:
    """Compute the features by a join of each label with the lines of its longest window, before its instant."""
    connection = duckdb.connect()
    raw = events.select("household_id", "cents", moment=pl.col("event_time").to_physical())
    # A label does not see what happens at its own instant.
    wanted = labels.select("household_id", id=pl.int_range(pl.len()), t=pl.col("event_timestamp").to_physical() - 1)
    connection.register("events", raw.to_arrow())
    connection.register("labels", wanted.to_arrow())
    columns = []
    for window, (hours, hop) in WINDOWS.items():
        hop_us = hop * HOUR_US
        inside = f"FILTER (WHERE moment >= t // {hop_us} * {hop_us} - {hours * HOUR_US})"
        columns += [
            f'count(moment) {inside} AS "n_{window}"',
            f'coalesce(sum(cents) {inside}, 0)::BIGINT AS "sum_{window}"',
            f'(sum(cents) {inside})::DOUBLE / count(moment) {inside} AS "mean_{window}"',
            f'min(cents) {inside} AS "min_{window}"',
            f'max(cents) {inside} AS "max_{window}"',
        ]
    hours, hop = WINDOWS["30d"]
    found = connection.sql(
        f"SELECT {', '.join(columns)} FROM labels LEFT JOIN events ON events.household_id = labels.household_id "
        f"AND moment <= t AND moment >= t // {hop * HOUR_US} * {hop * HOUR_US} - {hours * HOUR_US} "
        "GROUP BY id ORDER BY id"
    ).to_arrow_table()
    return pl.DataFrame(found)


def feast(python: Path, store: str, root: Path, runs: int) -> tuple[pl.DataFrame, list[float]]:
    """Return Feast's answer and the seconds of each run, by its own process."""
    answer = root / f"feast-{store}.parquet"
    command: list[str | Path] = [
        python,
        HERE / "peers_feast.py",
        store,
        root / "rows.parquet",
        root / "labels.parquet",
        answer,
        str(runs),
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root)
    labels = pl.read_parquet(root / "labels.parquet", columns=["label"])
    found = pl.read_parquet(answer)
    if lost := labels.height - found.height:
        print(f"Feast's {store} store drops {lost:,} labels whose household has no row yet\n")
    return labels.join(found, on="label", how="left", maintain_order="left"), [
        float(text) for text in done.stdout.split()[-runs:]
    ]


def timed(work: Callable[[], pl.DataFrame], runs: int) -> tuple[pl.DataFrame, list[float]]:
    seconds: list[float] = []
    answer = pl.DataFrame()
    for _ in range(runs):
        began = time.perf_counter()
        answer = work()
        seconds.append(time.perf_counter() - began)
    return answer, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--labels", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=2)
    parser.add_argument("--feast-python", type=Path, default=Path(".venv-feast/bin/python"))
    arguments = parser.parse_args()
    plan = definitions()
    (view,) = plan.views.values()
    names = [feature.name for feature in view.outputs]
    references = [f"spending:{name}" for name in names]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        events = write_archive(root / "archive")
        write_log(plan, root)
        rows = pl.read_parquet(root / "log" / "spending" / "v1" / "day=*" / "*.parquet", hive_partitioning=False)
        print(
            f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
            f"{events.height:,} lines, {rows.height:,} rows of the log, {arguments.labels:,} labels, {len(names)} "
            "features\n"
        )
        # Feast drops labels of one household and instant but the first, so there is one label for a basket.
        baskets = events.select("household_id", event_timestamp="event_time").unique(maintain_order=True)
        chosen = np.random.default_rng(1).choice(baskets.height, arguments.labels, replace=False)
        labels = baskets[np.sort(chosen)]
        store = FeatureStore(plan, log=root / "log", archive=root / "archive")

        def ours(source: Any) -> pl.DataFrame:
            return store.get_historical_features(labels, references, source=source, outside="null").to_polars()

        ours("events")  # Compiles, if nothing was compiled before.
        found = {
            "the log": timed(lambda: ours("log"), arguments.runs),
            "archived events": timed(lambda: ours("events"), arguments.runs),
            "DuckDB's range join": timed(lambda: range_join(events, labels), arguments.runs),
        }
        if arguments.feast_python.exists():
            # Feast sees what is available at the label's instant itself.
            labels.with_columns(pl.col("event_timestamp") - pl.duration(microseconds=1)).with_row_index(
                "label"
            ).write_parquet(root / "labels.parquet")
            rows.select("household_id", "available_at", *names).write_parquet(root / "rows.parquet")
            for each in ("dask", "duckdb"):
                found[f"Feast, {each}"] = feast(arguments.feast_python.absolute(), each, root, arguments.runs)
        else:
            print(f"{arguments.feast_python} is not there: Feast is left out\n")
        answer, reference_s = found["the log"]
        known = answer["n_30d"].is_not_null()
        print("| 20 features from | seconds | beside the log | values that differ |\n|---|---|---|---|")
        for name, (other, seconds) in found.items():
            differ = sum(_n_differing(answer[column], other[column], known) for column in names)
            listed = ", ".join(f"{one:.2f}" for one in seconds)
            print(f"| {name} | {listed} | {min(seconds) / min(reference_s):.2f} x | {differ:,} |")
        print(f"\n{known.sum():,} labels are within the log")


def _n_differing(one: pl.Series, other: pl.Series, known: pl.Series) -> int:
    """Count labels within the log whose value is another one; Feast has a null where no row of the log is."""
    default = 0 if one.name.startswith(("n_", "sum_")) else None
    mine, theirs = (
        series.cast(one.dtype).fill_null(default) if default is not None else series for series in (one, other)
    )
    return int((mine.ne_missing(theirs.cast(one.dtype)) & known).sum())


if __name__ == "__main__":
    main()
