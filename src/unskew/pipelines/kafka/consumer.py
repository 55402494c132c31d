"""One consumer for the topics of one stream, assigned by hand and never by a group.

Events of librdkafka are sorted by meaning.
"""

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from confluent_kafka import (
    OFFSET_END,
    OFFSET_INVALID,
    Consumer,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from unskew.features.definitions.streams import is_pattern
from unskew.features.errors import LayoutError, StoreUnavailable, UnskewError
from unskew.pipelines.kafka.blobs import Blobs
from unskew.pipelines.kafka.fetching import Fault, Fetcher, Taken
from unskew.pipelines.kafka.headers import Headers
from unskew.pipelines.kafka.watermarks import watermarks
from unskew.pipelines.state.known_topics import START_OVER, Described, KnownTopics, recreated

_log = logging.getLogger("unskew.kafka")

DEFAULTS: Mapping[str, Any] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": True,
    "auto.offset.reset": "error",
    "allow.auto.create.topics": False,
    # By default, waiting for room in the queue takes a second and a broken fetch half a second.
    "fetch.queue.backoff.ms": 10,
    "fetch.error.backoff.ms": 50,
    "fetch.wait.max.ms": 100,
    "queued.min.messages": 20_000,
    "queued.max.messages.kbytes": 32_768,
    "reconnect.backoff.ms": 50,
    "reconnect.backoff.max.ms": 1_000,
    # Errors come through the error callback; librdkafka's own lines on stderr would repeat them.
    "log_level": 2,
}
RETAIN_MORE = "raise the topic's retention"
_ANSWER_S = 1.0
# The thread that asks the broker rests this long at least, and four times as long as the questions took.
_REST_S = 0.005
_CLOSE_S = 3.0

# librdkafka's local error codes begin with an underscore, but they are public.
_OUT_OF_RANGE = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}  # noqa: SLF001
# Errors while a partition has just been created, or moves to another broker and the client does not know that yet.
_PASSING = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
}
# librdkafka begins to read a partition in a thread of its own: a seek comes before that, or while it happens.
_NOT_BEGUN = frozenset({KafkaError._STATE, KafkaError._OUTDATED})  # noqa: SLF001
_BROKER_LOST = {KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._TIMED_OUT}  # noqa: SLF001


_FORBIDDEN = {KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.CLUSTER_AUTHORIZATION_FAILED}
# The id in the answer of a broker that knows no ids.
_NO_ID = "AAAAAAAAAAAAAAAAAAAAAA"
_NOT_LET_IN = {KafkaError._AUTHENTICATION, KafkaError._SSL}  # noqa: SLF001
# Messages that are taken at once.
_AT_ONCE = 10_000


class Flag(Protocol):
    """A stop signal, for example ``threading.Event``."""

    def is_set(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Records:
    """Consecutive records of one partition as columns of equal length, in offset order.

    ``kinds``: Kafka's timestamp types. ``stamps_ms``: record timestamps. The value of a tombstone is None.
    ``epoch``: the leader epoch of the last record as it was fetched, None if the broker gave none.
    """

    offsets: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.int64]
    stamps_ms: npt.NDArray[np.int64]
    keys: Blobs
    values: Blobs
    headers: Headers
    epoch: int | None = None

    def __len__(self) -> int:
        return len(self.values)

    def before(self, offset: int) -> "Records":
        """Return the records before ``offset``."""
        return self.part(slice(0, int(np.searchsorted(self.offsets, offset))))

    def since(self, offset: int) -> "Records":
        """Return the records at ``offset`` and after it."""
        return self.part(slice(int(np.searchsorted(self.offsets, offset)), len(self)))

    def part(self, rows: slice) -> "Records":
        """Return the records of consecutive ``rows``."""
        return Records(
            self.offsets[rows],
            self.kinds[rows],
            self.stamps_ms[rows],
            self.keys[rows],
            self.values[rows],
            self.headers[rows],
            # Of a part, the epoch may be too late; that is never taken for a truncation.
            self.epoch,
        )

    def copied(self) -> "Records":
        """Return the same records in memory of their own."""
        return Records(
            self.offsets.copy(),
            self.kinds.copy(),
            self.stamps_ms.copy(),
            self.keys.copied(),
            self.values.copied(),
            Headers(self.headers.blobs.copied()),
            self.epoch,
        )

    def at(self, rows: npt.NDArray[np.int64]) -> "Records":
        """Return the records of chosen ``rows``."""
        return Records(
            self.offsets[rows],
            self.kinds[rows],
            self.stamps_ms[rows],
            self.keys.at(rows),
            self.values.at(rows),
            self.headers.at(rows),
            self.epoch,
        )

    @classmethod
    def joined(cls, pieces: "Sequence[Records]") -> "Records":
        """Join pieces that follow one another."""
        if len(pieces) == 1:
            return pieces[0]
        return cls(
            np.concatenate([piece.offsets for piece in pieces]),
            np.concatenate([piece.kinds for piece in pieces]),
            np.concatenate([piece.stamps_ms for piece in pieces]),
            Blobs.joined([piece.keys for piece in pieces]),
            Blobs.joined([piece.values for piece in pieces]),
            Headers.joined([piece.headers for piece in pieces]),
            pieces[-1].epoch,
        )


def _pieces(taken: Taken, partitions: npt.NDArray[np.int64]) -> Iterator[tuple[int, Records]]:
    """Yield one piece for each run of records of one partition. ``partitions``: the number of each record's."""
    if not len(partitions):
        return
    edges = [0, *(np.flatnonzero(partitions[1:] != partitions[:-1]) + 1).tolist(), len(partitions)]
    for first, after in pairwise(edges):
        epoch = int(taken.epochs[after - 1])
        every = Records(
            taken.offsets,
            taken.kinds,
            taken.stamps_ms,
            taken.keys,
            taken.values,
            taken.headers,
            None if epoch < 0 else epoch,
        )
        # A part that waits for long must not keep the memory of all that came with it.
        yield int(partitions[first]), every if len(edges) == 2 else every.part(slice(first, after)).copied()


@dataclass(frozen=True, slots=True)
class Fetched:
    """Fetched records, in order per partition, and (partition, offset) of the ends that were reached.

    ``pieces``: pairs of partition and records. ``all_there_was``: true if nothing more was waiting.
    """

    pieces: list[tuple[int, Records]]
    ends: list[tuple[int, int]]
    all_there_was: bool


@dataclass(frozen=True, slots=True)
class _End:
    """The end of a partition as the broker gave it in answer to a request.

    ``as_of_us``: an instant before the request, by the clock of who wanted to know; None if nobody did.
    """

    offset: int
    as_of_us: int | None


class TopicReader:
    """The consumer of one or several topics, and a thread for the requests to the broker that must not delay the flow.

    ``topics``: names, or one pattern that begins with ^. Partitions are numbered consecutively, topic by topic, and new
    ones after those of ``known``; ``origins`` maps each number to topic and partition. The thread asks for the ends of
    partitions, and checks whether topics were deleted and created again, and whether partitions or topics were added;
    then it calls ``on_added`` with their number. ``known``: what an earlier run read. ``adopt_ids``: topics with other
    ids are the same ones. ``stop``: once it is set, nothing waits for a broker that does not answer. Raises
    ``StoreUnavailable`` if the broker does not answer within ``timeout_s`` or does not have the topic, ``LayoutError``
    if its topics are not the ones known.

    ``retries``: how often the broker did not answer the thread. ``away_s``: for how long it has not.
    """

    def __init__(
        self,
        topics: Sequence[str],
        bootstrap: str,
        group: str,
        *,
        stop: Flag,
        timeout_s: float,
        check_partitions_s: float,
        on_added: Callable[[int], None],
        known: KnownTopics | None,
        adopt_ids: bool,
        config: Mapping[str, Any],
    ) -> None:
        self._topics = topics
        self.title = f"Topic {topics[0]!r}" if len(topics) == 1 else f"The group of topics {', '.join(topics)}"
        self._bootstrap = bootstrap
        self._config = config
        self._timeout_s = timeout_s
        self._check_partitions_s = check_partitions_s
        self._on_added = on_added
        # The partitions that are read, and where that began.
        self._begun_at: dict[int, int] = {}
        # Offsets and leader epochs of places whose epochs librdkafka has not been asked to check yet.
        self._unchecked: dict[int, tuple[int, int]] = {}
        # What ended a wait; ``consume`` gives it.
        self._awaited: Taken | None = None
        # Why the broker does not let a partition be read; it says so once, and the next record shows that it does.
        self._refusals: dict[int, str] = {}
        self._ends: dict[int, _End] = {}
        # Partitions whose end somebody wants to know, and when they wanted it.
        self._wanted: dict[int, int] = {}
        self._stop = stop
        self.retries = 0
        self._away_since_s: float | None = None
        self._failed_in_a_row = 0
        # Offsets for the next commit to the group, and whether a commit is in flight.
        self._uncommitted: dict[int, int] = {}
        self._committing = False
        self._fault: UnskewError | None = None
        self._said: set[int] = set()
        self._refused: str | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        ours = {**DEFAULTS, **config, "bootstrap.servers": bootstrap, "group.id": group}
        # It reads nothing, and has connections of its own: a broker answers the requests of a connection in turn, so a
        # question would wait behind a fetch that waits for records.
        # Records of open transactions count for it, because they may still be committed.
        callbacks = {"error_cb": self._on_error, "on_commit": self._on_commit}
        self._asker = Consumer({**ours, "isolation.level": "read_uncommitted", **callbacks})
        # Connects with the first request only.
        self._admin = AdminClient({"log_level": 2, **config, "bootstrap.servers": bootstrap})
        self._fetcher = Fetcher(ours, _AT_ONCE, self._on_error)
        try:
            found = self._find(timeout_s)
            if known is not None:
                known.check(self.title, found, any_id=adopt_ids)
            self.known = KnownTopics.of(found, known)
        except BaseException:
            self._close()
            raise
        self.origins = self.known.partitions
        self.n_partitions = len(self.origins)
        self._number_of = {origin: number for number, origin in enumerate(self.origins)}
        # By topic, the numbers of its partitions.
        by_topic: dict[str, dict[int, int]] = {}
        for number, (topic, partition) in enumerate(self.origins):
            by_topic.setdefault(topic, {})[partition] = number
        self._numbers_of = {
            topic: np.array([numbers.get(partition, -1) for partition in range(1 + max(numbers))], np.int64)
            for topic, numbers in by_topic.items()
        }
        self._watcher = threading.Thread(target=self._watch, name=f"unskew-kafka-{topics[0]}", daemon=True)
        self._watcher.start()

    def name_of(self, partition: int) -> str:
        """Return ``topic/partition``."""
        topic, number = self.origins[partition]
        return f"{topic}/{number}"

    def _at(self, partition: int, offset: int = OFFSET_INVALID) -> TopicPartition:
        topic, number = self.origins[partition]
        return TopicPartition(topic, number, offset)

    def watermarks(self, partitions: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Return the broker's present low and high watermark of each partition. Raises ``StoreUnavailable``."""
        late = stop_after_delay(self._timeout_s)
        asking = Retrying(
            retry=retry_if_exception(passes),
            wait=wait_random_exponential(multiplier=0.02, max=0.5),
            stop=lambda state: self._stop.is_set() or late(state),
            reraise=True,
        )
        origins = [self.origins[partition] for partition in partitions]
        within_s = min(_ANSWER_S, self._timeout_s)
        try:
            found = asking(watermarks, self._admin, origins, within_s, self._config)
        except KafkaException as error:
            raise self._unavailable(error) from error
        return {self._number_of[origin]: between for origin, between in found.items()}

    def add(self, partition: int, offset: int, epoch: int | None = None) -> None:
        """Read a partition from ``offset`` on, even if it is being read already.

        ``epoch``: the leader epoch of the record before ``offset``. With it, ``consume`` finds out if that record is
        not there any more, although the broker has others at its offset and after it.
        """
        origin = self.origins[partition]
        if partition in self._begun_at:
            self._fetcher.unassign(*origin)
        self._begun_at[partition] = offset
        self._fetcher.assign(*origin, offset)
        if epoch is not None:
            self._unchecked[partition] = offset, epoch
            self._check_epochs()

    def _check_epochs(self) -> None:
        """Let librdkafka check the leader epochs of the places from which partitions were added.

        It knows the partitions' leaders by then, so it checks the epoch of a seek, but not that of an assignment. Until
        it has begun to read a partition it refuses to seek; what it fetched before a seek comes again, and is dropped.
        """
        for partition, begin in list(self._unchecked.items()):
            try:
                self._fetcher.seek(*self.origins[partition], *begin)
            except KafkaException as error:
                if error.args[0].code() not in _NOT_BEGUN:
                    raise self._unavailable(error) from error
            else:
                del self._unchecked[partition]

    def consume(self, limit: int) -> Fetched:
        """Take up to ``limit`` fetched records, without waiting.

        Raises ``LayoutError`` if the wanted offset is gone or the log was truncated before it, ``StoreUnavailable`` for
        permanent errors.
        """
        if self._unchecked:
            self._check_epochs()
        pieces: list[tuple[int, Records]] = []
        ends: list[tuple[int, int]] = []
        left = limit
        while left > 0:
            awaited, self._awaited = self._awaited, None
            taken = self._fetcher.take(left) if awaited is None else awaited
            self.check()
            left -= taken.n_messages
            pieces.extend(_pieces(taken, self._numbers(taken)))
            if self._refusals:
                for partition, _ in pieces:
                    self._refusals.pop(partition, None)
            # librdkafka delivers errors as messages.
            ends += [(self._number_of[topic, partition], offset) for topic, partition, offset in taken.ends]
            for fault in taken.faults:
                self._note_fault(fault)
            if taken.all_there_was and awaited is None:
                return Fetched(pieces, ends, all_there_was=True)
        return Fetched(pieces, ends, all_there_was=False)

    def await_records(self, timeout_s: float) -> None:
        """Return once a record has been fetched, or after a time."""
        if self._awaited is None:
            taken = self._fetcher.take(1, timeout_s)
            self._awaited = taken if taken.n_messages else None

    def _numbers(self, taken: Taken) -> npt.NDArray[np.int64]:
        """Return the number of each record's partition."""
        if len(self._numbers_of) == 1:
            return taken.partitions
        numbers = np.empty(len(taken.topics), np.int64)
        for address in np.unique(taken.topics).tolist():
            rows = taken.topics == address
            numbers[rows] = self._numbers_of[self._fetcher.topic_of(address)][taken.partitions[rows]]
        return numbers

    def _note_fault(self, fault: Fault) -> None:
        """Raise what ends the flow; note or log what does not."""
        code = fault.error.code()
        if code in _OUT_OF_RANGE:
            raise self._out_of_range(fault)
        if code in _FORBIDDEN:
            self._refusals[self._number_of[fault.topic, fault.partition]] = fault.error.str()
        self._on_error(fault.error)
        self.check()

    def _out_of_range(self, fault: Fault) -> UnskewError:
        partition = self._number_of[fault.topic, fault.partition]
        # A topic that was created again lacks these offsets for another reason.
        self._check_ids()
        if self._fault is not None:
            return self._fault
        wanted = fault.offset
        low, high = self.watermarks([partition])[partition]
        if wanted < 0 or low <= wanted <= high:
            # Found by leader epochs; librdkafka may give no offset then.
            return LayoutError(truncated(self.name_of(partition), fault.error.str()))
        if wanted < low:
            return LayoutError(offsets_gone(self.name_of(partition), wanted, low))
        return LayoutError(past_the_end(self.name_of(partition), wanted, high))

    def pause(self, partition: int) -> None:
        """Stop fetching a partition."""
        if partition in self._begun_at:
            self._fetcher.pause(*self.origins[partition])

    def resume(self, partition: int) -> None:
        """Fetch a partition again."""
        self._fetcher.resume(*self.origins[partition])

    def high(self, partition: int) -> int | None:
        """Return the last known end; None before the first."""
        if partition not in self._begun_at:
            return None
        fetched = self._fetcher.high(*self.origins[partition])
        answered = self._ends.get(partition)
        known = [*([] if fetched < 0 else [fetched]), *([] if answered is None else [answered.offset])]
        return max(known, default=None)

    def caught_up(self, partition: int, position: int, now_us: int) -> int | None:
        """Return the latest instant at which all records before it had been read; None if ``position`` is not the end.

        ``now_us``: the present. The result is the present of an earlier call, because the broker is asked in between.
        What fetches report is not enough: the end that they reported last stays the same while a partition is not
        fetched, because its broker hangs, has another leader or refuses.
        """
        high = self.high(partition)
        if high is not None and position < high:
            return None
        with self._lock:
            self._wanted[partition] = now_us
        # Many partitions ask together, and to look costs less.
        if not self._wake.is_set():
            self._wake.set()
        end = self._ends.get(partition)
        return None if end is None else end.as_of_us

    def commit(self, partition: int, offset: int) -> None:
        """Commit to the consumer group, for lag tools only, without waiting.

        The thread does it. One commit is in flight at a time, and the next one carries the latest offsets.
        """
        with self._lock:
            self._uncommitted[partition] = offset

    def _commit(self) -> None:
        with self._lock:
            latest, self._uncommitted = self._uncommitted, {}
        if not latest:
            return
        try:
            self._committing = True
            self._asker.commit(
                offsets=[self._at(partition, offset) for partition, offset in latest.items()], asynchronous=True
            )
        except KafkaException as error:
            self._committing = False
            self._on_error(error.args[0])

    def fail(self, fault: UnskewError) -> None:
        """Let ``check`` raise this."""
        self._fault = fault

    def check(self) -> None:
        """Raise the fault that the thread or librdkafka found: ``LayoutError`` or ``StoreUnavailable``."""
        if self._fault is not None:
            raise self._fault

    def close(self) -> None:
        """Stop the thread and close the consumer; wait a few seconds at most.

        librdkafka's own close waits for the commit in flight, for minutes if no broker answers. Nothing depends on that
        commit, so it is then left to a thread that ends with the process.
        """
        self._closing.set()
        self._wake.set()
        self._watcher.join()
        if self._away_since_s is None:
            self._commit()
        closing = threading.Thread(target=self._close, name="unskew-kafka-close", daemon=True)
        closing.start()
        closing.join(_CLOSE_S if self._away_since_s is None else _REST_S)

    def _close(self) -> None:
        self._fetcher.close()
        self._asker.close()

    @property
    def away_s(self) -> float:
        """The number of seconds for which the broker has not answered; 0.0 while it answers."""
        since_s = self._away_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._fault = StoreUnavailable(f"Kafka at {self._bootstrap}, {self.title}: {error.str()}")
            return
        if error.code() in _BROKER_LOST:
            # Whether that matters, the thread finds out with its next question.
            return
        if error.code() in _NOT_LET_IN:
            self._refused = error.str()
        if error.code() not in self._said:
            self._said.add(error.code())
            _log.warning("Kafka at %s, %s: %s; continuing", self._bootstrap, self.title, error.str())

    def _on_commit(self, error: KafkaError | None, partitions: Sequence[TopicPartition]) -> None:
        self._committing = False
        for failed in [error, *(partition.error for partition in partitions)]:
            if failed is not None:
                self._on_error(failed)

    def _watch(self) -> None:
        asked_all_s = checked_s = time.monotonic()
        has_ids = any(self.known.ids.values())
        while not self._closing.is_set():
            self._wake.wait(_ANSWER_S)
            self._wake.clear()
            if self._closing.is_set():
                return
            began_s = time.monotonic()
            every = began_s - asked_all_s >= _ANSWER_S
            asked_all_s = began_s if every else asked_all_s
            # Answers to commits, and errors, come through callbacks.
            self._asker.poll(0)
            if not self._committing:
                self._commit()
            self._ask(every=every)
            if every and has_ids and self._away_since_s is None:
                self._check_ids()
            if began_s - checked_s >= self._check_partitions_s and self._away_since_s is None:
                checked_s = began_s
                self._check_partitions()
            self._closing.wait(max(_REST_S, min(4 * (time.monotonic() - began_s), _ANSWER_S)))

    def _ask(self, *, every: bool) -> None:
        """Ask the broker for the ends of the partitions that are wanted, or of all."""
        with self._lock:
            wanted, self._wanted = self._wanted, {}
        partitions = list(self._begun_at if every else wanted)
        if not partitions:
            return
        try:
            answers = self._asker.offsets_for_times(
                [self._at(partition, OFFSET_END) for partition in partitions], timeout=_ANSWER_S
            )
        except KafkaException as error:
            self._note_away(error.args[0].str())
            return
        faults = []
        for partition, answer in zip(partitions, answers, strict=True):
            if answer.error is not None:
                faults.append(f"{self.name_of(partition)}: {answer.error.str()}")
                continue
            before = self._ends.get(partition)
            as_of_us = wanted.get(partition, None if before is None else before.as_of_us)
            self._ends[partition] = _End(answer.offset, as_of_us)
            refusal = self._refusals.get(partition)
            if refusal is not None and not self._reads_past(partition, answer.offset):
                faults.append(f"{self.name_of(partition)}: {refusal}")
        if faults:
            self._note_away(faults[0])
        elif every or self._away_since_s is None:
            self._note_back()

    def _reads_past(self, partition: int, end: int) -> bool:
        """Return true if nothing before ``end`` is left to fetch."""
        return max(self._fetcher.position(*self.origins[partition]), self._begun_at[partition]) >= end

    def _note_away(self, why: str) -> None:
        self.retries += 1
        self._failed_in_a_row += 1
        if self._away_since_s is None:
            self._away_since_s = time.monotonic()
        # A leader that moves fails one question.
        if self._failed_in_a_row == 2:
            _log.warning(
                "Kafka at %s, %s, is away: %s; the flow waits and tries again", self._bootstrap, self.title, why
            )

    def _note_back(self) -> None:
        if self._failed_in_a_row > 1:
            _log.warning("Kafka at %s, %s, is back after %.1f s; going on", self._bootstrap, self.title, self.away_s)
        self._failed_in_a_row = 0
        self._away_since_s = None

    def _check_ids(self) -> None:
        """Find out whether a topic was deleted and created again; say nothing if the broker does not answer."""
        try:
            ids = self._describe_ids(list(self.known.ids))
        except StoreUnavailable:
            return
        for topic, now in ids.items():
            before = self.known.ids[topic]
            if now is not None and before is not None and now != before:
                self._fault = LayoutError(recreated(topic, before, now))

    def _check_partitions(self) -> None:
        """Find out whether partitions or topics were added."""
        try:
            found = self._find(_ANSWER_S)
        except StoreUnavailable:
            return
        try:
            self.known.check(self.title, found)
        except LayoutError as error:
            self._fault = error
            return
        now = len(KnownTopics.of(found, self.known).partitions)
        if now > self.n_partitions:
            self._on_added(now)

    def _find(self, timeout_s: float) -> dict[str, Described]:
        """Ask the broker for the stream's topics, in their order."""
        by_pattern = is_pattern(self._topics[0])
        about = self._metadata(timeout_s, self._topics[0] if len(self._topics) == 1 and not by_pattern else None)
        topics = self._matching(about.topics) if by_pattern else self._topics
        counts = {topic: self._count_partitions(topic, about.topics.get(topic)) for topic in topics}
        # Without a controller among its brokers, as librdkafka's mock has none, a cluster gives no ids.
        ids = self._describe_ids(topics) if about.controller_id in about.brokers else {}
        return {topic: Described(ids.get(topic), n_partitions) for topic, n_partitions in counts.items()}

    def _matching(self, names: Iterable[str]) -> list[str]:
        """Return the topics that match the pattern, sorted by name; Kafka's own only if the pattern asks for them."""
        pattern = self._topics[0]
        matched = sorted(
            name
            for name in names
            if re.match(pattern, name) and (not name.startswith("__") or pattern.startswith("^__"))
        )
        if not matched:
            raise StoreUnavailable(
                f"no topic on the broker at {self._bootstrap} matches {pattern!r}: create one, or correct the pattern"
            )
        return matched

    def _count_partitions(self, topic: str, found: Any) -> int:
        if found is not None and found.error is not None and found.error.code() in _FORBIDDEN:
            raise StoreUnavailable(
                f"Topic {topic!r} on the broker at {self._bootstrap} is closed to this client ({found.error.str()}): allow it "
                "to describe and read the topic"
            )
        if found is None or found.error is not None or not found.partitions:
            raise StoreUnavailable(
                f"Topic {topic!r} is not on the broker at {self._bootstrap}: create it, or correct the stream's topic"
            )
        return len(found.partitions)

    def _describe_ids(self, topics: Sequence[str]) -> dict[str, str | None]:
        """Ask the broker for the ids of topics; those that are not there now are left out."""
        ids: dict[str, str | None] = {}
        answers = self._admin.describe_topics(TopicCollection(list(topics)), request_timeout=_ANSWER_S)
        for topic, answer in answers.items():
            try:
                id_ = str(answer.result(2 * _ANSWER_S).topic_id)
            except (KafkaException, FutureTimeout) as error:
                code = error.args[0].code() if isinstance(error, KafkaException) else KafkaError._TIMED_OUT  # noqa: SLF001
                if code in _BROKER_LOST:
                    raise StoreUnavailable(
                        f"Kafka at {self._bootstrap} did not say which topics it has: start it, or correct the address"
                    ) from error
                continue
            ids[topic] = None if id_ == _NO_ID else id_
        return ids

    def _metadata(self, timeout_s: float, topic: str | None) -> Any:
        """Return the broker's metadata of one topic or all; do not wait for a broker that refuses this client."""
        left_s = timeout_s
        while True:
            within_s = min(left_s, _ANSWER_S)
            try:
                return (
                    self._asker.list_topics(timeout=within_s)
                    if topic is None
                    else self._asker.list_topics(topic, within_s)
                )
            except KafkaException as error:
                # Connection errors arrive through the error callback, which ``poll`` calls.
                self._asker.poll(0)
                left_s -= within_s
                if left_s <= 0 or self._refused is not None or self._stop.is_set():
                    raise self._unavailable(error) from error

    def _unavailable(self, error: KafkaException) -> StoreUnavailable:
        if self._refused is not None:
            return StoreUnavailable(
                f"Kafka at {self._bootstrap} refuses this client: {self._refused}; correct the settings of --kafka-config"
            )
        if self._stop.is_set():
            return StoreUnavailable(
                f"Kafka at {self._bootstrap} has not answered yet, and this process was asked to stop: nothing was begun"
            )
        return StoreUnavailable(
            f"Kafka at {self._bootstrap} did not answer within {self._timeout_s:g} s ({error.args[0].str()}): "
            "start it, or correct the address"
        )


def passes(error: BaseException) -> bool:
    return isinstance(error, KafkaException) and error.args[0].code() in _PASSING | _BROKER_LOST


def offsets_gone(name: str, wanted: int, low: int) -> str:
    """Compose the error for records that the broker no longer has."""
    return (
        f"{name}: offsets {wanted} to {low - 1} are gone from the broker ({low - wanted} records, deleted by retention before "
        f"they were read), so values would be wrong; {RETAIN_MORE} and {START_OVER}"
    )


def past_the_end(name: str, position: int, high: int) -> str:
    """Compose the error for a partition that has become shorter than what was read of it."""
    return (
        f"{name}: the saved position {position} is past the topic's end {high}: the topic was recreated or truncated, so its "
        f"records are not the ones already counted; {START_OVER}"
    )


def truncated(name: str, found: str) -> str:
    """Compose the error for a partition that lost records which were read. ``found``: librdkafka's finding."""
    return (
        f"{name}: records that were already counted are gone from the end of the partition, because a broker without them "
        f"became its leader (an unclean leader election, or a disk that lost data): {found} Values and log contain them, and "
        f"the topic does not; {START_OVER}. If the topic was restored or mirrored, with the same records at the same offsets, "
        "run once with --adopt-topic-ids"
    )
