"""A running pipeline as its metrics and its health see it: the objects that do the work, read on request.

Nothing is counted here. The flow's thread writes plain numbers and dictionaries; a reader copies a dictionary before it
iterates.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from unskew.pipelines.kafka.host_clock import HostClock
from unskew.pipelines.kafka.source import KafkaSource
from unskew.pipelines.progress import Progress
from unskew.pipelines.routing import Router
from unskew.pipelines.state.changelog import Changelogs
from unskew.pipelines.state.journal import Journal
from unskew.sinks.patience import Patience
from unskew.sinks.redis.writer import RedisWriter

STILL_S = 60.0
"""A flow that has done nothing for this long, and does not wait for a store, hangs.

A working one gets an item of every partition about once a second at least.
"""


@dataclass(frozen=True)
class Status:
    """One reading of a running pipeline; counts since the process started, instants in microseconds.

    ``late_by_view``, ``duplicates``: as in ``Progress``. ``incompatible``: messages, among the ``dead``, whose writer's
    schema cannot be read as the stream's. ``ignored``: messages that are not meant to be events of their stream, such
    as records of another type. ``dead_by_kind``: as in ``features/rejection.py``. ``epochs``: number of durable ones.
    ``commit_s``, ``longest_commit_s``: seconds that their snapshots took, all together and at most. ``retries``: by
    store, retries after a failed attempt to reach it. ``compiling``: the kernel is being compiled, and no record is
    read yet. ``history``: the progress of a new view's backfill, as text; no record is read meanwhile either.
    """

    consumed: int
    dead: int
    late: int
    bumped: int
    updates: int
    rows: int
    clock_us: int | None
    lag: int
    late_by_view: Mapping[str, int] = field(default_factory=dict)
    duplicates: Mapping[str, int] = field(default_factory=dict)
    incompatible: int = 0
    ignored: int = 0
    dead_by_kind: Mapping[str, int] = field(default_factory=dict)
    epochs: int = 0
    commit_s: float = 0.0
    longest_commit_s: float = 0.0
    retries: Mapping[str, int] = field(default_factory=dict)
    compiling: bool = False
    history: str | None = None


@dataclass(frozen=True, kw_only=True)
class Running:
    """The parts of a pipeline in this process; ``sources`` and ``routers`` by topic, ``stores`` by metric label."""

    progress: Progress
    sources: Mapping[str, KafkaSource]
    routers: Mapping[str, Router]
    writer: RedisWriter
    stores: Mapping[str, Patience]
    changelogs: Changelogs
    journal: Journal
    clock: HostClock

    def status(self) -> Status:
        """Take a reading."""
        progress, commits = self.progress, self.progress.epochs.commits
        counters = [source.counters for source in self.sources.values()]
        return Status(
            consumed=sum(one.consumed for one in counters),
            dead=sum(router.dead for router in self.routers.values()),
            incompatible=sum(router.incompatible for router in self.routers.values()),
            ignored=sum(router.ignored for router in self.routers.values()),
            late=progress.late,
            bumped=sum(one.bumped for one in counters),
            updates=progress.updates,
            rows=progress.rows,
            clock_us=progress.clock_us,
            lag=sum(one.lag for one in counters),
            late_by_view=dict(progress.late_by_view),
            duplicates=dict(progress.duplicates),
            dead_by_kind=self.dead_by_kind(),
            epochs=progress.epochs.durable,
            commit_s=commits.sum_s,
            longest_commit_s=commits.longest_s,
            retries=self.retries(),
            compiling=progress.compiling,
            history=progress.history,
        )

    def dead_by_kind(self) -> dict[str, int]:
        """Return the number of dead letters by kind, over all streams."""
        total: dict[str, int] = {}
        for router in self.routers.values():
            for kind, count in dict(router.dead_by_kind).items():
                total[kind] = total.get(kind, 0) + count
        return total

    def retries(self) -> dict[str, int]:
        """Return, by store, the number of retries after a failed attempt to reach it."""
        retries = {name: store.retries for name, store in self.stores.items()}
        return {**retries, "kafka": sum(source.retries for source in self.sources.values())}

    def away_s(self) -> dict[str, float]:
        """Return, by store, for how long it has been unreachable; 0.0 while it is reachable."""
        away_s = {name: store.away_s for name, store in self.stores.items()}
        return {**away_s, "kafka": max((source.away_s for source in self.sources.values()), default=0.0)}

    def still_s(self) -> float | None:
        """Return for how long the flow has done nothing; None before it has begun."""
        epochs = self.progress.epochs
        moved_at_s = epochs.moved_at_s
        return None if moved_at_s is None else max(0.0, epochs.monotonic() - moved_at_s)

    def dead_reasons(self) -> list[str]:
        """Return the reasons to restart the process; an empty list while it works."""
        still_s = self.still_s()
        if still_s is None or still_s < STILL_S or any(self.away_s().values()):
            return []
        return [f"the flow has done nothing for {still_s:.0f} s and does not wait for a store"]

    def unready_reasons(self) -> list[str]:
        """Return why the pipeline is not at work; an empty list while it is.

        A reason is what it waits for, or that it has not begun.
        """
        reasons = self.dead_reasons()
        if self.progress.compiling:
            reasons.append("the kernel is being compiled, once for each installation and processor")
        elif self.progress.history is not None:
            reasons.append(f"a new view gets its history from the archive: {self.progress.history}")
        elif self.progress.epochs.durable == 0:
            reasons.append("no epoch of this process is durable yet: it is loading its state")
        reasons += [f"{name} has been away for {away_s:.1f} s" for name, away_s in self.away_s().items() if away_s]
        reasons += [
            f"no partition of {topic} is read yet" for topic, source in self.sources.items() if not source.places()
        ]
        if jump_us := self.clock.jump_us:
            reasons.append(f"the clock of this host is {jump_us / 1e6:+.1f} s from where it should be")
        # While the wall clock is behind where it should be, the present is later than it reads.
        present_us = self.clock.wall_us() + max(0, -jump_us)
        reasons += [fault for source in self.sources.values() for fault in source.faults(present_us)]
        return reasons

    def facts(self) -> dict[str, object]:
        """Return the facts that accompany the answers about health."""
        places = [place for source in self.sources.values() for place in source.places()]
        return {
            "compiling": self.progress.compiling,
            "epochs": self.progress.epochs.durable,
            "still_s": self.still_s(),
            "away_s": self.away_s(),
            "partitions": len(places),
            "lag": sum(place.lag for place in places),
            "clock_us": self.progress.clock_us,
        }
