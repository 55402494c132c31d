"""Compilation of a view's features to the small integer arrays that control the kernel."""

from collections.abc import Sequence
from decimal import Context, Decimal
from functools import partial
from itertools import accumulate
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from unskew.features.kernel import words as w
from unskew.features.plan import MAX_FEATURES, FeaturePlan, ViewPlan
from unskew.features.time import unit_boundaries
from unskew.features.view import ViewWindow

Ints = npt.NDArray[np.int64]

# A calendar has one running tile; its ring needs that one, the next, and a guard.
RING_GUARD = 2

Coding = Literal["raw", "known", "time", "approx", "bins", "buckets"]


class Column(NamedTuple):
    """A column of numbers that accumulators take.

    ``value``: index of the view's value; -1 for the effective time. ``coding``: what becomes of the value: ``raw`` the
    value itself; ``known`` only whether it is null; ``approx`` register and rank of HyperLogLog, where ``bits`` of the
    hash choose the register; ``bins`` its leading ``bits`` of mantissa; ``buckets`` its place among ``edges``.
    ``scale``: digits after a decimal's point.
    """

    value: int
    coding: Coding
    bits: int = 0
    edges: tuple[float, ...] = ()
    scale: int = 0


class Program(NamedTuple):
    """A view as arrays: read-only, shared by all its shards.

    ``accumulators``, ``features``, ``windows``: int64, a row for each; columns ``A_...``, ``F_...``, ``W_...``;
    accumulators are grouped by window. ``boundaries``: the calendars' tables, one after the other, int64 microseconds.
    ``constants``: float64, parameters of features: decay per hop, quantiles, units of decimals. ``n_words``: words per
    cell, those of the widest window. ``ring_slots``: slots of all rings together. ``entity_words``: words of an
    entity's row. ``value_words``: words of a row of values. ``chosen_words``, ``rank_words``: words that reading needs
    as scratch space. ``n_bags``: number of accumulators with items.
    """

    accumulators: Ints
    features: Ints
    windows: Ints
    boundaries: Ints
    constants: npt.NDArray[np.float64]
    n_words: int
    ring_slots: int
    entity_words: int
    value_words: int
    chosen_words: int
    rank_words: int
    n_bags: int


_EXPONENT_BITS = 11


class _Cells:
    """The assignment of each distinct accumulator of one window to its place in the cell."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []
        self._words: dict[tuple[int, int, int, int, int], int] = {}
        self.n_words = 0

    def place(
        self,
        op: int,
        filter_: int,
        value: int,
        by: int = -1,
        *,
        kind: int = w.INTEGER,
        size: int = 0,
        tally: int = 0,
    ) -> int:
        """Return the first word of an accumulator, and add the accumulator if it is new.

        One over values has a count beside it.
        """
        count_word = -1
        if op not in {w.COUNT, w.OPENED}:
            count_word = self.place(w.COUNT, filter_, value, by)
        key = (op, filter_, value, by, size)
        if key in self._words:
            if tally < 0:
                # Features may read rankings of several lengths from one accumulator: the longest has them all.
                row = next(row for row in self.rows if row[w.A_WORD] == self._words[key])
                row[w.A_TALLY] = min(row[w.A_TALLY], tally)
            return self._words[key]
        word = self.n_words
        self.n_words += size if op == w.BUCKETS else w.ACCUMULATOR_WORDS[op]
        self._words[key] = word
        self.rows.append([op, filter_, value, kind, word, count_word, by, size, tally])
        return word


# The accumulator that keeps a feature, and the way to read it.
_OPS = {
    "count": w.COUNT,
    "sum": w.SUM,
    "mean": w.SUM,
    "var": w.SQUARES,
    "std": w.SQUARES,
    "min": w.MIN,
    "max": w.MAX,
    "first": w.FIRST,
    "last": w.LAST,
    "first_n": w.FIRST_N,
    "last_n": w.LAST_N,
    "first_time": w.MIN,
    "last_time": w.MAX,
    "count_distinct": w.BAG,
    "approx_count_distinct": w.BAG,
    "mode": w.BAG,
    "top_k": w.BAG,
    "histogram": w.BUCKETS,
    "quantile": w.BAG,
    "decayed_count": w.COUNT,
    "decayed_sum": w.SUM,
}
_READS = {
    "count": w.READ_COUNT,
    "sum": w.READ_SUM,
    "mean": w.READ_MEAN,
    "var": w.READ_VAR,
    "std": w.READ_STD,
    "min": w.READ_VALUE,
    "max": w.READ_VALUE,
    "first": w.READ_VALUE,
    "last": w.READ_VALUE,
    "first_n": w.READ_LIST,
    "last_n": w.READ_LIST,
    "first_time": w.READ_VALUE,
    "last_time": w.READ_VALUE,
    "count_distinct": w.READ_DISTINCT,
    "approx_count_distinct": w.READ_APPROX,
    "mode": w.READ_MODE,
    "top_k": w.READ_TOP,
    "histogram": w.READ_BUCKETS,
    "quantile": w.READ_QUANTILE,
    "decayed_count": w.READ_DECAYED_COUNT,
    "decayed_sum": w.READ_DECAYED_SUM,
}
_MAP_READS = {"count": w.READ_MAP_COUNT, "sum": w.READ_MAP_SUM, "mean": w.READ_MAP_MEAN}
_CODINGS: dict[str, Coding] = {"approx_count_distinct": "approx", "histogram": "buckets", "quantile": "bins"}
_KINDS = {w.CALENDAR: ("calendar",), w.CLOSED: ("closed",), w.LIFETIME: ("lifetime",), w.SESSION: ("session",)}


def value_width(feature: FeaturePlan) -> int:
    """Return the words of a feature's value in a row: one for a scalar, else a length and its items or pairs."""
    if feature.by >= 0:
        return 1 + 2 * (feature.parameters["keys"] + 1)
    match feature.function:
        case "first_n" | "last_n" | "top_k":
            return 1 + feature.parameters["n"]
        case "histogram":
            return 1 + len(feature.parameters["edges"]) + 1
        case _:
            return 1


def _n_ranked(feature: FeaturePlan) -> int:
    """Return how many of its most frequent codes a feature reads at most."""
    if feature.by >= 0:
        # One more, because the key of all others is passed over.
        return int(feature.parameters["keys"]) + 1
    return {"mode": 1, "top_k": feature.parameters.get("n", 0)}.get(feature.function, 0)


def lower(view: ViewPlan) -> tuple[Program, tuple[Column, ...]]:
    """Return the program of a view, and the columns of numbers that its events bring; equal views give equal ones."""
    if len(view.features) > MAX_FEATURES:
        raise ValueError(f"{view.name}: {len(view.features)} features, and a view has at most {MAX_FEATURES}")
    return _Lowering(view).program()


def others_begin(features: Sequence[FeaturePlan]) -> list[int]:
    """Return the place of each feature's second word among the ``others`` of ``Rows``."""
    return [0, *accumulate(value_width(feature) - 1 for feature in features)][:-1]


class _Lowering:
    def __init__(self, view: ViewPlan) -> None:
        self._view = view
        self._cells = [_Cells() for _ in view.windows]
        self._columns: dict[Column, int] = {}
        self._constants: list[float] = []
        self._chosen_words = 1
        self._rank_words = 1

    def program(self) -> tuple[Program, tuple[Column, ...]]:
        view = self._view
        opened = [
            cell.place(w.OPENED, -1, -1) if window.kind == "session" else -1
            for cell, window in zip(self._cells, view.windows, strict=True)
        ]
        features = np.array([self._feature(feature) for feature in view.features], np.int64).reshape(-1, w.N_F_COLUMNS)
        n_words = max(cell.n_words for cell in self._cells)
        outs = np.cumsum([0, *(value_width(feature) for feature in view.features)]).tolist()
        value_words = outs.pop()
        ends = w.ENTITY_VALUES + value_words
        totals = ends + 2 * len(self._cells)
        first_of = np.cumsum([0, *(len(cell.rows) for cell in self._cells)]).tolist()
        features[:, w.F_OUT] = outs
        for row in features:
            window, word = row[w.F_WINDOW], row[w.F_WORD]
            words = [accumulator[w.A_WORD] for accumulator in self._cells[window].rows]
            if word in words:
                row[w.F_ACCUMULATOR] = first_of[window] + words.index(word)
        total_of = totals + features[:, w.F_WINDOW] * n_words
        features[:, w.F_COUNT_WORD] += total_of
        features[:, w.F_WORD] += total_of
        with_squares = np.isin(features[:, w.F_READ], (w.READ_VAR, w.READ_STD))
        features[with_squares, w.F_SQUARES] += total_of[with_squares]
        entity_words = totals + len(self._cells) * n_words
        for row in features:
            if row[w.F_READ] in {w.READ_DECAYED_COUNT, w.READ_DECAYED_SUM}:
                row[w.F_DECAYED] = entity_words
                entity_words += w.DECAYED_WORDS
            row[w.F_HINTS] = entity_words
            entity_words += int(row[w.F_N_HINTS])
        windows = np.zeros((len(view.windows), w.N_W_COLUMNS), np.int64)
        tables: list[Ints] = []
        table = ring = 0
        for index, (row, window) in enumerate(zip(windows, view.windows, strict=True)):
            boundaries = _table(window)
            ring_size = window.span + RING_GUARD
            row[:] = (
                self._kind(index), window.hop_us, window.span, table, table + len(boundaries), ring, ring_size,
                first_of[index], first_of[index + 1], ends + 2 * index, ends + 2 * index + 1, totals + index * n_words,
                opened[index],
            )  # fmt: skip
            tables.append(boundaries)
            table += len(boundaries)
            ring += ring_size
        accumulators = np.array([row for cell in self._cells for row in cell.rows], np.int64).reshape(-1, w.N_A_COLUMNS)
        program = Program(
            accumulators=accumulators,
            features=features,
            windows=windows,
            boundaries=np.concatenate(tables) if tables else np.empty(0, np.int64),
            constants=np.array(self._constants or [0.0], np.float64),
            n_words=n_words,
            ring_slots=ring,
            entity_words=entity_words,
            value_words=value_words,
            chosen_words=self._chosen_words,
            rank_words=self._rank_words,
            n_bags=int(np.isin(accumulators[:, w.A_OP], (w.BAG, w.LAST_N, w.FIRST_N)).sum()),
        )
        return program, tuple(self._columns)

    def _kind(self, index: int) -> int:
        window = self._view.windows[index]
        decayed = {"decayed_count", "decayed_sum"}
        if any(feature.window == index and feature.function in decayed for feature in self._view.features):
            return w.EVERY
        return next((kind for kind, names in _KINDS.items() if window.kind in names), w.FIXED)

    def _column(self, column: Column) -> int:
        return self._columns.setdefault(column, len(self._columns))

    def _constant(self, values: list[float]) -> int:
        place = len(self._constants)
        self._constants += values
        return place

    def _feature(self, feature: FeaturePlan) -> Ints:
        """Return a row of the table; words are counted from the beginning of the cell."""
        parameters = feature.parameters
        value, kind, scale = self._value(feature)
        by = -1 if feature.by < 0 else self._column(Column(feature.by, "raw"))
        op = _OPS[feature.function] if by < 0 else w.BAG
        read = _READS[feature.function] if by < 0 else _MAP_READS[feature.function]
        row = np.zeros(w.N_F_COLUMNS, np.int64)
        row[w.F_READ], row[w.F_KIND], row[w.F_SCALE], row[w.F_WINDOW] = read, kind, scale, feature.window
        row[w.F_MOST_ITEMS] = parameters.get("n", 0) if by < 0 else parameters.get("keys", 0)
        size = tally = 0
        n_ranked = _n_ranked(feature)
        if n_ranked:
            tally = w.TALLY_RANKING - (n_ranked << w.RANKING_KIND_BITS | (w.TEXT if by >= 0 else kind))
            self._chosen_words = max(self._chosen_words, 2 * n_ranked + w.RANKING_SPARE)
            row[w.F_N_HINTS] = 0 if feature.function == "mode" else min(n_ranked, w.MOST_HINTS)
        match feature.function:
            case "first_n" | "last_n":
                size = parameters["n"]
                row[w.F_LATEST] = op == w.LAST_N
            case "histogram":
                row[w.F_BUCKETS] = size = len(parameters["edges"]) + 1
            case "quantile":
                row[w.F_QUANTILE] = self._constant([parameters["q"]])
                row[w.F_BIN_BITS] = parameters["bits"]
                # Sign, exponent and mantissa, two bits a level.
                tally = (1 + _EXPONENT_BITS + parameters["bits"] + 1) // 2
                self._chosen_words = max(self._chosen_words, 2 * w.TALLY_FROM)
            case "approx_count_distinct":
                row[w.F_REGISTER_BITS] = parameters["bits"]
                tally = w.TALLY_RANKS
                self._rank_words = max(self._rank_words, (1 << parameters["bits"]) + w.N_RANKS)
            case "decayed_count" | "decayed_sum":
                row[w.F_HALF_LIFE] = parameters["half_life_hops"]
                row[w.F_DECAY] = self._constant(_decay(parameters["half_life_hops"]))
                row[w.F_UNIT] = self._constant([10.0**scale])
            case "var" | "std":
                row[w.F_DDOF] = parameters["ddof"]
            case _:
                pass
        place = partial(self._cells[feature.window].place, filter_=feature.filter, value=value, by=by)
        if op == w.SQUARES:
            # Beside the sum, because reading needs both.
            row[w.F_WORD] = place(w.SUM, kind=kind)
            row[w.F_SQUARES] = place(w.SQUARES, kind=kind)
        else:
            row[w.F_WORD] = place(op, kind=kind, size=size, tally=tally) + (w.VALUE if op in {w.LAST, w.FIRST} else 0)
        row[w.F_COUNT_WORD] = place(w.COUNT)
        return row

    def _value(self, feature: FeaturePlan) -> tuple[int, int, int]:
        """Return column, kind and decimal places of what a feature aggregates."""
        if feature.function in {"first_time", "last_time"}:
            return self._column(Column(-1, "time")), w.TIME, 0
        if feature.value < 0:
            return -1, w.INTEGER, 0
        dtype = self._view.values[feature.value].dtype
        coding = _CODINGS.get(feature.function, "raw")
        kind = w.FLOAT if dtype.scalar == "float64" else w.TEXT if dtype.scalar == "string" else w.INTEGER
        if feature.function == "count" and kind == w.TEXT:
            coding = "known"
        if coding != "raw":
            kind = w.INTEGER
        parameters = feature.parameters
        column = Column(feature.value, coding, parameters.get("bits", 0), parameters.get("edges", ()), dtype.scale)
        if coding in {"raw", "known"}:
            column = Column(feature.value, coding)
        return self._column(column), kind, dtype.scale


def _table(window: ViewWindow) -> Ints:
    """Return the boundaries of a calendar's periods; empty for another window."""
    if window.kind != "calendar":
        return np.empty(0, np.int64)
    return unit_boundaries(window.unit or "day", window.tz or "UTC")


def _decay(half_life_hops: int) -> list[float]:
    """Return 2**(-j / half_life_hops) for one half-life, correctly rounded; further ones are halved exactly."""
    context = Context(prec=60)
    return [
        float(context.power(Decimal(2), context.divide(Decimal(-j), half_life_hops))) for j in range(half_life_hops)
    ]
