"""How far the pipeline has come, as its clocks in Redis say, and what that makes of a row that was read."""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.features.keys import shard_of
from unskew.features.registry import RegisteredView
from unskew.sinks.redis.keyspace import clock_field
from unskew.sinks.redis.words import Clocks, Marks

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

UNKNOWN = np.iinfo(np.int64).min
"""Stands for an instant that is not known; earlier than any."""

NEVER = np.iinfo(np.int64).max

_HASHED = re.compile("h[0-9]{1,6}")


@dataclass(frozen=True, kw_only=True)
class Placed:
    """For every row of one view, int64 microseconds [n], ``UNKNOWN`` where no clock is.

    ``as_of``: the instant whose value the row is. ``clock``: the clock it is judged by. ``since``: first arrival that
    its shard has seen, ``NEVER`` before one. ``provisional``: whether more may still arrive at or before ``as_of``.
    """

    as_of: Ints
    clock: Ints
    since: Ints
    provisional: Flags


class ViewClocks:
    """The clocks of one view's shards, read *before* the rows that they judge.

    A clock in Redis is the last instant that a shard has closed: what its own clock stands on is still open, for more
    events may arrive at that very instant. A writer sends values, waits, and then sends the clock. So a row that is read
    after the clock holds everything up to it, and perhaps more; it has stood unchanged since its ``_at``. Hence it is
    the value at ``as_of = max(_at, clock of its shard)``, exactly so where the clock has reached ``_at``, else
    provisionally: the step that wrote it may not have been all of that instant.

    Which shard is a row's?

    - A hashed view: the hash of the key tells.
    - A partitioned view: the key does not tell its partition, for the producer chose it. The row's own clock lies
      between the least and the greatest of the view's. A row that is present is the value at ``max(_at, least)``, for its
      own clock is at least that; it is exact where even the least has reached ``_at``. A row that is absent is empty at
      its own clock, which may be any of them, and may have been deleted after the least: it is the value at the
      greatest, and provisional unless all clocks are equal.

    A row that is absent has no ``_at`` to say when it was deleted: perhaps after the clock, by values whose clock is still to come. The
    writer says how far values go before it sends them. Such a *mark*, read *after* the rows, tells: where it is past the clock, an absent row is
    the value at the mark, and provisional.

    A server may lose everything between the reading of the clocks and that of the rows. The marks are then gone too, or say that a loss
    is being made good: where a shard with a clock has no mark, or while there is a loss, an absent row is provisional.

    The pipeline says which shards there are. A listed one without a clock may still bring records of any instant: while
    there is one, every row of a partitioned view is provisional, and its instant the known clocks'. One that ended
    without a clock brings none, and does not count.
    """

    def __init__(self, view: RegisteredView, clocks: Clocks, marks: Marks) -> None:
        shards = {shard: clock_field(view, shard) for shard in clocks.shards(view.id)}
        self._partitioned = view.partitioned
        self._waiting = any(not clocks.stands(name) for name in shards.values())
        self._clocks = {shard: us for shard, name in shards.items() if (us := clocks.closed_us(name)) is not None}
        self._since = {shard: us for shard, name in shards.items() if (us := clocks.since_us(name)) is not None}
        # The instant that such a clock stands on is open.
        self._marks = {shard: us for shard, name in shards.items() if (us := marks.sent_us(name)) is not None}
        # Where no list says how many shards there are, those with a clock do.
        numbers = (int(shard[1:]) for shard in self._clocks if _HASHED.fullmatch(shard))
        self._n_shards = len(clocks.listed(view.id)) or 1 + max(numbers, default=0)
        self._lost = set(self._clocks) if marks.loss else self._clocks.keys() - self._marks.keys()
        self._latest_since = max(self._since.values(), default=NEVER)

    def place(self, keys: pl.Series, at: Ints) -> Placed:
        """Judge rows. ``keys``: canonical [n]; ``at``: their ``_at``, ``UNKNOWN`` where a row is absent."""
        if self._partitioned:
            return self._place_partitioned(at)
        return self._place_hashed(keys, at)

    def _place_hashed(self, keys: pl.Series, at: Ints) -> Placed:
        n_shards = self._n_shards
        clocks = np.array([self._clocks.get(f"h{shard}", UNKNOWN) for shard in range(n_shards)], np.int64)
        # A shard that met no event of its own began when the others did.
        since = np.array([self._since.get(f"h{shard}", self._latest_since) for shard in range(n_shards)], np.int64)
        marks = np.array([self._marks.get(f"h{shard}", UNKNOWN) for shard in range(n_shards)], np.int64)
        shards = shard_of(keys, n_shards)
        lost = np.array([f"h{shard}" in self._lost for shard in range(n_shards)], np.bool_)
        clock = clocks[shards]
        # An absent row may be that of any instant up to the mark, a row that is there was as it is since its ``_at``.
        changed = np.where((at == UNKNOWN) & (marks[shards] > clock + 1), marks[shards], at)
        return Placed(
            as_of=np.where(clock == UNKNOWN, at, np.maximum(changed, clock)),
            clock=clock,
            since=since[shards],
            provisional=(clock == UNKNOWN) | (clock < changed) | ((at == UNKNOWN) & lost[shards]),
        )

    def _place_partitioned(self, at: Ints) -> Placed:
        least = min(self._clocks.values(), default=UNKNOWN)
        ahead = [mark for shard, mark in self._marks.items() if mark > self._clocks.get(shard, NEVER - 1) + 1]
        greatest = max([*self._clocks.values(), *ahead], default=UNKNOWN)
        absent = at == UNKNOWN
        return Placed(
            as_of=np.where(absent, greatest, np.maximum(at, least)),
            clock=np.full(len(at), UNKNOWN if self._waiting else least, np.int64),
            since=np.full(len(at), self._latest_since, np.int64),
            provisional=self._waiting
            | (least == UNKNOWN)
            | np.where(absent, (least < greatest) | bool(self._lost), least < at),
        )
