"""Generated page views: views of a basket's products before the purchase, and views that lead to no purchase.

The Complete Journey has no page views. These show the effect of a real topic on features: records that arrive seconds
to hours after their event, records that come twice, and records that cannot be decoded.
"""

import math

import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.demo.topics import DAMAGES

N_EACH_DAMAGE = 10
DEVICES = ("web", "ios", "android")

_MINUTE_MS = 60_000
_HOUR_MS = 60 * _MINUTE_MS

Ints = npt.NDArray[np.int64]


def page_views(lines: pl.DataFrame, *, seed: int) -> pl.DataFrame:
    """Return generated page views for the households and times of some basket lines, by record timestamp.

    ``lines``: as ``journey.transactions`` gives them, by time. The same lines and seed give the same views.
    Columns as in ``schemas/page_view.avsc``, with ``_timestamp_ms`` and ``_damage``: ten records of each kind of
    damage, or fewer if there are too few views. Without lines there are no views.
    """
    rng = np.random.default_rng(seed)
    baskets = (
        lines.with_row_index("line")
        .group_by("basket_id", maintain_order=True)
        .agg(pl.first("household_id"), pl.first("_timestamp_ms"), pl.first("line"), n_lines=pl.len())
    )
    seen = pl.concat([_before_baskets(rng, lines, baskets), _on_their_own(rng, lines, baskets)])
    n = seen.height
    views = seen.sort("event_time", "household_id", "product_id").select(
        pl.int_range(n, dtype=pl.Int64).alias("view_id"),
        "household_id",
        "product_id",
        pl.Series("device", np.asarray(DEVICES)[rng.choice(3, n, p=(0.5, 0.3, 0.2))], pl.String),
        pl.Series("dwell_s", np.round(rng.exponential(40.0, n), 1)).set(pl.Series(rng.random(n) < 0.2), None),
        "event_time",
        (pl.col("event_time") + pl.Series(_delays_ms(rng, n))).alias("_timestamp_ms"),
        pl.lit(None, pl.Int8).alias("_damage"),
    )
    repeated = _sample(rng, views, n // 100)
    repeated = repeated.with_columns(pl.col("_timestamp_ms") + pl.Series(rng.integers(0, 30_000, repeated.height)))
    damaged = _sample(rng, views, min(len(DAMAGES) * N_EACH_DAMAGE, n))
    damaged = damaged.with_columns((pl.int_range(damaged.height) % len(DAMAGES)).cast(pl.Int8).alias("_damage"))
    return pl.concat([views, repeated, damaged]).sort("_timestamp_ms", "view_id", maintain_order=True)


def _before_baskets(rng: np.random.Generator, lines: pl.DataFrame, baskets: pl.DataFrame) -> pl.DataFrame:
    """Return views of some products of three baskets in five, in the two hours before the purchase."""
    chosen = baskets.filter(pl.Series(rng.random(baskets.height) < 0.6))
    n_views = 1 + rng.poisson(2.0, chosen.height)
    basket = np.repeat(np.arange(chosen.height), n_views)
    line = chosen["line"].to_numpy()[basket] + rng.integers(0, chosen["n_lines"].to_numpy()[basket])
    before_ms = np.clip(rng.exponential(12 * _MINUTE_MS, len(basket)), 5_000, 2 * _HOUR_MS).astype(np.int64)
    return _seen(
        chosen["household_id"].to_numpy()[basket],
        lines["product_id"].to_numpy()[line],
        chosen["_timestamp_ms"].to_numpy()[basket] - before_ms,
    )


def _on_their_own(rng: np.random.Generator, lines: pl.DataFrame, baskets: pl.DataFrame) -> pl.DataFrame:
    """Return visits without a basket: two for every five baskets, within half a day of a basket of that household."""
    if baskets.is_empty():
        return _seen(*[np.zeros(0, np.int64)] * 3)
    near = rng.integers(0, baskets.height, baskets.height * 2 // 5)
    n_views = 1 + rng.poisson(3.0, len(near))
    visit = np.repeat(near, n_views)
    first_view = np.repeat(np.cumsum(n_views) - n_views, n_views)
    gaps_ms = np.cumsum(rng.exponential(40_000, len(visit))).astype(np.int64)
    begin_ms = baskets["_timestamp_ms"].to_numpy()[near] + rng.integers(-12 * _HOUR_MS, 12 * _HOUR_MS, len(near))
    # A random line picks a product in proportion to its purchases.
    return _seen(
        baskets["household_id"].to_numpy()[visit],
        lines["product_id"].to_numpy()[rng.integers(0, lines.height, len(visit))],
        np.repeat(begin_ms, n_views) + gaps_ms - gaps_ms[first_view],
    )


def _delays_ms(rng: np.random.Generator, n: int) -> Ints:
    """Return delays from event to record: fractions of a second; three in a hundred are seconds to eight hours."""
    usual = rng.exponential(200.0, n)
    late = np.minimum(rng.lognormal(math.log(10 * _MINUTE_MS), 1.8, n), 8 * _HOUR_MS)
    return np.where(rng.random(n) < 0.03, late, usual).astype(np.int64)


def _sample(rng: np.random.Generator, views: pl.DataFrame, n: int) -> pl.DataFrame:
    return views[np.sort(rng.choice(views.height, n, replace=False))] if n else views.clear()


def _seen(household_id: Ints, product_id: Ints, event_time: Ints) -> pl.DataFrame:
    return pl.DataFrame({"household_id": household_id, "product_id": product_id, "event_time": event_time})
