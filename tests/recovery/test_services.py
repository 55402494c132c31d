"""What a pipeline survives without a restart: Redis, broker or disk gone for a while; and what a signal costs."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.recovery import instants
from tests.support.recovery.disks import filled_up, read_only, small_disk
from tests.support.recovery.harness import Ordeal
from tests.support.recovery.processes import ONE, Life, Site
from tests.support.recovery.scene import Feeder, scene
from tests.support.servers.broker import Broker
from tests.support.servers.kafka import ApacheKafka
from tests.support.servers.valkey import Valkey
from unskew.demo.embedded import EmbeddedBroker

pytestmark = pytest.mark.long

AnyBroker = ApacheKafka | Broker | EmbeddedBroker

RECORDS = 900
PAUSE_S = 10.0


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Valkey]:
    with Valkey(tmp_path / "redis") as server:
        yield server


def _site(broker: AnyBroker, redis_url: str, folder: Path, *, seed: int) -> Site:
    played = scene(folder / "scene", RECORDS, seed=seed)
    for topic, n_partitions in played.partitions.items():
        broker.create_topic(topic, n_partitions)
    return Site(played, broker.bootstrap, redis_url, folder / "site", prefix="services")


def _run_into(ordeal: Ordeal, feeder: Feeder, life: Life | None = None) -> Life:
    """Start, if it is not yet, and come to the middle of the history, with records to come while something is away."""
    life = life or ordeal.start(0)
    feeder.allow(RECORDS // 6)
    assert instants.await_changes(instants.covered, 1, life, ordeal.site, within_s=120, pause_s=0.02)
    feeder.allow(RECORDS // 2)
    time.sleep(1.0)
    return life


def _comes(claim: Callable[[], bool], within_s: float = 60.0) -> bool:
    deadline_s = time.monotonic() + within_s
    while not claim():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.1)
    return True


def test_redis_killed_and_restarted_empty_holds_in_the_end_what_it_would_have_held(
    broker: AnyBroker, own_redis: Valkey, tmp_path: Path
) -> None:
    ordeal = Ordeal(_site(broker, own_redis.url, tmp_path, seed=11), [ONE], 11, may_empty=True)
    with ordeal.watched() as feeder:
        life = _run_into(ordeal, feeder)
        own_redis.kill()
        time.sleep(2.0)
        own_redis.start()
        ordeal.come_to_the_end(life, feeder)

    assert not ordeal.report.faults, str(ordeal.report)


def test_redis_that_stands_still_for_ten_seconds_is_waited_for(
    broker: AnyBroker, own_redis: Valkey, tmp_path: Path
) -> None:
    ordeal = Ordeal(_site(broker, own_redis.url, tmp_path, seed=12), [ONE], 12)
    with ordeal.watched() as feeder:
        life = _run_into(ordeal, feeder)
        with own_redis.paused():
            time.sleep(PAUSE_S)
        ordeal.come_to_the_end(life, feeder)

    assert not ordeal.report.faults, str(ordeal.report)


def test_redis_that_refuses_writes_is_waited_for(broker: AnyBroker, own_redis: Valkey, tmp_path: Path) -> None:
    ordeal = Ordeal(_site(broker, own_redis.url, tmp_path, seed=16), [ONE], 16)
    with ordeal.watched() as feeder:
        life = _run_into(ordeal, feeder)
        for refusing, reason in (
            (own_redis.out_of_memory, "OOM command not allowed"),
            (own_redis.demoted, "READONLY You can't write"),
        ):
            with refusing():
                assert _comes(lambda reason=reason: f"Redis is away: {reason}" in life._errors(0)), life._errors(0)
                time.sleep(1.0)
                assert not life.ended
            assert _comes(lambda: life._errors(0).count("is away") == life._errors(0).count("is back")), life._errors(0)
        ordeal.come_to_the_end(life, feeder)

    assert not ordeal.report.faults, str(ordeal.report)


def test_a_broker_killed_and_restarted_is_waited_for(own_broker: ApacheKafka, redis_url: str, tmp_path: Path) -> None:
    ordeal = Ordeal(_site(own_broker, redis_url, tmp_path, seed=15), [ONE], 15)
    with ordeal.watched() as feeder:
        life = _run_into(ordeal, feeder)
        own_broker.kill()
        time.sleep(2.0)
        own_broker.start()
        ordeal.come_to_the_end(life, feeder)

    assert not ordeal.report.faults, str(ordeal.report)


def test_told_to_stop_at_any_moment_it_ends_with_0_and_has_nothing_to_replay(
    broker: AnyBroker, redis_url: str, tmp_path: Path
) -> None:
    n_stops, chance = 5, random.Random(13)
    ordeal = Ordeal(_site(broker, redis_url, tmp_path, seed=13), [ONE], 13)
    consumed, took_s = [], []
    with ordeal.watched() as feeder:
        for _ in range(n_stops):
            life = ordeal.start(0)
            feeder.allow(RECORDS // n_stops)
            assert instants.await_changes(instants.store, 1, life, ordeal.site, within_s=60, pause_s=0.02)
            time.sleep(chance.uniform(0.0, 3.0))
            took_s.append(life.terminate(chance.choice([signal.SIGTERM, signal.SIGINT])))
            consumed.append(life.consumed())
        life = ordeal.start(0)
        ordeal.come_to_the_end(life, feeder)
        consumed.append(life.consumed())
        again = ordeal.start(0)
        again.await_end()
    print("seconds from SIGTERM to the end:", ", ".join(f"{seconds:.2f}" for seconds in took_s))

    assert not ordeal.report.faults, str(ordeal.report)
    assert sum(consumed) == RECORDS, consumed
    assert again.consumed() == 0


def test_a_disk_that_is_read_only_or_full_is_waited_for(broker: AnyBroker, redis_url: str, tmp_path: Path) -> None:
    ordeal = Ordeal(_site(broker, redis_url, tmp_path, seed=14), [ONE], 14)
    with small_disk(ordeal.site.log, 10), ordeal.watched() as feeder:
        with read_only(ordeal.site.log):
            life = ordeal.start(0)
            assert _comes(lambda: "Read-only file system" in life._errors(0)), life._errors(0)
            assert not life.ended, "the pipeline ended with the disk read-only"
        _run_into(ordeal, feeder, life)
        with filled_up(ordeal.site.log):
            time.sleep(3.0)
            assert not life.ended, "the pipeline ended with the disk full"
        ordeal.come_to_the_end(life, feeder)

    assert not ordeal.report.faults, str(ordeal.report)


def test_a_disk_of_the_state_that_is_nearly_full_is_waited_for_before_the_recovery_store_needs_it(
    broker: AnyBroker, redis_url: str, tmp_path: Path
) -> None:
    ordeal = Ordeal(_site(broker, redis_url, tmp_path, seed=15), [ONE], 15)
    with small_disk(ordeal.site.state, 64), ordeal.watched() as feeder:
        with filled_up(ordeal.site.state, leave=1 << 20):
            life = ordeal.start(0)
            assert _comes(lambda: "are kept for the recovery store" in life._errors(0)), life._errors(0)
            assert not life.ended, "the pipeline ended at its start with the disk nearly full"
        _run_into(ordeal, feeder, life)
        with filled_up(ordeal.site.state, leave=1 << 20):
            assert _comes(lambda: life._errors(0).count("are kept for the recovery store") == 2), life._errors(0)
            with filled_up(ordeal.site.state):
                time.sleep(3.0)
                assert not life.ended, "the pipeline ended with the disk full"
        ordeal.come_to_the_end(life, feeder)

    assert not ordeal.report.faults, str(ordeal.report)
