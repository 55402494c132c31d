"""How often Python looks for garbage, that is, for objects that refer to each other in a circle, while a flow runs.

A search looks at all objects of a generation while the flow waits. Definitions, plans and compiled code are hundreds of
thousands of objects that stay, so a search through all of them takes long. A flow makes hardly any garbage that
counting references does not free.
"""

import contextlib
import gc
from collections.abc import Iterator

THRESHOLDS = 10_000, 20, 50
"""So many new objects start a search among them, so many of these one among those of the searches since the last one of
this kind, and so many of these one among all. Python's defaults are 700, 10 and 10."""


@contextlib.contextmanager
def looked_for_rarely() -> Iterator[None]:
    """Look for garbage rarely in this block; after it, as before."""
    before = gc.get_threshold()
    gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


def keep_what_is_there() -> None:
    """Let no later search look at the objects that there are now, because they stay for as long as the process runs.

    Only the newer ones are searched first: a search among all would make the flow wait far longer.
    """
    gc.collect(1)
    gc.freeze()
