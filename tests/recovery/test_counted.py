"""The count that the live ordeals are judged by: windows, sums, repeats and sessions as the definitions say, on small
timelines.
"""

import ast
import datetime as dt
from pathlib import Path

import polars as pl

from tests.support.recovery import counted
from tests.support.recovery.counted import SECOND_US, Counted, CountedView, Ever, Running, Sliding, Tumbling

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def _archive(*events: tuple[float, float, float | None, int]) -> pl.DataFrame:
    """Of one user: arrival and event time in seconds, amount, item."""
    instant = pl.Datetime("us", "UTC")
    rows = [
        ("u", item, amount, 0, offset, EPOCH + dt.timedelta(seconds=arrival), EPOCH + dt.timedelta(seconds=at))
        for offset, (arrival, at, amount, item) in enumerate(events)
    ]
    schema = {"user": pl.String, "item": pl.Int64, "amount": pl.Float64, "_partition": pl.Int32, "_offset": pl.Int64}
    return pl.DataFrame(rows, schema | {"_arrival": instant, "_event_time": instant}, orient="row")


def _values(view: CountedView, archive: pl.DataFrame, *seconds: float) -> list[tuple[object, ...]]:
    steps = view.entities(archive)["u"]
    return [steps.at(int(second * SECOND_US)) for second in seconds]


def test_it_imports_nothing_of_what_it_judges() -> None:
    imports = [
        (node.module or "") if isinstance(node, ast.ImportFrom) else node.names[0].name
        for node in ast.walk(ast.parse(Path(counted.__file__).read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]

    assert not [name for name in imports if name.startswith(("unskew", "tests"))]


def test_windows_move_their_old_edge_at_hops_and_a_late_event_counts_from_its_arrival() -> None:
    # arrivals       10.5        11.2 (of 9.9)
    # Sliding(3 s)   [7 ........ at 10.5    until 14: both, from 13 on without 9.9 ..., from 14 on none
    # Tumbling(2 s)  [10 ....... until 12
    sliding, tumbling = Sliding(3 * SECOND_US, SECOND_US), Tumbling(2 * SECOND_US)
    features = {"sliding": Counted("count", sliding), "tumbling": Counted("count", tumbling)}
    view = CountedView("s", "user", features)
    archive = _archive((10.5, 10.5, 1.0, 1), (11.2, 9.9, 1.0, 1))

    found = _values(view, archive, 10.4, 10.5, 11.2, 11.999, 12, 12.999, 13, 13.999, 14)

    assert found == [(0, 0), (1, 1), (2, 1), (2, 1), (2, 0), (2, 0), (1, 0), (1, 0), (0, 0)]


def test_sums_are_exact_and_rounded_once() -> None:
    view = CountedView(
        "s", "user", {"sum": Counted("sum", Ever()), "max": Counted("max", Sliding(SECOND_US, SECOND_US))}
    )
    archive = _archive((1, 1, 1e15, 1), (2, 2, 0.1, 1), (3, 3, -1e15, 1), (4, 4, None, 1), (5, 5, -0.0, 1))

    assert _values(view, archive, 0, 1, 2, 3, 4, 5) == [
        (0.0, None),
        (1e15, 1e15),
        (1000000000000000.1, 1e15),
        (0.1, 0.1),
        (0.1, -1e15),
        (0.1, 0.0),
    ]


def test_a_repeat_counts_not_and_prolongs_nothing() -> None:
    view = CountedView("s", "user", {"count": Counted("count", Ever())}, "item", SECOND_US)
    archive = _archive((1.0, 1, 1.0, 7), (1.9, 1, 1.0, 7), (2.0, 2, 1.0, 7), (2.001, 2, 1.0, 7), (2.1, 2, 1.0, 8))

    assert _values(view, archive, 1, 1.9, 2, 2.001, 2.1) == [(1,), (1,), (1,), (2,), (3,)]


def test_a_session_is_over_one_gap_after_the_hop_of_its_latest_event() -> None:
    view = CountedView("s", "user", {"visit": Counted("count", Running(2 * SECOND_US, SECOND_US // 2))})
    # The third is of an instant whose own session would be over by its arrival; the fourth joins the running one.
    archive = _archive(
        (10.1, 10.1, 1.0, 1), (12.4, 12.4, 1.0, 1), (15.0, 12.0, 1.0, 1), (15.2, 15.2, 1.0, 1), (15.3, 13.2, 1.0, 1)
    )

    found = _values(view, archive, 10.0, 10.1, 12.4, 12.499, 14.499, 14.5, 15.0, 15.2, 15.3, 17.499, 17.5)

    assert found == [(0,), (1,), (2,), (2,), (2,), (0,), (0,), (1,), (2,), (2,), (0,)]
