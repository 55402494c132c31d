"""JSON messages as bytes: a compiled check of each message, and one buffer of lines for all that pass it.

Polars reads JSON lines in bulk, but is easy-going: it takes a text for a number, the first of two equal keys, and one bad
line spoils all. So each message is walked first. What passes is one JSON object, whole and valid, whose keys that are read
are there as they should be and of their types; anything that only may be wrong (an escaped key, a very long number) is
left to another reader.
"""

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.features.definitions.json_schema import JsonField
from unskew.pipelines.decoding.avro_walk import FRAME_BYTES, is_utf8, joined, walking

_KINDS = {"integer": 0, "number": 1, "string": 2, "boolean": 3}
_INTEGER, _NUMBER, _STRING, _BOOLEAN, _NULL, _NESTED = range(6)
RAW = {"integer": pl.Int64(), "number": pl.Float64(), "string": pl.String(), "boolean": pl.Boolean()}
_DEEPEST = 64
# More digits than this may not fit an int64, or are not read exactly everywhere.
_MOST_DIGITS = 18


class JsonWire:
    """How messages of one schema lie on the wire. ``shape``: the columns that ``read`` gives, as the texts and numbers there."""

    def __init__(self, fields: Sequence[JsonField]) -> None:
        self.shape = {field.name: RAW[field.kind] for field in fields}
        # A key that JSON must write with an escape is never found as it is.
        names = [field.name.encode() for field in fields]
        self._ends = np.cumsum([0, *map(len, names)])
        self._names = np.frombuffer(b"".join(names), np.uint8)
        self._kinds = np.array([_KINDS[field.kind] for field in fields], np.int64)
        self._nullable = np.array([field.nullable for field in fields], np.bool_)
        self._required = np.array([field.required for field in fields], np.bool_)

    def read(self, values: Sequence[bytes]) -> tuple[npt.NDArray[np.bool_], pl.DataFrame]:
        """Which messages pass the check, and the columns of those.

        Raises ``ValueError`` where rows are not those of the messages, and whatever Polars raises.
        """
        lengths, data = joined(values)
        passed = np.zeros(len(values), np.bool_)
        lines = np.empty(len(data) + len(values), np.uint8)
        size = _check(
            data,
            lengths,
            self._names,
            self._ends,
            self._kinds,
            self._nullable,
            self._required,
            np.full(len(self._kinds), -1, np.int64),
            np.empty(_DEEPEST, np.uint8),
            passed,
            lines,
        )
        if not passed.any():
            return passed, pl.DataFrame(schema=self.shape)
        frame = pl.read_ndjson(io.BytesIO(lines[:size].tobytes()), schema=self.shape)
        if frame.height != np.count_nonzero(passed):
            raise ValueError("the rows are not those of the messages")
        return passed, frame


@walking
def _check(
    data: npt.NDArray[np.uint8],
    lengths: npt.NDArray[np.int64],
    names: npt.NDArray[np.uint8],
    ends: npt.NDArray[np.int64],
    kinds: npt.NDArray[np.int64],
    nullable: npt.NDArray[np.bool_],
    required: npt.NDArray[np.bool_],
    seen: npt.NDArray[np.int64],
    stack: npt.NDArray[np.uint8],
    passed: npt.NDArray[np.bool_],
    lines: npt.NDArray[np.uint8],
) -> int:
    """Check messages and copy those that pass, each as a line; give how many bytes were copied.

    ``seen``: room for the last row in which each field was found, -1 at first. ``stack``: room for what a value stands in.
    """
    size = 0
    end = 0
    for row in range(len(lengths)):
        begin = end
        end = begin + lengths[row]
        if lengths[row] > FRAME_BYTES and data[begin] == 0:
            begin += FRAME_BYTES
        if not _object(data, begin, end, names, ends, kinds, nullable, seen, row, stack):
            continue
        passed[row] = True
        for field in range(len(kinds)):
            if required[field] and seen[field] != row:
                passed[row] = False
        if not passed[row]:
            continue
        for at in range(begin, end):
            # A line's end can only stand between tokens: strings cannot hold one as it is.
            octet = data[at]
            lines[size] = 0x20 if octet == 0x0A or octet == 0x0D else octet  # noqa: PLR1714 - compiled as it stands
            size += 1
        lines[size] = 0x0A
        size += 1
    return size


@walking
def _object(
    data: npt.NDArray[np.uint8],
    at: int,
    end: int,
    names: npt.NDArray[np.uint8],
    ends: npt.NDArray[np.int64],
    kinds: npt.NDArray[np.int64],
    nullable: npt.NDArray[np.bool_],
    seen: npt.NDArray[np.int64],
    row: int,
    stack: npt.NDArray[np.uint8],
) -> bool:
    """Whether a message is an object whose keys that are read come once each, with values of their types."""
    at = _gap(data, at, end)
    if at >= end or data[at] != 0x7B:
        return False
    at = _gap(data, at + 1, end)
    if at < end and data[at] == 0x7D:
        return _gap(data, at + 1, end) == end
    following = 0
    while True:
        begin = at + 1
        if at >= end or data[at] != 0x22:
            return False
        at, escaped = _string(data, at, end)
        if at < 0 or escaped:
            return False
        field = _field(data, begin, at - 1, names, ends, following)
        at = _gap(data, at, end)
        if at >= end or data[at] != 0x3A:
            return False
        at = _gap(data, at + 1, end)
        at, kind = _value(data, at, end, stack)
        if at < 0:
            return False
        if field >= 0:
            following = field + 1
            if seen[field] == row:
                return False
            seen[field] = row
            wanted = kinds[field]
            if kind == _NULL:
                if not nullable[field]:
                    return False
            elif kind != wanted and not (wanted == _NUMBER and kind == _INTEGER):
                return False
        at = _gap(data, at, end)
        if at >= end:
            return False
        if data[at] == 0x7D:
            return _gap(data, at + 1, end) == end
        if data[at] != 0x2C:
            return False
        at = _gap(data, at + 1, end)


@walking
def _field(
    data: npt.NDArray[np.uint8],
    begin: int,
    end: int,
    names: npt.NDArray[np.uint8],
    ends: npt.NDArray[np.int64],
    following: int,
) -> int:
    """Which field a key is, tried first with the one after the last found; -1 for none."""
    n_fields = len(ends) - 1
    for turn in range(n_fields):
        field = (following + turn) % n_fields
        first = ends[field]
        if ends[field + 1] - first != end - begin:
            continue
        equal = True
        for at in range(end - begin):
            if data[begin + at] != names[first + at]:
                equal = False
                break
        if equal:
            return field
    return -1


@walking
def _value(data: npt.NDArray[np.uint8], at: int, end: int, stack: npt.NDArray[np.uint8]) -> tuple[int, int]:
    """Where a value ends (-1 where it is not valid, or odd), and its kind."""
    if at >= end:
        return -1, _NULL
    if data[at] != 0x7B and data[at] != 0x5B:
        return _scalar(data, at, end)
    # Objects and arrays inside, whose contents nobody reads, walked by what may come next.
    depth = 0
    while True:
        # A value begins here.
        if at >= end:
            return -1, _NESTED
        octet = data[at]
        if octet == 0x7B or octet == 0x5B:  # noqa: PLR1714
            if depth == len(stack):
                return -1, _NESTED
            closing = 0x7D if octet == 0x7B else 0x5D
            at = _gap(data, at + 1, end)
            if at < end and data[at] == closing:
                at += 1
            else:
                stack[depth] = closing
                depth += 1
                if closing == 0x7D:
                    at = _key(data, at, end)
                    if at < 0:
                        return -1, _NESTED
                continue
        else:
            at, _ = _scalar(data, at, end)
            if at < 0:
                return -1, _NESTED
        # A value has ended.
        while True:
            if depth == 0:
                return at, _NESTED
            at = _gap(data, at, end)
            if at >= end:
                return -1, _NESTED
            if data[at] == stack[depth - 1]:
                depth -= 1
                at += 1
                continue
            if data[at] != 0x2C:
                return -1, _NESTED
            at = _gap(data, at + 1, end)
            if stack[depth - 1] == 0x7D:
                at = _key(data, at, end)
                if at < 0:
                    return -1, _NESTED
            break


@walking
def _key(data: npt.NDArray[np.uint8], at: int, end: int) -> int:
    """Where the value begins that follows a key."""
    if at >= end or data[at] != 0x22:
        return -1
    at, _ = _string(data, at, end)
    if at < 0:
        return -1
    at = _gap(data, at, end)
    return _gap(data, at + 1, end) if at < end and data[at] == 0x3A else -1


@walking
def _scalar(data: npt.NDArray[np.uint8], at: int, end: int) -> tuple[int, int]:
    octet = data[at]
    if octet == 0x22:
        after, _ = _string(data, at, end)
        return after, _STRING
    if octet == 0x74:
        return _word(data, at, end, b"true"), _BOOLEAN
    if octet == 0x66:
        return _word(data, at, end, b"false"), _BOOLEAN
    if octet == 0x6E:
        return _word(data, at, end, b"null"), _NULL
    return _number(data, at, end)


@walking
def _word(data: npt.NDArray[np.uint8], at: int, end: int, word: bytes) -> int:
    if end - at < len(word):
        return -1
    for place in range(len(word)):
        if data[at + place] != word[place]:
            return -1
    return at + len(word)


@walking
def _number(data: npt.NDArray[np.uint8], at: int, end: int) -> tuple[int, int]:
    negative = data[at] == 0x2D
    if negative:
        at += 1
    begin = at
    while at < end and 0x30 <= data[at] <= 0x39:
        at += 1
    n_digits = at - begin
    if n_digits == 0 or n_digits > _MOST_DIGITS or (data[begin] == 0x30 and n_digits > 1):
        return -1, _INTEGER
    # As a number with a fraction, minus nothing keeps its sign; as an integer it has none.
    if negative and data[begin] == 0x30 and n_digits == 1 and (at >= end or data[at] != 0x2E):
        return -1, _INTEGER
    if at >= end or (data[at] != 0x2E and data[at] | 0x20 != 0x65):
        return at, _INTEGER
    if data[at] == 0x2E:
        at += 1
        begin = at
        while at < end and 0x30 <= data[at] <= 0x39:
            at += 1
        if at == begin:
            return -1, _NUMBER
        n_digits += at - begin
    if n_digits > _MOST_DIGITS or (at < end and data[at] | 0x20 == 0x65):
        return -1, _NUMBER
    return at, _NUMBER


@walking
def _string(data: npt.NDArray[np.uint8], at: int, end: int) -> tuple[int, bool]:
    """Where a string ends that begins at its quote, and whether it has escapes; -1 where it is not valid."""
    begin = at + 1
    at = begin
    escaped = False
    plain = True
    while True:
        if at >= end or data[at] < 0x20:
            return -1, escaped
        octet = data[at]
        if octet == 0x22:
            break
        if octet >= 0x80:
            plain = False
        if octet == 0x5C:
            escaped = True
            at += 1
            if at >= end:
                return -1, escaped
            octet = data[at]
            if octet == 0x75:
                # Surrogates stand for something only in pairs; those are for the other reader.
                code = 0
                if end - at < 5:
                    return -1, escaped
                for place in range(1, 5):
                    digit = _hex(data[at + place])
                    if digit < 0:
                        return -1, escaped
                    code = code << 4 | digit
                if 0xD800 <= code <= 0xDFFF:
                    return -1, escaped
                at += 4
            elif not (
                octet == 0x22  # noqa: PLR1714
                or octet == 0x5C
                or octet == 0x2F
                or octet == 0x62
                or octet == 0x66
                or octet == 0x6E
                or octet == 0x72
                or octet == 0x74
            ):
                return -1, escaped
        at += 1
    if not plain and not is_utf8(data, begin, at):
        return -1, escaped
    return at + 1, escaped


@walking
def _hex(octet: int) -> int:
    if 0x30 <= octet <= 0x39:
        return octet - 0x30
    if 0x61 <= octet | 0x20 <= 0x66:
        return (octet | 0x20) - 0x57
    return -1


@walking
def _gap(data: npt.NDArray[np.uint8], at: int, end: int) -> int:
    while at < end and (data[at] == 0x20 or data[at] == 0x0A or data[at] == 0x0D or data[at] == 0x09):
        at += 1
    return at
