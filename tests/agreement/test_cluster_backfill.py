"""A backfill that is divided among the processes of a cluster leaves what one process, and the stream, leave."""

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.agreement.test_history import RECORDS, ahead, purge, ran, served, without
from tests.agreement.test_objects import in_store, table
from tests.support.pipeline import SCHEMA, Bench, Outcome, agreed, plan
from tests.support.recovery.processes import free_port
from unskew.features.definitions.load import load
from unskew.features.errors import LayoutError, RequestError
from unskew.pipelines.history import archive, backfill, seam
from unskew.pipelines.state.seeds import Seeds
from unskew.sinks.tables.layout import read_definition, shards_file, view_root

DEFINITIONS = """
from unskew import Calendar, Entity, Feature, FeatureView, Sliding, Stream, agg

user, item = Entity("user", key="user"), Entity("item", key="item")
stream = Stream("purchases", topic={topic!r}, schema={schema!r}, event_time="at", partitioned_by="user", owner="tests")
features = [
    Feature("count_5s", agg.count(), Sliding("5s", hop="1s")),
    Feature("sum_1m", agg.sum("amount"), Sliding("60s", hop="15s"), filter="amount > 0"),
    Feature("last_today", agg.last("gift"), Calendar("day", tz="Europe/Berlin")),
]
first = FeatureView("first", entity=item, stream=stream, owner="tests", features=features[:1])
by_user = FeatureView("by_user", entity=user, stream=stream, owner="tests", features=features)
by_item = FeatureView("by_item", entity=item, stream=stream, owner="tests", features=features, where="item <> 3")
"""
SMALL_CHUNKS = """
import os, signal, sys
from unskew.cli import main
from unskew.pipelines.history import archive, backfill
from unskew.sinks import durable

backfill.CHUNK_ROWS, archive.BATCH_ROWS = 40, 7
rename, (view, left) = durable.rename, sys.argv.pop(1).split(":")
left = int(left)

def renamed(source, target, *arguments, **more):
    global left
    left -= view in str(target)
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target, *arguments, **more)

durable.rename = renamed
main()
"""
NEVER = "by_user:-1"
VIEWS = ("by_user", "by_item")


class Cluster:
    """Processes of the command line on one pipeline's folders."""

    def __init__(self, outcome: Outcome, definitions: Path) -> None:
        where = outcome.deployment
        self._where = where
        self._folders = [
            *("--definitions", str(definitions), "--state", str(where.state)),
            *("--log", str(where.log), "--archive", str(where.archive)),
        ]

    def backfill(self, n: int, killed_at: Mapping[int, str]) -> dict[int, str]:
        """Start processes of a cluster of ``n``, and return what each says at its end.

        ``killed_at``: by number of process, of which view it renames how many files until it is killed; those that are
        left out do not start.
        """
        addresses = ",".join(f"127.0.0.1:{port}" for port in range(1, n + 1))
        commands = {
            number: [
                *(sys.executable, "-c", SMALL_CHUNKS, at, "backfill", *VIEWS, *self._folders),
                *("--cluster", addresses, "--process", str(number)),
            ]
            for number, at in killed_at.items()
        }
        return self._ended(commands, {number: 0 if at is NEVER else -9 for number, at in killed_at.items()})

    def run(self, n: int) -> None:
        """Run the pipeline to the end of its topic, in ``n`` processes."""
        where = self._where
        addresses = ",".join(f"127.0.0.1:{free_port()}" for _ in range(n))
        command = [
            *(
                sys.executable,
                "-m",
                "unskew",
                "run",
                "--apply",
                *self._folders,
                "--dead-letters",
                str(where.dead_letters),
            ),
            *("--bootstrap-servers", where.bootstrap, "--redis-url", where.redis_url, "--prefix", where.prefix),
            *("--idle", "none", "--end", "now", "--epoch", "200ms", "--progress", "none"),
            *("--shards", str(where.n_hashes), "--cluster", addresses),
        ]
        self._ended({number: [*command, "--process", str(number)] for number in range(n)}, dict.fromkeys(range(n), 0))

    @staticmethod
    def _ended(commands: Mapping[int, Sequence[str]], codes: Mapping[int, int]) -> dict[int, str]:
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started = {n: subprocess.Popen(command, **pipes) for n, command in commands.items()}
        try:
            said = {number: process.communicate(timeout=300)[0] for number, process in started.items()}
        finally:
            for process in started.values():
                process.kill()
        assert {number: process.returncode for number, process in started.items()} == codes, said
        return said


@pytest.mark.long
def test_a_cluster_whose_processes_are_killed_leaves_what_one_process_and_the_stream_leave(bench: Bench) -> None:
    topic = bench.produce(RECORDS[:150])
    definitions = bench.root / "definitions.py"
    definitions.write_text(DEFINITIONS.format(topic=topic, schema=SCHEMA))
    every = load(definitions)
    first = replace(every, views={"first": every.views["first"]})
    outcome, always = (Outcome(every, bench.deployment(n_hashes=3)) for _ in range(2))
    ran(first, outcome)
    ran(every, always)
    folders = outcome.deployment
    alone = Outcome(every, replace(folders, log=bench.root / "alone" / "log", state=bench.root / "alone" / "state"))
    shutil.copytree(folders.state, alone.deployment.state)
    cluster = Cluster(outcome, definitions)

    # All are killed, at moments of their own; then one goes on to its end, one is killed again, and one is gone.
    cluster.backfill(3, {0: "by_user:9", 1: "by_item:14", 2: "by_item:3"})
    assert Seeds(folders.state).views() == ["by_item@1", "by_user@1"]
    said = cluster.backfill(3, {0: NEVER, 1: "by_item:4"})
    assert "Not there yet, because other processes compute them: " in said[0]
    assert "Wait for the other processes" in said[0]
    # The pipeline goes on meanwhile, so the ends of those that begin now are later ones.
    bench.append(topic, RECORDS[150:250])
    ran(first, outcome)
    ran(every, always)
    said = cluster.backfill(2, {0: NEVER, 1: NEVER})
    assert any("Restart unskew run" in text for text in said.values()), said

    ahead(every, alone, *VIEWS)
    for view in VIEWS:
        assert outcome.log(view).equals(alone.log(view))
        assert outcome.complete_to(view) == alone.complete_to(view)
    bench.append(topic, RECORDS[250:])
    cluster.run(2)
    ran(every, always)
    for view in every.views:
        assert outcome.log(view).drop("cause").equals(always.log(view).drop("cause"))
        assert outcome.complete_to(view) == always.complete_to(view)
    assert served(bench, outcome) == served(bench, always) != {}
    assert agreed(every, folders, samples=400).values


@pytest.mark.parametrize("place", ["disk", pytest.param("object store", marks=pytest.mark.long)])
def test_processes_divide_a_backfill_while_all_others_are_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, place: str
) -> None:
    topic = bench.produce(RECORDS[:200])
    both = plan(topic)
    deployment = bench.deployment(n_hashes=3)
    if place == "object store":
        deployment = in_store(deployment, request.getfixturevalue("bucket"))
    outcome = Outcome(both, deployment)
    ran(without(both, "by_item"), outcome)
    alone = Outcome(both, replace(deployment, log=bench.root / "alone" / "log", state=bench.root / "alone" / "state"))
    shutil.copytree(deployment.state, alone.deployment.state)
    ahead(both, alone, "by_item")
    monkeypatch.setattr(backfill, "CHUNK_ROWS", 40)
    monkeypatch.setattr(archive, "BATCH_ROWS", 7)
    two, seeds, of_second = ("a:1", "b:1"), Seeds(deployment.state), []

    def meanwhile(*_: object) -> None:
        """In the middle of the first process."""
        if of_second or not seeds.has("by_item@1"):
            return
        for changes in ({}, {"cluster": two}, {"cluster": ("a:1", "b:1", "c:1"), "process": 1}):
            with pytest.raises(LayoutError, match="is in use by the backfill of a test"):
                ahead(both, outcome, "by_item", **changes)
        assert "is in use by the backfill of a test" in purge(outcome, "by_item@1").output
        with pytest.raises(LayoutError, match=r"computes its shard h\d with another --from"):
            ahead(both, outcome, "by_item", cluster=two, process=1, from_us=1)
        of_second.extend(ahead(both, outcome, "by_item", cluster=two, process=1))
        # As a process does that begins, fails, and finds nothing of the others yet.
        shards_file(view_root(deployment.log, "by_item", 1)).unlink()

    (first,) = ahead(both, outcome, "by_item", report=meanwhile, cluster=two)

    (second,) = of_second
    assert {*second.unfinished} < {"h0", "h1", "h2"}
    assert first.unfinished == []
    assert first.rows + second.rows == table(view_root(deployment.log, "by_item", 1)).height
    found, expected = (
        table(view_root(one.deployment.log, "by_item", 1)).sort("shard", "seq") for one in (outcome, alone)
    )
    assert found.equals(expected)
    assert read_definition(view_root(deployment.log, "by_item", 1)) is not None
    ran(both, outcome)
    assert seeds.views() == ["by_item@1"]
    agreed(both, deployment, samples=200)


def test_more_processes_than_shards_and_beginning_again(bench: Bench) -> None:
    topic = bench.produce(RECORDS[:100])
    both = plan(topic)
    outcome = Outcome(both, bench.deployment(n_hashes=3))
    ran(without(both, "by_item"), outcome)
    five = [f"host:{number}" for number in range(5)]

    seams = [ahead(both, outcome, "by_item", cluster=five, process=number) for number in range(5)]

    assert sorted(map(len, seams)) == [0, 0, 1, 1, 1]
    found = [seam for ones in seams for seam in ones]
    assert [len(seam.unfinished) for seam in found] == [2, 1, 0]
    assert sum(seam.rows for seam in found) == outcome.log("by_item").height
    with pytest.raises(
        RequestError, match=r"--again and --cluster exclude each other.* 'unskew purge by_item@1 --back"
    ):
        ahead(both, outcome, "by_item", cluster=five, again=True)
    assert purge(outcome, "by_item@1").exit_code == 0
    assert len(ahead(both, outcome, "by_item", cluster=five[:1], again=True)) == 1


def test_an_entity_in_partitions_of_two_processes_is_found_at_the_hand_over(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them has seen it in one partition alone."""
    monkeypatch.setitem(seam.compare.__kwdefaults__, "n_entities", 1)
    moved = [replace(one, partition=1) if number % 30 == 0 else one for number, one in enumerate(RECORDS[:100])]
    both = plan(bench.produce([one for one in moved if one.partition < 2]))
    outcome = Outcome(both, bench.deployment())
    ran(without(both, "by_user"), outcome)
    for number in range(4):
        ahead(both, outcome, "by_user", cluster=("a:1", "b:1", "c:1", "d:1"), process=number)

    with pytest.raises(
        LayoutError, match=r"by_user: entity user%20\d%25 is in two partitions, but .* by_user@1 --again"
    ):
        ran(both, outcome)
