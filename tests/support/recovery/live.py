"""The live scene: topics that are fed in real time while the pipeline dies and comes back, records that come late or
from the future, and a reader that never looks away.
"""

import itertools
import json
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import redis
from confluent_kafka import Producer
from typing_extensions import override

from tests.support.pipeline import SCHEMA, Record, bits
from tests.support.recovery.counted import SECOND_US, Counted, CountedView, Ever, Running, Sliding, Tumbling
from tests.support.recovery.processes import Site
from tests.support.recovery.scene import MONOTONE, Scene
from tests.support.recovery.watch import Asked, ExactRead, RedisWatch
from unskew.features.errors import RequestError, StoreUnavailable

_numbers = itertools.count(int(time.time()))

SETTLE_S = 0.3
LATEST_S = 10 * SETTLE_S
"""How far behind the present a producer's timestamp lies at most."""
AHEAD_S = (4.5, 9.0)
"""How far ahead of the present a few lie: those from 5 s on are refused when they are read at once, and one that is
taken moves its partition's clock.
"""
AHEAD_EVERY_S = 8.0
LONGEST_S = SETTLE_S + 4.0
"""After so long without a record every window is empty."""

N_USERS, N_ITEMS, N_PARTITIONS = 7, 5, 4
RARE_USER = "user 3%"
"""The one user of partition 3, who hardly ever comes: its clock stands on marks."""

DEFINITIONS = """\
from unskew import Entity, Feature, FeatureView, Lifetime, Sliding, Stream, Tumbling, agg

user, item = Entity("user", key="user"), Entity("item", key="item")
purchases = Stream(
    "purchases", topic="{purchases}", schema="record.avsc", event_time="at", partitioned_by="user", settle="300ms",
    owner="tests",
)
recent = [
    Feature("count_3s", agg.count(), Sliding("3s", hop="1s")),
    Feature("sum_3s", agg.sum("amount"), Sliding("3s", hop="1s")),
    Feature("max_3s", agg.max("amount"), Sliding("3s", hop="1s")),
    Feature("count_2s", agg.count(), Tumbling("2s")),
]
ever = [Feature("events", agg.count(), Lifetime()), Feature("spent", agg.sum("amount"), Lifetime())]
by_user = FeatureView("by_user", entity=user, stream=purchases, owner="tests", features=recent)
user_ever = FeatureView("user_ever", entity=user, stream=purchases, owner="tests", features=ever)
"""
ACROSS_PARTITIONS = """\
by_item = FeatureView("by_item", entity=item, stream=purchases, owner="tests", features=recent)
item_ever = FeatureView("item_ever", entity=item, stream=purchases, owner="tests", features=ever)
"""
REFUNDS = """\
from unskew import Entity, Feature, FeatureView, Lifetime, Session, Stream, agg

refunds = Stream(
    "refunds", topic="{refunds}", schema="record.avsc", event_time="at", partitioned_by="user", settle="300ms",
    event_id="item", dedupe_within="1s", owner="tests",
)
visits = [Feature("visit", agg.count(), Session("2s", hop="500ms")), Feature("refunds", agg.count(), Lifetime())]
refunds_by_user = FeatureView("refunds_by_user", entity="user", stream=refunds, owner="tests", features=visits)
"""
REFUNDS_ACROSS_PARTITIONS = """\
refunds_by_item = FeatureView("refunds_by_item", entity="item", stream=refunds, owner="tests", features=visits)
"""

_SLIDING, _EVER = Sliding(3 * SECOND_US, SECOND_US), Ever()
_RECENT = {
    "count_3s": Counted("count", _SLIDING),
    "sum_3s": Counted("sum", _SLIDING),
    "max_3s": Counted("max", _SLIDING),
    "count_2s": Counted("count", Tumbling(2 * SECOND_US)),
}
_LIFETIME = {"events": Counted("count", _EVER), "spent": Counted("sum", _EVER)}
_VISITS = {
    "visit": Counted("count", Running(2 * SECOND_US, SECOND_US // 2)),
    "refunds": Counted("count", _EVER),
}
COUNTED = {
    "by_user": CountedView("purchases", "user", _RECENT),
    "user_ever": CountedView("purchases", "user", _LIFETIME),
    "by_item": CountedView("purchases", "item", _RECENT),
    "item_ever": CountedView("purchases", "item", _LIFETIME),
    "refunds_by_user": CountedView("refunds", "user", _VISITS, "item", SECOND_US),
    "refunds_by_item": CountedView("refunds", "item", _VISITS, "item", SECOND_US),
}
"""What the definitions mean, said a second time."""


def user_name(number: int) -> str:
    return f"user {number}%"


@dataclass(frozen=True)
class LiveScene(Scene):
    """Definitions over topics that are fed while the pipeline runs. ``topics``: by the name of the stream."""

    topics: dict[str, str] = field(default_factory=dict)

    @property
    @override
    def entities(self) -> pl.DataFrame:
        """Every user and item."""
        n_rows = max(N_USERS, N_ITEMS)
        users, items = [user_name(row % N_USERS) for row in range(n_rows)], [row % N_ITEMS for row in range(n_rows)]
        return pl.DataFrame({"user": users, "item": items})


def live_scene(folder: Path, *, across_partitions: bool = True) -> LiveScene:
    """Write definition files over new topic names. ``across_partitions``: with views whose events of one entity lie in
    several partitions.
    """
    number = next(_numbers)
    topics = {name: f"live-{name}-{number}" for name in ("purchases", "refunds")}
    made = LiveScene(folder, dict.fromkeys(topics.values(), N_PARTITIONS), (), topics)
    made.definitions.mkdir(parents=True)
    (made.definitions / "record.avsc").write_text(json.dumps(SCHEMA))
    purchases = DEFINITIONS + (ACROSS_PARTITIONS if across_partitions else "")
    (made.definitions / "purchases.py").write_text(purchases.format(**topics))
    refunds = REFUNDS + (REFUNDS_ACROSS_PARTITIONS if across_partitions else "")
    (made.definitions / "refunds.py").write_text(refunds.format(**topics))
    return made


class LiveFeeder(threading.Thread):
    """Sends records in real time until it is stopped: a few a while, many at once, none for a while.

    ``fed``: by topic and partition, the records in the order of their offsets.
    """

    def __init__(self, bootstrap: str, scene: LiveScene, *, seed: int, per_s: float = 80.0) -> None:
        super().__init__(name="live feeder", daemon=True)
        self._scene = scene
        self._chance = random.Random(seed)
        self._per_s = per_s
        self._ended = threading.Event()
        self._ahead_wanted = threading.Event()
        self._next_ahead_s = time.monotonic() + AHEAD_EVERY_S
        self._producer = Producer(
            {"bootstrap.servers": bootstrap, "linger.ms": 2, "log_level": 0, "enable.idempotence": True}
        )
        self.fault: BaseException | None = None
        self.fed: dict[str, list[list[Record]]] = {
            topic: [[] for _ in range(n)] for topic, n in scene.partitions.items()
        }

    @property
    def sent(self) -> int:
        return sum(len(records) for topic in self.fed.values() for records in topic)

    def send_ahead(self) -> None:
        """Let one of the next records lie far ahead of the present."""
        self._ahead_wanted.set()

    def stop(self) -> None:
        """Send no more; all that was sent is with the broker then."""
        self._ended.set()
        self.join()
        if self.fault is not None:
            raise self.fault

    @override
    def run(self) -> None:
        try:
            while not self._ended.is_set():
                self._go_on()
            assert self._producer.flush(60) == 0, "the broker did not take the records"
        except BaseException as fault:  # noqa: BLE001 - raised where the feeder is stopped
            self.fault = fault

    def _go_on(self) -> None:
        kind = self._chance.random()
        if kind < 0.25:
            # Long enough for marks, in every partition.
            self._ended.wait(self._chance.uniform(0.2, 1.5))
        elif kind < 0.5:
            for _ in range(self._chance.randint(10, 40)):
                self._send()
        else:
            for _ in range(int(self._chance.uniform(0.3, 1.0) * self._per_s)):
                self._send()
                if self._ended.wait(1 / self._per_s):
                    return

    def _send(self) -> None:
        topic, record = self._draw()
        place = {"partition": record.partition, "timestamp": record.stamp_ms}
        self._producer.produce(topic, record.value(), record.user.encode(), **place)
        self._producer.poll(0)
        self.fed[topic][record.partition].append(record)

    def _draw(self) -> tuple[str, Record]:
        chance = self._chance
        name = "purchases" if chance.random() < 0.7 else "refunds"
        user = chance.choice([number for number in range(N_USERS) if user_name(number) != RARE_USER])
        partition = user % 3
        if name == "purchases" and chance.random() < 0.005:
            # In the other topic that partition stays empty.
            user, partition = 3, 3
        kind = chance.random()
        behind_s = chance.uniform(0.0, 0.02)
        if kind < 0.15:
            behind_s = chance.uniform(0.02, SETTLE_S)
        elif kind < 0.45:
            behind_s = chance.uniform(SETTLE_S, LATEST_S)
        elif self._ahead_wanted.is_set() or time.monotonic() > self._next_ahead_s:
            self._ahead_wanted.clear()
            self._next_ahead_s = time.monotonic() + AHEAD_EVERY_S
            behind_s = -chance.uniform(*AHEAD_S)
        stamp_ms = int((time.time() - behind_s) * 1000)
        happened_s = chance.choice([0.0, 0.0, chance.uniform(0.0, LATEST_S), chance.uniform(-2.0, 6.0)])
        amounts = [0.1, 0.2, 0.3, -0.1, -0.0, 1e15, -1e15, 1e-30, 4.6e18, chance.uniform(-1.0, 1.0), None]
        record = Record(
            partition=partition,
            stamp_ms=stamp_ms,
            user=user_name(user),
            item=chance.randrange(N_ITEMS),
            amount=chance.choice(amounts),
            gift=True,
            at=stamp_ms * 1000 - int(happened_s * 1e6),
            raw=b"\0\0\0\0\7garbage" if chance.random() < 0.005 else None,
        )
        return self._scene.topics[name], record


class LiveWatch(RedisWatch):
    """Reads all features of all users, then of all items, again and again; what each answer said is kept, or compared
    with what was said before.
    """

    def __init__(self, site: Site, *, may_empty: bool = False) -> None:
        super().__init__(site, may_empty=may_empty, pause_s=0.008)
        by_keys: dict[tuple[str, ...], list[Asked]] = {}
        for asked in self._asked:
            by_keys.setdefault(tuple(asked.view.entity.keys), []).append(asked)
        self._turns = itertools.cycle(by_keys.values())
        self._counts: dict[tuple[str, object], tuple[int, int]] = {}
        self.n_reads = self.n_exact = 0

    @override
    def look(self) -> None:
        try:
            if self.looks % 20 == 0:
                self._look_at_clocks()
                for asked in self._asked:
                    self._look_at_rows(asked.view)
            self._read(next(self._turns))
        except (redis.RedisError, OSError, StoreUnavailable):
            self.away += 1
            time.sleep(0.02)

    def _read(self, of_entity: list[Asked]) -> None:
        references = [reference for asked in of_entity for reference in asked.references]
        try:
            found = self._reader.read(references, of_entity[0].entities, full_feature_names=True)
        except RequestError:
            # Nothing is published yet, or no longer.
            return
        answers = found.to_polars()
        for asked in of_entity:
            view, meta = asked.view.name, found.metadata[asked.view.name]
            values = answers.select(reference.replace(":", "__") for reference in asked.references).rows()
            as_of = meta["as_of"].dt.epoch("us").to_list()
            counted = next((i for i, o in enumerate(asked.view.outputs) if o.name == MONOTONE.get(view)), None)
            for key, at_us, provisional, row in zip(asked.keys, as_of, meta["provisional"], values, strict=True):
                self.n_reads += 1
                if counted is not None:
                    self._note_count(view, key, row[counted], provisional=provisional)
                if not provisional:
                    self.n_exact += 1
                    self.note_exact(ExactRead(view, key, at_us, bits(row)))

    def _note_count(self, view: str, key: tuple[object, ...], count: int, *, provisional: bool) -> None:
        """A count over all time never falls; in an emptied Redis it may be lacking, and is then not called exact."""
        most, last = self._counts.get((view, key), (0, 0))
        if count < min(most, last) and not (self._may_empty and provisional and not count):
            word = "provisional" if provisional else "exact"
            self.fault(f"{view} of {key}: {most} events, and after that {count} ({word})")
        self._counts[view, key] = max(most, count), count
