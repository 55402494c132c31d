"""The hand-over: a view that is new to a running pipeline gets its past from the archive, up to where the flow goes on.

The flow then continues at the next offset of every partition, as it does with the views that it knows. A backfill that
was made before, beside the running pipeline, is continued, so that little is left to do here.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from unskew.features.plan import ViewPlan
from unskew.pipelines.history.archive import Archive, Cut, Reached
from unskew.pipelines.history.backfill import Backfill, backfill
from unskew.pipelines.history.seam import Seam
from unskew.pipelines.state.changelog import Changelogs
from unskew.pipelines.state.ordering import shard_names
from unskew.pipelines.state.saved import Saved
from unskew.pipelines.state.seeds import Seeds
from unskew.sinks.tables.kinds import ArchiveTable
from unskew.sinks.tables.layout import view_root
from unskew.sinks.tables.parquet import recorded_shards

_log = logging.getLogger("unskew.history")


@dataclass(frozen=True, kw_only=True)
class HandOver:
    """A pipeline that is about to run, and what its last durable epoch holds.

    ``views``: those that may be new to it. ``partitions``: by topic, those that this process reads.
    ``n_partitions``: by topic, how many there are.
    ``report``: called with the progress, as text.
    """

    views: Sequence[ViewPlan]
    log: Path
    archive: Path
    saved: Saved
    seeds: Seeds
    changelogs: Changelogs
    partitions: Mapping[str, list[int]]
    n_partitions: Mapping[str, int]
    n_hashes: int
    still_ours: Callable[[], None]
    going_on: Callable[[], None]
    report: Callable[[str], None] = lambda _: None


def hand_over(job: HandOver) -> list[Seam]:
    """Bring every view that the recovery store does not hold, and whose past is archived, to the place of the flow.

    Raises ``LayoutError`` if the archive is damaged, lacks events or columns; ``StoreUnavailable`` if the disk fails.
    The call can then be repeated.
    """
    held: dict[str, set[str]] = {}
    for shard in job.saved.shards:
        held.setdefault(shard["view"], set()).add(shard["shard"])
    seams: list[Seam] = []
    archives: dict[str, Archive] = {}
    for view in job.views:
        topic = view.stream.topic
        names = shard_names(view, job.partitions[topic], job.n_hashes)
        missing = [name for name in names if name not in held.get(view.id, set())]
        begun = job.seeds.has(view.id)
        if not missing:
            if begun:
                job.seeds.remove(view.id)
            continue
        if not begun and (view.history == "none" or view.id in held):
            # A shard of a partition that was added begins with that partition.
            continue
        if topic not in archives:
            _publish_archive(job, topic)
            archives[topic] = Archive.open(job.archive, view.stream)
        seam = _one(job, view, archives[topic], missing, is_held=view.id in held)
        if seam is not None:
            _log.warning("%s", seam)
            seams.append(seam)
    return seams


def _one(job: HandOver, view: ViewPlan, archive: Archive, missing: list[str], *, is_held: bool) -> Seam | None:
    topic = view.stream.topic
    cut = _cut(job, topic)
    if not archive or not cut:
        return None
    seeds = {name: seed for name in missing if (seed := job.seeds.read(view, name)) is not None}
    if is_held:
        # An epoch holds some of the view's shards; the others have not moved since their seeds.
        missing = list(seeds)
        if not missing:
            return None
    total = archive.most(cut)
    root = view_root(job.log, view.name, view.version)
    names = shard_names(view, range(job.n_partitions[topic]), job.n_hashes)
    with recorded_shards(root, names, frozenset(missing), view=view):
        return backfill(
            Backfill(
                view=view,
                archive=archive,
                end=cut,
                shards=missing,
                # A partition that is added now joins with the flow.
                n_partitions=len(job.saved.places[topic]),
                n_hashes=job.n_hashes,
                log=job.log,
                seeds=job.seeds,
                changelogs=job.changelogs,
                since_us=next((seed.since_us for seed in seeds.values()), None),
                still_ours=job.still_ours,
                going_on=job.going_on,
            ),
            lambda n_events: job.report(f"{view.id}: {n_events:,} events of its history are read (at most {total:,})"),
        )


def _cut(job: HandOver, topic: str) -> Cut:
    """Return the place at which the flow goes on."""
    return {
        partition: Reached(offset=saved["offset"], clock_us=saved["clock"], ended=bool(saved["ended"]))
        for partition, saved in job.saved.places[topic].items()
        if partition in job.partitions[topic]
    }


def _publish_archive(job: HandOver, topic: str) -> None:
    """Publish what the last durable epoch has staged, as the flow will do when it begins."""
    for partition in job.partitions[topic]:
        saved = job.saved.tables.get(f"archive/{topic}/{partition}")
        if saved is not None:
            ArchiveTable(job.archive, topic, partition, saved, still_ours=job.still_ours)
