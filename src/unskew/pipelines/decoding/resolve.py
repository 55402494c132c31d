"""Resolution of a writer's schema into a stream's own, by Avro's rules, for whole columns.

Fields are matched by name, else by one of the reader's aliases. Numbers widen, text and bytes can be read as each
other, and missing fields take the reader's default. Three things go further than Avro, because nothing is lost: a
logical type of time keeps its meaning (milliseconds that are read into a column of microseconds are the same instant),
a symbol of an enum is read as text, and a decimal of another scale is the same number, or its record is refused.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from unskew.features.definitions.avro_schema import AvroField, avro_fields, spell
from unskew.features.selecting import framed
from unskew.pipelines.decoding.avro_walk import RAW
from unskew.pipelines.decoding.columns import Refusals, Unit, texts, typed

_WIDENS = {
    "int": ("int", "long", "float", "double"),
    "long": ("long", "float", "double"),
    "float": ("float", "double"),
    "double": ("double",),
    "string": ("string", "bytes"),
    "bytes": ("bytes", "string"),
    "boolean": ("boolean",),
    # Not by Avro's rules, but nothing is lost.
    "enum": ("enum", "string"),
    "fixed": ("fixed",),
}


class Incompatible(Exception):
    """The error for a writer's schema that cannot be read into the stream's columns; the text gives the reason."""


class Unregistered(Incompatible):
    """The error for an id under which no schema is registered, as far as the registry knows."""


@dataclass(frozen=True, slots=True)
class _Column:
    """One column of the stream; ``writer``: None if the column is the reader's default."""

    reader: AvroField
    writer: AvroField | None
    unit: Unit
    dtype: pl.DataType


class Resolution:
    """The way from columns of a writer to columns of the stream.

    ``wanted``: the writer's fields that are read, and the columns that they become. Raises ``Incompatible``.
    """

    def __init__(self, writer: Mapping[str, Any], reader: Mapping[str, Any], event_time: str) -> None:
        self._event_time = event_time
        self._columns = list(_matched({field.name: field for field in avro_fields(writer)}, avro_fields(reader)))
        self.wanted = {
            column.writer.name: column.reader.name
            for column in self._columns
            if column.writer is not None and column.writer.kind != "null"
        }

    def apply(self, frame: pl.DataFrame, refusals: Refusals) -> pl.DataFrame:
        """Return typed columns of the stream from columns as ``Wire`` returns them; refuse rows that do not fit."""
        columns = [self._column(column, frame, refusals) for column in self._columns]
        return framed(columns)

    def _column(self, column: _Column, frame: pl.DataFrame, refusals: Refusals) -> pl.Series:
        reader, writer = column.reader, column.writer
        if writer is None or writer.kind == "null":
            default = None if writer is not None else _default(reader)
            values = pl.Series(reader.name, [default], dtype=RAW[reader.kind]).new_from_index(0, frame.height)
        else:
            values = frame.get_column(reader.name)
            if writer.nullable and not reader.nullable:
                refusals.refuse(
                    values.is_null(), "type", lambda _: f"{reader.name} is null, which its type does not allow"
                )
            values = _promoted(values, writer, reader, refusals)
            if column.unit.logical == "decimal" and writer.logical == "decimal" and writer.scale != reader.scale:
                values = _rescaled(values, writer.scale, reader.scale, refusals)
        event_time = reader.name == self._event_time
        return typed(values, column.unit, column.dtype, refusals, event_time=event_time)


def _matched(writer: Mapping[str, AvroField], reader: tuple[AvroField, ...]) -> Iterator[_Column]:
    for field in reader:
        dtype = field.dtype
        if dtype is None:
            continue
        found = next((writer[name] for name in (field.name, *field.aliases) if name in writer), None)
        unit = Unit(field.logical, field.scale)
        if found is None:
            if not field.default:
                raise Incompatible(f"it has no field {field.name!r}, which has no default")
        elif found.kind == "null":
            if not field.nullable:
                raise Incompatible(f"its field {found.name!r} is always null, which is not allowed")
        else:
            if (fault := mismatch(found, field)) is not None:
                raise Incompatible(
                    f"its field {found.name!r} is {spell(found.avro)}, which cannot be read as {spell(field.avro)}{fault}"
                )
            meant = found.logical or found.marked
            if meant is not None and field.logical is not None:
                # A decimal is brought to the reader's scale before it becomes a column.
                unit = Unit(meant, field.scale)
        yield _Column(field, found, unit, dtype)


def mismatch(writer: AvroField, reader: AvroField) -> str | None:
    """Return why one type cannot be read as the other, as the end of a sentence (perhaps empty); None if it can."""
    if writer.logical == reader.logical == "decimal":
        return None
    if reader.kind not in _WIDENS.get(writer.kind, ()):
        return ""
    if reader.kind == "fixed" and writer.size != reader.size:
        return f": its size is {writer.size}, not {reader.size}"
    if reader.type_names and writer.type_names[0] not in reader.type_names:
        return f": its name is {writer.type_names[0]}"
    if reader.logical == "decimal" and writer.kind not in {"bytes", "fixed"}:
        return ""
    meant = writer.logical or writer.marked
    if meant is None or reader.logical is None:
        return None
    return "" if _meaning(meant) != _meaning(reader.logical) else None


def _meaning(logical: str) -> str:
    return logical.removeprefix("local-").partition("-")[0]


def _default(field: AvroField) -> Any:
    (default,) = field.default
    # Avro writes bytes in JSON as text of code points below 256.
    return default.encode("latin-1") if isinstance(default, str) and field.kind in {"bytes", "fixed"} else default


def _promoted(values: pl.Series, writer: AvroField, reader: AvroField, refusals: Refusals) -> pl.Series:
    if reader.kind == "enum":
        return _symbols(values, writer, reader, refusals)
    if writer.kind in {reader.kind, "enum"}:
        return values
    if writer.kind == "bytes" and reader.kind == "string":
        return texts(values, refusals, "encoding", values.name)
    if writer.kind in {"int", "long"} and reader.kind == "float":
        # By way of a double, as in fastavro: a number is rounded twice.
        return values.cast(pl.Float64).cast(pl.Float32)
    return values.cast(RAW[reader.kind])


def _rescaled(values: pl.Series, scale: int, wanted: int, refusals: Refusals) -> pl.Series:
    """Return unscaled decimals of another scale; refuse those that would lose digits."""
    numbers = [None if value is None else int.from_bytes(value, "big", signed=True) for value in values]
    lost = 10 ** max(scale - wanted, 0)
    refusals.refuse(
        np.array([number is not None and number % lost != 0 for number in numbers], np.bool_),
        "range",
        lambda _: f"{values.name} has more than {wanted} digits after the point",
    )
    gained = 10 ** max(wanted - scale, 0)
    units = [None if number is None else number // lost * gained for number in numbers]
    octets = [None if unit is None else unit.to_bytes(unit.bit_length() // 8 + 1, "big", signed=True) for unit in units]
    return pl.Series(values.name, octets, dtype=pl.Binary)


def _symbols(values: pl.Series, writer: AvroField, reader: AvroField, refusals: Refusals) -> pl.Series:
    unknown = [symbol for symbol in writer.symbols if symbol not in reader.symbols]
    if not unknown:
        return values
    if reader.symbol is not None:
        return values.replace(unknown, [reader.symbol] * len(unknown))
    refusals.refuse(
        values.is_in(unknown), "range", lambda at: f"{reader.name}: {values[at]!r} is not one of its symbols"
    )
    return values
