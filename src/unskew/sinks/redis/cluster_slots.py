"""Slots of a Redis Cluster: which of 16384 each key of a column falls to.

The slot is CRC-16/XMODEM, modulo 16384, of what stands between the first brace that opens and the next one that closes, or
of the whole key where nothing does: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
"""

from binascii import crc_hqx
from functools import cache
from itertools import count

import numpy as np
import numpy.typing as npt
import polars as pl
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as N_SLOTS
from redis.crc import key_slot


def slot_of(key: str) -> int:
    """The slot of one key."""
    return key_slot(key.encode())


def slots_of(middles: pl.Series, before: str, after: str) -> npt.NDArray[np.int64]:
    """Of each key ``before`` + middle + ``after`` the slot, [n]; ``before`` has an opening brace and ``after`` begins with a closing one."""
    if before.index("{") == len(before) - 1 and not middles.str.contains(r"^$|\}").any():
        # Each middle is the whole of its key's tag: what redis-py finds out key by key, at six times the cost.
        slots = [crc_hqx(tag, 0) for tag in middles.cast(pl.Binary).to_list()]
    else:
        slots = [key_slot(key) for key in (before + middles + after).cast(pl.Binary).to_list()]
    return np.array(slots, np.int64) % N_SLOTS


@cache
def tag_of(slot: int) -> str:
    """The first decimal number that falls to the slot, as text: within braces it takes a key there."""
    return next(text for number in count() if key_slot((text := str(number)).encode()) == slot)
