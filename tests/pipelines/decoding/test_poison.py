"""Poison: every bad record becomes a dead letter with its own reason; its neighbours are unaffected; the flow goes on.

Every kind of bad record goes through the real pipeline among good ones, over both formats and both kinds of shard.
"""

import gzip
import io
import json
import random
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import polars as pl
import pytest
from confluent_kafka import Producer

from tests.support import plans
from tests.support.pipeline import START, Bench, expected_log, logged
from tests.support.polls import poll_of
from unskew.demo.embedded import EmbeddedBroker
from unskew.features.definitions import agg
from unskew.features.definitions.avro_schema import avro_columns
from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.definitions.json_schema import json_columns
from unskew.features.definitions.vocabulary import Entity, Feature, FeatureView, Lifetime, Sliding, Stream
from unskew.features.plan import Plan
from unskew.features.rejection import KINDS
from unskew.pipelines.decoding.avro import decoder_of
from unskew.pipelines.run import run

MIB = 1 << 20
STAMP_MS = START // 1000
MICROS = {"type": "long", "logicalType": "timestamp-micros"}
NODE = {"type": "record", "name": "Node", "fields": [{"name": "next", "type": ["null", "Node"]}]}
AVRO = {
    "type": "record",
    "name": "Sale",
    "fields": [
        {"name": "user", "type": ["null", "string"]},
        {"name": "amount", "type": ["null", "double"]},
        {"name": "n", "type": "int"},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["A", "B"]}},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 18, "scale": 2}},
        {"name": "seen", "type": ["null", MICROS]},
        {"name": "at", "type": ["null", MICROS]},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {"name": "more", "type": {"type": "map", "values": "long"}},
    ],
}
JSON = {
    "type": "object",
    "properties": {
        "user": {"type": ["string", "null"]},
        "amount": {"type": ["number", "null"]},
        "n": {"type": "integer", "format": "int32"},
        "kind": {"type": "string", "enum": ["A", "B"]},
        "seen": {"type": ["string", "null"], "format": "date-time"},
        "at": {"type": ["integer", "null"], "format": "unix-time-us"},
    },
    "required": ["user", "n", "at"],
}
PLAIN = fastavro.parse_schema(json.loads(json.dumps(AVRO).replace('"logicalType"', '"was"')))
FRAME = b"\0\0\0\0\7"
WHOLE = {"user": "ann", "amount": 1.5, "n": 1, "kind": "A", "seen": START, "at": START}


@dataclass(frozen=True)
class Poison:
    """A bad record, and what must be said of it; ``views``: those that cannot take it, else nobody can."""

    name: str
    value: bytes | None
    kind: str
    reason: str
    views: tuple[str, ...] = ()
    key: bytes | None = b"k"
    headers: list[tuple[str, bytes | None]] = field(default_factory=lambda: [("source", b"web")])
    stamp_ms: int = STAMP_MS


def avro(**changes: Any) -> bytes:
    datum = {**WHOLE, "price": b"\1", "tags": ["x"], "more": {"a": 1}, **changes}
    body = io.BytesIO()
    fastavro.schemaless_writer(body, PLAIN, datum)
    return FRAME + body.getvalue()


def json_value(**changes: Any) -> bytes:
    return json.dumps({**WHOLE, "seen": "2017-03-26T00:00:00Z", **changes}).encode()


def long(number: int) -> bytes:
    """Avro's long of any size."""
    rest = number << 1 if number >= 0 else (-number << 1) - 1
    octets = bytearray()
    while rest > 0x7F:
        octets.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([*octets, rest])


# Where the parts of a whole Avro value lie: everything up to the tags, then the tags, then the map.
HEAD = avro()[: -len(b"\x02\x02x\0" + b"\x02\x02a\x02\0")]
MAP = b"\x02\x02a\x02\0"
BOTH = ("by_user", "by_kind")


def every_poison(good: bytes, value_of: Any) -> list[Poison]:
    """What is poison in any format."""
    return [
        Poison("tombstone", None, "tombstone", "empty value (tombstone)"),
        Poison("record key missing", good, "key", "by_key: key buyer is null", ("by_key",), key=None),
        Poison("record key not UTF-8", good, "key", "the record key is not UTF-8", key=b"\xff\xfe"),
        Poison("header not UTF-8", good, "header", "the header 'source' is not UTF-8", headers=[("source", b"\xc3")]),
        Poison("null entity key", value_of(user=None), "key", "by_user: key user is null", ("by_user",)),
        Poison("null event time", value_of(at=None), "time", "event_time is null"),
        Poison("far future", value_of(at=2**62), "time", f"event_time {2**62} is outside 1900..2200"),
        Poison("far past", value_of(at=-(2**63)), "time", f"event_time {-(2**63)} is outside 1900..2200"),
        Poison("year 2200", value_of(at=7_258_118_400_000_000), "time", "is outside 1900..2200"),
        Poison("beyond 2^62", value_of(amount=2.0**62), "number", "value is NaN, infinite or beyond 2^62", BOTH),
        Poison("beyond 2^62, negative", value_of(amount=-1e300), "number", "value is NaN, infinite", BOTH),
        Poison("record stamp before 1900", good, "time", "is outside 1900..2200", stamp_ms=-(2**61)),
        Poison("record stamp of the future", good, "time", "is past the present", stamp_ms=4_000_000_000_000),
    ]


def avro_poisons() -> list[Poison]:
    good = avro()
    return [
        *every_poison(good, avro),
        Poison("empty", b"", "truncated", "truncated"),
        Poison("frame alone", FRAME, "truncated", "truncated"),
        Poison("frame cut", FRAME[:4], "truncated", "truncated"),
        Poison("one byte short", good[:-1], "truncated", "truncated"),
        Poison("padded", good + b"\0", "trailing", "1 trailing bytes"),
        Poison("two in one", good + good, "trailing", f"{len(good)} trailing bytes"),
        Poison("magic byte", b"\1" + good[1:], "frame", "wrong magic byte"),
        Poison("JSON for Avro", json_value(), "frame", "wrong magic byte"),
        Poison("gzip", gzip.compress(good), "frame", "wrong magic byte"),
        Poison("not UTF-8", good.replace(b"ann", b"a\xffn"), "encoding", "invalid UTF-8"),
        Poison("NaN", avro(amount=float("nan")), "number", "value is NaN, infinite or beyond 2^62", BOTH),
        Poison("infinite", avro(amount=float("-inf")), "number", "value is NaN, infinite or beyond 2^62", BOTH),
        Poison(
            "int beyond 32 bits",
            good.replace(struct.pack("<d", 1.5) + b"\2", struct.pack("<d", 1.5) + long(2**40)),
            "range",
            "n: 1099511627776 does not fit its type",
        ),
        Poison("enum symbol", good.replace(b"\2\0\2\1", b"\2\x0a\2\1"), "malformed", "not a record of the schema"),
        Poison(
            "enum symbol, negative", good.replace(b"\2\0\2\1", b"\2\1\2\1"), "malformed", "not a record of the schema"
        ),
        Poison("union branch", FRAME + b"\x08" + good[6:], "malformed", "not a record of the schema"),
        Poison("union branch, negative", FRAME + b"\x01" + good[6:], "malformed", "not a record of the schema"),
        Poison("string of negative length", FRAME + b"\2" + long(-5) + good[7:], "truncated", "truncated"),
        Poison("string of 2^62 bytes", FRAME + b"\2" + long(2**62) + good[7:], "truncated", ""),
        Poison("array of 2^40 items", HEAD + long(2**40) + MAP, "truncated", "truncated"),
        Poison("array of -2^63 items", HEAD + long(-(2**63)) + long(8) + MAP, "", ""),
        Poison("map of 2^40 items", HEAD + b"\0" + long(2**40), "truncated", "truncated"),
        Poison("varint without end", HEAD + b"\xff" * 40, "", ""),
        Poison(
            "decimal of 60 digits", avro(price=(10**60).to_bytes(26, "big")), "range", "price has more than 38 digits"
        ),
        Poison(
            "decimal of 20 digits", avro(price=(10**20).to_bytes(9, "big")), "range", "price is beyond 2^63 - 1 units"
        ),
        Poison(
            "decimal of -2^63 units",
            avro(price=(-(2**63)).to_bytes(8, "big", signed=True)),
            "range",
            "price is beyond 2^63 - 1 units",
        ),
        Poison("decimal of a megabyte", avro(price=b"\1" * MIB), "range", "price has more than 38 digits"),
        Poison("another instant", avro(seen=2**63 - 1), "range", "seen 9223372036854775807 is outside years 1..9999"),
        Poison("oversized garbage", b"\0\0\0\0\7" + b"\xff" * (8 * MIB), "", ""),
        Poison("oversized, cut", avro(user="x" * (5 * MIB))[:-2], "truncated", "truncated"),
    ]


def json_poisons() -> list[Poison]:
    good = json_value()

    def text(**changes: str) -> bytes:
        """With values as they are written."""
        whole = {name: json.dumps(value) for name, value in json.loads(good).items()} | changes
        return ("{" + ", ".join(f'"{name}": {value}' for name, value in whole.items()) + "}").encode()

    deep = "[" * 100_000 + "]" * 100_000
    return [
        *every_poison(good, json_value),
        Poison("empty", b"", "malformed", "not JSON"),
        Poison("cut", good[:-1], "malformed", "not JSON"),
        Poison("padded", good + b"}", "malformed", "not JSON: Extra data"),
        Poison("two in one", good + b"\n" + good, "malformed", "not JSON: Extra data"),
        Poison("not an object", b"[1]", "malformed", "not a JSON object"),
        Poison("Avro for JSON", avro(), "encoding", "invalid UTF-8"),
        Poison("gzip", gzip.compress(good, mtime=0), "encoding", "invalid UTF-8"),
        Poison("not UTF-8", good.replace(b"ann", b"a\xffn"), "encoding", "invalid UTF-8"),
        Poison("half a surrogate", text(user='"\\ud800"'), "encoding", "user has half a surrogate pair"),
        Poison("NaN", text(amount="NaN"), "malformed", "not JSON: NaN is not JSON"),
        Poison("infinite", text(amount="-Infinity"), "malformed", "not JSON: -Infinity is not JSON"),
        Poison("1e400", text(amount="1e400"), "range", "amount: 1e400 does not fit its type"),
        Poison(
            "a number of a megabyte", text(amount="9" * MIB), "range", "amount: 999999999999999999999999999999 does not"
        ),
        Poison("int over int64", text(at=str(2**63)), "range", "at: 9223372036854775808 does not fit its type"),
        Poison("int over int32", text(n=str(2**31)), "range", "n: 2147483648 does not fit its type"),
        Poison("a fraction for an integer", text(n="1.0"), "type", "n is a number, not of type integer"),
        Poison("text for a number", text(amount='"1"'), "type", "amount is a string, not of type number"),
        Poison("an object for text", text(user="{}"), "type", "user is an object, not of type string"),
        Poison("null where none may be", text(n="null"), "type", "n is null, not of type integer"),
        Poison("missing", text().replace(b'"n": 1, ', b""), "type", "n is missing"),
        Poison("duplicate key", text().replace(b"{", b'{"n": 1, ', 1), "malformed", "the key 'n' is there twice"),
        Poison("long keys that nobody reads", b'{"%b": 1}' % (b"k" * MIB), "type", "user is missing"),
        Poison("symbol", text(kind='"Z"'), "range", "kind: 'Z' is not one of the allowed values"),
        Poison("a long symbol", text(kind='"' + "Z" * MIB + '"'), "range", "kind: 'ZZZ"),
        Poison("no date-time", text(seen='"2017-02-30T00:00:00Z"'), "range", "is not a date-time as in RFC 3339"),
        Poison("deep", text(user=deep), "malformed", "nested too deeply"),
        Poison("deep where nobody looks", text(tags=deep), "malformed", "nested too deeply"),
        Poison("oversized garbage", b"{" * (8 * MIB), "malformed", "not JSON"),
        Poison("oversized, cut", json_value(user="x" * (5 * MIB))[:-2], "malformed", "not JSON"),
    ]


# Odd, but fine: they count.
def avro_fine() -> list[bytes]:
    return [
        avro(amount=None),
        avro(amount=-0.0),
        avro(tags=["y" * (2 * MIB)]),
        avro(kind="B", more={str(n): n for n in range(1000)}),
        avro(user=""),
        avro(user="\0|%é\U0001f600"),
        avro(at=START + 10**13),  # the future: it counts at its arrival
        avro(at=-(10**15)),
    ]


def json_fine() -> list[bytes]:
    return [
        json_value(amount=None),
        json_value(amount=-0.0),
        json_value(tags=["y" * (2 * MIB)]),
        json_value(kind="B", more={"deep": [[[[{}]]]]}),
        json_value(user=""),
        json_value(user="\0|%é\U0001f600"),
        json_value(at=START + 10**13),
        json_value(at=-(10**15)),
        b"\0\0\0\0\7" + json_value(),
    ]


FORMATS = {"avro": (AVRO, avro, avro_poisons, avro_fine), "json": (JSON, json_value, json_poisons, json_fine)}


def definitions(topic: str, payload_format: str) -> Plan:
    schema = FORMATS[payload_format][0]
    stream = Stream(
        "sales",
        topic=topic,
        schema=schema,
        event_time="at",
        format=payload_format,
        key_column="buyer",
        headers=["source"],
        owner="tests",
    )
    features = [
        Feature("n", agg.count(), Sliding("60s", hop="15s")),
        Feature("amount", agg.sum("amount"), Lifetime()),
        Feature("least", agg.min("n"), Lifetime()),
    ]
    views = [
        FeatureView(f"by_{key}", entity=Entity(key, key=key), stream=stream, owner="tests", features=features)
        for key in ("user", "kind")
    ]
    keyed = [Feature("n", agg.count(), Lifetime())]
    views.append(
        FeatureView("by_key", entity=Entity("buyer", key="buyer"), stream=stream, owner="tests", features=keyed)
    )
    return compile_definitions(*views)


@pytest.fixture
def bench(broker: EmbeddedBroker, redis_url: str, tmp_path: Path) -> Bench:
    return Bench(broker, redis_url, tmp_path)


def _produce(bench: Bench, topic: str, records: list[Any], codec: str = "none") -> None:
    producer = Producer(
        {
            "bootstrap.servers": bench.broker.bootstrap,
            "enable.idempotence": True,
            "message.max.bytes": 50 * MIB,
            "compression.type": codec,
            "linger.ms": 50,
            "log_level": 0,
        }
    )
    for partition, value, key, headers, stamp_ms in records:
        producer.produce(topic, value, key, partition=partition, headers=headers, timestamp=stamp_ms)
    assert producer.flush(60) == 0


def _rows(plan: Plan, deployment: Any) -> dict[str, list[Any]]:
    """Every row of the log but for the offsets, which are others where poison lies between."""
    found = {}
    for name in plan.views:
        files = sorted((deployment.log / name).glob("v1/day=*/*.parquet"))
        rows = pl.concat([pl.read_parquet(file, hive_partitioning=False) for file in files])
        found[name] = rows.drop("written_at", "offset").sort("shard", "seq").rows()
    return found


# The mock keeps the newest 5 MiB of a partition, and some poison is larger: its neighbours would be dropped.
@pytest.mark.needs_broker("topics of any size")
@pytest.mark.parametrize("n_hashes", [1, 3])
@pytest.mark.parametrize("payload_format", ["avro", "json"])
def test_poison_becomes_dead_letters_and_its_neighbours_are_as_if_it_had_not_come(
    bench: Bench, payload_format: str, n_hashes: int
) -> None:
    _, value_of, poisons_of, fine_of = FORMATS[payload_format]
    poisons, fine = poisons_of(), fine_of()
    web = [("source", b"web")]
    good = [
        (index % 2, value, b"k%d" % (index % 5), web, STAMP_MS + 10 * index)
        for index, value in enumerate([*fine, *(value_of(user=f"u{n % 7}", amount=n / 3) for n in range(120))])
    ]
    mixed, planted, offsets = [], {}, [0, 0]
    for index, record in enumerate(good):
        if index < len(poisons):
            poison = poisons[index]
            planted[record[0], offsets[record[0]]] = poison
            stamp_ms = record[-1] if poison.stamp_ms == STAMP_MS else poison.stamp_ms
            mixed.append((record[0], poison.value, poison.key, poison.headers, stamp_ms))
            offsets[record[0]] += 1
        mixed.append(record)
        offsets[record[0]] += 1
    assert len(planted) == len(poisons)

    found = []
    for records in (mixed, good):
        topic = bench.produce([], 2)
        _produce(bench, topic, records)
        plan = definitions(topic, payload_format)
        deployment = bench.deployment(n_hashes=n_hashes, poll_records=100)
        run(plan, deployment, stop=threading.Event())
        files = sorted(deployment.dead_letters.glob("*/day=*/*.parquet"))
        dead = pl.concat([pl.read_parquet(file, hive_partitioning=False) for file in files]) if files else None
        files = sorted(deployment.archive.glob("*/day=*/*.parquet"))
        archive = pl.concat([pl.read_parquet(file, hive_partitioning=False) for file in files])
        found.append((plan, deployment, dead, archive))
    (plan, deployment, dead, archive), (_, clean, none, _) = found
    assert none is None

    letters: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for letter in dead.iter_rows(named=True):
        letters.setdefault((letter["partition"], letter["offset"]), []).append(letter)
    assert sorted(letters) == sorted(planted), [
        (place, planted[place].name) for place in planted.keys() - letters.keys()
    ]
    for place, poison in planted.items():
        views = {letter["view"] for letter in letters[place]}
        assert views == ({f"{name}@1" for name in poison.views} or {None}), poison.name
        for letter in letters[place]:
            assert letter["kind"] in KINDS, poison.name
            assert poison.kind in {"", letter["kind"]}, (poison.name, letter["kind"], letter["reason"])
            assert poison.reason in letter["reason"], (poison.name, letter["reason"])
            assert 0 < len(letter["reason"]) <= 300
            assert letter["key"] == poison.key
            kept = None if poison.value is None else poison.value[:MIB]
            n_bytes = None if poison.value is None else len(poison.value)
            assert (letter["value"], letter["value_bytes"]) == (kept, n_bytes), poison.name
            assert [(each["name"], each["value"]) for each in letter["headers"]] == poison.headers, poison.name

    # What some views took of poison is theirs; the others' rows are those without any.
    with_poison, without = _rows(plan, deployment), _rows(plan, clean)
    ends = {
        path.stem: json.loads(path.read_text()) for path in (deployment.log / "by_user/v1/_coverage").glob("h*.json")
    }
    complete_to = min(end["complete_to"] for end in ends.values())
    for name, view in plan.views.items():
        keys = dict.fromkeys(archive.select(view.entity.keys).drop_nulls().unique().iter_rows(), complete_to)
        rows = pl.DataFrame()
        files = sorted((deployment.log / name).glob("v1/day=*/*.parquet"))
        rows = pl.concat([pl.read_parquet(file, hive_partitioning=False) for file in files])
        counted = archive.drop_nulls(view.entity.keys)
        expected = expected_log(view, counted, keys)
        assert logged(view, rows.filter(pl.col("available_at").dt.epoch("us") <= complete_to)) == expected, name
    taken = {name for poison in poisons for name in plan.views if poison.views and name not in poison.views}
    assert taken == set(plan.views)
    users = {row[0] for row in without["by_user"]} - {"ann"}
    assert len(users) > 5
    strip = slice(0, 5)
    assert [row[strip] for row in with_poison["by_user"] if row[0] in users and n_hashes == 1] == [
        row[strip] for row in without["by_user"] if row[0] in users and n_hashes == 1
    ]


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_compressed_batches_are_read_as_plain_ones(bench: Bench, codec: str) -> None:
    topic = bench.produce([], 1)
    values = [avro(user=f"u{n % 3}") for n in range(200)]
    values[50] = b"\0\0"
    # Its own instant stays open.
    values.append(avro(user="last"))
    _produce(bench, topic, [(0, value, b"k", [], STAMP_MS + n) for n, value in enumerate(values)], codec)
    plan = definitions(topic, "avro")
    deployment = bench.deployment()

    status = run(plan, deployment, stop=threading.Event())

    assert (status.consumed, status.dead) == (201, 1)
    assert {row[0]: row[1] for row in _rows(plan, deployment)["by_user"]} == {"u0": 67, "u1": 67, "u2": 65}


def decoder(payload_format: str, schema: Any) -> Any:
    columns, faults = (avro_columns if payload_format == "avro" else json_columns)(schema)
    assert not faults
    return decoder_of(plans.stream(schema=schema, columns=columns, event_time="at", format=payload_format))


def test_bytes_that_nest_without_end_or_claim_items_without_bytes_are_refused() -> None:
    """Under such schemas other readers recurse until the process dies, or build a list of 2^40 nulls."""
    schema = {
        "type": "record",
        "name": "T",
        "fields": [
            {"name": "at", "type": MICROS},
            {"name": "node", "type": NODE},
            {"name": "nothing", "type": {"type": "array", "items": "null"}},
        ],
    }
    at = FRAME + long(START)
    good = at + b"\2\0" + b"\0"
    poison = [
        at + b"\2" * 3_000_000 + b"\0\0",
        at + b"\2" * 3_000_000,
        at + b"\0" + long(2**40),
        at + b"\0" + long(-(2**40)) + long(1),
        good[:-1],
        good + b"\0",
    ]
    deep = at + b"\2" * 300 + b"\0\0"
    many = at + b"\0" + long(2**40) + b"\0"  # said and ended in seven bytes; nobody reads them

    decoded = decoder("avro", schema).decode(poll_of([good, *poison, deep, many, good], START))

    assert decoded.events["_offset"].to_list() == [0, 7, 8, 9]
    assert set(decoded.dead["kind"]) == {"malformed"}


def _mutated(chance: random.Random, value: bytes) -> bytes:
    octets = bytearray(value)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(octets)) if octets else 0
        match chance.randrange(6):
            case 0 if octets:
                octets[at] ^= 1 << chance.randrange(8)
            case 1:
                del octets[at:]
            case 2:
                octets[at:at] = chance.randbytes(chance.randint(1, 4))
            case 3:
                del octets[at : at + chance.randint(1, 3)]
            case 4 if octets:
                octets[at] = chance.choice([0, 1, 2, 0x7F, 0x80, 0xFF])
            case _:
                octets[at:at] = octets[at : at + 5]
    return bytes(octets)


def _mutants(value_of: Any, seed: int, n_values: int) -> Iterator[bytes]:
    chance = random.Random(seed)
    for _ in range(n_values):
        value = value_of(
            user=chance.choice([None, "", "ann", "é" * 9]), n=chance.randint(-9, 900), amount=chance.uniform(-9, 9)
        )
        yield _mutated(chance, value) if chance.random() < 0.9 else value


def indices_are_sound(value: bytes) -> bool:
    """Return true if, in a value that fastavro reads, branches and symbols count from 0 and numbers fit in 64 bits."""
    body = io.BytesIO(value[5:])

    def number() -> int:
        bits = shift = 0
        while True:
            octet = body.read(1)[0]
            bits |= (octet & 0x7F) << shift
            shift += 7
            if octet < 0x80:
                break
        if shift > 70 or bits >= 2**64:
            raise OverflowError
        return (bits >> 1) ^ -(bits & 1)

    def blocks(item: Any) -> None:
        while count := number():
            if count < 0:
                number()
            for _ in range(abs(count)):
                item()

    indices = []
    try:
        for take in (lambda: body.read(number()), lambda: body.read(8)):  # user, amount
            indices.append(number())
            if indices[-1] in {1, -1}:
                take()
        number()  # n
        indices.append(number())  # kind
        body.read(number())  # price
        for _ in range(2):  # seen, at
            indices.append(number())
            if indices[-1] in {1, -1}:
                number()
        blocks(lambda: body.read(number()))
        blocks(lambda: (body.read(number()), number()))
    except OverflowError:
        return False
    return min(indices) >= 0


@pytest.mark.parametrize("seed", range(4))
def test_of_mutated_avro_just_what_fastavro_reads_whole_is_taken(seed: int) -> None:
    values = list(_mutants(avro, seed, 2_500))
    parsed = fastavro.parse_schema(json.loads(json.dumps(AVRO)))
    decoding = decoder("avro", AVRO)

    polls = [decoding.decode(poll_of(values[at : at + 250], START)) for at in range(0, len(values), 250)]

    n_taken = 0
    for start, decoded in zip(range(0, len(values), 250), polls, strict=True):
        events = {row["_offset"]: row for row in decoded.events.iter_rows(named=True)}
        assert sorted([*events, *decoded.dead["offset"]]) == list(range(250))
        for at in range(250):
            value = values[start + at]
            try:
                body = io.BytesIO(value[5:])
                record = (
                    fastavro.schemaless_reader(body, PLAIN, None) if value[:1] == b"\0" and len(value) >= 5 else None
                )
                if record is not None and body.tell() != len(value) - 5:
                    record = None
            except Exception:  # noqa: BLE001 - fastavro raises what its steps happen to raise
                record = None
            if at not in events:
                # Beyond what fastavro checks, a value may be out of its column's range, or an index below zero.
                kind = decoded.dead.filter(offset=at)["kind"].item()
                assert record is None or kind in {"range", "time"} or not indices_are_sound(value), value
                continue
            n_taken += 1
            assert record is not None, value
            row = events[at]
            assert (row["user"], row["n"], row["kind"]) == (record["user"], record["n"], record["kind"])
            assert repr(row["amount"]) == repr(record["amount"])
            assert row["price"] == Decimal(int.from_bytes(record["price"], "big", signed=True)).scaleb(-2)
            assert int(decoded.events.filter(_offset=at)["at"].dt.epoch("us").item()) == record["at"]
    assert parsed
    assert 300 < n_taken < 2_400


@pytest.mark.parametrize("seed", range(4))
def test_of_mutated_json_what_is_taken_is_what_python_reads(seed: int) -> None:
    values = list(_mutants(json_value, seed, 2_500))
    decoding = decoder("json", JSON)

    n_taken = 0
    for start in range(0, len(values), 250):
        decoded = decoding.decode(poll_of(values[start : start + 250], START))
        events = {row["_offset"]: row for row in decoded.events.iter_rows(named=True)}
        assert sorted([*events, *decoded.dead["offset"]]) == list(range(250))
        for at, row in events.items():
            n_taken += 1
            value = values[start + at]
            record = json.loads(value[5:] if value[0] == 0 else value)
            assert (row["user"], row["n"], row["kind"]) == (record["user"], record["n"], record.get("kind"))
            amount = record.get("amount")
            assert row["amount"] == (None if amount is None else float(amount))
    assert 300 < n_taken < 2_400
