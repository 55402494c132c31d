"""``unskew run``: run the pipeline in this process."""

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import click

from unskew import settings
from unskew.cli.screen import say_lines
from unskew.features.errors import RequestError, Stopped, UnskewError
from unskew.features.local import local_path
from unskew.stopping import stopping_on_signals

if TYPE_CHECKING:
    from unskew.cli.account import Account


@click.command()
@settings.definitions
@settings.bootstrap_servers
@settings.kafka_config
@settings.redis_url
@settings.schema_registry
@settings.log
@settings.archive
@settings.dead_letters
@settings.state
@settings.prefix
@settings.pipeline
@settings.metrics
@settings.allow_eviction
@settings.expire_after
@settings.scrub
@settings.drop
@settings.registry
@settings.umask
@click.option(
    "--idle",
    type=click.Choice(["wall", "none"]),
    required=True,
    help="What moves the clock of a partition without records: the wall clock (live topic) or nothing (replay).",
)
@click.option(
    "--end",
    metavar="now|FILE",
    help="Stop at the current end of the topics, or at the offsets of a JSON file: {topic: {partition: offset}}.",
)
@click.option(
    "--start",
    type=click.Choice(["earliest", "latest"]),
    default="earliest",
    show_default=True,
    help="Where to begin if there is no saved state.",
)
@settings.shards
@settings.partitions
@settings.cluster
@settings.process
@click.option(
    "--poll-records",
    type=click.IntRange(1),
    default=10_000,
    show_default=True,
    help="Maximum number of records of a partition in one step.",
)
@settings.applies
@click.option(
    "--take-over",
    is_flag=True,
    help="Take over at once the leases of a process on another machine; without it they are watched for 30 s first.",
)
@click.option(
    "--adopt-topic-ids",
    is_flag=True,
    help="Go on with topics whose ids have changed, because they hold the same records at the same offsets: after a cluster "
    "was restored or mirrored.",
)
@click.option(
    "--replace",
    is_flag=True,
    help="Remove the values that another --state wrote to Redis for the same views, and write them from this one; "
    "only if the pipeline that wrote them has ended for good.",
)
@click.option("--epoch", default="5s", show_default=True, metavar="DURATION", help="Time between commits.")
@click.option(
    "--progress",
    "progress",
    type=click.Choice(["auto", "plain", "json", "none"]),
    default="auto",
    show_default=True,
    help="How far it is: auto shows a live display in a terminal, and prints a line a minute on standard error elsewhere, as "
    "plain does everywhere; json prints an object every second on standard output; none prints nothing but errors.",
)
@settings.log_format
def run(
    definitions: tuple[Path, ...],
    bootstrap_servers: str,
    kafka_config: Path | None,
    redis_url: str,
    schema_registry: str | None,
    log: Path,
    archive: Path,
    dead_letters: Path | None,
    state: Path,
    prefix: str,
    pipeline: str,
    metrics: str | None,
    allow_eviction: bool,
    expire_after: str | None,
    scrub: str,
    drop: tuple[str, ...],
    registry: Path | None,
    idle: str,
    end: str | None,
    start: str,
    shards: int,
    partitions: str | None,
    cluster: str | None,
    process: int,
    poll_records: int,
    applies: bool,
    take_over: bool,
    adopt_topic_ids: bool,
    replace: bool,
    epoch: str,
    progress: str,
    log_format: str,
) -> None:
    """Run the pipeline: Kafka to exact windowed features in Redis and the Parquet log.

    It runs what was applied (`unskew apply`); with --apply it applies the definitions first.

    It says at its start what it runs, meanwhile how far it is, and at its end why it ends; on standard error.

    The pipeline continues from the recovery store under --state. It stops cleanly on SIGTERM and Ctrl-C: everything
    that was read is written, and nothing is left to replay.

    \b
    Live:     unskew run --apply --definitions defs/ --idle wall \\
                  --log log --archive archive --state state
    Replay:   unskew run --apply --definitions defs/ --idle none --end now \\
                  --log log --archive archive --state state
    """
    stop = threading.Event()
    with stopping_on_signals(stop):
        # Under the handlers: these imports take a second or more, and the order to stop may come meanwhile.
        from unskew.cli.account import Account, Kind, log_as_json
        from unskew.cli.applying import applied_at_start
        from unskew.features.definitions.load import load
        from unskew.pipelines.deployment import Deployment
        from unskew.pipelines.kafka.client_settings import read_kafka_config
        from unskew.pipelines.run import run as run_pipeline

        deployment = Deployment(
            bootstrap=bootstrap_servers,
            config={} if kafka_config is None else read_kafka_config(kafka_config),
            redis_url=redis_url,
            schema_registry=schema_registry,
            log=log,
            archive=archive,
            dead_letters=dead_letters or archive.with_name("dead_letters"),
            state=state,
            registry=settings.record_of(registry, log),
            idle=cast("Literal['wall', 'none']", idle),
            ends=_ends(end),
            start=cast("Literal['earliest', 'latest']", start),
            prefix=prefix,
            pipeline=pipeline,
            n_hashes=shards,
            partitions=settings.partitions_of(partitions),
            cluster=settings.cluster_of(cluster, process),
            process=process,
            metrics=None if metrics is None else settings.address("--metrics", metrics),
            take_over=take_over,
            adopt_topic_ids=adopt_topic_ids,
            replace=replace,
            allow_eviction=allow_eviction,
            expire_after_us=None if expire_after is None else settings.duration_us("--expire-after", expire_after),
            scrub_us=None if scrub == "off" else settings.duration_us("--scrub", scrub),
            epoch_s=settings.duration_us("--epoch", epoch) / 1e6,
            poll_records=poll_records,
            drop=drop,
        )
        as_json = log_format == "json"
        if as_json:
            log_as_json()
        account = Account(deployment, cast("Kind", progress), as_json=as_json)
        with suppress(Stopped), without_panics(), _told(account, stop, as_json=as_json):
            plan = load(*definitions)
            if applies:
                applied_at_start(
                    plan, definitions, settings.record_of(registry, log), state, stop, command="run", drop=drop
                )
            run_pipeline(
                plan,
                deployment,
                stop=stop,
                report=account.report,
                begun=lambda partitions: account.begun(plan, partitions),
                give_up=lambda error: _give_up(error, account, as_json=as_json),
            )


@contextmanager
def _told(account: "Account", stop: threading.Event, *, as_json: bool) -> Iterator[None]:
    """Say at the end why the run ends; an error is told there alone if lines are JSON."""
    try:
        yield
    except Stopped:
        account.ended(_ASKED)
        raise
    except Exception as error:
        account.ended(_FAILED, error)
        if as_json:
            raise click.exceptions.Exit(1) from error
        raise
    account.ended(_ASKED if stop.is_set() else "the topics were read to their end")


_ASKED = "it was asked to stop"
_FAILED = "it failed"


def _give_up(error: UnskewError, account: "Account", *, as_json: bool) -> None:
    """End this process at once with an error, or with success if it was asked to stop."""
    if isinstance(error, Stopped):
        account.ended(_ASKED)
        os._exit(0)
    account.ended(_FAILED, error)
    if not as_json:
        say_lines(f"error: {error}")
    os._exit(1)


@contextmanager
def without_panics() -> Iterator[None]:
    """Hold back the panic and stack that Bytewax's runtime writes to standard error if the error is an ``UnskewError``.

    The runtime writes to the file descriptor, so the descriptor is redirected; Python's own output appears at once.
    """
    python_stderr = sys.stderr
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held, os.fdopen(os.dup(2), "w", buffering=1) as direct:
        os.dup2(held.fileno(), 2)
        sys.stderr = direct
        ours = False
        try:
            yield
        except (UnskewError, OSError, click.exceptions.Exit):
            ours = True
            raise
        finally:
            sys.stderr = python_stderr
            os.dup2(kept, 2)
            os.close(kept)
            if not ours:
                held.seek(0)
                say_lines(held.read().decode(errors="replace").removesuffix("\n"))


def _ends(end: str | None) -> dict[str, dict[int, int]] | Literal["now"] | None:
    if end is None or end == "now":
        return cast("Literal['now'] | None", end)
    import msgspec

    offset = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    try:
        return msgspec.json.decode(local_path(end, "--end").read_bytes(), type=dict[str, dict[int, offset]])
    except (OSError, msgspec.DecodeError) as error:
        raise RequestError(
            f'--end {end!r}: {error}; give \'now\' or a JSON file like {{"topic": {{"0": 1000, "1": 990}}}}'
        ) from error
