"""The writer behind sentinels: it follows the master wherever it goes, without being started again."""

import time

import pytest
from redis.sentinel import MasterNotFoundError

from tests.support.flows import KEYS, NOW, clock, part, send, step, values, writing
from tests.support.servers.valkey import WITHIN_S, Sentinel, Valkey, quiet_port, replica_of, wait_until
from unskew.features.errors import StoreUnavailable
from unskew.sinks.redis.keyspace import connect

ALL = dict.fromkeys(KEYS, 2)


def found(read, url):
    """Return what a new reader finds; a sentinel short of processor time may hold a running master to be down."""
    deadline_s = time.monotonic() + WITHIN_S
    while True:
        try:
            return read(url)
        except MasterNotFoundError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)


def test_a_master_that_dies_is_followed_by_its_replica_and_what_it_alone_had_is_written_again(tmp_path):
    with (
        Valkey(tmp_path / "master") as master,
        replica_of(master, tmp_path / "replica") as replica,
        Sentinel(tmp_path / "sentinel", master) as sentinel,
    ):
        wait_until(lambda: len(sentinel.ask("SENTINEL REPLICAS", "mymaster")) == 1, "the sentinel knows the replica")
        writer = writing(sentinel.url)
        send(writer, step(20, 1))
        assert master.client.wait(1, 5000) == 1
        with replica.paused():
            # It is acknowledged, and nobody else will ever know of it.
            master.ask("CLIENT", "KILL", "TYPE", "replica")
            send(writer, step(30, 2))
            master.kill()

        writer.add(step(40, 2, KEYS[:1]))
        wait_until(lambda: writer.flush(NOW) is None, "the replica takes over")

        assert sentinel.master_port() == replica.port
        assert writer.lost == 1
        assert set(found(values, sentinel.url).values()) == {1, 2}
        send(writer, part(40, 2), part(40, 2, [], last=True))
        assert (found(values, sentinel.url), found(clock, sentinel.url)) == (ALL, 39)
        assert (values(replica.url), clock(replica.url)) == (ALL, 39)
        writer.close()


def test_a_master_that_was_demoted_under_an_open_connection_is_left_for_the_new_one(tmp_path):
    with (
        Valkey(tmp_path / "old") as old,
        Valkey(tmp_path / "new") as new,
        Sentinel(tmp_path / "sentinel", old) as sentinel,
    ):
        writer = writing(sentinel.url)
        send(writer, step(20, 1))
        sentinel.ask("SENTINEL", "REMOVE", "mymaster")
        old.client.replicaof("127.0.0.1", quiet_port())
        sentinel.ask("SENTINEL", "MONITOR", "mymaster", "127.0.0.1", new.port, 1)

        writer.add(step(30, 2, KEYS[:1]))
        with pytest.raises(StoreUnavailable, match="READONLY"):
            writer.flush(NOW)
        writer.flush(NOW)

        assert (values(new.url), clock(new.url), writer.lost) == ({KEYS[0]: 2}, None, 1)
        send(writer, part(30, 2), part(30, 2, [], last=True))
        assert (values(new.url), clock(new.url)) == (ALL, 29)
        writer.close()


def test_sentinels_may_ask_for_credentials_of_their_own_and_some_may_be_away(tmp_path):
    master = Valkey(tmp_path / "master", {"requirepass": "s3cret-of-server"})
    master.client = master.client_as("s3cret-of-server")
    lines = ["requirepass s3cret-of-sentinel", "sentinel auth-pass mymaster s3cret-of-server"]
    with master, Sentinel(tmp_path / "sentinel", master, lines=lines) as sentinel:
        master.ask("ACL", "SETUSER", "app", "on", ">s3cret-of-app", "~*", "&*", "+@all")
        hosts = f"127.0.0.1:{quiet_port()},127.0.0.1:{sentinel.port}"
        url = f"redis+sentinel://app:s3cret-of-app@{hosts}/mymaster/3?sentinel_password=s3cret-of-sentinel"
        writer = writing(url)
        send(writer, step(20, 2))
        assert values(url) == ALL
        master.client.select(3)
        assert master.client.info("keyspace")["db3"]["keys"] > len(ALL)
        writer.close()

        refused = {
            "invalid username-password pair or user is disabled": url.replace("of-sentinel", "of-nobody"),
            "Authentication required": url.partition("?")[0],
            "does not know 'other'": url.replace("mymaster", "other"),
            r"user 'app'": url.replace("of-app", "of-nobody"),
        }
        for text, wrong in refused.items():
            with pytest.raises(StoreUnavailable, match=text) as caught:
                writing(wrong)
            assert "s3cret" not in str(caught.value)
        master.client.close()


def test_where_no_sentinel_answers_each_is_named_with_its_reason():
    ports = quiet_port(), quiet_port()
    url = f"redis+sentinel://:s3cret@127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}/mymaster"

    with pytest.raises(StoreUnavailable) as caught:
        writing(url)

    for port in ports:
        assert f"127.0.0.1:{port}: Error 111" in str(caught.value)
    assert "s3cret" not in str(caught.value) + repr(connect(url)) + repr(connect(url).connection_pool)
