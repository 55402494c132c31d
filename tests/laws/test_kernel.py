"""What holds for every aggregation over every window, whatever the history."""

import math
from collections.abc import Iterable
from functools import lru_cache

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.laws.histories import WINDOWS, History, every_aggregation, histories, splits
from unskew.features.definitions import Window
from unskew.features.evaluate import evaluate
from unskew.features.kernel.shard import ShardState
from unskew.features.plan import MAX_FEATURES, ViewPlan
from unskew.monitoring.recount import Recount, identical

LAWS = settings(deadline=None, max_examples=12, suppress_health_check=list(HealthCheck), print_blob=True)
KEYS = {"a": "a", "b|é": "b%7C%C3%A9", "c": "c"}

windows = pytest.mark.parametrize("named", list(WINDOWS))


@lru_cache(maxsize=32)
def plan(*names: str) -> ViewPlan:
    return every_aggregation(*(WINDOWS[name] for name in names))


class Fed:
    """A shard fed with batches: its whole log and the latest current row of each entity."""

    def __init__(
        self, view: ViewPlan, history: History, batches: Iterable[tuple[int, int, int]], cut: int = -1
    ) -> None:
        self.view = view
        self.state = ShardState(view, "h0")
        self.current: dict[str, dict[str, object]] = {}
        closed = []
        steps = [(history.events[first:past], clock) for first, past, clock in batches]
        for number, (events, clock) in enumerate([*steps, (None, history.clock_us)]):
            if number == cut:
                self.state = ShardState.from_bytes(view, "h0", self.state.to_bytes())
            evaluated = None if events is None else evaluate(view, events).events
            updates = self.state.apply(evaluated, clock)
            closed.append(updates.closed)
            self.current |= {row["key"]: row for row in updates.current.iter_rows(named=True)}
        self.log = pl.concat(closed)

    def values(self, row: dict[str, object]) -> dict[str, object]:
        return {feature.name: row[feature.name] for feature in self.view.features}

    def rows(self, key: str) -> list[tuple[object, ...]]:
        mine = self.log.filter(pl.col("user") == key).with_columns(pl.col("available_at", "event_time").to_physical())
        return [
            (
                row["available_at"],
                row["cause"],
                row["event_time"],
                row["partition"],
                row["offset"],
                bits(self.values(row)),
            )
            for row in mine.iter_rows(named=True)
        ]


def bits(values: dict[str, object]) -> list[tuple[str, str, object]]:
    return [
        (name, type(value).__name__, value.hex() if isinstance(value, float) else value)
        for name, value in values.items()
    ]


def whole(history: History) -> list[tuple[int, int, int]]:
    """The history as one batch."""
    n_events = len(history.events)
    return [(0, n_events, history.events["_arrival"].to_physical()[-1])] if n_events else []


def test_every_kind_of_window_is_tried():
    assert {type(window) for window in WINDOWS.values()} == set(Window.__subclasses__())


@windows
@LAWS
@given(st.data())
def test_log_and_current_rows_equal_the_recount(named, data):
    view = plan(named)
    history = data.draw(histories(view.windows[0]))
    fed = Fed(view, history, data.draw(splits(history)))
    recount = Recount(view, history.events)

    for key, canonical in KEYS.items():
        expected = recount.rows((key,), history.clock_us - 1)
        assert fed.rows(key) == [
            (row.instant_us, row.cause, row.event_time_us, row.partition, row.offset, bits(row.values))
            for row in expected
        ]
        now = recount.values((key,), history.clock_us)
        row = fed.current.get(canonical)
        if row is None:
            assert identical(now, recount.values(("nobody",), history.clock_us))
            continue
        assert bits(fed.values(row)) == bits(now)
        if row["_until"] is not None:
            assert row["_until"] > history.clock_us
            assert identical(recount.values((key,), row["_until"] - 1), now)
        if row["_gone"]:
            assert identical(now, recount.values(("nobody",), history.clock_us))
        else:
            assert identical(recount.values((key,), row["_empty_at"]), recount.values(("nobody",), 0))


@LAWS
@given(st.data())
def test_windows_of_one_view_do_not_disturb_each_other(data):
    # More of them together would be more features than a view may have.
    view = plan(*data.draw(st.permutations(["few tiles", "tumbling", "one tile", "berlin day"]))[:2])
    assert len(view.features) <= MAX_FEATURES
    history = data.draw(histories(data.draw(st.sampled_from(view.windows))))
    fed = Fed(view, history, data.draw(splits(history)))
    recount = Recount(view, history.events)

    for key in KEYS:
        assert fed.rows(key) == [
            (row.instant_us, row.cause, row.event_time_us, row.partition, row.offset, bits(row.values))
            for row in recount.rows((key,), history.clock_us - 1)
        ]


@windows
@LAWS
@given(st.data())
def test_splitting_a_history_changes_not_one_bit_of_the_log_or_the_current_rows(named, data):
    view = plan(named)
    history = data.draw(histories(view.windows[0]))

    one, other = Fed(view, history, whole(history)), Fed(view, history, data.draw(splits(history)))

    assert one.log.equals(other.log)
    assert one.current == other.current


@windows
@LAWS
@given(st.data())
def test_a_state_restored_from_bytes_goes_on_to_the_bit(named, data):
    view = plan(named)
    history = data.draw(histories(view.windows[0]))
    batches = data.draw(splits(history))
    cut = data.draw(st.integers(0, len(batches)))

    through, restored = Fed(view, history, batches), Fed(view, history, batches, cut=cut)

    assert restored.log.equals(through.log)
    assert restored.current == through.current


@windows
@LAWS
@given(st.data())
def test_permuting_events_within_an_instant_changes_no_value(named, data):
    view = plan(named)
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
