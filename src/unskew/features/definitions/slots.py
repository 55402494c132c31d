"""Features of one view, checked and numbered: equal filters, values and windows share a slot."""

import datetime as dt
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from decimal import Context, Decimal, Inexact, InvalidOperation
from typing import TypeVar, get_args

import polars as pl

from unskew.features.definitions.agg import OTHER_NAMES, Aggregation, Expression
from unskew.features.definitions.aggregations import RULES, empty_value, parameters_of, result_type
from unskew.features.definitions.expressions import Checked, check_expression, how_to_cast
from unskew.features.definitions.vocabulary import (
    Derived,
    Entity,
    Feature,
    FeatureView,
    OnDemand,
    Service,
    Sessions,
    Stream,
    Table,
    Window,
)
from unskew.features.definitions.windows import plan_window
from unskew.features.errors import DefinitionError, shown
from unskew.features.nearest import nearest
from unskew.features.plan import DerivedPlan, FeaturePlan, FilterPlan, ValuePlan
from unskew.features.types import KNOWN, STRING, Type
from unskew.features.view import AggregationName, Parameters, Scalar, ViewFeature, ViewWindow

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
MAX_VERSION = 2**31 - 1
OBJECT_NAME = re.compile(r"[a-z][a-z0-9_]{0,99}")
"""The name of a view, a service, or on-demand features."""
COLUMN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
"""The name of a feature, a column of sessions, or an input."""
_DECIMAL_RANGE = ", of at most 2^63 - 1 units of its last digit"
_EXAMPLES = {"timestamp": "a datetime with its time zone"}


Planned = TypeVar("Planned")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the nearest known name as a question, or a list of all known names."""
    known = sorted(known)
    return nearest(name, known, "known names are") if known else "none is defined"


def without_faults(plan: Callable[[list[str]], Planned | None]) -> Planned:
    """Return what is planned. Raises ``DefinitionError`` with the faults that ``plan`` adds to the list it is given."""
    faults: list[str] = []
    planned = plan(faults)
    if planned is None or faults:
        raise DefinitionError(faults)
    return planned


def mentions(expression: object, names: Collection[str]) -> bool:
    """Return true if an expression may read one of these columns; a text may also have the word in another meaning."""
    words = expression.meta.root_names() if isinstance(expression, pl.Expr) else re.findall(r"\w+", str(expression))
    return not set(words).isdisjoint(names)


def is_unchecked(view: str, known: Collection[str], unchecked: Collection[str] | None) -> bool:
    """Return true if nothing is known of a view that is named; ``unchecked``: those, None for all but ``known``."""
    return view not in known if unchecked is None else view in unchecked


def version_faults(version: object) -> list[str]:
    """Return the faults of the version of a definition."""
    if isinstance(version, int) and not isinstance(version, bool) and 1 <= version <= MAX_VERSION:
        return []
    return [f"version {shown(version)} is not a positive whole number of at most {MAX_VERSION}; count versions from 1"]


def name_faults(name: str, views: Iterable[str]) -> list[str]:
    """Return the faults of the name of a service, or of on-demand features. ``views``: the names of views beside it."""
    faults = []
    if not OBJECT_NAME.fullmatch(name):
        faults.append(
            "the name must be lower-case letters, digits and _, begin with a letter, and have at most 100 characters; rename it"
        )
    if name in views:
        faults.append("a view has that name too; rename one")
    return faults


def column_name_faults(name: object) -> list[str]:
    """Return the faults of the name of a feature, or of an input."""
    if isinstance(name, str) and COLUMN_NAME.fullmatch(name):
        return []
    return ["the name is not allowed; use letters, digits and _, and begin with a letter"]


def text_faults(
    place: str, definition: FeatureView | Feature | Derived | Sessions | Stream | Table | Entity | OnDemand | Service
) -> list[str]:
    """Return the faults of what is only shown: it must be text, and tags text by name."""
    words = {word: getattr(definition, word, "") for word in ("description", "owner", "deprecated")}
    faults = [
        f"{place}: {word}: {text!r} is not text; put it in quotes, or leave it out"
        for word, text in words.items()
        if not is_text(text)
    ]
    tags = getattr(definition, "tags", {})
    if not isinstance(tags, Mapping):
        return [*faults, f"{place}: tags: {shown(tags)} is not a mapping; write for example {{team: payments}}"]
    return [
        *faults,
        *(
            f"{place}: tags: {shown(name)}: {shown(value)}: names and values of tags are text; put them in quotes"
            for name, value in tags.items()
            if not (is_text(name) and is_text(value))
        ),
    ]


def is_text(text: object) -> bool:
    """Return true if ``text`` is text that can be written; half of a surrogate pair cannot."""
    return isinstance(text, str) and not any("\ud800" <= character <= "\udfff" for character in text)


def _is_beyond(default: object, scale: int) -> bool:
    """Return true for a number, which is not infinite, of more than 2^63 - 1 units of the last digit."""
    try:
        number = Decimal(default) if isinstance(default, int | str | Decimal) else Decimal(0)
    except (ArithmeticError, ValueError):
        return False
    return number.is_finite() and abs(number) > Decimal(INT64_MAX).scaleb(-scale)


def _finite(default: object) -> float | None:
    try:
        number = float(default) if isinstance(default, (int, float)) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


class Slots:
    """The filters, values and windows of one view, numbered in the order in which its features mention them.

    ``columns``: the columns of the view's stream; None if the stream is faulty: then only what needs no columns is
    checked. ``faults``: the list to which faults are added, each a whole sentence with its place.
    """

    def __init__(
        self, columns: Mapping[str, pl.DataType] | None, faults: list[str], unread: Mapping[str, str] | None = None
    ) -> None:
        self._columns = columns
        self._unread = unread
        self._faults = faults
        self._known: dict[str, Checked] = {}
        self._filters: dict[str, FilterPlan] = {}
        self._values: dict[tuple[str, Type], ValuePlan] = {}
        self._windows: dict[str, ViewWindow] = {}

    @property
    def filters(self) -> tuple[FilterPlan, ...]:
        """The filters in the order of their numbers."""
        return tuple(self._filters.values())

    @property
    def values(self) -> tuple[ValuePlan, ...]:
        """The values in the order of their numbers."""
        return tuple(self._values.values())

    @property
    def windows(self) -> tuple[ViewWindow, ...]:
        """The windows in the order of their numbers."""
        return tuple(self._windows.values())

    def _fault(self, place: str, error: DefinitionError | str) -> None:
        self._faults += [f"{place}: {fault}" for fault in ([error] if isinstance(error, str) else error.faults)]

    def feature(self, place: str, feature: Feature, owner: str) -> FeaturePlan | None:
        """Give one feature a number and return its plan, None after a fault. ``owner``: the view's owner."""
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
        parameters = self._parameters(place, feature.aggregation, window)
        value = self._value(place, feature.aggregation)
        by = self._by(place, feature.aggregation)
        if window is None or parameters is None:
            return None
        if (value is None and feature.aggregation.value is not None) or (
            by is None and feature.aggregation.by is not None
        ):
            return None
        dtype = result_type(feature.aggregation, value.dtype if value else None)
        self._check_type(place, feature.type, dtype, function)
        empty = empty_value(feature.aggregation, dtype)
        published = ViewFeature(
            name=feature.name,
            type=str(dtype),
            function=function,
            window=list(self._windows).index(window.text),
            value=value.text if value else None,
            filter=condition.text if condition else None,
            empty=empty,
            default=self._default(place, feature.default, dtype, empty),
            description=feature.description,
            owner=feature.owner or owner,
            by=by.text if by else None,
            parameters=parameters,
            deprecated=feature.deprecated,
        )
        return FeaturePlan(
            published=published,
            filter=-1 if condition is None else list(self._filters).index(condition.text),
            value=-1 if value is None else list(self._values).index((value.text, value.dtype)),
            by=-1 if by is None else list(self._values).index((by.text, by.dtype)),
        )

    def derived(
        self, place: str, derived: Derived, features: Sequence[FeaturePlan], others: Iterable[str], owner: str
    ) -> DerivedPlan | None:
        """Check a feature over other features of its view and return its plan; None if it has a fault.

        ``others``: the names of all derived features. ``owner``: the view's owner.
        """
        self._faults += text_faults(place, derived)
        scalars = {f.name: f.dtype.polars for f in features if not f.dtype.nesting}
        try:
            checked = check_expression(
                derived.expression,
                scalars,
                "the view has no other single-valued feature",
                barred={
                    **{name: f"{name!r} is derived too; write its expression out here" for name in others},
                    **{
                        f.name: f"{f.name!r} is {f.dtype}, and a derived feature takes single values; leave it out"
                        for f in features
                        if f.dtype.nesting
                    },
                    str(derived.name): f"{derived.name!r} is this feature itself; name other features of the view",
                },
            )
        except DefinitionError as error:
            self._fault(f"{place}: expression", error)
            return None
        dtype = Type.of_values(checked.dtype)
        if dtype is None:
            self._fault(f"{place}: expression", f"{checked.text!r} is {checked.dtype}; {how_to_cast(checked.dtype)}")
            return None
        expr = checked.expr.cast(dtype.polars)
        if dtype.scalar == "float64":
            expr = pl.when(expr.is_finite()).then(pl.when(expr == 0.0).then(0.0).otherwise(expr))
        if checked.fails is not None:
            expr = pl.when(~checked.fails).then(expr)
        on_empty = pl.DataFrame({f.name: pl.Series([f.published.empty], dtype=f.dtype.polars) for f in features})
        empty = on_empty.select(expr.alias("empty")).item()
        used = set(checked.expr.meta.root_names())
        reads = tuple(f.name for f in features if f.name in used)
        published = self.published(place, derived, dtype, text=checked.text, reads=reads, owner=owner, empty=empty)
        return DerivedPlan(published=published, expr=expr)

    def published(
        self,
        place: str,
        derived: Derived,
        dtype: Type,
        *,
        text: str,
        reads: tuple[str, ...],
        owner: str,
        empty: Scalar | None = None,
    ) -> ViewFeature:
        """Return what readers know of a feature that is an expression. ``reads``: the names that its ``text`` reads."""
        self._check_type(place, derived.type, dtype, "the expression")
        return ViewFeature(
            name=derived.name,
            type=str(dtype),
            function="derived",
            window=None,
            value=text,
            filter=None,
            inputs=reads,
            empty=empty,
            # Whatever the value on an empty window is, it may be null on another window.
            default=self._default(place, derived.default, dtype, None),
            description=derived.description,
            owner=derived.owner or owner,
            deprecated=derived.deprecated,
        )

    def _check_type(self, place: str, declared: object, dtype: Type, what: str) -> None:
        if declared is None or declared == str(dtype):
            return
        try:
            Type.parse(declared)
            remedy = "correct the type or cast the value"
        except DefinitionError:
            remedy = KNOWN
        self._fault(place, f"its type is declared as {declared!r}, but {what} gives {dtype} here; {remedy}")

    def _parameters(self, place: str, aggregation: Aggregation, window: ViewWindow | None) -> Parameters | None:
        try:
            return parameters_of(aggregation, window)
        except DefinitionError as error:
            self._fault(place, error)
            return None

    def _window(self, place: str, window: Window) -> ViewWindow | None:
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
                place,
                f"{aggregation!r} is not an aggregation; use one of agg.{', agg.'.join(names)}, for example agg.count()",
            )
            return None
        if aggregation.function not in names:
            self._fault(
                place,
                f"no aggregation is called {aggregation.function!r}; "
                f"{did_you_mean(OTHER_NAMES.get(str(aggregation.function), str(aggregation.function)), names)}",
            )
            return None
        rule = RULES[aggregation.function]
        if rule.value is False and aggregation.value is not None:
            self._fault(place, f"{aggregation.function} takes no value; leave it out")
        if rule.value and aggregation.value is None:
            self._fault(place, f"{aggregation.function} needs a value; give it a column or an expression")
            return None
        return aggregation.function

    def condition(self, place: str, one: Expression | None, other: Expression | None) -> FilterPlan | None:
        """Check ``where`` or ``filter``, whichever was written, and return its plan, which has no number yet.

        Returns None if neither was written, or if there is a fault.
        """
        if one is not None and other is not None:
            self._fault(place, "it has both where and filter, which are the same thing; keep one, joined by AND")
            return None
        source = other if one is None else one
        if source is None:
            return None
        checked = self._checked(f"{place}: filter", source)
        if checked is None:
            return None
        if checked.dtype != pl.Boolean():
            self._fault(
                f"{place}: filter", f"{checked.text!r} is {checked.dtype}, not Boolean; compare it with something"
            )
            return None
        return FilterPlan(text=checked.text, expr=checked.expr, fails=checked.fails)

    def _value(self, place: str, aggregation: Aggregation) -> ValuePlan | None:
        rule = RULES[aggregation.function]
        if aggregation.value is None or rule.value is False:
            return None
        checked = self._checked(f"{place}: value", aggregation.value)
        if checked is None:
            return None
        dtype = Type.of_values(checked.dtype)
        if dtype is None or (rule.numbers and dtype.scalar in {"string", "timestamp"}):
            takes = "int64, float64, bool and decimal" if rule.numbers else "numbers, bool, strings and UTC timestamps"
            self._fault(
                f"{place}: value",
                f"{checked.text!r} is {checked.dtype}; {aggregation.function} takes {takes}, so "
                f"{how_to_cast(checked.dtype, to_number=rule.numbers)}",
            )
            return None
        return self._number_value(checked, dtype)

    def _by(self, place: str, aggregation: Aggregation) -> ValuePlan | None:
        """Return the key of a map, as text; None if there is none, or if it has a fault."""
        if aggregation.by is None:
            return None
        checked = self._checked(f"{place}: by", aggregation.by)
        if checked is None:
            return None
        dtype = Type.of_values(checked.dtype)
        if dtype is None or dtype.scalar not in {"string", "int64", "bool"}:
            self._fault(
                f"{place}: by",
                f"{checked.text!r} is {checked.dtype}; keys of a map must be strings, whole numbers or bool",
            )
            return None
        return self._number_value(checked, STRING)

    def _number_value(self, checked: Checked, dtype: Type) -> ValuePlan:
        plan = ValuePlan(text=checked.text, expr=checked.expr.cast(dtype.polars), dtype=dtype, fails=checked.fails)
        return self._values.setdefault((plan.text, dtype), plan)

    def _checked(self, place: str, source: Expression) -> Checked | None:
        """Return the expression, proven once however many features have its text; None if it has a fault."""
        if self._columns is None:
            return None
        if isinstance(source, str) and source in self._known:
            return self._known[source]
        try:
            checked = check_expression(source, self._columns, unread=self._unread)
        except DefinitionError as error:
            self._fault(place, error)
            return None
        if isinstance(source, str):
            self._known[source] = checked
        return checked

    def _default(self, place: str, default: object, dtype: Type, empty: Scalar | None) -> Scalar | None:
        if default is None:
            return None
        typed = _typed(default, dtype)
        if typed is None:
            remedy = (
                "leave it out for null"
                if (isinstance(default, float) and not math.isfinite(default)) or dtype.nesting
                else f"give a whole number, or text with at most {dtype.scale} digits after the point"
                f"{_DECIMAL_RANGE if _is_beyond(default, dtype.scale) else ''}"
                if dtype.is_decimal
                else "give one from -2^63 to 2^63 - 1"
                if dtype.scalar == "int64" and isinstance(default, int) and not isinstance(default, bool)
                else "give one of at most 1.7e308"
                if dtype.scalar == "float64" and isinstance(default, int) and not isinstance(default, bool)
                else f"give {_EXAMPLES.get(dtype.scalar, f'a value of type {dtype}')}"
            )
            self._fault(place, f"the default {shown(default)} is not of type {dtype}; {remedy}")
            return None
        if empty is not None and typed != empty:
            self._fault(
                place,
                f"the default {shown(default)} would never be used, because the value is never null ({empty} on an empty window); leave it out",
            )
        return typed


def _typed(default: object, dtype: Type) -> Scalar | None:
    """Return the default in its type; None if it does not fit."""
    if dtype.nesting or isinstance(default, bool) != (dtype.scalar == "bool"):
        return None
    match dtype.scalar, default:
        case "bool", bool():
            return default
        case "int64", int() if INT64_MIN <= default <= INT64_MAX:
            return default
        case "float64", _:
            return _finite(default)
        case "string", str() if is_text(default):
            return default
        case "timestamp", dt.datetime() if default.tzinfo is not None:
            return default.astimezone(dt.UTC)
        case "decimal", int() | str() | Decimal():
            return _exact(default, dtype.scale)
        case _:
            return None


def _exact(default: int | str | Decimal, scale: int) -> Decimal | None:
    """Return the same number with ``scale`` digits after the point; None if it has more, or is too large."""
    try:
        exact = Decimal(default).quantize(
            Decimal((0, (1,), -scale)), context=Context(prec=38, traps=[Inexact, InvalidOperation])
        )
    except (ArithmeticError, ValueError):
        return None
    return exact if exact.is_finite() and abs(int(exact.scaleb(scale))) <= INT64_MAX else None
