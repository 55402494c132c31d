"""On topics that are fed in real time a pipeline is killed with ``kill -9``, or stands still while another one takes
its place, at moments drawn by chance; and no reader that was told an exact value is contradicted by what the log and
the archive say of its instant in the end.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.support.recovery.cases import WARM_UP
from tests.support.recovery.live_cases import FORGETFUL, LIVE_CASES, LiveCase
from tests.support.recovery.live_ordeal import LiveReport
from tests.support.servers.broker import Broker
from unskew.demo.embedded import EmbeddedBroker, EmbeddedRedis

pytestmark = pytest.mark.long

AT_ONCE = 2
"""Ordeals at a time: most of a life is the start of a process, which keeps one core busy."""

ALL: Mapping[str, LiveCase] = LIVE_CASES | FORGETFUL
_NAMES = [
    pytest.param(name, marks=[pytest.mark.needs_broker("log append time")] if case.append_time else [])
    for name, case in LIVE_CASES.items()
]


@pytest.fixture(scope="module")
def reports(
    broker: Broker | EmbeddedBroker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Future[LiveReport]]]:
    """The ordeals of all cases, some at a time, each on folders, topics and keys of its own."""
    with EmbeddedRedis() as server, ThreadPoolExecutor(AT_ONCE) as pool:
        first = WARM_UP.run(broker, server.url, tmp_path_factory.mktemp("live"), seed=100)
        assert not first.faults, str(first)
        yield {
            name: pool.submit(case.run, broker, server.url, tmp_path_factory.mktemp("live"), seed=seed)
            for seed, (name, case) in enumerate(ALL.items())
            if isinstance(broker, Broker) or not case.append_time
        }


@pytest.mark.parametrize("name", _NAMES)
def test_no_exact_read_is_contradicted_whenever_the_pipeline_is_killed(
    reports: Mapping[str, "Future[LiveReport]"], name: str
) -> None:
    report = reports[name].result()
    print(report)

    assert not report.faults, str(report)
    assert len(report.kills) == LIVE_CASES[name].n_kills


@pytest.mark.parametrize("forgotten", FORGETFUL)
def test_what_is_forgotten_with_a_kill_is_found_in_what_readers_were_told(
    reports: Mapping[str, "Future[LiveReport]"], forgotten: str
) -> None:
    report = reports[forgotten].result()
    print(report)

    assert report.figures.contradicted, str(report)
    assert report.figures.unlogged, str(report)


def test_records_too_far_in_the_future_were_among_those_sent(reports: Mapping[str, "Future[LiveReport]"]) -> None:
    """Whether one is refused depends on when it is read, so a restart must know what was decided."""
    assert sum(report.result().figures.refused for report in reports.values()) > 0


def test_at_least_25_lives_end_in_at_least_3_topologies() -> None:
    assert sum(case.n_kills for case in LIVE_CASES.values() if not case.append_time) >= 25
    assert len({topology.name for case in LIVE_CASES.values() for topology in case.topologies}) >= 3
