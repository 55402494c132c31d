"""Files that are encoded a row group at a time are read as those that are written at once."""

import datetime as dt
import io
from decimal import Decimal
from pathlib import Path

import duckdb
import polars as pl
import pyarrow.parquet as pq
import pytest

from unskew.sinks.tables import checksum
from unskew.sinks.tables.ahead import Ahead, Piece
from unskew.sinks.tables.parquet import encode

UTC = dt.UTC
ROWS = pl.DataFrame(
    {
        "seq": [0, 1, 2, 3, 4],
        "partition": pl.Series([0, None, 2, 2**31 - 1, -1], dtype=pl.Int32),
        "whole": [-(2**63), 2**63 - 1, None, 0, 1],
        "real": [float("nan"), -0.0, float("inf"), None, 5e-324],
        "flag": [True, None, False, True, True],
        "text": ["", "ä\0b", None, "x" * 5000, "same"],
        "raw": [b"", b"\0\xff", None, b"x", b"same"],
        "at": pl.Series([0, -1, None, 253402300799_999999, 1], dtype=pl.Datetime("us", "UTC")),
        "money": pl.Series([Decimal("-1.2345"), None, Decimal("9" * 14 + ".9999"), Decimal(0), Decimal(1)]).cast(
            pl.Decimal(38, 4)
        ),
        "numbers": pl.Series([[1, None], [], None, [2**63 - 1], [3]], dtype=pl.List(pl.Int64)),
        "texts": pl.Series([["a", "a"], [], None, [None], ["b"]], dtype=pl.List(pl.String)),
        "map": pl.Series(
            [[{"key": "a", "value": 1.5}], [], None, [{"key": "", "value": None}], [{"key": "b", "value": 2.0}]],
            dtype=pl.List(pl.Struct({"key": pl.String, "value": pl.Float64})),
        ),
        "nothing": pl.Series([None] * 5, dtype=pl.String),
    }
)
METADATA = {"unskew.layout": "3", "unskew.view": "visits", **dict([checksum.METADATA])}


def of_one_day(rows, first):
    yield Piece("day=2026-01-01", first, first + rows.height - 1, rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ahead = Ahead(of_one_day, METADATA)
    for begin in (0, 2, 4):
        ahead.add([ROWS[begin : begin + 1], ROWS[begin + 1 : begin + 2]], begin)
        ahead.encode()
    (file,) = ahead.files()
    assert (file.first, file.last) == (0, 4)
    (tmp_path / "a.parquet").write_bytes(file.content)
    (tmp_path / "b.parquet").write_bytes(encode(ROWS, METADATA))
    return tmp_path


@pytest.mark.parametrize("name", ["a.parquet", "b.parquet"])
def test_a_file_has_the_rows_their_types_the_metadata_and_a_checksum(folder, name):
    data = (folder / name).read_bytes()

    found = pl.read_parquet(io.BytesIO(data))

    assert found.schema == ROWS.schema
    assert found.equals(ROWS)
    assert found["real"].to_list()[1].hex() == "-0x0.0p+0"
    assert METADATA.items() <= pl.read_parquet_metadata(io.BytesIO(data)).items()
    checksum.verify(folder / name)


def test_each_piece_is_a_row_group(folder):
    described = pq.read_metadata(folder / "a.parquet")

    assert [described.row_group(number).num_rows for number in range(described.num_row_groups)] == [2, 2, 1]


def test_readers_read_both_kinds_of_files_as_one_table(folder):
    paths = [folder / "a.parquet", folder / "b.parquet"]
    both = pl.concat([ROWS, ROWS])

    assert pl.read_parquet(paths).equals(both)
    assert (
        pl.scan_parquet(paths).filter(pl.col("text") == "same").collect().equals(both.filter(pl.col("text") == "same"))
    )
    assert pl.from_arrow(pq.read_table(folder / "a.parquet")).equals(pl.from_arrow(pq.read_table(folder / "b.parquet")))
    with duckdb.connect() as connection:
        # Instants as numbers: else they need another package.
        rows = connection.execute(
            f'SELECT * EXCLUDE ("at"), epoch_us("at") FROM read_parquet(\'{folder}/*.parquet\') ORDER BY filename, seq'
        ).fetchall()
        types = [connection.execute(f"DESCRIBE SELECT * FROM '{path}'").fetchall() for path in paths]
    assert str(rows[:5]) == str(rows[5:])
    assert types[0] == types[1]


def test_a_file_ends_where_it_is_told_to_whoever_encodes_it():
    for encodes_at_once in (True, False):
        ahead = Ahead(of_one_day, METADATA)
        for begin, past, ends in ((0, 2, False), (2, 3, True), (3, 5, False)):
            ahead.add([ROWS[begin:past]], begin)
            if ends:
                ahead.end_file()
            if encodes_at_once:
                ahead.encode()
            assert ahead.is_open is not ends

        files = ahead.files()

        assert [(file.first, file.last) for file in files] == [(0, 2), (3, 4)]
        assert pl.concat([pl.read_parquet(io.BytesIO(file.content)) for file in files]).equals(ROWS)


def test_rows_of_several_days_are_files_of_each():
    def by_day(rows, first):
        for number, day in enumerate(rows["whole"]):
            yield Piece(str(day), first + number, first + number, rows[number : number + 1])

    ahead = Ahead(by_day, {})
    ahead.add([pl.DataFrame({"whole": [1, 1, 2]})], 0)
    ahead.add([pl.DataFrame({"whole": [2, 3]})], 3)

    assert [(file.day, file.first, file.last) for file in ahead.files()] == [("1", 0, 1), ("2", 2, 3), ("3", 4, 4)]
    assert ahead.files() == ahead.files()
    ahead.clear()
    assert (ahead.files(), ahead.n_rows) == ([], 0)
