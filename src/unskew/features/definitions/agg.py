"""Aggregations, as they are written in definitions: ``agg.sum("amount")``.

``value``: SQL text or a Polars expression over the stream's columns, evaluated row by row. Nulls in it are ignored.
``by``: a column or expression whose text is the key of a map; events without it are ignored. The map holds the
``keys`` keys with the most events, in descending order of events; keys with equally many are in the order of their
text. All other keys are aggregated together under ``"other"``, which comes last and exists only if there are any. A key
that is itself ``"other"`` is counted there.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import NoReturn, get_args

import msgspec
import polars as pl

from unskew.features.nearest import nearest
from unskew.features.view import AggregationName

Expression = str | pl.Expr
Duration = str | timedelta


OTHER_NAMES: Mapping[str, str] = {
    **dict.fromkeys(["avg", "average"], "mean"),
    **dict.fromkeys(["stddev", "stdev"], "std"),
    "variance": "var",
    **dict.fromkeys(["distinct", "distinct_count", "nunique", "n_unique", "unique_count"], "count_distinct"),
    **dict.fromkeys(["approx_unique_count", "approx_nunique", "approx_distinct"], "approx_count_distinct"),
    **dict.fromkeys(["median", "percentile"], "quantile"),
    **dict.fromkeys(["latest", "most_recent"], "last"),
    **dict.fromkeys(["earliest", "oldest"], "first"),
    **dict.fromkeys(["topk", "most_frequent"], "top_k"),
    **dict.fromkeys(["minimum", "least"], "min"),
    **dict.fromkeys(["maximum", "greatest"], "max"),
}
"""The names of aggregations in other systems, and here."""


def __getattr__(name: str) -> NoReturn:
    known = [*get_args(AggregationName)]
    near = OTHER_NAMES.get(name)
    hint = f"did you mean agg.{near}?" if near else nearest(name, known, "there are")
    raise AttributeError(f"no aggregation is called {name!r}; {hint}")


class Aggregation(msgspec.Struct, frozen=True):
    """A function, the value that it aggregates, and its parameters; None for what is not given."""

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
    """Count the events that pass the filter or, with ``value``, its non-null values: int64, 0 on an empty window."""
    return Aggregation("count", value, by=by, keys=keys)


def sum(value: Expression, *, by: Expression | None = None, keys: int | None = None) -> Aggregation:  # noqa: A001 - the word that users know
    """Sum exactly: int64 for int and bool values, otherwise the type of the values; 0 on an empty window.

    int64 and decimal sums saturate at the limits of int64.
    """
    return Aggregation("sum", value, by=by, keys=keys)


def mean(value: Expression, *, by: Expression | None = None, keys: int | None = None) -> Aggregation:
    """Divide the exact sum by the number of values, and round once: float64, null on an empty window."""
    return Aggregation("mean", value, by=by, keys=keys)


def var(value: Expression, *, ddof: int = 1) -> Aggregation:
    """Compute the variance from exact sums, and round once: float64; null if there are at most ``ddof`` values."""
    return Aggregation("var", value, ddof=ddof)


def std(value: Expression, *, ddof: int = 1) -> Aggregation:
    """Compute the square root of ``var``: float64; null if there are at most ``ddof`` values."""
    return Aggregation("std", value, ddof=ddof)


def min(value: Expression) -> Aggregation:  # noqa: A001 - the word that users know
    """Keep the smallest value, in its own type; null on an empty window."""
    return Aggregation("min", value)


def max(value: Expression) -> Aggregation:  # noqa: A001 - the word that users know
    """Keep the largest value, in its own type; null on an empty window."""
    return Aggregation("max", value)


def first(value: Expression) -> Aggregation:
    """Keep the earliest value by (effective time, arrival, partition, offset); null on an empty window."""
    return Aggregation("first", value)


def last(value: Expression) -> Aggregation:
    """Keep the latest value by (effective time, arrival, partition, offset); null on an empty window."""
    return Aggregation("last", value)


def first_n(value: Expression, n: int) -> Aggregation:
    """List the ``n`` earliest values, the earliest first, in the order of ``first``; null on an empty window."""
    return Aggregation("first_n", value, n=n)


def last_n(value: Expression, n: int) -> Aggregation:
    """List the ``n`` latest values, the latest first, in the order of ``last``; null on an empty window."""
    return Aggregation("last_n", value, n=n)


def first_time() -> Aggregation:
    """Keep the effective time of the earliest event that passes the filter: timestamp; null on an empty window."""
    return Aggregation("first_time")


def last_time() -> Aggregation:
    """Keep the effective time of the latest event that passes the filter: timestamp; null on an empty window."""
    return Aggregation("last_time")


def count_distinct(value: Expression) -> Aggregation:
    """Count the different values exactly: int64, 0 on an empty window. Memory grows with their number."""
    return Aggregation("count_distinct", value)


def approx_count_distinct(value: Expression, *, error: float = 0.02) -> Aggregation:
    """Estimate the number of different values in bounded memory: int64, 0 on an empty window.

    ``error``: the relative standard error of the estimate. It is a HyperLogLog: equal sets of values give equal
    estimates.
    """
    return Aggregation("approx_count_distinct", value, error=error)


def mode(value: Expression) -> Aggregation:
    """Find the most frequent value, the smallest if several are equally frequent; null on an empty window."""
    return Aggregation("mode", value)


def top_k(value: Expression, k: int) -> Aggregation:
    """List the ``k`` most frequent values, the most frequent first; null on an empty window.

    Equally frequent values are listed in ascending order.
    """
    return Aggregation("top_k", value, n=k)


def histogram(value: Expression, edges: Sequence[float]) -> Aggregation:
    """Count the values below the first edge, from each edge to just before the next, and from the last on: list[int64].

    There is one count more than there are edges; null on an empty window.
    """
    return Aggregation("histogram", value, edges=edges)


def quantile(value: Expression, q: float, *, error: float = 0.01) -> Aggregation:
    """Find the value of rank ``ceil(q * n)`` (at least 1) in ascending order: float64, null on an empty window.

    ``error``: the greatest distance of the answer from that value, relative to it. Zero is exact.
    """
    return Aggregation("quantile", value, q=q, error=error)


def decayed_count(*, half_life: Duration) -> Aggregation:
    """Count the events in the window, each halved for every ``half_life`` of its age: float64, 0 on an empty window.

    Ages are counted in whole hops of the window; ``half_life`` is a multiple of the hop. The value changes at every
    hop.
    """
    return Aggregation("decayed_count", half_life=half_life)


def decayed_sum(value: Expression, *, half_life: Duration) -> Aggregation:
    """Sum as ``sum`` does, each value weighted as in ``decayed_count``: float64, 0 on an empty window."""
    return Aggregation("decayed_sum", value, half_life=half_life)
