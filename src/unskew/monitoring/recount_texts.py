"""Evaluation of the recount's texts: DuckDB evaluates SQL, Polars evaluates Polars expressions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import polars as pl

from unskew.features.definitions.sql_text import Token, check_sql, tokens_of
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


_WHOLE = "bigint int int1 int2 int4 int8 integer smallint tinyint ubigint uinteger usmallint utinyint"
_WIDER = {**dict.fromkeys(_WHOLE.split(), "BIGINT"), **dict.fromkeys(["real", "float4"], "DOUBLE")}
_FLOATS = frozenset({"double", "float", "float4", "float8", "real"})
# Functions that mean something else in DuckDB (ROUND of halves, LOG's order, POSITION of null, the sign of NaN), or
# that it rounds differently in the last bit. So DuckDB lacks what the text says.
_OTHERWISE = frozenset({"cbrt", "log", "log10", "log1p", "log2", "position", "round", "sign", "strpos"})
_ARITHMETIC = frozenset({"+", "-", "*", "/", "%", "//", "&", "|"})


@dataclass(frozen=True)
class Read:
    """What a text gives, row by row.

    ``fails``: true for a row on which it has no exact result; its value means nothing.
    """

    values: pl.Series
    fails: pl.Series


class Texts:
    """Evaluates filters, values and derived features; ``engines``: the engine of each text, ``duckdb``, ``polars``.

    Polars takes the place of DuckDB for words that DuckDB lacks, and never because of a value: a row on which DuckDB
    fails (a whole number leaves 64 bits, a division by zero) is one on which the text fails.
    """

    def __init__(self) -> None:
        self.engines: dict[str, str] = {}
        self._sql: dict[int, bool] = {}

    def passes(self, condition: FilterPlan, events: pl.DataFrame) -> Read:
        """Return whether the condition is true, row by row; never null."""
        read = self._evaluate(condition, BOOL, events)
        return Read(read.values.fill_null(value=False), read.fails)

    def value(self, plan: ValuePlan | DerivedPlan, events: pl.DataFrame) -> Read:
        """Return the value, row by row, with the type of the plan."""
        read = self._evaluate(plan, plan.dtype, events)
        # -0.0 reads as 0.0. Adding 0.0 would not help, because Polars removes that as a no-op.
        zero = plan.dtype.scalar == "float64" and isinstance(plan, ValuePlan)
        return Read(read.values.set(read.values == 0.0, 0.0), read.fails) if zero else read

    def _evaluate(self, plan: Text, dtype: Type, events: pl.DataFrame) -> Read:
        names = sorted(set(plan.expr.meta.root_names()))
        wide = {name: _wide(events.schema[name]) for name in names}
        frame = events.select(pl.col(name).cast(wide[name]) for name in names)
        if id(plan) not in self._sql:
            self._sql[id(plan)] = _is_sql(plan)
        if self._sql[id(plan)]:
            answer = self._duckdb(plan, dtype, frame)
            if answer is not None:
                self.engines[plan.text] = "duckdb"
                return Read(answer.values.cast(dtype.polars), answer.fails)
        self.engines[plan.text] = "polars"
        return _polars(plan, dtype, frame)

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

    def _duckdb(self, plan: Text, dtype: Type, frame: pl.DataFrame) -> Read | None:
        """Return one expression over all events, in their order; None if DuckDB's SQL does not support it."""
        import duckdb  # noqa: PLC0415  checked by _connection

        kind = f"DECIMAL(38,{dtype.scale})" if dtype.is_decimal else _SQL_TYPES[dtype.scalar]
        try:
            text = _for_duckdb(tokens_of(plan.text), lambda inner: self._type_of(inner, frame))
            empty = self._answer(text, kind, frame.clear())
        except duckdb.Error:
            return None
        return self._in_halves(text, kind, frame) if frame.height else Read(empty, pl.Series([], dtype=pl.Boolean))

    def _in_halves(self, text: str, kind: str, frame: pl.DataFrame) -> Read:
        import duckdb  # noqa: PLC0415

        try:
            return Read(self._answer(text, kind, frame), pl.repeat(value=False, n=frame.height, eager=True))
        except duckdb.Error:
            if frame.height == 1:
                return Read(self._answer("NULL", kind, frame), pl.Series([True]))
            half = frame.height // 2
            first, second = (self._in_halves(text, kind, part) for part in (frame[:half], frame[half:]))
            return Read(pl.concat([first.values, second.values]), pl.concat([first.fails, second.fails]))

    def _answer(self, text: str, kind: str, frame: pl.DataFrame) -> pl.Series:
        # The text comes from the author's own definition, and _is_sql has checked it.
        query = f"SELECT CAST(({text}) AS {kind}) AS x FROM frame ORDER BY _row"  # noqa: S608
        answer: pl.DataFrame = self._query(query, frame)
        return answer["x"]

    def _type_of(self, text: str, frame: pl.DataFrame) -> str:
        found = self._query(f"DESCRIBE SELECT ({text}) AS x FROM frame", frame.clear())  # noqa: S608
        return str(found["column_type"].item())

    def _query(self, query: str, frame: pl.DataFrame) -> pl.DataFrame:
        connection = self._connection
        connection.register("frame", frame.with_row_index("_row").to_arrow())
        try:
            return connection.sql(query).pl()  # type: ignore[no-any-return]
        finally:
            connection.unregister("frame")


def _polars(plan: Text, dtype: Type, frame: pl.DataFrame) -> Read:
    """Evaluate the compiled expression of a text that is not SQL, or that has words which DuckDB lacks."""
    fails = getattr(plan, "fails", None)
    try:
        found = frame.select(x=plan.expr, fails=pl.lit(value=False) if fails is None else fails)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        if frame.height <= 1:
            return Read(pl.Series([None] * frame.height, dtype=dtype.polars), pl.Series([True] * frame.height))
        half = frame.height // 2
        first, second = _polars(plan, dtype, frame[:half]), _polars(plan, dtype, frame[half:])
        return Read(pl.concat([first.values, second.values]), pl.concat([first.fails, second.fails]))
    return Read(found["x"].cast(dtype.polars), found["fails"])


def _wide(dtype: pl.DataType) -> pl.DataType:
    """Return the type in which a definition sees a column: whole numbers of 64 bits, and floats of 64 bits."""
    return pl.Int64() if dtype.is_integer() else pl.Float64() if dtype.is_float() else dtype


def _is_sql(plan: Text) -> bool:
    """Return whether the text is SQL that DuckDB can mean; otherwise it may be the rendering of a Polars expression.

    DuckDB, which opens files and sends requests where a query says so, reads only what passes the check of SQL text.
    """
    try:
        check_sql(plan.text)
    except DefinitionError:
        return False
    tokens = tokens_of(plan.text)
    return not any(token.word in _OTHERWISE and after.text == "(" for token, after in pairwise(tokens))


def _for_duckdb(tokens: Sequence[Token], type_of: Callable[[str], str]) -> str:
    """Return the text with the meaning that definitions have, where DuckDB would give it another.

    1.5 is a float, not a decimal. Whole numbers have 64 bits, also literals and results of casts to smaller types. A
    cast of a float to a whole number cuts its fraction off. ``type_of`` returns DuckDB's type of a text.
    """
    parts: list[str] = []
    # The parts before which the casts that are open begin; None for other parentheses.
    begun: list[int | None] = []
    for at, token in enumerate(tokens):
        before, after = tokens[at - 1] if at else None, tokens[at + 1] if at + 1 < len(tokens) else None
        if token.kind == "number":
            parts.append(_number(token.text, before, after))
        elif token.text.startswith("`"):
            parts.append(f'"{token.text[1:-1]}"')
        elif token.text == "(":
            is_cast = before is not None and before.word in {"cast", "try_cast"}
            begun.append(len(parts) - 1 if is_cast else None)
            parts.append("(")
        elif token.text == ")" and begun and (start := begun.pop()) is not None:
            parts[start:] = [_cast(parts[start:], type_of)]
        elif token.kind == "word" and before is not None and before.text == "::" and token.word in _WIDER:
            parts.append(f"{token.text}::{_WIDER[token.word]}")
        else:
            parts.append(token.text)
    return " ".join(parts)


def _number(text: str, before: Token | None, after: Token | None) -> str:
    if not text.isdigit():
        return text if "e" in text.lower() else f"{text}e0"
    beside = any(one is not None and one.text in _ARITHMETIC for one in (before, after))
    chosen = before is not None and before.word in {"then", "else"}
    return f"CAST({text} AS BIGINT)" if (beside or chosen) and int(text) < 2**63 else text


def _cast(parts: list[str], type_of: Callable[[str], str]) -> str:
    """Return a cast, of which the last parenthesis is missing, with its result in 64 bits."""
    at = len(parts) - 1 - [part.lower() for part in reversed(parts)].index("as")
    word, inner, target = parts[0], " ".join(parts[2:at]), parts[at + 1 :]
    wider = _WIDER.get(target[0].lower()) if len(target) == 1 else None
    if (wider == "BIGINT" or target[0].lower() in _FLOATS) and not inner.startswith("'"):
        given = type_of(inner)
        if wider == "BIGINT" and given.startswith(("DOUBLE", "FLOAT", "DECIMAL")):
            inner = f"trunc({inner})"
        elif given == "VARCHAR":
            # DuckDB also reads spaces, underscores, fractions and exponents.
            form = "[+-]?[0-9]+" if wider == "BIGINT" else "[^ _\t\n\r]*"
            inner = f"CASE WHEN regexp_full_match({inner}, '{form}') THEN {inner} END"
    whole = f"{word}({inner} AS {' '.join(target)})"
    return f"CAST({whole} AS {wider})" if wider else whole
