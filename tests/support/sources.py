"""Topics and sources for tests of the Kafka source: records put where a test wants them, items as they come."""

import itertools
import time

from confluent_kafka import Consumer, Producer, TopicPartition

from unskew.pipelines.kafka.host_clock import HostClock

NOON_MS = 1_483_272_000_000
NOON = NOON_MS * 1_000
SECOND = 1_000_000
_topics = itertools.count()


class Topic:
    """A topic of a test's own, with a producer that puts records where and when it is told."""

    def __init__(self, broker, partitions, config=None) -> None:
        self.bootstrap = broker.bootstrap
        self.name = f"source-{next(_topics)}"
        broker.create_topic(self.name, partitions, *([] if config is None else [config]))
        self.connect()

    def connect(self):
        """Begin with a new producer, which knows only the present topic of this name."""
        self._producer = Producer(
            {"bootstrap.servers": self.bootstrap, "enable.idempotence": True, "log_level": 2, "linger.ms": 1}
        )
        return self

    def put(self, partition, *after_noon_ms, value=b"value"):
        for ms in after_noon_ms:
            self._producer.produce(self.name, value, key=b"key", partition=partition, timestamp=NOON_MS + ms)
            self._producer.poll(0)
        assert self._producer.flush(60) == 0

    def committed(self, group, partition):
        consumer = Consumer({"bootstrap.servers": self.bootstrap, "group.id": group, "log_level": 2})
        try:
            return consumer.committed([TopicPartition(self.name, partition)], timeout=5)[0].offset
        finally:
            consumer.close()


class Present:
    """A wall clock that stands still until it is moved."""

    def __init__(self, us=NOON + 3_600 * SECOND) -> None:
        self.us = us

    def __call__(self) -> int:
        return self.us


def clock_of(present):
    """A host's clock that reads what ``present`` reads, and whose steady clock never disagrees with it."""
    return HostClock(present, present)


def polls(source, until, within_s=60.0):
    """Items in the order they come, until ``until`` of them is true or all partitions have ended."""
    items = []
    running = dict(source.parts)
    deadline = time.monotonic() + within_s
    while running and not until(items):
        for number, part in list(running.items()):
            try:
                items += part.next_batch()
            except StopIteration:
                del running[number]
        assert time.monotonic() < deadline, items
        time.sleep(0.0005)
    return items


def never(_items):
    return False


def n_records(n):
    return lambda items: sum(len(item.offsets) for item in items) >= n


def for_seconds(s):
    end = time.monotonic() + s
    return lambda _items: time.monotonic() > end


def arrivals_of(items, partition=0):
    """(offset, microseconds after noon) of every record of a partition."""
    return [
        (offset, arrival - NOON)
        for item in items
        if item.partition == partition
        for offset, arrival in zip(item.offsets.tolist(), item.arrivals.tolist(), strict=True)
    ]
