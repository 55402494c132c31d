"""An event on which an expression fails is rejected by itself."""

import numpy as np
import polars as pl

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
