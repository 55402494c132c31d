"""Run Bytewax's own windowing operators on the events of bench_peers, in a separate process.

In its favour: events are already decoded in memory, nothing is saved for a restart, and output is written only at the
end; one fold keeps count, sum and max together; events are folded as they arrive, not in the order of their times.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import bytewax.operators as op
import polars as pl
from bytewax.dataflow import Dataflow
from bytewax.inputs import DynamicSource, StatelessSourcePartition
from bytewax.operators.windowing import EventClock, SlidingWindower, TumblingWindower, fold_window
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.testing import run_main

Event = tuple[datetime, float]
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Events(DynamicSource[tuple[str, Event]], StatelessSourcePartition[tuple[str, Event]]):
    """A source of all events, a thousand at a time; ``ended`` is called when there are no more."""

    def __init__(self, events: list[tuple[str, Event]], ended: Any) -> None:
        self._batches = [events[first : first + 1000] for first in range(0, len(events), 1000)]
        self._next = 0
        self._ended = ended

    def build(self, *_: object) -> "Events":
        return self

    def next_batch(self) -> Iterable[tuple[str, Event]]:
        if self._next == len(self._batches):
            self._ended()
            raise StopIteration
        self._next += 1
        return self._batches[self._next - 1]


class Kept(DynamicSink[Any], StatelessSinkPartition[Any]):
    """A sink that keeps the items of the wanted windows."""

    def __init__(self, wanted: dict[str, int]) -> None:
        self.values: list[tuple[str, str, list[float]]] = []
        self._wanted = wanted

    def build(self, *_: object) -> "Kept":
        return self

    def write_batch(self, items: list[tuple[str, tuple[str, tuple[int, list[float]]]]]) -> None:
        for key, (window, (number, value)) in items:
            if number == self._wanted[window]:
                self.values.append((key, window, value))


def fold(kept: list[float], event: Event) -> list[float]:
    amount = event[1]
    kept[0] += 1
    kept[1] += amount
    if amount > kept[2]:  # noqa: PLR1730 - faster than max()
        kept[2] = amount
    return kept


def merge(one: list[float], other: list[float]) -> list[float]:
    return [one[0] + other[0], one[1] + other[1], max(one[2], other[2])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", type=json.loads, help="JSON from bench_peers")
    task = parser.parse_args().task
    frame = pl.read_parquet(task["events"])
    instants = [EPOCH + timedelta(microseconds=at) for at in frame["at"].to_list()]
    keys = frame["user"].cast(pl.String).to_list()
    events = list(zip(keys, zip(instants, frame["amount"].to_list(), strict=True), strict=True))
    times: list[float] = []

    def mark() -> None:
        times.extend((time.perf_counter(), time.process_time()))

    flow = Dataflow("peers")
    stream = op.input("events", flow, Events(events, mark))
    # In a replay only events move the clock: with the wall clock, Bytewax would drop events that are not late and check
    # windows in vain.
    clock: Any = EventClock(
        lambda event: event[0],
        wait_for_system_duration=timedelta(milliseconds=task["lateness_ms"]),
        now_getter=lambda: EPOCH,
        to_system_utc=lambda _: None,
    )
    windows, wanted = [], {}

    def named(name: str) -> Callable[[Any], tuple[str, Any]]:
        return lambda value: (name, value)

    for name, (extent_ms, hop_ms) in task["windows"].items():
        extent, hop = timedelta(milliseconds=extent_ms), timedelta(milliseconds=hop_ms)
        # A window with an exact new edge and an old edge that moves by hops is the content so far of one a hop longer.
        sliding = extent_ms != hop_ms
        windower = SlidingWindower(extent + hop, hop, EPOCH) if sliding else TumblingWindower(extent, EPOCH)
        wanted[name] = task["end_ms"] // hop_ms - (extent_ms // hop_ms if sliding else 0)
        out = fold_window(name, stream, clock, windower, lambda: [0, 0.0, 0.0], fold, merge, ordered=False)
        windows.append(op.map_value(f"{name}_named", out.down, named(name)))
    kept = Kept(wanted)
    op.output("kept", op.merge("all", *windows), kept)
    began = time.perf_counter(), time.process_time()
    run_main(flow)
    values = [[int(key), window, *value] for key, window, value in kept.values]
    print(json.dumps({"seconds": times[0] - began[0], "processor": times[1] - began[1], "values": values}))


if __name__ == "__main__":
    main()
