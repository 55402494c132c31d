"""Reading of published Parquet files: a damaged file is named, and rows that compaction moves are found again."""

import datetime as dt
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import polars as pl

from unskew.features.errors import LayoutError
from unskew.sinks.objects import at_hand, concerns
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

    ``parts``: paths, or what has a ``path``; ``use`` gets those of objects with the paths of copies on this machine.
    Raises ``LayoutError``, which names the file, for one that is damaged or does not belong there, and
    ``FileNotFoundError`` for one that is gone.
    """
    paths = [path_of(part) for part in parts]
    with at_hand(paths) as there:
        verify_all(paths, footer_has=footer_has)
        readable = [_moved(part, there) for part in parts] if concerns(*paths) else parts
        try:
            return use(readable)
        except _UNREADABLE as error:
            # Only a file without a checksum, of an earlier version, comes here damaged.
            path, why = _culprit(readable, paths, [there[path] for path in paths], use)
            where = path or f"one of {len(parts)} files, the first of them {paths[0]},"
            raise LayoutError(
                f"{where} cannot be read ({_first_line(why or error)}): it is damaged, or has other columns; {RESTORE}"
            ) from error


def _moved(part: _Part, there: Mapping[Path, Path]) -> _Part:
    """Return a part as it is on this machine."""
    if isinstance(part, Path):
        return cast("_Part", there[part])
    one: Any = part
    return cast("_Part", replace(one, path=there[one.path]))


def answer_of_table(
    root: Path, query: Callable[[Sequence[Path]], _Answer], *, since: dt.date | None = None, writer: str | None = None
) -> _Answer:
    """Return what ``query`` reads from all published files of a table, each row once; lists them again if one is gone.

    ``since``: the first day to read; None reads all. ``writer``: whose files; None for all.
    Raises ``LayoutError`` as ``answer`` does.
    """
    listed: list[Path] | None = None
    while True:
        files = published_files(root, writer)
        paths = [file.path for file in files if since is None or file.last_day >= since]
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
        with at_hand([path]) as there:
            return pl.read_parquet_metadata(there[path])
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
    parts: Sequence[_Part], paths: Sequence[Path], copies: Sequence[Path], use: Callable[[Sequence[_Part]], object]
) -> tuple[Path | None, BaseException | None]:
    """Return the file that cannot be read, and why; None if each can be read on its own and all have equal columns."""
    for part, path in zip(parts, paths, strict=True):
        try:
            use([part])
        except _UNREADABLE as error:
            return path, error
    schemas = {path: schema_of(copy) for path, copy in zip(paths, copies, strict=True)}
    columns = {
        path: tuple(sorted((name, str(kind)) for name, kind in schema.items())) for path, schema in schemas.items()
    }
    usual = Counter(columns.values()).most_common(1)[0][0]
    return next(((path, None) for path, found in columns.items() if found != usual), (None, None))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
