"""A request to stop that signals make."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue

_LOOKS = 50
_BETWEEN_LOOKS_S = 0.001


@contextmanager
def stopping_on_signals(stop: threading.Event) -> Iterator[None]:
    """Set ``stop`` on SIGTERM and SIGINT; ignore them from the end on, when the process exits with a code of its own.

    If the default handlers were restored, a signal that arrives while the interpreter shuts down would still kill a
    process that has done all its work.

    A thread sets ``stop``, not the handler: an ``Event`` takes a lock that is not reentrant, so a handler that
    interrupts whoever waits for the event, or the handler of another signal, would wait for itself. ``put`` of a
    ``SimpleQueue`` is reentrant.
    """
    asked: SimpleQueue[bool] = SimpleQueue()

    def heed() -> None:
        if asked.get():
            stop.set()

    def handle(_number: int, _frame: object) -> None:
        asked.put(True)
        # What is interrupted should find it set, unless it holds the event's lock.
        for _ in range(_LOOKS):
            if stop.is_set():
                return
            time.sleep(_BETWEEN_LOOKS_S)

    heeding = threading.Thread(target=heed, name="unskew-signals", daemon=True)
    heeding.start()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        asked.put(False)
        heeding.join()
