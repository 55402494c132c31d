"""How far back the events behind a view's values are known, and so which values can be recounted.

Three things bound it. A view may have begun later than the archive: it never saw what arrived before. Days of the
archive may have been removed. And where a view began later, its coverage says before which instant it saw nothing, and
from which on it saw everything. Between them, partitions were unevenly far: what the log does not name there, the view
may have seen or not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from unskew.features.keys import encode_keys, shard_of
from unskew.features.plan import ViewPlan
from unskew.features.time import format_instant
from unskew.features.view import ViewWindow
from unskew.monitoring.outcome import Unaudited
from unskew.monitoring.recount import Key, Recount
from unskew.monitoring.recount_windows import first_known_us, oldest_us
from unskew.sinks.tables.layout import Coverage


@dataclass(frozen=True, kw_only=True)
class NamedEvents:
    """The events that a log names, held against an archive.

    ``first``: the first offset that it names in each partition. ``archive_from_us``: the instant from which the archive
    holds everything; None if it lacks nothing that is named. ``lacking``: a description of named events that it lacks
    although it has earlier ones of their partition, or has nothing of it; None if there are none.
    """

    first: Mapping[int, int]
    archive_from_us: int | None
    lacking: str | None


@dataclass(frozen=True, kw_only=True)
class Seen:
    """The events that a view has seen.

    ``begins_us``: the first instant whose values its log holds. ``uncertain``: which events it may not have seen.
    ``is_cut``: whether old days were removed from its log.
    """

    events: pl.DataFrame
    begins_us: int
    uncertain: pl.DataFrame
    is_cut: bool = False


def seen(view: ViewPlan, events: pl.DataFrame, coverage: Coverage | None, named: NamedEvents) -> Seen:
    """Leave out the events that arrived before their shard of the view began.

    ``events``: the archive. An event at or after the first one that the log names in its partition was seen.
    """
    places = events.select("_partition", "_offset")
    since = {} if coverage is None else {name: shard.since_us for name, shard in coverage.shards.items()}
    known = [since_us for since_us in since.values() if since_us is not None]
    if coverage is None or not known or not len(events):
        arrived = events["_arrival"].to_physical().min()
        return Seen(events=events, begins_us=int(arrived or 0), uncertain=places.clear())  # type: ignore[arg-type]
    # A shard without an event began when the others did.
    first_of = {name: max(known) if since_us is None else since_us for name, since_us in since.items()}
    begins = {name: shard.begins_us for name, shard in coverage.shards.items() if shard.begins_us is not None}
    arrivals = events["_arrival"].to_physical().to_numpy()
    n_shards = len(since) + len(coverage.waiting)
    whole_from = _beginnings(view, events, first_of, n_shards)
    began = _beginnings(view, events, first_of | begins, n_shards)
    partitions = events["_partition"].to_numpy()
    first_named = np.full(int(partitions.max()) + 1, np.iinfo(np.int64).max)
    for partition, offset in named.first.items():
        if partition < len(first_named):
            first_named[partition] = offset
    is_named = events["_offset"].to_numpy() >= first_named[partitions]
    unseen = (arrivals < began) & ~is_named
    in_doubt = (arrivals >= began) & (arrivals < whole_from)
    if not begins:
        # Only the earliest place of any partition is on record. Within a partition arrivals only grow, so
        # only events of the first instant can be in doubt; with several, all from there on.
        in_doubt = arrivals == began if view.partitioned or len(np.unique(partitions)) == 1 else arrivals >= began
        in_doubt &= np.isin(partitions, partitions[unseen]) if view.partitioned else unseen.any()
    return Seen(
        events=events.filter(~unseen),
        begins_us=max(int(min(first_of.values())), coverage.kept_from_us or 0),
        uncertain=places.filter(in_doubt & ~is_named & ~unseen),
        is_cut=coverage.kept_from_us is not None,
    )


def _beginnings(view: ViewPlan, events: pl.DataFrame, first_of: Mapping[str, int], n_shards: int) -> np.ndarray:
    """Return, for each event, when its shard of the view began; a shard that is not covered began with the first."""
    earliest = min(first_of.values())
    if view.partitioned:
        of_partition: dict[int, int] = {}
        for name, since_us in first_of.items():
            partition = int(name.removeprefix("p").partition(".")[0])
            of_partition[partition] = min(since_us, of_partition.get(partition, since_us))
        return events["_partition"].replace_strict(of_partition, default=earliest, return_dtype=pl.Int64).to_numpy()
    if len(set(first_of.values())) == 1:
        return np.full(len(events), earliest)
    # An event without a key is in no shard, and counts nowhere.
    shards = shard_of(encode_keys(events, view.entity).fill_null(""), n_shards)
    return np.array([first_of.get(f"h{shard}", earliest) for shard in range(n_shards)], np.int64)[shards]


class Reach:
    """Which values of a recount are what the view must hold.

    ``archive_from_us``: the instant from which the archive holds every event, None if it holds all that the view saw.
    """

    def __init__(self, recount: Recount, seen: Seen, archive_from_us: int | None) -> None:
        self.recount = recount
        self.archive_from_us = archive_from_us
        self._view = recount.view
        # Views over sessions have the windows of the events in the inner recount.
        self._events = recount.inner or recount
        keys = list(self._view.entity.keys)
        perhaps = self._events.counted().join(seen.uncertain, on=["_partition", "_offset"], how="semi")
        latest = perhaps.group_by(keys).agg(pl.col("_arrival").max() + 1)
        self._known_from: dict[Key, int] = {tuple(key): since_us for *key, since_us in latest.iter_rows()}
        self._begins_us = seen.begins_us
        self.is_cut = seen.is_cut
        self.n_uncertain = len(perhaps)

    @cached_property
    def first_us(self) -> int:
        """The first instant from which log rows are looked at."""
        return max(self._begins_us, self.archive_from_us or self._begins_us)

    @cached_property
    def first_sampled_us(self) -> int | None:
        """The first instant at which some value of every entity without doubt is known; None if there is none."""
        if self.archive_from_us is None:
            return self._begins_us
        known_us = self._behind(self.archive_from_us)
        firsts = [first for window in self._view.windows if (first := _first_us(window, known_us)) is not None]
        return max(self._begins_us, min(firsts)) if firsts else None

    @cached_property
    def strays_from_us(self) -> int:
        """The first instant from which every row of the log, by a hop too, has an event that is known."""
        if self.archive_from_us is None:
            return self._begins_us
        reaches = (window.extent_us + 2 * window.hop_us for window in self._view.windows)
        return max(self._begins_us, self._behind(self.archive_from_us) + max(reaches))

    def is_whole(self, key: Key) -> bool:
        """Return whether the recount has exactly the events of the entity that the view saw."""
        return self.archive_from_us is None and key not in self._known_from

    @property
    def keeps_strays(self) -> bool:
        """Whether an entity may have a value although all of its events lie before what the archive holds."""
        return self.archive_from_us is not None and any(window.kind == "lifetime" for window in self._view.windows)

    def known_features(self, key: Key, t_us: int) -> list[str]:
        """Return the features whose values at ``t_us`` rest on known events alone."""
        known_us = self._known_us(key)
        published = self._view.published
        if known_us is None:
            return [feature.name for feature in published.features]
        known = [
            window if self._is_known(number, window, key, t_us, known_us) else None
            for number, window in enumerate(self._view.windows)
        ]
        return [
            feature.name
            for feature in published.features
            if all(window in known for window in published.windows_of(feature))
        ]

    def rows_known_after_us(self, key: Key) -> int | None:
        """Return the instant after which every row of ``key`` is known; None if there is none."""
        known_us = self._known_us(key)
        if known_us is None:
            return self._begins_us - 1
        latest = self._begins_us - 1
        for number, window in enumerate(self._view.windows):
            first = (
                self.recount.quiet_from(number, key, known_us)
                if window.kind == "session"
                else first_known_us(window, known_us)
            )
            if first is None:
                return None
            latest = max(latest, first)
        return latest

    def unaudited(self, last_us: int) -> list[Unaudited]:
        """Return what the archive is too short for, as far as instants up to ``last_us`` go."""
        found: list[Unaudited] = []
        published = self._view.published
        if self.archive_from_us is not None:
            why = f"the archive begins at {format_instant(self.archive_from_us)}"
            by_bound: dict[int | None, list[str]] = {}
            known_us = self._behind(self.archive_from_us)
            for feature in published.features:
                firsts = [_first_us(window, known_us) for window in published.windows_of(feature)]
                bound = None if None in firsts else max(first for first in firsts if first is not None)
                by_bound.setdefault(None if bound is None or bound > last_us else bound, []).append(feature.name)
            found += [Unaudited(features=tuple(names), from_us=bound, why=why) for bound, names in by_bound.items()]
        if self.n_uncertain:
            why = (
                f"no record says whether the view, which began at {format_instant(self._begins_us)}, saw "
                f"{self.n_uncertain:,} early events; values of {len(self._known_from):,} entities may rest on them"
            )
            found.append(Unaudited(features=tuple(one.name for one in published.features), from_us=None, why=why))
        return found

    def _known_us(self, key: Key) -> int | None:
        """Return from when on all events of the entity are known; None if the recount has all that the view saw."""
        bounds = [self._known_from.get(key), self.archive_from_us]
        known = [bound for bound in bounds if bound is not None]
        if not known:
            return None
        known_us = max(known) + (self._view.stream.dedupe_within_us or 0)
        return known_us if self.recount.inner is None else self.recount.inner.quiet_from(0, key, known_us)

    def _behind(self, known_us: int) -> int:
        """Return the earliest instant from which events are known as they count: without repeats, as sessions."""
        known_us += self._view.stream.dedupe_within_us or 0
        inner = self.recount.inner
        return known_us if inner is None else known_us + sum(w.extent_us + w.hop_us for w in inner.view.windows)

    def _is_known(self, number: int, window: ViewWindow, key: Key, t_us: int, known_us: int) -> bool:
        if window.kind == "session":
            return t_us >= self.recount.quiet_from(number, key, known_us)
        oldest = oldest_us(window, t_us)
        return oldest is not None and oldest >= known_us


def _first_us(window: ViewWindow, known_us: int) -> int | None:
    """Return the first instant at which a window may rest on events from ``known_us`` on alone."""
    if window.kind == "session":
        return known_us + window.extent_us + window.hop_us
    return first_known_us(window, known_us)
