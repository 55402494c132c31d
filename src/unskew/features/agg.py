"""Aggregations, as they are written in definitions: ``agg.sum("amount")``.

``value``: SQL text or a Polars expression over the stream's columns, row by row. Nulls in it are ignored.
"""

import msgspec
import polars as pl

from unskew.features.plan import AggregationName

Expression = str | pl.Expr


class Aggregation(msgspec.Struct, frozen=True):
    """A function and the value it aggregates; ``count`` has none."""

    function: AggregationName
    value: Expression | None = None


def count() -> Aggregation:
    """Count the events that pass the filter: int64, 0 on an empty window."""
    return Aggregation("count")


def sum(value: Expression) -> Aggregation:  # noqa: A001 - the word that users know
    """Sum exactly: int64 of int and bool values, float64 of floats; 0 on an empty window."""
    return Aggregation("sum", value)


def mean(value: Expression) -> Aggregation:
    """Divide the exact sum by the number of values, rounded once: float64, null on an empty window."""
    return Aggregation("mean", value)


def min(value: Expression) -> Aggregation:  # noqa: A001 - the word that users know
    """Keep the smallest value, of its own type; null on an empty window."""
    return Aggregation("min", value)


def max(value: Expression) -> Aggregation:  # noqa: A001 - the word that users know
    """Keep the largest value, of its own type; null on an empty window."""
    return Aggregation("max", value)


def last(value: Expression) -> Aggregation:
    """Keep the latest value by (effective time, arrival, partition, offset); null on an empty window."""
    return Aggregation("last", value)
