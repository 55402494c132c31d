"""Fingerprints decide whether stored state may be used: a change here forces a backfill of every view, so decide it."""

import json
from datetime import UTC, datetime

import polars as pl

from tests.support.definitions import stream, view
from unskew import (
    Calendar,
    Derived,
    Entity,
    Feature,
    Lifetime,
    Session,
    Sessions,
    Sliding,
    Tumbling,
    agg,
    compile,
)
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
            "e4826c0da4633769e1b8cec48282acecdc266a446a3355ccd67832cd6d17e3fa",
            "3c1d4a35fa9faccea66da572dbce7f6ec131cfd023c0c50ab1a6040085c01f6d",
        ),
        "by_shop": (
            "8adc5e28a2fb2f0b2c2da6212fea62702364386883bccd1ad8a985bf91cd529e",
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
                "unit": None,
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


BREADTH = compile(
    view(
        Feature("by_shop", agg.mean("amount", by="shop_id", keys=8), Tumbling("1h", closed=True)),
        Feature("spread", agg.std("amount", ddof=0), Calendar("week", tz="Europe/Berlin"), default=0.5),
        Feature("kinds", agg.approx_count_distinct("status", error=0.05), Lifetime()),
        Feature("top", agg.top_k("status", 3), Session("30min", hop="1min")),
        Feature("p90", agg.quantile("amount", 0.9), Sliding("30d")),
        Feature("sizes", agg.histogram("amount", [0, 10.5]), Sliding("30d")),
        Feature("warmth", agg.decayed_sum("amount", half_life="7d"), Sliding("30d", hop="1d")),
        Feature("since", agg.first_time(), Calendar("year"), default=datetime(2020, 1, 1, tzinfo=UTC)),
        name="breadth",
    ),
    view(
        Feature("n", agg.count(), Sliding("1h")),
        Feature("spend", agg.sum("amount"), Sliding("1h")),
        Derived("mean", "spend / n", default=-1, description="What one costs"),
        name="derived",
    ),
    view(
        Feature("length", agg.quantile("length_s", 0.5), Sliding("7d"), filter="events > 1"),
        name="over_sessions",
        stream=Sessions("visits", stream(), "30min", values={"spend": agg.sum("amount")}, where="online"),
    ),
)
REPEATS = compile(view(name="repeats", stream=stream(event_id="transaction_id", dedupe_within="10min")))


def test_fingerprints_of_what_aggregations_are_told_of_derived_features_sessions_and_repeats_are_golden():
    views = {**BREADTH.views, **REPEATS.views}

    assert {name: (plan.state_fingerprint, plan.presentation_fingerprint) for name, plan in views.items()} == {
        "breadth": (
            "16f9dd9b8882b8f9b1225876739a092d89b5b1ea99e6161a6d874e46fb127297",
            "4de6d16b9d7839fbcf294a285e2635129965c370d72ceea10fa5dd0953687f01",
        ),
        "derived": (
            "a9634a1c89d7557bd532c53a6b943b3716942841114d4712694dbf0607ecd073",
            "80eddee079499b649274eb10839d39c741e4d1e89b54c011989da5366d8d56f9",
        ),
        "over_sessions": (
            "874ad56b3c51825eb4cdf3bf6e194e7fa9c2ee771f06c5a0dc857970c9d6c6e2",
            "087e485e022097e7e91b77a196e749c2746019eb3b9e0b3ed5658b83fe543752",
        ),
        "repeats": (
            "f166fe1af5ac52006eff5bd170af577684bd2fbf3e99e7b01a4c5a440cce8714",
            "f74cdbf1529866bd8359107ff891155e8b095d362810250439a9def80712b2b6",
        ),
    }
