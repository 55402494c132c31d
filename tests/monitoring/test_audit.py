import datetime as dt
import json
import re
import shutil
import threading
import time
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
import redis
from click.testing import CliRunner

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
    sessions,
    sliding,
    view,
)
from tests.support.terminal import WIDTHS, broken, drawn, piped, wider
from tests.support.typed import pairs
from tests.support.updates import updates
from tests.support.written import write_archive, write_log
from unskew import FeatureStore
from unskew.cli import main
from unskew.features.definitions.load import load
from unskew.features.errors import LayoutError, RequestError
from unskew.features.evaluate import evaluate
from unskew.features.plan import Plan, ViewPlan
from unskew.features.shard_state import ShardState
from unskew.features.view import Parameters
from unskew.monitoring.audit import AuditReport, audit
from unskew.monitoring.report import audit_table, engines_line, unaudited_lines
from unskew.serving import sample
from unskew.sinks.redis.writer import RedisWriter
from unskew.sinks.tables.kinds import LogTable
from unskew.sinks.tables.parquet import encode
from unskew.sinks.wall import wall_us

T0 = 1_490_400_000 * SECOND  # 2017-03-25, the day before clocks change in Berlin
CLOCK = T0 + 3 * DAY

HOUR_WINDOW = sliding(HOUR, 5 * MINUTE)
CLICKS = view(
    Wanted("count", "count", HOUR_WINDOW),
    Wanted("sum", "sum", HOUR_WINDOW, "x * 0.1", filter="n > 2"),
    Wanted("last", "last", sliding(DAY, 5 * MINUTE), pl.col("n"), "int64", default=-1),
    Wanted("today", "mean", local_day("Europe/Berlin"), "x"),
    name="clicks",
)
PLAN = Plan(streams={"stream": CLICKS.stream}, views={"clicks": CLICKS})
EVENTS = events(
    [
        (T0 + i * 17 * MINUTE, T0 + i * 17 * MINUTE - (i % 5) * HOUR, {"user": f"u {i % 7}", "x": i / 3, "n": i % 6})
        for i in range(120)
    ]
)


@pytest.fixture
def stored(tmp_path: Path, redis_client: redis.Redis) -> Path:
    """Log, archive and Redis as the pipeline leaves them."""
    write(tmp_path, redis_client, CLICKS, EVENTS)
    return tmp_path


def write(
    folder: Path,
    client: redis.Redis,
    plan: ViewPlan,
    given: pl.DataFrame,
    clock_us: int = CLOCK,
    *,
    archived: bool = True,
) -> None:
    writer = RedisWriter(client, "unskew", "main")
    for step in write_log(folder / "log", plan, given, clock_us, n_shards=2, n_batches=3):
        writer.add(step)
    writer.flush(wall_us())  # the server's own clock: keys that are old already would expire at once
    if archived:
        write_archive(folder / "archive", plan, given)


def run(folder: Path, redis_url: str | None = None, *, plan: Plan = PLAN, **options) -> AuditReport:
    return audit(
        plan,
        folder / "log",
        folder / "archive",
        redis_source=redis_url,
        **{"samples": 400, "patience_s": 0, **options},
    )


def rewrite(folder: Path, change: pl.Expr) -> None:
    """Change rows of the published log where they lie."""
    for file in folder.glob("log/clicks/v1/day=*/*.parquet"):
        metadata = {name: text for name, text in pl.read_parquet_metadata(file).items() if name.startswith("unskew.")}
        file.write_bytes(encode(pl.read_parquet(file, hive_partitioning=False).with_columns(change), metadata))


def test_log_redis_and_recount_agree_and_the_report_says_about_what(stored, redis_url):
    report = run(stored, redis_url)

    assert report.difference is None
    (clicks,) = report.views
    assert (clicks.view, clicks.events, clicks.samples) == ("clicks@1", 120, 400)
    assert min(clicks.on_arrivals, clicks.on_hops, clicks.beside) > 40
    assert clicks.non_empty > 200
    assert (clicks.entities, clicks.ahead) == (7, 0)
    assert clicks.engines == {"x * 0.1": "duckdb", "n > 2": "duckdb", "x": "duckdb", str(pl.col("n")): "polars"}


def test_the_same_seed_draws_the_same_sample(stored):
    assert run(stored, seed=5) == run(stored, seed=5) != run(stored, seed=6)


def test_entities_whose_key_is_gone_are_compared_too(tmp_path, redis_client, redis_url):
    plan = view(Wanted("count", "count", HOUR_WINDOW), name="clicks")
    write(tmp_path, redis_client, plan, EVENTS[:117], clock_us=T0 + 116 * 17 * MINUTE + 1)

    report = run(tmp_path, redis_url, plan=Plan(streams={}, views={"clicks": plan}))

    assert report.difference is None
    assert report.views[0].entities == 7
    assert 0 < report.views[0].entities_present < 7


def test_a_planted_bit_in_the_log_is_found_and_named(stored, redis_url):
    one = pl.col("user") == "u 3"
    rewrite(stored, pl.when(one).then(pl.col("sum") + 2.0**-40).otherwise(pl.col("sum")).alias("sum"))

    difference = run(stored, redis_url).difference

    assert difference is not None
    assert (difference.where, difference.view, difference.entity, difference.feature) == (
        "log",
        "clicks@1",
        ("u 3",),
        "sum",
    )
    assert difference.found - difference.expected == pytest.approx(2.0**-40)
    assert re.match(r"clicks@1 of u 3 at 2017-.*: sum is .* in the log, and .* by the recount", str(difference))


def test_a_row_that_stands_a_microsecond_late_is_found(stored):
    rewrite(stored, pl.col("available_at") + pl.duration(microseconds=1))

    difference = run(stored).difference

    assert difference is not None
    assert difference.where == "log"


def test_a_planted_difference_in_redis_is_found_and_named(tmp_path, redis_client, redis_url):
    write(tmp_path, redis_client, CLICKS, EVENTS, clock_us=T0 + 119 * 17 * MINUTE)
    redis_client.hincrby("unskew:clicks@1:{u%205}", "last", 1)

    difference = run(tmp_path, redis_url).difference

    assert difference is not None
    assert (difference.where, difference.entity, difference.feature) == ("redis", ("u 5",), "last")
    assert difference.found == difference.expected + 1


def test_a_key_that_should_be_gone_is_found(stored, redis_client, redis_url):
    redis_client.hset("unskew:clicks@1:{u%201}", mapping={"_at": str(CLOCK - SECOND), "count": "1", "sum": "0.0"})

    difference = run(stored, redis_url).difference

    assert difference is not None
    assert (difference.where, difference.entity, difference.feature, difference.expected) == (
        "redis",
        ("u 1",),
        "count",
        0,
    )


def test_an_archive_that_lacks_events_is_refused(stored):
    write_archive(stored / "partial", CLICKS, EVENTS[::2])

    with pytest.raises(RequestError, match=r"the archive lacks \d+ events from which clicks@1 was computed"):
        audit(PLAN, stored / "log", stored / "partial", samples=10, patience_s=0)


def test_events_that_were_archived_with_other_schemas_are_read_too(stored, redis_url):
    first, *_, last = sorted(stored.glob("archive/**/*.parquet"))
    for file, change in ((first, pl.col("n").cast(pl.Int32)), (last, pl.lit("phone").alias("device"))):
        metadata = {name: text for name, text in pl.read_parquet_metadata(file).items() if name.startswith("unskew.")}
        file.write_bytes(encode(pl.read_parquet(file, hive_partitioning=False).with_columns(change), metadata))

    report = run(stored, redis_url)

    assert report.difference is None
    assert report.views[0].events == 120


def test_what_several_views_lack_is_said_once_and_other_things_apart(stored, redis_client):
    (stored / "empty").mkdir()
    other = replace(republished(CLICKS, name="swipes"), stream=replace(CLICKS.stream, topic="elsewhere"))
    for one in (SECOND_VIEW, other):
        write(stored, redis_client, one, EVENTS, archived=False)
    plan = Plan(streams=PLAN.streams, views={"clicks": CLICKS, "taps": SECOND_VIEW, "swipes": other})

    with pytest.raises(RequestError) as refused:
        audit(plan, stored / "log", stored / "empty", samples=10, patience_s=0)

    assert [fault.partition(" under ")[0] for fault in refused.value.faults] == [
        "there are no archived events of topic stream",
        "there are no archived events of topic elsewhere",
    ]


def test_without_an_archive_or_a_clock_nothing_is_claimed(stored, redis_client, redis_url):
    with pytest.raises(RequestError, match="no archived events of topic stream"):
        audit(PLAN, stored / "log", stored / "nowhere", samples=10, patience_s=0)

    redis_client.flushdb()
    with pytest.raises(RequestError, match="Redis has no clock of clicks@1"):
        run(stored, redis_url)


def test_a_redis_that_is_past_the_log_is_not_held_against_it(stored, redis_client, redis_url):
    redis_client.hset("unskew:clock:main", mapping={f"clicks@1/h{shard}": str(CLOCK + DAY) for shard in (0, 1)})

    with pytest.raises(RequestError, match="7 values are past what the log has published"):
        run(stored, redis_url)


SECOND_VIEW = republished(CLICKS, name="taps")


def test_a_view_of_which_nothing_could_be_compared_is_refused_beside_others(stored, redis_client, redis_url):
    write(stored, redis_client, SECOND_VIEW, EVENTS, archived=False)
    both = Plan(streams=PLAN.streams, views={"clicks": CLICKS, "taps": SECOND_VIEW})
    assert run(stored, redis_url, plan=both).difference is None

    redis_client.hset("unskew:clock:main", mapping={f"taps@1/h{shard}": str(CLOCK + DAY) for shard in (0, 1)})

    with pytest.raises(RequestError, match="nothing of taps@1 in Redis was compared: 7 values are past"):
        run(stored, redis_url, plan=both)


def test_a_view_without_events_is_said_to_have_none(stored, redis_url):
    silent = replace(SECOND_VIEW, stream=replace(CLICKS.stream, topic="silent"))

    report = run(stored, redis_url, plan=Plan(streams=PLAN.streams, views={"clicks": CLICKS, "taps": silent}))

    assert [(one.view, one.events, one.samples) for one in report.views] == [("clicks@1", 120, 200), ("taps@1", 0, 0)]
    assert [row[0] for row in piped(audit_table(report))] == ["view", "clicks@1", "taps@1 (no events)", "all"]


@pytest.mark.parametrize(
    ("column", "planted"),
    [
        ("event_time", pl.col("event_time") + pl.duration(microseconds=1)),
        ("event_time", pl.lit(None, pl.Datetime("us", "UTC"))),
        ("partition", pl.lit(None, pl.Int32)),
        ("offset", (pl.col("offset") + 7) % 120),
        ("cause", pl.lit("hop")),
        ("cause", pl.lit("other")),
        ("cause", pl.lit(None, pl.String)),
    ],
)
def test_a_single_row_with_another_origin_is_found(stored, column, planted):
    one = pl.col("offset") == 60
    rewrite(stored, pl.when(one).then(planted).otherwise(pl.col(column)).alias(column))

    difference = run(stored).difference

    assert difference is not None
    assert (difference.where, difference.entity, difference.feature) == ("log", ("u 4",), column)
    assert difference.found != difference.expected


def test_a_hop_that_passes_for_an_event_is_found(stored):
    rewrite(stored, pl.lit("event").alias("cause"))

    difference = run(stored).difference

    assert difference is not None
    assert (difference.feature, difference.found, difference.expected) == ("cause", "event", "hop")


def test_of_two_events_at_one_instant_the_log_must_name_the_last(tmp_path, redis_client):
    twice = pl.concat([EVENTS, EVENTS]).sort("_arrival").with_columns(_offset=pl.int_range(pl.len()))
    write(tmp_path, redis_client, CLICKS, twice)
    assert run(tmp_path).difference is None

    rewrite(tmp_path, pl.col("offset") - 1)

    difference = run(tmp_path).difference
    assert difference is not None
    assert (difference.feature, difference.found) == ("offset", difference.expected - 1)


def test_a_row_in_the_log_of_an_entity_without_events_is_found(stored):
    newest = max(stored.glob("log/clicks/v1/day=*/h0-*.parquet"), key=lambda file: file.name)
    last = int(newest.stem.rsplit("-", 1)[1])
    metadata = {name: text for name, text in pl.read_parquet_metadata(newest).items() if name.startswith("unskew.")}
    planted = pl.read_parquet(newest, hive_partitioning=False)[-1:].with_columns(user=pl.lit("ghost"), seq=last + 1)
    newest.with_name(f"h0-{last + 1:020d}-{last + 1:020d}.parquet").write_bytes(encode(planted, metadata))

    difference = run(stored).difference

    assert difference is not None
    assert (difference.where, difference.entity, difference.feature) == ("log", ("ghost",), None)
    assert "clicks@1 of ghost at 2017-" in str(difference)


@pytest.mark.parametrize(
    ("key", "entity"), [("ghost%20x", ("ghost x",)), ("no key", ("no key",)), ("two|parts", ("two", "parts"))]
)
@pytest.mark.parametrize("fields", [{"count": "1"}, {}], ids=["values", "empty"])
def test_a_key_in_redis_of_an_entity_without_events_is_found(stored, redis_client, redis_url, key, entity, fields):
    redis_client.hset(f"unskew:clicks@1:{{{key}}}", mapping={"_at": str(CLOCK - SECOND), **fields})

    difference = run(stored, redis_url).difference

    assert difference is not None
    assert (difference.where, difference.entity, difference.feature) == ("redis", entity, None)


def test_keys_of_other_views_and_prefixes_are_no_strays(stored, redis_client, redis_url):
    for key in ("unskew:clicks@11:{ghost}", "unskew:clicks@1x:{ghost}", "other:unskew:clicks@1:{ghost}"):
        redis_client.hset(key, "_at", "1")

    assert run(stored, redis_url).difference is None


def test_a_provisional_value_is_counted_and_not_held_against_redis(tmp_path, redis_client, redis_url):
    write(tmp_path, redis_client, CLICKS, EVENTS, clock_us=T0 + 119 * 17 * MINUTE + 1)
    redis_client.hset("unskew:clicks@1:{u%205}", mapping={"_at": str(CLOCK), "count": "1000"})

    report = run(tmp_path, redis_url)

    assert report.difference is None
    assert (report.views[0].entities, report.views[0].provisional, report.views[0].ahead) == (6, 1, 0)
    assert "left out" in piped(audit_table(report))[0]
    assert "left out: 1 provisional" in unaudited_lines(report)


def test_where_all_of_redis_is_provisional_nothing_is_claimed(tmp_path, redis_client, redis_url):
    write(tmp_path, redis_client, CLICKS, EVENTS, clock_us=T0 + 119 * 17 * MINUTE + 1)
    for key in redis_client.keys("unskew:clicks@1:*"):
        redis_client.hset(key, "_at", str(CLOCK))

    with pytest.raises(RequestError, match="0 values are past what the log has published, 7 provisional"):
        run(tmp_path, redis_url)


def test_what_is_published_after_the_logs_coverage_was_read_makes_no_difference(stored):
    complete_to = T0 + 60 * 17 * MINUTE
    for file in stored.glob("log/clicks/v1/_coverage/*.json"):
        file.write_text(json.dumps({"since": T0, "complete_to": complete_to, "seq": 5}))
    late = pl.col("available_at") > pl.from_epoch(pl.lit(complete_to), "us").dt.replace_time_zone("UTC")
    rewrite(stored, pl.when(late).then(pl.lit("ghost")).otherwise("user").alias("user"))

    report = run(stored)

    assert report.difference is None
    assert report.views[0].samples == 400


def test_an_archive_that_is_published_after_the_log_is_waited_for(stored):
    archive = stored / "archive"
    shutil.rmtree(archive)
    write_archive(archive, CLICKS, EVENTS[:60])

    def follow() -> None:
        time.sleep(0.2)
        write_archive(stored / "whole", CLICKS, EVENTS)
        for file in (stored / "whole").glob("*/day=*/*.parquet"):
            target = archive / file.relative_to(stored / "whole")
            target.parent.mkdir(exist_ok=True)
            file.rename(target)

    thread = threading.Thread(target=follow)
    thread.start()
    report = run(stored, patience_s=60)
    thread.join()

    assert report.difference is None
    assert report.views[0].events == 120


@pytest.fixture
def uneven(tmp_path: Path, redis_client: redis.Redis) -> tuple[Path, Plan]:
    """A partitioned view whose first partition ended a day before the other."""
    plan = republished(CLICKS, partitioned=True)
    writer = RedisWriter(redis_client, "unskew", "main")
    both = []
    for partition, clock_us in ((0, CLOCK - 2 * DAY), (1, CLOCK - DAY)):
        given = EVENTS.filter(pl.col("user").str.slice(2).cast(pl.Int64) % 2 == partition)
        given = given.filter(pl.col("_arrival").to_physical() <= clock_us)
        given = given.with_columns(pl.lit(partition, pl.Int32).alias("_partition"))
        shard = f"p{partition}.0"
        state = ShardState(plan, shard)
        table = LogTable(tmp_path / "log", plan, shard, None, now_us=wall_us)
        step = state.apply(evaluate(plan, given).events, clock_us)
        table.append(step)
        table.snapshot()
        table.settle()
        writer.add(step)
        both.append(given)
    writer.flush(wall_us())
    write_archive(tmp_path / "archive", plan, pl.concat(both))
    return tmp_path, Plan(streams={}, views={"clicks": plan})


def test_partitions_that_ended_at_different_instants_are_compared_each_at_its_own(uneven, redis_url):
    folder, plan = uneven

    report = run(folder, redis_url, plan=plan)

    assert report.difference is None
    assert (report.views[0].entities, report.views[0].provisional, report.views[0].ahead) == (7, 0, 0)


def test_a_fault_in_the_partition_that_is_further_is_found(uneven, redis_client, redis_url):
    folder, plan = uneven
    key = "unskew:clicks@1:{u%205}"
    kept = redis_client.hgetall(key)

    redis_client.hincrby(key, "last", 1)
    changed = run(folder, redis_url, plan=plan).difference
    redis_client.delete(key)
    deleted = run(folder, redis_url, plan=plan).difference
    redis_client.hset(key, mapping=kept)
    redis_client.hset("unskew:clicks@1:{ghost}", mapping={"_at": str(CLOCK - DAY - 1), "count": "1"})
    stray = run(folder, redis_url, plan=plan).difference

    assert changed is not None
    assert (changed.entity, changed.feature) == (("u 5",), "last")
    assert deleted is not None
    assert deleted.entity == ("u 5",)
    assert stray is not None
    assert (stray.entity, stray.feature) == (("ghost",), None)


#   min   0    5   10   15       60   65   70   75
#         e----|----f----|--- … -|----^----|----^     e leaves at 65 min, f at 75 min
TYPED = view(
    Wanted("shop", "last", HOUR_WINDOW, "shop", "string", default="none"),
    Wanted("prices", "last_n", HOUR_WINDOW, "price", "decimal(38,2)", parameters=Parameters(n=3)),
    Wanted("by_shop", "mean", HOUR_WINDOW, "x", by="shop", parameters=Parameters(keys=16)),
    Wanted("since", "first_time", lifetime()),
    Wanted("spend", "sum", HOUR_WINDOW, "price", "decimal(38,2)"),
    Wanted("n", "count", HOUR_WINDOW),
    derived=[WantedOfOthers("odd", "1 / (n - 2)")],
    columns={"shop": pl.String(), "price": pl.Decimal(38, 2)},
    name="clicks",
)
TYPED_EVENTS = events(
    [
        (T0, T0, {"user": "u", "shop": "a", "price": Decimal("1.20"), "x": 0.1}),
        (T0 + 10 * MINUTE, T0 + 10 * MINUTE, {"user": "u", "shop": 'b"', "price": Decimal("0.05"), "x": -0.0}),
    ],
    columns={"shop": pl.String(), "price": pl.Decimal(38, 2)},
)
BEGAN = dt.datetime(2017, 3, 25, tzinfo=dt.UTC)
E, F = Decimal("1.20"), Decimal("0.05")


@pytest.fixture
def typed(tmp_path: Path, redis_client: redis.Redis) -> Path:
    """What a pipeline over the two events leaves, written out by hand."""
    rows = [
        (0, "event", 0, {"shop": "a", "prices": [E], "by_shop": pairs(("a", 0.1)), "spend": E, "n": 1, "odd": -1.0}),
        (10, "event", 1, {
            "shop": 'b"', "prices": [F, E], "by_shop": pairs(("a", 0.1), ('b"', 0.0)), "spend": E + F, "n": 2, "odd": None,
        }),
        (65, "hop", None, {
            "shop": 'b"', "prices": [F], "by_shop": pairs(('b"', 0.0)), "spend": F, "n": 1, "odd": -1.0,
        }),
        (75, "hop", None, {"shop": None, "prices": None, "by_shop": None, "spend": Decimal(0), "n": 0, "odd": -0.5}),
    ]  # fmt: skip
    log_rows = []
    for seq, (minutes, cause, offset, values) in enumerate(rows):
        at = T0 + minutes * MINUTE
        origin = {} if offset is None else {"event_time": at, "partition": 0, "offset": offset}
        row = {"user": "u", **values, "since": BEGAN, "available_at": at, "cause": cause, "seq": seq, **origin}
        log_rows.append(row)
    current = {"key": "u", **rows[1][-1], "since": BEGAN, "_at": T0 + 10 * MINUTE}
    table = LogTable(tmp_path / "log", TYPED, "h0", None, now_us=wall_us)
    table.append(updates(TYPED, CLOCK, log_rows=log_rows, since_us=T0))
    table.snapshot()
    table.settle()
    writer = RedisWriter(redis_client, "unskew", "main")
    writer.add(updates(TYPED, T0 + 20 * MINUTE, [current], since_us=T0))
    writer.flush(wall_us())
    write_archive(tmp_path / "archive", TYPED, TYPED_EVENTS)
    return tmp_path


TYPED_PLAN = Plan(streams={}, views={"clicks": TYPED})


def test_values_of_every_kind_agree(typed, redis_url):
    report = run(typed, redis_url, plan=TYPED_PLAN)

    assert report.difference is None
    assert (report.views[0].entities, report.views[0].entities_present) == (1, 1)
    assert report.views[0].non_empty > 100


@pytest.mark.parametrize(
    ("column", "planted"),
    [
        ("shop", pl.col("shop") + " "),
        ("prices", pl.col("prices").list.reverse()),
        ("prices", pl.col("prices").list.head(1)),
        ("by_shop", pl.col("by_shop").list.reverse()),
        ("since", pl.col("since") + pl.duration(microseconds=1)),
        ("spend", pl.col("spend") + pl.lit(Decimal("0.01"))),
        ("odd", pl.lit(0.0)),
    ],
)
def test_a_difference_in_a_value_of_any_kind_is_found_in_the_log(typed, column, planted):
    kind = pl.col(column)
    one = pl.col("offset") == 1
    rewrite(typed, pl.when(one).then(planted.cast(LOG_TYPES[column])).otherwise(kind).alias(column))

    difference = run(typed, plan=TYPED_PLAN).difference

    assert difference is not None
    assert (difference.where, difference.feature) == ("log", column)
    assert f": {column} is " in str(difference)


LOG_TYPES = {output.name: output.dtype.polars for output in TYPED.outputs}


@pytest.mark.parametrize(
    ("column", "planted"),
    [
        ("shop", 'b" '),
        ("shop", None),
        ("prices", '["1.20","0.05"]'),
        ("by_shop", '{"b\\"":0.0,"a":0.1}'),
        ("by_shop", '{"a":0.1,"b\\"":-0.0}'),
        ("since", str(T0 + 1)),
        ("spend", "1.26"),
        ("odd", "-0.5"),
    ],
)
def test_a_difference_in_a_value_of_any_kind_is_found_in_redis(typed, redis_client, redis_url, column, planted):
    if planted is None:
        redis_client.hdel("unskew:clicks@1:{u}", column)
    else:
        redis_client.hset("unskew:clicks@1:{u}", column, planted)

    difference = run(typed, redis_url, plan=TYPED_PLAN).difference

    assert difference is not None
    assert (difference.where, difference.entity, difference.feature) == ("redis", ("u",), column)


#   min   0    5   10   15   20   25   30
#         e----f----|----|----|----^              gap 20 min, hop 5 min: the session of e and f is over at 30 min
VISITS = view(
    Wanted("n", "count", sliding(HOUR, 5 * MINUTE)),
    Wanted("longest", "max", lifetime(), "length_s", "float64"),
    sessions=sessions(20 * MINUTE, 5 * MINUTE),
    name="clicks",
)
VISITS = replace(VISITS, sessions=republished(VISITS.sessions, name="visits"))


@pytest.fixture
def visits(tmp_path: Path) -> Path:
    over = T0 + 30 * MINUTE
    origin = {"event_time": over, "partition": 0, "offset": 1}
    longest = {"longest": 300.0}
    rows = [
        {"n": 1, **longest, "available_at": over, "cause": "event", "seq": 0, **origin},
        {"n": 0, **longest, "available_at": over + HOUR + 5 * MINUTE, "cause": "hop", "seq": 1},
    ]
    table = LogTable(tmp_path / "log", VISITS, "h0", None, now_us=wall_us)
    table.append(updates(VISITS, CLOCK, log_rows=[{"user": "u", **row} for row in rows], since_us=T0))
    table.snapshot()
    table.settle()
    given = [(T0, T0, {"user": "u"}), (T0 + 5 * MINUTE, T0 + 5 * MINUTE, {"user": "u"})]
    write_archive(tmp_path / "archive", VISITS, events(given))
    return tmp_path


VISITS_PLAN = Plan(streams={}, views={"clicks": VISITS})


def test_rows_caused_by_closed_sessions_agree(visits):
    report = run(visits, plan=VISITS_PLAN)

    assert report.difference is None
    assert report.views[0].events == 1
    assert report.views[0].rows > 0


def test_a_row_that_names_another_event_than_the_sessions_last_is_found(visits):
    rewrite(visits, pl.col("offset") - 1)

    difference = run(visits, plan=VISITS_PLAN).difference

    assert difference is not None
    assert (difference.feature, difference.found, difference.expected) == ("offset", 0, 1)


DEFINITIONS = """
from unskew import Calendar, Entity, Feature, FeatureView, Sliding, Stream, agg

columns = [
    {"name": "user", "type": "string"},
    {"name": "x", "type": ["null", "double"]},
    {"name": "n", "type": ["null", "long"]},
    {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
]
stream = Stream("stream", topic="stream", schema={"type": "record", "name": "E", "fields": columns}, event_time="at")
clicks = FeatureView(
    "clicks", entity=Entity("user", key="user"), stream=stream, where="n > 0",
    features=[
        Feature("count", agg.count(), Sliding("1h")),
        Feature("sum", agg.sum("x * 0.1"), Sliding("1d"), filter="\\"user\\" LIKE 'u%'"),
        Feature("today", agg.mean("x"), Calendar("day", tz="Europe/Berlin")),
    ],
)
"""


def test_the_command_prints_what_was_compared_and_fails_on_a_difference(tmp_path, redis_client, redis_url):
    definitions = tmp_path / "definitions.py"
    definitions.write_text(DEFINITIONS)
    write(tmp_path, redis_client, load(definitions).views["clicks"], EVENTS.with_columns(at="_event_time"))
    arguments = [
        "audit", "--definitions", str(definitions), "--log", str(tmp_path / "log"),
        "--archive", str(tmp_path / "archive"), "--redis-url", redis_url, "--samples", "200",
    ]  # fmt: skip

    agreed = CliRunner().invoke(main, arguments)
    rewrite(tmp_path, pl.col("count") + 1)
    differing = CliRunner().invoke(main, arguments)

    assert agreed.exit_code == 0, agreed.output
    assert "expressions in the recount: 4 by DuckDB" in agreed.output
    assert agreed.output.endswith("identical\n")
    assert differing.exit_code == 1
    assert re.search(r"difference clicks@1 count in the log: \d+\n  clicks@1 of u ", differing.output)
    assert "\n  and " in differing.output


def test_the_command_reports_all_differences_and_counts_them_in_json(tmp_path, redis_client, redis_url):
    definitions = tmp_path / "definitions.py"
    definitions.write_text(DEFINITIONS)
    write(tmp_path, redis_client, load(definitions).views["clicks"], EVENTS.with_columns(at="_event_time"))
    rewrite(tmp_path, pl.col("count") + 1)
    rewrite(
        tmp_path, pl.when(pl.col("user") == "u 3").then(pl.col("today") + 1).otherwise(pl.col("today")).alias("today")
    )
    for user in ("u%201", "u%202"):
        redis_client.hset(
            f"unskew:clicks@1:{{{user}}}", mapping={"_at": str(CLOCK - SECOND), "count": "9", "sum": "0.0"}
        )

    shown = CliRunner().invoke(main, [
        "audit", "--definitions", str(definitions), "--log", str(tmp_path / "log"),
        "--archive", str(tmp_path / "archive"), "--redis-url", redis_url, "--samples", "200", "--json",
    ])  # fmt: skip

    assert shown.exit_code == 1
    report = json.loads(shown.stdout)
    assert report["identical"] is False
    found = {(one["where"], one["view"], one["feature"]): one for one in report["differences"]}
    assert found.keys() == {("log", "clicks@1", "count"), ("log", "clicks@1", "today"), ("redis", "clicks@1", "count")}
    of_count = found["log", "clicks@1", "count"]
    assert of_count["count"] > 50
    assert len(of_count["examples"]) == 3
    assert all(one["found"] == one["expected"] + 1 for one in of_count["examples"])
    assert {tuple(one["entity"]) for one in found["log", "clicks@1", "today"]["examples"]} == {("u 3",)}
    in_redis = found["redis", "clicks@1", "count"]
    assert {(*one["entity"], one["found"], one["expected"]) for one in in_redis["examples"]} == {
        ("u 1", 9, 0),
        ("u 2", 9, 0),
    }
    assert in_redis["count"] == 2


def test_a_view_that_cannot_be_compared_does_not_hide_the_differences_of_another(stored, redis_client, redis_url):
    other = replace(SECOND_VIEW, stream=replace(CLICKS.stream, topic="elsewhere"))
    write(stored, redis_client, other, EVENTS, archived=False)
    both = Plan(streams=PLAN.streams, views={"taps": other, "clicks": CLICKS})
    with pytest.raises(RequestError, match="no archived events of topic elsewhere"):
        run(stored, redis_url, plan=both)

    rewrite(stored, pl.col("count") + 1)
    report = run(stored, redis_url, plan=both)

    assert [(one.view, one.feature) for one in report.differences] == [("clicks@1", "count")]
    assert ["no archived events of topic elsewhere" in refusal for refusal in report.refusals] == [True]


@pytest.mark.parametrize(("key", "field", "word"), [
    ("unskew:clicks@1:{u%203}", "_at", "soon"), ("unskew:clicks@1:{u%203}", "sum", "much"),
    ("unskew:clock:main", "clicks@1/h0", str(2**62)),
])  # fmt: skip
def test_what_unskew_did_not_write_in_redis_is_named(stored, redis_client, redis_url, key, field, word):
    redis_client.hset(key, field, word)

    with pytest.raises(LayoutError, match=re.escape(field)):
        run(stored, redis_url)


@pytest.mark.parametrize("command", ["head", "stats"])
def test_the_log_can_be_looked_into(tmp_path, redis_client, command):
    definitions = tmp_path / "definitions.py"
    definitions.write_text(DEFINITIONS)
    write(tmp_path, redis_client, load(definitions).views["clicks"], EVENTS.with_columns(at="_event_time"))
    where = ["--definitions", str(definitions), "--log", str(tmp_path / "log")]

    shown = CliRunner().invoke(main, ["log", command, "clicks", *where])
    unknown = CliRunner().invoke(main, ["log", command, "click", *where])

    assert shown.exit_code == 0, shown.output
    assert ("available_at" if command == "head" else "complete to") in shown.output
    assert "did you mean 'clicks'" in unknown.output


def test_the_report_has_a_line_for_each_view_and_one_for_all(stored):
    report = run(stored)

    assert len(piped(audit_table(report))) == 3
    assert engines_line(report) == "expressions in the recount: 3 by DuckDB, 1 by Polars"


@pytest.fixture
def served(stored, redis_url, monkeypatch):
    """A sample of what a reader of all users was given, of all features and of some."""
    monkeypatch.setattr(sample, "EVERY_S", 0.0)
    shutil.rmtree(stored / "archive")
    write_archive(stored / "archive", CLICKS, EVENTS, CLOCK)
    store = FeatureStore(PLAN, redis_url=redis_url, sample=stored / "served")
    users = [{"user": f"u {number}"} for number in range(8)]
    for features in (["sum"], ["last", "today"], ["count", "sum", "last", "today"]):
        for _ in range(20):
            store.get_online_features([f"clicks:{name}" for name in features], users)
    store.close()
    return stored


def test_what_was_served_is_what_the_log_and_a_rebuild_say(served):
    report = run(served, served_root=served / "served")

    (clicks,) = report.views
    assert report.differences == []
    assert (clicks.served, clicks.rebuilt, clicks.ahead, clicks.notes) == (60, 60, 0, [])
    assert report.per_million == 0
    assert report.values > 400
    assert run(served, served_root=served / "nowhere").views[0].served == 0
    late = run(served, served_root=served / "served", since_us=CLOCK - DAY).views[0]
    assert (late.served, late.samples + late.unknown) == (60, 400)
    with pytest.raises(
        RequestError, match=r"--since .*: the log of clicks@1 is complete to .*, so nothing of it lies after"
    ):
        run(served, since_us=CLOCK + DAY)


@pytest.mark.parametrize("where", ["served", "log"])
def test_a_difference_between_what_was_served_and_the_log_is_found(served, where):
    if where == "served":
        (path,) = (served / "served").iterdir()
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            if "last" in line["values"]:
                line["values"]["last"] = 17
        path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    else:
        rewrite(served, pl.lit(17, pl.Int64).alias("last"))

    report = run(served, served_root=served / "served", samples=60)

    kinds = {(one.where, one.feature): one for one in report.differences}
    assert ("served", "last") in kinds
    assert (("log", "last") in kinds) == (where == "log")
    assert report.per_million > 0
    said = str(kinds["served", "last"].examples[0])
    assert re.search("last was served as .* and is .* in the log", said)


def test_a_sample_of_other_definitions_and_a_torn_line_are_left_out(served):
    (path,) = (served / "served").iterdir()
    lines = path.read_text().splitlines()
    other = lines[0].replace(CLICKS.state_fingerprint, "7" * 64)
    path.write_text("\n".join([*lines[1:-1], other, lines[-1]]))

    (clicks,) = run(served, served_root=served / "served").views

    assert (clicks.served, clicks.unknown) == (58, 1)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_audit_of_a_sample_fits_the_terminal(served, redis_url, width):
    definitions = served / "definitions.py"
    definitions.write_text(DEFINITIONS)
    report = run(served, redis_url, served_root=served / "served")
    report.views[0].events = report.views[0].samples = report.views[0].unknown = 12_345_678

    shown = drawn(audit_table(report), width)

    assert wider(shown, width) == []
    assert broken(shown, ["12,345,678", "clicks@1", "arrivals"]) == []
