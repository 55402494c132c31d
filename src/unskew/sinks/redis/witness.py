"""Witnesses: record what Redis acknowledged, and detect when a server has lost some of it.

A server may come back empty, or another one that lacks the last writes may take over.

Every server that holds a part of the keys has a witness: a hash that says, for each shard, up to which place its rows
are on that server. It is written over the connection that sent the rows, once all servers have acknowledged theirs. A
server executes the commands of one connection in order, and its replicas follow in the same order. So if a witness
states a place, the server has all rows up to it; and a server that lost any of them has also lost the witness's last
entry.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from unskew.features.plan import ViewPlan
from unskew.sinks.redis.keyspace import clock_field, clock_key, witness_key
from unskew.sinks.redis.url import Client
from unskew.sinks.redis.words import Clock, Clocks, Listing, Marks, Place, mark_words


class Kept:
    """What Redis acknowledged of one pipeline.

    ``state``: names the history of its shards; entries of another history are ignored. Methods that take a client raise
    what redis-py raises.
    """

    def __init__(self, prefix: str, pipeline: str, state: str) -> None:
        self._prefix = prefix
        self._pipeline = pipeline
        self._state = state
        self._clock_key = clock_key(prefix, pipeline)
        # Found at the start.
        self._found_clocks = Clocks()
        self._found_witnesses: list[Marks] = []
        # Acknowledged since then.
        self._clocks: dict[str, Clock] = {}
        self._places: dict[str, Place] = {}
        self._witnesses: Sequence[str] = ()

    def witnesses(self, tags: Iterable[str]) -> list[str]:
        """Return the witnesses' keys."""
        return [witness_key(self._prefix, self._pipeline, tag) for tag in tags]

    def look(self, client: Client, tags: Iterable[str]) -> None:
        """Read how far values and clocks of an earlier run went."""
        self._found_clocks = Clocks.read(client, self._clock_key)
        self._found_witnesses = [Marks.read(client, key) for key in self.witnesses(tags)]

    def is_behind(self, view: ViewPlan, shard: str, clock_us: int) -> bool:
        """Return true if a server lacked values that a state with this clock had sent, when ``look`` was called."""
        name = clock_field(view, shard)
        closed_us = self._found_clocks.closed_us(name)
        if closed_us is None or closed_us < clock_us - 1:
            return True
        return any(witness.place(name, self._state).clock_us < clock_us for witness in self._found_witnesses)

    def is_new(self, view: ViewPlan) -> bool:
        """Return true if Redis had values of this pipeline, and none of this view, when ``look`` was called."""
        return bool(self._found_clocks.with_clocks()) and not self._found_clocks.shards(view.id)

    def words(self, tags: Iterable[str], places: Mapping[str, Place]) -> Iterator[tuple[str, Mapping[str, str]]]:
        """Yield what to write to each witness when rows up to ``places`` are acknowledged; new ones get all places."""
        for key in self.witnesses(tags):
            entries = places if key in self._witnesses else {**self._places, **places}
            if entries:
                yield key, mark_words(self._state, entries)

    def acknowledged(self, clocks: Mapping[str, Clock], places: Mapping[str, Place], witnesses: Sequence[str]) -> None:
        """Note what is on the servers now. ``witnesses``: the keys of the witnesses that say so."""
        self._clocks |= clocks
        self._places |= places
        self._witnesses = witnesses

    def lacking(self, client: Client, listing: Listing) -> set[str] | None:
        """Return the shards, ``view@version/shard``, that have a clock but lack rows; None if Redis lacks nothing."""
        stored = Clocks.read(client, self._clock_key)
        behind = any(stored.lacks(name, clock) for name, clock in self._clocks.items()) or not all(
            map(stored.is_listed, listing.view_ids)
        )
        lost = set()
        for key in self._witnesses:
            witness = Marks.read(client, key)
            lost |= {name for name, place in self._places.items() if witness.place(name, self._state) < place}
        return set(filter(stored.stands, lost)) if behind or lost else None

    def shards(self) -> set[str]:
        """Return the shards whose values were acknowledged."""
        return set(self._places)

    def ended(self) -> dict[str, Clock]:
        """Return the entries of shards that ended before they had a clock."""
        return {name: clock for name, clock in self._clocks.items() if clock.closed_us is None}

    def forget(self) -> None:
        """Forget everything, because all of it must be sent again."""
        self._clocks = {}
        self._places = {}
        self._witnesses = ()
