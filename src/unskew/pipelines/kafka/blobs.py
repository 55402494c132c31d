"""Keys and values of records as one array of bytes: from Kafka to columns, none of them is a Python object."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
from typing_extensions import override

from unskew.features.jit import compiled
from unskew.features.text_buffers import read_only, validity


class Blobs(Sequence[bytes | None]):
    """A sequence of byte strings, in which None stands for one that is not there.

    ``data``: all bytes, end to end. ``sizes``: the length of each item, -1 for None. ``edges``: where each item
    begins in ``data``, and where the last one ends, if that is known. An item becomes a Python object when it is asked
    for, and only then.
    """

    __slots__ = ("_edges", "data", "sizes")

    def __init__(
        self,
        data: npt.NDArray[np.uint8],
        sizes: npt.NDArray[np.int64],
        edges: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self.data = read_only(data)
        self.sizes = sizes
        self._edges = edges

    @classmethod
    def of(cls, items: Iterable[bytes | None]) -> "Blobs":
        """Return byte strings that are Python objects."""
        all_of_them = list(items)
        sizes = np.array([-1 if item is None else len(item) for item in all_of_them], np.int64)
        return cls(np.frombuffer(b"".join(item or b"" for item in all_of_them), np.uint8), sizes)

    @classmethod
    def joined(cls, pieces: "Sequence[Blobs]") -> "Blobs":
        """Return the items of pieces that follow one another."""
        if len(pieces) == 1:
            return pieces[0]
        return cls(
            np.concatenate([piece.data for piece in pieces]) if pieces else np.empty(0, np.uint8),
            np.concatenate([piece.sizes for piece in pieces]) if pieces else np.empty(0, np.int64),
        )

    @classmethod
    def cut(cls, data: npt.NDArray[np.uint8], begins: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> "Blobs":
        """Return what lies at some places of ``data``, which cannot be written to."""
        kept = np.empty(int(np.maximum(sizes, 0).sum()), np.uint8)
        _cut(data, begins, sizes, kept)
        return cls(kept, sizes)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """The number of bytes of each item, 0 for None."""
        return np.maximum(self.sizes, 0)

    @property
    def edges(self) -> npt.NDArray[np.int64]:
        """Where each item begins in ``data``, and where the last one ends."""
        if self._edges is None:
            self._edges = np.zeros(len(self.sizes) + 1, np.int64)
            np.cumsum(self.lengths, out=self._edges[1:])
        return self._edges

    @override
    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, place: int) -> bytes | None: ...
    @overload
    def __getitem__(self, place: slice) -> "Blobs": ...
    @override
    def __getitem__(self, place: int | slice) -> "bytes | Blobs | None":
        if isinstance(place, slice):
            first, after, step = place.indices(len(self.sizes))
            if step != 1:
                return self.at(np.arange(first, after, step))
            after = max(first, after)
            return Blobs(self.data[self.edges[first] : self.edges[after]], self.sizes[first:after])
        if self.sizes[place] < 0:
            return None
        place = place + len(self.sizes) if place < 0 else place
        return self.data[self.edges[place] : self.edges[place + 1]].tobytes()

    @override
    def __iter__(self) -> Iterator[bytes | None]:
        whole, edges = self.data.tobytes(), self.edges.tolist()
        # Without a step of Python for an item.
        items = map(whole.__getitem__, map(slice, edges[:-1], edges[1:]))
        if (self.sizes >= 0).all():
            return items
        return (None if size < 0 else item for size, item in zip(self.sizes.tolist(), items, strict=True))

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        return Blobs, (self.data, self.sizes)

    def copied(self) -> "Blobs":
        """Return the same items in memory of their own."""
        return Blobs(self.data.copy(), self.sizes.copy())

    def at(self, rows: npt.NDArray[np.int64]) -> "Blobs":
        """Return the items at some places, in their order."""
        return Blobs.cut(self.data, self.edges[rows], self.sizes[rows])

    def series(self, name: str) -> pl.Series:
        """Return the items as a column of bytes."""
        array = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(),
            len(self),
            [validity(self.sizes >= 0), pa.py_buffer(self.edges), pa.py_buffer(self.data)],
        )
        return pl.Series(name, array, dtype=pl.Binary)


NO_BLOBS = Blobs(np.empty(0, np.uint8), np.empty(0, np.int64))


@compiled()
def _cut(
    data: npt.NDArray[np.uint8],
    begins: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    kept: npt.NDArray[np.uint8],
) -> None:
    """Write what lies at some places end to end."""
    end = 0
    for row in range(len(sizes)):
        for place in range(sizes[row]):
            kept[end + place] = data[begins[row] + place]
        end += max(sizes[row], 0)
