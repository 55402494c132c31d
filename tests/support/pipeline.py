"""A small real pipeline for tests: records in a broker, two kinds of shard, every aggregation, expected results."""

import io
import itertools
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import polars as pl
from confluent_kafka import Producer

from unskew.demo.embedded import EmbeddedBroker
from unskew.features.definitions import agg
from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.definitions.vocabulary import (
    Calendar,
    Entity,
    Feature,
    FeatureView,
    Sliding,
    Stream,
    Table,
    Tumbling,
)
from unskew.features.plan import Plan, ViewPlan
from unskew.monitoring.audit import audit
from unskew.monitoring.outcome import AuditReport
from unskew.monitoring.recount import Recount
from unskew.pipelines.deployment import Deployment
from unskew.pipelines.run import run
from unskew.pipelines.watch.running import Status

SECOND = 1_000_000
START = 1_490_486_400 * SECOND  # 2017-03-26 00:00 UTC: the day on which Berlin's clocks go forward
SCHEMA = {
    "type": "record",
    "name": "Purchase",
    "fields": [
        {"name": "user", "type": "string"},
        {"name": "item", "type": "long"},
        {"name": "amount", "type": ["null", "double"]},
        {"name": "gift", "type": "boolean"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    ],
}
_PARSED = fastavro.parse_schema(SCHEMA)
_numbers = itertools.count()


@dataclass(frozen=True)
class Record:
    """One record of the topic; ``stamp_ms`` is what its producer says, ``at`` its event time in microseconds."""

    partition: int
    stamp_ms: int
    user: str
    item: int
    amount: float | None
    gift: bool
    at: int
    raw: bytes | None = None

    def value(self) -> bytes:
        if self.raw is not None:
            return self.raw
        body = io.BytesIO()
        fastavro.schemaless_writer(
            body,
            _PARSED,
            {"user": self.user, "item": self.item, "amount": self.amount, "gift": self.gift, "at": self.at},
        )
        return b"\0\0\0\0\7" + body.getvalue()


def history(n_records: int, *, seed: int, n_partitions: int = 4, n_users: int = 9, n_items: int = 5) -> list[Record]:
    """Seeded records in the order of their time stamps, so that no partition goes back: some at one instant, some late
    or from the future, long gaps, awkward numbers, and a few that are no event."""
    random = np.random.default_rng(seed)
    stamp_ms = START // 1000
    records = []
    for index in range(n_records):
        stamp_ms += int(
            random.choice([0, 0, 1, 400, 1000, 2500, 20_000, 4_000_000], p=[0.15, 0.15, 0.1, 0.2, 0.2, 0.1, 0.09, 0.01])
        )
        user = int(random.integers(n_users))
        lateness = int(random.choice([0, 0, 0, 300, 4_000, 90_000, -5_000])) * 1000
        amount = random.choice(
            [0.1, 0.2, -0.0, 1e-30, 4.6e18, -4.6e18, float(random.normal()), float("nan")],
            p=[0.2, 0.2, 0.1, 0.1, 0.05, 0.05, 0.29, 0.01],
        )
        records.append(
            Record(
                partition=user % n_partitions,
                stamp_ms=stamp_ms,
                user=f"user {user}%",
                item=int(random.integers(n_items)),
                amount=None if index % 13 == 5 else float(amount),
                gift=bool(random.integers(2)),
                at=stamp_ms * 1000 - lateness,
                raw=b"\0\0\0\0\7garbage" if index % 37 == 11 else None,
            )
        )
    return records


def plan(topic: str) -> Plan:
    """Two entities on one stream: users by partition, items across partitions."""
    stream = Stream("purchases", topic=topic, schema=SCHEMA, event_time="at", partitioned_by="user", owner="tests")
    return compile_definitions(*views_over(stream))


def views_over(stream: Stream | Table) -> tuple[FeatureView, FeatureView]:
    """Views of two entities over the events of a stream or table."""
    user, item = Entity("user", key="user"), Entity("item", key="item")
    windows = {
        "5s": Sliding("5s", hop="1s"),
        "1m": Sliding("60s", hop="15s"),
        "10s": Tumbling("10s"),
        "today": Calendar("day", tz="Europe/Berlin"),
    }
    features = []
    for name, window in windows.items():
        features += [
            Feature(f"count_{name}", agg.count(), window),
            Feature(f"sum_{name}", agg.sum("amount"), window),
            Feature(f"mean_{name}", agg.mean("amount"), window, filter="amount > 0"),
            Feature(f"min_{name}", agg.min("item"), window),
            Feature(f"max_{name}", agg.max("amount"), window),
            Feature(f"last_{name}", agg.last("gift"), window),
        ]
    return (
        FeatureView("by_user", entity=user, stream=stream, owner="tests", features=features),
        FeatureView("by_item", entity=item, stream=stream, owner="tests", features=features[:12], where="item <> 3"),
    )


@dataclass
class Outcome:
    """What a pipeline left behind."""

    plan: Plan
    deployment: Deployment
    status: Status | None = None

    def log(self, view: str) -> pl.DataFrame:
        """The view's published log in the order of (shard, seq), all columns but ``written_at``."""
        files = sorted((self.deployment.log / view).glob("v1/day=*/*.parquet"))
        rows = pl.concat([pl.read_parquet(file, hive_partitioning=False) for file in files])
        return rows.drop("written_at").sort("shard", "seq")

    def values(self, view: str) -> pl.DataFrame:
        """The log's keys, values and instants alone, in the order of (instant, key)."""
        keys = self.plan.views[view].entity.keys
        names = [feature.name for feature in self.plan.views[view].features]
        return self.log(view).select(*keys, "available_at", *names).sort("available_at", *keys)

    def archive(self) -> pl.DataFrame:
        files = sorted((self.deployment.archive).glob("*/day=*/*.parquet"))
        rows = pl.concat([pl.read_parquet(file, hive_partitioning=False) for file in files])
        return rows.sort("_partition", "_offset")

    def dead_letters(self) -> pl.DataFrame:
        files = sorted((self.deployment.dead_letters).glob("*/day=*/*.parquet"))
        rows = [pl.read_parquet(file, hive_partitioning=False) for file in files]
        return pl.concat(rows).sort("partition", "offset", "view") if rows else pl.DataFrame()

    def complete_to(self, view: str) -> dict[str, Any]:
        """Per shard, the last instant that is closed; None where it ended without any record."""
        files = (self.deployment.log / view / "v1" / "_coverage").glob("*.json")
        return {file.stem: json.loads(file.read_text())["complete_to"] for file in files if file.stem != "_shards"}

    def staged(self) -> list[Path]:
        return [
            file for root in (self.deployment.log, self.deployment.archive) for file in root.rglob("_staged/**/*.*")
        ]


@dataclass
class Bench:
    """A broker and a Redis, and folders for one test."""

    broker: EmbeddedBroker
    redis_url: str
    root: Path
    runs: Any = field(default_factory=itertools.count)

    def produce(self, records: Sequence[Record], n_partitions: int = 4) -> str:
        """A new topic with these records, each partition in the order given."""
        topic = f"purchases-{next(_numbers)}"
        self.broker.create_topic(topic, n_partitions)
        self.append(topic, records)
        return topic

    def append(self, topic: str, records: Sequence[Record]) -> None:
        client = getattr(self.broker, "client", {})
        producer = Producer(
            {
                "bootstrap.servers": self.broker.bootstrap,
                "enable.idempotence": True,
                "linger.ms": 5,
                "log_level": 0,
                **client,
            }
        )
        for record in records:
            producer.produce(
                topic, record.value(), record.user.encode(), partition=record.partition, timestamp=record.stamp_ms
            )
        assert producer.flush(20) == 0

    def deployment(self, **changes: Any) -> Deployment:
        """A fresh deployment: its own folders and its own name in Redis."""
        name = f"run{next(self.runs)}"
        folder = self.root / name
        return replace(
            Deployment(
                bootstrap=self.broker.bootstrap,
                redis_url=self.redis_url,
                log=folder / "log",
                archive=folder / "archive",
                dead_letters=folder / "dead",
                state=folder / "state",
                idle="none",
                ends="now",
                prefix=f"test-{name}",
                epoch_s=0.05,
                poll_records=50,
            ),
            **changes,
        )

    def run(self, topic: str, **changes: Any) -> Outcome:
        """Run over the whole topic, once, from nothing."""
        outcome = Outcome(plan(topic), self.deployment(**changes))
        outcome.status = run(outcome.plan, outcome.deployment, stop=threading.Event())
        return outcome


def naive_arrivals(records: Sequence[Record]) -> dict[tuple[int, int], int]:
    """(partition, offset) -> arrival in microseconds, by the rule alone."""
    clocks: dict[int, int] = {}
    offsets: dict[int, int] = {}
    arrivals = {}
    for record in records:
        offset = offsets.get(record.partition, 0)
        offsets[record.partition] = offset + 1
        clocks[record.partition] = max(record.stamp_ms * 1000, clocks.get(record.partition, 0))
        arrivals[record.partition, offset] = clocks[record.partition]
    return arrivals


def entities(view: ViewPlan, events: pl.DataFrame) -> list[tuple[Any, ...]]:
    """Every key that occurs in the events."""
    return sorted(events.select(view.entity.keys).unique().iter_rows())


def expected_log(view: ViewPlan, events: pl.DataFrame, complete_to: Mapping[Any, int]) -> list[tuple[Any, ...]]:
    """(instant, key, cause, values …) of every row that the log must hold, by the recount; ``complete_to`` by key."""
    recount = Recount(view, events)
    return sorted(
        (row.instant_us, *key, row.cause, *bits(row.values.values()))
        for key in entities(view, events)
        for row in recount.rows(key, complete_to[key])
    )


def logged(view: ViewPlan, rows: pl.DataFrame) -> list[tuple[Any, ...]]:
    """The log's rows in the form of ``expected_log``."""
    names = [output.name for output in view.outputs]
    keys = view.entity.keys
    frame = rows.select(pl.col("available_at").dt.epoch("us"), *keys, "cause", *names)
    n_head = 2 + len(keys)
    return sorted((*row[:n_head], *bits(row[n_head:])) for row in frame.iter_rows())


def bits(values: Any) -> tuple[Any, ...]:
    """Values so that only the same bits are equal, and that sort: floats as hexadecimal text."""
    return tuple(
        "null" if value is None else value.hex() if isinstance(value, float) else repr(value) for value in values
    )


def agreed(plan: Plan, deployment: Deployment, *, samples: int) -> AuditReport:
    """Compare log and Redis with a recount of the archive; return the report, which has no difference."""
    report = audit(
        plan,
        deployment.log,
        deployment.archive,
        redis_source=deployment.redis_url,
        prefix=deployment.prefix,
        samples=samples,
        patience_s=0,
    )
    assert [str(one) for one in report.differences] == []
    return report
