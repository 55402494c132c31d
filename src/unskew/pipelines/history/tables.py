"""The archive of a table: its rows as events of one partition, in the order of their arrivals, up to an instant.

The table is read as a whole each time. Rows that arrived before the place that was reached must be those that the
archive holds; the rest is appended, in chunks that end between two arrivals. After each chunk the place is made durable
(``state/batch/{table}.place``), so a process that is killed goes on from there.
"""

import datetime as dt
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from unskew.features.errors import LayoutError, RequestError
from unskew.features.plan import StreamPlan
from unskew.features.time import DAY_US, format_duration, format_instant
from unskew.pipelines.history.archive import BEGINNING, Archive
from unskew.pipelines.history.fitting import ARRIVAL, ROW, Arrivals, Fitting, Refused
from unskew.pipelines.history.inputs import inputs_of
from unskew.pipelines.history.sorting import KEY, Sorted
from unskew.pipelines.state.folder import SORTING
from unskew.sinks import durable
from unskew.sinks.tables import checksum
from unskew.sinks.tables.imported import remove_writers
from unskew.sinks.tables.kinds import ArchiveTable
from unskew.sinks.tables.layout import INSTANT, archive_writer

_SHOWN_DAYS = 3
_HALF = 1 << 32
_PARTS = 64
"""Parts of a day that are compared one by one; of a part with an erased row only the number of rows can be."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """How far a table was taken: rows that arrived before ``until_us`` are there.

    ``saved``: of ``ArchiveTable``. ``how``: what the definition says of arrivals.
    """

    until_us: int
    saved: Mapping[str, Any]
    how: Mapping[str, str]
    layout: int = 1


@dataclass(frozen=True, kw_only=True)
class TableJob:
    """A table whose archive is brought up to an instant; in ``folder`` its place is kept, and it is sorted there.

    ``keys``: the key columns of each entity that is computed from it.
    """

    stream: StreamPlan
    keys: Sequence[Sequence[str]]
    archive: Path
    folder: Path
    until_us: int
    skip_refused: bool
    still_ours: Callable[[], None]
    going_on: Callable[[], None]
    report: Callable[[str, int, int], None]


@dataclass(kw_only=True)
class Taken:
    """What was found. ``rows``: that are new. ``later``: rows that arrive at the instant or after it."""

    rows: int = 0
    later: int = 0
    refused: Refused = field(default_factory=Refused)


def place_of(folder: Path, stream: StreamPlan) -> Place | None:
    """Return how far a table was taken; None before it was. Raises ``LayoutError`` for a damaged file."""
    path = _path(folder, stream)
    try:
        return msgspec.convert(checksum.read_json(path.read_bytes()), Place)
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        raise LayoutError(f"{path} is damaged ({error}); restore it, or begin again with --again") from error


def forget_table(archive_root: Path, folder: Path, stream: StreamPlan, still_ours: Callable[[], None]) -> None:
    """Remove the archive of a table, and its place. It can be called again."""
    root = archive_root / stream.topic
    with durable.disk(root):
        # The place first: an archive without one is refused, and a place without its archive too.
        _path(folder, stream).unlink(missing_ok=True)
        remove_writers(root, lambda writer: writer == archive_writer(0), still_ours)


def take_table(job: TableJob) -> Taken:
    """Bring the archive of a table up to an instant. An instant that was reached before changes nothing.

    Raises ``RequestError`` for rows that are not events of the table, and then nothing has changed; ``LayoutError`` if
    the table's past is not what it was.
    """
    place = place_of(job.folder, job.stream)
    if place is not None and place.how != _how(job.stream):
        before, now = (
            ", ".join(f"{word} {value}" for word, value in one.items()) for one in (place.how, _how(job.stream))
        )
        raise LayoutError(
            f"table {job.stream.name} was taken with {before}, and now has {now}, so its rows have other arrivals: give the table "
            "another name and its views a new version, or compute everything anew with --again"
        )
    table = ArchiveTable(
        job.archive, job.stream.topic, 0, None if place is None else place.saved, still_ours=job.still_ours
    )
    archive = Archive.open(job.archive, job.stream)
    begin_us = -(2**63) if place is None else place.until_us
    rows = Sorted(job.folder / SORTING / job.stream.topic)
    try:
        taken, past = _read(job, rows, begin_us)
        _check_past(job, archive, past, begin_us)
        taken.rows = rows.n_rows
        if taken.refused.rows and not job.skip_refused:
            raise RequestError(
                f"{job.stream.name}: {taken.refused}. Nothing was taken: correct the table, or leave these rows out with --skip-refused"
            )
        if job.until_us > begin_us and (rows.n_rows or place is not None):
            _append(job, table, rows)
    finally:
        rows.close()
    return taken


def _read(job: TableJob, rows: Sorted, begin_us: int) -> tuple[Taken, "_Past"]:
    """Read the whole table: sort what is new, and sum up what is not."""
    about = job.stream.table
    assert about is not None
    fitting = Fitting(
        job.stream,
        Arrivals(column=about.arrival, delay_us=about.delay_us),
        renamed=about.renamed,
        without=frozenset(),
        zone=about.zone,
        places={},
    )
    paths = about.path if isinstance(about.path, (list, tuple)) else [about.path]
    taken, past = Taken(), _Past()
    inputs = inputs_of([path if isinstance(path, pl.LazyFrame) else Path(path) for path in paths])
    for one in inputs:
        fitting.check(str(one.path), one.columns)
    for fitted in fitting.read(inputs, taken.refused, job.going_on, lambda n_read: job.report("reading", n_read, 0)):
        events = fitted.drop(ROW)
        arrivals = events[ARRIVAL]
        past.add(events.filter(arrivals < begin_us).drop("_event_time"))
        taken.later += int((arrivals >= job.until_us).sum())
        new = events.filter((arrivals >= begin_us) & (arrivals < job.until_us))
        rows.add(new.with_columns(pl.col(ARRIVAL).alias(KEY)))
    return taken, past


def _append(job: TableJob, table: ArchiveTable, rows: Sorted) -> None:
    n_rows = 0
    for chunk in _between_arrivals(rows):
        job.going_on()
        n_rows += chunk.height
        job.report("writing", n_rows, rows.n_rows)
        last_us = int(chunk.item(-1, ARRIVAL))
        offsets = np.arange(table.next_sequence, table.next_sequence + chunk.height)
        names = [name for name in chunk.columns if not name.startswith("_")]
        events = chunk.with_columns(
            pl.lit(0, pl.Int32).alias("_partition"), pl.Series("_offset", offsets), pl.col(ARRIVAL).cast(INSTANT)
        ).select(*names, "_partition", "_offset", ARRIVAL, "_event_time")
        table.append(events, first_us=int(chunk.item(0, ARRIVAL)), clock_us=last_us + 1)
        _save(job, table, last_us + 1)
    table.append(_nothing(job.stream), clock_us=job.until_us)
    _save(job, table, job.until_us)
    table.snapshot()
    table.settle()


def _between_arrivals(rows: Sorted) -> Iterator[pl.DataFrame]:
    """Yield rows in order so that rows of one arrival come together."""
    kept: list[pl.DataFrame] = []
    for piece in rows:
        last = piece[ARRIVAL][-1]
        whole = piece.filter(pl.col(ARRIVAL) < last)
        if whole.height:
            yield pl.concat([*kept, whole])
            kept = []
        kept.append(piece.filter(pl.col(ARRIVAL) == last))
    if kept:
        yield pl.concat(kept)


def _save(job: TableJob, table: ArchiveTable, until_us: int) -> None:
    path = _path(job.folder, job.stream)
    place = Place(until_us=until_us, saved=table.snapshot(), how=_how(job.stream))
    with durable.disk(job.folder):
        durable.make_folder(path.parent)
        durable.replace(path, checksum.sealed_json(msgspec.to_builtins(place)), job.still_ours)


def _path(folder: Path, stream: StreamPlan) -> Path:
    return folder / f"{stream.topic}.place"


def _how(stream: StreamPlan) -> dict[str, str]:
    about = stream.table
    assert about is not None
    arrival = {"delay": format_duration(about.delay_us)} if about.arrival is None else {"arrival": about.arrival}
    return arrival if about.zone is None else {**arrival, "zone": about.zone}


def _nothing(stream: StreamPlan) -> pl.DataFrame:
    meta = {"_partition": pl.Int32(), "_offset": pl.Int64(), ARRIVAL: INSTANT, "_event_time": INSTANT}
    return pl.DataFrame(schema={**stream.columns, **meta})


def _is_erased(job: TableJob) -> pl.Expr:
    """Return whether an archived row may be one of an entity that was erased: it lost its event time, or its key."""
    keys = [pl.all_horizontal(pl.col(name).is_null() for name in names) for names in job.keys]
    return pl.any_horizontal(pl.col(job.stream.event_time).is_null(), *keys)


class _Past:
    """The rows of each day, by their arrivals, summed up in any order: their number, and hashes of their values.

    ``erased``: by day, how many rows have lost their values, because their entity was erased. The rest of a day is
    summed up in parts, by hash, so that it can still be compared, whether the table has the erased rows or not.
    """

    def __init__(self) -> None:
        self.days: dict[int, dict[int, tuple[int, int, int]]] = {}
        self.erased: dict[int, int] = {}

    def add(self, rows: pl.DataFrame) -> None:
        """Add rows: the columns of the stream, and ``_arrival`` in microseconds."""
        if not rows.height:
            return
        hashes = rows.hash_rows(seed=1)
        # Halves, whose sums do not overflow.
        by_part = (
            pl.DataFrame(
                {
                    "day": rows[ARRIVAL] // DAY_US,
                    "part": hashes % _PARTS,
                    "high": hashes // _HALF,
                    "low": hashes % _HALF,
                }
            )
            .group_by("day", "part")
            .agg(pl.len(), pl.col("high").sum(), pl.col("low").sum())
        )
        for day, part, *sums in by_part.iter_rows():
            parts = self.days.setdefault(day, {})
            n_rows, high, low = parts.get(part, (0, 0, 0))
            parts[part] = n_rows + sums[0], high + sums[1], low + sums[2]

    def add_erased(self, arrivals: pl.Series) -> None:
        """Add rows of which nothing is known but when they arrived, in microseconds."""
        for day, n_rows in (arrivals // DAY_US).value_counts().iter_rows():
            self.days.setdefault(day, {})
            self.erased[day] = self.erased.get(day, 0) + n_rows

    def n_rows(self, day: int) -> int:
        """Return how many rows a day has, with those that were erased."""
        return sum(n_rows for n_rows, *_ in self.days.get(day, {}).values()) + self.erased.get(day, 0)

    def is_in(self, there: "_Past", day: int) -> bool:
        """Return whether a day of ``there`` has these rows, and no others but those that were erased."""
        n_erased = self.erased.get(day, 0)
        mine, theirs = self.days.get(day, {}), there.days.get(day, {})
        more = 0
        for part in mine.keys() | theirs.keys():
            one, other = mine.get(part, (0, 0, 0)), theirs.get(part, (0, 0, 0))
            if one[0] > other[0] or (one[0] == other[0] and one != other):
                return False
            more += other[0] - one[0]
        return more <= n_erased


def _check_past(job: TableJob, archive: Archive, found: _Past, begin_us: int) -> None:
    """Raise ``LayoutError`` if the table does not hold what was taken of it, as far as both go back."""
    taken = _Past()
    if archive:
        for events in archive.read(0, BEGINNING, archive.cut[0].offset, list(job.stream.columns)):
            job.going_on()
            rows = events.select(*job.stream.columns, pl.col(ARRIVAL).to_physical().cast(pl.Int64))
            erased = rows.select(_is_erased(job)).to_series()
            taken.add(rows.filter(~erased))
            taken.add_erased(rows.filter(erased)[ARRIVAL])
    if not found.days or not taken.days:
        # Nothing was taken yet, or the table keeps nothing that was.
        return
    from_day = max(min(found.days), min(taken.days)) if archive.is_cut(0) else min(found.days)
    days = sorted(day for day in found.days.keys() | taken.days.keys() if day >= from_day)
    changed = [day for day in days if not taken.is_in(found, day)]
    if not changed:
        return
    texts = [
        f"{dt.date(1970, 1, 1) + dt.timedelta(days=day)}: {taken.n_rows(day):,} rows were taken, and "
        f"{found.n_rows(day):,} are there now"
        for day in changed[:_SHOWN_DAYS]
    ]
    more = f" (and {len(changed) - _SHOWN_DAYS} more days)" if len(changed) > _SHOWN_DAYS else ""
    raise LayoutError(
        f"table {job.stream.name}: its rows that arrived before {format_instant(begin_us)} are not those that were taken: "
        f"{'; '.join(texts)}{more}. Nothing was changed. If rows come later than declared, give the table a longer delay and "
        "another name, and its views a new version; if the table lost an entity on purpose, erase it here too (unskew erase); "
        "to compute everything anew from the table as it is, use --again"
    )
