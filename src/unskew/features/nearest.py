"""The end of a message about an unknown name."""

from collections.abc import Iterable
from difflib import get_close_matches


def perhaps(name: str, given: Iterable[str]) -> str:
    """Return a question for what was given in place of a name that is needed, or all that was given."""
    names = [str(one) for one in given]
    near = get_close_matches(name, names, n=1)
    return f"is it {near[0]!r}? then rename that" if near else f"they are {', '.join(names) or 'none'}"


def nearest(name: str, known: Iterable[str], introduction: str, *, none: str = "none") -> str:
    """Return a question for the nearest known name, or all known names after ``introduction``.

    ``none``: the text in place of an empty list.
    """
    names = [str(name) for name in known]
    near = get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"{introduction} {', '.join(names) or none}"
