"""Readers that look on while a pipeline dies and comes back, and note whatever they see go back."""

import itertools
import json
import threading
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import redis
from typing_extensions import override

from tests.support.pipeline import bits
from tests.support.recovery.processes import Site
from tests.support.recovery.scene import MONOTONE
from unskew.features.errors import RequestError, StoreUnavailable
from unskew.features.plan import ViewPlan
from unskew.serving.online import OnlineReader
from unskew.sinks.redis.keyspace import connect

MOST_FAULTS = 20


class Watch(threading.Thread):
    """Looks again and again until it is stopped. ``faults``: what it saw that must never be, in words."""

    def __init__(self, name: str, pause_s: float) -> None:
        super().__init__(name=name, daemon=True)
        self._pause_s = pause_s
        self._done = threading.Event()
        self._broken: BaseException | None = None
        self.faults: list[str] = []
        self.looks = 0

    def look(self) -> None:
        raise NotImplementedError

    def finish(self) -> None:
        """Look a last time and stop; whatever broke the watch itself is raised."""
        self._done.set()
        self.join()
        if self._broken is not None:
            raise self._broken
        self.look()

    @override
    def run(self) -> None:
        try:
            while not self._done.is_set():
                self.look()
                self.looks += 1
                self._done.wait(self._pause_s)
        except BaseException as broken:  # noqa: BLE001 - raised where the watch is finished
            self._broken = broken

    def fault(self, text: str) -> None:
        if len(self.faults) < MOST_FAULTS:
            self.faults.append(f"{time.strftime('%H:%M:%S')} {text}")


@dataclass(frozen=True)
class Published:
    """A published file as its name and content were when it was first seen."""

    writer: str
    first: int
    last: int
    rows: pl.DataFrame


class FilesWatch(Watch):
    """A watch on published files.

    Each file is complete as soon as it is visible, no row is in two of them, and none ever vanishes or changes;
    coverage only grows, and the rows that it covers are there.
    """

    def __init__(self, site: Site, *, pause_s: float = 0.08) -> None:
        super().__init__("files", pause_s)
        self._site = site
        self.seen: dict[Path, dict[Path, Published]] = {}
        self._coverage: dict[Path, dict[str, Any]] = {}

    @override
    def look(self) -> None:
        for root in table_roots(self._site):
            # As a reader does: what is covered first, then which files there are.
            covered = self._look_at_coverage(root)
            self._look_at_files(root, covered)

    def _look_at_coverage(self, root: Path) -> dict[str, int]:
        covered = {}
        for path in (root / "_coverage").glob("[!_]*.json"):
            found = json.loads(path.read_bytes())
            before = self._coverage.get(path, {})
            for name in ("complete_to", "seq"):
                if (before.get(name) or 0) > (found[name] or 0):
                    self.fault(f"{path}: {name} went back from {before[name]} to {found[name]}")
            if before.get("since") not in {None, found["since"]}:
                self.fault(f"{path}: since was {before['since']} and is {found['since']}")
            self._coverage[path] = found
            covered[path.stem] = found["seq"]
        return covered

    def _look_at_files(self, root: Path, covered: dict[str, int]) -> None:
        seen = self.seen.setdefault(root, {})
        paths = set(root.glob("day=*/*.parquet"))
        for path in sorted(paths - set(seen)):
            if (published := self._read(path)) is not None:
                seen[path] = published
        files = sorted(((file.writer, file.first, -file.last), path) for path, file in seen.items() if path in paths)
        ends: dict[str, int] = {}
        for (writer, first, minus_last), path in files:
            end = ends.get(writer, 0)
            if first < end and -minus_last >= end:
                self.fault(f"{path}: its rows from {first} on stand in another file too, up to {end - 1}")
            if self._numbered(root) and first > end:
                self.fault(f"{path}: {writer} lacks the rows {end} to {first - 1}")
            ends[writer] = max(end, -minus_last + 1)
        for writer, n_covered in covered.items():
            if ends.get(writer, 0) < n_covered:
                self.fault(f"{root}: {writer} covers {n_covered} rows, published are {ends.get(writer, 0)}")
        for path in set(seen) - paths:
            gone = seen[path]
            if not any(
                other.writer == gone.writer and other.first <= gone.first and gone.last <= other.last
                for at, other in seen.items()
                if at in paths
            ):
                self.fault(f"{path} was published and is gone")
                del seen[path]

    def _read(self, path: Path) -> Published | None:
        writer, first, last = path.stem.rsplit("-", 2)
        try:
            rows = pl.read_parquet(path, hive_partitioning=False)
        except FileNotFoundError:
            return None
        except (OSError, pl.exceptions.PolarsError) as error:
            self.fault(f"{path} is published and cannot be read: {error}")
            return None
        published = Published(writer, int(first), int(last), rows)
        number = "seq" if "seq" in rows.columns else "_offset" if "_offset" in rows.columns else None
        if number == "seq" and rows["seq"].to_list() != list(range(published.first, published.last + 1)):
            self.fault(f"{path}: its rows are not those of its name: {rows['seq'].to_list()}")
        if number == "_offset" and (rows[number].min(), rows[number].max()) != (published.first, published.last):
            self.fault(f"{path}: its offsets are not those of its name: {rows[number].to_list()}")
        return published

    def _numbered(self, root: Path) -> bool:
        """Return true if the table's rows are numbered without gaps; archives are numbered by offsets, with gaps."""
        return not root.is_relative_to(self._site.archive)

    def check_unchanged(self, root: Path, rows: pl.DataFrame, writer: str, number: str) -> None:
        """Note rows that were seen published and are not in ``rows`` now, exactly as they were."""
        now = rows.partition_by(writer, as_dict=True)
        for path, file in self.seen.get(root, {}).items():
            mine = now.get((file.rows[writer][0],))
            there = None if mine is None else mine.filter(pl.col(number).is_between(file.first, file.last)).sort(number)
            if there is None or not there.equals(file.rows):
                self.fault(f"{path}: its rows are no longer there as they were")


def table_roots(site: Site) -> Iterator[Path]:
    """Every table that there is by now."""
    return itertools.chain(site.log.glob("[!_]*/v*"), site.archive.glob("[!_]*"), site.dead_letters.glob("[!_]*"))


@dataclass
class _Entity:
    """What was seen of one entity of one view. ``at_us``: the latest instant at which it changed."""

    at_us: int
    count: int | None
    present: bool = True


@dataclass(frozen=True)
class ExactRead:
    """What the online reader called the exact values at ``as_of_us``, as bits."""

    view: str
    key: tuple[Any, ...]
    as_of_us: int
    values: tuple[Any, ...]


@dataclass
class Asked:
    """What is asked of a view: all features of all its entities."""

    view: ViewPlan
    references: list[str]
    entities: pl.DataFrame
    keys: list[tuple[Any, ...]] = field(default_factory=list)


class RedisWatch(Watch):
    """A watch on current values.

    No clock, no instant of change and no count over all time ever goes back or vanishes. Values that the online reader
    calls exact are kept, to be compared with the log. ``may_empty``: the server loses its data on the way; a missing
    value is then not a fault, but a present one must still not be older than one seen before.
    """

    def __init__(self, site: Site, *, may_empty: bool = False, pause_s: float = 0.04) -> None:
        super().__init__("redis", pause_s)
        self._site = site
        self._may_empty = may_empty
        self._client = connect(site.redis_url)
        self._reader = OnlineReader(connect(site.redis_url), prefix=site.prefix)
        self._entities: dict[str, _Entity] = {}
        self._clocks: dict[str, int] = {}
        self._exact_to: dict[tuple[str, tuple[Any, ...]], int] = {}
        self.exact: set[ExactRead] = set()
        self.away = 0
        columns = site.scene.entities
        self._asked = []
        for view in site.scene.plan.views.values():
            keys = columns.select(view.entity.keys).unique().sort(view.entity.keys)
            references = [f"{view.name}:{output.name}" for output in view.outputs]
            self._asked.append(Asked(view, references, keys, keys.rows()))

    @override
    def look(self) -> None:
        try:
            self._look_at_clocks()
            for asked in self._asked:
                self._look_at_rows(asked.view)
                if self.looks % 4 == 0:
                    self._read_exact(asked)
        except (redis.RedisError, OSError, StoreUnavailable):
            self.away += 1
            time.sleep(0.05)

    @override
    def finish(self) -> None:
        super().finish()
        self._reader.close()
        self._client.close()

    def _look_at_clocks(self) -> None:
        for name, text in self._client.hgetall(f"{self._site.prefix}:clock:main").items():
            field_, value = name.decode(), text.decode()
            if not value.lstrip("-").isdecimal():
                continue
            now, before = int(value), self._clocks.get(field_)
            if before is not None and (now != before if field_.endswith("#since") else now < before):
                self.fault(f"clock {field_} went from {before} to {now}")
            self._clocks[field_] = now

    def _look_at_rows(self, view: ViewPlan) -> None:
        pattern = f"{self._site.prefix}:{view.id}:" + "{*}"
        names = {name.decode() for name in self._client.scan_iter(match=pattern, count=10_000)}
        # Asked in the order of one pipeline, so that a row that vanishes between SCAN and HGETALL is found empty.
        before = {name for name in self._entities if name.startswith(pattern[:-2])}
        asked = sorted(names | before)
        commands = self._client.pipeline(transaction=False)
        for name in asked:
            commands.hgetall(name)
        for name, row in zip(asked, commands.execute(), strict=True):
            self._look_at_row(view, name, {key.decode(): value.decode() for key, value in row.items()})

    def _look_at_row(self, view: ViewPlan, name: str, row: dict[str, str]) -> None:
        known = self._entities.get(name)
        if not row:
            if known is not None and known.present:
                known.present = False
                if view.name in MONOTONE and not self._may_empty:
                    self.fault(f"{name} vanished, with {known.count} events")
            return
        counted = MONOTONE.get(view.name)
        now = _Entity(int(row["_at"]), None if counted is None else int(row[counted]))
        if known is not None:
            # A row that vanished did so after it last changed.
            earliest = known.at_us if known.present or self._may_empty else known.at_us + 1
            if now.at_us < earliest:
                self.fault(f"{name} went back from its change at {known.at_us} to that at {now.at_us}")
            if now.count is not None and known.count is not None and now.count < known.count:
                self.fault(f"{name} went back from {known.count} events to {now.count}")
        self._entities[name] = now

    def _read_exact(self, asked: Asked) -> None:
        try:
            found = self._reader.read(asked.references, asked.entities)
        except RequestError:
            # Nothing is published yet, or no longer.
            return
        meta = found.metadata[asked.view.name]
        values = found.to_polars().select(reference.partition(":")[2] for reference in asked.references).rows()
        as_of = meta["as_of"].dt.epoch("us").to_list()
        for key, at_us, provisional, row in zip(asked.keys, as_of, meta["provisional"], values, strict=True):
            if not provisional:
                self.note_exact(ExactRead(asked.view.name, key, at_us, bits(row)))

    def note_exact(self, read: ExactRead) -> None:
        """Keep an exact read; none may be of an instant before that of an earlier one."""
        before_us = self._exact_to.get((read.view, read.key))
        if before_us is not None and read.as_of_us < before_us:
            self.fault(f"{read.view} of {read.key}: exact at {before_us}, and after that at {read.as_of_us}")
        self._exact_to[read.view, read.key] = read.as_of_us
        self.exact.add(read)


def wrong_reads(reads: Iterable[ExactRead], view: ViewPlan, log: pl.DataFrame, nothing: tuple[Any, ...]) -> list[str]:
    """Return the exact reads of a view that differ from its log at their instant; ``nothing``: before the first row."""
    names = [output.name for output in view.outputs]
    keys = view.entity.keys
    instants: dict[tuple[Any, ...], list[int]] = {}
    values: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    frame = log.sort("available_at").select(*keys, pl.col("available_at").dt.epoch("us").alias("_us"), *names)
    for row in frame.iter_rows():
        key = row[: len(keys)]
        instants.setdefault(key, []).append(row[len(keys)])
        values.setdefault(key, [nothing]).append(bits(row[len(keys) + 1 :]))
    wrong = []
    for read in reads:
        place = bisect_right(instants.get(read.key, []), read.as_of_us)
        expected = values.get(read.key, [nothing])[place]
        if read.values != expected:
            wrong.append(f"{view.name} of {read.key} at {read.as_of_us}: read {read.values}, the log has {expected}")
    return wrong
