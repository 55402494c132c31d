"""``unskew produce``: send events to a stream's topic, from a file or made up."""

import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from unskew import settings
from unskew.cli.screen import phases, say

if TYPE_CHECKING:
    from unskew.features.plan import StreamPlan
    from unskew.pipelines.decoding.schema_registry import SchemaRegistry
    from unskew.pipelines.kafka.sending import Sender
    from unskew.pipelines.producing.job import Sent, Stamps

_SAMPLED = 1_000


@click.command()
@click.argument("topic", required=False)
@click.argument("file", metavar="[FILE|-]", required=False)
@settings.definitions
@settings.bootstrap_servers
@settings.kafka_config
@settings.schema_registry
@click.option("--sample", metavar="STREAM", help="Make events up from a stream's schema, instead of reading FILE.")
@click.option(
    "-n",
    "--rows",
    type=click.IntRange(1),
    help="Number of events.  [default: all; made up 1,000, or with --rate until it is stopped]",
)
@click.option("--rate", type=click.FloatRange(0, min_open=True), help="Events in a second.  [default: at once]")
@click.option(
    "--shift-to-now",
    is_flag=True,
    help="Move all event times by the same time, as far as none lies in the future when its event is sent.",
)
@click.option(
    "--timestamps",
    type=click.Choice(["now", "event-time"]),
    default="now",
    show_default=True,
    help="The records' timestamps, from which the pipeline takes arrivals: when they are sent, or when they happened.",
)
@click.option("--skip-bad", is_flag=True, help="Leave out rows that are not events of the stream, and count them.")
@click.option("--create-topic", type=click.IntRange(1), metavar="PARTITIONS", help="Create the topic if it is missing.")
@click.option(
    "--partitioner",
    type=click.Choice(["crc32", "murmur2"]),
    default="crc32",
    show_default=True,
    help="Hash of the key that chooses the partition, as other producers of the topic do: librdkafka's, or Java's.",
)
@click.option(
    "--schema-id",
    type=click.IntRange(0, 2**31 - 1),
    help="Id of the schema in Avro and Protobuf.  [default: the latest in the registry; without one, that of the stream "
    "or of the topic's first record]",
)
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="What --sample is made from.")
@click.option("--keys", type=click.IntRange(1), default=20, show_default=True, help="Different keys in --sample.")
@click.option(
    "--over",
    default="1h",
    show_default=True,
    metavar="DURATION",
    help="Time up to now over which --sample spreads events; with --rate they happen as they are sent.",
)
def produce(
    topic: str | None,
    file: str | None,
    definitions: tuple[Path, ...],
    bootstrap_servers: str,
    kafka_config: Path | None,
    schema_registry: str | None,
    sample: str | None,
    rows: int | None,
    rate: float | None,
    shift_to_now: bool,
    timestamps: str,
    skip_bad: bool,
    create_topic: int | None,
    partitioner: str,
    schema_id: int | None,
    seed: int,
    keys: int,
    over: str,
) -> None:
    """Send events to a stream's TOPIC, encoded as its definition says: those of FILE, or made up from its schema.

    FILE has JSON lines, CSV (both also with .gz), Parquet or Arrow; - reads JSON lines from standard input. Its fields
    are those of the schema. TOPIC may also be the name of the stream. Record keys and partitions follow partitioned_by.

    At the first row that is not an event it stops, having sent the rows before. Ctrl-C ends it once the broker has
    what was sent.

    \b
    Examples:
        unskew produce transactions events.jsonl --shift-to-now
        unskew produce transactions history.parquet --timestamps event-time
        tail -f new.jsonl | unskew produce transactions -
        unskew produce --sample transactions --rate 20
    """
    from unskew.stopping import stopping_on_signals

    if sample is None and (topic is None or file is None):
        raise click.UsageError("give TOPIC and FILE (- for standard input), or --sample STREAM")
    if sample is not None and file is not None:
        raise click.UsageError("--sample makes events up: give either it or FILE")
    stop = threading.Event()
    with stopping_on_signals(stop):
        # Under the handlers: these imports take a while, and the order to stop may come meanwhile.
        from unskew.features.definitions.load import load
        from unskew.features.errors import RequestError
        from unskew.features.time import MIN_INSTANT_US
        from unskew.pipelines.kafka import sending
        from unskew.pipelines.kafka.client_settings import read_kafka_config
        from unskew.pipelines.producing.encoding import Encoder, wire_of
        from unskew.pipelines.producing.job import Job, send, shift_by, stream_of, topic_of
        from unskew.pipelines.producing.rows import source_of
        from unskew.pipelines.producing.sample import Span, sample_of

        over_us = settings.duration_us("--over", over)
        if sample is not None and _present_us() - over_us < MIN_INSTANT_US:
            raise RequestError(f"--over {over} begins before the year 1900, and events do not; give a shorter one")
        plan = load(*definitions)
        stream = stream_of(plan, sample or topic or "")
        name = topic_of(stream, topic)
        config = {} if kafka_config is None else read_kafka_config(kafka_config)
        registry = _registry(schema_registry, stop)
        source = None if file is None else source_of(file, stop.is_set)
        if create_topic is not None and sending.create_topic(name, create_topic, bootstrap_servers, config):
            say(f"created topic {name} with {create_topic} partition{'s' if create_topic > 1 else ''}")
        sender = sending.Sender(name, bootstrap_servers, config)
        written_with = schema_id_of(stream, registry, sender) if schema_id is None else schema_id
        wire = wire_of(stream, registry, written_with, text=source is not None and source.is_text)
        if source is None:
            rows = _SAMPLED if rows is None and rate is None else rows
            span = Span(present_us=_present_us, over_us=over_us, rate=rate)
            source = sample_of(plan, stream, span, wire, seed=seed, n_rows=rows, n_keys=keys)
        job = Job(
            source=source,
            encoder=Encoder(stream, wire, text=source.is_text),
            partitioner=partitioner,
            rate=rate,
            most=rows,
            stamps=cast("Stamps", timestamps),
            skips=skip_bad,
            remedy="this is a fault of unskew: report it with the schema"
            if file is None
            else "correct it, or leave such rows out with --skip-bad",
        )
        with phases(f"{source.name} to {name}") as report:
            if shift_to_now:
                job = shift_by(job, _present_us, stop)
            begun_s = time.monotonic()
            sent = send(job, sender, stop, lambda n: report("sent", n, rows or 0))
    _sum_up(sent, sender, time.monotonic() - begun_s)
    if sent.stopped and not (file is None and rows is None):
        raise click.exceptions.Exit(130)


def _present_us() -> int:
    return time.time_ns() // 1000


def _registry(url: str | None, stop: threading.Event) -> "SchemaRegistry | None":
    if url is None:
        return None
    from unskew.pipelines.decoding.schema_registry import SchemaRegistry

    return SchemaRegistry(url, stop)


def schema_id_of(stream: "StreamPlan", registry: "SchemaRegistry | None", sender: "Sender") -> int:
    """Return the id of the schema with which messages are written, as they carry it."""
    from unskew.features.errors import RequestError
    from unskew.pipelines.decoding.resolve import Unregistered

    if stream.format == "json":
        return 0
    if registry is not None:
        subject = f"{sender.topic}-value"
        try:
            return registry.latest(subject)
        except Unregistered as error:
            raise RequestError(
                f"Schema Registry {registry.shown} has no subject {subject}; register the schema there, or name its id with "
                "--schema-id"
            ) from error
    if stream.schema_ids:
        return stream.schema_ids[0]
    found = sender.first_schema_id()
    return 1 if found is None else found


def _sum_up(sent: "Sent", sender: "Sender", took_s: float) -> None:
    for fault in sent.faults:
        say(f"left out: {fault}", err=True)
    if sent.skipped > len(sent.faults):
        say(f"left out: {sent.skipped - len(sent.faults):,} more", err=True)
    n, parts = sender.delivered, sender.n_partitions
    left_out = f", {sent.skipped:,} left out" if sent.skipped else ""
    say(
        f"{'stopped: ' if sent.stopped else ''}{n:,} event{'' if n == 1 else 's'} sent to {sender.topic} "
        f"({parts} partition{'s' if parts > 1 else ''}) in {took_s:.1f} s{left_out}"
    )
