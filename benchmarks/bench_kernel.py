"""Measure the kernel alone: events and rows per second by entities, windows and L/h; one core, including hop rows.

    python benchmarks/bench_kernel.py [--events 2_000_000] [--batch 50_000]

L/h is the extent of a window divided by its hop. "kernel" is the compiled step (key directory, events, hops, rows out,
current rows); "with columns" is all of ``ShardState.apply``, including rows as Polars columns. Times are processor
seconds, which other work on the machine affects less. There are 50,000 events per second, with timestamps in
milliseconds, up to three seconds late; the first quarter is not counted. Unless stated otherwise, there are nine
features: count, sum and max of a float over 5 min / 1 s, 1 h / 10 s and 30 d / 2 h.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from typing import Any, Self

import numba
import numpy as np
import polars as pl
from workload import SCHEMA, zipf

from unskew.features import shard_state as shard
from unskew.features.definitions import agg
from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.definitions.vocabulary import Entity, Feature, FeatureView, Sliding, Stream
from unskew.features.kernel import directory
from unskew.features.plan import ViewPlan
from unskew.features.shard_state import ShardState

START_US = 1_600_000_000_000_000
PER_MS = 50
THREE = [("5m", "1s"), ("1h", "10s"), ("30d", "2h")]


def the_view(windows: list[tuple[str, str]]) -> ViewPlan:
    features = [
        Feature(f"{name}_{number}", aggregation, Sliding(extent, hop=hop))
        for number, (extent, hop) in enumerate(windows)
        for name, aggregation in (("count", agg.count()), ("sum", agg.sum("amount")), ("max", agg.max("amount")))
    ]
    stream = Stream("events", topic="events", schema=SCHEMA, event_time="at")
    return compile_definitions(
        FeatureView("by_user", entity=Entity("user", key="user"), stream=stream, features=features)
    ).views["by_user"]


def users_of(n: int, n_entities: int, law: str, random: np.random.Generator) -> np.ndarray:
    if law == "uniform":
        return random.integers(0, n_entities, n)
    return zipf(n, n_entities, random)


class Timed:
    """A context in which the processor seconds of a module's functions are added up."""

    def __init__(self, *places: tuple[Any, str]) -> None:
        self.seconds = 0.0
        self._originals = [(place, name, getattr(place, name)) for place, name in places]

    def __enter__(self) -> Self:
        for place, name, original in self._originals:
            setattr(place, name, self._around(original))
        return self

    def __exit__(self, *_: object) -> None:
        for place, name, original in self._originals:
            setattr(place, name, original)

    def _around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            began = time.process_time()
            result = original(*arguments)
            self.seconds += time.process_time() - began
            return result

        return timed


def measure(view: ViewPlan, n_events: int, batch: int, n_entities: int, law: str) -> str:
    random = np.random.default_rng(0)
    users = users_of(n_events, n_entities, law, random)
    state = ShardState(view, "h0")
    counted = rows = 0
    whole = 0.0
    with Timed((shard, "run"), (shard, "current"), (shard, "reset_rows"), (directory, "insert_rows")) as kernel:
        for first in range(0, n_events, batch):
            arrival = START_US + (np.arange(first, first + batch) // PER_MS) * 1000
            events = pl.DataFrame(
                {
                    "key": pl.Series(users[first : first + batch]).cast(pl.String),
                    "effective": arrival - random.integers(0, 3_000_000, batch),
                    "arrival": arrival,
                    "event_time": arrival,
                    "partition": pl.zeros(batch, pl.Int32, eager=True),
                    "offset": np.arange(first, first + batch),
                    "v0": random.gamma(2.0, 20.0, batch),
                }
            )
            if first < n_events // 4:
                state.apply(events, int(arrival[-1]))
                kernel.seconds = 0.0
                continue
            began = time.process_time()
            updates = state.apply(events, int(arrival[-1]))
            whole += time.process_time() - began
            counted += batch
            rows += updates.closed.height
    return (
        f"{counted / kernel.seconds / 1e6:.2f} M | {rows / kernel.seconds / 1e6:.2f} M | "
        f"{counted / whole / 1e6:.2f} M | {state.n_tiles:,}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--batch", type=int, default=50_000)
    arguments = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numba {numba.__version__}, "
        f"{arguments.events:,} events in batches of {arguments.batch:,}\n"
    )
    measure(the_view(THREE), 4 * arguments.batch, arguments.batch, 1000, "uniform")
    print("| entities | keys | windows | L/h | kernel events/s | kernel rows/s | with columns, events/s | live tiles |")
    print("|---|---|---|---|---|---|---|---|")
    cases = [(THREE, "300, 360, 360", n, law) for n in (1_000, 100_000, 1_000_000) for law in ("Zipf 1.1", "uniform")]
    cases += [
        ([*THREE, ("7d", "30m"), ("1d", "5m"), ("10m", "1s")][:n], f"{n} windows", 100_000, "Zipf 1.1")
        for n in (1, 2, 6)
    ]
    cases += [
        ([("30d", hop)], f"{ratio:,}", 100_000, "Zipf 1.1")
        for hop, ratio in (("1d", 30), ("2h", 360), ("5m", 8_640), ("1m", 43_200))
    ]
    for windows, ratios, n_entities, law in cases:
        figures = measure(the_view(windows), arguments.events, arguments.batch, n_entities, law.split()[0])
        print(f"| {n_entities:,} | {law} | {len(windows)} | {ratios} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
