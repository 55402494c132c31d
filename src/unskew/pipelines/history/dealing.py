"""Shards and partitions dealt to processes that compute them side by side."""

import heapq
import zlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import TypeVar

import numpy as np

from unskew.features.errors import LayoutError
from unskew.features.evaluate import Evaluator
from unskew.features.keys import shard_of
from unskew.features.plan import ViewPlan
from unskew.pipelines.history.archive import Archive, Cut, columns_of

SAMPLES = 8
"""Files of the archive that are looked into."""
SAMPLE_ROWS = 8_192
"""Events of each of them: a shard that has a tenth of all events is then known to about one part in a hundred."""

Unit = TypeVar("Unit", bound=Hashable)


def dealt(view: ViewPlan, names: Sequence[str], n_processes: int) -> list[list[str]]:
    """Return the shards of each process; those of one partition stay together, so that it is read once.

    It rests on nothing but the view, so processes that do not know of each other deal alike. Views begin at different
    processes: otherwise the first process would have all views of one shard.
    """
    units = list(_units(view, names).values())
    first = zlib.crc32(view.id.encode()) % n_processes
    return [list(chain.from_iterable(units[(at - first) % n_processes :: n_processes])) for at in range(n_processes)]


def dealt_by_events(
    view: ViewPlan, archive: Archive, end: Cut, names: Sequence[str], n_hashes: int, n_processes: int
) -> list[list[str]]:
    """Return the shards of each process, none empty, so that each has about as many events; else as ``dealt``.

    ``end``: the partitions that feed these shards. The archive says how many events a partition has. How the events of
    a partition divide among hashes is found from a sample of files. Processes that look at different times may see
    different archives, so one process deals for all.
    """
    units = _units(view, names)
    if n_processes == 1 or len(units) == 1:
        return [list(names)]
    if view.partitioned:
        weights = Counter({f"p{partition}": archive.most({partition: reached}) for partition, reached in end.items()})
    else:
        weights = _sampled(view, archive, end, n_hashes)
    # A shard without events has its clock to move.
    shares = spread({unit: 1 + weights[unit] for unit in units}, n_processes)
    return [list(chain.from_iterable(units[unit] for unit in share)) for share in shares if share]


def spread(weights: Mapping[Unit, int], n_shares: int) -> list[list[Unit]]:
    """Return the units of each share, such that the largest share is small; a share may be empty.

    Each unit, from the heaviest on, goes to the share that has least: the largest is then at most 4/3 of what is
    possible (R. L. Graham, Bounds on Multiprocessing Timing Anomalies, SIAM J. Appl. Math. 17, 1969).
    """
    shares: list[list[Unit]] = [[] for _ in range(n_shares)]
    least = [(0, at) for at in range(n_shares)]
    for unit in sorted(weights, key=lambda unit: -weights[unit]):
        weight, at = least[0]
        shares[at].append(unit)
        heapq.heapreplace(least, (weight + weights[unit], at))
    return shares


def _units(view: ViewPlan, names: Sequence[str]) -> dict[str, list[str]]:
    """Return the shards that stay together: those of a partition, or each by itself."""
    units: dict[str, list[str]] = {}
    for name in names:
        units.setdefault(name.partition(".")[0] if view.partitioned else name, []).append(name)
    return units


def _sampled(view: ViewPlan, archive: Archive, end: Cut, n_hashes: int) -> Counter[str]:
    """Return, by shard, how many events of a sample it has."""
    files = [file for partition in end for file in archive.files.get(partition, ())]
    evaluate = Evaluator(view)
    found: Counter[str] = Counter()
    for at in np.unique(np.linspace(0, len(files) - 1, min(SAMPLES, len(files))).astype(int)):
        # Whoever reads the file for its events says what is wrong with it; not everybody has to.
        with suppress(LayoutError, FileNotFoundError):
            events = evaluate(archive.first_of(files[at], columns_of(view), SAMPLE_ROWS)).events
            numbers = np.bincount(shard_of(events["key"], n_hashes), minlength=n_hashes)
            found.update({f"h{number}": int(count) for number, count in enumerate(numbers)})
    return found
