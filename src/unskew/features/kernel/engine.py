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
from unskew.features.kernel.compiled import compiled, inlined, prefetch
from unskew.features.kernel.program import (
    A_COUNT_WORD,
    A_FILTER,
    A_FLOAT,
    A_OP,
    A_VALUE,
    A_WORD,
    CALENDAR,
    COUNT,
    ENTITY_CHANGED,
    ENTITY_LIVE,
    ENTITY_MARKS,
    ENTITY_PRESENT,
    ENTITY_SLOT,
    ENTITY_VALUES,
    F_COUNT_WORD,
    F_FLOAT,
    F_READ,
    F_WORD,
    LAST,
    MAX,
    MIN,
    READ_COUNT,
    READ_MEAN,
    READ_SUM,
    SUM,
    W_END,
    W_ENDS,
    W_FIRST,
    W_HOP,
    W_KIND,
    W_RING,
    W_RING_SIZE,
    W_SPAN,
    W_TABLE,
    W_TABLE_END,
    W_TOTAL,
)

Ints = npt.NDArray[np.int64]

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
# Columns of ``tiles``: its number, its neighbours in its entity's list, the next in its bucket, its entity row and
# window, and from there on its accumulators.
TILE_NUMBER, TILE_NEXT, TILE_PREVIOUS, TILE_BUCKET, TILE_ROW, TILE_WINDOW, TILE_WORDS = range(7)


class State(NamedTuple):
    """All arrays of a shard's view.

    What an event needs of an entity, or of a tile, lies together in memory, as one row of int64 words:

    ``entities`` [rows, ...]: ``ENTITY_LIVE`` tiles, ``ENTITY_SLOT`` place in ``touched`` or -1, ``ENTITY_MARKS``,
    ``ENTITY_CHANGED`` instant of the last change; the previous closed row: ``ENTITY_PRESENT`` a bit for each feature and
    from ``ENTITY_VALUES`` on a word for each; then per window (``W_ENDS``) the oldest and the newest tile, and per window
    (``W_TOTAL``) its running total.
    ``tiles`` [tiles, ...]: columns ``TILE_...``. ``ring``: first tile of each bucket.
    ``touched`` [rows, 5]; ``dirty``, ``dead`` [rows]; ``window_tiles``, ``window_next``, ``late``, ``late_by`` [windows].
    """

    scalars: Ints
    entities: Ints
    touched: Ints
    dirty: npt.NDArray[np.int32]
    dead: npt.NDArray[np.int32]
    tiles: Ints
    ring: Ints
    window_tiles: Ints
    window_next: Ints
    late: Ints
    late_by: Ints


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


class Rows(NamedTuple):
    """Space for rows; ``n`` [1] holds how many there are, ``present`` a bit for each feature."""

    n: npt.NDArray[np.int64]
    row: npt.NDArray[np.int32]
    instant: npt.NDArray[np.int64]
    cause: npt.NDArray[np.uint8]
    event_time: npt.NDArray[np.int64]
    partition: npt.NDArray[np.int64]
    offset: npt.NDArray[np.int64]
    values: npt.NDArray[np.int64]
    present: npt.NDArray[np.int64]


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
def _later(cells, cell, base, word, effective, arrival, partition, offset):
    """Whether an event comes after the one that a LAST accumulator holds."""
    if effective != cells[cell, base + word]:
        return effective > cells[cell, base + word]
    if arrival != cells[cell, base + word + 1]:
        return arrival > cells[cell, base + word + 1]
    if partition != cells[cell, base + word + 2]:
        return partition > cells[cell, base + word + 2]
    return offset > cells[cell, base + word + 3]


@inlined()
def _add_limbs(cells, cell, word, low, mid, high):
    low, mid, high = add(
        uint64(cells[cell, word]), uint64(cells[cell, word + 1]), uint64(cells[cell, word + 2]), low, mid, high
    )
    cells[cell, word] = np.int64(low)
    cells[cell, word + 1] = np.int64(mid)
    cells[cell, word + 2] = np.int64(high)


@inlined()
def _add_event(program, batch, event, window, cells, cell, base):
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
            cells[cell, base + word] += 1
            continue
        number = batch.numbers[value, event]
        is_float = accumulators[index, A_FLOAT] == 1
        if op == SUM:
            if is_float:
                low, mid, high = from_float_bits(number)
            else:
                low, mid, high = from_int(number)
            _add_limbs(cells, cell, base + word, low, mid, high)
            continue
        if is_float:
            number = ordered_bits(number)
        first = cells[cell, base + accumulators[index, A_COUNT_WORD]] == 1
        if op == MIN:
            if first or number < cells[cell, base + word]:
                cells[cell, base + word] = number
        elif op == MAX:
            if first or number > cells[cell, base + word]:
                cells[cell, base + word] = number
        elif first or _later(
            cells,
            cell,
            base,
            word,
            batch.effective[event],
            batch.arrival[event],
            batch.partition[event],
            batch.offset[event],
        ):
            cells[cell, base + word] = batch.effective[event]
            cells[cell, base + word + 1] = batch.arrival[event]
            cells[cell, base + word + 2] = batch.partition[event]
            cells[cell, base + word + 3] = batch.offset[event]
            cells[cell, base + word + 4] = number


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
def merge_tile(program, entities, entity, window, tiles, tile):
    """Let a tile into a total; the total's counts still exclude it."""
    windows = program.windows
    total = windows[window, W_TOTAL]
    accumulators = program.accumulators
    for index in range(windows[window, W_FIRST], windows[window, W_END]):
        op = accumulators[index, A_OP]
        word = accumulators[index, A_WORD]
        if op == COUNT:
            entities[entity, total + word] += tiles[tile, TILE_WORDS + word]
            continue
        if op == SUM:
            _add_limbs(
                entities,
                entity,
                total + word,
                uint64(tiles[tile, TILE_WORDS + word]),
                uint64(tiles[tile, TILE_WORDS + word + 1]),
                uint64(tiles[tile, TILE_WORDS + word + 2]),
            )
            continue
        count_word = accumulators[index, A_COUNT_WORD]
        if tiles[tile, TILE_WORDS + count_word] == 0:
            continue
        # The count beside it was merged just before: equal counts mean that the total held nothing.
        _merge_ordered(
            op,
            word,
            entities,
            entity,
            total,
            tiles,
            tile,
            entities[entity, total + count_word] == tiles[tile, TILE_WORDS + count_word],
        )


@inlined()
def _merge_ordered(op, word, entities, entity, total, tiles, tile, first):
    if op == MIN:
        if first or tiles[tile, TILE_WORDS + word] < entities[entity, total + word]:
            entities[entity, total + word] = tiles[tile, TILE_WORDS + word]
    elif op == MAX:
        if first or tiles[tile, TILE_WORDS + word] > entities[entity, total + word]:
            entities[entity, total + word] = tiles[tile, TILE_WORDS + word]
    elif first or _later(
        entities,
        entity,
        total,
        word,
        tiles[tile, TILE_WORDS + word],
        tiles[tile, TILE_WORDS + word + 1],
        tiles[tile, TILE_WORDS + word + 2],
        tiles[tile, TILE_WORDS + word + 3],
    ):
        for place in range(word, word + 5):
            entities[entity, total + place] = tiles[tile, TILE_WORDS + place]


@compiled()
def _subtract_tile(program, state, entity, window, tile):
    """Take a leaving tile, already out of its list, from its entity's total."""
    windows = program.windows
    accumulators = program.accumulators
    entities = state.entities
    tiles = state.tiles
    total = windows[window, W_TOTAL]
    for index in range(windows[window, W_FIRST], windows[window, W_END]):
        op = accumulators[index, A_OP]
        word = accumulators[index, A_WORD]
        if op == COUNT:
            entities[entity, total + word] -= tiles[tile, TILE_WORDS + word]
        elif op == SUM:
            low, mid, high = negate(
                uint64(tiles[tile, TILE_WORDS + word]),
                uint64(tiles[tile, TILE_WORDS + word + 1]),
                uint64(tiles[tile, TILE_WORDS + word + 2]),
            )
            _add_limbs(entities, entity, total + word, low, mid, high)
        else:
            count_word = accumulators[index, A_COUNT_WORD]
            if tiles[tile, TILE_WORDS + count_word] == 0 or entities[entity, total + count_word] == 0:
                continue
            width = 5 if op == LAST else 1
            held = True
            for place in range(word, word + width):
                if entities[entity, total + place] != tiles[tile, TILE_WORDS + place]:
                    held = False
                    break
            if held:
                first = True
                other = state.entities[entity, windows[window, W_ENDS]]
                while other != NONE:
                    if tiles[other, TILE_WORDS + count_word] > 0:
                        _merge_ordered(op, word, entities, entity, total, tiles, other, first)
                        first = False
                    other = state.tiles[other, TILE_NEXT]


@inlined()
def tile_of(program, state, entity, window, number):
    """The entity's tile of that number, made and hung into list and ring where there is none."""
    scalars = state.scalars
    tiles = state.tiles
    windows = program.windows
    before = state.entities[entity, windows[window, W_ENDS] + 1]
    after = np.int64(NONE)
    while before != NONE and tiles[before, TILE_NUMBER] > number:
        after = before
        before = tiles[before, TILE_PREVIOUS]
    if before != NONE and tiles[before, TILE_NUMBER] == number:
        return before
    tile = scalars[S_TILE_FREE]
    if tile != NONE:
        scalars[S_TILE_FREE] = tiles[tile, TILE_NEXT]
    else:
        tile = scalars[S_TILE_HIGH]
        scalars[S_TILE_HIGH] += 1
    tiles[tile, TILE_NUMBER] = number
    for word in range(TILE_WORDS, tiles.shape[1]):
        tiles[tile, word] = 0
    tiles[tile, TILE_NEXT] = after
    tiles[tile, TILE_PREVIOUS] = before
    tiles[tile, TILE_ROW] = entity
    tiles[tile, TILE_WINDOW] = window
    if before == NONE:
        state.entities[entity, windows[window, W_ENDS]] = tile
    else:
        tiles[before, TILE_NEXT] = tile
    if after == NONE:
        state.entities[entity, windows[window, W_ENDS] + 1] = tile
    else:
        tiles[after, TILE_PREVIOUS] = tile
    leaves = number + windows[window, W_SPAN] + 1
    bucket = windows[window, W_RING] + leaves % windows[window, W_RING_SIZE]
    tiles[tile, TILE_BUCKET] = state.ring[bucket]
    state.ring[bucket] = tile
    state.window_tiles[window] += 1
    scalars[S_TILES] += 1
    state.entities[entity, ENTITY_LIVE] += 1
    if leaves < state.window_next[window]:
        state.window_next[window] = leaves
        instant = boundary(program, window, leaves)
        scalars[S_NEXT_HOP] = min(scalars[S_NEXT_HOP], instant)
    return tile


@inlined()
def _touch(state, entity, cause):
    """Mark an entity as touched at the open instant; its place in ``touched``."""
    scalars = state.scalars
    slot = state.entities[entity, ENTITY_SLOT]
    if slot == NONE:
        slot = scalars[S_TOUCHED]
        scalars[S_TOUCHED] += 1
        state.entities[entity, ENTITY_SLOT] = slot
        state.touched[slot, T_ROW] = entity
        state.touched[slot, T_CAUSE] = 0
    if state.entities[entity, ENTITY_MARKS] & MARK_DIRTY == 0:
        state.entities[entity, ENTITY_MARKS] |= MARK_DIRTY
        state.dirty[scalars[S_DIRTY]] = entity
        scalars[S_DIRTY] += 1
    state.touched[slot, T_CAUSE] |= cause
    return slot


@inlined()
def read(program, entities, entity, values):
    """Read the entity's current values into ``values``, as int64 patterns; returns a bit for each that is present."""
    features = program.features
    present = np.int64(0)
    for index in range(len(features)):
        count = entities[entity, features[index, F_COUNT_WORD]]
        kind = features[index, F_READ]
        is_float = features[index, F_FLOAT] == 1
        word = features[index, F_WORD]
        value = np.int64(0)
        bit = np.int64(1) << index
        if kind == READ_COUNT:
            value = count
        elif kind == READ_SUM:
            mid = uint64(entities[entity, word + 1])
            high = uint64(entities[entity, word + 2])
            value = to_float_bits(uint64(entities[entity, word]), mid, high) if is_float else to_int(mid, high)
        elif count == 0:
            bit = np.int64(0)
        elif kind == READ_MEAN:
            value = mean_bits(
                uint64(entities[entity, word]),
                uint64(entities[entity, word + 1]),
                uint64(entities[entity, word + 2]),
                count,
            )
        elif is_float:
            value = ordered_bits(entities[entity, word])
        else:
            value = entities[entity, word]
        values[index] = value
        present |= bit
    return present


@inlined()
def _close(program, state, rows, values):
    """Close the open instant: a row for every touched entity whose values differ from its previous row."""
    scalars = state.scalars
    n_features = len(program.features)
    for slot in range(scalars[S_TOUCHED]):
        entity = state.touched[slot, T_ROW]
        state.entities[entity, ENTITY_SLOT] = NONE
        present = read(program, state.entities, entity, values)
        differs = present != state.entities[entity, ENTITY_PRESENT]
        for index in range(n_features):
            if values[index] != state.entities[entity, ENTITY_VALUES + index]:
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
                state.entities[entity, ENTITY_VALUES + index] = values[index]
            rows.present[place] = present
            state.entities[entity, ENTITY_PRESENT] = present
            state.entities[entity, ENTITY_CHANGED] = scalars[S_CLOCK]
        if state.entities[entity, ENTITY_LIVE] == 0 and state.entities[entity, ENTITY_MARKS] & MARK_DEAD == 0:
            state.entities[entity, ENTITY_MARKS] |= MARK_DEAD
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
        following = state.tiles[tile, TILE_BUCKET]
        entity = state.tiles[tile, TILE_ROW]
        # Tiles leave in order of their numbers, so this one is the oldest of its entity.
        second = state.tiles[tile, TILE_NEXT]
        state.entities[entity, windows[window, W_ENDS]] = second
        if second == NONE:
            state.entities[entity, windows[window, W_ENDS] + 1] = NONE
        else:
            state.tiles[second, TILE_PREVIOUS] = NONE
        _touch(state, entity, CAUSE_HOP)
        _subtract_tile(program, state, entity, window, tile)
        state.tiles[tile, TILE_NEXT] = state.scalars[S_TILE_FREE]
        state.scalars[S_TILE_FREE] = tile
        state.window_tiles[window] -= 1
        state.scalars[S_TILES] -= 1
        state.entities[entity, ENTITY_LIVE] -= 1
        tile = following
    state.window_next[window] = FOREVER
    if state.window_tiles[window] > 0:
        leaves += 1
        while state.ring[windows[window, W_RING] + leaves % windows[window, W_RING_SIZE]] == NONE:
            leaves += 1
        state.window_next[window] = leaves


@inlined()
def _advance(program, state, instant, rows, values):
    """Open ``instant``: close every instant before it, let hops at or before it happen. False: no room for rows."""
    scalars = state.scalars
    while True:
        hop = scalars[S_NEXT_HOP]
        target = min(hop, instant)
        if target > scalars[S_CLOCK]:
            if rows.n[0] + scalars[S_TOUCHED] > len(rows.row):
                return False
            _close(program, state, rows, values)
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


# Events ahead whose memory is asked for: the entity's row first, and, when that is there, its newest tiles.
FAR, NEAR = 12, 6
LINE_WORDS = 8


@inlined()
def _fetch_ahead(program, state, batch, event):
    """Hide the wait for memory: with many entities nearly every row and tile is out of cache."""
    if event + FAR < len(batch.rows):
        row = batch.rows[event + FAR]
        for word in range(0, state.entities.shape[1], LINE_WORDS):
            prefetch(state.entities, row, word)
    if event + NEAR < len(batch.rows):
        row = batch.rows[event + NEAR]
        for window in range(len(program.windows)):
            tile = state.entities[row, program.windows[window, W_ENDS] + 1]
            if tile != NONE:
                prefetch(state.tiles, tile, TILE_NUMBER)
                prefetch(state.tiles, tile, state.tiles.shape[1] - 1)


@compiled()
def run(program, state, batch, first, clock, rows, values):
    """Apply the events from ``first`` on and then move the clock.

    Returns the number of events applied in all; when it is the batch's length and ``clock`` is reached, the step is
    done. Otherwise ``rows`` is full: take them out and call again from there. Tiles and entity rows must have room.
    """
    scalars = state.scalars
    windows = program.windows
    n_events = len(batch.rows)
    for event in range(first, n_events + 1):
        arrival = batch.arrival[event] if event < n_events else clock
        if arrival > scalars[S_CLOCK] and not _advance(program, state, arrival, rows, values):
            return event
        if event == n_events:
            break
        _fetch_ahead(program, state, batch, event)
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
                if state.entities[entity, ENTITY_CHANGED] == NEVER:
                    state.entities[entity, ENTITY_CHANGED] = arrival
            tile = tile_of(program, state, entity, window, number)
            _add_event(program, batch, event, window, state.tiles, tile, TILE_WORDS)
            _add_event(program, batch, event, window, state.entities, entity, windows[window, W_TOTAL])
        if slot != NONE:
            state.touched[slot, T_EVENT_TIME] = batch.event_time[event]
            state.touched[slot, T_PARTITION] = batch.partition[event]
            state.touched[slot, T_OFFSET] = batch.offset[event]
        elif (
            state.entities[entity, ENTITY_LIVE] == 0
            and state.entities[entity, ENTITY_SLOT] == NONE
            and state.entities[entity, ENTITY_MARKS] & MARK_DEAD == 0
        ):
            # Came too late for every window, or passed no filter: its row must not stay.
            state.entities[entity, ENTITY_MARKS] |= MARK_DEAD
            state.dead[scalars[S_DEAD]] = entity
            scalars[S_DEAD] += 1
    return n_events


@compiled()
def current(program, state, rows, until, empty_at, values):
    """The current row of every entity touched since the last call, into ``rows``; clears the list."""
    windows = program.windows
    scalars = state.scalars
    n_features = len(program.features)
    for place in range(scalars[S_DIRTY]):
        entity = state.dirty[place]
        state.entities[entity, ENTITY_MARKS] &= ~MARK_DIRTY
        present = read(program, state.entities, entity, values)
        at = state.entities[entity, ENTITY_CHANGED]
        for index in range(n_features):
            if values[index] != state.entities[entity, ENTITY_VALUES + index]:
                at = scalars[S_CLOCK]
            rows.values[index, place] = values[index]
        if present != state.entities[entity, ENTITY_PRESENT]:
            at = scalars[S_CLOCK]
        rows.present[place] = present
        rows.row[place] = entity
        rows.instant[place] = at
        first = FOREVER
        last = NEVER
        for window in range(len(program.windows)):
            oldest = state.entities[entity, windows[window, W_ENDS]]
            if oldest == NONE:
                continue
            beyond = program.windows[window, W_SPAN] + 1
            first = min(first, boundary(program, window, state.tiles[oldest, TILE_NUMBER] + beyond))
            newest = state.tiles[state.entities[entity, windows[window, W_ENDS] + 1], TILE_NUMBER]
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
        state.entities[entity, ENTITY_MARKS] &= ~MARK_DEAD
        if state.entities[entity, ENTITY_LIVE] == 0 and state.entities[entity, ENTITY_SLOT] == NONE:
            out[count] = entity
            count += 1
    scalars[S_DEAD] = 0
    return count


@compiled()
def reset_rows(program, entities, rows, values, present):
    """Make entity rows as of an entity never seen: no tiles, the empty row."""
    for row in rows:
        for word in range(entities.shape[1]):
            entities[row, word] = 0
        entities[row, ENTITY_SLOT] = NONE
        entities[row, ENTITY_CHANGED] = NEVER
        entities[row, ENTITY_PRESENT] = present
        for index in range(len(values)):
            entities[row, ENTITY_VALUES + index] = values[index]
        for window in range(len(program.windows)):
            entities[row, program.windows[window, W_ENDS]] = NONE
            entities[row, program.windows[window, W_ENDS] + 1] = NONE
