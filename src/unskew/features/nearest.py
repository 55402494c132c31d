"""The end of a message about an unknown name."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: str, known: Iterable[str], introduction: str, *, none: str = "none") -> str:
    """Return a question for the nearest known name, or all known names after ``introduction``.

    ``none``: the text in place of an empty list.
    """
    names = [str(name) for name in known]
    near = get_close_matches(name, names, n=1)
    return f"did you mean {near[0]!r}?" if near else f"{introduction} {', '.join(names) or none}"
