"""Valkey in its usual deployments: servers that can be killed and paused, a cluster of them, and sentinels."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from unskew.demo.embedded import _valkey_path
from unskew.features.errors import StoreUnavailable

WITHIN_S = 60.0
N_SLOTS = 16384
# A master does not wait for more replicas to ask for its data.
_QUICK = {"repl-diskless-sync-delay": 0}


def wait_until(claim: Callable[[], Any], what: str, within_s: float = WITHIN_S) -> Any:
    """What the claim says once it is true; errors of Redis mean that it is not yet."""
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        with contextlib.suppress(redis.RedisError, StoreUnavailable):
            if found := claim():
                return found
        time.sleep(0.01)
    raise AssertionError(f"not within {within_s:g} s: {what}")


def quiet_port() -> int:
    """A free port below those that connections get, so that it is still free when a server is started again."""
    for port in random.sample(range(11_000, 32_000), 1000):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


class _Started(ABC):
    """Servers that are there while a ``with`` statement lasts."""

    @abstractmethod
    def start(self) -> Self: ...

    @abstractmethod
    def kill(self) -> None: ...

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.kill()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


class Valkey(_Started):
    """One server process on a port that it keeps, in memory alone unless ``options`` say more."""

    def __init__(self, folder: Path, options: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        self.options = dict(options or {})
        self.port = quiet_port()
        self.client = self.client_as()
        self._process: subprocess.Popen[bytes] | None = None

    def client_as(self, password: str | None = None) -> redis.Redis:
        """A client that tries once."""
        return redis.Redis(port=self.port, password=password, protocol=2, retry=Retry(NoBackoff(), 0))

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> Self:
        """Start it and wait until it answers; again after a ``kill``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            words = [str(_valkey_path()), *self._words()]
            self._process = subprocess.Popen(words, stdout=log, stderr=log)
        wait_until(self._answers, f"an answer from port {self.port}")
        return self

    def _words(self) -> list[str]:
        options = {"bind": "127.0.0.1", "port": self.port, "dir": self.folder, "save": "", **_QUICK, **self.options}
        return [word for name, value in options.items() for word in (f"--{name}", str(value))]

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self.folder / "log").read_text()[-1000:]
        try:
            return bool(self.client.ping())
        except (redis.AuthenticationError, redis.BusyLoadingError):
            return True

    def kill(self) -> None:
        """``kill -9``: what it held in memory is gone."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        self.client.close()

    def n_calls(self, command: str) -> int:
        """How often a command was called."""
        return int(self.client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])

    def signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stand still, connections open, while the body lasts."""
        self.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.signal(signal.SIGCONT)

    @contextlib.contextmanager
    def out_of_memory(self) -> Iterator[None]:
        """Refuse whatever needs memory while the body lasts."""
        self.client.config_set("maxmemory", 1)
        yield
        self.client.config_set("maxmemory", 0)

    @contextlib.contextmanager
    def demoted(self) -> Iterator[None]:
        """Be the replica of a primary that nobody reaches, and so read-only, while the body lasts."""
        self.client.replicaof("127.0.0.1", 1)
        yield
        self.client.replicaof("NO", "ONE")

    def ask(self, *words: Any) -> Any:
        """The reply to any command."""
        return self.client.execute_command(*words)

    def end_connections(self) -> None:
        """Close all connections of clients."""
        self.client.client_kill_filter(_type="normal", skipme=False)
        self.client.close()


class Sentinel(Valkey):
    """A single sentinel that decides alone and soon considers a master down. ``lines``: more configuration."""

    def __init__(self, folder: Path, master: Valkey, name: str = "mymaster", *, lines: Sequence[str] = ()) -> None:
        super().__init__(folder)
        self._name = name
        self._lines = [
            f"sentinel monitor {name} 127.0.0.1 {master.port} 1",
            f"sentinel down-after-milliseconds {name} 600",
            f"sentinel failover-timeout {name} 4000",
            *lines,
        ]

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self.port}/{self._name}"

    def _words(self) -> list[str]:
        file = self.folder / "sentinel.conf"
        lines = [f"port {self.port}", "bind 127.0.0.1", f"dir {self.folder}", *self._lines]
        file.write_text("\n".join(lines))
        return [str(file), "--sentinel"]

    def master_port(self, name: str = "mymaster") -> int:
        return int(self.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)[1])


@contextlib.contextmanager
def replica_of(master: Valkey, folder: Path, options: Mapping[str, Any] | None = None) -> Iterator[Valkey]:
    """A replica in step with its master."""
    with Valkey(folder, options) as replica:
        # Told in its configuration, it would begin a second later.
        replica.client.replicaof("127.0.0.1", master.port)
        wait_until(lambda: replica.client.info("replication")["master_link_status"] == "up", "the replica is in step")
        yield replica


class Cluster(_Started):
    """A cluster of masters, each with an even part of the slots; nodes may be added that have none."""

    def __init__(self, folder: Path, n_masters: int = 3, n_spares: int = 0) -> None:
        self._folder = folder
        self._n_masters = n_masters
        self.nodes = [self._node() for _ in range(n_masters + n_spares)]
        # Nodes without slots that nobody uses.
        self.spares = set(self.nodes[n_masters:])

    def _node(self) -> Valkey:
        bus = quiet_port()
        options = {
            "cluster-enabled": "yes",
            "cluster-port": bus,
            "cluster-node-timeout": 1000,
            "cluster-config-file": "nodes.conf",
            # A master that gave its last slot away stays one.
            "cluster-allow-replica-migration": "no",
        }
        node = Valkey(self._folder / f"node{bus}", options)
        node.bus = bus  # type: ignore[attr-defined]
        return node

    @property
    def url(self) -> str:
        return f"redis+cluster://{','.join(f'127.0.0.1:{node.port}' for node in self.nodes)}"

    def start(self) -> Self:
        ends = [N_SLOTS * number // self._n_masters for number in range(self._n_masters + 1)]
        for node in self.nodes:
            node.start()
        for epoch, (node, first, behind) in enumerate(zip(self.nodes, ends, ends[1:], strict=False), start=1):
            node.ask("CLUSTER", "ADDSLOTSRANGE", first, behind - 1)
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for node in self.nodes[1:]:
            self._meet(node)
        self.settle()
        return self

    def add(self, *, roles: Sequence[bytes] = (b"master",)) -> Valkey:
        """A node without slots: one that was left so before, else one more."""
        spare = next((node for node in self.spares if node.client.role()[0] in roles), None)
        if spare is None:
            spare = self._node().start()
            self.nodes.append(spare)
            self._meet(spare)
            self.settle()
        self.spares.discard(spare)
        return spare

    def add_replica(self, master: Valkey) -> Valkey:
        """A replica of one of the masters, in step."""
        node = self.add(roles=(b"master", b"slave"))
        node.ask("CLUSTER", "REPLICATE", self.id_of(master))
        wait_until(lambda: node.client.info("replication").get("master_link_status") == "up", "the replica is in step")
        return node

    def _meet(self, node: Valkey) -> None:
        self.nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus)  # type: ignore[attr-defined]

    def settle(self) -> None:
        """Wait until every node knows every other and finds the cluster well."""
        for node in self.nodes:
            wait_until(lambda node=node: self._is_well(node), "the cluster is well")

    def _is_well(self, node: Valkey) -> bool:
        told = node.ask("CLUSTER INFO")
        return told["cluster_state"] == "ok" and int(told["cluster_known_nodes"]) == len(self.nodes)

    def id_of(self, node: Valkey) -> str:
        return str(node.ask("CLUSTER", "MYID").decode())

    def forget(self, node: Valkey, name: str) -> None:
        """Let the others forget a node that is dead, by its id."""
        self.nodes.remove(node)
        for other in self.nodes:
            other.ask("CLUSTER", "FORGET", name)

    @property
    def masters(self) -> list[Valkey]:
        """The nodes that have slots, as the first node sees it."""
        ports = {told[2][1] for told in self.nodes[0].ask("CLUSTER SLOTS")}
        return [node for node in self.nodes if node.port in ports]

    def owner_of(self, slot: int, asked: Valkey | None = None) -> Valkey:
        """The node that holds a slot, as a node sees it: the first one, unless another is to be asked."""
        for first, last, master, *_ in (asked or self.nodes[0]).ask("CLUSTER SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == master[1])
        raise LookupError(slot)

    def begin_move(self, slot: int, source: Valkey, target: Valkey) -> None:
        """From here on the target gets what is new in the slot."""
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(target))

    def move_keys(self, slot: int, source: Valkey, target: Valkey, n_keys: int = 10_000) -> list[bytes]:
        """Move keys of the slot, at most so many."""
        keys: list[bytes] = source.ask("CLUSTER", "GETKEYSINSLOT", slot, n_keys)
        if keys:
            source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
        return keys

    def end_move(self, slot: int, target: Valkey) -> None:
        """All keys are moved: the slot is the target's, whose word is the newest, and all have heard it."""
        target.ask("CLUSTER", "BUMPEPOCH")
        # Only masters take the order; a node that another test left as a replica hears of it.
        masters = [node for node in self.nodes if node.client.role()[0] == b"master"]
        for node in sorted(masters, key=lambda node: node is not target):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", self.id_of(target))
        for node in self.nodes:
            wait_until(lambda node=node: self._has_heard(node, target), "the newest word has come round")
            wait_until(lambda node=node: self.owner_of(slot, node) is target, "all know the slot's new owner")

    def _has_heard(self, node: Valkey, of: Valkey) -> bool:
        epoch = of.ask("CLUSTER INFO")["cluster_my_epoch"]
        return node.ask("CLUSTER NODES")[f"127.0.0.1:{of.port}"]["epoch"] == epoch

    def move(self, slot: int, target: Valkey) -> None:
        """Move a slot and its keys."""
        source = self.owner_of(slot)
        self.begin_move(slot, source, target)
        self.move_keys(slot, source, target)
        self.end_move(slot, target)

    def flush(self) -> None:
        """Empty it."""
        for node in self.nodes:
            with contextlib.suppress(redis.ReadOnlyError):
                node.ask("FLUSHALL")

    def kill(self) -> None:
        """``kill -9`` every node."""
        for node in self.nodes:
            node.kill()


_SHARED = pytest.StashKey[Cluster]()


@pytest.fixture
def cluster(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of three masters, empty; one for all tests of a run, which leave its slots where they were."""
    if _SHARED not in pytestconfig.stash:
        shared = Cluster(tmp_path_factory.mktemp("cluster"), n_spares=1)
        pytestconfig.add_cleanup(shared.kill)
        pytestconfig.stash[_SHARED] = shared.start()
    shared = pytestconfig.stash[_SHARED]
    shared.flush()
    yield shared
    shared.settle()
