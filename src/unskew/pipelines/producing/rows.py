"""Rows of files as they are given: JSON lines, CSV, and the columns of Parquet and Arrow IPC, a piece at a time.

A row that cannot be read at all is there too, with the reason. However large a file is, a piece of it is in memory.
"""

import csv
import gzip
import io
import os
import select
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from unskew.features.errors import RequestError
from unskew.pipelines.history.inputs import inputs_of

STDIN = "-"
NOT_UTF8 = "it has bytes that are not text in UTF-8; write the file in UTF-8"
_PIECE = 1 << 18
_PIECE_ROWS = 2_000
_LONGEST_LINE = 1 << 26
_WAIT_S = 0.2
_TEXTS = {".csv": ",", ".tsv": "\t"}
_LINES = frozenset({".jsonl", ".ndjson", ".json"})
_COLUMNS = frozenset({".parquet", ".arrow", ".feather"})

_parsed = msgspec.json.Decoder(float_hook=Decimal).decode


@dataclass(frozen=True, slots=True)
class Row:
    """One row. ``place``: where it is in its file. ``fault``: why it cannot be read; empty if it can."""

    place: str
    values: Mapping[str, Any]
    fault: str = ""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where rows come from. ``is_text``: values are texts. ``again``: whether the rows can be read a second time.

    ``pieces``: yields some rows after the other; from a stream that goes on, those that are there.
    """

    name: str
    is_text: bool
    again: bool
    pieces: Callable[[], Iterator[list[Row]]]


def source_of(given: str, stopped: Callable[[], bool]) -> Source:
    """Return where rows come from: a path, or - for standard input, which has JSON lines.

    ``stopped``: asked while nothing comes; the rows end if it returns true. Raises ``RequestError`` for a path that is
    not there or whose format is not known; so does ``pieces`` for a file that cannot be read.
    """
    if given == STDIN:
        return lines_of(0, "stdin", stopped)
    path = Path(given)
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    if suffix not in {*_TEXTS, *_LINES, *_COLUMNS} or (suffix in _COLUMNS and path.name.endswith(".gz")):
        raise RequestError(
            f"{path} has a format that is not known; give JSON lines (.jsonl, .ndjson), CSV (.csv, .tsv), these also with .gz, Parquet "
            "(.parquet), Arrow IPC (.arrow, .feather), or - for JSON lines from standard input"
        )
    if not path.is_file():
        raise RequestError(f"{path} is not a file that is there; give the file that holds the events")
    # Standard input that is named as a file cannot be read again either.
    if suffix in _COLUMNS:
        return Source(name=str(path), is_text=False, again=True, pieces=lambda: _of_columns(path))
    if suffix in _TEXTS:
        return Source(name=str(path), is_text=True, again=True, pieces=lambda: _of_texts(path, _TEXTS[suffix]))
    return Source(name=str(path), is_text=False, again=True, pieces=lambda: _of_lines(_file(path)))


def lines_of(descriptor: int, name: str, stopped: Callable[[], bool]) -> Source:
    """Return the JSON lines that come at a file descriptor, until it ends or ``stopped`` returns true."""
    return Source(name=name, is_text=False, again=False, pieces=lambda: _of_lines(_coming(descriptor, stopped)))


def _of_lines(pieces: Iterator[bytes]) -> Iterator[list[Row]]:
    number, left = 0, b""
    for piece in pieces:
        lines = (left + piece).split(b"\n")
        left = lines.pop()
        if len(left) > _LONGEST_LINE:
            raise RequestError(
                f"line {number + len(lines) + 1} has more than {_LONGEST_LINE:,} bytes; write one event on each line"
            )
        rows = [_of_line(number + at, line) for at, line in enumerate(lines, 1) if line.strip()]
        number += len(lines)
        if rows:
            yield rows
    if left.strip():
        yield [_of_line(number + 1, left)]


def _of_line(number: int, line: bytes) -> Row:
    place = f"line {number}"
    try:
        found = _parsed(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
    except UnicodeDecodeError:
        return Row(place, {}, NOT_UTF8)
    except (msgspec.DecodeError, RecursionError) as error:
        return Row(place, {}, f"it is not JSON ({error})")
    if not isinstance(found, dict):
        return Row(place, {}, "it is not a JSON object; write each event as one, with the fields of the schema")
    return Row(place, found)


def _of_texts(path: Path, separator: str) -> Iterator[list[Row]]:
    with _opened(path) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", newline="")
        # strict: a quote that is not closed is a fault, not a cell that goes on to the end of the file.
        reader = csv.reader(text, delimiter=separator, strict=True)
        names = next(reader, [])
        if not any(names) or len(set(names)) < len(names):
            raise RequestError(f"{path}: its first line is not a list of different names; name the columns there")
        rows: list[Row] = []
        while True:
            before = reader.line_num
            try:
                cells = next(reader, None)
            except csv.Error as error:
                rows.append(Row(f"line {before + 1}", {}, f"it is not CSV ({error})"))
                continue
            if cells is None:
                break
            place = f"line {before + 1}"
            if not cells:
                continue
            if len(cells) != len(names):
                rows.append(Row(place, {}, f"it has {len(cells)} cells, and the first line names {len(names)}"))
            else:
                rows.append(Row(place, dict(zip(names, cells, strict=True))))
            if len(rows) >= _PIECE_ROWS:
                yield rows
                rows = []
        if rows:
            yield rows


def _of_columns(path: Path) -> Iterator[list[Row]]:
    (found,) = inputs_of([path])
    number = 0
    for frame in found.batches(list(found.columns), _PIECE_ROWS):
        yield [Row(f"row {number + at}", values) for at, values in enumerate(frame.iter_rows(named=True), 1)]
        number += frame.height


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            if not path.name.endswith(".gz"):
                yield file
                return
            with gzip.open(file) as inside:
                yield cast("BinaryIO", inside)
    except UnicodeDecodeError as error:
        raise RequestError(f"{path} cannot be read: {NOT_UTF8}") from error
    except (OSError, EOFError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise RequestError(f"{path} cannot be read ({why}); correct the file") from error


def _file(path: Path) -> Iterator[bytes]:
    with _opened(path) as file:
        while piece := file.read(_PIECE):
            yield piece


def _coming(descriptor: int, stopped: Callable[[], bool]) -> Iterator[bytes]:
    """Yield what comes, as soon as it comes."""
    while not stopped():
        # A read that waits would not end when the process is asked to stop.
        if not select.select([descriptor], [], [], _WAIT_S)[0]:
            continue
        piece = os.read(descriptor, _PIECE)
        if not piece:
            return
        yield piece
