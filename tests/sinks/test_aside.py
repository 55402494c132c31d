import threading
import time
from collections.abc import Callable

import pytest

from unskew.sinks import aside
from unskew.sinks.aside import Aside

WITHIN_S = 60


class Clock:
    """Stands still until it is moved, and then until the thread that looks at it has done what is due."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self._n_looks = 0
        self._looking = threading.Lock()

    def __call__(self) -> float:
        with self._looking:
            self._n_looks += 1
            return self.now_s

    def set(self, now_s: float) -> int:
        """Return how often it was looked at before."""
        with self._looking:
            self.now_s = now_s
            return self._n_looks

    def move(self, seconds: float, done: Callable[[], bool] = lambda: False) -> None:
        """Return once what is due is done and something else waits, or once ``done``."""
        seen = self.set(self.now_s + seconds)
        until_s = time.monotonic() + WITHIN_S
        # The thread looks again only after it has done what it found to be due when it looked first.
        while self._n_looks < seen + 2 and not done():
            assert time.monotonic() < until_s, "nothing waits any more"
            time.sleep(0.0001)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def threads(monkeypatch, clock):
    # The thread waits for so long before it looks at the clock again. There is one, so that its looks can be followed.
    for name, value in {"QUIET_S": 0.01, "LONGEST_WAIT_S": 0.04, "PAUSE_S": 0.004, "N_THREADS": 1}.items():
        monkeypatch.setattr(aside, name, value)
    made = Aside(2.0, clock)
    yield made
    made.close()


class Calls:
    """Notes when each of its calls is made; ``done`` is set once there were ``n``."""

    def __init__(self, n, clock=None) -> None:
        self.n = n
        self.clock = Clock() if clock is None else clock
        self.made_s = []
        self.done = threading.Event()

    def __call__(self) -> None:
        self.made_s.append(self.clock.now_s)
        if len(self.made_s) == self.n:
            self.done.set()


def test_no_call_is_made_while_others_still_come(threads, clock):
    calls = Calls(5, clock)
    for _ in range(4):
        threads.soon(calls)
        clock.move(0.007)
    threads.soon(calls)
    clock.move(0.009)
    assert calls.made_s == []

    clock.set(clock.now_s + 0.002)
    assert calls.done.wait(WITHIN_S)


def test_calls_are_made_also_if_they_never_cease_to_come(threads, clock):
    calls = Calls(1, clock)
    for _ in range(4):
        threads.soon(calls)
        clock.move(0.009)
    assert calls.made_s == []
    threads.soon(calls)

    clock.set(clock.now_s + 0.005)
    assert calls.done.wait(WITHIN_S)


def test_calls_are_spread_over_half_of_the_time_until_the_next_ones(threads, clock):
    first, few, many = Calls(1, clock), Calls(4, clock), Calls(100, clock)
    for calls in (first, few, many):
        began_s = clock.now_s
        for _ in range(calls.n):
            threads.soon(calls)
        while not calls.done.is_set():
            clock.move(0.0001, calls.done.is_set)
        clock.set(began_s + 0.06)

    gaps_s = [after - before for before, after in zip(few.made_s, few.made_s[1:], strict=False)]
    assert gaps_s == pytest.approx([0.004] * 3, abs=0.0003)
    # With the longest pauses it would be 0.4 s.
    assert many.made_s[-1] - began_s == pytest.approx(0.03, abs=0.001)


def test_an_end_is_near_in_the_last_fifth_of_a_short_epoch_and_for_each_table_at_another_time(clock):
    made = Aside(2.0, clock)
    began_s = clock.now_s
    near = [made.near() for _ in range(aside.TURNS + 1)]
    begins: dict[int, float] = {}
    for hundredth in range(201):
        clock.set(began_s + hundredth / 100)
        for number, is_near in enumerate(near):
            if is_near():
                begins.setdefault(number, hundredth)

    assert sorted(begins.values()) == pytest.approx([160, 170, 180, 190, 190], abs=1)
    made.close()


def test_an_end_is_near_again_an_epoch_after_the_first_call_of_the_last_one(threads, clock):
    near = [threads.near() for _ in range(aside.TURNS)]
    clock.set(clock.now_s + 2.5)
    assert all(is_near() for is_near in near)
    threads.soon(Calls(1, clock))
    assert not any(is_near() for is_near in near)
    clock.set(clock.now_s + 1.59)
    assert not any(is_near() for is_near in near)

    clock.set(clock.now_s + 0.02)
    assert [is_near() for is_near in near].count(True) == 1


def test_calls_that_have_not_begun_are_not_made_after_the_end(threads):
    calls = Calls(1)
    threads.soon(calls)
    threads.close()

    assert not any(thread.is_alive() for thread in threads._threads)
    assert calls.made_s == []


def test_calls_of_short_epochs_wait_for_a_part_of_an_epoch_only(monkeypatch):
    for name in ("QUIET_S", "LONGEST_WAIT_S"):
        monkeypatch.setattr(aside, name, 10.0 * WITHIN_S)
    made = Aside(0.2)
    calls = Calls(1)
    made.soon(calls)

    assert calls.done.wait(WITHIN_S)
    made.close()


def test_threads_that_cannot_be_started_leave_their_work_to_those_that_are_there(monkeypatch):
    done, start = threading.Event(), threading.Thread.start
    started = []

    def start_one(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_one)
    made = Aside(0.2)
    made.soon(done.set)

    assert done.wait(WITHIN_S)
    made.close()
    assert len(started) == 1 < aside.N_THREADS
