"""The marketplace: real purchases, and what the data has not, generated around them.

The Complete Journey has purchases alone. Its households stand for users here and its stores for sellers; declined
payments, returns, page views, carts and sellers' answers are generated, so that there are features of each to compute.
They show what such topics do to features, and say nothing about how people shop.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.demo import journey
from unskew.demo.page_views import page_views
from unskew.demo.topics import Topic

HOME = Path(__file__).parents[2] / "examples" / "marketplace"
"""The example's folder: definitions and schemas."""

N_PARTITIONS = 4
SEED = 2017

_SECOND_MS = 1_000
_MINUTE_MS = 60 * _SECOND_MS
_HOUR_MS = 60 * _MINUTE_MS
_DAY_MS = 24 * _HOUR_MS

Ints = npt.NDArray[np.int64]
Rng = np.random.Generator


def topics(
    lines: pl.DataFrame | None = None, *, seed: int = SEED, n_partitions: int = N_PARTITIONS
) -> dict[str, Topic]:
    """Return the topics ``transactions``, ``page_views``, ``cart_events`` and ``seller_responses``.

    ``lines``: basket lines as ``journey.transactions`` gives them, or some of them, by time; all if left out.
    The same arguments give the same bytes. No lines, no records.
    """
    lines = journey.transactions() if lines is None else lines
    made: dict[str, tuple[Callable[..., pl.DataFrame], str, str]] = {
        "transactions": (transactions, "transaction", "user_id"),
        "page_views": (user_page_views, "page_view", "user_id"),
        "cart_events": (cart_events, "cart_event", "user_id"),
        "seller_responses": (seller_responses, "seller_response", "seller_id"),
    }
    return {
        name: Topic(name=name, schema=schema(of), frame=make(lines, seed=seed), n_partitions=n_partitions, key=key)
        for name, (make, of, key) in made.items()
    }


def schema(name: str) -> dict[str, Any]:
    """Return one of the example's Avro schemas, parsed."""
    parsed: dict[str, Any] = json.loads((HOME / "schemas" / f"{name}.avsc").read_text())
    return parsed


def transactions(lines: pl.DataFrame, *, seed: int) -> pl.DataFrame:
    """Return each real line as a completed purchase, and generated declined payments and returns around them.

    One order in twenty is declined once, half a minute to three minutes before it is completed. A product comes back at
    a rate of its own, about one time in eleven, a day to two months after; one return in five is recorded some hours
    later than it happened. Lines of no products are left out.
    """
    rng = np.random.default_rng([seed, 1])
    bought = _priced(lines).select(
        "user_id", "order_id", "product_id", "seller_id", pl.lit("completed").alias("status"), "amount", "time_ms"
    )
    orders = bought["order_id"].unique(maintain_order=True)
    failed = orders.filter(pl.Series(rng.random(len(orders)) < 0.05, dtype=pl.Boolean))
    before = pl.DataFrame({"order_id": failed, "before_ms": rng.integers(30_000, 180_000, len(failed))})
    declined = (
        bought.join(before, on="order_id", how="inner", maintain_order="left")
        .with_columns(pl.lit("declined").alias("status"), pl.col("time_ms") - pl.col("before_ms"))
        .drop("before_ms")
    )
    products = bought["product_id"].unique().sort()
    rates = pl.DataFrame({"product_id": products, "rate": rng.beta(1.2, 12.0, len(products))})
    rate = bought.join(rates, on="product_id", how="left", maintain_order="left")["rate"]
    kept = bought.filter(pl.Series(rng.random(bought.height), dtype=pl.Float64) < rate)
    after_ms = (_DAY_MS * np.clip(1.0 + rng.exponential(10.0, kept.height), 1.0, 60.0)).astype(np.int64)
    returned = kept.with_columns(pl.lit("returned").alias("status"), pl.col("time_ms") + pl.Series(after_ms))
    late_ms = rng.integers(_HOUR_MS, 12 * _HOUR_MS, returned.height) * (rng.random(returned.height) < 0.2)
    at_once = pl.concat([bought, declined]).with_columns(pl.col("time_ms").alias("_timestamp_ms"))
    recorded = returned.with_columns((pl.col("time_ms") + pl.Series(late_ms)).alias("_timestamp_ms"))
    return _numbered(pl.concat([at_once, recorded]), "transaction_id", per_ms=1_000)


def user_page_views(lines: pl.DataFrame, *, seed: int) -> pl.DataFrame:
    """Return the demo's generated page views, of users: some late, some twice, some unreadable."""
    return page_views(lines, seed=seed).rename({"household_id": "user_id"})


def cart_events(lines: pl.DataFrame, *, seed: int) -> pl.DataFrame:
    """Return generated carts: three in five orders are collected in a cart, and one cart per five orders is abandoned.

    Products enter by ``add``, a minute or two apart, twenty at most. One in ten enters once too often and leaves by
    ``remove``; at the checkout each leaves by ``buy``. One record in thirty comes up to eight minutes late, one in a
    hundred comes twice.
    """
    rng = np.random.default_rng([seed, 2])
    priced = _priced(lines)
    checkouts = _checkouts(rng, priced)
    left = _left_behind(rng, priced)
    n = checkouts.height + left.height
    usual, late = rng.exponential(200.0, n), rng.lognormal(math.log(_MINUTE_MS), 1.0, n)
    delay_ms = np.where(rng.random(n) < 1 / 30, np.minimum(late, 8 * _MINUTE_MS), usual).astype(np.int64)
    events = pl.concat([checkouts, left]).with_columns((pl.col("time_ms") + pl.Series(delay_ms)).alias("_timestamp_ms"))
    once = _numbered(events, "cart_event_id", per_ms=1)
    again = once[np.sort(rng.choice(n, n // 100, replace=False))] if n else once
    again = again.with_columns(pl.col("_timestamp_ms") + pl.Series(rng.integers(0, 30_000, again.height)))
    return pl.concat([once, again]).sort("_timestamp_ms", "cart_event_id", maintain_order=True)


def _checkouts(rng: Rng, priced: pl.DataFrame) -> pl.DataFrame:
    """Return carts that become orders: products enter, some once too often and are removed, and all leave."""
    orders = priced["order_id"].unique(maintain_order=True)
    chosen = orders.filter(pl.Series(rng.random(len(orders)) < 0.6, dtype=pl.Boolean))
    bought = priced.filter(pl.col("order_id").is_in(chosen.implode())).sort("order_id", maintain_order=True)
    steps = pl.Series("step", _steps_ms(rng, bought.height), dtype=pl.Int64)
    before = pl.col("step").cum_sum(reverse=True).over("order_id")
    added = bought.with_columns(steps).with_columns(pl.col("time_ms") - before).drop("step")
    twice = pl.Series(rng.random(bought.height) < 0.1, dtype=pl.Boolean)
    too_often = added.filter(twice).with_columns(pl.col("time_ms") + _SECOND_MS)
    # Steps are five seconds at least, so it is out before the checkout.
    out_ms = pl.Series(rng.integers(_SECOND_MS, 3 * _SECOND_MS, too_often.height), dtype=pl.Int64)
    removed = too_often.with_columns(pl.col("time_ms") + out_ms)
    return pl.concat([_moved(added, "add"), _moved(too_often, "add"), _moved(removed, "remove"), _moved(bought, "buy")])


def _left_behind(rng: Rng, priced: pl.DataFrame) -> pl.DataFrame:
    """Carts that become nothing, within two days of some order of their user."""
    near = (
        rng.integers(0, priced.height, priced["order_id"].n_unique() // 5) if priced.height else np.zeros(0, np.int64)
    )
    n_products = 1 + rng.poisson(2.0, len(near))
    cart = np.repeat(near, n_products)
    first = np.repeat(np.cumsum(n_products) - n_products, n_products)
    since_ms = np.cumsum(_steps_ms(rng, len(cart)))
    begin_ms = priced["time_ms"].to_numpy()[near] + rng.integers(-2 * _DAY_MS, 2 * _DAY_MS, len(near))
    any_line = rng.integers(0, priced.height, len(cart)) if priced.height else cart
    put_in = priced[any_line].with_columns(
        priced["user_id"][cart],
        pl.Series("time_ms", np.repeat(begin_ms, n_products) + since_ms - since_ms[first], dtype=pl.Int64),
    )
    return _moved(put_in, "add")


def _steps_ms(rng: Rng, n: int) -> Ints:
    """Between one product and the next: a minute or two, five seconds at least and twenty minutes at most."""
    return np.clip(rng.exponential(90 * _SECOND_MS, n), 5 * _SECOND_MS, 20 * _MINUTE_MS).astype(np.int64)


def _moved(priced: pl.DataFrame, action: str) -> pl.DataFrame:
    sign = 1 if action == "add" else -1
    return priced.select(
        "user_id",
        "product_id",
        pl.lit(action).alias("action"),
        pl.col("quantity") * sign,
        pl.col("amount") * sign,
        "time_ms",
    )


def seller_responses(lines: pl.DataFrame, *, seed: int) -> pl.DataFrame:
    """Return generated answers: after one order in four its user asks the seller within two days.

    A seller has a usual time, about two hours, around which answers take from twenty seconds to three days.
    """
    rng = np.random.default_rng([seed, 3])
    orders = _priced(lines).unique("order_id", keep="first", maintain_order=True)
    asked = orders.filter(pl.Series(rng.random(orders.height) < 0.25, dtype=pl.Boolean))
    sellers = orders["seller_id"].unique().sort()
    usual_s = pl.DataFrame({"seller_id": sellers, "s": rng.lognormal(math.log(7_200), 0.7, len(sellers))})
    usual = asked.join(usual_s, on="seller_id", how="left", maintain_order="left")["s"].to_numpy()
    response_s = np.round(np.clip(usual * rng.lognormal(0.0, 1.0, asked.height), 20.0, 3 * 86_400.0), 1)
    answered_ms = rng.integers(0, 2 * _DAY_MS, asked.height) + (response_s * 1_000).astype(np.int64)
    delay_ms = rng.exponential(200.0, asked.height).astype(np.int64)
    responses = asked.select(
        "seller_id",
        "user_id",
        pl.Series("response_s", response_s, dtype=pl.Float64),
        pl.col("time_ms") + pl.Series(answered_ms, dtype=pl.Int64),
    )
    late = responses.with_columns((pl.col("time_ms") + pl.Series(delay_ms, dtype=pl.Int64)).alias("_timestamp_ms"))
    return _numbered(late, "response_id", per_ms=1)


def _priced(lines: pl.DataFrame) -> pl.DataFrame:
    """Return lines of one product or more under the marketplace's names, ``amount`` in cents and ``time_ms``."""
    return lines.filter(pl.col("quantity") > 0).select(
        pl.col("household_id").alias("user_id"),
        pl.col("basket_id").alias("order_id"),
        "product_id",
        pl.col("store_id").alias("seller_id"),
        "quantity",
        (pl.col("sales_value") * 100).round().cast(pl.Int64).alias("amount"),
        pl.col("_timestamp_ms").alias("time_ms"),
    )


def _numbered(events: pl.DataFrame, number: str, *, per_ms: int) -> pl.DataFrame:
    """Return events by record timestamp, numbered by time of event; ``event_time`` is ``time_ms`` times ``per_ms``."""
    happened = events.sort("time_ms", maintain_order=True).with_row_index(number)
    return (
        happened.with_columns(
            pl.col(number).cast(pl.Int64),
            (pl.col("time_ms") * per_ms).alias("event_time"),
            pl.lit(None, pl.Int8).alias("_damage"),
        )
        .drop("time_ms")
        .sort("_timestamp_ms", number)
    )
