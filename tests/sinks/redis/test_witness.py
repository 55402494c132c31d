"""Values that any server acknowledged and then lost are noticed and written again; until then no clock covers them."""

import pytest

from tests.support.flows import KEYS, NOW, VIEW, clock, part, send, step, values, writing
from tests.support.servers.valkey import Cluster, Valkey, wait_until
from unskew.features.errors import StoreUnavailable
from unskew.features.updates import NothingToCome
from unskew.sinks.redis.cluster_slots import slot_of
from unskew.sinks.redis.keyspace import clock_key, connect, sent_key
from unskew.sinks.redis.refill import HEAR_EVERY_US

ALL = dict.fromkeys(KEYS, 2)
OF_CLOCK = slot_of(clock_key("unskew", "main"))


@pytest.fixture
def one(tmp_path):
    with Valkey(tmp_path / "one") as server:
        yield server


def test_a_server_that_lost_the_last_write_alone_is_noticed_though_its_clock_is_right(one):
    """Two steps at one clock: the events of an instant that came in two polls."""
    writer = writing(one.url)
    send(writer, step(20, 1))
    kept = {name: one.client.dump(name) for name in one.client.keys("*")}
    send(writer, step(20, 2))
    for name in one.client.keys("*"):
        one.client.delete(name)
    for name, content in kept.items():
        one.client.restore(name, 0, content)
    one.end_connections()

    send(writer, step(30, 3, ["other"]))

    assert writer.lost == 1
    assert clock(one.url) is None
    send(writer, part(30, 2), part(30, 2, [], last=True))
    assert (values(one.url), clock(one.url)) == ({**ALL, "other": 3}, 29)


def test_of_what_was_lost_nothing_is_forgotten_where_the_remedy_breaks_off(one):
    writer = writing(one.url)
    writer.add(NothingToCome(VIEW, "h1"))
    send(writer, step(20, 1))
    one.client.flushall()
    one.ask("ACL", "SETUSER", "default", "-set")
    one.end_connections()

    writer.add(step(30, 2))
    for _ in range(2):
        with pytest.raises(
            StoreUnavailable, match=r"no permissions to run the 'set' command .allow the command to this user"
        ):
            writer.flush(NOW)
    one.ask("ACL", "SETUSER", "default", "+set")
    writer.flush(NOW)

    assert writer.lost == 1
    assert clock(one.url) is None
    assert one.client.hget("unskew:clock:main", f"{VIEW.id}/h1") == b"ended"
    assert one.client.exists("unskew:registry")


def test_what_one_process_lost_the_others_write_again_until_all_is_there(one):
    with connect(one.url) as client:
        mine, others = writing(client), writing(one.url)
        send(mine, step(20, 2))
        send(others, step(20, 2, ["other"], shard="h1"))
        for name in one.client.keys("unskew:sent:main:*"):
            one.client.hdel(name, f"{VIEW.id}/h0")
        client.connection_pool.disconnect()

        send(mine, step(21, 2, KEYS[:1]))
        assert (mine.lost, others.lost) == (1, 0)
        others.add(step(22, 2, [], shard="h1"))
        others.flush(NOW + HEAR_EVERY_US)

        assert others.lost == 1
        assert (clock(one.url), clock(one.url, "h1")) == (None, 19)
        send(mine, part(21, 2))
        assert one.client.hget(sent_key("unskew", "main"), "#loss") is not None
        send(mine, part(21, 2, [], last=True))
        assert one.client.hget(sent_key("unskew", "main"), "#loss") is None
        send(others, part(22, 2, ["other"], last=True, shard="h1"))
        assert (clock(one.url), clock(one.url, "h1")) == (20, 21)
        others.add(step(23, 2, [], shard="h1"))
        others.flush(NOW + 2 * HEAR_EVERY_US)
        assert others.lost == 1


def test_a_new_process_notices_what_a_node_lost_while_none_ran(cluster):
    send(writing(cluster.url), step(50, 2))
    assert not writing(cluster.url).is_behind(VIEW, "h0", 50)
    assert not writing(cluster.url).is_behind(VIEW, "h0", 40)
    assert writing(cluster.url).is_behind(VIEW, "h0", 51)

    _another(cluster).ask("FLUSHALL")

    assert writing(cluster.url).is_behind(VIEW, "h0", 50)


def test_a_node_that_lost_its_values_is_noticed_and_no_clock_elsewhere_vouches_for_them(cluster):
    writer = writing(cluster.url)
    send(writer, step(20, 2))
    emptied = _another(cluster)
    emptied.ask("FLUSHALL")
    emptied.end_connections()
    assert clock(cluster.url) == 19

    send(writer, step(30, 3, KEYS[:1]))

    assert writer.lost == 1
    assert clock(cluster.url) is None
    send(writer, part(30, 2, KEYS[1:300]))
    assert clock(cluster.url) is None
    send(writer, part(30, 2, KEYS[300:]), part(30, 2, [], last=True))
    assert (values(cluster.url), clock(cluster.url)) == ({**ALL, KEYS[0]: 3}, 29)


def test_a_replica_that_takes_over_in_step_has_lost_nothing(cluster):
    writer = writing(cluster.url)
    master = _another(cluster)
    replica = cluster.add_replica(master)
    send(writer, step(20, 1))

    _take_over(replica, master)
    send(writer, step(30, 2))

    assert (values(cluster.url), clock(cluster.url), writer.lost) == (ALL, 29, 0)
    _take_over(master, replica)
    cluster.spares.add(replica)


def test_a_node_that_takes_over_while_values_are_sent_is_looked_at_before_any_clock_is_told(cluster):
    """The connection to the old master stays open: only its answers say that it is one no more."""
    writer = writing(cluster.url)
    master = _another(cluster)
    replica = cluster.add_replica(master)
    send(writer, step(20, 2))
    _take_over(replica, master)
    replica.ask("FLUSHALL")

    send(writer, step(30, 3))

    assert writer.lost == 1
    assert clock(cluster.url) is None
    send(writer, part(30, 2), part(30, 2, [], last=True))
    assert (values(cluster.url), clock(cluster.url)) == (ALL, 29)
    _take_over(master, replica)
    cluster.spares.add(replica)


def test_a_replica_that_takes_over_without_the_last_writes_is_noticed(cluster):
    writer = writing(cluster.url)
    master = _another(cluster)
    name, replica = cluster.id_of(master), cluster.add_replica(master)
    send(writer, step(20, 1))
    with replica.paused():
        master.ask("CLIENT", "KILL", "TYPE", "replica")
        send(writer, step(30, 2))
        master.kill()
    writer.add(step(40, 2, KEYS[:1]))
    with pytest.raises(StoreUnavailable, match=r"refused|closed|CLUSTERDOWN|cluster is down"):
        writer.flush(NOW)
    wait_until(lambda: replica.client.role()[0] == b"master", "the replica takes over")
    cluster.forget(master, name)

    wait_until(lambda: writer.flush(NOW) is None, "the cluster works again")

    assert writer.lost == 1
    assert clock(cluster.url) is None
    assert set(values(cluster.url).values()) == {1, 2}
    send(writer, part(40, 2), part(40, 2, [], last=True))
    assert (values(cluster.url), clock(cluster.url)) == (ALL, 39)


def _another(cluster: Cluster) -> Valkey:
    """A node that has values, and not the clocks."""
    of_clock = cluster.owner_of(OF_CLOCK)
    return next(node for node in cluster.masters if node is not of_clock)


def _take_over(replica: Valkey, master: Valkey) -> None:
    replica.ask("CLUSTER", "FAILOVER")
    wait_until(lambda: replica.client.role()[0] == b"master", "the replica takes over")
    wait_until(lambda: master.client.info("replication").get("master_link_status") == "up", "the master follows it")
