"""What is counted of late events adds up over shards, and is read back as it was written."""

import json

import pytest

from unskew.features.errors import LayoutError
from unskew.features.ledger import N_BUCKETS, LateEvents, Ledger, read_ledger, together, written


def late(*places: int, worst_us: int = 0) -> LateEvents:
    histogram = [0] * N_BUCKETS
    for place in places:
        histogram[place] += 1
    return LateEvents(events=len(places), worst_us=worst_us, histogram=tuple(histogram))


def test_ledgers_of_shards_add_up_window_by_window_and_the_worst_is_the_worst():
    one = Ledger(windows=(late(0, 3, worst_us=70), late()), duplicates=2)
    other = Ledger(windows=(late(3, worst_us=90), late(7, worst_us=10**12)), duplicates=5)

    assert together([one, Ledger(), other]) == Ledger(
        windows=(late(0, 3, 3, worst_us=90), late(7, worst_us=10**12)), duplicates=7
    )
    assert together([]) == Ledger()


def test_a_ledger_is_read_back_as_it_was_written():
    ledger = Ledger(windows=(late(0, 7, worst_us=2**60), late()), duplicates=1)

    assert read_ledger(written(ledger)) == ledger
    assert read_ledger(json.dumps(written(ledger))) == ledger
    assert read_ledger({}) == Ledger()


@pytest.mark.parametrize("text", ["", "[]", '{"windows": 3}', '{"windows": [{"events": 1, "histogram": [1, 0]}]}'])
def test_what_is_no_ledger_is_a_layout_error(text):
    with pytest.raises(LayoutError, match="ledger of late events"):
        read_ledger(text)
