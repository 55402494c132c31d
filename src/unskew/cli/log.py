"""``unskew log``: look into the Parquet log."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unskew import settings
from unskew.cli import naming
from unskew.cli.known import telling_services
from unskew.cli.screen import Screen, say, say_json, styled

if TYPE_CHECKING:
    import polars as pl

    from unskew.features.folding import Rows
    from unskew.offline.log_reader import ViewLog

_BETWEEN_LOOKS_S = 2.0
_MOST_ROWS = 10_000
_WHICH = ("available_at", "cause", "event_time", "partition", "offset")


@click.group()
def log() -> None:
    """Look into the Parquet log: every value that was ever served, with the instant from which it was valid."""


@log.command(short_help="Show the first rows of VIEW.")
@click.argument("view", shell_complete=naming.views)
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
@click.argument("view", shell_complete=naming.views)
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
@click.option(
    "-f",
    "--follow",
    is_flag=True,
    help="Go on with rows that are published, until Ctrl-C; with --json, a line for each.",
)
@settings.as_json
def tail(
    view: str,
    definitions: tuple[Path, ...],
    log: Path,
    rows: int,
    entity: tuple[str, ...],
    follow: bool,
    as_json: bool,
) -> None:
    """Show the last rows of VIEW by the instant from which they were valid; VIEW@VERSION is one of several versions.

    Without definitions, the log says itself how it is read. A running pipeline publishes rows with every epoch, so
    --follow shows them some seconds after their instant.

    \b
    Examples:
        unskew log tail household_purchases --log data/log
        unskew log tail household_purchases --log data/log --entity 1 -n 3
        unskew log tail household_purchases --log data/log --follow
    """
    opened = _open(view, definitions, log)
    key = _key(opened, entity)
    found = opened.tail(rows) if key is None else _rows_of(opened, key).tail(rows)
    if follow:
        _follow(opened, log, key, found, as_json=as_json)
    elif key is not None and found.is_empty() and not as_json:
        say(f"the log of {view} has no rows of {opened.view.entity.name} {' '.join(entity)}")
    else:
        _show(opened, found, as_json=as_json)


def _key(log: "ViewLog", entity: tuple[str, ...]) -> dict[str, str | int] | None:
    """Return the key of an entity by column; None if none is given."""
    if not entity:
        return None
    from unskew.features.keys import OneEntity

    about = log.view.entity
    parts = zip(about.keys, about.types, OneEntity.of(about, entity).parts, strict=True)
    return {name: int(part) if kind == "int64" else part for name, kind, part in parts}


def _rows_of(log: "ViewLog", key: dict[str, str | int]) -> "pl.DataFrame":
    from unskew.offline.bar import shown
    from unskew.offline.history import entity_history

    with shown(progress=False) as report:
        return entity_history(log, key, report).frame


def _follow(
    log: "ViewLog", root: Path, key: dict[str, str | int] | None, found: "pl.DataFrame", *, as_json: bool
) -> None:
    """Print rows, and then those that are published, until a signal to stop."""
    import threading

    from unskew.offline.log_reader import ViewLog
    from unskew.stopping import stopping_on_signals

    stop = threading.Event()
    with stopping_on_signals(stop):
        _print_rows(log, found, as_json=as_json)
        seen = log.ends
        begun = not found.is_empty()
        while not stop.wait(_BETWEEN_LOOKS_S):
            log = ViewLog(root, log.view, after=seen)
            seen |= log.ends
            if (n_left := log.n_rows() - _MOST_ROWS) > 0:
                say(
                    f"{n_left:,} rows came at once and are not shown; unskew train or a query of the files has them",
                    err=True,
                )
            new = log.tail(_MOST_ROWS)
            if key is not None and not new.is_empty():
                new = new.filter(**key).select(found.columns or new.columns)
            _print_rows(log, new, as_json=as_json, goes_on=begun)
            begun = begun or not new.is_empty()


def _print_rows(log: "ViewLog", rows: "pl.DataFrame", *, as_json: bool, goes_on: bool = False) -> None:
    """Print rows as lines; ``goes_on``: others were printed, so a file or a pipe has the names of the columns."""
    if rows.is_empty():
        return
    if as_json:
        for row in _plain_rows(rows):
            say_json(row)
    else:
        Screen().print(_table(log, _ordered(log, rows), names=not goes_on or Screen().is_terminal))


@log.command(short_help="Count rows and files of VIEW's log, and show its coverage.")
@click.argument("view", shell_complete=naming.views)
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
    if as_json:
        say_json({"view": log.view.id, "rows": _plain_rows(frame)}, indent=2)
    elif frame.is_empty():
        say(f"the log of {log.view.id} has no rows yet")
    else:
        Screen().print(_table(log, _ordered(log, frame)))


def _ordered(log: "ViewLog", frame: "pl.DataFrame") -> "pl.DataFrame":
    """Return rows with what says which row it is first: the entity's keys, the instant and where it came from."""
    first = [name for name in (*log.view.entity.keys, *_WHICH) if name in frame.columns]
    return frame.select(*first, *(name for name in frame.columns if name not in first))


def _plain_rows(frame: "pl.DataFrame") -> list[dict[str, Any]]:
    from unskew.features.showing import plain

    return [{name: plain(value) for name, value in row.items()} for row in frame.iter_rows(named=True)]


def _table(log: "ViewLog", frame: "pl.DataFrame", *, names: bool = True) -> "Rows":
    from unskew.features.folding import Column, Rows
    from unskew.features.showing import shown

    columns = (
        Column(name=name if names else "", right=dtype.is_numeric(), wraps=dtype.is_nested())
        for name, dtype in frame.schema.items()
    )
    # An entity's keys and the instant, which come first, say which row it is.
    table = Rows(*columns, keys=len(log.view.entity.keys) + 1)
    for row in frame.iter_rows():
        table.add(*map(shown, row))
    return table


def _open(name: str, definitions: tuple[Path, ...], log_root: Path) -> "ViewLog":
    from unskew.features.definitions.load import load
    from unskew.features.local import existing_folder
    from unskew.offline.log_reader import ViewLog
    from unskew.offline.logged import with_logged

    plan = load(*definitions) if definitions else None
    root = existing_folder(log_root, "--log")
    with telling_services([name], plan, root):
        known = with_logged(root, [name], None if plan is None else plan.published)
        return ViewLog(root, known.find(name))
