"""Measure what an epoch's end costs the flow's thread, by shards, without a broker: changelogs and tables alone.

    python benchmarks/bench_snapshots.py [--shards 1 32 320 4000] [--rows 20] [--epochs 3]

Each shard has applied so many events, each with a row for the log, since the epoch before. *kept* is what a pipeline
does: what is little is returned for the recovery store, pickled as Bytewax does, and files are made of it aside
(that work ends before the next epoch begins, and is not counted). *files* makes the same durable in files at once, as a
pipeline does with what is much: changelogs one after the other, tables by 16 threads. Both do the same epochs, in
turns. *thread* and *process* are processor time, of the flow's thread and of all threads; *fsyncs* are those of all
threads meanwhile, and *store* are the bytes for the recovery store, which hold the rows of this epoch; those of the one
before are in files. What Bytewax takes to write them is not measured here.
"""

import argparse
import os
import pickle
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
from bench_epochs import Case, the_plan
from typing_extensions import override

from unskew.features.plan import ViewPlan
from unskew.features.shard_state import ShardState
from unskew.pipelines.state.changelog import KEPT_BYTES, Changelog, Changelogs
from unskew.sinks.aside import Aside
from unskew.sinks.objects import together
from unskew.sinks.tables.kinds import LogTable, append_waiting

BEGAN_US = 1_700_000_000_000_000
EPOCH_US = 5_000_000


class Counted:
    """Counts the fsyncs of this process."""

    def __init__(self) -> None:
        self.n = 0
        for name in ("fsync", "fdatasync"):
            setattr(os, name, self._counted(getattr(os, name)))

    def _counted(self, call: Callable[[int], None]) -> Callable[[int], None]:
        def counted(file: int) -> None:
            self.n += 1
            call(file)

        return counted


class Gathering(Aside):
    """Makes the calls when it is told to."""

    @override
    def soon(self, call: Callable[[], None]) -> None:
        self._calls.append(call)

    def make(self) -> None:
        while self._calls:
            self._calls.popleft()()


class Side:
    """Shards and tables of one way."""

    def __init__(self, root: Path, view: ViewPlan, n_shards: int, *, kept: bool) -> None:
        self.kept = kept
        self.aside = Gathering(5.0)
        self.logs = Changelogs(root / "state", kept_bytes=KEPT_BYTES if kept else 0, aside=self.aside)
        shards = [f"p{number}.0" for number in range(n_shards)]
        self.states = [ShardState(view, shard) for shard in shards]
        self.changelogs = [Changelog(self.logs, view, shard, None) for shard in shards]
        aside = self.aside if kept else None
        self.tables = [
            LogTable(root / "log", view, shard, None, now_us=lambda: BEGAN_US, aside=aside) for shard in shards
        ]

    def apply(self, events: pl.DataFrame) -> None:
        clock_us = int(events.item(-1, "arrival")) + 1
        for state, changelog, table in zip(self.states, self.changelogs, self.tables, strict=True):
            updates = state.apply(events, clock_us)
            changelog.append(events)
            table.append(updates)

    def end(self) -> int:
        """End an epoch, and return the bytes for the recovery store."""
        shards = [
            changelog.snapshot(state, 0).to_bytes()
            for changelog, state in zip(self.changelogs, self.states, strict=True)
        ]
        if self.kept:
            append_waiting(self.tables)
            tables = [table.kept(KEPT_BYTES) for table in self.tables]
            assert None not in tables
        else:
            tables = [*together(lambda table: table.snapshot(), self.tables)]
        return len(pickle.dumps(shards)) + len(pickle.dumps(tables))

    def rest(self) -> None:
        """Do what is done aside."""
        self.aside.make()


def events(view: ViewPlan, epoch: int, n: int) -> pl.DataFrame:
    at = BEGAN_US + epoch * EPOCH_US + np.arange(n) * (EPOCH_US // n)
    values = {f"v{number}": np.ones(n) for number in range(len(view.values))}
    return pl.DataFrame(
        {
            "key": [f"{number % 97}" for number in range(n)],
            **dict.fromkeys(("effective", "arrival", "event_time"), at),
            "partition": np.zeros(n, np.int32),
            "offset": np.arange(n) + epoch * n,
            **values,
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", nargs="+", type=int, default=[1, 32, 320, 4_000])
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=3, help="epochs that count; two more come first")
    given = parser.parse_args()
    counted = Counted()
    case = Case(bootstrap="", redis_url="", topic="events", views=1, epochs=1, epoch_s=1.0, folder="")
    (view,) = the_plan(case).views.values()
    print(f"{platform.machine()}, {os.cpu_count()} cores; {given.rows} events and rows a shard and epoch")
    print("| shards | way | an epoch's end, ms | thread, ms | thread, ms a shard | process, ms | fsyncs | store, KiB |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for n_shards in given.shards:
        with tempfile.TemporaryDirectory() as folder:
            sides = {
                "files": Side(Path(folder) / "files", view, n_shards, kept=False),
                "kept": Side(Path(folder) / "kept", view, n_shards, kept=True),
            }
            found: dict[str, list[tuple[float, float, float, int, int]]] = {name: [] for name in sides}
            for epoch in range(given.epochs + 2):
                for name, side in sides.items():
                    side.apply(events(view, epoch, given.rows))
                    before = time.perf_counter(), time.thread_time(), time.process_time(), counted.n
                    n_bytes = side.end()
                    after = time.perf_counter(), time.thread_time(), time.process_time(), counted.n
                    wall, thread, process, syncs = (b - a for a, b in zip(before, after, strict=True))
                    found[name].append((1e3 * wall, 1e3 * thread, 1e3 * process, int(syncs), n_bytes))
                    side.rest()
            for name, ends in found.items():
                wall, thread, process, syncs, size = np.median(np.array(ends[2:]), axis=0)
                print(
                    f"| {n_shards:,} | {name} | {wall:,.1f} | {thread:,.1f} | {thread / n_shards:.2f} | {process:,.1f} | "
                    f"{syncs:,.0f} | {size / 1024:,.0f} |",
                    flush=True,
                )
            for side in sides.values():
                side.logs.close()


if __name__ == "__main__":
    main()
