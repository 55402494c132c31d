"""The bins in which values are counted: fixed by a distribution that was kept, so that later values fall into the same.

Values that the distribution has no bin for (texts that were not frequent, numbers above its maximum, NaN) have one bin
together, nulls have one, and so have entities without a row. ``offline/distribution.py`` defines the others.
"""

from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.features.showing import shown
from unskew.features.types import INT64, Type
from unskew.features.view import ViewFeature
from unskew.offline.distribution import MOST_VALUES, Distribution, Value, distribution

Codes = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Bins:
    """The bins of one feature: bin i is that of ``edges[i]``, then those of other values, of nulls, and of no row.

    ``edges``: values, or the upper edges of intervals if ``are_upper``; at most 20, ascending if they are upper edges.
    """

    edges: pl.Series
    are_upper: bool

    @classmethod
    def of(cls, kept: Distribution, dtype: Type) -> "Bins":
        """Return the bins of a distribution of values of a type. Raises ``ValueError`` if it is one of another type."""
        own = INT64 if dtype.nesting else dtype
        if (kept.of == "length") != (dtype.nesting is not None):
            raise ValueError(f"it has bins of a {kept.of}")
        if len(kept.edges) != len(kept.counts) or min(kept.others, *kept.counts, 0) < 0:
            raise ValueError(f"it does not have a count for each of its {len(kept.edges)} bins")
        if len(kept.edges) > MOST_VALUES:
            raise ValueError(f"it has {len(kept.edges)} bins, and {MOST_VALUES} are the most")
        try:
            edges = pl.Series("edges", [_edge_of(edge, own) for edge in kept.edges], own.polars, strict=True)
        except (TypeError, ValueError, ArithmeticError, pl.exceptions.PolarsError) as error:
            raise ValueError(str(error).split("\n", maxsplit=1)[0]) from error
        are_upper = kept.kind == "bins"
        if edges.n_unique() != len(edges) or (are_upper and not edges.is_sorted()):
            raise ValueError("its edges are not in order, or not all different")
        return cls(edges, are_upper)

    @classmethod
    def none(cls, dtype: Type) -> "Bins":
        """Return the bins of a feature without a baseline: those of other values, of nulls, and of no row."""
        return cls(pl.Series("edges", [], INT64.polars if dtype.nesting else dtype.polars), are_upper=True)

    @property
    def n(self) -> int:
        """The number of bins, all included."""
        return len(self.edges) + 3

    @property
    def labels(self) -> list[str]:
        """The name of each bin for people, but for the one of entities without a row."""
        sign, others = ("≤ ", "above") if self.are_upper else ("", "others")
        texts = (f"{edge:.6g}" if isinstance(edge, float) else shown(edge) for edge in self.edges.to_list())
        return [*(f"{sign}{text}" for text in texts), others, "null"]

    @property
    def others(self) -> int:
        """The bin of values that have no other."""
        return len(self.edges)

    @property
    def nulls(self) -> int:
        """The bin of nulls."""
        return len(self.edges) + 1

    @property
    def no_row(self) -> int:
        """The bin of entities without a row."""
        return len(self.edges) + 2

    def codes(self, values: pl.Series) -> Codes:
        """Return the bin of each value; ``values`` as a log has them, of the feature's type."""
        if isinstance(values.dtype, pl.List):
            values = values.list.len().cast(pl.Int64)
        if self.are_upper:
            # NaN is above every edge.
            found = np.asarray(self.edges.search_sorted(values, side="left"), np.uint8)
        else:
            places = pl.Series(range(len(self.edges)), dtype=pl.UInt8)
            binned = values.replace_strict(self.edges, places, default=self.others, return_dtype=pl.UInt8)
            found = binned.fill_null(0).to_numpy().astype(np.uint8)
        return np.where(values.is_null().to_numpy(), np.uint8(self.nulls), found).astype(np.uint8)

    def counts(self, values: pl.Series) -> Counts:
        """Return how many values are in each bin."""
        return np.bincount(self.codes(values), minlength=self.n).astype(np.int64)


def as_read(feature: ViewFeature, values: pl.Series) -> pl.Series:
    """Return stored values as a model reads them: with the default in place of null."""
    return values if feature.default is None else values.fill_null(pl.lit(feature.default, values.dtype))


def distribution_of(feature: ViewFeature, values: pl.Series) -> Distribution:
    """Return the distribution of stored values as a model reads them."""
    return distribution(as_read(feature, values))


def counts_of(one: Distribution, n_nulls: int, n_without_row: int = 0) -> Counts:
    """Return what a distribution counted, in the order of its bins."""
    return np.array([*one.counts, one.others, n_nulls, n_without_row], np.int64)


def _edge_of(edge: Value, dtype: Type) -> object:
    """Return an edge from what JSON has."""
    if dtype.scalar == "decimal":
        return Decimal(str(edge))
    if dtype.scalar == "float64" and not isinstance(edge, bool):
        return float(edge)
    is_bool = isinstance(edge, bool)
    if is_bool != (dtype.scalar == "bool") or isinstance(edge, str) != (dtype.scalar == "string"):
        raise ValueError(f"{edge!r} is not a value of {dtype}")
    return edge
