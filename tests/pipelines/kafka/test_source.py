"""Arrivals, clocks, alignment, ends, resuming and refusals of the Kafka source."""

import json
import threading
import time
from datetime import timedelta

import bytewax.operators as op
import numpy as np
import pytest
from bytewax.dataflow import Dataflow
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSink, run_main
from confluent_kafka import (
    TIMESTAMP_CREATE_TIME,
    TIMESTAMP_LOG_APPEND_TIME,
    TIMESTAMP_NOT_AVAILABLE,
    Producer,
)

from tests.support import plans
from tests.support.sources import (
    NOON,
    NOON_MS,
    SECOND,
    Present,
    Topic,
    arrivals_of,
    for_seconds,
    n_records,
    never,
    polls,
)
from unskew.demo.embedded import EmbeddedBroker
from unskew.features.errors import DefinitionError, LayoutError, StoreUnavailable
from unskew.pipelines.kafka.blobs import Blobs
from unskew.pipelines.kafka.consumer import Records
from unskew.pipelines.kafka.headers import Headers
from unskew.pipelines.kafka.host_clock import HostClock
from unskew.pipelines.kafka.stamps import check_topics
from unskew.pipelines.kafka.turns import Turns
from unskew.pipelines.state.known_topics import Described, KnownTopics
from unskew.sinks.wall import wall_us


def test_an_arrival_is_the_timestamp_or_the_arrival_before_if_that_is_later(topic, read):
    # timestamps  5 3 9 9 8 10
    # arrivals    5 5 9 9 9 10
    stream = topic()
    stream.put(0, 5, 3, 9, 9, 8, 10)
    source = read(stream, ends="now")

    items = polls(source, never)

    assert arrivals_of(items) == [(0, 5000), (1, 5000), (2, 9000), (3, 9000), (4, 9000), (5, 10000)]
    assert items[-1].clock_us == NOON + 10_000
    assert (source.counters.consumed, source.counters.bumped, source.counters.rejected) == (6, 2, 0)


@pytest.mark.parametrize("poll_records", [1, 2, 1_000])
def test_arrivals_do_not_depend_on_the_size_of_polls(topic, read, poll_records):
    stream = topic()
    stamps = [int(ms) for ms in np.random.default_rng(7).integers(0, 50, 40)]
    stream.put(0, *stamps)

    items = polls(read(stream, ends="now", poll_records=poll_records), never)

    expected = np.maximum.accumulate(stamps) * 1_000
    assert arrivals_of(items) == list(enumerate(expected.tolist()))
    assert max(len(item.offsets) for item in items) <= poll_records


def test_a_record_carries_its_key_and_value_and_a_tombstone_moves_the_clock(topic, read):
    stream = topic()
    stream.put(0, 1)
    stream.put(0, 2, value=None)

    items = polls(read(stream, ends="now"), never)

    assert [(key, value) for item in items for key, value in zip(item.keys, item.values, strict=True)] == [
        (b"key", b"value"),
        (b"key", None),
    ]
    assert items[-1].clock_us == NOON + 2_000


def test_a_producer_timestamp_past_the_present_is_rejected_and_moves_no_clock(topic, read):
    stream = topic()
    present = Present(NOON + 60 * SECOND)
    stream.put(0, 1_000, 65_001, 65_000, 2_000)
    source = read(stream, ends="now", present_us=present)

    items = polls(source, never)

    assert arrivals_of(items) == [(0, SECOND), (2, 65 * SECOND), (3, 65 * SECOND)]
    (rejected,) = [letter for item in items for letter in item.rejected]
    assert (rejected.offset, rejected.arrival, rejected.key, rejected.value) == (1, NOON + SECOND, b"key", b"value")
    assert rejected.reason == "record timestamp 2017-01-01T12:01:05.001000Z is past the present"
    assert (source.counters.consumed, source.counters.rejected) == (4, 1)


def test_the_broker_s_own_timestamps_are_not_measured_against_the_present(topic, read):
    source = read(topic(), present_us=Present(NOON))
    kinds = np.array([TIMESTAMP_LOG_APPEND_TIME, TIMESTAMP_CREATE_TIME])

    item = source.parts[0]._place(
        Records(
            np.arange(2),
            kinds,
            np.full(2, NOON_MS + 60_000),
            Blobs.of([None] * 2),
            Blobs.of([b""] * 2),
            Headers.none(2),
        )
    )

    assert item.offsets.tolist() == [0]
    assert [letter.offset for letter in item.rejected] == [1]


@pytest.mark.parametrize(
    ("kind", "stamp_ms", "reason"),
    [
        (TIMESTAMP_NOT_AVAILABLE, -1, "the record has no timestamp"),
        (TIMESTAMP_LOG_APPEND_TIME, 2**62, f"record timestamp {2**62} ms is outside 1900..2200"),
        (TIMESTAMP_LOG_APPEND_TIME, -(2**62), f"record timestamp {-(2**62)} ms is outside 1900..2200"),
    ],
)
def test_a_record_that_has_no_place_in_time_is_rejected(topic, read, kind, stamp_ms, reason):
    source = read(topic(), present_us=Present(NOON))

    item = source.parts[0]._place(
        Records(
            np.array([4]), np.array([kind]), np.array([stamp_ms]), Blobs.of([b"k"]), Blobs.of([b"v"]), Headers.none(1)
        )
    )

    assert [(letter.offset, letter.arrival, letter.reason) for letter in item.rejected] == [(4, NOON, reason)]
    assert item.clock_us is None
    assert len(item.offsets) == len(item.keys) == len(item.values) == 0


def test_a_source_opens_though_a_fetch_waits_longer_than_the_broker_is_waited_for(topic, read):
    """A broker answers the requests of a connection in turn, so that questions wait behind a fetch."""
    source = read(topic(partitions=8), config={"fetch.wait.max.ms": 60_000})

    assert sorted(source.parts) == list(range(8))


def test_a_partition_ends_before_its_end_offset_and_says_so_once(topic, read):
    stream = topic(3)
    stream.put(0, *range(10))
    stream.put(1, *range(10))

    items = polls(read(stream, ends={stream.name: {0: 4, 1: 10}}), never)

    assert [offset for offset, _ in arrivals_of(items, 0)] == [0, 1, 2, 3]
    assert len(arrivals_of(items, 1)) == 10
    assert sorted(item.partition for item in items if item.ended) == [0, 1, 2]
    assert {item.partition: item.clock_us for item in items if item.ended} == {
        0: NOON + 3_000,
        1: NOON + 9_000,
        2: None,
    }
    for partition in range(3):
        assert [item.ended for item in items if item.partition == partition][-1]


def test_now_ends_at_the_high_watermark_at_start(topic, read):
    stream = topic()
    stream.put(0, 1, 2, 3)
    source = read(stream, ends="now")
    stream.put(0, 4)

    assert [offset for offset, _ in arrivals_of(polls(source, never))] == [0, 1, 2]


def test_a_stopped_source_ends_without_having_reached_its_end(topic, read):
    stream = topic()
    stream.put(0, 1)
    stop = threading.Event()
    source = read(stream, stop=stop)
    items = polls(source, n_records(1))
    stop.set()

    with pytest.raises(StopIteration):
        source.parts[0].next_batch()
    assert not any(item.ended for item in items)
    saved = {"offset": 1, "clock": NOON + 1_000, "said": 1, "partitions": 1, "ended": 0, "origin": f"{stream.name}/0"}
    saved["read"] = (1, 0)  # the offset after the last record, and its leader epoch
    assert source.parts[0].snapshot() == saved


def test_an_aligned_partition_gives_records_only_while_its_clock_is_the_least(topic, read):
    stream = topic(3)
    stream.put(0, *range(0, 3_000, 3))
    stream.put(1, *range(0, 300_000, 300))
    stream.put(2, *range(100_000, 101_000))
    items = polls(read(stream, ends="now", poll_records=10, queued_polls=2), never)

    clocks = dict.fromkeys(range(3), -1)
    for item in items:
        if len(item.offsets):
            assert clocks[item.partition] == min(clocks.values())
        clocks[item.partition] = 2**62 if item.ended else item.clock_us or -1
    assert [len(arrivals_of(items, partition)) for partition in range(3)] == [1_000, 1_000, 1_000]


def test_a_partition_that_waits_holds_a_bounded_queue(topic, read):
    stream = topic(2)
    stream.put(0, *range(300))
    source = read(stream, poll_records=10, queued_polls=3)
    items = polls(source, for_seconds(0.6))

    # Partition 1 has had no record, so partition 0 may give one poll and then waits for it.
    assert sum(len(item.offsets) for item in items) <= 10
    assert [len(queued) for queued in source.parts[0]._queue] == [10, 10, 10]
    stream.put(1, 6_000)
    items += polls(source, n_records(301 - len(arrivals_of(items))))
    assert [offset for offset, _ in arrivals_of(items)] == list(range(300))


def test_an_unaligned_partition_waits_for_none(topic, read):
    stream = topic(2)
    stream.put(0, *range(100))

    assert len(arrivals_of(polls(read(stream, aligned=False, poll_records=10), n_records(100)))) == 100


def test_a_caught_up_partition_announces_the_present_less_settle(topic, read):
    stream = topic(2)
    present = Present(NOON + 10 * SECOND)
    stream.put(0, 1_000)
    source = read(stream, idle="wall", settle_us=2 * SECOND, present_us=present, mark_s=0.0)

    items = polls(source, lambda items: {item.clock_us for item in items[-2:]} == {NOON + 8 * SECOND})
    assert not items[-1].offsets.size
    present.us += 5 * SECOND
    polls(source, lambda items: {item.clock_us for item in items[-2:]} == {NOON + 13 * SECOND})
    # A wall clock that is set back takes no announcement back.
    present.us -= 60 * SECOND
    assert {item.clock_us for item in polls(source, for_seconds(0.5))} == {NOON + 13 * SECOND}


def test_an_idle_partition_holds_up_a_busy_one_no_longer_than_it_must(topic, read):
    # Partition 1 has announced the present less two seconds; partition 0 brings records up to the present.
    stream = topic(2)
    present = Present(NOON + 10 * SECOND)
    source = read(stream, idle="wall", settle_us=2 * SECOND, present_us=present, mark_s=0.0)
    polls(source, lambda items: {item.clock_us for item in items[-2:]} == {NOON + 8 * SECOND})

    for ms in (9_000, 9_500, 10_000):
        stream.put(0, ms)
        assert arrivals_of(polls(source, n_records(1)))[0][1] == ms * 1_000
    # Four seconds ahead is too far.
    present.us += 2 * SECOND
    source.parts[1].clock_us = NOON + 5 * SECOND
    source.parts[1]._idle_wall = False
    stream.put(0, 11_000)
    assert arrivals_of(polls(source, for_seconds(0.4))) == []


class Quiet:
    """Partitions whose marks come as a steady clock is moved; ``marks`` is what it reads, in units of ``mark_s``.

    At the beginning, all have just given the mark of a quiet partition.
    """

    def __init__(self, topic, read, *, aligned, n_partitions=2) -> None:
        self.all = list(range(n_partitions))
        self.stream = topic(n_partitions)
        self.present = Present(NOON + 10 * SECOND)
        self.marks = 0.0
        self.source = read(
            self.stream,
            idle="wall",
            settle_us=0,
            present_us=self.present,
            aligned=aligned,
            mark_s=100.0,
            heartbeat_s=1e9,
            monotonic=lambda: 100.0 * self.marks,
        )
        polls(self.source, self._has_begun)
        self.present.us += SECOND
        self.marks = 4 * (self.marks // 4 + 1) - 0.1
        self.until_asked(*self.all)
        self.marks += 0.11
        assert self.until_marked(*self.all) == self.all

    def _has_begun(self, items):
        self.marks += 0.3
        return {item.partition for item in items if item.clock_us == self.present.us} == {*self.all}

    def until_asked(self, *partitions):
        """The broker knows of nothing past the positions: the next try for a mark gives the present."""
        ends = self.source.parts[0]._reader.topic._ends
        polls(self.source, lambda _: all(n in ends and ends[n].as_of_us == self.present.us for n in partitions))

    def until_marked(self, *partitions):
        """The partitions that gave an item until all of these gave the present as mark, in order."""

        def are_marked(items):
            return {item.partition for item in items if item.clock_us == self.present.us} >= set(partitions)

        return sorted(item.partition for item in polls(self.source, are_marked))


def test_a_mark_that_nothing_waits_for_comes_four_times_more_seldom(topic, read):
    quiet = Quiet(topic, read, aligned=False)
    for _ in range(3):
        quiet.present.us += SECOND
        for _ in range(3):
            quiet.marks += 1
            assert polls(quiet.source, for_seconds(0.1)) == []
        # A little before the mark is due, the broker is asked.
        quiet.marks += 0.9
        quiet.until_asked(0, 1)
        quiet.marks += 0.1
        assert quiet.until_marked(0, 1) == [0, 1]


def test_a_mark_that_nothing_waits_for_comes_as_seldom_as_many_quiet_partitions_need(topic, read):
    quiet = Quiet(topic, read, aligned=False)
    # In place of four times a mark's pause.
    quiet.source.options.turns.quiet_s = 800.0
    for _ in range(2):
        quiet.present.us += SECOND
        quiet.marks = 8 * (quiet.marks // 8 + 1) - 0.3
        assert polls(quiet.source, for_seconds(0.1)) == []
        quiet.marks += 0.2
        quiet.until_asked(0, 1)
        quiet.marks += 0.11
        assert quiet.until_marked(0, 1) == [0, 1]


@pytest.mark.parametrize("n_partitions", [1, 2, 5])
@pytest.mark.parametrize("quiet_s", [0.0, 8_000.0])
@pytest.mark.parametrize("aligned", [True, False])
def test_a_mark_that_closes_an_instant_or_lets_events_be_applied_comes_soon(
    topic, read, aligned, quiet_s, n_partitions
):
    quiet = Quiet(topic, read, aligned=aligned, n_partitions=n_partitions)
    quiet.source.options.turns.quiet_s = quiet_s
    # All find that nothing is to be done for long.
    assert polls(quiet.source, for_seconds(0.1)) == []
    quiet.present.us += SECOND
    quiet.stream.put(0, 12_000)
    polls(quiet.source, n_records(1))
    # Only in a stream whose shards read all partitions does an event wait for the others.
    waited_for = quiet.all if aligned else [0]

    quiet.present.us += SECOND
    quiet.marks += 1
    quiet.until_asked(*waited_for)
    # Where the first try came before the answer, another one; the next mark of a quiet partition is not due yet.
    quiet.marks += 1
    assert quiet.until_marked(*waited_for) == waited_for


def test_a_record_ends_a_rest(topic, read):
    stream = topic()
    # A rest would last until long after ``polls`` has given up.
    turns = Turns(longest_s=90.0)
    source = read(stream, idle="wall", settle_us=SECOND, turns=turns, heartbeat_s=1e9, mark_s=1e9)
    polls(source, lambda items: items)
    resting = threading.Event()
    turns.before_rest = resting.set

    def put() -> None:
        if resting.wait(60):
            stream.put(0, 1)

    putting = threading.Thread(target=put)
    putting.start()
    assert arrivals_of(polls(source, n_records(1)))
    putting.join()


def test_a_record_older_than_an_announced_mark_arrives_at_the_mark(topic, read):
    stream = topic()
    source = read(stream, idle="wall", settle_us=SECOND, present_us=Present(NOON + 10 * SECOND), mark_s=0.0)
    polls(source, lambda items: items and items[-1].clock_us == NOON + 9 * SECOND)
    stream.put(0, 8_000, 9_500)

    assert arrivals_of(polls(source, n_records(2))) == [(0, 9 * SECOND), (1, 9_500_000)]
    assert source.counters.bumped == 1


def test_a_partition_that_is_behind_announces_nothing(topic, read):
    stream = topic(2)
    stream.put(0, *range(50))
    present = Present(NOON + 10 * SECOND)
    source = read(stream, idle="wall", settle_us=SECOND, present_us=present, poll_records=1, mark_s=0.0)

    items = polls(source, n_records(50))

    assert [arrival for _, arrival in arrivals_of(items)] == [ms * 1_000 for ms in range(50)]
    assert source.counters.bumped == 0


def test_a_replay_announces_nothing(topic, read):
    stream = topic()
    stream.put(0, 1)
    items = polls(read(stream, idle="none"), for_seconds(0.6))

    assert {item.clock_us for item in items} - {None} == {NOON + 1_000}


def test_an_idle_partition_gives_an_item_at_every_heartbeat(topic, read):
    items = polls(read(topic(2), heartbeat_s=0.05), for_seconds(0.6))

    for partition in range(2):
        assert 5 <= sum(item.partition == partition for item in items) <= 14


def test_nothing_is_announced_while_the_broker_is_lost(read):
    with EmbeddedBroker() as broker:
        stream = Topic(broker, 1)
        present = Present(NOON + 10 * SECOND)
        source = read(stream, idle="wall", settle_us=SECOND, present_us=present, mark_s=0.0, heartbeat_s=0.05)
        polls(source, lambda items: items and items[-1].clock_us == NOON + 9 * SECOND)
        broker.stop()
        present.us += 5 * SECOND
        assert {item.clock_us for item in polls(source, for_seconds(0.5))} == {NOON + 9 * SECOND}


def test_resuming_at_any_snapshot_gives_the_rest_of_the_same_arrivals(topic, read):
    stream = topic(2)
    rng = np.random.default_rng(3)
    for partition in range(2):
        stream.put(partition, *(int(ms) for ms in rng.integers(0, 100, 30)))
    whole = polls(read(stream, ends="now"), never)

    source = read(stream, ends="now", poll_records=7)
    cuts = [({}, [])]
    items = []
    while True:
        try:
            for part in source.parts.values():
                items += part.next_batch()
        except StopIteration:
            break
        cuts.append(({number: part.snapshot() for number, part in source.parts.items()}, list(items)))
    distinct = {str(states): (states, before) for states, before in cuts}
    assert len(distinct) > 5
    for states, before in distinct.values():
        after = polls(read(stream, states, ends="now"), never)
        for partition in range(2):
            assert arrivals_of(before + after, partition) == arrivals_of(whole, partition)


def test_a_start_at_the_latest_skips_what_is_there_but_not_what_was_saved(topic, read):
    stream = topic()
    stream.put(0, 1, 2, 3)
    source = read(stream, start="latest")
    stream.put(0, 4)

    assert arrivals_of(polls(source, n_records(1))) == [(3, 4_000)]
    saved = {0: {"offset": 1, "clock": NOON + 1_000, "partitions": 1, "ended": 0}}
    assert len(arrivals_of(polls(read(stream, saved, start="latest"), n_records(3)))) == 3


def test_the_group_is_told_an_offset_only_once_the_snapshot_after_it_is_taken(topic, read):
    stream = topic()
    source = read(stream, group="lag-tools")
    part = source.parts[0]
    for after in (2, 4, 6):
        stream.put(0, 1, 2)
        polls(source, lambda _items, after=after: part._position == after)
        part.snapshot()
    deadline = time.monotonic() + 60
    while stream.committed("lag-tools", 0) != 4:
        part.next_batch()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_lag_is_what_lies_between_position_and_the_end(topic, read):
    stream = topic(2)
    stream.put(0, *range(20))
    source = read(stream, poll_records=5, aligned=True)
    polls(source, n_records(5))
    assert source.counters.lag == 15
    stream.put(1, 100)
    polls(source, n_records(16))
    assert source.counters.lag == 0


@pytest.mark.needs_broker("topic ids")
def test_offsets_of_aborted_records_and_of_markers_are_neither_losses_nor_lag(topic, read):
    stream, present = topic(), Present(NOON + 60 * SECOND)
    producer = Producer({"bootstrap.servers": stream.bootstrap, "transactional.id": stream.name, "log_level": 0})
    producer.init_transactions(30)

    def begin(*after_noon_ms):
        producer.begin_transaction()
        for ms in after_noon_ms:
            producer.produce(stream.name, b"value", partition=0, timestamp=NOON_MS + ms)
        assert producer.flush(10) == 0

    # offsets 0 1 and a marker, 3 4 5 and a marker: the partition ends at 7.
    begin(1_000, 2_000)
    producer.commit_transaction(30)
    begin(3_000, 4_000, 5_000)
    producer.abort_transaction(30)
    whole = read(stream, ends="now")
    assert arrivals_of(polls(whole, never)) == [(0, SECOND), (1, 2 * SECOND)]
    saved = {0: whole.parts[0].snapshot()}
    assert saved[0]["offset"] == 7

    source = read(stream, saved, idle="wall", settle_us=SECOND, present_us=present, mark_s=0.0)
    polls(source, lambda items: items and items[-1].clock_us == NOON + 59 * SECOND)
    # Records that may still be committed hold the clock back.
    begin(59_500)
    present.us += 60 * SECOND
    assert max(item.clock_us for item in polls(source, for_seconds(1))) == NOON + 59 * SECOND
    producer.commit_transaction(30)
    items = polls(source, lambda items: items and items[-1].clock_us == NOON + 119 * SECOND)
    assert arrivals_of(items) == [(7, 59 * SECOND + 500_000)]
    assert (source.counters.lag, source.counters.bumped) == (0, 0)


def test_records_that_were_read_under_a_leader_epoch_that_the_log_lacks_are_named_as_lost(topic, read):
    """Another record may be at the same offset, so only the epoch tells."""
    stream = topic()
    stream.put(0, *range(5))
    source = read(stream)
    polls(source, n_records(5))
    saved = source.parts[0].snapshot()
    offset, epoch = saved["read"]
    stream.put(0, *range(5, 9))
    assert len(arrivals_of(polls(read(stream, {0: saved}), n_records(4)))) == 4

    with pytest.raises(LayoutError, match=r"/0: records that were already counted are gone .* --adopt-topic-ids"):
        polls(read(stream, {0: {**saved, "read": (offset, epoch + 7)}}), n_records(4))
    # What was mirrored has epochs of another cluster.
    mirrored = read(stream, {0: {**saved, "read": (offset, epoch + 7)}}, adopt_ids=True)
    assert len(arrivals_of(polls(mirrored, n_records(4)))) == 4


SAVED = {0: {"offset": 1, "clock": NOON, "partitions": 1, "ended": 0}}
GONE = r"source-\d+/0: offsets 1 to \d+ are gone .* retention"


def test_saved_offsets_that_the_mock_forgot_are_named(mock_broker, read):
    stream = Topic(mock_broker, 1)
    stream.put(0, *range(6), value=bytes(900_000))
    stream.put(0, *range(6), value=bytes(900_000))

    with pytest.raises(LayoutError, match=GONE):
        read(stream, SAVED)


def test_offsets_that_the_mock_forgets_while_they_are_read_are_named(mock_broker, read):
    stream = Topic(mock_broker, 1)
    source = read(stream)
    stream.put(0, *range(12), value=bytes(900_000))

    with pytest.raises(LayoutError, match=r"offsets \d+ to \d+ are gone"):
        polls(source, never)


@pytest.mark.needs_broker("deleted records")
def test_saved_offsets_that_retention_took_are_named(topic, read, broker):
    stream = topic()
    stream.put(0, *range(10))
    broker.delete_records(stream.name, 0, 7)

    with pytest.raises(LayoutError, match=GONE):
        read(stream, SAVED)


@pytest.mark.needs_broker("deleted records")
def test_offsets_that_vanish_while_reading_are_named(topic, read, broker):
    stream = topic(2)
    stream.put(0, *range(100))
    source = read(stream, poll_records=5)
    # The other partition has no clock yet, so this one fills its queue and is paused.
    polls(source, lambda _items: source.parts[0]._paused)
    broker.delete_records(stream.name, 0, 90)
    stream.put(1, 200)

    with pytest.raises(LayoutError, match=r"offsets \d+ to 89 are gone"):
        polls(source, never)


def test_a_position_past_the_end_is_refused(topic, read):
    saved = {0: {"offset": 9, "clock": NOON, "partitions": 1, "ended": 0}}

    with pytest.raises(LayoutError, match="saved position 9 is past the topic's end 0"):
        read(topic(), saved)


BY_PARTITION = {"by_partition": ["spend"]}
ADDED = "has 3 partitions, but had 2 .* and spend relies on partitioned_by.*Kafka cannot take partitions away"


def test_another_number_of_partitions_is_refused_where_a_view_counts_by_partition(topic, read):
    saved = {0: {"offset": 0, "clock": NOON, "partitions": 2, "ended": 0}}

    with pytest.raises(LayoutError, match=ADDED):
        read(topic(3), saved, **BY_PARTITION)


def test_partitions_added_while_running_stop_the_flow_where_a_view_counts_by_partition(topic, read):
    # The embedded broker cannot add partitions to a topic, so the reader is told it had fewer.
    source = read(topic(3), check_partitions_s=0.0, **BY_PARTITION)
    source.parts[0]._reader.topic.n_partitions = 2

    with pytest.raises(LayoutError, match=ADDED):
        polls(source, never)


@pytest.mark.parametrize("start", ["earliest", "latest"])
def test_a_partition_that_was_added_is_read_from_its_beginning_after_what_the_others_had_reached(topic, read, start):
    # Partition 0 had reached 2 s, partition 1 had reached 5 s; partition 2 is new.
    stream = topic(3)
    stream.put(0, 1_000, 2_000)
    stream.put(2, 1_500, 9_000)
    saved = {
        0: {"offset": 2, "clock": NOON + 2 * SECOND, "partitions": 2, "ended": 0},
        1: {"offset": 0, "clock": NOON + 5 * SECOND, "partitions": 2, "ended": 0},
    }

    items = polls(read(stream, saved, start=start, ends="now"), never)

    assert arrivals_of(items, 2) == [(0, 5 * SECOND + 1), (1, 9 * SECOND)]


def test_partitions_that_are_added_before_any_record_was_read_bump_nothing(topic, read):
    stream = topic(2)
    stream.put(1, 1_000)
    saved = {0: {"offset": 0, "clock": None, "partitions": 1, "ended": 0}}

    assert arrivals_of(polls(read(stream, saved, ends="now"), never), 1) == [(0, SECOND)]


@pytest.mark.parametrize(
    ("known", "found", "fault"),
    [
        ({"a": ("x", 2)}, {"a": ("x", 2)}, None),
        ({"a": ("x", 2)}, {"a": ("y", 2)}, "Topic 'a' has the id y, but had x .* --adopt-topic-ids"),
        ({"a": ("x", 2)}, {"a": ("y", 1)}, "Topic 'a' has the id y"),
        ({"a": ("x", 2)}, {"a": (None, 2)}, None),
        ({"a": (None, 2)}, {"a": ("x", 2)}, None),
        ({"a": (None, 2)}, {"a": (None, 1)}, "Topic 'a' has 1 partitions, but had 2"),
        ({"a": ("x", 2)}, {"a": ("x", 3)}, None),
        ({"a": ("x", 1), "b": ("y", 1)}, {"a": ("x", 1)}, "topic 'b' was read before and is not among the topics now"),
        ({"a": ("x", 1)}, {"a": ("x", 1), "b": ("y", 1)}, None),
        ({"b": ("y", 1)}, {"a": ("x", 2), "b": ("y", 2)}, None),
    ],
)
def test_topics_are_the_ones_known_or_the_error_says_what_happened(known, found, fault):
    known, found = (
        {topic: Described(id_, n_partitions) for topic, (id_, n_partitions) in one.items()} for one in (known, found)
    )
    before = KnownTopics.from_json(json.loads(json.dumps(KnownTopics.of(known).to_json())))
    if fault is not None:
        with pytest.raises(LayoutError, match=fault):
            before.check("The topics", found)
        return
    before.check("The topics", found)
    after = KnownTopics.of(found, before)

    # A number stays with its partition, and an id that is not told is the one that was known.
    n_before = len(before.partitions)
    assert after.partitions[:n_before] == before.partitions
    expected = [(topic, number) for topic, one in found.items() for number in range(one.n_partitions)]
    assert sorted(after.partitions) == sorted(expected)
    assert after.ids == {topic: one.id or known[topic].id for topic, one in found.items()}


def test_a_live_topic_on_producer_timestamps_needs_a_settle(topic, read):
    stream = topic()
    stream.put(0, 1)

    with pytest.raises(DefinitionError, match="declare `settle` on stream 'stream'"):
        polls(read(stream, idle="wall"), never)


@pytest.mark.needs_broker("log append time")
def test_a_live_topic_that_needs_a_settle_is_refused_before_its_first_record(topic, read):
    with pytest.raises(DefinitionError, match="declare `settle` on stream 'stream'"):
        read(topic(), idle="wall", build=False).list_parts()


@pytest.mark.needs_broker("log append time")
def test_a_live_topic_with_the_broker_s_timestamps_needs_no_settle_and_a_max_ahead_there_is_warned_of(
    read, broker, caplog
):
    stream = Topic(broker, 1, {"message.timestamp.type": "LogAppendTime"})
    stream.put(0, 1)

    assert arrivals_of(polls(read(stream, idle="wall", present_us=wall_us), n_records(1)))
    assert not caplog.records
    read(stream, idle="wall", present_us=wall_us, max_ahead_us=30 * SECOND)
    assert f"max_ahead has no effect on the records of {stream.name}, because the broker stamps them" in caplog.text
    caplog.clear()
    read(Topic(broker, 1), ends="now", present_us=wall_us, max_ahead_us=30 * SECOND)
    assert not caplog.records


def test_a_broker_that_does_not_say_who_stamps_records_is_passed_over_with_a_line(topic, caplog):
    # The embedded broker has no such answer; a real one gives none for a topic that it does not have.
    check_topics(plans.stream(), ["absent"], topic().bootstrap, {}, 5.0, live=True)

    assert "the broker does not say who stamps the records of absent" in caplog.text


def test_a_clock_ahead_of_the_present_is_named_at_the_start_and_while_it_lasts(topic, read, caplog):
    stream = topic()
    present = Present(NOON)
    saved = {"offset": 0, "clock": NOON + 3_600 * SECOND, "partitions": 1, "ended": 0}
    source = read(stream, {0: saved}, present_us=present, idle="wall", settle_us=SECOND)

    assert f"{stream.name}/0: its clock, 2017-01-01T13:00:00Z, is 3600.0 s ahead of this host's" in caplog.text
    assert len(source.faults(NOON)) == 1
    assert source.faults(NOON + 3_596 * SECOND) == []


def test_marks_stay_with_the_earlier_clock_and_records_are_refused_only_by_the_later(topic, read):
    # The wall clock goes ahead by an hour. Marks lead on; a record of half an hour ahead is not refused.
    stream = topic()
    wall, steady = Present(NOON), Present(0)
    source = read(stream, clock=HostClock(wall, steady), idle="wall", settle_us=SECOND, mark_s=0.0, heartbeat_s=1_000.0)
    wall.us, steady.us = NOON + 3_610 * SECOND, 10 * SECOND
    assert polls(source, lambda items: items and items[-1].clock_us)[-1].clock_us == NOON + 9 * SECOND

    stream.put(0, 1_800_000)

    assert arrivals_of(polls(source, n_records(1))) == [(0, 1_800 * SECOND)]


def test_max_ahead_is_how_far_past_the_present_a_producer_s_timestamp_may_lie(topic, read):
    stream = topic()
    stream.put(0, 29_000, 31_000)
    source = read(stream, ends="now", present_us=Present(NOON), max_ahead_us=30 * SECOND)

    assert arrivals_of(polls(source, never)) == [(0, 29 * SECOND)]
    assert (source.counters.rejected, source.n_ahead) == (1, 1)


def test_a_broker_that_does_not_answer_is_named(topic, read):
    stream = topic()
    stream.bootstrap = "127.0.0.1:1"

    with pytest.raises(StoreUnavailable, match=r"Kafka at 127\.0\.0\.1:1 did not answer within 0\.5 s"):
        read(stream, timeout_s=0.5)


def test_a_topic_that_is_not_there_is_named_and_not_created(topic, read):
    stream = topic()
    stream.name = "nowhere"

    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="Topic 'nowhere' is not on the broker"):
            read(stream)


def test_a_process_reads_only_the_partitions_it_is_given(topic, read):
    stream = topic(4)

    assert sorted(read(stream, partitions=[1, 3]).parts) == [1, 3]
    with pytest.raises(LayoutError, match="has 4 partitions, but not 4"):
        read(stream, partitions=[3, 4])


def flow(source, sink):
    dataflow = Dataflow("flow")
    op.output("out", op.input("in", dataflow, source), sink)
    return dataflow


def test_bytewax_reads_a_topic_to_its_end(topic, read):
    stream = topic(3)
    for partition in range(3):
        stream.put(partition, *range(500))
    items = []

    run_main(flow(read(stream, ends="now", poll_records=50, build=False), TestingSink(items)))

    for partition in range(3):
        assert arrivals_of(items, partition) == [(ms, ms * 1_000) for ms in range(500)]
        assert [item.ended for item in items if item.partition == partition].count(True) == 1


def test_bytewax_stops_and_resumes_without_losing_or_repeating_a_record(topic, read, tmp_path):
    stream = topic(2)
    for partition in range(2):
        stream.put(partition, *range(300))
    init_db_dir(tmp_path, 1)
    items = []

    for wanted in (40, 150, 10_000):
        stop = threading.Event()
        source = read(stream, ends="now", poll_records=10, stop=stop, build=False)
        before = len(items)

        class Sink(TestingSink):
            def build(self, *args, before=before, wanted=wanted, stop=stop):
                part = super().build(*args)
                write = part.write_batch

                def write_and_stop(batch):
                    write(batch)
                    if sum(len(item.offsets) for item in items[before:]) >= wanted:
                        stop.set()

                part.write_batch = write_and_stop
                return part

        run_main(
            flow(source, Sink(items)),
            epoch_interval=timedelta(milliseconds=5),
            recovery_config=RecoveryConfig(str(tmp_path)),
        )

    for partition in range(2):
        assert arrivals_of(items, partition) == [(ms, ms * 1_000) for ms in range(300)]
