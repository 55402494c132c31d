"""A poll on its way to several views: each gets what it would get if it were alone."""

import io

import fastavro
import numpy as np
import pytest
from polars.testing import assert_frame_equal

from unskew.features.definitions import agg
from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.definitions.vocabulary import Entity, Feature, FeatureView, Sliding, Stream
from unskew.pipelines.decoding.avro import decoder_of
from unskew.pipelines.kafka.poll import Poll
from unskew.pipelines.routing import Router, TableRows
from unskew.pipelines.state.ordering import Slice

SCHEMA = {
    "type": "record",
    "name": "Click",
    "fields": [
        {"name": "user", "type": "string"},
        {"name": "item", "type": "string"},
        {"name": "n", "type": "long"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    ],
}
NOON_US = 1_483_272_000_000_000
STREAM = Stream("clicks", topic="clicks", schema=SCHEMA, event_time="at")
USER, ITEM = Entity("user", key="user"), Entity("item", key="item")


def _view(name, entity=USER, value="n", window="5m", **options):
    features = [Feature("total", agg.sum(value), Sliding(window)), Feature("count", agg.count(), Sliding("1h"))]
    return FeatureView(name, entity=entity, stream=STREAM, features=features, **options)


VIEWS = [
    _view("plain"),
    _view("as_plain"),
    _view("other_window", window="30m"),
    _view("filtered", where="n > 3"),
    _view("as_filtered", where="n > 3"),
    _view("other_filter", where="n > 4"),
    _view("other_value", value="n + 1"),
    _view("other_key", entity=ITEM),
    _view("refuses", value="n * 4611686018427387904"),
    _view("refuses_too", value="n * 4611686018427387904"),
]
PLAN = compile_definitions(*VIEWS)


def _poll(numbers):
    values = []
    for place, number in enumerate(numbers):
        body = io.BytesIO()
        event = {"user": f"u{place % 3}", "item": f"i{place % 2}", "n": number, "at": NOON_US + place}
        fastavro.schemaless_writer(body, fastavro.parse_schema(SCHEMA), event)
        values.append(b"\0\0\0\0\x01" + body.getvalue())
    arrivals = NOON_US + 1_000 + np.arange(len(values))
    return Poll(
        stream="clicks",
        partition=0,
        clock_us=NOON_US + 10_000,
        ended=False,
        offsets=np.arange(len(values)),
        arrivals=arrivals,
        keys=[None] * len(values),
        values=values,
        rejected=[],
    )


def _routed(views, poll):
    (stream,) = PLAN.streams.values()
    found = list(Router(views, decoder_of(stream), n_partitions=1, n_hashes=2).route(poll))
    letters = next(item.rows for key, item in found if key.startswith("dead/"))
    return [(key, item) for key, item in found if not isinstance(item, TableRows)], letters


@pytest.mark.parametrize("numbers", [[], [1], [5, 1, 4], [1, 2, 3, 4, 5, 6, 7] * 20], ids=len)
def test_views_that_share_an_evaluation_get_what_each_gets_alone(numbers):
    together, letters = _routed(list(PLAN.views.values()), _poll(numbers))
    alone = [_routed([view], _poll(numbers)) for view in PLAN.views.values()]

    assert [key for key, _ in together] == [key for slices, _ in alone for key, _ in slices]
    for (_, found), (_, expected) in zip(together, (item for slices, _ in alone for item in slices), strict=True):
        assert isinstance(found, Slice)
        assert found.view == expected.view
        assert (found.events is None) == (expected.events is None)
        if found.events is not None:
            assert_frame_equal(found.events, expected.events)
    # What a view refuses is a dead letter of its own, with its name.
    assert letters.height == sum(of_view.height for _, of_view in alone)
    assert {name for name in ("refuses", "refuses_too") if letters["reason"].str.starts_with(f"{name}.").any()} == (
        {"refuses", "refuses_too"} if any(number > 1 for number in numbers) else set()
    )
