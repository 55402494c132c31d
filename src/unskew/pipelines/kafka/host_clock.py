"""The wall clock of this host, as far as it can be trusted.

Marks rest on it, and a mark is never withdrawn. So a wall clock that jumps must not move them. It is watched against
the steady clock, which nobody sets, and against another server's clock at the start::

    wall     ────────────────────┐ jump      the wall clock as it reads
                                 └──────>
    steady   ─────────────────────────────>  the wall clock before the jump, carried on by the steady clock

While the two disagree, one of them is wrong, and the host alone cannot say which. The earlier one is the present of
marks, unless a record's timestamp shows that it is later than that. The later one is the present of refusals: a record
that one of them allows is not refused. The jump is over once the wall clock is back, or once records agree with it.
"""

import logging
from collections.abc import Callable

from unskew.features.time import format_instant
from unskew.sinks.wall import steady_us, wall_us

JUMP_US = 1_000_000
"""A wall clock this far from where the steady clock carries it has jumped."""
_FOLLOWED = 1_000
"""Each is followed by 1 in 1,000: NTP slews by 500 in 1,000,000, a leap second's smear by 12, an oscillator by 100."""
STALLS_US = 5_000_000
"""Bytewax ends epochs by the wall clock. If that has gone back further than this, the flow begins again."""
DISAGREE_US = 5_000_000
"""Two hosts whose clocks differ by more disagree; the answer's way to here is shorter."""
_PREEMPTED_US = 10_000
_READINGS = 5
# Before this, no host that runs this code had its clock set.
_UNSET_US = 1_577_836_800_000_000

_log = logging.getLogger("unskew.clock")


class HostClock:
    """The present for marks and for refusals, microseconds; only the flow's thread calls its methods.

    ``wall_us``, ``steady_us``: the clocks. ``jump_us``: how far the wall clock is ahead of where the steady clock
    carries it; 0 unless it has jumped. ``jumps``: their number. Both may be read from any thread.
    """

    def __init__(self, wall_us: Callable[[], int] = wall_us, steady_us: Callable[[], int] = steady_us) -> None:
        self.wall_us = wall_us
        self._steady_us = steady_us
        self.jump_us = 0
        self.jumps = 0
        wall, steady = self._read()
        # What the steady clock lacks to the trusted present.
        self._offset_us = wall - steady
        self._looked_us = steady
        self._peak_us = wall
        # The latest timestamp of any record, less the steady clock at that moment; the second one since the jump.
        self._record_us: int | None = None
        self._since_jump_us: int | None = None
        if wall < _UNSET_US:
            _log.warning(
                "the clock of this host reads %s: it is not set; marks and refusals will be wrong until it is",
                format_instant(wall),
            )

    def compare(self, other_us: int, whose: str) -> None:
        """Compare the wall clock, once at the start, with that of another server; the two may be one clock."""
        wall, steady = self._read()
        if abs(wall - other_us) > DISAGREE_US:
            self._offset_us = other_us - steady
            self._begin_jump(wall - other_us, f"is {_by(wall - other_us)} the clock of {whose}")

    def look(self) -> tuple[int, int]:
        """Read the clocks; return the wall clock, and the trusted present by the steady clock."""
        wall, steady = self._read()
        self._peak_us = max(self._peak_us, wall)
        passed_us = max(0, steady - self._looked_us)
        self._looked_us = steady
        ahead_us = wall - steady - self._offset_us
        if abs(ahead_us) <= JUMP_US:
            if self.jump_us:
                self._end_jump("is back where its steady clock carries it")
            most_us = passed_us // _FOLLOWED
            self._offset_us += max(-most_us, min(most_us, ahead_us))
        elif not self.jump_us:
            self._begin_jump(ahead_us, f"jumped and is now {_by(ahead_us)} where its steady clock carries it")
        else:
            self.jump_us = ahead_us
            if self._records_agree(wall, steady):
                self._offset_us = wall - steady
                self._end_jump("is confirmed by the timestamps of records")
        return wall, steady + self._offset_us

    def for_marks_us(self) -> int:
        """Return the latest instant that both clocks, or a record's timestamp, show to be past."""
        wall, steady = self.look()
        if not self.jump_us:
            return wall
        earlier, later = min(wall, steady), max(wall, steady)
        shown = earlier if self._record_us is None else self._looked_us + self._record_us
        return min(max(earlier, shown), later)

    def latest_us(self) -> int:
        """Return the latest instant that may be the present."""
        wall, steady = self.look()
        return max(wall, steady) if self.jump_us else wall

    def note_record(self, stamp_us: int, *, fresh: bool) -> None:
        """Take a record's timestamp as evidence. ``fresh``: nothing had been left to read before the record came."""
        shown_us = stamp_us - self._looked_us
        self._record_us = shown_us if self._record_us is None else max(self._record_us, shown_us)
        if fresh and self.jump_us:
            self._since_jump_us = shown_us if self._since_jump_us is None else max(self._since_jump_us, shown_us)

    def note_appended(self, stamp_us: int, seen_us: int) -> None:
        """Take the broker's own timestamp of a record that it appended after this host's clock had read ``seen_us``."""
        if not self.jump_us and seen_us - stamp_us > DISAGREE_US:
            self._offset_us = stamp_us - self._looked_us
            self._begin_jump(seen_us - stamp_us, f"is {_by(seen_us - stamp_us)} the broker's timestamps")

    @property
    def fell_back_us(self) -> int:
        """How far the wall clock has gone back since the flow began, as far as that stalls it; else 0."""
        back_us = self._peak_us - self.wall_us()
        return back_us if back_us > STALLS_US else 0

    def begin_flow(self) -> None:
        """Note that a flow begins, which knows no earlier reading of the wall clock."""
        self._peak_us = self.wall_us()

    def _records_agree(self, wall: int, steady: int) -> bool:
        """Return true if records show that the wall clock, and not the one before the jump, is right.

        No record is from the future, so one from after the middle of the two shows the later one; fresh ones from
        before the middle show the earlier one.
        """
        middle_us = wall - self.jump_us // 2
        if self.jump_us > 0:
            return self._record_us is not None and steady + self._record_us >= middle_us
        return self._since_jump_us is not None and steady + self._since_jump_us < middle_us

    def _begin_jump(self, ahead_us: int, what: str) -> None:
        self.jump_us = ahead_us
        self.jumps += 1
        self._since_jump_us = None
        _log.warning(
            "the clock of this host %s: until they agree, or records show which is right, marks follow the earlier one, and a "
            "record is refused only by the later one; correct the clock that is wrong",
            what,
        )

    def _end_jump(self, what: str) -> None:
        self.jump_us = 0
        self._since_jump_us = None
        _log.warning("the clock of this host %s; marks follow it again", what)

    def _read(self) -> tuple[int, int]:
        """Return both clocks, read at one moment: a thread that loses the processor in between reads them again."""
        for _ in range(_READINGS - 1):
            before_us = self._steady_us()
            wall_us = self.wall_us()
            if self._steady_us() - before_us <= _PREEMPTED_US:
                return wall_us, before_us
        return self.wall_us(), self._steady_us()


def _by(ahead_us: int) -> str:
    return f"{abs(ahead_us) / 1e6:.1f} s {'ahead of' if ahead_us > 0 else 'behind'}"
