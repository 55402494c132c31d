"""Rows are chosen from few and from many rows as Polars chooses them."""

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from unskew.features.selecting import FEW_ROWS, filtered, gathered


@pytest.mark.parametrize("n_rows", [0, 1, 10, FEW_ROWS])
def test_rows_are_filtered_and_gathered_as_polars_does_it(n_rows):
    random = np.random.default_rng(0)
    frame = pl.DataFrame({"n": np.arange(n_rows), "text": [None if n % 3 else f"t{n}" for n in range(n_rows)]})
    chosen = pl.Series(random.random(n_rows) < 0.5)
    places = np.argsort(random.random(n_rows))

    assert_frame_equal(filtered(frame, chosen), frame.filter(chosen))
    assert_frame_equal(gathered(frame, places), frame[places])
