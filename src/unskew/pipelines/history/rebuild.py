"""The rebuild: views of one stream computed from its archive, as the stream computed them.

There is no second way to compute a value: the events pass through the same evaluation, split into the same slices of
the same shards, in the same order, as when they were read from the topic.
"""

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import polars as pl

from unskew.features.evaluate import Evaluator
from unskew.features.events import Events
from unskew.features.keys import encode_keys, shard_of
from unskew.features.plan import ViewPlan
from unskew.features.shard_state import ShardState
from unskew.features.text_buffers import Keys
from unskew.features.updates import NothingToCome, Updates
from unskew.pipelines.history.archive import BEGINNING, META, Archive, Cut, Piece, Reached, columns_of
from unskew.pipelines.routing import slices
from unskew.pipelines.state.ordering import Shard, Siblings, Slice, shard_names
from unskew.pipelines.state.whole import WholeState


class Takes(Protocol):
    """What a slice is given to: a shard, or a shard with the tables that keep what it puts out."""

    def take(self, piece: Slice) -> object: ...


def pieces(
    archive: Archive,
    begin: Mapping[int, int],
    end: Cut,
    columns: Sequence[str],
    *,
    since_us: int | None = None,
) -> Iterator[Piece]:
    """Yield the events between two places of a stream, always of the partition that is furthest behind.

    So few events wait for other partitions. ``begin``: the first offset of each partition that is not read from its
    beginning. ``since_us``: the instant from which everything is known; None for the beginning of the archive. The last
    piece of each partition has its clock at ``end``.
    """
    wanted = list(dict.fromkeys(columns))
    archive.require(wanted, begin)
    reads = {
        partition: archive.read(partition, begin.get(partition, BEGINNING), reached.offset, wanted)
        for partition, reached in end.items()
    }
    none = pl.DataFrame(schema={**{name: archive.stream.columns[name] for name in wanted}, **_META_TYPES})
    # A partition without a clock comes first: the others wait until it has one.
    queue = [(-(2**63), partition) for partition in sorted(reads)]
    begun: set[int] = set()
    while queue:
        _, partition = heapq.heappop(queue)
        events = next(reads[partition], None)
        first_us = None
        if partition not in begun:
            begun.add(partition)
            first_us = archive.first_us.get(partition) if since_us is None else since_us
        if events is None:
            reached = end[partition]
            yield Piece(
                partition=partition, events=none, clock_us=reached.clock_us, first_us=first_us, ended=reached.ended
            )
            continue
        clock_us = int(events["_arrival"].to_physical()[-1])
        yield Piece(partition=partition, events=events, clock_us=clock_us, first_us=first_us, ended=False)
        heapq.heappush(queue, (clock_us, partition))


_META_TYPES = {
    "_partition": pl.Int32(),
    "_offset": pl.Int64(),
    "_arrival": pl.Datetime("us", "UTC"),
    "_event_time": pl.Datetime("us", "UTC"),
}
assert tuple(_META_TYPES) == META


class Feed:
    """Gives pieces of the archive to the shards of some views of one stream.

    ``shards``: by ``view@version/shard``; slices of others are left out. ``keys``: the canonical keys of the only
    entities that count; None for all. ``below``: by view id, the hash of a key that is not below it does not count.
    ``rejected``: number of events so far that a view could not take. ``why``: the reason of the first one, and
    ``where`` its partition and offset.
    """

    def __init__(
        self,
        views: Sequence[ViewPlan],
        shards: Mapping[str, Takes],
        *,
        n_partitions: int,
        n_hashes: int,
        keys: Mapping[str, pl.Series] | None = None,
        below: Mapping[str, int] | None = None,
    ) -> None:
        self._views = [(view, Evaluator(view)) for view in views]
        self._shards = shards
        self._n_partitions = n_partitions
        self._n_hashes = n_hashes
        self._keys = keys
        self._below = below or {}
        self.rejected = 0
        self.why: str | None = None
        self.where: tuple[int, int] | None = None

    def _chosen(self, view: ViewPlan, events: pl.DataFrame) -> pl.DataFrame:
        """Return the events of the entities that count: often few, so nothing else is worked out of the others."""
        if self._keys is None:
            return events
        keys = encode_keys(events, (view.sessions or view).entity)
        return events.filter(keys.is_in(self._keys[view.id].implode()))

    def give(self, piece: Piece) -> None:
        """Give one piece to every shard that its partition feeds."""
        for view, evaluate in self._views:
            events = None
            if piece.events.height:
                evaluated = evaluate(self._chosen(view, piece.events))
                self.rejected += evaluated.rejected.height
                if self.why is None and evaluated.rejected.height:
                    partition, offset, _, self.why = evaluated.rejected.row(0)
                    self.where = partition, offset
                events = evaluated.events
                if view.id in self._below:
                    events = events.filter(pl.Series(Keys.of(events["key"]).hashes() < np.uint64(self._below[view.id])))
                names = shard_names(view, [piece.partition], self._n_hashes)
                is_here = np.array([f"{view.id}/{name}" in self._shards for name in names])
                if not is_here.all():
                    # Splitting costs several times what this does, and other processes have the other shards.
                    events = events.filter(pl.Series(is_here[shard_of(events["key"], len(is_here))]))
            for name, one in slices(
                view,
                None if events is None else Events(events),
                n_hashes=self._n_hashes,
                partition=piece.partition,
                n_partitions=self._n_partitions,
                clock_us=piece.clock_us,
                first_us=piece.first_us,
                ended=piece.ended,
            ):
                shard = self._shards.get(name)
                if shard is not None:
                    shard.take(one)


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """A view's log rows in memory, columns as in ``Updates.closed``, and what they cover.

    ``since_us``, ``first_since_us``, ``complete_to_us``: as in ``Coverage``; None without events. ``rows``: those
    of each shard in their order. ``shards``: the states at the end.
    """

    view: ViewPlan
    rows: pl.DataFrame
    since_us: int | None
    first_since_us: int | None
    complete_to_us: int | None
    shards: Sequence[Shard]


def rebuild(
    views: Sequence[ViewPlan],
    archive: Archive,
    *,
    begin: Mapping[int, int] | None = None,
    end: Cut | None = None,
    since_us: int | None = None,
    keys: Mapping[str, pl.Series] | None = None,
    n_partitions: int | None = None,
    n_hashes: int = 1,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> dict[str, Rebuilt]:
    """Compute views of one stream anew from its archive, in memory; return them by id.

    ``begin``, ``end``, ``since_us``: as in ``pieces``; by default all that is published. ``keys``: by view id, the
    canonical keys of the only entities that are computed; None for all. ``n_partitions``: those of the stream, if more
    than the archive has. ``progress``: called with the events that were read, and the most that there may be. Raises
    ``LayoutError`` for a damaged archive, or one that lacks a column.
    """
    end = whole(archive) if end is None else end
    firsts = {partition: max((begin or {}).get(partition, 0), archive.begins(partition)) for partition in end}
    most = sum(max(0, reached.offset - firsts[partition]) for partition, reached in end.items())
    n_read = 0

    def read() -> Iterator[Piece]:
        nonlocal n_read
        columns = [name for view in views for name in columns_of(view)]
        for piece in pieces(archive, begin or {}, end, columns, since_us=since_us):
            yield piece
            n_read += piece.events.height
            progress(n_read, most)

    n_partitions = max([-1, *end]) + 1 if n_partitions is None else n_partitions
    shards = {view.id: shard_names(view, sorted(end), n_hashes) for view in views}
    rebuilt, _ = rebuild_pieces(views, read(), shards, n_partitions=n_partitions, n_hashes=n_hashes, keys=keys)
    return rebuilt


def rebuild_pieces(
    views: Sequence[ViewPlan],
    pieces: Iterable[Piece],
    shards: Mapping[str, Sequence[str]],
    *,
    n_partitions: int,
    n_hashes: int = 1,
    keys: Mapping[str, pl.Series] | None = None,
) -> tuple[dict[str, Rebuilt], Feed]:
    """Compute views of one stream from pieces of its events, wherever these are; return them by id, and the feed.

    ``shards``: the shards of each view, by its id; other arguments as for ``Feed``.
    """
    siblings = Siblings()
    kept = {
        f"{view.id}/{name}": _Kept(Shard(ShardState(view, name), siblings, WholeState(None, view, name, None)))
        for view in views
        for name in shards[view.id]
    }
    feed = Feed(views, kept, n_partitions=n_partitions, n_hashes=n_hashes, keys=keys)
    for piece in pieces:
        feed.give(piece)
    return {
        view.id: _rebuilt(view, [one for name, one in kept.items() if name.startswith(f"{view.id}/")]) for view in views
    }, feed


def whole(archive: Archive) -> dict[int, Reached]:
    """Return the end of what an archive has published; a partition that has no clock holds no other back."""
    return {
        partition: Reached(offset=reached.offset, clock_us=reached.clock_us, ended=reached.clock_us is None)
        for partition, reached in archive.cut.items()
    }


def closed_through(archive: Archive, until_us: int) -> dict[int, Reached]:
    """Return the place of each partition at which all instants through ``until_us`` are closed, or its end."""
    past_us = until_us + 1
    return {
        partition: Reached(offset=archive.offset_at(partition, past_us), clock_us=past_us)
        if reached.clock_us is not None and reached.clock_us > past_us
        else reached
        for partition, reached in whole(archive).items()
    }


class _Kept:
    """A shard whose closed rows are kept in memory."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard
        self.rows: list[pl.DataFrame] = []

    def take(self, piece: Slice) -> Updates | NothingToCome | None:
        updates = self.shard.take(piece)
        if isinstance(updates, Updates) and updates.closed_rows.height:
            self.rows.append(updates.closed)
        return updates


def _rebuilt(view: ViewPlan, kept: Sequence[_Kept]) -> Rebuilt:
    rows = [rows for one in kept for rows in one.rows] or [ShardState(view, "h0").apply(None, 0).closed.clear()]
    states = [one.shard.state for one in kept]
    sinces = [state.since_us for state in states if state.since_us is not None]
    clocks = [state.clock_us for state in states if state.clock_us is not None]
    return Rebuilt(
        view=view,
        rows=pl.concat(rows),
        since_us=max(sinces, default=None),
        first_since_us=min(sinces, default=None),
        complete_to_us=min(clocks) - 1 if clocks else None,
        shards=[one.shard for one in kept],
    )
