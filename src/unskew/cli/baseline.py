"""``unskew baseline``: keep the population of a view, to compare later ones with."""

from pathlib import Path

import click

from unskew import settings
from unskew.cli import naming
from unskew.cli.known import telling_services
from unskew.cli.screen import say


@click.command(short_help="Keep the population of VIEW.")
@click.argument("view", shell_complete=naming.views)
@settings.log
@click.option(
    "--at",
    metavar="INSTANT",
    help="Instant of the population (2026-01-31T00:00:00Z). Default: the last one that the log answers.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=settings.LocalPath(),
    metavar="FILE",
    help="File to write, for example clicks.json. Its name without the ending is the name of the baseline.",
)
@click.option("--overwrite", is_flag=True, help="Replace FILE if it is there.")
def baseline(view: str, log: Path, at: str | None, output: Path, overwrite: bool) -> None:
    """Keep how the values of all entities of VIEW are distributed at one instant, for `unskew monitor --baseline`.

    VIEW@VERSION is one of several versions. The file holds counts in bins, at most 20 frequent texts of each feature,
    and no other values. The manifest of a training set is a baseline too, so this is for views that no model was
    trained on yet, or to compare a population with itself.

    \b
    Example:
        unskew baseline household_purchases --log data/log \\
            --at 2017-06-30T00:00:00Z -o purchases.json
    """
    from unskew.features.errors import RequestError
    from unskew.features.local import existing_folder
    from unskew.monitoring.baseline import population_baseline
    from unskew.offline.log_reader import ViewLog
    from unskew.offline.logged import with_logged
    from unskew.sinks import durable

    at_us = settings.instant_us("--at", at)
    if output.exists() and not overwrite:
        raise RequestError(f"{output} is there already; choose another name, or give --overwrite")
    if not output.absolute().parent.is_dir():
        raise RequestError(f"{output}: there is no folder {output.absolute().parent}; make it first")
    root = existing_folder(log, "--log")
    with telling_services([view], None, root):
        opened = ViewLog(root, with_logged(root, [view]).find(view))
    if at_us is None and (at_us := opened.complete_to_us) is None:
        raise RequestError(f"{opened.title} is not complete to any instant yet; run the pipeline")
    found = population_baseline(opened, at_us)
    with durable.disk(output.absolute().parent):
        durable.replace(output, found.to_json())
    say(f"{found.view}: {len(found.features)} features of {found.entities:,} entities in {output}")
    if found.warming:
        say(f"warming at that instant, so their values change while their windows fill: {', '.join(found.warming)}")
