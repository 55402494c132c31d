"""A model says what it was trained with, and is refused values that mean anything else, by the SDK and over HTTP."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.serving.test_http import detail, serving
from tests.test_reading_doc import plan, write  # noqa: F401 - plan is a fixture
from unskew import FeatureStore, RequestError, load
from unskew.features.errors import OtherFeatures
from unskew.features.plan import Plan
from unskew.features.registry import describe, parse
from unskew.offline.manifest import Manifest
from unskew.sinks.redis.writer import RedisWriter

FEATURES = ["user_purchases:spend_30d", "user_purchases:purchase_count_30d"]
ROWS = [{"user_id": "u-42"}]
LABELS = [{"user_id": "u-42", "event_timestamp": datetime(2026, 3, 1, 11, 30, tzinfo=UTC)}]
VIEW = "user_purchases@1"


class Trained:
    """A published view, a log of it, and the manifest of a model that was trained with it."""

    def __init__(self, defined: Plan, folder: Path, redis_url: str) -> None:
        self.text = json.dumps(describe(defined))
        self.log, self.url = folder / "log", redis_url
        self._writer = RedisWriter(redis_url, "unskew", "main")
        self._writer.publish_registry(self.text)
        write(defined.views["user_purchases"], self.log, self._writer)
        training = FeatureStore(defined, log=self.log).get_historical_features(LABELS, FEATURES)
        self.manifest: Manifest = training.manifest
        self.path = training.to_parquet(folder / "model.parquet")

    def publish(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Publish the view otherwise."""
        registry = json.loads(self.text)
        change(registry["views"][0])
        parse(json.dumps(registry))
        self._writer.publish_registry(json.dumps(registry))


@pytest.fixture
def trained(plan: Plan, tmp_path: Path, redis_url: str, redis_client: object) -> Trained:  # noqa: F811, ARG001
    return Trained(plan, tmp_path, redis_url)


def described(view: dict[str, Any]) -> None:
    view.update(description="said better", owner="others", presentation_fingerprint="1" * 64)
    view["features"][0]["description"] = "said better"


def computed(view: dict[str, Any]) -> None:
    view["state_fingerprint"] = "2" * 64


def defaulted(view: dict[str, Any]) -> None:
    (spend,) = (one for one in view["features"] if one["name"] == "spend_30d")
    spend["default"] = -1.0


def numbered(view: dict[str, Any]) -> None:
    view["version"] = 2


def test_the_same_features_are_served(trained: Trained) -> None:
    trained.publish(described)
    assert json.loads(trained.path.read_text())["features_digest"] == trained.manifest.features_digest
    with FeatureStore(redis_url=trained.url) as store:
        plain = store.get_online_features(FEATURES, ROWS).to_dict()
        for expect in (trained.manifest, trained.path, str(trained.path), trained.manifest.features_digest):
            assert store.get_online_features(FEATURES, ROWS, expect=expect).to_dict() == plain
            found = asyncio.run(store.get_online_features_async(FEATURES, ROWS, expect=expect))
            assert found.to_dict() == plain
        # One that was written before there was a digest.
        earlier = msgspec.structs.replace(trained.manifest, features_digest="")
        assert store.get_online_features(FEATURES, ROWS, expect=earlier).to_dict() == plain
        full = store.get_online_features(FEATURES, ROWS, expect=earlier, full_feature_names=True, with_status=True)
        assert len(full.to_dict()) == 5


@pytest.mark.parametrize(
    ("change", "features", "said"),
    [
        (computed, FEATURES, f"{VIEW}:spend_30d is computed from another definition"),
        (defaulted, FEATURES, f"{VIEW}:spend_30d is float64 with the default -1.0, not float64 with None"),
        (None, FEATURES[::-1], f"feature 1 is {VIEW}:purchase_count_30d in place of {VIEW}:spend_30d"),
        (None, FEATURES[:1], "2 features are expected, and 1 are asked for"),
        (None, [*FEATURES[:1], "user_purchases:avg_amount_today"], f"feature 2 is {VIEW}:avg_amount_today in place of"),
    ],
)
def test_other_features_are_refused_with_the_difference(
    trained: Trained, change: Callable[[dict[str, Any]], None] | None, features: list[str], said: str
) -> None:
    if change is not None:
        trained.publish(change)
    with FeatureStore(redis_url=trained.url) as store:
        with pytest.raises(OtherFeatures) as error:
            store.get_online_features(features, ROWS, expect=trained.manifest)
        with pytest.raises(OtherFeatures) as of_async:
            asyncio.run(store.get_online_features_async(features, ROWS, expect=trained.manifest))
        with pytest.raises(OtherFeatures, match=trained.manifest.features_digest):
            store.get_online_features(features, ROWS, expect=trained.manifest.features_digest)
        assert store.get_online_features(features, ROWS)
    assert said in str(error.value)
    assert str(of_async.value) == str(error.value)
    assert "or train it with these" in str(error.value)


def test_the_version_is_a_part_of_what_is_expected(trained: Trained, plan: Plan) -> None:  # noqa: F811
    view = plan.views["user_purchases"]
    published = msgspec.structs.replace(view.published, version=2)
    second = Plan(streams={}, views={"v2": replace(view, published=published)})

    with pytest.raises(OtherFeatures, match=f"feature 1 is user_purchases@2:spend_30d in place of {VIEW}:spend_30d"):
        FeatureStore(second, redis_url=trained.url).get_online_features(FEATURES, ROWS, expect=trained.manifest)


MORE = """
from unskew import Derived, OnDemand, Service

basket = OnDemand("basket", inputs={"total": "float64"}, features=[Derived("share", "total / user_purchases:spend_30d")])
checkout = Service("checkout", ["basket:share", "user_purchases:purchase_count_30d"])
"""


def test_services_and_on_demand_features_are_expected_too(
    plan: Plan, tmp_path: Path, redis_url: str, redis_client: object  # noqa: F811, ARG001
) -> None:  # fmt: skip
    (tmp_path / "definitions" / "more.py").write_text(MORE)
    trained = Trained(load(tmp_path / "definitions"), tmp_path, redis_url)
    labels = [{**label, "total": 5.0} for label in LABELS]
    training = FeatureStore(load(tmp_path / "definitions"), log=trained.log).get_historical_features(labels, "checkout")
    rows = [{"user_id": "u-42", "total": 5.0}]

    with FeatureStore(redis_url=redis_url) as store:
        found = store.get_online_features("checkout", rows, expect=training.manifest).to_dict()
        assert (found["share"], found["purchase_count_30d"]) == ([0.5], [2])
        # What an on-demand feature reads is a part of what it means.
        trained.publish(defaulted)
        named = ["basket:share", "user_purchases:purchase_count_30d"]
        with pytest.raises(OtherFeatures, match=r"basket@1:share|spend_30d"):
            store.get_online_features(named, rows, expect=training.manifest)
        with pytest.raises(RequestError, match="service checkout reads"):
            store.get_online_features("checkout", rows, expect=training.manifest)


@pytest.mark.parametrize(
    ("expect", "said"),
    [
        ("nowhere.json", "nowhere.json: No such file"),
        (7, "expect is a manifest, its path, or its features_digest, not 7"),
        ("", "expect: the path is empty"),
    ],
)
def test_what_is_not_a_manifest_is_refused(trained: Trained, expect: Any, said: str) -> None:
    with FeatureStore(redis_url=trained.url) as store, pytest.raises(RequestError, match=said):
        store.get_online_features(FEATURES, ROWS, expect=expect)


def test_over_http_other_features_are_a_conflict(trained: Trained) -> None:
    body = {"entities": {"user_id": ["u-42"]}, "features": FEATURES}
    digest = trained.manifest.features_digest
    with serving(trained.url) as server:
        code, answer = server.post(body, **{"Unskew-Expect": digest})
        assert (code, answer["results"][1]["values"]) == (200, [10.0])
        turned = server.post({**body, "features": FEATURES[::-1]}, **{"Unskew-Expect": digest})
        bad = server.post(body, **{"unskew-expect": "latest"})
        trained.publish(defaulted)
        for _ in range(3):
            changed = server.post(body, **{"unskew-expect": digest})
            assert changed[0] == 409
        assert server.post(body)[0] == 200
        _, metrics = server.get("/metrics")

    assert turned[0] == 409
    assert f"they are {VIEW}:purchase_count_30d, {VIEW}:spend_30d, with the digest " in detail(turned[1])[1]
    assert f"and not those of {digest}" in detail(changed[1])[1]
    assert detail(changed[1])[0] == "FeastError"
    assert bad[0] == 422
    assert "'latest' is not a digest of features" in detail(bad[1])[1]
    assert 'unskew_requests_total{code="409",service=""} 4.0' in metrics
