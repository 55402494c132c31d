"""The tables that users pass (Polars, pandas, Arrow, or rows): read column by column, and given back with more columns.

Only the columns that are asked for are read, and a table is given back with its own columns as they came.
"""

import bisect
import datetime as dt
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import polars as pl
from polars.exceptions import PanicException
from typing_extensions import override

from unskew.features.errors import RequestError
from unskew.features.extras import needed
from unskew.features.time import instant_us
from unskew.features.types import STRING, TIMESTAMP, Type
from unskew.features.view import KeyType

if TYPE_CHECKING:
    import pyarrow as pa

Ints = npt.NDArray[np.int64]
Table = Any
"""A ``polars.DataFrame`` or ``LazyFrame``, a ``pandas.DataFrame``, a sequence of mappings, one per row, or anything
that Arrow reads as a table: ``pyarrow.Table``, a DuckDB relation.
"""

LARGEST_EXACT_FLOAT = 1 << 53
"""From here on, several integers share a float."""


# pyarrow derives some of its errors from these; Polars raises RuntimeError for decimals that are too large.
_NO_COLUMN = (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError, NotImplementedError, RuntimeError)


class Given(ABC):
    """A table that a user passed. ``names``: its columns; ``n_rows``: its rows."""

    names: Sequence[str]
    n_rows: int
    of_objects = False
    """Whether its columns are Python objects already."""
    by_entity = False
    """Whether a column that is named after an entity holds its key."""

    def column(self, name: str) -> pl.Series:
        """Return one column. Raises ``RequestError`` if its values do not make a column."""
        self._refuse_several(name)
        try:
            column = self._column(name)
        except (*_NO_COLUMN, PanicException) as error:
            raise RequestError(
                f"the values of {name!r} do not make a column of one type: {str(error).splitlines()[0]}"
            ) from error
        return column

    @abstractmethod
    def _column(self, name: str) -> pl.Series: ...

    @abstractmethod
    def extended(self, columns: pl.DataFrame) -> Table:
        """Return the table with ``columns`` after its own, as the same kind of table; rows become a Polars frame."""

    @abstractmethod
    def taken(self, rows: Ints) -> "Given":
        """Return the table's rows at these positions, in their order, as the same kind of table."""

    def values(self, name: str) -> list[Any]:
        """Return a column as Python objects; raises ``RequestError`` if there are several of that name."""
        self._refuse_several(name)
        return self._values(name)

    @abstractmethod
    def _values(self, name: str) -> list[Any]: ...

    def _refuse_several(self, name: str) -> None:
        if list(self.names).count(name) != 1:
            raise RequestError(f"the table has several columns {name!r}; rename them, so that one remains")

    def polars(self) -> pl.DataFrame:
        """Return all columns as a Polars frame."""
        return pl.DataFrame([self.column(name) for name in self.names])

    @needed("an Arrow table", "pyarrow")
    def arrow(self) -> "pa.Table":
        """Return all columns as an Arrow table. Raises ``RequestError`` for one that holds Python objects."""
        own = self.polars()
        if objects := _of_python(own):
            raise RequestError(
                f"the column {objects[0]!r} holds Python objects ({own.schema[objects[0]]}), which Arrow cannot hold; drop it, "
                "or take the answer with to_df() or to_dict()"
            )
        return own.to_arrow()


class _PolarsTable(Given):
    def __init__(self, table: pl.DataFrame) -> None:
        self._table = table
        self.names, self.n_rows = table.columns, table.height

    @override
    def _column(self, name: str) -> pl.Series:
        return self._table[name]

    @override
    def _values(self, name: str) -> list[Any]:
        return self._table[name].to_list()

    @override
    def taken(self, rows: Ints) -> Given:
        return _PolarsTable(self._table[rows])

    @override
    def extended(self, columns: pl.DataFrame) -> pl.DataFrame:
        return self._table.hstack(columns)

    @override
    def polars(self) -> pl.DataFrame:
        return self._table


class _PandasTable(Given):
    def __init__(self, table: Any) -> None:
        self._table = table
        self.names, self.n_rows = list(table.columns), len(table)

    @override
    def _column(self, name: str) -> pl.Series:
        column = self._table[name]
        # pandas names columns by anything, for example by numbers.
        name = str(name)
        if column.dtype == object:
            return _of_objects(name, column.tolist())
        with needed("a pandas frame", "pyarrow", extra="pandas"):
            import pyarrow as pa  # noqa: PLC0415 - it is optional

            if column.dtype.kind == "M":
                return _of_arrow(name, pa.chunked_array([pa.array(column, from_pandas=True)]))
            converted: pl.Series = pl.from_pandas(column)
            return converted.alias(name)

    @override
    def _values(self, name: str) -> list[Any]:
        return cast("list[Any]", self._table[name].tolist())

    @override
    def taken(self, rows: Ints) -> Given:
        return _PandasTable(self._table.iloc[rows])

    @override
    def extended(self, columns: pl.DataFrame) -> Any:
        import pandas as pd  # noqa: PLC0415 - it is optional

        added = to_pandas(columns.to_arrow())
        added.index = self._table.index
        # Not by assignment: a frame of many columns that were added one by one is slow.
        return pd.concat([self._table, added], axis=1)


class _ArrowTable(Given):
    def __init__(self, table: "pa.Table") -> None:
        self._table = table
        self.names, self.n_rows = table.column_names, table.num_rows

    @override
    def _column(self, name: str) -> pl.Series:
        return _of_arrow(name, self._table.column(name))

    @override
    def _values(self, name: str) -> list[Any]:
        return cast("list[Any]", self._table.column(name).to_pylist())

    @override
    def taken(self, rows: Ints) -> Given:
        return _ArrowTable(self._table.take(rows))

    @override
    def extended(self, columns: pl.DataFrame) -> "pa.Table":
        table = self._table
        added = columns.to_arrow()
        for field, column in zip(added.schema, added.columns, strict=True):
            table = table.append_column(field, column)
        return table

    @override
    def arrow(self) -> "pa.Table":
        return self._table


class _Rows(Given):
    of_objects = True

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = rows
        self.names, self.n_rows = list(dict.fromkeys(chain.from_iterable(rows))), len(rows)

    @override
    def values(self, name: str) -> list[Any]:
        # There cannot be several of one name.
        return self._values(name)

    @override
    def _column(self, name: str) -> pl.Series:
        # As in pandas, a name may be anything.
        return _of_objects(str(name), self._values(name))

    @override
    def _values(self, name: str) -> list[Any]:
        return [row.get(name) for row in self._rows]

    @override
    def taken(self, rows: Ints) -> Given:
        found = _Rows([self._rows[row] for row in rows.tolist()])
        # A column that only other rows have stays, full of nulls.
        found.names = self.names
        return found

    @override
    def extended(self, columns: pl.DataFrame) -> pl.DataFrame:
        return self.polars().hstack(columns) if self.names else columns


class Columns(Given):
    """Columns of Python objects, by name, all of the same length."""

    of_objects = True
    by_entity = True

    def __init__(self, columns: Mapping[str, Sequence[Any]]) -> None:
        self._columns = columns
        self.names, self.n_rows = list(columns), max(map(len, columns.values()), default=0)

    @override
    def values(self, name: str) -> list[Any]:
        # There cannot be several of one name.
        return list(self._columns[name])

    @override
    def _column(self, name: str) -> pl.Series:
        return _of_objects(name, list(self._columns[name]))

    @override
    def _values(self, name: str) -> list[Any]:
        return list(self._columns[name])

    @override
    def taken(self, rows: Ints) -> Given:
        return Columns({name: [values[row] for row in rows.tolist()] for name, values in self._columns.items()})

    @override
    def extended(self, columns: pl.DataFrame) -> pl.DataFrame:
        return self.polars().hstack(columns) if self.names else columns


def read_table(table: Table) -> Given:
    """Return the table as one whose columns can be read. Raises ``RequestError`` for anything that is not a table."""
    if isinstance(table, pl.DataFrame):
        return _PolarsTable(table)
    if isinstance(table, pl.LazyFrame):
        try:
            return _PolarsTable(table.collect())
        except pl.exceptions.PolarsError as error:
            raise RequestError(f"the LazyFrame cannot be collected: {str(error).splitlines()[0]}") from error
    if _is_pandas(table):
        return _PandasTable(table)
    if _is_of(table, "pyarrow") or hasattr(table, "__arrow_c_stream__"):
        return _read_arrow(table)
    if isinstance(table, Sequence) and not isinstance(table, str | bytes):
        for row, one in enumerate(table):
            # That a dict is a mapping takes long to find out.
            if type(one) is not dict and not isinstance(one, Mapping):
                raise RequestError(f"row {row} is {one!r:.80}; each row must be a dict of column name -> value")
        return _Rows(table)
    raise RequestError(
        "a table must be a frame of Polars (also lazy) or pandas, an Arrow table, a DuckDB relation, or a list of dicts, one per "
        "row; this is "
        f"{type(table).__name__}"
    )


class Answer:
    """The rows that were asked with, and a column for each feature.

    ``given``: the rows; ``columns``: the features' columns, row for row.
    """

    given: Given
    columns: pl.DataFrame

    def to_df(self) -> Any:
        """Return the table that came in, with the features after its own columns, which stay as they came.

        A pandas frame keeps its index; the features have nullable types there (``Int64``, ``Float64``, ``boolean``,
        ``string``), decimals, lists and maps have Arrow types. A list of dicts becomes a Polars frame, and what DuckDB
        gave becomes an Arrow table.
        """
        return self.given.extended(self.columns)

    def to_polars(self) -> pl.DataFrame:
        """Return a Polars frame; raises ``RequestError`` for a column of the table that Polars cannot hold."""
        return self.frame

    @needed("an Arrow table", "pyarrow")
    def to_arrow(self) -> "pa.Table":
        """Return a ``pyarrow.Table``."""
        return _ArrowTable(self.given.arrow()).extended(self.columns)

    @needed("a pandas frame", "pandas", "pyarrow", extra="pandas")
    def to_pandas(self) -> Any:
        """Return a pandas frame: ``to_df()`` if a pandas frame came in, else one with nullable or Arrow types.

        Columns of Python objects stay what they are.
        """
        if isinstance(self.given, _PandasTable):
            return self.to_df()
        if isinstance(self.given, _ArrowTable):
            return to_pandas(self.to_arrow())
        import pandas as pd  # noqa: PLC0415 - it is optional

        objects = _of_python(self.frame)
        found = to_pandas(self.frame.drop(objects).to_arrow())
        for name in objects:
            found.insert(self.frame.get_column_index(name), name, pd.Series(self.frame[name].to_list(), dtype=object))
        return found

    def to_dict(self) -> dict[str, list[Any]]:
        """Return column name -> values, the table's own columns first."""
        return {name: self.given.values(name) for name in self.given.names} | self.columns.to_dict(as_series=False)

    @cached_property
    def frame(self) -> pl.DataFrame:
        """The answer as a Polars frame."""
        own = self.given.polars()
        return own.hstack(self.columns) if own.width else self.columns


@needed("a pandas frame", "pandas", "pyarrow", extra="pandas")
def to_pandas(table: "pa.Table") -> Any:
    """Return an Arrow table as a pandas frame in which no null changes a type or a value."""
    import pandas as pd  # noqa: PLC0415 - it is optional
    import pyarrow as pa  # noqa: PLC0415 - it is optional

    nullable = {pa.int64(): pd.Int64Dtype(), pa.float64(): pd.Float64Dtype(), pa.bool_(): pd.BooleanDtype()}
    texts = {pa.string(), pa.large_string(), pa.string_view()}

    def dtype_of(kind: "pa.DataType") -> Any:
        if kind in nullable:
            return nullable[kind]
        if kind in texts:
            return pd.StringDtype()
        # pandas has its own type of instants, with a null; all else would become objects or floats.
        return None if pa.types.is_timestamp(kind) else pd.ArrowDtype(kind)

    return table.to_pandas(types_mapper=dtype_of)


def key_column(column: pl.Series, kind: KeyType) -> pl.Series:
    """Return a key column in its entity's type; it is converted only if nothing is lost: 1.0 is the integer key 1.

    Nulls stay, and NaN is one. Raises ``RequestError`` for a value that does not convert.
    """
    dtype = Type(kind).polars
    if column.dtype == dtype:
        return column
    if column.dtype.is_float():
        column = column.fill_nan(None)
    if column.null_count() == len(column):
        return pl.Series(column.name, [None] * len(column), dtype)
    unlike = _is_unlike(column, kind)
    converted = column
    if not unlike.any():
        try:
            converted = column.cast(dtype, strict=False)
            unlike = ~converted.cast(column.dtype, strict=False).eq_missing(column)
        except pl.exceptions.PolarsError:
            unlike = column.is_not_null()
    if unlike.any():
        row = int(unlike.arg_max() or 0)
        raise RequestError(
            f"{column.name!r} is {kind}, and {column.slice(row, 1).to_list()[0]!r:.80} of row {row} ({column.dtype}) cannot be converted to that "
            f"without loss; convert the column to {kind} yourself, from where its values are still exact"
        )
    return converted


def _is_unlike(column: pl.Series, kind: KeyType) -> pl.Series:
    """Return which values are not keys of this kind, whatever they convert to."""
    dtype = column.dtype
    if kind == STRING.scalar:
        # A float, a day or a boolean has several texts, and none of them need be the one in the topic.
        may_be = dtype.is_integer() or dtype == pl.Binary() or isinstance(dtype, pl.Categorical | pl.Enum)
    else:
        may_be = dtype.is_numeric() or dtype == pl.String()
    if not may_be:
        return column.is_not_null()
    if dtype.is_float():
        return column.is_not_null() & (column.abs() > LARGEST_EXACT_FLOAT)
    return pl.repeat(value=False, n=len(column), eager=True)


def _read_arrow(table: Any) -> Given:
    with needed(f"a table of type {type(table).__name__}", "pyarrow"):
        import pyarrow as pa  # noqa: PLC0415 - it is optional

    if isinstance(table, pa.RecordBatch):
        return _ArrowTable(pa.Table.from_batches([table]))
    try:
        return _ArrowTable(pa.table(table))
    except (pa.ArrowException, TypeError) as error:
        raise RequestError(f"a table must have columns; this {type(table).__name__} has not ({error})") from error


def _of_arrow(name: str, column: "pa.ChunkedArray") -> pl.Series:
    import pyarrow as pa  # noqa: PLC0415 - it is optional

    kind = column.type
    if pa.types.is_timestamp(kind):
        # Polars reads seconds as milliseconds, which may wrap, and knows the names of zones, but no offsets.
        unit = "ms" if kind.unit == "s" else kind.unit
        column = column.cast(pa.timestamp(unit, "UTC" if re.fullmatch(_FIXED_OFFSET, kind.tz or "") else kind.tz))
    return pl.Series(name, column)


def _of_objects(name: str, values: list[Any]) -> pl.Series:
    """Return a column of Python objects; None, NaT, and NaN among objects that are not numbers, are nulls."""
    kinds: set[type] = {type(value) for value in values}
    if any(issubclass(kind, dt.datetime) and kind.__name__ not in _PANDAS_NULLS for kind in kinds):
        instants = [None if _is_null(value) else _instant_us(name, row, value) for row, value in enumerate(values)]
        return pl.Series(name, instants, pl.Int64).cast(TIMESTAMP)
    if any(kind.__name__ in _PANDAS_NULLS for kind in kinds) or not all(issubclass(kind, _NUMBERS) for kind in kinds):
        values = [None if _is_null(value) else value for value in values]
    elif any(issubclass(kind, float | np.floating) for kind in kinds) and bool not in kinds:
        for row, value in enumerate(values):
            if isinstance(value, int | np.integer) and abs(int(value)) > LARGEST_EXACT_FLOAT:
                raise RequestError(f"{name!r} has floats, and {value} of row {row} is not exact as a float")
        return pl.Series(name, values, pl.Float64, strict=False)
    try:
        return _of_one_type(name, values)
    except (*_NO_COLUMN, PanicException) as error:
        # The first row with which the rows up to it make no column.
        row = bisect.bisect_left(range(1, len(values)), True, key=lambda n: not _are_of_one_type(values[:n]))
        raise RequestError(
            f"the values of {name!r} do not make a column of one type: {values[row]!r:.80} of row {row} does not fit; "
            f"{_remedy(values[row])}"
        ) from error


def _remedy(value: object) -> str:
    """Return what to do about a value that fits no column of the values before it."""
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        return "text must be valid Unicode"
    if isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
        return "a whole number has at most 128 bits; give it as text"
    return "convert the values to one type yourself, for example all to text"


def _of_python(frame: pl.DataFrame) -> list[str]:
    """Return the columns that hold Python objects: outside of this process they would be addresses of its memory."""
    return [name for name, dtype in frame.schema.items() if _holds_objects(dtype)]


def _holds_objects(dtype: pl.DataType) -> bool:
    if isinstance(dtype, pl.List | pl.Array):
        return _holds_objects(cast("pl.DataType", dtype.inner))
    if isinstance(dtype, pl.Struct):
        return any(_holds_objects(cast("pl.DataType", field.dtype)) for field in dtype.fields)
    return dtype == pl.Object()


def _of_one_type(name: str, values: list[Any]) -> pl.Series:
    kinds = {type(value) for value in values} - {type(None)}
    if kinds & {bool, np.bool_} and len(kinds) > 1:
        # Polars would read True beside numbers as 1.
        raise TypeError("booleans beside other values")
    return pl.Series(name, values)


def _are_of_one_type(values: list[Any]) -> bool:
    try:
        _of_one_type("", values)
    except (*_NO_COLUMN, PanicException):
        return False
    return True


_FIXED_OFFSET = r"[+-][0-9]{2}:[0-9]{2}"
_PANDAS_NULLS = {"NaTType", "NAType"}
_LARGEST_INTEGER = 2**127 - 1
_NUMBERS = (int, float, np.number, type(None))


def _is_null(value: object) -> bool:
    return value is None or type(value).__name__ in _PANDAS_NULLS or (isinstance(value, float) and math.isnan(value))


def _instant_us(name: str, row: int, value: object) -> int:
    if not isinstance(value, dt.datetime):
        raise RequestError(f"{name!r} has instants, and {value!r:.80} of row {row} is not one")
    return instant_us(value)


def _is_pandas(table: Table) -> bool:
    """Return true for a pandas frame; pandas need not be installed."""
    return _is_of(table, "pandas") and hasattr(table, "columns")


def _is_of(table: Table, package: str) -> bool:
    """Return whether a package that need not be installed has made this table."""
    return type(table).__module__.partition(".")[0] == package
