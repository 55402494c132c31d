"""Frames that come one after the other and are wanted as one, as the events and rows of an epoch are.

Most have a row or two, and there are hundreds of them. They are joined as they come, so that the epoch's end, during
which nothing else is done, has few left to join.
"""

from itertools import cycle

import polars as pl

from unskew.features.selecting import joined

AT_ONCE = 16
"""So many frames are joined into one."""
FEW_ROWS = 64
"""Frames that have more rows than this on average are left as they are: copying them twice would cost more."""

_turns = cycle(range(1, AT_ONCE + 1))
"""Most steps of shards and tables come together; they begin at different ones, so that each step joins a few."""


class Gathered:
    """Frames with equal columns, in their order, until they are taken."""

    def __init__(self) -> None:
        self._joined: list[pl.DataFrame] = []
        self._few: list[pl.DataFrame] = []
        self._n_few = 0
        self._begin = self._room = next(_turns)
        self.n_rows = 0

    def append(self, frame: pl.DataFrame) -> None:
        """Add a frame with at least one row."""
        self._few.append(frame)
        self._n_few += frame.height
        self.n_rows += frame.height
        if len(self._few) >= self._room:
            if self._n_few <= AT_ONCE * FEW_ROWS:
                self._joined.append(joined(self._few))
            else:
                self._joined += self._few
            self._few, self._n_few = [], 0
            self._room = AT_ONCE

    def frames(self) -> list[pl.DataFrame]:
        """Return all rows, in few frames."""
        return [*self._joined, *self._few]

    def whole(self) -> pl.DataFrame:
        """Return all rows in one frame; there must be some."""
        whole = joined(self.frames())
        self._joined, self._few, self._n_few = [whole], [], 0
        return whole

    def clear(self) -> None:
        """Forget all frames."""
        self._joined, self._few = [], []
        self._n_few = self.n_rows = 0
        self._room = self._begin
