"""Measure what keys without an expiry save, and what the comparison of Redis with the state costs, per row.

    python benchmarks/bench_scrub.py [--rows 20_000] [--repeats 8]

The three ways of writing run in turns, on an embedded Valkey over a loopback connection. "Server" is the processor time
of Valkey as INFO says it, "pipeline" that of this process. Figures are medians over the turns except the first, so
ratios mean more than times. Compared are rows that Redis holds as they should be, in parts of 500, as in a round of a
large shard.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable

import polars as pl
import redis
from bench_wire import compiled, rows_of

from unskew.demo.embedded import EmbeddedRedis
from unskew.features.plan import ViewPlan
from unskew.features.time import DAY_US
from unskew.features.updates import StepRows
from unskew.sinks.redis.batch import Batch
from unskew.sinks.redis.nodes import OneServer
from unskew.sinks.redis.resp import RowEncoder
from unskew.sinks.redis.scrub import FASTEST_ROWS, Scrub

ROUND_S = 3_600
ENTITIES = 1_000_000


def microseconds(client: redis.Redis, n: int, work: Callable[[], object]) -> tuple[float, float, float]:
    """Return microseconds per item of ``n``: processor of the server, processor of this process, wall."""

    def of_server() -> float:
        said = client.info("cpu")
        return float(said["used_cpu_sys"]) + float(said["used_cpu_user"])

    server, process, wall = of_server(), time.process_time(), time.perf_counter()
    work()
    wall, process, server = time.perf_counter() - wall, time.process_time() - process, of_server() - server
    return server / n * 1e6, process / n * 1e6, wall / n * 1e6


def medians(found: list[tuple[float, float, float]]) -> tuple[float, ...]:
    return tuple(map(statistics.median, zip(*found, strict=True)))


def print_writing(client: redis.Redis, view: ViewPlan, rows: pl.DataFrame, repeats: int) -> None:
    nodes, now_us = OneServer(client), time.time_ns() // 1000
    ways = {
        "PEXPIREAT after each row (`--expire-after`)": (RowEncoder(view, "unskew", 7 * DAY_US), False),
        "PERSIST after each row (until the first round is done)": (RowEncoder(view, "unskew"), True),
        "the row alone": (RowEncoder(view, "unskew"), False),
    }
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, (encoder, persist) in ways.items():

            def send(encoder: RowEncoder = encoder, *, persist: bool = persist) -> None:
                with nodes.open():
                    nodes.send_rows(encoder, StepRows(rows), now_us, persist=persist)
                    nodes.finish()

            taken = microseconds(client, rows.height, send)
            if turn:
                found[name].append(taken)
    first = medians(next(iter(found.values())))[0]
    print("\n| writing | server, us a row | ratio | pipeline, us a row |\n|---|---|---|---|")
    for name, times in found.items():
        server, process, _ = medians(times)
        print(f"| {name} | {server:.1f} | {server / first:.2f} | {process:.1f} |")


def print_comparing(client: redis.Redis, view: ViewPlan, rows: pl.DataFrame, repeats: int) -> None:
    encoders, scrub = {view.id: RowEncoder(view, "unskew")}, Scrub("unskew:sent:bench")

    def compare() -> None:
        for part in rows.iter_slices(FASTEST_ROWS):
            batch = Batch()
            batch.compare(f"{view.id}/h0", part)
            scrub.compare(client, batch, encoders, expires=False)

    found = [microseconds(client, rows.height, compare) for _ in range(repeats + 1)][1:]
    assert scrub.compared == rows.height * (repeats + 1)
    assert not scrub.lacking + scrub.differing
    server, process, wall = medians(found)
    print("\n| comparing | server, us a row | pipeline, us a row | wall, us a row |\n|---|---|---|---|")
    print(f"| rows that Redis holds | {server:.1f} | {process:.1f} | {wall:.1f} |")
    print(
        f"\nA round of an hour over {ENTITIES:,} entities takes {process * ENTITIES / ROUND_S / 1e4:.1f} % of a core "
        f"of the pipeline and {server * ENTITIES / ROUND_S / 1e4:.1f} % of a core of the server."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=8)
    given = parser.parse_args()
    _, view = compiled()
    rows = rows_of(view, given.rows, with_null=False)
    with EmbeddedRedis() as server, redis.Redis.from_url(server.url) as client:
        print(
            f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Valkey "
            f"{client.info('server').get('valkey_version', '?')}, {given.rows:,} rows of nine features, medians of {given.repeats}"
        )
        print_writing(client, view, rows, given.repeats)
        print_comparing(client, view, rows, given.repeats)


if __name__ == "__main__":
    main()
