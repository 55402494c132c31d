"""What a step says of events that came too late, for the view's windows and for the sessions it is over."""

from dataclasses import replace

from tests.support.plans import SECOND, Wanted, events, session, sessions, sliding, view
from unskew.features.evaluate import evaluate
from unskew.features.plan import ViewPlan
from unskew.features.shard_state import ShardState
from unskew.features.updates import Updates


def steps(planned: ViewPlan, *rows: tuple[int, int]) -> list[Updates]:
    """One step for each (arrival, event time), in seconds, restored from bytes between them."""
    state = ShardState(planned, "h0")
    found = []
    for arrival, event_time in rows:
        decoded = events([(arrival * SECOND, event_time * SECOND, {"user": "a"})])
        found.append(state.apply(evaluate(planned, decoded).events, arrival * SECOND))
        state = ShardState.from_bytes(planned, "h0", state.to_bytes())
    return found


def test_an_event_is_late_from_the_instant_at_which_its_tile_has_left():
    """
    sliding(5 s, 1 s): of an event at 0 the tile leaves at 6; of (5 s, 5 s), at 10.
    """
    planned = view(
        Wanted("fine", "count", sliding(5 * SECOND, SECOND)), Wanted("coarse", "count", sliding(5 * SECOND, 5 * SECOND))
    )

    found = steps(planned, (5, 0), (6, 0), (7, 0), (16, 0), (17, 16))

    assert [step.late for step in found] == [(0, 0), (1, 0), (1, 0), (1, 1), (0, 0)]
    assert found[-1].late_total == (3, 1)
    assert found[-1].late_by_us == (10 * SECOND, 6 * SECOND)
    # At most 1 s, 10 s, 1 min ... after.
    assert found[-1].late_histogram == ((2, 1, 0, 0, 0, 0, 0, 0), (0, 1, 0, 0, 0, 0, 0, 0))


def test_events_too_late_for_their_session_are_counted_behind_the_views_windows():
    """The session of gap 6 s that runs at 20 takes in what is less than the gap before its first event, at 20."""
    inner = sessions(6 * SECOND, 2 * SECOND, Wanted("n", "count", session(6 * SECOND, 2 * SECOND)))
    over = view(Wanted("count", "count", sliding(60 * SECOND, SECOND)))
    planned = replace(over, sessions=inner)

    found = steps(planned, (20, 20), (21, 15), (22, 3), (23, 4))

    assert [len(step.late) for step in found] == [2] * 4
    assert [step.late[1] for step in found] == [0, 0, 1, 1]
    assert found[-1].late_total == (0, 2)
    assert found[-1].late_by_us[1] > 0
    assert sum(found[-1].late_histogram[1]) == 2


def test_late_events_that_were_replayed_are_not_of_the_step_that_follows():
    """What a changelog holds counts as before, and is not counted again."""
    planned = view(Wanted("n", "count", sliding(5 * SECOND, SECOND)))
    state = ShardState(planned, "h0")
    late = [events([(at * SECOND, event_time * SECOND, {"user": "a"})]) for at, event_time in ((6, 0), (20, 1))]

    state.replay(evaluate(planned, late[0]).events, 6 * SECOND)
    found = state.apply(evaluate(planned, late[1]).events, 20 * SECOND)

    assert found.late == (1,)
    assert found.late_total == (2,)
