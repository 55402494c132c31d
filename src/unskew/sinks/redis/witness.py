"""What Redis acknowledged, and whether it still has it: a server may come back empty, or another without the last writes may take over.

Every server that holds a part of the keys has a witness: a hash that says for each shard up to which place its rows are there,
written over the connection over which they were sent, once all servers have acknowledged theirs. A server does what one
connection sends in that order, and its replicas follow in that order. So where a witness says a place, all rows up to it stand
beside it; and a server that lost any of them has lost the witness's last word too.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from unskew.features.plan import ViewPlan
from unskew.sinks.redis.keyspace import clock_field, clock_key, witness_key
from unskew.sinks.redis.url import Client
from unskew.sinks.redis.words import Clock, Clocks, Listing, Marks, Place, mark_words


class Kept:
    """What was acknowledged, of one pipeline. ``state``: names the history of its shards; words of another one count for nothing.

    Methods that take a client raise what redis-py raises.
    """

    def __init__(self, prefix: str, pipeline: str, state: str) -> None:
        self._prefix = prefix
        self._pipeline = pipeline
        self._state = state
        self._clock_key = clock_key(prefix, pipeline)
        # At the start.
        self._found_clocks = Clocks()
        self._found_witnesses: list[Marks] = []
        # Since then.
        self._clocks: dict[str, Clock] = {}
        self._places: dict[str, Place] = {}
        self._witnesses: Sequence[str] = ()

    def witnesses(self, tags: Iterable[str]) -> list[str]:
        """The witnesses' keys."""
        return [witness_key(self._prefix, self._pipeline, tag) for tag in tags]

    def look(self, client: Client, tags: Iterable[str]) -> None:
        """See how far values and clocks of an earlier run went."""
        self._found_clocks = Clocks.read(client, self._clock_key)
        self._found_witnesses = [Marks.read(client, key) for key in self.witnesses(tags)]

    def is_behind(self, view: ViewPlan, shard: str, clock_us: int) -> bool:
        """Whether, when ``look`` was called, some server lacked values that a state with this clock had sent."""
        name = clock_field(view, shard)
        closed_us = self._found_clocks.closed_us(name)
        if closed_us is None or closed_us < clock_us - 1:
            return True
        return any(witness.place(name, self._state).clock_us < clock_us for witness in self._found_witnesses)

    def words(self, tags: Iterable[str], places: Mapping[str, Place]) -> Iterator[tuple[str, Mapping[str, str]]]:
        """What is to be written to each witness, where rows up to ``places`` are acknowledged; to a new one all that was before."""
        for key in self.witnesses(tags):
            told = places if key in self._witnesses else {**self._places, **places}
            if told:
                yield key, mark_words(self._state, told)

    def acknowledged(self, clocks: Mapping[str, Clock], places: Mapping[str, Place], witnesses: Sequence[str]) -> None:
        """Take note of what is on the servers now. ``witnesses``: those that say so."""
        self._clocks |= clocks
        self._places |= places
        self._witnesses = witnesses

    def lacking(self, client: Client, listing: Listing) -> set[str] | None:
        """Shards, as ``view@version/shard``, whose clock stands but not all of their rows; None where nothing at all is lacking."""
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
        """Those of which values were acknowledged."""
        return set(self._places)

    def ended(self) -> dict[str, Clock]:
        """What was told of shards that ended before they had a clock."""
        return {name: clock for name, clock in self._clocks.items() if clock.closed_us is None}

    def forget(self) -> None:
        """All of it is to be sent again."""
        self._clocks = {}
        self._places = {}
        self._witnesses = ()
