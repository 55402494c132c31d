"""Measure decoding alone: microseconds per message in polls of 10,000 and of 20, and the time of the first poll.

    python benchmarks/bench_decode.py [--seconds 3]

Times are processor time of one process; Polars has one thread. Messages have nine keys that are read and two that are
not, and about 210 bytes of JSON. Those of ``nested`` have a key of the stream a second time, inside an object; those of
``escaped`` have a text with an escape. ``first``: wall seconds of a format's first poll, including compilation; to
measure it as on a machine that has compiled nothing, set NUMBA_CACHE_DIR to an empty folder. Those of ``protobuf`` need
``unskew[protobuf]``. Those of ``inside`` have all keys but the time in a record or object that may be null, those of
``changes`` are change events of Debezium, and of those of ``decimal`` one number is read as a decimal.

The second table has Avro in polls of 10,000: decoding with the filter and the value of a view, with and without the
conditions that find records whose whole numbers leave int64, in turns, and the ratio of the two.
"""

import os

os.environ["POLARS_MAX_THREADS"] = "1"  # noqa: TID251 - read by Polars when it is imported

import argparse
import io
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import fastavro
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from unskew.features.definitions import agg
from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.definitions.vocabulary import Entity, Feature, FeatureView, Sliding, Stream
from unskew.features.evaluate import Evaluator
from unskew.features.plan import ViewPlan
from unskew.pipelines.decoding.avro import Decoder, decoder_of
from unskew.pipelines.kafka.blobs import Blobs
from unskew.pipelines.kafka.poll import Poll

START_MS = 1_600_000_000_000
KINDS = {"user": "string", "n": "long", "x": "double", "flag": "boolean"}
FIELDS: list[dict[str, Any]] = [
    *({"name": name, "type": kind} for name, kind in KINDS.items()),
    *({"name": f"maybe_{name}", "type": ["null", kind]} for name, kind in KINDS.items()),
    {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
]
SCHEMA = {"type": "record", "name": "Event", "fields": FIELDS}
EXTRA: list[dict[str, Any]] = [{"name": "session", "type": "string"}, {"name": "page", "type": "string"}]


def events(n: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(1)
    reals = random.random((n, 2)).tolist()
    return [
        {
            "user": f"user{row % 997}",
            "n": row,
            "x": x * 100,
            "flag": row % 2 == 0,
            "maybe_user": None if row % 3 else "someone",
            "maybe_n": row % 9,
            "maybe_x": y,
            "maybe_flag": None,
            "at": START_MS + row,
            "session": "abcdef0123456789",
            "page": f"/shop/cart?id={row}",
        }
        for row, (x, y) in enumerate(reals)
    ]


ROW: dict[str, Any] = {"type": "record", "name": "Event", "fields": [*FIELDS, *EXTRA]}
HOLDING = {
    "type": "record",
    "name": "Holding",
    "fields": [{"name": "of", "type": ["null", {**ROW, "fields": ROW["fields"][:-3] + EXTRA}]}, FIELDS[-1]],
}
CHANGE = {
    "type": "record",
    "name": "Envelope",
    "fields": [
        {"name": "before", "type": ["null", ROW]},
        {"name": "after", "type": ["null", "Event"]},
        {"name": "op", "type": "string"},
    ],
}
PATHS = {each["name"]: f"of.{each['name']}" for each in FIELDS[:-1]}
CHANGES: dict[str, Any] = {"envelope": "debezium", "operations": ["c"]}


def holding(event: dict[str, Any]) -> dict[str, Any]:
    return {"of": {name: value for name, value in event.items() if name != "at"}, "at": event["at"]}


def change(event: dict[str, Any]) -> dict[str, Any]:
    return {"before": None, "after": event, "op": "c"}


def in_avro(found: list[dict[str, Any]], schema: Mapping[str, Any] = ROW) -> list[bytes]:
    # The logical type is left out, because its values would not be numbers.
    bare = json.loads(json.dumps(schema).replace(json.dumps(FIELDS[-1]["type"]), '"long"'))
    parsed = fastavro.parse_schema(bare)
    values = []
    for event in found:
        body = io.BytesIO()
        fastavro.schemaless_writer(body, parsed, event)
        values.append(b"\0\0\0\0\1" + body.getvalue())
    return values


class OneSchema:
    """A registry that knows one schema, of Protobuf: the nine keys and the two that are not read."""

    def __init__(self) -> None:
        kinds = descriptor_pb2.FieldDescriptorProto
        words = {
            "string": kinds.TYPE_STRING,
            "long": kinds.TYPE_INT64,
            "double": kinds.TYPE_DOUBLE,
            "boolean": kinds.TYPE_BOOL,
        }
        self.file = descriptor_pb2.FileDescriptorProto(name="event.proto", syntax="proto3")
        event = self.file.message_type.add(name="Event")
        for number, each in enumerate([*FIELDS, *EXTRA], start=1):
            maybe = isinstance(each["type"], list)
            word = each["type"][1] if maybe else each["type"]
            field = event.field.add(
                name=each["name"], number=number, type=words.get(word if isinstance(word, str) else "long")
            )
            if maybe:
                field.proto3_optional = True
                field.oneof_index = len(event.oneof_decl)
                event.oneof_decl.add(name=f"_{each['name']}")

    def files(self, _schema_id: int, *, expected: bool = False) -> list[tuple[str, bytes]]:
        del expected
        return [("", self.file.SerializeToString())]


def in_protobuf(found: list[dict[str, Any]]) -> list[bytes]:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(OneSchema().file.SerializeToString())
    event = message_factory.GetMessageClass(pool.FindMessageTypeByName("Event"))
    return [b"\0\0\0\0\1\0" + event(**each).SerializeToString() for each in found]


def in_json(found: list[dict[str, Any]], **more: Any) -> list[bytes]:
    return [json.dumps({**event, **more}).encode() for event in found]


def decoder(
    payload_format: Literal["avro", "json", "protobuf"], schema: Mapping[str, Any] | None = None, **options: Any
) -> Decoder:
    if schema is None:
        schema = ROW if payload_format == "avro" else SCHEMA
    stream = Stream("events", topic="events", schema=schema, event_time="at", format=payload_format, **options)
    view = FeatureView(
        "by_user",
        entity=Entity("user", key="user"),
        stream=stream,
        features=[Feature("n", agg.count(), Sliding("5m", hop="1s"))],
    )
    schemas: Any = OneSchema() if payload_format == "protobuf" else None
    return decoder_of(compile_definitions(view).streams["events"], schemas)


EXPRESSIONS = (
    ("n > 100", "n"),
    ("maybe_n * 3 + n > 100", "n * 250"),
    ("n * maybe_n - 7 > 0 and n % 10 < 9", "n * n + maybe_n * maybe_n"),
)


def view_of(where: str, value: str) -> ViewPlan:
    stream = Stream("events", topic="events", schema=ROW, event_time="at")
    view = FeatureView(
        "by_user",
        entity=Entity("user", key="user"),
        stream=stream,
        where=where,
        features=[Feature("total", agg.sum(value), Sliding("5m", hop="1s"))],
    )
    (plan,) = compile_definitions(view).views.values()
    return plan


def unchecked(view: ViewPlan) -> ViewPlan:
    assert view.where is not None
    values = tuple(replace(value, fails=None) for value in view.values)
    return replace(view, where=replace(view.where, fails=None), values=values)


def print_checks(values: list[bytes], seconds: float) -> None:
    decoding, many = decoder("avro"), poll(values)
    print("\n| where | value | checked, us | unchecked, us | ratio |\n|---|---|---|---|---|")
    for where, value in EXPRESSIONS:
        view = view_of(where, value)
        both = [Evaluator(view), Evaluator(unchecked(view))]
        assert both[0](decoding.decode(many).events).events.equals(both[1](decoding.decode(many).events).events)
        turns = [
            [least(lambda: each(decoding.decode(many).events), seconds / 3) for each in both]  # noqa: B023
            for _ in range(3)
        ]
        checked, plain = (min(each) / len(values) * 1e6 for each in zip(*turns, strict=True))
        print(f"| `{where}` | `{value}` | {checked:.2f} | {plain:.2f} | {checked / plain:.2f} |", flush=True)


def poll(values: list[bytes]) -> Poll:
    offsets = np.arange(len(values), dtype=np.int64)
    return Poll(
        "events",
        0,
        START_MS * 1000,
        False,
        offsets,
        offsets + START_MS * 1000,
        Blobs.of([None] * len(values)),
        Blobs.of(values),
        [],
    )


def least(work: Callable[[], object], seconds: float) -> float:
    """Return the processor seconds of the fastest of several runs."""
    found: list[float] = []
    until = time.monotonic() + seconds
    while len(found) < 3 or time.monotonic() < until:
        begin = time.process_time()
        work()
        found.append(time.process_time() - begin)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3, help="seconds per measurement")
    arguments = parser.parse_args()
    found = events(10_000)
    nested = {"source": {"n": 1, "user": "x"}}
    rounded = [{**event, "x": round(event["x"], 4)} for event in found]
    held, changed = [holding(event) for event in found], [change(event) for event in found]
    kinds: list[tuple[str, list[bytes], Decoder]] = [
        ("json", in_json(found), decoder("json")),
        ("json, nested", in_json(found, page=nested), decoder("json")),
        ("json, escaped", in_json(found, page="é\n"), decoder("json")),
        ("json, inside", in_json(held), decoder("json", HOLDING, fields=PATHS)),
        ("json, decimal", in_json(rounded), decoder("json", read_as={"x": "decimal(38,4)"})),
        ("json, changes", in_json(changed), decoder("json", **CHANGES)),
        ("avro", in_avro(found), decoder("avro")),
        ("avro, inside", in_avro(held, HOLDING), decoder("avro", HOLDING, fields=PATHS)),
        ("avro, decimal", in_avro(rounded), decoder("avro", read_as={"x": "decimal(38,4)"})),
        ("avro, changes", in_avro(changed, CHANGE), decoder("avro", CHANGE, **CHANGES)),
        ("protobuf", in_protobuf(found), decoder("protobuf")),
    ]
    print("| messages | us at 10,000 a poll | us at 20 a poll | first, s |\n|---|---|---|---|")
    for name, values, decoding in kinds:
        begin = time.perf_counter()
        assert decoding.decode(poll(values[:20])).events.height == 20
        first = time.perf_counter() - begin
        many, few = poll(values), poll(values[:20])
        assert decoding.decode(many).events.height == len(values)
        large = least(lambda: decoding.decode(many), arguments.seconds) / len(values) * 1e6  # noqa: B023
        small = least(lambda: [decoding.decode(few) for _ in range(50)], arguments.seconds) / 1000 * 1e6  # noqa: B023
        print(f"| {name} | {large:.2f} | {small:.1f} | {first:.2f} |", flush=True)
    print_checks(in_avro(found), arguments.seconds)


if __name__ == "__main__":
    main()
