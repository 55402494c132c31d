"""How messages are read, by the ids of the schemas with which they were written, as a Schema Registry knows them.

Ids come from messages, so anybody who can write to the topic chooses them. What is remembered of them, and the time
that asking for unknown ones may take, are bounded. An id that the registry does not know may be registered later, so it
is asked for again, with growing pauses; its messages are dead letters until then.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from unskew.features.rejection import Rejection
from unskew.pipelines.decoding.reading import Reads
from unskew.pipelines.decoding.resolve import Incompatible, Unregistered

KEPT = 1_000
"""So many schemas, and so many ids that the registry does not know, are remembered; the latest used ones."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0
"""An id that the registry does not know is asked for again after such pauses, each twice the one before."""
ANSWERS, ANSWERS_PER_S = 20, 1.0
"""So many times the registry may answer at once that it does not know an id, and so often per second after that.

Then it is not asked for ids that are new, so that a flood of them does not hold up the other messages.
"""
Files = Sequence[tuple[str, bytes]]
"""A schema of Protobuf: the names of files and their descriptors, as bytes; the schema itself has the empty name."""

# A registry counts in 32 bits with a sign.
_LARGEST_ID = 2**31 - 1

_log = logging.getLogger("unskew.decode")


class Schemas(Protocol):
    """A source of writers' schemas, by the ids that messages carry."""

    def writer(self, schema_id: int, *, expected: bool = False) -> Any:
        """Return the parsed schema, a record or a union of records; may wait for it.

        ``expected``: an earlier run had the schema, so a source that does not know it has yet to catch up. Raises
        ``Unregistered`` if there is no such schema, ``Incompatible`` if it is not one of records.
        """

    def files(self, schema_id: int, *, expected: bool = False) -> Files:
        """Return a schema of Protobuf, with those to which it refers; otherwise as ``writer``."""


class Ask(Protocol):
    """A method of ``Schemas``."""

    def __call__(self, schema_id: int, *, expected: bool = False) -> Any: ...


@dataclass(slots=True)
class _Unknown:
    """An id that the registry did not know: when it may be asked for again, and the pause after that."""

    again_s: float
    pause_s: float


class Writers:
    """The ways to read messages, by schema id.

    ``ask``: returns the schema of an id. ``reads``: makes a way from a writer's schema; None if the schema's records
    are not events of the stream. Raises ``Incompatible``. ``monotonic``: only decides when the registry is asked; what
    was refused meanwhile is in the journal.
    """

    def __init__(
        self, topic: str, ask: Ask, reads: Callable[[Any], Reads | None], monotonic: Callable[[], float]
    ) -> None:
        self._topic = topic
        self._ask = ask
        self._reads = reads
        self._monotonic = monotonic
        self._found: OrderedDict[int, Reads | Rejection | None] = OrderedDict()
        self._unknown: OrderedDict[int, _Unknown] = OrderedDict()
        self._answers = float(ANSWERS)
        self._counted_s = monotonic()

    def find(self, schema_id: int, *, decided: bool) -> Reads | Rejection | None:
        """Return how messages of a schema are read; None if they are ignored, or why they cannot be read.

        ``decided``: an earlier run has read such messages, and refusing them now would contradict it.
        """
        if schema_id in self._found:
            self._found.move_to_end(schema_id)
            return self._found[schema_id]
        if schema_id > _LARGEST_ID:
            return Rejection("schema", f"schema {schema_id}: it is not an id that a registry gives")
        if not decided and (refused := self._not_asked(schema_id)) is not None:
            return refused
        try:
            writer = self._ask(schema_id, expected=decided)
            found = self._reads(writer)
        except Unregistered as fault:
            self._answers -= 1
            self._note_unknown(schema_id, fault)
            return Rejection("schema", f"schema {schema_id}: {fault}")
        except Incompatible as fault:
            _log.error(
                "Topic %r: messages with schema id %d cannot be read and become dead letters: %s. Correct the producer, "
                "or give the stream a schema into which this one resolves, and read the topic again from there.",
                self._topic,
                schema_id,
                fault,
            )
            return self._keep(schema_id, Rejection("schema", f"schema {schema_id}: {fault}"))
        if found is None:
            _log.warning(
                "Topic %r: messages with schema id %d are of a record type that the stream does not read, and are ignored; if "
                "they are events of the stream, name their type under `records`",
                self._topic,
                schema_id,
            )
        else:
            _log.info(
                "Topic %r: messages with schema id %d are resolved into the stream's schema", self._topic, schema_id
            )
        self._unknown.pop(schema_id, None)
        return self._keep(schema_id, found)

    def _not_asked(self, schema_id: int) -> Rejection | None:
        """Return why the registry is not asked for an id at this moment; None if it may be."""
        now_s = self._monotonic()
        self._answers = min(self._answers + (now_s - self._counted_s) * ANSWERS_PER_S, float(ANSWERS))
        self._counted_s = now_s
        known = self._unknown.get(schema_id)
        if known is not None and now_s < known.again_s:
            return Rejection("schema", f"schema {schema_id}: the registry has no such schema")
        if self._answers < 1:
            return Rejection(
                "schema", f"schema {schema_id}: it was not looked up, because the registry does not know many others"
            )
        return None

    def _note_unknown(self, schema_id: int, fault: Unregistered) -> None:
        known = self._unknown.pop(schema_id, None)
        pause_s = FIRST_PAUSE_S if known is None else min(2 * known.pause_s, LONGEST_PAUSE_S)
        if known is None:
            _log.error(
                "Topic %r: messages with schema id %d become dead letters: %s. It is asked again, with growing pauses; "
                "`unskew dead-letters replay` sends them again once it knows the id.",
                self._topic,
                schema_id,
                fault,
            )
        self._unknown[schema_id] = _Unknown(self._monotonic() + pause_s, pause_s)
        if len(self._unknown) > KEPT:
            self._unknown.popitem(last=False)

    def _keep(self, schema_id: int, found: Reads | Rejection | None) -> Reads | Rejection | None:
        self._found[schema_id] = found
        if len(self._found) > KEPT:
            self._found.popitem(last=False)
        return found
