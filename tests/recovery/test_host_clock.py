"""Processes whose wall clock is set while they run: they go on, end when asked, and no mark rests on a wrong clock."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from tests.support.pipeline import SCHEMA, Bench, Outcome, Record, entities, expected_log, logged
from tests.support.recovery.processes import END_WITHIN_S
from tests.support.servers.valkey import wait_until
from unskew import load
from unskew.pipelines.run import run

SOURCE = Path(__file__).parents[1] / "support" / "recovery" / "clock_shift.c"
HOUR_S = 3_600
DEFINITIONS = """\
from unskew import Entity, Feature, FeatureView, Lifetime, Sliding, Stream, agg

purchases = Stream("purchases", topic="{topic}", schema='''{schema}''', event_time="at", settle="300ms", owner="tests")
features = [
    Feature("count_5s", agg.count(), Sliding("5s", hop="1s")),
    Feature("spent", agg.sum("amount"), Lifetime()),
]
by_item = FeatureView("by_item", entity=Entity("item", key="item"), stream=purchases, owner="tests", features=features)
"""


class Shifted:
    """A pipeline in a process of its own, whose wall clock a test can set, and records that come at the right time."""

    def __init__(self, bench: Bench, folder: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bench = bench
        self.topic = bench.produce([], 2)
        self.deployment = replace(bench.deployment(), idle="wall", ends=None)
        self.definitions = folder / "definitions.py"
        self.definitions.write_text(DEFINITIONS.format(topic=self.topic, schema=json.dumps(SCHEMA)))
        self.shift = folder / "shift"
        self.set(0)
        self.errors = folder / "errors"
        self.n_records = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._chance = random.Random(1)
        monkeypatch.setenv("CLOCK_SHIFT", str(self.shift))
        self._library = library
        self._monkeypatch = monkeypatch

    def set(self, seconds: float) -> None:
        """Let the wall clock be so far from the right time. The file is written in place, because it is mapped."""
        file = os.open(self.shift, os.O_WRONLY | os.O_CREAT)
        os.pwrite(file, int(seconds * 1e9).to_bytes(8, "little", signed=True), 0)
        os.close(file)

    def start(self) -> None:
        given = self.deployment
        folders = {"log": given.log, "archive": given.archive, "dead-letters": given.dead_letters, "state": given.state}
        options = [part for name, folder in folders.items() for part in (f"--{name}", str(folder))]
        options += ["--bootstrap-servers", given.bootstrap, "--redis-url", given.redis_url, "--prefix", given.prefix]
        options += ["--definitions", str(self.definitions), "--idle", "wall", "--epoch", "200ms", "--progress", "none"]
        with self._monkeypatch.context() as patch, self.errors.open("ab") as errors:
            patch.setenv("LD_PRELOAD", str(self._library))
            self.process = subprocess.Popen([sys.executable, "-m", "unskew", "run", "--apply", *options], stderr=errors)

    def stop(self) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def feed(self, within_s: float = 60.0) -> None:
        """Put records until some of them are archived, long before a clock that was set back is right again."""
        before = self.n_records
        wait_until(lambda: self._fed() > before, "records that came after the clock was set are archived", within_s)

    def _fed(self) -> int:
        now_ms = time.time_ns() // 1_000_000
        # Partition 1 has a record now and then: its clock stands on marks.
        partition = int(self.n_records % 20 == 0)
        self.bench.append(
            self.topic, [Record(partition, now_ms, "user", self._chance.randrange(3), 0.1, False, now_ms * 1000)]
        )
        self.n_records += 1
        time.sleep(0.05)
        return self.archived()

    def archived(self) -> int:
        files = list(self.deployment.archive.glob("*/day=*/*.parquet"))
        return sum(pl.scan_parquet(file).select(pl.len()).collect().item() for file in files)


@pytest.fixture
def shifted(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shifted]:
    library = tmp_path / "clock_shift.so"
    compiler = shutil.which("cc")
    assert compiler, "this test compiles a small library in C: install a C compiler as cc"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    made = Shifted(bench, tmp_path, library, monkeypatch)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.wait()


@pytest.mark.long
def test_a_wall_clock_that_is_set_stops_no_process_and_poisons_no_clock(shifted: Shifted) -> None:
    shifted.start()
    # The kernel may have to be compiled first.
    shifted.feed(END_WITHIN_S)
    for off_s in (HOUR_S, 0, -HOUR_S):
        shifted.set(off_s)
        shifted.feed()
    assert shifted.stop() == 0
    # It begins with a wrong clock, which the other server's shows.
    shifted.set(400 * 24 * HOUR_S)
    shifted.start()
    shifted.feed()
    assert shifted.stop() == 0

    outcome = Outcome(load(shifted.definitions), shifted.deployment)
    run(outcome.plan, replace(shifted.deployment, idle="none", ends="now"), stop=threading.Event())
    events, view = outcome.archive(), outcome.plan.views["by_item"]
    ahead = events.select((pl.col("_arrival") - pl.col("_event_time")).dt.total_seconds())
    assert events.height == shifted.n_records
    assert ahead.max().item() < HOUR_S / 2
    complete_to = dict.fromkeys(entities(view, events), outcome.complete_to("by_item")["h0"])
    assert logged(view, outcome.log("by_item")) == expected_log(view, events, complete_to)
    said = shifted.errors.read_text()
    for text in ("jumped and is now 3600.0 s ahead", "went back by 3600.0 s", "ahead of the clock of the Redis server"):
        assert text in said
