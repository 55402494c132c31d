"""Frames as bytes of Arrow IPC.

The form of a stream, because Polars writes and reads it in the calling thread: for a few rows that is several times as
fast as a file, whose parts it hands to other threads.
"""

import io
from collections.abc import Sequence

import polars as pl

from unskew.features.selecting import joined

COMPRESSED_FROM = 1 << 16
"""Frames of at least so many bytes are compressed with LZ4: what holds them, such as the recovery store, takes several
times as long for the bytes that this saves as LZ4 does."""
_FILE = b"ARROW1"
"""How an IPC file begins, which earlier versions wrote."""


def to_ipc(frames: Sequence[pl.DataFrame]) -> bytes:
    """Return the rows of frames with equal columns, in their order, at least one frame.

    A frame with lists or maps of texts must not be a part of a larger one: Polars writes the texts of all its rows. Of
    texts it may write those of rows that were filtered out; ``own_texts`` leaves them out.
    """
    buffer = io.BytesIO()
    # In one piece, because each one would be a message with all columns.
    whole = joined(frames)
    whole.write_ipc_stream(buffer, compression="lz4" if whole.estimated_size() >= COMPRESSED_FROM else "uncompressed")
    return buffer.getvalue()


def from_ipc(data: bytes) -> pl.DataFrame:
    """Return the rows that ``to_ipc`` wrote, also in an earlier version."""
    return pl.read_ipc(data) if data.startswith(_FILE) else pl.read_ipc_stream(data)
