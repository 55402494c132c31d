"""Windows of the recount: what each covers at an instant, and when an event enters and leaves it.

It reads only what the author wrote: kind, extent, hop, unit and time zone. Python computes local dates.
"""

import datetime as dt
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from unskew.features.view import ViewWindow

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND = dt.timedelta(microseconds=1)
_HOUR_US = 3_600_000_000

# The longest duration of a local date: 24 h, a clock shift, and a zone that moved across the date line.
_LONGEST_DAY_US = 75 * _HOUR_US
# Clocks go back over a midnight by at most _BACK_US, and show a time past it for at least _SHOWN_US before that.
_BACK_US = 3 * _HOUR_US
_SHOWN_US = 30_000_000


def oldest_us(window: ViewWindow, t_us: int) -> int | None:
    """Return the earliest effective time that the window covers at ``t_us``; None for a lifetime or a session."""
    match window.kind:
        case "sliding":
            return t_us // window.hop_us * window.hop_us - window.extent_us
        case "tumbling":
            return t_us // window.extent_us * window.extent_us
        case "closed":
            return t_us // window.extent_us * window.extent_us - window.extent_us
        case "calendar":
            first = _first_date(_last_date(t_us, window), window.unit)
            return _date_passes(first - dt.timedelta(days=1), window.tz)
        case "lifetime" | "session":
            return None


def first_known_us(window: ViewWindow, known_us: int) -> int | None:
    """Return the first instant at which the window covers nothing from before ``known_us``; None for a lifetime.

    A running session has no such instant of its own: see ``Recount.quiet_from``.
    """
    if window.kind in {"lifetime", "session"}:
        return None
    # The old edge never moves back, and passes every instant within two periods, which for a calendar are nominal.
    low, high = known_us - 1, known_us + 3 * (window.extent_us + window.hop_us)
    while high - low > 1:
        middle = (low + high) // 2
        edge = oldest_us(window, middle)
        low, high = (low, middle) if edge is not None and edge >= known_us else (middle, high)
    return high


def covers(window: ViewWindow, t_us: int) -> Callable[[int], bool]:
    """Return a test whether the window (not a session) covers an effective time of at most ``t_us`` at ``t_us``."""
    match window.kind:
        case "closed":
            running = t_us // window.extent_us * window.extent_us
            return lambda effective: running - window.extent_us <= effective < running
        case "lifetime":
            return lambda _effective: True
        case _:
            edge = oldest_us(window, t_us)
            assert edge is not None
            return lambda effective: effective >= edge


def edges(window: ViewWindow, effective_us: int) -> list[int]:
    """Return when time alone moves an event into or out of the window, ascending; for sessions see ``Sitting``."""
    match window.kind:
        case "sliding":
            return [(effective_us // window.hop_us + 1) * window.hop_us + window.extent_us]
        case "tumbling":
            return [(effective_us // window.extent_us + 1) * window.extent_us]
        case "closed":
            period = effective_us // window.extent_us
            return [(period + 1) * window.extent_us, (period + 2) * window.extent_us]
        case "calendar":
            return [_date_passes(_last_date(effective_us, window), window.tz)]
        case "lifetime" | "session":
            return []


def all_edges(window: ViewWindow, effectives: npt.NDArray[np.int64]) -> set[int]:
    """Return the edges of several events, which are ascending."""
    # Events of one period leave together, and one entity may have a million of them.
    match window.kind:
        case "lifetime" | "session":
            return set()
        case "calendar":
            found: list[int] = []
            for effective in effectives.tolist():
                # Finding a local date is slow.
                if not found or effective >= found[-1]:
                    found += edges(window, effective)
            return set(found)
        case kind:
            period_us = window.hop_us if kind == "sliding" else window.extent_us
            numbers = distinct(effectives // period_us).tolist()
            return {edge for number in numbers for edge in edges(window, number * period_us)}


def distinct(ascending: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return ascending numbers without repeats."""
    return ascending[np.diff(ascending, prepend=ascending[:1] - 1) > 0]


def hops(window: ViewWindow, effectives: Iterable[int]) -> list[int]:
    """Return every hop at which an event of a sliding window ages, including the hop at which it leaves; ascending."""
    found: list[int] = []
    for number in sorted({effective // window.hop_us for effective in effectives}):
        leaves = number + 1 + window.extent_us // window.hop_us
        first = max(number + 1, found[-1] + 1) if found else number + 1
        found += range(first, leaves + 1)
    return [number * window.hop_us for number in found]


@dataclass
class Sitting:
    """One session: the events that joined it, in order of arrival, as (row, arrival, number of the hop)."""

    window: ViewWindow
    joined: list[tuple[int, int, int]] = field(default_factory=list)

    def over_us(self, t_us: int | None = None) -> int:
        """Return when the session ends: as known at ``t_us``, or finally."""
        latest = max(number for _, arrival, number in self.joined if t_us is None or arrival <= t_us)
        return (latest + 1) * self.window.hop_us + self.window.extent_us

    def rows(self, t_us: int | None = None) -> list[int]:
        """Return the rows that had joined by ``t_us``, or all rows; none if the session was over then."""
        if t_us is not None and t_us >= self.over_us(t_us):
            return []
        return [row for row, arrival, _ in self.joined if t_us is None or arrival <= t_us]


def sittings(window: ViewWindow, events: Iterable[tuple[int, int, int]]) -> list[Sitting]:
    """Return all sessions of one entity, in order.

    ``events``: (row, arrival, effective) of the events that enter some feature of the window, in (arrival, partition,
    offset) order. A late event joins no session.
    """
    found: list[Sitting] = []
    running: Sitting | None = None
    first = over_us = 0
    for row, arrival, effective in events:
        number = effective // window.hop_us
        if running is not None and arrival >= over_us:
            running = None
        if running is None:
            if (number + 1) * window.hop_us + window.extent_us <= arrival:
                continue
            running, first = Sitting(window), number
            found.append(running)
        elif number < first - window.extent_us // window.hop_us:
            continue
        running.joined.append((row, arrival, number))
        first, over_us = min(first, number), running.over_us()
    return found


def instant(t_us: int) -> dt.datetime:
    """Return the instant as Polars gives it."""
    return EPOCH + dt.timedelta(microseconds=t_us)


def micros(moment: dt.datetime) -> int:
    """Return microseconds since the epoch."""
    return (moment - EPOCH) // _MICROSECOND


def _local_date(t_us: int, tz: str | None) -> dt.date:
    return instant(t_us).astimezone(_zone(tz or "UTC")).date()


def _last_date(t_us: int, window: ViewWindow) -> dt.date:
    """Return the last date of the local period that runs at ``t_us``."""
    last = _last_of(_local_date(t_us, window.tz), window.unit)
    # If clocks went back over midnight, the period that began at the first midnight continues.
    return _last_of(last + dt.timedelta(days=1), window.unit) if _date_passes(last, window.tz) <= t_us else last


def _last_of(date: dt.date, unit: str | None) -> dt.date:
    """Return the last date of the day, week, month, quarter or year that contains ``date``."""
    match unit:
        case "week":
            return date + dt.timedelta(days=6 - date.weekday())
        case "month":
            following = date.replace(day=28) + dt.timedelta(days=4)
            return following - dt.timedelta(days=following.day)
        case "quarter":
            return _last_of(date.replace(day=1, month=(date.month + 2) // 3 * 3), "month")
        case "year":
            return date.replace(month=12, day=31)
        case _:
            return date


def _first_date(date: dt.date, unit: str | None) -> dt.date:
    """Return the first date of the day, week, month, quarter or year that contains ``date``."""
    match unit:
        case "week":
            return date - dt.timedelta(days=date.weekday())
        case "month":
            return date.replace(day=1)
        case "quarter":
            return date.replace(day=1, month=(date.month - 1) // 3 * 3 + 1)
        case "year":
            return date.replace(day=1, month=1)
        case _:
            return date


@lru_cache(maxsize=64)
def _zone(tz: str) -> ZoneInfo:
    """Read the zone from the ``tzdata`` package, as definitions promise, and not from the machine's files."""
    with resources.files("tzdata").joinpath("zoneinfo", *tz.split("/")).open("rb") as file:
        return ZoneInfo.from_file(file, key=tz)


@lru_cache(maxsize=65536)
def _date_passes(date: dt.date, tz: str | None) -> int:
    """Return the first instant whose local date is past ``date``, by bisection, without relying on any UTC offset."""
    noon = micros(dt.datetime(date.year, date.month, date.day, 12, tzinfo=dt.UTC))
    found = _halved(noon - _LONGEST_DAY_US, noon + _LONGEST_DAY_US, date, tz)
    # If clocks went back over midnight, this may be the second of two midnights.
    for earlier in range(found - _BACK_US, found, _SHOWN_US):
        if _local_date(earlier, tz) > date:
            return _halved(earlier - _SHOWN_US, earlier, date, tz)
    return found


def _halved(low: int, high: int, date: dt.date, tz: str | None) -> int:
    """Return the instant in (``low``, ``high``] at which the local date moves past ``date``."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _local_date(middle, tz) > date else (middle, high)
    return high
