"""Run a pipeline in this process until its topics end or it is asked to stop."""

import logging
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from pathlib import Path

from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig
from bytewax.run import cli_main
from bytewax.testing import run_main

from unskew.features.errors import Stopped, StoreUnavailable, UnskewError
from unskew.features.plan import Plan
from unskew.features.planning import read_otherwise
from unskew.pipelines import compiling, garbage
from unskew.pipelines.cluster import Failures, lost, watching
from unskew.pipelines.decoding.avro import decoder_of
from unskew.pipelines.decoding.schema_registry import SchemaRegistry
from unskew.pipelines.deployment import Deployment
from unskew.pipelines.flow import ParquetSink, RedisSink, Shards, build_flow
from unskew.pipelines.history.handover import HandOver, hand_over
from unskew.pipelines.kafka.host_clock import HostClock
from unskew.pipelines.kafka.source import KafkaSource, SourceOptions
from unskew.pipelines.kafka.turns import LONGEST_S, SHORTEST_S, Turns
from unskew.pipelines.progress import Progress
from unskew.pipelines.routing import Router
from unskew.pipelines.state.changelog import KEPT_BYTES, Changelogs
from unskew.pipelines.state.folder import CHANGELOG, COMPILED, JOURNAL, RECOVERY, StateFolder, make_state_folder
from unskew.pipelines.state.journal import Journal
from unskew.pipelines.state.known_topics import KnownTopics
from unskew.pipelines.state.ordering import shard_names
from unskew.pipelines.state.saved import FLOW, causes_of, failure_of_store, read_saved
from unskew.pipelines.state.seeds import Seeds
from unskew.pipelines.watch.endpoint import answering
from unskew.pipelines.watch.metrics import registry_of
from unskew.pipelines.watch.running import Running, Status
from unskew.sinks import durable
from unskew.sinks.aside import Aside
from unskew.sinks.lease import Lease, Leases, Members
from unskew.sinks.objects import ObjectPath, concerns, probe
from unskew.sinks.patience import Flag, Patience
from unskew.sinks.record import Record, published, require_applied
from unskew.sinks.redis.writer import RedisWriter
from unskew.sinks.wall import wall_us

_log = logging.getLogger("unskew.run")


def run(
    plan: Plan,
    deployment: Deployment,
    *,
    stop: threading.Event,
    report: Callable[[Status], None] | None = None,
    begun: Callable[[Mapping[str, int]], None] | None = None,
    clock: HostClock | None = None,
    give_up: Callable[[UnskewError], None] | None = None,
) -> Status:
    """Run until every topic has ended or ``stop`` is set; then everything is flushed, published and durable.

    If the wall clock goes back, or if partitions, or topics that match a pattern, are added to a stream that is read
    without end, the flow ends as if it were stopped, and begins again; counts then begin again, too.

    ``report`` is called about once a second and at the end; ``begun`` when a flow begins, with the number of partitions
    of each topic. Raises ``LayoutError`` if the state folder belongs to
    another deployment, or if another process writes what this one should write; ``RequestError`` if ``ends`` leaves out
    a partition; ``StoreUnavailable`` if Kafka, Redis or the disk fails; ``DefinitionError`` if a stream cannot be read
    as requested. After an error the state remains that of the last durable epoch. A run that is refused has published
    nothing, retired no view and leaves no folder behind. Raises ``Stopped`` if ``stop`` is set before it has begun.

    ``give_up`` must end this process at once. It is called with the error when the flow of a cluster has failed; if
    another process of the cluster is gone and Bytewax waits for it, then in another thread.
    """
    if tables := plan.of_tables.views.values():
        _log.warning(
            "%s: over a table, so unskew materialize computes it, not this process",
            ", ".join(sorted(v.id for v in tables)),
        )
    plan = plan.of_topics
    deployment.check(plan)
    _require_applied(plan, deployment, stop)
    clock = HostClock() if clock is None else clock
    while True:
        clock.begin_flow()
        ends = _Ends(stop, clock, in_cluster=bool(deployment.cluster))
        together = threading.Event()
        try:
            status = _run_once(plan, deployment, ends, report, begun, clock, give_up, together)
        except UnskewError as error:
            if together.is_set() and give_up is not None:
                # Threads of Bytewax outlive the flow of a cluster, and Python may crash if it ends beside them.
                give_up(error)
            raise
        if not (ends.added.is_set() or ends.fell_back_us) or stop.is_set():
            return status
        if ends.fell_back_us:
            _log.warning(
                "the clock of this host went back by %.1f s, and Bytewax would end no epoch until it is where it was: "
                "the flow was stopped and begins again",
                ends.fell_back_us / 1e6,
            )
        else:
            _log.warning("partitions were added to a topic: reading it with them from here on")


def _require_applied(plan: Plan, deployment: Deployment, stop: threading.Event) -> None:
    """Refuse views that were not applied, before anything else is judged; a store that is away is waited for."""
    _go_on(stop)
    if deployment.registry is None:
        return
    record = Record(deployment.registry)
    try:
        applied = _store_of(record.root, stop).until_done(lambda: require_applied(record, plan.published.values()))
    except StoreUnavailable:
        _go_on(stop)
        raise
    for difference in read_otherwise(plan.views.values(), applied.content):
        _log.warning("%s: this run does it so, and unskew apply would write it down", difference)


def _store_of(place: Path, stop: Flag) -> Patience:
    return Patience("the object store" if concerns(place) else "the disk", stop)


class _Ends:
    """The end of one flow: a stop signal, partitions that were added, or a wall clock that went back and stalls it.

    The processes of a cluster can only begin again together, so there the latter raises ``StoreUnavailable``.
    """

    def __init__(self, stop: threading.Event, clock: HostClock, *, in_cluster: bool) -> None:
        self.asked = stop
        self.added = threading.Event()
        self.fell_back_us = 0
        self._clock = clock
        self._in_cluster = in_cluster

    def is_set(self) -> bool:
        if self.added.is_set() or self.fell_back_us or self.asked.is_set():
            return True
        self.fell_back_us = self._clock.fell_back_us
        if self.fell_back_us and self._in_cluster:
            raise StoreUnavailable(
                f"the clock of this host went back by {self.fell_back_us / 1e6:.1f} s, and Bytewax would end no epoch until it "
                "is where it was; start all processes of the cluster again"
            )
        return bool(self.fell_back_us)


def _run_once(
    plan: Plan,
    deployment: Deployment,
    stop: _Ends,
    report: Callable[[Status], None] | None,
    begun: Callable[[Mapping[str, int]], None] | None,
    clock: HostClock,
    give_up: Callable[[UnskewError], None] | None,
    together: threading.Event,
) -> Status:
    going_on = partial(_go_on, stop.asked)
    with ExitStack() as closing:
        closing.enter_context(garbage.looked_for_rarely())
        try:
            # A store that is away is waited for, whatever else may end the flow.
            opened = _open(plan, deployment, stop.asked, closing)
            going_on()
            clock.compare(opened.server.until_done(opened.writer.time_us), "the Redis server")
            topics = _open_topics(plan, deployment, stop, clock, opened, closing)
        except StoreUnavailable:
            # Whoever asked it to stop does not want to know for what it waited.
            going_on()
            raise
        pipeline = _wire(plan, deployment, clock, opened, topics, going_on)
        if deployment.metrics is not None:
            closing.enter_context(answering(deployment.metrics, registry_of(pipeline.running), pipeline.running))
        if begun is not None:
            begun({topic: len(source.origins) for topic, source in topics.sources.items()})
        with _reporting(pipeline.running.status, report):
            if not deployment.replace:
                # Before anything is written; what is claimed is the id of a state that is durable.
                opened.server.until_done(lambda: opened.writer.refuse_owned(topics.own))
            if not opened.state.ran:
                # Before the values of another state are removed, because the first rows would be refused.
                opened.tables.until_done(lambda: pipeline.refuse_earlier(topics.own, topics.tables))
            _compile(pipeline.running.progress, deployment.state / COMPILED, stop.asked)
            going_on()
            opened.tables.until_done(lambda: _bring_history(plan, deployment, opened, topics, pipeline, going_on))
            recovery = opened.disk.until_done(lambda: opened.state.open(topics.known))
            # Only now is the state's id durable. The owners are read again, because compiling takes minutes and another
            # state may have claimed the shards meanwhile.
            opened.server.until_done(
                lambda: opened.writer.claim(topics.own, deployment.place(), replace=deployment.replace)
            )
            opened.server.until_done(
                lambda: opened.writer.report_large_hashes([view.published for view in plan.views.values()])
            )
            with ExitStack() as watched:
                if deployment.cluster:
                    together.set()
                if deployment.cluster and give_up is not None:
                    watched.enter_context(
                        watching(opened.members, deployment.others, pipeline.built, stop.asked, give_up)
                    )
                _run_flow(pipeline.flow, deployment, recovery, pipeline.failures)
            pipeline.settle()
        return pipeline.running.status()


def _go_on(stop: Flag) -> None:
    """Raise ``Stopped`` if this process was asked to stop."""
    if stop.is_set():
        raise Stopped("it was asked to stop before it had begun")


def _compile(progress: Progress, folder: Path, stop: threading.Event) -> None:
    """Compile the kernel before the first poll, while metrics and health answer, and so that a signal ends it."""
    if compiling.is_done():
        return
    _log.warning(
        "the kernel is being compiled, once for each installation and processor; no records are read meanwhile"
    )
    progress.compiling = True
    try:
        compiling.compile_ahead(folder, stop)
    finally:
        progress.compiling = False


def _bring_history(
    plan: Plan,
    deployment: Deployment,
    opened: "_Opened",
    topics: "_Topics",
    pipeline: "_Pipeline",
    going_on: Callable[[], None],
) -> None:
    """Give views that the state does not hold yet their past from the archive; nothing if there is no state yet.

    In a cluster, the first process does so, and the others wait for it, as for any start of the flow.
    """
    progress = pipeline.running.progress
    state = opened.state
    if not state.ran or not state.leads:
        return
    for view_id in set(pipeline.seeds.views()) & set(state.held) - {view.id for view in plan.views.values()}:
        # A run took it over, and the view is gone since.
        pipeline.seeds.remove(view_id)
    new = [view for view in plan.views.values() if view.id not in state.held or pipeline.seeds.has(view.id)]
    if not new:
        return
    n_partitions = {topic: len(source.origins) for topic, source in topics.sources.items()}
    try:
        hand_over(
            HandOver(
                views=new,
                log=deployment.log,
                archive=deployment.archive,
                saved=read_saved(deployment.state / RECOVERY, n_partitions),
                seeds=pipeline.seeds,
                changelogs=opened.changelogs,
                partitions={topic: list(deployment.partitions or range(n)) for topic, n in n_partitions.items()},
                n_partitions=n_partitions,
                n_hashes=deployment.n_hashes,
                still_ours=opened.leases.check,
                going_on=going_on,
                report=progress.note_history,
            )
        )
    finally:
        progress.note_history(None)


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """The state and the stores of a run, held by this process.

    ``tables``: the store of log, archive and dead letters: ``objects`` if any of them is in an object store.
    ``lease``: takes the lease of a folder for some writers; its option names the folder in errors. ``members``: the
    other processes of a cluster.
    """

    leases: Leases
    members: Members
    lease: Callable[[Path, str, Iterable[str]], Lease]
    server: Patience
    disk: Patience
    objects: Patience
    tables: Patience
    state: StateFolder
    journal: Journal
    changelogs: Changelogs
    aside: Aside
    writer: RedisWriter

    def patience_of(self, place: Path) -> Patience:
        """Return what waits for the store of a place."""
        return self.objects if concerns(place) else self.disk


@dataclass(frozen=True, kw_only=True)
class _Topics:
    """The topics of a run, and the turns of their partitions; ``sources`` and ``routers`` are by topic.

    ``own``: the shards of the process's state. ``tables``: its partitions, as ``topic/p0``.
    """

    turns: Turns
    sources: dict[str, KafkaSource]
    routers: dict[str, Router]
    shards: Shards
    own: frozenset[str]
    tables: frozenset[str]

    @property
    def known(self) -> dict[str, KnownTopics]:
        return {topic: source.known for topic, source in self.sources.items()}


@dataclass(frozen=True, kw_only=True)
class _Pipeline:
    """A flow that is ready to run; call ``settle`` once it has ended without an error.

    ``built``: set once the processes of a cluster have found each other. ``failures``: None outside of a cluster.
    """

    flow: Dataflow
    running: Running
    seeds: Seeds
    settle: Callable[[], None]
    refuse_earlier: Callable[[Iterable[str], Iterable[str]], None]
    built: threading.Event
    failures: Failures | None


def _open(plan: Plan, deployment: Deployment, stop: Flag, closing: ExitStack) -> _Opened:
    """Take the lease of the state folder, read its content, and connect to Redis; only the lease is written."""
    leases = Leases()
    server = Patience("Redis", stop, still_ours=leases.check)
    disk = Patience("the disk", stop, still_ours=leases.check)
    objects = Patience("the object store", stop, still_ours=leases.check)
    for folder in deployment.folders().values():
        # Last of all, after the leases are given back: a run that is refused leaves no folder behind.
        closing.callback(durable.remove_empty, durable.missing(folder))
    closing.callback(leases.release)
    owner = deployment.owner()

    def lease(root: Path, option: str, writers: Iterable[str]) -> Lease:
        wanted = frozenset(writers)
        taken = disk.until_done(
            lambda: Lease(root, option, owner, wanted, take_over=deployment.take_over, going_on=partial(_go_on, stop))
        )
        leases.add(taken)
        return taken

    make_state_folder(deployment.state)
    members = Members(lease(deployment.state, "--state", ["the state"]), deployment.others)
    state = StateFolder.read(plan, deployment, leases.check, partial(_go_on, stop))
    journal = Journal(
        deployment.state / JOURNAL,
        state.id,
        process=deployment.process,
        n_processes=deployment.n_processes,
        durably=disk.until_done,
        still_ours=leases.check,
    )
    closing.callback(journal.close)
    if state.leads and state.found is not None and not journal.existed:
        _log.warning(
            "%s holds no journal of the runs before this one: what they showed since their last durable epoch may be contradicted by the "
            "log; restore the journal from the backup that holds the state, if there is one",
            deployment.state / JOURNAL,
        )
    aside = Aside(deployment.epoch_s)
    changelogs = Changelogs(
        deployment.state / CHANGELOG, leases.check, partial(_go_on, stop), kept_bytes=KEPT_BYTES, aside=aside
    )
    closing.callback(changelogs.close)
    closing.callback(aside.close)
    writer = RedisWriter(
        deployment.redis_url,
        deployment.prefix,
        deployment.pipeline,
        state.id,
        process=deployment.process,
        n_processes=deployment.n_processes,
        still_ours=leases.check,
        allow_eviction=deployment.allow_eviction,
        expire_after_us=deployment.expire_after_us,
    )
    closing.callback(writer.close)
    writer.look()
    return _Opened(
        leases=leases,
        members=members,
        lease=lease,
        server=server,
        disk=disk,
        objects=objects,
        tables=objects if concerns(*deployment.folders().values()) else disk,
        state=state,
        journal=journal,
        changelogs=changelogs,
        aside=aside,
        writer=writer,
    )


def _open_topics(
    plan: Plan,
    deployment: Deployment,
    stop: _Ends,
    clock: HostClock,
    opened: _Opened,
    closing: ExitStack,
) -> _Topics:
    """Find the partitions of every topic, and take the leases of the tables to which they are written."""
    schemas = None if deployment.schema_registry is None else SchemaRegistry(deployment.schema_registry, stop.asked)
    # What another process of a cluster sends does not end a rest.
    turns = Turns(SHORTEST_S if deployment.cluster else LONGEST_S)
    sources: dict[str, KafkaSource] = {}
    routers: dict[str, Router] = {}
    names: dict[str, list[str]] = {}
    own: set[str] = set()
    tables: set[str] = set()
    for stream in {view.stream.topic: view.stream for view in plan.views.values()}.values():
        views = [view for view in plan.views.values() if view.stream.topic == stream.topic]
        options = SourceOptions(
            bootstrap=deployment.bootstrap,
            group=f"{deployment.prefix}-{deployment.pipeline}",
            idle=deployment.idle,
            stop=stop,
            clock=clock,
            turns=turns,
            ends=deployment.ends,
            start=deployment.start,
            aligned=any(not view.partitioned for view in views),
            poll_records=deployment.poll_records,
            partitions=deployment.partitions,
            config=deployment.config,
            journal=opened.journal,
            known=opened.state.topics.get(stream.topic),
            adopt_ids=deployment.adopt_topic_ids,
            by_partition=list(dict.fromkeys(view.name for view in views if view.partitioned)),
            on_added=stop.added.set,
        )
        source = sources[stream.topic] = KafkaSource(stream, options)
        closing.callback(source.close)
        source.list_parts()
        n_partitions = len(source.origins)
        deployment.check_ends(source.origins)
        mine = deployment.partitions or range(n_partitions)
        tables.update(f"{stream.topic}/p{number}" for number in mine)
        routers[stream.topic] = Router(
            views,
            decoder_of(stream, schemas, opened.journal.schema_ids(stream.topic)),
            n_partitions,
            deployment.n_hashes,
            opened.journal,
        )
        for view in views:
            names[view.id] = shard_names(view, range(n_partitions), deployment.n_hashes)
            own.update(f"{view.id}/{shard}" for shard in shard_names(view, mine, deployment.n_hashes))
    roots = {"--log": deployment.log, "--archive": deployment.archive, "--dead-letters": deployment.dead_letters}
    for option, root in roots.items():
        if isinstance(root, ObjectPath):
            # There are no locks; the coverage of each writer excludes others.
            probe(root, option)
        else:
            opened.lease(root, option, own if option == "--log" else tables)
    if deployment.partitions is not None:
        shards = Shards(names, frozenset(own), opened.state.retired)
    else:
        # In a cluster, only one process withdraws what earlier runs announced.
        leads = deployment.process == 0
        shards = Shards(names, None if leads else frozenset(), opened.state.retired)
    return _Topics(
        turns=turns, sources=sources, routers=routers, shards=shards, own=frozenset(own), tables=frozenset(tables)
    )


def _wire(
    plan: Plan,
    deployment: Deployment,
    clock: HostClock,
    opened: _Opened,
    topics: _Topics,
    going_on: Callable[[], None],
) -> _Pipeline:
    """Connect topics, shards and sinks."""
    progress = Progress()
    seeds = Seeds(deployment.state)
    parquet = ParquetSink(
        plan,
        deployment.log,
        deployment.archive,
        deployment.dead_letters,
        wall_us,
        topics.shards,
        opened.disk,
        opened.objects,
        progress.epochs,
        opened.leases.check,
        lambda n_held: opened.state.require_room(n_held + opened.changelogs.n_kept),
        seeds,
        opened.aside,
    )
    redis = RedisSink(
        plan,
        opened.writer,
        wall_us,
        topics.shards,
        opened.server,
        progress.epochs,
        topics.turns,
        deployment.scrub_us,
    )

    known = topics.known

    @cache
    def accepted() -> None:
        revision = None
        if deployment.registry is not None:
            # As it is by now: what was applied last decides what serves.
            revision = opened.patience_of(deployment.registry).until_done(Record(deployment.registry).last)
        text = published(plan, revision)
        opened.server.until_done(lambda: opened.writer.publish_registry(text, anew=deployment.replace))
        opened.disk.until_done(lambda: opened.state.record(known))
        # At the end of the first epoch that brought something: everything is loaded that a flow needs.
        garbage.keep_what_is_there()

    def settle() -> None:
        accepted()
        opened.leases.check()
        parquet.settle()
        progress.epochs.settle()

    failures = Failures() if deployment.cluster else None
    flow = build_flow(
        FLOW,
        plan,
        topics.sources,
        topics.routers,
        parquet,
        redis,
        opened.changelogs,
        progress,
        accepted,
        going_on,
        failures,
    )
    running = Running(
        progress=progress,
        sources=topics.sources,
        routers=topics.routers,
        writer=opened.writer,
        stores={
            "redis": opened.server,
            "disk": opened.disk,
            **({"objects": opened.objects} if opened.tables is opened.objects else {}),
        },
        changelogs=opened.changelogs,
        journal=opened.journal,
        clock=clock,
    )
    return _Pipeline(
        flow=flow,
        running=running,
        seeds=seeds,
        settle=settle,
        refuse_earlier=parquet.refuse_earlier,
        built=parquet.built,
        failures=failures,
    )


def _run_flow(
    flow: Dataflow, deployment: Deployment, recovery: RecoveryConfig, failures: Failures | None = None
) -> None:
    """Run the flow to its end; unwrap an error of this project that Bytewax has wrapped or lost."""
    epoch = timedelta(seconds=deployment.epoch_s)
    try:
        if deployment.cluster:
            cli_main(
                flow,
                process_id=deployment.process,
                addresses=list(deployment.cluster),
                epoch_interval=epoch,
                recovery_config=recovery,
            )
        else:
            run_main(flow, epoch_interval=epoch, recovery_config=recovery)
    # A panic of Bytewax's runtime is no ``Exception``.
    except BaseException as error:
        causes = [*causes_of(error), *causes_of(None if failures is None else failures.first)]
        for cause in causes:
            if isinstance(cause, UnskewError):
                raise cause from None
        if (found := failure_of_store("; ".join(map(str, causes)), deployment.state / RECOVERY)) is not None:
            raise found from error
        if failures is not None and not isinstance(error, KeyboardInterrupt):
            # In a cluster, Bytewax says no more than that one of its threads died.
            if failures.first is not None:
                raise failures.first from None
            raise lost(f"the connection to another process of the cluster was lost ({error})") from error
        raise


@contextmanager
def _reporting(status: Callable[[], Status], report: Callable[[Status], None] | None) -> Iterator[None]:
    if report is None:
        yield
        return
    done = threading.Event()

    def loop() -> None:
        while not done.wait(1.0):
            report(status())

    thread = threading.Thread(target=loop, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        report(status())
        sys.stdout.flush()
