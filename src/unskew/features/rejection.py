"""The reason why a record is a dead letter: a sentence for people, and one of a few kinds for counting."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal[
    "tombstone",
    "frame",
    "schema",
    "truncated",
    "trailing",
    "encoding",
    "malformed",
    "type",
    "range",
    "time",
    "key",
    "header",
    "number",
    "expression",
]
KINDS: tuple[Kind, ...] = get_args(Kind)

MEANINGS: Mapping[Kind, str] = {
    "tombstone": "the value is null",
    "frame": "the value does not begin as Confluent's frame does",
    "schema": "its schema id is unknown, or its schema cannot be resolved to the stream's",
    "truncated": "the value ends too early",
    "trailing": "bytes follow the value",
    "encoding": "a text is not UTF-8",
    "malformed": "the value is not a record of the schema, or not a JSON object",
    "type": "a field is missing, null, or of another type",
    "range": "a number or symbol is outside what its column holds",
    "time": "its event time or timestamp is null, out of range, past the present, or older than max_age",
    "key": "the entity's key is null, or the record key cannot be read",
    "header": "a header cannot be read",
    "number": "a value to aggregate is NaN, infinite, or too large",
    "expression": "an expression fails on it",
}

# A reason may quote the record, which may be long.
_LONGEST_REASON = 300


@dataclass(frozen=True, slots=True)
class Rejection:
    """The reason why one record, or one view's part of it, is a dead letter."""

    kind: Kind
    reason: str


def clear(reason: str) -> str:
    """Return the reason as it is stored: valid text of at most 300 characters."""
    sound = reason.encode(errors="backslashreplace").decode()
    return sound if len(sound) <= _LONGEST_REASON else sound[: _LONGEST_REASON - 3] + "..."
