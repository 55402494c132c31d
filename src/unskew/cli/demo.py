"""``unskew demo``: the whole path on this machine, on real data."""

from pathlib import Path

import click
from rich.console import Console

from unskew import settings
from unskew.cli.screen import say
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
@click.option("--keep", is_flag=True, help="Leave everything up at the end, with pages for a browser, until Ctrl-C.")
@click.option(
    "--listen",
    metavar="HOST:PORT|PORT",
    default="127.0.0.1:6566",
    show_default=True,
    help="Address of the pages and of requests over HTTP with --keep; a PORT alone means that port of 127.0.0.1.",
)
@settings.umask
@click.pass_context
def demo(context: click.Context, output: Path, rows: int | None, seed: int, keep: bool, listen: str) -> None:
    """Stream a year of real purchases through broker, pipeline, Redis and log, and check every result.

    The demo starts its own broker and Redis, streams The Complete Journey and generated page views through
    `unskew run`, stops it half-way and resumes it, then shows features read from Redis, a training set of
    10,000 labels, and the audit. It needs no Docker, and exits with 0 only if everything agrees.

    With --keep, broker and Redis stay up at the end, `unskew serve` answers, and what to try is printed.
    """
    from unskew.cli.serve import in_url, listening, serve
    from unskew.cli.ui import say_what_to_try
    from unskew.demo.run import Standing, run_demo

    console = Console()
    if not console.is_terminal:
        # A file or a pipe has no width to which tables could be folded.
        console = Console(width=PLAIN_WIDTH)
    host, port = settings.address("--listen", listen)

    def stay_up(standing: Standing) -> None:
        if not keep:
            return
        address = f"http://{in_url(host, port)}"
        say(f"Everything stays up; Kafka is at {standing.bootstrap}. Open {address}, or try:")
        say_what_to_try(address, standing.redis_url, standing.folders, standing.household)
        context.invoke(serve, redis_url=standing.redis_url, listen=listen, log=standing.folders.log)

    if keep:
        # Before the work, and not after it.
        listening(host, port).close()
    run_demo(console, output, n_lines=rows, seed=seed, then=stay_up)
