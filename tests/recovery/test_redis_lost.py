"""A Redis that lost its data, before a run or during one, holds at the end what it would have held."""

import logging
import threading
from dataclasses import replace

import pytest
import redis

from tests.recovery.test_state_folder import Calling
from tests.support.pipeline import Bench, Outcome, history, plan
from unskew.pipelines.run import run

RECORDS = history(200, seed=11)


def _held(client: "redis.Redis", outcome: Outcome) -> dict[str, dict[bytes, bytes]]:
    """Every value and clock under the outcome's prefix, by key without it."""
    prefix = outcome.deployment.prefix
    keys = [key.decode() for key in client.keys(f"{prefix}:*")]
    return {
        key.removeprefix(prefix): client.hgetall(key)
        for key in keys
        if not key.startswith((f"{prefix}:sent", f"{prefix}:registry", f"{prefix}:owners"))
    }


def test_a_restart_fills_an_empty_redis_from_the_state(
    bench: Bench, redis_client: "redis.Redis", caplog: pytest.LogCaptureFixture
) -> None:
    outcome = bench.run(bench.produce(RECORDS))
    expected = _held(redis_client, outcome)
    redis_client.flushdb()

    with caplog.at_level(logging.WARNING, "unskew"):
        run(outcome.plan, outcome.deployment, stop=threading.Event())

    assert _held(redis_client, outcome) == expected
    assert "Redis is empty or behind the state: rewriting all current values" in caplog.messages
    assert redis_client.exists(f"{outcome.deployment.prefix}:registry")


def test_a_restart_without_the_hash_of_clocks_writes_every_value_again(
    bench: Bench, redis_client: "redis.Redis"
) -> None:
    outcome = bench.run(bench.produce(RECORDS))
    expected = _held(redis_client, outcome)
    prefix, pipeline = outcome.deployment.prefix, outcome.deployment.pipeline
    (damaged, *others) = sorted(key for key in redis_client.keys(f"{prefix}:*") if b"{" in key and b":sent:" not in key)
    redis_client.hset(damaged, next(iter(redis_client.hkeys(damaged))), "garbage")
    redis_client.delete(others[0], f"{prefix}:clock:{pipeline}")

    run(outcome.plan, outcome.deployment, stop=threading.Event())

    assert _held(redis_client, outcome) == expected


def test_a_restart_on_a_redis_that_has_all_rewrites_nothing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    outcome = bench.run(bench.produce(RECORDS))

    with caplog.at_level(logging.WARNING, "unskew"):
        run(outcome.plan, outcome.deployment, stop=threading.Event())

    assert not [message for message in caplog.messages if message.startswith("Redis")]


@pytest.mark.parametrize("asked", [20, 60, 150])
def test_a_redis_that_loses_its_data_during_a_run_is_filled_again(
    bench: Bench, redis_client: "redis.Redis", asked: int
) -> None:
    topic = bench.produce(RECORDS)
    through = bench.run(topic)
    lossy = Outcome(plan(topic), bench.deployment(poll_records=6, epoch_s=0.0))

    def values() -> list[bytes]:
        return redis_client.keys(f"{lossy.deployment.prefix}:by_*@*")

    def lose() -> None:
        for key in redis_client.keys(f"{lossy.deployment.prefix}:*"):
            redis_client.delete(key)
        redis_client.client_kill_filter(_type="normal", skipme=True)

    run(lossy.plan, lossy.deployment, stop=Calling(asked, lose, values))  # type: ignore[arg-type]
    # Whether it was near the end or not: a run without records finds out what is lacking.
    run(lossy.plan, replace(lossy.deployment), stop=threading.Event())

    assert _held(redis_client, lossy) == _held(redis_client, through)


def test_comparisons_find_nothing_where_nobody_removes_anything(
    bench: Bench, redis_client: "redis.Redis", caplog: pytest.LogCaptureFixture
) -> None:
    topic = bench.produce(RECORDS)
    through = bench.run(topic)
    compared = Outcome(plan(topic), bench.deployment(poll_records=6, epoch_s=0.0, scrub_us=1))

    with caplog.at_level(logging.WARNING, "unskew.redis"):
        run(compared.plan, compared.deployment, stop=threading.Event())

    assert not caplog.messages
    assert _held(redis_client, compared) == _held(redis_client, through)
    rounds = redis_client.hgetall(f"{compared.deployment.prefix}:sent:{compared.deployment.pipeline}")
    assert len([field for field in rounds if field.endswith(b"#round")]) > 1


class _Vandal:
    """A stop flag that never stops and removes all values at some of the times when it is asked while there are any."""

    def __init__(self, client: "redis.Redis", prefix: str) -> None:
        self._client, self._prefix = client, prefix
        self.asked, self.removed = 0, 0

    def is_set(self) -> bool:
        if (self.asked < 24 or self.removed <= 20) and (
            keys := [key for key in self._client.keys(f"{self._prefix}:*@*") if b":sent" not in key]
        ):
            self.asked += 1
            if self.asked % 3 == 0:
                self.removed += self._client.delete(*keys)
        return False


def test_keys_that_somebody_removes_during_a_run_are_written_again(
    bench: Bench, redis_client: "redis.Redis", caplog: pytest.LogCaptureFixture
) -> None:
    # So many that what was removed last is missed before the end.
    topic = bench.produce(history(600, seed=11))
    through = bench.run(topic)
    lossy = Outcome(plan(topic), bench.deployment(poll_records=6, epoch_s=0.0, scrub_us=1))
    vandal = _Vandal(redis_client, lossy.deployment.prefix)

    run(lossy.plan, lossy.deployment, stop=vandal)  # type: ignore[arg-type]

    assert _held(redis_client, lossy) == _held(redis_client, through)
    assert vandal.removed > 20
    assert "Redis lacked" in caplog.text
