"""The writer of current values: the last per key, acknowledged before the clock says so, and never going back.

What a flush does, in this order, on one connection:

1. Where the connection is a new one, see that the server still has what it acknowledged; if not, it came back without its data,
   and the shards are asked for everything they hold (``lost``).
2. Say how far the values to come go: for each shard its clock and how many events it has applied ("mark").
3. Send the values, and await their replies.
4. Send ledgers and clocks, and await theirs.

After a crash a shard goes again through what it had sent already. Its updates are held back until it has come as far as its mark,
and then the last per key are sent: no reader sees a value go back.
"""

import json
import logging
import socket
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import polars as pl
import redis

from unskew.features.ledger import Ledger, ledger_of, written
from unskew.features.plan import ViewPlan
from unskew.features.registry import merge
from unskew.features.updates import NothingToCome, Updates
from unskew.sinks.keyspace import (
    ENDED,
    SINCE,
    as_text,
    clock_field,
    clock_key,
    connect,
    ledger_key,
    reaching_redis,
    registry_key,
    sent_key,
    shards_field,
)
from unskew.sinks.resp import Commands, RowEncoder
from unskew.sinks.resp_replies import Replies

ROWS_PER_CHUNK = 2_500
"""Rows sent before replies are read: bounds what the server holds back for us while we still send."""

LONGEST_INTERVAL_US = 1_000_000
LAG_PER_INTERVAL = 16
"""The interval between flushes is this part of the lag: 1 ms at 16 ms of lag, 1 s from 16 s on."""

MOST_ROWS_WAITING = 200_000
LEAST_ROWS_ASIDE = 1_000
"""Fewer are sent sooner than another thread is awake."""

Place = tuple[int, int]
"""Clock in microseconds and number of events applied: how far a shard is, in an order that every life of it shares."""

_log = logging.getLogger("unskew.redis")


@dataclass
class _Batch:
    """Rows and clocks not acknowledged yet. ``frames``: by view, in the order in which they came."""

    frames: dict[str, list[pl.DataFrame]] = field(default_factory=dict)
    clocks: dict[str, int | str] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    refilled: set[str] = field(default_factory=set)
    ledgers: dict[str, Ledger] = field(default_factory=dict)
    newest_clock_us: int | None = None
    n_rows: int = 0
    n_distinct: int = 0
    n_conflated: int = 0

    def add(self, updates: Updates | NothingToCome) -> None:
        name = clock_field(updates.view, updates.shard)
        if isinstance(updates, NothingToCome):
            self.clocks[name] = ENDED
            return
        # The instant that the clock stands on is still open: readers judge exactness by the last closed one.
        self.clocks[name] = updates.clock_us - 1
        self.places[name] = updates.clock_us, updates.applied
        if updates.refill == "last":
            self.refilled.add(name)
        if updates.since_us is not None:
            self.clocks[name + SINCE] = updates.since_us
        if self.newest_clock_us is None or updates.clock_us > self.newest_clock_us:
            self.newest_clock_us = updates.clock_us
        n_rows = updates.current.height
        if n_rows:
            self.frames.setdefault(updates.view.id, []).append(updates.current)
            self.n_rows += n_rows

    def then(self, later: "_Batch") -> "_Batch":
        """Both as one."""
        clocks = [batch.newest_clock_us for batch in (self, later) if batch.newest_clock_us is not None]
        return _Batch(
            frames={
                view: [*self.frames.get(view, ()), *later.frames.get(view, ())]
                for view in dict.fromkeys((*self.frames, *later.frames))
            },
            clocks={**self.clocks, **later.clocks},
            places={**self.places, **later.places},
            refilled=self.refilled | later.refilled,
            ledgers={**self.ledgers, **later.ledgers},
            newest_clock_us=max(clocks, default=None),
            n_rows=self.n_rows + later.n_rows,
            n_conflated=self.n_conflated + later.n_conflated,
        )

    def conflate(self) -> None:
        """Keep the last row of each key."""
        for view, frames in self.frames.items():
            if len(frames) > 1:
                together = pl.concat(frames)
                last = together.unique("key", keep="last", maintain_order=True)
                self.frames[view] = [last]
                self.n_rows -= together.height - last.height
                self.n_conflated += together.height - last.height


class RedisWriter:
    """Brings Redis to the current rows of all views: values first, and the clocks once those are acknowledged.

    ``client``: a ``redis.Redis`` or a URL. Rows wait in memory until a flush; of several rows of one key only the last
    is sent. What a flush did not get acknowledged stays and is sent by the next one: rows are absolute, so sending them
    twice changes nothing.

    One batch is on its way at a time, the next one waits for its acknowledgement, so nothing is overtaken. ``flush``
    sends it in the caller's thread, ``flush_if_due`` may do so in a thread of the writer's own: meanwhile the caller
    goes on, and what it adds is conflated while the server works. The writer itself is for one thread.

    ``state``: names the history that the shards go through; marks of another one hold nothing back.
    """

    def __init__(self, client: "redis.Redis | str", prefix: str, pipeline: str, state: str = "") -> None:
        self._client = connect(client) if isinstance(client, str) else client
        self._prefix = prefix
        self._state = state
        self._sent_key = sent_key(prefix, pipeline)
        self._registry: str | None = None
        self._shards: Mapping[str, Sequence[str]] = {}
        self._own: Container[str] | None = None
        # As the server had them at the start: clocks by field, and how far each shard's values went.
        self._found: dict[str, str] = {}
        self._holds: dict[str, Place] = {}
        self._held: dict[str, _Batch] = {}
        # What the server acknowledged in this run, and the connection over which it did.
        self._acknowledged: dict[str, int | str] = {}
        self._socket: socket.socket | None = None
        self._refilling: set[str] = set()
        self._told_of_refill: set[str] = set()
        self._rows_refilled = 0
        self.lost = 0
        self._clock_key = clock_key(prefix, pipeline)
        self._ledger_key = ledger_key(prefix, pipeline)
        self._ledgers: dict[str, Ledger] = {}
        self._encoders: dict[str, RowEncoder] = {}
        self._gathered = _Batch()
        self._aside: ThreadPoolExecutor | None = None
        self._sending: tuple[_Batch, Future[None]] | None = None
        self._flushed_at_us: int | None = None
        self.rows_sent = 0
        self.rows_conflated = 0
        self.flushes = 0

    @property
    def n_held(self) -> int:
        """Rows held back until their shard has come as far as it had before a crash."""
        return sum(batch.n_rows for batch in list(self._held.values()))

    @property
    def n_waiting(self) -> int:
        """Rows not yet acknowledged; those gathered for the next flush are not conflated yet."""
        sending = self._sending  # read once: metrics ask from another thread
        return self._gathered.n_rows + (0 if sending is None else sending[0].n_rows)

    def look(self) -> None:
        """See what is there: how far each shard's values and clocks went.

        Raises ``StoreUnavailable`` where Redis cannot be reached or refuses the credentials.
        """
        with reaching_redis():
            self._found = self._texts(self._clock_key)
            for name, text in self._texts(self._sent_key).items():
                state, clock, applied = text.rsplit(":", 2)
                if state == self._state:
                    self._holds[name] = int(clock), int(applied)

    def is_behind(self, view: ViewPlan, shard: str, clock_us: int) -> bool:
        """Whether, when ``look`` was called, the server lacked values that a state with this clock had sent."""
        text = self._found.get(clock_field(view, shard))
        return text is None or text == ENDED or int(text) < clock_us - 1

    def _texts(self, key: str) -> dict[str, str]:
        return {as_text(name): as_text(value) for name, value in self._client.hgetall(key).items()}

    def publish_registry(self, text: str) -> None:
        """Publish these views beside those of other pipelines: a reader then needs nothing but Redis.

        ``text``: JSON as ``registry.describe`` gives it. A published view of the same name is replaced, the others stay.
        """
        self._registry = text
        key = registry_key(self._prefix)

        def publish(transaction: "redis.client.Pipeline") -> None:
            # Watched: if another pipeline publishes meanwhile, this is done again with what it published.
            stored = transaction.get(key)
            transaction.multi()
            transaction.set(key, merge(stored, text))

        with reaching_redis():
            self._client.transaction(publish, key)

    def expect(self, shards: Mapping[str, Sequence[str]], own: Container[str] | None = None) -> None:
        """State at the start of a run, before any of its clocks, which shards each view has, by view id.

        A reader then knows of shards that have no clock yet. Clocks of these views' other shards are an earlier
        deployment's and are removed, with their ledgers, as is what earlier runs said of shards that ended without a clock:
        of those in ``own``, ``view@version/shard``, where other processes keep the others.
        """
        self._shards, self._own = shards, own
        with reaching_redis():
            stored = self._texts(self._clock_key)
            listed = {f"{view_id}/{shard}" for view_id, names in shards.items() for shard in names}
            stale = [
                name
                for name, value in stored.items()
                if name.partition("/")[0] in shards
                and (name.removesuffix(SINCE) not in listed or (value == ENDED and (own is None or name in own)))
            ]
            told = [as_text(name) for name in self._client.hkeys(self._ledger_key)]
            unlisted = [name for name in told if name.partition("/")[0] in shards and name not in listed]
            marked = [name for name in self._texts(self._sent_key) if name.partition("/")[0] in shards]
            strange = [name for name in marked if name not in listed]
            commands = self._client.pipeline(transaction=True)
            if strange:
                commands.hdel(self._sent_key, *strange)
            if unlisted:
                commands.hdel(self._ledger_key, *unlisted)
            if stale:
                commands.hdel(self._clock_key, *stale)
            for view_id, names in shards.items():
                commands.hset(self._clock_key, shards_field(view_id), " ".join(names))
            commands.execute()

    def add(self, updates: Updates | NothingToCome) -> None:
        """Take one step's current rows and its clock; a step without rows still moves the clock."""
        if isinstance(updates, Updates) and updates.view.id not in self._encoders:
            self._encoders[updates.view.id] = RowEncoder(updates.view, self._prefix)
        if isinstance(updates, Updates) and not self._has_arrived(updates):
            return
        self._gathered.add(updates)
        if isinstance(updates, Updates):
            name, ledger = clock_field(updates.view, updates.shard), ledger_of(updates)
            if ledger != self._ledgers.get(name):
                self._ledgers[name] = self._gathered.ledgers[name] = ledger

    def _has_arrived(self, updates: Updates) -> bool:
        """Whether a step may be sent; if not, it is kept. What was kept before goes ahead of the one that may."""
        name = clock_field(updates.view, updates.shard)
        if updates.refill is not None:
            self._tell_of_refill(name, updates)
        mark = self._holds.get(name)
        if mark is None:
            return True
        if (updates.clock_us, updates.applied) < mark:
            held = self._held.setdefault(name, _Batch())
            held.add(updates)
            if held.n_rows > 2 * LEAST_ROWS_ASIDE + 2 * held.n_distinct:
                held.conflate()
                held.n_distinct = held.n_rows
            return False
        del self._holds[name]
        if name in self._held:
            self._gathered = self._gathered.then(self._held.pop(name))
        return True

    def _tell_of_refill(self, name: str, updates: Updates) -> None:
        """Hold the shard's clock back until all of its values are there, and say what is being done, once."""
        if not self._told_of_refill and not self._refilling:
            _log.warning("Redis is empty or behind the state: rewriting all current values")
        self._rows_refilled += updates.current.height
        if updates.refill == "part":
            self._refilling.add(name)
            self._told_of_refill.add(name)
            return
        self._told_of_refill.discard(name)
        if not self._told_of_refill:
            _log.warning("Redis: %d values rewritten from the state", self._rows_refilled)
            self._rows_refilled = 0

    def interval_us(self, now_us: int) -> int:
        """How long rows are gathered before they are sent: grows with the lag of the newest clock, up to 1 s."""
        if self._gathered.newest_clock_us is None:
            return 0
        lag_us = max(0, now_us - self._gathered.newest_clock_us)
        return min(LONGEST_INTERVAL_US, lag_us // LAG_PER_INTERVAL)

    def flush_if_due(self, now_us: int) -> bool:
        """Begin a flush where the interval since the last one is over or very many rows wait; whether it did.

        ``now_us``: the present, microseconds. Only asking flushes: ask after every step, and ``flush`` before a
        snapshot. While a batch is on its way no other is begun; with very many rows waiting it is awaited. Raises as
        ``flush``, also for the batch begun before.
        """
        if self._sending is not None and self._sending[1].done():
            self._finish()
        if not self._gathered.clocks:
            return False
        full = self.n_waiting >= MOST_ROWS_WAITING
        due = self._flushed_at_us is None or now_us - self._flushed_at_us >= self.interval_us(now_us)
        if not (full or (due and self._sending is None)):
            return False
        self._finish()
        if self._gathered.n_rows < LEAST_ROWS_ASIDE:
            self.flush(now_us)
            return True
        if self._aside is None:
            self._aside = ThreadPoolExecutor(1, "unskew-redis")
        batch, self._gathered = self._gathered, _Batch()
        self._sending = batch, self._aside.submit(self._bring, batch, now_us)
        self._flushed_at_us = now_us
        return True

    def flush(self, now_us: int) -> None:
        """Send all that waits, and return once Redis has acknowledged it, clocks included.

        Raises ``StoreUnavailable`` with the server's text if Redis cannot be reached or refuses a command; the rows
        still wait then.
        """
        self._finish()
        batch = self._gathered
        if not batch.clocks:
            return
        self._bring(batch, now_us)
        self._gathered = _Batch()
        self._flushed_at_us = now_us
        self._count(batch)

    def close(self) -> None:
        """Give the connections back; what waits is forgotten."""
        if self._aside is not None:
            self._aside.shutdown()
        self._client.close()

    def _finish(self) -> None:
        """Await the batch that is on its way; if it failed, its rows wait again, before those that came since."""
        if self._sending is None:
            return
        batch, sent = self._sending
        try:
            sent.result()
        except Exception:
            self._sending = None
            self._gathered = batch.then(self._gathered)
            self._flushed_at_us = None
            raise
        self._sending = None
        self._count(batch)

    def _count(self, batch: _Batch) -> None:
        self.rows_sent += batch.n_rows
        self.rows_conflated += batch.n_conflated
        self.flushes += 1

    def _bring(self, batch: _Batch, now_us: int) -> None:
        batch.conflate()
        with reaching_redis():
            connection = self._client.connection_pool.get_connection()
            try:
                self._see_what_is_left(connection)
                self._send(connection, self._commands(batch, now_us))
                # Values whose clock is not told are the shard's refill: a reader must not take what still lacks for empty.
                untold = self._refilling - batch.refilled
                clocks = {name: clock for name, clock in batch.clocks.items() if name.removesuffix(SINCE) not in untold}
                self._send(connection, self._closing(batch, clocks))
            except BaseException:
                # Replies may be outstanding; the next command must not read them as its own.
                connection.disconnect()  # type: ignore[no-untyped-call]
                raise
            finally:
                self._client.connection_pool.release(connection)
        self._acknowledged |= clocks
        self._refilling -= batch.refilled

    def _see_what_is_left(self, connection: "redis.connection.AbstractConnection") -> None:
        """Over a new connection: whether the server has what it acknowledged in this run. If not, ``lost`` is one more."""
        current = _socket_of(connection)
        if current is self._socket:
            return
        if self._socket is not None and self._is_lost():
            self._refilling = {f"{view_id}/{shard}" for view_id, names in self._shards.items() for shard in names}
            ended = {name: value for name, value in self._acknowledged.items() if value == ENDED}
            self._acknowledged = {}
            self._ledgers = {}
            if self._registry is not None:
                self.publish_registry(self._registry)
            self.expect(self._shards, self._own)
            if ended:
                self._client.hset(self._clock_key, mapping=ended)  # type: ignore[arg-type]
            self.lost += 1
        self._socket = current

    def _is_lost(self) -> bool:
        stored = self._texts(self._clock_key)
        return any(
            name not in stored or (isinstance(clock, int) and int(stored[name]) < clock)
            for name, clock in self._acknowledged.items()
        ) or any(shards_field(view_id) not in stored for view_id in self._shards)

    def _commands(self, batch: _Batch, now_us: int) -> Iterator[Commands]:
        if batch.places:
            marks = {name: f"{self._state}:{clock}:{applied}" for name, (clock, applied) in batch.places.items()}
            yield _hset(self._sent_key, marks)
        for view, frames in batch.frames.items():
            for frame in frames:
                for rows in frame.iter_slices(ROWS_PER_CHUNK):
                    yield self._encoders[view].encode(rows, now_us)

    def _closing(self, batch: _Batch, clocks: Mapping[str, int | str]) -> Iterator[Commands]:
        if batch.ledgers:
            yield _hset(self._ledger_key, {name: json.dumps(written(ledger)) for name, ledger in batch.ledgers.items()})
        if clocks:
            yield _hset(self._clock_key, clocks)

    def _send(self, connection: "redis.connection.AbstractConnection", commands: Iterable[Commands]) -> None:
        """Send pipelined; the next chunk is made while the server works on the one before."""
        replies: Replies | None = None
        for chunk in commands:
            connection.send_packed_command([chunk.data], check_health=False)  # type: ignore[no-untyped-call]
            replies = replies or Replies(_socket_of(connection).recv_into)
            replies.expect(chunk.n_lines)
            replies.read(down_to=chunk.n_lines)
        if replies is not None:
            replies.read()


def _hset(key: str, values: Mapping[str, int | str]) -> Commands:
    """The command that sets fields of a hash."""
    arguments = ["HSET", key, *(str(part) for pair in values.items() for part in pair)]
    parts = [argument.encode() for argument in arguments]
    data = b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
    return Commands(data, 1)


def _socket_of(connection: "redis.connection.AbstractConnection") -> socket.socket:
    """The socket of a connection that was made: connecting, credentials and encryption stay the client's business."""
    found: socket.socket | None = connection._sock  # noqa: SLF001 - there is no public way to read replies in bulk
    if found is None:
        raise redis.ConnectionError("Connection closed")
    return found
