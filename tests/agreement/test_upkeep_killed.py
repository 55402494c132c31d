"""Commands of upkeep that are killed with ``kill -9`` at random moments, on a disk and in an object store.

After every kill each reader finds each row once, with its values, and the same command finishes the work.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import redis

from tests.agreement.test_objects import in_store, table
from tests.agreement.test_retain import DEFINITIONS, RECORDS
from tests.support.pipeline import Bench, agreed
from tests.support.servers.objects import SeaweedFS
from unskew.features.definitions.load import load
from unskew.features.plan import Plan
from unskew.features.time import DAY_US
from unskew.pipelines.deployment import Deployment
from unskew.pipelines.run import run
from unskew.sinks.objects import ObjectPath
from unskew.sinks.tables.layout import read_coverage, view_root

GONE = "user 3%"
VIEWS = {"by_user": "user", "by_item": "item"}
COMMANDS = ("compact", "retain", "erase", "publish")
N_KILLS = 2
"""Lives of each command that a kill may end."""
# A process that imports once what every command needs, so that lives are short; it does nothing with it itself.
FORKS = """
import importlib, json, os, sys
from unskew.cli import main
from unskew.sinks import lease
for name in ("offline.compaction", "offline.delta", "offline.erasing", "offline.retention", "pipelines.erasing"):
    importlib.import_module("unskew." + name)
import obstore, pyarrow.parquet, unskew.pipelines.replay
# A killed process's lock is taken over after this time.
lease.RENEW_S, lease.STALE_S = 0.1, 0.8
lease.locked.__wrapped__.__kwdefaults__["stale_s"] = 0.8
print("ready", flush=True)
for line in sys.stdin:
    children = []
    for words, out in json.loads(line):
        children.append(os.fork())
        if not children[-1]:
            os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 1)
            os.dup2(1, 2)
            main(words)
    print(json.dumps(children), flush=True)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    print(json.dumps(codes), flush=True)
"""


class Lives:
    """Commands in processes of their own, some of which are killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._forks = subprocess.Popen(
            [sys.executable, "-c", FORKS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._line() == "ready\n"

    def end(self) -> None:
        self._forks.kill()
        self._forks.communicate()

    def __call__(
        self, *commands: Sequence[str], kill_after_s: float = 0.0, stamp: Callable[[], object] | None = None
    ) -> list[tuple[int, str]]:
        """Run commands at once; return the exit code of each, and what it said.

        ``stamp``: if given, all are killed a while after what it returns has changed, so that they are at work.
        """
        before = None if stamp is None else stamp()
        outs = [self._folder / f"out{number}" for number in range(len(commands))]
        asked = [(list(words), str(out)) for words, out in zip(commands, outs, strict=True)]
        self._write(json.dumps(asked))
        children = json.loads(self._line())
        if stamp is not None:
            while stamp() == before and any(Path(f"/proc/{child}").exists() for child in children):
                time.sleep(0.005)
            time.sleep(kill_after_s)
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        codes = json.loads(self._line())
        said = [out.read_text() if out.exists() else "" for out in outs]
        assert not [text for text in said if "Traceback" in text], said
        return list(zip(codes, said, strict=True))

    def _write(self, line: str) -> None:
        assert self._forks.stdin is not None
        self._forks.stdin.write(f"{line}\n")
        self._forks.stdin.flush()

    def _line(self) -> str:
        assert self._forks.stdout is not None
        return self._forks.stdout.readline()


@dataclass
class Place:
    """A pipeline that has read several days, the commands that work on it, and what readers see of it."""

    plan: Plan
    deployment: Deployment
    definitions: Path
    redis_url: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def command(self, name: str) -> list[str]:
        where = self.deployment
        tables = [f"--log={where.log}", f"--archive={where.archive}", f"--dead-letters={where.dead_letters}"]
        definitions = f"--definitions={self.definitions}"
        keep = ("--keep-log=2d", "--keep-archive=3d", "--keep-dead-letters=3d")
        return {
            "publish": ["publish", tables[0]],
            "compact": ["compact", *tables, "--min-files=2", "--grace=0s"],
            "retain": ["retain", definitions, *tables, *keep, "--grace=0s"],
            "erase": [
                *("erase", "user", GONE, definitions, *tables, f"--state={where.state}"),
                f"--redis-url={self.redis_url}",
            ],
        }[name]

    @property
    def topic(self) -> str:
        return self.plan.views["by_user"].stream.topic

    def content(self) -> dict[str, pl.DataFrame]:
        """What our own readers see, and those of Delta metadata."""
        found = {}
        for view in VIEWS:
            root = view_root(self.deployment.log, view, 1)
            found[view] = table(root)
            delta = pl.scan_delta(str(root), **self.options).drop("written_at").collect()
            found[f"{view} by its Delta metadata"] = delta.select(found[view].columns)
        found["archive"] = table(self.deployment.archive / self.topic)
        found["dead letters"] = table(self.deployment.dead_letters / self.topic)
        return found

    def stamp(self) -> object:
        """Return something that changes when a command begins to write."""
        roots = (self.deployment.log, self.deployment.archive, self.deployment.dead_letters)
        if any(isinstance(root, ObjectPath) for root in roots):
            return {(str(one), one.e_tag) for root in roots for one in root.objects()}  # type: ignore[attr-defined]
        # Folders may go meanwhile.
        return {(folder, *files) for root in roots for folder, _, files in os.walk(root)}

    def served(self) -> dict[str, Any]:
        client = redis.Redis.from_url(self.redis_url, decode_responses=True)
        found = client.scan_iter(f"{self.deployment.prefix}:*@*")
        return {key: client.hgetall(key) for key in found if "user%203%25" not in key}


def faults(before: Mapping[str, pl.DataFrame], now: Mapping[str, pl.DataFrame], cut: Mapping[str, int]) -> list[str]:
    """What readers find that they must not, and what they miss, while days before ``cut`` and one user go."""
    found = []
    for name, found_rows in now.items():
        rows = found_rows
        kind = name.partition(" by ")[0]
        order = {"archive": ["_partition", "_offset"], "dead letters": ["partition", "offset", "view"]}
        key = order.get(kind, ["shard", "seq"])
        if rows.select(key).is_duplicated().any():
            found.append(f"{name}: rows are there twice")
        was = before[name].with_columns(pl.col(key[0]).cast(rows.schema[key[0]]))
        instant = {"archive": "_arrival", "dead letters": "arrival"}.get(kind, "available_at")
        goes = pl.col(instant).to_physical() < cut[kind]
        if kind in VIEWS:
            # Of what is removed, the last row of each entity stays.
            last = pl.col("seq") == pl.col("seq").filter(goes).max().over(VIEWS[kind])
            goes = goes & ~last
        if "user" in was.columns:
            goes = goes | (pl.col("user") == GONE)
        if kind == "dead letters":
            goes = goes | pl.col("key").cast(pl.String).eq_missing(GONE)
        if kind == "archive":
            # Of an erased event its place stays.
            if was.filter(pl.col(instant).to_physical() >= cut[kind]).join(rows, on=key, how="anti").height:
                found.append(f"{name}: places are missing")
            erased = rows.filter(pl.col("user").is_null()).select(key)
            places = was.filter(pl.col("user") == GONE).select(key)
            if erased.join(places, on=key, how="anti", nulls_equal=True).height:
                found.append(f"{name}: others were erased")
            rows = rows.join(erased, on=key, how="anti", nulls_equal=True)
        missed = was.filter(~goes).join(rows, on=key, how="anti", nulls_equal=True).height
        if missed:
            found.append(f"{name}: {missed} rows are missing")
        kept = was.join(rows, on=key, how="semi", nulls_equal=True).sort(key)
        if not kept.equals(rows.sort(key)):
            found.append(f"{name}: rows are other ones")
    return found


@pytest.fixture(params=["on a disk", "in an object store"])
def place(request: pytest.FixtureRequest, bench: Bench) -> Place:
    topic = bench.produce(RECORDS[:200], n_partitions=2)
    definitions = bench.root / "definitions.py"
    definitions.write_text(DEFINITIONS.format(topic=topic))
    deployment, options = bench.deployment(n_hashes=2), {}
    if request.param == "in an object store":
        bucket: ObjectPath = request.getfixturevalue("bucket")
        server: SeaweedFS = request.getfixturevalue("object_server")
        deployment, options = in_store(deployment, bucket), {"storage_options": server.environment}
    made = Place(load(definitions), deployment, definitions, bench.redis_url, options)
    run(made.plan, deployment, stop=threading.Event())
    agreed(made.plan, deployment, samples=400)
    return made


@pytest.fixture
def lives(tmp_path: Path) -> Iterator[Lives]:
    made = Lives(tmp_path)
    yield made
    made.end()


def cuts(place: Place) -> dict[str, int]:
    """Where the days end that are removed, by kind of table."""
    coverage = read_coverage(view_root(place.deployment.log, "by_item", 1))
    assert coverage is not None
    assert coverage.complete_to_us is not None
    last = coverage.complete_to_us // DAY_US
    three = (last - 3) * DAY_US
    return {**dict.fromkeys(VIEWS, (last - 2) * DAY_US), "archive": three, "dead letters": three}


@pytest.mark.long
def test_readers_are_right_after_every_kill_and_the_same_command_finishes(place: Place, lives: Lives) -> None:
    chance = random.Random(7)
    assert lives(place.command("publish"))[0][0] == 0
    before, served, cut = place.content(), place.served(), cuts(place)
    # About how long each is at work, which no two machines and no two moments agree on.
    lasts_s = dict.fromkeys(COMMANDS, 0.5)
    n_killed = 0
    for name in chance.sample(COMMANDS * N_KILLS, k=len(COMMANDS) * N_KILLS):
        ((code, said),) = lives(place.command(name), kill_after_s=chance.random() * lasts_s[name], stamp=place.stamp)
        assert code in {0, -signal.SIGKILL}, said
        n_killed += code != 0
        lasts_s[name] *= 1.4 if code else 0.7
        assert faults(before, place.content(), cut) == [], name
        assert place.served() == served
    assert n_killed >= N_KILLS

    for code, said in lives(*map(place.command, COMMANDS)):
        assert code == 0 or "another command is at work on " in said, said
        assert code in {0, 1}
    assert faults(before, place.content(), cut) == []
    for name in (*COMMANDS, "publish"):
        ((code, said),) = lives(place.command(name))
        assert code == 0, said
        assert faults(before, place.content(), cut) == [], name
    now = place.content()
    assert place.served() == served
    for view, key in VIEWS.items():
        rows = now[view].sort("shard", "seq")
        assert rows.equals(now[f"{view} by its Delta metadata"].sort("shard", "seq"))
        assert rows.filter(pl.col("available_at").to_physical() < cut[view])[key].is_unique().all()
    assert GONE not in {*now["by_user"]["user"], *now["archive"]["user"]}
    assert now["archive"].height < before["archive"].height
