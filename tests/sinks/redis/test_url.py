"""The client that a URL describes; and no text anywhere shows the URL's secrets."""

import logging
import pickle
from pathlib import Path

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from redis.sentinel import SentinelConnectionPool, SentinelManagedSSLConnection

from unskew.features.errors import RequestError, StoreUnavailable
from unskew.serving.online import OnlineReader
from unskew.sinks.redis.keyspace import connect
from unskew.sinks.redis.server import Server
from unskew.sinks.redis.url import Address
from unskew.sinks.redis.writer import RedisWriter

SECRET = "s3cr3t"


def pool(url: str) -> redis.ConnectionPool:
    return connect(url).connection_pool


def credentials(options) -> tuple[str, ...]:
    return options["credential_provider"].get_credentials()


def test_one_server_is_reached_as_its_url_says():
    plain = pool("redis://app:p%40ss%2F%23@example.org:7000/3?socket_timeout=2.5")
    assert plain.connection_class is redis.Connection
    assert {name: plain.connection_kwargs[name] for name in ("host", "port", "db", "socket_timeout", "protocol")} == {
        "host": "example.org",
        "port": 7000,
        "db": 3,
        "socket_timeout": 2.5,
        "protocol": 2,
    }
    assert credentials(plain.connection_kwargs) == ("app", "p@ss/#")
    assert credentials(pool(f"redis://:{SECRET}@example.org").connection_kwargs) == (SECRET,)
    assert "credential_provider" not in pool("redis://").connection_kwargs
    socket = pool(f"unix://app:{SECRET}@/run/redis.sock?db=2")
    assert (socket.connection_kwargs["path"], socket.connection_kwargs["db"]) == ("/run/redis.sock", 2)
    assert credentials(socket.connection_kwargs) == ("app", SECRET)


def test_tls_is_as_the_query_says(tmp_path: Path):
    authority, certificate, key = (tmp_path / name for name in ("ca.pem", "cert.pem", "key.pem"))
    for file in (authority, certificate, key):
        file.touch()
    query = f"ssl_ca_certs={authority}&ssl_certfile={certificate}&ssl_keyfile={key}&ssl_password={SECRET}"

    for url in ("rediss://a:1/0", "rediss+sentinel://a:1/mymaster"):
        found = pool(f"{url}?{query}")
        made = found.connection_class(**found.connection_kwargs)
        assert isinstance(made, redis.SSLConnection)
        assert (made.ca_certs, made.certfile, made.keyfile) == (str(authority), str(certificate), str(key))
        assert (made.cert_reqs.name, made.check_hostname) == ("CERT_REQUIRED", True)
        assert SECRET not in repr(found) + repr(made)
    without = pool("rediss://a:1?ssl_cert_reqs=none")
    assert without.connection_class(**without.connection_kwargs).cert_reqs.name == "CERT_NONE"
    unchecked = pool("rediss://a:1?ssl_check_hostname=no")
    assert not unchecked.connection_class(**unchecked.connection_kwargs).check_hostname
    with pytest.raises(RequestError, match=r"ssl_ca_certs=.*gone\.pem, and there is no such file"):
        connect(f"rediss://:{SECRET}@a?ssl_ca_certs={tmp_path}/gone.pem")


def test_sentinels_are_asked_for_the_master_that_the_path_names():
    found = pool("rediss+sentinel://app:one@a:1,[::1]:2,c/my.master-1/4?sentinel_username=who&sentinel_password=two")

    assert isinstance(found, SentinelConnectionPool)
    assert found.connection_class is SentinelManagedSSLConnection
    assert (found.service_name, found.connection_kwargs["db"]) == ("my.master-1", 4)
    assert credentials(found.connection_kwargs) == ("app", "one")
    asked = [sentinel.connection_pool.connection_kwargs for sentinel in found.sentinel_manager.sentinels]
    assert [(one["host"], one["port"]) for one in asked] == [("a", 1), ("::1", 2), ("c", 26379)]
    assert [credentials(one) for one in asked] == [("who", "two")] * 3
    # One that is away does not hold up the others for long.
    assert {one["socket_connect_timeout"] for one in asked} == {1.0}
    assert _sentinels(f"redis+sentinel://:{SECRET}@a/b")[0].get("credential_provider") is None
    assert {one["socket_timeout"] for one in _sentinels("redis+sentinel://a/b?socket_timeout=9")} == {9.0}


def _sentinels(url: str):
    return [one.connection_pool.connection_kwargs for one in pool(url).sentinel_manager.sentinels]


def test_a_cluster_begins_at_any_of_the_nodes_named():
    address = Address.parse("rediss+cluster://app:one@a:1,[::1]:2,c")

    assert address.hosts == (("a", 1), ("::1", 2), ("c", 6379))
    assert (address.tls, address.user, address.service) == (True, "app", None)
    assert credentials(address.options) == ("app", "one")
    for end in ("", "/", "/0"):
        assert Address.parse(f"redis+cluster://a{end}").hosts == (("a", 6379),)


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://",
        "redis+cluster://:{}@",
        "redis+cluster://:{}@a:1,",
        "redis+cluster://:{}@a:99999",
        "redis+cluster://:{}@a:1/1",
        "redis+cluster://:{}@a:1?db=1",
        "redis+cluster://:{}@a:1?ssl_min_version=5",
        "redis+cluster://:{}@a:1?ssl_ca_certs=/",
        "redis+cluster://:x{}/y@a:1",
        "redis+cluster://:1/{}@a:1",
        "redis+cluster://:1?{}@a:1",
        "redis+cluster://:1#{}@a:1",
        "redis+sentinel://:{}@a:1",
        "redis+sentinel://:{}@a:1/",
        "redis+sentinel://:{}@a:1/my master",
        "redis+sentinel://:{}@a:1/mymaster/first",
        "redis+sentinel://:{}@a:1/mymaster?unknown=1",
        "redis+sentinel://u:1/{}@a:1",
        "redis+sentinel://u:1/{}@a:1/mymaster",
        "redis+sentinel://:{}@a:1/mymaster?sentinel_passwort=x",
        "redis+replica://:{}@a:1",
        "rediss+unix://:{}@a:1",
        "redis://:{}#@a:1/0",
        "redis://:1#{}@a:1/0",
        "redis://:1/{}@a:1/0",
        "unix://u:/{}@/run/redis.sock",
        "redis://:1?{}@a:1/0",
        "redis://a:{}",
        "rediss://:{}@a?ssl_cert_reqs=maybe",
        "redis://:{}@a?ssl_ca_certs=/",
        "{}",
        "",
    ],
)
def test_a_url_that_cannot_be_read_is_refused_and_not_shown(url):
    for use in (connect, OnlineReader, lambda given: RedisWriter(given, "unskew", "main")):
        with pytest.raises(RequestError, match="the Redis URL cannot be read: write redis://") as refused:
            use(url.format(SECRET))
        assert SECRET not in str(refused.value)
        assert refused.value.__cause__ is None
        assert refused.value.__suppress_context__


SHAPES = st.sampled_from(
    [
        "redis://",
        "rediss://",
        "unix://",
        "redis+sentinel://",
        "rediss+sentinel://",
        "redis+cluster://",
        "rediss+cluster://",
    ]
)


@given(
    SHAPES,
    st.text(st.sampled_from("a1:/@?#,[]=&%.-"), max_size=8),
    st.text(st.sampled_from("a1:/@?#,[]=&%.-"), max_size=8),
)
def test_whatever_stands_around_a_secret_no_text_shows_it(shape, before, after):
    url = f"{shape}{before}:{SECRET}@{after}"
    try:
        address = Address.parse(url)
    except RequestError as refused:
        told = str(refused)
    else:
        told = repr(address)
        if address.service is not None or not address.hosts:
            told += repr(address.client()) + repr(address.client().connection_pool)
    assert SECRET not in told


@pytest.mark.parametrize(
    "url",
    [
        "redis://app:{}@127.0.0.1:1/0",
        "rediss://app:{}@127.0.0.1:1/0",
        "unix://app:{}@/nowhere.sock",
        "redis+sentinel://app:{}@127.0.0.1:1/mymaster?sentinel_password={}",
        "redis+cluster://app:{}@127.0.0.1:1,127.0.0.1:2",
    ],
)
def test_a_server_that_is_not_there_is_unavailable_and_nothing_said_of_it_holds_the_password(url, caplog):
    given = url.format(SECRET, SECRET)
    caplog.set_level(logging.DEBUG)

    for use in (
        lambda: RedisWriter(given, "unskew", "main").look(),
        lambda: RedisWriter(given, "unskew", "main").publish_registry("{}"),
        lambda: OnlineReader(given).views(),
        lambda: OnlineReader(given).keys("view"),
    ):
        with pytest.raises(StoreUnavailable, match=r"^Redis") as unavailable:
            use()
        chain = [unavailable.value, unavailable.value.__cause__, unavailable.value.__context__]
        assert all(SECRET not in f"{error} {error!r}" for error in chain)
    assert SECRET not in caplog.text
    assert SECRET not in repr(vars(Server(given)))


def test_nothing_is_connected_before_it_is_used():
    for url in ("redis://127.0.0.1:1", "redis+sentinel://127.0.0.1:1/mymaster", "redis+cluster://127.0.0.1:1"):
        OnlineReader(url).close()
        RedisWriter(url, "unskew", "main").close()


def test_an_address_is_not_written_down_with_its_secrets():
    for url in (f"redis+cluster://app:{SECRET}@a:1", f"redis+sentinel://a/b?sentinel_password={SECRET}"):
        assert SECRET not in repr(Address.parse(url))
    assert SECRET not in repr(Address.parse(f"rediss://a:1?ssl_password={SECRET}"))
    assert SECRET.encode() not in pickle.dumps(repr(Server(f"redis+cluster://app:{SECRET}@a:1")))


@pytest.mark.parametrize(("query", "timeouts"), [("", (10.0, 5.0)), ("?socket_timeout=0.2", (0.2, 5.0))])
def test_a_server_that_stands_still_is_not_waited_for_without_end(query, timeouts):
    for url in (f"redis://127.0.0.1:1{query}", f"redis+sentinel://127.0.0.1:1/service{query}"):
        options = Address.parse(url).client().get_connection_kwargs()
        assert (options["socket_timeout"], options["socket_connect_timeout"]) == timeouts
