"""Compare the writers of a table's files: Polars at once, and PyArrow row group by row group as rows come.

    python benchmarks/bench_ahead.py [--rows 60 4096 65536] [--piece 4096] [--repeats 15]

"ahead" is ``sinks.tables.ahead``, with a row group for each ``--piece`` rows; "its default" is the same with PyArrow's
own encodings, which are dictionaries for all columns; "Polars" is ``sinks.tables.parquet.encode``, which writes files
of few rows; "Polars, a file a piece" makes a file of each ``--piece`` rows. All have the same compression. The columns:
time and processor time of the process, both medians in microseconds a row, in turns; bytes a row.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from unittest.mock import patch

import polars as pl
from bench_checksum import a_file

from unskew.sinks.tables import ahead
from unskew.sinks.tables.ahead import Ahead, Piece
from unskew.sinks.tables.parquet import encode


def of_one_day(rows: pl.DataFrame, first: int) -> Iterator[Piece]:
    yield Piece("day", first, first + rows.height - 1, rows)


def row_groups(rows: pl.DataFrame, piece: int) -> int:
    files = Ahead(of_one_day, {})
    for begin in range(0, rows.height, piece):
        files.add([rows.slice(begin, piece)], begin)
    return sum(len(file.content) for file in files.files())


def by_default(rows: pl.DataFrame, piece: int) -> int:
    with patch.object(ahead, "encodings", lambda _schema: {}):
        return row_groups(rows, piece)


def at_once(rows: pl.DataFrame, _piece: int) -> int:
    return len(encode(rows, {}))


def file_a_piece(rows: pl.DataFrame, piece: int) -> int:
    return sum(len(encode(rows.slice(begin, piece), {})) for begin in range(0, rows.height, piece))


WRITERS: dict[str, Callable[[pl.DataFrame, int], int]] = {
    "ahead": row_groups,
    "its default": by_default,
    "Polars": at_once,
    "Polars, a file a piece": file_a_piece,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[60, 4_096, 65_536])
    parser.add_argument("--piece", type=int, default=4_096)
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    print(f"{platform.machine()}, Python {platform.python_version()}, {a_file(1).width} columns")
    print("| rows | writer | time | processor | bytes |\n|---|---|---|---|---|")
    for n in given.rows:
        rows = a_file(n)
        walls: dict[str, list[float]] = {name: [] for name in WRITERS}
        processors: dict[str, list[float]] = {name: [] for name in WRITERS}
        sizes: dict[str, int] = {}
        for _ in range(given.repeats):
            for name, write in WRITERS.items():
                wall, processor = time.perf_counter(), time.process_time()
                sizes[name] = write(rows, given.piece)
                walls[name].append(1e6 * (time.perf_counter() - wall) / n)
                processors[name].append(1e6 * (time.process_time() - processor) / n)
        for name in WRITERS:
            took = f"{statistics.median(walls[name]):.2f} | {statistics.median(processors[name]):.2f}"
            print(f"| {n:,} | {name} | {took} | {sizes[name] / n:.1f} |")


if __name__ == "__main__":
    main()
