"""The fingerprints of a view: one of what stored state depends on, one of what is only shown or applied at reading."""

import datetime as dt
import hashlib
import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from unskew.features.plan import DerivedPlan, FeaturePlan, FilterPlan, StreamPlan, ValuePlan, ViewPlan
from unskew.features.view import Scalar, ViewEntity, ViewFeature, ViewWindow

# Increased when the same definitions come to mean other state or other values.
LAYOUT = 2


def state_fingerprint(
    *,
    entity: ViewEntity,
    stream: StreamPlan,
    where: FilterPlan | None,
    filters: Sequence[FilterPlan],
    values: Sequence[ValuePlan],
    windows: Sequence[ViewWindow],
    features: Sequence[FeaturePlan],
    derived: Sequence[DerivedPlan] = (),
    sessions: ViewPlan | None = None,
) -> str:
    """Return the SHA-256, as 64 hex characters, of everything that the kernel's state and values depend on.

    It does not include names of views, versions, descriptions, owners and defaults. It includes the order of features,
    because this order numbers the slots.
    """
    repeats = (
        {}
        if stream.dedupe_within_us is None
        else {"repeats": {"event_id": stream.event_id, "within_us": stream.dedupe_within_us}}
    )
    over = {"sessions": sessions.state_fingerprint} if sessions is not None else {}
    others = {"derived": [[d.name, d.text, d.published.type] for d in derived]} if derived else {}
    return _digest(
        {
            **repeats,
            **over,
            **others,
            "layout": LAYOUT,
            "entity": [list(entity.keys), list(entity.types)],
            "stream": {
                "topic": list(stream.topics) or stream.topic,
                "event_time": stream.event_time,
                "partitioned": stream.partitioned_by == entity.keys,
                "max_age_us": stream.max_age_us,
                **_reading(stream),
            },
            "where": where.text if where else None,
            "filters": [each.text for each in filters],
            "values": [[each.text, str(each.dtype)] for each in values],
            "windows": [each.text for each in windows],
            "features": [_feature(f) for f in features],
        }
    )


def _reading(stream: StreamPlan) -> dict[str, Any]:
    """Return how columns are read from records, as far as it differs from the usual way."""
    reading: dict[str, Any] = {}
    if stream.format != "avro":
        reading["format"] = stream.format
    if stream.key_column is not None:
        reading["key"] = [stream.key_column, stream.key_format]
    if stream.headers:
        reading["headers"] = dict(stream.headers)
    if stream.records:
        reading["records"] = sorted(stream.records)
    if stream.paths:
        reading["paths"] = {column: list(path) for column, path in stream.paths.items()}
    if stream.read_as:
        reading["read_as"] = {column: form.text for column, form in stream.read_as.items()}
    if stream.envelope is not None:
        reading["envelope"] = [stream.envelope, *sorted(stream.operations)]
    if (table := stream.table) is not None:
        arrival = table.arrival if table.arrival is not None else table.delay_us
        reading["table"] = {"arrival": arrival, "zone": table.zone, "columns": dict(table.renamed)}
    return reading


def _feature(feature: FeaturePlan) -> list[Any]:
    # A parameter of 0 is left out.
    parameters: dict[str, Any] = {name: value for name, value in feature.parameters.items() if value}
    if feature.by >= 0:
        parameters["by"] = feature.by
    words = [feature.name, feature.function, feature.published.type, feature.window, feature.filter, feature.value]
    return [*words, parameters] if parameters else words


def presentation_fingerprint(
    *,
    description: str,
    owner: str,
    features: Sequence[ViewFeature],
    tags: Mapping[str, str],
    deprecated: str,
) -> str:
    """Return the SHA-256, as 64 hex characters, of defaults, descriptions, owners, tags and deprecations."""
    replaced = {f.name: f.deprecated for f in features if f.deprecated}
    return _digest(
        {
            "description": description,
            "owner": owner,
            "features": [[f.name, _plain(f.default), f.description, f.owner] for f in features],
            **({"tags": dict(tags)} if tags else {}),
            **({"deprecated": [deprecated, replaced]} if deprecated or replaced else {}),
        }
    )


def on_demand_fingerprint(inputs: Mapping[str, str], features: Sequence[ViewFeature]) -> str:
    """Return the SHA-256, as 64 hex characters, of what on-demand values depend on besides the features they read."""
    return _digest(
        {
            "inputs": dict(inputs),
            "features": [[f.name, f.value, f.type, _plain(f.default)] for f in features],
        }
    )


def _plain(default: Scalar | None) -> Scalar | None:
    return str(default) if isinstance(default, (Decimal, dt.datetime)) else default


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
