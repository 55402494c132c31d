"""Measure what an epoch's end costs with many shards, on a live topic of 1,000 events a second.

    python benchmarks/bench_epochs.py [--sizes 1x1 20x16] [--epochs 6] [--rate 1000] [--beside PATH] [--turns 2]
    python benchmarks/bench_epochs.py --sizes 1000x4 --features 64 --rate 1

A size is a number of views and a number of partitions: 20x16 are 320 shards. Every view counts every event in its
partition, so at each size each shard that an event reaches has rows for the log. Each run is the function that
``unskew run --idle wall`` calls, in a process of its own, with the broker and Valkey of the tests and a producer beside
it. ``--beside`` names the ``src`` folder of another checkout, which is measured in turns with this one.

The columns: *sources*, the time that the snapshots of all partitions took, before what they gave has passed through
the flow; *stall*, the time from the first snapshot of a shard to the end of the last one of a sink, in which no event
is processed; *until input*, the time from the same instant until a source is next asked for records, with some of what
Bytewax writes; *thread*, the processor time of the flow's thread during the stall; *fsyncs* and *files*, the calls that
make something durable and the files that are created, in the flow's thread at an epoch's end, and all of the process
from one end to the next; *processor*, the processor time of the whole process from one end to the next; *first*, the
time from the start of the process to the end of its first epoch; *peak*, the most memory that it ever held. The last
epoch, which ends the run, and the first, which begins with a new state, are not counted.
"""

import argparse
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
from bench_latency import end_with
from confluent_kafka import Producer
from workload import SCHEMA, live_in, zipf

from unskew.demo.embedded import EmbeddedBroker, EmbeddedRedis
from unskew.demo.encode import encode
from unskew.features.definitions import agg
from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.definitions.vocabulary import Entity, Feature, FeatureView, Sliding, Stream
from unskew.features.plan import Plan
from unskew.pipelines.kafka.reader import KafkaPartition
from unskew.pipelines.progress import Epochs
from unskew.pipelines.run import run

BEGAN_S = time.monotonic()
HERE = Path(__file__).resolve()
PIECE_S = 0.02
EXTENTS = ("1h", "5m", "1d", "7d", "15m", "6h", "3d", "30d")
MORE = {"mean": agg.mean, "min": agg.min, "max": agg.max, "var": agg.var, "first": agg.first, "last": agg.last}
LONGEST_S = 900.0


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of one run, passed to its process."""

    bootstrap: str
    redis_url: str
    topic: str
    views: int
    epochs: int
    epoch_s: float
    folder: str
    features: int = 2


class Watch:
    """Notes every epoch's end of this process, by wrapping what is called then."""

    def __init__(self) -> None:
        self.ends: list[dict[str, float]] = []
        self.done = threading.Event()
        self.syncs = 0
        self.files = 0
        self.flow = 0
        self._of_flow = [0, 0]
        self._in_sources_s = self._in_sources_of_end_s = 0.0
        self._began: list[float] | None = None
        self._went_on_s = 0.0
        for name in ("fsync", "fdatasync"):
            setattr(os, name, self._counted(getattr(os, name)))
        sys.addaudithook(self._opened)

    def _counted(self, call: Any) -> Any:
        def counted(*given: Any) -> Any:
            self.syncs += 1
            if self._began is not None and threading.get_ident() == self.flow:
                self._of_flow[0] += 1
            return call(*given)

        return counted

    def _opened(self, event: str, given: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(given[2], int) and given[2] & os.O_CREAT:
            self.files += 1
            if self._began is not None and threading.get_ident() == self.flow:
                self._of_flow[1] += 1

    def epochs(self, n_epochs: int) -> None:
        """Note the epochs of this process; ``done`` is set after so many."""
        snapshot, finish = Epochs.snapshot, Epochs._finish  # noqa: SLF001

        def watched(epochs: Epochs, of: Any) -> Any:
            return _Watched(self, snapshot(epochs, of))

        def finished(epochs: Epochs, now_s: float) -> None:
            finish(epochs, now_s)
            if self._began is not None:
                self._note()
            if len(self.ends) > n_epochs:
                self.done.set()

        of_partition = KafkaPartition.snapshot

        def timed(partition: KafkaPartition) -> Any:
            began_s = time.monotonic()
            saved = of_partition(partition)
            self._in_sources_s += time.monotonic() - began_s
            return saved

        next_batch = KafkaPartition.next_batch

        def asked(partition: KafkaPartition) -> Any:
            if self._began is not None and self._began[2] and not self._went_on_s:
                self._went_on_s = time.monotonic()
            return next_batch(partition)

        KafkaPartition.snapshot = timed  # type: ignore[method-assign,assignment]
        KafkaPartition.next_batch = asked  # type: ignore[method-assign,assignment]
        Epochs.snapshot = watched  # type: ignore[method-assign,assignment]
        Epochs._finish = finished  # type: ignore[method-assign,assignment]  # noqa: SLF001

    def enter(self) -> None:
        self.flow = threading.get_ident()
        if self._began is None:
            self._in_sources_of_end_s, self._in_sources_s = self._in_sources_s, 0.0
            self._began = [time.monotonic(), time.thread_time(), 0.0, 0.0]
        self._went_on_s = 0.0

    def leave(self) -> None:
        assert self._began is not None
        self._began[2:] = [time.monotonic(), time.thread_time()]

    def _note(self) -> None:
        assert self._began is not None
        began_s, thread_s, ended_s, thread_end_s = self._began
        self.ends.append(
            {
                "sources": 1e3 * self._in_sources_of_end_s,
                "stall": 1e3 * (ended_s - began_s),
                "until_input": 1e3 * (self._went_on_s - began_s),
                "thread": 1e3 * (thread_end_s - thread_s),
                "syncs_flow": self._of_flow[0],
                "files_flow": self._of_flow[1],
                "syncs": self.syncs,
                "files": self.files,
                "processor": 1e3 * time.process_time(),
                "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "at": time.monotonic() - BEGAN_S,
            }
        )
        self._began, self._of_flow = None, [0, 0]


class _Watched:
    def __init__(self, watch: Watch, inner: Any) -> None:
        self._watch = watch
        self._inner = inner

    def __enter__(self) -> None:
        # The one before ends first, if this is the first snapshot of an epoch.
        self._inner.__enter__()
        self._watch.enter()

    def __exit__(self, *error: object) -> None:
        self._inner.__exit__(*error)
        self._watch.leave()


def the_plan(case: Case) -> Plan:
    stream = Stream("events", topic=case.topic, schema=SCHEMA, event_time="at", settle="0s", partitioned_by="user")
    entity = Entity("user", key="user")
    kinds = {"count": agg.count(), "sum": agg.sum("amount"), **{name: make("amount") for name, make in MORE.items()}}
    every = (
        Feature(f"{name}_{extent}", aggregation, Sliding(extent))
        for extent in EXTENTS
        for name, aggregation in kinds.items()
    )
    features = list(islice(every, case.features))
    views = [FeatureView(f"v{n:04d}", entity=entity, stream=stream, features=features) for n in range(case.views)]
    return compile_definitions(*views)


def pipeline(case: Case) -> None:
    watch = Watch()
    watch.epochs(case.epochs)
    folder = Path(case.folder)
    deployment = live_in(
        folder,
        bootstrap=case.bootstrap,
        redis_url=case.redis_url,
        prefix=case.topic,
        epoch_s=case.epoch_s,
        config={"fetch.wait.max.ms": 20},
    )
    stop = threading.Event()

    def end() -> None:
        watch.done.wait(LONGEST_S)
        stop.set()

    threading.Thread(target=end, daemon=True).start()
    run(the_plan(case), deployment, stop=stop)
    print(json.dumps(watch.ends), flush=True)


def produce(bootstrap: str, topic: str, partitions: int, rate: int, over: threading.Event) -> None:
    """Send events at a fixed rate until ``over`` is set."""
    random = np.random.default_rng(0)
    users = zipf(200_000, 10_000, random)
    amounts = np.round(random.gamma(2.0, 20.0, len(users)), 2)
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5, "log_level": 0})
    began_s, sent = time.monotonic(), 0
    while not over.wait(PIECE_S):
        due = min(int((time.monotonic() - began_s) * rate) - sent, rate)
        chosen = np.arange(sent, sent + due) % len(users)
        now_us = time.time_ns() // 1000
        frame = pl.DataFrame({"user": users[chosen], "amount": amounts[chosen], "at": np.full(due, now_us)})
        for user, value in zip(users[chosen].tolist(), encode(frame, SCHEMA), strict=True):
            producer.produce(topic, value, partition=user % partitions, timestamp=now_us // 1000)
        producer.poll(0)
        sent += due
    producer.flush(10)


def measured(source: Path, views: int, partitions: int, given: argparse.Namespace) -> list[dict[str, float]]:
    """Return the epochs of one run of the package in ``source``."""
    with EmbeddedBroker() as broker, EmbeddedRedis() as server, tempfile.TemporaryDirectory() as folder:
        case = Case(
            bootstrap=broker.bootstrap,
            redis_url=server.url,
            topic="events",
            views=views,
            epochs=given.epochs,
            epoch_s=given.epoch,
            folder=folder,
            features=given.features,
        )
        broker.create_topic(case.topic, partitions)
        over = threading.Event()
        sending = threading.Thread(
            target=produce, args=(broker.bootstrap, case.topic, partitions, given.rate, over), daemon=True
        )
        sending.start()
        command = [sys.executable, str(HERE), "--case", msgspec.json.encode(case).decode()]
        process = subprocess.Popen(["env", f"PYTHONPATH={source}", *command], stdout=subprocess.PIPE)
        try:
            out, _ = process.communicate(timeout=given.longest)
        except subprocess.TimeoutExpired:
            return []
        finally:
            over.set()
            sending.join()
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.wait()
        if process.returncode:
            raise SystemExit(f"the pipeline ended with {process.returncode}")
        ends: list[dict[str, float]] = json.loads(out.splitlines()[-1])
        return ends


def row(name: str, size: str, runs: list[list[dict[str, float]]]) -> str:
    epochs: list[dict[str, float]] = []
    for ends in runs:
        for before, end in pairwise(ends):
            epochs.append({**end, **{key: end[key] - before[key] for key in ("syncs", "files", "processor")}})
    if not epochs:
        return f"| {size} | {name} | no epoch became durable in time |" + " |" * 10
    stalls = [one["stall"] for one in epochs]
    p50, p99, most = np.quantile(stalls, [0.5, 0.99, 1.0])

    def median(key: str) -> float:
        return float(np.median([one[key] for one in epochs]))

    return (
        f"| {size} | {name} | {median('sources'):.0f} | {p50:.0f} | {p99:.0f} | {most:.0f} | {median('until_input'):.0f} | {median('thread'):.0f} | "
        f"{median('syncs_flow'):,.0f} / {median('syncs'):,.0f} | {median('files_flow'):,.0f} / {median('files'):,.0f} | "
        f"{median('processor'):,.0f} | {min(ends[0]['at'] for ends in runs if ends):.0f} | {max(one['peak'] for one in epochs):,.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["1x1", "20x16"], metavar="VIEWSxPARTITIONS")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of each run that count")
    parser.add_argument("--epoch", type=float, default=5.0, help="their length, seconds")
    parser.add_argument("--rate", type=int, default=1_000)
    parser.add_argument("--features", type=int, default=2, help="features of a view, at most 64, over up to 8 windows")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--longest", type=float, default=300.0, help="a run is given up after so many seconds")
    parser.add_argument("--beside", type=Path, help="the src folder of another checkout")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
        pipeline(msgspec.json.decode(given.case, type=Case))
        return
    sources = {"here": HERE.parents[1] / "src"}
    if given.beside is not None:
        sources = {"beside": given.beside.resolve(), **sources}
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; {given.rate:,} events/s")
    print(
        "| views x partitions | package | sources, ms | stall p50, ms | p99 | most | until input, ms | thread, ms | fsyncs, flow / all | files, flow / all | processor, ms | first, s | peak MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for size in given.sizes:
        views, partitions = map(int, size.split("x"))
        runs: dict[str, list[list[dict[str, float]]]] = {name: [] for name in sources}
        for turn in range(given.turns):
            for name in list(sources)[:: 1 if turn % 2 == 0 else -1]:
                runs[name].append(measured(sources[name], views, partitions, given))
        for name, found in runs.items():
            print(row(name, size, found), flush=True)


if __name__ == "__main__":
    main()
