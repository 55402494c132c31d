"""Python looks for garbage rarely while a pipeline runs, and as before when it has ended."""

import gc
import threading

from tests.support.pipeline import Outcome, history, plan
from unskew.pipelines.garbage import THRESHOLDS
from unskew.pipelines.run import run


def test_what_a_flow_needs_is_not_looked_at_again_and_all_is_as_before_when_it_has_ended(bench):
    topic = bench.produce(history(100, seed=5))
    outcome = Outcome(plan(topic), bench.deployment())
    seen = []
    before = gc.get_threshold()

    run(
        outcome.plan,
        outcome.deployment,
        stop=threading.Event(),
        report=lambda _: seen.append((gc.get_threshold(), gc.get_freeze_count())),
    )

    thresholds, n_kept = seen[-1]
    assert thresholds == THRESHOLDS
    # The definitions and what computes them are more than that, and the events of a poll far less.
    assert n_kept > 10_000
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == before
