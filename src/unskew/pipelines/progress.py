"""Counts of the work of a running pipeline, for its display, its log lines and its metrics.

Only the flow's thread writes them, and other threads read: each figure is one plain object, and a reader copies a
dictionary before it iterates.
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

# The range is from a wait for a fast disk to a commit that lasts through an outage.
DURATION_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Durations:
    """A histogram of durations, and their sum, in seconds."""

    def __init__(self) -> None:
        self._counts = [0] * (len(DURATION_BOUNDS_S) + 1)
        self.sum_s = 0.0
        self.longest_s = 0.0

    def note(self, seconds: float) -> None:
        self._counts[bisect_left(DURATION_BOUNDS_S, seconds)] += 1
        self.sum_s += seconds
        self.longest_s = max(self.longest_s, seconds)

    def at_most(self) -> list[tuple[float, int]]:
        """Return (bound, count of durations up to it) for every bound, and the total for infinity."""
        return list(zip((*DURATION_BOUNDS_S, float("inf")), accumulate(list(self._counts)), strict=True))


class Epochs:
    """The epochs of this process, recognized by its own snapshots: first those of the shards, then those of the sinks.

    A shard's snapshot that follows a sink's begins the next epoch; Bytewax requests it only when the epoch before is
    durable. ``commits``: time spent in the snapshots of an epoch, during which nothing else is done. ``lengths``: time
    from the first snapshot of an epoch to the first of the next. ``durable``: number of durable epochs.
    ``durable_at_s``: Unix time at which the last one was found durable; None before. ``moved_at_s``: when the flow's
    thread last did a step or part of a snapshot, by ``monotonic``; None before.
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
        """Note that the flow's thread has done something."""
        self.moved_at_s = self.monotonic()

    @contextmanager
    def snapshot(self, of: Literal["shard", "sink"]) -> Iterator[None]:
        """Measure one snapshot."""
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
        """Count the last epoch as durable, after the flow has ended without an error."""
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
    """The size of a shard's state at its last snapshot."""

    entities: int
    tiles: int


@dataclass
class Progress:
    """Totals since this process started; instants in microseconds.

    ``compiling``: the kernel is being compiled, and nothing else is done. ``history``: the progress of a new view's
    backfill, as text, while nothing else is done.
    ``updates_by_view``, ``rows_by_view``: by view id, rows for Redis and rows of the log. ``sizes``: by view id and
    shard. ``late_by_view``: by view id, events that came too late for a window. ``duplicates``: by view id, dropped
    repeats of events; it has only views whose stream drops repeats. ``ledgers``: by view id and shard, late events and
    repeats since the state began.
    """

    compiling: bool = False
    history: str | None = None
    updates_by_view: dict[str, int] = field(default_factory=dict)
    rows_by_view: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, Size] = field(default_factory=dict)
    epochs: Epochs = field(default_factory=Epochs)
    late_by_view: dict[str, int] = field(default_factory=dict)
    duplicates: dict[str, int] = field(default_factory=dict)
    clocks_us: dict[str, int] = field(default_factory=dict)
    ledgers: dict[str, Ledger] = field(default_factory=dict)

    def count(self, update: Updates) -> None:
        """Count one step of one shard."""
        view_id = update.view.id
        name = f"{view_id}/{update.shard}"
        self.updates_by_view[view_id] = self.updates_by_view.get(view_id, 0) + update.current_rows.height
        self.rows_by_view[view_id] = self.rows_by_view.get(view_id, 0) + update.closed_rows.height
        self.late_by_view[view_id] = self.late_by_view.get(view_id, 0) + sum(update.late)
        if update.view.stream.dedupe_within_us is not None:
            self.duplicates[view_id] = self.duplicates.get(view_id, 0) + update.duplicates
        self.clocks_us[name] = update.clock_us
        self.ledgers[name] = ledger_of(update)

    def note_history(self, text: str | None) -> None:
        """Record how far a new view's backfill is; None if there is none any more."""
        self.history = text

    def note_size(self, view_id: str, shard: str, *, entities: int, tiles: int) -> None:
        """Record the size of a shard's state."""
        self.sizes[f"{view_id}/{shard}"] = Size(entities, tiles)

    @property
    def updates(self) -> int:
        """The number of rows for Redis, over all views."""
        return sum(list(self.updates_by_view.values()))

    @property
    def rows(self) -> int:
        """The number of rows of the log, over all views."""
        return sum(list(self.rows_by_view.values()))

    @property
    def late(self) -> int:
        """The number of events that came too late for a window, over all views."""
        return sum(list(self.late_by_view.values()))

    @property
    def clock_us(self) -> int | None:
        """The earliest of the shards' clocks; None before the first step."""
        return min(list(self.clocks_us.values()), default=None)

    def clocks_by_view_us(self) -> dict[str, int]:
        """Return, by view id, the earliest clock of its shards in this process."""
        clocks: dict[str, int] = {}
        for name, clock_us in dict(self.clocks_us).items():
            view_id = name.partition("/")[0]
            clocks[view_id] = min(clock_us, clocks.get(view_id, clock_us))
        return clocks

    def sizes_by_view(self) -> dict[str, Size]:
        """Return, by view id, the total size of its shards in this process."""
        sizes: dict[str, Size] = {}
        for name, size in dict(self.sizes).items():
            view_id = name.partition("/")[0]
            so_far = sizes.get(view_id, Size(0, 0))
            sizes[view_id] = Size(so_far.entities + size.entities, so_far.tiles + size.tiles)
        return sizes

    def ledger(self, view_id: str) -> Ledger:
        """Return a view's late events and repeats since its state began."""
        # A copy, because another thread calls this.
        ledgers = dict(self.ledgers)
        return together(ledger for name, ledger in ledgers.items() if name.startswith(f"{view_id}/"))
