"""Partitions of a topic, read through one consumer: queues, alignment, clocks, positions.

Life of a record: librdkafka fetches it, ``Reader.pump`` queues it with its partition, and the partition's next item
carries it once alignment allows. The arrival is assigned when the item is emitted, because it depends on the clock
announced until then.
"""

import datetime as dt
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from bytewax.inputs import StatefulSourcePartition
from confluent_kafka import TIMESTAMP_CREATE_TIME, TIMESTAMP_LOG_APPEND_TIME
from typing_extensions import override

from unskew.features.errors import LayoutError
from unskew.features.plan import DEFAULT_SETTLE_US, StreamPlan
from unskew.features.time import format_instant
from unskew.pipelines.kafka.arrivals import NO_CLOCK, Arrivals, assign_arrivals, refusal
from unskew.pipelines.kafka.blobs import NO_BLOBS
from unskew.pipelines.kafka.consumer import Flag, Records, TopicReader, offsets_gone, past_the_end, truncated
from unskew.pipelines.kafka.headers import Headers
from unskew.pipelines.kafka.host_clock import DISAGREE_US, HostClock
from unskew.pipelines.kafka.poll import Poll, Rejected, first_schema_id
from unskew.pipelines.kafka.refusals import Refusals
from unskew.pipelines.kafka.stamps import check_topics, settle_needed
from unskew.pipelines.kafka.turns import ALWAYS_DUE, Turns
from unskew.pipelines.state.journal import Journal, Placed, Refused, Script, place_of
from unskew.pipelines.state.known_topics import START_OVER, KnownTopics, partitions_added

_WAIT_S = 10.0
_SLACK_US = 1_000_000
_QUIET = 4
"""How many times more seldom marks are that nothing waits for."""
_ASKED_AHEAD = 0.2
"""How long before a mark the broker is asked for the end, and after how long a mark is tried again, in ``mark_s``."""
_FRESH = 2
"""For how long after it was asked the broker need not be asked again before a mark, in ``mark_s``."""
_MANY_ASKED_AHEAD = 0.15
"""How long before a mark the broker is asked, in ``Turns.quiet_s``, if that is longer: an answer about many partitions
takes longer, and a mark that does not wait for it would be as of the answer before."""
_EMPTY = np.empty(0, np.int64)
_EMPTY.flags.writeable = False

_log = logging.getLogger("unskew.kafka")


_NO_RECORDS = Records(_EMPTY, _EMPTY, _EMPTY, NO_BLOBS, NO_BLOBS, Headers.none(0))


@dataclass(frozen=True, slots=True)
class Place:
    """The progress of a partition: its clock, None before the first, and its lag in records."""

    topic: str
    partition: int
    clock_us: int | None
    lag: int


@dataclass(slots=True)
class SourceCounters:
    """Counts of the records that this process has read from the stream since it started, and its lag.

    ``bumped``: records whose own timestamp was before their partition's clock. ``rejected``: records that could not be
    placed in time. ``lag``: records between the position and the last known high watermark.
    """

    consumed: int = 0
    bumped: int = 0
    rejected: int = 0
    lag: int = 0


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Options for reading a stream's topic.

    ``bootstrap``: broker addresses. ``group``: consumer group to which durable offsets are committed, for lag tools.
    ``idle``: with ``wall``, a partition that has caught up announces the present less the stream's settle; with
    ``none`` there are no marks.
    ``ends``: topic -> partition -> the offset before which it ends; ``now`` for the high watermarks at start; None for
    a live topic. ``start``: where a partition without saved state begins.
    ``aligned``: if true, a partition waits until its clock is the least of this stream's partitions in this process;
    on a live topic, until it is at most a settle and a second ahead of the least.
    ``partitions``: the partitions that this process reads; None for all.
    ``clock``: this host's clock. ``turns``: when the flow rests. All sources of a process share both.
    ``poll_records``, ``queued_polls``: bounds of an item and of a partition's queue.
    ``heartbeat_s``: a partition gives an item at least this often. ``mark_s``: a mark without records at most this
    often, and four times more seldom if nothing waits for it. Many quiet partitions give both more seldom
    (``Turns.quiet_s``). ``timeout_s``: wait for the broker's answer at start.
    ``config``: further librdkafka settings.
    ``journal``: records decisions before they take effect; with None nothing is recorded.
    ``known``: the topics that an earlier run read. ``adopt_ids``: topics with other ids are the same ones.
    ``by_partition``: the names of the views whose entity partitions the topic; with any, no partition may be added.
    ``on_added``: called while a topic without ends is read, in another thread, when there are new partitions, which are
    read once the source is opened again.
    """

    bootstrap: str
    group: str
    idle: Literal["wall", "none"]
    stop: Flag
    ends: Mapping[str, Mapping[int, int]] | Literal["now"] | None = None
    start: Literal["earliest", "latest"] = "earliest"
    aligned: bool = True
    partitions: Sequence[int] | None = None
    clock: HostClock = field(default_factory=HostClock)
    turns: Turns = field(default_factory=Turns)
    poll_records: int = 10_000
    queued_polls: int = 4
    heartbeat_s: float = 0.2
    mark_s: float = 0.05
    timeout_s: float = 10.0
    check_partitions_s: float = 5.0
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    monotonic: Callable[[], float] = time.monotonic
    journal: Journal | None = None
    known: KnownTopics | None = None
    adopt_ids: bool = False
    by_partition: Sequence[str] = ()
    on_added: Callable[[], None] = lambda: None


@dataclass(slots=True)
class _Marks:
    """The marks that partitions announce in one round; all wait until the journal holds the last one, ``ticket``.

    So they go through the flow together, which costs less.
    """

    round: int
    ticket: int = 0


class Reader:
    """One consumer and its partitions: it fetches, aligns the partitions, and pauses those that run ahead."""

    def __init__(self, stream: StreamPlan, options: SourceOptions, counters: SourceCounters) -> None:
        self.stream = stream
        self.options = options
        self.counters = counters
        self.settle_us = DEFAULT_SETTLE_US if stream.settle_us is None else stream.settle_us
        self.topic = TopicReader(
            stream.sources,
            options.bootstrap,
            options.group,
            stop=options.stop,
            timeout_s=options.timeout_s,
            check_partitions_s=options.check_partitions_s,
            on_added=self._note_added,
            known=options.known,
            adopt_ids=options.adopt_ids,
            config=options.config,
        )
        live = options.idle == "wall"
        # librdkafka's mock gives neither ids nor settings, and lets a question for settings wait.
        if (live and stream.settle_us is None) or any(self.topic.known.ids.values()):
            topics = sorted({topic for topic, _ in self.topic.origins})
            try:
                check_topics(stream, topics, options.bootstrap, options.config, options.timeout_s, live=live)
            except BaseException:
                self.topic.close()
                raise
        self.n_partitions = self.topic.n_partitions
        # The least number of partitions with which an earlier run read the stream; those from there on are new.
        self._n_before = self.n_partitions if options.known is None else len(options.known.partitions)
        if options.journal is not None:
            self._n_before = min(self._n_before, options.journal.n_partitions(stream.topic) or self._n_before)
        self.lock = threading.RLock()
        # Of partitions that are still to be built.
        self._watermarks: dict[int, tuple[int, int]] = {}
        self.parts: dict[int, KafkaPartition] = {}
        # The latest clock that any partition had before this start, as far as this process knows.
        self.saved_clock_us = NO_CLOCK
        if options.journal is not None and (noted_us := options.journal.latest_us(stream.topic)) is not None:
            self.saved_clock_us = noted_us
        # The latest arrival of a record that any partition gave in this run.
        self.latest_us = NO_CLOCK
        self.marks = _Marks(-1)
        # The round in which nothing more was there to fetch; when a partition last looked for what is to be done.
        self._dry_in = -1
        self.looked_s = float("-inf")
        self.closed = False
        # An idle partition's marks lie a settle behind the present. A busy partition that waited for them would lose
        # that time, and the records of a second or two of a live topic are cheap to hold downstream.
        self.refusals = Refusals(stream.name, stream.max_ahead_us, options.monotonic)
        self._slack_us = self.settle_us + _SLACK_US if options.idle == "wall" else 0
        self._waits_since_s: float | None = None
        self._warned = False

    def build(self, partition: int, saved: dict[str, Any] | None) -> "KafkaPartition":
        with self.lock:
            low, high = self._watermarks_of(partition)
            if saved is None:
                offset = low if self.options.start == "earliest" else high
                clock_us = NO_CLOCK
            else:
                self._check_saved(partition, saved, low, high)
                offset = saved["offset"]
                clock_us = NO_CLOCK if saved["clock"] is None else saved["clock"]
                self.topic.commit(partition, offset)
            script = self._script(partition, saved, low, high)
            if script is not None and saved is None:
                offset = script.begins
            is_new = saved is None and partition >= self._n_before
            if is_new and script is None:
                offset = low
            if saved is None and script is None and 0 < low == offset:
                _log.warning(
                    "%s: the broker no longer has the first %s records, so reading begins after them",
                    self.topic.name_of(partition),
                    f"{low:,}",
                )
            # The first clock of a new partition is the mark that it begins with.
            has_begun = script is not None and script.clock_us is not None
            ends = self.options.ends
            topic, number = self.topic.origins[partition]
            end = high if ends == "now" else None if ends is None else ends.get(topic, {}).get(number, low)
            if end is not None and script is not None:
                # Values that were shown already must not be taken back.
                end = max(end, script.until)
            said = clock_us != NO_CLOCK and bool((saved or {}).get("said", True))
            part = KafkaPartition(self, partition, offset, clock_us, end, script, said=said)
            # Another cluster counts its epochs anew.
            if saved is not None and not self.options.adopt_ids:
                part.read = saved.get("read")
            part.schema_id = (saved or {}).get("schema_id", None if script is None else script.schema_id)
            if script is None:
                part.note_place()
            had_ended = (saved is not None and bool(saved["ended"])) if script is None else script.ended
            part.rejoins = self.options.aligned and (
                (is_new and not has_begun)
                or (had_ended and not part.ends_at(offset if script is None else script.until))
            )
            self.saved_clock_us = max(self.saved_clock_us, clock_us)
            self._check_clock(partition, clock_us, script)
            self.parts[partition] = part
            if not part.ended:
                self.topic.add(partition, *part.begin_at(low))
            return part

    def _watermarks_of(self, partition: int) -> tuple[int, int]:
        """Return where a partition began and ended when the first one was built, or now if it was built before."""
        if partition not in self._watermarks:
            wanted = self.options.partitions
            others = range(self.n_partitions) if wanted is None else wanted
            asked = {partition, *(other for other in others if other not in self.parts)}
            self._watermarks = self.topic.watermarks(sorted(asked))
        return self._watermarks.pop(partition)

    def _script(self, partition: int, saved: Mapping[str, Any] | None, low: int, high: int) -> Script | None:
        """Return what an earlier run decided about a partition past its saved place."""
        journal = self.options.journal
        if journal is None:
            return None
        name = self.topic.name_of(partition)
        place = place_of(self.stream.topic, name)
        offset, clock_us = (None, None) if saved is None else (saved["offset"], saved["clock"])
        script = journal.script(place, offset, clock_us)
        if script is not None and script.until > high:
            raise LayoutError(past_the_end(name, script.until, high))
        if script is not None and saved is None and script.begins < low:
            raise LayoutError(offsets_gone(name, script.begins, low))
        return script

    def _check_saved(self, partition: int, saved: dict[str, Any], low: int, high: int) -> None:
        name = self.topic.name_of(partition)
        if self.options.by_partition and saved["partitions"] < self.n_partitions:
            raise LayoutError(self._added(saved["partitions"], self.n_partitions))
        self._n_before = min(self._n_before, saved["partitions"])
        if saved.get("origin", name) != name:
            raise LayoutError(
                f"{self.topic.title}: partition {partition} was {saved['origin']} and is now {name}, because the topics "
                f"have changed; give the stream its earlier topics, or {START_OVER}"
            )
        if saved["offset"] < low:
            raise LayoutError(offsets_gone(name, saved["offset"], low))
        if saved["offset"] > high:
            raise LayoutError(past_the_end(name, saved["offset"], high))

    def _added(self, before: int, now: int) -> str:
        return partitions_added(self.topic.title, before, now, self.options.by_partition)

    def _note_added(self, now: int) -> None:
        """Deal with partitions that were added while the topic is read."""
        if self.options.by_partition:
            self.topic.fail(LayoutError(self._added(self.topic.n_partitions, now)))
        elif self.options.ends is None:
            self.options.on_added()

    def _check_clock(self, partition: int, clock_us: int, script: Script | None) -> None:
        """Log if a partition's clock is ahead of the present: this host's clock is wrong now, or one was before."""
        if script is not None and script.clock_us is not None:
            clock_us = max(clock_us, script.clock_us)
        present_us = self.options.clock.latest_us()
        if clock_us > self.latest_clock_us(present_us):
            _log.warning("%s", clock_ahead(self.topic.name_of(partition), clock_us, present_us))

    def latest_clock_us(self, present_us: int) -> int:
        """Return how far a clock may be without a fault: producers and brokers may be a little ahead of this host."""
        return present_us + max(self.stream.max_ahead_us, DISAGREE_US)

    @property
    def is_dry(self) -> bool:
        """Whether a partition has found nothing more to fetch in this round."""
        return self._dry_in == self.options.turns.round

    def pump(self) -> bool:
        """Move fetched records into the partitions' queues, up to one poll; return true if more are there.

        It never waits.
        """
        if self.is_dry:
            return False
        fetched = self.topic.consume(self.options.poll_records)
        for number, records in fetched.pieces:
            self.parts[number].enqueue(records)
        for number, offset in fetched.ends:
            self.parts[number].reach(offset)
        if fetched.all_there_was:
            self._dry_in = self.options.turns.round
        return not fetched.all_there_was

    def await_records(self, timeout_s: float) -> None:
        """Return once a record has been fetched, or after a time."""
        with self.lock:
            self.topic.await_records(timeout_s)

    def waits_past(self, clock_us: int) -> bool:
        """Return true if an event may wait for a partition with this clock to pass its arrival."""
        # Another process does not say what its partitions gave.
        has_all = len(self.parts) == self.n_partitions
        return not has_all or max(self.latest_us, self.saved_clock_us) >= clock_us

    def may_emit(self, part: "KafkaPartition") -> bool:
        """Return true if no unfinished partition has an earlier clock by more than a live topic's slack for marks."""
        if not self.options.aligned:
            return True
        for other in self.parts.values():
            if other.clock_us < part.clock_us - self._slack_us and not other.ended:
                self._warn_of_wait(other)
                return False
        self._waits_since_s = None
        return True

    def _warn_of_wait(self, behind: "KafkaPartition") -> None:
        """Log once that all partitions wait for one that has never had a record and gets no marks."""
        now_s = self.options.monotonic()
        if behind.clock_us != NO_CLOCK or behind.has_records or self.options.idle == "wall" or self._warned:
            self._waits_since_s = None
        elif self._waits_since_s is None:
            self._waits_since_s = now_s
        elif now_s - self._waits_since_s > _WAIT_S:
            self._warned = True
            _log.warning(
                "%s has no record yet, so the other partitions wait for it; read a live topic with idle=wall, "
                "a replay with end offsets",
                self.topic.name_of(behind.partition),
            )

    def remove(self, part: "KafkaPartition") -> None:
        with self.lock:
            if self.parts.get(part.partition) is part:
                part.closed = True
            if all(other.closed for other in self.parts.values()):
                self.close()

    def close(self) -> None:
        with self.lock:
            if not self.closed:
                self.closed = True
                self.topic.close()


def clock_ahead(name: str, clock_us: int, present_us: int) -> str:
    """Compose the text for a partition whose clock is ahead of the present."""
    return (
        f"{name}: its clock, {format_instant(clock_us)}, is {(clock_us - present_us) / 1e6:.1f} s ahead of this host's, "
        f"{format_instant(present_us)}. If this host's clock is slow now, correct it. If a clock was fast before (this host's, "
        "or a producer's), records arrive at the partition's clock until the present has passed it, and windows stand still: "
        "wait until then, or start over with empty folders and --start earliest"
    )


class _Gathered:
    """The records of a future poll, in pieces as they were fetched."""

    def __init__(self) -> None:
        self._pieces: list[Records] = []
        self._n_records = 0

    def __len__(self) -> int:
        return self._n_records

    @property
    def first(self) -> int:
        """The first offset."""
        return int(self._pieces[0].offsets[0])

    def add(self, records: Records) -> None:
        self._pieces.append(records)
        self._n_records += len(records)

    def records(self) -> Records:
        return Records.joined(self._pieces)


class KafkaPartition(StatefulSourcePartition[Poll, dict[str, Any]]):
    """One partition's position and clock; see ``KafkaSource``."""

    def __init__(
        self,
        reader: Reader,
        partition: int,
        offset: int,
        clock_us: int,
        end: int | None,
        script: Script | None = None,
        *,
        said: bool = False,
    ) -> None:
        self.partition = partition
        self.clock_us = clock_us
        self.closed = False
        # The partition is new or had ended, so ordered shards may have advanced to the clock of any other partition;
        # records that come now must come after that.
        self.rejoins = False
        self._reader = reader
        self._end = end
        self._position = offset  # the next offset to emit
        self._fetched = offset  # the next offset to be queued
        self._queue: list[_Gathered] = []
        self._paused = False
        self._said_ended = False
        self._lag = 0
        self._last_item_s = float("-inf")
        # The last records' instant is open: no mark has passed it.
        self._open = False
        # When a mark may be tried again, whether the broker has been asked for the end since the last item, and when it
        # was last asked.
        self._again_s = float("-inf")
        self._asked = False
        self._asked_s = float("-inf")
        # Until when nothing is to be done if no record comes.
        self._due_s = float("-inf")
        # Whether a mark was awaited when that was found.
        self._due_is_soon = False
        self._saved: tuple[int, int | None] | None = None
        self._script = script
        self._journal = reader.options.journal
        self._place_name = place_of(reader.stream.topic, reader.topic.name_of(partition))
        self._ticket = 0
        # A mark is announced (later records arrive after it), but no item has carried it yet.
        self._unsaid = False
        self._marks = reader.marks
        # The wall clock when nothing was left to read; None if records have come since.
        self._end_seen_us: int | None = None
        self._begun = False
        # An item has carried a clock, in this run or before it. A mark that no item carried yet is saved, but a shard
        # has missed nothing before it.
        self._said = said
        self._resumed = said
        # The id of the first framed record, here because it is saved with the position.
        self.schema_id: int | None = None
        # The offset after the last record, and that record's leader epoch; None if not known. The position may be
        # further, past offsets without records, and their epoch is not given.
        self.read: tuple[int, int] | None = None
        self._idle_wall = reader.options.idle == "wall"
        self._origin = reader.topic.origins[partition] if reader.stream.topics else None

    @property
    def ended(self) -> bool:
        return self.ends_at(self._position)

    def ends_at(self, offset: int) -> bool:
        """Return true if nothing past ``offset`` is read."""
        return self._end is not None and offset >= self._end

    def begin_at(self, low: int) -> tuple[int, int | None]:
        """Return the offset at which to begin fetching, and the leader epoch of the record before it."""
        if self.read is None or not low <= self.read[0] <= self._position:
            return self._position, None
        return self.read

    @property
    def has_records(self) -> bool:
        return bool(self._queue)

    def place(self) -> Place:
        """Return the progress; safe to call from another thread."""
        topic, number = self._reader.topic.origins[self.partition]
        clock_us = self.clock_us
        return Place(topic, number, None if clock_us == NO_CLOCK else clock_us, self._lag)

    def _count_lag(self) -> None:
        high = None if self.ended else self._reader.topic.high(self.partition)
        lag = 0 if high is None else max(high - self._position, 0)
        self._reader.counters.lag += lag - self._lag
        self._lag = lag

    def enqueue(self, records: Records) -> None:
        """Take records as fetched, in offset order."""
        if self.ended or self.closed:
            return
        # Records fetched before a pause may come again after it.
        if records.offsets[0] < self._fetched:
            records = records.since(self._fetched)
            if not len(records):
                return
        self._fetched = int(records.offsets[-1]) + 1
        # A partition gathers whole polls, however small the fetched pieces are.
        if not self._queue or len(self._queue[-1]) + len(records) > self._reader.options.poll_records:
            self._queue.append(_Gathered())
        self._queue[-1].add(records)
        self._pause_or_resume()

    def reach(self, offset: int) -> None:
        """Note that there is nothing to fetch before ``offset``.

        Offsets without records may follow the last record: transaction markers, compacted records.
        """
        self._fetched = max(self._fetched, offset)
        if not self._queue and not self.ended:
            self._position = self._fetched

    def _pause_or_resume(self) -> None:
        options = self._reader.options
        full = len(self._queue) >= options.queued_polls
        if full and not self._paused:
            self._reader.topic.pause(self.partition)
            self._paused = True
        elif self._paused and len(self._queue) <= 1:
            self._reader.topic.resume(self.partition)
            self._paused = False

    @override
    def next_awake(self) -> dt.datetime:
        """Return an instant that has passed: for a later one, Bytewax waits by the wall clock, which may go back."""
        return ALWAYS_DUE

    @override
    def next_batch(self) -> Iterable[Poll]:
        """Return at most one item; rest for a moment if no partition of the process has any.

        Raises ``StopIteration`` after the end or a stop, ``LayoutError`` if records were lost or partitions added,
        ``DefinitionError`` for a live topic with producer timestamps and without a settle.
        """
        reader, options = self._reader, self._reader.options
        # Most turns of a quiet topic with many partitions end here: another partition has just looked for records.
        is_dry = reader.is_dry
        if is_dry and not self._queue and (self._is_not_due() or self._waits_for_journal()):
            options.turns.taken(self, reader, gave=False, wait_s=self._due_s - reader.looked_s)
            return []
        options.turns.begin(self)
        if self._said_ended or options.stop.is_set():
            options.turns.left(self)
            raise StopIteration
        if not is_dry:
            options.clock.look()
        items = self._next()
        reader.looked_s = options.monotonic()
        self._due_s, self._due_is_soon = self._next_s(), self._is_awaited()
        if items and not len(items[0].offsets):
            options.turns.marked(self)
        else:
            options.turns.taken(self, reader, gave=bool(items), wait_s=self._due_s - reader.looked_s)
        return items

    def _is_not_due(self) -> bool:
        """Return true if nothing is to be done yet unless a record comes."""
        if not self._due_is_soon and self._is_awaited():
            # A record of another partition has come since, whose events wait for this one.
            self._due_s, self._due_is_soon = self._next_s(), True
        return self._due_s > self._reader.looked_s

    def _waits_for_journal(self) -> bool:
        """Return true if a mark is announced, and the journal does not hold it yet; it then begins to write it."""
        if not self._unsaid or self._journal is None or self._journal.holds(self._marks.ticket):
            return False
        self._journal.begin()
        return True

    def _next(self) -> list[Poll]:
        reader = self._reader
        with reader.lock:
            reader.topic.check()
            if not self._begun:
                self._begun = True
                if self.clock_us != NO_CLOCK:
                    # A clock may have been saved before any item carried it, and may then have been shown as the
                    # beginning of coverage.
                    return [self._item()]
            while self._wants_more() and reader.pump():
                pass
            if self._script is not None:
                item = self._replay(self._script)
                return [] if item is None else [item]
            if self.rejoins:
                # All partitions are built before the first of them gives an item. The mark is one past the saved clock:
                # events of partitions with higher numbers may have arrived at that clock, and events of one instant are
                # ordered by partition.
                self.rejoins = False
                if reader.saved_clock_us != NO_CLOCK:
                    self._announce(reader.saved_clock_us + 1)
            # Coverage begins with the first clock. A restart gives a mark before the records that follow it.
            if self._queue and (self._said or not self._unsaid) and reader.may_emit(self):
                return [self._records()]
            if self._unsaid:
                # Do not wait: the flow's thread has other work.
                return [] if self._waits_for_journal() else [self._item()]
            now_s = reader.options.monotonic()
            beats = self.ended or now_s - self._last_item_s >= self._heartbeat_s
            is_due = now_s >= self._mark_at_s()
            # What the broker answered last may be long ago, if nothing waited for this partition until now.
            is_fresh = self._asked or now_s - self._asked_s < _FRESH * reader.options.mark_s
            if beats or (is_due and is_fresh):
                announced = self._announce(self._mark())
                self._again_s = now_s + self._pause_s()
                if announced and self._journal is not None:
                    return []
                if beats or announced:
                    return [self._item()]
            elif not self._asked and (is_due or now_s >= self._ask_at_s()):
                self._asked = True
                if is_due:
                    self._again_s = now_s + _ASKED_AHEAD * reader.options.mark_s
                self._mark()
        return []

    def _next_s(self) -> float:
        """Return when the next turn is due if no record comes; a past instant for as soon as possible."""
        if self._script is not None or self._queue or self._unsaid or self.rejoins or self._said_ended:
            return float("-inf")
        mark_s = self._mark_at_s() if self._asked else self._ask_at_s()
        return min(self._last_item_s + self._heartbeat_s, mark_s)

    @property
    def _heartbeat_s(self) -> float:
        options = self._reader.options
        return max(options.heartbeat_s, options.turns.quiet_s)

    def _mark_at_s(self) -> float:
        """Return when a mark is due."""
        options = self._reader.options
        if not self._idle_wall:
            return float("inf")
        if self._last_item_s == float("-inf"):
            return self._again_s
        due_s = self._last_item_s + options.mark_s
        if options.mark_s and not self._is_awaited():
            # On a grid, so that all quiet partitions give their marks together.
            quiet_s = max(_QUIET * options.mark_s, options.turns.quiet_s)
            due_s = (self._last_item_s // quiet_s + 1) * quiet_s
        return max(due_s, self._again_s)

    def _pause_s(self) -> float:
        """Return how long after a try for a mark the next one may succeed, as far as the present shows."""
        options = self._reader.options
        lacks_us = self.clock_us + self._reader.settle_us - options.clock.for_marks_us()
        return min(max(lacks_us / 1e6, _ASKED_AHEAD * options.mark_s), options.mark_s)

    def _ask_at_s(self) -> float:
        """Return when to ask the broker for the end: what it answers until the mark is due, the mark may pass."""
        options = self._reader.options
        return self._mark_at_s() - max(_ASKED_AHEAD * options.mark_s, _MANY_ASKED_AHEAD * options.turns.quiet_s)

    def _is_awaited(self) -> bool:
        """Return true if a mark would close an instant, or would let events of other partitions be applied."""
        return self._open or (self._reader.options.aligned and self._reader.waits_past(self.clock_us))

    def _replay(self, script: Script) -> Poll | None:
        """Return what an earlier run gave, record for record with the same arrivals; None if nothing is there yet."""
        here = self._queue[0].first if self._queue else self._position
        if script.marks and here >= script.marks[0][0]:
            self.clock_us = max(self.clock_us, script.marks.popleft()[1])
            self._end_replay(script)
            return self._item()
        limit = min(script.until, script.marks[0][0] if script.marks else script.until)
        if self._queue and here < limit and self._reader.may_emit(self):
            return self._records(limit)
        self._end_replay(script)
        if self._script is None or self._reader.options.monotonic() - self._last_item_s >= self._heartbeat_s:
            return self._item()
        return None

    def _end_replay(self, script: Script) -> None:
        """Let this run decide again once the partition is as far as the earlier run was."""
        here = self._queue[0].first if self._queue else self._position
        if not script.marks and here >= script.until:
            self._script = None
            if script.clock_us is not None:
                self._announce(script.clock_us)

    def _announce(self, clock_us: int) -> bool:
        """Move the clock without a record; return true if it moved."""
        if clock_us <= self.clock_us:
            return False
        self.clock_us = clock_us
        self._open = False
        self._unsaid = True
        self._note(self._position, floor_us=clock_us)
        reader = self._reader
        if reader.marks.round != reader.options.turns.round:
            reader.marks = _Marks(reader.options.turns.round)
        self._marks = reader.marks
        self._marks.ticket = self._ticket
        return True

    def note_place(self) -> None:
        """Record in the journal where the partition begins."""
        self._note(self._position)

    def _note(self, begins: int, floor_us: int | None = None) -> None:
        """Record the partition's position in the journal."""
        if self._journal is None:
            return
        clock_us = None if self.clock_us == NO_CLOCK else self.clock_us
        self._ticket = self._journal.note(
            Placed(
                self._place_name,
                begins,
                self._position,
                clock_us,
                floor_us,
                self.ended,
                self._reader.n_partitions,
                self.schema_id,
            )
        )
        # Those of a round are written at once.
        if floor_us is None or self._reader.options.turns.is_last(self):
            self._journal.begin()

    def _wants_more(self) -> bool:
        """Return true if the next poll should first take in more fetched records; each poll has a fixed cost."""
        return not self._queue or (
            len(self._queue) == 1 and 2 * len(self._queue[0]) < self._reader.options.poll_records
        )

    def _mark(self) -> int:
        """Return the clock that may be announced without a record; ``NO_CLOCK`` for none."""
        reader = self._reader
        if not self._idle_wall or self._queue:
            return NO_CLOCK
        present_us = reader.options.clock.for_marks_us()
        self._asked_s = reader.options.monotonic()
        self._end_seen_us = reader.topic.caught_up(self.partition, self._position, present_us)
        return NO_CLOCK if self._end_seen_us is None else self._end_seen_us - reader.settle_us

    def _records(self, limit: int | None = None) -> Poll:
        """Return the next records; during a replay, only those before ``limit``."""
        records = self._queue.pop(0).records()
        if limit is not None and records.offsets[-1] >= limit:
            later = _Gathered()
            later.add(records.since(limit))
            self._queue.insert(0, later)
            records = records.before(limit)
        self._pause_or_resume()
        if self._end is not None and records.offsets[-1] >= self._end:
            records = records.before(self._end)
            self._position = self._end
            self._queue.clear()
            self._reader.topic.pause(self.partition)
        elif self._queue:
            self._position = int(records.offsets[-1]) + 1
        else:
            self._position = self._fetched
        if not len(records):
            return self._item()
        return self._place(records)

    def _place(self, records: Records) -> Poll:
        """Assign arrivals, and set aside the records that cannot have one."""
        reader, script = self._reader, self._script
        offsets, kinds, stamps_ms = records.offsets, records.kinds, records.stamps_ms
        self._note_epoch(records)
        if self.schema_id is None:
            self.schema_id = first_schema_id(records.values)
        if self._idle_wall and reader.stream.settle_us is None and (kinds == TIMESTAMP_CREATE_TIME).any():
            raise settle_needed(reader.stream)
        present_us = reader.options.clock.latest_us()
        decided = {} if script is None else dict(script.refused(int(offsets[0]), int(offsets[-1])))
        found = assign_arrivals(
            kinds,
            stamps_ms,
            self.clock_us,
            present_us + reader.stream.max_ahead_us,
            None if script is None else np.isin(offsets, [at for at, why in decided.items() if why.kind == "time"]),
        )
        clocks = found.clocks
        if script is None:
            self._note_stamps(records, found, present_us)
        self.clock_us = int(clocks[-1])
        reader.latest_us = max(reader.latest_us, self.clock_us)
        self._open = True
        aside = ~found.placed
        if decided:
            aside |= np.isin(offsets, list(decided))
        rejected: list[Rejected] = []
        kept = records
        if aside.any():
            for row in np.flatnonzero(aside).tolist():
                # There is no arrival before the partition has a clock, but a dead letter is stored under a day.
                arrival = reader.options.clock.wall_us() if clocks[row] == NO_CLOCK else int(clocks[row])
                known = decided.get(int(offsets[row])) if found.placed[row] else None
                rejected.append(
                    Rejected(
                        int(offsets[row]),
                        arrival,
                        refusal(int(kinds[row]), int(stamps_ms[row])) if known is None else known.reason,
                        records.keys[row],
                        records.values[row],
                        records.headers[row],
                        "time" if known is None else known.kind,
                    )
                )
            kept = records.at(np.flatnonzero(~aside))
            clocks = clocks[~aside]
        reader.counters.consumed += len(stamps_ms)
        reader.counters.bumped += found.bumped
        reader.counters.rejected += len(rejected)
        if script is not None:
            self._end_replay(script)
        else:
            if found.future.any() and self._journal is not None:
                self._journal.note(Refused.of(self._place_name, offsets[found.future].tolist(), "time", ""))
            self._note(int(offsets[0]))
        return self._item(kept, clocks, rejected, decided=script is not None)

    def _note_epoch(self, records: Records) -> None:
        """Note the leader epoch of the last record. Raises ``LayoutError`` if epochs go back, which they never do."""
        before, self.read = self.read, None
        if records.epoch is None:
            return
        if before is not None and records.epoch < before[1]:
            found = (
                f"offset {before[0] - 1} was read with leader epoch {before[1]}, and a later one has {records.epoch}."
            )
            raise LayoutError(truncated(self._reader.topic.name_of(self.partition), found))
        self.read = int(records.offsets[-1]) + 1, records.epoch

    def _note_stamps(self, records: Records, found: Arrivals, present_us: int) -> None:
        """Take the records' timestamps as evidence about this host's clock, and about those of producers."""
        reader, clock = self._reader, self._reader.options.clock
        name = reader.topic.name_of(self.partition)
        reader.refusals.note(name, records.stamps_ms * 1000, found.future, present_us)
        seen_us, self._end_seen_us = self._end_seen_us, None
        if found.placed.any():
            clock.note_record(int(records.stamps_ms[found.placed].max()) * 1000, fresh=seen_us is not None)
        if seen_us is not None and records.kinds[0] == TIMESTAMP_LOG_APPEND_TIME and found.placed[0]:
            clock.note_appended(int(records.stamps_ms[0]) * 1000, seen_us)

    def _item(
        self,
        records: Records | None = None,
        arrivals: npt.NDArray[np.int64] = _EMPTY,
        rejected: Sequence[Rejected] = (),
        *,
        decided: bool = False,
    ) -> Poll:
        records = _NO_RECORDS if records is None else records
        self._last_item_s = self._reader.options.monotonic()
        self._asked = False
        self._said_ended = self.ended and self._script is None
        self._unsaid = False
        self._said = self._said or self.clock_us != NO_CLOCK
        self._count_lag()
        self._reader.refusals.judge()
        return Poll(
            stream=self._reader.stream.name,
            partition=self.partition,
            clock_us=None if self.clock_us == NO_CLOCK else self.clock_us,
            ended=self._said_ended,
            offsets=records.offsets,
            arrivals=arrivals,
            keys=records.keys,
            values=records.values,
            rejected=list(rejected),
            headers=records.headers,
            origin=self._origin,
            place=self._place_name,
            ticket=self._ticket,
            replaying=self._script is not None,
            decided=decided,
            schema_id=self.schema_id,
            resumed=self._resumed,
        )

    @override
    def snapshot(self) -> dict[str, Any]:
        """Return position and clock as plain ints, with the number of partitions, the origin and the first schema id.

        ``read``: the offset after the last record, and its leader epoch.

        ``offset``: the next one. ``clock``: None before any. ``said``: whether an item has carried a clock. The
        snapshot before this one is durable by now, so its offset is committed to the consumer group.
        """
        if self._journal is not None:
            # A process that stood still while another took over must not write to the recovery store.
            self._journal.still_ours()
        clock_us = None if self.clock_us == NO_CLOCK else self.clock_us
        if self._saved is not None:
            self._reader.topic.commit(self.partition, self._saved[0])
            if self._journal is not None:
                self._journal.durable(self._place_name, *self._saved)
        self._saved = self._position, clock_us
        saved: dict[str, Any] = {
            "offset": self._position,
            "clock": clock_us,
            "said": int(self._said),
            "partitions": self._reader.n_partitions,
            # A partition that stops before it has rejoined is still one that had ended.
            "ended": int(self._said_ended or self.rejoins),
            "origin": self._reader.topic.name_of(self.partition),
        }
        if self.read is not None:
            saved["read"] = self.read
        return saved if self.schema_id is None else {**saved, "schema_id": self.schema_id}

    @override
    def close(self) -> None:
        self._reader.options.turns.left(self)
        self._reader.remove(self)
