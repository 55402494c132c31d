"""The plugin of pytest: a pipeline on servers of its own.

pytest loads it in every project of an environment, so it imports nothing before a test asks for it.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from unskew.testing.pipeline import EmbeddedPipeline


@pytest.fixture
def unskew_pipeline(tmp_path: Path) -> "Iterator[Callable[..., EmbeddedPipeline]]":
    """Start pipelines: call it with definitions, as ``unskew.testing.values`` takes them. All end with the test.

    A pipeline has ``produce(stream, events)``, ``wait()`` until they are served, and ``store``, a ``FeatureStore``.
    """
    from unskew.features.extras import needed  # noqa: PLC0415 - as above

    with needed("unskew_pipeline", "bytewax", "confluent_kafka", "numba", extra="pipeline"), needed("unskew_pipeline"):
        from unskew.testing.pipeline import EmbeddedPipeline  # noqa: PLC0415 - as above

    with contextlib.ExitStack() as closing:
        count = 0

        def start(*definitions: Any) -> "EmbeddedPipeline":
            nonlocal count
            count += 1
            given = definitions[0] if len(definitions) == 1 else definitions
            return closing.enter_context(EmbeddedPipeline(given, tmp_path / f"unskew-{count}"))

        yield start
