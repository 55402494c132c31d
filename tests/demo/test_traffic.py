"""Traffic for the example: what is sent is what its pipeline reads and counts."""

import subprocess
import sys
import time
from collections import Counter
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import confluent_kafka
import fastavro
import polars as pl
import pytest

from unskew import FeatureStore
from unskew.demo.embedded import EmbeddedBroker
from unskew.demo.journey import HOME, schema
from unskew.demo.traffic import N_HOUSEHOLDS, batches

N_PARTITIONS = 4
N_EVENTS = 600


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=False, timeout=300)


def records(bootstrap: str, topic: str, name: str) -> list[dict[str, Any]]:
    """The records of a topic as fastavro reads them, each with its partition and key."""
    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": bootstrap, "group.id": "recount", "enable.partition.eof": True, "log_level": 0}
    )
    consumer.assign([confluent_kafka.TopicPartition(topic, number, 0) for number in range(N_PARTITIONS)])
    parsed, found, ended = fastavro.parse_schema(schema(name)), [], 0
    deadline_s = time.monotonic() + 60
    while ended < N_PARTITIONS:
        assert time.monotonic() < deadline_s
        message = consumer.poll(1.0)
        if message is None:
            continue
        if message.error() is not None:
            ended += 1
            continue
        value = message.value()
        assert value is not None
        event = fastavro.schemaless_reader(BytesIO(value[5:]), parsed, None)
        assert isinstance(event, dict)
        assert message.key() == str(event["household_id"]).encode()
        found.append({**event, "partition": message.partition()})
    consumer.close()
    return found


def test_seconds_have_the_rate_and_a_seed_gives_the_same_events():
    first, again = (list(islice(batches(2.5, 7), 40)) for _ in range(2))

    heights = [sum(rows.height for rows in second.values()) for second in first]

    assert set(heights) == {2, 3}
    assert sum(heights) == 100
    assert all(one[topic].equals(other[topic]) for one, other in zip(first, again, strict=True) for topic in one)
    assert not all(
        one["page_views"].equals(other["page_views"])
        for one, other in zip(first, islice(batches(2.5, 8), 40), strict=True)
    )


def test_numbers_of_views_and_baskets_come_once():
    seconds = list(islice(batches(20, 1), 30))

    for topic, number in (("transactions", "basket_id"), ("page_views", "view_id")):
        numbers = pl.concat([second[topic] for second in seconds])[number]
        assert numbers.to_list() == list(range(len(numbers)))


@pytest.mark.long
def test_what_is_sent_is_what_the_examples_pipeline_counts(tmp_path: Path, redis_url: str) -> None:
    topics = {"transactions": N_PARTITIONS, "page_views": N_PARTITIONS}
    with EmbeddedBroker(topics) as broker:
        sent = command(
            *("unskew.demo.traffic", "--bootstrap-servers", broker.bootstrap, "--rate", "300"),
            *("--events", str(N_EVENTS), "--alive", str(tmp_path / "alive")),
        )
        ran = command(
            *("unskew", "run", "--apply", "--idle", "none", "--end", "now", "--definitions", str(HOME)),
            *("--bootstrap-servers", broker.bootstrap, "--redis-url", redis_url, "--progress", "none"),
            *(
                "--log",
                str(tmp_path / "log"),
                "--archive",
                str(tmp_path / "archive"),
                "--state",
                str(tmp_path / "state"),
            ),
        )
        bought = records(broker.bootstrap, "transactions", "transaction")
        seen = records(broker.bootstrap, "page_views", "page_view")

    assert (sent.returncode, sent.stderr) == (0, "")
    assert sent.stdout.endswith(f"sent {N_EVENTS:,} events\n")
    assert (tmp_path / "alive").exists()
    assert ran.returncode == 0, ran.stderr
    assert len(bought) + len(seen) == N_EVENTS
    assert len({(one["household_id"], one["partition"]) for one in (*bought, *seen)}) == len(
        {one["household_id"] for one in (*bought, *seen)}
    )
    purchases = Counter(one["household_id"] for one in bought)
    views = Counter(one["household_id"] for one in seen)
    households = sorted({*purchases, *views})
    with FeatureStore(redis_url=redis_url) as store:
        served = store.get_online_features(
            ["household_purchases:purchase_count_30d", "household_page_views:views_1h"],
            [{"household_id": household} for household in households],
        ).to_dict()
    assert max(households) <= N_HOUSEHOLDS
    assert served["purchase_count_30d"] == [purchases[household] for household in households]
    assert served["views_1h"] == [views[household] for household in households]


@pytest.mark.needs_broker("topic ids")
def test_a_topic_that_is_missing_is_named(own_broker):
    """In the broker of other tests, one of them may have made it."""
    found = command("unskew.demo.traffic", "--bootstrap-servers", own_broker.bootstrap)

    assert found.returncode == 1
    assert "has no topic 'transactions'" in found.stderr


def test_a_broker_that_is_away_is_named():
    found = command("unskew.demo.traffic", "--bootstrap-servers", "127.0.0.1:1")

    assert found.returncode == 1
    assert "name its address with --bootstrap-servers" in found.stderr
