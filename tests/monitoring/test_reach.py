"""What can be recounted of a view that began later than the archive, and of an archive that lost its first days."""

import datetime as dt
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl
import pytest
import redis

from tests.support.plans import (
    DAY,
    HOUR,
    MINUTE,
    SECOND,
    Wanted,
    WantedOfOthers,
    events,
    lifetime,
    local_day,
    republished,
    session,
    sessions,
    sliding,
    tumbling,
    view,
)
from tests.support.written import write_archive
from unskew.features.evaluate import evaluate
from unskew.features.plan import Plan, ViewPlan
from unskew.features.shard_state import ShardState
from unskew.monitoring.audit import AuditReport, audit
from unskew.monitoring.report import unaudited_lines
from unskew.sinks.redis.writer import RedisWriter
from unskew.sinks.tables.kinds import LogTable
from unskew.sinks.tables.parquet import encode

T0 = 1_490_400_000 * SECOND  # 2017-03-25 00:00 UTC
CLOCK = T0 + 6 * DAY

WINDOWS = view(
    Wanted("hour", "count", sliding(HOUR, 5 * MINUTE)),
    Wanted("days", "sum", sliding(2 * DAY, HOUR), "x"),
    Wanted("quarter", "last", tumbling(15 * MINUTE), "n", "int64"),
    Wanted("today", "count", local_day("Europe/Berlin")),
    Wanted("ever", "count", lifetime()),
    Wanted("visit", "count", session(3 * HOUR, 10 * MINUTE)),
    derived=[WantedOfOthers("share", "hour / ever")],
    name="clicks",
)
VISITS = view(
    Wanted("n", "count", sliding(DAY, HOUR)),
    Wanted("ever", "max", lifetime(), "length_s", "float64"),
    sessions=sessions(HOUR, 10 * MINUTE),
    name="clicks",
)
VISITS = replace(VISITS, sessions=republished(VISITS.sessions, name="visits"))


STEP = 29 * MINUTE


def given(n_partitions: int = 1) -> pl.DataFrame:
    """Events of eight users, each in one partition, two at every instant, some late; in the order of arrivals.

    One user comes on the first day only.
    """
    frames = []
    rows = []
    for i in range(5 * DAY // STEP):
        arrival = T0 + i // 2 * 2 * STEP
        user = 7 if i < 30 and i % 4 == 0 else (i * i + i // 3) % 7
        payload = {"user": f"u{user}", "x": i / 4, "n": i % 6}
        rows.append((arrival, arrival - (i % 5) * 20 * MINUTE, payload))
    for partition in range(n_partitions):
        mine = [row for row in rows if int(str(row[2]["user"])[1:]) % n_partitions == partition]
        frames.append(events(mine, partition=partition))
    return pl.concat(frames).sort("_arrival", "_partition", "_offset")


@dataclass(frozen=True)
class Began:
    """How a view begins: ``skipped``, per partition, events that came before it; ``mark_us``: a clock before all."""

    plan: ViewPlan
    skipped: tuple[int, ...] = (0,)
    mark_us: int | None = None

    def write(self, folder: Path, client: redis.Redis) -> Plan:
        n_partitions = len(self.skipped)
        archived = given(n_partitions)
        is_seen = pl.any_horizontal(
            (pl.col("_partition") == partition) & (pl.col("_offset") >= skipped)
            for partition, skipped in enumerate(self.skipped)
        )
        had = archived.filter(is_seen)
        plan = self.plan
        writer = RedisWriter(client, "unskew", "main")
        for shard in [f"p{p}.0" for p in range(n_partitions)] if plan.partitioned else ["h0"]:
            mine = had.filter(pl.col("_partition") == int(shard[1])) if plan.partitioned else had
            state = ShardState(plan, shard)
            table = LogTable(folder / "log", plan, shard, None, now_us=lambda: 0)
            steps: list[tuple[pl.DataFrame | None, int]] = [] if self.mark_us is None else [(None, self.mark_us)]
            steps += [(mine, int(mine["_arrival"].to_physical().max())), (None, CLOCK)]
            for batch, clock_us in steps:
                updates = state.apply(None if batch is None else evaluate(plan, batch).events, clock_us)
                table.append(updates)
                writer.add(updates)
            table.snapshot()
            table.settle()
        writer.flush(0)
        write_archive(folder / "archive", plan, archived)
        return Plan(streams={}, views={"clicks": plan})


def run(folder: Path, plan: Plan, redis_url: str | None = None, **options: int) -> AuditReport:
    return audit(
        plan, folder / "log", folder / "archive", redis_source=redis_url, patience_s=0, **{"samples": 200, **options}
    )


BEGINNINGS = {
    "with the archive": Began(WINDOWS),
    "sessions, with the archive": Began(VISITS),
    "a mark before the first record": Began(WINDOWS, mark_us=T0 - 3 * HOUR),
    "sessions after a mark": Began(VISITS, mark_us=T0 - 3 * HOUR),
    "later": Began(WINDOWS, (70,)),
    "later, amid an instant": Began(WINDOWS, (71,)),
    "sessions, later": Began(VISITS, (70,)),
    "later, by partition": Began(republished(WINDOWS, partitioned=True), (40, 20)),
    "later, in a second partition by hours": Began(WINDOWS, (40, 20)),
    "a mark between": Began(WINDOWS, (70,), mark_us=T0 + 70 * STEP - MINUTE),
}


# No record says which events of that instant, or of those hours, the view saw.
IN_DOUBT = {"later, amid an instant", "later, by partition", "later, in a second partition by hours"}


@pytest.mark.parametrize("name", BEGINNINGS)
def test_a_view_agrees_with_what_it_saw_whenever_it_began(tmp_path, redis_client, redis_url, name):
    began = BEGINNINGS[name]
    plan = began.write(tmp_path, redis_client)

    report = run(tmp_path, plan, redis_url)

    assert report.differences == []
    (clicks,) = report.views
    assert clicks.samples + clicks.unknown == 200
    assert clicks.non_empty > 80
    assert clicks.entities + clicks.unknown + clicks.provisional >= 7
    assert clicks.rows > 50
    assert bool(clicks.unaudited) == (name in IN_DOUBT)


def rewrite(folder: Path, *planted: pl.Expr) -> None:
    """Change rows of the published log where they lie."""
    for file in folder.glob("log/clicks/v1/day=*/*.parquet"):
        metadata = {key: text for key, text in pl.read_parquet_metadata(file).items() if key.startswith("unskew.")}
        file.write_bytes(encode(pl.read_parquet(file, hive_partitioning=False).with_columns(planted), metadata))


@pytest.mark.parametrize("name", ["later", "later, by partition", "a mark before the first record"])
def test_a_difference_after_the_beginning_is_found_whenever_the_view_began(tmp_path, redis_client, name):
    plan = BEGINNINGS[name].write(tmp_path, redis_client)
    wrong = {"hour", "days", "ever", "visit"}
    is_one = pl.col("user") == "u4"
    rewrite(tmp_path, *(pl.when(is_one).then(pl.col(each) + 1).otherwise(pl.col(each)).alias(each) for each in wrong))

    report = run(tmp_path, plan)

    assert {(one.where, one.feature) for one in report.differences} == {("log", each) for each in wrong}
    assert {example.entity for one in report.differences for example in one.examples} == {("u4",)}
    assert all(one.count > len(one.examples) == 3 for one in report.differences)


def forget(folder: Path, n_days: int) -> None:
    """Remove the first days of the archive, but never the newest file of a writer."""
    first = dt.date(2017, 3, 25)
    newest = {path.name.split("-")[0]: path for path in sorted(folder.glob("archive/stream/day=*/*.parquet"))}
    for path in folder.glob("archive/stream/day=*/*.parquet"):
        day = dt.date.fromisoformat(path.parent.name.removeprefix("day="))
        if day < first + dt.timedelta(days=n_days) and path not in newest.values():
            path.unlink()


FORGOTTEN_US = T0 + 2 * DAY


@pytest.mark.parametrize(
    ("plan", "never"), [(WINDOWS, {"ever", "share"}), (VISITS, {"ever"})], ids=["events", "sessions"]
)
def test_after_the_first_days_were_removed_what_the_rest_holds_whole_is_compared(
    tmp_path, redis_client, redis_url, plan, never
):
    described = Began(plan).write(tmp_path, redis_client)
    forget(tmp_path, 2)

    report = run(tmp_path, described, redis_url)

    assert report.differences == []
    (clicks,) = report.views
    assert clicks.samples > 150
    assert clicks.non_empty > 80
    assert {name for one in clicks.unaudited if one.from_us is None for name in one.features} == never
    left_out = [line for line in unaudited_lines(report) if not line.startswith("left out: ")]
    assert left_out
    assert all("the archive begins at 2017-03-27T00:" in line for line in left_out)


def test_a_difference_is_found_in_what_the_rest_of_the_archive_holds_whole_and_not_elsewhere(tmp_path, redis_client):
    described = Began(WINDOWS).write(tmp_path, redis_client)
    forget(tmp_path, 2)
    rewrite(tmp_path, pl.col("hour") + 1, pl.col("days") * 2 + 1, pl.col("ever") + 1)

    report = run(tmp_path, described)

    found = {one.feature: min(each.instant_us for each in one.examples) for one in report.differences}
    assert found.keys() == {"hour", "days"}
    assert found["hour"] >= FORGOTTEN_US + HOUR
    assert found["days"] >= FORGOTTEN_US + 2 * DAY
