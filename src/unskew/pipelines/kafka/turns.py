"""When the flow's thread rests: after a round in which no partition had anything.

Bytewax waits between two turns of a partition, and asks for the next turn once the wall clock has passed an instant: if
the wall clock goes back by an hour, the partition waits for an hour. So partitions are always due, and rest here. A
rest ends when a record comes, or when a partition has something to do without one.
"""

import datetime as dt
import time
from collections.abc import Callable
from typing import Protocol

ALWAYS_DUE = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
"""An instant that every wall clock has passed."""
SHORTEST_S = 0.001
LONGEST_S = 0.1
"""The longest rest, after which the process looks whether it should stop."""


class Awaiting(Protocol):
    """A reader that can wait for its next record."""

    def await_records(self, timeout_s: float) -> None: ...


class Turns:
    """The turns of all partitions of a process since one of them last gave an item.

    ``longest_s``: the longest rest. A process to which others send items must look for them every millisecond, because
    only its own records end a rest. ``before_turn``: called before each turn, when the items of earlier turns have
    passed through the flow. ``before_rest``: called before each rest, because what waits for more to come should not
    wait for that; it returns true if something must be looked at soon, so that the rest is short. ``round``: the number
    of the present round; it grows with each rest, with each item that has records, and when a partition gives another
    item without any.
    """

    def __init__(self, longest_s: float = LONGEST_S, rest: Callable[[float], None] = time.sleep) -> None:
        self.round = 0
        self.before_turn: Callable[[], None] = lambda: None
        self.before_rest: Callable[[], bool] = lambda: False
        # In the order in which Bytewax asks them.
        self._taking: dict[object, None] = {}
        self._longest_s = longest_s
        self._rest = rest
        self._idle: set[object] = set()
        self._marked: set[object] = set()
        self._readers: set[Awaiting] = set()
        self._wait_s = longest_s

    @property
    def come(self) -> bool:
        """Whether any partition of the process still takes turns."""
        return bool(self._taking)

    def is_last(self, partition: object) -> bool:
        """Return true if Bytewax begins again with the first partition after this one's turn."""
        return partition is next(reversed(self._taking), None)

    def begin(self, partition: object) -> None:
        """Note that a partition's turn begins."""
        self._taking[partition] = None
        self.before_turn()

    def left(self, partition: object) -> None:
        """Note that a partition takes no more turns."""
        self._taking.pop(partition, None)

    def marked(self, partition: object) -> None:
        """Note a turn in which a partition gave an item without records.

        All quiet partitions give theirs in one round: that one of them did is no reason to look for records again.
        """
        if partition in self._marked:
            self._begin_round()
        self._marked.add(partition)
        self._begin_idle()

    def taken(self, partition: object, reader: Awaiting, *, gave: bool, wait_s: float = SHORTEST_S) -> None:
        """Note a turn of a partition; rest if all have had one and gave nothing.

        ``wait_s``: when the partition needs its next turn if no record comes. The last partition rests, because Bytewax
        passes on together what partitions give one after the other, until it begins again with the first.
        """
        if gave:
            self._begin_round()
        elif partition in self._idle and self.is_last(partition):
            rest_s = max(self._wait_s, SHORTEST_S)
            # Only one reader at a time can be waited for.
            is_alone = self._readers == {reader}
            self._begin_round()
            if self.before_rest():
                rest_s = SHORTEST_S
            if rest_s > SHORTEST_S and is_alone:
                reader.await_records(rest_s)
            else:
                self._rest(SHORTEST_S)
        self._readers.add(reader)
        self._idle.add(partition)
        self._wait_s = min(self._wait_s, wait_s)

    def _begin_round(self) -> None:
        self.round += 1
        self._marked.clear()
        self._begin_idle()

    def _begin_idle(self) -> None:
        self._idle.clear()
        self._readers.clear()
        self._wait_s = self._longest_s
