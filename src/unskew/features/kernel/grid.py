"""The time grid of a window: instants and the tiles that contain them."""

import numpy as np

from unskew.features.jit import inlined
from unskew.features.kernel import words as w


@inlined()
def ordinal(program, window, instant):
    """Return the number of the tile that contains an instant."""
    windows = program.windows
    kind = windows[window, w.W_KIND]
    if kind == w.CALENDAR:
        low = windows[window, w.W_TABLE]
        high = windows[window, w.W_TABLE_END]
        while high - low > 1:
            middle = (low + high) >> 1
            if program.boundaries[middle] <= instant:
                low = middle
            else:
                high = middle
        return low - windows[window, w.W_TABLE]
    if kind == w.LIFETIME:
        return np.int64(0)
    return instant // windows[window, w.W_HOP]


@inlined()
def boundary(program, window, number):
    """Return the first instant of a tile; FOREVER for the tile that would follow a lifetime."""
    windows = program.windows
    kind = windows[window, w.W_KIND]
    if kind == w.CALENDAR:
        return program.boundaries[windows[window, w.W_TABLE] + number]
    if kind == w.LIFETIME:
        return w.FOREVER
    return number * windows[window, w.W_HOP]


@inlined()
def leaving(program, window, number):
    """Return the number of the tile at whose beginning a tile leaves the window."""
    return number + program.windows[window, w.W_SPAN] + 1
