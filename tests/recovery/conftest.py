"""The bench that the recovery tests run on."""

from pathlib import Path

import pytest

from tests.support.pipeline import Bench
from unskew.demo.embedded import EmbeddedBroker


@pytest.fixture
def bench(broker: EmbeddedBroker, redis_url: str, tmp_path: Path) -> Bench:
    return Bench(broker, redis_url, tmp_path)
