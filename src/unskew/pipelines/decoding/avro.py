"""Confluent-framed Avro messages of one poll as typed Polars columns, and dead letters for those that are not events.

Messages are read with the schema with which they were written (``reading``), and their columns are then resolved into
the stream's (``resolve``). A Schema Registry knows the writers' schemas (``writers``); without one, the stream's own
schema is the writer's, and the definition says which schema ids mean it, or the partition's first record does.
"""

import time
from collections.abc import Callable, Mapping
from typing import cast

import numpy as np
from typing_extensions import override

from unskew.features.errors import DefinitionError
from unskew.features.plan import StreamPlan
from unskew.features.rejection import Rejection
from unskew.pipelines.decoding.avro_walk import schema_ids_of
from unskew.pipelines.decoding.branching import Target, reads_of, reads_record
from unskew.pipelines.decoding.decoder import Decoded, Decoder, Read, merged
from unskew.pipelines.decoding.json import JsonDecoder
from unskew.pipelines.decoding.reading import Accepted, Reads
from unskew.pipelines.decoding.writers import Schemas, Writers
from unskew.pipelines.kafka.poll import Poll
from unskew.sinks.tables.kinds import DEAD_LETTER_SCHEMA

__all__ = ["DEAD_LETTER_SCHEMA", "AvroDecoder", "Decoded", "Decoder", "Schemas", "decoder_of"]


def decoder_of(stream: StreamPlan, schemas: Schemas | None = None, began: Mapping[str, int] | None = None) -> Decoder:
    """Return the decoder for a stream's format.

    ``schemas``: the source of Avro writers' schemas; if None, the stream's own schema is every writer's. ``began``: as
    for ``AvroDecoder``.
    """
    return JsonDecoder(stream) if stream.format == "json" else AvroDecoder(stream, schemas, began)


class AvroDecoder(Decoder):
    """The decoder of a stream's messages, with the schemas with which they were written.

    ``schemas``: the source of writers' schemas; if None, the stream's own schema is the writer's. ``began``: the schema
    ids with which partitions began in earlier runs, by the journal's name of the partition.
    """

    def __init__(
        self,
        stream: StreamPlan,
        schemas: Schemas | None = None,
        began: Mapping[str, int] | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(stream)
        self._listed = Accepted(frozenset(stream.schema_ids), listed=True) if stream.schema_ids else None
        self._began = dict(began or {})
        self.asks = schemas is not None
        target = Target.of(stream)
        self._own = reads_record(stream.schema, target)
        self._writers = (
            None
            if schemas is None
            else Writers(stream.topic, schemas, lambda writer: reads_of(writer, target), monotonic)
        )
        self._empty = self._no_events.select(list(self.payload))

    @override
    def _read(self, poll: Poll, reasons: dict[int, Rejection]) -> Read:
        if self._writers is None:
            rows = np.arange(len(poll.values))
            return merged([self._own.read(rows, poll.values, reasons, self._accepted(poll))], self._empty)
        ids = schema_ids_of(
            cast("list[bytes]", poll.values) if None not in poll.values else [value or b"" for value in poll.values]
        )
        found, counts = np.unique(ids, return_counts=True)
        parts = []
        # Those of most messages first: there may be more unknown ids than may be asked for.
        for schema_id in found[np.argsort(-counts, kind="stable")].tolist():
            rows = np.flatnonzero(ids == schema_id)
            # Without a frame any reading can give the reason.
            reads = self._own if schema_id < 0 else self._find(schema_id, decided=poll.decided)
            if isinstance(reads, Rejection):
                reasons |= dict.fromkeys(rows.tolist(), reads)
                self.incompatible += len(rows)
            elif reads is not None:
                values = poll.values if len(found) == 1 else [poll.values[row] for row in rows.tolist()]
                parts.append(reads.read(rows, values, reasons))
        return merged(parts, self._empty)

    def _find(self, schema_id: int, *, decided: bool) -> Rejection | Reads | None:
        assert self._writers is not None
        if self._listed is not None and schema_id not in self._listed.ids:
            return Rejection("schema", self._listed.fault(schema_id))
        return self._writers.find(schema_id, decided=decided)

    def _accepted(self, poll: Poll) -> Accepted | None:
        """Return the ids that a poll's messages may carry if the stream's schema is the writer's; None for any.

        Raises ``DefinitionError`` if partitions began with different ids and none are listed.
        """
        if self._listed is not None or poll.schema_id is None:
            return self._listed
        self._began[poll.place] = poll.schema_id
        if len(set(self._began.values())) > 1:
            others = {schema_id: place for place, schema_id in self._began.items()}
            shown = ", ".join(f"{place.rpartition(' ')[2]} with {one}" for one, place in sorted(others.items()))
            raise DefinitionError(
                f"stream {self._stream.name}: partitions began with different schema ids ({shown}), and nothing says which of "
                f"them mean its schema; list those that do, for example schema_ids={sorted(others)}, or give --schema-registry"
            )
        return Accepted(frozenset({poll.schema_id}), listed=False)
