"""Measure what Bytewax alone takes at an epoch's end: a flow that does nothing, with as many states and bytes.

    python benchmarks/bench_store.py [--keys 4 320 4000] [--bytes 100 20000] [--epochs 4]

Of an epoch's end of ``unskew run``, this is what lies outside of unskew: asking every key for its state, serializing
the states, and writing them to the recovery store. Each key has a state of so many bytes, and 16 partitions of a sink
share as many states of as many bytes, as shards and logs do. *stall*: from the first state that is asked for to the
next batch of the source; *between*: of that, from the last key to the first partition of the sink; *after*: from the
last partition on. Medians over epochs, milliseconds.
"""

import argparse
import datetime as dt
import os
import platform
import tempfile
import time
import zlib
from collections.abc import Iterable
from itertools import cycle
from pathlib import Path
from typing import Any

import bytewax.operators as op
import numpy as np
from bytewax.dataflow import Dataflow
from bytewax.inputs import FixedPartitionedSource, StatefulSourcePartition
from bytewax.operators import StatefulBatchLogic
from bytewax.outputs import FixedPartitionedSink, StatefulSinkPartition
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import run_main
from typing_extensions import override

EPOCH_S = 1.0
N_PARTS = 16


class Ends:
    """The epochs' ends of one flow."""

    def __init__(self, n_keys: int, n_bytes: int, n_epochs: int) -> None:
        self.n_keys = n_keys
        # Different ones, because what is the same object is serialized once; made before, because they take time.
        self._of_keys = cycle([os.urandom(n_bytes) for _ in range(n_keys)])
        self._of_part = {str(number): os.urandom(n_bytes) for number in range(max(1, n_keys // N_PARTS))}
        self.found: list[tuple[float, float, float]] = []
        self._first = self._last = self._sink = self._over = 0.0
        self.until_s = time.monotonic() + (n_epochs + 0.5) * EPOCH_S

    def asked_of_key(self) -> dict[str, Any]:
        self._last = time.monotonic()
        self._first = self._first or self._last
        self._sink = 0.0
        return {"state": next(self._of_keys)}

    def asked_of_sink(self) -> dict[str, Any]:
        self._over = time.monotonic()
        self._sink = self._sink or self._over
        return self._of_part

    def goes_on(self) -> None:
        if self._first and self._sink:
            now = time.monotonic()
            self.found.append((now - self._first, self._sink - self._last, now - self._over))
            self._first = 0.0


class _Partition(StatefulSourcePartition[tuple[str, int], None]):
    def __init__(self, ends: Ends) -> None:
        self._ends = ends

    @override
    def next_batch(self) -> Iterable[tuple[str, int]]:
        self._ends.goes_on()
        if time.monotonic() > self._ends.until_s:
            raise StopIteration
        return [(str(number), number) for number in range(self._ends.n_keys)]

    @override
    def next_awake(self) -> dt.datetime | None:
        return dt.datetime.now(dt.UTC) + dt.timedelta(milliseconds=1 + self._ends.n_keys / 100)

    @override
    def snapshot(self) -> None:
        return None


class _Source(FixedPartitionedSource[tuple[str, int], None]):
    def __init__(self, ends: Ends) -> None:
        self._ends = ends

    @override
    def list_parts(self) -> list[str]:
        return ["0"]

    @override
    def build_part(self, step_id: str, for_part: str, resume_state: None) -> _Partition:
        return _Partition(self._ends)


class _Key(StatefulBatchLogic[int, int, dict[str, Any]]):
    def __init__(self, ends: Ends) -> None:
        self._ends = ends

    @override
    def on_batch(self, values: list[int]) -> tuple[Iterable[int], bool]:
        return values, StatefulBatchLogic.RETAIN

    @override
    def snapshot(self) -> dict[str, Any]:
        return self._ends.asked_of_key()


class _Part(StatefulSinkPartition[int, dict[str, Any]]):
    def __init__(self, ends: Ends) -> None:
        self._ends = ends

    @override
    def write_batch(self, values: list[int]) -> None:
        pass

    @override
    def snapshot(self) -> dict[str, Any]:
        return self._ends.asked_of_sink()


class _Sink(FixedPartitionedSink[int, dict[str, Any]]):
    def __init__(self, ends: Ends) -> None:
        self._ends = ends

    @override
    def list_parts(self) -> list[str]:
        return [f"{number:02d}" for number in range(N_PARTS)]

    @override
    def part_fn(self, item_key: str) -> int:
        return zlib.crc32(item_key.encode())

    @override
    def build_part(self, step_id: str, for_part: str, resume_state: dict[str, Any] | None) -> _Part:
        return _Part(self._ends)


def measured(n_keys: int, n_bytes: int, n_epochs: int) -> list[float]:
    """Return stall, between and after, in milliseconds."""
    ends = Ends(n_keys, n_bytes, n_epochs)
    flow = Dataflow("nothing")
    keyed = op.input("numbers", flow, _Source(ends))
    op.output("sink", op.stateful_batch("states", keyed, lambda _: _Key(ends)), _Sink(ends))
    with tempfile.TemporaryDirectory() as folder:
        init_db_dir(Path(folder), 1)
        run_main(flow, epoch_interval=dt.timedelta(seconds=EPOCH_S), recovery_config=RecoveryConfig(folder))
    return [1e3 * float(value) for value in np.median(ends.found, axis=0)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, nargs="+", default=[4, 320, 4_000])
    parser.add_argument("--bytes", type=int, nargs="+", default=[100, 20_000])
    parser.add_argument("--epochs", type=int, default=4)
    given = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print("| keys | bytes a state | stall, ms | between | after |\n|---|---|---|---|---|", flush=True)
    for n_keys in given.keys:
        for n_bytes in given.bytes:
            stall, between, after = measured(n_keys, n_bytes, given.epochs)
            print(f"| {n_keys:,} | {n_bytes:,} | {stall:.0f} | {between:.0f} | {after:.0f} |", flush=True)


if __name__ == "__main__":
    main()
