"""Numbers and texts as what the definition says that they are: instants and numbers.

A number is converted from its decimal digits: those of its text, or the fewest that give back the same float. So the
same number is the same value in every format. What lies below a microsecond is cut off.
"""

from collections.abc import Iterable, Iterator
from decimal import ROUND_FLOOR, Context, Decimal
from typing import Any

import numpy as np
import polars as pl

from unskew.features.plan import ReadAs
from unskew.features.rejection import Kind
from unskew.features.time import DAY_US
from unskew.features.types import TIMESTAMP
from unskew.pipelines.decoding.columns import Refusals, Unit, typed

# RFC 3339, with T or a space, and offsets with or without a colon; Polars checks the date. A minute may have a leap
# second.
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]"
_OFFSET = r"([Zz]|[+-]([01][0-9]|2[0-3]):?[0-5][0-9])"
_DATE_TIME = rf"^[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}[Tt ]{_TIME}:([0-5][0-9]|60)(\.[0-9]{{1,9}})?{_OFFSET}$"
_WITHOUT_OFFSET = rf"^[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}[Tt ]{_TIME}:[0-5][0-9](\.[0-9]{{1,9}})?$"
_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
_NUMBER = r"^[+-]?([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?$"
_INT64 = (-(2**63), 2**63 - 1)
# More digits than any number that is read as one, so nothing is rounded.
_EXACT = Context(prec=1_100)


def converted(values: pl.Series, form: ReadAs, refusals: Refusals, *, event_time: bool) -> pl.Series:
    """Return a column as its definition says; refuse the rows whose values cannot be read so."""
    if form.dtype == TIMESTAMP:
        if form.per_second:
            numbers = _whole(values, form.per_second, refusals, "time" if event_time else "range")
        else:
            numbers = instants(values, form.zone)
            refusals.refuse(
                numbers.is_null() & values.is_not_null(),
                "time" if event_time else "range",
                lambda at: f"{values.name}: {values[at]!r} is not an ISO 8601 time{_in_zone(form.zone)}",
            )
        return typed(numbers, Unit("timestamp-micros"), form.dtype, refusals, event_time=event_time)
    if form.dtype == pl.Float64():
        if values.dtype != pl.String():
            return values.cast(pl.Float64)
        floats = pl.Series(values.name, [_float(value) for value in _decimals(values, refusals)], dtype=pl.Float64)
        refusals.refuse(floats.is_infinite(), "range", lambda at: _unfit(values, at))
        return floats
    if form.dtype == pl.Int64():
        return _integers(values, refusals)
    return _scaled(values, form.dtype, refusals)


def instants(texts: pl.Series, zone: str | None = None) -> pl.Series:
    """Return ISO 8601 text as microseconds; null if it is not such text.

    ``zone``: the zone of times without an offset; an instant that occurs twice there is the first, one that does not
    occur is null. Digits after the microseconds are cut off. A leap second is the instant after it.
    """
    sound = texts.to_frame().select(pl.when(texts.str.contains(_DATE_TIME)).then(texts)).to_series()
    shape = (
        sound.str.to_uppercase()
        .str.replace(" ", "T", literal=True)
        .str.replace("Z", "+00:00", literal=True)
        .str.replace(r"([+-][0-9]{2})([0-9]{2})$", "${1}:${2}")
    )
    leaps = shape.str.slice(17, 2) == "60"
    if leaps.any():
        shape = (
            shape.to_frame()
            .select(
                pl.when(leaps)
                .then(pl.concat_str(shape.str.slice(0, 17), pl.lit("59"), shape.str.slice(19)))
                .otherwise(shape)
            )
            .to_series()
        )
    found = shape.str.to_datetime(
        "%Y-%m-%dT%H:%M:%S%.f%:z", time_unit="us", time_zone="UTC", strict=False
    ).to_physical()
    if leaps.any():
        moved = found + 1_000_000
        # Leap seconds are at the end of a day in UTC.
        found = (
            pl.DataFrame({"found": found, "moved": moved, "leaps": leaps})
            .select(
                pl.when(~pl.col("leaps"))
                .then(pl.col("found"))
                .when(pl.col("moved").mod(DAY_US) < 1_000_000)
                .then(pl.col("moved"))
            )
            .to_series()
        )
    if zone is not None:
        local = texts.to_frame().select(pl.when(texts.str.contains(_WITHOUT_OFFSET)).then(texts)).to_series()
        if local.is_not_null().any():
            naive = (
                local.str.to_uppercase()
                .str.replace(" ", "T", literal=True)
                .str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False)
            )
            placed = naive.dt.replace_time_zone(zone, ambiguous="earliest", non_existent="null")
            found = found.fill_null(placed.dt.convert_time_zone("UTC").to_physical())
    return found.alias(texts.name)


def days(texts: pl.Series) -> pl.Series:
    """Return dates as text as days since 1970; null if it is not such text."""
    sound = texts.to_frame().select(pl.when(texts.str.contains(_DATE)).then(texts)).to_series()
    return sound.str.to_date("%Y-%m-%d", strict=False).to_physical().cast(pl.Int64).alias(texts.name)


def _in_zone(zone: str | None) -> str:
    return " with an offset" if zone is None else f" in {zone}"


def _whole(values: pl.Series, per_second: int, refusals: Refusals, kind: Kind) -> pl.Series:
    """Return microseconds from a number of units."""
    if values.dtype.is_integer():
        numbers: list[Any] = values.to_list()
        units = [None if number is None else number * 1_000_000 // per_second for number in numbers]
    else:
        scale = Decimal(1_000_000) / per_second
        units = [
            None
            if number is None
            else int(_EXACT.multiply(number, scale).to_integral_value(ROUND_FLOOR))
            if abs(number) < Decimal("1e30")
            else _INT64[1] + 1
            for number in _decimals(values, refusals)
        ]
    return _series(values, units, refusals, kind)


def _integers(values: pl.Series, refusals: Refusals) -> pl.Series:
    if values.dtype.is_integer():
        return values.cast(pl.Int64)
    numbers = list(_decimals(values, refusals))
    whole = [number is None or number == number.to_integral_value() for number in _small(numbers)]
    refusals.refuse(
        ~np.array(whole, np.bool_), "type", lambda at: f"{values.name}: {values[at]!r} is not a whole number"
    )
    return _series(values, [None if n is None else int(n) for n in _small(numbers)], refusals, "range")


def _scaled(values: pl.Series, dtype: pl.DataType, refusals: Refusals) -> pl.Series:
    assert isinstance(dtype, pl.Decimal)
    digits = dtype.scale
    numbers = [
        None if number is None else _EXACT.scaleb(number, digits) for number in _small(_decimals(values, refusals))
    ]
    exact = [number is None or number == number.to_integral_value() for number in numbers]
    refusals.refuse(
        ~np.array(exact, np.bool_),
        "range",
        lambda at: f"{values.name}: {values[at]!r} has more than {digits} digits after the point",
    )
    units = _series(values, [None if number is None else int(number) for number in numbers], refusals, "range")
    octets = [None if unit is None else unit.to_bytes(9, "big", signed=True) for unit in units.to_list()]
    raw = pl.Series(values.name, octets, dtype=pl.Binary)
    return typed(raw, Unit("decimal", digits), dtype, refusals, event_time=False)


def _small(numbers: Iterable[Decimal | None]) -> Iterator[Decimal | None]:
    """Yield numbers, those that no column can hold as one that is just too large."""
    for number in numbers:
        yield number if number is None or abs(number) < Decimal("1e30") else Decimal("1e30")


def _series(values: pl.Series, units: list[Any], refusals: Refusals, kind: Kind) -> pl.Series:
    """Return an Int64 column; refuse numbers that it cannot hold."""
    fits = np.array([unit is None or _INT64[0] <= unit <= _INT64[1] for unit in units], np.bool_)
    refusals.refuse(~fits, kind, lambda at: _unfit(values, at))
    kept = [unit if fit else None for unit, fit in zip(units, fits.tolist(), strict=True)]
    return pl.Series(values.name, kept, dtype=pl.Int64)


def _unfit(values: pl.Series, at: int) -> str:
    return f"{values.name}: {values[at]!r} does not fit its type"


def _decimals(values: pl.Series, refusals: Refusals) -> list[Decimal | None]:
    """Return numbers exactly as they are written; null, and refused, if one is not a number."""
    if values.dtype == pl.String():
        sound = values.str.contains(_NUMBER)
        refusals.refuse(~sound, "type", lambda at: f"{values.name}: {values[at][:40]!r} is not a number")
        texts = values
    else:
        sound = values.is_finite()
        refusals.refuse(~sound, "range", lambda at: f"{values.name} is {values[at]}, which is not a number")
        # The fewest digits that give back the same float of its width.
        numbers = np.asarray(values.fill_null(0.0).to_numpy())
        texts = pl.Series(values.name, [str(number) for number in numbers], dtype=pl.String)
    kept = (sound & values.is_not_null()).fill_null(value=False).to_list()
    return [Decimal(text) if keep else None for text, keep in zip(texts.to_list(), kept, strict=True)]


def _float(number: Decimal | None) -> float | None:
    return None if number is None else float(number)
