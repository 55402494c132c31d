"""The writer of current values: the last per key, acknowledged before the clock says so, and never going back.

What a flush does, in this order, over one connection to each server that holds a part of the keys:

1. Where a connection is a new one, name it, so that a process that takes over can cut it; see that this process still holds its lease, and
   that the server still has what was acknowledged (``redis_kept``); if not, it came back without
   its data, or another has taken over without the last of it, and the shards are asked for everything they hold (``lost``).
2. Say how far the values to come go: for each shard its clock and how many events it has applied ("mark"). Where there are
   several servers, await the reply.
3. Send the values, and await their replies.
4. Send ledgers, witnesses and clocks, and await theirs.

After a crash a shard goes again through what it had sent already. Its updates are held back until it is no longer ``behind`` and has come
as far as its mark, and then the last per key are sent: no reader sees a value go back, also of a server that has lost the mark.
"""

import logging
import socket
import uuid
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import redis

from unskew.features.ledger import Ledger, ledger_of
from unskew.features.plan import ViewPlan
from unskew.features.registry import merge
from unskew.features.updates import NothingToCome, Updates
from unskew.sinks.redis.batch import Batch
from unskew.sinks.redis.cuts import Cuts
from unskew.sinks.redis.keyspace import clock_field, clock_key, ledger_key, registry_key, sent_key
from unskew.sinks.redis.nodes import Nodes, nodes_of
from unskew.sinks.redis.resp import RowEncoder
from unskew.sinks.redis.server import Server
from unskew.sinks.redis.url import Client
from unskew.sinks.redis.witness import Kept
from unskew.sinks.redis.words import (
    Clock,
    Clocks,
    Listing,
    Marks,
    Place,
    Words,
    clock_words,
    end_loss,
    ledger_words,
    mark_words,
    read_loss,
    write_loss,
)

LONGEST_INTERVAL_US = 1_000_000
LAG_PER_INTERVAL = 16
"""The interval between flushes is this part of the lag: 1 ms at 16 ms of lag, 1 s from 16 s on."""

MOST_ROWS_WAITING = 200_000
LEAST_ROWS_ASIDE = 1_000
"""Fewer are sent sooner than another thread is awake."""

HEAR_EVERY_US = 1_000_000
"""How often a writer asks what writers in other processes have lost."""

_log = logging.getLogger("unskew.redis")


class RedisWriter:
    """Brings Redis to the current rows of all views: values first, and the clocks once those are acknowledged.

    ``client``: a client of redis-py or a URL, of one server, sentinels or a cluster. Rows wait in memory until a flush; of several rows of one key only the last
    is sent. What a flush did not get acknowledged stays and is sent by the next one: rows are absolute, so sending them
    twice changes nothing.

    One batch is on its way at a time, the next one waits for its acknowledgement, so nothing is overtaken. ``flush``
    sends it in the caller's thread, ``flush_if_due`` may do so in a thread of the writer's own: meanwhile the caller
    goes on, and what it adds is conflated while the server works. The writer itself is for one thread.

    ``state``: names the history that the shards go through; marks of another one hold nothing back. ``process``: this one's number among
    the ``n_processes`` of that history. ``still_ours``: raises where another process has taken over; it is asked before every flush.
    """

    def __init__(
        self,
        client: Client | str,
        prefix: str,
        pipeline: str,
        state: str = "",
        *,
        process: int = 0,
        n_processes: int = 1,
        still_ours: Callable[[], None] = lambda: None,
    ) -> None:
        self._still_ours = still_ours
        self._cuts = Cuts(state, process, n_processes)
        self._server = Server(client)
        self._state = state
        self._nodes: tuple[Client, Nodes] | None = None
        self._prefix = prefix
        self._sent_key = sent_key(prefix, pipeline)
        self._registry: str | None = None
        self._listing = Listing({})
        # How far each shard's values went before a crash, and the updates that come up to it again.
        self._holds: dict[str, Place] = {}
        self._held: dict[str, Batch] = {}
        # What was acknowledged, and the connections over which it was.
        self._kept = Kept(prefix, pipeline, state)
        self._sockets: dict[str, socket.socket] = {}
        # The last loss that any process of the pipeline noticed, and when it was last asked for; if it was this one, which
        # shards' values have not all come again.
        self._loss = ""
        self._lacking: set[str] | None = None
        self._heard_at_us: int | None = None
        self._refilling: set[str] = set()
        self._told_of_refill: set[str] = set()
        self._rows_refilled = 0
        self.lost = 0
        self._clock_key = clock_key(prefix, pipeline)
        self._ledger_key = ledger_key(prefix, pipeline)
        self._ledgers: dict[str, Ledger] = {}
        self._encoders: dict[str, RowEncoder] = {}
        self._gathered = Batch()
        self._aside: ThreadPoolExecutor | None = None
        self._sending: tuple[Batch, Future[None]] | None = None
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
        with self._server.reaching() as client:
            self._cuts.cut_predecessors(self._nodes_of(client))
            self._kept.look(client, self._nodes_of(client).tags)
            self._holds |= Marks.read(client, self._sent_key).places(self._state)

    def is_behind(self, view: ViewPlan, shard: str, clock_us: int) -> bool:
        """Whether, when ``look`` was called, Redis lacked values that a state with this clock had sent."""
        return self._kept.is_behind(view, shard, clock_us)

    def _nodes_of(self, client: Client) -> Nodes:
        if self._nodes is None or self._nodes[0] is not client:
            self._nodes = client, nodes_of(client)
        return self._nodes[1]

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

        with self._server.reaching() as client:
            client.transaction(publish, key)

    def expect(self, shards: Mapping[str, Sequence[str]], own: Container[str] | None = None) -> None:
        """State at the start of a run, before any of its clocks, which shards each view has, by view id.

        A reader then knows of shards that have no clock yet. Clocks of these views' other shards are an earlier
        deployment's and are removed, with their ledgers, as is what earlier runs said of shards that ended without a clock:
        of those in ``own``, ``view@version/shard``, where other processes keep the others.
        """
        self._listing = Listing(shards, own)
        with self._server.reaching() as client:
            self._list(client)

    def _list(self, client: Client) -> None:
        # Hash by hash: in a cluster each may be on another server.
        for key in (self._sent_key, *self._kept.witnesses(self._nodes_of(client).tags), self._ledger_key):
            if outdated := Words.read(client, key).outdated(self._listing):
                client.hdel(key, *outdated)
        outdated = Clocks.read(client, self._clock_key).outdated(self._listing)
        # In this order: clocks of shards that are not listed count for nothing.
        if self._listing.words:
            client.hset(self._clock_key, mapping=self._listing.words)  # type: ignore[arg-type]
        if outdated:
            client.hdel(self._clock_key, *outdated)

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
        if updates.behind or (mark is not None and (updates.clock_us, updates.applied) < mark):
            held = self._held.setdefault(name, Batch())
            held.add(updates)
            if held.n_rows > 2 * LEAST_ROWS_ASIDE + 2 * held.n_distinct:
                held.conflate()
                held.n_distinct = held.n_rows
            return False
        self._holds.pop(name, None)
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
        batch, self._gathered = self._gathered, Batch()
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
        self._gathered = Batch()
        self._flushed_at_us = now_us
        self._count(batch)

    def close(self) -> None:
        """Give the connections back; what waits is forgotten."""
        if self._aside is not None:
            self._aside.shutdown()
        self._server.close()

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

    def _count(self, batch: Batch) -> None:
        self.rows_sent += batch.n_rows
        self.rows_conflated += batch.n_conflated
        self.flushes += 1

    def _bring(self, batch: Batch, now_us: int) -> None:
        batch.conflate()
        with self._server.reaching() as client:
            self._hear_of_losses(client, batch, now_us)
            nodes = self._nodes_of(client)
            with nodes.open():
                new = self._are_new(nodes)
                if new:
                    self._cuts.show(nodes)
                # In this order: who takes over first takes the lease, and then cuts the connections that it finds.
                self._still_ours()
                if new:
                    self._see_what_is_left(client, nodes, batch)
                if batch.places:
                    nodes.set_fields(self._sent_key, mark_words(self._state, batch.places))
                    nodes.then()
                for view, frames in batch.frames.items():
                    for frame in frames:
                        nodes.send_rows(self._encoders[view], frame, now_us)
                nodes.finish()
                if self._are_new(nodes):
                    # Of a cluster, another server has taken over meanwhile.
                    self._see_what_is_left(client, nodes, batch)
                # Values whose clock is not told are the shard's refill: a reader must not take what still lacks for empty.
                untold = self._refilling - batch.refilled
                clocks = {name: clock for name, clock in batch.clocks.items() if name not in untold}
                places = {name: place for name, place in batch.places.items() if name not in untold}
                words = dict(self._kept.words(nodes.tags, places))
                for key, values in self._closing(batch, words, clocks):
                    nodes.set_fields(key, values, anywhere=key not in words)
                nodes.finish()
                witnesses = [key for key in self._kept.witnesses(nodes.tags) if key not in nodes.refused]
            self._kept.acknowledged(clocks, places, witnesses)
            self._refilling -= batch.refilled
            if self._lacking is not None and not self._lacking & self._refilling:
                end_loss(client, self._sent_key, self._loss)
                self._lacking = None

    def _are_new(self, nodes: Nodes) -> bool:
        """Whether a connection is not the one over which the last flush went."""
        return any(self._sockets.get(name) is not found for name, found in nodes.sockets().items())

    def _see_what_is_left(self, client: Client, nodes: Nodes, batch: Batch) -> None:
        """Over new connections: whether Redis has what it acknowledged in this run. If not, ``lost`` is one more."""
        if self._sockets:
            lacking = self._kept.lacking(client, self._listing)
            if lacking is not None:
                # Nothing is forgotten here before all of this is done: it may break off and is then done again.
                if lacking:
                    client.hdel(self._clock_key, *lacking)
                if self._registry is not None:
                    self.publish_registry(self._registry)
                self._list(client)
                if ended := self._kept.ended():
                    client.hset(self._clock_key, mapping=clock_words(ended))  # type: ignore[arg-type]
                self._loss, self._lacking = uuid.uuid4().hex, self._kept.shards()
                write_loss(client, self._sent_key, self._loss)
                self._kept.forget()
                self._ledgers = {}
                self._ask_for_everything(batch)
        self._sockets = nodes.sockets()

    def _hear_of_losses(self, client: Client, batch: Batch, now_us: int) -> None:
        """In a cluster of processes, values that the writer of another one lost may be of shards that are computed in this one."""
        if self._heard_at_us is not None and now_us - self._heard_at_us < HEAR_EVERY_US:
            return
        told = read_loss(client, self._sent_key)
        if told not in {"", self._loss}:
            self._loss, self._lacking = told, None
            self._ask_for_everything(batch)
        self._heard_at_us = now_us

    def _ask_for_everything(self, batch: Batch) -> None:
        """From here on no clock is told before all values of its shard have come again."""
        self._refilling = set(self._listing.shards)
        batch.refilled.clear()
        self.lost += 1

    def _closing(
        self, batch: Batch, words: Mapping[str, Mapping[str, str]], clocks: Mapping[str, Clock]
    ) -> Iterator[tuple[str, Mapping[str, int | str]]]:
        if batch.ledgers:
            yield self._ledger_key, ledger_words(batch.ledgers)
        yield from words.items()
        if clocks:
            yield self._clock_key, clock_words(clocks)
