"""Through a real broker, Bytewax and a real Redis: log, join, recount and online reads say the same, to the bit."""

import threading
import time
from contextlib import closing
from dataclasses import replace

import polars as pl
import pytest

from tests.support.pipeline import (
    START,
    Bench,
    Outcome,
    bits,
    entities,
    expected_log,
    history,
    logged,
    naive_arrivals,
    plan,
)
from tests.support.training import training_rows
from unskew.monitoring.recount import Recount
from unskew.pipelines.run import run
from unskew.serving.online import OnlineReader

RECORDS = history(420, seed=7, n_items=8)
# Which of two events with one effective time and one arrival is the last is a matter of partition and offset. Where
# those differ between two runs, such events must agree on the value that ``last`` reads.
TIELESS = [replace(record, gift=min(record.at, record.stamp_ms * 1000) % 7000 < 3000) for record in RECORDS]
VIEWS = ["by_user", "by_item"]


def _complete_to(outcome: Outcome, view: str, events: pl.DataFrame) -> dict[tuple, int]:
    """Per key, how far its shard closed; a partitioned entity's shard is that of its records."""
    plan_ = outcome.plan.views[view]
    by_shard = outcome.complete_to(view)
    if not plan_.partitioned:
        assert len(set(by_shard.values())) == 1
        return dict.fromkeys(entities(plan_, events), next(iter(by_shard.values())))
    partitions = events.select(*plan_.entity.keys, "_partition").unique().rows()
    return {key: by_shard[f"p{partition}.0"] for *key_, partition in partitions for key in [tuple(key_)]}


@pytest.mark.parametrize("view", VIEWS)
def test_log_join_recount_and_redis_agree_to_the_bit(bench: Bench, view: str) -> None:
    outcome = bench.run(bench.produce(RECORDS))
    events = outcome.archive()
    definition = outcome.plan.views[view]
    complete_to = _complete_to(outcome, view, events)
    recount = Recount(definition, events)
    names = [feature.name for feature in definition.features]
    references = [f"{view}:{name}" for name in names]

    rows = outcome.log(view)
    assert logged(definition, rows) == expected_log(definition, events, complete_to)

    last = min(complete_to.values())
    instants = rows["available_at"].dt.epoch("us").filter(rows["available_at"].dt.epoch("us") < last).unique()
    labels = [
        (*key, instant + step)
        for key in entities(definition, events)
        for instant in instants.sample(12, seed=3)
        for step in (-1, 0, 1)
    ]
    frame = pl.DataFrame(labels, schema=[*definition.entity.keys, "event_timestamp"], orient="row").with_columns(
        pl.col("event_timestamp").cast(pl.Datetime("us", "UTC"))
    )
    joined = training_rows(outcome.deployment.log, outcome.plan.published, frame, references)
    for (*key, instant), *values in zip(labels, *(joined[name] for name in names), strict=True):
        assert bits(values) == bits(recount.values(key, instant).values()), (key, instant)

    with closing(OnlineReader(bench.redis_url, prefix=outcome.deployment.prefix)) as reader:
        keys = entities(definition, events)
        asked = pl.DataFrame(keys, schema=list(definition.entity.keys), orient="row")
        found = reader.read(references, asked)
        as_of = found.metadata[view]["as_of"].dt.epoch("us").to_list()
        served = found.to_polars()
        for row, key in enumerate(keys):
            expected = recount.values(key, as_of[row])
            assert bits(served[name][row] for name in names) == bits(expected.values()), (key, as_of[row])


def test_arrivals_and_dead_letters_follow_from_the_topic_alone(bench: Bench) -> None:
    outcome = bench.run(bench.produce(RECORDS))
    arrivals = naive_arrivals(RECORDS)
    events = outcome.archive()
    letters = outcome.dead_letters().filter(pl.col("view").is_null())

    found = events.select("_partition", "_offset", pl.col("_arrival").dt.epoch("us")).rows()
    dead = letters.select("partition", "offset", pl.col("arrival").dt.epoch("us")).rows()

    assert {(partition, offset): arrival for partition, offset, arrival in found + dead} == arrivals
    assert letters.height == sum(record.raw is not None for record in RECORDS) > 0
    assert set(letters["value"]) == {b"\0\0\0\0\7garbage"}
    nan = outcome.dead_letters().filter(pl.col("view") == "by_user@1")
    assert nan.height == sum(record.amount != record.amount and record.raw is None for record in RECORDS) > 0
    assert outcome.status is not None
    assert outcome.status.consumed == len(RECORDS)


@pytest.mark.parametrize("poll_records", [1, 7, 10_000])
def test_poll_sizes_do_not_show_in_the_log(bench: Bench, poll_records: int) -> None:
    topic = bench.produce(RECORDS[:150])
    reference = bench.run(topic)

    other = bench.run(topic, poll_records=poll_records)

    for view in VIEWS:
        assert other.log(view).equals(reference.log(view))


@pytest.mark.parametrize("n_hashes", [2, 5])
def test_the_number_of_shards_does_not_show_in_the_values(bench: Bench, n_hashes: int) -> None:
    topic = bench.produce(RECORDS)
    reference = bench.run(topic)

    other = bench.run(topic, n_hashes=n_hashes)

    for view in VIEWS:
        assert len(other.log(view)["shard"].unique()) > len(reference.log(view)["shard"].unique())
        assert other.values(view).equals(reference.values(view))


def test_four_partitions_running_apart_give_the_values_of_one(bench: Bench) -> None:
    in_one = bench.run(bench.produce([replace(record, partition=0) for record in TIELESS], 1))

    # Each partition whole, one after the other: a reader that does not wait for the slowest would run far ahead.
    apart = bench.run(bench.produce(sorted(TIELESS, key=lambda record: record.partition)), poll_records=500)

    for view in VIEWS:
        # The one partition closes every instant but its last; each of the four only up to its own last record.
        last = min(apart.complete_to(view).values())
        until = pl.col("available_at").dt.epoch("us") <= last
        assert apart.values(view).filter(until).equals(in_one.values(view).filter(until))
        assert apart.values(view).filter(until).height > 100


def test_a_partition_without_records_holds_nothing_back_once_it_has_ended(bench: Bench) -> None:
    records = [replace(record, partition=record.partition % 2) for record in RECORDS]
    reference = bench.run(bench.produce(records, 2))

    other = bench.run(bench.produce(records, 5))

    for view in VIEWS:
        assert other.log(view).equals(reference.log(view))


def test_a_partition_that_ended_empty_holds_back_neither_labels_nor_reads_until_it_gets_records(bench: Bench) -> None:
    topic = bench.produce([replace(record, partition=0) for record in RECORDS[:60]], 2)
    outcome = bench.run(topic)
    events = outcome.archive()
    users = entities(outcome.plan.views["by_user"], events)
    recount = Recount(outcome.plan.views["by_user"], events)
    last = outcome.complete_to("by_user")["p0.0"]
    keys = pl.DataFrame(users, schema=["user"], orient="row")
    frame = keys.with_columns(event_timestamp=pl.lit(last).cast(pl.Datetime("us", "UTC")))
    counted = [recount.values(user, last)["count_today"] for user in users]

    def join() -> list[int]:
        feature = ["by_user:count_today"]
        return training_rows(outcome.deployment.log, outcome.plan.published, frame, feature)["count_today"].to_list()

    def read() -> pl.DataFrame:
        with closing(OnlineReader(bench.redis_url, prefix=outcome.deployment.prefix)) as reader:
            return reader.read(["by_user:count_today"], pl.DataFrame({"user": ["nobody"]})).metadata["by_user"]

    assert outcome.complete_to("by_user") == {"p0.0": last, "p1.0": None}
    assert join() == counted
    assert read()["provisional"].to_list() == [False]

    run(outcome.plan, outcome.deployment, stop=threading.Event())
    assert outcome.complete_to("by_user") == {"p0.0": last, "p1.0": None}
    assert join() == counted

    bench.append(topic, [replace(RECORDS[70], partition=1, user="new", raw=None)])
    run(outcome.plan, outcome.deployment, stop=threading.Event())
    later = outcome.complete_to("by_user")["p1.0"]
    assert later is not None
    assert later > last
    assert join() == counted
    assert read()["provisional"].to_list() == [True]


def test_permuting_records_within_an_instant_changes_no_value(bench: Bench) -> None:
    groups: dict[int, list] = {}
    for record in TIELESS:
        groups.setdefault(record.stamp_ms, []).append(record)
    records = [record for group in groups.values() for record in reversed(group)]
    assert records != TIELESS
    reference = bench.run(bench.produce(TIELESS))

    other = bench.run(bench.produce(records))

    for view in VIEWS:
        assert other.values(view).equals(reference.values(view))


def test_a_live_topic_decays_without_events(bench: Bench) -> None:
    """With marks instead of records the clock moves: values reach zero and keys go, in log and in Redis."""
    now_ms = time.time_ns() // 1_000_000
    records = [replace(record, stamp_ms=now_ms, at=now_ms * 1000, amount=1.0, raw=None) for record in RECORDS[:8]]
    topic = bench.produce(records)
    definitions = plan(topic)
    stream = replace(definitions.streams["purchases"], settle_us=100_000)
    views = {name: replace(view, stream=stream) for name, view in definitions.views.items()}
    live = replace(definitions, views=views, streams={"purchases": stream})
    deployment = bench.deployment(idle="wall", ends=None, epoch_s=0.2)
    stop = threading.Event()
    deadline = time.monotonic() + 60

    def report(_status: object) -> None:
        rows = [pl.read_parquet(file) for file in (deployment.log / "by_user").glob("v1/day=*/*.parquet")]
        zero = pl.concat(rows).filter(pl.col("count_5s") == 0) if rows else pl.DataFrame()
        if len(zero) >= len({record.user for record in records}) or time.monotonic() > deadline:
            stop.set()

    run(live, deployment, stop=stop, report=report)

    rows = Outcome(live, deployment).log("by_user")
    users = {record.user for record in records}
    first_hop = (now_ms // 1000 + 1) * 1_000_000 + 5_000_000
    gone = rows.filter(pl.col("count_5s") == 0).group_by("user").agg(pl.col("available_at").dt.epoch("us").min())
    assert set(gone["user"]) == users
    assert set(gone["available_at"]) == {first_hop}
    assert set(rows.filter(pl.col("available_at").dt.epoch("us") == first_hop)["cause"]) == {"hop"}
    assert now_ms * 1000 > START
