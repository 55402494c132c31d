"""Numbers and texts in Arrow's layout, the hash of texts, and what bytes are texts.

The hash finds keys in tables and chooses their shard.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
from numba import uint64

from unskew.features.jit import compiled


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the same array for reading only.

    numba compiles a function once for arrays that can be written and once for those that cannot. Polars and Arrow
    return either, by where the values happen to lie.
    """
    if not array.flags.writeable:
        return array
    shown = array.view()
    shown.flags.writeable = False
    return shown


def arrow(numbers: npt.NDArray[Any]) -> pa.Array:
    """Return numbers or flags as an Arrow array.

    Polars makes it: ``pyarrow.array`` imports pandas, where there is one, which takes most of a second.
    """
    return pl.Series(numbers).to_arrow()


def not_null(array: pa.Array) -> npt.NDArray[np.bool_]:
    """Return where an array has values.

    Of a Polars column, ``is_not_null`` runs a query, which costs more than the few rows of most batches.
    """
    held = array.buffers()[0]
    if held is None:
        return np.ones(len(array), np.bool_)
    bits = np.unpackbits(np.frombuffer(held, np.uint8), bitorder="little")
    return bits[array.offset : array.offset + len(array)].view(np.bool_)


def validity(present: npt.NDArray[np.bool_]) -> pa.Buffer | None:
    """Return what says in Arrow's layout where there are values; None if they are everywhere."""
    return None if present.all() else pa.py_buffer(np.packbits(present, bitorder="little"))


class Keys(NamedTuple):
    """A batch of keys in Arrow's layout: ``offsets`` int64 [n+1] into ``data`` uint8."""

    offsets: npt.NDArray[np.int64]
    data: npt.NDArray[np.uint8]

    @classmethod
    def of(cls, keys: pl.Series) -> "Keys":
        """Return the buffers of a String series without nulls."""
        return cls.of_arrow(keys.to_arrow())

    @classmethod
    def of_arrow(cls, array: pa.Array) -> "Keys":
        """Return the buffers of texts; where one is null, there may be any bytes."""
        if not pa.types.is_large_string(array.type):
            array = array.cast(pa.large_string())
        _, offsets, data = array.buffers()
        starts = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
        return cls(starts, np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8))

    @property
    def n_bytes(self) -> int:
        """The length of all keys together."""
        return int(self.offsets[-1] - self.offsets[0])

    def to_series(self, name: str) -> pl.Series:
        """Return the same keys as a String series."""
        array = pa.LargeStringArray.from_buffers(
            len(self.offsets) - 1, pa.py_buffer(self.offsets), pa.py_buffer(self.data)
        )
        return pl.Series(name, array)

    def texts(self) -> list[bytes]:
        """Return each key in UTF-8."""
        data, ends = self.data.tobytes(), self.offsets.tolist()
        return [data[start:stop] for start, stop in pairwise(ends)]

    def chosen(self, chosen: npt.NDArray[np.bool_]) -> "Keys":
        """Return the keys for which ``chosen`` is true, in their order."""
        lengths = np.diff(self.offsets)
        data = self.data[self.offsets[0] : self.offsets[-1]][np.repeat(chosen, lengths)]
        return Keys(np.concatenate(([0], np.cumsum(lengths[chosen]))), data)

    def gather(self, places: npt.NDArray[np.int32]) -> "Keys":
        """Return the keys at these places, in their order; the empty key for a negative one."""
        offsets = np.empty(len(places) + 1, np.int64)
        _write_ends(read_only(self.offsets), read_only(places), offsets)
        data = np.empty(int(offsets[-1]), np.uint8)
        _write_keys(read_only(self.offsets), read_only(self.data), read_only(places), offsets, data)
        return Keys(offsets, data)

    def part(self, begin: int, end: int) -> "Keys":
        """Return the keys from ``begin`` up to ``end``, in the same memory."""
        return Keys(self.offsets[begin : end + 1], self.data)

    @classmethod
    def joined(cls, parts: Sequence["Keys"]) -> "Keys":
        """Return the keys of all parts, one part after the other."""
        lengths = np.concatenate([part.offsets[1:] - part.offsets[:-1] for part in parts])
        data = np.concatenate([part.data[part.offsets[0] : part.offsets[-1]] for part in parts])
        return cls(np.concatenate(([0], np.cumsum(lengths))), data)

    def hashes(self) -> npt.NDArray[np.uint64]:
        """Return the hash of every key, as ``hash_bytes``."""
        found = np.empty(len(self.offsets) - 1, np.uint64)
        _hash_keys(read_only(self.offsets), read_only(self.data), found)
        return found

    def order(self, groups: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.int64]:
        """Return the places of keys in the order of (group, UTF-8 bytes); no key occurs twice in one group.

        ``groups``: the group of each key; None for one group. A sort of numbers takes a tenth of the time that one of
        texts takes; few different keys are equal in so many bytes.
        """
        heads = np.empty(len(self.offsets) - 1, np.uint64)
        _write_heads(read_only(self.offsets), read_only(self.data), heads)
        order = np.argsort(heads) if groups is None else np.lexsort((heads, groups))
        same = heads[order[1:]] == heads[order[:-1]]
        if groups is not None:
            same &= groups[order[1:]] == groups[order[:-1]]
        if same.any():
            tied = np.zeros(len(order), np.bool_)
            tied[1:] = same
            tied[:-1] |= same
            places = order[tied]
            texts = self.to_series("text").gather(places)
            by = pl.DataFrame([pl.Series("group", np.zeros(len(places)) if groups is None else groups[places]), texts])
            order[tied] = places[by.select(pl.arg_sort_by("group", "text")).to_series().to_numpy()]
        return order


@compiled()
def _write_ends(offsets: Any, places: Any, ends: Any) -> None:
    ends[0] = 0
    for index in range(len(places)):
        place = places[index]
        ends[index + 1] = ends[index] + (offsets[place + 1] - offsets[place] if place >= 0 else 0)


@compiled()
def _write_keys(offsets: Any, data: Any, places: Any, ends: Any, out: Any) -> None:
    for index in range(len(places)):
        if places[index] >= 0:
            start = offsets[places[index]]
            for at in range(ends[index + 1] - ends[index]):
                out[uint64(ends[index] + at)] = data[uint64(start + at)]


@compiled()
def _write_heads(offsets: Any, data: Any, out: Any) -> None:
    """Write the eight bytes of each key after those that all begin with, as numbers in the order of the bytes."""
    shared = offsets[1] - offsets[0] if len(out) > 0 else 0
    for index in range(1, len(out)):
        shared = min(shared, offsets[index + 1] - offsets[index])
        place = 0
        while place < shared and data[offsets[index] + place] == data[offsets[0] + place]:
            place += 1
        shared = place
    for index in range(len(out)):
        head = uint64(0)
        for place in range(offsets[index] + shared, offsets[index] + shared + 8):
            head = head << uint64(8)
            if place < offsets[index + 1]:
                head |= uint64(data[place])
        out[index] = head


@compiled()
def hash_bytes(data: Any, start: int, stop: int) -> Any:
    """Return FNV-1a over the bytes, then finalised as in 64-bit MurmurHash3, so that every bit counts."""
    value = uint64(0xCBF29CE484222325)
    for index in range(start, stop):
        value = (value ^ uint64(data[index])) * uint64(0x100000001B3)
    value ^= value >> uint64(33)
    value *= uint64(0xFF51AFD7ED558CCD)
    value ^= value >> uint64(33)
    value *= uint64(0xC4CEB9FE1A85EC53)
    return value ^ (value >> uint64(33))


@compiled()
def _hash_keys(offsets: Any, data: Any, out: Any) -> None:
    for index in range(len(offsets) - 1):
        out[index] = hash_bytes(data, offsets[index], offsets[index + 1])


@compiled()
def is_utf8(data: npt.NDArray[np.uint8], at: int, end: int) -> bool:
    """Return true if the bytes are UTF-8 by Unicode table 3-7: no overlong forms, no surrogates, at most U+10FFFF."""
    while at < end:
        lead = data[at]
        at += 1
        if lead < 0x80:
            continue
        low, high = 0x80, 0xBF
        if 0xC2 <= lead <= 0xDF:
            n_more = 1
        elif 0xE0 <= lead <= 0xEF:
            n_more = 2
            if lead == 0xE0:
                low = 0xA0
            elif lead == 0xED:
                high = 0x9F
        elif 0xF0 <= lead <= 0xF4:
            n_more = 3
            if lead == 0xF0:
                low = 0x90
            elif lead == 0xF4:
                high = 0x8F
        else:
            return False
        if at + n_more > end or data[at] < low or data[at] > high:
            return False
        for more in range(1, n_more):
            if data[at + more] < 0x80 or data[at + more] > 0xBF:
                return False
        at += n_more
    return True
