"""What grows with the entities, items, texts and ids of a shard grows where it lies or little by little."""

import random
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.histories import laws
from tests.support.plans import MINUTE, SECOND, Wanted, events, sliding, view
from unskew.features import shard_state
from unskew.features.evaluate import evaluate
from unskew.features.kernel import directory as directories
from unskew.features.kernel import memory, text_sweep
from unskew.features.kernel import words as w
from unskew.features.kernel.directory import D_MOVED, EMPTY, Directory, remove_rows
from unskew.features.kernel.memory import MOST_ROWS, capacity_for, free, grown, lines
from unskew.features.shard_state import ShardState
from unskew.features.text_buffers import Keys
from unskew.monitoring.recount import Recount, identical

TEXT = {"s": pl.String()}
_LARGE = 1 << 20


def _address(array):
    return array.ctypes.data


@pytest.mark.parametrize("make", [lambda n: lines(n, 8), lambda n: lines(n, 11), lambda n: grown(lines(8, 3), n)])
def test_a_large_array_grows_where_it_lies_and_a_small_one_is_copied(make):
    small, large = make(16), make(_LARGE)
    for array in (small, large):
        array[:] = np.arange(array.size).reshape(array.shape)
    before = [array.copy() for array in (small, large)]
    longer = [grown(small, 32), grown(large, 3 * _LARGE)]

    assert _address(longer[0]) != _address(small)
    assert _address(longer[1]) == _address(large)
    for array, held in zip(longer, before, strict=True):
        assert _address(array) % 64 == 0
        assert (array[: len(held)] == held).all()
        array[len(held) :] = 7
        assert (array[: len(held)] == held).all()


def test_an_array_that_has_used_up_its_addresses_is_copied(monkeypatch):
    monkeypatch.setattr(memory, "_PART_OF_ADDRESSES", memory._most_addresses() >> 27)
    array = lines(_LARGE, 8)
    array[:] = 1
    longer = grown(array, 4 * _LARGE)

    assert _address(longer) != _address(array)
    assert (longer[:_LARGE] == 1).all()


def test_no_more_addresses_are_taken_than_leave_some_for_others():
    """Each array takes a part of those that are left, so that their sum stays below what a process may take."""
    arrays = [lines(1 << 19, 8) for _ in range(300)]
    taken = memory._addresses_taken()
    places = {_address(array) for array in arrays}

    assert len(places) == 300
    assert taken < memory._most_addresses()


def test_memory_is_free_after_it_was_freed_little_by_little():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    array = lines(_LARGE, 16)
    before = resident()
    array[:] = 1
    held = resident()
    free(array)

    assert held - before > 100 << 20
    assert resident() - before < 20 << 20


def test_an_array_takes_the_rest_of_its_addresses_if_that_is_enough(monkeypatch):
    left = memory._most_addresses() - memory._addresses_taken()
    monkeypatch.setattr(memory, "_PART_OF_ADDRESSES", left // (160 << 20))
    array = lines(_LARGE, 8)
    array[:] = 1
    longer = grown(array, 4 * _LARGE, _LARGE + 100_000)

    assert _address(longer) == _address(array)
    assert 2 * _LARGE < len(longer) < 4 * _LARGE
    longer[_LARGE:] = 2
    assert _address(grown(longer, 4 * _LARGE, 3 * _LARGE)) != _address(array)


def test_where_it_is_not_known_how_many_addresses_are_taken_arrays_are_copied(monkeypatch):
    def none():
        raise FileNotFoundError("/proc")

    monkeypatch.setattr(memory, "_addresses_taken", none)
    monkeypatch.setattr(memory, "_most_addresses", memory._most_addresses.__wrapped__)
    array = lines(_LARGE, 8)
    array[:] = 1

    assert _address(grown(array, 2 * _LARGE)) != _address(array)


def test_bytes_of_keys_are_not_limited_like_rows():
    directory = Directory()
    directory.reserve(1, MOST_ROWS // 2 + 1)

    assert len(directory.arrays.pool) > MOST_ROWS


@pytest.mark.parametrize(("needed", "n_now", "capacity"), [(5, 4, 8), (9, 4, 9), (MOST_ROWS, MOST_ROWS - 1, MOST_ROWS)])
def test_there_is_room_for_twice_as_many_up_to_the_limit(needed, n_now, capacity):
    assert capacity_for(needed, n_now) == capacity


_WITHOUT_ADDRESSES = """
import resource, sys
limit = getattr(resource, sys.argv[1])
resource.setrlimit(limit, (1 << 36, 1 << 36))
from unskew.features.kernel import memory
array = memory.lines(1 << 20, 8)
array[:] = 3
longer = memory.grown(array, 1 << 21)
assert longer.ctypes.data != array.ctypes.data
assert (longer[: 1 << 20] == 3).all()
memory.free(longer)
assert memory._addresses_taken() < 1 << 33
"""


@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_where_addresses_are_limited_arrays_are_copied(limit):
    subprocess.run([sys.executable, "-c", _WITHOUT_ADDRESSES, limit], check=True)


def _keys(texts):
    return Keys.of(pl.Series(texts, dtype=pl.String))


def _in_next(directory):
    """Return the rows in the table that takes the place of the present one."""
    slots = directory.arrays.next_slots[: directory._n_ready]
    return sorted((slots[slots != EMPTY] & 0xFFFFFFFF).tolist())


@laws(max_examples=40)
@given(st.integers(0, 1 << 30), st.integers(1, 9), st.integers(1, 40), st.integers(1, 12))
def test_keys_keep_their_rows_while_they_move_to_a_larger_table(seed, n_at_once, slots_a_key, moved_a_key):
    chosen = random.Random(seed)
    directory = Directory()
    model: dict[str, int] = {}
    n_moving = n_tables = 0
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("_SLOTS_A_KEY", slots_a_key), ("_LEAST_SLOTS", 1), ("_MOVED_A_KEY", moved_a_key), ("_LEAST_MOVED", 1)
        ):  # fmt: skip
            patch.setattr(directories, name, value)
        for step in range(400 // n_at_once):
            n_before = len(directory.arrays.slots)
            texts = [f"key {step} {number}" for number in range(n_at_once)]
            texts += chosen.sample(list(model), min(len(model), 2))
            for text, row in zip(texts, directory.insert(_keys(texts))[0].tolist(), strict=True):
                assert model.setdefault(text, row) == row
            gone = [text for text in chosen.sample(list(model), min(len(model), n_at_once)) if chosen.random() < 0.3]
            remove_rows(directory.arrays, np.array([model.pop(text) for text in gone], np.int32))
            n_tables += len(directory.arrays.slots) != n_before
            moved = int(directory.arrays.scalars[D_MOVED])
            n_moving += moved > 0
            if directory._n_ready == len(directory.arrays.next_slots):
                assert _in_next(directory) == sorted(row for row in model.values() if row < moved)
            assert (directory.find(_keys(gone)) == -1).all()
            assert directory.find(_keys(list(model))).tolist() == list(model.values())

    assert len(set(model.values())) == len(model) == len(directory)
    assert n_tables >= 1
    # A small table moves at once where many keys come, or too few slots are made ready before it is full.
    assert n_moving or n_at_once * moved_a_key > 20 or slots_a_key < 30


def test_half_of_the_slots_are_free_and_no_step_enters_all_keys(monkeypatch):
    directory = Directory()
    moves = []
    move = directories._move

    def noted(scalars, slots, records, end):
        moves.append(end - int(scalars[D_MOVED]))
        move(scalars, slots, records, end)

    monkeypatch.setattr(directories, "_move", noted)
    for first in range(0, 300_000, 100):
        directory.insert(_keys([f"{number}" for number in range(first, first + 100)]))
        assert 2 * len(directory) <= len(directory.arrays.slots)

    assert len(directory.arrays.slots) == 1 << 20
    assert max(moves) == directories._LEAST_MOVED


@pytest.mark.parametrize("n_keys", [48_000, 60_000, 65_536])
def test_a_directory_that_was_filled_at_once_is_not_nearly_full(n_keys):
    directory = Directory()
    directory.insert(_keys([f"{number}" for number in range(n_keys)]))
    restored = Directory.of_rows(*directory.rows_as_they_lie())

    for each in (directory, restored):
        assert 2 * n_keys <= directories._READY_FROM * len(each.arrays.slots)


def test_long_keys_stay_what_they_are_while_their_bytes_grow_and_are_packed():
    directory = Directory()
    held: list[str] = []
    chosen = random.Random(5)
    for step in range(60):
        texts = [f"{'a long beginning ' * 9}{step} {number}" for number in range(700)]
        directory.insert(_keys(texts))
        held += texts
        if step % 3 == 2:
            gone = set(chosen.sample(held, 1500))
            remove_rows(directory.arrays, directory.find(_keys(sorted(gone))))
            held = [text for text in held if text not in gone]
        found = directory.find(_keys(held))
        assert directory.gather(found).to_series("").to_list() == held

    n_bytes = sum(len(text) for text in held)
    assert n_bytes > memory._RESERVED_FROM // 4
    assert len(directory.arrays.pool) < 5 * n_bytes


def _texts_view():
    window = sliding(20 * SECOND, SECOND)
    return view(
        Wanted("latest", "last", window, "s", of="string"),
        Wanted("least", "min", window, "s", of="string"),
        Wanted("different", "count_distinct", window, "s", of="string"),
        Wanted("top", "top_k", window, "s", of="string", parameters={"n": 2}),
        Wanted("by", "count", window, by="s", parameters={"keys": 2}),
        columns=TEXT,
    )


@pytest.mark.parametrize("at_once", [1, 7, 4096])
@pytest.mark.parametrize("seed", range(3))
def test_texts_are_swept_little_by_little_and_values_equal_the_recount(at_once, seed, monkeypatch):
    monkeypatch.setattr(text_sweep, "_LEAST_AT_ONCE", at_once)
    monkeypatch.setattr(text_sweep, "_FOR_EACH_TEXT", 1)
    monkeypatch.setattr(shard_state, "_MIN_TEXTS", 8)
    chosen = random.Random(seed)
    planned = _texts_view()
    rows = []
    for step in range(900):
        at = step * SECOND // 4
        text = chosen.choice([f"text {step}", f"text {step - chosen.randrange(200)}", "always", None])
        rows.append((at, at, {"user": chosen.choice("aabcdefgh"), "s": text, "x": 1.0, "n": step}))
    decoded = events(rows, columns=TEXT)
    recount = Recount(planned, decoded)
    state = ShardState(planned, "h0")
    most = n_steps_of_sweeps = n_compared = 0
    for number, first in enumerate(range(0, len(rows), 3)):
        some = decoded.slice(first, 3)
        found = state.apply(evaluate(planned, some).events, rows[min(first + 3, len(rows) - 1)][0])
        most = max(most, state.n_texts)
        n_steps_of_sweeps += state._sweep is not None
        for row in found.closed[:: 1 if number % 7 == 0 else 3].iter_rows(named=True):
            expected = recount.values((row["user"],), round(row["available_at"].timestamp() * SECOND))
            assert identical({name: row[name] for name in expected}, expected), (row, expected)
            n_compared += 1
        if number % 40 == 39:
            state = ShardState.from_bytes(planned, "h0", state.to_bytes())
    state.apply(None, rows[-1][0] + MINUTE)
    for _ in range(20):
        state.apply(evaluate(planned, decoded.clear()).events, state.clock_us)

    assert n_compared > 500
    assert n_steps_of_sweeps > 10 or at_once == 4096
    # About 40 texts are in the window; in one step at a time as many come as are looked at.
    assert most < 400


def test_what_has_no_texts_does_not_slow_the_sweep_of_texts():
    """Few texts live at a time, beside far more tiles and items of numbers."""
    planned = view(
        Wanted("latest", "last", sliding(5 * SECOND, SECOND), "s", of="string"),
        Wanted("n", "count", sliding(60 * MINUTE, SECOND)),
        Wanted("different", "count_distinct", sliding(60 * MINUTE, SECOND), "n", of="int64"),
        columns=TEXT,
    )
    state = ShardState(planned, "h0")
    most = 0
    for step in range(400):
        at = step * SECOND
        rows = [(at, at, {"user": f"u{step * 61 % 997 + i}", "x": 0.0, "n": i, "s": f"{step} {i}"}) for i in range(200)]
        state.apply(evaluate(planned, events(rows, columns=TEXT)).events, at)
        most = max(most, state.n_texts)

    assert state.n_tiles + state.n_items > 100_000
    # Six steps' texts are live, and kept for a row of the instant before.
    assert most < 5 * 6 * 200


def test_the_table_of_items_has_two_slots_for_each_and_short_chains(monkeypatch):
    monkeypatch.setattr(shard_state, "_MIN_ITEMS", 1)
    state = ShardState(view(Wanted("different", "count_distinct", sliding(MINUTE, SECOND), "n", of="int64")), "h0")
    n_added = []
    for step in range(60):
        at = step * SECOND // 100
        rows = [(at, at, {"user": f"u{i % 13}", "x": 0.0, "n": step * 100 + i}) for i in range(100)]
        before = int(state._state.scalars[w.S_SLOTS])
        state.apply(evaluate(state.view, events(rows)).events, at)
        n_added.append(int(state._state.scalars[w.S_SLOTS]) - before)

    scalars, items = state._state.scalars, state._state.items[: state._state.scalars[w.S_ITEM_HIGH]]
    n_entered = int((items[:, w.ITEM_OWNER] != w.NONE).sum())
    slots = state._state.slots[: scalars[w.S_SLOTS]]
    assert n_entered == int(scalars[w.S_ENTERED]) == 12_000
    assert len(slots) >= 2 * n_entered
    # With two slots for each, e^(-1/2) of the slots are empty.
    assert 0.55 < (slots == w.NONE).mean() < 0.66
    # No step divides more slots than its own events need.
    assert max(n_added[2:]) <= 2 * 2 * 100
