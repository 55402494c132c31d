"""The recount's windows, each shown on a timeline with its values written out."""

import datetime as dt
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest

from tests.support.plans import (
    DAY,
    HOUR,
    MINUTE,
    SECOND,
    Wanted,
    calendar,
    closed,
    events,
    lifetime,
    session,
    sessions,
    sliding,
    tumbling,
    view,
)
from unskew.features.view import Parameters, ViewWindow
from unskew.monitoring import recount_windows
from unskew.monitoring.recount import Recount

U = ("u",)


def counting(window: ViewWindow, *came: tuple[int, int]) -> Recount:
    """Counts events of (arrival, event time) in seconds."""
    given = [(arrival * SECOND, event_time * SECOND, {"user": "u"}) for arrival, event_time in came]
    return Recount(view(Wanted("c", "count", window)), events(given))


def counts(recount: Recount, *seconds: int) -> list[object]:
    return [recount.values(U, second * SECOND)["c"] for second in seconds]


def steps(recount: Recount) -> list[tuple[object, ...]]:
    """(second, count, cause, offset) of every row."""
    return [(row.instant_us / SECOND, row.values["c"], row.cause, row.offset) for row in recount.rows(U, 1000 * SECOND)]


def utc(*date: int) -> int:
    return int(dt.datetime(*date, tzinfo=dt.UTC).timestamp()) * SECOND


def test_closed_window_holds_an_event_from_the_end_of_its_period_until_the_end_of_the_next():
    #   s   0         10        20        30
    #       |--a-b----|---------|---------|
    #          3 5    ^ both in           ^ (20: both out)
    recount = counting(closed(10 * SECOND), (3, 3), (5, 5))

    assert counts(recount, 3, 9, 10, 19, 20, 30) == [0, 0, 2, 2, 0, 0]
    assert recount.history(U).edges == [10 * SECOND, 20 * SECOND]
    assert recount.instants(U, 0) == (3 * SECOND, [10 * SECOND, 20 * SECOND])
    assert steps(recount) == [(10, 2, "hop", None), (20, 0, "hop", None)]


def test_a_late_event_of_the_last_whole_period_changes_a_closed_window_when_it_arrives():
    #   s   0         10        20        30
    #       |--a------|--B------|--C------|     B happened at 4 s, arrives at 13 s; C at 6 s, arrives at 23 s: too late
    recount = counting(closed(10 * SECOND), (3, 3), (13, 4), (23, 6))

    assert counts(recount, 12, 13, 19, 20, 23) == [1, 2, 2, 0, 0]
    assert steps(recount) == [(10, 1, "hop", None), (13, 2, "event", 1), (20, 0, "hop", None)]


def test_an_event_of_the_running_period_causes_no_row_of_a_closed_window():
    #   s   0         10        20
    #       |--a------b---------|     b arrives at the instant at which a comes in; at 20 one takes the other's place
    recount = counting(closed(10 * SECOND), (3, 3), (10, 10))

    assert steps(recount) == [(10, 1, "hop", None), (30, 0, "hop", None)]


def test_lifetime_holds_everything_for_ever():
    recount = counting(lifetime(), (0, 0), (5, -1_000_000_000))

    assert counts(recount, -1, 0, 5, 10**9) == [0, 1, 2, 2]
    assert recount.history(U).edges == []
    assert recount.instants(U, 1) == (5 * SECOND, [])


@pytest.mark.parametrize(
    ("unit", "at", "begins", "ends"),
    [
        ("week", (2017, 3, 23), (2017, 3, 20), (2017, 3, 27)),  # a Thursday; clocks change on the Sunday
        ("week", (2017, 1, 1), (2016, 12, 26), (2017, 1, 2)),
        ("month", (2016, 2, 29), (2016, 2, 1), (2016, 3, 1)),
        ("month", (2017, 12, 31), (2017, 12, 1), (2018, 1, 1)),
        ("quarter", (2017, 5, 15), (2017, 4, 1), (2017, 7, 1)),
        ("quarter", (2017, 1, 1), (2017, 1, 1), (2017, 4, 1)),
        ("quarter", (2017, 12, 31), (2017, 10, 1), (2018, 1, 1)),
        ("year", (2017, 7, 1), (2017, 1, 1), (2018, 1, 1)),
    ],
)
def test_calendar_windows_begin_and_end_at_local_midnights(unit, at, begins, ends):
    #       |...........at...........|
    #     begins  an event there    ends: the window begins anew
    berlin = ZoneInfo("Europe/Berlin")
    first, arrival, last = (int(dt.datetime(*date, tzinfo=berlin).timestamp()) * SECOND for date in (begins, at, ends))
    recount = Recount(
        view(Wanted("c", "count", calendar(unit, "Europe/Berlin"))),
        events(
            [(arrival, first - 1, {"user": "u"}), (arrival, first, {"user": "u"}), (arrival, arrival, {"user": "u"})]
        ),
    )

    assert [recount.values(U, t)["c"] for t in (arrival - 1, arrival, last - 1, last)] == [0, 2, 2, 0]
    assert recount.history(U).edges == [first, last]


def test_a_day_that_a_zone_skips_whole_belongs_to_no_period_and_ends_none():
    # Apia went from the 29th of December 2011 to the 31st at midnight, 10:00 UTC.
    before, after = utc(2011, 12, 30, 9), utc(2011, 12, 30, 11)
    given = [(before, before, {"user": "u"}), (after, after, {"user": "u"})]
    day, month = (calendar(unit, "Pacific/Apia") for unit in ("day", "month"))
    recount = Recount(view(Wanted("day", "count", day), Wanted("month", "count", month)), events(given))

    assert recount.values(U, after) == {"day": 1, "month": 2}
    assert recount.history(U).edges == [utc(2011, 12, 30, 10), utc(2011, 12, 31, 10)]


def test_a_day_begins_at_the_first_of_two_midnights():
    # In St John's, on the 29th of October 2006, clocks went back from 0:01 to 23:01.
    #
    #   UTC  2:30    2:31                3:30
    #        |-------|-------------------|
    #        0:00    0:01 = 23:01 (28th) 0:00 again: the 29th has run since 2:30
    at = [utc(2006, 10, 29, 2, minute) for minute in (29, 30, 31)] + [utc(2006, 10, 29, 4)]
    recount = Recount(
        view(Wanted("c", "count", calendar("day", "America/St_Johns"))), events([(t, t, {"user": "u"}) for t in at])
    )

    assert [recount.values(U, t)["c"] for t in at] == [1, 1, 2, 3]
    assert recount.history(U).edges == [at[1], utc(2006, 10, 30, 3, 30)]


def test_a_session_goes_on_while_events_follow_within_the_gap_and_is_over_after_it():
    # gap 6 s, hop 2 s: the last event, of hop k, keeps the session until (k + 4) * 2 s.
    #
    #   s   0   2   4   6   8   10  12  14  16  18  20
    #       |-a-|---|--b|---|---|---|--c|---|---|---|
    #         1        5        ^ over at (0+4)*2 = 8 without b; with it at (2+4)*2 = 12; c at 13 begins another
    recount = counting(session(6 * SECOND, 2 * SECOND), (1, 1), (5, 5), (13, 13))

    assert counts(recount, 0, 1, 5, 8, 11, 12, 13, 19, 20) == [0, 1, 2, 2, 2, 0, 1, 1, 0]
    assert recount.history(U).edges == [12 * SECOND, 20 * SECOND]
    assert [recount.instants(U, event)[1] for event in range(3)] == [[12 * SECOND], [12 * SECOND], [20 * SECOND]]


@pytest.mark.parametrize(
    ("second", "inside"),
    [(7, [2, 2, 0]), (8, [1, 1, 0])],
    ids=["just within the gap", "at the instant at which the session is over, which is before its events"],
)
def test_whether_an_event_joins_is_decided_by_the_hop_at_which_the_session_is_over(second, inside):
    #   s   0   2   4   6   8   10
    #       |-a-|---|---|--x|x          a keeps the session until 8 s
    recount = counting(session(6 * SECOND, 2 * SECOND), (1, 1), (second, second))

    assert counts(recount, second, 13, 16) == inside


def test_a_late_event_joins_the_running_session_less_than_the_gap_before_its_first_one():
    # gap 6 s, hop 2 s: span 3. The session begins with hop 10 (20 s).
    #
    #   s   12  14  16  18  20  22  24
    #       |D--|C--|---|---|a--|--.|       C of hop 7 = 10 - 3 joins, and then the session begins there;
    #                                       D of hop 6 would have been too late before C, and joins after it
    recount = counting(session(6 * SECOND, 2 * SECOND), (20, 20), (21, 12), (22, 14), (23, 12))

    assert counts(recount, 20, 21, 22, 23) == [1, 1, 2, 3]
    assert steps(recount) == [
        (20, 1, "event", 0),
        (22, 2, "event", 2),
        (23, 3, "event", 3),
        (28, 0, "hop", None),
    ]


def test_an_event_whose_session_would_be_over_already_begins_none():
    #   s   0   2   4   6   8   10
    #       |-x-|---|---|---A           happened at 1 s: its session would be over at 8 s
    recount = counting(session(6 * SECOND, 2 * SECOND), (8, 1), (9, 2))

    assert counts(recount, 8, 9, 10) == [0, 1, 0]


def test_events_that_enter_no_feature_of_a_session_do_not_keep_it():
    #   s   0   2   4   6   8   10  12
    #       a   .   n   .   .   .          n has no value for sum and fails the filter of the count
    window = session(4 * SECOND, 2 * SECOND)
    given = [
        (0, 0, {"user": "u", "n": 1, "x": 1.0}),
        (4 * SECOND, 4 * SECOND, {"user": "u", "n": 2, "x": None}),
    ]
    wanted = [Wanted("s", "sum", window, "x"), Wanted("c", "count", window, filter="n = 1")]
    apart = Recount(view(*wanted, shared=True), events(given))
    joined = Recount(view(*wanted, Wanted("all", "count", window), shared=True), events(given))

    assert [apart.values(U, t * SECOND) for t in (4, 6)] == [{"s": 1.0, "c": 1}, {"s": 0.0, "c": 0}]
    assert joined.values(U, 6 * SECOND) == {"s": 1.0, "c": 1, "all": 2}


def test_a_session_of_each_entity_is_its_own():
    given = [(0, 0, {"user": "u"}), (SECOND, SECOND, {"user": "v"})]
    recount = Recount(view(Wanted("c", "count", session(2 * SECOND, SECOND))), events(given))

    assert [recount.values((user,), t * SECOND)["c"] for user in "uv" for t in (0, 2, 3)] == [1, 1, 0, 0, 1, 1]


def test_decayed_values_change_at_every_hop_until_the_event_leaves():
    # L = 4 s, hop 2 s, half-life one hop: 1, 1/2, 1/4, and gone.
    #
    #   s   0   2   4   6   8
    #       |-a-|---|---|
    #         1   1/2 1/4  0
    window = sliding(4 * SECOND, 2 * SECOND)
    recount = Recount(
        view(Wanted("c", "decayed_count", window, parameters=Parameters(half_life_hops=1))),
        events([(SECOND, SECOND, {"user": "u"})]),
    )

    assert steps(recount) == [
        (1, 1.0, "event", 0),
        (2, 0.5, "hop", None),
        (4, 0.25, "hop", None),
        (6, 0.0, "hop", None),
    ]
    assert recount.history(U).edges == [2 * SECOND, 4 * SECOND, 6 * SECOND]


def closings(*came: tuple[int, int, dict[str, object]], outer: ViewWindow, **given: object) -> Recount:
    """Counts and adds up sessions of gap 4 s, hop 2 s."""
    inside = sessions(
        4 * SECOND, 2 * SECOND, Wanted("spend", "sum", session(1, 1), "x"), where=given.pop("inner", None)
    )
    wanted = [
        Wanted("c", "count", outer),
        Wanted("length", "sum", outer, "length_s"),
        Wanted("most", "max", outer, "events", "int64"),
        Wanted("spent", "sum", outer, "spend"),
        Wanted("begun", "min", outer, "start", "timestamp"),
        Wanted("ended", "max", outer, pl.col("end"), "timestamp"),
    ]
    rows = [(arrival * SECOND, event_time * SECOND, {"user": "u"} | row) for arrival, event_time, row in came]
    return Recount(view(*wanted, sessions=inside, shared=True, **given), events(rows))


def test_a_closed_session_is_an_event_of_the_instant_at_which_it_is_over():
    # gap 4 s, hop 2 s
    #
    #   s   0   2   4   6   8   10  12  14  16  18
    #       |a--|-b-|---|---|c--|---|---|
    #        0    3         8 over: (1+3)*2 = 8, just before c; c's session: (4+3)*2 = 14
    recount = closings((0, 0, {"x": 1.0}), (3, 3, {"x": 2.5}), (8, 8, {"x": 4.0}), outer=tumbling(DAY))

    values = [recount.values(U, t) for t in (8 * SECOND - 1, 8 * SECOND, 14 * SECOND)]

    assert [value["c"] for value in values] == [0, 1, 2]
    assert values[0] == {"c": 0, "length": 0.0, "most": None, "spent": 0.0, "begun": None, "ended": None}
    assert values[1] | {"begun": 0, "ended": 0} == {
        "c": 1,
        "length": 3.0,
        "most": 2,
        "spent": 3.5,
        "begun": 0,
        "ended": 0,
    }
    assert values[2]["begun"] == dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    assert values[2]["ended"] == dt.datetime(1970, 1, 1, 0, 0, 8, tzinfo=dt.UTC)
    assert [(r.instant_us // SECOND, r.cause, r.event_time_us, r.offset) for r in recount.rows(U, MINUTE)] == [
        (8, "event", 8 * SECOND, 1),
        (14, "event", 14 * SECOND, 2),
    ]


def test_a_row_of_sessions_names_the_latest_event_of_the_session_and_not_the_last_to_arrive():
    #   s   0   2   4   6   8   10
    #       |a--|b--|---|---|        a arrives at 3 s, after b
    recount = closings((2, 2, {"x": 1.0}), (3, 0, {"x": 1.0}), outer=tumbling(DAY))

    (row,) = recount.rows(U, MINUTE)
    assert (row.instant_us, row.offset, row.values["length"], row.values["most"]) == (8 * SECOND, 0, 2.0, 2)


def test_windows_over_sessions_are_of_the_instants_at_which_they_are_over():
    # One session, over at 6 s, under a sliding window of 4 s, hop 2 s: out at 6 + 2 + 4 = 12 s.
    recount = closings((0, 0, {"x": 1.0}), outer=sliding(4 * SECOND, 2 * SECOND))

    assert [recount.values(U, t * SECOND)["c"] for t in (5, 6, 11, 12)] == [0, 1, 1, 0]
    assert recount.history(U).arrivals == [6 * SECOND]
    assert recount.history(U).edges == [12 * SECOND]
    assert recount.instants(U, 0) == (6 * SECOND, [12 * SECOND])
    assert recount.n_events == 1


def test_where_of_sessions_is_over_events_and_where_of_their_view_over_sessions():
    came = [(0, 0, {"x": 1.0, "n": 1}), (1, 1, {"x": 9.0, "n": 0}), (20, 20, {"x": 7.0, "n": 1})]
    recount = closings(*came, outer=tumbling(DAY), inner="n = 1", where="spend < 5")

    assert recount.values(U, HOUR)["c"] == 1
    assert recount.values(U, HOUR)["spent"] == 1.0


def test_a_session_with_a_value_that_no_sum_can_take_is_left_out():
    # 2^61 + 2^61 = 2^62.
    came = [(0, 0, {"x": 2.0**61}), (1, 1, {"x": 2.0**61}), (20, 20, {"x": 1.0})]
    recount = closings(*came, outer=tumbling(DAY))

    assert recount.values(U, HOUR)["spent"] == 1.0
    assert recount.values(U, HOUR)["c"] == 1
    assert recount.events.height == 2


def test_nothing_is_over_without_events():
    recount = closings(outer=tumbling(DAY))

    assert recount.values(U, HOUR)["c"] == 0
    assert recount.rows(U, HOUR) == []
    assert recount.events.schema["start"] == pl.Datetime("us", "UTC")


def test_repeats_of_an_id_within_the_time_do_not_count():
    # Within 10 s of the one that counted; one 11 s after it counts again.
    #
    #   s   0    6    10 11       entity u: id 1
    #       a    x    x  b        entity v has its own ids; an event without an id always counts
    given = [(t * SECOND, t * SECOND, {"user": "u", "n": 1}) for t in (0, 6, 10, 11)]
    given += [(12 * SECOND, 0, {"user": user, "n": n}) for user, n in [("v", 1), ("u", None), ("u", None)]]
    recount = Recount(
        view(Wanted("c", "count", tumbling(DAY)), event_id="n", dedupe_within_us=10 * SECOND), events(given)
    )

    assert counts(recount, 0, 6, 10, 11, 12) == [1, 1, 1, 2, 4]
    assert recount.values(("v",), 12 * SECOND) == {"c": 1}


@pytest.mark.parametrize(
    "window",
    [
        sliding(HOUR, 10 * MINUTE),
        tumbling(HOUR),
        closed(HOUR),
        calendar("day", "Europe/Berlin"),
        lifetime(),
        session(HOUR, MINUTE),
    ],
    ids=lambda window: window.kind,
)
def test_the_edges_of_many_events_are_those_of_each_and_found_once_for_each_period(window, monkeypatch):
    effectives = np.sort(np.random.default_rng(7).integers(-DAY, 3 * DAY, 5_000))
    wanted = {edge for one in effectives.tolist() for edge in recount_windows.edges(window, one)}
    asked, edges = [], recount_windows.edges
    monkeypatch.setattr(recount_windows, "edges", lambda *given: asked.append(1) or edges(*given))

    assert recount_windows.all_edges(window, effectives) == wanted
    assert len(asked) <= 4 * 24 * 6
