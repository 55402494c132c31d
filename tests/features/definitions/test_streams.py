from typing import Any

import polars as pl
import pytest

from unskew.features.definitions.compile import compile
from unskew.features.definitions.documents import definition_of
from unskew.features.definitions.json_schema import json_columns
from unskew.features.definitions.streams import plan_stream
from unskew.features.definitions.vocabulary import Stream, Table
from unskew.features.errors import DefinitionError

AVRO = {
    "type": "record",
    "name": "R",
    "fields": [
        {"name": "user", "type": "string"},
        {"name": "items", "type": {"type": "array", "items": "long"}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ],
}
JSON = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "properties": {
        "user": {"type": "string"},
        "amount": {"type": ["number", "null"]},
        "items": {"type": "array", "items": {"type": "integer"}},
        "at": {"type": "string", "format": "date-time"},
        "seen": {"type": "integer", "format": "unix-time"},
    },
}
INSTANT = pl.Datetime("us", "UTC")


def stream(schema=AVRO, **more):
    return Stream(**{"name": "s", "topic": "t", "schema": schema, "event_time": "at", **more})


def faults(**more):
    with pytest.raises(DefinitionError) as refused:
        plan_stream(stream(**more))
    return refused.value.faults


def test_key_and_headers_are_columns_beside_those_of_the_schema():
    plan = plan_stream(stream(key_column="id", key_format="int64", headers={"tenant": "x-tenant"}, partitioned_by="id"))

    assert plan.columns == {"user": pl.String(), "at": INSTANT, "id": pl.Int64(), "tenant": pl.String()}
    assert (plan.key_column, plan.key_format, plan.headers) == ("id", "int64", {"tenant": "x-tenant"})
    assert plan_stream(stream(headers=["trace"])).headers == {"trace": "trace"}


def test_a_json_schema_gives_columns_and_what_has_none_is_left_out():
    plan = plan_stream(stream(JSON, format="json"))

    assert plan.columns == {"user": pl.String(), "amount": pl.Float64(), "at": INSTANT, "seen": INSTANT}
    assert plan.format == "json"
    assert plan_stream(stream(AVRO, format="json")).columns == {"user": pl.String(), "at": INSTANT}


def test_a_field_without_a_column_is_a_fault_only_where_it_is_named():
    (fault,) = faults(partitioned_by="items")

    assert fault.startswith(
        "partitioned_by: field 'items' has the type array, which cannot be read; readable types are int,"
    )


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ({"format": "xml"}, "format='xml' is not known; write one of avro, json, protobuf"),
        (
            {"key_column": "id", "key_format": "uuid"},
            "key_format='uuid' is not known; write one of string, int64, int32",
        ),
        (
            {"key_column": "user"},
            "column 'user' is already in the schema; give the column of the key or header another name",
        ),
        (
            {"key_column": "_key"},
            "column '_key' begins with _, which is reserved, or has no name; give it another name",
        ),
        (
            {"key_column": "id", "headers": ["id"]},
            "headers: column 'id' already holds the record key; give the header another column",
        ),
        (
            {"headers": "tenant"},
            "headers='tenant' is neither a list of header names nor a mapping from columns to header names; give one of these",
        ),
        (
            {"headers": {"a": 1}},
            "headers={'a': 1} is neither a list of header names nor a mapping from columns to header names; give one of these",
        ),
        (
            {"schema": {"type": "array"}, "format": "json"},
            "the schema of JSON messages is neither a JSON Schema of an object with properties nor an Avro record schema; give one of these",
        ),
        (
            {"schema": {"type": "object", "properties": {"a": {"type": "array"}}}, "format": "json"},
            "the schema has no property that is an integer, number, string or boolean; a column must be one of these",
        ),
    ],
)
def test_a_faulty_stream_says_what_to_do(more, fault):
    assert faults(**more) == [fault]


def test_the_event_time_of_json_is_told_how_to_be_one():
    (fault,) = faults(schema=JSON, format="json", event_time="user")

    assert "in a JSON Schema the format date-time or unix-time-ms" in fault


def test_a_document_has_the_same_words():
    fields = {
        "name": "s",
        "topic": "t",
        "schema": JSON,
        "event_time": "at",
        "format": "json",
        "key_column": "id",
        "key_format": "int32",
        "headers": {"tenant": "x-tenant"},
    }

    assert definition_of({"stream": fields}) == Stream(**fields)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ({"required": None}, "required is None"),
        ({"required": 5}, "required is 5"),
        ({"properties": {"a": {"type": 5}}}, "property 'a' has the type 5"),
        ({"properties": {"a": {"type": [{}]}}}, "property 'a' has the type [{}]"),
        ({"properties": {"a": {"type": [["a"]]}}}, "property 'a' has the type [['a']]"),
        ({"properties": {"a": {"type": "string", "enum": 5}}}, "property 'a' has the enum 5"),
    ],
)
def test_a_json_schema_that_is_none_is_a_fault(words, fault):
    _, faults = json_columns({"type": "object", "properties": {"a": {"type": "string"}}} | words)

    assert len(faults) == 1
    assert faults[0].startswith(fault)


@pytest.mark.parametrize("word", ["event_time", "event_id"])
def test_a_column_that_is_no_name_is_a_fault(word):
    with pytest.raises(DefinitionError, match=f"{word}: the stream has no column"):
        plan_stream(stream(**{word: ["at"]}))


@pytest.mark.parametrize("schema", ["\ud800", "a\0b"])
def test_a_schema_that_can_be_no_file_is_a_fault_that_can_be_printed(schema):
    (fault,) = faults(schema=schema)

    assert fault.startswith(f"the schema {schema!r} is not a path")
    assert fault.encode()


def test_lists_of_a_json_schema_may_be_tuples():
    columns = {"a": {"type": ("string", "null"), "enum": ("x", "y")}}

    assert json_columns({"type": "object", "required": ("a",), "properties": columns}) == ({"a": pl.String()}, [])


TABLE_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "no delay": ({"delay": None}, "stream lines: give either delay .* or arrival"),
    "both": ({"arrival": "loaded"}, "stream lines: give either delay .* or arrival"),
    "a bad delay": ({"delay": "soon"}, "'soon' is not a duration"),
    "no path": ({"path": []}, "path=.* is not a path; give one, a list of them, or a Polars LazyFrame"),
    "an empty path": ({"path": ""}, "path='' is not a path"),
    "an address": ({"path": ["a", "s3://bucket/table"]}, "path s3://bucket/table: it is an address.*Polars LazyFrame"),
    "a name": ({"name": "a/b"}, "archived under its name, 'a/b'"),
    "a zone": ({"zone": "Mars"}, "zone: .*Mars"),
    "a column": ({"columns": {"usr": "uid"}}, "columns: .*usr"),
    "columns": ({"columns": ["uid"]}, "columns=.* is not a mapping"),
    "event time": ({"event_time": "at_all"}, "at_all"),
}


@pytest.mark.parametrize("title", TABLE_FAULTS)
def test_a_faulty_table_is_a_fault_of_its_definition(title: str) -> None:
    changes, message = TABLE_FAULTS[title]
    schema = {
        "type": "record",
        "name": "Line",
        "fields": [
            {"name": "user", "type": "string"},
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        ],
    }
    right = {"name": "lines", "path": "lines.parquet", "schema": schema, "event_time": "at", "delay": "1h"}
    plan = compile(Table(**right)).streams["lines"]
    assert plan.table is not None
    assert plan.table.delay_us == 3_600_000_000

    with pytest.raises(DefinitionError, match=message):
        compile(Table(**{**right, **changes}))
