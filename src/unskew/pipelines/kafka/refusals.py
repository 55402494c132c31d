"""Records whose producers' timestamps lie too far past the present: how many there are, and whose clock seems wrong.

One letter is a producer's fault, and is counted. If many records are refused, a clock is wrong. A host that is slow
sees every record of every partition ahead by about the same; a producer that is fast, only its own.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unskew.features.time import format_duration

SHARE = 0.01
"""A larger part of the records that is refused is a fault of a clock."""
NEARLY_ALL = 0.9
WINDOW_S = 10.0

_log = logging.getLogger("unskew.kafka")


@dataclass(slots=True)
class _Seen:
    """Records of one partition in one window of time; ``least_us``, ``most_us``: how far refused ones lay ahead."""

    n: int = 0
    refused: int = 0
    least_us: int = 0
    most_us: int = 0


class Refusals:
    """The records of one stream that were refused because they lie past the present.

    ``stream``: its name. ``max_ahead_us``: how far past the present a record may lie. ``monotonic``: seconds.
    ``reason``: what seems to be wrong, for people; None while less than ``SHARE`` is refused. It may be read from any
    thread.
    """

    def __init__(self, stream: str, max_ahead_us: int, monotonic: Callable[[], float]) -> None:
        self.reason: str | None = None
        self.count = 0
        self._stream = stream
        self._max_ahead_us = max_ahead_us
        self._monotonic = monotonic
        self._window: dict[str, _Seen] = {}
        self._began_s = monotonic()

    def note(
        self, partition: str, stamps_us: npt.NDArray[np.int64], future: npt.NDArray[np.bool_], present_us: int
    ) -> None:
        """Take a poll's records; ``future``: which of them were refused."""
        seen = self._window.setdefault(partition, _Seen())
        seen.n += len(stamps_us)
        if future.any():
            ahead = stamps_us[future] - present_us
            least, most = int(ahead.min()), int(ahead.max())
            seen.least_us = min(seen.least_us, least) if seen.refused else least
            seen.most_us = max(seen.most_us, most)
            seen.refused += len(ahead)
            self.count += len(ahead)
        self.judge()

    def judge(self) -> None:
        """Decide, once a window of time, whether too many records are refused; log when that begins and ends."""
        now_s = self._monotonic()
        if now_s - self._began_s < WINDOW_S or not self._window:
            return
        before, self.reason = self.reason, self._fault()
        if self.reason is not None and before is None:
            _log.warning("%s", self.reason)
        elif self.reason is None and before is not None:
            _log.warning(
                "stream %s: records are no longer refused because their timestamps lie past the present", self._stream
            )
        self._window = {}
        self._began_s = now_s

    def _fault(self) -> str | None:
        seen = self._window
        n, refused = sum(one.n for one in seen.values()), sum(one.refused for one in seen.values())
        if refused <= SHARE * n:
            return None
        ahead = [one for one in seen.values() if one.refused]
        span = f"{min(one.least_us for one in ahead) / 1e6:.1f} to {max(one.most_us for one in ahead) / 1e6:.1f} s"
        if all(one.refused >= NEARLY_ALL * one.n for one in seen.values()):
            whose = "nearly all records of every partition are, so the clock of this host is probably slow: correct it"
        else:
            names = ", ".join(sorted(name for name, one in seen.items() if one.refused))
            whose = (
                f"those are in {names} only, or beside records that are not, so clocks of producers are probably fast: "
                "correct them, or declare a larger max_ahead on the stream"
            )
        return (
            f"stream {self._stream}: {refused} of {n} records were refused in {WINDOW_S:.0f} s, because their producers' "
            f"timestamps lie {span} past this host's present, and max_ahead is {format_duration(self._max_ahead_us)}; {whose}"
        )
