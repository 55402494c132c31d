"""Tiles in memory: how they are linked, and the ring of buckets in which each waits for what next happens to it.

A bucket is a list of chunks, so that a chunk says early which memory its tiles need: only the first is not full.
"""

import numpy as np
import numpy.typing as npt

from unskew.features.jit import inlined, prefetch
from unskew.features.kernel import words as w
from unskew.features.kernel.memory import LINE_WORDS


def links_of(tiles: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Return the memory of tiles, or of items, as numbers of 32 bits, in which their links are."""
    return tiles.view(np.int32)


def most_chunks(n_tiles: int, ring_slots: int) -> int:
    """Return how many chunks there are at most: one of a bucket is not full, and one is being emptied."""
    return n_tiles // w.CHUNK_SIZE + ring_slots + 1


@inlined()
def next_of(state, tile):
    """Return the next tile of the entity, or NONE; of a tile that is free, the next free one."""
    return np.int64(state.links[tile, w.LINK_NEXT])


@inlined()
def previous_of(state, tile):
    """Return the entity's tile before this one, or NONE."""
    return np.int64(state.links[tile, w.LINK_PREVIOUS])


@inlined()
def entity_of(state, tile):
    """Return the entity row that a tile belongs to."""
    return np.int64(state.links[tile, w.LINK_ROW])


@inlined()
def hang(program, state, window, tile, edge):
    """Put a tile into the bucket of that edge."""
    scalars = state.scalars
    chunks = state.chunks
    bucket = program.windows[window, w.W_RING] + edge % program.windows[window, w.W_RING_SIZE]
    chunk = np.int64(state.ring[bucket])
    if chunk == w.NONE or chunks[chunk, w.CHUNK_COUNT] == w.CHUNK_SIZE:
        following = chunk
        chunk = scalars[w.S_CHUNK_FREE]
        if chunk == w.NONE:
            chunk = scalars[w.S_CHUNK_HIGH]
            scalars[w.S_CHUNK_HIGH] += 1
        else:
            scalars[w.S_CHUNK_FREE] = chunks[chunk, w.CHUNK_NEXT]
        chunks[chunk, w.CHUNK_NEXT] = following
        chunks[chunk, w.CHUNK_COUNT] = 0
        state.ring[bucket] = chunk
    count = chunks[chunk, w.CHUNK_COUNT]
    chunks[chunk, w.CHUNK_TILES + count] = tile
    chunks[chunk, w.CHUNK_COUNT] = count + 1


@inlined()
def free_chunk(state, chunk):
    """Free a chunk, which is in no bucket any more."""
    state.chunks[chunk, w.CHUNK_NEXT] = state.scalars[w.S_CHUNK_FREE]
    state.scalars[w.S_CHUNK_FREE] = chunk


@inlined()
def fetch_entity(state, row):
    """Prefetch an entity's row."""
    for word in range(0, state.entities.shape[1], LINE_WORDS):
        prefetch(state.entities, row, word)
    prefetch(state.entities, row, state.entities.shape[1] - 1)


@inlined()
def fetch_tile(state, tile):
    """Prefetch a tile."""
    for word in range(0, state.tiles.shape[1], LINE_WORDS):
        prefetch(state.tiles, tile, word)
    prefetch(state.tiles, tile, state.tiles.shape[1] - 1)


@inlined()
def fetch_chunk(state, chunk):
    """Prefetch the tiles of a chunk, and the chunk after it."""
    for place in range(state.chunks[chunk, w.CHUNK_COUNT]):
        fetch_tile(state, np.int64(state.chunks[chunk, w.CHUNK_TILES + place]))
    after = np.int64(state.chunks[chunk, w.CHUNK_NEXT])
    if after != w.NONE:
        prefetch(state.chunks, after, np.int64(0))
