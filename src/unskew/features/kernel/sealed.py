r"""Arrays as bytes: explicit, versioned, with a checksum.

All numbers are little-endian::

    8 bytes   magic
    u32       layout number
    u32       length of the header
    header    JSON, UTF-8: the caller's facts, and ``arrays``: [name, dtype, shape] in the order in which they follow
    arrays    back to back, C order
    u32       CRC-32 of everything before it
"""

import io
import json
import math
import struct
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from unskew.features.errors import LayoutError

_PREFIX = struct.Struct("<8sII")
_CHECKSUM = struct.Struct("<I")
_READ_AT_ONCE = 1 << 23


def sealed(
    magic: bytes, layout: int, header: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]
) -> Iterator[bytes | memoryview]:
    """Yield the bytes of a header and arrays in pieces; contiguous arrays are not copied."""
    described = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    text = json.dumps({**header, "arrays": described}, separators=(",", ":")).encode()
    head = _PREFIX.pack(magic, layout, len(text)) + text
    checksum = zlib.crc32(head)
    yield head
    for array in arrays.values():
        if array.size:
            piece = _bytes_of(np.ascontiguousarray(array))
            checksum = zlib.crc32(piece, checksum)
            yield piece
    yield _CHECKSUM.pack(checksum)


def seal(magic: bytes, layout: int, header: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """Return the bytes of a header and arrays."""
    return b"".join(sealed(magic, layout, header, arrays))


class Rows:
    """The rows of an array that stays where it is stored; iterated, it gives some of them at a time.

    A piece is valid until the next one. There is at least one, which may have no rows. Raises ``LayoutError`` if what
    is stored has become shorter.
    """

    def __init__(self, stream: BinaryIO, kind: np.dtype[Any], shape: tuple[int, ...], what: str) -> None:
        self._stream = stream
        self._place = stream.tell()
        self._kind = kind
        self._shape = shape
        self._what = what

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        n_rows, *inner = self._shape
        at_once = max(1, _READ_AT_ONCE // max(1, self._kind.itemsize * math.prod(inner)))
        held = np.empty((min(n_rows, at_once), *inner), self._kind)
        self._stream.seek(self._place)
        for first in range(0, max(n_rows, 1), at_once):
            piece = held[: n_rows - first]
            if self._stream.readinto(_bytes_of(piece)) != piece.nbytes:  # type: ignore[attr-defined]
                raise _damaged(self._what)
            yield piece


class Unsealed(NamedTuple):
    """``arrays``: those that were read, which own their memory. ``left``: those that were only checked."""

    header: dict[str, Any]
    arrays: dict[str, npt.NDArray[Any]]
    left: dict[str, Rows]


def unseal(
    source: bytes | memoryview | BinaryIO, magic: bytes, layout: int, what: str, *, leave: Collection[str] = ()
) -> Unsealed:
    """Return the header and the arrays.

    ``source``: the bytes, or a file that contains nothing else, which is read piece by piece. ``leave``: the arrays
    that are not kept in memory, but read again from the source. Raises ``LayoutError`` if the bytes are damaged or of
    another layout.
    """
    stream = io.BytesIO(source) if isinstance(source, (bytes, memoryview)) else source
    n_bytes = stream.seek(0, io.SEEK_END)
    stream.seek(0)
    prefix = stream.read(_PREFIX.size)
    if n_bytes < _PREFIX.size + _CHECKSUM.size or prefix[: len(magic)] != magic:
        raise LayoutError(f"{what}: not a state of unskew; start from an empty state directory")
    _, number, length = _PREFIX.unpack(prefix)
    if number != layout:
        raise LayoutError(
            f"{what}: layout {number}, this version reads {layout}; run the version that wrote it, "
            "or start from an empty state directory"
        )
    text = stream.read(length)
    checksum = zlib.crc32(text, zlib.crc32(prefix))
    try:
        header, described = _described(text, n_bytes - len(prefix) - len(text) - _CHECKSUM.size)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(what) from error
    arrays: dict[str, npt.NDArray[Any]] = {}
    left: dict[str, Rows] = {}
    for name, kind, shape in described:
        if name in leave:
            left[name] = Rows(stream, kind, shape, what)
            pieces: Iterable[npt.NDArray[Any]] = left[name]
        else:
            arrays[name] = np.empty(shape, kind)
            pieces = _read(stream, arrays[name])
        for piece in pieces:
            checksum = zlib.crc32(_bytes_of(piece), checksum)
    if checksum != _CHECKSUM.unpack(stream.read(_CHECKSUM.size))[0]:
        raise _damaged(what)
    return Unsealed(header, arrays, left)


def _read(stream: BinaryIO, into: npt.NDArray[Any]) -> Iterator[npt.NDArray[np.uint8]]:
    """Fill an array, and yield each part of it while it is in the processor's cache."""
    whole = into.reshape(-1).view(np.uint8)
    for begin in range(0, len(whole), _READ_AT_ONCE):
        part = whole[begin : begin + _READ_AT_ONCE]
        # All other threads run meanwhile; a mapped file would block their requests for memory until the disk has
        # answered.
        stream.readinto(part.data)  # type: ignore[attr-defined]
        yield part


def _bytes_of(array: npt.NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _described(text: bytes, n_bytes: int) -> tuple[dict[str, Any], list[tuple[str, np.dtype[Any], tuple[int, ...]]]]:
    """Return the header, and the arrays that follow it in ``n_bytes``.

    The checksum has not been verified yet, so it raises if the numbers are impossible.
    """
    header = json.loads(text)
    described = [(name, np.dtype(kind), tuple(shape)) for name, kind, shape in header.pop("arrays")]
    if not all(kind.kind in "biuf" and min(shape, default=0) >= 0 for _, kind, shape in described):
        raise ValueError("there cannot be such arrays")
    if sum(kind.itemsize * math.prod(shape) for _, kind, shape in described) != n_bytes:
        raise ValueError("the arrays do not have this length")
    return header, described


def _damaged(what: str) -> LayoutError:
    return LayoutError(f"{what}: checksum does not match, the bytes are damaged; restore the state from a backup")
