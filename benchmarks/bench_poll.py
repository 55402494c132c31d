"""Measure the processor time of one small poll, from records to bytes for Redis and rows for log and archive.

    python benchmarks/bench_poll.py [--sizes 1 10] [--views 1] [--ordered] [--texts [--besides map list]] [--beside SRC]
    python benchmarks/bench_poll.py --idle [--partitions 100] [--rate 100] [--beside SRC]

The first needs no broker and no Redis: a poll goes through the router (decoding, evaluation, slices), the shard's step,
the encoding of current rows as Redis commands, and the appending to log and archive; at the end of so many polls as an
epoch has, through the snapshots of tables and shards too, so that no work is hidden there. Figures are microseconds
of this process's processor time, all threads, per poll; the median of the rounds. The second runs the whole pipeline
on a live topic beside an embedded broker and a Valkey in this process, and gives the cores that the pipeline uses.

With ``--beside``, the package in another folder is measured too, in another process, in turns with this one.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import redis
from workload import (
    BESIDES,
    SCHEMA,
    STAGES,
    features_of_texts,
    live_in,
    nine_features,
    of_numbers,
    of_texts,
    one_epoch,
    processor_s,
    turns,
)

HERE = Path(__file__)
EPOCH_POLLS = 500
"""Polls of an epoch of five seconds, one every ten milliseconds."""
HOME = Path(__file__).resolve().parent.parent / "src"


def measure(n_records: int, n_views: int, *, partitioned: bool, texts: bool, besides: str | None) -> dict[str, float]:
    """Return microseconds a poll, by stage, of one epoch; one before that warms up."""
    if texts:
        plan = features_of_texts(n_views, partitioned=partitioned, besides=besides)
    else:
        plan = nine_features(n_views, partitioned=partitioned)
    coming = turns(n_records, n_turns=EPOCH_POLLS, encoded=of_texts if texts else of_numbers)
    return one_epoch(list(plan.views.values()), coming, n_turns=EPOCH_POLLS)


def serve() -> None:
    """Answer questions of another process: one JSON object a line."""
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(measure(**asked)), flush=True)


def python_of(source: Path) -> list[str]:
    """Return the command that runs Python with the package in a folder, as the process itself and not a child of it."""
    return ["env", f"PYTHONPATH={source}", sys.executable]


class Beside:
    """The package in a folder, in a process of its own."""

    def __init__(self, source: Path) -> None:
        self._process = subprocess.Popen(
            [*python_of(source), str(HERE), "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, **asked: Any) -> dict[str, float]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(asked), file=self._process.stdin, flush=True)
        found: dict[str, float] = json.loads(self._process.stdout.readline())
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


def compare(sources: Mapping[str, Path], sizes: list[int], n_rounds: int, **asked: Any) -> None:
    """Print a row for each size and package, and the ratio of the first to the others."""
    sides = {name: Beside(source) for name, source in sources.items()}
    print(f"| records | package | {' | '.join(STAGES)} | together, us | ratio |")
    print(f"|---|---|{'---|' * (len(STAGES) + 2)}", flush=True)
    try:
        for n_records in sizes:
            found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
            for _ in range(n_rounds):
                for name, side in sides.items():
                    found[name].append(side(n_records=n_records, **asked))
            middles = {
                name: {stage: statistics.median(row[stage] for row in rows) for stage in STAGES}
                for name, rows in found.items()
            }
            whole = {name: statistics.median(sum(row.values()) for row in rows) for name, rows in found.items()}
            base = whole[list(whole)[-1]]
            for name, stages in middles.items():
                shown = " | ".join(f"{stages[stage]:,.0f}" for stage in STAGES)
                print(
                    f"| {n_records:,} | {name} | {shown} | {whole[name]:,.0f} | {base / whole[name]:.2f} |", flush=True
                )
    finally:
        for side in sides.values():
            side.close()


def live(given: argparse.Namespace) -> None:
    """Run a pipeline until this process is told to end."""
    from unskew.pipelines.run import run
    from unskew.stopping import stopping_on_signals

    folder = Path(given.folder)
    deployment = live_in(
        folder,
        bootstrap=given.bootstrap,
        redis_url=given.redis_url,
        prefix="p",
    )
    stop = threading.Event()
    with stopping_on_signals(stop):
        run(nine_features(given.views, partitioned=not given.ordered), deployment, stop=stop)


def produce(bootstrap: str, rate: int, n_partitions: int, stop: threading.Event) -> None:
    """Send so many events a second until told to stop."""
    from confluent_kafka import Producer

    from unskew.demo.encode import encode

    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5, "log_level": 0})
    number = 0
    while not stop.wait(1 / rate):
        now_us = time.time_ns() // 1000
        user = number % 1000
        value = encode(pl.DataFrame({"user": [user], "amount": [1.0], "at": [now_us]}), SCHEMA)[0]
        producer.produce("events", value, partition=user % n_partitions, timestamp=now_us // 1000)
        producer.poll(0)
        number += 1
    producer.flush(5)


def wait_until_running(redis_url: str) -> None:
    """Return once a pipeline has sent the clocks of its shards: by then it has started and compiled."""
    with redis.Redis.from_url(redis_url) as client:
        for _ in range(600):
            if any(value.isdigit() for key in client.scan_iter("p:clock:*") for value in client.hvals(key)):
                return
            time.sleep(0.5)
    raise SystemExit("the pipeline does not start")


def idle_cores(source: Path, given: argparse.Namespace) -> float:
    """Return the cores that a pipeline uses on a quiet topic."""
    from unskew.demo.embedded import EmbeddedBroker, EmbeddedRedis

    with EmbeddedBroker() as broker, EmbeddedRedis() as server, tempfile.TemporaryDirectory() as folder:
        broker.create_topic("events", given.partitions)
        stop = threading.Event()
        sending = threading.Thread(target=produce, args=(broker.bootstrap, given.rate, given.partitions, stop))
        command = [*python_of(source), str(HERE), "--live", "--folder", folder, "--bootstrap", broker.bootstrap]
        command += ["--redis-url", server.url, "--views", str(given.views), *(["--ordered"] if given.ordered else [])]
        process = subprocess.Popen(command)
        try:
            if given.rate:
                sending.start()
            wait_until_running(server.url)
            time.sleep(given.warm_up)
            began_s, began = time.monotonic(), processor_s(process.pid)
            time.sleep(given.seconds)
            return (processor_s(process.pid) - began) / (time.monotonic() - began_s)
        finally:
            stop.set()
            process.terminate()
            process.wait(60)


def quiet(sources: Mapping[str, Path], given: argparse.Namespace) -> None:
    """Print the cores of each package on a quiet topic."""
    found: dict[str, list[float]] = {name: [] for name in sources}
    for _ in range(given.rounds):
        for name, source in sources.items():
            found[name].append(idle_cores(source, given))
    kind = "ordered" if given.ordered else "partitioned"
    for name, cores in found.items():
        each = ", ".join(f"{one:.3f}" for one in cores)
        print(
            f"| {kind} | {given.partitions} partitions, {given.views} views, {given.rate} events/s | {name} | "
            f"{statistics.median(cores):.3f} ({each}) |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 10, 100, 1000])
    parser.add_argument("--views", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ordered", action="store_true", help="hashed shards instead of partitioned ones")
    parser.add_argument("--texts", action="store_true", help="events with texts, nulls, an enum and a decimal")
    parser.add_argument("--besides", choices=BESIDES, nargs="+", help="with --texts: what views have besides, in turn")
    parser.add_argument("--beside", type=Path, help="the folder that holds another version of the package")
    parser.add_argument("--idle", action="store_true", help="the cores of a pipeline on a quiet topic")
    parser.add_argument("--partitions", type=int, default=100)
    parser.add_argument("--rate", type=int, default=100, help="events a second of the quiet topic")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--warm-up", type=float, default=6.0, help="seconds after the first clocks")
    for hidden in ("--serve", "--live"):
        parser.add_argument(hidden, action="store_true", help=argparse.SUPPRESS)
    for hidden in ("--folder", "--bootstrap", "--redis-url"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    given = parser.parse_args()
    role: Callable[[], None] | None = serve if given.serve else (lambda: live(given)) if given.live else None
    if role is not None:
        role()
        return
    sources = {"this": HOME} | ({} if given.beside is None else {"beside": given.beside.resolve()})
    if given.idle:
        quiet(sources, given)
    else:
        how = {"n_views": given.views, "partitioned": not given.ordered, "texts": given.texts}
        for besides in given.besides or [None]:
            if besides is not None:
                print(f"\nbesides: {besides}\n")
            compare(sources, given.sizes, given.rounds, **how, besides=besides)


if __name__ == "__main__":
    main()
