"""The entries in Redis that say how far shards have come ("words"): only this module composes and parses them.

    hash        field                  word
    clocks      purchases@1/h0         1490000000000001: the last closed instant, microseconds; or ``ended``
                purchases@1/h0#since   1480000000000000: the first arrival
                purchases@1#shards     h0 h1: all shards of the view, also those without a clock
                purchases@1#retired    1: no pipeline computes the view any more
    marks       purchases@1/h0         state:1490000000000002:17: history, clock, events applied
                purchases@1/h0#doubted 1: values may lack, so absent rows are provisional
                purchases@1/h0#round   1490000000000003: when the last comparison of all values with the state began
                purchases@1/h0#refilled  the name of the last loss after which all values were written again
                #loss                  a random name, while values that were lost are written again
    witnesses   purchases@1/h0         as in the marks
    ledgers     purchases@1/h0         late events and repeats, JSON
    owners      purchases@1/h0         the id of the state that computes the shard
                #state                 where that state is

A shard is named ``view@version/shard``. Words of views that are not requested are not parsed. A requested word that
unskew could not have written is a ``LayoutError``, which names its key and field.
"""

import datetime as dt
import json
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

from typing_extensions import override

from unskew.features.errors import LayoutError
from unskew.features.ledger import NOTHING_LATE, Ledger, read_ledger, written
from unskew.features.time import instant_us
from unskew.sinks.redis.url import Client

_SINCE = "#since"
_SHARDS = "#shards"
_LOSS = "#loss"
_DOUBTED = "#doubted"
_ROUND = "#round"
_RETIRED = "#retired"
_REFILLED = "#refilled"
_ENDED = "ended"

_INTEGER = re.compile(r"-?[0-9]{1,19}")
_LAST_INT64 = 2**63 - 1
# The bounds of the years 1 to 9999, which Python's datetimes, and so answers, can hold.
_FIRST_INSTANT_US = instant_us(dt.datetime.min.replace(tzinfo=dt.UTC))
_LAST_INSTANT_US = instant_us(dt.datetime.max.replace(tzinfo=dt.UTC))
_INSTANT = "an instant in microseconds"
_MARK = "a history, a clock and a number of events"


class Place(NamedTuple):
    """The progress of a shard: its clock in microseconds and the events applied; ordered alike in every run of it."""

    clock_us: int
    applied: int


NOWHERE = Place(-1, -1)


class Clock(NamedTuple):
    """A shard's last closed instant, None if it ended before it had one, and its first arrival, None before one."""

    closed_us: int | None
    since_us: int | None = None


def shards_field(view_id: str) -> str:
    """Return the field of the clocks that lists a view's shards."""
    return view_id + _SHARDS


def clock_words(clocks: Mapping[str, Clock]) -> dict[str, int | str]:
    """Return the fields for these clocks, which are given by shard."""
    words: dict[str, int | str] = {}
    for shard, clock in clocks.items():
        words[shard] = _ENDED if clock.closed_us is None else clock.closed_us
        if clock.since_us is not None:
            words[shard + _SINCE] = clock.since_us
    return words


def mark_words(state: str, places: Mapping[str, Place]) -> dict[str, str]:
    """Return the fields of marks, or of a witness, in the history that ``state`` names."""
    return {shard: f"{state}:{place.clock_us}:{place.applied}" for shard, place in places.items()}


def ledger_words(ledgers: Mapping[str, Ledger]) -> dict[str, str]:
    """Return the fields of ledgers, which are given by shard."""
    return {shard: json.dumps(written(ledger)) for shard, ledger in ledgers.items()}


def read_loss(client: Client, marks_key: str) -> str:
    """Read the name of the loss that is being repaired; empty if there is none."""
    word = client.hget(marks_key, _LOSS)
    return "" if word is None else _text(word)


def write_loss(client: Client, marks_key: str, loss: str) -> None:
    """Announce that a loss is being repaired."""
    client.hset(marks_key, _LOSS, loss)


def end_loss(client: Client, marks_key: str, loss: str) -> None:
    """Announce that a loss has been repaired, unless another one has been noticed since."""
    if read_loss(client, marks_key) == loss:
        client.hdel(marks_key, _LOSS)


def doubt_words(shards: Iterable[str]) -> dict[str, str]:
    """Return the fields of marks that say that values of these shards may lack."""
    return {shard + _DOUBTED: "1" for shard in shards}


def take_doubts(client: Client, marks_key: str, shards: Iterable[str]) -> None:
    """Announce that these shards have all their values."""
    client.hdel(marks_key, *(shard + _DOUBTED for shard in shards))


def round_words(began_us: Mapping[str, int]) -> dict[str, int]:
    """Return the fields of marks that say when the last comparison of all values of a shard began."""
    return {shard + _ROUND: us for shard, us in began_us.items()}


def refilled_words(shards: Iterable[str], loss: str) -> dict[str, str]:
    """Return the fields of marks that say that all values of these shards were written again after a loss."""
    return {shard + _REFILLED: loss for shard in shards}


def retired_words(view_ids: Iterable[str]) -> dict[str, str]:
    """Return the fields that say that no pipeline computes these views any more."""
    return {view_id + _RETIRED: "1" for view_id in view_ids}


class Listing:
    """The list of shards of each view, by view id. ``own``: the shards that this process computes; None for all."""

    def __init__(self, shards: Mapping[str, Sequence[str]], own: Container[str] | None = None) -> None:
        self.view_ids = shards.keys()
        self.shards = frozenset(f"{view_id}/{shard}" for view_id, names in shards.items() for shard in names)
        self.words = {view_id + _SHARDS: " ".join(names) for view_id, names in shards.items()}
        self._own = own

    def is_own(self, shard: str) -> bool:
        """Return true if this process computes the shard."""
        return shard in self.shards and (self._own is None or shard in self._own)

    def excludes(self, field: str) -> bool:
        """Return true if a field belongs to a shard that one of these views does not have."""
        return field.partition("/")[0] in self.view_ids and field.partition("#")[0] not in self.shards


class Words:
    """A hash as it was read. ``hashes``: key and reply of each pipeline; if several have a field, the last counts."""

    def __init__(self, *hashes: tuple[str, Mapping[Any, Any]]) -> None:
        self._hashes = hashes
        self._words = {_text(field): _text(word) for _, reply in hashes for field, word in reply.items()}

    @classmethod
    def read(cls, client: Client, key: str) -> Self:
        """Read a hash; a key that does not exist has no fields. Raises what redis-py raises."""
        return cls((key, client.hgetall(key)))

    def word(self, field: str) -> str | None:
        """Return the word of a field; None if there is none."""
        return self._words.get(field)

    def by_shard(self) -> dict[str, str]:
        """Return the words whose fields are names of shards."""
        return {field: word for field, word in self._words.items() if "/" in field and "#" not in field}

    def homes(self) -> list[str]:
        """Return where the states are that own shards, sorted."""
        return sorted({word for field, word in self._words.items() if field.startswith("#")})

    def of_shards(self, shards: Container[str]) -> list[str]:
        """Return the fields of these shards."""
        return [field for field in self._words if field.partition("#")[0] in shards]

    def of_views(self, view_ids: Container[str]) -> list[str]:
        """Return the fields of these views and of their shards."""
        return [field for field in self._words if field.partition("#")[0].partition("/")[0] in view_ids]

    def view_ids(self) -> set[str]:
        """Return the view versions that fields name."""
        return {view for field in self._words if "@" in (view := field.partition("#")[0].partition("/")[0])}

    def outdated(self, listing: Listing) -> list[str]:
        """Return the fields that an earlier deployment left."""
        return [field for field in self._words if field == _LOSS or listing.excludes(field)]

    def _integer(self, field: str, text: str, what: str) -> int:
        if not _INTEGER.fullmatch(text) or abs(number := int(text)) > _LAST_INT64:
            raise self._unreadable(field, f"it is not {what}")
        return number

    def _instant(self, field: str, text: str, what: str = _INSTANT) -> int:
        if not _FIRST_INSTANT_US <= (instant := self._integer(field, text, what)) <= _LAST_INSTANT_US:
            raise self._unreadable(field, "it is not in the years 1 to 9999")
        return instant

    def _unreadable(self, field: str, why: str) -> LayoutError:
        key = next(key for key, reply in reversed(self._hashes) if field in map(_text, reply))
        return LayoutError(
            f"Redis holds {self._words[field]!r:.80} in the field {field!r} of {key!r}, which unskew did not write: {why}; "
            "remove the field (HDEL), and unskew run writes it again"
        )


class Clocks(Words):
    """The clocks of shards, and the list of shards."""

    def closed_us(self, shard: str) -> int | None:
        """Return the last closed instant; None if there is no clock, or if the shard ended before it had one."""
        word = self._words.get(shard, _ENDED)
        return None if word == _ENDED else self._instant(shard, word)

    def since_us(self, shard: str) -> int | None:
        """Return the first arrival; None if there is none."""
        word = self._words.get(shard + _SINCE)
        return None if word is None else self._instant(shard + _SINCE, word)

    def with_clocks(self) -> set[str]:
        """Return the shards that have a clock."""
        return {shard for shard, word in self.by_shard().items() if word != _ENDED}

    def has_ended(self, shard: str) -> bool:
        """Return true if the shard ended before it had a clock."""
        return self._words.get(shard) == _ENDED

    def stands(self, shard: str) -> bool:
        """Return true if there is a clock, or an entry saying that there will be none."""
        return shard in self._words

    def lacks(self, shard: str, clock: Clock) -> bool:
        """Return true if a word for this clock, or for a later one, is missing."""
        closed_us = self.closed_us(shard)
        since_us = self.since_us(shard)
        return (
            not self.stands(shard)
            or (clock.closed_us is not None and (closed_us is None or closed_us < clock.closed_us))
            or (clock.since_us is not None and (since_us is None or since_us < clock.since_us))
        )

    def is_retired(self, view_id: str) -> bool:
        """Return true if no pipeline computes the view any more."""
        return view_id + _RETIRED in self._words and not self.is_listed(view_id)

    def is_listed(self, view_id: str) -> bool:
        """Return true if there is a list of the view's shards."""
        return view_id + _SHARDS in self._words

    def listed(self, view_id: str) -> tuple[str, ...]:
        """Return a view's shards, without the view's name; empty if no list was written."""
        return tuple(dict.fromkeys(self._words.get(view_id + _SHARDS, "").split()))

    def shards(self, view_id: str) -> tuple[str, ...]:
        """Return a view's listed shards; without a list, the shards that have an entry."""
        own = f"{view_id}/"
        fields = (field.removeprefix(own) for field in self._words if field.startswith(own))
        return self.listed(view_id) or tuple(sorted({field.removesuffix(_SINCE) for field in fields}))

    @override
    def outdated(self, listing: Listing) -> list[str]:
        """Return fields that an earlier deployment left, and the ends of this process's shards in an earlier run."""
        ended = [field for field, word in self._words.items() if word == _ENDED and listing.is_own(field)]
        back = [view_id + _RETIRED for view_id in listing.view_ids if view_id + _RETIRED in self._words]
        return [*super().outdated(listing), *ended, *back]


class Marks(Words):
    """Marks, which say how far values may have been sent, or a witness, which says how far they are acknowledged."""

    def place(self, shard: str, state: str) -> Place:
        """Return the place of a shard in the history that ``state`` names; ``NOWHERE`` if there is none."""
        its_state, *place = self._words.get(shard, "").rsplit(":", 2)
        if len(place) < 2 or its_state != state:
            return NOWHERE
        return Place(self._instant(shard, place[0], _MARK), self._integer(shard, place[1], _MARK))

    def places(self, state: str) -> dict[str, Place]:
        """Return all places in that history, by shard."""
        places = {shard: self.place(shard, state) for shard in self._words}
        return {shard: place for shard, place in places.items() if place != NOWHERE}

    def sent_us(self, shard: str) -> int | None:
        """Return the clock of a shard's mark, in any history; None if there is no mark."""
        word = self._words.get(shard)
        if word is None:
            return None
        state, *place = word.rsplit(":", 2)
        if len(place) < 2:
            raise self._unreadable(shard, f"it is not {_MARK}")
        return self.place(shard, state).clock_us

    def states(self) -> dict[str, str]:
        """Return, by shard, the history of its mark."""
        return {shard: word.rsplit(":", 2)[0] for shard, word in self.by_shard().items()}

    def refilled(self, loss: str) -> set[str]:
        """Return the shards of which all values were written again after a loss."""
        return {
            field.removesuffix(_REFILLED)
            for field, word in self._words.items()
            if field.endswith(_REFILLED) and word == loss
        }

    @property
    def doubted(self) -> frozenset[str]:
        """The shards of which values may lack."""
        return frozenset(field.removesuffix(_DOUBTED) for field in self._words if field.endswith(_DOUBTED))

    def compared_us(self, shard: str) -> int | None:
        """Return when the last comparison of all the shard's values with the state began; None if there was none."""
        word = self._words.get(shard + _ROUND)
        return None if word is None else self._integer(shard + _ROUND, word, _INSTANT)

    @property
    def loss(self) -> str:
        """The loss that is being repaired; empty if there is none."""
        return self._words.get(_LOSS, "")


Replies = Sequence[tuple[str, Sequence[bytes | None]]]
"""The key of a hash of each pipeline, and the words of the fields that were asked for."""


class ShardWords:
    """The words of one view's shards that a read needs: which fields it asks for, and what the replies say.

    Some words change with every flush, and some hardly ever; those are parsed again only when they have changed.
    """

    def __init__(self, view_id: str, shards: Sequence[str]) -> None:
        self.shards = tuple(shards)
        self.number = {shard: number for number, shard in enumerate(self.shards)}
        names = [f"{view_id}/{shard}" for shard in shards]
        since = [name + _SINCE for name in names]
        doubted, compared = ([name + ending for name in names] for ending in (_DOUBTED, _ROUND))
        self.clock_fields = [*names, view_id + _SHARDS, view_id + _RETIRED, *since]
        self.mark_fields = [*names, _LOSS, *doubted, *compared]
        self._steady: tuple[object, _Steady] | None = None

    def read(self, clocks: Replies, marks: Replies) -> "ReadWords":
        """Return what the replies of each pipeline to HMGET of these fields say, by the pipelines' keys.

        Raises ``LayoutError`` for a word of the shards that unskew could not have written.
        """
        n = len(self.shards)
        its_clocks, its_marks = _last_of_each(clocks), _last_of_each(marks)
        words = its_clocks[n:], its_marks[n:]
        # Other threads may read at the same time.
        known = self._steady
        if known is None or known[0] != words:
            known = self._steady = words, self._read_steady(*words, clocks, marks)
        return ReadWords(self, known[1], its_clocks[:n], its_marks[:n], clocks, marks)

    def _read_steady(
        self, of_clocks: Sequence[bytes | None], of_marks: Sequence[bytes | None], clocks: Replies, marks: Replies
    ) -> "_Steady":
        n = len(self.shards)
        listed, retired, *since = of_clocks
        loss, *others = of_marks
        whole_clocks = Clocks(*_as_hashes(self.clock_fields, clocks))
        whole_marks = Marks(*_as_hashes(self.mark_fields, marks))
        names = self.clock_fields[:n]
        return _Steady(
            listed=_names(listed),
            is_retired=retired is not None and listed is None,
            loss=loss is not None,
            since_us=[
                None if word is None else whole_clocks.since_us(name) for name, word in zip(names, since, strict=True)
            ],
            doubted=[word is not None for word in others[:n]],
            compared_us=[
                None if word is None else whole_marks.compared_us(name)
                for name, word in zip(names, others[n:], strict=True)
            ],
        )


class _Steady(NamedTuple):
    """The words that hardly ever change; the lists by the number of a shard.

    ``listed``: the list of the view's shards, empty if none was written. ``is_retired``: whether no pipeline computes
    the view any more. ``loss``: whether values that were lost are written again. ``since_us``: first arrivals.
    ``doubted``: whether values may lack. ``compared_us``: when the last comparison of all values with the state began.
    """

    listed: tuple[str, ...]
    is_retired: bool
    loss: bool
    since_us: list[int | None]
    doubted: list[bool]
    compared_us: list[int | None]


def listed_shards(view_ids: Sequence[str], replies: Sequence[Sequence[bytes | None]]) -> dict[str, tuple[str, ...]]:
    """Return the shards of views. ``replies``: of each pipeline, the words of the views' fields ``shards_field``."""
    words = zip(view_ids, _last_of_each([("", reply) for reply in replies]), strict=True)
    return {view_id: _names(word) for view_id, word in words}


class ReadWords:
    """The words of a view's shards as they were read; shards are numbered.

    ``steady``: the words that hardly ever change. ``clocks``, ``marks``: those that do.
    """

    def __init__(
        self,
        asked: ShardWords,
        steady: _Steady,
        clocks: Sequence[bytes | None],
        marks: Sequence[bytes | None],
        all_clocks: Replies,
        all_marks: Replies,
    ) -> None:
        self.shards, self.number = asked.shards, asked.number
        self.steady = steady
        self._asked = asked
        self._clocks, self._marks = clocks, marks
        self._all_clocks, self._all_marks = all_clocks, all_marks

    def stands(self, shard: int) -> bool:
        """Return true if there is a clock, or an entry saying that there will be none."""
        return self._clocks[shard] is not None

    def closed_us(self, shard: int) -> int | None:
        """Return the last closed instant; None if there is no clock, or if the shard ended before it had one."""
        word = self._clocks[shard]
        if word is None:
            return None
        if word.isdigit() and len(word) <= _SHORT:
            return int(word)
        whole = Clocks(*_as_hashes(self._asked.clock_fields, self._all_clocks))
        return whole.closed_us(self._asked.clock_fields[shard])

    def sent_us(self, shard: int) -> int | None:
        """Return the clock of the shard's mark, in any history; None if there is no mark."""
        word = self._marks[shard]
        if word is None:
            return None
        _, *place = word.rsplit(b":", 2)
        if len(place) == _PLACE and place[0].isdigit() and len(place[0]) <= _SHORT and place[1].isdigit():
            return int(place[0])
        whole = Marks(*_as_hashes(self._asked.mark_fields, self._all_marks))
        return whole.sent_us(self._asked.mark_fields[shard])


_PLACE = 2
_SHORT = 17
"""Digits of an instant that is in the years 1 to 9999 whatever they are."""


def _names(word: bytes | None) -> tuple[str, ...]:
    return () if word is None else tuple(dict.fromkeys(_text(word).split()))


def _last_of_each(replies: Replies) -> Sequence[bytes | None]:
    """Return, for each field, its word in the last hash that has it."""
    found = replies[0][1]
    for _, others in replies[1:]:
        found = [one if other is None else other for one, other in zip(found, others, strict=True)]
    return found


def _as_hashes(fields: Sequence[str], replies: Replies) -> list[tuple[str, dict[str, bytes]]]:
    return [
        (key, {field: word for field, word in zip(fields, words, strict=True) if word is not None})
        for key, words in replies
    ]


class Ledgers(Words):
    """Late events and repeats of shards."""

    def ledger(self, shard: str) -> Ledger:
        """Return a shard's ledger; an empty one if there is none."""
        word = self._words.get(shard)
        try:
            return NOTHING_LATE if word is None else read_ledger(word)
        except LayoutError as error:
            raise self._unreadable(shard, "it is not a ledger of late events") from error


def _text(reply: bytes | str) -> str:
    """Return a field or word as text; bytes that are not UTF-8 match no name and no word, and are shown escaped."""
    return reply.decode(errors="backslashreplace") if isinstance(reply, bytes) else reply
