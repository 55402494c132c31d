"""``unskew plan`` and ``unskew apply``: what definitions would change, and the revision that changes it."""

import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unskew import settings
from unskew.cli.screen import Screen, phases, say, say_json
from unskew.features.errors import LayoutError, RequestError, StoreUnavailable
from unskew.features.nearest import nearest

if TYPE_CHECKING:
    from unskew.cli.applying import Copy
    from unskew.features.plan import Plan
    from unskew.features.planning import Planned
    from unskew.features.revision import Content, Revision
    from unskew.pipelines.history.diff import ViewDiff
    from unskew.sinks.record import Record

CHANGES = 2


def not_empty(_context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse an empty text among the values of an option."""
    if "" in given:
        raise click.BadParameter("it is empty; give a name, or leave the option out")
    return given


yes = click.option("--yes", is_flag=True, help="Do not ask.")
message = click.option("--message", "-m", default="", metavar="TEXT", help="Why; it is kept in the record.")
_breaks = click.option(
    "--break",
    "accepted",
    multiple=True,
    metavar="NAME",
    callback=not_empty,
    help="Accept that this service breaks, or that a bare view name means another version because the one that serves is "
    "removed; may be given several times.",
)


@click.command()
@settings.definition_paths
@settings.of_record
@_breaks
@settings.optional_archive
@click.option(
    "--models", type=settings.LocalPath(), metavar="FOLDER", help="Folder of training sets, whose manifests are models."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(
    paths: tuple[Path, ...],
    log: Path | None,
    registry: Path | None,
    redis_url: str,
    prefix: str,
    pipeline: str,
    accepted: tuple[str, ...],
    archive: Path | None,
    models: Path | None,
    as_json: bool,
) -> None:
    """Show what applying definitions would change: object by object, field by field, and who is touched.

    PATH is a Python or YAML file, or a folder of them: all definitions of the deployment. They are compared with the
    last revision in the record of the registry. Reads of services come from Redis, if it can be reached. With
    --archive, views that change are computed as they were and as they would be, for a minute at most: which values
    differ, as `unskew diff` shows them. With --models, models are named that were trained on what changes.

    \b
    Exit status:  0 nothing would change
                  1 it is refused, or could not be planned
                  2 something would change

    \b
    Example:
        unskew plan definitions/ --log data/log --archive data/archive
    """
    from unskew.cli.applying import as_data, show_plan
    from unskew.cli.diff import plain_diff, show_diff
    from unskew.cli.known import models_of

    trained = () if models is None else models_of(models)
    with ExitStack() as closing:
        definitions, last, found, copy, _ = _planned(
            closing, paths, log, registry, redis_url, prefix, pipeline, accepted
        )
        services = () if last is None else last.content.services
        differ = [] if archive is None or last is None else _impact(definitions, last.content, found, archive)
        if as_json:
            data = as_data(found, last, services, copy, trained)
            say_json({**data, "values": [plain_diff(one) for one in differ]}, indent=2)
        else:
            show_plan(found, services, copy, trained)
            for one in differ:
                show_diff(one, Screen())
    refuse(found.refused)
    if found.changes:
        raise click.exceptions.Exit(CHANGES)
    if not as_json:
        _say_unchanged(last)


@click.command()
@settings.definition_paths
@settings.of_record
@settings.umask
@_breaks
@yes
@message
def apply(
    paths: tuple[Path, ...],
    log: Path | None,
    registry: Path | None,
    redis_url: str,
    prefix: str,
    pipeline: str,
    accepted: tuple[str, ...],
    yes: bool,
    message: str,
) -> None:
    """Apply definitions: show the plan, ask, and write the next revision to the record of the registry.

    PATH is a Python or YAML file, or a folder of them: all definitions of the deployment. If somebody else has applied
    meanwhile, nothing is written. Then the copy in Redis is brought up to date; `unskew run` must be restarted to
    compute new versions.

    \b
    Examples:
        unskew apply definitions/ --log data/log
        unskew apply definitions/ --log data/log --yes -m "spend in 7 days"
    """
    from unskew.cli.applying import bring_up_to, git_commit, next_revision, show_plan, write

    with ExitStack() as closing:
        _, last, found, copy, record = _planned(closing, paths, log, registry, redis_url, prefix, pipeline, accepted)
        show_plan(found, () if last is None else last.content.services, copy)
        refuse(found.refused)
        if not found.changes:
            _say_unchanged(last)
            if last is not None:
                bring_up_to(copy, last)
            return
        agree("apply this?", yes=yes)
        command = " ".join(("apply", *(f"--break {name}" for name in accepted)))
        revision = next_revision(
            last, found.content, found.lines, command=command, message=message, git=git_commit(paths)
        )
        write(record, revision, copy)


def _say_unchanged(last: "Revision | None") -> None:
    number = 0 if last is None else last.number
    say(f"nothing to change: views, services and on-demand features are those of revision {number}")


def agree(question: str, *, yes: bool) -> None:
    """Ask on a terminal whether to go on; elsewhere only --yes goes on. Raises ``RequestError`` if not."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise RequestError("there is no terminal to ask on; give --yes")
    if not click.confirm(question):
        raise RequestError("nothing was applied")


def _planned(
    closing: ExitStack,
    paths: Sequence[Path],
    log: Path | None,
    registry: Path | None,
    redis_url: str,
    prefix: str,
    pipeline: str,
    accepted: Sequence[str],
) -> "tuple[Plan, Revision | None, Planned, Copy | None, Record]":
    from unskew.cli.applying import reaching_copy
    from unskew.features.definitions.load import load
    from unskew.features.planning import Asked, planned
    from unskew.features.revision import Content
    from unskew.sinks.record import Record

    record = Record(settings.record_of(registry, log))
    definitions = load(*paths)
    last = record.last()
    check_accepted(accepted, Content() if last is None else last.content)
    copy = None
    try:
        copy = closing.enter_context(reaching_copy(redis_url, prefix, pipeline, last))
    except StoreUnavailable as error:
        say(f"{error}; planned without it", err=True)
    asked = Asked(accepted=accepted)
    if copy is not None:
        asked = Asked(accepted=accepted, has_ended=copy.has_ended, reads=copy.reads)
    found = planned(definitions, None if last is None else last.content, asked)
    return definitions, last, found, copy, record


def _impact(definitions: "Plan", before: "Content", found: "Planned", archive: Path) -> "list[ViewDiff]":
    """Return what happens to the values of views that change or are new, as far as the archive says it in a minute."""
    from unskew.features.plan import Plan
    from unskew.features.versions import Versions
    from unskew.pipelines.history.impact import impact
    from unskew.stopping import stopping_on_signals

    concerned = {
        change.name for change in found.changes if change.what == "view" and change.kind in {"added", "changed"}
    }
    views = [view for view in definitions.views.values() if view.id in concerned]
    names = {view.name for view in views}
    if not views:
        return []
    stop = threading.Event()
    with stopping_on_signals(stop), phases("values") as report:
        compared = impact(
            [view for view in before.views if view.name in names],
            Plan(streams=definitions.streams, views=Versions(views)),
            archive,
            stop=stop,
            progress=lambda done, total: report("compared", done, total),
        )
    return [one for one in compared if one.new in concerned and not one.unchanged]


def refuse(reasons: Sequence[str]) -> None:
    """End the command with these reasons, if there are any."""
    if reasons:
        *others, last = reasons
        for reason in others:
            say(f"error: {reason}", err=True)
        raise LayoutError(last)


def check_accepted(accepted: Sequence[str], content: "Content") -> None:
    """Raise ``RequestError`` if --break names what was never applied."""
    known = {*content.serves, *(one.name for one in content.services), *(one.name for one in content.on_demand)}
    for name in accepted:
        if name not in known:
            raise RequestError(
                f"--break {name}: no such service or view was applied; {nearest(name, sorted(known), 'there is')}"
            )
