"""Rows copied out of the kernel's space as words, of which one frame is made for many steps."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from unskew.features.kernel import words as w
from unskew.features.kernel.state import Rows
from unskew.features.text_buffers import Keys

Ints = npt.NDArray[np.int64]


class RowWords(NamedTuple):
    """Rows in the order of instants; those of one instant are in any order.

    ``keys``: theirs, or fewer, to which they are numbered elsewhere. ``caused``: whether an event closed the row's
    ``firsts`` and ``others``: as in ``Rows``.
    """

    keys: Keys
    instants: Ints
    event_times: Ints
    partitions: Ints
    offsets: Ints
    caused: npt.NDArray[np.bool_]
    firsts: Ints
    others: Ints
    present: Ints

    @classmethod
    def of(cls, rows: Rows, keys: Keys) -> "RowWords":
        """Return the rows that the kernel wrote, in its space."""
        count = int(rows.n[0])
        return cls(
            keys=keys,
            instants=rows.instant[:count],
            event_times=rows.event_time[:count],
            partitions=rows.partition[:count],
            offsets=rows.offset[:count],
            caused=rows.cause[:count] & w.CAUSE_EVENT != 0,
            firsts=rows.firsts[:, :count],
            others=rows.others[:count],
            present=rows.present[:count],
        )

    def copied(self) -> "RowWords":
        """Return copies, which stay when the kernel writes other rows."""
        arrays = {name: getattr(self, name).copy() for name in self._fields if name != "keys"}
        return RowWords(keys=self.keys, **arrays)


class CurrentWords(NamedTuple):
    """Current rows of entities: ``Updates.current`` says what the instants are."""

    keys: Keys
    changed_at: Ints
    until: Ints
    empty_at: Ints
    firsts: Ints
    others: Ints
    present: Ints


_Words = TypeVar("_Words", RowWords, CurrentWords)


def joined(kind: type[_Words], parts: Sequence[_Words]) -> _Words:
    """Return the rows of steps in their order; successive steps of a shard close successive instants."""
    if len(parts) == 1:
        return parts[0]
    keys: Sequence[Keys]
    arrays: Sequence[Sequence[npt.NDArray[Any]]]
    keys, *arrays = zip(*parts, strict=True)
    # Rows are the last axis of ``firsts``, and the first of all others.
    axes = [1 if name == "firsts" else 0 for name in kind._fields[1:]]
    return kind(Keys.joined(keys), *(np.concatenate(each, axis) for each, axis in zip(arrays, axes, strict=True)))
