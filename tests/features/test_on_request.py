"""On-demand features of a request: evaluated to the same bits in any batch, from inputs of any table."""

import asyncio
import datetime as dt
import math
import random
from decimal import Decimal

import numpy as np
import pandas as pd
import polars as pl
import pytest

from tests.support.definitions import view
from unskew import Derived, Feature, Lifetime, OnDemand, RequestError, agg, compile
from unskew.features.definitions.on_demand import computed
from unskew.features.frames import Columns, read_table
from unskew.features.on_request import input_column, of_references, requested_instant, with_read
from unskew.features.registry import Published
from unskew.features.types import Type
from unskew.features.versions import Versions
from unskew.serving.computing import MOST_ROWS, Computing, Together

FLOATS = [
    "x / 7", "7 / y", "x / y", "x % 7.0", "x % y", "7.3 % y", "pow(y, 2)", "pow(y, 0.5)", "pow(2.5, y)", "pow(y, x / 300)",
    "ln(y)", "log(y, 3)", "log1p(y)", "exp(y)", "sin(x)", "tan(x)", "asin(x / 1000)", "atan2(x, 3.3)", "atan2(3.3, x)",
    "cbrt(x)", "sqrt(y)", "radians(x)", "round(x, 2)", "0.1 - x", "x * 0.1 + y", "i / 7", "7 / i", "x / pi()", "(x + y) / 2",
    "coalesce(x / 3, 1)", "CASE WHEN x > 0 THEN x / 7 ELSE y / 3 END", "greatest(x, y, 3.3) / 9", "i * 3 / 7",
    "haversine(x / 20, y, 10, 20)", "seconds_between(t, now) / 86400", "pow(1.0001, i / 1000)",
]  # fmt: skip
TYPES = {"x": Type("float64"), "y": Type("float64"), "i": Type("int64"), "t": Type("timestamp")}


@pytest.mark.parametrize("text", FLOATS)
def test_every_bit_is_the_same_alone_in_pairs_and_in_a_batch(text):
    pick = random.Random(text)
    n = 400
    frame = pl.DataFrame(
        {
            "x": [pick.choice([pick.uniform(-1e3, 1e3), None, 0.0]) for _ in range(n)],
            "y": [pick.uniform(1e-3, 50) for _ in range(n)],
            "i": [pick.randrange(-(10**6), 10**6) for _ in range(n)],
            "t": pl.Series([pick.randrange(2**50) for _ in range(n)]).cast(pl.Datetime("us", "UTC")),
            "now": pl.Series([pick.randrange(2**50) for _ in range(n)]).cast(pl.Datetime("us", "UTC")),
        }
    )
    expr = computed(text, TYPES, Versions([])).expr

    def bits(size: int) -> list[str]:
        parts = [frame[at : at + size].select_seq(expr.alias("found"))["found"] for at in range(0, n, size)]
        return [repr(value) for part in parts for value in part.to_list()]

    assert bits(1) == bits(2) == bits(7) == bits(n)


AT = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("float64", [1, 2.5, None, math.nan, -math.inf, 2**53], [1.0, 2.5, None, None, None, 2.0**53]),
        ("float64", [3, None, -7], [3.0, None, -7.0]),
        ("int64", [1, None, 2**62], [1, None, 2**62]),
        ("int64", [1.0, None, math.nan], [1, None, None]),
        ("bool", [True, None, False], [True, None, False]),
        ("string", ["", "ä", None], ["", "ä", None]),
        ("timestamp", [AT, None, AT.astimezone(dt.timezone(dt.timedelta(hours=5)))], [AT, None, AT]),
        ("timestamp", ["2026-03-01T12:00:00Z", None, "2026-03-01T13:00:00+01:00"], [AT, None, AT]),
        ("decimal(38,2)", ["1.50", None, "-3"], [Decimal("1.50"), None, Decimal("-3.00")]),
        ("decimal(38,2)", [7, None], [Decimal("7.00"), None]),
        ("float64", [None, None], [None, None]),
    ],
)
def test_an_input_has_the_same_values_however_it_is_given(name, values, expected):
    dtype = Type.parse(name)
    features = Published(
        views=Versions([]),
        on_demand=compile(view(), OnDemand("one", {"v": name}, [Derived("same", "coalesce(v, v)")])).on_demand,
    )
    on_request = of_references(["one:same"], features).on_request
    assert on_request is not None
    tables = [[{"v": value} for value in values], Columns({"v": values}), pl.DataFrame({"v": values}, strict=False)]

    for table in tables:
        given = table if isinstance(table, Columns) else read_table(table)
        column = on_request.input_columns(given)["v"]
        assert (column.dtype, column.to_list()) == (dtype.polars, expected)
        listed = on_request.input_values(given)["v"]
        stored = pl.Series(expected, dtype=dtype.polars)
        assert listed == (stored.cast(pl.Int64) if name == "timestamp" else stored).to_list()


def test_inputs_of_a_pandas_frame_are_read_as_those_of_any_table():
    frame = pd.DataFrame({"v": np.array([1.5, math.nan, math.inf])})

    assert input_column(read_table(frame).column("v"), Type("float64")).to_list() == [1.5, None, None]


@pytest.mark.parametrize(
    ("name", "values", "fault"),
    [
        ("float64", ["1.5"], "'1.5' of row 0 (String) cannot be converted"),
        ("float64", [1, 2**53 + 1], "9007199254740993 of row 1 (Int64) cannot be converted"),
        ("float64", [True], "True of row 0 (Boolean) cannot be converted"),
        ("int64", [1.0, 2.5], "2.5 of row 1 (Float64) cannot be converted"),
        ("int64", [2.0**63], "9.223372036854776e+18 of row 0 (Float64) cannot be converted"),
        ("bool", [1], "1 of row 0 (Int64) cannot be converted"),
        ("string", [7], "7 of row 0 (Int64) cannot be converted"),
        ("timestamp", ["yesterday"], "'yesterday' of row 0 (String) cannot be converted to that without loss; give instants, in JSON"),
        ("timestamp", [1_700_000_000], "1700000000 of row 0 (Int64) cannot be converted"),
        ("decimal(38,2)", ["1.505"], "'1.505' of row 0 (String) cannot be converted"),
        ("decimal(38,2)", [1.5], "1.5 of row 0 (Float64) cannot be converted"),
        ("decimal(38,2)", ["1e30"], "'1e30' of row 0 (String) cannot be converted"),
    ],
)  # fmt: skip
def test_an_input_that_would_lose_something_is_refused(name, values, fault):
    with pytest.raises(RequestError) as caught:
        input_column(pl.Series("v", values), Type.parse(name))

    assert f"the input 'v' is {name}, and {fault}" in str(caught.value)


VIEW = view(Feature("n", agg.count(), Lifetime()))
ONE = OnDemand("one", {"a": "float64"}, [Derived("f", "a / purchases:n", default=-1.0), Derived("g", "a > 1")])
OTHER = OnDemand("other", {"a": "string"}, [Derived("h", "char_length(a)"), Derived("f", "now")])
KNOWN = Published.of(compile(VIEW, ONE, OTHER))


def test_columns_come_in_the_order_of_the_request_and_what_is_read_besides_is_not_among_them():
    found = of_references(["one:g", "purchases:n", "one@1:f", "one:g"], KNOWN)

    assert [(one.column, one.reference) for one in found.asked] == [
        ("g", "one:g"),
        ("n", "purchases:n"),
        ("f", "one@1:f"),
    ]
    assert [one.reference for one in found.of_views] == ["purchases:n", "purchases:n"]
    full = of_references(["one:g", "purchases@1:n", "one@1:f"], KNOWN, full_feature_names=True)
    assert [one.column for one in full.asked] == ["one__g", "purchases@1__n", "one@1__f"]
    assert with_read(["one:g", "purchases:n", "one"], KNOWN.on_demand) == ["purchases:n"]


@pytest.mark.parametrize(
    ("references", "fault"),
    [
        (["one:i"], "one has no feature 'i'; its features are f, g"),
        (["onee:f"], "there is no view 'onee'; did you mean 'one'?"),
        (["one@2:f"], "on-demand 'one' has no version '2'; there is one@1"),
        (["one:f", "other:f"], "one:f and other:f would share the column 'f'"),
        (["one:g", "other:h"], "one takes the input 'a' as float64, and other as string; ask for them apart"),
        (["one"], "'one' is not a feature reference"),
    ],
)
def test_what_cannot_be_answered_is_refused(references, fault):
    with pytest.raises(RequestError) as caught:
        of_references(references, KNOWN)

    assert fault in str(caught.value)


def test_a_missing_input_is_named_with_who_takes_it():
    on_request = of_references(["one:f"], KNOWN).on_request
    assert on_request is not None

    with pytest.raises(
        RequestError, match=r"one takes the input 'a' \(float64\), which is not among the given columns"
    ):
        on_request.input_values(read_table([{"aa": 1.0}]))


def test_what_is_not_finite_is_null_no_zero_is_negative_and_the_default_stands_last():
    on_request = of_references(["one:f", "one:g"], KNOWN).on_request
    assert on_request is not None
    columns = {
        "a": pl.Series([1.0, -0.0, None, 1e308, 0.0]),
        "purchases:n": pl.Series([0, 5, 1, None, 0]),
        "now": pl.Series([AT] * 5, dtype=pl.Datetime("us", "UTC")),
    }

    f, g = on_request(columns)

    assert repr(f.to_list()) == "[-1.0, 0.0, -1.0, -1.0, -1.0]"
    assert g.to_list() == [False, False, None, True, False]


def test_now_is_an_instant():
    us = int(AT.timestamp()) * 1_000_000
    assert (
        requested_instant(AT)
        == requested_instant("2026-03-01T12:00:00Z")
        == requested_instant("2026-03-01T12:00")
        == us
    )
    for wrong in ("yesterday", 7, "0001-01-01T00:00:00Z", None):
        with pytest.raises(RequestError, match="now: "):
            requested_instant(wrong)


def test_an_instant_that_no_text_can_name_is_null_and_as_an_input_is_refused():
    (far,) = compile(
        view(), OnDemand("one", {"t": "timestamp"}, [Derived("f", "t + INTERVAL '7980 years'")])
    ).on_demand.values()
    on_request = of_references(["one:f"], Published(views=Versions([]), on_demand={"one": far})).on_request
    assert on_request is not None

    (found,) = on_request({"t": pl.Series([AT, AT.replace(year=900)]), "now": pl.Series([AT, AT])})

    assert found.to_list() == [None, AT.replace(year=8880)]
    with pytest.raises(RequestError, match="the input 't' is timestamp"):
        input_column(pl.Series("t", [2**62]).cast(pl.Datetime("us", "UTC")), Type("timestamp"))


def test_reads_that_are_evaluated_together_get_their_own_rows_and_a_failing_one_harms_no_other():
    dated = OnDemand("dated", {"t": "timestamp"}, [Derived("year", "strftime(t, '%Y')")])
    on_request = of_references(["dated:year"], Published.of(compile(VIEW, dated))).on_request
    assert on_request is not None
    year_us = 366 * 86_400_000_000
    # No input is so far away that Polars panics. If one were, or an expression could fail otherwise:
    beyond_us = 2**63 - 1

    def read(*instants_us: int | None) -> Computing:
        return Computing(on_request, {"t": list(instants_us)}, {"t": Type("timestamp")}, len(instants_us), 0)

    async def together(*reads: Computing) -> list[object]:
        batcher = Together()
        return await asyncio.gather(*(batcher.done(one) for one in reads), return_exceptions=True)

    reads = [read(n * year_us) for n in range(20)]
    reads += [read(), read(0, None), read(*[year_us] * MOST_ROWS), read(0, beyond_us), read(0)]
    found = asyncio.run(together(*reads))

    assert found[:20] == [[[str(1970 + n)]] for n in range(20)]
    assert found[20:22] == [[[]], [["1970", None]]]
    assert len(found[22][0]) == MOST_ROWS
    assert isinstance(found[23], RequestError)
    assert "dated:year cannot be computed for row 1: " in str(found[23])
    assert found[24] == [["1970"]]
