"""A checksum in every file of a table, over all of its bytes: a flipped bit is an error and never another value.

Parquet's own page checksums leave out page headers and the footer, and Polars neither writes nor verifies them. This
one lies between the pages and the footer, where no reader looks, because the footer gives the place of every page::

    PAR1 | pages | "uCRC", u32: CRC-32 of all other bytes | footer | u32: length of the footer | PAR1

The file's metadata say that it has one (``METADATA``), so it cannot get lost unnoticed. Files of earlier versions have
none and stay readable. A coverage file, which is JSON, has its checksum as one more entry.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from unskew.features.errors import LayoutError

METADATA = ("unskew.checksum", "crc32")
"""The entry of a file's metadata; whoever writes a file adds it, and then calls ``seal`` or ``seal_file``."""
WRITTEN_BY_UNSKEW = b"unskew.layout"
"""Part of the footer of every file of every version."""
RESTORE = "restore the file from a backup"

_TRAILER = struct.Struct("<4sI")
_MARK = b"uCRC"
_TAIL = struct.Struct("<I4s")
_MAGIC = b"PAR1"
# Small enough for a processor's cache, and large enough that Python costs nothing beside it.
_PIECE = 1 << 18
_CRC32 = "crc32"


def seal(data: bytes) -> bytes:
    """Return the bytes of a Parquet file with their checksum."""
    n_footer, _ = _TAIL.unpack_from(data, len(data) - _TAIL.size)
    at = len(data) - _TAIL.size - n_footer
    return b"".join((data[:at], _TRAILER.pack(_MARK, zlib.crc32(data)), data[at:]))


def seal_file(path: Path, file: IO[bytes]) -> None:
    """Add the checksum to the complete Parquet file at ``path``, which is open for writing as ``file``."""
    file.flush()
    with path.open("rb") as written:
        n_bytes = os.fstat(written.fileno()).st_size
        written.seek(n_bytes - _TAIL.size)
        n_footer, _ = _TAIL.unpack(written.read())
        at = n_bytes - _TAIL.size - n_footer
        checksum = _crc32(written, 0, n_bytes)
        written.seek(at)
        rest = written.read()
    file.seek(at)
    file.write(_TRAILER.pack(_MARK, checksum) + rest)


def verify_all(paths: Iterable[Path], *, footer_has: bytes = WRITTEN_BY_UNSKEW) -> None:
    """Call ``verify`` for every path, several at once."""
    distinct = list(dict.fromkeys(paths))
    if len(distinct) < 2:
        # Threads for one file would only cost.
        for path in distinct:
            verify(path, footer_has=footer_has)
        return
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for _ in threads.map(lambda path: verify(path, footer_has=footer_has), distinct):
            pass


def verify(path: Path, *, footer_has: bytes = WRITTEN_BY_UNSKEW) -> None:
    """Read a whole file, and raise ``LayoutError`` if it is not as it was written.

    ``footer_has``: the footer of the right file has these bytes. Raises ``FileNotFoundError`` if there is no such file:
    compaction may have removed it.
    """
    try:
        with path.open("rb") as file:
            _verify(path, file, footer_has)
    except FileNotFoundError:
        raise
    except IsADirectoryError as error:
        raise LayoutError(f"{path} is a folder, not a file of this table; move it away, and {RESTORE}") from error
    except OSError as error:
        raise LayoutError(f"{path} cannot be read ({error.strerror}): let this user read it, or {RESTORE}") from error


def sealed_json(content: Mapping[str, Any]) -> bytes:
    """Return an object as JSON with its checksum."""
    return json.dumps({**content, _CRC32: _crc32_of(content)}).encode()


def read_json(data: bytes) -> dict[str, Any]:
    """Return what ``sealed_json`` wrote, also without a checksum; raises ``ValueError`` if it is damaged."""
    content = json.loads(data)
    if not isinstance(content, dict):
        raise ValueError("it is not an object")  # noqa: TRY004  what is read is data of others, not an argument
    checksum = content.pop(_CRC32, None)
    if checksum is not None and checksum != _crc32_of(content):
        raise ValueError("its content does not match its checksum")
    return content


def _crc32_of(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _verify(path: Path, file: IO[bytes], footer_has: bytes) -> None:
    n_bytes = os.fstat(file.fileno()).st_size
    if not n_bytes:
        raise LayoutError(f"{path} is empty; {RESTORE}")
    file.seek(max(0, n_bytes - _TAIL.size))
    tail = file.read()
    n_footer, magic = _TAIL.unpack(tail) if len(tail) == _TAIL.size else (0, b"")
    at = n_bytes - _TAIL.size - n_footer
    if magic != _MAGIC or at < len(_MAGIC) or n_footer < _TRAILER.size:
        raise LayoutError(f"{path} is damaged: its {n_bytes} bytes do not end as a Parquet file does; {RESTORE}")
    # A file without rows and checksum has its footer right after its first bytes.
    trailer = max(0, at - _TRAILER.size)
    file.seek(trailer)
    rest = file.read(at + n_footer - trailer)
    mark, checksum = _TRAILER.unpack_from(rest)
    footer = rest[at - trailer :]
    if mark == _MARK:
        if zlib.crc32(tail, zlib.crc32(footer, _crc32(file, 0, trailer))) != checksum:
            raise LayoutError(f"{path} is damaged: its bytes do not match their checksum; {RESTORE}")
    elif METADATA[0].encode() in footer:
        raise LayoutError(f"{path} is damaged: its checksum is gone; {RESTORE}")
    if footer_has not in footer:
        raise LayoutError(
            f"{path} is damaged or not of this table: its metadata lack {footer_has.decode()}; move it out of the folder, "
            f"or {RESTORE} if it replaced one"
        )


def _crc32(file: IO[bytes], begin: int, end: int) -> int:
    file.seek(begin)
    piece = memoryview(bytearray(min(_PIECE, max(1, end - begin))))
    checksum, left = 0, end - begin
    while left:
        n_read = file.readinto(piece[: min(left, len(piece))])  # type: ignore[attr-defined]
        if not n_read:
            break
        checksum = zlib.crc32(piece[:n_read], checksum)
        left -= n_read
    return checksum
