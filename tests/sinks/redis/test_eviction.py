"""Servers that evict keys are refused or, if that is allowed, make every absent row provisional."""

import itertools

import pytest

from tests.support.flows import KEYS, NOW, STATE, VIEW, clock, send, step, values, writing
from tests.support.servers.valkey import Valkey
from unskew.features.errors import RequestError, StoreUnavailable
from unskew.serving.online import OnlineReader
from unskew.sinks.redis.eviction import LOOK_EVERY_US
from unskew.sinks.redis.writer import RedisWriter

ALWAYS = ["allkeys-lru", "allkeys-lfu", "allkeys-random"]
WITH_EXPIRY = ["volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl"]


@pytest.fixture
def one(tmp_path):
    with Valkey(tmp_path / "one") as server:
        yield server


def starting(url, **options):
    writer = RedisWriter(url, "unskew", "main", STATE, **options)
    writer.look()
    writer.expect({VIEW.id: ["h0"]})
    return writer


def provisional(url, name):
    reader = OnlineReader(url, views={VIEW.name: VIEW.published})
    answer = reader.read(["purchases:n"], [{"user": name}])
    reader.close()
    return answer.metadata["purchases"]["provisional"].item()


@pytest.mark.parametrize("maxmemory", [0, 10**9])
@pytest.mark.parametrize("policy", ["noeviction", *ALWAYS, *WITH_EXPIRY])
@pytest.mark.parametrize("expire_after_us", [None, 10])
def test_a_policy_that_evicts_keys_of_unskew_is_refused_at_the_start(one, policy, expire_after_us, maxmemory):
    one.client.config_set("maxmemory-policy", policy)
    one.client.config_set("maxmemory", maxmemory)

    if policy in ALWAYS or (policy in WITH_EXPIRY and expire_after_us):
        text = rf"Redis at 127.0.0.1:{one.port} has maxmemory-policy {policy}.*set noeviction.*--allow-eviction"
        with pytest.raises(RequestError, match=text):
            starting(one.url, expire_after_us=expire_after_us)
        assert not one.client.keys("*")
        starting(one.url, expire_after_us=expire_after_us, allow_eviction=True).close()
    else:
        starting(one.url, expire_after_us=expire_after_us).close()


def test_every_node_of_a_cluster_is_looked_at(cluster):
    last = cluster.masters[-1]
    last.client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(RequestError, match=f":{last.port} has maxmemory-policy allkeys-lru"):
            starting(cluster.url)
    finally:
        last.client.config_set("maxmemory-policy", "noeviction")


@pytest.mark.parametrize("seen_by", ["a new connection", "a look from time to time"])
def test_a_server_that_begins_to_evict_during_a_run_stops_the_flow_until_it_is_configured(one, seen_by):
    writer = starting(one.url)
    send(writer, step(20, 1))
    one.client.config_set("maxmemory-policy", "allkeys-lru")
    if seen_by == "a new connection":
        one.end_connections()
    later_us = NOW + LOOK_EVERY_US * (seen_by != "a new connection")

    writer.add(step(30, 2))
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="has maxmemory-policy allkeys-lru, so it may evict"):
            writer.flush(later_us)
    # Readers are warned at once, although the flow waits.
    assert provisional(one.url, "nobody")
    one.client.config_set("maxmemory-policy", "noeviction")
    writer.flush(later_us)

    assert (set(values(one.url).values()), clock(one.url)) == ({2}, 29)


@pytest.mark.parametrize("allowed", [True, False])
def test_no_absent_row_is_called_exact_while_keys_are_evicted(one, caplog, allowed):
    """Without permission, the policy is changed under the running pipeline for less time than between two looks."""
    if allowed:
        one.client.config_set("maxmemory-policy", "allkeys-random")
    writer = starting(one.url, allow_eviction=allowed)
    send(writer, step(20, 1))
    one.client.config_set("maxmemory-policy", "allkeys-random")
    one.client.config_set("maxmemory", one.client.info("memory")["used_memory"] + 100_000)
    for number in itertools.count():
        if one.client.info("stats")["evicted_keys"] > 50:
            break
        one.client.set(f"others:{number}", "x" * 10_000)
    one.client.delete(*one.client.keys("others:*"))
    if not allowed:
        one.client.config_set("maxmemory-policy", "noeviction")
    one.client.config_set("maxmemory", 0)
    send(writer, step(21, 1, []))
    writer.add(step(22, 1, []))
    writer.flush(NOW + 2 * LOOK_EVERY_US)

    absent = set(KEYS) - set(values(one.url))
    assert absent
    assert writer.evicted > 50
    assert "keys: evicted values are rewritten from the state" in caplog.text
    assert all(provisional(one.url, name) for name in [*absent][:20])
    assert writer.is_doubted(VIEW, "h0") is not allowed


def test_a_user_who_may_not_run_info_is_warned_once(one, caplog):
    one.ask("ACL", "SETUSER", "few", "on", ">word", "~*", "&*", "+@all", "-info")
    writer = writing(one.url.replace("://", "://few:word@"))
    send(writer, step(20, 1))
    writer.add(step(21, 1))
    writer.flush(NOW + LOOK_EVERY_US)

    assert [message for message in caplog.messages if "run INFO" in message] == caplog.messages
    assert len(caplog.messages) == 1
    assert clock(one.url) == 20
