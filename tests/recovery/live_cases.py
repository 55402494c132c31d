"""The topologies that are put through the live ordeal, in CI and for hours by ``make soak``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.recovery.live import live_scene
from tests.recovery.live_ordeal import LiveOrdeal, LiveReport, leave_alone
from tests.recovery.processes import APART, CLUSTER, ONE, SHARDED, Site, Topology
from tests.servers.broker import Broker
from unskew.pipelines.embedded import EmbeddedBroker

EPOCH = "2s"


@dataclass(frozen=True)
class LiveCase:
    """``topologies``: of the lives, in turn. ``append_time``: the broker stamps records, so none is bumped but by itself."""

    topologies: Sequence[Topology]
    n_kills: int = 5
    across_partitions: bool = True
    append_time: bool = False
    between: Callable[[Site], None] = leave_alone

    def run(
        self,
        broker: Broker | EmbeddedBroker,
        redis_url: str,
        folder: Path,
        *,
        seed: int,
        say: Callable[[str], None] = print,
    ) -> LiveReport:
        """One ordeal on topics, keys and folders of its own."""
        played = live_scene(folder / "scene", across_partitions=self.across_partitions)
        for topic, n_partitions in played.partitions.items():
            if self.append_time:
                assert isinstance(broker, Broker)
                broker.create_topic(topic, n_partitions, {"message.timestamp.type": "LogAppendTime"})
            else:
                broker.create_topic(topic, n_partitions)
        site = Site(played, broker.bootstrap, redis_url, folder / "site", folder.name, EPOCH, live=True)
        ordeal = LiveOrdeal(site, self.topologies, seed, self.between, bumps=not self.append_time, say=say)
        return ordeal.kill_again_and_again(self.n_kills)

    def killed(self, n_kills: int) -> "LiveCase":
        """The same, with so many kills."""
        return replace(self, n_kills=n_kills)


LIVE_CASES = {
    "one process": LiveCase([ONE]),
    "three shards": LiveCase([SHARDED]),
    "cluster of two": LiveCase([CLUSTER]),
    "two apart": LiveCase([APART], across_partitions=False),
    "one, two, one": LiveCase([ONE, CLUSTER]),
    "append time": LiveCase([ONE], append_time=True),
}
