r"""State as bytes, layout 1: explicit, versioned, checksummed, independent of how the arrays happen to lie.

All numbers are little-endian::

    8 bytes   magic  b"unskew\x00S"
    u32       layout number
    u32       length of the header
    header    JSON, UTF-8: view, shard, fingerprint, clock, since, seq, late, late_by, and
              ``arrays``: [name, dtype, shape] in the order in which they follow
    arrays    back to back, C order
    u32       CRC-32 of everything before it

Arrays, with n entities, m tiles, k touched entities, f features, w words per cell:
``key_offsets`` i8 [n+1], ``key_bytes`` u1; ``values`` i8 [n, f] and ``present`` i8 [n], a bit for each feature:
the previous closed row;
``changed_at`` i8 [n]; ``tile_entity`` i4 [m], ``tile_window`` i4 [m], ``tile_number`` i8 [m], ``tile_words`` i8 [m, w],
each entity's window by window from old to new; ``touched`` i8 [k, 5]: entity, cause bits, event time, partition,
offset of what the open instant has touched. Totals, lists and rings are made again from these.
"""

import json
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from unskew.features.errors import LayoutError
from unskew.features.kernel.compiled import compiled
from unskew.features.kernel.directory import Directory, Keys
from unskew.features.kernel.engine import (
    NONE,
    S_CLOCK,
    S_TILES,
    S_TOUCHED,
    T_ROW,
    TILE_NEXT,
    TILE_NUMBER,
    TILE_WORDS,
    State,
    merge_tile,
    tile_of,
)
from unskew.features.kernel.program import ENTITY_CHANGED, ENTITY_PRESENT, ENTITY_SLOT, ENTITY_VALUES, W_ENDS, Program
from unskew.features.plan import ViewPlan

LAYOUT = 1
MAGIC = b"unskew\x00S"
_PREFIX = struct.Struct("<8sII")
_CHECKSUM = struct.Struct("<I")


class Tiles(NamedTuple):
    """Live tiles as columns."""

    entity: npt.NDArray[np.int32]
    window: npt.NDArray[np.int32]
    number: npt.NDArray[np.int64]
    words: npt.NDArray[np.int64]


class Stored(NamedTuple):
    """What ``unpack`` found."""

    clock: int
    since_us: int | None
    seq: int
    late: npt.NDArray[np.int64]
    late_by: npt.NDArray[np.int64]
    keys: Keys
    values: npt.NDArray[np.int64]
    present: npt.NDArray[np.int64]
    changed_at: npt.NDArray[np.int64]
    tiles: Tiles
    touched: npt.NDArray[np.int64]


@compiled()
def _collect(program, state, rows, entity, window, number, words):
    place = 0
    for index in range(len(rows)):
        row = rows[index]
        for w in range(len(program.windows)):
            tile = state.entities[row, program.windows[w, W_ENDS]]
            while tile != NONE:
                entity[place] = index
                window[place] = w
                number[place] = state.tiles[tile, TILE_NUMBER]
                for word in range(words.shape[1]):
                    words[place, word] = state.tiles[tile, TILE_WORDS + word]
                place += 1
                tile = state.tiles[tile, TILE_NEXT]


@compiled()
def _hang(program, state, rows, entity, window, number, words):
    for place in range(len(entity)):
        row = rows[entity[place]]
        tile = tile_of(program, state, row, window[place], number[place])
        for word in range(words.shape[1]):
            state.tiles[tile, TILE_WORDS + word] = words[place, word]
        merge_tile(program, state.entities, row, window[place], state.tiles, tile)


def pack(
    view: ViewPlan, shard: str, seq: int, since_us: int | None, program: Program, state: State, directory: Directory
) -> bytes:
    """The bytes of a state."""
    rows = directory.rows()
    keys = directory.gather(rows)
    n_tiles = int(state.scalars[S_TILES])
    tiles = Tiles(
        np.empty(n_tiles, np.int32),
        np.empty(n_tiles, np.int32),
        np.empty(n_tiles, np.int64),
        np.empty((n_tiles, program.n_words), np.int64),
    )
    _collect(program, state, rows, *tiles)
    touched = state.touched[: int(state.scalars[S_TOUCHED])].copy()
    index_of = np.empty(directory.capacity, np.int64)
    index_of[rows] = np.arange(len(rows))
    touched[:, T_ROW] = index_of[touched[:, T_ROW]]
    arrays: list[tuple[str, npt.NDArray[Any]]] = [
        ("key_offsets", keys.offsets),
        ("key_bytes", keys.data),
        ("values", state.entities[rows, ENTITY_VALUES : ENTITY_VALUES + len(program.features)]),
        ("present", state.entities[rows, ENTITY_PRESENT]),
        ("changed_at", state.entities[rows, ENTITY_CHANGED]),
        ("tile_entity", tiles.entity),
        ("tile_window", tiles.window),
        ("tile_number", tiles.number),
        ("tile_words", tiles.words),
        ("touched", touched),
    ]
    header = {
        "view": view.id,
        "shard": shard,
        "fingerprint": view.state_fingerprint,
        "clock": int(state.scalars[S_CLOCK]),
        "since": since_us,
        "seq": seq,
        "late": state.late.tolist(),
        "late_by": state.late_by.tolist(),
        "arrays": [[name, array.dtype.str, list(array.shape)] for name, array in arrays],
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    parts = [_PREFIX.pack(MAGIC, LAYOUT, len(text)), text]
    parts += [np.ascontiguousarray(array).tobytes() for _, array in arrays]
    body = b"".join(parts)
    return body + _CHECKSUM.pack(zlib.crc32(body))


def unpack(data: bytes, view: ViewPlan, shard: str) -> Stored:
    """Read a state's bytes back; ``LayoutError`` where they are damaged, of another layout or another definition."""
    where = f"state of {view.id} in shard {shard}"
    if len(data) < _PREFIX.size + _CHECKSUM.size or data[: len(MAGIC)] != MAGIC:
        raise LayoutError(f"{where}: not a state of unskew; start from an empty state directory")
    _, number, length = _PREFIX.unpack_from(data)
    if number != LAYOUT:
        raise LayoutError(
            f"{where}: layout {number}, this version reads {LAYOUT}; run the version that wrote it, "
            "or start from an empty state directory"
        )
    body = memoryview(data)[: -_CHECKSUM.size]
    if zlib.crc32(body) != _CHECKSUM.unpack_from(data, len(body))[0]:
        raise LayoutError(f"{where}: checksum does not match, the bytes are damaged; restore the state from a backup")
    header = json.loads(bytes(body[_PREFIX.size : _PREFIX.size + length]))
    if header["fingerprint"] != view.state_fingerprint or header["view"] != view.id or header["shard"] != shard:
        raise LayoutError(
            f"{where}: written for {header['view']} in shard {header['shard']} with another definition "
            f"(fingerprint {header['fingerprint'][:12]}, now {view.state_fingerprint[:12]}); give the changed view "
            "a new version, or start from an empty state directory"
        )
    arrays: dict[str, npt.NDArray[Any]] = {}
    place = _PREFIX.size + length
    for name, dtype, shape in header["arrays"]:
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(body, dtype, count, place).reshape(shape)
        place += count * np.dtype(dtype).itemsize
    return Stored(
        clock=header["clock"],
        since_us=header["since"],
        seq=header["seq"],
        late=np.array(header["late"], np.int64),
        late_by=np.array(header["late_by"], np.int64),
        keys=Keys(np.array(arrays["key_offsets"]), np.array(arrays["key_bytes"])),
        values=np.array(arrays["values"]),
        present=np.array(arrays["present"]),
        changed_at=np.array(arrays["changed_at"]),
        tiles=Tiles(*(np.array(arrays[f"tile_{name}"]) for name in ("entity", "window", "number", "words"))),
        touched=np.array(arrays["touched"]),
    )


def restore(stored: Stored, program: Program, state: State, rows: npt.NDArray[np.int32]) -> None:
    """Fill an empty state, whose directory already gave ``rows`` to the stored keys and which has room."""
    state.entities[rows, ENTITY_VALUES : ENTITY_VALUES + len(program.features)] = stored.values
    state.entities[rows, ENTITY_PRESENT] = stored.present
    state.entities[rows, ENTITY_CHANGED] = stored.changed_at
    state.late[:] = stored.late
    state.late_by[:] = stored.late_by
    _hang(program, state, rows, *stored.tiles)
    count = len(stored.touched)
    state.touched[:count] = stored.touched
    state.touched[:count, T_ROW] = rows[stored.touched[:, T_ROW]]
    state.entities[state.touched[:count, T_ROW], ENTITY_SLOT] = np.arange(count)
    state.scalars[S_TOUCHED] = count
    state.scalars[S_CLOCK] = stored.clock
