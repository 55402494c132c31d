"""Replay of dead letters: check them against the present definitions, send them, and record what was acknowledged.

The order of steps is the contract: letters about to be sent are recorded and fsynced, then sent, and those that were
acknowledged are recorded. So a letter whose fate is open after a crash is known as one that may have been sent.
"""

import contextlib
import fcntl
import io
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import fastavro
import numpy as np
from confluent_kafka import KafkaException, Producer
from tenacity import Retrying, retry_if_exception_type, wait_fixed

from unskew.features.definitions.avro_schema import avro_fields
from unskew.features.errors import RequestError, StoreUnavailable
from unskew.features.evaluate import Evaluator
from unskew.features.plan import Plan, StreamPlan, ViewPlan
from unskew.pipelines.decoding.avro import decoder_of
from unskew.pipelines.decoding.reading import without_logical_types
from unskew.pipelines.decoding.resolve import Incompatible
from unskew.pipelines.decoding.writers import Schemas
from unskew.pipelines.kafka.blobs import Blobs
from unskew.pipelines.kafka.headers import Headers
from unskew.pipelines.kafka.poll import FRAME_BYTES, Poll
from unskew.pipelines.state.folder import schema_ids_of
from unskew.pipelines.state.journal import place_of
from unskew.sinks import durable
from unskew.sinks.objects import ObjectPath, Superseded, Version
from unskew.sinks.wall import wall_us

REPLAYED = "_replayed.jsonl"
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Resend:
    """A record to send again: its origin and its present content."""

    folder: str
    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] | None
    views: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """The letter's ``topic/partition/offset``."""
        return f"{self.topic}/{self.partition}/{self.offset}"


class Checks:
    """Checks, with the present definitions, of a record that would be sent.

    ``state``: the pipeline's state, which knows with which schema ids partitions began; if None, any id is taken as
    that of the stream's schema where nothing else says what ids mean. Raises ``DefinitionError`` where ``unskew run``
    would, and ``LayoutError`` if there is no such state.
    """

    def __init__(self, plan: Plan, schemas: Schemas | None, state: Path | None = None) -> None:
        self._plan = plan
        self._schemas = schemas
        self._streams = {view.stream.topic: view.stream for view in plan.views.values()}
        self._views = {
            topic: [view for view in plan.views.values() if view.stream.topic == topic] for topic in self._streams
        }
        self._began = {} if state is None else schema_ids_of(state, self._streams)
        self._decoders = {
            topic: decoder_of(stream, schemas, self._began.get(topic)) for topic, stream in self._streams.items()
        }
        self._evaluators = {view.id: Evaluator(view) for view in plan.views.values()}

    def stream(self, folder: str) -> StreamPlan:
        """Return the stream whose letters lie in a folder. Raises ``RequestError`` if no view reads it."""
        if folder not in self._streams:
            raise RequestError(f"no view reads topic {folder!r}; topics read are {', '.join(sorted(self._streams))}")
        return self._streams[folder]

    def fault(self, record: Resend, *, twice: bool) -> str | None:
        """Return why a record must not be sent; None if it is an event that every view can take.

        ``twice``: allow a record that some views have counted already.
        """
        stream = self.stream(record.folder)
        place, schema_id = self._beginning(record)
        found = self._decoders[record.folder].decode(_poll(stream, record, wall_us(), place=place, schema_id=schema_id))
        if found.dead.height:
            return str(found.dead.item(0, "reason"))
        if not found.events.height:
            return "it is not an event of the stream: its record type or its operation is none of those that the stream reads"
        for view in self._views[record.folder]:
            if (rejected := self._evaluators[view.id](found.events).rejected).height:
                return str(rejected.item(0, "reason"))
        counted = [view.id for view in self._views[record.folder] if record.views and not self._refused(view, record)]
        if counted and not twice:
            return (
                f"{', '.join(counted)} counted it when it first came and would count it again; --twice sends it anyway"
            )
        return None

    def _refused(self, view: ViewPlan, record: Resend) -> bool:
        """Return whether a view could not use a record when it first came.

        Letters once named no version; such a name does not say which of several versions could not use the record.
        """
        alone = len(self._plan.views.versions(view.name)) == 1
        return view.id in record.views or (alone and view.name in record.views)

    def _beginning(self, record: Resend) -> tuple[str, int | None]:
        """Return the place of a record's partition, and the schema id with which it began; None if nobody knows.

        A partition that has not begun must begin as the others did, because the pipeline stops otherwise.
        """
        place = place_of(record.folder, f"{record.topic}/{record.partition}")
        began = self._began.get(record.folder, {})
        return place, began.get(place, next(iter(began.values()), None))

    def decoded(self, record: Resend) -> Any:
        """Return what can be read of the value, as JSON-able data; None if nothing can."""
        value = record.value
        if not value:
            return None
        stream = self._streams.get(record.folder)
        with contextlib.suppress(ValueError, RecursionError):
            bare = value[FRAME_BYTES:] if value[:1] == b"\0" else value
            if stream is None or stream.format == "json":
                return json.loads(bare)
        if stream is None or stream.format == "json":
            return None
        if stream.flat is not None or stream.format == "protobuf":
            return self._as_written(stream, value)
        found = self._decoders[record.folder].decode(_poll(stream, record, 0)).events
        return _written(found.select(list(avro_names(stream))).row(0, named=True)) if found.height else None

    def _as_written(self, stream: StreamPlan, value: bytes) -> Any:
        """Return the record as its writer wrote it, with what its columns are taken from; None if it cannot be read."""
        with contextlib.suppress(Exception):
            if stream.format == "protobuf":
                from unskew.pipelines.decoding.protobuf import as_data  # noqa: PLC0415 - its packages are an extra

                assert self._schemas is not None
                return as_data(self._schemas.files(_schema_id(value)), value)
            schema: Any = stream.schema
            if self._schemas is not None:
                schema = self._schemas.writer(_schema_id(value))
            parsed = fastavro.parse_schema(without_logical_types(schema))
            return _plain(fastavro.schemaless_reader(io.BytesIO(value[FRAME_BYTES:]), parsed, None))
        return None

    def encoded(self, record: Resend, mended: Any) -> bytes:
        """Encode ``mended`` as JSON, or as Avro or Protobuf with the schema whose id the letter carried.

        Without a registry, that is the stream's schema, whose id replaces one that means another.

        Raises ``RequestError`` if it cannot be encoded.
        """
        stream = self.stream(record.folder)
        old = record.value or b""
        frame = old[:FRAME_BYTES] if len(old) >= FRAME_BYTES and old[0] == 0 else b""
        if stream.format == "json":
            return frame + (mended if isinstance(mended, str) else json.dumps(mended, ensure_ascii=False)).encode()
        if not frame and self._schemas is not None:
            raise RequestError(
                f"{record.place}: its value does not name a schema, so it cannot be encoded again; give its bytes"
            )
        if self._schemas is None:
            # It is written with the stream's schema, so its id must mean that.
            accepted = stream.schema_ids or tuple(each for each in [self._beginning(record)[1]] if each is not None)
            if accepted and (not frame or _schema_id(frame) not in accepted):
                frame = b"\0" + accepted[0].to_bytes(FRAME_BYTES - 1, "big")
        frame = frame or bytes(FRAME_BYTES)
        body = io.BytesIO()
        try:
            schema: Mapping[str, Any] = stream.schema
            if self._schemas is not None:
                if stream.format == "protobuf":
                    from unskew.pipelines.decoding.protobuf import encoded  # noqa: PLC0415 - its packages are an extra

                    return encoded(self._schemas.files(_schema_id(frame)), old, mended)
                schema = self._schemas.writer(_schema_id(frame))
            fastavro.schemaless_writer(body, fastavro.parse_schema(without_logical_types(schema)), mended, strict=True)
        except Incompatible as error:
            raise RequestError(f"{record.place}: {error}") from error
        # Both libraries raise various errors for a value that does not fit.
        except Exception as error:
            raise RequestError(
                f"{record.place}: the value under mended does not fit the schema ({type(error).__name__}: {error}); "
                "write numbers as on the wire, and logical types as their numbers"
            ) from error
        return frame + body.getvalue()


def avro_names(stream: StreamPlan) -> Iterable[str]:
    """Return the columns of a stream that come from its values."""
    known = {field.name for field in avro_fields(stream.reader)}
    return [name for name in stream.columns if name in known]


class Memory:
    """The record of replayed letters: a file beside the letters, with one writer at a time.

    A line is written before a letter is sent, and another after it was acknowledged. In an object store the record is
    replaced each time, if it is the one before; so of two replays at once one stops.
    """

    def __init__(self, root: Path) -> None:
        self.path = root / REPLAYED
        self._fates: dict[str, str] = {}

    @contextlib.contextmanager
    def open(self) -> Iterator["Memory"]:
        """Read the file and lock it against other replays. Raises ``RequestError`` if another replay holds the lock."""
        if isinstance(self.path, ObjectPath):
            self._object = _Record(self.path)
            self._fates = _fates(self._object.content)
            yield self
            return
        try:
            file = self.path.open("a+b")
        except OSError as error:
            raise StoreUnavailable(f"{self.path}: {error.strerror}; replays are recorded there") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RequestError(f"{self.path}: another replay is running; wait for it") from error
            with durable.disk(self.path.parent):
                # The record is found after a crash only if the file's name is durable too.
                durable.sync(self.path.parent)
            self._fates = fates(self.path)
            self._file = file
            yield self

    def fault(self, record: Resend) -> str | None:
        """Return why a letter must not be sent once more; None if it may be."""
        fate = self._fates.get(record.place)
        if fate is None:
            return None
        said = "was sent again already" if fate == "sent" else "may have been sent: a replay was interrupted"
        return f"it {said}; --again sends it once more"

    def write(self, records: Sequence[Resend], fate: str) -> None:
        """Record durably what happened to letters."""
        at = int(time.time())
        lines = []
        for record in records:
            line = {
                "topic": record.topic,
                "partition": record.partition,
                "offset": record.offset,
                "fate": fate,
                "at": at,
            }
            lines.append(json.dumps(line).encode() + b"\n")
            self._fates[record.place] = fate
        if isinstance(self.path, ObjectPath):
            self._object.append(b"".join(lines))
            return
        self._file.write(b"".join(lines))
        durable.flush(self._file)


class _Record:
    """An object to which only one process at a time can append."""

    def __init__(self, path: ObjectPath) -> None:
        self._path = path
        self._version: Version | None = None
        self.content = b""
        with contextlib.suppress(FileNotFoundError):
            self.content, self._version = path.versioned()

    def append(self, data: bytes) -> None:
        try:
            self._version = self._path.replace_if(self.content + data, self._version)
        except Superseded as error:
            raise RequestError(f"{self._path}: another replay is running; wait for it") from error
        self.content += data


def fates(path: Path) -> dict[str, str]:
    """Return the known fate of letters by place, ``sending`` or ``sent``; a line that a crash cut off is ignored."""
    try:
        return _fates(path.read_bytes())
    except FileNotFoundError:
        return {}


def _fates(content: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in content.splitlines():
        try:
            line = json.loads(text)
            found[f"{line['topic']}/{line['partition']}/{line['offset']}"] = str(line["fate"])
        except (ValueError, KeyError, TypeError):
            continue
    return found


def send(
    records: Sequence[Resend], memory: Memory, config: Mapping[str, Any], *, timeout_s: float = _TIMEOUT_S
) -> list[tuple[Resend, str]]:
    """Send records, each to its original partition, and return those that were not acknowledged, with reasons.

    Their timestamp is the present: each is a new record with a new arrival. ``config``: settings of the client,
    including ``bootstrap.servers``.
    """
    memory.write(records, "sending")
    failed: list[tuple[Resend, str]] = []
    done: set[str] = set()
    producer = Producer(
        {
            "log_level": 2,
            **config,
            "acks": "all",
            "enable.idempotence": True,
            "message.timeout.ms": int(timeout_s * 1000),
            "message.max.bytes": 1_000_000_000,
        }
    )
    # Raised if the client's queue is full; polling makes room.
    in_turn = Retrying(
        retry=retry_if_exception_type(BufferError), wait=wait_fixed(0.1), sleep=cast("Any", producer.poll)
    )
    for record in records:
        headers = None if record.headers is None else list(record.headers)
        try:
            in_turn(
                producer.produce,
                record.topic,
                record.value,
                record.key,
                partition=record.partition,
                headers=cast("Any", headers),
                on_delivery=_noting(record, done, failed),
            )
        except KafkaException as error:
            failed.append((record, error.args[0].str()))
            done.add(record.place)
        producer.poll(0)
    # Each message times out before this call does.
    producer.flush(timeout_s + 10)
    failed += [(record, "the broker did not answer") for record in records if record.place not in done]
    lost = {record.place for record, _ in failed}
    memory.write([record for record in records if record.place not in lost], "sent")
    return failed


def _noting(record: Resend, done: set[str], failed: list[tuple[Resend, str]]) -> Callable[[Any, Any], None]:
    def note(error: Any, _message: Any) -> None:
        done.add(record.place)
        if error is not None:
            failed.append((record, str(error.str())))

    return note


def _schema_id(value: bytes) -> int:
    return int.from_bytes(value[1:FRAME_BYTES], "big")


def _poll(
    stream: StreamPlan, record: Resend, arrival_us: int, *, place: str = "", schema_id: int | None = None
) -> Poll:
    return Poll(
        stream.name,
        record.partition,
        arrival_us,
        False,
        np.array([record.offset], np.int64),
        np.array([arrival_us], np.int64),
        Blobs.of([record.key]),
        Blobs.of([record.value]),
        [],
        headers=Headers.of([record.headers]),
        place=place,
        schema_id=schema_id,
    )


def _plain(value: Any) -> Any:
    """Return a record as JSON-able data."""
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def _written(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as JSON-able data for people."""
    return {
        name: value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
        for name, value in row.items()
    }
