"""Updates: the output of one step of one shard, and the input of sinks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import polars as pl
from typing_extensions import override

from unskew.features.plan import ViewPlan
from unskew.features.time import DAY_US, HOUR_US, MINUTE_US, SECOND_US

LATE_BOUNDS_US = (SECOND_US, 10 * SECOND_US, MINUTE_US, 10 * MINUTE_US, HOUR_US, 6 * HOUR_US, DAY_US)


Make = Callable[[Sequence[tuple[Sequence[Any], int]]], Sequence[pl.DataFrame]]
"""Makes a frame of the words of several steps of a shard, with the ``seq`` of the first row, which the others follow.

It makes those of several shards of a view at once.
"""


class StepRows:
    """Rows of one step: a frame, or words of which a frame is made when it is asked for.

    Making a frame has a fixed cost, which is several times the kernel's work on a few events. A log needs its rows only
    at the end of an epoch, and Redis those of all shards together. ``height``: their number. ``first``: the ``seq`` of
    the first closed row. ``words``: None once there is a frame.
    """

    __slots__ = ("_frame", "first", "height", "words")

    def __init__(self, frame: pl.DataFrame, first: int = 0) -> None:
        self.height = frame.height
        self.first = first
        self.words: tuple[Make, Any] | None = None
        self._frame: pl.DataFrame | None = frame

    @classmethod
    def of(cls, words: Any, height: int, make: Make, first: int = 0) -> "StepRows":
        """Return at least one row, as words."""
        rows = object.__new__(cls)
        rows.height, rows.first, rows.words, rows._frame = height, first, (make, words), None
        return rows

    def frame(self) -> pl.DataFrame:
        """Return the rows as a frame; it is made once."""
        if self._frame is None:
            (self._frame,) = frames([self])
            self.words = None
        return self._frame

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return StepRows, (self.frame(), self.first)


def frames(steps: Sequence[StepRows]) -> list[pl.DataFrame]:
    """Return the rows of steps as frames, in their order and as few as possible.

    The steps are of one view; closed rows are those of successive steps of one shard.
    """
    return frames_of_each([steps])[0]


def frames_of_each(shards: Sequence[Sequence[StepRows]]) -> list[list[pl.DataFrame]]:
    """Return, for each of several shards of one view, the rows of its steps as ``frames`` does.

    Frames that are made of words are made together, because most of what a frame of few rows costs is the same for the
    rows of many shards.
    """
    runs = [
        (shard, list(run))
        for shard, steps in enumerate(shards)
        for _, run in groupby(steps, lambda step: step.words is not None)
    ]
    make: Make | None = None
    held: list[tuple[Sequence[Any], int]] = []
    for _, run in runs:
        if run[0].words is not None:
            make = run[0].words[0]
            held.append(([step.words[1] for step in run if step.words is not None], run[0].first))
    made = iter(() if make is None else make(held))
    found: list[list[pl.DataFrame]] = [[] for _ in shards]
    for shard, run in runs:
        are_words = run[0].words is not None
        found[shard] += [next(made)] if are_words else [step.frame() for step in run if step.height]
    return found


@dataclass(frozen=True, kw_only=True)
class Updates:
    """Closed rows for the log and current rows for serving, from one view and shard.

    ``clock_us``: the shard's clock after the step. ``since_us``: from this instant on, the shard has seen every event,
    None before the first. ``begins_us``: it has seen nothing before this instant; earlier than ``since_us`` if the view
    was added while partitions were unevenly far, None if not known.

    ``closed_rows``, as a frame ``closed``: one row per (closed instant, entity) at which a value changed, in the order
    of ``seq``. Its columns: entity keys, one for each of the view's ``outputs``, ``available_at``, ``event_time``,
    ``partition``, ``offset``, ``cause``, ``seq``.

    ``current_rows``, as a frame ``current``: one row per entity touched in the step. Its columns: ``key`` (canonical),
    one for each of the ``outputs``, and in int64 microseconds ``_at`` (last change), ``_until`` (when a tile next
    leaves) and ``_empty_at`` (when the last tile leaves), both null without tiles; ``_gone`` is true if the entity has
    no tile left.

    ``late``: events in this step that came after their tile had left the window; one count per window of the view, then
    one for the sessions if the view is over sessions. ``late_by_us``: the longest such delay so far, per window.
    ``late_histogram``: per window, late events since the state began by delay; one count for each upper bound in
    ``LATE_BOUNDS_US``, and one for delays past the last bound.

    ``duplicates``: events in this step that repeated others and so changed nothing. ``duplicates_total``: the same
    since the state began. A step without changes has frames without rows.

    ``applied``: the number of events that the shard has ever applied. With the clock it states the shard's position in
    its own history, which is the same however often the history is repeated. ``refill``: if set, this is not a step but
    the current rows of entities, changed or not, for a store that lost them: one part, or the last. ``scrub``: if set,
    these are such rows for a store to compare with what it holds. ``behind``: true while an earlier run of the process
    showed more than the shard has reached again.
    """

    view: ViewPlan
    shard: str
    clock_us: int
    since_us: int | None
    closed_rows: StepRows
    current_rows: StepRows
    late: tuple[int, ...]
    late_by_us: tuple[int, ...]
    late_histogram: tuple[tuple[int, ...], ...] = ()
    duplicates: int = 0
    duplicates_total: int = 0
    applied: int = 0
    refill: Literal["part", "last"] | None = None
    scrub: Literal["part", "last"] | None = None
    behind: bool = False
    begins_us: int | None = None

    def but(self, **changes: Any) -> "Updates":
        """Return these updates with other values of some fields.

        ``dataclasses.replace`` does the same, in a time that is a part of what a mark without events costs.
        """
        other = object.__new__(Updates)
        other.__dict__.update(self.__dict__, **changes)
        return other

    @property
    def closed(self) -> pl.DataFrame:
        """The closed rows as a frame."""
        return self.closed_rows.frame()

    @property
    def current(self) -> pl.DataFrame:
        """The current rows as a frame."""
        return self.current_rows.frame()

    @property
    def late_total(self) -> tuple[int, ...]:
        """The number of late events since the state began, per window."""
        return tuple(map(sum, self.late_histogram))


@dataclass(frozen=True)
class NothingToCome:
    """The output of a shard that ended before it had a clock: it has no rows, and holds no other shard back."""

    view: ViewPlan
    shard: str
