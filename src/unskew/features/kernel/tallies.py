"""Tallies: what a large multiset of a total says, kept up to date with every change, so that no read walks it.

A tally consists of items of the total's owner, under codes that no multiset has. It is derived from the multiset: it
begins when this has more than ``TALLY_FROM`` items and room is spare, ends when ``TALLY_UNTIL`` are left, and is not
stored. Whether there is one changes no value.

- Of bins (``A_TALLY`` > 0, the number of levels): a tree in which each node has the counts of four children. The lowest
  nodes count the values in four neighbouring bins; the highest covers all bins.
- Of registers and ranks (``TALLY_RANKS``): for each register the set of its ranks, and for each rank the number of
  registers of which it is the highest.
"""

import numpy as np
from numba import uint64

from unskew.features.jit import inlined, inner
from unskew.features.kernel import words as w
from unskew.features.kernel.arithmetic import leading_zeros
from unskew.features.kernel.items import enter, find, free_item, next_item, unchain
from unskew.features.kernel.packed import at, unpacked
from unskew.features.kernel.program import Program

# Parts of a tally begin at codes that no multiset has. The levels of a tree of bins are parts, from the lowest on.
_PART_BITS = 50
_REGISTERS, _RANKS, _ALL = range(1, 4)
# So many counts are in one item, from the word of its count on.
_FAN_BITS, _FAN = 2, 4


def most_tally_items(program: Program) -> int:
    """Return how many items a code that comes adds to the tallies of an entity at most."""
    tallies = program.accumulators[:, w.A_TALLY]
    # A register, its rank and the number of registers; or a node on each level; or a ranking.
    n_rankings = int((tallies <= w.TALLY_RANKING).sum())
    return 3 * int((tallies == w.TALLY_RANKS).sum()) + int(tallies[tallies > 0].sum()) + n_rankings


@inlined()
def _code(part, place):
    return (np.int64(part) << _PART_BITS) + place


@inlined()
def _least_bin(tally):
    """Return the least bin of a tree, as far below 0 as the greatest one is above."""
    return -(np.int64(1) << (_FAN_BITS * tally - 1))


@inlined()
def is_tallied(state, owner, tally):
    """Return true if there is a tally of the multiset of ``owner``, an entity's total."""
    code = _code(tally, np.int64(0)) if tally > 0 else _code(_ALL, np.int64(0))
    return find(state, owner, code) != w.NONE


@inner()
def note(packed, cell, word, owner, tally, code, count, came):
    """Enter into the tally, if there is one, that ``count`` of a code were added to the multiset of a total.

    ``count`` is negative if they left. ``came``: 1 if the code was not there before, -1 if it is gone now, else 0.
    Begins or ends the tally if the multiset has become large or small.
    """
    _, state = unpacked(packed)
    n_items = state.entities[cell, word + w.N_ITEMS]
    ends = n_items == w.TALLY_UNTIL and came == -1
    if n_items <= w.TALLY_UNTIL and not ends:
        return
    if is_tallied(state, owner, tally):
        _count(at(state), owner, tally, code, count, came)
        if ends:
            _count_all(at(state), cell, word, owner, tally, np.int64(-1))
    elif n_items > w.TALLY_FROM:
        needed = n_items * tally if tally > 0 else n_items + w.N_RANKS
        if needed > state.scalars[w.S_SPARE]:
            state.scalars[w.S_LACKED] = max(state.scalars[w.S_LACKED], needed)
            return
        n_before = state.scalars[w.S_ITEMS]
        _count_all(at(state), cell, word, owner, tally, np.int64(1))
        state.scalars[w.S_SPARE] -= state.scalars[w.S_ITEMS] - n_before


@inner()
def _count_all(packed, cell, word, owner, tally, sign):
    _, state = unpacked(packed)
    item = state.entities[cell, word + w.FIRST_ITEM] - 1
    while item != w.NONE:
        code, count = state.items[item, w.ITEM_CODE], state.items[item, w.ITEM_COUNT]
        _count(at(state), owner, tally, code, sign * count, sign)
        item = next_item(state.item_links, item)


@inner()
def _count(packed, owner, tally, code, count, came):
    _, state = unpacked(packed)
    if tally > 0:
        place = code - _least_bin(tally)
        for level in range(tally):
            _add(at(state), owner, level + 1, place, count)
            place >>= _FAN_BITS
    elif came != 0:
        _count_rank(at(state), owner, code >> 6, code & 63)


@inner()
def _add(packed, owner, part, place, count):
    """Add to one of the counts that lie side by side in an item; the item goes when all are 0."""
    _, state = unpacked(packed)
    items = state.items
    code = _code(part, place >> _FAN_BITS)
    item = find(state, owner, code)
    if item == w.NONE:
        item = enter(state, owner, code)
    items[item, w.ITEM_COUNT + (place & (_FAN - 1))] += count
    left = np.int64(0)
    for child in range(_FAN):
        left += items[item, w.ITEM_COUNT + child]
    if left == 0:
        unchain(state, item)
        free_item(state, item)


@inner()
def _count_rank(packed, owner, register, rank):
    """Enter that a rank came to a register, or went."""
    _, state = unpacked(packed)
    items = state.items
    item = find(state, owner, _code(_REGISTERS, register))
    if item == w.NONE:
        item = enter(state, owner, _code(_REGISTERS, register))
        _add(at(state), owner, _ALL, np.int64(0), np.int64(1))
    ranks = items[item, w.ITEM_COUNT]
    changed = ranks ^ (np.int64(1) << rank)
    if ranks != 0:
        _add(at(state), owner, _RANKS, _highest(ranks), np.int64(-1))
    if changed != 0:
        _add(at(state), owner, _RANKS, _highest(changed), np.int64(1))
        items[item, w.ITEM_COUNT] = changed
    else:
        _add(at(state), owner, _ALL, np.int64(0), np.int64(-1))
        unchain(state, item)
        free_item(state, item)


@inlined()
def _highest(ranks):
    return np.int64(63) - leading_zeros(uint64(ranks))


@inner()
def tallied_bin(packed, owner, tally, rank):
    """Return the bin of the value that is the ``rank``-th in order, counted from 1."""
    _, state = unpacked(packed)
    items = state.items
    place = np.int64(0)
    for level in range(tally, 0, -1):
        item = find(state, owner, _code(level, place))
        child = np.int64(0)
        while child < _FAN - 1 and items[item, w.ITEM_COUNT + child] < rank:
            rank -= items[item, w.ITEM_COUNT + child]
            child += 1
        place = (place << _FAN_BITS) + child
    return place + _least_bin(tally)


@inner()
def tallied_ranks(packed, owner, ranks):
    """Write the number of registers with each highest rank to the start of ``ranks``; return the number of all."""
    _, state = unpacked(packed)
    items = state.items
    ranks[: w.N_RANKS] = 0
    for place in range(0, 64, _FAN):
        item = find(state, owner, _code(_RANKS, np.int64(place >> _FAN_BITS)))
        if item != w.NONE:
            for child in range(_FAN):
                ranks[place + child] = items[item, w.ITEM_COUNT + child]
    return items[find(state, owner, _code(_ALL, np.int64(0))), w.ITEM_COUNT]
