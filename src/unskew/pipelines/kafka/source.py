"""A Kafka topic as a Bytewax source: one item per poll and partition, with arrivals and a clock."""

import threading
from collections.abc import Sequence
from typing import Any

from bytewax.inputs import FixedPartitionedSource
from typing_extensions import override

from unskew.features.errors import LayoutError
from unskew.features.plan import StreamPlan
from unskew.pipelines.kafka.poll import Poll, Rejected
from unskew.pipelines.kafka.reader import KafkaPartition, Place, Reader, SourceCounters, SourceOptions, clock_ahead
from unskew.pipelines.state.known_topics import KnownTopics

__all__ = ["KafkaPartition", "KafkaSource", "Poll", "Rejected", "SourceCounters", "SourceOptions"]


class KafkaSource(FixedPartitionedSource[Poll, dict[str, Any]]):
    """The source of a stream with one or several topics; its partitions are named ``p0``, ``p1``, ...

    All partitions that a process builds share one consumer, opened with the first of them.
    """

    def __init__(self, stream: StreamPlan, options: SourceOptions) -> None:
        self.stream = stream
        self.options = options
        self.counters = SourceCounters()
        self._reader: Reader | None = None
        self._lock = threading.Lock()

    @override
    def list_parts(self) -> list[str]:
        """Return the names; raise ``StoreUnavailable`` if the broker does not answer or does not have the topic."""
        reader = self._open()
        wanted = self.options.partitions
        if wanted is None:
            return [f"p{partition}" for partition in range(reader.n_partitions)]
        if absent := [partition for partition in wanted if not 0 <= partition < reader.n_partitions]:
            raise LayoutError(
                f"{reader.topic.title} has {reader.n_partitions} partitions, but not "
                f"{', '.join(map(str, absent))}; correct the partitions that this process should read"
            )
        return [f"p{partition}" for partition in wanted]

    @override
    def build_part(self, step_id: str, for_part: str, resume_state: dict[str, Any] | None) -> "KafkaPartition":
        """Build a partition at its saved offset and clock, or at ``start`` if nothing is saved.

        Raises ``LayoutError`` if the saved offset is gone or the topic's number of partitions has changed.
        """
        return self._open().build(int(for_part.removeprefix("p")), resume_state)

    @property
    def origins(self) -> Sequence[tuple[str, int]]:
        """The broker's topic and partition number of every partition."""
        return self._open().topic.origins

    @property
    def known(self) -> KnownTopics:
        """The topics with their ids and the numbers of their partitions."""
        return self._open().topic.known

    def places(self) -> list[Place]:
        """Return the progress of each partition that this process reads; safe to call from any thread."""
        reader = self._reader
        return [] if reader is None else [part.place() for part in list(reader.parts.values())]

    @property
    def n_ahead(self) -> int:
        """The number of records refused because their timestamps lie past the present; for any thread."""
        return 0 if self._reader is None else self._reader.refusals.count

    def faults(self, present_us: int) -> list[str]:
        """Return what is wrong with clocks: those of producers or of this host; for any thread."""
        reader = self._reader
        if reader is None:
            return []
        found = [] if reader.refusals.reason is None else [reader.refusals.reason]
        bound_us = reader.latest_clock_us(present_us)
        return found + [
            clock_ahead(f"{place.topic}/{place.partition}", place.clock_us, present_us)
            for place in self.places()
            if place.clock_us is not None and place.clock_us > bound_us
        ]

    @property
    def away_s(self) -> float:
        """The number of seconds for which the broker has not answered; 0.0 while it answers."""
        reader = self._reader
        return 0.0 if reader is None else reader.topic.away_s

    @property
    def retries(self) -> int:
        """How often the broker did not answer."""
        reader = self._reader
        return 0 if reader is None else reader.topic.retries

    def close(self) -> None:
        """Close the consumer if the flow ended in an error and left it open."""
        if self._reader is not None:
            self._reader.close()

    def _open(self) -> "Reader":
        with self._lock:
            if self._reader is None or self._reader.closed:
                self._reader = Reader(self.stream, self.options, self.counters)
            return self._reader
