"""Headers of records, in one array of bytes as ``blobs``."""

import struct
from collections.abc import Iterable, Sequence
from typing import Final, overload

import numpy as np
import numpy.typing as npt
from typing_extensions import override

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
