"""Conversion of the tables that users pass (Polars, pandas or rows), and of results back to the same kind."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from unskew.features.errors import RequestError
from unskew.features.types import Type
from unskew.features.view import KeyType

Table = Any
"""A ``polars.DataFrame``, a ``pandas.DataFrame``, or a sequence of mappings, one per row."""


def is_pandas(table: Table) -> bool:
    """Return true for a pandas frame; pandas need not be installed."""
    return type(table).__module__.partition(".")[0] == "pandas"


def to_polars(table: Table) -> pl.DataFrame:
    """Return the same rows and columns in the same order, without a pandas index.

    A row that lacks a column of other rows gets null there. Raises ``RequestError`` for anything that is not a table.
    """
    if isinstance(table, pl.DataFrame):
        return table
    if isinstance(table, pl.LazyFrame):
        return table.collect()
    if is_pandas(table):
        return pl.from_pandas(table)
    if isinstance(table, Sequence) and all(isinstance(row, Mapping) for row in table):
        try:
            return pl.DataFrame([dict(row) for row in table], infer_schema_length=None)
        except (pl.exceptions.PolarsError, TypeError, OverflowError) as error:
            raise RequestError(f"the rows do not make a table: {error}") from error
    raise RequestError(
        f"a table must be a Polars or pandas DataFrame, or a list of dicts, one per row; this is {type(table).__name__}"
    )


def like(result: pl.DataFrame, table: Table) -> Table:
    """Return ``result``, row for row of ``table``, as the same kind of table: pandas, with its index, or Polars."""
    if not is_pandas(table):
        return result
    converted = result.to_pandas()
    converted.index = table.index
    return converted


def key_column(column: pl.Series, kind: KeyType) -> pl.Series:
    """Return a key column in its entity's type; it is converted only if nothing is lost: 1.0 is the integer key 1.

    Raises ``RequestError`` for a value that is null or does not convert.
    """
    if column.null_count():
        raise RequestError(f"{column.name!r} has no value in row {int(column.is_null().arg_max() or 0)}")
    dtype = Type(kind).polars
    if column.dtype == dtype:
        return column
    if column.is_empty():
        return pl.Series(column.name, [], dtype)
    converted = column
    try:
        converted = column.cast(dtype)
        lossless = column.dtype != pl.Boolean and converted.cast(column.dtype).equals(column)
    except pl.exceptions.PolarsError:
        lossless = False
    if not lossless:
        raise RequestError(
            f"{column.name!r} is {kind}, but its column is {column.dtype} and cannot be converted without loss"
        )
    return converted
