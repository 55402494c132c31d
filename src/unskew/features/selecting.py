"""Frames of columns, expressions over them, and choices of rows, in the way that costs less for their number."""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

FEW_ROWS = 20_000
"""With fewer rows, handing expressions to Polars' threads costs more than it saves."""
_VIEWS, _OFFSETS = pl.CompatLevel.newest(), pl.CompatLevel.oldest()
"""Texts as views into buffers, which other rows may share, or one after the other in a buffer of their own."""


def select(frame: pl.DataFrame, expressions: pl.Expr | Iterable[pl.Expr]) -> pl.DataFrame:
    """Return the columns that ``DataFrame.select`` gives."""
    return frame.select_seq(expressions) if frame.height < FEW_ROWS else frame.select(expressions)


def framed(columns: Sequence[pl.Series]) -> pl.DataFrame:
    """Return a frame of columns, at least one, several times as fast as the constructor, which checks much more."""
    frame = columns[0].to_frame()
    frame.hstack(list(columns[1:]), in_place=True)
    return frame


def filtered(frame: pl.DataFrame, chosen: pl.Series) -> pl.DataFrame:
    """Return the rows that ``DataFrame.filter`` gives; the frame has columns."""
    if frame.height >= FEW_ROWS:
        return frame.filter(chosen)
    return framed([column.filter(chosen) for column in frame.get_columns()])


def gathered(frame: pl.DataFrame, places: npt.NDArray[np.int64]) -> pl.DataFrame:
    """Return the rows at places, in their order, as ``frame[places]`` does."""
    # Numbers of Polars' own type need no look for negative ones.
    return frame[pl.Series(places.astype(np.uint32))]


def own_texts(frame: pl.DataFrame) -> pl.DataFrame:
    """Return the same rows, without a trace of others in memory.

    Polars keeps the bytes of texts when their rows are filtered out, and writes them to Arrow IPC. Columns of lists and
    maps are left as they are.
    """
    columns = frame.get_columns()
    has_changed = False
    for place, column in enumerate(columns):
        # Two buffers, validity and views, hold all of a column with no text of more than twelve bytes.
        if column.dtype == pl.String and len(column.to_arrow(compat_level=_VIEWS).buffers()) > 2:
            columns[place] = pl.Series(column.name, column.to_arrow(compat_level=_OFFSETS))
            has_changed = True
    return framed(columns) if has_changed else frame


def bytes_of_texts(column: pl.Series) -> list[bytes]:
    """Return all bytes that a column of texts has in memory, also those of rows that were filtered out."""
    return [held.to_pybytes() for held in column.to_arrow(compat_level=_VIEWS).buffers() if held is not None]


def joined(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Return the rows of frames with equal columns, at least one frame, as one frame in one piece.

    In the calling thread: ``pl.concat`` hands the columns to other threads, and on a busy processor waits many times as
    long for them as few rows take.
    """
    if len(frames) == 1:
        return frames[0]
    whole = frames[0].clone()
    for frame in frames[1:]:
        whole.vstack(frame, in_place=True)
    return framed([column.rechunk() for column in whole.get_columns()])
