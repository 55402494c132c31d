"""The columns of evaluated events as arrays, made once for the shards of several views and partitions.

To make an array of a column costs as much for one event as for hundreds, and for a few events more than what the kernel
does with them.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.features.text_buffers import Keys, read_only

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class EventWords(NamedTuple):
    """Events as from ``evaluate``, in their order; all arrays are for reading only.

    ``numbers``: by name, the columns that are numbers, as int64 (of a float64 its bits), with 0 for null. ``flags``: by
    name, the columns of filters. ``known``: by name, false where a value is null; only of columns that have nulls.
    """

    keys: Keys
    numbers: Mapping[str, Ints]
    flags: Mapping[str, Bools]
    known: Mapping[str, Bools]

    @classmethod
    def of(cls, events: pl.DataFrame) -> "EventWords":
        """Return the arrays of events; without nulls they show the memory of the frame."""
        numbers: dict[str, Ints] = {}
        flags: dict[str, Bools] = {}
        known: dict[str, Bools] = {}
        for column in events.get_columns():
            name, dtype = column.name, column.dtype
            if name == "key":
                continue
            if dtype == pl.Boolean():
                flags[name] = column.to_numpy()
                continue
            is_text = dtype == pl.String()
            if column.null_count():
                known[name] = column.is_not_null().to_numpy()
                column = column if is_text else column.fill_null(0)  # noqa: PLW2901
            if is_text:
                continue
            array = column.to_numpy()
            if array.dtype != np.float64:
                array = array.astype(np.int64, copy=False)
            numbers[name] = read_only(np.ascontiguousarray(array).view(np.int64))
        return cls(Keys.of(events.get_column("key")), numbers, flags, known)

    def part(self, begin: int, end: int) -> "EventWords":
        """Return the events from ``begin`` up to ``end``, in the same memory."""
        return EventWords(
            Keys(self.keys.offsets[begin : end + 1], self.keys.data),
            {name: array[begin:end] for name, array in self.numbers.items()},
            {name: array[begin:end] for name, array in self.flags.items()},
            {name: array[begin:end] for name, array in self.known.items()},
        )
