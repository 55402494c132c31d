"""The scrub: compare every value in Redis with the state, slowly, and rewrite those that lack or differ.

A shard gives its current rows part by part, among its steps and in their order. The writer reads the hashes of such a
part between two batches, when every value that it sent before is acknowledged and no other is on its way. Only one
writer writes a shard's keys, so a hash that differs then was changed or removed by somebody else, or evicted. The row
is sent with the next batch. A row for which the batch has a step is not compared, because that step is as new.

An absent row is read as an entity without events. So once a shard's rows are known to lack, or may be evicted, the
marks say that the shard is *doubted*, and its absent rows are provisional, until a whole round over the shard has found
every value. The marks also hold when the last such round began: what a reader called exact is right unless somebody
removed the row after that instant.
"""

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import polars as pl
import redis

from unskew.sinks.redis.batch import Batch
from unskew.sinks.redis.resp import RowEncoder
from unskew.sinks.redis.url import Client
from unskew.sinks.redis.words import doubt_words, round_words, take_doubts

SLOWEST_ROWS, FASTEST_ROWS = 200, 500
PARTS_PER_ROUND = 1_000
"""The number of rows of a part: this share of the shard's rows, within these bounds."""
HURRIED_ROUND_US = 60_000_000
"""The length of a round over a shard that is doubted, if it is not to be shorter anyway."""

_log = logging.getLogger("unskew.redis")


class Pace:
    """When a shard gives the next part of its rows. ``round_us``: the time for all rows; ``share``: from 0 to 1.

    ``share`` delays the first part by that share of the interval, so that many shards do not begin together. Intervals
    of all shards shrink as entities come, so what counts is the share that is left.
    """

    def __init__(self, round_us: int, share: float) -> None:
        self._round_us = round_us
        self._left = share
        self._looked_us: int | None = None

    @staticmethod
    def n_rows(n_entities: int) -> int:
        """Return the number of rows of a part."""
        return min(max(n_entities // PARTS_PER_ROUND, SLOWEST_ROWS), FASTEST_ROWS)

    def is_due(self, now_us: int, n_entities: int, *, hurried: bool) -> bool:
        """Return true, and count from now on, if the next part is due; call it often."""
        round_us = min(self._round_us, HURRIED_ROUND_US) if hurried else self._round_us
        interval_us = max(1, min(round_us, round_us * self.n_rows(n_entities) // max(n_entities, 1)))
        if self._looked_us is not None:
            self._left -= max(0, now_us - self._looked_us) / interval_us
        self._looked_us = now_us
        if self._left > 0:
            return False
        self._left = 1.0
        return True


class Scrub:
    """What comparisons of this process found. ``marks_key``: the hash that says which shards are doubted.

    ``skip`` and ``began`` are for the thread that adds updates, all other methods for the thread that sends. Methods
    that take a client raise what redis-py raises. Shards are named ``view@version/shard``.
    """

    def __init__(self, marks_key: str) -> None:
        self.compared = 0
        self.lacking = 0
        self.differing = 0
        self.rounds: dict[str, int] = {}
        """When the last whole round over each shard began, microseconds."""
        self.doubted: frozenset[str] = frozenset()
        self._marks_key = marks_key
        self._began: dict[str, int | None] = {}
        self._found: dict[str, int] = {}

    def began(self, shard: str, now_us: int) -> None:
        """Note a part of a round."""
        self._began.setdefault(shard, now_us)

    def skip(self, shard: str) -> None:
        """Note that a part of a round is not compared, so the round proves nothing."""
        self._began[shard] = None

    def ended(self, shard: str, now_us: int) -> int | None:
        """Return when the round that ends now began; None if parts of it were not compared."""
        return self._began.pop(shard, now_us)

    def doubt(self, client: Client, shards: Iterable[str], *, again: bool = False) -> None:
        """Say that rows of these shards may lack, before anybody sees the values of the next batch.

        ``again``: also if that was said before, because the marks themselves may be evicted.
        """
        if new := frozenset(shards) - (frozenset() if again else self.doubted):
            client.hset(self._marks_key, mapping=doubt_words(new))  # type: ignore[arg-type]
            self.doubted |= new

    def compare(self, client: Client, batch: Batch, encoders: Mapping[str, RowEncoder], *, expires: bool) -> None:
        """Compare the rows that ``batch`` has to compare; those that Redis lacks join the rows to send.

        ``expires``: keys may have an expiry. Comparing them again, after a batch that failed, counts them twice.
        """
        for name, rows in batch.take_comparisons():
            encoder = encoders[name.partition("/")[0]]
            keys = encoder.keys_of(rows)
            found = _stored(client, keys, expires=expires)
            expected = encoder.texts_of(rows)
            lacks = [hash_ == {} and bool(fields) for hash_, fields in zip(found, expected, strict=True)]
            differs = [hash_ != fields for hash_, fields in zip(found, expected, strict=True)]
            self.compared += rows.height
            if not any(differs):
                continue
            self._note(name, rows, lacks, differs)
            self.doubt(client, [name])
            for key, hash_ in zip(keys, found, strict=True):
                # The row's own commands set or remove only the fields of the view.
                if foreign := (hash_ or {}).keys() - encoder.field_names:
                    client.hdel(key, *foreign)
            batch.mend(encoder.view.id, rows.filter(pl.Series(differs)))

    def _note(self, name: str, rows: pl.DataFrame, lacks: list[bool], differs: list[bool]) -> None:
        n_lacking, n_differing = sum(lacks), sum(differs) - sum(lacks)
        self.lacking += n_lacking
        self.differing += n_differing
        if name not in self._found:
            _log.error(
                "Redis lacked %d and held otherwise %d of %d values of %s, for example of the entity %r: they are rewritten "
                "from the state; find out who removes or changes keys of unskew, or whether the server evicts them",
                n_lacking,
                n_differing,
                rows.height,
                name,
                rows["key"].filter(pl.Series(differs))[0],
            )
        self._found[name] = self._found.get(name, 0) + n_lacking + n_differing

    def acknowledged(self, client: Client, batch: Batch, *, evicts: bool) -> None:
        """Note that ``batch`` is acknowledged, and with it the rounds that it ends. ``evicts``: doubts stay."""
        clean = {}
        for name, began_us in batch.compared.items():
            n_mended = self._found.pop(name, 0)
            if n_mended:
                _log.warning("Redis: %d values of %s were rewritten in a round of comparison", n_mended, name)
            elif began_us is not None:
                clean[name] = began_us
        if not clean:
            return
        client.hset(self._marks_key, mapping=round_words(clean))  # type: ignore[arg-type]
        # Replaced as a whole, because metrics read it from another thread.
        self.rounds = {**self.rounds, **clean}
        if not evicts:
            take_doubts(client, self._marks_key, clean)
            self.doubted -= clean.keys()

    def forget(self) -> None:
        """Forget what the marks say, because Redis lost them."""
        self.doubted = frozenset()
        self.rounds = {}

    def is_through(self, shards: Collection[str]) -> bool:
        """Return true if a whole round over each of these shards has found every value as it should be."""
        return self.rounds.keys() >= set(shards)


def _stored(client: Client, keys: list[str], *, expires: bool) -> list[Mapping[bytes, bytes] | None]:
    """Read hashes; None for one that has an expiry and should not, or is not a hash."""
    commands = client.pipeline(transaction=False)
    for key in keys:
        commands.hgetall(key)
        if not expires:
            commands.pttl(key)
    replies = commands.execute(raise_on_error=False)
    n = 1 if expires else 2
    found: list[Mapping[bytes, bytes] | None] = []
    for reply, *expiry in (replies[at : at + n] for at in range(0, len(replies), n)):
        for one in (reply, *expiry):
            if isinstance(one, Exception) and not str(one).startswith("WRONGTYPE"):
                raise one
        has_expiry = any(isinstance(ms, int) and ms >= 0 for ms in expiry)
        wrong = isinstance(reply, redis.RedisError) or has_expiry
        found.append(None if wrong else {_bytes(name): _bytes(text) for name, text in reply.items()})
    return found


def _bytes(text: Any) -> bytes:
    return text if isinstance(text, bytes) else str(text).encode()
