"""Eviction: refuse servers that evict unskew's keys, and watch how many keys the servers evict.

To a reader, an evicted key looks like an entity that was never seen. Policies ``allkeys-*`` evict any key, policies
``volatile-*`` only keys with an expiry, which unskew's keys have only if asked for. A policy counts whether or not
``maxmemory`` is set, because that limit can be set while a pipeline runs.
"""

import logging
from collections.abc import Iterator
from typing import Any

import redis

from unskew.features.errors import RequestError
from unskew.sinks.redis.nodes import Nodes

LOOK_EVERY_US = 10_000_000
"""The interval at which a writer reads the servers' policies and counts of evicted keys."""

_log = logging.getLogger("unskew.redis")


class Eviction:
    """The eviction policies of all servers, and what they have evicted since this object was made.

    ``allowed``: servers may evict. ``expires``: keys have an expiry. Methods raise what redis-py raises.
    """

    def __init__(self, *, allowed: bool, expires: bool) -> None:
        self._allowed = allowed
        self._expires = expires
        self._counts: dict[tuple[str, str], int] = {}
        self._looked_at_us: int | None = None
        self._readable = True
        self.evicted = 0
        """The number of keys of any application that the servers evicted."""
        self.evicts = False
        """Whether a server has a policy that may evict unskew's keys."""
        self._refusal = ""

    def is_due(self, now_us: int) -> bool:
        """Return true if the last look is long ago."""
        return self._looked_at_us is None or now_us - self._looked_at_us >= LOOK_EVERY_US

    def look(self, nodes: Nodes, now_us: int | None = None) -> int:
        """Read policies and counts of all servers; return how many keys were evicted since the last look."""
        evicting, n_new = [], 0
        for at, found in self._infos(nodes):
            policy = str(found.get("maxmemory_policy", ""))
            if policy.startswith("allkeys") or (self._expires and policy.startswith("volatile")):
                evicting.append(f"Redis at {at.rstrip(':')} has maxmemory-policy {policy}")
            count = int(found.get("evicted_keys", 0))
            # A server that started again counts from 0 again, and has another run id.
            server = at, str(found.get("run_id", ""))
            n_new += max(0, count - self._counts.get(server, count))
            self._counts[server] = count
        if n_new:
            _log.error(
                "Redis evicted %d keys: evicted values are rewritten from the state, and until then reads of entities "
                "without a row are provisional; raise maxmemory, and set maxmemory-policy noeviction",
                n_new,
            )
        self.evicted += n_new
        self.evicts = bool(evicting)
        self._refusal = "" if self._allowed else "; ".join(evicting)
        self._looked_at_us = now_us
        return n_new

    def refuse(self) -> None:
        """Raise ``RequestError`` if a server evicts and that is not allowed."""
        if self._refusal:
            raise RequestError(
                f"{self._refusal}, so it may evict values, and readers would take them for entities that were never "
                "seen; set noeviction (with --expire-after also volatile policies evict), or run with --allow-eviction, "
                "which makes every read of an entity without a row provisional"
            )

    def _infos(self, nodes: Nodes) -> Iterator[tuple[str, dict[str, Any]]]:
        if not self._readable:
            return
        try:
            yield from infos(nodes)
        except redis.exceptions.NoPermissionError as error:
            self._readable = False
            _log.warning(
                "Redis does not let this user run INFO (%s): whether it evicts keys is not known, and evictions are "
                "not counted; allow it, or see to it that maxmemory-policy is noeviction",
                error,
            )


def infos(nodes: Nodes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the address of each server, and what it says of itself, its memory and its counts.

    Raises what redis-py raises.
    """
    for server in nodes.servers():
        options = server.get_connection_kwargs()
        at = options.get("path") or f"{options.get('host', 'the master')}:{options.get('port', '')}"
        # Not one call for all sections: managed services answer that with every section that they have.
        found = {
            name: value for section in ("server", "memory", "stats") for name, value in server.info(section).items()
        }
        yield str(at), found
