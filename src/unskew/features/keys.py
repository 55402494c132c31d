"""Canonical entity keys: one text per entity, the same in state, Redis and shard choice.

Parts are written as text (integers in decimal, strings percent-encoded as by ``urllib.parse.quote(part, safe="")``)
and joined by ``|``. All functions work on columns.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_
from urllib.parse import quote, unquote

import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.features.errors import RequestError
from unskew.features.selecting import select
from unskew.features.view import ViewEntity

_PLAIN = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~")
_SPECIAL = [chr(code) for code in range(128) if chr(code) not in _PLAIN]
_ESCAPED = [f"%{ord(character):02X}" for character in _SPECIAL]
_NEEDS_ESCAPE = r"[^A-Za-z0-9_.~-]"
_FEW = 1_000
"""So many texts are looked at by Python in less time than Polars needs for a query."""
_ESCAPED_NON_ASCII = r"%[89A-F]"


@dataclass(frozen=True, kw_only=True)
class OneEntity:
    """One entity, wherever it occurs: the key columns of ``entity`` hold ``parts``, as plain text.

    Another entity with more key columns contains it: (user 7, shop 2) contains user 7.
    """

    entity: ViewEntity
    parts: tuple[str, ...]

    @classmethod
    def of(cls, entity: ViewEntity, parts: Sequence[str]) -> "OneEntity":
        """Return the entity with this key; ``RequestError`` if its kind has other key columns or types."""
        if len(parts) != len(entity.keys):
            raise RequestError(
                f"entity {entity.name} has the key {' '.join(name.upper() for name in entity.keys)}: "
                f"{len(entity.keys)} expected, {len(parts)} given"
            )
        canonical = []
        for name, kind, part in zip(entity.keys, entity.types, parts, strict=True):
            try:
                canonical.append(str(int(part)) if kind == "int64" else part)
            except ValueError as error:
                raise RequestError(f"entity {entity.name}: {name} is a whole number, and {part!r} is not") from error
        return cls(entity=entity, parts=tuple(canonical))

    @property
    def key(self) -> str:
        """The canonical key."""
        parts = zip(self.parts, self.entity.types, strict=True)
        return "|".join(part if kind == "int64" else quote(part, safe="") for part, kind in parts)

    def is_in(self, other: ViewEntity) -> bool:
        """Return whether entities of this kind are the entity, or contain it."""
        if other.name == self.entity.name:
            return other.keys == self.entity.keys
        return set(other.keys) > set(self.entity.keys)

    def where(self) -> pl.Expr:
        """Return the condition on rows that have the key columns, of whatever type: false where one is null."""
        tests = [pl.col(name).cast(pl.String) == part for name, part in zip(self.entity.keys, self.parts, strict=True)]
        return reduce(and_, tests).fill_null(value=False)

    def among(self, keys: pl.Series, other: ViewEntity) -> pl.Series:
        """Return, for canonical keys of a kind of entity that ``is_in`` accepts, whether they are or contain it."""
        if other.keys == self.entity.keys:
            return keys == self.key
        return decode_keys(keys, other).select(self.where()).to_series()


def encode_keys(frame: pl.DataFrame, entity: ViewEntity) -> pl.Series:
    """Return the canonical key of every row, String; null if any part is null."""
    texts = (frame.get_column(name).cast(pl.String) for name in entity.keys)
    parts = [part if kind == "int64" else _escape(part) for kind, part in zip(entity.types, texts, strict=True)]
    if len(parts) == 1:
        return parts[0].alias("key")
    if frame.height <= _FEW:
        return reduce(lambda whole, part: whole + "|" + part, parts).alias("key")
    columns = pl.DataFrame([part.alias(str(index)) for index, part in enumerate(parts)])
    return select(columns, pl.concat_str(pl.all(), separator="|").alias("key")).to_series()


def decode_keys(keys: pl.Series, entity: ViewEntity) -> pl.DataFrame:
    """Return the typed key columns of canonical keys."""
    if len(entity.keys) == 1:
        parts = [keys]
    else:
        split = keys.str.split_exact("|", len(entity.keys) - 1).struct.unnest()
        parts = split.get_columns()
    columns = [
        (part.cast(pl.Int64) if kind == "int64" else _unescape(part)).alias(name)
        for part, name, kind in zip(parts, entity.keys, entity.types, strict=True)
    ]
    return pl.DataFrame(columns)


def shard_of(keys: pl.Series, n_shards: int) -> npt.NDArray[np.int64]:
    """Return the number of each key's hash shard among ``n_shards``, int64 [n]: FNV-1a with MurmurHash3's finaliser."""
    if n_shards == 1:
        return np.zeros(len(keys), np.int64)
    from unskew.features.text_buffers import Keys  # noqa: PLC0415 - compiled: readers have no numba

    return (Keys.of(keys).hashes() % np.uint64(n_shards)).astype(np.int64)


def _escape(texts: pl.Series) -> pl.Series:
    if not _occurs(_NEEDS_ESCAPE, texts):
        return texts
    if (texts.str.len_bytes() != texts.str.len_chars()).any():
        return _by_unique(texts, lambda text: quote(text, safe=""))
    return texts.str.replace_many(_SPECIAL, _ESCAPED)


def _unescape(texts: pl.Series) -> pl.Series:
    if not _occurs("%", texts):
        return texts
    if texts.str.contains(_ESCAPED_NON_ASCII).any():
        return _by_unique(texts, unquote)
    return texts.str.replace_many(_ESCAPED, _SPECIAL)


def _occurs(pattern: str, texts: pl.Series) -> bool:
    """Return whether a pattern, a class of ASCII characters, is in one of the texts."""
    if len(texts) > _FEW:
        return bool(texts.str.contains(pattern).any())
    found = re.compile(pattern).search
    return any(text is not None and found(text) for text in texts.to_list())


def _by_unique(texts: pl.Series, mapping: Callable[[str], str]) -> pl.Series:
    unique = texts.unique().drop_nulls()
    mapped = pl.Series([mapping(text) for text in unique.to_list()], dtype=pl.String)
    return texts.replace_strict(unique, mapped, default=None, return_dtype=pl.String)
