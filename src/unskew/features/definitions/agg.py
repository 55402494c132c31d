"""Aggregations, as they are written in definitions: ``agg.sum("amount")``.

``value``: SQL text or a Polars expression over the stream's columns, row by row. Nulls in it are ignored.
``by``: a column or expression whose text is the key of a map; events without it are ignored. The map holds the ``keys`` keys with
most events (of as many, the first in the order of their text), in that order, and last under ``"other"`` all the rest together,
where there is any. A key that is itself ``"other"`` is counted there.
"""

from collections.abc import Sequence
from datetime import timedelta

import msgspec
import polars as pl

from unskew.features.view import AggregationName

Expression = str | pl.Expr
Duration = str | timedelta | int


class Aggregation(msgspec.Struct, frozen=True):
    """A function, the value it aggregates, and what else the function is told; None where it is not given."""

    function: AggregationName
    value: Expression | None = None
    by: Expression | None = None
    keys: int | None = None
    n: int | None = None
    ddof: int | None = None
    q: float | None = None
    error: float | None = None
    edges: Sequence[float] | None = None
    half_life: Duration | None = None


def count(value: Expression | None = None, *, by: Expression | None = None, keys: int | None = None) -> Aggregation:
    """Count the events that pass the filter, or the values that are not null: int64, 0 on an empty window."""
    return Aggregation("count", value, by=by, keys=keys)


def sum(value: Expression, *, by: Expression | None = None, keys: int | None = None) -> Aggregation:  # noqa: A001 - the word that users know
    """Sum exactly: int64 of int and bool values, else of their own type; 0 on an empty window.

    int64 and decimal saturate at the limits of int64.
    """
    return Aggregation("sum", value, by=by, keys=keys)


def mean(value: Expression, *, by: Expression | None = None, keys: int | None = None) -> Aggregation:
    """Divide the exact sum by the number of values, rounded once: float64, null on an empty window."""
    return Aggregation("mean", value, by=by, keys=keys)


def var(value: Expression, *, ddof: int = 1) -> Aggregation:
    """Give the variance of the exact sums, rounded once: float64; null where there are no more than ``ddof`` values."""
    return Aggregation("var", value, ddof=ddof)


def std(value: Expression, *, ddof: int = 1) -> Aggregation:
    """Give the square root of ``var``: float64; null where there are no more than ``ddof`` values."""
    return Aggregation("std", value, ddof=ddof)


def min(value: Expression) -> Aggregation:  # noqa: A001 - the word that users know
    """Keep the smallest value, of its own type; null on an empty window."""
    return Aggregation("min", value)


def max(value: Expression) -> Aggregation:  # noqa: A001 - the word that users know
    """Keep the largest value, of its own type; null on an empty window."""
    return Aggregation("max", value)


def first(value: Expression) -> Aggregation:
    """Keep the earliest value by (effective time, arrival, partition, offset); null on an empty window."""
    return Aggregation("first", value)


def last(value: Expression) -> Aggregation:
    """Keep the latest value by (effective time, arrival, partition, offset); null on an empty window."""
    return Aggregation("last", value)


def first_n(value: Expression, n: int) -> Aggregation:
    """List the ``n`` earliest values from the earliest on, ordered as ``first``; null on an empty window."""
    return Aggregation("first_n", value, n=n)


def last_n(value: Expression, n: int) -> Aggregation:
    """List the ``n`` latest values from the latest back, ordered as ``last``; null on an empty window."""
    return Aggregation("last_n", value, n=n)


def first_time() -> Aggregation:
    """Give the effective time of the earliest event that passes the filter: timestamp; null on an empty window."""
    return Aggregation("first_time")


def last_time() -> Aggregation:
    """Give the effective time of the latest event that passes the filter: timestamp; null on an empty window."""
    return Aggregation("last_time")


def count_distinct(value: Expression) -> Aggregation:
    """Count the different values, exactly: int64, 0 on an empty window. Memory grows with them."""
    return Aggregation("count_distinct", value)


def approx_count_distinct(value: Expression, *, error: float = 0.02) -> Aggregation:
    """Estimate the number of different values in bounded memory: int64, 0 on an empty window.

    ``error``: the standard error of the estimate, relative. HyperLogLog: equal sets of values give equal estimates.
    """
    return Aggregation("approx_count_distinct", value, error=error)


def mode(value: Expression) -> Aggregation:
    """Give the most frequent value, of equally frequent ones the smallest; null on an empty window."""
    return Aggregation("mode", value)


def top_k(value: Expression, k: int) -> Aggregation:
    """List the ``k`` most frequent values, of equally frequent ones the smallest first; null on an empty window."""
    return Aggregation("top_k", value, n=k)


def histogram(value: Expression, edges: Sequence[float]) -> Aggregation:
    """Count the values below the first edge, from each edge up to before the next, and from the last on: list[int64].

    One count more than edges; null on an empty window.
    """
    return Aggregation("histogram", value, edges=edges)


def quantile(value: Expression, q: float, *, error: float = 0.01) -> Aggregation:
    """Give the value of rank ``ceil(q * n)`` (at least 1) in ascending order: float64, null on an empty window.

    ``error``: how far the answer may be from that value, relative to it. Zero is exact.
    """
    return Aggregation("quantile", value, q=q, error=error)


def decayed_count(*, half_life: Duration) -> Aggregation:
    """Count the events in the window, each by half as much for every ``half_life`` of its age: float64, 0 on an empty window.

    Ages are in whole hops of the window; ``half_life`` is a multiple of the hop. Every hop changes the value.
    """
    return Aggregation("decayed_count", half_life=half_life)


def decayed_sum(value: Expression, *, half_life: Duration) -> Aggregation:
    """Sum as ``sum``, each value weighed as in ``decayed_count``: float64, 0 on an empty window."""
    return Aggregation("decayed_sum", value, half_life=half_life)
