"""The published registry in Redis: how it is replaced, and how a reader notices."""

import uuid
from collections.abc import Callable

import redis

from unskew.sinks.redis.keyspace import registry_key, revision_key
from unskew.sinks.redis.url import Client


def replace_registry(client: Client, prefix: str, change: Callable[[bytes | str | None], str | None]) -> None:
    """Replace the registry by what ``change`` makes of it, or leave it if that is None. Raises what redis-py raises.

    ``change`` is called again if another process replaces the registry meanwhile.
    """
    key = registry_key(prefix)

    def replace(transaction: "redis.client.Pipeline") -> None:
        changed = change(transaction.get(key))
        transaction.multi()
        if changed is not None:
            transaction.set(key, changed)

    # While there is no revision, readers read the registry itself. So a process that dies here leaves nobody with an
    # old one. A new name, because of two processes at once either may be the last to set it.
    client.delete(revision_key(prefix))
    client.transaction(replace, key)
    client.set(revision_key(prefix), uuid.uuid4().hex)
