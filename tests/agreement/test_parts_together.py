"""Commands that keep the data in order meet views over tables, versions, imports and metadata for other engines."""

import datetime as dt
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import redis
from click.testing import CliRunner, Result

from tests.agreement.test_import import events
from tests.agreement.test_retain import RECORDS
from tests.support.pipeline import Bench
from unskew import FeatureStore
from unskew.cli import main
from unskew.features.definitions.load import load
from unskew.features.errors import LayoutError
from unskew.features.keys import OneEntity
from unskew.features.view import ViewEntity
from unskew.monitoring.audit import audit
from unskew.offline.erasing import LetterRule
from unskew.pipelines.deployment import Deployment
from unskew.sinks.tables.imported import Imported, InputFile, Running, write_imported
from unskew.sinks.tables.layout import published_files, read_coverage, view_root

DEFINITIONS = """
from tests.support.pipeline import SCHEMA
from unskew import Entity, Feature, FeatureView, Sliding, Stream, Table, Tumbling, agg

user, item, both = Entity("user", key="user"), Entity("item", key="item"), Entity("both", key=["item", "user"])
table = Table("returns", path={path!r}, schema=SCHEMA, event_time="at", arrival="arrived", owner="tests")
features = [
    Feature("n", agg.count(), Sliding("12h", hop="10min")),
    Feature("total", agg.sum("amount"), Tumbling("1d")),
    Feature("latest", agg.last("at"), Sliding("1d", hop="1h")),
]
by_item = FeatureView("by_item", entity=item, stream=table, owner="tests", features=features)
by_user = FeatureView("by_user", entity=user, stream=table, owner="tests", features=features)
by_both = FeatureView("by_both", entity=both, stream=table, owner="tests", features=features)
"""
NEWER = """
by_item = FeatureView("by_item", entity=item, stream=table, owner="tests", features=features[:2], version=2)
"""
GONE = 3


@dataclass
class Tables:
    """Views over a table, without any pipeline."""

    where: Deployment
    path: Path
    definitions: Path
    redis_url: str

    def define(self, *without: str, more: str = "") -> None:
        lines = DEFINITIONS.format(path=str(self.path)).splitlines(keepends=True)
        kept = [line for line in lines if line.partition(" =")[0] not in without]
        self.definitions.write_text("".join(kept) + more)

    def call(self, command: str, *arguments: str) -> Result:
        folders = {"log": self.where.log, "archive": self.where.archive, "state": self.where.state}
        options = [f"--{name}={folder}" for name, folder in folders.items()]
        if command == "materialize":
            options.append("--apply")
        if command != "retain":
            options.append(f"--redis-url={self.redis_url}")
        result = CliRunner().invoke(main, [command, *arguments, f"--definitions={self.definitions}", *options])
        assert "Traceback" not in result.output
        return result

    def materialized(self, n_records: int, *views: str) -> Result:
        until = pl.Series([RECORDS[n_records].stamp_ms]).cast(pl.Datetime("ms")).dt.strftime("%FT%T%.3fZ").item()
        return self.call("materialize", *views, f"--until={until}")

    def log(self, view: str) -> pl.DataFrame:
        files = published_files(self.where.log / view / "v1")
        return pl.concat([pl.read_parquet(file.path, hive_partitioning=False, glob=False) for file in files]).drop(
            "written_at"
        )

    def files(self) -> dict[str, bytes]:
        roots = (self.where.log, self.where.archive, self.where.state)
        found = {str(path): path for root in roots for path in root.rglob("*")}
        return {name: path.read_bytes() for name, path in found.items() if path.is_file() and "_leases" not in name}


@pytest.fixture
def oddly(bench: Bench) -> Bench:
    """A folder whose name a pattern of paths would match otherwise."""
    bench.root = bench.root / "folder [1]*"
    bench.root.mkdir(mode=0o700)
    return bench


@pytest.fixture
def tables(bench: Bench) -> Tables:
    where = bench.deployment()
    made = Tables(where, bench.root / "returns.parquet", bench.root / "definitions.py", bench.redis_url)
    events(RECORDS).sort("arrived", "p", "o").write_parquet(made.path)
    made.define()
    return made


@pytest.mark.long
def test_an_entity_is_erased_from_views_over_tables_which_then_go_on(tables: Tables) -> None:
    assert tables.materialized(150).exit_code == 0
    assert CliRunner().invoke(main, ["publish", f"--log={tables.where.log}"]).exit_code == 0
    sorting = tables.where.state / "batch" / "sorting" / "returns"
    sorting.mkdir(parents=True)
    (sorting / "000000.parquet").write_bytes(b"left by a process that was killed")
    before = tables.log("by_user")

    done = tables.call("erase", "item", str(GONE), f"--dead-letters={tables.where.dead_letters}")

    assert done.exit_code == 0, done.output
    assert "nothing is left" in done.output
    assert "table returns: remove the entity from the table itself too" in done.output
    assert not sorting.exists()
    assert tables.log("by_user").equals(before)
    for view in ("by_item", "by_both"):
        rows = tables.log(view)
        assert rows.height
        assert not (rows["item"] == GONE).any()
        delta = pl.read_delta(str(tables.where.log / view / "v1"))
        assert delta.height == rows.height, "metadata for other engines state the files as they are now"
    client = redis.Redis.from_url(tables.redis_url, decode_responses=True)
    assert not [key for key in client.scan_iter("*by_item@1:*") if key.endswith("{3}")]

    # The table still has the entity's rows, and later it has not; what had arrived does not come back.
    assert tables.materialized(200).exit_code == 0
    counted = tables.log("by_item").filter(pl.col("item") == GONE)["n"]
    new = pl.col("arrived").dt.epoch("ms").is_between(RECORDS[150].stamp_ms, RECORDS[200].stamp_ms, closed="left")
    n_new = events(RECORDS).filter(new & (pl.col("item") == GONE)).height
    assert counted.max() == n_new > 1, "rows that come later begin the entity anew"
    assert tables.call("erase", "item", str(GONE), f"--dead-letters={tables.where.dead_letters}").exit_code == 0
    without = events(RECORDS).sort("arrived", "p", "o").filter(pl.col("item") != GONE)
    without.write_parquet(tables.path)
    assert tables.materialized(230).exit_code == 0
    changed: dict[str, Any] = {
        "a row of somebody else is gone": without[1:],
        "a value of somebody else is another": without.with_columns(
            gift=pl.when(pl.int_range(pl.len()) == 40).then(~pl.col("gift")).otherwise("gift")
        ),
    }
    for title, rows in changed.items():
        rows.write_parquet(tables.path)
        refused = tables.materialized(235)
        assert refused.exit_code == 1, title
        assert "rows were taken, and" in refused.output, title


def test_an_erasure_that_cannot_reach_everything_is_refused_before_anything_changes(tables: Tables) -> None:
    assert tables.materialized(150).exit_code == 0
    tables.define("by_both")
    letters = f"--dead-letters={tables.where.dead_letters}"
    files = tables.files()

    refused = tables.call("erase", "item", str(GONE), letters)
    assert "by_both@1: the state of a view that is not in the definitions" in refused.output
    tables.define()
    root = tables.where.archive / "returns"
    running = Running(files=(InputFile(name="old.csv", n_bytes=1, sha256="0"),), how={}, cuts={})
    write_imported(root, Imported(running=running), lambda: None)
    unfinished = tables.call("erase", "item", str(GONE), letters)
    assert "has not ended, and the rest of old.csv may hold the entity" in unfinished.output
    (root / "_coverage" / "_imported.json").unlink()

    assert {refused.exit_code, unfinished.exit_code} == {1}
    assert tables.files() == files
    # A version that a higher one replaces never goes on, so its state is removed.
    tables.define("by_item", more=NEWER)
    refused = tables.materialized(150, "by_item@2")
    assert "by_item@1 serves, and is removed" in refused.output
    where = [f"--log={tables.where.log}", f"--redis-url={tables.redis_url}", "--yes", "--break=by_item"]
    assert CliRunner().invoke(main, ["apply", str(tables.definitions), *where]).exit_code == 0
    assert tables.materialized(150, "by_item@2").exit_code == 0
    done = tables.call("erase", "item", str(GONE), letters)
    assert done.exit_code == 0, done.output
    assert not (tables.where.state / "batch" / "backfill" / "by_item@1").exists()
    assert not (tables.log("by_item")["item"] == GONE).any()
    # Logs say what their entities are, also where no view of the definitions has them.
    tables.define("by_item", "by_both")
    for view in ("by_item@2", "by_both@1"):
        shutil.rmtree(tables.where.state / "batch" / "backfill" / view)
    done = tables.call("erase", "item", "1", letters)
    assert done.exit_code == 0, done.output
    assert not (tables.log("by_item")["item"] == 1).any()
    assert not (tables.log("by_both")["item"] == 1).any()


def test_days_that_a_view_over_a_table_has_not_read_stay(tables: Tables) -> None:
    assert tables.materialized(3, "by_user").exit_code == 0
    assert tables.materialized(230, "by_item").exit_code == 0

    refused = tables.call("retain", "--keep-archive=26h")

    assert refused.exit_code == 1
    assert "by_user@1: it has read table returns up to row" in refused.output
    assert tables.materialized(230, "by_user", "by_both").exit_code == 0
    assert CliRunner().invoke(main, ["publish", f"--log={tables.where.log}"]).exit_code == 0
    n_files = len(published_files(tables.where.archive / "returns"))
    done = tables.call("retain", "--keep-archive=26h", "--keep-log=1h", "--grace=0s")
    assert done.exit_code == 0, done.output
    assert len(published_files(tables.where.archive / "returns")) < n_files
    for view in ("by_item", "by_user", "by_both"):
        delta = pl.read_delta(str(tables.where.log / view / "v1"))
        assert delta.height == tables.log(view).height, "metadata for other engines name no file that was deleted"
    assert tables.materialized(250).exit_code == 0
    # A table that is taken anew brings the removed days back.
    assert tables.materialized(250, "--again").exit_code == 0
    coverage = read_coverage(view_root(tables.where.log, "by_item", 1))
    assert coverage is not None
    assert coverage.since_us == events(RECORDS)["arrived"].dt.epoch("us").min()
    report = audit(load(tables.definitions), tables.where.log, tables.where.archive, samples=200, patience_s=0)
    assert [str(one) for one in report.differences] == []
    # The log alone says what its view is.
    alone = FeatureStore(log=tables.where.log).get_historical_features(
        [{"item": 1, "event_timestamp": dt.datetime(2017, 4, 2, tzinfo=dt.UTC)}], ["by_item:n"]
    )
    assert alone.to_polars()["n"].item() > 0


@pytest.mark.usefixtures("oddly")
def test_a_log_is_compared_with_events_where_both_reach(tables: Tables) -> None:
    assert tables.materialized(230).exit_code == 0
    assert CliRunner().invoke(main, ["publish", f"--log={tables.where.log}"]).exit_code == 0
    store = FeatureStore(tables.definitions, log=tables.where.log, archive=tables.where.archive)
    days = [dt.datetime(2017, 3, 27, tzinfo=dt.UTC), dt.datetime(2017, 4, 2, 6, tzinfo=dt.UTC)]
    labels = [{"item": 1, "event_timestamp": at} for at in days]
    asked: dict[str, Any] = {"features": ["by_item:n"], "source": "both", "outside": "null"}
    before = store.get_historical_features(labels, **asked)
    assert "not compared" not in " ".join(before.warnings)

    assert tables.call("retain", "--keep-log=1h", "--grace=0s").exit_code == 0

    after = store.get_historical_features(labels, **asked)
    assert after.to_polars()["n"].to_list() == [None, before.to_polars()["n"][1]]
    assert "up to 50.0 % of the labels were not compared with events" in " ".join(after.warnings)
    with pytest.raises(LayoutError, match="old days were removed, an entity was erased"):
        store.reproduce(labels, before.manifest)


def test_wrong_folders_are_refused_and_nothing_is_left_behind(tables: Tables, bench: Bench) -> None:
    """An erasure that searched the wrong folder would say that nothing is left."""
    assert tables.materialized(60).exit_code == 0
    log, archive, state = tables.where.log, tables.where.archive, tables.where.state
    files = tables.files()
    other, absent = bench.root / "other", bench.root / "absent"
    other.mkdir(mode=0o700)
    erase = ("erase", "item", str(GONE))
    later = ("materialize", "--until=2017-04-02T10:00:00Z", "--apply")
    refused = {
        "correct --log": [(*erase, f"--log={archive}"), ("retain", "--keep-log=1d", f"--log={archive}")],
        "correct --archive": [(*erase, f"--archive={log}"), ("retain", "--keep-archive=3d", f"--archive={log}")],
        "there is no such folder": [(*erase, f"--log={absent}"), (*erase, f"--archive={absent}")],
        "holds no state": [(*erase, f"--state={other}"), ("retain", "--keep-archive=3d", f"--state={other}")],
        "in Redis belong to": [(*later, f"--state={other}")],
        "there is no saved state": [(*later, f"--state={other}", "--prefix=other")],
        "lacks the rows of p0": [(*later, f"--archive={other}")],
    }
    for said, calls in refused.items():
        for command in calls:
            given = {argument.partition("=")[0] for argument in command}
            defaults = {"--log": log, "--archive": archive, "--state": state}
            rest = [f"{name}={folder}" for name, folder in defaults.items() if name not in given]
            redis_url = [] if command[0] == "retain" else [f"--redis-url={tables.redis_url}"]
            options = [*rest, f"--definitions={tables.definitions}", *redis_url]
            result = CliRunner().invoke(main, [*command, *options])
            assert result.exit_code == 1, command
            assert said in result.output, result.output
            assert "Traceback" not in result.output
    assert tables.files() == files
    # The table's new rows are taken before the log is opened.
    folders = [f"--log={other}", f"--archive={archive}", f"--state={state}", f"--definitions={tables.definitions}"]
    result = CliRunner().invoke(main, [*later, *folders, f"--redis-url={tables.redis_url}"])
    assert result.exit_code == 1
    assert "check --log and --state, or begin again with 'unskew materialize by_item@1 --again'" in result.output
    assert list(other.iterdir()) == []
    assert not absent.exists()
    ages = tables.call("retain", "--keep-log=99999999d")
    assert ages.exit_code == 0, ages.output
    assert "0001-01-01" in ages.output


def test_an_empty_key_is_in_no_letter_that_cannot_be_read() -> None:
    one = OneEntity.of(ViewEntity(name="user", keys=("user",), types=("string",)), [""])
    letters = pl.DataFrame(
        {"key": [b"k", b"k"], "value": [b"plain text", b"\x00\xff"], "reason": ["", "the value is null"]}
    )
    read = {b"plain text": {"user": ""}}
    rule = LetterRule(one, lambda row: read.get(row["value"]))

    assert rule.finds(letters).to_list() == [True, False]
    assert rule.unsearched(letters) == 1


def test_values_of_another_state_are_refused_before_log_and_archive_are_written(tables: Tables) -> None:
    assert tables.materialized(100, "by_item").exit_code == 0
    roots = {name: tables.where.log.with_name(f"other {name}") for name in ("log", "archive", "state")}
    other = replace(tables, where=replace(tables.where, **roots))

    refused = other.materialized(100, "by_item")

    assert refused.exit_code == 1
    assert "the values of by_item@1 in Redis belong to" in refused.output
    assert [path for name in ("log", "archive") for path in roots[name].rglob("*.parquet")] == []
    assert not (roots["log"] / "by_item").exists()
