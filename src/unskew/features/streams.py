"""A stream definition, checked: where its records come from and what columns they have."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from unskew.features.avro import TIMESTAMP, avro_columns
from unskew.features.definitions import Stream
from unskew.features.errors import DefinitionError
from unskew.features.expressions import unknown_column
from unskew.features.plan import StreamPlan
from unskew.features.schemas import read_schema
from unskew.features.time import duration_us

# Kafka's own rule.
_TOPIC = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")


def plan_stream(stream: Stream) -> StreamPlan:
    """Read the schema and check every column the definition names.

    Raises ``DefinitionError`` with all faults found, each half a sentence that says what is wrong and what to do.
    """
    faults: list[str] = []
    columns: dict[str, pl.DataType] = {}
    schema: Mapping[str, Any] = {}
    try:
        schema = read_schema(stream.schema)
    except DefinitionError as error:
        faults += error.faults
    else:
        columns, schema_faults = avro_columns(schema)
        faults += schema_faults
    if not isinstance(stream.topic, str) or not _TOPIC.fullmatch(stream.topic):
        faults.append(
            f"{stream.topic!r} is no topic name; Kafka's have up to 249 letters, digits, dots, dashes and underscores"
        )
    partitioned_by = () if stream.partitioned_by is None else column_names(stream.partitioned_by)
    if partitioned_by is None:
        faults.append(f"partitioned_by={stream.partitioned_by!r} is no column name; give one or a list of them")
        partitioned_by = ()
    if stream.aliases and column_names(stream.aliases) is None:
        faults.append(
            f"aliases={stream.aliases!r} is no list of names; give other names of the stream, or leave it out"
        )
    if columns:
        faults += _column_faults(stream, partitioned_by, columns)
    settle_us = _duration(stream.settle, "settle", faults)
    max_age_us = _duration(stream.max_age, "max_age", faults)
    if max_age_us == 0:
        faults.append("max_age is 0, which makes every event a dead letter; leave it out or give it a length")
    if faults:
        raise DefinitionError(faults)
    return StreamPlan(
        name=stream.name,
        topic=stream.topic,
        schema=schema,
        columns=columns,
        event_time=stream.event_time,
        partitioned_by=partitioned_by,
        settle_us=settle_us,
        max_age_us=max_age_us,
        owner=stream.owner,
        event_id=stream.event_id,
        description=stream.description,
    )


def column_names(names: object) -> tuple[str, ...] | None:
    """Names of a single column or of several; None where ``names`` is neither a text nor a list of texts."""
    if isinstance(names, str):
        return (names,)
    if isinstance(names, Sequence) and names and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None


def _column_faults(stream: Stream, partitioned_by: tuple[str, ...], columns: Mapping[str, pl.DataType]) -> list[str]:
    named = {"event_time": (stream.event_time,), "partitioned_by": partitioned_by}
    if stream.event_id is not None:
        named["event_id"] = (stream.event_id,)
    faults = [
        f"{word}: {unknown_column(str(name), columns)}"
        for word, names in named.items()
        for name in names
        if str(name) not in columns
    ]
    dtype = columns.get(str(stream.event_time))
    if dtype is not None and dtype != TIMESTAMP:
        faults.append(
            f"event_time: column {stream.event_time!r} is {dtype}; "
            "give it the Avro logical type timestamp-millis or timestamp-micros"
        )
    return faults


def _duration(duration: Any, word: str, faults: list[str]) -> int | None:
    try:
        return None if duration is None else duration_us(duration)
    except DefinitionError as error:
        faults += [f"{word}: {fault}" for fault in error.faults]
        return None
