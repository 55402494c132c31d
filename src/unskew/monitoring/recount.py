"""The independent recount: ``V(entity, feature, t)`` from raw events, in plain Python.

It shares no line with the kernel, its evaluation, its keys or its time arithmetic, and keeps no state between
instants: every answer is counted anew from the events that had arrived. Of a plan it reads what the author wrote
(functions, extents, hops, time zones, the text of filters and values), never what compiling derived from it.
SQL text is evaluated by DuckDB, Polars expressions by Polars.
"""

import datetime as dt
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from importlib import resources
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl

from unskew.features.errors import RequestError
from unskew.features.plan import POLARS_TYPES, FeaturePlan, FilterPlan, Scalar, ValuePlan, ViewPlan, WindowPlan

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
FLOAT_LIMIT = 2.0**62
RESOLUTION_BITS = 64
_UNITS_PER_ONE = 1 << RESOLUTION_BITS

# A local date lasts at most this long: 24 h, a shift of the clock, and a zone that changed sides of the date line.
_LONGEST_DAY_US = 75 * 3_600_000_000
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_SQL_TYPES = {"int64": "BIGINT", "float64": "DOUBLE", "bool": "BOOLEAN"}
_ARROW_INSTANT = pl.Datetime("us", "UTC")

Key = tuple[int | str, ...]
Values = dict[str, Scalar | None]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One expected log row; ``event_time``, ``partition``, ``offset`` are None where only a hop caused it."""

    instant_us: int
    values: Values
    cause: str
    event_time_us: int | None
    partition: int | None
    offset: int | None


@dataclass(frozen=True, kw_only=True)
class History:
    """The instants at which an entity's values may change, each list ascending and without repeats.

    ``arrivals``: of its events. ``edges``: at which an event falls out of a window behind its old edge.
    """

    arrivals: list[int]
    edges: list[int]


class Recount:
    """Counts one view's values anew from its raw events.

    ``events``: decoded events of the view's stream, in any order: payload columns, ``_partition``, ``_offset``,
    ``_arrival``, ``_event_time``. Rows that fail ``where``, lack a key part, or hold a float value that no sum can
    take (NaN, infinite, 2^62 or more) under a passing filter are left out, as the pipeline leaves them out.
    ``engines``: for each filter and value text, who evaluated it, ``duckdb`` or ``polars``.
    """

    def __init__(self, view: ViewPlan, events: pl.DataFrame) -> None:
        self.view = view
        self.engines: dict[str, str] = {}
        counted = self._counted(events)
        keys = list(view.entity.keys)
        counted = counted.sort([*keys, "_arrival", "_partition", "_offset"])
        self._columns = counted
        self._arrivals = counted["_arrival"].to_numpy()
        self._effectives = counted["_effective"].to_numpy()
        groups = counted.group_by(keys, maintain_order=True).agg(_n=pl.len())
        self.entities = groups.select(keys)
        self.events_per_entity = groups["_n"]
        self._spans: dict[Key, tuple[int, int]] = {}
        start = 0
        for *key, n in groups.iter_rows():
            self._spans[tuple(key)] = (start, start + n)
            start += n
        self.n_events = start
        # Those that do not count too: from here on the archive knows.
        self.first_us = int(events["_arrival"].to_physical().min()) if len(events) else 0  # type: ignore[arg-type]

    def values(self, key: Sequence[int | str], t_us: int) -> Values:
        """What the view's features are at ``t_us``, all events that arrived at that instant included.

        An entity without events has empty values: 0 for count and sum, None otherwise. Defaults are not applied.
        """
        start, stop = self._spans.get(tuple(key), (0, 0))
        stop = start + int(np.searchsorted(self._arrivals[start:stop], t_us, side="right"))
        inside = [self._inside(window, t_us, start, stop) for window in self.view.windows]
        return {feature.name: self._aggregate(feature, inside[feature.window]) for feature in self.view.features}

    def history(self, key: Sequence[int | str]) -> History:
        """When ``key``'s values may change; empty lists for an entity without events."""
        start, stop = self._spans.get(tuple(key), (0, 0))
        effectives = self._effectives[start:stop].tolist()
        edges = {_leaves(window, e) for window in self.view.windows for e in effectives}
        return History(
            arrivals=sorted(set(self._arrivals[start:stop].tolist())),
            edges=sorted(edges),
        )

    def rows(self, key: Sequence[int | str], complete_to_us: int) -> list[Row]:
        """The whole log of ``key`` up to and with ``complete_to_us``: a row wherever its values change, bit for bit."""
        history = self.history(key)
        rows: list[Row] = []
        values = self.values((), 0)  # no entity has the empty key: the values of one never seen
        for t_us in sorted({*history.arrivals, *history.edges}):
            if t_us > complete_to_us:
                break
            before, values = values, self.values(key, t_us)
            if not identical(before, values):
                rows.append(self._row(key, t_us, values))
        return rows

    def last_row(self, key: Sequence[int | str], t_us: int, after_us: int) -> Row | None:
        """The log row of ``key`` that stands at ``t_us``; None where none is past ``after_us``."""
        history = self.history(key)
        for instant in sorted({*history.arrivals, *history.edges}, reverse=True):
            if after_us < instant <= t_us:
                values = self.values(key, instant)
                if not identical(self.values(key, instant - 1), values):
                    return self._row(key, instant, values)
        return None

    def _row(self, key: Sequence[int | str], t_us: int, values: Values) -> Row:
        """A row at ``t_us``; its cause is the last event of the instant that some feature takes in."""
        start, stop = self._spans[tuple(key)]
        first = start + int(np.searchsorted(self._arrivals[start:stop], t_us, side="left"))
        past = start + int(np.searchsorted(self._arrivals[start:stop], t_us, side="right"))
        covers = [_covers(window, t_us) for window in self.view.windows]
        arrived = [
            i
            for i in range(first, past)
            if any(covers[f.window](int(self._effectives[i])) and self._takes(f, i) for f in self.view.features)
        ]
        if not arrived:
            return Row(instant_us=t_us, values=values, cause="hop", event_time_us=None, partition=None, offset=None)
        event = self._columns.row(arrived[-1], named=True)
        return Row(
            instant_us=t_us,
            values=values,
            cause="event",
            event_time_us=event["_event_time"],
            partition=event["_partition"],
            offset=event["_offset"],
        )

    def _takes(self, feature: FeaturePlan, row: int) -> bool:
        """Whether an event that the window covers enters the feature: it passes the filter, and its value is not null."""
        if feature.filter >= 0 and not self._columns[f"_f{feature.filter}"][row]:
            return False
        return feature.value < 0 or self._columns[f"_v{feature.value}"][row] is not None

    def instants(self, key: Sequence[int | str], event: int) -> tuple[int, list[int]]:
        """When the entity's ``event``-th event (in order of arrival) arrived, and when it leaves each window."""
        start, _ = self._spans[tuple(key)]
        effective = int(self._effectives[start + event])
        return int(self._arrivals[start + event]), [_leaves(window, effective) for window in self.view.windows]

    def _inside(self, window: WindowPlan, t_us: int, start: int, stop: int) -> list[int]:
        """Row numbers in [start, stop) whose effective time the window covers at ``t_us``."""
        # No event is effective after it arrives, so one that arrived before the old edge cannot be inside.
        lo = start + int(np.searchsorted(self._arrivals[start:stop], _oldest(window, t_us), side="left"))
        covers = _covers(window, t_us)
        return [lo + i for i, e in enumerate(self._effectives[lo:stop].tolist()) if covers(e)]

    def _aggregate(self, feature: FeaturePlan, rows: list[int]) -> Scalar | None:
        if rows and feature.filter >= 0:
            passes = self._slice(f"_f{feature.filter}", rows)
            rows = [row for row, passed in zip(rows, passes, strict=True) if passed]
        if feature.value < 0:
            return len(rows)
        read = self._slice(f"_v{feature.value}", rows)
        held = [(row, value) for row, value in zip(rows, read, strict=True) if value is not None]
        values = [value for _, value in held]
        is_float = self.view.values[feature.value].dtype == "float64"
        match feature.function:
            case "count":
                return len(values)
            case "sum":
                return _float_sum(values) if is_float else max(INT64_MIN, min(INT64_MAX, sum(values)))
            case _ if not values:
                return None
            case "mean":
                total = Fraction(_units(values), _UNITS_PER_ONE) if is_float else Fraction(sum(values))
                return float(total / len(values))
            case "min":
                return _typed(min(values), feature)
            case "max":
                return _typed(max(values), feature)
            case "last":
                latest = max(
                    held,
                    # Rows lie in (arrival, partition, offset) order, so the row number breaks every tie.
                    key=lambda pair: (int(self._effectives[pair[0]]), pair[0]),
                )
                return _typed(latest[1], feature)

    def _slice(self, column: str, rows: list[int]) -> list[Any]:
        """The values of one column at ascending row numbers."""
        if not rows:
            return []
        low = rows[0]
        near = self._columns[column].slice(low, rows[-1] - low + 1).to_list()
        return [near[row - low] for row in rows]

    def _counted(self, events: pl.DataFrame) -> pl.DataFrame:
        """The events that count, with effective time, filters ``_f0..`` and values ``_v0..`` beside the keys."""
        view = self.view
        micros = {
            name: events[name].cast(_ARROW_INSTANT).dt.timestamp("us").alias(name)
            for name in ("_arrival", "_event_time")
        }
        keys = [
            events[name].cast(pl.Int64 if kind == "int64" else pl.String)
            for name, kind in zip(view.entity.keys, view.entity.types, strict=True)
        ]
        filters = [self._passes(f, events).alias(f"_f{i}") for i, f in enumerate(view.filters)]
        values = [self._value(v, events).alias(f"_v{i}") for i, v in enumerate(view.values)]
        frame = pl.DataFrame(
            [
                *keys,
                events["_partition"],
                events["_offset"],
                *micros.values(),
                pl.Series("_effective", np.minimum(micros["_arrival"].to_numpy(), micros["_event_time"].to_numpy())),
                *filters,
                *values,
            ]
        )
        counts = pl.all_horizontal(pl.col(name).is_not_null() for name in view.entity.keys)
        if view.where is not None:
            counts = counts & self._passes(view.where, events)
        for feature in view.features:
            if feature.value < 0 or view.values[feature.value].dtype != "float64":
                continue
            value = pl.col(f"_v{feature.value}")
            fits = (value.is_finite() & (value.abs() < FLOAT_LIMIT)).fill_null(True)
            passes = pl.lit(True) if feature.filter < 0 else pl.col(f"_f{feature.filter}")
            counts = counts & (fits | ~passes)
        return frame.filter(counts)

    def _passes(self, condition: FilterPlan, events: pl.DataFrame) -> pl.Series:
        return self._evaluate(condition, "BOOLEAN", pl.Boolean(), events).fill_null(value=False)

    def _value(self, value: ValuePlan, events: pl.DataFrame) -> pl.Series:
        kind: pl.DataType = pl.Float64() if value.dtype == "float64" else pl.Int64()
        read = self._evaluate(value, _SQL_TYPES[value.dtype], kind, events)
        # -0.0 reads as 0.0; adding 0.0 would not do it, for Polars knows that to change nothing.
        return read.set(read == 0.0, 0.0) if value.dtype == "float64" else read

    def _evaluate(
        self, plan: FilterPlan | ValuePlan, sql_type: str, kind: pl.DataType, events: pl.DataFrame
    ) -> pl.Series:
        if _is_sql(plan):
            answer = _duckdb(plan, sql_type, events)
            if answer is not None:
                self.engines[plan.text] = "duckdb"
                return answer.cast(kind)
        self.engines[plan.text] = "polars"
        return events.with_columns(_x=plan.expr)["_x"].cast(kind)


def identical(left: Values, right: Values) -> bool:
    """Whether two rows are the same bit for bit: 0.0 is not -0.0, and 1 is neither 1.0 nor True."""
    return left.keys() == right.keys() and all(_bits(left[name]) == _bits(right[name]) for name in left)


def _bits(value: Scalar | None) -> tuple[type, Any]:
    return type(value), value.hex() if isinstance(value, float) else value


def _typed(value: float, feature: FeaturePlan) -> Scalar:
    return bool(value) if feature.dtype == "bool" else value


def _units(values: list[float]) -> int:
    """The exact sum in units of 2^-64, each value rounded to the nearest unit, ties to even."""
    # Scaling by a power of two is exact below 2^62, and Python rounds a float to an int half-even.
    return sum(round(math.ldexp(value, RESOLUTION_BITS)) for value in values)


def _float_sum(values: list[float]) -> float:
    return _units(values) / _UNITS_PER_ONE  # int / int is rounded once, correctly


def _oldest(window: WindowPlan, t_us: int) -> int:
    """No later than the window's old edge at ``t_us``."""
    match window.kind:
        case "sliding":
            return t_us // window.hop_us * window.hop_us - window.extent_us
        case "tumbling":
            return t_us // window.extent_us * window.extent_us
        case "calendar":
            return t_us - _LONGEST_DAY_US


def _covers(window: WindowPlan, t_us: int) -> Callable[[int], bool]:
    """Return a test of effective times no later than ``t_us``: whether the window covers one at ``t_us``."""
    if window.kind == "calendar":
        today = _local_date(t_us, window.tz)
        return lambda effective: _local_date(effective, window.tz) == today
    edge = _oldest(window, t_us)
    return lambda effective: effective >= edge


def _leaves(window: WindowPlan, effective_us: int) -> int:
    """The first instant at which the window no longer covers ``effective_us``."""
    match window.kind:
        case "sliding":
            return (effective_us // window.hop_us + 1) * window.hop_us + window.extent_us
        case "tumbling":
            return (effective_us // window.extent_us + 1) * window.extent_us
        case "calendar":
            return _day_ends(_local_date(effective_us, window.tz), window.tz)


def _local_date(t_us: int, tz: str | None) -> dt.date:
    instant = _EPOCH + dt.timedelta(microseconds=t_us)
    return instant.astimezone(_zone(tz or "UTC")).date()


@lru_cache(maxsize=64)
def _zone(tz: str) -> ZoneInfo:
    """Read the zone from the ``tzdata`` package, as definitions promise, and not from the machine's own files."""
    with resources.files("tzdata").joinpath("zoneinfo", *tz.split("/")).open("rb") as file:
        return ZoneInfo.from_file(file, key=tz)


@lru_cache(maxsize=65536)
def _day_ends(day: dt.date, tz: str | None) -> int:
    """The first instant whose local date is past ``day``, found by halving, without trust in any offset."""
    noon = int((dt.datetime(day.year, day.month, day.day, 12, tzinfo=dt.UTC) - _EPOCH) / dt.timedelta(microseconds=1))
    low, high = noon - _LONGEST_DAY_US, noon + _LONGEST_DAY_US
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _local_date(middle, tz) > day else (middle, high)
    return high


def _is_sql(plan: FilterPlan | ValuePlan) -> bool:
    """Whether the text is what the author wrote as SQL, and not the rendering of a Polars expression."""
    try:
        parsed = pl.sql_expr(plan.text)
    except pl.exceptions.PolarsError:
        return False
    # A compiled value is cast to its declared type.
    meant = [parsed, parsed.cast(POLARS_TYPES[plan.dtype])] if isinstance(plan, ValuePlan) else [parsed]
    return any(expr.meta.eq(plan.expr) for expr in meant)


def _duckdb(plan: FilterPlan | ValuePlan, sql_type: str, events: pl.DataFrame) -> pl.Series | None:
    """One expression over all events, in their order; None where DuckDB's SQL does not know it."""
    try:
        import duckdb  # noqa: PLC0415  an optional dependency, asked for only where there is SQL
    except ImportError as error:
        raise RequestError(
            "the recount evaluates SQL text with DuckDB, which is not installed: pip install duckdb pyarrow"
        ) from error
    frame = events.select(pl.int_range(pl.len()).alias("_row"), *sorted(set(plan.expr.meta.root_names())))
    # The text is the author's own definition, which the pipeline has compiled and run.
    query = f"SELECT CAST(({_double_literals(plan.text)}) AS {sql_type}) AS x FROM frame ORDER BY _row"  # noqa: S608
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("frame", frame.to_arrow())
        try:
            answer: pl.DataFrame = connection.sql(query).pl()
        except duckdb.Error:
            return None
    return answer["x"]


def _double_literals(sql: str) -> str:
    """``sql`` with 1.5 written 1.5e0, outside quotes: a float in Polars' SQL, but a decimal in DuckDB's."""
    return re.sub(
        r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|(?<![\w.])(?:\d+\.\d*|\.\d+)(?![\w.])""",
        lambda m: m.group() if m.group()[0] in "'\"" else m.group() + "e0",
        sql,
    )
