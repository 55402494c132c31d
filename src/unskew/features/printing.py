"""Text of others as text for people: what a terminal would obey, hide or reorder is written as an escape."""

import json
import re
from collections.abc import Mapping
from typing import Any


def counted(n: int, what: str) -> str:
    """Return a number with what is counted: ``1 stream``, ``2 streams``."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def printable(text: str) -> str:
    r"""Return text in which every character is printed, on one line: ``ESC`` as ``\x1b``, a newline as ``\n``.

    Escapes control characters, also those beyond ASCII, what turns the direction of text or has no width, separators of
    lines, and halves of surrogate pairs.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def pairs(texts: Mapping[str, Any]) -> str:
    """Return texts by name as ``name=text, ...``."""
    return ", ".join(f"{name}={text}" for name, text in texts.items())


def printable_json(value: Any, *, indent: int | None = None) -> str:
    """Return a value as JSON that a terminal can print; programs read the same value from it."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    # Outside strings, JSON has no such characters except the newlines of the indentation.
    return text if text.isprintable() else re.sub(r"[^\n]", _escaped, text)


def _escaped(found: re.Match[str]) -> str:
    one = found[0]
    return one if one.isprintable() else json.dumps(one)[1:-1]
