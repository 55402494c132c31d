"""The hash of an entity's key, in Python: what ``text_buffers.hash_bytes`` computes where nothing is compiled."""

_MASK = 2**64 - 1


def hash_key(key: bytes) -> int:
    """Return FNV-1a over the bytes, then finalised as in 64-bit MurmurHash3."""
    value = 0xCBF29CE484222325
    for byte in key:
        value = (value ^ byte) * 0x100000001B3 & _MASK
    value ^= value >> 33
    value = value * 0xFF51AFD7ED558CCD & _MASK
    value ^= value >> 33
    value = value * 0xC4CEB9FE1A85EC53 & _MASK
    return value ^ (value >> 33)


def shard_of_key(key: str, n_shards: int) -> int:
    """Return the number of one key's hash shard among ``n_shards``; ``keys.shard_of`` does it for a column."""
    return 0 if n_shards == 1 else hash_key(key.encode()) % n_shards
