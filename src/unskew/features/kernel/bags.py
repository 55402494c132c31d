"""Items of cells: multisets of codes, found by hash, and short lists of events in order.

A multiset (BAG) belongs to a tile or to a total. Its items hang in a list from the cell, whose first word is the first item
plus one (0: none), whose second is how many different ones there are; and in a hash table by owner and code. Codes enter the
total with every event and leave it with their tile, so what is read from it decays exactly.
"""

import numpy as np
from numba import uint64

from unskew.features.jit import compiled, inlined
from unskew.features.kernel import words as w
from unskew.features.kernel.arithmetic import add, negate


@inlined()
def total_owner(program, entity, accumulator):
    """Who owns the items of an accumulator of an entity's total."""
    return 2 * (entity * len(program.accumulators) + accumulator)


@inlined()
def tile_owner(program, tile, accumulator):
    """Who owns the items of an accumulator of a tile."""
    return 2 * (tile * len(program.accumulators) + accumulator) + 1


@compiled()
def _slot(slots, owner, code):
    """Mix owner and code, as MurmurHash3 finishes."""
    value = uint64(code) * uint64(0x9E3779B97F4A7C15) ^ uint64(owner)
    value ^= value >> uint64(33)
    value *= uint64(0xFF51AFD7ED558CCD)
    value ^= value >> uint64(33)
    value *= uint64(0xC4CEB9FE1A85EC53)
    value ^= value >> uint64(33)
    return np.int64(value & uint64(len(slots) - 1))


@inlined()
def _new_item(scalars, items):
    item = scalars[w.S_ITEM_FREE]
    if item != w.NONE:
        scalars[w.S_ITEM_FREE] = items[item, w.ITEM_NEXT]
    else:
        item = scalars[w.S_ITEM_HIGH]
        scalars[w.S_ITEM_HIGH] += 1
    scalars[w.S_ITEMS] += 1
    return item


@inlined()
def _free_item(scalars, items, item):
    items[item, w.ITEM_OWNER] = w.NONE
    items[item, w.ITEM_NEXT] = scalars[w.S_ITEM_FREE]
    scalars[w.S_ITEM_FREE] = item
    scalars[w.S_ITEMS] -= 1


@inlined()
def _unchain(items, slots, item):
    """Take an item out of its slot of the table."""
    slot = _slot(slots, items[item, w.ITEM_OWNER], items[item, w.ITEM_CODE])
    if slots[slot] == item:
        slots[slot] = items[item, w.ITEM_CHAIN]
    else:
        other = slots[slot]
        while items[other, w.ITEM_CHAIN] != item:
            other = items[other, w.ITEM_CHAIN]
        items[other, w.ITEM_CHAIN] = items[item, w.ITEM_CHAIN]


@inlined()
def _find(items, slots, owner, code):
    item = slots[_slot(slots, owner, code)]
    while item != w.NONE and (items[item, w.ITEM_CODE] != code or items[item, w.ITEM_OWNER] != owner):
        item = items[item, w.ITEM_CHAIN]
    return item


@compiled()
def put(scalars, items, slots, cells, cell, word, owner, code, count, low, mid, high):
    """Let a code into a multiset ``count`` times, with what it adds to the code's sum."""
    item = _find(items, slots, owner, code)
    if item == w.NONE:
        item = _new_item(scalars, items)
        first = cells[cell, word] - 1
        items[item, w.ITEM_NEXT] = first
        items[item, w.ITEM_PREVIOUS] = w.NONE
        if first != w.NONE:
            items[first, w.ITEM_PREVIOUS] = item
        items[item, w.ITEM_OWNER] = owner
        items[item, w.ITEM_CODE] = code
        items[item, w.ITEM_COUNT] = 0
        for place in range(w.N_ITEM_WORDS):
            items[item, w.ITEM_WORDS + place] = 0
        slot = _slot(slots, owner, code)
        items[item, w.ITEM_CHAIN] = slots[slot]
        slots[slot] = item
        cells[cell, word] = item + 1
        cells[cell, word + 1] += 1
    items[item, w.ITEM_COUNT] += count
    _add_sum(items, item, low, mid, high)


@inlined()
def _add_sum(items, item, low, mid, high):
    low, mid, high = add(
        uint64(items[item, w.ITEM_WORDS]),
        uint64(items[item, w.ITEM_WORDS + 1]),
        uint64(items[item, w.ITEM_WORDS + 2]),
        uint64(low),
        uint64(mid),
        uint64(high),
    )
    items[item, w.ITEM_WORDS] = np.int64(low)
    items[item, w.ITEM_WORDS + 1] = np.int64(mid)
    items[item, w.ITEM_WORDS + 2] = np.int64(high)


@compiled()
def merge_bag(scalars, items, slots, cells, cell, word, owner, first):
    """Let the items of a tile, from ``first`` on, into a total."""
    item = first
    while item != w.NONE:
        put(
            scalars, items, slots, cells, cell, word, owner, items[item, w.ITEM_CODE], items[item, w.ITEM_COUNT],
            uint64(items[item, w.ITEM_WORDS]), uint64(items[item, w.ITEM_WORDS + 1]), uint64(items[item, w.ITEM_WORDS + 2]),
        )  # fmt: skip
        item = items[item, w.ITEM_NEXT]


@compiled()
def subtract_bag(scalars, items, slots, cells, cell, word, owner, first):
    """Take the items of a leaving tile, from ``first`` on, from a total; they are free after that."""
    item = first
    while item != w.NONE:
        following = items[item, w.ITEM_NEXT]
        held = _find(items, slots, owner, items[item, w.ITEM_CODE])
        items[held, w.ITEM_COUNT] -= items[item, w.ITEM_COUNT]
        if items[held, w.ITEM_COUNT] == 0:
            before, after = items[held, w.ITEM_PREVIOUS], items[held, w.ITEM_NEXT]
            if before == w.NONE:
                cells[cell, word] = after + 1
            else:
                items[before, w.ITEM_NEXT] = after
            if after != w.NONE:
                items[after, w.ITEM_PREVIOUS] = before
            cells[cell, word + 1] -= 1
            _unchain(items, slots, held)
            _free_item(scalars, items, held)
        else:
            low, mid, high = negate(
                uint64(items[item, w.ITEM_WORDS]),
                uint64(items[item, w.ITEM_WORDS + 1]),
                uint64(items[item, w.ITEM_WORDS + 2]),
            )
            _add_sum(items, held, low, mid, high)
        _unchain(items, slots, item)
        _free_item(scalars, items, item)
        item = following


@compiled()
def _comes_first(op, items, item, effective, arrival, partition, offset):
    """Whether an event goes before an item: it is later for LAST_N, earlier for FIRST_N."""
    later = op == w.LAST_N
    if effective != items[item, w.ITEM_WORDS]:
        return (effective > items[item, w.ITEM_WORDS]) == later
    if arrival != items[item, w.ITEM_WORDS + 1]:
        return (arrival > items[item, w.ITEM_WORDS + 1]) == later
    if partition != items[item, w.ITEM_WORDS + 2]:
        return (partition > items[item, w.ITEM_WORDS + 2]) == later
    return (offset > items[item, w.ITEM_WORDS + 3]) == later


@compiled()
def put_in_order(scalars, items, tiles, tile, word, owner, op, size, code, effective, arrival, partition, offset):
    """Let an event into a tile's list of at most ``size``; the last one falls out of a full list."""
    before = w.NONE
    after = tiles[tile, word] - 1
    place = 0
    while after != w.NONE and not _comes_first(op, items, after, effective, arrival, partition, offset):
        before = after
        after = items[after, w.ITEM_NEXT]
        place += 1
    if place >= size:
        return
    item = _new_item(scalars, items)
    items[item, w.ITEM_OWNER] = owner
    items[item, w.ITEM_CHAIN] = w.NONE
    items[item, w.ITEM_CODE] = code
    items[item, w.ITEM_COUNT] = 1
    items[item, w.ITEM_WORDS] = effective
    items[item, w.ITEM_WORDS + 1] = arrival
    items[item, w.ITEM_WORDS + 2] = partition
    items[item, w.ITEM_WORDS + 3] = offset
    items[item, w.ITEM_NEXT] = after
    items[item, w.ITEM_PREVIOUS] = before
    if before == w.NONE:
        tiles[tile, word] = item + 1
    else:
        items[before, w.ITEM_NEXT] = item
    if after != w.NONE:
        items[after, w.ITEM_PREVIOUS] = item
    tiles[tile, word + 1] += 1
    if tiles[tile, word + 1] > size:
        last = item
        while items[last, w.ITEM_NEXT] != w.NONE:
            last = items[last, w.ITEM_NEXT]
        items[items[last, w.ITEM_PREVIOUS], w.ITEM_NEXT] = w.NONE
        _free_item(scalars, items, last)
        tiles[tile, word + 1] -= 1


@compiled()
def free_list(scalars, items, first):
    """Free the items of a leaving tile's list."""
    item = first
    while item != w.NONE:
        following = items[item, w.ITEM_NEXT]
        _free_item(scalars, items, item)
        item = following


@compiled()
def fill_slots(scalars, items, slots, in_table):
    """Hang all items of multisets into an empty table; ``in_table``: which accumulators' items are in it."""
    n_accumulators = len(in_table)
    for item in range(scalars[w.S_ITEM_HIGH]):
        owner = items[item, w.ITEM_OWNER]
        if owner == w.NONE or not in_table[(owner >> 1) % n_accumulators]:
            continue
        slot = _slot(slots, owner, items[item, w.ITEM_CODE])
        items[item, w.ITEM_CHAIN] = slots[slot]
        slots[slot] = item
