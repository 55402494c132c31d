"""A shard that repeats steps sends nothing before it reaches its former place, and then the last row of each key."""

from dataclasses import replace

from tests.support.flows import VIEW, step
from unskew.features.updates import Updates
from unskew.sinks.redis.held import ROWS_BEFORE_CONFLATING, Held
from unskew.sinks.redis.words import Place

H0, H1 = f"{VIEW.id}/h0", f"{VIEW.id}/h1"


def kept(held: Held, *steps: Updates) -> list[bool]:
    return [held.keeps(f"{VIEW.id}/{one.shard}", one) for one in steps]


def test_a_shard_waits_until_clock_and_events_are_those_of_its_mark_and_never_again():
    held = Held()
    held.until({H0: Place(20, 4)})

    assert kept(held, step(10, 9), step(20, 3), step(20, 4), step(15, 1)) == [True, True, False, False]


def test_a_shard_without_a_mark_does_not_wait():
    held = Held()
    held.until({H0: Place(20, 4)})

    assert kept(held, step(10, 1, shard="h1")) == [False]
    assert held.release(H1) is None


def test_a_shard_that_is_behind_waits_without_a_mark():
    held = Held()

    assert kept(held, replace(step(10, 1), behind=True), step(11, 1)) == [True, False]


def test_what_was_kept_is_handed_over_once_and_of_that_shard_alone():
    held = Held()
    held.until({H0: Place(20, 4), H1: Place(20, 4)})
    kept(held, step(10, 1, ["a", "b"]), step(11, 2, ["a"]), step(10, 1, ["c"], shard="h1"))
    assert held.n_rows == 4

    batch = held.release(H0)

    assert batch is not None
    assert (batch.n_rows, set(batch.clocks), batch.places) == (3, {H0}, {H0: (11, 2)})
    assert held.n_rows == 1
    assert held.release(H0) is None


def test_what_waits_long_takes_the_room_of_its_distinct_keys():
    held = Held()
    held.until({H0: Place(10_000, 1)})
    for clock in range(100):
        kept(held, step(clock, 1, [f"k{number}" for number in range(300)]))
        assert held.n_rows <= ROWS_BEFORE_CONFLATING + 3 * 300

    batch = held.release(H0)

    assert batch is not None
    batch.conflate()
    [rows] = [step.frame() for step in batch.rows[VIEW.id]]
    assert rows["_at"].to_list() == [99] * 300
