"""Codings: evaluated values as the numbers that accumulators take, whole columns at once."""

import numpy as np
import numpy.typing as npt

from unskew.features.jit import compiled
from unskew.features.kernel.arithmetic import MANTISSA_BITS, leading_zeros
from unskew.features.kernel.program import Column
from unskew.features.text_buffers import Keys

Ints = npt.NDArray[np.int64]
Values = Keys | Ints | npt.NDArray[np.float64]


def coded(values: Values, column: Column) -> Ints:
    """Return the codes of values without nulls.

    The values are whole numbers (decimals in units of their last digit), float64, or texts that are counted.
    """
    if column.coding == "approx":
        return _approx(values, column.bits)
    assert not isinstance(values, Keys)
    numbers = values.astype(np.float64)
    if column.scale:
        numbers = numbers / 10.0**column.scale
    if column.coding == "buckets":
        return np.searchsorted(np.array(column.edges), numbers, side="right").astype(np.int64)
    # Values with the same exponent and the same leading bits of mantissa share a bin.
    bins = np.abs(numbers).view(np.int64) >> (MANTISSA_BITS - column.bits)
    return np.where(numbers < 0, -bins, bins)


def _approx(values: Values, bits: int) -> Ints:
    """Return 64 * register + rank, into which HyperLogLog splits a value's hash."""
    if isinstance(values, Keys):
        keys = values
    else:
        patterns = np.ascontiguousarray(values).view(np.uint8)
        keys = Keys(np.arange(0, len(patterns) + 1, 8, dtype=np.int64), patterns)
    codes = np.empty(len(keys.offsets) - 1, np.int64)
    _take_apart(keys.hashes(), bits, codes)
    return codes


@compiled()
def _take_apart(hashes, bits, out):
    for index in range(len(hashes)):
        register = np.int64(hashes[index] >> np.uint64(64 - bits))
        rest = hashes[index] << np.uint64(bits)
        rank = 65 - bits
        if rest != np.uint64(0):
            rank = min(rank, leading_zeros(rest) + 1)
        out[index] = 64 * register + rank
