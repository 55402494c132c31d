"""Values of features as text for people, and as JSON."""

import datetime as dt
import json
from decimal import Decimal
from typing import Any

from unskew.features.time import format_instant
from unskew.features.types import MAP_KEY, MAP_VALUE


def shown(value: Any) -> str:
    """Return a value as text for people: null as ``-``, an instant in RFC 3339, a map as ``{key: value}``.

    Text is quoted if a terminal cannot print all of it, and inside lists and maps.
    """
    match value:
        case None:
            return "-"
        case str():
            return value if value.isprintable() else _quoted(value)
        case dt.datetime():
            return format_instant(value)
        case [dict(), *_]:
            members = (f"{_quoted(member[MAP_KEY])}: {_inside(member[MAP_VALUE])}" for member in value)
            return f"{{{', '.join(members)}}}"
        case list():
            return f"[{', '.join(map(_inside, value))}]"
        case _:
            return str(value)


def plain(value: Any) -> Any:
    """Return a value for JSON, as over HTTP: a map as an object, an instant in RFC 3339, a decimal as text."""
    match value:
        case dt.datetime():
            return value.isoformat(timespec="microseconds").replace("+00:00", "Z")
        case Decimal():
            return str(value)
        case [dict(), *_]:
            return {member[MAP_KEY]: plain(member[MAP_VALUE]) for member in value}
        case list():
            return [plain(item) for item in value]
        case _:
            return value


def _inside(value: Any) -> str:
    return _quoted(value) if isinstance(value, str) else shown(value)


def _quoted(text: str) -> str:
    # JSON does not escape control characters beyond ASCII; a terminal obeys them.
    quoted = json.dumps(text, ensure_ascii=False)
    return quoted if quoted.isprintable() else json.dumps(text)
