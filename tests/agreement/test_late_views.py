"""The audit of a pipeline to which a view was added while its topic went on."""

import threading
from dataclasses import replace

import pytest

from tests.support.pipeline import Bench, Outcome, history, plan
from unskew.monitoring.audit import audit
from unskew.pipelines.run import run

RECORDS = history(300, seed=23)
# Between two instants, and amid one: then some of its events came before the view, and some after.
CUTS = {
    name: next(n for n in range(100, 300) if (RECORDS[n - 1].stamp_ms == RECORDS[n].stamp_ms) == is_amid)
    for name, is_amid in (("between", False), ("amid", True))
}


@pytest.mark.parametrize("later", ["by_user", "by_item"])
@pytest.mark.parametrize("cut", CUTS)
def test_a_view_that_was_added_later_agrees_with_what_it_saw(bench: Bench, later: str, cut: str) -> None:
    n_before = CUTS[cut]
    topic = bench.produce(RECORDS[:n_before])
    both = plan(topic)
    outcome = Outcome(both, bench.deployment())
    run(
        replace(both, views={name: view for name, view in both.views.items() if name != later}),
        outcome.deployment,
        stop=threading.Event(),
    )
    bench.append(topic, RECORDS[n_before:])
    run(both, outcome.deployment, stop=threading.Event())

    report = audit(
        both,
        outcome.deployment.log,
        outcome.deployment.archive,
        redis_source=bench.redis_url,
        prefix=outcome.deployment.prefix,
        samples=400,
        patience_s=0,
    )

    assert [str(one) for one in report.differences] == []
    assert report.refusals == []
    added = next(view for view in report.views if view.view == f"{later}@1")
    assert added.samples > 100
    assert added.non_empty > 50
