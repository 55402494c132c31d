"""Fingerprints decide whether stored state may be used: a change here orders a backfill of every view, so it is a decision."""

import json

import polars as pl

from tests.features.definitions import stream, view
from unskew import Calendar, Entity, Feature, Sliding, Tumbling, agg, compile
from unskew.features.registry import describe

PLAN = compile(
    view(
        Feature("n", agg.count(), Sliding("30d"), filter="status = 'completed'", description="Purchases", default=0),
        Feature("spend", agg.sum("amount"), Sliding("30d", hop="1h"), owner="finance"),
        Feature("least", agg.min("n_items"), Tumbling("1h"), default=-1),
        Feature("online_today", agg.max("online"), Calendar("day", tz="Europe/Berlin")),
        where="n_items > 0",
        owner="growth",
    ),
    view(
        Feature(
            "mean_price", agg.mean(pl.col("price").round(2)), Sliding("5min"), filter=pl.col("shop_id").is_in([1, 2])
        ),
        name="by_shop",
        entity=Entity("shop", key=["shop_id", "user_id"]),
        stream=stream(),
    ),
)


def test_fingerprints_are_golden():
    assert {name: (plan.state_fingerprint, plan.presentation_fingerprint) for name, plan in PLAN.views.items()} == {
        "purchases": (
            "72e71dcc5b946c7eeffc9a708a68c001fe3e0bd3f916bf20830774d2db8abecc",
            "3c1d4a35fa9faccea66da572dbce7f6ec131cfd023c0c50ab1a6040085c01f6d",
        ),
        "by_shop": (
            "a353f1b5b856b060922e91e3f1493df153a9c5878e8a1f22cb3895957882887c",
            "e8bdd57359ba3799e7523efc60e1bdf03eb0a2634bd131df7654bdabb7b6050c",
        ),
    }


def test_registry_json_is_golden():
    assert json.loads(json.dumps(describe(PLAN)))["views"][1] == {
        "name": "by_shop",
        "version": 1,
        "entity": {"name": "shop", "keys": ["shop_id", "user_id"], "types": ["int64", "string"]},
        "stream": "transactions",
        "topic": "transactions",
        "partitioned": False,
        "where": None,
        "windows": [
            {
                "text": "sliding(5min,hop=1s)",
                "kind": "sliding",
                "hop_us": 1_000_000,
                "extent_us": 300_000_000,
                "span": 300,
                "tz": None,
            }
        ],
        "features": [
            {
                "name": "mean_price",
                "type": "float64",
                "function": "mean",
                "window": 0,
                "value": '{"Function":{"function":{"Round":{"decimals":2,"mode":"HalfToEven"}},"input":[{"Column":"price"}]}}',
                "filter": '{"Function":{"function":{"Boolean":{"IsIn":{"nulls_equal":false}}},'
                '"input":[{"Column":"shop_id"},{"Literal":["List(Int64)",["[1, 2]"]]}]}}',
                "empty": None,
                "default": None,
                "description": "",
                "owner": "",
            }
        ],
        "state_fingerprint": PLAN.views["by_shop"].state_fingerprint,
        "presentation_fingerprint": PLAN.views["by_shop"].presentation_fingerprint,
        "description": "",
        "owner": "",
    }
