"""Read what ``unskew demo`` left by the SDK, by its async twin and over HTTP, and check that all of them read the same.

    unskew demo
    python examples/complete_journey/serve.py demo-output

The state of the demo's pipeline fills a Redis. Every household, and one that does not exist, is read from it in three
ways: by ``FeatureStore``, by ``FeatureStore`` from an event loop, and over HTTP from ``unskew serve``. Values, status
and instants must be the same, to the last bit; else the example ends with an error.

It needs ``pip install 'unskew[serve]'``. A folder of definitions is read with all its Python files, so this one does
nothing when it is imported.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.request import Request, urlopen

import polars as pl

from unskew import FeatureStore

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unskew.serving.online import OnlineFeatures

FEATURES = [
    "household_purchases:purchase_count_30d",
    "household_purchases:spend_30d",
    "household_purchases:last_amount_30d",
    "household_coupon_count_30d:household_coupon_count_30d",
    "household_page_views:views_1h",
]
NOBODY = 0
N_SHOWN = 5
# Of each view: a row's instant, its status, and whether more events may come at or before that instant.
Told = dict[str, list[tuple[datetime, str, bool]]]
Read = tuple[dict[str, list[Any]], Told]


def households(archive: Path) -> list[int]:
    """Return the households that bought, and one that does not exist."""
    purchases = pl.scan_parquet(archive / "transactions" / "**" / "*.parquet")
    known = purchases.select("household_id").unique().sort("household_id").collect()
    return [NOBODY, *known["household_id"]]


@contextmanager
def serving(redis_url: str) -> Iterator[str]:
    """Run ``unskew serve`` beside this process, and yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "unskew", "serve", "--redis-url", redis_url, "--listen", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        said = server.stderr.readline()
        if not said.startswith("unskew serves "):
            raise SystemExit(f"unskew serve did not start: {said}{server.stderr.read()}")
        try:
            yield said.split()[-1]
        finally:
            server.terminate()


def of_sdk(found: OnlineFeatures) -> Read:
    """Return the values of an answer by column, and what it says of them."""
    told = {
        view: [(at.astimezone(UTC), status, provisional) for at, status, provisional in about.rows()]
        for view, about in found.metadata.items()
    }
    return found.to_dict(), told


def over_http(address: str, rows: list[int]) -> Read:
    """Return the same, read over HTTP."""
    body = {"entities": {"household_id": rows}, "features": FEATURES}
    with urlopen(Request(f"{address}/get-online-features", json.dumps(body).encode())) as response:
        answer = json.load(response)
    metadata = answer["metadata"]
    values = zip(metadata["feature_names"], answer["results"], strict=True)
    told = {
        view: [
            (datetime.fromisoformat(at).astimezone(UTC), status, provisional)
            for at, status, provisional in zip(about["as_of"], about["status"], about["provisional"], strict=True)
        ]
        for view, about in metadata["views"].items()
    }
    return {name: result["values"] for name, result in values}, told


def refuse_difference(expected: Read, others: dict[str, Read]) -> None:
    """End with an error if another way of reading gave something else."""
    for name, found in others.items():
        # As text, because -0.0 is not 0.0 and a whole number is not a float.
        if repr(found) != repr(expected):
            raise SystemExit(f"{name} reads other values, statuses or instants than the SDK")


def main() -> None:
    """Run the example; ends with an error unless all three read the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("demo-output"), help="output of unskew demo")
    folder: Path = parser.parse_args().folder
    if not (folder / "state").is_dir():
        parser.error(f"{folder} does not hold the output of a demo: run unskew demo first, or name its folder")
    from unskew.demo.complete_journey.train import fill_redis
    from unskew.demo.embedded import EmbeddedRedis

    asked = households(folder / "archive")
    rows = [{"household_id": household} for household in asked]
    with EmbeddedRedis() as redis, FeatureStore(redis_url=redis.url) as store:
        fill_redis(folder / "state", redis.url)
        by_sdk = of_sdk(store.get_online_features(FEATURES, rows))
        by_async = of_sdk(asyncio.run(store.get_online_features_async(FEATURES, rows)))
        with serving(redis.url) as address:
            by_http = over_http(address, asked)
    values, told = by_sdk
    shown = pl.DataFrame(values).with_columns(status=pl.Series([row[1] for row in told["household_purchases"]]))
    with pl.Config(tbl_hide_dataframe_shape=True, tbl_cols=-1, tbl_width_chars=160):
        print(shown.head(N_SHOWN))
    refuse_difference(by_sdk, {"the async twin": by_async, "HTTP": by_http})
    print(
        f"{len(asked):,} households read by the SDK, by its async twin and over HTTP: all {len(FEATURES)} features, their statuses and "
        "their instants are the same"
    )


if __name__ == "__main__":
    main()
