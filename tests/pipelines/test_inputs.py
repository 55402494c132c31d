"""The path of records: through a real broker, with keys, headers and writers' schemas, to features and dead letters."""

import io
import itertools
import json
import struct
import threading
from datetime import date, time
from decimal import Decimal

import fastavro
import polars as pl
import pytest
from confluent_kafka import Producer

from tests.support.schema_registry import Registry
from unskew.features.definitions import agg
from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.definitions.vocabulary import Entity, Feature, FeatureView, Lifetime, Stream
from unskew.features.errors import DefinitionError
from unskew.pipelines.deployment import Deployment
from unskew.pipelines.run import run

NOON_MS = 1_483_272_000_000
AT = {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}}
_topics = itertools.count()


def record(*fields):
    return {"type": "record", "name": "R", "fields": [*fields, AT]}


def framed(schema_id, schema, datum):
    body = io.BytesIO()
    fastavro.schemaless_writer(body, fastavro.parse_schema(schema), {**datum, "at": NOON_MS})
    return b"\0" + schema_id.to_bytes(4, "big") + body.getvalue()


@pytest.fixture
def registry():
    found = Registry()
    yield found
    found.close()


@pytest.fixture
def computed(broker, redis_url, tmp_path):
    """Put records into a topic, and give the archive, the dead letters and the log of features over them."""

    def compute(records, features, *, schema, key="user", registry=None, topic=None, n_partitions=1, **stream):
        """``topic``: one that an earlier call made, to go on with its state. Records go to the partitions in turn."""
        if topic is None:
            topic = compute.topic = f"inputs-{next(_topics)}"
            broker.create_topic(topic, n_partitions)
        producer = Producer({"bootstrap.servers": broker.bootstrap, "enable.idempotence": True, "log_level": 2})
        for offset, (record_key, value, headers) in enumerate(records):
            where = {"partition": offset % n_partitions, "timestamp": NOON_MS + offset}
            producer.produce(topic, value, key=record_key, headers=headers, **where)
        assert producer.flush(10) == 0
        source = Stream("s", topic=topic, schema=schema, event_time="at", owner="tests", **stream)
        view = FeatureView("v", entity=Entity("e", key=key), stream=source, owner="tests", features=features)
        deployment = Deployment(
            bootstrap=broker.bootstrap,
            redis_url=redis_url,
            schema_registry=registry,
            log=tmp_path / "log",
            archive=tmp_path / "archive",
            dead_letters=tmp_path / "dead",
            state=tmp_path / "state",
            idle="none",
            ends="now",
        )
        compute.status = run(compile_definitions(view), deployment, stop=threading.Event())
        tables = [
            [pl.read_parquet(file, hive_partitioning=False) for file in sorted(root.glob("**/day=*/*.parquet"))]
            for root in (deployment.archive, deployment.dead_letters, deployment.log)
        ]
        return [pl.concat(table) if table else pl.DataFrame() for table in tables]

    return compute


def test_a_writer_s_schema_may_change_in_the_middle_of_a_topic(computed, registry):
    first = record({"name": "user", "type": "string"}, {"name": "n", "type": "int"})
    second = record(
        {"name": "n", "type": "long"},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {"name": "who", "type": "string"},
    )
    broken = record({"name": "user", "type": "string"}, {"name": "n", "type": "string"})
    wanted = record({"name": "user", "type": "string", "aliases": ["who"]}, {"name": "n", "type": "long"})
    for schema_id, schema in ((1, first), (2, second), (3, broken)):
        registry.put(schema_id, schema)
    values = [
        framed(1, first, {"user": "a", "n": 1}),
        framed(2, second, {"who": "a", "n": 10, "tags": ["x", "y"]}),
        framed(3, broken, {"user": "a", "n": "1000"}),
        framed(1, first, {"user": "a", "n": 100}),
        framed(4, first, {"user": "a", "n": 10_000}),
    ]

    archive, dead, log = computed(
        [(None, value, None) for value in values],
        [Feature("n", agg.sum("n"), Lifetime())],
        schema=wanted,
        registry=f"http://{registry.address}",
    )

    assert archive.sort("_offset").select("_offset", "user", "n").rows() == [(0, "a", 1), (1, "a", 10), (3, "a", 100)]
    assert log.sort("seq")["n"].to_list()[-1] == 111
    assert dead.sort("offset").select("offset", "reason", "value").rows() == [
        (2, "schema 3: its field 'n' is string, which cannot be read as long", values[2]),
        (4, "schema 4: the registry has no such schema", values[4]),
    ]


def test_messages_in_protobuf_of_two_schemas_make_features_also_after_a_restart(computed, registry):
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    pools = []
    for schema_id, kind in ((1, kinds.TYPE_INT32), (2, kinds.TYPE_SINT64)):
        file = descriptor_pb2.FileDescriptorProto(name="r.proto", package="shop", syntax="proto3")
        fields = (("user", kinds.TYPE_STRING), ("n", kind), ("at", kinds.TYPE_INT64))
        for number, (name, each) in enumerate(fields, start=schema_id):
            field = (file.message_type or [file.message_type.add(name="R")])[0].field.add(name=name, number=number)
            field.type, field.label = each, kinds.LABEL_OPTIONAL
        registry.put_protobuf(schema_id, file)
        pools.append(descriptor_pool.DescriptorPool())
        pools[-1].AddSerializedFile(file.SerializeToString())

    def value(schema_id, n):
        made = message_factory.GetMessageClass(pools[schema_id - 1].FindMessageTypeByName("shop.R"))
        body = made(user="a", n=n, at=NOON_MS).SerializeToString()
        return None, b"\0" + schema_id.to_bytes(4, "big") + b"\0" + body, None

    more = {
        "schema": record({"name": "user", "type": "string"}, {"name": "n", "type": "long"}),
        "registry": f"http://{registry.address}",
        "format": "protobuf",
    }
    features = [Feature("n", agg.sum("n"), Lifetime())]
    cut = (None, value(1, 5)[1][:-1], None)

    computed([value(1, 1), cut, value(2, -10)], features, **more)
    rest = [*[cut] * 4, value(2, 100), value(1, 1000), cut]
    archive, dead, log = computed(rest, features, topic=computed.topic, **more)

    assert archive.sort("_offset").select("_offset", "n").rows() == [(0, 1), (2, -10), (7, 100), (8, 1000)]
    assert dead.sort("offset").select("offset", "kind").rows() == [(at, "malformed") for at in (1, 3, 4, 5, 6, 9)]
    assert log.sort("seq")["n"].to_list() == [1, -9, 91, 1091]


def test_an_id_that_comes_later_is_not_read_with_the_schema_of_the_first_one_nor_after_a_restart(computed):
    schema = record({"name": "user", "type": "string"}, {"name": "n", "type": "int"}, {"name": "m", "type": "int"})
    swapped = record({"name": "user", "type": "string"}, {"name": "m", "type": "int"}, {"name": "n", "type": "int"})
    features = [Feature("n", agg.sum("n"), Lifetime())]

    def values(*written):
        return [(None, framed(i, schemas, {"user": "a", "n": n, "m": 1_000}), None) for i, schemas, n in written]

    computed(values((7, schema, 1), (8, swapped, 10), (7, schema, 100)), features, schema=schema)
    # The second run meets the other id first.
    archive, dead, log = computed(
        values((8, swapped, 10), (7, schema, 10_000), *[(8, swapped, 10)] * 2),
        features,
        schema=schema,
        topic=computed.topic,
    )

    assert archive.sort("_offset").select("_offset", "n").rows() == [(0, 1), (2, 100), (4, 10_000)]
    assert log.sort("seq")["n"].to_list()[-1] == 10_101
    assert dead.sort("offset").select("offset", "kind").rows() == [
        (1, "schema"),
        (3, "schema"),
        (5, "schema"),
        (6, "schema"),
    ]


def test_partitions_that_begin_with_different_ids_end_the_run_with_what_to_declare(computed):
    schema = record({"name": "user", "type": "string"}, {"name": "n", "type": "int"})
    values = [(None, framed(schema_id, schema, {"user": "a", "n": 1}), None) for schema_id in (7, 8)]
    features = [Feature("n", agg.sum("n"), Lifetime())]

    for records, topic in ((values, lambda: None), ([], lambda: computed.topic)):
        with pytest.raises(DefinitionError, match=r"different schema ids .*schema_ids=\[7, 8\]"):
            computed(records, features, schema=schema, topic=topic(), n_partitions=2)
    archive, dead, _ = computed([], features, schema=schema, schema_ids=[7, 8], topic=computed.topic, n_partitions=2)
    assert (archive.height, dead.height) == (2, 0)


def test_change_events_make_features_of_inserted_rows_and_others_only_move_the_clock(computed):
    schema = {
        "type": "object",
        "properties": {
            "user": {"type": "string"},
            "cart": {"type": ["object", "null"], "properties": {"total": {"type": "string"}}},
            "at": {"type": "number"},
        },
        "required": ["user", "at"],
    }

    def change(op, total, user="a"):
        row = {"user": user, "cart": None if total is None else {"total": total}, "at": NOON_MS / 1000}
        payload = {"op": op, "before": row, "after": None if op == "d" else row}
        return None, json.dumps({"schema": {}, "payload": payload}).encode(), None

    archive, dead, log = computed(
        [change("c", "1.10"), change("u", "9"), change("c", "2.2"), change("c", None), change("c", "2.225"), change("d", "1"), (None, None, None)],
        [Feature("total", agg.sum("total"), Lifetime()), Feature("n", agg.count(), Lifetime())],
        schema=schema,
        format="json",
        fields={"total": "cart.total"},
        read_as={"total": "decimal(38,2)", "at": "unix-s"},
        envelope="debezium",
    )  # fmt: skip

    expected = [(0, "a", Decimal("1.10")), (2, "a", Decimal("2.20")), (3, "a", None)]
    assert archive.sort("_offset").select("_offset", "user", "total").rows() == expected
    # The last event's instant closes by the clock of what came after it and was no event.
    assert log.sort("seq").select("total", "n").rows() == [
        (Decimal("1.10"), 1), (Decimal("3.30"), 2), (Decimal("3.30"), 3),
    ]  # fmt: skip
    assert dead.select("offset", "kind").rows() == [(4, "range")]
    assert (computed.status.ignored, computed.status.dead, computed.status.consumed) == (3, 1, 7)


def test_json_with_keys_and_headers_becomes_columns(computed):
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "at": {"type": "string", "format": "date-time"}},
        "required": ["n", "at"],
    }
    noon = "2017-01-01T12:00:00Z"

    def value(n):
        return json.dumps({"n": n, "at": noon}).encode()

    archive, dead, log = computed(
        [
            (struct.pack(">q", 7), value(1), [("x-tenant", b"red")]),
            (struct.pack(">q", 7), value(2), [("x-tenant", b"blue"), ("x-tenant", b"red")]),
            (struct.pack(">q", 7), value(4), None),
            (b"7", value(8), None),
            (struct.pack(">q", -7), value(16), [("x-tenant", b"\xff")]),
            (struct.pack(">q", -7), b"{", [("x-tenant", b"red")]),
        ],
        [Feature("red", agg.sum("n"), Lifetime(), filter="tenant = 'red'"), Feature("n", agg.sum("n"), Lifetime())],
        schema=schema,
        key="id",
        format="json",
        key_column="id",
        key_format="int64",
        headers={"tenant": "x-tenant"},
    )

    assert archive.sort("_offset").select("id", "tenant", "n").rows() == [(7, "red", 1), (7, "red", 2), (7, None, 4)]
    assert log.sort("seq").select("id", "red", "n").rows()[-1] == (7, 3, 7)
    assert dead.sort("offset").select("offset", "reason").rows() == [
        (3, "the record key has 1 bytes; int64 has 8"),
        (4, "the header 'x-tenant' is not UTF-8"),
        (5, "not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    ]


def test_values_of_every_new_column_type_reach_the_archive(computed):
    schema = record(
        {"name": "user", "type": "string"},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "time", "type": {"type": "int", "logicalType": "time-millis"}},
    )
    raw = json.loads(json.dumps(schema).replace('"logicalType"', '"was"'))
    value = framed(7, raw, {"user": "a", "price": (-1234).to_bytes(3, "big", signed=True), "day": 17_000, "time": 1})
    archive, dead, log = computed(
        # The second has its own instant, so that the first one's closes.
        [(b"k", value, None), (b"k", None, None)],
        [
            Feature("price", agg.sum("price"), Lifetime()),
            Feature("summer", agg.count(), Lifetime(), filter="day > '2016-06-01'::date"),
        ],
        schema=schema,
    )

    assert dead["reason"].to_list() == ["empty value (tombstone)"]
    assert archive.select("price", "day", "time").rows() == [
        (Decimal("-12.34"), date(2016, 7, 18), time(0, 0, 0, 1_000))
    ]
    assert log.select("price", "summer").rows() == [(Decimal("-12.34"), 1)]
