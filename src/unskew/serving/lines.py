"""Commands of a read in bytes, sent at once over one connection to each server, and their replies.

The replies are read by hiredis, as they come. redis-py makes the connections, so every kind of URL, TLS and credentials
are its matter, and finds the nodes of a cluster.
"""

import contextlib
import os
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import hiredis
import redis
from redis.crc import key_slot
from redis.exceptions import ClusterError

from unskew.sinks.redis.server import Server, checked
from unskew.sinks.redis.url import CLUSTER_TRIES

_BYTES_PER_READ = 1 << 14
_BYTES_PER_SEND = 1 << 18
"""More commands than this are sent in parts, each after the replies to the one before have come."""
PAUSES_S = (0.0, 0.05)
"""Before a read is tried again over another connection."""
_NOT_YET = object()
_PLAIN = frozenset({list, bytes, type(None)})
"""What replies to reading commands are, apart from errors."""


@dataclass(slots=True)
class Commands:
    """Commands that may be executed in any order, and the key of each."""

    data: list[bytes] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)

    def add(self, key: bytes, data: bytes) -> None:
        """Add a command."""
        self.keys.append(key)
        self.data.append(data)


def all_of(steps: Sequence[Commands]) -> list[bytes]:
    """Return the commands of all steps."""
    return [one for step in steps for one in step.data]


def divided(replies: list[Any], steps: Sequence[Commands]) -> list[list[Any]]:
    """Return the replies to the commands of each step. Raises as ``checked`` does."""
    if not _PLAIN.issuperset(map(type, replies)):
        checked(replies, [key for step in steps for key in step.keys])
    found, last = [], 0
    for step in steps:
        first, last = last, last + len(step.data)
        found.append(replies[first:last])
    return found


class Lines:
    """All servers that hold a part of the keys, over connections of redis-py's pools; several threads may use it.

    Connections to one server that a URL names are kept between reads, because the pool takes longer to lend one than
    the server to answer.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._kept: deque[_Line] = deque()
        self._process = os.getpid()

    def ask(self, *steps: Commands) -> list[list[Any]]:
        """Return the replies to the commands of each step, which are executed after those of the steps before.

        Raises ``StoreUnavailable`` if a server cannot be reached or refuses a command, and ``LayoutError`` for a key of
        another type than a command needs.
        """
        with self._server.reaching() as client:
            if isinstance(client, redis.RedisCluster):
                return [self._ask_cluster(client, step) for step in steps]
            return divided(self._ask_one(client, all_of(steps)), steps)

    def give_back(self) -> None:
        """Give the connections that are kept back to their pool."""
        while self._kept:
            # Another thread may have taken the last one.
            with contextlib.suppress(IndexError):
                self._kept.pop().give_back()

    def _ask_one(self, server: redis.Redis, commands: Sequence[bytes]) -> list[Any]:
        """Return the replies of one server; errors among them are not raised. Raises what redis-py raises."""
        for pause_s in PAUSES_S:
            try:
                return self._try_one(server, commands)
            except (redis.ConnectionError, redis.TimeoutError):
                # The server may have closed all of them.
                self.give_back()
                time.sleep(pause_s)
        return self._try_one(server, commands)

    def _try_one(self, server: redis.Redis, commands: Sequence[bytes]) -> list[Any]:
        line = self._line(server)
        try:
            replies = line.exchange(commands)
        except BaseException:
            # The next commands must not read outstanding replies as their own.
            line.break_off()
            raise
        if line.may_be_kept:
            self._kept.append(line)
        else:
            line.give_back()
        return replies

    def _line(self, server: redis.Redis) -> "_Line":
        if self._process != os.getpid():
            # A process that forked must leave the sockets to the other one.
            self._process, self._kept = os.getpid(), deque()
        with contextlib.suppress(IndexError):
            return self._kept.pop()
        # Sentinels may name another master, a client of somebody else may need its connections.
        may_be_kept = self._server.is_of_url and type(server.connection_pool) is redis.ConnectionPool
        return _Line(server, may_be_kept=may_be_kept)

    def _ask_cluster(self, client: redis.RedisCluster, commands: Commands) -> list[Any]:
        for tries_left in reversed(range(CLUSTER_TRIES)):
            try:
                return checked(self._ask_nodes(client, commands), commands.keys)
            except (redis.ConnectionError, redis.TimeoutError, ClusterError, OSError):
                if not tries_left:
                    raise
                client.nodes_manager.initialize()
        raise AssertionError

    def _ask_nodes(self, client: redis.RedisCluster, commands: Commands) -> list[Any]:
        places: dict[str, list[int]] = {}
        servers: dict[str, redis.Redis] = {}
        for place, key in enumerate(commands.keys):
            node = client.nodes_manager.get_node_from_slot(key_slot(key))
            places.setdefault(node.name, []).append(place)
            if node.name not in servers:
                servers[node.name] = client.get_redis_connection(node)
        replies: list[Any] = [None] * len(commands.keys)
        for name, its in places.items():
            of_node = [commands.data[place] for place in its]
            for place, reply in zip(its, self._ask_one(servers[name], of_node), strict=True):
                replies[place] = reply
        for place, reply in enumerate(replies):
            if isinstance(reply, redis.ResponseError) and str(reply).startswith(("MOVED ", "ASK ", "TRYAGAIN")):
                # redis-py follows slots that move, and remembers where they are.
                replies[place] = _followed(client, commands.data[place])
        return replies


class _Line:
    """A connection of a pool, with what reads its replies."""

    def __init__(self, server: redis.Redis, *, may_be_kept: bool) -> None:
        self.may_be_kept = may_be_kept
        # Kept, because a client without references closes its connections.
        self._server = server
        self._connection = server.connection_pool.get_connection()
        self._reader = hiredis.Reader(redis.InvalidResponse, redis.ResponseError, notEnoughData=_NOT_YET)
        self._buffer = bytearray(_BYTES_PER_READ)

    def give_back(self) -> None:
        """Give the connection back to its pool."""
        self._server.connection_pool.release(self._connection)

    def break_off(self) -> None:
        """Close the connection, and give it back."""
        self._connection.disconnect()  # type: ignore[no-untyped-call]
        self.give_back()

    def exchange(self, commands: Sequence[bytes]) -> list[Any]:
        """Return the replies to commands; errors among them are not raised."""
        with_server: socket.socket | None = self._connection._sock  # noqa: SLF001 - there is no public way to read replies in bulk
        if with_server is None:
            raise redis.ConnectionError("Connection closed")
        replies: list[Any] = []
        n_sent = 0
        for part in _parts(commands):
            _send(with_server, b"".join(part))
            n_sent += len(part)
            self._read(with_server, n_sent, replies)
        if self._reader.has_data():
            raise redis.InvalidResponse("more replies than commands")
        return replies

    def _read(self, of: socket.socket, n_replies: int, replies: list[Any]) -> None:
        """Read replies until there are as many."""
        next_reply, feed, receive, buffer = self._reader.gets, self._reader.feed, of.recv_into, self._buffer
        while len(replies) < n_replies:
            reply = next_reply()
            if reply is not _NOT_YET:
                replies.append(reply)
                continue
            try:
                n_bytes = receive(buffer)
            except TimeoutError as error:
                raise redis.TimeoutError("Timeout reading from socket") from error
            except OSError as error:
                raise redis.ConnectionError(f"Error while reading from socket: {error}") from error
            if not n_bytes:
                raise redis.ConnectionError("Connection closed by server")
            feed(buffer, 0, n_bytes)  # type: ignore[arg-type]


def _send(to: socket.socket, data: bytes) -> None:
    try:
        to.sendall(data)
    except TimeoutError as error:
        raise redis.TimeoutError("Timeout writing to socket") from error
    except OSError as error:
        raise redis.ConnectionError(f"Error while writing to socket. {error}") from error


def _parts(commands: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    n_bytes = sum(map(len, commands))
    if n_bytes <= _BYTES_PER_SEND:
        yield commands
        return
    n_parts = -(-n_bytes // _BYTES_PER_SEND)
    per_part = -(-len(commands) // n_parts)
    for first in range(0, len(commands), per_part):
        yield commands[first : first + per_part]


def _followed(client: redis.RedisCluster, data: bytes) -> Any:
    reader = hiredis.Reader()
    reader.feed(data)
    arguments = reader.gets()
    try:
        reply = client.execute_command(arguments[0].decode(), *arguments[1:])  # type: ignore[no-untyped-call]
    except redis.ResponseError as error:
        return error
    return _as_bytes(reply)


def _as_bytes(reply: Any) -> Any:
    """Return a reply as a server gives it, whatever a client of redis-py has made of it."""
    if isinstance(reply, str):
        return reply.encode()
    if isinstance(reply, dict):
        return [_as_bytes(one) for pair in reply.items() for one in pair]
    return [_as_bytes(one) for one in reply] if isinstance(reply, list) else reply
