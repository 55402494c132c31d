"""What a state folder and a prefix are safe from: runs that are refused, mistaken, or two at once."""

import contextlib
import os
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import redis

from tests.support.pipeline import Bench, Outcome, history, plan
from tests.support.plans import republished
from unskew.features.errors import LayoutError, RequestError, StoreUnavailable, UnskewError
from unskew.features.plan import Plan
from unskew.features.registry import parse
from unskew.pipelines.deployment import Deployment
from unskew.pipelines.run import run

RECORDS = history(80, seed=3)
EVERY_ITEM = {"epoch_s": 0.0, "poll_records": 6}


class BrokenOff(UnskewError):
    """Stands for whatever may end a process in the middle of its work."""


class Calling:
    """A stop flag that never stops and does something of its own when it has been asked ``n`` times."""

    def __init__(self, n: int, action: Callable[[], None]) -> None:
        self._left = n
        self._action = action

    def is_set(self) -> bool:
        self._left -= 1
        if self._left == 0:
            self._action()
        return False

    def wait(self, _timeout: float) -> bool:
        return False


def _only(definitions: Plan, view: str) -> Plan:
    return replace(definitions, views={view: definitions.views[view]})


def _run(definitions: Plan, deployment: Deployment) -> None:
    run(definitions, deployment, stop=threading.Event())


def _unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _published(client: "redis.Redis", outcome: Outcome) -> bytes | None:
    return client.get(f"{outcome.deployment.prefix}:registry")


def _changed(definitions: Plan) -> Plan:
    view = republished(definitions.views["by_user"], state_fingerprint="0" * 64)
    return replace(definitions, views={**definitions.views, "by_user": view})


@pytest.mark.parametrize("why", ["fingerprint", "shards", "ends"])
def test_a_refused_run_leaves_registry_and_deployment_as_they_were(
    bench: Bench, redis_client: "redis.Redis", why: str
) -> None:
    topic = bench.produce(RECORDS)
    outcome = bench.run(topic)
    path = outcome.deployment.state / "deployment.json"
    before = _published(redis_client, outcome), path.read_bytes()
    assert before[0] is not None
    bench.append(topic, RECORDS[:20])
    definitions = _changed(outcome.plan) if why == "fingerprint" else _only(outcome.plan, "by_item")
    changes = {"fingerprint": {}, "shards": {"n_hashes": 3}, "ends": {"ends": {topic: {0: 1}}}}[why]

    with pytest.raises((LayoutError, RequestError)):
        _run(definitions, replace(outcome.deployment, **changes))

    assert (_published(redis_client, outcome), path.read_bytes()) == before
    _run(outcome.plan, outcome.deployment)


def test_the_registry_keeps_the_views_of_another_pipeline(bench: Bench, redis_client: "redis.Redis") -> None:
    definitions = plan(bench.produce(RECORDS))
    first, second = bench.deployment(), bench.deployment()
    _run(_only(definitions, "by_user"), first)
    _run(_only(definitions, "by_item"), replace(second, prefix=first.prefix, pipeline="second"))

    assert sorted(parse(redis_client.get(f"{first.prefix}:registry"))) == ["by_item", "by_user"]


def test_an_empty_topic_still_publishes_the_registry(bench: Bench, redis_client: "redis.Redis") -> None:
    assert _published(redis_client, bench.run(bench.produce([]))) is not None


@pytest.mark.parametrize("wrong", ["broker", "redis"])
def test_a_run_without_a_view_that_reaches_nothing_retires_nothing(bench: Bench, wrong: str) -> None:
    topic = bench.produce(RECORDS)
    outcome = bench.run(topic)
    port = _unused_port()
    changes = {"bootstrap": f"127.0.0.1:{port}"} if wrong == "broker" else {"redis_url": f"redis://127.0.0.1:{port}"}

    with pytest.raises(StoreUnavailable):
        _run(_only(outcome.plan, "by_user"), replace(outcome.deployment, **changes))

    _run(outcome.plan, outcome.deployment)


def test_a_first_run_that_reaches_nothing_does_not_bind_the_state_folder(bench: Bench) -> None:
    topic = bench.produce(RECORDS)
    outcome = Outcome(plan(topic), bench.deployment())
    wrong = replace(outcome.deployment, redis_url=f"redis://127.0.0.1:{_unused_port()}", n_hashes=3)
    with pytest.raises(StoreUnavailable):
        _run(outcome.plan, wrong)

    _run(outcome.plan, outcome.deployment)


def test_a_view_is_retired_as_soon_as_an_epoch_without_it_is_durable(bench: Bench) -> None:
    topic = bench.produce(RECORDS[:40])
    outcome = bench.run(topic, **EVERY_ITEM)
    bench.append(topic, RECORDS[40:])

    def break_off() -> None:
        raise BrokenOff

    with contextlib.suppress(BrokenOff):
        run(_only(outcome.plan, "by_user"), outcome.deployment, stop=Calling(12, break_off))

    with pytest.raises(LayoutError, match=r"by_item@1: left out of an earlier run"):
        _run(outcome.plan, outcome.deployment)


def test_a_second_run_on_one_state_folder_is_refused_and_the_first_goes_on(bench: Bench) -> None:
    topic = bench.produce(RECORDS)
    outcome = Outcome(plan(topic), bench.deployment(**EVERY_ITEM))
    refusals = []

    def second() -> None:
        try:
            _run(outcome.plan, outcome.deployment)
        except LayoutError as error:
            refusals.append(str(error))

    run(outcome.plan, outcome.deployment, stop=Calling(10, second))

    assert len(refusals) == 1
    assert f"{outcome.deployment.state} is in use by pipeline 'main' on " in refusals[0]
    assert f"process {os.getpid()} on " in refusals[0]
    assert re.search(r"its lease was renewed \d+ s ago", refusals[0])
    assert "stop that one first, or name another --state" in refusals[0]
    assert outcome.log("by_user").equals(bench.run(topic).log("by_user"))


@pytest.mark.parametrize("shared", ["log", "archive", "dead_letters"])
def test_a_run_with_a_state_of_its_own_on_a_folder_in_use_is_refused_and_the_first_goes_on(
    bench: Bench, shared: str
) -> None:
    topic = bench.produce(RECORDS)
    outcome = Outcome(plan(topic), bench.deployment(**EVERY_ITEM))
    other = bench.deployment(**{shared: getattr(outcome.deployment, shared)})
    refusals = []

    def second() -> None:
        try:
            _run(outcome.plan, other)
        except LayoutError as error:
            refusals.append(str(error))

    run(outcome.plan, outcome.deployment, stop=Calling(10, second))

    assert len(refusals) == 1
    assert f"{getattr(other, shared)} is in use by pipeline 'main' on {outcome.deployment.state}" in refusals[0]
    assert f"name another --{shared.replace('_', '-')}" in refusals[0]
    assert outcome.log("by_user").equals(bench.run(topic).log("by_user"))


def test_a_run_whose_lease_was_taken_over_stops_before_it_publishes_anything_more(bench: Bench) -> None:
    topic = bench.produce(RECORDS)
    outcome = Outcome(plan(topic), bench.deployment(**EVERY_ITEM))
    published = []

    def taken_over() -> None:
        for lease in (outcome.deployment.log / "_leases").glob("*.json"):
            lease.unlink()
        published.extend(outcome.deployment.log.glob("*/v1/day=*/*.parquet"))

    with pytest.raises(LayoutError, match="was taken over, because it was not renewed for 30 s"):
        run(outcome.plan, outcome.deployment, stop=Calling(20, taken_over))

    assert sorted(outcome.deployment.log.glob("*/v1/day=*/*.parquet")) == sorted(published)


def test_a_state_folder_that_is_a_file_is_a_layout_error(bench: Bench) -> None:
    topic = bench.produce(RECORDS[:5])
    (bench.root / "file").write_text("")
    for state in (bench.root / "file", bench.root / "file" / "below"):
        with pytest.raises(LayoutError, match="cannot be used as a state folder"):
            bench.run(topic, state=state)


def test_a_renamed_stream_goes_on_where_it_was(bench: Bench) -> None:
    topic = f"shop.eu-{bench.produce(RECORDS)}"
    bench.broker.create_topic(topic, 4)
    bench.append(topic, RECORDS[:40])
    definitions = plan(topic)
    outcome = Outcome(definitions, bench.deployment())
    _run(definitions, outcome.deployment)
    bench.append(topic, RECORDS[40:])

    views = {
        name: replace(view, stream=replace(view.stream, name="renamed")) for name, view in definitions.views.items()
    }
    _run(replace(definitions, views=views), outcome.deployment)

    reference = bench.run(topic)
    for view in definitions.views:
        assert outcome.log(view).equals(reference.log(view))


def test_what_was_opened_is_closed_when_a_later_stream_is_refused(bench: Bench, redis_client: "redis.Redis") -> None:
    definitions = plan(bench.produce(RECORDS))
    by_item = definitions.views["by_item"]
    absent = replace(by_item, stream=replace(by_item.stream, name="absent", topic="absent"))
    before = len(redis_client.client_list())

    # The error is kept, so nothing that its frames hold is collected and closed by chance.
    with pytest.raises(UnskewError, match="absent") as kept:
        _run(replace(definitions, views={**definitions.views, "by_item": absent}), bench.deployment())

    assert len(redis_client.client_list()) == before
    del kept
