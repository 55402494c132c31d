"""What one step of one shard puts out, and what sinks take in."""

from dataclasses import dataclass

import polars as pl

from unskew.features.plan import ViewPlan


@dataclass(frozen=True, kw_only=True)
class Updates:
    """Closed rows for the log and current rows for serving, of one view and shard.

    ``clock_us``: the shard's clock after the step; ``since_us``: the first arrival it has seen, None before it.

    ``closed``: one row per (closed instant, entity) at which a value changed, in the order of ``seq``: entity key
    columns, feature columns, ``available_at``, ``event_time``, ``partition``, ``offset``, ``cause``, ``seq``.

    ``current``: one row per entity touched in the step: ``key`` (canonical), feature columns, and in int64
    microseconds ``_at`` (last change), ``_until`` (when a tile next leaves), ``_empty_at`` (when the last tile
    leaves), both null without tiles; ``_gone``: the entity has no tile left.

    ``late``: per window of the view, events in this step that were outside it; ``late_by_us``: the largest
    distance from its old edge so far. A step without changes has frames without rows.
    """

    view: ViewPlan
    shard: str
    clock_us: int
    since_us: int | None
    closed: pl.DataFrame
    current: pl.DataFrame
    late: tuple[int, ...]
    late_by_us: tuple[int, ...]


@dataclass(frozen=True)
class NothingToCome:
    """Said of a shard that ended before it had any clock: it has nothing to say, and holds nothing back."""

    view: ViewPlan
    shard: str
