"""Exact sums in fixed point, rounded to float64 once.

A value ``x`` is the integer ``N = x * 2**64``, kept in three 64-bit limbs (low, mid, high; two's complement).
Integers have a low limb of 0; floats with ``|x| < 2**62`` are rounded half-even to a multiple of ``2**-64``.
A sum of such integers does not depend on order and loses nothing when a tile is subtracted again.

Method: a small superaccumulator, after Kulisch, "Computer Arithmetic and Validity" (2nd ed., 2013), section 8.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types, uint64
from numba.extending import intrinsic

from unskew.features.jit import compiled, inlined
from unskew.features.kernel import words as w

MANTISSA_BITS = 52
_U0 = np.uint64(0)
_U1 = np.uint64(1)
_ONES = np.uint64(0xFFFFFFFFFFFFFFFF)
_LOW32 = np.uint64(0xFFFFFFFF)
_MANTISSA = np.uint64((1 << 52) - 1)
_IMPLICIT = np.uint64(1 << 52)
_INT64_MAX = np.int64(2**63 - 1)
_INT64_MIN = np.int64(-(2**63))
_TWO_TO_53 = 2.0**53
_SLACK = 2.0**-99


@inlined()
def ordered_bits(bits):
    """Map float64 bits to an int64 that compares as the float does; the function is its own inverse."""
    if bits < 0:
        return bits ^ _INT64_MAX
    return bits


@compiled()
def negate(low, mid, high):
    """Return the two's complement of a three-limb integer."""
    low = ~low + _U1
    carry = _U1 if low == _U0 else _U0
    mid = ~mid + carry
    carry = _U1 if (carry == _U1 and mid == _U0) else _U0
    return low, mid, ~high + carry


@compiled()
def add(low, mid, high, low2, mid2, high2):
    """Return the sum of two three-limb integers, modulo 2**192."""
    r_low = low + low2
    carry = _U1 if r_low < low else _U0
    r_mid = mid + mid2
    carry_mid = _U1 if r_mid < mid else _U0
    r_mid += carry
    if carry == _U1 and r_mid == _U0:
        carry_mid = _U1
    return r_low, r_mid, high + high2 + carry_mid


@compiled()
def from_float_bits(bits):
    """Return the limbs of a finite float64 with ``|x| < 2**62``, rounded half-even to a multiple of 2**-64."""
    pattern = uint64(bits)
    exponent = np.int64((pattern >> np.uint64(52)) & np.uint64(0x7FF))
    mantissa = pattern & _MANTISSA
    if exponent == 0:
        exponent = np.int64(1)
    else:
        mantissa |= _IMPLICIT
    shift = exponent - 1075 + 64
    low = _U0
    mid = _U0
    if shift >= 64:
        mid = mantissa << uint64(shift - 64)
    elif shift > 0:
        low = mantissa << uint64(shift)
        mid = mantissa >> uint64(64 - shift)
    elif shift == 0:
        low = mantissa
    elif shift >= -53:
        cut = uint64(-shift)
        low = mantissa >> cut
        rest = mantissa & ((_U1 << cut) - _U1)
        half = _U1 << (cut - _U1)
        if rest > half or (rest == half and (low & _U1) == _U1):
            low += _U1
    if bits < 0:
        return negate(low, mid, _U0)
    return low, mid, _U0


@compiled()
def from_int(value):
    """Return the limbs of an int64."""
    high = _ONES if value < 0 else _U0
    return _U0, uint64(value), high


@inlined()
def limbs_of(number, kind):
    """Return the limbs of a number: an integer, or the bits of a float64."""
    if kind == w.FLOAT:
        return from_float_bits(number)
    return from_int(number)


@inlined()
def load_limbs(cells, cell, word):
    """Return the limbs that a cell holds from ``word`` on."""
    return uint64(cells[cell, word + w.LOW]), uint64(cells[cell, word + w.MID]), uint64(cells[cell, word + w.HIGH])


@inlined()
def add_limbs(cells, cell, word, low, mid, high):
    """Add to the limbs that a cell holds from ``word`` on."""
    held_low, held_mid, held_high = load_limbs(cells, cell, word)
    low, mid, high = add(held_low, held_mid, held_high, low, mid, high)
    cells[cell, word + w.LOW] = np.int64(low)
    cells[cell, word + w.MID] = np.int64(mid)
    cells[cell, word + w.HIGH] = np.int64(high)


@compiled()
def to_int(mid, high):
    """Return the integer part of an exact integer sum, saturated at the limits of int64."""
    value = np.int64(mid)
    if (high == _U0 and value >= 0) or (high == _ONES and value < 0):
        return value
    if np.int64(high) < 0:
        return _INT64_MIN
    return _INT64_MAX


def _leading_zeros(_typing: Any, word: Any) -> Any:
    """Return the number of zero bits above the highest set bit of a 64-bit word.

    It is the processor's own instruction, as LLVM's ``ctlz``.
    """

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(word), generate


leading_zeros: Any = intrinsic(_leading_zeros)


def _as_float(_typing: Any, _pattern: Any) -> Any:
    """Return the float64 of a bit pattern."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.DoubleType())

    return types.float64(types.int64), generate


def _as_bits(_typing: Any, _number: Any) -> Any:
    """Return the bit pattern of a float64."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(64))

    return types.int64(types.float64), generate


as_float: Any = intrinsic(_as_float)
as_bits: Any = intrinsic(_as_bits)


@compiled()
def _assemble(top, sticky, exponent, negative):
    """Return the bits of ``+-top * 2**(exponent-63)`` rounded half-even.

    ``top`` is normalised; ``sticky`` says whether there are more bits below it.
    """
    mantissa = top >> np.uint64(11)
    rest = top & np.uint64(0x7FF)
    half = np.uint64(0x400)
    bits = (uint64(exponent + 1023) << np.uint64(52)) + (mantissa - _IMPLICIT)
    if rest > half or (rest == half and (sticky or (mantissa & _U1) == _U1)):
        bits += _U1
    result = np.int64(bits)
    if negative:
        result |= _INT64_MIN
    return result


@compiled()
def to_float_bits(low, mid, high):
    """Return the float64 bits of ``N * 2**-64``, rounded half-even once; zero is +0.0."""
    negative = np.int64(high) < 0
    if negative:
        low, mid, high = negate(low, mid, high)
    if high != _U0:
        first, second, third, place = high, mid, low, 191
    elif mid != _U0:
        first, second, third, place = mid, low, _U0, 127
    elif low != _U0:
        first, second, third, place = low, _U0, _U0, 63
    else:
        return np.int64(0)
    shift = leading_zeros(first)
    top = first
    rest = second
    if shift > 0:
        top = (first << uint64(shift)) | (second >> uint64(64 - shift))
        rest = second << uint64(shift)
    return _assemble(top, rest != _U0 or third != _U0, place - shift - 64, negative)


@compiled()
def _digits(remainder, digit, divisor):
    """Return the quotient and the remainder of ``(remainder * 2**32 + digit) / divisor``; ``remainder < divisor``."""
    if divisor <= _LOW32:
        current = (remainder << np.uint64(32)) | digit
        quotient = current // divisor
        return quotient, current - quotient * divisor
    quotient = _U0
    for bit in range(31, -1, -1):
        remainder = (remainder << _U1) | ((digit >> uint64(bit)) & _U1)
        quotient = quotient << _U1
        if remainder >= divisor:
            remainder -= divisor
            quotient |= _U1
    return quotient, remainder


def _fused(_typing: Any, _left: Any, _right: Any, _other: Any) -> Any:
    """Return ``left * right + other``, rounded once."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float64(types.float64, types.float64, types.float64), generate


fused: Any = intrinsic(_fused)


@compiled()
def mean_bits(low, mid, high, count):
    """Return the float64 bits of ``N * 2**-64 / count``, rounded half-even once; ``count > 0``."""
    negative = np.int64(high) < 0
    if negative:
        low, mid, high = negate(low, mid, high)
    if high != _U0:
        first, second, place = high, mid, 191
    elif mid != _U0:
        first, second, place = mid, low, 127
    elif low != _U0:
        first, second, place = low, _U0, 63
    else:
        return np.int64(0)
    shift = leading_zeros(first)
    if shift > 0:
        first = (first << uint64(shift)) | (second >> uint64(64 - shift))
        second = second << uint64(shift)
    if high == _U0 and count < 1 << 53:
        # The first 53 bits over the count, and what that leaves, which is exact, with the next 53 bits; further bits
        # are less than one of the last of these. So the sum of the two quotients is wrong by less than 2**-99 of it,
        # and is rounded as the exact quotient is unless it lies as near as that to where rounding changes.
        upper = float(np.int64(first >> np.uint64(11))) * _TWO_TO_53
        lower = float(np.int64(((first & np.uint64(0x7FF)) << np.uint64(42)) | (second >> np.uint64(22))))
        divisor = float(count)
        quotient = upper / divisor
        rest = (fused(-quotient, divisor, upper) + lower) / divisor
        mean = quotient + rest
        left = rest - (mean - quotient)
        slack = mean * _SLACK
        if mean == mean + (left + slack) and mean == mean + (left - slack):
            bits = as_bits(mean) + ((place - shift - 105 - 64) << MANTISSA_BITS)
            return bits | _INT64_MIN if negative else bits
    return _long_mean_bits(low, mid, high, count, negative)


@compiled()
def _long_mean_bits(low, mid, high, count, negative):
    """Return the bits of ``+-N * 2**-64 / count`` for every ``N`` and ``count``.

    Schoolbook long division of the numerator, extended by 128 fraction bits so that even the smallest numerator over
    the largest count leaves more than 53 bits, and a sticky remainder. Dividing is what it costs, so digits are divided
    only from the first limb that is not zero, and only until 64 bits of the quotient are known.
    """
    divisor = uint64(count)
    remainder = _U0
    top = _U0
    taken = 0
    place = -1
    sticky = False
    for index in range(0 if high != _U0 else (2 if mid != _U0 else 4), 10):
        if index < 6:
            word = high if index < 2 else (mid if index < 4 else low)
            digit = (word >> np.uint64(32)) if index % 2 == 0 else (word & _LOW32)
        else:
            digit = _U0
        if taken == 64:
            if digit != _U0:
                sticky = True
            continue
        quotient, remainder = _digits(remainder, digit, divisor)
        if place < 0:
            if quotient == _U0:
                continue
            zeros = leading_zeros(quotient)
            place = 319 - 32 * index - (zeros - 32)
            top = quotient << uint64(zeros)
            taken = 64 - zeros
        elif taken + 32 <= 64:
            top |= quotient << uint64(32 - taken)
            taken += 32
        else:
            spare = 32 - (64 - taken)
            top |= quotient >> uint64(spare)
            if (quotient & ((_U1 << uint64(spare)) - _U1)) != _U0:
                sticky = True
            taken = 64
    if place < 0:
        return np.int64(0)
    return _assemble(top, sticky or remainder != _U0, place - 192, negative)


@compiled()
def multiply(left, right):
    """Return the low and high word of the product of two unsigned words."""
    left_low, left_high = left & _LOW32, left >> np.uint64(32)
    right_low, right_high = right & _LOW32, right >> np.uint64(32)
    low = left_low * right_low
    middle = left_high * right_low + (low >> np.uint64(32))
    other = left_low * right_high + (middle & _LOW32)
    high = left_high * right_high + (middle >> np.uint64(32)) + (other >> np.uint64(32))
    return (other << np.uint64(32)) | (low & _LOW32), high


@compiled()
def square(low, mid, high):
    """Return four limbs of the square of a three-limb integer of at most 2**127."""
    if np.int64(high) < 0:
        low, mid, _ = negate(low, mid, high)
    first, second = multiply(low, low)
    cross_low, cross_high = multiply(low, mid)
    third, fourth = multiply(mid, mid)
    for _ in range(2):
        second += cross_low
        carry = _U1 if second < cross_low else _U0
        third += carry
        if carry == _U1 and third == _U0:
            fourth += _U1
        third += cross_high
        if third < cross_high:
            fourth += _U1
    return first, second, third, fourth


# Numbers wider than three limbs: uint64 arrays, the lowest limb first, without a sign.


@compiled()
def scale_wide(wide, factor):
    """Multiply in place by a word."""
    carry = _U0
    for index in range(len(wide)):
        low, high = multiply(wide[index], factor)
        low += carry
        carry = high + (_U1 if low < carry else _U0)
        wide[index] = low


@compiled()
def subtract_wide(wide, other):
    """Subtract in place; ``other`` is not larger."""
    borrow = _U0
    for index in range(len(wide)):
        before = wide[index]
        after = before - other[index]
        below = before < other[index]
        wide[index] = after - borrow
        borrow = _U1 if (below or (borrow == _U1 and after == _U0)) else _U0


@compiled()
def _bits_of(wide):
    for index in range(len(wide) - 1, -1, -1):
        if wide[index] != _U0:
            return 64 * index + 64 - leading_zeros(wide[index])
    return 0


@compiled()
def divide_wide(wide, divisor):
    """Divide in place by a word of less than 2**63, rounded down; return true if a remainder is left."""
    remainder = _U0
    for index in range((_bits_of(wide) + 63) // 64 - 1, -1, -1):
        high, remainder = _digits(remainder, wide[index] >> np.uint64(32), divisor)
        low, remainder = _digits(remainder, wide[index] & _LOW32, divisor)
        wide[index] = (high << np.uint64(32)) | low
    return remainder != _U0


@compiled()
def quotient_bits(numerator, one, other, tens, exponent, negative):
    """Return the float64 bits of ``+-numerator / (one * other * 10**tens) * 2**exponent``, rounded half-even once.

    ``numerator`` is overwritten; it has room for 64 bits more than the divisors have. ``one`` and ``other``: from 1 to
    less than 2**63. Dividing by one after the other and rounding down gives the digits of the whole quotient, which is
    exact if nothing was left: schoolbook division by digits of 32 bits.
    """
    n_bits = _bits_of(numerator)
    if n_bits == 0:
        return np.int64(0)
    taken = 128 - leading_zeros(one) - leading_zeros(other) + (10 * tens) // 3 + 1
    n_words = max(0, (taken + 64 - n_bits + 63) // 64)
    if n_words > 0:
        for index in range(len(numerator) - 1, -1, -1):
            numerator[index] = numerator[index - n_words] if index >= n_words else _U0
    product, above = multiply(one, other)
    if above == _U0 and product <= _LOW32:
        is_left = divide_wide(numerator, product)
    else:
        is_left = divide_wide(numerator, one)
        is_left |= divide_wide(numerator, other)
    while tens > 0:
        power = _U1
        for _ in range(min(tens, 9)):
            power *= np.uint64(10)
        is_left |= divide_wide(numerator, power)
        tens -= 9
    last = _bits_of(numerator) - 1
    first = last // 64
    shift = uint64(63 - last % 64)
    top = numerator[first] << shift
    if shift > _U0:
        top |= numerator[first - 1] >> (np.uint64(64) - shift)
        is_left |= numerator[first - 1] << shift != _U0
        first -= 1
    for index in range(first):
        is_left |= numerator[index] != _U0
    return _assemble(top, is_left, last - 64 * n_words + exponent, negative)
