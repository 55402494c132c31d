"""What was imported into an archive: which files, how many rows of each partition, and where the topic takes over.

The rows are files of the archive like any others (``layout.archive_writer``). They count once the record of their
import is there, which is replaced last, so readers see an import whole or not at all.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from unskew.features.errors import LayoutError
from unskew.sinks import durable
from unskew.sinks.tables import checksum, layout


class InputFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file that was read. ``sha256``: of its bytes."""

    name: str
    n_bytes: int
    sha256: str


class Import(msgspec.Struct, frozen=True, kw_only=True):
    """One complete import.

    ``how``: the options that decide what a row becomes. ``rows``: that were taken. ``of_topic``: rows that were left
    out because the topic has their events. ``refused``: rows that were left out because they are not events of the
    stream.
    """

    files: tuple[InputFile, ...]
    how: Mapping[str, str]
    rows: int
    of_topic: int
    refused: int


class HandOver(msgspec.Struct, frozen=True, kw_only=True):
    """The place where a partition's imported rows end and its topic takes over.

    ``rows``: the number of imported rows. ``last_us``: the arrival of the last
    one, or of the stream's first if there is none. ``cut_us``: rows arrived before
    this instant, and events of the topic from there on count. ``offset``: the first offset of the topic that counts.
    ``skipped``: the number of archived events before it, which the imported rows replace. ``since_us``: the instant
    from which the history of the stream is known.
    """

    rows: int
    last_us: int
    since_us: int
    cut_us: int
    offset: int
    skipped: int


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """An import that has not ended.

    ``cuts``: by partition, the instant and the offset at which the topic takes over. ``tables``: by partition, as from
    ``ArchiveTable.snapshot``.
    """

    files: tuple[InputFile, ...]
    how: Mapping[str, str]
    cuts: Mapping[int, tuple[int, int]]
    tables: Mapping[int, Mapping[str, Any]] = {}


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """The record of an archive. ``tables``: the positions of the complete imports, by partition."""

    layout: int = 1
    imports: tuple[Import, ...] = ()
    partitions: Mapping[int, HandOver] = {}
    tables: Mapping[int, Mapping[str, Any]] = {}
    running: Running | None = None


def read_imported(root: Path) -> Imported:
    """Return the record of the archive at ``root``; an empty one if nothing was imported.

    Raises ``LayoutError`` if it is damaged.
    """
    path = _path(root)
    try:
        found = msgspec.convert(checksum.read_json(path.read_bytes()), Imported, str_keys=True)
    except FileNotFoundError:
        return Imported()
    except (ValueError, OSError) as error:
        raise LayoutError(
            f"{path} does not say what was imported ({error}); restore it from a backup, or import again with --again"
        ) from error
    if found.layout != 1:
        raise LayoutError(
            f"{path} has the layout {found.layout}, and this version reads 1; use the version that wrote it"
        )
    return found


def write_imported(root: Path, record: Imported, still_ours: Callable[[], None]) -> None:
    """Make a record durable in place of the one before. Raises ``StoreUnavailable`` if the disk fails."""
    path = _path(root)
    with durable.disk(root):
        durable.make_folder(path.parent)
        content = msgspec.to_builtins(record, str_keys=True)
        durable.replace(path, checksum.sealed_json(content), still_ours)


def forget_imported(root: Path, still_ours: Callable[[], None]) -> None:
    """Remove everything that was imported, and what an import that has not ended left. It can be called again."""
    with durable.disk(root):
        # First of all the record, so that no reader counts a part of the rows.
        write_imported(root, Imported(), still_ours)
        remove_writers(root, lambda writer: layout.origin_of(writer) == layout.IMPORTED, still_ours)
        _path(root).unlink(missing_ok=True)


def remove_writers(root: Path, chosen: Callable[[str], bool], still_ours: Callable[[], None]) -> None:
    """Remove all files of the writers of a table that ``chosen`` says are to go, the oldest last."""
    _forget_removed(root, chosen, still_ours)
    coverage = [path for path in (root / layout.COVERAGE).glob("*.json") if chosen(path.stem)]
    rows = [*(root / layout.STAGED).glob("day=*/*.parquet"), *root.glob("day=*/*.parquet")]
    files = [file for file in map(layout.parse, rows) if file is not None and chosen(file.writer)]
    for path in (*coverage, *(file.path for file in sorted(files, key=lambda file: -file.first))):
        still_ours()
        path.unlink(missing_ok=True)
    durable.remove_empty(root.glob("day=*"))


def _forget_removed(root: Path, chosen: Callable[[str], bool], still_ours: Callable[[], None]) -> None:
    """Forget which rows of these writers were removed: what comes in their place begins anew."""
    removed = layout.read_removed(root)
    kept = {writer: one for writer, one in removed.items() if not chosen(writer)}
    kept_from_us = layout.read_kept_from(root)
    if kept_from_us is not None and len(kept) < len(removed):
        write_retained(root, kept_from_us, kept, still_ours)


def write_retained(
    root: Path, kept_from_us: int, removed: Mapping[str, layout.Removed], still_ours: Callable[[], None]
) -> None:
    """Make durable up to which instant old days were removed, and which rows of an archive these were."""
    rows = {writer: [one.next_sequence, one.n_rows] for writer, one in removed.items()}
    path = layout.retained_file(root)
    durable.make_folder(path.parent)
    content = {layout.FROM: kept_from_us, **({layout.REMOVED: rows} if rows else {})}
    durable.replace(path, checksum.sealed_json(content), still_ours)


def _path(root: Path) -> Path:
    return root / layout.COVERAGE / "_imported.json"
