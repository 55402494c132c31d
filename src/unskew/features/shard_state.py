"""The state of one view in one shard: it applies batches and reads rows."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, BinaryIO, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl
from typing_extensions import override

from unskew.features.evaluate import Evaluator
from unskew.features.events import Events, EventWords
from unskew.features.kernel import state_bytes
from unskew.features.kernel import words as w
from unskew.features.kernel.codings import coded
from unskew.features.kernel.directory import N_R_COLUMNS, Directory, remove_rows
from unskew.features.kernel.engine import current, pack, reset_rows, run, take_dead
from unskew.features.kernel.items import add_slots
from unskew.features.kernel.memory import capacity_for, free, grown, lines
from unskew.features.kernel.packed import PACKED_WORDS
from unskew.features.kernel.program import Column, Program, lower, others_begin
from unskew.features.kernel.results import column, series
from unskew.features.kernel.row_words import CurrentWords, RowWords, joined
from unskew.features.kernel.sealed import sealed, unseal
from unskew.features.kernel.shown_texts import ShownTexts, places_of
from unskew.features.kernel.state import Batch, Rows, State
from unskew.features.kernel.tallies import most_tally_items
from unskew.features.kernel.text_sweep import TextSweep
from unskew.features.kernel.tiles import links_of, most_chunks
from unskew.features.keys import decode_keys
from unskew.features.plan import ViewPlan
from unskew.features.selecting import select
from unskew.features.text_buffers import Keys, read_only
from unskew.features.updates import LATE_BOUNDS_US, StepRows, Updates, frames

LAYOUT = 1
_MAGIC = b"unskew\x00V"

_MIN_TILES = 256
_MIN_ROWS = 1024
_MIN_ITEMS = 64
_MIN_TEXTS = 1024
_SLOTS_OF_ITEM = 2
FEW_ROWS = 1_000
"""Fewer rows of a step stay words; making a frame of many at once costs less than copying them."""
_FEW_WORDS = 64
"""Of rows with more words, fewer stay words: lists and maps have room for the most items that they may have."""
_MOST_ROW_WORDS = 2_000_000
_INSTANT = pl.Datetime("us", "UTC")
_CAUSES = pl.Series("cause", ["hop", "event"])
_NO_ROWS = StepRows(pl.DataFrame())

_Words = TypeVar("_Words", RowWords, CurrentWords)
_Counts = tuple[tuple[int, ...], ...]
_Late = tuple[_Counts, tuple[int, ...]]
"""Late events by window and lateness, and the greatest lateness by window."""


class ShardState:
    """All entities of a view in one shard; owns its arrays.

    Between two calls no entity without a tile is kept, unless the open instant has touched it. A view over sessions
    contains the state of the inner view that keeps them: the sessions that the inner view closes are the events of this
    one.

    ``notes_closings``: record closed sessions for ``close_sessions``, and return nothing else.
    """

    def __init__(self, view: ViewPlan, shard: str, *, notes_closings: bool = False) -> None:
        self.view = view
        self.shard = shard
        self.seq = 0
        self.since_us: int | None = None
        self._program, self._columns = lower(view)
        features = self._program.features
        self._empty = np.zeros(self._program.value_words, np.int64)
        zero_when_empty = np.isin(features[:, w.F_READ], w.ZERO_WHEN_EMPTY)
        self._empty_present = np.bitwise_or.reduce(zero_when_empty.astype(np.int64) << np.arange(len(zero_when_empty)))
        accumulators = self._program.accumulators
        self._tally_items = most_tally_items(self._program)
        as_texts = {
            column for column in accumulators[accumulators[:, w.A_KIND] == w.TEXT, w.A_VALUE].tolist() if column >= 0
        }
        # The columns whose numbers are rows of texts: stored values, and keys of maps.
        self._as_texts = as_texts | {column for column in accumulators[:, w.A_BY].tolist() if column >= 0}
        # Where numbers of texts are in rows; a count of different texts is a number like others.
        self._shown = places_of(view.features)
        self._others_begin = others_begin(view.features)
        self._most_few = FEW_ROWS * _FEW_WORDS // max(_FEW_WORDS, self._program.value_words)
        self._enters_late = bool((self._program.windows[:, w.W_KIND] == w.CLOSED).any())
        # Most steps of a quiet shard change nothing, so their frames without rows are made once.
        self._no_closed: StepRows | None = None
        self._no_current: StepRows | None = None
        # A step of which all others are copies with other fields: that takes less than making one.
        self._blank = Updates(
            view=view,
            shard=shard,
            clock_us=0,
            since_us=None,
            closed_rows=_NO_ROWS,
            current_rows=_NO_ROWS,
            late=(),
            late_by_us=(),
        )
        # The last step, if it changed nothing, nor has anything changed since.
        self._quiet: Updates | None = None
        # What ``_late`` returned last. Most steps change no count of late events.
        self._late_words = b""
        self._late_shown: _Late = (), ()
        self._newcomers: Keys | None = None
        self._numbers_of = np.empty(0, np.int32)
        self._places_of = np.empty(0, np.int32)
        self._scratch = np.empty_like(self._empty)
        self.directory = Directory()
        self._texts = Directory()
        self._texts_swept_at = _MIN_TEXTS
        self._sweep: TextSweep | None = None
        self._state = new_state(self._program, self.directory.capacity)
        # The state that ``packed`` describes; None if it describes none that is in use.
        self._packed_state: State | None = None
        self._notes_closings = notes_closings
        self._sessions: ShardState | None = None
        self._over_sessions: Evaluator | None = None
        if view.sessions is not None:
            self._sessions = ShardState(view.sessions, shard, notes_closings=True)
            # Sessions have no repeats: repeats of events are dropped earlier.
            stream = replace(view.stream, dedupe_within_us=None)
            self._over_sessions = Evaluator(replace(view, sessions=None, stream=stream))
        self._late()

    @classmethod
    def from_bytes(
        cls, view: ViewPlan, shard: str, data: bytes | memoryview | BinaryIO, *, notes_closings: bool = False
    ) -> "ShardState":
        """Return the state that ``to_bytes`` wrote.

        Raises ``LayoutError`` if it is damaged or of another definition.
        """
        result = cls(view, shard, notes_closings=notes_closings)
        if view.sessions is not None:
            parts = unseal(data, _MAGIC, LAYOUT, f"state of {view.id} in shard {shard}").arrays
            result._sessions = cls.from_bytes(view.sessions, shard, parts["sessions"].data, notes_closings=True)
            data = parts["state"].data
        result._restore(state_bytes.unpack(data, view, shard))
        return result

    def _restore(self, stored: state_bytes.Stored) -> None:
        self.seq, self.since_us = stored.seq, stored.since_us
        # With room for as many again: else the first events would copy all tiles. Memory that is not used is not taken.
        rows, _ = self._rows_of(stored.keys, 2 * len(stored.tiles.entity))
        self._texts = Directory.of_rows(stored.text_lengths, stored.text_bytes)
        self._show_texts()
        n_items = len(stored.tiles.items)
        # Each may be in a total too, and those of a total may have a ranking.
        self._reserve_items(2 * n_items + n_items // w.RANKING_FROM)
        state_bytes.restore(stored, self._program, self._state, rows)
        self._late()

    def without(self, gone: Callable[[pl.Series], pl.Series]) -> "ShardState":
        """Return the state as if these entities had never been; this one cannot be used afterwards.

        ``gone``: says for a series of canonical keys which they are. Counts of late events and the sequence stay.
        """
        result = ShardState(self.view, self.shard, notes_closings=self._notes_closings)
        if self._sessions is not None:
            result._sessions = self._sessions.without(gone)
        self._sweep_texts()
        data = b"".join(
            state_bytes.pack(
                self.view, self.shard, self.seq, self.since_us, self._program, self._state, self.directory, self._texts
            )
        )
        result._restore(_without(state_bytes.unpack(data, self.view, self.shard), gone))
        return result

    def to_bytes(self) -> bytes:
        """Return the state in the versioned layout of ``kernel.state_bytes``.

        Equal bytes restore to equal behaviour.
        """
        return b"".join(self.to_pieces())

    def to_pieces(self) -> Iterator[bytes | memoryview]:
        """Return the bytes of ``to_bytes`` piece by piece, so that a large state is not in memory twice."""
        if len(self._texts):
            # Write only the texts in use, however many there were before.
            self._sweep_texts()
        pieces = state_bytes.pack(
            self.view, self.shard, self.seq, self.since_us, self._program, self._state, self.directory, self._texts
        )
        if self._sessions is None:
            return pieces
        parts = {"state": b"".join(pieces), "sessions": self._sessions.to_bytes()}
        return sealed(_MAGIC, LAYOUT, {}, {name: np.frombuffer(part, np.uint8) for name, part in parts.items()})

    def dissolve(self) -> None:
        """Free the memory little by little; the state cannot be used afterwards.

        Freeing hundreds of megabytes at once would block every thread of the process for as long as that takes.
        """
        for array in (*self._state, *self.directory.arrays):
            free(array)

    @override
    def __reduce__(self) -> NoReturn:
        # Also of a deep copy: ``packed`` holds addresses of this state's arrays.
        raise TypeError("the state of a shard cannot be copied; use to_bytes and from_bytes")

    @property
    def clock_us(self) -> int | None:
        """The open instant; None before the first event or mark."""
        clock = int(self._state.scalars[w.S_CLOCK])
        return None if clock == w.NEVER else clock

    def __len__(self) -> int:
        return len(self.directory) + (0 if self._sessions is None else len(self._sessions))

    def any_of(self, chosen: Callable[[pl.Series], pl.Series]) -> bool:
        """Return whether any entity here is among those that ``chosen`` says of a series of canonical keys."""
        keys = self.directory.gather(self.directory.rows()).to_series("key")
        return bool(chosen(keys).any()) or (self._sessions is not None and self._sessions.any_of(chosen))

    def holds(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """Return, for each entity, whether it has anything here; a running session counts."""
        held = np.zeros(len(keys.offsets) - 1, np.bool_)
        for directory in self.directories:
            held |= directory.find(keys) >= 0
        return held

    @property
    def directories(self) -> list[Directory]:
        """The directories that together have all entities of which anything is here; always the same ones."""
        return [self.directory] if self._sessions is None else [self.directory, *self._sessions.directories]

    @property
    def n_tiles(self) -> int:
        """The number of live tiles over all windows."""
        return int(self._state.scalars[w.S_TILES])

    @property
    def n_items(self) -> int:
        """The number of different codes and listed events, of all tiles and totals, and of what is kept beside them."""
        return int(self._state.scalars[w.S_ITEMS])

    @property
    def n_texts(self) -> int:
        """The number of texts that numbers stand for; some may no longer be in use."""
        return len(self._texts)

    def apply(self, events: Events | pl.DataFrame | None, clock_us: int) -> Updates:
        """Apply events in the given order, then move the clock.

        ``events``: as from ``evaluate``; arrivals never decrease and are not before the clock. ``clock_us``: not before
        the last arrival; instants before it are closed, and the instant itself stays open.
        """
        if self._is_quiet(events, clock_us):
            return self._unchanged(clock_us)
        before, _ = self._late_shown
        chunks: list[StepRows] = []
        self._run(self._own_events(events, clock_us), clock_us, lambda rows: chunks.append(self._closed(rows)))
        late, late_by = self._late()
        updates = self._updates(
            clock_us=clock_us,
            closed_rows=_in_one(chunks) if chunks else self._nothing_closed(),
            current_rows=self._current(),
            late=_counted_since(before, late),
            late_by_us=late_by,
            late_histogram=late,
        )
        self._forget()
        return updates

    def _updates(self, **fields: Any) -> Updates:
        """Return a step of this shard with these fields."""
        return self._blank.but(since_us=self.since_us, **fields)

    def _is_quiet(self, events: Events | pl.DataFrame | None, clock_us: int) -> bool:
        """Return true if the clock may simply be set: nothing is open or waits, and no tile leaves until then."""
        if (events is not None and events.height) or self._sessions is not None or self.since_us is None:
            return False
        scalars = self._state.scalars
        return bool(
            self._no_closed is not None
            and self._no_current is not None
            and scalars[w.S_NEXT_HOP] > clock_us
            and not (scalars[w.S_TOUCHED] or scalars[w.S_DIRTY] or scalars[w.S_DEAD])
            and len(self._texts) <= self._texts_swept_at
        )

    def _unchanged(self, clock_us: int) -> Updates:
        """Set the clock; most marks of a quiet topic do no more, and there are many of them."""
        assert self._no_closed is not None
        assert self._no_current is not None
        scalars = self._state.scalars
        scalars[w.S_CLOCK] = max(int(scalars[w.S_CLOCK]), clock_us)
        if self._quiet is None:
            late, late_by = self._late_shown
            self._quiet = self._updates(
                clock_us=clock_us,
                closed_rows=self._no_closed,
                current_rows=self._no_current,
                late=(0,) * len(late),
                late_by_us=late_by,
                late_histogram=late,
            )
        return self._quiet.but(clock_us=clock_us, since_us=self.since_us)

    def replay(self, events: Events | pl.DataFrame | None, clock_us: int) -> None:
        """Change the state as ``apply`` does, and return nothing."""

        def count(rows: Rows) -> None:
            self.seq += int(rows.n[0])

        self._run(self._own_events(events, clock_us), clock_us, count)
        self._late()
        self._clear_dirty()
        self._forget()

    def everything(self, n_rows: int) -> Iterator[Updates]:
        """Yield the current rows of all entities, ``n_rows`` at a time, for a store that lost them.

        Between two pieces the state may move on; an entity that is new since then may be left out, because its own step
        returned it. The last piece has no rows.
        """
        first = 0
        while True:
            chosen = self.directory.rows_from(first, n_rows)
            first = int(chosen[-1]) + 1 if len(chosen) else first
            state = self._state
            state.dirty[: len(chosen)] = chosen
            state.entities[chosen, w.ENTITY_MARKS] |= w.MARK_DIRTY
            state.scalars[w.S_DIRTY] = len(chosen)
            late, late_by = self._late_shown
            yield self._updates(
                clock_us=int(state.scalars[w.S_CLOCK]),
                closed_rows=self._nothing_closed(),
                current_rows=self._current(),
                late=(0,) * len(late),
                late_by_us=late_by,
                late_histogram=late,
                refill="part" if len(chosen) else "last",
            )
            if not len(chosen):
                return

    def _own_events(self, events: Events | pl.DataFrame | None, clock_us: int) -> Events | None:
        """Return the events themselves; for a view over sessions, the sessions that close by them and the clock."""
        if isinstance(events, pl.DataFrame):
            events = Events(events)
        if self._sessions is None or self._over_sessions is None:
            return events
        closed = self._sessions.close_sessions(events, clock_us)
        if self.since_us is None:
            self.since_us = self._sessions.since_us
        return None if closed is None else Events(self._over_sessions(closed).events)

    @property
    def newcomers(self) -> Keys | None:
        """The entities, in the order of events, of which nothing was here before the last ones; None if there are none.

        Only of a topic partitioned by the entity.
        """
        return self._newcomers if self._sessions is None else self._sessions.newcomers

    def late_events(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return late events by window and lateness, and the greatest lateness by window.

        Those of the inner view that keeps sessions come last.
        """
        if self._sessions is None:
            return self._state.late.copy(), self._state.late_by
        inner, inner_by = self._sessions.late_events()
        return np.concatenate([self._state.late, inner]), np.concatenate([self._state.late_by, inner_by])

    def _late(self) -> _Late:
        """Return what ``late_events`` does, as ``Updates`` has it; whatever changes the counts calls it afterwards."""
        late, late_by = self.late_events()
        words = late.tobytes() + late_by.tobytes()
        if words != self._late_words:
            self._late_words = words
            self._late_shown = tuple(map(tuple, late.tolist())), tuple(late_by.tolist())
        return self._late_shown

    def _run(self, events: Events | None, clock_us: int, take: Callable[[Rows], None]) -> None:
        """Apply events and move the clock; call ``take`` with closed rows, as many at a time as there is space for."""
        self._quiet = None
        batch = self._batch(events)
        if len(batch.arrival) and batch.arrival[0] < self._state.scalars[w.S_CLOCK]:
            raise ValueError(f"{self.view.id}/{self.shard}: an event arrived before the clock {self.clock_us}")
        if self.since_us is None:
            self.since_us = int(batch.arrival[0]) if len(batch.arrival) else clock_us
        done = 0
        n_words = self._program.value_words
        n_rows = min(2 * len(batch.rows), _MOST_ROW_WORDS // n_words)
        # What is written there is copied out of it.
        rows = new_rows(self._program, n_rows) if n_rows > _MIN_ROWS else _space.of(self._program, _MIN_ROWS)
        packed = self._packed()
        while True:
            needed = int(self._state.scalars[w.S_TOUCHED])
            if needed > len(rows.entity):
                rows = new_rows(self._program, 2 * needed)
            done = run(packed, batch, done, clock_us, rows, self._scratch)
            if rows.n[0]:
                take(rows)
                rows.n[0] = 0
            if done == len(batch.rows) and self._state.scalars[w.S_CLOCK] >= clock_us:
                return

    def close_sessions(self, events: Events | None, clock_us: int) -> pl.DataFrame | None:
        """Apply events as ``apply`` does, and return only the sessions that close; None if none does.

        They are events of a stream, in the order of (instant, key).
        """
        # Nobody reads the rows of the inner view.
        self._run(events, clock_us, lambda _rows: None)
        self._clear_dirty()
        count = int(self._state.scalars[w.S_CLOSINGS])
        if count == 0:
            # As in most steps, and a frame without rows costs as much as one of a few.
            self._forget()
            return None
        self._state.scalars[w.S_CLOSINGS] = 0
        held = self._state.closings[:count].copy()
        keys = self.directory.gather(held[:, w.C_ROW].astype(np.int32)).to_series("key")
        instants = pl.Series("_arrival", held[:, w.C_INSTANT].copy())
        order = pl.DataFrame([instants, keys]).select(pl.arg_sort_by("_arrival", "key")).to_series()
        outs = self._program.features[:, w.F_OUT]
        values = held[:, w.C_VALUES :]
        firsts, others = np.ascontiguousarray(values[:, outs].T), np.delete(values, outs, axis=1)
        features = self._features(firsts, others, None, held[:, w.C_PRESENT], self._texts)
        frame = pl.DataFrame(
            [
                *decode_keys(keys, self.view.entity).get_columns(),
                *features,
                pl.Series("_partition", held[:, w.C_PARTITION].astype(np.int32)),
                pl.Series("_offset", held[:, w.C_OFFSET].copy()),
                instants.cast(_INSTANT),
                instants.cast(_INSTANT).alias("_event_time"),
            ]
        )
        length_us = frame["end"].to_physical() - frame["start"].to_physical()
        # Polars divides a column by a number as a multiplication by the reciprocal, which is not the nearest float64.
        length = pl.Series("length_s", length_us.to_numpy() / 1e6)
        self._forget()
        return frame.with_columns(length)[order]

    def _batch(self, events: Events | None) -> Batch:
        n_filters, n_columns = len(self.view.filters), len(self._columns)
        if events is None or events.height == 0:
            self._reserve(0)
            empty = read_only(np.empty(0, np.int64))
            return Batch(
                np.empty(0, np.int32), empty, empty, empty, empty, empty,
                np.empty((n_filters, 0), np.bool_), np.empty((n_columns, 0), np.int64), np.empty((n_columns, 0), np.bool_),
            )  # fmt: skip
        words = events.words
        filters = np.empty((n_filters, events.height), np.bool_)
        for index in range(n_filters):
            filters[index] = words.flags[f"f{index}"]
        numbers = np.empty((n_columns, events.height), np.int64)
        known = np.ones((n_columns, events.height), np.bool_)
        for index, wanted in enumerate(self._columns):
            if wanted.value < 0:
                numbers[index] = words.numbers["effective"]
                continue
            name = f"v{wanted.value}"
            if name in words.known:
                known[index] = words.known[name]
            if wanted.coding == "raw" and name in words.numbers:
                numbers[index] = words.numbers[name]
            else:
                numbers[index] = self._numbers(index, wanted, words)
        rows, fresh = self._rows_of(words.keys, events.height * len(self.view.windows))
        self._newcomers = self.directory.gather(fresh) if len(fresh) and self.view.partitioned else None
        self._reserve(events.height)
        return Batch(
            rows=rows,
            filters=filters,
            numbers=numbers,
            known=known,
            effective=words.numbers["effective"],
            arrival=words.numbers["arrival"],
            event_time=words.numbers["event_time"],
            partition=words.numbers["partition"],
            offset=words.numbers["offset"],
        )

    def _numbers(self, index: int, wanted: Column, words: EventWords) -> npt.ArrayLike:
        """Return the codes of values, or the numbers that stand for texts."""
        name = f"v{wanted.value}"
        if wanted.coding == "known":
            return 0
        if wanted.coding != "raw":
            if name in words.texts:
                return coded(words.texts[name], wanted)
            are_floats = self.view.values[wanted.value].dtype.scalar == "float64"
            return coded(words.numbers[name].view(np.float64) if are_floats else words.numbers[name], wanted)
        if index not in self._as_texts:
            return 0
        rows, fresh = self._texts.insert(words.texts[name])
        if self._sweep is not None:
            self._sweep.keep(rows, len(fresh))
        return rows

    def _reserve(self, n_events: int) -> None:
        """Make room for what events may add beside tiles, and show the texts to the kernel.

        Events may add items and closed sessions.
        """
        lacked = int(self._state.scalars[w.S_LACKED])
        if self._program.n_bags or lacked:
            # For each event one in a tile and one in the total; a tile's items again if they enter the total later.
            n_items = 2 * n_events * self._program.n_bags + (self.n_items if self._enters_late else 0)
            # Each item that enters a total may add some to its tally.
            n_items += (n_events + (self.n_items if self._enters_late else 0)) * self._tally_items
            # A full list briefly holds one more.
            n_items += 1
            # A tally or a wedge began in vain for lack of room.
            self._reserve_items(n_items + lacked)
            scalars = self._state.scalars
            scalars[w.S_SPARE], scalars[w.S_LACKED] = len(self._state.items) - self.n_items - n_items, 0
        if self._as_texts:
            self._show_texts()
        if self._notes_closings:
            needed = self.n_tiles + n_events
            if needed > len(self._state.closings) or not len(self._state.closings):
                closings = np.empty((2 * needed + 1, w.C_VALUES + self._program.value_words), np.int64)
                self._hold(self._state._replace(closings=closings))

    def _reserve_items(self, count: int) -> None:
        state = self._state
        scalars, needed = state.scalars, self.n_items + count
        if needed > len(state.items):
            items = grown(state.items, capacity_for(needed, len(state.items)), needed)
            state = state._replace(items=items, item_links=links_of(items))
        n_slots = _SLOTS_OF_ITEM * (int(scalars[w.S_ENTERED]) + count)
        if n_slots > len(state.slots):
            state = state._replace(slots=grown(state.slots, 2 * n_slots, n_slots))
        if n_slots > scalars[w.S_SLOTS]:
            add_slots(scalars, state.items, state.item_links, state.slots, n_slots)
        if state is not self._state:
            self._hold(state)

    def _show_texts(self) -> None:
        texts, state = self._texts.arrays, self._state
        if texts.records is not state.text_records or texts.pool is not state.text_pool:
            self._hold(state._replace(text_records=texts.records, text_pool=texts.pool))

    def _rows_of(self, keys: Keys, n_tiles: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Return the rows of keys, and which of them were made; afterwards there is room for ``n_tiles`` more tiles."""
        rows, fresh = self.directory.insert(keys)
        capacity = self.directory.capacity
        if capacity > len(self._state.entities):
            rows_of = {name: grown(getattr(self._state, name), capacity) for name in _ROW_ARRAYS}
            self._hold(self._state._replace(entities=grown(self._state.entities, capacity), **rows_of))
        needed = self.n_tiles + n_tiles
        if needed > len(self._state.tiles):
            self._hold(_with_tiles(self._state, needed))
        # Most batches bring no new keys, and calling compiled code costs more than to look.
        if len(fresh):
            reset_rows(self._program, self._state.entities, fresh, self._empty, self._empty_present)
        return rows, fresh

    def _hold(self, state: State) -> None:
        """Continue with a state that has more room; the memory of the arrays that it replaces is free from here on."""
        self._packed_state = None
        self._state = state

    def _packed(self) -> npt.NDArray[np.int64]:
        """Return program and state as the kernel takes them; arrays that are replaced afterwards are not in it."""
        if self._packed_state is not self._state:
            pack(self._program, self._state)
            self._packed_state = self._state
        return self._state.packed

    def _nothing_closed(self) -> StepRows:
        if self._no_closed is None:
            rows = new_rows(self._program, 0)
            self._no_closed = StepRows(self._frame(RowWords.of(rows, self.directory.gather(rows.entity)), self.seq))
        return self._no_closed

    def _closed(self, rows: Rows) -> StepRows:
        """Return rows that the kernel wrote, at least one; it may write others to their place afterwards."""
        count, first = int(rows.n[0]), self.seq
        self.seq += count
        if count < self._most_few:
            words = RowWords.of(rows, self.directory.gather(rows.entity[:count])).copied()
            return StepRows.of(self._with_texts(words), count, self._frames, first)
        keys, number = self._distinct(rows.entity[:count])
        return StepRows(self._frame(RowWords.of(rows, keys), first, number), first)

    def _with_texts(self, words: _Words) -> _Words:
        """Return rows with the texts that they show, because numbers in the directory may stand for others later."""
        if not len(self._shown):
            return words
        if self._texts.capacity > len(self._places_of):
            # Only what is written is read.
            self._places_of = np.empty(self._texts.capacity, np.int32)
        taken = ShownTexts.taken(self._shown, words.present, words.firsts, words.others, self._texts, self._places_of)
        return words._replace(texts=taken)

    def _frames(self, shards: Sequence[tuple[Sequence[RowWords], int]]) -> list[pl.DataFrame]:
        """Return, for each of several shards of the view, the rows of successive steps as one frame.

        Each row has its own key. A shard comes with the ``seq`` of its first row.
        """
        words = joined(RowWords, [step for steps, _ in shards for step in steps])
        counts = [sum(step.n_rows for step in steps) for steps, _ in shards]
        ends = np.cumsum(counts)
        sequence = [np.arange(first, first + count) for (_, first), count in zip(shards, counts, strict=True)]
        whole = self._frame_of(words, ends, np.concatenate(sequence))
        return [whole[int(end) - count : int(end)] for end, count in zip(ends, counts, strict=True)]

    def _frame(self, words: RowWords, first: int, number: npt.NDArray[np.int32] | None = None) -> pl.DataFrame:
        """Return the rows of a step as one frame; ``first`` is the ``seq`` of the first of them.

        ``number``: for each row the number of its key; None if each has its own.
        """
        count = words.n_rows
        return self._frame_of(words, np.array([count]), np.arange(first, first + count), number)

    def _frame_of(
        self,
        words: RowWords,
        ends: npt.NDArray[np.int64],
        sequence: npt.NDArray[np.int64],
        number: npt.NDArray[np.int32] | None = None,
    ) -> pl.DataFrame:
        """Return the rows of shards as one frame, one shard after the other; ``ends``: where the rows of each end."""
        order = _by_key_at_one_instant(words.instants, words.keys, number, ends)
        entity = decode_keys(words.keys.to_series("key"), self.view.entity)
        places = order if number is None else number[order]
        if len(entity) != len(order) or (places[1:] < places[:-1]).any():
            entity = entity[places]
        caused = words.caused[order]
        event_times, partitions, offsets = (
            words.words[word][order] for word in (w.ROW_EVENT_TIME, w.ROW_PARTITION, w.ROW_OFFSET)
        )
        return pl.DataFrame(
            [
                *entity.get_columns(),
                *self._outputs(words, order),
                pl.Series("available_at", words.instants[order]).cast(_INSTANT),
                series("event_time", event_times, caused).cast(_INSTANT),
                series("partition", partitions.astype(np.int32), caused),
                series("offset", offsets, caused),
                _CAUSES[caused.astype(np.uint32)],
                pl.Series("seq", sequence),
            ]
        )

    def _distinct(self, rows: npt.NDArray[np.int32]) -> tuple[Keys, npt.NDArray[np.int32]]:
        """Return the keys of entity rows, each once, and for every one of ``rows`` the number of its key."""
        if self.directory.capacity > len(self._numbers_of):
            # Only what is written below is read.
            self._numbers_of = np.empty(self.directory.capacity, np.int32)
        places = np.arange(len(rows), dtype=np.int32)
        self._numbers_of[rows] = places
        # One of the places of each row remains.
        distinct = rows[self._numbers_of[rows] == places]
        self._numbers_of[distinct] = np.arange(len(distinct), dtype=np.int32)
        return self.directory.gather(distinct), self._numbers_of[rows]

    def _current(self) -> StepRows:
        count = int(self._state.scalars[w.S_DIRTY])
        if count == 0 and self._no_current is not None:
            return self._no_current
        rows = new_rows(self._program, count)
        current(self._packed(), rows, self._scratch)
        words = CurrentWords.of(rows, self.directory.gather(rows.entity))
        if 0 < count < self._most_few:
            return StepRows.of(self._with_texts(words), count, self._current_frames)
        current_rows = StepRows(self._current_frame([words]))
        if count == 0:
            self._no_current = current_rows
        return current_rows

    def _current_frames(self, parts: Sequence[tuple[Sequence[CurrentWords], int]]) -> list[pl.DataFrame]:
        return [self._current_frame(steps) for steps, _ in parts]

    def _current_frame(self, steps: Sequence[CurrentWords]) -> pl.DataFrame:
        """Return the current rows of steps as one frame; they may be of any shards of the view."""
        words = joined(CurrentWords, steps)
        return pl.DataFrame(
            [
                words.keys.to_series("key"),
                *self._outputs(words),
                pl.Series("_at", words.changed_at),
                series("_until", words.until, words.has_until),
                series("_empty_at", words.empty_at, words.has_empty_at),
                pl.Series("_gone", words.is_gone),
            ]
        )

    def _outputs(self, words: RowWords | CurrentWords, order: npt.NDArray[np.int64] | None = None) -> list[pl.Series]:
        """Return the columns of all outputs: the features, and what is derived from them."""
        present = words.present if order is None else words.present[order]
        firsts, others = words.firsts, words.others
        if words.texts is not None:
            firsts, others = words.texts.from_one(self._shown, words.present, firsts, others)
        columns = self._features(firsts, others, order, present, words.texts or self._texts)
        if not self.view.derived:
            return columns
        derived = select(pl.DataFrame(columns), (plan.expr.alias(plan.name) for plan in self.view.derived))
        return [*columns, *derived.get_columns()]

    def _features(
        self,
        firsts: npt.NDArray[np.int64],
        others: npt.NDArray[np.int64],
        order: npt.NDArray[np.int64] | None,
        present: npt.NDArray[np.int64],
        texts: Directory | ShownTexts,
    ) -> list[pl.Series]:
        columns = []
        everywhere = int(np.bitwise_and.reduce(present))
        all_there = np.ones(len(present), np.bool_)
        for index, feature in enumerate(self.view.features):
            there = all_there if everywhere >> index & 1 else (present >> index) & 1 != 0
            columns.append(column(feature, firsts[index], others, self._others_begin[index], order, there, texts))
        return columns

    def _clear_dirty(self) -> None:
        dirty = self._state.dirty[: int(self._state.scalars[w.S_DIRTY])]
        self._state.entities[dirty, w.ENTITY_MARKS] &= ~w.MARK_DIRTY
        self._state.scalars[w.S_DIRTY] = 0

    def _forget(self) -> None:
        # As in most steps: a call of compiled code costs more than to look.
        if n_dead := int(self._state.scalars[w.S_DEAD]):
            dead = np.empty(n_dead, np.int32)
            count = take_dead(self._state, dead)
            remove_rows(self.directory.arrays, dead[:count])
        if self._sweep is None and len(self._texts) > self._texts_swept_at:
            self._sweep = TextSweep(self._texts, self.directory)
        if self._sweep is not None and self._sweep.go_on(self._program, self._state):
            self._swept(self._sweep)

    def _sweep_texts(self) -> None:
        """Forget all texts that are no longer in use."""
        sweep = TextSweep(self._texts, self.directory)
        sweep.finish(self._program, self._state)
        self._swept(sweep)

    def _swept(self, sweep: TextSweep) -> None:
        """Sweep again when there are twice as many texts as were left of those that there were."""
        self._sweep = None
        self._texts_swept_at = max(_MIN_TEXTS, 2 * (len(self._texts) - sweep.n_new))


def _counted_since(before: _Counts, now: _Counts) -> tuple[int, ...]:
    """Return, by window, how many late events were counted between."""
    if now is before:
        return (0,) * len(now)
    return tuple(sum(later) - sum(earlier) for later, earlier in zip(now, before, strict=True))


def _in_one(chunks: Sequence[StepRows]) -> StepRows:
    """Return the rows of one step, which the kernel wrote piece by piece."""
    return chunks[0] if len(chunks) == 1 else StepRows(pl.concat(frames(chunks)), chunks[0].first)


def _by_key_at_one_instant(
    instants: npt.NDArray[np.int64], keys: Keys, number: npt.NDArray[np.int32] | None, ends: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the places of rows in the order of (shard, instant, key); in that of shards and instants they are already.

    ``number``: for each row the number of its key in ``keys``, which are all different; None if each row has its own.
    ``ends``: where the rows of each shard end. No two rows of a shard have the same instant and key.
    """
    order = np.arange(len(instants))
    same = instants[1:] == instants[:-1]
    same[ends[:-1] - 1] = False
    if not same.any():
        return order
    tied = np.zeros(len(instants), np.bool_)
    tied[1:] = same
    begins = ~tied
    tied[:-1] |= same
    places = np.flatnonzero(tied)
    groups = np.cumsum(begins[places], dtype=np.int64)
    if number is None:
        order[places] = places[keys.chosen(tied).order(groups)]
        return order
    n_keys = len(keys.offsets) - 1
    rank = np.empty(n_keys, np.int64)
    rank[keys.order()] = np.arange(n_keys)
    # The number of an instant, then that of a key: one number for each row.
    order[places] = places[np.argsort(groups * n_keys + rank[number[places]])]
    return order


def _without(stored: state_bytes.Stored, gone: Callable[[pl.Series], pl.Series]) -> state_bytes.Stored:
    """Return stored entities without some of them, and without their tiles, items and open instants."""
    keys = stored.keys.to_series("key")
    stays = ~gone(keys).to_numpy()
    number = np.cumsum(stays) - 1
    tiles = stored.tiles
    tile_stays = stays[tiles.entity]
    tile_number = np.cumsum(tile_stays) - 1
    items = tiles.items[tile_stays[tiles.items[:, state_bytes.I_TILE]]]
    items[:, state_bytes.I_TILE] = tile_number[items[:, state_bytes.I_TILE]]
    touched = stored.touched[stays[stored.touched[:, w.T_ROW]]]
    touched[:, w.T_ROW] = number[touched[:, w.T_ROW]]
    return stored._replace(
        keys=Keys.of(keys.filter(pl.Series(stays))),
        values=stored.values[stays],
        present=stored.present[stays],
        changed_at=stored.changed_at[stays],
        touched=touched,
        tiles=tiles._replace(
            entity=number[tiles.entity[tile_stays]].astype(np.int32),
            window=tiles.window[tile_stays],
            number=tiles.number[tile_stays],
            words=[np.concatenate([words.copy() for words in tiles.words])[tile_stays]],
            items=items,
        ),
    )


def new_rows(program: Program, capacity: int) -> Rows:
    """Return space for rows of a view's values."""
    n_features = len(program.features)
    return Rows(
        n=np.zeros(1, np.int64),
        entity=np.empty(capacity, np.int32),
        words=np.empty((w.N_ROW_WORDS, capacity), np.int64),
        firsts=np.empty((n_features, capacity), np.int64),
        others=np.empty((capacity, program.value_words - n_features), np.int64),
    )


class _Space(threading.local):
    """Space for a few rows of any view, the same in all steps of a thread: new memory costs more than they do."""

    def __init__(self) -> None:
        self._numbers = np.empty(0, np.int64)
        self._entity = np.empty(0, np.int32)

    def of(self, program: Program, capacity: int) -> Rows:
        """Return the space for so many rows of a view's values."""
        n_features = len(program.features)
        firsts, others = w.N_ROW_WORDS * capacity, (w.N_ROW_WORDS + n_features) * capacity
        end = (w.N_ROW_WORDS + program.value_words) * capacity
        if len(self._numbers) < end:
            self._numbers = np.empty(end, np.int64)
        if len(self._entity) < capacity:
            self._entity = np.empty(capacity, np.int32)
        return Rows(
            n=np.zeros(1, np.int64),
            entity=self._entity[:capacity],
            words=self._numbers[:firsts].reshape(w.N_ROW_WORDS, capacity),
            firsts=self._numbers[firsts:others].reshape(n_features, capacity),
            others=self._numbers[others:end].reshape(capacity, program.value_words - n_features),
        )


_space = _Space()
_ROW_ARRAYS = ("touched", "dirty", "dead")


def _with_tiles(state: State, needed: int) -> State:
    """Return a state with room for so many tiles, which has none for them yet."""
    tiles = grown(state.tiles, capacity_for(needed, len(state.tiles)), needed)
    chunks = grown(state.chunks, most_chunks(len(tiles), len(state.ring)))
    return state._replace(tiles=tiles, links=links_of(tiles), chunks=chunks)


def new_state(program: Program, n_rows: int) -> State:
    """Return the arrays of a state in which nothing has happened."""
    n_windows = len(program.windows)
    scalars = np.zeros(w.N_SCALARS, np.int64)
    scalars[w.S_CLOCK] = w.NEVER
    scalars[w.S_NEXT_HOP] = w.FOREVER
    scalars[w.S_TILE_FREE] = w.NONE
    scalars[w.S_CHUNK_FREE] = w.NONE
    scalars[w.S_ITEM_FREE] = w.NONE
    scalars[w.S_SPARE] = 0 if program.n_bags else _MIN_ITEMS
    slots = np.full(_SLOTS_OF_ITEM * _MIN_ITEMS, w.NONE, np.int32)
    scalars[w.S_SLOTS], scalars[w.S_SLOT_MASK] = len(slots), len(slots) - 1
    tiles = lines(_MIN_TILES, w.TILE_WORDS + program.n_words)
    items = lines(_MIN_ITEMS, w.ITEM_WORDS)
    return State(
        scalars=scalars,
        entities=lines(n_rows, program.entity_words),
        touched=np.zeros((n_rows, w.N_T_COLUMNS), np.int64),
        dirty=np.zeros(n_rows, np.int32),
        dead=np.zeros(n_rows, np.int32),
        tiles=tiles,
        links=links_of(tiles),
        ring=np.full(program.ring_slots, w.NONE, np.int32),
        chunks=np.empty((most_chunks(_MIN_TILES, program.ring_slots), w.CHUNK_TILES + w.CHUNK_SIZE), np.int32),
        items=items,
        item_links=links_of(items),
        slots=slots,
        text_records=np.empty((0, N_R_COLUMNS), np.int64),
        text_pool=np.empty(0, np.uint8),
        chosen=np.empty(program.chosen_words, np.int64),
        ranks=np.zeros(program.rank_words, np.int64),
        wide=np.zeros((3, 12), np.uint64),
        closings=np.empty((0, w.C_VALUES), np.int64),
        window_tiles=np.zeros(n_windows, np.int64),
        window_next=np.full(n_windows, w.FOREVER, np.int64),
        late=np.zeros((n_windows, len(LATE_BOUNDS_US) + 1), np.int64),
        late_by=np.zeros(n_windows, np.int64),
        packed=np.empty(PACKED_WORDS, np.int64),
    )
