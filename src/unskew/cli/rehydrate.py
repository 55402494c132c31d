"""``unskew rehydrate``: write all current values to Redis again."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from unskew import settings
from unskew.cli.screen import say
from unskew.features.errors import RequestError, StoreUnavailable

if TYPE_CHECKING:
    from unskew.pipelines.rehydrate import Written

ANSWER_S = 30.0
LOOK_EVERY_S = 0.5
_OF_THE_STOPPED = {
    "--state": "state",
    "--definitions": "definitions",
    "--allow-eviction": "allow_eviction",
    "--expire-after": "expire_after",
}


@click.command()
@settings.some_definitions
@settings.redis_url
@settings.optional_state
@settings.prefix
@settings.pipeline
@settings.allow_eviction
@settings.expire_after
@settings.optional_log
@settings.registry
@settings.umask
@click.option(
    "--running", is_flag=True, help="Ask the running pipeline to do it; needs neither --state nor definitions."
)
def rehydrate(
    definitions: tuple[Path, ...],
    redis_url: str,
    state: Path | None,
    prefix: str,
    pipeline: str,
    allow_eviction: bool,
    expire_after: str | None,
    log: Path | None,
    registry: Path | None,
    running: bool,
) -> None:
    """Write all current values to Redis again, from the state of a pipeline.

    If the pipeline does not run, the values come from the state folder, in which nothing is changed. They are those of
    the last commit; keys that the state does not hold are removed. If it runs, it does the same itself, while it goes
    on, but removes nothing. Values never go back: if Redis holds later ones, the command says so, and `unskew run`
    writes what Redis lacks.

    A pipeline notices by itself that Redis lost values, and writes them again. This command is for a new Redis that is
    to be filled before the pipeline starts, and for a Redis whose content is not trusted. With --log or --registry, the
    version that serves there is the one that was applied last.

    \b
    Stopped:  unskew rehydrate --definitions defs/ --state state \\
                  --redis-url redis://new:6379/0
    Running:  unskew rehydrate --running
    """
    if running:
        for option, name in _OF_THE_STOPPED.items():
            if click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE:
                raise RequestError(f"--running and {option} exclude each other: the running pipeline has its own")
        _ask(redis_url, prefix, pipeline)
        return
    if state is None or not definitions:
        raise RequestError("give --definitions and --state of the stopped pipeline, or --running")

    from unskew.features.definitions.load import load
    from unskew.pipelines.deployment import Deployment
    from unskew.pipelines.rehydrate import rehydrate as rehydrate_from

    deployment = Deployment(
        bootstrap="",
        redis_url=redis_url,
        log=state,
        archive=state,
        dead_letters=state,
        state=state,
        registry=None if registry is None and log is None else settings.record_of(registry, log),
        idle="none",
        prefix=prefix,
        pipeline=pipeline,
        allow_eviction=allow_eviction,
        expire_after_us=None if expire_after is None else settings.duration_us("--expire-after", expire_after),
    )
    last_s = time.monotonic()

    def report(written: "Written") -> None:
        nonlocal last_s
        if time.monotonic() - last_s >= 1.0:
            last_s = time.monotonic()
            say(f"{written.rows:,} values, {written.shards:,} of {written.n_shards:,} shards", err=True)

    written = rehydrate_from(load(*definitions), deployment, report)
    say(
        f"{written.rows:,} values of {written.n_shards:,} shards written; {written.removed:,} keys removed that the state "
        "does not hold"
    )


def _ask(redis_url: str, prefix: str, pipeline: str) -> None:
    from unskew.sinks.redis.keyspace import clock_key, sent_key
    from unskew.sinks.redis.refill import ask_for_refill
    from unskew.sinks.redis.server import Server

    server = Server(redis_url)
    shown, since_s = (-1, -1), time.monotonic()
    try:
        with server.reaching() as client:
            for done in ask_for_refill(client, clock_key(prefix, pipeline), sent_key(prefix, pipeline)):
                if not done[1]:
                    raise RequestError(
                        f"Redis has no clock of a pipeline {pipeline!r} under the prefix {prefix!r}; start unskew run, or give the "
                        "--pipeline and --prefix with which it runs"
                    )
                if done != shown:
                    shown, since_s = done, time.monotonic()
                    say(f"{done[0]:,} of {done[1]:,} shards written again", err=done[0] < done[1])
                elif time.monotonic() - since_s > ANSWER_S:
                    raise StoreUnavailable(
                        f"no running pipeline wrote its values again within {ANSWER_S:.0f} s ({done[0]} of {done[1]} shards are "
                        "done); if it is stopped, give --definitions and --state"
                    )
                if done[0] < done[1]:
                    time.sleep(LOOK_EVERY_S)
    finally:
        server.close()
