"""What the URL of a Redis says, and the client that goes there.

    redis://[[user]:password@]host[:port][/db]                                  one server; rediss:// the same over TLS
    unix://[[user]:password@]/path/to/socket[?db=0]                             one server on this machine
    redis+sentinel://[[user]:password@]host[:port][,host[:port]...]/service[/db]
                                                                                the master that these sentinels name
    redis+cluster://[[user]:password@]host[:port][,host[:port]...]              the cluster of which these are nodes
    rediss+sentinel://, rediss+cluster://                                       over TLS

User and password are percent-encoded. The query holds options of redis-py; of TLS these: ``ssl_ca_certs``, ``ssl_ca_path``
(who may have signed the server's certificate, else whom this machine trusts), ``ssl_certfile``, ``ssl_keyfile``,
``ssl_password`` (a certificate of one's own), ``ssl_cert_reqs`` (``required``, the default, ``optional`` or ``none``) and
``ssl_check_hostname``. Sentinels that ask for credentials of their own get ``sentinel_username`` and ``sentinel_password``.
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
# A sentinel that is away must not hold up those that are there.
SENTINEL_TIMEOUT_S = 1.0
CLUSTER_TRIES = 3
"""How often redis-py looks up the nodes anew for one command: who waits longer than that waits knowingly, see ``Patience``."""

_SCHEME = re.compile(r"redis(s?)\+(sentinel|cluster)")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:@/]+)(?::(\d{1,5}))?")
# What a sentinel takes for a name.
_SERVICE = re.compile(r"[A-Za-z0-9._-]+")
_FILES = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile")


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a Redis is and how to get in; what is secret is in no text of it.

    ``options``: of redis-py's connections, credentials apart. ``hosts``: sentinels or nodes; of one server it stands in the
    options. ``service``: what sentinels call the master.
    """

    hosts: tuple[tuple[str, int], ...] = ()
    service: str | None = None
    tls: bool = False
    user: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    sentinel_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Raises ``RequestError``, which shows nothing of the URL, where it cannot be read or names files that are not there."""
        try:
            address = _parse(url)
            address.try_options()
        except (ValueError, TypeError, AttributeError, LookupError, redis.RedisError):
            # Not chained: the text of a URL that cannot be parsed may hold the password.
            raise RequestError(
                "the Redis URL cannot be read: write redis://[user:password@]host:port/db, rediss:// or unix://, "
                "redis+sentinel://[user:password@]host:port,host:port/service/db or "
                "redis+cluster://[user:password@]host:port,host:port (rediss+... over TLS), "
                "with special characters of the password percent-encoded, and in its query only options that redis-py knows"
            ) from None
        for name in _FILES:
            path = address.options.get(name)
            if path is not None and not Path(path).exists():
                raise RequestError(f"the Redis URL says {name}={path}, and there is no such file")
        return address

    def client(self) -> Client:
        """A client. Of one server it connects at the first command, as of sentinels; of a cluster it asks for the nodes at once."""
        if self.service is not None:
            return self._master(self._sentinels())
        if self.hosts:
            nodes = [ClusterNode(host, port) for host, port in self.hosts]  # type: ignore[no-untyped-call]
            retry = Retry(NoBackoff(), CLUSTER_TRIES)
            return _Cluster(startup_nodes=nodes, retry=retry, ssl=self.tls, **self.options)
        return redis.Redis.from_pool(redis.ConnectionPool(**self.options))

    def _sentinels(self) -> "_Sentinels":
        # Asked once each: who waits for a master asks again.
        retry = Retry(NoBackoff(), 0)
        options = {**self.sentinel_options, "ssl": self.tls, "retry": retry}
        return _Sentinels(self.hosts, sentinel_kwargs=options)  # type: ignore[no-untyped-call]

    def _master(self, sentinels: "_Sentinels") -> redis.Redis:
        client = sentinels.master_for(self.service, ssl=self.tls, **self.options)  # type: ignore[no-untyped-call]
        master: redis.Redis = client
        return master

    def try_options(self) -> None:
        """Options are looked at only when a connection is made; this one is never opened."""
        pools = []
        if self.service is not None:
            sentinels = self._sentinels()
            pools = [client.connection_pool for client in (self._master(sentinels), *sentinels.sentinels)]
        elif self.hosts:
            kind = redis.SSLConnection if self.tls else redis.Connection
            pools = [redis.ConnectionPool(connection_class=kind, **self.options)]
            # Others it would leave out in silence.
            if not self.options.keys() <= set(REDIS_ALLOWED_KEYS):
                raise ValueError
        else:
            pools = [redis.ConnectionPool(**self.options)]
        for pool in pools:
            pool.connection_class(**pool.connection_kwargs)


class _Cluster(redis.RedisCluster):
    """As redis-py has it, which knows only nodes with slots; ASK also names one that is about to get its first."""

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
        """As redis-py does, with the reason of each sentinel where none names a master."""
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
                reasons.append(f"{at} knows no {service_name!r}")
            elif not self.check_master_state(master, service_name):  # type: ignore[no-untyped-call]
                reasons.append(f"{at} holds it to be down")
            else:
                # Who knew is asked first the next time.
                self.sentinels[0], self.sentinels[place] = sentinel, self.sentinels[0]
                return master["ip"], master["port"]
        raise MasterNotFoundError(f"no sentinel names a master {service_name!r}: {'; '.join(reasons)}")


def _parse(url: str) -> Address:
    parts = urlsplit(url)
    if "#" in url or "@" in parts.path:
        # A password that is not encoded: what stands behind would be left out, or taken for something to be shown.
        raise ValueError
    if parts.query:
        parse_qsl(parts.query, strict_parsing=True)
    several = _SCHEME.fullmatch(parts.scheme)
    if several is None:
        return _one_server(url)
    tls, kind = bool(several[1]), several[2]
    who, _, where = parts.netloc.rpartition("@")
    # Of the query redis-py knows the types.
    options = parse_url(f"redis://{who}@?{parts.query}" if who else f"redis://?{parts.query}")  # type: ignore[no-untyped-call]
    user, options = _with_credentials(options)
    hosts = tuple(_hosts(where, SENTINEL_PORT if kind == "sentinel" else NODE_PORT))
    if kind == "cluster":
        if parts.path not in {"", "/", "/0"} or options.pop("db", 0) != 0:
            raise ValueError
        return Address(hosts=hosts, tls=tls, user=user, options=options)
    service, _, db = parts.path.removeprefix("/").partition("/")
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
    """The user, and the options with user and password in an object of their own: no text shows what it holds.

    The protocol is that which ``resp`` and ``resp_replies`` speak; nothing needs another.
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
