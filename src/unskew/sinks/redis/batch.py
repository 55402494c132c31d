"""The batch of rows and clocks that waits to be sent to Redis; conflation leaves the last row of each key."""

from dataclasses import dataclass, field

import polars as pl

from unskew.features.ledger import Ledger
from unskew.features.updates import NothingToCome, Updates
from unskew.sinks.redis.keyspace import clock_field
from unskew.sinks.redis.words import Clock, Place


@dataclass
class Batch:
    """Rows and clocks that are not acknowledged yet.

    ``frames``: by view, in order of arrival. ``clocks``, ``places`` (how far each shard is with these rows) and
    ``ledgers``: by ``view@version/shard``. ``refilled``: the shards whose refill this batch completes. ``n_distinct``:
    the number of rows after the last conflation.
    """

    frames: dict[str, list[pl.DataFrame]] = field(default_factory=dict)
    clocks: dict[str, Clock] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    refilled: set[str] = field(default_factory=set)
    ledgers: dict[str, Ledger] = field(default_factory=dict)
    newest_clock_us: int | None = None
    n_rows: int = 0
    n_distinct: int = 0
    n_conflated: int = 0

    def add(self, updates: Updates | NothingToCome) -> None:
        name = clock_field(updates.view, updates.shard)
        if isinstance(updates, NothingToCome):
            self.clocks[name] = Clock(None)
            return
        # The instant of the clock itself is still open: readers judge exactness by the last closed instant.
        self.clocks[name] = Clock(updates.clock_us - 1, updates.since_us)
        self.places[name] = Place(updates.clock_us, updates.applied)
        if updates.refill == "last":
            self.refilled.add(name)
        if self.newest_clock_us is None or updates.clock_us > self.newest_clock_us:
            self.newest_clock_us = updates.clock_us
        n_rows = updates.current.height
        if n_rows:
            self.frames.setdefault(updates.view.id, []).append(updates.current)
            self.n_rows += n_rows

    def then(self, later: "Batch") -> "Batch":
        """Return this batch followed by ``later``, as one batch."""
        clocks = [batch.newest_clock_us for batch in (self, later) if batch.newest_clock_us is not None]
        return Batch(
            frames={
                view: [*self.frames.get(view, ()), *later.frames.get(view, ())]
                for view in dict.fromkeys((*self.frames, *later.frames))
            },
            clocks={**self.clocks, **later.clocks},
            places={**self.places, **later.places},
            refilled=self.refilled | later.refilled,
            ledgers={**self.ledgers, **later.ledgers},
            newest_clock_us=max(clocks, default=None),
            n_rows=self.n_rows + later.n_rows,
            n_conflated=self.n_conflated + later.n_conflated,
        )

    def conflate(self) -> None:
        """Keep the last row of each key."""
        for view, frames in self.frames.items():
            if len(frames) > 1:
                together = pl.concat(frames)
                last = together.unique("key", keep="last", maintain_order=True)
                self.frames[view] = [last]
                self.n_rows -= together.height - last.height
                self.n_conflated += together.height - last.height
        self.n_distinct = self.n_rows
