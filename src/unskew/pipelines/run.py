"""Run a pipeline in this process until its topics end or it is told to stop."""

import json
import logging
import os
import shutil
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.run import cli_main
from bytewax.testing import run_main

from unskew.features.errors import DefinitionError, LayoutError, RequestError, StoreUnavailable, UnskewError
from unskew.features.plan import Plan, ViewPlan
from unskew.features.registry import describe
from unskew.pipelines.decoding.avro import decoder_of
from unskew.pipelines.decoding.schema_registry import SchemaRegistry
from unskew.pipelines.flow import ParquetSink, RedisSink, Shards, build_flow
from unskew.pipelines.kafka.source import KafkaSource, SourceOptions
from unskew.pipelines.progress import Progress
from unskew.pipelines.routing import Router
from unskew.pipelines.state.changelog import Changelogs
from unskew.pipelines.state.journal import Journal
from unskew.pipelines.state.ordering import shard_names
from unskew.pipelines.watch.endpoint import answering
from unskew.pipelines.watch.running import Running
from unskew.sinks.lease import Lease, Leases, Owner
from unskew.sinks.patience import Patience
from unskew.sinks.redis.writer import RedisWriter

RECOVERY = "recovery"
CHANGELOG = "changelog"
JOURNAL = "journal"
DEPLOYMENT = "deployment.json"
DEPLOYMENT_LAYOUT = 2
FLOW = "unskew"
STORE_TIMEOUT_S = 60.0

_log = logging.getLogger("unskew.run")


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """Where a pipeline reads and writes.

    ``log``, ``archive``, ``dead_letters``: roots of the Parquet tables; ``state``: the recovery store's folder.
    ``n_hashes``: hash shards per view (and per partition where the topic is partitioned by the entity); fixed for as
    long as the state lives. ``idle``, ``ends``, ``start``: as in ``SourceOptions``, ``ends`` by topic.
    ``epoch_s``: seconds between commits. ``schema_registry``: its URL, where writers' schemas are looked up; None: streams'
    own schemas are the writers'.
    ``partitions``: those that this process reads, always the same for one ``state``; all if None. ``cluster``: host:port of
    every process that shares this ``state``, the same list for each of them, and ``process`` the place of this one.
    ``metrics``: host and port where metrics and health are told; nowhere if None. ``take_over``: whether leases of processes of other
    machines, of which it cannot be told whether they live, are taken over at once.
    """

    bootstrap: str
    redis_url: str = field(repr=False)
    schema_registry: str | None = field(default=None, repr=False)
    log: Path
    archive: Path
    dead_letters: Path
    state: Path
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
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Status:
    """One reading of a running pipeline; counts since the process started, instants in microseconds.

    ``late_by_view``, ``duplicates``: as in ``Progress``. ``incompatible``: messages, among the ``dead``, whose writer's schema cannot be
    read as the stream's. ``dead_by_kind``: as in ``features/rejection.py``. ``epochs``: durable ones; ``commit_s``, ``longest_commit_s``:
    seconds that their snapshots took, all together and at most. ``retries``: by store, tries after one that found it away.
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
    dead_by_kind: Mapping[str, int] = field(default_factory=dict)
    epochs: int = 0
    commit_s: float = 0.0
    longest_commit_s: float = 0.0
    retries: Mapping[str, int] = field(default_factory=dict)


def wall_us() -> int:
    """The present, microseconds."""
    return time.time_ns() // 1000


def run(
    plan: Plan,
    deployment: Deployment,
    *,
    stop: threading.Event,
    report: Callable[[Status], None] | None = None,
    present_us: Callable[[], int] = wall_us,
) -> Status:
    """Run until every topic has ended or ``stop`` is set; then everything is flushed, published and durable.

    ``report`` is called about once a second and at the end. Raises ``LayoutError`` where the state folder belongs to
    another deployment, or another process writes what this one is to write, ``RequestError`` where ``ends`` leaves out a partition, ``StoreUnavailable`` where
    Kafka, Redis or the disk fails, ``DefinitionError`` where a stream cannot be read as asked; the state stays that of the
    last durable epoch. A run that is refused has published nothing and retired no view.
    """
    if not plan.views:
        raise DefinitionError("there is no view to compute; define a FeatureView")
    _check_partitions(plan, deployment)
    progress = Progress()
    with ExitStack() as opened:
        leases, owner = Leases(), _owner(deployment)
        server = Patience("Redis", stop, still_ours=leases.check)
        disk = Patience("the disk", stop, still_ours=leases.check)
        opened.callback(leases.release)

        def lease(root: Path, option: str, writers: Iterable[str]) -> None:
            wanted = frozenset(writers)
            leases.add(disk.until_done(lambda: Lease(root, option, owner, wanted, take_over=deployment.take_over)))

        _check_state_folder(deployment.state)
        lease(deployment.state, "--state", ["the state"])
        state = _State.read(plan, deployment)
        journal = Journal(
            deployment.state / JOURNAL,
            state.id,
            process=deployment.process,
            n_processes=len(deployment.cluster) or 1,
            durably=disk.until_done,
            still_ours=leases.check,
        )
        opened.callback(journal.close)
        if state.leads and state.found is not None and not journal.existed:
            _log.warning(
                "%s holds no journal of the runs before this one: what they showed since their last durable epoch may be contradicted by the "
                "log; restore the journal from the backup that holds the state, if there is one",
                deployment.state / JOURNAL,
            )
        writer = RedisWriter(
            deployment.redis_url,
            deployment.prefix,
            deployment.pipeline,
            state.id,
            process=deployment.process,
            n_processes=len(deployment.cluster) or 1,
            still_ours=leases.check,
        )
        opened.callback(writer.close)
        writer.look()
        sources: dict[str, KafkaSource] = {}
        routers: dict[str, Router] = {}
        schemas = None if deployment.schema_registry is None else SchemaRegistry(deployment.schema_registry, stop)
        names: dict[str, list[str]] = {}
        own: set[str] = set()
        tables: set[str] = set()
        for stream in {view.stream.topic: view.stream for view in plan.views.values()}.values():
            views = [view for view in plan.views.values() if view.stream.topic == stream.topic]
            source = KafkaSource(stream, _source_options(views, deployment, stop, present_us, journal))
            opened.callback(source.close)
            sources[stream.topic] = source
            source.list_parts()
            n_partitions = len(source.origins)
            _check_ends(source.origins, deployment.ends)
            mine = deployment.partitions or range(n_partitions)
            tables.update(f"{stream.topic}/p{number}" for number in mine)
            routers[stream.topic] = Router(
                views, decoder_of(stream, schemas), n_partitions, deployment.n_hashes, journal
            )
            for view in views:
                names[view.id] = shard_names(view, range(n_partitions), deployment.n_hashes)
                own.update(f"{view.id}/{shard}" for shard in shard_names(view, mine, deployment.n_hashes))
        if deployment.partitions is None:
            # Of a cluster, one process withdraws what earlier runs said.
            shards = Shards(names, None if deployment.process == 0 else frozenset())
        else:
            shards = Shards(names, frozenset(own))
        lease(deployment.log, "--log", own)
        lease(deployment.archive, "--archive", tables)
        lease(deployment.dead_letters, "--dead-letters", tables)
        parquet = ParquetSink(
            plan,
            deployment.log,
            deployment.archive,
            deployment.dead_letters,
            wall_us,
            shards,
            disk,
            progress.epochs,
            leases.check,
        )

        def accept() -> None:
            server.until_done(lambda: writer.publish_registry(json.dumps(describe(plan))))
            state.record()

        accepted = _once(accept)
        changelogs = Changelogs(deployment.state / CHANGELOG, leases.check)
        opened.callback(changelogs.close)
        redis = RedisSink(plan, writer, wall_us, shards, server, progress.epochs)
        flow = build_flow(FLOW, plan, sources, routers, parquet, redis, changelogs, progress, accepted)

        running = Running(
            progress=progress,
            sources=sources,
            routers=routers,
            writer=writer,
            stores={"redis": server, "disk": disk},
            changelogs=changelogs,
            journal=journal,
            present_us=present_us,
        )
        if deployment.metrics is not None:
            opened.enter_context(answering(deployment.metrics, running))

        def status() -> Status:
            return Status(
                consumed=sum(source.counters.consumed for source in sources.values()),
                dead=sum(router.dead for router in routers.values()),
                incompatible=sum(router.incompatible for router in routers.values()),
                late=progress.late,
                bumped=sum(source.counters.bumped for source in sources.values()),
                updates=progress.updates,
                rows=progress.rows,
                clock_us=progress.clock_us,
                lag=sum(source.counters.lag for source in sources.values()),
                late_by_view=dict(progress.late_by_view),
                duplicates=dict(progress.duplicates),
                dead_by_kind=running.dead_by_kind(),
                epochs=progress.epochs.durable,
                commit_s=progress.epochs.commits.sum_s,
                longest_commit_s=progress.epochs.commits.longest_s,
                retries=running.retries(),
            )

        with _reporting(status, report):
            _run_flow(flow, deployment, state.open())
            accepted()
            leases.check()
            parquet.settle()
            progress.epochs.settle()
        return status()


def _source_options(
    views: Sequence[ViewPlan],
    deployment: Deployment,
    stop: threading.Event,
    present_us: Callable[[], int],
    journal: Journal,
) -> SourceOptions:
    return SourceOptions(
        bootstrap=deployment.bootstrap,
        group=f"{deployment.prefix}-{deployment.pipeline}",
        idle=deployment.idle,
        present_us=present_us,
        stop=stop,
        ends=deployment.ends,
        start=deployment.start,
        aligned=any(not view.partitioned for view in views),
        poll_records=deployment.poll_records,
        partitions=deployment.partitions,
        config=deployment.config,
        journal=journal,
    )


def _run_flow(flow: Dataflow, deployment: Deployment, recovery: RecoveryConfig) -> None:
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
    except Exception as error:
        _raise_ours(error)
        raise


def _check_partitions(plan: Plan, deployment: Deployment) -> None:
    """A view that is not partitioned by its entity needs events of every partition, in one order."""
    if deployment.partitions is None:
        return
    if deployment.cluster:
        raise RequestError("--partitions and --cluster exclude each other: a cluster divides the partitions by itself")
    apart = sorted(view.name for view in plan.views.values() if not view.partitioned)
    if apart:
        raise RequestError(
            f"{', '.join(apart)}: not partitioned by the entity, so its events are in all partitions; run it in a process that "
            "reads all of them (without --partitions), or as a cluster (--cluster)"
        )


def _once(action: Callable[[], None]) -> Callable[[], None]:
    """The action, done at the first call only."""
    waiting = [action]

    def act() -> None:
        while waiting:
            waiting.pop()()

    return act


def _check_ends(
    origins: Sequence[tuple[str, int]], ends: Mapping[str, Mapping[int, int]] | Literal["now"] | None
) -> None:
    """A partition without an end among ends would be left out, or waited for, in silence."""
    if ends is None or isinstance(ends, str):
        return
    missing: dict[str, list[str]] = {}
    for topic, partition in origins:
        if partition not in ends.get(topic, {}):
            missing.setdefault(topic, []).append(str(partition))
    for topic, partitions in missing.items():
        raise RequestError(f"topic {topic!r}: no end offset for partition {', '.join(partitions)}; give one for each")


@contextmanager
def stopping_on_signals(stop: threading.Event) -> Iterator[None]:
    """Set ``stop`` on SIGTERM and SIGINT; ignore them from the end on, when the process exits with a code of its own.

    With the default handlers put back, one that comes while the interpreter shuts down would still kill a process that has
    done all its work.
    """

    def handle(_number: int, _frame: object) -> None:
        stop.set()

    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)


def _owner(deployment: Deployment) -> Owner:
    text = f"pipeline {deployment.pipeline!r} on {deployment.state.absolute()}, process {os.getpid()} on {socket.gethostname()}"
    return Owner(
        text=text,
        group=f"cluster {','.join(deployment.cluster)}" if deployment.cluster else uuid.uuid4().hex,
        member=deployment.process,
    )


def _check_state_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        usable = os.access(folder, os.W_OK)
    except OSError as error:
        raise LayoutError(
            f"{folder} cannot be used as a state folder: {error.strerror}; name another --state"
        ) from error
    if not usable:
        raise LayoutError(f"{folder} cannot be used as a state folder: it is not writable; name another --state")


@dataclass(frozen=True, kw_only=True)
class _State:
    """The state folder: a recovery store, and beside it a small file.

    The file says what the store was made for, by which ``id`` it is told from any other, which views it holds, and which of them an earlier run no longer had: their
    state stands still where it was, and must not go on as if nothing had come since.
    """

    folder: Path
    facts: Mapping[str, Any]
    views: Sequence[str]
    retired: Sequence[str]
    found: Mapping[str, Any] | None
    id: str
    leads: bool

    @classmethod
    def read(cls, plan: Plan, deployment: Deployment) -> "_State":
        """Look at what is there and write nothing; refused where it is another deployment's or has skipped a view."""
        path = deployment.state / DEPLOYMENT
        leads = deployment.process == 0
        if not leads:
            _await_store(deployment.state / RECOVERY)
        facts = {"layout": DEPLOYMENT_LAYOUT, "pipeline": deployment.pipeline, "shards": deployment.n_hashes}
        now = {view.id for view in plan.views.values()}
        existing = _read_deployment(path)
        found = existing or {**facts, "id": uuid.uuid4().hex, "views": [], "retired": []}
        stored = _holds_anything(deployment.state / RECOVERY)
        if existing is None and stored:
            raise LayoutError(
                f"{deployment.state / RECOVERY} holds a recovery store but {path} is gone; restore it, or name another "
                "--state"
            )
        if any(found.get(name) != value for name, value in facts.items()):
            raise LayoutError(
                f"{deployment.state} belongs to pipeline {found.get('pipeline')!r} with {found.get('shards')} shards "
                f"(layout {found.get('layout')}), not to {deployment.pipeline!r} with {deployment.n_hashes} "
                f"(layout {DEPLOYMENT_LAYOUT}); run with those, or name another --state"
            )
        if found["views"] and not stored:
            raise LayoutError(
                f"{deployment.state / RECOVERY} is gone but {path} speaks of it; restore it, or name another --state"
            )
        retired = set(found["retired"]) | (set(found["views"]) - now)
        if back := sorted(retired & now):
            raise LayoutError(
                f"{', '.join(back)}: left out of an earlier run on {deployment.state}, so its state lacks what came "
                "then; give the view a new version"
            )
        return cls(
            folder=deployment.state,
            facts=facts,
            views=sorted(set(found["views"]) | now),
            retired=sorted(retired),
            found=existing,
            id=found["id"],
            leads=leads,
        )

    def open(self) -> RecoveryConfig:
        """The recovery store, made when new."""
        recovery = self.folder / RECOVERY
        if not self.leads:
            return RecoveryConfig(recovery)
        if self.found is None:
            # Before the store: a store without the file would be refused.
            _replace(self.folder / DEPLOYMENT, json.dumps({**self.facts, "id": self.id, "views": [], "retired": []}))
        if not _holds_anything(recovery):
            # Under another name first: the other processes of a cluster wait for a store that is whole.
            made = recovery.with_suffix(".tmp")
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            init_db_dir(made, 1)
            if recovery.is_dir():
                recovery.rmdir()
            made.rename(recovery)
        return RecoveryConfig(recovery)

    def record(self) -> None:
        """Write down the views: before the first epoch without a retired one is durable, and not before this is sure."""
        content = {**self.facts, "id": self.id, "views": self.views, "retired": self.retired}
        if self.leads and content != self.found:
            _replace(self.folder / DEPLOYMENT, json.dumps(content))


def _await_store(recovery: Path) -> None:
    """Wait for the first process of a cluster to make the recovery store."""
    until_s = time.monotonic() + STORE_TIMEOUT_S
    while not _holds_anything(recovery):
        if time.monotonic() > until_s:
            raise StoreUnavailable(
                f"{recovery} was not made within {STORE_TIMEOUT_S:.0f} s: start process 0 of the cluster, and give all processes "
                "the same --state"
            )
        time.sleep(0.05)


def _holds_anything(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _read_deployment(path: Path) -> dict[str, Any] | None:
    try:
        return {"id": "", "views": [], "retired": [], **json.loads(path.read_text(encoding="utf-8"))}
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise LayoutError(f"{path} is damaged ({error}); restore it, or name another --state") from error


def _replace(path: Path, text: str) -> None:
    """Write a file so that a crash leaves the old or the new one, whole."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _raise_ours(error: BaseException) -> None:
    """Raise the error of ours that Bytewax has wrapped, if there is one."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UnskewError):
            raise cause
        cause = cause.__cause__ or cause.__context__


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
