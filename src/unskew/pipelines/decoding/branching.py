"""Writers' schemas that leave a choice to each message: a union of records, of which a message is one.

Messages are grouped by what they chose and lose the numbers of their branches. What remains of them has a plain schema
without choices, and is read as if it had been written with that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import fastavro
import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.features.plan import StreamPlan
from unskew.features.rejection import Rejection
from unskew.pipelines.decoding.avro_walk import Branches
from unskew.pipelines.decoding.decoder import Read, merged
from unskew.pipelines.decoding.reading import Accepted, Reading, Reads
from unskew.pipelines.decoding.resolve import Incompatible


@dataclass(frozen=True, kw_only=True)
class Target:
    """What messages are read into.

    ``reader``: the record schema of the stream's columns. ``records``: the names of the record types that are events;
    a name without a dot is one in any namespace. ``event_time``: the column of the event time.
    """

    topic: str
    reader: Mapping[str, Any]
    records: tuple[str, ...]
    event_time: str

    @staticmethod
    def of(stream: StreamPlan) -> "Target":
        """Return the target of a stream."""
        return Target(topic=stream.topic, reader=stream.schema, records=stream.records, event_time=stream.event_time)

    def means(self, record: Mapping[str, Any]) -> bool:
        """Return true if a writer's record type is one of the stream's."""
        name = str(record["name"])
        if record.get("namespace") and "." not in name:
            name = f"{record['namespace']}.{name}"
        return not self.records or name in self.records or name.rpartition(".")[2] in self.records


def reads_of(writer: Any, target: Target) -> Reads | None:
    """Return how messages of a writer's schema are read; None if none of them are events of the stream.

    Raises ``Incompatible`` if they are events and cannot be read.
    """
    if isinstance(writer, list):
        return _Union.of(writer, target)
    return reads_record(writer, target) if target.means(writer) else None


def reads_record(writer: Mapping[str, Any], target: Target) -> Reads:
    """Return how messages of a writer's record schema are read, whatever its name. Raises ``Incompatible``."""
    return Reading(writer, target.reader, target.event_time, target.topic)


class _Union:
    """The way from messages that are each one of several types."""

    def __init__(self, branches: Sequence[Reads | Rejection | None]) -> None:
        self._branches = branches
        self._choice = Branches([])

    @staticmethod
    def of(writer: Sequence[Any], target: Target) -> "_Union | None":
        """Return the way from a union; None if none of its types are events of the stream."""
        branches: list[Reads | Rejection | None] = []
        faults = []
        expanded: Any = fastavro.schema.expand_schema(list(writer))
        for branch in expanded:
            is_record = isinstance(branch, dict) and branch["type"] == "record"
            try:
                branches.append(reads_of(branch, target) if is_record else None)
            except Incompatible as fault:
                faults.append(f"{branch['name']}: {fault}")
                branches.append(Rejection("schema", faults[-1]))
        if faults and not any(isinstance(branch, Reading) for branch in branches):
            raise Incompatible("; ".join(faults))
        return _Union(branches) if any(branch is not None for branch in branches) else None

    def read(
        self,
        rows: npt.NDArray[np.int64],
        values: Sequence[bytes | None],
        reasons: dict[int, Rejection],
        accepted: Accepted | None = None,
    ) -> Read:
        """Return columns of the stream; see ``Reads``. Messages of other types are neither read nor refused."""
        branches, messages = self._choice.cut(cast("Sequence[bytes]", values))
        parts = []
        for branch in np.unique(branches).tolist():
            chosen = np.flatnonzero(branches == branch)
            reads = (
                self._branches[branch]
                if 0 <= branch < len(self._branches)
                else Rejection("malformed", "not a record of the schema (a union has no such branch)")
            )
            if isinstance(reads, Rejection):
                reasons |= dict.fromkeys(rows[chosen].tolist(), reads)
            elif reads is not None:
                parts.append(reads.read(rows[chosen], [messages[at] for at in chosen.tolist()], reasons, accepted))
        return merged(parts, pl.DataFrame())
