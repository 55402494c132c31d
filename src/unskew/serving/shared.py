"""Reads of an event loop over one connection, which all of them share.

Commands leave at once, and replies come back in their order, so nobody waits for another's reply to be read before
asking. redis-py makes the connection, with TLS and credentials.
"""

import asyncio
import os
import socket
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, cast

import hiredis
import redis
from typing_extensions import override

from unskew.serving.lines import PAUSES_S, Commands, Lines, all_of, divided
from unskew.sinks.redis.server import Server

_NOT_YET = object()
_MOST_THREADS = 16


class SharedLines:
    """What ``Lines`` is for threads, for coroutines.

    A server, or the master that sentinels name, is reached over one connection of each event loop. A cluster, and a
    server over TLS, is asked by ``lines`` in threads. Replies are waited for as long as redis-py's connection says.
    """

    def __init__(self, server: Server, lines: Lines) -> None:
        self._server = server
        self._lines = lines
        self._of_loops: dict[asyncio.AbstractEventLoop, _OfLoop] = {}
        self._threads: ThreadPoolExecutor | None = None
        self._process = os.getpid()
        self._of_the_other: object = None

    async def ask(self, *steps: Commands) -> list[list[Any]]:
        """Return the replies to the commands of each step, as ``Lines.ask`` does; raises as it does."""
        if self._process != os.getpid():
            # What a process that forked has is not this one's: its threads do not run here, and its sockets are shared.
            self._process, self._of_the_other = os.getpid(), (self._of_loops, self._threads)
            self._of_loops, self._threads = {}, None
        loop = asyncio.get_running_loop()
        of_loop = self._of_loops.get(loop)
        if of_loop is None:
            self._leave_ended()
            of_loop = self._of_loops[loop] = _OfLoop()
        if of_loop.in_threads:
            return await self._ask_in_threads(of_loop, steps)
        commands = all_of(steps)
        data = b"".join(commands)
        for pause_s in (*PAUSES_S, None):
            try:
                line = of_loop.line
                if line is None or line.is_closed:
                    line = await self._connected(of_loop)
                if line is None:
                    return await self._ask_in_threads(of_loop, steps)
                return divided(await line.exchange(data, len(commands)), steps)
            except Exception as error:
                if pause_s is None or not isinstance(error, redis.ConnectionError | redis.TimeoutError):
                    # As ``Server.reaching`` does, which would cost each read more.
                    if (explained := self._server.explained(error)) is not None:
                        raise explained from error
                    raise
                await asyncio.sleep(pause_s)
        raise AssertionError

    async def _ask_in_threads(self, of_loop: "_OfLoop", steps: Sequence[Commands]) -> list[list[Any]]:
        of_loop.n_in_threads += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._executor(), lambda: self._lines.ask(*steps))
        finally:
            of_loop.n_in_threads -= 1

    def are_waiting(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Return whether somebody waits for replies in an event loop."""
        of_loop = self._of_loops.get(loop)
        return of_loop is not None and of_loop.are_waiting

    def close(self) -> None:
        """Close all connections; may be called outside of their loops once these have ended."""
        for of_loop in self._of_loops.values():
            of_loop.close()
        self._of_loops = {}
        if self._threads is not None:
            self._threads.shutdown(wait=False)
            self._threads = None

    def _leave_ended(self) -> None:
        """Close the connections of event loops that have ended."""
        for loop in [one for one in self._of_loops if one.is_closed()]:
            self._of_loops.pop(loop).close()

    def _executor(self) -> ThreadPoolExecutor:
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="unskew-read")
        return self._threads

    async def _connected(self, of_loop: "_OfLoop") -> "_Line | None":
        """Return the loop's connection; None if commands are sent by threads. All who wait for one share an attempt."""
        if of_loop.line is not None and not of_loop.line.is_closed:
            return of_loop.line
        if of_loop.connecting is None:
            of_loop.connecting = asyncio.ensure_future(self._connect(of_loop))
            of_loop.connecting.add_done_callback(of_loop.connected)
        # One who waits no longer does not end the attempt of the others.
        return await asyncio.shield(of_loop.connecting)

    async def _connect(self, of_loop: "_OfLoop") -> "_Line | None":
        made = await asyncio.get_running_loop().run_in_executor(self._executor(), self._made)
        if made is None:
            of_loop.in_threads = True
            return None
        line = of_loop.line = await _Line.over(*made)
        of_loop.until_end = _until_end(line)
        await anext(of_loop.until_end)
        return line

    def _made(self) -> "tuple[redis.Redis, Any, socket.socket] | None":
        """Return a new connection with its client and socket; None for one that an event loop cannot have."""
        with self._server.reaching() as client:
            if isinstance(client, redis.RedisCluster) or client.connection_pool.connection_class is redis.SSLConnection:
                return None
            pool = client.connection_pool
            connection = pool.get_connection()
            found: socket.socket | None = connection._sock  # noqa: SLF001 - there is no public way to read replies in bulk
            if found is None or type(found) is not socket.socket:
                pool.release(connection)
                return None
            return client, connection, found


class _OfLoop:
    def __init__(self) -> None:
        self.connecting: asyncio.Future[_Line | None] | None = None
        self.line: _Line | None = None
        self.until_end: AsyncGenerator[None, None] | None = None
        self.in_threads = False
        self.n_in_threads = 0

    @property
    def are_waiting(self) -> bool:
        """Whether somebody waits for replies."""
        return self.n_in_threads > 0 or (self.line is not None and self.line.are_waiting)

    def connected(self, attempt: "asyncio.Future[_Line | None]") -> None:
        """Note that an attempt to connect has ended."""
        self.connecting = None
        if not attempt.cancelled():
            # Where nobody waits any more, nobody else looks at it.
            attempt.exception()

    def close(self) -> None:
        if self.line is not None:
            self.line.close()


async def _until_end(line: "_Line") -> AsyncGenerator[None, None]:
    """Close a connection when its event loop ends, which closes asynchronous generators before."""
    try:
        yield
    finally:
        line.close()


class _Waiting(NamedTuple):
    """Commands whose replies are waited for since an instant of the loop's clock."""

    replied: "asyncio.Future[list[Any]]"
    n_replies: int
    began_s: float


class _Line(asyncio.Protocol):
    """A connection, whose replies are matched with commands by their number."""

    def __init__(self, client: redis.Redis, connection: Any) -> None:
        # Kept, because a client without references closes its connections.
        self._client, self._connection = client, connection
        self._reader = hiredis.Reader(redis.InvalidResponse, redis.ResponseError, notEnoughData=_NOT_YET)
        self._waiting: deque[_Waiting] = deque()
        self._replies: list[Any] = []
        self._held: list[bytes] = []
        self._timeout_s: float | None = connection.socket_timeout
        self._watch: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self.is_closed = False

    @classmethod
    async def over(cls, client: redis.Redis, connection: Any, its: socket.socket) -> "_Line":
        """Return a line over a connection that redis-py has made."""
        # The transport closes its socket, and redis-py's connection has another one of the same connection.
        own = its.dup()
        own.setblocking(False)
        _, line = await asyncio.get_running_loop().create_connection(lambda: cls(client, connection), sock=own)
        return line

    @property
    def are_waiting(self) -> bool:
        """Whether replies are on their way."""
        return bool(self._waiting)

    def exchange(self, data: bytes, n_replies: int) -> "asyncio.Future[list[Any]]":
        """Send commands; what is returned becomes their replies. Errors among them are not raised."""
        if self.is_closed or self._transport is None:
            raise redis.ConnectionError("Connection closed")
        replied: asyncio.Future[list[Any]] = self._loop.create_future()
        if self._waiting:
            # Others are on their way, so these leave together with all that this turn of the loop brings.
            if not self._held:
                self._loop.call_soon(self._send_held)
            self._held.append(data)
        else:
            if self._timeout_s is not None and self._watch is None:
                self._watch = self._loop.call_later(self._timeout_s, self._look_at_the_oldest)
            self._transport.write(data)
        self._waiting.append(_Waiting(replied, n_replies, self._loop.time()))
        return replied

    def _send_held(self) -> None:
        data, self._held = b"".join(self._held), []
        if self._transport is not None and not self.is_closed:
            self._transport.write(data)

    def _look_at_the_oldest(self) -> None:
        """End the connection if the commands that have waited longest have no reply in time.

        One timer does for all of them, because replies come in order: who waits behind others would wait in vain.
        """
        self._watch = None
        if not self._waiting or self._timeout_s is None:
            return
        left_s = self._waiting[0].began_s + self._timeout_s - self._loop.time()
        if left_s <= 0:
            self._end(redis.TimeoutError("Timeout reading from socket"))
        else:
            self._watch = self._loop.call_later(left_s, self._look_at_the_oldest)

    def close(self) -> None:
        """Close the connection."""
        self._end(redis.ConnectionError("Connection closed"))

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # That of uvloop is not a subclass.
        self._transport = cast("asyncio.Transport", transport)

    @override
    def data_received(self, data: bytes) -> None:
        waiting, replies = self._waiting, self._replies
        wrong = ""
        try:
            self._reader.feed(data)
            replies += iter(self._reader.gets, _NOT_YET)
        except redis.InvalidResponse as error:
            wrong = str(error)
        first = 0
        while waiting and (last := first + waiting[0].n_replies) <= len(replies):
            replied = waiting.popleft().replied
            if not replied.done():
                replied.set_result(replies[first:last])
            first = last
        del replies[:first]
        if replies and not waiting:
            wrong = "more replies than commands"
        if wrong:
            self._end(redis.ConnectionError(wrong))

    @override
    def connection_lost(self, error: Exception | None) -> None:
        self._end(redis.ConnectionError(f"Connection closed by server{'' if error is None else f': {error}'}"))

    def _end(self, why: redis.RedisError) -> None:
        if self.is_closed:
            return
        self.is_closed = True
        if self._watch is not None:
            self._watch.cancel()
        while self._waiting:
            replied = self._waiting.popleft().replied
            if not replied.done():
                replied.set_exception(why)
        # A transport whose loop has ended cannot be closed any more; its connection ends with redis-py's.
        if self._transport is not None and not self._transport.is_closing() and not self._loop.is_closed():
            self._transport.abort()
        self._connection.disconnect()
        self._client.connection_pool.release(self._connection)
