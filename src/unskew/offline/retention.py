"""Retention: removes old days of logs, archives and dead letters, and keeps what values after the cut rest on.

A log keeps, for each shard and entity, its last row before the cut: the base. So every label from the cut on is
answered as before, and earlier ones are refused. The order of steps is the contract:

1. Take the table's lock, as compaction does.
2. Make durable that nothing before the cut is known any more (``_coverage/_retained.json``). Readers read it after they
   have listed files, so none of them takes a missing row for an entity without events. Of an archive also which events
   go, and how many, so that one that is missing among the others is still noticed.
3. Of a log: write the base of a shard's files before the cut as one file, whose name covers theirs and whose metadata
   say how many rows it lacks; rename it to the folder of the newest of them. Those files are superseded then, and
   deleted after the grace period, as those that compaction merged. Before, metadata for other engines name the base.
   Of an archive, and of dead letters: delete the files of the days before the cut, from old to new.

A file of several days (``unskew compact --span``) is old once all of its days are: nothing is cut out of a file. Of an
archive, those before it that have rows of its first day wait with it, so that what is left begins with a whole day.

After a stop between any two steps readers are right, and the same call finishes the rest. The newest file of each
writer stays, because a restart looks for it. Running pipelines only add files, so nobody needs to stop.
"""

import contextlib
import datetime as dt
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import polars as pl

from unskew.features.errors import LayoutError, RequestError
from unskew.features.plan import ViewPlan
from unskew.features.time import DAY_US, day_of, format_duration
from unskew.offline import delta
from unskew.offline.compaction import Held, Table, delete_superseded, holding
from unskew.offline.merging import Source, columns_of, rewrite, source, whole
from unskew.offline.merging import n_rows as rows_in
from unskew.sinks import durable
from unskew.sinks.tables import layout
from unskew.sinks.tables.imported import write_retained
from unskew.sinks.tables.layout import Removed, TableFile

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Retained:
    """The result of a retention, or of a dry run.

    ``cut``: the first day that is kept whole; None if the table holds no older one. ``files``, ``n_bytes``: published
    files before the cut. ``n_astride``: files that stay because they have rows of days after the cut, too; before the
    cut they begin with ``astride_from``. ``rows_before``, ``rows_after``: of a log, the rows of these files, and those
    of the bases. ``n_deleted``, ``n_waiting``: files that were deleted, and that wait for the end of their grace
    period.
    """

    table: Table
    cut: dt.date | None = None
    files: int = 0
    n_bytes: int = 0
    n_astride: int = 0
    astride_from: dt.date | None = None
    rows_before: int = 0
    rows_after: int = 0
    n_deleted: int = 0
    n_waiting: int = 0
    faults: tuple[str, ...] = ()


def cut_of(table: Table, keep_us: int) -> dt.date | None:
    """Return the first day to keep, ``keep_us`` before the instant to which the table is complete; None without one.

    The wall clock does not count, so the data of a replay are not old.
    """
    coverage = layout.read_coverage(table.root)
    if coverage is None:
        newest = [max(file.last_day for file in ones) for ones in _by_writer(layout.published_files(table.root))]
        if not newest:
            return None
        # A partition without dead letters holds nothing back; one without events may still get earlier ones.
        reached = max(newest) if table.sequence is None else min(newest)
        return _day_before(_midnight_us(reached), keep_us)
    # What was imported ends where the topic takes over, and holds nothing back.
    shards = [one for name, one in coverage.shards.items() if layout.origin_of(name) != layout.IMPORTED]
    clocks = [one.complete_to_us for one in shards if one.complete_to_us is not None]
    return None if coverage.waiting or not clocks else _day_before(min(clocks), keep_us)


def _day_before(instant_us: int, keep_us: int) -> dt.date:
    return day_of(max(instant_us - keep_us, _midnight_us(dt.date.min)))


def refuse_too_short(keep_us: int, views: Sequence[ViewPlan]) -> None:
    """Raise ``RequestError`` if an archive of this length cannot fill the windows of a new version of these views."""
    for view in views:
        if view.sessions is not None or any(window.kind in {"lifetime", "session"} for window in view.windows):
            what = "sessions" if view.sessions is not None else "a lifetime or a running session"
            raise RequestError(
                f"{view.id} counts {what}, which may reach back to the first event, so a new version of it needs the whole "
                f"archive of topic {view.stream.topic!r}; --force removes days all the same"
            )
        # Lengths of calendar periods are nominal; the real ones are up to two days longer.
        needed_us = max(
            (window.span + 1) * window.hop_us + (2 * DAY_US if window.kind == "calendar" else 0)
            for window in view.windows
        )
        if keep_us < needed_us:
            raise RequestError(
                f"--keep-archive {format_duration(keep_us)}: the longest window of {view.id} needs the last "
                f"{format_duration(needed_us)} of topic {view.stream.topic!r}, or a new version of it would be warming; keep so much, "
                "or remove days all the same with --force"
            )


def retain_log(
    table: Table,
    keys: Sequence[str],
    cut: dt.date,
    *,
    grace_s: float,
    now_s: float,
    dry_run: bool = False,
    progress: Progress = lambda _: None,
) -> Retained:
    """Replace the days of a log before ``cut`` by the last row of each entity.

    ``keys``: the key columns. ``grace_s``, ``now_s``: as in compaction. Raises as
    ``compaction.compact`` does; the call can then be repeated.
    """
    with _held(table, dry_run=dry_run) as held:
        if held is not None:
            _record(table.root, cut, held)
        found = _looked_at(table, cut)
        faults: list[str] = []
        for old in _before(table, cut):
            progress(f"{table.name}: {old[0].writer}")
            try:
                found = _cut_shard(table, old, keys, found, held)
            except LayoutError as error:
                faults.append(str(error))
        if not dry_run:
            # Other engines leave the replaced files before these are deleted.
            delta.publish_again(table.root, table.name)
            n_deleted, n_waiting, damaged = delete_superseded(table, grace_s, now_s)
            faults += damaged
            found = replace(found, n_deleted=n_deleted, n_waiting=n_waiting)
    return replace(found, faults=tuple(faults))


def retain_days(table: Table, cut: dt.date, *, dry_run: bool = False) -> Retained:
    """Delete the files of an archive, or of dead letters, of the days before ``cut``; each writer keeps its newest."""
    with _held(table, dry_run=dry_run) as held:
        old = list(_before(table, cut))
        if held is not None:
            _record(table.root, cut, held, old if table.is_archive else ())
        found = _looked_at(table, cut)
        for file in (file for ones in old for file in ones):
            found = replace(found, files=found.files + 1, n_bytes=found.n_bytes + file.path.stat().st_size)
            if held is not None:
                file.path.unlink()
                found = replace(found, n_deleted=found.n_deleted + 1)
    return found


@contextlib.contextmanager
def _held(table: Table, *, dry_run: bool) -> Iterator[Held | None]:
    """Hold the table's lock; a dry run needs none."""
    if dry_run:
        yield None
        return
    with holding(table.root) as found:
        yield found
        for folder in table.root.glob("day=*"):
            durable.remove_empty([folder])


def _record(root: Path, cut: dt.date, held: Held, old: Sequence[Sequence[TableFile]] = ()) -> None:
    """Make durable what is not known any more; ``old``: the files of each writer that are to go for good."""
    kept_from_us = max(_midnight_us(cut), layout.read_kept_from(root) or -(2**63))
    removed = layout.read_removed(root)
    for files in old:
        removed[files[0].writer] = _removed(files, removed.get(files[0].writer))
    write_retained(root, kept_from_us, removed, held.still_ours)
    durable.like_file(layout.retained_file(root), root)


def _removed(files: Sequence[TableFile], before: Removed | None) -> Removed:
    """Return which rows of a writer are gone once these files are; ``before``: those that were recorded earlier."""
    begin, n_rows = (0, 0) if before is None else (before.next_sequence, before.n_rows)
    # A retention that was interrupted has recorded files that are still there.
    new = [file for file in layout.without_superseded(files) if file.first >= begin]
    try:
        n_new = sum(rows_in(file.path) for file in new)
    except LayoutError:
        # A damaged file can be removed, too.
        n_rows = None
    else:
        n_rows = None if n_rows is None else n_rows + n_new
    return Removed(next_sequence=max([begin, *(file.last + 1 for file in new)]), n_rows=n_rows)


def _before(table: Table, cut: dt.date) -> Iterator[list[TableFile]]:
    """Yield, for each writer, its published files of the days before ``cut``, in order.

    Where files are deleted, the newest of each writer is not among them, and superseded files go with their cover.
    """
    files = layout.published_files(table.root)
    covered = [] if table.is_log else layout.superseded_files(table.root)
    for ones in _by_writer(files):
        kept = [] if table.is_log else [ones[-1]]
        end = cut
        if table.is_archive:
            # What is left of it must begin with a whole day.
            for file in sorted(ones, key=lambda file: file.last_day, reverse=True):
                if file.last_day >= end or file in kept:
                    end = min(end, file.first_day)
        old = [file for file in ones if file.last_day < end and file not in kept]
        old += [file for file, covers in covered if covers[0] in old]
        if old:
            yield sorted(old, key=lambda file: (file.first, file.last))


def _looked_at(table: Table, cut: dt.date) -> Retained:
    astride = [file for file in layout.published_files(table.root) if file.first_day < cut <= file.last_day]
    first = min((file.first_day for file in astride), default=None)
    return Retained(table=table, cut=cut, n_astride=len(astride), astride_from=first)


def _by_writer(files: Sequence[TableFile]) -> Iterator[list[TableFile]]:
    for _, ones in groupby(files, lambda file: file.writer):
        yield list(ones)


def _cut_shard(
    table: Table,
    old: Sequence[TableFile],
    keys: Sequence[str],
    found: Retained,
    held: Held | None,
) -> Retained:
    """Replace a shard's old files by its base; without the lock, only say what would be done."""
    expected = 0
    for file in old:
        if file.first != expected:
            raise LayoutError(
                f"{table.root}: rows {expected} to {file.first - 1} of {file.writer} are missing; restore their file. Its old days "
                "were left alone"
            )
        expected = file.last + 1
    sources = [source(file, file.path.stat().st_size) for file in old]
    kept = _last_rows(sources, keys)
    n_rows = sum(one.n_rows for one in sources)
    found = replace(
        found,
        files=found.files + len(old),
        n_bytes=found.n_bytes + sum(one.n_bytes for one in sources),
        rows_before=found.rows_before + n_rows,
        rows_after=found.rows_after + kept.height,
    )
    if held is None or (len(sources) == 1 and kept.height == n_rows):
        return found
    temporary = held.folder / f"{old[0].path.name}.tmp"
    try:
        rewrite(
            sources, temporary, lambda rows: rows.join(kept, on="seq", how="semi", maintain_order="left"), counts=True
        )
        written = pl.concat([kept.clear().select("seq"), *columns_of(whole(temporary), ["seq"])])
        if not written["seq"].equals(kept["seq"].sort()):
            raise LayoutError(f"{old[0].path} to {old[-1].path.name}: the base has other rows; left alone")
        os.utime(temporary)
        durable.like(temporary, old[-1].path)
        name = layout.file_name(old[0].writer, old[0].first, old[-1].last)
        durable.rename(temporary, old[-1].path.with_name(name), held.still_ours)
    finally:
        temporary.unlink(missing_ok=True)
    return found


def _last_rows(sources: Sequence[Source], keys: Sequence[str]) -> pl.DataFrame:
    """Return ``seq`` of the last row of each entity."""
    last: pl.DataFrame | None = None
    for one in sources:
        for rows in columns_of(whole(one.path), [*keys, "seq"]):
            rows_of_both = rows if last is None else pl.concat([last, rows])
            last = rows_of_both.group_by(keys).agg(pl.col("seq").max())
    assert last is not None
    return last.select("seq")


def _midnight_us(day: dt.date) -> int:
    return (day - dt.date(1970, 1, 1)).days * DAY_US
