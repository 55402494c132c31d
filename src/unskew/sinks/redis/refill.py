"""Refills: write values that Redis lost again from the state; until all values of a shard are there, it has no clock.

The writer that notices a loss writes a random name for it among the pipeline's marks. Other processes may compute
shards whose values were lost too: their writers read that name once a second, and when it is new to them, they request
a refill of their shards as well. The writer that noticed the loss removes the name when all shards whose values it had
sent before are complete again.
"""

import logging
import uuid
from collections.abc import Collection, Iterator

from unskew.features.updates import Updates
from unskew.sinks.redis.batch import Batch
from unskew.sinks.redis.url import Client
from unskew.sinks.redis.words import Clocks, Marks, end_loss, read_loss, refilled_words, write_loss

HEAR_EVERY_US = 1_000_000
"""The interval at which a writer checks whether writers in other processes have noticed a loss."""

_log = logging.getLogger("unskew.redis")


def ask_for_refill(client: Client, clocks_key: str, marks_key: str) -> Iterator[tuple[int, int]]:
    """Ask the processes of a running pipeline to write all values again; yield how many of how many shards are done.

    Each process that runs hears of it within about a second, as of a loss that another process noticed. The caller
    decides how often to look, and closes the iterator to ask no longer. Raises what redis-py raises.
    """
    loss = uuid.uuid4().hex
    write_loss(client, marks_key, loss)
    try:
        while True:
            shards = Clocks.read(client, clocks_key).with_clocks()
            done = Marks.read(client, marks_key).refilled(loss)
            yield len(shards & done), len(shards)
            if shards <= done:
                return
    finally:
        end_loss(client, marks_key, loss)


class Refill:
    """The shards that are being refilled.

    ``marks_key``: the hash in which losses are named. ``logged``: whether refills are logged. ``lost``: the number of
    losses so far; when it grows, every shard is asked for all its values. ``note`` is for the thread that adds updates,
    all other methods for the thread that sends. Methods that take a client raise what redis-py raises.
    """

    def __init__(self, marks_key: str, *, logged: bool = True) -> None:
        self._level = logging.WARNING if logged else logging.DEBUG
        self.lost = 0
        self._marks_key = marks_key
        self._loss = ""
        # The shards that this writer had sent before a loss that it noticed itself, until all are complete again.
        self._awaited: Collection[str] | None = None
        self._heard_at_us: int | None = None
        self._shards: set[str] = set()
        self._announced: set[str] = set()
        # Of the refills that are under way: what was logged, and whether they follow a loss, which was logged.
        self._said: set[str] = set()
        self._after_loss = False
        self._n_rows = 0

    def note(self, shard: str, updates: Updates, *, is_new: bool = False) -> None:
        """Note a part of a shard's refill, or its last part. The first part and the last of all are logged.

        ``is_new``: whether Redis had values of other views at the start, and none of this one.
        """
        why = "Redis is empty or behind the state: rewriting all current values"
        if is_new:
            why = f"{updates.view.id} is new in Redis: writing all of its current values"
        if not self._after_loss and why not in self._said:
            self._said.add(why)
            _log.log(self._level, "%s", why)
        self._n_rows += updates.current_rows.height
        if updates.refill == "part":
            self._shards.add(shard)
            self._announced.add(shard)
            return
        self._announced.discard(shard)
        if not self._announced:
            _log.log(self._level, "Redis: %d values rewritten from the state", self._n_rows)
            self._n_rows = 0

    def hear(self, client: Client, shards: Collection[str], batch: Batch, now_us: int) -> None:
        """Check whether another process noticed a loss; then all ``shards`` are incomplete, even those of ``batch``."""
        if self._heard_at_us is not None and 0 <= now_us - self._heard_at_us < HEAR_EVERY_US:
            return
        loss = read_loss(client, self._marks_key)
        if loss not in {"", self._loss}:
            self._begin(loss, None, shards, batch)
        self._heard_at_us = now_us

    def lose(self, client: Client, sent: Collection[str], shards: Collection[str], batch: Batch) -> None:
        """Announce a loss that was noticed here. ``sent``: the shards whose values were acknowledged before it."""
        loss = uuid.uuid4().hex
        write_loss(client, self._marks_key, loss)
        self._begin(loss, sent, shards, batch)

    def _begin(self, loss: str, awaited: Collection[str] | None, shards: Collection[str], batch: Batch) -> None:
        self._loss, self._awaited = loss, awaited
        self._shards = set(shards)
        self._after_loss = True
        # The batch's refills were complete only before the loss.
        batch.refilled.clear()
        self.lost += 1

    def incomplete(self, batch: Batch) -> set[str]:
        """Return the shards that lack values even with ``batch``; readers must not take those values for empty."""
        return self._shards - batch.refilled

    def acknowledged(self, client: Client, batch: Batch) -> None:
        """Note that ``batch`` is acknowledged."""
        if batch.refilled and self._loss:
            client.hset(self._marks_key, mapping=refilled_words(batch.refilled, self._loss))  # type: ignore[arg-type]
        self._shards -= batch.refilled
        if not self._shards:
            self._said.clear()
            self._after_loss = False
        if self._awaited is not None and self._shards.isdisjoint(self._awaited):
            end_loss(client, self._marks_key, self._loss)
            self._awaited = None
