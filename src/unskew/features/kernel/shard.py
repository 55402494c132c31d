"""The state of one view in one shard: apply batches, read rows."""

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from unskew.features.kernel import layout
from unskew.features.kernel.directory import Directory, Keys, grown, remove_rows
from unskew.features.kernel.engine import (
    CAUSE_EVENT,
    FOREVER,
    N_SCALARS,
    NEVER,
    NONE,
    S_CLOCK,
    S_DEAD,
    S_DIRTY,
    S_NEXT_HOP,
    S_TILE_FREE,
    S_TILES,
    S_TOUCHED,
    TILE_WORDS,
    Batch,
    Rows,
    State,
    current,
    reset_rows,
    run,
    take_dead,
)
from unskew.features.kernel.program import F_READ, READ_COUNT, READ_SUM, Program, lower
from unskew.features.keys import decode_keys
from unskew.features.plan import ViewPlan
from unskew.features.updates import Updates

_MIN_TILES = 256
_MIN_ROWS = 1024
_INSTANT = pl.Datetime("us", "UTC")
_CAUSES = pa.array(["hop", "event"])


class ShardState:
    """All entities of a view in one shard; owns its arrays.

    Between two calls no entity without a tile is kept, unless the open instant has touched it.
    """

    def __init__(self, view: ViewPlan, shard: str) -> None:
        self.view = view
        self.shard = shard
        self.seq = 0
        self.since_us: int | None = None
        self._program = lower(view)
        self._empty = np.zeros(len(view.features), np.int64)
        zero_when_empty = np.isin(self._program.features[:, F_READ], (READ_COUNT, READ_SUM))
        self._empty_present = np.bitwise_or.reduce(zero_when_empty.astype(np.int64) << np.arange(len(zero_when_empty)))
        # Most steps of a quiet shard change nothing: their frames without rows are made once.
        self._no_closed: pl.DataFrame | None = None
        self._no_current: pl.DataFrame | None = None
        self._scratch = np.empty_like(self._empty)
        self.directory = Directory()
        self._state = _new_state(self._program, self.directory.capacity)

    @classmethod
    def from_bytes(cls, view: ViewPlan, shard: str, data: bytes) -> "ShardState":
        """The state that ``to_bytes`` wrote; ``LayoutError`` where it belongs to another definition or is damaged."""
        result = cls(view, shard)
        stored = layout.unpack(data, view, shard)
        result.seq, result.since_us = stored.seq, stored.since_us
        rows = result._rows_of(stored.keys, len(stored.tiles.entity))
        layout.restore(stored, result._program, result._state, rows)
        return result

    def to_bytes(self) -> bytes:
        """The state in the versioned layout of ``kernel.layout``; equal bytes restore to equal behaviour."""
        return layout.pack(self.view, self.shard, self.seq, self.since_us, self._program, self._state, self.directory)

    @property
    def clock_us(self) -> int | None:
        """The open instant; None before the first event or mark."""
        clock = int(self._state.scalars[S_CLOCK])
        return None if clock == NEVER else clock

    def __len__(self) -> int:
        return len(self.directory)

    @property
    def n_tiles(self) -> int:
        """Live tiles over all windows."""
        return int(self._state.scalars[S_TILES])

    def apply(self, events: pl.DataFrame | None, clock_us: int) -> Updates:
        """Apply events in the given order, then move the clock.

        ``events``: as from ``evaluate``; arrivals do not fall and are not before the clock. ``clock_us``: not
        before the last arrival; instants before it are closed, the instant itself stays open.
        """
        state = self._state
        late_before = state.late.copy()
        batch = self._batch(events)
        if len(batch.arrival) and batch.arrival[0] < state.scalars[S_CLOCK]:
            raise ValueError(f"{self.view.id}/{self.shard}: an event arrived before the clock {self.clock_us}")
        if self.since_us is None:
            self.since_us = int(batch.arrival[0]) if len(batch.arrival) else clock_us
        chunks: list[pl.DataFrame] = []
        done = 0
        rows = _rows(len(self.view.features), max(_MIN_ROWS, 2 * len(batch.rows)))
        while True:
            needed = int(self._state.scalars[S_TOUCHED])
            if needed > len(rows.row):
                rows = _rows(len(self.view.features), 2 * needed)
            done = run(self._program, self._state, batch, done, clock_us, rows, self._scratch)
            if rows.n[0]:
                chunks.append(self._closed(rows))
                rows.n[0] = 0
            if done == len(batch.rows) and self._state.scalars[S_CLOCK] >= clock_us:
                break
        updates = Updates(
            view=self.view,
            shard=self.shard,
            clock_us=clock_us,
            since_us=self.since_us,
            closed=pl.concat(chunks) if chunks else self._closed(rows),
            current=self._current(),
            late=tuple((self._state.late - late_before).tolist()),
            late_by_us=tuple(self._state.late_by.tolist()),
        )
        self._forget()
        return updates

    def _batch(self, events: pl.DataFrame | None) -> Batch:
        n_filters, n_values = len(self.view.filters), len(self.view.values)
        if events is None or events.height == 0:
            empty = np.empty(0, np.int64)
            return Batch(
                np.empty(0, np.int32), empty, empty, empty, empty, empty,
                np.empty((n_filters, 0), np.bool_), np.empty((n_values, 0), np.int64), np.empty((n_values, 0), np.bool_),
            )  # fmt: skip
        filters = np.empty((n_filters, events.height), np.bool_)
        for index in range(n_filters):
            filters[index] = events[f"f{index}"].to_numpy()
        numbers = np.empty((n_values, events.height), np.int64)
        known = np.ones((n_values, events.height), np.bool_)
        for index in range(n_values):
            column = events[f"v{index}"]
            if column.null_count():
                known[index] = column.is_not_null().to_numpy()
                column = column.fill_null(0)
            numbers[index] = column.to_numpy().view(np.int64)
        columns = {
            name: np.ascontiguousarray(events[name].to_numpy(), np.int64)
            for name in ("effective", "arrival", "event_time", "partition", "offset")
        }
        rows = self._rows_of(Keys.of(events["key"]), events.height * len(self.view.windows))
        return Batch(rows=rows, filters=filters, numbers=numbers, known=known, **columns)

    def _rows_of(self, keys: Keys, n_tiles: int) -> npt.NDArray[np.int32]:
        """Rows of keys, new ones made; afterwards there is room for ``n_tiles`` more tiles."""
        rows, fresh = self.directory.insert(keys)
        capacity = self.directory.capacity
        if capacity > len(self._state.entities):
            rows_of = {name: grown(getattr(self._state, name), capacity) for name in _ROW_ARRAYS}
            self._state = self._state._replace(**rows_of)
        tiles = len(self._state.tiles)
        free = tiles - int(self._state.scalars[S_TILES])
        if n_tiles > free:
            self._state = self._state._replace(tiles=grown(self._state.tiles, max(2 * tiles, tiles + n_tiles - free)))
        reset_rows(self._program, self._state.entities, fresh, self._empty, self._empty_present)
        return rows

    def _closed(self, rows: Rows) -> pl.DataFrame:
        count = int(rows.n[0])
        if count == 0 and self._no_closed is not None:
            return self._no_closed
        keys = self.directory.gather(rows.row[:count]).to_series("key")
        caused = rows.cause[:count] & CAUSE_EVENT != 0
        frame = pl.DataFrame(
            [
                keys,
                *self._features(rows, count),
                pl.Series("available_at", rows.instant[:count].copy()).cast(_INSTANT),
                _series("event_time", rows.event_time[:count], caused).cast(_INSTANT),
                _series("partition", rows.partition[:count], caused).cast(pl.Int32),
                _series("offset", rows.offset[:count], caused),
                pl.Series("cause", _CAUSES.take(pa.array(caused.view(np.int8)))),
            ]
        )
        instants = rows.instant[:count]
        if (instants[1:] == instants[:-1]).any():
            frame = frame.sort("available_at", "key")
        seq = pl.Series("seq", np.arange(self.seq, self.seq + count, dtype=np.int64))
        self.seq += count
        entity = decode_keys(frame.drop_in_place("key"), self.view.entity)
        closed = pl.DataFrame([*entity.get_columns(), *frame.get_columns(), seq])
        if count == 0:
            self._no_closed = closed
        return closed

    def _current(self) -> pl.DataFrame:
        count = int(self._state.scalars[S_DIRTY])
        if count == 0 and self._no_current is not None:
            return self._no_current
        rows = _rows(len(self.view.features), count)
        until, empty_at = np.empty(count, np.int64), np.empty(count, np.int64)
        current(self._program, self._state, rows, until, empty_at, self._scratch)
        frame = pl.DataFrame(
            [
                self.directory.gather(rows.row).to_series("key"),
                *self._features(rows, count),
                pl.Series("_at", rows.instant),
                _series("_until", until, until != FOREVER),
                _series("_empty_at", empty_at, empty_at != NEVER),
                pl.Series("_gone", empty_at == NEVER),
            ]
        )
        if count == 0:
            self._no_current = frame
        return frame

    def _features(self, rows: Rows, count: int) -> list[pl.Series]:
        columns = []
        for index, feature in enumerate(self.view.features):
            numbers = rows.values[index, :count]
            present = (rows.present[:count] >> index) & 1 != 0
            if feature.dtype == "float64":
                columns.append(_series(feature.name, numbers.view(np.float64), present))
            elif feature.dtype == "bool":
                columns.append(_series(feature.name, numbers != 0, present))
            else:
                columns.append(_series(feature.name, numbers, present))
        return columns

    def _forget(self) -> None:
        dead = np.empty(int(self._state.scalars[S_DEAD]), np.int32)
        count = take_dead(self._state, dead)
        remove_rows(self.directory.arrays, dead[:count])


def _series(name: str, numbers: npt.NDArray, present: npt.NDArray[np.bool_]) -> pl.Series:  # type: ignore[type-arg]
    """A column of copied numbers, null where not present."""
    if present.all():
        return pl.Series(name, numbers.copy())
    # pa.array with a mask may go on reading what it is given, which the next rows overwrite.
    return pl.Series(name, pa.array(numbers.copy(), mask=~present))


def _rows(n_features: int, capacity: int) -> Rows:
    return Rows(
        n=np.zeros(1, np.int64),
        row=np.empty(capacity, np.int32),
        instant=np.empty(capacity, np.int64),
        cause=np.empty(capacity, np.uint8),
        event_time=np.empty(capacity, np.int64),
        partition=np.empty(capacity, np.int64),
        offset=np.empty(capacity, np.int64),
        values=np.empty((n_features, capacity), np.int64),
        present=np.empty(capacity, np.int64),
    )


_ROW_ARRAYS = ("entities", "touched", "dirty", "dead")


def _new_state(program: Program, n_rows: int) -> State:
    n_windows = len(program.windows)
    scalars = np.zeros(N_SCALARS, np.int64)
    scalars[S_CLOCK] = NEVER
    scalars[S_NEXT_HOP] = FOREVER
    scalars[S_TILE_FREE] = NONE
    return State(
        scalars=scalars,
        entities=np.zeros((n_rows, program.entity_words), np.int64),
        touched=np.zeros((n_rows, 5), np.int64),
        dirty=np.zeros(n_rows, np.int32),
        dead=np.zeros(n_rows, np.int32),
        tiles=np.zeros((_MIN_TILES, TILE_WORDS + program.n_words), np.int64),
        ring=np.full(program.ring_slots, NONE, np.int64),
        window_tiles=np.zeros(n_windows, np.int64),
        window_next=np.full(n_windows, FOREVER, np.int64),
        late=np.zeros(n_windows, np.int64),
        late_by=np.zeros(n_windows, np.int64),
    )
