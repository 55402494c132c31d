"""Messages in Protobuf: every kind of field, every kind of damage, and schemas as a registry serves them.

Messages are made by Google's library from descriptors that are written out here, or by hand, byte by byte.
"""

import base64
import math
import re
import struct
import sys
import threading
from dataclasses import replace
from datetime import UTC, date, datetime, time
from decimal import Decimal

import polars as pl
import pytest
from confluent_kafka.schema_registry.confluent.type import decimal_pb2
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    message_factory,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.type import date_pb2, timeofday_pb2

from tests.pipelines.decoding.test_writers import poll
from tests.support.schema_registry import Registry
from unskew.features.definitions import agg
from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.definitions.streams import plan_stream
from unskew.features.definitions.vocabulary import Entity, Feature, FeatureView, Lifetime, Stream
from unskew.features.errors import DefinitionError, RequestError
from unskew.pipelines.decoding.avro import decoder_of
from unskew.pipelines.decoding.schema_registry import SchemaRegistry
from unskew.pipelines.replay import Checks, Resend

# Importing them makes them known to Google's library.
IMPORTED = (timestamp_pb2, wrappers_pb2, duration_pb2, date_pb2, timeofday_pb2, decimal_pb2, struct_pb2)
NOON = datetime(2017, 1, 1, 12, tzinfo=UTC)
NOON_S = 1_483_272_000
KINDS = descriptor_pb2.FieldDescriptorProto


def field(name, number, kind, *, label=1, oneof=None, optional=False, default=None):
    """A field; ``kind``: a scalar's name, or the full name of a type behind a point (with ``=`` for an enum)."""
    made = KINDS(name=name, number=number, label=label)
    if kind.startswith((".", "=")):
        made.type = KINDS.TYPE_ENUM if kind[0] == "=" else KINDS.TYPE_MESSAGE
        made.type_name = "." + kind[1:]
    else:
        made.type = getattr(KINDS, f"TYPE_{kind.upper()}")
    if oneof is not None:
        made.oneof_index = oneof
    if optional:
        made.proto3_optional = True
    if default is not None:
        made.default_value = default
    return made


def message(name, *fields, oneofs=(), nested=(), enums=(), map_entry=False, ranges=()):
    made = descriptor_pb2.DescriptorProto(name=name, field=fields, nested_type=nested, enum_type=enums)
    for each in oneofs:
        made.oneof_decl.add(name=each)
    for begin, end in ranges:
        made.extension_range.add(start=begin, end=end)
    if map_entry:
        made.options.map_entry = True
    return made


def enum(name, **numbers):
    made = descriptor_pb2.EnumDescriptorProto(name=name)
    for symbol, number in numbers.items():
        made.value.add(name=symbol, number=number)
    return made


def file(*messages, name="shop.proto", package="shop", syntax="proto3", imports=(), enums=()):
    return descriptor_pb2.FileDescriptorProto(
        name=name, package=package, syntax=syntax, message_type=messages, dependency=imports, enum_type=enums
    )


def types(*files):
    """Google's classes by full name, made without the code under test."""
    pool = descriptor_pool.DescriptorPool()
    for each in files:
        for name in each.dependency:
            if name not in {one.name for one in files}:
                known = descriptor_pool.Default().FindFileByName(name)
                pool.AddSerializedFile(known.serialized_pb)
        pool.AddSerializedFile(each.SerializeToString())
    found, waiting = (
        {},
        [one for each in files for one in pool.FindFileByName(each.name).message_types_by_name.values()],
    )
    while waiting:
        each = waiting.pop()
        found[each.full_name] = message_factory.GetMessageClass(each)
        waiting += each.nested_types
    return found


def framed(body, schema_id=1, index=b"\0"):
    body = body if isinstance(body, bytes) else body.SerializeToString()
    return b"\0" + schema_id.to_bytes(4, "big") + index + body


def record(name, *fields):
    return {"type": "record", "name": name, "fields": [{"name": name, "type": kind} for name, kind in fields]}


@pytest.fixture
def registry():
    found = Registry()
    yield found
    found.close()


def decoder(registry, schema, **more):
    stream = Stream("orders", topic="orders", schema=schema, event_time="at", format="protobuf", **more)
    client = SchemaRegistry(f"http://{registry.address}", threading.Event())
    return decoder_of(plan_stream(stream), client)


def reasons(decoded):
    return dict(decoded.dead.select("offset", pl.concat_str("kind", "reason", separator=": ")).rows())


AT = field("at", 15, ".google.protobuf.Timestamp")
AT_COLUMN = ("at", {"type": "long", "logicalType": "timestamp-micros"})
IMPORTS = ["google/protobuf/timestamp.proto"]
SCALARS = [
    # kind, Avro type of the column, what is written, what is read
    ("double", "double", -0.1, -0.1),
    ("float", "double", 0.5, 0.5),
    ("int32", "int", -(2**31), -(2**31)),
    ("sint32", "long", -(2**31), -(2**31)),
    ("sfixed32", "int", -5, -5),
    ("uint32", "long", 2**32 - 1, 2**32 - 1),
    ("fixed32", "long", 2**32 - 1, 2**32 - 1),
    ("int64", "long", -(2**63), -(2**63)),
    ("sint64", "long", -(2**63), -(2**63)),
    ("sfixed64", "long", 2**63 - 1, 2**63 - 1),
    ("uint64", "long", 2**63 - 1, 2**63 - 1),
    ("fixed64", "double", 5, 5.0),
    ("bool", "boolean", True, True),
    ("string", "string", "é\0", "é\0"),
    ("bytes", "bytes", b"\xff\0", b"\xff\0"),
]


def test_every_scalar_has_its_value_its_zero_and_its_null(registry):
    fields, columns = [AT], [AT_COLUMN]
    for number, (kind, avro, _, _) in enumerate(SCALARS):
        fields += [
            field(f"plain_{kind}", 100 + number, kind),
            field(f"maybe_{kind}", 200 + number, kind, oneof=number, optional=True),
            field(f"one_{kind}", 300 + number, kind, oneof=len(SCALARS)),
        ]
        columns += [(f"plain_{kind}", avro), (f"maybe_{kind}", ["null", avro]), (f"one_{kind}", ["null", avro])]
    oneofs = [*(f"_maybe_{kind}" for kind, *_ in SCALARS), "one"]
    # Oneofs that a proto3 `optional` makes come last.
    for each in fields:
        if each.name.startswith(("maybe_", "one_")):
            each.oneof_index = 0 if each.name.startswith("one_") else 1 + each.oneof_index
    schema = file(message("Order", *fields, oneofs=[oneofs[-1], *oneofs[:-1]]), imports=IMPORTS)
    made = types(schema)["shop.Order"]
    full, empty, zero = (made(at=NOON) for _ in range(3))
    for kind, _, written, _ in SCALARS:
        setattr(full, f"plain_{kind}", written)
        setattr(full, f"maybe_{kind}", written)
        setattr(full, f"one_{kind}", written)  # only the last one of them stays
        setattr(zero, f"maybe_{kind}", type(written)())
    registry.put_protobuf(1, schema)

    found = decoder(registry, record("Order", *columns)).decode(poll([framed(each) for each in (full, empty, zero)]))

    assert reasons(found) == {}
    rows = found.events.to_dicts()
    assert [row["at"] for row in rows] == [NOON] * 3
    for kind, avro, written, read in SCALARS:
        nothing = 0.0 if avro == "double" else type(written)()
        assert [row[f"plain_{kind}"] for row in rows] == [read, nothing, nothing], kind
        assert [row[f"maybe_{kind}"] for row in rows] == [read, None, nothing], kind
        assert [row[f"one_{kind}"] for row in rows] == [read if kind == "bytes" else None, None, None], kind


ORDER = record(
    "Order",
    ("user", "string"),
    ("amount", "double"),
    AT_COLUMN,
    ("kind", ["null", {"type": "enum", "name": "Kind", "symbols": ["UNKNOWN", "SALE"]}]),
    ("n", ["null", "long"]),
)
ORDER_FILE = file(
    message(
        "Order",
        field("user", 1, "string"),
        field("amount", 2, "double"),
        AT,
        field("kind", 3, "=shop.Kind"),
        field("n", 4, ".google.protobuf.UInt64Value"),
    ),
    message("Refund", field("of", 1, "int64"), nested=[message("Part", field("deep", 90, "string"))]),
    imports=[*IMPORTS, "google/protobuf/wrappers.proto"],
    enums=[enum("Kind", UNKNOWN=0, SALE=1, RETURN=2)],
)
ORDERS = types(ORDER_FILE)
GOOD = ORDERS["shop.Order"](user="ann", amount=2.5, at=NOON, kind=1, n={"value": 7})
BYTES = GOOD.SerializeToString()


def tag(number, wire):
    return bytes([number << 3 | wire])


DAMAGED = [
    # value, what the reason says
    (b"", "truncated: truncated"),
    (b"\0\0\0\0\1", "frame: its message index cannot be read"),
    (b"\1" + framed(GOOD)[1:], "frame: "),
    (framed(GOOD, index=b"\x02"), r"schema: message index \[5\] is not one of its schema"),
    (framed(GOOD, index=b"\x80"), "frame: its message index cannot be read"),
    (framed(GOOD, index=b"\xff" * 10), "frame: its message index cannot be read"),
    (framed(GOOD, index=b"\x03"), "frame: its message index cannot be read"),
    (framed(GOOD, index=b"\xfe\xff\xff\xff\x0f"), "frame: its message index cannot be read"),
    (framed(GOOD, index=b"\x02\x08"), r"schema: message index \[4\] is not one of its schema"),
    (framed(GOOD, index=b"\x04\0\x02"), r"schema: message index \[0, 1\] is not one of its schema"),
    (framed(BYTES[:-1]), "malformed: not a message of type shop.Order"),
    (framed(BYTES + b"\0"), "malformed: not a message of type shop.Order"),
    (framed(BYTES + tag(9, 0) + b"\1"), "malformed: not a message of type shop.Order: it has no field 9"),
    (framed(BYTES + tag(15, 2) + b"\2" + tag(9, 0) + b"\1"), "google.protobuf.Timestamp: it has no field 9"),
    (framed(BYTES + tag(2, 0) + b"\1"), "malformed: not a message of type shop.Order: field 2 has another type"),
    (framed(BYTES + tag(1, 2) + b"\1\xff"), "encoding: not a message of type shop.Order"),
    (framed(ORDERS["shop.Refund.Part"](deep="x")), "it has no field 90"),
    (
        framed(ORDERS["shop.Order"](user="ann", kind=1, n={"value": 7})),
        "type: at is null, which its type does not allow",
    ),
    (framed(BYTES + tag(3, 0) + b"\x07"), "range: kind: 7 is not the number of a symbol of shop.Kind"),
    (framed(BYTES + tag(3, 0) + b"\x02"), "range: kind: 'RETURN' is not one of its symbols"),
    (framed(ORDERS["shop.Order"](user="a", at=NOON, n={"value": 2**63})), f"range: n: {2**63} does not fit its type"),
    (
        framed(BYTES + tag(15, 2) + b"\x06" + tag(2, 0) + b"\x80\x94\xeb\xdc\x03"),
        "time: at: seconds: 1483272000 nanos: 1000000000 is not a valid Timestamp",
    ),
    (framed(BYTES + tag(15, 2) + b"\x06" + tag(1, 0) + b"\xff\xff\xff\xff\x7f"), "time: event_time .* is outside"),
    (framed(BYTES + tag(4, 2) + b"\x01"), "malformed"),
    (framed(GOOD, schema_id=2), "schema: schema 2: the registry has no such schema"),
    (framed(GOOD, schema_id=2**32 - 1), "schema: schema 4294967295: it is not an id that a registry gives"),
    (framed(GOOD, schema_id=3), "schema: schema 3: it is a schema of AVRO, not of Protobuf"),
    (framed(GOOD, schema_id=4), "schema: schema 4: it is not a schema in serialized form"),
    (framed(GOOD, schema_id=5), "schema: .* imports other.proto, to which it does not refer"),
    (framed(GOOD, schema_id=6), "schema: .* it is not a valid schema"),
    (framed(GOOD, schema_id=7), "schema: .* its field 'user' is repeated, and lists have no column"),
    (framed(GOOD, schema_id=8), "schema: .* the registry does not give schemas of Protobuf in serialized form"),
]


def test_damaged_messages_are_dead_letters_and_harm_no_neighbour(registry):
    registry.put_protobuf(1, ORDER_FILE)
    registry.put(3, record("Order", ("user", "string")))
    registry.put_protobuf(4, ORDER_FILE)
    registry.answers["/schemas/ids/4"]["schema"] = base64.b64encode(b"\xff\xff").decode()
    registry.put_protobuf(5, file(message("Order", field("a", 1, "string")), imports=["other.proto"]))
    registry.put_protobuf(6, file(message("Order", field("a", 1, ".shop.Missing"))))
    registry.put_protobuf(7, file(message("Order", field("user", 1, "string", label=3), AT), imports=IMPORTS))
    registry.put_protobuf(8, ORDER_FILE)
    registry.answers["/schemas/ids/8"]["schema"] = 'syntax = "proto3"; message Order {}'
    values = [framed(GOOD)]
    for value, _ in DAMAGED:
        values += [value, framed(GOOD)]

    together = decoder(registry, ORDER)
    found = together.decode(poll(values))
    alone = [decoder(registry, ORDER).decode(poll([value])) for value, _ in DAMAGED[:24]]

    said = reasons(found)
    others = {
        number: said.get(2 * number + 1)
        for number, (_, reason) in enumerate(DAMAGED)
        if not re.search(reason, said.get(2 * number + 1, ""))
    }
    assert not others
    assert [reasons(each)[0] for each in alone] == [said[2 * number + 1] for number in range(24)]
    expected = {"user": "ann", "amount": 2.5, "at": NOON, "kind": "SALE", "n": 7}
    assert found.events.select(*expected).to_dicts() == [expected] * (len(DAMAGED) + 1)
    # Messages whose schema cannot be used are counted; those that are damaged are not.
    assert together.incompatible == 8


def test_cut_and_overwritten_messages_never_stop_the_flow(registry):
    registry.put_protobuf(1, ORDER_FILE)
    values = [framed(BYTES[:at]) for at in range(len(BYTES))]
    values += [
        framed(BYTES[:at] + bytes([octet]) + BYTES[at + 1 :]) for at in range(len(BYTES)) for octet in range(256)
    ]
    values += [b"\0\0\0\0\1" + bytes([one, two]) for one in range(256) for two in (0, 1, 2, 4, 127, 128, 255)]

    decoding = decoder(registry, ORDER)
    found = decoding.decode(poll(values))

    assert found.events.height + found.dead.height + decoding.ignored == len(values)
    assert set(found.dead["kind"].unique()) <= {"frame", "schema", "malformed", "encoding", "range", "time", "type"}
    # What was read is what Google's library reads.
    made = ORDERS["shop.Order"]
    for offset, user, amount in found.events.select("_offset", "user", "amount").rows():
        index_of_first = values[offset][5:6] == b"\0"
        again = made.FromString(values[offset][6:]) if index_of_first else None
        assert again is not None
        assert user == again.user
        assert amount == again.amount or (math.isnan(amount) and math.isnan(again.amount))


def test_bytes_written_by_hand_are_read(registry):
    registry.put_protobuf(1, ORDER_FILE)
    stamp = b"\x08" + varint(NOON_S) + b"\x10" + varint(1999)
    by_hand = b"\x0a\x03bob" + b"\x11" + struct.pack("<d", 1.25) + b"\x18\x01" + b"\x7a" + bytes([len(stamp)]) + stamp
    wrapped = by_hand + b"\x22\x02\x08\x05"
    # Zeros that need not be written, an over-long varint, and a field twice, of which the last counts.
    odd = b"\x0a\x01x" + by_hand + b"\x18\x80\x00" + b"\x22\x02\x08\x00"

    found = decoder(registry, ORDER).decode(poll([framed(each) for each in (by_hand, wrapped, odd)]))

    assert reasons(found) == {}
    instant = NOON.replace(microsecond=1)
    assert found.events.select("user", "amount", "at", "kind", "n").rows() == [
        ("bob", 1.25, instant, "SALE", None),
        ("bob", 1.25, instant, "SALE", 5),
        ("bob", 1.25, instant, "UNKNOWN", 0),
    ]


def test_a_symbol_that_the_stream_does_not_know_is_the_default_of_its_enum(registry):
    registry.put_protobuf(1, ORDER_FILE)
    kind = {"type": "enum", "name": "Kind", "symbols": ["OTHER", "SALE"], "default": "OTHER"}
    values = [framed(BYTES + tag(3, 0) + bytes([number])) for number in (0, 1, 2, 7)]

    found = decoder(registry, record("Order", AT_COLUMN, ("kind", kind))).decode(poll(values))

    assert found.events["kind"].to_list() == ["OTHER", "SALE", "OTHER", "OTHER"]


def varint(number):
    octets = b""
    while number > 0x7F:
        octets += bytes([number & 0x7F | 0x80])
        number >>= 7
    return octets + bytes([number])


def test_fields_inside_messages_wrappers_and_recursion(registry):
    place = message("Place", field("lat", 1, "double"), field("name", 2, ".google.protobuf.StringValue"))
    order = message(
        "Order",
        AT,
        field("class", 1, ".shop.Place"),  # a word of Python
        field("HasField", 2, "string"),  # a method of every message
        field("parent", 3, ".shop.Order"),
        field("tags", 4, "string", label=3),
        field("marks", 5, ".shop.Order.MarksEntry", label=3),
        nested=[message("MarksEntry", field("key", 1, "string"), field("value", 2, "int64"), map_entry=True)],
    )
    schema = file(place, order, imports=[*IMPORTS, "google/protobuf/wrappers.proto"])
    made = types(schema)["shop.Order"]
    registry.put_protobuf(1, schema)
    inner = record("Place", ("lat", "double"), ("name", ["null", "string"]))
    parent = record("Parent", ("HasField", "string"))
    reader = record(
        "Order", AT_COLUMN, ("class", ["null", inner]), ("HasField", "string"), ("parent", ["null", parent])
    )
    paths = {"lat": "class.lat", "name": "class.name", "of": "parent.HasField"}
    full = made(at=NOON, parent={"HasField": "p"}, tags=["a"], marks={"k": 1})
    getattr(full, "class").lat = 1.5
    getattr(full, "class").name.value = "x"
    empty_place = made(at=NOON)
    getattr(empty_place, "class").SetInParent()
    bottomless = b""
    for _ in range(200):
        bottomless = b"\x1a" + varint(len(bottomless)) + bottomless
    values = [framed(each, index=b"\x02\x02") for each in (full, empty_place, made(at=NOON), bottomless)]

    found = decoder(registry, reader, fields=paths).decode(poll(values))

    assert found.events.select("lat", "name", "of").rows() == [
        (1.5, "x", "p"),
        (0.0, None, None),
        (None, None, None),
    ]
    assert reasons(found)[3].startswith("malformed: not a message of type shop.Order")


WRAPPED = [
    # the wrapper, Avro type of the column, what is written, its zero
    ("Double", "double", -0.1, 0.0),
    ("Float", "double", 0.5, 0.0),
    ("Int64", "long", -(2**63), 0),
    ("UInt64", "long", 2**63 - 1, 0),
    ("Int32", "int", -(2**31), 0),
    ("UInt32", "long", 2**32 - 1, 0),
    ("Bool", "boolean", True, False),
    ("String", "string", "é", ""),
    ("Bytes", "bytes", b"\xff", b""),
]


def test_every_wrapper_is_its_value_its_zero_or_null_and_so_is_what_a_oneof_holds(registry):
    fields = [
        field(f"{of}{kind}", number, f".google.protobuf.{kind}Value", oneof=0 if of else None)
        for of, start in (("", 20), ("one", 40))
        for number, (kind, *_) in enumerate(WRAPPED, start)
    ]
    more = [field("oneKind", 60, "=shop.Kind", oneof=0), field("oneAt", 61, ".google.protobuf.Timestamp", oneof=0)]
    schema = file(
        message("Order", AT, *fields, *more, oneofs=["one"]),
        imports=[*IMPORTS, "google/protobuf/wrappers.proto"],
        enums=[enum("Kind", UNKNOWN=0, SALE=1)],
    )
    made = types(schema)["shop.Order"]
    registry.put_protobuf(1, schema)
    columns = [(f"{of}{kind}", ["null", avro]) for of in ("", "one") for kind, avro, _, _ in WRAPPED]
    columns += [("oneKind", ["null", "string"]), ("oneAt", ["null", AT_COLUMN[1]])]
    held = {f"one{kind}": {"value": written} for kind, _, written, _ in WRAPPED} | {"oneKind": 1, "oneAt": NOON}
    written = [made(at=NOON, **{kind: {"value": value} for kind, _, value, _ in WRAPPED})]
    written += [made(at=NOON, **{kind: {"value": zero} for kind, _, _, zero in WRAPPED})]
    written += [made(at=NOON, **{name: value}) for name, value in held.items()]

    found = decoder(registry, record("Order", AT_COLUMN, *columns)).decode(poll([framed(each) for each in written]))

    assert reasons(found) == {}
    full, zeros, *ones = found.events.select(*(name for name, _ in columns)).to_dicts()
    nothing = dict.fromkeys(full)
    assert full == nothing | {kind: value for kind, _, value, _ in WRAPPED}
    assert zeros == nothing | {kind: zero for kind, _, _, zero in WRAPPED}
    values = [value for _, _, value, _ in WRAPPED] + ["SALE", NOON]
    assert ones == [nothing | {name: value} for name, value in zip(held, values, strict=True)]


PRICE = {"type": "bytes", "logicalType": "decimal", "precision": 18, "scale": 2}
KNOWN = [
    # the type, its fields, what is read; a text is the reason why it is refused
    ("took", {"seconds": 2, "nanos": 500_001_999}, 2_500_001),
    ("took", {"seconds": -2, "nanos": -1_999}, -2_000_001),
    ("took", {"nanos": -999}, 0),
    ("took", {}, 0),
    ("took", {"seconds": 1, "nanos": -1}, "range: took: seconds: 1 nanos: -1 is not a valid Duration"),
    ("took", {"nanos": 1_000_000_000}, "range: took: nanos: 1000000000 is not a valid Duration"),
    ("took", {"seconds": -(2**63)}, "range: took: seconds: -9223372036854775808 is not a valid Duration"),
    ("born", {"year": 2024, "month": 2, "day": 29}, date(2024, 2, 29)),
    ("born", {"year": 1, "month": 1, "day": 1}, date(1, 1, 1)),
    ("born", {"year": 9999, "month": 12, "day": 31}, date(9999, 12, 31)),
    ("born", {"year": 2023, "month": 2, "day": 29}, "range: born: year: 2023 month: 2 day: 29 is not a whole date"),
    ("born", {"month": 2, "day": 28}, "range: born: month: 2 day: 28 is not a whole date"),
    ("born", {"year": 2**31 - 1}, "range: born: year: 2147483647 is not a whole date"),
    ("born", {}, "range: born: an empty message is not a whole date"),
    ("opens", {"hours": 23, "minutes": 59, "seconds": 59, "nanos": 999_999_999}, time(23, 59, 59, 999_999)),
    ("opens", {}, time(0)),
    ("opens", {"hours": 24}, "range: opens: hours: 24 is not a time of day"),
    ("opens", {"seconds": -1}, "range: opens: seconds: -1 is not a time of day"),
    ("price", {"value": b"\xff\x38", "scale": 2}, Decimal("-2.00")),
    ("price", {"value": b"\x05", "scale": 0}, Decimal("5.00")),
    ("price", {"value": b"\x05", "scale": -1}, Decimal("50.00")),
    ("price", {"value": b"\x01\xf4", "scale": 4}, Decimal("0.05")),
    ("price", {}, Decimal("0.00")),
    ("price", {"scale": 2**31 - 1}, Decimal("0.00")),
    ("price", {"value": b"\x7f" + b"\xff" * 7, "scale": 2}, Decimal("92233720368547758.07")),
    ("price", {"value": b"\x80" + b"\0" * 7, "scale": 2}, "range: price is beyond 2.63 - 1 units of its last digit"),
    ("price", {"value": (10**100).to_bytes(48, "big"), "scale": 100}, Decimal("1.00")),
    ("price", {"value": (-(10**100)).to_bytes(80, "big", signed=True), "scale": 102}, Decimal("-0.01")),
    ("price", {"value": (10**100).to_bytes(48, "big"), "scale": 103}, "range: price has more than 2 digits after the"),
    ("price", {"value": b"\x7f" * 1_000, "scale": 2**31 - 1}, "range: price has more than 38 digits"),
    ("price", {"value": b"\x7f" * 40, "scale": 2}, "range: price has more than 38 digits"),
    ("price", {"value": b"\x05", "scale": 3}, "range: price has more than 2 digits after the point"),
    ("price", {"value": b"\x05", "scale": 2**31 - 1}, "range: price has more than 2 digits after the point"),
    ("price", {"value": b"\x05", "scale": -(2**31)}, "range: price has more than 38 digits"),
]


def test_messages_that_stand_for_one_value_are_read_as_that(registry):
    names = {
        "took": ".google.protobuf.Duration",
        "born": ".google.type.Date",
        "opens": ".google.type.TimeOfDay",
        "price": ".confluent.type.Decimal",
    }
    fields = [field(name, number, kind) for number, (name, kind) in enumerate(names.items(), 1)]
    files = ["protobuf/timestamp", "protobuf/duration", "type/date", "type/timeofday"]
    # Old clients know the file of decimals by another name.
    for schema_id, decimals in ((1, "confluent/type/decimal.proto"), (2, "confluent/types/decimal.proto")):
        imports = [*(f"google/{each}.proto" for each in files), decimals]
        registry.put_protobuf(schema_id, file(message("Order", AT, *fields), imports=imports))
    imports[-1] = "confluent/type/decimal.proto"
    made = types(file(message("Order", AT, *fields), imports=imports))["shop.Order"]
    types_of = {
        "took": "long",
        "born": {"type": "int", "logicalType": "date"},
        "opens": {"type": "long", "logicalType": "time-micros"},
        "price": PRICE,
    }
    columns = [(name, ["null", kind]) for name, kind in types_of.items()]
    values = [framed(made(at=NOON, **{name: parts}), 1 + at % 2) for at, (name, parts, _) in enumerate(KNOWN)]

    found = decoder(registry, record("Order", AT_COLUMN, *columns)).decode(poll([*values, framed(made(at=NOON))]))

    rows = {row["_offset"]: row for row in found.events.select("_offset", *names).to_dicts()}
    said = reasons(found)
    assert rows.pop(len(KNOWN)) == {"_offset": len(KNOWN), **dict.fromkeys(names)}
    for at, (name, _, expected) in enumerate(KNOWN):
        if isinstance(expected, str):
            assert re.search(expected, said.pop(at)), KNOWN[at]
        else:
            assert rows.pop(at) == {"_offset": at, **dict.fromkeys(names), name: expected}, KNOWN[at]
    assert not rows
    assert not said


@pytest.mark.parametrize(
    ("kind", "label", "column", "message_said"),
    [
        ("string", 3, ("it", "string"), "its field 'it' is repeated, and lists have no column and no fields inside"),
        (".google.protobuf.Timestamp", 3, ("it", AT_COLUMN[1]), "its field 'it' is repeated, and lists"),
        (".shop.Order.ItEntry", 3, ("it", "string"), "its field 'it' is a map, and maps have no column"),
        (
            ".google.protobuf.Duration",
            1,
            ("it", "string"),
            "its field 'it' is null | long, which cannot be read as string",
        ),
        (
            ".google.protobuf.Struct",
            1,
            ("it", "string"),
            "its field 'it' is a google.protobuf.Struct, which cannot be read as string",
        ),
        (
            ".confluent.type.Decimal",
            1,
            ("it", "double"),
            "its field 'it' is a confluent.type.Decimal, which cannot be read as double",
        ),
    ],
)
def test_a_field_that_is_no_single_value_of_the_columns_type_is_named(registry, kind, label, column, message_said):
    entry = message("ItEntry", field("key", 1, "string"), field("value", 2, "string"), map_entry=True)
    nested = [entry] if kind.endswith("ItEntry") else []
    imports = [
        *IMPORTS,
        "google/protobuf/duration.proto",
        "google/protobuf/struct.proto",
        "confluent/type/decimal.proto",
    ]
    schema = file(message("Order", AT, field("it", 1, kind, label=label), nested=nested), imports=imports)
    registry.put_protobuf(1, schema)
    made = types(schema)["shop.Order"]

    found = decoder(registry, record("Order", AT_COLUMN, column)).decode(poll([framed(made(at=NOON))]))

    assert message_said in reasons(found)[0]


def test_proto2_has_its_defaults_its_required_fields_and_its_closed_enums(registry):
    order = message(
        "Order",
        AT,
        field("must", 1, "int64", label=2),
        field("seven", 2, "int32", default="7"),
        field("text", 3, "string", default="é"),
        field("open", 4, "double"),
        field("kind", 5, "=shop.Kind", default="SALE"),
        ranges=[(100, 200)],
    )
    schema = file(order, syntax="proto2", imports=IMPORTS, enums=[enum("Kind", RETURN=1, SALE=2)])
    made = types(schema)["shop.Order"]
    registry.put_protobuf(1, schema)
    columns = [
        ("must", "long"),
        ("seven", "long"),
        ("text", "string"),
        ("open", ["null", "double"]),
        ("kind", "string"),
    ]
    least = made(at=NOON, must=0)
    octets = least.SerializeToString()
    values = [
        least,
        made(at=NOON, must=1, seven=0, text="", open=0, kind=1),
        made(at=NOON).SerializePartialToString(),
        octets + b"\x1a\x02\xff\xfe",
        octets + b"\x28\x09",
        octets + b"\xc0\x06\x01",  # field 104, of an extension
        octets + b"\xc8\x0c\x01",  # field 201
    ]

    found = decoder(registry, record("Order", AT_COLUMN, *columns)).decode(poll([framed(each) for each in values]))

    assert found.events.select("must", "seven", "text", "open", "kind").rows() == [
        (0, 7, "é", None, "SALE"),
        (1, 0, "", 0.0, "RETURN"),
        (0, 7, "é", None, "SALE"),
    ]
    said = reasons(found)
    assert set(said) == {2, 3, 4, 6}
    assert "required" in said[2]
    assert said[3] == "encoding: text is not UTF-8"
    assert said[4] == "range: kind: its number is not that of a symbol of shop.Kind"
    assert said[6].endswith("it has no field 201")


def test_message_types_are_chosen_by_name_and_others_are_ignored(registry):
    schema = file(
        message("Refund", AT, field("user", 1, "string"), nested=[message("Order", AT, field("user", 2, "string"))]),
        message("Order", AT, field("user", 3, "string")),
        message(
            "Mapped",
            field("marks", 1, ".shop.Mapped.MarksEntry", label=3),
            nested=[
                message("MarksEntry", field("key", 1, "string"), field("value", 2, "int64"), map_entry=True),
                message("Inner", AT, field("user", 4, "string")),
            ],
        ),
        imports=IMPORTS,
    )
    made = types(schema)
    registry.put_protobuf(1, schema)
    values = [
        framed(made["shop.Refund"](at=NOON, user="refund")),
        framed(made["shop.Refund.Order"](at=NOON, user="inner"), index=b"\x04\0\0"),
        framed(made["shop.Order"](at=NOON, user="order"), index=b"\x02\x02"),
        framed(made["shop.Mapped.Inner"](at=NOON, user="x"), index=b"\x04\x04\x00"),
    ]

    def users(**more):
        decoding = decoder(registry, record("Order", AT_COLUMN, ("user", "string")), **more)
        found = decoding.decode(poll(values))
        return dict(found.events.select("_offset", "user").rows()), decoding.ignored, list(reasons(found))

    assert users() == ({1: "inner", 2: "order"}, 1, [3])
    assert users(records=["shop.Order"]) == ({2: "order"}, 2, [3])
    assert users(records="Refund") == ({0: "refund"}, 2, [3])
    assert users(records="Other") == ({}, 4, [])
    assert users(schema_ids=[2]) == ({}, 0, [0, 1, 2, 3])


def test_writers_change_and_the_columns_are_resolved_and_converted_as_any_other(registry):
    first = file(message("Order", field("created", 1, "int64"), field("total", 2, "string")))
    second = file(
        message(
            "Order",
            field("created", 5, "double"),
            field("total", 2, "string"),
            field("note", 3, ".other.Note"),
        ),
        imports=["other.proto"],
    )
    other = file(message("Note", field("text", 1, "string")), name="other.proto", package="other")
    third = file(message("Order", field("created", 1, "int64")))
    registry.put_protobuf(1, first)
    registry.put_protobuf(2, second, other)
    registry.put_protobuf(3, third)
    reader = {
        "type": "record",
        "name": "Order",
        "fields": [
            {"name": "at", "aliases": ["created"], "type": "double"},
            {"name": "price", "aliases": ["total"], "type": ["null", "string"], "default": None},
            {"name": "note", "type": ["null", record("Note", ("text", "string"))], "default": None},
        ],
    }
    values = [
        framed(types(first)["shop.Order"](created=NOON_S, total="1.50"), 1),
        framed(types(other, second)["shop.Order"](created=NOON_S + 0.5, total="-2", note={"text": "n"}), 2),
        framed(types(third)["shop.Order"](created=NOON_S), 3),
        framed(types(first)["shop.Order"](created=NOON_S, total="a lot"), 1),
    ]

    decoding = decoder(
        registry, reader, fields={"text": "note.text"}, read_as={"at": "unix-s", "price": "decimal(38,2)"}
    )
    found = decoding.decode(poll(values))

    assert found.events.select("at", "price", "text").rows() == [
        (NOON, Decimal("1.50"), None),
        (NOON.replace(microsecond=500_000), Decimal("-2.00"), "n"),
        (NOON, None, None),
    ]
    assert reasons(found) == {3: "type: price: 'a lot' is not a number"}


def test_an_id_that_the_registry_learns_later_is_asked_for_again(registry):
    decoding = decoder(registry, ORDER)

    assert "the registry has no such schema" in reasons(decoding.decode(poll([framed(GOOD)])))[0]
    registry.put_protobuf(1, ORDER_FILE)
    decided = decoding.decode(poll([framed(GOOD)], decided=True))

    assert decided.events["user"].to_list() == ["ann"]


def test_a_stream_in_protobuf_needs_a_registry_and_knows_no_change_events():
    stream = plan_stream(Stream("orders", topic="orders", schema=ORDER, event_time="at", format="protobuf"))
    with pytest.raises(DefinitionError, match="which only a Schema Registry knows; use --schema-registry"):
        decoder_of(stream)
    with pytest.raises(DefinitionError, match="envelope='debezium' is for Avro and JSON"):
        plan_stream(
            Stream("orders", topic="orders", schema=ORDER, event_time="at", format="protobuf", envelope="debezium")
        )


def test_a_letter_is_shown_as_data_mended_and_judged(registry):
    registry.put_protobuf(1, ORDER_FILE)
    stream = Stream("orders", topic="orders", schema=ORDER, event_time="at", format="protobuf", partitioned_by="user")
    counted = FeatureView(
        "counted", entity=Entity("user", key="user"), stream=stream, features=[Feature("n", agg.count(), Lifetime())]
    )
    checks = Checks(compile_definitions(counted), SchemaRegistry(f"http://{registry.address}", threading.Event()))
    bad = framed(ORDERS["shop.Order"](user="ann", at=NOON, kind=2))
    letter = Resend("orders", "orders", 0, 5, None, bad, None)

    assert checks.fault(letter, twice=False) == "kind: 'RETURN' is not one of its symbols"
    shown = checks.decoded(letter)
    assert shown == {"user": "ann", "kind": "RETURN", "at": "2017-01-01T12:00:00Z"}
    mended = replace(letter, value=checks.encoded(letter, {**shown, "kind": "SALE"}))
    assert mended.value == framed(ORDERS["shop.Order"](user="ann", at=NOON, kind=1))
    assert checks.fault(mended, twice=False) is None
    with pytest.raises(RequestError, match=r"orders/0/5: the value under mended does not fit the schema"):
        checks.encoded(letter, {"nobody": 1})
    unreadable = replace(letter, value=bad[:5])
    assert checks.decoded(unreadable) is None
    with pytest.raises(RequestError, match="its message index cannot be read"):
        checks.encoded(unreadable, shown)


def test_without_the_extra_the_error_names_it(monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("google.", "unskew.pipelines.decoding.protobuf"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "google.protobuf", None)
    stream = plan_stream(Stream("orders", topic="orders", schema=ORDER, event_time="at", format="protobuf"))

    with pytest.raises(RequestError, match=r"format protobuf needs .* protobuf, .* pip install .unskew\[protobuf\]"):
        decoder_of(stream, object())
