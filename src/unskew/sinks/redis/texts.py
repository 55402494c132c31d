"""Values as text, as Redis holds them, and back; the writer and the reader share it.

Integers in decimal, floats as the shortest text that reads back to the same float, booleans as ``1`` and ``0``, strings as they
are, timestamps as microseconds since the epoch, decimals with all their digits after the point. A list is a JSON array, a map a
JSON object in the map's order, both without spaces; inside them booleans are ``true`` and ``false``, and strings and decimals
JSON strings. All text is UTF-8.
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
from unskew.sinks.redis.keyspace import as_text

# What JSON does not allow between quotes.
_SPECIAL = [*map(chr, range(32)), '"', "\\"]
_ESCAPED = [json.dumps(character)[1:-1] for character in _SPECIAL]

# Of the years 1 to 9999, which the values of Python and so any row of results can have.
_FIRST_INSTANT_US = instant_us(dt.datetime.min.replace(tzinfo=dt.UTC))
_LAST_INSTANT_US = instant_us(dt.datetime.max.replace(tzinfo=dt.UTC))
_DECIMAL_DIGITS = 38
_BOOLEANS = {"0": False, "1": True}

_UNREADABLE = (ValueError, TypeError, OverflowError, msgspec.MsgspecError, pl.exceptions.PolarsError)


def text_of(value: pl.Expr, dtype: Type) -> pl.Expr:
    """The text of every value of a result's type, String; null where the value is."""
    inner = dtype.element
    if dtype.nesting == "list":
        return pl.concat_str(pl.lit("["), value.list.eval(_json_of(pl.element(), inner)).list.join(","), pl.lit("]"))
    if dtype.nesting == "map":
        key, held = (pl.element().struct.field(name) for name in (MAP_KEY, MAP_VALUE))
        members = pl.concat_str(_quoted(key), pl.lit(":"), _json_of(held, inner))
        return pl.concat_str(pl.lit("{"), value.list.eval(members).list.join(","), pl.lit("}"))
    if dtype.scalar in {"bool", "timestamp"}:
        return value.cast(pl.Int64).cast(pl.String)
    # Polars writes floats as the shortest text that reads back, and all digits of a decimal.
    return value.cast(pl.String)


def read_column(
    name: str, texts: Sequence[bytes | str | None], dtype: Type, instead: Sequence[Scalar | None]
) -> pl.Series:
    """A column of the values that ``texts`` are, in their type; the one of ``instead`` where there is no text.

    Raises ``ValueError`` with the first text that is no such value.
    """
    read, as_read = _reader(dtype), _as_read(dtype)
    if dtype.scalar == "timestamp":
        instead = [instant_us(value) if isinstance(value, dt.datetime) else value for value in instead]
    try:
        values = [other if text is None else read(text) for text, other in zip(texts, instead, strict=True)]
        column = pl.Series(name, values, as_read)
        return column if dtype.scalar != "timestamp" else column.cast(dtype.polars)
    except _UNREADABLE as error:
        wrong = next((text for text in texts if text is not None and not _is_readable(text, dtype)), None)
        raise ValueError(f"{wrong!r} is no {dtype}") from error


@lru_cache(maxsize=256)
def _as_read(dtype: Type) -> pl.DataType:
    """The type of a column as it is read: timestamps come as microseconds, in lists and maps too."""
    return replace(dtype, scalar="int64").polars if dtype.scalar == "timestamp" else dtype.polars


@lru_cache(maxsize=256)
def _reader(dtype: Type) -> Callable[[bytes | str], Any]:
    """What makes a Python value of one text; a timestamp becomes its microseconds."""
    if dtype.is_decimal:
        return _decimal_reader(dtype)
    if dtype.nesting:
        kinds: dict[ScalarName, type] = {"int64": int, "float64": float, "bool": bool, "string": str, "timestamp": int}
        return _json_reader(dtype, kinds[dtype.scalar], _instant if dtype.scalar == "timestamp" else None)
    scalars: dict[ScalarName, Callable[[bytes | str], Any]] = {
        "int64": int,
        "float64": float,
        "bool": _boolean,
        "string": as_text,
        "timestamp": lambda text: _instant(int(text)),
    }
    return scalars[dtype.scalar]


def _boolean(text: bytes | str) -> bool:
    try:
        return _BOOLEANS[as_text(text)]
    except KeyError as error:
        raise ValueError(text) from error


def _instant(instant: int) -> int:
    if not _FIRST_INSTANT_US <= instant <= _LAST_INSTANT_US:
        raise ValueError(instant)
    return instant


def _decimal_reader(dtype: Type) -> Callable[[bytes | str], Any]:
    # Polars would cut what is longer after the point, and panics at what is no number or has more digits than its type.
    after_point = rf"[.]\d{{{dtype.scale}}}" if dtype.scale else ""
    shape = re.compile(rf"-?\d{{1,{_DECIMAL_DIGITS - dtype.scale}}}{after_point}", re.ASCII)

    def number(text: str) -> Decimal:
        if not shape.fullmatch(text):
            raise ValueError(text)
        return Decimal(text)

    return _json_reader(dtype, str, number) if dtype.nesting else lambda text: number(as_text(text))


def _json_reader(dtype: Type, kind: type, change: Callable[[Any], Any] | None = None) -> Callable[[bytes | str], Any]:
    """``kind``: what JSON has for the elements; ``change``: what makes a value of one, None where it is one."""
    if dtype.nesting == "list":
        items = msgspec.json.Decoder(list[kind]).decode  # type: ignore[valid-type]
        return items if change is None else lambda text: [change(item) for item in items(text)]
    members = msgspec.json.Decoder(dict[str, kind]).decode  # type: ignore[valid-type]
    same = change or (lambda value: value)
    return lambda text: [{MAP_KEY: key, MAP_VALUE: same(value)} for key, value in members(text).items()]


def _is_readable(text: bytes | str, dtype: Type) -> bool:
    try:
        pl.Series([_reader(dtype)(text)], dtype=_as_read(dtype))
    except _UNREADABLE:
        return False
    return True


def _json_of(value: pl.Expr, dtype: Type) -> pl.Expr:
    """The JSON of scalars."""
    if dtype.scalar == "string":
        return _quoted(value)
    if dtype.scalar == "bool":
        return pl.when(value).then(pl.lit("true")).otherwise(pl.lit("false"))
    text = text_of(value, dtype)
    return pl.concat_str(pl.lit('"'), text, pl.lit('"')) if dtype.is_decimal else text


def _quoted(text: pl.Expr) -> pl.Expr:
    return pl.concat_str(pl.lit('"'), text.str.replace_many(_SPECIAL, _ESCAPED), pl.lit('"'))
