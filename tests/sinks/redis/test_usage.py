"""Counts of reads of services, in a real server."""

import datetime as dt

import pytest
import redis

from tests.support.servers.valkey import Valkey, wait_until
from unskew.sinks.redis import usage
from unskew.sinks.redis.usage import KEPT_DAYS, Usage, reads

TODAY = dt.date(2026, 3, 1)


def test_reads_are_added_to_their_day_and_days_that_are_long_past_are_removed(redis_url, redis_client) -> None:
    oldest, older = TODAY - dt.timedelta(days=KEPT_DAYS), TODAY - dt.timedelta(days=KEPT_DAYS + 1)
    redis_client.hset("shop:usage:checkout", mapping={older.isoformat(): 5, oldest.isoformat(): 7})

    for _ in range(2):
        with Usage(redis_url, "shop", lambda: TODAY) as counted:
            for service in ("checkout", "checkout", "ranking"):
                counted.count(service)

    assert redis_client.hgetall("shop:usage:checkout") == {b"2026-03-01": b"4", oldest.isoformat().encode(): b"7"}
    assert reads(redis_client, "shop", ["checkout", "ranking", "other"], TODAY) == {
        "checkout": 4, "ranking": 2, "other": 0
    }  # fmt: skip
    assert reads(redis_client, "shop", ["checkout"], oldest) == {"checkout": 11}

    # Written by somebody else.
    redis_client.hset("shop:usage:checkout", mapping={"2026-03-02": "many", "note": "7 reads"})
    assert reads(redis_client, "shop", ["checkout"], TODAY) == {"checkout": 4}


def test_counts_wait_while_the_server_is_away(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "_EVERY_S", 0.05)
    with Valkey(tmp_path) as server:
        with Usage(server.url, "shop", lambda: TODAY) as counted:
            server.kill()
            counted.count("checkout")
            wait_until(lambda: counted._fails, "a count was tried")
            server.start()
        with redis.Redis.from_url(server.url) as client:
            assert reads(client, "shop", ["checkout"], TODAY) == {"checkout": 1}


def test_a_server_that_refuses_counts_is_reported_once_until_it_takes_them(redis_url, redis_client, caplog) -> None:
    redis_client.execute_command("ACL", "SETUSER", "reader", "on", ">secret", "~*", "+@read", "+@connection")
    try:
        with Usage(redis_url.replace("//", "//reader:secret@"), "shop", lambda: TODAY) as counted:
            for _ in range(3):
                counted.count("checkout")
                counted._add()
            assert not redis_client.exists("shop:usage:checkout")
            redis_client.execute_command("ACL", "SETUSER", "reader", "+@write")
    finally:
        redis_client.execute_command("ACL", "DELUSER", "reader")

    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "reads of services are not counted while this lasts"
    ]
    assert reads(redis_client, "shop", ["checkout"], TODAY) == {"checkout": 3}
