"""Labels from files: Parquet as they are, CSV with the types that the views' keys and the instants have."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import polars as pl

from unskew.features.errors import RequestError
from unskew.features.time import instant_us
from unskew.features.types import TIMESTAMP, Type
from unskew.features.view import View

_FORMATS = {".parquet": "Parquet", ".csv": "CSV"}
_TEXTS = frozenset({"string", "timestamp", "decimal"})
_CODE = r"^\s*[+-]?0\d"


def read_labels(
    path: Path, views: Iterable[View], timestamp: str, inputs: Mapping[str, Type] | None = None
) -> pl.DataFrame:
    """Return the labels of a file, ``.parquet`` or ``.csv``.

    A CSV file has names in its first line. Its columns of keys have the type that the views' entities have, so that
    ``0042`` stays a text where keys are texts. The column ``timestamp`` has instants in ISO 8601, which are UTC if they
    have no offset. Types of other columns are found from all of their values; those with a number that begins with 0,
    such as a code ``00123``, stay texts, and so do ``inputs`` of on-demand features that are no numbers.

    Raises ``RequestError`` for a file that cannot be read, and for values that are not of these types.
    """
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise RequestError(f"{path}: labels are read from files that end in {' or '.join(_FORMATS)}")
    if not path.is_file():
        what = "it is not a file" if path.exists() else "there is no such file"
        raise RequestError(f"{path}: {what}; give a file with labels")
    try:
        if kind == "Parquet":
            return pl.read_parquet(path, hive_partitioning=False, glob=False)
        return _read_csv(path, views, timestamp, inputs or {})
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, UnicodeError) as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RequestError(f"{path} cannot be read as {kind}: {why}") from error


def _read_csv(path: Path, views: Iterable[View], timestamp: str, inputs: Mapping[str, Type]) -> pl.DataFrame:
    types = {name: dtype for view in views for name, dtype in view.entity.columns.items()}
    # As texts first, because a text that is not a number must be named with its row.
    texts = dict.fromkeys([*types, timestamp], pl.String())
    given = pl.read_csv(path, infer_schema=False, glob=False)
    _refuse_duplicates(path, given.columns)
    # Instants and decimals, too, are read from their texts, and no digit is lost.
    texts |= {name: pl.String() for name, dtype in inputs.items() if dtype.scalar in _TEXTS}
    codes = {
        name: pl.String() for name in given.columns if name not in inputs and given[name].str.contains(_CODE).any()
    }
    frame = pl.read_csv(path, schema_overrides={**codes, **texts}, infer_schema_length=None, glob=False)
    for name, dtype in types.items():
        if name in frame.columns and dtype != pl.String():
            frame = frame.with_columns(
                _converted(
                    path, frame[name], frame[name].str.strip_chars().cast(dtype, strict=False), f"of type {dtype}"
                )
            )
    if timestamp in frame.columns:
        frame = frame.with_columns(_instants(path, frame[timestamp]))
    return frame


def _refuse_duplicates(path: Path, names: Sequence[str]) -> None:
    # Polars gives each repetition of a name another one.
    for name in names:
        stem, mark, number = name.rpartition("_duplicated_")
        if mark and number.isdecimal() and stem in names:
            raise RequestError(f"{path} has two columns {stem!r}; rename one of them")


def _instants(path: Path, texts: pl.Series) -> pl.Series:
    """Return the instants that texts in ISO 8601 name; digits beyond microseconds are cut."""
    instants_us = [None if text is None else _instant_us(text.strip()) for text in texts.to_list()]
    instants = pl.Series(texts.name, instants_us, pl.Int64).cast(TIMESTAMP)
    return _converted(path, texts, instants, "an instant in ISO 8601 with a time, such as 2026-03-01T12:00:00Z")


def _instant_us(text: str) -> int | None:
    # A day is 24 hours long, and only those who made the labels know which instant they mean.
    if len(text) <= len("2026-03-01"):
        return None
    try:
        return instant_us(text)
    except (ValueError, OverflowError):
        return None


def _converted(path: Path, given: pl.Series, values: pl.Series, what: str) -> pl.Series:
    wrong = values.is_null() & given.is_not_null()
    if wrong.any():
        row = int(wrong.arg_max() or 0)
        raise RequestError(f"{path}: {given.name!r} of row {row} is {given[row]!r:.80}, which is not {what}")
    return values.alias(given.name)
