"""Old days are removed, and every label after the cut gets what it got before."""

import datetime as dt
import re
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from click.testing import CliRunner, Result

from tests.agreement.test_erase import KILLED
from tests.support.pipeline import START, Bench, Outcome, Record, agreed, history
from unskew import FeatureStore
from unskew.cli import main
from unskew.features.definitions.load import load
from unskew.features.errors import LayoutError, RequestError
from unskew.features.time import DAY_US, format_instant
from unskew.offline.compaction import Limits, archive_tables, compact, log_tables
from unskew.offline.log_reader import ViewLog
from unskew.pipelines.deployment import owner_of
from unskew.pipelines.history.ahead import Ahead, backfill_ahead
from unskew.pipelines.run import run
from unskew.sinks.tables.layout import published_files, read_coverage, view_root

DEFINITIONS = """
from tests.support.pipeline import SCHEMA
from unskew import Entity, Feature, FeatureView, Sliding, Stream, Tumbling, agg

user, item = Entity("user", key="user"), Entity("item", key="item")
stream = Stream("purchases", topic={topic!r}, schema=SCHEMA, event_time="at", partitioned_by="user", owner="tests")
features = [
    Feature("n", agg.count(), Sliding("12h", hop="10min")),
    Feature("total", agg.sum("amount"), Tumbling("1d")),
    Feature("last", agg.last("amount"), Sliding("1d", hop="1h")),
]
by_user = FeatureView("by_user", entity=user, stream=stream, owner="tests", features=features)
by_item = FeatureView("by_item", entity=item, stream=stream, owner="tests", features=features)
"""
LATER = """
later = FeatureView("later", entity=item, stream=stream, owner="tests", features=features)
"""


def slowly(records: list[Record], factor: int) -> list[Record]:
    """The same records over several days."""
    first_ms = START // 1000
    return [
        replace(
            one,
            stamp_ms=first_ms + factor * (one.stamp_ms - first_ms),
            at=START + factor * (one.at - START),
        )
        for one in records
    ]


RECORDS = slowly(history(260, seed=31, n_partitions=2, n_users=6), 140)


@dataclass
class Kept:
    """A pipeline that has read several days, its definitions, and labels with what they get."""

    outcome: Outcome
    definitions: Path

    def folders(self) -> list[str]:
        where = self.outcome.deployment
        return [f"--definitions={self.definitions}", f"--log={where.log}", f"--archive={where.archive}"]

    def retain(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, ["retain", *self.folders(), *arguments])

    def ran(self) -> None:
        run(self.outcome.plan, self.outcome.deployment, stop=threading.Event())

    def joined(self, first_us: int, last_us: int, view: str) -> pl.DataFrame:
        """What labels get, every hour and at every midnight, for all entities."""
        store = FeatureStore(self.definitions, log=self.outcome.deployment.log)
        key, values = ("user", [f"user {n}%" for n in range(6)]) if view == "by_user" else ("item", list(range(5)))
        instants = [dt.datetime.fromtimestamp(t / 1e6, dt.UTC) for t in range(first_us, last_us, 3_600_000_000)]
        labels = pl.DataFrame({key: values}).join(pl.DataFrame({"event_timestamp": instants}), how="cross")
        features = [f"{view}:{name}" for name in ("n", "total", "last")]
        return store.get_historical_features(labels, features, outside="null", with_status=True).to_polars()

    def files(self) -> list[str]:
        roots = (self.outcome.deployment.log, self.outcome.deployment.archive)
        return sorted(str(path.relative_to(root)) for root in roots for path in root.rglob("day=*/*.parquet"))


@pytest.fixture
def kept(bench: Bench) -> Kept:
    topic = bench.produce(RECORDS[:200], n_partitions=2)
    definitions = bench.root / "definitions.py"
    definitions.write_text(DEFINITIONS.format(topic=topic))
    made = Kept(Outcome(load(definitions), bench.deployment(n_hashes=2)), definitions)
    made.ran()
    where = made.outcome.deployment
    for table in (*log_tables(where.log), *archive_tables(where.archive)):
        compact(table, Limits(min_files=2), now_s=0.0)
    return made


def days_of(kept: Kept) -> tuple[int, int, int]:
    """The first instant, the cut of two days, and the last instant, in microseconds."""
    coverage = read_coverage(view_root(kept.outcome.deployment.log, "by_item", 1))
    assert coverage is not None
    assert coverage.complete_to_us is not None
    return START, (coverage.complete_to_us // DAY_US - 2) * DAY_US, coverage.complete_to_us


def test_labels_after_the_cut_get_what_they_got_and_earlier_ones_are_refused(bench: Bench, kept: Kept) -> None:
    first_us, cut_us, last_us = days_of(kept)
    assert cut_us - first_us > 2 * DAY_US
    before = {view: kept.joined(cut_us, last_us, view) for view in ("by_user", "by_item")}
    assert all(frame["n"].sum() for frame in before.values())
    files = kept.files()

    looked = kept.retain("--keep-log=2d", "--keep-archive=3d", "--dry-run")
    assert looked.exit_code == 0, looked.output
    assert kept.files() == files
    slow = ViewLog(kept.outcome.deployment.log, kept.outcome.plan.views["by_item"].published)
    done = kept.retain("--keep-log=2d", "--keep-archive=3d", "--grace=0s")

    assert done.exit_code == 0, done.output
    assert len(kept.files()) < len(files)
    stats = CliRunner().invoke(main, ["log", "stats", "by_item", f"--log={kept.outcome.deployment.log}"]).output
    assert re.search(rf"kept from\s+{re.escape(format_instant(cut_us))}, by unskew retain", stats), stats
    with pytest.raises(LayoutError, match="old days were removed while the log was read"):
        list(slow.newest_first(["item", "n"]))
    for view, expected in before.items():
        assert kept.joined(cut_us, last_us, view).equals(expected)
        early = kept.joined(first_us, cut_us, view)
        assert set(early["n__status"]) == {"before_log"}
        assert early["n"].null_count() == early.height
    labels = pl.DataFrame({"item": [1], "event_timestamp": [dt.datetime.fromtimestamp(cut_us / 1e6 - 1, dt.UTC)]})
    store = FeatureStore(kept.definitions, log=kept.outcome.deployment.log)
    with pytest.raises(RequestError, match="earlier than what the log of by_item@1 still holds"):
        store.get_historical_features(labels, ["by_item:n"])

    kept.ran()
    topic = kept.outcome.plan.views["by_user"].stream.topic
    bench.append(topic, RECORDS[200:])
    kept.definitions.write_text(kept.definitions.read_text() + LATER)
    kept.outcome = replace(kept.outcome, plan=load(kept.definitions))
    kept.ran()
    for view, expected in before.items():
        assert kept.joined(cut_us, last_us, view).equals(expected)
    where = kept.outcome.deployment
    agreed(kept.outcome.plan, where, samples=400)
    later = read_coverage(view_root(where.log, "later", 1))
    assert later is not None
    assert later.since_us is not None
    assert later.since_us % DAY_US == 0
    assert cut_us - DAY_US <= later.since_us <= last_us, "the archive holds three days"
    for table in (*log_tables(where.log), *archive_tables(where.archive)):
        assert compact(table, Limits(min_files=2, grace_s=0.0), now_s=2e9).faults == ()
    _, _, last_us = days_of(kept)
    again_us = (last_us // DAY_US - 1) * DAY_US
    after = {view: kept.joined(again_us, last_us, view) for view in before}
    assert kept.retain("--keep-log=1d", "--grace=0s").exit_code == 0
    for view, expected in after.items():
        assert kept.joined(again_us, last_us, view).equals(expected)
        assert set(kept.joined(cut_us, again_us, view)["n__status"]) == {"before_log"}


@pytest.mark.long
def test_a_retention_that_is_killed_is_finished_by_the_same_command(kept: Kept, tmp_path: Path) -> None:
    _, cut_us, last_us = days_of(kept)
    before = {view: kept.joined(cut_us, last_us, view) for view in ("by_user", "by_item")}
    root = kept.outcome.deployment.log.parent
    arguments = ["--keep-log=2d", "--keep-archive=3d", "--grace=0s"]
    saved = tmp_path / "saved"
    shutil.copytree(root, saved)
    assert kept.retain(*arguments).exit_code == 0
    at_once = kept.files()
    shutil.rmtree(root)
    shutil.copytree(saved, root)
    for step in (5, 14):
        command = [sys.executable, "-c", KILLED, str(step), "retain", *kept.folders(), *arguments]
        killed = subprocess.run(command, capture_output=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        for view, expected in before.items():
            assert kept.joined(cut_us, last_us, view).equals(expected), "readers are right in between"

    assert kept.retain(*arguments).exit_code == 0
    assert kept.files() == at_once
    for view, expected in before.items():
        assert kept.joined(cut_us, last_us, view).equals(expected)


def refused(kept: Kept, *arguments: str) -> str:
    result: Any = kept.retain(*arguments)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    return str(result.output)


def test_days_that_views_need_are_not_removed(kept: Kept) -> None:
    files = kept.files()
    assert "the longest window of by_user@1 needs the last" in refused(kept, "--keep-archive=1d")
    assert "there is nothing to do" in refused(kept)
    assert "'soon' is not a duration" in refused(kept, "--keep-log=soon")
    text = kept.definitions.read_text()
    kept.definitions.write_text(text.replace('Tumbling("1d")', "Lifetime()").replace("Tumbling,", "Lifetime,"))
    assert "counts a lifetime or a running session" in refused(kept, "--keep-archive=30d")
    kept.definitions.write_text(text + LATER)
    where = kept.outcome.deployment
    second_us = int(kept.outcome.archive().filter(_partition=1).sort("_offset")["_arrival"].to_physical()[1])
    later = Ahead(
        views=[load(kept.definitions).views["later"]],
        log=where.log,
        archive=where.archive,
        state=where.state,
        owner=owner_of("a test", where.state),
        until_us=second_us,
    )
    backfill_ahead(later, threading.Event())
    unread = refused(kept, "--keep-archive=3d", f"--state={where.state}")
    assert "later@1: its backfill has read partition " in unread
    purged = ["purge", "later@1", "--backfill", f"--state={where.state}", f"--log={where.log}"]
    assert CliRunner().invoke(main, purged).exit_code == 0
    # One process of two has come to its end, and the other one has not begun.
    backfill_ahead(replace(later, until_us=None, cluster=("a:1", "b:1")), threading.Event())
    waits = refused(kept, "--keep-archive=3d", f"--state={where.state}")
    assert "later@1: the backfill of its shard h" in waits
    assert "has not begun" in waits
    assert CliRunner().invoke(main, purged).exit_code == 0
    assert kept.files() == files
    assert kept.retain("--keep-archive=1d", "--force").exit_code == 0
    archived = published_files(kept.outcome.deployment.archive / kept.outcome.plan.views["by_user"].stream.topic)
    assert {file.writer for file in archived} == {"p0", "p1"}
    assert len(kept.files()) < len(files)


def test_a_record_that_is_no_event_where_a_backfill_ends_keeps_no_days_and_is_no_hole(bench: Bench) -> None:
    first, rest = RECORDS[:40], [replace(one, stamp_ms=one.stamp_ms + 9 * DAY_US // 1000) for one in RECORDS[40:60]]
    # The offset after the last event that is archived, and before the first that comes then.
    no_event = replace(first[-1], raw=b"\0\0\0\0\7garbage", partition=0)
    first, rest = ([replace(one, partition=0) for one in ones] for ones in (first, rest))
    topic = bench.produce([*first, no_event], n_partitions=1)
    definitions = bench.root / "definitions.py"
    definitions.write_text(DEFINITIONS.format(topic=topic))
    kept = Kept(Outcome(load(definitions), bench.deployment()), definitions)
    kept.ran()
    definitions.write_text(definitions.read_text() + LATER)
    both, where = load(definitions), kept.outcome.deployment
    owner = owner_of("a test", where.state)
    views = [both.views["later"]]
    backfill_ahead(
        Ahead(views=views, log=where.log, archive=where.archive, state=where.state, owner=owner), threading.Event()
    )
    bench.append(topic, rest)
    kept.ran()

    removed = kept.retain("--keep-archive=3d", f"--state={where.state}")

    assert removed.exit_code == 0, removed.output
    archived = published_files(where.archive / topic)
    assert archived[0].first == len(first) + 1
    kept.outcome, always = Outcome(both, where), Outcome(both, bench.deployment())
    kept.ran()
    run(both, always.deployment, stop=threading.Event())
    assert kept.outcome.log("later").drop("cause").equals(always.log("later").drop("cause"))
