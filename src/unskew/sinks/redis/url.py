"""URLs of Redis deployments, and the clients that they describe.

    redis://[[user]:password@]host[:port][/db]                                  one server; rediss:// the same over TLS
    unix://[[user]:password@]/path/to/socket[?db=0]                             one server on this machine
    redis+sentinel://[[user]:password@]host[:port][,host[:port]...]/service[/db]
                                                                                the master that these sentinels name
    redis+cluster://[[user]:password@]host[:port][,host[:port]...]              the cluster of which these are nodes
    rediss+sentinel://, rediss+cluster://                                       over TLS

User and password are percent-encoded. The query holds options of redis-py. Those for TLS are ``ssl_ca_certs`` and
``ssl_ca_path`` (the authorities that may sign the server's certificate; without them, those that this machine trusts),
``ssl_certfile``, ``ssl_keyfile`` and ``ssl_password`` (the client's own certificate), ``ssl_cert_reqs`` (``required``,
which is the default, ``optional`` or ``none``) and ``ssl_check_hostname``. ``sentinel_username`` and
``sentinel_password`` are the credentials for sentinels that require them.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.cluster import PRIMARY, REDIS_ALLOWED_KEYS, ClusterNode, ClusterPipeline
from redis.connection import parse_url
from redis.credentials import UsernamePasswordCredentialProvider
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel
from typing_extensions import override

from unskew.features.errors import RequestError

Client = redis.Redis | redis.RedisCluster

SENTINEL_PORT = 26379
NODE_PORT = 6379
# A sentinel that does not answer must not delay the use of those that do.
SENTINEL_TIMEOUT_S = 1.0
TIMEOUTS_S = {"socket_timeout": 10.0, "socket_connect_timeout": 5.0}
"""What a URL may change. Without them, a server that stands still would be waited for in silence."""
CLUSTER_TRIES = 3
"""The number of times redis-py looks up the nodes again for one command; longer waits are left to ``Patience``."""

# From some versions on, Python's own parser refuses several servers of which one is an IPv6 address.
_SEVERAL = re.compile(r"(?i:redis(s?)\+(sentinel|cluster))://([^/?#]*)([^?#]*)(?:\?(.*))?", re.DOTALL)
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@/]+)(?::(\d{1,5}))?")
# The names that a sentinel accepts.
_SERVICE = re.compile(r"[A-Za-z0-9._-]+")
_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")


@dataclass(frozen=True, kw_only=True)
class Address:
    """The address and credentials of a Redis deployment; its text shows no secrets.

    ``options``: options of redis-py's connections; credentials are in an object. ``hosts``: sentinels or nodes; the
    host of a single server is in ``options``. ``service``: the sentinels' name of the master.
    """

    hosts: tuple[tuple[str, int], ...] = ()
    service: str | None = None
    tls: bool = False
    user: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    sentinel_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Parse a URL.

        Raises ``RequestError`` if it cannot be read, in a message that shows nothing of it, or names a file that does
        not exist.
        """
        try:
            address = _parse(url)
            address.try_options()
        except (ValueError, TypeError, AttributeError, LookupError, redis.RedisError):
            # Not chained: the text of a URL that cannot be parsed may hold the password.
            raise RequestError(
                "the Redis URL cannot be read: write redis://[user:password@]host:port/db, rediss:// or unix://, "
                "redis+sentinel://[user:password@]host:port,host:port/service/db or "
                "redis+cluster://[user:password@]host:port,host:port (rediss+... over TLS), "
                "with special characters of the password percent-encoded, and in its query only options that redis-py "
                "knows"
            ) from None
        for name in _FILES:
            path = address.options.get(name)
            if path is not None and not Path(path).exists():
                raise RequestError(f"the Redis URL says {name}={path}, and there is no such file")
        return address

    @override
    def __str__(self) -> str:
        where = self.hosts or ((self.options.get("host", "localhost"), self.options.get("port", 6379)),)
        kind = "+sentinel" if self.service is not None else "+cluster" if self.hosts else ""
        at = self.options.get("path") or ",".join(f"{host}:{port}" for host, port in where)
        return f"{'unix' if 'path' in self.options else f'redis{kind}'}://{at}" + (
            f"/{self.service}" if self.service else ""
        )

    def client(self, timeouts_s: Mapping[str, float] = TIMEOUTS_S) -> Client:
        """Return a client; one of a cluster looks up the nodes at once, any other connects at its first command.

        ``timeouts_s``: as ``TIMEOUTS_S``; what the URL says goes before them.
        """
        if self.service is not None:
            return self._master(self._sentinels(), timeouts_s)
        if self.hosts:
            nodes = [ClusterNode(host, port) for host, port in self.hosts]  # type: ignore[no-untyped-call]
            retry = Retry(NoBackoff(), CLUSTER_TRIES)
            return _Cluster(startup_nodes=nodes, retry=retry, ssl=self.tls, **{**timeouts_s, **self.options})
        return redis.Redis.from_pool(redis.ConnectionPool(**{**timeouts_s, **self.options}))

    def _sentinels(self) -> "_Sentinels":
        # Each sentinel is asked once; a caller that waits for a master asks again.
        retry = Retry(NoBackoff(), 0)
        options = {**self.sentinel_options, "ssl": self.tls, "retry": retry}
        return _Sentinels(self.hosts, sentinel_kwargs=options)  # type: ignore[no-untyped-call]

    def _master(self, sentinels: "_Sentinels", timeouts_s: Mapping[str, float] = TIMEOUTS_S) -> redis.Redis:
        client = sentinels.master_for(self.service, ssl=self.tls, **{**timeouts_s, **self.options})  # type: ignore[no-untyped-call]
        master: redis.Redis = client
        return master

    def try_options(self) -> None:
        """Make a connection without opening it, because redis-py checks options only when it makes one."""
        pools = []
        if self.service is not None:
            sentinels = self._sentinels()
            pools = [client.connection_pool for client in (self._master(sentinels), *sentinels.sentinels)]
        elif self.hosts:
            kind = redis.SSLConnection if self.tls else redis.Connection
            pools = [redis.ConnectionPool(connection_class=kind, **self.options)]
            # The client of a cluster would silently ignore any other option.
            if not self.options.keys() <= set(REDIS_ALLOWED_KEYS):
                raise ValueError
        else:
            pools = [redis.ConnectionPool(**self.options)]
        for pool in pools:
            pool.connection_class(**pool.connection_kwargs)


class _Cluster(redis.RedisCluster):
    """A cluster client of redis-py that also knows nodes without slots, as ASK may name one before its first slot."""

    @override
    def get_node(
        self, host: str | None = None, port: int | None = None, node_name: str | None = None
    ) -> ClusterNode | None:
        node: ClusterNode | None = super().get_node(host, port, node_name)  # type: ignore[no-untyped-call]
        if node is None and node_name is not None:
            name, _, number = node_name.rpartition(":")
            node = ClusterNode(name, int(number), PRIMARY)  # type: ignore[no-untyped-call]
        return node

    @override
    def pipeline(self, transaction: bool | None = None, shard_hint: str | None = None) -> ClusterPipeline:
        made: ClusterPipeline = super().pipeline(transaction, shard_hint)  # type: ignore[no-untyped-call]
        made.get_node = self.get_node  # type: ignore[method-assign]
        return made


class _Sentinels(Sentinel):
    @override
    def discover_master(self, service_name: str) -> tuple[str, int]:
        """Find the master as redis-py does; if no sentinel names one, the error gives each sentinel's reason."""
        reasons = []
        for place, sentinel in enumerate(self.sentinels):
            at = "{host}:{port}".format_map(sentinel.connection_pool.connection_kwargs)
            try:
                masters = sentinel.sentinel_masters()
            except (redis.RedisError, OSError) as error:
                reasons.append(f"{at}: {error}")
                continue
            master = masters.get(service_name) if isinstance(masters, dict) else None
            if master is None:
                reasons.append(f"{at} does not know {service_name!r}")
            elif not self.check_master_state(master, service_name):  # type: ignore[no-untyped-call]
                reasons.append(f"{at} considers it down")
            else:
                # The next time, this sentinel is asked first.
                self.sentinels[0], self.sentinels[place] = sentinel, self.sentinels[0]
                return master["ip"], master["port"]
        raise MasterNotFoundError(f"no sentinel names a master {service_name!r}: {'; '.join(reasons)}")


def _parse(url: str) -> Address:
    several = _SEVERAL.fullmatch(url.strip())
    if several is None:
        parts = urlsplit(url)
        path, query = parts.path, parts.query
    else:
        path, query = several[4], several[5] or ""
    if "#" in url or "@" in path:
        # The password is not encoded: the text after these characters would be lost, or treated as something to show.
        raise ValueError
    if query:
        parse_qsl(query, strict_parsing=True)
    if several is None:
        return _one_server(url)
    tls, kind = bool(several[1]), several[2].lower()
    who, _, where = several[3].rpartition("@")
    # redis-py converts the options of the query to their types.
    options = parse_url(f"redis://{who}@?{query}" if who else f"redis://?{query}")  # type: ignore[no-untyped-call]
    user, options = _with_credentials(options)
    hosts = tuple(_hosts(where, SENTINEL_PORT if kind == "sentinel" else NODE_PORT))
    if kind == "cluster":
        if path not in {"", "/", "/0"} or options.pop("db", 0) != 0:
            raise ValueError
        return Address(hosts=hosts, tls=tls, user=user, options=options)
    service, _, db = path.removeprefix("/").partition("/")
    if not _SERVICE.fullmatch(service):
        raise ValueError
    if db:
        options["db"] = int(db)
    own = {name: options.pop(f"sentinel_{name}") for name in ("username", "password") if f"sentinel_{name}" in options}
    _, sentinel_options = _with_credentials(own)
    sentinel_options |= {"socket_timeout": SENTINEL_TIMEOUT_S, "socket_connect_timeout": SENTINEL_TIMEOUT_S}
    sentinel_options |= {name: value for name, value in options.items() if name.startswith(("socket_", "ssl_"))}
    return Address(hosts=hosts, service=service, tls=tls, user=user, options=options, sentinel_options=sentinel_options)


def _one_server(url: str) -> Address:
    user, options = _with_credentials(parse_url(url))  # type: ignore[no-untyped-call]
    path = urlsplit(url).path
    if "path" not in options and not re.fullmatch(r"/?\d*", path):
        raise ValueError
    return Address(user=user, options=options)


def _with_credentials(options: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Return the user, and the options with user and password moved into an object whose text does not show them.

    The protocol is version 2, which ``resp`` and ``resp_replies`` speak; nothing needs another one.
    """
    others = dict(options)
    if "credential_provider" in others:
        raise ValueError
    user, password = others.pop("username", None), others.pop("password", None)
    if user is not None or password is not None:
        others["credential_provider"] = UsernamePasswordCredentialProvider(user, password)
    return user, {**others, "protocol": 2}


def _hosts(text: str, port: int) -> Iterator[tuple[str, int]]:
    for one in text.split(","):
        found = _HOST.fullmatch(one)
        if found is None or int(found[2] or port) > 65535:
            raise ValueError
        yield unquote(found[1].strip("[]")), int(found[2] or port)
