"""Lower a view's features to the small integer arrays that the kernel runs on."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from unskew.features.plan import MAX_FEATURES, FeaturePlan, ViewPlan, WindowPlan

Ints = npt.NDArray[np.int64]

# Accumulators. A cell (a tile, or the running total of an entity and window) is a row of int64 words.
COUNT = 0  # 1 word: rows that pass (value -1), or non-null values
SUM = 1  # 3 words: limbs of an exact sum
MIN = 2  # 1 word: in comparable form, meaningful where the count beside it is > 0
MAX = 3
LAST = 4  # 5 words: effective, arrival, partition, offset, value
_LAST_VALUE = 4
ACCUMULATOR_WORDS = {COUNT: 1, SUM: 3, MIN: 1, MAX: 1, LAST: 5}

READ_COUNT, READ_SUM, READ_MEAN, READ_VALUE = 0, 1, 2, 3

FIXED, CALENDAR = 0, 1

# Column numbers of the tables below.
A_WINDOW, A_OP, A_FILTER, A_VALUE, A_FLOAT, A_WORD, A_COUNT_WORD = range(7)
F_READ, F_COUNT_WORD, F_WORD, F_FLOAT = range(4)
W_KIND, W_HOP, W_SPAN, W_TABLE, W_TABLE_END, W_RING, W_RING_SIZE, W_FIRST, W_END, W_ENDS, W_TOTAL = range(11)

# Columns of an entity's row; after the values come two words per window for its oldest and newest tile, and per window
# ``n_words`` for its running total.
ENTITY_LIVE, ENTITY_SLOT, ENTITY_MARKS, ENTITY_CHANGED, ENTITY_PRESENT, ENTITY_VALUES = range(6)

# A calendar has one running tile; its ring needs that one, the next, and a guard.
RING_GUARD = 2


class Program(NamedTuple):
    """A view as arrays: read-only, shared by all its shards.

    ``accumulators``: int64 [n, 7], grouped by window; ``features``: int64 [n, 4], words counted from the beginning of an
    entity's row; ``windows``: int64 [n, 11];
    ``boundaries``: the calendars' tables, one after the other, int64 microseconds;
    ``n_words``: words per cell, the widest window's; ``ring_slots``: slots of all rings together;
    ``entity_words``: words of an entity's row.
    """

    accumulators: Ints
    features: Ints
    windows: Ints
    boundaries: Ints
    n_words: int
    ring_slots: int
    entity_words: int


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
    if len(view.features) > MAX_FEATURES:
        raise ValueError(f"{view.name}: {len(view.features)} features, and a view has at most {MAX_FEATURES}")
    cells = [_Cells(index) for index in range(len(view.windows))]
    placed = [_place(view, feature, cells[feature.window]) for feature in view.features]
    n_words = max(cell.n_words for cell in cells)
    ends = ENTITY_VALUES + len(view.features)
    totals = ends + 2 * len(cells)
    features = np.array(
        [
            (_READS[feature.function], base + count_word, base + word, is_float)
            for feature, (count_word, word, is_float) in zip(view.features, placed, strict=True)
            for base in [totals + feature.window * n_words]
        ],
        np.int64,
    )
    accumulators: list[list[int]] = []
    windows = np.zeros((len(view.windows), 11), np.int64)
    tables: list[Ints] = []
    table = ring = 0
    for index, (row, window, cell) in enumerate(zip(windows, view.windows, cells, strict=True)):
        first = len(accumulators)
        accumulators += cell.rows
        boundaries = _table(window)
        ring_size = window.span + RING_GUARD
        kind = CALENDAR if window.kind == "calendar" else FIXED
        row[:] = (
            kind, window.hop_us, window.span, table, table + len(boundaries),
            ring, ring_size, first, len(accumulators), ends + 2 * index, totals + index * n_words,
        )  # fmt: skip
        tables.append(boundaries)
        table += len(boundaries)
        ring += ring_size
    return Program(
        accumulators=np.array(accumulators, np.int64).reshape(-1, 7),
        features=features,
        windows=windows,
        boundaries=np.concatenate(tables) if tables else np.empty(0, np.int64),
        n_words=n_words,
        ring_slots=ring,
        entity_words=totals + len(cells) * n_words,
    )


def _table(window: WindowPlan) -> Ints:
    if window.boundaries is None:
        return np.empty(0, np.int64)
    return np.ascontiguousarray(window.boundaries, np.int64)


def _place(view: ViewPlan, feature: FeaturePlan, cell: _Cells) -> tuple[int, int, bool]:
    """Where in the cell a feature finds its count and its value, and whether that is a float."""
    op = _OPS[feature.function]
    is_float = feature.value >= 0 and view.values[feature.value].dtype == "float64"
    word = cell.place(op, feature.filter, feature.value, is_float=is_float)
    count_word = cell.places[COUNT, feature.filter, feature.value]
    return count_word, word + (_LAST_VALUE if op == LAST else 0), is_float
