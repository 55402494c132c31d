"""Measure publication on a disk and in an object store: staging, and publishing what was staged.

    python benchmarks/bench_objects.py [--epochs 300] [--rows 1000] [--shards 1,16]

Tables of six columns get an epoch of rows after the other, which is staged (encoded and written) and then published.
The object store is SeaweedFS on this machine's disk, without TLS, so the figures have no network in them; it does not
wait for the disk, as files do. A write of one object is measured beside it, by obstore and by pyarrow.fs, which has no
conditional writes.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.fs

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.servers.objects import BUCKET, SECRET, SeaweedFS, reaching
from unskew.sinks.objects import ObjectPath, together
from unskew.sinks.tables.layout import INSTANT, published_files
from unskew.sinks.tables.parquet import StagedTable

START_US = 1_490_486_400_000_000


def rows(first: int, n_rows: int) -> pl.DataFrame:
    rng = np.random.default_rng(first)
    return pl.DataFrame(
        {
            "seq": np.arange(first, first + n_rows),
            "available_at": START_US + np.arange(first, first + n_rows) * 1000,
            "user": rng.integers(0, 100_000, n_rows),
            "count": rng.integers(0, 50, n_rows),
            "sum": rng.random(n_rows),
            "mean": rng.random(n_rows),
        }
    ).with_columns(pl.col("available_at").cast(INSTANT))


def epochs(root: Path, n_epochs: int, n_rows: int, n_shards: int) -> tuple[list[float], list[float]]:
    """Return how long it took to publish an epoch, and to stage one, in milliseconds."""
    tables = [
        StagedTable(root, f"h{shard}", day_column="available_at", sequence_column="seq", metadata={}, saved=None)
        for shard in range(n_shards)
    ]

    def of_all(call: Callable[[StagedTable], object]) -> float:
        began = time.perf_counter()
        if isinstance(root, ObjectPath):
            # As the flow does.
            together(call, tables)
        else:
            for table in tables:
                call(table)
        return (time.perf_counter() - began) * 1e3

    publishing, staging = [], []
    for epoch in range(n_epochs):
        for table in tables:
            table.append(rows(epoch * n_rows, n_rows))
            table.cover({"since": 0, "complete_to": epoch})
        staging.append(of_all(StagedTable.snapshot))
        publishing.append(of_all(StagedTable.settle))
    assert sum(file.last - file.first + 1 for file in published_files(root)) == n_epochs * n_rows * n_shards
    return publishing, staging


def timed(call: Callable[[int], object], n_calls: int) -> list[float]:
    took = []
    for number in range(n_calls):
        began = time.perf_counter()
        call(number)
        took.append((time.perf_counter() - began) * 1e3)
    return took


def line(name: str, took: Sequence[float]) -> None:
    ordered = np.sort(np.array(took[len(took) // 10 :]))
    print(f"| {name} | {np.percentile(ordered, 50):.1f} | {np.percentile(ordered, 99):.1f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--rows", type=int, default=1_000)
    parser.add_argument("--shards", default="1,16")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, SeaweedFS(Path(folder) / "server") as server:
        print("| what | p50, ms | p99, ms |\n|---|---|---|")
        with reaching(server.environment):
            store = ObjectPath("s3:", BUCKET, "bench")
            for n_shards in map(int, options.shards.split(",")):
                for name, root in (
                    ("disk", Path(folder) / f"disk-{n_shards}"),
                    ("object store", store / f"{n_shards}"),
                ):
                    publishing, staging = epochs(root, options.epochs, options.rows, n_shards)
                    line(f"publish an epoch, {n_shards} shards: {name}", publishing)
                    line(f"stage an epoch, {n_shards} shards of {options.rows} rows: {name}", staging)
            small, data = b"x" * 300, b"x" * 30_000
            version = [(store / "coverage").replace_if(small, None)]

            def replace(number: int) -> None:
                version[0] = (store / "coverage").replace_if(small + b"%d" % number, version[0])

            line("one conditional write of 300 bytes, obstore", timed(replace, options.epochs))
            line("one write of 30 kB, obstore", timed(lambda n: (store / f"a{n}").write_bytes(data), options.epochs))
            peer = pyarrow.fs.S3FileSystem(
                access_key="test",
                secret_key=SECRET,
                endpoint_override=f"127.0.0.1:{server.port}",
                scheme="http",
                region="us-east-1",
            )

            def write(number: int) -> None:
                with peer.open_output_stream(f"{BUCKET}/bench/b{number}") as stream:
                    stream.write(data)

            line("one write of 30 kB, pyarrow.fs", timed(write, options.epochs))
            line("one read of 30 kB, obstore", timed(lambda n: (store / f"a{n}").read_bytes(), options.epochs))
            line(
                "one read of 30 kB, pyarrow.fs",
                timed(lambda n: peer.open_input_stream(f"{BUCKET}/bench/a{n}").read(), options.epochs),
            )
    pyarrow.fs.finalize_s3()


if __name__ == "__main__":
    main()
