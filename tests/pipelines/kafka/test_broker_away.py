"""What a pipeline shows while its broker hangs or is gone, and that it ends when it is asked to."""

import http.client
import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import KAFKA
from tests.support.recovery.processes import ONE, Life, Site, Topology, free_port
from tests.support.recovery.scene import Feeder, scene
from tests.support.servers.kafka import ApacheKafka
from tests.support.sources import NOON, SECOND, Present, Topic, arrivals_of, for_seconds, n_records, polls

pytestmark = pytest.mark.long

ENDS_WITHIN_S = 60.0
"""librdkafka alone waits over three minutes for a commit that nobody answers."""


@pytest.fixture(scope="module")
def frail_broker(pytestconfig: pytest.Config) -> Iterator[ApacheKafka]:
    """An Apache Kafka of this module, which its tests pause and kill."""
    if pytestconfig.stash[KAFKA].kind != "Apache Kafka":
        pytest.skip(f"needs a broker that can be killed: {pytestconfig.stash[KAFKA]}")
    with ApacheKafka() as started:
        yield started


def test_no_mark_is_announced_that_the_broker_has_not_confirmed_since_its_instant(
    frail_broker: ApacheKafka, read: Callable[..., Any]
) -> None:
    """A broker that hangs keeps its connections, and what the last fetch reported stays as it was."""
    stream, present = Topic(frail_broker, 2), Present(NOON + 10 * SECOND)
    source = read(stream, idle="wall", settle_us=SECOND, present_us=present, mark_s=0.0, heartbeat_s=0.05)

    def settled(_items: Any) -> bool:
        return all(part.clock_us == present.us - SECOND for part in source.parts.values())

    polls(source, settled)
    frail_broker.pause()
    present.us += 60 * SECOND
    items = polls(source, for_seconds(4))
    assert {item.clock_us for item in items} == {NOON + 9 * SECOND}
    assert source.away_s > 0
    assert source.retries > 0

    frail_broker.resume()
    polls(source, settled, within_s=30)
    polls(source, lambda _items: source.away_s == 0, within_s=30)
    stream.put(1, 70_000)
    assert arrivals_of(polls(source, n_records(1), within_s=30), 1) == [(0, 70 * SECOND)]


def _ready(port: int) -> tuple[int, list[str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/ready")
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())["reasons"]
    except OSError:
        return 0, []
    finally:
        connection.close()


def _away_s(port: int) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    found = re.search(r'unskew_store_away_seconds\{store="kafka"\} (\S+)', text)
    assert found is not None, text
    return float(found[1])


def _comes(claim: Callable[[], bool], life: Life) -> None:
    deadline_s = time.monotonic() + 60
    while not claim():
        assert time.monotonic() < deadline_s, life._errors(0)
        assert not life.ended, life._errors(0)
        time.sleep(0.05)


def test_a_broker_that_is_away_shows_and_a_signal_to_stop_is_heeded_meanwhile(
    frail_broker: ApacheKafka, redis_url: str, tmp_path: Path
) -> None:
    played = scene(tmp_path / "scene", 200, seed=3)
    for topic, n_partitions in played.partitions.items():
        frail_broker.create_topic(topic, n_partitions, {"message.timestamp.type": "LogAppendTime"})
    site = Site(played, frail_broker.bootstrap, redis_url, tmp_path / "site", prefix="away", live=True)
    port = free_port()
    topology = Topology("one process that is watched", (("--metrics", str(port)),))
    feeder = Feeder(frail_broker.bootstrap, played, per_s=1e9)
    feeder.start()
    feeder.finish()
    lives = []
    took_s = {}
    try:
        lives.append(life := Life.start(site, topology))
        _comes(lambda: _ready(port)[0] == 200 and life.consumed() == 200, life)
        assert _away_s(port) == 0

        frail_broker.pause()
        _comes(lambda: any(reason.startswith("kafka has been away for") for reason in _ready(port)[1]), life)
        assert _away_s(port) > 0
        # Several epochs, so that a commit to the group is on its way.
        time.sleep(1.0)
        life.processes[0].send_signal(signal.SIGTERM)
        began_s = time.monotonic()
        life.terminate(signal.SIGINT, ENDS_WITHIN_S)
        took_s["while it runs, twice"] = time.monotonic() - began_s
        assert "is away" in life._errors(0)

        lives.append(life := Life.start(site, ONE))
        # With its leases it has its handlers of signals.
        _comes(lambda: any((site.state / "_leases").glob("*")), life)
        time.sleep(0.5)
        began_s = time.monotonic()
        life.processes[0].send_signal(signal.SIGTERM)
        life.await_failure(1, "has not answered yet, and this process was asked to stop", ENDS_WITHIN_S)
        took_s["at the start"] = time.monotonic() - began_s
    finally:
        frail_broker.resume()
        for life in lives:
            life.destroy()
        feeder.stop()
    print("seconds from the signal to the end:", took_s)
