"""Evaluation of the recount's texts: DuckDB evaluates SQL, Polars evaluates Polars expressions."""

import weakref
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import polars as pl

from unskew.features.definitions.sql_text import check_sql
from unskew.features.errors import DefinitionError
from unskew.features.extras import needed
from unskew.features.plan import DerivedPlan, FilterPlan, ValuePlan
from unskew.features.types import BOOL, ScalarName, Type
from unskew.monitoring.recount_sql import Untranslated, alias, prepare, translated

Text = FilterPlan | ValuePlan | DerivedPlan

_SQL_TYPES: Mapping[ScalarName, str] = {
    "int64": "BIGINT",
    "float64": "DOUBLE",
    "bool": "BOOLEAN",
    "string": "VARCHAR",
    "timestamp": "TIMESTAMPTZ",
}


class Texts:
    """Evaluates filters, values and derived features.

    ``engines``: the engine of each text, ``duckdb``, ``polars``. ``dependent``: the texts that only the pipeline's own
    engine evaluates, each with the reason. ``failed``: the rows of the frames given since it was last emptied on which
    a text has no value, because a number is out of its type's range; such a row reads as null.
    """

    def __init__(self) -> None:
        self.engines: dict[str, str] = {}
        self.dependent: dict[str, str] = {}
        self.failed: set[int] = set()
        self._sql: dict[int, bool] = {}

    def passes(self, condition: FilterPlan, events: pl.DataFrame) -> pl.Series:
        """Return whether the condition is true, row by row; never null."""
        return self._evaluate(condition, BOOL, events).fill_null(value=False)

    def value(self, plan: ValuePlan | DerivedPlan, events: pl.DataFrame) -> pl.Series:
        """Return the value, row by row, with the type of the plan."""
        read = self._evaluate(plan, plan.dtype, events)
        # -0.0 reads as 0.0. Adding 0.0 would not help, because Polars removes that as a no-op.
        zero = plan.dtype.scalar == "float64" and isinstance(plan, ValuePlan)
        return read.set(read == 0.0, 0.0) if zero else read

    def _evaluate(self, plan: Text, dtype: Type, events: pl.DataFrame) -> pl.Series:
        events = events.with_columns(
            pl.col(name).cast(kind)
            for name in set(plan.expr.meta.root_names())
            if (kind := _widened(events.schema[name])) is not None
        )
        if id(plan) not in self._sql:
            self._sql[id(plan)] = _is_sql(plan)
        why = "it is a Polars expression"
        if self._sql[id(plan)]:
            try:
                answer = self._duckdb(plan, dtype, events)
            except Untranslated as reason:
                why = str(reason)
            else:
                self.engines[plan.text] = "duckdb"
                return answer.cast(dtype.polars)
        self.engines[plan.text] = "polars"
        self.dependent[plan.text] = why
        read = _polars(plan, dtype, events.with_row_index("_row"))
        self.failed |= set(read["_row"].filter(read["fails"]))
        return read["x"]

    @cached_property
    def _connection(self) -> Any:
        with needed("the recount of SQL text"):
            import duckdb  # noqa: PLC0415  an optional dependency, needed only for SQL
        connection = duckdb.connect()
        prepare(connection)
        # Without this, DuckDB complains of leaks at the end of the process.
        weakref.finalize(self, connection.close)
        return connection

    def _duckdb(self, plan: Text, dtype: Type, events: pl.DataFrame) -> pl.Series:
        """Return one expression over all events, in their order.

        Raises ``Untranslated`` if DuckDB's SQL does not have it.
        """
        names = sorted(set(plan.expr.meta.root_names()))
        widened = events.select(pl.int_range(pl.len()).alias("_row"), *names)
        text = translated(plan.text, {name: widened.schema[name] for name in names})
        as_type = f"DECIMAL(38,{dtype.scale})" if dtype.is_decimal else _SQL_TYPES[dtype.scalar]
        frame = widened.rename({name: alias(number) for number, name in enumerate(names)})
        answer = self._asked(f"CAST(({text}) AS {as_type})", frame)
        if answer is not None:
            return answer
        # Some row has no value. TRY makes a null of it, and which of the nulls are such rows is found by halving.
        answer = self._asked(f"TRY(CAST(({text}) AS {as_type}))", frame)
        assert answer is not None
        self.failed |= self._failing(f"CAST(({text}) AS {as_type})", frame.filter(answer.is_null()))
        return answer

    def _failing(self, expression: str, frame: pl.DataFrame) -> set[int]:
        if self._asked(expression, frame) is not None:
            return set()
        if len(frame) == 1:
            return {int(frame["_row"][0])}
        half = len(frame) // 2
        return self._failing(expression, frame[:half]) | self._failing(expression, frame[half:])

    def _asked(self, expression: str, frame: pl.DataFrame) -> pl.Series | None:
        """Return the values of an expression; None if some row has none. Raises ``Untranslated``."""
        connection = self._connection
        import duckdb  # noqa: PLC0415  installed, because the connection exists

        connection.register("frame", frame.to_arrow())
        try:
            # The text comes from the author's own definition, which the pipeline has compiled and run.
            answer: pl.DataFrame = connection.sql(f"SELECT {expression} AS x FROM frame ORDER BY _row").pl()  # noqa: S608
        except (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException) as error:
            raise Untranslated(f"DuckDB cannot read it: {str(error).partition(chr(10))[0]}") from error
        except (duckdb.OutOfRangeException, duckdb.ConversionException, duckdb.InvalidInputException):
            return None
        finally:
            connection.unregister("frame")
        return answer["x"]


def _polars(plan: Text, dtype: Type, frame: pl.DataFrame) -> pl.DataFrame:
    """Evaluate the compiled expression of a text that is not translated: ``_row``, ``x``, and where it ``fails``."""
    fails = pl.lit(value=False) if (found := getattr(plan, "fails", None)) is None else found
    try:
        return frame.select("_row", x=pl.when(~fails).then(plan.expr.cast(dtype.polars)), fails=fails)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        if frame.height <= 1:
            return frame.select("_row", x=pl.lit(None, dtype.polars), fails=pl.lit(value=True))
        half = frame.height // 2
        return pl.concat([_polars(plan, dtype, frame[:half]), _polars(plan, dtype, frame[half:])])


def _widened(kind: pl.DataType) -> pl.DataType | None:
    """Return the type in which definitions see a column; None if it is its own."""
    if kind.is_integer():
        return None if kind == pl.Int64() else pl.Int64()
    return pl.Float64() if kind == pl.Float32() else None


def _is_sql(plan: Text) -> bool:
    """Return whether the author wrote the text as SQL; otherwise it is the rendering of a Polars expression.

    DuckDB, which opens files and sends requests where a query says so, reads only what passes the check of SQL text.
    """
    try:
        check_sql(plan.text)
    except DefinitionError:
        return False
    return True
