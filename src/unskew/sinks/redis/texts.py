"""Conversion between values and their texts in Redis, shared by the writer and the reader.

Integers are decimal, floats the shortest text that reads back as the same float, booleans ``1`` and ``0``, strings
unchanged, timestamps microseconds since the epoch, decimals with all their digits after the point. A list is a JSON
array, and a map is a JSON object in the map's order, both without spaces; inside them booleans are ``true`` and
``false``, and strings and decimals are JSON strings. All text is UTF-8.
"""

import datetime as dt
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import lru_cache
from typing import Any

import msgspec
import polars as pl

from unskew.features.time import instant_us
from unskew.features.types import MAP_KEY, MAP_VALUE, ScalarName, Type
from unskew.features.view import Scalar

# The characters that JSON does not allow unescaped in a string.
_SPECIAL = [*map(chr, range(32)), '"', "\\"]
_ESCAPED = [json.dumps(character)[1:-1] for character in _SPECIAL]

# The bounds of the years 1 to 9999, which Python's datetimes, and so rows of results, can hold.
_FIRST_INSTANT_US = instant_us(dt.datetime.min.replace(tzinfo=dt.UTC))
_LAST_INSTANT_US = instant_us(dt.datetime.max.replace(tzinfo=dt.UTC))
_DECIMAL_DIGITS = 38
_BOOLEANS = {"0": False, "1": True}

_UNREADABLE = (ValueError, TypeError, OverflowError, msgspec.MsgspecError, pl.exceptions.PolarsError)


def text_of(value: pl.Expr, dtype: Type) -> pl.Expr:
    """Return the text, String, of every value of a result's type; null for a null."""
    inner = dtype.element
    if dtype.nesting == "list":
        return pl.concat_str(pl.lit("["), value.list.eval(_json_of(pl.element(), inner)).list.join(","), pl.lit("]"))
    if dtype.nesting == "map":
        key, held = (pl.element().struct.field(name) for name in (MAP_KEY, MAP_VALUE))
        members = pl.concat_str(_quoted(key), pl.lit(":"), _json_of(held, inner))
        return pl.concat_str(pl.lit("{"), value.list.eval(members).list.join(","), pl.lit("}"))
    if dtype.scalar in {"bool", "timestamp"}:
        return value.cast(pl.Int64).cast(pl.String)
    # Polars writes a float as the shortest text that reads back as the same float, and a decimal with all its digits.
    return value.cast(pl.String)


def read_column(
    name: str, texts: Sequence[bytes | str | None], dtype: Type, instead: Sequence[Scalar | None]
) -> pl.Series:
    """Return a column of the values of ``texts``, in their type; a None gives the value of ``instead`` in that place.

    Raises ``ValueError`` with the first text that is not a value of the type.
    """
    read, as_read = _reader(dtype), _as_read(dtype)
    if dtype.scalar == "timestamp":
        instead = [instant_us(value) if isinstance(value, dt.datetime) else value for value in instead]
    try:
        values = [other if text is None else read(text) for text, other in zip(texts, instead, strict=True)]
        column = pl.Series(name, values, as_read)
        if as_read == pl.Float64() and not column.is_finite().all():
            raise ValueError
        return column if dtype.scalar != "timestamp" else column.cast(dtype.polars)
    except _UNREADABLE as error:
        wrong = next((text for text in texts if text is not None and not _is_readable(text, dtype)), None)
        raise ValueError(f"{wrong!r:.80} is not a valid {dtype}") from error


@lru_cache(maxsize=256)
def _as_read(dtype: Type) -> pl.DataType:
    """Return the type in which a column is read first: timestamps are microseconds, in lists and maps too."""
    return replace(dtype, scalar="int64").polars if dtype.scalar == "timestamp" else dtype.polars


@lru_cache(maxsize=256)
def _reader(dtype: Type) -> Callable[[bytes | str], Any]:
    """Return a function that reads one text as a Python value; a timestamp becomes its microseconds."""
    if dtype.is_decimal:
        return _decimal_reader(dtype)
    if dtype.nesting:
        kinds: dict[ScalarName, type] = {"int64": int, "float64": float, "bool": bool, "string": str, "timestamp": int}
        return _json_reader(dtype, kinds[dtype.scalar], _instant if dtype.scalar == "timestamp" else None)
    scalars: dict[ScalarName, Callable[[bytes | str], Any]] = {
        "int64": int,
        "float64": float,
        "bool": _boolean,
        "string": _string,
        "timestamp": lambda text: _instant(int(text)),
    }
    return scalars[dtype.scalar]


def _string(text: bytes | str) -> str:
    """Return a reply as text, whether or not the client decodes replies."""
    return text.decode() if isinstance(text, bytes) else text


def _boolean(text: bytes | str) -> bool:
    try:
        return _BOOLEANS[_string(text)]
    except KeyError as error:
        raise ValueError(text) from error


def _instant(instant: int) -> int:
    if not _FIRST_INSTANT_US <= instant <= _LAST_INSTANT_US:
        raise ValueError(instant)
    return instant


def _decimal_reader(dtype: Type) -> Callable[[bytes | str], Any]:
    # Polars would cut off extra digits after the point, and panics if a text is not a number or has too many digits.
    after_point = rf"[.]\d{{{dtype.scale}}}" if dtype.scale else ""
    shape = re.compile(rf"-?\d{{1,{_DECIMAL_DIGITS - dtype.scale}}}{after_point}", re.ASCII)

    def number(text: str) -> Decimal:
        if not shape.fullmatch(text):
            raise ValueError(text)
        return Decimal(text)

    return _json_reader(dtype, str, number) if dtype.nesting else lambda text: number(_string(text))


def _json_reader(dtype: Type, kind: type, change: Callable[[Any], Any] | None = None) -> Callable[[bytes | str], Any]:
    """Return a function that reads JSON. ``kind``: the elements' type in JSON; ``change``: converts each, if given."""
    if dtype.nesting == "list":
        items = msgspec.json.Decoder(list[kind]).decode  # type: ignore[valid-type]
        return items if change is None else lambda text: [change(item) for item in items(text)]
    members = msgspec.json.Decoder(dict[str, kind]).decode  # type: ignore[valid-type]
    same = change or (lambda value: value)
    return lambda text: [{MAP_KEY: key, MAP_VALUE: same(value)} for key, value in members(text).items()]


def _is_readable(text: bytes | str, dtype: Type) -> bool:
    try:
        column = pl.Series([_reader(dtype)(text)], dtype=_as_read(dtype))
    except _UNREADABLE:
        return False
    return column.dtype != pl.Float64() or bool(column.is_finite().all())


def _json_of(value: pl.Expr, dtype: Type) -> pl.Expr:
    """Return the JSON of scalars."""
    if dtype.scalar == "string":
        return _quoted(value)
    if dtype.scalar == "bool":
        return pl.when(value).then(pl.lit("true")).otherwise(pl.lit("false"))
    text = text_of(value, dtype)
    return pl.concat_str(pl.lit('"'), text, pl.lit('"')) if dtype.is_decimal else text


def _quoted(text: pl.Expr) -> pl.Expr:
    return pl.concat_str(pl.lit('"'), text.str.replace_many(_SPECIAL, _ESCAPED), pl.lit('"'))
