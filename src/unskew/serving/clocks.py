"""The pipeline's clocks in Redis, and the instant for which a row read from Redis is valid."""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.features.keys import shard_of
from unskew.features.view import View
from unskew.sinks.redis.keyspace import clock_field
from unskew.sinks.redis.words import Clocks, Marks

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

UNKNOWN = np.iinfo(np.int64).min
"""The placeholder for an unknown instant; earlier than every instant."""

NEVER = np.iinfo(np.int64).max

_HASHED = re.compile("h[0-9]{1,6}")


@dataclass(frozen=True, kw_only=True)
class Placed:
    """The instants of every row of one view, int64 microseconds [n]; ``UNKNOWN`` if there is no clock.

    ``as_of``: the instant whose value the row holds. ``clock``: the clock by which the row is judged. ``since``: the
    first arrival that its shard has seen, ``NEVER`` before one. ``provisional``: whether more events may still arrive
    at or before ``as_of``. ``compared``: when the last comparison of all the shard's rows with the state began.
    """

    as_of: Ints
    clock: Ints
    since: Ints
    provisional: Flags
    compared: Ints


class ViewClocks:
    """The clocks of one view's shards, read *before* the rows that they judge.

    A clock in Redis is the last instant that a shard has closed. The instant of the shard's own clock is still open,
    because more events may arrive at that very instant. A writer sends values, waits for the acknowledgement, and then
    sends the clock. So a row that is read after the clock holds everything up to it, and perhaps more, and has not
    changed since its ``_at``. Hence the row is the value at ``as_of = max(_at, clock of its shard)``. It is exact if
    the clock has reached ``_at``; otherwise it is provisional, because the step that wrote it may not have contained
    all events of that instant.

    The shard of a row depends on the view:

    - Hashed view: the hash of the key determines the shard.
    - Partitioned view: the key does not determine the partition, because the producer chose it. The clock of the row's
      shard lies between the least and the greatest clock of the view. A row that is present is the value at
      ``max(_at, least)``, because its own clock is at least that; it is exact if even the least clock has reached
      ``_at``. A row that is absent is empty at its own clock, which may be any of them, and it may have been deleted
      after the least clock: it is the value at the greatest clock, and provisional unless all clocks are equal.

    An absent row has no ``_at`` that says when it was deleted. Values whose clock is still to come may have deleted it
    after the clock. The writer announces how far values go before it sends them. The reader reads this *mark* *after*
    the rows: if it is past the clock, an absent row is the value at the mark, and provisional.

    A server may lose everything between the reading of the clocks and the reading of the rows. The marks are then gone
    too, or they say that a loss is being repaired. So an absent row is provisional if its shard has a clock but no
    mark, and while there is a loss. It is also provisional while the marks say that rows of its shard may lack, because
    the servers evict keys or a comparison with the state found that some were gone.

    The pipeline lists its shards. A listed shard without a clock may still bring records of any instant: while there is
    one, every row of a partitioned view is provisional, and its instant follows from the known clocks. A shard that
    ended without a clock brings no records, and does not count.
    """

    def __init__(self, view: View, clocks: Clocks, marks: Marks) -> None:
        shards = {shard: clock_field(view, shard) for shard in clocks.shards(view.id)}
        self._partitioned = view.partitioned
        self._waiting = any(not clocks.stands(name) for name in shards.values())
        self._clocks = {shard: us for shard, name in shards.items() if (us := clocks.closed_us(name)) is not None}
        self._since = {shard: us for shard, name in shards.items() if (us := clocks.since_us(name)) is not None}
        # The instant of such a clock is still open.
        self._marks = {shard: us for shard, name in shards.items() if (us := marks.sent_us(name)) is not None}
        # Without a list of shards, the number follows from those with a clock.
        numbers = (int(shard[1:]) for shard in self._clocks if _HASHED.fullmatch(shard))
        self._n_shards = len(clocks.listed(view.id)) or 1 + max(numbers, default=0)
        doubted = marks.doubted
        self._lost = (
            set(self._clocks)
            if marks.loss
            else {shard for shard in self._clocks if shard not in self._marks or shards[shard] in doubted}
        )
        self._compared = {shard: us for shard, name in shards.items() if (us := marks.compared_us(name)) is not None}
        self._latest_since = max(self._since.values(), default=NEVER)

    def place(self, keys: pl.Series, at: Ints) -> Placed:
        """Judge rows. ``keys``: canonical [n]; ``at``: their ``_at``, ``UNKNOWN`` if a row is absent."""
        if self._partitioned:
            return self._place_partitioned(at)
        return self._place_hashed(keys, at)

    def _place_hashed(self, keys: pl.Series, at: Ints) -> Placed:
        n_shards = self._n_shards
        clocks = np.array([self._clocks.get(f"h{shard}", UNKNOWN) for shard in range(n_shards)], np.int64)
        # A shard that has seen no event began when the others did.
        since = np.array([self._since.get(f"h{shard}", self._latest_since) for shard in range(n_shards)], np.int64)
        marks = np.array([self._marks.get(f"h{shard}", UNKNOWN) for shard in range(n_shards)], np.int64)
        shards = shard_of(keys, n_shards)
        lost = np.array([f"h{shard}" in self._lost for shard in range(n_shards)], np.bool_)
        clock = clocks[shards]
        # An absent row may be valid at any instant up to the mark; a present row has not changed since its ``_at``.
        changed = np.where((at == UNKNOWN) & (marks[shards] > clock + 1), marks[shards], at)
        return Placed(
            as_of=np.where(clock == UNKNOWN, at, np.maximum(changed, clock)),
            clock=clock,
            since=since[shards],
            provisional=(clock == UNKNOWN) | (clock < changed) | ((at == UNKNOWN) & lost[shards]),
            compared=np.array([self._compared.get(f"h{shard}", UNKNOWN) for shard in range(n_shards)], np.int64)[
                shards
            ],
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
            compared=np.full(len(at), min((self._compared.get(s, UNKNOWN) for s in self._clocks), default=UNKNOWN)),
        )
