"""How a pipeline stands, as Redis alone says it."""

import json

import pytest

from tests.support.plans import DAY, HOUR, MINUTE, Wanted, sliding, view
from tests.support.updates import closing, ledger_after
from unskew.features.errors import LayoutError, RequestError, StoreUnavailable
from unskew.features.ledger import LateEvents
from unskew.features.plan import Plan
from unskew.features.registry import describe
from unskew.features.updates import NothingToCome
from unskew.serving.live import read_live
from unskew.sinks.redis.writer import RedisWriter

VISITS = view(
    Wanted("n", "count", sliding(5 * MINUTE, MINUTE)), Wanted("today", "count", sliding(DAY, HOUR)), name="visits"
)
STAYS = view(Wanted("nights", "sum", sliding(DAY, HOUR), "n", of="int64"), name="stays")
CLOCK = 10 * DAY


@pytest.fixture
def writer(redis_client):
    writer = RedisWriter(redis_client, "unskew", "main")
    plan = Plan(streams={}, views={one.name: one for one in (VISITS, STAYS)})
    writer.publish_registry(json.dumps(describe(plan)))
    writer.expect({VISITS.id: ["h0", "h1"]})
    return writer


def read(redis_client):
    return {one.view.name: one for one in read_live(redis_client, "unskew", "main", now_us=lambda: CLOCK + HOUR)}


def test_a_view_is_as_far_as_its_slowest_shard_and_counts_since_its_latest(writer, redis_client):
    writer.add(closing(VISITS, CLOCK, since_us=7))
    writer.add(closing(VISITS, CLOCK - 5, since_us=9, shard="h1"))
    writer.flush(0)

    found = read(redis_client)

    assert set(found) == {"visits"}  # no pipeline has said anything of the other
    visits = found["visits"]
    assert (visits.clock_us, visits.lag_us, visits.since_us) == (CLOCK - 5, HOUR + 5, 9)
    assert (visits.shards, visits.waiting, visits.ended) == (("h0", "h1"), (), ())


def test_late_events_and_repeats_of_all_shards_add_up(writer, redis_client):
    writer.add(ledger_after(closing(VISITS, CLOCK), [0, 2], [], worst_us=MINUTE, duplicates=3))
    writer.add(ledger_after(closing(VISITS, CLOCK, shard="h1"), [2], [7], worst_us=2 * DAY, duplicates=1))
    writer.flush(0)

    ledger = read(redis_client)["visits"].ledger

    assert ledger.duplicates == 4
    assert ledger.windows == (
        LateEvents(events=3, worst_us=2 * DAY, histogram=(1, 0, 2, 0, 0, 0, 0, 0)),
        LateEvents(events=1, worst_us=2 * DAY, histogram=(0, 0, 0, 0, 0, 0, 0, 1)),
    )


def test_while_a_shard_has_no_clock_the_view_has_none_and_one_that_ended_without_holds_nothing_back(
    writer, redis_client
):
    writer.add(closing(VISITS, CLOCK))
    writer.flush(0)
    waiting = read(redis_client)["visits"]
    writer.add(NothingToCome(VISITS, "h1"))
    writer.flush(0)
    ended = read(redis_client)["visits"]

    assert (waiting.clock_us, waiting.lag_us, waiting.waiting) == (None, None, ("h1",))
    assert (ended.clock_us, ended.waiting, ended.ended) == (CLOCK, (), ("h1",))


@pytest.mark.usefixtures("writer")
def test_a_pipeline_that_never_ran_is_a_request_error(redis_client):
    with pytest.raises(RequestError, match="no clock of pipeline 'nightly' under the prefix 'unskew'"):
        read_live(redis_client, "unskew", "nightly")
    with pytest.raises(RequestError, match="under the prefix 'shop'"):
        read_live(redis_client, "shop", "main")


def test_a_server_that_is_not_there_is_said_to_be():
    with pytest.raises(StoreUnavailable):
        read_live("redis://127.0.0.1:1/0", "unskew", "main")


def test_a_ledger_that_unskew_did_not_write_is_a_layout_error(writer, redis_client):
    writer.add(closing(VISITS, CLOCK))
    writer.flush(0)
    redis_client.hset("unskew:late:main", "visits@1/h0", "?")

    with pytest.raises(LayoutError, match="ledger of late events"):
        read(redis_client)


@pytest.mark.parametrize(("key", "field"), [
    ("unskew:clock:main", "visits@1/h0"), ("unskew:clock:main", "visits@1/h1#since"), ("unskew:late:main", "visits@1/h1"),
])  # fmt: skip
def test_a_damaged_word_is_named_with_its_key_and_field(writer, redis_client, key, field):
    writer.add(closing(VISITS, CLOCK))
    writer.flush(0)
    redis_client.hset(key, field, "soon")

    with pytest.raises(LayoutError, match=f"{field!r} of {key!r}"):
        read(redis_client)
