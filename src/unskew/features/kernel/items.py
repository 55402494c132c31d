"""The table of items: found by owner and code, made and freed."""

import numpy as np
from numba import uint64

from unskew.features.jit import compiled, inlined, prefetch, prefetch_item
from unskew.features.kernel import words as w


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
def beside(owner):
    """Return the owner of what is kept beside a total's items: below those of all cells, and always in the table."""
    return w.NONE - 1 - owner


@inlined()
def new_item(scalars, items):
    item = scalars[w.S_ITEM_FREE]
    if item != w.NONE:
        scalars[w.S_ITEM_FREE] = items[item, w.ITEM_NEXT]
    else:
        item = scalars[w.S_ITEM_HIGH]
        scalars[w.S_ITEM_HIGH] += 1
    scalars[w.S_ITEMS] += 1
    return item


@inlined()
def free_item(scalars, items, item):
    items[item, w.ITEM_OWNER] = w.NONE
    items[item, w.ITEM_NEXT] = scalars[w.S_ITEM_FREE]
    scalars[w.S_ITEM_FREE] = item
    scalars[w.S_ITEMS] -= 1


@inlined()
def enter(scalars, items, slots, owner, code):
    """Return a new item of the table, with a count of 0 and no sum; it is in no list."""
    item = new_item(scalars, items)
    items[item, w.ITEM_OWNER] = owner
    items[item, w.ITEM_CODE] = code
    items[item, w.ITEM_COUNT] = 0
    for place in range(w.N_ITEM_WORDS):
        items[item, w.ITEM_WORDS + place] = 0
    slot = _slot(slots, owner, code)
    items[item, w.ITEM_CHAIN] = slots[slot]
    slots[slot] = item
    return item


@inlined()
def unchain(items, slots, item):
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
def find(items, slots, owner, code):
    item = slots[_slot(slots, owner, code)]
    while item != w.NONE and (items[item, w.ITEM_CODE] != code or items[item, w.ITEM_OWNER] != owner):
        item = items[item, w.ITEM_CHAIN]
    return item


@inlined()
def fetch_slot(slots, owner, code):
    """Prefetch the slot in which ``find`` begins."""
    prefetch_item(slots, _slot(slots, owner, code))


@inlined()
def first_in_slot(slots, owner, code):
    """Return the item that ``find`` looks at first, or NONE."""
    return slots[_slot(slots, owner, code)]


@inlined()
def fetch_item(items, item):
    """Prefetch an item, which may lie in two cache lines."""
    prefetch(items, item, np.int64(w.ITEM_NEXT))
    prefetch(items, item, np.int64(w.ITEM_WORDS + w.N_ITEM_WORDS - 1))


@inlined()
def link(items, item, cells, cell, word, before, after):
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
def unlink(items, item, cells, cell, word):
    """Take an item out of a cell's list."""
    before, after = items[item, w.ITEM_PREVIOUS], items[item, w.ITEM_NEXT]
    if before == w.NONE:
        cells[cell, word + w.FIRST_ITEM] = after + 1
    else:
        items[before, w.ITEM_NEXT] = after
    if after != w.NONE:
        items[after, w.ITEM_PREVIOUS] = before
    cells[cell, word + w.N_ITEMS] -= 1


@compiled()
def fill_slots(scalars, items, slots, in_table):
    """Enter all items that are found by owner and code into an empty table.

    ``in_table``: true for the accumulators whose own items are in it.
    """
    n_accumulators = len(in_table)
    for item in range(scalars[w.S_ITEM_HIGH]):
        owner = items[item, w.ITEM_OWNER]
        if owner == w.NONE or (owner > w.NONE and not in_table[(owner >> 1) % n_accumulators]):
            continue
        slot = _slot(slots, owner, items[item, w.ITEM_CODE])
        items[item, w.ITEM_CHAIN] = slots[slot]
        slots[slot] = item
