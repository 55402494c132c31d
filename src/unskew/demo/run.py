"""The demo from start to end: servers, stream, a stop half-way, features, a training set, the audit.

It checks everything that it shows: every produced record is in the archive or the dead letters, every planted damage is
found, and the audit finds no difference.
"""

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import polars as pl
from rich.console import Console

from unskew.demo import journey, results
from unskew.demo.embedded import EmbeddedBroker, EmbeddedRedis
from unskew.demo.folders import Folders
from unskew.demo.pacing import PacedProducer, paced
from unskew.demo.process import PipelineProcess, Progress
from unskew.demo.topics import Topic
from unskew.features.definitions.load import load
from unskew.features.errors import UnskewError
from unskew.features.plan import Plan
from unskew.monitoring.audit import audit
from unskew.monitoring.report import audit_table, difference_lines, engines_line
from unskew.pipelines.watch.display import Display
from unskew.sinks.tables.layout import published_files
from unskew.store import FeatureStore

N_AUDITED = 2_000
# The group to which `unskew run` commits, with its default prefix and name.
GROUP = "unskew-main"
_POLL_S = 0.2
LINE_EVERY_S = 5.0


class DemoFailed(UnskewError):
    """A result of the demo is wrong."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What is up at the end of a demo. ``household``: one of those that bought last."""

    bootstrap: str
    redis_url: str
    folders: Folders
    household: int


def run_demo(
    console: Console,
    output: Path,
    *,
    n_lines: int | None = None,
    seed: int = journey.SEED,
    then: Callable[[Standing], None] = lambda _standing: None,
) -> None:
    """Run the demo and show it on ``console``; raises ``DemoFailed``, which names everything that is wrong.

    ``output``: the folder for all output. ``n_lines``: the number of basket lines, from the first on; all if None.
    ``then``: called at the end, while the servers are still up.
    """
    began_s = time.monotonic()
    folders = Folders(output.absolute())
    folders.prepare()
    plan = load(journey.HOME)
    topics = journey.topics(n_lines, seed=seed)
    folders.end.write_text(json.dumps({name: topic.end_offsets() for name, topic in topics.items()}))
    _introduce(console, topics, folders)
    with (
        _sigterm_interrupts(),
        EmbeddedBroker({name: topic.n_partitions for name, topic in topics.items()}) as broker,
        EmbeddedRedis() as redis,
    ):
        with paced(
            broker.bootstrap, {name: topic.chunks() for name, topic in topics.items()}, group=GROUP
        ) as producers:
            _stream(console, topics, folders, producers, bootstrap=broker.bootstrap, redis_url=redis.url)
        faults = check_counts(console, topics, folders)
        store = FeatureStore(plan, redis_url=redis.url, log=folders.log)
        _show_features(console, store, plan, topics)
        faults += _train(console, store, plan, topics, folders, seed=seed)
        faults += _audit(console, plan, folders, redis_url=redis.url, seed=seed)
        if faults:
            raise DemoFailed(faults)
        console.print(
            f"\n[bold green]Everything agrees.[/] {time.monotonic() - began_s:.0f} s; output in {folders.root}",
            highlight=False,
            soft_wrap=True,
        )
        household = results.busy_households(topics["transactions"].frame)[0]
        then(Standing(bootstrap=broker.bootstrap, redis_url=redis.url, folders=folders, household=household))


def _introduce(console: Console, topics: Mapping[str, Topic], folders: Folders) -> None:
    lines, views = topics["transactions"], topics["page_views"]
    console.print(
        f"The Complete Journey: {lines.n_records:,} real basket lines, and {views.n_records:,} generated page views "
        f"(some late, some twice, {views.n_malformed} unreadable).\n"
        f"Broker, Redis and pipeline run on this machine and end with this command. Output: {folders.root}",
        highlight=False,
        soft_wrap=True,
    )


def _stream(
    console: Console,
    topics: Mapping[str, Topic],
    folders: Folders,
    producers: Sequence[PacedProducer],
    *,
    bootstrap: str,
    redis_url: str,
) -> None:
    """Run the pipeline over both topics, stopping and resuming it once."""
    arguments = [
        *("--definitions", str(journey.HOME)),
        *("--bootstrap-servers", bootstrap),
        *("--redis-url", redis_url),
        *("--log", str(folders.log)),
        *("--archive", str(folders.archive)),
        *("--dead-letters", str(folders.dead_letters)),
        *("--state", str(folders.state)),
        *("--idle", "none"),
        *("--end", str(folders.end)),
        *("--epoch", "1s"),
    ]
    total = sum(topic.n_records for topic in topics.values())
    with Display(console, total, every_s=LINE_EVERY_S) as display:

        def watch(pipeline: PipelineProcess, before: Progress, until: int) -> bool:
            """Show progress until the pipeline ends or has consumed ``until`` records; return whether it ended."""
            while not (ended := pipeline.ended()) and pipeline.progress.consumed < until:
                display.show(pipeline.progress.after(before))
                for producer in producers:
                    if producer.failed is not None:
                        raise producer.failed
                time.sleep(_POLL_S)
            display.show(pipeline.progress.after(before))
            return ended

        with PipelineProcess(arguments, errors=folders.stderr) as pipeline:
            if not watch(pipeline, Progress(), until=total // 2):
                began_s = time.monotonic()
                pipeline.stop()
                display.note(
                    f"Stopped half-way, at {pipeline.progress.consumed:,} events, in "
                    f"{time.monotonic() - began_s:.1f} s; continuing from {folders.state}"
                )
            before = pipeline.progress
        with PipelineProcess(arguments, errors=folders.stderr) as pipeline:
            watch(pipeline, before, until=total + 1)


def check_counts(console: Console, topics: Mapping[str, Topic], folders: Folders) -> list[str]:
    """Compare produced records with archive and dead letters, record by record; return the faults."""
    faults = []
    for name, topic in topics.items():
        kept = _offsets(folders.archive / name, "_partition", "_offset")
        dead = _offsets(folders.dead_letters / name, "partition", "offset")
        n_kept, n_dead = kept.height, dead.height
        console.print(f"{name}: {n_kept:,} events in the archive, {n_dead:,} dead letters", highlight=False)
        if n_dead != topic.n_malformed:
            faults.append(f"{name}: {n_dead} dead letters, but {topic.n_malformed} unreadable records were planted")
        if n_kept + n_dead != topic.n_records or pl.concat([kept, dead]).is_duplicated().any():
            faults.append(
                f"{name}: {topic.n_records:,} records were produced, but {n_kept:,} are in the archive and {n_dead:,} "
                "in the dead letters; each record must be there once"
            )
    return faults


def _offsets(table: Path, partition: str, offset: str) -> pl.DataFrame:
    """Return partition and offset of every record in a table, without dead letters of a single view."""
    files = [file.path for file in published_files(table)]
    if not files:
        return pl.DataFrame(schema={"partition": pl.Int32, "offset": pl.Int64})
    rows = pl.read_parquet(files)
    if "view" in rows.columns:
        rows = rows.filter(pl.col("view").is_null())
    return rows.select(pl.col(partition).alias("partition"), pl.col(offset).alias("offset"))


def _show_features(console: Console, store: FeatureStore, plan: Plan, topics: Mapping[str, Topic]) -> None:
    households = results.busy_households(topics["transactions"].frame)
    console.print()
    console.print(results.household_features(store, plan, households), crop=False)


def _train(
    console: Console, store: FeatureStore, plan: Plan, topics: Mapping[str, Topic], folders: Folders, *, seed: int
) -> list[str]:
    """Build and show the training set, and check that it consists of the labels with features added."""
    # The log is complete up to the end of the partition, of either topic, that ended first.
    before_ms = min(topic.last_timestamp_ms() for topic in topics.values())
    wanted = results.labels(topics["transactions"].frame, before_ms=before_ms, seed=seed)
    began_s = time.monotonic()
    asked = results.references(*plan.views.values())
    frame = store.get_historical_features(wanted, asked, full_feature_names=True).to_polars()
    took_s = time.monotonic() - began_s
    frame.write_parquet(folders.training_set)
    console.print()
    console.print(results.head(frame), crop=False)
    console.print(results.summary(frame), crop=False)
    console.print(
        f"{frame.height:,} labels x {len(frame.columns) - len(wanted.columns)} features in {took_s:.1f} s: "
        f"{folders.training_set}",
        highlight=False,
        soft_wrap=True,
    )
    if not frame.select(wanted.columns).equals(wanted):
        return ["the training set does not begin with the labels, in their order"]
    return []


def _audit(console: Console, plan: Plan, folders: Folders, *, redis_url: str, seed: int) -> list[str]:
    """Compare log, Redis and a recount of the raw events."""
    began_s = time.monotonic()
    with console.status("Audit") as status:
        report = audit(
            plan,
            folders.log,
            folders.archive,
            redis_source=redis_url,
            samples=N_AUDITED,
            seed=seed,
            progress=lambda step, done, total: status.update(f"Audit: {step} {done:,} of {total:,}"),
        )
    console.print()
    console.print(audit_table(report), crop=False)
    console.print(f"{engines_line(report)}; audited in {time.monotonic() - began_s:.1f} s", highlight=False)
    faults = [f"the audit: {line}" for line in difference_lines(report)]
    if ahead := sum(view.ahead for view in report.views):
        faults.append(f"the audit had to leave out {ahead} values in Redis that log and archive do not cover")
    return faults


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Make SIGTERM end the demo like Ctrl-C, so that everything it started ends too."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
