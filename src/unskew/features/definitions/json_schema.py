"""The columns of JSON messages, declared by a JSON Schema of an object or by an Avro record schema."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import polars as pl

from unskew.features.definitions.avro_schema import TIMESTAMP, avro_columns, avro_fields, record_faults
from unskew.features.definitions.inputs import Path, flat_avro
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
    present in its object. ``symbols``: the texts that are allowed; if empty, any. ``path``: the keys that lead to the
    value; empty if it is only ``name``. ``outer``: for each object on that path, whether it may be null, and whether it
    must be present.
    """

    name: str
    kind: JsonKind
    dtype: pl.DataType
    logical: str | None = None
    nullable: bool = False
    required: bool = False
    symbols: tuple[str, ...] = ()
    path: Path = ()
    outer: tuple[tuple[bool, bool], ...] = ()


def json_columns(
    schema: Mapping[str, Any], paths: Mapping[str, Path] | None = None
) -> tuple[dict[str, pl.DataType], list[str]]:
    """Return the columns with their types after decoding, and the schema's faults (each half a sentence).

    ``paths``: column -> the keys that lead to its value, for columns that are not keys of their own name.
    """
    paths = paths or {}
    if schema.get("type") == "record":
        if malformed := record_faults(schema):
            return {}, malformed
        unknown: list[str] = []
        _, faults = avro_columns(flat_avro(schema, paths, unknown))
        if faults or unknown:
            return {}, [*unknown, *faults]
    elif schema.get("type") != "object" or not isinstance(schema.get("properties"), Mapping):
        return {}, [
            "the schema of JSON messages is neither a JSON Schema of an object with properties nor an Avro record schema; give one of these"
        ]
    elif malformed := _malformed(schema):
        return {}, malformed
    fields = json_fields(schema, paths)
    faults = [
        f"property {field.name!r} begins with _, which is reserved; give it a column of another name, for example "
        f"fields={{{field.name.lstrip('_')!r}: {field.name!r}}}, or leave it out of the schema, and it is not read"
        for field in fields
        if field.name.startswith("_")
    ]
    faults += [
        f"fields: column {column!r}: the schema has no integer, number, string or boolean at {'.'.join(path)!r}; correct the path"
        for column, path in paths.items()
        if column not in {field.name for field in fields}
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


def json_fields(schema: Mapping[str, Any], paths: Mapping[str, Path] | None = None) -> tuple[JsonField, ...]:
    """Return the values that become columns, in the schema's order, then those of ``paths``.

    Values of other types are left out.
    """
    paths = paths or {}
    if schema.get("type") == "record":
        return tuple(_from_avro(schema, paths))
    required = schema.get("required", ())
    renamed = {path[0] for path in paths.values() if len(path) == 1}
    found = [
        _property(name, about, name in required) for name, about in schema["properties"].items() if name not in renamed
    ]
    found += [_inside(schema, column, path) for column, path in paths.items()]
    return tuple(field for field in found if field is not None)


def _inside(schema: Mapping[str, Any], column: str, path: Path) -> JsonField | None:
    """Return the value at a path; None if it is not of a type that becomes a column."""
    outer: list[tuple[bool, bool]] = []
    for depth, name in enumerate(path, start=1):
        properties = schema.get("properties")
        about = properties.get(name) if isinstance(properties, Mapping) else None
        required = name in schema.get("required", ())
        if depth == len(path):
            field = _property(name, about, required)
            return None if field is None else replace(field, name=column, path=path, outer=tuple(outer))
        if not isinstance(about, Mapping):
            return None
        outer.append(("null" in about.get("type", ()), required))
        schema = about
    return None


def _from_avro(schema: Mapping[str, Any], paths: Mapping[str, Path]) -> list[JsonField]:
    flat = flat_avro(schema, paths, [])
    return [
        JsonField(
            name=field.name,
            kind=_AVRO_KINDS[field.kind],
            dtype=field.dtype,
            logical=field.logical,
            nullable=field.nullable,
            required=not field.nullable,
            symbols=field.symbols,
            path=paths.get(field.name, ()),
            # Whether a record may be null shows in the field: its type then has null.
            outer=((field.nullable, not field.nullable),) * (len(paths.get(field.name, ())) - 1),
        )
        for field in avro_fields(flat if paths else schema)
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
