"""What status, log and Redis say of late events is what the archive says, after breaking off and going on too."""

import datetime as dt
import threading
from bisect import bisect_left
from zoneinfo import ZoneInfo

import pytest

from tests.support.pipeline import SECOND, Bench, Outcome, history, plan
from unskew.features.errors import UnskewError
from unskew.features.ledger import LateEvents
from unskew.features.plan import ViewPlan
from unskew.features.time import EPOCH
from unskew.features.updates import LATE_BOUNDS_US
from unskew.features.view import ViewWindow
from unskew.monitoring.recount import Recount
from unskew.offline.log_reader import ViewLog
from unskew.pipelines.run import run
from unskew.serving.live import read_live

VIEWS = ["by_user", "by_item"]
RECORDS = history(160, seed=11)
EVERY_ITEM = {"epoch_s": 0.0, "poll_records": 6}


class _BrokenOff(UnskewError):
    """Stands for whatever may end a process in the middle of its work."""


class _After:
    def __init__(self, n: int) -> None:
        self._left = n

    def is_set(self) -> bool:
        self._left -= 1
        if self._left < 0:
            raise _BrokenOff
        return False


def _leaves(window: ViewWindow, effective_us: int) -> int:
    """The first instant at which the window no longer covers an event."""
    if window.kind == "calendar":
        zone = ZoneInfo(window.tz or "UTC")
        local = (EPOCH + dt.timedelta(microseconds=effective_us)).astimezone(zone)
        midnight = dt.datetime.combine(local.date() + dt.timedelta(days=1), dt.time(), zone)
        return round(midnight.timestamp()) * SECOND
    extent = window.extent_us if window.kind == "sliding" else 0
    return (effective_us // window.hop_us + 1) * window.hop_us + extent


def _naive(view: ViewPlan, outcome: Outcome) -> tuple[LateEvents, ...]:
    """The ledger by the words of the definition: every view of the bench has a feature that takes in any event."""
    recount = Recount(view, outcome.archive())
    found = []
    for window in view.windows:
        distances = []
        for key in recount.entities.iter_rows():
            start, stop = recount._spans[key]
            for arrival, effective in zip(
                recount._arrivals[start:stop].tolist(), recount._effectives[start:stop].tolist(), strict=True
            ):
                if arrival >= (left := _leaves(window, effective)):
                    distances.append(arrival - left)
        histogram = [0] * (len(LATE_BOUNDS_US) + 1)
        for distance in distances:
            histogram[bisect_left(LATE_BOUNDS_US, distance)] += 1
        found.append(LateEvents(events=len(distances), worst_us=max(distances, default=0), histogram=tuple(histogram)))
    return tuple(found)


def _check(bench: Bench, outcome: Outcome) -> None:
    live = {one.view.name: one for one in read_live(bench.redis_url, outcome.deployment.prefix, "main")}
    for name in VIEWS:
        view = outcome.plan.views[name]
        expected = _naive(view, outcome)
        assert live[name].ledger.windows == expected
        assert ViewLog(outcome.deployment.log, view.published).stats().ledger.windows == expected
        assert sum(one.events for one in expected) > 5


@pytest.mark.parametrize("n_hashes", [1, 3])
def test_all_say_what_the_archive_says(bench: Bench, n_hashes) -> None:
    outcome = bench.run(bench.produce(RECORDS), n_hashes=n_hashes)

    _check(bench, outcome)
    assert outcome.status is not None
    assert outcome.status.late_by_view == {
        f"{name}@1": sum(window.events for window in _naive(outcome.plan.views[name], outcome)) for name in VIEWS
    }
    assert outcome.status.late == sum(outcome.status.late_by_view.values())


def test_broken_off_and_restarted_no_late_event_is_counted_twice(bench: Bench) -> None:
    topic = bench.produce(RECORDS)
    outcome = Outcome(plan(topic), bench.deployment(**EVERY_ITEM))
    broken = 0
    for n in (4, 8, 14, 24):
        try:
            run(outcome.plan, outcome.deployment, stop=_After(n))  # type: ignore[arg-type]
        except _BrokenOff:
            broken += 1
    run(outcome.plan, outcome.deployment, stop=threading.Event())

    assert broken > 1
    _check(bench, outcome)
