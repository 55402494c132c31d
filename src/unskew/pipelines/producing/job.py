"""Events of a file, or made up, sent to a topic at a pace; what was sent is known, also when it ends early."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from unskew.features.definitions.streams import is_pattern
from unskew.features.errors import RequestError, StoreUnavailable
from unskew.features.nearest import nearest
from unskew.features.plan import Plan, StreamPlan
from unskew.features.time import SECOND_US
from unskew.pipelines.kafka.partitioners import HASHES
from unskew.pipelines.kafka.sending import Outgoing, Sender
from unskew.pipelines.producing.encoding import Encoder, Event
from unskew.pipelines.producing.rows import Row, Source
from unskew.pipelines.producing.scalars import Unfit

SHOWN_FAULTS = 5
_PACES_PER_SECOND = 20
_LONGEST_BEHIND_S = 1.0

Stamps = Literal["now", "event-time"]


class Flag(Protocol):
    """A request to stop that can be waited for, for example ``threading.Event``."""

    def is_set(self) -> bool: ...
    def wait(self, timeout: float) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to send, and how.

    ``rate``: events in a second; None for as many as Kafka takes. ``most``: so many events at most. ``shift_us``: by
    how much event times are moved. ``stamps``: the producer's timestamps. ``skips``: leave out rows that are not
    events; ``remedy``: what to do about one otherwise.
    """

    source: Source
    encoder: Encoder
    partitioner: str
    rate: float | None = None
    most: int | None = None
    shift_us: int = 0
    stamps: Stamps = "now"
    skips: bool = False
    remedy: str = "correct it"


@dataclass(kw_only=True)
class Sent:
    """What has happened so far. ``faults``: the first rows that were left out, each with its reason."""

    handed_over: int = 0
    skipped: int = 0
    faults: list[str] = field(default_factory=list)
    stopped: bool = False


def send(job: Job, sender: Sender, stop: Flag, report: Callable[[int], None]) -> Sent:
    """Send the rows of a job until they end or ``stop`` is set, and wait until the broker has them.

    ``report``: called with the number of events so far. Raises ``RequestError`` at the first row that is no event,
    unless these are skipped: the events before it are sent, none after it. Raises ``StoreUnavailable`` if the broker
    does not take a record.
    """
    sent = Sent()
    pace = _Pace(job.rate, stop)
    try:
        for rows in _pieces(job, sent):
            records, fault = _records(job, rows, sender, sent)
            for piece in pace.pieces(records):
                sender.send(piece)
                sent.handed_over += len(piece)
                report(sent.handed_over)
            if stop.is_set():
                sent.stopped = True
                break
            if fault is not None:
                raise fault
        sent.stopped = sent.stopped or stop.is_set()
        sender.flush()
    except StoreUnavailable as error:
        raise StoreUnavailable(f"{error}; {_before(sender)}") from error
    except RequestError as error:
        sender.flush()
        raise RequestError(f"{error}; {_before(sender)}") from error
    return sent


def shift_by(job: Job, now_us: Callable[[], int], stop: Flag) -> Job:
    """Return the job with event times moved as far as none lies in the future when its event is sent.

    An event in the future would count at its arrival. Without a rate the latest event is then at the present; with one,
    the event that comes soonest for its turn is at the instant of that. Raises ``RequestError`` if there is no event,
    or if the rows can be read only once.
    """
    if not job.source.again:
        raise RequestError(
            "--shift-to-now reads the events twice, first to find the latest one, and standard input comes once; give a file"
        )
    sent, least, first = Sent(), None, ""
    for rows in _pieces(job, sent):
        for row in rows:
            if stop.is_set():
                return job
            try:
                if row.fault:
                    raise Unfit(row.fault)  # noqa: TRY301
                event_us = job.encoder.event_us(row.values)
            except Unfit as unfit:
                # The row is refused when it is sent.
                first = first or f": {row.place}: {unfit}"
                continue
            due_us = 0 if job.rate is None else int(sent.handed_over / job.rate * SECOND_US)
            least = due_us - event_us if least is None else min(least, due_us - event_us)
            sent.handed_over += 1
    if least is None:
        raise RequestError(f"{job.source.name} has no event with an event time, so there is nothing to shift{first}")
    return replace(job, shift_us=now_us() + least)


def stream_of(plan: Plan, name: str) -> StreamPlan:
    """Return the stream whose topic, or whose own name, this is. Raises ``RequestError`` if that is not one stream."""
    streams = {stream.name: stream for stream in plan.streams.values() if stream.table is None}
    found = {each.name: each for each in streams.values() if name in each.sources or _is_meant(each, name)}
    if not found:
        found = {each.name: each for each in streams.values() if each.name == name}
    if not found:
        topics = [topic for each in streams.values() for topic in each.sources]
        known = list(dict.fromkeys([*topics, *streams]))
        raise RequestError(f"no stream reads a topic {name!r}; {nearest(name, known, 'topics and streams are')}")
    if len(found) > 1 and name not in found:
        raise RequestError(
            f"several streams read topic {name!r}: {', '.join(found)}; name the stream instead of the topic"
        )
    return found.get(name) or next(iter(found.values()))


def topic_of(stream: StreamPlan, given: str | None) -> str:
    """Return the topic to which events of a stream are sent. Raises ``RequestError`` unless it is one that it reads."""
    if given in {None, stream.name} and given not in stream.topics:
        if stream.topics:
            raise RequestError(
                f"stream {stream.name} reads {', '.join(stream.topics)}; name the topic to which the events are sent"
            )
        return stream.topic
    assert given is not None
    if given not in stream.sources and not _is_meant(stream, given):
        raise RequestError(f"stream {stream.name} does not read topic {given!r}; it reads {', '.join(stream.sources)}")
    return given


def _is_meant(stream: StreamPlan, topic: str) -> bool:
    (source, *more) = stream.sources
    return not more and is_pattern(source) and re.match(source, topic) is not None


def _pieces(job: Job, sent: Sent) -> Iterator[Sequence[Row]]:
    """Yield the rows, no more at once than may still be sent."""
    for piece in job.source.pieces():
        rows: Sequence[Row] = piece
        while rows:
            left = len(rows) if job.most is None else job.most - sent.handed_over
            if not left:
                return
            yield rows[:left]
            rows = rows[left:]


def _records(job: Job, rows: Sequence[Row], sender: Sender, sent: Sent) -> tuple[list[Outgoing], RequestError | None]:
    """Return the records of some rows, up to the first that is no event, and what is to be said of that."""
    events: list[Event] = []
    error: RequestError | None = None
    for row in rows:
        fault = row.fault
        if not fault:
            try:
                event = job.encoder.event(row.values, job.shift_us)
                if not (fault := _too_large(event, sender)):
                    events.append(event)
            except Unfit as unfit:
                fault = str(unfit)
        if not fault:
            continue
        said = f"{job.source.name}, {row.place}: {fault}"
        if not job.skips:
            question = said.endswith("?")
            remedy = f"{job.remedy[:1].upper()}{job.remedy[1:]}" if question else job.remedy
            error = RequestError(f"{said}{'' if question else ';'} {remedy}")
            break
        sent.skipped += 1
        if len(sent.faults) < SHOWN_FAULTS:
            sent.faults.append(said)
    return _placed(job, events, sender.n_partitions, sent.handed_over), error


def _too_large(event: Event, sender: Sender) -> str:
    """Return what is wrong with an event that the broker cannot hold; nothing for any other."""
    if sender.largest_bytes is None or len(event.value) <= sender.largest_bytes:
        return ""
    return (
        f"it has {len(event.value):,} bytes as a message, and the Kafka in memory of unskew dev takes {sender.largest_bytes:,} "
        "at most"
    )


def _placed(job: Job, events: Sequence[Event], n_partitions: int, n_before: int) -> list[Outgoing]:
    hashed = [each.placed_by for each in events if each.placed_by is not None]
    places: Iterator[int] = iter((HASHES[job.partitioner](hashed) % n_partitions).tolist() if hashed else ())
    return [
        Outgoing(
            # Events without a key are dealt in turn.
            partition=(n_before + at) % n_partitions if each.placed_by is None else next(places),
            key=each.key,
            value=each.value,
            headers=each.headers,
            timestamp_ms=each.event_us // 1000 if job.stamps == "event-time" else None,
        )
        for at, each in enumerate(events)
    ]


def _before(sender: Sender) -> str:
    n = sender.delivered
    return f"{n:,} event{'' if n == 1 else 's'} {'was' if n == 1 else 'were'} sent before"


class _Pace:
    """Parts of what is to be sent, each when its turn has come. ``rate``: events in a second; None for at once."""

    def __init__(self, rate: float | None, stop: Flag) -> None:
        self._rate = rate
        self._stop = stop
        self._begun_s = time.monotonic()
        self._n = 0

    def pieces(self, records: Sequence[Outgoing]) -> Iterator[Sequence[Outgoing]]:
        """Yield parts of these records in order; none after the request to stop."""
        if self._rate is None:
            if not self._stop.is_set():
                yield records
            return
        size = max(1, int(self._rate / _PACES_PER_SECOND))
        for at in range(0, len(records), size):
            due_s = self._begun_s + self._n / self._rate
            now_s = time.monotonic()
            # A pause of the machine, or of the input, is not made good by a flood.
            self._begun_s += max(0.0, now_s - due_s - _LONGEST_BEHIND_S)
            if self._stop.wait(max(0.0, due_s - now_s)) or self._stop.is_set():
                return
            piece = records[at : at + size]
            self._n += len(piece)
            yield piece
