"""Confluent-framed Avro messages of one poll as typed Polars columns, and dead letters for those that are not events.

Messages are read with the schema with which they were written (``reading``), and their columns are then resolved into
the stream's (``resolve``). A Schema Registry knows the writers' schemas (``writers``); without one, the stream's own
schema is the writer's, and the definition says which schema ids mean it, or the partition's first record does.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
from typing_extensions import override

from unskew.features.definitions.inputs import is_envelope
from unskew.features.errors import DefinitionError
from unskew.features.plan import StreamPlan
from unskew.features.rejection import Rejection
from unskew.pipelines.decoding.avro_walk import schema_ids_of
from unskew.pipelines.decoding.branching import Target, reads_of, reads_record
from unskew.pipelines.decoding.changes import Changes
from unskew.pipelines.decoding.decoder import Decoded, Decoder, Read, merged
from unskew.pipelines.decoding.json import JsonDecoder
from unskew.pipelines.decoding.reading import Accepted, Reads, Unframed, read_by_choice
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
    ids with which partitions began in earlier runs, by the journal's name of the partition. Raises ``DefinitionError``
    if these differ, and the stream neither lists ids nor has ``schemas``; so does ``decode``.
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
        raw = {column: form.raw for column, form in stream.read_as.items()}
        self._empty = pl.DataFrame(schema={**self.payload, **raw})
        self._writers: Writers | None
        target = Target.of(stream)

        def of_record(writer: Mapping[str, Any]) -> Reads:
            return Changes(writer, stream, target) if stream.envelope == "debezium" else reads_record(writer, target)

        if stream.format == "protobuf":
            # Its packages are an extra.
            from unskew.pipelines.decoding.protobuf import messages_of  # noqa: PLC0415

            if schemas is None:
                raise DefinitionError(
                    f"stream {stream.name}: messages in Protobuf are read with their writers' schemas, which only a Schema "
                    "Registry knows; use --schema-registry"
                )
            self._own: Reads = Unframed(stream.topic)
            self._writers = Writers(stream.topic, schemas.files, lambda files: messages_of(files, target), monotonic)
            return
        if stream.envelope == "debezium" and not is_envelope(stream.schema):
            if schemas is None:
                raise DefinitionError(
                    f"stream {stream.name}: its schema is that of a row, and without a Schema Registry nothing says how change "
                    "events are written; give it the schema of the whole event, with op and after, or use --schema-registry"
                )
            # Only messages without a frame come to it.
            self._own = Unframed(stream.topic)
        else:
            self._own = of_record(stream.schema)
        self._writers = (
            None
            if schemas is None
            else Writers(stream.topic, schemas.writer, lambda writer: reads_of(writer, target, of_record), monotonic)
        )
        self._compare_beginnings()

    def refusal(self, schema_id: int) -> Rejection | None:
        """Return why messages of a schema, which is asked of the registry, are no events; None if they are read."""
        found = self._find(schema_id, decided=False)
        if found is None:
            return Rejection("schema", f"schema {schema_id}: it is of a record type that the stream does not read")
        return found if isinstance(found, Rejection) else None

    @override
    def decode_together(self, polls: Sequence[Poll]) -> tuple[pl.DataFrame, list[Decoded]]:
        for poll in polls:
            # A poll without records tells of its partition too, for example after a restart.
            if poll.schema_id is not None and self._began.get(poll.place) != poll.schema_id:
                self._began[poll.place] = poll.schema_id
                self._compare_beginnings()
        return super().decode_together(polls)

    @override
    def _read(self, poll: Poll, reasons: dict[int, Rejection]) -> Read:
        rows, values = np.arange(len(poll.values)), poll.values
        if self._stream.envelope == "debezium" and not self._stream.refuses_others and (values.sizes < 0).any():
            # Debezium puts one after each delete.
            rows = np.flatnonzero(values.sizes >= 0)
            values = values.at(rows)
        if self._writers is None:
            return merged([self._own.read(rows, values, reasons, self._accepted(poll))], self._empty)
        ids = schema_ids_of(values)

        def refuse(places: npt.NDArray[np.int64], why: Rejection) -> None:
            reasons.update(dict.fromkeys(rows[places].tolist(), why))
            self.incompatible += len(places)

        # Those of most messages come first, because there may be more unknown ids than may be asked for.
        read, frame = read_by_choice(
            ids, lambda schema_id: self._find(schema_id, decided=poll.decided), rows, values, reasons, refuse=refuse
        )
        return (read, frame) if len(read) else (read, self._empty)

    def _find(self, schema_id: int, *, decided: bool) -> Rejection | Reads | None:
        assert self._writers is not None
        if schema_id < 0:
            # Without a frame any reading can give the reason.
            return self._own
        if self._listed is not None and schema_id not in self._listed.ids:
            return Rejection("schema", self._listed.fault(schema_id))
        return self._writers.find(schema_id, decided=decided)

    def _accepted(self, poll: Poll) -> Accepted | None:
        """Return the ids that a poll's messages may carry if the stream's schema is the writer's; None for any."""
        if self._listed is not None or poll.schema_id is None:
            return self._listed
        return Accepted(frozenset({poll.schema_id}), listed=False)

    def _compare_beginnings(self) -> None:
        """Raise ``DefinitionError`` if partitions began with different ids, and nothing says what they mean."""
        if self._writers is None and self._listed is None and len(set(self._began.values())) > 1:
            others = {schema_id: place for place, schema_id in self._began.items()}
            shown = ", ".join(f"{place.rpartition(' ')[2]} with {one}" for one, place in sorted(others.items()))
            raise DefinitionError(
                f"stream {self._stream.name}: partitions began with different schema ids ({shown}), and nothing says which of "
                f"them mean its schema; list those that do, for example schema_ids={sorted(others)}, or give --schema-registry"
            )
