"""The ordeal: a real pipeline in processes of its own, killed at moments drawn by chance, while readers look on.

What every ordeal does is here; what is fed, when a life is killed and what is judged in the end is its kind's:
``Ordeal`` replays a history that ends, ``live_ordeal.LiveOrdeal`` is on topics that are fed in real time.
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

from typing_extensions import override

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


class Feeding(Protocol):
    """A thread that sends records until it is stopped."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


F = TypeVar("F", bound=Feeding)
W = TypeVar("W", bound=RedisWatch)
R = TypeVar("R", bound=Report)


@dataclass
class Harness(ABC, Generic[F, W, R]):
    """One site and what comes over it. ``topologies``: those of its lives, in turn; all give the same shards.

    ``may_empty``: Redis loses its data on the way. ``say``: called with each kill.
    """

    site: Site
    topologies: Sequence[Topology]
    seed: int
    may_empty: bool = field(default=False, kw_only=True)
    say: Callable[[str], None] = field(default=print, kw_only=True)
    report: R = field(init=False)
    n_kills: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._lives: list[Life] = []

    def kill_again_and_again(self, n_kills: int) -> R:
        """Kill ``n_kills`` lives while records come, let the next one come to the end, and judge what is left."""
        self.n_kills = n_kills
        chance = random.Random(self.seed)
        with self.watched() as feeder:
            for number in range(n_kills):
                life = self.start(number)
                came = self.live(life, feeder, chance)
                age_s = life.age_s
                self.end(number, life, chance)
                self.note_kill(f"{life.topology.name}: {came}, {age_s:.2f} s old")
                self.rest(chance)
            self.come_to_the_end(self.start(n_kills), feeder)
        return self.report

    def start(self, number: int) -> Life:
        """Start life ``number``."""
        self._lives.append(Life.start(self.site, self.topologies[number % len(self.topologies)]))
        return self._lives[-1]

    @abstractmethod
    def live(self, life: Life, feeder: F, chance: random.Random) -> str:
        """Wait for the moment at which the life ends, drawn by chance; say what came about."""

    def end(self, _number: int, life: Life, chance: random.Random) -> None:
        life.kill(chance)

    def rest(self, chance: random.Random) -> None:
        """Between a kill and the next start."""

    @abstractmethod
    def come_to_the_end(self, life: Life, feeder: F) -> None:
        """Let the last life do all that is left, until it has ended."""

    def note_kill(self, text: str) -> None:
        self.report.kills.append(text)
        self.say(f"{len(self.report.kills):4d}  {text}")

    @abstractmethod
    def cast(self) -> tuple[F, FilesWatch, W]:
        """Who feeds, and who looks on."""

    @abstractmethod
    def judge(self, feeder: F, files: FilesWatch, online: W) -> list[str]:
        """All faults of what is left, and of what was seen meanwhile."""

    @contextmanager
    def watched(self) -> Iterator[F]:
        """Feed and look on while the body lasts, and then judge; the body comes to the end."""
        feeder, files, online = self.cast()
        for thread in (feeder, files, online):
            thread.start()
        try:
            yield feeder
        finally:
            for life in self._lives:
                life.destroy()
            feeder.stop()
            files.finish()
            online.finish()
        self.report.looks = (
            f"{sum(map(len, files.seen.values()))} files seen in {files.looks} looks, "
            f"{len(online.exact)} exact reads in {online.looks} looks at Redis"
        )
        self.report.faults += self.judge(feeder, files, online)
        if not (files.looks and online.looks and online.exact):
            self.report.faults.append("nobody looked on")


@dataclass
class Ordeal(Harness[Feeder, RedisWatch, Report]):
    """A history that ends is read, and what is left must be what a run without interruption leaves.

    ``reference``: the topology of that run; the first of the others if None.
    """

    reference: Topology | None = None

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        self.report = Report(self.seed)

    @override
    def live(self, life: Life, feeder: Feeder, chance: random.Random) -> str:
        # Each life finds records waiting, and more come while it runs.
        half = len(self.site.scene.records) // (self.n_kills + 1) // 2
        feeder.allow(half)
        return instants.draw(chance).await_in(life, self.site, lambda: feeder.allow(half))

    @override
    def come_to_the_end(self, life: Life, feeder: Feeder) -> None:
        """Send the rest and wait until the life ends by itself; meanwhile run the reference without interruption."""
        feeder.finish()
        reference = Life.start(self._reference, self.reference or self.topologies[0])
        self._lives.append(reference)
        life.await_end()
        reference.await_end()

    @override
    def cast(self) -> tuple[Feeder, FilesWatch, RedisWatch]:
        feeder = Feeder(self.site.bootstrap, self.site.scene, per_s=RECORDS_PER_S)
        return feeder, FilesWatch(self.site), RedisWatch(self.site, may_empty=self.may_empty)

    @override
    def judge(self, feeder: Feeder, files: FilesWatch, online: RedisWatch) -> list[str]:
        return Verdict(self.site, self._reference).judge(files, online, seed=self.seed)

    @property
    def _reference(self) -> Site:
        return replace(self.site, root=self.site.root / "reference", prefix=f"{self.site.prefix}-reference")
