"""Decoding of polls: what is the same for every format, which is instants, keys, headers and dead letters."""

import itertools
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.features.plan import StreamPlan
from unskew.features.rejection import Kind, Rejection, clear
from unskew.features.selecting import framed
from unskew.features.time import format_duration
from unskew.pipelines.decoding.columns import Refusals, texts
from unskew.pipelines.decoding.conversions import converted
from unskew.pipelines.kafka.blobs import Blobs
from unskew.pipelines.kafka.headers import Header, Headers
from unskew.pipelines.kafka.poll import Poll
from unskew.sinks.tables.kinds import DEAD_LETTER_SCHEMA

INSTANT = pl.Datetime("us", "UTC")

_KEY_BYTES = {"int64": (8, pl.Int64()), "int32": (4, pl.Int32())}

Read = tuple[npt.NDArray[np.int64], pl.DataFrame]
"""Places in a poll, ascending, and the columns read from the values there."""

Refused = tuple[int, int, Rejection, bytes | None, bytes | None, Sequence[Header] | None]
"""Offset, arrival in microseconds, reason, key, value, headers."""

KEPT_BYTES = 1 << 20
"""A dead letter keeps so many bytes of its key, of its value and of its headers.

If they were longer, it also records how long they were.
"""

Result = TypeVar("Result")

_log = logging.getLogger("unskew.decode")


class BadMessage(Exception):
    """A message that is not an event; its text is the reason."""

    def __init__(self, kind: Kind, reason: str) -> None:
        super().__init__(reason)
        self.rejection = Rejection(kind, reason)


class Ignored(Exception):
    """A message that is not meant to be an event of the stream."""


class InOnePiece:
    """A reader of a topic's batches in one piece; the first time that this fails, it logs a warning."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._warned = False

    def __call__(self, read: Callable[[], Result]) -> Result | None:
        """Return what ``read`` returns; None if it fails, so that the messages must be read one by one."""
        try:
            return read()
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        # Whatever makes Polars fail, even a Rust panic (a BaseException), reading one by one finds the message.
        except BaseException as error:  # noqa: BLE001
            if not self._warned:
                self._warned = True
                _log.warning(
                    "Topic %r: a batch could not be read in one piece (%s); reading it one by one", self._topic, error
                )
            return None


def one_by_one(
    rows: npt.NDArray[np.int64],
    values: Iterable[bytes | None],
    reasons: dict[int, Rejection],
    read_one: Callable[[bytes | None], tuple[Any, ...]],
) -> tuple[npt.NDArray[np.int64], list[tuple[Any, ...]]]:
    """Return the places among ``rows`` of readable values, and what was read; note a reason for each other.

    ``values``: those at ``rows``, in the same order.
    """
    read: list[int] = []
    records: list[tuple[Any, ...]] = []
    for row, value in zip(rows.tolist(), values, strict=True):
        try:
            records.append(read_one(value))
        except BadMessage as bad:
            reasons[row] = bad.rejection
        except Ignored:
            continue
        else:
            read.append(row)
    return np.array(read, np.int64), records


def other_operation(stream: StreamPlan, operation: str) -> Exception:
    """Return what a change event is whose operation does not make events of a stream."""
    if not stream.refuses_others:
        return Ignored()
    return BadMessage("operation", f"its operation is {operation!r}; events are {', '.join(stream.operations)}")


class Decoded(msgspec.Struct, frozen=True):
    """A poll after decoding.

    ``events``: columns as ``StreamPlan.columns``, then ``_partition``, ``_offset``, ``_arrival``, ``_event_time``
    (never null), in offset order. ``dead``: columns as ``DEAD_LETTER_SCHEMA``, in offset order.
    """

    stream: str
    partition: int
    clock_us: int | None
    ended: bool
    events: pl.DataFrame
    dead: pl.DataFrame


class Decoder(ABC):
    """The decoder of a stream's polls.

    ``topic``: the stream's topic. ``payload``: columns that come from a record's value, with their types.
    ``incompatible``: number of messages so far whose writer's schema cannot be read as the stream's. ``ignored``:
    number of messages so far that are not meant to be events of the stream, and so are no dead letters either.
    ``asks``: whether the outcome of a message may depend on another server's answer.
    """

    asks = False

    def __init__(self, stream: StreamPlan) -> None:
        self.topic = stream.topic
        self.incompatible = 0
        self.ignored = 0
        self._stream = stream
        elsewhere = {stream.key_column, *stream.headers}
        self.payload = {column: dtype for column, dtype in stream.columns.items() if column not in elsewhere}
        # Columns that are converted once they are read have another type before; for ``_read`` none is the event time.
        self._event_time = "" if stream.event_time in stream.read_as else stream.event_time
        self._no_events = pl.DataFrame(
            schema={
                **stream.columns,
                "_partition": pl.Int32(),
                "_offset": pl.Int64(),
                "_arrival": INSTANT,
                "_event_time": INSTANT,
            }
        )
        self._no_dead = pl.DataFrame(schema=DEAD_LETTER_SCHEMA)

    def decode(self, poll: Poll) -> Decoded:
        """Decode a poll; every record of it is in ``events`` or in ``dead``, or is counted in ``ignored``."""
        return self.decode_together([poll])[1][0]

    def decode_together(self, polls: Sequence[Poll]) -> tuple[pl.DataFrame, list[Decoded]]:
        """Decode polls of different partitions at once, because a poll has a fixed cost.

        Return the events of all, in the order of the polls, and what ``decode`` returns for each. All have the same
        ``schema_id`` and the same ``decided``.
        """
        lengths = [len(poll.values) for poll in polls]
        bounds = [0, *itertools.accumulate(lengths)]
        together = polls[0] if len(polls) == 1 else _joined(polls)
        reasons: dict[int, Rejection] = {}
        rows, events = np.empty(0, np.int64), self._no_events
        if len(together.values):
            rows, frame = self._read(together, reasons)
            self.ignored += len(together.values) - len(rows) - len(reasons)
            if self._stream.read_as and len(rows):
                rows, frame = self._convert(rows, frame, reasons)
            if len(rows):
                partitions = np.repeat(np.array([poll.partition for poll in polls], np.int32), lengths)
                rows, events = self._finish(together, partitions, rows, frame, reasons)
        # Slicing a frame costs more than all else that a partition without events needs.
        places = np.searchsorted(rows, bounds).tolist() if events.height and len(polls) > 1 else []
        decoded = [
            Decoded(
                stream=poll.stream,
                partition=poll.partition,
                clock_us=poll.clock_us,
                ended=poll.ended,
                events=events[places[number] : places[number + 1]] if places else events,
                dead=self._dead(poll, _between(reasons, bounds[number], bounds[number + 1])),
            )
            for number, poll in enumerate(polls)
        ]
        return events, decoded

    def _convert(self, rows: npt.NDArray[np.int64], frame: pl.DataFrame, reasons: dict[int, Rejection]) -> Read:
        """Convert the columns whose way of reading is declared; refuse the rows that cannot be converted."""
        refusals = Refusals(rows, reasons)
        columns = [
            converted(frame[name], form, refusals, event_time=name == self._stream.event_time)
            for name, form in self._stream.read_as.items()
        ]
        return refusals.of(frame.with_columns(columns))

    @abstractmethod
    def _read(self, poll: Poll, reasons: dict[int, Rejection]) -> Read:
        """Return the readable values, as ``payload``, with an event time; note a reason for each other, by place.

        Columns of ``read_as`` are as the schema gives them. Values that are neither returned nor have a reason are
        ignored.
        """

    def _finish(
        self,
        poll: Poll,
        partitions: npt.NDArray[np.int32],
        rows: npt.NDArray[np.int64],
        frame: pl.DataFrame,
        reasons: dict[int, Rejection],
    ) -> Read:
        """Add the columns that do not come from the value; refuse events that are too old."""
        stream = self._stream
        refusals = Refusals(rows, reasons)
        more = []
        if stream.key_column is not None:
            more.append(_key_column(stream.key_column, stream.key_format, poll, rows, refusals))
        more += [_header_column(column, header, poll, rows, refusals) for column, header in stream.headers.items()]
        arrivals = pl.Series("_arrival", poll.arrivals[rows])
        event_times = frame.get_column(stream.event_time)
        if stream.max_age_us is not None:
            age = format_duration(stream.max_age_us)
            too_old = arrivals - event_times.cast(pl.Int64) > stream.max_age_us
            refusals.refuse(too_old, "time", lambda _: f"older than max_age ({age})")
        found = [
            *frame.get_columns(),
            *more,
            pl.Series("_partition", partitions[rows]),
            pl.Series("_offset", poll.offsets[rows]),
            arrivals.cast(INSTANT),
            event_times.alias("_event_time"),
        ]
        # Not by queries, each of which would cost more than the few rows of most polls.
        columns = {column.name: column for column in found}
        return refusals.of(framed([columns[name] for name in self._no_events.columns]))

    def _dead(self, poll: Poll, reasons: Mapping[int, Rejection]) -> pl.DataFrame:
        if not reasons and not poll.rejected:
            return self._no_dead
        topic, partition = poll.origin or (self.topic, poll.partition)
        return letters(
            topic,
            partition,
            None,
            [
                *(
                    (bad.offset, bad.arrival, Rejection(bad.kind, bad.reason), bad.key, bad.value, bad.headers)
                    for bad in poll.rejected
                ),
                *(
                    (
                        int(poll.offsets[row]),
                        int(poll.arrivals[row]),
                        why,
                        poll.keys[row],
                        poll.values[row],
                        poll.headers_at(row),
                    )
                    for row, why in reasons.items()
                ),
            ],
        )


def _joined(polls: Sequence[Poll]) -> Poll:
    """Return one poll with the records of several, one after the other."""
    headers = None
    if any(poll.headers is not None for poll in polls):
        headers = Headers.joined(
            [Headers.none(len(poll.values)) if poll.headers is None else poll.headers for poll in polls]
        )
    return msgspec.structs.replace(
        polls[0],
        offsets=np.concatenate([poll.offsets for poll in polls]),
        arrivals=np.concatenate([poll.arrivals for poll in polls]),
        keys=Blobs.joined([poll.keys for poll in polls]),
        values=Blobs.joined([poll.values for poll in polls]),
        headers=headers,
    )


def _between(reasons: Mapping[int, Rejection], begin: int, end: int) -> dict[int, Rejection]:
    """Return the reasons for the rows of one of several polls, by their places in it."""
    return {row - begin: why for row, why in reasons.items() if begin <= row < end} if reasons else {}


def letters(topic: str, partition: int, view: str | None, refused: Iterable[Refused]) -> pl.DataFrame:
    """Return dead letters of one partition, columns as ``DEAD_LETTER_SCHEMA``, in offset order.

    Very long content is cut. ``partition``: of ``topic``, both as on the broker. ``view``: the view that cannot take
    them; None if no view can.
    """
    rows = [
        (
            topic,
            partition,
            offset,
            arrival,
            view,
            clear(why.reason),
            None if key is None else key[:KEPT_BYTES],
            None if value is None else value[:KEPT_BYTES],
            why.kind,
            None if key is None else len(key),
            None if value is None else len(value),
            *_kept_headers(headers),
        )
        for offset, arrival, why, key, value, headers in refused
    ]
    plain = pl.Schema({**DEAD_LETTER_SCHEMA, "arrival": pl.Int64()})
    return pl.DataFrame(rows, schema=plain, orient="row").cast(pl.Schema(DEAD_LETTER_SCHEMA)).sort("offset")


def _kept_headers(headers: Sequence[Header] | None) -> tuple[list[dict[str, Any]] | None, int | None]:
    """Return the first headers that are short enough together, and the number of all headers."""
    if headers is None:
        return None, None
    kept, left = [], KEPT_BYTES
    for name, value in headers:
        left -= len(name.encode()) + len(value or b"")
        if left < 0:
            break
        kept.append({"name": name, "value": value})
    return kept, len(headers)


def merged(parts: Sequence[Read], empty: pl.DataFrame) -> Read:
    """Join parts of one poll that were read separately, in the poll's order."""
    parts = [part for part in parts if len(part[0])]
    if not parts:
        return np.empty(0, np.int64), empty
    if len(parts) == 1:
        return parts[0]
    rows = np.concatenate([rows for rows, _ in parts])
    order = np.argsort(rows)
    return rows[order], pl.concat([frame for _, frame in parts])[order]


def _key_column(column: str, key_format: str, poll: Poll, rows: npt.NDArray[np.int64], refusals: Refusals) -> pl.Series:
    """Return the record keys; null if a record has none.

    They are UTF-8 text, or a big-endian integer as Kafka's own serializers write it.
    """
    blobs = poll.keys.at(rows)
    keys = blobs.series(column)
    if key_format == "string":
        return texts(keys, refusals, "key", "the record key")
    size, dtype = _KEY_BYTES[key_format]
    if (blobs.sizes == size).all():
        return pl.Series(column, blobs.data.view(f">i{size}").astype(np.int64))
    bad = keys.bin.size() != size
    refusals.refuse(bad, "key", lambda at: f"the record key has {len(keys[at])} bytes; {key_format} has {size}")
    sound = keys.to_frame().select(pl.when(~pl.lit(bad)).then(pl.col(column))).to_series() if bad.any() else keys
    return sound.bin.reinterpret(dtype=dtype, endianness="big").cast(pl.Int64)


def _header_column(column: str, header: str, poll: Poll, rows: npt.NDArray[np.int64], refusals: Refusals) -> pl.Series:
    """Return the last header of a name, which is UTF-8 text; null if there is none."""
    if poll.headers is None:
        return pl.Series(column, [None] * len(rows), dtype=pl.String)
    return texts(poll.headers.at(rows).last(header).series(column), refusals, "header", f"the header {header!r}")
