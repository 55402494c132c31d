"""Arrivals, the instants at which records became available: timestamps that never decrease within a partition."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from confluent_kafka import TIMESTAMP_CREATE_TIME, TIMESTAMP_NOT_AVAILABLE

from unskew.features.time import MAX_INSTANT_US, MIN_INSTANT_US, format_instant

NO_CLOCK = int(np.iinfo(np.int64).min)
"""The clock of a partition before its first record or mark, earlier than every instant.

Items and snapshots hold None instead.
"""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """The arrivals assigned to a batch of records.

    ``clocks``: the partition's clock after each record, microseconds; for a ``placed`` record, its arrival.
    ``placed``: true where the record has a place in time. ``future``: true where the only obstacle is a producer's
    timestamp past the present. ``bumped``: number of records placed later than their own timestamp.
    """

    clocks: npt.NDArray[np.int64]
    placed: npt.NDArray[np.bool_]
    future: npt.NDArray[np.bool_]
    bumped: int


def assign_arrivals(
    kinds: npt.NDArray[np.int64],
    stamps_ms: npt.NDArray[np.int64],
    clock_us: int,
    latest_us: int,
    decided_future: npt.NDArray[np.bool_] | None = None,
) -> Arrivals:
    """Give each record the latest of its timestamp, the arrival before it, and the clock announced so far.

    ``kinds``: Kafka's timestamp types. ``latest_us``: a producer's timestamp past this instant has no place in time. A
    record without a timestamp, or with one outside 1900..2200, has none either. Such records do not move the clock.
    ``decided_future``: the records that lay past the present when an earlier run of the process read them; if given,
    ``latest_us`` is not used.
    """
    # Clip before scaling, which could overflow; a clipped value is still outside the range.
    instants = np.clip(stamps_ms, MIN_INSTANT_US // 1000 - 1, MAX_INSTANT_US // 1000) * 1000
    sound = (kinds != TIMESTAMP_NOT_AVAILABLE) & (instants >= MIN_INSTANT_US) & (instants < MAX_INSTANT_US)
    future = sound & (
        ((kinds == TIMESTAMP_CREATE_TIME) & (instants > latest_us)) if decided_future is None else decided_future
    )
    placed = sound & ~future
    clocks = np.maximum(np.maximum.accumulate(np.where(placed, instants, NO_CLOCK)), clock_us)
    return Arrivals(clocks, placed, future, int(np.count_nonzero(placed & (instants < clocks))))


def refusal(kind: int, stamp_ms: int) -> str:
    """Return why a record has no place in time."""
    if kind == TIMESTAMP_NOT_AVAILABLE:
        return "the record has no timestamp"
    stamp_us = stamp_ms * 1000
    if not MIN_INSTANT_US <= stamp_us < MAX_INSTANT_US:
        return f"record timestamp {stamp_ms} ms is outside 1900..2200"
    return f"record timestamp {format_instant(stamp_us)} is past the present"
