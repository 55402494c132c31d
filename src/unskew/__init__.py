"""Streaming features whose training rows hold exactly what the model would have read.

Definitions: ``Entity``, ``Stream``, ``FeatureView``, ``Feature``; windows ``Sliding``, ``Tumbling``, ``Calendar``; ``agg``.
``compile`` checks them; ``FeatureStore`` reads what the pipeline wrote.
"""

from typing import TYPE_CHECKING, Any

from unskew.features import agg
from unskew.features.compile import compile  # noqa: A004 - the word that users know
from unskew.features.definitions import Calendar, Entity, Feature, FeatureView, Sliding, Stream, Tumbling
from unskew.features.errors import DefinitionError, LayoutError, RequestError, StoreUnavailable, UnskewError
from unskew.features.load import load
from unskew.features.plan import Plan

if TYPE_CHECKING:
    from unskew.store import FeatureStore

__version__ = "0.1.0"

__all__ = [
    "Calendar",
    "DefinitionError",
    "Entity",
    "Feature",
    "FeatureStore",
    "FeatureView",
    "LayoutError",
    "Plan",
    "RequestError",
    "Sliding",
    "StoreUnavailable",
    "Stream",
    "Tumbling",
    "UnskewError",
    "agg",
    "compile",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import ``FeatureStore`` at first use: definitions alone need no Redis client."""
    if name == "FeatureStore":
        from unskew.store import FeatureStore  # noqa: PLC0415 - that is what this function is for

        return FeatureStore
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
