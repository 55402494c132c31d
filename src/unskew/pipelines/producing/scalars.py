"""Values as files hold them, as the values of a schema's types; what does not fit is refused with a reason.

A value is what JSON has (numbers with a fraction or an exponent as ``Decimal``), a text from a CSV file, or what Polars
gives for a column of a file. A time without an offset is UTC.
"""

import base64
import binascii
import contextlib
import datetime as dt
import math
import struct
from collections.abc import Callable, Mapping
from decimal import Context, Decimal, InvalidOperation
from typing import Any

import msgspec

from unskew.features.errors import cut, shown
from unskew.features.time import SECOND_US, format_instant, instant_us

INT32 = (-(2**31), 2**31 - 1)
INT64 = (-(2**63), 2**63 - 1)
_parsed_json = msgspec.json.Decoder(float_hook=Decimal).decode
_as_json = msgspec.json.Encoder(decimal_format="number").encode
_EPOCH_DAY = dt.date(1970, 1, 1).toordinal()
_WORDS = {"true": True, "false": False}
_UNUSUAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
# More digits than any number has that a type holds.
_EXACT = Context(prec=1_100)

Fit = Callable[[Any], Any]
"""Returns a value of a schema's type for a value of a file. Raises ``Unfit``."""


class Unfit(Exception):
    """A value that does not fit. ``path``: the names that lead to it, from outside to inside."""

    def __init__(self, reason: str, path: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = path

    def inside(self, name: str) -> "Unfit":
        """Return the same, seen from around a field or an item."""
        return Unfit(self.reason, (name, *self.path))

    def __str__(self) -> str:
        return f"{'.'.join(self.path)}: {self.reason}" if self.path else self.reason


def not_a(value: Any, kind: str) -> Unfit:
    """Return the refusal of a value that is not of a kind."""
    if value is None:
        return Unfit(f"it is null, and the schema has {kind}")
    return Unfit(f"{written(value)} is not {kind}")


def written(value: Any) -> str:
    """Return a value as files have it, for a message: at most 100 characters, and texts in quotes."""
    if isinstance(value, Decimal):
        return cut(str(value))
    if isinstance(value, dt.datetime):
        return format_instant(value)
    if isinstance(value, (dt.date, dt.time)):
        return value.isoformat()
    if value is None or isinstance(value, (bool, list, Mapping)):
        with contextlib.suppress(Exception):
            return cut(_as_json(value).decode())
    return shown(value)


def number(value: Any, kind: str, *, text: bool) -> Decimal | int:
    """Return a number exactly. ``text``: take a number that is written as text, too."""
    if type(value) is int or type(value) is Decimal:
        return value
    if isinstance(value, float):
        # The fewest digits that give back the same float.
        value, text = repr(value), True
    if text and isinstance(value, str):
        try:
            found = _EXACT.create_decimal(value.strip())
        except InvalidOperation:
            found = Decimal("nan")
        if found.is_finite():
            return found
    raise not_a(value, kind)


def integer(kind: str, bounds: tuple[int, int], *, text: bool) -> Fit:
    """Return the fit of whole numbers within bounds."""
    least, most = bounds

    def fit(value: Any) -> int:
        found = value if type(value) is int else number(value, kind, text=text)
        if type(found) is Decimal:
            if found.adjusted() > 40 or found != found.to_integral_value():
                raise not_a(value, kind)
            found = int(found)
        if not least <= found <= most:
            raise Unfit(f"{found} does not fit {kind}")
        return int(found)

    return fit


def real(kind: str, *, text: bool, unusual: bool, short: bool = False) -> Fit:
    """Return the fit of floats. ``unusual``: NaN and infinity are values. ``short``: of 32 bits."""

    def fit(value: Any) -> float:
        if isinstance(value, float):
            found = value
        elif isinstance(value, str) and unusual and value in _UNUSUAL:
            found = _UNUSUAL[value]
        else:
            found = float(number(value, kind, text=text))
            if math.isinf(found):
                raise Unfit(f"{written(value)} does not fit {kind}")
        if not unusual and not math.isfinite(found):
            raise not_a(value, kind)
        if short and math.isfinite(found):
            try:
                struct.pack("<f", found)
            except OverflowError as error:
                raise Unfit(f"{written(value)} does not fit {kind}") from error
        return found

    return fit


def boolean(kind: str, *, text: bool) -> Fit:
    """Return the fit of true and false."""

    def fit(value: Any) -> bool:
        if isinstance(value, bool):
            return value
        if text and isinstance(value, str) and value.lower() in _WORDS:
            return _WORDS[value.lower()]
        raise not_a(value, kind)

    return fit


def string(kind: str) -> Fit:
    """Return the fit of texts."""

    def fit(value: Any) -> str:
        if not isinstance(value, str):
            raise not_a(value, kind)
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise Unfit("it has half a surrogate pair, which is not text") from error
        return value

    return fit


def octets(kind: str, size: int | None = None) -> Fit:
    """Return the fit of bytes, or of text that holds them in base64. ``size``: the only length; None for any."""

    def fit(value: Any) -> bytes:
        if isinstance(value, str):
            try:
                value = base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError) as error:
                raise Unfit(f"{written(value)} is not {kind}; write bytes in base64") from error
        if not isinstance(value, bytes):
            raise not_a(value, kind)
        if size is not None and len(value) != size:
            raise Unfit(f"it has {len(value)} bytes, and {kind} has {size}")
        return value

    return fit


def unscaled(kind: str, precision: int, scale: int) -> Fit:
    """Return the fit of decimals, as their number of units of the last digit."""

    def fit(value: Any) -> int:
        # A decimal that is written as text has all its digits, whatever reads it.
        found = _EXACT.scaleb(Decimal(number(value, kind, text=True)), scale)
        if found.adjusted() >= precision:
            raise Unfit(f"{written(value)} has more than {precision - scale} digits before the point")
        if found != found.to_integral_value():
            raise Unfit(f"{written(value)} has more than {scale} digits after the point")
        return int(found)

    return fit


def day(kind: str) -> Fit:
    """Return the fit of dates, as days since 1970."""

    def fit(value: Any) -> int:
        if type(value) is dt.date:
            return value.toordinal() - _EPOCH_DAY
        if isinstance(value, str):
            try:
                return dt.date.fromisoformat(value).toordinal() - _EPOCH_DAY
            except ValueError as error:
                raise Unfit(f"{written(value)} is not {kind}; write it as in 2026-01-31") from error
        if type(value) is int and INT32[0] <= value <= INT32[1]:
            return value
        raise not_a(value, kind)

    return fit


def time_of_day(kind: str, per_second: int) -> Fit:
    """Return the fit of times of a day, as units since midnight; what lies below a unit is cut off."""

    def fit(value: Any) -> int:
        if isinstance(value, str):
            try:
                value = dt.time.fromisoformat(value)
            except ValueError as error:
                raise Unfit(f"{written(value)} is not {kind}; write it as in 13:45:00") from error
        if isinstance(value, dt.time):
            us = ((value.hour * 60 + value.minute) * 60 + value.second) * SECOND_US + value.microsecond
            return us * per_second // SECOND_US
        if type(value) is int and 0 <= value < 86_400 * per_second:
            return value
        raise not_a(value, kind)

    return fit


def instant(kind: str, per_second: int, *, text: bool) -> Fit:
    """Return the fit of instants, as units since 1970; what lies below a unit is cut off."""
    whole = integer(kind, INT64, text=text)

    def fit(value: Any) -> int:
        if type(value) is int or type(value) is Decimal:
            return int(whole(value))
        if text and isinstance(value, str) and value.removeprefix("-").isdecimal():
            return int(whole(value))
        return us_of(value, kind) * per_second // SECOND_US

    return fit


def date_of(days: int) -> dt.date:
    """Return the date that is so many days after 1970-01-01. Raises ``Unfit`` for one that no calendar shows."""
    try:
        return dt.date.fromordinal(days + _EPOCH_DAY)
    except (ValueError, OverflowError) as error:
        raise Unfit(f"{days} days after 1970 is outside the years 1 to 9999") from error


def of_cell(value: Any) -> Any:
    """Return what is written in a cell of CSV for a value that CSV has no form for: JSON."""
    if not isinstance(value, str):
        return value
    try:
        return _parsed_json(value)
    except msgspec.DecodeError as error:
        raise Unfit(f"{written(value)} is not JSON, as which a cell holds an array, a map or a record") from error


def us_of(value: Any, kind: str = "an instant") -> int:
    """Return the microseconds of an instant in ISO 8601, or of a datetime."""
    if isinstance(value, (str, dt.datetime)):
        try:
            return instant_us(value)
        except ValueError as error:
            raise Unfit(f"{written(value)} is not {kind}; write it as in 2026-01-31T12:00:00Z") from error
    raise not_a(value, kind)


def big_endian(units: int, size: int | None = None) -> bytes:
    """Return a whole number as the shortest two's complement, the highest byte first; ``size``: its length."""
    return units.to_bytes(size or units.bit_length() // 8 + 1, "big", signed=True)
