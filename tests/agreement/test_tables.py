"""A view over a table, computed in steps, is what the same events through a topic give, and what a recount gives."""

import datetime as dt
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import redis

from tests.agreement.test_history import Killed, served
from tests.agreement.test_import import RECORDS, events, split
from tests.support.pipeline import SCHEMA, Bench, Outcome, agreed, expected_log, logged, plan, views_over
from unskew import Entity, Feature, FeatureStore, FeatureView, Sessions, Sliding, Table, agg
from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.errors import LayoutError, RequestError
from unskew.features.keys import OneEntity
from unskew.features.plan import Plan
from unskew.offline.erasing import ArchiveRule, erase
from unskew.pipelines.deployment import owner_of
from unskew.pipelines.history import backfill, inputs, sorting
from unskew.pipelines.materialize import Materialize, Materialized, materialize
from unskew.pipelines.run import run
from unskew.sinks import durable
from unskew.sinks.lease import Lease
from unskew.sinks.objects import ObjectPath
from unskew.sinks.tables.reading import answer_of_table


def over(path: Any, **changes: Any) -> Plan:
    """The views of a topic over a table, and one over the sessions of its rows."""
    table = Table("purchases", path=path, **{"schema": SCHEMA, "event_time": "at", "arrival": "arrived", **changes})
    visits = FeatureView(
        "visits",
        entity=Entity("user", key="user"),
        stream=Sessions("visit", stream=table, gap="30s"),
        features=[Feature("length", agg.mean("length_s"), Sliding("1h")), Feature("n", agg.count(), Sliding("1h"))],
    )
    return compile_definitions(*views_over(table), visits)


def computed(outcome: Outcome, bench: Bench, until_us: int, *views: str, **changes: Any) -> list[Materialized]:
    folders = outcome.deployment
    chosen = [outcome.plan.views[view] for view in views or outcome.plan.views]
    options = {"plan": outcome.plan, "views": chosen, "until_us": until_us, **changes}
    job = Materialize(
        **options,
        log=folders.log,
        archive=folders.archive,
        state=folders.state,
        owner=owner_of("a test", folders.state),
        place="here",
        redis_url=bench.redis_url,
        prefix=folders.prefix,
    )
    return materialize(job, threading.Event())


def rows() -> pl.DataFrame:
    """All events, those of one arrival in the order in which a stream applies them."""
    return events(RECORDS).sort("arrived", "p", "o")


def written(outcome: Outcome, view: str) -> pl.DataFrame:
    return outcome.log(view).drop("cause", "partition", "offset", "shard", "seq").sort("available_at", *KEYS[view])


KEYS = {"by_user": ["user"], "by_item": ["item"], "visits": ["user"]}
STEPS = [split(60), split(110), split(111), split(240)]


@pytest.mark.long
def test_a_table_in_steps_is_as_its_events_through_a_topic(bench: Bench, tmp_path: Path) -> None:
    stream = Outcome(plan(bench.produce(RECORDS)), bench.deployment())
    run(stream.plan, stream.deployment, stop=threading.Event())
    end_us = max(one.stamp_ms for one in RECORDS) * 1000
    folder = tmp_path / "table"
    folder.mkdir()
    table = Outcome(over(str(folder)), bench.deployment())

    for number, until_us in enumerate([RECORDS[at].stamp_ms * 1000 for at in STEPS] + [end_us]):
        # A warehouse adds files; rows from the instant on may be there or not.
        there = rows().filter(pl.col("arrived").dt.epoch("us") < until_us + 5_000_000 * (number % 2))
        for old in folder.iterdir():
            old.unlink()
        there[: there.height // 2].write_parquet(folder / "a.parquet")
        there[there.height // 2 :].write_parquet(folder / "b.parquet")
        first = computed(table, bench, until_us, "by_item")
        second = computed(table, bench, until_us)
        assert {one.view: one.log_rows for one in second}["by_item@1"] == 0
        assert [one.taken.rows for one in second] == [0, 0, 0]
        assert first[0].until_us == until_us

    for view in ("by_user", "by_item"):
        # The topic's views of users end where each partition ends.
        until = pl.col("available_at").dt.epoch("us") < min(us for us in stream.complete_to(view).values() if us) + 1
        assert written(table, view).filter(until).equals(written(stream, view).filter(until))
    for view in table.plan.views:
        raw = rows().with_columns(_partition=pl.lit(0), _offset=pl.int_range(pl.len()), _event_time=pl.col("at"))
        raw = raw.filter(pl.col("arrived").dt.epoch("us") < end_us).rename({"arrived": "_arrival"})
        keys = raw.select(KEYS[view]).unique().rows()
        counted = expected_log(table.plan.views[view], raw, dict.fromkeys(keys, end_us - 1))
        mine = logged(table.plan.views[view], table.log(view))
        assert [row[:2] + row[3:] for row in mine] == [row[:2] + row[3:] for row in counted]
        assert set(table.complete_to(view).values()) == {end_us - 1}
    at_once = Outcome(table.plan, bench.deployment())
    computed(at_once, bench, end_us)
    assert served(bench, at_once) == served(bench, table) != {}
    for view in table.plan.views:
        assert at_once.log(view).drop("seq").equals(table.log(view).drop("seq"))
    agreed(table.plan, table.deployment, samples=200)


def test_the_same_instant_again_changes_nothing_and_readers_know_it(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    rows().write_parquet(path)
    table = Outcome(over(str(path)), bench.deployment())
    until_us = RECORDS[split(200)].stamp_ms * 1000
    computed(table, bench, until_us, "by_item")
    values, files = served(bench, table), content(table)

    again = computed(table, bench, until_us, "by_item")

    assert re.search(r"by_item@1: seam check: each of the \d+ rows that were taken of its table so far", again[0].seam)
    assert "is there" not in again[0].seam
    assert (again[0].taken.rows, again[0].log_rows) == (0, 0)
    assert served(bench, table) == values != {}
    assert content(table) == files
    store = FeatureStore(redis_url=bench.redis_url, prefix=table.deployment.prefix)
    read = store.get_online_features(["by_item:count_1m", "by_item:sum_1m"], [{"item": 1}])
    label = [{"item": 1, "event_timestamp": dt.datetime.fromtimestamp(until_us / 1e6, dt.UTC)}]
    joined, alone = (
        FeatureStore(plan, log=table.deployment.log).get_historical_features(
            label, ["by_item:count_1m", "by_item:sum_1m"]
        )
        for plan in (table.plan, None)
    )
    assert alone.to_df().equals(joined.to_df())
    assert {name: read.to_dict()[name] for name in ("count_1m", "sum_1m")} == {
        name: joined.to_df()[name].to_list() for name in ("count_1m", "sum_1m")
    }
    (about,) = read.metadata["by_item"].iter_rows(named=True)
    assert about["as_of"].timestamp() * 1e6 == until_us - 1
    assert not about["provisional"]
    with pytest.raises(RequestError, match=r"is materialized up to .*, and no past row ever changes"):
        computed(table, bench, until_us - 1, "by_item")
    with pytest.raises(RequestError, match="is in the future"):
        computed(table, bench, 4_000_000_000_000_000)


def test_a_table_may_be_a_frame_of_polars(bench: Bench, tmp_path: Path) -> None:
    """The same rows give the same values from a file, a frame, and several frames."""
    path = tmp_path / "purchases.parquet"
    rows().write_parquet(path)
    end_us = max(one.stamp_ms for one in RECORDS) * 1000
    outcomes = []
    for given in (str(path), pl.scan_parquet(path), [pl.scan_parquet(path).head(90), pl.scan_parquet(path).slice(90)]):
        outcomes.append(Outcome(over(given), bench.deployment()))
        computed(outcomes[-1], bench, end_us)

    for view in outcomes[0].plan.views:
        for other in outcomes[1:]:
            assert other.log(view).equals(outcomes[0].log(view))


def content(table: Outcome) -> dict[str, bytes]:
    folders = (table.deployment.log, table.deployment.archive)
    return {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*.parquet")}


@pytest.mark.long
def test_a_table_that_is_killed_again_and_again_goes_on_where_it_was(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.parquet"
    rows().write_parquet(path)
    instants = [RECORDS[split(at)].stamp_ms * 1000 for at in (120, 250)]
    at_once, killed_often = (Outcome(over(str(path)), bench.deployment()) for _ in range(2))
    monkeypatch.setattr(sorting, "RUN_ROWS", 20)
    monkeypatch.setattr(inputs, "BATCH_ROWS", 9)
    monkeypatch.setattr(backfill, "CHUNK_ROWS", 100)
    for until_us in instants:
        computed(at_once, bench, until_us, "by_item")
    rename, left, n_kills = durable.rename, [0], 0

    def killed(*arguments: object, **more: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed
        rename(*arguments, **more)

    for until_us in instants:
        for step in range(1, 400, 4):
            left[0] = step
            monkeypatch.setattr(durable, "rename", killed)
            try:
                computed(killed_often, bench, until_us, "by_item")
            except Killed:
                n_kills += 1
            else:
                break
            finally:
                monkeypatch.setattr(durable, "rename", rename)

    assert n_kills >= 6
    assert killed_often.log("by_item").equals(at_once.log("by_item"))
    assert killed_often.archive().equals(at_once.archive())
    assert served(bench, killed_often) == served(bench, at_once)


CHANGES = {
    "a row that came late": lambda rows: pl.concat([rows, rows[:1]]),
    "a row that is gone": lambda rows: rows[1:],
    "a value that is another": lambda rows: rows.with_columns(
        gift=pl.when(pl.int_range(pl.len()) == 3).then(~pl.col("gift")).otherwise("gift")
    ),
}


def test_a_table_whose_past_has_changed_is_refused(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    rows().write_parquet(path)
    table = Outcome(over(str(path)), bench.deployment())
    first_us, second_us = (RECORDS[split(at)].stamp_ms * 1000 for at in (120, 250))
    computed(table, bench, first_us, "by_item")
    before = content(table), served(bench, table)
    for title, change in CHANGES.items():
        change(rows()).write_parquet(path)
        with pytest.raises(LayoutError, match=r"2017-03-26: \d+ rows were taken, and \d+ are there now.*--again"):
            computed(table, bench, second_us, "by_item")
        assert (content(table), served(bench, table)) == before, title

    rows().write_parquet(path)
    later = Outcome(over(str(path), arrival=None, delay="1h"), table.deployment)
    with pytest.raises(LayoutError, match=r"was taken with arrival arrived, and now has delay 1h"):
        computed(later, bench, second_us, "by_item", plan=table.plan, views=[later.plan.views["by_user"]])

    computed(table, bench, second_us, "by_item", again=True)

    anew = Outcome(table.plan, bench.deployment())
    computed(anew, bench, second_us, "by_item")
    assert table.log("by_item").equals(anew.log("by_item"))
    assert served(bench, table) == served(bench, anew)


def test_two_processes_do_not_compute_one_table(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    rows().write_parquet(path)
    table = Outcome(over(str(path)), bench.deployment())
    folders = table.deployment
    (folders.state / "batch").mkdir(parents=True)
    other = Lease(folders.state / "batch", "--state", owner_of("another", folders.state), frozenset(["by_item@1"]))

    with pytest.raises(LayoutError, match="another"):
        computed(table, bench, RECORDS[-1].stamp_ms * 1000, "by_item")

    other.release()
    assert computed(table, bench, RECORDS[-1].stamp_ms * 1000, "by_item")[0].values > 0


def test_a_pipeline_and_a_table_share_definitions_folders_and_redis(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    rows().filter(~pl.col("amount").is_nan().fill_null(value=False)).write_csv(path)
    topic = bench.produce(RECORDS)
    of_topic = plan(topic)
    of_table = over(str(path), delay="0s", arrival=None)
    renamed = replace(of_table.streams["purchases"], name="rows", topic="rows")
    batch = replace(of_table.views["by_item"], stream=renamed)
    both = Plan(
        streams={**of_topic.streams, "rows": renamed}, views={"by_user": of_topic.views["by_user"], "by_item": batch}
    )
    outcome = Outcome(both, bench.deployment())

    run(both, outcome.deployment, stop=threading.Event())
    assert not (outcome.deployment.log / "by_item").exists()
    computed(outcome, bench, max(one.at for one in RECORDS), "by_item")
    run(both, outcome.deployment, stop=threading.Event())

    assert any(":by_item@1:" in key for key in served(bench, outcome))
    assert any(":by_user@1:" in key for key in served(bench, outcome))
    with pytest.raises(RequestError, match="by_user@1: over a topic, so unskew run computes it"):
        computed(outcome, bench, 1_000_000, "by_user")


DEFINITION = """
from unskew import Entity, Feature, FeatureView, Sliding, Table, agg

line = {"type": "record", "name": "L", "fields": [
    {"name": "user", "type": "string"},
    {"name": "amount", "type": "double"},
    {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
]}
lines = Table("lines", path="lines.parquet", schema=line, event_time="at", delay="10min")
spend = FeatureView("spend", entity=Entity("user", key="user"), stream=lines, features=[
    Feature("n_1h", agg.count(), Sliding("1h")), Feature("s_1d", agg.sum("amount"), Sliding("1d", hop="1h")),
])
"""


@pytest.mark.long
def test_processes_that_are_killed_at_any_moment_lose_and_repeat_nothing(bench: Bench, tmp_path: Path) -> None:
    n_rows = 30_000
    at = pl.int_range(n_rows, eager=True) * 7_000_000 + 1_700_000_000_000_000
    lines = pl.DataFrame(
        {"user": pl.Series([f"u{n * 31 % 997}" for n in range(n_rows)]), "at": at.cast(pl.Datetime("us", "UTC"))}
    )
    lines.with_columns(amount=pl.int_range(pl.len()) / 7).write_parquet(tmp_path / "lines.parquet")
    (tmp_path / "definitions.py").write_text(DEFINITION)
    until = "2023-11-16T12:00:00Z"

    def process(folder: str) -> "subprocess.Popen[bytes]":
        options = {name: str(tmp_path / folder / name) for name in ("log", "archive", "state")}
        return subprocess.Popen(
            [sys.executable, "-m", "unskew", "materialize", "--apply", "--until", until]
            + ["--definitions", str(tmp_path / "definitions.py"), "--redis-url", bench.redis_url, "--prefix", folder]
            + [word for name, path in options.items() for word in (f"--{name}", path)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    n_killed = 0
    begun = time.monotonic()
    whole = process("whole")
    assert whole.wait(120) == 0
    length_s = time.monotonic() - begun
    for part in (0.6, 0.85):
        killed = process("killed")
        try:
            killed.wait(part * length_s)
        except subprocess.TimeoutExpired:
            killed.kill()
            n_killed += 1
        killed.wait()
    last = process("killed")
    assert last.wait(120) == 0

    assert n_killed > 0
    for table, columns in (("log/spend/v1", ["seq"]), ("archive/lines", ["_offset"])):
        both = [
            pl.read_parquet(tmp_path / folder / table / "day=*" / "*.parquet", hive_partitioning=False).sort(columns)
            for folder in ("whole", "killed")
        ]
        assert both[0].drop("written_at", strict=False).equals(both[1].drop("written_at", strict=False))
    client = redis.Redis.from_url(bench.redis_url, decode_responses=True)
    values = [
        {key.removeprefix(f"{prefix}:spend"): client.hgetall(key) for key in client.scan_iter(f"{prefix}:spend@1:*")}
        for prefix in ("whole", "killed")
    ]
    assert values[0] == values[1] != {}


@pytest.mark.long
def test_log_and_archive_may_lie_in_an_object_store(bench: Bench, bucket: ObjectPath, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    rows().write_parquet(path)
    there = Outcome(over(str(path)), bench.deployment(log=bucket / "log", archive=bucket / "archive"))
    here = Outcome(there.plan, bench.deployment())
    instants = [RECORDS[split(at)].stamp_ms * 1000 for at in (120, 250)]
    for until_us in (*instants, instants[-1]):
        for outcome in (here, there):
            computed(outcome, bench, until_us, "by_item")

    def content_of(root: Path) -> pl.DataFrame:
        return answer_of_table(root, lambda paths: pl.scan_parquet(list(paths), hive_partitioning=False).collect())

    for folder in ("log/by_item/v1", "archive/purchases"):
        both = [
            content_of(root / folder).drop("written_at", strict=False) for root in (here.deployment.log.parent, bucket)
        ]
        assert both[0].sort(both[0].columns[-1]).equals(both[1].sort(both[0].columns[-1]))
    assert served(bench, there) == served(bench, here) != {}
    computed(there, bench, instants[0], "by_item", again=True)
    assert there.deployment.log == bucket / "log"


def test_a_table_may_keep_or_lose_an_entity_that_was_erased_and_no_other(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    rows().write_parquet(path)
    table = Outcome(over(str(path)), bench.deployment())
    first_us, second_us = (RECORDS[split(at)].stamp_ms * 1000 for at in (120, 250))
    computed(table, bench, first_us, "by_item")
    one = OneEntity.of(table.plan.views["by_user"].entity, ["user 1%"])
    rule = ArchiveRule(one, frozenset(["item", "amount", "gift"]))
    found = erase("archive", table.deployment.archive / "purchases", rule, counts=False, still_ours=lambda: None)
    assert found.n_found > 0

    rows().filter(~pl.col("user").is_in(["user 1%", "user 2%"])).write_parquet(path)
    with pytest.raises(LayoutError, match="are not those that were taken"):
        computed(table, bench, second_us, "by_item")
    rows().write_parquet(path)
    assert computed(table, bench, first_us + 1, "by_item")[0].taken.rows >= 0
    rows().filter(pl.col("user") != "user 1%").write_parquet(path)
    assert computed(table, bench, second_us, "by_item")[0].taken.rows > 0
