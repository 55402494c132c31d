"""Words of rows as typed columns."""

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from unskew.features.jit import compiled
from unskew.features.kernel import words as w
from unskew.features.kernel.directory import Directory
from unskew.features.kernel.shown_texts import ShownTexts
from unskew.features.plan import FeaturePlan
from unskew.features.text_buffers import arrow, validity
from unskew.features.types import MAP_KEY, MAP_VALUE, Type

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_OTHER = "other"


def column(
    feature: FeaturePlan,
    first: Ints,
    others: Ints,
    begin: int,
    order: Ints | None,
    present: Bools,
    texts: Directory | ShownTexts,
) -> pl.Series:
    """Return a feature's column; null where the value is not present.

    ``first``: the feature's first word of every row. ``others``: int64 [rows, words]; its other words are those from
    ``begin`` on. ``order``: the places of rows in the order of the column; without it the column may keep the words, so
    they must not change afterwards. ``present``: in the order of the column. ``texts``: those that numbers stand for.
    """
    # Places are valid, so no mode need check them.
    first = first if order is None else first.take(order, mode="clip")
    if not feature.dtype.nesting:
        return _scalars(feature.name, feature.dtype, first, present, texts)
    ends = np.concatenate(([0], np.cumsum(np.where(present, first, 0))))
    return _nested(feature, others, begin, np.arange(len(first)) if order is None else order, ends, present, texts)


def _scalars(name: str, dtype: Type, numbers: Ints, present: Bools, texts: Directory | ShownTexts) -> pl.Series:
    match dtype.scalar:
        case "float64":
            return series(name, numbers.view(np.float64), present)
        case "int64":
            return series(name, numbers, present)
        case "bool":
            return series(name, numbers != 0, present)
        case "timestamp":
            return series(name, numbers, present).cast(dtype.polars)
        case "string":
            held = _texts(name, numbers[present], texts)
            return held if present.all() else _spread(held, present)
        case "decimal":
            return pl.Series(name, _decimals(numbers, present, dtype.scale))


def series(name: str, numbers: npt.NDArray[Any], present: Bools) -> pl.Series:
    """Return a column of numbers, null where the value is not present; it keeps the array, which must not change."""
    if present.all():
        return pl.Series(name, numbers)
    # Several times as quick as a mask, which Arrow takes apart value by value.
    held = np.packbits(numbers, bitorder="little") if numbers.dtype == np.bool_ else np.ascontiguousarray(numbers)
    buffers = [pa.py_buffer(np.packbits(present, bitorder="little")), pa.py_buffer(held)]
    return pl.Series(name, pa.Array.from_buffers(pa.from_numpy_dtype(numbers.dtype), len(numbers), buffers))


def _texts(name: str, codes: Ints, texts: Directory | ShownTexts) -> pl.Series:
    """Return the texts that codes stand for; each is made once where a few occur often."""
    if len(codes) < texts.capacity:
        named = codes != w.OTHER_KEY
        held = texts.gather(codes[named].astype(np.int32)).to_series(name)
        return held if named.all() else _spread(held, named).fill_null(_OTHER)
    numbers = np.zeros(texts.capacity + 1, np.uint32)
    distinct, places = np.empty(texts.capacity + 1, np.int32), np.empty(len(codes), np.uint32)
    n_distinct = number_texts(codes, numbers, distinct, places)
    each = pl.Series(name, [_OTHER]).append(texts.gather(distinct[1:n_distinct]).to_series(name))
    # From one piece; from several, Polars gathers texts one by one.
    return each.rechunk()[pl.Series(places)]


@compiled()
def number_texts(codes: Any, numbers: Any, distinct: Any, places: Any) -> int:
    """Write for each code the place of its text among the ``distinct`` ones; return how many there are.

    The first is that of OTHER_KEY, which stands for no text. ``numbers``: 0 for each code.
    """
    n_distinct = 1
    for index in range(len(codes)):
        code = codes[index]
        if code == w.OTHER_KEY:
            places[index] = 0
            continue
        if numbers[code] == 0:
            numbers[code] = n_distinct
            distinct[n_distinct] = code
            n_distinct += 1
        places[index] = numbers[code]
    return n_distinct


def _spread(held: pl.Series, present: Bools) -> pl.Series:
    """Return the values of present rows at their places, with nulls between them."""
    places = series("", np.cumsum(present) - 1, present)
    return held[places.cast(pl.UInt32)] if len(held) else pl.Series(held.name, [None] * len(present), held.dtype)


def _decimals(units: Ints, present: Bools, scale: int) -> pa.Array:
    """Return units of the last digit as decimals: 128 bits each, the upper half all sign."""
    wide = np.stack((units, units >> 63), axis=1)
    return pa.Array.from_buffers(
        pa.decimal128(38, scale), len(units), [validity(present), pa.py_buffer(wide.tobytes())]
    )


@compiled()
def take_items(words: Any, first: int, order: Any, ends: Any, items: Any) -> None:
    """Write the items of rows, which lie at the places ``order``, to ``items``: a row's up to its place in ``ends``.

    An item is a word of each row of ``items``; in ``words``, items of a row begin at the word ``first``.
    """
    n_parts = len(items)
    # Part by part: to go through the few parts of each item takes twice as long.
    for part in range(n_parts):
        for row in range(len(order)):
            place = first + part
            for item in range(ends[row], ends[row + 1]):
                items[part, item] = words[order[row], place]
                place += n_parts


def _nested(
    feature: FeaturePlan,
    words: Ints,
    first: int,
    order: Ints,
    ends: Ints,
    present: Bools,
    texts: Directory | ShownTexts,
) -> pl.Series:
    """Return lists (a word for the length, then the items) or maps (the length, then pairs of key and value)."""
    inner = feature.dtype.element
    is_map = feature.dtype.nesting == "map"
    items = np.empty((2 if is_map else 1, int(ends[-1])), np.int64)
    take_items(words, first, order, ends, items)
    flat = _scalars(MAP_VALUE, inner, items[-1], np.ones(items.shape[1], np.bool_), texts)
    if is_map:
        flat = pl.DataFrame([_texts(MAP_KEY, items[0], texts), flat]).to_struct("")
    # As Polars holds texts, else they would be copied twice.
    array = flat.to_arrow(compat_level=pl.CompatLevel.newest())
    lists = pa.LargeListArray.from_arrays(arrow(ends), array, mask=None if present.all() else arrow(~present))
    return pl.Series(feature.name, lists, feature.dtype.polars)
