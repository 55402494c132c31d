"""Work that is divided among processes of this machine: they report progress, and stop together."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

from unskew.pipelines.kafka.consumer import Flag

LOOK_S = 0.2

Part = TypeVar("Part")
Result = TypeVar("Result")
Work = Callable[[Part, Flag, Callable[[int], None]], Result]

# Of a process of the pool: the stop flag, the queue of progress, and the process that began the work.
_shared: list[Any] = []


def side_by_side(
    work: Work[Part, Result], parts: Sequence[Part], look: Callable[[int], None], stop: Flag | None = None
) -> list[Result]:
    """Return what ``work`` returns for each part, in a process of its own.

    ``work``: a function of a module; called with the part, a flag that is set once it should stop, and a function that
    takes the number of events that it has read so far. ``look``: called a few times a second with the sum of these
    numbers. If it raises, or work does, all stop and the error is raised. ``stop``: passed on to all.
    """
    context = multiprocessing.get_context("spawn")
    stopping, queue = context.Event(), context.SimpleQueue()
    done = [0] * len(parts)
    with ProcessPoolExecutor(len(parts), context, _begin, (stopping, queue)) as pool:
        futures = [pool.submit(_work_apart, work, number, part) for number, part in enumerate(parts)]
        try:
            while not all(future.done() for future in futures):
                while not queue.empty():
                    number, n_events = queue.get()
                    done[number] = n_events
                if stop is not None and stop.is_set():
                    stopping.set()
                look(sum(done))
                _wait(futures)
        except BaseException:
            stopping.set()
            raise
        return [future.result() for future in futures]


def has_parent() -> bool:
    """Return whether the process that began the work still lives."""
    return bool(os.getppid() == _shared[2])


def _begin(stopping: Any, queue: Any) -> None:
    # Signals of the terminal reach every process; the first one asks the others to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _shared[:] = [stopping, queue, os.getppid()]


def _work_apart(work: Work[Part, Result], number: int, part: Part) -> Result:
    stopping, queue, _ = _shared
    return work(part, stopping, lambda n_events: queue.put((number, n_events)))


def _wait(futures: Sequence[Future[Any]]) -> None:
    """Wait a little, or until one has failed."""
    try:
        for future in as_completed(futures, timeout=LOOK_S):
            future.result()
    except TimeoutError:
        return
