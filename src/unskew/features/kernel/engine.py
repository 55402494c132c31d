"""The compiled step: events and hops in order of instants, a row per closed instant at which values changed.

Per entity and window there is a running total (a cell) and a list of sparse tiles, ordered by tile number. Every
tile also hangs in a ring of buckets by the tile number at which it leaves, so that moving the clock touches only
what changes. The shape follows two-stacks-free invertible windows with re-evaluation where there is no inverse
(Tangwongsan et al., "General Incremental Sliding-Window Aggregation", VLDB 2015, section 2).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import uint64

from unskew.features.kernel.arithmetic import (
    add,
    from_float_bits,
    from_int,
    mean_bits,
    negate,
    ordered_bits,
    to_float_bits,
    to_int,
)
from unskew.features.kernel.compiled import compiled, inlined
from unskew.features.kernel.program import (
    A_COUNT_WORD,
    A_FILTER,
    A_FLOAT,
    A_OP,
    A_VALUE,
    A_WORD,
    CALENDAR,
    COUNT,
    F_COUNT_WORD,
    F_FLOAT,
    F_READ,
    F_WINDOW,
    F_WORD,
    LAST,
    MAX,
    MIN,
    READ_COUNT,
    READ_MEAN,
    READ_SUM,
    SUM,
    W_END,
    W_FIRST,
    W_HOP,
    W_KIND,
    W_RING,
    W_RING_SIZE,
    W_SPAN,
    W_TABLE,
    W_TABLE_END,
)

NONE = -1
NEVER = np.int64(-(2**63))
FOREVER = np.int64(2**63 - 1)

# Scalars of a state.
S_CLOCK, S_NEXT_HOP, S_TOUCHED, S_DIRTY, S_DEAD, S_TILE_HIGH, S_TILE_FREE, S_TILES = range(8)
N_SCALARS = 8

CAUSE_HOP, CAUSE_EVENT = 1, 2
MARK_DIRTY, MARK_DEAD = 1, 2
# Columns of ``touched``: the entity row, its causes, and the last event applied at the open instant.
T_ROW, T_CAUSE, T_EVENT_TIME, T_PARTITION, T_OFFSET = range(5)
# Columns of ``links``: a tile's neighbours in its entity's list, the next in its bucket, its entity row and window.
L_NEXT, L_PREVIOUS, L_BUCKET, L_ROW, L_WINDOW = range(5)


class State(NamedTuple):
    """All arrays of a shard's view. Entity arrays end in the row axis' capacity, tile arrays in the tiles'.

    ``totals`` [rows * windows, words]; ``ends`` [rows, windows, 2]: oldest and newest tile; ``live`` [rows]: tiles;
    ``values``, ``present`` [rows, features]: the previous closed row; ``changed_at`` [rows];
    ``slot`` [rows]: place in ``touched`` or -1; ``marks`` [rows]; ``touched`` [rows, 5]; ``dirty``, ``dead`` [rows];
    ``ordinals`` [tiles], ``links`` [tiles, 5], ``words`` [tiles, words]; ``ring``: first tile of each bucket;
    ``window_tiles``, ``window_next``, ``late``, ``late_by`` [windows].
    """

    scalars: npt.NDArray[np.int64]
    totals: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int32]
    live: npt.NDArray[np.int32]
    values: npt.NDArray[np.int64]
    present: npt.NDArray[np.uint8]
    changed_at: npt.NDArray[np.int64]
    slot: npt.NDArray[np.int32]
    marks: npt.NDArray[np.uint8]
    touched: npt.NDArray[np.int64]
    dirty: npt.NDArray[np.int32]
    dead: npt.NDArray[np.int32]
    ordinals: npt.NDArray[np.int64]
    links: npt.NDArray[np.int32]
    words: npt.NDArray[np.int64]
    ring: npt.NDArray[np.int32]
    window_tiles: npt.NDArray[np.int64]
    window_next: npt.NDArray[np.int64]
    late: npt.NDArray[np.int64]
    late_by: npt.NDArray[np.int64]


class Batch(NamedTuple):
    """Events in the order in which they count; all instants int64 microseconds.

    ``rows`` int32 [n]: entity rows; ``filters`` bool [f, n]; ``numbers`` int64 [v, n]: integers, or float64 bits;
    ``known`` bool [v, n]: False where the value is null.
    """

    rows: npt.NDArray[np.int32]
    effective: npt.NDArray[np.int64]
    arrival: npt.NDArray[np.int64]
    event_time: npt.NDArray[np.int64]
    partition: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]
    filters: npt.NDArray[np.bool_]
    numbers: npt.NDArray[np.int64]
    known: npt.NDArray[np.bool_]


class Scratch(NamedTuple):
    """One row being read: int64 and uint8 [features]."""

    values: npt.NDArray[np.int64]
    present: npt.NDArray[np.uint8]


class Rows(NamedTuple):
    """Space for closed rows; ``n`` [1] holds how many there are."""

    n: npt.NDArray[np.int64]
    row: npt.NDArray[np.int32]
    instant: npt.NDArray[np.int64]
    cause: npt.NDArray[np.uint8]
    event_time: npt.NDArray[np.int64]
    partition: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]
    values: npt.NDArray[np.int64]
    present: npt.NDArray[np.uint8]


@inlined()
def ordinal(program, window, instant):
    """Number of the tile that holds an instant."""
    windows = program.windows
    if windows[window, W_KIND] == CALENDAR:
        low = windows[window, W_TABLE]
        high = windows[window, W_TABLE_END]
        while high - low > 1:
            middle = (low + high) >> 1
            if program.boundaries[middle] <= instant:
                low = middle
            else:
                high = middle
        return low - windows[window, W_TABLE]
    return instant // windows[window, W_HOP]


@inlined()
def boundary(program, window, number):
    """First instant of a tile."""
    windows = program.windows
    if windows[window, W_KIND] == CALENDAR:
        return program.boundaries[windows[window, W_TABLE] + number]
    return number * windows[window, W_HOP]


@inlined()
def _later(cells, cell, word, effective, arrival, partition, offset):
    """Whether an event comes after the one that a LAST accumulator holds."""
    if effective != cells[cell, word]:
        return effective > cells[cell, word]
    if arrival != cells[cell, word + 1]:
        return arrival > cells[cell, word + 1]
    if partition != cells[cell, word + 2]:
        return partition > cells[cell, word + 2]
    return offset > cells[cell, word + 3]


@inlined()
def _add_limbs(cells, cell, word, low, mid, high):
    low, mid, high = add(
        uint64(cells[cell, word]), uint64(cells[cell, word + 1]), uint64(cells[cell, word + 2]), low, mid, high
    )
    cells[cell, word] = np.int64(low)
    cells[cell, word + 1] = np.int64(mid)
    cells[cell, word + 2] = np.int64(high)


@inlined()
def _add_event(program, batch, event, window, cells, cell):
    """Let an event into a cell. Counts come before what they guard, so a count of 1 means the first value."""
    windows = program.windows
    accumulators = program.accumulators
    for index in range(windows[window, W_FIRST], windows[window, W_END]):
        filter_ = accumulators[index, A_FILTER]
        if filter_ >= 0 and not batch.filters[filter_, event]:
            continue
        value = accumulators[index, A_VALUE]
        if value >= 0 and not batch.known[value, event]:
            continue
        op = accumulators[index, A_OP]
        word = accumulators[index, A_WORD]
        if op == COUNT:
            cells[cell, word] += 1
            continue
        number = batch.numbers[value, event]
        is_float = accumulators[index, A_FLOAT] == 1
        if op == SUM:
            if is_float:
                low, mid, high = from_float_bits(number)
            else:
                low, mid, high = from_int(number)
            _add_limbs(cells, cell, word, low, mid, high)
            continue
        if is_float:
            number = ordered_bits(number)
        first = cells[cell, accumulators[index, A_COUNT_WORD]] == 1
        if op == MIN:
            if first or number < cells[cell, word]:
                cells[cell, word] = number
        elif op == MAX:
            if first or number > cells[cell, word]:
                cells[cell, word] = number
        elif first or _later(
            cells, cell, word, batch.effective[event], batch.arrival[event], batch.partition[event], batch.offset[event]
        ):
            cells[cell, word] = batch.effective[event]
            cells[cell, word + 1] = batch.arrival[event]
            cells[cell, word + 2] = batch.partition[event]
            cells[cell, word + 3] = batch.offset[event]
            cells[cell, word + 4] = number


@inlined()
def _passes(program, batch, event, window):
    """Whether any accumulator of the window takes the event."""
    windows = program.windows
    accumulators = program.accumulators
    for index in range(windows[window, W_FIRST], windows[window, W_END]):
        if accumulators[index, A_OP] != COUNT:
            continue
        filter_ = accumulators[index, A_FILTER]
        if filter_ >= 0 and not batch.filters[filter_, event]:
            continue
        value = accumulators[index, A_VALUE]
        if value < 0 or batch.known[value, event]:
            return True
    return False


@compiled()
def merge_tile(program, window, totals, total, words, tile):
    """Let a tile into a total; the total's counts still exclude it."""
    windows = program.windows
    accumulators = program.accumulators
    for index in range(windows[window, W_FIRST], windows[window, W_END]):
        op = accumulators[index, A_OP]
        word = accumulators[index, A_WORD]
        if op == COUNT:
            totals[total, word] += words[tile, word]
            continue
        if op == SUM:
            _add_limbs(
                totals,
                total,
                word,
                uint64(words[tile, word]),
                uint64(words[tile, word + 1]),
                uint64(words[tile, word + 2]),
            )
            continue
        count_word = accumulators[index, A_COUNT_WORD]
        if words[tile, count_word] == 0:
            continue
        # The count beside it was merged just before: equal counts mean that the total held nothing.
        _merge_ordered(op, word, totals, total, words, tile, totals[total, count_word] == words[tile, count_word])


@inlined()
def _merge_ordered(op, word, totals, total, words, tile, first):
    if op == MIN:
        if first or words[tile, word] < totals[total, word]:
            totals[total, word] = words[tile, word]
    elif op == MAX:
        if first or words[tile, word] > totals[total, word]:
            totals[total, word] = words[tile, word]
    elif first or _later(
        totals, total, word, words[tile, word], words[tile, word + 1], words[tile, word + 2], words[tile, word + 3]
    ):
        for place in range(word, word + 5):
            totals[total, place] = words[tile, place]


@compiled()
def _subtract_tile(program, state, entity, window, tile):
    """Take a leaving tile, already out of its list, from its entity's total."""
    windows = program.windows
    accumulators = program.accumulators
    totals = state.totals
    words = state.words
    total = entity * len(windows) + window
    for index in range(windows[window, W_FIRST], windows[window, W_END]):
        op = accumulators[index, A_OP]
        word = accumulators[index, A_WORD]
        if op == COUNT:
            totals[total, word] -= words[tile, word]
        elif op == SUM:
            low, mid, high = negate(
                uint64(words[tile, word]), uint64(words[tile, word + 1]), uint64(words[tile, word + 2])
            )
            _add_limbs(totals, total, word, low, mid, high)
        else:
            count_word = accumulators[index, A_COUNT_WORD]
            if words[tile, count_word] == 0 or totals[total, count_word] == 0:
                continue
            width = 5 if op == LAST else 1
            held = True
            for place in range(word, word + width):
                if totals[total, place] != words[tile, place]:
                    held = False
                    break
            if held:
                first = True
                other = state.ends[entity, window, 0]
                while other != NONE:
                    if words[other, count_word] > 0:
                        _merge_ordered(op, word, totals, total, words, other, first)
                        first = False
                    other = state.links[other, L_NEXT]


@inlined()
def tile_of(program, state, entity, window, number):
    """The entity's tile of that number, made and hung into list and ring where there is none."""
    scalars = state.scalars
    links = state.links
    before = state.ends[entity, window, 1]
    after = np.int32(NONE)
    while before != NONE and state.ordinals[before] > number:
        after = before
        before = links[before, L_PREVIOUS]
    if before != NONE and state.ordinals[before] == number:
        return before
    tile = np.int32(scalars[S_TILE_FREE])
    if tile != NONE:
        scalars[S_TILE_FREE] = links[tile, L_NEXT]
    else:
        tile = np.int32(scalars[S_TILE_HIGH])
        scalars[S_TILE_HIGH] += 1
    state.ordinals[tile] = number
    state.words[tile, :] = 0
    links[tile, L_NEXT] = after
    links[tile, L_PREVIOUS] = before
    links[tile, L_ROW] = entity
    links[tile, L_WINDOW] = window
    if before == NONE:
        state.ends[entity, window, 0] = tile
    else:
        links[before, L_NEXT] = tile
    if after == NONE:
        state.ends[entity, window, 1] = tile
    else:
        links[after, L_PREVIOUS] = tile
    windows = program.windows
    leaves = number + windows[window, W_SPAN] + 1
    bucket = windows[window, W_RING] + leaves % windows[window, W_RING_SIZE]
    links[tile, L_BUCKET] = state.ring[bucket]
    state.ring[bucket] = tile
    state.window_tiles[window] += 1
    scalars[S_TILES] += 1
    state.live[entity] += 1
    if leaves < state.window_next[window]:
        state.window_next[window] = leaves
        instant = boundary(program, window, leaves)
        scalars[S_NEXT_HOP] = min(scalars[S_NEXT_HOP], instant)
    return tile


@inlined()
def _touch(state, entity, cause):
    """Mark an entity as touched at the open instant; its place in ``touched``."""
    scalars = state.scalars
    slot = state.slot[entity]
    if slot == NONE:
        slot = np.int32(scalars[S_TOUCHED])
        scalars[S_TOUCHED] += 1
        state.slot[entity] = slot
        state.touched[slot, T_ROW] = entity
        state.touched[slot, T_CAUSE] = 0
    if state.marks[entity] & MARK_DIRTY == 0:
        state.marks[entity] |= MARK_DIRTY
        state.dirty[scalars[S_DIRTY]] = entity
        scalars[S_DIRTY] += 1
    state.touched[slot, T_CAUSE] |= cause
    return slot


@inlined()
def read(program, state, entity, values, present):
    """The entity's current values: int64 patterns and whether each is present."""
    features = program.features
    totals = state.totals
    n_windows = len(program.windows)
    for index in range(len(features)):
        total = entity * n_windows + features[index, F_WINDOW]
        count = totals[total, features[index, F_COUNT_WORD]]
        kind = features[index, F_READ]
        is_float = features[index, F_FLOAT] == 1
        word = features[index, F_WORD]
        values[index] = 0
        present[index] = 1
        if kind == READ_COUNT:
            values[index] = count
        elif kind == READ_SUM:
            if is_float:
                values[index] = to_float_bits(
                    uint64(totals[total, word]), uint64(totals[total, word + 1]), uint64(totals[total, word + 2])
                )
            else:
                values[index] = to_int(uint64(totals[total, word + 1]), uint64(totals[total, word + 2]))
        elif count == 0:
            present[index] = 0
        elif kind == READ_MEAN:
            values[index] = mean_bits(
                uint64(totals[total, word]), uint64(totals[total, word + 1]), uint64(totals[total, word + 2]), count
            )
        elif is_float:
            values[index] = ordered_bits(totals[total, word])
        else:
            values[index] = totals[total, word]


@inlined()
def _close(program, state, rows, values, present):
    """Close the open instant: a row for every touched entity whose values differ from its previous row."""
    scalars = state.scalars
    n_features = len(program.features)
    for slot in range(scalars[S_TOUCHED]):
        entity = state.touched[slot, T_ROW]
        state.slot[entity] = NONE
        read(program, state, entity, values, present)
        differs = False
        for index in range(n_features):
            if values[index] != state.values[entity, index] or present[index] != state.present[entity, index]:
                differs = True
                break
        if differs:
            place = rows.n[0]
            rows.n[0] = place + 1
            rows.row[place] = entity
            rows.instant[place] = scalars[S_CLOCK]
            rows.cause[place] = state.touched[slot, T_CAUSE]
            rows.event_time[place] = state.touched[slot, T_EVENT_TIME]
            rows.partition[place] = state.touched[slot, T_PARTITION]
            rows.offset[place] = state.touched[slot, T_OFFSET]
            for index in range(n_features):
                rows.values[index, place] = values[index]
                rows.present[index, place] = present[index]
                state.values[entity, index] = values[index]
                state.present[entity, index] = present[index]
            state.changed_at[entity] = scalars[S_CLOCK]
        if state.live[entity] == 0 and state.marks[entity] & MARK_DEAD == 0:
            state.marks[entity] |= MARK_DEAD
            state.dead[scalars[S_DEAD]] = entity
            scalars[S_DEAD] += 1
    scalars[S_TOUCHED] = 0


@compiled()
def _expire(program, state, window):
    """Let the window's next bucket leave, and find the one after it."""
    windows = program.windows
    leaves = state.window_next[window]
    bucket = windows[window, W_RING] + leaves % windows[window, W_RING_SIZE]
    tile = state.ring[bucket]
    state.ring[bucket] = NONE
    while tile != NONE:
        following = state.links[tile, L_BUCKET]
        entity = state.links[tile, L_ROW]
        # Tiles leave in order of their numbers, so this one is the oldest of its entity.
        second = state.links[tile, L_NEXT]
        state.ends[entity, window, 0] = second
        if second == NONE:
            state.ends[entity, window, 1] = NONE
        else:
            state.links[second, L_PREVIOUS] = NONE
        _touch(state, entity, CAUSE_HOP)
        _subtract_tile(program, state, entity, window, tile)
        state.links[tile, L_NEXT] = state.scalars[S_TILE_FREE]
        state.scalars[S_TILE_FREE] = tile
        state.window_tiles[window] -= 1
        state.scalars[S_TILES] -= 1
        state.live[entity] -= 1
        tile = following
    state.window_next[window] = FOREVER
    if state.window_tiles[window] > 0:
        leaves += 1
        while state.ring[windows[window, W_RING] + leaves % windows[window, W_RING_SIZE]] == NONE:
            leaves += 1
        state.window_next[window] = leaves


@inlined()
def _advance(program, state, instant, rows, values, present):
    """Open ``instant``: close every instant before it, let hops at or before it happen. False: no room for rows."""
    scalars = state.scalars
    while True:
        hop = scalars[S_NEXT_HOP]
        target = min(hop, instant)
        if target > scalars[S_CLOCK]:
            if rows.n[0] + scalars[S_TOUCHED] > len(rows.row):
                return False
            _close(program, state, rows, values, present)
            scalars[S_CLOCK] = target
        if hop > instant:
            return True
        nearest = FOREVER
        for window in range(len(program.windows)):
            leaves = state.window_next[window]
            if leaves == FOREVER:
                continue
            if boundary(program, window, leaves) == hop:
                _expire(program, state, window)
                leaves = state.window_next[window]
                if leaves == FOREVER:
                    continue
            nearest = min(nearest, boundary(program, window, leaves))
        scalars[S_NEXT_HOP] = nearest


@compiled()
def run(program, state, batch, first, clock, rows, scratch):
    """Apply the events from ``first`` on and then move the clock.

    Returns the number of events applied in all; when it is the batch's length and ``clock`` is reached, the step is
    done. Otherwise ``rows`` is full: take them out and call again from there. Tiles and entity rows must have room.
    """
    n_windows = len(program.windows)
    values = scratch.values
    present = scratch.present
    scalars = state.scalars
    n_events = len(batch.rows)
    for event in range(first, n_events + 1):
        arrival = batch.arrival[event] if event < n_events else clock
        if arrival > scalars[S_CLOCK] and not _advance(program, state, arrival, rows, values, present):
            return event
        if event == n_events:
            break
        entity = batch.rows[event]
        effective = batch.effective[event]
        slot = NONE
        for window in range(len(program.windows)):
            if not _passes(program, batch, event, window):
                continue
            number = ordinal(program, window, effective)
            leaves = number + program.windows[window, W_SPAN] + 1
            left = boundary(program, window, leaves)
            if left <= arrival:
                state.late[window] += 1
                state.late_by[window] = max(state.late_by[window], arrival - left)
                continue
            if slot == NONE:
                slot = _touch(state, entity, CAUSE_EVENT)
                if state.changed_at[entity] == NEVER:
                    state.changed_at[entity] = arrival
            tile = tile_of(program, state, entity, window, number)
            _add_event(program, batch, event, window, state.words, tile)
            _add_event(program, batch, event, window, state.totals, entity * n_windows + window)
        if slot != NONE:
            state.touched[slot, T_EVENT_TIME] = batch.event_time[event]
            state.touched[slot, T_PARTITION] = batch.partition[event]
            state.touched[slot, T_OFFSET] = batch.offset[event]
        elif state.live[entity] == 0 and state.slot[entity] == NONE and state.marks[entity] & MARK_DEAD == 0:
            # Came too late for every window, or passed no filter: its row must not stay.
            state.marks[entity] |= MARK_DEAD
            state.dead[scalars[S_DEAD]] = entity
            scalars[S_DEAD] += 1
    return n_events


@compiled()
def current(program, state, rows, until, empty_at, scratch):
    """The current row of every entity touched since the last call, into ``rows``; clears the list."""
    scalars = state.scalars
    n_features = len(program.features)
    values = scratch.values
    present = scratch.present
    for place in range(scalars[S_DIRTY]):
        entity = state.dirty[place]
        state.marks[entity] &= ~np.uint8(MARK_DIRTY)
        read(program, state, entity, values, present)
        at = state.changed_at[entity]
        for index in range(n_features):
            if values[index] != state.values[entity, index] or present[index] != state.present[entity, index]:
                at = scalars[S_CLOCK]
            rows.values[index, place] = values[index]
            rows.present[index, place] = present[index]
        rows.row[place] = entity
        rows.instant[place] = at
        first = FOREVER
        last = NEVER
        for window in range(len(program.windows)):
            oldest = state.ends[entity, window, 0]
            if oldest == NONE:
                continue
            beyond = program.windows[window, W_SPAN] + 1
            first = min(first, boundary(program, window, state.ordinals[oldest] + beyond))
            newest = state.ordinals[state.ends[entity, window, 1]]
            last = max(last, boundary(program, window, newest + beyond))
        until[place] = first
        empty_at[place] = last
    rows.n[0] = scalars[S_DIRTY]
    scalars[S_DIRTY] = 0


@compiled()
def take_dead(state, out):
    """Rows that hold nothing any more and are not touched at the open instant; clears the list."""
    scalars = state.scalars
    count = 0
    for place in range(scalars[S_DEAD]):
        entity = state.dead[place]
        state.marks[entity] &= ~np.uint8(MARK_DEAD)
        if state.live[entity] == 0 and state.slot[entity] == NONE:
            out[count] = entity
            count += 1
    scalars[S_DEAD] = 0
    return count


@compiled()
def reset_rows(state, entities, values, present):
    """Make entity rows as of an entity never seen: no tiles, the empty row."""
    n_windows = state.ends.shape[1]
    for entity in entities:
        state.totals[entity * n_windows : (entity + 1) * n_windows, :] = 0
        state.ends[entity, :, :] = NONE
        state.live[entity] = 0
        for index in range(len(values)):
            state.values[entity, index] = values[index]
            state.present[entity, index] = present[index]
        state.changed_at[entity] = NEVER
        state.slot[entity] = NONE
        state.marks[entity] = 0
