"""Versions of a view side by side: each is what it would be alone, whatever comes and goes beside it."""

import datetime as dt
import threading
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import redis
from bytewax.errors import BytewaxRuntimeError

from tests.support.pipeline import SCHEMA, START, Bench, agreed, history
from unskew import FeatureStore
from unskew.features.definitions import agg
from unskew.features.definitions.compile import compile as compile_definitions
from unskew.features.definitions.vocabulary import Entity, Feature, FeatureView, Sliding, Stream, Tumbling
from unskew.features.errors import LayoutError, RequestError
from unskew.features.plan import Plan
from unskew.pipelines.deployment import Deployment
from unskew.pipelines.history import archive, backfill
from unskew.pipelines.run import run
from unskew.sinks import durable
from unskew.sinks.tables.layout import read_coverage, view_root

# No partition goes on at the instant at which a run ended: its first record would be bumped.
RECORDS = history(300, seed=34)
MINUTE, TODAY = Sliding("60s", hop="15s"), Tumbling("1h")
FEATURES = {
    1: [Feature("n", agg.count(), MINUTE), Feature("spend", agg.mean("amount"), MINUTE, default=-1.0)],
    2: [
        Feature("n", agg.count(), TODAY, filter="gift"),
        Feature("spend", agg.mean("amount"), TODAY, default=-2.0),
        Feature("last", agg.last("gift"), MINUTE),
    ],
}


def plan(topic: str, *versions: int, serving: int = 0) -> Plan:
    """Two views, over one partition and over all, each in these versions."""
    stream = Stream("purchases", topic=topic, schema=SCHEMA, event_time="at", partitioned_by="user", owner="tests")
    return compile_definitions(
        FeatureView(
            f"by_{key}",
            entity=Entity(key, key=key),
            stream=stream,
            owner="tests",
            features=FEATURES[version],
            version=version,
            serving=version == serving,
        )
        for key in ("user", "item")
        for version in versions
    )


def ran(one: Plan, deployment: Deployment) -> None:
    run(one, deployment, stop=threading.Event())


def log_of(deployment: Deployment, view: str) -> pl.DataFrame:
    name, version = view.split("@")
    files = sorted((deployment.log / name / f"v{version}").glob("day=*/*.parquet"))
    rows = pl.concat([pl.read_parquet(file, hive_partitioning=False) for file in files])
    return rows.drop("written_at", "cause").sort("shard", "seq")


def values_in_redis(url: str, deployment: Deployment, view: str) -> dict[str, dict[str, str]]:
    client = redis.Redis.from_url(url, decode_responses=True)
    start = f"{deployment.prefix}:{view}:"
    return {key.removeprefix(start): client.hgetall(key) for key in client.scan_iter(f"{start}*")}


class Killed(BaseException):
    """The process ends here."""


def killed_and_resumed(one: Plan, deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run, killed at one rename after the other, until a run comes through; return the number of kills."""
    rename, left = durable.rename, [0]

    def killed(*arguments: Any, **more: Any) -> None:
        left[0] -= 1
        if left[0] <= 0:
            raise Killed
        rename(*arguments, **more)

    for n_kills, step in enumerate((1, 3, 6, 11, 17, 26, 40, 10**9)):
        left[0] = step
        monkeypatch.setattr(durable, "rename", killed)
        try:
            ran(one, deployment)
        except (Killed, BytewaxRuntimeError):
            continue
        finally:
            monkeypatch.setattr(durable, "rename", rename)
        return n_kills
    raise AssertionError


@pytest.mark.long
def test_versions_come_and_go_beside_each_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each version equals a run of its own and an independent recount; killed while one is added and while one goes.

    records   0       100      180      240      300
    v1        |-----------------------|            serves until 240, then it is removed
    v2                |- past -|--------------|    added at 100, serves from 240
    """
    monkeypatch.setattr(backfill, "CHUNK_ROWS", 40)
    monkeypatch.setattr(archive, "BATCH_ROWS", 7)
    topic = bench.produce(RECORDS[:100])
    deployment = bench.deployment(n_hashes=2)
    ran(plan(topic, 1), deployment)
    bench.append(topic, RECORDS[100:180])
    both = plan(topic, 1, 2, serving=1)
    assert killed_and_resumed(both, deployment, monkeypatch) >= 4
    bench.append(topic, RECORDS[180:240])
    ran(both, deployment)

    alone = {}
    for version in (1, 2):
        alone[version] = bench.deployment(n_hashes=2)
        ran(plan(topic, version), alone[version])
    for version in (1, 2):
        for view in (f"by_user@{version}", f"by_item@{version}"):
            assert log_of(deployment, view).equals(log_of(alone[version], view)), view
            found = values_in_redis(bench.redis_url, deployment, view)
            assert found == values_in_redis(bench.redis_url, alone[version], view) != {}, view
    report = audited(both, deployment)
    assert report == {"by_user@1", "by_user@2", "by_item@1", "by_item@2"}

    # The bare name follows what the definitions say; nothing is reset.
    entities = [{"user": "user 1%"}]
    store = FeatureStore(redis_url=bench.redis_url, prefix=deployment.prefix)
    names = ["by_user:n", "by_user@1:n", "by_user@2:n", "by_user@2:last"]
    answer = store.get_online_features(names, entities, full_feature_names=True).to_dict()
    assert answer["by_user__n"] == answer["by_user@1__n"] != answer["by_user@2__n"]
    switched = plan(topic, 1, 2, serving=2)
    ran(switched, deployment)
    answer = store.get_online_features(names, entities, full_feature_names=True)
    assert answer.to_dict()["by_user__n"] == answer.to_dict()["by_user@2__n"]
    assert set(answer.metadata) == {"by_user", "by_user@1", "by_user@2"}
    for version in (1, 2):
        assert log_of(deployment, f"by_user@{version}").equals(log_of(alone[version], f"by_user@{version}"))

    # The older version goes; what it wrote stays readable, and its keys are named.
    bench.append(topic, RECORDS[240:])
    before = log_of(deployment, "by_user@1")
    only = plan(topic, 2)
    assert killed_and_resumed(only, deployment, monkeypatch) >= 4
    ran(only, alone[2])
    assert log_of(deployment, "by_user@1").equals(before)
    assert log_of(deployment, "by_user@2").equals(log_of(alone[2], "by_user@2"))
    assert audited(only, deployment) == {"by_user@2", "by_item@2"}
    with pytest.raises(RequestError, match="by_user@1 is no longer computed by the pipeline"):
        store.get_online_features(["by_user@1:n"], entities)
    with pytest.raises(LayoutError, match="by_item@1, by_user@1: left out of an earlier run"):
        ran(both, deployment)

    read_by_the_log_alone(deployment, both)


def audited(one: Plan, deployment: Deployment) -> set[str]:
    """Compare log and Redis with a recount; return the views that were compared."""
    report = agreed(one, deployment, samples=400)
    return {view.view for view in report.views if view.samples and view.entities}


def read_by_the_log_alone(deployment: Deployment, definitions: Plan) -> None:
    """The log answers as with definitions: types, defaults, statuses; also for what is defined nowhere any more."""
    first, last = (START + seconds * 1_000_000 for seconds in (-1, 60))
    coverage = read_coverage(view_root(deployment.log, "by_user", 1))
    assert coverage is not None
    assert coverage.complete_to_us is not None
    instants = [first, last, coverage.complete_to_us, coverage.complete_to_us + 10**9]
    labels = [
        {"user": user, "event_timestamp": dt.datetime.fromtimestamp(t_us / 1e6, dt.UTC)}
        for user in ("user 1%", "nobody", None)
        for t_us in instants
    ]
    names = ["by_user@1:n", "by_user@1:spend"]
    asked: dict[str, Any] = {"outside": "null", "with_status": True}

    alone = FeatureStore(log=deployment.log).get_historical_features(labels, names, **asked).to_df()
    defined = FeatureStore(definitions, log=deployment.log).get_historical_features(labels, names, **asked).to_df()
    beside = FeatureStore(plan("none", 2), log=deployment.log).get_historical_features(labels, names, **asked).to_df()

    assert alone.equals(defined)
    assert beside.equals(defined)
    assert alone.schema["n"] == pl.Int64()
    assert alone.filter(pl.col("user") == "nobody").select("n", "spend").row(1) == (0, -1.0)
    assert set(alone["n__status"]) == {"before_log", "after_log", "default", "present", "no_key"} | (
        {"warming"} & set(alone["n__status"])
    )
    with pytest.raises(RequestError, match=r"several versions.*ask for by_user@1 or by_user@2"):
        FeatureStore(log=deployment.log).get_historical_features(labels, ["by_user:n"])
    with pytest.raises(RequestError, match="view 'by_user' has no version '3'; there is by_user@1, by_user@2"):
        FeatureStore(log=deployment.log).get_historical_features(labels, ["by_user@3:n"])
    with pytest.raises(RequestError, match="there is no view 'by_uses'; did you mean 'by_user'"):
        FeatureStore(log=deployment.log).get_historical_features(labels, ["by_uses:n"])
    old = Path(deployment.log) / "by_item" / "v1" / "_coverage" / "_shards.json"
    old.write_text('{"shards": ["h0", "h1"]}')
    with pytest.raises(LayoutError, match=r"by_item@1 .* does not hold its definition"):
        FeatureStore(log=deployment.log).get_historical_features(labels, ["by_item@1:n"])
