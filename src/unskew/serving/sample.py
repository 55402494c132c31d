"""A small sample of what readers were served, in files, for the audit.

Each process appends lines of JSON to files of its own, at most one line in ``EVERY_S`` seconds and ``FILE_BYTES`` in a
file; the oldest of more than ``MOST_FILES`` files in the folder are removed. A line has one row of one view: entity,
instant and values exactly as they were returned, with defaults. Values that were answered in JSON are read from that.
"""

import contextlib
import datetime as dt
import json
import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from unskew.features.errors import LayoutError
from unskew.features.time import instant_us, moment_of
from unskew.features.types import MAP_KEY, MAP_VALUE, Type
from unskew.features.view import View
from unskew.serving.clocks import UNKNOWN
from unskew.serving.request import Request, ViewAnswer
from unskew.sinks.redis.texts import objects_of

EVERY_S = 1.0
FILE_BYTES = 1 << 20
MOST_FILES = 64
SERVED = "_served"
"""The folder of a log in which a sample lies by default."""
_PREFIX, _SUFFIX = "served-", ".jsonl"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Served:
    """One row that a reader was given: the values of some features of an entity, exact at ``as_of_us``.

    ``view``: name and version. ``key``: canonical. ``values``: as they were returned, by feature.
    """

    view: str
    key: str
    as_of_us: int
    values: dict[str, Any]


class Sampler:
    """Writes a sample of answers into a folder, from any thread. A disk that fails ends the sample, not the answers."""

    def __init__(self, folder: Path, *, now_s: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._now_s = now_s
        self._next_s = -float("inf")
        self._random = random.Random()  # noqa: S311  a sample, not a secret
        self._lock = threading.Lock()
        self._path: Path | None = None
        self._n_bytes = 0
        self._n_files = 0
        self._failed = False

    def offer(self, request: Request, answers: Sequence[ViewAnswer]) -> None:
        """Take one exact row of an answer now and then."""
        # Most answers are let go here, without the lock.
        if self._failed or self._now_s() < self._next_s or not answers:
            return
        number = self._random.randrange(len(answers))
        asked, answer = request.views[number], answers[number]
        if not answer.keys:
            return
        row = self._random.randrange(len(answer.keys))
        as_of = answer.placed.as_of[row]
        if answer.placed.provisional[row] or as_of == UNKNOWN or answer.keys[row] is None:
            return
        values = {
            column.name: _of_json(values[row], column.dtype)
            if column.is_json
            else _plain(objects_of(values[row : row + 1], column.dtype)[0])
            for column, values in zip(asked.columns, answer.values, strict=True)
        }
        line = {
            "view": asked.view.id,
            "state": asked.view.state_fingerprint,
            "presentation": asked.view.presentation_fingerprint,
            "key": answer.keys[row],
            "as_of": as_of,
            "values": values,
        }
        with self._lock:
            if self._now_s() < self._next_s:
                return
            self._next_s = self._now_s() + EVERY_S
            try:
                self._write(json.dumps(line))
            except OSError as error:
                self._failed = True
                _logger.warning("what is served is no longer sampled in %s: %s", self._folder, error)

    def _write(self, line: str) -> None:
        if self._path is None or self._n_bytes > FILE_BYTES:
            self._path = self._next_path()
            self._n_bytes = 0
        # Opened for each line: there is at most one in a second, and a process that dies takes nothing with it.
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
        self._n_bytes += len(line)

    def _next_path(self) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        # Their names begin with the time at which they began.
        there = sorted(files_of(self._folder))
        for path in there[: max(0, len(there) + 1 - MOST_FILES)]:
            path.unlink(missing_ok=True)
        self._n_files += 1
        return self._folder / f"{_PREFIX}{time.time_ns():020d}-{os.getpid()}-{self._n_files}{_SUFFIX}"


def files_of(folder: Path) -> list[Path]:
    """Return the files of a sample; none if there is no such folder."""
    return [path for path in folder.glob(f"{_PREFIX}*{_SUFFIX}") if path.is_file()]


def forget(folder: Path, theirs: Callable[[str, str, str], bool], *, dry_run: bool = False) -> tuple[int, int, int]:
    """Remove lines from a sample; return the number of its files, their bytes, and the number of these lines.

    ``theirs``: says for the view, the canonical key and the text of a line whether to remove it. A line that a reader
    adds to a file meanwhile may be lost. A line that was not written to its end is removed, too. Raises ``OSError``.
    """
    n_files = n_bytes = n_lines = 0
    for left in () if dry_run else folder.glob(f"{_PREFIX}*.tmp"):
        left.unlink()
    for path in files_of(folder):
        text = path.read_text("utf-8")
        kept = [line for line in text.splitlines() if not _is_theirs(line, theirs)]
        gone = len(text.splitlines()) - len(kept)
        n_files, n_bytes, n_lines = n_files + 1, n_bytes + len(text.encode()), n_lines + gone
        if gone and not dry_run:
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(f"{line}\n" for line in kept), "utf-8")
            temporary.replace(path)
    return n_files, n_bytes, n_lines


def _is_theirs(line: str, theirs: Callable[[str, str, str], bool]) -> bool:
    try:
        found = json.loads(line)
        return theirs(str(found["view"]), str(found["key"]), line)
    except (ValueError, KeyError, TypeError):
        return True


def read_served(folder: Path, view: View, since_us: int | None = None) -> tuple[list[Served], int]:
    """Return what was served of a view version since an instant, and how many rows had another definition.

    A line that was not written to its end, because its process died, is left out.
    """
    found = []
    n_others = 0
    dtypes = {feature.name: feature.dtype for feature in view.features}
    for line in _lines(folder):
        if line["view"] != view.id or (since_us is not None and line["as_of"] < since_us):
            continue
        if (line["state"], line["presentation"]) != (view.state_fingerprint, view.presentation_fingerprint):
            n_others += 1
            continue
        values = {name: _typed(value, dtypes[name]) for name, value in line["values"].items()}
        found.append(Served(view=view.id, key=line["key"], as_of_us=line["as_of"], values=values))
    return found, n_others


_PARTS = frozenset({"as_of", "key", "presentation", "state", "values", "view"})


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(files_of(folder)):
        with contextlib.suppress(FileNotFoundError), path.open(encoding="utf-8") as file:
            for number, text in enumerate(file, 1):
                if text.endswith("\n"):
                    yield _line(path, number, text)


def _line(path: Path, number: int, text: str) -> dict[str, Any]:
    line = None
    with contextlib.suppress(ValueError):
        line = json.loads(text)
    if not isinstance(line, dict) or not line.keys() >= _PARTS:
        raise LayoutError(f"{path}: line {number} is not one of a sample; remove the line or the file")
    return line


def _plain(value: object) -> object:
    """Return a value for JSON, from which ``_typed`` makes the same value again."""
    match value:
        case dt.datetime():
            return instant_us(value)
        case Decimal():
            return str(value)
        case list():
            return [_plain(one) for one in value]
        case dict():
            return {name: _plain(one) for name, one in value.items()}
        case _:
            return value


def _of_json(text: bytes | None, dtype: Type) -> object:
    """Return what ``_plain`` does for a value that was answered as a text in JSON."""
    return None if text is None else _of_parsed(json.loads(text), dtype)


def _of_parsed(value: Any, dtype: Type) -> object:
    if value is None:
        return None
    match dtype.nesting:
        case "list":
            return [_of_parsed(one, dtype.element) for one in value]
        case "map":
            return [{MAP_KEY: name, MAP_VALUE: _of_parsed(one, dtype.element)} for name, one in value.items()]
    return instant_us(dt.datetime.fromisoformat(value)) if dtype.scalar == "timestamp" else value


def _typed(value: Any, dtype: Type) -> object:
    if value is None:
        return None
    match dtype.nesting:
        case "list":
            return [_typed(one, dtype.element) for one in value]
        case "map":
            return [{**one, MAP_VALUE: _typed(one[MAP_VALUE], dtype.element)} for one in value]
    if dtype.is_decimal:
        return Decimal(value)
    return moment_of(value) if dtype.scalar == "timestamp" else value
