import polars as pl
import pytest

from unskew.features.selecting import framed, joined
from unskew.sinks.gathered import AT_ONCE, Gathered


def frame(begin: int, n_rows: int) -> pl.DataFrame:
    numbers = range(begin, begin + n_rows)
    return pl.DataFrame(
        {
            "n": pl.Series(numbers, dtype=pl.Int64),
            "text": pl.Series([f"a text of many letters, {n}" if n % 5 else None for n in numbers], dtype=pl.String),
            "list": pl.Series([[n] * (n % 3) for n in numbers], dtype=pl.List(pl.Int32)),
            "kind": pl.Series(["a" if n % 2 else "b" for n in numbers], dtype=pl.Enum(["a", "b"])),
        }
    )


@pytest.mark.parametrize("n_rows", [1, 2, 500])
@pytest.mark.parametrize("n_frames", [1, AT_ONCE - 1, AT_ONCE, 3 * AT_ONCE + 2])
def test_gathered_frames_are_the_same_rows_in_their_order(n_frames, n_rows):
    frames = [frame(n * n_rows, n_rows) for n in range(n_frames)]
    gathered = Gathered()
    for one in frames:
        gathered.append(one)
    before = [one.clone() for one in frames]

    assert pl.concat(gathered.frames()).equals(pl.concat(frames))
    whole = gathered.whole()
    gathered.append(frame(n_frames * n_rows, 1))

    assert whole.equals(frame(0, n_frames * n_rows))
    assert gathered.whole().equals(frame(0, n_frames * n_rows + 1))
    assert gathered.n_rows == n_frames * n_rows + 1
    # They belong to whoever appended them.
    assert all(one.equals(same) for one, same in zip(frames, before, strict=True))


def test_hundreds_of_frames_are_few_at_the_end():
    gathered = Gathered()
    for n in range(1_000):
        gathered.append(frame(n, 1))

    assert len(gathered.frames()) < 1_000 / AT_ONCE + AT_ONCE


def test_nothing_is_left_once_all_is_taken():
    gathered = Gathered()
    for n in range(AT_ONCE + 1):
        gathered.append(frame(n, 1))
    gathered.clear()
    gathered.append(frame(7, 2))

    assert gathered.n_rows == 2
    assert gathered.whole().equals(frame(7, 2))


def test_frames_are_joined_in_one_piece():
    whole = joined([frame(0, 3), frame(3, 4)])

    assert whole.equals(frame(0, 7))
    assert {column.n_chunks() for column in whole.get_columns()} == {1}


def test_a_frame_of_columns_is_what_the_constructor_makes():
    for width in (1, 4):
        columns = frame(0, 5).get_columns()[:width]
        assert framed(columns).equals(pl.DataFrame(columns))
