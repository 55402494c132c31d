"""Threads that work while the flow goes on: on what an epoch's end leaves to them, and on what the next one will need.

Those of ``soon`` make durable and publish what is left. That of ``at_once`` encodes what the next end would.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle

N_THREADS = 4
"""The calls wait for the disk most of the time; more threads would take the processor from the flow."""
QUIET_S = 0.25
"""Calls begin once none has come for so long, or for a twentieth of an epoch: its end is over by then, and so is what
Bytewax writes after it.

Otherwise the first tables' calls would hold the interpreter while the flow still asks the other tables.
"""
LONGEST_WAIT_S = 1.0
"""Calls begin so long after the first one, or a fifth of an epoch, also if others still come."""
SOON_S = 1.0
"""What the next epoch's end would encode begins to be encoded so long before it, or a fifth of an epoch."""
TURNS = 4
"""Tables and shards begin with that at as many different times."""
PAUSE_S = 0.1
"""The most that passes between the begin of one call and of the next, so that events are processed in between."""


def never() -> bool:
    """Say that no epoch's end is near, for whoever has no ``Aside``."""
    return False


_log = logging.getLogger("unskew.aside")


class Aside:
    """Calls that other threads make a moment later, in their order, one after the other as far as there is time.

    They all begin before half the time is over after which the next ones are to be expected. A call that raises is
    logged, and the others are still made. ``epoch_s``: the length of an epoch.
    """

    def __init__(self, epoch_s: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._quiet_s = min(QUIET_S, epoch_s / 20)
        self._longest_wait_s = min(LONGEST_WAIT_S, epoch_s / 5)
        self._epoch_s = epoch_s
        self._soon_s = min(SOON_S, epoch_s / 5)
        self._turns = cycle(range(1, TURNS + 1))
        self._changed = threading.Condition()
        self._calls: deque[Callable[[], None]] = deque()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._executor: ThreadPoolExecutor | None = None
        # Whether a thread waits until a call is due. The others need not wake up then.
        self._is_watched = False
        # When the calls of this epoch's end began to come, and the last one came; the time between two such ends; and
        # when the last call was made.
        self._first_s = monotonic()
        self._last_s = self._first_s - self._quiet_s
        self._interval_s = 0.0
        self._made_s = 0.0

    def near(self) -> Callable[[], bool]:
        """Return a function that says whether the next epoch's end is near: what it would encode is better encoded now.

        Each table and shard gets one of its own, so that not all begin together.
        """
        after_s = self._epoch_s - self._soon_s * next(self._turns) / TURNS
        return lambda: self._monotonic() - self._first_s >= after_s

    def soon(self, call: Callable[[], None]) -> None:
        """Let another thread make a call."""
        with self._changed:
            now_s = self._monotonic()
            if now_s - self._last_s >= self._quiet_s:
                self._interval_s = now_s - self._first_s if self._threads else 0.0
                self._first_s = now_s
            self._last_s = now_s
            self._calls.append(call)
            if len(self._calls) == 1:
                self._changed.notify()
            while len(self._threads) < N_THREADS:
                thread = threading.Thread(target=self._work, name="unskew-aside", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    # The host has no memory for it, or allows no more; those that are there do the work.
                    if not self._threads:
                        raise
                    break
                self._threads.append(thread)

    def at_once(self, call: Callable[[], None]) -> None:
        """Let another thread make a call as soon as those before it are made."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, "unskew-ahead")
        self._executor.submit(call)

    def close(self) -> None:
        """Wait for the calls that have begun; the others are not made."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (call := self._next()) is not None:
            try:
                call()
            except BaseException:  # noqa: BLE001 - whatever it is, the other calls must still be made
                _log.exception("what an epoch's end left to a thread failed")

    def _next(self) -> Callable[[], None] | None:
        """Wait until a call is due, and return it; None once there is none to make any more."""
        with self._changed:
            while not self._closed:
                due_s = self._due_s() if self._calls else None
                now_s = self._monotonic()
                if due_s is not None and due_s <= now_s:
                    self._made_s = now_s
                    call = self._calls.popleft()
                    if self._calls:
                        self._changed.notify()
                    return call
                if due_s is None or self._is_watched:
                    self._changed.wait()
                    continue
                self._is_watched = True
                self._changed.wait(due_s - now_s)
                self._is_watched = False
        return None

    def _due_s(self) -> float:
        over_s = min(self._last_s + self._quiet_s, self._first_s + self._longest_wait_s)
        left_s = self._first_s + self._interval_s / 2 - self._made_s
        return max(over_s, self._made_s + min(PAUSE_S, max(left_s, 0.0) / len(self._calls)))
