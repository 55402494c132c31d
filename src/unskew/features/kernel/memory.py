"""Memory of arrays that grow: large ones grow where they lie.

To copy a large array stops its shard for as long as the copy takes, and on a virtual machine the first touch of the
copy's memory takes several times as long as the copy. So a large array lies at the beginning of far more addresses than
it needs. Addresses take no memory; the machine gives that page by page when it is first written to.

Arrays are copied where the operating system limits or counts addresses (``RLIMIT_AS``, ``RLIMIT_DATA``, strict
overcommit, other systems than Linux), and where too few are left.
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
_ADDRESSES_OF_MEMORY = 64
"""A process takes at most so many addresses for each byte of the machine's memory, and half of what there are."""
_PART_OF_ADDRESSES = 64
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
    return _empty((capacity_for(n_rows, 0), whole if whole - n_words <= whole * _MOST_SPARE else n_words), np.int64)


def grown(array: npt.NDArray[Any], capacity: int, least: int | None = None) -> npt.NDArray[Any]:
    """Return an array of ``capacity`` rows, more than ``array`` has: its rows, then uninitialised ones.

    The result may lie where ``array`` lies, so ``array`` is grown once. It begins at a cache line. ``least``: fewer
    rows, but at least so many, are enough if more would have to be copied.
    """
    owner = _owner_of(array)
    addresses = _addresses_of(owner)
    if addresses is not None:
        begin = array.ctypes.data - owner.ctypes.data
        n_rows = min(capacity, (len(addresses) - begin) // array.strides[0])
        if n_rows >= (capacity if least is None else least):
            end = begin + array.strides[0] * n_rows
            return owner[begin:end].view(array.dtype).reshape(n_rows, *array.shape[1:])
    result = _empty((capacity, *array.shape[1:]), array.dtype)
    result[: len(array)] = array
    return result


def capacity_for(needed: int, n_now: int) -> int:
    """Return how many rows are to have room where ``needed`` have none: twice as many as now, or what is needed.

    Raises ``MemoryError`` if more than ``MOST_ROWS`` are needed.
    """
    if needed > MOST_ROWS:
        raise MemoryError(
            f"a shard needs room for {needed:,} entities, tiles or items, and has it for at most {MOST_ROWS:,}: divide "
            "the entities among more shards or partitions"
        )
    return max(needed, min(2 * n_now, MOST_ROWS))


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


def _empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return an uninitialised array that begins at a cache line, with addresses to grow if it is large."""
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
    # As numpy does for large arrays; a kernel without huge pages refuses. A core dump would be as long as all of it.
    for advice in (mmap.MADV_HUGEPAGE, mmap.MADV_DONTDUMP):
        with suppress(OSError):
            addresses.madvise(advice)
    return addresses


@cache
def _most_addresses() -> int:
    """Return how many addresses this process may take; 0 if they are limited, counted as memory, or not known."""
    limits = (resource.RLIMIT_AS, resource.RLIMIT_DATA)
    if sys.platform != "linux" or any(resource.getrlimit(limit)[0] != resource.RLIM_INFINITY for limit in limits):
        return 0
    try:
        is_counted = Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
        _addresses_taken()
    except OSError:
        return 0
    # Large arrays lie near the end of what a process has.
    half_of_all = 1 << (np.empty(_RESERVED_FROM, np.uint8).ctypes.data.bit_length() - 1)
    of_memory = _ADDRESSES_OF_MEMORY * os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
    return 0 if is_counted else min(of_memory, half_of_all)


def _addresses_taken() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
