"""Two sets of definitions on the same archived events: which values change, for whom, when, and by how much.

Both are rebuilt side by side, and their rows are compared as they come, so that memory holds one row of each entity and
side besides the states of the shards.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl

from unskew.features.definitions.windows import old_edge_us
from unskew.features.errors import LayoutError, RequestError, Stopped
from unskew.features.keys import encode_keys
from unskew.features.plan import StreamPlan, ViewPlan
from unskew.features.shard_state import ShardState
from unskew.features.text_buffers import Keys
from unskew.features.time import DAY_US, format_instant
from unskew.features.updates import Updates
from unskew.features.versions import Version
from unskew.features.view import Scalar, View
from unskew.pipelines.history.archive import BEGINNING, Archive, Cut, Piece, columns_of
from unskew.pipelines.history.compared import (
    Compared,
    Cost,
    Counts,
    FeatureDiff,
    Found,
    Population,
    is_comparable,
    merged,
)
from unskew.pipelines.history.dealing import spread
from unskew.pipelines.history.rebuild import Feed, closed_through, pieces
from unskew.pipelines.history.side_by_side import side_by_side
from unskew.pipelines.kafka.consumer import Flag
from unskew.pipelines.state.ordering import Shard, Siblings, Slice, shard_names
from unskew.pipelines.state.whole import WholeState

STEP_ROWS = 200_000
"""Rows of both sides that are compared at once, at least; more where there are more entities than that."""
_HASHES = 1 << 64

Progress = Callable[[int, int], None]
Old = TypeVar("Old", bound=Version)
New = TypeVar("New", bound=Version)


class _NothingArchived(RequestError):
    pass


class _Enough(Exception):
    pass


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The entities that are compared: a ``share`` of all, or ``entities`` of them; those with the least hashes."""

    share: float = 1.0
    entities: int | None = None


@dataclass(frozen=True, kw_only=True)
class ViewDiff:
    """The differences of a view, or of two versions of it; ``old`` or ``new`` is None if only one side has it.

    ``unchanged``: both are one definition, so nothing was computed. ``why``: why nothing could be compared, else "";
    ``populations`` and ``costs`` may be known all the same.
    ``removed``, ``added``, ``retyped``: features of one side alone, and those whose types cannot be compared.
    ``from_us``, ``upto_us``: the first and the last instant that was compared, None without events. ``whole_from_us``:
    the instant from which windows lie inside of the archive; None if none does. ``cut_short``: the time limit passed
    before all that is archived was read. ``populations``: the values of added and retyped features at ``upto_us``.
    ``costs``: of both sides, from ``begin_us``, the first arrival that was read, through ``upto_us``.
    """

    old: str | None
    new: str | None
    unchanged: bool = False
    why: str = ""
    removed: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    retyped: tuple[str, ...] = ()
    from_us: int | None = None
    upto_us: int | None = None
    whole_from_us: int | None = None
    counts: Counts = field(default_factory=Counts)
    features: Sequence[FeatureDiff] = ()
    cut_short: bool = False
    populations: Sequence[Population] = ()
    costs: tuple[Cost, Cost] | None = None
    begin_us: int | None = None

    @property
    def rows_a_day(self) -> tuple[float, float] | None:
        """The log rows that each side writes in a day, on average over all that was computed; None without any."""
        if self.costs is None or self.upto_us is None or self.begin_us is None or self.upto_us <= self.begin_us:
            return None
        days = (self.upto_us - self.begin_us) / DAY_US
        return self.costs[0].rows / days, self.costs[1].rows / days

    @property
    def is_identical(self) -> bool:
        """True if both sides give the same values to every reader."""
        if self.old is None or self.new is None or self.why:
            return False
        return not (self.counts.differing or self.removed or self.added or self.retyped)


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """``old`` is None for a view that only the new side has: then its values are computed, and nothing is compared."""

    old: ViewPlan | None
    new: ViewPlan

    @property
    def views(self) -> list[ViewPlan]:
        return [view for view in (self.old, self.new) if view is not None]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """Pairs whose old views have one stream, and so have their new ones; the part of them that one process compares.

    ``begins``, ``ends``: by side, the place of each partition where reading begins and ends. ``hash``: that of the only
    entities that are compared, of ``n_hashes``. ``below``: by the new view's id, see ``Feed``.
    """

    pairs: Sequence[_Pair]
    archives: tuple[Archive, Archive]
    begins: tuple[Mapping[int, int], Mapping[int, int]]
    ends: tuple[Cut, Cut]
    from_us: int | None
    upto_us: int
    hash: int = 0
    n_hashes: int = 1
    below: Mapping[str, int] = field(default_factory=dict)

    @property
    def is_read_once(self) -> bool:
        """True if both sides read the same events."""
        one, other = self.archives
        return one.root == other.root and dict(one.stream.columns) == dict(other.stream.columns)

    @property
    def n_events(self) -> int:
        """How many events are read, at most."""
        return sum(
            max(0, min(file.last + 1, reached.offset) - max(file.first, self.begins[side].get(partition, BEGINNING)))
            for side in ((0,) if self.is_read_once else (0, 1))
            for partition, reached in self.ends[side].items()
            for file in self.archives[side].files.get(partition, ())
        )


def diff(
    old: Sequence[ViewPlan],
    new: Sequence[ViewPlan],
    archive_root: Path,
    *,
    from_us: int | None = None,
    until_us: int | None = None,
    sample: Sample | None = None,
    workers: int = 1,
    stop: Flag | None = None,
    progress: Progress = lambda _done, _total: None,
) -> list[ViewDiff]:
    """Compare the values that two sets of views give to the same archived events; return a result for each view.

    A view is compared with the one of its name and version, else with the latest other version of its name. Other
    arguments and errors are those of ``compare``.
    """
    return compare(
        list(paired(old, new)),
        archive_root,
        from_us=from_us,
        until_us=until_us,
        sample=sample,
        workers=workers,
        stop=stop,
        progress=progress,
    )


def compare(
    pairs_of_views: Sequence[tuple[ViewPlan | None, ViewPlan | None]],
    archive_root: Path,
    *,
    from_us: int | None = None,
    until_us: int | None = None,
    sample: Sample | None = None,
    workers: int = 1,
    stop: Flag | None = None,
    progress: Progress = lambda _done, _total: None,
    limit_s: float | None = None,
    now_s: Callable[[], float] = time.monotonic,
    must_compare: bool = True,
) -> list[ViewDiff]:
    """Compare the values that the views of each pair, an old and a new one, give to the same archived events.

    A new view without an old one is computed alone, and its values at the last instant are described.
    ``from_us``, ``until_us``: the first instant that is compared, and the end of them; None for all that is archived.
    ``progress``: called with the events read and all there are. ``stop``: raises ``Stopped`` once it is set.
    ``limit_s``: once so many seconds have passed, what was read by then is all that is compared; one process reads.
    ``now_s``: the clock for that.
    ``must_compare``: whether what cannot be computed is refused; else its result says why. A view of the new side
    alone, of whose stream nothing is archived, never is.

    Raises ``RequestError`` if nothing of a stream is archived or there are no instants between the bounds;
    ``LayoutError`` for a damaged archive, or one that lacks a column.
    """
    if from_us is not None and until_us is not None and from_us >= until_us:
        raise RequestError(
            f"there are no instants from {format_instant(from_us)} until {format_instant(until_us)}; give a later end"
        )
    deadline_s = None if limit_s is None else now_s() + limit_s
    results: dict[tuple[str | None, str | None], ViewDiff | None] = {}
    # A job has a view of either side once.
    by_streams: dict[tuple[str | int, ...], list[_Pair]] = {}
    for one, other in pairs_of_views:
        place = None if one is None else one.id, None if other is None else other.id
        results[place] = _without_events(one, other)
        if results[place] is None:
            assert other is not None
            n_before = 0 if one is None else sum(at[0] == one.id and found is None for at, found in results.items()) - 1
            sides = ("", "") if one is None else (one.stream.topic, one.stream.name)
            streams = *sides, other.stream.topic, other.stream.name, n_before
            by_streams.setdefault(streams, []).append(_Pair(old=one, new=other))
    jobs: list[_Job] = []
    for pairs in by_streams.values():
        try:
            jobs.append(_job(pairs, archive_root, from_us, until_us, sample or Sample()))
        except (RequestError, LayoutError) as error:
            if must_compare and not (isinstance(error, _NothingArchived) and pairs[0].old is None):
                raise
            results |= _without_figures(pairs, str(error))
    n_parts = [1 if deadline_s is not None else min(workers, _n_parts(job)) for job in jobs]
    total = sum(job.n_events * (1 if _by_partition(job) else n) for job, n in zip(jobs, n_parts, strict=True))
    done = 0
    for job, n in zip(jobs, n_parts, strict=True):
        is_late = False

        def so_far(n_events: int, before: int = done) -> None:
            nonlocal is_late
            if stop is not None and stop.is_set():
                raise Stopped("the comparison was asked to stop")
            progress(before + n_events, total)
            if deadline_s is not None and now_s() > deadline_s:
                is_late = True
                raise _Enough

        try:
            found = _compare(job, so_far) if n == 1 else merged(side_by_side(_compare_apart, _parts(job, n), so_far))
        except LayoutError as error:
            if must_compare:
                raise
            results |= _without_figures(job.pairs, str(error))
            continue
        done += job.n_events * (1 if _by_partition(job) else n)
        for pair in job.pairs:
            results[None if pair.old is None else pair.old.id, pair.new.id] = _result(
                job, pair, found[pair.new.id], cut_short=is_late
            )
    return [one for one in results.values() if one is not None]


def _without_figures(pairs: Sequence[_Pair], why: str) -> dict[tuple[str | None, str | None], ViewDiff]:
    found = [replace(_of_features(pair), why=why) for pair in pairs]
    return {(one.old, one.new): one for one in found}


def _result(job: _Job, pair: _Pair, found: Found, *, cut_short: bool) -> ViewDiff:
    plain = replace(_of_features(pair), cut_short=cut_short)
    if cut_short and not found.counts.entities and not any(one.entities for one in found.added):
        return replace(plain, why="the time limit passed before anything was compared")
    return replace(
        plain,
        from_us=_first_us(job),
        upto_us=found.upto_us,
        whole_from_us=_whole_from_us(job, pair),
        counts=found.counts,
        features=found.features,
        populations=found.added,
        costs=found.costs,
        begin_us=_begin_us(job),
    )


def paired(old: Sequence[Old], new: Sequence[New]) -> Iterator[tuple[Old | None, New | None]]:
    """Yield each new view with its old one, which has its name and version, else the latest other version of its name.

    Old views that no new one has are paired with None, and last.
    """
    by_id = {view.id: view for view in old}
    followed: set[str] = set()
    for view in new:
        versions = sorted((one for one in old if one.name == view.name), key=lambda one: one.version)
        partner = by_id.get(view.id) or (versions[-1] if versions else None)
        followed |= set() if partner is None else {partner.id}
        yield partner, view
    for gone in old:
        if gone.id not in followed:
            yield gone, None


def _without_events(old: ViewPlan | None, new: ViewPlan | None) -> ViewDiff | None:
    """Return the result for views that need no rebuild; None for others."""
    if old is None or new is None:
        return None if old is None else ViewDiff(old=old.id, new=None, removed=tuple(one.name for one in old.outputs))
    pair = _of_features(_Pair(old=old, new=new))
    if old.entity.columns != new.entity.columns:
        keys = (
            ", ".join(f"{key} {dtype}" for key, dtype in zip(one.entity.keys, one.entity.types, strict=True))
            for one in (old, new)
        )
        return replace(pair, why=f"the entity was ({next(keys)}) and is ({next(keys)})")
    if not (set(pair.removed) | set(pair.added) | set(pair.retyped)) and _read_alike(old, new):
        return replace(pair, unchanged=True)
    return None


def _read_alike(old: ViewPlan, new: ViewPlan) -> bool:
    return old.state_fingerprint == new.state_fingerprint and defaults_of(old.published) == defaults_of(new.published)


def defaults_of(view: View) -> dict[str, Scalar | None]:
    """Return the default of each feature."""
    return {one.name: one.default for one in view.features}


def _of_features(pair: _Pair) -> ViewDiff:
    olds = {} if pair.old is None else {one.name: one for one in pair.old.outputs}
    news = {one.name: one for one in pair.new.outputs}
    added = tuple(name for name in news if name not in olds)
    retyped = tuple(name for name, one in news.items() if name in olds and not is_comparable(olds[name], one))
    has_common = pair.old is None or len(news) > len(added) + len(retyped)
    return ViewDiff(
        old=None if pair.old is None else pair.old.id,
        new=pair.new.id,
        why="" if has_common else "no feature is on both sides with a type that can be compared",
        removed=tuple(name for name in olds if name not in news),
        added=added,
        retyped=retyped,
    )


def _job(pairs: Sequence[_Pair], archive_root: Path, from_us: int | None, until_us: int | None, sample: Sample) -> _Job:
    news = [pair.new for pair in pairs]
    # Without an old view, both sides read what the new one does.
    views = [pair.old for pair in pairs if pair.old is not None] or news, news
    archives = [_opened(archive_root, ones[0].stream, ones) for ones in views]
    if archives[0].root == archives[1].root:
        # What is published meanwhile must not be on one side alone.
        archives[1] = replace(archives[0], stream=archives[1].stream)
    clocks = [
        reached.clock_us for archive in archives for reached in archive.cut.values() if reached.clock_us is not None
    ]
    bounds = [min(clocks, default=0) - 1, *(() if until_us is None else (until_us - 1,))]
    upto_us = min(bounds)
    if from_us is not None and from_us > upto_us:
        raise RequestError(
            f"there are no instants from {format_instant(from_us)} on: the archive of {archives[0].stream.topic} is complete to "
            f"{format_instant(upto_us)}"
        )
    ends = [closed_through(archive, upto_us) for archive in archives]
    begins = [_begin(archive, ones, from_us) for archive, ones in zip(archives, views, strict=True)]
    if archives[0].root == archives[1].root:
        both = {partition: min(begin[partition] for begin in begins) for partition in begins[0]}
        begins = [both, both]
    return _Job(
        pairs=pairs,
        archives=(archives[0], archives[1]),
        begins=(begins[0], begins[1]),
        ends=(ends[0], ends[1]),
        from_us=from_us,
        upto_us=upto_us,
        below=_below(pairs, archives[1], ends[1], sample),
    )


def _opened(archive_root: Path, stream: StreamPlan, views: Sequence[ViewPlan]) -> Archive:
    archive = Archive.open(archive_root, stream)
    if not archive:
        raise _NothingArchived(
            f"{archive.root} holds no events, so {', '.join(view.id for view in views)} cannot be computed from them; give the "
            "--archive folder of the pipeline"
        )
    # A partition without a clock is known as far as its last event.
    known = {
        partition: replace(reached, clock_us=int(archive.last(partition)["_arrival"].to_physical()[0]))
        for partition, reached in archive.cut.items()
        if reached.clock_us is None and archive.files.get(partition)
    }
    return replace(archive, cut={**archive.cut, **known})


def _begin(archive: Archive, views: Sequence[ViewPlan], from_us: int | None) -> dict[int, int]:
    """Return the place of each partition before which no event matters to a value at ``from_us`` or later."""
    edges = [_edge_us(view, from_us) for view in views]
    known = [edge for edge in edges if edge is not None]
    if len(known) < len(edges):
        return dict.fromkeys(archive.partitions, BEGINNING)
    return {partition: archive.offset_at(partition, min(known)) for partition in archive.partitions}


def _edge_us(view: ViewPlan, from_us: int | None) -> int | None:
    """Return the instant such that no earlier arrival matters from ``from_us`` on; None if all do."""
    # How far back a session reaches depends on its events.
    if from_us is None or view.sessions is not None:
        return None
    if any(window.kind in {"lifetime", "session"} for window in view.windows):
        return None
    edges = [int(old_edge_us(window, np.array([from_us], np.int64))[0]) for window in view.windows]
    # An event counts from when it happened or arrived, whichever was earlier; a repeat, from the one it repeats. What
    # that one repeated in turn cannot be known, so all that lie before are read.
    return None if view.stream.dedupe_within_us is not None else min(edges, default=None)


def _first_us(job: _Job) -> int | None:
    if job.from_us is not None:
        return job.from_us
    firsts = [first_us for archive in job.archives for first_us in archive.first_us.values()]
    return min(firsts, default=None)


def _begin_us(job: _Job) -> int | None:
    """Return the first arrival that was read, or the instant before which no event mattered."""
    firsts = [first_us for archive in job.archives for first_us in archive.first_us.values()]
    edges = [_edge_us(view, job.from_us) for pair in job.pairs for view in pair.views]
    known = [edge for edge in edges if edge is not None]
    first_us = min(firsts, default=None)
    return first_us if first_us is None or len(known) < len(edges) else max(first_us, min(known))


def _whole_from_us(job: _Job, pair: _Pair) -> int | None:
    """Return the instant from which every window, except for endless ones, begins after the archive does."""
    sinces = [max(archive.first_us.values(), default=None) for archive in job.archives]
    if None in sinces:
        return None
    extents = [
        window.extent_us + window.hop_us
        for view in pair.views
        for window in (*view.windows, *(() if view.sessions is None else view.sessions.windows))
    ]
    first_us = max(since for since in sinces if since is not None) + max(extents, default=0)
    return first_us if first_us <= job.upto_us else None


def _below(pairs: Sequence[_Pair], archive: Archive, end: Cut, sample: Sample) -> dict[str, int]:
    if sample.entities is None:
        return {} if sample.share >= 1 else {pair.new.id: int(sample.share * _HASHES) for pair in pairs}
    by_keys: dict[tuple[str, ...], int] = {}
    for pair in pairs:
        entity = pair.new.entity
        if entity.keys not in by_keys:
            least = np.empty(0, np.uint64)
            for partition, reached in end.items():
                for events in archive.read(partition, BEGINNING, reached.offset, entity.keys):
                    keys = encode_keys(events, entity).drop_nulls().unique()
                    least = np.unique(np.concatenate((least, Keys.of(keys).hashes())))[: sample.entities + 1]
            # Those below the next one.
            by_keys[entity.keys] = int(least[-1]) if len(least) > sample.entities else _HASHES - 1
    return {pair.new.id: by_keys[pair.new.entity.keys] for pair in pairs}


def _by_partition(job: _Job) -> bool:
    """Return whether each partition has entities of its own, on both sides alike."""
    return job.archives[0].root == job.archives[1].root and all(
        view.partitioned for pair in job.pairs for view in pair.views
    )


def _n_parts(job: _Job) -> int:
    return len(job.ends[0]) if _by_partition(job) else 64


def _parts(job: _Job, n_parts: int) -> list[_Job]:
    if not _by_partition(job):
        return [replace(job, hash=number, n_hashes=n_parts) for number in range(n_parts)]
    weights = {partition: 1 + _only(job, [partition]).n_events for partition in sorted(job.ends[0])}
    return [_only(job, mine) for mine in spread(weights, n_parts)]


def _only(job: _Job, partitions: Sequence[int]) -> _Job:
    """Return the part of a job that reads some partitions."""
    one, other = ({partition: end[partition] for partition in partitions} for end in job.ends)
    return replace(job, ends=(one, other))


class _Side:
    """The old or the new views of a job, computed as far as they were read."""

    def __init__(self, job: _Job, side: int) -> None:
        pairs = [(view, pair) for pair in job.pairs if (view := (pair.old, pair.new)[side]) is not None]
        self.views = [view for view, _ in pairs]
        self._archive, self._begin, self._end = job.archives[side], job.begins[side], job.ends[side]
        siblings = Siblings()
        n_partitions = max([-1, *self._archive.partitions]) + 1
        self._kept: dict[str, _Rows] = {}
        for view in self.views:
            for name in shard_names(view, sorted(self._end), job.n_hashes):
                if job.n_hashes == 1 or name.endswith(f"{'.' if view.partitioned else 'h'}{job.hash}"):
                    shard = Shard(ShardState(view, name), siblings, WholeState(None, view, name, None))
                    self._kept[f"{view.id}/{name}"] = _Rows(shard)
        self._feed = Feed(
            self.views,
            self._kept,
            n_partitions=n_partitions,
            n_hashes=job.n_hashes,
            below={view.id: job.below[pair.new.id] for view, pair in pairs if job.below},
        )
        self._clocks = {partition: -(2**63) for partition, reached in self._end.items() if reached.clock_us is not None}

    def pieces(self, columns: Sequence[str]) -> Iterator[Piece]:
        return pieces(self._archive, self._begin, self._end, columns)

    @property
    def columns(self) -> list[str]:
        return [name for view in self.views for name in columns_of(view)]

    @property
    def closed_us(self) -> int:
        """The last instant that every shard has closed."""
        return min(self._clocks.values(), default=-(2**63) + 1) - 1 if self._clocks else 2**63 - 1

    @property
    def n_rows(self) -> int:
        return sum(one.n_rows for one in self._kept.values())

    def give(self, piece: Piece) -> None:
        self._feed.give(piece)
        if piece.clock_us is not None and piece.partition in self._clocks:
            self._clocks[piece.partition] = max(piece.clock_us, self._clocks[piece.partition])

    def taken(self, view: ViewPlan, upto_us: int) -> pl.DataFrame:
        """Return and forget the rows of a view through an instant."""
        empty = ShardState(view, "h0").apply(None, 0).closed.clear()
        shards = [one for name, one in self._kept.items() if name.startswith(f"{view.id}/")]
        return pl.concat([empty, *(rows for one in shards for rows in one.taken(upto_us))])


class _Rows:
    """A shard and its closed rows that nobody has taken yet."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._rows: list[pl.DataFrame] = []
        self.n_rows = 0

    def take(self, piece: Slice) -> None:
        updates = self._shard.take(piece)
        if isinstance(updates, Updates) and updates.closed_rows.height:
            self._rows.append(updates.closed)
            self.n_rows += updates.closed_rows.height

    def taken(self, upto_us: int) -> list[pl.DataFrame]:
        if not self._rows:
            return []
        at = pl.col("available_at").to_physical()
        early = [rows.filter(at <= upto_us) for rows in self._rows]
        late = [rows.filter(at > upto_us) for rows in self._rows]
        self._rows = [rows for rows in late if rows.height]
        self.n_rows = sum(rows.height for rows in self._rows)
        return early


def _compare(job: _Job, so_far: Callable[[int], None]) -> dict[str, Found]:
    """Rebuild both sides side by side, and compare what both have closed, until ``so_far`` raises ``_Enough``."""
    sides = _Side(job, 0), _Side(job, 1)
    compared = [Compared(None if pair.old is None else pair.old.published, pair.new.published) for pair in job.pairs]
    reads: list[tuple[Iterator[Piece], Sequence[_Side]]]
    if job.is_read_once:
        together = [*sides[0].columns, *sides[1].columns]
        reads = [(sides[0].pieces(together), sides)]
    else:
        reads = [(side.pieces(side.columns), (side,)) for side in sides]
    n_events = 0

    def step(*, last: bool = False) -> int:
        upto_us = min(job.upto_us, *(side.closed_us for side in sides))
        for pair, one in zip(job.pairs, compared, strict=True):
            new = sides[1].taken(pair.new, upto_us)
            one.add(new.clear() if pair.old is None else sides[0].taken(pair.old, upto_us), new, job.from_us)
            if last and job.from_us is not None:
                one.begin(job.from_us)
        return upto_us

    while reads:
        # The side that is behind goes on, so that few rows of the other wait for it.
        behind = min(reads, key=lambda read: read[1][0].closed_us)
        piece = next(behind[0], None)
        if piece is None:
            reads.remove(behind)
            continue
        for side in behind[1]:
            side.give(piece)
        n_events += piece.events.height
        try:
            so_far(n_events)
        except _Enough:
            break
        if sum(side.n_rows for side in sides) > max(STEP_ROWS, *map(len, compared)):
            step()
    upto_us = step(last=True)
    for one in compared:
        one.finish()
    return {
        pair.new.id: Found(counts=one.counts, features=one.features, added=one.added, costs=one.costs, upto_us=upto_us)
        for pair, one in zip(job.pairs, compared, strict=True)
    }


def _compare_apart(job: _Job, stop: Flag, report: Callable[[int], None]) -> dict[str, Found]:
    def so_far(n_events: int) -> None:
        if stop.is_set():
            raise Stopped("the comparison was asked to stop")
        report(n_events)

    return _compare(job, so_far)
