"""Histories that try a window's every edge, and the views that try every aggregation on them."""

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from zoneinfo import ZoneInfo

import polars as pl
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.support.plans import HOUR, MINUTE, SECOND, Wanted, view
from unskew.features.definitions.vocabulary import Calendar, Lifetime, Session, Sliding, Tumbling, Window
from unskew.features.definitions.windows import plan_window
from unskew.features.plan import ViewPlan
from unskew.features.types import SCALARS
from unskew.features.view import AggregationName, Parameters, ViewWindow


def laws(max_examples: int) -> settings:
    """Settings with so many examples, and with more of them in a profile whose tests have more."""
    n_examples = max_examples * settings.default.max_examples // 100
    return settings(deadline=None, max_examples=n_examples, suppress_health_check=list(HealthCheck), print_blob=True)


# A window of a new kind must be listed here; claims in test_kernel.py see to it.
WINDOWS: dict[str, Window] = {
    "one tile": Sliding("3s", hop="3s"),
    "few tiles": Sliding("6s", hop="2s"),
    "5 min by default": Sliding("5min"),
    "30 days by default": Sliding("30d"),
    "tumbling": Tumbling("4s"),
    "tumbling hour": Tumbling("1h"),
    "closed": Tumbling("4s", closed=True),
    "closed day": Tumbling("1d", closed=True),
    "utc day": Calendar("day"),
    "berlin day": Calendar("day", tz="Europe/Berlin"),
    "kathmandu day": Calendar("day", tz="Asia/Kathmandu"),
    "newfoundland day": Calendar("day", tz="America/St_Johns"),
    "berlin week": Calendar("week", tz="Europe/Berlin"),
    "apia month": Calendar("month", tz="Pacific/Apia"),
    "utc quarter": Calendar("quarter"),
    "berlin year": Calendar("year", tz="Europe/Berlin"),
    "lifetime": Lifetime(),
    "session": Session("6s", hop="2s"),
    "session of one hop": Session("3s", hop="3s"),
    "session by default": Session("30min"),
}
# Decayed values change at every hop: only windows of few hops can be recounted at each of them.
_MOST_HOPS = 8

DECIMAL = "decimal(38,2)"
COLUMNS: dict[str, str] = {
    "int64": "n", "float64": "x", "bool": "b", "string": "s", "timestamp": "at", DECIMAL: "d",
}  # fmt: skip
PLAN_COLUMNS = {
    "b": pl.Boolean(), "s": pl.String(), "at": pl.Datetime("us", "UTC"), "d": pl.Decimal(38, 2),
    "k": pl.String(), "pass": pl.Boolean(),
}  # fmt: skip

NUMBERS: tuple[str, ...] = ("int64", "float64", "bool", DECIMAL)
ANY: tuple[str, ...] = (*SCALARS, DECIMAL)
# Of each aggregation the types that it takes; None where it may have no value.
TYPES: dict[AggregationName, tuple[str | None, ...]] = {
    "count": (None, "float64", "string"),
    "sum": NUMBERS,
    "mean": NUMBERS,
    "var": NUMBERS,
    "std": NUMBERS,
    "min": ANY,
    "max": ANY,
    "first": ANY,
    "last": ANY,
    "first_n": ANY,
    "last_n": ANY,
    "first_time": (None,),
    "last_time": (None,),
    "count_distinct": ANY,
    "approx_count_distinct": ANY,
    "mode": ANY,
    "top_k": ANY,
    "histogram": NUMBERS,
    "quantile": NUMBERS,
    "decayed_count": (None,),
    "decayed_sum": NUMBERS,
}
TOLD: dict[AggregationName, tuple[Parameters, ...]] = {
    "var": (Parameters(ddof=1), Parameters(ddof=0)),
    "std": (Parameters(ddof=1),),
    "first_n": (Parameters(n=2),),
    "last_n": (Parameters(n=3),),
    "top_k": (Parameters(n=2),),
    "approx_count_distinct": (Parameters(bits=4),),
    "histogram": (Parameters(edges=(-1.0, 0.0, 0.1, 1e17)),),
    "quantile": (Parameters(q=0.5, bits=6), Parameters(q=0.9, bits=0)),
    "decayed_count": (Parameters(half_life_hops=2),),
    "decayed_sum": (Parameters(half_life_hops=2),),
}
KEYED: tuple[AggregationName, ...] = ("count", "sum", "mean")

INT64 = [0, 1, -1, 2, 7, 2**53 + 1, 2**62, 2**63 - 1, -(2**63)]
FLOATS = [
    0.0, -0.0, 1.0, -1.0, 0.1, 1 / 3, 1e17, -1e17, 5e-324, -5e-324, 1e-300,
    2.0**-64, 2.0**-65, 3 * 2.0**-65, -(2.0**-65), -3 * 2.0**-66, 2.0**-52, 1 + 2.0**-52,
    2.0**62 - 2.0**9, -(2.0**62 - 2.0**9), 2.0**61,
]  # fmt: skip
REFUSED = [float("nan"), float("inf"), float("-inf"), 2.0**62, -(2.0**62)]
# Equal beginnings, lengths around those of machine words, and two whose order differs in UTF-8 and UTF-16.
TEXTS = [
    "", "a", "ab", "b", "é", "e\u0301", "other", "12345678", "123456789", "12345678a", "x" * 300, "x" * 299 + "y",
    "\uffff", "\U0001d11e", "|", '"', "\n",
]  # fmt: skip
KEYS_OF_MAPS = ["a", "a", "b", "é", "other", "", "z|\"'"]
DECIMALS = [Decimal(units).scaleb(-2) for units in (0, 1, -1, 10, 150, 2**53 + 1, 2**63 - 1, -(2**63 - 1))]
REFUSED_DECIMALS = [Decimal(2**63).scaleb(-2), Decimal(-(2**63)).scaleb(-2), Decimal("-1e30")]
INSTANTS = [dt.datetime(*date, tzinfo=dt.UTC) for date in ((1600, 1, 1), (1969, 12, 31, 23, 59, 59, 999_999), (1970, 1, 1), (2199, 12, 31))]  # fmt: skip


def every_aggregation(window: ViewWindow, prefix: str = "") -> tuple[list[Wanted], list[Wanted]]:
    """Every aggregation of every type that it takes over one window: without a filter, and with one."""
    plain = list(_over(window, prefix))
    filtered = [
        Wanted(f"{w.name}_if", w.function, window, w.value, w.of, pl.col("pass"), by=w.by, parameters=w.parameters)
        for w in plain
    ]
    return plain, filtered


def _over(window: ViewWindow, prefix: str) -> Iterator[Wanted]:
    for function, types in TYPES.items():
        if function.startswith("decayed_") and not (window.kind == "sliding" and window.span <= _MOST_HOPS):
            continue
        for of in types:
            value = None if of is None else pl.col(COLUMNS[of])
            name = f"{prefix}{function}_{_letters(of)}"
            for number, told in enumerate(TOLD.get(function, (Parameters(),))):
                yield Wanted(f"{name}{number or ''}", function, window, value, of or "int64", parameters=told)
            if function in KEYED:
                told = Parameters(keys=2)
                yield Wanted(f"{name}_by", function, window, value, of or "int64", by=pl.col("k"), parameters=told)


def _letters(of: str | None) -> str:
    return "events" if of is None else "".join(filter(str.isalnum, of))


N_PACKS = 4


def pack(name: str, number: int) -> ViewPlan:
    """Return one of the ``N_PACKS`` views that try everything over one of ``WINDOWS``: half have only filters."""
    halves = every_aggregation(plan_window(WINDOWS[name]))
    return small_view(halves[number % 2][number // 2 :: N_PACKS // 2])


def small_view(wanted: Sequence[Wanted], **given: object) -> ViewPlan:
    """A view of few features, or as many as it may have."""
    return view(*wanted, columns=PLAN_COLUMNS, shared=True, **given)


@dataclass(frozen=True)
class History:
    """``events``: decoded, in the order in which they count. ``clock_us``: where the shard's clock ends."""

    events: pl.DataFrame
    clock_us: int


def _starts() -> st.SearchStrategy[int]:
    """Draw the start of a history: an ordinary instant, one before the epoch, or one shortly before clocks change.

    One of the changes crosses midnight twice, and one skips a day.
    """
    berlin = ZoneInfo("Europe/Berlin")
    local = [
        dt.datetime(2017, 3, 25, 22, tzinfo=berlin),
        dt.datetime(2017, 10, 28, 23, 59, 58, tzinfo=berlin),
        dt.datetime(2016, 12, 31, 23, 59, 58, tzinfo=berlin),
        dt.datetime(2006, 10, 28, 23, 59, 58, tzinfo=ZoneInfo("America/St_Johns")),
        dt.datetime(2011, 12, 29, 23, 59, 58, tzinfo=ZoneInfo("Pacific/Apia")),
    ]
    return st.sampled_from(
        [1_483_228_800_000_000, -7_000_001, 0, *(int(moment.timestamp()) * 1_000_000 for moment in local)]
    )


@st.composite
def histories(draw: st.DrawFn, window: ViewWindow, *, max_events: int = 14) -> History:
    """Draw events out of order, late, from the future, at one instant, on edges and beside them, between idle gaps.

    ``window``: its hops and extent determine the steps. Entities come, go for longer than the window, and come again.
    Steps and lags also fall just below, at and above a session's gap, on whole hops and beside them.
    """
    hop, extent = window.hop_us or 3 * SECOND, window.extent_us or 6 * SECOND
    whole = extent + hop
    steps = st.sampled_from(
        [0, 0, 0, 1, hop // 2, hop - 1, hop, hop + 1, extent - 1, extent, extent + 1, whole - 1, whole, 3 * whole + 1]
        + ([2 * SECOND, MINUTE + SECOND, HOUR] if window.kind == "calendar" else [])
    )
    lags = st.sampled_from(
        [0, 0, 0, 1, hop // 2, hop - 1, hop, extent - 1, extent, extent + 1, whole - 1, whole, 2 * whole, -1, -hop, -whole]
    )  # fmt: skip
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
        d = draw(st.sampled_from(DECIMALS) | st.none())
        match draw(st.integers(0, 39)):
            case 0:
                x = draw(st.sampled_from(REFUSED))
            case 1:
                d = draw(st.sampled_from(REFUSED_DECIMALS))
        rows.append(
            (
                now,
                draw(st.integers(0, 1)),
                event_time,
                draw(st.sampled_from(["a", "a", "a", "b|é", "c", None])),
                x,
                draw(st.sampled_from(INT64) | st.integers(-9, 9) | st.none()),
                draw(st.sampled_from([True, False, None])),
                draw(st.sampled_from([*TEXTS, None, None])),
                draw(st.sampled_from([*INSTANTS, None])),
                d,
                draw(st.sampled_from([*KEYS_OF_MAPS, None])),
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
            "user": pl.String, "x": pl.Float64, "n": pl.Int64,
            **{name: PLAN_COLUMNS[name] for name in ("b", "s", "at", "d", "k", "pass")},
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
