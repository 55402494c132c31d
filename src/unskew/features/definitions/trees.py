"""Polars expressions as trees of plain data, in Polars' serialized form, and the bounds of what engines can read.

Polars reads its serialized form recursively, and evaluates recursively too. A tree is at most ``MAX_DEPTH`` levels of
lists and mappings deep; long chains of AND, OR and ``||`` are made shallow first, because brackets do not matter there.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import polars as pl
from polars.exceptions import PanicException, PolarsError

from unskew.features.errors import DefinitionError

MAX_DEPTH = 240
MAX_NODES = 5_000

# A panic in Polars' Rust code is a BaseException; here it is a fault of the definition.
POLARS_ERRORS = (PolarsError, PanicException, ValueError, TypeError, OverflowError)

_SEVERAL_OUTPUTS = "it names several columns at once; name one column with pl.col"
_JSON = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]|[^\s\[\]{},:"]+')
_JSON_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')
_CHAINED = frozenset({"And", "Or"})
_AS_TEXT = {"dtype": {"Literal": "String"}, "options": "NonStrict"}

# The groups of Polars' functions in the serialized form.
_SPACES = frozenset(
    "ArrayExpr BinaryExpr Bitwise Boolean Business CategoricalExpr ExtensionExpr ListExpr Pow Random Range RollingExpr Sql "  # noqa: SIM905
    "StringExpr StructExpr TemporalExpr Trigonometry".split()
)


def tree_of(expr: pl.Expr) -> Any:
    """Return the tree of an expression. Raises ``DefinitionError`` if it is too large, or not plain data."""
    try:
        # First, because some operators write their operand twice, and twenty, one inside another, a million times.
        _check_size(expr)
        if expr.meta.has_multiple_outputs():
            raise DefinitionError(_SEVERAL_OUTPUTS)
        text = expr.meta.serialize(format="json")
    except POLARS_ERRORS as error:
        # Only two things cannot be serialized: a selector, and Python code (if cloudpickle is not installed).
        if "not allowed in this context" in str(error):
            raise DefinitionError(_SEVERAL_OUTPUTS) from error
        raise DefinitionError("it calls a Python function; use Polars' own expressions instead") from error
    return json.loads(text) if _depth(text) <= MAX_DEPTH else _shallow(_read(text), 0)


def expression_of(tree: Any) -> pl.Expr:
    """Return the expression of a tree."""
    try:
        data = msgspec.msgpack.encode(tree)
    except OverflowError:
        data = msgspec.msgpack.encode(_with_long_numbers(tree))
    return pl.Expr.deserialize(data)


def kind_of(node: Any) -> str:
    """Return the kind of a node: ``Column``, ``Function``."""
    return node if isinstance(node, str) else next(iter(node))


def children_of(node: Any) -> list[Any]:
    """Return the nodes whose results a node reads."""
    if not isinstance(node, dict) or len(node) != 1:
        return []
    ((kind, content),) = node.items()
    match kind:
        case "Alias":
            return [content[0]]
        case "BinaryExpr":
            return [content["left"], content["right"]]
        case "Ternary":
            return [content["predicate"], content["truthy"], content["falsy"]]
        case "Cast":
            return [content["expr"]]
        case "Function":
            return list(content["input"])
        case _:
            return []


def with_children(node: Any, children: list[Any]) -> Any:
    """Return the node with other children, in the order of ``children_of``."""
    if not children:
        return node
    ((kind, content),) = node.items()
    match kind:
        case "Alias":
            return {kind: [children[0], *content[1:]]}
        case "BinaryExpr":
            return {kind: {**content, "left": children[0], "right": children[1]}}
        case "Ternary":
            return {kind: {**content, "predicate": children[0], "truthy": children[1], "falsy": children[2]}}
        case "Cast":
            return {kind: {**content, "expr": children[0]}}
        case _:
            return {kind: {**content, "input": children}}


def nodes_of(tree: Any) -> Iterator[Any]:
    """Yield a node and all nodes below it, each before its children."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += reversed(children_of(node))


def function_of(function: Any) -> tuple[str, Any]:
    """Return the name (``Space.Name`` if it has a name space) and the options of a serialized function."""
    if isinstance(function, str):
        return function, None
    ((name, content),) = function.items()
    if name not in _SPACES:
        return name, content
    if isinstance(content, dict) and len(content) == 1:
        ((inner, options),) = content.items()
        return f"{name}.{inner}", options
    return (f"{name}.{content}", None) if isinstance(content, str) else (name, content)


def _check_size(expr: pl.Expr) -> None:
    waiting = [expr]
    for _ in range(MAX_NODES):
        if not waiting:
            return
        waiting += waiting.pop().meta.pop()
    raise DefinitionError(
        f"it has more than {MAX_NODES} parts; write a list of values as IN (...) or is_in([...]), or split it"
    )


def _depth(text: str) -> int:
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", _JSON_TEXT.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _read(text: str) -> Any:
    """Return the data of a JSON text, however deep it is."""
    root: list[Any] = []
    inside: list[Any] = [root]
    keys: list[str | None] = [None]
    for found in _JSON.finditer(text):
        piece = found[0]
        if piece in "}]":
            inside.pop()
            keys.pop()
            continue
        if isinstance(inside[-1], dict) and keys[-1] is None:
            keys[-1] = json.loads(piece)
            continue
        value: Any = {} if piece == "{" else [] if piece == "[" else json.loads(piece)
        if isinstance(inside[-1], dict):
            inside[-1][keys[-1]] = value
            keys[-1] = None
        else:
            inside[-1].append(value)
        if piece in "{[":
            inside.append(value)
            keys.append(None)
    return root[0]


def _shallow(part: Any, depth: int) -> Any:
    """Return the tree with balanced chains. Raises ``DefinitionError`` if it is still too deep."""
    if depth > MAX_DEPTH:
        raise DefinitionError(
            f"it is nested more than {MAX_DEPTH} levels deep; put half of its terms in brackets, (a + b) + (c + d), or split it"
        )
    if isinstance(part, list):
        found = []
        for each in part:
            found.append(_shallow(each, depth + 1) if isinstance(each, (dict, list)) else each)  # noqa: PERF401
        return found
    if not isinstance(part, dict):
        return part
    op = _chain_op(part)
    if op:
        terms = _terms(part, op)
        if len(terms) > 2:
            deeper = depth + 4 * len(terms).bit_length()
            shallow = []
            for term in terms:
                shallow.append(_shallow(term, deeper))  # noqa: PERF401
            return _joined(shallow, op)
    whole = {}
    for key, value in part.items():
        whole[key] = _shallow(value, depth + 1)
    return whole


def _chain_op(node: Any) -> str:
    """Return the operator of a chain whose brackets do not matter: ``And``, ``Or``, or ``Plus`` of texts."""
    parts = node.get("BinaryExpr") if isinstance(node, dict) else None
    if not isinstance(parts, dict):
        return ""
    if parts["op"] == "Plus":
        return "Plus" if _is_text(parts["left"]) and _is_text(parts["right"]) else ""
    return str(parts["op"]) if parts["op"] in _CHAINED else ""


def _is_text(node: Any) -> bool:
    return isinstance(node, dict) and {**node.get("Cast", {}), "expr": 0} == {**_AS_TEXT, "expr": 0}


def _terms(node: Any, op: str) -> list[Any]:
    terms, waiting = [], [node]
    while waiting:
        each = waiting.pop()
        inner = each["Cast"]["expr"] if op == "Plus" and _is_text(each) else each
        if _chain_op(inner) == op:
            waiting += [inner["BinaryExpr"]["right"], inner["BinaryExpr"]["left"]]
        else:
            terms.append(each)
    return terms


def _joined(terms: list[Any], op: str) -> Any:
    while len(terms) > 1:
        pairs = [
            {"BinaryExpr": {"left": left, "op": op, "right": right}}
            for left, right in zip(terms[::2], terms[1::2], strict=False)
        ]
        rest = terms[len(pairs) * 2 :]
        if op == "Plus" and len(pairs) + len(rest) > 1:
            pairs = [{"Cast": {"expr": pair, **_AS_TEXT}} for pair in pairs]
        terms = pairs + rest
    return terms[0]


def _with_long_numbers(tree: Any) -> Any:
    """Return the tree with numbers of 128 bits as Polars' binary form has them."""
    if isinstance(tree, dict):
        return {key: _with_long_numbers(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_with_long_numbers(value) for value in tree]
    long = isinstance(tree, int) and not -(2**63) <= tree < 2**64
    return tree.to_bytes(16, "big", signed=True) if long else tree
