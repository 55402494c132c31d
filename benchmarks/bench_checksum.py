"""Compare the join and the writing of files with and without their checksums, in one process and in turns.

    python benchmarks/bench_checksum.py [--rows 5_000_000] [--labels 500_000] [--repeats 7] [--flips 600]

Without: the same code, with the function that verifies files or adds checksums replaced by one that does nothing. The
log is that of ``bench_join.py``. Nothing is fsynced, and the files are read from the page cache, so that the disk does
not hide the difference.

The last table says what reading a small log gives after one bit of one of its files was flipped, drawn at random among
all bits of the log, each flip by itself.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import polars as pl
from bench_join import COUNTS, INSTANT, START_US, SUMS, by_unskew, the_labels, the_view, write_log

from unskew.features.errors import LayoutError
from unskew.sinks.tables import checksum, reading
from unskew.sinks.tables.layout import view_root
from unskew.sinks.tables.parquet import encode

WRITTEN = ((100, 200), (2_000, 100), (40_000, 20))
"""Rows of a file, and how many such files are written in a run."""


def compared(work: Callable[[], object], without: Callable[[], object], repeats: int) -> str:
    """Return a table's cells: medians and minima in ms with and without, and the ratio of the minima."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for number in range(repeats + 1):
        for has in (True, False):
            with nullcontext() if has else without():  # type: ignore[attr-defined]
                start = time.perf_counter()
                work()
                # The first run may compile, and fills the page cache.
                if number:
                    seconds[has].append(time.perf_counter() - start)
    cells = [f"{1e3 * statistics.median(seconds[has]):,.2f}, {1e3 * min(seconds[has]):,.2f}" for has in (True, False)]
    return f"{cells[0]} | {cells[1]} | {min(seconds[True]) / min(seconds[False]):.2f}"


def a_file(n: int) -> pl.DataFrame:
    """Return rows as a log has them."""
    rng = np.random.default_rng(2)
    instants = START_US + np.sort(rng.integers(0, 5_000_000, n))
    return pl.DataFrame(
        {
            "user_id": [f"user-{number}" for number in rng.integers(0, 100_000, n)],
            **{name: rng.integers(0, 1_000, n) for name in COUNTS},
            **{name: rng.random(n) * 1_000 for name in SUMS},
            "available_at": pl.Series(instants).cast(INSTANT),
            "seq": np.arange(n),
        }
    )


def read(files: Sequence[Path]) -> pl.DataFrame:
    return reading.answer(
        files,
        lambda path: path,
        lambda paths: pl.read_parquet(list(paths), glob=False, hive_partitioning=False),
        footer_has=b"unskew.state_fingerprint",
    )


def outcome(files: Sequence[Path], path: Path, expected: pl.DataFrame) -> str:
    try:
        found = read(files)
    except LayoutError as error:
        return "an error that names the file" if str(path) in str(error) else "an error that does not"
    # What reading may raise of a damaged file that it takes for a sound one, nobody says.
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return "an error that does not"
    return "the same rows" if found.equals(expected) else "other rows, in silence"


def print_flips(root: Path, n_flips: int) -> None:
    view = the_view("string")
    write_log(root, view, 40_000, 2_000, 2, 4)
    files = sorted(view_root(root, view.name, view.version).glob("day=*/*.parquet"))
    expected, sizes = read(files), np.array([file.stat().st_size for file in files])
    rng = np.random.default_rng(3)
    found: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for _ in range(n_flips):
        path = files[int(rng.choice(len(files), p=sizes / sizes.sum()))]
        sound = path.read_bytes()
        at, bit = int(rng.integers(len(sound))), int(rng.integers(8))
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 1 << bit]) + sound[at + 1 :])
        for has in (True, False):
            with nullcontext() if has else patch.object(reading, "verify_all", lambda _paths, **_options: None):
                found[has][outcome(files, path, expected)] += 1
        path.write_bytes(sound)
    print(
        f"\n| of {n_flips} flipped bits in {expected.height:,} rows, {len(files)} files | with | without |\n|---|---|---|"
    )
    for what in ("an error that names the file", "an error that does not", "other rows, in silence", "the same rows"):
        print(f"| {what} | {found[True][what]} | {found[False][what]} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--labels", type=int, default=500_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--flips", type=int, default=600)
    given = parser.parse_args()
    view, n_entities, n_days = the_view("string"), 100_000, 30
    labels = the_labels(view, given.labels, n_entities, n_days)
    print(f"{platform.machine()}, Polars {pl.__version__}, {platform.python_version()}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        n_files = write_log(root, view, given.rows, n_entities, n_days, 4)
        size = sum(file.stat().st_size for file in view_root(root, view.name, view.version).glob("day=*/*.parquet"))
        print(f"{given.labels:,} labels on {given.rows:,} rows ({n_files} files, {size / (1 << 20):,.0f} MiB)\n")
        print("| work | with: median, best (ms) | without: median, best (ms) | ratio of the best |\n|---|---|---|---|")
        for names in ([*COUNTS, *SUMS], COUNTS[:1]):
            references = [f"purchases:{name}" for name in names]
            cells = compared(
                lambda references=references: by_unskew(root, view, labels, references),  # type: ignore[misc]
                lambda: patch.object(reading, "verify_all", lambda _paths, **_options: None),
                given.repeats,
            )
            print(f"| join, {len(names)} features | {cells} |", flush=True)
        for n, n_written in WRITTEN:
            rows, path = a_file(n), root / "written"
            cells = compared(
                lambda rows=rows, n_written=n_written, path=path: [  # type: ignore[misc]
                    path.write_bytes(encode(rows, {"unskew.view": "purchases"})) for _ in range(n_written)
                ],
                lambda: patch.object(checksum, "seal", lambda data: data),
                given.repeats,
            )
            print(f"| writing {n_written} files of {n:,} rows | {cells} |", flush=True)
        print_flips(root / "flips", given.flips)


if __name__ == "__main__":
    main()
