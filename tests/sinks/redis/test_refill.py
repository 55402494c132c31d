"""Lost values are requested until all have come again; other writers learn of losses through Redis."""

import logging

import pytest

from tests.support.flows import KEYS, VIEW, part
from unskew.sinks.redis.batch import Batch
from unskew.sinks.redis.refill import HEAR_EVERY_US, Refill
from unskew.sinks.redis.words import read_loss

KEY = "unskew:sent:main"
H0, H1 = f"{VIEW.id}/h0", f"{VIEW.id}/h1"


@pytest.fixture
def refill():
    return Refill(KEY)


def refilled(*shards: str) -> Batch:
    return Batch(refilled=set(shards))


def test_a_shard_is_incomplete_from_its_first_part_until_its_last_is_acknowledged(refill, redis_client):
    assert refill.incomplete(Batch()) == set()
    refill.note(H0, part(9, 1))
    assert refill.incomplete(Batch()) == {H0}
    refill.note(H0, part(9, 1, [], last=True))

    # The batch that brings the last values may tell the clock; before it is acknowledged no other may.
    assert refill.incomplete(refilled(H0)) == set()
    assert refill.incomplete(Batch()) == {H0}
    refill.acknowledged(redis_client, refilled(H0))
    assert refill.incomplete(Batch()) == set()


def test_after_a_loss_every_shard_is_incomplete_also_one_that_was_just_complete(refill, redis_client):
    batch = refilled(H0)

    refill.lose(redis_client, {H0}, {H0, H1}, batch)

    assert refill.lost == 1
    assert refill.incomplete(batch) == {H0, H1}
    assert read_loss(redis_client, KEY)


def test_a_loss_is_named_until_what_was_sent_before_it_has_come_again(refill, redis_client):
    refill.lose(redis_client, {H0}, {H0, H1}, Batch())

    refill.acknowledged(redis_client, refilled(H1))
    assert read_loss(redis_client, KEY)
    refill.acknowledged(redis_client, refilled(H0))

    assert not read_loss(redis_client, KEY)


def test_another_writer_hears_of_a_loss_once_and_asks_once_a_second(refill, redis_client):
    other = Refill(KEY)
    other.hear(redis_client, {H1}, Batch(), 0)
    refill.lose(redis_client, {H0}, {H0}, Batch())

    heard = []
    for now_us in (HEAR_EVERY_US - 1, HEAR_EVERY_US, 2 * HEAR_EVERY_US):
        other.hear(redis_client, {H1}, Batch(), now_us)
        heard.append(other.lost)

    assert heard == [0, 1, 1]
    assert other.incomplete(Batch()) == {H1}
    # The one that noticed takes its own word for no other loss.
    refill.hear(redis_client, {H0}, Batch(), 0)
    assert refill.lost == 1


def test_one_that_only_heard_of_a_loss_does_not_say_that_it_is_made_good(refill, redis_client):
    other = Refill(KEY)
    refill.lose(redis_client, {H0}, {H0}, Batch())
    other.hear(redis_client, {H1}, Batch(), 0)

    other.acknowledged(redis_client, refilled(H1))

    assert read_loss(redis_client, KEY)


def test_a_later_loss_is_not_withdrawn_with_an_earlier_one(refill, redis_client):
    other = Refill(KEY)
    refill.lose(redis_client, {H0}, {H0}, Batch())
    other.lose(redis_client, {H1}, {H1}, Batch())

    refill.acknowledged(redis_client, refilled(H0))

    assert read_loss(redis_client, KEY)


def test_what_is_rewritten_is_logged_once_for_all_shards(refill, caplog):
    with caplog.at_level(logging.WARNING, "unskew.redis"):
        refill.note(H0, part(9, 1))
        refill.note(H1, part(9, 1, KEYS[:10], shard="h1"))
        refill.note(H0, part(9, 1, KEYS[:1], last=True))
        assert len(caplog.messages) == 1
        refill.note(H1, part(9, 1, [], last=True, shard="h1"))

    assert caplog.messages == [
        "Redis is empty or behind the state: rewriting all current values",
        f"Redis: {len(KEYS) + 11} values rewritten from the state",
    ]


def test_views_that_are_new_in_redis_are_named_beside_what_it_lost(refill, redis_client, caplog):
    with caplog.at_level(logging.WARNING, "unskew.redis"):
        refill.note(H0, part(9, 1), is_new=True)
        refill.note(H1, part(9, 1, shard="h1"), is_new=True)
        refill.note("other/h0", part(9, 1, last=True))
        refill.acknowledged(redis_client, refilled(H0, H1, "other/h0"))
        refill.lose(redis_client, set(), {H0}, Batch())
        refill.note(H0, part(9, 1), is_new=True)

    assert caplog.messages == [
        f"{VIEW.id} is new in Redis: writing all of its current values",
        "Redis is empty or behind the state: rewriting all current values",
    ]
