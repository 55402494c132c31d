"""Reading of an archive: what it holds, from when on, and what was removed from it."""

import datetime as dt
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from msgspec.structs import replace as replace_struct

from tests.support.plans import DAY, HOUR, Wanted, sliding, view
from unskew.features.errors import LayoutError
from unskew.monitoring.recount import Recount
from unskew.offline.compaction import Limits, archive_tables, compact
from unskew.offline.retention import retain_days
from unskew.pipelines.history import archive as history
from unskew.pipelines.history.archive import BEGINNING, Archive, columns_of
from unskew.pipelines.history.rebuild import rebuild
from unskew.pipelines.history.seam import check_taken
from unskew.pipelines.state.seeds import OFFSETS, Taken
from unskew.sinks.tables.imported import HandOver, Imported, write_imported
from unskew.sinks.tables.kinds import ArchiveTable
from unskew.sinks.tables.layout import IMPORTED, coverage_file

VIEW = view(Wanted("n", "count", sliding(2 * DAY, DAY)), Wanted("x", "sum", sliding(2 * DAY, DAY), "x"))
START_US = 1_483_228_800_000_000
INSTANT = pl.Datetime("us", "UTC")


def events(n_days: int, partition: int = 0) -> pl.DataFrame:
    """Five events a day, with gaps between their offsets."""
    arrivals = [START_US + day * DAY + hour * HOUR for day in range(n_days) for hour in (1, 5, 9, 13, 23)]
    return pl.DataFrame(
        {
            "user": [f"u{number % 3}" for number in range(len(arrivals))],
            "x": [float(number) for number in range(len(arrivals))],
            "n": list(range(len(arrivals))),
            "_partition": pl.Series([partition] * len(arrivals), dtype=pl.Int32),
            "_offset": [7 + 3 * number for number in range(len(arrivals))],
            "_arrival": pl.Series(arrivals).cast(INSTANT),
            "_event_time": pl.Series(arrivals).cast(INSTANT),
        }
    )


def write(root: Path, rows: pl.DataFrame, *, per_file: int = 2) -> None:
    partition = rows.item(0, "_partition")
    table = ArchiveTable(root, VIEW.stream.topic, partition, None)
    for at in range(0, rows.height, per_file):
        piece = rows[at : at + per_file]
        arrivals = piece["_arrival"].to_physical()
        # Records that were no events came before the first of them.
        table.append(piece, first_us=int(arrivals[0]) - HOUR, clock_us=int(arrivals[-1]))
        table.snapshot()
    table.snapshot()
    table.settle()


def since_of(root: Path) -> int | None:
    return rebuild([VIEW], Archive.open(root, VIEW.stream))[VIEW.id].since_us


def test_an_archive_begins_where_its_partitions_were_first_read(tmp_path: Path) -> None:
    write(tmp_path, events(3))
    write(tmp_path, events(3, partition=1)[4:])

    assert since_of(tmp_path) == START_US


def test_an_archive_without_its_first_days_begins_at_the_midnight_after_them(tmp_path: Path) -> None:
    write(tmp_path, events(4))
    write(tmp_path, events(4, partition=1)[7:])
    shutil.rmtree(tmp_path / "stream" / "day=2017-01-01")

    found = rebuild([VIEW], Archive.open(tmp_path, VIEW.stream))[VIEW.id]

    assert found.since_us == START_US + DAY
    rest = pl.concat([events(4), events(4, partition=1)[7:]])
    recount = Recount(VIEW, rest.filter(pl.col("_arrival") >= pl.lit(START_US + DAY).cast(INSTANT)))
    for key in ("u0", "u1", "u2"):
        mine = found.rows.filter(pl.col("user") == key)
        expected = recount.rows((key,), found.complete_to_us or 0)
        assert mine["available_at"].to_physical().to_list() == [row.instant_us for row in expected]
        assert mine.select("n", "x").to_dicts() == [row.values for row in expected]


def test_days_that_were_removed_from_one_partition_alone_make_all_of_it_begin_later(tmp_path: Path) -> None:
    write(tmp_path, events(4))
    write(tmp_path, events(4, partition=1))
    for path in (tmp_path / "stream").glob("day=2017-01-0[12]/p1-*"):
        path.unlink()

    assert since_of(tmp_path) == START_US + 2 * DAY


def test_a_file_that_is_gone_between_others_is_a_hole(tmp_path: Path) -> None:
    write(tmp_path, events(4))
    archive = Archive.open(tmp_path, VIEW.stream)
    next((tmp_path / "stream").glob("day=2017-01-02/p0-*")).unlink()

    for one in (archive, Archive.open(tmp_path, VIEW.stream)):
        with pytest.raises(
            LayoutError, match=r"holds 1\d events from offset 0 on, and 20 were written, so the history of view@1 would"
        ):
            check_taken(VIEW, one, one.cut, {"h0": {0: _taken(one)}})


def seam_of(root: Path, n_removed: int) -> None:
    """The seam of a backfill of all that is there of partition 0."""
    archive = Archive.open(root, VIEW.stream)
    begin, end = archive.begins(0), archive.cut[0].offset
    assert archive.n_before(0, begin) == n_removed
    n_events, total = archive.count({0: begin}, archive.cut)[0]
    taken = replace_struct(Taken.beginning(begin, n_removed), end=end, n_events=n_events, sum_offsets=total % OFFSETS)
    check_taken(VIEW, archive, archive.cut, {"h0": {0: taken}})


@pytest.mark.parametrize(("per_file", "n_in_first"), [(1, 1), (2, 1), (5, 5)])
def test_a_hole_is_found_also_where_old_days_were_removed(
    tmp_path: Path, per_file: int, n_in_first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, events(6), per_file=per_file)
    (table,) = archive_tables(tmp_path)
    seam_of(tmp_path, 0)
    retain_days(table, dt.date(2017, 1, 2))
    seam_of(tmp_path, 5)
    unlink, left = Path.unlink, [2]

    def killed(path: Path, *, missing_ok: bool = False) -> None:
        left[0] -= path.suffix == ".parquet"
        if not left[0]:
            raise KeyboardInterrupt
        unlink(path, missing_ok=missing_ok)

    # Two days of five events each, of which only the first file goes.
    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        retain_days(table, dt.date(2017, 1, 4))
    monkeypatch.setattr(Path, "unlink", unlink)
    seam_of(tmp_path, 5 + n_in_first)
    retain_days(table, dt.date(2017, 1, 4))
    seam_of(tmp_path, 15)

    min((tmp_path / "stream" / "day=2017-01-05").iterdir()).unlink()
    with pytest.raises(LayoutError, match=r"holds \d+ events from offset \d+ on, and 15 were written, so the history"):
        seam_of(tmp_path, 15)


def test_the_events_of_a_partition_are_counted_also_if_its_first_run_saw_none(tmp_path: Path) -> None:
    first = ArchiveTable(tmp_path, "stream", 0, None)
    first.append(events(1).clear(), clock_us=START_US)
    saved = first.snapshot()
    table = ArchiveTable(tmp_path, "stream", 0, saved)
    for at in range(0, 20, 4):
        table.append(events(4)[at : at + 4], first_us=START_US, clock_us=START_US + DAY)
        table.snapshot()
    table.snapshot()
    seam_of(tmp_path, 0)

    next((tmp_path / "stream").glob("day=2017-01-02/p0-*")).unlink()

    with pytest.raises(LayoutError, match="and 20 were written, so the history of view@1 would have a hole"):
        seam_of(tmp_path, 0)


def _taken(archive: Archive) -> Taken:
    return Taken(begin=0, end=archive.cut[0].offset, n_events=20, sum_offsets=0, checked=0, total=20)


def test_an_archive_of_an_earlier_version_begins_with_its_first_event(tmp_path: Path) -> None:
    write(tmp_path, events(3))
    coverage_file(tmp_path / "stream", "p0").unlink()

    archive = Archive.open(tmp_path, VIEW.stream)

    assert since_of(tmp_path) == START_US + HOUR
    assert archive.cut[0].offset == 7 + 3 * 14 + 1
    assert archive.cut[0].clock_us == START_US + 2 * DAY + 23 * HOUR


@pytest.mark.parametrize("span_days", [1, 4])
def test_reading_follows_what_compaction_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, span_days: int) -> None:
    monkeypatch.setattr(history, "BATCH_ROWS", 6)
    write(tmp_path, events(6))
    archive = Archive.open(tmp_path, VIEW.stream)
    reading = archive.read(0, 0, 1000, columns_of(VIEW))
    found = [next(reading)]
    (table,) = archive_tables(tmp_path)
    limits = Limits(target_bytes=1 << 20, min_files=2, grace_s=0, span_days=span_days)
    for _ in range(2):
        compact(table, limits, now_s=dt.datetime.now(dt.UTC).timestamp() + 1e6)

    rows = pl.concat([*found, *reading])

    assert rows["_offset"].to_list() == events(6)["_offset"].to_list()
    assert rows["x"].to_list() == events(6)["x"].to_list()


def test_a_column_that_came_later_is_named_with_its_day_and_one_that_was_narrower_is_read(tmp_path: Path) -> None:
    table = ArchiveTable(tmp_path, "stream", 0, None)
    for day, rows in enumerate(events(4).partition_by("_arrival", maintain_order=True)[::5]):
        old = rows.drop("n").with_columns(pl.col("x").cast(pl.Float32))
        table.append(rows.with_columns(more=1) if day > 1 else old, first_us=0, clock_us=None)
        table.snapshot()
    table.snapshot()
    table.settle()
    archive = Archive.open(tmp_path, VIEW.stream)

    assert rebuild([VIEW], archive)[VIEW.id].rows["x"].to_list()[:2] == [0.0, 5.0]
    wanting = replace(VIEW, where=None, values=(replace(VIEW.values[0], expr=pl.col("n").cast(pl.Float64)),))
    with pytest.raises(
        LayoutError, match=r"has no column 'n', .*; the archive has it from 2017-01-03 on: backfill from"
    ):
        rebuild([wanting], archive)
    begin = {0: archive.offset_at(0, START_US + 2 * DAY)}
    assert rebuild([wanting], archive, begin=begin, since_us=START_US + 2 * DAY)[VIEW.id].since_us == START_US + 2 * DAY


def write_before(root: Path, rows: pl.DataFrame, hand_over: HandOver | None, *, per_file: int = 2) -> None:
    """Write imported events; without a hand-over their import has not ended."""
    table = ArchiveTable(root, VIEW.stream.topic, 0, None, imported=True)
    for at in range(0, rows.height, per_file):
        positions = pl.Series("_offset", range(at, min(at + per_file, rows.height))) + IMPORTED
        piece = rows[at : at + per_file].with_columns(positions)
        arrivals = piece["_arrival"].to_physical()
        table.append(piece, first_us=int(arrivals[0]), clock_us=int(arrivals[-1]))
        table.snapshot()
    table.snapshot()
    table.settle()
    if hand_over is not None:
        write_imported(root / "stream", Imported(partitions={0: hand_over}), lambda: None)


def read_all(archive: Archive) -> pl.DataFrame:
    return pl.concat(archive.read(0, BEGINNING, archive.cut[0].offset, ["n"]))


@pytest.mark.parametrize("span_days", [None, 1, 4])
def test_imported_events_come_before_those_of_the_topic_that_they_do_not_replace(
    tmp_path: Path, span_days: int | None
) -> None:
    every = events(6)
    # The import has the first three days, and the topic the last four: the third day is in both.
    write(tmp_path, every[10:])
    cut_us = START_US + 3 * DAY
    offset = int(every[15]["_offset"].item())
    hand_over = HandOver(
        rows=15, last_us=cut_us - HOUR, since_us=START_US + HOUR, cut_us=cut_us, offset=offset, skipped=5
    )
    write_before(tmp_path, every[:15], None)
    assert read_all(Archive.open(tmp_path, VIEW.stream))["n"].to_list() == list(range(10, 30))
    write_before(tmp_path / "other", every[:15], hand_over)
    write(tmp_path / "other", every[10:])
    for table in archive_tables(tmp_path / "other") if span_days else ():
        compact(table, Limits(min_files=2, grace_s=0, span_days=span_days or 1), now_s=2e9)

    archive = Archive.open(tmp_path / "other", VIEW.stream)

    assert read_all(archive)["n"].to_list() == list(range(30))
    assert archive.first_us[0] == START_US + HOUR
    assert not archive.is_cut(0)
    assert (archive.n_written(0), archive.n_before(0, BEGINNING), archive.n_gone(0)) == (30, 0, 0)
    assert archive.count({}, archive.cut)[0] == (30, int(read_all(archive)["_offset"].cast(pl.Int128).sum()))
    assert archive.offset_at(0, START_US + DAY) == IMPORTED + 5
    assert archive.offset_at(0, cut_us - HOUR // 2) == offset
    assert since_of(tmp_path / "other") == START_US + HOUR
    assert read_all(Archive.open(tmp_path / "other", VIEW.stream, imports=False))["n"].to_list() == list(range(10, 30))


def test_days_that_are_removed_from_an_import_are_missed(tmp_path: Path) -> None:
    every = events(4)
    cut_us = START_US + 2 * DAY
    hand_over = HandOver(
        rows=10,
        last_us=cut_us - HOUR,
        since_us=START_US + HOUR,
        cut_us=cut_us,
        offset=int(every[10]["_offset"].item()),
        skipped=0,
    )
    for root in (tmp_path, tmp_path / "other"):
        write(root, every[10:])
        write_before(root, every[:10], hand_over)
    (table,) = archive_tables(tmp_path / "other")
    retain_days(table, dt.date(2017, 1, 2))
    seam_of(tmp_path / "other", 5)
    next(table.root.glob("day=2017-01-02/i0-*")).unlink()
    with pytest.raises(LayoutError, match=r"holds 1\d events from offset -9\d+ on, and 15 were written"):
        seam_of(tmp_path / "other", 5)
    (first, *_) = sorted((tmp_path / "stream").glob("day=*"))
    shutil.rmtree(first)

    archive = Archive.open(tmp_path, VIEW.stream)

    assert archive.is_cut(0)
    assert (archive.n_written(0), archive.n_before(0, archive.begins(0)), archive.n_gone(0)) == (20, 5, 5)
    assert archive.first_us[0] == START_US + DAY
    assert read_all(archive)["n"].to_list() == list(range(5, 20))
    # If the topic lacks its first days, what was imported before them would leave a hole.
    shutil.rmtree(tmp_path / "stream" / "day=2017-01-03")
    assert read_all(Archive.open(tmp_path, VIEW.stream))["n"].to_list() == list(range(15, 20))
