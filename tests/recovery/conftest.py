"""What the recovery tests share: the bench that they run on, and ordeals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.pipeline import Bench
from tests.support.recovery.cases import WARM_UP, AnyCase
from unskew.demo.embedded import EmbeddedBroker


@pytest.fixture
def bench(broker: EmbeddedBroker, redis_url: str, tmp_path: Path) -> Bench:
    return Bench(broker, redis_url, tmp_path)


@pytest.fixture(scope="session")
def _warmed_up(broker: EmbeddedBroker, redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    report = WARM_UP.run(broker, redis_server, tmp_path_factory.mktemp("warm-up"), seed=100)
    assert not report.faults, str(report)


@pytest.fixture
def endure(
    _warmed_up: None, broker: EmbeddedBroker, redis_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[dict[str, AnyCase], str], Any]:
    """Give the report of one of the cases, whose place among them is its seed."""

    def run(cases: dict[str, AnyCase], name: str) -> Any:
        report = cases[name].run(broker, redis_url, tmp_path_factory.mktemp("kill"), seed=list(cases).index(name))
        print(report)
        return report

    return run
