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
from decimal import Decimal
from functools import lru_cache
from typing import Any

import msgspec
import polars as pl

from unskew.features.plan import Scalar
from unskew.features.time import instant_us
from unskew.features.types import (
    MAP_KEY,
    MAP_VALUE,
    ValueType,
    decimal_scale,
    element,
    is_list,
    is_map,
    polars_type,
)
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


def text_of(value: pl.Expr, dtype: ValueType) -> pl.Expr:
    """The text of every value of a result's type, String; null where the value is."""
    inner = element(dtype)
    if is_list(dtype):
        return pl.concat_str(pl.lit("["), value.list.eval(_json_of(pl.element(), inner)).list.join(","), pl.lit("]"))
    if is_map(dtype):
        key, held = (pl.element().struct.field(name) for name in (MAP_KEY, MAP_VALUE))
        members = pl.concat_str(_quoted(key), pl.lit(":"), _json_of(held, inner))
        return pl.concat_str(pl.lit("{"), value.list.eval(members).list.join(","), pl.lit("}"))
    if dtype in {"bool", "timestamp"}:
        return value.cast(pl.Int64).cast(pl.String)
    # Polars writes floats as the shortest text that reads back, and all digits of a decimal.
    return value.cast(pl.String)


def read_column(
    name: str, texts: Sequence[bytes | str | None], dtype: ValueType, instead: Sequence[Scalar | None]
) -> pl.Series:
    """A column of the values that ``texts`` are, in their type; the one of ``instead`` where there is no text.

    Raises ``ValueError`` with the first text that is no such value.
    """
    read = _reader(dtype)
    # Timestamps come as microseconds, in lists and maps too.
    as_read = polars_type(dtype.replace("timestamp", "int64"))
    if dtype == "timestamp":
        instead = [instant_us(value) if isinstance(value, dt.datetime) else value for value in instead]
    try:
        values = [other if text is None else read(text) for text, other in zip(texts, instead, strict=True)]
        column = pl.Series(name, values, as_read)
        return column if element(dtype) != "timestamp" else column.cast(polars_type(dtype))
    except _UNREADABLE as error:
        wrong = next((text for text in texts if text is not None and not _is_readable(text, dtype)), None)
        raise ValueError(f"{wrong!r} is no {dtype}") from error


@lru_cache(maxsize=256)
def _reader(dtype: ValueType) -> Callable[[bytes | str], Any]:
    """What makes a Python value of one text; a timestamp becomes its microseconds."""
    scale = decimal_scale(element(dtype))
    if scale is not None:
        return _decimal_reader(dtype, scale)
    if dtype != element(dtype):
        kind = {"int64": int, "float64": float, "bool": bool, "string": str, "timestamp": int}[element(dtype)]
        return _json_reader(dtype, kind, _instant if element(dtype) == "timestamp" else None)
    scalars: dict[ValueType, Callable[[bytes | str], Any]] = {
        "int64": int,
        "float64": float,
        "bool": _boolean,
        "string": as_text,
        "timestamp": lambda text: _instant(int(text)),
    }
    return scalars[dtype]


def _boolean(text: bytes | str) -> bool:
    try:
        return _BOOLEANS[as_text(text)]
    except KeyError as error:
        raise ValueError(text) from error


def _instant(instant: int) -> int:
    if not _FIRST_INSTANT_US <= instant <= _LAST_INSTANT_US:
        raise ValueError(instant)
    return instant


def _decimal_reader(dtype: ValueType, scale: int) -> Callable[[bytes | str], Any]:
    # Polars would cut what is longer after the point, and panics at what is no number or has more digits than its type.
    after_point = rf"[.]\d{{{scale}}}" if scale else ""
    shape = re.compile(rf"-?\d{{1,{_DECIMAL_DIGITS - scale}}}{after_point}", re.ASCII)

    def number(text: str) -> Decimal:
        if not shape.fullmatch(text):
            raise ValueError(text)
        return Decimal(text)

    if dtype == element(dtype):
        return lambda text: number(as_text(text))
    return _json_reader(dtype, str, number)


def _json_reader(
    dtype: ValueType, kind: type, change: Callable[[Any], Any] | None = None
) -> Callable[[bytes | str], Any]:
    """``kind``: what JSON has for the elements; ``change``: what makes a value of one, None where it is one."""
    if is_list(dtype):
        items = msgspec.json.Decoder(list[kind]).decode  # type: ignore[valid-type]
        return items if change is None else lambda text: [change(item) for item in items(text)]
    members = msgspec.json.Decoder(dict[str, kind]).decode  # type: ignore[valid-type]
    same = change or (lambda value: value)
    return lambda text: [{MAP_KEY: key, MAP_VALUE: same(value)} for key, value in members(text).items()]


def _is_readable(text: bytes | str, dtype: ValueType) -> bool:
    try:
        pl.Series([_reader(dtype)(text)], dtype=polars_type(dtype.replace("timestamp", "int64")))
    except _UNREADABLE:
        return False
    return True


def _json_of(value: pl.Expr, dtype: ValueType) -> pl.Expr:
    """The JSON of scalars."""
    if dtype == "string":
        return _quoted(value)
    if dtype == "bool":
        return pl.when(value).then(pl.lit("true")).otherwise(pl.lit("false"))
    text = text_of(value, dtype)
    return text if decimal_scale(dtype) is None else pl.concat_str(pl.lit('"'), text, pl.lit('"'))


def _quoted(text: pl.Expr) -> pl.Expr:
    return pl.concat_str(pl.lit('"'), text.str.replace_many(_SPECIAL, _ESCAPED), pl.lit('"'))
