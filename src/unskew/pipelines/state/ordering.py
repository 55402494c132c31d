"""One shard of one view inside the flow: when events are applied, which are repeats, and checks of the partitioning."""

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import polars as pl

from unskew.features.errors import LayoutError
from unskew.features.events import Events
from unskew.features.kernel.directory import Directories, Directory
from unskew.features.kernel.repeats import Repeats
from unskew.features.plan import ViewPlan
from unskew.features.selecting import joined, own_texts
from unskew.features.shard_state import ShardState
from unskew.features.updates import NothingToCome, Updates
from unskew.pipelines.state.changelog import Changelog, Changelogs, Manifest, restored
from unskew.pipelines.state.whole import WholeState, without
from unskew.sinks.ipc import from_ipc, to_ipc

LAYOUT = 3
_READABLE = {2, LAYOUT}
"""Manifests of layout 2 keep no events."""
MOST_AT_ONCE = 100_000
"""A step is made at the latest when so many events have come since the last one."""


class Slice(msgspec.Struct, frozen=True):
    """The part of one poll of one partition that belongs to one shard.

    ``events``: as from ``evaluate``, in offset order; None if there are none. ``clock_us``: the partition's clock after
    the poll; None while it has none. ``first_us``: its first arrival in the poll; None without records. ``ended``: the
    partition has reached its end offset and no longer holds back the others. ``n_partitions``: number of partitions of
    the topic. ``replaying``: an earlier run of the process showed more than the partition has given so far.
    ``resumed``: the partition began with a clock that earlier slices carried, and its first slice carries it without
    events.
    """

    view: str
    shard: str
    partition: int
    n_partitions: int
    clock_us: int | None
    first_us: int | None
    ended: bool
    events: Events | None
    replaying: bool = False
    resumed: bool = False


@dataclass(slots=True)
class _Waiting:
    """Events that not every partition's clock has passed yet, and those clocks.

    ``events``: by partition, in the order of offsets, and so of arrivals.
    """

    clocks: dict[int, int] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    events: dict[int, deque[Events]] = field(default_factory=dict)

    def together(self) -> pl.DataFrame | None:
        """Return all waiting events in one frame, in the order of partitions and offsets; None if there are none."""
        frames = [part.frame for _, queue in sorted(self.events.items()) for part in queue]
        return joined(frames) if frames else None

    def split(self, events: pl.DataFrame) -> None:
        """Let events of any partitions wait that are in the order of offsets for each of them."""
        for (partition,), part in events.group_by("partition", maintain_order=True):
            self.events[partition] = deque([Events(part)])

    def take_before(self, clock_us: int | None) -> list[Events]:
        """Take out the events that arrived before ``clock_us`` (None: all), in the order of partitions and offsets."""
        taken: list[Events] = []
        for _, queue in sorted(self.events.items()):
            while queue:
                first = queue[0]
                n_before = first.height if clock_us is None else int(np.searchsorted(first.arrivals, clock_us))
                if n_before < first.height:
                    if n_before:
                        before, queue[0] = first.cut(n_before)
                        taken.append(before)
                    break
                taken.append(queue.popleft())
        return taken


@dataclass(slots=True)
class _Beginning:
    """The beginning of a shard's coverage, as the first slice of each partition gives it, microseconds.

    ``first_us``: the earliest arrival that the shard may have seen; None before one. ``missed_us``: the latest clock
    that a partition had before the view, up to which the shard may lack events; None if there was none.
    """

    first_us: int | None = None
    missed_us: int | None = None


class Shard:
    """A view's state in one shard; it puts events in the order that the kind of shard requires.

    If the topic is partitioned by the entity, events are applied as they come, and the clock is the partition's.
    Otherwise an event waits until every partition's clock has passed its arrival, and is then applied in (arrival,
    partition, offset) order; the clock is the minimum over the partitions that have not ended, and once all have ended,
    the latest of them. If the stream defines repeats, events that are repeats are dropped once they are in order.
    """

    def __init__(
        self,
        state: ShardState,
        siblings: "Siblings",
        changelog: Changelog | WholeState,
        waiting: _Waiting | None = None,
        repeats: Repeats | None = None,
        beginning: _Beginning | None = None,
    ) -> None:
        self.state = state
        self._beginning = beginning or _Beginning()
        self.changelog = changelog
        self.repeats = repeats
        if repeats is None and state.view.stream.dedupe_within_us is not None:
            self.repeats = Repeats(state.view, state.shard)
        self._siblings = siblings
        self._waiting = waiting or _Waiting()
        # Partitions that have given all that an earlier run of the process had shown.
        self._caught_up: set[int] = set()
        self.behind = True
        self._n_partitions: int | None = None
        siblings.join(self)

    def take(self, piece: Slice) -> Updates | NothingToCome | None:
        """Apply what may be applied after this slice.

        Returns None while the shard has no clock but may still get one.
        """
        self._note_beginning(piece)
        if self.behind:
            self._note_replay(piece)
        if self.state.view.partitioned:
            if piece.clock_us is None:
                return self._without_clock(ended=piece.ended)
            return self._apply(piece.events, max(piece.clock_us, self.state.clock_us or piece.clock_us))
        self._wait(piece)
        return self._step(piece.n_partitions)

    def take_all(self, pieces: Sequence[Slice]) -> list[Updates | NothingToCome]:
        """Apply what may be applied after these slices, as ``take`` does with one after the other, in fewer steps.

        A shard that waits for all partitions makes one step, because what the slices of others release is the same.
        """
        taken: list[Updates | NothingToCome | None] = []
        waiting, n_events = None, 0
        for piece in pieces:
            # Which slice gives the shard its clock decides where its coverage begins.
            if self.state.view.partitioned or self.state.clock_us is None:
                taken.append(self.take(piece))
                continue
            if self.behind:
                self._note_replay(piece)
            self._wait(piece)
            waiting = piece.n_partitions
            n_events += 0 if piece.events is None else piece.events.height
            if n_events >= MOST_AT_ONCE:
                taken.append(self._step(waiting))
                waiting, n_events = None, 0
        if waiting is not None:
            taken.append(self._step(waiting))
        return [update for update in taken if update is not None]

    def _apply(self, events: Events | None, clock_us: int) -> Updates:
        """Apply events, which are in the order in which they count, except those that are repeats."""
        before = self.dropped
        if self.repeats is not None:
            kept = self.repeats.drop(None if events is None else events.frame, clock_us)
            if self.dropped != before and kept is not None:
                events = Events(kept)
        updates = self.state.apply(events, clock_us)
        if events is not None and events.height:
            if self.state.view.partitioned:
                self._siblings.refuse_strangers(self, events.frame)
            self.changelog.append(events.frame)
        return self._completed(updates, self.dropped - before)

    def _completed(self, updates: Updates, duplicates: int = 0) -> Updates:
        """Add what only the shard knows."""
        return updates.but(
            duplicates=duplicates,
            duplicates_total=self.dropped,
            applied=self.changelog.applied,
            behind=self.behind,
            begins_us=self._beginning.first_us,
        )

    def everything(self, n_rows: int) -> Iterator[Updates]:
        """Yield the current rows of all entities, as ``ShardState.everything`` does."""
        return map(self._completed, self.state.everything(n_rows))

    def forget(self, gone: Callable[[pl.Series], pl.Series]) -> None:
        """Forget some entities, as if they had never been; only for a shard whose state is written whole.

        ``gone``: says for a series of canonical keys which they are.
        """
        assert isinstance(self.changelog, WholeState)
        self.state = self.state.without(gone)
        self.changelog.forget(gone)
        waiting = self._waiting.together()
        self._waiting.events = {}
        if waiting is not None:
            self._waiting.split(without(waiting, gone))

    @property
    def dropped(self) -> int:
        """The number of events that were repeats."""
        return 0 if self.repeats is None else self.repeats.dropped

    @property
    def directories(self) -> list[Directory]:
        """The directories that together have all entities of which anything is kept here."""
        return [*self.state.directories, *([] if self.repeats is None else [self.repeats.entities])]

    def _note_beginning(self, piece: Slice) -> None:
        """Until the shard has a clock, find from which instant on it has seen every event of every partition.

        The first slice of each partition counts; later ones would depend on how quickly the partitions were read. A new
        view in an old topic has seen nothing that arrived up to the clocks that the partitions had before it, so its
        coverage begins after the latest of them. A partition without such a clock hides nothing: if that is so for all,
        coverage begins with the first arrival, or after a clock that came before any.
        """
        if self.state.clock_us is not None or piece.clock_us is None or piece.partition in self._waiting.clocks:
            return
        begun = self._beginning
        first_us = piece.first_us
        if piece.resumed:
            # Other events of the clock's own instant may still come.
            first_us = piece.clock_us
            begun.missed_us = first_us if begun.missed_us is None else max(begun.missed_us, first_us)
        elif first_us is None:
            first_us = piece.clock_us + 1
        begun.first_us = first_us if begun.first_us is None else min(begun.first_us, first_us)
        self.state.since_us = begun.first_us if begun.missed_us is None else begun.missed_us + 1

    def _note_replay(self, piece: Slice) -> None:
        if not piece.replaying:
            self._caught_up.add(piece.partition)
        needed = 1 if self.state.view.partitioned else piece.n_partitions
        self.behind = len(self._caught_up) < needed

    def _wait(self, piece: Slice) -> None:
        """Let a slice's events wait until every partition's clock has passed them, and note the clock of its own."""
        waiting = self._waiting
        if self._n_partitions not in {None, piece.n_partitions}:
            raise LayoutError(
                f"stream {self.state.view.stream.name}: one process reads {self._n_partitions} partitions and another one "
                f"{piece.n_partitions}, because partitions were added while they started; start all processes of the cluster again"
            )
        self._n_partitions = piece.n_partitions
        if piece.events is not None and piece.events.height:
            waiting.events.setdefault(piece.partition, deque()).append(piece.events)
        if piece.clock_us is not None:
            waiting.clocks[piece.partition] = piece.clock_us
        if piece.ended:
            waiting.ended.add(piece.partition)
        else:
            waiting.ended.discard(piece.partition)

    def _step(self, n_partitions: int) -> Updates | NothingToCome | None:
        """Apply what every partition's clock has passed; None while the shard has no clock but may still get one."""
        waiting = self._waiting
        running = [partition for partition in range(n_partitions) if partition not in waiting.ended]
        if any(partition not in waiting.clocks for partition in running) or not waiting.clocks:
            return self._without_clock(ended=not running)
        clock_us = min(waiting.clocks[partition] for partition in running) if running else max(waiting.clocks.values())
        if self.state.clock_us is not None and clock_us < self.state.clock_us:
            clock_us = self.state.clock_us
        return self._apply(self._release(clock_us, everything=not running), clock_us)

    def _without_clock(self, *, ended: bool) -> NothingToCome | None:
        state = self.state
        return NothingToCome(state.view, state.shard) if ended and state.clock_us is None else None

    def _release(self, clock_us: int, *, everything: bool) -> Events | None:
        """Take out the events that ``clock_us`` has passed, in the order in which they count."""
        taken = self._waiting.take_before(None if everything else clock_us)
        return taken[0].merged(taken[1:]) if taken else None

    def to_snapshot(self) -> dict[str, Any]:
        """Make the changelog durable and return what the shard needs to continue: plain types, events as Arrow IPC.

        Raises ``StoreUnavailable`` if the disk fails; the call can then be repeated.
        """
        waiting = self._waiting.together()
        return {
            "layout": LAYOUT,
            "view": self.state.view.id,
            "shard": self.state.shard,
            "changelog": self.changelog.snapshot(self.state, self.dropped).to_bytes(),
            "clocks": dict(self._waiting.clocks),
            "ended": sorted(self._waiting.ended),
            "waiting": b"" if waiting is None else to_ipc([own_texts(waiting)]),
            "begins": (self._beginning.first_us, self._beginning.missed_us),
        }

    @classmethod
    def from_snapshot(
        cls,
        view: ViewPlan,
        siblings: "Siblings",
        changelogs: Changelogs,
        saved: Mapping[str, Any],
        kind: type[Changelog] | type[WholeState] = Changelog,
    ) -> "Shard":
        """Return the shard that ``to_snapshot`` described; ``kind``: how its state is kept from now on.

        Raises ``LayoutError`` if it does not belong to the definition.
        """
        shard = saved["shard"]
        if saved["layout"] not in _READABLE:
            raise LayoutError(
                f"shard {shard} of {saved['view']}: layout {saved['layout']}, this version reads {LAYOUT}; run the version "
                "that wrote it, or start over: 'unskew run' with an empty --state, --log, --archive and --dead-letters"
            )
        # A partition that has ended reports it again in every run; one that continues holds the others back from the
        # start.
        waiting = _Waiting(clocks=dict(saved["clocks"]))
        if saved["waiting"]:
            waiting.split(from_ipc(saved["waiting"]))
        manifest = Manifest.from_bytes(saved["changelog"])
        state, repeats = restored(changelogs, view, shard, manifest)
        beginning = _Beginning(*saved.get("begins", ()))
        return cls(state, siblings, kind(changelogs, view, shard, manifest), waiting, repeats, beginning)


class _Together:
    """The shards of one view and hash."""

    def __init__(self) -> None:
        self.shards: list[Shard] = []
        self.number_of: dict[str, int] = {}
        self._directories: Directories | None = None

    def join(self, shard: Shard) -> None:
        self.number_of[shard.state.shard] = len(self.shards)
        self.shards.append(shard)
        self._directories = None

    @property
    def directories(self) -> Directories:
        if self._directories is None:
            self._directories = Directories([shard.directories for shard in self.shards])
        return self._directories


class Siblings:
    """All shards of this process, to find an entity that appears in a second partition."""

    def __init__(self) -> None:
        self._together: dict[tuple[str, str], _Together] = defaultdict(_Together)

    def join(self, shard: Shard) -> None:
        """Add a shard to those of its view and hash."""
        self._together[_place(shard)].join(shard)

    def refuse_strangers(self, shard: Shard, events: pl.DataFrame) -> None:
        """Raise ``LayoutError`` if an entity that is new here lives in another partition's shard of the same hash.

        ``events``: those that the shard has just applied, at least one.

        An entity whose tiles have all left, and whose ids can no longer repeat, is forgotten there and may come back
        anywhere without harm.
        """
        new = shard.state.newcomers
        if new is None:
            return
        together = self._together[_place(shard)]
        if len(together.shards) == 1:
            return
        lives_in = together.directories.other_than(together.number_of[shard.state.shard], new)
        known = lives_in >= 0
        if known.any():
            view = shard.state.view
            other = together.shards[lives_in[known][0]]
            raise LayoutError(
                f"{view.name}: entity {new.chosen(known).to_series('')[0]} came in partition {events['partition'][0]} "
                f"({shard.state.shard}) and before that in {other.state.shard}, but stream {view.stream.name} declares "
                f"partitioned_by {', '.join(view.stream.partitioned_by)}; partition the topic by that key, "
                "or drop partitioned_by, and start from an empty state directory"
            )


def _place(shard: Shard) -> tuple[str, str]:
    """Return view and hash, which shards of different partitions have in common."""
    return shard.state.view.id, shard.state.shard.rpartition(".")[2]


def shard_names(view: ViewPlan, partitions: Sequence[int], n_hashes: int) -> list[str]:
    """Return all shards of a view that these partitions feed.

    They are ``p{partition}.{hash}`` if the topic is partitioned by the view's entity, else ``h{hash}``.
    """
    if view.partitioned:
        return [f"p{partition}.{index}" for partition in partitions for index in range(n_hashes)]
    return [f"h{index}" for index in range(n_hashes)]
