"""An event on which an expression fails is rejected by itself."""

import struct

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
