"""The three kinds of tables that the pipeline writes: log, event archive and dead letters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from typing_extensions import override

from unskew.features.ledger import NOTHING_LATE, ledger_of, written
from unskew.features.plan import ViewPlan
from unskew.features.selecting import framed
from unskew.features.updates import Make, NothingToCome, StepRows, Updates, frames_of_each
from unskew.sinks.aside import Aside
from unskew.sinks.tables.layout import (
    EVENTS,
    FIRST,
    INSTANT,
    LEDGER,
    archive_writer,
    log_schema,
    origin_of,
    view_root,
)
from unskew.sinks.tables.parquet import StagedTable, without_entry

DEAD_LETTER_SCHEMA: Mapping[str, pl.DataType] = {
    "topic": pl.String(),
    "partition": pl.Int32(),
    "offset": pl.Int64(),
    "arrival": INSTANT,
    "view": pl.String(),
    "reason": pl.String(),
    "key": pl.Binary(),
    "value": pl.Binary(),
    "kind": pl.String(),
    "key_bytes": pl.Int64(),
    "value_bytes": pl.Int64(),
    "headers": pl.List(pl.Struct({"name": pl.String(), "value": pl.Binary()})),
    "n_headers": pl.Int64(),
}

_ENDED = "ended"
MOST_WAITING = 4_000
"""So many closed rows wait for others at most, before one frame is made of them."""
_MOST_BYTES_WAITING = 1 << 21
"""And so many bytes of them: lists and maps have room for all items that they may have, and texts may be long."""


class _Staged:
    """What all kinds leave to the table in which their rows are staged."""

    _table: StagedTable

    @property
    def n_held(self) -> int:
        """The number of bytes of rows that the last state holds, at most."""
        return self._table.n_held

    @property
    def is_ahead(self) -> bool:
        """Whether a file of rows has begun ahead of the epoch's end, as in ``StagedTable.is_ahead``."""
        return self._table.is_ahead

    def encode_rest(self) -> None:
        """Encode what is left of rows that are encoded ahead; only once no rows wait."""
        self._table.files_ahead()

    def kept(self, room: int) -> dict[str, Any] | None:
        """Return a state that holds the rows, as ``StagedTable.kept`` does."""
        self._append_waiting()
        return self._table.kept(room)

    def snapshot(self) -> dict[str, Any]:
        """Take a snapshot, as ``StagedTable.snapshot`` does."""
        self._append_waiting()
        return self._table.snapshot()

    def settle(self) -> None:
        """Publish what is staged, as ``StagedTable.settle`` does."""
        self._table.settle()

    def _append_waiting(self) -> None:
        """Append rows that have waited for the end of the epoch."""


class LogTable(_Staged):
    """One shard's share of a view's log: every closed change of every value, in the order of ``seq``.

    ``now_us``: the wall clock; it is used for ``written_at`` only. ``saved`` and errors are those of ``StagedTable``;
    in addition, rows whose ``seq`` leaves a gap are a ``ValueError``.
    """

    def __init__(
        self,
        log_root: Path,
        view: ViewPlan,
        shard: str,
        saved: Mapping[str, Any] | None,
        *,
        now_us: Callable[[], int],
        still_ours: Callable[[], None] = lambda: None,
        aside: Aside | None = None,
    ) -> None:
        self._shard = shard
        self._named = pl.Series("shard", [shard], pl.String)
        self._ledger = NOTHING_LATE
        # The rows of which no frame has been made yet: who makes it, their words, and the ``seq`` of the first.
        self._waiting: tuple[Make, Any, int] | None = None
        self._n_waiting = 0
        self._dtypes = list(log_schema(view).values())
        self._now_us = now_us
        self._table = StagedTable(
            view_root(log_root, view.name, view.version),
            shard,
            day_column="available_at",
            sequence_column="seq",
            metadata=log_metadata(view),
            # Each run finds out for itself whether a shard has ended, because a later run may have a later end.
            saved=None if saved is None else without_entry(saved, _ENDED),
            at_staging=self._complete,
            still_ours=still_ours,
            aside=aside,
        )

    @property
    def next_sequence(self) -> int:
        return self._table.next_sequence + self._n_waiting

    @property
    def has_waiting(self) -> bool:
        """Whether there are rows of which no frame has been made yet."""
        return self._waiting is not None

    @property
    def n_buffered(self) -> int:
        """The number of rows appended since the last snapshot."""
        return self._table.n_buffered + self._n_waiting

    def append(self, updates: Updates | NothingToCome) -> None:
        """Add the closed rows of one step and its last closed instant; a step without rows moves only the instant."""
        if isinstance(updates, NothingToCome):
            self._table.cover({_ENDED: True})
            return
        rows = updates.closed_rows
        if rows.height:
            if rows.first != self.next_sequence:
                raise ValueError(
                    f"{updates.view.id}/{self._shard}: the log expects seq {self.next_sequence}, "
                    f"the step begins with {rows.first}"
                )
            self._append_rows(rows)
        # The instant of the clock itself is still open.
        since = {"since": updates.since_us, "begins": updates.begins_us}
        self._table.cover({**since, "complete_to": updates.clock_us - 1})
        ledger = ledger_of(updates)
        if ledger != self._ledger:
            self._ledger = ledger
            self._table.cover({LEDGER: written(ledger)})

    def _append_rows(self, rows: StepRows) -> None:
        if rows.words is None:
            self._append_waiting()
            self._table.append(rows.frame())
            return
        make, words = rows.words
        if self._waiting is None:
            self._waiting = make, words.growing(), rows.first
        else:
            self._waiting[1].add(words)
        self._n_waiting += rows.height
        if (
            self._n_waiting >= MOST_WAITING
            or self._waiting[1].n_bytes >= _MOST_BYTES_WAITING
            or self._table.is_file_due(self._n_waiting)
        ):
            self._append_waiting()

    def waiting(self) -> StepRows:
        """Return the rows of which no frame has been made yet, as those of one step; there must be some."""
        assert self._waiting is not None
        make, words, first = self._waiting
        return StepRows.of(words.whole(), self._n_waiting, make, first)

    def append_made(self, made: pl.DataFrame) -> None:
        """Append the frame that was made of ``waiting``."""
        self._waiting, self._n_waiting = None, 0
        self._table.append(made)

    @override
    def _append_waiting(self) -> None:
        append_waiting([self])

    def _complete(self, rows: pl.DataFrame) -> pl.DataFrame:
        # Column by column, because a query would cost more than the work on the few rows of most epochs.
        written_at = pl.Series("written_at", [self._now_us()], pl.Int64).cast(INSTANT)
        columns = rows.get_columns()
        columns[-1:-1] = [one.new_from_index(0, rows.height) for one in (written_at, self._named)]
        completed = framed(columns)
        if completed.dtypes != self._dtypes:
            raise ValueError(f"rows of shard {self._shard} have the columns {completed.schema}, not those of its log")
        return completed


def append_waiting(tables: Sequence[LogTable]) -> None:
    """Append the rows that wait in tables of one view; frames are made of them together."""
    tables = [table for table in tables if table.has_waiting]
    for table, (made,) in zip(tables, frames_of_each([[table.waiting()] for table in tables]), strict=True):
        table.append_made(made)


class DeadLetterTable(_Staged):
    """One writer's share of a topic's dead letters, columns as in ``DEAD_LETTER_SCHEMA``.

    Several steps of the flow refuse records, so dead letters do not come in the order of offsets. They are sorted by
    arrival within an epoch, so that each day makes one file, and numbered in that order.
    """

    def __init__(
        self,
        root: Path,
        topic: str,
        writer: str,
        saved: Mapping[str, Any] | None,
        *,
        still_ours: Callable[[], None] = lambda: None,
        aside: Aside | None = None,
    ) -> None:
        self._waiting: list[pl.DataFrame] = []
        self._table = StagedTable(
            root / topic,
            writer,
            day_column="arrival",
            sequence_column=None,
            metadata={"unskew.topic": topic},
            saved=saved,
            still_ours=still_ours,
            aside=aside,
        )

    def append(self, letters: pl.DataFrame) -> None:
        """Add dead letters, in any order; columns beyond the schema are an error."""
        if letters.height:
            self._waiting.append(letters.match_to_schema(pl.Schema(DEAD_LETTER_SCHEMA)))

    @override
    def _append_waiting(self) -> None:
        if self._waiting:
            self._table.append(pl.concat(self._waiting).sort("arrival", "partition", "offset", "view"))
            self._waiting = []


class ArchiveTable(_Staged):
    """One partition's share of a topic's event archive: decoded events in the order of ``_offset``.

    Its coverage says from which arrival the partition was read, the offset of its first event, up to which instant its
    events are complete, and how many there were; so events that are removed later are missed. That of an archive which
    an earlier version began says only up to which instant. ``imported``: for events that did not come from the topic,
    whose offsets begin with ``layout.IMPORTED``.
    """

    def __init__(
        self,
        root: Path,
        topic: str,
        partition: int,
        saved: Mapping[str, Any] | None,
        *,
        imported: bool = False,
        still_ours: Callable[[], None] = lambda: None,
        aside: Aside | None = None,
    ) -> None:
        writer = archive_writer(partition, imported=imported)
        self._origin = origin_of(writer)
        self._begins_here = saved is None
        self._table = StagedTable(
            root / topic,
            writer,
            day_column="_arrival",
            sequence_column="_offset",
            metadata={"unskew.topic": topic},
            saved=saved,
            still_ours=still_ours,
            aside=aside,
        )
        # A run that saw no event left no number.
        self._n_events = 0 if saved is None or not self._table.next_sequence else saved.get(EVENTS)

    @property
    def next_sequence(self) -> int:
        return self._table.next_sequence

    def append(self, events: pl.DataFrame, *, first_us: int | None = None, clock_us: int | None = None) -> None:
        """Add the events of a poll. ``first_us``: its first arrival. ``clock_us``: the partition's clock after it."""
        self._table.append(events)
        if first_us is None and clock_us is not None:
            first_us = clock_us + 1
        if self._begins_here and first_us is not None:
            self._begins_here = False
            self._table.cover({"since": first_us})
        if self._n_events is not None and events.height:
            if not self._n_events:
                self._table.cover({FIRST: int(events.item(0, "_offset")) - self._origin})
            self._n_events += events.height
            self._table.cover({EVENTS: self._n_events})
        if clock_us is not None:
            # The instant of the clock itself is still open.
            self._table.cover({"complete_to": clock_us - 1})


Table = LogTable | DeadLetterTable | ArchiveTable


@dataclass(frozen=True, kw_only=True)
class Roots:
    """The folders or object stores of all tables."""

    log: Path
    archive: Path
    dead_letters: Path

    def of(self, name: str) -> Path:
        """Return the root of a table, by its name, see ``open``."""
        return {"log": self.log, "archive": self.archive, "dead": self.dead_letters}[name.partition("/")[0]]

    def open(
        self,
        name: str,
        saved: Mapping[str, Any] | None,
        views: Mapping[str, ViewPlan],
        *,
        now_us: Callable[[], int],
        still_ours: Callable[[], None],
        aside: Aside | None = None,
    ) -> Table:
        """Open a table: ``log/{view}/{shard}``, ``archive/{topic}/{partition}`` or ``dead/{topic}/{partition}``."""
        kind, place, part = name.split("/")
        if kind == "log":
            view = views[place]
            return LogTable(self.log, view, part, saved, now_us=now_us, still_ours=still_ours, aside=aside)
        if kind == "archive":
            return ArchiveTable(self.archive, place, int(part), saved, still_ours=still_ours, aside=aside)
        return DeadLetterTable(self.dead_letters, place, f"p{part}", saved, still_ours=still_ours, aside=aside)


def log_metadata(view: ViewPlan) -> dict[str, str]:
    """Return the metadata of every file of a view's log."""
    return {
        "unskew.view": view.name,
        "unskew.version": str(view.version),
        "unskew.state_fingerprint": view.state_fingerprint,
        "unskew.presentation_fingerprint": view.presentation_fingerprint,
    }
