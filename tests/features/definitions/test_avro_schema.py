import polars as pl
import pytest

from unskew.features.definitions.avro_schema import avro_columns, unread_types


def record(*types: object) -> dict[str, object]:
    return {"type": "record", "name": "R", "fields": [{"name": f"c{i}", "type": t} for i, t in enumerate(types)]}


@pytest.mark.parametrize(
    ("avro", "dtype"),
    [
        ("int", pl.Int32()),
        ("long", pl.Int64()),
        ("float", pl.Float32()),
        ("double", pl.Float64()),
        ("boolean", pl.Boolean()),
        ("string", pl.String()),
        ("bytes", pl.Binary()),
        (["null", "double"], pl.Float64()),
        (["string", "null"], pl.String()),
        ({"type": "string"}, pl.String()),
        ({"type": "long", "logicalType": "timestamp-micros"}, pl.Datetime("us", "UTC")),
        ({"type": "long", "logicalType": "timestamp-millis"}, pl.Datetime("us", "UTC")),
        (["null", {"type": "long", "logicalType": "timestamp-millis"}], pl.Datetime("us", "UTC")),
        ({"type": "long", "logicalType": "timestamp-nanos"}, pl.Datetime("us", "UTC")),
        ({"type": "long", "logicalType": "local-timestamp-millis"}, pl.Datetime("us", "UTC")),
        ({"type": "int", "logicalType": "date"}, pl.Date()),
        ({"type": "int", "logicalType": "time-millis"}, pl.Time()),
        ({"type": "long", "logicalType": "time-micros"}, pl.Time()),
        ({"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}, pl.Decimal(38, 2)),
        ({"type": "fixed", "name": "D", "size": 8, "logicalType": "decimal", "precision": 9}, pl.Decimal(38, 0)),
        ({"type": "bytes", "logicalType": "decimal", "precision": 77, "scale": 2}, pl.Binary()),
        ({"type": "string", "logicalType": "uuid"}, pl.String()),
        ({"type": "long", "logicalType": "unheard-of"}, pl.Int64()),
        ({"type": "enum", "name": "E", "symbols": ["a"]}, pl.String()),
        ({"type": "fixed", "name": "F", "size": 4}, pl.Binary()),
    ],
)
def test_avro_type_becomes_its_column(avro, dtype):
    assert avro_columns(record(avro)) == ({"c0": dtype}, [])


def test_named_type_is_known_at_its_second_use():
    enum = {"type": "enum", "name": "E", "symbols": ["a"]}

    assert avro_columns(record(enum, ["null", "E"])) == ({"c0": pl.String(), "c1": pl.String()}, [])


@pytest.mark.parametrize(
    ("avro", "spelled"),
    [
        ({"type": "array", "items": "long"}, "array"),
        ({"type": "map", "values": "long"}, "map"),
        ({"type": "record", "name": "Inner", "fields": []}, "record"),
        (["null", "long", "string"], "null | long | string"),
        ("null", "null"),
    ],
)
def test_type_that_is_not_read_has_no_column(avro, spelled):
    assert avro_columns(record("long", avro)) == ({"c0": pl.Int64()}, [])
    assert unread_types(record("long", avro)) == {"c1": spelled}


@pytest.mark.parametrize(
    ("schema", "fault"),
    [
        ({"type": "record", "name": "R"}, "the Avro schema has no fields"),
        (
            {"type": "record", "name": "R", "fields": [{"name": "c", "type": "money"}]},
            "the Avro schema is not valid: there is no type 'money'; types are",
        ),
        (
            {"type": "record", "name": "R", "fields": [{"name": "c", "type": "strings"}]},
            "there is no type 'strings'; did you mean 'string'?",
        ),
        ({}, "the Avro schema has no type; give a record"),
        ({"type": "enum", "name": "E", "symbols": ["a"]}, "the Avro schema has the type 'enum'; give a record"),
        ({"type": "record", "name": "R", "fields": []}, "the Avro schema has no fields"),
        (record("null"), "the Avro schema has no field of a readable type; these are int,"),
        (
            {"type": "record", "name": "R", "fields": [{"name": "_offset", "type": "long"}]},
            "begins with _, which is reserved",
        ),
    ],
)
def test_schema_that_is_no_record_of_columns_is_a_fault(schema, fault):
    columns, faults = avro_columns(schema)

    assert columns == {}
    assert len(faults) == 1
    assert fault in faults[0]
