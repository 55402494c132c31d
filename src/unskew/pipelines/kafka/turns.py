"""When the flow's thread rests: after a round in which no partition had anything.

Bytewax waits between two turns of a partition, and asks for the next turn once the wall clock has passed an instant: if
the wall clock goes back by an hour, the partition waits for an hour. So partitions are always due, and rest here. A
rest ends when a record comes, or when a partition has something to do without one.
"""

import datetime as dt
import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

ALWAYS_DUE = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
"""An instant that every wall clock has passed."""
SHORTEST_S = 0.001
LONGEST_S = 0.1
"""The longest rest, after which the process looks whether it should stop."""
QUIET_SHARE = 0.02
"""Items without records take at most this share of the flow's thread, while all partitions are quiet."""
QUIET_STEP_S = 0.1
LONGEST_QUIET_S = 0.8
"""A quiet partition gives an item at least this often, whatever that takes; its mark is a little older."""
_ROUNDS = 5


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
    item without any. ``quiet_s``: how long a quiet partition should wait between two items, so that those of all take
    no more than ``QUIET_SHARE``: with a thousand shards, five times a second would take all of a core.
    ``processor_s``: the processor time of the flow's thread.
    """

    def __init__(
        self,
        longest_s: float = LONGEST_S,
        rest: Callable[[float], None] = time.sleep,
        processor_s: Callable[[], float] = time.thread_time,
    ) -> None:
        self.round = 0
        self.before_turn: Callable[[], None] = lambda: None
        self.before_rest: Callable[[], bool] = lambda: False
        # In the order in which Bytewax asks them.
        self._taking: dict[object, None] = {}
        self._longest_s = longest_s
        self._rest = rest
        self.quiet_s = 0.0
        self._processor_s = processor_s
        # Of the time since the last rest: when it began, in processor time, how many items without records there were,
        # and whether there were others; and what all partitions' items took in the last rounds that had no others.
        self._began_s = 0.0
        self._n_quiet = 0
        self._gave = False
        self._took_s: deque[float] = deque(maxlen=_ROUNDS)
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
        self._n_quiet += 1
        self._begin_idle()

    def taken(self, partition: object, reader: Awaiting, *, gave: bool, wait_s: float = SHORTEST_S) -> None:
        """Note a turn of a partition; rest if all have had one and gave nothing.

        ``wait_s``: when the partition needs its next turn if no record comes. The last partition rests, because Bytewax
        passes on together what partitions give one after the other, until it begins again with the first.
        """
        if gave:
            self._gave = True
            self._begin_round()
        elif partition in self._idle and self.is_last(partition):
            rest_s = max(self._wait_s, SHORTEST_S)
            # Only one reader at a time can be waited for.
            is_alone = self._readers == {reader}
            self._begin_round()
            self._judge_quiet()
            if self.before_rest():
                rest_s = SHORTEST_S
            if rest_s > SHORTEST_S and is_alone:
                reader.await_records(rest_s)
            else:
                self._rest(SHORTEST_S)
            self._began_s = self._processor_s()
        self._readers.add(reader)
        self._idle.add(partition)
        self._wait_s = min(self._wait_s, wait_s)

    def _judge_quiet(self) -> None:
        """Find how often quiet partitions may give items, from what those since the last rest took.

        Rounds in which few did say little of what one takes. The median leaves out the first two, in which code is
        loaded, and those in which an epoch ends.
        """
        if not self._gave and 2 * self._n_quiet >= len(self._taking):
            took_s = self._processor_s() - self._began_s
            self._took_s.append(took_s * len(self._taking) / self._n_quiet)
            if len(self._took_s) == _ROUNDS:
                wanted_s = statistics.median(self._took_s) / QUIET_SHARE
                # In steps, so that it stays the same while little changes, and all partitions give theirs together.
                self.quiet_s = min(QUIET_STEP_S * math.ceil(wanted_s / QUIET_STEP_S), LONGEST_QUIET_S)
        self._n_quiet, self._gave = 0, False

    def _begin_round(self) -> None:
        self.round += 1
        self._marked.clear()
        self._begin_idle()

    def _begin_idle(self) -> None:
        self._idle.clear()
        self._readers.clear()
        self._wait_s = self._longest_s
