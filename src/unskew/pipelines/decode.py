"""Confluent-framed Avro messages of one poll as typed Polars columns, and dead letters for those that are none.

The fast way checks every message by itself (``wire``) and hands all good ones to ``polars.read_avro`` as the one block
of an Avro container. What the check does not pass, and everything where Polars and the check disagree, is read by
fastavro message by message; both ways give the same columns.
"""

import io
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import fastavro
import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.features.plan import StreamPlan
from unskew.features.time import MAX_INSTANT_US, MIN_INSTANT_US, format_duration
from unskew.pipelines.poll import Poll
from unskew.pipelines.wire import FRAME_BYTES, Wire
from unskew.sinks.log import DEAD_LETTER_SCHEMA

INSTANT = pl.Datetime("us", "UTC")

# Years 1 to 9999: what people's tools can show.
_FIRST_SHOWN_US = -62_135_596_800_000_000
_LAST_SHOWN_US = 253_402_300_799_999_999
_INT_MIN, _INT_MAX = -(2**31), 2**31 - 1

_log = logging.getLogger("unskew.decode")


@dataclass(frozen=True, slots=True)
class Decoded:
    """A poll after decoding.

    ``events``: payload columns as ``StreamPlan.columns``, then ``_partition``, ``_offset``, ``_arrival``,
    ``_event_time`` (never null), in offset order. ``dead``: columns as ``DEAD_LETTER_SCHEMA``, in offset order.
    """

    stream: str
    partition: int
    clock_us: int | None
    ended: bool
    events: pl.DataFrame
    dead: pl.DataFrame


class AvroDecoder:
    """Reads a stream's messages with its own schema as the writer's.

    ``schema_ids``: ids that messages may carry; any if None.
    """

    def __init__(self, stream: StreamPlan, schema_ids: Collection[int] | None = None) -> None:
        self.topic = stream.topic
        self._stream = stream
        self._ids = None if schema_ids is None else frozenset(schema_ids)
        self._wire = Wire(stream.schema)
        self._plain = fastavro.parse_schema(_plain(stream.schema))
        self._shape: dict[str, pl.DataType] = {
            column: pl.Int64() if column in self._wire.scales or dtype == pl.Int32 else dtype
            for column, dtype in stream.columns.items()
        }
        event_schema = {
            **stream.columns,
            "_partition": pl.Int32(),
            "_offset": pl.Int64(),
            "_arrival": INSTANT,
            "_event_time": INSTANT,
        }
        self._no_events = pl.DataFrame(schema=event_schema)
        self._no_dead = pl.DataFrame(schema=DEAD_LETTER_SCHEMA)
        self._warned = False

    def decode(self, poll: Poll) -> Decoded:
        """Decode a poll; every record of it is either in ``events`` or in ``dead``."""
        reasons: dict[int, str] = {}
        events = self._no_events
        if poll.values:
            rows, frame = self._read(poll.values, reasons)
            events = self._finish(poll, rows, frame, reasons)
        return Decoded(
            stream=poll.stream,
            partition=poll.partition,
            clock_us=poll.clock_us,
            ended=poll.ended,
            events=events,
            dead=self._dead(poll, reasons),
        )

    def _read(
        self, values: Sequence[bytes | None], reasons: dict[int, str]
    ) -> tuple[npt.NDArray[np.int64], pl.DataFrame]:
        """Rows that could be read, in order, and their columns as ``_shape``; a reason for every other."""
        messages = cast("Sequence[bytes]", values) if None not in values else [value or b"" for value in values]
        passed = self._wire.check(messages, self._ids)
        good = np.flatnonzero(passed)
        frame = self._read_block(messages if len(good) == len(values) else [messages[row] for row in good.tolist()])
        if frame is None:
            good = good[:0]
            passed[:] = False
        if len(good) == len(values):
            assert frame is not None
            return good, frame
        slow_rows, slow = self._read_each(values, np.flatnonzero(~passed), reasons)
        if frame is None or not len(good):
            return slow_rows, slow
        if not len(slow_rows):
            return good, frame
        rows = np.concatenate([good, slow_rows])
        order = np.argsort(rows)
        return rows[order], pl.concat([frame, slow])[order]

    def _read_block(self, values: Sequence[bytes]) -> pl.DataFrame | None:
        """Columns of messages that passed the check; None where Polars does not agree with it."""
        if not values:
            return None
        try:
            return self._wire.read(values).select(list(self._shape)).cast(self._shape)  # type: ignore[arg-type]
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        # Whatever Polars stumbles over, a Rust panic too (a BaseException), fastavro tells which message it is.
        except BaseException as error:  # noqa: BLE001
            if not self._warned:
                self._warned = True
                _log.warning(
                    "Topic %r: a batch could not be read in one piece (%s); reading it one by one", self.topic, error
                )
            return None

    def _read_each(
        self, values: Sequence[bytes | None], rows: npt.NDArray[np.int64], reasons: dict[int, str]
    ) -> tuple[npt.NDArray[np.int64], pl.DataFrame]:
        read: list[int] = []
        records: list[dict[str, Any]] = []
        for row in rows.tolist():
            try:
                records.append(self._read_one(values[row]))
                read.append(row)
            except _BadMessage as bad:
                reasons[row] = str(bad)
        return np.array(read, np.int64), pl.DataFrame(records, schema=self._shape, orient="row")

    def _read_one(self, value: bytes | None) -> dict[str, Any]:
        """Read a single message with fastavro; timestamps stay the numbers they are on the wire."""
        if value is None:
            raise _BadMessage("empty value (tombstone)")
        if value[:1] not in {b"", b"\0"}:
            raise _BadMessage("wrong magic byte")
        if len(value) < FRAME_BYTES:
            raise _BadMessage("truncated")
        schema_id = int.from_bytes(value[1:FRAME_BYTES], "big")
        if self._ids is not None and schema_id not in self._ids:
            raise _BadMessage(f"unknown schema id {schema_id}")
        body = io.BytesIO(value[FRAME_BYTES:])
        try:
            record: Any = fastavro.schemaless_reader(body, self._plain, None)
        except EOFError as error:
            raise _BadMessage("truncated") from error
        except UnicodeDecodeError as error:
            raise _BadMessage("invalid UTF-8") from error
        # fastavro raises what its steps happen to raise on bytes that are no record: IndexError, OverflowError, ...
        except Exception as error:
            if isinstance(error, IndexError) and not body.read(1):
                raise _BadMessage("truncated") from error
            raise _BadMessage(f"not a record of the schema ({type(error).__name__}: {error})") from error
        if extra := len(value) - FRAME_BYTES - body.tell():
            raise _BadMessage(f"{extra} trailing bytes")
        for column, number in record.items():
            if isinstance(number, int) and not isinstance(number, bool):
                least, most = (_INT_MIN, _INT_MAX) if column in self._wire.ints else (-(2**63), 2**63 - 1)
                if not least <= number <= most:
                    raise _BadMessage(f"{column}: {number} does not fit its type")
        return dict(record)

    def _finish(
        self, poll: Poll, rows: npt.NDArray[np.int64], frame: pl.DataFrame, reasons: dict[int, str]
    ) -> pl.DataFrame:
        """Instants in microseconds, the event time checked, columns typed, and where each event came from."""
        if not len(rows):
            return self._no_events
        stream = self._stream
        kept = np.ones(len(rows), np.bool_)

        def refuse(bad: pl.Series, reason: Callable[[int], str]) -> None:
            for at in np.flatnonzero(bad.fill_null(value=False).to_numpy() & kept).tolist():
                kept[at] = False
                reasons[int(rows[at])] = reason(at)

        arrivals = pl.Series("_arrival", poll.arrivals[rows])
        for column, scale in self._wire.scales.items():
            numbers = frame[column]
            if column == stream.event_time:
                refuse(numbers.is_null(), lambda _: "event_time is null")
                first, last, word = MIN_INSTANT_US, MAX_INSTANT_US - 1, "event_time"
                span = "1900..2200"
            else:
                first, last, word = _FIRST_SHOWN_US, _LAST_SHOWN_US, column
                span = "years 1..9999"
            # Compared before scaling, which could overflow; what is refused must not be scaled either.
            inside = numbers.is_between(-(-first // scale), last // scale)
            if not inside.all():
                refuse(~inside, _outside(word, numbers, span))
                numbers = numbers.set(~inside, None)
            frame = frame.with_columns(numbers * scale if scale > 1 else numbers)
        event_times = frame[stream.event_time]
        if stream.max_age_us is not None:
            age = format_duration(stream.max_age_us)
            refuse(arrivals - event_times > stream.max_age_us, lambda _: f"older than max_age ({age})")
        events = frame.cast(dict(stream.columns)).with_columns(  # type: ignore[arg-type]
            pl.lit(poll.partition, pl.Int32).alias("_partition"),
            pl.Series("_offset", poll.offsets[rows]),
            arrivals.cast(INSTANT),
            event_times.cast(INSTANT).alias("_event_time"),
        )
        return events if kept.all() else events.filter(pl.Series(kept))

    def _dead(self, poll: Poll, reasons: Mapping[int, str]) -> pl.DataFrame:
        if not reasons and not poll.rejected:
            return self._no_dead
        letters = [
            (self.topic, poll.partition, bad.offset, bad.arrival, None, bad.reason, bad.key, bad.value)
            for bad in poll.rejected
        ] + [
            (
                self.topic,
                poll.partition,
                int(poll.offsets[row]),
                int(poll.arrivals[row]),
                None,
                reason,
                poll.keys[row],
                poll.values[row],
            )
            for row, reason in reasons.items()
        ]
        plain = pl.Schema({**DEAD_LETTER_SCHEMA, "arrival": pl.Int64()})
        return pl.DataFrame(letters, schema=plain, orient="row").cast(pl.Schema(DEAD_LETTER_SCHEMA)).sort("offset")


def _outside(column: str, numbers: pl.Series, span: str) -> Callable[[int], str]:
    return lambda at: f"{column} {numbers[at]} is outside {span}"


def _plain(avro: Any) -> Any:
    """Give the schema without logical types, so that numbers stay what they are on the wire."""
    if isinstance(avro, Mapping):
        return {word: _plain(part) for word, part in avro.items() if word != "logicalType"}
    return [_plain(part) for part in avro] if isinstance(avro, (list, tuple)) else avro


class _BadMessage(Exception):
    """A message that is no event; its text is the reason."""
