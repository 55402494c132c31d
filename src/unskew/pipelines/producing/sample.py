"""Rows that are made up from a stream's schema: plausible, the same for the same seed, with few different keys.

What views count by, and what the topic is partitioned by, takes few values, some much more often than others, so that
windows have something to count. Texts that filters of views look for occur.
"""

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

import fastavro
import polars as pl

from unskew.features.plan import Plan, StreamPlan
from unskew.features.time import DAY_US, instant_us, moment_of
from unskew.features.types import TIMESTAMP
from unskew.pipelines.producing.encoding import Wire
from unskew.pipelines.producing.event_time import EventTime
from unskew.pipelines.producing.rows import Row, Source

_PIECE_ROWS = 1_000
_PACES_PER_SECOND = 20
_NULLS = 0.1
_MOST_ITEMS = 3
_DEEPEST = 4
_COMPARED = re.compile(r"\b(\w+)\s*(?:=|==|IN\s*\()\s*((?:'[^']*'\s*,?\s*)+)", re.IGNORECASE)
_QUOTED = re.compile(r"'([^']*)'")
_WORDS = ("alder", "birch", "cedar", "elm", "hazel", "larch", "maple", "oak")

_Make = Callable[[], Any]
_Path = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Span:
    """When sampled events happened. ``present_us``: returns the present. ``over_us``: how long ago the first one was.

    ``rate``: events in a second that happen as they are sent; None if all of them are in the past.
    """

    present_us: Callable[[], int]
    over_us: int
    rate: float | None = None


def sample_of(
    plan: Plan, stream: StreamPlan, span: Span, wire: Wire, *, seed: int, n_rows: int | None, n_keys: int
) -> Source:
    """Return rows of a stream. ``wire``: how its messages are written. ``n_rows``: None for rows without an end."""

    def pieces() -> Iterator[list[Row]]:
        maker = _Maker(plan, stream, random.Random(seed), n_keys, wire)  # noqa: S311 - no secret is made of it
        size = _PIECE_ROWS if span.rate is None else max(1, int(span.rate / _PACES_PER_SECOND))
        begin_us, at = span.present_us() - span.over_us, 0
        while n_rows is None or at < n_rows:
            present_us = span.present_us()
            n = size if n_rows is None else min(size, n_rows - at)
            rows = []
            for number in range(at, at + n):
                steady = begin_us + span.over_us * (number + 1) // (n_rows or 1)
                rows.append(Row(f"event {number + 1}", maker.row(steady if span.rate is None else present_us)))
            yield rows
            at += n

    return Source(name=f"the sample of {stream.name}", is_text=False, again=True, pieces=pieces)


class _Maker:
    """Makes rows, one after the other."""

    def __init__(self, plan: Plan, stream: StreamPlan, rng: random.Random, n_keys: int, wire: Wire) -> None:
        self._rng = rng
        self._n_keys = n_keys
        self._stream = stream
        self._now_us = 0
        self._n = 0
        views = [view for view in plan.views.values() if view.stream.name == stream.name]
        self._keys = {*stream.partitioned_by, *(key for view in views for key in view.entity.keys)}
        views += [view.sessions for view in views if view.sessions is not None]
        self._compared = _compared(
            [each.text for view in views for each in (view.where, *view.filters) if each is not None]
        )
        self._columns = {path: column for column, path in stream.paths.items()}
        self._named: dict[str, Any] = {}
        schema: Any = wire.schema
        if stream.format == "protobuf":
            self._make = self._message(schema, ())
        elif schema.get("type") == "record":
            parsed: Any = fastavro.parse_schema(dict(schema))
            self._make = self._avro(parsed, ())
        else:
            self._make = self._property(schema, (), required=True)
        self._more: dict[str, _Make] = {}
        if stream.key_column is not None:
            is_number = stream.key_format != "string"
            self._more[stream.key_column] = self._key(stream.key_column, is_number=is_number)
        for column in stream.headers:
            self._more[column] = self._text((column,))

    def row(self, event_us: int) -> Mapping[str, Any]:
        """Return the next row, which happened at an instant."""
        self._now_us = event_us
        self._n += 1
        found: dict[str, Any] = self._make()
        return {**found, **{column: make() for column, make in self._more.items()}}

    # Avro

    def _avro(self, avro: Any, path: _Path) -> _Make:
        if isinstance(avro, list):
            others = [each for each in avro if each != "null"]
            makes = [self._avro(each, path) for each in others]
            return self._maybe(self._either(makes), path) if "null" in avro else self._either(makes)
        if isinstance(avro, str) and avro in self._named:
            avro = self._named[avro]
            if len(path) > _DEEPEST:
                return lambda: None
        if isinstance(avro, str):
            avro = {"type": avro}
        if isinstance(avro["type"], (dict, list)):
            return self._avro(avro["type"], path)
        if "name" in avro:
            self._named[avro["name"]] = avro
        match avro["type"]:
            case "record" | "error":
                inside = {each["name"]: self._avro(each["type"], (*path, each["name"])) for each in avro["fields"]}
                return lambda: {name: make() for name, make in inside.items()}
            case "array":
                return self._some(self._avro(avro["items"], (*path, "[]")))
            case "map":
                item = self._avro(avro["values"], (*path, "[]"))
                return lambda: {word: item() for word in self._rng.sample(_WORDS, self._rng.randint(0, _MOST_ITEMS))}
            case "enum":
                return self._one_of(path, avro["symbols"])
        return self._primitive(avro, path)

    def _primitive(self, avro: Mapping[str, Any], path: _Path) -> _Make:
        if (declared := self._declared(path)) is not None:
            return declared
        kind, logical = avro["type"], str(avro.get("logicalType"))
        meaning = logical.removeprefix("local-").partition("-")[0]
        if meaning == "timestamp" or self._is_event_time(path):
            return self._instant(path)
        if meaning in {"date", "time"}:
            return self._date if meaning == "date" else (lambda: moment_of(self._now_us).time())
        if logical == "decimal" and kind in {"bytes", "fixed"}:
            return self._decimal(int(avro["precision"]), int(avro.get("scale", 0)))
        if logical == "uuid" and kind == "string":
            return self._uuid
        match kind:
            case "null":
                return lambda: None
            case "boolean":
                return lambda: self._rng.random() < 0.5
            case "int" | "long":
                return self._whole(path)
            case "float" | "double":
                return self._real
            case "bytes" | "fixed":
                return lambda: self._rng.randbytes(int(avro.get("size", 8)))
        return self._text(path)

    # JSON Schema

    def _property(self, about: Mapping[str, Any], path: _Path, *, required: bool) -> _Make:
        kinds = about.get("type", "object")
        kinds = [kinds] if isinstance(kinds, str) else list(kinds)
        makes = [self._of_kind(kind, about, path) for kind in kinds if kind != "null"]
        make = self._either(makes) if makes else (lambda: None)
        return self._maybe(make, path) if "null" in kinds and required else make

    def _of_kind(self, kind: str, about: Mapping[str, Any], path: _Path) -> _Make:
        if (declared := self._declared(path)) is not None:
            return declared
        form = str(about.get("format"))
        if self._is_event_time(path) or form in {"date-time", "unix-time", "unix-time-ms", "unix-time-us"}:
            return self._instant(path)
        match kind:
            case "object":
                inside = {
                    name: self._property(each, (*path, name), required=name in about.get("required", ()))
                    for name, each in about.get("properties", {}).items()
                    if isinstance(each, Mapping)
                }
                return lambda: {name: make() for name, make in inside.items()}
            case "array":
                items = about.get("items")
                return self._some(
                    self._property(items if isinstance(items, Mapping) else {}, (*path, "[]"), required=False)
                )
            case "boolean":
                return lambda: self._rng.random() < 0.5
            case "integer":
                return self._whole(path)
            case "number":
                return self._real
        if form == "date":
            return self._date
        if form == "uuid":
            return self._uuid
        symbols = [each for each in about.get("enum", ()) if isinstance(each, str)]
        return self._one_of(path, symbols) if symbols else self._text(path)

    # Protobuf

    def _message(self, descriptor: Any, path: _Path) -> _Make:
        inside = {
            field.name: self._repeated(field, (*path, field.name))
            for field in descriptor.fields
            if len(path) < _DEEPEST and (field.containing_oneof is None or _is_optional(field))
        }
        return lambda: {name: make() for name, make in inside.items()}

    def _repeated(self, field: Any, path: _Path) -> _Make:
        if not field.is_repeated:
            return self._maybe(self._field(field, path), path) if _is_optional(field) else self._field(field, path)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            return dict
        return self._some(self._field(field, path))

    def _field(self, field: Any, path: _Path) -> _Make:
        from google.protobuf.descriptor import FieldDescriptor  # noqa: PLC0415 - an extra

        if (declared := self._declared(path)) is not None:
            return declared
        if self._is_event_time(path):
            return self._instant(path)
        if field.message_type is not None:
            return self._of_message(field.message_type, path)
        if field.enum_type is not None:
            return self._one_of(path, [value.name for value in field.enum_type.values])
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_BOOL:
                return lambda: self._rng.random() < 0.5
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                return self._real
            case FieldDescriptor.CPPTYPE_STRING:
                return (
                    (lambda: self._rng.randbytes(8)) if field.type == FieldDescriptor.TYPE_BYTES else self._text(path)
                )
        return self._whole(path)

    def _of_message(self, descriptor: Any, path: _Path) -> _Make:
        match descriptor.full_name:
            case "google.protobuf.Timestamp":
                return self._instant(path)
            case "google.protobuf.Duration":
                return lambda: f"{self._rng.randint(1, 600)}s"
            case "google.type.Date":
                return self._date
            case "google.type.TimeOfDay":
                return lambda: moment_of(self._now_us).time()
            case "confluent.type.Decimal":
                return self._decimal(6, 2)
        if descriptor.full_name.startswith("google.protobuf."):
            value = descriptor.fields_by_name.get("value")
            return self._maybe(self._field(value, path), path) if value is not None else (lambda: None)
        return self._message(descriptor, path)

    # Values

    def _declared(self, path: _Path) -> _Make | None:
        """Return what makes a column that the definition says how to read; None for any other."""
        form = self._stream.read_as.get(self._column(path)) if path else None
        if form is None:
            return None
        if form.dtype == TIMESTAMP:
            times = EventTime("", form, text=False, as_number=False)
            moment = self._instant(path)
            return lambda: times.value(instant_us(moment()))
        column = self._column(path)
        if column in self._keys:
            numbers = self._key(column, is_number=True)
        else:
            numbers = self._whole(path) if form.dtype == pl.Int64() else self._real
        return lambda: str(numbers()) if form.raw == pl.String() else numbers()

    def _column(self, path: _Path) -> str:
        return self._columns.get(path, path[0] if len(path) == 1 else "")

    def _is_event_time(self, path: _Path) -> bool:
        return bool(path) and self._column(path) == self._stream.event_time

    def _maybe(self, make: _Make, path: _Path) -> _Make:
        if self._column(path) in {*self._keys, self._stream.event_time, self._stream.event_id} or self._leads(path):
            return make
        return lambda: None if self._rng.random() < _NULLS else make()

    def _leads(self, path: _Path) -> bool:
        """Return whether the event time or a key is inside what is at a path."""
        wanted = {*self._keys, self._stream.event_time}
        return any(at[: len(path)] == path for at, column in self._columns.items() if column in wanted)

    def _either(self, makes: Sequence[_Make]) -> _Make:
        def make() -> Any:
            return self._rng.choice(makes)()

        return makes[0] if len(makes) == 1 else make

    def _some(self, make: _Make) -> _Make:
        return lambda: [make() for _ in range(self._rng.randint(0, _MOST_ITEMS))]

    def _one_of(self, path: _Path, symbols: Sequence[str]) -> _Make:
        wanted = [each for each in self._compared.get(self._column(path), ()) if each in symbols]
        # What filters look for is more frequent than the rest.
        choices = [*wanted, *wanted, *symbols]
        return lambda: self._rng.choice(choices)

    def _instant(self, path: _Path) -> _Make:
        if self._is_event_time(path):
            return lambda: moment_of(self._now_us)
        return lambda: moment_of(self._now_us - self._rng.randrange(DAY_US))

    def _date(self) -> Any:
        return moment_of(self._now_us - self._rng.randrange(30 * DAY_US)).date()

    def _uuid(self) -> str:
        return str(UUID(int=self._rng.getrandbits(128), version=4))

    def _real(self) -> float:
        return round(self._rng.gammavariate(2.0, 10.0) + 0.5, 2)

    def _decimal(self, precision: int, scale: int) -> _Make:
        most = 10 ** min(precision, scale + 3) - 1
        return lambda: Decimal(self._rng.randint(1, most)).scaleb(-scale)

    def _key(self, column: str, *, is_number: bool) -> _Make:
        numbers = range(1, self._n_keys + 1)
        weights = [1 / number for number in numbers]

        def make() -> Any:
            (number,) = self._rng.choices(numbers, weights)
            return number if is_number else f"{column.removesuffix('_id')}-{number}"

        return make

    def _whole(self, path: _Path) -> _Make:
        column = self._column(path)
        if column == self._stream.event_id:
            return lambda: self._n
        if column in self._keys:
            return self._key(column, is_number=True)
        most = 1_000 if path and path[-1].endswith("id") else 10
        return lambda: self._rng.randint(1, most)

    def _text(self, path: _Path) -> _Make:
        column = self._column(path)
        if column == self._stream.event_id:
            return lambda: f"{self._rng.getrandbits(64):016x}"
        if column in self._keys:
            return self._key(column, is_number=False)
        choices = [*self._compared.get(column, ()), *_WORDS[:3]] if column in self._compared else list(_WORDS)
        return lambda: self._rng.choice(choices)


def _compared(texts: Sequence[str]) -> dict[str, list[str]]:
    """Return the texts to which filters compare columns."""
    found: dict[str, list[str]] = {}
    for text in texts:
        for column, literals in _COMPARED.findall(text):
            found.setdefault(column, []).extend(_QUOTED.findall(literals))
    return found


def _is_optional(field: Any) -> bool:
    return field.containing_oneof is not None and len(field.containing_oneof.fields) == 1
