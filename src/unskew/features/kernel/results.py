"""Words of rows as typed columns."""

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from unskew.features.jit import compiled
from unskew.features.kernel import words as w
from unskew.features.kernel.directory import Directory
from unskew.features.plan import FeaturePlan
from unskew.features.types import MAP_KEY, MAP_VALUE, Type

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_OTHER = "other"


def column(feature: FeaturePlan, words: Ints, order: Ints | None, present: Bools, texts: Directory) -> pl.Series:
    """Return a feature's column; null where the value is not present.

    ``words``: int64 [width, rows]. ``order``: the places of rows in the order of the column; without it the column may
    keep the words, so they must not change afterwards. ``present``: in the order of the column. ``texts``: the
    directory whose rows stand for texts.
    """
    # Places are valid, so no mode need check them.
    first = words[0] if order is None else words[0].take(order, mode="clip")
    if not feature.dtype.nesting:
        return _scalars(feature.name, feature.dtype, first, present, texts)
    ends = np.concatenate(([0], np.cumsum(np.where(present, first, 0))))
    return _nested(feature, words, np.arange(len(first)) if order is None else order, ends, present, texts)


def _scalars(name: str, dtype: Type, numbers: Ints, present: Bools, texts: Directory) -> pl.Series:
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


def _texts(name: str, codes: Ints, texts: Directory) -> pl.Series:
    """Return the texts that codes stand for; each is made once where a few occur often."""
    if len(codes) < texts.capacity:
        named = codes != w.OTHER_KEY
        held = texts.gather(codes[named].astype(np.int32)).to_series(name)
        return held if named.all() else _spread(held, named).fill_null(_OTHER)
    # The last place is that of OTHER_KEY.
    occurs = np.zeros(texts.capacity + 1, np.bool_)
    occurs[codes] = True
    places = (np.cumsum(occurs, dtype=np.uint32) - np.uint32(1))[codes]
    each = texts.gather(np.flatnonzero(occurs[:-1]).astype(np.int32)).to_series(name)
    # From one piece; from several, Polars gathers texts one by one.
    return each.append(pl.Series([_OTHER])).rechunk().gather(pl.Series(places))


def _spread(held: pl.Series, present: Bools) -> pl.Series:
    """Return the values of present rows at their places, with nulls between them."""
    places = series("", np.cumsum(present) - 1, present)
    return held.gather(places) if len(held) else pl.Series(held.name, [None] * len(present), held.dtype)


def _decimals(units: Ints, present: Bools, scale: int) -> pa.Array:
    """Return units of the last digit as decimals: 128 bits each, the upper half all sign."""
    wide = np.stack((units, units >> 63), axis=1)
    mask = None if present.all() else pa.array(present).buffers()[1]
    return pa.Array.from_buffers(pa.decimal128(38, scale), len(units), [mask, pa.py_buffer(wide.tobytes())])


def _items(words: Ints, first: int, step: int, order: Ints, ends: Ints) -> Ints:
    """Return the items of all rows, one row after the other: words ``first``, ``first + step`` and so on of each."""
    items = np.empty(int(ends[-1]), np.int64)
    take_items(words, first, step, order, ends, items)
    return items


@compiled()
def take_items(words: Any, first: int, step: int, order: Any, ends: Any, items: Any) -> None:
    """Write the items of rows, which lie at the places ``order``, to ``items``: a row's up to its place in ``ends``."""
    for row in range(len(order)):
        place = first
        for item in range(ends[row], ends[row + 1]):
            items[item] = words[place, order[row]]
            place += step


def _nested(feature: FeaturePlan, words: Ints, order: Ints, ends: Ints, present: Bools, texts: Directory) -> pl.Series:
    """Return lists (a word for the length, then the items) or maps (the length, then pairs of key and value)."""
    inner = feature.dtype.element
    if feature.dtype.nesting == "map":
        names = _texts(MAP_KEY, _items(words, 1, 2, order, ends), texts)
        held = _scalars(MAP_VALUE, inner, _items(words, 2, 2, order, ends), np.ones(int(ends[-1]), np.bool_), texts)
        flat = pl.DataFrame([names, held]).to_struct("")
    else:
        flat = _scalars("", inner, _items(words, 1, 1, order, ends), np.ones(int(ends[-1]), np.bool_), texts)
    # As Polars holds texts, else they would be copied twice.
    array = flat.to_arrow(compat_level=pl.CompatLevel.newest())
    lists = pa.LargeListArray.from_arrays(
        pa.array(ends, pa.int64()), array, mask=None if present.all() else pa.array(~present)
    )
    return pl.Series(feature.name, lists, feature.dtype.polars)
