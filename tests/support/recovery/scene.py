"""What the ordeals run on: definition files on disk, topics, and a seeded history that is fed to them bit by bit."""

import itertools
import json
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from confluent_kafka import Producer

from tests.support.pipeline import SCHEMA, Record, history
from unskew.features.definitions.load import load
from unskew.features.plan import Plan

_numbers = itertools.count(int(time.time()))

DEFINITIONS = """\
from unskew import Calendar, Entity, Feature, FeatureView, Lifetime, Sliding, Stream, Tumbling, agg

user, item = Entity("user", key="user"), Entity("item", key="item")
purchases = Stream(
    "purchases", topic="{purchases}", schema="record.avsc", event_time="at", partitioned_by="user", owner="tests"
)
recent = [
    Feature("count_5s", agg.count(), Sliding("5s", hop="1s")),
    Feature("sum_1m", agg.sum("amount"), Sliding("60s", hop="15s")),
    Feature("max_10s", agg.max("item"), Tumbling("10s")),
    Feature("items_1m", agg.count_distinct("item"), Sliding("60s", hop="15s")),
    Feature("mean_today", agg.mean("amount"), Calendar("day", tz="Europe/Berlin")),
]
ever = [Feature("events", agg.count(), Lifetime()), Feature("spent", agg.sum("amount"), Lifetime())]
by_user = FeatureView("by_user", entity=user, stream=purchases, owner="tests", features=recent)
user_ever = FeatureView("user_ever", entity=user, stream=purchases, owner="tests", features=ever)
"""

ACROSS_PARTITIONS = """\
by_item = FeatureView("by_item", entity=item, stream=purchases, owner="tests", features=recent[:4], where="item <> 3")
item_ever = FeatureView("item_ever", entity=item, stream=purchases, owner="tests", features=ever)
"""

SECOND_STREAM = """\
from unskew import Entity, Feature, FeatureView, Lifetime, Session, Stream, agg

refunds = Stream(
    "refunds",
    topic="{refunds}",
    schema="record.avsc",
    event_time="at",
    partitioned_by="user",
    event_id="item",
    dedupe_within="5s",
    owner="tests",
)
visits = [Feature("visit", agg.count(), Session("30s", hop="5s")), Feature("refunds", agg.count(), Lifetime())]
refunds_by_user = FeatureView("refunds_by_user", entity="user", stream=refunds, owner="tests", features=visits)
refunds_by_item = FeatureView("refunds_by_item", entity="item", stream=refunds, owner="tests", features=visits)
"""

MONOTONE = {"user_ever": "events", "item_ever": "events", "refunds_by_user": "refunds", "refunds_by_item": "refunds"}
"""By view, a feature that never falls for an entity once it has a value: counts over all time."""


@dataclass(frozen=True)
class Scene:
    """Definitions and the records that will have come when all is over.

    ``records``: topic and record, in the order in which they are sent. ``folder``: holds definitions and ends.
    """

    folder: Path
    partitions: dict[str, int]
    records: Sequence[tuple[str, Record]]

    @property
    def definitions(self) -> Path:
        return self.folder / "definitions"

    @property
    def ends(self) -> Path:
        """The JSON file for ``--end``: every partition's offset once all records are there."""
        return self.folder / "ends.json"

    @property
    def plan(self) -> Plan:
        return load(self.definitions)

    @property
    def entities(self) -> pl.DataFrame:
        """Every user and item of which there will be a record."""
        return pl.DataFrame([(record.user, record.item) for _, record in self.records], ["user", "item"], orient="row")


def scene(
    folder: Path, n_records: int, *, seed: int, across_partitions: bool = True, two_streams: bool = False
) -> Scene:
    """Write definition files over new topic names, and draw the history.

    ``across_partitions``: with views whose events of one entity lie in several partitions.
    """
    number = next(_numbers)
    topics = {"purchases": f"purchases-{number}", "refunds": f"refunds-{number}"}
    partitions = {topics["purchases"]: 4} | ({topics["refunds"]: 2} if two_streams else {})
    records = [(topics["purchases"], record) for record in history(n_records, seed=seed)]
    if two_streams:
        users = history(n_records // 3, seed=seed + 1, n_partitions=2)
        records = _shuffled(records, [(topics["refunds"], record) for record in users], random.Random(seed))
    made = Scene(folder, partitions, records)
    made.definitions.mkdir(parents=True)
    (made.definitions / "record.avsc").write_text(json.dumps(SCHEMA))
    views = DEFINITIONS.format(**topics) + (ACROSS_PARTITIONS if across_partitions else "")
    (made.definitions / "purchases.py").write_text(views)
    if two_streams:
        (made.definitions / "refunds.py").write_text(SECOND_STREAM.format(**topics))
    counts = {topic: dict.fromkeys(range(n), 0) for topic, n in partitions.items()}
    for topic, record in records:
        counts[topic][record.partition] += 1
    made.ends.write_text(json.dumps(counts))
    return made


def _shuffled(
    one: list[tuple[str, Record]], other: list[tuple[str, Record]], chance: random.Random
) -> list[tuple[str, Record]]:
    """Both, each in its own order."""
    picks = [*itertools.repeat(iter(one), len(one)), *itertools.repeat(iter(other), len(other))]
    chance.shuffle(picks)
    return [next(pick) for pick in picks]


class Feeder(threading.Thread):
    """Sends the records in order, ``per_s`` a second at most, as many as were allowed so far.

    Its producer is idempotent: a broker that dies and comes back neither loses nor repeats nor reorders a record.
    """

    def __init__(self, bootstrap: str, scene: Scene, *, per_s: float) -> None:
        super().__init__(name="feeder", daemon=True)
        self._records = scene.records
        self._per_s = per_s
        self._allowed = 0
        self._ended = False
        self._changed = threading.Condition()
        self.fault: BaseException | None = None
        self.sent = 0
        settings = {"bootstrap.servers": bootstrap, "linger.ms": 2, "log_level": 0}
        self._producer = Producer(settings | {"enable.idempotence": True, "message.timeout.ms": 120_000})

    def allow(self, n_records: int) -> None:
        """Let so many more records go."""
        with self._changed:
            self._allowed += n_records
            self._changed.notify()

    def finish(self) -> None:
        """Send all that is left, at once, and return when the broker has it."""
        self._per_s = 1e9
        self.allow(len(self._records))
        self.join(150)
        if self.fault is not None:
            raise self.fault
        assert not self.is_alive(), "the broker did not take the records"

    def stop(self) -> None:
        """Send no more."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self.join()

    def run(self) -> None:
        try:
            for topic, record in self._records:
                with self._changed:
                    self._changed.wait_for(lambda: self._ended or self.sent < self._allowed)
                if self._ended:
                    return
                self._send(topic, record)
            assert self._producer.flush(120) == 0
        except BaseException as fault:  # noqa: BLE001 - raised where the feeder is waited for
            self.fault = fault

    def _send(self, topic: str, record: Record) -> None:
        value, key = record.value(), record.user.encode()
        self._producer.produce(topic, value, key, partition=record.partition, timestamp=record.stamp_ms)
        self._producer.poll(0)
        self.sent += 1
        if self._per_s < 1e9:
            time.sleep(1 / self._per_s)
