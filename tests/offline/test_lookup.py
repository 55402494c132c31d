"""The last row of many entities at once, and the types for which its functions are compiled."""

import numpy as np
import pytest

from unskew.features.text_buffers import read_only
from unskew.offline.lookup import entries, last_rows, number_entities


@pytest.mark.parametrize("goes_back", [False, True])
@pytest.mark.parametrize("shown", [False, True])
def test_the_last_row_at_a_bound_is_that_of_a_plain_search_and_ties_go_to_the_later_row(goes_back, shown):
    random = np.random.default_rng(5)
    ids = random.integers(0, 60, 4_000).astype(np.uint64)
    instants = np.sort(random.integers(0, 900, 4_000))
    if goes_back:
        # The rows of a second shard come after those of the first.
        instants = np.concatenate([np.sort(instants[::2]), np.sort(instants[1::2])])
    label_ids = np.concatenate([random.integers(0, 70, 300), np.zeros(500, np.int64)]).astype(np.uint64)
    bounds = random.integers(-50, 1_000, len(label_ids))
    labels = np.flatnonzero(random.random(len(label_ids)) < 0.7)
    if shown:
        ids, instants, label_ids, bounds = map(read_only, (ids, instants, label_ids, bounds))

    found = last_rows(number_entities(label_ids), labels, bounds, ids, instants)

    for place, label in enumerate(labels):
        rows = np.flatnonzero((ids == label_ids[label]) & (instants <= bounds[label]))
        expected = max(rows, key=lambda row: (instants[row], row), default=-1)
        assert found[place] == expected
    for entry in entries():
        assert set(entry.function.signatures) == {entry.types}, entry.function.py_func.__name__
