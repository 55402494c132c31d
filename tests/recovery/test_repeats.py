"""Repeats are dropped as the archive says, whatever polls, partitions and restarts made of them."""

import io
import threading
from collections.abc import Sequence
from dataclasses import replace

import fastavro
import numpy as np
import pytest

from tests.support.pipeline import SECOND, START, Bench, Outcome, Record, entities, expected_log, logged
from unskew.features.definitions import agg
from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.definitions.vocabulary import Entity, Feature, FeatureView, Sliding, Stream, Tumbling
from unskew.features.errors import LayoutError
from unskew.features.plan import Plan
from unskew.pipelines.run import run

WITHIN = 20 * SECOND
SCHEMA = {
    "type": "record",
    "name": "Order",
    "fields": [
        {"name": "user", "type": "string"},
        {"name": "item", "type": "long"},
        {"name": "id", "type": ["null", "string"]},
        {"name": "number", "type": "long"},
        {"name": "amount", "type": "double"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
    ],
}
_PARSED = fastavro.parse_schema(SCHEMA)
VIEWS = ["by_user", "by_item"]
# Every item is an epoch of its own.
EVERY_ITEM = {"epoch_s": 0.0, "poll_records": 6}


def order(
    stamp_ms: int, user: int, item: int, name: str | None, *, amount: float = 1.0, partition: int | None = None
) -> Record:
    body = io.BytesIO()
    at = stamp_ms * 1000 - 100_000
    number = -1 if name is None else int(name)
    payload = {"user": f"u{user}", "item": item, "id": name, "number": number, "amount": amount, "at": at}
    fastavro.schemaless_writer(body, _PARSED, payload)
    return Record(
        partition=user % 4 if partition is None else partition,
        stamp_ms=stamp_ms,
        user=f"u{user}",
        item=item,
        amount=amount,
        gift=False,
        at=at,
        raw=b"\0\0\0\0\7" + body.getvalue(),
    )


def orders(n_records: int, *, seed: int) -> list[Record]:
    """Return records with few ids, which repeat in one poll, later ones and other partitions, in time and too late."""
    random = np.random.default_rng(seed)
    stamp_ms = START // 1000
    records = []
    for _ in range(n_records):
        stamp_ms += int(random.choice([0, 0, 400, 1000, 9_000, 20_000], p=[0.2, 0.2, 0.2, 0.3, 0.07, 0.03]))
        name = None if random.random() < 0.1 else str(random.integers(4))
        records.append(
            order(stamp_ms, int(random.integers(6)), int(random.integers(4)), name, amount=float(random.normal()))
        )
    return records


def plan(topic: str, *, event_id: str = "id", within: int | None = WITHIN) -> Plan:
    stream = Stream(
        "orders", topic=topic, schema=SCHEMA, event_time="at", partitioned_by="user", event_id=event_id,
        dedupe_within=None if within is None else f"{within}us",
    )  # fmt: skip
    features = [
        Feature("n", agg.count(), Sliding("5s", hop="1s")),
        Feature("sum", agg.sum("amount"), Sliding("60s", hop="15s")),
        Feature("last", agg.last("amount"), Tumbling("10s")),
    ]
    return compile_definitions(
        FeatureView("by_user", entity=Entity("user", key="user"), stream=stream, features=features),
        FeatureView("by_item", entity=Entity("item", key="item"), stream=stream, features=features, where="item <> 3"),
    )


RECORDS = orders(220, seed=5)


def _run(bench: Bench, definitions: Plan, **changes: object) -> Outcome:
    outcome = Outcome(definitions, bench.deployment(**changes))
    outcome.status = run(definitions, outcome.deployment, stop=threading.Event())
    return outcome


def _agrees_with_recount(outcome: Outcome) -> None:
    events = outcome.archive()
    for name in VIEWS:
        view = outcome.plan.views[name]
        ends = outcome.complete_to(name)
        if view.partitioned:
            places = {(user,): partition for user, partition in events.select("user", "_partition").iter_rows()}
            complete_to = {key: ends[f"p{partition}.0"] for key, partition in places.items()}
        else:
            complete_to = dict.fromkeys(entities(view, events), min(end for end in ends.values() if end is not None))
        assert logged(view, outcome.log(name)) == expected_log(view, events, complete_to)


def _repeats(records: Sequence[Record], entity: str) -> int:
    """How many records are repeats, by the words of the definition."""
    counted: dict[tuple[object, object], int] = {}
    n_repeats = 0
    for record in records:
        assert record.raw is not None
        event = fastavro.schemaless_reader(io.BytesIO(record.raw[5:]), _PARSED, None)
        if event["id"] is None or (entity == "item" and event["item"] == 3):
            continue
        before = counted.get((event[entity], event["id"]))
        if before is not None and record.stamp_ms * 1000 - before <= WITHIN:
            n_repeats += 1
        else:
            counted[event[entity], event["id"]] = record.stamp_ms * 1000
    return n_repeats


@pytest.mark.parametrize("poll_records", [1, 7, 500])
@pytest.mark.parametrize("event_id", ["id", "number"])
def test_the_log_is_the_recount_without_repeats_whatever_the_polls(bench: Bench, poll_records, event_id) -> None:
    topic = bench.produce(RECORDS)

    outcome = _run(bench, plan(topic, event_id=event_id), poll_records=poll_records, n_hashes=1)

    _agrees_with_recount(outcome)
    if event_id == "id":
        assert outcome.status is not None
        assert outcome.status.duplicates == {
            "by_user@1": _repeats(RECORDS, "user"),
            "by_item@1": _repeats(RECORDS, "item"),
        }
        assert min(outcome.status.duplicates.values()) > 20


def test_without_a_time_within_which_ids_repeat_all_events_count(bench: Bench) -> None:
    topic = bench.produce(RECORDS)

    dropping, counting = _run(bench, plan(topic)), _run(bench, plan(topic, within=None))

    assert counting.status is not None
    assert counting.status.duplicates == {}
    for view in VIEWS:
        assert counting.values(view)["n"].sum() > dropping.values(view)["n"].sum()


class _BrokenOff(LayoutError):
    """Stands for whatever may end a process in the middle of its work."""


class _After:
    """A stop flag that breaks off when it has been asked ``n`` times."""

    def __init__(self, n: int) -> None:
        self._left = n

    def is_set(self) -> bool:
        self._left -= 1
        if self._left < 0:
            raise _BrokenOff
        return False


@pytest.mark.parametrize("n_hashes", [1, 3])
def test_broken_off_and_restarted_the_same_events_are_repeats(bench: Bench, n_hashes) -> None:
    topic = bench.produce(RECORDS)
    reference = _run(bench, plan(topic), n_hashes=n_hashes, **EVERY_ITEM)
    broken = 0
    for first in range(10, 58, 12):
        outcome = Outcome(plan(topic), bench.deployment(n_hashes=n_hashes, **EVERY_ITEM))
        for n in (first, first + 10):
            try:
                run(outcome.plan, outcome.deployment, stop=_After(n))  # type: ignore[arg-type]
            except _BrokenOff:
                broken += 1
        run(outcome.plan, outcome.deployment, stop=threading.Event())
        for view in VIEWS:
            assert outcome.log(view).equals(reference.log(view))
            assert outcome.complete_to(view) == reference.complete_to(view)
    assert broken > 4


def test_a_topic_that_grows_after_its_end_repeats_what_was_counted_before(bench: Bench) -> None:
    """The first of two repeats may be in a partition of higher number; records after an end come after it in order."""
    begin = START // 1000
    first = [order(begin, 1, 0, "1", partition=1), order(begin + 2000, 3, 0, "7", amount=2.0, partition=3)]
    then = [
        order(begin + 1000, 0, 0, "7", amount=64.0, partition=0),
        order(begin + 9000, 1, 0, "1", partition=1),
        order(begin + 30_000, 1, 0, "1", partition=1),
    ]
    topic = bench.produce(first)
    outcome = Outcome(plan(topic), bench.deployment())
    run(outcome.plan, outcome.deployment, stop=threading.Event())
    bench.append(topic, then)

    outcome.status = run(outcome.plan, outcome.deployment, stop=threading.Event())

    assert outcome.status.duplicates == {"by_user@1": 1, "by_item@1": 2}
    assert 64.0 not in outcome.values("by_item")["last"].to_list()
    _agrees_with_recount(outcome)


def test_another_time_or_id_is_another_definition(bench: Bench) -> None:
    topic = bench.produce(RECORDS[:40])
    outcome = _run(bench, plan(topic))

    for changed in (plan(topic, within=WITHIN + 1), plan(topic, event_id="number"), plan(topic, within=None)):
        with pytest.raises(LayoutError, match=r"another definition.*new version"):
            run(changed, outcome.deployment, stop=threading.Event())


def test_an_entity_whose_ids_may_still_repeat_does_not_come_in_a_second_partition(bench: Bench) -> None:
    """After a minute no window holds the first order, and its entity would be forgotten but for the id."""
    begin = START // 1000
    records = [order(begin, 1, 0, "1", partition=1), order(begin + 600_000, 5, 0, "2", partition=1)]
    moved = order(begin + 600_001, 1, 0, "1", partition=2)
    topics = {within: bench.produce(records) for within in (3600 * SECOND, None)}
    outcomes = {within: _run(bench, plan(topic, within=within)) for within, topic in topics.items()}
    for topic in topics.values():
        bench.append(topic, [moved])

    with pytest.raises(LayoutError, match="entity u1 came in partition 2"):
        run(outcomes[3600 * SECOND].plan, outcomes[3600 * SECOND].deployment, stop=threading.Event())
    run(outcomes[None].plan, outcomes[None].deployment, stop=threading.Event())


def test_an_order_that_the_view_leaves_out_makes_no_repeat(bench: Bench) -> None:
    begin = START // 1000
    left_out = replace(order(begin, 1, 3, "1"))
    topic = bench.produce([left_out, order(begin + 1000, 1, 2, "1"), order(begin + 2000, 1, 2, "1")])

    outcome = _run(bench, plan(topic))

    assert outcome.status is not None
    assert outcome.status.duplicates == {"by_user@1": 2, "by_item@1": 1}
    _agrees_with_recount(outcome)
