"""Compare the same nine features by unskew, by Bytewax's windows and by Quix Streams' windows, in events per second.

    python benchmarks/bench_peers.py [--events 300_000] [--sliding 3_000] [--tumbling 30_000] [--quix-python PATH]

The features are count, sum and max over 5 min, 1 h and 30 d, of one sequence of events: 1,000 entities that follow
Zipf's law, one event every 200 ms, up to three seconds late. Each engine gets as many events from the beginning of the
sequence as it can process in a minute or so, in one partition, and runs in its own process. Then all values of every
engine at the last instant are compared with a recount, bit for bit: amounts are multiples of 0.25, so that float sums
are exact in any order.

For the peers, a sliding window with unskew's hops (1 s, 10 s, 2 h) is a window that is one hop longer, and a new one
opens at each hop, so that 301 to 361 windows hold an event. Our value corresponds to the content so far of the last
window that reaches back far enough. Quix has another sliding window, with an edge for each event; its values at an
entity's last event are compared. Tumbling windows are what the peers are made for.

unskew reads Kafka, decodes Avro, writes Redis, log and archive, and saves its state. The peers do less, as each module
says, and for them only the time from the first event to the last one counts. So what unskew takes for the first 1,000
events of the sequence, in a run of their own, is its start-up: it is taken off, in a row of its own, with which the
others are compared.

Quix Streams needs an older confluent-kafka than ours, so it needs a separate environment:

    python -m venv .venv-peers && .venv-peers/bin/pip install quixstreams==3.28.1
"""

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import redis
from confluent_kafka import Producer
from workload import SCHEMA, replay_in, zipf

from unskew.demo.embedded import EmbeddedBroker, EmbeddedRedis
from unskew.demo.encode import encode
from unskew.features.definitions import agg
from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.definitions.vocabulary import Entity, Feature, FeatureView, Sliding, Stream, Tumbling
from unskew.features.plan import Plan
from unskew.pipelines.run import run

START_MS = 1_600_000_000_000
N_FEW = 1_000
STEP_MS = 200
LATENESS_MS = 3_000
CLOSING_MS = 100 * 86_400_000
"""A time after the last event at which every window has ended."""
NOBODY = 1_000_000_000
HERE = Path(__file__).parent
ENVIRONMENT = HERE.parent / ".venv-peers" / "bin" / "python"
TIMEOUT_S = 1_200
WINDOWS = {
    # Name -> extent and hop, in milliseconds; the hops are unskew's defaults.
    "sliding": {"5m": (300_000, 1_000), "1h": (3_600_000, 10_000), "30d": (30 * 86_400_000, 7_200_000)},
    "tumbling": {"5m": (300_000,) * 2, "1h": (3_600_000,) * 2, "30d": (30 * 86_400_000,) * 2},
}

Values = dict[tuple[int, str], tuple[int, float, float | None]]
"""Count, sum and max by entity and window, without empty ones."""


@dataclass(frozen=True)
class Result:
    """The result of one engine. ``seconds``, ``processor``: wall and processor seconds of ``n_events``."""

    engine: str
    n_events: int
    seconds: float
    processor: float


def the_plan(topic: str, kind: str) -> Plan:
    stream = Stream(topic, topic=topic, schema=SCHEMA, event_time="at", partitioned_by="user")
    window = Sliding if kind == "sliding" else Tumbling
    features = [
        Feature(f"{name}_{extent}", aggregation, window(extent))
        for extent in WINDOWS[kind]
        for name, aggregation in (("count", agg.count()), ("sum", agg.sum("amount")), ("max", agg.max("amount")))
    ]
    return compile_definitions(
        FeatureView("by_user", entity=Entity("user", key="user"), stream=stream, features=features)
    )


def the_events(n_events: int, n_entities: int) -> pl.DataFrame:
    random = np.random.default_rng(0)
    stamps_ms = START_MS + np.arange(n_events) * STEP_MS
    return pl.DataFrame(
        {
            "user": zipf(n_events, n_entities, random),
            "amount": np.ceil(random.gamma(2.0, 20.0, n_events) * 4) / 4,
            "at": (stamps_ms - random.integers(0, LATENESS_MS, n_events)) * 1000,
            "stamp_ms": stamps_ms,
        }
    )


def recount(events: pl.DataFrame, kind: str) -> Values:
    """Count the values at the instant of the last record."""
    end_us = int(events["stamp_ms"][-1]) * 1000
    found: Values = {}
    for name, (extent_ms, hop_ms) in WINDOWS[kind].items():
        start_us = end_us // (hop_ms * 1000) * (hop_ms * 1000) - (0 if extent_ms == hop_ms else extent_ms * 1000)
        found |= recounted(events.filter(pl.col("at") >= start_us), name)
    return found


def recount_at_last_event(events: pl.DataFrame) -> Values:
    """Count the values at each entity's latest event, in windows whose old edge is exact."""
    found: Values = {}
    since_us = pl.col("at").max().over("user")
    for name, (extent_ms, _) in WINDOWS["sliding"].items():
        found |= recounted(events.filter(pl.col("at") >= since_us - extent_ms * 1000), name)
    return found


def recounted(events: pl.DataFrame, name: str) -> Values:
    amount = pl.col("amount")
    rows = events.group_by("user").agg(pl.len(), amount.sum().alias("sum"), amount.max().alias("max"))
    return {(user, name): (count, total, most) for user, count, total, most in rows.iter_rows()}


def produce(broker: EmbeddedBroker, topic: str, events: pl.DataFrame) -> None:
    broker.create_topic(topic, 1)
    # The embedded broker keeps 5 MiB of a partition in the form in which it was sent, so the batches are compressed.
    producer = Producer(
        {
            "bootstrap.servers": broker.bootstrap,
            "compression.type": "zstd",
            "linger.ms": 50,
            "queue.buffering.max.messages": 10_000_000,
            "log_level": 0,
        }
    )
    rows = zip(encode(events, SCHEMA), events["user"].to_list(), events["stamp_ms"].to_list(), strict=True)
    for value, user, stamp_ms in rows:
        producer.produce(topic, value, key=str(user), partition=0, timestamp=stamp_ms)
    assert producer.flush(120) == 0


def by_unskew(task: dict[str, Any]) -> dict[str, Any]:
    """Run unskew in this process, over a topic that is already filled."""
    plan = the_plan(task["topic"], task["kind"])
    deployment = replay_in(
        Path(task["folder"]), bootstrap=task["bootstrap"], redis_url=task["redis_url"], prefix=task["topic"]
    )
    began = time.perf_counter(), time.process_time()
    status = run(plan, deployment, stop=threading.Event())
    seconds, processor = time.perf_counter() - began[0], time.process_time() - began[1]
    assert (status.consumed, status.dead, status.bumped) == (task["n_events"], 0, 0), status
    return {"seconds": seconds, "processor": processor, "rows": status.rows}


def in_redis(url: str, prefix: str, kind: str) -> Values:
    found: Values = {}
    with redis.Redis.from_url(url, decode_responses=True) as client:
        for key in client.scan_iter(f"{prefix}:by_user@1:*", count=1000):
            row = client.hgetall(key)
            for name in WINDOWS[kind]:
                if row[f"count_{name}"] != "0":
                    value = int(row[f"count_{name}"]), float(row[f"sum_{name}"]), float(row[f"max_{name}"])
                    found[int(key.partition("{")[2].rstrip("}")), name] = value
    return found


def ask(command: list[str], task: dict[str, Any]) -> dict[str, Any]:
    done = subprocess.run([*command, json.dumps(task)], stdout=subprocess.PIPE, timeout=TIMEOUT_S, check=False)
    if done.returncode:
        raise SystemExit(f"{command[-1]} ended with {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def the_same(engine: str, found: Values, expected: Values) -> None:
    if found != expected:
        wrong = [key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)]
        first = wrong[0]
        raise SystemExit(
            f"{engine}: {len(wrong)} of {len(expected)} values differ, for example {first}: "
            f"{found.get(first)}, and not {expected.get(first)}"
        )


def last_of(rows: Iterable[list[Any]]) -> Values:
    """Return, by entity and window, the value whose window ends last, and among equals the last one given."""
    latest: dict[tuple[int, str], list[Any]] = {}
    for row in rows:
        before = latest.get((row[0], row[1]))
        if before is None or row[5] >= before[5]:
            latest[row[0], row[1]] = row
    return {key: (int(row[2]), float(row[3]), float(row[4])) for key, row in latest.items()}


def measure_unskew(broker: EmbeddedBroker, kind: str, events: pl.DataFrame, name: str) -> Result:
    topic = f"unskew-{kind}-{name}"
    produce(broker, topic, events)
    with EmbeddedRedis() as server, tempfile.TemporaryDirectory() as folder:
        task = {
            "topic": topic,
            "kind": kind,
            "bootstrap": broker.bootstrap,
            "redis_url": server.url,
            "folder": folder,
            "n_events": events.height,
        }
        answer = ask([sys.executable, __file__, "--unskew"], task)
        the_same("unskew", in_redis(server.url, topic, kind), recount(events, kind))
    return Result(f"unskew, {kind}, with start-up", events.height, answer["seconds"], answer["processor"])


def without_start_up(kind: str, whole: Result, few: Result) -> Result:
    """Return what a run took beyond one of few events."""
    return Result(
        f"unskew, {kind}",
        whole.n_events - few.n_events,
        whole.seconds - few.seconds,
        whole.processor - few.processor,
    )


def measure_bytewax(kind: str, events: pl.DataFrame) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.parquet"
        events.write_parquet(path)
        task = {
            "events": str(path),
            "windows": WINDOWS[kind],
            "end_ms": int(events["stamp_ms"][-1]),
            "lateness_ms": LATENESS_MS,
        }
        answer = ask([sys.executable, str(HERE / "peers_bytewax.py")], task)
    found = {(user, name): (int(count), total, most) for user, name, count, total, most in answer["values"]}
    the_same("Bytewax", found, recount(events, kind))
    return Result(f"Bytewax, {kind}", events.height, answer["seconds"], answer["processor"])


def measure_quix(broker: EmbeddedBroker, python: str, kind: str, events: pl.DataFrame) -> Result:
    """Measure Quix Streams. ``kind``: as in WINDOWS, or ``each event``."""
    topic = f"quix-{kind.replace(' ', '-')}"
    # If no window has to be closed, one more event marks the end of the last one's processing.
    users = pl.Series("user", [NOBODY]) if kind == "each event" else events["user"].unique()
    end_ms = int(events["stamp_ms"][-1])
    # Quix emits a window of a key when a later event of the same key closes it.
    closing = pl.DataFrame(
        {"user": users, "amount": [1.0] * len(users), "at": [(end_ms + CLOSING_MS) * 1000] * len(users)}
    ).with_columns(stamp_ms=pl.lit(end_ms, pl.Int64))
    produce(broker, topic, pl.concat([events, closing]))
    with tempfile.TemporaryDirectory() as folder:
        task = {
            "bootstrap": broker.bootstrap,
            "topic": topic,
            "kind": kind,
            "schema": SCHEMA,
            "windows": WINDOWS["tumbling" if kind == "tumbling" else "sliding"],
            "n_events": events.height,
            "n_closing": closing.height,
            "end_ms": end_ms,
            "lateness_ms": LATENESS_MS,
            "state": folder,
        }
        answer = ask([python, str(HERE / "peers_quix.py")], task)
    expected = recount_at_last_event(events) if kind == "each event" else recount(events, kind)
    the_same(f"Quix Streams, {kind}", last_of(row for row in answer["values"] if row[0] != NOBODY), expected)
    return Result(f"Quix Streams, {kind}", events.height, answer["seconds"], answer["processor"])


def quix_python(given: str | None) -> str | None:
    """Return the interpreter that has quixstreams; None if there is none."""
    if given:
        return given
    if importlib.util.find_spec("quixstreams") is not None:
        return sys.executable
    return str(ENVIRONMENT) if ENVIRONMENT.exists() else None


def show(result: Result, ours: Result) -> None:
    rate, cost = result.n_events / result.seconds, result.processor / result.n_events * 1e6
    our_rate, our_cost = ours.n_events / ours.seconds, ours.processor / ours.n_events * 1e6
    beside = f"1/{our_rate / rate:,.1f}" if our_rate > rate else f"{rate / our_rate:.1f}"
    print(
        f"| {result.engine} | {result.n_events:,} | {result.seconds:.1f} s | {rate:,.0f} | {beside} | {cost:,.1f} us | "
        f"{cost / our_cost:,.1f} x |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=300_000, help="events for unskew")
    parser.add_argument("--sliding", type=int, default=3_000, help="events for the peers' sliding windows")
    parser.add_argument("--tumbling", type=int, default=30_000, help="events for the peers' tumbling windows")
    parser.add_argument("--entities", type=int, default=1_000)
    parser.add_argument("--quix-python", help="the interpreter of an environment with quixstreams")
    parser.add_argument("--unskew", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.unskew:
        print(json.dumps(by_unskew(given.unskew)))
        return
    quix = quix_python(given.quix_python)
    events = the_events(given.events, given.entities)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; {given.entities:,} entities "
        f"(Zipf 1.1), one event each {STEP_MS} ms; every engine's values agree with a recount\n"
    )
    if quix is None:
        print(
            f"Quix Streams is left out: quixstreams is neither here nor in {ENVIRONMENT}; set it up with\n"
            "    python -m venv .venv-peers && .venv-peers/bin/pip install quixstreams==3.28.1\n"
        )
    print("| engine | events | time | events/s | beside unskew | processor per event | beside unskew |")
    print("|---|---|---|---|---|---|---|", flush=True)
    with EmbeddedBroker() as broker:
        for kind, n_events in (("sliding", given.sliding), ("tumbling", given.tumbling)):
            # The first run after an installation compiles the kernel.
            measure_unskew(broker, kind, events.head(N_FEW), "warm")
            few = measure_unskew(broker, kind, events.head(N_FEW), "few")
            whole = measure_unskew(broker, kind, events, "whole")
            ours = without_start_up(kind, whole, few)
            show(ours, ours)
            show(whole, ours)
            show(measure_bytewax(kind, events.head(n_events)), ours)
            if quix is not None:
                show(measure_quix(broker, quix, kind, events.head(n_events)), ours)
                if kind == "sliding":
                    show(measure_quix(broker, quix, "each event", events.head(n_events)), ours)


if __name__ == "__main__":
    main()
