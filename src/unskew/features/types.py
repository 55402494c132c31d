"""Types of values and results: their names in definitions, and as Polars types.

A scalar type is ``int64``, ``float64``, ``bool``, ``string``, ``timestamp`` (microseconds, UTC) or ``decimal(38,S)``: exact,
with S digits after the point, of at most ±(2**63 - 1) units of the last digit. A result may also be ``list[...]`` of one, or
``map[...]``: a value for each of several text keys, in order.
"""

import re
from collections.abc import Mapping

import polars as pl

ValueType = str

SCALARS: tuple[ValueType, ...] = ("int64", "float64", "bool", "string", "timestamp")
TIMESTAMP = pl.Datetime("us", "UTC")
MAP_KEY, MAP_VALUE = "key", "value"

_SIMPLE: Mapping[str, pl.DataType] = {
    "int64": pl.Int64(),
    "float64": pl.Float64(),
    "bool": pl.Boolean(),
    "string": pl.String(),
    "timestamp": TIMESTAMP,
}
_DECIMAL_DIGITS = 38
_MOST_SCALE = 18
_DECIMAL = re.compile(r"decimal\(38,(\d{1,2})\)")
_NESTED = re.compile(r"(list|map)\[(.+)\]")


def decimal(scale: int) -> ValueType:
    """Name the decimal type with ``scale`` digits after the point, 0 to 18."""
    return f"decimal(38,{scale})"


def decimal_scale(dtype: ValueType) -> int | None:
    """Digits after the point; None for a type that is no decimal."""
    found = _DECIMAL.fullmatch(dtype)
    return int(found[1]) if found and int(found[1]) <= _MOST_SCALE else None


def is_list(dtype: ValueType) -> bool:
    """Whether it is ``list[...]``."""
    return dtype.startswith("list[")


def is_map(dtype: ValueType) -> bool:
    """Whether it is ``map[...]``."""
    return dtype.startswith("map[")


def element(dtype: ValueType) -> ValueType:
    """The type inside a list or map; a scalar's own."""
    found = _NESTED.fullmatch(dtype)
    return found[2] if found else dtype


def is_type(dtype: object) -> bool:
    """Whether it names a type of results."""
    if not isinstance(dtype, str):
        return False
    inner = element(dtype)
    return inner in SCALARS or decimal_scale(inner) is not None


def polars_type(dtype: ValueType) -> pl.DataType:
    """The Polars type of a column; a map is a list of structs ``key`` (String), ``value``, in the map's order."""
    inner = element(dtype)
    scale = decimal_scale(inner)
    scalar = _SIMPLE[inner] if scale is None else pl.Decimal(_DECIMAL_DIGITS, scale)
    if is_list(dtype):
        return pl.List(scalar)
    if is_map(dtype):
        return pl.List(pl.Struct({MAP_KEY: pl.String(), MAP_VALUE: scalar}))
    return scalar


def value_type(dtype: pl.DataType) -> ValueType | None:
    """The type under which values of a Polars type are aggregated; None where they cannot be."""
    if isinstance(dtype, pl.Decimal):
        return decimal(dtype.scale) if dtype.scale <= _MOST_SCALE else None
    if isinstance(dtype, pl.Datetime):
        return "timestamp" if dtype.time_zone == "UTC" else None
    if dtype == pl.Boolean():
        return "bool"
    if dtype == pl.String():
        return "string"
    if dtype.is_float():
        return "float64"
    return "int64" if dtype.is_integer() and dtype not in {pl.UInt64(), pl.Int128(), pl.UInt128()} else None
