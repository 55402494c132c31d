"""``unskew demo``: the whole path on this machine, on real data."""

from pathlib import Path

import click
from rich.console import Console

from unskew.demo.journey import SEED
from unskew.demo.run import run_demo

PLAIN_WIDTH = 120


@click.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-output"),
    show_default=True,
    help="Folder for all that it writes; an earlier demo's is replaced.",
)
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    help="Only the first so many basket lines, and the page views of their time. Default: all 1,469,307.",
)
@click.option("--seed", type=int, default=SEED, show_default=True, help="Of the generated page views and the samples.")
def demo(output: Path, rows: int | None, seed: int) -> None:
    """Stream a year of real purchases through broker, pipeline, Redis and log, and check every result.

    \b
    It starts a broker and Redis of its own, streams The Complete Journey and generated page views through
    `unskew run`, stops it half-way and resumes it, then shows features read from Redis, a training set of
    10,000 labels, and the audit. It needs no Docker, and ends with status 0 only if everything agrees.
    """
    console = Console()
    if not console.is_terminal:
        # A file or a pipe has no width to fold tables to.
        console = Console(width=PLAIN_WIDTH)
    run_demo(console, output, n_lines=rows, seed=seed)
