"""The dead letters in their folder: find them, write them out to be mended, and read them back."""

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from unskew.features.errors import RequestError
from unskew.features.printing import printable_json
from unskew.sinks.tables.kinds import DEAD_LETTER_SCHEMA
from unskew.sinks.tables.reading import answer_of_table

PLACE = ("folder", "topic", "partition", "offset")
_COLUMNS = {"folder": pl.String(), **DEAD_LETTER_SCHEMA}


@dataclass(frozen=True, slots=True)
class Letter:
    """One record that could not be used, at all or by some views.

    ``folder``: the topic under which its stream archives records. ``topic``, ``partition``, ``offset``: as on the
    broker. ``views``: the views that could not use it; empty if no view could. ``key``, ``value``: as kept. ``cut``:
    whether parts of them or of the headers were not kept. ``headers``: None also if an earlier version wrote the
    letter, which kept no headers.
    """

    folder: str
    topic: str
    partition: int
    offset: int
    arrival: datetime
    views: tuple[str, ...]
    kind: str | None
    reason: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] | None
    value_bytes: int | None
    cut: bool

    @property
    def place(self) -> str:
        """``topic/partition/offset``."""
        return f"{self.topic}/{self.partition}/{self.offset}"


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A filter of letters: those that match everything that is given.

    ``reason``: a kind, or text that the reason contains. ``since`` (inclusive), ``until`` (exclusive): bounds of the
    arrival.
    """

    topics: Sequence[str] = ()
    reason: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    places: Sequence[str] = ()


def find(root: Path, wanted: Wanted) -> pl.DataFrame:
    """Return letters by arrival, each record once: columns of the table, ``folder``, and lists ``views``, ``reasons``.

    ``value`` and ``key`` are left out; ``letters`` reads them, for few letters. Raises ``RequestError`` if there is no
    such folder.
    """
    rows = _read(root, wanted, lambda rows: rows.drop("key", "value", "headers"))
    return (
        rows.group_by(*PLACE, maintain_order=True)
        .agg(
            pl.col("arrival", "kind", "value_bytes").first(),
            views=pl.col("view").drop_nulls().unique(maintain_order=True),
            reasons=pl.col("reason").unique(maintain_order=True),
        )
        .sort("arrival", *PLACE)
    )


def letters(root: Path, found: pl.DataFrame) -> Iterable[Letter]:
    """Yield the letters of rows that ``find`` returned, in their order, with key and value."""
    # A letter may have a megabyte or several.
    for part in found.iter_slices(200):
        yield from _letters(root, part)


def _letters(root: Path, found: pl.DataFrame) -> Iterable[Letter]:
    places = found.select(*PLACE)
    wanted = Wanted(topics=found["topic"].unique().to_list(), since=found["arrival"].min())  # type: ignore[arg-type]
    rows = _read(root, wanted, lambda kept: kept.join(places.lazy(), on=PLACE, how="semi"))
    rows = rows.unique(PLACE, keep="first", maintain_order=True)
    by_place = {tuple(row[name] for name in PLACE): row for row in rows.iter_rows(named=True)}
    for row in found.iter_rows(named=True):
        whole = by_place[tuple(row[name] for name in PLACE)]
        headers = whole["headers"]
        yield Letter(
            folder=row["folder"],
            topic=row["topic"],
            partition=row["partition"],
            offset=row["offset"],
            arrival=row["arrival"],
            views=tuple(row["views"]),
            kind=row["kind"],
            reason="; ".join(row["reasons"]),
            key=whole["key"],
            value=whole["value"],
            headers=None if headers is None else tuple((each["name"], each["value"]) for each in headers),
            value_bytes=whole["value_bytes"],
            cut=_is_cut(whole),
        )


def as_json(letter: Letter, decoded: Any) -> str:
    """Return a letter as a line of a file to be mended.

    A replay sends ``key``, ``value`` and ``headers``, in base64; an object under ``mended`` replaces the value.
    """
    return printable_json(
        {
            "topic": letter.topic,
            "partition": letter.partition,
            "offset": letter.offset,
            "folder": letter.folder,
            "arrival": letter.arrival.isoformat(),
            "views": list(letter.views),
            "kind": letter.kind,
            "reason": letter.reason,
            "cut": letter.cut,
            "decoded": decoded,
            "mended": None,
            "key": _text(letter.key),
            "value": _text(letter.value),
            "headers": None if letter.headers is None else [[name, _text(value)] for name, value in letter.headers],
        }
    )


@dataclass(frozen=True, slots=True)
class Mended:
    """A letter that was read back; ``mended``: the object that replaces the value, None for the unchanged value."""

    letter: Letter
    mended: Any


def read_mended(path: Path) -> list[Mended]:
    """Return the letters of a file that ``as_json`` wrote and a person edited.

    Raises ``RequestError`` for a line that is not a letter, or a letter that occurs twice.
    """
    found: list[Mended] = []
    places: dict[str, int] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: {error}; give a file that 'unskew dead-letters show --output' wrote") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            mended = _read_line(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RequestError(
                f"{path}, line {number} is not a letter ({type(error).__name__}: {error}); keep the fields that "
                "'unskew dead-letters show --output' wrote, keys and values in base64"
            ) from error
        place = mended.letter.place
        if place in places:
            raise RequestError(f"{path}: {place} is on line {places[place]} and on line {number}; keep one of them")
        places[place] = number
        found.append(mended)
    return found


def _read_line(line: dict[str, Any]) -> Mended:
    headers = line["headers"]
    letter = Letter(
        folder=str(line["folder"]),
        topic=str(line["topic"]),
        partition=int(line["partition"]),
        offset=int(line["offset"]),
        arrival=datetime.fromisoformat(line["arrival"]),
        views=tuple(line["views"]),
        kind=line["kind"],
        reason=str(line["reason"]),
        key=_bytes(line["key"]),
        value=_bytes(line["value"]),
        headers=None if headers is None else tuple((str(name), _bytes(value)) for name, value in headers),
        value_bytes=None,
        cut=bool(line["cut"]),
    )
    return Mended(letter, line["mended"])


def _read(root: Path, wanted: Wanted, query: Callable[[pl.LazyFrame], pl.LazyFrame]) -> pl.DataFrame:
    """Return what ``query`` keeps of the letters that match; ``wanted`` may leave whole days unread."""
    if not root.is_dir():
        raise RequestError(
            f"{root}: there is no such folder; give the folder of 'unskew run', with --dead-letters or --archive (if this is "
            "it, no record was ever refused)"
        )
    frames = [query(_filtered(pl.LazyFrame(schema=_COLUMNS), wanted)).collect()]
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(("_", "."))):
        name = pl.lit(folder.name).alias("folder")
        frames.append(
            answer_of_table(
                folder,
                lambda paths, name=name: query(_filtered(_scanned(paths).with_columns(name), wanted)).collect(),  # type: ignore[misc]
                since=None if wanted.since is None else wanted.since.date(),
            )
        )
    return pl.concat(frames)


def _scanned(paths: Sequence[Path]) -> pl.LazyFrame:
    """Return the rows of files; columns that earlier versions did not write are null."""
    if not paths:
        return pl.LazyFrame(schema=DEAD_LETTER_SCHEMA)
    return pl.scan_parquet(
        list(paths), schema=pl.Schema(DEAD_LETTER_SCHEMA), missing_columns="insert", hive_partitioning=False, glob=False
    )


def _filtered(rows: pl.LazyFrame, wanted: Wanted) -> pl.LazyFrame:
    """Return the letters that match, with the columns in one order."""
    rows = rows.select(list(_COLUMNS))
    if wanted.topics:
        rows = rows.filter(pl.col("topic").is_in(list(wanted.topics)) | pl.col("folder").is_in(list(wanted.topics)))
    if wanted.reason is not None:
        rows = rows.filter(
            (pl.col("kind") == wanted.reason) | pl.col("reason").str.contains(wanted.reason, literal=True)
        )
    if wanted.since is not None:
        rows = rows.filter(pl.col("arrival") >= wanted.since)
    if wanted.until is not None:
        rows = rows.filter(pl.col("arrival") < wanted.until)
    if wanted.places:
        rows = rows.filter(pl.format("{}/{}/{}", "topic", "partition", "offset").is_in(list(wanted.places)))
    return rows


def _is_cut(row: dict[str, Any]) -> bool:
    longer = any(
        row[f"{name}_bytes"] is not None and row[f"{name}_bytes"] > len(row[name] or b"") for name in ("key", "value")
    )
    return longer or (row["n_headers"] or 0) > len(row["headers"] or ())


def _text(octets: bytes | None) -> str | None:
    return None if octets is None else base64.b64encode(octets).decode()


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text, validate=True)
