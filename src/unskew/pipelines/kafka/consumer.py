"""One consumer for the topics of one stream, assigned by hand and never by a group.

Events of librdkafka are sorted by meaning.
"""

import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, Message, TopicPartition
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from unskew.features.definitions.streams import is_pattern
from unskew.features.errors import LayoutError, StoreUnavailable, UnskewError

_log = logging.getLogger("unskew.kafka")

_DEFAULTS: Mapping[str, Any] = {
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
_ANSWER_S = 1.0

# librdkafka's local error codes begin with an underscore, but they are public.
_END_OF_PARTITION = KafkaError._PARTITION_EOF  # noqa: SLF001
_OUT_OF_RANGE = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}  # noqa: SLF001
# Errors while a partition has just been created or moves to another broker.
_PASSING = {KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE}
_BROKER_LOST = {KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._TIMED_OUT}  # noqa: SLF001


_NOT_LET_IN = {KafkaError._AUTHENTICATION, KafkaError._SSL}  # noqa: SLF001
# Methods of the C type, called by map rather than by bytecode.
_OFFSET = cast("Callable[[_Message], int]", Message.offset)
_TOPIC = cast("Callable[[_Message], str]", Message.topic)
_PARTITION = cast("Callable[[_Message], int]", Message.partition)
_TIMESTAMP = cast("Callable[[_Message], tuple[int, int]]", Message.timestamp)
_KEY = cast("Callable[[_Message], bytes | None]", Message.key)
_VALUE = cast("Callable[[_Message], bytes | None]", Message.value)
_HEADERS = cast("Callable[[_Message], Any]", Message.headers)
_ERROR = cast("Callable[[_Message], KafkaError | None]", Message.error)

# Python's garbage collector runs whenever this many more container objects live, and sometimes scans all of them.
# Messages are containers and the values taken out of them are not, so small batches cost a third as much.
_AT_ONCE = 500


class _Message(Protocol):
    """A Kafka message that is a record, not an error, so that its fields are present."""

    def topic(self) -> str: ...

    def partition(self) -> int: ...

    def offset(self) -> int: ...

    def error(self) -> KafkaError | None: ...


@dataclass(frozen=True, slots=True)
class Records:
    """Consecutive records of one partition as columns of equal length, in offset order.

    ``kinds``: Kafka's timestamp types. ``stamps_ms``: record timestamps. The value of a tombstone is None.
    ``headers``: as the client gives them; None if they were not requested.
    """

    offsets: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.int64]
    stamps_ms: npt.NDArray[np.int64]
    keys: list[bytes | None]
    values: list[bytes | None]
    headers: list[Any] | None

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
            None if self.headers is None else self.headers[rows],
        )

    def at(self, rows: npt.NDArray[np.int64]) -> "Records":
        """Return the records of chosen ``rows``."""
        chosen = rows.tolist()
        return Records(
            self.offsets[rows],
            self.kinds[rows],
            self.stamps_ms[rows],
            [self.keys[row] for row in chosen],
            [self.values[row] for row in chosen],
            None if self.headers is None else [self.headers[row] for row in chosen],
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
            list(chain.from_iterable(piece.keys for piece in pieces)),
            list(chain.from_iterable(piece.values for piece in pieces)),
            None if pieces[0].headers is None else list(chain.from_iterable(piece.headers or () for piece in pieces)),
        )


def _by_partition(
    messages: Sequence[_Message], first_of: Mapping[str, int], *, headers: bool
) -> Iterator[tuple[int, Records]]:
    """Yield one piece for each run of messages of one partition, without a Python step per record.

    ``first_of``: the number of each topic's first partition.
    """
    if not messages:
        return
    count = len(messages)
    partitions = np.fromiter(map(_PARTITION, messages), np.int64, count)
    if len(first_of) > 1:
        partitions += np.fromiter(map(first_of.__getitem__, map(_TOPIC, messages)), np.int64, count)
    stamps = np.fromiter(chain.from_iterable(map(_TIMESTAMP, messages)), np.int64, 2 * count).reshape(-1, 2)
    every = Records(
        np.fromiter(map(_OFFSET, messages), np.int64, count),
        stamps[:, 0],
        stamps[:, 1],
        list(map(_KEY, messages)),
        list(map(_VALUE, messages)),
        _headers_of(messages) if headers else None,
    )
    edges = [0, *(np.flatnonzero(np.diff(partitions)) + 1).tolist(), count]
    for first, after in pairwise(edges):
        yield int(partitions[first]), every if after - first == count else every.part(slice(first, after))


def _headers_of(messages: Sequence[_Message]) -> list[Any]:
    """Return the headers of messages.

    A message with header names that are not UTF-8 gives None, because the client cannot return them.
    """
    try:
        return list(map(_HEADERS, messages))
    except UnicodeDecodeError:
        return [_sound_headers(message) for message in messages]


def _sound_headers(message: _Message) -> Any:
    try:
        return _HEADERS(cast("Any", message))
    except UnicodeDecodeError:
        return None


@dataclass(frozen=True, slots=True)
class Fetched:
    """Fetched records, in order per partition, and (partition, offset) of the ends that were reached.

    ``pieces``: pairs of partition and records. ``all_there_was``: true if nothing more was waiting.
    """

    pieces: list[tuple[int, Records]]
    ends: list[tuple[int, int]]
    all_there_was: bool


class TopicReader:
    """The consumer of one or several topics, and a thread for the requests to the broker that must not delay the flow.

    ``topics``: names, or one pattern that begins with ^. Partitions are numbered consecutively, topic by topic;
    ``origins`` maps each number to topic and partition. The thread checks whether partitions or topics were added, and
    verifies high watermarks that may be out of date: those of partitions that were paused, and all of them after the
    connection to the broker was lost. ``headers``: true to read record headers. Raises ``StoreUnavailable`` if the
    broker does not answer within ``timeout_s`` or does not have the topic.
    """

    def __init__(
        self,
        topics: Sequence[str],
        bootstrap: str,
        group: str,
        *,
        headers: bool,
        timeout_s: float,
        check_partitions_s: float,
        config: Mapping[str, Any],
    ) -> None:
        self._topics = topics
        self.title = f"Topic {topics[0]!r}" if len(topics) == 1 else f"The group of topics {', '.join(topics)}"
        self._bootstrap = bootstrap
        self._headers = headers
        self._timeout_s = timeout_s
        self._check_partitions_s = check_partitions_s
        self._handles: dict[int, TopicPartition] = {}
        self._verified_highs: dict[int, int] = {}
        # Partitions whose high watermark may be out of date, each with the number of the doubt.
        self._doubts: dict[int, int] = {}
        self._n_doubts = 0
        # Offsets for the next commit to the group, and whether a commit is in flight.
        self._uncommitted: dict[int, int] = {}
        self._committing = False
        self._fault: UnskewError | None = None
        self._said: set[int] = set()
        self._refused: str | None = None
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._consumer = Consumer(
            {
                **_DEFAULTS,
                "error_cb": self._on_error,
                "on_commit": self._on_commit,
                **config,
                "bootstrap.servers": bootstrap,
                "group.id": group,
            }
        )
        try:
            self.origins = self._find_partitions(timeout_s)
        except BaseException:
            self._consumer.close()
            raise
        self.n_partitions = len(self.origins)
        self._number_of = {origin: number for number, origin in enumerate(self.origins)}
        self._first_of = {topic: number - partition for (topic, partition), number in self._number_of.items()}
        self._watcher = threading.Thread(target=self._watch, name=f"unskew-kafka-{topics[0]}", daemon=True)
        self._watcher.start()

    def name_of(self, partition: int) -> str:
        """Return ``topic/partition``."""
        topic, number = self.origins[partition]
        return f"{topic}/{number}"

    def _at(self, partition: int, offset: int = OFFSET_INVALID) -> TopicPartition:
        topic, number = self.origins[partition]
        return TopicPartition(topic, number, offset)

    def watermarks(self, partition: int) -> tuple[int, int]:
        """Return the broker's present low and high watermark. Raises ``StoreUnavailable``."""
        asking = Retrying(
            retry=retry_if_exception(_passes),
            wait=wait_random_exponential(multiplier=0.02, max=0.5),
            stop=stop_after_delay(self._timeout_s),
            reraise=True,
        )
        try:
            low, high = asking(self._consumer.get_watermark_offsets, self._at(partition), timeout=self._timeout_s)
        except KafkaException as error:
            raise self._unavailable(error) from error
        return low, high

    def add(self, partition: int, offset: int) -> None:
        """Read a partition from ``offset`` on, even if it is being read already."""
        if partition in self._handles:
            self._consumer.incremental_unassign([self._handles[partition]])
        self._handles[partition] = self._at(partition)
        self._consumer.incremental_assign([self._at(partition, offset)])

    def consume(self, limit: int) -> Fetched:
        """Take up to ``limit`` fetched records, without waiting.

        Raises ``LayoutError`` if the wanted offset is gone, ``StoreUnavailable`` for permanent errors.
        """
        self._commit_next()
        pieces: list[tuple[int, Records]] = []
        ends: list[tuple[int, int]] = []
        left = limit
        while left:
            wanted = min(left, _AT_ONCE)
            messages = cast("list[_Message]", self._consumer.consume(wanted, 0))
            self.check()
            left -= len(messages)
            all_there_was = len(messages) < wanted
            # librdkafka delivers errors as messages; the usual case without errors costs one pass.
            if any(map(_ERROR, messages)):
                messages = self._without_errors(messages, ends)
            pieces.extend(_by_partition(messages, self._first_of, headers=self._headers))
            if all_there_was:
                return Fetched(pieces, ends, all_there_was=True)
        return Fetched(pieces, ends, all_there_was=False)

    def _without_errors(self, messages: Sequence[_Message], ends: list[tuple[int, int]]) -> list[_Message]:
        """Return the records; add ends of partitions to ``ends`` and raise faults."""
        records: list[_Message] = []
        for message in messages:
            error = message.error()
            if error is None:
                records.append(message)
            elif error.code() == _END_OF_PARTITION:
                ends.append((self._number_of[message.topic(), message.partition()], message.offset()))
            elif error.code() in _OUT_OF_RANGE:
                raise self._out_of_range(message)
            else:
                self._on_error(error)
                self.check()
        return records

    def _out_of_range(self, message: _Message) -> UnskewError:
        wanted = message.offset()
        partition = self._number_of[message.topic(), message.partition()]
        low, _ = self.watermarks(partition)
        return LayoutError(offsets_gone(self.name_of(partition), wanted, low))

    def pause(self, partition: int) -> None:
        """Stop fetching a partition."""
        if partition in self._handles:
            self._consumer.pause([self._handles[partition]])

    def resume(self, partition: int) -> None:
        """Fetch a partition again."""
        self._doubt([partition])
        self._consumer.resume([self._handles[partition]])

    def high(self, partition: int) -> int | None:
        """Return the last known high watermark; None before the first."""
        handle = self._handles.get(partition)
        if handle is None:
            return None
        high: int = self._consumer.get_watermark_offsets(handle, cached=True)[1]
        return None if high == OFFSET_INVALID else max(high, self._verified_highs.get(partition, 0))

    def caught_up(self, partition: int, position: int) -> bool:
        """Return true if ``position`` is the end of the partition, as reported by a broker that answers."""
        high = self.high(partition)
        if high is None or position < high:
            return False
        if partition in self._doubts:
            self._wake.set()
            return False
        return True

    def commit(self, partition: int, offset: int) -> None:
        """Commit to the consumer group, for lag tools only, without waiting.

        One commit is in flight at a time, and the next one carries the latest offsets: librdkafka begins to read a
        newly added partition only when no commit is in flight, so an unbroken series of commits would keep it from
        beginning.
        """
        self._uncommitted[partition] = offset
        self._commit_next()

    def _commit_next(self) -> None:
        if self._uncommitted and not self._committing:
            self._commit()

    def _commit(self) -> None:
        offsets = [self._at(partition, offset) for partition, offset in self._uncommitted.items()]
        self._uncommitted.clear()
        try:
            self._committing = True
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            self._committing = False
            self._on_error(error.args[0])

    def check(self) -> None:
        """Raise the fault that the thread or librdkafka found: ``LayoutError`` or ``StoreUnavailable``."""
        if self._fault is not None:
            raise self._fault

    def close(self) -> None:
        """Stop the thread and close the consumer."""
        self._closing.set()
        self._wake.set()
        self._watcher.join()
        if self._uncommitted:
            self._commit()
        self._consumer.close()

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._fault = StoreUnavailable(f"Kafka at {self._bootstrap}, {self.title}: {error.str()}")
            return
        if error.code() in _BROKER_LOST:
            self._doubt(self._handles)
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
        unchecked_s = 0.0
        while not self._closing.is_set():
            woken = self._wake.wait(_ANSWER_S)
            self._wake.clear()
            unchecked_s += 0.0 if woken else _ANSWER_S
            if self._closing.is_set():
                return
            self._verify_highs()
            if unchecked_s >= self._check_partitions_s:
                unchecked_s = 0.0
                self._check_partitions()

    def _verify_highs(self) -> None:
        for partition, doubt in list(self._doubts.items()):
            if self._closing.is_set():
                return
            try:
                answer = self._consumer.get_watermark_offsets(self._at(partition), timeout=_ANSWER_S)
            except KafkaException:
                continue
            with self._lock:
                self._verified_highs[partition] = answer[1]
                # The connection may have been lost again since the request.
                if self._doubts.get(partition) == doubt:
                    del self._doubts[partition]

    def _doubt(self, partitions: Iterable[int]) -> None:
        with self._lock:
            self._n_doubts += 1
            self._doubts.update(dict.fromkeys(partitions, self._n_doubts))

    def _check_partitions(self) -> None:
        try:
            found = self._find_partitions(_ANSWER_S)
        except StoreUnavailable:
            return
        if len(found) != self.n_partitions:
            self._fault = LayoutError(partition_count_changed(self.title, self.n_partitions, len(found)))

    def _find_partitions(self, timeout_s: float) -> list[tuple[str, int]]:
        """Return topic and partition for every number."""
        topics = self._matching(timeout_s) if is_pattern(self._topics[0]) else self._topics
        return [(topic, number) for topic in topics for number in range(self._count_partitions(topic, timeout_s))]

    def _matching(self, timeout_s: float) -> list[str]:
        """Return the topics that match the pattern, sorted by name."""
        names = self._metadata(timeout_s)
        matched = sorted(name for name in names if re.match(self._topics[0], name))
        if not matched:
            raise StoreUnavailable(
                f"no topic on the broker at {self._bootstrap} matches {self._topics[0]!r}: create one, or correct the pattern"
            )
        return matched

    def _count_partitions(self, topic: str, timeout_s: float) -> int:
        found = self._metadata(timeout_s, topic).get(topic)
        if found is None or found.error is not None or not found.partitions:
            raise StoreUnavailable(
                f"Topic {topic!r} is not on the broker at {self._bootstrap}: create it, or correct the stream's topic"
            )
        return len(found.partitions)

    def _metadata(self, timeout_s: float, topic: str | None = None) -> Mapping[str, Any]:
        """Return the broker's metadata by topic name; do not wait for a broker that refuses this client."""
        left_s = timeout_s
        while True:
            within_s = min(left_s, _ANSWER_S)
            try:
                about = (
                    self._consumer.list_topics(timeout=within_s)
                    if topic is None
                    else self._consumer.list_topics(topic, within_s)
                )
            except KafkaException as error:
                # Connection errors arrive through the error callback, which ``poll`` calls.
                self._consumer.poll(0)
                left_s -= within_s
                if left_s <= 0 or self._refused is not None:
                    raise self._unavailable(error) from error
            else:
                return cast("Mapping[str, Any]", about.topics)

    def _unavailable(self, error: KafkaException) -> StoreUnavailable:
        if self._refused is not None:
            return StoreUnavailable(
                f"Kafka at {self._bootstrap} refuses this client: {self._refused}; correct the settings of --kafka-config"
            )
        return StoreUnavailable(
            f"Kafka at {self._bootstrap} did not answer within {self._timeout_s:g} s ({error.args[0].str()}): "
            "start it, or correct the address"
        )


def _passes(error: BaseException) -> bool:
    return isinstance(error, KafkaException) and error.args[0].code() in _PASSING


def partition_count_changed(title: str, before: int, now: int) -> str:
    """Compose the error for a topic whose number of partitions has changed."""
    return (
        f"{title} has {now} partitions, but had {before} when its records were read: keys have moved between "
        "partitions, so values would be wrong; start over with a new recovery store and a new log, or give it "
        f"{before} partitions again"
    )


def offsets_gone(name: str, wanted: int, low: int) -> str:
    """Compose the error for records that the broker no longer has."""
    return (
        f"{name}: offsets {wanted} to {low - 1} are gone from the broker ({low - wanted} records, deleted by retention before "
        "they were read), so values would be wrong; raise the topic's retention and start over with a new recovery store and "
        "a new log"
    )
