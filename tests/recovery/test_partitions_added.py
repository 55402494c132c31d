"""Partitions are added while a live pipeline runs and is killed: every value stays the recount's, over the archive."""

import contextlib
import json
import random
import threading
import time
from pathlib import Path

import pytest
from confluent_kafka import KafkaException, Producer

from tests.support.pipeline import SCHEMA, Outcome, Record, entities, expected_log, history, logged
from tests.support.recovery.processes import CLUSTER, ONE, Life, Site
from tests.support.recovery.scene import Scene
from tests.support.servers.broker import Broker
from tests.support.servers.kafka import ApacheKafka
from unskew import load
from unskew.pipelines.deployment import Deployment

pytestmark = pytest.mark.long

TOPIC = "grows"
DEFINITIONS = """\
from pathlib import Path
from unskew import Entity, Feature, FeatureView, Sliding, Stream, agg

item = Entity("item", key="item")
purchases = Stream(
    "purchases", topic="grows", schema=str(Path(__file__).parent / "record.avsc"), event_time="at", owner="tests"
)
by_item = FeatureView(
    "by_item", entity=item, stream=purchases, owner="tests",
    features=[
        Feature("n", agg.count(), Sliding("10s", hop="1s")),
        Feature("last", agg.last("amount"), Sliding("2s", hop="500ms")),
        Feature("most", agg.max("amount"), Sliding("5s", hop="1s")),
    ],
)
"""


class Sender(threading.Thread):
    """Sends records without end, now, to as many partitions as it is told."""

    def __init__(self, bootstrap: str, n_partitions: int, per_s: float) -> None:
        super().__init__(daemon=True)
        settings = {"bootstrap.servers": bootstrap, "linger.ms": 2, "log_level": 0}
        self._producer = Producer(settings | {"enable.idempotence": True, "topic.metadata.refresh.interval.ms": 500})
        self.n_partitions = n_partitions
        self._per_s = per_s
        self._ended = threading.Event()
        self.sent: dict[int, int] = {}
        self.fault: BaseException | None = None

    def run(self) -> None:
        try:
            for row, record in enumerate(self._records()):
                partition = row % self.n_partitions
                # It may not know of the new partition yet.
                with contextlib.suppress(KafkaException):
                    self._producer.produce(TOPIC, record.value(), b"key", partition=partition)
                    self.sent[partition] = self.sent.get(partition, 0) + 1
                self._producer.poll(0)
                if self._ended.wait(1 / self._per_s):
                    break
            assert self._producer.flush(30) == 0
        except BaseException as fault:  # noqa: BLE001 - raised where the sender is waited for
            self.fault = fault

    def _records(self):
        known = history(500, seed=5)
        while True:
            for record in known:
                yield Record(0, 0, record.user, record.item, record.amount, record.gift, time.time_ns() // 1000)

    def finish(self) -> None:
        self._ended.set()
        self.join(60)
        if self.fault is not None:
            raise self.fault


def _comes(claim, life: Life, within_s: float = 90.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < deadline_s, (life.statuses(), life._errors(0))
        assert not life.ended, life._errors(0)
        time.sleep(0.05)


@pytest.mark.needs_broker("topic ids")
def test_new_partitions_join_and_a_kill_at_any_moment_changes_no_value(
    broker: Broker | ApacheKafka, redis_url: str, tmp_path: Path
) -> None:
    chance = random.Random(7)
    played = Scene(tmp_path / "scene", {TOPIC: 2}, [])
    played.definitions.mkdir(parents=True)
    (played.definitions / "record.avsc").write_text(json.dumps(SCHEMA))
    (played.definitions / "purchases.py").write_text(DEFINITIONS)
    broker.create_topic(TOPIC, 2, {"message.timestamp.type": "LogAppendTime"})
    site = Site(played, broker.bootstrap, redis_url, tmp_path / "site", prefix="grows", live=True)

    def archived(partition: int) -> bool:
        return any(site.archive.glob(f"{TOPIC}/day=*/p{partition}-*.parquet"))

    sender = Sender(broker.bootstrap, 2, per_s=60)
    sender.start()
    lives: list[Life] = []
    try:
        # Two are found by processes that run, and one by those that start after a kill.
        lives.append(life := Life.start(site, CLUSTER))
        _comes(lambda: archived(0) and archived(1), life)
        for n_partitions, topology in ((4, ONE), (5, CLUSTER)):
            broker.add_partitions(TOPIC, n_partitions)
            sender.n_partitions = n_partitions
            if n_partitions == 4:
                _comes(lambda: archived(2) and archived(3), life)
                assert not life.ended
            time.sleep(chance.uniform(0.0, 1.0))
            life.kill(chance)
            lives.append(life := Life.start(site, topology))
        sender.finish()
        sent_us = time.time_ns() // 1000
        _comes(lambda: (life.statuses()[0].get("clock_us") or 0) > sent_us, life)
        life.terminate()
    finally:
        for life in lives:
            life.destroy()
        sender.finish()

    plan = load(played.definitions)
    deployment = Deployment(
        bootstrap="",
        redis_url="",
        log=site.log,
        archive=site.archive,
        dead_letters=site.dead_letters,
        state=site.state,
        idle="wall",
    )
    outcome = Outcome(plan, deployment)
    archive, letters = outcome.archive(), outcome.dead_letters()
    counts = dict(archive["_partition"].value_counts().iter_rows())
    refused = (
        {}
        if letters.is_empty()
        else dict(letters.filter(letters["view"].is_null())["partition"].value_counts().iter_rows())
    )
    assert {partition: counts[partition] + refused.get(partition, 0) for partition in counts} == sender.sent
    view = plan.views["by_item"]
    complete_to = dict.fromkeys(entities(view, archive), min(outcome.complete_to("by_item").values()))
    assert logged(view, outcome.log("by_item")) == expected_log(view, archive, complete_to)
