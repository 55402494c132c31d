"""Strangers: keys under names of unskew that hold another type than unskew writes there.

The server refuses every command on such a key, so one of them would stop the whole flow. What is under these names
belongs to the pipeline: a stranger is removed, and what belongs there is written.
"""

import logging
from collections.abc import Iterable

from unskew.sinks.redis.url import Client

_SHOWN = 3
_log = logging.getLogger("unskew.redis")


def is_about_type(error: Exception) -> bool:
    """Return true if the server refused a command because a key holds another type."""
    return "WRONGTYPE" in str(error)


def remove_strangers(client: Client, keys: Iterable[tuple[str, str]]) -> int:
    """Remove those of ``keys``, pairs of key and the type that it should hold, that hold another; return how many.

    Raises what redis-py raises.
    """
    wanted = dict(keys)
    commands = client.pipeline(transaction=False)
    for key in wanted:
        commands.type(key)
    found = {}
    for (key, kind), reply in zip(wanted.items(), commands.execute(), strict=True):
        its_kind = reply.decode() if isinstance(reply, bytes) else str(reply)
        if its_kind not in {kind, "none"}:
            found[key] = its_kind
    for key in found:
        client.delete(key)
    if found:
        shown = ", ".join(f"{key} ({kind})" for key, kind in list(found.items())[:_SHOWN])
        _log.error(
            "Redis held another type than unskew writes under %d of its names: %s%s; these keys were removed, and are "
            "written again; find out who writes keys of unskew, or give unskew a --prefix of its own",
            len(found),
            shown,
            ", ..." if len(found) > _SHOWN else "",
        )
    return len(found)
