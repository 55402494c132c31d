"""Instants, durations, default hops and local days: all the time arithmetic that definitions need.

Instants are int64 microseconds since the epoch, UTC; durations are int microseconds.
"""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from importlib import resources
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from unskew.features.errors import DefinitionError, shown

SECOND_US = 1_000_000
MINUTE_US = 60 * SECOND_US
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US

UNITS_US = {
    "w": 7 * DAY_US,
    "d": DAY_US,
    "h": HOUR_US,
    "min": MINUTE_US,
    "m": MINUTE_US,
    "s": SECOND_US,
    "ms": 1_000,
    "us": 1,
}

FIRST_DAY = date(1900, 1, 1)
LAST_DAY = date(2200, 1, 1)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_ONE_DAY = timedelta(days=1)

# Python refuses to read numbers of thousands of digits.
_DURATION = re.compile(r"(?:[0-9]{1,18}(?:w|d|h|min|ms|us|m|s)){1,7}")
_DURATION_PART = re.compile(r"([0-9]+)(w|d|h|min|ms|us|m|s)")

# The longest comes first, so that the first one that fits is the default.
_DEFAULT_HOPS_US = tuple(
    sorted(
        [n * SECOND_US for n in (1, 2, 5, 10, 15, 30)]
        + [n * MINUTE_US for n in (1, 2, 5, 10, 15, 30)]
        + [n * HOUR_US for n in (1, 2, 3, 4, 6, 8, 12)]
        + [DAY_US],
        reverse=True,
    )
)


def duration_us(duration: str | timedelta) -> int:
    """Return the microseconds of ``"30d"``, ``"5min"``, ``"1h30min"`` or a timedelta.

    Units: w, d, h, min (or m), s, ms, us. Raises ``DefinitionError`` for anything else, also for a number without a
    unit, and for a negative duration.
    """
    if isinstance(duration, timedelta):
        n_us = duration // _MICROSECOND
    elif isinstance(duration, str) and _DURATION.fullmatch(text := duration.replace(" ", "")):
        n_us = sum(int(n) * UNITS_US[unit] for n, unit in _DURATION_PART.findall(text))
    else:
        n_us = -1
    if n_us < 0:
        is_negative = isinstance(duration, timedelta) or (isinstance(duration, str) and duration.strip()[:1] == "-")
        if is_negative and (isinstance(duration, timedelta) or _DURATION.fullmatch(duration.replace(" ", "")[1:])):
            said = f"-{format_duration(-n_us)}" if isinstance(duration, timedelta) else duration
            raise DefinitionError(f"{said!r} is negative; write a duration of zero or more")
        if isinstance(duration, (int, float)) and not isinstance(duration, bool):
            raise DefinitionError(
                f"{shown(duration)} has no unit; write a duration as text, for example '30s' or '5min'"
            )
        raise DefinitionError(
            f"{shown(duration)} is not a duration; write a number and a unit, for example 5min, 1h or 30d"
        )
    return n_us


def format_duration(n_us: int) -> str:
    """Return the shortest text that ``duration_us`` reads back: a whole number of the largest unit up to days."""
    if n_us == 0:
        return "0s"
    for unit in ("d", "h", "min", "s", "ms"):
        if n_us % UNITS_US[unit] == 0:
            return f"{n_us // UNITS_US[unit]}{unit}"
    return f"{n_us}us"


def rough_duration(n_us: int) -> str:
    """Return a duration of any length as text for people, in about three digits."""
    for unit, size_us in (("d", DAY_US), ("h", HOUR_US), ("min", MINUTE_US)):
        if n_us >= 2 * size_us:
            return f"{n_us / size_us:,.1f} {unit}"
    return f"{n_us / 1e6:,.1f} s"


def default_hop_us(extent_us: int) -> int | None:
    """Return the longest round hop that divides the window and is at most 1/288 of it, or one second if that is longer.

    Returns None if not even one second divides the window; then the hop must be declared.
    """
    return round_hop_us(extent_us, max(extent_us // 288, SECOND_US))


def round_hop_us(extent_us: int, longest_us: int) -> int | None:
    """Return the longest round hop that divides the window and is at most ``longest_us``; None if there is none.

    The round hops are 1, 2, 5, 10, 15, 30 s, the same in min, 1, 2, 3, 4, 6, 8, 12 h and 1 d.
    """
    return next((hop for hop in _DEFAULT_HOPS_US if hop <= longest_us and extent_us % hop == 0), None)


def instant_us(moment: datetime | str) -> int:
    """Return the microseconds since the epoch of a datetime or ISO 8601 text, which is UTC if it has no offset.

    The result is exact to the microsecond. Raises ``ValueError`` for text that is not ISO 8601.
    """
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - EPOCH) // _MICROSECOND


def moment_of(instant: int) -> datetime:
    """Return an instant in microseconds as a datetime in UTC."""
    return EPOCH + timedelta(microseconds=int(instant))


def format_instant(instant: int | datetime) -> str:
    """Return an instant, in microseconds or as a datetime, as people read it everywhere: RFC 3339 in UTC.

    ``2017-03-26T01:00:00Z``, and ``2017-03-26T01:00:00.000005Z`` if its microseconds are not zero. A datetime without
    an offset is UTC.
    """
    moment = moment_of(instant_us(instant) if isinstance(instant, datetime) else instant)
    return moment.isoformat().replace("+00:00", "Z")


def day_of(instant: int) -> date:
    """Return the day, in UTC, of an instant in microseconds."""
    return EPOCH.date() + timedelta(days=int(instant // DAY_US))


MIN_INSTANT_US = instant_us(FIRST_DAY.isoformat())
MAX_INSTANT_US = instant_us(LAST_DAY.isoformat())


def time_zone(tz: str) -> ZoneInfo:
    """Return the zone of an IANA name, from the installed ``tzdata`` package rather than the machine's own files.

    So two machines with the same lock file agree on every local midnight. Raises ``DefinitionError`` for an unknown
    name.
    """
    *folders, name = tz.split("/") if isinstance(tz, str) else ("",)
    # Only zone files: neither paths out of their folder nor the tables beside them.
    if not all(re.fullmatch(r"[A-Za-z][A-Za-z0-9_+\-]*", part) for part in (*folders, name)):
        raise _no_zone(tz)
    try:
        with resources.files("tzdata").joinpath("zoneinfo", *folders, name).open("rb") as file:
            return ZoneInfo.from_file(file, key=tz)
    except (OSError, ValueError) as error:
        raise _no_zone(tz) from error


def _no_zone(tz: object) -> DefinitionError:
    return DefinitionError(
        f"{tz!r} is not a time zone; use a name of the IANA database, for example Europe/Berlin or UTC"
    )


@lru_cache(maxsize=64)
def day_boundaries(tz: str) -> npt.NDArray[np.int64]:
    """Return the instants at which local days begin, from 1900 to 2200: int64 microseconds, increasing, read-only.

    A day begins at the first instant whose local date is that day or later: at the first of two midnights if clocks go
    back over midnight, at the transition if clocks skip midnight. A day that is skipped completely has no boundary of
    its own, so the instants are strictly increasing. There is one more day at either end, so that every instant between
    MIN_INSTANT_US and MAX_INSTANT_US lies inside.
    """
    zone = time_zone(tz)
    first = FIRST_DAY.toordinal() - 2
    midnight = datetime.fromordinal(first).replace(tzinfo=zone)
    starts_s: list[int] = []
    for _ in range(first, LAST_DAY.toordinal() + 3):
        starts_s.append(int(midnight.timestamp()))
        midnight += _ONE_DAY  # in wall time: the next local midnight, whatever the clocks do
    starts = np.array(starts_s, dtype=np.int64)
    # A midnight can be missing only next to a change of the offset.
    for day in np.flatnonzero(np.diff(starts) * SECOND_US != DAY_US):
        starts[day] = _first_instant_of(first + int(day), zone, int(starts[day]))
    # A day that is skipped completely begins when the next one does.
    boundaries = np.unique(starts) * SECOND_US
    boundaries.flags.writeable = False
    return boundaries


@lru_cache(maxsize=64)
def unit_boundaries(unit: str, tz: str) -> npt.NDArray[np.int64]:
    """Return the instants at which local days, weeks (on Monday), months, quarters or years begin.

    They have the form of ``day_boundaries``. A period begins with its first local day or, if that day was skipped
    completely, with the next one.
    """
    days = day_boundaries(tz)
    if unit == "day":
        return days
    zone = time_zone(tz)
    # The last instant of a day has that day's date, whatever the clocks did at its beginning.
    dates = [datetime.fromtimestamp(int(end // SECOND_US) - 1, zone).date() for end in days[1:]]
    periods = np.array([_PERIODS[unit](each) for each in dates], np.int64)
    begins = np.flatnonzero(np.diff(periods, prepend=periods[0] - 1))
    boundaries = np.concatenate((days[begins], days[-1:]))
    boundaries.flags.writeable = False
    return boundaries


_PERIODS: Mapping[str, Callable[[date], int]] = {
    # The first day of the calendar, year 1, was a Monday.
    "week": lambda day: (day.toordinal() - 1) // 7,
    "month": lambda day: day.year * 12 + day.month,
    "quarter": lambda day: day.year * 4 + (day.month - 1) // 3,
    "year": lambda day: day.year,
}


def _first_instant_of(ordinal: int, zone: ZoneInfo, midnight_s: int) -> int:
    """Return the second from which the local date is ``ordinal`` or later.

    It is the day's midnight or, if clocks skip that, the transition. ``midnight_s``: midnight, read with the offset
    before the transition. Read with the offset after the transition, a missing midnight is earlier, and the transition
    lies between the two.
    """
    before_s = int(datetime.fromordinal(ordinal).replace(tzinfo=zone, fold=1).timestamp()) - 1
    after_s = midnight_s
    while after_s - before_s > 1:
        middle_s = (before_s + after_s) // 2
        if datetime.fromtimestamp(middle_s, zone).toordinal() >= ordinal:
            after_s = middle_s
        else:
            before_s = middle_s
    return after_s
