"""A shard fed with batches, and its rows as they are compared with the recount's."""

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import replace
from decimal import Decimal

import polars as pl

from tests.support.histories import History
from unskew.features.evaluate import evaluate
from unskew.features.plan import ViewPlan
from unskew.features.shard_state import ShardState
from unskew.monitoring.recount import Recount, identical

KEYS = {"a": "a", "b|é": "b%7C%C3%A9", "c": "c"}
_LONG_AFTER_US = 10**15


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
        return {output.name: row[output.name] for output in self.view.outputs}

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


def whole(history: History) -> list[tuple[int, int, int]]:
    """The history as one batch."""
    n_events = len(history.events)
    return [(0, n_events, history.events["_arrival"].to_physical()[-1])] if n_events else []


def bits(values: Mapping[str, object]) -> list[tuple[str, object]]:
    return [(name, _bits(value)) for name, value in values.items()]


def _bits(value: object) -> object:
    match value:
        case float():
            return "float", value.hex()
        case Decimal() | dt.datetime():
            return type(value).__name__, str(value)
        case list():
            return [_bits(one) for one in value]
        case dict():
            return [(name, _bits(one)) for name, one in value.items()]
        case _:
            return type(value).__name__, value


def expected_rows(recount: Recount, key: str, history: History) -> list[tuple[object, ...]]:
    return [
        (row.instant_us, row.cause, row.event_time_us, row.partition, row.offset, bits(row.values))
        for row in recount.rows((key,), history.clock_us - 1)
    ]


def assert_equals_recount(fed: Fed, history: History) -> None:
    """The whole log, and each entity's current row with what it promises of the time to come."""
    recount = Recount(fed.view, history.events)
    # What holds if no event comes: of a view over sessions, one that is still to be over is such an event.
    quiet = recount
    if fed.view.sessions is not None:
        came = recount.events.filter(pl.col("_arrival").to_physical() <= history.clock_us)
        quiet = Recount(replace(fed.view, sessions=None), came)
    nobody = recount.values(("nobody",), history.clock_us)
    for key, canonical in KEYS.items():
        assert fed.rows(key) == expected_rows(recount, key, history)
        now = recount.values((key,), history.clock_us)
        row = fed.current.get(canonical)
        if row is None:
            assert identical(now, nobody)
            continue
        assert bits(fed.values(row)) == bits(now)
        if row["_until"] is None:
            assert identical(quiet.values((key,), history.clock_us + _LONG_AFTER_US), now)
        else:
            assert row["_until"] > history.clock_us
            assert identical(quiet.values((key,), row["_until"] - 1), now)
        if row["_gone"]:
            assert identical(now, nobody)
        elif row["_empty_at"] is not None:
            assert identical(quiet.values((key,), row["_empty_at"]), nobody)
