"""The arrays on which the kernel works: a shard's state, a batch of events, space for rows."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class State(NamedTuple):
    """All arrays of a shard's view.

    What an event needs of an entity, or of a tile, lies together in memory, as one row of int64 words:

    - ``entities`` [rows, ...]: ``ENTITY_LIVE`` number of tiles, ``ENTITY_SLOT`` place in ``touched`` or -1,
      ``ENTITY_MARKS``, ``ENTITY_CHANGED`` instant of the last change; the previous closed row: ``ENTITY_PRESENT`` a bit
      for each feature, and from ``ENTITY_VALUES`` on its words; then for each window (``W_OLDEST``, ``W_NEWEST``) the
      oldest and the newest tile, for each window (``W_TOTAL``) its running total, and what readings leave for the next:
      ``F_HINTS`` and ``F_DECAYED`` of a feature.
    - ``tiles`` [tiles, ...]: columns ``TILE_...``; ``links``: their memory as columns ``LINK_...``. ``ring``: the first
      chunk of each bucket. ``chunks`` [chunks, 16]: columns ``CHUNK_...``.
    - ``items`` [items, 8]: columns ``ITEM_...``, of the multisets and lists of all cells; ``item_links``: their memory
      as numbers of 32 bits. ``slots``: the first item of each slot of the hash table that finds items of multisets.
    - ``text_records``, ``text_pool``: from the directory of texts, whose rows stand for them in numbers.
    - ``closings`` [sessions, ...]: columns ``C_...``, sessions that closed since they were last taken out: entity row,
      instant, partition and offset of the latest event, a bit for each value that is present, the values. It has no
      rows if closed sessions are not recorded.
    - ``chosen``, ``ranks`` int64, ``wide`` uint64 [3, 12]: space for reading; ``ranks`` is all 0 between two readings.
    - ``touched`` [rows, 5]; ``dirty``, ``dead`` [rows]; ``window_tiles``, ``window_next``, ``late_by`` [windows].
    - ``packed``: program and state as ``packed`` writes them.
    - ``late`` [windows, 8]: late events by their lateness, in the classes of ``LATE_BOUNDS_US``.
    """

    scalars: Ints
    entities: Ints
    closings: Ints
    touched: Ints
    dirty: npt.NDArray[np.int32]
    dead: npt.NDArray[np.int32]
    tiles: Ints
    links: npt.NDArray[np.int32]
    ring: npt.NDArray[np.int32]
    chunks: npt.NDArray[np.int32]
    items: Ints
    item_links: npt.NDArray[np.int32]
    slots: npt.NDArray[np.int32]
    text_records: Ints
    text_pool: npt.NDArray[np.uint8]
    chosen: Ints
    ranks: Ints
    wide: npt.NDArray[np.uint64]
    window_tiles: Ints
    window_next: Ints
    late: Ints
    late_by: Ints
    packed: Ints


class Batch(NamedTuple):
    """Events in the order in which they count; all instants int64 microseconds.

    ``rows`` int32 [n]: entity rows. ``filters`` bool [f, n]. ``numbers`` int64 [c, n]: one row per column of the
    program, which holds integers, float64 bits, or rows of texts. ``known`` bool [c, n]: false if the value is null.
    """

    rows: npt.NDArray[np.int32]
    effective: Ints
    arrival: Ints
    event_time: Ints
    partition: Ints
    offset: Ints
    filters: npt.NDArray[np.bool_]
    numbers: Ints
    known: npt.NDArray[np.bool_]


class Rows(NamedTuple):
    """Space for rows; ``n`` [1]: their number, ``entity`` [rows]: their entities' rows.

    ``words`` [N_ROW_WORDS, rows]: the words ``ROW_...`` of each. ``firsts`` [features, rows]: the first word of each
    feature's value. ``others`` [rows, words]: the other words, of lists and maps, side by side because those of a row
    are read one after the other.
    """

    n: Ints
    entity: npt.NDArray[np.int32]
    words: Ints
    firsts: Ints
    others: Ints
