"""The topologies that are put through the ordeal, in CI and for hours by ``make soak``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.support.recovery.harness import Ordeal, Report
from tests.support.recovery.processes import APART, CLUSTER, ONE, SHARDED, Site, Topology
from tests.support.recovery.scene import scene
from tests.support.servers.broker import Broker
from unskew.demo.embedded import EmbeddedBroker

RECORDS_PER_LIFE = 160


@dataclass(frozen=True)
class Case:
    """``topologies``: of the lives, in turn. ``reference``: of the run that nothing interrupts."""

    topologies: Sequence[Topology]
    reference: Topology = ONE
    n_kills: int = 5
    across_partitions: bool = True
    two_streams: bool = False

    def run(
        self,
        broker: Broker | EmbeddedBroker,
        redis_url: str,
        folder: Path,
        *,
        seed: int,
        say: Callable[[str], None] = print,
    ) -> Report:
        """One ordeal on topics, keys and folders of its own."""
        played = scene(
            folder / "scene",
            (self.n_kills + 1) * RECORDS_PER_LIFE,
            seed=seed,
            across_partitions=self.across_partitions,
            two_streams=self.two_streams,
        )
        for topic, n_partitions in played.partitions.items():
            broker.create_topic(topic, n_partitions)
        site = Site(played, broker.bootstrap, redis_url, folder / "site", prefix=folder.name)
        return Ordeal(site, self.topologies, seed, self.reference, say=say).kill_again_and_again(self.n_kills)

    def killed(self, n_kills: int) -> "Case":
        """The same, with so many kills."""
        return replace(self, n_kills=n_kills)


CASES = {
    "one process": Case([ONE], n_kills=7),
    "three shards": Case([SHARDED], reference=SHARDED),
    "two streams": Case([ONE], two_streams=True),
    "two processes apart": Case([APART], n_kills=3, across_partitions=False),
    "one, two, one, two processes": Case([ONE, CLUSTER, ONE, CLUSTER]),
}

WARM_UP = Case([ONE], n_kills=0, two_streams=True)
"""To the end once: from then on the kernel is compiled, and what is killed is not a compiler."""
