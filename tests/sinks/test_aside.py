import threading
import time

import pytest

from unskew.sinks import aside
from unskew.sinks.aside import Aside


@pytest.fixture
def threads(monkeypatch):
    for name, seconds in {"QUIET_S": 0.1, "LONGEST_WAIT_S": 0.4, "PAUSE_S": 0.04}.items():
        monkeypatch.setattr(aside, name, seconds)
    made = Aside(2.0)
    yield made
    made.close()


class Calls:
    """Notes when each of its calls is made; ``done`` is set once there were ``n``."""

    def __init__(self, n) -> None:
        self.n = n
        self.made_s = []
        self.done = threading.Event()

    def __call__(self) -> None:
        self.made_s.append(time.monotonic())
        if len(self.made_s) == self.n:
            self.done.set()


def test_no_call_is_made_while_others_still_come(threads):
    calls = Calls(5)
    for _ in range(5):
        threads.soon(calls)
        last_s = time.monotonic()
        time.sleep(0.02)
    assert calls.done.wait(5)

    assert min(calls.made_s) >= last_s + 0.1


def test_calls_are_made_also_if_they_never_cease_to_come(threads):
    calls = Calls(1)
    for _ in range(500):
        threads.soon(calls)
        if calls.done.wait(0.02):
            break

    assert calls.done.is_set()


def test_calls_are_spread_over_half_of_the_time_until_the_next_ones(threads):
    threads.soon(lambda: None)
    time.sleep(0.6)
    few, many = Calls(4), Calls(100)
    for _ in range(4):
        threads.soon(few)
    assert few.done.wait(5)
    time.sleep(0.6)
    for _ in range(100):
        threads.soon(many)
    began_s = time.monotonic()
    assert many.done.wait(5)

    gaps_s = [after - before for before, after in zip(few.made_s, few.made_s[1:], strict=False)]
    assert min(gaps_s) >= 0.03
    # With the longest pauses it would be 4 s.
    assert many.made_s[-1] - began_s < 2


def test_calls_that_have_not_begun_are_not_made_after_the_end(threads):
    calls = Calls(1)
    threads.soon(calls)
    threads.close()
    time.sleep(0.2)

    assert calls.made_s == []


def test_calls_of_short_epochs_wait_for_a_part_of_an_epoch_only(monkeypatch):
    for name in ("QUIET_S", "LONGEST_WAIT_S"):
        monkeypatch.setattr(aside, name, 60.0)
    made = Aside(0.2)
    calls = Calls(1)
    made.soon(calls)

    assert calls.done.wait(10)
    made.close()


def test_threads_that_cannot_be_started_leave_their_work_to_those_that_are_there(threads, monkeypatch):
    made, start = threading.Event(), threading.Thread.start

    def start_one(thread: threading.Thread) -> None:
        if any(other.name == "unskew-aside" for other in threading.enumerate()):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_one)
    threads.soon(made.set)

    assert made.wait(10)
    threads.close()
