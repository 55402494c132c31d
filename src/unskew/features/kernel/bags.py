"""Items of cells: multisets of codes, found by hash, and short lists of events in order.

A multiset (BAG) belongs to a tile or to a total. Its items form a linked list that begins in the cell, and are also in
a hash table by owner and code. Codes enter the total with every event and leave it with their tile, so what is read
from the total decays exactly.
"""

import numpy as np

from unskew.features.jit import inlined, inner
from unskew.features.kernel import words as w
from unskew.features.kernel.arithmetic import add_limbs, load_limbs, negate
from unskew.features.kernel.event_order import load_event, store_event
from unskew.features.kernel.items import (
    enter,
    fetch_item,
    fetch_slot,
    find,
    first_in_slot,
    free_item,
    link,
    new_item,
    next_item,
    previous_item,
    unchain,
    unlink,
)
from unskew.features.kernel.packed import at, unpacked
from unskew.features.kernel.rankings import rank_less, rank_more
from unskew.features.kernel.tallies import note


@inlined()
def total_owner(program, entity, accumulator):
    """Return the owner of the items of an accumulator of an entity's total."""
    return 2 * (entity * len(program.accumulators) + accumulator)


@inlined()
def tile_owner(program, tile, accumulator):
    """Return the owner of the items of an accumulator of a tile."""
    return 2 * (tile * len(program.accumulators) + accumulator) + 1


@inlined()
def is_of_tile(owner):
    """Return true for a tile's owner, false for a total's."""
    return owner & 1 == 1


@inlined()
def first_item(cells, cell, word):
    """Return the first item of a cell's multiset or list; NONE if it has none."""
    return cells[cell, word + w.FIRST_ITEM] - 1


@inner()
def fetch_total(packed, owner, code, stage):
    """Hide the latency of memory in ``put``: prefetch a total's slot, then the item there, and then its neighbour."""
    _, state = unpacked(packed)
    if stage == 0:
        fetch_slot(state, owner, code)
        return
    item = first_in_slot(state, owner, code)
    if item != w.NONE and stage == 2:
        item = previous_item(state.item_links, item)
    # An item that is in no list has anything as its neighbour.
    if 0 <= item < len(state.items):
        fetch_item(state, item)


@inner()
def put(packed, cell, word, owner, tally, code, count, low, mid, high):
    """Add a code to a multiset ``count`` times, with what it adds to the code's sum.

    ``tally``: ``A_TALLY`` if the multiset is a total's, 0 for a tile's.
    """
    _, state = unpacked(packed)
    items = state.items
    cells = state.tiles if is_of_tile(owner) else state.entities
    item = find(state, owner, code)
    came = np.int64(0)
    if item == w.NONE:
        item = enter(state, owner, code)
        link(state, item, cells, cell, word, w.NONE, first_item(cells, cell, word))
        came = np.int64(1)
    items[item, w.ITEM_COUNT] += count
    add_limbs(items, item, w.ITEM_LIMBS, low, mid, high)
    if tally <= w.TALLY_RANKING:
        rank_more(state, cells, cell, word, owner, tally, item, low, mid, high)
    elif tally != 0:
        note(at(state), cell, word, owner, tally, code, count, came)


@inner()
def merge_bag(packed, cell, word, owner, tally, first):
    """Add the items of a tile, from ``first`` on, to a total."""
    _, state = unpacked(packed)
    items, links = state.items, state.item_links
    item = first
    while item != w.NONE:
        code, count = items[item, w.ITEM_CODE], items[item, w.ITEM_COUNT]
        low, mid, high = load_limbs(items, item, w.ITEM_LIMBS)
        put(packed, cell, word, owner, tally, code, count, low, mid, high)
        item = next_item(links, item)


@inlined()
def _fetch_bag(state, owner, first):
    """Hide the latency of memory in ``subtract_bag``: prefetch all slots, and then the total's items."""
    items, links = state.items, state.item_links
    item = first
    while item != w.NONE:
        fetch_slot(state, owner, items[item, w.ITEM_CODE])
        fetch_slot(state, items[item, w.ITEM_OWNER], items[item, w.ITEM_CODE])
        item = next_item(links, item)
    item = first
    while item != w.NONE:
        held = first_in_slot(state, owner, items[item, w.ITEM_CODE])
        if held != w.NONE:
            fetch_item(state, held)
        item = next_item(links, item)


@inner()
def subtract_bag(packed, cell, word, owner, tally, first):
    """Take the items of a leaving tile, from ``first`` on, out of a total, and free them."""
    _, state = unpacked(packed)
    items, links, cells = state.items, state.item_links, state.entities
    _fetch_bag(state, owner, first)
    item = first
    while item != w.NONE:
        following = next_item(links, item)
        code, count = items[item, w.ITEM_CODE], items[item, w.ITEM_COUNT]
        held = find(state, owner, code)
        items[held, w.ITEM_COUNT] -= count
        gone = items[held, w.ITEM_COUNT] == 0
        low, mid, high = load_limbs(items, item, w.ITEM_LIMBS)
        low, mid, high = negate(low, mid, high)
        if tally <= w.TALLY_RANKING:
            rank_less(state, cells, cell, word, owner, tally, held, low, mid, high)
        if gone:
            unlink(state, held, cells, cell, word)
            unchain(state, held)
            free_item(state, held)
        else:
            add_limbs(items, held, w.ITEM_LIMBS, low, mid, high)
        unchain(state, item)
        free_item(state, item)
        if tally > w.TALLY_RANKING and tally != 0:
            note(at(state), cell, word, owner, tally, code, -count, np.int64(-1) if gone else np.int64(0))
        item = following


@inner()
def put_in_order(packed, tile, word, owner, op, size, code, event):
    """Add an event to a tile's list of at most ``size``; the last one falls out of a full list."""
    _, state = unpacked(packed)
    items, links, tiles = state.items, state.item_links, state.tiles
    before = np.int64(w.NONE)
    after = first_item(tiles, tile, word)
    place = 0
    # LAST_N has the latest events first, FIRST_N the earliest.
    while after != w.NONE and (event > load_event(items, after, w.ITEM_EVENT)) != (op == w.LAST_N):
        before = after
        after = next_item(links, after)
        place += 1
    if place >= size:
        return
    item = new_item(state)
    items[item, w.ITEM_OWNER] = owner
    items[item, w.ITEM_CODE] = code
    store_event(items, item, w.ITEM_EVENT, event)
    link(state, item, tiles, tile, word, before, after)
    if tiles[tile, word + w.N_ITEMS] > size:
        last = item
        while next_item(links, last) != w.NONE:
            last = next_item(links, last)
        unlink(state, last, tiles, tile, word)
        free_item(state, last)


@inner()
def free_list(packed, first):
    """Free the items of a leaving tile's list."""
    _, state = unpacked(packed)
    item = first
    while item != w.NONE:
        following = next_item(state.item_links, item)
        free_item(state, item)
        item = following
