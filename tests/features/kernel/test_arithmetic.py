"""Fixed-point sums against Python's exact fractions."""

import struct
from fractions import Fraction

import numpy as np
from hypothesis import example, given
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
