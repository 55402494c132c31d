"""Events as arrays: a part of them is what its frame alone gives, and a state makes the same of both."""

import datetime as dt
import random
from dataclasses import replace
from decimal import Decimal

import numpy as np
import polars as pl
import pytest

from tests.support.plans import DAY, HOUR, MINUTE, SECOND, Wanted, events, lifetime, session, sessions, sliding, view
from unskew.features.evaluate import evaluate
from unskew.features.events import Events, EventWords
from unskew.features.shard_state import ShardState
from unskew.features.text_buffers import not_null

WINDOW = sliding(5 * MINUTE, MINUTE)
NULLS = {
    "all known": pl.Series([1, 2, 3, 4]),
    "numbers": pl.Series([1, None, 3, None]),
    "floats": pl.Series([None, -0.0, float("nan"), None]),
    "flags": pl.Series([True, None, False, None]),
    "texts": pl.Series(["a", None, "a text that is longer than others", ""]),
    "bytes": pl.Series([b"", None, b"ab", None]),
    "none known": pl.Series([None] * 4, dtype=pl.Int64),
    "two pieces": pl.Series([1, None]).append(pl.Series([None, 4])),
}
COLUMNS = {"b": pl.Boolean(), "at": pl.Datetime("us", "UTC"), "d": pl.Decimal(38, 2), "s": pl.String()}
OF_NUMBERS = [
    Wanted("n", "count", WINDOW),
    Wanted("sum", "sum", WINDOW, "x"),
    Wanted("seldom", "max", WINDOW, "n", "int64", filter="n > 3"),
    Wanted("mean", "mean", sliding(DAY, HOUR), "x", filter="x > 0"),
    Wanted("is_on", "last", WINDOW, "b", "bool"),
    Wanted("last_at", "max", WINDOW, "at", "timestamp"),
    Wanted("price", "max", lifetime(), "d", "decimal(38,2)"),
    Wanted("latest", "last_time", WINDOW, None, "timestamp"),
    Wanted("known", "count", WINDOW, "n", "int64"),
    Wanted("median", "quantile", WINDOW, "x", parameters={"q": 0.5, "bits": 7}),
]
OF_TEXTS = [
    Wanted("word", "last", WINDOW, "s", "string"),
    Wanted("words", "count", WINDOW, "s", "string"),
    Wanted("different", "approx_count_distinct", WINDOW, "s", "string", parameters={"bits": 10}),
    Wanted("long", "count", WINDOW, filter="s <> 'word'"),
]
PLANS = {
    "numbers": view(*OF_NUMBERS, columns=COLUMNS),
    "texts": view(*OF_TEXTS, columns=COLUMNS),
    "both": view(*OF_NUMBERS, *OF_TEXTS, columns=COLUMNS),
    "sessions": replace(
        view(Wanted("count", "count", sliding(HOUR, MINUTE))),
        sessions=sessions(MINUTE, SECOND, Wanted("spent", "sum", session(MINUTE, SECOND), "x")),
    ),
}


def evaluated(plan, draw, n):
    """Return events of few entities, of which many values are null."""
    rows = [
        (
            at * SECOND,
            (at - draw.randrange(3)) * SECOND,
            {
                "user": f"u{draw.randrange(9)}é|{'long' * draw.randrange(12)}",
                "x": draw.choice([0.1, -0.0, 1e15, 5e-324, None]),
                "n": draw.choice([0, 7, -(2**63), 2**63 - 1, 3, None]),
                "s": draw.choice(["é\n", "", "word", None]),
                "d": draw.choice([Decimal("-0.01"), Decimal("12.30"), None]),
                "b": draw.choice([True, False, None]),
                "at": draw.choice([None, dt.datetime(1, 1, 1, tzinfo=dt.UTC), dt.datetime(2026, 3, 1, tzinfo=dt.UTC)]),
            },
        )
        for at in sorted(draw.randrange(9, 5 * n) for _ in range(n))
    ]
    return evaluate(plan, events(rows, columns=COLUMNS)).events


def cuts(draw, n):
    return sorted({0, n, *(draw.randrange(n + 1) for _ in range(12))})


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_a_part_is_what_its_frame_gives(plan):
    for seed in range(10):
        draw = random.Random(seed)
        whole = evaluated(plan, draw, 60)
        ends = cuts(draw, whole.height)
        parts = Events(whole).parts(ends)
        draw.shuffle(parts)
        for each in parts:
            part, alone = each.words, EventWords.of(each.frame)

            assert part.keys.texts() == alone.keys.texts()
            for name in ("numbers", "flags"):
                found, expected = getattr(part, name), getattr(alone, name)
                assert found.keys() == expected.keys()
                assert all(np.array_equal(found[column], expected[column]) for column in found)
            assert {name: texts.texts() for name, texts in part.texts.items()} == {
                name: texts.texts() for name, texts in alone.texts.items()
            }
            # Where the part alone has no null, it need not say so.
            assert alone.known.keys() <= part.known.keys()
            for column, known in part.known.items():
                assert np.array_equal(known, alone.known.get(column, np.ones(each.height, np.bool_)))


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_steps_of_parts_are_those_of_their_frames(plan):
    n_rows = 0
    for seed in range(10):
        draw = random.Random(seed)
        whole = evaluated(plan, draw, 60)
        one, other = ShardState(plan, "p0.0"), ShardState(plan, "p0.0")
        for part in Events(whole).parts(cuts(draw, whole.height)):
            clock_us = int(part.frame["arrival"][-1])

            found = one.apply(part, clock_us)
            expected = other.apply(part.frame, clock_us)

            assert found.closed.equals(expected.closed)
            assert found.current.equals(expected.current)
            assert (found.late, found.late_histogram) == (expected.late, expected.late_histogram)
            n_rows += found.closed.height
        assert one.to_bytes() == other.to_bytes()
    assert n_rows > 100


def test_what_was_cut_divided_and_merged_is_the_same_for_whoever_asks_again():
    draw = random.Random(1)
    whole = evaluated(PLANS["numbers"], draw, 60)
    one, other = Events(whole[:30]), Events(whole[30:])
    before, after = one.cut(10)

    assert (before.frame.equals(whole[:10]), after.frame.equals(whole[10:30])) == (True, True)
    assert one.cut(10) == (before, after)
    # Whoever asks for something else gets that.
    assert one.cut(4)[1].frame.equals(whole[4:30])
    assert [part.height for part in one.by_hash(1)] == [30]
    three = one.by_hash(3)
    assert one.by_hash(3) == three
    assert sum(part.height for part in three) == 30
    assert pl.concat(part.frame for part in three).sort("offset").equals(whole[:30])
    merged = other.merged([one])
    assert merged.frame.equals(whole)
    assert other.merged([one]) is merged
    assert other.merged([before]).frame.equals(pl.concat([whole[:10], whole[30:]]))
    assert other.merged([before, after]).frame.equals(whole)
    assert other.merged([]) is other


def test_merged_events_of_one_arrival_come_in_the_order_given():
    def at(partition, *arrivals):
        rows = [(arrival * SECOND, arrival * SECOND, {"user": "u"}) for arrival in arrivals]
        return Events(evaluate(PLANS["numbers"], events(rows, partition=partition, columns=COLUMNS)).events)

    merged = at(0, 1, 3, 3, 5).merged([at(1, 3, 4), at(2, 1, 5)]).frame

    found = [(arrival // SECOND, partition) for arrival, partition in merged.select("arrival", "partition").iter_rows()]
    assert found == [(1, 0), (1, 2), (3, 0), (3, 0), (3, 1), (4, 1), (5, 0), (5, 2)]


@pytest.mark.parametrize("name", NULLS)
@pytest.mark.parametrize(("begin", "end"), [(0, 4), (1, 4), (1, 2), (3, 4), (2, 2)])
def test_nulls_are_found_in_a_part_of_a_column(name, begin, end):
    column = NULLS[name][begin:end]

    found = not_null(column.to_arrow())

    assert found.dtype == np.bool_
    assert found.tolist() == [value is not None for value in column.to_list()]


def test_what_lies_under_a_null_text_is_no_text():
    hidden = pl.when(pl.col("n") > 3).then(pl.col("s"))
    wanted = [
        Wanted("word", "last", WINDOW, hidden, "string"),
        Wanted("different", "approx_count_distinct", WINDOW, hidden, "string", parameters={"bits": 10}),
    ]
    plan = view(*wanted, columns=COLUMNS)
    rows = [(at * SECOND, at * SECOND, {"user": "u", "n": at % 7, "s": f"word {at}"}) for at in range(9)]
    whole = evaluate(plan, events(rows, columns=COLUMNS)).events
    # As Polars leaves it: the text that was not chosen is still there.
    array = whole["v0"].to_arrow()
    assert np.diff(np.frombuffer(array.buffers()[1], np.int64)).min() > 0

    words = EventWords.of(whole)

    assert words.known["v0"].tolist() == [at % 7 > 3 for at in range(9)]
    assert words.texts["v0"].texts() == [f"word {at}".encode() if at % 7 > 3 else b"" for at in range(9)]
    state = ShardState(plan, "p0.0")
    state.apply(whole, 9 * SECOND)
    assert state.n_texts == 4
