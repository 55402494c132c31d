"""What Redis acknowledged, and whether it still has it: a server may come back empty, or another without the last writes may take over.

Every server that holds a part of the keys has a witness: a hash that says for each shard up to which place its rows are there,
written over the connection over which they were sent, once all servers have acknowledged theirs. A server does what one
connection sends in that order, and its replicas follow in that order. So where a witness says a place, all rows up to it stand
beside it; and a server that lost any of them has lost the witness's last word too.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from unskew.features.plan import ViewPlan
from unskew.sinks.redis.batch import Place
from unskew.sinks.redis.keyspace import ENDED, SINCE, as_text, clock_field, clock_key, shards_field, witness_key
from unskew.sinks.redis.url import Client

NOWHERE: Place = (-1, -1)


def texts_of(client: Client, key: str) -> dict[str, str]:
    """A hash as texts; empty where there is none."""
    return {as_text(name): as_text(value) for name, value in client.hgetall(key).items()}


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
        self._found_clocks: dict[str, str] = {}
        self._found_places: list[dict[str, Place]] = []
        # Since then.
        self._clocks: dict[str, int | str] = {}
        self._places: dict[str, Place] = {}
        self._witnesses: Sequence[str] = ()

    def text(self, place: Place) -> str:
        """A place of this history."""
        return f"{self._state}:{place[0]}:{place[1]}"

    def place(self, text: str | None) -> Place:
        """The place that a text says; ``NOWHERE`` where it says none of this history."""
        state, *place = ("" if text is None else text).rsplit(":", 2)
        return (int(place[0]), int(place[1])) if len(place) == 2 and state == self._state else NOWHERE

    def witnesses(self, tags: Iterable[str]) -> list[str]:
        """The witnesses' keys."""
        return [witness_key(self._prefix, self._pipeline, tag) for tag in tags]

    def look(self, client: Client, tags: Iterable[str]) -> None:
        """See how far values and clocks of an earlier run went."""
        self._found_clocks = texts_of(client, self._clock_key)
        self._found_places = [self._read(client, key) for key in self.witnesses(tags)]

    def is_behind(self, view: ViewPlan, shard: str, clock_us: int) -> bool:
        """Whether, when ``look`` was called, some server lacked values that a state with this clock had sent."""
        name = clock_field(view, shard)
        text = self._found_clocks.get(name)
        if text is None or text == ENDED or int(text) < clock_us - 1:
            return True
        return any(places.get(name, NOWHERE)[0] < clock_us for places in self._found_places)

    def words(self, tags: Iterable[str], places: Mapping[str, Place]) -> Iterator[tuple[str, Mapping[str, str]]]:
        """What is to be written to each witness, where rows up to ``places`` are acknowledged; to a new one all that was before."""
        for key in self.witnesses(tags):
            told = places if key in self._witnesses else {**self._places, **places}
            if told:
                yield key, {name: self.text(place) for name, place in told.items()}

    def acknowledged(
        self, clocks: Mapping[str, int | str], places: Mapping[str, Place], witnesses: Sequence[str]
    ) -> None:
        """Take note of what is on the servers now. ``witnesses``: those that say so."""
        self._clocks |= clocks
        self._places |= places
        self._witnesses = witnesses

    def lacking(self, client: Client, view_ids: Iterable[str]) -> set[str] | None:
        """Shards, as ``view@version/shard``, whose clock stands but not all of their rows; None where nothing at all is lacking."""
        stored = texts_of(client, self._clock_key)
        behind = any(
            name not in stored or (isinstance(clock, int) and int(stored[name]) < clock)
            for name, clock in self._clocks.items()
        ) or any(shards_field(view_id) not in stored for view_id in view_ids)
        lost = set()
        for key in self._witnesses:
            places = self._read(client, key)
            lost |= {name for name, place in self._places.items() if places.get(name, NOWHERE) < place}
        return lost & stored.keys() if behind or lost else None

    def shards(self) -> set[str]:
        """Those of which values were acknowledged."""
        return set(self._places)

    def ended(self) -> dict[str, str]:
        """What was told of shards that ended before they had a clock."""
        return {name: ENDED for name, value in self._clocks.items() if value == ENDED and SINCE not in name}

    def forget(self) -> None:
        """All of it is to be sent again."""
        self._clocks = {}
        self._places = {}
        self._witnesses = ()

    def _read(self, client: Client, key: str) -> dict[str, Place]:
        return {name: self.place(text) for name, text in texts_of(client, key).items()}
