"""``unskew demo``: the whole path on this machine, on real data."""

from pathlib import Path

import click
from rich.console import Console

from unskew import settings
from unskew.demo.journey import SEED

PLAIN_WIDTH = 120


@click.command()
@click.option(
    "--output",
    type=settings.LocalPath(file_okay=False),
    default=Path("demo-output"),
    show_default=True,
    help="Folder for all output; that of an earlier demo is replaced.",
)
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    help="Number of basket lines, from the first on, and the page views of their time. Default: all 1,469,307.",
)
@click.option(
    "--seed", type=int, default=SEED, show_default=True, help="Seed of the generated page views and the samples."
)
@settings.umask
def demo(output: Path, rows: int | None, seed: int) -> None:
    """Stream a year of real purchases through broker, pipeline, Redis and log, and check every result.

    The demo starts its own broker and Redis, streams The Complete Journey and generated page views through
    `unskew run`, stops it half-way and resumes it, then shows features read from Redis, a training set of
    10,000 labels, and the audit. It needs no Docker, and exits with 0 only if everything agrees.
    """
    from unskew.demo.run import run_demo

    console = Console()
    if not console.is_terminal:
        # A file or a pipe has no width to which tables could be folded.
        console = Console(width=PLAIN_WIDTH)
    run_demo(console, output, n_lines=rows, seed=seed)
