"""``unskew audit``: check on real data that training and serving saw the same values."""

from pathlib import Path

import click

from unskew import settings
from unskew.cli.screen import Screen, styled
from unskew.features.printing import printable


@click.command()
@settings.definitions
@settings.log
@settings.archive
@settings.redis_url
@settings.prefix
@settings.pipeline
@click.option("--online/--offline", default=True, show_default=True, help="Compare Redis too, or not.")
@click.option(
    "--samples",
    default=2_000,
    show_default=True,
    type=click.IntRange(1),
    help="Number of random samples (entity, instant, view).",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the samples; the same seed draws the same ones.")
def audit(
    definitions: tuple[Path, ...],
    log: Path,
    archive: Path,
    redis_url: str,
    prefix: str,
    pipeline: str,
    online: bool,
    samples: int,
    seed: int,
) -> None:
    """Compare the log, Redis and an independent recount of the raw events, bit for bit.

    The command draws random entities and instants, mostly instants at which an event arrived or left a window. It joins
    them from the log and recounts them from the archive in plain Python. It also reads every archived entity from Redis
    and recounts it as of the instant that the reader reports. It prints what was compared. On a difference it prints
    the first one, with both values, and exits with 1.

    \b
    Example:
        unskew audit --definitions examples/complete_journey --log data/log --archive data/archive --samples 10000
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from unskew.features.definitions.load import load
    from unskew.monitoring.audit import audit as compare
    from unskew.monitoring.report import audit_table, engines_line

    console = Screen()
    errors = Screen(stderr=True)
    plan = load(*definitions)
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        console=errors,
        transient=True,
        disable=not errors.is_terminal,
    ) as bar:
        task = bar.add_task("reading")
        report = compare(
            plan,
            log,
            archive,
            redis_source=redis_url if online else None,
            prefix=prefix,
            pipeline=pipeline,
            samples=samples,
            seed=seed,
            progress=lambda step, done, total: bar.update(
                task, description=printable(step), completed=done, total=total
            ),
        )
    console.print(audit_table(report))
    console.print(engines_line(report))
    if report.difference is not None:
        console.print(
            styled("difference ", "bold red").append(printable(str(report.difference)), "not bold default"),
            soft_wrap=True,
        )
        raise SystemExit(1)
    console.print(styled("identical", "bold green"))
