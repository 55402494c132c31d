"""Measure ``min`` and ``max`` of one hot entity whose values rise, fall or are random: nanoseconds per event.

    python benchmarks/bench_extremes.py [--beside SRC] [--rounds 3] [--tiles 28] [--values falling]

A view has ``count``, or also the maximum or minimum of a float, over 28 or 4,800 tiles of 1 s, with one event in each
second, up to three seconds late. So every hop makes a tile leave; where that one always held the answer (the maximum of
falling values, the minimum of rising ones), another answer is looked for every time. Only events that find a full
window count.

Times are processor time of ``ShardState.apply``, in steps of 5,000 events, least of the rounds. "memory" is what the
state's items take, for each tile. ``--beside SRC`` runs each case with the package of another checkout's ``src`` too,
in turns.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import numba
import numpy as np
import polars as pl
from workload import SCHEMA

from unskew.features.definitions import agg
from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.definitions.vocabulary import Entity, Feature, FeatureView, Sliding, Stream
from unskew.features.shard_state import ShardState

START_US = 1_600_000_000_000_000
PER_S = 1
LATENESS_US = 3_000_000
N_COUNTED = 20_000
STEP = 5_000
TILES = (28, 4_800)
VALUES = ("falling", "rising", "random")
WHAT = ("count", "max", "min")


def measure(n_tiles: int, values: str, what: str) -> dict[str, float]:
    """Run one case in this process."""
    stream = Stream("events", topic="events", schema=SCHEMA, event_time="at")
    window = Sliding(f"{n_tiles}s", hop="1s")
    features = [Feature("count", agg.count(), window)]
    if what != "count":
        features.append(Feature("value", {"max": agg.max, "min": agg.min}[what]("amount"), window))
    view = compile_definitions(
        FeatureView("by_user", entity=Entity("user", key="user"), stream=stream, features=features)
    ).views["by_user"]
    random = np.random.default_rng(0)
    n_before = STEP * -(-(n_tiles * PER_S + STEP) // STEP)
    n_events = n_before + N_COUNTED
    arrival = START_US + np.arange(n_events) * (1_000_000 // PER_S)
    ordered = np.arange(n_events, dtype=np.float64)
    of_time = {"falling": -ordered, "rising": ordered, "random": random.gamma(2.0, 20.0, n_events)}[values]
    effective = arrival - random.integers(0, LATENESS_US, n_events)
    events = pl.DataFrame(
        {
            "key": pl.Series(["7"]).new_from_index(0, n_events),
            "effective": effective,
            "arrival": arrival,
            "event_time": effective,
            "partition": pl.zeros(n_events, pl.Int32, eager=True),
            "offset": np.arange(n_events),
            # Values follow the time of the event.
            "v0": of_time if values == "random" else np.sign(of_time[-1] - of_time[0]) * (effective - START_US) / 1e6,
        }
    )
    state = ShardState(view, "h0")
    seconds = 0.0
    for first in range(0, n_events, STEP):
        began = time.process_time()
        state.apply(events[first : first + STEP], int(arrival[first + STEP - 1]))
        if first >= n_before:
            seconds += time.process_time() - began
    items = state._state.items  # noqa: SLF001 - nothing says it in public
    return {"ns": seconds / N_COUNTED * 1e9, "memory": state.n_items * items.strides[0] / state.n_tiles}


def in_a_process(case: list[str], src: Path | None) -> dict[str, float]:
    words = [] if src is None else ["env", f"PYTHONPATH={src.resolve()}"]
    words += [sys.executable, __file__, "--case", *case]
    result: dict[str, float] = json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beside", type=Path, metavar="SRC", help="the src of another checkout")
    parser.add_argument("--tiles", type=int, nargs="+", default=TILES)
    parser.add_argument("--values", nargs="+", choices=VALUES, default=VALUES)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each case")
    parser.add_argument("--case", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case is not None:
        print(json.dumps(measure(int(given.case[0]), given.case[1], given.case[2])))
        return
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numba {numba.__version__}, "
        f"{N_COUNTED:,} events that count, least of {given.rounds}\n"
    )
    print(
        "| tiles | values | aggregation | ns/event | memory a tile | other ns/event | ratio |\n|---|---|---|---|---|---|---|"
    )
    for n_tiles in given.tiles:
        for values in given.values:
            for what in WHAT:
                case = [str(n_tiles), values, what]
                mine, others = [], []
                for _ in range(given.rounds):
                    mine.append(in_a_process(case, None))
                    if given.beside is not None:
                        others.append(in_a_process(case, given.beside))
                least = min(found["ns"] for found in mine)
                other = min((found["ns"] for found in others), default=None)
                print(
                    f"| {n_tiles:,} | {values} | {what} | {least:,.0f} | {mine[0]['memory']:.0f} | "
                    + ("- | - |" if other is None else f"{other:,.0f} | {other / least:.2f} |"),
                    flush=True,
                )


if __name__ == "__main__":
    main()
