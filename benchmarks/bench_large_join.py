"""Training sets from logs that are larger than memory: peak memory and time of the point-in-time join.

    python benchmarks/bench_large_join.py [--rows 10_000_000 30_000_000] [--labels 1_000_000] [--key string|int64]
        [--days 90] [--partitioned] [--wide]

Each log is written as compaction leaves it, by a process of its own. Another process then joins all labels with it,
makes the manifest, and reports the most memory that it ever held (``resource.getrusage``), with the interpreter, all
imports and the labels.
``--wide``: 60 features, all of them counts of 0 or 1, which take much more memory than room on disk. Few ``--days``
make large files, and with ``--partitioned`` (a view whose entity partitions its topic) large days.
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

import bench_join
import msgspec
import polars as pl
from bench_join import COUNTS, SUMS, the_labels, write_log

from unskew.features.frames import read_table
from unskew.features.view import View
from unskew.offline.join import historical_features
from unskew.offline.manifest import JoinRule
from unskew.offline.training_set import HistoricalFeatures, Origin
from unskew.sinks.tables.layout import view_root


def the_view(given: argparse.Namespace) -> View:
    if given.wide:
        COUNTS[:], SUMS[:] = [f"count_{n}" for n in range(60)], []
    return msgspec.structs.replace(bench_join.the_view(given.key), partitioned=given.partitioned)


def write(given: argparse.Namespace, folder: Path) -> None:
    view = the_view(given)
    (n_rows,) = given.rows
    n_counts = 2 if given.wide else 1_000
    write_log(folder / "log", view, n_rows, given.entities, given.days, given.shards, n_counts=n_counts)
    the_labels(view, given.labels, given.entities, given.days).write_parquet(folder / "labels.parquet")


def join(given: argparse.Namespace, folder: Path) -> None:
    view = the_view(given)
    labels = pl.read_parquet(folder / "labels.parquet")
    references = [f"purchases:{name}" for name in (*COUNTS, *SUMS)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start, processor = time.perf_counter(), time.process_time()
    given_labels = read_table(labels)
    found = historical_features(
        folder / "log", {view.name: view}, given_labels, references, outside="null", full_feature_names=True
    )
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    rule = JoinRule(
        timestamp="event_timestamp",
        inclusive=False,
        outside="null",
        max_age_us=None,
        full_feature_names=True,
        with_status=False,
    )
    start = time.process_time()
    manifest = HistoricalFeatures(given_labels, found.columns, found, Origin("log", rule, {}, {})).manifest
    measured = {
        "seconds": seconds,
        "processor": processor,
        "manifest": time.process_time() - start,
        "before": before << 10,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
        "answer": found.columns.estimated_size(),
    }
    assert manifest.output.rows == given_labels.n_rows
    print(json.dumps(measured))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000_000, 30_000_000])
    parser.add_argument("--labels", type=int, default=1_000_000)
    parser.add_argument("--entities", type=int, default=250_000)
    parser.add_argument("--days", type=int, default=90)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--key", choices=["string", "int64"], default="string")
    parser.add_argument("--partitioned", action="store_true", help="A view whose entity partitions the topic.")
    parser.add_argument("--wide", action="store_true", help="60 features that compress well.")
    parser.add_argument("--keep", type=Path, help="Folder in which the logs are kept, and found again.")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--join", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    for step, work in ((given.write, write), (given.join, join)):
        if step is not None:
            work(given, step)
            return
    the_view(given)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Polars {pl.__version__}, {platform.python_version()}")
    print(
        f"{given.labels:,} labels, {given.entities:,} entities (Zipf 1.1), {given.key} key, {len(COUNTS) + len(SUMS)} features, "
        f"{given.days} days, {given.shards} shards{', partitioned' if given.partitioned else ''}\n"
    )
    print(
        "| rows | files | MB on disk | join | its processor | manifest | peak memory | before the join | the answer |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for n_rows in given.rows:
        names = ("labels", "entities", "days", "shards", "key")
        options = [text for name in names for text in (f"--{name}", str(vars(given)[name]))]
        options += [f"--{name}" for name in ("partitioned", "wide") if vars(given)[name]]
        command = [sys.executable, __file__, *options, "--rows", str(n_rows)]
        with tempfile.TemporaryDirectory() as temporary:
            name = f"{n_rows}-{given.key}-{given.days}{'-wide' if given.wide else ''}"
            folder = Path(temporary) if given.keep is None else given.keep / name
            if not (folder / "labels.parquet").exists():
                subprocess.run([*command, "--write", str(folder)], check=True)
            files = [file.stat().st_size for file in view_root(folder / "log", "purchases", 1).glob("day=*/*.parquet")]
            ended = subprocess.run([*command, "--join", str(folder)], check=True, stdout=subprocess.PIPE)
            found = json.loads(ended.stdout)
        print(
            f"| {n_rows:,} | {len(files):,} | {sum(files) / 1e6:,.0f} | {found['seconds']:.1f} s "
            f"| {found['processor']:.1f} s | {found['manifest']:.1f} s | {found['peak'] / 1e9:.2f} GB | {found['before'] / 1e9:.2f} GB "
            f"| {found['answer'] / 1e9:.2f} GB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
