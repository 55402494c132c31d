"""Hypothesis strategies: events that a stream takes, drawn from its schema."""

import datetime as dt
import string
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import polars as pl

from unskew.features.definitions.vocabulary import Stream, Table
from unskew.features.errors import RequestError, shown
from unskew.features.extras import needed
from unskew.features.nearest import nearest
from unskew.features.plan import StreamPlan
from unskew.features.references import requested_us
from unskew.features.time import moment_of
from unskew.features.types import TIMESTAMP

with needed("unskew.testing.strategies", "hypothesis", extra="testing"):
    from hypothesis import strategies as st

with needed("unskew.testing.strategies", extra="pipeline"):
    from unskew.testing.given import Field, fields_of
    from unskew.testing.replayed import Instant, checked_us, compiled

Event = dict[str, Any]

_KEYS = ("a", "b", "c")
_NUMBER = 10**6


def events(
    stream: Stream | Table | StreamPlan,
    *,
    start: Instant = "2026-01-01T00:00:00Z",
    length: str | dt.timedelta = "1h",
    min_size: int = 0,
    max_size: int = 20,
    arrival: str | None = None,
    late: str | dt.timedelta = "10min",
    **fields: st.SearchStrategy[Any],
) -> st.SearchStrategy[list[Event]]:
    """Draw lists of events as ``values`` takes them, in any order; a shrunk example has few events and small values.

    They happen from ``start`` on, within ``length``. ``arrival``: the name of a field that says when an event arrived,
    up to ``late`` after it happened. ``fields``: by column of the stream, what is drawn for it, in place of all that
    its type allows: ``user_id=st.sampled_from(["u-1", "u-2"])``. Columns by which the stream is partitioned have few
    values, so that entities have several events. Numbers lie within a million, so that few expressions overflow. What
    may be null or missing sometimes is.

    Raises ``RequestError`` for a column that the stream does not have.
    """
    plan = _planned(stream)
    columns = list(fields_of(plan))
    known = [field.name for field in columns]
    for name in fields:
        if name not in known:
            raise RequestError(f"stream {plan.name!r} has no column {name!r}; {nearest(name, known, 'it has')}")
    first_us = checked_us(start)
    happens = _instants(first_us, requested_us(length, "length"))
    arrives = _instants(0, requested_us(late, "late")).map(lambda moment: moment - moment_of(0))
    drawn = {
        field.name: fields.get(field.name, happens if field.name == plan.event_time else _column(plan, field, happens))
        for field in columns
    }

    @st.composite
    def event(draw: st.DrawFn) -> Event:
        found: Event = {}
        for field in columns:
            value = draw(drawn[field.name])
            if value is _LEFT_OUT:
                continue
            inside = found
            for name in field.path[:-1]:
                inside = inside.setdefault(name, {})
            inside[field.path[-1]] = value
        if arrival is not None:
            found[arrival] = _moment(found, plan, columns) + draw(arrives)
        return found

    return st.lists(event(), min_size=min_size, max_size=max_size)


_LEFT_OUT = object()


def _planned(stream: Stream | Table | StreamPlan) -> StreamPlan:
    if isinstance(stream, StreamPlan):
        return stream
    if not isinstance(stream, Stream | Table):
        raise RequestError(f"give a Stream or a Table, not {shown(stream)}")
    return compiled([stream]).streams[stream.name]


def _moment(event: Mapping[str, Any], plan: StreamPlan, columns: list[Field]) -> dt.datetime:
    (path,) = (field.path for field in columns if field.name == plan.event_time)
    value: Any = event
    for name in path:
        value = value[name]
    return moment_of(checked_us(value))


def _instants(first_us: int, length_us: int) -> st.SearchStrategy[dt.datetime]:
    """Draw whole seconds more often than anything between: edges of windows lie there."""
    seconds = st.integers(0, length_us // 1_000_000).map(lambda n: n * 1_000_000)
    return (seconds | st.integers(0, length_us)).map(lambda us: moment_of(first_us + us))


def _column(plan: StreamPlan, field: Field, happens: st.SearchStrategy[dt.datetime]) -> st.SearchStrategy[Any]:
    found = _values(plan, field, happens)
    is_key = field.name in {*plan.partitioned_by, plan.key_column}
    if field.nullable and not is_key:
        found = st.none() | found
    elif not field.required and not is_key:
        found = st.just(_LEFT_OUT) | found
    return found


def _values(plan: StreamPlan, field: Field, happens: st.SearchStrategy[dt.datetime]) -> st.SearchStrategy[Any]:
    dtype = field.dtype
    is_key = field.name in {*plan.partitioned_by, plan.key_column}
    if dtype == TIMESTAMP:
        return happens
    if field.symbols:
        return st.sampled_from(field.symbols)
    if dtype == pl.String():
        return st.sampled_from(_KEYS) if is_key else st.text(string.ascii_lowercase, max_size=6) | st.text(max_size=6)
    if dtype == pl.Boolean():
        return st.booleans()
    if dtype.is_integer():
        return st.integers(1, len(_KEYS)) if is_key else st.integers(-_NUMBER, _NUMBER)
    if dtype.is_float():
        return st.floats(-_NUMBER, _NUMBER, width=32 if dtype == pl.Float32() else 64)
    if isinstance(dtype, pl.Decimal):
        scale = dtype.scale
        return st.integers(-_NUMBER, _NUMBER).map(lambda units: Decimal(units).scaleb(-scale))
    if dtype == pl.Date():
        return happens.map(dt.datetime.date)
    if dtype == pl.Time():
        return happens.map(dt.datetime.time)
    return st.binary(max_size=8)
