"""A directory that maps entity keys to dense row numbers: an open-addressing table over pooled key bytes.

With many keys every slot and every record is out of the processor's cache, so keys are looked up in a pipeline: the
memory of later ones is fetched while an earlier one is compared (Chen et al., "Improving Hash Join Performance through
Prefetching", ICDE 2004, section 5).

Keys are compared as a whole, so two entities never share a row. A freed row is used again.
"""

import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import uint64

from unskew.features.jit import array_at, compiled, inlined, inner, load_word, prefetch, prefetch_item
from unskew.features.kernel.memory import capacity_for, grown
from unskew.features.text_buffers import Keys, read_only

EMPTY = -1
# Scalars of a directory.
D_ROWS, D_HIGH, D_FREE, D_POOL, D_GARBAGE, D_SEED, D_MOVED, N_SCALARS = range(8)
# Columns of ``records``: the hash of the row's key, its length (-1 if the row is free), its place in the pool, and its
# first eight bytes.
R_HASH, R_LENGTH, R_START, R_HEAD, N_R_COLUMNS = range(5)
# Where a directory's arrays lie: the addresses and the lengths of its slots, its records and its pool.
P_SLOTS, P_N_SLOTS, P_RECORDS, P_N_RECORDS, P_POOL, P_N_POOL, N_PLACES = range(7)
HEAD_BYTES = 8
_MIN_CAPACITY = 64
_MIN_POOL = 1024
# Of the pool's bytes; with more, it is packed before it grows.
_MOST_GARBAGE = 1 / 8
_ROW_BITS = 32
_ROW_MASK = (1 << _ROW_BITS) - 1
# For so many keys, memory is taken before their length is known: so many bytes for each.
_FEW_KEYS, _USUAL_BYTES = 1_000, 24
# How many keys ahead memory is prefetched: first the slot, then, once that is there, the record.
_SLOT_AHEAD, _RECORD_AHEAD = 32, 16
# A table of slots is full when half of its slots have a row. From this part of that on, the next table is made ready,
# and then rows are moved there, so many for each key that comes and at least so many at once: it is done before the
# table is full.
_READY_FROM = 3 / 4
_SLOTS_A_KEY, _LEAST_SLOTS = 48, 1 << 16
_MOVED_A_KEY, _LEAST_MOVED = 12, 1 << 12
# All directories of a process have one, so that a key is hashed once to be looked for in many of them.
_SEED = secrets.randbits(63)


class Arrays(NamedTuple):
    """The directory's arrays, owned by ``Directory``.

    ``slots``: bits of a key's hash above its row, so that only the record of a key that is probably the same is read.
    ``next_slots``: the table that takes the place of ``slots``; the rows below ``D_MOVED`` are in both. ``records``
    [rows, 4]: columns ``R_...``, half a cache line for each row. ``free``: rows to use again.
    """

    scalars: npt.NDArray[np.int64]
    slots: npt.NDArray[np.int64]
    next_slots: npt.NDArray[np.int64]
    records: npt.NDArray[np.int64]
    free: npt.NDArray[np.int32]
    pool: npt.NDArray[np.uint8]


@inlined()
def _word_at(data, start, stop):
    """Return the eight bytes of a key from ``start`` on, the first one lowest; 0 for those after its end."""
    length = stop - start
    if start + HEAD_BYTES <= len(data):
        word = load_word(data, start)
        if length < HEAD_BYTES:
            word &= (uint64(1) << uint64(8 * length)) - uint64(1)
        return word
    word = uint64(0)
    for index in range(min(length, HEAD_BYTES)):
        word |= uint64(data[start + index]) << uint64(8 * index)
    return word


@inlined()
def _mixed(word):
    """Mix 64 bits: two rounds of xor-shift and multiplication, which lose nothing."""
    word ^= word >> uint64(32)
    word *= uint64(0xD6E8FEB86659FD93)
    word ^= word >> uint64(32)
    word *= uint64(0xD6E8FEB86659FD93)
    return word ^ (word >> uint64(32))


@inner()
def _hash(seed, data, start, stop):
    """Hash a key word by word.

    It is the directory's own, because it shows nowhere: rows are numbered in the order in which keys come. So it has
    a seed that nobody knows, and keys that were made to collide do not.
    """
    value = _mixed(uint64(seed) ^ uint64(stop - start))
    for place in range(start, stop, HEAD_BYTES):
        value = _mixed(value ^ _word_at(data, place, stop))
    return value


@inlined()
def _home(slots, hashed):
    """Return the slot at which the search for a hash begins."""
    return np.int64(hashed & uint64(len(slots) - 1))


@inlined()
def _print_of(hashed):
    """Return the bits of a hash that a slot holds: not those that choose the slot, and one less than fit."""
    return np.int64(hashed >> uint64(_ROW_BITS + 1))


@inlined()
def _is_key(arrays, row, hashed, data, start, stop):
    records = arrays.records
    length = stop - start
    if uint64(records[row, R_HASH]) != hashed or records[row, R_LENGTH] != length:
        return False
    if uint64(records[row, R_HEAD]) != _word_at(data, start, stop):
        return False
    base = records[row, R_START]
    for index in range(HEAD_BYTES, length):
        if arrays.pool[base + index] != data[start + index]:
            return False
    return True


@inner()
def _find(arrays, hashed, data, start, stop):
    """Return the slot that holds the key, or the empty slot where it would go."""
    slots = arrays.slots
    mask = len(slots) - 1
    slot = _home(slots, hashed)
    print_ = _print_of(hashed)
    while True:
        held = slots[slot]
        if held == EMPTY:
            return slot
        if held >> _ROW_BITS == print_ and _is_key(arrays, held & _ROW_MASK, hashed, data, start, stop):
            return slot
        slot = (slot + 1) & mask


@inlined()
def _row_at(arrays, slot):
    """Return the row that a slot holds, or EMPTY."""
    held = arrays.slots[slot]
    return np.int32(EMPTY) if held == EMPTY else np.int32(held & _ROW_MASK)


@inlined()
def _hash_ahead(arrays, offsets, data, hashes, first, end):
    """Hash these keys, and fetch their slots."""
    for index in range(first, min(end, len(offsets) - 1)):
        hashes[index] = _hash(arrays.scalars[D_SEED], data, offsets[index], offsets[index + 1])
        prefetch_item(arrays.slots, _home(arrays.slots, hashes[index]))


@inlined()
def _look_ahead(arrays, offsets, data, hashes, index):
    """Hide the latency of memory: fetch what keys to come will need, all of them at the same time."""
    _hash_ahead(arrays, offsets, data, hashes, 0 if index == 0 else index + _SLOT_AHEAD, index + _SLOT_AHEAD + 1)
    if index + _RECORD_AHEAD < len(offsets) - 1:
        held = arrays.slots[_home(arrays.slots, hashes[index + _RECORD_AHEAD])]
        if held != EMPTY:
            prefetch(arrays.records, held & _ROW_MASK, R_HASH)


@compiled()
def find_rows(arrays, offsets, data, hashes, out):
    """Write the row of every key, or -1; ``hashes`` is space."""
    for index in range(len(offsets) - 1):
        _look_ahead(arrays, offsets, data, hashes, index)
        out[index] = _row_at(arrays, _find(arrays, hashes[index], data, offsets[index], offsets[index + 1]))


@compiled()
def find_among(places, groups, own, scalars, offsets, data, hashes, out):
    """Write for every key the group of the first directory that has it, or -1, leaving out those of group ``own``.

    ``places``: the address of each directory's ``place``; they have one seed, as in ``scalars``. ``groups``: each
    directory's group. ``hashes`` is space.
    """
    n_keys = len(offsets) - 1
    for index in range(n_keys):
        hashes[index] = _hash(scalars[D_SEED], data, offsets[index], offsets[index + 1])
        out[index] = EMPTY
    for number in range(len(places)):
        if groups[number] == own:
            continue
        place = array_at(places[number], (N_PLACES,), places)
        arrays = Arrays(
            scalars,
            array_at(place[P_SLOTS], (place[P_N_SLOTS],), places),
            places,
            array_at(place[P_RECORDS], (place[P_N_RECORDS], N_R_COLUMNS), places),
            out,
            array_at(place[P_POOL], (place[P_N_POOL],), data),
        )
        for index in range(n_keys):
            if index + _SLOT_AHEAD < n_keys:
                prefetch_item(arrays.slots, _home(arrays.slots, hashes[index + _SLOT_AHEAD]))
            if out[index] == EMPTY:
                slot = _find(arrays, hashes[index], data, offsets[index], offsets[index + 1])
                if arrays.slots[slot] != EMPTY:
                    out[index] = groups[number]


@inlined()
def _put(arrays, slot, row, hashed, data, start, stop, base):
    """Write the record of a key, whose bytes are in the pool from ``base`` on, and its slot."""
    records = arrays.records
    records[row, R_HASH] = np.int64(hashed)
    records[row, R_LENGTH] = stop - start
    records[row, R_START] = base
    records[row, R_HEAD] = np.int64(_word_at(data, start, stop))
    arrays.slots[slot] = _print_of(hashed) << _ROW_BITS | row
    if row < arrays.scalars[D_MOVED]:
        _enter(arrays.next_slots, hashed, row)
    arrays.scalars[D_ROWS] += 1


@inlined()
def _enter(slots, hashed, row):
    """Write a row into the first empty slot from its home on."""
    slot = _home(slots, hashed)
    while slots[slot] != EMPTY:
        slot = (slot + 1) & (len(slots) - 1)
    slots[slot] = _print_of(hashed) << _ROW_BITS | row


@inner()
def _insert(arrays, hashed, data, start, stop):
    """Return the row of a key, and whether it is new."""
    scalars = arrays.scalars
    slot = _find(arrays, hashed, data, start, stop)
    row = _row_at(arrays, slot)
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
    _put(arrays, slot, row, hashed, data, start, stop, base)
    return row, True


@inner()
def insert_row(arrays, data, start, stop):
    """Return the row of a key, and whether it is new; the caller ensures capacity."""
    return _insert(arrays, _hash(arrays.scalars[D_SEED], data, start, stop), data, start, stop)


@compiled()
def insert_rows(arrays, offsets, data, hashes, out, fresh):
    """Write the row of every key, adding new ones; return the number of new rows, which are in ``fresh``.

    The caller ensures capacity. ``hashes`` is space.
    """
    n_fresh = 0
    for index in range(len(offsets) - 1):
        _look_ahead(arrays, offsets, data, hashes, index)
        row, is_new = _insert(arrays, hashes[index], data, offsets[index], offsets[index + 1])
        out[index] = row
        if is_new:
            fresh[n_fresh] = row
            n_fresh += 1
    return n_fresh


@inner()
def _take_out(slots, records, row):
    """Take a row out of a table of slots (linear probing, backward shift)."""
    mask = len(slots) - 1
    slot = _home(slots, uint64(records[row, R_HASH]))
    # An empty slot has no row, but all of its bits set; the key is found before one.
    while slots[slot] & _ROW_MASK != row:
        slot = (slot + 1) & mask
    hole = slot
    probe = slot
    while True:
        probe = (probe + 1) & mask
        held = slots[probe]
        if held == EMPTY:
            break
        home = _home(slots, uint64(records[held & _ROW_MASK, R_HASH]))
        if ((probe - home) & mask) >= ((probe - hole) & mask):
            slots[hole] = held
            hole = probe
    slots[hole] = EMPTY


@inner()
def remove_row(arrays, row):
    """Forget a row's key and free the row for another one."""
    scalars, records = arrays.scalars, arrays.records
    _take_out(arrays.slots, records, row)
    if row < scalars[D_MOVED]:
        _take_out(arrays.next_slots, records, row)
    scalars[D_GARBAGE] += records[row, R_LENGTH]
    records[row, R_LENGTH] = -1
    arrays.free[scalars[D_FREE]] = row
    scalars[D_FREE] += 1
    scalars[D_ROWS] -= 1


@compiled()
def _fill_rows(arrays, lengths, offsets, data):
    scalars = arrays.scalars
    for row in range(len(lengths)):
        start, stop = offsets[row], offsets[row + 1]
        if lengths[row] < 0:
            arrays.records[row, R_LENGTH] = -1
            arrays.free[scalars[D_FREE]] = row
            scalars[D_FREE] += 1
            continue
        for position in range(start, stop):
            arrays.pool[position] = data[position]
        hashed = _hash(scalars[D_SEED], data, start, stop)
        _put(arrays, _find(arrays, hashed, data, start, stop), row, hashed, data, start, stop, start)
    scalars[D_HIGH] = len(lengths)
    scalars[D_POOL] = offsets[len(lengths)]


@compiled()
def _move(scalars, slots, records, end):
    """Enter the rows from ``D_MOVED`` to ``end`` into the next table."""
    for row in range(scalars[D_MOVED], end):
        if row + _SLOT_AHEAD < end:
            prefetch_item(slots, _home(slots, uint64(records[row + _SLOT_AHEAD, R_HASH])))
        if records[row, R_LENGTH] >= 0:
            _enter(slots, uint64(records[row, R_HASH]), row)
    scalars[D_MOVED] = end


@compiled()
def _repack(arrays, pool):
    place = 0
    records = arrays.records
    for row in range(arrays.scalars[D_HIGH]):
        length = records[row, R_LENGTH]
        if length >= 0:
            base = records[row, R_START]
            for index in range(length):
                pool[place + index] = arrays.pool[base + index]
            records[row, R_START] = place
            place += length
    arrays.scalars[D_POOL] = place
    arrays.scalars[D_GARBAGE] = 0


@inlined()
def _gather_lengths(records, rows, offsets):
    offsets[0] = 0
    for index in range(len(rows)):
        if index + _SLOT_AHEAD < len(rows):
            prefetch(records, rows[index + _SLOT_AHEAD], R_HASH)
        offsets[index + 1] = offsets[index] + records[rows[index], R_LENGTH]


@compiled()
def _gather(arrays, rows, has_offsets, offsets, out):
    """Write where each key begins and the last one ends, unless that is known, and then the bytes, if they fit."""
    records = arrays.records
    if not has_offsets:
        _gather_lengths(records, rows, offsets)
    if offsets[len(rows)] > len(out):
        return
    for index in range(len(rows)):
        if index + _SLOT_AHEAD < len(rows):
            prefetch(records, rows[index + _SLOT_AHEAD], R_HASH)
        if index + _RECORD_AHEAD < len(rows) and records[rows[index + _RECORD_AHEAD], R_LENGTH] > HEAD_BYTES:
            prefetch_item(arrays.pool, records[rows[index + _RECORD_AHEAD], R_START])
        row = rows[index]
        place = offsets[index]
        length = offsets[index + 1] - place
        # A short key lies in its record, and the pool need not be read.
        word = uint64(records[row, R_HEAD])
        for position in range(min(length, HEAD_BYTES)):
            out[place + position] = np.uint8(word & uint64(0xFF))
            word >>= uint64(8)
        base = records[row, R_START]
        for position in range(HEAD_BYTES, length):
            out[place + position] = arrays.pool[base + position]


@compiled()
def remove_rows(arrays, rows):
    """Forget many rows."""
    for row in rows:
        remove_row(arrays, row)


_NO_SLOTS = np.empty(0, np.int64)


class Directory:
    """A map from entity key to row; owns its arrays."""

    def __init__(self) -> None:
        self.arrays = Arrays(
            scalars=np.zeros(N_SCALARS, np.int64),
            slots=np.full(2 * _MIN_CAPACITY, EMPTY, np.int64),
            next_slots=_NO_SLOTS,
            records=np.full((_MIN_CAPACITY, N_R_COLUMNS), -1, np.int64),
            free=np.zeros(_MIN_CAPACITY, np.int32),
            pool=np.zeros(_MIN_POOL, np.uint8),
        )
        self.arrays.scalars[D_SEED] = _SEED
        self._n_ready = 0
        self.place = np.empty(N_PLACES, np.int64)
        """Where the arrays lie now; always the same array."""
        self._note_place()

    def _note_place(self) -> None:
        arrays = self.arrays
        self.place[:] = [
            number
            for array in (arrays.slots, arrays.records, arrays.pool)
            for number in (array.ctypes.data, len(array))
        ]

    @property
    def capacity(self) -> int:
        """The number of rows that fit before the arrays grow."""
        return len(self.arrays.records)

    def __len__(self) -> int:
        return int(self.arrays.scalars[D_ROWS])

    def insert(self, keys: Keys) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return the rows of all keys, int32 [n], and the rows that are new."""
        count = len(keys.offsets) - 1
        self.reserve(count, int(keys.offsets[-1] - keys.offsets[0]) if count else 0)
        rows = np.empty(count, np.int32)
        fresh = np.empty(count, np.int32)
        n_fresh = insert_rows(
            self.arrays, read_only(keys.offsets), read_only(keys.data), np.empty(count, np.uint64), rows, fresh
        )
        return rows, fresh[:n_fresh]

    def rows_as_they_lie(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint8]]:
        """Return the length of every row's key up to the last row, -1 if free, and the keys' bytes end to end."""
        rows = self.rows()
        high = int(rows[-1]) + 1 if len(rows) else 0
        return self.arrays.records[:high, R_LENGTH].astype(np.int32), self.gather(rows).data

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
        find_rows(self.arrays, read_only(keys.offsets), read_only(keys.data), np.empty(len(rows), np.uint64), rows)
        return rows

    @property
    def n_rows(self) -> int:
        """The number of rows, free ones included."""
        return int(self.arrays.scalars[D_HIGH])

    def rows(self, first: int = 0, end: int | None = None) -> npt.NDArray[np.int32]:
        """Return all live rows, ascending; only those from ``first`` to before ``end`` if it is given."""
        end = self.n_rows if end is None else min(end, self.n_rows)
        return (np.flatnonzero(self.arrays.records[first:end, R_LENGTH] >= 0) + first).astype(np.int32)

    def rows_from(self, first: int, most: int) -> npt.NDArray[np.int32]:
        """Return the live rows from ``first`` on, ascending, ``most`` at most."""
        end = first + most
        rows = self.rows(first, end)
        while len(rows) < most and end < self.n_rows:
            end += end - first
            rows = self.rows(first, end)
        return rows[:most]

    def gather(self, rows: npt.NDArray[np.int32]) -> Keys:
        """Return the keys of live rows."""
        offsets = np.empty(len(rows) + 1, np.int64)
        # For few keys the call takes longer than what is done in it, and mostly one is enough.
        data = np.empty(_USUAL_BYTES * len(rows) if len(rows) <= _FEW_KEYS else 0, np.uint8)
        _gather(self.arrays, rows, False, offsets, data)
        n_bytes = int(offsets[-1])
        if n_bytes > len(data):
            data = np.empty(n_bytes, np.uint8)
            _gather(self.arrays, rows, True, offsets, data)
        return Keys(offsets, data[:n_bytes])

    def reserve(self, n_keys: int, n_bytes: int) -> None:
        """Make room for that many more keys with that many bytes in total."""
        scalars = self.arrays.scalars
        needed = int(scalars[D_HIGH]) + max(0, n_keys - int(scalars[D_FREE]))
        if needed > self.capacity:
            records = grown(self.arrays.records, capacity_for(needed, self.capacity), needed)
            self._set(records=records, free=grown(self.arrays.free, len(records)))
        self._reserve_slots(n_keys)
        self._reserve_pool(n_bytes)

    def _reserve_slots(self, n_keys: int) -> None:
        """Make room in the table of slots; before it is full, the next one is filled little by little.

        To fill it at once would stop the shard: with millions of keys for hundreds of milliseconds.
        """
        scalars = self.arrays.scalars
        n_slots, n_taken = len(self.arrays.slots), 2 * (int(scalars[D_ROWS]) + n_keys)
        if n_taken <= _READY_FROM * n_slots:
            return
        is_full = n_taken > n_slots
        if n_taken > len(self.arrays.next_slots):
            # A table that is filled at once is not to be nearly full again.
            size = max(2 * n_slots, 1 << int(n_taken / _READY_FROM).bit_length())
            self.arrays = self.arrays._replace(next_slots=np.empty(size, np.int64))
            self._n_ready = scalars[D_MOVED] = 0
        slots = self.arrays.next_slots
        if self._n_ready < len(slots):
            end = len(slots) if is_full else self._n_ready + max(_SLOTS_A_KEY * n_keys, _LEAST_SLOTS)
            slots[self._n_ready : end] = EMPTY
            self._n_ready = min(end, len(slots))
        if self._n_ready == len(slots):
            high, moved = int(scalars[D_HIGH]), int(scalars[D_MOVED])
            end = high if is_full else min(high, moved + max(_MOVED_A_KEY * n_keys, _LEAST_MOVED))
            _move(scalars, slots, self.arrays.records, end)
            if end == high:
                scalars[D_MOVED] = 0
                self._set(slots=slots, next_slots=_NO_SLOTS)

    def _reserve_pool(self, n_bytes: int) -> None:
        scalars, pool = self.arrays.scalars, self.arrays.pool
        needed = int(scalars[D_POOL]) + n_bytes
        if needed <= len(pool):
            return
        garbage = int(scalars[D_GARBAGE])
        if garbage <= _MOST_GARBAGE * needed:
            self._set(pool=grown(pool, 2 * needed, needed))
        else:
            packed = np.empty(max(_MIN_POOL, 2 * (needed - garbage)), np.uint8)
            _repack(self.arrays, packed)
            self._set(pool=packed)

    def _set(self, **arrays: npt.NDArray[Any]) -> None:
        self.arrays = self.arrays._replace(**arrays)
        self._note_place()


class Directories:
    """Many directories in groups, to find out which of them have a key.

    Only the thread that changes the directories may ask.
    """

    def __init__(self, groups: Sequence[Sequence[Directory]]) -> None:
        self._held = [directory for group in groups for directory in group]
        self._places = np.array([directory.place.ctypes.data for directory in self._held], np.int64)
        self._groups = np.repeat(np.arange(len(groups), dtype=np.int32), [len(group) for group in groups])

    def other_than(self, own: int, keys: Keys) -> npt.NDArray[np.int32]:
        """Return for each key the number of the first group that has it, apart from group ``own``; -1 if none does."""
        found = np.empty(len(keys.offsets) - 1, np.int32)
        hashes = np.empty(len(found), np.uint64)
        scalars = self._held[0].arrays.scalars
        find_among(
            self._places, self._groups, own, scalars, read_only(keys.offsets), read_only(keys.data), hashes, found
        )
        return found
