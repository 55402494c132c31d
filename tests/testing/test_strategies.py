"""Events that are drawn from a stream's schema are events of the stream."""

import datetime as dt
import subprocess
import sys

import pytest
from hypothesis import find, given
from hypothesis import strategies as st

from tests.support.histories import laws
from tests.testing.test_values import COUNT, ORDERS, STREAM, USER, view
from unskew import Feature, Lifetime, RequestError, Stream, agg
from unskew.testing import values
from unskew.testing.strategies import events

EVERY_TYPE = {
    "type": "record",
    "name": "Everything",
    "fields": [
        {"name": "user", "type": "long"},
        {"name": "i", "type": "int"},
        {"name": "f", "type": "float"},
        {"name": "d", "type": ["null", "double"]},
        {"name": "b", "type": "boolean"},
        {"name": "s", "type": ["null", "string"]},
        {"name": "raw", "type": "bytes"},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["x", "y"]}},
        {"name": "money", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "hour", "type": {"type": "int", "logicalType": "time-millis"}},
        {"name": "seen", "type": ["null", {"type": "long", "logicalType": "timestamp-millis"}]},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}
EVERYTHING = Stream(
    "everything", topic="everything", schema=EVERY_TYPE, event_time="at", partitioned_by="user", headers=["trace"]
)


@given(events(EVERYTHING, arrival="came", late="1min", min_size=1))
@laws(40)
def test_a_stream_takes_the_events_that_are_drawn_from_its_schema(drawn):
    found = values(
        view(Feature("n", agg.count(), Lifetime()), stream=EVERYTHING), drawn, at="2026-01-02", arrival="came"
    )

    assert sum(one["n"] for one in found.values()) == len(drawn)
    for event in drawn:
        assert dt.timedelta() <= event["came"] - event["at"] <= dt.timedelta(minutes=1)
        assert dt.timedelta() <= event["at"] - dt.datetime(2026, 1, 1, tzinfo=dt.UTC) <= dt.timedelta(hours=1)


@given(events(ORDERS, user=st.sampled_from(["u-1", "u-2"])))
@laws(20)
def test_records_inside_are_drawn_too(drawn):
    found = values(view(Feature("n", agg.count(), Lifetime()), stream=ORDERS), drawn, at="2026-01-02")

    assert found.keys() <= {"u-1", "u-2"}
    assert sum(one["n"] for one in found.values()) == len(drawn)


@given(events(STREAM, start="2026-03-01", length="30s"), st.permutations(range(20)))
@laws(20)
def test_a_count_does_not_depend_on_the_order_in_which_events_are_given(drawn, order):
    shuffled = [drawn[place] for place in order if place < len(drawn)]

    found = [values(view(COUNT), them, at="2026-03-01T00:00:20Z") for them in (shuffled, drawn)]

    assert found[0] == found[1]


def test_entities_have_several_events_and_what_may_be_null_is_at_times():
    of_one = find(
        events(STREAM, min_size=3), lambda drawn: len({one["user"] for one in drawn}) == 1 and len(drawn) == 3
    )
    null = find(events(EVERYTHING), lambda drawn: any(one["d"] is None for one in drawn))

    assert len(of_one) == 3
    assert len(null) == 1


def test_a_column_that_the_stream_does_not_have_is_an_error():
    with pytest.raises(RequestError, match="stream 'purchases' has no column 'amont'; did you mean 'amount'"):
        events(STREAM, amont=st.just(1))
    with pytest.raises(RequestError, match="give a Stream or a Table, not "):
        events(USER)


def test_without_hypothesis_the_error_says_what_to_install():
    code = """
import sys
sys.modules["hypothesis"] = None
import unskew
try:
    import unskew.testing.strategies
except unskew.RequestError as error:
    print(error)
"""

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)

    assert done.stdout == (
        "unskew.testing.strategies needs the package hypothesis, which is not installed: pip install 'unskew[testing]'\n"
    )
