"""What holds for every aggregation over every window, whatever the history."""

import math
from functools import cache
from typing import get_args

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fed import Fed, assert_equals_recount, bits, whole
from tests.support.histories import (
    N_PACKS,
    TYPES,
    WINDOWS,
    History,
    every_aggregation,
    histories,
    laws,
    pack,
    small_view,
    splits,
)
from tests.support.plans import Wanted, WantedOfOthers
from unskew.features.definitions.vocabulary import Calendar, Session, Tumbling, Window
from unskew.features.definitions.windows import plan_window
from unskew.features.plan import MAX_FEATURES, ViewPlan
from unskew.features.types import SCALARS
from unskew.features.view import AggregationName, CalendarUnit

windows = pytest.mark.parametrize("named", list(WINDOWS))
packs = pytest.mark.parametrize("number", range(N_PACKS))


@cache
def plan(named: str, number: int) -> ViewPlan:
    return pack(named, number)


def test_every_kind_of_window_is_tried():
    tried = list(WINDOWS.values())

    assert {type(window) for window in tried} == set(Window.__subclasses__())
    assert {window.unit for window in tried if isinstance(window, Calendar)} == set(get_args(CalendarUnit))
    assert {window.closed for window in tried if isinstance(window, Tumbling)} == {False, True}


def test_every_aggregation_of_every_type_is_tried_with_a_filter_and_without():
    assert set(TYPES) == set(get_args(AggregationName))
    assert {of for types in TYPES.values() for of in types} >= {None, *SCALARS}
    for named in WINDOWS:
        tried = [feature for number in range(N_PACKS) for feature in plan(named, number).features]
        plain, filtered = every_aggregation(plan_window(WINDOWS[named]))

        assert sorted(feature.name for feature in tried) == sorted(want.name for want in (*plain, *filtered))
        assert max(len(plan(named, number).features) for number in range(N_PACKS)) <= MAX_FEATURES
        assert any(feature.by >= 0 for feature in tried)

    assert {feature.function for number in range(N_PACKS) for feature in plan("few tiles", number).features} == set(
        TYPES
    )


@windows
@packs
@laws(max_examples=6)
@given(st.data())
def test_log_and_current_rows_equal_the_recount(named, number, data):
    view = plan(named, number)
    history = data.draw(histories(view.windows[0]))

    assert_equals_recount(Fed(view, history, data.draw(splits(history))), history)


@st.composite
def wanted(draw: st.DrawFn, *names: str) -> list[Wanted]:
    """A few features over each of some windows."""
    found = []
    for named in names:
        plain, filtered = every_aggregation(plan_window(WINDOWS[named]), f"{named.replace(' ', '_')}_")
        found += draw(
            st.lists(st.sampled_from([*plain, *filtered]), min_size=1, max_size=3, unique_by=lambda want: want.name)
        )
    return found


@st.composite
def derived(draw: st.DrawFn, features: list[Wanted]) -> list[WantedOfOthers]:
    """Quotients, differences and cases, as SQL and as Polars expressions; some are not finite, and some of nulls."""
    numbers = [
        want.name
        for want in features
        if want.by is None and (want.of in {"int64", "float64"} or want.function in {"mean", "var", "std", "quantile"})
        if want.function not in {"first_n", "last_n", "top_k", "histogram", "first_time", "last_time"}
    ]
    found = []
    for number in range(draw(st.integers(0, 2)) if numbers else 0):
        one, other = draw(st.sampled_from(numbers)), draw(st.sampled_from(numbers))
        text = draw(
            st.sampled_from(
                [
                    f'"{one}" / "{other}"',
                    f'COALESCE("{one}", 2) / "{other}"',
                    pl.col(one).cast(pl.Float64) / pl.col(other),
                    pl.when(pl.col(one) > 0).then(pl.col(other).cast(pl.Float64)),
                ]
            )
        )
        found.append(WantedOfOthers(f"derived_{number}", text))
    return found


@laws(max_examples=100)
@given(st.data())
def test_features_and_windows_of_one_view_do_not_disturb_each_other(data):
    # More than a few features seldom leave an event out of a window for all of them.
    names = data.draw(st.lists(st.sampled_from(list(WINDOWS)), min_size=1, max_size=3, unique=True))
    features = data.draw(wanted(*names))
    view = small_view(features, derived=data.draw(derived(features)))
    history = data.draw(histories(data.draw(st.sampled_from(view.windows))))

    assert_equals_recount(Fed(view, history, data.draw(splits(history))), history)


@windows
@laws(max_examples=6)
@given(st.data())
def test_splitting_a_history_changes_not_one_bit_of_the_log_or_the_current_rows(named, data):
    view = plan(named, data.draw(st.integers(0, N_PACKS - 1)))
    history = data.draw(histories(view.windows[0]))

    one, other = Fed(view, history, whole(history)), Fed(view, history, data.draw(splits(history)))

    assert one.log.equals(other.log)
    assert one.current == other.current


@windows
@laws(max_examples=6)
@given(st.data())
def test_a_state_restored_from_bytes_goes_on_to_the_bit(named, data):
    view = plan(named, data.draw(st.integers(0, N_PACKS - 1)))
    history = data.draw(histories(view.windows[0]))
    batches = data.draw(splits(history))
    cut = data.draw(st.integers(0, len(batches)))

    through, restored = Fed(view, history, batches), Fed(view, history, batches, cut=cut)

    assert restored.log.equals(through.log)
    assert restored.current == through.current


# Which events are of a session depends on the order in which they come.
@pytest.mark.parametrize("named", [named for named, window in WINDOWS.items() if not isinstance(window, Session)])
@laws(max_examples=6)
@given(st.data())
def test_permuting_events_within_an_instant_changes_no_value(named, data):
    view = plan(named, data.draw(st.integers(0, N_PACKS - 1)))
    history = data.draw(histories(view.windows[0]))
    n_events = len(history.events)
    shuffled = history.events[data.draw(st.permutations(range(n_events)))].sort("_arrival", maintain_order=True)

    one = Fed(view, history, whole(history))
    other = Fed(view, History(shuffled, history.clock_us), whole(history))

    columns = ["user", "available_at", "cause", "seq", *(feature.name for feature in view.features)]
    assert one.log.select(columns).equals(other.log.select(columns))


def test_the_sign_of_zero_would_be_seen():
    assert bits({"x": 0.0}) != bits({"x": -0.0})
    assert math.copysign(1, -0.0) < 0
