"""The columns of JSON messages, declared by a JSON Schema of an object or by an Avro record schema."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from unskew.features.definitions.avro_schema import TIMESTAMP, avro_columns, avro_fields
from unskew.features.nearest import nearest

JsonKind = Literal["integer", "number", "string", "boolean"]

_ALL_KINDS = ("array", "boolean", "integer", "null", "number", "object", "string")
_KINDS: Mapping[str, pl.DataType] = {
    "integer": pl.Int64(),
    "number": pl.Float64(),
    "string": pl.String(),
    "boolean": pl.Boolean(),
}
# The unit of a time that is a number, by its format in a JSON Schema; Avro's logical types are the same thing.
_UNITS = {"unix-time": "timestamp-s", "unix-time-ms": "timestamp-millis", "unix-time-us": "timestamp-micros"}
_FORMATS: Mapping[str, pl.DataType] = {"date-time": TIMESTAMP, "date": pl.Date()}
_AVRO_KINDS: Mapping[str, JsonKind] = {
    "int": "integer",
    "long": "integer",
    "float": "number",
    "double": "number",
    "string": "string",
    "enum": "string",
    "boolean": "boolean",
}


@dataclass(frozen=True, kw_only=True)
class JsonField:
    """One key of a message that becomes a column.

    ``logical``: for a time that is a number, an Avro logical type or ``timestamp-s``; for a time that is text,
    ``date-time`` or ``date``. ``nullable``: true if the value may be null. ``required``: true if the key must be
    present. ``symbols``: the texts that are allowed; if empty, any.
    """

    name: str
    kind: JsonKind
    dtype: pl.DataType
    logical: str | None = None
    nullable: bool = False
    required: bool = False
    symbols: tuple[str, ...] = ()


def json_columns(schema: Mapping[str, Any]) -> tuple[dict[str, pl.DataType], list[str]]:
    """Return the columns with their types after decoding, and the schema's faults (each half a sentence)."""
    if schema.get("type") == "record":
        _, faults = avro_columns(schema)
        if faults:
            return {}, faults
    elif schema.get("type") != "object" or not isinstance(schema.get("properties"), Mapping):
        return {}, [
            "the schema of JSON messages is neither a JSON Schema of an object with properties nor an Avro record schema; give one of these"
        ]
    elif malformed := _malformed(schema):
        return {}, malformed
    fields = json_fields(schema)
    faults = [
        f"property {field.name!r} begins with _, which is reserved; leave it out of the schema, and it is not read"
        for field in fields
        if field.name.startswith("_")
    ]
    if not fields:
        faults.append(
            "the schema has no property that is an integer, number, string or boolean; a column must be one of these"
        )
    return {field.name: field.dtype for field in fields}, faults


def _malformed(schema: Mapping[str, Any]) -> list[str]:
    """Return the faults of those JSON Schema keywords that are read."""
    faults = []
    if not _are_texts(schema.get("required", [])):
        faults.append(
            f"required is {schema['required']!r}; write the list of the properties that must be present, or leave it out"
        )
    for name, about in schema["properties"].items():
        kinds = about.get("type", []) if isinstance(about, Mapping) else []
        if not isinstance(kinds, str) and not _are_texts(kinds):
            faults.append(
                f"property {name!r} has the type {kinds!r}; write one type, for example string, or a list of types"
            )
        else:
            faults += [
                f"property {name!r} has the type {kind!r}; {nearest(kind, _ALL_KINDS, 'types are')}"
                for kind in ([kinds] if isinstance(kinds, str) else kinds)
                if kind not in _ALL_KINDS
            ]
        if isinstance(about, Mapping) and not isinstance(about.get("enum", []), (list, tuple)):
            faults.append(f"property {name!r} has the enum {about['enum']!r}; write the list of its values")
    return faults


def _are_texts(value: object) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value)


def json_fields(schema: Mapping[str, Any]) -> tuple[JsonField, ...]:
    """Return the keys that become columns, in the schema's order; keys of other types are left out."""
    if schema.get("type") == "record":
        return tuple(_from_avro(schema))
    required = schema.get("required", ())
    found = (_property(name, about, name in required) for name, about in schema["properties"].items())
    return tuple(field for field in found if field is not None)


def _from_avro(schema: Mapping[str, Any]) -> list[JsonField]:
    return [
        JsonField(
            name=field.name,
            kind=_AVRO_KINDS[field.kind],
            dtype=field.dtype,
            logical=field.logical,
            nullable=field.nullable,
            required=not field.nullable,
            symbols=field.symbols,
        )
        for field in avro_fields(schema)
        if field.kind in _AVRO_KINDS and field.dtype is not None
    ]


def _property(name: str, about: Any, required: bool) -> JsonField | None:  # noqa: FBT001
    if not isinstance(about, Mapping):
        return None
    kinds = about.get("type")
    kinds = [kinds] if isinstance(kinds, str) else list(kinds or ())
    rest = [kind for kind in kinds if kind != "null"]
    if len(rest) != 1 or rest[0] not in _KINDS:
        return None
    kind: JsonKind = rest[0]
    logical, dtype = None, _KINDS[kind]
    form = str(about.get("format"))
    if kind == "integer" and form in _UNITS:
        logical, dtype = _UNITS[form], TIMESTAMP
    elif kind == "integer" and form == "int32":
        dtype = pl.Int32()
    elif kind == "string" and form in _FORMATS:
        logical, dtype = form, _FORMATS[form]
    symbols = about.get("enum", ()) if kind == "string" and logical is None else ()
    return JsonField(
        name=str(name),
        kind=kind,
        dtype=dtype,
        logical=logical,
        nullable="null" in kinds,
        required=required,
        symbols=tuple(symbol for symbol in symbols if isinstance(symbol, str)),
    )
