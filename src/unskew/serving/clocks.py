"""The pipeline's clocks in Redis, and the instant for which a row read from Redis is valid."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, cast

from unskew.features.hashing import shard_of_key
from unskew.sinks.redis.words import ReadWords

UNKNOWN = -(2**63)
"""The placeholder for an unknown instant; earlier than every instant."""

NEVER = 2**63 - 1

_HASHED = re.compile("h[0-9]{1,6}")


class Placed(NamedTuple):
    """The instants of rows, in microseconds; ``UNKNOWN`` if there is no clock.

    ``as_of``: the instant whose value the row holds. ``clock``: the clock by which the row is judged. ``since``: the
    first arrival that its shard has seen, ``NEVER`` before one. ``provisional``: whether more events may still arrive
    at or before ``as_of``. ``compared``: when the last comparison of all the shard's rows with the state began.
    """

    as_of: Sequence[int]
    clock: Sequence[int]
    since: Sequence[int]
    provisional: Sequence[bool]
    compared: Sequence[int]

    @classmethod
    def of(cls, rows: "Sequence[PlacedRow]") -> "Placed":
        """Return the instants of rows, of each of which they are known."""
        return cls(*zip(*rows, strict=True)) if rows else cls((), (), (), (), ())

    def part(self, rows: slice) -> "Placed":
        """Return the instants of some of the rows."""
        return Placed(self.as_of[rows], self.clock[rows], self.since[rows], self.provisional[rows], self.compared[rows])


PlacedRow = tuple[int, int, int, bool, int]
"""The instants of one row, in their order."""

NOWHERE: PlacedRow = UNKNOWN, UNKNOWN, UNKNOWN, False, UNKNOWN
"""Those of a row without a key."""


class ViewClocks:
    """The clocks of one view's shards, read *before* the rows that they judge.

    A clock in Redis is the last instant that a shard has closed. The instant of the shard's own clock is still open,
    because more events may arrive at that very instant. A writer sends values, waits for the acknowledgement, and then
    sends the clock. So a row that is read after the clock holds everything up to it, and perhaps more, and has not
    changed since its ``_at``. Hence the row is the value at ``as_of = max(_at, clock of its shard)``. It is exact if
    the clock has reached ``_at``; otherwise it is provisional, because the step that wrote it may not have contained
    all events of that instant.

    The shard of a row depends on the view:

    - Hashed view: the hash of the key determines the shard.
    - Partitioned view: the key does not determine the partition, because the producer chose it. The clock of the row's
      shard lies between the least and the greatest clock of the view. A row that is present is the value at
      ``max(_at, least)``, because its own clock is at least that; it is exact if even the least clock has reached
      ``_at``. A row that is absent is empty at its own clock, which may be any of them, and it may have been deleted
      after the least clock: it is the value at the greatest clock, and provisional unless all clocks are equal.

    An absent row has no ``_at`` that says when it was deleted. Values whose clock is still to come may have deleted it
    after the clock. The writer announces how far values go before it sends them. The reader reads this *mark* *after*
    the rows: if it is past the clock, an absent row is the value at the mark, and provisional.

    A server may lose everything between the reading of the clocks and the reading of the rows. The marks are then gone
    too, or they say that a loss is being repaired. So an absent row is provisional if its shard has a clock but no
    mark, and while there is a loss. It is also provisional while the marks say that rows of its shard may lack, because
    the servers evict keys or a comparison with the state found that some were gone.

    The pipeline lists its shards. A listed shard without a clock may still bring records of any instant: while there is
    one, every row of a partitioned view is provisional, and its instant follows from the known clocks. A shard that
    ended without a clock brings no records, and does not count.
    """

    def __init__(self, words: ReadWords, *, partitioned: bool) -> None:
        self._words = words
        self._n_shards = _n_shards(words)
        # A shard that has seen no event began when the others did.
        self._latest_since = max((us for us in words.steady.since_us if us is not None), default=NEVER)
        self._of_shards: dict[int, _Shard] = {}
        self._of_all = self._over_all() if partitioned else None

    @property
    def listed(self) -> tuple[str, ...]:
        """The list of the view's shards; empty if none was written."""
        return self._words.steady.listed

    def place(self, keys: Sequence[str | None], instants: Sequence[int]) -> Placed:
        """Judge rows. ``keys``: canonical; ``instants``: the ``_at`` of each row, ``UNKNOWN`` if it is absent."""
        of_all = self._of_all
        if of_all is None:
            rows = zip(keys, instants, strict=True)
            return Placed.of([NOWHERE if key is None else self._shard_of(key).place(at) for key, at in rows])
        placed = of_all.place(instants)
        if None not in keys:
            return placed
        its_rows = cast("Iterable[PlacedRow]", zip(*placed, strict=True))
        return Placed.of([NOWHERE if key is None else its for key, its in zip(keys, its_rows, strict=True)])

    def _shard_of(self, key: str) -> "_Shard":
        number = shard_of_key(key, self._n_shards)
        shard = self._of_shards.get(number)
        if shard is None:
            shard = self._of_shards[number] = self._shard(number)
        return shard

    def _shard(self, number: int) -> "_Shard":
        words, steady = self._words, self._words.steady
        at = words.number.get(f"h{number}")
        if at is None:
            return _Shard(UNKNOWN, self._latest_since, UNKNOWN, UNKNOWN, lost=False)
        clock, mark = _or_unknown(words.closed_us(at)), _or_unknown(words.sent_us(at))
        since = steady.since_us[at]
        return _Shard(
            clock,
            self._latest_since if since is None else since,
            mark,
            _or_unknown(steady.compared_us[at]),
            lost=clock != UNKNOWN and (steady.loss or mark == UNKNOWN or steady.doubted[at]),
        )

    def _over_all(self) -> "_AllShards":
        words, steady = self._words, self._words.steady
        numbers = range(len(words.shards))
        clocks = {number: us for number in numbers if (us := words.closed_us(number)) is not None}
        marks = {number: us for number in numbers if (us := words.sent_us(number)) is not None}
        least = min(clocks.values(), default=UNKNOWN)
        ahead = [mark for number, mark in marks.items() if mark > clocks.get(number, NEVER - 1) + 1]
        return _AllShards(
            least,
            max([*clocks.values(), *ahead], default=UNKNOWN),
            self._latest_since,
            min((_or_unknown(steady.compared_us[number]) for number in clocks), default=UNKNOWN),
            # An entry stands for a shard that ended before it had a clock.
            waiting=len(clocks) < len(numbers) and not all(map(words.stands, numbers)),
            lost=bool(clocks)
            and (steady.loss or not clocks.keys() <= marks.keys() or any(steady.doubted[number] for number in clocks)),
        )


class _Shard(NamedTuple):
    """What is known of the shard of a hashed view's row."""

    clock: int
    since: int
    mark: int
    compared: int
    lost: bool

    def place(self, at: int) -> PlacedRow:
        clock = self.clock
        # An absent row may be valid at any instant up to the mark; a present row has not changed since its ``_at``.
        changed = self.mark if at == UNKNOWN and self.mark > clock + 1 else at
        return (
            at if clock == UNKNOWN else max(changed, clock),
            clock,
            self.since,
            clock == UNKNOWN or clock < changed or (at == UNKNOWN and self.lost),
            self.compared,
        )


class _AllShards(NamedTuple):
    """What is known of the shards of a partitioned view, any of which may have a row."""

    least: int
    greatest: int
    since: int
    compared: int
    waiting: bool
    lost: bool

    def place(self, instants: Sequence[int]) -> Placed:
        least, n_rows = self.least, len(instants)
        is_open = self.waiting or least == UNKNOWN
        if instants and max(instants) <= least:
            as_of, provisional = [least] * n_rows, [is_open] * n_rows
        else:
            as_of = [max(least, at) for at in instants]
            provisional = [is_open or at > least for at in instants]
        if UNKNOWN in instants:
            are_unsure = is_open or least < self.greatest or self.lost
            for row, at in enumerate(instants):
                if at == UNKNOWN:
                    as_of[row], provisional[row] = self.greatest, are_unsure
        clock = UNKNOWN if self.waiting else least
        return Placed(as_of, [clock] * n_rows, [self.since] * n_rows, provisional, [self.compared] * n_rows)


def _or_unknown(instant: int | None) -> int:
    return UNKNOWN if instant is None else instant


def _n_shards(words: ReadWords) -> int:
    """Return the number of shards; without a list of them, it follows from those with a clock."""
    if listed := len(words.steady.listed):
        return listed
    clocks = (shard for shard, number in words.number.items() if words.closed_us(number) is not None)
    return 1 + max((int(shard[1:]) for shard in clocks if _HASHED.fullmatch(shard)), default=0)
