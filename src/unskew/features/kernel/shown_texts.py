"""The texts that rows show, taken along with the rows.

In the kernel's words, a number stands for a text in the directory of a shard, and later it may stand for another one.
So rows that are kept as words take their texts along, and their numbers are places among these.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from unskew.features.jit import compiled
from unskew.features.kernel import words as w
from unskew.features.kernel.directory import Directory
from unskew.features.kernel.growing import GrowingKeys, with_room
from unskew.features.kernel.program import others_begin
from unskew.features.plan import FeaturePlan
from unskew.features.text_buffers import Keys

Ints = npt.NDArray[np.int64]
# Columns of ``places``: the feature; its first word among the other words of a row; the number of words from one text
# to the next, 0 if the only text is the first word of the value.
_FEATURE, _BEGIN, _STRIDE = range(3)


def places_of(features: Sequence[FeaturePlan]) -> Ints:
    """Return where rows have numbers of texts: int64 [places, 3]."""
    found: list[tuple[int, int, int]] = []
    for index, (feature, begin) in enumerate(zip(features, others_begin(features), strict=True)):
        is_text = feature.dtype.scalar == "string"
        match feature.dtype.nesting:
            case "map":
                found += [(index, begin, 2)] + [(index, begin + 1, 2)] * is_text
            case "list":
                found += [(index, begin, 1)] * is_text
            case None:
                found += [(index, 0, 0)] * is_text
    return np.array(found, np.int64).reshape(-1, 3)


class ShownTexts(NamedTuple):
    """The number n in a row stands for the text at the place ``begins[row] + n`` of ``each``.

    The rows of a step have each text once, so long texts that occur often take their memory once.
    """

    begins: Ints
    each: Keys

    @classmethod
    def taken(
        cls, places: Ints, present: Ints, firsts: Ints, others: Ints, texts: Directory, scratch: npt.NDArray[np.int32]
    ) -> "ShownTexts":
        """Take the texts of rows out of a directory, each once, and write their places in the rows.

        ``scratch``: a number for each row of the directory, whatever it is.
        """
        numbers = np.empty(min(len(present) * (len(firsts) + others.shape[1]), texts.capacity), np.int32)
        count = take_shown(places, present, firsts, others, scratch, numbers)
        return cls(np.zeros(len(present), np.int64), texts.gather(numbers[:count]))

    @property
    def capacity(self) -> int:
        """The number of texts."""
        return len(self.each.offsets) - 1

    def gather(self, numbers: npt.NDArray[np.int32]) -> Keys:
        """Return the texts at these places."""
        return self.each.gather(numbers)

    def chosen(self, chosen: npt.NDArray[np.bool_]) -> "ShownTexts":
        """Return those of the rows for which ``chosen`` is true; the texts of the others stay among them."""
        return ShownTexts(self.begins[chosen], self.each)

    def from_one(self, places: Ints, present: Ints, firsts: Ints, others: Ints) -> tuple[Ints, Ints]:
        """Return ``firsts`` and ``others`` with numbers that count from the first of all texts."""
        if not self.begins.any():
            return firsts, others
        firsts, others = firsts.copy(), others.copy()
        # A choice of rows may lie in memory column by column.
        shift_shown(places, np.ascontiguousarray(present), firsts, others, self.begins)
        return firsts, others


class GrowingTexts:
    """Those of successive steps, which are copied one after the other as they come."""

    def __init__(self, first: ShownTexts) -> None:
        self._n_rows = len(first.begins)
        self._begins = first.begins
        self._each = GrowingKeys(first.each)

    @property
    def n_bytes(self) -> int:
        """The length of all texts."""
        return self._each.n_bytes

    def add(self, texts: ShownTexts) -> None:
        """Add those of the step that follows."""
        begin, end = self._n_rows, self._n_rows + len(texts.begins)
        self._begins = with_room(self._begins, end)
        np.add(texts.begins, self._each.n_keys, out=self._begins[begin:end])
        self._each.add(texts.each)
        self._n_rows = end

    def whole(self) -> ShownTexts:
        """Return all so far; the space stays the same."""
        return ShownTexts(self._begins[: self._n_rows], self._each.whole())


def joined_texts(parts: Sequence[ShownTexts]) -> ShownTexts:
    """Return those of all parts, one part after the other."""
    before = np.cumsum([0, *(part.capacity for part in parts[:-1])])
    begins = [part.begins + n_before for part, n_before in zip(parts, before, strict=True)]
    return ShownTexts(np.concatenate(begins), Keys.joined([part.each for part in parts]))


@compiled()
def take_shown(places: Any, present: Any, firsts: Any, others: Any, scratch: Any, numbers: Any) -> int:
    """Write the numbers of the texts of rows to ``numbers``, and their places there to the rows; return how many.

    ``scratch`` and ``numbers`` are a sparse set, which nobody has to clear (P. Briggs and L. Torczon, An Efficient
    Representation for Sparse Sets, ACM Letters on Programming Languages and Systems 2, 1993).
    """
    count = 0
    for row in range(len(present)):
        for place in range(len(places)):
            feature = places[place, _FEATURE]
            if present[row] >> feature & 1 == 0:
                continue
            stride = places[place, _STRIDE]
            word = places[place, _BEGIN]
            for _ in range(firsts[feature, row] if stride else 1):
                code = others[row, word] if stride else firsts[feature, row]
                if code != w.OTHER_KEY:
                    found = scratch[code]
                    if found < 0 or found >= count or numbers[found] != code:
                        found = count
                        scratch[code] = found
                        numbers[found] = code
                        count += 1
                    if stride:
                        others[row, word] = found
                    else:
                        firsts[feature, row] = found
                word += stride
    return count


@compiled()
def shift_shown(places: Any, present: Any, firsts: Any, others: Any, begins: Any) -> None:
    """Add to each number of a text where those of its row begin."""
    for row in range(len(present)):
        for place in range(len(places)):
            feature = places[place, _FEATURE]
            if present[row] >> feature & 1 == 0:
                continue
            stride = places[place, _STRIDE]
            if stride == 0:
                firsts[feature, row] += begins[row]
                continue
            word = places[place, _BEGIN]
            for _ in range(firsts[feature, row]):
                if others[row, word] != w.OTHER_KEY:
                    others[row, word] += begins[row]
                word += stride
