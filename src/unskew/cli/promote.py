"""``unskew promote`` and ``unskew rollback``: another version serves; what an earlier revision had is applied again."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from unskew import settings
from unskew.cli import naming
from unskew.cli.plan import agree, check_accepted, message, not_empty, refuse, yes
from unskew.cli.screen import say
from unskew.features.errors import LayoutError, RequestError
from unskew.features.time import format_instant

if TYPE_CHECKING:
    from unskew.cli.applying import Copy
    from unskew.features.revision import Content
    from unskew.features.view import View

_breaks = click.option(
    "--break",
    "accepted",
    multiple=True,
    metavar="SERVICE",
    callback=not_empty,
    help="Accept that this service breaks; may be given several times.",
)


@click.command()
@click.argument("view", metavar="VIEW@VERSION", shell_complete=naming.views)
@settings.of_record
@settings.umask
@_breaks
@click.option("--warming", is_flag=True, help="Also a version whose windows are not full yet.")
@message
def promote(
    view: str,
    log: Path | None,
    registry: Path | None,
    redis_url: str,
    prefix: str,
    pipeline: str,
    accepted: tuple[str, ...],
    warming: bool,
    message: str,
) -> None:
    """Let a version serve: from now on the bare VIEW:feature means VIEW@VERSION, for every reader at once.

    The version must be running, and its windows full. Nothing is restarted or computed; promoting the other version
    takes it back. Services go on reading the versions that they have pinned, until `unskew apply` pins them anew.

    \b
    Example:
        unskew promote user_purchases@2 --log data/log
    """
    from unskew.cli.applying import next_revision, reaching_copy, write
    from unskew.features.planning import Asked, broken, broken_by_promotion, differences, unreadable
    from unskew.sinks.record import Record

    record = Record(settings.record_of(registry, log))
    last = record.read_last()
    content = last.content
    chosen = content.by_id.get(view)
    if chosen is None:
        raise _unknown(view, content)
    check_accepted(accepted, content)
    with reaching_copy(redis_url, prefix, pipeline, last) as copy:
        if content.serves[chosen.name] == chosen.version:
            say(f"{view} serves already")
            copy.bring_up_to(last)
            return
        _refuse_not_running(chosen, copy, pipeline)
        if not warming:
            _refuse_warming(chosen, copy)
        asked = Asked(accepted=accepted, reads=copy.reads)
        reasons = [
            broken(service, why, copy.reads(service.name))
            for service, why in broken_by_promotion(content, chosen)
            if service.name not in asked.accepted
        ]
        now = msgspec.structs.replace(content, serves={**content.serves, chosen.name: chosen.version})
        refuse([*reasons, *unreadable(now, asked)])
        lines = [change.line() for change in differences(content, now)]
        write(record, next_revision(last, now, lines, command=f"promote {view}", message=message), copy)
        say(
            f"{chosen.name}:feature means {view}; unskew promote {chosen.name}@{content.serves[chosen.name]} takes it back"
        )


@click.command()
@click.argument("revision", type=click.IntRange(1))
@settings.of_record
@settings.umask
@_breaks
@yes
@message
def rollback(
    revision: int,
    log: Path | None,
    registry: Path | None,
    redis_url: str,
    prefix: str,
    pipeline: str,
    accepted: tuple[str, ...],
    yes: bool,
    message: str,
) -> None:
    """Apply again what REVISION had: its views, which of them serve, and its services. It becomes a new revision.

    It is refused if a version comes back whose state has ended. The definitions in git are not changed: give the
    pipeline those of that revision at its next start.

    \b
    Example:
        unskew rollback 3 --log data/log
    """
    from unskew.cli.applying import lines_of, next_revision, reaching_copy, write
    from unskew.features.planning import Asked, broken_services, differences, unreadable
    from unskew.sinks.record import Record

    record = Record(settings.record_of(registry, log))
    last = record.read_last()
    earlier = record.read(revision)
    check_accepted(accepted, last.content)
    before, views = last.content, earlier.content.by_id
    now = msgspec.structs.replace(
        earlier.content,
        retired=tuple(sorted({*before.retired, *before.by_id} - set(views))),
        # A revision of an earlier version of unskew does not say how streams are read.
        streams=earlier.content.streams or before.streams,
    )
    changes = differences(before, now)
    if not changes:
        say(f"nothing to change: revision {last.number} has what revision {revision} has")
        return
    with reaching_copy(redis_url, prefix, pipeline, last) as copy:
        reasons = [
            f"{view_id} comes back, and no pipeline computes it any more, so its state lacks the events since; define it anew, "
            "under a version that was not used before"
            for view_id in views
            if view_id not in before.by_id and copy.has_ended(view_id) is not False
        ]
        reasons += [
            f"{view_id} had another definition in revision {revision}; give that definition a version of its own"
            for view_id, view in views.items()
            if view_id in before.by_id and before.by_id[view_id].state_fingerprint != view.state_fingerprint
        ]
        asked = Asked(accepted=accepted, reads=copy.reads)
        reasons += [*broken_services(before, now, asked), *unreadable(now, asked)]
        for change in changes:
            for line in lines_of(change):
                say(line)
        refuse(reasons)
        agree("apply this?", yes=yes)
        lines = [change.line() for change in changes]
        write(record, next_revision(last, now, lines, command=f"rollback {revision}", message=message), copy)
    where = "" if earlier.git is None else f" (commit {earlier.git.commit})"
    if restart := [change.name for change in changes if change.what == "view" and change.kind in {"added", "removed"}]:
        say(f"restart unskew run with the definitions of revision {revision}{where}, because of {', '.join(restart)}")
    else:
        say(f"the next start of unskew run needs the definitions of revision {revision}{where}; none is needed now")


def _unknown(view: str, content: "Content") -> RequestError:
    from unskew.features.nearest import nearest

    if view in content.serves:
        there = ", ".join(one for one in content.by_id if one.partition("@")[0] == view)
        return RequestError(f"{view}: name the version that is to serve; there is {there}")
    retired = " (it is retired)" if view in content.retired else ""
    return RequestError(f"{view} was not applied{retired}; {nearest(view, sorted(content.by_id), 'there is')}")


def _refuse_not_running(view: "View", copy: "Copy", pipeline: str) -> None:
    live = copy.live.get(view.id)
    if live is None or live.clock_us is None:
        raise RequestError(
            f"{view.id} is not running: pipeline {pipeline!r} has no clock of it in Redis; restart unskew run with it, or give the "
            "--pipeline and --prefix with which it runs"
        )
    if live.view.state_fingerprint != view.state_fingerprint:
        raise LayoutError(
            f"{view.id} in Redis has another definition than the one that was applied; restart unskew run"
        )


def _refuse_warming(view: "View", copy: "Copy") -> None:
    from unskew.features.warming import warm_from

    live = copy.live[view.id]
    assert live.clock_us is not None
    since_us = live.clock_us if live.since_us is None else live.since_us
    full_us = warm_from(view, live.clock_us, since_us)
    if full_us is None or full_us > live.clock_us:
        until = "for longer than can be said" if full_us is None else f"until {format_instant(full_us)}"
        raise RequestError(
            f"{view.id} is warming {until}: its windows reach back to before {format_instant(since_us)}, since when it has "
            "its events; promote it then, or now with --warming"
        )
