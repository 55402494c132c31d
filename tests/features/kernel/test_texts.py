"""Texts in the kernel, where nothing else in the view needs what they need."""

import pytest

from unskew import Entity, Feature, FeatureView, Session, Sliding, Stream, agg
from unskew.testing import assert_features

SCHEMA = {
    "type": "record",
    "name": "Event",
    "fields": [
        {"name": "user", "type": "long"},
        {"name": "kind", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    ],
}
STREAM = Stream("events", topic="events", schema=SCHEMA, event_time="at")
EVENTS = [
    {"user": 7, "kind": kind, "at": f"2026-03-01T12:00:0{second}Z"}
    for second, kind in enumerate(["b", "abc", "", "ab"])
]


@pytest.mark.parametrize("window", [Sliding("10s", hop="1s"), Session("10s", hop="1s")])
@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [(agg.min("kind"), ""), (agg.max("kind"), "b"), (agg.first("kind"), "b"), (agg.last("kind"), "ab")],
)
def test_one_feature_that_keeps_a_text_is_enough_of_a_view(aggregation, expected, window):
    view = FeatureView(
        "v", entity=Entity("user", key="user"), stream=STREAM, features=[Feature("x", aggregation, window)]
    )

    assert_features(view, EVENTS, {"2026-03-01T12:00:03Z": {"x": expected}})
