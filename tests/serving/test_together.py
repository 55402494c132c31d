"""Reads of the same features that coroutines ask for in one turn of their loop."""

import asyncio
import json
import time
from functools import partial

import pytest

from tests.support.plans import DAY, HOUR, MINUTE, Wanted, sliding, view
from tests.support.servers.valkey import Cluster
from tests.support.updates import closing
from unskew.features.errors import LayoutError, StoreUnavailable
from unskew.features.plan import Plan
from unskew.features.registry import describe
from unskew.serving.online import OnlineReader
from unskew.serving.together import MOST_ROWS
from unskew.sinks.redis.cluster_slots import slot_of
from unskew.sinks.redis.keyspace import clock_key, connect, registry_key, revision_key, sent_key, value_key
from unskew.sinks.redis.writer import RedisWriter

VISITS = view(
    Wanted("n_5min", "count", sliding(5 * MINUTE, MINUTE)),
    Wanted("mean_1d", "mean", sliding(DAY, HOUR), "x", default=-1.0),
    Wanted("last_page", "last", sliding(DAY, HOUR), "page", of="string"),
    name="visits",
)
CLOCK = 10 * DAY
REFERENCES = ["visits:n_5min", "visits:mean_1d", "visits:last_page"]
USERS = [f"u{number}" for number in range(60)]


def published(redis_client, *views, prefix="unskew"):
    writer = RedisWriter(redis_client, prefix, "main")
    writer.publish_registry(json.dumps(describe(Plan(streams={}, views={plan.name: plan for plan in views}))))
    return writer


def filled(redis_client, *, shards=("h0", "h1"), prefix="unskew"):
    """Write rows of all kinds: in the past, ahead of the clock, with nulls."""
    writer = published(redis_client, VISITS, prefix=prefix)
    writer.expect({VISITS.published.id: shards})
    rows = [
        {
            "key": user,
            "n_5min": n,
            "_at": CLOCK + (n % 3 - 1) * MINUTE,
            "_until": CLOCK + HOUR,
            "_empty_at": CLOCK + DAY,
        }
        | ({"mean_1d": n / 7, "last_page": f'"{n}'} if n % 4 else {})
        for n, user in enumerate(USERS)
    ]
    for number, shard in enumerate(shards):
        writer.add(
            closing(VISITS, CLOCK + number * HOUR, rows if not number else (), shard=shard, since_us=CLOCK - DAY)
        )
    writer.flush(time.time_ns() // 1000)
    return writer


def reader_of(redis_client, **options):
    return OnlineReader(redis_client, now_us=lambda: CLOCK + 2 * HOUR, **options)


def said(answer):
    return answer.to_dict(), answer.metadata["visits"].rows(), answer.compared_at["visits"].to_list()


def of_users(users):
    return [{"user": user} for user in users]


def read_together(reader, asked):
    """Return the answers to reads that begin in one turn; what one raises stands for its answer."""

    async def read():
        # The connection is made, and what the references mean is known.
        await reader.read_async(REFERENCES, of_users(USERS[:1]), with_status=True)
        reads = [reader.read_async(REFERENCES, of_users(users), with_status=True) for users in asked]
        return await asyncio.gather(*reads, return_exceptions=True)

    return asyncio.run(read())


def n_commands(client):
    return {name: said["calls"] for name, said in client.info("commandstats").items()}


def n_sent(client, read):
    """Return how many HMGET and GET a call takes."""
    before = n_commands(client)
    read()
    after = n_commands(client)
    return tuple(after[name] - before.get(name, 0) for name in ("cmdstat_hmget", "cmdstat_get"))


@pytest.mark.parametrize("max_lag_us", [None, HOUR])
def test_reads_of_one_turn_say_what_each_says_alone(redis_client, max_lag_us):
    filled(redis_client)
    reader = reader_of(redis_client, max_lag_us=max_lag_us)
    asked = [*([user] for user in USERS), USERS[:7], ["nobody"], [None], [None, "u1", "nobody"], [], USERS * 3, ["u1"]]

    answers = read_together(reader, asked)

    alone = [reader.read(REFERENCES, of_users(users), with_status=True) for users in asked]
    assert [said(answer) if users else answer.to_dict() for answer, users in zip(answers, asked, strict=True)] == [
        said(answer) if users else answer.to_dict() for answer, users in zip(alone, asked, strict=True)
    ]


def test_reads_of_one_turn_ask_for_clocks_and_the_registry_together(redis_client):
    filled(redis_client)
    reader = reader_of(redis_client)
    read_together(reader, [])
    before = n_sent(redis_client, lambda: read_together(reader, []))

    together = n_sent(redis_client, lambda: read_together(reader, [[user] for user in USERS]))

    # The first one leaves before the others have come.
    assert together == (before[0] + len(USERS) + 2 * 2, before[1] + 2)


def test_reads_of_more_rows_leave_in_parts_and_large_ones_alone(redis_client):
    filled(redis_client)
    reader = reader_of(redis_client)
    read_together(reader, [])
    before = n_sent(redis_client, lambda: read_together(reader, []))
    asked = [USERS[:10]] * 13 + [USERS[: MOST_ROWS // 2 + 1]] * 2

    n_hmget, n_get = n_sent(redis_client, lambda: read_together(reader, asked))

    n_parts = 1 + 12 // (MOST_ROWS // 10) + 2
    assert n_get - before[1] == n_parts
    assert n_hmget - before[0] == sum(map(len, asked)) + 2 * n_parts


def test_what_is_wrong_with_the_row_of_one_is_an_error_of_its_read_alone(redis_client):
    filled(redis_client)
    reader = reader_of(redis_client)
    redis_client.hset(value_key("unskew", VISITS.published.id, "u7"), "n_5min", "x")
    redis_client.delete(value_key("unskew", VISITS.published.id, "u9"))
    redis_client.rpush(value_key("unskew", VISITS.published.id, "u9"), "x")

    answers = read_together(reader, [[user] for user in USERS])

    failed = {USERS[number]: answer for number, answer in enumerate(answers) if isinstance(answer, Exception)}
    assert failed.keys() == {"u7", "u9"}
    assert all(isinstance(error, LayoutError) for error in failed.values())
    assert [answer.to_dict()["n_5min"] for answer in answers if answer not in failed.values()] == [
        [n] for n in range(len(USERS)) if n not in {7, 9}
    ]


def test_reads_of_one_turn_follow_the_registry_and_the_shards(redis_client):
    filled(redis_client)
    reader = reader_of(redis_client)
    asked = [[user] for user in USERS]
    before = [said(answer) for answer in read_together(reader, asked)]

    async def read():
        await reader.read_async(REFERENCES, of_users(USERS[:1]), with_status=True)
        published(redis_client, VISITS, view(Wanted("n", "count", sliding(DAY, HOUR)), name="others"))
        same = await asyncio.gather(*[reader.read_async(REFERENCES, of_users(u), with_status=True) for u in asked])
        filled(redis_client, shards=("h0", "h1", "h2"))
        other = await asyncio.gather(*[reader.read_async(REFERENCES, of_users(u), with_status=True) for u in asked])
        return same, other

    same, other = asyncio.run(read())

    assert [said(answer) for answer in same] == before
    assert [said(answer) for answer in other] == [
        said(reader.read(REFERENCES, of_users(users), with_status=True)) for users in asked
    ]
    assert [said(answer) for answer in other] != before


def test_a_server_that_has_gone_is_said_to_all_and_one_who_waits_no_longer_stops_nobody(redis_client):
    filled(redis_client)
    reader = reader_of(redis_client)

    async def read():
        await reader.read_async(REFERENCES, of_users(USERS[:1]))
        reads = [asyncio.ensure_future(reader.read_async(REFERENCES, of_users([user]))) for user in USERS]
        await asyncio.sleep(0)
        for one in reads[::2]:
            one.cancel()
        return await asyncio.gather(*reads, return_exceptions=True)

    found = asyncio.run(read())

    assert all(isinstance(one, asyncio.CancelledError) for one in found[::2])
    assert [answer.to_dict()["n_5min"] for answer in found[1::2]] == [[n] for n in range(1, len(USERS), 2)]
    nowhere = OnlineReader("redis://127.0.0.1:1/0", views={"visits": VISITS.published})

    async def ask():
        return await asyncio.gather(
            *[nowhere.read_async(REFERENCES, of_users([user])) for user in USERS[:20]], return_exceptions=True
        )

    assert {type(one) for one in asyncio.run(ask())} == {StoreUnavailable}


@pytest.mark.parametrize("n_turns", [0, 1])
def test_whoever_waits_reads_alone_if_the_task_that_reads_for_all_is_ended(redis_client, n_turns):
    filled(redis_client)
    reader = reader_of(redis_client)

    async def read():
        await reader.read_async(REFERENCES, of_users(USERS[:1]))
        reads = [asyncio.ensure_future(reader.read_async(REFERENCES, of_users([user]))) for user in USERS]
        known = {*reads, asyncio.current_task()}
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        (task,) = asyncio.all_tasks() - known
        for _ in range(n_turns):
            await asyncio.sleep(0)
        assert task.cancel()
        answers = await asyncio.wait_for(asyncio.gather(*reads), 10)
        assert task.cancelled()
        return answers

    assert [answer.to_dict()["n_5min"] for answer in asyncio.run(read())] == [[n] for n in range(len(USERS))]


def test_entities_of_other_servers_are_read_while_one_server_of_a_cluster_has_gone(tmp_path):
    with Cluster(tmp_path / "cluster") as cluster:
        for node in cluster.nodes:
            node.client.config_set("cluster-require-full-coverage", "no")
        gone = cluster.nodes[-1]
        words = (registry_key, revision_key, *(partial(each, pipeline="main") for each in (clock_key, sent_key)))
        prefix = next(
            name
            for name in map("p{}".format, range(1000))
            if gone not in {cluster.owner_of(slot_of(key(name))) for key in words}
        )
        with connect(cluster.url) as client:
            filled(client, prefix=prefix)
        lost = {u for u in USERS if cluster.owner_of(slot_of(value_key(prefix, VISITS.published.id, u))) is gone}
        here = [user for user in USERS if user not in lost]
        reader = reader_of(cluster.url, prefix=prefix)

        async def read(users):
            await reader.read_async(REFERENCES, of_users(here[:1]))
            reads = [reader.read_async(REFERENCES, of_users([user])) for user in users]
            return dict(zip(users, await asyncio.gather(*reads, return_exceptions=True), strict=True))

        gone.kill()
        first, second = asyncio.run(read(USERS)), asyncio.run(read(USERS))

    assert lost
    for found in (first, second):
        assert {type(found[user]) for user in lost} == {StoreUnavailable}
        assert {user: found[user].to_dict()["n_5min"] for user in here} == {user: [USERS.index(user)] for user in here}
