"""What has left every window leaves no trace in a shard's memory, and is stored as it lies."""

import copy
import pickle

import numpy as np
import polars as pl
import pytest

from tests.support.plans import DAY, MINUTE, SECOND, Wanted, closed, events, local_day, session, sessions, sliding, view
from unskew.features.evaluate import evaluate
from unskew.features.kernel import memory
from unskew.features.kernel.memory import MOST_ROWS, lines
from unskew.features.plan import ViewPlan
from unskew.features.shard_state import ShardState
from unskew.features.view import Parameters, ViewWindow

TEXT = {"s": pl.String()}
START = 1_500_000_000 * SECOND


def rich(window: ViewWindow) -> ViewPlan:
    return view(
        Wanted("different", "count_distinct", window, "s", of="string"),
        Wanted("about", "approx_count_distinct", window, "s", of="string", parameters=Parameters(bits=4)),
        Wanted("least", "min", window, "s", of="string"),
        Wanted("top", "top_k", window, "s", of="string", parameters=Parameters(n=2)),
        Wanted("latest", "last_n", window, "s", of="string", parameters=Parameters(n=3)),
        Wanted("middle", "quantile", window, "x", parameters=Parameters(q=0.5, bits=6)),
        Wanted("spend_by", "sum", window, "n", of="int64", by="s", parameters=Parameters(keys=2)),
        columns=TEXT,
    )


def apply(state: ShardState, texts: list[str], at_us: int) -> None:
    rows = [
        (at_us + i, at_us + i, {"user": f"u{i % 7}", "x": float(i), "n": i, "s": text}) for i, text in enumerate(texts)
    ]
    state.apply(evaluate(state.view, events(rows, columns=TEXT)).events, at_us + len(rows))


WINDOWS = [sliding(5 * MINUTE, MINUTE), closed(MINUTE), local_day("Europe/Berlin"), session(MINUTE, SECOND)]


@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: window.kind)
def test_items_are_free_when_everything_has_left(window):
    state = ShardState(rich(window), "h0")
    apply(state, [f"t{i % 50}" for i in range(500)], START)
    held = state.n_items, state.n_tiles, len(state)
    state.apply(None, START + 3 * DAY)

    assert min(held) > 0
    assert (state.n_items, state.n_tiles, len(state)) == (0, 0, 0)


@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: window.kind)
def test_the_same_again_takes_no_more_room(window):
    state = ShardState(rich(window), "h0")
    sizes = []
    for turn in range(6):
        apply(state, [f"t{i}" for i in range(300)], START + turn * 3 * DAY)
        sizes.append((state.n_items, state.n_tiles, state.n_texts))

    assert len(set(sizes)) == 1


def test_texts_that_nothing_stands_for_are_swept_and_the_rest_keep_their_meaning():
    state = ShardState(rich(sliding(5 * MINUTE, MINUTE)), "h0")
    for turn in range(20):
        apply(state, [f"text {turn} {i}" for i in range(300)], START + turn * 10 * MINUTE)
    # Of 6,000 different texts 300 are in the window; sweeping begins at 1,024.
    assert 300 <= state.n_texts <= 1024 + 300

    restored = ShardState.from_bytes(state.view, "h0", state.to_bytes())
    at_us = START + 19 * 10 * MINUTE + MINUTE
    rows = events([(at_us, at_us, {"user": "u0", "s": "zzz", "x": 1.0, "n": 1})], columns=TEXT)
    found = [each.apply(evaluate(each.view, rows).events, at_us + 1).current.to_dicts() for each in (state, restored)]

    assert found[0] == found[1]
    # The latest of u0: the new one, then events 294 and 287.
    assert found[0][0]["latest"] == ["zzz", "text 19 294", "text 19 287"]
    assert found[0][0]["least"] == "text 19 0"
    assert found[0][0]["different"] == 44


def test_a_view_over_sessions_frees_sessions_and_what_was_counted_of_them():
    inner = sessions(
        MINUTE, SECOND, Wanted("different", "count_distinct", session(MINUTE, SECOND), "s", of="string"), columns=TEXT
    )
    outer = view(
        Wanted("lengths", "quantile", sliding(5 * MINUTE, MINUTE), "length_s", parameters=Parameters(q=0.5, bits=6)),
        columns={"length_s": pl.Float64()},
        sessions=inner,
    )
    state = ShardState(outer, "h0")
    apply(state, [f"t{i}" for i in range(50)], START)
    running = len(state)
    state.apply(None, START + 2 * MINUTE)
    closed_ones = state.n_items
    state.apply(None, START + DAY)

    assert (running, closed_ones) == (7, 14)  # one bin in a tile and in the total of each
    assert (len(state), state.n_items, state.n_tiles) == (0, 0, 0)


@pytest.mark.parametrize("window", WINDOWS, ids=lambda window: window.kind)
def test_many_items_of_a_tile_come_back_as_they_lay(window):
    state = ShardState(rich(window), "h0")
    apply(state, [f"t{i % 50}" for i in range(500)], START)
    data = state.to_bytes()

    assert ShardState.from_bytes(state.view, "h0", data).to_bytes() == data


def test_a_state_that_comes_back_has_room_for_the_next_tiles():
    state = ShardState(rich(sliding(DAY, MINUTE)), "h0")
    for minute in range(60):
        apply(state, [f"t{i}" for i in range(7)], START + minute * MINUTE)
    restored = ShardState.from_bytes(state.view, "h0", state.to_bytes())
    tiles, n_before = restored._state.tiles, restored.n_tiles
    apply(restored, ["next"], START + 60 * MINUTE)

    # More than there is room for at the beginning.
    assert 256 < n_before < restored.n_tiles
    assert restored._state.tiles is tiles


def test_a_state_that_is_dissolved_holds_no_large_memory(monkeypatch):
    monkeypatch.setattr(memory, "_FREED_AT_ONCE", 10_000)
    state = ShardState(rich(sliding(5 * MINUTE, MINUTE)), "h0")
    apply(state, [f"t{i}" for i in range(500)], START)
    owners = [array if array.base is None else array.base for array in state._state]
    before = sum(owner.nbytes for owner in owners)
    state.dissolve()

    assert before > 10_000 * len(owners)
    assert all(owner.nbytes <= 10_000 for owner in owners)


def test_each_item_is_a_cache_line_of_its_own_however_often_their_memory_grows():
    state = ShardState(rich(sliding(5 * MINUTE, MINUTE)), "h0")
    n_rows = []
    for turn in range(3):
        apply(state, [f"text {i}" for i in range(10 ** (turn + 1))], START + turn * MINUTE)
        items = state._state.items
        assert (items.strides[0], items.ctypes.data % 64) == (64, 0)
        assert state._state.item_links.ctypes.data == items.ctypes.data
        n_rows.append(len(items))

    assert n_rows == sorted(set(n_rows))


def test_more_rows_than_numbers_of_32_bits_tell_apart_are_refused_and_nothing_is_allocated():
    assert np.iinfo(np.int32).max >= MOST_ROWS - 1
    with pytest.raises(MemoryError, match=r"a shard needs room for 2,147,483,649 .* at most 2,147,483,648: divide"):
        lines(MOST_ROWS + 1, 8)


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, pickle.dumps], ids=["deep", "shallow", "pickled"])
def test_a_state_is_not_copied_because_the_kernel_would_write_to_the_first_one(copied):
    with pytest.raises(TypeError, match="use to_bytes and from_bytes"):
        copied(ShardState(view(Wanted("n", "count", sliding(5 * SECOND, SECOND))), "h0"))
