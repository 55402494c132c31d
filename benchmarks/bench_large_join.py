"""Training sets from logs that are larger than memory: peak memory and time of the point-in-time join.

    python benchmarks/bench_large_join.py [--rows 10_000_000 30_000_000] [--labels 1_000_000] [--key string|int64]

Each log is written once, as compaction leaves it. A process of its own then joins all labels with it through
``FeatureStore``, and reports the most memory that it ever held (``resource.getrusage``), with the interpreter and all
imports. The memory that the answer itself takes is shown beside it.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl
from bench_join import COUNTS, SUMS, the_labels, the_view, write_log

from unskew.features.frames import read_table
from unskew.offline.join import historical_features
from unskew.sinks.tables.layout import view_root


def child(root: Path, labels_path: Path, key: str, *, partitioned: bool) -> None:
    import msgspec

    view = msgspec.structs.replace(the_view(key), partitioned=partitioned)
    labels = pl.read_parquet(labels_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    references = [f"purchases:{name}" for name in (*COUNTS, *SUMS)]
    found = historical_features(root, {view.name: view}, read_table(labels), references, outside="null")
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        json.dumps(
            {"seconds": seconds, "before": before << 10, "peak": peak << 10, "answer": found.columns.estimated_size()}
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000_000, 30_000_000])
    parser.add_argument("--labels", type=int, default=1_000_000)
    parser.add_argument("--entities", type=int, default=250_000)
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--key", choices=["string", "int64"], default="string")
    parser.add_argument("--partitioned", action="store_true", help="A view whose entity partitions the topic.")
    parser.add_argument("--keep", type=Path, help="Folder in which the logs are kept, and found again.")
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        child(*given.child, given.key, partitioned=given.partitioned)
        return
    view = the_view(given.key)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Polars {pl.__version__}, {platform.python_version()}")
    print(
        f"{given.labels:,} labels, {given.entities:,} entities (Zipf 1.1), {given.key} key, {len(COUNTS) + len(SUMS)} features, "
        f"{given.days} days, {given.shards} shards{', partitioned' if given.partitioned else ''}\n"
    )
    print("| rows | files | MB on disk | time | labels/s | peak memory | of it before the join | the answer |")
    print("|---|---|---|---|---|---|---|---|")
    for n_rows in given.rows:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) if given.keep is None else given.keep / f"{n_rows}-{given.key}-{given.days}"
            root = folder / "log"
            if not root.exists():
                write_log(root, view, n_rows, given.entities, given.days, given.shards)
            labels_path = folder / "labels.parquet"
            the_labels(view, given.labels, given.entities, given.days).write_parquet(labels_path)
            files = [file.stat().st_size for file in view_root(root, view.name, view.version).glob("day=*/*.parquet")]
            options = ["--key", given.key, *(["--partitioned"] if given.partitioned else [])]
            command = [sys.executable, __file__, *options, "--child", str(root), str(labels_path)]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        print(
            f"| {n_rows:,} | {len(files):,} | {sum(files) / 1e6:,.0f} | {found['seconds']:.1f} s "
            f"| {given.labels / found['seconds']:,.0f} | {found['peak'] / 1e9:.2f} GB | {found['before'] / 1e9:.2f} GB "
            f"| {found['answer'] / 1e9:.2f} GB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
