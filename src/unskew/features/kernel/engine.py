"""The compiled step: events and hops in order of instants, a row per closed instant at which values changed.

Per entity and window there is a running total (a cell) and a list of sparse tiles, ordered by tile number. Every tile
is also in a ring of buckets, by the number of the tile at whose beginning something next happens to it: mostly that it
leaves. So moving the clock touches only what changes. The shape follows two-stacks-free invertible windows, with
re-evaluation where there is no inverse (Tangwongsan et al., "General Incremental Sliding-Window Aggregation", VLDB
2015, section 2).
"""

import numpy as np

from unskew.features.jit import compiled, inlined, inner, prefetch
from unskew.features.kernel import words as w
from unskew.features.kernel.accumulators import add_event, merge_tile, passes, subtract_tile
from unskew.features.kernel.bags import fetch_total, first_item, tile_owner, total_owner
from unskew.features.kernel.grid import boundary, leaving, ordinal
from unskew.features.kernel.items import fetch_item, fetch_slot
from unskew.features.kernel.packed import at, unpacked, write_packed
from unskew.features.kernel.reading import fetch_hinted, read_feature, read_row, value_end
from unskew.features.kernel.tiles import (
    entity_of,
    fetch_chunk,
    fetch_entity,
    fetch_tile,
    free_chunk,
    hang,
    next_of,
    previous_of,
)
from unskew.features.updates import LATE_BOUNDS_US

_LATE_BOUNDS_US = np.array(LATE_BOUNDS_US, np.int64)
# How many events ahead memory is prefetched: first the entity's row, then, once that is there, its tiles, and last what
# these lead to.
_FAR, _NEAR, _NEAREST = 12, 6, 3
_AHEAD = (_FAR, _NEAR, _NEAREST)


@inlined()
def _next_edge(program, window, number, now):
    """Return the number of the tile at whose beginning something next happens to a tile.

    ``now``: number of the present tile.
    """
    kind = program.windows[window, w.W_KIND]
    if kind == w.CLOSED and number == now:
        return number + 1
    if kind == w.EVERY:
        return now + 1
    return leaving(program, window, number)


@inlined()
def tile_of(program, state, entity, window, number, now):
    """Return the entity's tile of that number; make it and put it into list and ring if there is none.

    ``now``: number of the present tile. A session is one tile, whose number grows: it stays in its bucket until that
    bucket is processed.
    """
    scalars = state.scalars
    tiles = state.tiles
    windows = program.windows
    before = state.entities[entity, windows[window, w.W_NEWEST]]
    after = np.int64(w.NONE)
    if windows[window, w.W_KIND] == w.SESSION and before != w.NONE:
        tiles[before, w.TILE_NUMBER] = max(tiles[before, w.TILE_NUMBER], number)
        return before
    while before != w.NONE and tiles[before, w.TILE_NUMBER] > number:
        after = before
        before = previous_of(state, before)
    if before != w.NONE and tiles[before, w.TILE_NUMBER] == number:
        return before
    tile = scalars[w.S_TILE_FREE]
    if tile != w.NONE:
        scalars[w.S_TILE_FREE] = next_of(state, tile)
    else:
        tile = scalars[w.S_TILE_HIGH]
        scalars[w.S_TILE_HIGH] += 1
    tiles[tile, w.TILE_NUMBER] = number
    for word in range(w.TILE_WORDS, tiles.shape[1]):
        tiles[tile, word] = 0
    state.links[tile, w.LINK_NEXT] = after
    state.links[tile, w.LINK_PREVIOUS] = before
    state.links[tile, w.LINK_ROW] = entity
    if before == w.NONE:
        state.entities[entity, windows[window, w.W_OLDEST]] = tile
    else:
        state.links[before, w.LINK_NEXT] = tile
    if after == w.NONE:
        state.entities[entity, windows[window, w.W_NEWEST]] = tile
    else:
        state.links[after, w.LINK_PREVIOUS] = tile
    scalars[w.S_TILES] += 1
    state.entities[entity, w.ENTITY_LIVE] += 1
    if windows[window, w.W_KIND] != w.LIFETIME:
        edge = _next_edge(program, window, number, now)
        hang(program, state, window, tile, edge)
        state.window_tiles[window] += 1
        if edge < state.window_next[window]:
            state.window_next[window] = edge
            scalars[w.S_NEXT_HOP] = min(scalars[w.S_NEXT_HOP], boundary(program, window, edge))
    return tile


@inlined()
def _mark_dirty(state, entity):
    """Mark an entity whose current row must be returned."""
    if state.entities[entity, w.ENTITY_MARKS] & w.MARK_DIRTY == 0:
        state.entities[entity, w.ENTITY_MARKS] |= w.MARK_DIRTY
        state.dirty[state.scalars[w.S_DIRTY]] = entity
        state.scalars[w.S_DIRTY] += 1


@inlined()
def _mark_dead(state, entity):
    """Mark an entity's row as one that can be freed, if the entity has no tile and is not touched."""
    if (
        state.entities[entity, w.ENTITY_LIVE] == 0
        and state.entities[entity, w.ENTITY_SLOT] == w.NONE
        and state.entities[entity, w.ENTITY_MARKS] & w.MARK_DEAD == 0
    ):
        state.entities[entity, w.ENTITY_MARKS] |= w.MARK_DEAD
        state.dead[state.scalars[w.S_DEAD]] = entity
        state.scalars[w.S_DEAD] += 1


@inlined()
def _window_mark(window):
    return np.int64(w.MARK_WINDOWS) << min(window, w.N_WINDOW_MARKS - 1)


@inlined()
def _touch(state, entity, window, cause):
    """Mark a window of an entity as touched at the open instant; return the entity's place in ``touched``."""
    scalars = state.scalars
    slot = state.entities[entity, w.ENTITY_SLOT]
    state.entities[entity, w.ENTITY_MARKS] |= _window_mark(window)
    if slot == w.NONE:
        slot = scalars[w.S_TOUCHED]
        scalars[w.S_TOUCHED] += 1
        state.entities[entity, w.ENTITY_SLOT] = slot
        state.touched[slot, w.T_ROW] = entity
        state.touched[slot, w.T_CAUSE] = 0
    _mark_dirty(state, entity)
    state.touched[slot, w.T_CAUSE] |= cause
    return slot


@inlined()
def _read_touched(program, state, entity, values):
    """Read the features of the windows that the open instant has touched into the entity's row of values.

    The others have not changed since the previous row, because whatever changes a window touches it. Return true if the
    row differs from the previous one.
    """
    features = program.features
    entities = state.entities
    marks = entities[entity, w.ENTITY_MARKS]
    entities[entity, w.ENTITY_MARKS] = marks & ~np.int64(w.ALL_WINDOWS)
    before = entities[entity, w.ENTITY_PRESENT]
    present = before
    differs = False
    for index in range(len(features)):
        if marks & _window_mark(features[index, w.F_WINDOW]) == 0:
            continue
        bit = np.int64(1) << index
        present &= ~bit
        if read_feature(program, state, entity, index, values):
            present |= bit
        for word in range(features[index, w.F_OUT], value_end(program, index)):
            if values[word] != entities[entity, w.ENTITY_VALUES + word]:
                entities[entity, w.ENTITY_VALUES + word] = values[word]
                differs = True
    if present != before:
        entities[entity, w.ENTITY_PRESENT] = present
        differs = True
    return differs


@inlined()
def _write_values(program, rows, place, values):
    """Write the words of a row of values to their places."""
    if rows.others.shape[1] == 0:
        for index in range(len(program.features)):
            rows.firsts[index, place] = values[index]
    else:
        for index in range(len(program.features)):
            out = program.features[index, w.F_OUT]
            rows.firsts[index, place] = values[out]
            for word in range(out + 1, value_end(program, index)):
                rows.others[place, word - index - 1] = values[word]


@inlined()
def _close(program, state, rows, values):
    """Close the open instant: a row for every touched entity whose values differ from its previous row."""
    scalars = state.scalars
    n_touched = scalars[w.S_TOUCHED]
    for slot in range(n_touched):
        if slot + _NEAR < n_touched:
            fetch_entity(state, state.touched[slot + _NEAR, w.T_ROW])
        if program.n_bags > 0 and slot + _NEAREST < n_touched:
            fetch_hinted(at(state), state.touched[slot + _NEAREST, w.T_ROW])
        entity = state.touched[slot, w.T_ROW]
        state.entities[entity, w.ENTITY_SLOT] = w.NONE
        if _read_touched(program, state, entity, values):
            place = rows.n[0]
            rows.n[0] = place + 1
            rows.entity[place] = entity
            rows.words[w.ROW_INSTANT, place] = scalars[w.S_CLOCK]
            rows.words[w.ROW_PRESENT, place] = state.entities[entity, w.ENTITY_PRESENT]
            rows.words[w.ROW_CAUSE, place] = state.touched[slot, w.T_CAUSE]
            rows.words[w.ROW_EVENT_TIME, place] = state.touched[slot, w.T_EVENT_TIME]
            rows.words[w.ROW_PARTITION, place] = state.touched[slot, w.T_PARTITION]
            rows.words[w.ROW_OFFSET, place] = state.touched[slot, w.T_OFFSET]
            _write_values(program, rows, place, state.entities[entity, w.ENTITY_VALUES :])
            state.entities[entity, w.ENTITY_CHANGED] = scalars[w.S_CLOCK]
        _mark_dead(state, entity)
    scalars[w.S_TOUCHED] = 0


@inlined()
def _leave(program, state, window, tile):
    """Take the oldest tile of its entity out, from list and total, and free it."""
    windows = program.windows
    entity = entity_of(state, tile)
    second = next_of(state, tile)
    state.entities[entity, windows[window, w.W_OLDEST]] = second
    if second == w.NONE:
        state.entities[entity, windows[window, w.W_NEWEST]] = w.NONE
    else:
        state.links[second, w.LINK_PREVIOUS] = w.NONE
    _touch(state, entity, window, w.CAUSE_HOP)
    subtract_tile(program, state, entity, window, tile)
    state.links[tile, w.LINK_NEXT] = state.scalars[w.S_TILE_FREE]
    state.scalars[w.S_TILE_FREE] = tile
    state.window_tiles[window] -= 1
    state.scalars[w.S_TILES] -= 1
    state.entities[entity, w.ENTITY_LIVE] -= 1


@inlined()
def _expire_tile(program, state, window, tile, number, values):
    """Let happen to a tile what happens at the beginning of the tile ``number``."""
    kind = program.windows[window, w.W_KIND]
    entity = entity_of(state, tile)
    leaves = leaving(program, window, state.tiles[tile, w.TILE_NUMBER])
    if leaves > number:
        # It stays: its period has ended, or its session continued, or it decays by a hop.
        if kind == w.CLOSED:
            merge_tile(at(state), entity, window, tile)
        if kind != w.SESSION:
            _touch(state, entity, window, w.CAUSE_HOP)
        hang(program, state, window, tile, number + 1 if kind == w.EVERY else leaves)
        return
    if kind == w.SESSION and len(state.closings) > 0:
        _note_closing(at(state), entity, window, tile, boundary(program, window, number), values)
    # Tiles leave in order of their numbers, so this one is the oldest of its entity.
    _leave(program, state, window, tile)


@inner()
def _fetch_first_items(packed, window, tile):
    """Prefetch the first item of each of a tile's multisets."""
    program, state = unpacked(packed)
    for index in range(program.windows[window, w.W_FIRST], program.windows[window, w.W_END]):
        if program.accumulators[index, w.A_OP] == w.BAG:
            item = first_item(state.tiles, tile, w.TILE_WORDS + program.accumulators[index, w.A_WORD])
            if item != w.NONE:
                fetch_item(state, item)


@inlined()
def _expire(program, state, window, values):
    """Process the window's next bucket, and find the bucket after it."""
    windows = program.windows
    chunks = state.chunks
    number = state.window_next[window]
    bucket = windows[window, w.W_RING] + number % windows[window, w.W_RING_SIZE]
    chunk = np.int64(state.ring[bucket])
    state.ring[bucket] = w.NONE
    if chunk != w.NONE:
        fetch_chunk(state, chunk)
    while chunk != w.NONE:
        following = np.int64(chunks[chunk, w.CHUNK_NEXT])
        n_tiles = chunks[chunk, w.CHUNK_COUNT]
        # What a chunk leads to lies a chunk ahead: the tiles of the next one, then the entities of these.
        if following != w.NONE:
            fetch_chunk(state, following)
        for place in range(n_tiles):
            tile = np.int64(chunks[chunk, w.CHUNK_TILES + place])
            fetch_entity(state, entity_of(state, tile))
            if program.n_bags > 0:
                _fetch_first_items(at(state), window, tile)
        for place in range(n_tiles):
            _expire_tile(program, state, window, np.int64(chunks[chunk, w.CHUNK_TILES + place]), number, values)
        free_chunk(state, chunk)
        chunk = following
    state.window_next[window] = w.FOREVER
    if state.window_tiles[window] > 0:
        end = windows[window, w.W_RING] + windows[window, w.W_RING_SIZE]
        while True:
            number += 1
            # Dividing again for each of many empty buckets would take longer than all else here.
            bucket = bucket + 1 if bucket + 1 < end else windows[window, w.W_RING]
            if state.ring[bucket] != w.NONE:
                break
        state.window_next[window] = number


@inner()
def _note_closing(packed, entity, window, tile, instant, values):
    """Record a session that has closed, with the values that it had."""
    program, state = unpacked(packed)
    place = state.scalars[w.S_CLOSINGS]
    state.scalars[w.S_CLOSINGS] += 1
    latest = w.TILE_WORDS + program.windows[window, w.W_OPENED] + w.LATEST_EVENT
    state.closings[place, w.C_ROW] = entity
    state.closings[place, w.C_INSTANT] = instant
    state.closings[place, w.C_PARTITION] = state.tiles[tile, latest + w.PARTITION]
    state.closings[place, w.C_OFFSET] = state.tiles[tile, latest + w.OFFSET]
    state.closings[place, w.C_PRESENT] = read_row(program, state, entity, values)
    for index in range(program.value_words):
        state.closings[place, w.C_VALUES + index] = values[index]


@inlined()
def _advance(program, state, instant, rows, values):
    """Open ``instant``: close every instant before it, and process hops at or before it.

    Returns false if there is no room for rows.
    """
    scalars = state.scalars
    while True:
        hop = scalars[w.S_NEXT_HOP]
        target = min(hop, instant)
        if target > scalars[w.S_CLOCK]:
            if rows.n[0] + scalars[w.S_TOUCHED] > len(rows.entity):
                return False
            _close(program, state, rows, values)
            scalars[w.S_CLOCK] = target
        if hop > instant:
            return True
        nearest = w.FOREVER
        for window in range(len(program.windows)):
            leaves = state.window_next[window]
            if leaves == w.FOREVER:
                continue
            if boundary(program, window, leaves) == hop:
                _expire(program, state, window, values)
                leaves = state.window_next[window]
                if leaves == w.FOREVER:
                    continue
            nearest = min(nearest, boundary(program, window, leaves))
        scalars[w.S_NEXT_HOP] = nearest


@inlined()
def _fetch_ahead(program, state, batch, event):
    """Hide the latency of memory: with many entities, nearly every row and tile is out of the cache."""
    if event + _FAR < len(batch.rows):
        fetch_entity(state, np.int64(batch.rows[event + _FAR]))
    if event + _NEAR < len(batch.rows):
        row = np.int64(batch.rows[event + _NEAR])
        for window in range(len(program.windows)):
            tile = state.entities[row, program.windows[window, w.W_NEWEST]]
            if tile != w.NONE:
                fetch_tile(state, tile)
    if program.n_bags > 0:
        _fetch_bags(at(state), batch.rows, batch.effective, batch.numbers, event)


@inner()
def _fetch_bags(packed, rows, effective, numbers, event):
    """Prefetch the items of maps and other multisets that events to come will change or have read."""
    program, state = unpacked(packed)
    accumulators = program.accumulators
    if event + _NEAR < len(rows):
        fetch_hinted(packed, np.int64(rows[event + _NEAR]))
    for window in range(len(program.windows)):
        for index in range(program.windows[window, w.W_FIRST], program.windows[window, w.W_END]):
            if accumulators[index, w.A_OP] != w.BAG:
                continue
            codes = accumulators[index, w.A_BY] if accumulators[index, w.A_BY] >= 0 else accumulators[index, w.A_VALUE]
            for stage in range(len(_AHEAD)):
                ahead = event + _AHEAD[stage]
                if ahead < len(rows):
                    owner = total_owner(program, np.int64(rows[ahead]), index)
                    fetch_total(packed, owner, numbers[codes, ahead], stage)
            if event + _NEAREST < len(rows):
                entity = np.int64(rows[event + _NEAREST])
                tile = _late_tile(program, state, entity, window, effective[event + _NEAREST])
                if tile != w.NONE:
                    fetch_slot(state, tile_owner(program, tile, index), numbers[codes, event + _NEAREST])


@inlined()
def _late_tile(program, state, entity, window, effective):
    """Return the tile that an event will probably enter: one of the last, or NONE."""
    number = ordinal(program, window, effective)
    tile = state.entities[entity, program.windows[window, w.W_NEWEST]]
    for _ in range(_NEAREST):
        if tile != w.NONE and state.tiles[tile, w.TILE_NUMBER] > number:
            tile = previous_of(state, tile)
    return tile


@compiled()
def pack(program, state):
    """Write program and state to the state's ``packed``, which is all that Python passes of them to the others."""
    write_packed(program, state)


@compiled()
def run(packed, batch, first, clock, rows, values):
    """Apply the events from ``first`` on and then move the clock.

    Returns the number of events applied so far. If it is the batch's length and the clock has reached ``clock``, the
    step is done. Otherwise ``rows`` is full: take them out and call again from there. Tiles and entity rows must have
    room.
    """
    program, state = unpacked(packed.ctypes.data)
    scalars = state.scalars
    windows = program.windows
    n_events = len(batch.rows)
    for event in range(first, n_events + 1):
        arrival = batch.arrival[event] if event < n_events else clock
        if arrival > scalars[w.S_CLOCK] and not _advance(program, state, arrival, rows, values):
            return event
        if event == n_events:
            break
        _fetch_ahead(program, state, batch, event)
        # The same type of number everywhere; otherwise callees are compiled once for each type.
        entity = np.int64(batch.rows[event])
        slot = w.NONE
        # Never seen, or nothing of it is left; in the latter case its row may or may not have been freed already.
        is_new = state.entities[entity, w.ENTITY_LIVE] == 0 and state.entities[entity, w.ENTITY_SLOT] == w.NONE
        for window in range(len(program.windows)):
            if not passes(program, batch, event, window):
                continue
            number = ordinal(program, window, batch.effective[event])
            left = boundary(program, window, leaving(program, window, number))
            kind = windows[window, w.W_KIND]
            is_late = left <= arrival
            if kind == w.SESSION:
                tile = state.entities[entity, windows[window, w.W_OLDEST]]
                if tile != w.NONE:
                    least = state.tiles[tile, w.TILE_WORDS + windows[window, w.W_OPENED] + w.LEAST_NUMBER]
                    is_late = number < least - windows[window, w.W_SPAN]
            if is_late:
                _count_late(state, window, max(arrival - left, 0))
                continue
            now = ordinal(program, window, arrival) if kind in (w.CLOSED, w.EVERY) else np.int64(0)
            tile = tile_of(program, state, entity, window, number, now)
            add_event(program, state, batch, event, window, state.tiles, tile, np.int64(w.TILE_WORDS), np.int64(1))
            if is_new:
                state.entities[entity, w.ENTITY_CHANGED] = arrival
                is_new = False
            if kind == w.CLOSED and number == now:
                # Its period is not over, so no value reads it yet; only the instant of the next change may be another.
                _mark_dirty(state, entity)
                continue
            slot = _touch(state, entity, window, w.CAUSE_EVENT)
            add_event(
                program, state, batch, event, window, state.entities, entity, windows[window, w.W_TOTAL], np.int64(0)
            )
        if slot != w.NONE:
            state.touched[slot, w.T_EVENT_TIME] = batch.event_time[event]
            state.touched[slot, w.T_PARTITION] = batch.partition[event]
            state.touched[slot, w.T_OFFSET] = batch.offset[event]
        else:
            # If the event came too late for every window, or passed no filter, the entity's row must not stay.
            _mark_dead(state, entity)
    return n_events


@inlined()
def _count_late(state, window, late_by):
    bucket = 0
    while bucket < len(_LATE_BOUNDS_US) and late_by > _LATE_BOUNDS_US[bucket]:
        bucket += 1
    state.late[window, bucket] += 1
    state.late_by[window] = max(state.late_by[window], late_by)


@inlined()
def _fetch_dirty(program, state, place, n_dirty):
    """Hide the latency of memory in ``current``, as ``_fetch_ahead`` does in ``run``."""
    if place + _FAR < n_dirty:
        fetch_entity(state, np.int64(state.dirty[place + _FAR]))
    if place + _NEAR < n_dirty:
        near = np.int64(state.dirty[place + _NEAR])
        for window in range(len(program.windows)):
            oldest = state.entities[near, program.windows[window, w.W_OLDEST]]
            if oldest != w.NONE:
                prefetch(state.tiles, oldest, np.int64(w.TILE_NUMBER))
                prefetch(
                    state.tiles, state.entities[near, program.windows[window, w.W_NEWEST]], np.int64(w.TILE_NUMBER)
                )


@compiled()
def current(packed, rows, values):
    """Write the current row of every entity touched since the last call into ``rows``, and clear the list."""
    program, state = unpacked(packed.ctypes.data)
    windows = program.windows
    scalars = state.scalars
    n_dirty = scalars[w.S_DIRTY]
    for place in range(n_dirty):
        _fetch_dirty(program, state, place, n_dirty)
        entity = np.int64(state.dirty[place])
        state.entities[entity, w.ENTITY_MARKS] &= ~w.MARK_DIRTY
        present = read_row(program, state, entity, values)
        at = state.entities[entity, w.ENTITY_CHANGED]
        for index in range(program.value_words):
            if values[index] != state.entities[entity, w.ENTITY_VALUES + index]:
                at = scalars[w.S_CLOCK]
        if present != state.entities[entity, w.ENTITY_PRESENT]:
            at = scalars[w.S_CLOCK]
        _write_values(program, rows, place, values)
        rows.entity[place] = entity
        rows.words[w.ROW_INSTANT, place] = at
        rows.words[w.ROW_PRESENT, place] = present
        first = w.FOREVER
        last = w.NEVER
        for window in range(len(program.windows)):
            oldest = state.entities[entity, windows[window, w.W_OLDEST]]
            if oldest == w.NONE:
                continue
            now = ordinal(program, window, scalars[w.S_CLOCK])
            edge = _next_edge(program, window, state.tiles[oldest, w.TILE_NUMBER], now)
            first = min(first, boundary(program, window, edge))
            newest = state.tiles[state.entities[entity, windows[window, w.W_NEWEST]], w.TILE_NUMBER]
            last = max(last, boundary(program, window, leaving(program, window, newest)))
        rows.words[w.ROW_UNTIL, place] = first
        rows.words[w.ROW_EMPTY_AT, place] = last
    rows.n[0] = n_dirty
    scalars[w.S_DIRTY] = 0


@compiled()
def take_dead(state, out):
    """Write to ``out`` the rows that hold nothing and are not touched at the open instant; clear the list.

    Returns their number.
    """
    scalars = state.scalars
    count = 0
    for place in range(scalars[w.S_DEAD]):
        entity = state.dead[place]
        state.entities[entity, w.ENTITY_MARKS] &= ~w.MARK_DEAD
        if state.entities[entity, w.ENTITY_LIVE] == 0 and state.entities[entity, w.ENTITY_SLOT] == w.NONE:
            out[count] = entity
            count += 1
    scalars[w.S_DEAD] = 0
    return count


@compiled()
def reset_rows(program, entities, rows, values, present):
    """Reset entity rows to those of an entity never seen: no tiles, the empty row."""
    for row in rows:
        for word in range(entities.shape[1]):
            entities[row, word] = 0
        entities[row, w.ENTITY_SLOT] = w.NONE
        entities[row, w.ENTITY_CHANGED] = w.NEVER
        entities[row, w.ENTITY_PRESENT] = present
        for index in range(len(values)):
            entities[row, w.ENTITY_VALUES + index] = values[index]
        for window in range(len(program.windows)):
            entities[row, program.windows[window, w.W_OLDEST]] = w.NONE
            entities[row, program.windows[window, w.W_NEWEST]] = w.NONE
