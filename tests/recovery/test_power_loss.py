"""A loss of power takes what no fsync has made durable: nothing of that is relied on, by whoever writes files."""

import re
import threading
from pathlib import Path

import polars as pl
import pytest

from tests.support.disk import Disk
from tests.support.pipeline import Bench, history, plan
from tests.support.plans import DAY, SECOND, Wanted, events, lifetime, view
from unskew.features.evaluate import evaluate
from unskew.features.shard_state import ShardState
from unskew.offline.compaction import Limits, Table, compact
from unskew.pipelines.deployment import Deployment
from unskew.pipelines.replay import Memory, Resend
from unskew.pipelines.run import run
from unskew.pipelines.state.changelog import Changelog, Changelogs
from unskew.pipelines.state.folder import StateFolder, make_state_folder
from unskew.pipelines.state.journal import LONGEST_BYTES, Journal, Placed
from unskew.sinks.lease import Lease, Owner
from unskew.sinks.tables.layout import INSTANT, file_name
from unskew.sinks.tables.parquet import StagedTable, record_shards

HERE = "clicks clicks/0"
# They say less, or are written again, where they are lost.
NEEDLESS = ("*/_leases", "*/_leases/*", "*/_coverage", "*/_coverage/[!_]*.json", "*/_compacting", "*/_compacting/lock")


@pytest.fixture
def disk(tmp_path, monkeypatch) -> Disk:
    return Disk(monkeypatch, tmp_path)


def journal(folder: Path) -> Journal:
    return Journal(folder, "state", durably=lambda work: work(), still_ours=lambda: None)


def rows(*numbers: int) -> pl.DataFrame:
    return pl.DataFrame({"n": numbers, "t": [n * DAY for n in numbers]}).select(
        pl.col("n").cast(pl.Int64), pl.col("t").cast(INSTANT)
    )


def table(root: Path, saved=None) -> StagedTable:
    return StagedTable(root, "p0", day_column="t", sequence_column="n", metadata={}, saved=saved)


def test_a_table_is_durable_at_each_snapshot_and_when_it_is_settled(tmp_path, disk):
    made = table(tmp_path / "log" / "view")
    for first in (0, 3):
        made.append(rows(first, first + 1, first + 2))
        made.cover({"since": 0})
        made.snapshot()
        assert disk.lose(*NEEDLESS) == []
    made.settle()

    assert (disk.faults, disk.lose(*NEEDLESS)) == (["log/view/_coverage/p0.json"] * 2, [])


def test_the_shards_of_a_log_are_durable_before_any_coverage_is_withdrawn(tmp_path, disk):
    record_shards(tmp_path / "log" / "view", ["p0", "p1"], view=view(Wanted("n", "count", lifetime())))

    (synced, temporary), *rest = disk.calls[-3:]
    assert synced == "fsync"
    assert re.fullmatch(r"log/view/_coverage/\._shards\.json\.[0-9a-f]{32}\.tmp", temporary)
    assert rest == [
        ("rename", "log/view/_coverage/_shards.json"),
        ("fsync", "log/view/_coverage"),
    ]
    assert (disk.faults, disk.lose()) == ([], [])


def test_a_folder_that_a_lease_makes_is_durable(tmp_path, disk):
    owner = Owner(text="me", group="g", member=0)
    lease = Lease(tmp_path / "a" / "log", "--log", owner, frozenset(["p0"]))

    assert disk.lose(*NEEDLESS) == []
    lease.release()


def test_the_state_folder_says_what_it_is_before_it_holds_a_store(tmp_path, disk):
    deployment = Deployment(
        bootstrap="", redis_url="", log=tmp_path, archive=tmp_path, dead_letters=tmp_path,
        state=tmp_path / "a" / "state", idle="none",
    )  # fmt: skip
    make_state_folder(deployment.state)
    state = StateFolder.read(plan("topic"), deployment, lambda: disk.calls.append(("still ours", "")))
    state.open({})

    assert [call for call in disk.calls if not call[1].endswith(".sqlite3")] == [
        ("fsync", "."),
        ("fsync", "a"),
        ("fsync", "a/state/deployment.tmp"),
        ("still ours", ""),
        ("rename", "a/state/deployment.json"),
        ("fsync", "a/state"),
        ("fsync", "a/state/recovery.tmp"),
        ("still ours", ""),
        ("rename", "a/state/recovery"),
        ("fsync", "a/state"),
    ]
    state.record({})
    assert disk.calls[-2:] == [("rename", "a/state/deployment.json"), ("fsync", "a/state")]
    assert (disk.faults, disk.lose()) == ([], [])


def test_a_journal_has_a_durable_name_whenever_it_says_that_a_fact_is_durable(tmp_path, disk):
    made = journal(tmp_path / "journal")
    made.script(HERE, None, None)
    for offset in range(0, 3_000, 2):
        made.ensure(made.note(Placed(HERE, offset, offset + 2, offset, floor_us=offset)))
        assert disk.lose("*.tmp", "*/0.journal" if made._replacing else "") == []
        if (tmp_path / "journal" / "0.journal").stat().st_size > LONGEST_BYTES:
            made.durable(HERE, offset, offset)
    made.close()

    assert len([call for call in disk.calls if call[0] == "rename"]) > 1
    assert (disk.faults, disk.lose()) == ([], [])


def test_a_changelog_is_durable_at_each_snapshot(tmp_path, disk):
    counted = view(Wanted("n", "count", lifetime()))
    logs = Changelogs(tmp_path / "changelog")
    state, log = ShardState(counted, "h0"), Changelog(logs, counted, "h0", None)
    for second in range(1, 4):
        # More than a base is due after.
        given = evaluate(counted, events([(second * SECOND, second * SECOND, {"user": "u"})] * 30_000)).events
        state.apply(given, second * SECOND)
        log.append(given)
        log.snapshot(state, 0)
        assert disk.lose() == []
    logs.close()

    assert any(name.endswith(".base") for call, name in disk.calls if call == "rename")
    assert disk.faults == []


def test_a_merged_file_is_durable_before_those_that_it_covers_are_deleted(tmp_path, disk):
    made = table(tmp_path / "log")
    for n in range(3):
        made.append(rows(0).with_columns(n=pl.lit(n, pl.Int64)))
        made.snapshot()
    made.settle()
    before = len(disk.calls)

    compact(
        Table(name="t", root=tmp_path / "log", sequence="n", gapless=True), Limits(min_files=2, grace_s=0), now_s=1e12
    )

    merged = f"log/day=1970-01-01/{file_name('p0', 0, 2)}"
    assert len(list((tmp_path / "log").glob("day=*/*.parquet"))) == 1
    assert [name for _, name in disk.calls[before:]][1:] == [merged, "log/day=1970-01-01"]
    assert (disk.faults, disk.lose(*NEEDLESS)) == ([], [])


def test_the_memory_of_letters_sent_again_has_a_durable_name_before_anything_is_sent(tmp_path, disk):
    with Memory(tmp_path).open() as memory:
        assert disk.lose() == []
        memory.write([Resend("t", "t", 0, 1, b"k", b"v", None)], "sending")

    assert disk.calls[-1] == ("fsync", "_replayed.jsonl")


def test_a_whole_run_leaves_nothing_that_a_loss_of_power_takes(bench: Bench, disk: Disk) -> None:
    topic = bench.produce(history(80, seed=3))
    deployment = bench.deployment(epoch_s=0.0, poll_records=6)

    run(plan(topic), deployment, stop=threading.Event())

    assert {name for name in disk.faults if "/_coverage/" not in name} == set()
    assert disk.lose(*NEEDLESS) == []
