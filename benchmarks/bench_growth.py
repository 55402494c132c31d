"""Measure what the growth of a shard's state costs: the longest steps, all steps together, and memory; one core.

    python benchmarks/bench_growth.py [--only entities values texts ids] [--events 4_000_000] [--beside SRC]

Every event brings something new, in steps of ``--batch`` events:

- entities: each a new entity, for the nine features of ``bench_kernel.py``, of which no tile leaves;
- values: of 100,000 entities each a new number, for ``count_distinct``;
- texts: as values, but a new text;
- ids: of 1,000,000 entities each a new id, remembered to find repeats.

A step is one ``ShardState.apply``, or one ``Repeats.drop``. Its time is wall time, because an event behind it waits as
long. No memory is written to beforehand: that a machine gives memory at the first touch is a part of what growth costs.
"longest" are the three longest steps; "peak" is what the process took at most above what it had before the first event.

``--beside SRC`` runs the package of another checkout's ``src`` too, in turns. Each run is a process of its own.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
from bench_kernel import LONG, events_of, resident_bytes, the_view
from workload import SCHEMA

from unskew.features.definitions import agg
from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.definitions.vocabulary import Entity, Feature, FeatureView, Sliding, Stream
from unskew.features.kernel.repeats import Repeats
from unskew.features.plan import ViewPlan
from unskew.features.shard_state import ShardState

N_ENTITIES = {"values": 100_000, "texts": 100_000, "ids": 1_000_000}
WITH_TEXT = {**SCHEMA, "fields": [*SCHEMA["fields"], {"name": "text", "type": "string"}]}


def view_of(what: str) -> ViewPlan:
    """Return the view whose state grows."""
    if what == "entities":
        return the_view(LONG)
    stream = Stream("events", topic="events", schema=WITH_TEXT, event_time="at", event_id="text", dedupe_within="1d")
    feature = Feature("different", agg.count_distinct("amount" if what == "values" else "text"), Sliding("30d"))
    return compile_definitions(
        FeatureView("by_user", entity=Entity("user", key="user"), stream=stream, features=[feature])
    ).views["by_user"]


def grow_with(what: str) -> Callable[[pl.DataFrame], object]:
    """Return the step whose time counts, of a new state."""
    if what == "ids":
        repeats = Repeats(view_of(what), "h0")
        return lambda events: repeats.drop(events, int(events["arrival"][-1]))
    state = ShardState(view_of(what), "h0")
    return lambda events: state.apply(events, int(events["arrival"][-1]))


def batch_of(what: str, first: int, users: np.ndarray, random: np.random.Generator) -> pl.DataFrame:
    """Return events from number ``first`` on."""
    events = events_of(users, first, random).with_columns(effective="arrival")
    if what == "values":
        return events.with_columns(v0=pl.Series(random.random(len(users))))
    text = pl.Series(random.integers(0, 1 << 62, len(users))).cast(pl.String)
    return events.with_columns({"texts": text.alias("v0"), "ids": text.alias("event_id")}.get(what, "v0"))


def measure(what: str, n_events: int, batch: int) -> dict[str, float]:
    """Grow one state, in this process."""
    random = np.random.default_rng(0)
    n_entities = N_ENTITIES.get(what)
    users = random.permutation(n_events) if n_entities is None else random.integers(0, n_entities, n_events)
    steps: list[float] = []
    before = 0
    # The first state compiles what is called.
    for end in (min(n_events, 200 * batch), n_events):
        step, steps, before = grow_with(what), [], resident_bytes()
        for first in range(0, end, batch):
            events = batch_of(what, first, users[first : first + batch], random)
            began = time.perf_counter()
            step(events)
            steps.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    longest = sorted(steps)[-3:][::-1]
    return {
        **{f"longest {n}": 1e3 * step for n, step in enumerate(longest, 1)},
        "p50": 1e3 * statistics.median(steps),
        "p99": 1e3 * float(np.quantile(steps, 0.99)),
        "ns": 1e9 * sum(steps) / n_events,
        "peak": peak / 1e6,
    }


def in_a_process(what: str, given: argparse.Namespace, src: Path | None) -> dict[str, float]:
    words = [] if src is None else ["env", f"PYTHONPATH={src.resolve()}"]
    words += [sys.executable, __file__, "--child", what, "--events", str(given.events), "--batch", str(given.batch)]
    done = subprocess.run(words, stdout=subprocess.PIPE, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def show(what: str, where: str, rounds: list[dict[str, float]]) -> None:
    found = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
    longest = ", ".join(f"{found[f'longest {n}']:,.0f}" for n in (1, 2, 3))
    print(
        f"| {what} | {where} | {longest} ms | {found['p99']:.1f} ms | {found['p50']:.2f} ms | {found['ns']:,.0f} ns "
        f"| {found['peak']:,.0f} MB |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = ("entities", "values", "texts", "ids")
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds, metavar="WHAT", help="what grows")
    parser.add_argument("--events", type=int, default=4_000_000)
    parser.add_argument("--batch", type=int, default=1_000, help="events of a step")
    parser.add_argument("--beside", type=Path, metavar="SRC", help="the src of another checkout")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each")
    parser.add_argument("--child", choices=kinds, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(given.child, given.events, given.batch)))
        return
    print(f"{given.events:,} events, {given.batch:,} to a step; medians of {given.rounds}\n")
    print("| new | | longest steps | p99 | p50 | an event | peak |\n|---|---|---|---|---|---|---|")
    for what in given.only:
        mine, others = [], []
        for _ in range(given.rounds):
            mine.append(in_a_process(what, given, None))
            if given.beside is not None:
                others.append(in_a_process(what, given, given.beside))
        show(what, "here", mine)
        if others:
            show(what, "beside", others)


if __name__ == "__main__":
    main()
