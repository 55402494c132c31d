"""``unskew rehydrate`` makes Redis hold what the state holds, whether the pipeline runs or not."""

import threading
from dataclasses import replace

import pytest
import redis
from click.testing import CliRunner

from tests.recovery.test_redis_lost import _held
from tests.recovery.test_state_folder import Calling
from tests.support.pipeline import Bench, Outcome, history, plan
from tests.support.servers.valkey import wait_until
from unskew.cli import main
from unskew.features.errors import LayoutError
from unskew.pipelines.rehydrate import Written, rehydrate
from unskew.pipelines.run import run

RECORDS = history(200, seed=11)


def _files(outcome: Outcome) -> dict[str, bytes]:
    state = outcome.deployment.state
    return {
        str(path.relative_to(state)): path.read_bytes()
        for path in state.rglob("*")
        if path.is_file() and "_leases" not in path.parts
    }


def _value_keys(client: "redis.Redis", outcome: Outcome) -> list[bytes]:
    return sorted(key for key in client.keys(f"{outcome.deployment.prefix}:*@*") if b":sent" not in key)


@pytest.mark.parametrize("damage", ["all is lost", "values are lost, wrong, of another type, and too many"])
def test_a_stopped_pipelines_state_fills_redis_and_stays_as_it_is(
    bench: Bench, redis_client: "redis.Redis", damage: str
) -> None:
    topic = bench.produce(RECORDS)
    outcome, untouched = bench.run(topic, n_hashes=2), bench.run(topic, n_hashes=2)
    expected, files = _held(redis_client, outcome), _files(outcome)
    assert len(expected) > 10
    if damage == "all is lost":
        redis_client.flushdb()
    else:
        lost, wrong, string, *_ = _value_keys(redis_client, outcome)
        redis_client.delete(lost, string)
        redis_client.hset(wrong, mapping={"_at": 1, "_until": 3})
        redis_client.set(string, "in the way")
        redis_client.hset(f"{outcome.deployment.prefix}:by_user@1:{{nobody}}", "_at", 1)
    steps: list[Written] = []

    written = rehydrate(outcome.plan, replace(outcome.deployment, n_hashes=7), steps.append)

    assert _held(redis_client, outcome) == expected
    assert redis_client.exists(f"{outcome.deployment.prefix}:registry")
    assert written == steps[-1]
    assert written.removed == (damage != "all is lost")
    assert written.rows == len(_value_keys(redis_client, outcome))
    assert written.shards == written.n_shards > 2
    assert _files(outcome) == files
    # The pipeline goes on from there, and finds that nothing lacks.
    bench.append(topic, RECORDS[:50])
    for one in (outcome, untouched):
        run(one.plan, one.deployment, stop=threading.Event())
    assert _held(redis_client, outcome) == _held(redis_client, untouched)


def test_a_state_in_use_or_older_than_redis_or_of_nothing_is_refused(bench: Bench, redis_client: "redis.Redis") -> None:
    topic = bench.produce(RECORDS)
    running = Outcome(plan(topic), bench.deployment(poll_records=6, epoch_s=0.0))
    refusals: list[str] = []

    def second() -> None:
        try:
            rehydrate(running.plan, running.deployment)
        except LayoutError as error:
            refusals.append(str(error))

    run(running.plan, running.deployment, stop=Calling(20, second))  # type: ignore[arg-type]
    assert "is in use by pipeline 'main'" in refusals[0]

    marks = f"{running.deployment.prefix}:sent:main"
    for field, word in redis_client.hgetall(marks).items():
        state, clock_us, applied = word.decode().rsplit(":", 2)
        redis_client.hset(marks, field, f"{state}:{int(clock_us) + 1}:{applied}")
    before = _held(redis_client, running)
    with pytest.raises(LayoutError, match=r"Redis holds later values of .* start unskew run"):
        rehydrate(running.plan, running.deployment)
    assert _held(redis_client, running) == before

    (bench.root / "empty").mkdir()
    with pytest.raises(LayoutError, match="empty holds no state; name the --state of the pipeline"):
        rehydrate(running.plan, replace(running.deployment, state=bench.root / "empty"))


def test_a_running_pipeline_writes_all_its_values_again_when_asked(bench: Bench, redis_client: "redis.Redis") -> None:
    topic = bench.produce(RECORDS[:60])
    live = Outcome(plan(topic), bench.deployment(ends=None, epoch_s=0.5))
    prefix = live.deployment.prefix
    command = ["rehydrate", "--running", "--redis-url", live.deployment.redis_url, "--prefix"]
    stop, done = threading.Event(), []
    pipeline = threading.Thread(target=run, args=(live.plan, live.deployment), kwargs={"stop": stop})
    asking = threading.Thread(target=lambda: done.append(CliRunner().invoke(main, [*command, prefix])))
    pipeline.start()
    try:
        wait_until(lambda: len(_value_keys(redis_client, live)) > 10, "there are values", within_s=60)
        removed = redis_client.delete(*_value_keys(redis_client, live))
        asking.start()
        for number in range(60, len(RECORDS)):
            # Few of the values change by these records.
            bench.append(topic, RECORDS[number : number + 1])
            asking.join(0.1)
            if done:
                break
        asking.join(60)
    finally:
        stop.set()
        pipeline.join()
        asking.join()

    assert removed > 10
    assert done[0].exit_code == 0, done[0].output
    assert "shards written again" in done[0].output
    assert not redis_client.hexists(f"{prefix}:sent:main", "#loss")
    run(live.plan, replace(live.deployment, ends="now"), stop=threading.Event())
    assert _held(redis_client, live) == _held(redis_client, bench.run(topic))


def test_what_cannot_be_asked_for_is_an_error(redis_client: "redis.Redis", redis_url: str) -> None:
    nobody = CliRunner().invoke(main, ["rehydrate", "--running", "--redis-url", redis_url, "--prefix", "nobody"])
    assert nobody.exit_code == 1
    assert "error: Redis has no clock of a pipeline 'main' under the prefix 'nobody'" in nobody.output
    assert not redis_client.exists("nobody:sent:main")
    for options, text in (
        (["--running", "--state", "x"], "error: --running and --state exclude each other"),
        ([], "error: give --definitions and --state of the stopped pipeline, or --running"),
    ):
        refused = CliRunner().invoke(main, ["rehydrate", *options])
        assert refused.exit_code == 1
        assert text in refused.output
