"""The aggregations: their values, parameters and results."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from typing import Literal

from unskew.features.definitions.agg import Aggregation
from unskew.features.errors import DefinitionError
from unskew.features.time import duration_us, format_duration
from unskew.features.types import FLOAT64, INT64, Type
from unskew.features.view import AggregationName, Parameters, Scalar, ViewWindow

MAX_ITEMS = 128
"""The most items of a list, counts of a histogram or keys of a map: rows of values have a fixed width in the kernel."""
MAX_HALF_LIVES = 1000
MAX_HALF_LIFE_HOPS = 100_000
DEFAULT_KEYS = 16

LEAST_QUANTILE_ERROR, MOST_QUANTILE_ERROR = 2.0**-13, 0.5
LEAST_BITS, MOST_BITS = 4, 16
_REGISTERS_ERROR = 1.04


@dataclass(frozen=True)
class Rule:
    """The rules of one aggregation.

    ``value``: true if it needs a value, false if it takes none, None if a value is optional. ``numbers``: true if its
    values must be numbers. ``parameters``: the parameters that it takes. ``result``: a type, or ``value`` for the type
    of the value, ``values`` for a list of it, ``total`` for the type of its sum. ``zero``: true if it is 0 on an empty
    window.
    """

    value: bool | None
    numbers: bool
    parameters: tuple[str, ...]
    result: Type | Literal["value", "values", "total"]
    zero: bool = False


RULES: Mapping[AggregationName, Rule] = {
    "count": Rule(None, False, ("by", "keys"), INT64, zero=True),
    "sum": Rule(True, True, ("by", "keys"), "total", zero=True),
    "mean": Rule(True, True, ("by", "keys"), FLOAT64),
    "var": Rule(True, True, ("ddof",), FLOAT64),
    "std": Rule(True, True, ("ddof",), FLOAT64),
    "min": Rule(True, False, (), "value"),
    "max": Rule(True, False, (), "value"),
    "first": Rule(True, False, (), "value"),
    "last": Rule(True, False, (), "value"),
    "first_n": Rule(True, False, ("n",), "values"),
    "last_n": Rule(True, False, ("n",), "values"),
    "first_time": Rule(False, False, (), Type("timestamp")),
    "last_time": Rule(False, False, (), Type("timestamp")),
    "count_distinct": Rule(True, False, (), INT64, zero=True),
    "approx_count_distinct": Rule(True, False, ("error",), INT64, zero=True),
    "mode": Rule(True, False, (), "value"),
    "top_k": Rule(True, False, ("n",), "values"),
    "histogram": Rule(True, True, ("edges",), INT64.in_a("list")),
    "quantile": Rule(True, True, ("q", "error"), FLOAT64),
    "decayed_count": Rule(False, False, ("half_life",), FLOAT64, zero=True),
    "decayed_sum": Rule(True, True, ("half_life",), FLOAT64, zero=True),
}
PARAMETERS = ("by", "keys", "n", "ddof", "q", "error", "edges", "half_life")


def result_type(aggregation: Aggregation, value: Type | None) -> Type:
    """Return the type of the result for a value of type ``value``."""
    result = RULES[aggregation.function].result
    value = value or INT64
    match result:
        case "value":
            result = value
        case "values":
            result = value.in_a("list")
        case "total":
            result = value if value == FLOAT64 or value.is_decimal else INT64
    return result if aggregation.by is None else result.in_a("map")


def empty_value(aggregation: Aggregation, dtype: Type) -> Scalar | None:
    """Return the value on an empty window: 0 for counts and sums, otherwise None."""
    if not RULES[aggregation.function].zero or aggregation.by is not None:
        return None
    if dtype.is_decimal:
        return Decimal((0, (0,), -dtype.scale))
    return 0.0 if dtype == FLOAT64 else 0


def parameters_of(aggregation: Aggregation, window: ViewWindow | None) -> Parameters:
    """Check the parameters of an aggregation and return them.

    Raises ``DefinitionError`` with all faults, each half a sentence.
    """
    function = aggregation.function
    rule = RULES[function]
    faults = [
        f"{function} does not take {word}; leave it out"
        for word in PARAMETERS
        if word not in rule.parameters and getattr(aggregation, word) is not None
    ]
    found: Parameters = {}
    for word in rule.parameters:
        try:
            found.update(_CHECKS[word](aggregation, window))
        except DefinitionError as error:
            faults += error.faults
    if faults:
        raise DefinitionError(faults)
    return found


def _whole(given: object, word: str, least: int, most: int, example: str) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or not least <= given <= most:
        raise DefinitionError(
            f"{word}={given!r} is not a whole number between {least} and {most}; write for example {example}"
        )
    return given


def _number(given: object, word: str, least: float, most: float, example: str) -> float:
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not least <= given <= most:
        raise DefinitionError(
            f"{word}={given!r} is not a number between {least} and {most}; write for example {example}"
        )
    return float(given)


def _n(aggregation: Aggregation, _window: ViewWindow | None) -> Parameters:
    return {"n": _whole(aggregation.n, "n", 1, MAX_ITEMS, "n=5")}


def _ddof(aggregation: Aggregation, _window: ViewWindow | None) -> Parameters:
    return {"ddof": 1 if aggregation.ddof is None else _whole(aggregation.ddof, "ddof", 0, 1_000, "ddof=1")}


def _q(aggregation: Aggregation, _window: ViewWindow | None) -> Parameters:
    return {"q": _number(aggregation.q, "q", 0, 1, "q=0.95")}


def _error(aggregation: Aggregation, _window: ViewWindow | None) -> Parameters:
    if aggregation.function == "quantile":
        given = 0.01 if aggregation.error is None else aggregation.error
        error = _number(given, "error", LEAST_QUANTILE_ERROR, MOST_QUANTILE_ERROR, "error=0.01")
        # Half the width of a bin is 2**-(bits + 1) of its least value.
        return {"bits": max(0, math.ceil(-math.log2(error)) - 1)}
    given = 0.02 if aggregation.error is None else aggregation.error
    least, most = (_REGISTERS_ERROR / math.sqrt(2**bits) for bits in (MOST_BITS, LEAST_BITS))
    error = _number(given, "error", math.ceil(least * 1e4) / 1e4, most, "error=0.02")
    return {"bits": next(b for b in range(LEAST_BITS, MOST_BITS + 1) if _REGISTERS_ERROR / math.sqrt(2**b) <= error)}


def error_of(function: AggregationName, bits: int) -> float:
    """Return an error for which ``parameters_of`` gives so many bits."""
    if function == "quantile":
        return min(max(2.0 ** -(bits + 1), LEAST_QUANTILE_ERROR), MOST_QUANTILE_ERROR)
    least = math.ceil(_REGISTERS_ERROR / math.sqrt(2**MOST_BITS) * 1e4) / 1e4
    return max(_REGISTERS_ERROR / math.sqrt(2**bits), least)


def _edges(aggregation: Aggregation, _window: ViewWindow | None) -> Parameters:
    edges = _floats(aggregation.edges)
    if (
        not 0 < len(edges) < MAX_ITEMS
        or not all(map(math.isfinite, edges))
        # Compared as floats, because different whole numbers beyond 2**53 may be the same float.
        or not all(one < other for one, other in pairwise(edges))
    ):
        raise DefinitionError(
            f"edges={aggregation.edges!r} is not a list of 1 to {MAX_ITEMS - 1} ascending numbers; write for example "
            "edges=[0, 10, 100]"
        )
    return {"edges": edges}


def _floats(given: object) -> tuple[float, ...]:
    """Return the numbers of a list; an empty tuple if it is not a list or holds anything else."""
    if not isinstance(given, (list, tuple)):
        return ()
    if not all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in given):
        return ()
    try:
        # -0.0 is the same edge as 0.0.
        return tuple(float(each) + 0.0 for each in given)
    except OverflowError:
        return ()


def _half_life(aggregation: Aggregation, window: ViewWindow | None) -> Parameters:
    if aggregation.half_life is None:
        raise DefinitionError(f"{aggregation.function} has no half_life; give it one, for example half_life='7d'")
    half_life_us = duration_us(aggregation.half_life)
    if window is None:
        return {}
    if window.kind != "sliding":
        raise DefinitionError(
            f"{aggregation.function} is over {window.text}; a decayed aggregation needs a Sliding window, because ages "
            "are counted in hops"
        )
    hops, rest = divmod(half_life_us, window.hop_us)
    if rest or hops < 1:
        raise DefinitionError(
            f"half_life {format_duration(half_life_us)} is not a multiple of the window's hop {format_duration(window.hop_us)}; "
            f"choose a multiple, for example {format_duration(max(1, hops) * window.hop_us)}, or another hop"
        )
    if hops > MAX_HALF_LIFE_HOPS or window.extent_us > MAX_HALF_LIVES * half_life_us:
        raise DefinitionError(
            f"half_life {format_duration(half_life_us)} is {hops} hops, and the window is {window.extent_us / half_life_us:g} "
            f"half-lives long; at most {MAX_HALF_LIFE_HOPS} hops and {MAX_HALF_LIVES} half-lives are allowed, so choose a longer hop "
            "or another window"
        )
    return {"half_life_hops": hops}


def _keys(aggregation: Aggregation, _window: ViewWindow | None) -> Parameters:
    if aggregation.by is None:
        if aggregation.keys is not None:
            raise DefinitionError("keys limits the size of a map, but there is no by; give by, or leave keys out")
        return {}
    given = DEFAULT_KEYS if aggregation.keys is None else aggregation.keys
    return {"keys": _whole(given, "keys", 1, MAX_ITEMS // 2, "keys=16")}


_CHECKS: Mapping[str, Callable[[Aggregation, ViewWindow | None], Parameters]] = {
    "n": _n,
    "ddof": _ddof,
    "q": _q,
    "error": _error,
    "edges": _edges,
    "half_life": _half_life,
    "by": lambda _aggregation, _window: {},
    "keys": _keys,
}
