"""``unskew registry``: look into the record of what was applied."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from unskew import settings
from unskew.cli.screen import say, say_json

if TYPE_CHECKING:
    from unskew.sinks.record import Record


@click.group()
def registry() -> None:
    """Look into the record of the registry: what was applied, when, by whom, and what it changed."""


@registry.command("log", short_help="List the revisions, the last one first.")
@settings.optional_log
@settings.registry
@click.option(
    "-n",
    "--rows",
    "--revisions",
    "revisions",
    default=20,
    show_default=True,
    type=click.IntRange(1),
    help="Number of revisions. --revisions is the same.",
)
@settings.as_json
def log_(log: Path | None, registry: Path | None, revisions: int, as_json: bool) -> None:
    """List the revisions, the last one first.

    \b
    Example:
        unskew registry log --log data/log
    """
    from unskew.features.revision import described
    from unskew.features.time import format_instant

    record = _record(registry, log)
    newest = record.read_last().number
    found = [record.read(number) for number in range(newest, max(0, newest - revisions), -1)]
    if as_json:
        say_json([{key: value for key, value in described(one).items() if key != "content"} for one in found], indent=2)
        return
    for one in found:
        commit = "" if one.git is None else f"  {one.git.commit[:12]}{' (changed)' if one.git.changed else ''}"
        said = f"  {one.message}" if one.message else ""
        say(f"{one.number}  {format_instant(one.at.replace(microsecond=0))}  {one.by}  {one.command}{commit}{said}")
        for line in one.plan:
            say(f"    {line}")


@registry.command(short_help="Show one revision: views, versions that serve, services.")
@click.argument("revision", metavar="[REVISION]", type=click.IntRange(1), required=False)
@settings.optional_log
@settings.registry
@settings.as_json
def show(revision: int | None, log: Path | None, registry: Path | None, as_json: bool) -> None:
    """Show one revision, the last one without REVISION: its streams, its views, which of them serve, and its services.

    \b
    A version is
      running     applied; view@2:feature reads it
      serving     what the bare view:feature means
      deprecated  running or serving, and to be replaced by what it says
      retired     applied once, and removed; its log stays

    \b
    Example:
        unskew registry show 3 --log data/log
    """
    from unskew.features.revision import described
    from unskew.features.time import format_duration, format_instant

    record = _record(registry, log)
    one = record.read_last() if revision is None else record.read(revision)
    if as_json:
        say_json(described(one), indent=2)
        return
    say(f"revision {one.number}, {format_instant(one.at.replace(microsecond=0))}, by {one.by}: {one.command}")
    if one.message:
        say(one.message)
    if one.git is not None:
        say(f"commit {one.git.commit}{', with changes' if one.git.changed else ''}")
    content = one.content
    for stream in content.streams:
        settle = "-" if stream.settle_us is None else format_duration(stream.settle_us)
        say(f"stream {stream.name}  topic {', '.join(stream.topics)}  settle {settle}  owner {stream.owner or '-'}")
    for view in content.views:
        say(f"view {view.id}  {content.state_of(view)}  {len(view.features)} features  owner {view.owner or '-'}")
    for demanded in content.on_demand:
        say(f"on-demand {demanded.id}  {len(demanded.features)} features  owner {demanded.owner or '-'}")
    for service in content.services:
        say(f"service {service.name}  owner {service.owner or '-'}")
        for feature in service.features:
            say(f"    {feature.reference}  from {feature.view}  {feature.type}")
    for view_id in content.retired:
        say(f"view {view_id}  retired")


@registry.command(short_help="Show what differs between two revisions.")
@click.argument("before", metavar="REVISION", type=click.IntRange(1))
@click.argument("after", metavar="REVISION", type=click.IntRange(1))
@settings.optional_log
@settings.registry
@settings.as_json
def diff(before: int, after: int, log: Path | None, registry: Path | None, as_json: bool) -> None:
    """Show what the second REVISION changes of the first one, object by object and field by field.

    \b
    Example:
        unskew registry diff 3 5 --log data/log
    """
    from unskew.cli.applying import changes_as_data, lines_of
    from unskew.features.planning import differences

    record = _record(registry, log)
    found = differences(record.read(before).content, record.read(after).content)
    if as_json:
        say_json(changes_as_data(found), indent=2)
        return
    for change in found:
        for line in lines_of(change):
            say(line)
    if not found:
        say(f"revision {after} has what revision {before} has")


def _record(registry: Path | None, log: Path | None) -> "Record":
    from unskew.sinks.record import Record

    return Record(settings.record_of(registry, log))
