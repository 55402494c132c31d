"""Events of the example that come now: purchases and page views by simulated households, at a steady rate.

    python -m unskew.demo.traffic [--bootstrap-servers HOST:PORT] [--rate 20] [--events N] [--seed N] [--alive FILE]

`docker compose --profile demo up` runs it, so that dashboards and features have something to show. A seed gives the
same households, products and amounts in the same order; their event times are the present, by this machine's clock.
"""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import polars as pl

from unskew import settings
from unskew.demo.journey import schema
from unskew.demo.page_views import DEVICES
from unskew.demo.topics import Topic
from unskew.features.errors import UnskewError
from unskew.pipelines.kafka.sending import Outgoing, Sender
from unskew.stopping import stopping_on_signals

N_HOUSEHOLDS = 2_500
N_PRODUCTS = 5_000
N_STORES = 100
_PURCHASES = 0.25
"""The share of events that are purchases; the others are page views."""
_NAMES = {"transactions": "transaction", "page_views": "page_view"}


def batches(rate: float, seed: int) -> Iterator[dict[str, pl.DataFrame]]:
    """Yield the events of one second after the other, without their times, by topic; columns as in its schema.

    ``rate``: events in a second; a fraction makes some seconds have one event more.
    """
    rng = np.random.default_rng(seed)
    sent, due, n_baskets, n_views = 0, 0.0, 0, 0
    while True:
        due += rate
        n = int(due) - sent
        sent += n
        n_bought = int(rng.binomial(n, _PURCHASES))
        n_seen = n - n_bought
        # Some households and products are met much more often than others, as in real shops.
        household, product = (np.minimum(rng.zipf(1.3, n), most) for most in (N_HOUSEHOLDS, N_PRODUCTS))
        amounts = np.round(rng.gamma(2.0, 2.0, n_bought) + 0.5, 2)
        yield {
            "transactions": pl.DataFrame(
                {
                    "household_id": household[:n_bought],
                    "store_id": rng.integers(1, N_STORES + 1, n_bought),
                    "basket_id": np.arange(n_baskets, n_baskets + n_bought),
                    "product_id": product[:n_bought],
                    "quantity": rng.integers(1, 4, n_bought),
                    "sales_value": amounts,
                    "retail_disc": np.zeros(n_bought),
                    "coupon_disc": np.zeros(n_bought),
                }
            ),
            "page_views": pl.DataFrame(
                {
                    "view_id": np.arange(n_views, n_views + n_seen),
                    "household_id": household[n_bought:],
                    "product_id": product[n_bought:],
                    "device": np.asarray(DEVICES)[rng.choice(3, n_seen, p=(0.5, 0.3, 0.2))].astype(str),
                    "dwell_s": np.round(rng.exponential(40.0, n_seen), 1),
                },
                schema_overrides={"device": pl.String},
            ),
        }
        n_baskets, n_views = n_baskets + n_bought, n_views + n_seen


class Traffic:
    """Sends events to the example's topics and waits for them to be acknowledged.

    Raises ``StoreUnavailable`` if Kafka does not answer, and ``RequestError`` if a topic is missing.
    """

    def __init__(self, bootstrap: str) -> None:
        self._senders = {topic: Sender(topic, bootstrap) for topic in _NAMES}
        self._schemas = {topic: schema(name) for topic, name in _NAMES.items()}

    def send(self, events: dict[str, pl.DataFrame], now_us: int) -> int:
        """Send events that happen now; return how many were acknowledged."""
        for name, rows in events.items():
            times = {"transactions": now_us, "page_views": now_us // 1000}
            topic = Topic(
                name=name,
                schema=self._schemas[name],
                frame=rows.with_columns(
                    event_time=pl.lit(times[name], pl.Int64),
                    _timestamp_ms=pl.lit(now_us // 1000, pl.Int64),
                    _damage=pl.lit(None, pl.Int8),
                ),
                n_partitions=self._senders[name].n_partitions,
            )
            for chunk in topic.chunks():
                columns = zip(chunk.partition.tolist(), chunk.key, chunk.value, strict=True)
                self._senders[name].send(
                    [Outgoing(partition=partition, key=key, value=value) for partition, key, value in columns]
                )
        for sender in self._senders.values():
            sender.flush()
        return sum(rows.height for rows in events.values())


@click.command()
@settings.bootstrap_servers
@click.option(
    "--rate",
    type=click.FloatRange(0, 10_000, min_open=True),
    default=20.0,
    show_default=True,
    envvar="UNSKEW_TRAFFIC_RATE",
    show_envvar=True,
    help="Events in a second, in both topics together.",
)
@click.option("--events", type=click.IntRange(1), help="Stop after so many events.  [default: when it is stopped]")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="What the events are made from.")
@click.option(
    "--alive",
    type=settings.LocalPath(dir_okay=False),
    metavar="FILE",
    help="File that is touched each time events were acknowledged, for a health check.",
)
def main(bootstrap_servers: str, rate: float, events: int | None, seed: int, alive: Path | None) -> None:
    """Send purchases and page views of simulated households to the example's topics, until it is stopped."""
    stop = threading.Event()
    try:
        with stopping_on_signals(stop):
            traffic = Traffic(bootstrap_servers)
            click.echo(f"sending {rate:g} events a second to {' and '.join(_NAMES)} at {bootstrap_servers}")
            n_sent, second = 0, time.monotonic()
            for batch in batches(rate, seed):
                n_sent += traffic.send(
                    batch if events is None else _first(batch, events - n_sent), time.time_ns() // 1000
                )
                if alive is not None:
                    alive.touch()
                # A pause of the machine is not made good by a flood.
                second = max(second + 1, time.monotonic() - 1)
                if n_sent == events or stop.wait(max(0.0, second - time.monotonic())):
                    break
    except UnskewError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"sent {n_sent:,} events")


def _first(batch: dict[str, pl.DataFrame], n: int) -> dict[str, pl.DataFrame]:
    found = {}
    for topic, rows in batch.items():
        found[topic] = rows.head(n)
        n -= found[topic].height
    return found


if __name__ == "__main__":
    main()
