"""Decayed sums over many tiles: at each event the kernel reads the last of them again, and not all."""

import random

import pytest

from tests.support.plans import SECOND, Wanted, events, sliding, view
from unskew.features.evaluate import evaluate
from unskew.features.kernel import words as w
from unskew.features.shard_state import ShardState
from unskew.features.view import Parameters
from unskew.monitoring.recount import Recount, identical

N_TILES = 4 * w.DECAYED_AGAIN
PER_S = 10


def _view():
    window, short = sliding(N_TILES * SECOND, SECOND), sliding(2 * SECOND, SECOND)
    slow, quick = Parameters(half_life_hops=7), Parameters(half_life_hops=1)
    return view(
        Wanted("counts", "decayed_count", window, parameters=slow),
        Wanted("sums", "decayed_sum", window, "x", parameters=slow),
        Wanted("of_integers", "decayed_sum", window, "n", of="int64", filter="n > 3", parameters=quick),
        Wanted("of_few_tiles", "decayed_sum", short, "x", parameters=quick),
        Wanted("all", "count", window),
    )


def _rows():
    """Events of two entities, a few in each hop: up to 3 s late or, some, most of the window."""
    chosen = random.Random(0)
    rows = []
    for number in range(2 * N_TILES * PER_S):
        at = number * SECOND // PER_S
        late = chosen.randrange(3 * SECOND if chosen.random() < 0.8 else N_TILES * SECOND)
        given = {"user": chosen.choice("aab"), "x": chosen.choice([chosen.gauss(0, 1), None]), "n": chosen.randrange(9)}
        rows.append((at, max(at - late, 0), given))
    return rows


@pytest.mark.parametrize("restored", [False, True], ids=["running", "restored"])
def test_a_late_event_counts_in_a_decayed_sum_that_was_read_in_the_same_hop(restored):
    planned = _view()
    rows = _rows()
    decoded = events(rows)
    recount = Recount(planned, decoded)
    state = ShardState(planned, "h0")
    kept = state._program.features[0, w.F_DECAYED] + w.DECAYED_TILE
    n_compared = n_kept = 0
    for first in range(0, len(rows), PER_S // 2):
        some = decoded.slice(first, PER_S // 2)
        found = state.apply(evaluate(planned, some).events, rows[first + PER_S // 2 - 1][0])
        n_kept += int((state._state.entities[state.directory.rows(), kept] > 0).sum())
        for row in found.closed[::3].iter_rows(named=True):
            expected = recount.values((row["user"],), round(row["available_at"].timestamp() * SECOND))
            assert identical({name: row[name] for name in expected}, expected), (row, expected)
            n_compared += 1
        if restored and first % 35 == 0:
            state = ShardState.from_bytes(planned, "h0", state.to_bytes())
    assert n_compared > 100
    # Else this test would say nothing.
    assert n_kept > 100
