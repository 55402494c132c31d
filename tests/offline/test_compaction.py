"""Merged files hold the rows that were there, each once, in order, whenever one looks and wherever it breaks off."""

import contextlib
import datetime as dt
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.offline.test_join import CLOCK, EVENTS, T0, VIEW
from tests.recovery.test_staged_table import Died, Disk
from tests.support.plans import DAY, SECOND, events
from tests.support.typed import DEFAULTS, EMPTY, FULL, ORDERS
from tests.support.updates import updates
from tests.support.written import write_log
from unskew.features.errors import LayoutError
from unskew.offline.compaction import (
    Compacted,
    Limits,
    Sized,
    Table,
    archive_tables,
    compact,
    dead_letter_tables,
    log_tables,
    runs,
)
from unskew.offline.log_reader import ViewLog
from unskew.offline.merging import Unmergeable, source, verify
from unskew.sinks.tables.kinds import DEAD_LETTER_SCHEMA, DeadLetterTable, LogTable
from unskew.sinks.tables.layout import INSTANT, TableFile, file_name, published_files, superseded_files
from unskew.sinks.tables.parquet import StagedTable

AT_ONCE = Limits(min_files=2, grace_s=0)
KEEP = Limits(min_files=2, grace_s=3600)
LATER = time.time() + 100_000


def table(root: Path, *, gapless: bool = True) -> Table:
    return Table(name="t", root=root, sequence="n", gapless=gapless)


def staged(root: Path, saved: dict | None = None, *, writer: str = "h0", **options) -> StagedTable:
    told = {"sequence_column": "n", "metadata": {"unskew.view": "v"}, **options}
    return StagedTable(root, writer, day_column="t", saved=saved, **told)


def rows(*numbers: int, day: int = 0) -> pl.DataFrame:
    return pl.DataFrame({"n": numbers, "t": day * DAY, "text": [f"row {n}" for n in numbers]}).with_columns(
        pl.col("n").cast(pl.Int64), pl.col("t").cast(INSTANT)
    )


def write(root: Path, *epochs: pl.DataFrame, saved: dict | None = None, **options) -> dict:
    """Publish one file for each; what was saved last."""
    writer = staged(root, saved, **options)
    for epoch in epochs:
        writer.append(epoch)
        saved = writer.snapshot()
    writer.settle()
    return saved


def read(root: Path) -> list[int]:
    """Numbers in the order in which readers get them."""
    return [n for file in published_files(root) for n in pl.read_parquet(file.path, hive_partitioning=False)["n"]]


def ranges(root: Path) -> list[tuple[int, int]]:
    return [(file.first, file.last) for file in published_files(root)]


def on_disk(root: Path) -> int:
    return len(list(root.glob("day=*/*.parquet")))


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Only lost power asks for syncing, which is slow."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


def test_a_file_of_several_days_is_left_alone_by_a_compaction_with_other_spans(tmp_path):
    write(tmp_path, *(rows(n, day=n) for n in range(30)))
    for span_days, folders in (
        (7, ["day=1970-01-01--1970-01-07", "day=1970-01-08--1970-01-14"]),
        (1, ["day=1970-01-01--1970-01-07", "day=1970-01-08--1970-01-14"]),
        (5, ["day=1970-01-01--1970-01-07", "day=1970-01-08--1970-01-14"]),
        (14, ["day=1970-01-01--1970-01-14", "day=1970-01-15--1970-01-28"]),
    ):
        found = compact(table(tmp_path), replace(AT_ONCE, span_days=span_days, min_files=50), now_s=LATER)

        assert [file.path.parent.name for file in published_files(tmp_path)][:2] == folders
        assert found.faults == ()
        assert read(tmp_path) == list(range(30))


def test_a_days_files_become_one_with_the_same_rows_columns_and_metadata(tmp_path):
    write(tmp_path, *(rows(2 * n, 2 * n + 1) for n in range(10)))
    before = [file.path for file in published_files(tmp_path)]
    was, metadata = pl.read_parquet(before), pl.read_parquet_metadata(before[0])

    found = compact(table(tmp_path), KEEP, now_s=LATER)

    (file,) = published_files(tmp_path)
    assert (file.path.parent.name, file.first, file.last) == ("day=1970-01-01", 0, 19)
    merged = pl.read_parquet(file.path, hive_partitioning=False)
    assert merged.equals(was)
    assert merged.schema == was.schema
    kept = pl.read_parquet_metadata(file.path)
    assert {name: text for name, text in kept.items() if name != "ARROW:schema"} == {
        name: text for name, text in metadata.items() if name != "ARROW:schema"
    }
    assert (found.files_before, found.files_after, found.n_waiting, found.notes) == (10, 1, 0, ())
    assert (found.bytes_before, found.bytes_after) == (found.bytes_before, file.path.stat().st_size)
    assert found.bytes_after < found.bytes_before


def test_every_type_of_the_log_comes_through_as_it_was(tmp_path):
    log = LogTable(tmp_path, ORDERS, "h0", None, now_us=lambda: 0)
    awkward = {**FULL, "rate": -0.0, "rates": [float("inf"), -0.0, 5e-324]}
    for seq, values in enumerate([FULL, EMPTY, {}, awkward, DEFAULTS]):
        row = {"user": "é", **values, "available_at": 5 + seq, "cause": "hop", "seq": seq}
        log.append(updates(ORDERS, 9 + seq, log_rows=[row]))
        log.snapshot()
    log.settle()
    (ours,) = log_tables(tmp_path)
    was = pl.read_parquet([file.path for file in published_files(ours.root)])

    compact(ours, AT_ONCE, now_s=LATER)

    (file,) = published_files(ours.root)
    merged = pl.read_parquet(file.path)
    assert merged.schema == was.schema
    assert repr(merged.to_dicts()) == repr(was.to_dicts())
    assert "-0.0" in repr(merged.to_dicts())


def test_dead_letters_with_headers_come_through_and_days_that_alternate_are_not_merged_across(tmp_path):
    letters = DeadLetterTable(tmp_path, "purchases", "p0", None)
    #  number  0      1      2      3      4      5        letters are numbered as they come, whatever their day
    #  day     0      1      0      1      1      1
    for number, day in enumerate([0, 1, 0, 1, 1, 1]):
        letter = {
            "topic": "purchases",
            "partition": 0,
            "offset": number,
            "arrival": dt.datetime(1970, 1, 1 + day, tzinfo=dt.UTC),
            "reason": "garbage",
            "value": bytes([number]) * 100_000,
            "headers": [{"name": "a", "value": b"\xff"}, {"name": "b", "value": None}],
        }
        whole = [{name: letter.get(name) for name in DEAD_LETTER_SCHEMA}]
        letters.append(pl.DataFrame(whole, schema=dict(DEAD_LETTER_SCHEMA)))
        letters.snapshot()
    letters.settle()
    (ours,) = dead_letter_tables(tmp_path)
    was = pl.concat(pl.read_parquet(file.path) for file in published_files(ours.root))

    compact(ours, AT_ONCE, now_s=LATER)

    assert ranges(ours.root) == [(0, 0), (1, 1), (2, 2), (3, 5)]
    assert pl.concat(pl.read_parquet(file.path) for file in published_files(ours.root)).equals(was)


def test_each_day_and_writer_is_merged_for_itself(tmp_path):
    for writer in ("p0", "p1"):
        write(tmp_path, rows(0), rows(5), rows(6, day=1), rows(9, day=1), writer=writer)

    compact(table(tmp_path, gapless=False), AT_ONCE, now_s=LATER)

    assert [(file.writer, file.last_day.day, file.first, file.last) for file in published_files(tmp_path)] == [
        ("p0", 1, 0, 5),
        ("p0", 2, 6, 9),
        ("p1", 1, 0, 5),
        ("p1", 2, 6, 9),
    ]
    assert read(tmp_path) == [0, 5, 6, 9] * 2


def test_tables_are_found_by_their_folders(tmp_path):
    for folder in ("log/a/v2", "log/a/v10", "log/b/v1", "archive/topic.x", "dead/topic.x"):
        write(tmp_path / folder, rows(0))
    (tmp_path / "log" / "empty" / "v1" / "_coverage").mkdir(parents=True)
    (tmp_path / "dead" / "_replayed.jsonl").touch()

    assert [one.name for one in log_tables(tmp_path / "log")] == ["log a@2", "log a@10", "log b@1"]
    assert [one.name for one in archive_tables(tmp_path / "archive")] == ["archive topic.x"]
    assert [one.name for one in dead_letter_tables(tmp_path / "dead")] == ["dead letters topic.x"]


# Which files are merged with each other: (first, day, bytes) of each, the target being 100 bytes, five files a merge.


def planned(files: Sequence[tuple[int, int, int]], *, gapless: bool = True, span_days: int = 1) -> list[list[int]]:
    epoch = dt.date(1970, 1, 1)
    sized = [Sized(TableFile(path=Path(f"day={epoch + dt.timedelta(days=day)}/{first}"), writer="h0", first=first, last=first), n_bytes)
             for first, day, n_bytes in files]  # fmt: skip
    return [
        [one.file.first for one in run]
        for run in runs(sized, Limits(target_bytes=100, min_files=5, grace_s=0, span_days=span_days), gapless=gapless)
    ]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], []),
        # The day goes on: five small ones, not four.
        ([(n, 0, 1) for n in range(4)], []),
        ([(n, 0, 1) for n in range(5)], [[0, 1, 2, 3, 4]]),
        # The day is over: two.
        ([(0, 0, 1), (1, 0, 1), (2, 1, 1)], [[0, 1]]),
        ([(0, 0, 1), (1, 1, 1), (2, 2, 1)], []),
        # One of half the target is left alone, and parts those on both sides of it.
        ([(0, 0, 1), (1, 0, 49), (2, 0, 50), (3, 0, 1), (4, 0, 1), (5, 1, 1)], [[0, 1], [3, 4]]),
        # One that was merged waits until there is as much behind it.
        ([(0, 0, 10), *((n, 0, 2) for n in range(1, 5))], []),
        ([(0, 0, 10), *((n, 0, 2) for n in range(1, 6))], [[0, 1, 2, 3, 4, 5]]),
        ([(0, 0, 12), *((n, 0, 2) for n in range(1, 6))], [[1, 2, 3, 4, 5]]),
        # A file of another day lies between, whose rows the merged name would cover.
        ([(0, 0, 1), (1, 1, 1), (2, 0, 1), (3, 0, 1), (4, 1, 1)], [[2, 3]]),
        # A file is missing.
        ([(0, 0, 1), (2, 0, 1), (3, 0, 1), (4, 1, 1)], [[2, 3]]),
    ],
)
def test_which_files_are_merged(files, expected):
    assert planned(files) == expected


#   day    0 1 2 3 4 5 6 | 7 ...       spans of seven days, counted from 1970
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        # The span is over: everything is merged, however few rows, but not with the next span.
        ([(0, 1, 1), (1, 5, 1), (2, 7, 1), (3, 14, 1)], [[0, 1]]),
        ([(0, 0, 1), (1, 0, 1), (2, 3, 1), (3, 3, 1), (4, 6, 1), (5, 7, 1)], [[0, 1, 2, 3, 4]]),
        # It goes on: days that are over, once there are five files, and never the current day.
        ([(n, n, 1) for n in range(5)], []),
        ([(n, n, 1) for n in range(6)], [[0, 1, 2, 3, 4]]),
        ([*((n, n, 1) for n in range(6)), *((n, 6, 1) for n in range(6, 11))], [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]),
        # A day that is over is merged for itself meanwhile.
        ([(0, 0, 1), (1, 0, 1), (2, 1, 1), (3, 2, 1)], [[0, 1]]),
        # What was merged waits until there is as much behind it.
        ([(0, 0, 10), *((n, n, 2) for n in range(1, 6))], []),
        ([(0, 0, 8), *((n, n, 2) for n in range(1, 6))], [[0, 1, 2, 3, 4]]),
        # One of half the target is left alone.
        ([(0, 0, 1), (1, 1, 1), (2, 2, 50), (3, 3, 1), (4, 4, 1), (5, 9, 1)], [[0, 1], [3, 4]]),
        # Dead letters of days that alternate.
        ([(0, 0, 1), (1, 1, 1), (2, 0, 1), (3, 1, 1), (4, 8, 1)], [[0, 1, 2, 3]]),
        # A file is missing.
        ([(0, 0, 1), (2, 1, 1), (3, 2, 1), (4, 8, 1)], [[2, 3]]),
    ],
)
def test_which_files_are_merged_across_days(files, expected):
    assert planned(files, span_days=7) == expected


def test_offsets_of_an_archive_may_have_gaps():
    assert planned([(0, 0, 1), (2, 0, 1), (30, 0, 1), (40, 1, 1)], gapless=False) == [[0, 2, 30]]


def test_a_day_merged_again_and_again_copies_each_row_a_few_times_only():
    """A thousand files of one byte, looked at after each."""
    files: list[tuple[int, int, int]] = []
    copied = 0
    for number in range(1_000):
        files.append((number, 0, 1))
        sized = [
            Sized(TableFile(path=Path(f"day=1970-01-01/{first}"), writer="h0", first=first, last=first), n_bytes)
            for first, _, n_bytes in files
        ]
        for run in runs(sized, Limits(target_bytes=10_000, min_files=5, grace_s=0), gapless=False):
            n_bytes = sum(one.n_bytes for one in run)
            copied += n_bytes
            files = [*files[: -len(run)], (run[0].file.first, 0, n_bytes)]

    # Each time its file at least doubles: ten times at most.
    assert copied <= 1_000 * 10
    assert len(files) <= 10 + 5
    assert sum(n_bytes for _, _, n_bytes in files) == 1_000


def test_merged_files_keep_to_the_target_and_are_left_alone_from_then_on(tmp_path):
    random = np.random.default_rng(0)
    epochs = [rows(n).with_columns(text=pl.lit(random.bytes(2_000).hex())) for n in range(30)]
    write(tmp_path, *epochs, rows(30, day=1))
    limits = replace(KEEP, target_bytes=20_000)
    n_bytes = sum(file.path.stat().st_size for file in published_files(tmp_path))

    for _ in range(4):
        compact(table(tmp_path), limits, now_s=LATER)
    settled = {file.path: file.path.stat().st_ino for file in published_files(tmp_path)}
    again = compact(table(tmp_path), limits, now_s=LATER)

    sizes = [path.stat().st_size for path in settled]
    assert max(sizes) <= 20_000
    assert n_bytes // 20_000 <= len(sizes) < 8
    assert {file.path: file.path.stat().st_ino for file in published_files(tmp_path)} == settled
    assert again.files_before == again.files_after
    assert read(tmp_path) == list(range(31))


def test_merged_files_stay_for_the_grace_period_and_go_then(tmp_path):
    write(tmp_path, *(rows(n) for n in range(6)))
    now = time.time()

    first = compact(table(tmp_path), KEEP, now_s=now)
    early = compact(table(tmp_path), KEEP, now_s=now + 3_000)
    assert on_disk(tmp_path) == 7
    late = compact(table(tmp_path), KEEP, now_s=now + 3_700)

    assert [(one.n_deleted, one.n_waiting) for one in (first, early, late)] == [(0, 6), (0, 6), (6, 0)]
    assert on_disk(tmp_path) == 1
    assert read(tmp_path) == list(range(6))


def test_a_file_merged_twice_goes_when_its_first_cover_is_old_enough_and_that_with_its_own(tmp_path):
    now = time.time()
    saved = write(tmp_path, *(rows(n) for n in range(4)))
    compact(table(tmp_path), KEEP, now_s=now)
    (first,) = published_files(tmp_path)
    os.utime(first.path, (now - 4_000, now - 4_000))
    write(tmp_path, *(rows(n) for n in range(4, 9)), saved=saved)

    found = compact(table(tmp_path), replace(KEEP, grace_s=3_600), now_s=now)

    assert (found.n_deleted, found.n_waiting) == (4, 6)
    assert len(superseded_files(tmp_path)) == 6
    assert ranges(tmp_path) == [(0, 8)]
    assert read(tmp_path) == list(range(9))


def test_files_are_kept_where_the_one_that_covers_them_has_not_their_rows(tmp_path):
    write(tmp_path, *(rows(n) for n in range(4)))
    cover = tmp_path / "day=1970-01-01" / file_name("h0", 0, 3)
    rows(0, 1).write_parquet(cover, metadata={"unskew.layout": "1"})

    found = compact(table(tmp_path), AT_ONCE, now_s=LATER)

    assert found.n_deleted == 0
    assert "has 2 rows, and the 4 files that its name covers have 4" in found.faults[0]
    assert on_disk(tmp_path) == 5


def test_what_has_other_columns_or_metadata_stays_apart_and_is_named(tmp_path):
    saved = write(tmp_path, rows(0), rows(1))
    saved = write(tmp_path, rows(2), rows(3), saved=saved, metadata={"unskew.view": "w"})
    write(tmp_path, rows(4).with_columns(more=pl.lit(1)), rows(5, day=1), saved=saved, metadata={"unskew.view": "w"})

    found = compact(table(tmp_path), AT_ONCE, now_s=LATER)

    assert ranges(tmp_path) == [(0, 1), (2, 3), (4, 4), (5, 5)]
    assert len(found.notes) == 2
    assert "other columns or metadata than" in found.notes[0]
    assert file_name("h0", 4, 4) in found.notes[1]
    told = [pl.read_parquet_metadata(file.path)["unskew.view"] for file in published_files(tmp_path)]
    assert told == ["v", "w", "w", "w"]


@pytest.mark.parametrize("n_lost", [1, 400])
def test_a_damaged_file_is_left_alone_and_named(tmp_path, n_lost):
    write(tmp_path, *(rows(*range(20 * n, 20 * n + 20)) for n in range(5)), rows(100, day=1))
    damaged = published_files(tmp_path)[2].path
    damaged.write_bytes(damaged.read_bytes()[:-n_lost])

    found = compact(table(tmp_path), AT_ONCE, now_s=LATER)

    assert ranges(tmp_path) == [(0, 39), (40, 59), (60, 99), (100, 100)]
    (fault,) = found.faults
    assert str(damaged) in fault


def test_damage_inside_is_found_when_rows_are_read(tmp_path):
    write(tmp_path, *(rows(*range(200 * n, 200 * n + 200)) for n in range(3)), rows(600, day=1))
    damaged = published_files(tmp_path)[1].path
    content = bytearray(damaged.read_bytes())
    content[20:60] = bytes(40)
    damaged.write_bytes(content)

    found = compact(table(tmp_path), AT_ONCE, now_s=LATER)

    assert ranges(tmp_path) == [(0, 199), (200, 399), (400, 599), (600, 600)]
    assert len(found.faults) == 1
    assert not list((tmp_path / "_compacting").glob("*.tmp"))


def test_a_file_whose_rows_are_not_those_of_its_name_is_not_merged(tmp_path):
    write(tmp_path, rows(0, 1), rows(2, 3), rows(4, 5), rows(6, day=1))
    wrong = published_files(tmp_path)[1].path
    rows(2, 9).write_parquet(wrong, metadata={"unskew.layout": "1", "unskew.view": "v"})

    found = compact(table(tmp_path), AT_ONCE, now_s=LATER)

    assert ranges(tmp_path) == [(0, 1), (2, 3), (4, 5), (6, 6)]
    assert "their n are not those from 0 to 5 in order" in found.faults[0]


def test_a_file_that_somebody_puts_between_is_not_covered(tmp_path):
    """A lost file of the archive that is restored by hand just then; its offsets were taken for a gap."""
    write(tmp_path, rows(0), rows(1), rows(5), rows(6, day=1))

    def restore(done: int, _total: int) -> None:
        if done == 3:
            rows(3).write_parquet(tmp_path / "day=1970-01-01" / file_name("h0", 3, 3))

    found = compact(table(tmp_path, gapless=False), AT_ONCE, now_s=LATER, progress=restore)

    assert read(tmp_path) == [0, 1, 3, 5, 6]
    assert "there are other files between them" in found.faults[0]


def test_a_day_is_listed_as_often_for_many_writers_as_for_few(tmp_path, monkeypatch):
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(Path(folder).name) or scandir(folder))

    def n_listed(name: str, n_writers: int) -> int:
        for number in range(n_writers):
            write(tmp_path / name, rows(0), rows(1), rows(2), rows(3, day=1), writer=f"h{number}")
        listed.clear()
        found = compact(table(tmp_path / name), AT_ONCE, now_s=LATER)
        assert (found.files_before, found.files_after) == (4 * n_writers, 2 * n_writers)
        return listed.count("day=1970-01-01")

    assert n_listed("few", 2) == n_listed("many", 12)


FLOATS = pl.DataFrame({"n": [0, 1, 2], "x": [0.0, 1.5, None], "xs": [[0.0], None, []], "s": [{"y": 0.0}, {"y": None}, None]})  # fmt: skip
WRITTEN = {"unskew.layout": "1", "unskew.view": "v"}
MORE = FLOATS.with_columns(pl.col("n") + 3)


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame.with_columns(x=pl.when(pl.col("n") == 3).then(-0.0).otherwise("x")),
        lambda frame: frame.with_columns(xs=pl.when(pl.col("n") == 3).then(pl.lit([-0.0])).otherwise("xs")),
        lambda frame: frame.with_columns(s=pl.when(pl.col("n") == 3).then(pl.struct(y=-0.0)).otherwise("s")),
        lambda frame: frame.with_columns(s=pl.when(pl.col("n") != 4).then(pl.col("s"))),
        lambda frame: frame.with_columns(xs=pl.col("xs").fill_null([])),
        lambda frame: frame.with_columns(x=pl.col("x").fill_null(7.0)),
        lambda frame: frame[[0, 1, 2, 3, 5, 4]],
        lambda frame: frame[:5],
        lambda frame: frame[[0, 1, 2, 3, 4, 5, 5]],
        lambda frame: frame.with_columns(pl.col("n").cast(pl.Int32)),
        lambda frame: frame.rename({"x": "z"}),
    ],
)
def test_a_merged_file_that_differs_in_anything_is_not_published(tmp_path, change):
    for name, frame in (("a", FLOATS), ("b", MORE)):
        frame.write_parquet(tmp_path / name, metadata=WRITTEN)
    sources = [
        source(TableFile(path=tmp_path / name, writer="h0", first=first, last=first + 2), 1)
        for name, first in (("a", 0), ("b", 3))
    ]
    merged = tmp_path / "merged"
    pl.concat([FLOATS, MORE]).write_parquet(merged, metadata=WRITTEN, row_group_size=4)
    verify(merged, sources, sequence="n", gapless=True)

    change(pl.concat([FLOATS, MORE])).write_parquet(merged, metadata=WRITTEN)

    with pytest.raises(Unmergeable):
        verify(merged, sources, sequence="n", gapless=True)


def test_metadata_are_compared_too(tmp_path):
    FLOATS.write_parquet(tmp_path / "a", metadata=WRITTEN)
    FLOATS.write_parquet(tmp_path / "merged", metadata={**WRITTEN, "unskew.view": "w"})
    one = source(TableFile(path=tmp_path / "a", writer="h0", first=0, last=2), 1)

    with pytest.raises(Unmergeable, match="other columns or metadata"):
        verify(tmp_path / "merged", [one], sequence="n", gapless=True)


def test_row_groups_are_bounded_by_rows_and_by_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("unskew.offline.merging._GROUP_ROWS", 70)
    write(tmp_path / "narrow", *(rows(*range(30 * n, 30 * n + 30)) for n in range(7)))
    wide = [rows(n).with_columns(text=pl.lit("x" * 10_000)) for n in range(6)]
    write(tmp_path / "wide", *wide)

    compact(table(tmp_path / "narrow"), AT_ONCE, now_s=LATER)
    monkeypatch.setattr("unskew.offline.merging._GROUP_BYTES", 25_000)
    compact(table(tmp_path / "wide"), AT_ONCE, now_s=LATER)

    def groups(root):
        (file,) = published_files(root)
        metadata = pq.read_metadata(file.path)
        return [metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)]

    assert groups(tmp_path / "narrow") == [90, 90, 30]
    assert groups(tmp_path / "wide") == [3, 3]
    assert read(tmp_path / "narrow") == list(range(210))


def test_a_dry_run_says_what_would_be_and_writes_nothing(tmp_path):
    write(tmp_path, *(rows(n) for n in range(9)), rows(9, day=1))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    foreseen = compact(table(tmp_path), KEEP, now_s=LATER, dry_run=True)

    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    done = compact(table(tmp_path), KEEP, now_s=LATER)
    assert (foreseen.files_before, foreseen.files_after) == (10, 2) == (done.files_before, done.files_after)


def test_a_second_compaction_leaves_a_table_alone_that_one_is_at_work_on(tmp_path):
    write(tmp_path, *(rows(n) for n in range(3)))
    others: list[Compacted] = []

    def meanwhile(_done: int, _total: int) -> None:
        if not others:
            others.append(compact(table(tmp_path), AT_ONCE, now_s=LATER))
            assert list((tmp_path / "_compacting").glob("*.tmp"))

    found = compact(table(tmp_path), AT_ONCE, now_s=LATER, progress=meanwhile)

    assert "another command is at work" in others[0].notes[0]
    assert (others[0].files_before, others[0].files_after) == (3, 3)
    assert (found.files_after, found.notes) == (1, ())


def test_what_a_broken_off_compaction_left_is_removed_and_hidden_from_readers_and_writers(tmp_path):
    saved = write(tmp_path, rows(0), rows(1))
    left = tmp_path / "_compacting" / f"{file_name('h9', 0, 0)}.tmp"
    left.parent.mkdir()
    left.write_bytes(b"PAR1 and then the power went")

    assert read(tmp_path) == [0, 1]
    staged(tmp_path, saved)
    compact(table(tmp_path), AT_ONCE, now_s=LATER)

    assert not left.exists()
    assert read(tmp_path) == [0, 1]


# A writer beside it.


def test_a_writer_goes_on_and_restarts_over_merged_files(tmp_path):
    saved = write(tmp_path, *(rows(n) for n in range(5)))
    writer = staged(tmp_path, saved)
    compact(table(tmp_path), AT_ONCE, now_s=LATER)
    for n in range(5, 9):
        writer.append(rows(n))
        saved = writer.snapshot()
        compact(table(tmp_path), AT_ONCE, now_s=LATER)
    # The last epoch is durable and waits in _staged.
    assert read(tmp_path) == list(range(8))

    writer = staged(tmp_path, saved)
    assert read(tmp_path) == list(range(9))
    compact(table(tmp_path), AT_ONCE, now_s=LATER)
    writer.append(rows(9))
    writer.snapshot()
    writer.settle()

    assert read(tmp_path) == list(range(10))
    assert on_disk(tmp_path) == 2


def test_a_writer_whose_last_epoch_was_not_durable_restarts_over_merged_files(tmp_path):
    writer = staged(tmp_path)
    for n in range(5):
        writer.append(rows(n))
        durable = writer.snapshot()
    writer.append(rows(5))
    writer.snapshot()  # and then the process died, before this epoch was durable
    compact(table(tmp_path), AT_ONCE, now_s=LATER)
    assert ranges(tmp_path) == [(0, 4)]

    writer = staged(tmp_path, durable)
    writer.append(rows(5, 6))
    writer.snapshot()
    writer.settle()

    assert read(tmp_path) == list(range(7))


def test_an_older_state_is_refused_as_before_and_the_merged_file_stays(tmp_path):
    writer = staged(tmp_path)
    older = []
    for n in range(5):
        writer.append(rows(n))
        older.append(writer.snapshot())
    writer.settle()
    compact(table(tmp_path), AT_ONCE, now_s=LATER)

    for saved in older[:-1]:
        with pytest.raises(LayoutError, match=r"h0-0+-0+4\.parquet holds rows past .*newest recovery store"):
            staged(tmp_path, saved)
    with pytest.raises(LayoutError, match=r"h0-0+-0+4\.parquet was published by an earlier run"):
        staged(tmp_path, None)

    staged(tmp_path, older[-1])
    assert read(tmp_path) == list(range(5))


@pytest.mark.parametrize(
    ("span_days", "per_day", "folders"),
    [
        (1, 200, ["day=1970-01-01", "day=1970-01-02", "day=1970-01-03", "day=1970-01-19"]),
        (6, 30, ["day=1970-01-01--1970-01-06", "day=1970-01-07--1970-01-12", "day=1970-01-13--1970-01-15", "day=1970-01-19"]),
    ],
)  # fmt: skip
def test_a_listing_never_lacks_or_doubles_a_row_while_files_are_written_merged_and_deleted(
    tmp_path, span_days, per_day, folders
):
    """Without any grace, the worst there is: numbers leave gaps, so that a lost file could not be told from none."""
    numbers = [3 * n for n in range(150)]
    published: list[int] = []
    ended = threading.Event()
    limits = replace(AT_ONCE, span_days=span_days)
    faults: list[object] = []

    def look() -> None:
        while not ended.is_set():
            n_before = len(published)
            try:
                found = read(tmp_path)
            except FileNotFoundError:
                continue  # it was deleted after it was listed
            if found != numbers[: len(found)] or len(found) < n_before:
                faults.append(found)

    def merge() -> None:
        while not ended.is_set():
            found = compact(table(tmp_path, gapless=False), limits, now_s=LATER)
            faults.extend((*found.notes, *found.faults))

    threads = [threading.Thread(target=target) for target in (look, look, merge)]
    for thread in threads:
        thread.start()
    try:
        writer = staged(tmp_path)
        for n in numbers:
            writer.append(rows(n, day=n // per_day))
            saved = writer.snapshot()
            published.extend(numbers[len(published) : numbers.index(n)])
        writer.settle()
    finally:
        ended.set()
        for thread in threads:
            thread.join()

    assert faults == []
    assert read(tmp_path) == numbers
    # The current span may keep a few files, depending on what was there at each merge; a span that is over keeps one.
    write(tmp_path, rows(1000, day=18), saved=saved)
    compact(table(tmp_path, gapless=False), limits, now_s=LATER)
    assert [file.path.parent.name for file in published_files(tmp_path)] == folders
    assert on_disk(tmp_path) == 4
    assert read(tmp_path) == [*numbers, 1000]


# Broken off.


@pytest.mark.parametrize("grace_s", [0, 3600])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_dying_at_any_disk_call_leaves_every_row_once_and_the_next_compaction_ends_the_work(
    tmp_path, monkeypatch, after, grace_s
):
    disk = Disk(monkeypatch)
    disk.after = after
    limits = replace(AT_ONCE, grace_s=grace_s)

    def fresh(name: object) -> tuple[Path, dict]:
        root = tmp_path / str(name)
        # Two days of two files, and what an earlier compaction merged.
        saved = write(root, *(rows(n) for n in range(2)))
        compact(table(root), KEEP, now_s=LATER)
        return root, write(root, rows(2), rows(3, day=1), rows(4, day=1), saved=saved)

    root, _ = fresh("whole")
    disk.calls = 0
    compact(table(root), limits, now_s=time.time())
    n_calls = disk.calls
    assert n_calls > 8

    for call in range(1, n_calls + 1):
        root, saved = fresh(call)
        disk.calls, disk.die_at = 0, call
        with pytest.raises(Died):
            compact(table(root), limits, now_s=time.time())
        disk.die_at = None
        assert read(root) == list(range(5))

        writer = staged(root, saved)
        writer.append(rows(5, day=2))
        writer.snapshot()
        writer.settle()
        compact(table(root), AT_ONCE, now_s=LATER)
        assert read(root) == list(range(6))
        assert on_disk(root) == 3
        assert [path.name for path in (root / "_compacting").iterdir()] == ["lock"]


KILLED = """
import sys, time
from pathlib import Path
from unskew.offline.compaction import Limits, Table, compact
print("ready", flush=True)
table = Table(name="t", root=Path(sys.argv[1]), sequence="n", gapless=True)
found = compact(table, Limits(min_files=2, grace_s=0), now_s=time.time() + 100)
print(found.files_after, flush=True)
"""


@pytest.mark.parametrize("seen", ["_compacting/*.tmp", "day=1970-01-01/*0099.parquet"])
def test_a_killed_compaction_leaves_every_row_once_and_the_next_one_ends_the_work(tmp_path, seen):
    """Killed when a temporary file is there, and when the merged one is, with those that it covers about to go."""
    wide = [rows(*range(5 * n, 5 * n + 5)).with_columns(text=pl.lit("x" * 40_000) + pl.col("n").cast(pl.String)) for n in range(20)]  # fmt: skip
    saved = write(tmp_path, *wide)
    before = set(tmp_path.glob("day=*/*"))
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        while process.poll() is None and not [path for path in tmp_path.glob(seen) if path not in before]:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read()

    assert read(tmp_path) == list(range(100))
    assert process.wait() == -signal.SIGKILL or rest == "1\n"
    staged(tmp_path, saved)
    assert compact(table(tmp_path), AT_ONCE, now_s=LATER).faults == ()

    assert read(tmp_path) == list(range(100))
    assert on_disk(tmp_path) == 1
    assert not list(tmp_path.glob("_compacting/*.tmp"))


# Readers of the log that are slower than the grace period.

MANY = events(
    [(T0 + n * SECOND, T0 + n * SECOND, {"user": f"u{n % 3}", "x": n / 2, "n": n}) for n in range(0, 200_000, 5_000)]
)
COLUMNS = ["user", "available_at", "count", "sum", "shard", "seq"]


def view_log(root: Path) -> ViewLog:
    return ViewLog(root, VIEW.published)


@pytest.mark.parametrize("chunk_bytes", [1, 20_000, 1 << 30])
@pytest.mark.parametrize("again", [False, True], ids=["merged once", "merged twice"])
def test_a_log_reads_the_same_pieces_when_its_files_were_merged_and_deleted_meanwhile(
    tmp_path, monkeypatch, chunk_bytes, again
):
    monkeypatch.setattr("unskew.offline.log_reader._CHUNK_BYTES", chunk_bytes)
    write_log(tmp_path, VIEW, MANY, T0 + 200_100 * SECOND, n_shards=2, n_batches=12)
    (ours,) = log_tables(tmp_path)
    expected = list(view_log(tmp_path).newest_first(COLUMNS))
    stats, head = view_log(tmp_path).stats(), view_log(tmp_path).head(7)
    assert len({row for piece in expected for row in piece.select("shard", "seq").iter_rows()}) > 60

    opened, reading = view_log(tmp_path), view_log(tmp_path).newest_first(COLUMNS)
    first = next(reading)
    if again:
        compact(ours, replace(AT_ONCE, target_bytes=16_000), now_s=LATER)
    compact(ours, AT_ONCE, now_s=LATER)
    assert not any(file.path.exists() for file in opened.files)

    for found in (opened.newest_first(COLUMNS), (piece for pieces in ([first], reading) for piece in pieces)):
        pieces = list(found)
        assert len(pieces) == len(expected)
        assert all(piece.equals(other) for piece, other in zip(pieces, expected, strict=True))
    assert opened.head(7).equals(head)
    assert opened.stats() == stats
    assert view_log(tmp_path).stats().rows == stats.rows


def test_a_log_says_which_file_is_gone_where_no_other_holds_its_rows(tmp_path):
    write_log(tmp_path, VIEW, EVENTS, CLOCK, n_batches=2)
    opened = view_log(tmp_path)
    opened.files[0].path.unlink()

    with pytest.raises(LayoutError, match=f"{opened.files[0].path.name} is gone.*restore it"):
        list(opened.newest_first(COLUMNS))


def test_a_log_that_lists_a_file_which_cannot_be_opened_says_so(tmp_path):
    write_log(tmp_path, VIEW, EVENTS, CLOCK, n_batches=2)
    path = view_log(tmp_path).files[0].path
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")

    with pytest.raises(LayoutError, match="restore the file"):
        view_log(tmp_path)


def test_arrow_calls_damage_by_errors_without_a_number():
    """What tells damage from a disk that fails."""
    with pytest.raises((pa.ArrowException, OSError)) as found:
        pq.ParquetFile(pa.BufferReader(b"PAR1 but no footer at all"))

    assert getattr(found.value, "errno", None) is None


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_a_merged_file_is_for_those_who_read_its_sources(tmp_path, mode):
    write(tmp_path, rows(0), rows(1), rows(2, day=1))
    for file in published_files(tmp_path):
        file.path.chmod(mode)
    before = os.umask(0o077)
    try:
        compact(table(tmp_path), KEEP, now_s=LATER)
    finally:
        os.umask(before)

    merged = published_files(tmp_path)[0]
    assert (merged.first, merged.last) == (0, 1)
    assert merged.path.stat().st_mode & 0o777 == mode


def test_files_that_are_set_aside_are_met_by_nobody_and_an_open_log_reads_on(tmp_path):
    write_log(tmp_path, VIEW, EVENTS, CLOCK, n_shards=2, n_batches=6)
    (one,) = log_tables(tmp_path)
    opened = ViewLog(tmp_path, VIEW.published)
    columns = ["user", "available_at", "seq"]
    before = pl.concat(opened.newest_first(columns))
    aside = replace(KEEP, set_aside=True)

    found = compact(one, aside, now_s=time.time())

    globbed = pl.read_parquet(f"{one.root}/day=*/*.parquet", hive_partitioning=False)
    assert sorted(globbed[columns].iter_rows()) == sorted(before.iter_rows())
    assert pl.concat(opened.newest_first(columns)).equals(before)
    assert found.n_waiting == len(list(one.root.glob("_superseded/day=*/*.parquet"))) > 2
    again = compact(one, aside, now_s=time.time())
    assert (again.n_deleted, again.n_waiting) == (0, found.n_waiting)
    later = compact(one, aside, now_s=LATER)
    assert (later.n_deleted, later.n_waiting, later.faults) == (found.n_waiting, 0, ())
    assert not (one.root / "_superseded").exists()
    assert pl.concat(ViewLog(tmp_path, VIEW.published).newest_first(columns)).height == before.height


@pytest.mark.parametrize("limits", [replace(AT_ONCE, set_aside=True), replace(KEEP, set_aside=True)])
def test_dying_while_files_are_set_aside_loses_no_row(tmp_path, monkeypatch, limits):
    write(tmp_path, *(rows(n) for n in range(12)))
    calls, rename = [0], Path.rename

    def dying(self, target):
        calls[0] -= 1
        if calls[0] == 0:
            raise Died
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", dying)
    for step in range(1, 8):
        calls[0] = step
        with contextlib.suppress(Died):
            compact(table(tmp_path), limits, now_s=time.time())
        assert read(tmp_path) == list(range(12))
    calls[0] = -1
    assert compact(table(tmp_path), limits, now_s=LATER).faults == ()
    assert read(tmp_path) == list(range(12))
    assert on_disk(tmp_path) == 1
