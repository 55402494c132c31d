"""Events of a test as the records that a producer would send: Avro or JSON, with key and headers."""

import datetime as dt
import io
import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import fastavro
import numpy as np
import polars as pl

from unskew.features.definitions.inputs import is_envelope
from unskew.features.errors import RequestError
from unskew.features.plan import StreamPlan
from unskew.features.time import instant_us
from unskew.features.types import TIMESTAMP
from unskew.testing.given import Field, fields_of, value_at

_PER_SECOND = {"s": 1, "millis": 1_000, "micros": 1_000_000, "nanos": 1_000_000_000}
_KEY_BYTES = {"int64": 8, "int32": 4}

Record = tuple[bytes | None, bytes, list[tuple[str, str | bytes | None]]]
"""Key, value and headers."""


class Producing:
    """How events of a stream become records.

    Raises ``RequestError`` for a stream whose records only a Schema Registry explains.
    """

    def __init__(self, stream: StreamPlan) -> None:
        self._stream = stream
        self._fields = list(fields_of(stream))
        lacks = stream.format == "protobuf" or (
            stream.format == "avro" and stream.envelope == "debezium" and not is_envelope(stream.schema)
        )
        if lacks or stream.table is not None:
            what = "it is a table" if stream.table is not None else "its records need a Schema Registry"
            raise RequestError(
                f"records of {stream.name!r} cannot be produced here, because {what}; use unskew.testing.values"
            )
        self._schema: Any = None if stream.format == "json" else fastavro.parse_schema(dict(stream.schema))
        self._frame = b"\0" + (stream.schema_ids[0] if stream.schema_ids else 1).to_bytes(4, "big")

    def record(self, event: Mapping[str, Any]) -> Record:
        """Return the record of an event that the stream takes (``given.events_of``)."""
        stream = self._stream
        elsewhere = {stream.key_column, *stream.headers}
        row = _copied(event)
        found: dict[str, Any] = {}
        for field in self._fields:
            value = value_at(event, field)
            found[field.name] = None if value is None else _wired(value, field, avro=self._schema is not None)
            row.pop(field.name, None)
            if field.name not in elsewhere and (value is not None or field.path[0] in event):
                _put(row, field.path, found[field.name])
        return self._key(found), self._value(row), self._headers(found)

    def _key(self, found: Mapping[str, Any]) -> bytes | None:
        stream = self._stream
        name = stream.key_column or (stream.partitioned_by[0] if len(stream.partitioned_by) == 1 else None)
        key = None if name is None else found[name]
        if key is None:
            return None
        if name == stream.key_column and stream.key_format != "string":
            return int(key).to_bytes(_KEY_BYTES[stream.key_format], "big", signed=True)
        return str(key).encode()

    def _headers(self, found: Mapping[str, Any]) -> list[tuple[str, str | bytes | None]]:
        return [
            (header, str(found[name]).encode())
            for name, header in self._stream.headers.items()
            if found[name] is not None
        ]

    def _value(self, row: Mapping[str, Any]) -> bytes:
        stream = self._stream
        if stream.envelope == "debezium":
            row = {"op": stream.operations[0], "before": None, "after": row}
        elif stream.envelope == "connect":
            row = {"payload": row}
        if self._schema is None:
            return json.dumps(row, ensure_ascii=False).encode()
        body = io.BytesIO()
        try:
            fastavro.schemaless_writer(body, self._schema, dict(row))
        # It raises various errors for a value that does not fit.
        except Exception as error:
            raise RequestError(
                f"an event of stream {stream.name!r} cannot be written in Avro ({type(error).__name__}: {error}); give it as its "
                "producer writes it"
            ) from error
        return self._frame + body.getvalue()


def _copied(value: Any) -> Any:
    return {name: _copied(one) for name, one in value.items()} if isinstance(value, Mapping) else value


def _put(row: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        inside = row.get(name)
        if inside is None:
            if value is None:
                return
            inside = row[name] = {}
        row = inside
    row[path[-1]] = value


def _wired(value: Any, field: Field, *, avro: bool) -> Any:
    """Return a value as it is on its way."""
    if isinstance(value, np.generic):
        value = value.item()
    if field.dtype == TIMESTAMP:
        return _time(value, field)
    if field.as_text:
        return _number(value, field)
    if isinstance(value, dt.date) and not avro:
        return value.isoformat()
    if isinstance(value, str) and field.dtype == pl.Date():
        return dt.date.fromisoformat(value) if avro else value
    if field.dtype.is_decimal():
        return Decimal(str(value))
    return float(value) if field.dtype.is_float() else value


def _number(value: Any, field: Field) -> Any:
    """Return a number whose type in a message the definition leaves open."""
    if field.raw == pl.String():
        return format(value, "f") if isinstance(value, Decimal) else str(value)
    assert field.raw is not None
    return int(value) if field.raw.is_integer() else float(value)


def _time(value: Any, field: Field) -> Any:
    if field.per_second:
        if isinstance(value, dt.datetime):
            units = Decimal(instant_us(value)) * field.per_second / 1_000_000
        else:
            units = Decimal(str(value))
        return _number(units, field) if field.raw == pl.String() or not field.whole else int(units // 1)
    moment = dt.datetime.fromisoformat(value) if isinstance(value, str) else value
    unit = str(field.logical).rpartition("-")[2]
    if field.raw is not None or unit not in _PER_SECOND:
        if isinstance(value, str):
            return value
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC)).isoformat()
    return instant_us(moment) * _PER_SECOND[unit] // 1_000_000
