"""Lower a view's features to the small integer arrays that the kernel runs on."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from unskew.features.plan import ViewPlan, WindowPlan

Ints = npt.NDArray[np.int64]

# Accumulators. A cell (a tile, or the running total of an entity and window) is a row of int64 words.
COUNT = 0  # 1 word: rows that pass (value -1), or non-null values
SUM = 1  # 3 words: limbs of an exact sum
MIN = 2  # 1 word: in comparable form, meaningful where the count beside it is > 0
MAX = 3
LAST = 4  # 5 words: effective, arrival, partition, offset, value
ACCUMULATOR_WORDS = {COUNT: 1, SUM: 3, MIN: 1, MAX: 1, LAST: 5}

READ_COUNT, READ_SUM, READ_MEAN, READ_VALUE = 0, 1, 2, 3

FIXED, CALENDAR = 0, 1

# Column numbers of the tables below.
A_WINDOW, A_OP, A_FILTER, A_VALUE, A_FLOAT, A_WORD, A_COUNT_WORD = range(7)
F_READ, F_WINDOW, F_COUNT_WORD, F_WORD, F_FLOAT = range(5)
W_KIND, W_HOP, W_SPAN, W_TABLE, W_TABLE_END, W_RING, W_RING_SIZE, W_FIRST, W_END = range(9)

# A calendar has one running tile; its ring needs that one, the next, and a guard.
RING_GUARD = 2


class Program(NamedTuple):
    """A view as arrays: read-only, shared by all its shards.

    ``accumulators``: int64 [n, 7], grouped by window; ``features``: int64 [n, 5]; ``windows``: int64 [n, 9];
    ``boundaries``: the calendars' tables, one after the other, int64 microseconds;
    ``n_words``: words per cell, the widest window's; ``ring_slots``: slots of all rings together.
    """

    accumulators: Ints
    features: Ints
    windows: Ints
    boundaries: Ints
    n_words: int
    ring_slots: int


class _Cells:
    """Gives each distinct accumulator of one window its place in the cell."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.rows: list[list[int]] = []
        self.places: dict[tuple[int, int, int], int] = {}
        self.n_words = 0

    def place(self, op: int, filter_: int, value: int, *, is_float: bool) -> int:
        """The first word of an accumulator, added when new; one over values has a count beside it."""
        count_word = -1
        if op != COUNT:
            count_word = self.place(COUNT, filter_, value, is_float=False)
        found = self.places.get((op, filter_, value))
        if found is not None:
            return found
        word = self.n_words
        self.n_words += ACCUMULATOR_WORDS[op]
        self.places[op, filter_, value] = word
        self.rows.append([self.window, op, filter_, value, int(is_float), word, count_word])
        return word


_OPS = {"count": COUNT, "sum": SUM, "mean": SUM, "min": MIN, "max": MAX, "last": LAST}
_READS = {
    "count": READ_COUNT,
    "sum": READ_SUM,
    "mean": READ_MEAN,
    "min": READ_VALUE,
    "max": READ_VALUE,
    "last": READ_VALUE,
}


def lower(view: ViewPlan) -> Program:
    """The program of a view; equal views give equal programs."""
    cells = [_Cells(index) for index in range(len(view.windows))]
    features = np.zeros((len(view.features), 5), np.int64)
    for row, feature in zip(features, view.features, strict=True):
        op = _OPS[feature.function]
        is_float = feature.value >= 0 and view.values[feature.value].dtype == "float64"
        cell = cells[feature.window]
        word = cell.place(op, feature.filter, feature.value, is_float=is_float)
        if op == LAST:
            word += 4
        count_word = cell.places[COUNT, feature.filter, feature.value]
        row[:] = (_READS[feature.function], feature.window, count_word, word, int(is_float))
    accumulators: list[list[int]] = []
    windows = np.zeros((len(view.windows), 9), np.int64)
    tables: list[Ints] = []
    table = ring = 0
    for row, window, cell in zip(windows, view.windows, cells, strict=True):
        first = len(accumulators)
        accumulators += cell.rows
        boundaries = _table(window)
        ring_size = window.span + RING_GUARD
        kind = CALENDAR if window.kind == "calendar" else FIXED
        row[:] = (
            kind, window.hop_us, window.span, table, table + len(boundaries),
            ring, ring_size, first, len(accumulators),
        )  # fmt: skip
        tables.append(boundaries)
        table += len(boundaries)
        ring += ring_size
    return Program(
        accumulators=np.array(accumulators, np.int64).reshape(-1, 7),
        features=features,
        windows=windows,
        boundaries=np.concatenate(tables) if tables else np.empty(0, np.int64),
        n_words=max(cell.n_words for cell in cells),
        ring_slots=ring,
    )


def _table(window: WindowPlan) -> Ints:
    if window.boundaries is None:
        return np.empty(0, np.int64)
    return np.ascontiguousarray(window.boundaries, np.int64)
