"""Items of cells: multisets of codes, found by hash, and short lists of events in order.

A multiset (BAG) belongs to a tile or to a total. Its items form a linked list that begins in the cell, and are also in
a hash table by owner and code. Codes enter the total with every event and leave it with their tile, so what is read
from the total decays exactly.
"""

import numpy as np
from numba import uint64

from unskew.features.jit import compiled, inlined, inner
from unskew.features.kernel import words as w
from unskew.features.kernel.arithmetic import add_limbs, load_limbs, negate
from unskew.features.kernel.event_order import load_event, store_event


@inlined()
def total_owner(program, entity, accumulator):
    """Return the owner of the items of an accumulator of an entity's total."""
    return 2 * (entity * len(program.accumulators) + accumulator)


@inlined()
def tile_owner(program, tile, accumulator):
    """Return the owner of the items of an accumulator of a tile."""
    return 2 * (tile * len(program.accumulators) + accumulator) + 1


@compiled()
def _slot(slots, owner, code):
    """Mix owner and code with the finaliser of MurmurHash3."""
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
def first_item(cells, cell, word):
    """Return the first item of a cell's multiset or list; NONE if it has none."""
    return cells[cell, word + w.FIRST_ITEM] - 1


@inlined()
def _link(items, item, cells, cell, word, before, after):
    """Put an item into a cell's list, between two others or NONE."""
    items[item, w.ITEM_PREVIOUS] = before
    items[item, w.ITEM_NEXT] = after
    if before == w.NONE:
        cells[cell, word + w.FIRST_ITEM] = item + 1
    else:
        items[before, w.ITEM_NEXT] = item
    if after != w.NONE:
        items[after, w.ITEM_PREVIOUS] = item
    cells[cell, word + w.N_ITEMS] += 1


@inlined()
def _unlink(items, item, cells, cell, word):
    """Take an item out of a cell's list."""
    before, after = items[item, w.ITEM_PREVIOUS], items[item, w.ITEM_NEXT]
    if before == w.NONE:
        cells[cell, word + w.FIRST_ITEM] = after + 1
    else:
        items[before, w.ITEM_NEXT] = after
    if after != w.NONE:
        items[after, w.ITEM_PREVIOUS] = before
    cells[cell, word + w.N_ITEMS] -= 1


@inlined()
def _unchain(items, slots, item):
    """Take an item out of its slot of the hash table."""
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


@inner()
def put(scalars, items, slots, cells, cell, word, owner, code, count, low, mid, high):
    """Add a code to a multiset ``count`` times, with what it adds to the code's sum."""
    item = _find(items, slots, owner, code)
    if item == w.NONE:
        item = _new_item(scalars, items)
        _link(items, item, cells, cell, word, w.NONE, first_item(cells, cell, word))
        items[item, w.ITEM_OWNER] = owner
        items[item, w.ITEM_CODE] = code
        items[item, w.ITEM_COUNT] = 0
        for place in range(w.N_ITEM_WORDS):
            items[item, w.ITEM_WORDS + place] = 0
        slot = _slot(slots, owner, code)
        items[item, w.ITEM_CHAIN] = slots[slot]
        slots[slot] = item
    items[item, w.ITEM_COUNT] += count
    add_limbs(items, item, w.ITEM_WORDS, low, mid, high)


@inner()
def merge_bag(scalars, items, slots, cells, cell, word, owner, first):
    """Add the items of a tile, from ``first`` on, to a total."""
    item = first
    while item != w.NONE:
        code, count = items[item, w.ITEM_CODE], items[item, w.ITEM_COUNT]
        low, mid, high = load_limbs(items, item, w.ITEM_WORDS)
        put(scalars, items, slots, cells, cell, word, owner, code, count, low, mid, high)
        item = items[item, w.ITEM_NEXT]


@inner()
def subtract_bag(scalars, items, slots, cells, cell, word, owner, first):
    """Take the items of a leaving tile, from ``first`` on, out of a total, and free them."""
    item = first
    while item != w.NONE:
        following = items[item, w.ITEM_NEXT]
        held = _find(items, slots, owner, items[item, w.ITEM_CODE])
        items[held, w.ITEM_COUNT] -= items[item, w.ITEM_COUNT]
        if items[held, w.ITEM_COUNT] == 0:
            _unlink(items, held, cells, cell, word)
            _unchain(items, slots, held)
            _free_item(scalars, items, held)
        else:
            low, mid, high = load_limbs(items, item, w.ITEM_WORDS)
            low, mid, high = negate(low, mid, high)
            add_limbs(items, held, w.ITEM_WORDS, low, mid, high)
        _unchain(items, slots, item)
        _free_item(scalars, items, item)
        item = following


@inner()
def put_in_order(scalars, items, tiles, tile, word, owner, op, size, code, event):
    """Add an event to a tile's list of at most ``size``; the last one falls out of a full list."""
    before = w.NONE
    after = first_item(tiles, tile, word)
    place = 0
    # LAST_N has the latest events first, FIRST_N the earliest.
    while after != w.NONE and (event > load_event(items, after, w.ITEM_WORDS)) != (op == w.LAST_N):
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
    store_event(items, item, w.ITEM_WORDS, event)
    _link(items, item, tiles, tile, word, before, after)
    if tiles[tile, word + w.N_ITEMS] > size:
        last = item
        while items[last, w.ITEM_NEXT] != w.NONE:
            last = items[last, w.ITEM_NEXT]
        _unlink(items, last, tiles, tile, word)
        _free_item(scalars, items, last)


@inner()
def free_list(scalars, items, first):
    """Free the items of a leaving tile's list."""
    item = first
    while item != w.NONE:
        following = items[item, w.ITEM_NEXT]
        _free_item(scalars, items, item)
        item = following


@compiled()
def fill_slots(scalars, items, slots, in_table):
    """Enter all items of multisets into an empty table.

    ``in_table``: true for the accumulators whose items are in it.
    """
    n_accumulators = len(in_table)
    for item in range(scalars[w.S_ITEM_HIGH]):
        owner = items[item, w.ITEM_OWNER]
        if owner == w.NONE or not in_table[(owner >> 1) % n_accumulators]:
            continue
        slot = _slot(slots, owner, items[item, w.ITEM_CODE])
        items[item, w.ITEM_CHAIN] = slots[slot]
        slots[slot] = item
