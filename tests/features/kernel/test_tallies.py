"""Quantiles and approximate counts of entities with many values, which the kernel does not read from all of them."""

import random

import pytest

from tests.support.plans import SECOND, Wanted, closed, events, lifetime, sliding, tumbling, view
from unskew.features.evaluate import evaluate
from unskew.features.kernel import words as w
from unskew.features.shard_state import ShardState
from unskew.features.view import Parameters
from unskew.monitoring.recount import Recount, identical

SPAN_S = 40
PER_S = 30
WINDOWS = {
    "sliding": sliding(10 * SECOND, SECOND),
    "tumbling": tumbling(10 * SECOND),
    "closed": closed(10 * SECOND),
    "lifetime": lifetime(),
}


def _features(window):
    return [
        Wanted("low", "quantile", window, "x", parameters=Parameters(q=0.0, bits=6)),
        Wanted("middle", "quantile", window, "x", parameters=Parameters(q=0.5, bits=6)),
        Wanted("high", "quantile", window, "x", parameters=Parameters(q=0.99, bits=6)),
        Wanted("coarse", "quantile", window, "x", parameters=Parameters(q=0.9, bits=0)),
        Wanted("few_registers", "approx_count_distinct", window, "x", parameters=Parameters(bits=4)),
        Wanted("registers", "approx_count_distinct", window, "x", parameters=Parameters(bits=10)),
    ]


def _values(seed):
    """Events of three entities: many at first, then hardly any, then many again; up to 3 s late."""
    chosen = random.Random(seed)
    rows = []
    for second in range(SPAN_S):
        busy = not 15 <= second < 30
        for _ in range(PER_S if busy else 1):
            at = second * SECOND + chosen.randrange(SECOND)
            value = chosen.choice(
                [chosen.gauss(0, 1), chosen.expovariate(1e-6), float(chosen.randrange(40)), 1e300, None]
            )
            rows.append((at, at - chosen.randrange(3 * SECOND), {"user": chosen.choice("aab"), "x": value}))
        rows.append((second * SECOND, second * SECOND, {"user": "few", "x": float(second % 7)}))
    return sorted(rows, key=lambda row: row[0])


@pytest.mark.parametrize("kind", WINDOWS)
@pytest.mark.parametrize("restored", [False, True], ids=["running", "restored"])
def test_values_of_many_and_of_few_equal_the_recount(kind, restored):
    planned = view(*_features(WINDOWS[kind]))
    rows = _values(seed=len(kind))
    recount = Recount(planned, events(rows))
    state = ShardState(planned, "h0")
    decoded = events(rows)
    n_compared = 0
    tallied = set()
    for number, first in enumerate(range(0, len(rows), 25)):
        some = decoded.slice(first, 25)
        clock_us = rows[min(first + 25, len(rows)) - 1][0]
        found = state.apply(evaluate(planned, some).events, clock_us)
        tallied.add(_has_tallies(state))
        for row in found.closed.iter_rows(named=True):
            expected = recount.values((row["user"],), _us(row["available_at"]))
            assert identical({name: row[name] for name in expected}, expected), (row, expected)
            n_compared += 1
        if restored and number % 7 == 3:
            state = ShardState.from_bytes(planned, "h0", state.to_bytes())
    assert n_compared > 50
    # Else this test would say nothing.
    assert tallied == {False, True}
    # Far later, all have left, and the items with them.
    state.apply(None, 1_000 * SECOND)
    assert kind == "lifetime" or state.n_items == 0


def _has_tallies(state):
    items = state._state.items[: state._state.scalars[w.S_ITEM_HIGH]]
    return bool(((items[:, w.ITEM_OWNER] != w.NONE) & (items[:, w.ITEM_CODE] >= 1 << 50)).any())


def _us(instant):
    return round(instant.timestamp() * 1_000_000)
