"""Files of an epoch's rows, encoded by another thread while the epoch goes on.

At an epoch's end no event is processed. Only the rows since the last piece are left to encode then, however many the
epoch has brought.
"""

import io
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from unskew.features.selecting import joined
from unskew.sinks.tables import checksum
from unskew.sinks.tables.encodings import COMPRESSION, LEVEL, encodings


class Piece(NamedTuple):
    """Successive rows of one day, or the bytes of their file.

    ``day``: the name of its folder. ``first`` and ``last``: their sequence numbers.
    """

    day: str
    first: int
    last: int
    content: Any


Split = Callable[[pl.DataFrame, int], Iterator[Piece]]
"""Splits rows, given the number of the first, into pieces of one day each, with their rows as content."""


class Ahead:
    """The rows of an epoch that are encoded before its end, in their order.

    ``split``: gives the pieces of some rows. ``metadata``: that of each file.
    """

    def __init__(self, split: Split, metadata: Mapping[str, str]) -> None:
        self._split = split
        self._metadata = metadata
        self.n_rows = 0
        self.is_open = False
        """Whether the file of the rows added last gets those that are added next too."""
        # Whoever encodes holds it.
        self._encoding = threading.Lock()
        # Rows with the number of the first, or None where a file ends.
        self._waiting: deque[tuple[Sequence[pl.DataFrame], int] | None] = deque()
        self._open: _Growing | None = None
        self._encodings: dict[str, Any] | None = None
        self._files: list[Piece] = []
        self._fault: Exception | None = None

    def add(self, frames: Sequence[pl.DataFrame], first: int) -> None:
        """Add rows with equal columns, at least one; ``first``: the number of the first."""
        self.n_rows += sum(frame.height for frame in frames)
        self.is_open = True
        self._waiting.append((frames, first))

    def end_file(self) -> None:
        """Let the file end with the rows added last, once they are encoded."""
        self.is_open = False
        self._waiting.append(None)

    def encode(self) -> None:
        """Encode what was added; ``files`` reports a failure."""
        with self._encoding:
            while self._waiting and self._fault is None:
                added = self._waiting.popleft()
                try:
                    if added is None:
                        self._finish()
                    else:
                        frames, first = added
                        for piece in self._split(joined(frames), first):
                            self._encode(piece)
                except Exception as error:  # noqa: BLE001 - the caller of ``files`` raises it
                    self._fault = error

    def files(self) -> list[Piece]:
        """Return all rows as files, each with its bytes as content; rows that are added later are in other files."""
        if self.is_open:
            self.end_file()
        self.encode()
        if self._fault is not None:
            raise self._fault
        return self._files

    def clear(self) -> None:
        """Forget all rows."""
        self._files = []
        self.n_rows = 0

    def _encode(self, piece: Piece) -> None:
        if self._open is not None and self._open.day != piece.day:
            self._finish()
        rows = piece.content.to_arrow()
        if self._encodings is None:
            self._encodings = encodings(_in_parquet(rows))
        if self._open is None:
            self._open = _Growing(piece, rows.schema.with_metadata(dict(self._metadata)), self._encodings)
        self._open.add(piece.last, rows)

    def _finish(self) -> None:
        if self._open is not None:
            self._files.append(self._open.ended())
            self._open = None


class _Growing:
    """A Parquet file in memory that gets a row group for each piece.

    PyArrow, because Polars cannot add a row group to a file; decision 43 compares them.
    """

    def __init__(self, first: Piece, schema: pa.Schema, encodings: Mapping[str, Any]) -> None:
        self.day = first.day
        self._first = first.first
        self._last = first.last
        self._bytes = io.BytesIO()
        self._writer = pq.ParquetWriter(
            self._bytes, schema, compression=COMPRESSION, compression_level=LEVEL, **encodings
        )

    def add(self, last: int, rows: pa.Table) -> None:
        """Add rows, of which the last one has the number ``last``."""
        self._writer.write_table(rows, row_group_size=rows.num_rows)
        self._last = last

    def ended(self) -> Piece:
        """End the file, and return it."""
        self._writer.close()
        return Piece(self.day, self._first, self._last, checksum.seal(self._bytes.getvalue()))


def _in_parquet(rows: pa.Table) -> Any:
    """Return the schema that a Parquet file of these rows has."""
    # No ``empty_table``: Arrow would import pandas for it, where there is one, which takes most of a second.
    empty = io.BytesIO()
    pq.write_table(rows.slice(0, 0), empty)
    return pq.read_metadata(empty).schema
