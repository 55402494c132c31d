"""Measure the rebuild from an archive: in memory, as a backfill, and for labels beside a range join of DuckDB.

    python benchmarks/bench_rebuild.py [--events 2_000_000] [--entities 100_000] [--labels 20_000] [--runs 3]
    python benchmarks/bench_rebuild.py --divided [--events 1_000_000] [--runs 3]

Nine features over three windows (5 min, 1 h, 30 d); keys by Zipf's law (s = 1.1); four partitions, an event's arrival
is its event time, and every tile leaves its window. One process and Polars with one thread, so events per second are
those of a core; the first, small run, which may compile, is not timed. Each figure is the least of several runs, beside
that of the first, which takes its memory from the system. The range join has one thread as well and
computes the same nine features for the same labels; both answers are compared, floats to 1e-9 because DuckDB's sums are
rounded.

With --divided, the view has eight shards, and the backfill is divided among processes by the shards' events, as
``unskew backfill --workers`` divides it, and by their names, as ``--cluster`` does. Each share is computed by itself,
one after the other, so what counts is the processor time of the longest share: medians of several runs in turns. Beside
it, the parts that grow with the number of processes: what each process does for all events (read, evaluate, split;
count the archive's events, and compute 1,000 entities again, for the seam check), and what an exchange over Bytewax
would do in addition (pickle a slice and unpickle it).
"""

import os

os.environ["POLARS_MAX_THREADS"] = "1"  # noqa: TID251 - read by Polars when it is imported

import argparse
import itertools
import pickle
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars as pl
from workload import SCHEMA, zipf

from unskew import Entity, Feature, FeatureStore, FeatureView, Sliding, Stream, agg
from unskew.features import shard_state
from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.evaluate import Evaluator
from unskew.features.events import Events
from unskew.features.plan import Plan, ViewPlan
from unskew.pipelines.history.archive import Archive, columns_of
from unskew.pipelines.history.backfill import Backfill, backfill
from unskew.pipelines.history.dealing import dealt_by_events
from unskew.pipelines.history.rebuild import pieces, rebuild, whole
from unskew.pipelines.history.seam import SAMPLED, Seam
from unskew.pipelines.routing import slices
from unskew.pipelines.state.changelog import Changelogs
from unskew.pipelines.state.ordering import Slice
from unskew.pipelines.state.seeds import Seeds
from unskew.sinks.tables.kinds import ArchiveTable

START_US = 1_483_228_800_000_000
INSTANT = pl.Datetime("us", "UTC")
WINDOWS = {"5min": ("5min", 1), "1h": ("1h", 10), "30d": ("30d", 7200)}
N_PARTITIONS = 4
N_SHARDS = 8


def definitions() -> Plan:
    stream = Stream("events", topic="events", schema=SCHEMA, event_time="at")
    features = [
        Feature(f"{name}_{window}", aggregation, Sliding(window))
        for window in WINDOWS
        for name, aggregation in (("n", agg.count()), ("sum", agg.sum("amount")), ("mean", agg.mean("amount")))
    ]
    return compile_definitions(
        FeatureView("by_user", entity=Entity("user", key="user"), stream=stream, features=features)
    )


def write_archive(root: Path, n_events: int, n_entities: int, n_days: int) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    at = START_US + np.sort(rng.integers(0, n_days * 86_400_000_000, n_events))
    events = pl.DataFrame(
        {
            "user": zipf(n_events, n_entities, rng).astype(np.int64),
            "amount": rng.random(n_events) * 100,
            "at": pl.Series(at).cast(INSTANT),
            "_partition": pl.Series(rng.integers(0, N_PARTITIONS, n_events), dtype=pl.Int32),
        }
    )
    events = events.with_columns(
        _offset=pl.int_range(pl.len(), dtype=pl.Int64).over("_partition"),
        _arrival=pl.col("at"),
        _event_time=pl.col("at"),
    )
    for (partition,), mine in events.group_by("_partition"):
        table = ArchiveTable(root, "events", int(partition), None)
        table.append(mine, first_us=START_US, clock_us=int(at[-1]))
        table.snapshot()
        table.snapshot()
        table.settle()
    return events


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return the result, and the seconds of processor and of wall."""
    processor, wall = time.process_time(), time.perf_counter()
    result = work()
    return result, time.process_time() - processor, time.perf_counter() - wall


def least(work: Callable[[], Any], runs: int) -> tuple[Any, float, float, float]:
    """Return the result, the seconds of processor of the best and of the first run, and the least seconds of wall."""
    result, first, wall = timed(work)
    processor = first
    for _ in range(runs - 1):
        _, seconds, waited = timed(work)
        processor, wall = min(processor, seconds), min(wall, waited)
    return result, processor, first, wall


def range_join(events: pl.DataFrame, labels: pl.DataFrame) -> pl.DataFrame:
    """Compute the features by a join of each label with the events of its longest window."""
    connection = duckdb.connect()
    connection.execute("SET threads = 1")
    raw = events.select("user", "amount", moment=pl.col("at").to_physical())
    wanted = labels.select("user", id=pl.int_range(pl.len()), t=pl.col("event_timestamp").to_physical())
    connection.register("events", raw.to_arrow())
    connection.register("labels", wanted.to_arrow())
    columns = []
    for window, (extent, hop_s) in WINDOWS.items():
        hop_us = hop_s * 1_000_000
        inside = f"FILTER (WHERE moment >= t // {hop_us} * {hop_us} - {_us(extent)})"
        columns += [
            f'count(moment) {inside} AS "n_{window}"',
            f'coalesce(sum(amount) {inside}, 0) AS "sum_{window}"',
            f'avg(amount) {inside} AS "mean_{window}"',
        ]
    longest = _us("30d")
    found = connection.sql(
        f"SELECT {', '.join(columns)} FROM labels LEFT JOIN events ON events.user = labels.user AND moment <= t "
        f"AND moment >= t // 7200000000 * 7200000000 - {longest} GROUP BY id ORDER BY id"
    ).to_arrow_table()
    return pl.DataFrame(found)


def _us(extent: str) -> int:
    return {"5min": 300, "1h": 3600, "30d": 30 * 86400}[extent] * 1_000_000


def written(archive: Archive, view: ViewPlan, root: Path, shards: list[str], n_shards: int) -> Seam:
    """Backfill some shards of a view into folders of their own."""
    changelogs = Changelogs(root / "state" / "changelog")
    job = Backfill(
        view=view, archive=archive, end=whole(archive), shards=shards, n_partitions=N_PARTITIONS, n_hashes=n_shards,
        log=root / "log", seeds=Seeds(root / "state"), changelogs=changelogs,
    )  # fmt: skip
    try:
        return backfill(job)
    finally:
        changelogs.close()


def divided(archive: Archive, view: ViewPlan, root: Path, n_events: int, runs: int) -> None:
    evaluate = Evaluator(view)

    def split() -> list[Slice]:
        """All that each process does for every event."""
        found: list[tuple[str, Slice]] = []
        for piece in pieces(archive, {}, whole(archive), columns_of(view)):
            events = Events(evaluate(piece.events).events) if piece.events.height else None
            place: dict[str, Any] = {
                "partition": piece.partition,
                "n_partitions": N_PARTITIONS,
                "clock_us": piece.clock_us,
            }
            found += slices(view, events, n_hashes=N_SHARDS, first_us=piece.first_us, ended=piece.ended, **place)
        return [one for _, one in found]

    items, split_s, _ = timed(split)
    _, exchange_s, _ = timed(lambda: [pickle.loads(pickle.dumps(one)) for one in items])
    print(f"| a million events | processor, s |\n|---|---|\n| read, evaluate, split | {split_s * 1e6 / n_events:.2f} |")
    keys = (
        pl.concat([one.events.frame["key"] for one in items if one.shard == "h0" and one.events is not None])
        .unique()
        .sort()
    )
    keys = keys.gather_every(max(1, len(keys) // SAMPLED))
    _, count_s, _ = timed(lambda: archive.count({}, whole(archive)))
    _, again_s, _ = timed(lambda: rebuild([view], archive, keys={view.id: keys}, n_hashes=N_SHARDS))
    print(f"| count its events | {count_s * 1e6 / n_events:.2f} |")
    print(f"| {len(keys):,} entities of one shard again | {again_s * 1e6 / n_events:.2f} |")
    print(f"| pickle and unpickle the slices | {exchange_s * 1e6 / n_events:.2f} |")

    def share(mine: list[str]) -> float:
        seconds = timed(lambda: written(archive, view, root / "share", mine, N_SHARDS))[1]
        shutil.rmtree(root / "share")
        return seconds

    names = [f"h{shard}" for shard in range(N_SHARDS)]
    deals = [("", [names])]
    for n_processes in (2, 4, 8):
        by_events = dealt_by_events(view, archive, whole(archive), names, N_SHARDS, n_processes)
        deals += [("events", by_events), ("name", [names[number::n_processes] for number in range(n_processes)])]
    found: list[list[list[float]]] = [[] for _ in deals]
    for _ in range(runs):
        for (_, shares), spent in zip(deals, found, strict=True):
            spent.append([share(mine) for mine in shares])
    print("\n| processes | dealt by | longest share, s | all shares, s | times one process |\n|---|---|---|---|---|")
    for (way, shares), spent in zip(deals, found, strict=True):
        longest, total = (float(np.median([of(one) for one in spent])) for of in (max, sum))
        times = float(np.median([alone / max(one) for (alone,), one in zip(found[0], spent, strict=True)]))
        print(f"| {len(shares)} | {way} | {longest:.1f} | {total:.1f} | {times:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--entities", type=int, default=100_000)
    parser.add_argument("--labels", type=int, default=20_000)
    parser.add_argument("--days", type=int, default=60)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--divided", action="store_true")
    arguments = parser.parse_args()
    plan = definitions()
    (view,) = plan.views.values()
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {arguments}\n")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_archive(root / "small", 1_000, 100, 1)
        rebuild([view], Archive.open(root / "small", view.stream))
        events = write_archive(root / "archive", arguments.events, arguments.entities, arguments.days)
        archive = Archive.open(root / "archive", view.stream)
        if arguments.divided:
            divided(archive, view, root, arguments.events, arguments.runs)
            return
        print("| work | events/s of a core | first run | wall, s | rows of the log |\n|---|---|---|---|---|")
        in_kernel = 0.0
        run_kernel = shard_state.run

        def watched(*given: Any) -> Any:
            nonlocal in_kernel
            done, seconds, _ = timed(lambda: run_kernel(*given))
            in_kernel += seconds
            return done

        shard_state.run = watched
        rebuilt, processor, first, wall = least(lambda: rebuild([view], archive)[view.id], arguments.runs)
        in_kernel = 0.0
        _, all_of_it, _ = timed(lambda: rebuild([view], archive))
        shard_state.run = run_kernel
        share = f"In one more rebuild, the kernel took {in_kernel / all_of_it:.0%} of the processor's time."
        n_rows = rebuilt.rows.height
        del rebuilt
        rates = [f"{arguments.events / seconds:,.0f}" for seconds in (processor, first)]
        print(f"| rebuild in memory | {' | '.join(rates)} | {wall:.1f} | {n_rows:,} |")
        numbers = itertools.count()

        def anew() -> Seam:
            to = root / str(next(numbers))
            seam = written(archive, view, to, ["h0"], 1)
            shutil.rmtree(to)
            return seam

        seam, processor, first, wall = least(anew, arguments.runs)
        assert seam.rows == n_rows
        rates = [f"{arguments.events / seconds:,.0f}" for seconds in (processor, first)]
        print(f"| backfill, seam check included | {' | '.join(rates)} | {wall:.1f} | {n_rows:,} |\n\n{share}")
        rng = np.random.default_rng(1)
        chosen = events.filter(pl.col("at") > pl.lit(START_US + 31 * 86_400_000_000).cast(INSTANT))
        chosen = chosen[np.sort(rng.choice(chosen.height, arguments.labels, replace=False))]
        labels = chosen.select("user", event_timestamp=pl.col("at") + pl.duration(microseconds=1))
        store = FeatureStore(plan, archive=root / "archive")
        references = [f"by_user:{feature.name}" for feature in view.outputs]

        def ours() -> pl.DataFrame:
            return store.get_historical_features(labels, references, source="events").to_polars()

        answer, processor, _, wall = least(ours, arguments.runs)
        print(f"\n| {arguments.labels:,} labels | processor, s | wall, s |\n|---|---|---|")
        print(f"| source='events' | {processor:.1f} | {wall:.1f} |")
        theirs, processor, _, wall = least(lambda: range_join(events, labels), arguments.runs)
        print(f"| DuckDB's range join | {processor:.1f} | {wall:.1f} |")
        for name in theirs.columns:
            one, other = answer[name], theirs[name]
            if name.startswith("n_"):
                assert one.equals(other.cast(one.dtype), check_names=False), name
            else:
                assert one.null_count() == other.null_count()
                assert ((one - other).abs() <= 1e-9 * (1 + other.abs())).all(), name


if __name__ == "__main__":
    main()
