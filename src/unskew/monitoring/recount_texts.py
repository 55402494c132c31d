"""Evaluation of the recount's texts: DuckDB evaluates SQL, Polars evaluates Polars expressions."""

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import polars as pl

from unskew.features.definitions.sql_text import check_sql
from unskew.features.errors import DefinitionError, RequestError
from unskew.features.plan import DerivedPlan, FilterPlan, ValuePlan
from unskew.features.types import BOOL, ScalarName, Type

Text = FilterPlan | ValuePlan | DerivedPlan

_SQL_TYPES: Mapping[ScalarName, str] = {
    "int64": "BIGINT",
    "float64": "DOUBLE",
    "bool": "BOOLEAN",
    "string": "VARCHAR",
    "timestamp": "TIMESTAMPTZ",
}


class Texts:
    """Evaluates filters, values and derived features; ``engines``: the engine of each text, ``duckdb``, ``polars``."""

    def __init__(self) -> None:
        self.engines: dict[str, str] = {}
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
        if id(plan) not in self._sql:
            self._sql[id(plan)] = _is_sql(plan)
        if self._sql[id(plan)]:
            answer = self._duckdb(plan, dtype, events)
            if answer is not None:
                self.engines[plan.text] = "duckdb"
                return answer.cast(dtype.polars)
        self.engines[plan.text] = "polars"
        return events.with_columns(_x=plan.expr)["_x"].cast(dtype.polars)

    @cached_property
    def _connection(self) -> Any:
        try:
            import duckdb  # noqa: PLC0415  an optional dependency, needed only for SQL
        except ImportError as error:
            raise RequestError(
                "the recount evaluates SQL text with DuckDB, which is not installed: pip install duckdb pyarrow"
            ) from error
        connection = duckdb.connect()
        connection.execute("SET TimeZone = 'UTC'")
        return connection

    def _duckdb(self, plan: Text, dtype: Type, events: pl.DataFrame) -> pl.Series | None:
        """Return one expression over all events, in their order; None if DuckDB's SQL does not support it."""
        connection = self._connection
        import duckdb  # noqa: PLC0415  installed, because the connection exists

        frame = events.select(pl.int_range(pl.len()).alias("_row"), *sorted(set(plan.expr.meta.root_names())))
        kind = f"DECIMAL(38,{dtype.scale})" if dtype.is_decimal else _SQL_TYPES[dtype.scalar]
        text = _double_literals(plan.text)
        # The text comes from the author's own definition, which the pipeline has compiled and run.
        query = f"SELECT CAST(({text}) AS {kind}) AS x FROM frame ORDER BY _row"  # noqa: S608
        connection.register("frame", frame.to_arrow())
        try:
            answer: pl.DataFrame = connection.sql(query).pl()
        except duckdb.Error:
            return None
        finally:
            connection.unregister("frame")
        return answer["x"]


def _is_sql(plan: Text) -> bool:
    """Return whether the author wrote the text as SQL; otherwise it is the rendering of a Polars expression.

    DuckDB, which opens files and sends requests where a query says so, reads only what passes the check of SQL text.
    """
    try:
        check_sql(plan.text)
    except DefinitionError:
        return False
    return True


def _double_literals(sql: str) -> str:
    """Rewrite 1.5 as 1.5e0 outside quotes: definitions mean a float, and DuckDB would read a decimal."""
    return re.sub(
        r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|(?<![\w.])(?:\d+\.\d*|\.\d+)(?![\w.])""",
        lambda m: m.group() if m.group()[0] in "'\"" else m.group() + "e0",
        sql,
    )
