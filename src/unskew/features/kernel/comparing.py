"""The order of codes: texts by their UTF-8 bytes, floats by value.

Functions take the directory of texts as its ``records`` and its ``pool``: to pass a whole state costs more than to
compare.
"""

import numpy as np
from numba import uint64

from unskew.features.jit import inlined, inner
from unskew.features.kernel import words as w
from unskew.features.kernel.arithmetic import ordered_bits
from unskew.features.kernel.directory import HEAD_BYTES, R_HEAD, R_LENGTH, R_START

_OTHER = np.frombuffer(b"other", np.uint8)


@inlined()
def _reversed(word):
    """Return eight bytes in the opposite order."""
    word = ((word & uint64(0x00FF00FF00FF00FF)) << uint64(8)) | ((word >> uint64(8)) & uint64(0x00FF00FF00FF00FF))
    word = ((word & uint64(0x0000FFFF0000FFFF)) << uint64(16)) | ((word >> uint64(16)) & uint64(0x0000FFFF0000FFFF))
    return (word << uint64(32)) | (word >> uint64(32))


@inner()
def text_before(records, pool, left, right):
    """Return true if one text comes before another, by their UTF-8 bytes."""
    # The first byte lies lowest, and bytes past the end are 0: where these words differ, so do the texts.
    head, other_head = records[left, R_HEAD], records[right, R_HEAD]
    if head != other_head:
        return _reversed(uint64(head)) < _reversed(uint64(other_head))
    n_left, n_right = records[left, R_LENGTH], records[right, R_LENGTH]
    at_left, at_right = records[left, R_START], records[right, R_START]
    for index in range(HEAD_BYTES, min(n_left, n_right)):
        one, other = pool[at_left + index], pool[at_right + index]
        if one != other:
            return one < other
    return n_left < n_right


@inlined()
def is_other(records, pool, text):
    """Return true if a text is the one under which maps combine keys."""
    if records[text, R_LENGTH] != len(_OTHER):
        return False
    for index in range(len(_OTHER)):
        if pool[records[text, R_START] + index] != _OTHER[index]:
            return False
    return True


@inner()
def code_before(records, pool, kind, left, right):
    """Return true if one code's value is smaller."""
    if kind == w.TEXT:
        return text_before(records, pool, left, right)
    if kind == w.FLOAT:
        return ordered_bits(left) < ordered_bits(right)
    return left < right
