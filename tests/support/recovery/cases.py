"""What is put through an ordeal, in CI and for hours by ``make soak``: first what every case has."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from typing_extensions import override

from tests.support.recovery.harness import Ordeal, Report
from tests.support.recovery.processes import APART, CLUSTER, ONE, SHARDED, Site, Topology
from tests.support.recovery.scene import Scene, scene
from tests.support.servers.broker import Broker
from unskew.demo.embedded import EmbeddedBroker

RECORDS_PER_LIFE = 160

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class AnyCase(ABC):
    """``topologies``: of the lives, in turn. ``site``: what is particular about where they live."""

    topologies: Sequence[Topology]
    n_kills: int = 4
    across_partitions: bool = True
    site: ClassVar[dict[str, Any]] = {}

    def run(
        self, broker: Broker | EmbeddedBroker, redis_url: str, folder: Path, *, seed: int, say: Say = print
    ) -> Report:
        """One ordeal on topics, keys and folders of its own."""
        played = self.scene(folder / "scene", seed)
        for topic, n_partitions in played.partitions.items():
            self.create_topic(broker, topic, n_partitions)
        site = Site(played, broker.bootstrap, redis_url, folder / "site", folder.name, **self.site)
        return self.suffer(site, seed, say)

    @abstractmethod
    def scene(self, folder: Path, seed: int) -> Scene:
        """Definitions and what comes."""

    def create_topic(self, broker: Broker | EmbeddedBroker, topic: str, n_partitions: int) -> None:
        broker.create_topic(topic, n_partitions)

    @abstractmethod
    def suffer(self, site: Site, seed: int, say: Say) -> Report:
        """The ordeal of a site whose topics are there."""

    def killed(self, n_kills: int) -> Self:
        """The same, with so many kills."""
        return replace(self, n_kills=n_kills)


@dataclass(frozen=True, kw_only=True)
class Case(AnyCase):
    """A history is replayed. ``reference``: the topology of the run that nothing interrupts."""

    n_kills: int = 5
    reference: Topology = ONE
    two_streams: bool = False

    @override
    def scene(self, folder: Path, seed: int) -> Scene:
        return scene(
            folder,
            (self.n_kills + 1) * RECORDS_PER_LIFE,
            seed=seed,
            across_partitions=self.across_partitions,
            two_streams=self.two_streams,
        )

    @override
    def suffer(self, site: Site, seed: int, say: Say) -> Report:
        return Ordeal(site, self.topologies, seed, self.reference, say=say).kill_again_and_again(self.n_kills)


class EarlyCase(Case):
    """What an epoch brings is encoded and written before its end."""

    site: ClassVar[dict[str, Any]] = {"module": "tests.support.recovery.early"}


CASES = {
    "one process": Case(topologies=[ONE], n_kills=7),
    "three shards": Case(topologies=[SHARDED], reference=SHARDED),
    "encoded early": EarlyCase(topologies=[ONE]),
    "two streams": Case(topologies=[ONE], two_streams=True),
    "two processes apart": Case(topologies=[APART], n_kills=3, across_partitions=False),
    "one, two, one, two processes": Case(topologies=[ONE, CLUSTER, ONE, CLUSTER]),
}

WARM_UP = Case(topologies=[ONE], n_kills=0, two_streams=True)
"""To the end once: from then on the kernel is compiled, and what is killed is not a compiler."""
