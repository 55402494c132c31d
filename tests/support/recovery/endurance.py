"""``make endure``: run a pipeline on a live topic for any time, and measure its memory, files and disk meanwhile.

Entities come and go: each lives for some seconds, so that state, Redis and changelogs turn over all the time. Short
epochs let one hour stand for many. At the end, the usage of the last quarter is compared with that of the second.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from confluent_kafka import Producer

from tests.support.pipeline import SCHEMA, Record
from tests.support.recovery.processes import free_port
from unskew.demo.embedded import EmbeddedBroker, EmbeddedRedis
from unskew.sinks.redis.keyspace import connect

N_PARTITIONS = 4
ENTITY_LIVES_S = 4
N_ENTITIES = 500
SAMPLE_S = 10.0
MOST_GROWTH = {"rss_mb": 1.1, "handles": 1.1, "threads": 1.1, "store_mb": 2.0, "state_mb": 1.5, "redis_keys": 1.1}
"""The limits of the last quarter's usage divided by the second's.

Allocated memory rises and falls by a few per cent; SQLite keeps the space of the largest epoch; and a shard's base is
written again only after many events.
"""

DEFINITIONS = """\
from unskew import Entity, Feature, FeatureView, Session, Sliding, Stream, agg

stream = Stream(
    "events", topic="events", schema="record.avsc", event_time="at", partitioned_by="user", settle="500ms",
    event_id="item", dedupe_within="5s", owner="tests",
)
features = [
    Feature("count_5s", agg.count(), Sliding("5s", hop="1s")),
    Feature("sum_10s", agg.sum("amount"), Sliding("10s", hop="1s")),
    Feature("items_5s", agg.count_distinct("item"), Sliding("5s", hop="1s")),
    Feature("visit", agg.count(), Session("3s", hop="1s")),
]
by_user = FeatureView("by_user", entity=Entity("user", key="user"), stream=stream, owner="tests", features=features)
by_gift = FeatureView("by_item", entity=Entity("item", key="item"), stream=stream, owner="tests", features=features[:2])
"""


@dataclass(frozen=True)
class Sample:
    """What the process and its stores held at one moment. ``rss_mb``, ``store_mb``, ``state_mb``: mebibytes."""

    rss_mb: float
    handles: int
    threads: int
    store_mb: float
    state_mb: float
    redis_keys: int
    log_files: int
    epochs: int
    consumed: int


class _Events(threading.Thread):
    """So many records a second, stamped with the present."""

    def __init__(self, bootstrap: str, per_s: int) -> None:
        super().__init__(name="events", daemon=True)
        self._per_s = per_s
        self._producer = Producer(
            {"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 5, "log_level": 0}
        )
        self.ended = threading.Event()

    def run(self) -> None:
        began_s = time.monotonic()
        for number in itertools.count():
            due_s = began_s + number / self._per_s
            if (wait_s := due_s - time.monotonic()) > 0:
                self._producer.poll(0)
                if self.ended.wait(wait_s):
                    break
            now_ms = time.time_ns() // 1_000_000
            generation = now_ms // 1000 // ENTITY_LIVES_S
            user = number % N_ENTITIES
            record = Record(
                user % N_PARTITIONS, now_ms, f"{generation}-{user}", number, float(number % 97), True, now_ms * 1000
            )
            self._producer.produce(
                "events", record.value(), record.user.encode(), partition=record.partition, timestamp=now_ms
            )
        self._producer.flush(10)


@click.command()
@click.option("--minutes", default=60.0, show_default=True, help="For how long.")
@click.option("--epoch", default="200ms", show_default=True, help="Time between commits.")
@click.option("--per-second", default=1000, show_default=True, help="Events a second.")
@click.option("--compact-every", default=60.0, show_default=True, help="Seconds between two compactions; 0: none.")
def endure(minutes: float, epoch: str, per_second: int, compact_every: float) -> None:
    """Exit with 1 where anything but counts has grown."""
    root = Path(tempfile.mkdtemp(prefix="unskew-endurance-"))
    (root / "definitions").mkdir()
    (root / "definitions" / "record.avsc").write_text(json.dumps(SCHEMA))
    (root / "definitions" / "views.py").write_text(DEFINITIONS)
    tables = ["--log", str(root / "log"), "--archive", str(root / "archive"), "--dead-letters", str(root / "dead")]
    with EmbeddedBroker({"events": N_PARTITIONS}) as broker, EmbeddedRedis() as server:
        command = [
            *(sys.executable, "-m", "unskew", "run", "--apply", "--definitions", str(root / "definitions"), *tables),
            *("--bootstrap-servers", broker.bootstrap, "--redis-url", server.url, "--state", str(root / "state")),
            *("--idle", "wall", "--epoch", epoch, "--progress", "json", "--metrics", str(free_port())),
        ]
        print(f"in {root}", flush=True)
        events = _Events(broker.bootstrap, per_second)
        with (root / "output").open("wb") as output, subprocess.Popen(command, stdout=output) as process:
            try:
                events.start()
                samples = _watched(process, root, server.url, minutes * 60, tables, compact_every)
            finally:
                events.ended.set()
                process.terminate()
            if process.wait(60) != 0:
                sys.exit(f"the pipeline ended with {process.returncode}")
    _judge(samples)


def _watched(
    process: "subprocess.Popen[bytes]",
    root: Path,
    redis_url: str,
    for_s: float,
    tables: list[str],
    compact_every: float,
) -> list[Sample]:
    samples: list[Sample] = []
    until_s, compact_at_s = time.monotonic() + for_s, time.monotonic() + compact_every
    while time.monotonic() < until_s:
        time.sleep(SAMPLE_S)
        assert process.poll() is None, f"the pipeline ended with {process.returncode}"
        sample = _sample(process.pid, root, redis_url)
        if sample is None:
            continue
        samples.append(sample)
        print(json.dumps(asdict(sample)), flush=True)
        if compact_every and time.monotonic() > compact_at_s:
            compact_at_s += compact_every
            compact = [sys.executable, "-m", "unskew", "compact", *tables, "--grace", "30s"]
            subprocess.run(compact, check=True, capture_output=True)
    return samples


def _sample(pid: int, root: Path, redis_url: str) -> Sample | None:
    """None before the first progress line."""
    lines = [line for line in (root / "output").read_text().splitlines(keepends=True) if line.endswith("\n")]
    if not lines:
        return None
    told: Mapping[str, int] = json.loads(lines[-1])
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    with connect(redis_url) as client:
        keys = int(client.dbsize())
    return Sample(
        rss_mb=round(int(status["VmRSS"].split()[0]) / 1024, 1),
        handles=len(os.listdir(f"/proc/{pid}/fd")),  # noqa: PTH208 - they come and go while a Path would be made of each
        threads=int(status["Threads"]),
        store_mb=_size_mb(root / "state" / "recovery"),
        state_mb=_size_mb(root / "state" / "changelog"),
        redis_keys=keys,
        log_files=sum(1 for _ in (root / "log").glob("*/*/day=*/*.parquet")),
        epochs=told["epochs"],
        consumed=told["consumed"],
    )


def _size_mb(folder: Path) -> float:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            # Replaced while this looked.
            continue
    return round(total / 2**20, 2)


def _judge(samples: list[Sample]) -> None:
    quarter = len(samples) // 4
    if not quarter:
        sys.exit("too short to tell: a quarter has no sample")
    second, last = samples[quarter : 2 * quarter], samples[-quarter:]
    grown = []
    for name, most in MOST_GROWTH.items():
        before, after = (statistics.mean(getattr(sample, name) for sample in part) for part in (second, last))
        print(f"{name:10}  {before:10.1f}  {after:10.1f}  {after / before:6.3f}")
        if after > before * most:
            grown.append(name)
    print(f"{samples[-1].epochs:,} epochs, {samples[-1].consumed:,} events")
    if grown:
        sys.exit(f"grown: {', '.join(grown)}")


if __name__ == "__main__":
    endure()
