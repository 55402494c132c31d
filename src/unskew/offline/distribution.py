"""The distribution of a column in fixed bins, small enough to keep, with which later values can be compared.

The convention, which never changes within one format of the manifest:

- Nulls are left out; ``n`` is the number of the others.
- Texts and booleans, and integers of at most 20 different values, are counted by value (``kind`` "values"): the 20
  most frequent ones, of equally frequent ones the least first. ``others`` counts all further values.
- Numbers and instants are counted in bins (``kind`` "bins"). Edge i of 10 is the least value of the column that at
  least i tenths of its values do not exceed: a value that occurs, never one in between. Equal edges are one edge,
  so a value that is very frequent has a bin of its own. Bin k holds the values above edge k-1, up to edge k inclusive;
  the first has no lower bound. The last edge is the maximum. NaN is above every edge: ``others`` counts it.
- Lists and maps are counted by their length, as integers (``of`` "length").
"""

from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

Value = bool | int | float | str
MOST_VALUES = 20
N_BINS = 10


class Distribution(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The bins of a column and the number of its values in each; see the module for the convention.

    ``edges``: the values, or the upper edges of the bins, as JSON values: a decimal is text, an instant is a number of
    microseconds since 1970, and an infinite float is the text "inf" or "-inf". ``counts``: one for each edge.
    ``min``: the least value, of bins.
    """

    kind: Literal["values", "bins"]
    n: int
    edges: tuple[Value, ...]
    counts: tuple[int, ...]
    others: int = 0
    min: Value | None = None
    of: Literal["value", "length"] = "value"


def distribution(column: pl.Series) -> Distribution:
    """Return the distribution of a column of any type that a feature may have."""
    of: Literal["value", "length"] = "value"
    values = column.drop_nulls()
    if isinstance(values.dtype, pl.List):
        of, values = "length", values.list.len().cast(pl.Int64)
    counted = _frequent(values)
    if counted is not None:
        found, counts = counted
        return Distribution(
            kind="values",
            n=len(values),
            edges=_written(found),
            counts=tuple(counts.tolist()),
            others=len(values) - int(counts.sum()),
            of=of,
        )
    numbers = values.drop_nans() if values.dtype.is_float() else values
    ordered = numbers.sort()
    # Rank i of n is the least position that has at least i tenths of the values before or at it.
    ranks = -(-np.arange(1, N_BINS + 1) * len(ordered) // N_BINS) - 1
    edges = ordered.gather(ranks).unique(maintain_order=True) if len(ordered) else ordered
    ends = ordered.search_sorted(edges, side="right").to_numpy().astype(np.int64)
    return Distribution(
        kind="bins",
        n=len(values),
        edges=_written(edges),
        counts=tuple(np.diff(ends, prepend=0).tolist()),
        others=len(values) - len(ordered),
        min=_written(ordered.head(1))[0] if len(ordered) else None,
        of=of,
    )


def _frequent(values: pl.Series) -> tuple[pl.Series, npt.NDArray[np.int64]] | None:
    """Return the most frequent values and their counts; None for a column that is counted in bins."""
    is_integer = values.dtype.is_integer()
    if not (is_integer or values.dtype in {pl.Boolean(), pl.String()}):
        return None
    counted = values.alias("value").value_counts(name="n")
    if is_integer and counted.height > MOST_VALUES:
        return None
    most = counted.sort("n", "value", descending=[True, False]).head(MOST_VALUES)
    return most["value"], most["n"].to_numpy().astype(np.int64)


def _written(values: pl.Series) -> tuple[Value, ...]:
    """Return values as JSON has them."""
    if isinstance(values.dtype, pl.Datetime):
        values = values.to_physical()
    elif isinstance(values.dtype, pl.Decimal):
        values = values.cast(pl.String)
    items: Sequence[Value] = values.to_list()
    return tuple(str(item) if isinstance(item, float) and not np.isfinite(item) else item for item in items)
