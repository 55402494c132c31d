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
        sizes.append(pl.when(text.is_null()).then(0).otherwise(item_bytes(text) + name + 2))
        lengths.append(text.str.len_bytes().fill_null(0))
    n_bytes = pl.sum_horizontal(pl.lit(_LIST_BYTES + _OWN_BYTES, pl.Int64), *(size.cast(pl.Int64) for size in sizes))
    is_long = pl.max_horizontal(*lengths) > LONGEST_COMPACT_BYTES
    is_table = is_long | pl.lit(len(view.features) + 2 > _MOST_COMPACT_FIELDS)
    keys = encode_keys(values, view.entity).str.len_bytes().cast(pl.Int64)
    hashes = values.select(pl.when(is_table).then(n_bytes * _AS_TABLE).otherwise(n_bytes).alias("bytes"))["bytes"]
    return hashes + keys + (len(value_key(prefix, view.id, "")) + _KEY_BYTES)


def item_bytes(text: pl.Expr) -> pl.Expr:
    """Return the bytes of an item of a listpack, Int64: its head, what it holds, and how long it is, to read backwards.

    As Redis encodes it (listpack.c): a text that is the shortest one of a whole number of 64 bits is kept as that.
    """
    length = text.str.len_bytes().cast(pl.Int64)
    number = pl.when(text.str.contains(_WHOLE)).then(text).cast(pl.Int64, strict=False)
    head = pl.when(length < 64).then(1).when(length < 4096).then(2).otherwise(5)
    as_text = head + length
    # How long the item is takes a byte for every seven bits.
    for bits in (7, 14, 21, 28):
        as_text += (head + length >= 1 << bits).cast(pl.Int64)
    size: Any = pl.when(number.is_null()).then(as_text + 1)
    for n_bytes, (least, most) in _SIZES.items():
        size = size.when(number.is_between(least, most)).then(n_bytes)
    found: pl.Expr = size.otherwise(_INSTANT_BYTES).cast(pl.Int64)
    return found


class FieldSizes:
    """Adds up what each feature of a view takes in its entities' hashes, the field's name and the value."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._n_entities = 0
        self._totals = dict.fromkeys((feature.name for feature in view.features), 0)

    def add(self, rows: pl.DataFrame) -> None:
        """Add rows, one of each entity, with features as the log has them.

        An entity whose windows are all empty has no hash; a null has no field.
        """
        features = self._view.features
        filled = pl.any_horizontal(
            pl.lit(value=False),
            *(pl.col(one.name).ne_missing(pl.lit(one.empty, one.dtype.polars)) for one in features),
        )
        held = rows.filter(filled)
        self._n_entities += held.height
        for one in features:
            text = text_of(pl.col(one.name), one.dtype)
            name = len(one.name.encode()) + 2
            sizes = held.select(pl.when(text.is_not_null()).then(item_bytes(text) + name).alias("bytes"))
            self._totals[one.name] += int(sizes["bytes"].sum())

    def means(self) -> Mapping[str, float]:
        """Return, by feature, the mean bytes of an entity; nothing if no entity has a hash."""
        if not self._n_entities:
            return {}
        return {name: total / self._n_entities for name, total in self._totals.items()}
