"""The import: history that lies in files becomes the beginning of a stream's archive, up to where the topic takes over.

The steps, in their order:

1. All rows are read, converted and placed, and sorted on disk. Whatever is wrong is found now; nothing is written.
2. The rows are appended to the archive in the order of their arrivals, in chunks. After each, the positions of the
   tables are made durable in the record of the archive, so an import that is killed goes on where it was.
3. The record says that the import is complete. Only now is it seen.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from unskew.features.errors import LayoutError, RequestError, Stopped
from unskew.features.plan import StreamPlan
from unskew.features.printing import pairs
from unskew.features.time import format_instant
from unskew.pipelines.history.archive import BEGINNING, Archive, Reached
from unskew.pipelines.history.fitting import ARRIVAL, ROW, Arrivals, Fitting, Refused
from unskew.pipelines.history.inputs import Input, identified, inputs_of
from unskew.pipelines.history.placing import PARTITION, Placing, placing_of
from unskew.pipelines.history.sorting import KEY, Sorted
from unskew.pipelines.kafka.consumer import Flag
from unskew.pipelines.state.folder import IMPORTING, held_by
from unskew.sinks.lease import Leases, Owner
from unskew.sinks.tables.imported import (
    HandOver,
    Import,
    Imported,
    InputFile,
    Running,
    forget_imported,
    read_imported,
    write_imported,
)
from unskew.sinks.tables.kinds import ArchiveTable
from unskew.sinks.tables.layout import IMPORTED, INSTANT

MOST_ROWS = -IMPORTED
_OFFSET = "_offset"

Report = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class ImportJob:
    """What is imported, how, and where to.

    ``until_us``: the instant at which the topic takes over; None for where its archived events begin. ``partition``,
    ``offset``: columns of the files with each row's place in the topic, if they have them. ``renamed``, ``without``,
    ``zone``: as in ``Fitting``. ``skip_refused``: whether rows that are not events of the stream are left out; they
    are an error otherwise. ``again``: whether to forget all earlier imports of the stream first.
    """

    stream: StreamPlan
    paths: Sequence[Path]
    archive: Path
    state: Path
    owner: Owner
    arrivals: Arrivals
    until_us: int | None = None
    partition: str | None = None
    offset: str | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    without: frozenset[str] = frozenset()
    zone: str | None = None
    skip_refused: bool = False
    again: bool = False

    @property
    def how(self) -> dict[str, str]:
        """The options that decide what a row becomes."""
        options = {
            "arrival": self.arrivals.column or "",
            "delay_us": "" if self.arrivals.column else str(self.arrivals.delay_us),
            "until_us": "" if self.until_us is None else str(self.until_us),
            "partition": self.partition or "",
            "offset": self.offset or "",
            "column": ",".join(f"{ours}={theirs}" for ours, theirs in sorted(self.renamed.items())),
            "without": ",".join(sorted(self.without)),
            "zone": self.zone or "",
            "skip_refused": "yes" if self.skip_refused else "",
        }
        return {name: value for name, value in options.items() if value}


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of an import.

    ``done``: how it went; None if the same files were imported before. ``refused``: what was left out. ``overlap``:
    if the files reach past the beginning of the topic's archive, from when on, and how many rows and events of the
    topic there are from there to the hand-over.
    """

    stream: str
    done: Import | None
    hand_overs: Mapping[int, HandOver]
    way: str = ""
    refused: Refused | None = None
    overlap: tuple[int, int, int] | None = None

    def lines(self) -> list[str]:
        """Return what people want to know."""
        if self.done is None:
            return [f"{self.stream}: these files are imported already, with the same options; nothing was changed"]
        rows = sum(one.rows for one in self.hand_overs.values())
        first = min((one.since_us for one in self.hand_overs.values()), default=0)
        last = max((one.last_us for one in self.hand_overs.values() if one.rows), default=first)
        places = ", ".join(
            f"offset {one.offset:,} of partition {partition} ({format_instant(one.cut_us)})"
            for partition, one in sorted(self.hand_overs.items())
        )
        span = f"from {format_instant(first)} to {format_instant(last)}"
        found = [
            f"{self.stream}: {self.done.rows:,} rows are imported, {rows:,} in all, {span}; partitions: {self.way}",
            f"The topic takes over at {places}. Seam check: each imported row is in the archive once",
        ]
        if self.done.of_topic:
            found.append(f"{self.done.of_topic:,} rows were left out, because the topic has their events from there on")
        if self.refused is not None and self.refused.rows:
            found.append(f"left out: {self.refused}")
        if skipped := sum(one.skipped for one in self.hand_overs.values()):
            found.append(
                f"{skipped:,} archived events of the topic lie before; for views that use the import, the imported rows replace them"
            )
        if self.overlap is not None:
            begin, n_rows, n_events = self.overlap
            found.append(
                f"From {format_instant(begin)} to the hand-over the files have {n_rows:,} rows, and the topic has {n_events:,} events"
                + (
                    ""
                    if n_rows == n_events
                    else ": the two do not hold the same; compare them, and correct --arrival, --delay or --until"
                )
            )
        return found


def import_history(job: ImportJob, stop: Flag, report: Report = lambda *_: None) -> Outcome:
    """Import files into the archive of a stream.

    ``report``: called with a phase, and how many of how many rows (0 if not known) are done. Raises ``RequestError``
    for files or options that cannot be used, and then nothing has changed; ``LayoutError`` for an archive or a state
    that do not fit, or that another process writes; ``StoreUnavailable`` if the disk fails; ``Stopped`` if ``stop`` is
    set: the same call then goes on.
    """
    with ExitStack() as closing:
        leases = Leases()
        closing.callback(leases.release)
        n_partitions = held_by(job.state).n_partitions.get(job.stream.topic)
        if n_partitions is None:
            raise RequestError(
                f"the pipeline of {job.state} has not read topic {job.stream.topic!r} yet, so it is not known where the topic begins; "
                'let unskew run read it first (a view with history="none" is enough), and then import'
            )
        inputs = inputs_of(job.paths)
        writers = frozenset(f"{job.stream.topic}/i{partition}" for partition in range(n_partitions))
        leases.take(job.archive, "--archive", job.owner, writers)
        return _Importing(job, inputs, n_partitions, leases.check, stop, report).run()


class _Importing:
    """One call of ``import_history``, which holds the lease."""

    def __init__(
        self,
        job: ImportJob,
        inputs: Sequence[Input],
        n_partitions: int,
        still_ours: Callable[[], None],
        stop: Flag,
        report: Report,
    ) -> None:
        self._job = job
        self._root = job.archive / job.stream.topic
        self._inputs = inputs
        self._n_partitions = n_partitions
        self._still_ours = still_ours
        self._stop = stop
        self._report = report
        places = {PARTITION: job.partition, _OFFSET: job.offset}
        self._fitting = Fitting(
            job.stream,
            job.arrivals,
            renamed=job.renamed,
            without=job.without,
            zone=job.zone,
            places={name: column for name, column in places.items() if column is not None},
        )
        self._refused = Refused()
        self._of_topic = 0
        self._overlapping = 0

    def run(self) -> Outcome:
        job = self._job
        for one in self._inputs:
            self._fitting.check(str(one.path), one.columns)
        topic = Archive.open(job.archive, job.stream, imports=False)
        if not any(reached.clock_us is not None for reached in topic.cut.values()):
            raise RequestError(
                f"{topic.root} holds no events of the topic yet, so it is not known where they begin; give the --archive of the pipeline, "
                "and import when it has run"
            )
        self._report("checksums", 0, 0)
        files = identified(self._inputs, self._going_on)
        if job.again:
            forget_imported(self._root, self._still_ours)
        record = read_imported(self._root)
        if _is_known(record, files, job.how, self._root):
            return Outcome(stream=job.stream.name, done=None, hand_overs=record.partitions)
        placing = placing_of(topic, self._n_partitions, job.partition)
        cuts = record.running.cuts if record.running is not None else self._cuts(topic, placing, record)
        with self._sorted(placing, cuts, record, topic) as rows:
            if self._refused.rows and not job.skip_refused:
                raise RequestError(
                    f"{self._refused}. Nothing was imported: correct the files, or leave these rows out with --skip-refused"
                )
            if not rows.n_rows:
                raise RequestError(
                    f"no row is left to import: {self._of_topic:,} have events that the topic has, and {self._refused.rows:,} were refused"
                )
            done, hand_overs = self._write(rows, cuts, record, files, topic)
        return Outcome(
            stream=job.stream.name,
            done=done,
            hand_overs=hand_overs,
            way=placing.way,
            refused=self._refused,
            overlap=self._overlap(topic, cuts),
        )

    def _cuts(self, topic: Archive, placing: Placing, record: Imported) -> dict[int, tuple[int, int]]:
        """Return where the topic takes over: by partition, the instant and the first offset."""
        job = self._job
        begun = {p: first_us for p, first_us in topic.first_us.items() if topic.cut[p].clock_us is not None}
        if job.offset is not None or (job.until_us is None and placing.known):
            cuts = {
                p: (first_us, topic.begins(p) if topic.files.get(p) else topic.cut[p].offset)
                for p, first_us in begun.items()
            }
        else:
            until_us = max(begun.values()) if job.until_us is None else job.until_us
            self._check_until(topic, until_us, begun, placing)
            cuts = {p: (until_us, topic.offset_at(p, until_us)) for p in begun}
        for partition, (cut_us, _) in cuts.items():
            before = record.partitions.get(partition)
            if before is not None and cut_us < before.cut_us:
                raise RequestError(
                    f"--until {format_instant(cut_us)}: an earlier import reaches up to {format_instant(before.cut_us)}; give that or a later "
                    "instant, or import everything again in one go (--again)"
                )
        return cuts

    def _check_until(self, topic: Archive, until_us: int, begun: Mapping[int, int], placing: Placing) -> None:
        for partition, first_us in begun.items():
            clock_us = topic.cut[partition].clock_us
            assert clock_us is not None
            if until_us > clock_us:
                raise RequestError(
                    f"--until {format_instant(until_us)}: the archive of partition {partition} goes up to {format_instant(clock_us)}, so events "
                    "of the topic that arrive between would count twice; give an instant up to there"
                )
            covered = topic.covered.get(partition)
            from_start = covered is not None and covered.first == 0
            if until_us < first_us and not from_start and not topic.is_cut(partition):
                raise RequestError(
                    f"--until {format_instant(until_us)}: the archive of partition {partition} begins at {format_instant(first_us)}, so events "
                    "that arrived between would be lost; give an instant from there on"
                    + ("" if placing.known else ", or the column with each row's partition (--partition)")
                )

    @contextmanager
    def _sorted(
        self, placing: Placing, cuts: Mapping[int, tuple[int, int]], record: Imported, topic: Archive
    ) -> Iterator[Sorted]:
        rows = Sorted(self._job.state / IMPORTING / self._job.stream.topic)
        try:
            total = sum(one.scan().select(pl.len()).collect().item() for one in self._inputs)
            read = self._fitting.read(
                self._inputs, self._refused, self._going_on, lambda n_read: self._report("reading", n_read, total)
            )
            for events in read:
                self._add(rows, self._placed(events, placing), cuts, record, topic)
            yield rows
        finally:
            rows.close()

    def _placed(self, events: pl.DataFrame, placing: Placing) -> pl.DataFrame:
        return events.with_columns(placing.place(events)).drop(ROW)

    def _add(
        self,
        rows: Sorted,
        events: pl.DataFrame,
        cuts: Mapping[int, tuple[int, int]],
        record: Imported,
        topic: Archive,
    ) -> None:
        if not events.height:
            return
        if unknown := sorted(set(events[PARTITION].unique().to_list()) - set(cuts)):
            raise RequestError(
                f"there are rows of partition {unknown[0]}, and the pipeline has seen neither a record nor a clock of that partition of "
                f"topic {self._job.stream.topic!r}; let it run with --idle wall, and import then"
            )
        partitions = list(cuts)
        cut_us = events[PARTITION].replace_strict(partitions, [cuts[p][0] for p in partitions], return_dtype=pl.Int64)
        if self._job.offset is None:
            ours = events[ARRIVAL] < cut_us
            first_us = max((topic.first_us[p] for p in cuts if p in topic.first_us), default=0)
            self._overlapping += int((ours & (events[ARRIVAL] >= first_us)).sum())
            key = events[ARRIVAL]
        else:
            offsets = [cuts[p][1] for p in partitions]
            key = events[_OFFSET]
            ours = key < events[PARTITION].replace_strict(partitions, offsets, return_dtype=pl.Int64)
            events = events.drop(_OFFSET)
        self._of_topic += events.height - int(ours.sum())
        kept = events.with_columns(key.alias(KEY)).filter(ours)
        for partition, first_us in kept.group_by(PARTITION).agg(pl.col(ARRIVAL).min()).iter_rows():
            before = record.partitions.get(partition)
            if before is not None and before.rows and first_us < before.last_us:
                raise RequestError(
                    f"there are rows that arrived at {format_instant(first_us)}, and an earlier import goes up to {format_instant(before.last_us)} "
                    f"in partition {partition}; history is imported from old to new: give all files in one go (--again)"
                )
        rows.add(kept)

    def _write(
        self,
        rows: Sorted,
        cuts: Mapping[int, tuple[int, int]],
        record: Imported,
        files: tuple[InputFile, ...],
        topic: Archive,
    ) -> tuple[Import, dict[int, HandOver]]:
        job = self._job
        if not record.imports and record.running is None:
            # What an import left that was forgotten.
            forget_imported(self._root, self._still_ours)
        running = record.running or Running(files=files, how=job.how, cuts=dict(cuts))
        saved = {**record.tables, **running.tables}
        record = msgspec.structs.replace(record, running=running)
        write_imported(self._root, record, self._still_ours)
        tables = {
            partition: _Table(
                self._root.parent, job.stream.topic, partition, saved.get(partition), record, cuts, self._still_ours
            )
            for partition in cuts
        }
        n_rows, since_us = 0, None
        for piece in rows:
            self._going_on()
            for (partition,), events in piece.group_by(PARTITION, maintain_order=True):
                first_us = tables[int(partition)].append(events)
                since_us = first_us if since_us is None else min(since_us, first_us)
            record = self._saved(record, tables)
            n_rows += piece.height
            self._report("writing", n_rows, rows.n_rows)
        for table in tables.values():
            table.table.settle()
        assert since_us is not None
        begin_us = min([since_us, *(one.since_us for one in record.partitions.values())])
        hand_overs = {
            partition: HandOver(
                rows=table.table.next_sequence,
                last_us=begin_us if table.last_us is None else table.last_us,
                since_us=begin_us,
                cut_us=cuts[partition][0],
                offset=cuts[partition][1],
                skipped=topic.count({}, {partition: Reached(offset=cuts[partition][1], clock_us=None)})[partition][0],
            )
            for partition, table in tables.items()
        }
        done = Import(files=files, how=job.how, rows=rows.n_rows, of_topic=self._of_topic, refused=self._refused.rows)
        complete = Imported(
            imports=(*record.imports, done),
            partitions=hand_overs,
            tables={p: table.saved for p, table in tables.items() if table.saved},
        )
        self._check(hand_overs)
        write_imported(self._root, complete, self._still_ours)
        return done, hand_overs

    def _saved(self, record: Imported, tables: Mapping[int, "_Table"]) -> Imported:
        assert record.running is not None
        positions = {partition: saved for partition, table in tables.items() if (saved := table.snapshot()) is not None}
        record = msgspec.structs.replace(record, running=msgspec.structs.replace(record.running, tables=positions))
        write_imported(self._root, record, self._still_ours)
        return record

    def _check(self, hand_overs: Mapping[int, HandOver]) -> None:
        """Hold the files that were written against what was given: each row once, in its place."""
        archive = Archive(root=self._root, stream=self._job.stream, files={}, cut={}, hand_overs=hand_overs)
        for partition, one in hand_overs.items():
            end = {partition: Reached(offset=IMPORTED + one.rows, clock_us=None)}
            n_events, total = archive.count({partition: BEGINNING}, end)[partition]
            if (n_events, total) != (one.rows, IMPORTED * one.rows + one.rows * (one.rows - 1) // 2):
                raise LayoutError(
                    f"{self._root}: {one.rows:,} rows of partition {partition} were imported, and {n_events:,} are there; import again "
                    "(--again), and report this"
                )

    def _overlap(self, topic: Archive, cuts: Mapping[int, tuple[int, int]]) -> tuple[int, int, int] | None:
        if self._job.offset is not None:
            return None
        first_us = max(topic.first_us[p] for p in cuts)
        if all(cut_us <= first_us for cut_us, _ in cuts.values()):
            return None
        begin = {p: topic.offset_at(p, first_us) for p in cuts}
        counted = topic.count(begin, {p: Reached(offset=offset, clock_us=None) for p, (_, offset) in cuts.items()})
        return first_us, self._overlapping, sum(n_events for n_events, _ in counted.values())

    def _going_on(self) -> None:
        self._still_ours()
        if self._stop.is_set():
            raise Stopped("the import was asked to stop; the same command continues it")


class _Table:
    """A partition's share of an import. ``last_us``: the arrival of its last row; ``saved``: its last snapshot."""

    def __init__(
        self,
        root: Path,
        topic: str,
        partition: int,
        saved: Mapping[str, Any] | None,
        record: Imported,
        cuts: Mapping[int, tuple[int, int]],
        still_ours: Callable[[], None],
    ) -> None:
        self.table = ArchiveTable(root, topic, partition, saved, imported=True, still_ours=still_ours)
        self.saved = saved
        before = record.partitions.get(partition)
        self.last_us = None if before is None or not before.rows else before.last_us
        self._next = 0 if before is None else before.rows
        self._cut_us = cuts[partition][0]

    def append(self, events: pl.DataFrame) -> int:
        """Add rows that were not written before; return the arrival of the first of these."""
        arrivals = np.maximum.accumulate(events[ARRIVAL].to_numpy())
        # A record that its producer stamped late arrived before the next one all the same.
        arrivals = np.minimum(np.maximum(arrivals, -(2**62) if self.last_us is None else self.last_us), self._cut_us)
        self.last_us = int(arrivals[-1])
        positions = np.arange(self._next, self._next + events.height)
        self._next += events.height
        if self._next > MOST_ROWS:
            raise RequestError(f"a partition takes {MOST_ROWS:,} imported rows at most")
        rows = events.with_columns(pl.Series(_OFFSET, positions + IMPORTED), pl.Series(ARRIVAL, arrivals).cast(INSTANT))
        names = [name for name in events.columns if not name.startswith("_")]
        new = rows.select(*names, PARTITION, _OFFSET, ARRIVAL, "_event_time").filter(
            pl.lit(positions >= self.table.next_sequence)
        )
        if new.height:
            self.table.append(new, first_us=int(arrivals[0]), clock_us=self.last_us)
        return int(arrivals[0])

    def snapshot(self) -> Mapping[str, Any] | None:
        """Stage what was added; None before anything was."""
        if self.saved is not None or self.table.next_sequence:
            self.saved = self.table.snapshot()
        return self.saved


def _is_known(record: Imported, files: tuple[InputFile, ...], how: Mapping[str, str], root: Path) -> bool:
    """Return whether these files were imported; raise ``RequestError`` if some were, or if another import is open."""

    def bytes_of(some: Sequence[InputFile]) -> set[str]:
        return {one.sha256 for one in some}

    running = record.running
    if running is not None and (
        [one.sha256 for one in running.files] != [one.sha256 for one in files] or running.how != how
    ):
        names = " ".join(one.name for one in running.files)
        raise RequestError(
            f"an import into {root} has not ended: finish it with the same files and options ({names}; "
            f"{pairs(running.how)}), or forget all imports with --again"
        )
    known = {one.sha256: one for done in record.imports for one in done.files}
    for done in record.imports:
        if bytes_of(done.files) == bytes_of(files):
            if dict(done.how) != dict(how):
                raise RequestError(
                    f"these files were imported already, with other options ({pairs(done.how)}); "
                    "to import them otherwise, forget all imports with --again"
                )
            return True
    if twice := [one for one in files if one.sha256 in known]:
        raise RequestError(
            f"{twice[0].name} was imported already, as {known[twice[0].sha256].name}, so its rows would count twice; leave out "
            f"{'it' if len(twice) == 1 else f'these {len(twice)} files'}"
        )
    return False
