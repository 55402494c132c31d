"""One consumer of one topic: assigned by hand, never by a group; what librdkafka tells, sorted by what it means."""

import logging
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, Message, TopicPartition

from unskew.features.errors import LayoutError, StoreUnavailable, UnskewError

_log = logging.getLogger("unskew.kafka")

_DEFAULTS: Mapping[str, Any] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": True,
    "auto.offset.reset": "error",
    "allow.auto.create.topics": False,
    # Waiting for queue room costs a second by default, and a broken fetch half a second.
    "fetch.queue.backoff.ms": 10,
    "fetch.error.backoff.ms": 50,
    "fetch.wait.max.ms": 100,
    "queued.min.messages": 20_000,
    "queued.max.messages.kbytes": 32_768,
    "reconnect.backoff.ms": 50,
    "reconnect.backoff.max.ms": 1_000,
    # Errors come through the error callback; librdkafka's own lines on stderr say them again.
    "log_level": 2,
}
_ANSWER_S = 1.0

# librdkafka's own error codes begin with an underscore; they are public all the same.
_END_OF_PARTITION = KafkaError._PARTITION_EOF  # noqa: SLF001
_OUT_OF_RANGE = {KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE}  # noqa: SLF001
_BROKER_LOST = {KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._TIMED_OUT}  # noqa: SLF001


# Methods of the C type, called by map rather than by bytecode.
_OFFSET = cast("Callable[[Record], int]", Message.offset)
_PARTITION = cast("Callable[[Record], int]", Message.partition)
_TIMESTAMP = cast("Callable[[Record], tuple[int, int]]", Message.timestamp)
_ERROR = cast("Callable[[Record], KafkaError | None]", Message.error)


class Record(Protocol):
    """A Kafka message that is a record, not an error: what it has is there."""

    def partition(self) -> int: ...

    def offset(self) -> int: ...

    def timestamp(self) -> tuple[int, int]: ...

    def key(self) -> bytes | None: ...

    def value(self) -> bytes | None: ...

    def error(self) -> KafkaError | None: ...


def offsets_of(records: Sequence[Record]) -> npt.NDArray[np.int64]:
    """Give offsets, without a step of Python per record."""
    return np.fromiter(map(_OFFSET, records), np.int64, len(records))


def partitions_of(records: Sequence[Record]) -> npt.NDArray[np.int64]:
    """Give partition numbers, as ``offsets_of``."""
    return np.fromiter(map(_PARTITION, records), np.int64, len(records))


def timestamps_of(records: Sequence[Record]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Give Kafka's timestamp types, and milliseconds, as ``offsets_of``."""
    pairs = np.fromiter(chain.from_iterable(map(_TIMESTAMP, records)), np.int64, 2 * len(records)).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


@dataclass(frozen=True, slots=True)
class Fetched:
    """Records as fetched, in order per partition, and (partition, offset) of ends that were reached."""

    messages: list[Record]
    ends: list[tuple[int, int]]


class TopicReader:
    """A topic's consumer, and a thread that asks the broker what must not hold up the flow.

    The thread looks whether partitions were added, and verifies high watermarks that may be out of date: those of
    partitions that were paused, and all after the broker was lost. Raises ``StoreUnavailable`` where the broker does
    not answer within ``timeout_s`` or has no such topic.
    """

    def __init__(
        self,
        topic: str,
        bootstrap: str,
        group: str,
        *,
        timeout_s: float,
        check_partitions_s: float,
        config: Mapping[str, Any],
    ) -> None:
        self.topic = topic
        self._bootstrap = bootstrap
        self._timeout_s = timeout_s
        self._check_partitions_s = check_partitions_s
        self._handles: dict[int, TopicPartition] = {}
        self._verified_highs: dict[int, int] = {}
        # Partitions whose high watermark may be out of date, each with the number of the doubt.
        self._doubts: dict[int, int] = {}
        self._n_doubts = 0
        self._fault: UnskewError | None = None
        self._said: set[int] = set()
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
            self.n_partitions = self._count_partitions(timeout_s)
        except BaseException:
            self._consumer.close()
            raise
        self._watcher = threading.Thread(target=self._watch, name=f"unskew-kafka-{topic}", daemon=True)
        self._watcher.start()

    def watermarks(self, partition: int) -> tuple[int, int]:
        """Low and high watermark as the broker has them now. Raises ``StoreUnavailable``."""
        try:
            low, high = self._consumer.get_watermark_offsets(
                TopicPartition(self.topic, partition), timeout=self._timeout_s
            )
        except KafkaException as error:
            raise self._unavailable(error) from error
        return low, high

    def add(self, partition: int, offset: int) -> None:
        """Read a partition from ``offset`` on, also one that is being read already."""
        if partition in self._handles:
            self._consumer.incremental_unassign([self._handles[partition]])
        self._handles[partition] = TopicPartition(self.topic, partition)
        self._consumer.incremental_assign([TopicPartition(self.topic, partition, offset)])

    def consume(self, limit: int) -> Fetched:
        """Take what has been fetched, without waiting.

        Raises ``LayoutError`` where the wanted offset is gone, ``StoreUnavailable`` for errors that do not pass.
        """
        messages = cast("list[Record]", self._consumer.consume(limit, 0))
        self.check()
        # The usual case costs one pass: an error is a message in disguise.
        if not any(map(_ERROR, messages)):
            return Fetched(messages, [])
        records: list[Record] = []
        ends: list[tuple[int, int]] = []
        for message in messages:
            error = message.error()
            if error is None:
                records.append(message)
            elif error.code() == _END_OF_PARTITION:
                ends.append((message.partition(), message.offset()))
            elif error.code() in _OUT_OF_RANGE:
                raise self._out_of_range(message)
            else:
                self._on_error(error)
                self.check()
        return Fetched(records, ends)

    def _out_of_range(self, message: Record) -> UnskewError:
        wanted = message.offset()
        low, _ = self.watermarks(message.partition())
        return LayoutError(offsets_gone(f"{self.topic}/{message.partition()}", wanted, low))

    def pause(self, partition: int) -> None:
        """Fetch no more of a partition."""
        if partition in self._handles:
            self._consumer.pause([self._handles[partition]])

    def resume(self, partition: int) -> None:
        """Fetch a partition again."""
        self._doubt([partition])
        self._consumer.resume([self._handles[partition]])

    def high(self, partition: int) -> int | None:
        """High watermark as last heard of; None before."""
        handle = self._handles.get(partition)
        if handle is None:
            return None
        high: int = self._consumer.get_watermark_offsets(handle, cached=True)[1]
        return None if high == OFFSET_INVALID else max(high, self._verified_highs.get(partition, 0))

    def caught_up(self, partition: int, position: int) -> bool:
        """Whether ``position`` is the end of the partition, as far as a broker that answers has told."""
        high = self.high(partition)
        if high is None or position < high:
            return False
        if partition in self._doubts:
            self._wake.set()
            return False
        return True

    def commit(self, partition: int, offset: int) -> None:
        """Tell the consumer group, for lag tools only; does not wait."""
        try:
            self._consumer.commit(offsets=[TopicPartition(self.topic, partition, offset)], asynchronous=True)
        except KafkaException as error:
            self._on_error(error.args[0])

    def check(self) -> None:
        """Raise what the thread or librdkafka has found: ``LayoutError`` or ``StoreUnavailable``."""
        if self._fault is not None:
            raise self._fault

    def close(self) -> None:
        """Stop the thread and close the consumer."""
        self._closing.set()
        self._wake.set()
        self._watcher.join()
        self._consumer.close()

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._fault = StoreUnavailable(f"Kafka at {self._bootstrap}, topic {self.topic!r}: {error.str()}")
            return
        if error.code() in _BROKER_LOST:
            self._doubt(self._handles)
        if error.code() not in self._said:
            self._said.add(error.code())
            _log.warning("Kafka at %s, topic %r: %s; going on", self._bootstrap, self.topic, error.str())

    def _on_commit(self, error: KafkaError | None, partitions: Sequence[TopicPartition]) -> None:
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
                answer = self._consumer.get_watermark_offsets(TopicPartition(self.topic, partition), timeout=_ANSWER_S)
            except KafkaException:
                continue
            with self._lock:
                self._verified_highs[partition] = answer[1]
                # The broker may have been lost again since the question.
                if self._doubts.get(partition) == doubt:
                    del self._doubts[partition]

    def _doubt(self, partitions: Iterable[int]) -> None:
        with self._lock:
            self._n_doubts += 1
            self._doubts.update(dict.fromkeys(partitions, self._n_doubts))

    def _check_partitions(self) -> None:
        try:
            count = self._count_partitions(_ANSWER_S)
        except StoreUnavailable:
            return
        if count != self.n_partitions:
            self._fault = LayoutError(partition_count_changed(self.topic, self.n_partitions, count))

    def _count_partitions(self, timeout_s: float) -> int:
        try:
            found = self._consumer.list_topics(self.topic, timeout=timeout_s).topics.get(self.topic)
        except KafkaException as error:
            raise self._unavailable(error) from error
        if found is None or found.error is not None or not found.partitions:
            raise StoreUnavailable(
                f"Topic {self.topic!r} is not on the broker at {self._bootstrap}: create it, or correct the stream's topic"
            )
        return len(found.partitions)

    def _unavailable(self, error: KafkaException) -> StoreUnavailable:
        return StoreUnavailable(
            f"Kafka at {self._bootstrap} did not answer within {self._timeout_s:g} s ({error.args[0].str()}): "
            "start it, or correct the address"
        )


def partition_count_changed(topic: str, before: int, now: int) -> str:
    """Say that the topic is another than the one that was read."""
    return (
        f"Topic {topic!r} has {now} partitions, and had {before} when its records were read: keys have moved between "
        "partitions, so values would be wrong; start over with a new recovery store and a new log, or give the topic "
        f"{before} partitions again"
    )


def offsets_gone(name: str, wanted: int, low: int) -> str:
    """Say which records the broker no longer has."""
    return (
        f"{name}: offsets {wanted} to {low - 1} are gone from the broker ({low - wanted} records, deleted by retention before "
        "they were read), so values would be wrong; raise the topic's retention and start over with a new recovery store and "
        "a new log"
    )
