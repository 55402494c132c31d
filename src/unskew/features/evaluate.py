"""Evaluate a view's filters and values over a batch of decoded events: once per batch, the same everywhere."""

from dataclasses import dataclass
from functools import reduce

import polars as pl

from unskew.features.keys import encode_keys
from unskew.features.plan import ViewPlan

# Exact sums hold |x| < 2**62 (see the kernel's arithmetic).
FLOAT_LIMIT = 2.0**62

PARTITION, OFFSET, ARRIVAL, EVENT_TIME = "_partition", "_offset", "_arrival", "_event_time"


@dataclass(frozen=True)
class Evaluated:
    """A view's events out of one batch, in its order.

    ``events``: ``key`` String; ``effective``, ``arrival``, ``event_time`` Int64 microseconds; ``partition`` Int32,
    ``offset`` Int64; ``f0…`` Boolean, one per filter; ``v0…`` Int64 or Float64, one per value (booleans as 0 and 1).
    ``rejected``: ``_partition``, ``_offset``, ``reason`` of events that the view cannot take; they change nothing.
    """

    events: pl.DataFrame
    rejected: pl.DataFrame


def evaluate(view: ViewPlan, decoded: pl.DataFrame) -> Evaluated:
    """Filter and evaluate decoded events for a view."""
    if view.where is not None:
        decoded = decoded.filter(view.where.expr.fill_null(value=False))
    arrival, event_time = pl.col(ARRIVAL).to_physical(), pl.col(EVENT_TIME).to_physical()
    columns = [
        pl.min_horizontal(arrival, event_time).alias("effective"),
        arrival.alias("arrival"),
        event_time.alias("event_time"),
        pl.col(PARTITION).alias("partition"),
        pl.col(OFFSET).alias("offset"),
    ]
    columns += [
        filter_.expr.cast(pl.Boolean).fill_null(value=False).alias(f"f{index}")
        for index, filter_ in enumerate(view.filters)
    ]
    for index, value in enumerate(view.values):
        if value.dtype == "float64":
            number = value.expr.cast(pl.Float64)
            # -0.0 reads as 0.0. Adding 0.0 would not do it: Polars knows that to change nothing and leaves it out.
            number = pl.when(number == 0.0).then(0.0).otherwise(number)
        else:
            number = value.expr.cast(pl.Int64)
        columns.append(number.alias(f"v{index}"))
    events = decoded.select(columns).insert_column(0, encode_keys(decoded, view.entity))
    return _reject(view, events)


def _reject(view: ViewPlan, events: pl.DataFrame) -> Evaluated:
    """Split off what the view cannot take: no key, or a number that exact sums cannot hold."""
    tests: list[tuple[pl.Expr, str]] = []
    if events["key"].null_count():
        tests.append((pl.col("key").is_null(), f"{view.name}: key {', '.join(view.entity.keys)} is null"))
    for feature in view.features:
        if feature.value < 0 or view.values[feature.value].dtype != "float64":
            continue
        number = pl.col(f"v{feature.value}")
        # Written so that NaN fails it too.
        bad = (number.abs() < FLOAT_LIMIT).not_() | number.is_nan()
        if feature.filter >= 0:
            bad &= pl.col(f"f{feature.filter}")
        tests.append((bad.fill_null(value=False), f"{view.name}.{feature.name}: value is NaN, infinite or beyond 2^62"))
    if tests:
        flags = events.select(reduce(lambda one, other: one | other, (test for test, _ in tests))).to_series()
        if flags.any():
            reason = reduce(
                lambda rest, test: pl.when(test[0]).then(pl.lit(test[1])).otherwise(rest),
                reversed(tests),
                pl.lit(None, pl.String),
            )
            rejected = events.filter(flags).select(
                pl.col("partition").alias(PARTITION), pl.col("offset").alias(OFFSET), reason.alias("reason")
            )
            return Evaluated(events.filter(~flags), rejected)
    return Evaluated(events, NOTHING_REJECTED)


NOTHING_REJECTED = pl.DataFrame(schema={PARTITION: pl.Int32, OFFSET: pl.Int64, "reason": pl.String})
