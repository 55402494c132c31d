"""What ``values`` says is what a pipeline served, wrote and reads for the same events."""

from pathlib import Path

import polars as pl
import pytest

from tests.support.pipeline import Bench, Outcome, history, views_over
from unskew import FeatureStore, Stream
from unskew.features.time import moment_of
from unskew.testing import values


@pytest.fixture(scope="module")
def outcome(mock_broker, redis_server, tmp_path_factory) -> Outcome:
    bench = Bench(mock_broker, redis_server, Path(tmp_path_factory.mktemp("served")))
    return bench.run(bench.produce(history(400, seed=5)))


@pytest.mark.parametrize("name", ["by_user", "by_item"])
def test_values_are_those_of_the_log_and_of_redis(outcome: Outcome, name: str):
    events = outcome.archive().sort("_arrival", "_partition", "_offset")
    stream: Stream = Stream(
        "purchases",
        topic="purchases",
        schema=dict(outcome.plan.streams["purchases"].schema),
        event_time="at",
        partitioned_by="user",
    )
    (view,) = (one for one in views_over(stream) if one.name == name)
    given = events.select("user", "item", "amount", "gift", "at", came="_arrival")
    keys = outcome.plan.views[name].entity.keys
    entities = given.select(keys).unique(maintain_order=True)
    (key,) = keys
    arrivals = events["_arrival"].to_physical().to_list()
    last = min(one for one in outcome.complete_to(name).values() if one is not None)
    instants = [moment_of(us + add) for us in arrivals[::23] for add in (0, 1, 4_000_000) if us + add <= last]
    labels = pl.DataFrame({"event_timestamp": instants}).join(entities, how="cross")
    names = [feature.name for feature in view.features]
    references = [f"{name}:{feature}" for feature in names]
    store = FeatureStore(
        outcome.plan,
        log=outcome.deployment.log,
        redis_url=outcome.deployment.redis_url,
        prefix=outcome.deployment.prefix,
    )

    found = values(view, given, at=instants, arrival="came", skip_refused=True)
    trained = store.get_historical_features(
        labels, references, inclusive=True, outside="null", with_status=True
    ).to_df()

    known = trained.filter(pl.col(f"{names[0]}__status") != "before_log")
    assert known.height > 200
    for row in known.iter_rows(named=True):
        assert found[row["event_timestamp"]][row[key]] == {feature: row[feature] for feature in names}
    served = store.get_online_features(references, entities.to_dicts())
    read = zip(entities[key], served.metadata[name]["as_of"], served.columns.iter_rows(named=True), strict=True)
    for entity, as_of, answer in read:
        assert values(view, given, at=as_of, arrival="came", skip_refused=True, entity=entity) == answer
    store.close()
