"""Polls of values without keys, as if they had been read from a topic."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from unskew.pipelines.kafka.blobs import Blobs
from unskew.pipelines.kafka.poll import Poll


def poll_of(values: Sequence[bytes | None], begin_us: int, stream: str = "stream", **more: Any) -> Poll:
    """A poll of partition 0 from offset 0 on, whose records arrive a microsecond after one another."""
    offsets = np.arange(len(values), dtype=np.int64)
    keys = Blobs.of([None] * len(values))
    return Poll(stream, 0, begin_us, False, offsets, offsets + begin_us, keys, Blobs.of(values), [], **more)
