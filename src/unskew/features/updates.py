"""What one step of one shard puts out, and what sinks take in."""

from dataclasses import dataclass
from typing import Literal

import polars as pl

from unskew.features.plan import ViewPlan
from unskew.features.time import DAY_US, HOUR_US, MINUTE_US, SECOND_US

LATE_BOUNDS_US = (SECOND_US, 10 * SECOND_US, MINUTE_US, 10 * MINUTE_US, HOUR_US, 6 * HOUR_US, DAY_US)


@dataclass(frozen=True, kw_only=True)
class Updates:
    """Closed rows for the log and current rows for serving, of one view and shard.

    ``clock_us``: the shard's clock after the step; ``since_us``: the first arrival it has seen, None before it.

    ``closed``: one row per (closed instant, entity) at which a value changed, in the order of ``seq``: entity key
    columns, a column for each of the view's ``outputs``, ``available_at``, ``event_time``, ``partition``, ``offset``,
    ``cause``, ``seq``.

    ``current``: one row per entity touched in the step: ``key`` (canonical), a column for each of the ``outputs``, and in
    int64 microseconds ``_at`` (last change), ``_until`` (when a tile next leaves), ``_empty_at`` (when the last tile
    leaves), both null without tiles; ``_gone``: the entity has no tile left.

    ``late``: per window of the view, and last that of the sessions it is over, events in this step that came after their tile
    had left it; ``late_by_us``: how long after at most, so far; ``late_histogram``: such events since the
    state began, by how long after, a count for each of ``LATE_BOUNDS_US``, which it is not past, and one for
    those past the last.

    ``duplicates``: events in this step that repeated others, and so changed nothing; ``duplicates_total``: since the state began.
    A step without changes has frames without rows.

    ``applied``: events that the shard has ever applied; with the clock it says how far a shard is along its own history, which is
    the same however often it is gone through. ``refill``: not a step, but the current rows of entities whether they changed or
    not, for a store that lost them: a part of all, or the last. ``behind``: an earlier life of the process has shown more than the shard has
    come to again.
    """

    view: ViewPlan
    shard: str
    clock_us: int
    since_us: int | None
    closed: pl.DataFrame
    current: pl.DataFrame
    late: tuple[int, ...]
    late_by_us: tuple[int, ...]
    late_histogram: tuple[tuple[int, ...], ...] = ()
    duplicates: int = 0
    duplicates_total: int = 0
    applied: int = 0
    refill: Literal["part", "last"] | None = None
    behind: bool = False

    @property
    def late_total(self) -> tuple[int, ...]:
        """Per window, the late events since the state began."""
        return tuple(map(sum, self.late_histogram))


@dataclass(frozen=True)
class NothingToCome:
    """Said of a shard that ended before it had any clock: it has nothing to say, and holds nothing back."""

    view: ViewPlan
    shard: str
