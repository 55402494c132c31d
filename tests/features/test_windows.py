from datetime import timedelta

import numpy as np
import pytest

from unskew.features.definitions import Calendar, Sliding, Tumbling
from unskew.features.errors import DefinitionError
from unskew.features.time import DAY_US, HOUR_US, instant_us
from unskew.features.windows import MAX_SPAN, old_edge_us, plan_window


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
        (Sliding("soon"), "'soon' is no duration"),
        (Tumbling("1h", closed=True), "Tumbling covers the running period; leave closed out"),
        (Calendar("week"), "Calendar covers the running local 'day'"),
        (Calendar("day", tz="Mars/Base"), "'Mars/Base' is no time zone"),
        ("30d", "'30d' is no window; use Sliding, Tumbling or Calendar"),
    ],
)
def test_window_that_cannot_be_is_refused_with_a_remedy(window, fault):
    with pytest.raises(DefinitionError) as caught:
        plan_window(window)

    assert fault in str(caught.value)


def test_suggested_hop_divides_the_window():
    with pytest.raises(DefinitionError) as caught:
        plan_window(Sliding(1_000_003, hop=10))  # a prime

    suggestion = str(caught.value).rpartition(" ")[2]
    assert (
        plan_window(Sliding(1_000_003, hop=suggestion)).span * plan_window(Sliding(1_000_003, hop=suggestion)).hop_us
        == 1_000_003
    )


def test_widest_span_is_allowed():
    assert plan_window(Sliding(MAX_SPAN, hop=1)).span == MAX_SPAN


def test_old_edge_of_a_sliding_window_moves_in_hops():
    #   0    10   20   30   40  t
    #   |----|----|----|----|
    window = plan_window(Sliding(20, hop=10))
    instants = np.array([0, 9, 10, 29, 30, -1], dtype=np.int64)

    assert old_edge_us(window, instants).tolist() == [-20, -20, -10, 0, 10, -30]


def test_old_edge_of_a_tumbling_window_is_where_the_period_began():
    assert old_edge_us(plan_window(Tumbling(10)), np.array([0, 9, 10, -1], dtype=np.int64)).tolist() == [0, 0, 10, -10]


def test_old_edge_of_a_calendar_day_is_local_midnight():
    window = plan_window(Calendar("day", tz="Europe/Berlin"))
    midnight = instant_us("2017-03-25T23:00:00Z")
    instants = np.array([midnight - 1, midnight, midnight + 23 * HOUR_US - 1, midnight + 23 * HOUR_US], dtype=np.int64)

    assert old_edge_us(window, instants).tolist() == [midnight - DAY_US, midnight, midnight, midnight + 23 * HOUR_US]
