"""Comparisons with texts that a column never holds, because its schema lists those that it can hold.

That is no fault: a producer may know a value that the schema will have tomorrow. More often it is a slip of the pen,
after which a filter is never true.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from unskew.features.definitions.avro_schema import avro_fields
from unskew.features.definitions.inputs import row_of
from unskew.features.definitions.json_schema import json_fields
from unskew.features.definitions.trees import POLARS_ERRORS, children_of, expression_of, kind_of, nodes_of, tree_of
from unskew.features.nearest import nearest
from unskew.features.plan import Plan, StreamPlan, ViewPlan

_EQUALITIES = frozenset({"Eq", "NotEq", "EqValidity", "NotEqValidity"})

Symbols = Mapping[str, Sequence[str]]


def never_equal(plan: Plan) -> list[str]:
    """Return a sentence for each comparison of a plan's views with a text that the column's enum does not have."""
    found: list[str] = []
    for view in plan.views.values():
        kept = view if view.sessions is None else view.sessions
        symbols = symbols_of(view.stream)
        if symbols:
            place = view.name if view.sessions is None else f"{view.name}: sessions {kept.name}"
            found += _of_view(kept, place, symbols)
    return list(dict.fromkeys(found))


def symbols_of(stream: StreamPlan) -> Symbols:
    """Return the texts that columns of a stream can hold, of those columns whose schema lists them."""
    if stream.format == "json":
        is_row = stream.envelope == "debezium" and stream.schema.get("type") == "record"
        fields: Iterable[Any] = json_fields(row_of(stream.schema) if is_row else stream.schema, stream.paths)
    else:
        fields = avro_fields(stream.schema if stream.flat is None else stream.flat)
    return {field.name: field.symbols for field in fields if field.symbols}


def _of_view(view: ViewPlan, place: str, symbols: Symbols) -> Iterator[str]:
    if view.where is not None:
        yield from _of_expression(view.where.expr, f"{place}: where", symbols)
    for one in view.filters:
        for feature in view.published.features:
            if feature.filter == one.text:
                yield from _of_expression(one.expr, f"{place}.{feature.name}: filter", symbols)
    for value in view.values:
        for feature in view.published.features:
            if value.text in {feature.value, feature.by}:
                yield from _of_expression(value.expr, f"{place}.{feature.name}: value", symbols)


def _of_expression(expr: pl.Expr, place: str, symbols: Symbols) -> Iterator[str]:
    for node in nodes_of(tree_of(expr)):
        if (kind_of(node) == "BinaryExpr" and node["BinaryExpr"]["op"] in _EQUALITIES) or (
            kind_of(node) == "Function" and "IsIn" in str(node["Function"]["function"]) and len(children_of(node)) == 2
        ):
            one, other = children_of(node)
        else:
            continue
        for column, literal in ((one, other), (other, one)):
            if kind_of(column) != "Column" or kind_of(literal) != "Literal" or column["Column"] not in symbols:
                continue
            name = column["Column"]
            for text in _texts(literal):
                if text not in symbols[name]:
                    yield (
                        f"{place}: {name} is compared with {text!r}, which its enum does not have; "
                        f"{nearest(text, symbols[name], 'its values are')}"
                    )


def _texts(literal: Any) -> list[str]:
    """Return the texts of a literal: one, or those of a list."""
    try:
        values = pl.select(expression_of(literal)).to_series()
    except POLARS_ERRORS:
        return []
    if isinstance(values.dtype, pl.List):
        values = values.explode()
    return [value for value in values.to_list() if isinstance(value, str)]
