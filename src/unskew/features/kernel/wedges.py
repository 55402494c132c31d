"""Wedges: which tiles can still come to hold a window's least or greatest value, so that no leaving tile costs all.

A tile cannot if a later one has a value as good, because it leaves earlier. The others, from old to new, have ever
worse values: a monotone wedge (Lemire, "Streaming maximum-minimum filter using no more than three comparisons per
element", Nordic Journal of Computing 13, 2006). When the tile that held the answer leaves, the wedge's first element is
the next answer.

A wedge reaches up to a tile and is extended only when its answer is asked for, by what lies behind. A change of a tile
that it covers shortens it to the tiles before that one. So a change costs no more tiles read than were passed to find
its tile in the list, and every other tile is read once.

It is derived from the tiles and not stored. It begins when more than ``WEDGE_FROM`` tiles were read for an answer, and
ends with the last value. It consists of items: one beside the total, whose ``ITEM_COUNT`` is the number of the last
tile that it covers, and a list of elements, with a tile's number as code and its value as count.
"""

import numpy as np

from unskew.features.jit import inlined, inner
from unskew.features.kernel import words as w
from unskew.features.kernel.bags import total_owner
from unskew.features.kernel.comparing import text_before
from unskew.features.kernel.items import beside, enter, find, free_item, new_item, next_item, previous_item, unchain
from unskew.features.kernel.packed import at, unpacked
from unskew.features.kernel.tiles import previous_of


@inlined()
def goes_before(state, op, kind, number, held):
    """Return true if a number replaces the least (MIN) or greatest (MAX) one so far."""
    if kind == w.TEXT:
        if op == w.MAX:
            number, held = held, number
        return text_before(state.text_records, state.text_pool, number, held)
    return number < held if op == w.MIN else number > held


@inlined()
def has_wedges(state, entity):
    """Return false if the entity has no wedge."""
    return state.entities[entity, w.ENTITY_MARKS] & w.MARK_WEDGE != 0


@inner()
def begin(packed, entity, index):
    """Begin the wedge of an accumulator, which covers no tile yet, if room is spare."""
    program, state = unpacked(packed)
    scalars, items, links = state.scalars, state.items, state.item_links
    if scalars[w.S_LACKED] > 0 or scalars[w.S_SPARE] < 1:
        _note_lack(state, entity)
        return
    wedge = enter(state, beside(total_owner(program, entity, index)), np.int64(0))
    scalars[w.S_SPARE] -= 1
    items[wedge, w.ITEM_COUNT] = w.NEVER
    links[wedge, w.WEDGE_FIRST] = w.NONE
    links[wedge, w.WEDGE_LAST] = w.NONE
    state.entities[entity, w.ENTITY_MARKS] |= w.MARK_WEDGE


@inner()
def shorten(packed, entity, index, number):
    """Take note that the tile of this number has a better value than before."""
    program, state = unpacked(packed)
    items = state.items
    wedge = find(state, beside(total_owner(program, entity, index)), np.int64(0))
    if wedge == w.NONE or items[wedge, w.ITEM_COUNT] < number:
        return
    last = np.int64(state.item_links[wedge, w.WEDGE_LAST])
    while last != w.NONE and items[last, w.ITEM_CODE] >= number:
        _drop(state, wedge, last)
        last = np.int64(state.item_links[wedge, w.WEDGE_LAST])
    items[wedge, w.ITEM_COUNT] = number - 1


@inner()
def best_of_others(packed, entity, window, index, left):
    """Return whether there is a wedge, and its answer now that the tile of number ``left`` has left.

    Without a value the wedge ends; it also ends if there is no room for its elements.
    """
    program, state = unpacked(packed)
    items = state.items
    wedge = find(state, beside(total_owner(program, entity, index)), np.int64(0))
    if wedge == w.NONE:
        return False, np.int64(0)
    first = np.int64(state.item_links[wedge, w.WEDGE_FIRST])
    while first != w.NONE and items[first, w.ITEM_CODE] <= left:
        _drop(state, wedge, first)
        first = np.int64(state.item_links[wedge, w.WEDGE_FIRST])
    has_room = _extend(at(state), entity, window, index, wedge)
    first = np.int64(state.item_links[wedge, w.WEDGE_FIRST])
    if has_room and first != w.NONE:
        return True, items[first, w.ITEM_COUNT]
    if not has_room:
        _note_lack(state, entity)
    _end(at(state), wedge)
    return False, np.int64(0)


@inlined()
def _note_lack(state, entity):
    """Ask for room for an element for each of the entity's tiles."""
    state.scalars[w.S_LACKED] = max(state.scalars[w.S_LACKED], state.entities[entity, w.ENTITY_LIVE] + 1)


@inner()
def _extend(packed, entity, window, index, wedge):
    """Cover all tiles; return false if there is no room for that."""
    program, state = unpacked(packed)
    items, links, tiles = state.items, state.item_links, state.tiles
    op, kind = program.accumulators[index, w.A_OP], program.accumulators[index, w.A_KIND]
    word = w.TILE_WORDS + program.accumulators[index, w.A_WORD]
    count_word = w.TILE_WORDS + program.accumulators[index, w.A_COUNT_WORD]
    newest = state.entities[entity, program.windows[window, w.W_NEWEST]]
    covered = items[wedge, w.ITEM_COUNT]
    last = np.int64(links[wedge, w.WEDGE_LAST])
    # From the newest tile back, so that each is compared with the best one behind it.
    front = np.int64(w.NONE)
    tile = newest
    while tile != w.NONE and tiles[tile, w.TILE_NUMBER] > covered:
        value = tiles[tile, word]
        if tiles[tile, count_word] > 0 and (
            front == w.NONE or goes_before(state, op, kind, value, items[front, w.ITEM_COUNT])
        ):
            while last != w.NONE and not goes_before(state, op, kind, items[last, w.ITEM_COUNT], value):
                before = previous_item(links, last)
                _drop(state, wedge, last)
                last = before
            if state.scalars[w.S_SPARE] < 1:
                return False
            front = _put_between(state, wedge, last, front, tiles[tile, w.TILE_NUMBER], value)
        tile = previous_of(state, tile)
    if newest != w.NONE:
        items[wedge, w.ITEM_COUNT] = max(covered, tiles[newest, w.TILE_NUMBER])
    return True


@inlined()
def _put_between(state, wedge, before, after, number, value):
    """Return a new element between two others, or NONE."""
    items, links = state.items, state.item_links
    element = new_item(state)
    state.scalars[w.S_SPARE] -= 1
    # The accumulator itself, which has no other items.
    items[element, w.ITEM_OWNER] = beside(items[wedge, w.ITEM_OWNER])
    items[element, w.ITEM_CODE] = number
    items[element, w.ITEM_COUNT] = value
    links[element, w.ITEM_PREVIOUS] = before
    links[element, w.ITEM_NEXT] = after
    links[wedge if before == w.NONE else before, w.ITEM_NEXT] = element
    links[wedge if after == w.NONE else after, w.ITEM_PREVIOUS] = element
    return element


@inlined()
def _drop(state, wedge, element):
    """Take an element out and free it."""
    links = state.item_links
    before, after = previous_item(links, element), next_item(links, element)
    links[wedge if before == w.NONE else before, w.ITEM_NEXT] = after
    links[wedge if after == w.NONE else after, w.ITEM_PREVIOUS] = before
    free_item(state, element)
    state.scalars[w.S_SPARE] += 1


@inner()
def _end(packed, wedge):
    _, state = unpacked(packed)
    first = np.int64(state.item_links[wedge, w.WEDGE_FIRST])
    while first != w.NONE:
        _drop(state, wedge, first)
        first = np.int64(state.item_links[wedge, w.WEDGE_FIRST])
    unchain(state, wedge)
    free_item(state, wedge)
    state.scalars[w.S_SPARE] += 1
