"""Where definitions stand: the lines of what a file says, found only once something in it is wrong.

A line is no part of a definition, so nothing that compiles knows of it. A fault begins with what it is about
(``stream transactions: settle: ...``, ``purchases.spend_7d: hop ...``); these words lead through the file, from the
definition to its feature and on to the key or argument, as far as the file has them.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from unskew.features.definitions import vocabulary
from unskew.features.definitions.yaml_text import nodes_of_documents

_KINDS = {
    "Entity": "entity ",
    "Stream": "stream ",
    "Table": "stream ",
    "Sessions": "sessions ",
    "FeatureView": "",
    "OnDemand": "on-demand ",
    "Service": "service ",
}
_FEATURES = {"Feature", "Derived"}
_WORDS = {"entity": "entity ", "stream": "stream ", "table": "stream ", "sessions": "sessions "} | {
    "on_demand": "on-demand ",
    "service": "service ",
}
_WORD = re.compile(r"(?:unknown key |the |its |no )?'?([A-Za-z_]\w*)'?")
# What a fault calls by another word than a document does.
_ALSO = {"stream": "source", "aggregation": "function"}
_PLACED = re.compile(r"(.+?\.(?:py|ya?ml))(?::(\d+))?: ")
_OF_FEATURE = "feature "
# A fault is not followed into words of the user's.
_MOST_STEPS = 4


class Part(NamedTuple):
    """A part of a file: its line, from 1, and the parts inside it by key, argument or ``feature NAME``."""

    line: int
    inner: Mapping[str, "Part"]


def located(faults: Iterable[str], files: Iterable[Path], homes: Mapping[str, Path]) -> list[str]:
    """Return the faults of compiling, each with the file and line of what it is about, as far as a file says it.

    ``files``: those that were read. ``homes``: files of definitions by name, as faults begin, also of those that a
    function made.
    """
    reported = list(faults)
    if not reported:
        return []
    parts: dict[str, tuple[Path, Part]] = {}
    for path in files:
        for name, part in _parts_of(path):
            parts.setdefault(name, (path, part))
    return [_with_place(fault, parts, homes) for fault in reported]


def taken_apart(fault: str) -> dict[str, str | int | None]:
    """Return a fault as file, line and text; None for what it does not say."""
    found = _PLACED.match(fault)
    if found is None:
        return {"file": None, "line": None, "text": fault}
    return {"file": found[1], "line": None if found[2] is None else int(found[2]), "text": fault[found.end() :]}


def line_of(part: Part, rest: str) -> int:
    """Return the line to which the words of a fault lead. ``rest``: what follows the name of the part."""
    line = part.line
    for word in re.split(r"[:.] ?", rest)[:_MOST_STEPS]:
        found = part.inner.get(word) or part.inner.get(_OF_FEATURE + word)
        if found is None and (begins := _WORD.match(word)) is not None:
            found = _beneath(part, begins[1])
        if found is None and word:
            break
        if found is not None:
            part, line = found, found.line
    return line


def names_of(definition: object) -> list[str]:
    """Return the words with which faults of a definition begin."""
    kind, name = _KINDS.get(type(definition).__name__), getattr(definition, "name", None)
    if kind is None or not isinstance(name, str):
        return []
    return [f"{kind}{name}", *([f"{name}@{getattr(definition, 'version', 1)}"] if not kind else [])]


def document_parts(text: str) -> list[Part]:
    """Return the part of each document of a YAML text that can be read."""
    return [_of_node(node) for node in nodes_of_documents(text)]


def _with_place(fault: str, parts: Mapping[str, tuple[Path, Part]], homes: Mapping[str, Path]) -> str:
    said = fault.removeprefix("view ")
    # The longest name with which it begins, because names may have dots.
    for end in [found.start() for found in re.finditer(r"(?<!^)[:.]", said)][::-1]:
        name = said[:end]
        if name in parts:
            path, part = parts[name]
            return f"{path}:{line_of(part, said[end + 1 :].lstrip())}: {fault}"
        if name in homes:
            return f"{homes[name]}: {fault}"
    return fault


def _beneath(part: Part, word: str) -> Part | None:
    """Return an inner part of that name, or one inside a part that is not another feature."""
    found = part.inner.get(word) or part.inner.get(_ALSO.get(word, ""))
    if found is not None:
        return found.inner.get(_ALSO.get(word, ""), found)
    inside = (one.inner.get(word) for key, one in part.inner.items() if key in {"aggregation", "window"})
    return next((one for one in inside if one is not None), None)


def _parts_of(path: Path) -> Iterator[tuple[str, Part]]:
    """Yield the definitions that a file writes out, by the words with which their faults begin."""
    try:
        text = path.read_text("utf-8-sig")
        yield from _of_python(text) if path.suffix == ".py" else _of_yaml(text)
    # It could be read a moment ago; without it there is no line.
    except (OSError, ValueError, SyntaxError, RecursionError, yaml.YAMLError):
        return


def _of_python(text: str) -> Iterator[tuple[str, Part]]:
    tree = ast.parse(text)
    assigned = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        kind = _KINDS.get(_called(node))
        if kind is None:
            continue
        arguments = _arguments(node)
        name = _constant(arguments.get("name"))
        if isinstance(name, str):
            part = _of_call(node, assigned)
            yield f"{kind}{name}", part
            if not kind:
                version = _constant(arguments.get("version"))
                yield f"{name}@{1 if version is None else version}", part


def _called(node: object) -> str:
    """Return the last name of what is called; empty if it is no call."""
    function = node.func if isinstance(node, ast.Call) else None
    return (
        function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""
    )


def _arguments(call: Any) -> dict[str, ast.expr]:
    """Return the arguments of a call by name, those by place under the names of the word's fields."""
    fields: Sequence[str] = getattr(getattr(vocabulary, _called(call), None), "__struct_fields__", ())
    found = dict(zip(fields, call.args, strict=False))
    return found | {one.arg: one.value for one in call.keywords if one.arg is not None}


def _constant(node: ast.expr | None) -> object:
    return node.value if isinstance(node, ast.Constant) else None


def _of_call(call: Any, assigned: Mapping[str, ast.expr]) -> Part:
    inner: dict[str, Part] = {}
    for name, value in _arguments(call).items():
        node = assigned.get(value.id, value) if isinstance(value, ast.Name) else value
        called = _called(node)
        inner[name] = (
            _of_call(node, {}) if called in vars(vocabulary) and called not in _KINDS else Part(value.lineno, {})
        )
        for one in node.elts if isinstance(node, (ast.List, ast.Tuple)) else ():
            each = assigned.get(one.id, one) if isinstance(one, ast.Name) else one
            if _called(each) in _FEATURES:
                inner[f"{_OF_FEATURE}{_constant(_arguments(each).get('name'))}"] = _of_call(each, {})
    return Part(call.lineno, inner)


def _of_yaml(text: str) -> Iterator[tuple[str, Part]]:
    for node in nodes_of_documents(text):
        given = _mapping(node)
        for word, kind in _WORDS.items():
            if list(given) == [word] and isinstance(given[word][1], yaml.MappingNode):
                name = _mapping(given[word][1]).get("name")
                if name is not None:
                    yield f"{kind}{name[1].value}", _of_node(given[word][1])
                break
        else:
            if "name" in given:
                version = given["version"][1].value if "version" in given else "1"
                yield f"{given['name'][1].value}", _of_node(node)
                yield f"{given['name'][1].value}@{version}", _of_node(node)


def _mapping(node: Any) -> dict[str, tuple[Any, Any]]:
    """Return the keys of a mapping, each with its own node and that of its value; nothing for what is none."""
    return {key.value: (key, value) for key, value in node.value} if isinstance(node, yaml.MappingNode) else {}


def _of_node(node: Any) -> Part:
    inner: dict[str, Part] = {}
    given = _mapping(node)
    for word, (key, value) in given.items():
        inner[word] = Part(_line(key), _of_node(value).inner)
    if len(given) == 1:
        # ``stream: {...}``: faults name the keys inside, after the name.
        for word, (_, value) in given.items():
            inner |= _of_node(value).inner if word in _WORDS else {}
    features = given.get("features")
    for number, one in enumerate(
        features[1].value if features and isinstance(features[1].value, list) else (), start=1
    ):
        name = _mapping(one).get("name")
        inner[f"{_OF_FEATURE}{number if name is None else name[1].value}"] = _of_node(one)
    if "aggregation" in given and "name" in given:
        # A view of one feature, which has its name.
        inner[f"{_OF_FEATURE}{given['name'][1].value}"] = Part(_line(node), dict(inner))
    return Part(_line(node), inner)


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1
