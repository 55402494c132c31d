"""Compare ratios of speed with those recorded: a short check before a release.

    python benchmarks/check.py [--record] [--slack 1.5]

Each ratio is our time beside that of something else in the same run, so that it holds on another machine too: what an
aggregation costs beside ``count`` (processor time, 1,000 entities, ``bench_aggregations.py``), and a point-in-time join
beside Polars and DuckDB (``bench_join.py``, 1,000,000 rows and 100,000 labels). Both are taken three times, and the
least of each counts, because other work on the machine only adds. A ratio that is more than ``--slack`` times the one
in ``ratios.json`` fails. ``--record`` writes what was measured there instead.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import bench_aggregations
import bench_join

RATIOS = Path(__file__).with_name("ratios.json")
AGGREGATIONS = (
    "var", "min", "first", "first_time", "last_n, 10", "count_distinct", "approx_count_distinct", "quantile, 0.9 to 1 %",
    "count by kind", "top_k of kinds, 5", "decayed_sum, 10 s",
)  # fmt: skip
TIMES = 3


def of_aggregations() -> dict[str, float]:
    """Return nanoseconds an event of each aggregation, divided by those of ``count``."""
    aggregations = bench_aggregations.all_of_them()
    events = bench_aggregations.the_events(200_000, 1_000)
    seconds: dict[str, list[float]] = {}
    for name in (bench_aggregations.BASE, *AGGREGATIONS):
        bench_aggregations.measure(aggregations[name], events.head(2_000), 1_000)
    for _ in range(TIMES):
        for name in (bench_aggregations.BASE, *AGGREGATIONS):
            cost = bench_aggregations.measure(aggregations[name], events, 50_000)
            seconds.setdefault(name, []).append(cost.seconds / cost.n_events)
    base = min(seconds[bench_aggregations.BASE])
    return {f"{name}, beside count": min(seconds[name]) / base for name in AGGREGATIONS}


def of_joins() -> dict[str, float]:
    """Return seconds of our join, divided by those of Polars and of DuckDB."""
    view, n_days = bench_join.the_view("string"), 30
    names = [*bench_join.COUNTS, *bench_join.SUMS]
    labels = bench_join.the_labels(view, 100_000, 100_000, n_days)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        bench_join.write_log(root, view, 1_000_000, 100_000, n_days, 4)
        files = sorted(root.rglob("day=*/*.parquet"))
        found = bench_join.timed(
            {
                "unskew": lambda: bench_join.by_unskew(root, view, labels, [f"purchases:{name}" for name in names]),
                "Polars": lambda: bench_join.by_polars(files, labels, names),
                "DuckDB": lambda: bench_join.by_duckdb(files, labels, names),
            },
            TIMES,
        )
    least = {name: min(seconds) for name, (_, seconds) in found.items()}
    return {f"join, beside {name}": least["unskew"] / least[name] for name in ("Polars", "DuckDB")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the ratios instead of comparing them")
    parser.add_argument("--slack", type=float, default=1.5, help="how many times a recorded ratio is still good")
    given = parser.parse_args()
    measured = of_aggregations() | of_joins()
    if given.record:
        RATIOS.write_text(json.dumps({name: round(ratio, 2) for name, ratio in measured.items()}, indent=2) + "\n")
    recorded = json.loads(RATIOS.read_text())
    print("| what | ratio | recorded | |\n|---|---|---|---|")
    slow = [name for name, ratio in measured.items() if ratio > given.slack * recorded.get(name, float("inf"))]
    for name, ratio in measured.items():
        print(f"| {name} | {ratio:.2f} | {recorded.get(name, 'not yet')} | {'slower' if name in slow else ''} |")
    if unknown := sorted(recorded.keys() - measured.keys()):
        sys.exit(f"not measured any more: {', '.join(unknown)}; run with --record")
    if slow:
        sys.exit(f"more than {given.slack:g} times what was recorded: {', '.join(slow)}")


if __name__ == "__main__":
    main()
