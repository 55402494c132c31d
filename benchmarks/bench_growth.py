"""Measure what the growth of a shard's state costs: the longest steps, all steps together, and memory; one core.

    python benchmarks/bench_growth.py [--entities 4_000_000] [--batch 1_000] [--beside SRC] [--rounds 3]

Every event brings a new entity, in batches of ``--batch``, for nine features over three windows of which no tile leaves
(those of ``bench_kernel.py``). A step is one ``ShardState.apply``; its time is wall time, since what a step waits for
is what an event behind it waits for. No memory is written to beforehand: that a machine gives memory at the first touch
is a part of what growth costs. "longest" are the three longest steps; "peak" is what the process took at most above
what it had before the first event, and "end" what it had at the end.

``--beside SRC`` runs the package of another checkout's ``src`` too, in turns. Each run is a process of its own.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from bench_kernel import LONG, events_of, resident_bytes, the_view

from unskew.features.shard_state import ShardState


def measure(n_entities: int, batch: int) -> dict[str, float]:
    """Meet every entity once, in this process."""
    random = np.random.default_rng(0)
    warm = ShardState(the_view(LONG), "h0")
    for first in (0, 10 * batch):
        events = events_of(np.arange(first, first + 10 * batch), first, random)
        warm.apply(events, int(events["arrival"][-1]))
    state = ShardState(the_view(LONG), "h0")
    users = random.permutation(n_entities)
    steps = []
    before = resident_bytes()
    for first in range(0, n_entities, batch):
        events = events_of(users[first : first + batch], first, random)
        began = time.perf_counter()
        state.apply(events, int(events["arrival"][-1]))
        steps.append(time.perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    longest = sorted(steps)[-3:][::-1]
    return {
        **{f"longest {n}": 1e3 * step for n, step in enumerate(longest, 1)},
        "p50": 1e3 * statistics.median(steps),
        "p99": 1e3 * float(np.quantile(steps, 0.99)),
        "ns": 1e9 * sum(steps) / n_entities,
        "peak": peak / 1e6,
        "end": (resident_bytes() - before) / 1e6,
    }


def in_a_process(given: argparse.Namespace, src: Path | None) -> dict[str, float]:
    words = [] if src is None else ["env", f"PYTHONPATH={src.resolve()}"]
    words += [sys.executable, __file__, "--child", "--entities", str(given.entities), "--batch", str(given.batch)]
    done = subprocess.run(words, stdout=subprocess.PIPE, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def show(name: str, rounds: list[dict[str, float]]) -> None:
    found = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
    longest = ", ".join(f"{found[f'longest {n}']:,.0f}" for n in (1, 2, 3))
    print(
        f"| {name} | {longest} ms | {found['p99']:.1f} ms | {found['p50']:.2f} ms | {found['ns']:,.0f} ns "
        f"| {found['peak']:,.0f} MB | {found['end']:,.0f} MB |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entities", type=int, default=4_000_000)
    parser.add_argument("--batch", type=int, default=1_000, help="events of a step")
    parser.add_argument("--beside", type=Path, metavar="SRC", help="the src of another checkout")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(measure(given.entities, given.batch)))
        return
    mine, others = [], []
    for _ in range(given.rounds):
        mine.append(in_a_process(given, None))
        if given.beside is not None:
            others.append(in_a_process(given, given.beside))
    print(f"{given.entities:,} entities, each new, {given.batch:,} to a step; medians of {given.rounds}\n")
    print("| | longest steps | p99 | p50 | an event | peak | end |\n|---|---|---|---|---|---|---|")
    show("here", mine)
    if others:
        show("beside", others)


if __name__ == "__main__":
    main()
