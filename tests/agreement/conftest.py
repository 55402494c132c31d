"""The bench that the agreement tests run on."""

from pathlib import Path

import pytest

from tests.pipeline import Bench
from unskew.pipelines.embedded import EmbeddedBroker


@pytest.fixture
def bench(broker: EmbeddedBroker, redis_url: str, tmp_path: Path) -> Bench:
    return Bench(broker, redis_url, tmp_path)
