"""JSON messages read in one piece are what they are when read alone, whatever the bytes."""

import json
import math
from datetime import UTC, date, datetime

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import plans
from tests.support.polls import poll_of
from unskew.features.definitions.json_schema import json_columns
from unskew.pipelines.decoding.avro import DEAD_LETTER_SCHEMA, decoder_of

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


TYPES = {
    "user": (str,),
    "n": (int,),
    "x": (int, float),
    "flag": (bool,),
    "maybe_user": (str, type(None)),
    "maybe_n": (int, type(None)),
    "maybe_x": (int, float, type(None)),
    "maybe_flag": (bool, type(None)),
    "at": (int,),
}


def plan(schema=SCHEMA, event_time="at", **more):
    columns, faults = json_columns(schema)
    assert not faults
    return plans.stream(schema=schema, columns=columns, event_time=event_time, format="json", **more)


def decode(values, schema=SCHEMA, event_time="at"):
    return decoder_of(plan(schema, event_time)).decode(poll_of(values, NOON_MS * 1000))


class Pairs(list):
    """An object: its keys and values, equal keys too."""


def refused(word):
    raise ValueError(word)


def whole(digits):
    # More than a float holds; Python converts no text that is much longer.
    return int(digits) if len(digits) < 400 else math.inf


def read_alone(value):
    """One message as Python's own reader has it, or None where it is not an event: the oracle."""
    if value[:1] == b"\0" and len(value) > 5:
        value = value[5:]
    try:
        pairs = json.loads(value.decode(), object_pairs_hook=Pairs, parse_constant=refused, parse_int=whole)
    except (ValueError, RecursionError):
        return None
    if type(pairs) is not Pairs:
        return None
    read = [(key, item) for key, item in pairs if key in TYPES]
    event = dict(read)
    if len(event) < len(read) or not set(SCHEMA["required"]) <= event.keys():
        return None
    for name, item in event.items():
        if type(item) not in TYPES[name] or (type(item) is str and item != item.encode(errors="replace").decode()):
            return None
        if float in TYPES[name] and item is not None:
            try:
                event[name] = float(item)
            except OverflowError:
                return None
            if not math.isfinite(event[name]):
                return None
        elif type(item) is int and not -(2**63) <= item < 2**63:
            return None
    if not -2_208_988_800_000 <= event["at"] < 7_258_118_400_000:
        return None
    return {name: event.get(name) for name in TYPES}


reals = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**70), 2**70) | st.just(0.1)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
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
def test_well_formed_messages_are_read_quickly(events):
    plain = [event | {"user": 'é\n"\\', "maybe_x": 0.5, "more": {"user": [{"n": "n"}]}} for event in events]
    read, frame = decoder_of(plan())._read_quickly([json.dumps(each).encode() for each in plain])

    assert len(read) == len(plain)
    assert frame["user"].to_list() == ['é\n"\\'] * len(plain)


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
        (changed(x=float("nan")), "not JSON: NaN is not JSON"),
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


def outcomes(decoded):
    """By offset: the event, or why there is none."""
    plain = decoded.events.drop("_offset", "_arrival")
    found = dict(zip(decoded.events["_offset"].to_list(), map(repr, plain.rows()), strict=True))
    return found | {
        offset: (kind, reason) for offset, kind, reason in decoded.dead.select("offset", "kind", "reason").rows()
    }


def together(values):
    found = outcomes(decode(values))
    return [found[row] for row in range(len(values))]


def alone(value):
    return together([value])[0]


# What a part that nobody reads may be, as it is written.
HOSTILE = [
    *(b"null", b'"x"', b"{}", b"[]", b"-0", b"-0e0", b"1e999", b"-1e999", b"1e-999", b"1" * 400, b"7" * 5000),
    *(b"[" * 200 + b"]" * 200, b'{"a":' * 200 + b"1" + b"}" * 200, b"[" * 5000 + b"]" * 5000, b"[" * 100_000),
    *(b'"\\ud800"', b'"\\ud800 udc00"', b'"\\udc00\\ud800"', b'"\\ud83d\\ude00"', b'"\\ud800\\n"', b'"\\ud800\\u0041"'),
    *(b'{"\\ud800 udc00": null}', b'{"\\ud800":{"\\udfff":[]}}', b'{"\\ud83d\\ude00":1}', b'{"\\u006e":1,"n":2}'),
    *(b'"\xff"', b'"\xed\xa0\x80"', b'"\xc0\x80"', b'{"\xff":1}', b'"\x7f"', b'"\xe2\x80\xa8"', b'"\t"', b'"\0"'),
    *(b'{"n":1,"n":2}', b'{"user":{"user":"user"}}', b'[{"n":-0}]', b'"\\"n\\":1"', b'"n\\":"', b'","', b'"a-0,b"'),
    *(b"NaN", b"Infinity", b"-Infinity", b"01", b"1.", b".5", b"-", b"+1", b"tru", b"", b"[1,]", b'{"a":1,}', b'"'),
    *(b'"\\q"', b'"\\u12"', b'"\\uZZZZ"', b'{"\\q":1}', b"}", b"1}{", b'1,"n":1', b"1\n", b"/**/1"),
]
KEYS = [b"more", b"tags", b"m\\u006fre", b"\\ud800 udc00", b"\\ud800", b"\\ud83d\\ude00", b"\xff", b"\xc3\xa9", b""]
KEYS += [b":", b",", b'\\"n', b"n\\\\", b"\\q", b"n", b"\\u006e", b"maybe_x", b"x", b"user"]


@st.composite
def hostile(draw):
    """Events with parts that nobody reads, and a few with parts that are read, as bytes."""
    pairs = [
        (b"user", b'"u"'),
        (b"n", b"1"),
        (b"at", b"%d" % NOON_MS),
        (b"maybe_x", draw(st.sampled_from([b"null", b"0", b"-0"]))),
    ]
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(pairs)))
        # Mostly one of the keys that are not read.
        keys = KEYS if draw(st.integers(0, 3)) == 0 else KEYS[:-5]
        pairs.insert(at, (draw(st.sampled_from(keys)), draw(st.sampled_from(HOSTILE))))
    gap = draw(st.sampled_from([b"", b" ", b"\r\n\t"]))
    colon, comma = gap + b":" + gap, gap + b"," + gap
    frame = draw(st.sampled_from([b"", b"", b"\0\0\0\0\x07"]))
    return frame + gap + b"{" + comma.join(b'"' + key + b'"' + colon + item for key, item in pairs) + b"}" + gap


@given(st.lists(hostile(), min_size=1, max_size=6), st.sampled_from([1, 1, 1, 30]))
def test_a_poll_of_any_size_gives_what_each_message_gives_alone(values, times):
    expected = [alone(value) for value in values]

    assert together(values * times) == expected * times
    assert [type(found) is str for found in expected] == [read_alone(value) is not None for value in values]


@pytest.mark.parametrize("part", HOSTILE, ids=range(len(HOSTILE)))
def test_what_nobody_reads_is_judged_alike_in_polls_of_one_six_and_a_thousand(part):
    value = changed()[:-1] + b', "more": ' + part + b"}"
    expected = alone(value)
    good = alone(changed())

    assert together([value] + [changed()] * 5) == [expected] + [good] * 5
    assert together([*[changed()] * 999, value]) == [good] * 999 + [expected]
    bad = [None, b"", changed()[:-1], b'{"more": "', b"\xff", changed(n="1"), b"[" * 100_000]
    assert together([each for other in bad for each in (other, value)])[1::2] == [expected] * len(bad)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        # Half a surrogate pair is not text, and stands for nothing where nobody reads it.
        (b'"more": {"\\ud800 udc00": null}', None),
        (b'"\\ud800 udc00": null', None),
        (b'"more": "\\ud800"', None),
        (b'"maybe_user": "\\ud800"', "maybe_user has half a surrogate pair"),
        (b'"maybe_user": "\\ud83d\\ude00"', None),
        # Bytes that are not UTF-8 are not JSON, wherever they stand.
        (b'"more": "\xff"', "invalid UTF-8"),
        (b'"more": "\xed\xa0\x80"', "invalid UTF-8"),
        # A number that nobody reads may be of any size.
        (b'"more": 1e999', None),
        (b'"more": ' + b"7" * 5000, None),
        (b'"x": ' + b"7" * 400, "x: 777777777777777777777777777777 does not fit its type"),
        (b'"more": Infinity', "not JSON: Infinity is not JSON"),
        # Equal keys are refused where they are read.
        (b'"more": 1, "more": 2', None),
        (b'"more": {"n": 1, "n": 2}', None),
        (b'"\\u006e": 2', "the key 'n' is there twice"),
        (b'"x": 1, "x": 1', "the key 'x' is there twice"),
        (b'"more": [{"n": 1}], "n": 2', "the key 'n' is there twice"),
        (b'"maybe_n": null, "maybe_n": null', "the key 'maybe_n' is there twice"),
        # Nested values are let be as deep as Python goes.
        (b'"more": ' + b"[" * 500 + b"]" * 500, None),
        (b'"more": ' + b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
    ],
)
def test_what_counts_as_what(part, reason):
    found = alone(changed()[:-1] + b", " + part + b"}")

    assert (None if type(found) is str else found[1]) == reason


def test_blanks_around_a_message_are_let_be_and_a_byte_order_mark_is_not():
    assert [type(found) for found in together([b" \t\r\n" + changed() + b"\n\n", b"\xef\xbb\xbf" + changed()])] == [
        str,
        tuple,
    ]
    assert (
        alone(b"\xef\xbb\xbf{}")[1]
        == "not JSON: Unexpected UTF-8 BOM (decode using utf-8-sig): line 1 column 1 (char 0)"
    )


@pytest.mark.parametrize(("text", "sign"), [(b"-0", -1), (b"-0.0", -1), (b"-0e5", -1), (b"0", 1), (b"-0 ", -1)])
def test_a_zero_keeps_its_sign_in_a_column_of_numbers_however_it_is_written(text, sign):
    value = changed()[:-1] + b', "x": %s, "maybe_user": "2017-01-01"}' % text

    for found in decode([value, changed(), value]).events["x"].to_list()[::2]:
        assert (found, math.copysign(1, found)) == (0, sign)


@pytest.mark.parametrize("names", [("a b", "é", "x:y"), ('"', "n"), ("\\", "n"), (",", ":n"), ("\n",), (" :", ",")])
def test_any_text_is_a_key(names):
    schema = {
        "type": "object",
        "properties": {"at": SCHEMA["properties"]["at"], **{name: {"type": "integer"} for name in names}},
    }
    event = {"at": NOON_MS, **{name: number for number, name in enumerate(names)}}
    twice = [f"{json.dumps(event)[:-1]}, {json.dumps(name, ensure_ascii=False)}: 1}}".encode() for name in names]
    decoded = decode([json.dumps(event).encode(), *twice, json.dumps(event, ensure_ascii=False).encode()], schema)

    assert decoded.events.select(names).rows() == [tuple(range(len(names)))] * 2
    assert decoded.dead["reason"].to_list() == [f"the key {name!r} is there twice" for name in names]


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
        assert decoded.dead["reason"].to_list() == [f"at: {text!r} is not a date-time as in RFC 3339"]
    else:
        assert decoded.events["_event_time"].to_list() == [instant]


def test_dates_and_allowed_values_are_checked():
    at = '"at":"2017-01-01T12:00:00Z"'
    values = ['"day":"2016-02-29"', '"day":"2017-02-29"', '"day":null,"kind":"b"', '"kind":"c"']
    decoded = decode([f"{{{at},{value}}}".encode() for value in values], TEXTS)

    assert decoded.events.select("day", "kind").rows() == [(date(2016, 2, 29), None), (None, "b")]
    assert decoded.dead["reason"].to_list() == [
        "day: '2017-02-29' is not a date as in RFC 3339",
        "kind: 'c' is not one of the allowed values",
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
        "kind: 'B' is not one of the allowed values",
    ]


def test_a_schema_of_very_many_keys_is_read():
    names = [f"a_key_with_a_name_that_is_long_{number}" for number in range(10_000)]
    properties = {"at": SCHEMA["properties"]["at"], **{name: {"type": "integer"} for name in names}}
    value = json.dumps({"at": NOON_MS, names[-1]: 1}).encode()

    assert decode([value], {"type": "object", "properties": properties}).events[names[-1]].to_list() == [1]
