"""Purging a view version that Redis does not know: an error that says what Redis holds, and nothing is written."""

import redis
from click.testing import CliRunner, Result

from tests.support.plans import DAY, HOUR, Wanted, sliding, view
from tests.support.updates import closing
from unskew.cli import main
from unskew.features.plan import Plan
from unskew.features.printing import printable_json
from unskew.features.registry import describe
from unskew.sinks.redis.writer import RedisWriter


def purge(redis_url: str, *views: str) -> Result:
    return CliRunner().invoke(main, ["purge", *views, "--redis-url", redis_url])


def test_a_version_that_was_never_seen_is_an_error_and_leaves_no_word(redis_client: redis.Redis, redis_url: str):
    plan = view(Wanted("n", "count", sliding(DAY, HOUR)), name="visits")
    writer = RedisWriter(redis_client, "unskew", "main")
    writer.publish_registry(printable_json(describe(Plan(streams={}, views={"visits": plan}))))
    writer.expect({plan.id: ["h0"]})
    writer.add(closing(plan, DAY * 17_000, [{"key": "a", "n": 1, "_at": 0, "_until": DAY * 18_000}]))
    writer.flush(0)
    before = {key: redis_client.hgetall(key) for key in redis_client.scan_iter(match="*:clock:*")}

    never = purge(redis_url, "visits@2")
    nothing = purge(redis_url, "unheard@1")
    computed = purge(redis_url, "visits@1")

    for result, said in (
        (never, "error: Redis holds nothing of visits@2 under the prefix 'unskew' and the pipeline 'main'; "),
        (nothing, "error: Redis holds nothing of unheard@1 under the prefix 'unskew' and the pipeline 'main'; "),
        (computed, "error: visits@1: a pipeline computes it; "),
    ):
        assert result.exit_code == 1
        assert said in result.output
        assert "visits@1" in result.output
    assert {key: redis_client.hgetall(key) for key in redis_client.scan_iter(match="*:clock:*")} == before


def test_a_purge_can_be_repeated(redis_client: redis.Redis, redis_url: str):
    redis_client.hset("unskew:visits@1:{a}", "n", 1)

    first, again = purge(redis_url, "visits@1"), purge(redis_url, "visits@1")

    assert (first.exit_code, first.output.splitlines()[-1]) == (0, "visits@1: 1 keys removed from Redis")
    assert (again.exit_code, again.output.splitlines()[-1]) == (0, "visits@1: 0 keys removed from Redis")
