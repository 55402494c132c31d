"""Fixed-point sums against Python's exact fractions."""

import struct
from collections.abc import Iterable
from fractions import Fraction

import numpy as np
from hypothesis import assume, example, given
from hypothesis import strategies as st

from unskew.features.kernel import arithmetic

INT64 = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(-(2.0**62), 2.0**62, exclude_min=True, exclude_max=True, allow_nan=False)
TINY = st.integers(-(2**55), 2**55).map(lambda n: n * 2.0**-118)
COUNTS = st.one_of(st.integers(1, 2**32 + 2), st.integers(1, 2**63 - 1))

Limbs = tuple[np.uint64, np.uint64, np.uint64]


def _limbs(number: int) -> Limbs:
    return tuple(np.uint64(number >> (64 * place) & (2**64 - 1)) for place in range(3))  # type: ignore[return-value]


def _number(limbs: tuple[int, int, int]) -> int:
    number = sum((int(limb) & (2**64 - 1)) << (64 * place) for place, limb in enumerate(limbs))
    return number - 2**192 if number >> 191 else number


def _bits(value: float) -> np.int64:
    return np.int64(struct.unpack("<q", struct.pack("<d", value))[0])


def _float(bits: int) -> float:
    return struct.unpack("<d", struct.pack("<q", bits))[0]  # type: ignore[no-any-return]


@given(st.one_of(FLOATS, TINY))
@example(5e-324)
@example(2.0**-65)
@example(3 * 2.0**-65)
@example(-(2.0**-65) * 1.0000000000000002)
def test_a_float_becomes_its_nearest_multiple_of_2_to_minus_64_half_even(value: float) -> None:
    assert _number(arithmetic.from_float_bits(_bits(value))) == round(Fraction(value) * 2**64)


# 2**63 values below 2**126 each: no sum reaches 2**189.
@given(st.integers(-(2**189), 2**189), st.integers(-(2**189), 2**189))
@example(2**64 - 1, 1)
@example(2**128 - 1, 1)
@example(-(2**64), 2**64)
def test_adding_and_negating_limbs_is_integer_arithmetic(one: int, other: int) -> None:
    assert _number(arithmetic.add(*_limbs(one), *_limbs(other))) == one + other
    assert _number(arithmetic.negate(*_limbs(one))) == -one


@given(st.integers(-(2**190), 2**190))
@example(2**117 + 2**64)
@example((2**53 + 1) << 64)
@example((2**54 - 1) << 64)
@example(1)
def test_a_sum_is_rounded_to_float_once_half_even(number: int) -> None:
    assert _float(arithmetic.to_float_bits(*_limbs(number))) == float(Fraction(number, 2**64))


@given(st.integers(-(2**190), 2**190), COUNTS)
@example(1, 2**63 - 1)
@example(2**190, 1)
@example((2**53 + 1) << 64, 1)
@example(1 << 64, 3)
# In the middle between two floats, and so little beside it that only the last digits tell.
@example(3 * (2**53 + 1) << 60, 6)
@example((3 * (2**53 + 1) << 60) + 1, 6)
@example((3 * (2**53 + 3) << 60) - 1, 6)
@example(-(3 * (2**53 + 1) << 60) - 1, 6)
def test_a_mean_is_the_exact_quotient_rounded_once(number: int, count: int) -> None:
    found = _float(arithmetic.mean_bits(*_limbs(number), np.int64(count)))

    assert found == float(Fraction(number, count * 2**64))


@given(st.lists(INT64, min_size=1, max_size=5))
@example([2**63 - 1, 1])
@example([-(2**63), -1, 1])
def test_integer_sums_are_exact_and_saturate(values: list[int]) -> None:
    total = _limbs(0)
    for value in values:
        total = _limbs(_number(arithmetic.add(*total, *_limbs(_number(arithmetic.from_int(np.int64(value)))))))

    assert arithmetic.to_int(total[1], total[2]) == min(max(sum(values), -(2**63)), 2**63 - 1)


@given(st.lists(st.floats(allow_nan=False), min_size=2, max_size=2))
def test_comparable_bits_order_as_floats_do(pair: list[float]) -> None:
    one, other = (value + 0.0 for value in pair)

    assert (one < other) == (arithmetic.ordered_bits(_bits(one)) < arithmetic.ordered_bits(_bits(other)))
    assert arithmetic.ordered_bits(arithmetic.ordered_bits(_bits(one))) == _bits(one)


WORDS = st.integers(0, 2**64 - 1)


def _wide(number: int, n_limbs: int) -> np.ndarray:
    return np.array([number >> (64 * place) & (2**64 - 1) for place in range(n_limbs)], np.uint64)


def _value(wide: Iterable[np.uint64]) -> int:
    return sum(int(limb) << (64 * place) for place, limb in enumerate(wide))


@given(WORDS, WORDS)
@example(2**64 - 1, 2**64 - 1)
@example(2**32 - 1, 2**32)
def test_a_product_of_words_is_two_words(one: int, other: int) -> None:
    assert _value(map(np.uint64, arithmetic.multiply(np.uint64(one), np.uint64(other)))) == one * other


# Sums of exact values of less than 2**62 in units of 2**-64.
@given(st.integers(-(2**127), 2**127))
@example(2**127)
@example(-(2**127))
@example((2**63 << 64) - 1)
@example((2**64 - 1) << 63)
def test_a_square_is_exact_in_four_limbs(number: int) -> None:
    assert _value(map(np.uint64, arithmetic.square(*_limbs(number)))) == number * number


@given(st.integers(0, 2**320 - 1), WORDS)
@example(2**320 - 1, 2**64 - 1)
@example(2**128 - 1, 2**63)
def test_scaling_multiplies_in_place(number: int, factor: int) -> None:
    wide = _wide(number, 6)
    arithmetic.scale_wide(wide, np.uint64(factor))

    assert _value(wide) == number * factor


@given(st.integers(0, 2**384 - 1), st.integers(0, 2**384 - 1))
@example(2**192, 1)
@example(2**128, 2**64)
@example(2**64 - 1, 2**64 - 1)
@example(2**128 + 2**64, 2**128 + 1)
def test_subtracting_borrows_through_every_limb(one: int, other: int) -> None:
    less, more = sorted((one, other))
    wide = _wide(more, 6)
    arithmetic.subtract_wide(wide, _wide(less, 6))

    assert _value(wide) == more - less


DIVISORS = st.one_of(st.integers(1, 2**32 + 2), st.integers(1, 2**63 - 1))


@given(st.integers(0, 2**448), DIVISORS, DIVISORS, st.integers(0, 36), st.integers(-256, 0), st.booleans())
@example(1, 3, 1, 0, 0, False)
@example(1, 2**63 - 1, 2**63 - 1, 36, 0, True)
@example((2**53 + 1) << 300, 1, 1, 0, 0, False)
@example((2**54 - 1) << 300, 1, 1, 0, 0, True)
@example(((2**53 + 1) << 64) + 1, 1 << 32, 1 << 32, 0, 0, False)
@example(((2**53 + 1) << 64) * 65_535 * 65_537 + 1, 65_535, 65_537, 0, 0, False)
@example(((2**53 + 1) << 64) * 3 + 1, 3, 1, 0, 0, False)
@example(2**63, 1, 1, 0, 0, False)
@example(10**36 * (2**53 + 1), 1, 1, 36, 0, False)
@example(2**200, 2**62, 2**62, 0, -128, True)
def test_a_quotient_is_rounded_once_half_even(
    numerator: int, one: int, other: int, tens: int, exponent: int, negative: bool
) -> None:
    exact = Fraction(numerator, one * other * 10**tens) * Fraction(2) ** exponent
    assume(exact == 0 or 2.0**-1000 < exact < 2.0**1000)
    found = arithmetic.quotient_bits(
        _wide(numerator, 12), np.uint64(one), np.uint64(other), np.int64(tens), np.int64(exponent), np.bool_(negative)
    )

    assert _float(found) == (-float(exact) if negative else float(exact))


@given(st.integers(0, 2**768 - 1), DIVISORS)
@example(2**768 - 1, 1)
@example(2**64, 2**32)
@example(2**64, 2**32 + 1)
def test_dividing_in_place_rounds_down_and_says_whether_anything_is_left(number: int, divisor: int) -> None:
    wide = _wide(number, 12)

    assert arithmetic.divide_wide(wide, np.uint64(divisor)) == (number % divisor != 0)
    assert _value(wide) == number // divisor
