"""Measure the path from Kafka to Redis and log, end to end in one process: events per second, and each stage's share.

    python benchmarks/bench_pipeline.py [--events 1_000_000] [--entities 100_000] [--partitions 8] [--repeats 3]

There are nine features over three windows (5 min, 1 h, 30 d), Zipf keys, and about one event per millisecond. The topic
is filled, in an embedded broker, before timing starts; the pipeline runs to its end. A stage's share is the wall time
spent in its entry point, in a separate run in which each entry point is timed; "rest" is Bytewax and waiting for the
broker. Other work on the machine affects wall time, but affects events per processor second of this process less.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from confluent_kafka import Producer
from workload import SCHEMA, replay_in, zipf

from unskew.demo.embedded import EmbeddedBroker, EmbeddedRedis
from unskew.demo.encode import encode
from unskew.features.definitions import agg
from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.definitions.vocabulary import Entity, Feature, FeatureView, Sliding, Stream
from unskew.features.plan import Plan
from unskew.pipelines.decoding.avro import AvroDecoder
from unskew.pipelines.kafka.reader import KafkaPartition
from unskew.pipelines.routing import Router
from unskew.pipelines.run import run
from unskew.pipelines.state.ordering import Shard
from unskew.sinks.redis.writer import RedisWriter
from unskew.sinks.tables.parquet import StagedTable

START_MS = 1_600_000_000_000


def the_plan(topic: str, *, partitioned: bool) -> Plan:
    stream = Stream(topic, topic=topic, schema=SCHEMA, event_time="at", partitioned_by="user" if partitioned else None)
    features = [
        Feature(f"{name}_{extent}", aggregation, Sliding(extent))
        for extent in ("5m", "1h", "30d")
        for name, aggregation in (("count", agg.count()), ("sum", agg.sum("amount")), ("max", agg.max("amount")))
    ]
    return compile_definitions(
        FeatureView("by_user", entity=Entity("user", key="user"), stream=stream, features=features)
    )


def produce(broker: EmbeddedBroker, topic: str, n_events: int, n_entities: int, n_partitions: int) -> None:
    random = np.random.default_rng(0)
    users = zipf(n_events, n_entities, random)
    stamps_ms = START_MS + np.arange(n_events)
    lateness_us = random.integers(0, 3_000_000, n_events)
    frame = pl.DataFrame(
        {"user": users, "amount": np.round(random.gamma(2.0, 20.0, n_events), 2), "at": stamps_ms * 1000 - lateness_us}
    )
    broker.create_topic(topic, n_partitions)
    # The embedded broker keeps 5 MiB of a partition in the form in which it was sent, so the batches are compressed.
    producer = Producer(
        {
            "bootstrap.servers": broker.bootstrap,
            "compression.type": "zstd",
            "linger.ms": 50,
            "batch.num.messages": 10_000,
            "queue.buffering.max.messages": 10_000_000,
            "log_level": 0,
        }
    )
    for value, user, stamp_ms in zip(encode(frame, SCHEMA), users.tolist(), stamps_ms.tolist(), strict=True):
        producer.produce(topic, value, partition=user % n_partitions, timestamp=stamp_ms)
        if stamp_ms % 1000 == 0:
            producer.poll(0)
    assert producer.flush(120) == 0


STAGES: list[tuple[str, Any, str]] = [
    ("consume (librdkafka to batches)", KafkaPartition, "_next"),
    ("decode (Avro to columns)", AvroDecoder, "decode_together"),
    ("route (decode, evaluate, split)", Router, "route"),
    ("aggregate (kernel, rows to columns)", Shard, "take_all"),
    ("state to bytes", Shard, "to_snapshot"),
    ("Redis (encoding, waiting for the sender)", RedisWriter, "flush_if_due"),
    ("rows for the recovery store (log and archive)", StagedTable, "kept"),
    ("Parquet (log and archive)", StagedTable, "snapshot"),
]


@contextmanager
def timed_stages() -> Iterator[dict[str, float]]:
    """Yield the wall seconds in each stage's entry point, which are added up while the body runs."""
    spent = {name: 0.0 for name, _, _ in STAGES}
    originals = [(owner, attribute, getattr(owner, attribute)) for _, owner, attribute in STAGES]
    for name, owner, attribute in STAGES:
        original = getattr(owner, attribute)

        @functools.wraps(original)
        def timed(*args: Any, _name: str = name, _original: Any = original, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = _original(*args, **kwargs)
            # A generator does its work while it is read.
            if attribute_is_generator[_name]:
                result = list(result)
            spent[_name] += time.perf_counter() - began
            return result

        setattr(owner, attribute, timed)
    try:
        yield spent
    finally:
        for owner, attribute, original in originals:
            setattr(owner, attribute, original)


attribute_is_generator = {name: attribute == "route" for name, _, attribute in STAGES}


def measure(
    plan: Plan, broker: EmbeddedBroker, redis_url: str, n_events: int, prefix: str, epoch_s: float
) -> tuple[float, float, int, int]:
    """Run from an empty state; return seconds, this process's processor seconds, log rows and Redis rows."""
    with tempfile.TemporaryDirectory() as folder:
        deployment = replay_in(
            Path(folder), bootstrap=broker.bootstrap, redis_url=redis_url, prefix=prefix, epoch_s=epoch_s
        )
        began, began_cpu = time.perf_counter(), time.process_time()
        status = run(plan, deployment, stop=threading.Event())
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
        assert status.consumed == n_events, status
        assert status.dead == 0
        return seconds, cpu_seconds, status.rows, status.updates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--entities", type=int, default=100_000)
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--epoch", type=float, default=5.0, help="seconds between commits")
    parser.add_argument("--warm-up", type=int, default=50_000)
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, Polars {pl.__version__}")
    with EmbeddedBroker() as broker, EmbeddedRedis() as redis:
        produce(broker, "warm", arguments.warm_up, arguments.entities, arguments.partitions)
        produce(broker, "events", arguments.events, arguments.entities, arguments.partitions)
        for partitioned in (True, False):
            kind = "partitioned by the entity" if partitioned else "hashed, ordered release"
            warm = the_plan("warm", partitioned=partitioned)
            measure(warm, broker, redis.url, arguments.warm_up, "warm", arguments.epoch)
            plan = the_plan("events", partitioned=partitioned)
            runs = [
                measure(plan, broker, redis.url, arguments.events, f"bench{number}", arguments.epoch)
                for number in range(arguments.repeats)
            ]
            seconds = statistics.median(run[0] for run in runs)
            cpu_seconds = statistics.median(run[1] for run in runs)
            print(
                f"\n{kind}: {arguments.events:,} events, {arguments.entities:,} entities (Zipf 1.1), "
                f"{arguments.partitions} partitions\n"
                f"  {arguments.events / seconds:,.0f} events/s (median of {arguments.repeats}; "
                f"{', '.join(f'{arguments.events / run[0]:,.0f}' for run in runs)}); {runs[0][2]:,} log rows, "
                f"{arguments.events / max(runs[0][3], 1):.1f} events to a current row per shard and poll\n"
                f"  {arguments.events / cpu_seconds:,.0f} events per processor second of this process, broker included"
            )
            with timed_stages() as spent:
                total, _, _, _ = measure(plan, broker, redis.url, arguments.events, "stages", arguments.epoch)
            spent["route (evaluate, split)"] = (
                spent.pop("route (decode, evaluate, split)") - spent["decode (Avro to columns)"]
            )
            spent["rest (Bytewax, waiting)"] = total - sum(spent.values())
            for name, share in sorted(spent.items(), key=lambda one: -one[1]):
                print(f"  {share / total:6.1%}  {share / arguments.events * 1e6:6.2f} us/event  {name}")
            print(json.dumps({"kind": kind, "events_per_s": round(arguments.events / seconds)}))


if __name__ == "__main__":
    main()
