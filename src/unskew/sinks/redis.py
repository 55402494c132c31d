"""The writer of current values: the last per key, acknowledged before the clock says so."""

import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import polars as pl
import redis

from unskew.features.plan import ViewPlan
from unskew.features.updates import Updates
from unskew.sinks.keyspace import SINCE, clock_field, clock_key, connect, reaching_redis, registry_key
from unskew.sinks.resp import Commands, RowEncoder
from unskew.sinks.resp_replies import Replies

ROWS_PER_CHUNK = 2_500
"""Rows sent before replies are read: bounds what the server holds back for us while we still send."""

LONGEST_INTERVAL_US = 1_000_000
LAG_PER_INTERVAL = 16
"""The interval between flushes is this part of the lag: 1 ms at 16 ms of lag, 1 s from 16 s on."""

MOST_ROWS_WAITING = 200_000


@dataclass
class _Waiting:
    """Rows of one view that were not acknowledged yet, in the order in which they came."""

    view: ViewPlan
    encoder: RowEncoder
    frames: list[pl.DataFrame] = field(default_factory=list)
    n_rows: int = 0


class RedisWriter:
    """Brings Redis to the current rows of all views: values first, and the clocks once those are acknowledged.

    ``client``: a ``redis.Redis`` or a URL. Rows wait in memory until ``flush``; of several rows of one key only the last
    is sent. What a flush did not get acknowledged stays and is sent by the next one: rows are absolute, so sending them
    twice changes nothing.
    """

    def __init__(self, client: "redis.Redis | str", prefix: str, pipeline: str) -> None:
        self._client = connect(client) if isinstance(client, str) else client
        self._prefix = prefix
        self._clock_key = clock_key(prefix, pipeline)
        self._waiting: dict[str, _Waiting] = {}
        self._clocks: dict[str, int] = {}
        self._newest_clock_us: int | None = None
        self._flushed_at_us: int | None = None
        self.rows_sent = 0
        self.rows_conflated = 0
        self.flushes = 0

    @property
    def n_waiting(self) -> int:
        """Rows not yet acknowledged, before conflation."""
        return sum(waiting.n_rows for waiting in self._waiting.values())

    def publish_registry(self, text: str) -> None:
        """Replace the published registry: a reader then needs nothing but Redis."""
        with reaching_redis():
            self._client.set(registry_key(self._prefix), text)

    def add(self, updates: Updates) -> None:
        """Take one step's current rows and its clock; a step without rows still moves the clock."""
        name = clock_field(updates.view, updates.shard)
        self._clocks[name] = updates.clock_us
        if updates.since_us is not None:
            self._clocks[name + SINCE] = updates.since_us
        if self._newest_clock_us is None or updates.clock_us > self._newest_clock_us:
            self._newest_clock_us = updates.clock_us
        n_rows = updates.current.height
        if not n_rows:
            return
        waiting = self._waiting.get(updates.view.id)
        if waiting is None:
            waiting = _Waiting(updates.view, RowEncoder(updates.view, self._prefix))
            self._waiting[updates.view.id] = waiting
        waiting.frames.append(updates.current)
        waiting.n_rows += n_rows

    def interval_us(self, now_us: int) -> int:
        """How long rows are gathered before they are sent: grows with the lag of the newest clock, up to 1 s."""
        if self._newest_clock_us is None:
            return 0
        lag_us = max(0, now_us - self._newest_clock_us)
        return min(LONGEST_INTERVAL_US, lag_us // LAG_PER_INTERVAL)

    def flush_if_due(self, now_us: int) -> bool:
        """Flush where the interval since the last flush is over or very many rows wait; whether it did.

        ``now_us``: the present, microseconds. Only asking flushes: ask after every step, and flush before a snapshot.
        """
        if not self._clocks:
            return False
        due = self._flushed_at_us is None or now_us - self._flushed_at_us >= self.interval_us(now_us)
        if due or self.n_waiting >= MOST_ROWS_WAITING:
            self.flush(now_us)
            return True
        return False

    def flush(self, now_us: int) -> None:
        """Send all that waits, and return once Redis has acknowledged it, clocks included.

        Raises ``StoreUnavailable`` with the server's text if Redis cannot be reached or refuses a command; the rows
        still wait then.
        """
        if not self._clocks:
            return
        n_rows = self._conflate()
        with reaching_redis():
            self._send(self._commands(now_us))
            self._client.hset(self._clock_key, mapping={name: str(clock) for name, clock in self._clocks.items()})
        for waiting in self._waiting.values():
            waiting.frames.clear()
            waiting.n_rows = 0
        self._clocks.clear()
        self._newest_clock_us = None
        self._flushed_at_us = now_us
        self.rows_sent += n_rows
        self.flushes += 1

    def close(self) -> None:
        """Give the connections back; what waits is forgotten."""
        self._client.close()

    def _conflate(self) -> int:
        """Keep the last row of each key; rows that remain."""
        n_rows = 0
        for waiting in self._waiting.values():
            if len(waiting.frames) > 1:
                last = pl.concat(waiting.frames).unique("key", keep="last", maintain_order=True)
                self.rows_conflated += waiting.n_rows - last.height
                waiting.frames = [last]
                waiting.n_rows = last.height
            n_rows += waiting.n_rows
        return n_rows

    def _commands(self, now_us: int) -> Iterator[Commands]:
        for waiting in self._waiting.values():
            for frame in waiting.frames:
                for rows in frame.iter_slices(ROWS_PER_CHUNK):
                    yield waiting.encoder.encode(rows, now_us)

    def _send(self, commands: Iterable[Commands]) -> None:
        """Send pipelined; the next chunk is made while the server works on the one before."""
        connection = self._client.connection_pool.get_connection()
        try:
            replies: Replies | None = None
            for chunk in commands:
                connection.send_packed_command([chunk.data], check_health=False)  # type: ignore[no-untyped-call]
                replies = replies or Replies(_socket_of(connection).recv_into)
                replies.expect(chunk.n_lines)
                replies.read(down_to=chunk.n_lines)
            if replies is not None:
                replies.read()
        except BaseException:
            # Replies may be outstanding; the next command must not read them as its own.
            connection.disconnect()  # type: ignore[no-untyped-call]
            raise
        finally:
            self._client.connection_pool.release(connection)


def _socket_of(connection: "redis.connection.AbstractConnection") -> socket.socket:
    """The socket of a connection that was made: connecting, credentials and encryption stay the client's business."""
    found: socket.socket | None = connection._sock  # noqa: SLF001 - there is no public way to read replies in bulk
    if found is None:
        raise redis.ConnectionError("Connection closed")
    return found
