"""Find the last row of a log for many (entity, instant) at once, in one pass and almost without sorting.

A counting sort groups the rows by entity and keeps each entity's rows in their order; a label is then one binary search
in its group. Only the group of an entity with rows in several shards may need sorting. A row of an entity without
labels costs one look into a hash table.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from unskew.features.jit import Entry, compiled, inlined
from unskew.features.text_buffers import read_only

Ids = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.int32]

_FREE = np.int32(-1)


class Wanted(NamedTuple):
    """The entities of the labels, numbered from 0.

    ``slot_ids``, ``slot_numbers``: an open-addressed hash table from id to number (-1: free) whose length is a power of
    two. ``numbers`` int32 [labels]: each label's entity. ``n``: the number of entities.
    """

    slot_ids: Ids
    slot_numbers: Numbers
    numbers: Numbers
    n: int


def number_entities(ids: Ids) -> Wanted:
    """Assign numbers to the distinct ids of labels in the order of their first label."""
    n_slots = 1 << max(4, (2 * len(ids)).bit_length())
    slot_ids = np.zeros(n_slots, np.uint64)
    slot_numbers = np.full(n_slots, _FREE, np.int32)
    numbers = np.empty(len(ids), np.int32)
    n = _number(read_only(ids), slot_ids, slot_numbers, numbers)
    if 8 * n < n_slots:
        # With few entities and many labels, a small table stays in the processor's cache during the pass over the log.
        slot_ids, slot_numbers = _shrunk(slot_ids, slot_numbers, n)
    return Wanted(slot_ids, slot_numbers, numbers, n)


def last_rows(wanted: Wanted, labels: Ints, bounds: Ints, ids: Ids, instants: Ints) -> Rows:
    """Return, for each of ``labels``, its entity's last log row with ``instant <= bound``; -1 if there is none.

    ``labels``: positions in the labels of which ``wanted`` was made; ``bounds``: the instants of these. ``ids``,
    ``instants`` [rows]: the log, each shard's rows in the order of writing.

    An entity that one partition forgot may have come back in another. So if an entity's instants go back, its rows come
    from several shards and are sorted.
    """
    numbers = np.empty(len(ids), np.int32)
    starts = np.zeros(wanted.n + 1, np.int64)
    _find(wanted.slot_ids, wanted.slot_numbers, read_only(ids), numbers, starts)
    grouped_instants = np.empty(int(starts[-1]), np.int64)
    grouped_rows = np.empty(int(starts[-1]), np.int64)
    if _group(numbers, read_only(instants), starts.copy(), starts, grouped_instants, grouped_rows):
        _sort(starts, grouped_instants, grouped_rows)
    found = np.empty(len(labels), np.int64)
    _search(wanted.numbers, labels, read_only(bounds), starts, grouped_instants, grouped_rows, found)
    return found


def entries() -> list[Entry]:
    """Return the compiled functions, for those who compile ahead; the types of arguments are always the same."""
    ids, ints, numbers = np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int32)
    shown = read_only(ints)
    return [
        Entry.of(_number, read_only(ids), ids, numbers, numbers),
        Entry.of(_find, ids, numbers, read_only(ids), numbers, ints),
        Entry.of(_group, numbers, shown, ints, ints, ints, ints),
        Entry.of(_search, numbers, ints, shown, ints, ints, ints, ints),
    ]


@inlined()
def _slot(identity: np.uint64, mask: np.uint64) -> np.uint64:
    """Return the first slot to try: splitmix64's finalizer (Steele, Lea, Flood 2014), as ids may be plain numbers."""
    mixed = identity
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))) & mask


@compiled()
def _number(ids: Ids, slot_ids: Ids, slot_numbers: Numbers, numbers: Numbers) -> int:
    mask = np.uint64(len(slot_ids) - 1)
    n = 0
    for label in range(len(ids)):
        slot = _slot(ids[label], mask)
        while slot_numbers[slot] >= 0 and slot_ids[slot] != ids[label]:
            slot = (slot + np.uint64(1)) & mask
        if slot_numbers[slot] < 0:
            slot_ids[slot] = ids[label]
            slot_numbers[slot] = n
            n += 1
        numbers[label] = slot_numbers[slot]
    return n


def _shrunk(slot_ids: Ids, slot_numbers: Numbers, n: int) -> tuple[Ids, Numbers]:
    """Return a smaller table, at most half full, filled in the order of numbers, so that every id keeps its number."""
    taken = np.flatnonzero(slot_numbers >= 0)
    in_order = taken[np.argsort(slot_numbers[taken])]
    n_slots = 1 << max(4, (2 * n).bit_length())
    small_ids = np.zeros(n_slots, np.uint64)
    small_numbers = np.full(n_slots, _FREE, np.int32)
    _number(read_only(slot_ids[in_order]), small_ids, small_numbers, np.empty(n, np.int32))
    return small_ids, small_numbers


@compiled()
def _find(slot_ids: Ids, slot_numbers: Numbers, ids: Ids, numbers: Numbers, starts: Ints) -> None:
    """Assign each log row its entity's number (-1: no labels); ``starts`` [n + 1] receives the start of each group."""
    mask = np.uint64(len(slot_ids) - 1)
    for row in range(len(ids)):
        slot = _slot(ids[row], mask)
        while slot_numbers[slot] >= 0 and slot_ids[slot] != ids[row]:
            slot = (slot + np.uint64(1)) & mask
        number = slot_numbers[slot]
        numbers[row] = number
        if number >= 0:
            starts[number + 1] += 1
    for number in range(1, len(starts)):
        starts[number] += starts[number - 1]


@compiled()
def _group(
    numbers: Numbers, instants: Ints, ends: Ints, starts: Ints, grouped_instants: Ints, grouped_rows: Rows
) -> bool:
    """Group each entity's rows, in their order; return whether the instants of any entity go back."""
    goes_back = False
    for row in range(len(numbers)):
        number = numbers[row]
        if number < 0:
            continue
        place = ends[number]
        ends[number] = place + 1
        instant = instants[row]
        if place > starts[number] and grouped_instants[place - 1] > instant:
            goes_back = True
        grouped_instants[place] = instant
        grouped_rows[place] = row
    return goes_back


def _sort(starts: Ints, grouped_instants: Ints, grouped_rows: Rows) -> None:
    """Put every group whose instants go back in their order; rows of one instant keep the order of writing."""
    group = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    goes_back = (grouped_instants[1:] < grouped_instants[:-1]) & (group[1:] == group[:-1])
    is_affected = np.zeros(len(starts) - 1, np.bool_)
    is_affected[group[1:][goes_back]] = True
    places = np.flatnonzero(is_affected[group])
    order = places[np.lexsort((grouped_instants[places], group[places]))]
    grouped_instants[places] = grouped_instants[order]
    grouped_rows[places] = grouped_rows[order]


@compiled()
def _search(
    numbers: Numbers, labels: Ints, bounds: Ints, starts: Ints, grouped_instants: Ints, grouped_rows: Rows, found: Rows
) -> None:
    for place in range(len(labels)):
        label = labels[place]
        number = numbers[label]
        low = starts[number]
        high = starts[number + 1]
        while low < high:
            middle = (low + high) >> 1
            if grouped_instants[middle] <= bounds[label]:
                low = middle + 1
            else:
                high = middle
        found[place] = grouped_rows[low - 1] if low > starts[number] else -1
