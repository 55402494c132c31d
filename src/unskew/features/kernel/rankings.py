"""Rankings: the most frequent codes of a total's multiset in order, kept up to date with every change.

The list of the multiset begins with the items of its ranking, the most frequent first, and of equally frequent ones the
one with the smaller value; no other item comes before the last of these. There are more than reading needs, so some may
fall out before the ranking must be made again from all items (Yi et al., "Efficient Maintenance of Materialized Top-k
Views", ICDE 2003).

A ranking is derived and not stored. It begins when a multiset has more than ``RANKING_FROM`` items and ends when
``RANKING_UNTIL`` are left. It has one item of its own: ``ITEM_COUNT`` is how many are in it, ``RANKING_LAST`` the last
of them, and the limbs are the sum over all items of the multiset. ``ITEM_RANKED`` of an item is 1 if it is in it.
"""

import numpy as np
from numba import uint64

from unskew.features.jit import inlined, inner
from unskew.features.kernel import words as w
from unskew.features.kernel.arithmetic import add, add_limbs, load_limbs
from unskew.features.kernel.comparing import code_before
from unskew.features.kernel.items import (
    beside,
    enter,
    find,
    free_item,
    link,
    next_item,
    previous_item,
    unchain,
    unlink,
)
from unskew.features.kernel.packed import at, unpacked


@inlined()
def _kind(tally):
    return (w.TALLY_RANKING - tally) & ((1 << w.RANKING_KIND_BITS) - 1)


@inlined()
def _n_needed(tally):
    return (w.TALLY_RANKING - tally) >> w.RANKING_KIND_BITS


@inlined()
def _most_ranked(tally):
    return 2 * _n_needed(tally) + w.RANKING_SPARE


@inlined()
def comes_before(state, kind, item, other):
    """Return true if an item is more frequent than another, or as frequent and its value is smaller."""
    items = state.items
    more = items[item, w.ITEM_COUNT] - items[other, w.ITEM_COUNT]
    if more != 0:
        return more > 0
    return code_before(state.text_records, state.text_pool, kind, items[item, w.ITEM_CODE], items[other, w.ITEM_CODE])


@inlined()
def _move(state, item, cells, cell, word, target):
    """Move an item of a cell's list behind another one, or to the front if ``target`` is NONE."""
    links = state.item_links
    if previous_item(links, item) == target:
        return
    unlink(state, item, cells, cell, word)
    following = cells[cell, word + w.FIRST_ITEM] - 1 if target == w.NONE else next_item(links, target)
    link(state, item, cells, cell, word, target, following)


@inlined()
def _found(state, cells, cell, word, owner):
    """Return a total's ranking, NONE if it has none."""
    if cells[cell, word + w.N_ITEMS] <= w.RANKING_UNTIL:
        return np.int64(w.NONE)
    return find(state, beside(owner), np.int64(0))


@inlined()
def rank_more(state, cells, cell, word, owner, tally, item, low, mid, high):
    """Take note that an item, which may be new, became more frequent, and that this was added to its sum."""
    n_items = cells[cell, word + w.N_ITEMS]
    items, links = state.items, state.item_links
    ranking = _found(state, cells, cell, word, owner)
    if ranking == w.NONE:
        if n_items > w.RANKING_FROM:
            _begin(at(state), cell, word, owner, tally)
        return
    add_limbs(items, ranking, w.ITEM_LIMBS, low, mid, high)
    last = np.int64(links[ranking, w.RANKING_LAST])
    was_ranked = links[item, w.ITEM_RANKED] == 1
    if not was_ranked:
        n_ranked = items[ranking, w.ITEM_COUNT]
        if n_ranked == 0:
            return
        # If all others are ranked, it is the next one even if it comes last.
        if n_ranked < n_items - 1 and not comes_before(state, _kind(tally), item, last):
            if previous_item(links, item) == w.NONE:
                # It is new.
                _move(state, item, cells, cell, word, last)
            return
    target = previous_item(links, item) if was_ranked else last
    while target != w.NONE and target != item and comes_before(state, _kind(tally), item, target):
        target = previous_item(links, target)
    if target == item:
        # It is new and at the front already.
        target = np.int64(w.NONE)
    before = previous_item(links, item)
    _move(state, item, cells, cell, word, target)
    if was_ranked:
        if item == last and target != before:
            links[ranking, w.RANKING_LAST] = before
        return
    links[item, w.ITEM_RANKED] = 1
    items[ranking, w.ITEM_COUNT] += 1
    if target == last:
        links[ranking, w.RANKING_LAST] = item
    if items[ranking, w.ITEM_COUNT] > _most_ranked(tally):
        _drop_last(state, ranking)


@inlined()
def rank_less(state, cells, cell, word, owner, tally, item, low, mid, high):
    """Take note that an item became less frequent, and that this was added to its sum.

    An item that has become 0 is still in the list, and is about to be taken out.
    """
    n_items = cells[cell, word + w.N_ITEMS]
    items, links = state.items, state.item_links
    ranking = _found(state, cells, cell, word, owner)
    if ranking == w.NONE:
        return
    is_gone = items[item, w.ITEM_COUNT] == 0
    if is_gone and n_items - 1 == w.RANKING_UNTIL:
        unchain(state, ranking)
        free_item(state, ranking)
        return
    add_limbs(items, ranking, w.ITEM_LIMBS, low, mid, high)
    if links[item, w.ITEM_RANKED] == 0:
        return
    last = np.int64(links[ranking, w.RANKING_LAST])
    target = item
    while target != last and comes_before(state, _kind(tally), next_item(links, target), item):
        target = next_item(links, target)
    if target != item:
        _move(state, item, cells, cell, word, target)
        if target == last:
            links[ranking, w.RANKING_LAST] = item
    # What comes last now may come after others that are not ranked.
    if is_gone or (links[ranking, w.RANKING_LAST] == item and items[ranking, w.ITEM_COUNT] < n_items):
        _drop_last(state, ranking)


@inlined()
def _drop_last(state, ranking):
    items, links = state.items, state.item_links
    last = np.int64(links[ranking, w.RANKING_LAST])
    links[last, w.ITEM_RANKED] = 0
    links[ranking, w.RANKING_LAST] = previous_item(links, last)
    items[ranking, w.ITEM_COUNT] -= 1


@inner()
def sum_of(items, links, item):
    """Return the limbs of the sum over the items of a list from one on."""
    low, mid, high = uint64(0), uint64(0), uint64(0)
    while item != w.NONE:
        item_low, item_mid, item_high = load_limbs(items, item, w.ITEM_LIMBS)
        low, mid, high = add(low, mid, high, item_low, item_mid, item_high)
        item = next_item(links, item)
    return low, mid, high


@inner()
def _begin(packed, cell, word, owner, tally):
    _, state = unpacked(packed)
    items, cells = state.items, state.entities
    ranking = enter(state, beside(owner), np.int64(0))
    low, mid, high = sum_of(items, state.item_links, cells[cell, word + w.FIRST_ITEM] - 1)
    add_limbs(items, ranking, w.ITEM_LIMBS, low, mid, high)
    _rank_all(at(state), cell, word, ranking, tally)


@inner()
def _rank_all(packed, cell, word, ranking, tally):
    """Make the ranking again, from all items."""
    _, state = unpacked(packed)
    items, links, chosen, cells = state.items, state.item_links, state.chosen, state.entities
    n_chosen = select(at(state), cells[cell, word + w.FIRST_ITEM] - 1, _kind(tally), _most_ranked(tally))
    item = cells[cell, word + w.FIRST_ITEM] - 1
    while item != w.NONE:
        links[item, w.ITEM_RANKED] = 0
        item = next_item(links, item)
    for place in range(n_chosen - 1, -1, -1):
        links[chosen[place], w.ITEM_RANKED] = 1
        _move(state, chosen[place], cells, cell, word, w.NONE)
    items[ranking, w.ITEM_COUNT] = n_chosen
    links[ranking, w.RANKING_LAST] = chosen[n_chosen - 1]


@inner()
def select(packed, item, kind, size):
    """Write the first ``size`` items of a list's ranking into ``chosen``; return their number."""
    _, state = unpacked(packed)
    chosen = state.chosen
    n_chosen = 0
    while item != w.NONE:
        place = n_chosen
        while place > 0 and comes_before(state, kind, item, chosen[place - 1]):
            if place < size:
                chosen[place] = chosen[place - 1]
            place -= 1
        if place < size:
            chosen[place] = item
            n_chosen = min(n_chosen + 1, size)
        item = next_item(state.item_links, item)
    return n_chosen


@inlined()
def ranking_of(state, cells, cell, word, owner, tally):
    """Return a total's ranking, with at least as many items as reading needs; NONE if it is too small for one."""
    n_items = cells[cell, word + w.N_ITEMS]
    ranking = _found(state, cells, cell, word, owner)
    if ranking != w.NONE and state.items[ranking, w.ITEM_COUNT] < min(n_items, _n_needed(tally)):
        _rank_all(at(state), cell, word, ranking, tally)
    return ranking
