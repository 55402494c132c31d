"""Texts in the kernel, where nothing else in the view needs what they need."""

import polars as pl
import pytest

from unskew.features.definitions import agg
from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.definitions.vocabulary import Entity, Feature, FeatureView, Session, Sliding, Stream
from unskew.features.shard_state import ShardState

SCHEMA = {
    "type": "record",
    "name": "Event",
    "fields": [
        {"name": "user", "type": "long"},
        {"name": "kind", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    ],
}
KINDS = ["b", "abc", "", "ab"]


def current(aggregation, window):
    stream = Stream("events", topic="events", schema=SCHEMA, event_time="at")
    view = compile_definitions(
        FeatureView("v", entity=Entity("user", key="user"), stream=stream, features=[Feature("x", aggregation, window)])
    ).views["v"]
    instants = [1_000_000 * (second + 1) for second in range(len(KINDS))]
    events = pl.DataFrame(
        {
            "key": ["7"] * len(KINDS),
            "effective": instants,
            "arrival": instants,
            "event_time": instants,
            "partition": pl.Series([0] * len(KINDS), dtype=pl.Int32),
            "offset": range(len(KINDS)),
            "v0": KINDS,
        }
    )
    return ShardState(view, "h0").apply(events, instants[-1]).current["x"].to_list()


@pytest.mark.parametrize("window", [Sliding("10s", hop="1s"), Session("10s", hop="1s")])
@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [(agg.min("kind"), ""), (agg.max("kind"), "b"), (agg.first("kind"), "b"), (agg.last("kind"), "ab")],
)
def test_one_feature_that_keeps_a_text_is_enough_of_a_view(aggregation, expected, window):
    assert current(aggregation, window) == [expected]
