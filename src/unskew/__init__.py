"""Streaming features whose training rows hold exactly what the model would have read.

Definitions: ``Entity``, ``Stream``, ``Sessions``, ``FeatureView``, ``Feature``, ``Derived``; windows: ``Sliding``,
``Tumbling``, ``Calendar``, ``Lifetime``, ``Session``; aggregations: ``agg``.
``compile`` checks them; ``FeatureStore`` reads what the pipeline wrote.
"""

from typing import TYPE_CHECKING, Any

from unskew.features.definitions import agg
from unskew.features.definitions.compile import compile  # noqa: A004 - the word that users know
from unskew.features.definitions.load import load
from unskew.features.definitions.vocabulary import (
    Calendar,
    Derived,
    Entity,
    Feature,
    FeatureView,
    Lifetime,
    Session,
    Sessions,
    Sliding,
    Stream,
    Tumbling,
)
from unskew.features.errors import DefinitionError, LayoutError, RequestError, StoreUnavailable, UnskewError
from unskew.features.plan import Plan

if TYPE_CHECKING:
    from unskew.store import FeatureStore

__all__ = [
    "Calendar",
    "DefinitionError",
    "Derived",
    "Entity",
    "Feature",
    "FeatureStore",
    "FeatureView",
    "LayoutError",
    "Lifetime",
    "Plan",
    "RequestError",
    "Session",
    "Sessions",
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
    """Import at first use what definitions alone do not need: a Redis client, and the reader of the version."""
    if name == "FeatureStore":
        from unskew.store import FeatureStore  # noqa: PLC0415 - that is what this function is for

        return FeatureStore
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 - as above

        return version("unskew")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
