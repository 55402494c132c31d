"""When to kill: at a moment drawn by chance, or at the very step in which something is half done on the disk."""

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.recovery.processes import Life, Site

START_UP_S = 3.0
RUNNING_WITHIN_S = 60.0
WITHIN_S = 3.0
"""How long a running pipeline is given to come to the step that is to be hit; then it is killed all the same."""


@dataclass(frozen=True)
class Instant:
    """A moment in a life.

    ``after``: the place that must have changed first. ``place``: the place whose changes are then awaited, None for
    none. ``times``: the number of changes; ``delay_s``: the pause after them.
    """

    name: str
    after: Callable[[Site], Iterator[Path]] | None
    place: Callable[[Site], Iterator[Path]] | None
    times: int
    delay_s: float

    def await_in(self, life: Life, site: Site, at_work: Callable[[], None]) -> str:
        """Wait for it, or until the life has ended or has had enough time; say what came about.

        ``at_work``: called after what must have changed first.
        """
        if self.after is not None:
            if not await_changes(self.after, 1, life, site, within_s=RUNNING_WITHIN_S, pause_s=0.02):
                return f"{self.name} (never ran)"
            at_work()
        if self.place is not None and not await_changes(
            self.place, self.times, life, site, within_s=WITHIN_S, pause_s=0.001
        ):
            return f"{self.name} (did not come)"
        time.sleep(self.delay_s)
        return self.name


def await_changes(
    place: Callable[[Site], Iterator[Path]], times: int, life: Life, site: Site, *, within_s: float, pause_s: float
) -> bool:
    deadline_s = time.monotonic() + within_s
    before = _marks(place, site)
    while times:
        if life.ended or time.monotonic() > deadline_s:
            return False
        now = _marks(place, site)
        times -= now != before
        before = now
        time.sleep(pause_s)
    return True


def _marks(place: Callable[[Site], Iterator[Path]], site: Site) -> set[tuple[Path, int, int]]:
    """Return the files with sizes and times; look again if a file or a folder disappears meanwhile."""
    while True:
        try:
            return {(path, stat.st_size, stat.st_mtime_ns) for path in place(site) for stat in (path.stat(),)}
        except FileNotFoundError:
            continue


def _temporary(site: Site) -> Iterator[Path]:
    """A file that is being written."""
    return site.root.glob("*/*/**/_staged/day=*/*.tmp")


def _staged(site: Site) -> Iterator[Path]:
    """A file of an epoch that may not be durable yet."""
    return site.log.glob("*/v*/_staged/day=*/*.parquet")


def _archived(site: Site) -> Iterator[Path]:
    """A file that is just published; other tables of the epoch may not be."""
    return site.archive.glob("*/day=*/*.parquet")


def covered(site: Site) -> Iterator[Path]:
    """What readers may rely on; also written with the first item of a run."""
    return site.log.glob("*/v*/_coverage/*")


def store(site: Site) -> Iterator[Path]:
    """The recovery store, as a snapshot goes into it."""
    return site.root.glob("state*/recovery/*")


def _changelog(site: Site) -> Iterator[Path]:
    return site.root.glob("state*/changelog/**/*.*")


STEPS = {
    "temporary file": _temporary,
    "staged": _staged,
    "published": _archived,
    "coverage": covered,
    "recovery store": store,
    "changelog": _changelog,
}


def draw(chance: random.Random) -> Instant:
    """A moment: while it starts, while it takes up its saved state, while it runs, or in the middle of a step."""
    kind = chance.random()
    if kind < 0.1:
        return Instant("start-up", None, None, 0, chance.uniform(0.0, START_UP_S))
    if kind < 0.25:
        return Instant("taking up", store, None, 0, chance.uniform(0.0, 2.0))
    if kind < 0.45:
        return Instant("running", covered, None, 0, chance.uniform(0.0, 1.5))
    name = chance.choice(sorted(STEPS))
    return Instant(name, covered, STEPS[name], chance.randint(1, 6), chance.choice([0.0, 0.0, 0.001, 0.005, 0.02]))
