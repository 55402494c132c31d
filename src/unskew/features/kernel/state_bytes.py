r"""State as bytes, layout 2 of ``sealed``: explicit, versioned, independent of the arrays' layout in memory.

Header: view, shard, fingerprint, clock, since, seq, late_by.

Arrays, with n entities, m tiles, k touched entities, v words of values, w words per cell, i items, t rows of texts:

- ``key_offsets`` i8 [n+1], ``key_bytes`` u1
- the previous closed row: ``values`` i8 [n, v] and ``present`` i8 [n], a bit for each feature
- ``changed_at`` i8 [n]
- ``tile_entity`` i4 [m], ``tile_window`` i4 [m], ``tile_number`` i8 [m], ``tile_words`` i8 [m, w]: each entity's tiles
  window by window from old to new; words of multisets and lists are 0
- ``touched`` i8 [k, 5]: entity, cause bits, event time, partition, offset of what the open instant has touched
- ``late`` i8 [windows, 8]
- ``items`` i8 [i, 4+4]: tile, accumulator, code, count, and the limbs of a sum (the last word is 0) or an event's place
  in the order of events; only items of tiles, lists in their order
- ``text_lengths`` i4 [t], -1 for a free row, and ``text_bytes`` u1: the texts that numbers stand for

Totals, lists and rings are rebuilt from these.
"""

from collections.abc import Iterable, Iterator
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from unskew.features.errors import LayoutError
from unskew.features.jit import compiled, inner
from unskew.features.kernel import words as w
from unskew.features.kernel.accumulators import merge_tile
from unskew.features.kernel.arithmetic import load_limbs
from unskew.features.kernel.bags import first_item, put, put_in_order, tile_owner
from unskew.features.kernel.directory import Directory
from unskew.features.kernel.engine import tile_of
from unskew.features.kernel.event_order import load_event
from unskew.features.kernel.grid import ordinal
from unskew.features.kernel.items import next_item
from unskew.features.kernel.packed import at, unpacked, write_packed
from unskew.features.kernel.program import Program
from unskew.features.kernel.sealed import sealed, unseal
from unskew.features.kernel.state import State
from unskew.features.kernel.tiles import next_of
from unskew.features.plan import ViewPlan
from unskew.features.text_buffers import Keys

LAYOUT = 2
MAGIC = b"unskew\x00S"
# Columns of stored items.
I_TILE, I_ACCUMULATOR, I_CODE, I_COUNT, I_WORDS = range(5)
I_N_WORDS = 4


class Tiles(NamedTuple):
    """Live tiles as columns, and their items."""

    entity: npt.NDArray[np.int32]
    window: npt.NDArray[np.int32]
    number: npt.NDArray[np.int64]
    words: npt.NDArray[np.int64]
    items: npt.NDArray[np.int64]


class StoredTiles(NamedTuple):
    """Such tiles as they are stored; ``words``: some rows at a time, because they are most of a state."""

    entity: npt.NDArray[np.int32]
    window: npt.NDArray[np.int32]
    number: npt.NDArray[np.int64]
    words: Iterable[npt.NDArray[np.int64]]
    items: npt.NDArray[np.int64]

    def pieces(self) -> Iterator[Tiles]:
        """Yield all tiles in their order; the numbers of tiles in ``items`` are those of the piece."""
        first = 0
        for words in self.words:
            last = first + len(words)
            begin, end = np.searchsorted(self.items[:, I_TILE], (first, last))
            items = self.items[begin:end].copy()
            items[:, I_TILE] -= first
            yield Tiles(self.entity[first:last], self.window[first:last], self.number[first:last], words, items)
            first = last


class Stored(NamedTuple):
    """The content that ``unpack`` found."""

    clock: int
    since_us: int | None
    seq: int
    late: npt.NDArray[np.int64]
    late_by: npt.NDArray[np.int64]
    keys: Keys
    values: npt.NDArray[np.int64]
    present: npt.NDArray[np.int64]
    changed_at: npt.NDArray[np.int64]
    tiles: StoredTiles
    touched: npt.NDArray[np.int64]
    text_lengths: npt.NDArray[np.int32]
    text_bytes: npt.NDArray[np.uint8]


@compiled()
def _collect(program, state, rows, entities, windows, numbers, words, items):
    place = 0
    item_place = 0
    for index in range(len(rows)):
        row = rows[index]
        for window in range(len(program.windows)):
            tile = state.entities[row, program.windows[window, w.W_OLDEST]]
            while tile != w.NONE:
                entities[place] = index
                windows[place] = window
                numbers[place] = state.tiles[tile, w.TILE_NUMBER]
                for word in range(words.shape[1]):
                    words[place, word] = state.tiles[tile, w.TILE_WORDS + word]
                for accumulator in range(program.windows[window, w.W_FIRST], program.windows[window, w.W_END]):
                    op = program.accumulators[accumulator, w.A_OP]
                    if op not in (w.BAG, w.LAST_N, w.FIRST_N):
                        continue
                    word = program.accumulators[accumulator, w.A_WORD]
                    words[place, word + w.FIRST_ITEM] = 0
                    words[place, word + w.N_ITEMS] = 0
                    item = first_item(state.tiles, tile, w.TILE_WORDS + word)
                    while item != w.NONE:
                        items[item_place, I_TILE] = place
                        items[item_place, I_ACCUMULATOR] = accumulator
                        items[item_place, I_CODE] = state.items[item, w.ITEM_CODE]
                        is_listed = op != w.BAG
                        items[item_place, I_COUNT] = 1 if is_listed else state.items[item, w.ITEM_COUNT]
                        first = w.ITEM_EVENT if is_listed else w.ITEM_LIMBS
                        items[item_place, I_WORDS:] = 0
                        for position in range(w.ITEM_WORDS - first):
                            items[item_place, I_WORDS + position] = state.items[item, first + position]
                        item_place += 1
                        item = next_item(state.item_links, item)
                place += 1
                tile = next_of(state, tile)
    return item_place


@inner()
def _restore_item(packed, tile, items, place):
    """Add a stored item to its tile."""
    program, _ = unpacked(packed)
    accumulator = items[place, I_ACCUMULATOR]
    op = program.accumulators[accumulator, w.A_OP]
    word = w.TILE_WORDS + program.accumulators[accumulator, w.A_WORD]
    owner = tile_owner(program, tile, accumulator)
    code = items[place, I_CODE]
    if op == w.BAG:
        low, mid, high = load_limbs(items, place, I_WORDS)
        put(
            packed, tile, word, owner, np.int64(0), code, items[place, I_COUNT],
            low, mid, high,
        )  # fmt: skip
    else:
        put_in_order(
            packed, tile, word, owner, op, program.accumulators[accumulator, w.A_SIZE], code,
            load_event(items, place, I_WORDS),
        )  # fmt: skip


@compiled()
def _hang(program, state, rows, entities, windows, numbers, words, items):
    write_packed(program, state)
    item = 0
    for place in range(len(entities)):
        row = np.int64(rows[entities[place]])
        window = np.int64(windows[place])
        now = ordinal(program, window, state.scalars[w.S_CLOCK])
        tile = tile_of(program, state, row, window, numbers[place], now)
        for word in range(words.shape[1]):
            state.tiles[tile, w.TILE_WORDS + word] = words[place, word]
        end = item
        while end < len(items) and items[end, I_TILE] == place:
            end += 1
        # A multiset takes a new item at its front. The last one comes first, so that they lie as they were stored.
        for back in range(end - 1, item - 1, -1):
            if program.accumulators[items[back, I_ACCUMULATOR], w.A_OP] == w.BAG:
                _restore_item(at(state), tile, items, back)
        for front in range(item, end):
            if program.accumulators[items[front, I_ACCUMULATOR], w.A_OP] != w.BAG:
                _restore_item(at(state), tile, items, front)
        item = end
        if program.windows[window, w.W_KIND] != w.CLOSED or numbers[place] < now:
            merge_tile(at(state), row, window, tile)


def pack(
    view: ViewPlan,
    shard: str,
    seq: int,
    since_us: int | None,
    program: Program,
    state: State,
    directory: Directory,
    texts: Directory,
) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a state, in pieces."""
    rows = directory.rows()
    keys = directory.gather(rows)
    n_tiles = int(state.scalars[w.S_TILES])
    tiles = Tiles(
        np.empty(n_tiles, np.int32),
        np.empty(n_tiles, np.int32),
        np.empty(n_tiles, np.int64),
        np.empty((n_tiles, program.n_words), np.int64),
        np.empty((int(state.scalars[w.S_ITEMS]), I_WORDS + I_N_WORDS), np.int64),
    )
    n_items = _collect(program, state, rows, *tiles)
    touched = state.touched[: int(state.scalars[w.S_TOUCHED])].copy()
    index_of = np.empty(directory.capacity, np.int64)
    index_of[rows] = np.arange(len(rows))
    touched[:, w.T_ROW] = index_of[touched[:, w.T_ROW]]
    text_lengths, text_bytes = texts.rows_as_they_lie()
    header = {
        "view": view.id,
        "shard": shard,
        "fingerprint": view.state_fingerprint,
        "clock": int(state.scalars[w.S_CLOCK]),
        "since": since_us,
        "seq": seq,
        "late_by": state.late_by.tolist(),
    }
    arrays = {
        "key_offsets": keys.offsets,
        "key_bytes": keys.data,
        "values": state.entities[rows, w.ENTITY_VALUES : w.ENTITY_VALUES + program.value_words],
        "present": state.entities[rows, w.ENTITY_PRESENT],
        "changed_at": state.entities[rows, w.ENTITY_CHANGED],
        "tile_entity": tiles.entity,
        "tile_window": tiles.window,
        "tile_number": tiles.number,
        "tile_words": tiles.words,
        "touched": touched,
        "late": state.late,
        "items": tiles.items[:n_items],
        "text_lengths": text_lengths,
        "text_bytes": text_bytes,
    }
    return sealed(MAGIC, LAYOUT, header, arrays)


def unpack(data: bytes | memoryview | BinaryIO, view: ViewPlan, shard: str) -> Stored:
    """Read a state's bytes back; those of its tiles are read again as ``restore`` takes them.

    Raises ``LayoutError`` if they are damaged, of another layout or of another definition.
    """
    where = f"state of {view.id} in shard {shard}"
    header, arrays, left = unseal(data, MAGIC, LAYOUT, where, leave=("tile_words",))
    if header["fingerprint"] != view.state_fingerprint or header["view"] != view.id or header["shard"] != shard:
        raise LayoutError(
            f"{where}: written for {header['view']} in shard {header['shard']} with another definition "
            f"(fingerprint {header['fingerprint'][:12]}, now {view.state_fingerprint[:12]}); give the changed view "
            "a new version, or start from an empty state directory"
        )
    return Stored(
        clock=header["clock"],
        since_us=header["since"],
        seq=header["seq"],
        late=arrays["late"],
        late_by=np.array(header["late_by"], np.int64),
        keys=Keys(arrays["key_offsets"], arrays["key_bytes"]),
        values=arrays["values"],
        present=arrays["present"],
        changed_at=arrays["changed_at"],
        tiles=StoredTiles(
            entity=arrays["tile_entity"],
            window=arrays["tile_window"],
            number=arrays["tile_number"],
            words=left["tile_words"],
            items=arrays["items"],
        ),
        touched=arrays["touched"],
        text_lengths=arrays["text_lengths"],
        text_bytes=arrays["text_bytes"],
    )


def restore(stored: Stored, program: Program, state: State, rows: npt.NDArray[np.int32]) -> None:
    """Fill an empty state, which has room and whose directory already assigned ``rows`` to the stored keys."""
    state.entities[rows, w.ENTITY_VALUES : w.ENTITY_VALUES + program.value_words] = stored.values
    state.entities[rows, w.ENTITY_PRESENT] = stored.present
    state.entities[rows, w.ENTITY_CHANGED] = stored.changed_at
    state.late[:] = stored.late
    state.late_by[:] = stored.late_by
    # The clock decides in which bucket a tile hangs: that of the next thing that happens to it.
    state.scalars[w.S_CLOCK] = stored.clock
    for tiles in stored.tiles.pieces():
        _hang(program, state, rows, *tiles)
    count = len(stored.touched)
    state.touched[:count] = stored.touched
    state.touched[:count, w.T_ROW] = rows[stored.touched[:, w.T_ROW]]
    state.entities[state.touched[:count, w.T_ROW], w.ENTITY_SLOT] = np.arange(count)
    # Which of their windows is not stored.
    state.entities[state.touched[:count, w.T_ROW], w.ENTITY_MARKS] |= w.ALL_WINDOWS
    state.scalars[w.S_TOUCHED] = count
