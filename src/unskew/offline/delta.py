"""Delta metadata beside a log's files, so that other engines read each of its rows once.

``{root}/_delta_log`` holds a Delta table's transaction log (protocol: https://github.com/delta-io/delta, PROTOCOL.md).
It names the same Parquet files that our own readers find by their names, and is derived from these: nothing that writes
or reads the log here depends on it, and it may be removed and written again at any time. The table has no partition
columns, so no column is called ``day``, and a feature may be.

The order of steps around a compaction is the contract:

1. ``publish``: new files are added. Only files below the sequence that coverage states are.
2. Files are merged.
3. ``publish``: each merged file replaces its sources in one commit that says that no data has changed.
4. Files that were replaced may be deleted.

A commit is one file under its final name, complete and durable before it has that name. The protocol asks writers for a
feature that no other writer has, so that none of them changes, rewrites or cleans a table whose files are ours.
"""

import contextlib
import io
import json
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from unskew.features.errors import LayoutError, StoreUnavailable
from unskew.features.time import moment_of
from unskew.sinks import durable
from unskew.sinks.objects import ObjectPath, Superseded, at_hand
from unskew.sinks.tables import layout
from unskew.sinks.tables.checksum import RESTORE
from unskew.sinks.tables.layout import TableFile
from unskew.sinks.tables.reading import schema_of
from unskew.sinks.wall import wall_us

DELTA_LOG = "_delta_log"
WRITER_FEATURE = "unskew"
"""A writer feature that other writers do not know, and so refuse to write."""
CHECKPOINT_EVERY = 20
"""Commits from one checkpoint to the next; commits before the last but one are removed."""

_NUMBER = re.compile(r"(\d{20})\.(json|checkpoint\.parquet)")
_LAST = "_last_checkpoint"
_DAMAGED = (ValueError, KeyError, TypeError, AttributeError, OSError, pa.ArrowException)
_PROTOCOL = {"minReaderVersion": 1, "minWriterVersion": 7, "writerFeatures": [WRITER_FEATURE]}
_STATISTICS = ("available_at", "event_time", "seq", "partition", "offset", "shard")

Action = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a publication did. ``version``: that of the table now, None if it has no file yet.

    ``files``, ``rows``: those of the table. ``n_added``: files with new rows. ``n_replaced``: files that others with
    the same rows replaced. ``rebuilt``: why the metadata was written anew, else "".
    """

    version: int | None
    files: int
    rows: int
    n_added: int = 0
    n_replaced: int = 0
    rebuilt: str = ""


@dataclass(frozen=True, kw_only=True)
class _Metadata:
    """The table as its metadata describe it: ``adds``, by path, as they stand after commit ``version``."""

    version: int = -1
    schema: str = ""
    id: str = ""
    created_ms: int = 0
    adds: Mapping[str, Action] = field(default_factory=dict)


def is_published(root: Path) -> bool:
    """Return whether a log's table has Delta metadata, which must follow when its files change."""
    return (root / DELTA_LOG).is_dir()


def publish(root: Path, name: str, *, now_ms: int, rebuild: bool = False) -> Published:
    """Bring the Delta metadata of a log's table up to date; the caller holds the table's lock.

    ``name``: the name of the table, ``view@version``, with or without "log" before it. ``now_ms``: the present in
    milliseconds. ``rebuild``: write all of it anew. Metadata that cannot be read are written anew in any case. Raises
    ``LayoutError`` for a file of the table that cannot be read, and ``StoreUnavailable`` if the disk fails: the call
    can be repeated.
    """
    try:
        return _publish(root, name, now_ms, rebuild=rebuild)
    except FileNotFoundError as error:
        raise LayoutError(f"{root}: {error}; {RESTORE}") from error
    except OSError as error:
        raise StoreUnavailable(f"cannot write the Delta metadata of {root}: {error}") from error


def publish_again(root: Path, name: str) -> None:
    """Bring Delta metadata up to date after files were changed in another way than by merging, if there are any.

    ``name``, errors: as in ``publish``; the caller holds the table's lock.
    """
    if is_published(root):
        publish(root, name, now_ms=wall_us() // 1_000)


def _publish(root: Path, name: str, now_ms: int, *, rebuild: bool) -> Published:
    # In this order, because the rows that a coverage file counts are published before it.
    covered = _covered(root)
    there = layout.published_files(root)
    folder = root / DELTA_LOG
    why = "as asked" if rebuild and folder.exists() else ""
    now = _Metadata()
    if not why:
        try:
            now = _read(folder)
            _point_to_checkpoint(folder)
        except _DAMAGED as error:
            why = f"it could not be read ({_first_line(error)})"
    # What was added stays, also while a coverage file is being written again.
    listed = _ranges(root, now.adds)
    files = [
        file
        for file in there
        if file.last < covered.get(file.writer, 0)
        or _tile(file, [one for one in listed.get(file.writer, ()) if _lies_in(one, file)])
    ]
    if not files and now.version < 0:
        return Published(version=None, files=0, rows=0, rebuilt=why)
    if why:
        _remove(folder)
    made = _Commits(folder, now, now_ms)
    schema = schema_text(_columns(files[-1].path)) if files else now.schema
    made.describe(name.removeprefix("log "), schema)
    _bring_up(made, root, files)
    return Published(
        version=made.now.version,
        files=len(made.now.adds),
        rows=sum(_n_rows(add) for add in made.now.adds.values()),
        n_added=made.n_added,
        n_replaced=made.n_replaced,
        rebuilt=why,
    )


def _columns(path: Path) -> Mapping[str, pl.DataType]:
    with at_hand([path]) as there:
        return schema_of(there[path])


def _covered(root: Path) -> dict[str, int]:
    """Return, by writer, the sequence number up to which coverage says that rows are published."""
    coverage = layout.read_coverage(root)
    return {} if coverage is None else {name: shard.next_sequence for name, shard in coverage.shards.items()}


def _bring_up(made: "_Commits", root: Path, files: Sequence[TableFile]) -> None:
    """Commit what makes the table consist of these files."""
    wanted = {_path(root, file): file for file in files}
    listed = _ranges(root, made.now.adds)
    # A merged file of which a part was never added: that part first, from the files that it was merged from, so that
    # whoever follows the commits gets each row once.
    earlier = [
        source
        for path, file in wanted.items()
        if path not in made.now.adds
        for source in _sources(root, file, listed.get(file.writer, ()))
    ]
    if earlier:
        made.commit("WRITE", [_add(root, file, data_change=True) for file in earlier])
    listed = _ranges(root, made.now.adds)
    swaps: list[dict[str, Any]] = []
    news: list[dict[str, Any]] = []
    gone = {path for path in made.now.adds if path not in wanted}
    for path, file in wanted.items():
        if not _is_stale(made.now.adds.get(path), file):
            continue
        inside = [one for one in listed.get(file.writer, ()) if _lies_in(one, file) and one.path != file.path]
        if inside and _tile(file, inside):
            add = _add(root, file, data_change=False)
            # Where rows were erased or removed, the file that stands for them has fewer.
            fewer = _n_rows(add["add"]) != sum(_n_rows(made.now.adds[_path(root, one)]) for one in inside)
            add["add"]["dataChange"] = fewer
            swaps.append(add)
            for one in inside:
                gone.discard(_path(root, one))
                swaps.append(_remove_action(_path(root, one), made.now_ms, data_change=fewer))
        else:
            news.append(_add(root, file, data_change=True))
    if swaps:
        made.commit("OPTIMIZE", swaps)
    made.commit("WRITE", [*news, *(_remove_action(path, made.now_ms, data_change=True) for path in sorted(gone))])


def _sources(root: Path, file: TableFile, listed: Sequence[TableFile]) -> list[TableFile]:
    """Return the superseded files that hold those rows of a merged file that no listed file holds; none if not all."""
    inside = [one for one in listed if _lies_in(one, file)]
    if not inside or _tile(file, inside):
        return []
    missing = [
        one
        for one, _ in layout.superseded_files(root)
        if _lies_in(one, file) and not any(one.first <= other.last and other.first <= one.last for other in inside)
    ]
    missing = layout.without_superseded(missing)
    return missing if _tile(file, [*inside, *missing]) else []


def _lies_in(one: TableFile, file: TableFile) -> bool:
    return one.writer == file.writer and file.first <= one.first and one.last <= file.last


def _tile(file: TableFile, parts: Sequence[TableFile]) -> bool:
    """Return whether the ranges of the parts, which are disjoint and inside, fill that of the file."""
    return sum(one.last - one.first + 1 for one in parts) == file.last - file.first + 1


def _ranges(root: Path, adds: Mapping[str, Action]) -> dict[str, list[TableFile]]:
    """Return the files that the metadata list, by writer."""
    parsed = sorted(
        (file for path in adds if (file := layout.parse(root / unquote(path))) is not None),
        key=lambda file: (file.writer, file.first),
    )
    return {writer: list(ones) for writer, ones in groupby(parsed, lambda file: file.writer)}


def _is_stale(add: Action | None, file: TableFile) -> bool:
    if add is None:
        return True
    found = file.path.stat()
    return bool(add["size"] != found.st_size or add["modificationTime"] != found.st_mtime_ns // 1_000_000)


def _path(root: Path, file: TableFile) -> str:
    return quote(str(file.path.relative_to(root)), safe="/=-_.~")


class _Commits:
    """Writes commits after those that are there, and a checkpoint now and then. ``now``: the table after them."""

    def __init__(self, folder: Path, now: _Metadata, now_ms: int) -> None:
        self._folder = folder
        self.now = now
        self.now_ms = now_ms
        self.n_added = 0
        self.n_replaced = 0
        self._described: list[dict[str, Any]] = []

    def describe(self, name: str, schema: str) -> None:
        """State the columns with the next commit, if they are others than they were."""
        if schema == self.now.schema:
            return
        identity = self.now.id or str(uuid.uuid4())
        created_ms = self.now.created_ms or self.now_ms
        self._described = [{"protocol": _PROTOCOL}, {"metaData": _metadata(name, schema, identity, created_ms)}]
        self.now = _Metadata(
            version=self.now.version, schema=schema, id=identity, created_ms=created_ms, adds=self.now.adds
        )

    def commit(self, operation: str, actions: Sequence[Mapping[str, Any]]) -> None:
        """Commit these actions; nothing if there are none and the columns are as they were."""
        if not (actions or self._described):
            return
        about = {"timestamp": self.now_ms, "operation": operation, "operationParameters": {}, "engineInfo": "unskew"}
        lines = [{"commitInfo": about}, *self._described, *actions]
        self._described = []
        version = self.now.version + 1
        durable.make_folder(self._folder)
        durable.like(self._folder, self._folder.parent)
        _write(
            self._folder / f"{version:020d}.json", "".join(f"{json.dumps(line)}\n" for line in lines).encode(), new=True
        )
        adds = dict(self.now.adds)
        for action in actions:
            if (removed := action.get("remove")) is not None:
                adds.pop(removed["path"], None)
                self.n_replaced += not removed["dataChange"]
        for action in actions:
            if (added := action.get("add")) is not None:
                adds[added["path"]] = added
                self.n_added += bool(added["dataChange"])
        self.now = _Metadata(
            version=version, schema=self.now.schema, id=self.now.id, created_ms=self.now.created_ms, adds=adds
        )
        if version % CHECKPOINT_EVERY == 0 and version:
            self._check_point()

    def _check_point(self) -> None:
        metadata = self.now
        name = self._folder.parent.parent.name
        path = self._folder / f"{metadata.version:020d}.checkpoint.parquet"
        _write(path, _checkpoint(name, metadata))
        _point_to_checkpoint(self._folder)
        # A reader that has just seen the checkpoint before this one still finds it, and the commits after it.
        for other, number, _ in _files(self._folder):
            if number < metadata.version - CHECKPOINT_EVERY:
                other.unlink(missing_ok=True)


def _write(path: Path, data: bytes, *, new: bool = False) -> None:
    """Write a file; ``new``: there must be none of its name, which an object store makes sure of."""
    if isinstance(path, ObjectPath):
        if new:
            _put_new(path, data)
        else:
            path.write_bytes(data)
        return
    temporary = path.with_name(f".{path.name}.tmp")
    durable.write(temporary, data)
    durable.like_file(temporary, path.parent)
    durable.rename(temporary, path)


def _put_new(path: ObjectPath, data: bytes) -> None:
    try:
        path.replace_if(data, None)
    except Superseded as error:
        # If it has the same content, only the answer of the store was lost.
        if not path.is_file() or path.read_bytes() != data:
            raise StoreUnavailable(f"{path}: another process has written this commit meanwhile; try again") from error


def _files(folder: Path) -> list[tuple[Path, int, str]]:
    """Return path, version and kind of every commit and checkpoint, by version."""
    named = ((path, _NUMBER.fullmatch(path.name)) for path in (folder.iterdir() if folder.exists() else ()))
    found = [(path, int(parts[1]), parts[2]) for path, parts in named if parts is not None]
    return sorted(found, key=lambda one: one[1])


def _read(folder: Path) -> _Metadata:
    """Read the metadata; raises one of ``_DAMAGED`` if they are not what this module writes, complete."""
    files = _files(folder)
    if not files:
        return _Metadata()
    checkpoints = [(path, version) for path, version, kind in files if kind != "json"]
    version, actions = -1, list[Action]()
    if checkpoints:
        path, version = checkpoints[-1]
        actions = [_plain(row) for row in pq.read_table(io.BytesIO(path.read_bytes())).to_pylist()]
    commits = {number: path for path, number, kind in files if kind == "json" and number > version}
    for number in range(version + 1, version + 1 + len(commits)):
        actions += [json.loads(line) for line in commits[number].read_bytes().decode().splitlines()]
        version = number
    return _after(actions, version)


def _point_to_checkpoint(folder: Path) -> None:
    """Let the pointer for readers name the newest checkpoint, if a crash came before it did."""
    checkpoints = [(path, version) for path, version, kind in _files(folder) if kind != "json"]
    path = folder / _LAST
    if not checkpoints:
        path.unlink(missing_ok=True)
        return
    newest, version = checkpoints[-1]
    wanted = json.dumps({"version": version, "size": _footer(newest).num_rows}).encode()
    with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == wanted:
            return
    _write(path, wanted)


def _plain(row: Action) -> Action:
    return {name: value for name, value in row.items() if value is not None}


def _after(actions: Iterable[Action], version: int) -> _Metadata:
    adds: dict[str, Action] = {}
    described: Action | None = None
    protocol: Action | None = None
    for action in actions:
        protocol = action.get("protocol", protocol)
        described = action.get("metaData", described)
        if "add" in action:
            adds[action["add"]["path"]] = action["add"]
        if "remove" in action:
            adds.pop(action["remove"]["path"], None)
    if protocol is None or described is None or protocol.get("writerFeatures") != [WRITER_FEATURE]:
        raise ValueError("it was not written by unskew")
    return _Metadata(
        version=version,
        schema=described["schemaString"],
        id=described["id"],
        created_ms=int(described["createdTime"]),
        adds=adds,
    )


def _remove(folder: Path) -> None:
    """Remove metadata; the newest commits go last, so that a table that is half removed cannot be opened."""
    with contextlib.suppress(FileNotFoundError):
        for path in sorted(folder.iterdir()):
            path.unlink(missing_ok=True)


def _metadata(name: str, schema: str, identity: str, created_ms: int) -> dict[str, Any]:
    return {
        "id": identity,
        "name": name,
        "format": {"provider": "parquet", "options": {}},
        "schemaString": schema,
        "partitionColumns": [],
        "configuration": {},
        "createdTime": created_ms,
    }


def _add(root: Path, file: TableFile, *, data_change: bool) -> dict[str, Any]:
    found = file.path.stat()
    return {
        "add": {
            "path": _path(root, file),
            "partitionValues": {},
            "size": found.st_size,
            "modificationTime": found.st_mtime_ns // 1_000_000,
            "dataChange": data_change,
            "stats": json.dumps(statistics(file.path)),
        }
    }


def _remove_action(path: str, now_ms: int, *, data_change: bool) -> dict[str, Any]:
    return {"remove": {"path": path, "deletionTimestamp": now_ms, "dataChange": data_change}}


def statistics(path: Path) -> dict[str, Any]:
    """Return the number of rows of a file, and the least and the greatest value of columns by which engines prune.

    They are those of the footer. Instants have milliseconds; the greatest is rounded up.
    """
    try:
        footer = _footer(path)
    except pa.ArrowException as error:
        raise LayoutError(f"{path} cannot be read ({_first_line(error)}): it is damaged; {RESTORE}") from error
    least: dict[str, Any] = {}
    greatest: dict[str, Any] = {}
    for number in range(footer.num_columns):
        found = [footer.row_group(group).column(number) for group in range(footer.num_row_groups)]
        if not found or found[0].path_in_schema not in _STATISTICS:
            continue
        bounds = [one.statistics for one in found]
        if any(one is None or not one.has_min_max for one in bounds):
            continue
        name = found[0].path_in_schema
        least[name] = _stated(min(one.min for one in bounds), up=False)
        greatest[name] = _stated(max(one.max for one in bounds), up=True)
    return {"numRecords": footer.num_rows, "minValues": least, "maxValues": greatest, "nullCount": {}}


def _footer(path: Path) -> Any:
    with at_hand([path]) as there:
        return pq.read_metadata(there[path])


def _stated(value: Any, *, up: bool) -> Any:
    if not hasattr(value, "timestamp"):
        return value
    # Datetimes of the footer are exact, and so is this.
    at_us = round(value.timestamp() * 1e6)
    rounded_us = -(-at_us // 1_000) * 1_000 if up else at_us // 1_000 * 1_000
    return moment_of(rounded_us).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _n_rows(add: Action) -> int:
    return int(json.loads(add["stats"])["numRecords"])


def schema_text(columns: Mapping[str, pl.DataType]) -> str:
    """Return a table's columns as Delta states them, all of them nullable."""
    fields = [{"name": name, "type": _type(dtype), "nullable": True, "metadata": {}} for name, dtype in columns.items()]
    return json.dumps({"type": "struct", "fields": fields})


_SIMPLE: Mapping[pl.DataType, str] = {
    pl.Int64(): "long",
    pl.Int32(): "integer",
    pl.Float64(): "double",
    pl.Boolean(): "boolean",
    pl.String(): "string",
}


def _type(dtype: pl.DataType) -> Any:
    match dtype:
        case pl.List():
            return {"type": "array", "elementType": _type(_of(dtype.inner)), "containsNull": True}
        case pl.Struct():
            fields = [
                {"name": one.name, "type": _type(_of(one.dtype)), "nullable": True, "metadata": {}}
                for one in dtype.fields
            ]
            return {"type": "struct", "fields": fields}
        case pl.Decimal():
            return f"decimal({dtype.precision},{dtype.scale})"
        case pl.Datetime():
            return "timestamp"
        case _:
            return _SIMPLE[dtype]


def _of(dtype: Any) -> pl.DataType:
    made: pl.DataType = dtype() if isinstance(dtype, type) else dtype
    return made


_MAP = pa.map_(pa.string(), pa.string())
_CHECKPOINT = pa.schema(
    [
        (
            "protocol",
            pa.struct(
                [
                    ("minReaderVersion", pa.int32()),
                    ("minWriterVersion", pa.int32()),
                    ("writerFeatures", pa.list_(pa.string())),
                ]
            ),
        ),
        (
            "metaData",
            pa.struct(
                [
                    ("id", pa.string()),
                    ("name", pa.string()),
                    ("format", pa.struct([("provider", pa.string()), ("options", _MAP)])),
                    ("schemaString", pa.string()),
                    ("partitionColumns", pa.list_(pa.string())),
                    ("configuration", _MAP),
                    ("createdTime", pa.int64()),
                ]
            ),
        ),
        (
            "add",
            pa.struct(
                [
                    ("path", pa.string()),
                    ("partitionValues", _MAP),
                    ("size", pa.int64()),
                    ("modificationTime", pa.int64()),
                    ("dataChange", pa.bool_()),
                    ("stats", pa.string()),
                ]
            ),
        ),
    ]
)


def _checkpoint(name: str, metadata: _Metadata) -> bytes:
    """Return a checkpoint: the whole table as one Parquet file of actions."""
    described = _metadata(name, metadata.schema, metadata.id, metadata.created_ms)
    rows = [{"protocol": _PROTOCOL}, {"metaData": described}, *({"add": add} for add in metadata.adds.values())]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, _CHECKPOINT), sink)
    return bytes(sink.getvalue())


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
