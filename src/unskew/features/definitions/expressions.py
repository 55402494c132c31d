"""Filters and values: SQL text or Polars expressions, proved to work row by row before anything runs.

A result that depended on the other rows of a batch, or on the moment of evaluation, would differ between streaming and
history. So every node of an expression is checked against a list of what is known to work row by row. Then the
expression is tried: a small frame evaluated whole, reversed and one row at a time must give the same results.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import polars as pl

from unskew.features.definitions.agg import Expression
from unskew.features.definitions.exact import any_fails, exact, holds_bytes, result_type, wide
from unskew.features.definitions.sql_text import canonical_sql, check_sql
from unskew.features.definitions.text_size import check_text_size
from unskew.features.definitions.trees import (
    POLARS_ERRORS,
    children_of,
    expression_of,
    function_of,
    kind_of,
    nodes_of,
    tree_of,
)
from unskew.features.errors import DefinitionError
from unskew.features.nearest import nearest

# Functions of one row, by their names in Polars' serialized form. Anything not listed is refused: a function that
# Polars adds later is unknown here until someone has looked at it.
ROW_FUNCTIONS = frozenset(
    f"{space}{name}"
    for space, names in {
        "": "Abs Atan2 Ceil Clip Coalesce Exp FillNull Floor Log Log1p MaxHorizontal MeanHorizontal MinHorizontal Negate Replace "
        "ReplaceStrict Round RoundSF Sign SumHorizontal Truncate",
        "BinaryExpr.": "Contains EndsWith HexEncode Size StartsWith",
        "Bitwise.": "And CountOnes CountZeros LeadingOnes LeadingZeros Or TrailingOnes TrailingZeros Xor",
        "Boolean.": "AllHorizontal AnyHorizontal IsBetween IsClose IsFinite IsIn IsInfinite IsNan IsNotNan IsNotNull IsNull Not",
        "ListExpr.": "Get Length",
        "Pow.": "Cbrt Generic Sqrt",
        "Sql.": "Binary IsIn Round ToFloat",
        "StringExpr.": "Base64Encode ConcatHorizontal Contains ContainsAny CountMatches EndsWith EscapeRegex Extract ExtractAll Find Format Head "
        "HexEncode LenBytes LenChars Lowercase "
        "Normalize PadEnd PadStart Replace Reverse Slice Split StartsWith StripChars StripCharsEnd StripCharsStart StripPrefix "
        "StripSuffix Strptime Tail Titlecase ToInteger Uppercase ZFill",
        "TemporalExpr.": "BaseUtcOffset Century Combine ConvertTimeZone DSTOffset Date Day DaysInMonth Hour IsLeapYear IsoYear Microsecond Millennium Millisecond "
        "Minute Month MonthEnd MonthStart Nanosecond OffsetBy OrdinalDay Quarter ReplaceTimeZone Round Second Time TimeStamp ToString "
        "TotalDays TotalHours TotalMicroseconds TotalMilliseconds TotalMinutes TotalNanoseconds TotalSeconds Truncate Week "
        "WeekDay Year",
        "Trigonometry.": "ArcCos ArcCosh ArcSin ArcSinh ArcTan ArcTanh Cos Cosh Cot Degrees Radians Sin Sinh Tan Tanh",
    }.items()
    for name in names.split()
)

# Nodes that are refused, as messages name them.
_NODES = {
    "Agg": "an aggregate over rows",
    "AnonymousAgg": "a Python function",
    "AnonymousFunction": "a Python function",
    "Element": "an element of a list",
    "Eval": "an evaluation over a list",
    "Explode": "an explode, which changes the number of rows",
    "Filter": "a filter, which changes the number of rows",
    "Gather": "a gather of other rows",
    "Len": "a count of rows",
    "Over": "a window function over other rows",
    "Rolling": "a rolling window over other rows",
    "Slice": "a slice of the rows",
    "Sort": "a sort of the rows",
    "SortBy": "a sort of the rows",
}

_LONGEST_QUOTE = 300

# Functions whose later inputs may be a whole series, which is read as a set and not row by row.
_SET_FUNCTIONS = frozenset({"Boolean.IsIn", "Sql.IsIn", "Replace", "ReplaceStrict", "StringExpr.ContainsAny"})

# A pattern from a column may be malformed in some record, and would then fail the whole batch.
_PATTERN_FUNCTIONS = frozenset({"Contains", "CountMatches", "Extract", "ExtractAll", "Find", "Replace"})

_FLOATS = re.compile(
    r"""'(?:[^']|'')*'|"(?:[^"]|"")*"|`[^`]*`|--[^\n]*|/\*.*?\*/|(?<![\w.])(?:\d+\.\d*|\.\d+)(?![\w.])""", re.DOTALL
)

_CASTS = (
    "Int8",
    "Int16",
    "Int32",
    "Int64",
    "UInt8",
    "UInt16",
    "UInt32",
    "UInt64",
    "Float32",
    "Float64",
    "Boolean",
    "String",
)
_CAST_TARGETS = frozenset({*_CASTS, "Date", "Time"})
_CAST_FAMILIES = frozenset({"Datetime", "Duration", "Decimal"})


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A row-by-row expression: canonical ``text``, which is equal on every machine, and the ``dtype`` of its result.

    ``fails``: true, and never null, for a record on which it has no exact result; None if there can be none.
    """

    text: str
    expr: pl.Expr
    dtype: pl.DataType
    fails: pl.Expr | None = None


def check_expression(
    source: Expression,
    columns: Mapping[str, pl.DataType],
    lacks: str = "the stream has no column",
    unread: Mapping[str, str] | None = None,
    barred: Mapping[str, str] | None = None,
) -> Checked:
    """Parse an expression over ``columns`` and prove that it works row by row.

    ``lacks``: the words of a message before the name of an unknown column. ``unread``: fields that have no column, with
    their types. ``barred``: half a sentence for each name that is known and cannot be read here.

    Raises ``DefinitionError`` with half a sentence that says what is wrong and what to do: an unknown column, types
    that do not fit, a result that would depend on other rows or on a clock, a conversion that could fail on some
    record.
    """
    if isinstance(source, str):
        text = canonical_sql(source)
        expr = parse_sql(text)
    elif isinstance(source, pl.Expr):
        expr = source
        text = ""
    else:
        raise DefinitionError(f"{source!r} is not an expression; write SQL text or a Polars expression")
    tree = tree_of(expr)
    reasons = {name: without_column(name, kind) for name, kind in (unread or {}).items()}
    _check_columns(tree, columns, lacks, {**reasons, **(barred or {})})
    wider = {name: wide(dtype) for name, dtype in columns.items()}
    for node in nodes_of(tree):
        _check_node(node, wider)
    check_text_size(tree)
    found = exact(tree, columns)
    dtype = result_type(found.tree, wider)
    fails = any_fails(found)
    # A column alone is its own result.
    if kind_of(found.tree) != "Column":
        _try_out(found.expr, wider, dtype)
    if fails is not None:
        _try_out(fails, wider, pl.Boolean())
    return Checked(text=text or canonical_polars(tree), expr=found.expr, dtype=dtype, fails=fails)


def how_to_cast(dtype: pl.DataType, *, to_number: bool = False) -> str:
    """Return what to do with a result of a type that no feature has; ``to_number``: only numbers are taken."""
    if dtype == pl.Binary():
        return "leave it out, because bytes have no other type"
    if dtype in {pl.Date(), pl.Time(), pl.Datetime("us")} and not to_number:
        return "write CAST(... AS VARCHAR)"
    return "write TRY_CAST(... AS DOUBLE)"


def canonical_polars(tree: Any) -> str:
    """Return a Polars expression as JSON with sorted keys and readable lists of literals, without its outer name."""
    while isinstance(tree, dict) and "Alias" in tree:
        tree = tree["Alias"][0]
    return json.dumps(_readable(tree), sort_keys=True, separators=(",", ":"))


def parse_sql(text: str) -> pl.Expr:
    """Return the expression of SQL text. Raises ``DefinitionError`` if it is not one, or holds what is refused."""
    check_sql(text)
    return parsed(text)


def parsed(text: str) -> pl.Expr:
    """Return the expression of an SQL text that ``check_sql`` took. Raises ``DefinitionError``."""
    try:
        return pl.sql_expr(_with_floats(text))
    except POLARS_ERRORS as error:
        raise DefinitionError(
            f"Polars cannot read the SQL text {_shortened(text)!r}: {_first_line(error)}; "
            'correct it, and put a column whose name is an SQL keyword in double quotes, for example "end"'
        ) from error


def _with_floats(source: str) -> str:
    """Return SQL text with 1.5 written as 1.5e0.

    People mean a float, but Polars would read 1.5 as a decimal, which truncates the results of divisions.
    """
    return _FLOATS.sub(lambda found: found[0] if found[0][0] in "'\"`-/" else f"{found[0]}e0", source)


def _check_columns(tree: Any, columns: Mapping[str, pl.DataType], lacks: str, reasons: Mapping[str, str]) -> None:
    names = [node["Column"] for node in nodes_of(tree) if kind_of(node) == "Column"]
    if unknown := sorted({name for name in names if name not in columns}):
        raise DefinitionError("; ".join(reasons.get(name) or unknown_column(name, columns, lacks) for name in unknown))
    # An unusual node may hide its columns; it is refused later, with its own message.
    if not names and all(
        kind_of(node) in {"Literal", "Function", "BinaryExpr", "Cast", "Ternary", "Alias"} for node in nodes_of(tree)
    ):
        raise DefinitionError("it reads no column, so its result is always the same; leave it out")


def without_column(name: str, kind: str) -> str:
    """Return half a sentence about a field of a type that has no column."""
    inside = kind in {"record", "object"}
    remedy = f"name what is inside it under the stream's fields: {{'x': '{name}.x'}}" if inside else "leave it out"
    return f"field {name!r} is of type {kind}, which no expression and no aggregation takes; {remedy}"


def unknown_column(name: str, columns: Mapping[str, pl.DataType], lacks: str = "the stream has no column") -> str:
    """Return half a sentence about a column that the stream lacks, with the nearest column or all that it has."""
    return f"{lacks} {name!r}; {nearest(name, columns, 'it has')}"


def _check_node(node: Any, columns: Mapping[str, pl.DataType]) -> None:
    kind = kind_of(node)
    match kind:
        case "Column" | "Alias" | "BinaryExpr" | "Ternary" | "Literal":
            pass
        case "Cast":
            _check_cast(node["Cast"], columns)
        case "Function":
            _check_function(node["Function"])
        case _:
            raise _not_row_by_row(_NODES.get(kind, f"{kind}, which is not known to be row by row"))
    for child in children_of(node):
        # Functions such as IS IN take a series as a set; anywhere else a series changes the number of rows.
        if kind_of(child) == "Literal" and "Series" in child["Literal"] and not _takes_sets(node):
            raise DefinitionError("it contains a series as a literal; a value may depend only on its record")


def _takes_sets(node: Any) -> bool:
    return "Function" in node and function_of(node["Function"]["function"])[0] in _SET_FUNCTIONS


def _not_row_by_row(what: str) -> DefinitionError:
    return DefinitionError(
        f"it contains {what}: the result would depend on the other rows of a batch; "
        "write it row by row, and aggregate with agg over a window"
    )


def _check_function(node: Any) -> None:
    name, options = function_of(node["function"])
    if name == "TemporalExpr.CastTimeUnit":
        raise DefinitionError(
            "it changes a time's unit strictly, so one distant instant would fail its whole batch; "
            'write cast(pl.Datetime("ms", "UTC"), strict=False), which gives null instead'
        )
    if name not in ROW_FUNCTIONS:
        raise _not_row_by_row(f"the function {name}, which is not known to be row by row")
    flags = options[-1] if isinstance(options, list) else options
    strict = isinstance(flags, dict) and flags.get("strict") is True
    if name == "StringExpr.Strptime":
        if not isinstance(flags, dict) or flags.get("format") is None:
            raise DefinitionError(
                "it parses times without a format, which would be guessed from the batch; give the format"
            )
        if strict:
            raise _may_fail("parses times")
    if name == "StringExpr.ToInteger" and strict:
        raise _may_fail("parses integers")
    if name == "ListExpr.Get" and flags is not True:
        raise DefinitionError("it takes an item of a list that may be shorter; give get the option null_on_oob=True")
    if name == "TemporalExpr.ReplaceTimeZone" and options[0] not in (None, {"inner": "UTC"}):
        raise DefinitionError(
            "it gives an instant another time zone, in which some instants are ambiguous or missing; use convert_time_zone"
        )
    if name == "ReplaceStrict" and len(node["input"]) < 4:
        raise DefinitionError("replace_strict fails on a record with any other value; give it a default")
    if (
        name.startswith("StringExpr.")
        and name.partition(".")[2] in _PATTERN_FUNCTIONS
        and kind_of(node["input"][1]) != "Literal"
    ):
        raise DefinitionError(
            "it reads a text pattern from a column, which may be malformed in some record; write the pattern as a literal"
        )
    if name.startswith("StringExpr.") and name.partition(".")[2] in _PATTERN_FUNCTIONS:
        _check_pattern(node["input"][1], flags)


def _check_pattern(node: Any, options: Any) -> None:
    """Refuse a pattern that is not a regular expression. Raises ``DefinitionError`` with all that Polars says of it."""
    if isinstance(options, dict) and options.get("literal"):
        return
    try:
        pl.select(pl.lit("").str.contains(expression_of(node)))
    except POLARS_ERRORS as error:
        said = " ".join(str(error).split("\n\nThis error")[0].split())
        raise DefinitionError(f"its pattern is not a regular expression: {_shortened(said)}; correct it") from error


def _may_fail(what: str) -> DefinitionError:
    return DefinitionError(
        f"it {what} strictly, so one bad record would fail its whole batch; "
        "write TRY_CAST(... AS ...) in SQL or strict=False in Polars, which gives null instead"
    )


def _check_cast(node: Any, columns: Mapping[str, pl.DataType]) -> None:
    target = node["dtype"].get("Literal") if isinstance(node["dtype"], dict) else None
    name = target if isinstance(target, str) else next(iter(target)) if isinstance(target, dict) else str(node["dtype"])
    if name not in _CAST_TARGETS and name not in _CAST_FAMILIES:
        raise DefinitionError(f"it casts to {name}; cast to a number, boolean, string or time type")
    if node["options"] == "NonStrict" or kind_of(node["expr"]) == "Literal":
        return
    source = result_type(node["expr"], columns)
    if not _always_fits(source, name):
        raise _may_fail(f"casts {source} to {name}")


def _always_fits(source: pl.DataType, target: str) -> bool:
    if target == "String" or str(source) == target or source == pl.Null():
        return True
    if source == pl.Boolean():
        return target in _CASTS
    if source.is_integer():
        return target in {"Float32", "Float64", "Boolean"} or (target == "Int64" and source != pl.UInt64())
    if source.is_float() or source.is_decimal():
        return target in {"Float32", "Float64"}
    return source.is_temporal() and target in {"Date", "Time", "Datetime"}


def _try_out(expr: pl.Expr, columns: Mapping[str, pl.DataType], dtype: pl.DataType) -> None:
    """Evaluate a small frame whole, reversed and row by row; raise if these differ, fail, or have another type."""
    names = [name for name in expr.meta.root_names() if name in columns]
    sample = pl.DataFrame({name: _sample(columns[name], turn) for turn, name in enumerate(dict.fromkeys(names))})
    try:
        given = sample.select(expr.alias("result"))["result"].dtype
        whole = _results(expr, sample)
        turned = _results(expr, sample.reverse())[::-1]
        single = [result for row in range(sample.height) for result in _results(expr, sample.slice(row, 1))]
    except POLARS_ERRORS as error:
        raise DefinitionError(
            f"it fails on some values, and would fail their whole batch: {_first_line(error)}; "
            "calculate with CAST(... AS DOUBLE), or exclude such values with CASE WHEN"
        ) from error
    if given != dtype:
        raise DefinitionError(f"its type is {dtype} by Polars' rules but {given} when evaluated; cast it")
    if not whole == turned == single:
        raise _not_row_by_row("something that depends on other rows")


def _results(expr: pl.Expr, frame: pl.DataFrame) -> list[str]:
    # As text, so that NaN equals NaN and -0.0 differs from 0.0.
    return [repr(value) for value in frame.select(expr.alias("result"))["result"].to_list()]


def _sample(dtype: pl.DataType, turn: int) -> pl.Series:
    """Return sample values of a column type: eight, among them null, and then its extremes.

    The eight are rotated by ``turn``, so that no two columns run in step; the extremes of all columns are in step.
    """
    values: list[Any]
    match dtype:
        case pl.Boolean():
            values = [True, False, None, True, True, False, None, False]
        case pl.Float32() | pl.Float64():
            values = [0.0, -1.5, 2.5, None, 1e9, 0.1, 7.0, -0.0]
        case pl.String():
            values = ["a", "", "completed", None, "7", "2017-03-26", "Ä b", "a%b"]
        case pl.Binary():
            values = [b"a", b"", b"\xff", None, b"7", b"bb", b"c", b"d"]
        case pl.Datetime():
            values = [
                datetime(2017, 3, 1 + 3 * day, 23 - day, 59, tzinfo=UTC) if day != 3 else None for day in range(8)
            ]
        case pl.Date():
            values = [date(2017, 3, 1 + 3 * day) if day != 3 else None for day in range(8)]
        case pl.Time():
            values = [time(23 - day, 59, day) if day != 3 else None for day in range(8)]
        case pl.Decimal():
            # The widest that can be aggregated are among them: in Polars, a result of more than 38 digits is an error.
            units = (30, -1, 0, None, 2**63 - 1, 75, -(2**63 - 1), 2)
            values = [None if n is None else Decimal(n).scaleb(-dtype.scale) for n in units]
        case _:
            values = [3, -1, 0, None, 100, 7, 1, 2]
    shift = turn * 3 % len(values)
    return pl.Series(values[shift:] + values[:shift] + _extremes(dtype), dtype=dtype)


def _extremes(dtype: pl.DataType) -> list[Any]:
    """Return the most extreme values that a record may hold; an expression that fails on one would fail its batch."""
    if dtype.is_float():
        greatest = 3e38 if dtype == pl.Float32() else 1e308
        return [greatest, -greatest, math.inf, -math.inf, math.nan]
    if dtype.is_integer():
        least, most = pl.select(dtype.min(), b=dtype.max()).row(0)  # type: ignore[attr-defined]
        return [most, least, most, least, 0]
    if isinstance(dtype, pl.Decimal):
        most_units = Decimal(2**63 - 1).scaleb(-dtype.scale)
        return [most_units, -most_units, most_units, -most_units, Decimal(0)]
    return [None] * 5


def _readable(tree: Any) -> Any:
    if isinstance(tree, dict):
        if "Literal" in tree and holds_bytes(tree["Literal"]):
            series = pl.select(expression_of(tree)).to_series()
            return {"Literal": [str(series.dtype), [str(value) for value in series.to_list()]]}
        return {key: _readable(value) for key, value in tree.items()}
    return [_readable(value) for value in tree] if isinstance(tree, list) else tree


def _first_line(error: BaseException) -> str:
    return _shortened(str(error).strip().partition("\n")[0])


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}..."
