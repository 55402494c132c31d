"""Headers of records, in one array of bytes as ``blobs``."""

import struct
from collections.abc import Iterable, Sequence
from typing import Final, overload

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from unskew.features.jit import compiled, inner
from unskew.features.text_buffers import is_utf8
from unskew.pipelines.kafka.blobs import Blobs

Header = tuple[str, bytes | None]
_SIZES = struct.Struct("<ii")
PART_BYTES: Final = _SIZES.size
"""Before each header lie the lengths of its name and of its value, -1 for no value."""


class Headers(Sequence[Sequence[Header] | None]):
    """A sequence of the headers of each record, in their order; None stands for a record without headers.

    It also stands for headers of which a name is not UTF-8. ``blobs``: of each record, for each header the lengths of
    name and value as 32-bit numbers, lowest byte first, then both.
    """

    __slots__ = ("blobs",)

    def __init__(self, blobs: Blobs) -> None:
        self.blobs = blobs

    @classmethod
    def of(cls, items: Iterable[Iterable[Header] | None]) -> "Headers":
        """Return headers that are Python objects."""
        return cls(Blobs.of(None if item is None else b"".join(map(_written, item)) for item in items))

    @classmethod
    def none(cls, count: int) -> "Headers":
        """Return the headers of so many records that have none."""
        return cls(Blobs(np.empty(0, np.uint8), np.full(count, -1, np.int64)))

    @classmethod
    def joined(cls, pieces: "Sequence[Headers]") -> "Headers":
        """Return the headers of pieces that follow one another."""
        return cls(Blobs.joined([piece.blobs for piece in pieces]))

    @override
    def __len__(self) -> int:
        return len(self.blobs)

    @overload
    def __getitem__(self, place: int) -> Sequence[Header] | None: ...
    @overload
    def __getitem__(self, place: slice) -> "Headers": ...
    @override
    def __getitem__(self, place: int | slice) -> "Sequence[Header] | Headers | None":
        if isinstance(place, slice):
            return Headers(self.blobs[place])
        octets = self.blobs[place]
        return None if octets is None else _read(octets)

    def at(self, rows: npt.NDArray[np.int64]) -> "Headers":
        """Return the headers of the records at some places."""
        return Headers(self.blobs.at(rows))

    def last(self, name: str) -> Blobs:
        """Return, for each record, the value of its last header of a name; None if it has none."""
        blobs = self.blobs
        begins, sizes = np.empty((2, len(blobs)), np.int64)
        _find_last(blobs.data, blobs.edges, np.frombuffer(name.encode(), np.uint8), begins, sizes)
        return Blobs.cut(blobs.data, begins, sizes)


def _written(header: Header) -> bytes:
    name, value = header[0].encode(), header[1]
    return _SIZES.pack(len(name), -1 if value is None else len(value)) + name + (value or b"")


def _read(octets: bytes) -> list[Header] | None:
    found: list[Header] = []
    at = 0
    while at < len(octets):
        n_name, n_value = _SIZES.unpack_from(octets, at)
        at += PART_BYTES
        try:
            name = octets[at : at + n_name].decode()
        except UnicodeDecodeError:
            return None
        at += n_name
        found.append((name, None if n_value < 0 else octets[at : at + n_value]))
        at += max(n_value, 0)
    return found


@compiled()
def _find_last(
    data: npt.NDArray[np.uint8],
    edges: npt.NDArray[np.int64],
    wanted: npt.NDArray[np.uint8],
    begins: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
) -> None:
    """Note where the last header of a name lies in the headers of each record, and its length; -1 if it has no value.

    It is also -1 if a name is not UTF-8, as for whoever reads all headers.
    """
    for row in range(len(sizes)):
        begins[row], sizes[row] = 0, -1
        at, end = edges[row], edges[row + 1]
        while at < end:
            n_name, n_value = _int_at(data, at), _int_at(data, at + 4)
            at += PART_BYTES
            if not is_utf8(data, at, at + n_name):
                sizes[row] = -1
                break
            same = n_name == len(wanted)
            for place in range(len(wanted) if same else 0):
                same &= data[at + place] == wanted[place]
            at += n_name
            if same:
                begins[row], sizes[row] = at, n_value
            at += max(n_value, 0)


@inner()
def _int_at(data: npt.NDArray[np.uint8], at: int) -> np.int64:
    """Return a 32-bit number, lowest byte first."""
    number = np.int64(0)
    for place in range(4):
        number |= np.int64(data[at + place]) << 8 * place
    return number - ((number >> 31) << 32)
