"""What a source gives at once: some records of one partition, with arrivals, and its clock."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that cannot be placed in time.

    ``arrival``: its partition's clock then, microseconds, or, before it has one, the present.
    """

    offset: int
    arrival: int
    reason: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] | None = None


@dataclass(frozen=True, slots=True)
class Poll:
    """What one partition gave at once; possibly nothing but its clock.

    ``clock_us``: the partition's clock after this item: its last arrival or an announced mark; None before any.
    ``ended``: it has reached its end offset and leaves the minimum; no item follows.
    ``offsets``, ``arrivals`` (microseconds), ``keys``, ``values``: of equal length, in offset order, arrivals never
    falling. A tombstone is a value None. ``origin``: topic and partition as the broker calls them, where a stream has several topics.
    ``headers``: of the same length, or None where none are known.
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
