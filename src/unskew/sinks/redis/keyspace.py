"""Names of keys and fields in Redis, shared by the writer and the reader; ``words`` says what they hold."""

import re

from unskew.features.plan import ViewPlan
from unskew.features.view import View
from unskew.sinks.redis.url import Address, Client


def value_key(prefix: str, view_id: str, entity_key: str) -> str:
    """Return the key of the hash of one entity's current values; the braces are literal, a Redis Cluster hash tag."""
    return f"{prefix}:{view_id}:{{{entity_key}}}"


def value_keys_pattern(prefix: str, view_id: str) -> str:
    """Return the SCAN pattern for all entities of a view; special characters of patterns are escaped in the prefix."""
    return re.sub(r"([*?\[\]\\^])", r"\\\1", f"{prefix}:{view_id}:") + "{*}"


def clock_key(prefix: str, pipeline: str) -> str:
    """Return the key of the hash of a pipeline's clocks and of its list of shards."""
    return f"{prefix}:clock:{pipeline}"


def sent_key(prefix: str, pipeline: str) -> str:
    """Return the key of the hash of a pipeline's marks, which say how far its values may have been sent.

    Marks are not in the hash of clocks, because readers read the clocks at every request.
    """
    return f"{prefix}:sent:{pipeline}"


def witness_key(prefix: str, pipeline: str, tag: str) -> str:
    """Return the key of a witness: the hash, one on each server, that says how far the rows there are acknowledged.

    ``tag``: makes the key fall to that server; the braces are literal.
    """
    return f"{prefix}:sent:{pipeline}:{{{tag}}}"


def ledger_key(prefix: str, pipeline: str) -> str:
    """Return the key of the hash of a pipeline's late events and repeats."""
    return f"{prefix}:late:{pipeline}"


def owners_key(prefix: str) -> str:
    """Return the key of the hash that says which state computes each shard, for all pipelines."""
    return f"{prefix}:owners"


def clock_field(view: ViewPlan | View, shard: str) -> str:
    """Return the field of a shard in all of these hashes."""
    return f"{view.id}/{shard}"


def registry_key(prefix: str) -> str:
    """Return the key of the published registry, which is JSON."""
    return f"{prefix}:registry"


def revision_key(prefix: str) -> str:
    """Return the key of the revision of the published registry: a name that each publication makes anew.

    It is removed before the registry is replaced, and set after it. So a reader that finds the revision which it knew
    has the registry, and one that finds none must read it.
    """
    return f"{prefix}:registry:rev"


def usage_key(prefix: str, service: str) -> str:
    """Return the key of the hash of a service's reads: a count for each day, which is named as ``2026-03-01``."""
    return f"{prefix}:usage:{service}"


def connect(url: str) -> Client:
    """Return a client for a URL of the form that ``url`` describes.

    The client of a cluster looks up the nodes at once; any other connects at its first command.
    """
    return Address.parse(url).client()
