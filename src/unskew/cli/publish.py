"""``unskew publish``: write the metadata by which other engines read the log."""

import time
from pathlib import Path

import click

from unskew import settings
from unskew.cli import naming
from unskew.cli.screen import say
from unskew.features.errors import UnskewError


@click.command()
@click.argument("views", metavar="[VIEW...]", nargs=-1, shell_complete=naming.views)
@settings.log
@settings.umask
@click.option("--rebuild", is_flag=True, help="Write the metadata anew, from the names of the files alone.")
def publish(views: tuple[str, ...], log: Path, rebuild: bool) -> None:
    """Write Delta metadata beside the log's files, so that other engines read each row once.

    Spark, Trino, Databricks, DuckDB and Polars then read the folder of a view's version as a Delta table, also while
    `unskew compact` runs. The table has the rows that were published when this command ran: call it as often as such
    readers should see new rows, beside the pipeline. `unskew compact` does the same around each merge.

    The metadata are the folder _delta_log of each version. Nothing else depends on them: they can be removed, and those
    that cannot be read are written anew. Other engines can read the table, and are refused as its writers.

    \b
    Examples:
        unskew publish --log data/log
        unskew publish user_purchases --log data/log --rebuild
    """
    from unskew.cli.compact import log_tables_of
    from unskew.features.local import existing_folder
    from unskew.offline import delta
    from unskew.offline.compaction import BUSY, lock, log_tables, refuse_swapped

    refuse_swapped(log, None)
    tables = log_tables(existing_folder(log, "--log"))
    if views:
        tables = list(log_tables_of(views, tables, log))
    if not tables:
        say("there are no files yet")
        return
    faults = []
    for table in tables:
        try:
            with lock(table.root) as free:
                if not free:
                    if rebuild or not delta.is_published(table.root):
                        faults.append(f"{table.name}: {BUSY}; wait for its end and try again")
                    else:
                        say(f"{table.name}: {BUSY}, which brings its metadata up to date; left alone")
                    continue
                done = delta.publish(table.root, table.name, now_ms=time.time_ns() // 1_000_000, rebuild=rebuild)
        except UnskewError as error:
            # The others are published all the same.
            faults.append(str(error))
            continue
        if done.rebuilt:
            say(f"{table.name}: the metadata were written anew: {done.rebuilt}", err=True)
        if done.version is None:
            say(f"{table.name}: no rows are published yet")
            continue
        say(
            f"{table.name}: version {done.version}, {done.rows:,} rows in {done.files:,} files; "
            f"{done.n_added:,} files are new, {done.n_replaced:,} were replaced by merged ones"
        )
    for fault in faults:
        say(f"error: {fault}", err=True)
    if faults:
        raise click.exceptions.Exit(1)
