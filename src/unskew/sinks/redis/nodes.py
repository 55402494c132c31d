"""Nodes: send pipelined commands, in bytes, over one connection to every server that holds a part of the keys.

A single server holds all keys. In a cluster, each master holds some of the 16384 slots, which may move at any time. A
node then refuses a command with MOVED (the slot belongs to another node) or, while the slot is moving, with ASK (the
key is already at the other node, or does not exist yet). Only refused commands are sent again, to the node that the
refusal names. Rows are absolute and their commands have one key each, so sending one twice changes nothing.
"""

import contextlib
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl
import redis
from redis.cluster import PRIMARY, ClusterNode
from redis.crc import REDIS_CLUSTER_HASH_SLOTS as N_SLOTS
from redis.exceptions import ClusterError
from tenacity import Retrying, retry_if_result, stop_after_attempt, wait_incrementing
from typing_extensions import override

from unskew.features.updates import StepRows
from unskew.sinks.redis.cluster_slots import slot_of, slots_of, tag_of
from unskew.sinks.redis.resp import Commands, RowEncoder, hset
from unskew.sinks.redis.resp_replies import BYTES_PER_READ, Replies
from unskew.sinks.redis.url import Client

ROWS_PER_CHUNK = 2_500
"""The number of rows sent before replies are read; it bounds the replies that the server buffers while we send."""

BYTES_PER_SEND = 1 << 12
"""Fewer bytes wait for others: to send them alone takes longer than to make the next ones."""

MOST_ROUNDS = 8
PAUSE_S = 0.0125
"""After ``MOST_ROUNDS`` rounds the caller must try again; each pause is ``PAUSE_S`` longer than the last."""

_ASKING = b"*1\r\n$6\r\nASKING\r\n"
_REDIRECTION = re.compile(r"(MOVED|ASK) (\d+) (\S*):(\d+)")


@dataclass(frozen=True)
class _Redirection:
    """A node's answer that a slot, or a key that it does not have, is at another node."""

    kind: str
    slot: int
    at: str

    @override
    def __str__(self) -> str:
        return f"{self.kind} {self.slot} {self.at}"


class Line:
    """A connection to one server, over which commands are pipelined.

    ``redirected``: the refusals, by slot, of commands that belong to another server; if the server is not
    ``one_of_several``, they are errors like any other. Raises what redis-py raises.
    """

    def __init__(self, server: redis.Redis, *, one_of_several: bool = False) -> None:
        # Kept until the line is given back, because a client without references closes its connections.
        self._server = server
        self._one_of_several = one_of_several
        self._connection = server.connection_pool.get_connection()
        found: socket.socket | None = self._connection._sock  # noqa: SLF001 - there is no public way to read replies in bulk
        if found is None:
            self.give_back()
            raise redis.ConnectionError("Connection closed")
        self.socket = found
        self._replies = Replies(found.recv_into)
        self._waiting: list[Commands] = []
        self._n_waiting = 0
        # The bytes of commands that may not be answered yet.
        self._n_unanswered = 0
        self.redirected: dict[int, _Redirection] = {}

    def call_it(self, name: str) -> None:
        """Give the connection a name, which the server shows; no reply may be outstanding."""
        self._connection.send_command("CLIENT", "SETNAME", name)  # type: ignore[no-untyped-call]
        self._connection.read_response()

    def send(self, commands: Commands) -> None:
        """Send commands after those that were given before.

        Very short ones wait for others, or until the line is finished. Replies are awaited only when there may be many,
        because each wait lets the server stand idle meanwhile.
        """
        self._waiting.append(commands)
        self._n_waiting += len(commands.data)
        if self._n_waiting >= BYTES_PER_SEND:
            self.send_waiting()

    def finish(self) -> None:
        """Send what waits, and await all replies."""
        self.send_waiting()
        self._read(down_to=0)

    def send_waiting(self) -> None:
        """Send what waits, and return once most commands sent before that are answered."""
        if not self._waiting:
            return
        *short, last = self._waiting
        n_bytes, n_replies = self._n_waiting, last.n_replies + sum(one.n_replies for one in short)
        # A system call costs more than copying a few bytes.
        parts = [b"".join(one.data for one in short), last.data] if short else [last.data]
        if len(last.data) < BYTES_PER_READ:
            parts = [b"".join(parts)]
        self._waiting, self._n_waiting = [], 0
        self._connection.send_packed_command(parts, check_health=False)  # type: ignore[no-untyped-call]
        self._replies.expect(n_replies)
        if self._n_unanswered >= BYTES_PER_READ:
            self._read(down_to=n_replies)
        self._n_unanswered += n_bytes

    def break_off(self) -> None:
        """Close the connection: the next command must not read outstanding replies as its own."""
        self._connection.disconnect()  # type: ignore[no-untyped-call]

    def give_back(self) -> None:
        self._server.connection_pool.release(self._connection)

    def _read(self, *, down_to: int) -> None:
        self._n_unanswered = 0
        for text in self._replies.read(down_to=down_to):
            found = _REDIRECTION.fullmatch(text) if self._one_of_several else None
            if found is not None:
                kind, slot, host, port = found.groups()
                host = host or self._server.get_connection_kwargs()["host"]
                self.redirected[int(slot)] = _Redirection(kind, int(slot), f"{host}:{port}")
            elif not text.startswith("EXECABORT "):
                raise redis.ResponseError(text)


class Nodes(Protocol):
    """All servers that hold a part of the keys."""

    tags: Sequence[str]
    """The hash tags, one for each server with an open connection, that in braces make a key fall to that server."""
    refused: set[str]
    """The keys, since the connections were opened, whose fields were refused and must not be sent to another server."""

    def open(self) -> contextlib.AbstractContextManager[None]:
        """Connect to each server; the connections are given back at the end, and closed if the body fails."""

    def sockets(self) -> dict[str, socket.socket]:
        """Return the open connections, by server."""

    def call_them(self, name: str) -> None:
        """Give the connections a name, which the servers show."""

    def servers(self) -> Iterator[redis.Redis]:
        """Yield a client of each server."""

    def set_fields(self, key: str, values: Mapping[str, int | str], *, anywhere: bool = True) -> None:
        """Send fields of a hash; with ``anywhere=False``, only to the server that rows of this slot were sent to."""

    def send_rows(self, encoder: RowEncoder, rows: StepRows, now_us: int, *, persist: bool = False) -> None:
        """Send current rows, each key at most once; ``persist``: remove expiries that keys should not have."""

    def then(self) -> None:
        """Ensure that everything sent so far is executed before anything sent later."""

    def finish(self) -> None:
        """Return once everything sent is acknowledged."""


class OneServer:
    """A server that holds all keys, and so executes commands in the order in which they are sent."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._line: Line | None = None
        self.tags: Sequence[str] = (tag_of(0),)
        self.refused: set[str] = set()

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        line = self._line = Line(self._client)
        try:
            yield
        except BaseException:
            line.break_off()
            raise
        finally:
            self._line = None
            line.give_back()

    @property
    def _only(self) -> Line:
        assert self._line is not None
        return self._line

    def sockets(self) -> dict[str, socket.socket]:
        return {"": self._only.socket}

    def call_them(self, name: str) -> None:
        self._only.call_it(name)

    def servers(self) -> Iterator[redis.Redis]:
        yield self._client

    def set_fields(self, key: str, values: Mapping[str, int | str], *, anywhere: bool = True) -> None:  # noqa: ARG002
        self._only.send(hset(key, values))

    def send_rows(self, encoder: RowEncoder, rows: StepRows, now_us: int, *, persist: bool = False) -> None:
        if (few := encoder.encode_words(rows, now_us, persist=persist)) is not None:
            self._only.send(few)
            return
        for chunk in rows.frame().iter_slices(ROWS_PER_CHUNK):
            # Encoded while the server works on the previous chunk.
            self._only.send(encoder.encode(chunk, now_us, persist=persist))

    def then(self) -> None:
        pass

    def finish(self) -> None:
        self._only.finish()


@dataclass(frozen=True)
class _Rows:
    encoder: RowEncoder
    rows: pl.DataFrame
    now_us: int
    persist: bool

    def encoded(self, rows: pl.DataFrame) -> Commands:
        return self.encoder.encode(rows, self.now_us, persist=self.persist)

    def slots(self) -> npt.NDArray[np.int64]:
        return slots_of(self.rows["key"], self.encoder.before_key, self.encoder.after_key)

    def of(self, chosen: npt.NDArray[np.bool_]) -> "_Rows":
        return replace(self, rows=self.rows.filter(pl.Series(chosen)))


class ClusterNodes:
    """The masters of a cluster, each with its slots."""

    def __init__(self, client: redis.RedisCluster) -> None:
        self._client = client
        # The number of the line for each slot's commands; -1 for a slot that no node has.
        self._owners = np.full(N_SLOTS, -1, np.int64)
        self._masters: list[str] = []
        self._lines: dict[str, Line] = {}
        self._outdated = True
        self._rows: list[_Rows] = []
        self._fields: list[tuple[str, Mapping[str, int | str], bool]] = []
        self.tags: Sequence[str] = ()
        self.refused: set[str] = set()
        self._look_up()

    def _look_up(self) -> None:
        """Copy from redis-py which nodes there are, and which slots each has."""
        slots = self._client.nodes_manager.slots_cache
        self._masters = sorted({nodes[0].name for nodes in slots.values()})
        numbers = {name: number for number, name in enumerate(self._masters)}
        self._owners[:] = -1
        for slot, nodes in slots.items():
            self._owners[slot] = numbers[nodes[0].name]
        self.tags = [tag_of(int(np.argmax(self._owners == number))) for number in range(len(self._masters))]
        self._outdated = False

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        self.refused = set()
        try:
            if self._outdated:
                self._client.nodes_manager.initialize()
                self._look_up()
            for name in self._masters:
                self._line_at(name)
            yield
        except BaseException:
            self._outdated = True
            for line in self._lines.values():
                line.break_off()
            raise
        finally:
            for line in self._lines.values():
                line.give_back()
            self._lines = {}
            self._rows, self._fields = [], []

    def sockets(self) -> dict[str, socket.socket]:
        return {name: line.socket for name, line in self._lines.items()}

    def call_them(self, name: str) -> None:
        for line in self._lines.values():
            line.call_it(name)

    def servers(self) -> Iterator[redis.Redis]:
        for node in self._client.get_primaries():  # type: ignore[no-untyped-call]
            yield self._client.get_redis_connection(node)

    def set_fields(self, key: str, values: Mapping[str, int | str], *, anywhere: bool = True) -> None:
        self._fields.append((key, values, anywhere))
        self._line_of(slot_of(key)).send(hset(key, values))

    def send_rows(self, encoder: RowEncoder, rows: StepRows, now_us: int, *, persist: bool = False) -> None:
        sent = _Rows(encoder, rows.frame(), now_us, persist)
        self._rows.append(sent)
        self._divide(sent)

    def then(self) -> None:
        self.finish()

    def finish(self) -> None:
        if redirected := self._answers():
            # Until the next look-up, the refusals say enough.
            self._outdated = True
            self._send_until_taken(redirected)
        self._rows, self._fields = [], []

    def _send_until_taken(self, redirected: dict[int, _Redirection]) -> None:
        def try_again() -> dict[int, _Redirection]:
            nonlocal redirected
            self._send_again(redirected)
            redirected = self._answers()
            return redirected

        Retrying(
            retry=retry_if_result(bool),
            wait=wait_incrementing(PAUSE_S, PAUSE_S),
            stop=stop_after_attempt(MOST_ROUNDS),
            retry_error_callback=lambda _: None,
        )(try_again)
        if redirected:
            raise ClusterError(f"{next(iter(redirected.values()))}, after {MOST_ROUNDS} tries")

    def _answers(self) -> dict[int, _Redirection]:
        """Await all replies; return the refusals, by slot."""
        redirected: dict[int, _Redirection] = {}
        # All servers work at the same time.
        for line in self._lines.values():
            line.send_waiting()
        for line in self._lines.values():
            line.finish()
            redirected |= line.redirected
            line.redirected = {}
        return redirected

    def _send_again(self, redirected: Mapping[int, _Redirection]) -> None:
        """Send refused commands to the slot's new owner, or, while the slot is moving, to the node that has the key."""
        moved = [one for one in redirected.values() if one.kind == "MOVED"]
        for one in moved:
            self._line_at(one.at)
            self._owners[one.slot] = list(self._lines).index(one.at)
        for key, values, anywhere in self._fields:
            if slot_of(key) not in redirected:
                continue
            if anywhere:
                self._client.hset(key, mapping=values)  # type: ignore[arg-type]
            else:
                self.refused.add(key)
        asked = [one.slot for one in redirected.values() if one.kind == "ASK"]
        for sent in self._rows:
            slots = sent.slots()
            self._divide(sent.of(np.isin(slots, [one.slot for one in moved])))
            on_their_way = sent.of(np.isin(slots, asked))
            for row in on_their_way.rows.iter_slices(1):
                self._ask(replace(sent, rows=row))

    def _divide(self, sent: _Rows) -> None:
        """Send rows to their owners, in turn, so that all servers work at the same time."""
        owners = self._owners[sent.slots()]
        if len(owners) and owners.min() < 0:
            raise ClusterError("CLUSTERDOWN Hash slot not served: no node has some of the slots")
        rows = sent.rows[np.argsort(owners, kind="stable")]
        ends = np.cumsum(np.bincount(owners, minlength=len(self._lines)))
        parts = []
        for line, start, end in zip(self._lines.values(), [0, *ends], ends, strict=False):
            if end > start:
                parts.append([(line, chunk) for chunk in rows[start:end].iter_slices(ROWS_PER_CHUNK)])
        for turn in zip_longest(*parts):
            for part in turn:
                if part is not None:
                    line, chunk = part
                    line.send(sent.encoded(chunk))

    def _ask(self, row: _Rows) -> None:
        """Send one row of a moving slot, to its old owner first, because only that one knows whether the key has left.

        A row without its expiry is one command or one transaction, and ASKING applies to one of either.
        """
        commands = row.encoded(row.rows)
        slot = int(row.slots()[0])
        line = self._line_of(slot)
        line.send(commands)
        line.finish()
        redirection = line.redirected.get(slot)
        if redirection is None or redirection.kind != "ASK":
            return
        del line.redirected[slot]
        other = self._line_at(redirection.at)
        n_values = len(row.encoder.encode(row.rows, None).data)
        expiry = commands.data[n_values:]
        other.send(Commands(_ASKING + commands.data[:n_values], 1 + commands.n_replies - bool(expiry)))
        if expiry:
            other.send(Commands(_ASKING + expiry, 2))
        other.finish()

    def _line_of(self, slot: int) -> Line:
        number = int(self._owners[slot])
        if number < 0:
            raise ClusterError(f"CLUSTERDOWN Hash slot not served: no node has slot {slot}")
        return list(self._lines.values())[number]

    def _line_at(self, name: str) -> Line:
        line = self._lines.get(name)
        if line is None:
            host, _, port = name.rpartition(":")
            node = self._client.get_node(node_name=name) or ClusterNode(host, int(port), PRIMARY)  # type: ignore[no-untyped-call]
            server = self._client.get_redis_connection(node)
            line = self._lines[name] = Line(server, one_of_several=True)
        return line


def nodes_of(client: Client) -> Nodes:
    """Return the servers that a client knows. Raises what redis-py raises."""
    return ClusterNodes(client) if isinstance(client, redis.RedisCluster) else OneServer(client)
