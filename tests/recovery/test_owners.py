"""One state computes a view: another is refused, and what a state no longer computes does not look alive."""

import logging
import threading
from contextlib import closing
from dataclasses import replace

import pytest
import redis
from click.testing import CliRunner

from tests.recovery.test_state_folder import Calling
from tests.support.pipeline import Bench, Outcome, history, plan
from tests.support.plans import republished
from unskew.cli import main
from unskew.features.errors import LayoutError, RequestError
from unskew.features.plan import Plan
from unskew.features.registry import parse
from unskew.pipelines.deployment import Deployment
from unskew.pipelines.run import run
from unskew.serving.online import OnlineReader
from unskew.sinks.redis.owners import Owners

RECORDS = history(60, seed=3)


def _run(definitions: Plan, deployment: Deployment) -> None:
    run(definitions, deployment, stop=threading.Event())


def _everything(client: "redis.Redis", prefix: str) -> dict[bytes, object]:
    return {
        key: client.get(key) if client.type(key) == b"string" else client.hgetall(key)
        for key in client.keys(f"{prefix}:*")
    }


def _values(client: "redis.Redis", prefix: str, view: str) -> set[bytes]:
    return set(client.keys(f"{prefix}:{view}:{{*}}"))


@pytest.mark.parametrize("pipeline", ["main", "another"])
def test_a_second_state_that_computes_the_same_view_is_refused_and_leaves_all_as_it_was(
    bench: Bench, redis_client: "redis.Redis", pipeline: str
) -> None:
    first = bench.run(bench.produce(RECORDS))
    prefix = first.deployment.prefix
    before = _everything(redis_client, prefix)
    second = bench.deployment(prefix=prefix, pipeline=pipeline)

    with pytest.raises(LayoutError, match=r"values of by_item@1 in Redis belong to pipeline 'main' on .*--replace"):
        _run(first.plan, second)

    assert _everything(redis_client, prefix) == before
    assert not list(second.log.glob("**/*.parquet"))
    assert not second.state.exists()
    # Neither a restart nor a process that takes over is another state.
    _run(first.plan, first.deployment)
    _run(first.plan, replace(first.deployment, take_over=True))


def test_a_state_that_replaces_another_removes_its_values_first_and_the_other_stops(
    bench: Bench, redis_client: "redis.Redis"
) -> None:
    topic = bench.produce(RECORDS)
    first = bench.run(topic, epoch_s=0.0, poll_records=6)
    prefix = first.deployment.prefix
    nobody = f"{prefix}:by_user@1:{{of-the-first-alone}}"
    redis_client.hset(nobody, "n", 5)
    second = bench.deployment(prefix=prefix)

    _run(first.plan, replace(second, replace=True))

    assert not redis_client.exists(nobody)
    values = _values(redis_client, prefix, "by_user@1")
    assert len(values) == len(_values(redis_client, bench.run(topic).deployment.prefix, "by_user@1"))
    with pytest.raises(LayoutError, match="belong to pipeline 'main' on"):
        _run(first.plan, first.deployment)
    # It may start again, with the option or without.
    _run(first.plan, second)


@pytest.mark.parametrize("kept", ["log", "archive"])
def test_a_run_that_its_tables_refuse_removes_nothing_of_the_state_that_it_replaces(
    bench: Bench, redis_client: "redis.Redis", kept: str
) -> None:
    first = bench.run(bench.produce(RECORDS))
    prefix = first.deployment.prefix
    before = _everything(redis_client, prefix)
    second = replace(bench.deployment(prefix=prefix), replace=True, **{kept: getattr(first.deployment, kept)})

    with pytest.raises(LayoutError, match="was published by an earlier run, but there is no saved state"):
        _run(first.plan, second)

    assert _everything(redis_client, prefix) == before
    assert not second.state.exists()


def test_a_running_pipeline_that_is_replaced_stops(bench: Bench, redis_client: "redis.Redis") -> None:
    topic = bench.produce(RECORDS)
    outcome = Outcome(plan(topic), bench.deployment(epoch_s=0.0, poll_records=6))
    key = f"{outcome.deployment.prefix}:owners"

    def take() -> None:
        for field in redis_client.hkeys(key):
            redis_client.hset(key, field, "another")
        redis_client.client_kill_filter(_type="normal", skipme=True)

    with pytest.raises(LayoutError, match="belong to the state another"):
        run(outcome.plan, outcome.deployment, stop=Calling(20, take, lambda: redis_client.hlen(key)))  # type: ignore[arg-type]


def test_of_two_that_claim_at_the_same_time_one_gets_all_it_asked_for_or_is_refused(
    redis_client: "redis.Redis",
) -> None:
    shards = [f"v@1/h{number}" for number in range(300)]
    refused: list[str] = []

    def claim(state: str) -> None:
        try:
            Owners("unskew", state).claim(redis_client, shards, state, {})
        except LayoutError:
            refused.append(state)

    threads = [threading.Thread(target=claim, args=(state,)) for state in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(refused) >= 1


def test_of_two_pipelines_with_versions_of_one_view_the_newer_one_serves_whichever_starts_again(
    bench: Bench, redis_client: "redis.Redis", caplog: pytest.LogCaptureFixture
) -> None:
    topic = bench.produce(RECORDS)
    first = bench.run(topic)
    prefix = first.deployment.prefix
    newer = replace(first.plan, views={"by_user": republished(first.plan.views["by_user"], version=2)})
    second = bench.deployment(prefix=prefix, pipeline="another")

    def serving() -> int:
        return parse(redis_client.get(f"{prefix}:registry")).views["by_user"].version  # type: ignore[arg-type]

    _run(newer, second)
    assert serving() == 2
    with caplog.at_level(logging.WARNING, "unskew.redis"):
        _run(first.plan, first.deployment)
    assert serving() == 2
    assert "by_user@1 does not serve, because another pipeline published by_user@2 later" in caplog.text

    _run(first.plan, replace(first.deployment, replace=True))
    _run(newer, second)

    assert serving() == 1
    assert _values(redis_client, prefix, "by_user@1")
    assert _values(redis_client, prefix, "by_user@2")


@pytest.fixture
def retired(bench: Bench, caplog: pytest.LogCaptureFixture) -> Outcome:
    """A pipeline whose view ``by_item`` went, and whose ``by_user`` has a new version."""
    topic = bench.produce(RECORDS)
    outcome = bench.run(topic)
    by_user = outcome.plan.views["by_user"]
    newer = replace(outcome.plan, views={"by_user": republished(by_user, version=2)})
    bench.append(topic, RECORDS)
    with caplog.at_level(logging.WARNING, "unskew.redis"):
        _run(newer, replace(outcome.deployment, drop=["by_item"]))
    assert "by_item@1, by_user@1: no longer computed" in caplog.text
    assert "unskew purge by_item@1 by_user@1" in caplog.text
    return outcome


def test_a_reader_that_asks_for_a_version_that_went_gets_an_error(
    retired: Outcome, redis_client: "redis.Redis"
) -> None:
    pinned = {name: view.published for name, view in retired.plan.views.items()}
    prefix = retired.deployment.prefix
    feature = pinned["by_item"].features[0].name
    with (
        closing(OnlineReader(redis_client, prefix, views=pinned)) as reader,
        pytest.raises(RequestError, match="by_item@1 is no longer computed"),
    ):
        reader.read([f"by_item:{feature}"], [{"item": 1}])
    with closing(OnlineReader(redis_client, prefix)) as reader:
        with pytest.raises(RequestError, match="by_item@1 is no longer computed"):
            reader.read([f"by_item:{feature}"], [{"item": 1}])
        assert reader.views()["by_user"].version == 2
        reader.read([f"by_user:{reader.views()['by_user'].features[0].name}"], [{"user": "1"}])


def test_what_a_version_left_is_removed_by_a_command_that_touches_nothing_else(
    retired: Outcome, redis_client: "redis.Redis"
) -> None:
    prefix = retired.deployment.prefix
    others = [f"{prefix}:by_item@11:{{1}}", f"{prefix}x:by_item@1:{{1}}", f"{prefix}:by_item@1"]
    for other in others:
        redis_client.hset(other, "n", 1)
    assert _values(redis_client, prefix, "by_item@1")
    before = _values(redis_client, prefix, "by_user@2")
    command = ["purge", "by_item@1", "by_user@1", "--redis-url", retired.deployment.redis_url, "--prefix", prefix]

    for _ in range(2):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.output

    assert not _values(redis_client, prefix, "by_item@1") | _values(redis_client, prefix, "by_user@1")
    assert _values(redis_client, prefix, "by_user@2") == before != set()
    assert all(redis_client.exists(other) for other in others)
    with closing(OnlineReader(redis_client, prefix)) as reader:
        assert list(reader.views()) == ["by_user"]
    redis_client.delete(*others)
    refused = CliRunner().invoke(main, ["purge", "by_user@2", *command[3:]])
    assert refused.exit_code == 1
    assert "error: by_user@2: a pipeline computes it; run that pipeline without the view first" in refused.output
    assert CliRunner().invoke(main, ["purge", "by_user@2", "--force", *command[3:]]).exit_code == 0
    assert not _values(redis_client, prefix, "by_user@2")
    assert "is not a view version" in CliRunner().invoke(main, ["purge", "by_user", *command[3:]]).output
