"""The key directory against a dict."""

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from tests.support.histories import laws
from unskew.features.kernel.directory import Directory, remove_rows
from unskew.features.text_buffers import Keys

KEYS = st.lists(st.one_of(st.integers(0, 400).map(str), st.text(max_size=12)), max_size=150)


def _keys(texts: list[str]) -> Keys:
    return Keys.of(pl.Series(texts, dtype=pl.String))


@laws(max_examples=60)
@given(st.lists(st.tuples(KEYS, st.randoms(use_true_random=False)), max_size=8))
def test_a_key_keeps_its_row_until_it_is_removed_and_no_two_share_one(steps: list) -> None:  # type: ignore[type-arg]
    directory = Directory()
    model: dict[str, int] = {}
    for texts, random in steps:
        rows, fresh = directory.insert(_keys(texts))
        for text, row in zip(texts, rows.tolist(), strict=True):
            assert model.setdefault(text, row) == row
        assert len(fresh) == len(set(fresh.tolist()))
        assert len(set(model.values())) == len(model) == len(directory)
        gone = [text for text in model if random.random() < 0.4]
        remove_rows(directory.arrays, np.array([model.pop(text) for text in gone], np.int32))
        assert (directory.find(_keys(gone)) == -1).all()
        assert directory.find(_keys(list(model))).tolist() == list(model.values())
        assert directory.gather(directory.rows()).to_series("key").to_list() == sorted(model, key=model.__getitem__)


def test_churn_of_keys_does_not_grow_the_directory() -> None:
    directory = Directory()
    for step in range(200):
        rows, _ = directory.insert(_keys([f"key-{step}-{index}" for index in range(500)]))
        remove_rows(directory.arrays, rows)

    assert len(directory) == 0
    assert directory.capacity <= 1000
    assert len(directory.arrays.pool) <= 50_000
