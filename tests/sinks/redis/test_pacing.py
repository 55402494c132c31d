"""Batches are sent one after the other, none overtakes another, and a failed one is sent again first."""

import threading

import pytest

from tests.support.flows import VIEW, step
from unskew.sinks.redis.batch import Batch
from unskew.sinks.redis.pacing import CLOCKS_INTERVAL_US, LEAST_ROWS_ASIDE, MOST_ROWS_WAITING, Pacing

MANY = [f"k{number}" for number in range(LEAST_ROWS_ASIDE)]
SECOND = 1_000_000


class Wire:
    """Takes batches when it is let; notes the clock of each, and the thread that brought it."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.fails = False
        self.brought: list[int] = []
        self.threads: list[str] = []

    def bring(self, batch: Batch, now_us: int) -> None:  # noqa: ARG002
        assert self.open.wait(60)
        if self.fails:
            raise OSError("cable pulled")
        [place] = batch.places.values()
        self.brought.append(place.clock_us)
        self.threads.append(threading.current_thread().name)


@pytest.fixture
def wire():
    return Wire()


@pytest.fixture
def pacing(wire):
    made = Pacing(wire.bring)
    yield made
    wire.open.set()
    made.close()


def test_few_rows_go_in_the_callers_thread_and_many_in_another(pacing, wire):
    pacing.gathered.add(step(1, 1, ["a"]))
    assert pacing.flush_if_due(0)
    pacing.gathered.add(step(2, 1, MANY))
    assert pacing.flush_if_due(2 * SECOND)
    pacing.flush(2 * SECOND)

    assert wire.brought == [1, 2]
    assert wire.threads[0] == threading.current_thread().name != wire.threads[1]
    assert pacing.n_waiting == 0


def test_while_one_is_on_its_way_no_other_begins_and_all_that_waits_is_counted(pacing, wire):
    wire.open.clear()
    pacing.gathered.add(step(1, 1, MANY))
    assert pacing.flush_if_due(0)
    pacing.gathered.add(step(2, 1, ["a"]))

    assert not pacing.flush_if_due(60 * SECOND)
    assert pacing.n_waiting == len(MANY) + 1
    wire.open.set()
    pacing.flush(60 * SECOND)

    assert wire.brought == [1, 2]


def test_with_very_many_rows_the_one_on_its_way_is_awaited(pacing, wire):
    wire.open.clear()
    pacing.gathered.add(step(1, 1, MANY))
    pacing.flush_if_due(0)
    while pacing.n_waiting < MOST_ROWS_WAITING:
        pacing.gathered.add(step(2, 1, MANY * 50))
    threading.Timer(0.05, wire.open.set).start()

    assert pacing.flush_if_due(1)
    pacing.flush(1)

    assert wire.brought == [1, 2]


def test_what_failed_waits_again_before_what_came_since(pacing, wire):
    wire.fails = True
    pacing.gathered.add(step(1, 1, MANY))
    assert pacing.flush_if_due(0)
    pacing.gathered.add(step(2, 7, ["k0"]))

    with pytest.raises(OSError, match="cable pulled"):
        pacing.flush(1)
    assert pacing.n_waiting == len(MANY) + 1
    first, second = [step.frame() for step in pacing.gathered.rows[VIEW.id]]
    assert (first.height, second["n"].to_list()) == (len(MANY), [7])
    wire.fails = False
    assert pacing.flush_if_due(1), "due at once after a failure"
    pacing.flush(1)

    assert wire.brought == [2]


def test_a_failure_in_the_callers_thread_forgets_nothing(pacing, wire):
    wire.fails = True
    pacing.gathered.add(step(1, 1, ["a"]))
    with pytest.raises(OSError, match="cable pulled"):
        pacing.flush(0)
    wire.fails = False

    pacing.flush(0)

    assert wire.brought == [1]


def test_clocks_without_rows_go_together_or_when_the_flow_rests(pacing, wire):
    def flushes(at_us, keys, *, resting=False):
        # A clock as late as this one lets every flush begin that need not wait for others.
        pacing.gathered.add(step(at_us, 1, keys))
        return pacing.flush_if_due(at_us, resting=resting)

    assert flushes(0, ["a"])
    assert not flushes(CLOCKS_INTERVAL_US - 1, [])
    assert flushes(CLOCKS_INTERVAL_US, [])
    assert not flushes(CLOCKS_INTERVAL_US + 1, [])
    assert flushes(CLOCKS_INTERVAL_US + 2, [], resting=True)
    assert not flushes(CLOCKS_INTERVAL_US + 3, [])
    assert flushes(CLOCKS_INTERVAL_US + 4, ["a"])

    assert wire.brought == [0, CLOCKS_INTERVAL_US, CLOCKS_INTERVAL_US + 2, CLOCKS_INTERVAL_US + 4]
