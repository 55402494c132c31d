"""Typed columns from numbers and bytes as they are on the wire; values that do not fit their column are refused."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from unskew.features.definitions.avro_schema import TIMESTAMP
from unskew.features.jit import allocating
from unskew.features.rejection import Kind, Rejection
from unskew.features.text_buffers import not_null, validity
from unskew.features.time import DAY_US, MAX_INSTANT_US, MIN_INSTANT_US

# Years 1 to 9999, which common tools can show.
_FIRST_SHOWN_US = -62_135_596_800_000_000
_LAST_SHOWN_US = 253_402_300_799_999_999
_DIGITS = 38
# A decimal has no more units below zero than above.
_LEAST = -(2**63)
_US_PER_UNIT = {"millis": 1000, "micros": 1, "s": 1_000_000}
_SHOWN = "years 1..9999"


class Refusals:
    """The refused rows among some rows, each with the first reason found.

    ``rows``: their places in the poll, ascending. ``reasons``: by those places; other steps that refuse rows share it.
    """

    def __init__(self, rows: npt.NDArray[np.int64], reasons: dict[int, Rejection]) -> None:
        self.kept = np.ones(len(rows), np.bool_)
        self._rows = rows
        self._reasons = reasons

    def refuse(self, bad: pl.Series | npt.NDArray[np.bool_], kind: Kind, reason: Callable[[int], str]) -> None:
        """Refuse the rows for which ``bad`` is true; ``reason`` gives the reason from a row's place among the rows."""
        if not bad.any():
            return
        flags = bad.fill_null(value=False).to_numpy() if isinstance(bad, pl.Series) else bad
        for at in np.flatnonzero(flags & self.kept).tolist():
            self.kept[at] = False
            self._reasons[int(self._rows[at])] = Rejection(kind, reason(at))

    def of(self, frame: pl.DataFrame) -> tuple[npt.NDArray[np.int64], pl.DataFrame]:
        """Return the rows that were kept, and their part of ``frame``."""
        return (self._rows, frame) if self.kept.all() else (self._rows[self.kept], frame.filter(pl.Series(self.kept)))


@dataclass(frozen=True, slots=True)
class Unit:
    """The meaning of a column's numbers or bytes.

    ``logical``: an Avro logical type, or ``timestamp-s``; None for a plain value. ``scale``: the scale of a decimal.
    """

    logical: str | None = None
    scale: int = 0


def typed(numbers: pl.Series, unit: Unit, dtype: pl.DataType, refusals: Refusals, *, event_time: bool) -> pl.Series:
    """Return a column with its type; refuse rows with values outside what it can hold or show."""
    name = numbers.name
    if event_time and numbers.null_count():
        refusals.refuse(numbers.is_null(), "time", lambda _: "event_time is null")
    match unit.logical:
        case None:
            return numbers if numbers.dtype == dtype else numbers.cast(dtype)
        case "decimal":
            return _decimals(numbers, unit.scale, refusals)
        case "date":
            inside = _inside(numbers, _FIRST_SHOWN_US // DAY_US, _LAST_SHOWN_US // DAY_US, name, _SHOWN, refusals)
            return inside.cast(pl.Int32).cast(pl.Date)
        case "time-nanos":
            return _inside(numbers, 0, DAY_US * 1000 - 1, name, "one day", refusals).cast(pl.Time)
        case "time-millis" | "time-micros":
            scale = _US_PER_UNIT[unit.logical.removeprefix("time-")]
            inside = _inside(numbers, 0, (DAY_US - 1) // scale, name, "one day", refusals)
            return (inside * (scale * 1000)).cast(pl.Time)
        case _:
            return _instants(numbers, unit.logical.rpartition("-")[2], refusals, event_time=event_time).cast(TIMESTAMP)


def _instants(numbers: pl.Series, unit: str, refusals: Refusals, *, event_time: bool) -> pl.Series:
    """Return microseconds.

    A column shows years of four digits; an event time must be an instant that clocks can reach.
    """
    first, last, word, span = _FIRST_SHOWN_US, _LAST_SHOWN_US, numbers.name, _SHOWN
    if event_time:
        first, last, word, span = MIN_INSTANT_US, MAX_INSTANT_US - 1, "event_time", "1900..2200"
    if unit == "nanos":
        return _inside(numbers // 1000, first, last, word, span, refusals)
    scale = _US_PER_UNIT[unit]
    # Compare before scaling, which could overflow; refused values must not be scaled either.
    numbers = _inside(numbers, -(-first // scale), last // scale, word, span, refusals)
    return numbers * scale if scale > 1 else numbers


def _inside(numbers: pl.Series, first: int, last: int, word: str, span: str, refusals: Refusals) -> pl.Series:
    # Least and greatest, because most polls have few rows, and an expression costs more than they do.
    least, most = numbers.min(), numbers.max()
    if least is None or most is None or (least >= first and most <= last):  # type: ignore[operator]
        return numbers
    inside = numbers.is_between(first, last)
    kind: Kind = "time" if word == "event_time" else "range"
    refusals.refuse(~inside, kind, lambda at: f"{word} {numbers[at]} is outside {span}")
    return numbers.set(~inside, None)


def _decimals(unscaled: pl.Series, scale: int, refusals: Refusals) -> pl.Series:
    """Convert big-endian two's complement of any length to Arrow's 128 bits: low word, high word."""
    array = unscaled.to_arrow()
    if not pa.types.is_large_binary(array.type):
        array = array.cast(pa.large_binary())
    _, offsets, data = array.buffers()
    starts = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    words = np.zeros((len(array), 2), np.uint64)
    fits = np.empty(len(array), np.bool_)
    _read_decimals(starts, np.frombuffer(data if data is not None else b"", np.uint8), words, fits)
    # Beyond the limit of values: arithmetic on such a number would fail, and its whole batch with it.
    low, high = words.view(np.int64).T
    narrow = fits & (high == low >> 63) & (low != _LEAST)
    present = not_null(array)
    kept = present & narrow
    if not (kept == present).all():
        name = unscaled.name
        refusals.refuse(present & ~fits, "range", lambda _: f"{name} has more than {_DIGITS} digits")
        refusals.refuse(present & ~narrow, "range", lambda _: f"{name} is beyond 2^63 - 1 units of its last digit")
    column = pa.Array.from_buffers(pa.decimal128(_DIGITS, scale), len(array), [validity(kept), pa.py_buffer(words)])
    return pl.Series(unscaled.name, column)


@allocating()
def _read_decimals(
    starts: npt.NDArray[np.int64],
    data: npt.NDArray[np.uint8],
    words: npt.NDArray[np.uint64],
    fits: npt.NDArray[np.bool_],
) -> None:
    zero, ones = np.uint64(0), ~np.uint64(0)
    for row in range(len(starts) - 1):
        begin, end = starts[row], starts[row + 1]
        sign = ones if begin < end and data[begin] >= 0x80 else zero
        fits[row] = True
        while end - begin > 16:
            if data[begin] != sign & np.uint64(0xFF) or data[begin + 1] >> 7 != sign & np.uint64(1):
                fits[row] = False
                break
            begin += 1
        low, high = sign, sign
        for at in range(begin, end):
            high = high << np.uint64(8) | low >> np.uint64(56)
            low = low << np.uint64(8) | np.uint64(data[at])
        words[row, 0], words[row, 1] = low, high
        if sign:
            low = ~low + np.uint64(1)
            high = ~high + (np.uint64(1) if low == zero else zero)
        # 10**38, in two words.
        if high > np.uint64(5421010862427522170) or (
            high == np.uint64(5421010862427522170) and low >= np.uint64(687399551400673280)
        ):
            fits[row] = False


def texts(values: pl.Series, refusals: Refusals, kind: Kind, what: str) -> pl.Series:
    """Return bytes as text; refuse the rows whose bytes are not UTF-8."""
    try:
        return values.cast(pl.String)
    except pl.exceptions.PolarsError:
        read = [_text(value) for value in values.to_list()]
    found = pl.Series(values.name, read, dtype=pl.String)
    refusals.refuse(found.is_null() & values.is_not_null(), kind, lambda _: f"{what} is not UTF-8")
    return found


def _text(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None
