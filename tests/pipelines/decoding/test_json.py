"""JSON messages read in one piece are what they are when read alone, whatever the bytes."""

import json
from datetime import UTC, date, datetime

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import plans
from unskew.features.definitions.json_schema import json_columns
from unskew.pipelines.decoding.avro import DEAD_LETTER_SCHEMA, decoder_of
from unskew.pipelines.kafka.poll import Poll

NOON_MS = 1_483_272_000_000
NOON = datetime(2017, 1, 1, 12, tzinfo=UTC)
SCHEMA = {
    "type": "object",
    "properties": {
        "user": {"type": "string"},
        "n": {"type": "integer"},
        "x": {"type": "number"},
        "flag": {"type": "boolean"},
        "maybe_user": {"type": ["string", "null"]},
        "maybe_n": {"type": ["null", "integer"]},
        "maybe_x": {"type": ["number", "null"]},
        "maybe_flag": {"type": ["boolean", "null"]},
        "at": {"type": "integer", "format": "unix-time-ms"},
        "tags": {"type": "array"},
    },
    "required": ["user", "n", "at", "maybe_x"],
}


class Event(msgspec.Struct):
    """The same by msgspec, which is the oracle."""

    user: str
    n: int
    at: int
    maybe_x: float | None
    x: float | msgspec.UnsetType = msgspec.UNSET
    flag: bool | msgspec.UnsetType = msgspec.UNSET
    maybe_user: str | None = None
    maybe_n: int | None = None
    maybe_flag: bool | None = None


def plan(schema=SCHEMA, event_time="at", **more):
    columns, faults = json_columns(schema)
    assert not faults
    return plans.stream(schema=schema, columns=columns, event_time=event_time, format="json", **more)


def decode(values, schema=SCHEMA, event_time="at"):
    offsets = np.arange(len(values), dtype=np.int64)
    poll = Poll("stream", 0, NOON_MS * 1000, False, offsets, offsets + NOON_MS * 1000, [None] * len(values), values, [])
    return decoder_of(plan(schema, event_time)).decode(poll)


def read_alone(value):
    """One message as msgspec reads it, or None where it is no event."""
    if value[:1] == b"\0" and len(value) > 5:
        value = value[5:]
    try:
        text = value.decode()
        pairs = json.loads(text, object_pairs_hook=lambda pairs: [key for key, _ in pairs])
        event = msgspec.json.decode(text, type=Event)
        msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return None
    names = SCHEMA["properties"]
    keys = [key for key in pairs if key in names]
    if len(keys) != len(set(keys)) or not all(-(2**63) <= n < 2**63 for n in (event.n, event.maybe_n or 0, event.at)):
        return None
    if not -2_208_988_800_000 <= event.at < 7_258_118_400_000:
        return None
    found = {name: getattr(event, name) for name in names if name != "tags"}
    return {name: None if value is msgspec.UNSET else value for name, value in found.items()}


reals = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70) | st.just(0.1)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
sound = st.fixed_dictionaries(
    {
        "user": st.text(max_size=6),
        "n": st.integers(-(2**63), 2**63 - 1) | st.integers(-9, 9),
        "at": st.integers(NOON_MS - 10**9, NOON_MS + 10**9),
        "maybe_x": st.none() | reals,
    },
    optional={
        "x": reals,
        "flag": st.booleans(),
        "maybe_user": st.none() | st.text(max_size=4),
        "maybe_n": st.none() | st.integers(0, 9),
        "maybe_flag": st.none() | st.booleans(),
        "tags": anything,
        "more": anything,
    },
)


@st.composite
def messages(draw):
    event = draw(sound)
    if draw(st.integers(0, 3)) == 0:
        event[draw(st.sampled_from([*SCHEMA["properties"]]))] = draw(anything)
    order = draw(st.permutations(list(event)))
    text = json.dumps(
        {key: event[key] for key in order},
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, None, 1, "\t"])),
        separators=draw(st.sampled_from([None, (",", ":"), (" ,\r\n", " : ")])),
    )
    value = text.encode(errors="surrogatepass")
    frame = draw(st.sampled_from([b"", b"", b"\0\0\0\0\x07"]))
    match draw(st.sampled_from(["whole"] * 4 + ["cut", "set", "insert", "extend", "double", "random"])):
        case "cut":
            value = value[: draw(st.integers(0, len(value)))]
        case "set":
            at = draw(st.integers(0, len(value) - 1))
            value = (
                value[:at]
                + draw(st.binary(min_size=1, max_size=1) | st.sampled_from([b'"', b"}", b"0", b"\n"]))
                + value[at + 1 :]
            )
        case "insert":
            at = draw(st.integers(0, len(value)))
            value = (
                value[:at]
                + draw(st.sampled_from([b"\\", b'"', b"\xff", b"\n", b"-", b"e5", b"null", b",", b"0"]))
                + value[at:]
            )
        case "extend":
            value += draw(st.sampled_from([b"{}", b"\n{}", b"x", b"\n", b" ", b"\0"]))
        case "double":
            value = value[:-1] + b', "n": 3}'
        case "random":
            value = draw(st.binary(max_size=20))
        case _:
            pass
    return frame + value


def same(one, other):
    return type(one) is type(other) and one == other


@given(st.lists(messages(), min_size=1, max_size=8))
def test_a_batch_reads_as_its_messages_read_alone(values):
    alone = {row: found for row, value in enumerate(values) if (found := read_alone(value)) is not None}

    decoded = decode(values)

    read = decoded.events.with_columns(pl.col("at").dt.timestamp("ms"))
    assert read["_offset"].to_list() == list(alone)
    for event, found in zip(read.to_dicts(), alone.values(), strict=True):
        assert {name: (event[name], found[name]) for name in found if not same(event[name], found[name])} == {}
    assert decoded.dead["offset"].to_list() == [row for row in range(len(values)) if row not in alone]
    assert decoded.dead["reason"].null_count() == 0


@given(st.lists(sound, min_size=1, max_size=5))
def test_well_formed_messages_are_read_in_one_piece(events):
    plain = [event | {"n": 1, "x": 0.5, "maybe_x": None, "user": "é\n"} for event in events]
    for each in plain:
        each.pop("more", None)
        each.pop("tags", None)
        each["maybe_user"] = 'a"b\\'
    passed, frame = decoder_of(plan())._wire.read([json.dumps(each).encode() for each in plain])

    assert passed.all()
    assert frame["maybe_user"].to_list() == ['a"b\\'] * len(plain)


WHOLE = {"user": "u", "n": 1, "at": NOON_MS, "maybe_x": None}


def changed(**values):
    return json.dumps({**WHOLE, **values}).encode()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "empty value (tombstone)"),
        (b"", "not JSON: Expecting value: line 1 column 1 (char 0)"),
        (b"[]", "not a JSON object"),
        (b"{}", "user is missing"),
        (changed(n="1"), "n is a string, not of type integer"),
        (changed(n=1.0), "n is a number, not of type integer"),
        (changed(n=True), "n is a boolean, not of type integer"),
        (changed(user=None), "user is null, not of type string"),
        (changed(user={"a": 1}), "user is an object, not of type string"),
        (changed(user=[{}]), "user is an array, not of type string"),
        (changed(n=2**63), "n: 9223372036854775808 does not fit its type"),
        (
            changed().replace(b'"n": 1', b'"n": 1' + b"0" * 5000),
            "n: 100000000000000000000000000000 does not fit its type",
        ),
        (changed()[:-1] + b',"x":1e999}', "x: 1e999 does not fit its type"),
        (changed(x=float("nan")), "not JSON: NaN is no JSON"),
        (changed()[:-1] + b',"n":2}', "the key 'n' is there twice"),
        (changed()[:-1], "not JSON: Expecting ',' delimiter: line 1 column 59 (char 58)"),
        (changed() + b"{}", "not JSON: Extra data: line 1 column 60 (char 59)"),
        (changed(user="é").replace(b"\\u00e9", b"\xff"), "invalid UTF-8"),
        (changed(user="\ud800"), "user has half a surrogate pair"),
        (b'{"tags":' + b"[" * 100_000, "nested too deeply"),
        (changed(at=10**15), "event_time 1000000000000000 is outside 1900..2200"),
    ],
)
def test_a_bad_message_is_a_dead_letter_with_its_reason_and_bytes(value, reason):
    decoded = decode([changed(), value, changed()])

    assert decoded.events["_offset"].to_list() == [0, 2]
    assert decoded.dead.schema == DEAD_LETTER_SCHEMA
    assert decoded.dead.select("offset", "reason", "value").rows() == [(1, reason, value)]


TEXTS = {
    "type": "object",
    "properties": {
        "at": {"type": "string", "format": "date-time"},
        "day": {"type": ["string", "null"], "format": "date"},
        "kind": {"type": "string", "enum": ["a", "b"]},
    },
    "required": ["at"],
}


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2017-01-01T12:00:00Z", NOON),
        ("2017-01-01t12:00:00z", NOON),
        ("2017-01-01 14:00:00+02:00", NOON),
        ("2017-01-01T12:00:00.5Z", NOON.replace(microsecond=500_000)),
        ("2017-01-01T06:30:00.000001-05:30", NOON.replace(microsecond=1)),
        ("2017-01-01T12:00:00.000001999Z", NOON.replace(microsecond=1)),
        ("2017-01-01T12:00:00", None),
        ("2017-01-01", None),
        ("2017-02-29T12:00:00Z", None),
        ("2017-01-01T24:00:00Z", None),
        ("2017-01-01T12:00:00Z ", None),
        ("", None),
    ],
)
def test_an_instant_is_rfc_3339_text(text, instant):
    decoded = decode([json.dumps({"at": text}).encode()], TEXTS)

    if instant is None:
        assert decoded.dead["reason"].to_list() == [f"at: {text!r} is no date-time as in RFC 3339"]
    else:
        assert decoded.events["_event_time"].to_list() == [instant]


def test_dates_and_allowed_values_are_checked():
    at = '"at":"2017-01-01T12:00:00Z"'
    values = ['"day":"2016-02-29"', '"day":"2017-02-29"', '"day":null,"kind":"b"', '"kind":"c"']
    decoded = decode([f"{{{at},{value}}}".encode() for value in values], TEXTS)

    assert decoded.events.select("day", "kind").rows() == [(date(2016, 2, 29), None), (None, "b")]
    assert decoded.dead["reason"].to_list() == [
        "day: '2017-02-29' is no date as in RFC 3339",
        "kind: 'c' is none of the values allowed",
    ]


def test_a_declared_record_schema_reads_json_too():
    schema = {
        "type": "record",
        "name": "R",
        "fields": [
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
            {"name": "small", "type": "int"},
            {"name": "kind", "type": ["null", {"type": "enum", "name": "K", "symbols": ["A"]}]},
        ],
    }
    values = [{"at": NOON_MS * 1000, "small": 1, "kind": "A"}, {"at": NOON_MS * 1000, "small": 2**31}, {"at": 1, "kind": "B", "small": 2}]  # fmt: skip
    decoded = decode([json.dumps(value).encode() for value in values], schema)

    assert decoded.events.select("_event_time", "small", "kind").rows() == [(NOON, 1, "A")]
    assert decoded.dead["reason"].to_list() == [
        "small: 2147483648 does not fit its type",
        "kind: 'B' is none of the values allowed",
    ]
