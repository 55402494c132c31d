"""A poll on its way to several views: each gets what it would get if it were alone."""

import io

import fastavro
import msgspec
import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from unskew.features.definitions import agg
from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.definitions.vocabulary import Entity, Feature, FeatureView, Sliding, Stream
from unskew.features.events import Events
from unskew.pipelines.decoding.avro import decoder_of
from unskew.pipelines.kafka.blobs import Blobs
from unskew.pipelines.kafka.headers import Headers
from unskew.pipelines.kafka.poll import Poll, Rejected
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
STREAM = Stream("clicks", topic="clicks", schema=SCHEMA, event_time="at", key_column="key", headers=["h"])
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


def _poll(numbers, partition=0, **more):
    values = []
    for place, number in enumerate(numbers):
        body = io.BytesIO()
        event = {"user": f"u{place % 3}", "item": f"i{place % 2}", "n": number, "at": NOON_US + place}
        fastavro.schemaless_writer(body, fastavro.parse_schema(SCHEMA), event)
        values.append(b"\0\0\0\0\x01" + body.getvalue())
    arrivals = NOON_US + 1_000 + np.arange(len(values))
    return Poll(
        stream="clicks",
        partition=partition,
        clock_us=NOON_US + 10_000 + partition,
        ended=False,
        offsets=np.arange(len(values)) + 100 * partition,
        arrivals=arrivals + partition,
        keys=Blobs.of([b"k%d" % number for number in range(len(values))]),
        values=Blobs.of(values),
        rejected=[],
        **more,
    )


def _routed(views, poll):
    (stream,) = PLAN.streams.values()
    found = list(Router(views, decoder_of(stream), n_partitions=1, n_hashes=2).route([poll]))
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
            assert_frame_equal(found.events.frame, expected.events.frame)
    # What a view refuses is a dead letter of its own, with its name.
    assert letters.height == sum(of_view.height for _, of_view in alone)
    assert {name for name in ("refuses", "refuses_too") if letters["reason"].str.starts_with(f"{name}.").any()} == (
        {"refuses", "refuses_too"} if any(number > 1 for number in numbers) else set()
    )


FOREIGN = [Rejected(7, NOON_US, "past the present", None, b"x")]


def _with(poll, place, value):
    values = list(poll.values)
    values[place] = value
    return msgspec.structs.replace(poll, values=Blobs.of(values))


@pytest.mark.parametrize("n_hashes", [1, 2])
def test_polls_that_come_together_give_what_each_gives_alone(n_hashes):
    """Among them are empty ones, records that are not events, others of another schema, and two of one partition."""
    polls = [
        _poll([5, 1, 4], 0),
        _poll([], 1),
        _poll([2, 3, 9], 2, headers=Headers.of([(("h", b"1"),), None, ()])),
        _poll([7], 4, schema_id=1),
        _poll([8], 4, schema_id=1),
        _poll([1, 1, 1, 6], 5, schema_id=1),
        _poll([4, 4], 6, schema_id=1, decided=True),
        _poll([4], 7, schema_id=2),
    ]
    polls[::2] = [_with(poll, len(poll.values) // 2, b"not an event") for poll in polls[::2]]
    polls[0] = _with(polls[0], 0, None)
    polls[2].rejected.extend(FOREIGN)
    views = list(PLAN.views.values())
    (stream,) = PLAN.streams.values()

    def routed(polls_at_once):
        router = Router(views, decoder_of(stream), n_partitions=8, n_hashes=n_hashes)
        found = {}
        for one in polls_at_once:
            for key, item in router.route(one):
                found.setdefault(key, []).append(item)
        return found, router.dead, router.dead_by_kind, router.ignored

    together, *counts_together = routed([polls])
    alone, *counts_alone = routed([[poll] for poll in polls])

    assert counts_together == counts_alone
    assert counts_alone[0] > 0
    assert together.keys() == alone.keys()
    for key, items in alone.items():
        for found, expected in zip(together[key], items, strict=True):
            for name in expected.__struct_fields__:
                of_found, of_expected = getattr(found, name), getattr(expected, name)
                if isinstance(of_expected, Events) and isinstance(of_found, Events):
                    of_found, of_expected = of_found.frame, of_expected.frame
                if isinstance(of_expected, pl.DataFrame) and isinstance(of_found, pl.DataFrame):
                    assert_frame_equal(of_found, of_expected)
                else:
                    assert of_found == of_expected


@pytest.mark.parametrize("numbers", [[], [1, 2]], ids=len)
def test_every_poll_reaches_the_archive_and_every_shard(numbers):
    """Else an epoch's end would not reach them, and what they staged would stay unpublished."""
    (stream,) = PLAN.streams.values()
    router = Router(list(PLAN.views.values()), decoder_of(stream), n_partitions=2, n_hashes=3)

    for _ in range(2):
        found = [key for key, _ in router.route([_poll(numbers, partition) for partition in range(2)])]
        for partition in range(2):
            assert found.count(f"archive/clicks/{partition}") == 1
        for view in PLAN.views.values():
            assert [found.count(f"{view.id}/h{number}") for number in range(3)] == [2, 2, 2]


def test_dead_letters_get_the_first_poll_of_a_partition_and_every_poll_from_their_first_ones_on():
    (stream,) = PLAN.streams.values()
    router = Router(list(PLAN.views.values()), decoder_of(stream), n_partitions=2, n_hashes=3)

    def dead(numbers, partition):
        found = [item.rows.height for key, item in router.route([_poll(numbers, partition)]) if key.startswith("dead/")]
        return found[0] if found else None

    assert [dead(numbers, 0) for numbers in ([], [], [1], [2], [], [1])] == [0, None, None, 2, 0, 0]
    assert dead([], 1) == 0
