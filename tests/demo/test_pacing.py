"""A paced producer never outruns its reader by more than the embedded broker keeps."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import confluent_kafka
import numpy as np
import numpy.typing as npt
import pytest

from tests.support.servers.valkey import wait_until
from unskew.demo.embedded import EmbeddedBroker
from unskew.demo.pacing import AHEAD_BYTES, PacedProducer, paced

GROUP = "readers"
N_PARTITIONS = 2
VALUE = bytes(1_000)
N_PER_BATCH = 500


@dataclass
class Batch:
    partition: npt.NDArray[np.int32]
    key: list[bytes]
    value: list[bytes]
    timestamp_ms: npt.NDArray[np.int64]


def batches(n_batches: int) -> Iterator[Batch]:
    """Records of a kilobyte, in turn to both partitions, a millisecond apart."""
    for number in range(n_batches):
        rows = np.arange(N_PER_BATCH) + number * N_PER_BATCH
        yield Batch(
            partition=(rows % N_PARTITIONS).astype(np.int32),
            key=[str(row).encode() for row in rows],
            value=[VALUE] * N_PER_BATCH,
            # Kafka takes a timestamp of zero for none.
            timestamp_ms=rows.astype(np.int64) + 1,
        )


@pytest.fixture
def broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker({"topic": N_PARTITIONS}) as started:
        yield started


@pytest.fixture
def reader(broker) -> Iterator[confluent_kafka.Consumer]:
    consumer = confluent_kafka.Consumer(
        {
            "bootstrap.servers": broker.bootstrap,
            "group.id": GROUP,
            "enable.auto.commit": False,
            "auto.offset.reset": "error",
            "log_level": 0,
        }
    )
    consumer.assign([confluent_kafka.TopicPartition("topic", p, 0) for p in range(N_PARTITIONS)])
    yield consumer
    consumer.close()


def ends(reader: confluent_kafka.Consumer) -> list[int]:
    """End offset of each partition."""
    return [
        reader.get_watermark_offsets(confluent_kafka.TopicPartition("topic", p), timeout=5.0)[1]
        for p in range(N_PARTITIONS)
    ]


def settled(reader: confluent_kafka.Consumer) -> list[int]:
    """End offsets once they have stood still for half a second."""
    seen, since = ends(reader), time.monotonic()
    while time.monotonic() - since < 0.5:
        time.sleep(0.05)
        if (now := ends(reader)) != seen:
            seen, since = now, time.monotonic()
    return seen


def test_without_a_reader_it_stops_below_what_the_broker_keeps(broker, reader):
    with paced(broker.bootstrap, {"topic": batches(100)}, group=GROUP):
        wait_until(lambda: min(ends(reader)) * len(VALUE) > 0.8 * AHEAD_BYTES, "it is far ahead", within_s=60)
        for end in settled(reader):
            assert 0.8 * AHEAD_BYTES < end * len(VALUE) <= AHEAD_BYTES


def test_a_slow_reader_gets_every_record_in_order(broker, reader):
    n_records = 60 * N_PER_BATCH
    read: list[list[tuple[bytes, int]]] = [[] for _ in range(N_PARTITIONS)]
    with paced(broker.bootstrap, {"topic": batches(60)}, group=GROUP) as producers:
        deadline = time.monotonic() + 60
        while sum(map(len, read)) < n_records and time.monotonic() < deadline:
            for message in reader.consume(2_000, 0.2):
                assert message.error() is None
                read[message.partition()].append((message.key(), message.timestamp()[1]))
            offsets = [confluent_kafka.TopicPartition("topic", p, len(rows)) for p, rows in enumerate(read) if rows]
            if offsets:
                reader.commit(offsets=offsets, asynchronous=False)

        assert [producer.failed for producer in producers] == [None]
    for partition, rows in enumerate(read):
        expected = range(partition, n_records, N_PARTITIONS)
        assert rows == [(str(row).encode(), row + 1) for row in expected]


def test_it_can_be_stopped_while_it_waits_for_a_reader(broker, reader):
    producer = PacedProducer(broker.bootstrap, "topic", batches(10_000), group=GROUP)
    producer.start()
    settled(reader)
    began = time.monotonic()

    producer.stop()

    # Without a reader, the records would last for ever.
    assert time.monotonic() - began < 30.0
    assert producer.failed is None


def test_an_error_of_the_records_is_kept_for_the_owner(broker):
    def broken() -> Iterator[Batch]:
        yield from batches(1)
        raise ValueError("no more records")

    with paced(broker.bootstrap, {"topic": broken()}, group=GROUP) as (producer,):
        wait_until(lambda: producer.failed, "it has failed", within_s=60)

    assert str(producer.failed) == "no more records"
