"""The batch of rows and clocks that waits to be sent to Redis; conflation leaves the last row of each key."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import polars as pl

from unskew.features.kernel.row_words import CurrentWords
from unskew.features.kernel.row_words import joined as joined_words
from unskew.features.ledger import Ledger
from unskew.features.selecting import joined
from unskew.features.updates import NothingToCome, StepRows, Updates, frames
from unskew.sinks.redis.keyspace import clock_field
from unskew.sinks.redis.words import Clock, Place

FEW_ROWS = 1_000
"""Of so many rows at most, it is looked first whether their keys are all different."""
_Rows = TypeVar("_Rows")


@dataclass
class Batch:
    """Rows and clocks that are not acknowledged yet.

    ``rows``: by view, in order of arrival. ``clocks``, ``places`` (how far each shard is with these rows) and
    ``ledgers``: by ``view@version/shard``. ``refilled``: the shards whose refill this batch completes. ``comparisons``:
    by shard, rows to compare with Redis. ``compared``: the shards of which these are the last of a round, and when that
    began, None if it proves nothing. ``mends``: whether rows that Redis lacked, or that should not expire, are among
    these. ``n_distinct``: the number of rows after the last conflation.
    """

    rows: dict[str, list[StepRows]] = field(default_factory=dict)
    clocks: dict[str, Clock] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    refilled: set[str] = field(default_factory=set)
    ledgers: dict[str, Ledger] = field(default_factory=dict)
    comparisons: dict[str, list[pl.DataFrame]] = field(default_factory=dict)
    compared: dict[str, int | None] = field(default_factory=dict)
    mends: bool = False
    newest_clock_us: int | None = None
    n_rows: int = 0
    n_distinct: int = 0
    n_conflated: int = 0

    @property
    def has_rows(self) -> bool:
        """Whether there is more than clocks: rows to send or to compare, or the end of a shard's rows."""
        return bool(self.n_rows or self.refilled or self.comparisons or self.compared)

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
        n_rows = updates.current_rows.height
        if n_rows:
            self.rows.setdefault(updates.view.id, []).append(updates.current_rows)
            self.n_rows += n_rows

    def compare(self, shard: str, rows: pl.DataFrame) -> None:
        """Add current rows to compare with Redis."""
        if rows.height:
            self.comparisons.setdefault(shard, []).append(rows)

    def take_comparisons(self) -> Iterator[tuple[str, pl.DataFrame]]:
        """Take out, by shard, the last row to compare of each key, unless the batch has a step's row of the key."""
        while self.comparisons:
            name, frames = next(iter(self.comparisons.items()))
            rows = pl.concat(frames).unique("key", keep="last", maintain_order=True)
            for sent in self.rows.get(name.partition("/")[0], ()):
                rows = rows.join(sent.frame(), on="key", how="anti", maintain_order="left")
            if rows.height:
                yield name, rows
            del self.comparisons[name]

    def mend(self, view: str, rows: pl.DataFrame) -> None:
        """Add rows that Redis lacks; no step of the batch has their keys."""
        self.mends = True
        self.rows.setdefault(view, []).append(StepRows(rows))
        self.n_rows += rows.height

    def then(self, later: "Batch") -> "Batch":
        """Return this batch followed by ``later``, as one batch."""
        clocks = [batch.newest_clock_us for batch in (self, later) if batch.newest_clock_us is not None]
        return Batch(
            rows=_joined(self.rows, later.rows),
            clocks={**self.clocks, **later.clocks},
            places={**self.places, **later.places},
            refilled=self.refilled | later.refilled,
            ledgers={**self.ledgers, **later.ledgers},
            comparisons=_joined(self.comparisons, later.comparisons),
            compared={**self.compared, **later.compared},
            mends=self.mends or later.mends,
            newest_clock_us=max(clocks, default=None),
            n_rows=self.n_rows + later.n_rows,
            n_conflated=self.n_conflated + later.n_conflated,
        )

    def conflate(self) -> None:
        """Keep the last row of each key."""
        for view, steps in self.rows.items():
            if len(steps) > 1:
                n_rows, last = sum(step.height for step in steps), _last_of_each_key(steps)
                self.rows[view] = [last]
                self.n_rows -= n_rows - last.height
                self.n_conflated += n_rows - last.height
        self.n_distinct = self.n_rows


def _last_of_each_key(steps: Sequence[StepRows]) -> StepRows:
    # Most turns bring few rows, all of different keys, and finding that out costs less than the query.
    is_few = sum(step.height for step in steps) <= FEW_ROWS
    held = [step.words for step in steps if step.words is not None]
    if is_few and len(held) == len(steps):
        # No frame is made of them: it would cost more than all else that is done with a few rows.
        make, _ = held[0]
        words = joined_words(CurrentWords, [its for _, its in held])
        places = {key: place for place, key in enumerate(words.keys.texts())}
        if len(places) < len(words.changed_at):
            is_last = np.zeros(len(words.changed_at), np.bool_)
            is_last[list(places.values())] = True
            words = words.chosen(is_last)
        return StepRows.of(words, len(places), make)
    rows = joined(frames(steps))
    if is_few and len(set(rows["key"].to_list())) == rows.height:
        return StepRows(rows)
    return StepRows(rows.unique("key", keep="last", maintain_order=True))


def _joined(first: Mapping[str, Sequence[_Rows]], second: Mapping[str, Sequence[_Rows]]) -> dict[str, list[_Rows]]:
    return {name: [*first.get(name, ()), *second.get(name, ())] for name in dict.fromkeys((*first, *second))}
