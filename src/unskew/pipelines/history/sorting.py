"""Rows in order that are more than memory holds: sorted runs on disk, and ranges of all runs together."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from unskew.sinks import durable

RUN_ROWS = 1_000_000
"""Rows that are sorted at once."""
_GROUP_ROWS = 50_000
KEY, NUMBER = "_key", "_number"
"""The columns that rows are sorted by: ``_key``, and then ``_number``, the order in which they came."""


class Sorted:
    """A sort on disk: ``add`` all rows, then iterate over them in order.

    ``folder``: is made anew, and removed by ``close``. Raises ``StoreUnavailable`` if the disk fails.
    """

    def __init__(self, folder: Path, n_rows: int | None = None) -> None:
        self._folder = folder
        self._run_rows = RUN_ROWS if n_rows is None else n_rows
        self._waiting: list[pl.DataFrame] = []
        self._n_waiting = 0
        self._runs: list[Path] = []
        self._samples: list[pl.DataFrame] = []
        self.n_rows = 0
        with durable.disk(folder):
            shutil.rmtree(folder, ignore_errors=True)
            durable.make_folder(folder)

    def add(self, rows: pl.DataFrame) -> None:
        """Add rows with a column ``_key``."""
        numbers = pl.Series(NUMBER, np.arange(self.n_rows, self.n_rows + rows.height))
        self._waiting.append(rows.with_columns(numbers))
        self._n_waiting += rows.height
        self.n_rows += rows.height
        if self._n_waiting >= self._run_rows:
            self._end_run()

    def __iter__(self) -> Iterator[pl.DataFrame]:
        """Yield all rows in order, without ``_key`` and ``_number``, about as many at once as a run has."""
        self._end_run()
        if not self._runs:
            return
        bounds = pl.concat(self._samples).sort(KEY, NUMBER).gather_every(self._run_rows // self._step)
        # Before the first bound there is no row: it is the sample of a run's first row.
        edges: list[tuple[int, int] | None] = [*bounds.select(KEY, NUMBER).rows()[1:], None]
        low: tuple[int, int] | None = None
        for high in edges:
            with durable.disk(self._folder):
                rows = (
                    pl.scan_parquet(self._runs, glob=False, hive_partitioning=False)
                    .filter(_from(low) & ~_from(high, otherwise=False))
                    .collect()
                    .sort(KEY, NUMBER)
                )
            low = high
            if rows.height:
                yield rows.drop(KEY, NUMBER)

    def close(self) -> None:
        """Remove everything from disk."""
        shutil.rmtree(self._folder, ignore_errors=True)
        durable.remove_empty([self._folder.parent])

    @property
    def _step(self) -> int:
        return max(1, self._run_rows // 256)

    def _end_run(self) -> None:
        if not self._waiting:
            return
        run = pl.concat(self._waiting).sort(KEY, NUMBER)
        self._waiting, self._n_waiting = [], 0
        self._samples.append(run.select(KEY, NUMBER).gather_every(self._step))
        path = self._folder / f"{len(self._runs):06d}.parquet"
        with durable.disk(self._folder):
            run.write_parquet(path, compression="lz4", row_group_size=_GROUP_ROWS)
        self._runs.append(path)


def _from(bound: tuple[int, int] | None, *, otherwise: bool = True) -> pl.Expr:
    """Return whether a row is not before a bound; ``otherwise``: where there is none."""
    if bound is None:
        return pl.lit(otherwise)
    key, number = bound
    return (pl.col(KEY) > key) | ((pl.col(KEY) == key) & (pl.col(NUMBER) >= number))
