"""The Schema Registry as a run would find it, and whether each stream reads what producers write now."""

import logging
import threading
from collections.abc import Sequence

from unskew.features.definitions.streams import is_pattern
from unskew.features.errors import RequestError
from unskew.features.plan import Plan, StreamPlan
from unskew.pipelines.decoding.avro import AvroDecoder, decoder_of
from unskew.pipelines.decoding.resolve import Unregistered
from unskew.pipelines.decoding.schema_registry import SchemaRegistry
from unskew.pipelines.doctor.asked import LACKS_DEFINITIONS, Asked
from unskew.pipelines.doctor.finding import Finding, NotChecked, failed, made, not_checked

ANSWER_S = 5.0

_log = logging.getLogger("unskew.doctor")


def examine(asked: Asked, plan: Plan | None) -> list[Finding]:
    """Look at the registry, and at the latest schema of each stream's topics."""
    registry: list[SchemaRegistry] = []

    def answers() -> str:
        if asked.schema_registry is None:
            return "none is given: every message is read with its stream's own schema"
        # A registry that does not answer is asked once.
        one = SchemaRegistry(asked.schema_registry, threading.Event(), timeout_s=ANSWER_S, wait_s=0.0)
        one.check()
        registry.append(one)
        return f"{one.shown} answers"

    found = made("Schema Registry", answers)
    if plan is None:
        return [*found, *not_checked("schemas", LACKS_DEFINITIONS)]
    streams = {view.stream.name: view.stream for view in plan.of_topics.views.values() if view.stream.format != "json"}
    for stream in streams.values():
        about = f"schema of {stream.name}"
        if failed(found):
            found = [*found, *not_checked(about, "the Schema Registry does not answer")]
        else:
            found = [*found, *made(about, lambda stream=stream: _read(stream, registry))]  # type: ignore[misc]
    return found


def _read(stream: StreamPlan, registry: Sequence[SchemaRegistry]) -> str:
    decoder = decoder_of(stream, registry[0] if registry else None)
    if not registry:
        return "messages are read with the stream's own schema"
    assert isinstance(decoder, AvroDecoder)
    if is_pattern(stream.sources[0]):
        raise NotChecked("its topics are a pattern, so their subjects are not known")
    read = []
    for topic in stream.sources:
        subject = f"{topic}-value"
        try:
            schema_id = registry[0].latest(subject)
        except Unregistered:
            _log.warning(
                "the registry has no subject %s: nobody has produced yet, or producers name their subjects in another way",
                subject,
            )
            continue
        if (refusal := decoder.refusal(schema_id)) is not None:
            raise RequestError(
                f"the latest schema of {subject} is not one that the stream reads ({refusal.reason}): its messages become dead letters "
                "or are left out; correct the producer, or give the stream a schema into which this one resolves"
            )
        read.append(f"{subject} (id {schema_id})")
    return f"the stream reads {', '.join(read)}" if read else "no message was written yet"
