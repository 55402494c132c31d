"""The hashes by which Kafka's clients choose the partition of a key."""

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt


def murmur2(keys: Sequence[bytes]) -> npt.NDArray[np.int64]:
    """Return the hash of Java's Kafka clients for each key, without its sign (``Utils.murmur2``, Apache Kafka)."""
    found = np.zeros(len(keys), np.int64)
    lengths = np.array([len(key) for key in keys])
    for length in np.unique(lengths).tolist():
        at = np.flatnonzero(lengths == length)
        octets = np.frombuffer(b"".join(keys[place] for place in at.tolist()), np.uint8).reshape(len(at), length)
        found[at] = _murmur2(octets) & 0x7FFFFFFF
    return found


def _murmur2(octets: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    n_keys, length = octets.shape
    multiplier = np.uint32(0x5BD1E995)
    hashes = np.full(n_keys, 0x9747B28C ^ length, np.uint32)
    whole = length // 4
    words = np.ascontiguousarray(octets[:, : whole * 4]).view("<u4")
    for column in range(whole):
        word = words[:, column] * multiplier
        word ^= word >> np.uint32(24)
        hashes = hashes * multiplier ^ word * multiplier
    rest = octets[:, whole * 4 :].astype(np.uint32)
    for column in reversed(range(rest.shape[1])):
        hashes ^= rest[:, column] << np.uint32(8 * column)
    if rest.shape[1]:
        hashes *= multiplier
    hashes ^= hashes >> np.uint32(13)
    hashes *= multiplier
    return hashes ^ hashes >> np.uint32(15)


def crc32(keys: Sequence[bytes]) -> npt.NDArray[np.int64]:
    """Return the hash of librdkafka's clients for each key, unless they are configured otherwise."""
    return np.array([zlib.crc32(key) for key in keys], np.int64)


HASHES: Mapping[str, Callable[[Sequence[bytes]], npt.NDArray[np.int64]]] = {"murmur2": murmur2, "crc32": crc32}
"""A key's partition is the remainder of its hash by the number of partitions."""
