"""Rows that become a frame late: the same rows as if each step's had become one at once."""

import pickle

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from tests.support.plans import SECOND, Wanted, WantedOfOthers, calendar, events, session, sessions, sliding, view
from unskew.features.evaluate import evaluate
from unskew.features.shard_state import FEW_ROWS, ShardState
from unskew.features.updates import StepRows, frames, frames_of_each

SHORT, LONG = sliding(3 * SECOND, SECOND), sliding(12 * SECOND, 2 * SECOND)
VIEWS = {
    "numbers": view(
        Wanted("a", "count", SHORT),
        Wanted("b", "mean", LONG, "x"),
        Wanted("c", "max", SHORT, "n", of="int64", filter="n > 2"),
        Wanted("d", "last", LONG, pl.col("n") > 2, of="bool"),
        derived=[WantedOfOthers("e", "a / b")],
    ),
    "two keys": view(Wanted("a", "sum", SHORT, "x"), keys={"user": "string", "n": "int64"}),
    "texts": view(Wanted("a", "mode", LONG, pl.col("user"), "string"), Wanted("b", "count", SHORT)),
    "different texts": view(
        Wanted("a", "count_distinct", SHORT, pl.col("user"), "string"), Wanted("b", "sum", LONG, "x")
    ),
    "map": view(Wanted("a", "count", SHORT, by=pl.col("user"), parameters={"keys": 4})),
    "texts among others": view(
        Wanted("a", "count", SHORT),
        Wanted("b", "last_n", LONG, pl.col("user"), "string", parameters={"n": 3}),
        Wanted("c", "last", SHORT, pl.col("user"), "string", filter="n > 2"),
        Wanted("d", "sum", SHORT, "x", by=pl.col("user"), parameters={"keys": 2}),
        Wanted("e", "max", LONG, "x"),
        Wanted("f", "first", SHORT, pl.col("user") + "é", "string"),
    ),
    "list": view(Wanted("a", "last_n", SHORT, "x", parameters={"n": 3})),
    "calendar": view(Wanted("a", "count", calendar("day"))),
    "sessions": sessions(2 * SECOND, SECOND, Wanted("n", "count", session(6 * SECOND, 2 * SECOND))),
}


def steps(planned, seed, n_steps=120):
    """Events of entities that come, leave and come again; many have the same arrival."""
    random = np.random.default_rng(seed)
    clock_us = 0
    for _ in range(n_steps):
        n_events = int(random.integers(0, 6))
        clock_us += int(random.choice([0, 1, SECOND // 2, 20 * SECOND], p=[0.2, 0.4, 0.37, 0.03]))
        arrivals = np.sort(clock_us + random.integers(0, 3, n_events)).tolist()
        clock_us = max([clock_us, *arrivals])
        rows = [
            (at, at, {"user": f"u|{random.integers(0, 9)}", "x": float(random.integers(0, 5)), "n": random.integers(5)})
            for at in arrivals
        ]
        yield (evaluate(planned, events(rows)).events if rows else None), clock_us


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("seed", range(3))
def test_rows_of_many_steps_in_one_frame_are_those_of_each_step(name, seed):
    planned = VIEWS[name]
    at_once, late = ShardState(planned, "h0"), ShardState(planned, "h0")
    expected, waiting, now, now_waiting = [], [], [], []
    for number, (found, clock_us) in enumerate(steps(planned, seed)):
        step = at_once.apply(found, clock_us)
        expected.append(step.closed)
        now.append(step.current)
        step = late.apply(found, clock_us)
        waiting.append(step.closed_rows)
        now_waiting.append(step.current_rows)
        if number % 7 == 0:
            # Some have been asked for before, and some come from another process.
            waiting[-1].frame()
        if number % 11 == 0:
            waiting[-1] = pickle.loads(pickle.dumps(waiting[-1]))

    assert [rows.height for rows in waiting] == [frame.height for frame in expected]
    assert [rows.first for rows in waiting if rows.height] == [
        frame.item(0, "seq") for frame in expected if frame.height
    ]
    assert sum(rows.height for rows in waiting) > 20 or name == "calendar"
    assert_frame_equal(pl.concat(frames(waiting)), pl.concat(expected))
    assert_frame_equal(pl.concat(frames(now_waiting)), pl.concat(now))


@pytest.mark.parametrize("name", VIEWS)
def test_rows_of_many_shards_that_become_frames_together_are_those_of_each_shard(name):
    planned = VIEWS[name]
    shards = []
    for seed in range(5):
        state = ShardState(planned, f"h{seed}")
        waiting = [state.apply(found, clock_us).closed_rows for found, clock_us in steps(planned, 7 * seed, 40)]
        shards.append([rows for rows in waiting if rows.height])
    # One has nothing, one a frame among words, and one a frame alone.
    shards[1] = []
    if shards[2]:
        shards[2][0].frame()
    shards[4] = shards[4][:1]
    for rows in shards[4]:
        rows.frame()

    together = frames_of_each(shards)

    assert [sum(frame.height for frame in made) for made in together] == [
        sum(rows.height for rows in steps) for steps in shards
    ]
    for steps_of, made in zip(shards, together, strict=True):
        if steps_of:
            assert_frame_equal(pl.concat(made), pl.concat(frames(steps_of)))


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("seed", range(3))
def test_rows_of_steps_that_are_copied_together_are_those_of_each_step(name, seed):
    planned = VIEWS[name]
    state = ShardState(planned, "h0")
    waiting = [state.apply(found, clock_us).closed_rows for found, clock_us in steps(planned, seed)]
    waiting = [rows for rows in waiting if rows.words is not None]
    make, words = waiting[0].words
    growing, n_rows = words.growing(), waiting[0].height
    first = waiting[0].first
    for number, rows in enumerate(waiting[1:]):
        if number % 9 == 0:
            # To look at them takes nothing away.
            assert len(growing.whole().instants) == n_rows
        growing.add(rows.words[1])
        n_rows += rows.height

    whole = StepRows.of(growing.whole(), n_rows, make, first)
    assert_frame_equal(whole.frame(), pl.concat(frames(waiting)))


def test_many_rows_of_one_step_are_a_frame_at_once_and_few_are_not():
    planned = VIEWS["numbers"]
    state = ShardState(planned, "h0")
    rows = [(1, 1, {"user": f"u{number}", "x": 1.0, "n": 1}) for number in range(FEW_ROWS)]

    assert state.apply(evaluate(planned, events(rows)).events, 2).closed_rows.words is None
    few = state.apply(
        evaluate(planned, events(rows[:1])).events.with_columns(pl.lit(3).alias("arrival")), 4
    ).closed_rows
    assert few.words is not None
    assert (few.height, few.first) == (1, FEW_ROWS)
    assert few.frame().height == 1
