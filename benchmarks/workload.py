"""The workload of the benchmarks: one schema of events, keys by Zipf's law, the way of a poll without any server, and a
pipeline without its journal.
"""

import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import fastavro
import numpy as np
import polars as pl

from unskew.pipelines import run as pipeline
from unskew.pipelines.deployment import Deployment
from unskew.pipelines.state.journal import Fact, Journal

SCHEMA = {
    "type": "record",
    "name": "Event",
    "fields": [
        {"name": "user", "type": "long"},
        {"name": "amount", "type": "double"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    ],
}

TEXTS_SCHEMA = {
    "type": "record",
    "name": "Purchase",
    "fields": [
        {"name": "user", "type": "string"},
        {"name": "amount", "type": ["null", "double"]},
        {"name": "items", "type": ["null", "long"]},
        {"name": "paid", "type": "boolean"},
        {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["web", "app", "shop"]}},
        {"name": "page", "type": ["null", "string"]},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    ],
}
N_ENTITIES = 100_000
EPOCH_US = 5_000_000
TURNS_AT_ONCE = 50
STAGES = ("route", "shard", "redis", "tables", "epoch's end")


def zipf(n: int, n_entities: int, random: np.random.Generator, exponent: float = 1.1) -> np.ndarray:
    """Return ``n`` entity numbers below ``n_entities``; small ones are frequent."""
    weights = np.arange(1, n_entities + 1, dtype=np.float64) ** -exponent
    return np.searchsorted(np.cumsum(weights) / weights.sum(), random.random(n))


def live_in(folder: Path, **options: Any) -> Deployment:
    """Return a deployment for a live topic whose folders all lie in ``folder``, unless ``options`` say otherwise."""
    return Deployment(**{**_folders_in(folder), "idle": "wall", **options})


def replay_in(folder: Path, **options: Any) -> Deployment:
    """Return a deployment that reads what a topic has and ends; as ``live_in`` otherwise."""
    return Deployment(**{**_folders_in(folder), "idle": "none", "ends": "now", **options})


def _folders_in(folder: Path) -> dict[str, Any]:
    return {
        "log": folder / "log",
        "archive": folder / "archive",
        "dead_letters": folder / "dead",
        "state": folder / "state",
    }


def nine_features(
    n_views: int, topic: str = "events", *, partitioned: bool = True, differ: bool = False, settle: str = "10ms"
) -> Any:
    """Return views with the same nine features over three windows; all have the stream and the key in common.

    ``differ``: whether each view has a filter and a value of its own; the filters let every event through, so that
    views that differ have as much to do as views that do not.
    """
    from unskew.features.definitions import agg
    from unskew.features.definitions.compile import compile as compile_definitions
    from unskew.features.definitions.vocabulary import Entity, Feature, FeatureView, Sliding, Stream

    stream = Stream(
        "events",
        topic=topic,
        schema=SCHEMA,
        event_time="at",
        settle=settle,
        partitioned_by="user" if partitioned else None,
    )
    user = Entity("user", key="user")

    def view(number: int) -> FeatureView:
        value = f"amount + {number + 1}.5" if differ else "amount"
        features = [
            Feature(f"{name}_{extent}", aggregation, Sliding(extent))
            for extent in ("5m", "1h", "30d")
            for name, aggregation in (("count", agg.count()), ("sum", agg.sum(value)), ("max", agg.max(value)))
        ]
        where = f"amount > -{number + 1}.5" if differ else None
        return FeatureView(f"by_user_{number}", entity=user, stream=stream, features=features, where=where)

    return compile_definitions(*(view(number) for number in range(n_views)))


BESIDES = ("text", "list", "map", "derived", "keys", "sessions")
"""What a view may have besides: the last text, the last five, counts by text, a derived feature, two keys; or sessions
instead of events."""


def features_of_texts(n_views: int, *, partitioned: bool = True, besides: str | None = None) -> Any:
    """Return views with the same six features of ``TEXTS_SCHEMA`` over five minutes, one of them with a filter.

    ``besides``: one of ``BESIDES``.
    """
    from unskew.features.definitions import agg
    from unskew.features.definitions.compile import compile as compile_definitions
    from unskew.features.definitions.vocabulary import Derived, Entity, Feature, FeatureView, Sessions, Sliding, Stream

    by = "user" if partitioned else None
    stream = Stream("events", topic="events", schema=TEXTS_SCHEMA, event_time="at", settle="10ms", partitioned_by=by)
    window = Sliding("5m")
    features = [
        Feature("purchases", agg.count(), window),
        Feature("spend", agg.sum("amount"), window),
        Feature("most_items", agg.max("items"), window),
        Feature("price", agg.sum("price"), window),
        Feature("pages", agg.count_distinct("page"), window),
        Feature("paid_online", agg.count(), window, where="paid and kind = 'web'"),
    ]
    more: dict[str | None, Any] = {
        "text": Feature("more", agg.last("page"), window),
        "list": Feature("more", agg.last_n("page", 5), window),
        "map": Feature("more", agg.count(by="page"), window),
        "derived": Derived("more", "spend / purchases"),
    }
    features += [more[besides]] if besides in more else []
    user = Entity("user", key=["user", "kind"] if besides == "keys" else "user")
    source: Any = stream
    if besides == "sessions":
        source = Sessions("visits", stream=stream, gap="30s", hop="1s")
        features = [Feature("visits", agg.count(), window), Feature("length", agg.mean("length_s"), window)]
    return compile_definitions(
        *(FeatureView(f"by_user_{each}", entity=user, stream=source, features=features) for each in range(n_views))
    )


class Way:
    """The path of polls of one topic through a process, with the time spent in each stage."""

    def __init__(self, folder: Path, views: Sequence[Any], n_partitions: int = 1) -> None:
        from unskew.features.shard_state import ShardState
        from unskew.pipelines.decoding.avro import decoder_of
        from unskew.pipelines.routing import Router
        from unskew.pipelines.state.changelog import Changelog, Changelogs
        from unskew.pipelines.state.ordering import Shard, Siblings, shard_names
        from unskew.sinks.redis.batch import Batch
        from unskew.sinks.redis.resp import RowEncoder
        from unskew.sinks.tables.kinds import ArchiveTable, LogTable

        self._batch = Batch
        self._router = Router(views, decoder_of(views[0].stream), n_partitions, 1)
        siblings, logs = Siblings(), Changelogs(folder / "state")
        places = [(view, name) for view in views for name in shard_names(view, range(n_partitions), 1)]
        self._shards = {
            (view.id, name): Shard(ShardState(view, name), siblings, Changelog(logs, view, name, None))
            for view, name in places
        }
        self._logs = {
            (view.id, name): LogTable(folder / "log", view, name, None, now_us=lambda: 1) for view, name in places
        }
        self._archives = [ArchiveTable(folder / "archive", "events", number, None) for number in range(n_partitions)]
        self._encoders = {view.id: RowEncoder(view, "p") for view in views}
        self.spent_ns = dict.fromkeys(STAGES, 0)
        self._at_ns = 0

    def _took(self, stage: str) -> None:
        now_ns = time.process_time_ns()
        self.spent_ns[stage] += now_ns - self._at_ns
        self._at_ns = now_ns

    def take(self, turns: list[list[Any]]) -> None:
        """Work on turns, stage by stage and not turn by turn, because reading the processor's clock may cost a lot.

        A turn: polls of several partitions, which are decoded together.
        """
        self._at_ns = time.process_time_ns()
        routed = [[item for _, item in self._router.route(turn)] for turn in turns]
        self._took("route")
        stepped = [self._step(items) for items in routed]
        self._took("shard")
        for steps in stepped:
            self._encode(steps)
        self._took("redis")
        for step in (step for steps in stepped for step in steps):
            self._logs[step.view.id, step.shard].append(step)
        for item in (item for items in routed for item in items):
            if not hasattr(item, "shard") and not item.dead:
                self._archives[item.partition].append(item.rows, first_us=item.first_us, clock_us=item.clock_us)
        self._took("tables")

    def _step(self, items: list[Any]) -> list[Any]:
        slices: dict[Any, list[Any]] = {}
        for item in items:
            if hasattr(item, "shard"):
                slices.setdefault((item.view, item.shard), []).append(item)
        return [step for shard, pieces in slices.items() for step in self._shards[shard].take_all(pieces)]

    def _encode(self, steps: list[Any]) -> None:
        batch = self._batch()
        for step in steps:
            batch.add(step)
        batch.conflate()
        for view, rows in batch.rows.items():
            for each in rows:
                encoder = self._encoders[view]
                # That of another version may have no such method.
                few = getattr(encoder, "encode_words", lambda *_: None)(each, steps[0].clock_us)
                if few is None:
                    encoder.encode(each.frame(), steps[0].clock_us)

    def end_epoch(self) -> None:
        """Take the snapshots of an epoch's end."""
        self._at_ns = time.process_time_ns()
        for shard in self._shards.values():
            shard.to_snapshot()
        for table in (*self._logs.values(), *self._archives):
            table.snapshot()
        self._took("epoch's end")


Encode = Callable[[np.ndarray, np.ndarray, np.ndarray], list[bytes]]
"""Makes messages of users, amounts and instants in microseconds."""


def of_numbers(users: np.ndarray, amounts: np.ndarray, at: np.ndarray) -> list[bytes]:
    """Return messages of ``SCHEMA``."""
    from unskew.demo.encode import encode

    return encode(pl.DataFrame({"user": users, "amount": amounts, "at": at}), SCHEMA)


def of_texts(users: np.ndarray, amounts: np.ndarray, at: np.ndarray) -> list[bytes]:
    """Return messages of ``TEXTS_SCHEMA``; about every third amount, number of items and page is null."""
    from unskew.demo.encode import FRAME

    parsed = fastavro.parse_schema(
        {**TEXTS_SCHEMA, "fields": [*TEXTS_SCHEMA["fields"][:-1], {"name": "at", "type": "long"}]}
    )
    found = []
    for user, amount, instant in zip(users.tolist(), amounts.tolist(), at.tolist(), strict=True):
        cents = int(amount * 100)
        record = {
            "user": f"user-{user:06d}",
            "amount": amount if cents % 3 else None,
            "items": cents % 7 if cents % 4 else None,
            "paid": cents % 2 == 0,
            "kind": ("web", "app", "shop")[cents % 3],
            "page": f"/shop/{cents % 50}" if cents % 5 > 1 else None,
            "price": Decimal(cents) / 100,
            "at": instant,
        }
        body = io.BytesIO()
        fastavro.schemaless_writer(body, parsed, record)
        found.append(FRAME + body.getvalue())
    return found


def turns(n_records: int, n_partitions: int = 1, *, n_turns: int, encoded: Encode = of_numbers) -> Iterator[list[Any]]:
    """Yield turns without end, of which so many make five seconds: the polls of the partitions that have records.

    ``n_records``: of each turn, all partitions together; without any, every partition has a poll with its clock alone.
    """
    from unskew.pipelines.kafka.blobs import Blobs
    from unskew.pipelines.kafka.poll import Poll

    random = np.random.default_rng(0)
    users = zipf(n_turns * n_records, N_ENTITIES, random).reshape(n_turns, n_records)
    amounts = np.round(random.gamma(2.0, 20.0, (n_turns, n_records)), 2)
    offsets = [0] * n_partitions
    now_us, step_us = 1_600_000_000_000_000, EPOCH_US // n_turns
    while True:
        for user, amount in zip(users, amounts, strict=True):
            at = now_us + np.sort(random.integers(0, step_us, n_records))
            now_us += step_us
            values = np.array(encoded(user, amount, at), object)
            turn = []
            for partition in range(n_partitions):
                own = user % n_partitions == partition
                n_own = int(own.sum())
                if n_records and not n_own:
                    continue
                arrivals = at[own] // 1000 * 1000
                first = offsets[partition]
                offsets[partition] += n_own
                poll = Poll(
                    stream="events",
                    partition=partition,
                    clock_us=int(arrivals[-1]) if n_own else now_us - step_us // 10,
                    ended=False,
                    offsets=np.arange(first, first + n_own),
                    arrivals=arrivals,
                    keys=Blobs.of([None] * n_own),
                    values=Blobs.of(values[own].tolist()),
                    rejected=[],
                )
                turn.append(poll)
            yield turn


def one_epoch(
    views: Sequence[Any], coming: Iterator[list[Any]], *, n_turns: int, n_partitions: int = 1
) -> dict[str, float]:
    """Return microseconds of processor a turn, by stage, of one epoch of so many turns; some before it warm up."""
    # A changelog's thread may still write a file while the folder is removed.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        way = Way(Path(folder), views, n_partitions)
        at_once = min(TURNS_AT_ONCE, n_turns)
        way.take(list(islice(coming, at_once)))
        way.end_epoch()
        way.spent_ns = dict.fromkeys(STAGES, 0)
        for _ in range(n_turns // at_once):
            way.take(list(islice(coming, at_once)))
        way.end_epoch()
        return {stage: spent / 1000 / n_turns for stage, spent in way.spent_ns.items()}


class Watched(Journal):
    """The normal journal; ``made`` lists all instances that were made."""

    made: ClassVar[list[Journal]] = []

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.made.append(self)


class Forgetful(Watched):
    """A journal that notes nothing and waits for nothing, as if the pipeline had none."""

    def note(self, fact: Fact) -> int:  # noqa: ARG002
        return 0

    def begin(self) -> None:
        pass

    def holds(self, ticket: int) -> bool:  # noqa: ARG002
        return True

    def ensure(self, ticket: int) -> None:
        pass

    def durable(self, *_: Any) -> None:
        pass


@contextmanager
def journal_of(kind: type[Watched]) -> Iterator[list[Journal]]:
    """Run pipelines of the body with this kind of journal; yield the instances that were made."""
    pipeline.Journal = kind  # type: ignore[misc]
    kind.made.clear()
    try:
        yield kind.made
    finally:
        pipeline.Journal = Journal  # type: ignore[misc]


def processor_s(pid: int) -> float:
    """Return the processor seconds of a process so far; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
