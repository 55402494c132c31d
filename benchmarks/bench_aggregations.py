"""Measure the cost of each aggregation in the kernel: nanoseconds per event, and bytes of state per entity.

    python benchmarks/bench_aggregations.py [--events 200_000] [--batch 50_000] [--repeats 3] [--only var first]

Each case is a view of one feature over 100 s in hops of 1 s. The cases enumerate all aggregations that definitions
know, and maps by a text. There is one event per millisecond, up to three seconds late, and entities follow Zipf's law:
the window holds 100,000 events. The events that fill it are not counted; after that, each event enters as another one
leaves.

Values are floats in steps of 0.01 with a gamma distribution, about 10,000 different ones; "kinds" are 100 short texts.

Time is processor time of ``ShardState.apply``, including rows as Polars columns; it is the minimum of the repeats,
which run in turns. Values that change at every hop produce more rows, so "rows" are shown too. Bytes in memory are
those of rows, tiles and items in use, without the directory of keys and without reserved space; "saved" is the size of
a snapshot, including keys.
"""

import argparse
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import numba
import numpy as np
import polars as pl
from workload import SCHEMA, zipf

from unskew.features.definitions import agg
from unskew.features.definitions.agg import Aggregation
from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.definitions.vocabulary import Entity, Feature, FeatureView, Sliding, Stream
from unskew.features.evaluate import ARRIVAL, EVENT_TIME, OFFSET, PARTITION, Evaluator
from unskew.features.kernel import words as w
from unskew.features.plan import ViewPlan
from unskew.features.shard_state import ShardState
from unskew.features.view import AggregationName

START_US = 1_600_000_000_000_000
LATENESS_US = 3_000_000
EXTENT_S = 100
PER_S = 1_000
N_KINDS = 100
LONG_S = 3.0
WITH_KIND = {**SCHEMA, "fields": [*SCHEMA["fields"], {"name": "kind", "type": "string"}]}

BASE = "count"
OTHERS: Mapping[str, Mapping[str, Aggregation]] = {
    # Aggregations with parameters besides the value, and aggregations of texts.
    "count": {"count": agg.count(), "count by kind": agg.count(by="kind")},
    "sum": {"sum": agg.sum("amount"), "sum by kind": agg.sum("amount", by="kind")},
    "mean": {"mean": agg.mean("amount"), "mean by kind": agg.mean("amount", by="kind")},
    "max": {"max": agg.max("amount"), "max of kinds": agg.max("kind")},
    "first_n": {"first_n, 10": agg.first_n("amount", 10)},
    "last_n": {"last_n, 10": agg.last_n("amount", 10)},
    "first_time": {"first_time": agg.first_time()},
    "last_time": {"last_time": agg.last_time()},
    "count_distinct": {
        "count_distinct": agg.count_distinct("amount"),
        "count_distinct of kinds": agg.count_distinct("kind"),
    },
    "mode": {"mode of kinds": agg.mode("kind")},
    "top_k": {"top_k of kinds, 5": agg.top_k("kind", 5)},
    "histogram": {"histogram, 10 edges": agg.histogram("amount", [10.0 * edge for edge in range(1, 11)])},
    "quantile": {"quantile, 0.9 to 1 %": agg.quantile("amount", 0.9)},
    "decayed_count": {"decayed_count, 10 s": agg.decayed_count(half_life="10s")},
    "decayed_sum": {"decayed_sum, 10 s": agg.decayed_sum("amount", half_life="10s")},
}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a case. ``seconds``: processor seconds of ``n_events`` counted events; ``n_rows``: their rows."""

    seconds: float
    n_events: int
    n_rows: int
    n_entities: int
    n_tiles: int
    memory: float
    saved: float


def all_of_them() -> dict[str, Aggregation]:
    found: dict[str, Aggregation] = {}
    for name in get_args(AggregationName):
        found |= OTHERS.get(name) or {name: getattr(agg, name)("amount")}
    return found


def the_view(aggregation: Aggregation) -> ViewPlan:
    stream = Stream("events", topic="events", schema=WITH_KIND, event_time="at")
    feature = Feature("value", aggregation, Sliding(f"{EXTENT_S}s", hop="1s"))
    return compile_definitions(
        FeatureView("by_user", entity=Entity("user", key="user"), stream=stream, features=[feature])
    ).views["by_user"]


def the_events(n_events: int, n_entities: int) -> pl.DataFrame:
    random = np.random.default_rng(0)
    arrival = START_US + np.arange(n_events) * (1_000_000 // PER_S)
    event_time = arrival - random.integers(0, LATENESS_US, n_events)
    return pl.DataFrame(
        {
            "user": zipf(n_events, n_entities, random),
            "amount": np.round(random.gamma(2.0, 20.0, n_events), 2),
            "kind": pl.Series("kind-" + pl.Series(zipf(n_events, N_KINDS, random)).cast(pl.String)),
            "at": event_time,
            PARTITION: np.zeros(n_events, np.int32),
            OFFSET: np.arange(n_events),
            ARRIVAL: arrival,
            EVENT_TIME: event_time,
        }
    ).with_columns(pl.col("at", ARRIVAL, EVENT_TIME).cast(pl.Datetime("us", "UTC")))


def measure(aggregation: Aggregation, events: pl.DataFrame, batch: int) -> Cost:
    view = the_view(aggregation)
    evaluate = Evaluator(view)
    state = ShardState(view, "h0")
    seconds = 0.0
    n_events = n_rows = 0
    for first in range(0, events.height, batch):
        piece = events.slice(first, batch)
        evaluated = evaluate(piece).events
        clock_us = int(piece[ARRIVAL].to_physical()[-1])
        began = time.process_time()
        updates = state.apply(evaluated, clock_us)
        ended = time.process_time()
        if first >= EXTENT_S * PER_S or first + batch >= events.height:
            seconds += ended - began
            n_events += piece.height
            n_rows += updates.closed.height
    return Cost(
        seconds=seconds,
        n_events=n_events,
        n_rows=n_rows,
        n_entities=len(state),
        n_tiles=state.n_tiles,
        memory=in_use(state) / len(state),
        saved=len(state.to_bytes()) / len(state),
    )


def in_use(state: ShardState) -> int:
    """Return the bytes in use of the state's arrays."""
    arrays = state._state  # noqa: SLF001 - nothing says it in public
    item = arrays.items.itemsize * arrays.items.shape[1]
    return (
        len(state) * arrays.entities.itemsize * arrays.entities.shape[1]
        + state.n_tiles * arrays.tiles.itemsize * arrays.tiles.shape[1]
        + state.n_items * item
        + int(arrays.scalars[w.S_SLOTS]) * arrays.slots.itemsize
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=50_000)
    parser.add_argument("--entities", type=int, nargs="+", default=[1_000, 100_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these beside count; all without it")
    given = parser.parse_args()
    aggregations = all_of_them()
    if given.only:
        aggregations = {name: aggregations[name] for name in dict.fromkeys([BASE, *given.only])}
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numba {numba.__version__}, "
        f"{given.events:,} events in batches of {given.batch:,}, least of {given.repeats}\n"
    )
    for n_entities in given.entities:
        events = the_events(given.events, n_entities)
        for aggregation in aggregations.values():
            measure(aggregation, events.head(2_000), 1_000)
        costs: dict[str, list[Cost]] = {name: [] for name in aggregations}
        for _ in range(given.repeats):
            for name, aggregation in aggregations.items():
                # For a case that takes very long, one run is enough.
                if not costs[name] or costs[name][0].seconds < LONG_S:
                    costs[name].append(measure(aggregation, events, given.batch))
        least = {name: min(found, key=lambda cost: cost.seconds) for name, found in costs.items()}
        base = least[BASE]
        print(
            f"{n_entities:,} entities (Zipf 1.1), of which {base.n_entities:,} are in the window at the end, with "
            f"{base.n_tiles / base.n_entities:.1f} tiles each\n"
        )
        print("| aggregation | ns/event | beside count | rows/event | bytes/entity in memory | beside count | saved |")
        print("|---|---|---|---|---|---|---|")
        for name, cost in least.items():
            print(
                f"| {name} | {cost.seconds / cost.n_events * 1e9:,.0f} | {cost.seconds / base.seconds:.1f} | "
                f"{cost.n_rows / cost.n_events:.1f} | {cost.memory:,.0f} | {cost.memory / base.memory:.1f} | "
                f"{cost.saved:,.0f} |"
            )
        print(flush=True)


if __name__ == "__main__":
    main()
