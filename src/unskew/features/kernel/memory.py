"""Memory of arrays that grow: large ones grow where they lie.

To copy a large array stops its shard for as long as the copy takes, and on a virtual machine the first touch of the
copy's memory takes several times as long as the copy. So a large array lies at the beginning of far more addresses than
it needs. Addresses take no memory; the machine gives that page by page when it is first written to.

Arrays are copied where the operating system limits or counts addresses (``RLIMIT_AS``, strict overcommit, other systems
than Linux), and where too few are left.
"""

import mmap
import os
import resource
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

MOST_ROWS: Final = 1 << 31
"""Links and numbers of rows have 32 bits; so many rows of a cache line take 128 GiB."""
_RESERVED_FROM = 1 << 22
"""Arrays of fewer bytes are copied, which takes a few milliseconds."""
_FREED_AT_ONCE = 1 << 23
LINE_WORDS = 8
_LINE_BYTES = 8 * LINE_WORDS
_MOST_SPARE = 1 / 8
"""Rows are made of whole cache lines where that takes at most this part of them."""
_ADDRESSES_OF_MEMORY, _MOST_ADDRESSES = 64, 1 << 46
"""A process takes at most so many addresses for each byte of the machine's memory, and half of what there are."""
_PART_OF_ADDRESSES = 256
"""An array takes this part of the addresses that are left, so there are always some left for other arrays."""
# Of mmap: memory that may be needed is not counted. Only newer versions of Python name it.
_NOT_COUNTED = 0x4000


class _Addresses(mmap.mmap):
    """Addresses of an array and of what it may become."""


def lines(n_rows: int, n_words: int) -> npt.NDArray[np.int64]:
    """Return uninitialised rows of ``n_words`` or a few more, which begin at a cache line if they are whole ones.

    Raises ``MemoryError`` for more than ``MOST_ROWS``.
    """
    whole = -(-n_words // LINE_WORDS) * LINE_WORDS
    return _empty((n_rows, whole if whole - n_words <= whole * _MOST_SPARE else n_words), np.int64)


def grown(array: npt.NDArray[Any], capacity: int) -> npt.NDArray[Any]:
    """Return an array of ``capacity`` rows, more than ``array`` has: its rows, then uninitialised ones.

    The result may lie where ``array`` lies, so ``array`` is grown once. It begins at a cache line. Raises
    ``MemoryError`` for more than ``MOST_ROWS``.
    """
    _check(capacity)
    owner = _owner_of(array)
    addresses = _addresses_of(owner)
    if addresses is not None:
        begin = array.ctypes.data - owner.ctypes.data
        end = begin + array.strides[0] * capacity
        if end <= len(addresses):
            return owner[begin:end].view(array.dtype).reshape(capacity, *array.shape[1:])
    result = _empty((capacity, *array.shape[1:]), array.dtype)
    result[: len(array)] = array
    return result


def free(array: npt.NDArray[Any]) -> None:
    """Free the memory of an array little by little; nothing that lies there can be used afterwards.

    Freeing hundreds of megabytes at once would block every thread of the process for as long as that takes.
    """
    owner = _owner_of(array)
    addresses = _addresses_of(owner)
    if addresses is not None:
        used = array.ctypes.data + array.nbytes - owner.ctypes.data
        for place in range(0, used, _FREED_AT_ONCE):
            addresses.madvise(mmap.MADV_DONTNEED, place, min(_FREED_AT_ONCE, len(addresses) - place))
        return
    while owner.nbytes > _FREED_AT_ONCE:
        n_rows = len(owner) - max(1, len(owner) * _FREED_AT_ONCE // owner.nbytes)
        owner.resize((n_rows, *owner.shape[1:]), refcheck=False)


def _check(n_rows: int) -> None:
    if n_rows > MOST_ROWS:
        raise MemoryError(
            f"a shard needs room for {n_rows:,} entities, tiles or items, and has it for at most {MOST_ROWS:,}: divide "
            "the entities among more shards or partitions"
        )


def _empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return an uninitialised array that begins at a cache line, with addresses to grow if it is large."""
    _check(shape[0])
    n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    addresses = _reserved(n_bytes) if n_bytes >= _RESERVED_FROM else None
    if addresses is None:
        owner = np.empty(n_bytes + _LINE_BYTES, np.uint8)
    else:
        owner = np.frombuffer(addresses, np.uint8)
    first = -owner.ctypes.data % _LINE_BYTES
    return owner[first : first + n_bytes].view(dtype).reshape(shape)


def _owner_of(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the array that has an array's memory: one that begins at a cache line lies in a longer one."""
    return array if array.base is None else array.base


def _addresses_of(owner: npt.NDArray[Any]) -> _Addresses | None:
    # What numpy looks at through a memoryview; its types do not say that there may be one.
    seen: Any = owner.base
    addresses = seen.obj if isinstance(seen, memoryview) else None
    return addresses if isinstance(addresses, _Addresses) else None


def _reserved(n_bytes: int) -> _Addresses | None:
    """Return addresses for far more than so many bytes; None if there are not so many for this process."""
    most = _most_addresses()
    size = (most - _addresses_taken()) // _PART_OF_ADDRESSES // mmap.PAGESIZE * mmap.PAGESIZE if most else 0
    if size < 2 * n_bytes:
        return None
    try:
        addresses = _Addresses(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NOT_COUNTED)
    except OSError:
        return None
    # As numpy does for large arrays; a kernel without huge pages refuses.
    with suppress(OSError):
        addresses.madvise(mmap.MADV_HUGEPAGE)
    return addresses


@cache
def _most_addresses() -> int:
    """Return how many addresses this process may take; 0 if they are limited, or counted as memory."""
    if sys.platform != "linux" or resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return 0
    if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2":
        return 0
    return min(_ADDRESSES_OF_MEMORY * os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE, _MOST_ADDRESSES)


def _addresses_taken() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
