"""Byte strings in one array behave as a list of them."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unskew.pipelines.kafka.blobs import NO_BLOBS, Blobs
from unskew.pipelines.kafka.poll import first_schema_id

ITEMS = st.lists(st.none() | st.binary(max_size=9), max_size=12)


@given(ITEMS, st.data())
def test_byte_strings_in_one_array_are_those_of_a_list(items, data):
    blobs = Blobs.of(items)
    edges = st.none() | st.integers(-15, 15)
    cut = data.draw(st.builds(slice, edges, edges, st.none() | st.sampled_from([1, 2, -1, -3])))

    assert list(blobs) == items
    assert len(blobs) == len(items)
    assert list(blobs[cut]) == items[cut]
    assert [blobs[place] for place in range(-len(items), len(items))] == items + items
    assert (None in blobs, b"" in blobs) == (None in items, b"" in items)
    assert blobs.lengths.tolist() == [len(item or b"") for item in items]
    rows = data.draw(st.lists(st.integers(0, len(items) - 1), max_size=9)) if items else []
    for each, expected in ((blobs, items), (blobs[cut], items[cut]), (blobs.at(np.array(rows, np.int64)), None)):
        kept = [items[row] for row in rows] if expected is None else expected
        assert each.series("x").to_list() == kept
        assert each.series("x").dtype == pl.Binary
        assert list(Blobs.joined([each, NO_BLOBS, blobs])) == kept + items
    assert list(Blobs.joined([])) == []


def test_a_place_that_is_not_there_is_an_error():
    with pytest.raises(IndexError):
        Blobs.of([b"a"])[1]
    with pytest.raises(IndexError):
        Blobs.of([b"a"])[-2]


@given(st.lists(st.none() | st.binary(max_size=4) | st.binary(max_size=9).map(lambda end: b"\0\0\0" + end), max_size=6))
def test_the_first_schema_id_is_that_of_the_first_value_with_a_frame(values):
    framed = [value for value in values if value is not None and len(value) >= 5 and value[0] == 0]

    assert first_schema_id(Blobs.of(values)) == (int.from_bytes(framed[0][1:5], "big") if framed else None)
