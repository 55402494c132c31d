"""A pipeline that is killed with ``kill -9`` at random moments leaves the same results as one without interruption.

Meanwhile, no reader sees a value go back.
"""

import pytest

from tests.support.recovery.cases import CASES


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_killed_again_and_again_the_outcome_is_the_same_and_nothing_is_seen_to_go_back(endure, name: str) -> None:
    report = endure(CASES, name)

    assert not report.faults, str(report)
    assert len(report.kills) == CASES[name].n_kills


def test_at_least_25_kills_are_survived_in_at_least_3_topologies() -> None:
    assert sum(case.n_kills for case in CASES.values()) >= 25
    assert len({topology.name for case in CASES.values() for topology in case.topologies}) >= 3
