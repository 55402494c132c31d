"""One item of a source: records of one partition with their arrivals, and the partition's clock."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt

from unskew.features.rejection import Kind
from unskew.pipelines.kafka.blobs import Blobs
from unskew.pipelines.kafka.headers import Header, Headers

FRAME_BYTES = 5
"""Confluent's frame: a zero byte, then the schema's id, big-endian."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that the source sets aside: it cannot be placed in time, or an earlier run of the process refused it.

    ``arrival``: the partition's clock at that point, microseconds; before the first clock, the present.
    ``kind``: the kind of dead letter.
    """

    offset: int
    arrival: int
    reason: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[Header] | None = None
    kind: Kind = "time"


class Poll(msgspec.Struct, frozen=True):
    """One item of one partition; it may hold no records and only the clock.

    ``clock_us``: the partition's clock after this item: its last arrival or an announced mark; None before any.
    ``ended``: the partition has reached its end offset and no longer holds other clocks back; no item follows.
    ``offsets``, ``arrivals`` (microseconds), ``keys``, ``values``: equal lengths, in offset order; arrivals never
    decrease. The value of a tombstone is None. ``origin``: the broker's topic and partition, if the stream has several
    topics. ``headers``: the same length, or None if none are known.

    ``place``: the journal's name of the partition. ``ticket``: the entry that the journal must hold before anything
    that rests on this item is shown. ``replaying``: an earlier run of the process showed more than this partition has
    given so far. ``decided``: an earlier run has read these records, except the ``rejected`` ones. ``schema_id``: the
    id in the frame of the partition's first record that has one; None if not known. ``resumed``: the partition began
    with a clock that items had carried, so a view without state has missed what arrived until then; its first item has
    no records.
    """

    stream: str
    partition: int
    clock_us: int | None
    ended: bool
    offsets: npt.NDArray[np.int64]
    arrivals: npt.NDArray[np.int64]
    keys: Blobs
    values: Blobs
    rejected: list[Rejected]
    origin: tuple[str, int] | None = None
    headers: Headers | None = None
    place: str = ""
    ticket: int = 0
    replaying: bool = False
    decided: bool = False
    schema_id: int | None = None
    resumed: bool = False

    def headers_at(self, place: int) -> Sequence[Header] | None:
        """Return the headers of a record; None if it has none, or if none are known."""
        return None if self.headers is None else self.headers[place]

    @property
    def first_us(self) -> int | None:
        """The first arrival in the item; None if there is none.

        Records that were set aside count if they have a place in time.
        """
        if not len(self.arrivals) and not self.rejected:
            return None
        firsts = [int(self.arrivals[0])] if len(self.arrivals) else []
        firsts += [bad.arrival for bad in self.rejected if bad.kind != "time"][:1]
        return min(firsts, default=None)


def first_schema_id(values: Blobs) -> int | None:
    """Return the schema id of the first value in Confluent's frame; None if no value has one."""
    begins = values.edges[:-1][values.sizes >= FRAME_BYTES]
    framed = begins[values.data[begins] == 0]
    if not len(framed):
        return None
    return int.from_bytes(values.data[framed[0] + 1 : framed[0] + FRAME_BYTES].tobytes(), "big")
