"""Arrays to which rows of successive steps are added."""

from typing import Any

import numpy as np
import numpy.typing as npt

from unskew.features.text_buffers import Keys

_LEAST_ROOM = 32
"""A copy has space for at least so many."""


def with_room(array: npt.NDArray[Any], size: int, axis: int = 0) -> npt.NDArray[Any]:
    """Return the array, or a copy with at least twice its space, if it has less than ``size`` along ``axis``."""
    n_now = array.shape[axis]
    if n_now >= size:
        return array
    shape = list(array.shape)
    shape[axis] = max(size, 2 * n_now, _LEAST_ROOM)
    larger = np.empty(shape, array.dtype)
    larger[(slice(None),) * axis + (slice(n_now),)] = array
    return larger


class GrowingKeys:
    """Keys of several batches, which are copied one after the other as they come; ``n_keys``: their number."""

    def __init__(self, first: Keys) -> None:
        self.n_keys = len(first.offsets) - 1
        self._offsets = first.offsets - first.offsets[0]
        self._data = first.data[first.offsets[0] : first.offsets[-1]]

    @property
    def n_bytes(self) -> int:
        """The length of all keys."""
        return int(self._offsets[self.n_keys])

    def add(self, keys: Keys) -> None:
        """Add a batch."""
        begin, end = self.n_keys, self.n_keys + len(keys.offsets) - 1
        n_bytes = int(self._offsets[begin])
        data = keys.data[keys.offsets[0] : keys.offsets[-1]]
        self._offsets = with_room(self._offsets, end + 1)
        self._data = with_room(self._data, n_bytes + len(data))
        np.add(keys.offsets[1:], n_bytes - keys.offsets[0], out=self._offsets[begin + 1 : end + 1])
        self._data[n_bytes : n_bytes + len(data)] = data
        self.n_keys = end

    def whole(self) -> Keys:
        """Return all keys so far; the space stays the same."""
        offsets = self._offsets[: self.n_keys + 1]
        return Keys(offsets, self._data[: offsets[-1]])
