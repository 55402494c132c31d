"""Rows as the records of a stream: value, key, headers, and what decides the partition."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import msgspec

from unskew.features.definitions.avro_schema import AvroField, avro_fields
from unskew.features.definitions.inputs import Path, flat_avro, names_along, row_of
from unskew.features.definitions.json_schema import json_fields
from unskew.features.errors import RequestError, shown
from unskew.features.plan import StreamPlan
from unskew.pipelines.decoding.branching import Target
from unskew.pipelines.decoding.resolve import Incompatible
from unskew.pipelines.decoding.writers import Schemas
from unskew.pipelines.kafka.poll import FRAME_BYTES
from unskew.pipelines.producing import avro, json
from unskew.pipelines.producing.event_time import EventTime
from unskew.pipelines.producing.scalars import INT64, Fit, Unfit, big_endian, integer, string

_COLUMN = "column"
_SHOWN_COLUMNS = 8
_KEY_BYTES = {"int64": 8, "int32": 4}
_written_json = msgspec.json.Encoder(decimal_format="number").encode

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Event:
    """A record of a stream. ``placed_by``: the bytes whose hash gives the partition; None for any partition."""

    event_us: int
    key: bytes | None
    placed_by: bytes | None
    value: bytes
    headers: Sequence[tuple[str, bytes]]


@dataclass(frozen=True, kw_only=True)
class Wire:
    """How the messages of a stream are written.

    ``schema``: that of a row: an Avro record, a JSON Schema, or the descriptor of a message. ``fit``: makes a message
    of what a row has for it. ``names``: the names that may stand there. ``path``: where a column lies in it.
    ``logical``: the logical type of a path, or its format. ``as_number``: whether a time at a path is a number whose
    field does not say that it is a time.
    """

    schema: Any
    fit: Fit
    names: frozenset[str]
    path: Callable[[str], Path]
    logical: Callable[[Path], str]
    as_number: Callable[[Path], bool]


class Encoder:
    """Makes events of rows.

    A row has the fields of the message by their names, and the columns of record key and headers. A column that the
    stream reads from a path may stand in a row under its own name, and a field inside a record as ``geo.lat``.
    """

    def __init__(self, stream: StreamPlan, wire: Wire, *, text: bool) -> None:
        """``text``: values are texts, as in CSV."""
        self._stream = stream
        self._wire = wire
        self._text = text
        self._at = wire.path(stream.event_time)
        form = stream.read_as.get(stream.event_time)
        as_number = wire.as_number(self._at)
        self._time = EventTime(wire.logical(self._at), form, text=text, as_number=as_number)
        self._elsewhere = {stream.key_column, *stream.headers}
        self._parts = [(name, self._place(name), self._part(name)) for name in stream.partitioned_by]

    def event_us(self, row: Row) -> int:
        """Return the event time of a row in microseconds. Raises ``Unfit``."""
        return self._us(_found(self._placed(row), self._at), row)

    def event(self, row: Row, shift_us: int = 0) -> Event:
        """Return the event that a row is, with its event time moved. Raises ``Unfit``."""
        stream = self._stream
        message = self._placed(row)
        raw = _found(message, self._at)
        event_us = self._us(raw, row) + shift_us
        if shift_us or self._time.is_other(raw):
            _put(message, self._at, self._time.value(event_us))
        value = self._wire.fit(message)
        key = None if stream.key_column is None else self._key(row.get(stream.key_column))
        text = self._text_of(row, message)
        if stream.key_column is None:
            key = text
        by_key = not stream.partitioned_by or stream.partitioned_by == (stream.key_column,)
        headers = [
            (header, str(row[column]).encode())
            for column, header in stream.headers.items()
            if row.get(column) is not None and not (self._text and row[column] == "")
        ]
        return Event(event_us=event_us, key=key, placed_by=key if by_key else text, value=value, headers=headers)

    def _text_of(self, row: Row, message: Row) -> bytes | None:
        """Return the text of the columns by which the topic is partitioned; None if there are none, or one is null."""
        found = []
        for name, at, part in self._parts:
            text = part(_found(row if name in self._elsewhere else message, at))
            if text is None:
                return None
            found.append(text)
        if len(found) < 2:
            return found[0].encode() if found else None
        return "|".join(quote(text, safe="") for text in found).encode()

    def _us(self, raw: Any, row: Row) -> int:
        missing = raw is None or (self._text and raw == "")
        if missing and row and not any(map(self._is_known, row)):
            columns = list(self._stream.columns)
            more = " and more" if len(columns) > _SHOWN_COLUMNS else ""
            separated = ", and separate them with commas (in a .tsv file with tabs)" if self._text else ""
            raise Unfit(
                f"none of its fields is one of the stream's, which are {', '.join(columns[:_SHOWN_COLUMNS])}{more}; it has "
                f"{', '.join(map(shown, list(row)[:_SHOWN_COLUMNS]))}; name them as the schema does{separated}"
            )
        try:
            if missing:
                raise Unfit("it is missing or null, and every event needs its event time")  # noqa: TRY301
            return self._time.us(raw)
        except Unfit as fault:
            raise Unfit(fault.reason, self._at) from fault

    def _is_known(self, name: str) -> bool:
        names = self._wire.names
        return name in self._elsewhere or name in self._stream.paths or name in names or name.partition(".")[0] in names

    def _placed(self, row: Row) -> dict[str, Any]:
        """Return what a message is made of: a row without the columns of key and headers, and nested."""
        names = self._wire.names
        message = {name: value for name, value in row.items() if name in names and name not in self._elsewhere}
        if len(message) == len(row):
            return message
        for name, value in row.items():
            if name in self._elsewhere or name in names:
                continue
            path = self._stream.paths.get(name) or tuple(name.split("."))
            if path[0] not in names or len(path) == 1:
                # Nothing has this name, and the fit says so, unless the path has one name alone.
                message[path[0] if name in self._stream.paths else name] = value
            elif not (self._text and value == ""):
                _put(message, path, value)
        return message

    def _place(self, column: str) -> Path:
        return (column,) if column in self._elsewhere else self._wire.path(column)

    def _part(self, column: str) -> Callable[[Any], str | None]:
        """Return what makes the text by which a column takes part in the choice of a partition."""
        whole = integer("a key", INT64, text=True) if self._stream.columns[column].is_integer() else str

        def part(value: Any) -> str | None:
            return None if value is None or (self._text and value == "") else str(whole(value))

        return part

    def _key(self, value: Any) -> bytes | None:
        column, form = str(self._stream.key_column), self._stream.key_format
        if value is None or (self._text and value == ""):
            return None
        try:
            if form == "string":
                return str(string("a text")(value if isinstance(value, str) else str(value))).encode()
            size = _KEY_BYTES[form]
            bounds = (-(2 ** (8 * size - 1)), 2 ** (8 * size - 1) - 1)
            return big_endian(integer(f"a key of {form}", bounds, text=self._text)(value), size)
        except Unfit as fault:
            raise fault.inside(column) from fault


def wire_of(stream: StreamPlan, schemas: Schemas | None, schema_id: int, *, text: bool) -> Wire:
    """Return how messages of a stream are written.

    ``schemas``: the registry, if there is one; ``schema_id``: then that of the schema with which they are written, and
    otherwise the id that says so of the stream's own. ``text``: values are texts, as in CSV. Raises ``RequestError``
    if nothing can be written.
    """
    frame = b"\0" + schema_id.to_bytes(FRAME_BYTES - 1, "big")
    try:
        if stream.format == "json":
            return _json(stream, text=text)
        if stream.format == "protobuf":
            return _protobuf(stream, schemas, schema_id, frame, text=text)
        return _avro(stream, stream.schema if schemas is None else schemas.writer(schema_id), frame, text=text)
    except Incompatible as error:
        raise RequestError(
            f"schema {schema_id} is not one that stream {stream.name} can be written with: {error}; name another with --schema-id"
        ) from error


def _avro(stream: StreamPlan, schema: Any, frame: bytes, *, text: bool) -> Wire:
    target = Target.of(stream)
    record = schema
    if isinstance(schema, list):
        record = next((each for each in schema if target.means(each)), None)
        if record is None:
            raise Incompatible(f"none of its records is called {' or '.join(target.records)}")
    fit = avro.fit_of(schema, text=text, record=str(record["name"]))
    if stream.envelope == "debezium":
        inner, operation = fit, stream.operations[0]
        fit = lambda row: inner({"op": operation, "after": row})  # noqa: E731
        record = row_of(record)
    return _of_fields(stream, record, lambda row: frame + fit(row), as_number=stream.envelope == "debezium")


def _json(stream: StreamPlan, *, text: bool) -> Wire:
    schema = row_of(stream.schema) if stream.envelope == "debezium" else stream.schema

    def written(fit: Fit) -> Fit:
        if stream.envelope == "connect":
            return lambda row: _written_json({"schema": None, "payload": fit(row)})
        if stream.envelope == "debezium":
            return lambda row: _written_json({"op": stream.operations[0], "before": None, "after": fit(row)})
        return lambda row: _written_json(fit(row))

    if schema.get("type") == "record":
        return _of_fields(stream, schema, written(avro.fit_of(schema, text=text, as_json=True)), as_number=False)
    loose = frozenset(stream.paths.get(name, (name,)) for name in stream.read_as)
    formats = {field.path or (field.name,): str(field.logical) for field in json_fields(schema, stream.paths)}
    properties = schema.get("properties", {})
    is_open = bool(schema.get("additionalProperties"))
    return Wire(
        schema=schema,
        fit=written(json.fit_of(schema, text=text, loose=loose)),
        names=_AnyName(properties) if is_open else frozenset(properties),
        path=lambda column: stream.paths.get(column, (column,)),
        logical=lambda path: formats.get(path, ""),
        as_number=lambda _: False,
    )


class _AnyName(frozenset[str]):
    """The names of an object that may have any."""

    __slots__ = ()

    def __contains__(self, _name: object) -> bool:
        return True


def _of_fields(stream: StreamPlan, record: Mapping[str, Any], fit: Fit, *, as_number: bool) -> Wire:
    """Return how messages are written whose row has the fields of an Avro record."""
    own = row_of(stream.schema) if stream.envelope == "debezium" else stream.schema

    def path(column: str) -> Path:
        given = stream.paths.get(column, (column,))
        ways = itertools.product(*names_along(own, [given])[0])
        return next((way for way in ways if _field_at(record, way) is not None), given)

    def logical(at: Path) -> str:
        found = _field_at(record, at)
        return "" if found is None else str(found.logical or found.marked)

    return Wire(
        schema=record,
        fit=fit,
        names=frozenset(field["name"] for field in record["fields"]),
        path=path,
        logical=logical,
        as_number=lambda _: as_number,
    )


def _field_at(record: Mapping[str, Any], path: Path) -> AvroField | None:
    faults: list[str] = []
    flat = flat_avro(record, {_COLUMN: path}, faults)
    return None if faults else avro_fields(flat)[-1]


def _protobuf(stream: StreamPlan, schemas: Schemas | None, schema_id: int, frame: bytes, *, text: bool) -> Wire:
    # Its packages are an extra.
    from unskew.pipelines.producing import protobuf  # noqa: PLC0415

    if schemas is None:
        raise RequestError(
            f"stream {stream.name}: messages in Protobuf are written with a schema that only a Schema Registry knows; use "
            "--schema-registry"
        )
    fit, descriptor = protobuf.fit_of(schemas.files(schema_id), Target.of(stream), text=text)
    # Rows have the names of the message; the stream's own schema names its columns.
    own = {field.name: str(field.logical) for field in avro_fields(stream.reader)}

    def path(column: str) -> Path:
        given = stream.paths.get(column, (column,))
        ways = itertools.product(*names_along(stream.schema, [given])[0])
        return next((way for way in ways if protobuf.has_field(descriptor, way)), given)

    return Wire(
        schema=descriptor,
        fit=lambda row: frame + fit(row),
        names=frozenset(name for field in descriptor.fields for name in (field.name, field.json_name)),
        path=path,
        logical=lambda _: own[stream.event_time],
        as_number=lambda at: not protobuf.is_instant(descriptor, at),
    )


def _found(row: Any, path: Path) -> Any:
    """Return what is at a path; None if it, or anything around it, is not there."""
    for name in path:
        row = row.get(name) if isinstance(row, Mapping) else None
    return row


def _put(row: dict[str, Any], path: Path, value: Any) -> None:
    """Put a value at a path, into copies of what is around it."""
    *outer, last = path
    for name in outer:
        inside = row.get(name)
        row[name] = dict(inside) if isinstance(inside, Mapping) else {}
        row = row[name]
    row[last] = value
