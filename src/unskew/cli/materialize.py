"""``unskew materialize``: compute views over tables up to an instant."""

import threading
from pathlib import Path

import click

from unskew import settings
from unskew.cli import naming
from unskew.cli.known import telling_services
from unskew.cli.screen import phases, say
from unskew.features.errors import RequestError


@click.command()
@click.argument("views", metavar="[VIEW...]", nargs=-1, shell_complete=naming.views)
@click.option(
    "--until",
    metavar="INSTANT",
    required=True,
    help="What had arrived before this instant counts (2026-01-31T00:00:00Z).",
)
@settings.definitions
@settings.log
@settings.archive
@settings.state
@settings.redis_url
@settings.prefix
@settings.pipeline
@settings.allow_eviction
@settings.expire_after
@settings.registry
@settings.applies
@settings.umask
@click.option("--skip-refused", is_flag=True, help="Leave out rows that are not events of the table, and count them.")
@click.option(
    "--again",
    is_flag=True,
    help="Forget what was computed of these views, in the log too, and begin with the whole table.",
)
def materialize(
    views: tuple[str, ...],
    until: str,
    definitions: tuple[Path, ...],
    log: Path,
    archive: Path,
    state: Path,
    redis_url: str,
    prefix: str,
    pipeline: str,
    allow_eviction: bool,
    expire_after: str | None,
    registry: Path | None,
    applies: bool,
    skip_refused: bool,
    again: bool,
) -> None:
    """Compute views over tables up to an instant, into the log and Redis; without VIEW, all of the definitions.

    What was applied is computed (`unskew apply`); with --apply the definitions are applied first.

    Only what is new in the tables is computed. The same command again changes nothing, and one that was stopped or
    killed goes on where it was, so it can be run on a schedule and repeated. `unskew run` may run beside it, on the
    same folders. Rows that arrived earlier must be those that were there before: a table whose past has changed is
    refused.

    \b
    unskew materialize --until "$(date -u +%Y-%m-%dT%H:00:01Z)" \\
        --definitions defs/ --log log --archive archive --state state
    """
    from unskew.cli.applying import applied_at_start
    from unskew.features.definitions.load import load
    from unskew.pipelines import materialize as pipeline_of
    from unskew.pipelines.deployment import owner_of
    from unskew.stopping import stopping_on_signals

    until_us = settings.instant_us("--until", until)
    assert until_us is not None
    expire_after_us = None if expire_after is None else settings.duration_us("--expire-after", expire_after)
    plan = load(*definitions)
    with telling_services(views, plan, None):
        chosen = [plan.views.find(name) for name in views] or list(plan.of_tables.views.values())
    if not chosen:
        raise RequestError("there is no view over a table; define a Table and a FeatureView over it")
    owner = owner_of(f"materialize {', '.join(view.id for view in chosen)}", state)
    stop = threading.Event()
    record = settings.record_of(registry, log)
    with stopping_on_signals(stop), phases("materialize") as report:
        if applies:
            applied_at_start(plan, definitions, record, state, stop, command="materialize")
        done = pipeline_of.materialize(
            pipeline_of.Materialize(
                plan=plan,
                views=list({view.id: view for view in chosen}.values()),
                until_us=until_us,
                log=log,
                archive=archive,
                state=state,
                owner=owner,
                place=owner.text,
                redis_url=redis_url,
                prefix=prefix,
                pipeline=pipeline,
                allow_eviction=allow_eviction,
                expire_after_us=expire_after_us,
                skip_refused=skip_refused,
                again=again,
                registry=record,
            ),
            stop,
            report,
        )
    for one in done:
        for line in one.lines():
            say(line)
