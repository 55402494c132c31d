"""Checks of a stream definition: where its records come from and what columns they have."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, get_args

import polars as pl

from unskew.features.definitions.avro_schema import READABLE, TIMESTAMP, avro_columns, record_faults, unread_types
from unskew.features.definitions.expressions import unknown_column
from unskew.features.definitions.inputs import Path, flat_avro, forms_of, paths_of, row_of
from unskew.features.definitions.json_schema import json_columns, json_fields
from unskew.features.definitions.schemas import read_schema
from unskew.features.definitions.slots import without_faults
from unskew.features.definitions.vocabulary import Stream, Table
from unskew.features.errors import DefinitionError, RequestError, shown
from unskew.features.local import local_path
from unskew.features.plan import (
    DEFAULT_MAX_AHEAD_US,
    Envelope,
    KeyFormat,
    Operation,
    OtherOperations,
    PayloadFormat,
    ReadAs,
    StreamPlan,
    TablePlan,
)
from unskew.features.time import duration_us, time_zone

# Kafka's own rule.
_TOPIC = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,249}")


def plan_stream(stream: Stream) -> StreamPlan:
    """Read the schema and check every column that the definition names.

    Raises ``DefinitionError`` with all faults found, each half a sentence that says what is wrong and what to do.
    """
    return without_faults(partial(planned_stream, stream))


def planned_stream(stream: Stream, faults: list[str]) -> StreamPlan | None:
    """Check a stream as ``plan_stream`` does, and add what is wrong to ``faults``.

    With faults, the result has the columns that views name and is good for nothing else; None if these are not known.
    """
    columns: dict[str, pl.DataType] = {}
    schema: Mapping[str, Any] = {}
    unread_schema = True
    if not is_known_format(stream):
        faults.append(f"format={stream.format!r} is not known; write one of {', '.join(get_args(PayloadFormat))}")
    else:
        try:
            schema = read_schema(stream.schema)
        except DefinitionError as error:
            faults += error.faults
        else:
            unread_schema = False
    paths = paths_of(stream.fields, faults)
    envelope, operations = _envelope(stream, faults)
    flat: Mapping[str, Any] | None = None
    read_as: dict[str, ReadAs] = {}
    if not unread_schema:
        columns, flat = _schema_columns(stream, schema, paths, faults)
    if columns:
        read_as = forms_of(stream.read_as, columns, faults)
        columns |= {column: form.dtype for column, form in read_as.items()}
    headers = _headers(stream, faults)
    if columns:
        columns |= _record_columns(stream, headers, columns, faults)
    topics = _topics(stream, faults)
    partitioned_by = () if stream.partitioned_by is None else column_names(stream.partitioned_by)
    if partitioned_by is None:
        faults.append(f"partitioned_by={stream.partitioned_by!r} is not a column name; give one, or a list of them")
        partitioned_by = ()
    if stream.aliases and column_names(stream.aliases) is None:
        faults.append(
            f"aliases={stream.aliases!r} is not a list of names; give other names of the stream, or leave it out"
        )
    schema_ids = _schema_ids(stream, faults)
    unread: dict[str, str] = {}
    records = _records(stream, faults)
    if columns:
        unread = _unread(schema, flat) if not faults else {}
        faults += _column_faults(stream, partitioned_by, columns, {} if stream.format == "json" else unread)
    settle_us = _duration(stream.settle, "settle", faults)
    max_age_us = _duration(stream.max_age, "max_age", faults)
    if max_age_us == 0:
        faults.append("max_age is 0, which makes every event a dead letter; leave it out or give it a length")
    max_ahead_us = _duration(stream.max_ahead, "max_ahead", faults)
    dedupe_within_us = _duration(stream.dedupe_within, "dedupe_within", faults)
    if dedupe_within_us is not None:
        faults += _repeat_faults(stream, dedupe_within_us, columns)
    if not columns:
        return None
    return StreamPlan(
        name=stream.name,
        topic=topics[0] if len(topics) == 1 and not is_pattern(topics[0]) else stream.name,
        topics=topics if len(topics) > 1 or is_pattern(topics[0]) else (),
        schema=schema,
        columns=columns,
        event_time=stream.event_time,
        partitioned_by=partitioned_by,
        settle_us=settle_us,
        max_age_us=max_age_us,
        max_ahead_us=DEFAULT_MAX_AHEAD_US if max_ahead_us is None else max_ahead_us,
        owner=stream.owner,
        event_id=stream.event_id,
        dedupe_within_us=dedupe_within_us,
        description=stream.description,
        tags=stream.tags,
        format=stream.format,
        key_column=stream.key_column,
        key_format=stream.key_format,
        headers=headers,
        schema_ids=schema_ids,
        records=records,
        paths=paths,
        flat=flat,
        read_as=read_as,
        envelope=envelope,
        operations=operations,
        refuses_others=stream.other_operations == "dead_letter",
        unread={name: kind for name, kind in unread.items() if name not in columns},
    )


def plan_table(table: Table) -> StreamPlan:
    """Return a table as the stream of its rows. Raises ``DefinitionError`` as ``plan_stream`` does."""
    return without_faults(partial(planned_table, table))


def planned_table(table: Table, faults: list[str]) -> StreamPlan | None:
    """Check a table, and add what is wrong to ``faults``; the result is as that of ``planned_stream``."""
    if not _TOPIC.fullmatch(table.name):
        faults.append(
            f"its rows are archived under its name, {table.name!r}; use only letters, digits, dots, dashes and underscores in it"
        )
        return None
    schema: Mapping[str, Any] = {}
    try:
        schema = read_schema(table.schema)
    except DefinitionError as error:
        faults += error.faults
    paths = table.path if isinstance(table.path, (list, tuple)) else [table.path]
    # A LazyFrame refuses to be compared.
    if not paths or not all(isinstance(one, pl.LazyFrame) or _is_path(one) for one in paths):
        faults.append(f"path={shown(table.path)} is not a path; give one, a list of them, or a Polars LazyFrame")
    for one in paths:
        if _is_path(one):
            try:
                local_path(one, "path")
            except RequestError as error:
                faults.append(f"{error}; or give a Polars LazyFrame that reads it, such as pl.scan_parquet(...)")
    if (table.delay is None) == (table.arrival is None):
        faults.append(
            "give either delay (how long after its event time a row became available) or arrival (the column that says when)"
        )
    delay_us = _duration(table.delay, "delay", faults)
    if table.zone is not None:
        try:
            time_zone(table.zone)
        except DefinitionError as error:
            faults += [f"zone: {fault}" for fault in error.faults]
    columns: Mapping[str, str] = {}
    if isinstance(table.columns, Mapping) and all(
        isinstance(word, str) for pair in table.columns.items() for word in pair
    ):
        columns = table.columns
    else:
        faults.append(f"columns={shown(table.columns)} is not a mapping from columns to columns of the table")
    if not schema and faults:
        # Without columns there is no more to say of it.
        return None
    stream = Stream(
        table.name,
        topic=table.name,
        schema=schema,
        event_time=table.event_time,
        format="avro" if schema.get("type") == "record" else "json",
        read_as=table.read_as,
        event_id=table.event_id,
        dedupe_within=table.dedupe_within,
        max_age=table.max_age,
        owner=table.owner,
        description=table.description,
        tags=table.tags,
        aliases=table.aliases,
    )
    plan = planned_stream(stream, faults)
    if plan is None:
        return None
    faults += [f"columns: {unknown_column(name, plan.columns)}" for name in columns if name not in plan.columns]
    about = TablePlan(
        path=table.path, arrival=table.arrival, delay_us=delay_us or 0, zone=table.zone, renamed=dict(columns)
    )
    return replace(plan, table=about)


def _is_path(given: object) -> bool:
    return isinstance(given, (str, os.PathLike)) and given != ""


def is_known_format(stream: Stream) -> bool:
    """Return true if the stream's format is one of those that can be read; otherwise its schema says nothing."""
    return isinstance(stream.format, str) and stream.format in get_args(PayloadFormat)


def _unread(schema: Mapping[str, Any], flat: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the fields of a valid schema that have no column, with their types as people write them."""
    if schema.get("type") == "record":
        return unread_types(schema if flat is None else flat)
    read = {field.name for field in json_fields(schema)}
    return {
        str(name): str(about.get("type", "anything")) if isinstance(about, Mapping) else "anything"
        for name, about in schema["properties"].items()
        if name not in read
    }


def _schema_columns(
    stream: Stream, schema: Mapping[str, Any], paths: Mapping[str, Path], faults: list[str]
) -> tuple[dict[str, pl.DataType], Mapping[str, Any] | None]:
    """Return the columns that a schema gives, and the Avro schema of the columns if that is another one."""
    if stream.format == "json":
        row = stream.envelope == "debezium" and schema.get("type") == "record" and not record_faults(schema)
        columns, found = json_columns(row_of(schema) if row else schema, paths)
        faults += found
        return columns, None
    malformed = record_faults(schema)
    if malformed or (not paths and stream.envelope is None):
        columns, found = avro_columns(schema)
        faults += found
        return columns, None
    flat = flat_avro(row_of(schema) if stream.envelope == "debezium" else schema, paths, faults)
    columns, found = avro_columns(flat)
    faults += found
    return columns, flat


def _envelope(stream: Stream, faults: list[str]) -> tuple[Envelope | None, tuple[str, ...]]:
    envelope = stream.envelope
    if envelope is not None and envelope not in get_args(Envelope):
        faults.append(
            f"envelope={envelope!r} is not known; write one of {', '.join(get_args(Envelope))}, or leave it out"
        )
    if envelope == "connect" and stream.format != "json":
        faults.append("envelope='connect' is for JSON; Kafka Connect's Avro has none, so leave it out")
    if envelope == "debezium" and stream.format == "protobuf":
        faults.append(
            "envelope='debezium' is for Avro and JSON; leave it out, or have the connector write one of these"
        )
    operations = column_names(stream.operations)
    known = get_args(Operation)
    if operations is None or not all(each in known for each in operations) or len(set(operations)) < len(operations):
        faults.append(
            f"operations={stream.operations!r} is not a list of different operations; they are {', '.join(known)}"
        )
        operations = ()
    if stream.other_operations not in get_args(OtherOperations):
        faults.append(
            f"other_operations={stream.other_operations!r} is not known; write one of {', '.join(get_args(OtherOperations))}"
        )
    if envelope != "debezium":
        if operations != ("c",) or stream.other_operations != "ignore":
            faults.append("operations and other_operations are for envelope='debezium'; add that, or leave them out")
        operations = ()
    elif "d" in operations or "t" in operations:
        faults.append(
            "a delete or truncate has no row after it, so it cannot be an event; leave d and t out of operations"
        )
    return envelope, operations


def is_pattern(topic: str) -> bool:
    """Return true if ``topic`` is a pattern that stands for all topics whose names it matches."""
    return topic.startswith("^")


def _topics(stream: Stream, faults: list[str]) -> tuple[str, ...]:
    """Return the topics of a stream, or its pattern; if these are faulty, a stand-in that is not empty."""
    topics = column_names(stream.topic)
    if topics is None:
        faults.append(
            f"topic={stream.topic!r} is not a topic name; give one, a list of them, or a pattern like '^orders-.*'"
        )
        return (str(stream.topic),)
    if len(topics) == 1 and is_pattern(topics[0]):
        try:
            re.compile(topics[0])
        except re.error as error:
            faults.append(f"the pattern {topics[0]!r} is not a regular expression: {error}; correct it")
    else:
        faults += [
            f"{topic!r} is not a topic name; Kafka's names have up to 249 letters, digits, dots, dashes and underscores"
            for topic in topics
            if not _TOPIC.fullmatch(topic)
        ]
    several = len(topics) > 1 or is_pattern(topics[0])
    if len(set(topics)) < len(topics):
        faults.append(f"topic={list(topics)!r} names a topic twice; leave one out")
    if several and not _TOPIC.fullmatch(stream.name):
        faults.append(
            f"its records are archived under the stream's name, {stream.name!r}; use only letters, digits, dots, dashes and underscores "
            "in it"
        )
    if several and stream.partitioned_by is not None:
        faults.append(
            "partitioned_by does not apply to a stream of several topics, because an entity has a partition in each; leave it out"
        )
    return topics


def column_names(names: object) -> tuple[str, ...] | None:
    """Return the names of one or several columns; None if ``names`` is neither text nor a list of texts."""
    if isinstance(names, str):
        return (names,)
    if isinstance(names, Sequence) and names and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None


def _schema_ids(stream: Stream, faults: list[str]) -> tuple[int, ...]:
    given = stream.schema_ids
    ids: list[Any] = list(given) if isinstance(given, (list, tuple)) else [given]
    if not all(type(each) is int and 0 <= each < 2**32 for each in ids) or len(set(ids)) < len(ids):
        faults.append(
            f"schema_ids={shown(given)} is not a list of different schema ids; they are whole numbers from 0 to 4294967295, each once: write "
            "for example [7, 8]"
        )
        return ()
    if ids and stream.format == "json":
        faults.append(
            "schema_ids applies to Avro and Protobuf only, because JSON values name their fields; leave it out"
        )
    return tuple(ids)


def _records(stream: Stream, faults: list[str]) -> tuple[str, ...]:
    """Return the names of the record types that are events; empty if the definition does not say."""
    if stream.records is None:
        return ()
    names = column_names(stream.records)
    if names is None:
        faults.append(f"records={stream.records!r} is not the name of a record type; give one, or a list of them")
    elif stream.format == "json":
        faults.append(
            "records applies to Avro and Protobuf only; for JSON, choose events by a field that says what they are: where=\"type = 'order'\""
        )
    elif stream.envelope == "debezium":
        faults.append(
            "records has no effect with envelope='debezium', because every change event has the same record type; leave it out, "
            "and choose events with operations"
        )
    return names or ()


def _headers(stream: Stream, faults: list[str]) -> dict[str, str]:
    """Return the columns and the headers that they hold."""
    headers = stream.headers
    if isinstance(headers, Mapping) and all(isinstance(word, str) for pair in headers.items() for word in pair):
        return dict(headers)
    if not headers and not isinstance(headers, (bool, int, float)):
        return {}
    names = None if isinstance(headers, (str, Mapping)) else column_names(headers)
    if names is None:
        faults.append(
            f"headers={headers!r} is neither a list of header names nor a mapping from columns to header names; give one of these"
        )
    return {name: name for name in names or ()}


def _record_columns(
    stream: Stream, headers: Mapping[str, str], columns: Mapping[str, pl.DataType], faults: list[str]
) -> dict[str, pl.DataType]:
    """Return the columns that come from a record's key and headers."""
    found: dict[str, pl.DataType] = {}
    if stream.key_format not in get_args(KeyFormat):
        faults.append(f"key_format={stream.key_format!r} is not known; write one of {', '.join(get_args(KeyFormat))}")
    if stream.key_column is None and stream.key_format != "string":
        faults.append(
            f"key_format={stream.key_format!r} has no effect without key_column; name the key's column, or leave it out"
        )
    if stream.key_column is not None:
        found[str(stream.key_column)] = pl.String() if stream.key_format == "string" else pl.Int64()
    for column in headers:
        if column in found:
            faults.append(f"headers: column {column!r} already holds the record key; give the header another column")
        found[column] = pl.String()
    for column in found:
        if column in columns:
            faults.append(
                f"column {column!r} is already in the schema; give the column of the key or header another name"
            )
        if column.startswith("_") or not column:
            faults.append(f"column {column!r} begins with _, which is reserved, or has no name; give it another name")
    return found


def _column_faults(
    stream: Stream,
    partitioned_by: tuple[str, ...],
    columns: Mapping[str, pl.DataType],
    unread: Mapping[str, str],
) -> list[str]:
    named = {"event_time": (stream.event_time,), "partitioned_by": partitioned_by}
    if stream.event_id is not None:
        named["event_id"] = (stream.event_id,)
    faults = [
        f"{word}: field {name!r} has the type {unread[str(name)]}, which cannot be read; readable types are {READABLE}"
        if str(name) in unread
        else f"{word}: {unknown_column(str(name), columns)}"
        for word, names in named.items()
        for name in names
        if str(name) not in columns
    ]
    dtype = columns.get(str(stream.event_time))
    if dtype is not None and dtype != TIMESTAMP:
        can_be_read = dtype.is_integer() or dtype.is_float() or dtype == pl.String()
        form = "iso" if dtype == pl.String() else "unix-ms"
        read_as = f"say what it holds with read_as={{{stream.event_time!r}: {form!r}}}, or " if can_be_read else ""
        faults.append(
            f"event_time: column {stream.event_time!r} is {dtype}; {read_as}"
            "give it the Avro logical type timestamp-millis or timestamp-micros, or in a JSON Schema the format date-time or unix-time-ms"
        )
    return faults


def _repeat_faults(stream: Stream, within_us: int, columns: Mapping[str, pl.DataType]) -> list[str]:
    if stream.event_id is None:
        return [
            "dedupe_within needs an event_id, which identifies repeats; name its column, or leave dedupe_within out"
        ]
    faults = []
    if within_us <= 0:
        faults.append(
            f"dedupe_within is {stream.dedupe_within!r}, and nothing can repeat within that; leave it out or give it a length"
        )
    dtype = columns.get(str(stream.event_id))
    if dtype is not None and not (dtype.is_integer() or dtype == pl.String()):
        faults.append(
            f"event_id: column {stream.event_id!r} is {dtype}; to drop repeats it must be a whole number or a string"
        )
    return faults


def _duration(duration: Any, word: str, faults: list[str]) -> int | None:
    try:
        return None if duration is None else duration_us(duration)
    except DefinitionError as error:
        faults += [f"{word}: {fault}" for fault in error.faults]
        return None
