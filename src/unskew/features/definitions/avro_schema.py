"""The fields of an Avro record schema, each with its Polars type after decoding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import fastavro
import polars as pl
from fastavro.schema import SchemaParseException, UnknownType

from unskew.features.nearest import nearest

TIMESTAMP = pl.Datetime("us", "UTC")

_PRIMITIVES: Mapping[str, pl.DataType] = {
    "int": pl.Int32(),
    "long": pl.Int64(),
    "float": pl.Float32(),
    "double": pl.Float64(),
    "boolean": pl.Boolean(),
    "string": pl.String(),
    "bytes": pl.Binary(),
    "enum": pl.String(),
    "fixed": pl.Binary(),
}
# A local timestamp is read as UTC: it has no zone, and a column has one type.
_INSTANTS = {
    f"{local}timestamp-{unit}": ("long", TIMESTAMP)
    for local in ("", "local-")
    for unit in ("millis", "micros", "nanos")
}
_LOGICAL: Mapping[str, tuple[str, pl.DataType]] = {
    **_INSTANTS,
    "date": ("int", pl.Date()),
    "time-millis": ("int", pl.Time()),
    "time-micros": ("long", pl.Time()),
    "time-nanos": ("long", pl.Time()),
}
# The names by which Debezium marks its times; Kafka Connect's own times carry logical types besides.
_CONNECT_TIMES: Mapping[str, tuple[str, str]] = {
    "io.debezium.time.Timestamp": ("long", "timestamp-millis"),
    "io.debezium.time.MicroTimestamp": ("long", "timestamp-micros"),
    "io.debezium.time.NanoTimestamp": ("long", "timestamp-nanos"),
    "io.debezium.time.Date": ("int", "date"),
    "io.debezium.time.Time": ("int", "time-millis"),
    "io.debezium.time.MicroTime": ("long", "time-micros"),
    "io.debezium.time.NanoTime": ("long", "time-nanos"),
}
_DECIMAL_DIGITS = 38
READABLE = "int, long, float, double, boolean, string, bytes, enum and fixed, timestamps, date, time and decimal, each also with null"


@dataclass(frozen=True, kw_only=True)
class AvroField:
    """One field of a record schema.

    ``kind``: a primitive's name, ``enum``, ``fixed``, or ``other`` for what has no column (arrays, maps, records,
    unions of several types). ``null_at``: the index of null in its union; -1 if it is not a union, -2 if it is a union
    of one type. ``logical``: a logical type that is read as such, otherwise None, because Avro requires unknown ones to
    be ignored. ``marked``: the logical type that Debezium's name for the type stands for. ``scale``: the scale of a
    decimal. ``type_names``: the names of an enum or fixed, without namespaces: first its own, then its aliases.
    ``symbol``: an enum's default. ``default``: the default in the schema, in a tuple of one; empty if there is none.
    ``avro``: the complete type.
    """

    name: str
    kind: str
    avro: Any
    null_at: int = -1
    logical: str | None = None
    marked: str | None = None
    scale: int = 0
    symbols: tuple[str, ...] = ()
    symbol: str | None = None
    size: int = 0
    type_names: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    default: tuple[Any, ...] = ()

    @property
    def nullable(self) -> bool:
        return self.null_at >= 0

    @property
    def dtype(self) -> pl.DataType | None:
        """The column's type; None if the field has no column."""
        if self.logical == "decimal":
            return pl.Decimal(_DECIMAL_DIGITS, self.scale)
        return _LOGICAL[self.logical][1] if self.logical else _PRIMITIVES.get(self.kind)


def avro_fields(schema: Mapping[str, Any]) -> tuple[AvroField, ...]:
    """Return the fields of a valid record schema, in order, each with a type that is complete by itself."""
    expanded: Any = fastavro.schema.expand_schema(dict(schema))
    unique = Unique(expanded)
    return tuple(_field({**field, "type": unique.copy(field["type"])}) for field in expanded["fields"])


def record_faults(schema: Mapping[str, Any]) -> list[str]:
    """Return why a schema is not a valid schema of a record with fields; each reason is half a sentence."""
    if "type" not in schema:
        return ['the Avro schema has no type; give a record, {"type": "record", "name": ..., "fields": [...]}']
    if _has_null(schema):
        return ['a type of the Avro schema is null without quotes; write it in quotes, for example ["null", "double"]']
    try:
        fastavro.parse_schema(dict(schema), expand=False)
    except UnknownType as error:
        known = ["null", *_PRIMITIVES, "record", "enum", "array", "map", "fixed"]
        return [
            f"the Avro schema is not valid: there is no type {error.name!r}; {nearest(str(error.name), known, 'types are')}"
        ]
    except SchemaParseException as error:
        return [f"the Avro schema is not valid: {error}"]
    # A schema of an unexpected shape may make fastavro raise anything.
    except Exception as error:  # noqa: BLE001
        return [f"the Avro schema is not valid: {type(error).__name__} {error}"]
    if schema.get("type") != "record":
        return [f"the Avro schema has the type {schema.get('type')!r}; give a record, with one field for each column"]
    if not schema.get("fields"):
        return ["the Avro schema has no fields; give it one for each column"]
    return []


def avro_columns(schema: Mapping[str, Any]) -> tuple[dict[str, pl.DataType], list[str]]:
    """Return the columns of a record schema, with their types after decoding, and its faults (each half a sentence).

    A union of null and one type is that type. Enums are strings, fixed is binary, timestamps are microseconds in UTC.
    A field of any other type has no column.
    """
    if malformed := record_faults(schema):
        return {}, malformed
    columns: dict[str, pl.DataType] = {}
    faults: list[str] = []
    names: set[str] = set()
    for field in avro_fields(schema):
        if field.name.startswith("_"):
            faults.append(
                f"field {field.name!r} begins with _, which is reserved; give it a column of another name, for example fields={{{field.name.lstrip('_')!r}: {field.name!r}}}"
            )
        elif field.name in names:
            faults.append(f"field {field.name!r} appears twice")
        elif field.dtype is not None:
            columns[field.name] = field.dtype
        names.add(field.name)
    if not columns and not faults:
        faults.append(f"the Avro schema has no field of a readable type; these are {READABLE}")
    return columns, faults


def _has_null(avro: Any) -> bool:
    """Return true if a type is None, as YAML reads a null without quotes. ``avro``: nested to a bounded depth."""
    if isinstance(avro, Mapping):
        types = [avro[word] for word in ("type", "items", "values") if word in avro]
        return any(part is None or _has_null(part) for part in (*types, *_listed(avro.get("fields"))))
    return any(part is None or _has_null(part) for part in _listed(avro))


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()


def unread_types(schema: Mapping[str, Any]) -> dict[str, str]:
    """Return the fields of a valid record schema that have no column, with their types as people write them."""
    return {field.name: spell(field.avro) for field in avro_fields(schema) if field.dtype is None}


def spell(avro: Any) -> str:
    """Return a type as people write it: ``null | long``."""
    if isinstance(avro, list):
        return " | ".join(spell(branch) for branch in avro)
    if isinstance(avro, Mapping):
        return str(avro.get("logicalType") or spell(avro["type"]))
    return str(avro)


def _field(field: Mapping[str, Any]) -> AvroField:
    null_at, avro = _without_null(field["type"])
    aliases = tuple(field.get("aliases", ()))
    default = (field["default"],) if "default" in field else ()
    kind = avro["type"]
    if null_at is None or (kind not in _PRIMITIVES and kind != "null"):
        return AvroField(name=field["name"], kind="other", avro=field["type"], aliases=aliases, default=default)
    logical, scale = _logical(kind, avro)
    return AvroField(
        name=field["name"],
        kind=kind,
        avro=field["type"],
        null_at=null_at,
        logical=logical,
        marked=_marked(kind, avro),
        scale=scale,
        symbols=tuple(avro.get("symbols", ())),
        symbol=avro.get("default") if kind == "enum" else None,
        size=int(avro.get("size", 0)),
        type_names=_type_names(avro) if kind in {"enum", "fixed"} else (),
        aliases=aliases,
        default=default,
    )


def _without_null(avro: Any) -> tuple[int | None, Mapping[str, Any]]:
    """Return the index of null in a union (None if the union has several other types), and the other type."""
    null_at: int | None = -1
    if isinstance(avro, list):
        rest = [branch for branch in avro if branch != "null"]
        null_at = None if len(rest) != 1 else avro.index("null") if len(avro) == 2 else -2
        avro = rest[0] if rest else "null"
    while isinstance(avro, Mapping) and isinstance(avro["type"], Mapping):
        avro = avro["type"]
    if isinstance(avro, Mapping) and isinstance(avro["type"], Sequence) and not isinstance(avro["type"], str):
        return None, {"type": "union"}
    return null_at, avro if isinstance(avro, Mapping) else {"type": avro}


def _logical(kind: str, avro: Mapping[str, Any]) -> tuple[str | None, int]:
    logical = avro.get("logicalType")
    if logical == "decimal" and kind in {"bytes", "fixed"}:
        scale, precision = avro.get("scale", 0), avro.get("precision", 0)
        fits = isinstance(scale, int) and isinstance(precision, int) and 0 <= scale <= precision <= _DECIMAL_DIGITS
        return (logical, scale) if fits and precision else (None, 0)
    known = _LOGICAL.get(logical) if isinstance(logical, str) else None
    return (logical, 0) if known is not None and known[0] == kind else (None, 0)


def _marked(kind: str, avro: Mapping[str, Any]) -> str | None:
    marked = _CONNECT_TIMES.get(str(avro.get("connect.name")))
    return marked[1] if marked is not None and marked[0] == kind else None


def field_of(name: str, avro: Any) -> AvroField:
    """Return a field of an expanded type."""
    return _field({"name": name, "type": avro})


def marked_as_logical(avro: Any) -> Any:
    """Return a schema in which Debezium's names for times are logical types."""
    if isinstance(avro, Mapping):
        found = {word: marked_as_logical(part) for word, part in avro.items()}
        marked = _marked(str(avro.get("type")), avro) if "logicalType" not in avro else None
        return found if marked is None else {**found, "logicalType": marked}
    return [marked_as_logical(part) for part in avro] if isinstance(avro, (list, tuple)) else avro


def without_wrapping(avro: Any) -> Any:
    """Return the type itself where it is wrapped: ``{"type": {"type": "record", ...}}``."""
    while isinstance(avro, Mapping) and isinstance(avro["type"], (Mapping, list)):
        avro = avro["type"]
    return avro


class Unique:
    """Copies of parts of an expanded schema that can stand in one schema, each by itself.

    No two named types have the same name then, and a type that is named where it is not defined, because it contains
    itself, comes along. Only namespaces change: Avro compares names without them. ``taken``: names that no type may
    have.
    """

    def __init__(self, expanded: Any, *taken: str) -> None:
        self._taken = set(taken)
        self._definitions: dict[str, Any] = {}
        self._define(expanded)

    def _define(self, avro: Any) -> None:
        if isinstance(avro, list):
            for branch in avro:
                self._define(branch)
        elif isinstance(avro, Mapping):
            if "name" in avro:
                self._definitions[avro["name"]] = avro
            for part in (*(field["type"] for field in avro.get("fields", ())), avro.get("items"), avro.get("values")):
                self._define(part)
            self._define(avro["type"])

    def copy(self, avro: Any, names: Mapping[str, str] | None = None) -> Any:
        """Return a copy; ``names``: new names of the types around it."""
        names = names or {}
        if isinstance(avro, list):
            return [self.copy(branch, names) for branch in avro]
        if not isinstance(avro, Mapping):
            if avro in names or avro not in self._definitions:
                return names.get(avro, avro)
            avro = self._definitions[avro]
        found = {word: part for word, part in avro.items() if word != "namespace"}
        if "name" in avro:
            found["name"] = self._free(str(avro["name"]))
            self._definitions[found["name"]] = found
            names = {**names, avro["name"]: found["name"]}
        if "fields" in avro:
            found["fields"] = [{**field, "type": self.copy(field["type"], names)} for field in avro["fields"]]
        for word in ("items", "values", "type"):
            if word in avro:
                found[word] = self.copy(avro[word], names)
        return found

    def _free(self, name: str) -> str:
        number = len(self._taken)
        while name in self._taken:
            number += 1
            name = f"n{number}.{name.rpartition('.')[2]}"
        self._taken.add(name)
        return name


def _type_names(avro: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(str(name).rpartition(".")[2] for name in (avro["name"], *avro.get("aliases", ())))
