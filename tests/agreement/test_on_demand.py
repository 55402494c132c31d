"""On-demand features: training = SDK = HTTP, bit for bit, however many rows are evaluated together, and = an oracle."""

import asyncio
import datetime as dt
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest

from tests.serving.test_http import Server, serving
from tests.support.on_demand import PLAN, REFERENCES, bits, oracle, some_events, some_labels, write
from tests.support.servers.valkey import Valkey
from unskew import FeatureStore
from unskew.features.errors import OtherFeatures

NAMES = [reference.partition(":")[2] for reference in REFERENCES]
EVENTS = some_events(3)
LABELS = some_labels(4, 1_000)


class Shop(NamedTuple):
    store: FeatureStore
    server: Server
    trained: list[dict[str, Any]]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    root = tmp_path_factory.mktemp("shop")
    with Valkey(tmp_path_factory.mktemp("valkey")) as redis:
        write(root, redis.url, EVENTS)
        store = FeatureStore(redis_url=redis.url, log=root / "log", timeout="30s")
        trained = store.get_historical_features(LABELS, REFERENCES).columns.to_dicts()
        with store, serving(redis.url) as server:
            yield Shop(store, server, trained)


def asked(labels: list[dict[str, Any]]) -> dict[str, Any]:
    names = [name for name in labels[0] if name != "event_timestamp"]
    values = {name: [label[name] for label in labels] for name in names}
    # JSON has no NaN.
    values["lat"] = [None if lat is not None and math.isnan(lat) else lat for lat in values["lat"]]
    now = labels[0]["event_timestamp"]
    assert all(label["event_timestamp"] == now for label in labels)
    return {"entities": values, "features": REFERENCES, "now": now.isoformat()}


def answered(server: Server, labels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    code, answer = server.post(asked(labels))
    assert code == 200, answer
    assert dt.datetime.fromisoformat(answer["metadata"]["now"]) == labels[0]["event_timestamp"]
    columns = dict(zip(answer["metadata"]["feature_names"], answer["results"], strict=True))
    columns["last_login"]["values"] = [dt.datetime.fromisoformat(text) for text in columns["last_login"]["values"]]
    return [{name: columns[name]["values"][row] for name in NAMES} for row in range(len(labels))]


def same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [{name: bits(row[name]) for name in NAMES} for row in found] == [
        {name: bits(row[name]) for name in NAMES} for row in expected
    ]


def test_training_gives_what_an_oracle_counts_from_the_events(shop: Shop) -> None:
    expected = [oracle(EVENTS, label) for label in LABELS]

    for found, wanted in zip(shop.trained, expected, strict=True):
        # By another formula, so to a millimetre.
        if wanted["distance_km"] is not None:
            assert found["distance_km"] == pytest.approx(wanted["distance_km"], abs=1e-6)
            wanted["distance_km"] = found["distance_km"]
        assert {name: bits(value) for name, value in found.items()} == {n: bits(v) for n, v in wanted.items()}


@pytest.mark.parametrize("n_at_once", [1, 100])
def test_http_gives_what_training_gives(shop: Shop, n_at_once: int) -> None:
    rows = range(0, 1_000, n_at_once)

    found = [row for first in rows for row in answered(shop.server, LABELS[first : first + n_at_once])]

    same(found, shop.trained)


def test_sixteen_clients_at_once_get_what_training_gives(shop: Shop) -> None:
    with ThreadPoolExecutor(16) as clients:
        found = list(clients.map(lambda label: answered(shop.server, [label])[0], LABELS))

    same(found, shop.trained)


def test_the_sdk_and_its_async_twin_give_what_training_gives(shop: Shop) -> None:
    async def together() -> list[Any]:
        reads = (shop.store.get_online_features_async(REFERENCES, [one], now=one["event_timestamp"]) for one in LABELS)
        return await asyncio.gather(*reads)

    at_once = asyncio.run(together())
    alone = [shop.store.get_online_features(REFERENCES, [row], now=row["event_timestamp"]) for row in LABELS[::20]]

    same([answer.to_dict() and answer.columns.row(0, named=True) for answer in at_once], shop.trained)
    same([answer.columns.row(0, named=True) for answer in alone], shop.trained[::20])
    assert [answer.now for answer in alone] == [row["event_timestamp"] for row in LABELS[::20]]


def test_events_and_a_manifest_give_the_same_training_set_again(shop: Shop, tmp_path) -> None:
    root = shop.store._log.parent
    store = FeatureStore(PLAN, log=root / "log", archive=root / "archive")
    features = [*REFERENCES, "user_purchases:mean_amount_30d", "store:lat"]
    labels = [{**label, "place": label["lat"]} for label in LABELS]

    log = store.get_historical_features(labels, features, full_feature_names=True, with_status=True)
    both = store.get_historical_features(labels, features, full_feature_names=True, with_status=True, source="both")
    log.to_parquet(tmp_path / "train.parquet")
    # Without definitions: the manifest has them.
    again = FeatureStore(log=root / "log").reproduce(labels, tmp_path / "train.manifest.json")

    assert log.columns.equals(both.columns)
    assert again.manifest == log.manifest
    assert [one.id for one in again.manifest.on_demand] == ["checkout@1"]
    assert log.columns["checkout__share"].to_list() == [row["share"] for row in shop.trained]


def test_statuses_and_what_is_served_without_a_value_agree(shop: Shop) -> None:
    trained = shop.store.get_historical_features(
        LABELS, [*REFERENCES, "store:lat"], full_feature_names=True, with_status=True
    )
    served = shop.store.get_online_features(
        [*REFERENCES, "store:lat"], LABELS, full_feature_names=True, with_status=True
    )

    for name in ("store__lat", *(f"checkout__{name}" for name in NAMES)):
        status = f"{name}__status"
        assert served.columns[status].to_list() == trained.columns[status].to_list(), name
    statuses = set(served.columns["checkout__distance_km__status"])
    assert {"no_key", "default"} < statuses
    assert set(served.columns["checkout__share__status"]) == {"present"}
    assert set(served.metadata) == {"store", "user_logins", "user_purchases", "user_purchases@2"}


def test_http_says_of_each_feature_what_its_views_say(shop: Shop) -> None:
    entities = {
        "user_id": ["anna", "nobody", None], "chain": ["north", "north", "north"], "store_id": [1, 99, 1],
        "lat": [1, 1.5, None], "lon": [1, 1, 1], "query": ["a", None, ""], "amount": [1, 1, 1],
    }  # fmt: skip
    code, answer = shop.server.post(
        {"entities": entities, "features": [*REFERENCES[:4], "store:lat"], "full_feature_names": True}
    )

    assert code == 200, answer
    names = answer["metadata"]["feature_names"][len(entities) :]
    assert names == [*(f"checkout__{name}" for name in NAMES[:4]), "store__lat"]
    found = dict(zip(names, answer["results"][len(entities) :], strict=True))
    assert {name: its["statuses"] for name, its in found.items()} == {
        "checkout__since_login_s": ["PRESENT", "NOT_FOUND", "NOT_FOUND"],
        "checkout__distance_km": ["PRESENT", "NOT_FOUND", "NULL_VALUE"],
        "checkout__query_length": ["PRESENT", "NULL_VALUE", "PRESENT"],
        "checkout__amount_to_mean": ["PRESENT", "PRESENT", "PRESENT"],
        "store__lat": ["PRESENT", "NOT_FOUND", "PRESENT"],
    }
    assert set(answer["metadata"]["views"]) == {"store", "user_logins", "user_purchases"}
    assert found["checkout__distance_km"]["event_timestamps"] == found["store__lat"]["event_timestamps"]
    now = dt.datetime.fromisoformat(answer["metadata"]["now"])
    assert abs((dt.datetime.now(dt.UTC) - now).total_seconds()) < 60


@pytest.mark.parametrize(
    ("changes", "code", "fault"),
    [
        ({"entities": {"query": ["a"]}, "features": ["checkout:share"]}, 422, "checkout takes the input 'amount' (float64)"),
        ({"entities": {"amount": ["a"]}, "features": ["checkout:share"]}, 422, "the input 'amount' is float64, and 'a' of row 0"),
        ({"entities": {"amount": [True]}, "features": ["checkout:share"]}, 422, "the input 'amount' is float64, and True of row 0"),
        ({"entities": {"amount": [1, 2]}, "features": ["checkout:share"], "now": "soon"}, 422, "now: 'soon' is not an instant"),
        ({"entities": {"amount": [1]}, "features": ["checkout:share"], "now": 5}, 422, "`$.now`"),
        ({"entities": {"amount": [1]}, "features": ["checkout:shore"]}, 404, "did you mean 'share'?"),
        ({"entities": {"amount": [1]}, "features": ["chekout:share"]}, 404, "there is no view 'chekout'; did you mean 'checkout'?"),
        ({"entities": {"amount": [1]}, "features": ["checkout@2:share"]}, 404, "there is checkout@1"),
        ({"entities": {"amount": [1]}, "features": ["checkout:amount_to_mean"]}, 422, "whose key 'user_id' is not among"),
        ({"entities": {"share": [1], "amount": [1]}, "features": ["checkout:share"]}, 422, "checkout:share would replace the column"),
    ],
)  # fmt: skip
def test_http_refuses_what_cannot_be_computed(shop: Shop, changes: dict[str, Any], code: int, fault: str) -> None:
    found, answer = shop.server.post(changes)

    assert found == code, answer
    assert fault in json.loads(answer)["message"]


def test_a_service_serves_on_demand_features_with_the_views_it_has_pinned(shop: Shop) -> None:
    rows = LABELS[:50]
    names = ["distance_km", "mean_amount_30d", "amount_to_mean"]

    served = shop.store.get_online_features("checkout_model", rows, now=rows[0]["event_timestamp"])
    trained = shop.store.get_historical_features(rows, "checkout_model")

    assert served.columns.columns == names
    assert served.columns.equals(trained.columns)
    shop.store.get_online_features("checkout_model", rows, expect=trained.manifest)
    with pytest.raises(OtherFeatures):
        shop.store.get_online_features(["checkout:share"], rows, expect=trained.manifest)
    # Inputs alone, and nothing at all.
    assert shop.store.get_online_features(["checkout:query_length"], [{"query": "ä"}]).to_dict()["query_length"] == [1]
    assert shop.store.get_online_features(["checkout:distance_km"], []).to_dict()["distance_km"] == []
    assert FeatureStore(PLAN, redis_url=shop.store._redis_url).get_online_features(
        ["checkout:query_length"], [{"query": "ä"}]
    ).to_dict() == {"query": ["ä"], "query_length": [1]}
