"""A checksum of what a column holds: equal for equal values and types, however they lie in memory or in a file."""

import hashlib
from typing import Any, Protocol, cast

import numpy as np
import polars as pl


class _Digest(Protocol):
    def update(self, data: Any, /) -> None: ...


def checksum(column: pl.Series) -> str:
    """Return the SHA-256, in hexadecimal, of a column's type and values; its name does not count.

    Floats count bit by bit, so 0.0 and -0.0 differ. What lies in memory under a null does not count. Raises
    ``TypeError`` for a column of Python objects.
    """
    digest = hashlib.sha256()
    _feed(digest, column)
    return digest.hexdigest()


def _feed(digest: _Digest, column: pl.Series) -> None:
    """Feed type, length, places of nulls, and then the values that are not null."""
    digest.update(f"{column.dtype!r} {len(column)} {column.null_count()}\n".encode())
    if column.null_count():
        digest.update(np.packbits(column.is_null().to_numpy(), bitorder="little").tobytes())
    values = column.drop_nulls()
    match values.dtype:
        case pl.List():
            _feed_fixed(digest, values.list.len().cast(pl.Int64))
            # An empty list would become a null.
            _feed(digest, values.filter(values.list.len() > 0).list.explode(keep_nulls=True, empty_as_null=True))
        case pl.Array():
            _feed(digest, values.arr.to_list())
        case pl.Struct():
            for field in values.struct.fields:
                _feed(digest, values.struct.field(field))
        case pl.Object():
            raise TypeError("Python objects have no checksum")
        case pl.Boolean():
            digest.update(np.packbits(values.to_numpy(), bitorder="little").tobytes())
        case pl.Decimal() | pl.Categorical() | pl.Enum() | pl.Int128() | pl.UInt128():
            _feed_bytes(digest, values.cast(pl.String).cast(pl.Binary))
        case pl.String() | pl.Binary():
            _feed_bytes(digest, values.cast(pl.Binary))
        case pl.Null():
            pass
        case _:
            _feed_fixed(digest, values.to_physical())


def _feed_fixed(digest: _Digest, values: pl.Series) -> None:
    for chunk in values.get_chunks():
        array = np.ascontiguousarray(chunk.to_numpy())
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data if len(array) else b"")


def _feed_bytes(digest: _Digest, values: pl.Series) -> None:
    import pyarrow as pa  # noqa: PLC0415 - readers of current values need not have it

    _feed_fixed(digest, values.bin.size().cast(pl.Int64))
    for chunk in values.get_chunks():
        array = cast("pa.LargeBinaryArray", chunk.to_arrow().cast(pa.large_binary()))
        _, offsets, data = array.buffers()
        if data is not None and len(array):
            bounds = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
            digest.update(memoryview(data)[int(bounds[0]) : int(bounds[-1])])
