"""An Avro reader schema as Polars columns."""

from collections.abc import Mapping
from typing import Any

import polars as pl
from fastavro.schema import SchemaParseException, UnknownType, parse_schema

TIMESTAMP = pl.Datetime("us", "UTC")

_PRIMITIVES: Mapping[str, pl.DataType] = {
    "int": pl.Int32(),
    "long": pl.Int64(),
    "float": pl.Float32(),
    "double": pl.Float64(),
    "boolean": pl.Boolean(),
    "string": pl.String(),
    "bytes": pl.Binary(),
}
_LOGICAL: Mapping[tuple[str, str], pl.DataType] = {
    ("long", "timestamp-millis"): TIMESTAMP,
    ("long", "timestamp-micros"): TIMESTAMP,
}
_READABLE = "int, long, float, double, boolean, string, bytes, enum, fixed, timestamp-millis and timestamp-micros, each also with null"


def avro_columns(schema: Mapping[str, Any]) -> tuple[dict[str, pl.DataType], list[str]]:
    """Columns of a record schema with their types after decoding, and a fault (half a sentence) for each that has none.

    A union of null and one type is that type. Enums are strings, fixed is binary, timestamps are microseconds in UTC.
    """
    try:
        parse_schema(dict(schema), expand=False)
    except (SchemaParseException, UnknownType) as error:
        return {}, [f"the Avro schema is not valid: {error}"]
    # fastavro raises whatever an unexpected shape leads to.
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return {}, [f"the Avro schema is not valid: {type(error).__name__} {error}"]
    if schema.get("type") != "record":
        return {}, [f"the Avro schema is a {schema.get('type')!r}; a record is read, one column for each of its fields"]
    if not schema.get("fields"):
        return {}, ["the Avro schema has no fields; a record has one for each column"]
    columns: dict[str, pl.DataType] = {}
    faults: list[str] = []
    named: dict[str, pl.DataType] = {}
    for field in schema["fields"]:
        name = field["name"]
        dtype = _column(field["type"], named)
        if name.startswith("_"):
            faults.append(
                f"field {name!r} begins with _, which is reserved; rename it in the reader schema, with its old name as an alias"
            )
        elif name in columns:
            faults.append(f"field {name!r} is there twice")
        elif dtype is None:
            faults.append(
                f"field {name!r} has the type {_spell(field['type'])}, which is not read; readable are {_READABLE}"
            )
        else:
            columns[name] = dtype
    return columns, faults


def _column(avro: Any, named: dict[str, pl.DataType]) -> pl.DataType | None:
    if isinstance(avro, list):
        rest = [branch for branch in avro if branch != "null"]
        return _column(rest[0], named) if len(rest) == 1 else None
    if isinstance(avro, str):
        return _PRIMITIVES.get(avro) or named.get(avro)
    kind = avro["type"]
    if isinstance(kind, (dict, list)):
        return _column(kind, named)
    if kind in {"enum", "fixed"}:
        dtype: pl.DataType | None = pl.String() if kind == "enum" else pl.Binary()
        if avro.get("logicalType") is not None:
            return None
        assert dtype is not None
        named[avro["name"]] = dtype
        if "namespace" in avro:
            named[f"{avro['namespace']}.{avro['name']}"] = dtype
        return dtype
    if (logical := avro.get("logicalType")) is not None:
        return _LOGICAL.get((kind, logical))
    return _column(kind, named)


def _spell(avro: Any) -> str:
    if isinstance(avro, list):
        return " | ".join(_spell(branch) for branch in avro)
    if isinstance(avro, dict):
        return str(avro.get("logicalType") or _spell(avro["type"]))
    return str(avro)
