"""Types of values and results: their names in definitions, and their Polars types.

A scalar type is ``int64``, ``float64``, ``bool``, ``string``, ``timestamp`` (microseconds, UTC) or ``decimal(38,S)``:
exact, with S digits after the point, and at most ±(2**63 - 1) units of the last digit. A result may also be a
``list[...]`` of one of these, or a ``map[...]``: a value for each of several text keys, in order.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import polars as pl

from unskew.features.errors import DefinitionError

ScalarName = Literal["int64", "float64", "bool", "string", "timestamp", "decimal"]
Nesting = Literal["list", "map"]

TIMESTAMP = pl.Datetime("us", "UTC")
MAP_KEY, MAP_VALUE = "key", "value"

_SIMPLE: Mapping[Any, pl.DataType] = {
    "int64": pl.Int64(),
    "float64": pl.Float64(),
    "bool": pl.Boolean(),
    "string": pl.String(),
    "timestamp": TIMESTAMP,
}
SCALARS: tuple[ScalarName, ...] = tuple(_SIMPLE)
"""The scalar types that have no scale."""
KNOWN = f"types are {', '.join(SCALARS)}, decimal(38,2), list[...] and map[...] of these"

_DECIMAL_DIGITS = 38
_MOST_SCALE = 18
_TEXT = re.compile(rf"((list|map)\[)?(?:({'|'.join(SCALARS)})|decimal\({_DECIMAL_DIGITS},(\d{{1,2}})\))(?(1)\])")


@dataclass(frozen=True)
class Type:
    """The type of a value or a result; ``str`` returns its name, which ``parse`` reads.

    ``scalar``: the type of the value, of each item of a list, or of each value of a map. ``scale``: the number of
    digits after the point of a decimal, 0 to 18; 0 for other types. ``nesting``: None for a scalar.
    """

    scalar: ScalarName
    scale: int = 0
    nesting: Nesting | None = None

    @staticmethod
    def parse(text: object) -> "Type":
        """Read the name of a type. Raises ``DefinitionError`` if ``text`` is not one."""
        found = _parsed(text) if isinstance(text, str) else None
        if found is None:
            raise DefinitionError(f"{text!r} is not a type; {KNOWN}")
        return found

    @staticmethod
    def of_values(dtype: pl.DataType) -> "Type | None":
        """Return the type as which values of a Polars type are aggregated; None if they cannot be."""
        if isinstance(dtype, pl.Decimal):
            return Type("decimal", dtype.scale) if dtype.scale <= _MOST_SCALE else None
        if isinstance(dtype, pl.Datetime):
            return Type("timestamp") if dtype.time_zone == "UTC" else None
        if dtype == pl.Boolean():
            return BOOL
        if dtype == pl.String():
            return STRING
        if dtype.is_float():
            return FLOAT64
        return INT64 if dtype.is_integer() and dtype not in {pl.UInt64(), pl.Int128(), pl.UInt128()} else None

    @property
    def is_decimal(self) -> bool:
        """True for a decimal, or a list or map of decimals."""
        return self.scalar == "decimal"

    @property
    def element(self) -> "Type":
        """The type inside a list or map; a scalar type itself."""
        return Type(self.scalar, self.scale)

    def in_a(self, nesting: Nesting) -> "Type":
        """Return the list or map of this scalar."""
        return Type(self.scalar, self.scale, nesting)

    @cached_property
    def polars(self) -> pl.DataType:
        """The Polars type of a column; a map is a list of structs of ``key`` (String) and ``value``, in order."""
        scalar = pl.Decimal(_DECIMAL_DIGITS, self.scale) if self.is_decimal else _SIMPLE[self.scalar]
        match self.nesting:
            case "list":
                return pl.List(scalar)
            case "map":
                return pl.List(pl.Struct({MAP_KEY: pl.String(), MAP_VALUE: scalar}))
            case None:
                return scalar

    def __str__(self) -> str:
        scalar = f"decimal({_DECIMAL_DIGITS},{self.scale})" if self.is_decimal else self.scalar
        return scalar if self.nesting is None else f"{self.nesting}[{scalar}]"


@lru_cache(maxsize=256)
def _parsed(text: str) -> Type | None:
    found = _TEXT.fullmatch(text)
    if found is None or int(found[4] or 0) > _MOST_SCALE:
        return None
    nesting: Any = found[2]
    simple: Any = found[3]
    return Type(simple or "decimal", int(found[4] or 0), nesting)


INT64, FLOAT64, BOOL, STRING = Type("int64"), Type("float64"), Type("bool"), Type("string")
