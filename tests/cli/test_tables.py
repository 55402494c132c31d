import datetime as dt
from decimal import Decimal

import pytest

from tests.support.plans import (
    DAY,
    HOUR,
    MINUTE,
    Wanted,
    WantedOfOthers,
    calendar,
    closed,
    lifetime,
    session,
    sessions,
    sliding,
    tumbling,
    view,
)
from tests.support.terminal import cells
from tests.support.typed import pairs
from unskew.cli.screen import Screen
from unskew.cli.tables import view_table
from unskew.features.showing import plain, shown
from unskew.features.view import Parameters

SEEN = dt.datetime(2017, 7, 14, 2, 40, tzinfo=dt.UTC)


@pytest.mark.parametrize(("value", "text", "in_json"), [
    (None, "-", None),
    (-3, "-3", -3),
    (0.1, "0.1", 0.1),
    (True, "True", True),
    ("a b", "a b", "a b"),
    ("\x1b[31m\n", r'"\u001b[31m\n"', "\x1b[31m\n"),
    ("\x9b31mé", r'"\u009b31m\u00e9"', "\x9b31mé"),
    (Decimal("-12.30"), "-12.30", "-12.30"),
    (SEEN, "2017-07-14T02:40:00Z", "2017-07-14T02:40:00.000000Z"),
    ([1, 2], "[1, 2]", [1, 2]),
    (["a", "é, b"], '["a", "é, b"]', ["a", "é, b"]),
    ([Decimal("1.20")], "[1.20]", ["1.20"]),
    ([SEEN], "[2017-07-14T02:40:00Z]", ["2017-07-14T02:40:00.000000Z"]),
    (pairs(("b", 2), ("a", 1)), '{"b": 2, "a": 1}', {"b": 2, "a": 1}),
    (pairs(("b", Decimal("1.20"))), '{"b": 1.20}', {"b": "1.20"}),
])  # fmt: skip
def test_values_are_shown_to_people_and_to_programs(value, text, in_json):
    assert shown(value) == text
    assert plain(value) == in_json


def test_a_view_shows_windows_parameters_derived_features_and_sessions(capsys):
    plan = view(
        Wanted("day", "count", sliding(DAY, HOUR)),
        Wanted("running", "count", tumbling(HOUR)),
        Wanted("whole", "count", closed(HOUR)),
        Wanted("month", "sum", calendar("month", "Europe/Berlin"), "total", "decimal(38,2)"),
        Wanted("ever", "max", lifetime(), "total", "decimal(38,2)", default=Decimal("-1.00")),
        Wanted("visit", "count", session(30 * MINUTE, MINUTE), filter="events > 1"),
        Wanted("by_shop", "count", sliding(DAY, HOUR), by="shop", parameters=Parameters(keys=16)),
        Wanted("median", "quantile", sliding(DAY, HOUR), "length_s", parameters=Parameters(q=0.5, bits=6)),
        Wanted("sizes", "histogram", sliding(DAY, HOUR), "length_s", parameters=Parameters(edges=(1.0, 2.5))),
        derived=[WantedOfOthers("share", "running / day")],
        sessions=sessions(20 * MINUTE, MINUTE, Wanted("total", "sum", lifetime(), "n", "int64"), where="n > 0"),
        where="events > 0",
    )
    Screen().print(view_table(plan.published))
    out = capsys.readouterr().out

    assert out.splitlines()[:5] == [
        "view@1",
        "entity entity (user string), stream stream (topic stream)",
        "over closed sessions (gap 20min, hop 1min), of events where n > 0, with start, end, events, total",
        "where events > 0",
        "owner -",
    ]
    assert [row[:5] for row in cells(out)[1:]] == [
        ["day", "int64", "count()", "1d", "1h"],
        ["running", "int64", "count()", "running 1h", "1h"],
        ["whole", "int64", "count()", "last whole 1h", "1h"],
        ["month", "decimal(38,2)", "sum(total)", "month in Europe/Berlin", "midnight"],
        ["ever", "decimal(38,2)", "max(total)", "lifetime", "-"],
        ["visit", "int64", "count() where events > 1", "session, gap 30min", "1min"],
        ["by_shop", "map[int64]", "count(by shop, keys=16)", "1d", "1h"],
        ["median", "float64", "quantile(length_s, q=0.5, bits=6)", "1d", "1h"],
        ["sizes", "list[int64]", "histogram(length_s, edges=[1.0, 2.5])", "1d", "1h"],
        ["share", "float64", "= running / day", "-", "-"],
    ]
    assert "-1.00" in out
