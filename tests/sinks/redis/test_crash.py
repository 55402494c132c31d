"""After a crash no value goes back; and a server that lost its data is noticed and filled again."""

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
import redis

from tests.support.plans import DAY, Wanted, sliding, view
from tests.support.updates import updates
from unskew.features.errors import LayoutError, StoreUnavailable
from unskew.features.updates import NothingToCome, Updates
from unskew.sinks.redis.writer import RedisWriter

VIEW = view(Wanted("n", "count", sliding(30 * DAY, DAY)), name="purchases")
NOW = 10**16
STATE = "one-history"


def step(clock_us: int, applied: int, **counts: int) -> Updates:
    rows = [{"key": key, "n": n, "_at": clock_us} for key, n in counts.items()]
    return replace(updates(VIEW, clock_us, rows), applied=applied)


def part(clock_us: int, *, last: bool = False, **counts: int) -> Updates:
    return replace(step(clock_us, 9, **counts), refill="last" if last else "part")


def writing(client, state: str = STATE) -> RedisWriter:
    """A writer of a process that has just started."""
    writer = RedisWriter(client, "unskew", "main", state)
    writer.look()
    writer.expect({VIEW.id: ["h0"]})
    return writer


def send(writer: RedisWriter, *steps: Updates) -> None:
    for taken in steps:
        writer.add(taken)
    writer.flush(NOW)


def values(client) -> dict[str, int]:
    names = [name.decode() for name in client.keys("unskew:purchases@1:*")]
    return {name.partition("{")[2][:-1]: int(client.hget(name, "n")) for name in names}


def clock(client) -> int | None:
    text = client.hget("unskew:clock:main", f"{VIEW.id}/h0")
    return None if text is None else int(text)


def test_after_a_crash_updates_wait_until_the_shard_is_where_it_was_and_the_last_per_key_are_sent(redis_client):
    send(writing(redis_client), step(10, 1, a=1), step(20, 2, a=2, b=1), step(30, 4, a=4))
    restarted = writing(redis_client)

    seen = []
    for again in (step(10, 1, a=1), step(20, 2, a=2, b=1), step(25, 3, a=3)):
        send(restarted, again)
        seen.append((values(redis_client), clock(redis_client)))
    n_held = restarted.n_held
    send(restarted, step(30, 4, a=4))

    assert seen == [({"a": 4, "b": 1}, 29)] * 3
    assert n_held >= 2
    assert restarted.n_held == 0
    assert (values(redis_client), clock(redis_client)) == ({"a": 4, "b": 1}, 29)
    send(restarted, step(31, 5, c=1))
    assert values(redis_client) == {"a": 4, "b": 1, "c": 1}


def test_at_one_and_the_same_clock_the_number_of_events_decides(redis_client):
    send(writing(redis_client), step(10, 5, a=5))
    restarted = writing(redis_client)

    send(restarted, step(10, 3, a=3))
    assert values(redis_client) == {"a": 5}
    send(restarted, step(10, 6, a=6))

    assert values(redis_client) == {"a": 6}


def test_what_was_held_and_not_touched_again_is_sent_with_the_step_that_arrives(redis_client):
    first = writing(redis_client)
    send(first, step(40, 9))
    redis_client.delete("unskew:purchases@1:{a}")
    restarted = writing(redis_client)

    send(restarted, step(20, 5, a=5, b=1), step(30, 7, a=7))
    assert values(redis_client) == {}
    send(restarted, step(41, 9))

    assert values(redis_client) == {"a": 7, "b": 1}


def test_the_mark_is_there_before_the_values_and_of_a_send_that_breaks_off(redis_client, monkeypatch):
    writer = writing(redis_client)
    send(writer, step(10, 1, a=1))
    writer.add(step(20, 2, a=2))
    monkeypatch.setattr(
        "unskew.sinks.redis.writer.RedisWriter._send_clocks", lambda *_: (_ for _ in ()).throw(OSError("cable pulled"))
    )
    with pytest.raises(StoreUnavailable, match="cable pulled"):
        writer.flush(NOW)
    monkeypatch.undo()
    restarted = writing(redis_client)

    send(restarted, step(15, 1, a=1))

    assert values(redis_client) == {"a": 2}
    assert clock(redis_client) == 9


def test_marks_of_another_history_hold_nothing_back(redis_client):
    send(writing(redis_client), step(50, 5, a=5))

    send(writing(redis_client, "begun-anew"), step(10, 1, a=1))

    assert values(redis_client) == {"a": 1}


def test_a_server_is_behind_where_it_lacks_a_clock_or_has_an_older_one(redis_client):
    send(writing(redis_client), step(50, 5, a=5))

    restarted = writing(redis_client)

    assert not restarted.is_behind(VIEW, "h0", 50)
    assert not restarted.is_behind(VIEW, "h0", 40)
    assert restarted.is_behind(VIEW, "h0", 51)
    assert restarted.is_behind(VIEW, "h1", 1)


def test_until_all_values_are_back_the_clock_is_not(redis_client, caplog):
    writer = writing(redis_client)
    with caplog.at_level(logging.WARNING):
        send(writer, part(50, a=5))
        assert clock(redis_client) is None
        send(writer, step(60, 6, b=1), part(60, c=3))
        assert clock(redis_client) is None
        send(writer, part(60, last=True))

    assert clock(redis_client) == 59
    assert values(redis_client) == {"a": 5, "b": 1, "c": 3}
    assert [record.message for record in caplog.records] == [
        "Redis is empty or behind the state: rewriting all current values",
        "Redis: 2 values rewritten from the state",
    ]


def test_a_server_that_comes_back_empty_is_noticed_and_gets_no_clock_before_its_values(redis_client):
    writer = writing(redis_client)
    writer.publish_registry('{"views": {}}')
    writer.add(NothingToCome(VIEW, "h1"))
    send(writer, step(10, 1, a=1))
    assert writer.lost == 0
    redis_client.flushdb()
    redis_client.client_kill_filter(_type="normal", skipme=False)

    send(writer, step(20, 2, b=1))

    assert writer.lost == 1
    assert clock(redis_client) is None
    assert redis_client.hget("unskew:clock:main", f"{VIEW.id}/h1") == b"ended"
    assert redis_client.hget("unskew:clock:main", f"{VIEW.id}#shards") == b"h0"
    assert redis_client.exists("unskew:registry")
    send(writer, part(20, a=1, b=1), part(20, last=True))
    assert (values(redis_client), clock(redis_client)) == ({"a": 1, "b": 1}, 19)


def test_a_connection_that_broke_is_no_loss(redis_client):
    writer = writing(redis_client)
    send(writer, step(10, 1, a=1))
    redis_client.client_kill_filter(_type="normal", skipme=False)

    send(writer, step(20, 3, b=2))

    assert writer.lost == 0
    assert values(redis_client) == {"a": 1, "b": 2}


def test_an_empty_server_gets_nothing_older_than_what_readers_had_seen(redis_client):
    """The mark is lost with the values: the shard itself says how far it had come."""
    restarted = writing(redis_client)
    seen = []
    for again in (step(10, 1, a=1), step(20, 2, a=2, b=1)):
        send(restarted, replace(again, behind=True))
        seen.append((values(redis_client), clock(redis_client)))

    assert seen == [({}, None), ({}, None)]
    send(restarted, step(30, 4, a=4))
    assert (values(redis_client), clock(redis_client)) == ({"a": 4, "b": 1}, 29)


def test_a_process_that_stood_still_and_was_replaced_sends_nothing_more(redis_url, redis_client):
    taken_over = []

    def still_ours() -> None:
        if taken_over:
            raise LayoutError("the lease of this process was taken over")

    def process(check: Callable[[], None] = lambda: None) -> RedisWriter:
        writer = RedisWriter(redis_url, "unskew", "main", STATE, still_ours=check)
        writer.look()
        writer.expect({VIEW.id: ["h0"]})
        return writer

    frozen = process(still_ours)
    send(frozen, step(10, 1, a=1))
    # It stands still just before it sends: its lease was looked at, its connection is open.
    nodes = frozen._nodes[1]

    def wake_up() -> None:
        with nodes.open():
            taken_over.append(True)
            send(process(), step(20, 2, a=2))
            nodes.send_rows(frozen._encoders[VIEW.id], step(11, 1, a=1).current_rows, NOW)
            nodes.finish()

    with pytest.raises(redis.ConnectionError):
        wake_up()
    frozen.add(step(12, 1, a=1))
    with pytest.raises(LayoutError, match="taken over"):
        frozen.flush(NOW)
    assert (values(redis_client), clock(redis_client)) == ({"a": 2}, 19)


def test_only_the_process_in_whose_place_one_starts_is_cut_off(redis_url):
    def process(number: int, n_processes: int) -> RedisWriter:
        writer = RedisWriter(redis_url, "unskew", "main", STATE, process=number, n_processes=n_processes)
        writer.look()
        send(writer, step(10, 1, a=1))
        return writer

    one, other = process(0, 2), process(1, 2)
    kept = other._sockets[""]
    process(0, 2)
    send(other, step(11, 1, a=1))
    assert other._sockets[""] is kept
    # A deployment of one process takes the places of all.
    process(0, 1)
    send(other, step(12, 1, a=1))
    assert other._sockets[""] is not kept
    one.close()


def test_a_user_who_may_not_cut_connections_is_served_and_warned(redis_url, redis_client, caplog):
    redis_client.execute_command("ACL", "SETUSER", "plain", "on", "nopass", "~*", "+@all", "-client")
    try:
        with caplog.at_level(logging.WARNING, "unskew"):
            writer = writing(redis_url.replace("://", "://plain:any@"))
            send(writer, step(10, 1, a=1))
    finally:
        redis_client.execute_command("ACL", "DELUSER", "plain")

    assert values(redis_client) == {"a": 1}
    assert [message for message in caplog.messages if "CLIENT SETNAME, LIST and KILL" in message] == [
        caplog.messages[0]
    ]
