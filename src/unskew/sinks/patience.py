"""Retries while a store is away: the flow pauses, tries again after growing random pauses, and logs this once."""

import logging
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from unskew.features.errors import StoreUnavailable

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 5.0
GRACE_S = 5.0
"""How long a process goes on trying after it was asked to stop."""
_SLICE_S = 0.1

_Result = TypeVar("_Result")
_log = logging.getLogger("unskew.patience")


class Flag(Protocol):
    """A stop signal, for example ``threading.Event``."""

    def is_set(self) -> bool: ...


class Patience:
    """Repetition of an action until the store does it, in the caller's thread, which therefore accepts no more work.

    ``store``: the store's name, for log lines and metrics. ``stop``: once it is set, tries go on for ``grace_s`` at
    most, and then the store's error is raised. Between two tries is a random pause up to a bound that doubles from
    50 ms to 5 s ("full jitter", M. Brooker, "Exponential Backoff And Jitter", AWS 2015). One line is logged when the
    store goes away, and one when it is back. ``still_ours``: raises if another process has taken over; it is called
    before each further try.
    """

    def __init__(
        self, store: str, stop: Flag, *, grace_s: float = GRACE_S, still_ours: Callable[[], None] = lambda: None
    ) -> None:
        self.store = store
        self._still_ours = still_ours
        self.retries = 0
        self._stop = stop
        self._grace_s = grace_s
        self._away_since_s: float | None = None
        self._stopped_at_s: float | None = None
        self._try_began_s = 0.0

    @property
    def away_s(self) -> float:
        """The number of seconds for which the store has been away; 0.0 while it is there."""
        since_s = self._away_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def until_done(self, action: Callable[[], _Result]) -> _Result:
        """Return the action's result after as many tries as needed.

        ``action`` raises ``StoreUnavailable`` if it fails, and can be repeated after that.
        """
        self._try_began_s = time.monotonic()
        try:
            result = action()
        except StoreUnavailable as error:
            if self._used_up():
                raise
            result = self._again(action, error)
        return result

    def _again(self, action: Callable[[], _Result], error: StoreUnavailable) -> _Result:
        began_s = self._away_since_s = time.monotonic()
        before = self.retries
        self._stopped_at_s = None
        why = str(error).removeprefix(f"{self.store}: ")
        _log.warning("%s is away: %s; the flow waits and tries again", self.store, why)
        retrying = Retrying(
            retry=retry_if_exception_type(StoreUnavailable),
            wait=wait_random_exponential(multiplier=FIRST_PAUSE_S, max=LONGEST_PAUSE_S),
            stop=self._gives_up,
            before=self._count,
            sleep=self._sleep,
            reraise=True,
        )
        self._sleep(FIRST_PAUSE_S)
        try:
            result = retrying(action)
        finally:
            self._away_since_s = None
        _log.warning(
            "%s is back after %.1f s and %d tries; going on",
            self.store,
            time.monotonic() - began_s,
            self.retries - before,
        )
        return result

    def _count(self, _state: RetryCallState) -> None:
        # The store may seem away because of what a process that has taken over did to it.
        self._still_ours()
        self.retries += 1
        self._try_began_s = time.monotonic()

    def _gives_up(self, _state: RetryCallState) -> bool:
        if not self._stop.is_set():
            return False
        if self._stopped_at_s is None:
            self._stopped_at_s = time.monotonic()
        return self._used_up() or time.monotonic() - self._stopped_at_s >= self._grace_s

    def _used_up(self) -> bool:
        """Return true if the process should stop, and the last try alone took longer than tries may go on then."""
        return self._stop.is_set() and time.monotonic() - self._try_began_s >= self._grace_s

    def _sleep(self, seconds: float) -> None:
        # The stop signal ends the pause; after it, pauses are short.
        until_s = time.monotonic() + (min(seconds, _SLICE_S) if self._stop.is_set() else seconds)
        while (left_s := until_s - time.monotonic()) > 0:
            time.sleep(min(left_s, _SLICE_S))
            if self._stop.is_set():
                return
