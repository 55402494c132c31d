"""Slots of a Redis Cluster: which of 16384 each key of a column falls to.

The slot is CRC-16/XMODEM, modulo 16384, of what stands between the first brace that opens and the next one that closes, or
of the whole key where nothing does: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
"""

from binascii import crc_hqx
from functools import cache
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from numba import uint64

from unskew.features.jit import compiled
from unskew.features.text_buffers import Keys

N_SLOTS = 16384

Array = Any
"""A numpy array; numba infers the element types."""

_CLOSING = ord("}")
_TABLE = np.array([crc_hqx(bytes([value]), 0) for value in range(256)], np.uint16)


def slot_of(key: str) -> int:
    """The slot of one key."""
    data = key.encode()
    tag = data.partition(b"{")[2].partition(b"}")
    return crc_hqx(tag[0] if tag[0] and tag[1] else data, 0) % N_SLOTS


def slots_of(middles: pl.Series, before: str, after: str) -> npt.NDArray[np.int64]:
    """Of each key ``before`` + middle + ``after`` the slot, [n]; ``before`` has an opening brace and ``after`` begins with a closing one."""
    found = np.empty(len(middles), np.int64)
    head, tail = before.encode(), after.encode()
    tag = head.partition(b"{")[2]
    if b"}" in tag and not tag.startswith(b"}"):
        # The tag stands before what differs.
        found[:] = slot_of(before)
        return found
    keys = Keys.of(middles)
    n_tag = -1 if tag.startswith(b"}") else len(tag)
    rest = np.frombuffer(tail, np.uint8)
    _write_slots(found, _TABLE, keys.data, keys.offsets, crc_hqx(tag, 0), n_tag, crc_hqx(head, 0), rest)
    return found


@cache
def tag_of(slot: int) -> str:
    """The first decimal number that falls to the slot, as text: within braces it takes a key there."""
    return next(text for number in count() if crc_hqx((text := str(number)).encode(), 0) % N_SLOTS == slot)


@compiled()
def _write_slots(
    out: Array,
    table: Array,
    data: Array,
    offsets: Array,
    of_tag: int,
    n_tag: int,
    of_head: int,
    tail: Array,
) -> None:
    """``of_tag``, ``of_head``: CRC of what of the tag, and of the key, stands before the middle. ``n_tag``: its length, -1 for no tag."""
    for row in range(len(out)):
        start = offsets[row]
        stop = offsets[row + 1]
        crc = uint64(of_tag)
        place = start
        while place < stop and data[uint64(place)] != _CLOSING:
            crc = _next(table, crc, data[uint64(place)])
            place += 1
        if n_tag < 0 or n_tag + place - start == 0:
            crc = uint64(of_head)
            for index in range(start, stop):
                crc = _next(table, crc, data[uint64(index)])
            for index in range(len(tail)):
                crc = _next(table, crc, tail[uint64(index)])
        out[row] = crc & uint64(16383)


@compiled()
def _next(table: Array, crc: Any, value: Any) -> Any:
    return ((crc << uint64(8)) & uint64(0xFFFF)) ^ uint64(table[(crc >> uint64(8)) ^ uint64(value)])
