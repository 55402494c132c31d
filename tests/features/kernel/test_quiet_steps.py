"""Steps in which only the clock moves: what they say, and what they leave, is what any other step does."""

from dataclasses import fields

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tests.support.plans import SECOND, Wanted, calendar, closed, events, lifetime, session, sessions, sliding, view
from unskew.features.evaluate import evaluate
from unskew.features.shard_state import ShardState
from unskew.features.updates import StepRows

VIEWS = {
    "sliding": view(
        Wanted("a", "count", sliding(5 * SECOND, SECOND)), Wanted("b", "sum", sliding(20 * SECOND, SECOND), "x")
    ),
    "closed": view(Wanted("a", "count", closed(10 * SECOND)), Wanted("b", "max", closed(10 * SECOND), "x")),
    "calendar": view(Wanted("a", "count", calendar("day"))),
    "lifetime": view(Wanted("a", "last", lifetime(), "x")),
    "session": view(Wanted("a", "count", session(6 * SECOND, 2 * SECOND))),
    "texts": view(Wanted("a", "mode", sliding(5 * SECOND, SECOND), pl.col("user"), "string")),
    "sessions": sessions(6 * SECOND, 2 * SECOND, Wanted("n", "count", session(6 * SECOND, 2 * SECOND))),
}
# (clock, whether an event comes), in seconds; some clocks lie on hops, some between them, and one repeats.
STEPS = (
    (0, False), (1, True), (1, False), (1.5, False), (2, False), (2.25, False), (2.5, True), (2.5, False), (3, False),
    (6, False), (6.5, False), (7, False), (8, False), (8, False), (8.5, True), (9, False), (14, False), (30, False),
    (31, False), (86_400, False), (86_401, False), (86_402, True), (86_402, False), (86_500, False), (86_501, False),
)  # fmt: skip


@pytest.mark.parametrize("name", VIEWS)
def test_a_state_that_saw_quiet_steps_says_what_a_restored_one_says(name):
    """A restored state takes no short cut in its first step; each step begins with one of what the other has now."""
    planned = VIEWS[name]
    going_on, short = ShardState(planned, "h0"), 0
    for offset, (clock_s, comes) in enumerate(STEPS):
        clock_us = round(clock_s * SECOND)
        found = None
        if comes:
            decoded = events([(clock_us, clock_us, {"user": "a", "x": float(offset)})])
            found = evaluate(planned, decoded.with_columns(pl.lit(offset, pl.Int64).alias("_offset"))).events
        restored = ShardState.from_bytes(planned, "h0", going_on.to_bytes())
        short += going_on._is_quiet(found, clock_us)
        assert not restored._is_quiet(found, clock_us)

        said, expected = going_on.apply(found, clock_us), restored.apply(found, clock_us)

        for field in fields(said):
            one, other = getattr(said, field.name), getattr(expected, field.name)
            if isinstance(one, StepRows):
                one, other = one.frame(), other.frame()
            if isinstance(one, pl.DataFrame):
                assert_frame_equal(one, other)
            else:
                assert one == other, (clock_s, field.name)
    # Else this test would say nothing.
    assert short or name in {"session", "sessions"}
