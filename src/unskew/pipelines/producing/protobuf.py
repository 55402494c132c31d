"""Rows as messages in Protobuf, by the descriptors of their type.

Messages of Google's that stand for one value are written as that value: a Timestamp as a time in ISO 8601, a Date as
2026-01-31, a Duration as 1.5s, a decimal as a number. A field that a row lacks is absent.
"""

import base64
import datetime as dt
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from unskew.features.errors import shown
from unskew.features.extras import needed
from unskew.features.nearest import nearest
from unskew.features.time import format_instant
from unskew.pipelines.decoding.branching import Target
from unskew.pipelines.decoding.protobuf import event_type
from unskew.pipelines.decoding.writers import Files
from unskew.pipelines.producing import scalars
from unskew.pipelines.producing.scalars import INT32, INT64, Fit, Unfit, big_endian, not_a

with needed("format protobuf", "google.protobuf"):
    from google.protobuf import json_format
    from google.protobuf.descriptor import FieldDescriptor
    from google.protobuf.message import EncodeError

TIMESTAMP = "google.protobuf.Timestamp"
_WELL_KNOWN = "google.protobuf."
_BOUNDS = {
    FieldDescriptor.CPPTYPE_INT32: INT32,
    FieldDescriptor.CPPTYPE_INT64: INT64,
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}


def fit_of(files: Files, target: Target, *, text: bool) -> tuple[Fit, Any]:
    """Return what makes a message of a row, with the index of its type; and the descriptor of the type.

    ``text``: values are texts, as in CSV. Raises ``Incompatible`` if no message type is an event.
    """
    made, index = event_type(files, target)
    fit = _message(made.DESCRIPTOR, text=text, known={})

    def encode(row: Any) -> bytes:
        data = fit(row)
        try:
            return index + bytes(json_format.ParseDict(data, made()).SerializeToString())
        except (json_format.ParseError, EncodeError, ValueError, TypeError) as error:
            raise Unfit(str(error)) from error

    return encode, made.DESCRIPTOR


def has_field(descriptor: Any, path: tuple[str, ...]) -> bool:
    """Return whether a message type has a field, or one inside its fields."""
    return _field_at(descriptor, path) is not None


def is_instant(descriptor: Any, path: tuple[str, ...]) -> bool:
    """Return whether a field of a message type, or inside it, is a Timestamp."""
    field = _field_at(descriptor, path)
    return field is not None and field.message_type is not None and field.message_type.full_name == TIMESTAMP


def _field_at(descriptor: Any, path: tuple[str, ...]) -> Any:
    field = None
    for name in path:
        field = None if descriptor is None else descriptor.fields_by_name.get(name)
        descriptor = None if field is None else field.message_type
    return field


def _message(descriptor: Any, *, text: bool, known: dict[str, Fit]) -> Fit:
    """Return the fit of a message, as data that Google's library reads. ``known``: those of types met before."""
    name = descriptor.full_name
    if name in known:
        return known[name]
    # A type that contains itself is met again before it is known.
    known[name] = lambda value: fit(value)  # noqa: PLW0108 - it is defined below
    fits = {field.name: _field(field, text=text, known=known) for field in descriptor.fields}
    texts = {field.name for field in descriptor.fields if field.cpp_type == FieldDescriptor.CPPTYPE_STRING}
    names = {field.json_name: field.name for field in descriptor.fields} | {each: each for each in fits}

    def fit(value: Any) -> dict[str, Any]:
        value = scalars.of_cell(value) if text else value
        if not isinstance(value, Mapping):
            raise not_a(value, f"a message {name}")
        found = {}
        for given, each in value.items():
            if given not in names:
                raise Unfit(f"the schema has no field {given!r}; {nearest(str(given), fits, 'it has')}")
            if each is None or (text and each == "" and names[given] not in texts):
                continue
            try:
                found[names[given]] = fits[names[given]](each)
            except Unfit as fault:
                raise fault.inside(given) from fault
        return found

    known[name] = fit
    return fit


def _field(field: Any, *, text: bool, known: dict[str, Fit]) -> Fit:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return _map(_one(field.message_type.fields_by_name["value"], text=text, known=known), text=text)
    one = _one(field, text=text, known=known)
    return _list(one, text=text) if field.is_repeated else one


def _one(field: Any, *, text: bool, known: dict[str, Fit]) -> Fit:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        return _of_message(field.message_type, text=text, known=known)
    if kind in _BOUNDS:
        return scalars.integer("a whole number of the field's type", _BOUNDS[kind], text=text)
    if kind in {FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT}:
        return _real(short=kind == FieldDescriptor.CPPTYPE_FLOAT, text=text)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return scalars.boolean("a boolean", text=text)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return _symbol(tuple(value.name for value in field.enum_type.values))
    if field.type == FieldDescriptor.TYPE_BYTES:
        octets = scalars.octets("bytes")
        return lambda value: base64.b64encode(octets(value)).decode()
    return scalars.string("a text")


def _of_message(descriptor: Any, *, text: bool, known: dict[str, Fit]) -> Fit:
    name = descriptor.full_name
    match name:
        case "google.protobuf.Timestamp":
            return lambda value: format_instant(scalars.us_of(value, "a Timestamp"))
        case "google.protobuf.Duration":
            return _duration
        case "google.type.Date":
            return _date
        case "google.type.TimeOfDay":
            return _time_of_day
        case "confluent.type.Decimal":
            return _decimal
    if name.startswith(_WELL_KNOWN):
        if name.endswith("Value") and list(descriptor.fields_by_name) == ["value"]:
            return _one(descriptor.fields_by_name["value"], text=text, known=known)
        return lambda value: value
    return _message(descriptor, text=text, known=known)


def _real(*, short: bool, text: bool) -> Fit:
    fit = scalars.real("a number", text=text, unusual=True, short=short)

    def quoted(value: Any) -> Any:
        found = fit(value)
        return (
            found if abs(found) < float("inf") else {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(found)]
        )

    return quoted


def _symbol(symbols: tuple[str, ...]) -> Fit:
    def fit(value: Any) -> Any:
        if value not in symbols and type(value) is not int:
            raise Unfit(f"{shown(value)} is not a symbol of the schema; {nearest(str(value), symbols, 'they are')}")
        return value

    return fit


def _list(one: Fit, *, text: bool) -> Fit:
    def fit(value: Any) -> list[Any]:
        value = scalars.of_cell(value) if text else value
        if not isinstance(value, list):
            raise not_a(value, "a list")
        return [one(each) for each in value]

    return fit


def _map(one: Fit, *, text: bool) -> Fit:
    def fit(value: Any) -> dict[str, Any]:
        value = scalars.of_cell(value) if text else value
        if not isinstance(value, Mapping):
            raise not_a(value, "a map")
        return {str(key): one(each) for key, each in value.items()}

    return fit


def _duration(value: Any) -> str:
    if isinstance(value, dt.timedelta):
        return f"{Decimal(value // dt.timedelta(microseconds=1)) / 1_000_000:f}s"
    if not isinstance(value, str):
        raise not_a(value, "a Duration; write it as in 1.5s")
    return value


def _date(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value
    found = scalars.date_of(scalars.day("a date")(value))
    return {"year": found.year, "month": found.month, "day": found.day}


def _time_of_day(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value
    seconds, us = divmod(scalars.time_of_day("a time", 1_000_000)(value), 1_000_000)
    minutes, second = divmod(seconds, 60)
    return {"hours": minutes // 60, "minutes": minutes % 60, "seconds": second, "nanos": us * 1_000}


def _decimal(value: Any) -> Any:
    if isinstance(value, Mapping):
        return value
    number = Decimal(scalars.number(value, "a decimal", text=True))
    scale = max(0, -int(number.as_tuple().exponent))
    units = scalars.unscaled("a decimal", 76, scale)(number)
    return {
        "value": base64.b64encode(big_endian(units)).decode(),
        "precision": max(len(str(abs(units))), 1),
        "scale": scale,
    }
