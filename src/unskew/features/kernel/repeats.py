"""Repeats: events of one view and shard with an id that their entity has just had.

An event counts, and is remembered, unless its entity has a remembered event of the same id whose arrival is at most
``within`` before its own; in that case it is a repeat. A repeat is not remembered: it does not extend the time in which
others are repeats. An event without an id always counts and is not remembered.

So the events of its entity before it, in the order in which they count, decide whether an event is a repeat. What is
remembered is bounded by the events of the last ``within``, as measured by the shard's clock.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.features.errors import LayoutError
from unskew.features.jit import compiled, inner
from unskew.features.kernel.directory import Arrays, Directory, insert_row, remove_row
from unskew.features.kernel.memory import grown
from unskew.features.kernel.sealed import seal, unseal
from unskew.features.plan import ViewPlan
from unskew.features.text_buffers import Keys, read_only

LAYOUT = 1
MAGIC = b"unskew\x00R"
_MIN_QUEUE = 64
# The entity's row precedes an id, so that ids of two entities are never the same key.
_ROW_BYTES = 4
# Scalars of a queue.
Q_FIRST, Q_COUNT = range(2)


class Queue(NamedTuple):
    """The remembered events from old to new, in a ring; ``at``: their arrivals, which never decrease."""

    scalars: npt.NDArray[np.int64]
    at: npt.NDArray[np.int64]
    row: npt.NDArray[np.int32]
    entity: npt.NDArray[np.int32]


@compiled()
def _join(rows, known, offsets, data, joined_offsets, joined):
    """Write each id after its entity's row; nothing if there is no id."""
    place = 0
    joined_offsets[0] = 0
    for index in range(len(rows)):
        if known[index]:
            row = rows[index]
            for byte in range(_ROW_BYTES):
                joined[place] = (row >> (8 * byte)) & 0xFF
                place += 1
            for position in range(offsets[index], offsets[index + 1]):
                joined[place] = data[position]
                place += 1
        joined_offsets[index + 1] = place


@compiled()
def _split(joined_offsets, joined, offsets, data):
    """Write the ids alone."""
    place = 0
    offsets[0] = 0
    for index in range(len(joined_offsets) - 1):
        for position in range(joined_offsets[index] + _ROW_BYTES, joined_offsets[index + 1]):
            data[place] = joined[position]
            place += 1
        offsets[index + 1] = place


@inner()
def _let_go(entities, held, row):
    held[row] -= 1
    if held[row] == 0:
        remove_row(entities, row)


@compiled()
def _forget(entities, held, ids, queue, before):
    """Forget the events that arrived before an instant."""
    scalars = queue.scalars
    capacity = len(queue.at)
    while scalars[Q_COUNT] > 0 and queue.at[scalars[Q_FIRST]] < before:
        first = scalars[Q_FIRST]
        remove_row(ids, queue.row[first])
        _let_go(entities, held, queue.entity[first])
        scalars[Q_FIRST] = first + 1 if first + 1 < capacity else 0
        scalars[Q_COUNT] -= 1


@compiled()
def _remember(entities, held, ids, queue, rows, known, joined_offsets, joined, arrivals, within, counts):
    """Decide for every event whether it counts, and remember those that count and have an id."""
    scalars = queue.scalars
    capacity = len(queue.at)
    for row in rows:
        # No entity of the batch loses its row meanwhile.
        held[row] += 1
    for index in range(len(rows)):
        counts[index] = True
        if not known[index]:
            continue
        arrival = arrivals[index]
        _forget(entities, held, ids, queue, arrival - within)
        row, is_new = insert_row(ids, joined, joined_offsets[index], joined_offsets[index + 1])
        if not is_new:
            counts[index] = False
            continue
        last = scalars[Q_FIRST] + scalars[Q_COUNT]
        last = last if last < capacity else last - capacity
        queue.at[last] = arrival
        queue.row[last] = row
        queue.entity[last] = rows[index]
        held[rows[index]] += 1
        scalars[Q_COUNT] += 1
    for row in rows:
        _let_go(entities, held, row)


class Repeats:
    """The recent ids of the entities of one view in one shard; owns its arrays.

    ``view``: its stream must have ``event_id`` and ``dedupe_within_us``.
    """

    def __init__(self, view: ViewPlan, shard: str) -> None:
        if view.stream.dedupe_within_us is None:
            raise ValueError(f"{view.id}: stream {view.stream.name} does not declare within what time ids repeat")
        self.dropped = 0
        self._view = view
        self._shard = shard
        self._within_us = view.stream.dedupe_within_us
        self.entities = Directory()
        """The entities of which an event is remembered; always the same directory."""
        self._held = np.zeros(self.entities.capacity, np.int64)
        self._ids = Directory()
        self._queue = _new_queue(_MIN_QUEUE)

    def __len__(self) -> int:
        """Return the number of events that are remembered."""
        return int(self._queue.scalars[Q_COUNT])

    @property
    def n_entities(self) -> int:
        """The number of entities that have a remembered event."""
        return len(self.entities)

    def drop(self, events: pl.DataFrame | None, clock_us: int) -> pl.DataFrame | None:
        """Return the events without repeats; then forget the events that can no longer cause any.

        ``events``: as from ``evaluate``, in the order in which they count, with arrivals not before those of earlier
        calls. ``clock_us``: no later event arrives before it.
        """
        kept = events
        if events is not None and events.height:
            ids = events["event_id"]
            known = np.ones(events.height, np.bool_)
            if ids.null_count():
                known = ids.is_not_null().to_numpy()
                ids = ids.fill_null("")
            arrivals = np.ascontiguousarray(events["arrival"].to_numpy(), np.int64)
            counts = self._take(self._rows_of(Keys.of(events["key"])), Keys.of(ids), known, arrivals)
            if not counts.all():
                kept = events.filter(pl.Series(counts))
                self.dropped += events.height - kept.height
        _forget(*self._arrays(), clock_us - self._within_us)
        return kept

    def to_bytes(self) -> bytes:
        """Return all that is remembered, in its order; states of a shard that remember the same give equal bytes."""
        order = (self._queue.scalars[Q_FIRST] + np.arange(len(self))) % len(self._queue.at)
        rows, first, index = np.unique(self._queue.entity[order], return_index=True, return_inverse=True)
        # Entities are numbered in the order of their first event, independent of their rows.
        by_first = np.argsort(first)
        number = np.empty(len(rows), np.int32)
        number[by_first] = np.arange(len(rows))
        entities = self.entities.gather(rows[by_first])
        joined = self._ids.gather(self._queue.row[order])
        offsets = np.empty(len(order) + 1, np.int64)
        data = np.empty(len(joined.data) - _ROW_BYTES * len(order), np.uint8)
        _split(joined.offsets, joined.data, offsets, data)
        header = {
            "view": self._view.id,
            "shard": self._shard,
            "fingerprint": self._view.state_fingerprint,
            "dropped": self.dropped,
        }
        arrays: dict[str, npt.NDArray[Any]] = {
            "key_offsets": entities.offsets,
            "key_bytes": entities.data,
            "entity": number[index],
            "at": self._queue.at[order],
            "id_offsets": offsets,
            "id_bytes": data,
        }
        return seal(MAGIC, LAYOUT, header, arrays)

    @classmethod
    def from_bytes(cls, view: ViewPlan, shard: str, data: bytes) -> "Repeats":
        """Read what ``to_bytes`` wrote. Raises ``LayoutError`` if it is damaged or belongs to another definition."""
        what = f"ids of {view.id} in shard {shard}"
        header, arrays, _ = unseal(data, MAGIC, LAYOUT, what)
        if (header["view"], header["shard"], header["fingerprint"]) != (view.id, shard, view.state_fingerprint):
            raise LayoutError(
                f"{what}: written for {header['view']} in shard {header['shard']} with another definition "
                f"(fingerprint {header['fingerprint'][:12]}, now {view.state_fingerprint[:12]}); give the changed view "
                "a new version, or start from an empty state directory"
            )
        result = cls(view, shard)
        result.dropped = header["dropped"]
        rows = result._rows_of(Keys(arrays["key_offsets"], arrays["key_bytes"]))
        known = np.ones(len(arrays["at"]), np.bool_)
        ids = Keys(arrays["id_offsets"], arrays["id_bytes"])
        result._take(rows[arrays["entity"]], ids, known, arrays["at"])
        return result

    def _rows_of(self, keys: Keys) -> npt.NDArray[np.int32]:
        rows, fresh = self.entities.insert(keys)
        if self.entities.capacity > len(self._held):
            self._held = grown(self._held, self.entities.capacity)
        self._held[fresh] = 0
        return rows

    def _take(
        self,
        rows: npt.NDArray[np.int32],
        ids: Keys,
        known: npt.NDArray[np.bool_],
        arrivals: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.bool_]:
        """Return, for each event, whether it counts.

        ``rows``: of the entities; an entity of which nothing is remembered loses its row.
        """
        count = len(rows)
        offsets = np.empty(count + 1, np.int64)
        joined = np.empty(_ROW_BYTES * count + int(ids.offsets[-1] - ids.offsets[0]), np.uint8)
        _join(rows, read_only(known), read_only(ids.offsets), read_only(ids.data), offsets, joined)
        self._ids.reserve(count, len(joined))
        self._queue = _with_room(self._queue, count)
        counts = np.empty(count, np.bool_)
        _remember(
            *self._arrays(), rows, read_only(known), offsets, read_only(joined), read_only(arrivals), self._within_us,
            counts,
        )  # fmt: skip
        return counts

    def _arrays(self) -> tuple[Arrays, npt.NDArray[np.int64], Arrays, Queue]:
        return self.entities.arrays, self._held, self._ids.arrays, self._queue


def _new_queue(capacity: int) -> Queue:
    return Queue(
        scalars=np.zeros(2, np.int64),
        at=np.empty(capacity, np.int64),
        row=np.empty(capacity, np.int32),
        entity=np.empty(capacity, np.int32),
    )


def _with_room(queue: Queue, n_more: int) -> Queue:
    """Return a queue with that many free places: the same one if it has them."""
    first, count = queue.scalars.tolist()
    size = len(queue.at)
    if count + n_more <= size:
        return queue
    capacity = max(2 * size, count + n_more)
    at, row, entity = (grown(array, capacity) for array in queue[1:])
    n_behind = max(0, first + count - size)
    for array in (at, row, entity):
        # What went on at the beginning of the ring goes on where its end was.
        array[size : size + n_behind] = array[:n_behind]
    return Queue(queue.scalars, at, row, entity)
