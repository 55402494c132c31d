"""The ordeal: a real pipeline in separate processes is killed at random moments until its history is over.

It must leave the same results as a run without interruption, and readers that watched all the time must never have
seen anything go back.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from tests.support.recovery import instants
from tests.support.recovery.processes import Life, Site, Topology
from tests.support.recovery.scene import Feeder
from tests.support.recovery.verdict import Verdict
from tests.support.recovery.watch import FilesWatch, RedisWatch

RECORDS_PER_S = 150.0


@dataclass
class Report:
    """What was done to a site, and what was wrong with it afterwards; ``faults`` is empty where all is well."""

    seed: int
    kills: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    looks: str = ""

    def __str__(self) -> str:
        return "\n".join([f"seed {self.seed}, {len(self.kills)} kills; {self.looks}", *self.kills, *self.faults])


@dataclass
class Ordeal:
    """One site and the interruptions that it suffers.

    ``topologies``: those of its lives, in turn; all give the same shards. ``reference``: the topology of the run
    without interruption; the first of the others if None. ``may_empty``: Redis loses its data on the way. ``say``: is
    called with a text about each kill.
    """

    site: Site
    topologies: Sequence[Topology]
    seed: int
    reference: Topology | None = None
    may_empty: bool = False
    say: Callable[[str], None] = print
    report: Report = field(init=False)

    def __post_init__(self) -> None:
        self.report = Report(self.seed)
        self._lives: list[Life] = []

    def kill_again_and_again(self, n_kills: int) -> Report:
        """Kill ``n_kills`` lives, let the next one come to the end of the history, and judge what is left."""
        chance = random.Random(self.seed)
        with self.watched() as feeder:
            for number in range(n_kills):
                self.live_and_be_killed(number, feeder, chance, len(self.site.scene.records) // (n_kills + 1))
            feeder.finish()
            self.come_to_the_end(self.start(n_kills))
        return self.report

    def come_to_the_end(self, life: Life) -> None:
        """Wait for the end of a life that nobody ends, and meanwhile, elsewhere, run without interruption."""
        reference = Life.start(self._reference, self.reference or self.topologies[0])
        self._lives.append(reference)
        life.await_end()
        reference.await_end()

    def live_and_be_killed(self, number: int, feeder: Feeder, chance: random.Random, n_records: int) -> None:
        """One life: it finds records waiting, more come while it runs, and it ends at a moment drawn by chance."""
        life = self.start(number)
        feeder.allow(n_records // 2)
        came = instants.draw(chance).await_in(life, self.site, lambda: feeder.allow(n_records // 2))
        age_s = life.age_s
        life.kill(chance)
        self.report.kills.append(f"{life.topology.name}: {came}, {age_s:.2f} s old")
        self.say(f"{len(self.report.kills):4d}  {self.report.kills[-1]}")

    @property
    def _reference(self) -> Site:
        return replace(self.site, root=self.site.root / "reference", prefix=f"{self.site.prefix}-reference")

    def start(self, number: int) -> Life:
        """Start life ``number``."""
        self._lives.append(Life.start(self.site, self.topologies[number % len(self.topologies)]))
        return self._lives[-1]

    @contextmanager
    def watched(self) -> Iterator[Feeder]:
        """Feed and look on while the body lasts, and then judge; the body comes to the end."""
        feeder = Feeder(self.site.bootstrap, self.site.scene, per_s=RECORDS_PER_S)
        files, online = FilesWatch(self.site), RedisWatch(self.site, may_empty=self.may_empty)
        watches = files, online
        for thread in (feeder, *watches):
            thread.start()
        try:
            yield feeder
        finally:
            for life in self._lives:
                life.destroy()
            feeder.stop()
            for watch in watches:
                watch.finish()
        self.report.looks = (
            f"{sum(map(len, files.seen.values()))} files seen in {files.looks} looks, "
            f"{len(online.exact)} exact reads in {online.looks} looks at Redis"
        )
        self.report.faults += Verdict(self.site, self._reference).judge(files, online, seed=self.seed)
        if not (files.looks and online.looks and online.exact):
            self.report.faults.append("nobody looked on")
