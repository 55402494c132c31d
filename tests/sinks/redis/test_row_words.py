"""Current rows that no frame was made of: what is sent of them is what is sent of their frame."""

import datetime as dt
import random
from decimal import Decimal

import polars as pl
import pytest

from tests.support.plans import DAY, HOUR, MINUTE, SECOND, Wanted, WantedOfOthers, events, lifetime, sliding, view
from unskew.features.evaluate import evaluate
from unskew.features.shard_state import ShardState
from unskew.features.updates import StepRows
from unskew.sinks.redis.batch import Batch
from unskew.sinks.redis.resp import RowEncoder
from unskew.sinks.redis.writer import RedisWriter

WINDOW = sliding(5 * MINUTE, MINUTE)
COLUMNS = {
    "b": pl.Boolean(),
    "at": pl.Datetime("us", "UTC"),
    "d": pl.Decimal(38, 2),
    "units": pl.Decimal(38, 0),
    "small": pl.Decimal(38, 18),
    "s": pl.String(),
}
PLAIN = {
    "of all kinds": [
        Wanted("n", "count", WINDOW),
        Wanted("sum", "sum", WINDOW, "x"),
        Wanted("last_n", "last", WINDOW, "n", "int64"),
        Wanted("seldom", "max", WINDOW, "n", "int64", filter="n > 3"),
        Wanted("mean", "mean", sliding(DAY, HOUR), "x", filter="n > 3"),
        Wanted("is_on", "last", WINDOW, "b", "bool"),
        Wanted("last_at", "max", WINDOW, "at", "timestamp"),
        Wanted("wide", "std", lifetime(), "x", parameters={"ddof": 1}),
    ],
    "without floats": [Wanted("was_on", "first", WINDOW, "b", "bool"), Wanted("n", "count", WINDOW)],
    "of decimals": [
        Wanted("price", "max", WINDOW, "d", "decimal(38,2)"),
        Wanted("spend", "sum", lifetime(), "d", "decimal(38,2)", filter="n > 3"),
        Wanted("units", "last", WINDOW, "units", "decimal(38,0)"),
        Wanted("small", "min", WINDOW, "small", "decimal(38,18)"),
        Wanted("x", "last", WINDOW, "x"),
    ],
    "of texts alone": [
        Wanted("word", "last", WINDOW, "s", "string"),
        Wanted("seldom", "first", sliding(DAY, HOUR), "s", "string", filter="n > 3"),
    ],
    "of texts among others": [
        Wanted("word", "last", WINDOW, "s", "string"),
        Wanted("mean", "mean", WINDOW, "x"),
        Wanted("n", "count", WINDOW),
        Wanted("seldom", "first", WINDOW, "s", "string", filter="n > 3"),
        Wanted("most", "mode", lifetime(), "s", "string"),
        Wanted("is_on", "last", WINDOW, "b", "bool"),
    ],
    "of floats alone": [Wanted("mean", "mean", WINDOW, "x"), Wanted("sum", "sum", lifetime(), "x", filter="n > 3")],
    "of maps": [
        Wanted("words", "count", WINDOW, by=pl.col("s"), parameters={"keys": 2}),
        Wanted("seldom", "sum", lifetime(), "x", by=pl.col("s"), filter="n > 3", parameters={"keys": 5}),
        Wanted("spend", "sum", WINDOW, "d", "decimal(38,2)", by=pl.col("s"), parameters={"keys": 2}),
        Wanted("numbers", "sum", WINDOW, pl.col("n") % 1000, "int64", by=pl.col("s"), parameters={"keys": 5}),
    ],
    "of lists": [
        Wanted("numbers", "last_n", WINDOW, "n", "int64", parameters={"n": 3}),
        Wanted("floats", "first_n", WINDOW, "x", parameters={"n": 4}),
        Wanted("flags", "last_n", WINDOW, "b", "bool", parameters={"n": 2}),
        Wanted("instants", "last_n", WINDOW, "at", "timestamp", parameters={"n": 3}),
        Wanted("prices", "last_n", WINDOW, "d", "decimal(38,2)", parameters={"n": 3}),
        Wanted("units", "first_n", WINDOW, "units", "decimal(38,0)", filter="n > 3", parameters={"n": 2}),
        Wanted("small", "last_n", WINDOW, "small", "decimal(38,18)", parameters={"n": 2}),
        Wanted("words", "last_n", WINDOW, "s", "string", parameters={"n": 3}),
    ],
    "of everything": [
        Wanted("n", "count", WINDOW),
        Wanted("top", "top_k", WINDOW, "s", "string", parameters={"n": 2}),
        Wanted("word", "last", WINDOW, "s", "string"),
        Wanted("lasts", "last_n", WINDOW, "x", parameters={"n": 3}),
        Wanted("mean", "mean", WINDOW, "x"),
        Wanted("means", "mean", WINDOW, "x", by=pl.col("s"), parameters={"keys": 2}),
        Wanted("histogram", "histogram", WINDOW, "x", parameters={"edges": (0.0, 1.0)}),
        Wanted("price", "max", WINDOW, "d", "decimal(38,2)"),
    ],
}
SHARE = (WantedOfOthers("share", "1 / (events - 1)"), WantedOfOthers("twice", "events * 2", "int64"))
DERIVED = {
    "of all kinds": (
        WantedOfOthers("share", "last_n / n"),
        WantedOfOthers("is_more", "last_n > n", "bool"),
        WantedOfOthers("next", "n + 1", "int64"),
        WantedOfOthers("negative", "-0.0 * wide"),
        WantedOfOthers("later", "last_at", "timestamp"),
    ),
    "of texts among others": (
        WantedOfOthers("length", "length(word)"),
        WantedOfOthers("is_web", "seldom = 'word'", "bool"),
    ),
    "of everything": (WantedOfOthers("length", "length(word) + n", "int64"), WantedOfOthers("half", "mean / 2")),
}
TEXTS = ["é\n", "", "word", '"quoted\\', "".join(map(chr, range(33))), "\x7f\u2028😀/", None]
FLOATS = [0.1, -0.0, 1e300, 5e-324, 1 / 3, 123456789.123, -2.0, None]
INTEGERS = [0, 7, -(2**63), 2**63 - 1, 3, None]
# The largest decimals are of 2**63 - 1 units of their last digit.
DECIMALS = ["-0.01", "12.30", "0.00", "-7.00", "92233720368547758.07", "-92233720368547758.07", None]
UNITS = ["0", "-5", "10", "9223372036854775807", "-9223372036854775807", None]
SMALL = ["0.000000000000000001", "-0.100000000000000000", "9.223372036854775807", "-9.223372036854775807", "3", None]


def of(texts, draw):
    """Return one of these decimals, or null."""
    text = draw.choice(texts)
    return None if text is None else Decimal(text)


def history(first, n, draw):
    """Return events of few entities; some values are null."""
    return events(
        [
            (
                at * SECOND,
                at * SECOND,
                {
                    "user": f"u{draw.randrange(12)}é|",
                    "x": draw.choice(FLOATS),
                    "n": draw.choice(INTEGERS),
                    "s": draw.choice(TEXTS),
                    "d": of(DECIMALS, draw),
                    "units": of(UNITS, draw),
                    "small": of(SMALL, draw),
                    "b": draw.choice([True, False, None]),
                    "at": draw.choice(
                        [None, dt.datetime(1, 1, 1, tzinfo=dt.UTC), dt.datetime(2026, 3, 1, tzinfo=dt.UTC)]
                    ),
                },
            )
            for at in range(first, first + n)
        ],
        columns=COLUMNS,
    ).with_columns(pl.col("_offset") + first)


def steps_of(plan, draw):
    """Return the current rows of steps: new values, values that leave, entities of which nothing is left."""
    state = ShardState(plan, "h0")
    for first, n in ((0, 1), (1, 9), (20, 40), (600, 3), (200_000, 2), (400_000, 30)):
        step = state.apply(evaluate(plan, history(first, n, draw)).events, (first + n) * SECOND)
        if step.current_rows.height:
            yield step.current_rows


def framed(rows):
    """Return the same rows as a frame, which leaves them words."""
    make, words = rows.words
    return StepRows(make([([words], 0)])[0])


@pytest.mark.parametrize("wanted", PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize("expire_after_us", [None, DAY])
def test_commands_of_words_are_those_of_their_frame(wanted, expire_after_us):
    plan = view(*wanted, columns=COLUMNS)
    encoder = RowEncoder(plan, "unskew", expire_after_us)
    seen = b""

    for seed in range(20):
        for rows in steps_of(plan, random.Random(seed)):
            frame = framed(rows).frame()
            for now_us, persist in ((None, False), (HOUR, False), (HOUR, True), (30 * DAY, True)):
                found = encoder.encode_words(rows, now_us, persist=persist)
                assert found == encoder.encode(frame, now_us, persist=persist)
                seen += found.data

    assert {b"HSET", b"HDEL"} <= set(seen.split(b"\r\n"))
    assert b"DEL" in seen.split(b"\r\n") or lifetime() in [one.window for one in wanted]


@pytest.mark.parametrize("wanted", PLAIN.values(), ids=PLAIN)
def test_the_last_rows_of_keys_are_those_of_frames(wanted):
    plan = view(*wanted, columns=COLUMNS)
    of_words, of_frames = Batch(), Batch()
    n_words = 0
    for rows in steps_of(plan, random.Random(1)):
        n_words += rows.words is not None
        made = StepRows(framed(rows).frame()) if rows.words is not None else rows
        for batch, its in ((of_words, rows), (of_frames, made)):
            batch.rows.setdefault(plan.id, []).append(its)
            batch.n_rows += its.height

    of_words.conflate()
    of_frames.conflate()

    counts = [(one.n_rows, one.n_conflated, one.n_distinct) for one in (of_words, of_frames)]
    assert counts[0] == counts[1]
    assert counts[0][1] > 0
    (found,), (expected,) = of_words.rows[plan.id], of_frames.rows[plan.id]
    assert (found.words is not None) == (n_words > 0)
    encoder = RowEncoder(plan, "unskew")
    assert encoder.encode_words(found, HOUR) == encoder.encode(expected.frame(), HOUR)
    assert found.frame().equals(expected.frame())


@pytest.mark.parametrize("name", PLAIN)
def test_derived_features_are_those_of_the_frame(name):
    plan = view(*PLAIN[name], Wanted("events", "count", WINDOW), columns=COLUMNS, derived=DERIVED.get(name, SHARE))
    encoder = RowEncoder(plan, "unskew")
    batch = Batch()
    for seed in range(5):
        for rows in steps_of(plan, random.Random(seed)):
            assert encoder.encode_words(rows, HOUR) == encoder.encode(framed(rows).frame(), HOUR)
            batch.rows.setdefault(plan.id, []).append(rows)
    batch.conflate()
    (last,) = batch.rows[plan.id]
    assert encoder.encode_words(last, HOUR) == encoder.encode(framed(last).frame(), HOUR)


def test_derived_texts_and_decimals_are_left_to_frames():
    for derived in (
        WantedOfOthers("upper", "upper(word)", "string"),
        WantedOfOthers("twice", "d + d", "decimal(38,2)"),
    ):
        wanted = [Wanted("word", "last", WINDOW, "s", "string"), Wanted("d", "last", WINDOW, "d", "decimal(38,2)")]
        plan = view(*wanted, columns=COLUMNS, derived=(derived,))
        for rows in steps_of(plan, random.Random(1)):
            assert rows.words is not None
            assert RowEncoder(plan, "unskew").encode_words(rows, HOUR) is None


@pytest.mark.parametrize("wanted", PLAIN.values(), ids=PLAIN)
def test_a_flush_makes_no_frame_of_few_rows(redis_client, wanted):
    plan = view(*wanted, columns=COLUMNS)
    updates = ShardState(plan, "h0").apply(evaluate(plan, history(0, 9, random.Random(1))).events, 9 * SECOND)
    rows = updates.current_rows
    writer = RedisWriter(redis_client, "unskew", "main")
    writer.add(updates)
    writer.flush(HOUR)

    assert rows.words is not None
    assert writer.rows_sent == rows.height
    fields = RowEncoder(plan, "unskew").texts_of(rows.frame())
    keys = RowEncoder(plan, "unskew").keys_of(rows.frame())
    assert [redis_client.hgetall(key) for key in keys] == fields
    writer.close()
