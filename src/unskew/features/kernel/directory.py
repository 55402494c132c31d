"""A directory that maps entity keys to dense row numbers: an open-addressing table over pooled key bytes.

Keys are compared as a whole, so two entities never share a row. A freed row is used again.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import uint64

from unskew.features.jit import compiled, inner
from unskew.features.text_buffers import Keys, hash_bytes, read_only

EMPTY = -1
# Scalars of a directory.
D_ROWS, D_HIGH, D_FREE, D_POOL, D_GARBAGE = range(5)
_MIN_CAPACITY = 64
_MIN_POOL = 1024


class Arrays(NamedTuple):
    """The directory's arrays, owned by ``Directory``; ``rows`` arrays are indexed by row."""

    scalars: npt.NDArray[np.int64]
    slots: npt.NDArray[np.int32]
    hashes: npt.NDArray[np.uint64]
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int32]
    free: npt.NDArray[np.int32]
    pool: npt.NDArray[np.uint8]


@inner()
def _find(arrays, hashed, data, start, stop):
    """Return the slot that holds the key, or the empty slot where it would go."""
    mask = len(arrays.slots) - 1
    slot = np.int64(hashed & uint64(mask))
    length = stop - start
    while True:
        row = arrays.slots[slot]
        if row == EMPTY:
            return slot
        if arrays.hashes[row] == hashed and arrays.lengths[row] == length:
            base = arrays.starts[row]
            same = True
            for index in range(length):
                if arrays.pool[base + index] != data[start + index]:
                    same = False
                    break
            if same:
                return slot
        slot = (slot + 1) & mask


@compiled()
def find_rows(arrays, offsets, data, out):
    """Write the row of every key, or -1."""
    for index in range(len(offsets) - 1):
        start, stop = offsets[index], offsets[index + 1]
        out[index] = arrays.slots[_find(arrays, hash_bytes(data, start, stop), data, start, stop)]


@inner()
def insert_row(arrays, data, start, stop):
    """Return the row of a key, and whether it is new; the caller ensures capacity."""
    scalars = arrays.scalars
    hashed = hash_bytes(data, start, stop)
    slot = _find(arrays, hashed, data, start, stop)
    row = arrays.slots[slot]
    if row != EMPTY:
        return row, False
    if scalars[D_FREE] > 0:
        scalars[D_FREE] -= 1
        row = arrays.free[scalars[D_FREE]]
    else:
        row = np.int32(scalars[D_HIGH])
        scalars[D_HIGH] += 1
    base = scalars[D_POOL]
    for offset in range(stop - start):
        arrays.pool[base + offset] = data[start + offset]
    scalars[D_POOL] = base + stop - start
    arrays.starts[row] = base
    arrays.lengths[row] = stop - start
    arrays.hashes[row] = hashed
    arrays.slots[slot] = row
    scalars[D_ROWS] += 1
    return row, True


@compiled()
def insert_rows(arrays, offsets, data, out, fresh):
    """Write the row of every key, adding new ones; return the number of new rows, which are in ``fresh``.

    The caller ensures capacity.
    """
    n_fresh = 0
    for index in range(len(offsets) - 1):
        row, is_new = insert_row(arrays, data, offsets[index], offsets[index + 1])
        out[index] = row
        if is_new:
            fresh[n_fresh] = row
            n_fresh += 1
    return n_fresh


@inner()
def remove_row(arrays, row):
    """Forget a row's key and free the row for another one (linear probing, backward shift)."""
    mask = np.int64(len(arrays.slots) - 1)
    slot = np.int64(arrays.hashes[row] & uint64(mask))
    while arrays.slots[slot] != row:
        slot = (slot + 1) & mask
    hole = slot
    probe = slot
    while True:
        probe = (probe + 1) & mask
        other = arrays.slots[probe]
        if other == EMPTY:
            break
        home = np.int64(arrays.hashes[other] & uint64(mask))
        if ((probe - home) & mask) >= ((probe - hole) & mask):
            arrays.slots[hole] = other
            hole = probe
    arrays.slots[hole] = EMPTY
    scalars = arrays.scalars
    scalars[D_GARBAGE] += arrays.lengths[row]
    arrays.lengths[row] = -1
    arrays.free[scalars[D_FREE]] = row
    scalars[D_FREE] += 1
    scalars[D_ROWS] -= 1


@compiled()
def _fill_rows(arrays, lengths, offsets, data):
    scalars = arrays.scalars
    for row in range(len(lengths)):
        start, stop = offsets[row], offsets[row + 1]
        arrays.lengths[row] = lengths[row]
        if lengths[row] < 0:
            arrays.free[scalars[D_FREE]] = row
            scalars[D_FREE] += 1
            continue
        for position in range(start, stop):
            arrays.pool[position] = data[position]
        arrays.starts[row] = start
        hashed = hash_bytes(data, start, stop)
        arrays.hashes[row] = hashed
        arrays.slots[_find(arrays, hashed, data, start, stop)] = row
        scalars[D_ROWS] += 1
    scalars[D_HIGH] = len(lengths)
    scalars[D_POOL] = offsets[len(lengths)]


@compiled()
def _fill_slots(slots, hashes, lengths, high):
    mask = np.int64(len(slots) - 1)
    for row in range(high):
        if lengths[row] >= 0:
            slot = np.int64(hashes[row] & uint64(mask))
            while slots[slot] != EMPTY:
                slot = (slot + 1) & mask
            slots[slot] = row


@compiled()
def _repack(arrays, pool):
    place = 0
    for row in range(arrays.scalars[D_HIGH]):
        length = arrays.lengths[row]
        if length >= 0:
            base = arrays.starts[row]
            for index in range(length):
                pool[place + index] = arrays.pool[base + index]
            arrays.starts[row] = place
            place += length
    arrays.scalars[D_POOL] = place
    arrays.scalars[D_GARBAGE] = 0


@compiled()
def _gather_lengths(arrays, rows, offsets):
    total = 0
    offsets[0] = 0
    for index in range(len(rows)):
        total += arrays.lengths[rows[index]]
        offsets[index + 1] = total


@compiled()
def _gather_bytes(arrays, rows, offsets, out):
    for index in range(len(rows)):
        base = arrays.starts[rows[index]]
        place = offsets[index]
        for position in range(offsets[index + 1] - place):
            out[place + position] = arrays.pool[base + position]


@compiled()
def remove_rows(arrays, rows):
    """Forget many rows."""
    for row in rows:
        remove_row(arrays, row)


def grown(array: npt.NDArray[Any], capacity: int, fill: int | None = None) -> npt.NDArray[Any]:
    """Return a copy with its first axis made ``capacity`` long.

    New places are set to ``fill``, or left uninitialised if it is None.
    """
    result = np.empty((capacity, *array.shape[1:]), array.dtype)
    result[: len(array)] = array
    if fill is not None:
        result[len(array) :] = fill
    return result


class Directory:
    """A map from entity key to row; owns its arrays."""

    def __init__(self) -> None:
        self.arrays = Arrays(
            scalars=np.zeros(5, np.int64),
            slots=np.full(2 * _MIN_CAPACITY, EMPTY, np.int32),
            hashes=np.zeros(_MIN_CAPACITY, np.uint64),
            starts=np.zeros(_MIN_CAPACITY, np.int64),
            lengths=np.full(_MIN_CAPACITY, -1, np.int32),
            free=np.zeros(_MIN_CAPACITY, np.int32),
            pool=np.zeros(_MIN_POOL, np.uint8),
        )

    @property
    def capacity(self) -> int:
        """The number of rows that fit before the arrays grow."""
        return len(self.arrays.hashes)

    def __len__(self) -> int:
        return int(self.arrays.scalars[D_ROWS])

    def insert(self, keys: Keys) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return the rows of all keys, int32 [n], and the rows that are new."""
        count = len(keys.offsets) - 1
        self.reserve(count, int(keys.offsets[-1] - keys.offsets[0]) if count else 0)
        rows = np.empty(count, np.int32)
        fresh = np.empty(count, np.int32)
        n_fresh = insert_rows(self.arrays, read_only(keys.offsets), read_only(keys.data), rows, fresh)
        return rows, fresh[:n_fresh]

    def rows_as_they_lie(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
        """Return the length of every row's key up to the last row, -1 if free, and the keys' bytes end to end."""
        rows = self.rows()
        high = int(rows[-1]) + 1 if len(rows) else 0
        return self.arrays.lengths[:high].copy(), self.gather(rows).data

    @classmethod
    def of_rows(cls, lengths: npt.NDArray[np.int32], data: npt.NDArray[np.uint8]) -> "Directory":
        """Return a directory whose keys have the rows that ``rows_as_they_lie`` returned."""
        result = cls()
        offsets = np.concatenate(([0], np.cumsum(np.maximum(lengths, 0)))).astype(np.int64)
        result.reserve(len(lengths), int(offsets[-1]))
        _fill_rows(result.arrays, lengths, offsets, read_only(data))
        return result

    def find(self, keys: Keys) -> npt.NDArray[np.int32]:
        """Return the rows of all keys, -1 if unknown."""
        rows = np.empty(len(keys.offsets) - 1, np.int32)
        find_rows(self.arrays, read_only(keys.offsets), read_only(keys.data), rows)
        return rows

    def rows(self) -> npt.NDArray[np.int32]:
        """Return all live rows, ascending."""
        high = int(self.arrays.scalars[D_HIGH])
        return np.flatnonzero(self.arrays.lengths[:high] >= 0).astype(np.int32)

    def gather(self, rows: npt.NDArray[np.int32]) -> Keys:
        """Return the keys of live rows."""
        offsets = np.empty(len(rows) + 1, np.int64)
        _gather_lengths(self.arrays, rows, offsets)
        data = np.empty(int(offsets[-1]), np.uint8)
        _gather_bytes(self.arrays, rows, offsets, data)
        return Keys(offsets, data)

    def reserve(self, n_keys: int, n_bytes: int) -> None:
        """Make room for that many more keys with that many bytes in total."""
        scalars = self.arrays.scalars
        needed = int(scalars[D_HIGH]) + max(0, n_keys - int(scalars[D_FREE]))
        if needed > self.capacity:
            capacity = max(2 * self.capacity, needed)
            self.arrays = self.arrays._replace(
                hashes=grown(self.arrays.hashes, capacity),
                starts=grown(self.arrays.starts, capacity),
                lengths=grown(self.arrays.lengths, capacity, -1),
                free=grown(self.arrays.free, capacity),
            )
        if 2 * (scalars[D_ROWS] + n_keys) > len(self.arrays.slots):
            size = 1 << int(4 * (scalars[D_ROWS] + n_keys) - 1).bit_length()
            slots = np.full(size, EMPTY, np.int32)
            _fill_slots(slots, self.arrays.hashes, self.arrays.lengths, scalars[D_HIGH])
            self.arrays = self.arrays._replace(slots=slots)
        if scalars[D_POOL] + n_bytes > len(self.arrays.pool):
            live = int(scalars[D_POOL] - scalars[D_GARBAGE])
            pool = np.empty(max(_MIN_POOL, 2 * (live + n_bytes)), np.uint8)
            _repack(self.arrays, pool)
            self.arrays = self.arrays._replace(pool=pool)
