"""The live ordeal: a pipeline on topics that are fed in real time is killed and started again, and no reader who was
told an exact value is contradicted by what the log and the archive say of its instant in the end.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from typing_extensions import override

from tests.support.recovery import instants
from tests.support.recovery.harness import Harness, Report
from tests.support.recovery.instants import Instant
from tests.support.recovery.live import LONGEST_S, LiveFeeder, LiveScene, LiveWatch
from tests.support.recovery.live_verdict import Figures, LiveVerdict, stored
from tests.support.recovery.processes import Life, Site
from tests.support.recovery.watch import FilesWatch

CAUGHT_UP_WITHIN_S = 60.0
LITTLE = 100


@dataclass(frozen=True)
class CaughtUp:
    """A moment ``delay_s`` after a life says that it has read all there is: then it makes marks, and readers are told
    what no epoch has made durable yet.
    """

    delay_s: float
    name: str = "caught up"

    def await_in(self, life: Life, _site: Site, at_work: Callable[[], None]) -> str:
        """Wait for it, or until the life has ended or has had enough time; say what came about.

        ``at_work``: called as soon as it has caught up.
        """
        deadline_s = time.monotonic() + CAUGHT_UP_WITHIN_S
        while not has_caught_up(life):
            if life.ended or time.monotonic() > deadline_s:
                return f"{self.name} (did not come)"
            time.sleep(0.02)
        at_work()
        time.sleep(self.delay_s)
        return self.name


def has_caught_up(life: Life) -> bool:
    """Whether each process said, with its last word, that it has read something and that hardly anything is left.

    A partition whose clock is in the future waits for the others.
    """
    return all(status.get("consumed") and status["lag"] <= LITTLE for status in life.statuses())


@dataclass(frozen=True)
class Refused:
    """The moment at which a life reports that it refused a record that lies too far in the future.

    When the next life reads the record again, the record is not as far ahead any more.
    """

    name: str = "refused"

    def await_in(self, life: Life, site: Site, at_work: Callable[[], None]) -> str:
        """Wait for it; say what came about. ``at_work``: called again and again once the life has caught up."""
        came = CaughtUp(0.0).await_in(life, site, at_work)
        deadline_s = time.monotonic() + CAUGHT_UP_WITHIN_S
        while not any(status["dead_by_kind"].get("time") for status in life.statuses() if status):
            if life.ended or time.monotonic() > deadline_s:
                return f"{self.name} (did not come, {came})"
            time.sleep(0.5)
            at_work()
        return self.name


Moment = Instant | CaughtUp | Refused


def draw(chance: random.Random) -> Moment:
    """A moment: most often some time after it has caught up; else any, or the very step in which something is half
    done.
    """
    return CaughtUp(chance.uniform(0.0, 2.5)) if chance.random() < 0.6 else instants.draw(chance)


@dataclass
class LiveReport(Report):
    """``figures``: what readers were told, and how much of it was contradicted."""

    figures: Figures = field(default_factory=Figures)


TAKEN_OVER = "the lease of this process was taken over"


def leave_alone(_site: Site) -> None:
    """Between two lives nothing happens."""


@dataclass
class LiveOrdeal(Harness[LiveFeeder, LiveWatch, LiveReport]):
    """Topics that have no end are read, and no exact read may be contradicted by what is left.

    ``between``: called after each kill, before the next start. ``bumps``: whether some event must have been bumped,
    else the ordeal showed nothing. ``moment``: draws the moment of a kill. ``told_to_stop``: whether every other life
    is stopped by a signal instead of being killed.
    """

    between: Callable[[Site], None] = leave_alone
    bumps: bool = True
    moment: Callable[[random.Random], Moment] = draw
    told_to_stop: bool = False

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        self.report = LiveReport(self.seed)

    @override
    def live(self, life: Life, feeder: LiveFeeder, chance: random.Random) -> str:
        return self.moment(chance).await_in(life, self.site, feeder.send_ahead)

    @override
    def end(self, number: int, life: Life, chance: random.Random) -> None:
        if self.told_to_stop and number % 2 == 0:
            life.terminate()
        else:
            life.kill(chance)

    @override
    def rest(self, chance: random.Random) -> None:
        self.between(self.site)
        time.sleep(chance.choice([0.0, 0.0, chance.uniform(0.0, 1.5)]))

    def freeze_again_and_again(self, n_freezes: int) -> LiveReport:
        """Let a life stand still ``n_freezes`` times, let another one take its place, and wake it up while that one
        works.

        The leases are removed meanwhile, as a process of another machine removes those that nobody has renewed for
        long.
        """
        chance = random.Random(self.seed)
        with self.watched() as feeder:
            life = self.start(0)
            for number in range(n_freezes):
                await_running(life, self.site)
                feeder.send_ahead()
                time.sleep(chance.uniform(0.2, 2.5))
                life.freeze()
                self.note_kill(f"{life.topology.name}: frozen, {life.age_s:.2f} s old")
                for lease in self.site.root.glob("*/_leases/*.json"):
                    lease.unlink()
                following = self.start(number + 1)
                if not comes_to_run(following, self.site):
                    # It was frozen while it wrote the recovery store, whose lock it has until it wakes.
                    assert any("database is locked" in one for one in following.failures()), following.failures()
                    self.wake(life)
                    following = self.start(number + 1)
                    await_running(following, self.site)
                else:
                    time.sleep(chance.uniform(1.0, 3.0))
                    self.wake(life)
                life = following
            self.come_to_the_end(life, feeder)
        return self.report

    @staticmethod
    def wake(life: Life) -> None:
        """Let a frozen life go on, which must end then."""
        life.thaw()
        life.await_failure(1, TAKEN_OVER)

    @override
    def come_to_the_end(self, life: Life, feeder: LiveFeeder) -> None:
        """Let the life store all that was fed, wait until all windows are empty, and end it by a signal.

        A life's report of its lag may be older than the last records, so archive and dead letters are examined.
        """
        await_running(life, self.site)
        feeder.stop()
        deadline_s = time.monotonic() + CAUGHT_UP_WITHIN_S
        while lacking := self._lacking(feeder):
            assert not life.ended, life.failures()
            assert time.monotonic() < deadline_s, f"it does not store {lacking}: {life.statuses()}"
            time.sleep(0.2)
        time.sleep(LONGEST_S)
        life.terminate()

    def _lacking(self, feeder: LiveFeeder) -> dict[str, list[tuple[int, int]]]:
        """Return the first places of each topic that were fed and are not stored."""
        found = {}
        for topic, fed in feeder.fed.items():
            places = {(partition, offset) for partition, records in enumerate(fed) for offset in range(len(records))}
            if left := sorted(places - stored(self.site, topic)):
                found[topic] = left[:5]
        return found

    @override
    def cast(self) -> tuple[LiveFeeder, FilesWatch, LiveWatch]:
        feeder = LiveFeeder(self.site.bootstrap, cast("LiveScene", self.site.scene), seed=self.seed)
        return feeder, FilesWatch(self.site, pause_s=0.5), LiveWatch(self.site, may_empty=self.may_empty)

    @override
    def judge(self, feeder: LiveFeeder, files: FilesWatch, online: LiveWatch) -> list[str]:
        verdict = LiveVerdict(self.site, cast("LiveScene", self.site.scene), feeder.fed)
        faults = verdict.judge(files, online)
        self.report.figures = verdict.figures
        self.report.looks += f": {verdict.figures}"
        if self.bumps and not verdict.figures.bumped:
            faults.append("nothing was bumped, so nothing could have been forgotten")
        return faults


def comes_to_run(life: Life, site: Site) -> bool:
    """Wait until the life has written what readers may rely on; return false if it does not."""
    return bool(
        instants.await_changes(instants.covered, 1, life, site, within_s=instants.RUNNING_WITHIN_S, pause_s=0.02)
    )


def await_running(life: Life, site: Site) -> None:
    """Wait until the life has written what readers may rely on."""
    assert comes_to_run(life, site), f"never ran: {life.failures()}"
