"""Avro messages that are change events of Debezium: first their operations are read, then the rows that count."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from unskew.features.definitions.avro_schema import avro_fields
from unskew.features.plan import StreamPlan
from unskew.features.rejection import Rejection
from unskew.pipelines.decoding.branching import Place, Target, reads_record
from unskew.pipelines.decoding.decoder import BadMessage, Read, other_operation
from unskew.pipelines.decoding.reading import Accepted, Reads
from unskew.pipelines.kafka.blobs import Blobs

_OPERATION: Mapping[str, Any] = {"type": "record", "name": "Change", "fields": [{"name": "op", "type": "string"}]}


class Changes:
    """The way from change events to rows."""

    def __init__(self, writer: Mapping[str, Any], stream: StreamPlan, rows: Target) -> None:
        operation = Target(
            topic=stream.topic,
            reader=_OPERATION,
            records=(),
            event_time="",
            places=(Place(names=("op",), column=avro_fields(_OPERATION)[0]),),
        )
        self._stream = stream
        self._operations = reads_record(writer, operation)
        self._rows: Reads = reads_record(writer, rows)

    def read(
        self,
        rows: npt.NDArray[np.int64],
        values: Blobs,
        reasons: dict[int, Rejection],
        accepted: Accepted | None = None,
    ) -> Read:
        """Return the rows of the stream; see ``Reads``. Other operations are refused or ignored, as the stream says."""
        found, frame = self._operations.read(rows, values, reasons, accepted)
        kept = np.ones(len(found), np.bool_)
        for at, operation in enumerate(frame["op"].to_list() if len(found) else ()):
            if operation not in self._stream.operations:
                kept[at] = False
                if isinstance(other := other_operation(self._stream, operation), BadMessage):
                    reasons[int(found[at])] = other.rejection
        counted = found[kept]
        return self._rows.read(counted, values.at(np.searchsorted(rows, counted)), reasons, accepted)
