"""What the columnar decoder gives is what fastavro gives message by message, whatever the bytes."""

import io
import json
import logging
import math
from datetime import UTC, datetime

import fastavro
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import plans
from unskew.features.definitions.avro_schema import avro_columns
from unskew.pipelines.decoding.avro import DEAD_LETTER_SCHEMA, AvroDecoder
from unskew.pipelines.decoding.avro_walk import Wire, varint
from unskew.pipelines.kafka.blobs import NO_BLOBS, Blobs
from unskew.pipelines.kafka.poll import Poll, Rejected

MILLIS = {"type": "long", "logicalType": "timestamp-millis"}
MICROS = {"type": "long", "logicalType": "timestamp-micros"}

EVERYTHING = {
    "type": "record",
    "name": "Everything",
    "namespace": "shop",
    "fields": [
        {"name": "text", "type": "string"},
        {"name": "small", "type": "int"},
        {"name": "whole", "type": "long"},
        {"name": "real", "type": "double"},
        {"name": "short_real", "type": "float"},
        {"name": "flag", "type": "boolean"},
        {"name": "maybe_whole", "type": ["null", "long"]},
        {"name": "maybe_text", "type": ["string", "null"]},
        {"name": "maybe_flag", "type": ["null", "boolean"]},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["A", "B", "C"]}},
        {"name": "maybe_kind", "type": ["null", "Kind"]},
        {"name": "blob", "type": "bytes"},
        {"name": "code", "type": {"type": "fixed", "name": "Code", "size": 3}},
        {"name": "maybe_code", "type": ["Code", "null"]},
        {"name": "seen_at", "type": ["null", MICROS]},
        {"name": "event_time", "type": MILLIS},
    ],
}
PLAIN = json.loads(json.dumps(EVERYTHING).replace('"logicalType"', '"was"'))
WRITER = fastavro.parse_schema(PLAIN)
FRAME = b"\0\0\0\0\x07"
NOON_MS = 1_483_272_000_000


def stream(schema=EVERYTHING, event_time="event_time", **options):
    columns, faults = avro_columns(schema)
    assert not faults
    return plans.stream(schema=schema, columns=columns, event_time=event_time, **options)


def poll(values, rejected=()):
    offsets = np.arange(len(values), dtype=np.int64) + 100
    arrivals = offsets * 1_000 + NOON_MS * 1_000
    keys = [b"k%d" % offset for offset in offsets]
    return Poll(
        "stream",
        3,
        int(arrivals[-1]) if values else None,
        False,
        offsets,
        arrivals,
        Blobs.of(keys),
        Blobs.of(values),
        list(rejected),
    )


def encode(record, schema=WRITER):
    body = io.BytesIO()
    fastavro.schemaless_writer(body, schema, record)
    return FRAME + body.getvalue()


def read_alone(value):
    """One message as fastavro reads it, or None where it is no event: the oracle."""
    if value is None or len(value) < 5 or value[0] != 0:
        return None
    body = io.BytesIO(value[5:])
    try:
        record = fastavro.schemaless_reader(body, WRITER, None)
    except Exception:  # noqa: BLE001 - fastavro raises what its steps happen to raise
        return None
    if body.tell() != len(value) - 5 or not -(2**31) <= record["small"] < 2**31:
        return None
    if not -2_208_988_800_000 <= record["event_time"] < 7_258_118_400_000:
        return None
    if record["seen_at"] is not None and not -62_135_596_800_000_000 <= record["seen_at"] < 253_402_300_800_000_000:
        return None
    return record


def same(one, other):
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    return type(one) is type(other) and one == other


def as_wire(events):
    """Decoded payload as numbers on the wire again."""
    return events.select(
        pl.col("seen_at").dt.timestamp("us"),
        pl.col("event_time").dt.timestamp("ms"),
        pl.exclude("seen_at", "event_time", "^_.*$"),
    ).to_dicts()


records = st.fixed_dictionaries(
    {
        "text": st.one_of(st.text(max_size=8), st.just(FRAME.decode()), st.just("x" * 70)),
        "small": st.integers(-(2**31), 2**31 - 1),
        "whole": st.integers(-(2**63), 2**63 - 1),
        "real": st.floats(),
        "short_real": st.floats(width=32),
        "flag": st.booleans(),
        "maybe_whole": st.none() | st.integers(-(2**63), 2**63 - 1),
        "maybe_text": st.none() | st.text(max_size=4),
        "maybe_flag": st.none() | st.booleans(),
        "kind": st.sampled_from("ABC"),
        "maybe_kind": st.none() | st.sampled_from("ABC"),
        "blob": st.binary(max_size=8) | st.just(FRAME * 2),
        "code": st.binary(min_size=3, max_size=3),
        "maybe_code": st.none() | st.binary(min_size=3, max_size=3),
        "seen_at": st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(0, 2**50),
        "event_time": st.integers(NOON_MS - 10**9, NOON_MS + 10**9) | st.integers(-(2**63), 2**63 - 1),
    }
)
messages = records.map(encode)


@st.composite
def batches(draw):
    """Messages in which some are spoiled, alone or together with a neighbour."""
    batch = draw(st.lists(messages, min_size=1, max_size=8))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(batch) - 1))
        value = batch[at]
        if value is None or not value:
            continue
        cut = draw(st.integers(0, len(value)))
        match draw(
            st.sampled_from(
                [
                    "flip",
                    "set",
                    "cut",
                    "start",
                    "extend",
                    "move",
                    "swap",
                    "insert",
                    "frame",
                    "drop",
                    "random",
                    "tombstone",
                ]
            )
        ):
            case "flip":
                bit = draw(st.integers(0, len(value) * 8 - 1))
                spoiled = bytearray(value)
                spoiled[bit // 8] ^= 1 << bit % 8
                batch[at] = bytes(spoiled)
            case "set":
                batch[at] = (
                    value[:cut] + draw(st.sampled_from([b"\0", b"\x01", b"\x02", b"\x80", b"\xff"])) + value[cut + 1 :]
                )
            case "cut":
                batch[at] = value[:cut]
            case "start":
                batch[at] = value[cut:]
            case "extend":
                batch[at] = value + draw(st.binary(min_size=1, max_size=4))
            case "move" if at + 1 < len(batch) and batch[at + 1] is not None:
                batch[at : at + 2] = [value[:cut], value[cut:] + batch[at + 1]]
            case "swap" if at + 1 < len(batch) and batch[at + 1]:
                other = batch[at + 1]
                batch[at : at + 2] = [value[:cut] + other[cut:], other[:cut] + value[cut:]]
            case "insert":
                batch[at] = value[:cut] + draw(st.binary(min_size=1, max_size=4)) + value[cut:]
            case "frame":
                batch[at] = value[:cut] + FRAME + value[cut:]
            case "drop":
                batch[at] = value[:cut] + value[cut + 1 :]
            case "random":
                batch[at] = draw(st.binary(max_size=30))
            case "tombstone":
                batch[at] = None
            case _:
                pass
    return batch


@given(batches())
def test_a_batch_reads_as_its_messages_read_alone(batch):
    alone = {100 + row: record for row, value in enumerate(batch) if (record := read_alone(value)) is not None}

    decoded = AvroDecoder(stream()).decode(poll(batch))

    assert decoded.events["_offset"].to_list() == list(alone)
    for read, expected in zip(as_wire(decoded.events), alone.values(), strict=True):
        assert {
            column: (read[column], expected[column]) for column in expected if not same(read[column], expected[column])
        } == {}
    assert decoded.dead["offset"].to_list() == [100 + row for row in range(len(batch)) if 100 + row not in alone]
    assert decoded.dead["value"].to_list() == [value for row, value in enumerate(batch) if 100 + row not in alone]
    assert decoded.dead["reason"].null_count() == 0


@given(st.lists(messages, min_size=1, max_size=8), st.binary(max_size=40), st.data())
def test_a_message_that_passes_the_check_passes_with_fastavro_too(batch, noise, data):
    cut = data.draw(st.integers(5, len(batch[0])))
    spoiled = [batch[0][:cut] + noise, *batch[1:], FRAME + noise]
    passed = Wire(EVERYTHING).check(Blobs.of(spoiled), None)

    for value, good in zip(spoiled, passed, strict=True):
        if good:
            body = io.BytesIO(value[5:])
            fastavro.schemaless_reader(body, WRITER, None)
            assert body.tell() == len(value) - 5


@given(st.lists(messages, min_size=1, max_size=8))
def test_well_formed_messages_are_read_in_one_piece(batch):
    wire = Wire(EVERYTHING)

    assert wire.check(Blobs.of(batch), None).all()
    assert wire.read(Blobs.of(batch)).height == len(batch)


@given(st.lists(st.binary(max_size=6) | st.text(max_size=4).map(str.encode), max_size=12))
def test_the_check_knows_utf8_as_python_does(texts):
    schema = {"type": "record", "name": "T", "fields": [{"name": "text", "type": "string"}]}
    values = [FRAME + varint(len(text)) + text for text in texts]

    def valid(text):
        try:
            text.decode()
        except UnicodeDecodeError:
            return False
        return True

    assert Wire(schema).check(Blobs.of(values), None).tolist() == [valid(text) for text in texts]


def test_every_single_byte_of_lead_and_continuation_is_judged_as_python_judges_it():
    schema = {"type": "record", "name": "T", "fields": [{"name": "text", "type": "string"}]}
    texts = [
        bytes([lead, second, *rest])
        for lead in range(0x80, 0x100)
        for second in range(0x7F, 0xC1)
        for rest in ([], [0x80], [0x80, 0xBF])
    ]
    passed = Wire(schema).check(Blobs.of(FRAME + varint(len(text)) + text for text in texts), None)

    assert [text for text, good in zip(texts, passed, strict=True) if good] == [
        text for text in texts if text.decode(errors="replace").encode() == text
    ]


def test_frames_inside_a_payload_cannot_shift_a_neighbour():
    # first:   frame | length 17 | abc                        14 bytes short
    # second:  frame | length 27 | padding | time | frame | 3 | xyz | time   good; its blob holds a frame and a record
    # joined:  frame | length 17 | abc ......... | time | frame | 3 | xyz | time
    schema = {
        "type": "record",
        "name": "T",
        "fields": [{"name": "blob", "type": "bytes"}, {"name": "event_time", "type": MILLIS}],
    }
    time = varint(NOON_MS)
    padding = b"padding."
    blob = padding + time + FRAME + varint(3) + b"xyz"
    second = FRAME + varint(len(blob)) + blob + time
    first = FRAME + varint(len(b"abc") + len(FRAME) + 1 + len(padding)) + b"abc"
    # Read in one piece: two rows, both frames right, nothing left over. What is decoded cannot tell.
    assert Wire(schema).read(Blobs.of([first, second]))["blob"].to_list() == [b"abc" + second[:6] + padding, b"xyz"]

    decoded = AvroDecoder(stream(schema)).decode(poll([first, second]))

    assert decoded.dead.select("offset", "reason").rows() == [(100, "truncated")]
    assert decoded.events.select("_offset", "blob").rows() == [(101, blob)]


WHOLE = {
    "text": "é",
    "small": 1,
    "whole": 2,
    "real": 0.5,
    "short_real": 0.25,
    "flag": True,
    "maybe_whole": None,
    "maybe_text": None,
    "maybe_flag": None,
    "kind": "B",
    "maybe_kind": None,
    "blob": b"",
    "code": b"abc",
    "maybe_code": None,
    "seen_at": None,
    "event_time": NOON_MS,
}
GOOD = encode(WHOLE)


@pytest.mark.parametrize(
    ("value", "kind", "reason"),
    [
        (None, "tombstone", "empty value (tombstone)"),
        (b"", "truncated", "truncated"),
        (FRAME[:3], "truncated", "truncated"),
        (FRAME, "truncated", "truncated"),
        (b"{}", "frame", "wrong magic byte"),
        (b"\x01" + GOOD[1:], "frame", "wrong magic byte"),
        (GOOD[:-1], "truncated", "truncated"),
        (GOOD + b"\0\0", "trailing", "2 trailing bytes"),
        (GOOD.replace("é".encode(), b"\xff\xfe"), "encoding", "invalid UTF-8"),
        (FRAME + b"\x00" + varint(2**40) + GOOD[9:], "range", "small: 1099511627776 does not fit its type"),
        (encode({**WHOLE, "event_time": 2**61}), "time", f"event_time {2**61} is outside 1900..2200"),
        (encode({**WHOLE, "event_time": -(2**62)}), "time", f"event_time {-(2**62)} is outside 1900..2200"),
        (encode({**WHOLE, "event_time": 7_258_118_400_000}), "time", "event_time 7258118400000 is outside 1900..2200"),
        (encode({**WHOLE, "seen_at": 2**62}), "range", f"seen_at {2**62} is outside years 1..9999"),
    ],
)
def test_a_bad_message_is_a_dead_letter_with_its_reason_and_bytes(value, kind, reason):
    decoded = AvroDecoder(stream()).decode(poll([GOOD, value, GOOD]))

    assert decoded.events["_offset"].to_list() == [100, 102]
    assert decoded.dead.schema == DEAD_LETTER_SCHEMA
    arrival = datetime(2017, 1, 1, 12, 0, 0, 101_000, tzinfo=UTC)
    n_bytes = None if value is None else len(value)
    assert decoded.dead.rows() == [
        ("topic", 3, 101, arrival, None, reason, b"k101", value, kind, 4, n_bytes, None, None)
    ]


def test_a_null_event_time_is_a_dead_letter():
    schema = {"type": "record", "name": "T", "fields": [{"name": "at", "type": ["null", MICROS]}]}
    decoded = AvroDecoder(stream(schema, "at")).decode(poll([FRAME + b"\0", FRAME + b"\x02" + varint(NOON_MS * 1000)]))

    assert decoded.dead.select("offset", "reason").rows() == [(100, "event_time is null")]
    assert decoded.events["_event_time"].dt.timestamp("ms").to_list() == [NOON_MS]


def test_an_event_older_than_max_age_is_a_dead_letter():
    # Arrivals are 100 and 101 ms past noon.
    values = [encode({**WHOLE, "event_time": NOON_MS - ago}) for ago in (899, 900, -5_000)]
    decoded = AvroDecoder(stream(max_age_us=1_000_000)).decode(poll(values))

    assert decoded.dead.select("offset", "reason").rows() == [(101, "older than max_age (1s)")]
    assert decoded.events["_offset"].to_list() == [100, 102]


def test_an_unknown_schema_id_is_a_dead_letter_where_ids_are_given():
    other = b"\0\0\0\x01\x00" + GOOD[5:]
    values = [GOOD, other, GOOD]

    assert AvroDecoder(stream(schema_ids=(7, 9))).decode(poll(values)).dead.select("offset", "reason").rows() == [
        (101, "unknown schema id 256; the stream's schema_ids are 7, 9")
    ]
    assert AvroDecoder(stream(schema_ids=(7, 256))).decode(poll(values)).dead.height == 0
    assert AvroDecoder(stream()).decode(poll(values)).events["_offset"].to_list() == [100, 101, 102]


def test_columns_have_the_types_of_the_plan_in_its_order(caplog):
    plan = stream()
    instant = pl.Datetime("us", "UTC")
    expected = {
        **plan.columns,
        "_partition": pl.Int32(),
        "_offset": pl.Int64(),
        "_arrival": instant,
        "_event_time": instant,
    }

    with caplog.at_level(logging.WARNING):
        for values in ([GOOD] * 3, [None], [GOOD[:-1], GOOD], []):
            decoded = AvroDecoder(plan).decode(poll(values))
            assert decoded.events.schema == pl.Schema(expected)
            assert decoded.dead.schema == DEAD_LETTER_SCHEMA
    assert not caplog.records


def test_values_of_a_record_come_out_as_they_went_in():
    record = {
        **WHOLE,
        "maybe_flag": False,
        "maybe_kind": "C",
        "maybe_code": b"\0\1\2",
        "seen_at": 1_483_272_000_000_001,
    }
    decoded = AvroDecoder(stream()).decode(poll([encode(record)]))

    noon = datetime(2017, 1, 1, 12, tzinfo=UTC)
    assert decoded.events.to_dicts() == [
        {
            **record,
            "seen_at": noon.replace(microsecond=1),
            "event_time": noon,
            "_partition": 3,
            "_offset": 100,
            "_arrival": noon.replace(microsecond=100_000),
            "_event_time": noon,
        }
    ]


def test_records_the_source_rejected_are_dead_letters_too():
    rejected = [Rejected(99, None, "the record has no timestamp", b"key", None)]
    decoded = AvroDecoder(stream()).decode(poll([GOOD, None], rejected))

    assert decoded.dead.select("offset", "arrival", "reason").rows() == [
        (99, None, "the record has no timestamp"),
        (101, datetime(2017, 1, 1, 12, 0, 0, 101_000, tzinfo=UTC), "empty value (tombstone)"),
    ]


def test_a_union_that_polars_cannot_read_is_read_message_by_message():
    schema = {
        "type": "record",
        "name": "T",
        "fields": [{"name": "n", "type": ["long"]}, {"name": "at", "type": MICROS}],
    }
    value = FRAME + b"\0" + varint(5) + varint(NOON_MS * 1000)
    decoded = AvroDecoder(stream(schema, "at")).decode(poll([value, value[:-1], value]))

    assert decoded.events.select("_offset", "n").rows() == [(100, 5), (102, 5)]
    assert decoded.dead.select("offset", "reason").rows() == [(101, "truncated")]


def test_a_poll_keeps_its_clock_and_end():
    empty = np.empty(0, np.int64)
    decoded = AvroDecoder(stream()).decode(Poll("stream", 3, None, True, empty, empty, NO_BLOBS, NO_BLOBS, []))

    assert (decoded.stream, decoded.partition, decoded.clock_us, decoded.ended) == ("stream", 3, None, True)
