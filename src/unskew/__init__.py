"""Streaming features whose training rows hold exactly what the model would have read.

Definitions: ``Entity``, ``Stream``, ``Table``, ``Sessions``, ``FeatureView``, ``Feature``, ``Derived``,
``OnDemand``, ``Service``; windows: ``Sliding``, ``Tumbling``, ``Calendar``, ``Lifetime``, ``Session``; aggregations:
``agg``.
``compile`` checks them; ``FeatureStore`` reads what the pipeline wrote.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
        OnDemand,
        Service,
        Session,
        Sessions,
        Sliding,
        Stream,
        Table,
        Tumbling,
        haversine,
    )
    from unskew.features.errors import DefinitionError, LayoutError, RequestError, StoreUnavailable, UnskewError
    from unskew.features.plan import Plan
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
    "OnDemand",
    "Plan",
    "RequestError",
    "Service",
    "Session",
    "Sessions",
    "Sliding",
    "StoreUnavailable",
    "Stream",
    "Table",
    "Tumbling",
    "UnskewError",
    "agg",
    "compile",
    "haversine",
    "load",
]


# Imported at first use: all together they take a second, in which a process could not yet heed a signal.
_PLACES = {
    **dict.fromkeys(
        [
            "Calendar",
            "Derived",
            "Entity",
            "Feature",
            "FeatureView",
            "Lifetime",
            "OnDemand",
            "Service",
            "Session",
            "Sessions",
            "Sliding",
            "Stream",
            "Table",
        ],
        "features.definitions.vocabulary",
    ),
    **dict.fromkeys(["Tumbling", "haversine"], "features.definitions.vocabulary"),
    **dict.fromkeys(
        ["DefinitionError", "LayoutError", "RequestError", "StoreUnavailable", "UnskewError"], "features.errors"
    ),
    "FeatureStore": "store",
    "Plan": "features.plan",
    "compile": "features.definitions.compile",
    "load": "features.definitions.load",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name == "agg":
        return importlib.import_module("unskew.features.definitions.agg")
    if name in _PLACES:
        return getattr(importlib.import_module(f"unskew.{_PLACES[name]}"), name)
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 - that is what this function is for

        return version("unskew")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
