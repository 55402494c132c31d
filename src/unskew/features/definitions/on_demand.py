"""On-demand features: their texts are read here, word by word, and proved to work row by row, whoever wrote them.

Compiling definitions calls ``plan_on_demand``, and each reader calls ``computed`` again on what is published, because
an expression of a registry must not reach an engine unchecked.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import polars as pl

from unskew.features.definitions.exact import result_type, wide
from unskew.features.definitions.expressions import Checked, check_expression, how_to_cast, parsed, unknown_column
from unskew.features.definitions.fingerprints import on_demand_fingerprint
from unskew.features.definitions.slots import (
    Slots,
    column_name_faults,
    is_unchecked,
    name_faults,
    text_faults,
    version_faults,
    without_faults,
)
from unskew.features.definitions.sql_text import (
    Call,
    calls_of,
    canonical_sql,
    check_sql,
    quoted_references,
    tokens_of,
)
from unskew.features.definitions.trees import children_of, expression_of, kind_of, nodes_of, tree_of, with_children
from unskew.features.definitions.vocabulary import Derived, OnDemand
from unskew.features.errors import DefinitionError, RequestError, shown
from unskew.features.on_demand import NOW, OnDemandView, is_reference
from unskew.features.references import resolve
from unskew.features.types import TIMESTAMP, Type
from unskew.features.versions import Versions
from unskew.features.view import View

MAX_FEATURES = 64
MAX_INPUTS = 64
EARTH_RADIUS_KM = 6371.0088
"""The mean radius of the Earth (IUGG): H. Moritz, Geodetic Reference System 1980, Journal of Geodesy 74 (2000)."""

# A name before :feature or @version:feature.
_REFERENCE = re.compile(r"(\w+)(?:@\w+)?:\w")
_LACKS = "there is no input and no feature view:feature called"
_BETWEEN = "write seconds_between(begin, end), the seconds from one instant to another"
_INPUT_TYPES = "int64, float64, bool, string, timestamp and decimal(38,2)"


@dataclass(frozen=True, kw_only=True)
class Computed:
    """An on-demand feature that can be evaluated.

    ``expr``: over columns that are called as in the text: inputs, ``view:feature`` and ``now``; null where the text has
    no exact result, and still NaN or infinite where that is. ``reads``: the columns that it reads.
    """

    text: str
    expr: pl.Expr
    dtype: Type
    reads: tuple[str, ...]


def computed(
    source: object, inputs: Mapping[str, Type], views: Versions[View], barred: Mapping[str, str] | None = None
) -> Computed:
    """Check the text of an on-demand feature over typed inputs and features of views.

    ``barred``: half a sentence for each name that is known and cannot be read here. Raises ``DefinitionError`` with
    half a sentence: for all that ``check_expression`` refuses, for an unknown name, and for a result without a type.
    """
    if isinstance(source, pl.Expr):
        raise DefinitionError(
            "it is a Polars expression, but servers read an on-demand feature from its text; write it as SQL text"
        )
    if not isinstance(source, str):
        raise DefinitionError(f"{shown(source)} is not an expression; write SQL text")
    text = canonical_sql(source)
    quoted = quoted_references(text)
    tokens = tokens_of(quoted)
    for token, after in pairwise(tokens):
        if token.word == NOW and after.text == "(":
            raise DefinitionError(f"{NOW} is the instant of the request or the label; write it without brackets")
    check_sql(quoted, FUNCTIONS)
    names = [token.text[1:-1] for token in tokens if token.kind == "name"]
    columns = {name: each.polars for name, each in inputs.items()} | {NOW: TIMESTAMP}
    columns |= _of_views([name for name in dict.fromkeys(names) if is_reference(name)], views)
    try:
        checked = _proved(quoted, tuple(columns.items()))
    except DefinitionError as error:
        known = {unknown_column(name, columns, _LACKS): why for name, why in (barred or {}).items()}
        raise DefinitionError([known.get(fault, fault) for fault in error.faults]) from error
    if isinstance(checked.dtype, pl.Duration):
        raise DefinitionError(f"{text!r} is a duration; {_BETWEEN}")
    dtype = Type.of_values(checked.dtype)
    if dtype is None:
        raise DefinitionError(f"{text!r} is {checked.dtype}; {how_to_cast(checked.dtype)}")
    used = set(checked.expr.meta.root_names())
    reads = tuple(name for name in columns if name in used)
    expr = checked.expr if checked.dtype == dtype.polars else checked.expr.cast(dtype.polars)
    if checked.fails is not None:
        expr = pl.when(~checked.fails).then(expr)
    return Computed(text=text, expr=expr, dtype=dtype, reads=reads)


@lru_cache(maxsize=1_024)
def _proved(text: str, columns: tuple[tuple[str, pl.DataType], ...]) -> Checked:
    """Check a text over columns; what is proved once is not proved again, as that takes milliseconds."""
    types = dict(columns)
    for token in tokens_of(text):
        if token.kind == "name" and token.text[1:-1] not in types:
            raise DefinitionError(unknown_column(token.text[1:-1], types, _LACKS))
    try:
        return check_expression(_parsed(text, types), types, _LACKS)
    except DefinitionError as error:
        raise DefinitionError([_with_remedy(fault) for fault in error.faults]) from error


def _of_views(references: Sequence[str], views: Versions[View]) -> dict[str, pl.DataType]:
    """Return the types of the features of views that a text reads. Raises ``DefinitionError``."""
    found: dict[str, pl.DataType] = {}
    for reference in references:
        try:
            (asked,) = resolve([reference], views, full_feature_names=True)
        except RequestError as error:
            raise DefinitionError(str(error)) from error
        dtype = asked.feature.dtype
        if dtype.nesting:
            raise DefinitionError(f"{reference} is {dtype}, and an on-demand feature takes single values; leave it out")
        found[reference] = dtype.polars
    return found


def _with_remedy(fault: str) -> str:
    return f"{fault}; {_BETWEEN}" if "uration" in fault else fault


def _parsed(text: str, columns: Mapping[str, pl.DataType]) -> pl.Expr:
    """Return the expression of a text whose calls of functions that only on-demand features have are written out."""
    calls = calls_of(text, FUNCTIONS)
    pieces, place = [], 0
    made: dict[str, Any] = {}
    for number, call in enumerate(calls):
        # No name of a column, for these are known by now.
        made[f"({number})"] = tree_of(_written_out(call, columns))
        pieces += [text[place : call.start], f'"({number})"']
        place = call.stop
    expr = parsed("".join([*pieces, text[place:]]))
    return expression_of(_replaced(tree_of(expr), made)) if made else expr


def _replaced(node: Any, made: Mapping[str, Any]) -> Any:
    if kind_of(node) == "Column":
        return made.get(node["Column"], node)
    return with_children(node, [_replaced(child, made) for child in children_of(node)])


def _written_out(call: Call, columns: Mapping[str, pl.DataType]) -> pl.Expr:
    takes, write = _FUNCTIONS[call.function]
    if len(call.arguments) != len(takes):
        raise DefinitionError(
            f"{call.function} takes {len(takes)} arguments, ({', '.join(takes)}), and not {len(call.arguments)}; correct it"
        )
    arguments = []
    for name, text in zip(takes, call.arguments, strict=True):
        check_sql(text, FUNCTIONS)
        expr = _parsed(text, columns)
        tree = tree_of(expr)
        if unknown := [
            node["Column"] for node in nodes_of(tree) if kind_of(node) == "Column" and node["Column"] not in columns
        ]:
            raise DefinitionError(unknown_column(unknown[0], columns, _LACKS))
        dtype = result_type(tree, {column: wide(each) for column, each in columns.items()})
        arguments.append(_as_argument(call.function, name, text, expr, dtype))
    return write(*arguments)


def _as_argument(function: str, name: str, text: str, expr: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """Return an argument in the type that its function takes. Raises ``DefinitionError`` for another one."""
    if name in _INSTANTS:
        if dtype == pl.Datetime("us"):
            return expr.dt.replace_time_zone("UTC")
        if dtype == TIMESTAMP:
            return expr
        what = "instants (type timestamp)"
    elif dtype.is_numeric():
        return expr if dtype == pl.Float64() else expr.cast(pl.Float64)
    else:
        what = "degrees as numbers"
    raise DefinitionError(f"{function} takes {what}, and {text!r} is {dtype}; correct it")


def _seconds_between(begin: pl.Expr, end: pl.Expr) -> pl.Expr:
    """To the microsecond for instants from 1684 to 2255, whose microseconds a float holds; it cannot overflow."""
    return (_microseconds(end) - _microseconds(begin)) / 1e6


def _microseconds(instant: pl.Expr) -> pl.Expr:
    return instant.cast(pl.Int64, strict=False).cast(pl.Float64)


def _haversine(lat: pl.Expr, lon: pl.Expr, other_lat: pl.Expr, other_lon: pl.Expr) -> pl.Expr:
    """R. W. Sinnott, Virtues of the Haversine, Sky and Telescope 68 (1984), 159."""
    # Powers, because engines would compute a factor that is written twice, twice.
    of_lat = ((other_lat - lat).radians() * 0.5).sin().pow(2)
    of_lon = ((other_lon - lon).radians() * 0.5).sin().pow(2)
    haversine = of_lat + lat.radians().cos() * other_lat.radians().cos() * of_lon
    # Rounding may lead past 1, where there is no arcsine.
    return haversine.clip(0.0, 1.0).sqrt().arcsin() * (2 * EARTH_RADIUS_KM)


_INSTANTS = frozenset({"begin", "end"})
_FUNCTIONS: Mapping[str, tuple[tuple[str, ...], Callable[..., pl.Expr]]] = {
    "seconds_between": (("begin", "end"), _seconds_between),
    "haversine": (("lat", "lon", "other_lat", "other_lon"), _haversine),
}
FUNCTIONS = frozenset(_FUNCTIONS)
"""The functions that on-demand features have besides those of SQL text everywhere."""


def plan_on_demand(on_demand: OnDemand, views: Versions[View]) -> OnDemandView:
    """Return on-demand features as they are published. Raises ``DefinitionError`` with all their faults."""
    return without_faults(partial(planned_on_demand, on_demand, views))


def planned_on_demand(
    on_demand: OnDemand,
    views: Versions[View],
    faults: list[str],
    unchecked: Collection[str] | None = (),
) -> OnDemandView | None:
    """Return on-demand features as they are published; None if they have faults, which are added to ``faults``.

    ``unchecked``: the names of views that have faults; None if any unknown name may be that of a view that could not be
    read. What reads such a view is not checked, and the result is None, too.
    """
    n_before = len(faults)
    faults += [*name_faults(on_demand.name, views.names), *version_faults(on_demand.version)]
    inputs = _inputs(on_demand.inputs, faults)
    definitions = _features(on_demand.features, inputs, faults)
    others = {one.name: f"{one.name!r} is on-demand too; write its expression out here" for one in definitions}
    checked = [
        one
        for one in definitions
        if not any(is_unchecked(view, views.names, unchecked) for view in _views_in(one.expression))
    ]
    features = []
    for derived in checked if len(faults) == n_before else ():
        slots = Slots(None, faults)
        own = {derived.name: f"{derived.name!r} is this feature itself; name inputs and features of views"}
        try:
            found = computed(derived.expression, inputs, views, others | own)
        except DefinitionError as error:
            faults += [f"{derived.name}: expression: {fault}" for fault in error.faults]
            continue
        features.append(
            slots.published(
                derived.name, derived, found.dtype, text=found.text, reads=found.reads, owner=on_demand.owner
            )
        )
    read = {name for feature in features for name in feature.inputs}
    is_whole = len(checked) == len(definitions)
    if is_whole and len(faults) == n_before and (unread := [name for name in inputs if name not in read]):
        faults.append(f"no feature reads the input {unread[0]!r}; leave it out")
    if len(faults) == n_before:
        faults += _shadows(inputs, [name for name in read if is_reference(name)], views)
    if not is_whole or len(faults) > n_before:
        return None
    types = {name: str(each) for name, each in inputs.items()}
    return OnDemandView(
        name=on_demand.name,
        version=on_demand.version,
        inputs=types,
        features=tuple(features),
        fingerprint=on_demand_fingerprint(types, features),
        description=on_demand.description,
        owner=on_demand.owner,
        tags=dict(on_demand.tags),
    )


def _views_in(expression: object) -> list[str]:
    """Return the names of the views that a text refers to, as far as it can be read."""
    return _REFERENCE.findall(expression) if isinstance(expression, str) else []


def _inputs(given: object, faults: list[str]) -> dict[str, Type]:
    if not isinstance(given, Mapping):
        faults.append(
            f"inputs: {shown(given)} is not a mapping of columns to types; write for example {{lat: float64}}"
        )
        return {}
    if len(given) > MAX_INPUTS:
        faults.append(f"it has {len(given)} inputs, more than {MAX_INPUTS}; leave out those that no feature reads")
        return {}
    found: dict[str, Type] = {}
    seen: dict[str, str] = {}
    for name, text in given.items():
        if wrong := column_name_faults(name):
            faults += [f"input {shown(name)}: {fault}" for fault in wrong]
            continue
        if name.lower() == NOW:
            faults.append(f"input {name!r}: {NOW} is the instant of the request in every expression; rename the input")
        if (first := seen.setdefault(name.lower(), name)) != name:
            faults.append(f"input {name!r}: it differs from {first!r} only in upper and lower case; rename one")
        try:
            dtype = Type.parse(text)
        except DefinitionError:
            dtype = None
        if dtype is None or dtype.nesting:
            faults.append(f"input {name!r}: {shown(text)} is not a type of a single value; types are {_INPUT_TYPES}")
            continue
        found[name] = dtype
    return found


def _features(given: object, inputs: Mapping[str, Type], faults: list[str]) -> list[Derived]:
    if isinstance(given, (str, Mapping)) or not isinstance(given, Iterable):
        faults.append(f"features: {shown(given)} is not a list; give a list of Derived objects")
        return []
    features: list[Derived] = []
    seen: dict[str, str] = {}
    for one in given:
        if not isinstance(one, Derived):
            faults.append(f"{shown(one)} is not an on-demand feature; give Derived objects")
            continue
        if wrong := column_name_faults(one.name):
            faults += [f"{shown(one.name)}: {fault}" for fault in wrong]
            continue
        if one.name.lower() == NOW:
            faults.append(f"{one.name}: {NOW} is the instant of the request in every expression; rename the feature")
        if one.name.lower() in {name.lower() for name in inputs}:
            faults.append(f"{one.name}: an input has this name; rename one")
        if (first := seen.get(one.name.lower())) is not None:
            again = "is used twice" if first == one.name else f"differs from {first} only in upper and lower case"
            faults.append(f"{one.name}: the name {again}; rename one")
        seen.setdefault(one.name.lower(), one.name)
        faults += text_faults(one.name, one)
        features.append(one)
    if not features and not faults:
        faults.append("it has no features; give it at least one")
    if len(features) > MAX_FEATURES:
        faults.append(f"it has {len(features)} features, more than {MAX_FEATURES}; split it in two")
    return features


def _shadows(inputs: Mapping[str, Type], references: Iterable[str], views: Versions[View]) -> list[str]:
    """Return the faults of inputs that are called like a key of a view that is read, or like its entity."""
    taken: dict[str, str] = {}
    for reference in references:
        view = views.find(reference.partition(":")[0])
        taken |= dict.fromkeys(view.entity.keys, f"the key of {view.name}")
        taken.setdefault(view.entity.name, f"the entity of {view.name}")
    return [f"input {name!r}: {taken[name]} has this name; rename the input" for name in inputs if name in taken]
