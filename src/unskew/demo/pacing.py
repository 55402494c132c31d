"""Producing no faster than the pipeline reads: the embedded broker keeps only the newest 5 MiB of a partition."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import confluent_kafka
import numpy as np
import numpy.typing as npt

from unskew.features.errors import StoreUnavailable

# Less than the broker's 5 MiB per partition, with room for one batch and for record and batch headers.
AHEAD_BYTES = 3 * 2**20
_RECORD_OVERHEAD_BYTES = 16
_POLL_S = 0.05
_TIMEOUT_S = 10.0


class Records(Protocol):
    """Consecutive records of a topic: columns with an entry per record; ``timestamp_ms`` is the record timestamp."""

    @property
    def partition(self) -> npt.NDArray[np.int32]: ...
    @property
    def key(self) -> Sequence[bytes]: ...
    @property
    def value(self) -> Sequence[bytes]: ...
    @property
    def timestamp_ms(self) -> npt.NDArray[np.int64]: ...


class PacedProducer:
    """Produces one topic in its own thread, at most ``AHEAD_BYTES`` per partition ahead of a group's committed offsets.

    ``batches``: records in the order of production, some thousands at a time. ``group``: the consumer group; records
    before its committed offsets will not be read again. ``failed``: the error that ended the thread early, or None.
    """

    def __init__(self, bootstrap: str, topic: str, batches: Iterable[Records], *, group: str) -> None:
        self._topic = topic
        self._batches = batches
        self._producer = confluent_kafka.Producer(
            {"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 20, "log_level": 0}
        )
        self._committed = confluent_kafka.Consumer(
            {"bootstrap.servers": bootstrap, "group.id": group, "enable.auto.commit": False, "log_level": 0}
        )
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"produce-{topic}", daemon=True)
        # By partition: the next offset to produce, and (end offset, bytes) of each batch that is not yet committed.
        self._next: dict[int, int] = {}
        self._ahead: dict[int, deque[tuple[int, int]]] = {}
        self.failed: Exception | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread, also before everything is produced."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._committed.close()
        self._producer.purge()
        self._producer.close()

    def _run(self) -> None:
        try:
            for batch in self._batches:
                sizes = _sizes(batch)
                if not self._wait_for_room(sizes):
                    return
                self._produce(batch)
                for partition, (n_records, n_bytes) in sizes.items():
                    behind = self._next.get(partition, 0) + n_records
                    self._next[partition] = behind
                    self._ahead.setdefault(partition, deque()).append((behind, n_bytes))
        except KeyboardInterrupt:
            # On Ctrl-C Polars raises it in any thread with a running query; Python interrupts the main thread.
            return
        except Exception as error:  # noqa: BLE001 - reported to the owner through ``failed``
            self.failed = error

    def _produce(self, batch: Records) -> None:
        columns = (batch.value, batch.key, batch.partition.tolist(), batch.timestamp_ms.tolist())
        for value, key, partition, timestamp_ms in zip(*columns, strict=True):
            while True:
                try:
                    self._producer.produce(self._topic, value, key, partition, timestamp=timestamp_ms)
                    break
                except BufferError:
                    self._producer.poll(_POLL_S)
        if self._producer.flush(_TIMEOUT_S):
            raise StoreUnavailable(f"{self._topic}: the broker did not take what was produced within {_TIMEOUT_S:g} s")

    def _wait_for_room(self, sizes: Mapping[int, tuple[int, int]]) -> bool:
        """Wait until a batch of these sizes fits; return False if stopped."""
        while not self._stopping.is_set():
            if all(self._room(partition, n_bytes) for partition, (_, n_bytes) in sizes.items()):
                return True
            self._forget_committed()
            self._stopping.wait(_POLL_S)
        return False

    def _room(self, partition: int, n_bytes: int) -> bool:
        ahead = self._ahead.get(partition)
        # A batch larger than the bound would otherwise wait for ever.
        return not ahead or sum(size for _, size in ahead) + n_bytes <= AHEAD_BYTES

    def _forget_committed(self) -> None:
        asked = [confluent_kafka.TopicPartition(self._topic, partition) for partition in self._ahead]
        for answer in self._committed.committed(asked, timeout=_TIMEOUT_S):
            ahead = self._ahead[answer.partition]
            while ahead and answer.offset >= ahead[0][0]:
                ahead.popleft()


def _sizes(batch: Records) -> dict[int, tuple[int, int]]:
    """Return partition -> (records, bytes)."""
    sizes = [len(key) + len(value) + _RECORD_OVERHEAD_BYTES for key, value in zip(batch.key, batch.value, strict=True)]
    n_records = np.bincount(batch.partition)
    n_bytes = np.bincount(batch.partition, weights=sizes)
    return {int(p): (int(n_records[p]), int(n_bytes[p])) for p in np.flatnonzero(n_records)}


@contextmanager
def paced(bootstrap: str, topics: Mapping[str, Iterable[Records]], *, group: str) -> Iterator[list[PacedProducer]]:
    """Produce several topics at once, each in its own thread, until the block ends."""
    producers = [PacedProducer(bootstrap, topic, batches, group=group) for topic, batches in topics.items()]
    try:
        for producer in producers:
            producer.start()
        yield producers
    finally:
        for producer in producers:
            producer.stop()
