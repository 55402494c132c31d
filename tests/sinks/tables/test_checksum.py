"""A table's file is read as it was written, or named as damaged: no flipped bit is another value."""

import duckdb
import polars as pl
import pyarrow.parquet as pq
import pytest

from tests.offline.test_compaction import KEEP, LATER, rows, table, write
from unskew.features.errors import LayoutError
from unskew.offline.compaction import compact
from unskew.sinks.tables.checksum import METADATA, read_json, seal, sealed_json, verify
from unskew.sinks.tables.layout import file_name, published_files


@pytest.fixture(params=["written", "merged"])
def path(tmp_path, request):
    write(tmp_path, rows(*range(40)), rows(*range(40, 60)), rows(60, day=1))
    if request.param == "merged":
        compact(table(tmp_path), KEEP, now_s=LATER)
    return published_files(tmp_path)[0].path


def test_a_flipped_bit_anywhere_is_found(path):
    whole = path.read_bytes()
    verify(path)
    silent: list[int] = []
    unnamed: list[int] = []
    for at in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        try:
            verify(path)
            silent.append(at)
        except LayoutError as error:
            unnamed += [] if str(path) in str(error) else [at]

    assert (silent, unnamed) == ([], [])


def test_every_end_that_is_cut_off_and_every_hole_of_zeros_is_found(path):
    whole = path.read_bytes()
    for n_bytes in range(0, len(whole), 7):
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(LayoutError, match="is empty" if not n_bytes else "is damaged"):
            verify(path)
    for begin in range(0, len(whole) - 512, 256):
        path.write_bytes(whole[:begin] + bytes(512) + whole[begin + 512 :])
        with pytest.raises(LayoutError, match="is damaged"):
            verify(path)


def test_other_readers_do_not_see_the_checksum(path):
    numbers = pl.read_parquet(path, hive_partitioning=False)["n"].to_list()

    assert numbers[:40] == list(range(40))
    assert pq.read_table(path, partitioning=None)["n"].to_pylist() == numbers
    assert duckdb.sql(f"SELECT n FROM read_parquet('{path}', hive_partitioning=false)").fetchall() == [
        (n,) for n in numbers
    ]


def test_a_file_of_an_earlier_version_has_none_and_is_read(tmp_path):
    path = tmp_path / "old.parquet"
    rows(1, 2).write_parquet(path, metadata={"unskew.layout": "1"})

    verify(path)

    # The same bytes, had they been written by this version: what says so cannot get lost.
    rows(1, 2).write_parquet(path, metadata=dict([("unskew.layout", "1"), METADATA]))
    with pytest.raises(LayoutError, match="its checksum is gone"):
        verify(path)
    path.write_bytes(seal(path.read_bytes()))
    verify(path)


def test_files_without_and_with_checksums_are_merged_into_one_with(tmp_path):
    write(tmp_path, rows(0, 1), rows(2, 3), rows(4, day=1))
    old = published_files(tmp_path)[0].path
    rows(0, 1).write_parquet(old, metadata={"unskew.layout": "1", "unskew.view": "v"})

    found = compact(table(tmp_path), KEEP, now_s=LATER)

    merged = published_files(tmp_path)[0].path
    assert (found.notes, found.faults, merged.name) == ((), (), file_name("h0", 0, 3))
    assert pl.read_parquet_metadata(merged)["unskew.checksum"] == "crc32"
    verify(merged)


def test_a_flipped_bit_of_coverage_is_found_or_changes_nothing():
    content = {"since": 1_500_000_000_000_000, "complete_to": 1_500_000_000_999_999, "seq": 17, "ended": True}
    whole = sealed_json(content)
    assert read_json(whole) == content
    for at in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            try:
                found = read_json(bytes(damaged))
            except ValueError:
                continue
            # The checksum's own name is damaged, and the rest is as it was.
            assert {name: found.get(name) for name in content} == content
