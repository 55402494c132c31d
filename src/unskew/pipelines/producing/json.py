"""Rows as what a JSON message holds, by a JSON Schema.

Checked are types, enums of texts, formats of times, required properties and, unless the schema says
``additionalProperties``, that a row has no others; what else a JSON Schema may say is not.
"""

from collections.abc import Mapping
from typing import Any

from unskew.features.errors import shown
from unskew.features.nearest import nearest
from unskew.features.time import format_instant
from unskew.pipelines.producing import scalars
from unskew.pipelines.producing.scalars import INT32, INT64, Fit, Unfit, not_a

_PER_SECOND = {"unix-time": 1, "unix-time-ms": 1_000, "unix-time-us": 1_000_000}


def fit_of(schema: Mapping[str, Any], *, text: bool, loose: frozenset[tuple[str, ...]]) -> Fit:
    """Return what makes a JSON message of a row.

    ``text``: values are texts, as in CSV. ``loose``: the paths at which a number may also be text, and text a number.
    """
    return _object(schema, text=text, loose=loose, path=())


def _fit(about: Any, *, text: bool, loose: frozenset[tuple[str, ...]], path: tuple[str, ...]) -> Fit:
    kinds = about.get("type") if isinstance(about, Mapping) else None
    kinds = [kinds] if isinstance(kinds, str) else list(kinds or ())
    if not kinds:
        return lambda value: value
    if path in loose:
        return _loose("null" in kinds)
    fits = [_of_kind(kind, about, text=text, loose=loose, path=path) for kind in kinds if kind != "null"]
    nullable = "null" in kinds

    def fit(value: Any) -> Any:
        if nullable and (value is None or (text and value == "")):
            return None
        if len(fits) == 1:
            return fits[0](value)
        for each in fits:
            try:
                return each(value)
            except Unfit:
                continue
        raise not_a(value, f"one of {', '.join(kinds)}")

    return fit


def _of_kind(
    kind: str, about: Mapping[str, Any], *, text: bool, loose: frozenset[tuple[str, ...]], path: tuple[str, ...]
) -> Fit:
    form = str(about.get("format"))
    match kind:
        case "object":
            return _object(about, text=text, loose=loose, path=path)
        case "array":
            return _array(_fit(about.get("items"), text=text, loose=loose, path=(*path, "[]")), text=text)
        case "boolean":
            return scalars.boolean("a boolean", text=text)
        case "integer":
            if form in _PER_SECOND:
                return scalars.instant("an instant", _PER_SECOND[form], text=text)
            return scalars.integer("an integer", INT32 if form == "int32" else INT64, text=text)
        case "number":
            return scalars.real("a number", text=text, unusual=False)
    if form == "date-time":
        return lambda value: format_instant(scalars.us_of(value, "a date-time"))
    if form == "date":
        return _date
    return _string(tuple(each for each in about.get("enum", ()) if isinstance(each, str)))


def _object(schema: Mapping[str, Any], *, text: bool, loose: frozenset[tuple[str, ...]], path: tuple[str, ...]) -> Fit:
    properties = schema.get("properties")
    inside = {
        name: _fit(about, text=text, loose=loose, path=(*path, name))
        for name, about in (properties.items() if isinstance(properties, Mapping) else ())
    }
    required = [name for name in schema.get("required", ()) if name in inside]
    is_open = bool(schema.get("additionalProperties")) or not inside

    def fit(value: Any) -> dict[str, Any]:
        value = scalars.of_cell(value) if text else value
        if not isinstance(value, Mapping):
            raise not_a(value, "an object")
        found = {}
        for name, each in value.items():
            if name not in inside:
                if not is_open:
                    raise Unfit(f"the schema has no property {name!r}; {nearest(str(name), inside, 'it has')}")
                found[name] = each
                continue
            try:
                found[name] = inside[name](each)
            except Unfit as fault:
                # An empty cell of CSV is a property that is not there.
                if not text or each != "" or name in required:
                    raise fault.inside(name) from fault
        for name in required:
            if name not in found:
                raise Unfit("it is missing, and the schema requires it", (name,))
        return found

    return fit


def _array(item: Fit, *, text: bool) -> Fit:
    def fit(value: Any) -> list[Any]:
        value = scalars.of_cell(value) if text else value
        if not isinstance(value, list):
            raise not_a(value, "an array")
        return [item(each) for each in value]

    return fit


def _loose(nullable: bool) -> Fit:  # noqa: FBT001
    """Return the fit of a value that the definition says how to read: a number or a text, as it is."""

    def fit(value: Any) -> Any:
        if value is None and nullable:
            return None
        if isinstance(value, str):
            return value
        return scalars.number(value, "a number or a text", text=False)

    return fit


def _string(symbols: tuple[str, ...]) -> Fit:
    any_text = scalars.string("a text")

    def fit(value: Any) -> str:
        found: str = any_text(value)
        if symbols and found not in symbols:
            raise Unfit(f"{shown(found)} is not one of the schema's enum; {nearest(found, symbols, 'they are')}")
        return found

    return fit


def _date(value: Any) -> str:
    days = scalars.day("a date")(value) if not isinstance(value, int) else None
    if days is None:
        raise not_a(value, "a date")
    return scalars.date_of(days).isoformat()
