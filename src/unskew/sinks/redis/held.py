"""Updates held back until their shard has come as far as its mark.

After a crash a shard goes again through what it had sent already. If that were sent again, step by step, readers would
see values go back. So it is gathered, and the last row of each key is sent when the shard is no longer ``behind`` and
is as far as its mark.
"""

from collections.abc import Mapping

from unskew.features.updates import Updates
from unskew.sinks.redis.batch import Batch
from unskew.sinks.redis.words import Place

ROWS_BEFORE_CONFLATING = 2_000
"""Held rows beyond this, and beyond twice the distinct keys, are reduced to the last per key."""


class Held:
    """Updates of shards that have not come as far as they were. Shards are named ``view@version/shard``."""

    def __init__(self) -> None:
        self._marks: dict[str, Place] = {}
        self._batches: dict[str, Batch] = {}

    @property
    def n_rows(self) -> int:
        """Rows held back; may be asked for from another thread."""
        return sum(batch.n_rows for batch in list(self._batches.values()))

    def until(self, marks: Mapping[str, Place]) -> None:
        """Hold each of these shards back until it is at its mark."""
        self._marks |= marks

    def keeps(self, shard: str, updates: Updates) -> bool:
        """Whether a step must wait; if so it is kept. If not, the shard is not held back again."""
        mark = self._marks.get(shard)
        if updates.behind or (mark is not None and (updates.clock_us, updates.applied) < mark):
            batch = self._batches.setdefault(shard, Batch())
            batch.add(updates)
            if batch.n_rows > ROWS_BEFORE_CONFLATING + 2 * batch.n_distinct:
                batch.conflate()
            return True
        self._marks.pop(shard, None)
        return False

    def release(self, shard: str) -> Batch | None:
        """Hand over what was kept of a shard, to be sent ahead of the step that was not; None where nothing was."""
        return self._batches.pop(shard, None)
