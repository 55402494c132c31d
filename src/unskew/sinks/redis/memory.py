"""What rows of values cost in the memory of Redis, by the sizes of its compact lists, before anything is written.

A hash of a few short fields is one allocation, a listpack: 7 bytes, and for each name and value its bytes and 2 or more
of their own; whole numbers take 1 to 9 bytes. Besides, a key takes its name, the head of an object, its place in the
table of keys, and what allocations are rounded by.
"""

from collections.abc import Mapping
from typing import Any

import polars as pl

from unskew.features.keys import encode_keys
from unskew.features.view import View
from unskew.sinks.redis.compactness import LONGEST_COMPACT_BYTES
from unskew.sinks.redis.keyspace import value_key
from unskew.sinks.redis.texts import text_of

_LIST_BYTES = 7
_KEY_BYTES = 48
"""Of a key besides its name, as measured with Valkey 9.1 and the allocator of libc; tests compare."""
_MOST_COMPACT_FIELDS = 512
_AS_TABLE = 2
"""How much more a hash takes that is too large for a listpack, about."""
_INSTANT_BYTES = 10
_OWN_BYTES = sum(len(name) + 2 + _INSTANT_BYTES for name in ("_at", "_until"))
_WHOLE = r"^(0|-?[1-9][0-9]{0,18})$"
# The bounds of what each number of bytes holds.
_SIZES: Mapping[int, tuple[int, int]] = {
    2: (0, 2**7 - 1),
    3: (-(2**12), 2**12 - 1),
    4: (-(2**15), 2**15 - 1),
    5: (-(2**23), 2**23 - 1),
    6: (-(2**31), 2**31 - 1),
}


def bytes_of(values: pl.DataFrame, view: View, prefix: str = "unskew") -> pl.Series:
    """Return about how many bytes the hash of each row takes, with its key: Int64.

    ``values``: key columns and a column for each feature; a null has no field.
    """
    sizes, lengths = [], []
    for feature in view.features:
        text = text_of(pl.col(feature.name), feature.dtype)
        name = len(feature.name.encode())
        sizes.append(pl.when(text.is_null()).then(0).otherwise(_item_bytes(text) + name + 2))
        lengths.append(text.str.len_bytes().fill_null(0))
    n_bytes = pl.sum_horizontal(pl.lit(_LIST_BYTES + _OWN_BYTES, pl.Int64), *(size.cast(pl.Int64) for size in sizes))
    is_long = pl.max_horizontal(*lengths) > LONGEST_COMPACT_BYTES
    is_table = is_long | pl.lit(len(view.features) + 2 > _MOST_COMPACT_FIELDS)
    keys = encode_keys(values, view.entity).str.len_bytes().cast(pl.Int64)
    hashes = values.select(pl.when(is_table).then(n_bytes * _AS_TABLE).otherwise(n_bytes).alias("bytes"))["bytes"]
    return hashes + keys + (len(value_key(prefix, view.id, "")) + _KEY_BYTES)


def _item_bytes(text: pl.Expr) -> pl.Expr:
    """Return the bytes of an item of a listpack: its head, what it holds, and how long it is, for readers backwards."""
    length = text.str.len_bytes().cast(pl.Int64)
    number = pl.when(text.str.contains(_WHOLE)).then(text).cast(pl.Int64, strict=False)
    as_text = length + pl.when(length < 64).then(2).when(length < 4096).then(4).otherwise(8)
    size: Any = pl.when(number.is_null()).then(as_text)
    for n_bytes, (least, most) in _SIZES.items():
        size = size.when(number.is_between(least, most)).then(n_bytes)
    found: pl.Expr = size.otherwise(_INSTANT_BYTES)
    return found
