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
    _show(opened, opened.head(rows), as_json=as_json)


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
        _show(opened, opened.tail(rows), as_json=as_json)
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
        _show(opened, found.tail(rows), as_json=as_json)


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
    from unskew.cli.live import late_table
    from unskew.features.folding import Rows, prose
    from unskew.features.ledger import written
    from unskew.features.showing import plain, shown

    opened = _open(view, definitions, log)
    found = opened.stats()
    if as_json:
        figures = {name: plain(value) for name, value in vars(found).items() if name != "ledger"}
        say_json({"view": opened.view.id, **figures, "late": written(found.ledger)}, indent=2)
        return
    table = Rows("", prose(""), heading=[styled(f"{opened.view.id}  {opened.root}", "bold")])
    causes = ", ".join(f"{cause} {n:,}" for cause, n in found.causes.items())
    for name, text in (
        ("rows", f"{found.rows:,}" + (f"  ({causes})" if causes else "")),
        ("entities", f"{found.entities:,}"),
        ("shards", f"{found.shards:,}"),
        ("files", f"{found.files:,}"),
        ("bytes", f"{found.bytes:,}"),
        ("available_at", f"{shown(found.first)} to {shown(found.last)}" if found.rows else "no rows yet"),
        ("since", shown(found.since) if found.since else "no event was seen yet"),
        *([("kept from", f"{shown(found.kept_from)}, by unskew retain")] if found.kept_from else []),
        ("complete to", shown(found.complete_to) if found.complete_to else "no instant yet"),
    ):
        table.add(name, text)
    console = Screen()
    console.print(table)
    if found.ledger.windows:
        console.print()
        console.print(late_table(opened.view, found.ledger))


def _show(log: "ViewLog", frame: "pl.DataFrame", *, as_json: bool) -> None:
    """Print rows of a log."""
    from unskew.features.folding import Column, Rows
    from unskew.features.showing import plain, shown

    if as_json:
        rows = [{name: plain(value) for name, value in row.items()} for row in frame.iter_rows(named=True)]
        say_json({"view": log.view.id, "rows": rows}, indent=2)
        return
    if frame.is_empty():
        say(f"the log of {log.view.id} has no rows yet")
        return
    columns = (
        Column(name=name, right=dtype.is_numeric(), wraps=dtype.is_nested()) for name, dtype in frame.schema.items()
    )
    # An entity's keys and the instant, which come first, say which row it is.
    table = Rows(*columns, keys=len(log.view.entity.keys) + 1)
    for row in frame.iter_rows():
        table.add(*map(shown, row))
    Screen().print(table)


def _open(name: str, definitions: tuple[Path, ...], log_root: Path) -> "ViewLog":
    from unskew.features.definitions.load import load
    from unskew.features.local import existing_folder
    from unskew.offline.log_reader import ViewLog
    from unskew.offline.logged import with_logged

    known = load(*definitions).published if definitions else None
    root = existing_folder(log_root, "--log")
    return ViewLog(root, with_logged(root, [name], known).find(name))
