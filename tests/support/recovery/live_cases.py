"""What is put through the live ordeal, in CI and for hours by ``make soak``."""

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from typing_extensions import override

from tests.support.recovery.cases import AnyCase, Say
from tests.support.recovery.live import LiveScene, live_scene
from tests.support.recovery.live_ordeal import CaughtUp, LiveOrdeal, LiveReport, Moment, Refused, draw, leave_alone
from tests.support.recovery.processes import APART, CLUSTER, ONE, SHARDED, Site
from tests.support.servers.broker import Broker
from tests.support.servers.valkey import Cluster, Sentinel, Valkey, replica_of, wait_until
from unskew.demo.embedded import EmbeddedBroker
from unskew.pipelines.state.journal import Placed, _image, _parse


@dataclass(frozen=True, kw_only=True)
class LiveCase(AnyCase):
    """Topics that are fed in real time.

    ``n_kills``: number of lives that are killed, or, if ``frozen``, stand still while another one takes their place.
    ``told_to_stop``: whether every other life is stopped by a signal and ends by itself. ``append_time``: whether the
    broker stamps records, so that none comes late. ``redis``: a server that is ``kept``, or ``emptied`` with each kill;
    sentinels, with the first kill ``failed over`` to the replica; or a ``cluster``. ``between``: called after each
    kill. ``moment``: draws the moment of a kill.
    """

    append_time: bool = False
    frozen: bool = False
    told_to_stop: bool = False
    redis: Literal["kept", "emptied", "failed over", "cluster"] = "kept"
    between: Callable[[Site], None] = leave_alone
    moment: Callable[[random.Random], Moment] = draw
    site: ClassVar[dict[str, Any]] = {"epoch": "2s", "live": True}

    @override
    def scene(self, folder: Path, seed: int) -> LiveScene:
        return live_scene(folder, across_partitions=self.across_partitions)

    @override
    def create_topic(self, broker: Broker | EmbeddedBroker, topic: str, n_partitions: int) -> None:
        if self.append_time:
            assert isinstance(broker, Broker)
            broker.create_topic(topic, n_partitions, {"message.timestamp.type": "LogAppendTime"})
        else:
            broker.create_topic(topic, n_partitions)

    @override
    def suffer(self, site: Site, seed: int, say: Say) -> LiveReport:
        with self._served(site.redis_url, site.root.parent) as (url, between):
            ordeal = LiveOrdeal(
                replace(site, redis_url=url),
                self.topologies,
                seed,
                between,
                may_empty=self.redis == "emptied",
                bumps=not self.append_time,
                moment=self.moment,
                told_to_stop=self.told_to_stop,
                say=say,
            )
            return (ordeal.freeze_again_and_again if self.frozen else ordeal.kill_again_and_again)(self.n_kills)

    @contextmanager
    def _served(self, redis_url: str, folder: Path) -> Iterator[tuple[str, Callable[[Site], None]]]:
        """The Redis of the ordeal, and what is done between two lives."""
        match self.redis:
            case "kept":
                yield redis_url, self.between
            case "emptied":
                with Valkey(folder / "redis") as server:
                    yield server.url, Emptying(server)
            case "cluster":
                with Cluster(folder / "cluster") as cluster:
                    yield cluster.url, self.between
            case "failed over":
                with (
                    Valkey(folder / "master") as master,
                    replica_of(master, folder / "replica") as replica,
                    Sentinel(folder / "sentinel", master) as sentinel,
                ):
                    wait_until(
                        lambda: sentinel.ask("SENTINEL", "REPLICAS", "mymaster"), "the sentinel knows the replica"
                    )
                    yield sentinel.url, FailingOver(master, replica, sentinel)


class Emptying:
    """Empties a server: by a command, or, every other time, by killing it."""

    def __init__(self, server: Valkey) -> None:
        self._server = server
        self._n_times = 0

    def __call__(self, _site: Site) -> None:
        self._n_times += 1
        if self._n_times % 2:
            self._server.ask("FLUSHALL")
        else:
            self._server.kill()
            self._server.start()


class FailingOver:
    """Kills a master, once, and waits until its replica has taken over."""

    def __init__(self, master: Valkey, replica: Valkey, sentinel: Sentinel) -> None:
        self._master, self._replica, self._sentinel = master, replica, sentinel
        self._done = False

    def __call__(self, _site: Site) -> None:
        if self._done:
            return
        self._done = True
        self._master.kill()
        wait_until(lambda: self._replica.client.role()[0] == b"master", "the replica has taken over")
        wait_until(lambda: self._sentinel.master_port() == self._replica.port, "the sentinel says so")


def forget_journal(site: Site) -> None:
    """Remove what a restart reads of the arrivals that no epoch had made durable yet."""
    for folder in site.root.glob("state*/journal"):
        shutil.rmtree(folder)


def forget_marks(site: Site) -> None:
    """Forget each mark that a record follows, so that records bumped to it would arrive earlier."""

    def forget(facts: list[Placed]) -> list[Placed]:
        followed = [following.floor_us is None for following in facts[1:]] + [False]
        return [
            fact for fact, is_followed in zip(facts, followed, strict=True) if fact.floor_us is None or not is_followed
        ]

    _tamper(site, forget)


def set_clocks_back(site: Site) -> None:
    """Let clocks begin a second behind: whatever was announced last is forgotten."""

    def forget(facts: list[Placed]) -> list[Placed]:
        latest_us = max((fact.clock_us or 0 for fact in facts), default=0) - 1_000_000
        return [fact for fact in facts if fact.clock_us is None or fact.clock_us <= latest_us]

    _tamper(site, forget)


def _tamper(site: Site, forget: Callable[[list[Placed]], list[Placed]]) -> None:
    """Write the journals again, with less in them of each partition."""
    for path in site.root.glob("state*/journal/*.journal"):
        head, found = _parse(path, path.read_bytes())
        facts: dict[str, list[Placed]] = {}
        # A fact may stand twice.
        for fact in dict.fromkeys(found):
            if isinstance(fact, Placed):
                facts.setdefault(fact.place, []).append(fact)
        kept = [fact for ones in facts.values() for fact in forget(ones)]
        path.write_bytes(_image(head, kept))


def caught_up(chance: random.Random) -> CaughtUp:
    """When readers have been told what no epoch has made durable."""
    return CaughtUp(chance.uniform(0.5, 2.5))


REFUSING = "a record refused"


def refused(_chance: random.Random) -> Refused:
    """Draw the refusal of a record: the next life reads it later, so a restart must know the decision."""
    return Refused()


LIVE_CASES = {
    "one process": LiveCase(topologies=[ONE]),
    "three shards": LiveCase(topologies=[SHARDED]),
    "cluster of two": LiveCase(topologies=[CLUSTER], n_kills=3),
    "two apart": LiveCase(topologies=[APART], n_kills=3, across_partitions=False),
    "one, two, one, two processes": LiveCase(topologies=[ONE, CLUSTER]),
    "Redis emptied": LiveCase(topologies=[ONE], n_kills=3, redis="emptied"),
    "Redis failed over": LiveCase(topologies=[ONE], n_kills=2, redis="failed over"),
    "Redis as a cluster": LiveCase(topologies=[ONE], n_kills=2, redis="cluster"),
    "told to stop": LiveCase(topologies=[ONE], n_kills=2, told_to_stop=True),
    REFUSING: LiveCase(topologies=[ONE], n_kills=2, moment=refused),
    "append time": LiveCase(topologies=[ONE], n_kills=3, append_time=True),
    "frozen": LiveCase(topologies=[ONE], n_kills=3, frozen=True),
}

FORGETFUL = {
    name: LiveCase(topologies=[ONE], n_kills=3, between=forget, moment=caught_up)
    for name, forget in {
        "all that was decided": forget_journal,
        "marks": forget_marks,
        "the last second of clocks": set_clocks_back,
    }.items()
}
"""What is forgotten with each kill: readers must be found to have been contradicted."""
