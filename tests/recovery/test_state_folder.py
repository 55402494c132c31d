"""What a state folder and a prefix are safe from: runs that are refused, mistaken, or two at once."""

import contextlib
import json
import os
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.support.pipeline import Bench, Outcome, history, plan
from tests.support.plans import republished
from unskew.features.errors import LayoutError, RequestError, Stopped, StoreUnavailable, UnskewError
from unskew.features.plan import Plan
from unskew.features.registry import parse
from unskew.pipelines.deployment import Deployment
from unskew.pipelines.run import run
from unskew.sinks import durable

RECORDS = history(80, seed=3)
EVERY_ITEM = {"epoch_s": 0.0, "poll_records": 6}


class BrokenOff(UnskewError):
    """Stands for whatever may end a process in the middle of its work."""


class Calling:
    """A stop flag that never stops and does something of its own when it is asked for the ``n``-th time, or later.

    How far the run is by then depends on how fast the broker is, and on whether the kernel is compiled; ``once`` says
    what must have happened first.
    """

    def __init__(self, n: int, action: Callable[[], None], once: Callable[[], Any] = lambda: True) -> None:
        self._left = n
        self._action = action
        self._once = once
        self._is_done = False

    def is_set(self) -> bool:
        self._left -= 1
        if self._left <= 0 and not self._is_done and self._once():
            self._is_done = True
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
    dropping = () if why == "fingerprint" else ("by_user",)

    with pytest.raises((LayoutError, RequestError)):
        _run(definitions, replace(outcome.deployment, drop=dropping, **changes))

    assert (_published(redis_client, outcome), path.read_bytes()) == before
    _run(outcome.plan, outcome.deployment)


def test_the_registry_keeps_the_views_of_another_pipeline(bench: Bench, redis_client: "redis.Redis") -> None:
    definitions = plan(bench.produce(RECORDS))
    first, second = bench.deployment(), bench.deployment()
    _run(_only(definitions, "by_user"), first)
    _run(_only(definitions, "by_item"), replace(second, prefix=first.prefix, pipeline="second"))

    assert sorted(parse(redis_client.get(f"{first.prefix}:registry")).views) == ["by_item", "by_user"]


def test_an_empty_topic_still_publishes_the_registry(bench: Bench, redis_client: "redis.Redis") -> None:
    assert _published(redis_client, bench.run(bench.produce([]))) is not None


@pytest.mark.parametrize("wrong", ["broker", "redis"])
def test_a_run_without_a_view_that_reaches_nothing_retires_nothing(bench: Bench, wrong: str) -> None:
    topic = bench.produce(RECORDS)
    outcome = bench.run(topic)
    port = _unused_port()
    changes = {"bootstrap": f"127.0.0.1:{port}"} if wrong == "broker" else {"redis_url": f"redis://127.0.0.1:{port}"}

    with pytest.raises(StoreUnavailable):
        _run(_only(outcome.plan, "by_user"), replace(outcome.deployment, drop=("by_item",), **changes))

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
        dropping = replace(outcome.deployment, drop=("by_item",))
        run(_only(outcome.plan, "by_user"), dropping, stop=Calling(25, break_off))

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


def test_a_run_whose_lease_was_taken_over_stops_before_it_publishes_anything_more(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = bench.produce(RECORDS)
    outcome = Outcome(plan(topic), bench.deployment(**EVERY_ITEM))
    log = outcome.deployment.log
    published: list[Path] = []
    # Other threads publish: one that has just looked at its lease would still rename its file.
    one_at_a_time = threading.Lock()
    rename = durable.rename

    def taken_over_before_the_fifth(source: Path, target: Path, *args: Any) -> None:
        with one_at_a_time:
            files = list(log.glob("*/v1/day=*/*.parquet"))
            if len(files) == 4 and not published and target.match("v1/day=*/*.parquet"):
                published.extend(files)
                for lease in (log / "_leases").glob("*.json"):
                    lease.unlink()
            rename(source, target, *args)

    monkeypatch.setattr(durable, "rename", taken_over_before_the_fifth)
    with pytest.raises(LayoutError, match="was taken over, because it was not renewed for 30 s"):
        _run(outcome.plan, outcome.deployment)

    assert published
    assert sorted(log.glob("*/v1/day=*/*.parquet")) == sorted(published)


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


class Stopping:
    """A stop flag that is set from its ``n``-th reading on."""

    def __init__(self, n: int) -> None:
        self._left = n

    def is_set(self) -> bool:
        self._left -= 1
        return self._left <= 0


def _left_behind(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.name.endswith(".json") and path.parent.name == "_leases")


def test_a_stop_at_any_stage_of_the_start_is_clean_and_the_next_run_goes_on(bench: Bench) -> None:
    topic = bench.produce(RECORDS[:60])
    outcome = bench.run(topic, **EVERY_ITEM)
    bench.append(topic, RECORDS[60:])
    stages = 0
    for n in range(1, 40):
        try:
            run(outcome.plan, outcome.deployment, stop=Stopping(n))
        except Stopped:
            stages += 1
            assert _left_behind(bench.root) == []
            continue
        break

    _run(outcome.plan, outcome.deployment)

    # The start, before and after the topics are found, the flow, and the state of each of the shards.
    assert stages > 6
    # Records after an end arrive after it, so the reference has the same end.
    other = bench.produce(RECORDS[:60])
    reference = bench.run(other, **EVERY_ITEM)
    bench.append(other, RECORDS[60:])
    _run(reference.plan, reference.deployment)
    for view in outcome.plan.views:
        assert outcome.log(view).equals(reference.log(view))


def _everything(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.name != "__pycache__")


@pytest.mark.parametrize("already", [False, True])
@pytest.mark.parametrize("wrong", ["broker", "topic", "redis", "metrics", "stop", "partitions"])
def test_a_refused_start_leaves_nothing_that_was_not_there(bench: Bench, wrong: str, already: bool) -> None:
    definitions = plan("nowhere" if wrong == "topic" else bench.produce(RECORDS[:5]))
    port = _unused_port()
    deployment = bench.deployment()
    deep = replace(deployment, state=deployment.state / "a" / "b", log=deployment.log / "c")
    if already:
        for folder in deep.folders().values():
            folder.mkdir(parents=True)
    before = _everything(bench.root)
    stop = threading.Event()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        changes: dict[str, Any] = {
            "broker": {"bootstrap": f"127.0.0.1:{port}"},
            "topic": {},
            "redis": {"redis_url": f"redis://127.0.0.1:{port}"},
            "metrics": {"metrics": ("127.0.0.1", taken.getsockname()[1])},
            "stop": {},
            "partitions": {"ends": {"other": {0: 1}}},
        }[wrong]
        if wrong == "stop":
            stop.set()
        with pytest.raises(UnskewError):
            run(definitions, replace(deep, **changes), stop=stop)

    assert _everything(bench.root) == before


def _views(outcome: Outcome) -> tuple[list[str], list[str]]:
    content = json.loads((outcome.deployment.state / "deployment.json").read_text())
    return content["views"], content["retired"]


def test_a_view_that_is_missing_refuses_the_start_until_it_is_named(bench: Bench) -> None:
    topic = bench.produce(RECORDS[:40])
    outcome = bench.run(topic)
    less = _only(outcome.plan, "by_user")

    with pytest.raises(
        LayoutError, match=r"by_item@1: in .* not in the definitions.*--drop by_item@1; all other views"
    ):
        _run(less, outcome.deployment)
    for wrong, words in (("by_user", r"the definitions have by_user@1"), ("by_itme", r"did you mean 'by_item@1'")):
        with pytest.raises(RequestError, match=words):
            _run(less, replace(outcome.deployment, drop=(wrong, "by_item")))
    # Nothing has ended.
    _run(outcome.plan, outcome.deployment)
    assert _views(outcome) == (["by_item@1", "by_user@1"], [])

    for again in ("by_item", "by_item@1"):
        # The option may stay where it is set for good.
        _run(less, replace(outcome.deployment, drop=(again,)))
    _run(less, outcome.deployment)
    assert _views(outcome) == (["by_item@1", "by_user@1"], ["by_item@1"])


def test_a_higher_version_ends_the_lower_one_and_a_lower_one_must_be_asked_for(bench: Bench) -> None:
    topic = bench.produce(RECORDS[:40])
    outcome = bench.run(topic)
    by_item = outcome.plan.views["by_item"]

    def version(number: int) -> Plan:
        view = republished(by_item, version=number)
        return replace(outcome.plan, views={**outcome.plan.views, "by_item": view})

    _run(version(3), outcome.deployment)
    assert _views(outcome)[1] == ["by_item@1"]
    with pytest.raises(LayoutError, match=r"by_item@3: in .*--drop by_item@3"):
        _run(version(2), outcome.deployment)
    _run(version(2), replace(outcome.deployment, drop=("by_item@3",)))
    assert _views(outcome)[1] == ["by_item@1", "by_item@3"]


def test_a_version_beside_a_lower_one_ends_only_if_it_is_named_with_its_number(bench: Bench) -> None:
    topic = bench.produce(RECORDS[:40])
    outcome = bench.run(topic)
    second = republished(outcome.plan.views["by_item"], version=2, serving=False)
    _run(replace(outcome.plan, views={**outcome.plan.views, "second": second}), outcome.deployment)
    assert _views(outcome) == (["by_item@1", "by_item@2", "by_user@1"], [])

    with pytest.raises(LayoutError, match=r"by_item@2: in .*--drop by_item@2; all other views"):
        _run(outcome.plan, outcome.deployment)
    with pytest.raises(RequestError, match=r"--drop by_item: .* have by_item@1, .* or name the version that is to end"):
        _run(outcome.plan, replace(outcome.deployment, drop=("by_item",)))
    _run(outcome.plan, replace(outcome.deployment, drop=("by_item@2",)))
    assert _views(outcome) == (["by_item@1", "by_item@2", "by_user@1"], ["by_item@2"])


@pytest.mark.parametrize("damage", ["empty", "junk", "half", "overwritten", "a folder", "deployment.json is a folder"])
def test_a_damaged_store_is_an_error_that_names_it(bench: Bench, damage: str) -> None:
    outcome = bench.run(bench.produce(RECORDS[:40]))
    database = next((outcome.deployment.state / "recovery").glob("*.sqlite3"))
    content = database.read_bytes()
    match damage:
        case "empty":
            database.write_bytes(b"")
        case "junk":
            database.write_bytes(b"x" * 9000)
        case "half":
            database.write_bytes(content[:5000])
        case "overwritten":
            database.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
        case "a folder":
            database.unlink()
            database.mkdir()
        case _:
            (outcome.deployment.state / "deployment.json").unlink()
            (outcome.deployment.state / "deployment.json").mkdir()

    with pytest.raises(LayoutError, match=r"/state/(recovery is damaged|deployment.json cannot be read).*restore"):
        _run(outcome.plan, outcome.deployment)
    assert _left_behind(bench.root) == []
