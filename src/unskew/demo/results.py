"""What the stream left behind, shown: features of today, and a training set of the past."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
from rich.table import Table

from unskew.features.plan import Plan, ViewPlan
from unskew.store import FeatureStore

N_HOUSEHOLDS = 3
N_LABELS = 10_000
HEAD = 5

EVENT_TIMESTAMP = "event_timestamp"


def references(*views: ViewPlan) -> list[str]:
    """Return ``view:feature`` for every feature of these views."""
    return [f"{view.name}:{feature.name}" for view in views for feature in view.features]


def busy_households(lines: pl.DataFrame, n: int = N_HOUSEHOLDS) -> list[int]:
    """Return the households that bought last, the latest first; fewer where there are not as many."""
    latest = lines.reverse()["household_id"].unique(maintain_order=True)
    return latest.head(n).to_list()


def household_features(store: FeatureStore, plan: Plan, households: list[int]) -> Table:
    """Return the households' features as Redis holds them now, a column per household."""
    views = [view for view in plan.views.values() if view.entity.name == "household"]
    names = references(*views)
    rows = [{"household_id": household} for household in households]
    answer = store.get_online_features(names, rows, full_feature_names=True).to_dict()
    table = Table(title="Features of three households, from Redis", title_justify="left")
    table.add_column("feature")
    for household in households:
        table.add_column(f"household {household}", justify="right")
    for name in names:
        table.add_row(name, *map(_shown, answer[name.replace(":", "__")]))
    return table


def labels(lines: pl.DataFrame, *, before_ms: int, seed: int, n: int = N_LABELS) -> pl.DataFrame:
    """Return basket lines drawn at random, with replacement, as labels at the instants of their baskets.

    ``before_ms``: only lines before this time, milliseconds. What was bought is the label's target, ``quantity``.
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


def head(frame: pl.DataFrame, n: int = HEAD) -> Table:
    """Return the first rows on their side: a line per column, a column per row."""
    table = Table(
        title=f"Training set: the first {min(n, frame.height)} of {frame.height:,} rows", title_justify="left"
    )
    table.add_column("column")
    for row in range(min(n, frame.height)):
        table.add_column(f"row {row}", justify="right")
    for name in frame.columns:
        table.add_row(name, *[_shown(value) for value in frame[name].head(n)])
    return table


def summary(frame: pl.DataFrame) -> Table:
    """Return a line per column: type, nulls, and the range of its values."""
    table = Table(title="Training set: its columns", title_justify="left")
    table.add_column("column")
    table.add_column("type")
    for name in ("nulls", "min", "mean", "max"):
        table.add_column(name, justify="right")
    for name, dtype in frame.schema.items():
        column = frame[name]
        table.add_row(
            name,
            str(dtype),
            f"{column.null_count():,}",
            _shown(column.min()),
            _shown(column.mean()) if dtype.is_numeric() else "",
            _shown(column.max()),
        )
    return table


def _shown(value: Any) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return str(value).lower()
        case float():
            return f"{value:,.2f}"
        case datetime():
            return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
    return str(value)
