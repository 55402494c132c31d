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
_QUOTE, _BACKSLASH, _COMMA, _COLON, _A, _U = (_INT64(ord(character)) for character in '"\\,:au')
_OPEN, _CLOSE, _OPEN_MAP, _CLOSE_MAP = (_INT64(ord(character)) for character in "[]{}")
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
    '"other"',
    "true",
    "false",
    # What JSON has for the characters below 32 after a backslash; "u" stands for four hexadecimal digits.
    "uuuuuuuubtnufruuuuuuuuuuuuuuuuuu",
]
_HSET, _HDEL, _DEL, _PEXPIREAT, _MULTI, _EXEC, _PERSIST, _OTHER, _TRUE, _FALSE, _ESCAPES = range(len(_PIECES))
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

F_FEATURE, F_BEGIN, F_IS_MAP, F_KIND, F_SCALE = range(5)
"""Columns of the fields that are lists and maps: the feature; its first word among the other words of a row; 1 for a
map; what its values are; the scale of its decimals."""
OF_INTEGERS, OF_BOOLEANS, OF_FLOATS, OF_TEXTS, OF_DECIMALS = (_INT64(kind) for kind in range(5))
MOST_AROUND_AN_ITEM = 4 + 2 + MOST_OF_A_NUMBER + len("other")
_MOST_ADDED = 5
"""JSON has so many bytes more at most for a character of one byte."""


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
    return _line_end(out, _signed(out, at, number, value, n_digits, scale))


@inner()
def _signed(out: Array, at: int, number: int, value: Any, n_digits: int, scale: int) -> int:
    if number < 0:
        out[uint64(at)] = _MINUS
        at += 1
    if scale > 0:
        return _decimal(out, at, value, n_digits, scale)
    return _digits(out, at, value, n_digits)


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
    """Write rows in the kernel's words as ``write_rows`` takes them; of their values, numbers and texts.

    ``firsts`` [features, rows], ``words``: as in ``CurrentWords``. ``begins`` [rows]: as in ``ShownTexts``.
    ``sources``: as in ``write_rows``, those of features first, and those of the instants last; what lies between is
    left to the caller. The first text columns are those of ``floats``, which gets bits; then come those of texts, whose
    places ``shown`` gets, -1 where there is none; and those of lists and maps, which ``write_nested`` writes.
    ``booleans`` [features].
    """
    n_features, n_rows = firsts.shape
    n_floats, n_others = len(floats), len(floats) + len(shown)
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
            elif -1 - source < n_others:
                shown[-1 - source - n_floats, row] = -1 if is_missing else begins[row] + value
            missing[feature, row] = is_missing
    at = len(sources) - 2
    for row in range(n_rows):
        numbers[sources[at], row] = words[w.ROW_INSTANT, row]
        numbers[sources[at + 1], row] = words[w.ROW_UNTIL, row]
        missing[at, row] = False
        missing[at + 1, row] = words[w.ROW_UNTIL, row] == w.FOREVER
        gone[row] = words[w.ROW_EMPTY_AT, row] == w.NEVER


@compiled()
def look_into(
    fields: Array,
    present: Array,
    firsts: Array,
    others: Array,
    begins: Array,
    texts: Array,
    text_ends: Array,
    floats: Array,
) -> tuple[int, int]:
    """Write the bits of the floats in lists and maps to ``floats``; return how many there are.

    Return also how many bytes ``write_nested`` writes at most, apart from those of floats. ``fields``: columns
    ``F_...``; others as for ``write_nested``.
    """
    n_floats = n_bytes = 0
    for field in range(len(fields)):
        feature = fields[field, F_FEATURE]
        kind = fields[field, F_KIND]
        is_map = fields[field, F_IS_MAP]
        for row in range(len(present)):
            if present[row] >> feature & 1 == 0:
                continue
            n_bytes += 2 + firsts[feature, row] * MOST_AROUND_AN_ITEM
            word = fields[field, F_BEGIN]
            for _ in range(firsts[feature, row]):
                if is_map:
                    if others[row, word] != w.OTHER_KEY:
                        n_bytes += _n_escaped(texts, text_ends, begins[row] + others[row, word])
                    word += 1
                if kind == OF_FLOATS:
                    floats[n_floats] = others[row, word]
                    n_floats += 1
                elif kind == OF_TEXTS:
                    n_bytes += _n_escaped(texts, text_ends, begins[row] + others[row, word])
                word += 1
    return n_floats, n_bytes


@inner()
def _n_escaped(texts: Array, text_ends: Array, place: int) -> int:
    """Return how many bytes a text has at most between the quotes of JSON."""
    n_bytes: int = text_ends[place + 1] - text_ends[place]
    for index in range(text_ends[place], text_ends[place + 1]):
        byte = texts[uint64(index)]
        if byte < 32:
            n_bytes += _MOST_ADDED
        elif byte in (_QUOTE, _BACKSLASH):
            n_bytes += 1
    return n_bytes


@compiled()
def write_nested(
    out: Array,
    pieces: Array,
    piece_ends: Array,
    fields: Array,
    present: Array,
    firsts: Array,
    others: Array,
    begins: Array,
    texts: Array,
    text_ends: Array,
    floats: Array,
    float_ends: Array,
    ends: Array,
) -> None:
    """Write the JSON of lists and maps to ``out``, which is large enough, and their ends to ``ends``.

    ``ends`` [fields * rows + 1]: field by field; what is not present is empty. ``firsts``, ``others``: as in ``Rows``.
    ``begins`` [rows], ``texts``, ``text_ends``: as in ``ShownTexts``. ``floats``, ``float_ends``: the texts of those
    that ``look_into`` found.
    """
    at = _NONE
    n_floats = 0
    escapes = piece_ends[_ESCAPES]
    ends[0] = 0
    for field in range(len(fields)):
        feature = fields[field, F_FEATURE]
        is_map = fields[field, F_IS_MAP] != 0
        kind = fields[field, F_KIND]
        for row in range(len(present)):
            if present[row] >> feature & 1:
                word = fields[field, F_BEGIN]
                out[uint64(at)] = _OPEN_MAP if is_map else _OPEN
                at += 1
                for item in range(firsts[feature, row]):
                    if item > 0:
                        out[uint64(at)] = _COMMA
                        at += 1
                    if is_map:
                        if others[row, word] == w.OTHER_KEY:
                            at = _copy(out, at, pieces, piece_ends[_OTHER], piece_ends[_OTHER + 1])
                        else:
                            at = _quoted(out, at, texts, text_ends, begins[row] + others[row, word], pieces, escapes)
                        out[uint64(at)] = _COLON
                        at += 1
                        word += 1
                    value = others[row, word]
                    word += 1
                    if kind == OF_FLOATS:
                        at = _copy(out, at, floats, float_ends[n_floats], float_ends[n_floats + 1])
                        n_floats += 1
                    elif kind == OF_TEXTS:
                        at = _quoted(out, at, texts, text_ends, begins[row] + value, pieces, escapes)
                    elif kind == OF_BOOLEANS:
                        piece = _TRUE if value != 0 else _FALSE
                        at = _copy(out, at, pieces, piece_ends[piece], piece_ends[piece + 1])
                    elif kind == OF_DECIMALS:
                        out[uint64(at)] = _QUOTE
                        at = _json_number(out, at + 1, value, fields[field, F_SCALE])
                        out[uint64(at)] = _QUOTE
                        at += 1
                    else:
                        at = _json_number(out, at, value, _NONE)
                out[uint64(at)] = _CLOSE_MAP if is_map else _CLOSE
                at += 1
            ends[field * len(present) + row + 1] = at


@inner()
def _json_number(out: Array, at: int, number: int, scale: int) -> int:
    value = uint64(-(number + 1)) + uint64(1) if number < 0 else uint64(number)
    return _signed(out, at, number, value, max(_n_digits(value), scale + 1), scale)


@inner()
def _quoted(out: Array, at: int, texts: Array, text_ends: Array, place: int, pieces: Array, escapes: int) -> int:
    """Write a text as JSON; only what JSON does not allow as it is is escaped."""
    out[uint64(at)] = _QUOTE
    at += 1
    for index in range(text_ends[place], text_ends[place + 1]):
        byte = texts[uint64(index)]
        if byte >= 32 and byte not in (_QUOTE, _BACKSLASH):
            out[uint64(at)] = byte
            at += 1
            continue
        out[uint64(at)] = _BACKSLASH
        escape = pieces[escapes + byte] if byte < 32 else byte
        out[uint64(at + 1)] = escape
        at += 2
        if byte < 32 and escape == _U:
            low = byte & 15
            out[uint64(at)] = _ZERO
            out[uint64(at + 1)] = _ZERO
            out[uint64(at + 2)] = _ZERO + (byte >> 4)
            out[uint64(at + 3)] = _ZERO + low if low < 10 else _A + low - 10
            at += 4
    out[uint64(at)] = _QUOTE
    return at + 1
