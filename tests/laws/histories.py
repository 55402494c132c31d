"""Histories that try a window's every edge, and the view that tries every aggregation on them."""

import datetime as dt
from dataclasses import dataclass
from typing import get_args
from zoneinfo import ZoneInfo

import polars as pl
from hypothesis import strategies as st

from tests.plans import Wanted, view
from unskew.features.definitions import Calendar, Sliding, Tumbling, Window
from unskew.features.plan import AggregationName, ValueType, ViewPlan, WindowPlan
from unskew.features.windows import plan_window

# A window of a new kind must be listed here; a claim in test_kernel.py sees to it.
WINDOWS: dict[str, Window] = {
    "one tile": Sliding("3s", hop="3s"),
    "few tiles": Sliding("6s", hop="2s"),
    "5 min by default": Sliding("5min"),
    "30 days by default": Sliding("30d"),
    "tumbling": Tumbling("4s"),
    "tumbling hour": Tumbling("1h"),
    "utc day": Calendar("day"),
    "berlin day": Calendar("day", tz="Europe/Berlin"),
    "kathmandu day": Calendar("day", tz="Asia/Kathmandu"),
}
FUNCTIONS: tuple[AggregationName, ...] = get_args(AggregationName)
VALUE_TYPES: tuple[ValueType, ...] = get_args(ValueType)
COLUMNS = {"int64": "n", "float64": "x", "bool": "b"}
PLAN_COLUMNS = {"b": pl.Boolean(), "pass": pl.Boolean()}

INT64 = [0, 1, -1, 2, 7, 2**53 + 1, 2**62, 2**63 - 1, -(2**63)]
FLOATS = [
    0.0, -0.0, 1.0, -1.0, 0.1, 1 / 3, 1e17, -1e17, 5e-324, -5e-324, 1e-300,
    2.0**-64, 2.0**-65, 3 * 2.0**-65, -(2.0**-65), -3 * 2.0**-66, 2.0**-52, 1 + 2.0**-52,
    2.0**62 - 2.0**9, -(2.0**62 - 2.0**9), 2.0**61,
]  # fmt: skip
REFUSED = [float("nan"), float("inf"), float("-inf"), 2.0**62, -(2.0**62)]


def every_aggregation(*windows: Window) -> ViewPlan:
    """One view with every aggregation, value type and window, each with and without a filter."""
    planned = [plan_window(window) for window in windows]
    wanted = [feature for number, window in enumerate(planned) for feature in _over(window, number)]
    return view(*wanted, columns=PLAN_COLUMNS)


def _over(window: WindowPlan, number: int) -> list[Wanted]:
    wanted: list[Wanted] = []
    for function in FUNCTIONS:
        for kind in VALUE_TYPES if function != "count" else VALUE_TYPES[:1]:
            value = None if function == "count" else pl.col(COLUMNS[kind])
            name = f"w{number}_{function}_{kind}"
            wanted += [
                Wanted(name, function, window, value, kind),
                Wanted(f"{name}_if", function, window, value, kind, filter=pl.col("pass")),
            ]
    return wanted


@dataclass(frozen=True)
class History:
    """``events``: decoded, in the order in which they count. ``clock_us``: where the shard's clock ends."""

    events: pl.DataFrame
    clock_us: int


def _starts() -> st.SearchStrategy[int]:
    """Where a history begins: ordinary, before the epoch, and shortly before clocks change in Berlin."""
    berlin = ZoneInfo("Europe/Berlin")
    local = [dt.datetime(2017, 3, 25, 22, tzinfo=berlin), dt.datetime(2017, 10, 28, 23, 59, 58, tzinfo=berlin)]
    return st.sampled_from(
        [1_483_228_800_000_000, -7_000_001, 0, *(int(moment.timestamp()) * 1_000_000 for moment in local)]
    )


@st.composite
def histories(draw: st.DrawFn, window: WindowPlan, *, max_events: int = 14) -> History:
    """Events out of order, late, from the future, at one instant, on edges and beside them, between idle gaps.

    ``window``: whose hops and extent give the steps. Entities come, go for longer than the window, and come again.
    """
    hop, extent = window.hop_us, window.extent_us
    whole = extent + hop
    steps = st.sampled_from([0, 0, 0, 1, hop // 2, hop - 1, hop, hop + 1, extent, whole - 1, whole, 3 * whole + 1])
    lags = st.sampled_from(
        [0, 0, 0, 1, hop // 2, hop - 1, hop, extent - 1, extent, extent + 1, whole, 2 * whole, -1, -hop, -whole]
    )
    n_events = draw(st.integers(0, max_events))
    now = draw(_starts())
    rows = []
    for _ in range(n_events):
        now += draw(steps)
        if draw(st.booleans()):
            now = -(-now // hop) * hop  # exactly on the next edge of the grid
        event_time = now - draw(lags)
        if draw(st.booleans()):
            event_time = event_time // hop * hop
        x = draw(st.sampled_from(FLOATS) | st.floats(-1e6, 1e6) | st.none())
        if draw(st.integers(0, 19)) == 0:
            x = draw(st.sampled_from(REFUSED))
        rows.append(
            (
                now,
                draw(st.integers(0, 1)),
                event_time,
                draw(st.sampled_from(["a", "a", "a", "b|é", "c", None])),
                x,
                draw(st.sampled_from(INT64) | st.integers(-9, 9) | st.none()),
                draw(st.sampled_from([True, False, None])),
                draw(st.sampled_from([True, True, False, None])),
            )
        )
    rows.sort(key=lambda row: row[:2])
    clock = now + draw(st.sampled_from([0, 1, hop, whole, 2 * whole + 1]))
    instant = pl.Datetime("us", "UTC")
    frame = pl.DataFrame(
        rows,
        schema={
            "_arrival": pl.Int64, "_partition": pl.Int32, "_event_time": pl.Int64,
            "user": pl.String, "x": pl.Float64, "n": pl.Int64, "b": pl.Boolean, "pass": pl.Boolean,
        },
        orient="row",
    )  # fmt: skip
    frame = frame.with_columns(
        pl.col("_arrival", "_event_time").cast(instant),
        pl.int_range(pl.len()).cast(pl.Int64).alias("_offset"),
    )
    return History(frame, clock)


@st.composite
def splits(draw: st.DrawFn, history: History) -> list[tuple[int, int, int]]:
    """Batches (first, past, clock), empty ones and marks between events among them."""
    arrivals = history.events["_arrival"].to_physical().to_list()
    n_events = len(arrivals)
    cuts = sorted(draw(st.lists(st.integers(0, n_events), max_size=5)))
    batches = []
    for first, past in zip([0, *cuts], [*cuts, n_events], strict=True):
        if past == 0:
            continue  # no clock before the first arrival
        lowest = arrivals[past - 1]
        highest = arrivals[past] if past < n_events else history.clock_us
        batches.append((first, past, draw(st.sampled_from([lowest, highest, (lowest + highest) // 2]))))
    return batches


__all__ = ["WINDOWS", "Calendar", "History", "Sliding", "Tumbling", "every_aggregation", "histories", "splits"]
