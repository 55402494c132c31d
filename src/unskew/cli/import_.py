"""``unskew import``: bring history that lies in files into the event archive of a stream."""

import threading
from pathlib import Path

import click

from unskew import settings
from unskew.cli.screen import phases, say
from unskew.features.errors import DefinitionError, RequestError


@click.command("import")
@click.argument("stream", metavar="STREAM")
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=settings.LocalPath())
@settings.definitions
@settings.archive
@settings.state
@settings.umask
@click.option("--arrival", metavar="COLUMN", help="The column that says when each row became available.")
@click.option(
    "--delay", metavar="DURATION", help="Instead of --arrival: each row became available so long after its event time."
)
@click.option(
    "--until",
    metavar="INSTANT",
    help="The instant at which the topic takes over (2026-01-31T00:00:00Z); if left out, where its archived events begin.",
)
@click.option("--partition", metavar="COLUMN", help="The column with each row's partition in the topic.")
@click.option(
    "--offset",
    metavar="COLUMN",
    help="The column with each row's offset in the topic (with --partition): the topic takes over at its first archived offset.",
)
@click.option(
    "--column",
    "renamed",
    metavar="NAME=COLUMN",
    multiple=True,
    help="A column of the stream that has another name in the files. May be repeated.",
)
@click.option(
    "--without", metavar="NAME", multiple=True, help="A column of the stream that the files lack: it is null."
)
@click.option("--zone", metavar="ZONE", help="The time zone of times that have none, for example UTC or Europe/Berlin.")
@click.option("--skip-refused", is_flag=True, help="Leave out rows that are not events of the stream, and count them.")
@click.option("--again", is_flag=True, help="First forget everything that was imported into this stream.")
def import_(
    stream: str,
    files: tuple[Path, ...],
    definitions: tuple[Path, ...],
    archive: Path,
    state: Path,
    arrival: str | None,
    delay: str | None,
    until: str | None,
    partition: str | None,
    offset: str | None,
    renamed: tuple[str, ...],
    without: tuple[str, ...],
    zone: str | None,
    skip_refused: bool,
    again: bool,
) -> None:
    """Bring existing history of a stream into its event archive, before the first event of its topic.

    FILE is Parquet, CSV, newline-delimited JSON or Arrow IPC, a folder of such files, or a Delta table. Its columns are
    those of the stream. Views and versions that are added later get this history by themselves (unskew run, unskew
    backfill); views that are computed already do not change.

    The pipeline may run or stand, but must have read the topic. All rows are checked before anything is written. An
    import that was stopped or killed continues with the same command; the same files are never taken twice.

    \b
    unskew import purchases exported/ --arrival loaded_at \\
        --definitions defs/ --archive archive --state state
    """
    from unskew.features.definitions.load import load
    from unskew.features.nearest import nearest
    from unskew.features.time import duration_us
    from unskew.pipelines.deployment import owner_of
    from unskew.pipelines.history.fitting import Arrivals
    from unskew.pipelines.history.importing import ImportJob, import_history
    from unskew.stopping import stopping_on_signals

    given = {"--arrival": arrival, "--partition": partition, "--offset": offset, "--zone": zone}
    repeated = {"--without": without, "--column": renamed}
    if empty := [name for name, value in given.items() if value == ""] + [
        name for name, values in repeated.items() if "" in values
    ]:
        raise RequestError(f"{empty[0]} is empty; give a value, or leave the option out")
    plan = load(*definitions)
    if stream not in plan.streams:
        raise RequestError(f"there is no stream {stream!r}; {nearest(stream, plan.streams, 'the definitions have')}")
    if plan.streams[stream].table is not None:
        raise RequestError(
            f"{stream} is a table, which is read where it lies; compute its views with unskew materialize"
        )
    if (arrival is None) == (delay is None):
        raise RequestError(
            "give either --arrival (the column that says when a row became available) or --delay (how long after its event time): a "
            "training row must not see what was not known yet"
        )
    if offset is not None and partition is None:
        raise RequestError("--offset needs --partition: offsets are those of a partition")
    if offset is not None and until is not None:
        raise RequestError(
            "--offset and --until exclude each other: with offsets, the topic takes over at its first one"
        )
    pairs = [one.partition("=") for one in renamed]
    if wrong := [name + sign + column for name, sign, column in pairs if not (name and column)]:
        raise RequestError(f"--column {wrong[0]}: write NAME=COLUMN, for example --column user_id=uid")
    try:
        delay_us = 0 if delay is None else duration_us(delay)
    except DefinitionError as error:
        raise RequestError(f"--delay {error}") from error
    stop = threading.Event()
    with stopping_on_signals(stop), phases(stream) as report:
        outcome = import_history(
            ImportJob(
                stream=plan.streams[stream],
                paths=files,
                archive=archive,
                state=state,
                owner=owner_of(f"the import into {stream}", state),
                arrivals=Arrivals(column=arrival, delay_us=delay_us),
                until_us=settings.instant_us("--until", until),
                partition=partition,
                offset=offset,
                renamed={name: column for name, _, column in pairs},
                without=frozenset(without),
                zone=zone,
                skip_refused=skip_refused,
                again=again,
            ),
            stop,
            report,
        )
    for line in outcome.lines():
        say(line)
