"""Statuses that both sides share, and warming values: their windows begin before the first arrival of the shard."""

from collections.abc import Iterable
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.features.definitions.windows import old_edge_us
from unskew.features.time import MAX_INSTANT_US
from unskew.features.view import View, ViewFeature

Ints = npt.NDArray[np.int64]


class Statuses(IntEnum):
    """What stands behind a value, in the order in which the first that holds is given.

    ``no_key``: the row lacks a part of the entity's key, so it has nobody's values, and all of them are null.
    """

    no_key = 0
    before_log = 1
    after_log = 2
    warming = 3
    expired = 4
    default = 5
    present = 6


def is_warming(
    view: View, features: Iterable[ViewFeature], instants_us: Ints, since_us: Ints | int
) -> npt.NDArray[np.bool_]:
    """Return, for each instant, whether a window of any of ``features`` begins before ``since_us`` at that instant.

    ``since_us``: the first arrival seen. A session that closes inside a window had its last event up to a gap and a hop
    before it closed.
    """
    behind_us = 0 if view.sessions is None else view.sessions.window.extent_us + view.sessions.window.hop_us
    warming = np.zeros(len(instants_us), np.bool_)
    for window in {window for feature in features for window in view.windows_of(feature)}:
        warming |= old_edge_us(window, instants_us) - behind_us < since_us
    return warming


def warm_from(view: View, from_us: int, since_us: int) -> int | None:
    """Return the first instant at which no window begins before ``since_us``, not before ``from_us``.

    None if that is later than any instant of which windows are known. Windows only move on, so it can be searched for.
    """

    def warms(instant_us: int) -> bool:
        return bool(is_warming(view, view.features, np.array([instant_us], np.int64), since_us)[0])

    low, high = from_us, MAX_INSTANT_US
    if not warms(low):
        return low
    if warms(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if warms(middle) else (low, middle)
    return high


def is_empty(stored: pl.Series, feature: ViewFeature) -> npt.NDArray[np.bool_]:
    """Return which stored values are those of an entity without events: what ``default`` says of a feature.

    An entity's row in Redis is deleted when its windows are empty, and then nothing tells it from an entity that was
    never seen. So the value decides, and not whether there is a row: log and Redis hold the same values.
    """
    if feature.empty is None:
        return stored.is_null().to_numpy()
    return (stored == pl.Series([feature.empty], dtype=stored.dtype)).fill_null(value=False).to_numpy()
