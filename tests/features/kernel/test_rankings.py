"""Maps, ``mode`` and ``top_k`` of entities with many codes, which the kernel does not read from all of them."""

import random

import polars as pl
import pytest

from tests.support.plans import SECOND, Wanted, closed, events, lifetime, sliding, tumbling, view
from unskew.features.evaluate import evaluate
from unskew.features.kernel import words as w
from unskew.features.shard_state import ShardState
from unskew.features.view import Parameters
from unskew.monitoring.recount import Recount, identical

SPAN_S = 45
PER_S = 40
TEXT = {"s": pl.String()}
WINDOWS = {
    "sliding": sliding(10 * SECOND, SECOND),
    "tumbling": tumbling(10 * SECOND),
    "closed": closed(10 * SECOND),
    "lifetime": lifetime(),
}
# As long as what is kept of a text, and longer, with equal beginnings; the last one is what maps call the rest.
TEXTS = ["a", "a\0", "", "exactly8", "exactly8+", *(f"long text {number}" for number in range(90)), "é", "other"]


def _features(window):
    return [
        Wanted("often", "mode", window, "s", of="string"),
        Wanted("often_of_floats", "mode", window, "x"),
        Wanted("two", "top_k", window, "s", of="string", parameters=Parameters(n=2)),
        Wanted("of_integers", "top_k", window, "n", of="int64", parameters=Parameters(n=3)),
        Wanted("of_floats", "top_k", window, "x", parameters=Parameters(n=1)),
        Wanted("different", "count_distinct", window, "s", of="string"),
        Wanted("counts", "count", window, by="s", parameters=Parameters(keys=3)),
        Wanted("counts_of_one", "count", window, by="s", parameters=Parameters(keys=1)),
        Wanted("sums", "sum", window, "x", by="s", parameters=Parameters(keys=2)),
        Wanted("means", "mean", window, "n", of="int64", by="s", filter="n < 30", parameters=Parameters(keys=4)),
    ]


def _rows(seed):
    """Events of three entities: many at first, then hardly any, then many again; up to 3 s late.

    Which texts are frequent changes, and many are equally frequent.
    """
    chosen = random.Random(seed)
    rows = []
    for second in range(SPAN_S):
        for _ in range(PER_S if not 16 <= second < 32 else 1):
            at = second * SECOND + chosen.randrange(SECOND)
            often = (second // 4 * 7 + int(chosen.expovariate(0.3))) % len(TEXTS)
            rows.append(
                (
                    at,
                    max(at - chosen.randrange(3 * SECOND), 0),
                    {
                        "user": chosen.choice("aab"),
                        "x": chosen.choice([float(chosen.randrange(-40, 40)), 0.1 * second, None]),
                        "n": chosen.randrange(-5, 40),
                        "s": chosen.choice([TEXTS[often], TEXTS[often], chosen.choice(TEXTS), None]),
                    },
                )
            )
        rows.append((second * SECOND, second * SECOND, {"user": "few", "x": 1.0, "n": second % 7, "s": "a"}))
    return sorted(rows, key=lambda row: row[0])


@pytest.mark.parametrize("shared", [False, True], ids=["apart", "shared"])
@pytest.mark.parametrize("kind", WINDOWS)
@pytest.mark.parametrize("restored", [False, True], ids=["running", "restored"])
def test_most_frequent_codes_of_many_and_of_few_equal_the_recount(kind, restored, shared):
    planned = view(*_features(WINDOWS[kind]), columns=TEXT, shared=shared)
    rows = _rows(seed=len(kind))
    decoded = events(rows, columns=TEXT)
    recount = Recount(planned, decoded)
    state = ShardState(planned, "h0")
    n_compared = 0
    ranked = set()
    for number, first in enumerate(range(0, len(rows), 25)):
        some = decoded.slice(first, 25)
        found = state.apply(evaluate(planned, some).events, rows[min(first + 25, len(rows)) - 1][0])
        ranked |= _ranked(state)
        for row in found.closed[::2].iter_rows(named=True):
            expected = recount.values((row["user"],), round(row["available_at"].timestamp() * SECOND))
            assert identical({name: row[name] for name in expected}, expected), (row, expected)
            n_compared += 1
        if restored and number % 7 == 3:
            state = ShardState.from_bytes(planned, "h0", state.to_bytes())
    assert n_compared > 25
    # Else this test would say nothing: there are multisets of which all codes are ranked, and others.
    assert ranked >= {"all", "not all"}
    # Far later, all have left, and the rankings with them.
    state.apply(None, 1_000 * SECOND)
    assert kind == "lifetime" or state.n_items == 0


def _ranked(state):
    """Return whether the rankings have all items or leave some out; nothing if there is none."""
    items = state._state.items[: state._state.scalars[w.S_ITEM_HIGH]]
    rankings = items[items[:, w.ITEM_OWNER] < w.NONE]
    if not len(rankings):
        return set()
    owners = w.NONE - 1 - rankings[:, w.ITEM_OWNER]
    n_items = [int((items[:, w.ITEM_OWNER] == owner).sum()) for owner in owners]
    return {"not all"} if (rankings[:, w.ITEM_COUNT] < n_items).any() else {"all"}
