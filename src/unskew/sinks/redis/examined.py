"""A Redis deployment as ``unskew doctor`` sees it: what a run would find there, read and never changed."""

import contextlib
import logging
from collections.abc import Collection, Iterable
from typing import Any

import redis

from unskew.features.printing import counted
from unskew.features.registry import parse
from unskew.features.view import View
from unskew.sinks.redis.compactness import report_large_hashes
from unskew.sinks.redis.eviction import Eviction, infos
from unskew.sinks.redis.keyspace import owners_key, registry_key, sent_key
from unskew.sinks.redis.nodes import nodes_of
from unskew.sinks.redis.owners import Owners
from unskew.sinks.redis.server import Server, time_us
from unskew.sinks.redis.words import Marks, Words

_NEARLY_FULL = 0.9
_MIB = 1 << 20

_log = logging.getLogger("unskew.redis")


class Examined:
    """A deployment, asked with a short patience. ``url``, ``prefix`` and ``pipeline`` are as for ``RedisWriter``.

    What a run would refuse is raised as it would raise it, and what it would log is logged. Every method raises
    ``StoreUnavailable`` if a server cannot be reached or refuses.
    """

    def __init__(self, url: str, prefix: str, pipeline: str, *, timeout_s: float) -> None:
        self._server = Server(url, timeout_s=timeout_s)
        self._prefix = prefix
        self._pipeline = pipeline

    def close(self) -> None:
        """Close the connections."""
        self._server.close()

    def servers(self) -> str:
        """Return what the servers say of themselves: version, memory, policy."""
        with self._server.reaching() as client:
            nodes = nodes_of(client)
            try:
                return "; ".join(_described(at, info) for at, info in infos(nodes))
            except redis.exceptions.NoPermissionError:
                for server in nodes.servers():
                    server.ping()
                return "it answers, and shows nothing of itself to this user"

    def take_writes(self, *, allow_eviction: bool, expires: bool) -> str:
        """Return that the servers take values and keep them; log that one is a replica.

        Raises ``RequestError`` if one evicts keys and that is not allowed. ``expires``: keys are given an expiry.
        """
        with self._server.reaching() as client:
            nodes = nodes_of(client)
            eviction = Eviction(allowed=allow_eviction, expires=expires)
            eviction.look(nodes)
            for server in nodes.servers():
                with contextlib.suppress(redis.exceptions.NoPermissionError):
                    if server.info("replication").get("role") == "slave":
                        _log.error(
                            "%s is a replica, which takes no writes: give the address of the master, of sentinels or of a cluster",
                            self._server,
                        )
            eviction.refuse()
        return "it may evict values, which is allowed" if eviction.evicts else "it does not evict values"

    def clock_us(self) -> int:
        """Return the servers' wall clock in microseconds; of several servers, the earliest."""
        with self._server.reaching() as client:
            return time_us(client)

    def registry(self) -> str:
        """Return what is published, and by whom. Raises ``LayoutError`` if this version cannot read it."""
        key = registry_key(self._prefix)
        with self._server.reaching() as client:
            stored: Any = client.get(key)
            if stored is None:
                return f"nothing is published under the prefix {self._prefix!r} yet"
            published = parse(stored, key)
            wheres = Words.read(client, owners_key(self._prefix)).homes()
        whom = f", by {'; '.join(wheres)}" if wheres else ""
        return f"{counted(len(published.views), 'view version')} and {counted(len(published.services), 'service')} published{whom}"

    def owned(self, view_ids: Collection[str], state: str) -> str:
        """Return that values of these views are free for the state of this id, or are its own.

        Raises ``LayoutError`` if they belong to another one.
        """
        with self._server.reaching() as client:
            owners = Words.read(client, owners_key(self._prefix)).by_shard()
            written_by = Marks.read(client, sent_key(self._prefix, self._pipeline)).states()
            mine = {shard for shard in (*owners, *written_by) if shard.partition("/")[0] in view_ids}
            of_others = {shard: owner for shard, owner in written_by.items() if shard in mine}
            Owners(self._prefix, state).refuse(client, mine, of_others)
        return "the values of these views are this state's" if mine else "nobody has written values of these views"

    def large_hashes(self, views: Iterable[View]) -> None:
        """Log which hashes the servers will not keep compact."""
        with self._server.reaching() as client:
            report_large_hashes(nodes_of(client), views)


def _described(at: str, info: dict[str, Any]) -> str:
    """Return what one server says of itself; log that it is nearly full."""
    name, version = ("Valkey", info["valkey_version"]) if "valkey_version" in info else ("Redis", info["redis_version"])
    used, most = int(info["used_memory"]), int(info.get("maxmemory", 0))
    if most and used > _NEARLY_FULL * most:
        _log.warning(
            "Redis at %s uses %.1f of its maxmemory of %.1f MiB; it refuses writes there, and the flow waits: raise maxmemory",
            at,
            used / _MIB,
            most / _MIB,
        )
    memory = f"{used / _MIB:,.1f} MiB used" + (f" of {most / _MIB:,.1f} MiB" if most else ", no maxmemory")
    return f"{name} {version} at {at}, {memory}, {info.get('maxmemory_policy', 'policy not shown')}"
