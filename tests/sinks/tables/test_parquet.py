import contextlib
import datetime as dt
import threading
from pathlib import Path

import polars as pl
import pytest

from tests.support.plans import DAY
from unskew.features.errors import LayoutError, StoreUnavailable
from unskew.sinks.tables.checksum import read_json
from unskew.sinks.tables.layout import (
    INSTANT,
    STAGED,
    coverage_file,
    file_name,
    published_files,
    read_coverage,
    staged_files,
)
from unskew.sinks.tables.parquet import StagedTable
from unskew.sinks.tables.publication import ByRename


def rows(*numbered: tuple[int, int]) -> pl.DataFrame:
    """Rows from (sequence, day)."""
    return pl.DataFrame(
        {"n": [n for n, _ in numbered], "t": [day * DAY for _, day in numbered]}, schema={"n": pl.Int64, "t": pl.Int64}
    ).with_columns(pl.col("t").cast(INSTANT))


def table(root: Path, saved: dict[str, int] | None = None, writer: str = "h0") -> StagedTable:
    return StagedTable(root, writer, day_column="t", sequence_column="n", metadata={"unskew.view": "v"}, saved=saved)


def published(root: Path) -> list[int]:
    return [n for file in published_files(root) for n in pl.read_parquet(file.path, hive_partitioning=False)["n"]]


def test_rows_are_readable_only_after_the_next_snapshot(tmp_path):
    writer = table(tmp_path)

    writer.append(rows((0, 0), (1, 0)))
    assert writer.snapshot() == {"next": 2}
    assert published(tmp_path) == []

    assert writer.snapshot() == {"next": 2}
    assert published(tmp_path) == [0, 1]


def test_settling_publishes_the_last_snapshot_and_nothing_appended_since(tmp_path):
    writer = table(tmp_path)
    writer.append(rows((0, 0)))
    writer.snapshot()
    writer.append(rows((1, 0)))

    writer.settle()

    assert published(tmp_path) == [0]
    assert not list((tmp_path / "_staged").rglob("*"))


def test_a_snapshot_makes_one_file_for_each_utc_day_named_by_its_sequences(tmp_path):
    writer = table(tmp_path)
    writer.append(rows((3, 0), (4, 0), (9, 1)))
    writer.append(rows((10, 1), (11, 2)))
    writer.snapshot()
    writer.settle()

    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.parquet")) == [
        "day=1970-01-01/h0-00000000000000000003-00000000000000000004.parquet",
        "day=1970-01-02/h0-00000000000000000009-00000000000000000010.parquet",
        "day=1970-01-03/h0-00000000000000000011-00000000000000000011.parquet",
    ]


def test_no_rows_make_no_file(tmp_path):
    writer = table(tmp_path)
    writer.append(rows())

    assert writer.snapshot() == {"next": 0}
    assert not list(tmp_path.rglob("*.parquet"))


def test_files_carry_the_metadata(tmp_path):
    writer = table(tmp_path)
    writer.append(rows((0, 0)))
    writer.snapshot()
    writer.settle()

    metadata = pl.read_parquet_metadata(published_files(tmp_path)[0].path)

    assert {name: text for name, text in metadata.items() if name.startswith("unskew.")} == {
        "unskew.layout": "1",
        "unskew.checksum": "crc32",
        "unskew.view": "v",
    }


@pytest.mark.parametrize("again", [rows((1, 0)), rows((0, 0), (2, 0)), rows((3, 0), (3, 0)), rows((4, 0), (3, 0))])
def test_a_sequence_that_does_not_grow_is_refused(tmp_path, again):
    writer = table(tmp_path)
    writer.append(rows((0, 0), (1, 0)))

    with pytest.raises(ValueError, match="increasing order"):
        writer.append(again)


def test_rows_without_a_sequence_are_numbered_as_they_come(tmp_path):
    def unnumbered(saved):
        return StagedTable(tmp_path, "p0", day_column="t", sequence_column=None, metadata={}, saved=saved)

    writer = unnumbered(None)
    writer.append(rows((7, 0), (7, 1), (5, 1)))
    saved = writer.snapshot()
    writer = unnumbered(saved)
    writer.append(rows((7, 1)))
    writer.snapshot()
    writer.settle()

    assert saved == {"next": 3}
    assert [(file.first, file.last) for file in published_files(tmp_path)] == [(0, 0), (1, 2), (3, 3)]


def test_coverage_is_published_with_the_rows_that_it_speaks_of(tmp_path):
    writer = table(tmp_path)
    writer.append(rows((0, 0)))
    writer.cover({"since": 5, "complete_to": 10})
    assert writer.snapshot() == {"next": 1, "since": 5, "complete_to": 10}
    assert read_coverage(tmp_path) is None

    writer.cover({"since": 5, "complete_to": 20})
    writer.snapshot()

    coverage = read_coverage(tmp_path)
    assert (coverage.since_us, coverage.complete_to_us) == (5, 10)
    assert read_json(coverage_file(tmp_path, "h0").read_bytes()) == {"since": 5, "complete_to": 10, "seq": 1}


def test_a_view_is_covered_from_its_latest_beginning_to_its_earliest_end(tmp_path):
    for shard, since, complete_to in [("h0", 5, 100), ("h1", 9, 90), ("h2", None, 95)]:
        writer = table(tmp_path, writer=shard)
        writer.cover({"since": since, "complete_to": complete_to})
        writer.snapshot()
        writer.settle()

    coverage = read_coverage(tmp_path)

    assert (coverage.since_us, coverage.complete_to_us) == (9, 90)


def test_restart_publishes_what_was_staged_up_to_the_saved_sequence_and_its_coverage(tmp_path):
    before = table(tmp_path)
    before.append(rows((0, 0), (1, 1)))
    before.cover({"since": 1, "complete_to": 2})
    saved = before.snapshot()

    after = table(tmp_path, saved)

    assert published(tmp_path) == [0, 1]
    assert read_coverage(tmp_path).complete_to_us == 2
    assert after.next_sequence == 2


def test_restart_removes_what_was_staged_past_the_saved_sequence(tmp_path):
    before = table(tmp_path)
    before.append(rows((0, 0)))
    saved = before.snapshot()
    before.append(rows((1, 0)))
    before.snapshot()

    after = table(tmp_path, saved)
    after.append(rows((1, 0), (2, 0)))
    after.snapshot()
    after.settle()

    assert published(tmp_path) == [0, 1, 2]


def test_restart_without_saved_state_removes_what_was_staged(tmp_path):
    before = table(tmp_path)
    before.append(rows((0, 0)))
    before.snapshot()

    table(tmp_path, None)

    assert staged_files(tmp_path, "h0") == []
    assert published(tmp_path) == []


def test_restart_removes_a_torn_temporary_file(tmp_path):
    torn = tmp_path / "_staged" / "day=1970-01-01" / f"{file_name('h0', 0, 3)}.tmp"
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b"PAR1 and then the power went")

    table(tmp_path, None)

    assert not torn.exists()


def test_restart_leaves_the_files_of_other_writers_alone(tmp_path):
    other = table(tmp_path, writer="h10")
    other.append(rows((0, 0)))
    other.snapshot()

    table(tmp_path, None, writer="h1")

    assert len(staged_files(tmp_path, "h10")) == 1


def test_published_rows_past_the_saved_sequence_are_an_error_and_stay(tmp_path):
    before = table(tmp_path)
    before.append(rows((0, 0)))
    saved = before.snapshot()
    before.append(rows((1, 0)))
    before.snapshot()
    before.settle()

    with pytest.raises(LayoutError, match=r"h0-0+1-0+1\.parquet holds rows past 0.*newest recovery store"):
        table(tmp_path, saved)

    assert published(tmp_path) == [0, 1]


def test_published_rows_without_saved_state_are_an_error_and_nothing_is_touched(tmp_path):
    before = table(tmp_path)
    before.append(rows((0, 0)))
    before.snapshot()
    before.append(rows((1, 0)))
    before.snapshot()

    with pytest.raises(LayoutError, match="earlier run"):
        table(tmp_path, None)

    assert published(tmp_path) == [0]
    assert len(staged_files(tmp_path, "h0")) == 1


def test_a_table_that_lacks_the_saved_rows_is_an_error(tmp_path):
    with pytest.raises(LayoutError, match="lacks the rows of h0 up to 41"):
        table(tmp_path / "another", {"next": 42})


def test_a_staged_file_across_the_saved_sequence_is_an_error(tmp_path):
    before = table(tmp_path)
    before.append(rows((0, 0), (1, 0)))
    before.snapshot()

    with pytest.raises(LayoutError, match="was not written by the run"):
        table(tmp_path, {"next": 1})


def test_where_the_disk_fails_the_same_snapshot_can_be_repeated(tmp_path):
    root = tmp_path / "table"
    writer = table(root)
    writer.append(rows((0, 0)))
    root.write_text("a file where the directory should be")
    with pytest.raises(StoreUnavailable, match="cannot write to"):
        writer.snapshot()

    root.unlink()
    writer.snapshot()
    writer.settle()

    assert published(root) == [0]


def test_a_compacted_file_supersedes_the_files_that_it_covers(tmp_path):
    writer = table(tmp_path)
    for n in range(3):
        writer.append(rows((n, 0)))
        writer.snapshot()
    writer.settle()
    day = tmp_path / "day=1970-01-01"
    rows((0, 0), (1, 0)).write_parquet(day / file_name("h0", 0, 1))

    assert [(file.first, file.last) for file in published_files(tmp_path)] == [(0, 1), (2, 2)]
    assert published(tmp_path) == [0, 1, 2]


def test_names_that_the_layout_does_not_give_are_not_read(tmp_path):
    day = tmp_path / "day=1970-01-01"
    day.mkdir()
    for name in ("_h0-1-2.parquet", "notes.parquet", "h0-1-2.parquet.tmp", "h0-a-b.parquet"):
        (day / name).touch()

    assert published_files(tmp_path) == []


def test_days_are_days_in_utc(tmp_path):
    late = dt.datetime(2024, 5, 1, 23, 59, 59, 999_999, tzinfo=dt.UTC)
    writer = table(tmp_path)
    writer.append(pl.DataFrame({"n": [0, 1], "t": [late, late + dt.timedelta(microseconds=1)]}).cast({"t": INSTANT}))
    writer.snapshot()
    writer.settle()

    assert [file.path.parent.name for file in published_files(tmp_path)] == ["day=2024-05-01", "day=2024-05-02"]


def test_a_process_that_stood_still_puts_no_file_where_its_successor_looks(tmp_path):
    taken_over = []

    def still_ours() -> None:
        if taken_over:
            raise LayoutError("the lease of this process was taken over")

    def process(saved: dict[str, int] | None, *checks) -> StagedTable:
        return (
            StagedTable(
                tmp_path, "h0", day_column="t", sequence_column="n", metadata={}, saved=saved, still_ours=still_ours
            )
            if checks
            else table(tmp_path, saved)
        )

    old = process(None, still_ours)
    old.append(rows((0, 0), (1, 0)))
    saved = old.snapshot()
    old.append(rows((2, 0), (3, 0)))
    old.cover({"since": 0, "complete_to": 3})
    taken_over.append(True)
    new = process(saved)
    new.append(rows((2, 0)))
    new.snapshot()
    before = sorted(tmp_path.rglob("*.parquet"))

    with pytest.raises(LayoutError, match="taken over"):
        old.snapshot()

    assert sorted(tmp_path.rglob("*.parquet")) == before
    new.append(rows((3, 0), (4, 0)))
    new.snapshot()
    new.settle()
    assert published(tmp_path) == [0, 1, 2, 3, 4]


def test_a_writer_that_runs_for_many_days_leaves_no_folder_for_each_of_them(tmp_path):
    writer, other = table(tmp_path), table(tmp_path, writer="h1")
    for day in range(6):
        for one in (writer, other):
            one.append(rows((2 * day, day), (2 * day + 1, day)))
            one.snapshot()
            one.snapshot()
        assert len(list((tmp_path / STAGED).iterdir())) <= 2

    assert [file.first for file in published_files(tmp_path, "h0")] == [0, 2, 4, 6, 8, 10]
    assert [file.first for file in published_files(tmp_path, "h1")] == [0, 2, 4, 6, 8, 10]


def test_other_writers_may_remove_the_folder_of_a_day_while_a_file_is_staged_there(tmp_path):
    publication = ByRename(tmp_path, "p0", lambda: None)
    over = threading.Event()

    def remove():
        folder = tmp_path / STAGED / "day=1970-01-01"
        while not over.wait(0.001):
            with contextlib.suppress(OSError):
                folder.rmdir()

    others = [threading.Thread(target=remove) for _ in range(3)]
    for other in others:
        other.start()
    try:
        for number in range(1_000):
            publication.stage([(file_name("p0", number, number), "day=1970-01-01", b"rows")])
            publication.publish({}, number + 1)
    finally:
        over.set()
        for other in others:
            other.join()

    assert len(published_files(tmp_path)) == 1_000
