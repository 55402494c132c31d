"""Threads that publish tables while the flow goes on."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

N_THREADS = 4
"""Publishing waits for the disk most of the time; more threads would take the processor from the flow."""


class Aside:
    """Calls that other threads make soon. A call must not raise."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(N_THREADS, "unskew-publish")

    def soon(self, call: Callable[[], None]) -> None:
        """Let another thread make a call."""
        self._threads.submit(call)

    def close(self) -> None:
        """Wait for the calls that have begun; the others are not made."""
        self._threads.shutdown(cancel_futures=True)
