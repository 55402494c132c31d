"""The records of a topic, in order of production: columns that are encoded a chunk at a time."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.demo.encode import encode
from unskew.pipelines.kafka.partitioners import crc32

# The kinds of damage to a record; the page views contain some of each.
DAMAGES = ("truncated", "trailing bytes", "wrong magic byte", "garbage", "empty")


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """Consecutive records of a topic, one entry per record in each column.

    ``timestamp_ms``: the record timestamp, milliseconds since the epoch, never falling within a topic.
    """

    partition: npt.NDArray[np.int32]
    key: list[bytes]
    value: list[bytes]
    timestamp_ms: npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Topic:
    """All records of one topic, in the order of their record timestamps.

    ``frame``: the schema's fields (times as integers in the field's unit), ``_timestamp_ms``, and ``_damage``: the
    index into ``DAMAGES``, null for a sound record.
    ``key``: the column with the record key; records of one key are in one partition.
    """

    name: str
    schema: Mapping[str, Any]
    frame: pl.DataFrame
    n_partitions: int
    key: str = "household_id"

    @property
    def n_records(self) -> int:
        """The number of records, damaged ones included."""
        return self.frame.height

    @property
    def n_malformed(self) -> int:
        """The number of records that cannot be decoded."""
        return self.n_records - self.frame["_damage"].null_count()

    def last_timestamp_ms(self) -> int:
        """Return the earliest of the partitions' last record timestamps; 0 for an empty topic."""
        partitions, timestamps_ms = self._partitions(self.frame), self.frame["_timestamp_ms"].to_numpy()
        return min((int(timestamps_ms[partitions == p].max()) for p in np.unique(partitions)), default=0)

    def end_offsets(self) -> dict[int, int]:
        """Return partition -> the offset after its last record; 0 for an empty partition."""
        counts = np.bincount(self._partitions(self.frame), minlength=self.n_partitions)
        return dict(enumerate(counts.tolist()))

    def chunks(self, n_rows: int = 20_000) -> Iterator[Chunk]:
        """Yield all records in order, ``n_rows`` at a time."""
        for rows in self.frame.iter_slices(n_rows):
            value = encode(rows, self.schema)
            damaged = rows.with_row_index("_row").filter(pl.col("_damage").is_not_null())
            for row, kind in damaged.select("_row", "_damage").iter_rows():
                value[row] = damage(value[row], DAMAGES[kind])
            yield Chunk(
                partition=self._partitions(rows),
                key=[str(key).encode() for key in rows[self.key].to_list()],
                value=value,
                timestamp_ms=rows["_timestamp_ms"].to_numpy(),
            )

    def _partitions(self, rows: pl.DataFrame) -> npt.NDArray[np.int32]:
        distinct, inverse = np.unique(rows[self.key].to_numpy(), return_inverse=True)
        of_distinct = np.array([partition_of(int(key), self.n_partitions) for key in distinct], np.int32)
        return of_distinct[inverse]


def partition_of(key: int, n_partitions: int) -> int:
    """Return the partition of a key: the CRC-32 of its text, the same on every machine."""
    return int(crc32([str(key).encode()])[0]) % n_partitions


def damage(message: bytes, kind: str) -> bytes:
    """Damage a valid message so that no reader of its schema may accept it."""
    match kind:
        case "truncated":
            return message[:-3]
        case "trailing bytes":
            return message + b"\x00\x00"
        case "wrong magic byte":
            return b"\x7b" + message[1:]
        case "garbage":
            return bytes(byte ^ 0xA5 for byte in reversed(message))[: len(message) // 2]
        case "empty":
            return b""
    raise ValueError(f"unknown kind of damage: {kind}")
