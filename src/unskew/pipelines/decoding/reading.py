"""Messages of one writer's schema as columns of the stream, and reasons for those that are not records of it.

The fast path checks every message by itself (``avro_walk``) and passes all good ones to ``polars.read_avro`` as the one
block of an Avro container. Messages that fail the check, and all messages if Polars and the check disagree, are read by
fastavro one by one; both paths give the same columns.
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import fastavro
import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.features.definitions.avro_schema import avro_fields
from unskew.features.rejection import Rejection
from unskew.pipelines.decoding.avro_walk import Wire
from unskew.pipelines.decoding.columns import Refusals
from unskew.pipelines.decoding.decoder import BadMessage, InOnePiece, Read, merged, one_by_one
from unskew.pipelines.decoding.resolve import Resolution
from unskew.pipelines.kafka.blobs import Blobs
from unskew.pipelines.kafka.poll import FRAME_BYTES

_RANGES = {"int": (-(2**31), 2**31 - 1), "long": (-(2**63), 2**63 - 1)}


@dataclass(frozen=True, slots=True)
class Accepted:
    """The schema ids that messages may carry.

    ``listed``: true if the definition lists them; otherwise it is the id with which the partition began.
    """

    ids: frozenset[int]
    listed: bool

    def fault(self, schema_id: int) -> str:
        """Return why a message with another id is refused."""
        known = ", ".join(map(str, sorted(self.ids)))
        if self.listed:
            return f"unknown schema id {schema_id}; the stream's schema_ids are {known}"
        return (
            f"unknown schema id {schema_id}; the partition began with {known}: list under schema_ids which of them mean the stream's "
            f"schema, for example schema_ids=[{schema_id}] if its first record was a stray one, or use a Schema Registry"
        )


class Reads(Protocol):
    """The way from messages to columns of a stream."""

    def read(
        self,
        rows: npt.NDArray[np.int64],
        values: Blobs,
        reasons: dict[int, Rejection],
        accepted: Accepted | None = None,
    ) -> Read:
        """Return columns of the stream from ``values``, which are at ``rows`` of a poll.

        Note a reason for each message that is not an event.
        """


def read_by_choice(
    choices: npt.NDArray[np.int64],
    way: Callable[[int], Reads | Rejection | None],
    rows: npt.NDArray[np.int64],
    messages: Blobs,
    reasons: dict[int, Rejection],
    accepted: Accepted | None = None,
    *,
    refuse: Callable[[npt.NDArray[np.int64], Rejection], None] | None = None,
) -> Read:
    """Return columns of the stream from messages that each make a choice, such as a schema or a branch of a union.

    ``choices``: the choice of each of ``messages``. ``way``: returns how messages of a choice are read, or why they are
    refused; None if they are ignored. It is asked about the choice of most messages first. ``refuse``: notes the reason
    for the messages at some places of ``messages``; if None, it is noted as it is.
    """
    found, counts = np.unique(choices, return_counts=True)
    parts = []
    for choice in found[np.argsort(-counts, kind="stable")].tolist():
        places = np.flatnonzero(choices == choice)
        reads = way(choice)
        if isinstance(reads, Rejection):
            if refuse is None:
                reasons |= dict.fromkeys(rows[places].tolist(), reads)
            else:
                refuse(places, reads)
        elif reads is not None:
            chosen = messages if len(found) == 1 else messages.at(places)
            parts.append(reads.read(rows[places], chosen, reasons, accepted))
    return merged(parts, pl.DataFrame())


class Reading:
    """The way from messages written with one schema to columns of a stream."""

    def __init__(self, writer: Mapping[str, Any], reader: Mapping[str, Any], event_time: str, topic: str) -> None:
        self._resolution = Resolution(writer, reader, event_time)
        self._wire = Wire(writer, self._resolution.wanted)
        self._plain = fastavro.parse_schema(without_logical_types(writer))
        self._ranges = {field.name: _RANGES[field.kind] for field in avro_fields(writer) if field.kind in _RANGES}
        self._in_one_piece = InOnePiece(topic)
        self._nothing = pl.DataFrame(schema=self._wire.shape)

    def read(
        self,
        rows: npt.NDArray[np.int64],
        values: Blobs,
        reasons: dict[int, Rejection],
        accepted: Accepted | None = None,
    ) -> Read:
        """Return columns of the stream; see ``Reads``."""
        passed = self._wire.check(values, None if accepted is None else accepted.ids)
        good = np.flatnonzero(passed)
        frame = self._read_block(values if len(good) == len(values) else values.at(good))
        if frame is None:
            good = good[:0]
            passed[:] = False
        parts = [] if frame is None else [(rows[good], frame)]
        if len(good) < len(rows):
            rest = np.flatnonzero(~passed)
            parts.append(self._read_each(rows[rest], values.at(rest), reasons, accepted))
        read, frame = merged(parts, self._nothing)
        refusals = Refusals(read, reasons)
        return refusals.of(self._resolution.apply(frame, refusals)) if len(read) else (read, frame)

    def _read_block(self, values: Blobs) -> pl.DataFrame | None:
        """Return columns of messages that passed the check; None if Polars does not agree with it."""
        if not len(values):
            return None
        return self._in_one_piece(lambda: _shaped(self._wire.read(values), self._wire.shape))

    def _read_each(
        self,
        rows: npt.NDArray[np.int64],
        values: Blobs,
        reasons: dict[int, Rejection],
        accepted: Accepted | None,
    ) -> Read:
        def columns(value: bytes | None) -> tuple[Any, ...]:
            record = self._read_one(value, accepted)
            return tuple(record[name] for name in self._resolution.wanted)

        read, records = one_by_one(rows, values, reasons, columns)
        shape = {column: self._wire.shape[column] for column in self._resolution.wanted.values()}
        return read, pl.DataFrame(records, schema=shape, orient="row").select(list(self._wire.shape))

    def sound(
        self,
        rows: npt.NDArray[np.int64],
        values: Blobs,
        reasons: dict[int, Rejection],
        accepted: Accepted | None = None,
    ) -> npt.NDArray[np.int64]:
        """Return the rows whose messages are records of the schema; note a reason for each other."""
        return one_by_one(rows, values, reasons, lambda value: tuple(self._read_one(value, accepted)))[0]

    def _read_one(self, value: bytes | None, accepted: Accepted | None) -> Mapping[str, Any]:
        """Read a single message with fastavro; numbers stay as they are on the wire."""
        if value is None:
            raise BadMessage("tombstone", "empty value (tombstone)")
        if value[:1] not in {b"", b"\0"}:
            raise BadMessage("frame", "wrong magic byte")
        if len(value) < FRAME_BYTES:
            raise BadMessage("truncated", "truncated")
        schema_id = int.from_bytes(value[1:FRAME_BYTES], "big")
        if accepted is not None and schema_id not in accepted.ids:
            raise BadMessage("schema", accepted.fault(schema_id))
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
        alone = Blobs.of([value])
        frame = self._in_one_piece(lambda: self._wire.read(alone)) if self._wire.check(alone).all() else None
        if frame is None:
            raise BadMessage("malformed", "not a record of the schema")
        return {name: frame.item(0, column) for name, column in self._resolution.wanted.items()}


def _shaped(frame: pl.DataFrame, shape: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """Return the frame with these columns and types; mostly it has them, and a query would cost more than the rest."""
    if frame.columns == list(shape) and frame.dtypes == list(shape.values()):
        return frame
    return frame.select(list(shape)).cast(shape)  # type: ignore[arg-type]


def without_logical_types(avro: Any) -> Any:
    """Return the schema without logical types, so that numbers stay as they are on the wire."""
    if isinstance(avro, Mapping):
        return {word: without_logical_types(part) for word, part in avro.items() if word != "logicalType"}
    return [without_logical_types(part) for part in avro] if isinstance(avro, (list, tuple)) else avro


class Unframed:
    """The way from messages without a frame, which is to refuse them; no schema is needed for that."""

    def __init__(self, topic: str) -> None:
        nothing = {"type": "record", "name": "Nothing", "fields": []}
        self._nothing = Reading(nothing, nothing, "", topic)

    def read(
        self,
        rows: npt.NDArray[np.int64],
        values: Blobs,
        reasons: dict[int, Rejection],
        accepted: Accepted | None = None,
    ) -> Read:
        """Return nothing; note a reason for each message."""
        self._nothing.sound(rows, values, reasons, accepted)
        return rows[:0], pl.DataFrame()
