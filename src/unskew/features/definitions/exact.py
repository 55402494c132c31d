"""Whole numbers of 64 bits everywhere in an expression, and a condition for records on which they do not suffice.

Engines keep small types and wrap silently: 100,000 * 100,000 of 32 bits is 1,410,065,408. So every column, literal and
intermediate result that is a whole number is made int64, and every float float64. Where an operation may still leave
int64, a condition is made that is true for exactly these records; they become dead letters. A whole number divided by
zero is null.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Context, Decimal
from functools import reduce
from operator import or_
from typing import Any

import polars as pl

from unskew.features.definitions.trees import (
    POLARS_ERRORS,
    children_of,
    expression_of,
    function_of,
    kind_of,
    with_children,
)
from unskew.features.errors import DefinitionError

LEAST, MOST = -(2**63), 2**63 - 1
Span = tuple[int, int]

_INT64, _FLOAT64 = pl.Int64(), pl.Float64()
_ARITHMETIC = {
    "Plus": "+",
    "Minus": "-",
    "Sql.Binary.Plus": "+",
    "Sql.Binary.Minus": "-",
    "Multiply": "*",
    "Sql.Binary.Mul": "*",
    "FloorDivide": "//",
    "Sql.Binary.IntDiv": "/t",
    "Modulus": "%",
    "Sql.Binary.Rem": "%t",
    "Negate": "negate",
    "Abs": "abs",
}
_DIVISIONS = frozenset({"TrueDivide", "Divide", "FloorDivide", "Modulus", "RustDivide", "Sql.Binary.Div"})
_RATIOS = frozenset({"TrueDivide", "Divide", "Sql.Binary.Div"})
_COMPARISONS = frozenset({"Eq", "NotEq", "Lt", "LtEq", "Gt", "GtEq", "EqValidity", "NotEqValidity"})
_FIRST_OF = frozenset({"Coalesce", "FillNull"})
# Powers above this are certainly beyond int64, and those below it certainly inside.
_MOST_POWER = 9.2233720368547e18
_MOST_EXPONENT = 63
_MICROSECONDS = {"Literal": {"Scalar": {"Int64": 1_000_000}}}
_LONGEST_DIVIDEND = 20_000
_MOST_NANOSECONDS_US = MOST // 1000
_NOT_FINITE = "it contains NaN or an infinity as a literal; use is_nan(), is_infinite() or fill_nan(None)"
_LONG = Context(prec=76)


@dataclass(frozen=True, kw_only=True)
class Exact:
    """A part of an expression.

    ``dtype``: the type of its result. ``span``: the least and the greatest whole number that it may give. ``fails``:
    conditions for records on which it has no exact result, without those that ``steps`` gives. ``reads``: false if it
    reads no column. ``steps``: how whole numbers led to it; None if it is not a result of arithmetic on them.
    """

    tree: Any
    dtype: pl.DataType
    span: Span = (LEAST, MOST)
    fails: tuple[pl.Expr, ...] = field(default=())
    reads: bool = True
    steps: "Steps | None" = None

    @property
    def expr(self) -> pl.Expr:
        return expression_of(self.tree)

    @property
    def conditions(self) -> tuple[pl.Expr, ...]:
        """All conditions for records on which it has no exact result."""
        if self.steps is None or not self.steps.may_fail:
            return self.fails
        return (*self.fails, condition_of(self.steps))


def wide(dtype: pl.DataType) -> pl.DataType:
    """Return the type in which an expression sees values of a type: int64 for whole numbers, float64 for floats."""
    return _INT64 if dtype.is_integer() else _FLOAT64 if dtype.is_float() else dtype


def exact(tree: Any, columns: Mapping[str, pl.DataType]) -> Exact:
    """Return an expression with exact whole numbers. ``columns``: their types before they are widened.

    Raises ``DefinitionError`` with half a sentence if types do not fit, or a constant part has no exact result.
    """
    return _Widening(columns).node(tree)


def result_type(tree: Any, columns: Mapping[str, pl.DataType]) -> pl.DataType:
    """Return the type that Polars gives to the result. Raises ``DefinitionError`` if types do not fit."""
    try:
        return pl.LazyFrame(schema=dict(columns)).select(expression_of(tree).alias("result")).collect_schema()["result"]
    except POLARS_ERRORS as error:
        first, _, _ = str(error).strip().partition("\n")
        raise DefinitionError(f"its types do not fit: {first[:300]}{_hint(first)}") from error


def _hint(reason: str) -> str:
    """Return how an instant is written, if texts are compared with instants, days or times; else nothing."""
    if "to a string value" not in reason and not re.search(r"for (Datetime|Date|Time)\b.*List\(String\)", reason):
        return ""
    return "; write an instant as TIMESTAMP '2026-01-31 12:00:00', a day as DATE '2026-01-31', and a time as TIME '12:00:00'"


class _Widening:
    def __init__(self, columns: Mapping[str, pl.DataType]) -> None:
        self._columns = columns

    def node(self, node: Any) -> Exact:
        kind = kind_of(node)
        if kind == "Column":
            dtype = self._columns[node["Column"]]
            return Exact(tree=node, dtype=wide(dtype), span=_span_of(dtype))
        if kind == "Literal":
            return _literal(node)
        parts = [self.node(child) for child in children_of(node)]
        name, _ = function_of(node["Function"]["function"]) if kind == "Function" else (kind, None)
        if kind == "BinaryExpr":
            name = str(node["BinaryExpr"]["op"])
        elif name == "Sql.Binary":
            name = f"Sql.Binary.{function_of(node['Function']['function'])[1]}"
        found = self._operation(node, name, parts)
        if found.reads or not found.conditions:
            return found
        if pl.select(_any(found.conditions)).item():
            raise DefinitionError("a constant part of it is beyond 64 bits; correct the number")
        return replace(found, fails=(), steps=None)

    def _operation(self, node: Any, name: str, parts: list[Exact]) -> Exact:
        op = _ARITHMETIC.get(name)
        if op is not None and _are_whole(parts):
            return self._arithmetic(node, op, [_as_int64(part) for part in parts])
        fails: list[pl.Expr] = [each for part in parts for each in part.conditions]
        if op in {"+", "-", "*"} and _are_times(parts):
            instants = [Steps.of(replace(part, tree=_tree(_physical(part)), steps=None)) for part in parts]
            fails.append(condition_of(Steps(op, tuple(instants), checked=True)))
        elif name == "Cast" and node["Cast"]["dtype"] == {"Literal": "Float32"} and parts[0].dtype == _FLOAT64:
            fails.append(expression_of(_cast(parts[0].tree, "Float32")).is_infinite() & parts[0].expr.is_finite())
        elif name == "RustDivide" and _is_epoch(parts[0].tree):
            # Nanoseconds since 1970 overflow in 2262, and division must round down, also before 1970.
            node = {"BinaryExpr": {"left": 0, "op": "FloorDivide", "right": 0}}
            micros = with_children(parts[0].tree, children_of(parts[0].tree))
            micros["Function"]["function"] = {"TemporalExpr": {"TimeStamp": "Microseconds"}}
            parts = [replace(parts[0], tree=micros), replace(parts[1], tree=_MICROSECONDS)]
        elif name in _COMPARISONS:
            _check_units(parts)
            parts = _in_one_zone(parts)
        elif name == "Sql.ToFloat" and _is_number(parts[0].dtype):
            return Exact(tree=_cast(parts[0].tree, "Float64"), dtype=_FLOAT64, fails=tuple(fails), reads=parts[0].reads)
        elif name in _RATIOS and parts[1].reads and any(part.dtype.is_decimal() for part in parts):
            parts = [replace(part, tree=_cast(part.tree, "Float64"), dtype=_FLOAT64) for part in parts]
        elif name == "Pow.Generic" and _are_whole(parts):
            parts, failing = _power(*map(_as_int64, parts))
            fails += failing
        elif name == "SumHorizontal" and _are_whole(parts):
            parts = [_as_int64(part) for part in parts]
            total = pl.sum_horizontal([part.expr.cast(pl.Int128) for part in parts])
            fails.append(~total.is_between(LEAST, MOST))
        elif name == "TemporalExpr.TotalNanoseconds" and parts[0].dtype == pl.Duration("us"):
            fails.append(~_physical(parts[0]).is_between(-_MOST_NANOSECONDS_US, _MOST_NANOSECONDS_US))
        elif name == "Ternary":
            fails = _of_ternary(*parts)
        elif name in _FIRST_OF:
            fails = _of_first(parts)
        if name == "Minus" and parts[1].dtype == _FLOAT64 and not parts[0].reads:
            # Polars would negate a column that is taken from a single zero, and -0.0 is not 0.0.
            parts[0] = replace(parts[0], tree=_as_column(parts[0].tree))
        if name in _DIVISIONS and not parts[1].reads:
            parts[1] = replace(parts[1], tree=_as_column(parts[1].tree))
        reads = any(part.reads for part in parts)
        tree = with_children(node, [part.tree for part in parts])
        dtype = self._dtype(node, name, parts)
        return _widened(Exact(tree=tree, dtype=dtype, span=_span_of(dtype), fails=tuple(fails), reads=reads))

    def _arithmetic(self, node: Any, op: str, parts: list[Exact]) -> Exact:
        """Return the result of one operation on int64: ``+ - *``, ``//`` and ``%``, ``negate``, ``abs``."""
        span, may_fail = _outcome(op, [part.span for part in parts])
        steps = Steps(op, tuple(map(Steps.of, parts)), checked=may_fail)
        reads = any(part.reads for part in parts)
        fails = tuple(each for part in parts for each in part.fails)
        if op in {"//", "/t"} and may_fail and _overflows([part.span for part in parts]):
            parts = _without_overflow(*parts)
        if op in {"//", "%"} and not parts[1].reads:
            parts[1] = replace(parts[1], tree=_as_column(parts[1].tree))
        tree = with_children(node, [part.tree for part in parts])
        return Exact(tree=tree, dtype=_INT64, span=span, fails=fails, reads=reads, steps=steps)

    def _dtype(self, node: Any, name: str, parts: Sequence[Exact]) -> pl.DataType:
        if name in _COMPARISONS or (name in {"And", "Or"} and all(part.dtype == pl.Boolean() for part in parts)):
            return pl.Boolean()
        # Of the parts only the types matter, and of literals also the values.
        shells = [part.tree if kind_of(part.tree) == "Literal" else {"Column": str(n)} for n, part in enumerate(parts)]
        return result_type(with_children(node, shells), {str(n): part.dtype for n, part in enumerate(parts)})


def _literal(node: Any) -> Exact:
    content = node["Literal"]
    value = _whole_number(node)
    if value is not None:
        _check_whole(value)
        return Exact(tree=node, dtype=_INT64, span=(value, value), reads=False)
    for scalar in (content.get(form) for form in ("Dyn", "Scalar")) if isinstance(content, dict) else ():
        # JSON has no NaN and no infinity.
        if isinstance(scalar, dict) and {"Float", "Float32", "Float64"} & {k for k, v in scalar.items() if v is None}:
            raise DefinitionError(_NOT_FINITE)
        if isinstance(scalar, dict) and "Decimal" in scalar:
            units, _, scale = scalar["Decimal"]
            if units == LEAST and scale == 0:
                # SQL text has no minus sign inside a number, so the least int64 begins as a number that is too large.
                return _literal({"Literal": {"Scalar": {"Int64": LEAST}}})
            _check_decimal(units, scale)
    if holds_bytes(content):
        _check_items(pl.select(expression_of(node)).to_series())
    return Exact(tree=node, dtype=result_type(node, {}), reads=False)


def holds_bytes(literal: Any) -> bool:
    """Return true if the content of a literal is a series or a list, which Polars serializes as bytes."""
    return isinstance(literal, dict) and ("Series" in literal or "List" in (literal.get("Scalar") or {}))


def _check_items(items: pl.Series) -> None:
    """Refuse a list of numbers if one of them would be refused as a literal."""
    while isinstance(items.dtype, pl.List):
        items = items.explode()
    items = items.drop_nulls()
    if items.dtype.is_float() and not items.is_finite().all():
        raise DefinitionError(_NOT_FINITE)
    if items.dtype.is_integer():
        for value in (items.min(), items.max()) if len(items) else ():
            _check_whole(int(value))  # type: ignore[arg-type]
    if isinstance(items.dtype, pl.Decimal):
        scale = items.dtype.scale
        for value in items.to_list():
            units = int(value.scaleb(scale, _LONG))
            if (units, scale) != (LEAST, 0):
                _check_decimal(units, scale)


def _check_whole(value: int) -> None:
    if not LEAST <= value <= MOST:
        raise DefinitionError(f"the number {str(value)[:40]} is beyond 64 bits; write it as a float, for example 1e20")


def _check_decimal(units: int, scale: int) -> None:
    if scale == 0:
        _check_whole(units)
    if abs(units) > MOST:
        raise DefinitionError(
            f"the decimal {Decimal(units).scaleb(-scale, _LONG)} is beyond 2^63 - 1 units of its last digit; write fewer digits after the "
            "point, or a float"
        )


def _whole_number(node: Any) -> int | None:
    content = node.get("Literal") if isinstance(node, dict) else None
    if not isinstance(content, dict):
        return None
    for form in ("Dyn", "Scalar"):
        scalar = content.get(form)
        if isinstance(scalar, dict) and len(scalar) == 1:
            ((name, value),) = scalar.items()
            if name.lstrip("U").startswith("Int") and isinstance(value, int):
                return value
    return None


def _widened(part: Exact) -> Exact:
    """Return a result as int64 or float64, if it is a smaller or larger number."""
    if part.dtype.is_float():
        tree = part.tree if part.dtype == _FLOAT64 else _cast(part.tree, "Float64")
        return replace(part, tree=tree, dtype=_FLOAT64)
    if not part.dtype.is_integer() or part.dtype == _INT64:
        return part
    found = replace(part, tree=_cast(part.tree, "Int64"), dtype=_INT64)
    if _fits(_span_of(part.dtype)):
        return found
    return replace(found, fails=(*part.fails, found.expr.is_null() & part.expr.is_not_null()), span=(LEAST, MOST))


def _as_int64(part: Exact) -> Exact:
    value = _whole_number(part.tree)
    if value is not None:
        return replace(part, tree={"Literal": {"Scalar": {"Int64": value}}})
    return part if part.dtype == _INT64 else replace(part, tree=_cast(part.tree, "Int64"), dtype=_INT64, span=(0, 1))


@dataclass(frozen=True)
class Steps:
    """Arithmetic on int64, which is followed step by step to find out whether a step leaves int64.

    ``op``: an operation, or empty for what is not arithmetic: ``leaf``, which may be a number. ``checked``: true if the
    step may leave int64.
    """

    op: str
    operands: "tuple[Steps, ...]" = ()
    checked: bool = False
    leaf: "pl.Expr | int | None" = None

    @staticmethod
    def of(part: Exact) -> "Steps":
        if part.steps is not None:
            return part.steps
        value = _whole_number(part.tree)
        return Steps("", leaf=part.expr if value is None else value)

    @property
    def may_fail(self) -> bool:
        return self.checked or any(operand.may_fail for operand in self.operands)


def condition_of(steps: Steps) -> pl.Expr:
    """Return the condition that some step has no exact result.

    It is one function over the leaves: as an expression, every step would be computed again for each step after it.
    """
    leaves: list[pl.Expr] = []
    program = _numbered(steps, leaves)

    def fails(columns: Sequence[pl.Series]) -> pl.Series:
        bad: list[pl.Series] = []
        n_rows = max(map(len, columns), default=1)
        _follow(program, columns, bad)
        found = pl.Series([False]).new_from_index(0, n_rows)
        for each in bad:
            found |= each.fill_null(value=False)
        return found

    return pl.map_batches(leaves or [pl.lit(0)], fails, return_dtype=pl.Boolean, is_elementwise=True)


def _numbered(steps: Steps, leaves: list[pl.Expr]) -> Steps:
    """Return the steps with the numbers of their leaves among ``leaves`` in place of the expressions."""
    if steps.op:
        operands = []
        for operand in steps.operands:
            operands.append(_numbered(operand, leaves))  # noqa: PERF401  one frame for each level
        return replace(steps, operands=tuple(operands))
    if not isinstance(steps.leaf, pl.Expr):
        return steps
    leaves.append(steps.leaf.cast(_INT64))
    return Steps("leaf", leaf=len(leaves) - 1)


def _follow(steps: Steps, columns: Sequence[pl.Series], bad: list[pl.Series]) -> pl.Series:
    """Return the result of the steps, and add where each of them fails to ``bad``."""
    if not steps.operands:
        return columns[steps.leaf] if steps.op else pl.Series([steps.leaf], dtype=_INT64)  # type: ignore[index]
    values = []
    for operand in steps.operands:
        values.append(_follow(operand, columns, bad))  # noqa: PERF401
    left, right = values[0], values[-1]
    match steps.op:
        case "negate" | "abs":
            if steps.checked:
                bad.append(left == LEAST)
            return 0 - left if steps.op == "negate" else left.abs()
        case "*":
            if steps.checked:
                bad.append(~(left.cast(pl.Int128) * right.cast(pl.Int128)).is_between(LEAST, MOST))
            return left * right
        case "+" | "-":
            result = left + right if steps.op == "+" else left - right
            # A sum has left int64 if its sign differs from those of both terms.
            if steps.checked:
                other = right if steps.op == "+" else ~right
                bad.append(((left ^ result) & (other ^ result)) < 0)
            return result
        case _:
            return _divided(steps, left, right, bad)


def _divided(steps: Steps, left: pl.Series, right: pl.Series, bad: list[pl.Series]) -> pl.Series:
    """Return the quotient or the rest, rounded as Polars' expressions do (down) or as its SQL does (``/t``, ``%t``)."""
    n_rows = max(len(left), len(right))
    left, right = (each if len(each) == n_rows else each.new_from_index(0, n_rows) for each in (left, right))
    fails = ((right == -1) & (left == LEAST)).fill_null(value=False)
    if steps.checked:
        bad.append(fails)
    divisor = right.set(fails | (right == 0).fill_null(value=False), None)
    quotient = left // divisor
    if steps.op.endswith("t"):
        rest = left - quotient * divisor
        quotient += ((rest != 0) & ((left < 0) ^ (divisor < 0))).cast(_INT64)
    return left - quotient * divisor if steps.op[0] == "%" else quotient


def _outcome(op: str, spans: list[Span]) -> tuple[Span, bool]:
    """Return what an operation on int64 may give, and whether it may leave int64."""
    (a, b), (c, d) = spans[0], spans[-1]
    match op:
        case "negate":
            span = (-b, -a)
        case "abs":
            span = (0, max(abs(a), abs(b)))
        case "+":
            span = (a + c, b + d)
        case "-":
            span = (a - d, b - c)
        case "*":
            span = (min(a * c, a * d, b * c, b * d), max(a * c, a * d, b * c, b * d))
        case _:
            if c == d == 0:
                raise DefinitionError("it divides by zero; correct the divisor")
            return (LEAST, MOST), _overflows(spans)
    return (span, False) if _fits(span) else ((LEAST, MOST), True)


def _overflows(spans: list[Span]) -> bool:
    """Return true if the least of all numbers may be divided by -1."""
    (least, _), (c, d) = spans
    return least == LEAST and c <= -1 <= d


def _without_overflow(left: Exact, right: Exact) -> list[Exact]:
    """Return operands of a division that gives null where Polars would raise an error, which fails the whole batch."""
    if len(str(left.tree)) > _LONGEST_DIVIDEND:
        raise DefinitionError("it divides the whole number that a long expression gives; cast that to DOUBLE")
    divisor = pl.when(~((right.expr == -1) & (left.expr == LEAST)).fill_null(value=False)).then(right.expr)
    return [left, replace(right, tree=_tree(divisor), reads=True)]


def _power(base: Exact, exponent: Exact) -> tuple[list[Exact], list[pl.Expr]]:
    fails: list[pl.Expr] = []
    least, most = exponent.span
    if most < 0:
        raise DefinitionError("it raises a whole number to a negative power; make one of them a float")
    if least < 0 or most > _MOST_EXPONENT:
        outside = ~exponent.expr.is_between(0, _MOST_EXPONENT)
        fails.append(outside)
        inside = pl.when(~outside).then(exponent.expr)
        exponent = replace(exponent, tree=_tree(inside), span=(0, _MOST_EXPONENT))
    if max(map(abs, base.span)) ** exponent.span[1] > MOST:
        power = base.expr.cast(pl.Float64).pow(exponent.expr.cast(pl.Float64))
        fails.append(power.abs() >= _MOST_POWER)
    return [base, exponent], fails


def _of_ternary(predicate: Exact, truthy: Exact, falsy: Exact) -> list[pl.Expr]:
    if not truthy.conditions and not falsy.conditions:
        return list(predicate.conditions)
    chosen = pl.when(predicate.expr).then(_any(truthy.conditions)).otherwise(_any(falsy.conditions))
    return [*predicate.conditions, chosen]


def _of_first(parts: Sequence[Exact]) -> list[pl.Expr]:
    """Return when the first part that is not null fails, or one before it."""
    fails = list(parts[0].conditions)
    null_so_far = parts[0].expr.is_null()
    for part in parts[1:]:
        if part.conditions:
            fails.append(null_so_far & _any(part.conditions))
        null_so_far &= part.expr.is_null()
    return fails


def _any(fails: Sequence[pl.Expr]) -> pl.Expr:
    return reduce(or_, (each.fill_null(value=False) for each in fails)) if fails else pl.lit(value=False)


def any_fails(part: Exact) -> pl.Expr | None:
    """Return the condition, never null, that a record has no exact result; None if all have one."""
    return _any(part.conditions) if part.conditions else None


def _physical(part: Exact) -> pl.Expr:
    return part.expr if part.dtype == _INT64 else part.expr.to_physical()


def _are_whole(parts: Sequence[Exact]) -> bool:
    known = {_INT64, pl.Boolean()}
    return all(part.dtype in known for part in parts) and any(part.dtype == _INT64 for part in parts)


def _are_times(parts: Sequence[Exact]) -> bool:
    times = {pl.Datetime("us", "UTC"), pl.Datetime("us"), pl.Duration("us")}
    return all(part.dtype in times or part.dtype == _INT64 for part in parts) and any(
        part.dtype in times for part in parts
    )


def _is_epoch(tree: Any) -> bool:
    """Return true if the tree is nanoseconds since 1970, which SQL's EPOCH divides to get seconds."""
    return kind_of(tree) == "Function" and tree["Function"]["function"] == {
        "TemporalExpr": {"TimeStamp": "Nanoseconds"}
    }


def _in_one_zone(parts: list[Exact]) -> list[Exact]:
    """Return the sides of a comparison, an instant without a zone as UTC if the other has one."""
    zones = [part.dtype.time_zone if isinstance(part.dtype, pl.Datetime) else "" for part in parts]
    if sorted(map(str, zones)) != ["None", "UTC"]:
        return parts
    return [
        replace(part, tree=_tree(part.expr.dt.replace_time_zone("UTC")), dtype=pl.Datetime("us", "UTC"))
        if zone is None
        else part
        for part, zone in zip(parts, zones, strict=True)
    ]


def _check_units(parts: list[Exact]) -> None:
    """Refuse a comparison of a duration or an instant with a number, which engines take for microseconds."""
    for one, other in (parts, reversed(parts)):
        if isinstance(one.dtype, pl.Duration | pl.Datetime) and other.dtype.is_numeric():
            what = "a duration" if isinstance(one.dtype, pl.Duration) else "an instant"
            raise DefinitionError(
                f"it compares {what} with a number, which has no unit; compare it with INTERVAL '5 minutes' or TIMESTAMP "
                "'2026-01-31 12:00:00'"
            )


def _is_number(dtype: pl.DataType) -> bool:
    return dtype.is_numeric() or dtype == pl.Boolean()


def _span_of(dtype: pl.DataType) -> Span:
    if not dtype.is_integer():
        return LEAST, MOST
    bits = int("".join(filter(str.isdigit, str(dtype))))
    return (0, 2**bits - 1) if str(dtype).startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _fits(span: Span) -> bool:
    return span[0] >= LEAST and span[1] <= MOST


def _cast(tree: Any, name: str) -> Any:
    return {"Cast": {"expr": tree, "dtype": {"Literal": name}, "options": "NonStrict"}}


def _as_column(tree: Any) -> Any:
    """Return a column of a single value.

    Polars divides a column by a single number by multiplying with its reciprocal, which is rounded: 7 / 5 is then
    1.4000000000000001, but 1.4 if it is the only row of its batch. A value may not depend on that.
    """
    # Polars still treats a repeated number as a single one, but not a number that is added to a range.
    return _tree(pl.int_range(pl.len()) * 0 + expression_of(tree))


def _tree(expr: pl.Expr) -> Any:
    return json.loads(expr.meta.serialize(format="json"))
