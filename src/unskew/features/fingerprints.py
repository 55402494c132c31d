"""Digests of a view: what stored state depends on, and what is only shown or applied at reading."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from unskew.features.plan import EntityPlan, FeaturePlan, FilterPlan, StreamPlan, ValuePlan, WindowPlan

# Raised when the same definitions come to mean other state or other values.
LAYOUT = 1


def state_fingerprint(
    *,
    entity: EntityPlan,
    stream: StreamPlan,
    where: FilterPlan | None,
    filters: Sequence[FilterPlan],
    values: Sequence[ValuePlan],
    windows: Sequence[WindowPlan],
    features: Sequence[FeaturePlan],
) -> str:
    """Hex SHA-256 of everything the kernel's state and values depend on; 64 characters.

    Names of views, versions, descriptions, owners and defaults are not in it; the order of features is, as it numbers slots.
    """
    return _digest(
        {
            "layout": LAYOUT,
            "entity": [list(entity.keys), list(entity.types)],
            "stream": {
                "topic": stream.topic,
                "event_time": stream.event_time,
                "partitioned": stream.partitioned_by == entity.keys,
                "max_age_us": stream.max_age_us,
            },
            "where": where.text if where else None,
            "filters": [each.text for each in filters],
            "values": [[each.text, each.dtype] for each in values],
            "windows": [each.text for each in windows],
            "features": [[f.name, f.function, f.dtype, f.window, f.filter, f.value] for f in features],
        }
    )


def presentation_fingerprint(*, description: str, owner: str, features: Sequence[FeaturePlan]) -> str:
    """Hex SHA-256 of defaults, descriptions and owners; 64 characters."""
    return _digest(
        {
            "description": description,
            "owner": owner,
            "features": [[f.name, f.default, f.description, f.owner] for f in features],
        }
    )


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
