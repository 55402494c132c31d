"""Refusals of a server: each becomes ``StoreUnavailable`` with its text; waiting rows are kept, and sent later."""

import contextlib
import logging
import re
import threading

import pytest

from tests.support.flows import KEYS, NOW, clock, send, step, values, writing
from tests.support.servers.certificates import certified
from tests.support.servers.tls import TlsFront
from tests.support.servers.valkey import Cluster, Sentinel, Valkey, quiet_port, wait_until
from unskew.features.errors import RequestError, StoreUnavailable
from unskew.serving.online import OnlineReader
from unskew.sinks.patience import Patience
from unskew.sinks.redis.cluster_slots import slot_of
from unskew.sinks.redis.keyspace import clock_key

ALL = dict.fromkeys(KEYS, 2)
NEEDED = [
    *(
        "+hset",
        "+hget",
        "+hgetall",
        "+hdel",
        "+del",
        "+persist",
        "+get",
        "+set",
        "+hmget",
        "+scan",
        "+exists",
        "+info",
        "+pttl",
        "+type",
    ),
    *("+multi", "+exec", "+watch", "+unwatch"),
]
NEEDED_IN_A_CLUSTER = ["+cluster|slots", "+command", "+asking"]


@pytest.fixture
def one(tmp_path):
    with Valkey(tmp_path / "one") as server:
        yield server


@contextlib.contextmanager
def read_only(server: Valkey):
    # A master that it does not find: it keeps what it has.
    server.client.replicaof("127.0.0.1", quiet_port())
    yield
    server.client.replicaof("NO", "ONE")


@contextlib.contextmanager
def full(server: Valkey):
    server.client.config_set("maxmemory", 1)
    yield
    server.client.config_set("maxmemory", 0)


@contextlib.contextmanager
def alone(server: Valkey):
    server.client.config_set("min-replicas-to-write", 1)
    yield
    server.client.config_set("min-replicas-to-write", 0)


@contextlib.contextmanager
def locked(server: Valkey):
    server.client.config_set("requirepass", "another")
    server.end_connections()
    yield
    with server.client_as("another") as client:
        client.config_set("requirepass", "")


@contextlib.contextmanager
def not_allowed(server: Valkey):
    server.ask("ACL", "SETUSER", "default", "-hset")
    yield
    server.ask("ACL", "SETUSER", "default", "+hset")


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (read_only, "READONLY You can't write against a read only replica"),
        (full, "OOM command not allowed when used memory > 'maxmemory'"),
        (alone, "NOREPLICAS Not enough good replicas to write"),
        (locked, "Authentication required"),
        (not_allowed, "NOPERM User default has no permissions to run the 'hset' command"),
    ],
)
def test_a_refusal_is_told_in_the_servers_words_and_what_waits_goes_through_later(one, state, text):
    writer = writing(one.url)
    send(writer, step(20, 1))
    writer.add(step(30, 2))

    with state(one):
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match=text):
                writer.flush(NOW)
        assert writer.n_waiting == len(KEYS)
    writer.flush(NOW)

    assert (values(one.url), clock(one.url), writer.lost) == (ALL, 29, 0)
    writer.close()


def test_a_server_that_is_loading_is_waited_for(tmp_path):
    with Valkey(tmp_path / "one", {"loading-process-events-interval-bytes": 1024}) as server:
        writer = writing(server.url)
        send(writer, step(20, 2))
        server.client.save()
        server.kill()
        # For each key half a millisecond: slow enough to be seen.
        server.options["key-load-delay"] = 500
        server.start()

        writer.add(step(30, 2))
        with pytest.raises(StoreUnavailable, match="is loading the dataset in memory"):
            writer.flush(NOW)
        wait_until(lambda: not server.client.info("persistence")["loading"], "it is loaded")
        writer.flush(NOW)

        assert (values(server.url), clock(server.url), writer.lost) == (ALL, 29, 0)
        writer.close()


def test_wrong_credentials_are_told_with_the_users_name_and_without_the_password(one, caplog):
    caplog.set_level(logging.DEBUG)
    one.ask("ACL", "SETUSER", "app", "on", ">right", "~*", "&*", "+@all")
    where = f"127.0.0.1:{one.port}"
    writing(f"redis://app:right@{where}").close()

    for url, told in {
        f"redis://app:s3cret@{where}": r"invalid username-password pair or user is disabled.* \(asked as user 'app'\)",
        f"redis://nobody:s3cret@{where}": r"invalid username-password pair.* \(asked as user 'nobody'\)",
        f"redis://:s3cret@{where}": r"\(asked without a user's name\)",
    }.items():
        with pytest.raises(StoreUnavailable, match=told) as refused:
            writing(url)
        assert "s3cret" not in str(refused.value) + caplog.text


@pytest.mark.parametrize(
    ("user", "place", "told"),
    [
        (
            "",
            "/99",
            "DB index is out of range (the server does not have the database at the end of the URL: write /0 there",
        ),
        (":secret@", "", "(asked without a user's name) (the server takes no password from the default user: leave"),
        ("app:wrong@", "", "(asked as user 'app') (correct the user and password in the URL"),
        ("few:right@", "", "User few has no permissions to run the 'get' command (allow the command to this user"),
        ("few:right@", "/1", "User few has no permissions to run the 'select' command (allow the command to this user"),
        ("other:right@", "", "No permissions to access a key (allow the keys that begin with the prefix to this user"),
    ],
)
def test_a_server_that_refuses_a_reader_is_unavailable_and_the_error_says_what_to_set(one, user, place, told):
    for name, rights in {
        "app": ["~*", "+@all"],
        "few": ["~*", "+@all", "-get", "-select"],
        "other": ["~x:*", "+@all"],
    }.items():
        one.ask("ACL", "SETUSER", name, "reset", "on", ">right", *rights)
    reader = OnlineReader(f"redis://{user}127.0.0.1:{one.port}{place}")

    with pytest.raises(StoreUnavailable, match=re.escape(told)) as refused:
        reader.views()

    assert str(refused.value).startswith("Redis: ")
    reader.close()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Redis: no", "Redis is away: no; the flow waits"),
        ("Redis Cluster cannot be connected", "Redis is away: Redis Cluster cannot be connected; the flow waits"),
    ],
)
def test_a_store_that_is_away_is_named_once(caplog, text, line):
    errors = [StoreUnavailable(text)]

    def action() -> int:
        if errors:
            raise errors.pop()
        return 7

    assert Patience("Redis", threading.Event()).until_done(action) == 7
    assert line in caplog.text


def test_few_commands_are_needed(one, cluster):
    """Those that the documentation names; what else redis-py tries at the start of a connection may be refused."""
    for server, url, needed in ((one, one.url, NEEDED), (None, cluster.url, [*NEEDED, *NEEDED_IN_A_CLUSTER])):
        for node in [server] if server else cluster.nodes:
            node.ask("ACL", "SETUSER", "few", "on", ">word", "~unskew:*", "-@all", *needed)
        writer = writing(url.replace("://", "://few:word@"))
        send(writer, step(20, 1))
        send(writer, step(30, 2))

        assert (values(url), clock(url)) == (ALL, 29)
        assert values(url.replace("://", "://few:word@")) == ALL
        writer.close()


def test_a_node_of_a_cluster_is_no_server_by_itself_and_a_server_by_itself_is_no_cluster(one, cluster, tmp_path):
    stranger = next(
        node for node in cluster.nodes if node is not cluster.owner_of(slot_of(clock_key("unskew", "main")))
    )
    with pytest.raises(RequestError, match=r"MOVED .*; this server is a node of a cluster: write redis\+cluster://"):
        writing(stranger.url)
    with pytest.raises(StoreUnavailable, match=r"Cluster mode is not enabled on this node .*write redis:// in its URL"):
        writing(f"redis+cluster://127.0.0.1:{one.port}")
    options = {"cluster-enabled": "yes", "cluster-port": quiet_port()}
    with (
        Valkey(tmp_path / "new", options) as new,
        pytest.raises(StoreUnavailable, match="All slots are not covered"),
    ):
        writing(f"redis+cluster://127.0.0.1:{new.port}")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return certified(tmp_path_factory.mktemp("tls") / "certificates")


def test_over_tls_only_a_server_that_the_authority_knows_is_talked_to(one, certificates, tmp_path):
    stranger = certified(tmp_path / "stranger")
    with TlsFront(one.port, certificates) as front:
        url = f"rediss://127.0.0.1:{front.port}/0"
        trusted = f"{url}?ssl_ca_certs={certificates.authority}"
        writer = writing(trusted)
        send(writer, step(20, 2))
        # Several reads for one chunk, both ways.
        send(writer, step(30, 2, [f"k{number}" for number in range(6_000)]))
        writer.close()
        assert len(values(one.url)) == len(KEYS) + 6_000
        assert front.n_encrypted >= 1
        assert clock(trusted) == 29
        assert clock(f"{url}?ssl_cert_reqs=none") == 29

        for refused in (url, f"{url}?ssl_ca_certs={stranger.authority}"):
            with pytest.raises(StoreUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
                writing(refused)


def test_a_server_may_ask_for_a_certificate(one, certificates):
    with TlsFront(one.port, certificates, asks_clients=True) as front:
        url = f"rediss://127.0.0.1:{front.port}/0?ssl_ca_certs={certificates.authority}"
        writer = writing(f"{url}&ssl_certfile={certificates.certificate}&ssl_keyfile={certificates.key}")
        send(writer, step(20, 2))
        writer.close()
        assert values(one.url) == ALL

        # How the server hangs up is its affair.
        with pytest.raises(StoreUnavailable, match=r"Redis: .*"):
            writing(url)


def test_sentinels_and_their_master_are_reached_over_tls(certificates, tmp_path):
    master = Valkey(tmp_path / "master")
    with master, TlsFront(master.port, certificates) as before_master:
        # Sentinels name the master's address as they know it: that of what stands in front.
        named = Valkey(tmp_path / "named")
        named.port = before_master.port
        with Sentinel(tmp_path / "sentinel", named) as sentinel, TlsFront(sentinel.port, certificates) as before:
            url = f"rediss+sentinel://127.0.0.1:{before.port}/mymaster?ssl_ca_certs={certificates.authority}"
            writer = writing(url)
            send(writer, step(20, 2))
            writer.close()

            assert (values(master.url), clock(url)) == (ALL, 19)
            assert before.n_encrypted >= 1
            assert before_master.n_encrypted >= 1
            with pytest.raises(StoreUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
                writing(url.partition("?")[0])


def test_a_cluster_is_reached_over_tls(cluster: Cluster, certificates):
    with contextlib.ExitStack() as opened:
        fronts = [opened.enter_context(TlsFront(node.port, certificates)) for node in cluster.nodes]
        # What nodes say of themselves is where they are reached from outside.
        for node, front in zip(cluster.nodes, fronts, strict=True):
            node.client.config_set("cluster-announce-port", front.port)
        ports = {front.port for front in fronts}
        for node in cluster.nodes:
            wait_until(
                lambda node=node: {told[2][1] for told in node.ask("CLUSTER SLOTS")} <= ports, "the ports are known"
            )
        hosts = f"127.0.0.1:{fronts[0].port},127.0.0.1:{fronts[1].port}"
        url = f"rediss+cluster://{hosts}?ssl_ca_certs={certificates.authority}"
        try:
            writer = writing(url)
            send(writer, step(20, 2))
            writer.close()

            assert (values(url), clock(url)) == (ALL, 19)
            assert all(front.n_encrypted for front in fronts[:3])
            with pytest.raises(StoreUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
                writing(url.partition("?")[0])
        finally:
            for node in cluster.nodes:
                node.client.config_set("cluster-announce-port", 0)
            own = {node.port for node in cluster.nodes}
            for node in cluster.nodes:
                wait_until(
                    lambda node=node: {told[2][1] for told in node.ask("CLUSTER SLOTS")} <= own, "their own ports again"
                )
