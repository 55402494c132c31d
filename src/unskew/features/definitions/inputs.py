"""Where the columns of a stream lie in a message, and how their values are read, where that is not the usual way."""

import re
from collections.abc import Iterable, Mapping
from typing import Any
from zoneinfo import ZoneInfo

import fastavro
import polars as pl

from unskew.features.definitions.avro_schema import Unique, marked_as_logical, without_wrapping
from unskew.features.errors import DefinitionError
from unskew.features.plan import ReadAs
from unskew.features.types import TIMESTAMP, Type

FORMS = "unix-s, unix-ms, unix-us, unix-ns, iso, 'iso Europe/Berlin', int64, float64, 'decimal(38,2)'"

_UNIX = {"unix-s": 1, "unix-ms": 1_000, "unix-us": 1_000_000, "unix-ns": 1_000_000_000}
_ISO = re.compile(r"iso(?: (\S+))?")

Path = tuple[str, ...]


def paths_of(fields: object, faults: list[str]) -> dict[str, Path]:
    """Return, by column, the names that lead to its value from outside to inside."""
    if not isinstance(fields, Mapping):
        faults.append(
            f"fields={fields!r} is not a mapping from columns to paths; write for example {{'lat': 'geo.lat'}}"
        )
        return {}
    paths: dict[str, Path] = {}
    for column, path in fields.items():
        segments = tuple(path.split(".")) if isinstance(path, str) else ()
        if not isinstance(column, str) or not column or column.startswith("_") or not all(segments) or not segments:
            faults.append(
                f"fields: {column!r}: {path!r} is not a column and its path; write for example {{'lat': 'geo.lat'}}, and no "
                "column that begins with _"
            )
        elif segments in paths.values():
            faults.append(f"fields: the path {path!r} is read twice; give it one column")
        else:
            paths[column] = segments
    for column, one in paths.items():
        faults += [
            f"fields: column {column!r} is read from {'.'.join(one)!r}, inside which another column is read; leave one out"
            for other in paths.values()
            if len(one) < len(other) and other[: len(one)] == one
        ]
    return paths


def form_of(text: object, raw: pl.DataType) -> ReadAs:
    """Return the way of reading that a word of ``read_as`` means, for values of type ``raw``.

    Raises ``DefinitionError``.
    """
    word = text if isinstance(text, str) else ""
    if word in _UNIX:
        return ReadAs(text=word, dtype=TIMESTAMP, raw=raw, per_second=_UNIX[word])
    if found := _ISO.fullmatch(word):
        zone = found[1]
        try:
            if zone is not None:
                ZoneInfo(zone)
        except (KeyError, ValueError, OSError) as error:
            raise DefinitionError(
                f"{zone!r} is not a time zone; write its IANA name, as in 'iso Europe/Berlin'"
            ) from error
        return ReadAs(text=word, dtype=TIMESTAMP, raw=raw, zone=zone)
    if word in {"int64", "float64"} or word.startswith("decimal("):
        return ReadAs(text=word, dtype=Type.parse(word).polars, raw=raw)
    raise DefinitionError(f"{text!r} is not a way to read a value; write one of {FORMS}")


def forms_of(read_as: object, columns: Mapping[str, pl.DataType], faults: list[str]) -> dict[str, ReadAs]:
    """Return, by column, how its values are read; ``columns``: those of the schema, with the types that it gives."""
    if not isinstance(read_as, Mapping):
        faults.append(f"read_as={read_as!r} is not a mapping from columns to ways of reading; write one of {FORMS}")
        return {}
    forms: dict[str, ReadAs] = {}
    for column, text in read_as.items():
        dtype = columns.get(column)
        try:
            form = form_of(text, dtype or pl.String())
        except DefinitionError as error:
            faults += [f"read_as: {column}: {fault}" for fault in error.faults]
            continue
        if dtype is None:
            faults.append(f"read_as: the schema has no column {column!r}; it has {', '.join(columns)}")
        elif not (dtype.is_integer() or dtype.is_float() or dtype == pl.String()):
            faults.append(
                f"read_as: column {column!r} is {dtype} already; read_as is for whole numbers, floats and texts without a "
                "logical type or format, so leave it out"
            )
        elif form.per_second == 0 and form.dtype == TIMESTAMP and dtype != pl.String():
            faults.append(
                f"read_as: column {column!r} is {dtype}, which is never an ISO time; write unix-s, unix-ms, ..."
            )
        else:
            forms[column] = form
    return forms


def row_of(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the record of the rows in the schema of a change event; the schema itself if it is that of a row.

    Debezium's names for times become logical types.
    """
    if schema.get("type") != "record":
        return schema
    schema = marked_as_logical(fastavro.schema.expand_schema(dict(schema)))
    fields = {field["name"]: field["type"] for field in schema["fields"]}
    row = _record(fields["after"]) if {"op", "after"} <= fields.keys() else None
    # Expanding defines a type wherever it is named, which a schema must not.
    copied: Mapping[str, Any] = Unique(schema).copy(schema if row is None else row)
    return copied


def is_envelope(schema: Mapping[str, Any]) -> bool:
    """Return true if an Avro schema is that of Debezium's change events."""
    return {"op", "after"} <= {field.get("name") for field in schema.get("fields", ()) if isinstance(field, Mapping)}


def flat_avro(schema: Mapping[str, Any], paths: Mapping[str, Path], faults: list[str]) -> Mapping[str, Any]:
    """Return a record schema with a field for each column: those of the schema, and those inside them with a path.

    A field that is read by a path has no other column.
    """
    expanded: Any = fastavro.schema.expand_schema(dict(schema))
    unique = Unique(expanded, str(expanded["name"]))
    renamed = {path[0] for path in paths.values() if len(path) == 1}
    fields = [
        {**field, "type": unique.copy(field["type"])} for field in expanded["fields"] if field["name"] not in renamed
    ]
    for column, path in paths.items():
        found = _at(expanded, path)
        if isinstance(found, str):
            faults.append(f"fields: column {column!r}: {found}")
            continue
        fields.append({"name": column, **found, "type": unique.copy(found["type"])})
    return {"type": "record", "name": str(expanded["name"]), "fields": fields}


def names_along(schema: Mapping[str, Any], paths: Iterable[Path]) -> list[list[tuple[str, ...]]]:
    """Return, for each path into a record schema, each name of the path with its aliases."""
    expanded: Any = fastavro.schema.expand_schema(dict(schema))
    found = []
    for path in paths:
        record: Mapping[str, Any] | None = expanded
        names: list[tuple[str, ...]] = []
        for name in path:
            field = None if record is None else _field(record, name)
            names.append((name, *(field or {}).get("aliases", ())))
            record = None if field is None else _record(field["type"])
        found.append(names)
    return found


def _at(record: Mapping[str, Any], path: Path) -> dict[str, Any] | str:
    """Return type and default of a field inside a record; half a sentence if there is no such field."""
    nullable = empty = False
    *outer, last = path
    for depth, name in enumerate(outer, start=1):
        field = _field(record, name)
        if field is None:
            return f"the schema has no field {'.'.join(path[:depth])!r}; correct the path"
        inside = _record(field["type"])
        if inside is None:
            return f"the field {'.'.join(path[:depth])!r} is not a record, so nothing is inside it; correct the path"
        nullable |= isinstance(field["type"], list)
        empty |= "default" in field and field["default"] is None
        record = inside
    field = _field(record, last)
    if field is None:
        return f"the schema has no field {'.'.join(path)!r}; correct the path"
    avro = field["type"]
    adds_null = nullable and not (isinstance(avro, list) and "null" in avro)
    if adds_null:
        avro = ["null", *avro] if isinstance(avro, list) else ["null", avro]
    if "default" in field and not adds_null:
        return {"type": avro, "default": field["default"]}
    return {"type": avro, "default": None} if empty else {"type": avro}


def _field(record: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    return next((field for field in record["fields"] if field["name"] == name), None)


def _record(avro: Any) -> Mapping[str, Any] | None:
    """Return the record that a type is, or that it is besides null; None if it is anything else."""
    avro = without_wrapping(avro)
    if isinstance(avro, list):
        others = [branch for branch in avro if branch != "null"]
        avro = without_wrapping(others[0]) if len(others) == 1 else None
    return avro if isinstance(avro, Mapping) and avro["type"] == "record" else None
