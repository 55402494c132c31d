"""A stream's definition as data that lies beside a log, so that its views can be compiled again from the log alone."""

from collections.abc import Mapping
from typing import Any

import msgspec
import polars as pl

from unskew.features.definitions.streams import plan_stream, plan_table
from unskew.features.definitions.vocabulary import Stream, Table
from unskew.features.errors import DefinitionError, LayoutError
from unskew.features.plan import StreamPlan
from unskew.features.time import format_duration

_A_FRAME = "a Polars frame"


def words_of(stream: StreamPlan) -> dict[str, Any]:
    """Return a stream's, or a table's, definition as plain data, without its aliases: ``stream_of`` reads it."""
    kind, definition = ("stream", _stream(stream)) if stream.table is None else ("table", _table(stream))
    words: dict[str, Any] = msgspec.to_builtins(definition)
    return {kind: words}


def stream_of(words: Mapping[str, Any], place: str) -> StreamPlan:
    """Return the plan of what ``words_of`` gave.

    ``place``: where it stands, for messages. Raises ``LayoutError`` if it cannot be read.
    """
    try:
        return plan_table(Table(**words["table"])) if "table" in words else plan_stream(Stream(**words["stream"]))
    except (DefinitionError, KeyError, TypeError, ValueError) as error:
        raise LayoutError(
            f"{place}: what it says of its stream cannot be read ({error}); give the definitions with --definitions"
        ) from error


def _stream(plan: StreamPlan) -> Stream:
    return Stream(
        plan.name,
        topic=plan.topic if not plan.topics else plan.topics[0] if len(plan.topics) == 1 else plan.topics,
        schema=plan.schema,
        event_time=plan.event_time,
        format=plan.format,
        key_column=plan.key_column,
        key_format=plan.key_format,
        headers=plan.headers,
        partitioned_by=plan.partitioned_by or None,
        settle=_duration(plan.settle_us),
        max_ahead=_duration(plan.max_ahead_us),
        schema_ids=plan.schema_ids,
        records=plan.records or None,
        fields={column: ".".join(path) for column, path in plan.paths.items()},
        envelope=plan.envelope,
        operations=plan.operations or ("c",),  # type: ignore[arg-type]  # they were checked
        other_operations="dead_letter" if plan.refuses_others else "ignore",
        **_shared(plan),
    )


def _table(plan: StreamPlan) -> Table:
    assert plan.table is not None
    paths = plan.table.path if isinstance(plan.table.path, (list, tuple)) else [plan.table.path]
    return Table(
        plan.name,
        path=[_A_FRAME if isinstance(path, pl.LazyFrame) else str(path) for path in paths],
        schema=plan.schema,
        event_time=plan.event_time,
        delay=None if plan.table.arrival is not None else _duration(plan.table.delay_us),
        arrival=plan.table.arrival,
        zone=plan.table.zone,
        columns=plan.table.renamed,
        **_shared(plan),
    )


def _shared(plan: StreamPlan) -> dict[str, Any]:
    return {
        "event_id": plan.event_id,
        "dedupe_within": _duration(plan.dedupe_within_us),
        "max_age": _duration(plan.max_age_us),
        "read_as": {column: form.text for column, form in plan.read_as.items()},
        "owner": plan.owner,
        "description": plan.description,
        "tags": plan.tags,
    }


def _duration(n_us: int | None) -> str | None:
    return None if n_us is None else format_duration(n_us)
