"""Erasure of one entity from the files of a table: each file that holds it is rewritten under its own name.

The order of steps is the contract:

1. Take the table's lock, as compaction does, so that nobody merges a file while it is rewritten.
2. Write a file without the entity to ``_compacting``, and fsync it.
3. Rename it over the file, and fsync the folder.
4. Bring the Delta metadata of a log up to date, where there are any.

After a stop between any two steps every file is complete, and the same call finishes the rest. Readers see each file as
it was or as it is. The log and the dead letters lose the rows, and the file says how many (``layout.LEFT_OUT``). An
archived event loses its content and keeps its place: partition, offset and arrival, from which clocks, counts of events
and the seams of backfills follow; without a key it counts for nobody.
"""

import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from unskew.features.errors import RequestError
from unskew.features.keys import OneEntity
from unskew.features.plan import ViewPlan
from unskew.offline import delta
from unskew.offline.compaction import holding
from unskew.offline.merging import columns_of, names_of, rewrite, source
from unskew.sinks import durable
from unskew.sinks.objects import ObjectPath, concerns
from unskew.sinks.tables import layout
from unskew.sinks.tables.imported import read_imported

Progress = Callable[[str], None]
DISTINCT = 6
"""A key of at least so many characters is looked for in every column of texts; a shorter one may be anything."""
_PLACE = ("_partition", "_offset", "_arrival")
_LEAST_VARINT = 3


@dataclass(frozen=True, kw_only=True)
class Searched:
    """The result of an erasure or of a search.

    ``n_found``: the rows, events or entries of the entity. ``notes``: what could not be searched, or not be erased.
    """

    place: str
    n_files: int = 0
    n_bytes: int = 0
    n_found: int = 0
    notes: tuple[str, ...] = ()


class Rule(Protocol):
    """How an entity is found in the files of a table, and what a file is without it."""

    def columns(self, there: Sequence[str]) -> Sequence[str]:
        """Return which of a file's columns say whether it holds the entity; empty if it cannot."""

    def finds(self, rows: pl.DataFrame) -> pl.Series:
        """Return, for each row with these columns, whether it holds the entity."""

    def without(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return whole rows without the entity."""


@dataclass(frozen=True)
class LogRule:
    """Rows of the log of a view whose entities are the entity, or contain it."""

    one: OneEntity

    def columns(self, there: Sequence[str]) -> Sequence[str]:
        return _all_of(self.one.entity.keys, there)

    def finds(self, rows: pl.DataFrame) -> pl.Series:
        return rows.select(self.one.where()).to_series()

    def without(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.filter(~self.one.where())


@dataclass(frozen=True)
class ArchiveRule:
    """Events of the entity. ``kept``: the columns that views of others read; they stay, without the entity's key."""

    one: OneEntity
    kept: frozenset[str] = frozenset()

    def columns(self, there: Sequence[str]) -> Sequence[str]:
        return _all_of(self.one.entity.keys, there)

    def finds(self, rows: pl.DataFrame) -> pl.Series:
        return rows.select(self.one.where()).to_series()

    def without(self, rows: pl.DataFrame) -> pl.DataFrame:
        theirs = self.one.where()
        stays = {*_PLACE, *(self.kept - set(self.one.entity.keys))}
        own_time = "_event_time" if self.kept else "_arrival"
        return rows.with_columns(
            pl.when(theirs).then(pl.col(own_time)).otherwise("_event_time").alias("_event_time"),
            *(
                pl.when(~theirs).then(name).alias(name)
                for name in rows.columns
                if name not in stays and name != "_event_time"
            ),
        )


@dataclass(frozen=True)
class LetterRule:
    """Dead letters whose record is of the entity; of records that cannot be read, those whose bytes mention its key.

    ``decoded``: reads the value of a letter, as JSON-able data; None if it cannot be read. ``doubted``: whether letters
    count in which the key cannot be looked for: binary ones, if it is a short number.
    """

    one: OneEntity
    decoded: Callable[[Mapping[str, Any]], Any] = lambda _: None
    doubted: bool = False

    def columns(self, there: Sequence[str]) -> Sequence[str]:
        return there

    def finds(self, rows: pl.DataFrame) -> pl.Series:
        verdicts = map(self._is_theirs, rows.iter_rows(named=True))
        return pl.Series([self.doubted if one is None else one for one in verdicts], dtype=pl.Boolean)

    def without(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.filter(~self.finds(rows))

    def unsearched(self, rows: pl.DataFrame) -> int:
        """Return the number of letters in which the key cannot be looked for."""
        return 0 if self.doubted else sum(self._is_theirs(row) is None for row in rows.iter_rows(named=True))

    def _is_theirs(self, row: Mapping[str, Any]) -> bool | None:
        keys = self.one.entity.keys
        found = self.decoded(row)
        if found is not None and all(any(True for _ in _values(found, name)) for name in keys):
            return all(part in _values(found, name) for name, part in zip(keys, self.one.parts, strict=True))
        verdicts = [
            _mentions_number(row, int(part)) if kind == "int64" else _mentions_text(row, part)
            for kind, part in zip(self.one.entity.types, self.one.parts, strict=True)
        ]
        return False if False in verdicts else None if None in verdicts else True


@dataclass(frozen=True)
class TextRule:
    """Any text that is the key: only for a search, because values of others must not change."""

    text: str

    def columns(self, there: Sequence[str]) -> Sequence[str]:
        return there

    def finds(self, rows: pl.DataFrame) -> pl.Series:
        tests = []
        for name, kind in rows.schema.items():
            if kind == pl.String():
                tests.append(pl.col(name) == self.text)
            elif kind.is_nested():
                texts = pl.Series(
                    name, [json.dumps(self.text) in json.dumps(one, default=str) for one in rows[name].to_list()]
                )
                tests.append(pl.lit(texts))
        if not tests:
            return pl.repeat(value=False, n=rows.height, dtype=pl.Boolean, eager=True)
        return rows.select(pl.any_horizontal(test.fill_null(value=False) for test in tests)).to_series()

    def without(self, rows: pl.DataFrame) -> pl.DataFrame:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Place:
    """A table that may hold the entity. ``rule``: how it is erased there; None if it is only searched.

    ``counts``: as in ``merging.rewrite``.
    """

    name: str
    root: Path
    rule: Rule | None
    counts: bool


def places(
    one: OneEntity,
    views: Sequence[ViewPlan],
    log: Path | None,
    archive: Path | None,
    dead_letters: Path | None,
    *,
    read_by: Callable[[ViewPlan], Sequence[str]],
    decoded: Callable[[str, Mapping[str, Any]], Any] = lambda _topic, _row: None,
    doubted: bool = False,
) -> list[Place]:
    """Return every table under these folders.

    ``views``: all that are defined; a table of a view or topic that is not among them holds the entity if it has its
    key columns, the log in the first place. ``read_by``: the columns of the stream that a view reads. ``decoded``:
    reads the value of a letter in a topic's folder, as in ``LetterRule``. ``doubted``: as there.
    """
    found = [
        Place(name=f"log {name}@{version}", root=root, rule=_rule_of_log(one, views, root), counts=True)
        for name, version, root in (() if log is None else layout.view_roots(log))
    ]
    for kind, folder in (("archive", archive), ("dead letters", dead_letters)):
        for root in sorted(() if folder is None or not folder.is_dir() else folder.iterdir()):
            if not root.is_dir() or root.name.startswith("_"):
                continue
            of_topic = [view for view in views if view.stream.topic == root.name]
            rule: Rule | None = None
            if _may_hold(one, of_topic):
                others = [view for view in of_topic if not one.is_in(view.entity)]
                kept = frozenset(name for view in others for name in read_by(view))
                rule = (
                    ArchiveRule(one, kept)
                    if kind == "archive"
                    else LetterRule(one, partial(decoded, root.name), doubted)
                )
            found.append(Place(name=f"{kind} {root.name}", root=root, rule=rule, counts=kind != "archive"))
    return found


def _rule_of_log(one: OneEntity, views: Sequence[ViewPlan], root: Path) -> Rule | None:
    name, version = root.parent.name, root.name[1:]
    known = [view.entity for view in views if view.id == f"{name}@{version}"]
    if not known and (written := layout.read_definition(root)) is not None:
        known = [written.entity]
    known = known or [view.entity for view in views if view.name == name]
    if known:
        return LogRule(one) if one.is_in(known[0]) else None
    keys = list(one.entity.keys)
    files = [path for path in layout.every_file(root) if layout.parse(path) is not None]
    same_keys = bool(files) and names_of(files[0])[: len(keys)] == keys
    return LogRule(one) if same_keys and _may_hold(one, views) else None


def _may_hold(one: OneEntity, views: Sequence[ViewPlan]) -> bool:
    """Return whether the entity's key columns mean the entity where these views read them."""
    if any(one.is_in(view.entity) for view in views):
        return True
    return not any(set(view.entity.keys) == set(one.entity.keys) for view in views)


def erase(
    place: str,
    root: Path,
    rule: Rule,
    *,
    counts: bool,
    still_ours: Callable[[], None],
    progress: Progress = lambda _: None,
) -> Searched:
    """Erase the entity from every file of a table. ``counts``: as in ``merging.rewrite``.

    Delta metadata beside a log follow.

    Raises ``LayoutError`` for a damaged file, ``StoreUnavailable`` if the disk fails or somebody compacts the table;
    the call can then be repeated.
    """
    found = Searched(place=place)
    if not root.is_dir():
        return found
    with holding(root) as held:
        for path in layout.every_file(root):
            progress(f"{place}: {path.name}")
            file = layout.parse(path)
            if file is None:
                # No process writes here, so it is what an interrupted one has left.
                if path.suffix == ".tmp":
                    path.unlink()
                continue
            n_found = _n_found(path, [rule])
            found = replace(
                found,
                n_files=found.n_files + 1,
                n_bytes=found.n_bytes + path.stat().st_size,
                n_found=found.n_found + n_found,
            )
            if not n_found:
                continue
            temporary = held.folder / f"{path.name}.tmp"
            rewrite([source(file, path.stat().st_size)], temporary, rule.without, counts=counts)
            durable.like(temporary, path)
            held.still_ours()
            durable.rename(temporary, path, still_ours)
        delta.publish_again(root, place)
    return found


def refuse_unfinished(archive: Path) -> None:
    """Raise ``RequestError`` if an import has not ended: what it has not written yet may hold the entity."""
    for root in sorted(archive.iterdir()) if archive.is_dir() else ():
        if (running := read_imported(root).running) is not None:
            names = " ".join(one.name for one in running.files)
            raise RequestError(
                f"an import into {root} has not ended, and the rest of {names} may hold the entity; finish it with the same command, or "
                "forget all imports with --again, and then erase"
            )


def coverage_of(places: Sequence[Place]) -> dict[str, str | None]:
    """Return, of tables in object stores, a mark of each coverage: it is another one once a pipeline has published."""
    folders = [place.root / layout.COVERAGE for place in places if concerns(place.root)]
    return {
        str(path): path.e_tag
        for folder in folders
        for path in folder.glob("[!_]*.json")
        if isinstance(path, ObjectPath)
    }


def search(place: str, root: Path, rules: Sequence[Rule], progress: Progress = lambda _: None) -> Searched:
    """Search every file of a table, published or not, and the bytes of all others if the key is long enough."""
    found = Searched(place=place)
    notes: dict[str, int] = {}
    texts = [rule.text.encode() for rule in rules if isinstance(rule, TextRule)]
    for path in sorted(path for path in root.rglob("*") if path.is_file() and layout.parse(path) is None):
        octets = path.read_bytes()
        n_found = sum(text in octets for text in texts)
        found = replace(
            found,
            n_files=found.n_files + 1,
            n_bytes=found.n_bytes + len(octets),
            n_found=found.n_found + n_found,
        )
    for path in layout.every_file(root):
        progress(f"{place}: {path.name}")
        if layout.parse(path) is None:
            continue
        n_found = _n_found(path, rules)
        for rule in rules:
            if isinstance(rule, LetterRule):
                n_unread = sum(map(rule.unsearched, columns_of(path, names_of(path))))
                notes["unread"] = notes.get("unread", 0) + n_unread
        found = replace(
            found,
            n_files=found.n_files + 1,
            n_bytes=found.n_bytes + path.stat().st_size,
            n_found=found.n_found + n_found,
        )
    if notes.get("unread"):
        said = f"{place}: {notes['unread']} of them are binary and cannot be read, and so short a key cannot be looked for in them; --doubted-letters removes them"
        found = replace(found, notes=(said,))
    return found


def _n_found(path: Path, rules: Sequence[Rule]) -> int:
    """Return the number of rows of a file in which any of the rules finds the entity."""
    names = names_of(path)
    asked = [(rule, columns) for rule in rules if (columns := rule.columns(names))]
    wanted = list(dict.fromkeys(name for _, columns in asked for name in columns))
    return sum(
        int(
            pl.select(pl.any_horizontal([rule.finds(rows.select(columns)) for rule, columns in asked]))
            .to_series()
            .sum()
        )
        for rows in (columns_of(path, wanted) if asked else ())
    )


def _all_of(names: Sequence[str], there: Sequence[str]) -> Sequence[str]:
    return names if set(names) <= set(there) else ()


def _values(found: Any, name: str) -> Iterator[str]:
    """Yield the values, as text, that decoded data has under a name, at any depth."""
    if isinstance(found, Mapping):
        for key, value in found.items():
            if key == name:
                yield str(value)
            yield from _values(value, name)
    elif isinstance(found, list):
        for one in found:
            yield from _values(one, name)


def _mentions_text(row: Mapping[str, Any], part: str) -> bool | None:
    """Return whether a letter mentions a text anywhere, alone or with its length before it; None for an empty text."""
    if not part:
        return None
    headers = [one["value"] for one in row.get("headers") or ()]
    n_bytes = len(part.encode())
    # Avro and Protobuf write the length before the text, so a longer key is not taken for this one.
    binary = [length + part.encode() for length in (_varint(n_bytes), _zigzag(n_bytes))]
    written = [re.compile(rf"(?<!\w){re.escape(one)}(?!\w)") for one in {part, json.dumps(part)[1:-1]}]
    for octets in (row["key"], row["value"], row["reason"].encode(), *headers):
        text = _text(octets)
        if any(one.search(text) for one in written) if text is not None else any(one in octets for one in binary):
            return True
    return False


def _mentions_number(row: Mapping[str, Any], number: int) -> bool | None:
    """Return whether a letter's value mentions a number, or its key is it; None if nobody can say."""
    exact = [str(number).encode()]
    for form, n_bits in (("i", 32), ("q", 64)):
        if -(1 << (n_bits - 1)) <= number < 1 << (n_bits - 1):
            exact.append(struct.pack(f">{form}", number))
    if row["key"] in exact:
        return True
    text = _text(row["value"])
    if text is not None:
        return re.search(rf"(?<![0-9.\-]){number}(?![0-9.])", text) is not None
    forms = [form for form in (_varint(number), _zigzag(number)) if len(form) >= _LEAST_VARINT]
    if any(form in row["value"] for form in forms):
        return True
    return False if forms else None


def _text(octets: bytes | None) -> str | None:
    try:
        text = (octets or b"").decode()
    except UnicodeDecodeError:
        return None
    return text if text.isprintable() or text.strip().isprintable() or text.lstrip()[:1] in {"{", "["} else None


def _varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    octets = bytearray()
    while number >= 0x80:
        octets.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*octets, number])


def _zigzag(number: int) -> bytes:
    return _varint((number << 1) ^ (number >> 63))
