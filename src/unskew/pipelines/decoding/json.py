"""JSON messages of one poll as typed Polars columns, and dead letters for those that are none.

As for Avro: what a compiled check passes (``json_wire``) is read in one piece by Polars; the rest, and everything where
those two disagree, is read message by message. Both ways give the same columns.
"""

import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import polars as pl
from typing_extensions import override

from unskew.features.definitions.json_schema import JsonField, json_fields
from unskew.features.plan import StreamPlan
from unskew.features.rejection import Rejection
from unskew.pipelines.decoding.avro_walk import FRAME_BYTES
from unskew.pipelines.decoding.columns import Refusals, Unit, typed
from unskew.pipelines.decoding.decoder import BadMessage, Decoder, InOnePiece, Read, merged, one_by_one
from unskew.pipelines.decoding.json_walk import JsonWire

_INT64 = (-(2**63), 2**63 - 1)
_INT32 = (-(2**31), 2**31 - 1)
_WORDS = {bool: "a boolean", str: "a string", dict: "an object", list: "an array", type(None): "null"}
# RFC 3339, with T or a space; the date is checked by Polars.
_DATE_TIME = r"^\d{4}-\d{2}-\d{2}[Tt ]([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)$"
_DATE = r"^\d{4}-\d{2}-\d{2}$"


class JsonDecoder(Decoder):
    """Reads messages that are JSON objects, bare or in Confluent's frame (whose schema id is not looked at)."""

    def __init__(self, stream: StreamPlan) -> None:
        super().__init__(stream)
        self._fields = json_fields(stream.schema)
        self._by_name = {field.name: field for field in self._fields}
        self._wire = JsonWire(self._fields)
        self._in_one_piece = InOnePiece(stream.topic)

    @override
    def _read(self, values: Sequence[bytes | None], reasons: dict[int, Rejection]) -> Read:
        nothing = pl.DataFrame(schema=self._wire.shape)
        messages = [value or b"" for value in values]
        whole = self._in_one_piece(lambda: self._wire.read(messages))
        passed, frame = whole or (np.zeros(len(values), np.bool_), nothing)
        parts: list[Read] = [(np.flatnonzero(passed), frame)]
        if not passed.all():
            read, records = one_by_one(values, np.flatnonzero(~passed), reasons, self._read_one)
            parts.append((read, pl.DataFrame(records, schema=self._wire.shape, orient="row")))
        rows, frame = merged(parts, nothing)
        refusals = Refusals(rows, reasons)
        return refusals.of(pl.DataFrame([self._column(field, frame, refusals) for field in self._fields]))

    def _read_one(self, value: bytes | None) -> tuple[Any, ...]:
        if value is None:
            raise BadMessage("tombstone", "empty value (tombstone)")
        if len(value) > FRAME_BYTES and value[0] == 0:
            value = value[FRAME_BYTES:]
        try:
            pairs = json.loads(
                value.decode(),
                object_pairs_hook=_Pairs,
                parse_constant=_refuse,
                parse_int=_Integer,
                parse_float=_Number,
            )
        except UnicodeDecodeError as error:
            raise BadMessage("encoding", "invalid UTF-8") from error
        except RecursionError as error:
            raise BadMessage("malformed", "nested too deeply") from error
        except ValueError as error:
            raise BadMessage("malformed", f"not JSON: {error}") from error
        if not isinstance(pairs, _Pairs):
            raise BadMessage("malformed", "not a JSON object")
        found: dict[str, Any] = {}
        for key, item in pairs:
            if key in found:
                raise BadMessage("malformed", f"the key {key!r} is there twice")
            if key in self._by_name:
                found[key] = _checked(self._by_name[key], item)
        for field in self._fields:
            if field.required and field.name not in found:
                raise BadMessage("type", f"{field.name} is missing")
        return tuple(found.get(field.name) for field in self._fields)

    def _column(self, field: JsonField, frame: pl.DataFrame, refusals: Refusals) -> pl.Series:
        values = frame[field.name]
        event_time = field.name == self._stream.event_time
        unit = Unit(field.logical)
        if field.symbols:
            refusals.refuse(
                values.is_not_null() & ~values.is_in(field.symbols),
                "range",
                lambda at: f"{field.name}: {values[at]!r} is none of the values allowed",
            )
        if field.dtype == pl.Int32:
            outside = ~values.is_between(*_INT32)
            refusals.refuse(outside, "range", lambda at: f"{field.name}: {values[at]} does not fit its type")
            return values.cast(field.dtype, strict=False)
        if field.logical in {"date-time", "date"}:
            texts = values
            values = _parsed(texts, field.logical)
            refusals.refuse(
                values.is_null() & texts.is_not_null(),
                "time" if event_time else "range",
                lambda at: f"{field.name}: {texts[at]!r} is no {field.logical} as in RFC 3339",
            )
            unit = Unit("timestamp-micros" if field.logical == "date-time" else "date")
        return typed(values, unit, field.dtype, refusals, event_time=event_time)


class _Pairs(list[Any]):
    """An object, as its keys and values in the order they came."""


class _Integer(str):
    """A number without fraction or exponent, as it was written."""

    __slots__ = ()


class _Number(str):
    """Any other number."""

    __slots__ = ()


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def _checked(field: JsonField, item: Any) -> Any:
    """Give the value as its column has it, if it is of the field's type."""
    if item is None and field.nullable:
        return None
    if field.kind == "integer" and isinstance(item, _Integer):
        # Longer texts are no int64, and slow to convert.
        number = int(item) if len(item) <= 20 else _INT64[1] + 1
        if not _INT64[0] <= number <= _INT64[1]:
            raise BadMessage("range", f"{field.name}: {item[:30]} does not fit its type")
        return number
    if field.kind == "number" and isinstance(item, (_Integer, _Number)):
        real = float(item)
        if not math.isfinite(real):
            raise BadMessage("range", f"{field.name}: {item[:30]} does not fit its type")
        return real
    if field.kind == "boolean" and isinstance(item, bool):
        return item
    if field.kind == "string" and type(item) is str:
        if not _is_text(item):
            raise BadMessage("encoding", f"{field.name} has half a surrogate pair")
        return item
    kind = "a number" if isinstance(item, (_Integer, _Number)) else _WORDS.get(type(item), "an object")
    raise BadMessage("type", f"{field.name} is {kind}, not of type {field.kind}")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _parsed(texts: pl.Series, form: str) -> pl.Series:
    """Microseconds or days of RFC 3339 text, null where it is none; what is finer than a microsecond is cut off."""
    if form == "date":
        sound = texts.to_frame().select(pl.when(texts.str.contains(_DATE)).then(texts)).to_series()
        days = sound.str.to_date("%Y-%m-%d", strict=False)
        return days.to_physical().cast(pl.Int64).alias(texts.name)
    sound = texts.to_frame().select(pl.when(texts.str.contains(_DATE_TIME)).then(texts)).to_series()
    shape = sound.str.to_uppercase().str.replace(" ", "T", literal=True).str.replace("Z", "+00:00", literal=True)
    instants = shape.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%:z", time_unit="us", time_zone="UTC", strict=False)
    return instants.to_physical().alias(texts.name)
