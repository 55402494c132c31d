"""A pipeline that is killed with ``kill -9`` at random moments leaves the same results as one without interruption.

Meanwhile, no reader sees a value go back.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.support.recovery.cases import CASES, WARM_UP
from tests.support.recovery.harness import Report
from tests.support.servers.broker import Broker
from unskew.demo.embedded import EmbeddedBroker, EmbeddedRedis

AT_ONCE = 2
"""Ordeals at a time: most of a life is the start of a process, which keeps one core busy."""


@pytest.fixture(scope="module")
def reports(
    broker: Broker | EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Future[Report]]]:
    """The ordeals of all cases, some at a time, each on folders, topics and keys of its own."""
    with EmbeddedRedis() as server, ThreadPoolExecutor(AT_ONCE) as pool:
        first = WARM_UP.run(broker, server.url, tmp_path_factory.mktemp("kill"), seed=100)
        assert not first.faults, str(first)
        yield {
            name: pool.submit(case.run, broker, server.url, tmp_path_factory.mktemp("kill"), seed=seed)
            for seed, (name, case) in enumerate(CASES.items())
        }


@pytest.mark.parametrize("name", CASES)
def test_killed_again_and_again_the_outcome_is_the_same_and_nothing_is_seen_to_go_back(
    reports: Mapping[str, "Future[Report]"], name: str
) -> None:
    report = reports[name].result()

    assert not report.faults, str(report)
    assert len(report.kills) == CASES[name].n_kills


def test_at_least_25_kills_are_survived_in_at_least_3_topologies() -> None:
    assert sum(case.n_kills for case in CASES.values()) >= 25
    assert len({topology.name for case in CASES.values() for topology in case.topologies}) >= 3
