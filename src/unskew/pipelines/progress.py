"""Counts of what a running pipeline has done, for its display, its log lines and its metrics.

The flow's thread alone writes them, other threads read: each figure is one plain object, and a dictionary is copied first.
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

from unskew.features.ledger import Ledger, ledger_of, together
from unskew.features.updates import Updates

# From a wait for a fast disk to a commit that waits out an outage.
DURATION_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Durations:
    """How long something took, each time: a histogram, and the sum; seconds."""

    def __init__(self) -> None:
        self._counts = [0] * (len(DURATION_BOUNDS_S) + 1)
        self.sum_s = 0.0
        self.longest_s = 0.0

    def note(self, seconds: float) -> None:
        self._counts[bisect_left(DURATION_BOUNDS_S, seconds)] += 1
        self.sum_s += seconds
        self.longest_s = max(self.longest_s, seconds)

    def at_most(self) -> list[tuple[float, int]]:
        """How many took at most so long, for every bound and without one."""
        return list(zip((*DURATION_BOUNDS_S, float("inf")), accumulate(list(self._counts)), strict=True))


class Epochs:
    """The epochs of this process, told apart by its own snapshots: those of the shards come first, then those of the sinks.

    A shard's snapshot after a sink's begins the next epoch, and is only asked for when the one before is durable.
    ``commits``: time spent in the snapshots of an epoch, in which nothing else is done. ``lengths``: from the first snapshot of an epoch
    to the first of the next one. ``durable``: epochs that are. ``durable_at_s``: when the last one was found to be, Unix time;
    None before. ``moved_at_s``: when the flow's thread last did a step or part of a snapshot, by ``monotonic``; None before.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        self.monotonic = monotonic
        self.commits = Durations()
        self.lengths = Durations()
        self.durable = 0
        self.durable_at_s: float | None = None
        self.moved_at_s: float | None = None
        self._wall = wall
        self._began_s: float | None = None
        self._spent_s = 0.0
        self._in_sinks = False

    def moved(self) -> None:
        """The flow's thread has done something."""
        self.moved_at_s = self.monotonic()

    @contextmanager
    def snapshot(self, of: Literal["shard", "sink"]) -> Iterator[None]:
        """Around one snapshot."""
        began_s = self.monotonic()
        if of == "shard" and self._in_sinks:
            self._finish(began_s)
        if self._began_s is None:
            self._began_s = began_s
        self._in_sinks = of == "sink"
        try:
            yield
        finally:
            self.moved()
            self._spent_s += self.monotonic() - began_s

    def settle(self) -> None:
        """The flow has ended without an error: what was begun is durable."""
        if self._began_s is not None:
            self._finish(self.monotonic())

    def _finish(self, now_s: float) -> None:
        assert self._began_s is not None
        self.commits.note(self._spent_s)
        self.lengths.note(now_s - self._began_s)
        self.durable += 1
        self.durable_at_s = self._wall()
        self._began_s, self._spent_s, self._in_sinks = None, 0.0, False


@dataclass(frozen=True, slots=True)
class Size:
    """What a shard's state held at its last snapshot."""

    entities: int
    tiles: int


@dataclass
class Progress:
    """Totals since this process started; instants in microseconds.

    ``updates_by_view``, ``rows_by_view``: by view id, rows for Redis and rows of the log. ``sizes``: by view id and shard.
    ``late_by_view``: by view id, events that came too late for a window. ``duplicates``: by view id, events that repeated
    others and were dropped; only views whose stream drops them are there. ``ledgers``: by view id and shard, both since the
    state began.
    """

    updates_by_view: dict[str, int] = field(default_factory=dict)
    rows_by_view: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, Size] = field(default_factory=dict)
    epochs: Epochs = field(default_factory=Epochs)
    late_by_view: dict[str, int] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)
    clocks_us: dict[str, int] = field(default_factory=dict)
    ledgers: dict[str, Ledger] = field(default_factory=dict)

    def count(self, update: Updates) -> None:
        """Take in one step of one shard."""
        view_id = update.view.id
        self.updates_by_view[view_id] = self.updates_by_view.get(view_id, 0) + update.current.height
        self.rows_by_view[view_id] = self.rows_by_view.get(view_id, 0) + update.closed.height
        self.late_by_view[view_id] = self.late_by_view.get(view_id, 0) + sum(update.late)
        if update.view.stream.dedupe_within_us is not None:
            self.duplicates[view_id] = self.duplicates.get(view_id, 0) + update.duplicates
        self.clocks_us[f"{view_id}/{update.shard}"] = update.clock_us
        self.ledgers[f"{view_id}/{update.shard}"] = ledger_of(update)

    def note_size(self, view_id: str, shard: str, *, entities: int, tiles: int) -> None:
        """Take in how large a shard's state is."""
        self.sizes[f"{view_id}/{shard}"] = Size(entities, tiles)

    @property
    def updates(self) -> int:
        """Rows for Redis, over all views."""
        return sum(list(self.updates_by_view.values()))

    @property
    def rows(self) -> int:
        """Rows of the log, over all views."""
        return sum(list(self.rows_by_view.values()))

    @property
    def late(self) -> int:
        """Events that came too late for a window, over all views."""
        return sum(list(self.late_by_view.values()))

    @property
    def clock_us(self) -> int | None:
        """The earliest of the shards' clocks; None before the first step."""
        return min(list(self.clocks_us.values()), default=None)

    def clocks_by_view_us(self) -> dict[str, int]:
        """By view id, the earliest of its shards' clocks in this process."""
        clocks: dict[str, int] = {}
        for name, clock_us in dict(self.clocks_us).items():
            view_id = name.partition("/")[0]
            clocks[view_id] = min(clock_us, clocks.get(view_id, clock_us))
        return clocks

    def sizes_by_view(self) -> dict[str, Size]:
        """By view id, all its shards in this process together."""
        sizes: dict[str, Size] = {}
        for name, size in dict(self.sizes).items():
            view_id = name.partition("/")[0]
            so_far = sizes.get(view_id, Size(0, 0))
            sizes[view_id] = Size(so_far.entities + size.entities, so_far.tiles + size.tiles)
        return sizes

    def ledger(self, view_id: str) -> Ledger:
        """A view's late events and repeats since its state began."""
        # A copy: another thread asks.
        ledgers = dict(self.ledgers)
        return together(ledger for name, ledger in ledgers.items() if name.startswith(f"{view_id}/"))
