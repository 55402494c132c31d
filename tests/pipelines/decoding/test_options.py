"""What the options of a stream read is what plain Python reads from the raw messages, message by message."""

import base64
import io
import itertools
import json
import math
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from zoneinfo import ZoneInfo

import fastavro
import polars as pl
import pytest

from tests.support.polls import poll_of
from unskew.features.definitions import agg
from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.definitions.documents import definition_of
from unskew.features.definitions.streams import plan_stream
from unskew.features.definitions.vocabulary import Entity, Feature, FeatureView, Lifetime, Stream
from unskew.features.errors import DefinitionError
from unskew.pipelines.decoding.avro import decoder_of
from unskew.pipelines.decoding.resolve import Unregistered

NOON_MS = 1_483_272_000_000
NOON = datetime(2017, 1, 1, 12, tzinfo=UTC)
MILLIS = {"type": "long", "logicalType": "timestamp-millis"}
REFUSED = object()
IGNORED = object()


def stream(schema, **more):
    return plan_stream(Stream(**{"name": "s", "topic": "t", "schema": schema, "event_time": "at", **more}))


def faults(schema, **more):
    with pytest.raises(DefinitionError) as refused:
        stream(schema, **more)
    return refused.value.faults


def poll(values):
    return poll_of(values, NOON_MS * 1000)


def outcomes(decoder, values, columns):
    """By message: the values of its columns, REFUSED or IGNORED; the same alone, together, and among many."""
    found = []
    for batch in (values, values * 3):
        decoded = decoder.decode(poll(batch))
        assert not set(decoded.events["_offset"]) & set(decoded.dead["offset"])
        rows = dict(zip(decoded.events["_offset"], decoded.events.select(columns).rows(), strict=True))
        rows |= dict.fromkeys(decoded.dead["offset"], REFUSED)
        found.append([rows.get(at, IGNORED) for at in range(len(batch))])
    for value in values:
        decoded = decoder.decode(poll([value]))
        rows = decoded.events.select(columns).rows()
        found.append([rows[0] if rows else REFUSED if decoded.dead.height else IGNORED])
    together, many, *alone = found
    # As text, because NaN is not equal to itself.
    assert repr(many) == repr(together * 3)
    assert repr([each[0] for each in alone]) == repr(together)
    return together


def as_json(*events):
    return [json.dumps(event).encode() for event in events]


class Registered:
    def __init__(self, **schemas) -> None:
        self.schemas = {int(name[1:]): schema for name, schema in schemas.items()}

    def writer(self, schema_id, *, expected=False):
        if schema_id not in self.schemas:
            raise Unregistered(f"the registry has no such schema, {expected}")
        return self.schemas[schema_id]


def encode(schema, datum, schema_id=1):
    body = io.BytesIO()
    fastavro.schemaless_writer(body, fastavro.parse_schema(schema), datum)
    return b"\0" + schema_id.to_bytes(4, "big") + body.getvalue()


# Nested fields.

POINT = {"type": "record", "name": "Point", "fields": [{"name": "lat", "type": "double"}, {"name": "lon", "type": ["null", "double"]}]}  # fmt: skip
PLACES = {
    "type": "record",
    "name": "Visit",
    "fields": [
        {"name": "at", "type": MILLIS},
        {"name": "start", "type": POINT},
        {"name": "lat", "type": "string"},
        {"name": "end", "type": ["null", "Point"]},
        {"name": "shop", "type": {"type": "record", "name": "Shop", "fields": [{"name": "place", "type": ["null", "Point"]}, {"name": "kind", "type": {"type": "enum", "name": "K", "symbols": ["A", "B"]}}]}},
        {"name": "_id", "type": "long"},
    ],
}  # fmt: skip
PATHS = {
    "from_lat": "start.lat",
    "from_lon": "start.lon",
    "to_lat": "end.lat",
    "to_lon": "end.lon",
    "shop_lat": "shop.place.lat",
    "kind": "shop.kind",
    "id": "_id",
}
VISITS = [
    {"at": NOON, "start": {"lat": 1.5, "lon": lon}, "lat": "x", "end": end, "shop": {"place": place, "kind": kind}, "_id": number}
    for number, (lon, end, place, kind) in enumerate(
        itertools.product((None, 2.5), (None, {"lat": 3.5, "lon": None}), (None, {"lat": 4.5, "lon": 9.0}), "AB")
    )
]  # fmt: skip


def inside(event, path):
    for name in path.split("."):
        event = None if event is None else event[name]
    return event


def test_fields_inside_records_are_columns_and_null_where_what_is_around_them_is():
    found = outcomes(
        decoder_of(stream(PLACES, fields=PATHS)), [encode(PLACES, each) for each in VISITS], [*PATHS, "lat"]
    )

    assert found == [(*(inside(each, path) for path in PATHS.values()), "x") for each in VISITS]


def test_fields_inside_json_objects_are_columns_too():
    point = {"type": "object", "properties": {"lat": {"type": "number"}, "lon": {"type": ["number", "null"]}}, "required": ["lat"]}  # fmt: skip
    schema = {
        "type": "object",
        "properties": {
            "at": {"type": "integer", "format": "unix-time-ms"},
            "start": point,
            "end": {**point, "type": ["object", "null"]},
            "_id": {"type": "integer"},
        },
        "required": ["at", "start", "end"],
    }
    paths = {"from_lat": "start.lat", "to_lat": "end.lat", "to_lon": "end.lon", "id": "_id"}
    good = {"at": NOON_MS, "start": {"lat": 1, "more": {"lat": 5}}, "end": None, "_id": 7}
    events = {
        json.dumps(good): (1.0, None, None, 7),
        json.dumps({**good, "end": {"lat": 2.5, "lon": 3}}): (1.0, 2.5, 3.0, 7),
        json.dumps({**good, "end": {"lon": 3}}): REFUSED,
        json.dumps({**good, "start": None}): REFUSED,
        json.dumps({**good, "start": [1]}): REFUSED,
        json.dumps({"at": NOON_MS, "end": None}): REFUSED,
        json.dumps({"at": NOON_MS, "start": {"lat": 1}}): REFUSED,
        f'{{"at": {NOON_MS}, "start": {{"lat": 1, "lat": 2}}, "end": null}}': REFUSED,
        f'{{"at": {NOON_MS}, "start": {{"lat": 1}}, "end": null, "lat": 1, "lat": 2}}': (1.0, None, None, None),
    }
    decoder = decoder_of(stream(schema, format="json", fields=paths))

    assert outcomes(decoder, [text.encode() for text in events], list(paths)) == list(events.values())


def test_nested_fields_of_another_writer_are_resolved_by_name_and_alias_and_default():
    reader = json.loads(json.dumps(PLACES))
    reader["fields"][1]["aliases"] = ["begin"]
    reader["fields"][1]["type"]["fields"].append({"name": "height", "type": "int", "default": -1})
    writer = json.loads(json.dumps(PLACES).replace('"start"', '"begin"').replace('"double"', '"float"'))
    writer["fields"].reverse()
    # A named type must come before it is referred to.
    writer["fields"][1], writer["fields"][2] = ({**writer["fields"][1], "type": {**writer["fields"][1]["type"], "fields": [{"name": "place", "type": ["null", POINT]}, writer["fields"][1]["type"]["fields"][1]]}}, writer["fields"][2])  # fmt: skip
    writer = json.loads(json.dumps(writer))
    writer["fields"][4]["type"] = "Point"
    paths = {**PATHS, "height": "start.height"}
    data = [{("begin" if name == "start" else name): value for name, value in each.items()} for each in VISITS]
    decoder = decoder_of(stream(reader, fields=paths), Registered(_1=writer))
    found = outcomes(decoder, [encode(writer, each) for each in data], list(paths))

    assert found == [(*(inside(each, path) for path in PATHS.values()), -1) for each in VISITS]


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"x": "start.nothing"}, "no field 'start.nothing'"),
        ({"x": "at.lat"}, "'at' is not a record"),
        ({"x": "start"}, None),
        ({"x": ""}, "not a column and its path"),
        ({"_x": "start.lat"}, "not a column and its path"),
        (["start.lat"], "not a mapping"),
        ({"x": "start.lat", "y": "start.lat"}, "is read twice"),
        ({"lat": "start.lat", "id": "_id"}, "appears twice"),
    ],
)
def test_paths_are_checked(fields, fault):
    more = {"id": "_id"} if isinstance(fields, dict) else {}
    if fault is None:
        assert "x" not in stream(PLACES, fields={**fields, **more}).columns
    else:
        assert fault in "; ".join(faults(PLACES, fields={**fields, **more} if more else fields))


# How values are read.

READ = {
    "unix-s": [1_483_272_000, 1_483_272_000.123456, "1483272000", "1483272000.9999999", -1.5, "1e9", "x", "", True, 1e300, "1_0", " 1"],
    "unix-ms": [NOON_MS, NOON_MS + 0.25, str(NOON_MS), "1483272000000.0019", 1e18],
    "unix-us": [NOON_MS * 1000, str(NOON_MS * 1000), 2**63, "9" * 39],
    "unix-ns": [NOON_MS * 1_000_000, NOON_MS * 1_000_000 + 999, str(NOON_MS * 1_000_000 + 1_999)],
    "int64": [1, 1.0, "1", "1.0", "-7", 1e3, "1e3", 1.5, "1.5", 2**63, -(2**63), str(2**63 - 1), "0x1", [], {}],
    "float64": [1, 1.5, "1.5", "1e-3", "1e999", "nan", "Infinity", 2**70, "-0.0", False],
    "decimal(38,2)": [1, 1.25, "1.25", "1.250", "1.255", "-0.01", "92233720368547758.07", "92233720368547758.08", 0.1],
}  # fmt: skip
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
PER_SECOND = {"unix-s": 1, "unix-ms": 1000, "unix-us": 10**6, "unix-ns": 10**9}
FIRST, LAST = datetime(1900, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)


def by_python(form, value):
    """What a value is, by plain Python; its text is what JSON has between the commas."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return REFUSED
    text = value if isinstance(value, str) else json.dumps(value)
    try:
        if not all(letter in "0123456789.eE+-" for letter in text):
            return REFUSED
        number = Fraction(text)
    except ValueError:
        return REFUSED
    if form in PER_SECOND:
        us = math.floor(number * 10**6 / PER_SECOND[form])
        return EPOCH + timedelta(microseconds=us) if -(10**17) < us < 10**17 and FIRST <= EPOCH + timedelta(microseconds=us) < LAST else REFUSED  # fmt: skip
    if form == "int64":
        return int(number) if number.denominator == 1 and -(2**63) <= number < 2**63 else REFUSED
    if form == "float64":
        return float(text) if math.isfinite(float(text)) else REFUSED
    cents = number * 100
    return Decimal(int(cents)).scaleb(-2) if cents.denominator == 1 and -(2**63) <= cents < 2**63 else REFUSED


@pytest.mark.parametrize("form", READ)
def test_a_number_is_read_from_its_digits_whether_it_is_a_number_or_a_text(form):
    column = "at" if form in PER_SECOND else "v"
    at = {"type": "integer", "format": "unix-time-ms"}
    schema = {"type": "object", "properties": {"at": at, "v": at} | {column: {"type": ["number", "null"]}}}
    decoder = decoder_of(stream(schema, format="json", read_as={column: form}))
    values = as_json(*({"at": NOON_MS, "v": NOON_MS} | {column: value} for value in READ[form]))
    found = [each if each is REFUSED else each[0] for each in outcomes(decoder, values, [column])]

    assert found == [by_python(form, value) for value in READ[form]]
    assert any(each is not REFUSED for each in found)
    missing = outcomes(decoder, as_json({"at": NOON_MS} | {column: None}), [column])
    assert missing == [REFUSED if column == "at" else (None,)]


@pytest.mark.parametrize("form", READ)
def test_digits_of_other_scripts_are_not_numbers(form):
    column = "at" if form in PER_SECOND else "v"
    at = {"type": "integer", "format": "unix-time-ms"}
    schema = {"type": "object", "properties": {"at": at, "v": at} | {column: {"type": "string"}}}
    decoder = decoder_of(stream(schema, format="json", read_as={column: form}))
    values = as_json(*({"at": NOON_MS, "v": NOON_MS} | {column: value} for value in ("\u0661\u0662", "\uff11", "1")))

    assert [each is REFUSED for each in outcomes(decoder, values, [column])] == [True, True, False]


@pytest.mark.parametrize("form", READ)
@pytest.mark.parametrize(
    ("avro", "kinds"), [("long", int), ("double", float), ("string", str), (["null", "string"], str), ("int", int)]
)
def test_avro_s_numbers_and_texts_are_read_alike(form, avro, kinds):
    column = "at" if form in PER_SECOND else "v"
    fields = {"at": MILLIS, "v": MILLIS} | {column: avro}
    schema = {"type": "record", "name": "R", "fields": [{"name": name, "type": each} for name, each in fields.items()]}
    decoder = decoder_of(stream(schema, read_as={column: form}))
    least = 2**31 if avro == "int" else 2**63
    chosen = [
        value for value in READ[form] if type(value) is kinds and not (kinds is int and not -least <= value < least)
    ]
    values = [encode(schema, {"at": NOON, "v": NOON} | {column: value}) for value in chosen]
    found = [each if each is REFUSED else each[0] for each in outcomes(decoder, values, [column])] if chosen else []

    assert found == [by_python(form, value) for value in chosen]


TIMES = [
    "2017-01-01T12:00:00Z", "2017-01-01T14:00:00+0200", "2017-01-01 12:00:00+00:00", "2017-01-01T12:00:00.25+0000",
    "2016-12-31T23:59:60Z", "2017-01-01T00:59:60.5+01:00", "2017-01-01T12:00:60Z", "2017-01-01T12:00:00", "2017-07-01 12:00:00.5",
    "2017-03-26T02:30:00", "2017-10-29T02:30:00", "2017-10-29T03:30:00", "2017-01-01T25:00:00", "2017-02-29T00:00:00", "2017-01-01",
    "12:00", "", "2017-01-01T12:00:00+01",
]  # fmt: skip


def time_by_python(text, zone):
    leap = text[17:19] == "60"
    if "T" not in text.replace(" ", "T") or text.endswith("+01"):
        return REFUSED
    try:
        found = datetime.fromisoformat(text.replace(":60", ":59") if leap else text)
    except ValueError:
        return REFUSED
    if found.tzinfo is None:
        if zone is None:
            return REFUSED
        placed = found.replace(tzinfo=ZoneInfo(zone))
        if placed.astimezone(UTC).astimezone(ZoneInfo(zone)).replace(tzinfo=None) != found:
            return REFUSED
        found = placed
    found = found.astimezone(UTC)
    if leap:
        found += timedelta(seconds=1)
        return found if (found.hour, found.minute, found.second) == (0, 0, 0) else REFUSED
    return found


@pytest.mark.parametrize("zone", [None, "Europe/Berlin", "America/New_York", "UTC"])
def test_a_time_as_text_has_an_offset_or_the_declared_zone(zone):
    form = "iso" if zone is None else f"iso {zone}"
    expected = [time_by_python(text, zone) for text in TIMES]
    schema = {"type": "object", "properties": {"at": {"type": "string"}}}
    avro = {"type": "record", "name": "R", "fields": [{"name": "at", "type": "string"}]}
    for decoder, values in (
        (decoder_of(stream(schema, format="json", read_as={"at": form})), as_json(*({"at": text} for text in TIMES))),
        (decoder_of(stream(avro, read_as={"at": form})), [encode(avro, {"at": text}) for text in TIMES]),
    ):
        assert [each if each is REFUSED else each[0] for each in outcomes(decoder, values, ["at"])] == expected
    assert sum(each is not REFUSED for each in expected) >= 6


@pytest.mark.parametrize(
    ("read_as", "fault"),
    [
        ({"at": "unix"}, "is not a way to read a value; write one of unix-s"),
        ({"at": "iso Mars/Olympus"}, "is not a time zone"),
        ({"at": "decimal(38,99)"}, "is not a type"),
        ({"nothing": "int64"}, "no column 'nothing'"),
        ({"flag": "int64"}, "column 'flag' is Boolean already"),
        ({"seen": "unix-s"}, "is Datetime"),
        ({"n": "iso"}, "which is never an ISO time"),
        ("unix-s", "not a mapping"),
    ],
)
def test_ways_of_reading_are_checked(read_as, fault):
    fields = {"at": "long", "flag": "boolean", "seen": MILLIS, "n": "long"}
    schema = {"type": "record", "name": "R", "fields": [{"name": name, "type": avro} for name, avro in fields.items()]}

    assert fault in "; ".join(faults(schema, read_as=read_as))


# Envelopes.

ROW_JSON = {
    "type": "object",
    "properties": {"id": {"type": "integer"}, "amount": {"type": "number"}, "at": {"type": "integer", "format": "unix-time-us"}},
    "required": ["id", "at"],
}  # fmt: skip
ROW = {"id": 7, "amount": 1.5, "at": NOON_MS * 1000}


def test_kafka_connect_s_payload_is_the_event():
    decoder = decoder_of(stream(ROW_JSON, format="json", envelope="connect"))
    about = {"schema": {"type": "struct", "fields": []}}
    values = [
        *as_json(
            {**about, "payload": ROW}, {"payload": ROW}, {**about, "payload": None}, ROW, {**about, "payload": [1]}
        ),
        None,
        b'{"payload": {}, "payload": {}}',
        b"[]",
    ]

    assert outcomes(decoder, values, ["id", "amount"]) == [(7, 1.5)] * 2 + [REFUSED] * 6


@pytest.mark.parametrize("envelope", ["connect", "debezium"])
def test_an_envelope_is_opened_quickly_as_by_the_other_reader(envelope):
    row = json.dumps(ROW)
    rows = [row, row.replace("7", "-0"), row[:-1] + ', "id": 8}', row[:-1] + ', "x": {"id": 8}}', "null", "[1]", "{}", '{"id": 1.0, "at": 1}', "{", '"c"']  # fmt: skip
    marks = [
        '"op": "c"',
        '"op": "\\u0063"',
        '"op": "u"',
        '"op": 1',
        '"op": "c", "op": "c"',
        '"o\\u0070": "c"',
        '"x": 1',
    ]
    events = [
        f'{{{mark}, "before": {before}, "after": {each}}}'
        for mark, before, each in itertools.product(marks, ("null", row, '{"a": NaN}', '"\\ud800"'), rows)
    ]
    events += [f'{{{mark}, "before": null, "after": {row}, "after": {row}}}' for mark in marks] + [
        row,
        "",
        "1",
        '{"payload": 1}',
    ]
    texts = [*events, *(f'{{"schema": {{"a": "\\""}}, "payload": {each}}}' for each in [*events, *rows])]
    texts += [
        f'{{"payload": {events[0]}, "payload": {events[0]}}}',
        f'{{"payload": {events[0]}}} x',
        f'{{"payload": {row}, "op": "c"}}',
    ]
    values = [text.encode() for text in texts]
    quick, slow = (decoder_of(stream(ROW_JSON, format="json", envelope=envelope)) for _ in range(2))
    assert quick._quick
    slow._quick = False

    found = [each.decode(poll(values)) for each in (quick, slow)]
    assert found[0].events.equals(found[1].events)
    assert found[0].dead.equals(found[1].dead)
    assert quick.ignored == slow.ignored
    assert found[0].events.height > 3
    read, _ = quick._read_quickly(as_json({"op": "c", "before": None, "after": ROW, "payload": ROW}))
    assert len(read) == 1


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize(
    ("operations", "others"), [(["c"], "ignore"), (["c", "r"], "ignore"), (["c", "u"], "dead_letter")]
)
def test_rows_of_the_declared_operations_are_events_and_others_are_ignored_or_dead_letters(wrapped, operations, others):
    changes = [
        {
            "op": op,
            "before": None if op in "cr" else ROW,
            "after": None if op == "d" else {**ROW, "id": number},
            "ts_ms": 1,
        }
        for number, op in enumerate("crudcr")
    ]
    other = REFUSED if others == "dead_letter" else IGNORED
    expected = [(number,) if change["op"] in operations else other for number, change in enumerate(changes)]
    schema = {
        "type": "record",
        "name": "srv.shop.orders.Envelope",
        "fields": [
            {"name": "before", "type": ["null", {"type": "record", "name": "Value", "fields": [
                {"name": "id", "type": "long"},
                {"name": "amount", "type": ["null", "double"]},
                {"name": "at", "type": {"type": "long", "connect.version": 1, "connect.name": "io.debezium.time.MicroTimestamp"}},
            ]}]},
            {"name": "after", "type": ["null", "Value"]},
            {"name": "op", "type": "string"},
            {"name": "ts_ms", "type": ["null", "long"]},
        ],
    }  # fmt: skip
    row = {**schema["fields"][0]["type"][1], "namespace": "srv.shop.orders"}
    more = {"envelope": "debezium", "operations": operations, "other_operations": others}
    messages = as_json(*({"schema": {}, "payload": change} if wrapped else change for change in changes))
    avro = [encode(schema, change) for change in changes]
    for decoder, values in (
        (decoder_of(stream(ROW_JSON, format="json", **more)), messages),
        (decoder_of(stream(row, format="json", **more)), messages),
        (decoder_of(stream(schema, **more)), avro),
        (decoder_of(stream(schema, **more), Registered(_1=schema)), avro),
        (decoder_of(stream(row, **more), Registered(_1=schema)), avro),
    ):
        assert outcomes(decoder, [*values, None], ["id"]) == [*expected, other]
        assert decoder.decode(poll(values[:1])).events["_event_time"].to_list() == [NOON]
    kinds = decoder.decode(poll([*avro, None])).dead["kind"].to_list()
    assert kinds == ([] if others == "ignore" else ["operation"] * 3 + ["tombstone"])
    # Another table's change events have another namespace.
    elsewhere = json.loads(json.dumps(schema).replace("srv.shop.orders.", "srv.shop.users."))
    assert outcomes(decoder_of(stream(row, **more), Registered(_1=elsewhere)), avro[:1], ["id"]) == [IGNORED]


TIMES_OF_DEBEZIUM = {
    "Timestamp": ("long", NOON_MS + 1, "timestamp-millis"),
    "MicroTimestamp": ("long", NOON_MS * 1000 + 1000, "timestamp-micros"),
    "NanoTimestamp": ("long", NOON_MS * 1_000_000 + 1_000_000, "timestamp-nanos"),
}


@pytest.mark.parametrize("written", TIMES_OF_DEBEZIUM)
@pytest.mark.parametrize("wanted", ["timestamp-millis", "timestamp-micros"])
def test_debezium_s_times_have_their_unit_whatever_unit_the_stream_declares(written, wanted):
    avro, number, _ = TIMES_OF_DEBEZIUM[written]
    marked = {"type": avro, "connect.name": f"io.debezium.time.{written}"}
    writer = {"type": "record", "name": "R", "fields": [{"name": "at", "type": marked}]}
    reader = {
        "type": "record",
        "name": "R",
        "fields": [{"name": "at", "type": {"type": "long", "logicalType": wanted}}],
    }
    found = outcomes(decoder_of(stream(reader), Registered(_1=writer)), [encode(writer, {"at": number})], ["at"])

    assert found == [(NOON + timedelta(milliseconds=1),)]


def test_debezium_s_dates_and_times_of_day_have_their_unit_too():
    marked = {
        "Date": ("int", 17_000),
        "Time": ("int", 1),
        "MicroTime": ("long", 1_000),
        "NanoTime": ("long", 1_000_000),
    }
    row = {
        "type": "record",
        "name": "Value",
        "fields": [{"name": "at", "type": MILLIS}]
        + [{"name": name, "type": {"type": avro, "connect.name": f"io.debezium.time.{name}"}} for name, (avro, _) in marked.items()],
    }  # fmt: skip
    schema = {"type": "record", "name": "Envelope", "fields": [{"name": "after", "type": ["null", row]}, {"name": "op", "type": "string"}]}  # fmt: skip
    plan = stream(schema, envelope="debezium")
    datum = {"op": "c", "after": {"at": NOON, **{name: number for name, (_, number) in marked.items()}}}
    event = decoder_of(plan).decode(poll([encode(schema, datum)])).events

    assert plan.columns["Date"] == pl.Date()
    assert event["Date"].dt.to_string("%Y-%m-%d").to_list() == ["2016-07-18"]
    assert [event[name].dt.microsecond().to_list() for name in ("Time", "MicroTime", "NanoTime")] == [[1_000]] * 3


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ({"envelope": "avro"}, "is not known; write one of connect, debezium"),
        ({"envelope": "connect", "format": "avro"}, "is for JSON"),
        ({"envelope": "debezium", "operations": ["insert"]}, "they are c, r, u, d, t, m"),
        ({"envelope": "debezium", "operations": ["c", "d"]}, "has no row after it"),
        ({"operations": ["c", "r"]}, "are for envelope='debezium'"),
        ({"envelope": "debezium", "other_operations": "drop"}, "write one of ignore, dead_letter"),
    ],
)
def test_envelopes_are_checked(more, fault):
    assert fault in "; ".join(faults(ROW_JSON, **{"format": "json", **more}))


@pytest.mark.parametrize(
    ("schema", "named", "fault"),
    [
        (
            PLACES,
            "start",
            "field 'start' is of type record, which no expression and no aggregation takes; name what is inside",
        ),
        (
            PLACES
            | {"fields": [*PLACES["fields"][:-1], {"name": "tags", "type": {"type": "array", "items": "string"}}]},
            "tags",
            "field 'tags' is of type array",
        ),
        (
            {**ROW_JSON, "properties": {**ROW_JSON["properties"], "tags": {"type": "array"}}},
            "tags",
            "field 'tags' is of type array",
        ),
    ],
)
def test_a_view_that_names_a_list_or_a_record_is_refused_with_what_it_is(schema, named, fault):
    more = {"format": "json"} if "properties" in schema else {"fields": PATHS if named == "start" else {}}
    source = Stream("s", topic="t", schema=schema, event_time="at", **more)
    for feature in (
        Feature("f", agg.count_distinct(named), Lifetime()),
        Feature("f", agg.count(), Lifetime(), filter=f"{named} IS NOT NULL"),
    ):
        with pytest.raises(DefinitionError, match=fault):
            compile_definitions(FeatureView("v", entity=Entity("e", key="id"), stream=source, features=[feature]))


def test_the_same_words_in_yaml_give_the_same_plan():
    words = {
        "fields": {"lat": "geo.lat"},
        "read_as": {"amount": "decimal(38,2)"},
        "envelope": "debezium",
        "operations": ["c", "r"],
        "other_operations": "dead_letter",
        "format": "json",
    }
    schema = {**ROW_JSON, "properties": {**ROW_JSON["properties"], "geo": {"type": "object", "properties": {"lat": {"type": "number"}}}}}  # fmt: skip
    document = {"stream": {"name": "s", "topic": "t", "schema": schema, "event_time": "at", **words}}

    assert plan_stream(definition_of(document)) == stream(schema, **words)


def test_options_that_change_values_change_the_state_s_fingerprint_and_schema_ids_do_not():
    schema = {
        **PLACES,
        "fields": [*PLACES["fields"][:-1], {"name": "n", "type": "long"}, {"name": "user", "type": "string"}],
    }

    def fingerprint(**more):
        source = Stream("s", topic="t", schema=schema, event_time="at", **more)
        feature = Feature("f", agg.count(), Lifetime())
        view = FeatureView("v", entity=Entity("e", key="user"), stream=source, features=[feature])
        return compile_definitions(view).views["v"].state_fingerprint

    words = [
        {},
        {"fields": {"x": "start.lat"}},
        {"read_as": {"n": "unix-s"}},
        {"read_as": {"n": "unix-ms"}},
        {"records": ["Visit"]},
        {"envelope": "debezium"},
        {"envelope": "debezium", "operations": ["c", "r"]},
    ]
    assert len({fingerprint(**each) for each in words}) == len(words)
    assert fingerprint(schema_ids=[7, 8]) == fingerprint()
    assert fingerprint(envelope="debezium", other_operations="dead_letter") == fingerprint(envelope="debezium")


def test_a_stream_without_options_keeps_its_ways():
    plan = stream(PLACES | {"fields": PLACES["fields"][:3]})

    assert (plan.paths, plan.flat, plan.read_as, plan.envelope) == ({}, None, {}, None)
    assert plan.reader is plan.schema


def mutants(chance, value):
    """A message with a few bytes changed, cut off, or added."""
    octets = bytearray(value)
    for _ in range(chance.randint(1, 2)):
        at = chance.randrange(5, len(octets) + 1)
        match chance.randrange(4):
            case 0 if at < len(octets):
                octets[at] = chance.randrange(256)
            case 1 if at < len(octets):
                octets[at] ^= 1 << chance.randrange(8)
            case 2 if len(octets) > 7:
                del octets[at:]
            case _:
                octets.insert(at, chance.choice((0, 1, 2, 4, 0x80, 0xFF)))
    return bytes(octets)


@pytest.mark.parametrize("seed", range(2))
def test_of_mutated_messages_with_choices_what_is_taken_is_what_fastavro_reads(seed):
    chance = random.Random(seed)
    decoder = decoder_of(stream(PLACES, fields=PATHS))
    whole = [encode(PLACES, each) for each in VISITS]
    values = [value for each in whole for value in (each, *(mutants(chance, each) for _ in range(25)))]
    found = outcomes(decoder, values, [*PATHS, "lat"])
    schema = fastavro.parse_schema(PLACES)

    for value, read in zip(values, found, strict=True):
        assert read is not IGNORED
        if read is REFUSED:
            assert value not in whole
            continue
        body = io.BytesIO(value[5:])
        event = fastavro.schemaless_reader(body, schema, None)
        assert body.read() == b""
        assert repr(read) == repr((*(inside(event, path) for path in PATHS.values()), event["lat"]))
    assert 16 < sum(read is not REFUSED for read in found) < len(values)


def test_json_that_is_read_quickly_is_read_as_by_the_other_reader():
    properties = {
        "at": {"type": "integer", "format": "unix-time-ms"},
        "v": {"type": ["number", "null"]},
        "in": {"type": ["object", "null"], "properties": {"s": {"type": "string"}, "v": {"type": "integer"}}},
    }
    plan = stream({"type": "object", "properties": properties}, format="json", fields={"s": "in.s", "n": "in.v"}, read_as={"v": "decimal(38,2)"})  # fmt: skip
    parts = ["1", "1.5", "-0", "01", "1.", "1e2", '"1"', '"\\u0031"', '"\\ud800"', "null", "true", "{}", "[1]", '"x"', "NaN", "1 2", '"', ""]  # fmt: skip
    texts = [
        f'{{"at": {NOON_MS}, "v": {part}, "in": {{"s": {other}, "v": 1}}, "w": {more}}}'
        for part, other, more in itertools.product(parts, ('"a"', "null", "1", '"a", "s": "b"', '"\\ud800"'), ("1", '{"s": "z", "v": 2}'))
    ]  # fmt: skip
    texts += [f'{{"at": {NOON_MS}, "in": {each}}}' for each in ("null", "{}", "1", '{"v": null}', '{"v": 1, "v": 2}')]
    values = [text.encode("utf-8", "surrogatepass") for text in texts]
    quick, slow = decoder_of(plan), decoder_of(plan)
    assert quick._quick
    slow._quick = False

    found = outcomes(quick, values, ["v", "s", "n"])
    assert found == outcomes(slow, values, ["v", "s", "n"])
    assert quick.decode(poll(values)).dead.equals(slow.decode(poll(values)).dead)
    assert 10 < sum(each is not REFUSED for each in found) < len(found)


def test_types_that_are_named_twice_or_contain_themselves_are_read_around():
    kind = {"type": "enum", "name": "shop.K", "symbols": ["A", "B"]}
    node = {
        "type": "record",
        "name": "shop.Node",
        "fields": [
            {"name": "next", "type": ["null", "shop.Node"]},
            {"name": "kind", "type": kind},
            {"name": "other", "type": "shop.K"},
            {"name": "v", "type": ["null", "double", "string"]},
            {"name": "in", "type": ["null", {"type": "record", "name": "In", "fields": [
                {"name": "back", "type": ["null", "shop.Node"]}, {"name": "again", "type": ["null", "In"]}, {"name": "kind", "type": "shop.K"},
            ]}]},
            {"name": "at", "type": MILLIS},
        ],
    }  # fmt: skip
    leaf = {"next": None, "kind": "B", "other": "A", "v": 0.5, "in": None, "at": NOON}
    events = [
        {**leaf, "next": leaf, "v": 1.5, "in": {"back": leaf, "again": {"back": None, "again": None, "kind": "A"}, "kind": "B"}},
        {**leaf, "v": None},
    ]  # fmt: skip
    reader = json.loads(json.dumps(node).replace('"double", "string"', '"double"'))
    union = ["null", node, {"type": "record", "name": "shop.Other", "fields": [{"name": "kind", "type": "shop.K"}]}]
    columns = ["kind", "other", "v", "inner"]
    expected = [("B", "A", 1.5, "B"), ("B", "A", None, None)]
    for plan, writer in (
        (stream(reader, fields={"inner": "in.kind"}), None),
        (stream(reader, fields={"inner": "in.kind"}), node),
        (stream(reader, fields={"inner": "in.kind"}), union),
    ):
        schema = writer or reader
        values = [encode(schema, ("shop.Node", event) if writer is union else event) for event in events]
        decoder = decoder_of(plan, None if writer is None else Registered(_1=writer))
        assert outcomes(decoder, values, columns) == expected
    # Without options too, a union in a field is decided beside such types.
    plain = decoder_of(stream(reader), Registered(_1=node))
    assert outcomes(plain, [encode(node, event) for event in events], columns[:3]) == [each[:3] for each in expected]


def connect_decimal(number, scale):
    """A decimal as Kafka Connect's JSON converter writes it: its unscaled number as bytes, in base64."""
    unscaled = int(Decimal(number).scaleb(scale))
    return base64.b64encode(unscaled.to_bytes(unscaled.bit_length() // 8 + 1, "big", signed=True)).decode()


def connect_schema(amount, envelope):
    row = [{"field": "at", "type": "int64"}, {"field": "amount", **amount}]
    if envelope == "connect":
        return {"type": "struct", "fields": row}
    return {
        "type": "struct",
        "fields": [{"field": "after", "type": "struct", "fields": row}, {"field": "op", "type": "string"}],
    }


def decimal_type(scale):
    return {
        "type": "bytes",
        "name": "org.apache.kafka.connect.data.Decimal",
        "version": 1,
        "parameters": {"scale": scale, "connect.decimal.precision": "18"},
    }


VARIABLE = {"type": "struct", "name": "io.debezium.data.VariableScaleDecimal"}
DECIMALS = [
    # the schema of the field, its value as JSON, the column
    (decimal_type("2"), connect_decimal("-1.50", 2), Decimal("-1.50")),
    (decimal_type("2"), "1234", Decimal("-26588.24")),  # d7 6d f8 in base64, though it looks like a number
    (decimal_type(0), connect_decimal("255", 0), Decimal("255.00")),
    (decimal_type("-2"), connect_decimal("300", -2), Decimal("300.00")),
    (decimal_type("4"), connect_decimal("0.0100", 4), Decimal("0.01")),
    (decimal_type("4"), connect_decimal("0.0101", 4), "range: amount: '0.0101' has more than 2 digits"),
    (decimal_type("2"), 1.5, Decimal("1.50")),  # decimal.format=NUMERIC
    (decimal_type("2"), None, None),
    (decimal_type("2"), "", "type: amount: '' is not a decimal as bytes in base64"),
    (decimal_type("2"), "1.50", "type: amount: '1.50' is not a decimal as bytes in base64"),
    (decimal_type("2"), connect_decimal(10**39, 2), "range: amount has more than 38 digits"),
    (decimal_type("-38"), connect_decimal(10**39, -38), "range: amount has more than 38 digits"),
    (decimal_type("x"), connect_decimal("1", 0), "schema: amount is a decimal with the scale 'x', not one of up to 38"),
    (decimal_type("39"), connect_decimal("1", 0), "schema: amount is a decimal with the scale '39'"),
    ({**decimal_type("2"), "parameters": None}, "AQ==", "schema: amount is a decimal with the scale 'None'"),
    ({"type": "string"}, "1234", Decimal("1234.00")),  # decimal.handling.mode=string
    ({"type": "double"}, 0.1, Decimal("0.10")),  # decimal.handling.mode=double
    (VARIABLE, {"scale": 1, "value": connect_decimal("-2.5", 1)}, Decimal("-2.50")),
    (VARIABLE, {"value": connect_decimal("7", 0), "scale": 0}, Decimal("7.00")),
    (VARIABLE, {"scale": 1}, "type: amount is an object, neither a number nor a text nor a VariableScaleDecimal"),
    (VARIABLE, {"scale": 1, "value": 5}, "type: amount is an object"),
    (VARIABLE, {"scale": None, "value": "AQ=="}, "schema: amount is a decimal with the scale 'None'"),
    (None, "1.5", Decimal("1.50")),  # without a schema a text is a text
    (None, "AQ==", "type: amount: 'AQ==' is not a number"),
]


@pytest.mark.parametrize("envelope", ["connect", "debezium"])
def test_decimals_of_connect_are_read_by_the_schema_that_comes_with_them(envelope):
    schema = {
        "type": "object",
        "properties": {"amount": {"type": ["string", "null"]}, "at": {"type": "integer", "format": "unix-time-ms"}},
    }
    plan = stream(schema, format="json", envelope=envelope, read_as={"amount": "decimal(38,2)"})

    def value(about, amount, **more):
        row = {"at": NOON_MS, "amount": amount, **more}
        payload = row if envelope == "connect" else {"before": {"amount": 1}, "after": row, "op": "c"}
        return json.dumps({"schema": about and connect_schema(about, envelope), "payload": payload})

    values = [value(about, amount).encode() for about, amount, _ in DECIMALS]
    # A zero with a sign, in a field that is not read, sends the message to the other reader.
    odd = [value(about, amount, other=0).replace('"other": 0', '"other": -0').encode() for about, amount, _ in DECIMALS]
    deep = b'{"schema": ' + b'{"fields": [' * 400 + b"]}" * 400 + b', "payload": ' + values[-2].split(b'"payload": ')[1]

    for batch in (values, odd, [deep, *values]):
        shift = len(batch) - len(values)
        decoder = decoder_of(plan)
        decoded = decoder.decode(poll(batch))
        read = dict(decoded.events.select("_offset", "amount").rows())
        said = dict(decoded.dead.select("offset", pl.concat_str("kind", "reason", separator=": ")).rows())
        for number, (_, _, expected) in enumerate(DECIMALS):
            at = number + shift
            if isinstance(expected, str):
                assert said[at].startswith(expected), (number, said[at])
            else:
                assert at in read, (number, said.get(at))
                assert read[at] == expected, number
