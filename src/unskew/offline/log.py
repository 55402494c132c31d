"""The published log of one view: which files there are, what they cover, and their rows in order of days."""

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from unskew.features.errors import LayoutError
from unskew.features.ledger import NOTHING_LATE, Ledger
from unskew.features.registry import RegisteredView
from unskew.sinks.layout import Coverage, TableFile, published_files, read_coverage, view_root

# Compressed bytes that are read at once: a bound on memory, far above what one label set of one view needs in most logs.
_CHUNK_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class LogStats:
    """What a view's log holds; ``causes``: rows per cause; ``first``, ``last``: of ``available_at``, None without rows.

    ``ledger``: what did not count on the way: events that came too late for a window, and repeats.
    """

    rows: int
    entities: int
    files: int
    bytes: int
    shards: int
    first: dt.datetime | None
    last: dt.datetime | None
    since: dt.datetime | None
    complete_to: dt.datetime | None
    causes: dict[str, int]
    ledger: Ledger


class ViewLog:
    """The files of one view's log that were published when it was opened.

    Raises ``LayoutError`` where rows below the covered sequence are missing, or where the log was written with
    another definition than ``view``.
    """

    def __init__(self, log_root: Path, view: RegisteredView) -> None:
        self.view = view
        self.root = view_root(log_root, view.name, view.version)
        # In this order: what coverage speaks of was published before it.
        self.coverage = read_coverage(self.root)
        files = published_files(self.root)
        _refuse_gaps(files, self.coverage, self.root)
        self._days = sorted(
            ((_day(file), file) for file in files), key=lambda pair: (pair[0], pair[1].writer, pair[1].first)
        )
        self._refuse_other_definitions()

    @property
    def files(self) -> list[TableFile]:
        """All files by (day, shard, sequence)."""
        return [file for _, file in self._days]

    @property
    def since_us(self) -> int | None:
        """The instant from which every shard has seen its events; None before the first."""
        return None if self.coverage is None else self.coverage.since_us

    @property
    def complete_to_us(self) -> int | None:
        """The last instant that is closed in every shard; None before one is."""
        return None if self.coverage is None else self.coverage.complete_to_us

    def newest_first(self, columns: Sequence[str], *, upto: dt.date | None = None) -> Iterator[pl.DataFrame]:
        """The rows of all days, up to and with ``upto``, in bounded pieces, the newest piece first.

        Within a piece each shard's rows are in the order of their instants; every row of an entity in a piece is
        later than its rows in the pieces that follow. An entity of a partitioned view may have rows in several shards,
        so the days of such a view are not split, however large.
        """
        groups: list[list[Path]] = []
        size = _CHUNK_BYTES
        last_day: dt.date | None = None
        for day, file in self._days:
            if upto is not None and day > upto:
                break
            n_bytes = file.path.stat().st_size
            if size + n_bytes > _CHUNK_BYTES and not (self.view.partitioned and day == last_day):
                groups.append([])
                size = 0
            groups[-1].append(file.path)
            size += n_bytes
            last_day = day
        for paths in reversed(groups):
            yield _read(paths, columns)

    def head(self, n_rows: int) -> pl.DataFrame:
        """The first rows by ``available_at``; without columns where nothing is published."""
        days = sorted({day for day, _ in self._days})
        rows = pl.DataFrame()
        for day in days:
            paths = [file.path for at, file in self._days if at == day]
            found = (
                pl.scan_parquet(paths, hive_partitioning=False)
                .sort("available_at", "shard", "seq")
                .head(n_rows - len(rows))
                .collect()
            )
            rows = pl.concat([rows, found]) if len(rows) else found
            if len(rows) >= n_rows:
                break
        return rows

    def stats(self) -> LogStats:
        """Counts over the whole log; reads keys, instants and causes."""
        files = self.files
        first = last = None
        rows = entities = 0
        causes: dict[str, int] = {}
        if files:
            scanned = pl.scan_parquet([file.path for file in files], hive_partitioning=False)
            counts = scanned.group_by("cause").agg(
                n=pl.len(), first=pl.col("available_at").min(), last=pl.col("available_at").max()
            )
            unique = scanned.select(self.view.entity.keys).unique().select(pl.len())
            by_cause, n_entities = pl.collect_all([counts.sort("cause"), unique])
            causes = dict(by_cause.select("cause", "n").iter_rows())
            first, last = by_cause.select(pl.col("first").min(), pl.col("last").max()).row(0)
            rows, entities = sum(causes.values()), n_entities.item()
        return LogStats(
            rows=rows,
            entities=entities,
            files=len(files),
            bytes=sum(file.path.stat().st_size for file in files),
            shards=0 if self.coverage is None else len(self.coverage.shards),
            first=first,
            last=last,
            since=_instant(self.since_us),
            complete_to=_instant(self.complete_to_us),
            causes=causes,
            ledger=NOTHING_LATE if self.coverage is None else self.coverage.ledger,
        )

    def _refuse_other_definitions(self) -> None:
        for file in [*self.files[:1], *self.files[1:][-1:]]:
            written = pl.read_parquet_metadata(file.path).get("unskew.state_fingerprint")
            if written != self.view.state_fingerprint:
                raise LayoutError(
                    f"{file.path} was written with another definition of {self.view.name}@{self.view.version} "
                    f"(state fingerprint {written}, now {self.view.state_fingerprint}); "
                    "read it with the definition it was written with, or give the changed view a new version"
                )


def _read(paths: Sequence[Path], columns: Sequence[str]) -> pl.DataFrame:
    return pl.scan_parquet(list(paths), hive_partitioning=False).select(columns).collect()


def _day(file: TableFile) -> dt.date:
    return dt.date.fromisoformat(file.path.parent.name.removeprefix("day="))


def _instant(t_us: int | None) -> dt.datetime | None:
    return None if t_us is None else dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=t_us)


def _refuse_gaps(files: Sequence[TableFile], coverage: Coverage | None, root: Path) -> None:
    """Rows that coverage counts on must be there; what was published since then may still be on its way."""
    if coverage is None:
        return
    next_sequence: dict[str, int] = {}
    for file in files:
        expected = next_sequence.get(file.writer, 0)
        shard = coverage.shards.get(file.writer)
        if file.first > expected and shard is not None and expected < shard.next_sequence:
            raise LayoutError(
                f"{root}: rows {expected} to {file.first - 1} of shard {file.writer} are missing; restore their file"
            )
        next_sequence[file.writer] = file.last + 1
    for writer, shard in coverage.shards.items():
        if next_sequence.get(writer, 0) < shard.next_sequence:
            raise LayoutError(
                f"{root}: rows {next_sequence.get(writer, 0)} to {shard.next_sequence - 1} of shard {writer} are missing; "
                "restore their files"
            )
