"""A stream of several topics: their partitions are numbered one after the other, and nothing else is different."""

import itertools
import json
import threading
from dataclasses import replace

import polars as pl
import pytest
from confluent_kafka import Producer

from tests.support.definitions import SCHEMA, stream
from tests.support.pipeline import SCHEMA as PURCHASES
from tests.support.pipeline import Bench, Outcome, entities, expected_log, history, logged
from tests.support.sources import n_records as n_records_of
from tests.support.sources import never, polls
from unskew import Entity, Feature, FeatureView, Sliding, Stream, agg
from unskew import compile as compile_definitions
from unskew.features.definitions.streams import plan_stream
from unskew.features.errors import DefinitionError, LayoutError, RequestError, StoreUnavailable
from unskew.pipelines.run import run

RECORDS = history(400, seed=11)
_names = (f"topics{number}" for number in itertools.count())


@pytest.fixture
def bench(broker, redis_url, tmp_path):
    return Bench(broker, redis_url, tmp_path)


@pytest.fixture
def halves(bench):
    """Partitions 0 and 1 in one topic, 2 and 3 in another."""
    name = next(_names)
    topics = [f"{name}-a", f"{name}-b"]
    for topic in topics:
        bench.broker.create_topic(topic, 2)
    put(bench, topics, RECORDS)
    return topics


def put(bench, topics, records):
    producer = Producer(
        {"bootstrap.servers": bench.broker.bootstrap, "enable.idempotence": True, "linger.ms": 5, "log_level": 0}
    )
    for record in records:
        producer.produce(
            topics[record.partition // 2],
            record.value(),
            record.user.encode(),
            partition=record.partition % 2,
            timestamp=record.stamp_ms,
        )
    assert producer.flush(20) == 0


def plan(topic, *, version=1, **more):
    source = Stream("purchases", topic=topic, schema=PURCHASES, event_time="at", owner="tests", **more)
    features = [
        Feature("n", agg.count(), Sliding("1min", hop="15s")),
        Feature("last", agg.last("amount"), Sliding("5s")),
    ]
    return compile_definitions(
        FeatureView(
            "by_user",
            entity=Entity("user", key="user"),
            stream=source,
            owner="tests",
            features=features,
            version=version,
        )
    )


def outcome(bench, topic, **changes):
    found = Outcome(plan(topic), bench.deployment(**changes))
    found.status = run(found.plan, found.deployment, stop=threading.Event())
    return found


def test_two_topics_give_the_log_that_one_topic_with_the_same_records_gives(bench, halves):
    one = outcome(bench, bench.produce(RECORDS))
    two = outcome(bench, halves)

    assert two.log("by_user").equals(one.log("by_user"))
    assert two.archive().equals(one.archive())
    assert two.status.consumed == one.status.consumed == len(RECORDS)


def test_dead_letters_say_topic_and_partition_as_the_broker_calls_them(bench, halves):
    letters = outcome(bench, halves).dead_letters()
    views, poisoned = letters.drop_nulls("view"), letters.filter(pl.col("view").is_null())

    expected = sorted((halves[r.partition // 2], r.partition % 2) for r in RECORDS if r.raw is not None)
    assert len({topic for topic, _ in expected}) == 2
    assert sorted(poisoned.select("topic", "partition").rows()) == expected
    assert set(views["topic"]) <= set(halves)
    assert set(views["partition"]) <= {0, 1}
    assert views.height > 0


def test_a_pattern_is_all_topics_that_it_matches_in_the_order_of_their_names(bench, halves):
    listed = outcome(bench, halves)
    matched = outcome(bench, f"^{halves[0].removesuffix('a')}.*")

    assert matched.log("by_user").equals(listed.log("by_user"))


def test_ends_are_told_by_topic(bench, halves):
    ends = {halves[0]: {0: 10, 1: 20}, halves[1]: {0: 30, 1: 40}}

    assert outcome(bench, halves, ends=ends).status.consumed == 100
    with pytest.raises(RequestError, match=f"topic '{halves[1]}': no end offset for partition 1"):
        outcome(bench, halves, ends={halves[0]: {0: 1, 1: 1}, halves[1]: {0: 1}})
    with pytest.raises(RequestError, match=f"topic '{halves[0]}': an end offset for partition 2, but it has only 0, 1"):
        outcome(bench, halves, ends={halves[0]: {0: 1, 1: 1, 2: 1}, halves[1]: {0: 1, 1: 1}})


def test_a_run_goes_on_in_every_topic_where_the_one_before_it_stopped(bench, halves):
    whole = outcome(bench, halves)
    ends = {topic: {0: 25, 1: 25} for topic in halves}
    first = outcome(bench, halves, ends=ends)
    second = Outcome(first.plan, replace(first.deployment, ends="now"))
    second.status = run(second.plan, second.deployment, stop=threading.Event())

    assert second.status.consumed == len(RECORDS) - 100
    assert second.archive().drop("_arrival").equals(whole.archive().drop("_arrival"))


def test_a_new_topic_that_matches_the_pattern_joins_and_every_value_is_that_of_the_archive(bench, halves):
    """The new one comes between the others by name, and its records are as old as theirs."""
    found = outcome(bench, f"^{halves[0].removesuffix('a')}.*")
    between = f"{halves[0]}a"
    bench.broker.create_topic(between, 2)
    put(bench, [between], [record for record in RECORDS if record.partition < 2])
    put(bench, halves, RECORDS[:40])
    found.status = run(found.plan, found.deployment, stop=threading.Event())

    n_more = sum(record.partition < 2 for record in RECORDS)
    assert found.status.consumed == n_more + 40
    archive = found.archive()
    numbers = {topic: set(range(2 * row, 2 * row + 2)) for row, topic in enumerate([*halves, between])}
    assert set(archive["_partition"]) <= set.union(*numbers.values())
    letters = found.dead_letters().filter(pl.col("view").is_null())
    assert archive.height + letters.height == len(RECORDS) + n_more + 40
    view = found.plan.views["by_user"]
    complete_to = dict.fromkeys(entities(view, archive), min(found.complete_to("by_user").values()))
    assert logged(view, found.log("by_user")) == expected_log(view, archive, complete_to)


def test_a_topic_that_the_stream_no_longer_names_is_refused(bench, halves):
    first = outcome(bench, f"^{halves[0].removesuffix('a')}.*")
    fewer = plan(f"^{halves[0]}$")

    with pytest.raises(LayoutError, match=f"topic '{halves[1]}' was read before and is not among the topics now"):
        run(fewer, first.deployment, stop=threading.Event())


def test_a_pattern_matches_no_topic_of_kafka_itself(bench, halves):
    internal = f"__{halves[0]}"
    bench.broker.create_topic(internal, 1)

    assert outcome(bench, f"^(__)?{halves[0]}").status.consumed == sum(record.partition < 2 for record in RECORDS)


@pytest.mark.needs_broker("topic ids")
def test_partitions_added_to_a_partitioned_topic_are_refused_with_a_way_on(bench):
    """The way: a new version of the view that does not rely on the partitions; it has its past from the archive."""
    halved = [replace(record, partition=record.partition % 2) for record in RECORDS[:200]]
    topic = bench.produce(halved, n_partitions=2)
    by_partition, deployment = plan(topic, partitioned_by="user"), bench.deployment()
    assert run(by_partition, deployment, stop=threading.Event()).consumed == 200
    bench.broker.add_partitions(topic, 4)
    bench.append(topic, RECORDS[200:])

    with pytest.raises(LayoutError, match=r"has 4 partitions, but had 2 .* by_user relies on partitioned_by"):
        run(by_partition, deployment, stop=threading.Event())
    after = run(plan(topic, version=2), deployment, stop=threading.Event())
    assert after.consumed == len(RECORDS) - 200
    assert set(Outcome(by_partition, deployment).archive()["_partition"]) == {0, 1, 2, 3}


@pytest.mark.needs_broker("topic ids")
def test_a_topic_that_was_created_again_is_refused_however_many_records_it_has(bench):
    topic = bench.produce(RECORDS[:60])
    first = outcome(bench, topic)
    # A state of an earlier version has no ids, and takes them up at its first start.
    recorded = first.deployment.state / "deployment.json"
    recorded.write_text(json.dumps({**json.loads(recorded.read_text()), "topics": {}}))
    assert run(first.plan, first.deployment, stop=threading.Event()).consumed == 0

    bench.broker.create_again(topic, 4)
    for records in ([], RECORDS):
        bench.append(topic, records)
        with pytest.raises(LayoutError, match=f"Topic '{topic}' has the id .*--adopt-topic-ids"):
            run(first.plan, first.deployment, stop=threading.Event())
    assert first.archive().height + first.dead_letters().filter(pl.col("view").is_null()).height == 60

    # It holds the same records at the same offsets, and more: once adopted, it is the topic.
    adopted = run(first.plan, replace(first.deployment, adopt_topic_ids=True), stop=threading.Event())
    assert adopted.consumed == len(RECORDS) - 60
    assert first.archive().drop("_arrival").equals(outcome(bench, topic).archive().drop("_arrival"))
    assert run(first.plan, first.deployment, stop=threading.Event()).consumed == 0


@pytest.mark.needs_broker("topic ids")
@pytest.mark.parametrize("n_records", [3, 500])
def test_a_topic_that_is_created_again_while_it_is_read_is_an_error_that_says_so(broker, topic, read, n_records):
    """With fewer records than were read, its offsets are out of range; with more, a client goes on without a word."""
    stream = topic()
    stream.put(0, *range(50))
    source = read(stream)
    polls(source, n_records_of(50))

    broker.create_again(stream.name, 1)
    stream.connect().put(0, *range(n_records))

    with pytest.raises(LayoutError, match=f"Topic '{stream.name}' has the id"):
        polls(source, never, within_s=30)


def test_a_pattern_without_a_topic_is_an_error_that_says_so(bench):
    with pytest.raises(StoreUnavailable, match=r"no topic on the broker at .* matches '\^nothing-of-the-kind'"):
        outcome(bench, "^nothing-of-the-kind")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"topic": ["a", "a"]}, "names a topic twice"),
        ({"topic": ["a", "b c"]}, "'b c' is not a topic name"),
        ({"topic": []}, "topic=[] is not a topic name"),
        ({"topic": "^a("}, "the pattern '^a(' is not a regular expression"),
        (
            {"topic": ["a", "b"], "partitioned_by": "user_id"},
            "partitioned_by does not apply to a stream of several topics",
        ),
        ({"topic": ["a", "b"], "name": "pay ments"}, "its records are archived under the stream's name"),
    ],
)
def test_topics_that_cannot_be_are_a_fault(changes, fault):
    with pytest.raises(DefinitionError) as raised:
        plan_stream(stream(**{"partitioned_by": None} | changes))
    assert fault in str(raised.value)


@pytest.mark.parametrize("topic", ["orders", ["orders", "refunds"], ["x", "orders"], "^ord.*"])
def test_two_streams_may_not_read_one_topic(topic):
    views = [
        FeatureView(
            name,
            entity=Entity("user", key="user_id"),
            stream=Stream(name, topic=read, schema=SCHEMA, event_time="event_time"),
            features=[Feature("n", agg.count(), Sliding("1h"))],
        )
        for name, read in (("one", "orders"), ("other", topic))
    ]

    with pytest.raises(DefinitionError, match="topic orders already belongs to the stream"):
        compile_definitions(*views)
