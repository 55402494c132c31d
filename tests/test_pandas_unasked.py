"""No pipeline, read, audit or compaction imports pandas unless a caller gives or wants its frames.

To import it takes most of a second, and memory.
Arrow imports it by itself, where there is one, to make arrays of what is not Arrow's, or numpy's of its own.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

# A process of its own, because the tests of this one import pandas.
EVERYTHING = """
import sys, threading, time
from pathlib import Path

import numpy as np
import polars as pl
from confluent_kafka import Producer

from unskew import Entity, Feature, FeatureStore, FeatureView, Sliding, Stream, agg
from unskew.demo.embedded import EmbeddedBroker, EmbeddedRedis
from unskew.demo.encode import encode
from unskew.features.definitions.compile import compile
from unskew.monitoring.audit import audit
from unskew.offline.compaction import Limits, compact, log_tables
from unskew.pipelines.deployment import Deployment
from unskew.pipelines.run import run
from unskew.sinks.tables import parquet

N = 2_000
FIELDS = {
    "user": "long",
    "shop": {"type": "enum", "name": "shop", "symbols": ["a", "b", "c"]},
    "price": {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2},
    "amount": ["null", "double"],
    "at": {"type": "long", "logicalType": "timestamp-micros"},
}
SCHEMA = {"type": "record", "name": "event", "fields": [{"name": n, "type": t} for n, t in FIELDS.items()]}

def not_yet(what):
    assert "pandas" not in sys.modules, f"{what} imported pandas"

random = np.random.default_rng(0)
stamps_ms = 1_600_000_000_000 + 1_000 * np.arange(N)
given = pl.DataFrame({
    "user": random.integers(0, 50, N),
    "shop": pl.Series(random.choice(["a", "b", "c"], N)),
    "price": random.integers(-10_000, 10_000, N),
    "amount": pl.Series([None if n % 5 == 0 else n / 4 for n in range(N)]),
    "at": stamps_ms * 1000,
})
features = {
    "n": agg.count(), "price": agg.sum("price"), "dearest": agg.max("price"), "amount": agg.mean("amount"),
    "shops": agg.last_n("shop", 3), "by_shop": agg.count(by="shop"), "spent": agg.sum("price", by="shop"),
    "distinct": agg.count_distinct("shop"), "first": agg.first("amount"), "edges": agg.histogram("amount", [0, 10]),
}
view = FeatureView(
    "by_user", entity=Entity("user", key="user"),
    stream=Stream("events", topic="events", schema=SCHEMA, event_time="at"),
    features=[Feature(name, function, Sliding("1min")) for name, function in features.items()],
)
plan = compile(view)
folder = Path(sys.argv[1])
parquet.AHEAD_CELLS = 1_000
with EmbeddedBroker() as broker, EmbeddedRedis() as redis:
    broker.create_topic("events", 2)
    producer = Producer({"bootstrap.servers": broker.bootstrap, "log_level": 0})
    for number, value in enumerate(encode(given, SCHEMA)):
        producer.produce("events", value, partition=number % 2, timestamp=int(stamps_ms[number]))
    assert producer.flush(60) == 0
    deployment = Deployment(
        log=folder / "log", archive=folder / "archive", dead_letters=folder / "dead", state=folder / "state",
        bootstrap=broker.bootstrap, redis_url=redis.url, prefix="p", idle="none", ends="now", epoch_s=0.0,
        poll_records=300,
    )
    status = run(plan, deployment, stop=threading.Event())
    assert (status.consumed, status.dead) == (N, 0), status
    not_yet("a pipeline")
    store = FeatureStore(plan, log=deployment.log, archive=deployment.archive, redis_url=redis.url, prefix="p")
    references = [f"by_user:{name}" for name in features]
    assert store.get_online_features(references, [{"user": n} for n in range(9)]).to_dict()["n"]
    not_yet("an online read")
    instant = pl.Datetime("us", "UTC")
    labels = given.select("user", event_timestamp=pl.col("at").cast(instant)).head(N - 100)
    for source in ("log", "events"):
        assert store.get_historical_features(labels, references, source=source).to_polars().height == labels.height
        not_yet(f"a training set from {source}")
    assert audit(plan, deployment.log, deployment.archive, samples=50).difference is None
    not_yet("an audit")
    (table,) = log_tables(deployment.log)
    found = compact(table, Limits(grace_s=0.0, min_files=2), now_s=time.time())
    assert found.files_after < found.files_before, found
    not_yet("a compaction")
print("all of it")
"""


def test_nothing_imports_pandas_unasked(tmp_path: Path) -> None:
    assert importlib.util.find_spec("pandas") is not None
    done = subprocess.run(
        [sys.executable, "-c", EVERYTHING, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )

    assert done.returncode == 0, done.stderr[-3_000:]
    assert done.stdout == "all of it\n"
