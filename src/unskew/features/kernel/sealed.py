r"""Arrays as bytes: explicit, versioned, checksummed.

All numbers are little-endian::

    8 bytes   magic
    u32       layout number
    u32       length of the header
    header    JSON, UTF-8: what the caller says, and ``arrays``: [name, dtype, shape] in the order in which they follow
    arrays    back to back, C order
    u32       CRC-32 of everything before it
"""

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from unskew.features.errors import LayoutError

_PREFIX = struct.Struct("<8sII")
_CHECKSUM = struct.Struct("<I")


def sealed(
    magic: bytes, layout: int, header: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]
) -> Iterator[bytes | memoryview]:
    """The bytes of a header and arrays in pieces, none of which is a copy of an array that lies in one piece."""
    described = [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()]
    text = json.dumps({**header, "arrays": described}, separators=(",", ":")).encode()
    head = _PREFIX.pack(magic, layout, len(text)) + text
    checksum = zlib.crc32(head)
    yield head
    for array in arrays.values():
        if array.size:
            piece = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
            checksum = zlib.crc32(piece, checksum)
            yield piece
    yield _CHECKSUM.pack(checksum)


def seal(magic: bytes, layout: int, header: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> bytes:
    """The bytes of a header and arrays."""
    return b"".join(sealed(magic, layout, header, arrays))


def unseal(
    data: bytes | memoryview, magic: bytes, layout: int, what: str
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """The header and the arrays, which are their own; ``LayoutError`` where the bytes are damaged or of another layout."""
    if len(data) < _PREFIX.size + _CHECKSUM.size or data[: len(magic)] != magic:
        raise LayoutError(f"{what}: not a state of unskew; start from an empty state directory")
    _, number, length = _PREFIX.unpack_from(data)
    if number != layout:
        raise LayoutError(
            f"{what}: layout {number}, this version reads {layout}; run the version that wrote it, "
            "or start from an empty state directory"
        )
    body = memoryview(data)[: -_CHECKSUM.size]
    if zlib.crc32(body) != _CHECKSUM.unpack_from(data, len(body))[0]:
        raise LayoutError(f"{what}: checksum does not match, the bytes are damaged; restore the state from a backup")
    header = json.loads(bytes(body[_PREFIX.size : _PREFIX.size + length]))
    arrays: dict[str, npt.NDArray[Any]] = {}
    place = _PREFIX.size + length
    for name, dtype, shape in header.pop("arrays"):
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(body, dtype, count, place).reshape(shape).copy()
        place += count * np.dtype(dtype).itemsize
    return header, arrays
