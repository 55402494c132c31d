"""The writer of current values: the last row of each key, acknowledged before its clock is sent; values never go back.

A flush does the following, in this order, over one connection to each server that holds a part of the keys:

1. Name each new connection, so that a process that takes over can cut it. Check that this process still holds its
   lease. Over new connections, check that the servers still have what they acknowledged (``witness``); if not, a server
   came back without its data, or another one took over without the last of it, and every shard is asked for all its
   values (``refill``).
2. Send marks, which say how far the values to come go: for each shard, its clock and the number of events it has
   applied. If there are several servers, await the replies.
3. Send the values, and await their replies.
4. Send ledgers, witnesses and clocks, and await their replies.

After a crash, a shard repeats steps whose rows it had already sent. Its updates are held back until it is no longer
``behind`` and has reached its mark, and then the last row of each key is sent (``held``). So no reader sees a value go
back, even if a server has lost the mark.
``pacing`` decides when a flush begins.
"""

import socket
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import redis

from unskew.features.ledger import Ledger, ledger_of
from unskew.features.plan import ViewPlan
from unskew.features.registry import merge
from unskew.features.updates import NothingToCome, Updates
from unskew.sinks.redis.batch import Batch
from unskew.sinks.redis.cuts import Cuts
from unskew.sinks.redis.held import Held
from unskew.sinks.redis.keyspace import clock_field, clock_key, ledger_key, registry_key, sent_key
from unskew.sinks.redis.nodes import Nodes, nodes_of
from unskew.sinks.redis.pacing import Pacing
from unskew.sinks.redis.refill import Refill
from unskew.sinks.redis.resp import RowEncoder
from unskew.sinks.redis.server import Server
from unskew.sinks.redis.url import Client
from unskew.sinks.redis.witness import Kept
from unskew.sinks.redis.words import Clocks, Listing, Marks, Words, clock_words, ledger_words, mark_words


class RedisWriter:
    """The writer of the current rows of all views: values go first, and clocks once the values are acknowledged.

    ``client``: a client of redis-py, or a URL, of one server, sentinels or a cluster. Rows wait in memory until a
    flush; of several rows of one key, only the last is sent. Rows that a flush did not get acknowledged stay, and the
    next flush sends them again: rows are absolute, so sending them twice changes nothing.

    One batch is in flight at a time, and the next waits for its acknowledgement, so no batch overtakes another.
    ``flush`` sends in the caller's thread. ``flush_if_due`` may send in a thread of the writer's own; meanwhile the
    caller continues, and the rows it adds are conflated while the server works. The writer itself is for one thread.

    ``state``: names the history of the shards; marks of another history hold nothing back. ``process``: this process's
    number among the ``n_processes`` of that history. ``still_ours``: raises if another process has taken over; it is
    called before every flush.
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
        self._prefix = prefix
        self._state = state
        self._clock_key = clock_key(prefix, pipeline)
        self._sent_key = sent_key(prefix, pipeline)
        self._ledger_key = ledger_key(prefix, pipeline)
        self._server = Server(client)
        self._nodes: tuple[Client, Nodes] | None = None
        self._still_ours = still_ours
        self._cuts = Cuts(state, process, n_processes)
        # What was acknowledged, and the connections that acknowledged it.
        self._kept = Kept(prefix, pipeline, state)
        self._sockets: dict[str, socket.socket] = {}
        self._refill = Refill(self._sent_key)
        self._held = Held()
        self._pacing = Pacing(self._bring)
        self._registry: str | None = None
        self._listing = Listing({})
        self._ledgers: dict[str, Ledger] = {}
        self._encoders: dict[str, RowEncoder] = {}
        self.rows_sent = 0
        self.rows_conflated = 0
        self.flushes = 0

    @property
    def n_held(self) -> int:
        """The number of rows held back until their shard has reached its place before a crash."""
        return self._held.n_rows

    @property
    def n_waiting(self) -> int:
        """The number of rows not yet acknowledged; those gathered for the next flush are not conflated yet."""
        return self._pacing.n_waiting

    @property
    def lost(self) -> int:
        """The number of losses of values by Redis so far; when it grows, every shard is asked for all its values."""
        return self._refill.lost

    def look(self) -> None:
        """Cut predecessors' connections, and read how far each shard's values and clocks went.

        Raises ``StoreUnavailable`` if Redis cannot be reached or refuses the credentials.
        """
        with self._server.reaching() as client:
            self._cuts.cut_predecessors(self._nodes_of(client))
            self._kept.look(client, self._nodes_of(client).tags)
            self._held.until(Marks.read(client, self._sent_key).places(self._state))

    def time_us(self) -> int:
        """Return the server's wall clock in microseconds; of a cluster's servers, the earliest."""
        with self._server.reaching() as client:
            answer: Any = client.time()  # By node in a cluster.
        times = answer.values() if isinstance(answer, dict) else [answer]
        return min(int(seconds) * 1_000_000 + int(us) for seconds, us in times)

    def is_behind(self, view: ViewPlan, shard: str, clock_us: int) -> bool:
        """Return true if Redis lacked values that a state with this clock had sent, when ``look`` was called."""
        return self._kept.is_behind(view, shard, clock_us)

    def _nodes_of(self, client: Client) -> Nodes:
        if self._nodes is None or self._nodes[0] is not client:
            self._nodes = client, nodes_of(client)
        return self._nodes[1]

    def publish_registry(self, text: str) -> None:
        """Publish these views beside those of other pipelines, so that a reader needs nothing but Redis.

        ``text``: JSON from ``registry.describe``. A published view of the same name is replaced; the others stay.
        """
        self._registry = text
        key = registry_key(self._prefix)

        def publish(transaction: "redis.client.Pipeline") -> None:
            # The key is watched: if another pipeline publishes meanwhile, this is repeated with the new text.
            stored = transaction.get(key)
            transaction.multi()
            transaction.set(key, merge(stored, text))

        with self._server.reaching() as client:
            client.transaction(publish, key)

    def expect(self, shards: Mapping[str, Sequence[str]], own: Container[str] | None = None) -> None:
        """Write the list of each view's shards, by view id, at the start of a run, before any of its clocks.

        A reader then knows the shards that have no clock yet. Clocks of other shards of these views are left from an
        earlier deployment; they are removed, with their ledgers. Entries of earlier runs saying that a shard ended
        without a clock are removed too. ``own``: the shards, ``view@version/shard``, for which this process removes
        such entries, if other processes compute the others; None for all.
        """
        self._listing = Listing(shards, own)
        with self._server.reaching() as client:
            self._list(client)

    def _list(self, client: Client) -> None:
        # One hash at a time, because in a cluster each may be on another server.
        for key in (self._sent_key, *self._kept.witnesses(self._nodes_of(client).tags), self._ledger_key):
            if outdated := Words.read(client, key).outdated(self._listing):
                client.hdel(key, *outdated)
        outdated = Clocks.read(client, self._clock_key).outdated(self._listing)
        # The list goes first: once it is there, readers ignore the clocks of shards that it does not name.
        if self._listing.words:
            client.hset(self._clock_key, mapping=self._listing.words)  # type: ignore[arg-type]
        if outdated:
            client.hdel(self._clock_key, *outdated)

    def add(self, updates: Updates | NothingToCome) -> None:
        """Add one step's current rows and its clock; a step without rows still moves the clock."""
        if isinstance(updates, NothingToCome):
            self._pacing.gathered.add(updates)
            return
        view, name = updates.view, clock_field(updates.view, updates.shard)
        if view.id not in self._encoders:
            self._encoders[view.id] = RowEncoder(view, self._prefix)
        if updates.refill is not None:
            self._refill.note(name, updates)
        if self._held.keeps(name, updates):
            return
        if (held := self._held.release(name)) is not None:
            self._pacing.gathered = self._pacing.gathered.then(held)
        self._pacing.gathered.add(updates)
        ledger = ledger_of(updates)
        if ledger != self._ledgers.get(name):
            self._ledgers[name] = self._pacing.gathered.ledgers[name] = ledger

    def interval_us(self, now_us: int) -> int:
        """Return how long rows are gathered before they are sent: it grows with the newest clock's lag, up to 1 s."""
        return self._pacing.interval_us(now_us)

    def flush_if_due(self, now_us: int) -> bool:
        """Begin a flush if the interval since the last one is over or very many rows wait; return true if it began.

        ``now_us``: the present, microseconds. Nothing is flushed without a call: call this after every step, and
        ``flush`` before a snapshot. Raises what ``flush`` raises, also for a batch begun earlier.
        """
        return self._pacing.flush_if_due(now_us)

    def flush(self, now_us: int) -> None:
        """Send all waiting rows, and return once Redis has acknowledged them and the clocks.

        Raises ``StoreUnavailable`` with the server's text if Redis cannot be reached or refuses a command; the rows
        then stay and wait for the next flush.
        """
        self._pacing.flush(now_us)

    def close(self) -> None:
        """Await the batch in flight, discard waiting rows, and close the connections."""
        self._pacing.close()
        self._server.close()

    def _bring(self, batch: Batch, now_us: int) -> None:
        """Send a batch, in the steps that the module's docstring lists."""
        batch.conflate()
        with self._server.reaching() as client:
            self._refill.hear(client, self._listing.shards, batch, now_us)
            nodes = self._nodes_of(client)
            with nodes.open():
                self._check_connections(client, nodes, batch)
                self._send_marks(nodes, batch)
                self._send_values(nodes, batch, now_us)
                if self._are_new(nodes):
                    # In a cluster, another server has taken over meanwhile.
                    self._see_what_is_left(client, nodes, batch)
                self._send_clocks(nodes, batch)
            self._refill.acknowledged(client, batch)
        self.rows_sent += batch.n_rows
        self.rows_conflated += batch.n_conflated
        self.flushes += 1

    def _check_connections(self, client: Client, nodes: Nodes, batch: Batch) -> None:
        new = self._are_new(nodes)
        if new:
            self._cuts.show(nodes)
        # The check follows the naming: a process that takes over takes the lease first, then cuts named connections.
        self._still_ours()
        if new:
            self._see_what_is_left(client, nodes, batch)

    def _send_marks(self, nodes: Nodes, batch: Batch) -> None:
        if batch.places:
            nodes.set_fields(self._sent_key, mark_words(self._state, batch.places))
            nodes.then()

    def _send_values(self, nodes: Nodes, batch: Batch, now_us: int) -> None:
        for view, frames in batch.frames.items():
            for frame in frames:
                nodes.send_rows(self._encoders[view], frame, now_us)
        nodes.finish()

    def _send_clocks(self, nodes: Nodes, batch: Batch) -> None:
        incomplete = self._refill.incomplete(batch)
        clocks = {name: clock for name, clock in batch.clocks.items() if name not in incomplete}
        places = {name: place for name, place in batch.places.items() if name not in incomplete}
        if batch.ledgers:
            nodes.set_fields(self._ledger_key, ledger_words(batch.ledgers))
        for key, words in self._kept.words(nodes.tags, places):
            nodes.set_fields(key, words, anywhere=False)
        if clocks:
            nodes.set_fields(self._clock_key, clock_words(clocks))
        nodes.finish()
        witnesses = [key for key in self._kept.witnesses(nodes.tags) if key not in nodes.refused]
        self._kept.acknowledged(clocks, places, witnesses)

    def _are_new(self, nodes: Nodes) -> bool:
        """Return true if a connection is not the one that the last flush used."""
        return any(self._sockets.get(name) is not found for name, found in nodes.sockets().items())

    def _see_what_is_left(self, client: Client, nodes: Nodes, batch: Batch) -> None:
        """Check over new connections that Redis has what it acknowledged in this run; if not, ``lost`` grows by one."""
        if self._sockets:
            lacking = self._kept.lacking(client, self._listing)
            if lacking is not None:
                # Any of these steps may fail and is then repeated, so nothing is forgotten until all are done.
                if lacking:
                    client.hdel(self._clock_key, *lacking)
                if self._registry is not None:
                    self.publish_registry(self._registry)
                self._list(client)
                if ended := self._kept.ended():
                    client.hset(self._clock_key, mapping=clock_words(ended))  # type: ignore[arg-type]
                self._refill.lose(client, self._kept.shards(), self._listing.shards, batch)
                self._kept.forget()
                self._ledgers = {}
        self._sockets = nodes.sockets()
