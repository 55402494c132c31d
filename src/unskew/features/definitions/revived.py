"""The plan of a view made again from what is published of it: its texts, compiled over a stream that is defined now.

A registry and a log hold how a view is computed, but not its code and not its stream. That is enough to compute it
again as long as the stream is read as it was; the state fingerprint, which covers both, says whether it is.
"""

import ast
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import polars as pl

from unskew.features.definitions.agg import Aggregation, Expression
from unskew.features.definitions.aggregations import error_of
from unskew.features.definitions.compile import SESSION_COLUMNS, compile_view
from unskew.features.definitions.exact import holds_bytes
from unskew.features.definitions.expressions import ROW_FUNCTIONS, parse_sql
from unskew.features.definitions.trees import (
    POLARS_ERRORS,
    expression_of,
    function_of,
    kind_of,
    nodes_of,
    tree_of,
)
from unskew.features.definitions.vocabulary import (
    Calendar,
    Derived,
    Entity,
    Feature,
    FeatureView,
    Lifetime,
    Session,
    Sessions,
    Sliding,
    Stream,
    Tumbling,
    Window,
)
from unskew.features.errors import DefinitionError, LayoutError
from unskew.features.plan import StreamPlan, ViewPlan
from unskew.features.time import format_duration
from unskew.features.view import View, ViewFeature, ViewWindow

_SERIES = {"Boolean": pl.Boolean(), "Float64": pl.Float64(), "Int64": pl.Int64(), "String": pl.String()}
_KINDS = frozenset({"Alias", "BinaryExpr", "Cast", "Column", "Function", "Literal", "Ternary"})
# Where expressions, plans and functions of Python can be inside something else.
_HIDING = frozenset(
    {
        "AnonymousAgg",
        "AnonymousFunction",
        "AnonymousStreamingAgg",
        "Eval",
        "OfExpr",
        "PythonUdf",
        "RenameAlias",
        "Selector",
        "SubPlan",
    }
)
_LISTS = {f"List({name})": dtype for name, dtype in _SERIES.items()}

# Published texts may be of any version of unskew.
_UNREADABLE = (DefinitionError, LookupError, AttributeError, SyntaxError, StopIteration, RecursionError, *POLARS_ERRORS)


def revived(view: View, streams: Mapping[str, StreamPlan]) -> ViewPlan:
    """Return the plan of a published view over the stream of its name; its state fingerprint is the published one.

    Raises ``LayoutError``, which says what is needed instead, if the stream is not among ``streams`` or is read in
    another way now, or if the published texts do not give the same view.
    """
    stream = streams.get(view.stream)
    if stream is None:
        raise _cannot(view, f"its stream {view.stream!r} is not defined any more")
    try:
        plan = compile_view(_definition(view), stream)
    except _UNREADABLE as error:
        raise _cannot(view, f"over the stream {view.stream!r} as it is defined now, {error}") from error
    if plan.state_fingerprint != view.state_fingerprint:
        raise _cannot(view, f"with the stream {view.stream!r} as it is defined now, it is another view")
    return replace(plan, published=view)


def names_in(text: str) -> list[str]:
    """Return the columns or features that a published text reads, each once; none if it cannot be read."""
    try:
        if text.startswith("{"):
            columns = [node["Column"] for node in nodes_of(json.loads(text)) if kind_of(node) == "Column"]
            return [name for name in dict.fromkeys(columns) if isinstance(name, str)]
        return list(dict.fromkeys(parse_sql(text).meta.root_names()))
    except _UNREADABLE:
        return []


def _cannot(view: View, why: str) -> LayoutError:
    return LayoutError(
        f"{view.id} cannot be computed from what is published of it: {why}; give the definitions that it was made from"
    )


def _definition(view: View) -> FeatureView:
    stream = Stream(view.stream, topic=view.topic, schema="", event_time="")
    over = None
    if view.sessions is not None:
        window = view.sessions.window
        own = [column for column in view.sessions.columns if column.name not in SESSION_COLUMNS]
        over = Sessions(
            # Neither is the name published, nor does anything depend on it.
            "sessions",
            stream=stream,
            gap=format_duration(window.extent_us),
            hop=format_duration(window.hop_us),
            values={column.name: _aggregation(column, window) for column in own},
            where=_expression(view.sessions.where),
        )
    return FeatureView(
        view.name,
        entity=Entity(view.entity.name, key=view.entity.keys, type=view.entity.types),
        stream=over or stream,
        features=[_feature(view, feature) for feature in view.features],
        where=_expression(view.where),
        version=view.version,
    )


def _feature(view: View, feature: ViewFeature) -> Feature | Derived:
    if feature.window is None:
        return Derived(feature.name, _expression(feature.value) or "", default=feature.default)
    window = view.windows[feature.window]
    return Feature(
        feature.name,
        _aggregation(feature, window),
        _window(window),
        filter=_expression(feature.filter),
        default=feature.default,
    )


def _aggregation(feature: ViewFeature, window: ViewWindow) -> Aggregation:
    assert feature.function != "derived"
    given = feature.parameters
    words: dict[str, Any] = {name: given[name] for name in ("n", "ddof", "q", "edges", "keys") if name in given}
    if "bits" in given:
        words["error"] = error_of(feature.function, given["bits"])
    if "half_life_hops" in given:
        words["half_life"] = format_duration(given["half_life_hops"] * window.hop_us)
    value, by = _expression(feature.value), _expression(feature.by)
    return Aggregation(feature.function, value, by=by, **words)


def _window(window: ViewWindow) -> Window:
    extent, hop = format_duration(window.extent_us), format_duration(window.hop_us)
    match window.kind:
        case "sliding":
            return Sliding(extent, hop)
        case "tumbling" | "closed":
            return Tumbling(extent, closed=window.kind == "closed")
        case "calendar":
            return Calendar(window.unit or "day", window.tz or "UTC")
        case "session":
            return Session(extent, hop)
        case "lifetime":
            return Lifetime()


def _expression(text: str | None) -> Expression | None:
    """Return the expression of a published text: SQL, or the JSON of a Polars expression.

    Polars' form of an expression can hold code, and whoever writes to Redis writes the registry. So nothing is given to
    Polars but what a checked expression is made of. Raises ``DefinitionError`` for anything else.
    """
    if text is None or not text.startswith("{"):
        return text
    tree = json.loads(text)
    for node in nodes_of(tree):
        kind = kind_of(node)
        if kind not in _KINDS or (kind == "Function" and function_of(node[kind]["function"])[0] not in ROW_FUNCTIONS):
            raise DefinitionError(f"the published expression holds {kind}, which no checked one has")
        if kind == "Literal" and holds_bytes(node[kind]):
            raise DefinitionError("the published expression holds bytes, which no checked one has")
    if hidden := _words(tree) & _HIDING:
        raise DefinitionError(f"the published expression holds {min(hidden)}, which no checked one has")
    return expression_of(_with_series(tree))


def _words(tree: Any) -> set[str]:
    """Return every key at any depth."""
    found: set[str] = set()
    waiting = [tree]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            found |= part.keys()
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    return found


def _with_series(tree: Any) -> Any:
    """Return the tree with its readable lists of literals as Polars has them."""
    if isinstance(tree, list):
        return [_with_series(value) for value in tree]
    if not isinstance(tree, dict):
        return tree
    match tree:
        case {"Literal": [str(dtype), [str(items)]]} if dtype in _LISTS:
            return tree_of(pl.lit(ast.literal_eval(items), dtype=pl.List(_LISTS[dtype])))
        case {"Literal": [str(dtype), [*items]]}:
            values = [item if dtype == "String" else ast.literal_eval(item) for item in items]
            return tree_of(pl.lit(pl.Series(values, dtype=_SERIES[dtype])))
    return {key: _with_series(value) for key, value in tree.items()}
