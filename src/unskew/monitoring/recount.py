"""The independent recount: ``V(entity, feature, t)`` from raw events, in plain Python.

It shares no line with the kernel, its evaluation, its keys or its time arithmetic. It keeps nothing between instants
except which events belonged to which session: every answer is counted again from the events that had arrived. It reads
those parts of a plan that the author wrote (functions and their parameters, extents, hops, time zones, the text of
filters and values), and never what the compiler derived from them. DuckDB evaluates SQL text, Polars evaluates Polars
expressions.
"""

import datetime as dt
import heapq
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby, takewhile
from typing import Any

import numpy as np
import polars as pl

from unskew.features.plan import FeaturePlan, ViewPlan
from unskew.features.types import TIMESTAMP, Type
from unskew.monitoring.recount_aggregates import INT64_MAX, Counted, Value, aggregate
from unskew.monitoring.recount_texts import Texts
from unskew.monitoring.recount_windows import (
    Sitting,
    all_edges,
    covers,
    distinct,
    edges,
    hops,
    instant,
    oldest_us,
    sittings,
)

FLOAT_LIMIT = 2.0**62

Key = tuple[int | str, ...]
Values = dict[str, Value]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One expected log row; ``event_time_us``, ``partition`` and ``offset`` are None if only a hop caused it."""

    instant_us: int
    values: Values
    cause: str
    event_time_us: int | None
    partition: int | None
    offset: int | None


@dataclass(frozen=True, kw_only=True)
class History:
    """The instants at which an entity's values may change, each list ascending and without repeats.

    ``arrivals``: the arrivals of its events. ``edges``: the instants at which time alone moves an event into a window
    or out of it, ends a session, or makes an event older that is weighted by its age.
    """

    arrivals: list[int]
    edges: list[int]


class Recount:
    """Recounts one view's values from its raw events.

    ``events``: decoded events of the view's stream, in any order: payload columns, ``_partition``, ``_offset``,
    ``_arrival``, ``_event_time``. Like the pipeline, the recount leaves out rows that fail ``where``, lack a key part,
    or hold, under a passing filter, a value that a sum cannot take (a float that is NaN, infinite, or 2^62 or more; a
    decimal of 2^63 units or more), and rows on which a filter or value is out of the range of its type. It also leaves
    out repeats, if the stream defines them.

    The attribute ``engines`` gives the engine that evaluated each filter and value text, ``duckdb`` or ``polars``, and
    ``dependent`` the reason for each that only the pipeline's own engine evaluates. The
    attribute ``events`` holds what the view aggregates, including events that do not count: the given events, or the
    sessions if the view is over sessions. ``inner`` is the recount of these sessions, else None.
    """

    def __init__(self, view: ViewPlan, events: pl.DataFrame) -> None:
        self.view = view
        self._texts = Texts()
        self.engines = self._texts.engines
        self.dependent = self._texts.dependent
        self.inner: Recount | None = None
        if view.sessions is not None:
            self.inner = Recount(view.sessions, events)
            self.engines |= self.inner.engines
            self.dependent |= self.inner.dependent
            events = self.inner.closed_sessions()
        self.events = events
        keys = list(view.entity.keys)
        counted = self._counted(events).sort([*keys, "_arrival", "_partition", "_offset"])
        if view.sessions is None and view.stream.dedupe_within_us is not None:
            counted = _without_repeats(counted, keys, view.stream.dedupe_within_us)
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
        self._sittings: dict[tuple[int, int], list[Sitting]] = {}
        self._derived: dict[tuple[Any, ...], Value] = {}

    def values(self, key: Sequence[int | str], t_us: int) -> Values:
        """Return the view's features at ``t_us``, including all events that arrived at that instant.

        An entity without events has empty values: 0 for counts and sums, None for most others. Defaults are not
        applied.
        """
        read = _Columns(self._columns)
        inside = [self._inside(number, key, t_us) for number in range(len(self.view.windows))]
        values = {
            feature.name: self._aggregate(feature, t_us, inside[feature.window], read) for feature in self.view.features
        }
        return values | {plan.name: self._derive(number, values) for number, plan in enumerate(self.view.derived)}

    def history(self, key: Sequence[int | str]) -> History:
        """Return the instants at which the values of ``key`` may change; empty lists for an entity without events."""
        start, stop = self._span(key)
        effectives = np.sort(self._effectives[start:stop])
        found: set[int] = set()
        for number, window in enumerate(self.view.windows):
            found |= all_edges(window, effectives)
            if window.kind == "session":
                found.update(sitting.over_us() for sitting in self._sat(number, key))
            if self._ages(number):
                found.update(hops(window, effectives.tolist()))
        return History(arrivals=distinct(self._arrivals[start:stop]).tolist(), edges=sorted(found))

    def rows(self, key: Sequence[int | str], complete_to_us: int) -> list[Row]:
        """Return the whole log of ``key`` through ``complete_to_us``: a row wherever its values change, bit for bit."""
        history = self.history(key)
        rows: list[Row] = []
        values = self.values((), 0)  # no entity has the empty key, so these are the values of an entity never seen
        for t_us in sorted({*history.arrivals, *history.edges}):
            if t_us > complete_to_us:
                break
            before, values = values, self.values(key, t_us)
            if not identical(before, values):
                rows.append(self._row(key, t_us, values))
        return rows

    def last_row(self, key: Sequence[int | str], t_us: int, after_us: int) -> Row | None:
        """Return the log row of ``key`` that is valid at ``t_us``; None if it has no row after ``after_us``."""
        history = self.history(key)
        # Only the last few are looked at, of perhaps a million.
        before = [moments[: bisect_right(moments, t_us)] for moments in (history.arrivals, history.edges)]
        latest = heapq.merge(*(reversed(moments) for moments in before), reverse=True)
        for moment, _ in groupby(takewhile(lambda moment: moment > after_us, latest)):
            values = self.values(key, moment)
            if not identical(self.values(key, moment - 1), values):
                return self._row(key, moment, values)
        return None

    def instants(self, key: Sequence[int | str], event: int) -> tuple[int, list[int]]:
        """Return the arrival of the entity's ``event``-th event (by arrival), and when time alone changes its effect.

        The second list is empty if all windows are lifetimes.
        """
        start, _ = self._span(key)
        row = start + event
        effective = int(self._effectives[row])
        found: list[int] = []
        for number, window in enumerate(self.view.windows):
            found += hops(window, [effective]) if self._ages(number) else edges(window, effective)
            if window.kind == "session":
                found += [sitting.over_us() for sitting in self._sat(number, key) if row in sitting.rows()]
        return int(self._arrivals[row]), found

    def quiet_from(self, window_number: int, key: Sequence[int | str], known_us: int) -> int:
        """Return from when on a session window is known, if all events of ``key`` are known from ``known_us`` on.

        That is the first instant, a gap and a hop later or more, at which no session of the known events runs: by then
        no session of earlier events can run either, because whatever joined and prolonged it was known.
        """
        window = self.view.windows[window_number]
        quiet_us = known_us + window.extent_us + window.hop_us
        for sitting in self._sat(window_number, key):
            if sitting.joined[0][1] <= quiet_us < sitting.over_us():
                quiet_us = sitting.over_us()
        return quiet_us

    def counted(self) -> pl.DataFrame:
        """Return keys, ``_partition``, ``_offset`` and ``_arrival`` (microseconds) of the events that count, by key."""
        return self._columns.select(*self.view.entity.keys, "_partition", "_offset", "_arrival")

    def closed_sessions(self) -> pl.DataFrame:
        """Return all sessions of the view's only window, each as an event that arrives when the session ends."""
        view = self.view
        read = _Columns(self._columns)
        rows: list[dict[str, Any]] = []
        for key in self._spans:
            for sitting in self._sat(0, key):
                members = sitting.rows()
                times = [int(self._effectives[row]) for row in members]
                # Rows are in (arrival, partition, offset) order, so the row number breaks every tie.
                latest = max(members, key=lambda row: (int(self._effectives[row]), row))
                over_us = sitting.over_us()
                of_session = {
                    feature.name: self._aggregate(feature, over_us, members, read) for feature in view.features
                }
                rows.append(
                    dict(zip(view.entity.keys, key, strict=True))
                    | {
                        "start": instant(min(times)),
                        "end": instant(max(times)),
                        "length_s": (max(times) - min(times)) / 1e6,
                        "events": len(members),
                    }
                    | of_session
                    | {name: self._columns[name][latest] for name in ("_partition", "_offset")}
                    | {"_arrival": instant(over_us), "_event_time": instant(over_us)}
                )
        schema = {name: self._columns.schema[name] for name in view.entity.keys}
        schema |= {"start": TIMESTAMP, "end": TIMESTAMP, "length_s": pl.Float64(), "events": pl.Int64()}
        schema |= {feature.name: feature.dtype.polars for feature in view.features}
        schema |= {name: self._columns.schema[name] for name in ("_partition", "_offset")}
        return pl.DataFrame(rows, schema | {"_arrival": TIMESTAMP, "_event_time": TIMESTAMP}, orient="row")

    def _row(self, key: Sequence[int | str], t_us: int, values: Values) -> Row:
        """Return the row at ``t_us``; its cause is the last event of that instant that enters some feature."""
        start, stop = self._span(key)
        first = start + int(np.searchsorted(self._arrivals[start:stop], t_us, side="left"))
        read = _Columns(self._columns)
        taken = {
            row
            for number in range(len(self.view.windows))
            for row in self._inside(number, key, t_us)
            if row >= first and any(self._takes(f, [row], read) for f in self.view.features if f.window == number)
        }
        if not taken:
            return Row(instant_us=t_us, values=values, cause="hop", event_time_us=None, partition=None, offset=None)
        event = self._columns.row(max(taken), named=True)
        return Row(
            instant_us=t_us,
            values=values,
            cause="event",
            event_time_us=event["_event_time"],
            partition=event["_partition"],
            offset=event["_offset"],
        )

    def _span(self, key: Sequence[int | str]) -> tuple[int, int]:
        """Return the entity's rows, as a range."""
        return self._spans.get(tuple(key), (0, 0))

    def _inside(self, window_number: int, key: Sequence[int | str], t_us: int) -> list[int]:
        """Return the rows of the entity that have arrived by ``t_us`` and that the window covers then, ascending."""
        window = self.view.windows[window_number]
        if window.kind == "session":
            begun = [one for one in self._sat(window_number, key) if one.joined[0][1] <= t_us]
            return begun[-1].rows(t_us) if begun else []
        start, stop = self._span(key)
        arrivals = self._arrivals[start:stop]
        stop = start + int(np.searchsorted(arrivals, t_us, side="right"))
        oldest = oldest_us(window, t_us)
        # The effective time is never after the arrival, so an event that arrived before the old edge is not inside.
        low = start if oldest is None else start + int(np.searchsorted(arrivals, oldest, side="left"))
        is_covered = covers(window, t_us)
        return [low + i for i, effective in enumerate(self._effectives[low:stop].tolist()) if is_covered(effective)]

    def _sat(self, window_number: int, key: Sequence[int | str]) -> list[Sitting]:
        """Return all sessions of an entity; later events never remove an event from a session."""
        start, stop = self._span(key)
        if start == stop:
            return []
        if (window_number, start) not in self._sittings:
            read = _Columns(self._columns)
            mine = [feature for feature in self.view.features if feature.window == window_number]
            taken = sorted({row for feature in mine for row in self._takes(feature, list(range(start, stop)), read)})
            came = [(row, int(self._arrivals[row]), int(self._effectives[row])) for row in taken]
            self._sittings[window_number, start] = sittings(self.view.windows[window_number], came)
        return self._sittings[window_number, start]

    def _ages(self, window_number: int) -> bool:
        """Return whether some feature weights the window's events by their age."""
        return any(f.window == window_number and f.function.startswith("decayed_") for f in self.view.features)

    def _takes(self, feature: FeaturePlan, rows: list[int], read: "_Columns") -> list[int]:
        """Return those of the ascending rows that enter the feature: filter passed, value and key not null."""
        if rows and feature.filter >= 0:
            rows = [row for row, passed in zip(rows, read(f"_f{feature.filter}", rows), strict=True) if passed]
        for column in (feature.value, feature.by):
            if rows and column >= 0:
                rows = [row for row, value in zip(rows, read(f"_v{column}", rows), strict=True) if value is not None]
        return rows

    def _aggregate(self, feature: FeaturePlan, t_us: int, rows: list[int], read: "_Columns") -> Value:
        rows = self._takes(feature, rows, read)
        if feature.function == "count" and feature.by < 0:
            return len(rows)
        counted = Counted(
            self._effectives[rows].tolist() if rows else [],
            read(f"_v{feature.value}", rows) if feature.value >= 0 else [],
            read(f"_v{feature.by}", rows) if feature.by >= 0 else [],
        )
        value_type = None if feature.value < 0 else self.view.values[feature.value].dtype
        return aggregate(feature, value_type, self.view.windows[feature.window], t_us, counted)

    def _derive(self, number: int, values: Values) -> Value:
        """Return a derived feature of one row; equal inputs are evaluated once."""
        plan = self.view.derived[number]
        given = {name: values[name] for name in plan.inputs}
        known = (number, *(_bits(value) for value in given.values()))
        if known not in self._derived:
            types = {f.name: f.dtype.polars for f in self.view.features if f.name in given}
            frame = pl.DataFrame({name: pl.Series([value], dtype=types[name]) for name, value in given.items()})
            (value,) = self._texts.value(plan, frame).to_list()
            finite = not isinstance(value, float) or np.isfinite(value)
            self._derived[known] = value if finite else None
        return self._derived[known]

    def _read(
        self, read: Callable[[Any, pl.DataFrame], pl.Series], plan: Any, events: pl.DataFrame, name: str
    ) -> tuple[pl.Series, pl.Series]:
        """Return a text's values, and where it has none because a number is out of its type's range."""
        self._texts.failed.clear()
        values = read(plan, events).alias(name)
        return values, pl.int_range(len(values), eager=True).is_in(sorted(self._texts.failed))

    def _counted(self, events: pl.DataFrame) -> pl.DataFrame:
        """Return the events that count: keys, effective time, filters ``_f0..`` and values ``_v0..``."""
        view = self.view
        micros = {
            name: events[name].cast(TIMESTAMP).dt.timestamp("us").alias(name) for name in ("_arrival", "_event_time")
        }
        keys = [
            events[name].cast(pl.Int64 if kind == "int64" else pl.String)
            for name, kind in zip(view.entity.keys, view.entity.types, strict=True)
        ]
        filters = [self._read(self._texts.passes, f, events, f"_f{i}") for i, f in enumerate(view.filters)]
        values = [self._read(self._texts.value, v, events, f"_v{i}") for i, v in enumerate(view.values)]
        effective = np.minimum(micros["_arrival"].to_numpy(), micros["_event_time"].to_numpy())
        frame = pl.DataFrame(
            [
                *keys,
                events["_partition"],
                events["_offset"],
                *micros.values(),
                pl.Series("_effective", effective, pl.Int64),
                *(values for values, _ in filters),
                *(values for values, _ in values),
            ]
        )
        if view.sessions is None and view.stream.event_id is not None and view.stream.dedupe_within_us is not None:
            frame = frame.with_columns(events[view.stream.event_id].alias("_id"))
        counts = pl.all_horizontal(pl.col(name).is_not_null() for name in view.entity.keys)
        if view.where is not None:
            passing, fails = self._read(self._texts.passes, view.where, events, "_where")
            counts = counts & passing & ~fails
        for feature in view.features:
            passes = pl.lit(True) if feature.filter < 0 else pl.col(f"_f{feature.filter}")
            if feature.filter >= 0:
                counts = counts & ~filters[feature.filter][1]
            # A value of an event that the feature does not take may be anything.
            for number in (feature.value, feature.by):
                if number >= 0:
                    counts = counts & ~(values[number][1] & passes)
            if feature.value < 0 or (fits := _fits(feature.value, view.values[feature.value].dtype)) is None:
                continue
            counts = counts & (fits.fill_null(True) | ~passes)
        return frame.filter(counts)


class _Columns:
    """Columns by row number: each range is read once for all features of an instant, and no more than they ask for."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self._frame = frame
        self._read: dict[tuple[str, int, int], list[Any]] = {}

    def __call__(self, column: str, rows: list[int]) -> list[Any]:
        """Return the values at ascending row numbers."""
        if not rows:
            return []
        low, n_rows = rows[0], rows[-1] - rows[0] + 1
        near = self._read.get((column, low, n_rows))
        if near is None:
            near = self._read[column, low, n_rows] = self._frame[column].slice(low, n_rows).to_list()
        return [near[row - low] for row in rows]


def _fits(value: int, dtype: Type) -> pl.Expr | None:
    """Return the condition that sums can take the value; None if they can take every value."""
    column = pl.col(f"_v{value}")
    if dtype.scalar == "float64":
        return column.is_finite() & (column.abs() < FLOAT_LIMIT)
    return column.abs() <= Decimal(INT64_MAX).scaleb(-dtype.scale) if dtype.is_decimal else None


def _without_repeats(events: pl.DataFrame, keys: list[str], within_us: int) -> pl.DataFrame:
    """Leave out events that repeat an id of their entity at most ``within_us`` later, by arrival.

    ``events``: in order.
    """
    had: dict[tuple[Any, ...], int] = {}
    first = []
    for *key, one, arrival in events.select(*keys, "_id", "_arrival").iter_rows():
        before = None if one is None else had.get((*key, one))
        is_first = before is None or arrival - before > within_us
        if is_first:
            had[*key, one] = arrival
        first.append(is_first)
    return events.filter(pl.Series(first, dtype=pl.Boolean))


def identical(left: Values, right: Values) -> bool:
    """Return whether two rows are the same bit for bit.

    0.0 is not -0.0, 1 is neither 1.0 nor True, and 1.0 is not 1.00 as decimals.
    """
    return left.keys() == right.keys() and all(_bits(left[name]) == _bits(right[name]) for name in left)


def _bits(value: Any) -> tuple[Any, ...]:
    """Return a key that is equal for identical values; an instant is the same in any notation of UTC."""
    match value:
        case float():
            return float, value.hex()
        case Decimal():
            return Decimal, *value.as_tuple()
        case dt.datetime():
            return dt.datetime, value.isoformat()
        case list():
            return list, *map(_bits, value)
        case dict():
            return dict, *((key, _bits(inner)) for key, inner in value.items())
        case _:
            return type(value), value
