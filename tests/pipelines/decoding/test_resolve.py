"""A writer's schema resolved by column gives what fastavro's own resolution gives record by record."""

import io
import math
from datetime import UTC, date, datetime, time
from decimal import Context, Decimal

import fastavro
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import plans
from tests.support.polls import poll_of
from unskew.features.definitions.avro_schema import avro_columns
from unskew.pipelines.decoding.avro import AvroDecoder
from unskew.pipelines.decoding.resolve import Incompatible
from unskew.pipelines.kafka.blobs import Blobs

MILLIS = {"type": "long", "logicalType": "timestamp-millis"}
NOON_MS = 1_483_272_000_000
NOON = datetime(2017, 1, 1, 12, tzinfo=UTC)
AT = {"name": "at", "type": MILLIS}


def record(*fields):
    return {"type": "record", "name": "R", "fields": [*fields, AT]}


def field(avro, name="v", **more):
    return {"name": name, "type": avro, **more}


class Registered:
    """Schemas by id, from 1, as a registry gives them."""

    def __init__(self, *schemas) -> None:
        self.schemas = dict(enumerate(schemas, start=1))
        self.asked = []

    def writer(self, schema_id, *, expected=False):
        self.asked.append(schema_id)
        assert not expected
        if schema_id not in self.schemas:
            raise Incompatible("the registry has no such schema")
        return self.schemas[schema_id]


def decoder(reader, *writers):
    columns, faults = avro_columns(reader)
    assert not faults
    return AvroDecoder(plans.stream(schema=reader, columns=columns), schemas=Registered(*writers))


def poll(values):
    return poll_of(values, NOON_MS * 1000)


def encode(schema, datum, schema_id=1):
    body = io.BytesIO()
    fastavro.schemaless_writer(body, fastavro.parse_schema(schema), {"at": NOON, **datum})
    return b"\0" + schema_id.to_bytes(4, "big") + body.getvalue()


def resolved(writer, reader, *data):
    """Values of column v, or the reasons."""
    decoded = decoder(reader, writer).decode(poll([encode(writer, datum) for datum in data]))
    rows = dict(zip(decoded.events["_offset"].to_list(), decoded.events["v"].to_list(), strict=True))
    rows |= dict(decoded.dead.select("offset", "reason").rows())
    return [rows[row] for row in range(len(data))]


KIND = {"type": "enum", "name": "K", "symbols": ["A", "B", "C"]}
VALUES = {
    "int": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**63), 2**63 - 1),
    "float": st.floats(width=32, allow_nan=False),
    "double": st.floats(allow_nan=False),
    "string": st.text(max_size=5),
    "bytes": st.binary(max_size=5),
    "boolean": st.booleans(),
}
PROMOTIONS = {
    "int": ["int", "long", "float", "double"],
    "long": ["long", "float", "double"],
    "float": ["float", "double"],
    "double": ["double"],
    "string": ["string", "bytes"],
    "bytes": ["bytes", "string"],
    "boolean": ["boolean"],
}
NESTED = [
    ({"type": "array", "items": ["null", "string"]}, st.lists(st.none() | st.text(max_size=2), max_size=3)),
    ({"type": "map", "values": "double"}, st.dictionaries(st.text(max_size=2), st.floats(allow_nan=False), max_size=3)),
    (
        {"type": "record", "name": "Deep", "fields": [{"name": "next", "type": ["null", "Deep"]}]},
        st.recursive(st.just({"next": None}), lambda inner: st.builds(dict, next=inner), max_leaves=4),
    ),
    (["null", "long", "string"], st.none() | st.integers(0, 9) | st.text(max_size=2)),
    ("null", st.none()),
]


@st.composite
def changes(draw):
    """A writer, a reader into which it resolves, and records of the writer."""
    writer, reader, values = [], [], {}
    for number in range(draw(st.integers(1, 5))):
        name = f"f{number}"
        if draw(st.integers(0, 3)) == 0:
            avro, strategy = draw(st.sampled_from(NESTED))
            if isinstance(avro, dict) and "name" in avro and "Deep" in str(writer):
                continue
            writer.append(field(avro, name))
            values[name] = strategy
            continue
        kind = draw(st.sampled_from([*VALUES, "enum"]))
        written, strategy, wanted = KIND, st.sampled_from("ABC"), {**KIND, "symbols": ["C", "A", "D"]}
        if kind == "enum":
            if "'name': 'K'" in str(writer):
                continue
            if draw(st.booleans()):
                wanted = {**wanted, "default": "D"}
        else:
            written, strategy = kind, VALUES[kind]
            wanted = draw(st.sampled_from(PROMOTIONS[kind]))
        if draw(st.booleans()):
            written, strategy = ["null", written], st.none() | strategy
        if draw(st.booleans()):
            wanted = [wanted, "null"]
        writer.append(field(written, name))
        values[name] = strategy
        match draw(st.sampled_from(["kept", "removed", "renamed"])):
            case "kept":
                reader.append(field(wanted, name))
            case "renamed":
                reader.append(field(wanted, f"new_{name}", aliases=[name]))
            case _:
                pass
    for number in range(draw(st.integers(0, 2))):
        avro, default = draw(
            st.sampled_from(
                [("long", 7), (["null", "string"], None), ("double", 0.5), ("string", "x"), ("boolean", True)]
            )
        )
        reader.append(field(avro, f"added{number}", default=default))
    reader = draw(st.permutations(reader))
    records = draw(st.lists(st.fixed_dictionaries(values), min_size=1, max_size=6))
    return record(*writer), record(*reader), records


def as_fastavro_resolves(value, writer, reader):
    try:
        found = fastavro.schemaless_reader(
            io.BytesIO(value[5:]), fastavro.parse_schema(writer), fastavro.parse_schema(reader)
        )
    except (fastavro.read.SchemaResolutionError, UnicodeDecodeError):
        return None
    floats = [f["name"] for f in reader["fields"] if "float" in str(f["type"])]
    return {
        name: float(np.float32(item)) if name in floats and item is not None else item for name, item in found.items()
    }


def equal(one, other):
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return type(one) is type(other) and one == other


@given(changes())
def test_columns_resolve_as_fastavro_resolves_records(change):
    writer, reader, records = change
    values = [encode(writer, each) for each in records]
    expected = {
        row: found for row, value in enumerate(values) if (found := as_fastavro_resolves(value, writer, reader))
    }

    decoded = decoder(reader, writer).decode(poll(values))

    assert decoded.events["_offset"].to_list() == list(expected)
    for event, found in zip(decoded.events.to_dicts(), expected.values(), strict=True):
        assert {name: (event[name], found[name]) for name in found if not equal(event[name], found[name])} == {}
    assert decoded.dead["offset"].to_list() == [row for row in range(len(values)) if row not in expected]


@given(changes(), st.data())
def test_a_damaged_message_is_a_dead_letter_alone_whatever_is_cut_out(change, data):
    writer, reader, records = change
    values = [encode(writer, each) for each in records]
    at = data.draw(st.integers(0, len(values) - 1))
    values[at] = values[at][: data.draw(st.integers(5, len(values[at]) - 1))]
    whole = decoder(reader, writer).decode(poll([encode(writer, each) for each in records])).events

    decoded = decoder(reader, writer).decode(poll(values)).events

    rest = whole.filter(whole["_offset"] != at)
    assert decoded.to_dicts() == rest.to_dicts() or any("nan" in str(row) for row in rest.to_dicts())


def test_messages_of_several_writers_in_one_poll_keep_their_order():
    reader = record(field("long"), field("string", "extra", default="none"))
    first = record(field("int"))
    second = record(field(["null", "string"], "unused"), field("string", "extra"), field("long"))
    decoding = decoder(reader, first, second)
    values = [
        encode(second, {"unused": "u", "extra": "e", "v": 1}, 2),
        encode(first, {"v": 2}),
        encode(second, {"unused": None, "extra": "f", "v": 3}, 2),
        b"\0\0",
        encode(first, {"v": 4}),
    ]

    for _ in range(2):
        decoded = decoding.decode(poll(values))
        assert decoded.events.select("_offset", "v", "extra").rows() == [
            (0, 1, "e"), (1, 2, "none"), (2, 3, "f"), (4, 4, "none"),
        ]  # fmt: skip
        assert decoded.dead.select("offset", "reason").rows() == [(3, "truncated")]
    assert sorted(decoding._writers._ask.__self__.asked) == [1, 2]


@pytest.mark.parametrize(
    ("written", "wanted", "reason"),
    [
        (field("string"), field("long"), "its field 'v' is string, which cannot be read as long"),
        (field("long"), field("int"), "its field 'v' is long, which cannot be read as int"),
        (field("long", "other"), field("long"), "it has no field 'v', which has no default"),
        (
            field(["null", "string", "boolean"]),
            field("long"),
            "its field 'v' is null | string | boolean, which cannot be read as long",
        ),
        (
            field({"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 3}),
            field("long"),
            "its field 'v' is decimal, which cannot be read as long",
        ),
        (
            field({"type": "fixed", "name": "F", "size": 2}),
            field({"type": "fixed", "name": "F", "size": 3}),
            "its field 'v' is fixed, which cannot be read as fixed: its size is 2, not 3",
        ),
    ],
)
def test_an_incompatible_writer_is_said_once_and_its_messages_are_dead_letters(caplog, written, wanted, reason):
    bad, good = record(written), record(wanted)
    decoding = decoder(good, bad, good)
    body = b"\0" * 12
    values = [b"\0\0\0\0\x01" + body, b"\0\0\0\0\x01", None]

    for _ in range(2):
        decoded = decoding.decode(poll(values))
        assert decoded.dead["reason"].to_list() == [f"schema 1: {reason}"] * 2 + ["empty value (tombstone)"]
        assert decoded.dead["value"].to_list() == values
    assert decoding.incompatible == 4
    assert [each.levelname for each in caplog.records if "schema id 1" in each.message] == ["ERROR"]


def test_a_time_keeps_its_instant_when_its_unit_changes():
    micros = {"type": "long", "logicalType": "timestamp-micros"}
    local = {"type": "long", "logicalType": "local-timestamp-millis"}
    nanos = {"type": "long", "logicalType": "timestamp-nanos"}
    late = NOON.replace(microsecond=123_000)

    assert resolved(record(field(MILLIS)), record(field(micros)), {"v": late}) == [late]
    assert resolved(record(field(local)), record(field(micros)), {"v": datetime(2017, 1, 1, 12)}) == [NOON]  # noqa: DTZ001
    assert resolved(record(field("long")), record(field(micros)), {"v": NOON_MS * 1000}) == [NOON]
    assert resolved(record(field(micros)), record(field("long")), {"v": NOON}) == [NOON_MS * 1000]
    assert resolved(record(field(nanos)), record(field(nanos)), {"v": NOON_MS * 10**6 + 1999}) == [
        NOON.replace(microsecond=1)
    ]


def test_dates_and_times_have_columns_and_what_lies_outside_them_is_a_dead_letter():
    day, millis, micros = (
        {"type": kind, "logicalType": logical}
        for kind, logical in (("int", "date"), ("int", "time-millis"), ("long", "time-micros"))
    )
    raw = {"type": "record", "name": "R", "fields": [field("int"), AT]}

    assert resolved(
        record(field(["null", day])), record(field(["null", day])), {"v": date(2017, 3, 1)}, {"v": None}
    ) == [
        date(2017, 3, 1),
        None,
    ]
    assert resolved(raw, record(field(day)), {"v": 2_932_896}, {"v": 2_932_897}, {"v": -(2**31)}) == [
        date(9999, 12, 31),
        "v 2932897 is outside years 1..9999",
        "v -2147483648 is outside years 1..9999",
    ]
    assert resolved(record(field(millis)), record(field(micros)), {"v": time(23, 59, 59, 999_000)}) == [
        time(23, 59, 59, 999_000)
    ]
    assert resolved(raw, record(field(millis)), {"v": -1}, {"v": 86_400_000}, {"v": 0}) == [
        "v -1 is outside one day",
        "v 86400000 is outside one day",
        time(0),
    ]


@given(
    st.lists(
        st.none()
        | st.integers(-(10**38) - 5, 10**38 + 5)
        | st.integers(-200, 200)
        | st.integers(2**63 - 2, 2**63)
        | st.integers(-(2**63) - 1, 1 - 2**63)
        | st.integers(-(2**140), 2**140)
    )
)
def test_decimals_are_exact_and_what_has_too_many_digits_is_a_dead_letter(numbers):
    decimal = {"type": "bytes", "logicalType": "decimal", "precision": 38, "scale": 4}
    schema = record(field(["null", decimal]))
    plain = record(field(["null", "bytes"]))
    data = [{"v": n if n is None else n.to_bytes(1 + (n.bit_length() + 8) // 8, "big", signed=True)} for n in numbers]
    if not data:
        return

    found = decoder(schema, schema).decode(poll([encode(plain, datum) for datum in data]))

    kept = [(row, n) for row, n in enumerate(numbers) if n is None or abs(n) < 2**63]
    assert found.events.select("_offset", "v").rows() == [
        (row, n if n is None else Decimal(n).scaleb(-4, context=Context(prec=60))) for row, n in kept
    ]
    assert found.dead["reason"].to_list() == [
        "v has more than 38 digits" if abs(n) >= 10**38 else "v is beyond 2^63 - 1 units of its last digit"
        for n in numbers
        if n is not None and abs(n) >= 2**63
    ]


def test_bytes_that_are_no_text_are_dead_letters_where_text_is_wanted():
    assert resolved(
        record(field("bytes")), record(field("string")), {"v": "é".encode()}, {"v": b"\xff"}, {"v": b""}
    ) == [
        "é",
        "v is not UTF-8",
        "",
    ]


def test_an_unknown_symbol_takes_the_default_or_is_a_dead_letter():
    narrow = {**KIND, "symbols": ["A", "unknown"]}

    assert resolved(record(field(KIND)), record(field({**narrow, "default": "unknown"})), {"v": "A"}, {"v": "B"}) == [
        "A",
        "unknown",
    ]
    assert resolved(record(field(KIND)), record(field(narrow)), {"v": "A"}, {"v": "B"}) == [
        "A",
        "v: 'B' is not one of its symbols",
    ]


def decimal(scale, **more):
    return {"type": "bytes", "logicalType": "decimal", "precision": 18, "scale": scale, **more}


CODE = {"type": "fixed", "name": "Code", "size": 4, "logicalType": "decimal", "precision": 9, "scale": 1}
REFUSED = type("Refused", (), {"__repr__": lambda _self: "refused"})()


@pytest.mark.parametrize(
    ("written", "wanted", "values"),
    [
        (["null", "double", "string"], ["null", "double"], {None: None, 1.5: 1.5, "x": REFUSED}),
        (["null", "int", "long"], "long", {None: REFUSED, 7: 7, 2**40: 2**40}),
        (["string", "null", "int", "float"], ["null", "double"], {"x": REFUSED, None: None, 3: 3.0, 0.5: 0.5}),
        (["null", "string"], ["null", "double"], {None: None, "x": REFUSED}),
        (["string", "bytes"], "bytes", {"é": "é".encode(), b"\xff": b"\xff"}),
        (["string", "bytes", "boolean"], "string", {"é": "é", b"\xff": REFUSED, b"e": "e", True: REFUSED}),
        (["null", KIND, "long"], ["null", "string"], {"A": "A", None: None, 4: REFUSED}),
        (KIND, "string", {"A": "A", "C": "C"}),
        (["null", KIND], ["null", "string"], {"B": "B", None: None}),
        (
            ["null", {"type": "long", "logicalType": "timestamp-micros"}, "string"],
            ["null", MILLIS],
            {None: None, NOON: NOON, "noon": REFUSED},
        ),
        (decimal(1), decimal(3), {Decimal("-1.5"): Decimal("-1.500"), Decimal(0): Decimal("0.000")}),
        (decimal(3), decimal(1), {Decimal("2.500"): Decimal("2.5"), Decimal("2.501"): REFUSED}),
        (decimal(0), decimal(18), {Decimal(9): Decimal("9." + 18 * "0"), Decimal(10): REFUSED}),
        (["null", decimal(3)], ["null", decimal(1)], {None: None, Decimal("-2.500"): Decimal("-2.5")}),
        (CODE, decimal(2), {Decimal("1.5"): Decimal("1.50")}),
        (decimal(1), CODE, {Decimal("1.5"): Decimal("1.5")}),
    ],
)
def test_a_value_is_resolved_by_itself_and_only_its_own_record_is_refused(written, wanted, values):
    found = decoder(record(field(wanted)), record(field(written)))
    messages = [encode(record(field(written)), {"v": value}) for value in values]
    together = outcomes(found, messages * 3)

    for at, (message, expected) in enumerate(zip(messages, values.values(), strict=True)):
        assert together[at] == together[at + len(messages)] == outcomes(found, [message])[0]
        if expected is REFUSED:
            assert together[at][0] in {"type", "range", "encoding"}
        else:
            event = found.decode(poll([message])).events
            assert event["v"].to_list() == [expected]
            assert event["at"].to_list() == [NOON]
    assert found.incompatible == 0


def test_a_damaged_message_of_a_schema_with_choices_is_refused_for_what_is_wrong_with_it():
    writer = record(field("boolean", "flag"), field(["null", "double", "string"]))
    found = decoder(record(field(["null", "double"])), writer)
    good = encode(writer, {"flag": True, "v": 1.5})
    text = encode(writer, {"flag": True, "v": "x"})
    values = [
        None,
        b"",
        good,
        good[:6],
        text[:-1],
        text + b"x",
        good[:6] + b"\x07" + bytes(9),
        good[:6] + b"\x01\0",
        text,
        good,
    ]

    decoded = found.decode(poll(values))
    assert decoded.events["_offset"].to_list() == [2, 9]
    assert decoded.dead.select("offset", "kind").rows() == [
        (0, "tombstone"), (1, "truncated"), (3, "truncated"), (4, "truncated"), (5, "trailing"), (6, "malformed"),
        (7, "truncated"), (8, "type"),
    ]  # fmt: skip
    for at, value in enumerate(values):
        assert found.decode(poll([value])).dead["reason"].to_list() == [
            why for offset, why in decoded.dead.select("offset", "reason").rows() if offset == at
        ]


def test_combinations_of_choices_are_remembered_within_a_bound_and_read_alike_after_it():
    branches = ["null", "int", "string", "boolean", "double"]
    names = [f"u{number}" for number in range(5)]
    writer = record(*(field(branches, name) for name in names))
    reader = record(*(field(["null", "string"], name) for name in names))
    found = decoder(reader, writer)
    for number in range(4**5):
        data = {name: [None, "x", None, "y"][number // 4**at % 4] for at, name in enumerate(names)}
        event = found.decode(poll([encode(writer, data)])).events
        assert event.select(names).rows(named=True) == [data]


def test_items_in_blocks_that_say_their_size_are_walked():
    writer = record(field({"type": "array", "items": "long"}, "list"), field("long"))
    items = b"\x03\x04\x02\x04" + b"\x02\x06" + b"\0"  # two items in 2 bytes, one item, the end
    value = b"\0\0\0\0\x01" + items + b"\x0a" + encode(record(), {})[5:]
    decoding = decoder(record(field("long")), writer)

    assert decoding.decode(poll([value])).events["v"].to_list() == [5]
    assert decoding._writers._found[1]._wire.check(Blobs.of([value])).all()


def long(number):
    """Avro's long of any size, also one of more than 64 bits."""
    rest = number << 1 if number >= 0 else (-number << 1) - 1
    octets = bytearray()
    while rest > 0x7F:
        octets.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([*octets, rest])


ZERO = b"\x80\0"  # in two bytes
DEEP = {"type": "record", "name": "D", "fields": [field(["null", "long"], "n"), field("boolean", "b")]}
# Bytes that a field may have: the first are good, the others are wrong, or odd in ways that may confuse a reader.
HOSTILE = {
    "text": ("string", [b"\0", long(1) + b"\xff", long(3) + b"\xed\xa0\x80", long(-1), long(2**40), b"\x82\0a"]),
    "flag": ("boolean", [b"\0", b"\1", b"\2", b"\xff"]),
    "maybe_flag": (["null", "boolean"], [b"\0", b"\2\1", b"\2\2", b"\1", b"\3\0", b"\4", b"\x82\0\1", ZERO]),
    "kind": (KIND, [b"\0", b"\4", b"\6", b"\1", b"\x82\0", ZERO]),
    "small": (
        "int",
        [b"\0", long(2**31), long(-(2**31)), long(-(2**63)), long(2**64), ZERO, b"\x80" * 9 + b"\2", b"\x80" * 40],
    ),
    "whole": (
        ["long", "null"],
        [b"\0\0", b"\0" + long(-(2**63)), b"\0" + long(2**64), ZERO + ZERO, b"\2", b"\3", b"\xff" * 12],
    ),
    "real": ("float", [b"\0" * 4, b"\xff" * 4, b"\1\0\x80\x7f", b"\0"]),
    "code": ({"type": "fixed", "name": "F", "size": 2}, [b"ab", b"a"]),
    "blob": ("bytes", [b"\0", long(2) + b"\xff\xff", long(-3), long(-(2**63))]),
    "texts": (
        {"type": "array", "items": "string"},
        [
            b"\x00",
            *(long(-1) + long(size) + b"\x02a\x00" for size in (2, 99, -99, 2**70)),
            long(-(2**63)) + b"\x02\x00",
            long(1) + b"\x02\xff\x00",
            long(2**40),
            long(1) + b"\x02a",
            ZERO,
        ],
    ),
    "flags": (
        {"type": "map", "values": "boolean"},
        [b"\0", *(long(1) + each for each in (b"\2a\2\0", b"\2\xff\1\0")), long(-2)],
    ),
    "any": (["null", "int", "string"], [b"\0", b"\2" + long(2**40), b"\4\2\xff", b"\6", b"\1", b"\3\2", b"\x84\0\2a"]),
    "one": (["string"], [b"\0\0", b"\0\2\xff", b"\2", b"\1\2a", ZERO + b"\2a"]),
    "deep": (DEEP, [b"\0\0", b"\2\2\2", b"\4\0", b"\1\0", ZERO + b"\1"]),
}
# A type that nests without end, and items without bytes: other readers are not given what is written by such a schema.
TRAPS = {
    "node": ({"type": "record", "name": "N", "fields": [field(["null", "N"], "next")]}, [b"\0", b"\2" * 300 + b"\0", b"\2" * 3000 + b"\0"]),
    "nulls": ({"type": "array", "items": "null"}, [b"\0", long(2**40) + b"\0", long(-(2**40)) + b"\2\0", long(-(2**63)) + b"\2\0"]),
}  # fmt: skip
READ = ["text", "flag", "maybe_flag", "kind", "small", "whole", "real", "code", "blob", "one"]


def hostile_schema(parts, names):
    return record(*(field(parts[name][0], name) for name in names))


def hostile_message(parts, **nasty):
    body = b"".join(nasty.get(name, about[1][0]) for name, about in parts.items())
    return b"\0\0\0\0\x01" + body + long(NOON_MS)


def outcomes(decoding, values):
    """By place: the event, or why there is none."""
    decoded = decoding.decode(poll(values))
    plain = decoded.events.drop("_offset", "_arrival")
    found = dict(zip(decoded.events["_offset"].to_list(), map(repr, plain.rows()), strict=True))
    found |= {row: why for row, *why in decoded.dead.select("offset", "kind", "reason").rows()}
    return [found[row] for row in range(len(values))]


def verdicts(decoding, values):
    return [found if isinstance(found, list) else "an event" for found in outcomes(decoding, values)]


@pytest.mark.parametrize("parts", [HOSTILE, HOSTILE | TRAPS], ids=["plain", "trapped"])
def test_a_part_is_judged_alike_whether_it_is_read_skipped_or_resolved(parts):
    writer = hostile_schema(parts, parts)
    values = [hostile_message(parts, **{name: part}) for name, about in parts.items() for part in about[1]]
    columns, _ = avro_columns(writer)
    own = AvroDecoder(plans.stream(schema=writer, columns=columns))
    expected = verdicts(own, values)

    assert outcomes(decoder(writer, writer), values) == outcomes(own, values)
    assert verdicts(decoder(record(), writer), values) == expected
    for name in READ:
        assert verdicts(decoder(hostile_schema(parts, [name]), writer), values) == expected, name
    assert 20 < expected.count("an event") < len(values) - 20


@given(st.data())
def test_a_poll_of_any_size_gives_what_each_message_gives_alone(data):
    parts = data.draw(st.sampled_from([HOSTILE, HOSTILE | TRAPS]))
    read = data.draw(st.sets(st.sampled_from(READ)))
    writer = hostile_schema(parts, parts)
    decoding = decoder(hostile_schema(parts, [name for name in parts if name in read]), writer)
    nasty = st.dictionaries(st.sampled_from(list(parts)), st.integers(0, 20), max_size=2)
    drawn = data.draw(st.lists(nasty, min_size=1, max_size=5))
    values = [
        hostile_message(parts, **{n: parts[n][1][at % len(parts[n][1])] for n, at in each.items()}) for each in drawn
    ]
    alone = [outcomes(decoding, [value])[0] for value in values]

    assert outcomes(decoding, values) == alone
    assert outcomes(decoding, [hostile_message(parts), *values * 20])[1:] == alone * 20
    # Where Polars fails on a neighbour, a message that passed the check is read by the other reader.
    reading = decoding._writers._found[1]
    blobs = Blobs.of(values)
    good = np.flatnonzero(reading._wire.check(blobs, None))
    block = reading._read_block(blobs.at(good))
    if block is not None:
        reasons = {}
        rows, each = reading._read_each(good, blobs.at(good), reasons, None)
        assert (rows.tolist(), reasons) == (good.tolist(), {})
        assert repr(each.rows()) == repr(block.rows())
    else:
        assert not len(good)
