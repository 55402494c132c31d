"""Views over tables: computed up to an instant, into the same log and Redis as views over topics.

A table's new rows go into its archive (``history/tables.py``). A backfill then goes on from where each view's seed is,
up to the instant, and the current values go to Redis. So a view over a table is computed, logged and read as any other.

    state/batch/{table}.place             how far a table was taken
    state/batch/backfill/, changelog/     seeds and states of the views, as those of any backfill
    state/batch/ids/{view}                names the history of a view, for the owners in Redis
"""

import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from unskew.features.errors import RequestError, Stopped
from unskew.features.plan import Plan, ViewPlan
from unskew.features.revision import Revision
from unskew.features.time import format_instant
from unskew.features.versions import Versions
from unskew.pipelines import rehydrate
from unskew.pipelines.history.archive import Archive, Reached
from unskew.pipelines.history.backfill import Backfill, backfill
from unskew.pipelines.history.tables import TableJob, Taken, forget_table, take_table
from unskew.pipelines.state.changelog import Changelogs, Manifest
from unskew.pipelines.state.folder import BATCH, CHANGELOG
from unskew.pipelines.state.ordering import shard_names
from unskew.pipelines.state.seeds import Seed, Seeds
from unskew.sinks import durable
from unskew.sinks.lease import Leases, Owner
from unskew.sinks.patience import Flag
from unskew.sinks.record import Record, published, require_applied
from unskew.sinks.redis.writer import RedisWriter
from unskew.sinks.tables.layout import view_root
from unskew.sinks.tables.parquet import recorded_shards
from unskew.sinks.wall import wall_us

Report = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Materialize:
    """What is computed, up to when, and where to.

    ``plan``: all definitions; ``views``: those that are computed, all over tables. ``again``: whether to forget what
    was computed of these views, and what was taken of their tables, first. Others as in ``Deployment``.
    """

    plan: Plan
    views: Sequence[ViewPlan]
    until_us: int
    log: Path
    archive: Path
    state: Path
    owner: Owner
    place: str
    redis_url: str = field(repr=False)
    prefix: str = "unskew"
    pipeline: str = "main"
    allow_eviction: bool = False
    expire_after_us: int | None = None
    skip_refused: bool = False
    again: bool = False
    registry: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Materialized:
    """How a view ends. ``taken``: of its table, by this call. ``log_rows``: new ones. ``values``: written to Redis.

    ``seam``: what was checked.
    """

    view: str
    until_us: int
    taken: Taken
    log_rows: int
    values: int
    removed: int
    seam: str

    def lines(self) -> list[str]:
        """Return what people want to know."""
        until = format_instant(self.until_us)
        in_redis = f"{self.values:,} values in Redis ({self.removed:,} removed)"
        found = [
            f"{self.view}: up to {until}: {self.taken.rows:,} new rows of its table, {self.log_rows:,} new rows of the log, {in_redis}",
        ]
        if self.taken.later:
            found.append(f"{self.view}: {self.taken.later:,} rows of its table arrive at this instant or later")
        if self.taken.refused.rows:
            found.append(f"{self.view}: left out: {self.taken.refused}")
        return [*found, self.seam]


def materialize(job: Materialize, stop: Flag, report: Report = lambda *_: None) -> list[Materialized]:
    """Compute views over tables up to an instant; the same call again changes nothing.

    What was known at the instant counts: rows that arrived before it. ``report``: called with a phase, and how many of
    how many rows (0 if not known) are done. Raises ``RequestError`` for an instant in the future or before what was
    reached, and for rows that are not events; ``LayoutError`` if a table's past has changed, if log, archive or state
    do not fit, or if another process writes them; ``StoreUnavailable`` if the disk or Redis fails; ``Stopped`` if
    ``stop`` is set. The same call then goes on.
    """
    if streamed := [view.id for view in job.views if view.stream.table is None]:
        raise RequestError(f"{', '.join(streamed)}: over a topic, so unskew run computes it; name views over tables")
    if job.until_us > wall_us():
        raise RequestError(
            f"--until {format_instant(job.until_us)} is in the future, and rows may still arrive until then; give an instant that has passed"
        )
    folder = job.state / BATCH
    seeds = Seeds(folder)
    with ExitStack() as closing:
        leases = Leases()
        # A call that is refused leaves no folder that was not there.
        closing.callback(durable.remove_empty, durable.missing(folder))
        closing.callback(leases.release)
        with durable.disk(folder):
            durable.make_folder(folder)
        views = frozenset(view.id for view in job.views)
        streams = {view.stream.topic: view.stream for view in job.views}
        leases.take(folder, "--state", job.owner, views | frozenset(f"table {topic}" for topic in streams))
        leases.take(job.archive, "--archive", job.owner, frozenset(f"{topic}/p0" for topic in streams))
        leases.take(job.log, "--log", job.owner, frozenset(f"{view.id}/h0" for view in job.views))
        _applied(job)
        if job.again:
            _forget(job, seeds, leases.check)

        def going_on() -> None:
            leases.check()
            if stop.is_set():
                raise Stopped("it was asked to stop; the same command goes on")

        for view in job.views:
            _refuse_earlier(job, view, seeds)
            if not job.again:
                _refuse_foreign_values(job, view, leases.check)
        taken = {
            topic: take_table(
                TableJob(
                    stream=stream,
                    keys=_keys(job.plan, topic),
                    archive=job.archive,
                    folder=folder,
                    until_us=job.until_us,
                    skip_refused=job.skip_refused,
                    still_ours=leases.check,
                    going_on=going_on,
                    report=lambda phase, done, total, name=stream.name: report(f"{name}: {phase}", done, total),  # type: ignore[misc]
                )
            )
            for topic, stream in streams.items()
        }
        changelogs = Changelogs(folder / CHANGELOG, leases.check, going_on)
        closing.callback(changelogs.close)
        return [
            done
            for view in job.views
            if (done := _one(job, view, seeds, changelogs, taken[view.stream.topic], leases.check, going_on, report))
        ]


def _keys(plan: Plan, topic: str) -> Sequence[Sequence[str]]:
    """Return the key columns of each entity of the views over a table."""
    # The entities of a view over sessions are those of the sessions.
    views = [view for view in plan.of_tables.views.values() if view.stream.topic == topic]
    return sorted({tuple((view.sessions or view).entity.keys) for view in views})


def _forget(job: Materialize, seeds: Seeds, still_ours: Callable[[], None]) -> None:
    topics = {view.stream.topic for view in job.views}
    named = {view.id for view in job.views}
    for view in job.plan.of_tables.views.values():
        if view.stream.topic in topics and view.id not in named and seeds.has(view.id):
            raise RequestError(
                f"{view.id} is over the same table, so it begins again too; name it, or name all its views"
            )
    for view in job.views:
        seeds.forget(view.id, view_root(job.log, view.name, view.version), job.state / BATCH / CHANGELOG / view.id)
        _id_path(job, view).unlink(missing_ok=True)
    for stream in {view.stream.topic: view.stream for view in job.views}.values():
        forget_table(job.archive, job.state / BATCH, stream, still_ours)


def _refuse_earlier(job: Materialize, view: ViewPlan, seeds: Seeds) -> None:
    """Refuse an instant before the one that a view has reached."""
    seed = seeds.read(view, "h0")
    reached_us = None if seed is None else _manifest(seed).clock_us
    if reached_us is not None and job.until_us < reached_us:
        raise RequestError(
            f"{view.id} is materialized up to {format_instant(reached_us)}, and no past row ever changes; give that instant or a later one"
        )


def _one(
    job: Materialize,
    view: ViewPlan,
    seeds: Seeds,
    changelogs: Changelogs,
    taken: Taken,
    still_ours: Callable[[], None],
    going_on: Callable[[], None],
    report: Report,
) -> Materialized | None:
    archive = Archive.open(job.archive, view.stream)
    if not archive:
        raise RequestError(
            f"{view.id}: table {view.stream.name} has no rows that arrived before {format_instant(job.until_us)}, so there is nothing to "
            "compute; check the table and its delay"
        )
    names = shard_names(view, [0], 1)
    root = view_root(job.log, view.name, view.version)
    before = seeds.read(view, names[0])
    end = {0: Reached(offset=archive.offset_at(0, job.until_us), clock_us=job.until_us)}
    with recorded_shards(root, names, view=view):
        seam = backfill(
            Backfill(
                view=view,
                archive=archive,
                end=end,
                shards=names,
                n_partitions=1,
                n_hashes=1,
                log=job.log,
                seeds=seeds,
                changelogs=changelogs,
                still_ours=still_ours,
                going_on=going_on,
            ),
            lambda n_events: report(f"{view.id}: computing", n_events, 0),
        )
    seed = seeds.read(view, names[0])
    assert seed is not None
    report(f"{view.id}: Redis", 0, 0)
    values, removed = _to_redis(job, view, seed, changelogs, still_ours)
    return Materialized(
        view=view.id,
        until_us=job.until_us,
        taken=taken,
        log_rows=_manifest(seed).seq - (0 if before is None else _manifest(before).seq),
        values=values,
        removed=removed,
        seam=seam.of_table(),
    )


def _to_redis(
    job: Materialize, view: ViewPlan, seed: Seed, changelogs: Changelogs, still_ours: Callable[[], None]
) -> tuple[int, int]:
    """Write all current values of a view, and remove what it has no more."""
    writer = _writer(job, _id(job, view, still_ours), still_ours)
    try:
        writer.look()
        writer.claim([f"{view.id}/h0"], job.place, replace=job.again, described="from before it began again")
        # A registry that names one version of a view says that it serves.
        beside = job.plan.of_tables.views.versions(view.name)
        these = Plan(
            streams={one.stream.name: one.stream for one in beside},
            views=Versions(beside),
            on_demand=job.plan.on_demand,
            services=job.plan.services,
        )
        writer.publish_registry(published(these, _applied(job)))
        writer.expect({view.id: ["h0"]}, frozenset([f"{view.id}/h0"]))
        written = rehydrate.Written(n_shards=1)
        for step in rehydrate.write_view(view, [seed.snapshot], writer, changelogs, written, whole=True):
            written = step
    finally:
        writer.close()
    return written.rows, written.removed


def _applied(job: Materialize) -> Revision | None:
    """Return what was applied last; None without a record. Raises ``RequestError`` if it lacks one of the views."""
    return (
        None if job.registry is None else require_applied(Record(job.registry), (view.published for view in job.views))
    )


def _refuse_foreign_values(job: Materialize, view: ViewPlan, still_ours: Callable[[], None]) -> None:
    """Raise ``LayoutError``, before anything is written, if the values in Redis belong to another state."""
    path = _id_path(job, view)
    writer = _writer(job, path.read_text(encoding="ascii") if path.exists() else uuid.uuid4().hex, still_ours)
    try:
        writer.refuse_owned([f"{view.id}/h0"])
    finally:
        writer.close()


def _writer(job: Materialize, history: str, still_ours: Callable[[], None]) -> RedisWriter:
    return RedisWriter(
        job.redis_url,
        job.prefix,
        job.pipeline,
        history,
        still_ours=still_ours,
        allow_eviction=job.allow_eviction,
        expire_after_us=job.expire_after_us,
        log_refills=False,
    )


def _id(job: Materialize, view: ViewPlan, still_ours: Callable[[], None]) -> str:
    """Return the name of a view's history; a new one if it begins."""
    path = _id_path(job, view)
    with durable.disk(path.parent):
        if path.exists():
            return path.read_text(encoding="ascii")
        name = uuid.uuid4().hex
        durable.make_folder(path.parent)
        durable.replace(path, name.encode(), still_ours)
        return name


def _id_path(job: Materialize, view: ViewPlan) -> Path:
    return job.state / BATCH / "ids" / f"{view.id}.id"


def _manifest(seed: Seed) -> Manifest:
    return Manifest.from_bytes(seed.snapshot["changelog"])
