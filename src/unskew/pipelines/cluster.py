"""What Bytewax does not say of a cluster: the error of a process's own operator, and the loss of another process.

Bytewax runs a process's operators in another thread. If one of them raises, the main thread learns only that a thread
died. If another process dies, Bytewax notices it only when it next sends something, which may be never: then it waits
with a busy core. So errors are noted where they leave an operator, and the leases of the other processes are watched.
"""

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any, TypeVar

from unskew.features.errors import Stopped, StoreUnavailable, UnskewError
from unskew.sinks.lease import Members

LOOK_S = 1.0
# Bytewax gets this long to end the flow by itself, which gives leases and connections back.
END_WITHIN_S = 5.0
_SAY_AFTER_S = 10.0

_Part = TypeVar("_Part")

_log = logging.getLogger("unskew.run")


class Failures:
    """The first error that left an operator of this process; None if there was none."""

    def __init__(self) -> None:
        self.first: Exception | None = None

    def noting(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, with its errors noted."""

        @wraps(call)
        def noted(*args: Any, **kwargs: Any) -> Any:
            try:
                return call(*args, **kwargs)
            except StopIteration:
                raise
            except Exception as error:
                self.first = self.first or error
                raise

        return noted

    def of(self, part: _Part, *methods: str) -> _Part:
        """Return the object, with the errors of these methods noted."""
        for method in methods:
            setattr(part, method, self.noting(getattr(part, method)))
        return part

    def of_parts(self, source_or_sink: Any, *methods: str) -> None:
        """Note the errors of building the parts of a source or sink, and those of these methods of each part."""
        build = self.noting(source_or_sink.build_part)
        source_or_sink.build_part = lambda *args: self.of(build(*args), *methods)


def lost(who: str) -> StoreUnavailable:
    """Return the error of a process that cannot go on alone; ``who`` names what it lost."""
    return StoreUnavailable(
        f"{who}, and the processes of a cluster only work together; see why it ended, then start all of them again"
    )


@contextmanager
def watching(
    members: Members,
    addresses: Mapping[int, str],
    connected: threading.Event,
    stop: threading.Event,
    give_up: Callable[[UnskewError], None],
) -> Iterator[None]:
    """While in the body, end this process if another one of the cluster is lost.

    ``addresses``: those of the other processes, by number. ``connected``: set once they have found each other; before,
    they are waited for, without an end unless ``stop`` is set. ``give_up`` is called with the error in a thread of its
    own if the body does not end by itself; it must end the process, because Bytewax's threads cannot be stopped.
    """
    ended = threading.Event()
    signalled = _Signalled()

    def watch() -> None:
        said, until_s = False, time.monotonic() + _SAY_AFTER_S
        while not connected.is_set():
            if ended.wait(LOOK_S):
                return
            if (stop.is_set() or signalled.is_set()) and not ended.wait(END_WITHIN_S) and not connected.is_set():
                give_up(Stopped("it was asked to stop before it had begun"))
            if not said and time.monotonic() >= until_s and (absent := members.absent()):
                said = True
                names = ", ".join(f"process {number} ({addresses[number]})" for number in absent)
                _log.warning("waiting for the other processes of the cluster to start: %s", names)
        members.begin()
        while not ended.wait(LOOK_S):
            number = members.lost()
            if number is not None and not ended.wait(END_WITHIN_S):
                give_up(lost(f"process {number} of the cluster ({addresses[number]}) is gone"))

    thread = threading.Thread(target=watch, name="unskew-cluster", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        signalled.close()


class _Signalled:
    """A flag for a signal that Python handles: set also while Bytewax has the main thread, and no handler runs.

    Created and closed in the main thread; in any other one, it is never set.
    """

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before: int | None = None
        if threading.current_thread() is threading.main_thread():
            self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def is_set(self) -> bool:
        return bool(select.select([self._read], [], [], 0)[0])

    def close(self) -> None:
        if self._before is not None:
            signal.set_wakeup_fd(self._before)
        os.close(self._read)
        os.close(self._write)
