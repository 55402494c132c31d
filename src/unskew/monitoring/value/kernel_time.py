"""What a feature takes of the processor: archived events replayed by its view with it and without it, several times."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from unskew.features.definitions.without import without
from unskew.features.errors import RequestError, Stopped
from unskew.features.plan import ViewPlan
from unskew.features.shard_state import ShardState
from unskew.pipelines.history.archive import Archive, Piece, Reached, columns_of
from unskew.pipelines.history.rebuild import Feed, pieces
from unskew.pipelines.kafka.consumer import Flag
from unskew.pipelines.state.ordering import Shard, Siblings, shard_names
from unskew.pipelines.state.whole import WholeState

LEAST_S = 0.1
"""A run repeats its replays until each kind has taken about so much processor time, up to ``MOST_REPEATS`` times."""
MOST_REPEATS = 50

Progress = Callable[[str, int, int], None]


class NothingArchived(RequestError):
    """There are no events to replay."""


@dataclass(frozen=True, kw_only=True)
class KernelTime:
    """The processor time of replays with a feature divided by that without it: a ratio for each run.

    ``n_events``: the events of a replay.
    """

    ratios: tuple[float, ...]
    n_events: int

    @property
    def median(self) -> float:
        return median(self.ratios)

    @property
    def least(self) -> float:
        return min(self.ratios)

    @property
    def most(self) -> float:
        return max(self.ratios)


def kernel_times(
    view: ViewPlan,
    archive_root: Path,
    names: Sequence[str],
    *,
    n_events: int,
    n_runs: int,
    now_s: Callable[[], float] = time.process_time,
    stop: Flag | None = None,
    progress: Progress = lambda _view, _done, _all: None,
) -> dict[str, KernelTime]:
    """Return the kernel time of these features of a view; of one without which nothing is left, there is none.

    ``n_events``: the most events that are replayed: the first of each partition, read once and kept in memory.
    ``now_s``: the clock, by default the processor time of this process, which other processes disturb little.

    Replays with the feature and without it take turns, so that a change of the machine's speed meets both.

    Raises ``NothingArchived`` if nothing of the stream is archived, ``LayoutError`` for a damaged archive, and
    ``Stopped`` once ``stop`` is set.
    """
    lesser = {name: left for name in names if (left := without(view, [name])) is not None}
    archive = Archive.open(archive_root, view.stream)
    if not archive:
        raise NothingArchived(f"{archive.root} holds no events")
    events = _read(view, archive, n_events)
    n_read = sum(piece.events.height for piece in events)
    taken: dict[str, list[float]] = {name: [] for name in lesser}
    n_all = n_runs * len(lesser)

    def timed(one: ViewPlan) -> float:
        if stop is not None and stop.is_set():
            raise Stopped("the measurement was asked to stop")
        return _timed(one, events, now_s)

    # The first replay warms up what the second one measures.
    timed(view)
    once_s = timed(view)
    n_repeats = max(1, min(MOST_REPEATS, round(LEAST_S / once_s))) if once_s > 0 else 1
    for run in range(n_runs):
        for place, (name, left) in enumerate(lesser.items()):
            pairs = [(timed(view), timed(left)) for _ in range(n_repeats)]
            whole_s, left_s = (sum(times) for times in zip(*pairs, strict=True))
            if left_s > 0:
                taken[name].append(whole_s / left_s)
            progress(view.id, run * len(lesser) + place + 1, n_all)
    return {name: KernelTime(ratios=tuple(ratios), n_events=n_read) for name, ratios in taken.items() if ratios}


def _read(view: ViewPlan, archive: Archive, n_events: int) -> list[Piece]:
    """Return the first events of each partition; then all of them have ended, so that none holds another one back."""
    share = max(1, n_events // len(archive.cut))
    end = {
        partition: Reached(
            offset=min(reached.offset, archive.begins(partition) + share), clock_us=reached.clock_us, ended=True
        )
        for partition, reached in archive.cut.items()
    }
    return list(pieces(archive, {}, end, columns_of(view)))


def _timed(view: ViewPlan, events: Sequence[Piece], now_s: Callable[[], float]) -> float:
    partitions = sorted({piece.partition for piece in events})
    siblings = Siblings()
    shards = {
        f"{view.id}/{name}": Shard(ShardState(view, name), siblings, WholeState(None, view, name, None))
        for name in shard_names(view, partitions, 1)
    }
    feed = Feed([view], shards, n_partitions=max(partitions) + 1, n_hashes=1)
    begin_s = now_s()
    for piece in events:
        feed.give(piece)
    return now_s() - begin_s
