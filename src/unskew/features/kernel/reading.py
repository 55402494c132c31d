"""An entity's current values, read from its totals, items and tiles."""

import math

import numpy as np
from numba import uint64

from unskew.features.jit import inlined, inner
from unskew.features.kernel import words as w
from unskew.features.kernel.arithmetic import (
    add,
    as_bits,
    as_float,
    load_limbs,
    mean_bits,
    negate,
    ordered_bits,
    quotient_bits,
    scale_wide,
    subtract_wide,
    to_float_bits,
    to_int,
)
from unskew.features.kernel.bags import first_item, total_owner
from unskew.features.kernel.comparing import is_other
from unskew.features.kernel.grid import ordinal
from unskew.features.kernel.items import fetch_item, next_item
from unskew.features.kernel.packed import at, unpacked
from unskew.features.kernel.rankings import comes_before, ranking_of, select, sum_of
from unskew.features.kernel.tallies import is_tallied, tallied_bin, tallied_ranks
from unskew.features.kernel.tiles import next_of, previous_of

_LAST_PLAIN = w.READ_VALUE
_HALF_OVER_LN_2 = 0.7213475204444817


@inlined()
def value_end(program, index):
    """Return the word behind those of a feature's value in a row of values."""
    features = program.features
    return features[index + 1, w.F_OUT] if index + 1 < len(features) else program.value_words


@inlined()
def read_feature(program, state, entity, index, values):
    """Read the current value of one feature into its words of ``values``; return true if it is present."""
    features = program.features
    entities = state.entities
    count = entities[entity, features[index, w.F_COUNT_WORD]]
    kind = features[index, w.F_READ]
    is_float = features[index, w.F_KIND] == w.FLOAT
    word = features[index, w.F_WORD]
    value = np.int64(0)
    is_present = True
    if kind == w.READ_COUNT:
        value = count
    elif kind == w.READ_SUM:
        low, mid, high = load_limbs(entities, entity, word)
        value = to_float_bits(low, mid, high) if is_float else to_int(mid, high)
    elif kind > _LAST_PLAIN:
        return _read_more(at(state), entity, index, count, values)
    elif count == 0:
        is_present = False
    elif kind == w.READ_MEAN:
        value = _mean(state, entities, entity, word, count, features[index, w.F_SCALE])
    elif is_float:
        # LAST and FIRST keep their values in comparable form too.
        value = ordered_bits(entities[entity, word])
    else:
        value = entities[entity, word]
    values[features[index, w.F_OUT]] = value
    return is_present


@inlined()
def read_row(program, state, entity, values):
    """Read the entity's current values into ``values``, as int64 words; return a bit per present feature."""
    present = np.int64(0)
    for index in range(len(program.features)):
        if read_feature(program, state, entity, index, values):
            present |= np.int64(1) << index
    return present


@inlined()
def _mean(state, cells, cell, word, count, scale):
    low, mid, high = load_limbs(cells, cell, word)
    if scale == 0:
        return mean_bits(low, mid, high, count)
    return _decimal_mean(state, low, mid, high, count, scale)


@inner()
def _decimal_mean(state, low, mid, high, count, scale):
    negative = np.int64(high) < 0
    if negative:
        low, mid, high = negate(low, mid, high)
    state.wide[0] = 0
    state.wide[0, 0], state.wide[0, 1], state.wide[0, 2] = low, mid, high
    return quotient_bits(state.wide[0], uint64(count), uint64(1), scale, np.int64(-64), negative)


@inlined()
def _variance(state, entity, sums, squares, count, ddof, scale):
    """Return the float64 bits of (n * sum of squares - square of the sum) / (n * (n - ddof)), rounded once."""
    entities = state.entities
    wide = state.wide
    wide[:] = 0
    for limb in range(5):
        wide[0, limb] = uint64(entities[entity, squares + limb])
    scale_wide(wide[0], uint64(count))
    low, mid, high = load_limbs(entities, entity, sums)
    if np.int64(high) < 0:
        low, mid, high = negate(low, mid, high)
    _square_wide(wide, low, mid, high)
    subtract_wide(wide[0], wide[1])
    return quotient_bits(wide[0], uint64(count), uint64(count - ddof), 2 * scale, np.int64(-128), np.bool_(False))


@inner()
def _square_wide(wide, low, mid, high):
    """Write the square of three limbs into ``wide[1]``; ``wide[2]`` is overwritten."""
    limbs = (low, mid, high)
    for place in range(3):
        wide[2] = 0
        for limb in range(3):
            wide[2, limb + place] = limbs[limb]
        scale_wide(wide[2], limbs[place])
        carry = uint64(0)
        for limb in range(wide.shape[1]):
            total = wide[1, limb] + wide[2, limb]
            above = uint64(1) if total < wide[2, limb] else uint64(0)
            total += carry
            if carry == uint64(1) and total == uint64(0):
                above = uint64(1)
            wide[1, limb] = total
            carry = above


@inner()
def _read_more(packed, entity, index, count, values):
    """Read a feature that is more than a word of its total, and return true if it is present; unused words are 0."""
    program, state = unpacked(packed)
    features = program.features
    entities = state.entities
    kind = features[index, w.F_READ]
    word = features[index, w.F_WORD]
    out = features[index, w.F_OUT]
    for place in range(out, value_end(program, index)):
        values[place] = 0
    if kind == w.READ_DISTINCT:
        values[out] = entities[entity, word + w.N_ITEMS]
        return True
    if kind == w.READ_APPROX:
        if count > 0:
            values[out] = _approximate(program, state, entity, index)
        return True
    if kind in (w.READ_DECAYED_COUNT, w.READ_DECAYED_SUM):
        values[out] = _decayed(program, state, entity, index)
        return True
    if count == 0:
        return False
    if kind in (w.READ_VAR, w.READ_STD):
        ddof = features[index, w.F_DDOF]
        if count <= ddof:
            return False
        bits = _variance(state, entity, word, features[index, w.F_SQUARES], count, ddof, features[index, w.F_SCALE])
        values[out] = as_bits(math.sqrt(as_float(bits))) if kind == w.READ_STD else bits
    elif kind == w.READ_MODE:
        values[out] = _mode(program, state, entity, index)
    elif kind == w.READ_TOP:
        _top(program, state, entity, index, values)
    elif kind == w.READ_BUCKETS:
        values[out] = features[index, w.F_BUCKETS]
        for bucket in range(features[index, w.F_BUCKETS]):
            values[out + 1 + bucket] = entities[entity, word + bucket]
    elif kind == w.READ_QUANTILE:
        rank = max(np.int64(1), np.int64(math.ceil(program.constants[features[index, w.F_QUANTILE]] * count)))
        values[out] = _quantile(program, state, entity, index, rank)
    elif kind == w.READ_LIST:
        _list(program, state, entity, index, count, values)
    else:
        _map(program, state, entity, index, count, values)
    return True


@inlined()
def _ranking(program, state, entity, index):
    """Return the ranking that a feature reads, NONE if its multiset is too small for one."""
    accumulator = program.features[index, w.F_ACCUMULATOR]
    owner = total_owner(program, entity, accumulator)
    word = program.features[index, w.F_WORD]
    return ranking_of(state, state.entities, entity, word, owner, program.accumulators[accumulator, w.A_TALLY])


@inlined()
def _mode(program, state, entity, index):
    items = state.items
    kind = program.features[index, w.F_KIND]
    is_ranked = _ranking(program, state, entity, index) != w.NONE
    item = first_item(state.entities, entity, program.features[index, w.F_WORD])
    best = item
    while item != w.NONE and not is_ranked:
        if comes_before(state, kind, item, best):
            best = item
        item = next_item(state.item_links, item)
    return items[best, w.ITEM_CODE]


@inlined()
def _choose(program, state, entity, index, ranking, kind, size):
    """Write the most frequent ``size`` items into ``chosen`` and return their number; ties go to the smaller code.

    ``ranking``: that of the multiset, or NONE. The entity's row keeps the items too: the next reading prefetches them.
    """
    features = program.features
    entities = state.entities
    n_chosen = np.int64(0)
    item = first_item(entities, entity, features[index, w.F_WORD])
    if ranking == w.NONE:
        n_chosen = select(at(state), item, kind, size)
    else:
        while item != w.NONE and n_chosen < size:
            state.chosen[n_chosen] = item
            n_chosen += 1
            item = next_item(state.item_links, item)
    for place in range(min(n_chosen, features[index, w.F_N_HINTS])):
        entities[entity, features[index, w.F_HINTS] + place] = state.chosen[place]
    return n_chosen


@inner()
def fetch_hinted(packed, entity):
    """Prefetch the items that readings of an entity's row read last, which are mostly those that the next one reads."""
    program, state = unpacked(packed)
    features = program.features
    for index in range(len(features)):
        for place in range(features[index, w.F_N_HINTS]):
            fetch_item(state, state.entities[entity, features[index, w.F_HINTS] + place])


@inlined()
def _top(program, state, entity, index, values):
    features = program.features
    out = features[index, w.F_OUT]
    ranking = _ranking(program, state, entity, index)
    kind, most = features[index, w.F_KIND], features[index, w.F_MOST_ITEMS]
    n_chosen = _choose(program, state, entity, index, ranking, kind, most)
    values[out] = n_chosen
    for place in range(n_chosen):
        values[out + 1 + place] = state.items[state.chosen[place], w.ITEM_CODE]


@inlined()
def _quantile(program, state, entity, index, rank):
    """Return the bits of the value that stands for the bin of a rank."""
    accumulator = program.features[index, w.F_ACCUMULATOR]
    tally = program.accumulators[accumulator, w.A_TALLY]
    owner = total_owner(program, entity, accumulator)
    word = program.features[index, w.F_WORD]
    if state.entities[entity, word + w.N_ITEMS] > w.TALLY_UNTIL and is_tallied(state, owner, tally):
        code = tallied_bin(at(state), owner, tally, rank)
    elif state.entities[entity, word + w.N_ITEMS] <= w.TALLY_FROM:
        code = _bin_of_few(state.items, state.item_links, first_item(state.entities, entity, word), rank, state.chosen)
    else:
        code = _bin(state.items, state.item_links, first_item(state.entities, entity, word), rank)
    if code == 0:
        return np.int64(0)
    bits = program.features[index, w.F_BIN_BITS]
    magnitude = (abs(code) << (52 - bits)) + (np.int64(1) << (51 - bits))
    return magnitude | np.int64(-(2**63)) if code < 0 else magnitude


@inner()
def _bin(items, links, first, rank):
    """Return the bin of a rank, found by halving the range of codes, without sorting."""
    low = items[first, w.ITEM_CODE]
    high = low
    item = first
    while item != w.NONE:
        low = min(low, items[item, w.ITEM_CODE])
        high = max(high, items[item, w.ITEM_CODE])
        item = next_item(links, item)
    while low < high:
        middle = low + ((high - low) >> 1)
        below = np.int64(0)
        item = first
        while item != w.NONE:
            if items[item, w.ITEM_CODE] <= middle:
                below += items[item, w.ITEM_COUNT]
            item = next_item(links, item)
        if below >= rank:
            high = middle
        else:
            low = middle + 1
    return low


@inner()
def _bin_of_few(items, links, first, rank, chosen):
    """Return the same of at most ``TALLY_FROM`` items: their codes and counts side by side are soon counted again."""
    low = items[first, w.ITEM_CODE]
    high = low
    n_items = 0
    item = first
    while item != w.NONE:
        code = items[item, w.ITEM_CODE]
        chosen[n_items] = code
        chosen[w.TALLY_FROM + n_items] = items[item, w.ITEM_COUNT]
        low, high = min(low, code), max(high, code)
        n_items += 1
        item = next_item(links, item)
    while low < high:
        middle = low + ((high - low) >> 1)
        below = np.int64(0)
        for place in range(n_items):
            below += chosen[w.TALLY_FROM + place] if chosen[place] <= middle else np.int64(0)
        if below >= rank:
            high = middle
        else:
            low = middle + 1
    return low


@inner()
def _tau(x):
    if x == 0.0 or x == 1.0:
        return 0.0
    y = 1.0
    z = 1.0 - x
    before = z - 1.0
    while z != before:
        x = math.sqrt(x)
        before = z
        y = 0.5 * y
        z = z - (1.0 - x) * (1.0 - x) * y
    return z / 3.0


@inner()
def _sigma(x):
    y = 1.0
    z = x
    before = z - 1.0
    while z != before:
        x = x * x
        before = z
        z = z + x * y
        y = y + y
    return z


@inlined()
def _approximate(program, state, entity, index):
    """Estimate how many codes of 64 * register + rank came from different values.

    By Ertl, "New cardinality estimation algorithms for HyperLogLog sketches" (2017), algorithm 6.
    """
    accumulator = program.features[index, w.F_ACCUMULATOR]
    owner = total_owner(program, entity, accumulator)
    word = program.features[index, w.F_WORD]
    if state.entities[entity, word + w.N_ITEMS] > w.TALLY_UNTIL and is_tallied(state, owner, np.int64(w.TALLY_RANKS)):
        n_set = tallied_ranks(at(state), owner, state.ranks)
    else:
        n_set = _count_ranks(state.items, state.item_links, first_item(state.entities, entity, word), state.ranks)
    bits = program.features[index, w.F_REGISTER_BITS]
    most = 64 - bits
    m = float(np.int64(1) << bits)
    z = m * _tau(1.0 - float(state.ranks[most + 1]) / m)
    for rank in range(most, 0, -1):
        z = 0.5 * (z + float(state.ranks[rank]))
    n_zero = (np.int64(1) << bits) - n_set
    if n_zero > 0:
        z += m * _sigma(float(n_zero) / m)
    return np.int64(math.floor((_HALF_OVER_LN_2 * m) * m / z + 0.5))


@inner()
def _count_ranks(items, links, first, ranks):
    """Write the number of registers with each highest rank to the start of ``ranks``; return the number of all.

    Behind them are the ranks of the registers, all 0 before and after.
    """
    n_set = np.int64(0)
    ranks[: w.N_RANKS] = 0
    item = first
    while item != w.NONE:
        register, rank = items[item, w.ITEM_CODE] >> 6, items[item, w.ITEM_CODE] & 63
        if ranks[w.N_RANKS + register] == 0:
            n_set += 1
        ranks[w.N_RANKS + register] = max(ranks[w.N_RANKS + register], rank)
        item = next_item(links, item)
    item = first
    while item != w.NONE:
        place = w.N_RANKS + (items[item, w.ITEM_CODE] >> 6)
        if ranks[place] > 0:
            ranks[ranks[place]] += 1
            ranks[place] = 0
        item = next_item(links, item)
    return n_set


@inlined()
def _in_tile(program, window, word):
    """Return the word of a tile that corresponds to a word of the entity's total."""
    return word - program.windows[window, w.W_TOTAL] + w.TILE_WORDS


@inlined()
def _decayed(program, state, entity, index):
    """Return the bits of the sum, over the tiles from old to new, of value times decay.

    The decay is that of the tile's age in hops. Until the next hop no tile leaves and no age changes, so the sum of the
    tiles before one is still what it was if they have as many events.
    """
    features = program.features
    entities = state.entities
    window = features[index, w.F_WINDOW]
    kept = features[index, w.F_DECAYED]
    now = ordinal(program, window, state.scalars[w.S_CLOCK])
    n_events = entities[entity, features[index, w.F_COUNT_WORD]]
    tile = entities[entity, program.windows[window, w.W_OLDEST]]
    total = 0.0
    if entities[entity, kept + w.DECAYED_TILE] > 0 and entities[entity, kept + w.DECAYED_NOW] == now:
        first = entities[entity, kept + w.DECAYED_TILE] - 1
        count_word = _in_tile(program, window, features[index, w.F_COUNT_WORD])
        n_before = n_events
        other = first
        while other != w.NONE:
            n_before -= state.tiles[other, count_word]
            other = next_of(state, other)
        if n_before == entities[entity, kept + w.DECAYED_COUNT]:
            tile = first
            total = as_float(entities[entity, kept + w.DECAYED_SUM])
    total = _decayed_from(at(state), entity, index, now, tile, total)
    if features[index, w.F_READ] == w.READ_DECAYED_SUM and features[index, w.F_KIND] != w.FLOAT:
        total = total / program.constants[features[index, w.F_UNIT]]
    return as_bits(total)


@inner()
def _decayed_from(packed, entity, index, now, tile, total):
    """Return a sum of the tiles before one with those from there on, and keep what the next reading needs."""
    program, state = unpacked(packed)
    features = program.features
    entities = state.entities
    tiles = state.tiles
    window = features[index, w.F_WINDOW]
    half_life = features[index, w.F_HALF_LIFE]
    word = _in_tile(program, window, features[index, w.F_WORD])
    count_word = _in_tile(program, window, features[index, w.F_COUNT_WORD])
    kept = features[index, w.F_DECAYED]
    n_before = np.int64(0)
    # Of those that stay at this hop, because the next reading begins there.
    again = now - min(np.int64(w.DECAYED_AGAIN), program.windows[window, w.W_SPAN])
    is_kept = tile != entities[entity, program.windows[window, w.W_OLDEST]]
    if not is_kept:
        entities[entity, kept + w.DECAYED_TILE] = 0
    while tile != w.NONE:
        if not is_kept and tiles[tile, w.TILE_NUMBER] >= again:
            is_kept = True
            entities[entity, kept + w.DECAYED_NOW] = now
            entities[entity, kept + w.DECAYED_TILE] = tile + 1
            entities[entity, kept + w.DECAYED_COUNT] = n_before
            entities[entity, kept + w.DECAYED_SUM] = as_bits(total)
        if tiles[tile, count_word] > 0:
            age = now - tiles[tile, w.TILE_NUMBER]
            weight = program.constants[features[index, w.F_DECAY] + age % half_life]
            halves = age // half_life
            if halves <= 1000:
                weight = weight * as_float((np.int64(1023) - halves) << 52)
            else:
                weight = 0.0
            held = float(tiles[tile, count_word])
            if features[index, w.F_READ] == w.READ_DECAYED_SUM:
                low, mid, high = load_limbs(tiles, tile, word)
                held = as_float(to_float_bits(low, mid, high))
            total = total + held * weight
            n_before += tiles[tile, count_word]
        tile = next_of(state, tile)
    return total


@inlined()
def _list(program, state, entity, index, count, values):
    """Read the first items of the tiles' lists, from the newest tile backward or from the oldest forward."""
    features = program.features
    window = features[index, w.F_WINDOW]
    # Where fewer are counted, no tile is read in search of more.
    most = min(features[index, w.F_MOST_ITEMS], count)
    out = features[index, w.F_OUT]
    word = _in_tile(program, window, features[index, w.F_WORD])
    latest = features[index, w.F_LATEST] == 1
    entered = ordinal(program, window, state.scalars[w.S_CLOCK]) - 1
    closed = program.windows[window, w.W_KIND] == w.CLOSED
    n_read = 0
    tile = state.entities[entity, program.windows[window, w.W_NEWEST if latest else w.W_OLDEST]]
    while tile != w.NONE and n_read < most:
        if not closed or state.tiles[tile, w.TILE_NUMBER] <= entered:
            item = first_item(state.tiles, tile, word)
            while item != w.NONE and n_read < most:
                n_read += 1
                values[out + n_read] = state.items[item, w.ITEM_CODE]
                item = next_item(state.item_links, item)
        tile = previous_of(state, tile) if latest else next_of(state, tile)
    values[out] = n_read


@inlined()
def _map(program, state, entity, index, count, values):
    """Read pairs of the most frequent keys and their values, and as the last pair all other keys combined."""
    features = program.features
    items = state.items
    out = features[index, w.F_OUT]
    most = features[index, w.F_MOST_ITEMS]
    ranking = _ranking(program, state, entity, index)
    first = first_item(state.entities, entity, features[index, w.F_WORD])
    n_chosen = _choose(program, state, entity, index, ranking, np.int64(w.TEXT), most + 1)
    has_sums = features[index, w.F_READ] != w.READ_MAP_COUNT
    low, mid, high = uint64(0), uint64(0), uint64(0)
    n_pairs = 0
    for place in range(n_chosen):
        item = state.chosen[place]
        if n_pairs == most or is_other(state.text_records, state.text_pool, items[item, w.ITEM_CODE]):
            continue
        item_low, item_mid, item_high = load_limbs(items, item, w.ITEM_LIMBS)
        values[out + 1 + 2 * n_pairs] = items[item, w.ITEM_CODE]
        values[out + 2 + 2 * n_pairs] = _map_value(
            program, state, index, items[item, w.ITEM_COUNT], item_low, item_mid, item_high
        )
        count -= items[item, w.ITEM_COUNT]
        if has_sums:
            low, mid, high = add(low, mid, high, item_low, item_mid, item_high)
        n_pairs += 1
    if state.entities[entity, features[index, w.F_WORD] + w.N_ITEMS] > n_pairs:
        if has_sums:
            low, mid, high = negate(low, mid, high)
            if ranking != w.NONE:
                item_low, item_mid, item_high = load_limbs(items, ranking, w.ITEM_LIMBS)
            else:
                item_low, item_mid, item_high = sum_of(items, state.item_links, first)
            low, mid, high = add(low, mid, high, item_low, item_mid, item_high)
        values[out + 1 + 2 * n_pairs] = w.OTHER_KEY
        values[out + 2 + 2 * n_pairs] = _map_value(program, state, index, count, low, mid, high)
        n_pairs += 1
    values[out] = n_pairs


@inlined()
def _map_value(program, state, index, count, low, mid, high):
    features = program.features
    kind = features[index, w.F_READ]
    value = count
    if kind == w.READ_MAP_SUM:
        value = to_float_bits(low, mid, high) if features[index, w.F_KIND] == w.FLOAT else to_int(mid, high)
    elif kind == w.READ_MAP_MEAN:
        if features[index, w.F_SCALE] == 0:
            value = mean_bits(low, mid, high, count)
        else:
            value = _decimal_mean(state, low, mid, high, count, features[index, w.F_SCALE])
    return value
