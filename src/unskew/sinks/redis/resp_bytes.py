"""The compiled half of ``resp``: write commands of the Redis protocol row by row into one buffer."""

from typing import Any

import numpy as np
from numba import uint64

from unskew.features.jit import compiled, inner
from unskew.features.kernel import words as w

Array = Any
"""A numpy array; numba infers the element types."""

_INT64: Any = np.int64
# Numbers of one type, because numba compiles a function again for each plain constant that is passed to it.
_CR, _LF, _STAR, _DOLLAR, _MINUS, _POINT, _ZERO = (_INT64(ord(character)) for character in "\r\n*$-.0")
_NONE, _TWO, _THREE = _INT64(0), _INT64(2), _INT64(3)
# The bits of a float64 without its sign, and those of an infinity.
_MAGNITUDE, _INFINITY = _INT64(2**63 - 1), _INT64(0x7FF << 52)

_PIECES = [
    "$4\r\nHSET\r\n",
    "$4\r\nHDEL\r\n",
    "$3\r\nDEL\r\n",
    "$9\r\nPEXPIREAT\r\n",
    "*1\r\n$5\r\nMULTI\r\n",
    "*1\r\n$4\r\nEXEC\r\n",
    "$7\r\nPERSIST\r\n",
]
_HSET, _HDEL, _DEL, _PEXPIREAT, _MULTI, _EXEC, _PERSIST = range(len(_PIECES))
PIECES = "".join(_PIECES).encode()
PIECE_ENDS = [len("".join(_PIECES[:n])) for n in range(len(_PIECES) + 1)]
"""The fixed pieces of commands, end to end, and the end of each."""

MOST_DIGITS = 20
"""The length of the longest decimal text of an int64, sign included."""
MOST_OF_A_NUMBER = MOST_DIGITS + 1
"""The same with the point of a decimal; its scale, at most 18, leaves a digit before the point."""
MOST_AROUND_AN_ARGUMENT = 1 + MOST_DIGITS + 2 + 2
# Three arrays, their keys, and an instant.
MOST_AROUND_A_ROW = len(PIECES) + 7 * MOST_AROUND_AN_ARGUMENT + MOST_DIGITS
"""The most bytes of a row's commands apart from its key, its field names and its values."""


@compiled()
def write_rows(
    out: Array,
    pieces: Array,
    piece_ends: Array,
    around_key: Array,
    n_before_key: int,
    names: Array,
    name_ends: Array,
    sources: Array,
    scales: Array,
    keys: Array,
    key_ends: Array,
    texts: Array,
    text_ends: Array,
    numbers: Array,
    missing: Array,
    gone: Array,
    expires_ms: Array,
) -> tuple[int, int]:
    """Write the commands of all rows to ``out``, which is large enough; return the numbers of bytes and of replies.

    ``names``: each field's name as an argument, ends in ``name_ends`` [fields + 1]. ``sources`` [fields]: the row of
    ``numbers`` [.., rows] that holds the field, or -1 - the number of its text column; ``texts`` holds the text columns
    end to end, each row's end in ``text_ends`` [columns * rows + 1]. ``scales`` [fields]: of a number, how many of its
    digits come after a point. ``keys``: those of the rows, ends in ``key_ends`` [rows + 1]. ``missing`` [fields, rows].
    ``expires_ms`` [rows]: when the key expires; 0 to leave its expiry as it is, -1 to remove it.
    """
    n_rows = len(gone)
    n_fields = len(sources)
    at = _NONE
    n_replies = 0
    for row in range(n_rows):
        key_start = key_ends[row]
        key_stop = key_ends[row + 1]
        if gone[row]:
            at = _array(out, at, _TWO)
            at = _copy(out, at, pieces, piece_ends[_DEL], piece_ends[_DEL + 1])
            at = _key(out, at, around_key, n_before_key, keys, key_start, key_stop)
            n_replies += 1
            continue
        n_missing = 0
        for field in range(n_fields):
            n_missing += missing[field, row]
        if n_missing:
            at = _copy(out, at, pieces, piece_ends[_MULTI], piece_ends[_MULTI + 1])
        at = _array(out, at, 2 + 2 * (n_fields - n_missing))
        at = _copy(out, at, pieces, piece_ends[_HSET], piece_ends[_HSET + 1])
        at = _key(out, at, around_key, n_before_key, keys, key_start, key_stop)
        for field in range(n_fields):
            if missing[field, row]:
                continue
            at = _copy(out, at, names, name_ends[field], name_ends[field + 1])
            source = sources[field]
            if source >= 0:
                at = _number(out, at, numbers[source, row], scales[field])
            else:
                place = (-1 - source) * n_rows + row
                start = text_ends[place]
                stop = text_ends[place + 1]
                at = _length(out, at, stop - start)
                at = _copy(out, at, texts, start, stop)
                at = _line_end(out, at)
        n_replies += 1
        if n_missing:
            at = _array(out, at, 2 + n_missing)
            at = _copy(out, at, pieces, piece_ends[_HDEL], piece_ends[_HDEL + 1])
            at = _key(out, at, around_key, n_before_key, keys, key_start, key_stop)
            for field in range(n_fields):
                if missing[field, row]:
                    at = _copy(out, at, names, name_ends[field], name_ends[field + 1])
            at = _copy(out, at, pieces, piece_ends[_EXEC], piece_ends[_EXEC + 1])
            # One of the four commands is counted above.
            n_replies += 3
        if expires_ms[row] < 0:
            at = _array(out, at, _TWO)
            at = _copy(out, at, pieces, piece_ends[_PERSIST], piece_ends[_PERSIST + 1])
            at = _key(out, at, around_key, n_before_key, keys, key_start, key_stop)
            n_replies += 1
        elif expires_ms[row]:
            at = _array(out, at, _THREE)
            at = _copy(out, at, pieces, piece_ends[_PEXPIREAT], piece_ends[_PEXPIREAT + 1])
            at = _key(out, at, around_key, n_before_key, keys, key_start, key_stop)
            at = _number(out, at, expires_ms[row], _NONE)
            n_replies += 1
    return at, n_replies


@inner()
def _copy(out: Array, at: int, data: Array, start: int, stop: int) -> int:
    for index in range(stop - start):
        # With unsigned indices there is no test for negative ones, so the compiler copies whole words.
        out[uint64(at + index)] = data[uint64(start + index)]
    return at + stop - start


@inner()
def _line_end(out: Array, at: int) -> int:
    out[uint64(at)] = _CR
    out[uint64(at + 1)] = _LF
    return at + 2


@inner()
def _n_digits(value: Any) -> int:
    n = 1 if value < uint64(10) else 2
    # Two digits per step, because each step waits for the division of the previous one.
    while value >= uint64(100):
        value //= uint64(100)
        n += 1 if value < uint64(10) else 2
    return n


@inner()
def _digits(out: Array, at: int, value: Any, n_digits: int) -> int:
    end = at + n_digits
    place = end
    while place - at >= 2:
        pair = value % uint64(100)
        value //= uint64(100)
        out[uint64(place - 2)] = _ZERO + pair // uint64(10)
        out[uint64(place - 1)] = _ZERO + pair % uint64(10)
        place -= 2
    if place > at:
        out[uint64(at)] = _ZERO + value
    return end


@inner()
def _headed(out: Array, at: int, head: int, length: int) -> int:
    out[uint64(at)] = head
    value = uint64(length)
    return _line_end(out, _digits(out, at + 1, value, _n_digits(value)))


@inner()
def _array(out: Array, at: int, length: int) -> int:
    return _headed(out, at, _STAR, length)


@inner()
def _length(out: Array, at: int, length: int) -> int:
    return _headed(out, at, _DOLLAR, length)


@inner()
def _key(out: Array, at: int, around_key: Array, n_before_key: int, texts: Array, start: int, stop: int) -> int:
    at = _length(out, at, len(around_key) + stop - start)
    at = _copy(out, at, around_key, _NONE, n_before_key)
    at = _copy(out, at, texts, start, stop)
    at = _copy(out, at, around_key, n_before_key, len(around_key))
    return _line_end(out, at)


@inner()
def _number(out: Array, at: int, number: int, scale: int) -> int:
    """Write an int64 as an argument in decimal, of which ``scale`` digits come after a point."""
    negative = number < 0
    # The smallest int64 has no positive counterpart.
    value = uint64(-(number + 1)) + uint64(1) if negative else uint64(number)
    n_digits = max(_n_digits(value), scale + 1)
    at = _length(out, at, n_digits + negative + (scale > 0))
    if negative:
        out[uint64(at)] = _MINUS
        at += 1
    if scale > 0:
        return _line_end(out, _decimal(out, at, value, n_digits, scale))
    return _line_end(out, _digits(out, at, value, n_digits))


@inner()
def _decimal(out: Array, at: int, value: Any, n_digits: int, scale: int) -> int:
    end = at + n_digits + 1
    place = end
    for digit in range(n_digits):
        if digit == scale:
            place -= 1
            out[uint64(place)] = _POINT
        place -= 1
        out[uint64(place)] = _ZERO + value % uint64(10)
        value //= uint64(10)
    return end


@compiled()
def take_values(
    firsts: Array,
    words: Array,
    begins: Array,
    sources: Array,
    booleans: Array,
    numbers: Array,
    floats: Array,
    shown: Array,
    missing: Array,
    gone: Array,
) -> None:
    """Write rows in the kernel's words as ``write_rows`` takes them; their values are all numbers and texts.

    ``firsts`` [features, rows], ``words``: as in ``CurrentWords``. ``begins`` [rows]: as in ``ShownTexts``.
    ``sources``: as in ``write_rows``, and two more at the end, of the instants. The first text columns are those of
    ``floats``, which gets bits; those after it are of texts, whose places ``shown`` gets, -1 where there is none.
    ``booleans`` [features].
    """
    n_features, n_rows = firsts.shape
    n_floats = len(floats)
    for feature in range(n_features):
        source = sources[feature]
        for row in range(n_rows):
            value = firsts[feature, row]
            is_missing = words[w.ROW_PRESENT, row] >> feature & 1 == 0
            if source >= 0:
                numbers[source, row] = value != 0 if booleans[feature] else value
            elif -1 - source < n_floats:
                floats[-1 - source, row] = value
                # No stored value is NaN, so each NaN stands for a null; its text is never read.
                is_missing |= value & _MAGNITUDE > _INFINITY
            else:
                shown[-1 - source - n_floats, row] = -1 if is_missing else begins[row] + value
            missing[feature, row] = is_missing
    for row in range(n_rows):
        numbers[sources[n_features], row] = words[w.ROW_INSTANT, row]
        numbers[sources[n_features + 1], row] = words[w.ROW_UNTIL, row]
        missing[n_features, row] = False
        missing[n_features + 1, row] = words[w.ROW_UNTIL, row] == w.FOREVER
        gone[row] = words[w.ROW_EMPTY_AT, row] == w.NEVER
