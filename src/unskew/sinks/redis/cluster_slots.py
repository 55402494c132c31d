"""Slots of a Redis Cluster: compute which of the 16384 slots each key of a column belongs to.

The slot is the CRC-16/XMODEM, modulo 16384, of the key's hash tag, which is the text between the first opening brace
and the next closing brace; if there is no such text, it is that of the whole key:
https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
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
    """Return the slot of one key."""
    return key_slot(key.encode())


def slots_of(middles: pl.Series, before: str, after: str) -> npt.NDArray[np.int64]:
    """Return the slot of each key ``before`` + middle + ``after``, [n].

    ``before`` must contain an opening brace, and ``after`` must begin with a closing brace.
    """
    if before.index("{") == len(before) - 1 and not middles.str.contains(r"^$|\}").any():
        # Each middle is exactly its key's hash tag. redis-py would determine that key by key, at six times the cost.
        slots = [crc_hqx(tag, 0) for tag in middles.cast(pl.Binary).to_list()]
    else:
        slots = [key_slot(key) for key in (before + middles + after).cast(pl.Binary).to_list()]
    return np.array(slots, np.int64) % N_SLOTS


@cache
def tag_of(slot: int) -> str:
    """Return the first decimal number, as text, whose slot this is: a key with it in braces falls to the slot."""
    return next(text for number in count() if key_slot((text := str(number)).encode()) == slot)
