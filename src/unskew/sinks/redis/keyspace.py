"""Names of what is kept in Redis; the writer and the reader share them. What stands under them is in ``words``."""

import re

from unskew.features.plan import ViewPlan
from unskew.features.view import View
from unskew.sinks.redis.url import Address, Client


def value_key(prefix: str, view_id: str, entity_key: str) -> str:
    """The hash of one entity's current values; the braces are literal, a Redis Cluster hash tag."""
    return f"{prefix}:{view_id}:{{{entity_key}}}"


def value_keys_pattern(prefix: str, view_id: str) -> str:
    """What SCAN matches for every entity of a view; a prefix may hold what patterns give a meaning to."""
    return re.sub(r"([*?\[\]\\^])", r"\\\1", f"{prefix}:{view_id}:") + "{*}"


def clock_key(prefix: str, pipeline: str) -> str:
    """The hash of a pipeline's clocks, and of which shards there are."""
    return f"{prefix}:clock:{pipeline}"


def sent_key(prefix: str, pipeline: str) -> str:
    """The hash of how far a pipeline's values may have been sent ("marks").

    Beside the clocks rather than among them: those are read at every request.
    """
    return f"{prefix}:sent:{pipeline}"


def witness_key(prefix: str, pipeline: str, tag: str) -> str:
    """The hash, one on each server, of how far the rows there are acknowledged.

    ``tag``: makes the key fall to that server; the braces are literal.
    """
    return f"{prefix}:sent:{pipeline}:{{{tag}}}"


def ledger_key(prefix: str, pipeline: str) -> str:
    """The hash of a pipeline's late events and repeats."""
    return f"{prefix}:late:{pipeline}"


def clock_field(view: ViewPlan | View, shard: str) -> str:
    """The name of a shard in all of these hashes."""
    return f"{view.id}/{shard}"


def registry_key(prefix: str) -> str:
    """The published registry, JSON."""
    return f"{prefix}:registry"


def as_text(reply: bytes | str) -> str:
    """A reply as text, whether or not the client decodes replies."""
    return reply.decode() if isinstance(reply, bytes) else reply


def connect(url: str) -> Client:
    """A client for a URL as ``redis_url`` has them; of a cluster it asks for the nodes at once, else it connects at the first command."""
    return Address.parse(url).client()
