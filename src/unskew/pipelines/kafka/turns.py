"""When the flow's thread rests: after a round in which no partition had anything.

Bytewax waits between two turns of a partition, and asks for the next turn once the wall clock has passed an instant: if
the wall clock goes back by an hour, the partition waits for an hour. So partitions are always due, and rest here.
"""

import datetime as dt
import time
from collections.abc import Callable

ALWAYS_DUE = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
"""An instant that every wall clock has passed."""
_REST_S = 0.001


class Turns:
    """The turns of all partitions of a process since one of them last gave an item."""

    def __init__(self, rest: Callable[[float], None] = time.sleep) -> None:
        self._rest = rest
        self._idle: set[object] = set()

    def taken(self, partition: object, *, gave: bool) -> None:
        """Note a turn of a partition; rest for a millisecond if all have had one and gave nothing."""
        if gave:
            self._idle.clear()
        elif partition in self._idle:
            self._idle.clear()
            self._rest(_REST_S)
        self._idle.add(partition)
