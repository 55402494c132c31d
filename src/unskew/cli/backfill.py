"""``unskew backfill``: give a new view its past from the event archive."""

import threading
from pathlib import Path

import click

from unskew import settings
from unskew.cli import naming
from unskew.cli.known import telling_services
from unskew.cli.screen import bar, say
from unskew.features.printing import printable


@click.command()
@click.argument("views", metavar="VIEW...", nargs=-1, required=True, shell_complete=naming.views)
@settings.definitions
@settings.log
@settings.archive
@settings.state
@settings.umask
@click.option(
    "--from", "begin", metavar="INSTANT", help="Leave out events that arrived earlier (2026-01-31T00:00:00Z)."
)
@click.option(
    "--until", metavar="INSTANT", help="Stop at this arrival. A later call, or unskew run, goes on from there."
)
@click.option(
    "--workers", type=click.IntRange(1), default=1, show_default=True, help="Number of processes on this machine."
)
@settings.cluster
@settings.process
@click.option("--again", is_flag=True, help="Forget what an earlier backfill of these views has done, and begin anew.")
def backfill(
    views: tuple[str, ...],
    definitions: tuple[Path, ...],
    log: Path,
    archive: Path,
    state: Path,
    begin: str | None,
    until: str | None,
    workers: int,
    cluster: str | None,
    process: int,
    again: bool,
) -> None:
    """Compute the past of new views from the event archive, into the log and the state of a pipeline.

    The pipeline may run or stand; what it computes stays untouched. Once the backfill has ended, restart `unskew run`
    with the definitions of the new views: it finishes the last stretch and goes on at the next record of every
    partition. `unskew run` would do all of this by itself; this command does it before, while the pipeline goes on.

    A backfill that was stopped or killed continues with the same command. At the end, a seam check holds the events
    that were taken against the archive, and computes some entities again in one go.

    With --cluster, several machines divide the shards of each view, as the processes of `unskew run --cluster` do: all
    see the same log, archive and state, and each has its own --process. These processes send each other nothing, so
    each can be started, stopped and restarted alone, and they need not be as many as those of `unskew run`.

    \b
    unskew backfill user_purchases@2 --definitions defs/ --log log \\
        --archive archive --state state --workers 4

    \b
    On host-a:  unskew backfill user_purchases@2 ... \\
                    --cluster host-a:9101,host-b:9101 --process 0
    On host-b:  unskew backfill user_purchases@2 ... \\
                    --cluster host-a:9101,host-b:9101 --process 1
    """
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from unskew.features.definitions.load import load
    from unskew.pipelines.deployment import owner_of
    from unskew.pipelines.history.ahead import Ahead, backfill_ahead
    from unskew.stopping import stopping_on_signals

    addresses = settings.cluster_of(cluster, process)
    plan = load(*definitions)
    with telling_services(views, plan, None):
        wanted = [plan.views.find(name) for name in views]
    stop = threading.Event()
    with (
        stopping_on_signals(stop),
        bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[events]}", markup=False),
            TimeRemainingColumn(),
        ) as shown,
    ):
        task = shown.add_task("", events="")

        def report(view: str, n_events: int, most: int) -> None:
            shown.update(
                task, description=printable(view), completed=n_events, total=most, events=f"{n_events:,} events"
            )

        seams = backfill_ahead(
            Ahead(
                views=list({view.id: view for view in wanted}.values()),
                log=log,
                archive=archive,
                state=state,
                owner=owner_of(f"the backfill of {', '.join(views)}", state),
                from_us=settings.instant_us("--from", begin),
                until_us=settings.instant_us("--until", until),
                again=again,
                workers=workers,
                cluster=addresses,
                process=process,
            ),
            stop,
            report,
        )
    for seam in seams:
        say(str(seam))
    for view in sorted({view.id for view in wanted} - {seam.view for seam in seams}):
        say(f"{view}: no shard of it falls to process {process}: it has fewer of them than there are processes")
    if any(seam.unfinished for seam in seams):
        say(
            "Wait for the other processes, or start those that have ended again, before you restart unskew run.",
            err=True,
        )
    elif seams:
        say("Restart unskew run with these definitions: it finishes the last stretch and goes on from there.", err=True)
