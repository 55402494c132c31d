"""Measure what it takes to get records out of librdkafka, by unskew's own columns and by confluent_kafka's messages.

    python benchmarks/bench_consume.py [--records 400_000] [--rounds 3] [--headers 0] [--partitions 100]

An embedded broker has the records of ``bench_pipeline.py``, or with ``--headers`` short ones with so many headers.
Both ways fetch all of them, in turns, by the same library with the same settings, and end with the same columns; the
figure is the processor time of the thread that does that, while the library's threads fetch. confluent_kafka's messages
are taken 500 at once: of more, Python's garbage collector makes each dearer. The values are compared before anything is
measured. Before that, the time that a source takes to open a quiet topic of ``--partitions`` is measured; with no
records it is all that is.
"""

import argparse
import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, cast

import numpy as np
from bench_pipeline import produce, the_plan
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from unskew.demo.embedded import EmbeddedBroker
from unskew.pipelines.kafka.source import KafkaSource, SourceOptions

N_PARTITIONS = 8
N_ENTITIES = 100_000

Columns = tuple[Any, ...]


def settings(bootstrap: str) -> dict[str, Any]:
    from unskew.pipelines.kafka.consumer import DEFAULTS

    return {**DEFAULTS, "bootstrap.servers": bootstrap, "group.id": "bench", "enable.partition.eof": False}


def by_columns(bootstrap: str, topic: str) -> Iterator[Columns]:
    from unskew.pipelines.kafka.fetching import Fetcher

    fetcher = Fetcher(settings(bootstrap), 10_000, print)
    for partition in range(N_PARTITIONS):
        fetcher.assign(topic, partition, 0)
    try:
        while True:
            taken = fetcher.take(10_000, 0.001)
            assert not taken.faults, taken.faults
            yield taken.partitions, taken.offsets, taken.stamps_ms, taken.keys, taken.values, taken.headers
    finally:
        fetcher.close()


def by_messages(bootstrap: str, topic: str) -> Iterator[Columns]:
    consumer = Consumer(settings(bootstrap))
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(N_PARTITIONS)])
    try:
        while True:
            messages = consumer.consume(500, 0.001)
            count = len(messages)
            assert not any(map(Message.error, messages))
            stamps = np.fromiter(chain.from_iterable(map(Message.timestamp, messages)), np.int64, 2 * count)
            yield (
                np.fromiter(map(cast("Any", Message.partition), messages), np.int64, count),
                np.fromiter(map(cast("Any", Message.offset), messages), np.int64, count),
                stamps.reshape(-1, 2)[:, 1],
                list(map(Message.key, messages)),
                list(map(Message.value, messages)),
                list(map(Message.headers, messages)),
            )
    finally:
        consumer.close()


WAYS: dict[str, Callable[[str, str], Iterator[Columns]]] = {
    "columns, by compiled code": by_columns,
    "messages of confluent_kafka": by_messages,
}


def measure(way: Callable[[str, str], Iterator[Columns]], bootstrap: str, topic: str, n_records: int) -> float:
    """Return the microseconds of processor of this thread for a record."""
    pieces = way(bootstrap, topic)
    done = len(next(pieces)[0])
    # The library then has as many as it keeps before they are asked for.
    time.sleep(0.5)
    begin, counted = time.thread_time(), n_records - done
    while done < n_records:
        done += len(next(pieces)[0])
    spent = time.thread_time() - begin
    pieces.close()  # type: ignore[attr-defined]
    return spent / counted * 1e6


def content(way: Callable[[str, str], Iterator[Columns]], bootstrap: str, topic: str, n_records: int) -> list[Any]:
    found: list[Any] = []
    pieces = way(bootstrap, topic)
    while len(found) < n_records:
        partitions, offsets, stamps_ms, keys, values, headers = next(pieces)
        found.extend(zip(partitions, offsets, stamps_ms, keys, values, headers, strict=True))
    pieces.close()  # type: ignore[attr-defined]
    return sorted(found, key=lambda each: each[:2])


def send(broker: EmbeddedBroker, topic: str, n_records: int, n_headers: int) -> None:
    """Send records with headers."""
    broker.create_topic(topic, N_PARTITIONS)
    producer = Producer({"bootstrap.servers": broker.bootstrap, "compression.type": "zstd", "linger.ms": 50})
    headers: list[tuple[str, str | bytes | None]] = [(f"header-{each}", b"%016d" % each) for each in range(n_headers)]
    for number in range(n_records):
        value = b"%020d" % number
        producer.produce(topic, value, b"%d" % number, partition=number % N_PARTITIONS, headers=headers or None)
        if number % 1000 == 0:
            producer.poll(0)
    assert producer.flush(60) == 0


def opened(broker: EmbeddedBroker, n_partitions: int) -> float:
    """Return the seconds that a source takes to open a topic without records."""
    broker.create_topic("quiet", n_partitions)
    (stream,) = the_plan("quiet", partitioned=True).streams.values()
    options = SourceOptions(bootstrap=broker.bootstrap, group="bench", idle="none", stop=threading.Event())
    begin = time.monotonic()
    source = KafkaSource(stream, options)
    for name in source.list_parts():
        source.build_part("bench", name, None)
    spent = time.monotonic() - begin
    source.close()
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--headers", type=int, default=0, help="headers of each record")
    parser.add_argument("--partitions", type=int, default=100, help="of a quiet topic that is opened")
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with EmbeddedBroker() as broker:
        print(f"{options.partitions} quiet partitions are open after {opened(broker, options.partitions):.2f} s")
        if not options.records:
            return
        send(broker, "few", 4_000, options.headers)
        one, other = (content(way, broker.bootstrap, "few", 4_000) for way in WAYS.values())
        assert [each[:5] for each in one] == [each[:5] for each in other]
        assert [each[5] and list(each[5]) for each in one] == [each[5] for each in other]
        if options.headers:
            send(broker, "records", options.records, options.headers)
        else:
            produce(broker, "records", options.records, N_ENTITIES, N_PARTITIONS)
        times: dict[str, list[float]] = {name: [] for name in WAYS}
        for _ in range(options.rounds):
            for name, way in WAYS.items():
                times[name].append(measure(way, broker.bootstrap, "records", options.records))
        least = statistics.median(times["columns, by compiled code"])
        print(f"{options.records:,} records with {options.headers} headers")
        for name, found in times.items():
            median = statistics.median(found)
            each = ", ".join(f"{one:.3f}" for one in found)
            print(f"  {median:7.3f} us of processor for a record  {median / least:5.1f} x  {name} ({each})")


if __name__ == "__main__":
    main()
