"""Tables of the results: current features, and a training set of past values."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl
from rich.text import Text

from unskew.features.folding import Rows, number
from unskew.features.plan import Plan, ViewPlan
from unskew.features.time import format_instant
from unskew.store import FeatureStore

N_HOUSEHOLDS = 3
N_LABELS = 10_000
HEAD = 3

EVENT_TIMESTAMP = "event_timestamp"


def references(*views: ViewPlan) -> list[str]:
    """Return ``view:feature`` for every feature of these views."""
    return [f"{view.name}:{feature.name}" for view in views for feature in view.features]


def busy_households(lines: pl.DataFrame, n: int = N_HOUSEHOLDS) -> list[int]:
    """Return the ``n`` households that bought last, the latest first; fewer if there are fewer."""
    latest = lines.reverse()["household_id"].unique(maintain_order=True)
    return latest.head(n).to_list()


def household_features(store: FeatureStore, plan: Plan, households: list[int]) -> Rows:
    """Return the households' features as Redis holds them now, a column per household."""
    names = references(*(view for view in plan.views.values() if view.entity.name == "household"))
    rows = [{"household_id": household} for household in households]
    answer = store.get_online_features(names, rows, full_feature_names=True).to_dict()
    table = _Turned(f"Features of {len(households)} households, read from Redis", map(str, households))
    for name in names:
        column = name.replace(":", "__")
        table.add(column, *map(_shown, answer[column]))
    return table.table


def labels(lines: pl.DataFrame, *, before_ms: int, seed: int, n: int = N_LABELS) -> pl.DataFrame:
    """Return basket lines drawn at random, with replacement, as labels at the instants of their baskets.

    ``before_ms``: only lines before this time, milliseconds. The label's target is ``quantity``.
    """
    known = lines.filter(pl.col("_timestamp_ms") < before_ms)
    drawn = np.random.default_rng(seed).integers(0, known.height, n) if known.height else np.zeros(0, np.int64)
    return known[drawn].select(
        "household_id",
        "product_id",
        "store_id",
        pl.from_epoch("_timestamp_ms", time_unit="ms")
        .dt.replace_time_zone("UTC")
        .cast(pl.Datetime("us", "UTC"))
        .alias(EVENT_TIMESTAMP),
        "quantity",
    )


def head(frame: pl.DataFrame, n: int = HEAD) -> Rows:
    """Return the first rows, transposed: a line per column, a column per row."""
    n = min(n, frame.height)
    table = _Turned(f"Training set: the first {n} of {frame.height:,} rows", (f"row {row}" for row in range(n)))
    for name in frame.columns:
        table.add(name, *map(_shown, frame[name].head(n)))
    return table.table


def summary(frame: pl.DataFrame) -> Rows:
    """Return a line per column: type, nulls, and the range of its values."""
    table = _Turned("Training set: its columns", ("type", "nulls", "min", "mean", "max"))
    for name, dtype in frame.schema.items():
        column = frame[name]
        table.add(
            name,
            str(dtype.base_type()).lower(),
            f"{column.null_count():,}",
            _shown(column.min()),
            # The mean of a key has no meaning.
            _shown(column.mean()) if dtype.is_numeric() and not name.endswith("_id") else "",
            _shown(column.max()),
        )
    return table.table


class _Turned:
    """A table with a line per column of a frame; the features of a view are grouped under its name."""

    def __init__(self, title: str, headings: Iterable[str]) -> None:
        self._headings = list(headings)
        self.table = Rows("", *map(number, self._headings), heading=[Text(title, style="bold")])
        self._view = ""

    def add(self, name: str, *cells: str) -> None:
        """Add the line of the column ``name``, ``view__feature`` for a feature."""
        view, _, feature = name.rpartition("__")
        if view == feature:
            # A view of one feature, as in YAML.
            view = ""
        if view and view != self._view:
            self.table.add(Text(view, style="bold"), *("" for _ in self._headings))
        self._view = view
        self.table.add(f"  {feature}" if view else feature, *cells)


def _shown(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:,.2f}"
        case datetime():
            return format_instant(value)
    return str(value)
