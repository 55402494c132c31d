"""The configuration of a pipeline's process: what it reads and writes, and checks of what cannot be combined."""

import os
import socket
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from unskew.features.errors import DefinitionError, RequestError
from unskew.features.local import local_path
from unskew.features.plan import Plan
from unskew.features.time import HOUR_US
from unskew.sinks.lease import Owner
from unskew.sinks.objects import table_path


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """The configuration of a process: where it reads and writes, and how.

    ``log``, ``archive``, ``dead_letters``: roots of the Parquet tables, see ``table_path``. ``state``: the state
    folder. ``n_hashes``: number of hash shards per view (per partition, if the topic is partitioned by the view's
    entity); fixed for as long as the state lives. ``idle``, ``ends``, ``start``: as in ``SourceOptions``; ``ends`` is
    by topic. ``epoch_s``: seconds between commits. ``schema_registry``: the URL at which writers' schemas are looked
    up; if None, each stream's own schema is the writer's. ``partitions``: the partitions that this process reads,
    always the same for one ``state``; all if None. ``cluster``: host:port of every process that shares this ``state``,
    the same list for each of them. ``process``: the place of this process in the list. ``metrics``: host and port that
    expose metrics and health; None to expose nothing. ``take_over``: whether to take over at once the leases of
    processes on other machines that may be dead. ``adopt_topic_ids``: whether topics with other ids than before hold
    the same records. ``allow_eviction``: whether Redis may evict keys. ``expire_after_us``: how long after their last
    window empties keys of Redis expire; None for never. ``scrub_us``: the time in which every value in Redis is
    compared with the state once; None for never. ``drop``: views (name, or name@version) that the state holds, that are
    no longer defined, and whose state shall end. ``replace``: whether to remove what another state wrote to Redis.
    ``registry``: the record of the registry, which must hold the views as they are; None if nothing is applied.
    """

    bootstrap: str
    redis_url: str = field(repr=False)
    schema_registry: str | None = field(default=None, repr=False)
    log: Path
    archive: Path
    dead_letters: Path
    state: Path
    registry: Path | None = None
    idle: Literal["wall", "none"]
    ends: Mapping[str, Mapping[int, int]] | Literal["now"] | None = None
    start: Literal["earliest", "latest"] = "earliest"
    prefix: str = "unskew"
    pipeline: str = "main"
    n_hashes: int = 1
    epoch_s: float = 5.0
    partitions: Sequence[int] | None = None
    cluster: Sequence[str] = ()
    process: int = 0
    poll_records: int = 10_000
    metrics: tuple[str, int] | None = None
    take_over: bool = False
    adopt_topic_ids: bool = False
    replace: bool = False
    allow_eviction: bool = False
    expire_after_us: int | None = None
    scrub_us: int | None = HOUR_US
    drop: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def n_processes(self) -> int:
        """The number of processes that share the state."""
        return len(self.cluster) or 1

    @property
    def others(self) -> dict[int, str]:
        """The addresses of the other processes of the cluster, by number; empty if there is no cluster."""
        return {number: address for number, address in enumerate(self.cluster) if number != self.process}

    def folders(self) -> dict[str, Path]:
        """Return the folders that the process writes, by option."""
        return {
            "--state": self.state,
            "--log": self.log,
            "--archive": self.archive,
            "--dead-letters": self.dead_letters,
        }

    def place(self) -> str:
        """Return where the state is, for people."""
        return f"pipeline {self.pipeline!r} on {self.state.absolute()}, {socket.gethostname()}"

    def owner(self) -> Owner:
        """Return this process's name for its leases; processes of one cluster may write the same folders."""
        alone = owner_of(f"pipeline {self.pipeline!r}", self.state)
        return replace(alone, group=f"cluster {','.join(self.cluster)}", member=self.process) if self.cluster else alone

    def check(self, plan: Plan) -> None:
        """Raise ``DefinitionError`` or ``RequestError`` if this process cannot compute the plan's views.

        A view that is not partitioned by its entity needs events of every partition, in one order.
        """
        for option, folder in self.folders().items():
            (local_path if option == "--state" else table_path)(folder, option)
        if not plan.views:
            raise DefinitionError(
                "there is no view over a stream to compute; define a FeatureView (views over tables are computed by unskew "
                "materialize)"
            )
        if self.partitions is None:
            return
        if self.cluster:
            raise RequestError(
                "--partitions and --cluster exclude each other: a cluster divides the partitions by itself"
            )
        apart = sorted({view.name for view in plan.views.values() if not view.partitioned})
        if apart:
            raise RequestError(
                f"{', '.join(apart)}: not partitioned by the entity, so its events are in all partitions; run it in a process that "
                "reads all of them (without --partitions), or as a cluster (--cluster)"
            )

    def check_ends(self, origins: Sequence[tuple[str, int]]) -> None:
        """Raise ``RequestError`` if ``ends`` does not name each partition of a stream's topics, and no other.

        ``origins``: those partitions. The run would wait silently for one that is left out.
        """
        if self.ends is None or isinstance(self.ends, str):
            return
        there: dict[str, set[int]] = {}
        for topic, partition in origins:
            there.setdefault(topic, set()).add(partition)
        for topic, partitions in there.items():
            given = self.ends.get(topic, {}).keys()
            if missing := sorted(partitions - given):
                raise RequestError(
                    f"topic {topic!r}: no end offset for partition {', '.join(map(str, missing))}; give one for each"
                )
            if unknown := sorted(given - partitions):
                raise RequestError(
                    f"topic {topic!r}: an end offset for partition {', '.join(map(str, unknown))}, but it has only "
                    f"{', '.join(map(str, sorted(partitions)))}; leave it out"
                )


def owner_of(text: str, state: Path) -> Owner:
    """Return this process's name for its leases, if no other process may write the same; ``text``: what it does."""
    where = f"{state.absolute()}, process {os.getpid()} on {socket.gethostname()}"
    return Owner(text=f"{text} on {where}", group=uuid.uuid4().hex, member=0)
