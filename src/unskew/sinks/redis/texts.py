"""Conversion between values and their texts in Redis, shared by the writer and the reader.

Integers are decimal, floats the shortest text that reads back as the same float, booleans ``1`` and ``0``, strings
unchanged, timestamps microseconds since the epoch, decimals with all their digits after the point. A list is a JSON
array, and a map is a JSON object in the map's order, both without spaces; inside them booleans are ``true`` and
``false``, and strings and decimals are JSON strings. All text is UTF-8.
"""

import datetime as dt
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Any, NamedTuple

import msgspec
import polars as pl

from unskew.features.time import instant_us, moment_of
from unskew.features.types import MAP_KEY, MAP_VALUE, ScalarName, Type

# The characters that JSON does not allow unescaped in a string.
_SPECIAL = [*map(chr, range(32)), '"', "\\"]
_ESCAPED = [json.dumps(character)[1:-1] for character in _SPECIAL]

# The bounds of the years 1 to 9999, which Python's datetimes, and so rows of results, can hold.
_FIRST_INSTANT_US = instant_us(dt.datetime.min.replace(tzinfo=dt.UTC))
_LAST_INSTANT_US = instant_us(dt.datetime.max.replace(tzinfo=dt.UTC))
_DECIMAL_DIGITS = 38
_BOOLEANS = {b"0": False, b"1": True}
_PAST_INT64 = 2**63

_UNREADABLE = (ValueError, TypeError, KeyError, OverflowError, msgspec.MsgspecError)


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


class Reader:
    """A reader of the texts of a type."""

    def __init__(self, dtype: Type) -> None:
        self._dtype = dtype
        self._read = _reader(dtype)

    def __reduce__(self) -> tuple[Any, ...]:
        # Answers go from process to process, and a decoder cannot.
        return Reader, (self._dtype,)

    def values(self, texts: Sequence[bytes]) -> list[Any]:
        """Return values as ``column_of`` and ``objects_of`` take them.

        Raises ``ValueError`` with the first text that is not a value of the type.
        """
        try:
            return self._read(texts)
        except _UNREADABLE as error:
            wrong = next(text for text in texts if not self._can_read(text))
            raise ValueError(f"{wrong!r:.80} is not a valid {self._dtype}") from error

    def _can_read(self, text: bytes) -> bool:
        try:
            self._read([text])
        except _UNREADABLE:
            return False
        return True


class JsonReader:
    """A reader of the texts of a type, which gives each value as a text in JSON, in bytes.

    Integers, floats, lists and maps are JSON in Redis already. Strings are quoted; booleans are ``true`` and ``false``;
    instants are RFC 3339 with microseconds, in UTC; decimals are strings. Every text is checked all the same.
    """

    def __init__(self, dtype: Type) -> None:
        self._reader = Reader(dtype)
        self._dtype = dtype
        self._is_json = dtype.scalar in _NUMBERS or (dtype.nesting is not None and dtype.scalar != "timestamp")

    def values(self, texts: Sequence[bytes]) -> list[Any]:
        """Return texts in JSON. Raises ``ValueError`` with the first text that is not a value of the type."""
        values = self._reader.values(texts)
        return list(texts) if self._is_json else [json_of(value, self._dtype) for value in values]


class Numbers:
    """A reader of rows of numbers, which takes those that need no closer look.

    That is one look at all texts together, in place of one at each column. ``dtypes``: of the texts of a row.
    """

    def __init__(self, dtypes: Sequence[Type]) -> None:
        self._dtypes = dtypes
        kinds = [_OF_JSON[dtype.scalar] | None for dtype in dtypes]
        self._decode = msgspec.json.Decoder(list[tuple[*kinds]]).decode  # type: ignore[valid-type]
        self._marks = [b"." if dtype.scalar == "float64" else b"" for dtype in dtypes]
        self._shape = b",".join(self._marks)

    def __reduce__(self) -> tuple[Any, ...]:
        # As for ``Reader``.
        return Numbers, (self._dtypes,)

    @classmethod
    def can_read(cls, dtype: Type) -> bool:
        """Return true for a type whose texts may be numbers."""
        return dtype.nesting is None and not dtype.is_decimal and dtype.scalar in _OF_JSON

    def read(self, rows: Sequence[Sequence[bytes | None]]) -> "ReadNumbers | None":
        """Return the values of rows, of which there is at least one, as ``Reader`` does; None stands for null.

        None if a text is not a number as unskew writes it, or one of which only ``Reader`` says whether its type holds
        it.
        """
        try:
            together = _ROW_END.join(map(_COMMA.join, rows))  # type: ignore[arg-type]
            shapes, have_nulls = [self._shape] * len(rows), False
        except TypeError:
            texts = [[b"null" if text is None else text for text in row] for row in rows]
            together = _ROW_END.join(map(_COMMA.join, texts))
            marked = [zip(row, self._marks, strict=True) for row in rows]
            shapes = [_COMMA.join([b"n" if text is None else mark for text, mark in row]) for row in marked]
            have_nulls = True
        try:
            values = self._decode(b"[[%b]]" % together)
        except msgspec.MsgspecError:
            return None
        # What JSON takes besides: spaces, a float without a point, and a text that says null or ends a row.
        if together.translate(_MARKED, b"0123456789-+ul").replace(b"..", b".") != _ROW_END.join(shapes):
            return None
        return ReadNumbers(values, have_nulls)


class ReadNumbers(NamedTuple):
    """The values of rows, and whether one of them is None."""

    rows: list[tuple[Any, ...]]
    have_nulls: bool


_COMMA, _ROW_END = b",", b"],["
# A float has a point, or an exponent, or both, one after the other.
_MARKED = bytes.maketrans(b"e", b".")
_OF_JSON: Mapping[ScalarName, Any] = {
    "int64": Annotated[int, msgspec.Meta(ge=-_PAST_INT64, le=_PAST_INT64 - 1)],
    "float64": float,
    "timestamp": Annotated[int, msgspec.Meta(ge=_FIRST_INSTANT_US, le=_LAST_INSTANT_US)],
}


def json_of(value: Any, dtype: Type) -> bytes:
    """Return a value that a ``Reader`` gave as a text in JSON; see ``JsonReader``."""
    if dtype.nesting == "list":
        return b"[%b]" % b",".join(json_of(one, dtype.element) for one in value)
    if dtype.nesting == "map":
        members = (
            b"%b:%b" % (msgspec.json.encode(one[MAP_KEY]), json_of(one[MAP_VALUE], dtype.element)) for one in value
        )
        return b"{%b}" % b",".join(members)
    if dtype.scalar == "timestamp":
        return b'"%b"' % rfc3339(value)
    if dtype.is_decimal:
        return b'"%b"' % format(value, "f").encode()
    return repr(value).encode() if dtype.scalar == "float64" else msgspec.json.encode(value)


def rfc3339(instant_us: int) -> bytes:
    """Return an instant in microseconds with all six digits of them, in UTC."""
    second, microseconds = divmod(instant_us, 1_000_000)
    return b"%b.%06dZ" % (_second(second), microseconds)


@lru_cache(maxsize=1_024)
def _second(second: int) -> bytes:
    return moment_of(second * 1_000_000).replace(tzinfo=None).isoformat(timespec="seconds").encode()


def column_of(name: str, values: Sequence[Any], dtype: Type) -> pl.Series:
    """Return a column of values that a ``Reader`` gave; None is null."""
    column = pl.Series(name, values, _as_read(dtype))
    return column.cast(dtype.polars) if dtype.scalar == "timestamp" else column


def objects_of(values: Sequence[Any], dtype: Type) -> list[Any]:
    """Return values that a ``Reader`` gave as Python objects: instants become datetimes, with their zone UTC."""
    if dtype.scalar != "timestamp":
        return list(values)
    if not dtype.nesting:
        return [None if value is None else moment_of(value) for value in values]
    objects: list[Any] = column_of("", values, dtype).to_list()
    return objects


def stored(value: object, dtype: Type) -> Any:
    """Return a value, for example a default, as a ``Reader`` of its type returns it."""
    return pl.Series([value], dtype=dtype.polars).cast(_as_read(dtype)).to_list()[0]


@lru_cache(maxsize=256)
def _as_read(dtype: Type) -> pl.DataType:
    """Return the type in which a column is read first: timestamps are microseconds, in lists and maps too."""
    return replace(dtype, scalar="int64").polars if dtype.scalar == "timestamp" else dtype.polars


_Read = Callable[[Sequence[bytes]], list[Any]]


def _reader(dtype: Type) -> _Read:
    """Return a function that reads texts as Python values; a timestamp becomes its microseconds."""
    if dtype.is_decimal:
        return _decimal_reader(dtype)
    if dtype.nesting:
        kinds: dict[ScalarName, type] = {"int64": int, "float64": float, "bool": bool, "string": str, "timestamp": int}
        checks: dict[ScalarName, Callable[[Any], Any]] = {"int64": _int64, "timestamp": _instant}
        return _each(_json_reader(dtype, kinds[dtype.scalar], checks.get(dtype.scalar)))
    scalars: dict[ScalarName, _Read] = {
        "int64": _integers,
        "float64": _floats,
        "bool": lambda texts: [_BOOLEANS[text] for text in texts],
        "string": lambda texts: [text.decode() for text in texts],
        "timestamp": lambda texts: [_instant(number) for number in _integers(texts)],
    }
    return scalars[dtype.scalar]


def _each(read: Callable[[bytes], Any]) -> _Read:
    return lambda texts: [read(text) for text in texts]


_INTEGER = rb"-?(?:0|[1-9][0-9]*)"
_NUMBERS: Mapping[str, re.Pattern[bytes]] = {
    "int64": re.compile(rb"%b(?:,%b)*" % (_INTEGER, _INTEGER)),
    "float64": re.compile(rb"%b(?:,%b)*" % ((_INTEGER + rb"(?:[.][0-9]+(?:e[+-]?[0-9]+)?|e[+-]?[0-9]+)",) * 2)),
}


def _are_numbers(texts: Sequence[bytes], scalar: ScalarName) -> bool:
    """Return true if all texts are numbers as unskew writes them; Python takes others, too, and JSON does not."""
    together = b",".join(texts)
    return not texts or (together.count(b",") == len(texts) - 1 and _NUMBERS[scalar].fullmatch(together) is not None)


def _integers(texts: Sequence[bytes]) -> list[Any]:
    if not _are_numbers(texts, "int64"):
        raise ValueError
    numbers = [int(text) for text in texts]
    if numbers and not -_PAST_INT64 <= min(numbers) <= max(numbers) < _PAST_INT64:
        raise ValueError
    return numbers


def _floats(texts: Sequence[bytes]) -> list[Any]:
    if not _are_numbers(texts, "float64"):
        raise ValueError
    numbers = [float(text) for text in texts]
    if not all(map(math.isfinite, numbers)):
        raise ValueError
    return numbers


def _int64(number: int) -> int:
    if not -_PAST_INT64 <= number < _PAST_INT64:
        raise ValueError(number)
    return number


def _instant(instant: int) -> int:
    if not _FIRST_INSTANT_US <= instant <= _LAST_INSTANT_US:
        raise ValueError(instant)
    return instant


def _decimal_reader(dtype: Type) -> _Read:
    # Python's Decimal takes exponents, spaces, underscores, and any number of digits.
    after_point = rf"[.]\d{{{dtype.scale}}}" if dtype.scale else ""
    shape = re.compile(rf"-?\d{{1,{_DECIMAL_DIGITS - dtype.scale}}}{after_point}", re.ASCII)

    def number(text: str) -> Decimal:
        if not shape.fullmatch(text):
            raise ValueError(text)
        return Decimal(text)

    return _each(_json_reader(dtype, str, number) if dtype.nesting else lambda text: number(text.decode()))


def _json_reader(dtype: Type, kind: type, change: Callable[[Any], Any] | None = None) -> Callable[[bytes], Any]:
    """Return a function that reads JSON. ``kind``: the elements' type in JSON; ``change``: converts each, if given."""
    if dtype.nesting == "list":
        items = msgspec.json.Decoder(list[kind]).decode  # type: ignore[valid-type]
        return items if change is None else lambda text: [change(item) for item in items(text)]
    members = msgspec.json.Decoder(dict[str, kind]).decode  # type: ignore[valid-type]
    same = change or (lambda value: value)
    return lambda text: [{MAP_KEY: key, MAP_VALUE: same(value)} for key, value in members(text).items()]


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
