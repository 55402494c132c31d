"""Records as columns are those that confluent_kafka gives as messages."""

import ctypes
import pickle
import random
import sys
import threading
import time
import uuid
from pathlib import Path

import confluent_kafka
import numpy as np
import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME, Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from hypothesis import given
from hypothesis import strategies as st

from unskew.features.errors import StoreUnavailable
from unskew.pipelines.kafka import librdkafka
from unskew.pipelines.kafka.blobs import Blobs
from unskew.pipelines.kafka.consumer import TopicReader
from unskew.pipelines.kafka.fetching import Fetcher
from unskew.pipelines.kafka.headers import Headers
from unskew.pipelines.kafka.watermarks import watermarks

N_PARTITIONS = 3
STAMP_MS = 1_600_000_000_000


def nobody(error):
    raise AssertionError(error)


@pytest.fixture
def config(broker):
    return {
        "bootstrap.servers": broker.bootstrap,
        "group.id": uuid.uuid4().hex,
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "auto.offset.reset": "error",
    }


@pytest.fixture
def fetcher(config):
    found = Fetcher(config, 100, nobody)
    yield found
    found.close()


@pytest.fixture
def topics(broker):
    names = [f"fetched-{uuid.uuid4().hex}" for _ in range(2)]
    for name in names:
        broker.create_topic(name, N_PARTITIONS)
    return names


def produce(broker, topics, n_records, seed=0):
    """Send records of every shape: without key, value, headers, with empty ones, with long ones."""
    draw = random.Random(seed)
    producer = Producer({"bootstrap.servers": broker.bootstrap, "message.max.bytes": 2_000_000})

    def octets(longest):
        return draw.choice([None, b"", draw.randbytes(draw.randrange(longest))])

    for number in range(n_records):
        names = [draw.choice(["", "a", "name", "Größe", "n" * 300]) for _ in range(draw.choice([0, 0, 1, 3]))]
        producer.produce(
            draw.choice(topics),
            octets(900_000 if number % 50 == 0 else 50),
            octets(20),
            partition=draw.randrange(N_PARTITIONS),
            headers=[(name, octets(9)) for name in names] or None,
            timestamp=STAMP_MS + number,
        )
    assert producer.flush(30) == 0


def by_messages(config, topics, n_records):
    consumer = Consumer(config)
    consumer.assign([TopicPartition(topic, partition, 0) for topic in topics for partition in range(N_PARTITIONS)])
    found = []
    until = time.monotonic() + 30
    while len(found) < n_records and time.monotonic() < until:
        for message in consumer.consume(100, 0.2):
            if message.error() is None:
                epoch = message.leader_epoch()
                found.append(
                    (
                        message.topic(),
                        message.partition(),
                        message.offset(),
                        *message.timestamp(),
                        -1 if epoch is None else epoch,
                        message.key(),
                        message.value(),
                        message.headers(),
                    )
                )
    consumer.close()
    return sorted(found, key=lambda each: each[:3])


def rows_of(fetcher, taken):
    names = map(fetcher.topic_of, taken.topics.tolist())
    numbers = (taken.partitions, taken.offsets, taken.kinds, taken.stamps_ms, taken.epochs)
    return list(zip(names, *(each.tolist() for each in numbers), taken.keys, taken.values, taken.headers, strict=True))


def by_columns(fetcher, n_records, n_ends, limit=100):
    found, ends = [], []
    until = time.monotonic() + 30
    while (len(found) < n_records or len(ends) < n_ends) and time.monotonic() < until:
        taken = fetcher.take(limit, 0.05)
        assert not taken.faults
        assert taken.n_messages <= limit
        found += rows_of(fetcher, taken)
        ends += taken.ends
    return sorted(found, key=lambda each: each[:3]), ends


@pytest.mark.parametrize("limit", [1, 7, 1_000])
def test_columns_hold_what_messages_hold(broker, config, fetcher, topics, limit):
    produce(broker, topics, 400, seed=limit)
    for topic in topics:
        for partition in range(N_PARTITIONS):
            fetcher.assign(topic, partition, 0)

    found, ends = by_columns(fetcher, 400, 2 * N_PARTITIONS, limit)

    expected = by_messages(config, topics, 400)
    assert len(expected) == 400
    assert {each[3] for each in expected} == {TIMESTAMP_CREATE_TIME}
    assert {type(each) for row in expected for each in row[6:]} == {bytes, list, type(None)}
    assert found == expected
    n_records = {(topic, partition): 0 for topic in topics for partition in range(N_PARTITIONS)}
    for topic, partition, *_ in expected:
        n_records[topic, partition] += 1
    assert {(topic, partition): offset for topic, partition, offset in ends} == n_records


def test_a_partition_that_is_paused_or_given_back_brings_nothing(broker, fetcher, topics):
    topic = topics[0]
    fetcher.assign(topic, 0, 0)
    fetcher.assign(topic, 1, 0)
    fetcher.pause(topic, 0)
    fetcher.unassign(topic, 1)
    produce(broker, [topic], 90)

    for _ in range(10):
        assert not len(fetcher.take(100, 0.05).offsets)
    fetcher.resume(topic, 0)
    until = time.monotonic() + 30
    while not len(taken := fetcher.take(100, 0.2).partitions) and time.monotonic() < until:
        pass

    assert set(taken.tolist()) == {0}


def test_positions_and_watermarks_are_those_of_the_broker(broker, fetcher, topics):
    topic = topics[0]
    produce(broker, [topic], 60)
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    low, high = watermarks(admin, [(topic, 2)], 10, {})[topic, 2]
    assert low == 0 < high
    assert fetcher.high(topic, 2) < 0
    fetcher.assign(topic, 2, 0)
    assert fetcher.position(topic, 2) < 0

    by_columns(fetcher, high, 1)

    assert (fetcher.position(topic, 2), fetcher.high(topic, 2)) == (high, high)


def test_an_offset_that_is_not_there_comes_as_a_fault(fetcher, topics):
    fetcher.assign(topics[0], 1, 17)

    faults = []
    until = time.monotonic() + 30
    while not faults and time.monotonic() < until:
        faults += fetcher.take(10, 0.1).faults

    (fault,) = faults
    assert fault.error.code() == KafkaError._AUTO_OFFSET_RESET
    assert "offset" in fault.error.str().lower()
    assert (fault.topic, fault.partition, fault.offset) == (topics[0], 1, 17)


def test_calls_that_fail_raise_what_the_library_says(fetcher, topics):
    with pytest.raises(KafkaException) as refused:
        fetcher.seek(topics[0], 0, 5, 0)
    assert refused.value.args[0].code() == KafkaError._UNKNOWN_PARTITION
    fetcher.assign(topics[0], 0, 0)
    with pytest.raises(KafkaException) as conflict:
        fetcher.assign(topics[0], 0, 0)
    assert conflict.value.args[0].code() == KafkaError._CONFLICT


def test_errors_that_are_not_about_a_partition_are_reported(config):
    found = []
    lost = Fetcher({**config, "bootstrap.servers": "127.0.0.1:1", "log_level": 0}, 10, found.append)

    until = time.monotonic() + 30
    while not found and time.monotonic() < until:
        lost.take(10, 0.1)
    lost.close()

    assert {error.code() for error in found} <= {KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN}
    assert "127.0.0.1:1" in found[0].str()


def test_a_setting_that_is_refused_is_named(config):
    with pytest.raises(KafkaException, match="no-such-setting"):
        Fetcher({**config, "no-such-setting": "1"}, 10, nobody)
    with pytest.raises(KafkaException, match=r"session\.timeout\.ms"):
        Fetcher({**config, "session.timeout.ms": 10, "max.poll.interval.ms": 5}, 10, nobody)


def test_a_closed_consumer_says_so_and_can_be_closed_again(config, topics):
    fetcher = Fetcher(config, 10, nobody)
    fetcher.assign(topics[0], 0, 0)
    fetcher.close()
    fetcher.close()

    for call in (
        lambda: fetcher.take(1),
        lambda: fetcher.assign(topics[0], 1, 0),
        lambda: fetcher.position(topics[0], 0),
        lambda: fetcher.high(topics[0], 0),
    ):
        with pytest.raises(RuntimeError, match="closed"):
            call()


def test_memory_does_not_grow_with_what_was_taken(broker, fetcher, topics):
    topic = topics[0]
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    for _ in range(100):
        producer.produce(topic, bytes(100_000), partition=0, headers=[("header", bytes(1_000))])
    assert producer.flush(30) == 0
    fetcher.assign(topic, 0, 0)

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    def again():
        fetcher.unassign(topic, 0)
        fetcher.assign(topic, 0, 0)
        assert len(by_columns(fetcher, 100, 1)[0]) == 100

    again()
    before = resident()
    for _ in range(20):
        again()

    # 20 times 10 MB were taken.
    assert resident() - before < 60_000_000


def test_long_records_are_taken_a_few_at_a_time(broker, fetcher, topics):
    """Other threads wait meanwhile."""
    topic = topics[0]
    producer = Producer({"bootstrap.servers": broker.bootstrap, "linger.ms": 200})
    fetcher.assign(topic, 0, 0)
    producer.produce(topic, bytes(100_000), partition=0)
    assert producer.flush(30) == 0
    by_columns(fetcher, 1, 1)
    for _ in range(100):
        producer.produce(topic, bytes(100_000), partition=0)
    assert producer.flush(30) == 0

    taken = []
    until = time.monotonic() + 30
    while sum(taken) < 100 and time.monotonic() < until:
        one = fetcher.take(1_000)
        assert one.all_there_was or len(one.offsets) > 1
        taken.append(len(one.offsets))

    assert sum(taken) == 100
    assert max(taken) <= 11


@pytest.fixture
def reader_of():
    opened = []

    def open_reader(broker, topic):
        opened.append(
            TopicReader(
                [topic],
                broker.bootstrap,
                "group",
                stop=threading.Event(),
                timeout_s=30,
                check_partitions_s=60,
                on_added=print,
                known=None,
                adopt_ids=False,
                config={},
            )
        )
        return opened[-1]

    yield open_reader
    for reader in opened:
        reader.close()


def test_a_part_of_what_was_taken_does_not_keep_the_memory_of_the_rest(broker, topics, reader_of):
    produce(broker, [topics[0]], 200)
    reader = reader_of(broker, topics[0])
    for partition in range(N_PARTITIONS):
        reader.add(partition, 0)
    together, n_records = [], 0
    until = time.monotonic() + 30
    while n_records < 200 and time.monotonic() < until:
        # All of them are there, so that they are taken together.
        time.sleep(0.5)
        pieces = [piece for _, piece in reader.consume(1_000).pieces]
        n_records += sum(map(len, pieces))
        together += pieces if len(pieces) > 1 else []

    def owned(array):
        while isinstance(array.base, np.ndarray):
            array = array.base
        return array.nbytes

    assert together
    for piece in together:
        for blobs in (piece.keys, piece.values, piece.headers.blobs):
            assert owned(blobs.data) == blobs.data.nbytes
            assert owned(blobs.sizes) == blobs.sizes.nbytes
        for numbers in (piece.offsets, piece.kinds, piece.stamps_ms):
            assert owned(numbers) == numbers.nbytes


def test_a_topic_that_no_broker_can_have_is_refused(fetcher):
    with pytest.raises(KafkaException) as refused:
        fetcher.assign("x" * 600, 0, 0)

    assert refused.value.args[0].code() == KafkaError._INVALID_ARG


def test_watermarks_that_a_broker_does_not_answer_are_an_error(own_broker):
    own_broker.create_topic("topic", 2)
    admin = AdminClient({"bootstrap.servers": own_broker.bootstrap})
    origins = [("topic", 0), ("topic", 1)]
    assert watermarks(admin, origins, 10, {}) == dict.fromkeys(origins, (0, 0))
    own_broker.pause()

    with pytest.raises(KafkaException) as late:
        watermarks(admin, origins, 1, {})

    own_broker.resume()
    assert late.value.args[0].code() == KafkaError._TIMED_OUT


@pytest.mark.parametrize("what", ["starts again", "hangs"])
def test_watermarks_are_asked_for_until_the_broker_answers(own_broker, reader_of, what):
    own_broker.create_topic("topic", 2)
    producer = Producer({"bootstrap.servers": own_broker.bootstrap})
    producer.produce("topic", b"value", partition=1)
    assert producer.flush(30) == 0
    reader = reader_of(own_broker, "topic")
    assert reader.watermarks([0, 1]) == {0: (0, 0), 1: (0, 1)}
    if what == "hangs":
        own_broker.pause()
        threading.Timer(3, own_broker.resume).start()
    else:
        own_broker.kill()
        own_broker.start()

    assert reader.watermarks([0, 1]) == {0: (0, 0), 1: (0, 1)}


def test_byte_strings_cannot_be_written_to_in_another_process_either():
    again = pickle.loads(pickle.dumps(Blobs.of([b"ab", None])))

    assert list(again) == [b"ab", None]
    assert not again.data.flags.writeable


HEADERS = st.lists(st.none() | st.lists(st.tuples(st.text(max_size=4), st.none() | st.binary(max_size=5)), max_size=3))


@given(HEADERS, st.data())
def test_headers_in_one_array_are_those_of_a_list(items, data):
    headers = Headers.of(items)
    edges = st.none() | st.integers(-5, 5)
    cut = data.draw(st.builds(slice, edges, edges))

    assert list(headers) == items
    assert list(headers[cut]) == items[cut]
    assert list(headers.at(np.arange(len(items))[::-1])) == items[::-1]
    assert list(Headers.joined([headers, Headers.none(2), headers])) == [*items, None, None, *items]
    for name in {"", "a", *(name for item in items for name, _ in item or ())}:
        assert list(headers.last(name)) == [dict(item or ()).get(name) for item in items]


def test_headers_with_a_name_that_is_not_text_are_not_known():
    (named,) = Headers.of([[("good", b"1"), ("ab", b"2")]]).blobs
    bad = named.replace(b"ab", b"\xc3(")

    headers = Headers(Blobs.of([named, bad]))
    assert list(headers) == [[("good", b"1"), ("ab", b"2")], None]
    assert list(headers.last("good")) == [b"1", None]


@pytest.mark.parametrize("path", ["no-such-library.so", "without functions"])
def test_without_the_library_s_functions_it_says_what_to_install(monkeypatch, path):
    if path == "without functions":
        path = sys.modules["_ctypes"].__file__
    monkeypatch.setattr(confluent_kafka.cimpl, "__file__", path)

    with pytest.raises(StoreUnavailable, match="install confluent-kafka from its wheel") as error:
        librdkafka.library.__wrapped__()
    assert str(path) in str(error.value)


def test_structures_are_as_long_as_the_header_of_the_library_says():
    pointer = ctypes.sizeof(ctypes.c_void_p)
    assert pointer == 8
    assert ctypes.sizeof(librdkafka.Message) == 9 * pointer
    assert ctypes.sizeof(librdkafka.Place) == 8 * pointer
