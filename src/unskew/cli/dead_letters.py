"""``unskew dead-letters``: look at records that could not be used, and send them again after a repair."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from unskew import settings
from unskew.cli.screen import Screen, say, say_json

if TYPE_CHECKING:
    import polars as pl

    from unskew.features.plan import Plan
    from unskew.offline.dead_letters import Letter, Wanted
    from unskew.pipelines.replay import Checks, Resend

_Command = TypeVar("_Command", bound=Callable[..., Any])
_SHOWN_BYTES = 256


@click.group("dead-letters")
def dead_letters() -> None:
    """Look at records that could not be used, and send them again.

    \b
    What came:      unskew dead-letters list --dead-letters data/dead_letters
    One of them:    unskew dead-letters show purchases/3/4711 \\
                        --dead-letters data/dead_letters
    Mend and send:  unskew dead-letters show --reason range -o letters.jsonl ...
                    (edit letters.jsonl: put the right object under "mended")
                    unskew dead-letters replay letters.jsonl --yes ...
    """


def _folders(command: _Command) -> _Command:
    return cast("_Command", settings.dead_letters(settings.optional_archive(command)))


def _filters(command: _Command) -> _Command:
    for option in (
        click.option("--until", metavar="INSTANT", help="Letters that arrived before it, in ISO 8601."),
        click.option("--since", metavar="INSTANT", help="Letters that arrived at it or later, in ISO 8601."),
        click.option("--reason", metavar="KIND|TEXT", help="Letters of one kind, or whose reason contains the text."),
        click.option(
            "--topic", "topics", multiple=True, metavar="TOPIC", help="Letters of a topic; may be given several times."
        ),
    ):
        command = option(command)
    return command


@dead_letters.command("list")
@_folders
@_filters
@click.option(
    "-n",
    "--rows",
    "--limit",
    "limit",
    default=50,
    show_default=True,
    type=click.IntRange(0),
    help="Number of latest letters to show; 0 shows only the counts. --limit is the same.",
)
@settings.as_json
def list_(
    dead_letters: Path | None,
    archive: Path | None,
    topics: tuple[str, ...],
    reason: str | None,
    since: str | None,
    until: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List letters, each record once, and count them by topic and kind.

    \b
    Example:
        unskew dead-letters list --topic purchases --reason truncated \\
            --since 2026-01-01T00:00:00Z
    """
    from unskew.features.folding import Rows, number, prose
    from unskew.features.showing import plain, shown
    from unskew.offline.dead_letters import find
    from unskew.pipelines.replay import REPLAYED, fates

    root = _root(dead_letters, archive)
    found = find(root, _wanted(topics, reason, since, until))
    sent = fates(root / REPLAYED)
    counts = found.group_by("topic", "kind").len().sort("topic", "len", "kind", descending=[False, True, False])
    if as_json:
        rows = [{name: plain(value) for name, value in row.items()} for row in found.tail(limit).iter_rows(named=True)]
        for row in rows:
            row["replayed"] = sent.get(f"{row['topic']}/{row['partition']}/{row['offset']}")
        totals = [{"topic": topic, "kind": kind, "letters": n} for topic, kind, n in counts.iter_rows()]
        say_json({"n_letters": found.height, "counts": totals, "letters": rows}, indent=2)
        return
    if found.is_empty():
        say("there are no such dead letters")
        return
    table = Rows(
        *("topic/partition/offset", "arrival", prose("view"), "kind", number("bytes"), "replayed", prose("reason"))
    )
    for row in found.tail(limit).iter_rows(named=True):
        place = f"{row['topic']}/{row['partition']}/{row['offset']}"
        cells = (
            place,
            shown(row["arrival"]),
            ", ".join(row["views"]) or "-",
            shown(row["kind"]),
            shown(row["value_bytes"]),
            sent.get(place, "-"),
            "; ".join(row["reasons"]),
        )
        table.add(*cells)
    by_kind = Rows("topic", "kind", number("letters"), keys=2, heading=[f"{found.height:,} letters"])
    for topic, kind, n_letters in counts.iter_rows():
        by_kind.add(topic, shown(kind), f"{n_letters:,}")
    console = Screen()
    if limit:
        console.print(table)
        console.print()
    console.print(by_kind)


@dead_letters.command(short_help="Show whole letters, or write them to a file to be mended.")
@click.argument("places", metavar="[TOPIC/PARTITION/OFFSET...]", nargs=-1)
@_folders
@_filters
@settings.optional_definitions
@settings.schema_registry
@settings.umask
@click.option(
    "-o",
    "--output",
    type=settings.LocalPath(),
    help="Write the letters to this file, one JSON object per line, to be mended.",
)
@settings.as_json
def show(
    places: tuple[str, ...],
    dead_letters: Path | None,
    archive: Path | None,
    topics: tuple[str, ...],
    reason: str | None,
    since: str | None,
    until: str | None,
    definitions: tuple[Path, ...],
    schema_registry: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Show whole letters: key, value, headers, reason; or write them to a file, to be mended and replayed.

    ``replay`` sends key, value and headers (base64) of each line of that file. If there is an object under ``mended``,
    it replaces the value: it is encoded as JSON, or as Avro with numbers as on the wire.

    \b
    Examples:
        unskew dead-letters show purchases/3/4711 --definitions definitions/
        unskew dead-letters show --reason range --output letters.jsonl \\
            --definitions definitions/
    """
    from unskew.features.definitions.load import load
    from unskew.features.errors import RequestError
    from unskew.offline.dead_letters import as_json as json_of
    from unskew.offline.dead_letters import find, letters

    if not places and output is None:
        raise RequestError(
            "no letter is given: give topic/partition/offset, or --output FILE for all that match the filters"
        )
    root = _root(dead_letters, archive)
    found = find(root, replace(_wanted(topics, reason, since, until), places=places))
    _refuse_missing(places, found)
    checks = _checks(load(*definitions), schema_registry) if definitions else None
    if output is not None:
        try:
            with output.open("x", encoding="utf-8") as file:
                for letter in letters(root, found):
                    file.write(json_of(letter, _decoded(checks, letter)) + "\n")
        except OSError as error:
            raise RequestError(f"{output}: {error.strerror}; name another file") from error
        say(f"{found.height} letters written to {output}")
        return
    if as_json:
        say(f"[{', '.join(json_of(letter, _decoded(checks, letter)) for letter in letters(root, found))}]")
        return
    for letter in letters(root, found):
        _print(letter, _decoded(checks, letter))


@dead_letters.command(short_help="Send letters again, mended or unchanged.")
@click.argument("file", required=False, type=settings.LocalPath())
@_folders
@_filters
@click.option(
    "--place",
    "places",
    multiple=True,
    metavar="TOPIC/PARTITION/OFFSET",
    help="One letter; may be given several times.",
)
@settings.some_definitions
@settings.optional_log
@settings.registry
@settings.bootstrap_servers
@settings.kafka_config
@settings.schema_registry
@settings.optional_state
@settings.umask
@click.option(
    "--yes", is_flag=True, help="Send the letters. Without it nothing is sent, and the command prints what would be."
)
@click.option(
    "--only-good",
    is_flag=True,
    help="Send the letters that are good now, and leave the others. Without it: all or none.",
)
@click.option("--again", is_flag=True, help="Also send letters that were sent before.")
@click.option(
    "--twice", is_flag=True, help="Also send letters that other views counted at first; these views count them again."
)
def replay(
    file: Path | None,
    dead_letters: Path | None,
    archive: Path | None,
    topics: tuple[str, ...],
    reason: str | None,
    since: str | None,
    until: str | None,
    places: tuple[str, ...],
    definitions: tuple[Path, ...],
    log: Path | None,
    registry: Path | None,
    bootstrap_servers: str,
    kafka_config: Path | None,
    schema_registry: str | None,
    state: Path | None,
    yes: bool,
    only_good: bool,
    again: bool,
    twice: bool,
) -> None:
    """Send letters again: the mended letters of FILE, or unchanged the letters that match the filters.

    Each letter is first checked with the current definitions - without --definitions, with what the log says of the
    views that were applied last - and, where nothing else says what schema ids mean, with
    the id with which its partition began: that is read from --state, or from the folder "state" beside the letters, if
    there is one. It becomes a new record of its topic and partition, with
    its key and headers. The record arrives now and keeps the event time of its value, so windows that have passed that
    time do not count it. What was sent is recorded beside the letters. Exits with 1 if a letter was refused, or not
    acknowledged by the broker.

    \b
    Examples:
        unskew dead-letters replay letters.jsonl --log log
            (says what would be sent)
        unskew dead-letters replay letters.jsonl --definitions defs/ --yes
        unskew dead-letters replay --reason schema --log log --yes
            (the schema was registered since)
    """
    from unskew.cli.known import plan_of
    from unskew.features.errors import RequestError, StoreUnavailable
    from unskew.offline.dead_letters import Mended, find, letters, read_mended
    from unskew.pipelines.kafka.client_settings import read_kafka_config
    from unskew.pipelines.replay import Memory, send

    if file is None and not (topics or reason or since or until or places):
        raise RequestError("no letter is given: give a file, --place, or filters; --topic TOPIC for a whole topic")
    root = _root(dead_letters, archive)
    config = {} if kafka_config is None else read_kafka_config(kafka_config)
    wanted = replace(_wanted(topics, reason, since, until), places=places)
    if file is not None:
        if topics or reason or since or until or places:
            raise RequestError("give a file or filters, not both")
        given = read_mended(file)
        wanted = replace(wanted, places=[each.letter.place for each in given])
    found = find(root, wanted)
    if file is None:
        _refuse_missing(places, found)
        given = [Mended(letter, None) for letter in letters(root, found)]
    else:
        _refuse_missing(wanted.places, found)
        # The folder determines which views could not use a letter, not the edited file.
        views = {letter.place: letter.views for letter in letters(root, found)}
        given = [Mended(replace(each.letter, views=views[each.letter.place]), each.mended) for each in given]
    checks = _checks(plan_of(definitions, log, registry), schema_registry, state or _state_beside(root))
    with Memory(root).open() as memory:
        good: list[Resend] = []
        refused = 0
        for each in given:
            record = _resend(each.letter)
            fault = None
            try:
                if each.mended is not None:
                    record = replace(record, value=checks.encoded(record, each.mended))
                elif each.letter.cut:
                    fault = "only a part of it was kept, so it cannot be sent unchanged"
                fault = fault or (None if again else memory.fault(record)) or checks.fault(record, twice=twice)
            except RequestError as error:
                fault = str(error).removeprefix(f"{record.place}: ")
            if fault is None:
                good.append(record)
            else:
                refused += 1
                say(f"{record.place}: refused: {fault}", err=True)
        if refused and not only_good:
            raise RequestError(
                f"{refused} of {len(given)} letters are refused, so nothing was sent: mend them, or send the others "
                "with --only-good"
            )
        if not yes:
            say(f"{len(good)} letters would be sent to {bootstrap_servers}; --yes sends them")
        elif good:
            failed = send(good, memory, {**config, "bootstrap.servers": bootstrap_servers})
            for record, why in failed:
                say(f"{record.place}: not acknowledged: {why}", err=True)
            say(f"{len(good) - len(failed)} letters sent")
            if failed:
                raise StoreUnavailable(
                    f"Kafka at {bootstrap_servers} did not acknowledge {len(failed)} of {len(good)} letters; it may "
                    "have them nevertheless: look into the topic, then send what is missing with --again"
                )
    if refused:
        raise click.exceptions.Exit(1)


def _root(dead_letters: Path | None, archive: Path | None) -> Path:
    from unskew.features.errors import RequestError

    if dead_letters is not None:
        return dead_letters
    if archive is None:
        raise RequestError("no folder of dead letters is given: give --dead-letters, or --archive of the run")
    return archive.with_name("dead_letters")


def _wanted(topics: tuple[str, ...], reason: str | None, since: str | None, until: str | None) -> "Wanted":
    from unskew.offline.dead_letters import Wanted

    return Wanted(topics=topics, reason=reason, since=_instant("--since", since), until=_instant("--until", until))


def _instant(option: str, text: str | None) -> datetime | None:
    from datetime import UTC

    from unskew.features.errors import RequestError

    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise RequestError(f"{option}: {text!r} is not an instant; write it as in 2026-01-31T12:00:00Z") from error
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def _refuse_missing(places: "tuple[str, ...] | list[str] | Any", found: "pl.DataFrame") -> None:
    from unskew.features.errors import RequestError

    there = {
        f"{topic}/{partition}/{offset}"
        for topic, partition, offset in found.select("topic", "partition", "offset").rows()
    }
    missing = [place for place in places if place not in there]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise RequestError(
            f"there is no dead letter {', '.join(each or repr(each) for each in missing[:3])}{more}; 'unskew dead-letters list' lists them"
        )


def _state_beside(root: Path) -> Path | None:
    from unskew.pipelines.state.folder import DEPLOYMENT
    from unskew.sinks.objects import concerns

    if concerns(root):
        # The state of a pipeline is on a disk.
        return None
    beside = root.with_name("state")
    return beside if (beside / DEPLOYMENT).exists() else None


def _checks(plan: "Plan", schema_registry: str | None, state: Path | None = None) -> "Checks":
    import threading

    from unskew.pipelines.replay import Checks

    schemas = None
    if schema_registry is not None:
        from unskew.pipelines.decoding.schema_registry import SchemaRegistry

        schemas = SchemaRegistry(schema_registry, threading.Event())
    return Checks(plan, schemas, state)


def _resend(letter: "Letter") -> "Resend":
    from unskew.pipelines.replay import Resend

    return Resend(
        letter.folder,
        letter.topic,
        letter.partition,
        letter.offset,
        letter.key,
        letter.value,
        letter.headers,
        letter.views,
    )


def _decoded(checks: "Checks | None", letter: "Letter") -> Any:
    import json

    if checks is not None:
        return checks.decoded(_resend(letter))
    try:
        return json.loads(letter.value or b"")
    except (ValueError, RecursionError):
        return None


def _print(letter: "Letter", decoded: Any) -> None:
    import json

    from unskew.features.time import format_instant

    say(letter.place)
    for name, text in (
        ("arrival", format_instant(letter.arrival)),
        ("views", ", ".join(letter.views) or "all: no view can use it"),
        ("kind", letter.kind or "-"),
        ("reason", letter.reason),
        ("key", _octets(letter.key)),
        (
            "value",
            _octets(letter.value) + (f"  ({letter.value_bytes:,} bytes)" if letter.value_bytes is not None else ""),
        ),
        *((f"header {name}", _octets(value)) for name, value in letter.headers or ()),
        ("cut", "yes: only its beginning was kept") if letter.cut else ("cut", "no"),
        ("decoded", "-" if decoded is None else json.dumps(decoded, ensure_ascii=True)[: _SHOWN_BYTES * 8]),
    ):
        say(f"  {name:10} {text}")


def _octets(octets: bytes | None) -> str:
    """Return bytes in hexadecimal, followed by their text if they are printable."""
    if octets is None:
        return "null"
    part = octets[:_SHOWN_BYTES]
    text = part.decode(errors="replace")
    more = "..." if len(octets) > len(part) else ""
    return f"{part.hex(' ')}{more}" + (f"  {text!r}" if part and text.isprintable() else "")
