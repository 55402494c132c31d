"""The writer on a cluster: each row goes to the node with its slot, clocks come after all rows, and slots may move."""

import json
import threading
from collections.abc import Iterator
from contextlib import closing as closing_

import pytest

from tests.support.flows import KEYS, NOW, VIEW, clock, send, step, values, writing
from tests.support.plans import republished
from tests.support.servers.valkey import Cluster, Valkey, wait_until
from tests.support.updates import closing, ledger_after
from unskew.features.plan import Plan
from unskew.features.registry import describe, parse
from unskew.serving.online import OnlineReader
from unskew.sinks.redis.cluster_slots import slot_of
from unskew.sinks.redis.keyspace import clock_key, connect, ledger_key, registry_key, revision_key, sent_key
from unskew.sinks.redis.writer import RedisWriter


@pytest.fixture
def writer(cluster: Cluster) -> Iterator[RedisWriter]:
    made = writing(cluster.url)
    yield made
    made.close()


def everything(*servers: Valkey) -> dict[object, object]:
    """All keys on all servers, but what says which server it is of."""
    found: dict[object, object] = {}
    for server in servers:
        names = [name for name in server.client.keys("unskew:*") if not name.startswith(b"unskew:sent:main:")]
        assert not found.keys() & set(names), "stands on two servers"
        commands = server.client.pipeline(transaction=False)
        for name in names:
            (commands.get if name.startswith(b"unskew:registry") else commands.hgetall)(name)
        found |= dict(zip(names, commands.execute(), strict=True))
    # Each publication makes its own.
    found["has a revision"] = found.pop(revision_key("unskew").encode(), None) is not None
    return found


def slot(key: str) -> int:
    return slot_of(f"unskew:purchases@1:{{{key}}}")


def test_a_cluster_holds_what_one_server_would_hold_each_key_where_its_slot_is(cluster, tmp_path):
    steps = [
        step(10, 1),
        step(20, 2, KEYS[:400]),
        step(30, 3, KEYS[300:500], gone=True),
        ledger_after(closing(VIEW, 40, shard="h1"), [0, 3], [], worst_us=5, duplicates=1),
    ]
    with Valkey(tmp_path / "one") as one:
        for url in (one.url, cluster.url):
            writer = writing(url)
            for taken in steps:
                send(writer, taken)
            writer.close()

        assert everything(*cluster.nodes) == everything(one)
    assert len(values(cluster.url)) == len(KEYS) - 200
    assert all(node.client.dbsize() > 100 for node in cluster.masters)


def test_no_clock_is_told_while_one_node_has_not_acknowledged_its_values(cluster, writer):
    of_clock = cluster.owner_of(slot_of(clock_key("unskew", "main")))
    slow = next(
        node
        for node in cluster.masters
        if node not in {of_clock, cluster.owner_of(slot_of(sent_key("unskew", "main")))}
    )
    others = [node for node in cluster.masters if node is not slow]
    send(writer, step(10, 1))
    writer.add(step(20, 2))

    with slow.paused():
        flush = threading.Thread(target=writer.flush, args=(NOW,))
        flush.start()
        wait_until(lambda: all(_n_of(node) == {2} for node in others), "the other nodes have their values")
        # Long enough for the clock to have been told, had it not waited.
        flush.join(0.2)
        assert flush.is_alive()
        assert of_clock.client.hget("unskew:clock:main", f"{VIEW.id}/h0") == b"9"
    flush.join()

    assert clock(cluster.url) == 19
    assert set(values(cluster.url).values()) == {2}


def _n_of(node: Valkey) -> set[int]:
    commands = node.client.pipeline(transaction=False)
    for name in node.client.scan_iter(match="unskew:purchases@1:*", count=10_000):
        commands.hget(name, "n")
    return set(map(int, commands.execute()))


def test_no_value_is_sent_before_its_mark_is_acknowledged(cluster, writer):
    of_mark = cluster.owner_of(slot_of(sent_key("unskew", "main")))
    others = [node for node in cluster.masters if node is not of_mark]
    send(writer, step(10, 1))
    before = sum(node.n_calls("hset") for node in others)
    writer.add(step(20, 2))

    with of_mark.paused():
        flush = threading.Thread(target=writer.flush, args=(NOW,))
        flush.start()
        # Long enough for all values to have been sent, had they not waited.
        flush.join(0.3)
        assert flush.is_alive()
        assert sum(node.n_calls("hset") for node in others) == before
    flush.join()

    assert set(values(cluster.url).values()) == {2}


def test_rows_of_a_slot_that_has_moved_go_to_its_new_owner(cluster, writer):
    send(writer, step(10, 1))
    moving = sorted({slot(key) for key in KEYS[:4]})
    homes = [cluster.owner_of(one) for one in moving]
    for one, home in zip(moving, homes, strict=True):
        cluster.move(one, next(node for node in cluster.masters if node is not home))

    send(writer, step(20, 2))
    seen = (values(cluster.url), clock(cluster.url), writer.lost)
    for one, home in zip(moving, homes, strict=True):
        cluster.move(one, home)
    send(writer, step(30, 3))

    assert seen == (dict.fromkeys(KEYS, 2), 19, 0)
    assert (values(cluster.url), clock(cluster.url), writer.lost) == (dict.fromkeys(KEYS, 3), 29, 0)
    assert len(everything(*cluster.nodes)) == len(KEYS) + 5  # clocks, marks, ledgers, the registry and its revision


def test_rows_of_a_slot_on_its_way_go_to_whichever_node_has_the_key(cluster, writer):
    one = slot("a")
    keys = ["a", *(key for key in (f"k{number}" for number in range(200_000)) if slot(key) == one)]
    old, fresh, gone = keys[:6], keys[6:9], keys[2:4]
    assert len(fresh) == 3
    send(writer, step(10, 1, [*KEYS, *old]))
    source = cluster.owner_of(one)
    source.client.pexpire(f"unskew:purchases@1:{{{old[-1]}}}", 9_999_999)
    target = next(node for node in cluster.masters if node is not source)

    cluster.begin_move(one, source, target)
    moved = {name.decode().partition("{")[2][:-1] for name in cluster.move_keys(one, source, target, 3)}
    assert len(moved) == 3
    send(writer, step(20, 2, [*KEYS, *old, *fresh]))
    send(writer, step(30, 3, gone, gone=True), step(30, 4, KEYS))
    there = {name.decode().partition("{")[2][:-1] for name in target.ask("CLUSTER", "GETKEYSINSLOT", one, 99)}
    assert there >= set(fresh) | (moved - set(gone))
    cluster.move_keys(one, source, target)
    cluster.end_move(one, target)

    expected = {**dict.fromkeys(KEYS, 4), **{key: 2 for key in [*old, *fresh] if key not in gone}}
    assert values(cluster.url) == expected
    assert [target.client.pttl(f"unskew:purchases@1:{{{key}}}") for key in (fresh[0], old[-1])] == [-1, -1]
    assert (clock(cluster.url), writer.lost) == (29, 0)
    cluster.move(one, source)


def test_clocks_marks_ledgers_and_registry_may_be_on_their_way_to_a_node_that_has_no_slot_yet(cluster, writer):
    send(writer, step(10, 1), ledger_after(closing(VIEW, 10, shard="h1"), [0], [], worst_us=5))
    names = [name("unskew", "main") for name in (clock_key, sent_key, ledger_key)]
    names += [registry_key("unskew"), revision_key("unskew")]
    slots = [slot_of(name) for name in names]
    homes = [cluster.owner_of(one) for one in slots]
    node = cluster.add()
    for one, home in zip(slots, homes, strict=True):
        cluster.begin_move(one, home, node)
        assert cluster.move_keys(one, home, node)

    try:
        send(writer, step(20, 2), ledger_after(closing(VIEW, 20, shard="h1"), [0, 3], [], worst_us=5))
        writer.expect({VIEW.id: ["h0", "h1"]})
        found = (clock(cluster.url), clock(cluster.url, "h1"), set(values(cluster.url).values()))
        with closing_(OnlineReader(cluster.url)) as reader:
            assert reader.read(["purchases:n"], [{"user": "u-0"}]).to_dict() == {"user": ["u-0"], "n": [2]}
        for one in slots:
            cluster.end_move(one, node)
        writer.publish_registry(
            json.dumps(describe(Plan(streams={}, views={"other": republished(VIEW, name="other")})))
        )
        send(writer, step(30, 3))
        with connect(cluster.url) as client:
            assert set(parse(client.get(registry_key("unskew"))).views) == {VIEW.name, "other"}
            assert b'"events":2' in client.hget(ledger_key("unskew", "main"), f"{VIEW.id}/h1").replace(b" ", b"")
        assert found == (19, 20, {2})
        assert (clock(cluster.url), writer.lost) == (29, 0)
    finally:
        for one, home in zip(slots, homes, strict=True):
            cluster.move(one, home)
        cluster.spares.add(node)
