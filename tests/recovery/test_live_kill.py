"""On topics that are fed in real time a pipeline is killed with ``kill -9``, or stands still while another one takes
its place, at moments drawn by chance; and no reader that was given an exact value is contradicted by what the log and
the archive say of its instant in the end.
"""

import pytest

from tests.support.recovery.live_cases import FORGETFUL, LIVE_CASES, REFUSING

NAMES = [
    pytest.param(name, marks=[pytest.mark.needs_broker("log append time")] if case.append_time else [])
    for name, case in LIVE_CASES.items()
]


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_no_exact_read_is_contradicted_whenever_the_pipeline_is_killed(endure, name: str) -> None:
    report = endure(LIVE_CASES, name)

    assert not report.faults, str(report)
    assert len(report.kills) == LIVE_CASES[name].n_kills
    # The record that the first life refused may be the one that the second says it refused.
    assert report.figures.refused or name != REFUSING, str(report)


@pytest.mark.long
@pytest.mark.parametrize("forgotten", FORGETFUL)
def test_what_is_forgotten_with_a_kill_is_found_in_what_readers_were_told(endure, forgotten: str) -> None:
    """Not every kill leaves something that a reader was told and that no epoch holds: an ordeal may have to be
    repeated.
    """
    for _ in range(3):
        report = endure(FORGETFUL, forgotten)
        if report.figures.contradicted and report.figures.unlogged:
            return
    pytest.fail(str(report))


def test_at_least_25_lives_end_in_at_least_3_topologies() -> None:
    assert sum(case.n_kills for case in LIVE_CASES.values() if not case.append_time) >= 25
    assert len({topology.name for case in LIVE_CASES.values() for topology in case.topologies}) >= 3
