"""Evaluated events on their way to the kernel: a frame, and arrays of its columns.

To make an array of a column costs as much for one event as for hundreds, and for a few events more than what the kernel
does with them. So arrays are made once for the shards of several views and partitions.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from operator import is_
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
from typing_extensions import override

from unskew.features.keys import shard_of
from unskew.features.selecting import gathered, joined
from unskew.features.text_buffers import Keys, not_null, read_only

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

LARGE = 500
"""Of a part with so many events, arrays are made alone: what is used right after is still in the processor's cache."""


_NOT_OF_VALUES = frozenset({"key", "event_id"})
"""Texts that are no values: keys have their own place, and repeats are found in the frame."""


class EventWords(NamedTuple):
    """Events as from ``evaluate``, in their order; all arrays are for reading only.

    ``numbers``: by name, the columns that are numbers, as int64 (of a float64 its bits), with 0 for null. ``flags``: by
    name, the columns of filters. ``texts``: by name, the values that are texts, with the empty one for null. ``known``:
    by name, false where a value is null; only of columns that have nulls.
    """

    keys: Keys
    numbers: Mapping[str, Ints]
    flags: Mapping[str, Bools]
    texts: Mapping[str, Keys]
    known: Mapping[str, Bools]

    @classmethod
    def of(cls, events: pl.DataFrame) -> "EventWords":
        """Return the arrays of events; without nulls they show the memory of the frame."""
        numbers: dict[str, Ints] = {}
        flags: dict[str, Bools] = {}
        texts: dict[str, Keys] = {}
        known: dict[str, Bools] = {}
        for column in events.get_columns():
            name, dtype = column.name, column.dtype
            if name in _NOT_OF_VALUES:
                continue
            if isinstance(dtype, pl.Boolean):
                flags[name] = column.to_numpy()
            elif not column.null_count():
                if isinstance(dtype, pl.String):
                    texts[name] = Keys.of(column)
                else:
                    numbers[name] = read_only(_bits(column.to_numpy()))
            else:
                array = column.to_arrow()
                known[name] = not_null(array)
                if isinstance(dtype, pl.String):
                    texts[name] = _texts(column, array, known[name])
                else:
                    numbers[name] = read_only(np.where(known[name], _held(array), 0))
        return cls(Keys.of(events.get_column("key")), numbers, flags, texts, known)

    def part(self, begin: int, end: int) -> "EventWords":
        """Return the events from ``begin`` up to ``end``, in the same memory."""
        return EventWords(
            self.keys.part(begin, end),
            {name: array[begin:end] for name, array in self.numbers.items()},
            {name: array[begin:end] for name, array in self.flags.items()},
            {name: keys.part(begin, end) for name, keys in self.texts.items()},
            {name: array[begin:end] for name, array in self.known.items()},
        )


def _bits(numbers: npt.NDArray[Any]) -> Ints:
    """Return numbers as int64, of a float64 their bits."""
    return numbers.view(np.int64) if numbers.dtype == np.float64 else numbers.astype(np.int64, copy=False)


def _held(array: pa.Array) -> Ints:
    """Return what an array of numbers of 64 bits holds, with any number for null."""
    return np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array)]


def _texts(column: pl.Series, array: pa.Array, known: Bools) -> Keys:
    """Return the texts of a column, which ``array`` holds, with the empty one for null."""
    texts = Keys.of_arrow(array)
    if np.diff(texts.offsets)[~known].any():
        return Keys.of(column.set(pl.Series(~known), ""))
    return texts


class Events:
    """Events as from ``evaluate``, in their order. ``frame``: their columns. ``height``: their number.

    Whoever leaves some out makes another one, of another frame, so that frame and arrays always agree. The shards of
    several views hold the same one, if their views have equal filters, values and keys; what one of them makes of it is
    there for the others.
    """

    __slots__ = ("_arrivals", "_begin", "_by_hash", "_cut", "_merged", "_whole", "_words", "frame", "height")

    def __init__(self, frame: pl.DataFrame) -> None:
        self.frame = frame
        self.height = frame.height
        self._words: EventWords | None = None
        self._arrivals: Ints | None = None
        # Those of which these are a part, and where it begins, until its arrays are known.
        self._whole: Events | None = None
        self._begin = 0
        # Those of each hash, for the last number of hashes.
        self._by_hash: list[Events] = []
        # The last cut: where, and the two parts.
        self._cut: tuple[int, Events, Events] | None = None
        # The last others with which these were merged, and all of them.
        self._merged: tuple[Sequence[Events], Events] | None = None

    @property
    def words(self) -> EventWords:
        """The events as arrays; those of small parts are made once, together."""
        if self._words is None:
            whole, begin = self._whole, self._begin
            if whole is None or self.height >= LARGE:
                self._words = EventWords.of(self.frame)
            else:
                self._words = whole.words.part(begin, begin + self.height)
            self._whole = None
        return self._words

    @property
    def arrivals(self) -> Ints:
        """The arrivals, for reading only."""
        if self._arrivals is None:
            self._arrivals = self.frame.get_column("arrival").to_numpy()
        return self._arrivals

    def parts(self, ends: Sequence[int]) -> list["Events"]:
        """Return the events between these places."""
        found = []
        for begin, end in pairwise(ends):
            part = Events(self.frame.slice(begin, end - begin))
            part._whole, part._begin = self, begin
            found.append(part)
        return found

    def by_hash(self, n_hashes: int) -> list["Events"]:
        """Return the events of each hash, as ``shard_of`` numbers them."""
        if len(self._by_hash) != n_hashes:
            hashes = shard_of(self.frame["key"], n_hashes)
            ordered = Events(gathered(self.frame, np.argsort(hashes, kind="stable")))
            self._by_hash = ordered.parts([0, *np.cumsum(np.bincount(hashes, minlength=n_hashes)).tolist()])
        return self._by_hash

    def cut(self, place: int) -> tuple["Events", "Events"]:
        """Return the events before a place and those from it on."""
        if self._cut is None or self._cut[0] != place:
            self._cut = place, Events(self.frame[:place]), Events(self.frame[place:])
        return self._cut[1:]

    def merged(self, others: Sequence["Events"]) -> "Events":
        """Return these events and others in the order of arrivals; equal ones in the order in which they are given.

        Each comes in the order of its own arrivals.
        """
        if not others:
            return self
        before = self._merged
        if before is not None and len(before[0]) == len(others) and all(map(is_, before[0], others)):
            return before[1]
        frame = joined([self.frame, *(one.frame for one in others)])
        arrivals = frame.get_column("arrival").to_numpy()
        if (arrivals[1:] < arrivals[:-1]).any():
            # A stable sort only has to merge what is in order already.
            frame = gathered(frame, np.argsort(arrivals, kind="stable"))
        self._merged = others, Events(frame)
        return self._merged[1]

    @override
    def __reduce__(self) -> tuple[Any, ...]:
        # Another process makes the arrays itself: they are as large as the frame.
        return Events, (self.frame,)
