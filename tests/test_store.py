import datetime as dt
import json
import multiprocessing
import pickle
import time
from concurrent.futures import ProcessPoolExecutor

import pandas as pd
import polars as pl
import pytest
import redis

from tests.support.plans import DAY, HOUR, Wanted, sliding, view
from tests.support.servers.valkey import Valkey
from tests.support.typed import DEFAULTS, FULL, NAMES, ORDERS
from tests.support.updates import closing
from unskew import FeatureStore, LayoutError, RequestError, StoreUnavailable
from unskew.features.plan import Plan
from unskew.features.registry import describe
from unskew.sinks.redis.writer import RedisWriter
from unskew.sinks.tables.kinds import LogTable

SPEND = view(
    Wanted("n", "count", sliding(DAY, HOUR)),
    Wanted("mean", "mean", sliding(DAY, HOUR), "x", default=-1.0),
    name="spend",
)
PLAN = Plan(streams={}, views={"spend": SPEND})
NOON = dt.datetime(2017, 3, 1, 12, tzinfo=dt.UTC)
NOON_US = int(NOON.timestamp()) * 1_000_000


@pytest.fixture
def log(tmp_path):
    """User a has one purchase of 2.5 at noon, and the log is complete until one."""
    table = LogTable(tmp_path, SPEND, "h0", None, now_us=lambda: 0)
    row = {"user": "a", "n": 1, "mean": 2.5, "available_at": NOON_US, "cause": "event", "seq": 0}
    table.append(closing(SPEND, NOON_US + HOUR + 1, log_rows=[row], since_us=0))
    table.snapshot()
    table.settle()
    return tmp_path


@pytest.fixture
def redis_with_a(redis_url, redis_client):
    writer = RedisWriter(redis_client, "unskew", "main")
    writer.publish_registry(json.dumps(describe(PLAN)))
    row = {"key": "a", "n": 1, "mean": 2.5, "_at": NOON_US, "_until": NOON_US + DAY, "_empty_at": NOON_US + DAY}
    writer.add(closing(SPEND, NOON_US + HOUR, [row]))
    writer.flush(time.time_ns() // 1000)
    return redis_url


def labels(*minutes: int) -> pl.DataFrame:
    return pl.DataFrame(
        {"user": ["a"] * len(minutes), "event_timestamp": [NOON + dt.timedelta(minutes=m) for m in minutes]}
    )


def test_training_and_serving_give_the_same_values_under_the_same_names(log, redis_with_a):
    store = FeatureStore(PLAN, redis_url=redis_with_a, log=log)
    features = ["spend:mean", "spend:n"]

    trained = store.get_historical_features(labels(60), features).to_dict()
    served = store.get_online_features(features, [{"user": "a"}]).to_dict()

    assert served == {"user": ["a"], "mean": [2.5], "n": [1]}
    assert trained == {**served, "event_timestamp": [NOON + dt.timedelta(hours=1)]}
    assert list(trained) == ["user", "event_timestamp", "mean", "n"]


def test_values_and_defaults_of_every_type_are_the_same_in_training_and_serving(tmp_path, redis_url, redis_client):
    table = LogTable(tmp_path, ORDERS, "h0", None, now_us=lambda: 0)
    row = {"user": "a", **FULL, "available_at": NOON_US, "cause": "event", "seq": 0}
    table.append(closing(ORDERS, NOON_US + HOUR, log_rows=[row]))
    table.snapshot()
    table.settle()
    writer = RedisWriter(redis_client, "unskew", "main")
    writer.add(closing(ORDERS, NOON_US + HOUR, [{"key": "a", **FULL, "_at": NOON_US}]))
    writer.flush(time.time_ns() // 1000)
    store = FeatureStore(Plan(streams={}, views={"orders": ORDERS}), redis_url=redis_url, log=tmp_path)
    features = [f"orders:{name}" for name in NAMES]
    rows = [{"user": "a"}, {"user": "nobody"}]

    served = store.get_online_features(features, rows)
    assert pickle.loads(pickle.dumps(served)).to_dict() == served.to_dict()
    trained = store.get_historical_features(
        [{**row, "event_timestamp": NOON + dt.timedelta(microseconds=1)} for row in rows], features
    )

    assert served.to_polars().drop("user").equals(trained.to_polars().drop("user", "event_timestamp"))
    assert served.to_polars().schema.items() <= trained.to_polars().schema.items()
    assert served.to_polars().drop("user").to_dicts() == [FULL, DEFAULTS]


def test_a_label_before_the_purchase_or_at_it_sees_the_default_unless_it_is_inclusive(log):
    store = FeatureStore(PLAN, log=log)

    assert store.get_historical_features(labels(-1, 0), ["spend:mean"]).to_dict()["mean"] == [-1.0, -1.0]
    assert store.get_historical_features(labels(-1, 0), ["spend:mean"], inclusive=True).to_dict()["mean"] == [-1.0, 2.5]


def test_pandas_labels_give_a_pandas_training_set_with_their_index(log):
    asked = labels(5, -5).to_pandas()
    asked.index = pd.Index([7, 3], name="label")

    answer = FeatureStore(PLAN, log=log).get_historical_features(asked, ["spend:n"]).to_df()

    pd.testing.assert_frame_equal(answer, asked.assign(n=[1, 0]), check_dtype=False)


def test_polars_labels_and_rows_give_a_polars_training_set(log):
    store = FeatureStore(PLAN, log=log)

    from_frame = store.get_historical_features(labels(5, -5), ["spend:n"]).to_df()
    from_rows = store.get_historical_features(labels(5, -5).to_dicts(), ["spend:n"]).to_df()

    assert from_frame.equals(labels(5, -5).with_columns(pl.Series("n", [1, 0])))
    assert from_rows.equals(from_frame)


def test_without_definitions_the_published_registry_describes_both_sides(log, redis_with_a):
    store = FeatureStore(redis_url=redis_with_a, log=log)

    assert store.get_online_features(["spend:n"], [{"user": "a"}]).to_dict() == {"user": ["a"], "n": [1]}
    assert store.get_historical_features(labels(5), ["spend:n"]).to_dict()["n"] == [1]


def test_a_lag_beyond_the_one_allowed_is_said(redis_with_a):
    store = FeatureStore(redis_url=redis_with_a, max_lag="5min", now_us=lambda: NOON_US + 2 * HOUR)

    metadata = store.get_online_features(["spend:n"], [{"user": "a"}]).metadata["spend"]

    assert metadata.rows() == [(NOON + dt.timedelta(hours=1), "lagging", False)]


def test_what_is_missing_to_answer_is_said(log):
    with pytest.raises(RequestError, match="give FeatureStore a redis_url"):
        FeatureStore(PLAN).get_online_features(["spend:n"], [{"user": "a"}])
    with pytest.raises(RequestError, match="give its folder as log"):
        FeatureStore(PLAN).get_historical_features(labels(5), ["spend:n"])
    with pytest.raises(RequestError, match="give FeatureStore the definitions"):
        FeatureStore().get_historical_features(labels(5), ["spend:n"])
    with pytest.raises(
        LayoutError, match=r"log of spend@1 .* does not hold its definition.* start unskew run with it once"
    ):
        FeatureStore(log=log).get_historical_features(labels(5), ["spend:n"])
    with pytest.raises(RequestError, match="holds no log of any view; give the --log folder"):
        FeatureStore(log=log / "spend").get_historical_features(labels(5), ["spend:n"])


def test_columns_that_are_not_asked_for_are_not_read(log):
    asked = labels(5, -5).to_pandas().assign(weird=pd.Series([1, "a"], dtype=object))

    answer = FeatureStore(PLAN, log=log).get_historical_features(asked, ["spend:n"])

    pd.testing.assert_frame_equal(answer.to_df()[list(asked)], asked)
    assert answer.to_df()["n"].to_list() == [1, 0]


def test_the_summary_counts_the_labels_of_each_status(log):
    asked = [*labels(5, 30, 61).to_dicts(), {"user": None, "event_timestamp": NOON}]

    answer = FeatureStore(PLAN, log=log).get_historical_features(asked, ["spend:n", "spend:mean"], outside="null")

    nothing = {"before_log": 0, "warming": 0, "expired": 0, "default": 0}
    counted = {"no_key": 1, **nothing, "after_log": 1, "present": 2}
    assert answer.summary.to_dicts() == [
        {"feature": name, **{status: counted[status] for status in answer.summary.columns[1:]}}
        for name in ("n", "mean")
    ]
    assert answer.to_dict()["n"] == [1, 1, None, None]


def test_a_store_of_the_environment_takes_what_the_commands_take(log, redis_with_a, monkeypatch):
    monkeypatch.setenv("UNSKEW_REDIS_URL", redis_with_a)
    monkeypatch.setenv("UNSKEW_LOG", str(log))

    with FeatureStore() as store:
        assert store.get_online_features(["spend:n"], [{"user": "a"}]).to_dict()["n"] == [1]
        assert store.get_historical_features(labels(5), ["spend:n"]).to_dict()["n"] == [1]
    # What is given is all that counts then.
    with pytest.raises(RequestError, match="give its folder as log"):
        FeatureStore(redis_url=redis_with_a).get_historical_features(labels(5), ["spend:n"])
    monkeypatch.setenv("UNSKEW_PREFIX", "other")
    with pytest.raises(RequestError, match="other:registry"):
        FeatureStore().get_online_features(["spend:n"], [{"user": "a"}])
    assert FeatureStore(prefix="unskew").get_online_features(["spend:n"], [{"user": "a"}]).to_dict()["n"] == [1]


def test_nothing_given_and_nothing_in_the_environment_is_said(monkeypatch):
    for name in ("REDIS_URL", "LOG", "ARCHIVE", "DEFINITIONS"):
        monkeypatch.setenv(f"UNSKEW_{name}", "")

    with pytest.raises(RequestError, match="or set UNSKEW_REDIS_URL"):
        FeatureStore().get_online_features(["spend:n"], [{"user": "a"}])


def test_a_store_that_was_pickled_reads_in_another_process(redis_with_a):
    store = FeatureStore(redis_url=redis_with_a, max_lag="1h", timeout="10s")
    store.get_online_features(["spend:n"], [{"user": "a"}])

    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(store.get_online_features, ["spend:n"], [{"user": "a"}]).result().to_dict()

    assert found == {"user": ["a"], "n": [1]}
    with pytest.raises(TypeError, match="give it the URL"):
        pickle.dumps(FeatureStore(redis_url=redis.Redis.from_url(redis_with_a)))


def test_a_store_says_what_it_reads_and_no_password(log, redis_with_a):
    url = redis_with_a.replace("redis://", "redis://user:se%40cret@")

    shown = repr(FeatureStore(PLAN, redis_url=url, log=log))

    assert "secret" not in shown.replace("@", "").replace("%40", "")
    assert "user" not in shown
    assert shown.startswith("FeatureStore(definitions: spend; redis: redis://127.0.0.1:")
    assert str(log) in shown
    assert repr(FeatureStore(redis_url="redis+sentinel://u:p@a,b:7/main/0")) == (
        "FeatureStore(redis: redis+sentinel://a:26379,b:7/main)"
    )


def test_an_answer_shows_its_rows_and_what_they_are_the_values_of(redis_with_a):
    answer = FeatureStore(redis_url=redis_with_a).get_online_features(["spend:n"], [{"user": "a"}, {"user": "b"}])

    shown = repr(answer)

    assert shown.startswith("2 rows, 1 features\nspend: 1 present, 1 default, as of 2017-03-01T13:00:00Z\n")
    assert "┌" in shown


def test_each_feature_has_its_own_status_if_that_is_asked_for(redis_url, redis_client):
    several = view(
        Wanted("n_day", "count", sliding(DAY, HOUR)),
        Wanted("n_week", "count", sliding(7 * DAY, HOUR)),
        Wanted("mean", "mean", sliding(DAY, HOUR), "x", default=-1.0),
        name="several",
    )
    writer = RedisWriter(redis_client, "unskew", "main")
    writer.publish_registry(json.dumps(describe(Plan(streams={}, views={"several": several}))))
    row = {"key": "a", "n_day": 0, "n_week": 2, "_at": NOON_US}
    writer.add(closing(several, NOON_US, [row], since_us=NOON_US - 2 * DAY))
    writer.flush(time.time_ns() // 1000)
    features = ["several:n_day", "several:n_week", "several:mean"]
    rows = [{"user": "a"}, {"user": "b"}, {"user": None}]

    answer = FeatureStore(redis_url=redis_url).get_online_features(features, rows, with_status=True)

    assert answer.to_dict() == {
        "user": ["a", "b", None],
        "n_day": [0, 0, None],
        "n_day__status": ["default", "default", "no_key"],
        "n_week": [2, 0, None],
        "n_week__status": ["warming", "warming", "no_key"],
        "mean": [-1.0, -1.0, None],
        "mean__status": ["default", "default", "no_key"],
    }
    assert answer.to_polars().to_dict(as_series=False) == answer.to_dict()
    assert answer.metadata["several"]["status"].to_list() == ["warming", "warming", "no_key"]
    lagging = FeatureStore(redis_url=redis_url, max_lag="1h").get_online_features(features, rows, with_status=True)
    assert lagging.to_dict()["n_day__status"] == ["lagging", "lagging", "no_key"]
    with pytest.raises(RequestError, match="the status of several:n_day would replace the column 'n_day__status'"):
        FeatureStore(redis_url=redis_url).get_online_features(
            features, [{"user": "a", "n_day__status": 1}], with_status=True
        )


def test_a_server_that_stands_still_is_given_up_within_the_timeout(tmp_path):
    with Valkey(tmp_path / "one") as server:
        writer = RedisWriter(server.url, "unskew", "main")
        writer.publish_registry(json.dumps(describe(PLAN)))
        writer.close()
        store = FeatureStore(redis_url=server.url, timeout="50ms")
        store.get_online_features(["spend:n"], [{"user": "a"}])
        with server.paused():
            for _ in range(3):
                with pytest.raises(StoreUnavailable):
                    store.get_online_features(["spend:n"], [{"user": "a"}])
        # The server's answer to what was given up is not taken for another's.
        store = FeatureStore(redis_url=server.url, timeout="10s")
        assert store.get_online_features(["spend:n"], [{"user": "a"}]).to_dict()["n"] == [0]
    patient = FeatureStore(redis_url="redis://127.0.0.1:1/0?socket_timeout=0.2", timeout="1h")
    with pytest.raises(StoreUnavailable):
        patient.get_online_features(["spend:n"], [{"user": "a"}])
    with pytest.raises(RequestError, match="timeout"):
        FeatureStore(redis_url="redis://127.0.0.1:1/0", timeout="soon")
