"""A Redis deployment as the writer and the readers see it: a client made on demand, and errors of one kind."""

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import redis
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ClusterError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
)
from typing_extensions import override

from unskew.features.errors import LayoutError, RequestError, StoreUnavailable, UnskewError
from unskew.sinks.redis.url import TIMEOUTS_S, Address, Client

# Answers that redis-py gives without their first word, or that have none: a part of the text, and what to do.
_IN_TEXT: Sequence[tuple[str, str]] = (
    (
        "DB index is out of range",
        "the server does not have the database at the end of the URL: write /0 there, or raise the server's databases",
    ),
    (
        "without any password configured",
        "the server takes no password from the default user: leave the password out of the URL, or give a user too",
    ),
    (
        "invalid username-password pair",
        "correct the user and password in the URL, with special characters percent-encoded, or enable the user",
    ),
    ("invalid password", "correct the password in the URL, with special characters percent-encoded"),
    ("Authentication required", "give user and password in the URL: redis://user:password@host:port/db"),
    (
        "No permissions to access a key",
        "allow the keys that begin with the prefix to this user; docs/operations.md lists what unskew needs",
    ),
    ("Cluster mode is not enabled", "this is a single server: write redis:// in its URL"),
    ("unknown command 'SENTINEL'", "this is not a sentinel: write redis://host:port/db for a server"),
)

_REMEDIES: Sequence[tuple[str, type[Exception] | None, str]] = (
    ("OOM", OutOfMemoryError, "the server is at its maxmemory: raise it, or free memory"),
    (
        "READONLY",
        ReadOnlyError,
        "this server is a replica: give the address of the master, of sentinels or of a cluster",
    ),
    ("NOPERM", NoPermissionError, "allow the command to this user; docs/operations.md lists what unskew needs"),
    ("MISCONF", None, "the server cannot save its data: see to its disk"),
    ("LOADING", BusyLoadingError, "the server is reading its data from disk"),
    ("BUSY", None, "a script blocks the server: end it with SCRIPT KILL"),
    ("CLUSTERDOWN", ClusterDownError, "the cluster lacks a master for some slots"),
    ("MASTERDOWN", MasterDownError, "the replica has no master"),
    ("NOREPLICAS", None, "the server awaits replicas: see min-replicas-to-write"),
)
"""The first word of an answer, its class in redis-py, and what to do."""


class Server:
    """One server, the master that sentinels name, or a cluster.

    ``source``: a client, or a URL of the form that ``url`` describes. It connects at first use, and may be used by
    several threads. ``timeout_s``: how long a connection or a reply is waited for, where the URL does not say it; a
    client keeps its own. Raises ``RequestError`` for a URL that cannot be read.
    """

    def __init__(self, source: Client | str, *, timeout_s: float | None = None) -> None:
        self._timeouts_s = TIMEOUTS_S if timeout_s is None else dict.fromkeys(TIMEOUTS_S, timeout_s)
        self._address = Address.parse(source) if isinstance(source, str) else None
        self._client = None if isinstance(source, str) else source
        self._making = threading.Lock()

    @override
    def __str__(self) -> str:
        return "a client of redis-py" if self._address is None else str(self._address)

    @property
    def is_of_url(self) -> bool:
        """Whether a URL names it; else somebody else's client leads to it."""
        return self._address is not None

    @property
    def is_cluster(self) -> bool:
        """Whether some of its servers may answer while others do not."""
        if self._address is not None:
            return bool(self._address.hosts) and self._address.service is None
        return isinstance(self._client, redis.RedisCluster)

    def reaching(self) -> "_Reaching":
        """Give a client to a ``with`` statement; errors of Redis or of the connection become ``StoreUnavailable``."""
        return _Reaching(self)

    def explained(self, error: BaseException) -> UnskewError | None:
        """Return the error for one of Redis or of the connection, with the server's text; None for any other."""
        if isinstance(error, UnicodeDecodeError):
            return LayoutError(
                f"Redis holds bytes that are not UTF-8, which unskew did not write ({error.object[:40]!r}); "
                "give a URL, or a client without decode_responses, and the error names their key"
            )
        if not isinstance(error, redis.RedisError | RedisClusterException | OSError):
            return None
        text = _text(error)
        if text.startswith(("MOVED ", "ASK ")) and isinstance(self._client, redis.Redis):
            return RequestError(f"Redis: {text}; this server is a node of a cluster: write redis+cluster:// in its URL")
        if isinstance(error, RedisClusterException):
            self._forget()
        whose = "" if text.startswith("Redis ") else "Redis: "
        return StoreUnavailable(f"{whose}{text}{self._asked_as(error)}{_remedy(error) or self._where(error)}")

    def close(self) -> None:
        """Close the connections."""
        client, self._client = self._client, None if self._address else self._client
        if client is not None:
            client.close()
            sentinels = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
            if sentinels is not None:
                sentinels.close()

    def made(self) -> Client:
        """Return the client, made now if there is none."""
        client = self._client
        if client is None:
            with self._making:
                client = self._client
                if client is None:
                    assert self._address is not None
                    client = self._client = self._address.client(self._timeouts_s)
        return client

    def _forget(self) -> None:
        """Discard a cluster's client: all nodes that it knew may be gone, so the next begins with those of the URL."""
        if self._address is not None:
            self._client = None

    def _where(self, error: Exception) -> str:
        """Return the address that did not answer, and what to do; nothing if the server did."""
        answered = isinstance(error, redis.ResponseError | AuthenticationError | ClusterError)
        if answered or not isinstance(error, redis.RedisError | RedisClusterException | OSError):
            return ""
        return f" ({self}: start it, or correct the address in --redis-url or UNSKEW_REDIS_URL)"

    def _asked_as(self, error: Exception) -> str:
        refused = isinstance(error, AuthenticationError) or isinstance(error.__cause__, AuthenticationError)
        if not refused or self._address is None:
            return ""
        user = self._address.user
        return f" (asked as user {user!r})" if user else " (asked without a user's name)"


class _Reaching:
    """What ``Server.reaching`` returns. A generator would cost a read more."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def __enter__(self) -> Client:
        try:
            return self._server.made()
        except Exception as error:
            # A client of a cluster connects when it is made.
            self.__exit__(None, error, None)
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None and (explained := self._server.explained(error)) is not None:
            raise explained from error


def time_us(client: Client) -> int:
    """Return the server's wall clock in microseconds; of a cluster's servers, the earliest.

    Raises what redis-py raises.
    """
    answer: Any = client.time()  # By node in a cluster.
    times = answer.values() if isinstance(answer, dict) else [answer]
    return min(int(seconds) * 1_000_000 + int(us) for seconds, us in times)


def checked(replies: Sequence[Any], keys: Sequence[str | bytes]) -> list[Any]:
    """Return the replies of commands, one for each of ``keys``; errors among them are instances of their classes.

    Raises ``LayoutError`` for a key of another type than the command needs, and what redis-py gave for another error.
    """
    for reply, key in zip(replies, keys, strict=True):
        if isinstance(reply, redis.ResponseError) and "WRONGTYPE" in str(reply):
            name = key.decode(errors="backslashreplace") if isinstance(key, bytes) else key
            raise LayoutError(
                f"the key {name!r} in Redis has another type than unskew gives it, so unskew did not write it; delete it, "
                "and a running or restarted unskew run writes it again; if another program wrote it, give unskew a --prefix "
                "of its own"
            )
        if isinstance(reply, Exception):
            raise reply
    return list(replies)


def _remedy(error: Exception) -> str:
    """Return what to do about an answer of the server; redis-py leaves out the first word of some, but has a class."""
    for part, remedy in _IN_TEXT:
        if part in str(error):
            return f" ({remedy})"
    for word, kind, remedy in _REMEDIES:
        if str(error).startswith(f"{word} ") or (kind is not None and isinstance(error, kind)):
            return f" ({remedy})"
    return ""


def _text(error: Exception) -> str:
    """Return the server's text, with the first word of MOVED and ASK, which redis-py leaves out."""
    word = "MOVED " if isinstance(error, MovedError) else "ASK " if isinstance(error, AskError) else ""
    return f"{word}{error}"
