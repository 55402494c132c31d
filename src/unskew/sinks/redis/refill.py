"""Values that Redis lost and that are written again from the state; until all of a shard's are there, its clock is not.

The writer that notices a loss names it among the pipeline's marks. Other processes may compute shards whose values were
lost too: their writers read that name once a second, and when it is new to them, their shards are asked for everything
as well. The writer that noticed the loss removes the name when all that it had sent before has come again.
"""

import logging
import uuid
from collections.abc import Collection

from unskew.features.updates import Updates
from unskew.sinks.redis.batch import Batch
from unskew.sinks.redis.url import Client
from unskew.sinks.redis.words import end_loss, read_loss, write_loss

HEAR_EVERY_US = 1_000_000
"""How often a writer asks what writers in other processes have lost."""

_log = logging.getLogger("unskew.redis")


class Refill:
    """Which shards are being written again. ``marks_key``: where losses are named.

    ``lost``: losses so far; when it grows, every shard is asked for everything that it holds. ``note`` is for the thread
    that adds updates, all else for the one that sends. Methods that take a client raise what redis-py raises.
    """

    def __init__(self, marks_key: str) -> None:
        self.lost = 0
        self._marks_key = marks_key
        self._loss = ""
        # What this writer had sent before a loss that it noticed itself, until all of that has come again.
        self._awaited: Collection[str] | None = None
        self._heard_at_us: int | None = None
        self._shards: set[str] = set()
        self._announced: set[str] = set()
        self._n_rows = 0

    def note(self, shard: str, updates: Updates) -> None:
        """Take note of a part of a shard's values, or of the last. The first part and the very last are logged."""
        if not self._announced and not self._shards:
            _log.warning("Redis is empty or behind the state: rewriting all current values")
        self._n_rows += updates.current.height
        if updates.refill == "part":
            self._shards.add(shard)
            self._announced.add(shard)
            return
        self._announced.discard(shard)
        if not self._announced:
            _log.warning("Redis: %d values rewritten from the state", self._n_rows)
            self._n_rows = 0

    def hear(self, client: Client, shards: Collection[str], batch: Batch, now_us: int) -> None:
        """Ask whether another process noticed a loss: then all ``shards`` are incomplete, also those complete in ``batch``."""
        if self._heard_at_us is not None and now_us - self._heard_at_us < HEAR_EVERY_US:
            return
        loss = read_loss(client, self._marks_key)
        if loss not in {"", self._loss}:
            self._begin(loss, None, shards, batch)
        self._heard_at_us = now_us

    def lose(self, client: Client, sent: Collection[str], shards: Collection[str], batch: Batch) -> None:
        """Tell of a loss that was noticed here. ``sent``: shards of which values were acknowledged before it."""
        loss = uuid.uuid4().hex
        write_loss(client, self._marks_key, loss)
        self._begin(loss, sent, shards, batch)

    def _begin(self, loss: str, awaited: Collection[str] | None, shards: Collection[str], batch: Batch) -> None:
        self._loss, self._awaited = loss, awaited
        self._shards = set(shards)
        # What it holds was complete before the loss.
        batch.refilled.clear()
        self.lost += 1

    def incomplete(self, batch: Batch) -> set[str]:
        """Shards that lack values even with ``batch``: a reader must not take what is still to come for empty."""
        return self._shards - batch.refilled

    def acknowledged(self, client: Client, batch: Batch) -> None:
        """Take note that ``batch`` is there."""
        self._shards -= batch.refilled
        if self._awaited is not None and self._shards.isdisjoint(self._awaited):
            end_loss(client, self._marks_key, self._loss)
            self._awaited = None
