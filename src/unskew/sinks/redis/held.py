"""Updates that are held back until their shard has reached its mark.

After a crash, a shard repeats steps whose rows it had already sent. If it sent them again step by step, readers would
see values go back. So these rows are gathered, and the last row of each key is sent when the shard is no longer
``behind`` and has reached its mark.
"""

from collections.abc import Mapping

from unskew.features.updates import Updates
from unskew.sinks.redis.batch import Batch
from unskew.sinks.redis.words import Place

ROWS_BEFORE_CONFLATING = 2_000
"""The number of held rows, beyond twice the distinct keys, above which they are reduced to the last per key."""


class Held:
    """Updates of shards that have not yet reached the place they had reached before. Shards: ``view@version/shard``."""

    def __init__(self) -> None:
        self._marks: dict[str, Place] = {}
        self._batches: dict[str, Batch] = {}

    @property
    def n_rows(self) -> int:
        """The number of rows held back; may be read from another thread."""
        return sum(batch.n_rows for batch in list(self._batches.values()))

    def until(self, marks: Mapping[str, Place]) -> None:
        """Hold each of these shards back until it has reached its mark."""
        self._marks |= marks

    def keeps(self, shard: str, updates: Updates) -> bool:
        """Return true, and keep the step, if it must wait; otherwise the shard is never held back again."""
        mark = self._marks.get(shard)
        if updates.behind or (mark is not None and (updates.clock_us, updates.applied) < mark):
            batch = self._batches.setdefault(shard, Batch())
            batch.add(updates)
            if batch.n_rows > ROWS_BEFORE_CONFLATING + 2 * batch.n_distinct:
                batch.conflate()
            return True
        self._marks.pop(shard, None)
        return False

    def holds(self, shard: str, updates: Updates) -> bool:
        """Return true if the shard has not reached its mark, as far as its earlier steps or these updates show."""
        mark = self._marks.get(shard)
        return shard in self._batches or (mark is not None and (updates.clock_us, updates.applied) < mark)

    def release(self, shard: str) -> Batch | None:
        """Return the kept rows of a shard, to be sent before the step that was not kept; None if nothing was kept."""
        return self._batches.pop(shard, None)
