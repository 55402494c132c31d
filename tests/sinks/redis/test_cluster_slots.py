import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from unskew.sinks.redis.cluster_slots import slot_of, slots_of, tag_of

BRACED = st.text(st.sampled_from("{}ab:é"), max_size=6)


@given(st.lists(st.text(max_size=5) | BRACED), BRACED, BRACED)
def test_slots_of_a_column_are_those_of_each_key_wherever_braces_stand(middles, before, after):
    keys = [f"{before}{{{middle}}}{after}" for middle in middles]
    expected = [key_slot(key.encode()) for key in keys]

    # Of a slice, whose texts do not begin where their column's do.
    column = pl.Series(["before", *middles], dtype=pl.String).slice(1)
    assert slots_of(column, f"{before}{{", f"}}{after}").tolist() == expected
    assert [slot_of(key) for key in keys] == expected


@pytest.mark.parametrize("slot", [0, 1, 5461, REDIS_CLUSTER_HASH_SLOTS - 1])
def test_a_tag_takes_a_key_to_its_slot(slot):
    assert key_slot(f"unskew:sent:main:{{{tag_of(slot)}}}".encode()) == slot
