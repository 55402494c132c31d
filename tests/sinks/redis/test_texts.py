import datetime as dt
import json
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.typed import AWKWARD, EMPTY, FULL, ORDERS, TEXTS
from unskew.features.types import Type
from unskew.sinks.redis.texts import Numbers, Reader, column_of, objects_of, stored, text_of

OUTPUTS = pytest.mark.parametrize("output", ORDERS.outputs, ids=lambda output: f"{output.name}:{output.dtype}")


def written(values, dtype):
    dtype = Type.parse(str(dtype))
    column = pl.Series("c", values, dtype.polars)
    return column.to_frame().select(text_of(pl.col("c"), dtype)).to_series().to_list()


def read(texts, dtype):
    texts = [None if text is None else text.encode() for text in texts]
    return read_column(texts, Type.parse(str(dtype)), [None] * len(texts))


def read_column(texts, dtype, instead):
    read = iter(Reader(dtype).values([text for text in texts if text is not None]))
    values = [stored(other, dtype) if text is None else next(read) for text, other in zip(texts, instead, strict=True)]
    column = column_of("c", values, dtype)
    assert objects_of(values, dtype) == column.to_list()
    assert list(map(type, objects_of(values, dtype))) == list(map(type, column.to_list()))
    return column


@OUTPUTS
def test_every_type_has_its_text_and_is_read_back_from_it(output):
    values = [FULL[output.name], None, FULL[output.name]]

    texts = written(values, output.dtype)

    assert texts == [TEXTS[output.name], None, TEXTS[output.name]]
    assert read(texts, output.dtype).equals(pl.Series("c", values, output.dtype.polars), check_dtypes=True)


@OUTPUTS
@pytest.mark.parametrize("values", [[], [None], [None, None]], ids=["none", "null", "nulls"])
def test_columns_without_a_value_have_no_text(output, values):
    assert written(values, output.dtype) == values
    assert read(values, output.dtype).dtype == output.dtype.polars


@OUTPUTS
def test_what_has_no_text_reads_as_the_other_value_of_its_row(output):
    instead = [FULL[output.name], EMPTY[output.name]] if not isinstance(FULL[output.name], list) else [None, None]

    column = read_column([None, None], output.dtype, instead)

    assert column.equals(pl.Series("c", instead, output.dtype.polars), check_dtypes=True)


def test_any_reader_of_json_gets_the_list_or_map_in_its_order():
    assert json.loads(TEXTS["shops"]) == ["", AWKWARD]
    assert list(json.loads(TEXTS["n_by_shop"]).items()) == [("b", 2), ("a", 1), ("", 1), (AWKWARD, 1)]
    assert json.loads(TEXTS["rates"]) == FULL["rates"]


def test_no_item_and_no_member_is_an_empty_list_or_map():
    assert written([[], ["", ""]], "list[string]") == ["[]", '["",""]']
    assert written([[]], "map[int64]") == ["{}"]


TEXT = st.text(max_size=6)
FLOAT = st.floats(allow_nan=False, allow_infinity=False)
CENTS = st.integers(-(2**63), 2**63 - 1).map(lambda units: Decimal(units).scaleb(-2))


@given(st.lists(st.none() | st.lists(TEXT, max_size=4), max_size=4))
def test_lists_of_any_text_are_json_and_read_back(values):
    texts = written(values, "list[string]")

    assert [None if text is None else json.loads(text) for text in texts] == values
    assert read(texts, "list[string]").to_list() == values


@given(st.lists(st.dictionaries(TEXT, FLOAT, max_size=4), max_size=4))
def test_maps_of_any_floats_read_back_to_the_same_bits(maps):
    values = [[{"key": key, "value": value} for key, value in members.items()] for members in maps]

    found = read(written(values, "map[float64]"), "map[float64]").to_list()

    assert [[(m["key"], m["value"].hex()) for m in members] for members in found] == [
        [(key, value.hex()) for key, value in members.items()] for members in maps
    ]


@given(st.lists(st.none() | CENTS, max_size=4))
def test_decimals_are_exact(values):
    texts = written(values, "decimal(38,2)")

    assert [None if text is None else Decimal(text) for text in texts] == values
    assert read(texts, "decimal(38,2)").to_list() == values


@pytest.mark.parametrize(("dtype", "text"), [
    ("int64", b"1.5"), ("int64", b""), ("int64", b"9223372036854775808"), ("float64", b"x"), ("bool", b"true"),
    ("string", b"\xff"), ("timestamp", b"2017-07-14"), ("decimal(38,2)", b"1.234"), ("decimal(38,2)", b"1"),
    ("decimal(38,2)", b"NaN"), ("decimal(38,0)", b"1e5"), ("list[int64]", b"[1,"), ("list[int64]", b'["1"]'),
    ("list[int64]", b"[9223372036854775808]"), ("list[string]", b"{}"), ("list[decimal(38,2)]", b'["x"]'),
    ("decimal(38,2)", b"9" * 39 + b".00"), ("decimal(38,2)", b"9" * 37 + b".00"), ("decimal(38,0)", b"9" * 39),
    ("list[decimal(38,2)]", b'["' + b"9" * 37 + b'.00"]'), ("bool", b"2"), ("bool", b"-1"), ("bool", b" 1"),
    ("timestamp", b"253402300800000000"), ("timestamp", b"-62135596800000001"), ("timestamp", b"9223372036854775807"),
    ("list[timestamp]", b"[253402300800000000]"), ("map[timestamp]", b'{"a":253402300800000000}'),
    ("map[int64]", b"[1]"), ("map[float64]", b'{"a":null}'), ("map[decimal(38,2)]", b'{"a":1.25}'),
])  # fmt: skip
def test_text_that_is_no_such_value_is_named(dtype, text):
    good = {"int64": b"1", "string": b"a"}.get(dtype)

    with pytest.raises(ValueError, match="is no") as refused:
        read_column([good, None, text], Type.parse(dtype), [None] * 3)

    assert str(refused.value) == f"{text!r} is not a valid {dtype}"


def test_the_widest_values_of_a_type_are_read():
    widest = "9" * 36 + ".99"
    first, last = dt.datetime.min.replace(tzinfo=dt.UTC), dt.datetime.max.replace(tzinfo=dt.UTC)

    assert read([widest, f"-{widest}"], "decimal(38,2)").to_list() == [Decimal(widest), Decimal(f"-{widest}")]
    assert read(["-62135596800000000", "253402300799999999"], "timestamp").to_list() == [first, last]
    assert read(["0", "1"], "bool").to_list() == [False, True]


NUMBERS = {
    "int64": ["5", "-7", "0", "-0", "9223372036854775807", "-9223372036854775808"],
    "float64": ["5.0", "-0.0", "0.1", "1e16", "1e+300", "5.5e-07", "-5e-324", "1" * 300 + ".0"],
    "timestamp": ["0", "1500000000000001", "-62135596800000000", "253402300799999999"],
}
NO_NUMBERS = [
    "", " ", " 5", "5 ", "\t5", "5\n", "05", "+5", "5.", ".5", ".", "e", "n", "-", "5E3", "5..0", "1e999", "1.0e999", "1_0", "0x5",
    "nan", "inf", "true", "null", "5,5", "5,", ",5", "[5]", "5]", "],[", "5],[5", "5.0],[5.0", '"5"', "٥", "\0", "9" * 30,
]  # fmt: skip


@pytest.mark.parametrize("scalar", NUMBERS)
def test_a_look_at_all_numbers_together_finds_what_a_look_at_each_finds(scalar):
    dtype = Type.parse(scalar)
    others = [text for texts in NUMBERS.values() for text in texts if text not in NUMBERS[scalar]]
    good = NUMBERS[scalar][0].encode()

    for text in [*NUMBERS[scalar], *others, *NO_NUMBERS, None]:
        stored_text = None if text is None else text.encode()
        for rows in ([[b"1", stored_text]], [[b"1", good], [None, stored_text]], [[b"1", stored_text], [b"1", None]]):
            try:
                expected = [None if one is None else Reader(dtype).values([one])[0] for _, one in rows]
            except ValueError:
                expected = None
            found = Numbers([Type("timestamp"), dtype]).read(rows)

            assert (found is None) is (expected is None), text
            if found is not None:
                assert repr([row[1] for row in found.rows]) == repr(expected)
                assert found.have_nulls is any(None in row for row in rows)
