"""Views over closed sessions: what holds whatever the events, their sessions, and the windows over them."""

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fed import Fed, assert_equals_recount, whole
from tests.support.histories import DECIMAL, PLAN_COLUMNS, WINDOWS, histories, laws, small_view, splits
from tests.support.plans import SECOND, Wanted, events, lifetime, session, sessions
from unskew.features.definitions.windows import plan_window
from unskew.features.evaluate import evaluate
from unskew.features.plan import ViewPlan
from unskew.features.shard_state import ShardState
from unskew.features.view import Parameters, ViewWindow

GAPS = [(6 * SECOND, 2 * SECOND), (3 * SECOND, 3 * SECOND)]


def of_sessions(window: ViewWindow) -> list[Wanted]:
    """Features over columns of sessions: their times, length and number of events, and what was aggregated in them."""
    prefix = "".join(filter(str.isalnum, window.text))
    several = pl.col("events") > 1
    return [
        Wanted(f"{prefix}_{name}", function, window, value, of, condition, parameters=told)
        for name, function, value, of, condition, told in [
            ("count", "count", None, "int64", None, Parameters()),
            ("several", "count", None, "int64", several, Parameters()),
            ("length", "sum", pl.col("length_s"), "float64", None, Parameters()),
            ("longest", "max", pl.col("length_s"), "float64", several, Parameters()),
            ("begun", "min", pl.col("start"), "timestamp", None, Parameters()),
            ("ended", "last_n", pl.col("end"), "timestamp", None, Parameters(n=2)),
            ("latest", "last_time", None, "int64", None, Parameters()),
            ("spent", "sum", pl.col("spend"), "float64", None, Parameters()),
            ("paid", "sum", pl.col("paid"), DECIMAL, several, Parameters()),
            ("word", "mode", pl.col("word"), "string", None, Parameters()),
            ("mean", "mean", pl.col("mean"), "float64", None, Parameters()),
        ]
    ]


@st.composite
def views(draw: st.DrawFn) -> ViewPlan:
    gap_us, hop_us = draw(st.sampled_from(GAPS))
    inside = session(gap_us, hop_us)
    inner = sessions(
        gap_us,
        hop_us,
        Wanted("spend", "sum", inside, pl.col("x")),
        Wanted("paid", "sum", inside, pl.col("d"), DECIMAL),
        Wanted("word", "max", inside, pl.col("s"), "string"),
        Wanted("mean", "mean", inside, pl.col("n"), "int64"),
        where=draw(st.sampled_from([None, pl.col("pass")])),
        columns=PLAN_COLUMNS,
    )
    names = draw(st.lists(st.sampled_from(list(WINDOWS)), min_size=1, max_size=2, unique=True))
    over = [want for named in names for want in of_sessions(plan_window(WINDOWS[named]))]
    chosen = draw(st.lists(st.sampled_from(over), min_size=1, unique_by=lambda want: want.name))
    return small_view(chosen, sessions=inner, where=draw(st.sampled_from([None, pl.col("length_s") < 5.0])))


@laws(max_examples=80)
@given(st.data())
def test_log_and_current_rows_over_sessions_equal_the_recount(data):
    view = data.draw(views())
    history = data.draw(histories(data.draw(st.sampled_from([*view.windows, *view.sessions.windows]))))

    assert_equals_recount(Fed(view, history, data.draw(splits(history))), history)


@laws(max_examples=40)
@given(st.data())
def test_neither_batches_nor_a_restart_change_what_sessions_give(data):
    view = data.draw(views())
    history = data.draw(histories(view.sessions.windows[0]))
    batches = data.draw(splits(history))

    one = Fed(view, history, whole(history))
    other = Fed(view, history, batches, cut=data.draw(st.integers(0, len(batches))))

    assert one.log.equals(other.log)
    assert one.current == other.current


def test_the_length_of_a_session_is_the_nearest_number_of_seconds_however_many_close_at_once():
    lengths_us = [178_030_000, 6_662_000, 502_708_000, 7]
    inner = sessions(600 * SECOND, 60 * SECOND)
    view = small_view([Wanted("length", "last", lifetime(), "length_s")], sessions=inner)
    times = [
        at for n, length_us in enumerate(lengths_us) for at in (n * 7_200 * SECOND, n * 7_200 * SECOND + length_us)
    ]
    shard = ShardState(view, "h0")

    step = shard.apply(evaluate(view, events([(at, at, {"user": "a"}) for at in times])).events, 100_000 * SECOND)

    assert step.closed["length"].to_list() == [length_us / 1e6 for length_us in lengths_us]
