"""What a source gives at once: some records of one partition, with arrivals, and its clock."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unskew.features.rejection import Kind


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that the source sets aside: it cannot be placed in time, or an earlier life of the process refused it.

    ``arrival``: its partition's clock then, microseconds, or, before it has one, the present. ``kind``: of dead letter.
    """

    offset: int
    arrival: int
    reason: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] | None = None
    kind: Kind = "time"


@dataclass(frozen=True, slots=True)
class Poll:
    """What one partition gave at once; possibly nothing but its clock.

    ``clock_us``: the partition's clock after this item: its last arrival or an announced mark; None before any.
    ``ended``: it has reached its end offset and leaves the minimum; no item follows.
    ``offsets``, ``arrivals`` (microseconds), ``keys``, ``values``: of equal length, in offset order, arrivals never
    falling. A tombstone is a value None. ``origin``: topic and partition as the broker calls them, where a stream has several topics.
    ``headers``: of the same length, or None where none are known.

    ``place``: under what name the journal knows the partition; ``ticket``: what the journal must hold before anything that rests on this
    item is shown. ``replaying``: an earlier life of the process has shown more than this partition has given so far.
    """

    stream: str
    partition: int
    clock_us: int | None
    ended: bool
    offsets: npt.NDArray[np.int64]
    arrivals: npt.NDArray[np.int64]
    keys: list[bytes | None]
    values: list[bytes | None]
    rejected: list[Rejected]
    origin: tuple[str, int] | None = None
    headers: Sequence[Sequence[tuple[str, bytes | None]] | None] | None = None
    place: str = ""
    ticket: int = 0
    replaying: bool = False

    @property
    def first_us(self) -> int | None:
        """The first arrival in it, also of a record that was set aside but has a place in time; None where there is none."""
        firsts = [int(self.arrivals[0])] if len(self.arrivals) else []
        firsts += [bad.arrival for bad in self.rejected if bad.kind != "time"][:1]
        return min(firsts, default=None)
