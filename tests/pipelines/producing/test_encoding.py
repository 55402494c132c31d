"""What is written of a row is what the pipeline's own decoder reads: every type, format and kind of file."""

import base64
import csv
import gzip
import io
import json
import math
import threading
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

import fastavro
import msgspec
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pipelines.decoding.test_protobuf import AT, IMPORTS, SCALARS, enum, field, file, message
from tests.pipelines.decoding.test_writers import poll
from tests.support.schema_registry import Registry
from unskew.features.definitions.streams import plan_stream
from unskew.features.definitions.vocabulary import Stream
from unskew.pipelines.decoding.avro import decoder_of
from unskew.pipelines.decoding.schema_registry import SchemaRegistry
from unskew.pipelines.kafka.blobs import Blobs
from unskew.pipelines.kafka.headers import Headers
from unskew.pipelines.kafka.partitioners import crc32
from unskew.pipelines.producing.encoding import Encoder, wire_of
from unskew.pipelines.producing.rows import source_of
from unskew.pipelines.producing.scalars import Unfit

NOON = datetime(2017, 1, 1, 12, tzinfo=UTC)
INT32, INT64 = (-(2**31), 2**31 - 1), (-(2**63), 2**63 - 1)


def logical(kind, name, **more):
    return {"type": kind, "logicalType": name, **more}


# Each readable type, and what is drawn for it.
def moments(first, last):
    return st.datetimes(*map(datetime.fromisoformat, (first, last)), timezones=st.just(UTC))


MOMENTS = moments("0001-01-02", "9999-12-30")
MILLIS = MOMENTS.map(lambda found: found.replace(microsecond=found.microsecond // 1000 * 1000))
# A count of nanoseconds in 64 bits ends in the year 2262.
NANOS = moments("1700-01-01", "2262-01-01")
CENTS = st.integers(*INT64).map(lambda units: Decimal(units).scaleb(-2))
SHORT = st.integers(-(2**31), 2**31 - 1).map(lambda units: Decimal(units).scaleb(-3))
TEXTS = st.text(max_size=6) | st.sampled_from(["", " ", '"', "a,b", "line\nbreak", "\r", "null", "-0", "é😀", "\0"])
TYPES = {
    "flag": ("boolean", st.booleans()),
    "small": ("int", st.integers(*INT32)),
    "whole": ("long", st.integers(*INT64)),
    "short_real": ("float", st.floats(width=32)),
    "real": ("double", st.floats()),
    "words": ("string", TEXTS),
    "blob": ("bytes", st.binary(max_size=6)),
    "kind": ({"type": "enum", "name": "Kind", "symbols": ["A", "B"]}, st.sampled_from("AB")),
    "code": ({"type": "fixed", "name": "Code", "size": 3}, st.binary(min_size=3, max_size=3)),
    "day": (logical("int", "date"), st.dates()),
    "clock_millis": (
        logical("int", "time-millis"),
        st.times().map(lambda found: found.replace(microsecond=found.microsecond // 1000 * 1000)),
    ),
    "clock_micros": (logical("long", "time-micros"), st.times()),
    "clock_nanos": (logical("long", "time-nanos"), st.times()),
    "at_millis": (logical("long", "timestamp-millis"), MILLIS),
    "at_micros": (logical("long", "timestamp-micros"), MOMENTS),
    "at_nanos": (logical("long", "timestamp-nanos"), NANOS),
    "local_micros": (logical("long", "local-timestamp-micros"), MOMENTS),
    "price": (logical("bytes", "decimal", precision=20, scale=2), CENTS),
    "weight": (
        {"type": "fixed", "name": "Weight", "size": 5, "logicalType": "decimal", "precision": 10, "scale": 3},
        SHORT,
    ),
    "id": (logical("string", "uuid"), st.uuids().map(str)),
}
EVENT_TIMES = moments("1900-01-02", "2199-12-30")


KINDS = ("jsonl", "csv", "parquet")


def schema_of(avro):
    """A value, one that may be null, and the event time. A schema defines each name once."""
    other = {**avro, "name": "Other"} if isinstance(avro, dict) and "name" in avro else avro
    fields = (("value", avro), ("maybe", ["null", other]), ("at", logical("long", "timestamp-micros")))
    return {"type": "record", "name": "Event", "fields": [{"name": name, "type": kind} for name, kind in fields]}


def rows_of(values, kind):
    """Rows with these values. In CSV an empty cell is null where it may be."""
    empty = {"", b""} if kind == "csv" else set()
    maybe = [None if n % 2 or value in empty else value for n, value in enumerate(values)]
    return [{"value": one, "maybe": other, "at": NOON} for one, other in zip(values, maybe, strict=True)]


class _Raw(float):
    """A number that is written into JSON digit by digit, as ``text``."""

    text = "0"


def in_json(value):
    match value:
        case bool() | int() | str() | None:
            return value
        case bytes():
            return base64.b64encode(value).decode()
        case Decimal():
            raw = _Raw()
            raw.text = f"{value:f}"
            return raw
        case float():
            names = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}
            return names.get(repr(value), value)
    return value.isoformat()


def in_csv(value):
    match value:
        case None:
            return ""
        case str():
            return value
        case bool():
            return str(value).lower()
    return str(in_json(value)) if not isinstance(value, Decimal) else f"{value:f}"


def lines_of(rows):
    # Python's encoder writes a subclass of float by float's own repr.
    def text(row):
        return "{" + ", ".join(f"{json.dumps(k)}: {_text(v)}" for k, v in row.items()) + "}"

    def _text(value):
        value = in_json(value)
        return value.text if isinstance(value, _Raw) else json.dumps(value)

    return "\n".join(map(text, rows)).encode()


def csv_of(rows):
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(rows[0])
    writer.writerows([in_csv(row[name]) for name in rows[0]] for row in rows)
    return text.getvalue().encode()


def stream_of(schema, event_time="at", **more):
    return plan_stream(Stream("orders", topic="orders", schema=schema, event_time=event_time, **more))


def written(stream, path, schemas=None, schema_id=1, shift_us=0):
    """The events that are made of a file; a row that cannot be read fails the test."""
    source = source_of(str(path), lambda: False)
    encoder = Encoder(stream, wire_of(stream, schemas, schema_id, text=source.is_text), text=source.is_text)
    found = []
    for rows in source.pieces():
        for row in rows:
            assert not row.fault, row
            found.append(encoder.event(row.values, shift_us))
    return found


def decoded(stream, made, schemas=None):
    columns = list(stream.columns)
    found = decoder_of(stream, schemas).decode(poll([each.value for each in made]))
    assert found.dead["reason"].to_list() == []
    return [dict(zip(columns, row, strict=True)) for row in found.events.select(columns).iter_rows()]


def same(one, other):
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    return type(one) is type(other) and one == other


def differences(read, expected):
    assert len(read) == len(expected)
    return [
        (name, value, row[name])
        for row, event in zip(read, expected, strict=True)
        for name, value in event.items()
        if not same(value, row[name])
    ]


def in_file(folder, name, content):
    path = Path(folder) / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def in_file_of(folder, kind, rows, stream):
    """The rows in a file of a kind."""
    if kind == "parquet":
        path = Path(folder) / "events.parquet"
        pl.DataFrame(rows, schema={name: stream.columns[name] for name in rows[0]}, orient="row").write_parquet(path)
        return path
    return in_file(folder, *(("events.jsonl", lines_of(rows)) if kind == "jsonl" else ("events.csv.gz", csv_of(rows))))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TYPES)
def test_every_type_of_avro_is_read_as_the_same_values(name, kind):
    avro, drawn = TYPES[name]
    stream = stream_of(schema_of(avro))

    @settings(max_examples=5)
    @given(st.lists(drawn, min_size=1, max_size=20))
    def check(values):
        rows = rows_of(values, kind)
        with TemporaryDirectory() as folder:
            made = written(stream, in_file_of(folder, kind, rows, stream))
        assert differences(decoded(stream, made), rows) == []

    check()


NESTED = {
    "type": "record",
    "name": "Nested",
    "fields": [
        {"name": "user", "type": {"type": "record", "name": "User", "fields": [{"name": "id", "type": "long"}]}},
        {"name": "tags", "type": {"type": "array", "items": ["null", "string"]}},
        {"name": "counts", "type": {"type": "map", "values": "int"}},
        {"name": "either", "type": ["null", "long", "string", {"type": "array", "items": "double"}]},
        {
            "name": "tree",
            "type": {
                "type": "record",
                "name": "Tree",
                "fields": [
                    {"name": "n", "type": "int"},
                    {"name": "left", "type": ["null", "Tree"], "default": None},
                ],
            },
        },
        {"name": "at", "type": logical("long", "timestamp-millis")},
        {"name": "note", "type": "bytes", "default": "\xff"},
        {"name": "level", "type": "int", "default": 3},
    ],
}
trees = st.recursive(
    st.fixed_dictionaries({"n": st.integers(*INT32), "left": st.none()}),
    lambda inner: st.fixed_dictionaries({"n": st.integers(*INT32), "left": inner}),
    max_leaves=4,
)
nested = st.fixed_dictionaries(
    {
        "user": st.fixed_dictionaries({"id": st.integers(*INT64)}),
        "tags": st.lists(st.none() | TEXTS, max_size=3),
        "counts": st.dictionaries(TEXTS, st.integers(*INT32), max_size=3),
        "either": st.none()
        | st.integers(*INT64)
        | TEXTS
        | st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=2),
        "tree": trees,
    }
)


@settings(max_examples=20)
@given(st.lists(nested, min_size=1, max_size=3))
def test_nested_values_and_defaults_are_what_fastavro_reads(rows):
    lines = "\n".join(json.dumps({**row, "at": NOON.isoformat()}) for row in rows).encode()
    stream = stream_of(NESTED, fields={"user_id": "user.id"}, partitioned_by="user_id")
    with TemporaryDirectory() as folder:
        made = written(stream, in_file(folder, "events.ndjson", lines))

    parsed = fastavro.parse_schema(NESTED)
    read = [fastavro.schemaless_reader(io.BytesIO(each.value[5:]), parsed, None) for each in made]
    assert read == [{**row, "at": NOON, "note": b"\xff", "level": 3} for row in rows]
    assert [each.key for each in made] == [str(row["user"]["id"]).encode() for row in rows]
    assert [row["user_id"] for row in decoded(stream, made)] == [row["user"]["id"] for row in rows]


JSON_SCHEMA = {
    "type": "object",
    "required": ["n", "at"],
    "properties": {
        "n": {"type": "integer"},
        "small": {"type": ["integer", "null"], "format": "int32"},
        "x": {"type": ["number", "null"]},
        "s": {"type": "string"},
        "flag": {"type": "boolean"},
        "kind": {"type": "string", "enum": ["A", "B"]},
        "at": {"type": "string", "format": "date-time"},
        "day": {"type": ["string", "null"], "format": "date"},
        "s_at": {"type": "integer", "format": "unix-time"},
        "ms_at": {"type": "integer", "format": "unix-time-ms"},
        "us_at": {"type": "integer", "format": "unix-time-us"},
    },
}
REALS = st.floats(allow_nan=False, allow_infinity=False)
PROPERTIES = {
    "n": st.integers(*INT64),
    "small": st.none() | st.integers(*INT32),
    "x": st.none() | REALS,
    "s": TEXTS.filter(bool),
    "flag": st.booleans(),
    "kind": st.sampled_from("AB"),
    "at": EVENT_TIMES,
    "day": st.none() | st.dates(),
    "s_at": MOMENTS.map(lambda found: found.replace(microsecond=0)),
    "ms_at": MILLIS,
    "us_at": MOMENTS,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PROPERTIES)
def test_every_type_of_a_json_schema_is_read_as_the_same_values(name, kind):
    stream = stream_of(JSON_SCHEMA, format="json")

    @settings(max_examples=5)
    @given(st.lists(PROPERTIES[name], min_size=1, max_size=20))
    def check(values):
        rows = [{"n": 1, "at": NOON, name: value} for value in values]
        with TemporaryDirectory() as folder:
            made = written(stream, in_file_of(folder, kind, rows, stream))
        assert differences(decoded(stream, made), rows) == []

    check()


def test_json_by_an_avro_schema_is_read_as_the_same_values(tmp_path):
    row = {
        "flag": True, "small": -1, "whole": 2**63 - 1, "short_real": 0.5, "real": 0.1, "words": "é", "kind": "B",
        "day": date(2026, 1, 31), "at_millis": NOON, "at_micros": NOON, "at": NOON,
    }  # fmt: skip
    fields = [(name, TYPES[name][0]) for name in row if name != "at"]
    fields.append(("at", logical("long", "timestamp-micros")))
    schema = {"type": "record", "name": "Event", "fields": [{"name": n, "type": kind} for n, kind in fields]}
    stream = stream_of(schema, format="json")

    made = written(stream, in_file(tmp_path, "events.jsonl", lines_of([row])))

    assert differences(decoded(stream, made), [row]) == []


@pytest.mark.parametrize("written_in", ["avro", "json"])
@pytest.mark.parametrize(
    ("form", "avro", "given"),
    [
        ("unix-s", "double", "1483272000.25"),
        ("unix-s", "long", "1483272000"),
        ("unix-ms", "long", "1483272000250"),
        ("unix-us", "string", '"1483272000250000"'),
        ("unix-ns", "long", "1483272000250000999"),
        ("iso", "string", '"2017-01-01 13:00:00.25+01:00"'),
        ("iso Europe/Berlin", "string", '"2017-01-01T13:00:00.250"'),
    ],
)
def test_event_times_that_a_definition_reads_are_moved_in_their_own_form(tmp_path, written_in, form, avro, given):
    schema = {"type": "record", "name": "E", "fields": [{"name": "at", "type": avro}]}
    stream = stream_of(schema, format=written_in, read_as={"at": form})
    path = in_file(tmp_path, "events.jsonl", b'{"at": ' + given.encode() + b"}")

    (as_it_was,) = decoded(stream, written(stream, path))
    made = written(stream, path, shift_us=90_000_000)
    (moved,) = decoded(stream, made)

    quarter = timedelta(seconds=0 if given == "1483272000" else 0.25)
    assert as_it_was["at"] == NOON + quarter
    assert moved["at"] == NOON + quarter + timedelta(seconds=90)
    assert made[0].event_us == int((NOON + quarter).timestamp() * 1_000_000) + 90_000_000


def test_envelopes_are_put_around_events(tmp_path):
    row = {"id": 7, "at": "2017-01-01T12:00:00Z"}
    fields = [("id", "long"), ("at", logical("long", "timestamp-millis"))]
    avro = {"type": "record", "name": "Row", "fields": [{"name": n, "type": t} for n, t in fields]}
    change = {
        "type": "record",
        "name": "Envelope",
        "fields": [
            {"name": "before", "type": ["null", avro], "default": None},
            {"name": "after", "type": ["null", "Row"], "default": None},
            {"name": "op", "type": "string"},
            {"name": "ts_ms", "type": ["null", "long"], "default": None},
        ],
    }
    path = in_file(tmp_path, "events.jsonl", json.dumps(row).encode())

    for stream in (
        stream_of(avro, format="json", envelope="connect"),
        stream_of(avro, format="json", envelope="debezium"),
        stream_of(change, envelope="debezium"),
    ):
        for shift_us in (0, 1_000_000):
            (read,) = decoded(stream, written(stream, path, shift_us=shift_us))
            assert read == {"id": 7, "at": NOON + timedelta(microseconds=shift_us)}


PROTOBUF = file(
    message(
        "Order",
        AT,
        *(field(f"plain_{kind}", 100 + n, kind) for n, (kind, *_) in enumerate(SCALARS)),
        field("n", 20, ".google.protobuf.Int64Value"),
        field("kind", 21, "=shop.Kind"),
        field("day", 22, ".google.type.Date"),
        field("clock", 23, ".google.type.TimeOfDay"),
        field("price", 24, ".confluent.type.Decimal"),
        field("took", 25, ".google.protobuf.Duration"),
        field("inner", 26, ".shop.Order.Inner"),
        field("tags", 27, "string", label=3),
        nested=[message("Inner", field("deep", 1, "string"))],
    ),
    imports=[
        *IMPORTS, "google/protobuf/wrappers.proto", "google/protobuf/duration.proto", "google/type/date.proto",
        "google/type/timeofday.proto", "confluent/type/decimal.proto",
    ],
    enums=[enum("Kind", UNKNOWN=0, SALE=1)],
)  # fmt: skip
PROTOBUF_COLUMNS = [
    ("at", logical("long", "timestamp-micros")),
    *((f"plain_{kind}", avro) for kind, avro, *_ in SCALARS),
    ("n", ["null", "long"]),
    ("kind", {"type": "enum", "name": "Kind", "symbols": ["UNKNOWN", "SALE"]}),
    ("day", ["null", logical("int", "date")]),
    ("clock", ["null", logical("long", "time-micros")]),
    ("price", ["null", logical("bytes", "decimal", precision=38, scale=2)]),
    ("took", ["null", "long"]),
]
INTEGERS = {
    "uint32": (0, 2**32 - 1), "fixed32": (0, 2**32 - 1), "uint64": (0, 2**63 - 1), "fixed64": (0, 2**52),
    "int64": INT64, "sint64": INT64, "sfixed64": INT64, "int32": INT32, "sint32": INT32, "sfixed32": INT32,
}  # fmt: skip
OTHERS = {
    "double": st.floats(), "float": st.floats(width=32), "bool": st.booleans(), "string": TEXTS,
    "bytes": st.binary(max_size=4),
}  # fmt: skip
COLUMNS = (
    {
        "at": EVENT_TIMES,
        "n": st.none() | st.integers(*INT64),
        "kind": st.sampled_from(["UNKNOWN", "SALE"]),
        "day": st.none() | st.dates(),
        "clock": st.none() | st.times(),
        "price": st.none() | CENTS,
    }
    | {f"plain_{kind}": st.integers(*bounds) for kind, bounds in INTEGERS.items()}
    | {f"plain_{kind}": drawn for kind, drawn in OTHERS.items()}
)


@pytest.fixture(scope="module")
def registry():
    found = Registry()
    found.put_protobuf(1, PROTOBUF)
    yield found
    found.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", COLUMNS)
def test_every_type_of_protobuf_is_read_as_the_same_values(registry, name, kind):
    schema = {"type": "record", "name": "Order", "fields": [{"name": n, "type": t} for n, t in PROTOBUF_COLUMNS]}
    stream = stream_of(schema, format="protobuf")
    schemas = SchemaRegistry(f"http://{registry.address}", threading.Event())

    @settings(max_examples=5)
    @given(st.lists(COLUMNS[name], min_size=1, max_size=20))
    def check(values):
        rows = [{"at": NOON, name: float(value) if name == "plain_fixed64" else value} for value in values]
        with TemporaryDirectory() as folder:
            made = written(stream, in_file_of(folder, kind, rows, stream), schemas)
        assert differences(decoded(stream, made, schemas), rows) == []

    check()


def test_a_message_of_protobuf_has_what_no_column_reads(registry, tmp_path):
    stream = stream_of({"type": "record", "name": "Order", "fields": [{"name": "at", "type": PROTOBUF_COLUMNS[0][1]}, {"name": "took", "type": ["null", "long"]}]}, format="protobuf")  # fmt: skip
    schemas = SchemaRegistry(f"http://{registry.address}", threading.Event())
    row = {"at": "2017-01-01T12:00:00Z", "took": "1.5s", "inner": {"deep": "x"}, "tags": ["a", "b"]}

    made = written(stream, in_file(tmp_path, "events.jsonl", json.dumps(row).encode()), schemas)

    assert decoded(stream, made, schemas) == [{"at": NOON, "took": 1_500_000}]
    from unskew.pipelines.decoding.protobuf import as_data

    data = as_data(schemas.files(1), made[0].value)
    assert (data["inner"], data["tags"]) == ({"deep": "x"}, ["a", "b"])


SHOP = {
    "type": "record",
    "name": "Shop",
    "fields": [
        {"name": "user_id", "type": ["null", "string"]},
        {"name": "shop_id", "type": "int"},
        {"name": "at", "type": logical("long", "timestamp-millis")},
    ],
}


@pytest.mark.parametrize(
    ("more", "row", "key", "placed_by", "headers"),
    [
        ({}, {"user_id": "é|", "shop_id": 7}, None, None, []),
        ({"partitioned_by": "user_id"}, {"user_id": "é|", "shop_id": 7}, "é|".encode(), "é|".encode(), []),
        ({"partitioned_by": "user_id"}, {"user_id": None, "shop_id": 7}, None, None, []),
        (
            {"partitioned_by": ["user_id", "shop_id"]},
            {"user_id": "é|", "shop_id": 7},
            b"%C3%A9%7C|7",
            b"%C3%A9%7C|7",
            [],
        ),
        (
            {"key_column": "k", "key_format": "int64", "partitioned_by": "k"},
            {"user_id": "u", "shop_id": 7, "k": -2},
            b"\xff" * 7 + b"\xfe",
            b"\xff" * 7 + b"\xfe",
            [],
        ),
        (
            {"key_column": "k", "headers": {"source": "x-source"}, "partitioned_by": "shop_id"},
            {"user_id": "u", "shop_id": 7, "k": "key", "source": "web"},
            b"key",
            b"7",
            [("x-source", b"web")],
        ),
        ({"key_column": "k"}, {"user_id": "u", "shop_id": 7, "k": "key"}, b"key", b"key", []),
        ({"headers": ["source"]}, {"user_id": "u", "shop_id": 7, "source": None}, None, None, []),
    ],
)
def test_key_headers_and_place_are_as_the_definition_says(tmp_path, more, row, key, placed_by, headers):
    stream = stream_of(SHOP, **more)
    line = json.dumps({**row, "at": NOON.isoformat()}).encode()

    (made,) = written(stream, in_file(tmp_path, "events.jsonl", line))

    assert (made.key, made.placed_by, list(made.headers)) == (key, placed_by, headers)
    record = msgspec.structs.replace(poll([made.value]), keys=Blobs.of([made.key]), headers=Headers.of([made.headers]))
    kept = [name for name in ("k", "source") if name in row]
    assert decoder_of(stream).decode(record).events.select("shop_id", *kept).to_dicts() == [
        {name: row[name] for name in ("shop_id", *kept)}
    ]


def test_a_number_is_the_same_key_however_it_is_written(tmp_path):
    stream = stream_of(SHOP, partitioned_by="shop_id")
    rows = b"user_id,shop_id,at\n,7,2017-01-01T12:00:00Z\n,007,1483272000000\n,7.0,2017-01-01T12:00:00Z\n"

    made = written(stream, in_file(tmp_path, "events.csv", rows))

    assert {each.key for each in made} == {b"7"}
    assert crc32([b"7"]).tolist() == crc32([each.placed_by for each in made[:1]]).tolist()


BAD = [
    # what a line has in place of the good values; what is said
    ({"amont": 1}, "the schema has no field 'amont'; did you mean 'amount'?"),
    ({"amount": ...}, "amount: it is missing, and has no default in the schema"),
    ({"amount": "5"}, "amount: '5' is not a number of type double"),
    ({"amount": True}, "amount: true is not a number of type double"),
    ({"amount": [True, 1.5, None]}, "amount: [true,1.5,null] is not a number of type double"),
    ({"amount": Decimal("1E+999")}, "amount: 1E+999 does not fit a number of type double"),
    ({"amount": None}, "amount: it is null, and the schema has a number of type double"),
    ({"amount": [1]}, "amount: [1] is not a number of type double"),
    ({"n": 2**31}, f"n: {2**31} does not fit a number of type int"),
    ({"n": 1.5}, "n: 1.5 is not a number of type int"),
    ({"status": "complete"}, "status: 'complete' is not a symbol of the schema; did you mean 'completed'?"),
    ({"status": 1}, "status: 1 is not one of completed, declined"),
    ({"price": 1.005}, "price: 1.005 has more than 2 digits after the point"),
    ({"price": 123456}, "price: 123456 has more than 3 digits before the point"),
    ({"price": "dear"}, "price: 'dear' is not a decimal(5, 2)"),
    ({"code": "AAA="}, "code: it has 2 bytes, and a fixed has 3"),
    ({"code": "?"}, "code: '?' is not a fixed; write bytes in base64"),
    ({"geo": {"lat": "north"}}, "geo.lat: 'north' is not a number of type double"),
    ({"geo": 5}, "geo: 5 is not a record Geo"),
    ({"tags": ["a", 2]}, "tags.[1]: 2 is not a text"),
    ({"day": "31.1.2026"}, "day: '31.1.2026' is not a date; write it as in 2026-01-31"),
    ({"at": "yesterday"}, "at: 'yesterday' is not an event time; write it as in 2026-01-31T12:00:00Z"),
    ({"at": None}, "at: it is missing or null, and every event needs its event time"),
    ({"at": ...}, "at: it is missing or null, and every event needs its event time"),
    ({"at": 10**15}, "at: the event time 1000000000000000 is outside the years 1900 to 2200"),
    ({"word": "\ud800"}, "word: it has half a surrogate pair, which is not text"),
]
SHAPE = {
    "type": "record",
    "name": "Shape",
    "fields": [
        {"name": "amount", "type": "double"},
        {"name": "n", "type": "int"},
        {"name": "status", "type": {"type": "enum", "name": "Status", "symbols": ["completed", "declined"]}},
        {"name": "price", "type": logical("bytes", "decimal", precision=5, scale=2)},
        {"name": "code", "type": {"type": "fixed", "name": "Code", "size": 3}},
        {"name": "geo", "type": {"type": "record", "name": "Geo", "fields": [{"name": "lat", "type": "double"}]}},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {"name": "day", "type": logical("int", "date")},
        {"name": "word", "type": "string"},
        {"name": "at", "type": logical("long", "timestamp-millis")},
    ],
}
GOOD = {
    "amount": 1.5, "n": 1, "status": "completed", "price": "1.25", "code": "AAAA", "geo": {"lat": 1}, "tags": ["a"],
    "day": "2026-01-31", "word": "x", "at": "2017-01-01T12:00:00Z",
}  # fmt: skip


@pytest.mark.parametrize(("wrong", "said"), BAD, ids=lambda each: str(each)[:40])
def test_what_does_not_fit_is_refused_by_its_field_with_what_to_do(wrong, said):
    stream = stream_of(SHAPE)
    encoder = Encoder(stream, wire_of(stream, None, 1, text=False), text=False)
    row = {name: value for name, value in (GOOD | wrong).items() if value is not ...}

    assert encoder.event(GOOD).event_us == int(NOON.timestamp() * 1_000_000)
    with pytest.raises(Unfit) as refused:
        encoder.event(row)

    assert str(refused.value) == said


def test_a_row_that_json_schema_forbids_is_refused():
    stream = stream_of(JSON_SCHEMA, format="json")
    encoder = Encoder(stream, wire_of(stream, None, 1, text=False), text=False)
    good = {"n": 1, "at": "2017-01-01T12:00:00Z"}

    for wrong, said in (
        ({"m": 1}, "the schema has no property 'm'; "),
        ({"n": "1"}, "n: '1' is not an integer"),
        ({"kind": "C"}, "kind: 'C' is not one of the schema's enum; they are A, B"),
        ({"day": "soon"}, "day: 'soon' is not a date"),
    ):
        with pytest.raises(Unfit) as refused:
            encoder.event(good | wrong)
        assert str(refused.value).startswith(said)
    with pytest.raises(Unfit, match="n: it is missing, and the schema requires it"):
        encoder.event({"at": good["at"]})


def test_times_of_a_day_are_what_they_were(tmp_path):
    schema = {"type": "record", "name": "T", "fields": [{"name": "t", "type": logical("int", "time-millis")}, {"name": "at", "type": logical("long", "timestamp-millis")}]}  # fmt: skip
    stream = stream_of(schema)

    made = written(stream, in_file(tmp_path, "e.jsonl", b'{"t": "13:45:00.5", "at": 1483272000000}'))

    assert decoded(stream, made) == [{"t": time(13, 45, 0, 500_000), "at": NOON}]
