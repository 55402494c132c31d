"""Answers that are given again for a short time, in the memory of one process."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from unskew.serving.clocks import ViewClocks
from unskew.serving.request import Request, Row

MOST_ROWS = 20_000
"""Rows that are kept; the answers that were used least recently go first."""

Keys = Sequence[Sequence[str | None]]


class Read(NamedTuple):
    """The replies that are the rows, what was said of each view, and the instant of reading by this machine's clock."""

    rows: Sequence[Row]
    clocks: Sequence[ViewClocks]
    read_us: int


class Cache:
    """Answers by request and by the keys of all its rows; several threads may use it.

    What was read is given for ``age_s`` seconds from when its read *began*, so nothing in it is older than that. It
    stays the answer of its own instant: ``read_us``, status and ``as_of`` are those of then. Values are made anew from
    the replies, so nobody who changes an answer changes another one.
    """

    def __init__(self, age_s: float, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self.now_s = now_s
        self._age_s = age_s
        self._reads: OrderedDict[tuple[Request, Keys], tuple[float, int, Read]] = OrderedDict()
        self._n_rows = 0
        self._lock = threading.Lock()

    def get(self, request: Request, keys: Keys) -> Read | None:
        """Return what was read for these; None if nothing was, or too long ago."""
        place = _place(request, keys)
        with self._lock:
            found = self._reads.get(place)
            if found is None:
                return None
            if self.now_s() - found[0] > self._age_s:
                self._remove(place)
                return None
            self._reads.move_to_end(place)
            return found[2]

    def put(self, request: Request, keys: Keys, began_s: float, read: Read) -> None:
        """Keep what was read. ``began_s``: by ``now_s``, before anything was sent."""
        n_rows = max(1, sum(map(len, keys)))
        if n_rows > MOST_ROWS:
            return
        place = _place(request, keys)
        with self._lock:
            if place in self._reads:
                self._remove(place)
            self._reads[place] = began_s, n_rows, read
            self._n_rows += n_rows
            while self._n_rows > MOST_ROWS:
                self._remove(next(iter(self._reads)))

    def _remove(self, place: tuple[Request, Keys]) -> None:
        self._n_rows -= self._reads.pop(place)[1]


def _place(request: Request, keys: Keys) -> tuple[Request, Keys]:
    return request, tuple(map(tuple, keys))
