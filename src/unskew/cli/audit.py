"""``unskew audit``: check on real data that training and serving saw the same values."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unskew import settings
from unskew.cli.screen import Screen, bar, say, say_json, styled
from unskew.features.printing import printable

if TYPE_CHECKING:
    from unskew.monitoring.outcome import AuditReport, Difference


@click.command()
@settings.some_definitions
@settings.log
@settings.archive
@settings.registry
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
@click.option("--since", metavar="INSTANT", help="Compare only instants from this one on (2026-01-31T00:00:00Z).")
@settings.served
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def audit(
    definitions: tuple[Path, ...],
    log: Path,
    archive: Path,
    registry: Path | None,
    redis_url: str,
    prefix: str,
    pipeline: str,
    online: bool,
    samples: int,
    seed: int,
    since: str | None,
    served: Path | None,
    as_json: bool,
) -> None:
    """Compare the log, Redis and an independent recount of the raw events, bit for bit.

    The command draws random entities and instants, mostly instants at which an event arrived or left a window. It joins
    them from the log and recounts them from the archive in plain Python. It also reads every archived entity from Redis
    and recounts it as of the instant that the reader reports. It prints what was compared and what could not be, and
    every kind of difference with its count and the first examples. It exits with 1 if there is a difference.

    With --served, it also compares what readers were given (FeatureStore(sample=...)) with the log, and the log and a
    rebuild of the view with the recount, at the same entities and instants.

    Without --definitions, the log says how its views are computed, and the views are those that were applied last.

    \b
    Columns of the table, each a number:
        events          archived events that the view aggregates (or sessions)
        log samples     (entity, instant) pairs, from the log and recounted:
        at arrivals       at the instant at which an event of the entity arrived
        at hops           at the instant at which an event entered or left
        1 µs off          one microsecond before or after such an instant
        whole rows        instant, cause and event of the row were compared too
        with events       some window held an event
        Redis entities  entities that were read from Redis and recounted
        with a row        of these, entities that had a row in Redis
        served          rows that readers were given, compared with the log
        left out        not compared; a line below says how many of each kind:
        provisional       Redis may not yet have held all events then
        ahead             log and archive were not there yet
        unknown           the archive lacks events of the windows, or the
                          row was served with another definition

    \b
    Example:
        unskew audit --log data/log --archive data/archive --samples 10000
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

    from unskew.cli.known import plan_of
    from unskew.features.local import existing_folder
    from unskew.monitoring.audit import audit as compare
    from unskew.monitoring.report import (
        audit_table,
        difference_lines,
        engines_line,
        on_demand_lines,
        unaudited_lines,
        verdict,
    )

    console = Screen()
    plan = plan_of(definitions, log, registry)
    existing_folder(log, "--log")
    existing_folder(archive, "--archive")
    if served is not None:
        existing_folder(served, "--served")
    with bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
    ) as shown:
        task = shown.add_task("reading")
        report = compare(
            plan,
            log,
            archive,
            redis_source=redis_url if online else None,
            prefix=prefix,
            pipeline=pipeline,
            samples=samples,
            seed=seed,
            since_us=settings.instant_us("--since", since),
            served_root=served,
            progress=lambda step, done, total: shown.update(
                task, description=printable(step), completed=done, total=total
            ),
        )
    if as_json:
        say_json({**_plain(report), "on_demand": [one.id for one in plan.on_demand.values()]}, indent=2)
    else:
        console.print(audit_table(report))
        for line in (engines_line(report), *unaudited_lines(report), *on_demand_lines(plan.on_demand.values())):
            console.print(line)
        console.print(verdict(report))
        for line in difference_lines(report):
            console.print(styled(line, "red"))
    for refusal in report.refusals:
        say(f"error: {refusal}", err=True)
    if report.differences:
        raise SystemExit(1)
    if not as_json:
        console.print(styled("identical", "bold green"))


def _plain(report: "AuditReport") -> dict[str, Any]:
    differences = [
        {
            "where": one.where,
            "view": one.view,
            "feature": one.feature,
            "count": one.count,
            "examples": [_plain_example(example) for example in one.examples],
        }
        for one in report.differences
    ]
    return {
        "identical": not differences,
        "values": report.values,
        "per_million": report.per_million,
        "views": [asdict(view) for view in report.views],
        "differences": differences,
        "refusals": report.refusals,
    }


def _plain_example(example: "Difference") -> dict[str, Any]:
    from unskew.features.showing import plain

    found, expected = plain(example.found), plain(example.expected)
    return {"entity": example.entity, "instant_us": example.instant_us, "found": found, "expected": expected}
