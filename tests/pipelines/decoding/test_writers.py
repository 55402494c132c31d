"""Which schema a message was written with is never guessed: ids, record types, and a registry that learns late."""

import io
import itertools
import logging
from datetime import UTC, datetime

import fastavro
import pytest

from tests.support.polls import poll_of
from unskew.features.definitions.streams import plan_stream
from unskew.features.definitions.vocabulary import Stream
from unskew.features.errors import DefinitionError
from unskew.pipelines.decoding.avro import AvroDecoder
from unskew.pipelines.decoding.resolve import Unregistered
from unskew.pipelines.decoding.writers import ANSWERS, KEPT

NOON_MS = 1_483_272_000_000
AT = {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}}


def record(name, *fields):
    return {"type": "record", "name": name, "fields": [*({"name": n, "type": t} for n, t in fields), AT]}


ORDER = record("shop.OrderPlaced", ("items", "int"), ("amount", "int"))
SWAPPED = record("shop.OrderPlaced", ("amount", "int"), ("items", "int"))
CANCELLED = record("shop.OrderCancelled", ("items", "int"), ("amount", "int"))


def encode(schema, datum, schema_id=1):
    body = io.BytesIO()
    value = {"at": datetime(2017, 1, 1, 12, tzinfo=UTC), **datum}
    branches = [each if isinstance(each, str) else each["name"] for each in schema] if isinstance(schema, list) else []
    name = value.pop("-type", None)
    fastavro.schemaless_writer(body, fastavro.parse_schema(schema), (name, value) if branches else value)
    return b"\0" + schema_id.to_bytes(4, "big") + body.getvalue()


def poll(values, schema_id=None, place="orders orders/0", *, decided=False):
    return poll_of(values, NOON_MS * 1000, "orders", schema_id=schema_id, place=place, decided=decided)


def stream(schema=ORDER, **more):
    return plan_stream(Stream("orders", topic="orders", schema=schema, event_time="at", **more))


def amounts(decoded):
    return dict(decoded.events.select("_offset", "amount").rows())


class Registered:
    """Schemas by id, as a registry has them; ``asked`` is what it was asked for."""

    def __init__(self, **schemas) -> None:
        self.schemas = {int(name[1:]): schema for name, schema in schemas.items()}
        self.asked = []
        self.expected = []

    def writer(self, schema_id, *, expected=False):
        self.asked.append(schema_id)
        self.expected.append(expected)
        if schema_id not in self.schemas:
            raise Unregistered("the registry has no such schema")
        return self.schemas[schema_id]


def test_without_a_registry_only_ids_that_mean_the_stream_s_schema_are_read_with_it():
    values = [
        encode(ORDER, {"items": 1, "amount": 10}, 7),
        encode(SWAPPED, {"items": 1, "amount": 20}, 8),
        encode(ORDER, {"items": 1, "amount": 30}, 7),
    ]

    found = AvroDecoder(stream()).decode(poll(values, schema_id=7))
    assert amounts(found) == {0: 10, 2: 30}
    assert found.dead.select("offset", "kind").rows() == [(1, "schema")]
    assert (
        "the partition began with 7: list under schema_ids which of them mean the stream's schema"
        in found.dead.item(0, "reason")
    )
    # A poll that begins in the middle is judged alike.
    assert amounts(AvroDecoder(stream()).decode(poll(values[1:], schema_id=7))) == {1: 30}

    listed = AvroDecoder(stream(schema_ids=[8, 9])).decode(poll(values, schema_id=7))
    assert listed.dead["reason"].to_list() == ["unknown schema id 7; the stream's schema_ids are 8, 9"] * 2
    both = [values[0], encode(ORDER, {"items": 1, "amount": 20}, 8)]
    assert amounts(AvroDecoder(stream(schema_ids=[7, 8])).decode(poll(both, schema_id=7))) == {0: 10, 1: 20}


@pytest.mark.parametrize("began", [{}, {"orders orders/1": 8}])
def test_partitions_that_began_with_different_ids_stop_the_run_until_the_ids_are_listed(began):
    values = [encode(ORDER, {"items": 1, "amount": 10}, 7)]
    decoder = AvroDecoder(stream(), began=began)

    if not began:
        assert amounts(decoder.decode(poll(values, schema_id=8, place="orders orders/1"))) == {}
    with pytest.raises(DefinitionError, match=r"orders/0 with 7, orders/1 with 8.*schema_ids=\[7, 8\]"):
        decoder.decode(poll(values, schema_id=7))
    listed = AvroDecoder(stream(schema_ids=[7, 8]), began=began)
    assert amounts(listed.decode(poll(values, schema_id=8))) == {0: 10}


@pytest.mark.parametrize("given", [[7, 7], [-1], ["7"], [True], "7", [2**32]])
def test_schema_ids_are_a_list_of_ids(given):
    with pytest.raises(DefinitionError, match="not a list of different schema ids"):
        stream(schema_ids=given)


def test_records_of_other_types_are_neither_events_nor_dead_letters_and_are_counted(caplog):
    values = [
        encode(ORDER, {"items": 1, "amount": 10}, 1),
        encode(CANCELLED, {"items": 1, "amount": 20}, 2),
        encode(ORDER, {"items": 1, "amount": 30}, 1),
        b"\0\0\0\0\x02",
    ]
    registered = Registered(_1=ORDER, _2=CANCELLED)
    decoder = AvroDecoder(stream(), registered)
    with caplog.at_level(logging.WARNING):
        found = [decoder.decode(poll(values)) for _ in range(2)][-1]

    assert amounts(found) == {0: 10, 2: 30}
    assert (found.dead.height, decoder.ignored, decoder.incompatible) == (0, 4, 0)
    assert [each.levelname for each in caplog.records if "under `records`" in each.message] == ["WARNING"]


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        (None, [0, 2]),
        ("OrderPlaced", [0, 2]),
        ("shop.OrderPlaced", [0]),
        (["shop.OrderPlaced", "shop.OrderCancelled"], [0, 1]),
        ("OrderCancelled", [1]),
    ],
)
def test_records_names_the_types_that_are_events_with_or_without_namespace(records, expected):
    other = {**ORDER, "name": "web.OrderPlaced"}
    values = [
        encode(schema, {"items": 1, "amount": 10}, schema_id)
        for schema_id, schema in enumerate((ORDER, CANCELLED, other), start=1)
    ]
    decoder = AvroDecoder(stream(records=records), Registered(_1=ORDER, _2=CANCELLED, _3=other))

    assert list(amounts(decoder.decode(poll(values)))) == expected
    assert decoder.ignored == 3 - len(expected)


def test_an_alias_of_the_stream_s_record_names_a_type_of_events_too():
    renamed = {**ORDER, "name": "Purchase", "aliases": ["shop.OrderPlaced"]}

    decoder = AvroDecoder(stream(renamed), Registered(_1=ORDER, _2=renamed, _3=CANCELLED))
    values = [
        encode(schema, {"items": 1, "amount": 10}, schema_id)
        for schema_id, schema in ((1, ORDER), (2, renamed), (3, CANCELLED))
    ]

    assert list(amounts(decoder.decode(poll(values)))) == [0, 1]


def test_a_message_of_a_union_is_read_as_the_record_that_it_is():
    union = [CANCELLED, "null", ORDER]
    values = [
        encode(union, {"-type": "shop.OrderPlaced", "items": 1, "amount": 10}),
        encode(union, {"-type": "shop.OrderCancelled", "items": 1, "amount": 20}),
        b"\0\0\0\0\x01\x02",
        encode(ORDER, {"items": 1, "amount": 30}, 2),
        encode(union, {"-type": "shop.OrderPlaced", "items": 1, "amount": 40}),
        encode(union, {"-type": "shop.OrderPlaced", "items": 1, "amount": 40}) + b"x",
        b"\0\0\0\0\x01\x08",
        b"\0\0\0\0\x01",
    ]
    decoder = AvroDecoder(stream(), Registered(_1=union, _2=ORDER))
    found = decoder.decode(poll(values))

    assert amounts(found) == {0: 10, 3: 30, 4: 40}
    assert found.dead.select("offset", "kind", "value").rows() == [
        (5, "trailing", values[5]),
        (6, "malformed", values[6]),
        (7, "malformed", values[7]),
    ]
    assert decoder.ignored == 2
    for at, value in enumerate(values):
        alone = decoder.decode(poll([value]))
        assert list(amounts(alone).values()) == [amounts(found)[at]] if at in amounts(found) else not amounts(alone)
        assert alone.dead["reason"].to_list() == [
            why for off, why in found.dead["offset", "reason"].rows() if off == at
        ]


def test_an_id_that_is_registered_late_is_asked_for_again_with_growing_pauses_and_then_read():
    clock = itertools.count()
    now = [0.0]
    registered = Registered(_1=ORDER)
    decoder = AvroDecoder(stream(), registered, monotonic=lambda: now[0])
    value = encode(SWAPPED, {"items": 1, "amount": 20}, 9)

    for second in itertools.takewhile(lambda at: at < 40, clock):
        now[0] = float(second)
        found = decoder.decode(poll([value]))
        assert found.dead.select("kind", "reason").rows() == [("schema", "schema 9: the registry has no such schema")]
    # After 1, 2, 4, 8, 16 seconds, however many messages come meanwhile.
    assert len(registered.asked) == 6
    registered.schemas[9] = SWAPPED
    now[0] = 63.0
    assert amounts(decoder.decode(poll([value]))) == {0: 20}


def test_a_flood_of_unknown_ids_is_asked_for_and_remembered_within_bounds_and_does_not_hide_a_known_one():
    now = [0.0]
    registered = Registered(_1=ORDER)
    decoder = AvroDecoder(stream(), registered, monotonic=lambda: now[0])
    good = encode(ORDER, {"items": 1, "amount": 10})
    flood = [encode(ORDER, {"items": 1, "amount": 20}, schema_id) for schema_id in range(100, 2_100)]
    flood.append(b"\0\xff\xff\xff\xff" + good[5:])

    found = decoder.decode(poll([good, *flood, good]))
    assert list(amounts(found).values()) == [10, 10]
    assert (found.dead.height, set(found.dead["kind"])) == (2_001, {"schema"})
    assert registered.asked[0] == 1
    assert len(registered.asked) == 1 + ANSWERS
    now[0] = 10.0
    decoder.decode(poll(flood))
    assert len(registered.asked) <= 1 + ANSWERS + 10
    for second in range(20, 20 + 2 * KEPT):
        now[0] = float(second)
        decoder.decode(poll([encode(ORDER, {"items": 1, "amount": 20}, 10_000 + second)]))
    assert len(decoder._writers._unknown) <= KEPT


def test_what_an_earlier_run_has_read_is_not_refused_because_the_registry_lags():
    registered = Registered(_1=ORDER)
    decoder = AvroDecoder(stream(), registered)
    decoder.decode(poll([encode(ORDER, {"items": 1, "amount": 10})], decided=True))

    # The registry's client waits for an expected schema as for a registry that does not answer.
    assert registered.expected == [True]
