"""A backfill beside a pipeline that runs or stands: up to what its archive has published, by several processes.

``unskew run`` then finishes the last stretch and goes on from there (``handover.py``).

Shards share nothing while they are rebuilt, so they are dealt twice (``dealing.py``): among the processes of a cluster,
each of which is started by itself, and among the processes that each of these starts on its machine. Each reads the
archive and keeps its own shards. Log, seeds and state are those of the pipeline, so whichever process has a shard next
goes on with it.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from unskew.features.errors import LayoutError, RequestError, Stopped
from unskew.features.plan import ViewPlan
from unskew.features.time import format_instant
from unskew.pipelines.history.archive import Archive, Cut, Reached
from unskew.pipelines.history.backfill import Backfill, backfill
from unskew.pipelines.history.dealing import dealt, dealt_by_events
from unskew.pipelines.history.seam import Seam
from unskew.pipelines.history.side_by_side import has_parent, side_by_side
from unskew.pipelines.kafka.consumer import Flag
from unskew.pipelines.state.changelog import Changelogs
from unskew.pipelines.state.folder import CHANGELOG, held_by
from unskew.pipelines.state.ordering import shard_names
from unskew.pipelines.state.seeds import Seeds, Taken
from unskew.sinks import durable
from unskew.sinks.lease import Leases, Owner
from unskew.sinks.tables.layout import view_root
from unskew.sinks.tables.parquet import recorded_shards


@dataclass(frozen=True, kw_only=True)
class Ahead:
    """What is backfilled and where. ``from_us``, ``until_us``: bounds of the arrivals; None for all that is archived.

    ``again``: whether to forget what an earlier backfill of these views has done. ``workers``: number of processes.
    ``cluster``: the names of all processes that divide the shards, the same list for each of them; empty if this one
    has all. ``process``: the place of this process in the list.
    """

    views: Sequence[ViewPlan]
    log: Path
    archive: Path
    state: Path
    owner: Owner
    from_us: int | None = None
    until_us: int | None = None
    again: bool = False
    workers: int = 1
    cluster: Sequence[str] = ()
    process: int = 0


def backfill_ahead(job: Ahead, stop: Flag, report: Callable[[str, int, int], None] = lambda *_: None) -> list[Seam]:
    """Backfill views that the state of a pipeline does not hold yet; return how the shards of this process end.

    A view of which no shard falls to this process is left out.

    ``report``: called with a view, the events read and the most there can be. Raises ``RequestError`` for a view that
    the pipeline computes already; ``LayoutError`` for a state, an archive or a log that do not fit, or that another
    process writes; ``StoreUnavailable`` if the disk fails; ``Stopped`` if ``stop`` is set: the same call then goes on.
    """
    if batch := [view.id for view in job.views if view.stream.table is not None]:
        raise RequestError(
            f"{', '.join(batch)}: over a table, which has its whole past; compute it with unskew materialize"
        )
    held = held_by(job.state)
    if left := [view.id for view in job.views if view.id in held.retired]:
        raise RequestError(
            f"{', '.join(left)}: left out of an earlier run on {job.state}, so it cannot come back; give the view a new version"
        )
    if known := [view.id for view in job.views if view.id in held.views]:
        raise RequestError(
            f"{', '.join(known)}: the pipeline of {job.state} computes it already; a backfill is for views and versions that are new "
            "to it. Give the changed view a new version"
        )
    if job.again and len(job.cluster) > 1:
        commands = " and ".join(f"'unskew purge {view.id} --backfill'" for view in job.views)
        raise RequestError(
            f"--again and --cluster exclude each other, because one process would remove what another one has begun; call {commands} "
            "once, then start all processes without --again"
        )
    with ExitStack() as closing:
        leases = Leases()
        closing.callback(leases.release)
        one_of = replace(job.owner, member=job.process)
        together = replace(one_of, group=f"backfill by {','.join(job.cluster)}") if job.cluster else one_of
        leases.take(job.state, "--state", together, frozenset(f"the backfill of {one.id}" for one in job.views))
        seams: list[tuple[Seam, ViewPlan, Sequence[str]]] = []
        for view in job.views:
            topic = view.stream.topic
            n_partitions = held.n_partitions.get(topic)
            if n_partitions is None:
                raise RequestError(
                    f"{view.id}: the pipeline of {job.state} has not read topic {topic!r} yet, so nothing of it is archived; it reads "
                    f"{', '.join(sorted(held.n_partitions)) or 'none'}"
                )
            if held.partitions is not None and not view.partitioned:
                raise RequestError(
                    f"{view.id}: not partitioned by its entity, so its events are in all partitions, and {job.state} belongs to a process "
                    "that reads some of them (--partitions)"
                )
            every = shard_names(view, held.partitions or range(n_partitions), held.n_hashes)
            names = dealt(view, every, len(job.cluster) or 1)[job.process]
            if not names:
                continue
            leases.take(job.log, "--log", one_of, frozenset(f"{view.id}/{name}" for name in names))
            others = sorted(set(every) - set(names))
            _unfinished(job, view, others)
            seam = _one(job, view, names, n_partitions, held.n_hashes, leases.check, stop, report)
            seams.append((seam, view, others))
        # At the end of all views, so that the process that ends last finds none.
        return [replace(seam, unfinished=_unfinished(job, view, others)) for seam, view, others in seams]


def _unfinished(job: Ahead, view: ViewPlan, others: Sequence[str]) -> list[str]:
    """Return those shards of other processes that these have not brought to an end.

    Raises ``LayoutError`` if one of them does not go together with those of this process.
    """
    seeds = {name: Seeds(job.state).read(view, name) for name in others}
    for name, seed in seeds.items():
        if seed is not None and seed.since_us != job.from_us:
            raise LayoutError(
                f"{view.id}: another process computes its shard {name} with another --from; give all processes the same one"
            )
    return [name for name, seed in seeds.items() if seed is None or not seed.is_checked]


def _one(
    job: Ahead,
    view: ViewPlan,
    names: Sequence[str],
    n_partitions: int,
    n_hashes: int,
    still_ours: Callable[[], None],
    stop: Flag,
    report: Callable[[str, int, int], None],
) -> Seam:
    root = view_root(job.log, view.name, view.version)
    seeds = Seeds(job.state)
    archive = Archive.open(job.archive, view.stream)
    if not archive:
        raise LayoutError(
            f"{archive.root} holds no events; give the --archive of the pipeline, and start the backfill when it has run"
        )
    _refuse_empty(job, archive)
    if job.again:
        seeds.forget(view.id, root, job.state / CHANGELOG / view.id)
    fed = {partition for partition in archive.cut if set(shard_names(view, [partition], n_hashes)) & set(names)}
    seeded = [seed.taken for name in names if (seed := seeds.read(view, name)) is not None]
    end = {
        partition: _not_before(job, view, archive, partition, reached, seeded)
        for partition, reached in _end(archive, job.until_us).items()
        if partition in fed
    }
    whole = _Part(
        view=view,
        archive=archive,
        end=end,
        shards=names,
        n_partitions=n_partitions,
        n_hashes=n_hashes,
        log=job.log,
        state=job.state,
        since_us=job.from_us,
    )
    total = archive.most(end)
    groups = dealt_by_events(view, archive, end, names, n_hashes, job.workers)
    every = shard_names(view, range(n_partitions), n_hashes)
    with recorded_shards(root, every, frozenset(names), view=view):
        if len(groups) == 1:
            return _work(whole, still_ours, stop, lambda n_events: report(view.id, n_events, total))
        return _side_by_side([replace(whole, shards=group) for group in groups], still_ours, stop, report, total)


def _refuse_empty(job: Ahead, archive: Archive) -> None:
    """Refuse bounds between which there is nothing, because the view would begin where nobody asked for."""
    if job.from_us is None:
        return
    clocks = [reached.clock_us for reached in archive.cut.values() if reached.clock_us is not None]
    ends_us = [max(clocks, default=job.from_us), *([] if job.until_us is None else [job.until_us])]
    if job.from_us > min(ends_us):
        raise RequestError(
            f"--from {format_instant(job.from_us)}: the archived events of {archive.stream.topic} end at {format_instant(max(clocks))}"
            f"{'' if job.until_us is None else f', and --until is {format_instant(job.until_us)}'}; give an earlier instant, or let "
            'the view begin with the next run (history="none")'
        )


def _end(archive: Archive, until_us: int | None) -> Cut:
    if until_us is None:
        return archive.cut
    return {
        partition: Reached(offset=archive.offset_at(partition, until_us), clock_us=min(until_us, reached.clock_us))
        if reached.clock_us is not None
        else reached
        for partition, reached in archive.cut.items()
    }


def _not_before(
    job: Ahead,
    view: ViewPlan,
    archive: Archive,
    partition: int,
    reached: Reached,
    seeded: Sequence[Mapping[int, Taken]],
) -> Reached:
    """Return a partition's end, not before what an earlier call or a hand-over has read.

    The archive says nothing of records that are no events, and a hand-over may have come past them.
    """
    furthest = max((taken[partition] for taken in seeded if partition in taken), key=lambda one: one.end, default=None)
    if furthest is None or furthest.end <= reached.offset:
        return reached
    if job.until_us is not None:
        raise RequestError(
            f"--until {format_instant(job.until_us)}: the backfill of {view.id} has come further already, to offset {furthest.end} of "
            f"partition {partition}; leave --until out, or give a later one"
        )
    if furthest.before is not None and archive.n_written(partition) == furthest.before + furthest.total:
        return replace(reached, offset=furthest.end)
    return reached


def remove_backfill(view_id: str, state: Path, log: Path, owner: Owner) -> int:
    """Remove a backfill that no pipeline has taken over: its log, its state and its seeds; return its shards.

    Raises ``RequestError`` if there is none, or if a pipeline computes the view, ``LayoutError`` if a process writes
    it, ``StoreUnavailable`` if the disk fails. The call can then be repeated: the seeds go last.
    """
    seeds = Seeds(state)
    if view_id in held_by(state).views:
        raise RequestError(
            f"{view_id}: the pipeline of {state} computes it, or has computed it; it is not only a backfill"
        )
    names = seeds.shards(view_id)
    if not names:
        left = ", ".join(seeds.views()) or "none"
        raise RequestError(f"{state} holds no backfill of {view_id}; it holds those of: {left}")
    with ExitStack() as closing:
        leases = Leases()
        closing.callback(leases.release)
        leases.take(state, "--state", owner, frozenset([f"the backfill of {view_id}"]))
        leases.take(log, "--log", owner, frozenset(f"{view_id}/{name}" for name in names))
        name, _, version = view_id.partition("@")
        seeds.forget(view_id, view_root(log, name, int(version)), state / CHANGELOG / view_id)
        durable.remove_empty([log / name])
    return len(names)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The shards of a view that one process computes."""

    view: ViewPlan
    archive: Archive
    end: Cut
    shards: Sequence[str]
    n_partitions: int
    n_hashes: int
    log: Path
    state: Path
    since_us: int | None


def _work(part: _Part, still_ours: Callable[[], None], stop: Flag, report: Callable[[int], None]) -> Seam:
    def going_on() -> None:
        if stop.is_set():
            raise Stopped(f"the backfill of {part.view.id} was asked to stop; the same command continues it")

    changelogs = Changelogs(part.state / CHANGELOG, still_ours, going_on)
    try:
        return backfill(
            Backfill(
                view=part.view,
                archive=part.archive,
                end=part.end,
                shards=part.shards,
                n_partitions=part.n_partitions,
                n_hashes=part.n_hashes,
                log=part.log,
                seeds=Seeds(part.state),
                changelogs=changelogs,
                since_us=part.since_us,
                still_ours=still_ours,
                going_on=going_on,
            ),
            report,
        )
    finally:
        changelogs.close()


def _work_apart(part: _Part, stop: Flag, report: Callable[[int], None]) -> Seam:
    def still_ours() -> None:
        if not has_parent():
            raise LayoutError("the process that began this backfill has ended; start it again, and it goes on")

    return _work(part, still_ours, stop, report)


def _side_by_side(
    parts: Sequence[_Part],
    still_ours: Callable[[], None],
    stop: Flag,
    report: Callable[[str, int, int], None],
    total: int,
) -> Seam:
    view = parts[0].view
    # Each process reads its partitions; for a view that no partition keeps apart, each reads all of them.
    most = total if view.partitioned else total * len(parts)

    def look(n_events: int) -> None:
        still_ours()
        report(view.id, n_events, most)

    seams = side_by_side(_work_apart, parts, look, stop)
    return replace(
        seams[0],
        events=sum(seam.events for seam in seams) if view.partitioned else seams[0].events,
        rows=sum(seam.rows for seam in seams),
        since_us=min((seam.since_us for seam in seams if seam.since_us is not None), default=None),
        clock_us=max((seam.clock_us for seam in seams if seam.clock_us is not None), default=None),
        offsets={partition: offset for seam in seams for partition, offset in seam.offsets.items()},
        compared=sum(seam.compared for seam in seams),
        rejected=sum(seam.rejected for seam in seams) if view.partitioned else seams[0].rejected,
        why=next((seam.why for seam in seams if seam.why is not None), None),
    )
