"""Rows of files as events of a stream: columns of its names and types, by the conversions of decoding."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl

from unskew.features.errors import RequestError
from unskew.features.nearest import nearest
from unskew.features.plan import ReadAs, StreamPlan
from unskew.features.rejection import Rejection
from unskew.features.time import MAX_INSTANT_US, MIN_INSTANT_US, format_duration, time_zone
from unskew.features.types import TIMESTAMP
from unskew.pipelines.decoding.columns import Refusals, Unit, typed
from unskew.pipelines.decoding.conversions import converted, days
from unskew.pipelines.history.inputs import Input

N_EXAMPLES = 5
_BOOLEANS = {"true": True, "false": False}
ROW = "_row"
ARRIVAL = "_arrival"


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """When rows became available: the instants of a column, or so long after their event times.

    ``else_delay``: whether a row without an instant in the column became available so long after its event time; it is
    refused otherwise.
    """

    column: str | None = None
    delay_us: int = 0
    else_delay: bool = False


@dataclass(kw_only=True)
class Refused:
    """The rows that are not events of the stream, by reason: how many, and the first of them."""

    by_kind: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return sum(self.by_kind.values())

    def note(self, path: str, first_row: int, reasons: Mapping[int, Rejection]) -> None:
        """Count refused rows. ``reasons``: by their places in a batch that begins with the row ``first_row``."""
        for at, why in sorted(reasons.items()):
            self.by_kind[why.kind] = self.by_kind.get(why.kind, 0) + 1
            if len(self.examples) < N_EXAMPLES:
                self.examples.append(f"{path}, row {first_row + at}: {why.reason}")

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(self.by_kind.items()))
        return f"{self.rows:,} rows are not events of the stream ({kinds}): {'; '.join(self.examples)}"


class Fitting:
    """Rows of files with some columns as events of a stream.

    ``renamed``: column of the stream -> that of the files. ``without``: columns of the stream that the files do not
    have, which are null. ``zone``: that of times without an offset; None refuses these. ``places``: further columns of
    whole numbers that are kept: name here -> column of the files.
    """

    def __init__(
        self,
        stream: StreamPlan,
        arrivals: Arrivals,
        *,
        renamed: Mapping[str, str],
        without: frozenset[str],
        zone: str | None,
        places: Mapping[str, str],
    ) -> None:
        self._stream = stream
        self._arrivals = arrivals
        self._zone = zone
        self._without = without
        self._places = places
        if zone is not None:
            time_zone(zone)
        for option, names in (("--column", renamed), ("--without", without)):
            if unknown := [name for name in names if name not in stream.columns]:
                raise RequestError(
                    f"{option} {unknown[0]}: stream {stream.name} has no such column; {nearest(unknown[0], stream.columns, 'it has')}"
                )
        if stream.event_time in without:
            raise RequestError(
                f"--without {stream.event_time}: it is the event time of stream {stream.name}, which each row needs"
            )
        # A null event time has a reason of its own.
        self._required = _required(stream) - without - {stream.event_time}
        self._theirs = {name: renamed.get(name, name) for name in stream.columns if name not in without}

    @property
    def columns(self) -> list[str]:
        """The columns of the files that are read."""
        arrival = [] if self._arrivals.column is None else [self._arrivals.column]
        return list(dict.fromkeys([*self._theirs.values(), *arrival, *self._places.values()]))

    def check(self, path: str, schema: pl.Schema) -> None:
        """Raise ``RequestError`` if a file with these columns cannot hold events of the stream."""
        if missing := [name for name in self.columns if name not in schema]:
            ours = {theirs: name for name, theirs in self._theirs.items()}
            way = "give --arrival or --delay as it is"
            if self._stream.table is not None:
                way = f"correct the definition of table {self._stream.name}"
            elif missing[0] in ours:
                way = f"name it with --column {ours[missing[0]]}=COLUMN, or, if the history lacks it, --without {ours[missing[0]]}"
            elif missing[0] in self._places.values():
                way = "correct --partition or --offset"
            raise RequestError(
                f"{path} has no column {missing[0]!r}; {nearest(missing[0], list(schema), 'it has')}; {way}"
            )
        empty = pl.DataFrame(schema={name: schema[name] for name in self.columns})
        try:
            self(empty, {})
        except RequestError as error:
            raise RequestError(f"{path}: {error}") from error

    def read(
        self,
        inputs: Sequence[Input],
        refused: Refused,
        going_on: Callable[[], None],
        report: Callable[[int], None],
    ) -> Iterator[pl.DataFrame]:
        """Yield the events of all inputs, piece by piece, and note the rows that are none.

        ``going_on``: called before each piece. ``report``: called with the number of rows read so far.
        """
        n_read = 0
        for one in inputs:
            first_row = 1
            for batch in one.batches(self.columns):
                going_on()
                reasons: dict[int, Rejection] = {}
                events = self(batch, reasons)
                refused.note(str(one.path), first_row, reasons)
                first_row += batch.height
                n_read += batch.height
                report(n_read)
                yield events

    def __call__(self, frame: pl.DataFrame, reasons: dict[int, Rejection]) -> pl.DataFrame:
        """Return the events among some rows, with their arrivals and places, and note a reason for each other row.

        Besides the stream's columns there are ``_arrival`` in microseconds, ``_event_time``, and ``_row``, the number
        of the row in the frame.
        """
        stream = self._stream
        refusals = Refusals(np.arange(frame.height), reasons)
        columns = []
        for name, dtype in stream.columns.items():
            if name in self._without:
                columns.append(pl.Series(name, [None], dtype=dtype).new_from_index(0, frame.height))
                continue
            given = frame[self._theirs[name]].alias(name)
            if name in self._required:
                _refuse_nulls(given, refusals)
            columns.append(self._fit(given, dtype, refusals))
        event_time = next(column for column in columns if column.name == stream.event_time)
        event_us = event_time.to_physical()
        if self._arrivals.column is None:
            arrivals = event_us + self._arrivals.delay_us
        else:
            arrivals = self._instants(frame[self._arrivals.column], None, refusals)
            if self._arrivals.else_delay:
                arrivals = arrivals.fill_null(event_us + self._arrivals.delay_us)
            refusals.refuse(arrivals.is_null(), "time", lambda _: "arrival is null")
        reachable = arrivals.is_between(MIN_INSTANT_US, MAX_INSTANT_US - 1)
        refusals.refuse(~reachable, "time", lambda at: f"arrival {arrivals[at]} is outside 1900..2200")
        if stream.max_age_us is not None:
            age = format_duration(stream.max_age_us)
            refusals.refuse(arrivals - event_us > stream.max_age_us, "time", lambda _: f"older than max_age ({age})")
        places = [self._fit(frame[theirs].alias(name), pl.Int64(), refusals) for name, theirs in self._places.items()]
        for place in places:
            refusals.refuse(
                place.is_null() | (place < 0), "range", lambda _: "its partition or offset is null or negative"
            )
        events = pl.DataFrame(columns).with_columns(
            *places, arrivals.alias(ARRIVAL), event_time.alias("_event_time"), pl.Series(ROW, np.arange(frame.height))
        )
        return refusals.of(events)[1]

    def _fit(self, given: pl.Series, dtype: pl.DataType, refusals: Refusals) -> pl.Series:
        """Return a column with the stream's type."""
        kind = given.dtype
        if dtype == TIMESTAMP:
            numbers = self._instants(given, self._stream.read_as.get(given.name), refusals)
            is_time = given.name == self._stream.event_time
            return typed(numbers, Unit("timestamp-micros"), dtype, refusals, event_time=is_time)
        if kind == dtype:
            return given
        if kind == pl.Null():
            return given.cast(dtype)
        if dtype.is_integer() or dtype.is_float() or dtype.is_decimal():
            return self._number(given, dtype, refusals)
        if kind == pl.String() and dtype == pl.Boolean():
            found = given.str.to_lowercase().replace_strict(_BOOLEANS, default=None, return_dtype=pl.Boolean)
            refusals.refuse(
                found.is_null() & given.is_not_null(),
                "type",
                lambda at: f"{given.name}: {given[at]!r} is neither true nor false",
            )
            return found
        if kind == pl.String() and dtype == pl.Date():
            found = days(given)
            refusals.refuse(
                found.is_null() & given.is_not_null(),
                "type",
                lambda at: f"{given.name}: {given[at]!r} is not a date (2026-01-31)",
            )
            return found.cast(pl.Int32).cast(pl.Date)
        if dtype == pl.String() and (isinstance(kind, (pl.Categorical, pl.Enum))):
            return given.cast(pl.String)
        raise _unlike(given, dtype)

    def _instants(self, given: pl.Series, form: ReadAs | None, refusals: Refusals) -> pl.Series:
        """Return microseconds."""
        kind = given.dtype
        if isinstance(kind, pl.Datetime) or kind == pl.Date():
            if isinstance(kind, pl.Datetime) and kind.time_zone is not None:
                return _microseconds(given)
            if self._zone is None:
                raise RequestError(
                    f"column {given.name!r} has times without a zone ({kind}); say in which one they are with --zone, for example --zone UTC"
                )
            local = given.cast(pl.Datetime("ns" if kind == pl.Datetime("ns") else "us"))
            placed = local.dt.replace_time_zone(self._zone, ambiguous="earliest", non_existent="null")
            refusals.refuse(
                placed.is_null() & given.is_not_null(),
                "time",
                lambda at: f"{given.name}: {given[at]} does not occur in {self._zone}",
            )
            return _microseconds(placed)
        if kind == pl.String() or (form is not None and (kind.is_integer() or kind.is_float())):
            if form is None or (form.per_second == 0 and self._zone is not None):
                form = self._of_text(TIMESTAMP)
            return converted(given, replace(form, raw=kind), refusals, event_time=False).to_physical()
        if kind == pl.Null():
            return given.cast(pl.Int64)
        raise _unlike(given, TIMESTAMP)

    def _number(self, given: pl.Series, dtype: pl.DataType, refusals: Refusals) -> pl.Series:
        kind = given.dtype
        if kind == pl.String():
            wide = pl.Int64() if dtype.is_integer() else pl.Float64() if dtype.is_float() else dtype
            given = converted(given, self._of_text(wide), refusals, event_time=False)
            if wide == dtype:
                return given
        elif not (kind.is_integer() or kind.is_float() or kind.is_decimal()):
            raise _unlike(given, dtype)
        found = given.cast(dtype, strict=False)
        if dtype.is_float():
            return found
        back = found.cast(given.dtype, strict=False)
        wrong = given.is_not_null() & (found.is_null() | (back != given).fill_null(value=True))
        refusals.refuse(wrong, "range", lambda at: f"{given.name}: {given[at]} does not fit {dtype}")
        return found

    def _of_text(self, dtype: pl.DataType) -> ReadAs:
        return ReadAs(text="", dtype=dtype, raw=pl.String(), zone=self._zone if dtype == TIMESTAMP else None)


def _required(stream: StreamPlan) -> frozenset[str]:
    """Return the columns that the schema does not allow to be null."""
    schema = stream.reader
    if "fields" in schema:
        return frozenset(one["name"] for one in schema["fields"] if not _may_be_null(one["type"]))
    types = {name: one.get("type") for name, one in schema.get("properties", {}).items()}
    return frozenset(name for name in schema.get("required", ()) if not _may_be_null(types.get(name)))


def _refuse_nulls(given: pl.Series, refusals: Refusals) -> None:
    refusals.refuse(given.is_null(), "type", lambda _: f"{given.name} is null, and the schema requires it")


def _may_be_null(kind: Any) -> bool:
    return kind is None or kind == "null" or (isinstance(kind, list) and "null" in kind)


def _microseconds(times: pl.Series) -> pl.Series:
    assert isinstance(times.dtype, pl.Datetime)
    numbers = times.to_physical()
    match times.dtype.time_unit:
        case "ns":
            return numbers // 1000
        case "ms":
            return numbers * 1000
        case _:
            return numbers


def _unlike(given: pl.Series, dtype: pl.DataType) -> RequestError:
    return RequestError(
        f"column {given.name!r} has the type {given.dtype}, and the stream's is {dtype}; convert it in the file"
    )
