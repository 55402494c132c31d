"""A source whose process died before anything was durable places every record as it had placed it."""

import pytest

from tests.pipelines.state.test_journal import journal
from tests.support.sources import NOON, SECOND, Present, arrivals_of, n_records, never, polls
from unskew.features.errors import LayoutError
from unskew.pipelines.state.journal import Placed, place_of


@pytest.fixture
def life(read, tmp_path):
    """A life of the process: a source with the journal that all lives share; the one before has been killed."""

    def begin(topic, states=None, **options):
        source = read(
            topic,
            states,
            **{"idle": "wall", "settle_us": SECOND, "mark_s": 0.0, "journal": journal(tmp_path), **options},
        )
        source.journal = source.options.journal
        return source

    return begin


def at_clock(us):
    return lambda items: items and items[-1].clock_us == us


def shown(source, items):
    """Items that the router has let go on: what decided them is durable."""
    for item in items:
        source.journal.ensure(item.ticket)
    return items


def test_a_bumped_record_arrives_where_it_arrived(topic, life):
    stream = topic()
    stream.put(0, 1_000)
    first = life(stream, present_us=Present(NOON + 10 * SECOND))
    items = shown(first, polls(first, at_clock(NOON + 9 * SECOND)))
    stream.put(0, 8_000, 9_500)
    items += shown(first, polls(first, n_records(2)))

    again = life(stream, present_us=Present(NOON + 60 * SECOND))
    replayed = polls(again, n_records(3))

    assert arrivals_of(items) == [(0, SECOND), (1, 9 * SECOND), (2, 9_500_000)]
    assert arrivals_of(replayed) == arrivals_of(items)
    assert [item.replaying for item in replayed] == [True] * (len(replayed) - 1) + [False]


def test_a_new_record_arrives_not_before_a_mark_that_was_announced(topic, life):
    stream = topic()
    first = life(stream, present_us=Present(NOON + 10 * SECOND))
    shown(first, polls(first, at_clock(NOON + 9 * SECOND)))

    # No life in between announces anything: there is always a record.
    stream.put(0, 2_000)
    again = life(stream, present_us=Present(NOON + 5 * SECOND))
    assert arrivals_of(polls(again, n_records(1))) == [(0, 9 * SECOND)]


def test_the_first_clock_is_the_same_in_every_life(topic, life):
    stream = topic()
    present = Present(NOON + 10 * SECOND)
    first = life(stream, present_us=present)
    shown(first, polls(first, at_clock(NOON + 9 * SECOND)))
    present.us += 5 * SECOND
    shown(first, polls(first, at_clock(NOON + 14 * SECOND)))
    stream.put(0, 20_000)
    shown(first, polls(first, n_records(1)))

    again = life(stream, present_us=Present(NOON + 40 * SECOND))
    items = polls(again, n_records(1))

    assert [item.clock_us for item in items] == [NOON + 9 * SECOND, NOON + 14 * SECOND, NOON + 20 * SECOND]


def test_a_clock_that_was_saved_before_an_item_carried_it_is_the_first_that_is_given(topic, life):
    stream = topic()
    present = Present(NOON + 10 * SECOND)
    first = life(stream, present_us=present)
    part = first.parts[0]
    while not part._unsaid:
        assert [item.clock_us for item in part.next_batch()] in ([], [None])
    saved = {0: part.snapshot()}
    shown(first, polls(first, at_clock(NOON + 9 * SECOND)))
    present.us += 5 * SECOND
    shown(first, polls(first, at_clock(NOON + 14 * SECOND)))

    again = life(stream, saved, present_us=Present(NOON + 40 * SECOND))
    items = polls(again, at_clock(NOON + 39 * SECOND))

    assert [item.clock_us for item in items] == [NOON + 9 * SECOND, NOON + 14 * SECOND, NOON + 39 * SECOND]
    # No shard has seen the clock, so none has missed anything before it.
    assert not any(item.resumed for item in items)
    saved = {0: again.parts[0].snapshot()}
    assert life(stream, saved).parts[0].next_batch()[0].resumed


def test_the_first_mark_is_given_before_the_records_that_follow_it(topic, life):
    stream = topic()
    first = life(stream, present_us=Present(NOON + 10 * SECOND))
    part = first.parts[0]
    while not part._unsaid:
        part.next_batch()
    stream.put(0, 9_000)
    while not part.has_records:
        # A reader that had nothing more is asked again in the next round.
        first.options.turns._begin_round()
        part._reader.pump()
    items = shown(first, polls(first, n_records(1)))

    again = life(stream, present_us=Present(NOON + 40 * SECOND))

    assert [(item.clock_us, len(item.offsets)) for item in items] == [(NOON + 9 * SECOND, 0), (NOON + 9 * SECOND, 1)]
    replayed = [(item.clock_us, len(item.offsets)) for item in polls(again, n_records(1))]
    assert replayed == [(NOON + 9 * SECOND, 0), (NOON + 9 * SECOND, 1)]


def test_a_record_refused_as_of_the_future_stays_refused_and_its_neighbours_keep_their_arrivals(topic, life):
    stream = topic()
    stream.put(0, 1_000, 30_000, 2_000)
    first = life(stream, present_us=Present(NOON + 4 * SECOND))
    items = shown(first, polls(first, n_records(2)))
    assert [bad.offset for item in items for bad in item.rejected] == [1]

    again = life(stream, present_us=Present(NOON + 60 * SECOND))
    replayed = polls(again, n_records(2))

    assert arrivals_of(replayed) == arrivals_of(items)
    refused = [(bad.offset, bad.reason) for item in replayed for bad in item.rejected]
    assert refused == [(1, "record timestamp 2017-01-01T12:00:30Z is past the present")]
    # What comes anew is judged by the present of now.
    stream.put(0, 58_000)
    assert arrivals_of(polls(again, n_records(1)))[0][1] >= 58 * SECOND


def test_a_record_that_was_taken_is_taken_though_the_clock_of_the_host_went_back(topic, life):
    stream = topic()
    stream.put(0, 1_000, 30_000)
    first = life(stream, present_us=Present(NOON + 60 * SECOND))
    items = shown(first, polls(first, n_records(2)))

    again = life(stream, present_us=Present(NOON + 2 * SECOND))

    assert arrivals_of(polls(again, n_records(2))) == arrivals_of(items)


def test_a_start_at_the_latest_that_left_nothing_durable_begins_where_it_began(topic, life):
    stream = topic()
    stream.put(0, 1, 2, 3)
    first = life(stream, start="latest", idle="none")
    stream.put(0, 4_000)
    assert arrivals_of(shown(first, polls(first, n_records(1)))) == [(3, 4 * SECOND)]
    stream.put(0, 5_000)

    again = life(stream, start="latest", idle="none")

    assert arrivals_of(polls(again, n_records(2))) == [(3, 4 * SECOND), (4, 5 * SECOND)]


def test_killed_while_it_goes_again_it_goes_again_once_more(topic, life):
    stream = topic()
    present = Present(NOON)
    first = life(stream, present_us=present)
    items = []
    for number in range(10):
        present.us = NOON + (2 * number + 5) * SECOND
        items += shown(first, polls(first, at_clock(present.us - SECOND)))
        stream.put(0, 1_000 * number, 1_000 * number + 1)
        items += shown(first, polls(first, n_records(2)))

    saved = None
    for n in (3, 9, 14):
        again = life(stream, saved, present_us=Present(NOON + 3_000 * SECOND))
        polls(again, n_records(n - (saved[0]["offset"] if saved else 0)))
        saved = {0: again.parts[0].snapshot()}
        again.parts[0].snapshot()
        assert again.parts[0]._script is not None
    last = life(stream, saved, present_us=Present(NOON + 3_000 * SECOND))
    rest = polls(last, n_records(20 - saved[0]["offset"]))

    assert arrivals_of(rest) == [one for one in arrivals_of(items) if one[0] >= saved[0]["offset"]]


def test_a_partition_that_had_left_the_minimum_goes_on_after_what_the_others_had_reached(topic, life):
    stream = topic(2)
    stream.put(0, 1_000)
    stream.put(1, 2_000, 90_000)
    first = life(stream, idle="none", ends="now")
    shown(first, polls(first, never))
    stream.put(0, 3_000)

    again = life(stream, idle="none", ends="now")
    items = polls(again, never)

    assert arrivals_of(items, 0) == [(0, SECOND), (1, 90 * SECOND + 1)]
    assert arrivals_of(items, 1) == [(0, 2 * SECOND), (1, 90 * SECOND)]


@pytest.mark.parametrize("moment", ["built", "saved", "joined"])
def test_a_partition_that_was_added_joins_after_what_the_others_had_reached_in_every_life(
    topic, life, tmp_path, moment
):
    stream = topic(3)
    stream.put(2, 1_500, 9_000)
    before = journal(tmp_path)
    for partition, clock_us in enumerate((NOON + 2 * SECOND, NOON + 5 * SECOND)):
        place = place_of(stream.name, f"{stream.name}/{partition}")
        before.ensure(before.note(Placed(place, 0, 0, clock_us, n_partitions=2)))

    first = life(stream, idle="none", ends="now")
    first.journal.ensure(first.journal.noted)
    saved = {number: part.snapshot() for number, part in first.parts.items()} if moment == "saved" else {}
    if moment == "joined":
        shown(first, polls(first, lambda items: any(item.partition == 2 and item.clock_us for item in items)))
    again = life(stream, saved, idle="none", ends="now")

    assert arrivals_of(polls(again, never), 2) == [(0, 5 * SECOND + 1), (1, 9 * SECOND)]


def test_a_partition_that_stops_before_it_has_rejoined_is_still_one_that_had_ended(topic, life):
    stream = topic(2)
    stream.put(0, 1_000)
    stream.put(1, 90_000)
    first = life(stream, idle="none", ends="now")
    shown(first, polls(first, never))
    stream.put(0, 3_000)
    saved = {number: part.snapshot() for number, part in first.parts.items()}

    # Its first item repeats the saved clock, and then it is stopped.
    second = life(stream, saved, idle="none")
    second.parts[0].next_batch()
    saved = {number: part.snapshot() for number, part in second.parts.items()}
    third = life(stream, saved, idle="none")

    assert arrivals_of(polls(third, n_records(1)), 0) == [(1, 90 * SECOND + 1)]


def test_an_end_before_what_was_shown_takes_nothing_back(topic, life):
    stream = topic()
    stream.put(0, 1_000, 2_000, 3_000)
    first = life(stream, idle="none", ends="now")
    shown(first, polls(first, never))

    again = life(stream, idle="none", ends={stream.name: {0: 1}})

    assert len(arrivals_of(polls(again, never))) == 3


def test_a_topic_that_lacks_records_that_were_shown_is_refused(topic, life, tmp_path):
    stream = topic()
    stream.put(0, 1_000)
    noted = journal(tmp_path)
    noted.ensure(noted.note(Placed(place_of(stream.name, f"{stream.name}/0"), 0, 2, NOON)))

    with pytest.raises(LayoutError, match="saved position 2 is past the topic's end 1"):
        life(stream, idle="none")


def test_a_partition_keeps_the_schema_id_with_which_it_began_through_kills_and_restarts(topic, life, tmp_path):
    stream = topic()
    stream.put(0, 1_000, value=b"no frame")
    stream.put(0, 2_000, value=b"\0\0\0\0\x07first")
    first = life(stream, idle="none")
    items = shown(first, polls(first, n_records(2)))
    assert [item.schema_id for item in items if len(item.offsets)][-1] == 7
    saved = {0: first.parts[0].snapshot()}
    stream.put(0, 3_000, value=b"\0\0\0\0\x08second")

    for states in (None, saved):
        again = life(stream, states, idle="none")
        items = polls(again, n_records(1 if states else 3))
        assert {item.schema_id for item in items if len(item.offsets)} == {7}
        if states is None:
            # What the earlier run has read is marked as such, up to its last record.
            assert [int(offset) for item in items if item.decided for offset in item.offsets] == [0, 1]
    # Every process of a deployment finds it, also one that does not read the partition.
    assert journal(tmp_path).schema_ids(stream.name) == {place_of(stream.name, f"{stream.name}/0"): 7}
