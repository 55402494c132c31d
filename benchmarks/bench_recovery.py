"""Measure the cost of an epoch's end and of a restart with many entities: one shard and its changelog on a real disk.

    python benchmarks/bench_recovery.py [--entities 1_000_000] [--epochs 30] [--folder DIR] [--beside SRC]

The features are count, sum and max of a float over one window of an hour in hops of six minutes, so that an entity has
ten live tiles. Events are spread uniformly over the entities: first so many per hour that every tile exists, then
20,000 per second of event time in polls of 2,000 at that pace, with the end of an epoch every five seconds. "Stall" is
the wall time of ``Shard.to_snapshot``, during which the flow stands still, shown with the longest kernel steps; "whole
state" is the time that writing the whole state would take instead. There are several restarts, each in its own process,
which include its imports. ``--beside SRC`` makes each with the package of another checkout's ``src`` too, in turns.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from workload import SCHEMA

from unskew.features.definitions import agg
from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.definitions.vocabulary import Entity, Feature, FeatureView, Sliding, Stream
from unskew.features.events import Events
from unskew.features.plan import ViewPlan
from unskew.features.shard_state import ShardState
from unskew.pipelines.state.changelog import Changelog, Changelogs, Manifest, restored
from unskew.pipelines.state.ordering import Shard, Siblings

START_US = 1_600_000_000_000_000
HOP_US = 360_000_000
RATE, EPOCH_S, POLL = 20_000, 5, 2_000
SHARD = "p0.0"
N_RESTARTS = 5


def the_view() -> ViewPlan:
    stream = Stream("events", topic="events", schema=SCHEMA, event_time="at", partitioned_by="user")
    hour = Sliding("1h", hop="6m")
    features = [
        Feature(f"{name}_1h", aggregation, hour)
        for name, aggregation in (("count", agg.count()), ("sum", agg.sum("amount")), ("max", agg.max("amount")))
    ]
    return compile_definitions(
        FeatureView("by_user", entity=Entity("user", key="user"), stream=stream, features=features)
    ).views["by_user"]


def events(names: pl.Series, users: np.ndarray, first_us: int, last_us: int, offset: int) -> Events:
    at = np.linspace(first_us, last_us, len(users)).astype(np.int64)
    return Events(
        pl.DataFrame(
            {
                "key": names[users],
                "effective": at,
                "arrival": at,
                "event_time": at,
                "partition": np.zeros(len(users), np.int32),
                "offset": np.arange(offset, offset + len(users)),
                "v0": users.astype(np.float64),
            }
        )
    )


def measure(n_entities: int, n_epochs: int, folder: Path) -> None:
    view = the_view()
    random = np.random.default_rng(0)
    names = pl.Series([str(number) for number in range(n_entities)])
    changelogs = Changelogs(folder)
    shard = Shard(ShardState(view, SHARD), Siblings(), Changelog(changelogs, view, SHARD, None))
    clock_us, offset = START_US, 0

    def take(users: np.ndarray, until_us: int) -> float:
        nonlocal clock_us, offset
        made = events(names, users, clock_us, until_us - 1, offset)
        clock_us, offset = until_us, offset + len(users)
        began = time.perf_counter()
        shard._apply(made, clock_us)  # noqa: SLF001 - what ``take`` does for a partitioned view
        return time.perf_counter() - began

    began = time.perf_counter()
    for _ in range(10):
        for piece in np.array_split(random.permutation(n_entities), max(n_entities // 100_000, 1)):
            take(piece, clock_us + HOP_US * len(piece) // n_entities)
            shard.to_snapshot()
    print(
        f"{n_entities:,} entities, {shard.state.n_tiles:,} live tiles, after {offset:,} events in "
        f"{time.perf_counter() - began:.0f} s; {RATE:,} events/s of event time, an epoch each {EPOCH_S} s"
    )
    stalls, longest, written = [], 0.0, []
    saved: dict[str, bytes] = {}
    rebases = changelogs.rebases
    due_s = time.perf_counter()
    for _ in range(n_epochs):
        for _ in range(RATE * EPOCH_S // POLL):
            due_s += POLL / RATE
            time.sleep(max(due_s - time.perf_counter(), 0.0))
            longest = max(longest, take(random.integers(0, n_entities, POLL), clock_us + POLL * 1_000_000 // RATE))
        at = time.perf_counter()
        saved = shard.to_snapshot()
        stalls.append(time.perf_counter() - at)
        written.append(changelogs.n_bytes)
    at = time.perf_counter()
    whole = len(shard.state.to_bytes())
    whole_s = time.perf_counter() - at
    found = sorted(stalls)
    print(
        f"stall at an epoch's end: median {found[len(found) // 2] * 1e3:.1f} ms, worst {found[-1] * 1e3:.1f} ms of "
        f"{n_epochs}; longest kernel step {longest * 1e3:.0f} ms; {changelogs.rebases - rebases} bases made meanwhile; "
        f"on disk at most {max(written) / 1e6:,.0f} MB"
    )
    print(f"whole state instead: {whole / 1e6:,.0f} MB, {whole_s * 1e3:,.0f} ms in memory alone")
    manifest = Manifest.from_bytes(saved["changelog"])
    (folder / "manifest").write_bytes(saved["changelog"])
    changelogs.close()
    print(f"restart applies {manifest.since_base:,} events to a base of {manifest.base_bytes / 1e6:,.0f} MB")


def show_restarts(folder: Path, beside: Path | None) -> None:
    """Restart several times in a process of its own, in turns with another checkout, and print what it takes."""
    seconds: dict[Path | None, list[float]] = {None: [], **({} if beside is None else {beside: []})}
    for _ in range(N_RESTARTS):
        for src, its in seconds.items():
            words = [] if src is None else ["env", f"PYTHONPATH={src.resolve()}"]
            began = time.perf_counter()
            subprocess.run([*words, sys.executable, __file__, "--restart", str(folder)], check=True)
            its.append(time.perf_counter() - began)
    for src, its in seconds.items():
        print(
            f"restart, the process included{'' if src is None else f', {src}'}: "
            f"{statistics.median(its):.1f} s ({min(its):.1f} to {max(its):.1f})"
        )


def restart(folder: Path) -> None:
    manifest = Manifest.from_bytes((folder / "manifest").read_bytes())
    began = time.perf_counter()
    state, _ = restored(Changelogs(folder), the_view(), SHARD, manifest)
    seconds = time.perf_counter() - began
    # What ``getrusage`` says is at least the memory of the process that started this one.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    peak = int(status["VmHWM"].split()[0]) / 1e3
    print(
        f"state of {len(state):,} entities and {state.n_tiles:,} tiles back in {seconds:.1f} s; "
        f"the process took {peak:,.0f} MB at most"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entities", type=int, default=1_000_000)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--folder", type=Path, help="folder to write to; a temporary folder if not given")
    parser.add_argument("--beside", type=Path, metavar="SRC", help="the src of another checkout")
    parser.add_argument("--restart", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.restart is not None:
        restart(given.restart)
        return
    folder = given.folder or Path(tempfile.mkdtemp())
    try:
        measure(given.entities, given.epochs, folder / "changelog")
        show_restarts(folder / "changelog", given.beside)
    finally:
        shutil.rmtree(folder / "changelog", ignore_errors=True)


if __name__ == "__main__":
    main()
