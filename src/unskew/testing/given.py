"""Events as a test gives them: Python values by the names of the stream's schema, checked as history in files is."""

import datetime as dt
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl

from unskew.features.definitions.avro_schema import avro_fields
from unskew.features.definitions.inputs import row_of
from unskew.features.definitions.json_schema import json_fields
from unskew.features.errors import RequestError, shown
from unskew.features.frames import Table, read_table
from unskew.features.nearest import nearest
from unskew.features.plan import StreamPlan
from unskew.features.references import requested_us
from unskew.features.rejection import Rejection
from unskew.features.time import MAX_INSTANT_US, MIN_INSTANT_US, instant_us, moment_of
from unskew.features.types import TIMESTAMP
from unskew.pipelines.history.archive import META
from unskew.pipelines.history.fitting import ARRIVAL, ROW, Arrivals, Fitting
from unskew.sinks.tables.layout import INSTANT

Arrival = str | dt.timedelta | None

_ARRIVED = "_arrived"
_INT64 = 2**63
# What a producer's clock says is cut off to these units on its way.
_UNITS_US = {"timestamp-millis": 1_000, "local-timestamp-millis": 1_000, "timestamp-s": 1_000_000}
_MISSING = object()


@dataclass(frozen=True, kw_only=True)
class Events:
    """The events of one stream in the order in which they count: by arrival, and then as they were given.

    ``frame``: the stream's columns, and those of ``META``; the offset is the place in this order. ``numbers``: by
    offset, the place in which the event was given.
    """

    stream: StreamPlan
    frame: pl.DataFrame
    numbers: Sequence[int]

    def refused(self, offset: int, reason: str) -> RequestError:
        """Return the error about an event that a view cannot take."""
        return _refused(self.stream, self.numbers[offset], reason, 1)


@dataclass(frozen=True, kw_only=True)
class Field:
    """A column of the stream, and how its value is found in an event.

    ``path``: the names that lead to it. ``default``: the schema's, in a tuple of one; empty if there is none.
    ``unit_us``: times are cut off to it. ``per_second``, ``whole``: a time may be a number of so many units in a
    second, and must be a whole one. ``as_text``: a number may also be a text. ``zone``: that of times without one; UTC
    if None.
    """

    name: str
    dtype: pl.DataType
    path: tuple[str, ...]
    default: tuple[Any, ...] = ()
    nullable: bool = True
    required: bool = False
    symbols: tuple[str, ...] = ()
    unit_us: int = 1
    per_second: int = 0
    whole: bool = False
    as_text: bool = False
    zone: str | None = None


def events_of(stream: StreamPlan, given: Table, *, arrival: Arrival, skip_refused: bool) -> Events:
    """Return the events that a test gives. ``arrival``, ``skip_refused``: as for ``testing.values``.

    Raises ``RequestError`` for a field that the stream does not have, and for an event that the stream refuses.
    """
    rows = rows_of(stream, given)
    fields = list(fields_of(stream))
    arrivals = _arrivals(stream, arrival)
    if arrivals.column is not None and arrivals.column not in stream.columns:
        zone = None if stream.table is None else stream.table.zone
        fields.append(Field(name=_ARRIVED, dtype=TIMESTAMP, path=(arrivals.column,), zone=zone))
        arrivals = Arrivals(column=_ARRIVED, else_delay=arrivals.else_delay)
    _refuse_unknown(stream, rows, fields)
    reasons: dict[int, Rejection] = {}
    cells: dict[str, list[Any]] = {field.name: [] for field in fields}
    for number, row in enumerate(rows):
        for field in fields:
            value = _read(row, field, number, reasons)
            if value is None and field.name == stream.event_time:
                why = f"{'.'.join(field.path)} is {'null' if field.path[0] in row else 'missing'}, and it is the event time"
                reasons.setdefault(number, Rejection("time", why))
            cells[field.name].append(value)
    sound = [number for number in range(len(rows)) if number not in reasons]
    frame = pl.DataFrame(
        [pl.Series(field.name, [cells[field.name][number] for number in sound], dtype=_raw(field)) for field in fields]
    )
    fitting = Fitting(
        stream,
        arrivals,
        renamed={},
        without=frozenset(),
        zone=None if stream.table is None else stream.table.zone,
        places={},
    )
    refused: dict[int, Rejection] = {}
    try:
        events = fitting(frame, refused)
    except RequestError as error:
        raise RequestError(f"events of stream {stream.name!r}: {error}") from error
    reasons |= {sound[at]: why for at, why in refused.items()}
    if reasons and not skip_refused:
        first = min(reasons)
        raise _refused(stream, first, reasons[first].reason, len(reasons))
    events = events.sort(ARRIVAL, maintain_order=True)
    numbers = [sound[row] for row in events[ROW].to_list()]
    in_order = events.with_columns(
        pl.lit(0, pl.Int32).alias("_partition"),
        pl.Series("_offset", np.arange(events.height), pl.Int64),
        pl.col(ARRIVAL).cast(INSTANT),
    )
    return Events(stream=stream, frame=in_order.select(*stream.columns, *META), numbers=numbers)


def _refused(stream: StreamPlan, number: int, reason: str, n_refused: int) -> RequestError:
    more = "" if n_refused == 1 else f" ({n_refused} events are refused in all)"
    return RequestError(
        f"event {number} of stream {stream.name!r}: {reason}{more}; correct it, or leave out what a pipeline would make dead "
        "letters of, with skip_refused=True"
    )


def rows_of(stream: StreamPlan, given: Table) -> Sequence[Mapping[str, Any]]:
    """Return events as mappings. Raises ``RequestError`` for what is not a table."""
    try:
        table = read_table(given)
        if table.of_objects:
            return list(given)
        return table.polars().to_dicts()
    except RequestError as error:
        raise RequestError(f"events of stream {stream.name!r}: {error}") from error


def fields_of(stream: StreamPlan) -> Iterator[Field]:
    """Yield each column of a stream, as it is found in events."""
    schema = row_of(stream.schema) if stream.envelope == "debezium" else stream.schema
    about: Mapping[str, Any]
    if stream.format == "json":
        about = {field.name: field for field in json_fields(schema, stream.paths)}
    else:
        about = {field.name: field for field in avro_fields(stream.reader)}
    renamed = {} if stream.table is None else stream.table.renamed
    for name, dtype in stream.columns.items():
        field = about.get(name)
        form = stream.read_as.get(name)
        logical = getattr(field, "logical", None)
        default = getattr(field, "default", ()) if logical is None and form is None else ()
        zone = None if stream.table is None else stream.table.zone
        yield Field(
            name=name,
            dtype=dtype,
            path=stream.paths.get(name, (renamed.get(name, name),)),
            default=default,
            nullable=getattr(field, "nullable", True),
            required=getattr(field, "required", not getattr(field, "nullable", True)),
            symbols=getattr(field, "symbols", ()),
            unit_us=_UNITS_US.get(str(logical), 1),
            per_second=0 if form is None else form.per_second,
            whole=form is not None and form.raw.is_integer(),
            as_text=form is not None,
            zone=zone,
        )


def _arrivals(stream: StreamPlan, arrival: Arrival) -> Arrivals:
    """Return when events arrive. A text that is a field of no event is an error of ``_refuse_unknown``."""
    if arrival is None:
        about = stream.table
        return Arrivals() if about is None else Arrivals(column=about.arrival, delay_us=about.delay_us)
    if isinstance(arrival, dt.timedelta):
        return Arrivals(delay_us=requested_us(arrival, "arrival"))
    if not isinstance(arrival, str):
        raise RequestError(f"arrival is the name of a field, or a timedelta after the event time, not {shown(arrival)}")
    return Arrivals(column=arrival, else_delay=True)


def _refuse_unknown(stream: StreamPlan, rows: Sequence[Mapping[str, Any]], fields: Sequence[Field]) -> None:
    schema = row_of(stream.schema) if stream.envelope == "debezium" else stream.schema
    # A field of a type that no view can read may be there all the same.
    others = [str(one["name"]) for one in schema.get("fields", ())] or list(schema.get("properties", {}))
    known = {*stream.columns, *(field.path[0] for field in fields), *others}
    for number, row in enumerate(rows):
        for name in row:
            if name not in known:
                raise RequestError(
                    f"event {number} of stream {stream.name!r} has the field {name!r}, which the stream does not have; "
                    f"{nearest(str(name), sorted(known), 'it has')}"
                )


def _read(row: Mapping[str, Any], field: Field, number: int, reasons: dict[int, Rejection]) -> Any:
    """Return a value as ``Fitting`` takes it; None, and a reason, if it is not of the column's type."""
    try:
        value = value_at(row, field)
        return None if value is None else _plain(value, field)
    except (ValueError, OverflowError) as error:
        name = ".".join(field.path)
        reasons.setdefault(number, Rejection("type", f"{name}: {error}"))
        return None


def value_at(row: Mapping[str, Any], field: Field) -> Any:
    """Return the value of a column, or the schema's default; None without.

    Raises ``ValueError`` where something else than a record is around it.
    """
    if field.path != (field.name,) and field.name in row:
        return row[field.name]
    value: Any = row
    for depth, name in enumerate(field.path):
        if value is None:
            return None
        if not isinstance(value, Mapping):
            what = f"{'.'.join(field.path[:depth])} is {shown(value)}, not a record"
            raise ValueError(what)  # noqa: TRY004 - the event is refused, as for any other value
        value = value.get(name, _MISSING)
        if value is _MISSING:
            return field.default[0] if field.default else None
    return value


def _plain(value: Any, field: Field) -> Any:
    """Return a value as one of the type of ``_raw``. Raises ``ValueError`` for one of another kind."""
    if isinstance(value, np.generic):
        value = value.item()
    kind, dtype = type(value), field.dtype
    if dtype == TIMESTAMP:
        return _time(value, field)
    if field.as_text:
        _of(value, "a number", kind in {int, float, Decimal, str})
        return format(value, "f") if kind is Decimal else str(value)
    if dtype == pl.Boolean():
        return _of(value, "a bool", kind is bool)
    if dtype == pl.String():
        _of(value, "a text", isinstance(value, str))
        if field.symbols and value not in field.symbols:
            raise ValueError(
                f"{shown(value)} is not one of the allowed values; {nearest(value, field.symbols, 'they are')}"
            )
        return str(value)
    if dtype.is_integer():
        _of(value, "a whole number", kind is int)
        if not -_INT64 <= value < _INT64:
            raise ValueError(f"{shown(value)} does not fit its type")
        return value
    if dtype.is_float():
        return float(_of(value, "a number", kind in {int, float}))
    if dtype.is_decimal():
        _of(value, "a Decimal", kind in {int, str, Decimal})
        return format(value, "f") if kind is Decimal else str(value)
    if dtype == pl.Date():
        _of(value, "a date", isinstance(value, (dt.date, str)) and not isinstance(value, dt.datetime))
        return value if isinstance(value, str) else value.isoformat()
    if dtype == pl.Time():
        return _of(value, "a time", kind is dt.time)
    return _of(value, "bytes", isinstance(value, bytes))


def _of(value: Any, what: str, fits: bool) -> Any:  # noqa: FBT001
    if not fits:
        raise ValueError(f"{shown(value)} is not {what}")
    return value


def _time(value: Any, field: Field) -> str:
    """Return an instant as text; a number of units as its digits, if the definition says what they mean."""
    if isinstance(value, dt.datetime):
        if value.tzinfo is None and field.zone is not None:
            return value.isoformat()
        found = instant_us(value)
        if not MIN_INSTANT_US <= found < MAX_INSTANT_US:
            raise ValueError(f"{value} is not between the years 1900 and 2200")
        if field.per_second:
            units = Decimal(found) * field.per_second / 1_000_000
            return str(math.floor(units)) if field.whole else format(units, "f")
        return moment_of(found // field.unit_us * field.unit_us).isoformat()
    if field.per_second and type(value) in {int, float, Decimal, str}:
        return str(value)
    return str(_of(value, "a datetime, or its text as in 2026-03-01T12:00:00Z", isinstance(value, str)))


def _raw(field: Field) -> pl.DataType:
    """Return the type of the values that ``_plain`` returns."""
    dtype = field.dtype
    if field.as_text or dtype == TIMESTAMP or dtype == pl.Date() or dtype.is_decimal():
        return pl.String()
    if dtype.is_integer():
        return pl.Int64()
    return pl.Float64() if dtype.is_float() else dtype
