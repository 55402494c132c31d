"""Texts that nothing stands for any more are forgotten, a piece of work in each step of their shard.

First the entities are looked through and their texts marked, then the texts without a mark are removed. What a state
has of an entity never becomes another's, so an entity that was looked through can only get texts that come in new
events, and these are marked when they come. With millions of texts the whole would stop the shard for seconds.
"""

import numpy as np
import numpy.typing as npt

from unskew.features.kernel.accumulators import mark_texts
from unskew.features.kernel.directory import Directory, remove_rows
from unskew.features.kernel.memory import grown
from unskew.features.kernel.program import Program
from unskew.features.kernel.state import State

_LEAST_AT_ONCE = 1024
"""So much is looked at in each step, and so many times more for each text of its events."""
_FOR_EACH_TEXT = 16


class TextSweep:
    """A sweep of the texts that a directory has now; later ones stay."""

    def __init__(self, texts: Directory, entities: Directory) -> None:
        self.n_new = 0
        """The number of texts that are new since the beginning."""
        self._texts, self._entities = texts, entities
        self._used = np.zeros(texts.capacity, np.bool_)
        self._n_texts, self._n_entities = texts.n_rows, entities.n_rows
        self._entity = self._text = 0
        self._n_in_events = 0

    def keep(self, rows: npt.NDArray[np.int32], n_new: int) -> None:
        """Keep the texts in these rows, which are in events that come; so many of them are new."""
        n_before = len(self._used)
        if self._texts.capacity > n_before:
            # Also of later texts, because entities that are not looked through yet get them too.
            self._used = grown(self._used, self._texts.capacity)
            self._used[n_before:] = False
        self._used[rows] = True
        self._n_in_events += len(rows)
        self.n_new += n_new

    def go_on(self, program: Program, state: State) -> bool:
        """Do a piece of work; return whether it was the last one. No event may be on its way into the state."""
        left = _LEAST_AT_ONCE + _FOR_EACH_TEXT * self._n_in_events
        self._n_in_events = 0
        while self._entity < self._n_entities:
            first, end = self._entity, min(self._entity + left, self._n_entities)
            rows = self._entities.rows(first, end)
            n_marked, n_seen = mark_texts(program, state, rows, left, self._used)
            self._entity = end if n_marked == len(rows) else int(rows[n_marked])
            left -= n_seen + self._entity - first
            if left <= 0:
                return False
        end = min(self._text + left, self._n_texts)
        rows = self._texts.rows(self._text, end)
        remove_rows(self._texts.arrays, rows[~self._used[rows]])
        self._text = end
        return end == self._n_texts

    def finish(self, program: Program, state: State) -> None:
        """Do all the work that is left."""
        while not self.go_on(program, state):
            pass
