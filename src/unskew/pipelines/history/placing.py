"""The partition in which the topic would have put a row: its producer's way is found from the events that it sent."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.features.errors import RequestError
from unskew.pipelines.history.archive import BEGINNING, Archive
from unskew.pipelines.kafka.partitioners import HASHES

PARTITION = "_partition"


@dataclass(frozen=True, kw_only=True)
class Placing:
    """How rows are given a partition. ``known``: whether it is the one in which the topic has events of the same key.

    ``way``: in words, for people.
    """

    place: Callable[[pl.DataFrame], pl.Series]
    known: bool
    way: str


def placing_of(archive: Archive, n_partitions: int, column: str | None) -> Placing:
    """Return how rows of a stream are placed. ``column``: of the rows, with their partitions; None if they have none.

    Raises ``RequestError`` if the stream is partitioned by a key, and no known way puts its events where they are.
    """
    stream = archive.stream
    if column is not None:
        return Placing(place=lambda rows: _given(rows, n_partitions, column), known=True, way=f"by the column {column}")
    if n_partitions == 1:
        return Placing(place=lambda rows: _all_in(rows, 0), known=True, way="the topic has one partition")
    if not stream.partitioned_by:
        # Their order is that of arrivals, whatever the partition.
        at = min((p for p, reached in archive.cut.items() if reached.clock_us is not None), default=0)
        return Placing(place=lambda rows: _all_in(rows, at), known=False, way="views do not rely on partitions")
    (key, *more) = stream.partitioned_by
    ways = [] if more else _ways_of(archive, key, n_partitions)
    if len(ways) != 1:
        found = " and ".join(ways) if ways else "no known way"
        raise RequestError(
            f"stream {stream.name} is partitioned by {', '.join(stream.partitioned_by)}, and {found} (hash of the key: murmur2, crc32; "
            "key: as text, int64, int32) puts the archived events where the topic has them; give the column that holds each row's "
            "partition: --partition COLUMN"
        )
    way = _WAYS[ways[0]]
    return Placing(
        place=lambda rows: _hashed(rows[key], way, n_partitions), known=True, way=f"by {ways[0]}, as the topic's events"
    )


_Way = tuple[Callable[[Sequence[bytes]], npt.NDArray[np.int64]], Callable[[pl.Series], "list[bytes] | None"]]


def _text(values: pl.Series) -> list[bytes] | None:
    if values.dtype != pl.String() and not values.dtype.is_integer():
        return None
    return [text.encode() for text in values.cast(pl.String).to_list()]


def _integer(n_bytes: int) -> Callable[[pl.Series], list[bytes] | None]:
    def encode(values: pl.Series) -> list[bytes] | None:
        if not values.dtype.is_integer():
            return None
        try:
            return [number.to_bytes(n_bytes, "big", signed=True) for number in values.to_list()]
        except OverflowError:
            return None

    return encode


_WAYS: Mapping[str, _Way] = {
    f"{hash_name} of the key as {form}": (hash_of, encode)
    for (hash_name, hash_of), (form, encode) in itertools.product(
        HASHES.items(),
        {"text": _text, "int64": _integer(8), "int32": _integer(4)}.items(),
    )
}


def _ways_of(archive: Archive, key: str, n_partitions: int) -> list[str]:
    """Return the ways by which the first archived events of each partition are where they are."""
    parts = []
    for partition, reached in archive.cut.items():
        events = next(archive.read(partition, BEGINNING, reached.offset, [key]), None)
        if events is not None:
            parts.append(events.select(key, PARTITION).drop_nulls().unique())
    if not parts:
        return []
    known = pl.concat(parts)
    return [name for name, way in _WAYS.items() if _puts(known, key, way, n_partitions)]


def _puts(known: pl.DataFrame, key: str, way: _Way, n_partitions: int) -> bool:
    hash_of, encode = way
    keys = encode(known[key])
    return keys is not None and bool((hash_of(keys) % n_partitions == known[PARTITION].to_numpy()).all())


def _hashed(keys: pl.Series, way: _Way, n_partitions: int) -> pl.Series:
    hash_of, encode = way
    distinct = keys.drop_nulls().unique()
    encoded = encode(distinct)
    if encoded is None:
        raise RequestError(
            f"column {keys.name!r} has keys that the topic's producer cannot send: they are not 32-bit numbers"
        )
    places = pl.Series(hash_of(encoded) % n_partitions, dtype=pl.Int32)
    # A row without a key is of no entity.
    return keys.replace_strict(distinct, places, default=0, return_dtype=pl.Int32).alias(PARTITION)


def _given(rows: pl.DataFrame, n_partitions: int, column: str) -> pl.Series:
    places = rows[PARTITION]
    beyond = places.filter(places >= n_partitions).to_list()
    if beyond:
        raise RequestError(
            f"--partition {column}: there is a row of partition {beyond[0]}, and the topic has {n_partitions}"
        )
    return places.cast(pl.Int32)


def _all_in(rows: pl.DataFrame, partition: int) -> pl.Series:
    return pl.Series(PARTITION, [partition], dtype=pl.Int32).new_from_index(0, rows.height)
