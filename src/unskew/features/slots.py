"""Features of one view, checked and numbered: equal filters, values and windows share a slot."""

import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import get_args

import polars as pl

from unskew.features.agg import Aggregation, Expression
from unskew.features.definitions import Feature, FeatureView, Window
from unskew.features.errors import DefinitionError
from unskew.features.expressions import check_expression
from unskew.features.plan import (
    POLARS_TYPES,
    AggregationName,
    FeaturePlan,
    FilterPlan,
    Scalar,
    ValuePlan,
    ValueType,
    WindowPlan,
)
from unskew.features.windows import plan_window

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Give the nearest known name as a question, or all of them."""
    known = list(known)
    if near := get_close_matches(name, known, n=1):
        return f"did you mean {near[0]!r}?"
    return f"known are {', '.join(sorted(known))}" if known else "none is defined"


def text_faults(place: str, definition: FeatureView | Feature) -> list[str]:
    """Faults of what is only shown: it must be text."""
    words = {word: getattr(definition, word) for word in ("description", "owner")}
    return [
        f"{place}: {word}: {text!r} is no text; put it in quotes, or leave it out"
        for word, text in words.items()
        if not isinstance(text, str)
    ]


class Slots:
    """Filters, values and windows of one view, numbered as its features mention them.

    ``columns``: of the view's stream; None where it has none to check against, as the stream itself is faulty: then only
    what needs no columns is checked. ``faults``: where they are put, each a whole sentence with its place.
    """

    def __init__(self, columns: Mapping[str, pl.DataType] | None, faults: list[str]) -> None:
        self._columns = columns
        self._faults = faults
        self._filters: dict[str, FilterPlan] = {}
        self._values: dict[str, ValuePlan] = {}
        self._windows: dict[str, WindowPlan] = {}

    @property
    def filters(self) -> tuple[FilterPlan, ...]:
        """In the order of their numbers."""
        return tuple(self._filters.values())

    @property
    def values(self) -> tuple[ValuePlan, ...]:
        """In the order of their numbers."""
        return tuple(self._values.values())

    @property
    def windows(self) -> tuple[WindowPlan, ...]:
        """In the order of their numbers."""
        return tuple(self._windows.values())

    def _fault(self, place: str, error: DefinitionError | str) -> None:
        self._faults += [f"{place}: {fault}" for fault in ([error] if isinstance(error, str) else error.faults)]

    def feature(self, place: str, feature: Feature, owner: str) -> FeaturePlan | None:
        """Number one feature; None where it has a fault that keeps it from having a plan. ``owner``: the view's."""
        self._faults += text_faults(place, feature)
        window = self._window(place, feature.window)
        function = self._function(place, feature.aggregation)
        if self._columns is None:
            return None
        condition = self.condition(place, feature.filter, feature.where)
        if condition is not None:
            self._filters.setdefault(condition.text, condition)
        if function is None:
            return None
        value = self._value(place, function, feature.aggregation.value)
        if window is None or (value is None and function != "count"):
            return None
        dtype = _result_type(function, value.dtype if value else None)
        if feature.type is not None and feature.type != dtype:
            known = get_args(ValueType)
            remedy = "correct the type or cast the value" if feature.type in known else f"types are {', '.join(known)}"
            self._fault(place, f"its type is declared {feature.type!r}, but {function} gives {dtype} here; {remedy}")
        empty = _empty(function, dtype)
        return FeaturePlan(
            name=feature.name,
            function=function,
            dtype=dtype,
            window=list(self._windows).index(window.text),
            filter=-1 if condition is None else list(self._filters).index(condition.text),
            value=-1 if value is None else list(self._values).index(value.text),
            empty=empty,
            default=self._default(place, feature.default, dtype, empty),
            description=feature.description,
            owner=feature.owner or owner,
        )

    def _window(self, place: str, window: Window) -> WindowPlan | None:
        try:
            plan = plan_window(window)
        except DefinitionError as error:
            self._fault(place, error)
            return None
        return self._windows.setdefault(plan.text, plan)

    def _function(self, place: str, aggregation: Aggregation) -> AggregationName | None:
        names = get_args(AggregationName)
        if not isinstance(aggregation, Aggregation):
            self._fault(
                place, f"{aggregation!r} is no aggregation; use one of agg.{', agg.'.join(names)}, as in agg.count()"
            )
            return None
        if aggregation.function not in names:
            self._fault(
                place,
                f"no aggregation is called {aggregation.function!r}; {did_you_mean(str(aggregation.function), names)}",
            )
            return None
        if aggregation.function == "count" and aggregation.value is not None:
            self._fault(
                place,
                "count takes no value; count what is not null by a filter, for example filter='amount IS NOT NULL'",
            )
        if aggregation.function != "count" and aggregation.value is None:
            self._fault(place, f"{aggregation.function} needs a value; give it a column or an expression")
            return None
        return aggregation.function

    def condition(self, place: str, one: Expression | None, other: Expression | None) -> FilterPlan | None:
        """Check ``where`` or ``filter``, whichever was written; not numbered yet. None without one, or with a fault."""
        if one is not None and other is not None:
            self._fault(place, "it has both where and filter, which are the same thing; keep one, joined by AND")
            return None
        source = other if one is None else one
        if source is None or self._columns is None:
            return None
        try:
            checked = check_expression(source, self._columns)
        except DefinitionError as error:
            self._fault(f"{place}: filter", error)
            return None
        if checked.dtype != pl.Boolean():
            self._fault(
                f"{place}: filter", f"{checked.text!r} is {checked.dtype}, not true or false; compare it with something"
            )
            return None
        return FilterPlan(text=checked.text, expr=checked.expr)

    def _value(self, place: str, function: AggregationName, source: Expression | None) -> ValuePlan | None:
        if source is None or function == "count" or self._columns is None:
            return None
        try:
            checked = check_expression(source, self._columns)
        except DefinitionError as error:
            self._fault(f"{place}: value", error)
            return None
        dtype = _value_type(checked.dtype)
        if dtype is None:
            self._fault(
                f"{place}: value",
                f"{checked.text!r} is {checked.dtype}; {function} takes int64, float64 and bool, so cast it, for example to DOUBLE",
            )
            return None
        plan = ValuePlan(text=checked.text, expr=checked.expr.cast(POLARS_TYPES[dtype]), dtype=dtype)
        return self._values.setdefault(plan.text, plan)

    def _default(self, place: str, default: object, dtype: ValueType, empty: Scalar | None) -> Scalar | None:
        if default is None:
            return None
        fits = {
            "bool": isinstance(default, bool),
            "int64": isinstance(default, int) and not isinstance(default, bool) and INT64_MIN <= default <= INT64_MAX,
            "float64": isinstance(default, (int, float)) and not isinstance(default, bool) and math.isfinite(default),
        }
        if not fits[dtype]:
            remedy = (
                "leave it out for null"
                if isinstance(default, float) and not math.isfinite(default)
                else f"give a {dtype}"
            )
            self._fault(place, f"the default {default!r} is no {dtype}; {remedy}")
            return None
        assert isinstance(default, (bool, int, float))
        if empty is not None and default != empty:
            self._fault(
                place,
                f"the default {default!r} would never show, as the value is never null ({empty} on an empty window); leave it out",
            )
        return float(default) if dtype == "float64" else default


def _value_type(dtype: pl.DataType) -> ValueType | None:
    if dtype == pl.Boolean():
        return "bool"
    if dtype.is_float():
        return "float64"
    return "int64" if dtype.is_integer() and dtype not in {pl.UInt64(), pl.Int128(), pl.UInt128()} else None


def _result_type(function: AggregationName, value: ValueType | None) -> ValueType:
    if function == "count" or value is None:
        return "int64"
    if function == "mean":
        return "float64"
    if function == "sum":
        return "float64" if value == "float64" else "int64"
    return value


def _empty(function: AggregationName, dtype: ValueType) -> Scalar | None:
    if function not in {"count", "sum"}:
        return None
    return 0.0 if dtype == "float64" else 0
