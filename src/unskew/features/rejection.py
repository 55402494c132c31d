"""The reason why a record is a dead letter: a sentence for people, and one of a few kinds for counting."""

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
    "operation",
    "number",
    "expression",
]
KINDS: tuple[Kind, ...] = get_args(Kind)

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
