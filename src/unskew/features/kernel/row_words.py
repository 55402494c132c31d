"""Rows copied out of the kernel's space as words, of which one frame is made for many steps."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from unskew.features.kernel import words as w
from unskew.features.kernel.growing import GrowingKeys, with_room
from unskew.features.kernel.shown_texts import GrowingTexts, ShownTexts, joined_texts
from unskew.features.kernel.state import Rows
from unskew.features.text_buffers import Keys

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_ARRAYS: Final = ("words", "firsts", "others")


class RowWords(NamedTuple):
    """Rows in the order of instants; those of one instant are in any order.

    ``keys``: theirs, or fewer, to which they are numbered elsewhere. ``words``, ``firsts`` and ``others``: as in
    ``Rows``. ``texts``: those that numbers in them stand for; None if there are no such numbers, or if they are those
    of the shard's directory.
    """

    keys: Keys
    words: Ints
    firsts: Ints
    others: Ints
    texts: ShownTexts | None = None

    @classmethod
    def of(cls, rows: Rows, keys: Keys) -> "RowWords":
        """Return the rows that the kernel wrote, in its space."""
        count = int(rows.n[0])
        return cls(keys, rows.words[:, :count], rows.firsts[:, :count], rows.others[:count])

    def copied(self) -> "RowWords":
        """Return copies, which stay when the kernel writes other rows."""
        return RowWords(self.keys, self.words.copy(), self.firsts.copy(), self.others.copy())

    @property
    def n_rows(self) -> int:
        """The number of rows."""
        return self.words.shape[1]

    @property
    def present(self) -> Ints:
        """A bit for each value that is present."""
        return self.words[w.ROW_PRESENT]

    @property
    def instants(self) -> Ints:
        """When the rows' changes became available."""
        return self.words[w.ROW_INSTANT]

    @property
    def caused(self) -> Bools:
        """Whether an event closed the row's instant, or only a hop."""
        return self.words[w.ROW_CAUSE] & w.CAUSE_EVENT != 0

    def growing(self) -> "GrowingWords":
        """Return the same rows with space for those of the steps that follow."""
        return GrowingWords(self)


class GrowingWords:
    """Rows of successive steps of a shard, which are copied one after the other as they come."""

    def __init__(self, first: RowWords) -> None:
        self._keys = GrowingKeys(first.keys)
        self._n_rows = first.n_rows
        self._arrays = {name: getattr(first, name) for name in _ARRAYS}
        self._texts = None if first.texts is None else GrowingTexts(first.texts)

    @property
    def n_bytes(self) -> int:
        """The memory of their words and of the texts that they show, without spare space."""
        n_words = sum(array.shape[1 - _axis(name)] for name, array in self._arrays.items())
        return 8 * self._n_rows * n_words + (0 if self._texts is None else self._texts.n_bytes)

    def add(self, words: RowWords) -> None:
        """Add the rows of the step that follows."""
        begin, end = self._n_rows, self._n_rows + words.n_rows
        if end > self._arrays["words"].shape[1]:
            self._arrays = {name: with_room(array, end, _axis(name)) for name, array in self._arrays.items()}
        self._keys.add(words.keys)
        for name, space in self._arrays.items():
            space[_rows(name, slice(begin, end))] = getattr(words, name)
        if self._texts is not None and words.texts is not None:
            self._texts.add(words.texts)
        self._n_rows = end

    def whole(self) -> RowWords:
        """Return all rows so far; the space stays the same."""
        chosen = slice(0, self._n_rows)
        arrays = {name: array[_rows(name, chosen)] for name, array in self._arrays.items()}
        return RowWords(self._keys.whole(), **arrays, texts=None if self._texts is None else self._texts.whole())


class CurrentWords(NamedTuple):
    """Current rows of entities: ``Updates.current`` says what the instants are, ``RowWords`` what the fields are."""

    keys: Keys
    words: Ints
    firsts: Ints
    others: Ints
    texts: ShownTexts | None = None

    @classmethod
    def of(cls, rows: Rows, keys: Keys) -> "CurrentWords":
        """Return the rows that the kernel wrote, which fill their space."""
        return cls(keys, rows.words[: w.ROW_EMPTY_AT + 1], rows.firsts, rows.others)

    @property
    def changed_at(self) -> Ints:
        """When the entities' values last changed."""
        return self.words[w.ROW_INSTANT]

    @property
    def present(self) -> Ints:
        """A bit for each value that is present."""
        return self.words[w.ROW_PRESENT]

    @property
    def until(self) -> Ints:
        """When a tile next leaves."""
        return self.words[w.ROW_UNTIL]

    @property
    def empty_at(self) -> Ints:
        """When the last tile leaves."""
        return self.words[w.ROW_EMPTY_AT]

    @property
    def has_until(self) -> Bools:
        """Whether ``until`` is an instant."""
        return self.until != w.FOREVER

    @property
    def is_gone(self) -> Bools:
        """Whether nothing of the entity is left."""
        return self.empty_at == w.NEVER

    @property
    def has_empty_at(self) -> Bools:
        """Whether ``empty_at`` is an instant."""
        return ~self.is_gone & (self.empty_at != w.FOREVER)

    def chosen(self, chosen: Bools) -> "CurrentWords":
        """Return the rows for which ``chosen`` is true."""
        arrays = {name: getattr(self, name)[_rows(name, chosen)] for name in _ARRAYS}
        texts = None if self.texts is None else self.texts.chosen(chosen)
        return CurrentWords(self.keys.chosen(chosen), **arrays, texts=texts)


_Words = TypeVar("_Words", RowWords, CurrentWords)


def joined(kind: type[_Words], parts: Sequence[_Words]) -> _Words:
    """Return the rows of steps in their order; successive steps of a shard close successive instants."""
    if len(parts) == 1:
        return parts[0]
    arrays = {name: np.concatenate([getattr(part, name) for part in parts], _axis(name)) for name in _ARRAYS}
    texts = [part.texts for part in parts if part.texts is not None]
    return kind(Keys.joined([part.keys for part in parts]), **arrays, texts=joined_texts(texts) if texts else None)


def _axis(name: str) -> int:
    """Return the axis of a field's array along which its rows lie."""
    return len(_rows(name, ())) - 1


def _rows(name: str, rows: Any) -> tuple[Any, ...]:
    """Return the index of ``rows`` in a field's array: they are its last axis, but the first of ``others``."""
    return (rows,) if name == "others" else (slice(None), rows)
