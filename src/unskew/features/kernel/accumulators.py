"""Cells: how events enter the accumulators of a tile or a total, how tiles enter a total and leave it."""

import numpy as np
from numba import uint64

from unskew.features.jit import compiled, inlined, inner
from unskew.features.kernel import words as w
from unskew.features.kernel.arithmetic import add_limbs, limbs_of, load_limbs, negate, ordered_bits, square
from unskew.features.kernel.bags import (
    first_item,
    free_list,
    merge_bag,
    put,
    put_in_order,
    subtract_bag,
    tile_owner,
    total_owner,
)
from unskew.features.kernel.event_order import event_of, load_event, store_event
from unskew.features.kernel.grid import ordinal
from unskew.features.kernel.items import next_item
from unskew.features.kernel.packed import at, unpacked
from unskew.features.kernel.tiles import entity_of, next_of, previous_of
from unskew.features.kernel.wedges import begin, best_of_others, goes_before, has_wedges, shorten


@inlined()
def add_event(program, state, batch, event, window, cells, cell, base, owned):
    """Add an event to a cell. A count comes before what it guards, so a count of 1 means the first value.

    ``owned``: 0 for an entity's total, 1 for a tile.
    """
    windows = program.windows
    accumulators = program.accumulators
    for index in range(windows[window, w.W_FIRST], windows[window, w.W_END]):
        filter_ = accumulators[index, w.A_FILTER]
        if filter_ >= 0 and not batch.filters[filter_, event]:
            continue
        value = accumulators[index, w.A_VALUE]
        if value >= 0 and not batch.known[value, event]:
            continue
        op = accumulators[index, w.A_OP]
        word = accumulators[index, w.A_WORD]
        by = accumulators[index, w.A_BY]
        if op > w.LAST or by >= 0:
            if by < 0 or batch.known[by, event]:
                code = batch.numbers[by, event] if by >= 0 else np.int64(0)
                number = batch.numbers[value, event] if value >= 0 else np.int64(0)
                _add_more(at(state), window, index, cell, base, owned, event_of(batch, event), code, number)
            continue
        if op == w.COUNT:
            cells[cell, base + word] += 1
            continue
        number = batch.numbers[value, event]
        kind = accumulators[index, w.A_KIND]
        if op == w.SUM:
            low, mid, high = limbs_of(number, kind)
            add_limbs(cells, cell, base + word, low, mid, high)
            continue
        if kind == w.FLOAT:
            number = ordered_bits(number)
        first = cells[cell, base + accumulators[index, w.A_COUNT_WORD]] == 1
        if op == w.LAST:
            if first or event_of(batch, event) > load_event(cells, cell, base + word):
                _keep_event(event_of(batch, event), cells, cell, base + word, number)
        elif first or goes_before(state, op, kind, number, cells[cell, base + word]):
            cells[cell, base + word] = number
            if owned == 1 and has_wedges(state, entity_of(state, cell)):
                shorten(at(state), entity_of(state, cell), index, state.tiles[cell, w.TILE_NUMBER])


@inlined()
def _keep_event(event, cells, cell, word, number):
    store_event(cells, cell, word, event)
    cells[cell, word + w.VALUE] = number


@inner()
def _add_more(packed, window, index, cell, base, owned, event, code, number):
    """Add an event to an accumulator of a rarer kind, or of a map.

    ``event``: its place in the order of events. ``code``: its key, for maps. ``number``: its value, 0 without one.
    """
    program, state = unpacked(packed)
    accumulators = program.accumulators
    cells = state.tiles if owned == 1 else state.entities
    by = accumulators[index, w.A_BY]
    op = accumulators[index, w.A_OP]
    value = accumulators[index, w.A_VALUE]
    word = base + accumulators[index, w.A_WORD]
    kind = accumulators[index, w.A_KIND]
    if op == w.COUNT:
        cells[cell, word] += 1
    elif op == w.BAG:
        owner = tile_owner(program, cell, index) if owned == 1 else total_owner(program, cell, index)
        tally = np.int64(0) if owned == 1 else accumulators[index, w.A_TALLY]
        low, mid, high = uint64(0), uint64(0), uint64(0)
        if by >= 0 and value >= 0 and kind != w.TEXT:
            low, mid, high = limbs_of(number, kind)
        put(packed, cell, word, owner, tally, code if by >= 0 else number, np.int64(1), low, mid, high)
    elif op == w.SQUARES:
        low, mid, high = limbs_of(number, kind)
        first_limb, second, third, fourth = square(low, mid, high)
        _add_squares(cells, cell, word, (first_limb, second, third, fourth, uint64(0)), uint64(0))
    elif op == w.FIRST:
        if kind == w.FLOAT:
            number = ordered_bits(number)
        first = cells[cell, base + accumulators[index, w.A_COUNT_WORD]] == 1
        if first or event < load_event(cells, cell, word):
            _keep_event(event, cells, cell, word, number)
    elif op == w.BUCKETS:
        cells[cell, word + number] += 1
    elif op == w.OPENED:
        _add_to_session(program, event, window, cells, cell, word)
    elif owned == 1:
        put_in_order(
            packed, cell, word, tile_owner(program, cell, index), op, accumulators[index, w.A_SIZE], number, event
        )  # fmt: skip


@inner()
def _add_squares(cells, cell, word, limbs, carry):
    """Add five limbs, and a carry."""
    for place in range(5):
        total = uint64(cells[cell, word + place]) + limbs[place]
        above = uint64(1) if total < limbs[place] else uint64(0)
        total += carry
        if carry == uint64(1) and total == uint64(0):
            above = uint64(1)
        cells[cell, word + place] = np.int64(total)
        carry = above


@inlined()
def _squares_of(tiles, tile, word):
    """Return the five limbs that a tile holds."""
    return (
        uint64(tiles[tile, word]),
        uint64(tiles[tile, word + 1]),
        uint64(tiles[tile, word + 2]),
        uint64(tiles[tile, word + 3]),
        uint64(tiles[tile, word + 4]),
    )


@inlined()
def _add_to_session(program, event, window, cells, cell, word):
    """Record the least tile number of a session's events, and its latest event."""
    number = ordinal(program, window, event[0])
    begun = cells[cell, word + w.BEGUN] == 1
    if not begun or number < cells[cell, word + w.LEAST_NUMBER]:
        cells[cell, word + w.LEAST_NUMBER] = number
    if not begun or event > load_event(cells, cell, word + w.LATEST_EVENT):
        _keep_event(event, cells, cell, word + w.LATEST_EVENT, 0)
    cells[cell, word + w.BEGUN] = 1


@inlined()
def passes(program, batch, event, window):
    """Return true if any accumulator of the window takes the event."""
    windows = program.windows
    accumulators = program.accumulators
    for index in range(windows[window, w.W_FIRST], windows[window, w.W_END]):
        if accumulators[index, w.A_OP] != w.COUNT:
            continue
        filter_ = accumulators[index, w.A_FILTER]
        if filter_ >= 0 and not batch.filters[filter_, event]:
            continue
        value = accumulators[index, w.A_VALUE]
        by = accumulators[index, w.A_BY]
        if (value < 0 or batch.known[value, event]) and (by < 0 or batch.known[by, event]):
            return True
    return False


@inner()
def merge_tile(packed, entity, window, tile):
    """Add a tile to its entity's total, whose counts do not include the tile yet."""
    program, state = unpacked(packed)
    windows = program.windows
    accumulators = program.accumulators
    entities = state.entities
    tiles = state.tiles
    total = windows[window, w.W_TOTAL]
    for index in range(windows[window, w.W_FIRST], windows[window, w.W_END]):
        op = accumulators[index, w.A_OP]
        word = accumulators[index, w.A_WORD]
        if op == w.COUNT:
            entities[entity, total + word] += tiles[tile, w.TILE_WORDS + word]
            continue
        if op == w.SUM:
            low, mid, high = load_limbs(tiles, tile, w.TILE_WORDS + word)
            add_limbs(entities, entity, total + word, low, mid, high)
            continue
        if op in (w.MIN, w.MAX, w.LAST, w.FIRST):
            count_word = accumulators[index, w.A_COUNT_WORD]
            if tiles[tile, w.TILE_WORDS + count_word] == 0:
                continue
            # The count beside it was merged just before, so equal counts mean that the total held nothing.
            first = entities[entity, total + count_word] == tiles[tile, w.TILE_WORDS + count_word]
            _merge_ordered(state, op, accumulators[index, w.A_KIND], word, entity, total, tile, first)
        elif op == w.BAG:
            merge_bag(
                at(state), entity, total + word, total_owner(program, entity, index),
                accumulators[index, w.A_TALLY], first_item(tiles, tile, w.TILE_WORDS + word),
            )  # fmt: skip
        elif op == w.SQUARES:
            _add_squares(entities, entity, total + word, _squares_of(tiles, tile, w.TILE_WORDS + word), uint64(0))
        elif op == w.BUCKETS:
            for place in range(word, word + accumulators[index, w.A_SIZE]):
                entities[entity, total + place] += tiles[tile, w.TILE_WORDS + place]


@inlined()
def _merge_ordered(state, op, kind, word, entity, total, tile, first):
    entities = state.entities
    tiles = state.tiles
    if op in (w.MIN, w.MAX):
        if first or goes_before(state, op, kind, tiles[tile, w.TILE_WORDS + word], entities[entity, total + word]):
            entities[entity, total + word] = tiles[tile, w.TILE_WORDS + word]
        return
    later = first or load_event(tiles, tile, w.TILE_WORDS + word) > load_event(entities, entity, total + word)
    if first or later == (op == w.LAST):
        for place in range(word, word + w.N_EVENT_WORDS):
            entities[entity, total + place] = tiles[tile, w.TILE_WORDS + place]


@inlined()
def subtract_tile(program, state, entity, window, tile):
    """Take a leaving tile, which is already out of its list, from its entity's total, and free its items."""
    windows = program.windows
    accumulators = program.accumulators
    entities = state.entities
    tiles = state.tiles
    total = windows[window, w.W_TOTAL]
    for index in range(windows[window, w.W_FIRST], windows[window, w.W_END]):
        op = accumulators[index, w.A_OP]
        word = accumulators[index, w.A_WORD]
        if op == w.COUNT:
            entities[entity, total + word] -= tiles[tile, w.TILE_WORDS + word]
        elif op == w.SUM:
            low, mid, high = load_limbs(tiles, tile, w.TILE_WORDS + word)
            low, mid, high = negate(low, mid, high)
            add_limbs(entities, entity, total + word, low, mid, high)
        elif op in (w.MIN, w.MAX, w.LAST, w.FIRST):
            # Mostly another tile holds the answer, and then no call is needed.
            if entities[entity, total + word] == tiles[tile, w.TILE_WORDS + word]:
                _subtract_ordered(at(state), entity, window, tile, index)
        elif op == w.BAG:
            subtract_bag(
                at(state), entity, total + word, total_owner(program, entity, index),
                accumulators[index, w.A_TALLY], first_item(tiles, tile, w.TILE_WORDS + word),
            )  # fmt: skip
        elif op in (w.LAST_N, w.FIRST_N):
            free_list(at(state), first_item(tiles, tile, w.TILE_WORDS + word))
        elif op == w.SQUARES:
            first, second, third, fourth, fifth = _squares_of(tiles, tile, w.TILE_WORDS + word)
            # Two's complement: not, plus one.
            _add_squares(entities, entity, total + word, (~first, ~second, ~third, ~fourth, ~fifth), uint64(1))
        elif op == w.BUCKETS:
            for place in range(word, word + accumulators[index, w.A_SIZE]):
                entities[entity, total + place] -= tiles[tile, w.TILE_WORDS + place]


@inner()
def _subtract_ordered(packed, entity, window, tile, index):
    """If the leaving tile held the answer, read it from the tiles that stay."""
    program, state = unpacked(packed)
    accumulators = program.accumulators
    entities = state.entities
    tiles = state.tiles
    total = program.windows[window, w.W_TOTAL]
    op = accumulators[index, w.A_OP]
    word = accumulators[index, w.A_WORD]
    count_word = accumulators[index, w.A_COUNT_WORD]
    if tiles[tile, w.TILE_WORDS + count_word] == 0:
        return
    for place in range(word, word + (1 if op in (w.MIN, w.MAX) else w.N_EVENT_WORDS)):
        if entities[entity, total + place] != tiles[tile, w.TILE_WORDS + place]:
            return
    kind = accumulators[index, w.A_KIND]
    by_time = op in (w.LAST, w.FIRST) or kind == w.TIME
    if not by_time and has_wedges(state, entity):
        found, best = best_of_others(at(state), entity, window, index, tiles[tile, w.TILE_NUMBER])
        if found:
            entities[entity, total + word] = best
            return
    if entities[entity, total + count_word] == 0:
        return
    first = True
    n_read = 0
    # Tiles are in the order of time, so the first one that has an event has the first event, and from the end the last.
    from_end = by_time and op in (w.LAST, w.MAX)
    other = entities[entity, program.windows[window, w.W_NEWEST if from_end else w.W_OLDEST]]
    while other != w.NONE:
        n_read += 1
        if tiles[other, w.TILE_WORDS + count_word] > 0:
            _merge_ordered(state, op, kind, word, entity, total, other, first)
            if by_time:
                return
            first = False
        other = previous_of(state, other) if from_end else next_of(state, other)
    if n_read > w.WEDGE_FROM:
        begin(at(state), entity, index)


@compiled()
def mark_texts(program, state, rows, most, used):
    """Mark the rows of texts that occur anywhere in the state of the given entities.

    Return of how many entities, and how much was looked at: it ends after the entity with which that is ``most``.
    """
    accumulators = program.accumulators
    features = program.features
    n_seen = 0
    for number in range(len(rows)):
        if n_seen >= most:
            return number, n_seen
        row = np.int64(rows[number])
        n_seen += 1
        for index in range(len(features)):
            _mark_values(program, state, row, index, used)
        for window in range(len(program.windows)):
            for index in range(program.windows[window, w.W_FIRST], program.windows[window, w.W_END]):
                op = accumulators[index, w.A_OP]
                by = accumulators[index, w.A_BY]
                if (accumulators[index, w.A_KIND] != w.TEXT and by < 0) or op == w.COUNT:
                    continue
                count_word = accumulators[index, w.A_COUNT_WORD]
                total = program.windows[window, w.W_TOTAL]
                n_seen += _mark_cell(program, state, state.entities, row, total, index, count_word, used)
                tile = state.entities[row, program.windows[window, w.W_OLDEST]]
                while tile != w.NONE:
                    n_seen += _mark_cell(program, state, state.tiles, tile, w.TILE_WORDS, index, count_word, used)
                    tile = next_of(state, tile)
    return len(rows), n_seen


@inner()
def _mark_cell(program, state, cells, cell, base, index, count_word, used):
    """Return how much was looked at: the cell and its items."""
    op = program.accumulators[index, w.A_OP]
    word = base + program.accumulators[index, w.A_WORD]
    n_seen = 1
    if op in (w.BAG, w.LAST_N, w.FIRST_N):
        item = first_item(cells, cell, word)
        while item != w.NONE:
            used[state.items[item, w.ITEM_CODE]] = True
            item = next_item(state.item_links, item)
            n_seen += 1
    elif cells[cell, base + count_word] > 0:
        used[cells[cell, word if op in (w.MIN, w.MAX) else word + w.VALUE]] = True
    return n_seen


@inner()
def _mark_values(program, state, row, index, used):
    """Mark the rows of texts in the previous closed row."""
    features = program.features
    if state.entities[row, w.ENTITY_PRESENT] & (np.int64(1) << index) == 0:
        return
    read_as = features[index, w.F_READ]
    first = w.ENTITY_VALUES + features[index, w.F_OUT]
    if read_as in (w.READ_MAP_COUNT, w.READ_MAP_SUM, w.READ_MAP_MEAN):
        for place in range(state.entities[row, first]):
            if state.entities[row, first + 1 + 2 * place] != w.OTHER_KEY:
                used[state.entities[row, first + 1 + 2 * place]] = True
    elif features[index, w.F_KIND] == w.TEXT and read_as in (w.READ_VALUE, w.READ_MODE):
        used[state.entities[row, first]] = True
    elif features[index, w.F_KIND] == w.TEXT and read_as in (w.READ_LIST, w.READ_TOP):
        for place in range(state.entities[row, first]):
            used[state.entities[row, first + 1 + place]] = True
