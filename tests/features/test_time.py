from datetime import UTC, date, datetime, timedelta
from functools import cache

import numpy as np
import pytest

from unskew.features.errors import DefinitionError
from unskew.features.time import (
    DAY_US,
    HOUR_US,
    MAX_INSTANT_US,
    MIN_INSTANT_US,
    MINUTE_US,
    SECOND_US,
    day_boundaries,
    default_hop_us,
    duration_us,
    format_duration,
    format_instant,
    instant_us,
    time_zone,
    unit_boundaries,
)


@pytest.mark.parametrize(
    ("text", "expected_us"),
    [
        ("30d", 30 * DAY_US),
        ("1w", 7 * DAY_US),
        ("5min", 5 * MINUTE_US),
        ("5m", 5 * MINUTE_US),
        ("1h30min", 90 * MINUTE_US),
        ("1h 30min", 90 * MINUTE_US),
        ("10s", 10 * SECOND_US),
        ("500ms", 500_000),
        ("7us", 7),
        ("0s", 0),
        (timedelta(hours=2), 2 * HOUR_US),
        (timedelta(microseconds=3), 3),
    ],
)
def test_duration_is_read_in_every_unit(text, expected_us):
    assert duration_us(text) == expected_us


@pytest.mark.parametrize(
    "text", ["", "30", "d", "--1d", "1 fortnight", "1.5h", "1d!", "-", True, None, "1" * 5000 + "d"]
)
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(DefinitionError, match=r"is not a duration; write a number and a unit"):
        duration_us(text)


@pytest.mark.parametrize(
    ("given", "said"), [("-2s", "'-2s'"), ("- 1h30min", "'- 1h30min'"), (timedelta(seconds=-5), "'-5s'")]
)
def test_a_negative_duration_is_called_that(given, said):
    with pytest.raises(DefinitionError, match=f"^{said} is negative; write a duration of zero or more"):
        duration_us(given)


@pytest.mark.parametrize("number", [30, 0, -1, 1.5, 10**400])
def test_a_number_without_a_unit_is_no_duration(number):
    with pytest.raises(DefinitionError, match=r"has no unit; write a duration as text, for example '30s' or '5min'"):
        duration_us(number)


@pytest.mark.parametrize(
    "n_us", [0, 1, 999, 1_000, 1_001, SECOND_US, 90 * SECOND_US, HOUR_US, 36 * HOUR_US, 30 * DAY_US]
)
def test_formatted_duration_is_read_back(n_us):
    assert duration_us(format_duration(n_us)) == n_us


@pytest.mark.parametrize(
    ("extent", "hop"),
    [
        ("1s", "1s"),
        ("10s", "1s"),
        ("5min", "1s"),  # 300 s / 288 = 1.04 s
        ("10min", "2s"),
        ("15min", "2s"),  # 3.1 s
        ("1h", "10s"),  # 12.5 s
        ("3h", "30s"),  # 37.5 s
        ("6h", "1min"),  # 75 s
        ("1d", "5min"),  # 5 min exactly
        ("7d", "30min"),  # 35 min
        ("30d", "2h"),  # 2.5 h
        ("90d", "6h"),  # 7.5 h
        ("365d", "1d"),  # 30.4 h
        ("7s", "1s"),
        ("101min", "20s|15s"),
    ],
)
def test_default_hop_is_the_largest_round_one_of_at_most_a_288th(extent, hop):
    choices = {duration_us(h) for h in hop.split("|")}

    assert default_hop_us(duration_us(extent)) in choices


def test_window_of_half_a_second_has_no_default_hop():
    assert default_hop_us(500_000) is None


def test_instants_are_exact_to_the_microsecond():
    late = datetime(2199, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)

    assert instant_us(late) == MAX_INSTANT_US - 1
    assert format_instant(MAX_INSTANT_US - 1) == "2199-12-31T23:59:59.999999Z"
    assert instant_us("1900-01-01") == MIN_INSTANT_US
    assert instant_us("2017-03-26T03:00:00+02:00") == instant_us("2017-03-26T01:00:00Z")


def days_from(tz: str, day: str, n_days: int) -> tuple[list[str], list[int]]:
    boundaries = day_boundaries(tz)
    first = int(np.searchsorted(boundaries, instant_us(f"{day}T00:00:00Z") - HOUR_US * 13))
    part = boundaries[first : first + n_days + 1]
    return [format_instant(each) for each in part[:-1]], [int(each) // HOUR_US for each in np.diff(part)]


def test_berlin_day_of_spring_has_23_hours_and_of_autumn_25():
    # local 26 March: 00:00 CET |--- 02:00 -> 03:00 ---| 24:00 CEST
    assert days_from("Europe/Berlin", "2017-03-26", 2) == (["2017-03-25T23:00:00Z", "2017-03-26T22:00:00Z"], [23, 24])
    assert days_from("Europe/Berlin", "2017-10-29", 2) == (["2017-10-28T22:00:00Z", "2017-10-29T23:00:00Z"], [25, 24])


def test_day_whose_midnight_is_skipped_begins_at_the_transition():
    # Sao Paulo, 15 October 2017: 23:59:59 -03 | 01:00:00 -02; the transition is at 03:00 UTC.
    assert days_from("America/Sao_Paulo", "2017-10-15", 2) == (
        ["2017-10-15T03:00:00Z", "2017-10-16T02:00:00Z"],
        [23, 24],
    )


def test_day_begins_at_the_transition_also_where_the_gap_began_before_midnight():
    # Toronto, 30 March 1919: 23:30 EST -> 00:30 EDT of the 31st, at 04:30 UTC.
    boundaries = {format_instant(each) for each in day_boundaries("America/Toronto")}

    assert "1919-03-31T04:30:00Z" in boundaries


def test_day_begins_at_the_first_of_two_midnights():
    # Sao Paulo, 19 February 2017: 00:00 -02 goes back to 23:00 -03 of the 18th. Havana: 01:00 goes back to 00:00.
    assert days_from("America/Havana", "2017-11-05", 1) == (["2017-11-05T04:00:00Z"], [25])


def test_day_that_samoa_skipped_is_missing():
    # 29 December 2011 is followed by the 31st.
    starts, hours = days_from("Pacific/Apia", "2011-12-29", 3)

    assert starts == ["2011-12-29T10:00:00Z", "2011-12-30T10:00:00Z", "2011-12-31T10:00:00Z"]
    assert hours == [24, 24, 24]
    assert len(day_boundaries("Pacific/Apia")) == len(day_boundaries("UTC")) - 1


@pytest.mark.parametrize("tz", ["Europe/Berlin", "America/St_Johns", "Pacific/Apia", "Africa/Casablanca"])
def test_every_boundary_is_the_first_second_of_its_local_date(tz):
    zone = time_zone(tz)
    seconds = (day_boundaries(tz)[1:-1] // SECOND_US).tolist()

    assert all(datetime.fromtimestamp(s - 1, zone).date() < datetime.fromtimestamp(s, zone).date() for s in seconds)


def test_boundaries_cover_all_instants_and_cannot_be_written():
    boundaries = day_boundaries("Asia/Tokyo")

    assert boundaries.dtype == np.int64
    assert boundaries[0] <= MIN_INSTANT_US
    assert boundaries[-1] > MAX_INSTANT_US
    assert (np.diff(boundaries) > 0).all()
    with pytest.raises(ValueError, match="read-only"):
        boundaries[0] = 0


@pytest.mark.parametrize(
    "tz", ["Mars/Base", "", "../tzdata", "Europe", "zone1970.tab", "/etc/passwd", None, "tzdata.zi"]
)
def test_unknown_zone_is_refused(tz):
    with pytest.raises(DefinitionError, match="is not a time zone; use a name of the IANA database"):
        day_boundaries(tz)


def first_day_of(unit: str, day: date) -> date:
    match unit:
        case "week":
            return day - timedelta(days=day.weekday())
        case "month":
            return day.replace(day=1)
        case "quarter":
            return day.replace(month=(day.month - 1) // 3 * 3 + 1, day=1)
        case "year":
            return day.replace(month=1, day=1)
    return day


ZONES = ["Europe/Berlin", "Asia/Kathmandu", "Pacific/Apia", "America/St_Johns", "America/Sao_Paulo", "UTC"]
# Apia skips 30 December 2011; St John's clocks change one minute past midnight until then, and at two o'clock after.
YEARS = [(2010, 2012), (2017, 2018)]


@cache
def new_days(tz: str, first: int, past: int) -> tuple[list[tuple[int, date, date]], int, int]:
    """Seconds at which a walk along the clock finds a later date than ever before, that date and the one before it."""
    zone = time_zone(tz)
    begin, end = (int(datetime(year, 6, 1, tzinfo=UTC).timestamp()) for year in (first, past))
    latest = datetime.fromtimestamp(begin, zone).date()
    found = []
    for second in range(begin, end, 900):
        # Clocks change on whole quarters of an hour, and St John's a minute past.
        for at in (second, second + 60):
            if (day := datetime.fromtimestamp(at, zone).date()) > latest:
                found.append((at * SECOND_US, latest, day))
                latest = day
    return found, begin * SECOND_US, (end - 840) * SECOND_US


@pytest.mark.parametrize("tz", ZONES)
@pytest.mark.parametrize("unit", ["day", "week", "month", "quarter", "year"])
@pytest.mark.parametrize(("first", "past"), YEARS)
def test_local_periods_begin_where_a_walk_along_the_clock_finds_a_new_one(unit, tz, first, past):
    days, begin, end = new_days(tz, first, past)
    boundaries = unit_boundaries(unit, tz)

    assert boundaries[(boundaries > begin) & (boundaries <= end)].tolist() == [
        at for at, before, day in days if first_day_of(unit, before) != first_day_of(unit, day)
    ]


@pytest.mark.parametrize(
    ("unit", "instant"),
    [
        ("week", "2011-12-26T10:00:00Z"),
        ("month", "2011-12-31T10:00:00Z"),
        ("quarter", "2011-12-31T10:00:00Z"),
        ("year", "2011-12-31T10:00:00Z"),
    ],
)
def test_periods_around_the_day_that_samoa_skipped(unit, instant):
    # Monday 26 December begins at UTC-10, 1 January at UTC+14.
    assert instant in {format_instant(each) for each in unit_boundaries(unit, "Pacific/Apia")}


@pytest.mark.parametrize("unit", ["week", "month", "quarter", "year"])
def test_boundaries_of_every_unit_cover_all_instants_and_cannot_be_written(unit):
    boundaries = unit_boundaries(unit, "America/St_Johns")

    assert boundaries.dtype == np.int64
    assert boundaries[0] <= MIN_INSTANT_US
    assert boundaries[-1] > MAX_INSTANT_US
    assert (np.diff(boundaries) > 0).all()
    assert np.isin(boundaries, day_boundaries("America/St_Johns")).all()
    with pytest.raises(ValueError, match="read-only"):
        boundaries[0] = 0
