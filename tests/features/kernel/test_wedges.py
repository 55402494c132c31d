"""Least and greatest values over many tiles: when a tile leaves, the kernel does not read all that stay."""

import random

import polars as pl
import pytest

from tests.support.plans import SECOND, Wanted, events, sliding, view
from unskew.features import shard_state as shard
from unskew.features.evaluate import evaluate
from unskew.features.kernel import words as w
from unskew.features.shard_state import ShardState
from unskew.monitoring.recount import Recount, identical

TEXT = {"s": pl.String()}
N_TILES = 3 * w.WEDGE_FROM
SPAN_S = 4 * N_TILES
VALUES = {
    "rising": lambda at, _: at,
    "falling": lambda at, _: -at,
    "random": lambda _, chosen: chosen.gauss(0, 1),
    "few": lambda _, chosen: float(chosen.randrange(3)),
    # Rising and falling, each for longer than the window.
    "turning": lambda at, _: abs(at % (4 * N_TILES) - 2 * N_TILES),
}


def _view():
    window = sliding(N_TILES * SECOND, SECOND)
    return view(
        *(
            Wanted(f"{function}_{of}{name}", function, window, column, of=of, filter=filter_)
            for function in ("min", "max")
            for column, of in (("x", "float64"), ("n", "int64"), ("s", "string"))
            for name, filter_ in (("", None), ("_filtered", "n % 5 = 0"))
        ),
        Wanted("seldom", "max", window, "n", of="int64", filter="n % 97 = 0"),
        Wanted("latest", "last", window, "n", of="int64", filter="n % 97 = 0"),
        Wanted("different", "count_distinct", window, "n", of="int64"),
        Wanted("of_few_tiles", "max", sliding(5 * SECOND, SECOND), "x"),
        columns=TEXT,
    )


def _rows(values, seed):
    """Events of two entities, up to five seconds late or, seldom, most of the window; with nulls, and a long pause."""
    chosen = random.Random(seed)
    rows = []
    for second in range(SPAN_S):
        if 2 * N_TILES < second < 2 * N_TILES + N_TILES // 2:
            continue
        for _ in range(2):
            at = second * SECOND + chosen.randrange(SECOND)
            late = chosen.randrange(5 * SECOND if chosen.random() < 0.97 else (N_TILES - 1) * SECOND)
            value = VALUES[values]((at - late) / SECOND, chosen)
            text = f"{value + 10_000:.3f}"
            rows.append(
                (
                    at,
                    max(at - late, 0),
                    {
                        "user": chosen.choice("aaab"),
                        "x": chosen.choice([value, value, value, None]),
                        "n": round(value * 10),
                        "s": chosen.choice([text, text, None]),
                    },
                )
            )
    return sorted(rows, key=lambda row: row[0])


def _n_wedges(state):
    """The number of elements of wedges: items owned by an accumulator of least or greatest values."""
    items = state._state.items[: state._state.scalars[w.S_ITEM_HIGH]]
    owners = items[items[:, w.ITEM_OWNER] > w.NONE, w.ITEM_OWNER]
    ops = state._program.accumulators[(owners >> 1) % len(state._program.accumulators), w.A_OP]
    return int(((ops == w.MIN) | (ops == w.MAX)).sum())


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("restored", [False, True], ids=["running", "restored"])
def test_extremes_of_many_tiles_equal_the_recount(values, restored, monkeypatch):
    # So little room that wedges lack it again and again.
    monkeypatch.setattr(shard, "_MIN_ITEMS", 1)
    planned = _view()
    rows = _rows(values, seed=len(values))
    decoded = events(rows, columns=TEXT)
    recount = Recount(planned, decoded)
    state = ShardState(planned, "h0")
    n_compared = most = 0
    for number, first in enumerate(range(0, len(rows), 20)):
        some = decoded.slice(first, 20)
        found = state.apply(evaluate(planned, some).events, rows[min(first + 20, len(rows)) - 1][0])
        most = max(most, _n_wedges(state))
        for row in found.closed[:: 1 if number % 5 == 0 else 3].iter_rows(named=True):
            expected = recount.values((row["user"],), round(row["available_at"].timestamp() * SECOND))
            assert identical({name: row[name] for name in expected}, expected), (row, expected)
            n_compared += 1
        if restored and number % 11 == 3:
            state = ShardState.from_bytes(planned, "h0", state.to_bytes())
            assert _n_wedges(state) == 0
    assert n_compared > 100
    # Else this test would say nothing.
    assert most > (N_TILES if values in {"rising", "falling", "turning"} else 3)
    state.apply(None, 1_000_000 * SECOND)
    assert (state.n_items, state.n_tiles, len(state)) == (0, 0, 0)


def test_a_view_without_multisets_gets_room_for_its_wedges_and_frees_it():
    planned = view(Wanted("most", "max", sliding(N_TILES * SECOND, SECOND), "x"))
    state = ShardState(planned, "h0")
    sizes = []
    for second in range(SPAN_S):
        row = (second * SECOND, second * SECOND, {"user": "a", "x": -float(second)})
        current = state.apply(evaluate(planned, events([row])).events, second * SECOND).current
        assert current["most"].item() == -max(0, second - N_TILES)
        sizes.append(state.n_items)

    # Nothing before it is needed; then one element for each tile behind the running one, and what finds them.
    assert sizes[: N_TILES + 1] == [0] * (N_TILES + 1)
    assert sizes[-1] == N_TILES + 1
    state.apply(None, 10 * SPAN_S * SECOND)
    assert state.n_items == 0
