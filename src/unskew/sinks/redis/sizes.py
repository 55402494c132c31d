"""What features and rows take in Redis, by the compact list of an entity's hash.

Counted as a listpack encodes fields (Redis: listpack.c): a head, the bytes, and the length again for reading backwards.
An allocator rounds the whole list up, by at most a quarter; and a hash that is not compact takes about twice as much.
Of one feature (``Sizes``), neither is in it; of a whole row (``bytes_of``), both are.
"""

from collections.abc import Mapping

import polars as pl

from unskew.features.keys import encode_keys
from unskew.features.view import View
from unskew.sinks.redis.compactness import LONGEST_COMPACT_BYTES
from unskew.sinks.redis.keyspace import value_key
from unskew.sinks.redis.texts import text_of

_INTEGERS = ((0, 127, 1), (-(2**12), 2**12 - 1, 2), (-(2**15), 2**15 - 1, 3), (-(2**23), 2**23 - 1, 4))
_INTEGERS_32, _INTEGERS_64 = 5, 9
_INT32 = 2**31
_MOST_DIGITS = 20
_LIST_BYTES = 7
_OWN_BYTES = sum(len(name) + 2 + 10 for name in ("_at", "_until"))
_KEY_BYTES = 48
"""Of a key besides its name: the head of an object, its place in the table of keys, what allocations are rounded by. As
measured with Valkey 9.1 and the allocator of libc; tests compare."""
_MOST_COMPACT_FIELDS = 512
_AS_TABLE = 2


class Sizes:
    """Adds up what the values of a view's features take, over the current rows of its entities."""

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
        texts = rows.filter(filled).select(text_of(pl.col(one.name), one.dtype).alias(one.name) for one in features)
        self._n_entities += texts.height
        for name in texts.columns:
            values = texts[name].drop_nulls()
            self._totals[name] += int(entry_bytes(values).sum()) + len(values) * _name_bytes(name)

    def means(self) -> Mapping[str, float]:
        """Return, by feature, the mean bytes of an entity; nothing if no entity has a hash."""
        if not self._n_entities:
            return {}
        return {name: total / self._n_entities for name, total in self._totals.items()}


def bytes_of(rows: pl.DataFrame, view: View, prefix: str = "unskew") -> pl.Series:
    """Return about how many bytes the hash of each row takes, with its key: Int64.

    ``rows``: key columns and a column for each feature, as the log has them; a null has no field.
    """
    texts = rows.select(text_of(pl.col(one.name), one.dtype).alias(one.name) for one in view.features)
    n_bytes = pl.repeat(_LIST_BYTES + _OWN_BYTES, rows.height, dtype=pl.Int64, eager=True)
    is_table = pl.repeat(len(texts.columns) + 2 > _MOST_COMPACT_FIELDS, rows.height, dtype=pl.Boolean, eager=True)
    for name in texts.columns:
        its = texts[name].fill_null("")
        sizes = (entry_bytes(its) + _name_bytes(name)) * texts[name].is_not_null()
        n_bytes += sizes
        is_table |= its.str.len_bytes() > LONGEST_COMPACT_BYTES
    n_bytes += n_bytes * is_table * (_AS_TABLE - 1)
    keys = encode_keys(rows, view.entity).str.len_bytes().cast(pl.Int64)
    return (n_bytes + keys + (len(value_key(prefix, view.id, "")) + _KEY_BYTES)).alias("bytes")


def entry_bytes(texts: pl.Series) -> pl.Series:
    """Return what each of these texts, without nulls, takes as an entry of a listpack."""
    values = texts.to_frame("text")
    n_bytes = pl.col("text").str.len_bytes().cast(pl.Int64)
    # A text that is the shortest one of a whole number of 64 bits is kept as that number.
    number = (
        pl.when((n_bytes <= _MOST_DIGITS) & pl.col("text").str.contains(r"^(0|-?[1-9][0-9]*)$"))
        .then(pl.col("text"))
        .cast(pl.Int64, strict=False)
    )
    as_number: pl.Expr = pl.when(number.is_between(-_INT32, _INT32 - 1)).then(_INTEGERS_32).otherwise(_INTEGERS_64)
    for least, most, taken in reversed(_INTEGERS):
        as_number = pl.when(number.is_between(least, most)).then(taken).otherwise(as_number)
    head = pl.when(n_bytes < 64).then(1).when(n_bytes < 4096).then(2).otherwise(5)
    size = pl.when(number.is_not_null()).then(as_number).otherwise(head + n_bytes).cast(pl.Int64)
    again: pl.Expr = pl.lit(1, pl.Int64)
    for bits in (7, 14, 21, 28):
        again += (size >= 1 << bits).cast(pl.Int64)
    return values.select((size + again).alias("bytes")).to_series()


def _name_bytes(name: str) -> int:
    return int(entry_bytes(pl.Series([name]))[0])
