"""Files of history as they are given: Parquet, CSV, newline-delimited JSON, Arrow IPC, and Delta tables."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import polars as pl

from unskew.features.errors import RequestError
from unskew.features.extras import needed
from unskew.sinks.tables.imported import InputFile

BATCH_ROWS = 1 << 18
"""Rows that are converted at once."""
_PIECE = 1 << 20
_DELTA = "_delta_log"
_Read = TypeVar("_Read")


@dataclass(frozen=True, kw_only=True)
class Input:
    """One file, or one Delta table, that is read as a whole.

    ``files``: the files that hold its rows. ``scan``: opens it.
    """

    path: Path
    files: Sequence[Path]
    scan: Callable[[], pl.LazyFrame]

    @property
    def columns(self) -> pl.Schema:
        """Its columns. Raises ``RequestError`` if it cannot be read."""
        return _reading(self.path, lambda: self.scan().collect_schema())

    def batches(self, columns: Sequence[str], n_rows: int = BATCH_ROWS) -> Iterator[pl.DataFrame]:
        """Yield these columns of its rows, in their order."""
        frames = _reading(
            self.path, lambda: self.scan().select(columns).collect_batches(chunk_size=n_rows, maintain_order=True)
        )
        while True:
            frame = _reading(self.path, lambda: next(frames, None))
            if frame is None:
                return
            for at in range(0, frame.height, n_rows):
                yield frame[at : at + n_rows]


def inputs_of(paths: Sequence[Path | pl.LazyFrame]) -> list[Input]:
    """Return what is at these paths, in their order; a folder stands for the files in it, by name.

    A query of Polars stands for itself.

    Raises ``RequestError`` for a path that is not there or whose format is not known.
    """
    found: list[Input] = []
    for path in paths:
        if isinstance(path, pl.LazyFrame):
            found.append(Input(path=Path(f"query {len(found) + 1}"), files=(), scan=lambda query=path: query))  # type: ignore[misc]
            continue
        if not path.exists():
            raise RequestError(f"{path} does not exist; give the files that hold the history")
        if (path / _DELTA).is_dir():
            found.append(_delta(path))
            continue
        inside = [path]
        if path.is_dir():
            inside = sorted(one for one in path.rglob("*") if one.is_file() and one.name[0] not in "_.")
        if not inside:
            raise RequestError(f"{path} holds no files; give the files that hold the history")
        found += [_file(one) for one in inside]
    by_path: set[Path] = set()
    for one in found:
        if one.path.resolve() in by_path:
            raise RequestError(f"{one.path} is given twice; name each file once")
        by_path.add(one.path.resolve())
    return found


def identified(inputs: Sequence[Input], going_on: Callable[[], None]) -> tuple[InputFile, ...]:
    """Return name, size and checksum of every file; two with the same bytes are a ``RequestError``."""
    found: dict[str, InputFile] = {}
    for one in inputs:
        for path in one.files:
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while piece := file.read(_PIECE):
                    digest.update(piece)
                    going_on()
            same = found.get(digest.hexdigest())
            if same is not None:
                raise RequestError(f"{path} and {same.name} hold the same bytes; name each file once")
            found[digest.hexdigest()] = InputFile(
                name=str(path.absolute()), n_bytes=path.stat().st_size, sha256=digest.hexdigest()
            )
    return tuple(found.values())


_SCANS: dict[str, Callable[[Path], pl.LazyFrame]] = {
    ".parquet": lambda path: pl.scan_parquet(path, glob=False, hive_partitioning=False),
    # Texts, which are then converted exactly, as those of a message in JSON.
    ".csv": lambda path: pl.scan_csv(path, glob=False, infer_schema=False),
    ".tsv": lambda path: pl.scan_csv(path, glob=False, infer_schema=False, separator="\t"),
    ".ndjson": lambda path: pl.scan_ndjson(path, infer_schema_length=None),
    ".jsonl": lambda path: pl.scan_ndjson(path, infer_schema_length=None),
    ".arrow": pl.scan_ipc,
    ".feather": pl.scan_ipc,
}


def _file(path: Path) -> Input:
    suffix = path.name.removesuffix(".gz")[path.name.removesuffix(".gz").rfind(".") :]
    scan = _SCANS.get(suffix.lower())
    if scan is None or (path.name.endswith(".gz") and suffix not in {".csv", ".tsv"}):
        raise RequestError(
            f"{path} has a format that is not known; files are {', '.join(_SCANS)} (.csv and .tsv also with .gz), and Delta tables are "
            "folders"
        )
    return Input(path=path, files=[path], scan=lambda: scan(path))


def _delta(path: Path) -> Input:
    with needed(f"the Delta table {path}"):
        from deltalake import DeltaTable  # noqa: PLC0415  only there if it is installed

    table = _reading(path, lambda: DeltaTable(path))
    version = table.version()
    # The same version throughout, although the table may change meanwhile.
    return Input(
        path=path,
        files=[Path(uri.removeprefix("file://")) for uri in table.file_uris()],
        scan=lambda: pl.scan_delta(str(path), version=version),
    )


def _reading(path: Path, read: Callable[[], _Read]) -> _Read:
    try:
        return read()
    except (pl.exceptions.PolarsError, OSError, pl.exceptions.PanicException) as error:
        raise RequestError(
            f"{path} cannot be read ({(str(error).splitlines() or [''])[0]}); correct the file, or leave it out"
        ) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in {"deltalake", "_internal"}:
            raise
        raise RequestError(f"{path} cannot be read ({error}); correct the Delta table, or leave it out") from error
