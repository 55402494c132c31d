"""Aggregations of the recount, each computed from the plain list of values; nothing is kept between instants."""

import datetime as dt
import math
import struct
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Any

from unskew.features.plan import FeaturePlan
from unskew.features.types import FLOAT64, Type
from unskew.features.view import Parameters, Scalar, ViewWindow
from unskew.monitoring.recount_windows import instant, micros

Value = Scalar | list[Any] | None

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
RESOLUTION_BITS = 64
OTHER = "other"
_SIXTY_DIGITS = Context(prec=60)
_MANTISSA_BITS = 52


@dataclass(frozen=True)
class Counted:
    """The values that count, in (arrival, partition, offset) order: of events in the window that pass the filter.

    No value and no key is null. ``effectives``: microseconds. ``values``: empty if the feature takes no value.
    ``keys``: empty if the feature has no key column.
    """

    effectives: list[int]
    values: list[Any]
    keys: list[str]

    def of(self, is_own: Callable[[str], bool]) -> "Counted":
        """Return the values of some keys, without the keys."""
        places = [place for place, key in enumerate(self.keys) if is_own(key)]
        values = [self.values[place] for place in places] if self.values else []
        return Counted([self.effectives[place] for place in places], values, [])


def aggregate(feature: FeaturePlan, value_type: Type | None, window: ViewWindow, t_us: int, counted: Counted) -> Value:
    """Return the feature's value, as Polars would give it."""
    if feature.by < 0:
        return _one(feature, value_type, window, t_us, counted)
    if not counted.keys:
        return None
    frequency = Counter(counted.keys)
    ranked = sorted((key for key in frequency if key != OTHER), key=lambda key: (-frequency[key], key.encode()))
    own = ranked[: feature.parameters["keys"]]
    parts = {key: counted.of(lambda one, key=key: one == key) for key in own}  # type: ignore[misc]
    if len(own) < len(frequency):
        parts[OTHER] = counted.of(lambda one: one not in own)
    return [{"key": key, "value": _one(feature, value_type, window, t_us, part)} for key, part in parts.items()]


def _one(feature: FeaturePlan, value_type: Type | None, window: ViewWindow, t_us: int, counted: Counted) -> Value:
    name, parameters = feature.function, feature.parameters
    effectives, values = counted.effectives, counted.values
    if name == "count":
        return len(effectives)
    if name in {"decayed_count", "decayed_sum"}:
        return _decayed(counted, value_type, window, t_us, parameters["half_life_hops"])
    if name in {"first_time", "last_time"}:
        return instant((min if name == "first_time" else max)(effectives)) if effectives else None
    assert value_type is not None
    if name == "sum":
        return _sum(values, value_type)
    if name == "count_distinct":
        return len(set(values))
    if name == "approx_count_distinct":
        return estimate(
            registers((hashed(value, value_type) for value in values), parameters["bits"]), parameters["bits"]
        )
    if not values:
        return None
    match name:
        case "mean":
            return float(Fraction(sum(_units(values, value_type)), _per_one(value_type) * len(values)))
        case "var" | "std":
            return _spread(values, value_type, parameters["ddof"], root=name == "std")
        case "min":
            return min(values, key=_order)  # type: ignore[no-any-return]
        case "max":
            return max(values, key=_order)  # type: ignore[no-any-return]
        case "first":
            return _in_time(counted)[0]  # type: ignore[no-any-return]
        case "last":
            return _in_time(counted)[-1]  # type: ignore[no-any-return]
        case "first_n":
            return _in_time(counted)[: parameters["n"]]
        case "last_n":
            return _in_time(counted)[::-1][: parameters["n"]]
        case "mode":
            return _most_frequent(values)[0]  # type: ignore[no-any-return]
        case "top_k":
            return _most_frequent(values)[: parameters["n"]]
        case "histogram":
            return _histogram(values, value_type, parameters)
        case "quantile":
            return _quantile(values, value_type, parameters)
    raise AssertionError(name)


def _order(value: Any) -> Any:
    """Return the sort key of a value: text compares by its UTF-8 bytes."""
    return value.encode() if isinstance(value, str) else value


def _in_time(counted: Counted) -> list[Any]:
    """Return values from the earliest to the latest; the sort is stable, so the order of arrival breaks every tie."""
    places = sorted(range(len(counted.values)), key=counted.effectives.__getitem__)
    return [counted.values[place] for place in places]


def _most_frequent(values: list[Any]) -> list[Any]:
    """Return the distinct values, most frequent first; equally frequent values in ascending order."""
    frequency = Counter(values)
    return sorted(frequency, key=lambda value: (-frequency[value], _order(value)))


def _units(values: list[Any], value_type: Type) -> list[int]:
    """Return values as whole units: a decimal's last digit, or for floats 2^-64, rounded to nearest, ties to even."""
    if value_type.is_decimal:
        return [int(value.scaleb(value_type.scale)) for value in values]
    if value_type.scalar == "float64":
        # Scaling by a power of two is exact below 2^62, and Python rounds a float to an int half-even.
        return [round(math.ldexp(value, RESOLUTION_BITS)) for value in values]
    return [int(value) for value in values]


def _per_one(value_type: Type) -> int:
    return 1 << RESOLUTION_BITS if value_type.scalar == "float64" else 10**value_type.scale


def _sum(values: list[Any], value_type: Type) -> Value:
    total = sum(_units(values, value_type))
    if value_type.scalar == "float64":
        return total / _per_one(value_type)  # int / int is rounded once, correctly
    total = max(INT64_MIN, min(INT64_MAX, total))
    return Decimal(total).scaleb(-value_type.scale) if value_type.is_decimal else total


def _spread(values: list[Any], value_type: Type, ddof: int, *, root: bool) -> float | None:
    n_values, units = len(values), _units(values, value_type)
    if n_values <= ddof:
        return None
    squares, total = sum(unit * unit for unit in units), sum(units)
    per_one = _per_one(value_type)
    variance = float(
        Fraction(n_values * squares - total * total, per_one * per_one * n_values * (n_values - ddof))
    )  # rounded once
    return math.sqrt(variance) if root else variance


def _as_float(value: Any, value_type: Type) -> float:
    if value_type.is_decimal:
        return float(int(value.scaleb(value_type.scale))) / 10.0**value_type.scale
    return float(value)


def _histogram(values: list[Any], value_type: Type, parameters: Parameters) -> list[int]:
    counts = [0] * (len(parameters["edges"]) + 1)
    for value in values:
        counts[sum(edge <= _as_float(value, value_type) for edge in parameters["edges"])] += 1
    return counts


def _quantile(values: list[Any], value_type: Type, parameters: Parameters) -> float:
    """Return the middle of the bin with the value of the rank; floats in a bin share ``bits`` bits of mantissa."""
    dropped = _MANTISSA_BITS - parameters["bits"]
    bins = []
    for value in values:
        number = _as_float(value, value_type)
        (pattern,) = struct.unpack("<Q", struct.pack("<d", abs(number)))
        bins.append((pattern >> dropped) * (-1 if number < 0 else 1))
    rank = max(1, math.ceil(parameters["q"] * len(values)))
    found = sorted(bins)[rank - 1]
    if found == 0:
        return 0.0
    (middle,) = struct.unpack("<d", struct.pack("<Q", (abs(found) << dropped) + (1 << (dropped - 1))))
    return float(math.copysign(middle, found))


def _decayed(counted: Counted, value_type: Type | None, window: ViewWindow, t_us: int, half_life_hops: int) -> float:
    by_hop: dict[int, list[int]] = {}
    units = [1] * len(counted.effectives) if value_type is None else _units(counted.values, value_type)
    for effective, unit in zip(counted.effectives, units, strict=True):
        by_hop.setdefault(effective // window.hop_us, []).append(unit)
    # Floats are in units of 2^-64; the decimal point of decimals is applied at the end.
    per_one = _per_one(FLOAT64) if value_type == FLOAT64 else 1
    total = 0.0
    for hop in sorted(by_hop):
        total += sum(by_hop[hop]) / per_one * weight(t_us // window.hop_us - hop, half_life_hops)
    return total if value_type is None else total / 10.0**value_type.scale


@lru_cache(maxsize=65536)
def weight(age_hops: int, half_life_hops: int) -> float:
    """Return ``2 ** (-age / half life)``, correctly rounded."""
    exponent = _SIXTY_DIGITS.divide(Decimal(-age_hops), Decimal(half_life_hops))
    return float(_SIXTY_DIGITS.power(Decimal(2), exponent))


def hashed(value: Any, value_type: Type) -> int:
    """Return 64 bits: FNV-1a of a text's UTF-8 or a number's 8 little-endian bytes, then MurmurHash3's finaliser."""
    if value_type.scalar == "string":
        data = value.encode()
    elif value_type.scalar == "float64":
        data = struct.pack("<d", value)
    elif isinstance(value, dt.datetime):
        data = struct.pack("<q", micros(value))
    else:
        (unit,) = _units([value], value_type)
        data = struct.pack("<q", unit)
    found = 0xCBF29CE484222325
    for byte in data:
        found = (found ^ byte) * 0x100000001B3 % 2**64
    found ^= found >> 33
    found = found * 0xFF51AFD7ED558CCD % 2**64
    found ^= found >> 33
    found = found * 0xC4CEB9FE1A85EC53 % 2**64
    return found ^ found >> 33


def registers(hashes: Iterable[int], bits: int) -> list[int]:
    """Return HyperLogLog's registers: per prefix of ``bits`` bits, one plus the most zeros after it; 0 if unseen."""
    found = [0] * 2**bits
    for one in hashes:
        rest = f"{one:064b}"[bits:]
        zeros = len(rest) - len(rest.lstrip("0"))
        register = one >> (64 - bits)
        found[register] = max(found[register], zeros + 1)
    return found


def estimate(found: list[int], bits: int) -> int:
    """Estimate the number of distinct hashes: O. Ertl, 2017, algorithm 6, https://arxiv.org/abs/1702.01284."""
    longest, n_registers = 64 - bits, float(2**bits)
    histogram = Counter(found)
    z = n_registers * _tau(1.0 - histogram[longest + 1] / n_registers)
    for k in range(longest, 0, -1):
        z = 0.5 * (z + histogram[k])
    z += n_registers * _sigma(histogram[0] / n_registers)
    alpha = 0.7213475204444817  # 1 / (2 ln 2)
    return math.floor(alpha * n_registers * n_registers / z + 0.5)


def _tau(x: float) -> float:
    if x in {0.0, 1.0}:
        return 0.0
    y, z, before = 1.0, 1.0 - x, math.nan
    while z != before:
        x = math.sqrt(x)
        before = z
        y *= 0.5
        z -= (1.0 - x) * (1.0 - x) * y
    return z / 3.0


def _sigma(x: float) -> float:
    if x == 1.0:
        return math.inf
    y, z, before = 1.0, x, math.nan
    while z != before:
        x *= x
        before = z
        z += x * y
        y += y
    return z
