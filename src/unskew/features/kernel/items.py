"""The table of items: found by owner and code, made and freed.

The table grows by linear hashing, slot by slot, so that no step waits until all items have found new places (Litwin,
"Linear Hashing: A New Tool for File and Table Addressing", VLDB 1980).
"""

import numpy as np
from numba import uint64

from unskew.features.jit import compiled, inlined, prefetch, prefetch_item
from unskew.features.kernel import words as w

# How many slots ahead memory is fetched while slots are divided.
_AHEAD = 8


@inlined()
def _hash(owner, code):
    """Mix owner and code: two multiplications, with the upper half folded into the lower one between them."""
    value = uint64(code) * uint64(0x9E3779B97F4A7C15) ^ uint64(owner)
    value ^= value >> uint64(32)
    value *= uint64(0xD6E8FEB86659FD93)
    return np.int64(value >> uint64(32))


@inlined()
def _slot(state, owner, code):
    """Return the slot of an owner and a code; one that is not divided yet stands for two."""
    mask = state.scalars[w.S_SLOT_MASK]
    slot = _hash(owner, code) & mask
    return slot if slot < state.scalars[w.S_SLOTS] else slot & (mask >> 1)


@inlined()
def beside(owner):
    """Return the owner of what is kept beside a total's items: below those of all cells, and always in the table."""
    return w.NONE - 1 - owner


@inlined()
def next_item(links, item):
    """Return the next item of the cell, or NONE; of an item that is free, the next free one."""
    return np.int64(links[item, w.ITEM_NEXT])


@inlined()
def previous_item(links, item):
    """Return the cell's item before this one, or NONE."""
    return np.int64(links[item, w.ITEM_PREVIOUS])


@inlined()
def new_item(state):
    scalars = state.scalars
    item = scalars[w.S_ITEM_FREE]
    if item != w.NONE:
        scalars[w.S_ITEM_FREE] = next_item(state.item_links, item)
    else:
        item = scalars[w.S_ITEM_HIGH]
        scalars[w.S_ITEM_HIGH] += 1
    scalars[w.S_ITEMS] += 1
    return item


@inlined()
def free_item(state, item):
    scalars = state.scalars
    state.items[item, w.ITEM_OWNER] = w.NONE
    state.item_links[item, w.ITEM_NEXT] = scalars[w.S_ITEM_FREE]
    scalars[w.S_ITEM_FREE] = item
    scalars[w.S_ITEMS] -= 1


@inlined()
def enter(state, owner, code):
    """Return a new item of the table, with a count of 0 and no sum; it is in no list."""
    item = new_item(state)
    state.items[item, w.ITEM_OWNER] = owner
    state.items[item, w.ITEM_CODE] = code
    for word in range(w.ITEM_COUNT, w.ITEM_WORDS):
        state.items[item, word] = 0
    slot = _slot(state, owner, code)
    state.item_links[item, w.ITEM_CHAIN] = state.slots[slot]
    state.item_links[item, w.ITEM_RANKED] = 0
    state.slots[slot] = item
    state.scalars[w.S_ENTERED] += 1
    return item


@inlined()
def unchain(state, item):
    """Take an item out of its slot of the hash table."""
    slots, links = state.slots, state.item_links
    slot = _slot(state, state.items[item, w.ITEM_OWNER], state.items[item, w.ITEM_CODE])
    other = np.int64(slots[slot])
    if other == item:
        slots[slot] = links[item, w.ITEM_CHAIN]
    else:
        while links[other, w.ITEM_CHAIN] != item:
            other = np.int64(links[other, w.ITEM_CHAIN])
        links[other, w.ITEM_CHAIN] = links[item, w.ITEM_CHAIN]
    state.scalars[w.S_ENTERED] -= 1


@inlined()
def find(state, owner, code):
    """Return the item of an owner and a code, or NONE."""
    items = state.items
    item = first_in_slot(state, owner, code)
    while item != w.NONE and (items[item, w.ITEM_CODE] != code or items[item, w.ITEM_OWNER] != owner):
        item = np.int64(state.item_links[item, w.ITEM_CHAIN])
    return item


@inlined()
def fetch_slot(state, owner, code):
    """Prefetch the slot in which ``find`` begins."""
    prefetch_item(state.slots, _slot(state, owner, code))


@inlined()
def first_in_slot(state, owner, code):
    """Return the item that ``find`` looks at first, or NONE."""
    return np.int64(state.slots[_slot(state, owner, code)])


@inlined()
def fetch_item(state, item):
    """Prefetch an item."""
    prefetch(state.items, item, np.int64(0))


@inlined()
def link(state, item, cells, cell, word, before, after):
    """Put an item into a cell's list, between two others or NONE."""
    links = state.item_links
    links[item, w.ITEM_PREVIOUS] = before
    links[item, w.ITEM_NEXT] = after
    if before == w.NONE:
        cells[cell, word + w.FIRST_ITEM] = item + 1
    else:
        links[before, w.ITEM_NEXT] = item
    if after != w.NONE:
        links[after, w.ITEM_PREVIOUS] = item
    cells[cell, word + w.N_ITEMS] += 1


@inlined()
def unlink(state, item, cells, cell, word):
    """Take an item out of a cell's list."""
    links = state.item_links
    before, after = previous_item(links, item), next_item(links, item)
    if before == w.NONE:
        cells[cell, word + w.FIRST_ITEM] = after + 1
    else:
        links[before, w.ITEM_NEXT] = after
    if after != w.NONE:
        links[after, w.ITEM_PREVIOUS] = before
    cells[cell, word + w.N_ITEMS] -= 1


@compiled()
def add_slots(scalars, items, links, slots, n_slots):
    """Divide slots in two, one after the other, until there are ``n_slots``, for which there is room in ``slots``."""
    mask = scalars[w.S_SLOT_MASK]
    for new in range(scalars[w.S_SLOTS], n_slots):
        if new > mask:
            mask = 2 * mask + 1
        old = new & (mask >> 1)
        if new + _AHEAD <= mask and slots[old + _AHEAD] != w.NONE:
            prefetch(items, slots[old + _AHEAD], 0)
        item = np.int64(slots[old])
        slots[old] = slots[new] = w.NONE
        while item != w.NONE:
            following = np.int64(links[item, w.ITEM_CHAIN])
            slot = new if _hash(items[item, w.ITEM_OWNER], items[item, w.ITEM_CODE]) & mask == new else old
            links[item, w.ITEM_CHAIN] = slots[slot]
            slots[slot] = item
            item = following
    scalars[w.S_SLOTS], scalars[w.S_SLOT_MASK] = n_slots, mask
