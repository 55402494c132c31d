"""Offsets without records are normal where a broker compacts; records that it lost from a log's end are an error."""

import itertools
import logging
import time
from collections.abc import Iterator

import pytest
from confluent_kafka import Producer

from tests.support.servers.kafka import ApacheKafka
from tests.support.sources import NOON, NOON_MS, SECOND, Topic, arrivals_of, n_records, never, polls
from unskew.features.errors import LayoutError

pytestmark = pytest.mark.long

COMPACTED = {
    "cleanup.policy": "compact",
    "segment.ms": "100",
    "min.cleanable.dirty.ratio": "0.0",
    "max.compaction.lag.ms": "100",
    "delete.retention.ms": "600000",
}


@pytest.fixture(scope="module")
def frail(pytestconfig: pytest.Config) -> Iterator[ApacheKafka]:
    """A broker that may be killed, and that compacts at once."""
    from tests.conftest import KAFKA

    if pytestconfig.stash[KAFKA].kind != "Apache Kafka":
        pytest.skip(f"needs a broker that can be killed and compacts: {pytestconfig.stash[KAFKA]}")
    properties = {"log.cleaner.enable": "true", "log.cleaner.backoff.ms": "100"}
    with ApacheKafka(properties=properties) as started:
        yield started


def test_a_log_that_ends_before_what_was_read_is_an_error_while_it_is_read(frail, read):
    stream = Topic(frail, 1)
    stream.put(0, *range(5))
    source = read(stream)
    polls(source, n_records(5))
    frail.kill()
    frail.lose(stream.name, 0)
    frail.start()
    stream.connect().put(0, *range(60_000, 60_003))

    with pytest.raises(LayoutError, match=r"records that were already counted|past the topic's end"):
        polls(source, n_records(6), within_s=60.0)


def test_a_broker_that_starts_again_with_all_its_records_is_no_loss(frail, read):
    """The position lies past a transaction's marker, which another leader epoch may have written."""
    stream = Topic(frail, 1)
    producer = Producer({"bootstrap.servers": stream.bootstrap, "transactional.id": stream.name, "log_level": 0})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(stream.name, b"value", partition=0, timestamp=NOON_MS)
    assert producer.flush(10) == 0
    frail.kill()
    frail.start()
    producer.commit_transaction(60)
    source = read(stream, ends="now")
    items = polls(source, never, within_s=30.0)
    saved = {0: source.parts[0].snapshot()}
    frail.kill()
    frail.start()
    stream.connect().put(0, 9_000)

    again = polls(read(stream, saved, ends="now"), never, within_s=30.0)

    assert arrivals_of(items) == [(0, 0)]
    assert saved[0]["offset"] == 2
    assert saved[0]["read"][0] == 1
    assert arrivals_of(again) == [(2, 9 * SECOND)]


def test_offsets_that_compaction_removed_are_no_loss_and_the_topic_is_named(frail, read, caplog):
    stream = Topic(frail, 1, COMPACTED)
    stream.put(0, *range(6))
    saved = {0: {"offset": 2, "clock": NOON + 1_000, "partitions": 1, "ended": 0}}
    deadline_s = time.monotonic() + 60
    for ms in itertools.count(1_000, 1_000):
        # The last segment is never compacted, and a record that is late enough begins the next one.
        stream.put(0, ms, value=None)
        time.sleep(0.3)
        found = read(stream, ends="now")
        whole = arrivals_of(polls(found, never))
        if whole[0][0] >= 6:
            break
        assert time.monotonic() < deadline_s, whole

    with caplog.at_level(logging.WARNING, "unskew.kafka"):
        rest = polls(read(stream, saved, ends="now"), never)

    assert [offset for offset, _ in arrivals_of(rest)] == [offset for offset, _ in whole]
    assert {value for item in rest for value in item.values} == {None}
    assert f"the broker compacts {stream.name} (cleanup.policy)" in caplog.text
