"""An event on which an expression fails is rejected by itself."""

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
