import datetime as dt
import math
from zoneinfo import ZoneInfo

import polars as pl
import pytest

from tests.support.plans import DAY, HOUR, MINUTE, SECOND, Wanted, events, local_day, sliding, tumbling, view
from unskew.monitoring.recount import Recount, identical


def at(recount: Recount, name: str, *instants: int, key: tuple[int | str, ...] = ("u",)) -> list[object]:
    return [recount.values(key, t)[name] for t in instants]


def test_sliding_window_holds_an_event_until_its_tile_has_passed_the_old_edge():
    # L = 20 s, hop 5 s. The event at 7 s lies in tile [5, 10), which leaves at 10 + 20 = 30 s.
    #
    #   s   0    5    10   15   20   25   30
    #       |----|-x--|----|----|----|----|
    #              7                      ^ gone
    counted = Recount(
        view(Wanted("c", "count", sliding(20 * SECOND, 5 * SECOND))), events([(7 * SECOND, 7 * SECOND, {"user": "u"})])
    )

    assert at(counted, "c", 7 * SECOND - 1, 7 * SECOND, 30 * SECOND - 1, 30 * SECOND) == [0, 1, 1, 0]


def test_an_event_on_a_hop_edge_belongs_to_the_tile_that_begins_there():
    #   s   0    5    10   15   20   25   30   35
    #       |----|----x----|----|----|----|----|
    #                 10 (tile [10, 15), leaves at 15 + 20)
    counted = Recount(
        view(Wanted("c", "count", sliding(20 * SECOND, 5 * SECOND))),
        events([(10 * SECOND, 10 * SECOND, {"user": "u"})]),
    )

    assert at(counted, "c", 30 * SECOND, 35 * SECOND - 1, 35 * SECOND) == [1, 1, 0]
    assert counted.history(("u",)).edges == [35 * SECOND]


def test_tumbling_window_starts_anew_at_every_multiple_of_its_length():
    #   s   0        10        20        30
    #       |--a--b--|c--------|---------|
    given = [(t * SECOND, t * SECOND, {"user": "u", "n": t}) for t in (3, 6, 10)]
    counted = Recount(view(Wanted("s", "sum", tumbling(10 * SECOND), "n", "int64")), events(given))

    assert at(counted, "s", 6 * SECOND, 10 * SECOND - 1, 10 * SECOND, 20 * SECOND - 1, 20 * SECOND) == [9, 9, 10, 10, 0]


@pytest.mark.parametrize(
    ("day", "hours"),
    [((2017, 3, 26), 23), ((2017, 10, 29), 25), ((2017, 6, 1), 24)],
    ids=["spring", "autumn", "summer"],
)
def test_calendar_day_lasts_as_long_as_the_local_day_does(day, hours):
    berlin = ZoneInfo("Europe/Berlin")
    midnight = int(dt.datetime(*day, tzinfo=berlin).timestamp()) * SECOND
    counted = Recount(
        view(Wanted("c", "count", local_day("Europe/Berlin"))), events([(midnight, midnight, {"user": "u"})])
    )

    assert at(counted, "c", midnight, midnight + hours * HOUR - 1, midnight + hours * HOUR) == [1, 1, 0]
    assert counted.history(("u",)).edges == [midnight + hours * HOUR]


def test_an_event_from_the_future_counts_from_its_arrival():
    #   s   0    5    10 ... 60
    #       |----A----|      e      arrives at 5 s, says it happened at 60 s: effective 5 s, leaves at 30 s
    counted = Recount(
        view(Wanted("c", "count", sliding(20 * SECOND, 5 * SECOND))), events([(5 * SECOND, 60 * SECOND, {"user": "u"})])
    )

    assert at(counted, "c", 5 * SECOND, 30 * SECOND - 1, 30 * SECOND, 60 * SECOND) == [1, 1, 0, 0]


def test_a_late_event_changes_the_present_and_never_the_past():
    #   s   0    5    10   15   20
    #       |----e----|----A----|     happened at 5 s, arrived at 15 s
    counted = Recount(
        view(Wanted("c", "count", sliding(20 * SECOND, 5 * SECOND))), events([(15 * SECOND, 5 * SECOND, {"user": "u"})])
    )

    assert at(counted, "c", 5 * SECOND, 15 * SECOND - 1, 15 * SECOND, 30 * SECOND - 1, 30 * SECOND) == [0, 0, 1, 1, 0]


def test_an_event_that_arrives_behind_the_window_never_counts():
    counted = Recount(
        view(Wanted("c", "count", sliding(20 * SECOND, 5 * SECOND))), events([(30 * SECOND, 7 * SECOND, {"user": "u"})])
    )

    assert at(counted, "c", 30 * SECOND) == [0]
    assert counted.rows(("u",), HOUR) == []


def test_float_sums_are_exact_and_rounded_once():
    cancelling = [1e17, 1.0, -1e17, 2.0**-64, 1e-300]
    given = [(i, i, {"user": "u", "x": x}) for i, x in enumerate(cancelling)]
    counted = Recount(
        view(Wanted("s", "sum", tumbling(DAY), "x"), Wanted("m", "mean", tumbling(DAY), "x")), events(given)
    )

    assert at(counted, "s", 2, 3, 4) == [1.0, 1.0, 1.0]
    assert at(counted, "m", 2) == [1.0 / 3.0]


@pytest.mark.parametrize(("units", "kept"), [(0.5, 0), (1.5, 2), (2.5, 2), (0.75, 1), (-0.5, 0), (-1.5, -2)])
def test_a_float_is_taken_to_the_nearest_multiple_of_2_to_minus_64_with_ties_to_even(units, kept):
    counted = Recount(
        view(Wanted("s", "sum", tumbling(DAY), "x")), events([(0, 0, {"user": "u", "x": math.ldexp(units, -64)})])
    )

    assert identical(counted.values(("u",), 0), {"s": math.ldexp(kept, -64)})


def test_integer_sums_stop_at_the_ends_of_int64_and_return_from_there():
    #   s   0        10 s: the tile of the first leaves
    #       a b
    given = [(0, 0, {"user": "u", "n": 2**63 - 1}), (15 * SECOND, 15 * SECOND, {"user": "u", "n": 2**63 - 1})]
    counted = Recount(view(Wanted("s", "sum", sliding(20 * SECOND, 10 * SECOND), "n", "int64")), events(given))

    assert at(counted, "s", 0, 15 * SECOND, 30 * SECOND) == [2**63 - 1, 2**63 - 1, 2**63 - 1]


def test_negative_zero_reads_as_zero():
    names = ("sum", "mean", "min", "max", "last")
    wanted = [Wanted(name, name, tumbling(DAY), "x") for name in names]
    counted = Recount(view(*wanted), events([(0, 0, {"user": "u", "x": -0.0})]))

    assert identical(counted.values(("u",), 0), dict.fromkeys(names, 0.0))
    assert not identical({"x": 0.0}, {"x": -0.0})


def test_nulls_are_ignored_and_an_empty_window_has_no_mean():
    names = ("sum", "mean", "min", "max", "last")
    wanted = [Wanted("count", "count", tumbling(DAY)), *(Wanted(name, name, tumbling(DAY), "x") for name in names)]
    counted = Recount(view(*wanted), events([(0, 0, {"user": "u", "x": None})]))

    assert counted.values(("u",), 0) == {"count": 1, "sum": 0.0, "mean": None, "min": None, "max": None, "last": None}


def test_last_is_by_effective_time_and_then_by_arrival():
    #   s   0   1   2   3   4
    #           b   a           a arrives at 2 s of 2 s; b late at 3 s of 1 s; c at 4 s of 2 s
    given = [
        (2 * SECOND, 2 * SECOND, {"user": "u", "n": 1}),
        (3 * SECOND, 1 * SECOND, {"user": "u", "n": 2}),
        (4 * SECOND, 2 * SECOND, {"user": "u", "n": 3}),
    ]
    counted = Recount(view(Wanted("l", "last", tumbling(DAY), "n", "int64")), events(given))

    assert at(counted, "l", 2 * SECOND, 3 * SECOND, 4 * SECOND) == [1, 1, 3]


def test_bools_stay_bools_under_min_and_are_counted_by_sum():
    columns = {"b": pl.Boolean()}
    given = [(0, 0, {"user": "u", "b": True}), (1, 1, {"user": "u", "b": False})]
    counted = Recount(
        view(
            Wanted("min", "min", tumbling(DAY), "b", "bool"),
            Wanted("sum", "sum", tumbling(DAY), "b", "bool"),
            columns=columns,
        ),
        events(given, columns=columns),
    )

    assert identical(counted.values(("u",), 1), {"min": False, "sum": 1})


@pytest.mark.parametrize("x", [math.nan, math.inf, -math.inf, 2.0**62, -(2.0**62)])
def test_a_value_that_no_sum_can_take_drops_its_event_from_the_view_where_its_filter_passes(x):
    given = [
        (0, 0, {"user": "u", "x": x, "n": 1}),
        (1, 1, {"user": "u", "x": 1.0, "n": 1}),
        (2, 2, {"user": "u", "x": x, "n": 0}),
    ]
    counted = Recount(
        view(Wanted("c", "count", tumbling(DAY)), Wanted("s", "sum", tumbling(DAY), "x", filter="n = 1")), events(given)
    )

    assert counted.values(("u",), 2) == {"c": 2, "s": 1.0}


def test_an_event_without_a_key_part_or_failing_where_does_not_exist():
    keys = {"user": "string", "shop": "int64"}
    columns = {"shop": pl.Int32()}
    given = [
        (0, 0, {"user": "u", "shop": 1, "n": 1}),
        (1, 1, {"user": "u", "shop": None, "n": 1}),
        (2, 2, {"user": "u", "shop": 1, "n": None}),
    ]
    counted = Recount(
        view(Wanted("c", "count", tumbling(DAY)), keys=keys, where="n > 0"), events(given, columns=columns)
    )

    assert counted.entities.rows() == [("u", 1)]
    assert counted.values(("u", 1), 2) == {"c": 1}


def test_sql_text_is_evaluated_by_duckdb_and_expressions_by_polars():
    wanted = view(
        Wanted("a", "sum", tumbling(DAY), "n * 0.1"),
        Wanted("b", "sum", tumbling(DAY), pl.col("n") * 0.1, filter="n > 1 AND \"user\" LIKE 'u%'"),
    )
    counted = Recount(wanted, events([(0, 0, {"user": "u", "n": 3})]))

    assert counted.engines == {
        "n * 0.1": "duckdb",
        "n > 1 AND \"user\" LIKE 'u%'": "duckdb",
        str(pl.col("n") * 0.1): "polars",
    }
    # 0.1 is the float in both, not DuckDB's decimal, for which 3 * 0.1 = 0.3.
    assert identical(counted.values(("u",), 0), {"a": 3 * 0.1, "b": 3 * 0.1})


def test_rows_are_the_instants_at_which_values_change_and_say_why():
    # L = 10 s, hop 5 s
    #   s   0    5    10   15   20   25
    #       |-a--|----b----|----|----|
    #         2  10: b arrives, as does nothing else     a leaves at 15, b at 25
    given = [(2 * SECOND, 1 * SECOND, {"user": "u"}), (10 * SECOND, 10 * SECOND, {"user": "u"})]
    counted = Recount(view(Wanted("c", "count", sliding(10 * SECOND, 5 * SECOND))), events(given))

    rows = counted.rows(("u",), MINUTE)

    assert [(row.instant_us // SECOND, row.values["c"], row.cause, row.event_time_us, row.offset) for row in rows] == [
        (2, 1, "event", 1 * SECOND, 0),
        (10, 2, "event", 10 * SECOND, 1),
        (15, 1, "hop", None, None),
        (25, 0, "hop", None, None),
    ]


def test_an_event_and_a_hop_that_cancel_out_leave_no_row():
    #   s   0    10   20   30
    #       a         b         a leaves at 20 (L = hop = 10), where b arrives: the count stays 1
    given = [(0, 0, {"user": "u"}), (20 * SECOND, 20 * SECOND, {"user": "u"})]
    counted = Recount(view(Wanted("c", "count", sliding(10 * SECOND, 10 * SECOND))), events(given))

    assert [row.instant_us // SECOND for row in counted.rows(("u",), 20 * SECOND)] == [0]


def test_an_entity_never_seen_has_empty_values_and_no_rows():
    counted = Recount(view(Wanted("c", "count", tumbling(DAY)), Wanted("m", "mean", tumbling(DAY), "x")), events([]))

    assert counted.values(("nobody",), 0) == {"c": 0, "m": None}
    assert counted.rows(("nobody",), DAY) == []
