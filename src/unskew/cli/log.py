"""``unskew log``: look into the Parquet log."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from unskew import settings
from unskew.cli.screen import Screen, say, say_json, styled

if TYPE_CHECKING:
    import polars as pl

    from unskew.offline.log_reader import ViewLog


@click.group()
def log() -> None:
    """Look into the Parquet log: every value that was ever served, with the instant from which it was valid."""


@log.command(short_help="Show the first rows of VIEW.")
@click.argument("view")
@settings.some_definitions
@settings.log
@click.option("-n", "--rows", default=10, show_default=True, type=click.IntRange(1), help="Number of rows.")
@settings.as_json
def head(view: str, definitions: tuple[Path, ...], log: Path, rows: int, as_json: bool) -> None:
    """Show the first rows of VIEW by the instant from which they were valid; VIEW@VERSION is one of several versions.

    Without definitions, the log says itself how it is read.

    \b
    Example:
        unskew log head household_purchases --log data/log \\
            --definitions examples/complete_journey
    """
    opened = _open(view, definitions, log)
    _show(opened, view, opened.head(rows), as_json=as_json)


@log.command(short_help="Show the last rows of VIEW, or of one entity.")
@click.argument("view")
@settings.some_definitions
@settings.log
@click.option("-n", "--rows", default=10, show_default=True, type=click.IntRange(1), help="Number of rows.")
@click.option(
    "--entity",
    "entity",
    metavar="KEY",
    multiple=True,
    help="Rows of one entity alone; for an entity with several key columns once for each, in their order.",
)
@settings.as_json
def tail(
    view: str, definitions: tuple[Path, ...], log: Path, rows: int, entity: tuple[str, ...], as_json: bool
) -> None:
    """Show the last rows of VIEW by the instant from which they were valid; VIEW@VERSION is one of several versions.

    Without definitions, the log says itself how it is read.

    \b
    Examples:
        unskew log tail household_purchases --log data/log
        unskew log tail household_purchases --log data/log --entity 1 -n 3
    """
    opened = _open(view, definitions, log)
    if not entity:
        _show(opened, view, opened.tail(rows), as_json=as_json)
        return
    from unskew.features.keys import OneEntity
    from unskew.offline.bar import shown
    from unskew.offline.history import entity_history

    kinds = opened.view.entity.types
    parts = OneEntity.of(opened.view.entity, entity).parts
    key = [int(part) if kind == "int64" else part for part, kind in zip(parts, kinds, strict=True)]
    with shown(progress=False) as report:
        found = entity_history(opened, key, report).frame
    if found.is_empty() and not as_json:
        say(f"the log of {view} has no rows of {opened.view.entity.name} {' '.join(entity)}")
    else:
        _show(opened, view, found.tail(rows), as_json=as_json)


@log.command(short_help="Count rows and files of VIEW's log, and show its coverage.")
@click.argument("view")
@settings.some_definitions
@settings.log
@settings.as_json
def stats(view: str, definitions: tuple[Path, ...], log: Path, as_json: bool) -> None:
    """Count rows, entities, files and bytes of VIEW's log, and show its coverage and late events.

    VIEW@VERSION is one of several versions. Without definitions, the log says itself how it is read.

    \b
    Example:
        unskew log stats household_purchases --log data/log \\
            --definitions examples/complete_journey
    """
    from rich.table import Table

    from unskew.cli.live import late_table
    from unskew.features.ledger import written
    from unskew.features.showing import plain

    opened = _open(view, definitions, log)
    found = opened.stats()
    if as_json:
        figures = {name: plain(value) for name, value in vars(found).items() if name != "ledger"}
        say_json({"view": opened.view.id, **figures, "late": written(found.ledger)}, indent=2)
        return
    table = Table(show_header=False)
    causes = ", ".join(f"{cause} {n:,}" for cause, n in found.causes.items())
    for name, text in (
        ("rows", f"{found.rows:,}" + (f"  ({causes})" if causes else "")),
        ("entities", f"{found.entities:,}"),
        ("shards", f"{found.shards:,}"),
        ("files", f"{found.files:,}"),
        ("bytes", f"{found.bytes:,}"),
        ("available_at", f"{found.first} to {found.last}" if found.rows else "-"),
        ("since", str(found.since or "-")),
        *([("kept from", f"{found.kept_from}, by unskew retain")] if found.kept_from else []),
        ("complete to", str(found.complete_to or "-")),
    ):
        table.add_row(name, text)
    console = Screen()
    # Not the table's title, which would be folded to its width.
    console.print(styled(f"{opened.view.id}  {opened.root}", "bold"), soft_wrap=True)
    console.print(table)
    if found.ledger.windows:
        console.print(late_table(opened.view, found.ledger))


def _show(opened: "ViewLog", view: str, frame: "pl.DataFrame", *, as_json: bool) -> None:
    """Print rows of a log. ``view``: what was asked for."""
    from rich.table import Table

    from unskew.features.showing import plain, shown

    if as_json:
        rows = [{name: plain(value) for name, value in row.items()} for row in frame.iter_rows(named=True)]
        say_json({"view": opened.view.id, "rows": rows}, indent=2)
        return
    if frame.is_empty():
        say(f"the log of {view} has no rows yet")
        return
    table = Table(header_style="bold")
    for name, dtype in frame.schema.items():
        table.add_column(name, justify="right" if dtype.is_numeric() else "left", overflow="fold")
    for row in frame.iter_rows():
        table.add_row(*map(shown, row))
    console = Screen()
    if not console.is_terminal:
        whole = console.measure(table, options=console.options.update(max_width=10_000)).maximum
        console = Screen(width=max(console.width, whole))
    console.print(table)


def _open(name: str, definitions: tuple[Path, ...], log_root: Path) -> "ViewLog":
    from unskew.features.definitions.load import load
    from unskew.features.local import existing_folder
    from unskew.offline.log_reader import ViewLog
    from unskew.offline.logged import with_logged

    known = load(*definitions).published if definitions else None
    root = existing_folder(log_root, "--log")
    return ViewLog(root, with_logged(root, [name], known).find(name))
