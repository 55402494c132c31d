"""Tests of feature definitions: what a view computes of a few events, by the kernel of the pipeline, without servers.

``values`` and ``assert_features`` take milliseconds. The fixtures of ``plugin`` run a pipeline on servers of their own;
``strategies`` draws events of a stream, for Hypothesis.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unskew.testing.asserting import assert_features
    from unskew.testing.replayed import values

__all__ = ["assert_features", "values"]

_PLACES = {"assert_features": "asserting", "values": "replayed"}


# Imported at first use: pytest loads the plugin in every project of an environment, and the kernel takes seconds.
def __getattr__(name: str) -> Any:
    """Import a name at its first use."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from unskew.features.extras import needed  # noqa: PLC0415 - as above

    with needed("unskew.testing", extra="pipeline"):
        return getattr(importlib.import_module(f"unskew.testing.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
