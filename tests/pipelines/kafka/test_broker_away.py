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
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from tests.conftest import KAFKA
from tests.support.recovery.processes import ONE, Life, Site, Topology, free_port
from tests.support.recovery.scene import Feeder, scene
from tests.support.servers.kafka import ApacheKafka
from tests.support.sources import NOON, SECOND, Present, Topic, arrivals_of, for_seconds, n_records, polls
from unskew.features.errors import StoreUnavailable

pytestmark = pytest.mark.long

ENDS_WITHIN_S = 60.0
"""librdkafka alone waits over three minutes for a commit that nobody answers."""


@pytest.fixture(scope="module")
def frail_broker(pytestconfig: pytest.Config) -> Iterator[ApacheKafka]:
    """An Apache Kafka of this module, which its tests pause and kill."""
    if pytestconfig.stash[KAFKA].kind != "Apache Kafka":
        pytest.skip(f"needs a broker that can be killed: {pytestconfig.stash[KAFKA]}")
    rules = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
    }
    with ApacheKafka(properties=rules) as started:
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


class Rules:
    """What an anonymous client may do with one topic or group: anything but what is forbidden."""

    def __init__(self, broker: ApacheKafka, kind: ResourceType, name: str) -> None:
        self._admin, self._kind, self._name = broker.admin(), kind, name
        self._set(AclOperation.ALL, AclPermissionType.ALLOW)

    def _set(self, operation: AclOperation, permission: AclPermissionType) -> None:
        rule = AclBinding(
            self._kind, self._name, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*", operation, permission
        )
        self._admin.create_acls([rule])[rule].result(10)

    def forbid(self, operation: AclOperation) -> None:
        self._set(operation, AclPermissionType.DENY)

    def forbid_nothing(self) -> None:
        rules = AclBindingFilter(
            self._kind, self._name, ResourcePatternType.LITERAL, None, None, AclOperation.ANY, AclPermissionType.DENY
        )
        self._admin.delete_acls([rules])[rules].result(10)


def test_what_the_broker_forbids_is_said_stops_marks_and_goes_on_once_it_is_allowed(
    frail_broker: ApacheKafka, read: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    stream, present = Topic(frail_broker, 1), Present(NOON + 10 * SECOND)
    topic = Rules(frail_broker, ResourceType.TOPIC, stream.name)
    group = Rules(frail_broker, ResourceType.GROUP, "group")
    source = read(stream, idle="wall", settle_us=SECOND, present_us=present, mark_s=0.0, heartbeat_s=0.05)

    def comes(offsets: list[int]) -> None:
        items: list[Any] = []
        while (came := [offset for offset, _ in arrivals_of(items)]) != offsets:
            items += polls(source, n_records(1), within_s=30)
            assert came == offsets[: len(came)]

    # A group that may not be used costs the commits alone.
    group.forbid(AclOperation.READ)
    for offset in range(3):
        stream.put(0, offset)
        comes([offset])
        source.parts[0].snapshot()
    polls(source, lambda _items: "Group authorization failed; continuing" in caplog.text, within_s=30)
    assert source.away_s == 0

    bumped = source.counters.bumped
    topic.forbid(AclOperation.READ)
    polls(source, for_seconds(0.5))
    present.us += 60 * SECOND
    stream.put(0, 9_500, 9_600)
    polls(source, lambda _items: source.away_s > 0, within_s=30)
    items = polls(source, for_seconds(1))
    assert max(item.clock_us for item in items) < NOON + 10 * SECOND
    assert source.counters.lag == 2
    topic.forbid_nothing()
    comes([3, 4])
    assert source.counters.bumped == bumped
    polls(source, lambda _items: source.away_s == 0, within_s=30)

    topic.forbid(AclOperation.DESCRIBE)
    with pytest.raises(
        StoreUnavailable, match=f"Topic '{stream.name}' .* is closed to this client .*describe and read"
    ):
        read(stream)


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
    deadline_s = time.monotonic() + 240  # the first process after an installation compiles the kernel
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
        took_s["at the start"] = life.terminate(within_s=ENDS_WITHIN_S)
    finally:
        frail_broker.resume()
        for life in lives:
            life.destroy()
        feeder.stop()
    print("seconds from the signal to the end:", took_s)
