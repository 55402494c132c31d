"""Measure the kernel alone: events and rows per second by entities, windows and L/h; one core.

    python benchmarks/bench_kernel.py [--events 1_000_000] [--batch 50_000] [--quick] [--keys] [--beside SRC]

Each case is a process of its own. Before the time that counts, it writes to memory that it then gives back, because a
virtual machine's first touch costs more than the kernel's work, and it meets every entity once. With the short windows
(5, 10 and 20 s) it then goes on until each event that counts makes tiles and makes others leave; with the long ones
(5 min, 1 h and 30 d) no tile leaves. L/h is the extent of a window divided by its hop. Unless stated otherwise, there
are nine features: count, sum and max of a float over three windows.

"kernel" is all work from keys to rows and back to keys: key directory, growth of arrays, events, hops, rows out,
current rows. "with columns" is all of ``ShardState.apply``, including rows as Polars columns. Times are processor
seconds, which other work on the machine affects less. There are 50,000 events per second, with timestamps in
milliseconds, up to three seconds late. "bytes" are those of an entity with the tiles that it has, by arrays' rows in
use; "peak" is what the process took at most above what it had before the first event.

``--beside SRC`` runs each case with the package of another checkout's ``src`` too, in turns, and prints the ratio of
the medians. ``--quick``: 1,000,000 entities alone, and fewer events. ``--keys``: the key directory alone, in
nanoseconds for each of 1,000,000 keys: new ones, known ones in a random order, and the keys of random rows.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import numba
import numpy as np
import polars as pl
from workload import SCHEMA, zipf

from unskew.features import shard_state as shard
from unskew.features.definitions import agg
from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.definitions.vocabulary import Entity, Feature, FeatureView, Sliding, Stream
from unskew.features.kernel.directory import D_POOL, Directory
from unskew.features.plan import ViewPlan
from unskew.features.shard_state import ShardState
from unskew.features.text_buffers import Keys

START_US = 1_600_000_000_000_000
PER_MS = 50
LONG = [("5m", "1s"), ("1h", "10s"), ("30d", "2h")]
SHORT = [("5s", "1s"), ("10s", "1s"), ("20s", "1s")]
SHORT_LASTS_S = 20
TOUCHED_BYTES = 3 << 30
BATCHES_BEFORE = 4


class Case(NamedTuple):
    """What one row of the table measures."""

    windows: list[tuple[str, str]]
    ratios: str
    n_entities: int
    law: str


MAIN = [
    Case(windows, ratios, 1_000_000, law)
    for windows, ratios in ((LONG, "300, 360, 360"), (SHORT, "5, 10, 20"))
    for law in ("Zipf 1.1", "uniform")
]
OTHERS = [
    *(
        Case(windows, ratios, n, law)
        for n in (1_000, 100_000)
        for windows, ratios in ((LONG, "300, 360, 360"), (SHORT, "5, 10, 20"))
        for law in ("Zipf 1.1", "uniform")
    ),
    *(
        Case([*LONG, ("7d", "30m"), ("1d", "5m"), ("10m", "1s")][:n], f"{n} windows", 100_000, "Zipf 1.1")
        for n in (1, 2, 6)
    ),
    *(
        Case([("30d", hop)], f"{ratio:,}", 100_000, "Zipf 1.1")
        for hop, ratio in (("1d", 30), ("2h", 360), ("5m", 8_640), ("1m", 43_200))
    ),
]
CASES = MAIN + OTHERS


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


class Timed:
    """A context in which the processor seconds of functions are added up; one that calls another counts once."""

    def __init__(self, *places: tuple[Any, str]) -> None:
        self.seconds = 0.0
        self._inside = False
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
            if self._inside:
                return original(*arguments)
            self._inside = True
            began = time.process_time()
            try:
                return original(*arguments)
            finally:
                self.seconds += time.process_time() - began
                self._inside = False

        return timed


def users_of(case: Case, n_events: int, batch: int, random: np.random.Generator) -> tuple[np.ndarray, int]:
    """Return the entity of each event, and how many events come before those that count."""
    met = random.permutation(case.n_entities)
    n_before = max(BATCHES_BEFORE * batch, len(met), 1000 * PER_MS * SHORT_LASTS_S if case.windows is SHORT else 0)
    n_before = -(-n_before // batch) * batch
    n_drawn = n_before - len(met) + n_events
    if case.law == "uniform":
        drawn = random.integers(0, case.n_entities, n_drawn)
    else:
        # Neighbours in frequency are not neighbours in memory.
        drawn = random.permutation(case.n_entities)[zipf(n_drawn, case.n_entities, random)]
    return np.concatenate([met, drawn]), n_before


def events_of(users: np.ndarray, first: int, random: np.random.Generator) -> pl.DataFrame:
    arrival = START_US + (np.arange(first, first + len(users)) // PER_MS) * 1000
    return pl.DataFrame(
        {
            "key": pl.Series(users).cast(pl.String),
            "effective": arrival - random.integers(0, 3_000_000, len(users)),
            "arrival": arrival,
            "event_time": arrival,
            "partition": pl.zeros(len(users), pl.Int32, eager=True),
            "offset": np.arange(first, first + len(users)),
            "v0": random.gamma(2.0, 20.0, len(users)),
        }
    )


def touch_memory() -> None:
    np.ones(TOUCHED_BYTES // 8, np.int64)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def bytes_in_use(state: ShardState) -> int:
    """Return the bytes of the rows in use of the state's arrays and of the key directory, and of all hash slots."""
    arrays = {**state._state._asdict(), **state.directory.arrays._asdict()}  # noqa: SLF001 - nothing public has them
    n_rows, n_tiles = len(state.directory), state.n_tiles
    total = 0
    for name, array in arrays.items():
        if name in {"entities", "touched", "dirty", "dead", "hashes", "starts", "lengths", "free", "records"}:
            total += array.strides[0] * n_rows
        elif name == "tiles":
            total += array.strides[0] * n_tiles
        elif name == "pool":
            total += int(state.directory.arrays.scalars[D_POOL])
        elif name == "slots":
            total += state.directory.arrays.slots.nbytes
        elif name == "ring":
            total += array.nbytes
        elif name == "chunks":
            total += array.nbytes * n_tiles // len(arrays["tiles"])
    return total


def measure(case: Case, n_events: int, batch: int) -> dict[str, float]:
    """Run one case in this process."""
    touch_memory()
    random = np.random.default_rng(0)
    users, n_before = users_of(case, n_events, batch, random)
    state = ShardState(the_view(case.windows), "h0")
    rows = 0
    whole = 0.0
    peak = before = 0
    with Timed(
        (ShardState, "_rows_of"),
        (shard, "run"),
        (shard, "current"),
        (shard.ShardState, "_forget"),
        (Directory, "gather"),
    ) as kernel:
        for first in range(0, len(users), batch):
            events = events_of(users[first : first + batch], first, random)
            if first == 0:
                before = resident_bytes()
            if first == n_before:
                kernel.seconds = whole = 0.0
                rows = 0
            began = time.process_time()
            updates = state.apply(events, int(events["arrival"][-1]))
            whole += time.process_time() - began
            rows += updates.closed.height
            peak = max(peak, resident_bytes() - before)
    counted = len(users) - n_before
    return {
        "kernel": counted / kernel.seconds,
        "rows": rows / kernel.seconds,
        "whole": counted / whole,
        "tiles": state.n_tiles,
        "entities": len(state),
        "bytes": bytes_in_use(state) / len(state),
        "peak": peak,
    }


def measure_keys(batch: int) -> dict[str, float]:
    """Measure the key directory alone, in this process."""
    random = np.random.default_rng(0)
    n_keys = 1_000_000
    directory = Directory()
    directory.insert(Keys.of(pl.Series(["a key that compiles"])))
    directory.gather(np.zeros(1, np.int32))
    found = {}
    for name in ("new", "known"):
        numbers = random.permutation(n_keys)
        batches = [
            Keys.of(pl.Series(numbers[first : first + batch]).cast(pl.String)) for first in range(0, n_keys, batch)
        ]
        began = time.process_time()
        for keys in batches:
            directory.insert(keys)
        found[name] = (time.process_time() - began) * 1e9 / n_keys
    rows = random.permutation(n_keys).astype(np.int32)
    began = time.process_time()
    for first in range(0, n_keys, batch):
        directory.gather(rows[first : first + batch])
    found["gathered"] = (time.process_time() - began) * 1e9 / n_keys
    return found


def show_keys(arguments: argparse.Namespace) -> None:
    """Print nanoseconds a key here and beside, and their ratio."""
    mine, others = [], []
    for _ in range(arguments.rounds):
        mine.append(in_a_process(-1, arguments, None))
        if arguments.beside is not None:
            others.append(in_a_process(-1, arguments, arguments.beside))
    found, other = medians(mine), medians(others) if others else {}
    print("| keys | ns | other ns | ratio |\n|---|---|---|---|")
    for name, ns in found.items():
        print(f"| {name} | {ns:.0f} | " + (f"{other[name]:.0f} | {other[name] / ns:.2f} |" if other else "- | - |"))


def in_a_process(number: int, arguments: argparse.Namespace, src: Path | None) -> dict[str, float]:
    words = [] if src is None else ["env", f"PYTHONPATH={src.resolve()}"]
    words += [sys.executable, __file__, "--case", str(number)]
    words += ["--events", str(arguments.events), "--batch", str(arguments.batch)]
    done = subprocess.run(words, stdout=subprocess.PIPE, check=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def medians(results: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(result[name] for result in results) for name in results[0]}


def show(case: Case, found: dict[str, float], other: dict[str, float] | None) -> None:
    cells = [
        f"{case.n_entities:,}", case.law, str(len(case.windows)), case.ratios,
        f"{found['kernel'] / 1e6:.2f} M", f"{found['rows'] / 1e6:.2f} M", f"{found['whole'] / 1e6:.2f} M",
        f"{found['tiles']:,.0f}", f"{found['entities']:,.0f}", f"{found['bytes']:,.0f}", f"{found['peak'] / 1e6:,.0f} MB",
    ]  # fmt: skip
    if other is not None:
        cells += [
            f"{other['kernel'] / 1e6:.2f} M", f"{found['kernel'] / other['kernel']:.2f}",
            f"{found['whole'] / other['whole']:.2f}", f"{other['bytes']:,.0f}", f"{other['peak'] / 1e6:,.0f} MB",
        ]  # fmt: skip
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000, help="the events that count")
    parser.add_argument("--batch", type=int, default=50_000)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--beside", type=Path, metavar="SRC", help="the src of another checkout")
    parser.add_argument("--rounds", type=int, default=3, help="with --beside: runs of each")
    parser.add_argument("--short", action="store_true", help="only the short windows")
    parser.add_argument("--keys", action="store_true")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.quick and arguments.case is None:
        arguments.events = min(arguments.events, 500_000)
    if arguments.keys:
        show_keys(arguments)
        return
    if arguments.case is not None and arguments.case < 0:
        print(json.dumps(measure_keys(arguments.batch)))
        return
    if arguments.case is not None:
        print(json.dumps(measure(CASES[arguments.case], arguments.events, arguments.batch)))
        return
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numba {numba.__version__}, "
        f"{arguments.events:,} events that count, in batches of {arguments.batch:,}\n"
    )
    names = [
        "entities", "keys", "windows", "L/h", "kernel events/s", "kernel rows/s", "with columns, events/s",
        "live tiles", "live entities", "bytes", "peak",
    ]  # fmt: skip
    if arguments.beside is not None:
        names += ["other kernel", "kernel ratio", "with columns ratio", "other bytes", "other peak"]
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|")
    for number, case in enumerate(MAIN if arguments.quick else CASES):
        if arguments.short and case.windows is not SHORT:
            continue
        mine, others = [], []
        for _ in range(arguments.rounds if arguments.beside is not None else 1):
            mine.append(in_a_process(number, arguments, None))
            if arguments.beside is not None:
                others.append(in_a_process(number, arguments, arguments.beside))
        show(case, medians(mine), medians(others) if others else None)


if __name__ == "__main__":
    main()
