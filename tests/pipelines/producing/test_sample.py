"""Events that are made up are events: the pipeline's decoder reads every one, whatever the schema."""

import itertools
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.pipelines.decoding.test_protobuf import record
from tests.pipelines.producing.test_encoding import (
    JSON_SCHEMA,
    NESTED,
    PROTOBUF,
    PROTOBUF_COLUMNS,
    TYPES,
    decoded,
    logical,
    stream_of,
)
from tests.support.schema_registry import Registry
from unskew.features.definitions.load import load
from unskew.features.plan import Plan
from unskew.features.time import HOUR_US
from unskew.features.versions import Versions
from unskew.pipelines.decoding.schema_registry import SchemaRegistry
from unskew.pipelines.producing.encoding import Encoder, wire_of
from unskew.pipelines.producing.sample import Span, sample_of

NOON_US = 1_483_272_000_000_000
ROOT = Path(__file__).parents[3]
LOOSE = {
    "type": "record",
    "name": "Loose",
    "fields": [
        {"name": "user", "type": "string"},
        {"name": "n", "type": "string"},
        {"name": "x", "type": ["null", "string"]},
        {"name": "price", "type": "string"},
        {"name": "sent", "type": "double"},
        {"name": "at", "type": "string"},
    ],
}
READ_AS = {"user": "int64", "n": "int64", "x": "float64", "price": "decimal(38,2)", "sent": "unix-s", "at": "iso"}
EVERYTHING = record(
    "Everything", *((name, avro) for name, (avro, _) in TYPES.items()), ("at", logical("long", "timestamp-nanos"))
)
STREAMS = {
    "every type of Avro": (stream_of(EVERYTHING), None),
    "nested Avro": (stream_of(NESTED, fields={"user_id": "user.id"}, partitioned_by="user_id"), None),
    "read_as": (stream_of(LOOSE, read_as=READ_AS, partitioned_by="user"), None),
    "JSON by an Avro schema": (stream_of(LOOSE, read_as=READ_AS, format="json"), None),
    "JSON": (stream_of(JSON_SCHEMA, format="json"), None),
    "Connect": (stream_of(JSON_SCHEMA, format="json", envelope="connect"), None),
    "Debezium": (stream_of(EVERYTHING, format="json", envelope="debezium"), None),
    "key and headers": (
        stream_of(EVERYTHING, key_column="k", key_format="int32", headers=["source"], partitioned_by="k"),
        None,
    ),
    "Protobuf": (stream_of(record("Order", *PROTOBUF_COLUMNS), format="protobuf"), PROTOBUF),
}


def made(plan, stream, schemas=None, *, seed=1, n_keys=20, n_rows=200):
    wire = wire_of(stream, schemas, 1, text=False)
    span = Span(present_us=lambda: NOON_US, over_us=HOUR_US)
    source = sample_of(plan, stream, span, wire, seed=seed, n_rows=n_rows, n_keys=n_keys)
    encoder = Encoder(stream, wire, text=False)
    return [encoder.event(row.values) for rows in source.pieces() for row in rows]


@pytest.mark.parametrize("name", STREAMS)
def test_every_event_is_read_and_the_same_seed_gives_the_same_ones(name):
    stream, file = STREAMS[name]
    plan = Plan(streams={stream.name: stream}, views=Versions(()))
    registry = Registry() if file is not None else None
    try:
        schemas = None
        if registry is not None:
            registry.put_protobuf(1, file)
            schemas = SchemaRegistry(f"http://{registry.address}", threading.Event())
        events = made(plan, stream, schemas)
        if not stream.headers:
            assert len(decoded(stream, events, schemas)) == 200
        assert events == made(plan, stream, schemas)
        assert events != made(plan, stream, schemas, seed=2)
    finally:
        if registry is not None:
            registry.close()
    assert [each.event_us for each in events] == [NOON_US - HOUR_US + HOUR_US * n // 200 for n in range(1, 201)]


@pytest.mark.parametrize("folder", ["complete_journey", "marketplace"])
def test_events_of_the_examples_have_few_keys_and_symbols_of_every_kind(folder):
    plan = load(ROOT / "examples" / folder)

    for stream in plan.streams.values():
        rows = decoded(stream, made(plan, stream, n_keys=6))
        (key,) = stream.partitioned_by
        assert {row[key] for row in rows} == set(range(1, 7))
        if "device" in stream.columns:
            assert len({row["device"] for row in rows}) == 3
            assert None in {row["dwell_s"] for row in rows}
        assert all(row[stream.event_time] <= datetime(2017, 1, 1, 12, tzinfo=UTC) for row in rows)


def test_with_a_rate_events_happen_as_they_are_made_without_an_end():
    stream, _ = STREAMS["JSON"]
    wire = wire_of(stream, None, 1, text=False)
    present = itertools.count(NOON_US, 50_000)
    span = Span(present_us=lambda: next(present), over_us=HOUR_US, rate=40.0)
    plan = Plan(streams={stream.name: stream}, views=Versions(()))
    source = sample_of(plan, stream, span, wire, seed=1, n_rows=None, n_keys=20)

    pieces = list(itertools.islice(source.pieces(), 5))

    encoder = Encoder(stream, wire, text=False)
    assert [len(rows) for rows in pieces] == [2] * 5
    assert [encoder.event_us(rows[0].values) - NOON_US for rows in pieces] == [50_000 * n for n in range(1, 6)]
