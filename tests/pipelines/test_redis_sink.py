"""Values on their way from steps to Redis: how often they are sent, and that none waits for a turn that never comes."""

import threading
import time

import pytest

from tests.support.plans import DAY, Wanted, sliding, view
from tests.support.updates import closing
from unskew.features.plan import Plan
from unskew.pipelines.flow import RedisSink, Shards, Step
from unskew.pipelines.kafka.turns import Turns
from unskew.pipelines.progress import Epochs
from unskew.sinks.patience import Patience
from unskew.sinks.redis.writer import RedisWriter

PURCHASES = view(Wanted("n", "count", sliding(30 * DAY, DAY)), name="purchases")
SHARDS = ["h0", "h1", "h2"]


class Topic:
    def await_records(self, timeout_s):
        """No record ever comes."""


@pytest.fixture
def sink(redis_client):
    return RedisSink(
        Plan(streams={}, views={"purchases": PURCHASES}),
        RedisWriter(redis_client, "unskew", "main"),
        lambda: time.time_ns() // 1000,
        Shards({PURCHASES.id: SHARDS}),
        Patience("Redis", threading.Event()),
        Epochs(),
        Turns(rest=lambda _: None),
    )


def write_a_step_of_each(sink):
    ahead_us = time.time_ns() // 1000 + 60_000_000  # a step that does not lag is due at once
    for shard in SHARDS:
        part = sink.build_part("redis", shard, None)
        part.write_batch([Step(closing(PURCHASES, ahead_us, [{"key": f"of-{shard}", "n": 1, "_at": 1}], shard=shard))])


def keys(client):
    return {key.decode() for key in client.keys("unskew:purchases@1:*")}


def test_what_the_shards_gave_in_one_turn_is_sent_together_before_the_next(sink, redis_client):
    sink.turns.begin("p0")
    write_a_step_of_each(sink)
    assert (sink.writer.flushes, keys(redis_client)) == (0, set())

    sink.turns.begin("p0")
    assert sink.writer.flushes == 1
    assert keys(redis_client) == {f"unskew:purchases@1:{{of-{shard}}}" for shard in SHARDS}

    sink.turns.begin("p0")
    assert sink.writer.flushes == 1


def test_what_waits_is_sent_before_a_rest(sink, redis_client):
    sink.turns.begin("p0")
    sink.turns.taken("p0", Topic(), gave=False)
    write_a_step_of_each(sink)
    sink.turns.taken("p0", Topic(), gave=False)

    assert len(keys(redis_client)) == len(SHARDS)


@pytest.mark.parametrize("left", [[], ["p0"], ["p0", "p1"]], ids=["none began", "one left", "two left"])
def test_steps_of_other_processes_are_sent_at_once_where_no_partition_takes_turns(sink, redis_client, left):
    for partition in left:
        sink.turns.begin(partition)
    for partition in left:
        sink.turns.left(partition)
    write_a_step_of_each(sink)

    assert len(keys(redis_client)) == len(SHARDS)
