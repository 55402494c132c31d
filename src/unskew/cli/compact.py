"""``unskew compact``: merge many small files into few large ones."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unskew import settings
from unskew.cli import naming
from unskew.cli.screen import Screen, bar, say
from unskew.features.errors import UnskewError
from unskew.features.printing import printable

if TYPE_CHECKING:
    from unskew.offline.compaction import Compacted, Table

_MOST_DAYS = 366
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


@click.command()
@click.argument("views", metavar="[VIEW...]", nargs=-1, shell_complete=naming.views)
@settings.optional_log
@settings.optional_archive
@settings.dead_letters
@settings.umask
@click.option(
    "--target-size",
    default="128MiB",
    show_default=True,
    metavar="SIZE",
    help="Maximum size of a merged file, compressed. A file of at least half of that is left alone.",
)
@click.option(
    "--min-files",
    default=8,
    show_default=True,
    type=click.IntRange(2),
    help="Small files that are needed for a merge in a writer's current day, or across days in its current span. In a "
    "past one two are enough.",
)
@click.option(
    "--span",
    default="1d",
    show_default=True,
    metavar="DURATION",
    help="Days of which one merged file may hold rows, at most 366d: days that are over and have few rows are merged "
    "with their neighbours. Such a file lies in a folder of several days (day=2026-03-01--2026-03-30), so a tool that "
    "reads only the folder of some day misses its rows.",
)
@click.option(
    "--grace",
    default="1h",
    show_default=True,
    metavar="DURATION",
    help="Time for which merged files stay, for readers that have listed them. This or a later call deletes them.",
)
@click.option(
    "--set-aside",
    is_flag=True,
    help="Move merged files to _superseded at once, so that tools that read all files of the day folders meet each row "
    "once. A query of theirs that has listed them already then fails, and must be repeated.",
)
@click.option("--dry-run", is_flag=True, help="Change nothing, and print what would be done.")
def compact(
    views: tuple[str, ...],
    log: Path | None,
    archive: Path | None,
    dead_letters: Path | None,
    target_size: str,
    min_files: int,
    span: str,
    grace: str,
    set_aside: bool,
    dry_run: bool,
) -> None:
    """Merge the many small files of the log, the archive and the dead letters into few.

    Rows, their order, columns and metadata stay as they are; each merged file is compared with its sources before
    readers see it. The command is safe beside running pipelines and readers, and may be interrupted at any point. It
    compacts all tables of the given folders; VIEWs restrict it to their logs, VIEW@VERSION to that of one version. It
    needs no definitions and no server.

    If a file is damaged or its content does not match its name, the command exits with 1, after merging all the others.

    \b
    All three:        unskew compact --log data/log --archive data/archive \\
                          --dead-letters data/dead_letters
    One view's log:   unskew compact household_purchases --log data/log
    Days of few rows: unskew compact --log data/log --span 30d
    What it would do: unskew compact --log data/log --dry-run
    """
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

    from unskew.offline.compaction import Limits
    from unskew.offline.compaction import compact as compact_table

    limits = Limits(
        target_bytes=_size(target_size),
        min_files=min_files,
        span_days=_days("--span", span),
        grace_s=_duration_s(grace),
        set_aside=set_aside,
    )
    tables = _tables(views, log, archive, dead_letters)
    if not tables:
        say("there are no files yet")
        return
    found = []
    faults: list[str] = []
    with bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
    ) as shown:
        task = shown.add_task("")
        for table in tables:
            shown.update(task, description=printable(table.name), completed=0, total=None)
            try:
                found.append(
                    compact_table(
                        table,
                        limits,
                        now_s=time.time(),
                        dry_run=dry_run,
                        progress=lambda done, total: shown.update(task, completed=done, total=total),
                        publish=publisher(table),
                    )
                )
            except UnskewError as error:
                # The other tables grow too, so they are merged all the same.
                faults.append(str(error))
    _show(found, dry_run=dry_run)
    for note in (note for one in found for note in one.notes):
        say(note, err=True)
    faults += [fault for one in found for fault in one.faults]
    for fault in faults:
        say(f"error: {fault}", err=True)
    if faults:
        raise click.exceptions.Exit(1)


def _tables(
    views: Sequence[str], log: Path | None, archive: Path | None, dead_letters: Path | None
) -> "Sequence[Table]":
    from unskew.features.errors import RequestError
    from unskew.offline.compaction import archive_tables, dead_letter_tables, log_tables, refuse_swapped

    refuse_swapped(log, archive)
    if views and log is None:
        raise RequestError("a view is compacted in its log: give the log's folder with --log")
    if log is None and archive is None and dead_letters is None:
        raise RequestError("there is nothing to compact: give --log, --archive, --dead-letters, or several of them")
    given = {"--log": log, "--archive": archive, "--dead-letters": dead_letters}
    folders = {option: folder for option, folder in given.items() if folder is not None}
    there = {option: folder for option, folder in folders.items() if folder.is_dir()}
    missing = [
        f"{folder}: there is no such folder; give the folder of 'unskew run' with {option}"
        for option, folder in folders.items()
        if option not in there
    ]
    if not there or (views and "--log" not in there):
        raise RequestError("; ".join(missing))
    # A pipeline leaves a folder only if it had something for it: most have no dead letter, and some no archived event.
    for note in missing:
        say(note, err=True)
    if dead_letters is None and archive is not None and archive.with_name("dead_letters").is_dir():
        there["--dead-letters"] = archive.with_name("dead_letters")
    tables = log_tables(there["--log"]) if "--log" in there else []
    if log is not None and views:
        return log_tables_of(views, tables, log)
    if "--archive" in there:
        tables += archive_tables(there["--archive"])
    if "--dead-letters" in there:
        tables += dead_letter_tables(there["--dead-letters"])
    return tables


def log_tables_of(views: Sequence[str], tables: "Sequence[Table]", log: Path) -> "Sequence[Table]":
    from unskew.features.errors import RequestError
    from unskew.features.nearest import nearest

    known = sorted({path.name for path in log.iterdir() if path.is_dir() and not path.name.startswith(("_", "."))})
    for view in views:
        name, at, version = view.partition("@")
        if name not in known:
            hint = nearest(name, known, "it has", none="none yet")
            raise RequestError(f"{log} holds no view {name!r}; {hint}")
        ids = [_view_id(table) for table in tables if table.root.parent.name == name]
        if at and view not in ids:
            raise RequestError(f"{log} holds no version {version!r} of {name!r}; it has {', '.join(ids) or 'none yet'}")
    return [table for table in tables if {table.root.parent.name, _view_id(table)} & set(views)]


def _view_id(table: "Table") -> str:
    return f"{table.root.parent.name}@{table.root.name.removeprefix('v')}"


def publisher(table: "Table") -> Callable[[], object]:
    """Return what writes the Delta metadata of a log's table; of another table, nothing."""
    from unskew.offline import delta

    if not table.is_log:
        return lambda: None
    return lambda: delta.publish(table.root, table.name, now_ms=time.time_ns() // 1_000_000)


def _size(text: str) -> int:
    import re

    from unskew.features.errors import RequestError

    found = re.fullmatch(r"(\d+)\s*([a-z]*)", text.strip().lower())
    n_bytes = int(found[1]) * _UNITS.get(found[2], 0) if found else 0
    if not n_bytes:
        raise RequestError(f"--target-size: {text!r} is not a size; write a number and a unit, for example 128MiB")
    return n_bytes


def _days(option: str, text: str) -> int:
    from unskew.features.errors import RequestError
    from unskew.features.time import DAY_US

    n_days, rest = divmod(settings.duration_us(option, text), DAY_US)
    if rest or not 1 <= n_days <= _MOST_DAYS:
        raise RequestError(f"{option}: {text!r} is not a number of whole days from 1d to {_MOST_DAYS}d")
    return n_days


def _duration_s(text: str) -> float:
    return settings.duration_us("--grace", text) / 1e6


def _show(found: "Sequence[Compacted]", *, dry_run: bool) -> None:
    from unskew.features.folding import Rows, number

    counts = ("files before", "files after", "bytes before", "bytes after", "files deleted", "files to be deleted")
    table = Rows("table", *map(number, counts), heading=["nothing was changed: this would be done"] if dry_run else [])
    for one in found:
        table.add(
            one.table.name,
            f"{one.files_before:,}",
            f"{one.files_after:,}",
            size_text(one.bytes_before),
            f"<= {size_text(one.bytes_after)}" if dry_run else size_text(one.bytes_after),
            f"{one.n_deleted:,}",
            f"{one.n_waiting:,}",
        )
    if len(found) > 1:
        table.section()
        table.add(
            "all",
            f"{sum(one.files_before for one in found):,}",
            f"{sum(one.files_after for one in found):,}",
            size_text(sum(one.bytes_before for one in found)),
            ("<= " if dry_run else "") + size_text(sum(one.bytes_after for one in found)),
            f"{sum(one.n_deleted for one in found):,}",
            f"{sum(one.n_waiting for one in found):,}",
        )
    Screen().print(table)


def size_text(n_bytes: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if n_bytes >= size:
            return f"{n_bytes / size:,.1f} {unit}"
    return f"{n_bytes} B"
