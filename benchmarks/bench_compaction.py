"""Measure compaction: the files, bytes and point-in-time join time of a log of many small files, before and after.

    python benchmarks/bench_compaction.py [--epochs 2_000] [--writers 4] [--rows 100] [--labels 100_000] [--repeats 3]
    python benchmarks/bench_compaction.py --every 86_400 --epochs 400 --writers 8 --rows 5 --span 30d

Every writer publishes one file per epoch with ``--rows`` rows, as the pipeline does with an epoch of 5 s; with
``--every`` another time lies between them, as where a view has few rows a day. With ``--span`` the log is compacted
twice, first without and then with this span. Values are counts and amounts of money, as a window would have them;
entities follow a Zipf distribution (s = 1.1). The command runs in its own process with its default limits; its seconds
and its peak memory include the start of Python. The joins before and after must give the same rows, or the benchmark
fails; first runs, which may compile, are not timed.
"""

import argparse
import datetime as dt
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
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

SECOND_US = 1_000_000
STEPS = 5_000
"""Rows of one epoch lie at different multiples of this part of it."""
# Only this file of Linux shows a process's own peak memory: the figure of getrusage starts at its parent's peak.
COMPACT = """
import sys
from pathlib import Path
from unskew.cli import main
main(sys.argv[1:], standalone_mode=False)
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""


def write_log(
    root: Path, view: View, n_epochs: int, every_us: int, n_writers: int, n_rows: int, n_entities: int
) -> None:
    """Write a log as a pipeline leaves it without compaction."""
    rng = np.random.default_rng(0)
    table = view_root(root, view.name, view.version)
    metadata = {"unskew.layout": LAYOUT, "unskew.state_fingerprint": view.state_fingerprint}
    for writer in range(n_writers):
        n = n_epochs * n_rows
        entity = zipf(rng, n, n_entities) * n_writers + writer
        # The instants of an epoch are distinct, because an entity never has two rows at one instant.
        within = np.sort(rng.permuted(np.tile(np.arange(STEPS), (n_epochs, 1)), axis=1)[:, :n_rows], axis=1)
        instants = START_US + (np.arange(n_epochs)[:, None] * every_us + within * (every_us // STEPS)).ravel()
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
                "written_at": pl.Series(instants // every_us * every_us + every_us).cast(INSTANT),
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


def compact(root: Path, span: str | None) -> tuple[float, float]:
    """Run the command so that it also deletes the files that it merged; return its seconds and peak MiB."""
    began = time.perf_counter()
    command = [sys.executable, "-c", COMPACT, "compact", "--log", str(root), "--grace", "0s"]
    command += [] if span is None else ["--span", span]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return time.perf_counter() - began, int(output.splitlines()[-1].split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2_000)
    parser.add_argument("--every", type=float, default=5.0, help="seconds from one epoch to the next")
    parser.add_argument("--span", help="compact again with this --span")
    parser.add_argument("--writers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=100, help="rows per writer and epoch")
    parser.add_argument("--entities", type=int, default=10_000, help="entities per writer")
    parser.add_argument("--labels", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    view = the_view("string")
    references = [f"purchases:{name}" for name in (*COUNTS, *SUMS)]
    every_us = round(given.every * SECOND_US)
    span_us = given.epochs * every_us
    labels = the_labels(view, given.labels, given.entities * given.writers, 1)
    inside = START_US + (labels["event_timestamp"].to_physical() - START_US) % (span_us - every_us)
    labels = labels.with_columns(event_timestamp=inside.cast(INSTANT))
    with tempfile.TemporaryDirectory() as folder:
        seconds, peak_mib = 0.0, 0.0
        roots = {"as written": Path(folder) / "as written"}
        write_log(roots["as written"], view, given.epochs, every_us, given.writers, given.rows, given.entities)
        for span in [None] if given.span is None else [None, given.span]:
            name = "compacted" if span is None else f"--span {span}"
            roots[name] = shutil.copytree(list(roots.values())[-1], Path(folder) / name)
            seconds, peak_mib = compact(roots[name], span)
        tables = {name: view_root(root, view.name, view.version) for name, root in roots.items()}
        if any(map(superseded_files, tables.values())):
            raise SystemExit("files that were merged are still there")
        files = {name: published_files(table) for name, table in tables.items()}
        sizes = {name: sum(file.path.stat().st_size for file in ones) for name, ones in files.items()}

        def joined(root: Path) -> pl.DataFrame:
            return historical_features(root, {view.name: view}, read_table(labels), references, inclusive=True).columns

        found = timed({name: partial(joined, root) for name, root in roots.items()}, given.repeats)
    answer, before = found["as written"]
    if not all(other.equals(answer) for other, _ in found.values()):
        raise SystemExit("the join gives another answer after compaction")
    n_rows = given.epochs * given.writers * given.rows
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Polars {pl.__version__}, PyArrow {pa.__version__}, {platform.python_version()}"
    )
    print(
        f"{given.epochs:,} epochs x {given.writers} writers, {given.rows} rows each ({n_rows:,} rows); {given.labels:,} labels, "
        f"{len(references)} features; joins identical; the last compaction took {seconds:.1f} s ({n_rows / seconds:,.0f} rows/s) and "
        f"{peak_mib:,.0f} MiB at its peak\n"
    )
    print("| log | files | bytes | of the first | join, best | of the first |")
    print("|---|---|---|---|---|---|")
    for name, (_, times) in found.items():
        print(
            f"| {name} | {len(files[name]):,} | {sizes[name] / 1e6:,.1f} MB | {sizes[name] / sizes['as written']:.2f} "
            f"| {min(times):.3f} s | {min(times) / min(before):.3f} |"
        )


if __name__ == "__main__":
    main()
