"""The population of a view: how the present values of all its entities are distributed, at any instant, from the log.

The histogram at t is the sum over the log's rows up to t of: plus one in the bin of the row's value, minus one in the
bin of the row before of the same entity. So an entity counts once, with its last row, however often it changes; counts
of rows would be about busy entities. One pass over the rows gives the histograms at any number of instants.

An entity whose windows have all emptied is one without a row, as in Redis, from which its key is deleted then. It has a
bin of its own: entities that went away long ago would outnumber the others in the end.

What is kept between two passes is the last bin of each entity, so a pass may go on where the one before ended.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.features.errors import RequestError
from unskew.features.time import day_of
from unskew.features.view import View, ViewFeature
from unskew.features.warming import is_empty
from unskew.monitoring.bins import Bins, as_read
from unskew.offline.log_reader import ViewLog

Ints = npt.NDArray[np.int64]
Binned = tuple[ViewFeature, Bins]

_NEW = np.uint8(255)
_NUMBER = "_number"


@dataclass(frozen=True, kw_only=True)
class Histograms:
    """The population at some instants.

    ``counts``: for each of the bins asked for, int64 [instants, bins]. ``entities``: how many have a row. ``gone``: how
    many had one, and their windows have emptied since.
    """

    instants: Ints
    counts: Sequence[npt.NDArray[np.int64]]
    entities: Ints
    gone: Ints


class Population:
    """The last bin of each entity of a view, for several features; one feature may have several kinds of bins."""

    def __init__(self, view: View, binned: Sequence[Binned]) -> None:
        self.view = view
        self.binned = binned
        self.event_us: int | None = None
        """The last instant at which an event came to be counted; None before one."""
        self.until_us: int | None = None
        """The last instant that was asked for."""
        self.next_sequence: dict[str, int] = {}
        """By shard, the sequence number of the first row that was not counted."""
        self._numbers = pl.DataFrame(schema={**view.entity.columns, _NUMBER: pl.Int64()})
        # Beside those asked for, bins that only tell who has a row.
        self._all = [*binned, (view.features[0], Bins.none(view.features[0].dtype))]
        self._bins = np.full((1024, len(self._all)), _NEW, np.uint8)
        self._counts = [np.zeros(bins.n, np.int64) for _, bins in self._all]

    @property
    def columns(self) -> list[str]:
        """The columns of the log that are read."""
        names = (feature.name for feature in self.view.features)
        return [*self.view.entity.keys, "available_at", "event_time", "shard", "seq", *names]

    def advance(self, chunks: Iterable[pl.DataFrame], instants: Ints) -> Histograms:
        """Count further rows, the oldest chunk first, and return the histograms at instants, ascending.

        Within a chunk each shard's rows are in the order of their instants; rows of one entity are in an earlier chunk
        if they are older. Rows later than the last instant are left out, for the next pass. Raises ``ValueError`` for
        an instant before one that was asked for.
        """
        goes_back = self.until_us is not None and len(instants) and instants[0] < self.until_us
        if not len(instants) or goes_back or (np.diff(instants) < 0).any():
            raise ValueError("instants ascend, and do not lie before those of the last pass")
        changes = [np.zeros((len(instants) + 1, bins.n), np.int64) for _, bins in self._all]
        for chunk in chunks:
            self._count(chunk, instants, changes)
        self.until_us = int(instants[-1])
        totals = [before + np.cumsum(change[:-1], axis=0) for before, change in zip(self._counts, changes, strict=True)]
        self._counts = [total[-1].copy() for total in totals]
        known, no_row = totals.pop(), self._all[-1][1].no_row
        return Histograms(
            instants=instants, counts=totals, entities=known[:, :no_row].sum(axis=1), gone=known[:, no_row]
        )

    def _count(self, chunk: pl.DataFrame, instants: Ints, changes: Sequence[Ints]) -> None:
        chunk = chunk.filter(pl.col("available_at").to_physical() <= int(instants[-1]))
        if chunk.is_empty():
            return
        self._note(chunk)
        numbers = self._numbered(chunk.select(self.view.entity.keys))
        when = chunk["available_at"].to_physical().to_numpy()
        # The first of the instants at which the row counts.
        place = np.searchsorted(instants, when, side="left")
        # Stable, so that rows of one instant keep the order of writing; an entity may have rows in several shards.
        order = np.lexsort((when, numbers))
        numbers, place = numbers[order], place[order]
        # Of an entity's rows between two instants only the last is seen.
        is_seen = np.append((numbers[1:] != numbers[:-1]) | (place[1:] != place[:-1]), True)
        order, numbers, place = order[is_seen], numbers[is_seen], place[is_seen]
        is_first = np.append(True, numbers[1:] != numbers[:-1])
        is_last = np.append(is_first[1:], True)
        seen = chunk[order]
        is_gone = are_gone(self.view, seen)
        for column, (feature, bins) in enumerate(self._all):
            codes = bins.codes(as_read(feature, seen[feature.name]))
            codes[is_gone] = bins.no_row
            before = np.append(_NEW, codes[:-1])
            before[is_first] = self._bins[numbers[is_first], column]
            change = changes[column]
            is_other = codes != before
            np.add.at(change, (place[is_other], codes[is_other]), 1)
            is_move = is_other & (before != _NEW)
            np.add.at(change, (place[is_move], before[is_move]), -1)
            self._bins[numbers[is_last], column] = codes[is_last]

    def _note(self, chunk: pl.DataFrame) -> None:
        """Note how far the rows go, and when their last event came: one from the future counts from its arrival."""
        for shard, after in chunk.group_by("shard").agg(pl.col("seq").max() + 1).iter_rows():
            self.next_sequence[shard] = max(after, self.next_sequence.get(shard, 0))
        came = chunk.filter(pl.col("event_time").is_not_null()).select(
            pl.min_horizontal("event_time", "available_at").to_physical().max()
        )
        if (last := came.item()) is not None:
            self.event_us = max(last, self.event_us or last)

    def _numbered(self, keys: pl.DataFrame) -> Ints:
        """Return the number of each row's entity; entities that are new get the next ones."""
        names = keys.columns
        unknown = keys.unique().join(self._numbers, on=names, how="anti")
        if len(unknown):
            first = len(self._numbers)
            numbered = unknown.with_columns(pl.int_range(first, first + len(unknown), dtype=pl.Int64).alias(_NUMBER))
            self._numbers = pl.concat([self._numbers, numbered], rechunk=True)
            while len(self._bins) < len(self._numbers):
                self._bins = np.concatenate([self._bins, np.full_like(self._bins, _NEW)])
        found = keys.join(self._numbers, on=names, how="left", maintain_order="left")
        return found[_NUMBER].to_numpy()


def histograms(log: ViewLog, binned: Sequence[Binned], instants: Ints) -> Histograms:
    """Return the histograms of a log's population at instants, ascending, in one pass.

    Raises ``RequestError`` for an instant that the log does not answer.
    """
    if log.complete_to_us is None or instants[-1] > log.complete_to_us:
        raise RequestError(f"{log.title} is not complete to the instants that are asked for; ask for earlier ones")
    population = Population(log.view, binned)
    return population.advance(log.oldest_first(population.columns, upto=day_of(int(instants[-1]))), instants)


def values_at(log: ViewLog, t_us: int) -> tuple[pl.DataFrame, int]:
    """Return the stored values of every entity that has a row at an instant, and how many have none any more."""
    keys = list(log.view.entity.keys)
    names = [feature.name for feature in log.view.features]
    found: list[pl.DataFrame] = []
    for chunk in log.newest_first([*keys, "available_at", *names], upto=day_of(t_us)):
        rows = chunk.filter(pl.col("available_at").to_physical() <= t_us).sort("available_at", maintain_order=True)
        last = rows.unique(keys, keep="last", maintain_order=True)
        # Every row of an entity that was found is later than its rows here.
        found.append(last.join(pl.concat([one.select(keys) for one in found]), on=keys, how="anti") if found else last)
    last = pl.concat(found) if found else pl.DataFrame()
    if last.is_empty():
        return pl.DataFrame(schema={feature.name: feature.dtype.polars for feature in log.view.features}), 0
    is_gone = are_gone(log.view, last)
    return last.select(names).filter(pl.Series(~is_gone)), int(is_gone.sum())


def are_gone(view: View, rows: pl.DataFrame) -> npt.NDArray[np.bool_]:
    """Return which rows hold the values of an entity without events in any window."""
    found = np.ones(len(rows), np.bool_)
    for feature in view.features:
        found &= is_empty(rows[feature.name], feature)
    return found
