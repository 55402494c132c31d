"""The key directory against a dict."""

import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.histories import laws
from unskew.features.kernel.directory import D_SEED, R_HASH, Directories, Directory, remove_rows
from unskew.features.text_buffers import Keys

KEYS = st.lists(st.one_of(st.integers(0, 400).map(str), st.text(max_size=12)), max_size=150)


def _keys(texts: list[str]) -> Keys:
    return Keys.of(pl.Series(texts, dtype=pl.String))


@laws(max_examples=60)
@given(st.lists(st.tuples(KEYS, st.randoms(use_true_random=False)), max_size=8))
def test_a_key_keeps_its_row_until_it_is_removed_and_no_two_share_one(steps: list) -> None:  # type: ignore[type-arg]
    directory = Directory()
    model: dict[str, int] = {}
    for texts, random in steps:
        rows, fresh = directory.insert(_keys(texts))
        for text, row in zip(texts, rows.tolist(), strict=True):
            assert model.setdefault(text, row) == row
        assert len(fresh) == len(set(fresh.tolist()))
        assert len(set(model.values())) == len(model) == len(directory)
        gone = [text for text in model if random.random() < 0.4]
        remove_rows(directory.arrays, np.array([model.pop(text) for text in gone], np.int32))
        assert (directory.find(_keys(gone)) == -1).all()
        assert directory.find(_keys(list(model))).tolist() == list(model.values())
        assert directory.gather(directory.rows()).to_series("key").to_list() == sorted(model, key=model.__getitem__)


@laws(max_examples=60)
@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 30), KEYS, st.randoms(use_true_random=False)), max_size=8),
    KEYS,
)
def test_keys_are_found_in_the_first_of_the_other_groups(sizes: list[int], steps: list, asked: list[str]) -> None:  # type: ignore[type-arg]
    """Directories grow, lose keys and get them again after they were put together."""
    groups = [[Directory() for _ in range(size)] for size in sizes]
    together = Directories(groups)
    flat = [(number, directory) for number, group in enumerate(groups) for directory in group]
    model: list[set[str]] = [set() for _ in flat]
    for place, texts, random in steps:
        held, (_, directory) = model[place % len(flat)], flat[place % len(flat)]
        directory.insert(_keys(texts))
        held.update(texts)
        gone = [text for text in held if random.random() < 0.3]
        if gone:
            remove_rows(directory.arrays, directory.find(_keys(gone)))
        held.difference_update(gone)

        for own in range(len(groups)):
            expected = []
            for text in asked:
                where = [
                    number for (number, _), held in zip(flat, model, strict=True) if text in held and number != own
                ]
                expected.append(min(where, default=-1))
            assert together.other_than(own, _keys(asked)).tolist() == expected


@pytest.mark.parametrize("length", [0, 8, 24, 25, 300])
@pytest.mark.parametrize("count", [1, 2, 1000, 1001])
def test_keys_of_any_length_and_number_are_gathered(length: int, count: int) -> None:
    texts = [f"{number}{'x' * length}" for number in range(count)]
    directory = Directory()
    rows, _ = directory.insert(_keys(texts))

    assert directory.gather(rows[::-1].copy()).to_series("key").to_list() == texts[::-1]


def test_churn_of_keys_does_not_grow_the_directory() -> None:
    directory = Directory()
    for step in range(200):
        rows, _ = directory.insert(_keys([f"key-{step}-{index}" for index in range(500)]))
        remove_rows(directory.arrays, rows)

    assert len(directory) == 0
    assert directory.capacity <= 1000
    assert len(directory.arrays.pool) <= 50_000


@pytest.mark.parametrize("most", [1, 7, 100, 5000])
def test_live_rows_come_piece_by_piece_whatever_is_free_between(most: int) -> None:
    directory = Directory()
    rows, _ = directory.insert(_keys([str(number) for number in range(3000)]))
    remove_rows(directory.arrays, rows[(rows % 5 == 0) | ((rows > 400) & (rows < 2600))])
    live = directory.rows().tolist()
    found: list[int] = []
    first = 0
    while len(piece := directory.rows_from(first, most)):
        assert len(piece) == min(most, len(live) - len(found))
        found += piece.tolist()
        first = found[-1] + 1

    assert found == live
    assert len(live) < 1000


def _probes(directory: Directory) -> float:
    """Return how many slots away from its home a key lies, on average."""
    slots, records = directory.arrays.slots, directory.arrays.records
    taken = np.flatnonzero(slots != -1)
    homes = records[slots[taken] & 0xFFFFFFFF, R_HASH] & (len(slots) - 1)
    return float(((taken - homes) & (len(slots) - 1)).mean())


def _same_home(directory: Directory, count: int) -> list[str]:
    """Return keys that all begin in one of 64 neighbouring slots of a table of 2^14, as this directory hashes them."""
    rows, _ = directory.insert(_keys([f"hostile-key-{number}" for number in range(300 * count)]))
    near = directory.arrays.records[rows, R_HASH] & ((1 << 14) - 1) < 64
    return [f"hostile-key-{number}" for number in np.flatnonzero(near)[:count]]


def test_keys_made_to_collide_in_one_process_do_not_collide_in_another() -> None:
    hostile = _same_home(Directory(), 800)
    knowing, unknowing = Directory(), Directory()
    there = "from unskew.features.kernel.directory import D_SEED, Directory; print(Directory().arrays.scalars[D_SEED])"
    unknowing.arrays.scalars[D_SEED] = int(subprocess.check_output([sys.executable, "-c", there]))
    for directory in (knowing, unknowing):
        directory.reserve(6000, 100_000)
        directory.insert(_keys(hostile))
        assert len(directory.arrays.slots) == 1 << 14
        assert directory.find(_keys(hostile)).tolist() == list(range(len(hostile)))

    assert len(hostile) == 800
    assert _probes(knowing) > 100
    assert _probes(unknowing) < 1


@pytest.mark.parametrize("pattern", ["{}", "{:08d}", "{:016d}", "user-{}", "a-long-common-beginning-{}"])
def test_keys_that_differ_little_lie_near_their_homes(pattern: str) -> None:
    directory = Directory()
    directory.insert(_keys([pattern.format(number) for number in range(50_000)]))

    # Half of the table is full at most: linear probing looks at half a slot too many then (Knuth, volume 3, 6.4).
    assert _probes(directory) < 0.6


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 15, 16, 17])
def test_keys_around_the_length_of_a_word_are_told_apart_and_come_back(length: int) -> None:
    texts = [("x" * length)[:place] + "y" + ("x" * length)[place + 1 :] for place in range(length)] + ["x" * length]
    directory = Directory()
    rows, fresh = directory.insert(_keys(texts))

    assert len(fresh) == len(texts) == len(set(rows.tolist()))
    assert directory.gather(rows).to_series("key").to_list() == texts


@laws(max_examples=200)
@given(
    st.text(max_size=12),
    st.lists(st.text(alphabet="\x00ab\u00e9\U0001f600", max_size=14), unique=True, max_size=30),
)
def test_keys_are_in_the_order_of_their_bytes_whatever_they_begin_with(prefix: str, ends: list[str]) -> None:
    texts = [prefix + end for end in ends]

    in_order = sorted(text.encode() for text in texts)

    assert [texts[place].encode() for place in _keys(texts).order().tolist()] == in_order

    twice, groups = [text for text in texts for _ in range(2)], np.arange(2 * len(texts)) % 2
    order = _keys(twice).order(groups)
    assert [twice[place].encode() for place in order.tolist()] == in_order + in_order
    assert groups[order].tolist() == [0] * len(texts) + [1] * len(texts)


@pytest.mark.parametrize("chosen", [[], [0], [1, 3], [0, 1, 2, 3]], ids=str)
def test_chosen_keys_are_those_that_a_filter_leaves(chosen):
    texts = pl.Series(["", "straße", "x", "", "y"])
    keys = Keys.of(texts[1:])
    flags = np.isin(np.arange(4), chosen)

    assert keys.chosen(flags).to_series("").to_list() == texts[1:].filter(pl.Series(flags)).to_list()
