"""``unskew retain``: remove old days of the log, the archive and the dead letters."""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unskew import settings
from unskew.cli.compact import size_text
from unskew.cli.screen import Screen, say
from unskew.features.errors import RequestError, UnskewError
from unskew.features.printing import printable

if TYPE_CHECKING:
    import datetime as dt

    from unskew.features.plan import Plan
    from unskew.offline.compaction import Table
    from unskew.offline.retention import Retained


def _keep(flag: str, what: str) -> Callable[[Any], Any]:
    return click.option(flag, metavar="DURATION", help=f"Days of {what} to keep, for example 400d. Default: all.")


@click.command()
@settings.some_definitions
@settings.optional_log
@settings.optional_archive
@settings.dead_letters
@settings.optional_state
@settings.umask
@_keep("--keep-log", "the log")
@_keep("--keep-archive", "the archive")
@_keep("--keep-dead-letters", "the dead letters")
@click.option(
    "--grace",
    default="1h",
    show_default=True,
    metavar="DURATION",
    help="Time for which replaced files of the log stay, for readers that have listed them.",
)
@click.option("--force", is_flag=True, help="Remove days of the archive although views of the definitions need them.")
@click.option("--dry-run", is_flag=True, help="Change nothing, and print what would be done.")
def retain(
    definitions: tuple[Path, ...],
    log: Path | None,
    archive: Path | None,
    dead_letters: Path | None,
    state: Path | None,
    keep_log: str | None,
    keep_archive: str | None,
    keep_dead_letters: str | None,
    grace: str,
    force: bool,
    dry_run: bool,
) -> None:
    """Remove old days, and keep what later values rest on.

    Durations count from what a table is complete to, not from the present, and end at midnight, UTC. Of a log, each
    entity's last row before the cut stays: labels from the cut on get what they got before, and earlier ones are
    refused. Of an archive, days that the longest window of a view of the definitions needs are not removed. It is safe
    beside running pipelines and readers, and may be interrupted at any point: the same command finishes the rest.

    \b
    unskew retain --definitions defs/ --log log --archive archive \\
        --keep-log 400d --keep-archive 90d --dry-run
    """
    import time

    from unskew.features.definitions.load import load
    from unskew.offline.compaction import archive_tables, dead_letter_tables, log_tables, refuse_swapped
    from unskew.offline.retention import Retained, cut_of, refuse_too_short, retain_days, retain_log
    from unskew.pipelines.erasing import is_state
    from unskew.sinks.tables.layout import read_definition

    if keep_log is None and keep_archive is None and keep_dead_letters is None:
        raise RequestError("there is nothing to do: give --keep-log, --keep-archive, --keep-dead-letters, or several")
    if dead_letters is None and archive is not None:
        dead_letters = archive.with_name("dead_letters")
    kept_log = _folder("log", log, keep_log)
    kept_archive = _folder("archive", archive, keep_archive)
    kept_letters = _folder("dead-letters", dead_letters, keep_dead_letters)
    if (kept_log or kept_archive) and not definitions:
        raise RequestError("--definitions: what the log and the archive must keep depends on the views; give them")
    refuse_swapped(kept_log and kept_log[0], kept_archive and kept_archive[0])
    if state is not None and not is_state(state):
        raise RequestError(f"{state} holds no state; name the --state of the pipeline")
    plan = load(*definitions) if definitions else None
    grace_s = settings.duration_us("--grace", grace) / 1e6
    found: list[Retained] = []
    faults: list[str] = []
    errors = Screen(stderr=True)
    status = errors.status("") if errors.is_terminal else None

    def report(text: str) -> None:
        if status is not None:
            status.update(printable(text))

    work: list[tuple[Table, Sequence[str], dt.date | None]] = []
    if kept_log and plan is not None:
        by_view = {one: view.entity.keys for view in plan.views.values() for one in (view.name, view.id)}
        for table in log_tables(kept_log[0]):
            view_id = table.name.removeprefix("log ")
            written = read_definition(table.root)
            known = by_view.get(view_id) if written is None else written.entity.keys
            known = known or by_view.get(view_id.partition("@")[0])
            if known is None:
                say(f"{table.name}: not in the definitions, so its keys are not known; left alone", err=True)
                continue
            work.append((table, known, cut_of(table, kept_log[1])))
    if kept_archive and plan is not None:
        for table in archive_tables(kept_archive[0]):
            of_topic = [view for view in plan.views.values() if view.stream.topic == table.root.name]
            if not force:
                refuse_too_short(kept_archive[1], of_topic)
            cut = cut_of(table, kept_archive[1])
            if cut is not None and state is not None:
                _refuse_unread(plan, kept_archive[0], state, cut)
            work.append((table, (), cut))
    if kept_letters:
        work += [(table, (), cut_of(table, kept_letters[1])) for table in dead_letter_tables(kept_letters[0])]
    with status or contextlib.nullcontext():
        for table, keys, cut in work:
            report(table.name)
            if cut is None:
                say(f"{table.name}: not complete to any instant yet; left alone", err=True)
                continue
            try:
                if keys:
                    one = retain_log(
                        table,
                        keys,
                        cut,
                        grace_s=grace_s,
                        now_s=time.time(),
                        dry_run=dry_run,
                        progress=report,
                    )
                else:
                    one = retain_days(table, cut, dry_run=dry_run)
            except UnskewError as error:
                faults.append(str(error))
                continue
            found.append(one)
            faults += one.faults
    if not work:
        say("there are no files yet")
        return
    _show(found, dry_run=dry_run)
    for one in (one for one in found if one.n_astride):
        say(
            f"{one.table.name}: files of earlier days that also have rows from {one.cut} on stay until all of their days are before the "
            f"cut: {one.n_astride:,}, with rows from {one.astride_from} on",
            err=True,
        )
    for fault in faults:
        say(f"error: {fault}", err=True)
    if faults:
        raise click.exceptions.Exit(1)


def _folder(name: str, folder: Path | None, keep: str | None) -> tuple[Path, int] | None:
    """Return a folder and how long its days are kept; None if that is not asked for."""
    if keep is None:
        return None
    keep_us = settings.duration_us(f"--keep-{name}", keep)
    if folder is None:
        raise RequestError(f"--keep-{name}: give the folder, too, with --{name}")
    if not folder.is_dir():
        raise RequestError(f"{folder}: there is no such folder; give the folder of 'unskew run' with --{name}")
    return folder, keep_us


def _refuse_unread(plan: "Plan", archive: Path, state: Path, cut: "dt.date") -> None:
    """Refuse to remove events that an unfinished backfill, or a view over a table, has not read yet."""
    from unskew.features.time import instant_us
    from unskew.pipelines.history.archive import Archive, Reached
    from unskew.pipelines.state.folder import BATCH, held_by
    from unskew.pipelines.state.ordering import shard_names
    from unskew.pipelines.state.seeds import Seeds

    cut_us = instant_us(f"{cut.isoformat()}T00:00:00Z")
    for view in plan.views.values():
        of_table = view.stream.table is not None
        seeds = Seeds(state / BATCH if of_table else state)
        found = {name: seed for name in seeds.shards(view.id) if (seed := seeds.read(view, name)) is not None}
        if not found:
            continue
        end = f"finish it (unskew backfill), or remove it (unskew purge {view.id} --backfill)"
        held = None if of_table else held_by(state)
        if (
            held is not None
            and view.id not in held.views
            and any(seed.since_us is None or seed.since_us < cut_us for seed in found.values())
        ):
            # Other processes may compute them, and begin later.
            partitions = held.partitions or range(held.n_partitions.get(view.stream.topic, 0))
            if waiting := [name for name in shard_names(view, partitions, held.n_hashes) if name not in found]:
                raise RequestError(
                    f"{view.id}: the backfill of its shard {waiting[0]} has not begun and needs the days before {cut}; {end}"
                )
        archived = Archive.open(archive, view.stream)
        for partition, one in ((partition, one) for seed in found.values() for partition, one in seed.taken.items()):
            # Not every offset is one of an event.
            until = {partition: Reached(offset=archived.offset_at(partition, cut_us), clock_us=None)}
            if partition in archived.files and archived.count({partition: one.end}, until)[partition][0]:
                if of_table:
                    raise RequestError(
                        f"{view.id}: it has read table {view.stream.name} up to row {one.end}, and needs the days before {cut}; compute it "
                        f"first (unskew materialize {view.id})"
                    )
                raise RequestError(
                    f"{view.id}: its backfill has read partition {partition} up to offset {one.end} and needs the days before "
                    f"{cut}; {end}"
                )


def _show(found: "Sequence[Retained]", *, dry_run: bool) -> None:
    from unskew.features.folding import Rows, number

    counts = ("files before", "bytes before", "rows before", "rows kept", "files deleted", "files to be deleted")
    table = Rows(
        "table",
        "kept from",
        *map(number, counts),
        heading=["nothing was changed: this would be done"] if dry_run else [],
    )
    for one in found:
        of_log = one.table.name.startswith("log ")
        table.add(
            one.table.name,
            str(one.cut),
            f"{one.files:,}",
            size_text(one.n_bytes),
            f"{one.rows_before:,}" if of_log else "",
            f"{one.rows_after:,}" if of_log else "",
            f"{one.n_deleted:,}",
            f"{one.n_waiting:,}",
        )
    Screen().print(table)
