"""Small definitions for claims about compiling."""

from typing import Any

from unskew import Entity, Feature, FeatureView, Sliding, Stream, agg

SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "Transaction",
    "fields": [
        {"name": "transaction_id", "type": "long"},
        {"name": "user_id", "type": "string"},
        {"name": "shop_id", "type": "int"},
        {"name": "amount", "type": ["null", "double"]},
        {"name": "price", "type": "float"},
        {"name": "n_items", "type": "int"},
        {"name": "online", "type": "boolean"},
        {"name": "status", "type": {"type": "enum", "name": "Status", "symbols": ["completed", "cancelled"]}},
        {"name": "note", "type": "bytes"},
        {"name": "available_at", "type": "long"},
        {"name": "event_time", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}

COUNT = Feature("n", agg.count(), Sliding("1h"))


def stream(**changes: Any) -> Stream:
    fields: dict[str, Any] = {
        "name": "transactions",
        "topic": "transactions",
        "schema": SCHEMA,
        "event_time": "event_time",
        "partitioned_by": "user_id",
    }
    return Stream(**fields | changes)


def view(*features: Any, **changes: Any) -> FeatureView:
    fields: dict[str, Any] = {
        "name": "purchases",
        "entity": Entity("user", key="user_id"),
        "stream": stream(),
        "features": list(features) or [COUNT],
    }
    return FeatureView(**fields | changes)
