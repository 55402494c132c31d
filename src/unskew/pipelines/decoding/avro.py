"""Confluent-framed Avro messages of one poll as typed Polars columns, and dead letters for those that are not events.

The fast path checks every message by itself (``avro_walk``) and passes all good ones to ``polars.read_avro`` as the one
block of an Avro container. Messages that fail the check, and all messages if Polars and the check disagree, are read by
fastavro one by one; both paths give the same columns. Messages are read with the schema with which they were written,
and their columns are then resolved into the stream's (``resolve``).
"""

import io
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, cast

import fastavro
import numpy as np
import numpy.typing as npt
import polars as pl
from typing_extensions import override

from unskew.features.definitions.avro_schema import avro_fields
from unskew.features.plan import StreamPlan
from unskew.features.rejection import Rejection
from unskew.pipelines.decoding.avro_walk import FRAME_BYTES, Wire, schema_ids_of
from unskew.pipelines.decoding.columns import Refusals
from unskew.pipelines.decoding.decoder import BadMessage, Decoded, Decoder, InOnePiece, Read, merged, one_by_one
from unskew.pipelines.decoding.json import JsonDecoder
from unskew.pipelines.decoding.resolve import Incompatible, Resolution
from unskew.sinks.tables.kinds import DEAD_LETTER_SCHEMA

__all__ = ["DEAD_LETTER_SCHEMA", "AvroDecoder", "Decoded", "Decoder", "Schemas", "decoder_of"]

_RANGES = {"int": (-(2**31), 2**31 - 1), "long": (-(2**63), 2**63 - 1)}

_log = logging.getLogger("unskew.decode")


class Schemas(Protocol):
    """A source of writers' schemas, by the ids that messages carry."""

    def writer(self, schema_id: int) -> Mapping[str, Any]:
        """Return the parsed schema; may wait for it. Raises ``Incompatible`` if there is none that can be read."""


def decoder_of(stream: StreamPlan, schemas: Schemas | None = None) -> Decoder:
    """Return the decoder for a stream's format.

    ``schemas``: the source of Avro writers' schemas; if None, the stream's own schema is every writer's.
    """
    return JsonDecoder(stream) if stream.format == "json" else AvroDecoder(stream, schemas=schemas)


class AvroDecoder(Decoder):
    """The decoder of a stream's messages, with the schemas with which they were written.

    ``schema_ids``: ids that messages may carry; any if None. ``schemas``: the source of writers' schemas; if None, the
    stream's own schema is the writer's. ``incompatible``: number of messages so far whose writer's schema cannot be
    read.
    """

    def __init__(
        self, stream: StreamPlan, schema_ids: Collection[int] | None = None, schemas: Schemas | None = None
    ) -> None:
        super().__init__(stream)
        self._ids = None if schema_ids is None else frozenset(schema_ids)
        self._schemas = schemas
        self.asks = schemas is not None
        self._own = _Reading(stream.schema, stream)
        self._readings: dict[int, _Reading] = {}
        # The reasons why messages of a schema cannot be read; they stay valid for as long as the process runs.
        self._faults: dict[int, str] = {}
        self._empty = self._no_events.select(list(self.payload))

    @override
    def _read(self, values: Sequence[bytes | None], reasons: dict[int, Rejection]) -> Read:
        messages = cast("Sequence[bytes]", values) if None not in values else [value or b"" for value in values]
        if self._schemas is None:
            rows = np.arange(len(values))
            return merged([self._own.read(rows, messages, values, reasons, self._ids)], self._empty)
        ids = schema_ids_of(messages)
        found = np.unique(ids).tolist()
        parts = []
        for schema_id in found:
            rows = np.flatnonzero(ids == schema_id)
            if schema_id < 0:
                # It has no frame; any reading can give the reason.
                reading: _Reading | None = self._own
            else:
                reading = self._reading(schema_id)
            if reading is None:
                reasons |= dict.fromkeys(rows.tolist(), Rejection("schema", self._faults[schema_id]))
                self.incompatible += len(rows)
                continue
            chosen = messages if len(found) == 1 else [messages[row] for row in rows.tolist()]
            parts.append(reading.read(rows, chosen, values, reasons, self._ids))
        return merged(parts, self._empty)

    def _reading(self, schema_id: int) -> "_Reading | None":
        """Return how messages of a schema are read; None if they cannot be.

        The reason for None has been noted and logged.
        """
        assert self._schemas is not None
        if schema_id in self._readings:
            return self._readings[schema_id]
        if schema_id in self._faults or (self._ids is not None and schema_id not in self._ids):
            self._faults.setdefault(schema_id, f"unknown schema id {schema_id}")
            return None
        try:
            writer = self._schemas.writer(schema_id)
            self._readings[schema_id] = _Reading(writer, self._stream)
        except Incompatible as fault:
            self._faults[schema_id] = f"schema {schema_id}: {fault}"
            _log.error(
                "Topic %r: messages with schema id %d cannot be read and become dead letters: %s. Correct the producer, "
                "or give the stream a schema into which this one resolves, and read the topic again from there.",
                self.topic,
                schema_id,
                fault,
            )
            return None
        _log.info("Topic %r: messages with schema id %d are resolved into the stream's schema", self.topic, schema_id)
        return self._readings[schema_id]


class _Reading:
    """The way from messages written with one schema to columns of a stream."""

    def __init__(self, writer: Mapping[str, Any], stream: StreamPlan) -> None:
        self._resolution = Resolution(writer, stream.schema, stream.event_time)
        self._wire = Wire(writer, self._resolution.wanted)
        self._plain = fastavro.parse_schema(without_logical_types(writer))
        self._ranges = {field.name: _RANGES[field.kind] for field in avro_fields(writer) if field.kind in _RANGES}
        self._in_one_piece = InOnePiece(stream.topic)

    def read(
        self,
        rows: npt.NDArray[np.int64],
        messages: Sequence[bytes],
        values: Sequence[bytes | None],
        reasons: dict[int, Rejection],
        ids: Collection[int] | None,
    ) -> Read:
        """Return columns of the stream from ``messages``, which are at ``rows`` of the poll's ``values``."""
        passed = self._wire.check(messages, ids)
        good = np.flatnonzero(passed)
        frame = self._read_block(messages if len(good) == len(messages) else [messages[at] for at in good.tolist()])
        if frame is None:
            good = good[:0]
            passed[:] = False
        parts = [] if frame is None else [(rows[good], frame)]
        if len(good) < len(rows):
            parts.append(self._read_each(values, rows[~passed], reasons, ids))
        read, frame = merged(parts, pl.DataFrame(schema=self._wire.shape))
        refusals = Refusals(read, reasons)
        return refusals.of(self._resolution.apply(frame, refusals)) if len(read) else (read, frame)

    def _read_block(self, values: Sequence[bytes]) -> pl.DataFrame | None:
        """Return columns of messages that passed the check; None if Polars does not agree with it."""
        if not values:
            return None
        shape = self._wire.shape
        return self._in_one_piece(lambda: self._wire.read(values).select(list(shape)).cast(shape))  # type: ignore[arg-type]

    def _read_each(
        self,
        values: Sequence[bytes | None],
        rows: npt.NDArray[np.int64],
        reasons: dict[int, Rejection],
        ids: Collection[int] | None,
    ) -> Read:
        def columns(value: bytes | None) -> tuple[Any, ...]:
            record = self._read_one(value, ids)
            return tuple(record[name] for name in self._resolution.wanted)

        read, records = one_by_one(values, rows, reasons, columns)
        shape = {column: self._wire.shape[column] for column in self._resolution.wanted.values()}
        return read, pl.DataFrame(records, schema=shape, orient="row").select(list(self._wire.shape))

    def _read_one(self, value: bytes | None, ids: Collection[int] | None) -> Mapping[str, Any]:
        """Read a single message with fastavro; numbers stay as they are on the wire."""
        if value is None:
            raise BadMessage("tombstone", "empty value (tombstone)")
        if value[:1] not in {b"", b"\0"}:
            raise BadMessage("frame", "wrong magic byte")
        if len(value) < FRAME_BYTES:
            raise BadMessage("truncated", "truncated")
        schema_id = int.from_bytes(value[1:FRAME_BYTES], "big")
        if ids is not None and schema_id not in ids:
            raise BadMessage("schema", f"unknown schema id {schema_id}")
        if self._wire.trapped:
            return self._read_walked(value)
        body = io.BytesIO(value[FRAME_BYTES:])
        try:
            record: Any = fastavro.schemaless_reader(body, self._plain, None)
        except EOFError as error:
            raise BadMessage("truncated", "truncated") from error
        except UnicodeDecodeError as error:
            raise BadMessage("encoding", "invalid UTF-8") from error
        # fastavro raises whatever its steps raise on bytes that are not a record: IndexError, OverflowError, ...
        except Exception as error:
            if isinstance(error, IndexError) and not body.read(1):
                raise BadMessage("truncated", "truncated") from error
            raise BadMessage("malformed", f"not a record of the schema ({type(error).__name__}: {error})") from error
        if extra := len(value) - FRAME_BYTES - body.tell():
            raise BadMessage("trailing", f"{extra} trailing bytes")
        if not self._wire.is_record(value):
            raise BadMessage(
                "malformed", "not a record of the schema (an index out of range, or a number of over 64 bits)"
            )
        for name, (least, most) in self._ranges.items():
            number = record[name]
            if number is not None and not least <= number <= most:
                raise BadMessage("range", f"{name}: {number} does not fit its type")
        return cast("Mapping[str, Any]", record)

    def _read_walked(self, value: bytes) -> Mapping[str, Any]:
        """Read a single message as ``_read_one`` does, without fastavro.

        It is for schemas that let bytes make fastavro fill the memory, or recurse until the process dies.
        """
        frame = self._in_one_piece(lambda: self._wire.read([value])) if self._wire.check([value]).all() else None
        if frame is None:
            raise BadMessage("malformed", "not a record of the schema")
        return {name: frame.item(0, column) for name, column in self._resolution.wanted.items()}


def without_logical_types(avro: Any) -> Any:
    """Return the schema without logical types, so that numbers stay as they are on the wire."""
    if isinstance(avro, Mapping):
        return {word: without_logical_types(part) for word, part in avro.items() if word != "logicalType"}
    return [without_logical_types(part) for part in avro] if isinstance(avro, (list, tuple)) else avro
