"""Names of a test's cases, made from their values: what pytest would number says what it is."""

import dataclasses
import linecache
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import msgspec

LONGEST = 80


def case_name(value: Any, argument: str) -> str:
    """The part of a test's id that one argument gives, the same in every process."""
    if value is None or isinstance(value, bool | int | float):
        return f"{argument}={value}"
    text = _said(value).encode("unicode_escape").decode()
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def _said(value: Any) -> str:
    match value:
        case str():
            return value
        case bytes():
            return value.decode("latin-1")
        case Mapping():
            return ", ".join(f"{_said(name)}: {_said(each)}" for name, each in value.items())
        case AbstractSet():
            return ", ".join(sorted(map(_said, value)))
        case list() | tuple():
            return f"[{', '.join(map(_said, value))}]"
        case type():
            return value.__name__
    if dataclasses.is_dataclass(value) or isinstance(value, msgspec.Struct):
        return f"{type(value).__name__}({', '.join(_fields(value))})"
    return _source(value) if callable(value) else str(value)


def _fields(value: Any) -> Iterator[str]:
    """Those fields of a dataclass or a struct that are not as they are by default."""
    fields = msgspec.structs.fields(value) if isinstance(value, msgspec.Struct) else dataclasses.fields(value)
    for field in fields:
        # By their text: expressions give no truth when they are compared.
        if repr(each := getattr(value, field.name)) != repr(field.default):
            yield _said(each)


def _source(function: Callable[..., Any]) -> str:
    """The name of a function, or the text of a lambda's body where that is one line."""
    code = getattr(function, "__code__", None)
    if code is None or function.__name__ != "<lambda>":
        return getattr(function, "__name__", type(function).__name__)
    places = [place for place in code.co_positions() if None not in place and place[2:] != (0, 0)]
    line = code.co_firstlineno
    columns = [(begin, end) for first, last, begin, end in places if first == last == line]
    text = linecache.getline(code.co_filename, line).encode()
    return text[min(begin for begin, _ in columns) : max(end for _, end in columns)].decode() if columns else "lambda"
