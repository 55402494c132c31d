"""Measure compaction: the files, bytes and point-in-time join time of a log of many small files, before and after.

    python benchmarks/bench_compaction.py [--epochs 2_000] [--writers 4] [--rows 100] [--labels 100_000] [--repeats 3]

Every writer publishes one file per epoch with ``--rows`` rows, as the pipeline does with an epoch of 5 s. Values are
counts and amounts of money, as a window would have them; entities follow a Zipf distribution (s = 1.1). The command
runs in its own process with its default limits; its seconds and its peak memory include the start of Python. The joins
before and after must give the same rows, or the benchmark fails; first runs, which may compile, are not timed.
"""

import argparse
import datetime as dt
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from bench_join import COUNTS, INSTANT, START_US, SUMS, keys, the_labels, the_view, timed, zipf

from unskew.features.frames import read_table
from unskew.features.view import View
from unskew.offline.join import historical_features
from unskew.sinks.tables.layout import (
    LAYOUT,
    coverage_file,
    day_directory,
    file_name,
    published_files,
    superseded_files,
    view_root,
)
from unskew.sinks.tables.parquet import encode

EPOCH_US = 5_000_000
# Only this file of Linux shows a process's own peak memory: the figure of getrusage starts at its parent's peak.
COMPACT = """
import sys
from pathlib import Path
from unskew.cli import main
main(sys.argv[1:], standalone_mode=False)
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""


def write_log(root: Path, view: View, n_epochs: int, n_writers: int, n_rows: int, n_entities: int) -> None:
    """Write a log as a pipeline leaves it without compaction."""
    rng = np.random.default_rng(0)
    table = view_root(root, view.name, view.version)
    metadata = {"unskew.layout": LAYOUT, "unskew.state_fingerprint": view.state_fingerprint}
    for writer in range(n_writers):
        n = n_epochs * n_rows
        entity = zipf(rng, n, n_entities) * n_writers + writer
        # The instants of an epoch are distinct, because an entity never has two rows at one instant.
        within = np.sort(rng.permuted(np.tile(np.arange(EPOCH_US // 1_000), (n_epochs, 1)), axis=1)[:, :n_rows], axis=1)
        instants = START_US + (np.arange(n_epochs)[:, None] * EPOCH_US + within * 1_000).ravel()
        prices = np.round(rng.gamma(2.0, 10.0, (len(SUMS), n)), 2)
        frame = pl.DataFrame(
            {
                "user_id": keys(entity, view.entity.types[0]),
                **{name: rng.geometric(0.1 / (place + 1), n) for place, name in enumerate(COUNTS)},
                **dict(zip(SUMS, prices, strict=True)),
                "available_at": pl.Series(instants).cast(INSTANT),
                "event_time": pl.Series(instants - rng.integers(0, 5_000, n) * 1_000).cast(INSTANT),
                "partition": pl.Series(np.full(n, writer, np.int32)),
                "offset": pl.Series(np.arange(n)),
                "cause": pl.Series(["event"]).new_from_index(0, n),
                "written_at": pl.Series(instants // EPOCH_US * EPOCH_US + EPOCH_US).cast(INSTANT),
                "shard": pl.Series([f"h{writer}"]).new_from_index(0, n),
                "seq": pl.int_range(n, eager=True),
            }
        )
        for epoch in range(n_epochs):
            mine = frame[epoch * n_rows : (epoch + 1) * n_rows]
            folder = table / day_directory(dt.datetime.fromtimestamp(instants[epoch * n_rows] / 1e6, dt.UTC).date())
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / file_name(f"h{writer}", epoch * n_rows, (epoch + 1) * n_rows - 1)
            path.write_bytes(encode(mine, metadata))
        path = coverage_file(table, f"h{writer}")
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"since": START_US, "complete_to": int(instants[-1]), "seq": n}))


def compact(root: Path) -> tuple[float, float]:
    """Run the command so that it also deletes the files that it merged; return its seconds and peak MiB."""
    began = time.perf_counter()
    command = [sys.executable, "-c", COMPACT, "compact", "--log", str(root), "--grace", "0s"]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return time.perf_counter() - began, int(output.splitlines()[-1].split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2_000)
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=100, help="rows per writer and epoch")
    parser.add_argument("--entities", type=int, default=10_000, help="entities per writer")
    parser.add_argument("--labels", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    view = the_view("string")
    references = [f"purchases:{name}" for name in (*COUNTS, *SUMS)]
    span_us = given.epochs * EPOCH_US
    labels = the_labels(view, given.labels, given.entities * given.writers, 1)
    inside = START_US + (labels["event_timestamp"].to_physical() - START_US) % (span_us - EPOCH_US)
    labels = labels.with_columns(event_timestamp=inside.cast(INSTANT))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_log(root, view, given.epochs, given.writers, given.rows, given.entities)
        table = view_root(root, view.name, view.version)

        def measured() -> tuple[int, int, pl.DataFrame, float]:
            files = published_files(table)
            found, seconds = timed(
                {
                    "join": lambda: historical_features(
                        root, {"purchases": view}, read_table(labels), references, inclusive=True
                    )
                },
                given.repeats,
            )["join"]
            return len(files), sum(file.path.stat().st_size for file in files), found, min(seconds)

        before = measured()
        seconds, peak_mib = compact(root)
        if superseded_files(table):
            raise SystemExit("files that were merged are still there")
        after = measured()
    if not after[2].equals(before[2]):
        raise SystemExit("the join gives another answer after compaction")
    n_rows = given.epochs * given.writers * given.rows
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Polars {pl.__version__}, PyArrow {pa.__version__}, {platform.python_version()}"
    )
    print(
        f"{given.epochs:,} epochs x {given.writers} writers, {given.rows} rows each ({n_rows:,} rows); {given.labels:,} labels, "
        f"{len(references)} features; joins identical; compaction took {seconds:.1f} s ({n_rows / seconds:,.0f} rows/s) and "
        f"{peak_mib:,.0f} MiB at its peak\n"
    )
    print("| log | files | bytes | of the first | join, best | of the first |")
    print("|---|---|---|---|---|---|")
    for name, (n_files, n_bytes, _, best) in (("as written", before), ("compacted", after)):
        print(
            f"| {name} | {n_files:,} | {n_bytes / 1e6:,.1f} MB | {n_bytes / before[1]:.2f} | {best:.2f} s | {best / before[3]:.3f} |"
        )


if __name__ == "__main__":
    main()
