"""The scrub mends what others removed or changed; no reader sees a value go back, and none takes a loss for nothing."""

import itertools
import logging
import random
import threading
import time
from collections import defaultdict
from dataclasses import replace

import pytest

from tests.support.flows import KEYS, NOW, STATE, VIEW, send, step, values, writing
from tests.support.plans import DAY
from tests.support.servers.valkey import Valkey
from unskew.features.time import instant_us
from unskew.serving.online import OnlineReader
from unskew.sinks.redis.keyspace import connect
from unskew.sinks.redis.scrub import FASTEST_ROWS, HURRIED_ROUND_US, SLOWEST_ROWS, Pace
from unskew.sinks.redis.writer import RedisWriter

MARKS = "unskew:sent:main"
SHARD = f"{VIEW.id}/h0"
CLOCK = 100 * DAY


def key(number):
    return f"unskew:{VIEW.id}:{{{KEYS[number]}}}"


def compare(writer, *parts, now_us=NOW, clock_us=CLOCK, n=1):
    """A round over the rows that ``parts`` are, and the step that comes next."""
    for one in parts:
        writer.compare(replace(one, scrub="part"), now_us)
    writer.compare(replace(step(clock_us, n, []), scrub="last"), now_us)
    send(writer, step(clock_us + 1, n, []))


@pytest.fixture
def one(tmp_path):
    with Valkey(tmp_path / "one") as server:
        yield server


@pytest.fixture(params=["one server", "cluster"])
def server(request, one):
    return one if request.param == "one server" else request.getfixturevalue("cluster")


DAMAGE = {
    "removed": (lambda client, name: client.delete(name), "lacking"),
    "a field removed": (lambda client, name: client.hdel(name, "n"), "differing"),
    "a field changed": (lambda client, name: client.hset(name, "n", 5), "differing"),
    "a field added": (lambda client, name: client.hset(name, "more", 5), "differing"),
    "it expires": (lambda client, name: client.pexpire(name, 10**7), "differing"),
    "another type": (lambda client, name: (client.delete(name), client.set(name, 1)), "differing"),
}


def test_rows_that_lack_or_differ_are_rewritten_named_and_counted(server, caplog):
    writer = writing(server.url)
    send(writer, step(CLOCK, 1))
    with connect(server.url) as client:
        for name in client.scan_iter(match="unskew:purchases@1:*", count=10_000):
            client.persist(name)
        before = {name: client.hgetall(key(name)) for name in range(20)}
        for number, (damage, _) in enumerate(DAMAGE.values()):
            damage(client, key(number))

        sent = writer.rows_sent
        compare(writer, step(CLOCK, 1))

        assert {name: client.hgetall(key(name)) for name in range(20)} == before
        assert [client.pttl(key(number)) for number in range(len(DAMAGE))] == [-1] * len(DAMAGE)
        found = [kind for _, kind in DAMAGE.values()]
        assert (writer.scrub.lacking, writer.scrub.differing) == (found.count("lacking"), found.count("differing"))
        assert writer.scrub.compared == len(KEYS)
        assert writer.rows_sent - sent == len(DAMAGE)
        assert f"Redis lacked 1 and held otherwise 5 of 600 values of {SHARD}, for example of the entity" in caplog.text
        # Until a whole round finds everything, an absent row may be a lost one.
        assert client.hget(MARKS, f"{SHARD}#doubted")
        assert client.hget(MARKS, f"{SHARD}#round") is None
        assert writer.is_doubted(VIEW, "h0")
        compare(writer, step(CLOCK, 1), now_us=NOW + 7)
        assert not client.hexists(MARKS, f"{SHARD}#doubted")
        assert int(client.hget(MARKS, f"{SHARD}#round")) == NOW + 7
        assert not writer.is_doubted(VIEW, "h0")
    writer.close()


def test_rows_that_redis_holds_are_not_sent_again_and_nothing_is_said(one, caplog):
    writer = writing(one.url)
    send(writer, step(CLOCK, 1), step(CLOCK, 1, KEYS[:9], gone=True))
    calls, sent = one.n_calls("hset"), writer.rows_sent
    with caplog.at_level(logging.WARNING):
        compare(writer, step(CLOCK, 1, KEYS[9:]), step(CLOCK, 1, KEYS[:9], gone=True))

    # Clock, marks and witness, and the word for the round.
    assert one.n_calls("hset") - calls <= 5
    assert writer.rows_sent == sent
    assert not caplog.messages
    writer.close()


@pytest.mark.parametrize("newer_first", [False, True])
@pytest.mark.parametrize("fails", [False, True])
def test_a_row_of_a_step_is_newer_than_one_to_compare(one, newer_first, fails):
    """Also if the batch fails, and is sent with steps that came since."""
    writer = writing(one.url)
    send(writer, step(CLOCK, 1))
    one.client.delete(*map(key, range(20)))
    steps = [step(CLOCK + 1, 2, KEYS[:10])]
    to_compare = replace(step(CLOCK, 1, KEYS[10:] if newer_first else KEYS), scrub="part")
    if newer_first:
        writer.add(steps[0])
        writer.compare(to_compare, NOW)
    else:
        writer.compare(to_compare, NOW)
        writer.add(steps[0])
    if fails:
        one.ask("ACL", "SETUSER", "default", "-hset")
        with pytest.raises(Exception, match="no permissions"):
            writer.flush(NOW)
        one.ask("ACL", "SETUSER", "default", "+hset")
        writer.add(step(CLOCK + 2, 3, KEYS[15:17]))
    send(writer, step(CLOCK + 3, 3, []))

    expected = {**dict.fromkeys(KEYS, 1), **dict.fromkeys(KEYS[:10], 2)}
    if fails:
        expected |= dict.fromkeys(KEYS[15:17], 3)
    assert values(one.url) == expected
    writer.close()


def test_a_shard_that_is_held_back_is_not_compared_and_its_round_proves_nothing(one):
    first = writing(one.url)
    send(first, step(CLOCK, 5))
    first.close()
    # The process starts again from a state that is older than what it had sent.
    writer = writing(one.url)
    send(writer, step(CLOCK - 9, 4))
    compare(writer, step(CLOCK - 9, 4), clock_us=CLOCK - 9, n=4)

    assert set(values(one.url).values()) == {5}
    assert writer.scrub.compared == 0
    assert one.client.hget(MARKS, f"{SHARD}#round") is None
    writer.close()


@pytest.mark.parametrize("n_entities", [0, 1, 150, 10_000, 3_000_000])
def test_a_round_takes_as_long_as_asked_and_a_hurried_one_a_minute(n_entities):
    for round_us, hurried, expected_us in (
        (3_600 * 10**6, False, 3_600 * 10**6),
        (3_600 * 10**6, True, HURRIED_ROUND_US),
    ):
        pace, now_us, given, began_us = Pace(round_us, 0.5), 0, 0, None
        for now_us in range(0, 3 * round_us, 1_000_000):
            if pace.is_due(now_us, n_entities, hurried=hurried):
                began_us = now_us if began_us is None else began_us
                given += SLOWEST_ROWS <= pace.n_rows(n_entities) <= FASTEST_ROWS and pace.n_rows(n_entities)
                if given >= n_entities:
                    break
        # The first part comes within half of the interval; parts come at whole seconds here.
        n_parts = -(-n_entities // pace.n_rows(n_entities))
        assert now_us <= 1.5 * expected_us + n_parts * 1_000_000


def test_parts_of_many_shards_do_not_come_together_while_entities_come():
    paces = [Pace(3_600 * 10**6, number / 100) for number in range(100)]
    parts = [0] * 60
    for second in range(3_600):
        n_entities = min(1_000, 1 + 20 * second)
        for pace in paces:
            parts[second // 60] += pace.is_due(second * 10**6, n_entities, hurried=False)

    # Five parts of each shard an hour.
    assert sum(parts) > 450
    assert max(parts) <= 15


def test_no_read_that_is_called_exact_is_wrong_but_for_keys_removed_since_the_last_comparison(one):
    """A vandal removes keys at random while values grow, rounds go on, and a reader reads all of it."""
    chosen = KEYS[:40]
    writer = writing(one.url)
    writer.expect({VIEW.id: ["h0"]})
    model = dict.fromkeys(chosen, 1)
    send(writer, step(CLOCK, 1, chosen))
    removed_at = defaultdict(list)
    reads, done = [], threading.Event()
    draw = random.Random(5)

    def vandal():
        with connect(one.url) as client:
            while not done.wait(0.002):
                name = draw.choice(chosen)
                if draw.random() < 0.6:
                    before_us = time.time_ns() // 1000
                    client.delete(f"unskew:{VIEW.id}:{{{name}}}")
                    removed_at[name].append(before_us)

    def read():
        reader = OnlineReader(one.url)
        while not done.is_set():
            answer = reader.read(["purchases:n"], [{"user": name} for name in chosen])
            after_us = time.time_ns() // 1000
            judged = answer.metadata["purchases"]
            reads.append((answer.frame["n"].to_list(), judged.rows(), answer.compared_at["purchases"], after_us))
        reader.close()

    threads = [threading.Thread(target=target) for target in (vandal, read)]
    for thread in threads:
        thread.start()
    try:
        n_rounds = 0
        for number in itertools.count(2):
            some = draw.sample(chosen, 5)
            clock_us = CLOCK + number
            model |= dict.fromkeys(some, number)
            writer.add(step(clock_us, number, some))
            for n in {model[name] for name in chosen[number % 4 :: 4]}:
                names = [name for name in chosen[number % 4 :: 4] if model[name] == n]
                writer.compare(replace(step(clock_us, n, names), scrub="part"), time.time_ns() // 1000)
            if number % 4 == 1:
                writer.compare(replace(step(clock_us, number, []), scrub="last"), time.time_ns() // 1000)
                n_rounds += 1
            writer.flush(time.time_ns() // 1000)
            if n_rounds >= 40 and len(reads) > 50 and writer.scrub.lacking > 20:
                break
    finally:
        done.set()
        for thread in threads:
            thread.join()

    seen = dict.fromkeys(chosen, 0)
    n_exact_absent = n_lost = 0
    for found, judged, compared_at, after_us in reads:
        for name, value, (_, status, provisional), compared in zip(chosen, found, judged, compared_at, strict=True):
            if status == "default":
                if not provisional:
                    n_exact_absent += 1
                    since_us = 0 if compared is None else instant_us(compared)
                    assert any(since_us <= at_us <= after_us for at_us in removed_at[name])
                n_lost += 1
                continue
            assert value >= seen[name]
            seen[name] = value
    assert n_lost > n_exact_absent
    compare(writer, *(step(2 * CLOCK, model[name], [name]) for name in chosen), clock_us=2 * CLOCK, n=number + 1)
    assert values(one.url) == model
    writer.close()


def test_two_processes_compare_their_own_shards(one):
    mine, other = writing(one.url), RedisWriter(one.url, "unskew", "main", STATE)
    other.look()
    send(mine, step(CLOCK, 1))
    send(other, step(CLOCK, 2, ["x", "y"], shard="h1"))
    one.client.delete(f"unskew:{VIEW.id}:{{x}}")
    compare(mine, step(CLOCK, 1))

    assert mine.scrub.lacking == 0
    assert one.client.hget(MARKS, f"{SHARD}#round")
    other.compare(replace(step(CLOCK, 2, ["x", "y"], shard="h1"), scrub="part"), NOW)
    send(other, step(CLOCK + 1, 2, [], shard="h1"))
    assert other.scrub.lacking == 1
    assert one.client.hget(MARKS, f"{VIEW.id}/h1#doubted")
    assert values(one.url)["x"] == 2
