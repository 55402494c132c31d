from datetime import timedelta

import numpy as np
import pytest

from unskew.features.definitions.vocabulary import Calendar, Lifetime, Session, Sliding, Tumbling
from unskew.features.definitions.windows import MAX_SPAN, old_edge_us, plan_window
from unskew.features.errors import DefinitionError
from unskew.features.time import DAY_US, HOUR_US, instant_us


def test_windows_spelled_differently_are_one_text():
    assert (
        plan_window(Sliding("30d")).text
        == plan_window(Sliding(timedelta(days=30), hop="120min")).text
        == "sliding(30d,hop=2h)"
    )
    assert plan_window(Tumbling("60min")).text == plan_window(Tumbling("1h")).text == "tumbling(1h)"
    assert plan_window(Calendar("day", tz="Europe/Berlin")).text == "calendar(day,Europe/Berlin)"


def test_sliding_window_is_whole_tiles():
    window = plan_window(Sliding("1h", hop="10s"))

    assert (window.hop_us, window.span, window.extent_us) == (10_000_000, 360, HOUR_US)


@pytest.mark.parametrize(
    ("window", "fault"),
    [
        (Sliding("30d", hop="7h"), "hop 7h does not divide the window 30d; choose a divisor, for example 6h"),
        (Sliding("1h", hop="2h"), "hop 2h does not divide the window 1h; choose a divisor, for example 1h"),
        (Sliding("1h", hop="0s"), "hop 0s does not divide the window 1h"),
        (Sliding("0s"), "the window 0s is not between"),
        (Sliding("500000d"), "is not between 1us and 36600d"),
        (
            Sliding("500ms"),
            "no whole second divides the window 500ms; declare a hop that does, for example hop='500ms'",
        ),
        (Sliding("365d", hop="1s"), f"tiles, more than {MAX_SPAN}; choose a hop of"),
        (Sliding("soon"), "'soon' is not a duration"),
        (Tumbling("1h", closed="yes"), "closed='yes' is neither true nor false; write one of them"),
        (Tumbling("0s", closed=True), "the window 0s is not between"),
        (Calendar("fortnight"), "Calendar('fortnight') is not known; units are day, week, month, quarter, year"),
        (Session("30min", hop="7min"), "hop 7min does not divide the window 30min; choose a divisor, for example 5min"),
        (Session("0s"), "the window 0s is not between"),
        (Session("500ms"), "no whole second divides the window 500ms; declare a hop that does"),
        (Calendar("day", tz="Mars/Base"), "'Mars/Base' is not a time zone"),
        (Calendar("day", tz=[]), "[] is not a time zone; use a name of the IANA database"),
        ("30d", "'30d' is not a window; use Sliding, Tumbling, Calendar, Lifetime or Session"),
    ],
)
def test_window_that_cannot_be_is_refused_with_a_remedy(window, fault):
    with pytest.raises(DefinitionError) as caught:
        plan_window(window)

    assert fault in str(caught.value)


def test_suggested_hop_divides_the_window():
    with pytest.raises(DefinitionError) as caught:
        plan_window(Sliding("1000003us", hop="10us"))  # a prime

    suggestion = str(caught.value).rpartition(" ")[2]
    assert (
        plan_window(Sliding("1000003us", hop=suggestion)).span
        * plan_window(Sliding("1000003us", hop=suggestion)).hop_us
        == 1_000_003
    )


def test_widest_span_is_allowed():
    assert plan_window(Sliding(f"{MAX_SPAN}us", hop="1us")).span == MAX_SPAN


def test_old_edge_of_a_sliding_window_moves_in_hops():
    #   0    10   20   30   40  t
    #   |----|----|----|----|
    window = plan_window(Sliding("20us", hop="10us"))
    instants = np.array([0, 9, 10, 29, 30, -1], dtype=np.int64)

    assert old_edge_us(window, instants).tolist() == [-20, -20, -10, 0, 10, -30]


def test_old_edge_of_a_tumbling_window_is_where_the_period_began():
    assert old_edge_us(plan_window(Tumbling("10us")), np.array([0, 9, 10, -1], dtype=np.int64)).tolist() == [
        0,
        0,
        10,
        -10,
    ]


def test_old_edge_of_a_calendar_day_is_local_midnight():
    window = plan_window(Calendar("day", tz="Europe/Berlin"))
    midnight = instant_us("2017-03-25T23:00:00Z")
    instants = np.array([midnight - 1, midnight, midnight + 23 * HOUR_US - 1, midnight + 23 * HOUR_US], dtype=np.int64)

    assert old_edge_us(window, instants).tolist() == [midnight - DAY_US, midnight, midnight, midnight + 23 * HOUR_US]


@pytest.mark.parametrize(
    ("window", "text", "kind", "shape"),
    [
        (Tumbling("1h", closed=True), "tumbling(1h,closed)", "closed", (HOUR_US, 1, HOUR_US)),
        (Tumbling("1h"), "tumbling(1h)", "tumbling", (HOUR_US, 0, HOUR_US)),
        (Session("30min"), "session(30min,hop=5s)", "session", (5_000_000, 360, HOUR_US // 2)),
        (Session("30min", hop="30min"), "session(30min,hop=30min)", "session", (HOUR_US // 2, 1, HOUR_US // 2)),
        (Lifetime(), "lifetime()", "lifetime", (0, 0, 0)),
        (Calendar("week"), "calendar(week,UTC)", "calendar", (7 * DAY_US, 0, 7 * DAY_US)),
        (
            Calendar("month", tz="Asia/Kathmandu"),
            "calendar(month,Asia/Kathmandu)",
            "calendar",
            (30 * DAY_US, 0, 30 * DAY_US),
        ),
        (Calendar("quarter"), "calendar(quarter,UTC)", "calendar", (91 * DAY_US, 0, 91 * DAY_US)),
        (Calendar("year"), "calendar(year,UTC)", "calendar", (365 * DAY_US, 0, 365 * DAY_US)),
    ],
)
def test_every_window_is_whole_tiles_under_one_text(window, text, kind, shape):
    plan = plan_window(window)

    assert (plan.text, plan.kind, (plan.hop_us, plan.span, plan.extent_us)) == (text, kind, shape)


def test_closed_window_covers_the_whole_period_before_the_running_one():
    #   0    10   20   30  t
    #   |----|----|----|
    window = plan_window(Tumbling("10us", closed=True))

    assert old_edge_us(window, np.array([0, 9, 10, 29, -1], dtype=np.int64)).tolist() == [-10, -10, 0, 10, -20]


def test_lifetime_lacks_nothing_before_its_beginning():
    assert old_edge_us(plan_window(Lifetime()), np.array([5, -7], dtype=np.int64)).tolist() == [5, -7]


def test_running_session_began_within_its_gap_at_the_latest():
    window = plan_window(Session("20us", hop="10us"))

    assert old_edge_us(window, np.array([0, 9, 10, 31], dtype=np.int64)).tolist() == [-20, -20, -10, 10]


def test_old_edge_of_a_local_month_is_its_first_midnight():
    window = plan_window(Calendar("month", tz="Europe/Berlin"))
    april = instant_us("2017-03-31T22:00:00Z")
    march = instant_us("2017-02-28T23:00:00Z")

    assert old_edge_us(window, np.array([april - 1, april], dtype=np.int64)).tolist() == [march, april]
