"""An event on which an expression fails is rejected by itself."""

import datetime as dt
import struct
from dataclasses import replace
from decimal import Decimal

import numpy as np
import polars as pl
import pytest

from tests.support.plans import SECOND, Wanted, events, sliding, view
from unskew.features.evaluate import evaluate

WINDOW = sliding(60 * SECOND, SECOND)


def test_an_event_on_which_an_expression_fails_leaves_its_neighbours_alone():
    # Strict: compiling refuses it, as it would refuse all that it knows to fail.
    plan = view(Wanted("n", "sum", WINDOW, pl.col("x").cast(pl.Int64), "int64"), where=pl.col("n") > 0)
    rows = [
        (at, at, {"user": "a", "x": x, "n": n})
        for at, (x, n) in enumerate([(1.0, 1), (1e300, 1), (2.0, 1), (1e300, 0)])
    ]

    found = evaluate(plan, events(rows))

    assert found.events["v0"].to_list() == [1, 2]
    assert found.rejected["_offset"].to_list() == [1]
    assert found.rejected["reason"][0].startswith(
        "view: an expression fails on it: conversion from `f64` to `i64` failed"
    )


@pytest.mark.parametrize("dtype", [pl.Float64(), pl.Float32()])
@pytest.mark.parametrize(
    "numbers",
    [[1.5, -2.5], [1.5, 0.0], [-0.0, 1.5], [None, 1.5], [None, -0.0], [None, None], [2.0**61, -1e-300]],
    ids=str,
)
def test_a_column_as_it_is_has_the_numbers_of_its_events_and_no_negative_zero(numbers, dtype):
    plan = view(Wanted("sum", "sum", WINDOW, pl.col("y"), "float64"), columns={"y": dtype})
    rows = [(5 + at, 7 - at, {"user": "a", "y": number}) for at, number in enumerate(numbers)]

    found = evaluate(plan, events(rows, columns={"y": dtype})).events

    given = [None if x is None else struct.unpack("f", struct.pack("f", x))[0] for x in numbers]
    exact = numbers if dtype == pl.Float64 else given
    expected = [None if x is None else (x or 0.0).hex() for x in exact]
    assert [None if x is None else x.hex() for x in found["v0"]] == expected
    assert found["arrival"].to_list() == [row[0] for row in rows]
    assert found["event_time"].to_list() == [row[1] for row in rows]
    assert found["effective"].to_list() == [min(row[:2]) for row in rows]
    assert found["offset"].to_list() == list(range(len(rows)))


def test_an_expression_of_one_number_gives_it_for_each_event():
    plan = view(Wanted("ones", "sum", WINDOW, pl.lit(1.0), "float64"), Wanted("sum", "sum", WINDOW, "x"))
    rows = [(at, at, {"user": "a", "x": 2.5}) for at in range(3)]

    found = evaluate(plan, events(rows)).events

    assert sorted(found[name].to_list() for name in ("v0", "v1")) == [[1.0] * 3, [2.5] * 3]


def test_a_number_beyond_the_range_is_rejected_by_the_first_feature_that_reads_it_and_only_where_its_filter_holds():
    # Three features read x: two of every event, one of those with n > 0.
    plan = view(
        Wanted("few", "sum", WINDOW, pl.col("x"), "float64", filter=pl.col("n") > 0),
        Wanted("all", "sum", WINDOW, pl.col("y"), "float64"),
        Wanted("most", "max", WINDOW, pl.col("y"), "float64"),
        columns={"y": pl.Float64()},
    )
    limit = 2.0**62
    cases = [
        (1.0, 1.0, 1, None),
        (float("nan"), 1.0, 0, None),
        (float("nan"), 1.0, 1, "view.few: value is NaN, infinite or beyond 2^62"),
        (None, None, 1, None),
        (1.0, -limit, 1, "view.all: value is NaN, infinite or beyond 2^62"),
        (limit, limit, 1, "view.few: value is NaN, infinite or beyond 2^62"),
        (1.0, np.nextafter(limit, 0), 1, None),
    ]
    rows = [(at, at, {"user": "a", "x": x, "y": y, "n": n}) for at, (x, y, n, _) in enumerate(cases)]

    found = evaluate(plan, events(rows, columns={"y": pl.Float64()}))

    refused = {at: reason for at, (_, _, _, reason) in enumerate(cases) if reason is not None}
    assert dict(found.rejected.select("_offset", "reason").iter_rows()) == refused
    assert found.events["offset"].to_list() == [at for at in range(len(cases)) if at not in refused]


NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
OF_TYPES = {
    "int64": (pl.Int64(), [-(2**63), None, 2**63 - 1, 0], [-(2**63), None, 2**63 - 1, 0]),
    "bool": (pl.Boolean(), [True, None, False], [1, None, 0]),
    "string": (pl.String(), ["é\n", None, "", "a text that is longer than others"], None),
    "timestamp": (pl.Datetime("us", "UTC"), [NOON, None], [int(NOON.timestamp()) * SECOND, None]),
    "decimal(38,2)": (
        pl.Decimal(38, 2),
        [Decimal("-0.01"), None, Decimal("12.30"), Decimal("92233720368547758.07")],
        [-1, None, 1230, 2**63 - 1],
    ),
}


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("computed", [False, True])
@pytest.mark.parametrize("kind", OF_TYPES)
def test_values_of_each_type_are_numbers_or_texts_whether_a_column_has_them_or_an_expression_gives_them(
    kind, computed, filtered
):
    dtype, given, expected = OF_TYPES[kind]
    value = pl.coalesce(pl.col("y"), pl.col("y")) if computed else pl.col("y")
    wanted = Wanted("last", "last", WINDOW, value, kind, filter=pl.col("n") > 1 if filtered else None)
    plan = view(wanted, columns={"y": dtype})
    rows = [(at, at, {"user": "a", "y": one, "n": at}) for at, one in enumerate(given)]

    found = evaluate(plan, events(rows, columns={"y": dtype}))

    assert found.events["v0"].to_list() == (expected or given)
    assert found.rejected.height == 0
    if filtered:
        assert found.events["f0"].to_list() == [at > 1 for at in range(len(given))]


@pytest.mark.parametrize("computed", [False, True])
def test_a_decimal_of_too_many_units_is_rejected_where_its_filter_holds(computed):
    dtype = pl.Decimal(38, 2)
    value = pl.coalesce(pl.col("y"), pl.col("y")) if computed else pl.col("y")
    plan = view(Wanted("few", "sum", WINDOW, value, "decimal(38,2)", filter=pl.col("n") > 0), columns={"y": dtype})
    cases = [("1.50", 1), ("-92233720368547758.08", 0), ("-92233720368547758.08", 1), ("1e20", 1), (None, 1)]
    rows = [
        (at, at, {"user": "a", "y": None if text is None else Decimal(text), "n": n})
        for at, (text, n) in enumerate(cases)
    ]

    found = evaluate(plan, events(rows, columns={"y": dtype}))

    why = "view.few: value is beyond 2^63 - 1 units of its last digit"
    assert dict(found.rejected.select("_offset", "reason").iter_rows()) == {2: why, 3: why}
    assert found.events["v0"].to_list() == [150, None, None]


def test_ids_of_events_are_texts():
    plan = view(Wanted("n", "count", WINDOW))
    plan = replace(plan, stream=replace(plan.stream, dedupe_within_us=SECOND, event_id="n"))
    rows = [(at, at, {"user": "a", "n": n}) for at, n in enumerate([7, None, -1])]

    assert evaluate(plan, events(rows)).events["event_id"].to_list() == ["7", None, "-1"]
