"""Names of what is kept in Redis, and the way to a server; the writer and the reader share them."""

import contextlib
import re
from collections.abc import Iterator

import redis

from unskew.features.errors import RequestError, StoreUnavailable
from unskew.features.plan import ViewPlan

SINCE = "#since"
ENDED = "ended"
"""Stands for the clock of a shard that ended before it had one."""


def value_key(prefix: str, view_id: str, entity_key: str) -> str:
    """The hash of one entity's current values; the braces are literal, a Redis Cluster hash tag."""
    return f"{prefix}:{view_id}:{{{entity_key}}}"


def value_keys_pattern(prefix: str, view_id: str) -> str:
    """What SCAN matches for every entity of a view; a prefix may hold what patterns give a meaning to."""
    return re.sub(r"([*?\[\]\\^])", r"\\\1", f"{prefix}:{view_id}:") + "{*}"


def clock_key(prefix: str, pipeline: str) -> str:
    """The hash of a pipeline's clocks: ``view@version/shard`` -> microseconds; with ``#since``, its first arrival.

    ``view@version#shards`` -> the names of all shards of the view, with spaces between, also of those without a clock.
    """
    return f"{prefix}:clock:{pipeline}"


def sent_key(prefix: str, pipeline: str) -> str:
    """The hash of how far a pipeline's values may have been sent: ``view@version/shard`` -> state, clock and events applied.

    Beside the clocks rather than among them: those are read at every request.
    """
    return f"{prefix}:sent:{pipeline}"


def ledger_key(prefix: str, pipeline: str) -> str:
    """The hash of a pipeline's late events and repeats: ``view@version/shard`` -> a ledger as JSON."""
    return f"{prefix}:late:{pipeline}"


def clock_field(view: ViewPlan, shard: str) -> str:
    return f"{view.id}/{shard}"


def shards_field(view_id: str) -> str:
    return f"{view_id}#shards"


def registry_key(prefix: str) -> str:
    """The published registry, JSON."""
    return f"{prefix}:registry"


def as_text(reply: bytes | str) -> str:
    """A reply as text, whether or not the client decodes replies."""
    return reply.decode() if isinstance(reply, bytes) else reply


def connect(url: str) -> "redis.Redis":
    """A client for ``redis://``, ``rediss://`` or ``unix://``; the connection is made at the first command."""
    try:
        # RESP2: all that is needed, and no server of the Redis 6 generation or Valkey treats it differently.
        client = redis.Redis.from_url(url, protocol=2)
        # Options of the URL's query are looked at only when a connection is made; this one is never opened.
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)
    except (ValueError, TypeError, AttributeError, LookupError, redis.RedisError):
        # Not chained: the text of a URL that cannot be parsed may hold the password.
        raise RequestError(
            "the Redis URL cannot be read: write redis://[user:password@]host:port/db, rediss:// or unix://, "
            "with special characters of the password percent-encoded, and in its query only options that redis-py knows"
        ) from None
    return client


@contextlib.contextmanager
def reaching_redis() -> Iterator[None]:
    """Turn whatever Redis or the way to it refuses into ``StoreUnavailable`` with the server's own text."""
    try:
        yield
    except (redis.RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis: {error}") from error
