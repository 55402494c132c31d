"""Digests of a view: what stored state depends on, and what is only shown or applied at reading."""

import datetime as dt
import hashlib
import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from unskew.features.plan import DerivedPlan, FeaturePlan, FilterPlan, StreamPlan, ValuePlan, ViewPlan
from unskew.features.view import Scalar, ViewEntity, ViewFeature, ViewWindow

# Raised when the same definitions come to mean other state or other values.
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
    """Hex SHA-256 of everything the kernel's state and values depend on; 64 characters.

    Names of views, versions, descriptions, owners and defaults are not in it; the order of features is, as it numbers slots.
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
                **_told(stream),
            },
            "where": where.text if where else None,
            "filters": [each.text for each in filters],
            "values": [[each.text, str(each.dtype)] for each in values],
            "windows": [each.text for each in windows],
            "features": [_feature(f) for f in features],
        }
    )


def _told(stream: StreamPlan) -> dict[str, Any]:
    """How columns are read from records, where it is not the usual way."""
    told: dict[str, Any] = {}
    if stream.format != "avro":
        told["format"] = stream.format
    if stream.key_column is not None:
        told["key"] = [stream.key_column, stream.key_format]
    if stream.headers:
        told["headers"] = dict(stream.headers)
    return told


def _feature(feature: FeaturePlan) -> list[Any]:
    # A parameter of 0 is not in it.
    told: dict[str, Any] = {name: value for name, value in feature.parameters.items() if value}
    if feature.by >= 0:
        told["by"] = feature.by
    words = [feature.name, feature.function, feature.published.type, feature.window, feature.filter, feature.value]
    return [*words, told] if told else words


def presentation_fingerprint(*, description: str, owner: str, features: Sequence[ViewFeature]) -> str:
    """Hex SHA-256 of defaults, descriptions and owners; 64 characters."""
    return _digest(
        {
            "description": description,
            "owner": owner,
            "features": [[f.name, _plain(f.default), f.description, f.owner] for f in features],
        }
    )


def _plain(default: Scalar | None) -> Scalar | None:
    return str(default) if isinstance(default, (Decimal, dt.datetime)) else default


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
