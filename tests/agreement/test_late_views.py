"""The audit of a pipeline to which a view was added while its topic went on."""

import json
import threading
from collections.abc import Sequence
from dataclasses import replace

import polars as pl
import pytest

from tests.support.pipeline import Bench, Outcome, Record, agreed, bits, entities, history, naive_arrivals, plan
from unskew import FeatureStore
from unskew.features.plan import Plan
from unskew.features.time import format_instant
from unskew.monitoring.recount import Recount
from unskew.pipelines.run import run

RECORDS = history(300, seed=23)
# Between two instants, and amid one: then some of its events came before the view, and some after.
CUTS = {
    name: next(n for n in range(100, 300) if (RECORDS[n - 1].stamp_ms == RECORDS[n].stamp_ms) == is_amid)
    for name, is_amid in (("between", False), ("amid", True))
}


def begins_late(both: Plan, view: str) -> Plan:
    """The same definitions, of which one view does not get its past from the archive."""
    return replace(both, views={**both.views, view: replace(both.views[view], history="none")})


@pytest.mark.parametrize("later", ["by_user", "by_item"])
@pytest.mark.parametrize("cut", CUTS)
def test_a_view_that_was_added_later_agrees_with_what_it_saw(bench: Bench, later: str, cut: str) -> None:
    n_before = CUTS[cut]
    topic = bench.produce(RECORDS[:n_before])
    both = begins_late(plan(topic), later)
    outcome = Outcome(both, bench.deployment())
    run(
        replace(both, views={name: view for name, view in both.views.items() if name != later}),
        outcome.deployment,
        stop=threading.Event(),
    )
    bench.append(topic, RECORDS[n_before:])
    run(both, outcome.deployment, stop=threading.Event())

    report = agreed(both, outcome.deployment, samples=400)
    assert report.refusals == []
    added = next(view for view in report.views if view.view == f"{later}@1")
    assert added.samples > 100
    assert added.non_empty > 50


def uneven(places: Sequence[float]) -> tuple[list[Record], list[Record]]:
    """The records that came before a view, and those after: each partition is at its own share of the history."""
    is_before = [number < places[record.partition] * len(RECORDS) for number, record in enumerate(RECORDS)]
    both = list(zip(RECORDS, is_before, strict=True))
    return [record for record, came in both if came], [record for record, came in both if not came]


@pytest.mark.parametrize(
    "places",
    [(0.2, 0.6, 0.4, 0.5), (0.5, 0.0, 0.3, 0.1), (0.4, 0.4, 0.4, 0.7)],
    ids=["each elsewhere", "one without a record", "one ahead"],
)
@pytest.mark.parametrize("restarted", [False, True], ids=["", "restarted at once"])
def test_a_value_of_a_view_that_was_added_later_is_warming_or_that_of_the_whole_topic(
    bench: Bench, places: Sequence[float], restarted: bool
) -> None:
    """The view misses what each partition gave before it, up to the place of the partition that was furthest."""
    before, after = uneven(places)
    topic = bench.produce(before)
    both = plan(topic)
    outcome = Outcome(both, bench.deployment())
    deployment = outcome.deployment
    both = begins_late(both, "by_item")
    run(replace(both, views={"by_user": both.views["by_user"]}), deployment, stop=threading.Event())
    if restarted:
        run(both, deployment, stop=threading.Event())
    bench.append(topic, after)
    run(both, deployment, stop=threading.Event())

    coverage = json.loads((deployment.log / "by_item" / "v1" / "_coverage" / "h0.json").read_text())
    assert coverage["since"] == max(naive_arrivals(before).values()) + 1

    recount = Recount(both.views["by_item"], outcome.archive())
    store = FeatureStore(both, redis_url=deployment.redis_url, log=deployment.log, prefix=deployment.prefix)
    names = [feature.name for feature in both.views["by_item"].features]
    instants = range(coverage["since"], coverage["complete_to"], (coverage["complete_to"] - coverage["since"]) // 200)
    asked = [(key, t_us) for t_us in instants for (key,) in entities(both.views["by_item"], outcome.archive())]
    labels = pl.DataFrame(
        {
            "item": [key for key, _ in asked],
            "event_timestamp": pl.Series([t_us for _, t_us in asked]).cast(pl.Datetime("us", "UTC")),
        }
    )
    references = [f"by_item:{name}" for name in names]
    found = store.get_historical_features(labels, references, inclusive=True, with_status=True).to_df()
    wrong, n_whole = [], 0
    for (key, t_us), row in zip(asked, found.iter_rows(named=True), strict=True):
        expected = recount.values((key,), t_us)
        whole = [name for name in names if row[f"{name}__status"] != "warming"]
        n_whole += len(whole)
        wrong += [(name, key, format_instant(t_us)) for name in whole if bits([row[name]]) != bits([expected[name]])]
    assert wrong == []
    assert n_whole > 1000
