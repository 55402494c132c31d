"""Columns, types and names of the Parquet tables are what trainers' queries rest on: a change here is a decision."""

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.plans import DAY, Wanted, sliding, view
from tests.support.typed import FULL, ORDERS
from tests.support.updates import updates
from unskew.sinks.tables.kinds import DEAD_LETTER_SCHEMA, LogTable
from unskew.sinks.tables.layout import published_files

VISITS = view(
    Wanted("n", "count", sliding(DAY, DAY)),
    Wanted("mean", "mean", sliding(DAY, DAY), "x"),
    Wanted("online", "last", sliding(DAY, DAY), "x > 0", of="bool"),
    keys={"user": "string", "shop": "int64"},
    name="visits",
)
INSTANT = pl.Datetime("us", "UTC")


def test_log_rows_and_their_place(tmp_path):
    log = LogTable(tmp_path, VISITS, "p0.1", None, now_us=lambda: 1_600_000_000_000_000)
    row = {"user": "a", "shop": 7, "n": 1, "mean": None, "online": True, "available_at": 1_483_228_800_000_000}
    event = {**row, "event_time": 1_483_228_799_000_000, "partition": 0, "offset": 4, "cause": "event", "seq": 0}
    hop = {**row, "n": 0, "available_at": 1_483_228_800_000_001, "cause": "hop", "seq": 1}
    log.append(
        updates(VISITS, 1_483_228_800_000_002, log_rows=[event, hop], shard="p0.1", since_us=1_483_228_800_000_000)
    )
    saved = log.snapshot()
    log.settle()

    (path,) = [file.path for file in published_files(tmp_path / "visits" / "v1")]
    rows = pl.read_parquet(path, hive_partitioning=False)

    assert saved == {"next": 2, "since": 1_483_228_800_000_000, "complete_to": 1_483_228_800_000_001}
    assert str(path.relative_to(tmp_path)) == (
        "visits/v1/day=2017-01-01/p0.1-00000000000000000000-00000000000000000001.parquet"
    )
    assert list(rows.schema.items()) == [
        ("user", pl.String()),
        ("shop", pl.Int64()),
        ("n", pl.Int64()),
        ("mean", pl.Float64()),
        ("online", pl.Boolean()),
        ("available_at", INSTANT),
        ("event_time", INSTANT),
        ("partition", pl.Int32()),
        ("offset", pl.Int64()),
        ("cause", pl.String()),
        ("written_at", INSTANT),
        ("shard", pl.String()),
        ("seq", pl.Int64()),
    ]
    instants = rows.with_columns(pl.col("available_at", "event_time", "written_at").to_physical())
    assert instants.rows() == [
        (
            "a",
            7,
            1,
            None,
            True,
            1_483_228_800_000_000,
            1_483_228_799_000_000,
            0,
            4,
            "event",
            1_600_000_000_000_000,
            "p0.1",
            0,
        ),
        ("a", 7, 0, None, True, 1_483_228_800_000_001, None, None, None, "hop", 1_600_000_000_000_000, "p0.1", 1),
    ]
    metadata = pl.read_parquet_metadata(path)
    assert {name: text for name, text in metadata.items() if name.startswith("unskew.")} == {
        "unskew.layout": "1",
        "unskew.checksum": "crc32",
        "unskew.view": "visits",
        "unskew.version": "1",
        "unskew.state_fingerprint": VISITS.state_fingerprint,
        "unskew.presentation_fingerprint": VISITS.presentation_fingerprint,
    }


def test_columns_of_every_type_as_polars_and_others_read_them(tmp_path):
    log = LogTable(tmp_path, ORDERS, "h0", None, now_us=lambda: 0)
    row = {"user": "a", **FULL, "available_at": 5, "cause": "hop", "seq": 0}
    log.append(updates(ORDERS, 9, log_rows=[row, {"user": "a", "available_at": 6, "cause": "hop", "seq": 1}]))
    log.snapshot()
    log.settle()

    (path,) = [file.path for file in published_files(tmp_path / "orders" / "v1")]
    rows = pl.read_parquet(path, hive_partitioning=False).drop(
        "user", "available_at", "event_time", "partition", "offset", "cause", "written_at", "shard", "seq"
    )

    def map_of(value):
        return pl.List(pl.Struct({"key": pl.String(), "value": value}))

    money = pl.Decimal(38, 2)
    assert list(rows.schema.items()) == [
        ("n", pl.Int64()),
        ("spend", money),
        ("rate", pl.Float64()),
        ("gift", pl.Boolean()),
        ("shop", pl.String()),
        ("dearest", money),
        ("since", INSTANT),
        ("counts", pl.List(pl.Int64())),
        ("rates", pl.List(pl.Float64())),
        ("gifts", pl.List(pl.Boolean())),
        ("shops", pl.List(pl.String())),
        ("prices", pl.List(money)),
        ("times", pl.List(INSTANT)),
        ("n_by_shop", map_of(pl.Int64())),
        ("rate_by_shop", map_of(pl.Float64())),
        ("spend_by_shop", map_of(money)),
        ("share", pl.Float64()),
        ("is_new", pl.Boolean()),
    ]
    assert rows.to_dicts() == [FULL, dict.fromkeys(FULL)]
    found = pq.read_schema(path)
    assert found.field("spend").type == pa.decimal128(38, 2)
    assert found.field("since").type == pa.timestamp("us", tz="UTC")
    assert [field.name for field in found.field("spend_by_shop").type.value_type] == ["key", "value"]


def test_dead_letter_columns():
    assert list(DEAD_LETTER_SCHEMA.items()) == [
        ("topic", pl.String()),
        ("partition", pl.Int32()),
        ("offset", pl.Int64()),
        ("arrival", INSTANT),
        ("view", pl.String()),
        ("reason", pl.String()),
        ("key", pl.Binary()),
        ("value", pl.Binary()),
        # Added later, at the end: readers that name the columns above read old and new files alike.
        ("kind", pl.String()),
        ("key_bytes", pl.Int64()),
        ("value_bytes", pl.Int64()),
        ("headers", pl.List(pl.Struct({"name": pl.String(), "value": pl.Binary()}))),
        ("n_headers", pl.Int64()),
    ]
