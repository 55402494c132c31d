"""``unskew monitor``: watch the values of features, their freshness, and what was served, from the published log."""

import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unskew import settings
from unskew.cli import naming
from unskew.cli.screen import Screen, say, say_json, styled
from unskew.features.printing import printable_json
from unskew.sinks.wall import wall_us

if TYPE_CHECKING:
    from unskew.features.folding import Rows
    from unskew.monitoring.watch import FeatureLook, Look, Over, ViewLook, Watch

OVER = 3
"""The exit code where something is over its limit; 1 is an error, 2 a wrong option."""
_STYLES = {"drift": "bold red", "missing": "bold red", "too few": "yellow", "fine": "green", "no baseline": "dim"}


@click.command(short_help="Watch values, freshness and what was served, from the log.")
@click.argument("views", metavar="[VIEW]...", nargs=-1, shell_complete=naming.views)
@settings.log
@click.option(
    "--baseline",
    "baselines",
    multiple=True,
    type=settings.LocalPath(),
    metavar="FILE|FOLDER",
    help="What values are compared with: a file of unskew baseline, or the manifest of a training set; or a folder of "
    "such files (*.json), into which later ones may be put. May be given several times.",
)
@settings.served
@click.option("--once", is_flag=True, help="Look once, and exit with 3 if something is over its limit.")
@click.option("--json", "as_json", is_flag=True, help="Print each look as one JSON object instead of tables.")
@click.option(
    "--report",
    type=settings.LocalPath(dir_okay=False),
    metavar="FILE",
    help="File that is replaced at each look by what --json prints, for `unskew catalog` and `unskew serve` --figures.",
)
@click.option("--every", default="60s", show_default=True, metavar="DURATION", help="Time between two looks.")
@settings.metrics
@click.option(
    "--psi",
    default=0.2,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="PSI above which values have drifted. Three times the noise of the samples is the limit if it is higher.",
)
@click.option(
    "--missing",
    default=0.1,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="How much larger the share of nulls may be than in the baseline.",
)
@click.option(
    "--event-age",
    metavar="DURATION",
    help="How long ago the last event of a view may have come. Without it, this is shown and not judged.",
)
@click.option(
    "--published-age",
    metavar="DURATION",
    help="How far the published log may be behind the present. Without it, this is shown and not judged.",
)
def monitor(
    views: tuple[str, ...],
    log: Path,
    baselines: tuple[Path, ...],
    served: Path | None,
    once: bool,
    as_json: bool,
    report: Path | None,
    every: str,
    metrics: str | None,
    psi: float,
    missing: float,
    event_age: str | None,
    published_age: str | None,
) -> None:
    """Watch what a log holds: how values are distributed now and in a baseline, how many are missing, how fresh it is.

    The values are those of the population: the last row of every entity, at the last instant that all shards have
    published. With --served, they are also those that readers were given, and each of these rows is compared with the
    log, bit by bit. Without VIEW, all views of the log are watched, each in its highest version; VIEW@VERSION is one of
    several.

    Without --once it goes on until it is stopped, beside the pipeline, and exposes metrics with --metrics. It reads
    files alone and keeps none, so it may be started anew at any time.

    \b
    Columns of the table:
        of         population, or requests: what readers were given
        against    the baseline
        n          values, nulls included
        missing    share of nulls, and in the baseline
        PSI        how far the values are from the baseline
        limit      PSI that is a drift
        KL, JS     other distances, on wide terminals

    \b
    Example:
        unskew monitor --once --log data/log --baseline churn.manifest.json \\
            --published-age 10min
    """
    from unskew.features.errors import RequestError
    from unskew.features.local import existing_folder
    from unskew.monitoring.baseline import Baselines
    from unskew.monitoring.watch import Limits, Watch

    every_us = settings.duration_us("--every", every)
    if every_us < 1_000_000:
        raise RequestError(f"--every {every}: give a second or more")
    limits = Limits(
        psi=psi,
        missing=missing,
        event_age_us=None if event_age is None else settings.duration_us("--event-age", event_age),
        published_age_us=None if published_age is None else settings.duration_us("--published-age", published_age),
    )
    address = None if metrics is None else settings.address("--metrics", metrics)
    if served is not None:
        existing_folder(served, "--served")
    watch = Watch(
        existing_folder(log, "--log"),
        names=views,
        baselines=Baselines(baselines),
        served_root=served,
        limits=limits,
    )
    if once:
        look = watch.look(wall_us())
        _write(look, report)
        _show(look, as_json=as_json, indent=2)
        for error in look.refused:
            say(f"error: {error}", err=True)
        if look.refused:
            raise SystemExit(1)
        if look.over:
            raise SystemExit(OVER)
        return
    _follow(watch, every_us / 1e6, address, report, as_json=as_json)


def _follow(
    watch: "Watch", every_s: float, address: tuple[str, int] | None, report: Path | None, *, as_json: bool
) -> None:
    """Look until a signal comes. What is wrong at the first look ends the command; later it is tried again."""
    from unskew.features.errors import RequestError, UnskewError
    from unskew.monitoring.exposed import Exposed
    from unskew.pipelines.watch.endpoint import answering
    from unskew.stopping import stopping_on_signals

    stop = threading.Event()
    exposed = Exposed()
    before: list[Over] = []
    first = True
    with contextlib.ExitStack() as closing:
        closing.enter_context(stopping_on_signals(stop))
        if address is not None:
            closing.enter_context(answering(address, exposed.registry(), exposed))
        while not stop.is_set():
            began_s = time.monotonic()
            try:
                look = watch.look(wall_us())
                if first and look.refused:
                    raise RequestError(list(dict.fromkeys(map(str, look.refused))))
                _write(look, report)
            except UnskewError as error:
                if first:
                    raise
                exposed.failed(error)
                logging.getLogger("unskew.monitor").warning("%s", error)
            else:
                exposed.show(look)
                for refused in look.refused:
                    logging.getLogger("unskew.monitor").warning("%s", refused)
                if first or as_json:
                    _show(look, as_json=as_json)
                else:
                    _show_changes(before, look.over)
                before, first = look.over, False
            stop.wait(max(0.0, every_s - (time.monotonic() - began_s)))


def _write(look: "Look", report: Path | None) -> None:
    """Replace the report, whole; raises ``StoreUnavailable`` if the disk fails."""
    if report is None:
        return
    from unskew.sinks import durable

    with durable.disk(report.parent):
        durable.replace(report, printable_json(_plain(look)).encode())


def _show(look: "Look", *, as_json: bool, indent: int | None = None) -> None:
    if as_json:
        say_json(_plain(look), indent=indent)
        return
    console = Screen()
    for view in look.views:
        console.print(_table(view))
        for example in view.examples:
            console.print(styled(f"served otherwise: {example}", "red"))
        console.print()
    for one in look.over:
        console.print(styled(f"over its limit: {one}", "bold red"))
    if not look.over and not look.refused:
        console.print(styled("nothing is over its limit", "bold green"))


def _show_changes(before: "Sequence[Over]", now: "Sequence[Over]") -> None:
    """Print what has come over its limit, and what has come back."""
    known, present = ({one.where for one in ones} for ones in (before, now))
    for one in now:
        if one.where not in known:
            say(f"over its limit: {one}")
    for one in before:
        if one.where not in present:
            say(f"within its limit again: {one.where}")


def _heading(view: "ViewLook") -> list[Any]:
    from unskew.features.time import format_instant, rough_duration

    at = "nothing is published yet" if view.complete_to_us is None else f"at {format_instant(view.complete_to_us)}"
    said = [f"{view.entities:,} entities {at}"]
    if view.event_age_us is not None:
        said.append(f"last event {rough_duration(view.event_age_us)} ago")
    if view.published_age_us is not None:
        said.append(f"published {rough_duration(view.published_age_us)} ago")
    found: list[Any] = [styled(view.view, "bold"), "; ".join(said)]
    if view.compared or view.unknown:
        found.append(
            f"served rows compared with the log: {view.compared:,}, of which {view.mismatches:,} differ"
            + (f"; of another definition: {view.unknown:,}" if view.unknown else "")
        )
    return found


def _table(view: "ViewLook") -> "Rows":
    from unskew.features.folding import Rows, number

    numbers = ("values", "missing (before)", "PSI", "limit of PSI", "KL", "JS")
    table = Rows("feature", "values of", "baseline", "state", *map(number, numbers), keys=3, heading=_heading(view))
    for one in view.features:
        table.add(one.feature, one.of, one.baseline or "none", _state(one), *_numbers(one))
    return table


def _numbers(one: "FeatureLook") -> list[str]:
    missing = "-" if one.missing is None else f"{one.missing:.1%}"
    if one.missing_before is not None:
        missing += f" ({one.missing_before:.1%})"
    found = [f"{one.n:,}", missing]
    if one.distance is None:
        return [*found, "-", "-", "-", "-"]
    limit = "-" if one.state == "too few" or one.limit is None else f"{one.limit:.2f}"
    far = one.distance
    return [*found, f"{far.psi:.3f}", limit, f"{far.kl:.3f}", f"{far.js:.3f}"]


def _state(one: "FeatureLook") -> Any:
    return styled(one.state, _STYLES[one.state])


def _plain(look: "Look") -> dict[str, Any]:
    from dataclasses import asdict
    from math import isfinite

    from unskew.features.showing import plain

    def of_feature(one: "FeatureLook") -> dict[str, Any]:
        found = {name: value for name, value in asdict(one).items() if name != "distance"}
        found |= {} if one.distance is None else asdict(one.distance)
        # Without values the noise has no limit, and JSON has no infinity.
        return {
            name: None if isinstance(value, float) and not isfinite(value) else value for name, value in found.items()
        }

    def of_view(view: "ViewLook") -> dict[str, Any]:
        found = {
            name: value for name, value in vars(view).items() if name not in {"features", "examples", "late", "over"}
        }
        examples = [
            {
                "entity": example.entity,
                "instant_us": example.instant_us,
                "feature": example.feature,
                "served": plain(example.found),
                "logged": plain(example.expected),
            }
            for example in view.examples
        ]
        return {
            **found,
            "features": [of_feature(one) for one in view.features],
            "examples": examples,
            "late": [asdict(one) for one in view.late],
            "over": [str(one) for one in view.over],
        }

    return {
        "at_us": look.at_us,
        "over": [str(one) for one in look.over],
        "views": [of_view(view) for view in look.views],
        "refused": [str(error) for error in look.refused],
    }
