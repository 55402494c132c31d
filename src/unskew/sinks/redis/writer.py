"""The writer of current values: the last row of each key, acknowledged before its clock is sent; values never go back.

A flush does the following, in this order, over one connection to each server that holds a part of the keys:

1. Name each new connection, so that a process that takes over can cut it. Check that this process still holds its
   lease. Over new connections, and every few seconds, check that the servers still have what they acknowledged
   (``witness``); if not, a server came back without its data, or another one took over without the last of it, and
   every shard is asked for all its values (``refill``). Then see whether the registry still has the process's views,
   and whether the servers evict keys (``eviction``).
2. Compare rows that shards gave for that with what Redis holds (``scrub``); those that differ join the values. Send
   marks, which say how far the values to come go: for each shard, its clock and the number of events it has applied. If
   there are several servers, await the replies.
3. Send the values, and await their replies.
4. Send ledgers, witnesses and clocks, and await their replies.

After a crash, a shard repeats steps whose rows it had already sent. Its updates are held back until it is no longer
``behind`` and has reached its mark, and then the last row of each key is sent (``held``). So no reader sees a value go
back, even if a server has lost the mark.
``pacing`` decides when a flush begins.
"""

import logging
import socket
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence

import polars as pl
import redis

from unskew.features.errors import RequestError
from unskew.features.ledger import Ledger, ledger_of
from unskew.features.plan import ViewPlan
from unskew.features.registry import displaced, merge, named, own_part
from unskew.features.updates import NothingToCome, Updates
from unskew.features.view import View
from unskew.sinks.redis.batch import Batch
from unskew.sinks.redis.compactness import report_large_hashes
from unskew.sinks.redis.cuts import Cuts
from unskew.sinks.redis.eviction import Eviction
from unskew.sinks.redis.held import Held
from unskew.sinks.redis.keyspace import (
    clock_field,
    clock_key,
    ledger_key,
    owners_key,
    registry_key,
    revision_key,
    sent_key,
)
from unskew.sinks.redis.nodes import Nodes, nodes_of
from unskew.sinks.redis.owners import Owners
from unskew.sinks.redis.pacing import Pacing
from unskew.sinks.redis.published import replace_registry
from unskew.sinks.redis.refill import Refill
from unskew.sinks.redis.removal import remove_values, remove_words
from unskew.sinks.redis.resp import RowEncoder
from unskew.sinks.redis.scrub import Scrub
from unskew.sinks.redis.server import Server, time_us
from unskew.sinks.redis.strangers import is_about_type, remove_strangers
from unskew.sinks.redis.url import Client
from unskew.sinks.redis.witness import Kept
from unskew.sinks.redis.words import Clocks, Listing, Marks, Words, clock_words, ledger_words, mark_words, retired_words

_log = logging.getLogger("unskew.redis")


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
    called before every flush. ``allow_eviction``: whether servers may evict keys; absent rows are provisional then.
    ``expire_after_us``: how long after their last window empties keys expire; None for never. ``log_refills``: false
    if this writer always writes all values, which is then no news.
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
        allow_eviction: bool = False,
        expire_after_us: int | None = None,
        log_refills: bool = True,
    ) -> None:
        self._prefix = prefix
        self._pipeline = pipeline
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
        self._refill = Refill(self._sent_key, logged=log_refills)
        self._eviction = Eviction(allowed=allow_eviction, expires=expire_after_us is not None)
        self._expire_after_us = expire_after_us
        self._owners = Owners(prefix, state)
        self._retired: Collection[str] = ()
        self.scrub = Scrub(self._sent_key)
        # Keys that an earlier version or somebody else wrote may have an expiry, until a whole round has found them.
        self._persists = True
        self._held = Held()
        self._pacing = Pacing(self._bring)
        self._registry: str | None = None
        self._listing = Listing({})
        self._ledgers: dict[str, Ledger] = {}
        self._encoders: dict[str, RowEncoder] = {}
        self.rows_sent = 0
        self.rows_conflated = 0
        self.flushes = 0
        self.strangers = 0
        """The number of keys of another type that were removed from unskew's names."""

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

    @property
    def evicted(self) -> int:
        """The number of keys that the servers have evicted so far, those of others included."""
        return self._eviction.evicted

    def is_doubted(self, view: ViewPlan, shard: str) -> bool:
        """Return true if values of the shard may lack, and a comparison of all of them is urgent."""
        doubted = self.scrub.doubted
        return bool(doubted) and not self._eviction.evicts and clock_field(view, shard) in doubted

    def look(self) -> None:
        """Cut predecessors' connections, and read how far each shard's values and clocks went.

        Raises ``StoreUnavailable`` if Redis cannot be reached or refuses the credentials, and ``RequestError`` if it
        evicts keys and that is not allowed.
        """

        def look(client: Client) -> None:
            self._eviction.look(self._nodes_of(client))
            self._eviction.refuse()
            self._cuts.cut_predecessors(self._nodes_of(client))
            self._kept.look(client, self._nodes_of(client).tags)
            marks = Marks.read(client, self._sent_key)
            self._held.until(marks.places(self._state))
            self.scrub.doubted = marks.doubted

        self._reach(look)

    def time_us(self) -> int:
        """Return the server's wall clock in microseconds; of a cluster's servers, the earliest."""
        with self._server.reaching() as client:
            return time_us(client)

    def is_behind(self, view: ViewPlan, shard: str, clock_us: int) -> bool:
        """Return true if Redis lacked values that a state with this clock had sent, when ``look`` was called."""
        return self._kept.is_behind(view, shard, clock_us)

    def _nodes_of(self, client: Client) -> Nodes:
        if self._nodes is None or self._nodes[0] is not client:
            self._nodes = client, nodes_of(client)
        return self._nodes[1]

    def publish_registry(self, text: str, *, anew: bool = False) -> None:
        """Publish these views beside those of other pipelines, so that a reader needs nothing but Redis.

        ``text``: JSON from ``registry.describe``. Published views of the same versions are replaced; the others stay,
        see ``registry.merge``, also for ``anew``. Of several versions of other pipelines one serves; if that is not one
        of these, it is logged.
        """
        published = [text]

        def change(stored: bytes | str | None) -> str:
            published[0] = merge(stored, text, anew=anew)
            return published[0]

        self._reach(lambda client: replace_registry(client, self._prefix, change))
        # With the order in which versions said that they serve, if Redis loses it.
        self._registry = own_part(published[0], text)
        for view_id, serving in displaced(published[0], text).items():
            _log.warning(
                "%s does not serve, because another pipeline published %s later: the bare name means that one; ask for %s, remove "
                "the other one (unskew purge %s), or start this pipeline once with --replace",
                *(view_id, serving, view_id, serving),
            )

    def report_large_hashes(self, views: Iterable[View]) -> None:
        """Log once which hashes the servers will not keep compact."""
        with self._server.reaching() as client:
            report_large_hashes(self._nodes_of(client), views)

    def refuse_owned(self, shards: Collection[str]) -> None:
        """Raise ``LayoutError`` if one of these shards, ``view@version/shard``, belongs to another state."""
        self._reach(lambda client: self._owners.refuse(client, shards, self._writers_of(client, shards)))

    def _writers_of(self, client: Client, shards: Collection[str]) -> dict[str, str]:
        """Return, by shard, the states that wrote values before there were owners."""
        states = Marks.read(client, self._sent_key).states()
        return {shard: state for shard, state in states.items() if shard in shards}

    def claim(
        self,
        shards: Collection[str],
        where: str,
        *,
        replace: bool = False,
        described: str = "that another state wrote",
    ) -> None:
        """Claim these shards, ``view@version/shard``, for this writer's state; ``where`` says where that state is.

        ``replace``: first remove all values of the views of shards that belong to another state, which ``described``
        describes for the log. Raises ``LayoutError`` if there are such shards and they are not replaced.
        """

        def claim(client: Client) -> None:
            written_by = self._writers_of(client, shards)
            if replace:
                owners = {**written_by, **self._owners.of(client, shards)}
                foreign = {name.partition("/")[0] for name, state in owners.items() if state not in {"", self._state}}
                for view_id in foreign:
                    n_removed = remove_values(client, self._prefix, view_id)
                    _log.warning("Redis: %d values of %s %s were removed", n_removed, view_id, described)
                if foreign:
                    tags = self._nodes_of(client).tags
                    remove_words(client, self._prefix, self._pipeline, tags, foreign)
                    written_by = {}
            self._owners.claim(client, shards, where, written_by)

        self._reach(claim)

    def listed(self, view_id: str) -> tuple[str, ...]:
        """Return the shards of a view that Redis lists, without the view's name; empty if it lists none."""
        with self._server.reaching() as client:
            return Clocks.read(client, self._clock_key).listed(view_id)

    def is_ahead(self, updates: Updates) -> bool:
        """Return true if later values than these may have been sent, when ``look`` was called."""
        return self._held.holds(clock_field(updates.view, updates.shard), updates)

    def remove(self, view: ViewPlan, chosen: Callable[[pl.Series], pl.Series]) -> int:
        """Remove the values of those entities of a view that ``chosen`` says are to go; return how many there were."""
        with self._server.reaching() as client:
            return remove_values(client, self._prefix, view.id, chosen=chosen)

    def expect(
        self,
        shards: Mapping[str, Sequence[str]],
        own: Container[str] | None = None,
        retired: Collection[str] = (),
    ) -> None:
        """Write the list of each view's shards, by view id, at the start of a run, before any of its clocks.

        A reader then knows the shards that have no clock yet. Clocks of other shards of these views are left from an
        earlier deployment; they are removed, with their ledgers. Entries of earlier runs saying that a shard ended
        without a clock are removed too. ``own``: the shards, ``view@version/shard``, for which this process removes
        such entries, if other processes compute the others; None for all. ``retired``: views, by id, that this process
        no longer computes; readers that ask for them get an error once nobody does.
        """
        self._retired = retired
        self._listing = Listing(shards, own)
        self._reach(self._list)

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
        if self._retired:
            self._retire(client)

    def _retire(self, client: Client) -> None:
        tags = self._nodes_of(client).tags
        written_by = Marks.read(client, self._sent_key).states()
        given_up = self._owners.retire(client, self._retired, written_by)
        gone = {shard.partition("/")[0] for shard, is_last in given_up.items() if is_last}
        if not given_up:
            return
        for key in (self._clock_key, self._sent_key, self._ledger_key, *self._kept.witnesses(tags)):
            words = Words.read(client, key)
            fields = [*words.of_shards(given_up), *words.of_views(gone)]
            if fields:
                client.hdel(key, *fields)
        if gone:
            client.hset(self._clock_key, mapping=retired_words(gone))  # type: ignore[arg-type]
            _log.warning(
                "%s: no longer computed; readers that ask for it get an error, and its values stay in Redis until they are "
                "removed with: unskew purge %s",
                ", ".join(sorted(gone)),
                " ".join(sorted(gone)),
            )

    def compare(self, updates: Updates, now_us: int) -> None:
        """Add a part of a shard's current rows, to be compared with Redis before the next batch is sent."""
        name = clock_field(updates.view, updates.shard)
        if self._held.holds(name, updates) or updates.view.id not in self._encoders:
            # Redis may hold more than the shard has reached.
            self.scrub.skip(name)
        else:
            self.scrub.began(name, now_us)
            self._pacing.gathered.compare(name, updates.current)
        if updates.scrub == "last":
            self._pacing.gathered.compared[name] = self.scrub.ended(name, now_us)

    def add(self, updates: Updates | NothingToCome) -> None:
        """Add one step's current rows and its clock; a step without rows still moves the clock."""
        if isinstance(updates, NothingToCome):
            self._pacing.gathered.add(updates)
            return
        view, name = updates.view, clock_field(updates.view, updates.shard)
        if view.id not in self._encoders:
            self._encoders[view.id] = RowEncoder(view, self._prefix, self._expire_after_us)
        if updates.refill is not None:
            self._refill.note(name, updates, is_new=self._kept.is_new(view))
        if self._held.keeps(name, updates):
            return
        if (held := self._held.release(name)) is not None:
            self._pacing.gathered = self._pacing.gathered.then(held)
        self._pacing.gathered.add(updates)
        ledger = ledger_of(updates)
        if ledger != self._ledgers.get(name):
            self._ledgers[name] = self._pacing.gathered.ledgers[name] = ledger

    @property
    def has_work(self) -> bool:
        """Whether anything waits to be sent, or to be acknowledged."""
        return self._pacing.has_work

    def interval_us(self, now_us: int) -> int:
        """Return how long rows are gathered before they are sent: it grows with the newest clock's lag, up to 1 s."""
        return self._pacing.interval_us(now_us)

    def flush_if_due(self, now_us: int, *, resting: bool = False) -> bool:
        """Begin a flush if the interval since the last one is over or very many rows wait; return true if it began.

        ``now_us``: the present, microseconds. ``resting``: the flow has nothing else to do, so clocks without rows need
        not wait for others. Nothing is flushed without a call: call this after every turn, and
        ``flush`` before a snapshot. Raises what ``flush`` raises, also for a batch begun earlier.
        """
        return self._pacing.flush_if_due(now_us, resting=resting)

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
        self._reach(lambda client: self._send(client, batch, now_us), batch)
        if batch.compared:
            self._persists = not self.scrub.is_through(self._kept.shards())
        self.rows_sent += batch.n_rows
        self.rows_conflated += batch.n_conflated
        self.flushes += 1

    def _send(self, client: Client, batch: Batch, now_us: int) -> None:
        self._refill.hear(client, self._listing.shards, batch, now_us)
        nodes = self._nodes_of(client)
        with nodes.open():
            self._check_connections(client, nodes, batch, now_us)
            self.scrub.compare(client, batch, self._encoders, expires=self._expire_after_us is not None)
            self._send_marks(nodes, batch)
            self._send_values(nodes, batch, now_us)
            if self._are_new(nodes):
                # In a cluster, another server has taken over meanwhile.
                self._see_what_is_left(client, nodes, batch)
            self._send_clocks(nodes, batch)
        self._refill.acknowledged(client, batch)
        self.scrub.acknowledged(client, batch, evicts=self._eviction.evicts)

    def _reach(self, act: Callable[[Client], object], batch: Batch | None = None) -> None:
        """Act, which can be repeated; if a key of another type is in the way, remove it and act again."""
        with self._server.reaching() as client:
            try:
                act(client)
            except redis.ResponseError as error:
                if not is_about_type(error):
                    raise
                self.strangers += remove_strangers(client, self._keys(client, batch or Batch()))
                act(client)

    def _keys(self, client: Client, batch: Batch) -> Iterator[tuple[str, str]]:
        """Yield each key that may be read or written with ``batch``, and the type of its value."""
        yield registry_key(self._prefix), "string"
        words = (self._clock_key, self._sent_key, self._ledger_key, owners_key(self._prefix))
        for key in (*words, *self._kept.witnesses(self._nodes_of(client).tags)):
            yield key, "hash"
        for view, steps in batch.rows.items():
            for step in steps:
                for key in self._encoders[view].keys_of(step.frame()):
                    yield key, "hash"

    def _check_connections(self, client: Client, nodes: Nodes, batch: Batch, now_us: int) -> None:
        new = self._are_new(nodes)
        if new:
            self._cuts.show(nodes)
        # The check follows the naming: a process that takes over takes the lease first, then cuts named connections.
        self._still_ours()
        n_evicted = 0
        if new or self._eviction.is_due(now_us):
            self._owners.hold(client)
            # Words may also be evicted or removed one by one.
            self._see_what_is_left(client, nodes, batch)
            self._see_registry(client)
            n_evicted = self._eviction.look(nodes, now_us)
        if n_evicted or self._eviction.evicts:
            self.scrub.doubt(client, {*self._kept.shards(), *batch.places}, again=True)
        try:
            self._eviction.refuse()
        except RequestError as error:
            # The flow waits until the server is configured.
            raise redis.RedisError(str(error)) from error

    def _send_marks(self, nodes: Nodes, batch: Batch) -> None:
        if batch.places:
            nodes.set_fields(self._sent_key, mark_words(self._state, batch.places))
            nodes.then()

    def _send_values(self, nodes: Nodes, batch: Batch, now_us: int) -> None:
        for view, steps in batch.rows.items():
            for step in steps:
                nodes.send_rows(self._encoders[view], step, now_us, persist=self._persists or batch.mends)
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

    def _see_registry(self, client: Client) -> None:
        """Publish the views of this process again if the registry, without which no reader finds them, lacks some."""
        key = registry_key(self._prefix)
        if self._registry is None:
            return
        found = client.get(key)
        if set(named(self._registry)) <= set(named(found)) and client.exists(revision_key(self._prefix)):
            # What was applied meanwhile must not be taken back if Redis loses it.
            self._registry = own_part(found or "", self._registry)
            return
        self.publish_registry(self._registry)
        _log.error(
            "Redis lacked views in %s, without which no reader finds them: they are published again; find out who removes or "
            "changes keys of unskew, or whether the server evicts them",
            key,
        )

    def _see_what_is_left(self, client: Client, nodes: Nodes, batch: Batch) -> None:
        """Check that Redis has what it acknowledged in this run; if not, ``lost`` grows by one."""
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
                self.scrub.forget()
                self._persists = True
                self._ledgers = {}
        self._sockets = nodes.sockets()
