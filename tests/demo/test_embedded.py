"""The embedded servers are real ones on loopback, and none outlives its owner."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis
from confluent_kafka import Consumer, Producer, TopicPartition

from unskew.demo import embedded
from unskew.demo.embedded import EmbeddedBroker, EmbeddedRedis
from unskew.features.errors import StoreUnavailable

OWNER = """
import sys, time
from unskew.demo.embedded import EmbeddedRedis
server = EmbeddedRedis().start()
print(server.port, flush=True)
time.sleep(60)
"""


def _wait_until_refused(port, within_s=60.0):
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return True
        time.sleep(0.02)
    return False


def _produce(broker, topic, values, partition=0, **config):
    producer = Producer(
        {"bootstrap.servers": broker.bootstrap, "enable.idempotence": True, "log_level": 2, "linger.ms": 5, **config}
    )
    for number, value in enumerate(values):
        producer.produce(topic, value, partition=partition, timestamp=1_483_228_800_000 + number)
    assert producer.flush(60) == 0


def _watermarks(broker, topic, partition=0):
    consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "watcher", "log_level": 2})
    try:
        return consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=5)
    finally:
        consumer.close()


def test_topics_have_the_partitions_they_were_given():
    with EmbeddedBroker({"transactions": 2}) as broker:
        broker.create_topic("page_views", 7)
        consumer = Consumer({"bootstrap.servers": broker.bootstrap, "group.id": "watcher", "log_level": 2})
        topics = consumer.list_topics(timeout=5).topics
        consumer.close()

        assert broker.bootstrap.startswith("127.0.0.1:")
        assert {name: len(topic.partitions) for name, topic in topics.items()} == {"transactions": 2, "page_views": 7}


def test_a_topic_is_created_once(mock_broker):
    mock_broker.create_topic("once", 1)

    with pytest.raises(ValueError, match="'once' is already there"):
        mock_broker.create_topic("once", 1)


def test_a_stopped_broker_can_be_started_again_and_is_empty():
    broker = EmbeddedBroker({"topic": 1})
    with broker:
        _produce(broker, "topic", [b"value"])
        assert _watermarks(broker, "topic") == (0, 1)
    with broker:
        assert _watermarks(broker, "topic") == (0, 0)


def test_a_broker_that_does_not_answer_is_an_error_and_stops(monkeypatch):
    hanging = threading.Event()
    with EmbeddedBroker() as broker:
        monkeypatch.setattr(embedded, "ANSWERS_WITHIN_S", 0.1)
        library, cluster, handle = broker._library, broker._cluster, broker._handle
        broker._library = SimpleNamespace(rd_kafka_mock_topic_create=lambda *_arguments: hanging.wait())

        with pytest.raises(StoreUnavailable, match=r"did not answer within 0.1 s; start again"):
            broker.create_topic("topic", 1)

    hanging.set()
    library.rd_kafka_mock_cluster_destroy(cluster)
    library.rd_kafka_destroy(handle)


def test_a_start_that_is_not_answered_is_tried_again(monkeypatch):
    monkeypatch.setattr(embedded, "STARTS_WITHIN_S", 0.5)
    hanging = threading.Event()
    broker = EmbeddedBroker({"topic": 1})
    answer = broker._library.rd_kafka_mock_broker_set_up
    asked = []

    def set_up(*arguments):
        asked.append(arguments)
        if len(asked) > 1:
            return answer(*arguments)
        # The next start may take its time.
        monkeypatch.setattr(embedded, "STARTS_WITHIN_S", 60.0)
        return hanging.wait()

    monkeypatch.setattr(broker._library, "rd_kafka_mock_broker_set_up", set_up)
    with broker:
        _produce(broker, "topic", [b"value"])
        assert _watermarks(broker, "topic") == (0, 1)

    assert len(asked) == 2
    hanging.set()


@pytest.mark.skipif(sys.platform != "linux", reason="threads are listed in /proc")
def test_signals_to_its_threads_do_not_end_the_broker(monkeypatch):
    monkeypatch.setattr(embedded, "ANSWERS_WITHIN_S", 5.0)
    handled = []
    before = signal.signal(signal.SIGUSR2, lambda *_: handled.append(1))
    try:
        with EmbeddedBroker() as broker:
            time.sleep(0.1)  # Its threads wait for something by then.
            for thread in Path("/proc/self/task").iterdir():
                if (thread / "comm").read_text().startswith("rdk:"):
                    ctypes.CDLL(None).tgkill(os.getpid(), int(thread.name), int(signal.SIGUSR2))
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(0.1)
            broker.create_topic("topic", 1)
            _produce(broker, "topic", [b"value"])
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert handled


def test_a_partition_keeps_its_newest_five_mebibytes_as_sent(mock_broker):
    mock_broker.create_topic("plain", 1)
    mock_broker.create_topic("compressed", 1)
    values = [bytes(1_000)] * 8_000

    _produce(mock_broker, "plain", values)
    _produce(mock_broker, "compressed", values, **{"compression.type": "zstd"})

    low, high = _watermarks(mock_broker, "plain")
    assert high == 8_000
    assert 4_000 < high - low < 5_243
    assert _watermarks(mock_broker, "compressed") == (0, 8_000)


def test_what_is_sent_while_the_broker_is_held_is_there_in_order_once_it_is_released(mock_broker):
    mock_broker.create_topic("held", 1)
    mock_broker.hold()
    values = [b"%05d" % number for number in range(5_000)]
    sending = threading.Thread(target=_produce, args=(mock_broker, "held", values))
    sending.start()
    sending.join(1.0)
    assert _watermarks(mock_broker, "held") == (0, 0)

    mock_broker.release()
    sending.join(60.0)

    assert _watermarks(mock_broker, "held") == (0, 5_000)
    consumer = Consumer({"bootstrap.servers": mock_broker.bootstrap, "group.id": "held"})
    consumer.assign([TopicPartition("held", 0, 0)])
    found = []
    while len(found) < 5_000:
        messages = consumer.consume(5_000, 10.0)
        assert messages
        found += [message.value() for message in messages]
    consumer.close()
    assert found == values


def test_redis_answers_and_is_gone_after_its_block():
    with EmbeddedRedis() as server:
        client = redis.Redis.from_url(server.url)
        client.set("key", "value")
        assert client.get("key") == b"value"
        assert client.config_get("save") == {"save": ""}
        assert client.config_get("bind") == {"bind": "127.0.0.1"}
        client.close()

    assert _wait_until_refused(server.port, within_s=1.0)


def test_two_redis_servers_do_not_meet():
    with EmbeddedRedis() as one, EmbeddedRedis() as other:
        assert one.port != other.port


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_redis_stops_when_its_owner_is_killed(signal_number):
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    port = int(owner.stdout.readline())
    os.kill(owner.pid, signal_number)
    owner.wait()
    owner.stdout.close()

    assert _wait_until_refused(port)


def test_ctrl_c_reaches_the_owner_and_not_redis():
    script = OWNER.replace(
        "time.sleep(60)",
        """import signal
signal.signal(2, lambda *_: print('caught', flush=True))
print('ready', flush=True)
time.sleep(60)
""",
    )
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    port = int(owner.stdout.readline())
    assert owner.stdout.readline() == b"ready\n"
    # What a terminal does on Ctrl-C: a signal to the whole foreground group.
    os.killpg(owner.pid, signal.SIGINT)

    assert owner.stdout.readline() == b"caught\n"
    with redis.Redis(port=port) as client:
        assert client.ping()
    owner.kill()
    owner.wait()
    owner.stdout.close()
    assert _wait_until_refused(port)


def test_an_owner_that_dies_while_redis_starts_leaves_nothing_behind(tmp_path):
    server = EmbeddedRedis()
    binary = embedded._valkey_path()
    for _ in range(10):
        folder = tmp_path / "redis"
        folder.mkdir()
        server.port = embedded._free_port(server.host)
        keeper = subprocess.Popen(
            ["/bin/sh", "-c", embedded._KEEPER, "keeper", str(folder), *server._command(binary, folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        keeper.stdin.close()

        assert keeper.wait(timeout=60) == 0
        assert not folder.exists()
