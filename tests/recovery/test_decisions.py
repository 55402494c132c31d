"""What one life decided and showed, the next one decides again, also where the world outside has changed meanwhile."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.recovery.test_state_folder import BrokenOff, Calling
from tests.support.pipeline import SCHEMA, Bench, Outcome, entities, expected_log, history, logged, plan
from tests.support.schema_registry import Registry
from unskew.features.plan import Plan
from unskew.pipelines.run import run
from unskew.pipelines.state.folder import JOURNAL
from unskew.pipelines.state.journal import Fact, Placed, Refused, _parse

VIEWS = ["by_user", "by_item"]
RECORDS = [record for record in history(120, seed=21) if record.raw is None]


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry()
    yield made
    made.close()


def _break_off() -> None:
    raise BrokenOff


def _decided(outcome: Outcome) -> list[Fact]:
    """What the journal holds of the decisions of a run that goes on."""
    paths = list((outcome.deployment.state / JOURNAL).glob("*.journal"))
    return [fact for path in paths for fact in _parse(path, path.read_bytes())[1]]


def _live(definitions: Plan, settle_us: int) -> Plan:
    stream = replace(definitions.streams["purchases"], settle_us=settle_us)
    views = {name: replace(view, stream=stream) for name, view in definitions.views.items()}
    return replace(definitions, views=views, streams={"purchases": stream})


def _check_log(outcome: Outcome) -> None:
    """The log is what the archive says, counted anew."""
    for name in VIEWS:
        view, events, closed = outcome.plan.views[name], outcome.archive(), outcome.complete_to(name)
        homes = {(user,): f"p{partition}.0" for user, partition in events.select("user", "_partition").rows()}
        complete_to = {key: closed[homes[key] if view.partitioned else "h0"] for key in entities(view, events)}
        assert logged(view, outcome.log(name)) == expected_log(view, events, complete_to)


def test_a_record_whose_schema_was_unknown_stays_a_dead_letter_and_one_that_comes_later_is_counted(
    bench: Bench, registry: Registry, redis_client: Any
) -> None:
    outcome = Outcome(plan(bench.produce(RECORDS)), bench.deployment(epoch_s=1000.0, poll_records=6))
    outcome.deployment = replace(outcome.deployment, schema_registry=f"http://{registry.address}")

    def some_are_refused() -> bool:
        runs = [run for fact in _decided(outcome) if isinstance(fact, Refused) for run in fact.runs]
        return sum(last + 1 - first for first, last in runs) > 5

    with pytest.raises(BrokenOff):
        run(outcome.plan, outcome.deployment, stop=Calling(1, _break_off, some_are_refused))  # type: ignore[arg-type]
    shown = redis_client.keys(f"{outcome.deployment.prefix}:by_*")
    registry.put(7, SCHEMA)
    run(outcome.plan, outcome.deployment, stop=threading.Event())

    assert not shown
    dead = outcome.dead_letters().filter(kind="schema")
    counted = outcome.archive()
    assert dead.height > 5
    assert counted.height > 5
    assert set(dead["reason"]) == {"schema 7: the registry has no such schema"}
    assert dead.height + counted.height == len(RECORDS)
    for partition in range(4):
        refused = dead.filter(partition=partition)["offset"].to_list()
        taken = counted.filter(_partition=partition)["_offset"].to_list()
        assert refused == list(range(len(refused)))
        assert not taken or min(taken) == len(refused)
    _check_log(outcome)


@pytest.mark.long
def test_a_record_that_was_read_is_read_again_though_the_registry_does_not_know_its_schema_at_first(
    bench: Bench, registry: Registry
) -> None:
    outcome = Outcome(plan(bench.produce(RECORDS)), bench.deployment(epoch_s=1000.0, poll_records=6))
    outcome.deployment = replace(outcome.deployment, schema_registry=f"http://{registry.address}")
    registry.put(7, SCHEMA)

    def all_have_some() -> bool:
        placed = [fact for fact in _decided(outcome) if isinstance(fact, Placed)]
        return len({fact.place for fact in placed if fact.next > fact.begins}) == 4

    with pytest.raises(BrokenOff):
        run(outcome.plan, outcome.deployment, stop=Calling(1, _break_off, all_have_some))  # type: ignore[arg-type]

    # A follower that lags for longer than an unknown id may hold up the flow.
    registry.failures, registry.status = 4, 404
    run(outcome.plan, outcome.deployment, stop=threading.Event())

    assert registry.failures == 0
    assert outcome.dead_letters().filter(kind="schema").height == 0
    assert outcome.archive().height == len(RECORDS)
    _check_log(outcome)


MODES = {
    "end": {"idle": "none", "ends": "now"},
    "live": {"idle": "wall", "ends": None},
    "open": {"idle": "none", "ends": None},
}


@pytest.mark.parametrize("first", MODES)
@pytest.mark.parametrize("second", MODES)
def test_a_run_in_any_mode_goes_on_from_one_in_any_other(bench: Bench, first: str, second: str) -> None:
    """And from what a third one leaves, to the end."""
    topic = bench.produce([record for record in RECORDS[:80] if record.partition < 2], 2)
    outcome = Outcome(_live(plan(topic), 100_000), bench.deployment())
    for mode in (first, second, "end"):
        stop = threading.Event()
        began_s = time.monotonic()

        def report(status: Any, stop: threading.Event = stop, began_s: float = began_s) -> None:
            if status.epochs > 2 and time.monotonic() - began_s > 1:
                stop.set()

        run(outcome.plan, replace(outcome.deployment, **MODES[mode]), stop=stop, report=report)
        bench.append(topic, [record for record in RECORDS[80:] if record.partition < 2])

    assert outcome.archive().height == 2 * len([record for record in RECORDS[80:] if record.partition < 2]) + len(
        [record for record in RECORDS[:80] if record.partition < 2]
    )
    _check_log(outcome)
