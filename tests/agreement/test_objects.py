"""A pipeline whose log, archive and dead letters are in an object store leaves there what it leaves on a disk."""

import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

from tests.agreement.test_history import without
from tests.agreement.test_import import FIRST, events, imported
from tests.agreement.test_import import RECORDS as IMPORTED
from tests.agreement.test_tables import computed, over
from tests.cli.test_run import _definitions
from tests.support.pipeline import Bench, Outcome, agreed, history, plan
from tests.support.servers.objects import SeaweedFS
from tests.support.servers.valkey import wait_until
from unskew import FeatureStore
from unskew.cli import main
from unskew.features.errors import LayoutError
from unskew.offline.compaction import Limits, archive_tables, compact, dead_letter_tables, log_tables
from unskew.offline.dead_letters import Wanted, find
from unskew.offline.logged_plan import logged_plan
from unskew.pipelines.deployment import Deployment, owner_of
from unskew.pipelines.history.ahead import Ahead, backfill_ahead
from unskew.pipelines.run import run
from unskew.sinks.lease import locked
from unskew.sinks.objects import ObjectPath, at_hand
from unskew.sinks.tables.layout import published_files, read_coverage, view_root

RECORDS = history(200, seed=11)
VIEWS = ["by_user", "by_item"]


def table(root: Path) -> pl.DataFrame:
    """The published rows of a table, but for the wall clock."""
    paths = [file.path for file in published_files(root)]
    with at_hand(paths) as there:
        rows = pl.concat([pl.read_parquet(there[path], hive_partitioning=False) for path in paths])
    return rows.drop("written_at", strict=False)


def left(deployment: Deployment, topic: str) -> dict[str, object]:
    """All that a run left behind: rows, and how far each shard is."""
    found: dict[str, object] = {}
    for name in VIEWS:
        root = view_root(deployment.log, name, 1)
        found[name] = table(root).sort("shard", "seq")
        found[f"coverage of {name}"] = read_coverage(root).shards
    found["archive"] = table(deployment.archive / topic).sort("_partition", "_offset")
    order = ["partition", "offset", "view", "reason"]
    found["dead letters"] = table(deployment.dead_letters / topic).sort(order)
    return found


def same(one: dict[str, object], other: dict[str, object]) -> bool:
    for name, found in one.items():
        wanted = other[name]
        equal = found.equals(wanted) if isinstance(found, pl.DataFrame) else found == wanted
        assert equal, (name, found, wanted)
    return True


def in_store(deployment: Deployment, bucket: ObjectPath) -> Deployment:
    return replace(deployment, log=bucket / "log", archive=bucket / "archive", dead_letters=bucket / "dead_letters")


@pytest.mark.long
def test_everything_that_a_disk_can_do_an_object_store_can(bench: Bench, bucket: ObjectPath, tmp_path: Path) -> None:
    topic = bench.produce(RECORDS[:120])
    both = plan(topic)
    every = {"epoch_s": 0.0, "poll_records": 24}
    on_disk = bench.deployment(**every)
    far = in_store(bench.deployment(**every), bucket)
    for deployment in (on_disk, far):
        run(without(both, "by_item"), deployment, stop=threading.Event())
    bench.append(topic, RECORDS[120:])
    # A view that is new gets its past from the archive there, first beside the pipeline, and then at its start.
    seams = backfill_ahead(
        Ahead(
            views=[both.views["by_item"]],
            log=far.log,
            archive=far.archive,
            state=far.state,
            owner=owner_of("a test", far.state),
        ),
        threading.Event(),
    )
    assert [seam.view for seam in seams] == ["by_item@1"]
    for deployment in (on_disk, far):
        run(both, deployment, stop=threading.Event())

    expected = left(on_disk, topic)
    assert same(left(far, topic), expected)
    assert not any("_staged" in one.parts or "_probe" in one.parts for one in bucket.objects())
    by_the_log = {one.id: one.state_fingerprint for one in logged_plan(far.log).views.values()}
    assert by_the_log == {one.id: one.state_fingerprint for one in both.views.values()}
    audited = CliRunner().invoke(main, ["audit", "--log", str(far.log), "--archive", str(far.archive), "--offline"])
    assert (audited.exit_code, audited.output[-10:]) == (0, "identical\n")
    for store in (far, on_disk):
        agreed(both, store, samples=200)

    labels = pl.DataFrame(
        {"user": ["user 1%", "user 2%", "user 3%"] * 5, "event_timestamp": _instants(far, 15)},
        schema_overrides={"event_timestamp": pl.Datetime("us", "UTC")},
    )
    features = ["by_user:count_1m", "by_user:sum_today", "by_user:last_10s"]
    answers = [
        FeatureStore(both, log=str(one.log), archive=str(one.archive))
        .get_historical_features(labels, features, outside="null", source="both" if one is far else "log")
        .to_polars()
        for one in (on_disk, far)
    ]
    assert answers[0].equals(answers[1])
    alone = FeatureStore(log=str(far.log))
    assert alone.get_historical_features(labels, features, outside="null").to_polars().equals(answers[0])
    assert set(alone.features()["version"]) == {1}

    before = len(list(bucket.objects()))
    for tables in (log_tables(far.log), archive_tables(far.archive), dead_letter_tables(far.dead_letters)):
        assert tables
        for one in tables:
            waiting = compact(one, Limits(min_files=2), now_s=time.time())
            assert (waiting.faults, waiting.notes) == ((), ())
            assert waiting.n_waiting >= 2 or one.name.startswith("dead letters")
    assert same(left(far, topic), expected)
    done = CliRunner().invoke(
        main,
        ["compact", "--log", str(far.log), "--archive", str(far.archive), "--grace", "0s", "--min-files", "2"],
    )
    assert done.exit_code == 0, done.output
    assert same(left(far, topic), expected)
    assert len(list(bucket.objects())) < before
    merged = published_files(far.archive / topic)
    assert len(merged) == len({file.writer for file in merged})
    # The pipeline goes on with merged files, whose runs are no longer needed.
    bench.append(topic, [replace(RECORDS[-1], stamp_ms=RECORDS[-1].stamp_ms + 1000 * n) for n in range(1, 9)])
    for deployment in (on_disk, far):
        run(both, deployment, stop=threading.Event())
    assert same(left(far, topic), left(on_disk, topic))

    assert find(far.dead_letters, Wanted()).equals(find(on_disk.dead_letters, Wanted()))
    views = _definitions(tmp_path, topic)
    views.write_text(views.read_text().replace("user_count_1h", "by_user"))
    for words, shown in (
        (["dead-letters", "list", "--dead-letters", str(far.dead_letters)], "letters"),
        (["log", "stats", "by_user", "--log", str(far.log), "--definitions", str(views)], "another definition"),
        (["log", "stats", "by_user", "--log", f"{far.log}-none", "--definitions", str(views)], "no such folder"),
    ):
        assert shown in CliRunner().invoke(main, words).output


def _instants(deployment: Deployment, n: int) -> list:
    rows = table(view_root(deployment.log, "by_user", 1))["available_at"].unique().sort()
    return rows.gather_every(max(1, len(rows) // n)).head(n).to_list()


def test_of_two_pipelines_on_one_log_the_one_that_was_taken_over_stops(bench: Bench, bucket: ObjectPath) -> None:
    topic = bench.produce(RECORDS[:60])
    reference = bench.run(topic)
    first, second, third = (in_store(bench.deployment(epoch_s=600.0, poll_records=4), bucket) for _ in range(3))

    class InTheMiddle:
        """Asks nothing to stop, and lets the other pipeline run when this one has begun."""

        n_asked = 0

        def is_set(self) -> bool:
            self.n_asked += 1
            if self.n_asked == 25:
                run(reference.plan, second, stop=threading.Event())
            return False

    middle = InTheMiddle()
    with pytest.raises(LayoutError, match=r"was taken over and stops|was published by an earlier run"):
        run(reference.plan, first, stop=middle)
    assert middle.n_asked >= 25
    with pytest.raises(LayoutError, match="was published by an earlier run"):
        run(reference.plan, third, stop=threading.Event())

    assert same(left(second, topic), left(reference.deployment, topic))


@pytest.mark.long
def test_imports_and_views_over_tables_are_the_same_in_an_object_store(
    bench: Bench, bucket: ObjectPath, tmp_path: Path
) -> None:
    near, far = (bench.deployment(start="latest") for _ in range(2))
    far = in_store(far, bucket)
    topic = bench.produce(IMPORTED[:FIRST])
    both = plan(topic)
    for one in (near, far):
        run(without(both, "by_item"), one, stop=threading.Event())
    bench.append(topic, IMPORTED[FIRST:])
    file = tmp_path / "past.parquet"
    events(IMPORTED).write_parquet(file)
    for one in (near, far):
        run(without(both, "by_item"), one, stop=threading.Event())
        imported(both, Outcome(both, one), file)
        imported(both, Outcome(both, one), file, again=True)
        run(both, one, stop=threading.Event())
    assert same(left(far, topic), left(near, topic))

    over_table = over(str(tmp_path / "table.parquet"))
    rows = events(IMPORTED).sort("arrived", "p", "o")
    for one in (near, far):
        outcome = Outcome(
            over_table, replace(one, state=tmp_path / f"{one.prefix}-table", prefix=f"{one.prefix}-table")
        )
        outcome.deployment = replace(outcome.deployment, log=one.log.with_name("log_of_table"))
        for part in (100, len(IMPORTED)):
            rows.head(part).write_parquet(tmp_path / "table.parquet")
            until_us = int(rows.head(part)["arrived"].dt.epoch("us").max())  # type: ignore[arg-type]
            computed(outcome, bench, until_us)
    for name in over_table.views:
        found = [
            table(view_root(one.log.with_name("log_of_table"), name, 1)).sort("shard", "seq") for one in (near, far)
        ]
        assert found[0].height > 0
        assert found[0].equals(found[1])


def test_a_lock_of_a_table_is_one_process_s_until_it_stands_still(bucket: ObjectPath, monkeypatch) -> None:
    with locked(bucket / "lock") as first:
        assert first is not None
        first()
        monkeypatch.setattr("unskew.sinks.lease.RENEW_S", 0.05)
    with locked(bucket / "lock") as holder, locked(bucket / "lock", stale_s=2.0) as other:
        assert holder is not None
        assert other is None
    # Its process was killed: nobody renews it.
    (bucket / "lock").write_bytes(b"left behind")
    with locked(bucket / "lock", stale_s=0.2) as taken:
        assert taken is not None
        taken()
    assert not (bucket / "lock").exists()


@pytest.mark.long
def test_killed_and_with_its_store_away_a_pipeline_loses_nothing_and_doubles_nothing(
    bench: Bench, own_objects: SeaweedFS, tmp_path: Path
) -> None:
    records = history(600, seed=3)
    topic = bench.produce(records)
    bucket = ObjectPath("s3:", "unskew-test", "killed")
    definitions = _definitions(tmp_path, topic)
    chance = random.Random(1)

    def command(root: Path, state: str) -> list[str]:
        return [
            *(sys.executable, "-m", "unskew", "run", "--apply", "--definitions", str(definitions)),
            *("--bootstrap-servers", bench.broker.bootstrap, "--redis-url", bench.redis_url, "--prefix", state),
            *("--log", str(root / "log"), "--archive", str(root / "archive"), "--state", str(tmp_path / state)),
            *("--idle", "none", "--end", "now", "--epoch", "50ms", "--poll-records", "3", "--progress", "none"),
        ]

    for life in ("killed", "killed", "without its store"):
        with (
            (tmp_path / "errors").open("wb") as errors,
            subprocess.Popen(command(bucket, "far"), stderr=errors) as process,
        ):
            # From the first write on, so that it is hit at work.
            before = {one.e_tag for one in (bucket / "log").objects()}
            while process.poll() is None and {one.e_tag for one in (bucket / "log").objects()} == before:
                time.sleep(0.02)
            time.sleep(chance.random() * 0.5)
            assert process.poll() is None, (tmp_path / "errors").read_text()
            if life == "killed":
                process.send_signal(signal.SIGKILL)
                continue
            own_objects.kill()
            try:
                wait_until(
                    lambda: "the object store is away: " in (tmp_path / "errors").read_text(), "it is missed", 120.0
                )
            finally:
                own_objects.start()
            process.wait(120)
        assert process.returncode == 0, (tmp_path / "errors").read_text()
    subprocess.run(command(tmp_path, "near"), check=True, timeout=120)
    for far, near in (
        (bucket / "log" / "user_count_1h" / "v1", tmp_path / "log" / "user_count_1h" / "v1"),
        (bucket / "archive" / topic, tmp_path / "archive" / topic),
        (bucket / "dead_letters" / topic, tmp_path / "dead_letters" / topic),
    ):
        key = [
            name
            for name in ("shard", "seq", "_partition", "_offset", "partition", "offset")
            if name in table(near).columns
        ]
        assert table(far).sort(key).equals(table(near).sort(key))
