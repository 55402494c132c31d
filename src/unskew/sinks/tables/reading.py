"""Reading of published Parquet files: a damaged file is named, and rows that compaction moves are found again."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import polars as pl

from unskew.features.errors import LayoutError
from unskew.sinks.tables.checksum import RESTORE, WRITTEN_BY_UNSKEW, verify, verify_all
from unskew.sinks.tables.layout import LEFT_OUT, published_files

_Answer = TypeVar("_Answer")
_Part = TypeVar("_Part")

_UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException)


def answer(
    parts: Sequence[_Part],
    path_of: Callable[[_Part], Path],
    use: Callable[[Sequence[_Part]], _Answer],
    *,
    footer_has: bytes = WRITTEN_BY_UNSKEW,
) -> _Answer:
    """Verify the files of ``parts``, and return what ``use`` reads from them.

    Raises ``LayoutError``, which names the file, for one that is damaged or does not belong there, and
    ``FileNotFoundError`` for one that is gone.
    """
    verify_all(map(path_of, parts), footer_has=footer_has)
    try:
        return use(parts)
    except _UNREADABLE as error:
        # Only a file without a checksum, of an earlier version, comes here damaged.
        path, why = _culprit(parts, path_of, use)
        where = path or f"one of {len(parts)} files, the first of them {path_of(parts[0])},"
        raise LayoutError(
            f"{where} cannot be read ({_first_line(why or error)}): it is damaged, or has other columns; {RESTORE}"
        ) from error


def answer_of_table(
    root: Path, query: Callable[[Sequence[Path]], _Answer], *, since: str = "", writer: str | None = None
) -> _Answer:
    """Return what ``query`` reads from all published files of a table, each row once; lists them again if one is gone.

    ``since``: the name of the first day folder to read. ``writer``: whose files; None for all.
    Raises ``LayoutError`` as ``answer`` does.
    """
    listed: list[Path] | None = None
    while True:
        paths = [file.path for file in published_files(root, writer) if file.path.parent.name >= since]
        try:
            return answer(paths, lambda path: path, query)
        except FileNotFoundError as error:
            if paths == listed:
                raise gone(root, error) from error
            listed = paths


def schema_of(path: Path) -> pl.Schema:
    """Return the columns of a Parquet file, whatever characters its path has."""
    return pl.scan_parquet(path, glob=False, hive_partitioning=False).collect_schema()


def metadata_of(path: Path) -> dict[str, str]:
    """Return the metadata in a file's footer; raises as ``answer`` does."""
    try:
        return pl.read_parquet_metadata(path)
    except FileNotFoundError:
        raise
    except (*_UNREADABLE, OSError) as error:
        verify(path)
        raise LayoutError(f"{path} cannot be read ({_first_line(error)}): it is damaged; {RESTORE}") from error


def n_left_out(path: Path) -> int:
    """Return how many rows a file's name covers and the file does not hold, because they were erased."""
    return int(metadata_of(path).get(LEFT_OUT, 0))


def gone(root: Path, error: FileNotFoundError) -> LayoutError:
    """Return the error for a file that is listed and cannot be opened: a link to nowhere."""
    return LayoutError(f"{root}: {error}; {RESTORE}")


def _culprit(
    parts: Sequence[_Part], path_of: Callable[[_Part], Path], use: Callable[[Sequence[_Part]], object]
) -> tuple[Path | None, BaseException | None]:
    """Return the file that cannot be read, and why; None if each can be read on its own and all have equal columns."""
    for part in parts:
        try:
            use([part])
        except _UNREADABLE as error:
            return path_of(part), error
    schemas = {path: schema_of(path) for path in map(path_of, parts)}
    columns = {
        path: tuple(sorted((name, str(kind)) for name, kind in schema.items())) for path, schema in schemas.items()
    }
    usual = Counter(columns.values()).most_common(1)[0][0]
    return next(((path, None) for path, found in columns.items() if found != usual), (None, None))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
