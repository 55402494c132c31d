"""Words of rows as typed columns."""

from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from unskew.features.kernel import words as w
from unskew.features.kernel.directory import Directory
from unskew.features.plan import FeaturePlan
from unskew.features.types import MAP_KEY, MAP_VALUE, STRING, Type

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_OTHER = "other"


def column(feature: FeaturePlan, words: Ints, present: Bools, texts: Directory) -> pl.Series:
    """Return a feature's column; null where the value is not present.

    ``words``: int64 [width, rows]; the column may keep them, so they must not change afterwards. ``texts``: the
    directory whose rows stand for texts.
    """
    if feature.dtype.nesting:
        return _nested(feature, words, present, texts)
    return _scalars(feature.name, feature.dtype, words[0], present, texts)


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
            held = texts.gather(numbers[present].astype(np.int32)).to_series(name)
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


def _spread(held: pl.Series, present: Bools) -> pl.Series:
    """Return the values of present rows at their places, with nulls between them."""
    places = series("", np.cumsum(present) - 1, present)
    return held.gather(places) if len(held) else pl.Series(held.name, [None] * len(present), held.dtype)


def _decimals(units: Ints, present: Bools, scale: int) -> pa.Array:
    """Return units of the last digit as decimals: 128 bits each, the upper half all sign."""
    wide = np.stack((units, units >> 63), axis=1)
    mask = None if present.all() else pa.array(present).buffers()[1]
    return pa.Array.from_buffers(pa.decimal128(38, scale), len(units), [mask, pa.py_buffer(wide.tobytes())])


def _nested(feature: FeaturePlan, words: Ints, present: Bools, texts: Directory) -> pl.Series:
    """Return lists (a word for the length, then the items) or maps (the length, then pairs of key and value)."""
    lengths = np.where(present, words[0], 0)
    ends = np.concatenate(([0], np.cumsum(lengths)))
    inner = feature.dtype.element
    if feature.dtype.nesting == "map":
        keys, values = words[1::2].T, words[2::2].T
        filled = np.arange(keys.shape[1]) < lengths[:, None]
        every = np.ones(int(ends[-1]), np.bool_)
        codes = keys[filled]
        named = codes != w.OTHER_KEY
        names = _scalars(MAP_KEY, STRING, np.where(named, codes, 0), named, texts).fill_null(_OTHER)
        held = _scalars(MAP_VALUE, inner, values[filled], every, texts)
        flat = pl.DataFrame([names, held]).to_struct("")
    else:
        items = words[1:].T
        filled = np.arange(items.shape[1]) < lengths[:, None]
        flat = _scalars("", inner, items[filled], np.ones(int(ends[-1]), np.bool_), texts)
    array = flat.to_arrow()
    lists = pa.LargeListArray.from_arrays(
        pa.array(ends, pa.int64()), array, mask=None if present.all() else pa.array(~present)
    )
    return pl.Series(feature.name, lists, feature.dtype.polars)
