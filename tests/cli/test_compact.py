import os
import shutil
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.offline.test_compaction import on_disk, read, rows, write
from tests.support.terminal import cells
from unskew.cli import main
from unskew.sinks.tables.layout import published_files


def unskew(*arguments: object, **environment: str):
    return CliRunner(env=environment).invoke(main, ["compact", *(str(each) for each in arguments)])


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Only lost power asks for syncing, which is slow."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


@pytest.fixture
def data(tmp_path) -> Path:
    """Nine files of a day that is over in each table, and one of the next."""
    for folder in ("log/clicks/v1", "log/clicks/v2", "log/visits/v1"):
        log_rows = [rows(n).rename({"n": "seq"}) for n in range(9)]
        write(tmp_path / folder, *log_rows, rows(9, day=1).rename({"n": "seq"}), sequence_column="seq")
    offsets = [rows(n).rename({"n": "_offset"}) for n in range(9)]
    write(tmp_path / "archive/topic", *offsets, sequence_column="_offset")
    write(tmp_path / "dead_letters/topic", *(rows(n) for n in range(9)), sequence_column=None)
    return tmp_path


def test_all_tables_of_the_folders_are_merged_and_the_table_says_so(data):
    result = unskew("--log", data / "log", "--archive", data / "archive", "--min-files", 5)

    assert result.exit_code == 0, result.output
    told = cells(result.stdout)[1:]
    assert [(row[0], row[1], row[2], row[5], row[6]) for row in told] == [
        ("log clicks@1", "10", "2", "0", "9"),
        ("log clicks@2", "10", "2", "0", "9"),
        ("log visits@1", "10", "2", "0", "9"),
        ("archive topic", "9", "1", "0", "9"),
        ("dead letters topic", "9", "1", "0", "9"),
        ("all", "48", "8", "0", "45"),
    ]
    assert [on_disk(data / folder) for folder in ("log/clicks/v1", "archive/topic")] == [11, 10]
    assert read(data / "dead_letters/topic") == list(range(9))


def test_views_restrict_it_to_their_logs(data):
    result = unskew("clicks", UNSKEW_LOG=str(data / "log"), UNSKEW_ARCHIVE=str(data / "archive"))

    assert result.exit_code == 0, result.output
    assert [len(published_files(data / folder)) for folder in ("log/clicks/v1", "log/clicks/v2", "log/visits/v1", "archive/topic")] == [2, 2, 10, 9]  # fmt: skip


def test_files_go_once_their_grace_is_over(data):
    assert unskew("--log", data / "log", "--grace", "30min").exit_code == 0
    assert on_disk(data / "log/visits/v1") == 11
    merged = published_files(data / "log/visits/v1")[0].path
    os.utime(merged, (time.time() - 1_900, time.time() - 1_900))

    assert unskew("--log", data / "log", "--grace", "30min").exit_code == 0

    assert [on_disk(data / f"log/{view}/v1") for view in ("visits", "clicks")] == [2, 11]


def test_without_grace_they_go_at_once(data):
    result = unskew("--log", data / "log", "--grace", "0s")

    assert result.exit_code == 0, result.output
    assert [on_disk(data / f"log/{view}/v1") for view in ("visits", "clicks")] == [2, 2]


def test_a_dry_run_changes_nothing(data):
    result = unskew("--log", data / "log", "--dry-run")

    assert result.exit_code == 0, result.output
    assert "nothing was changed" in result.stdout
    assert on_disk(data / "log/visits/v1") == 10
    assert not (data / "log/visits/v1/_compacting").exists()


def test_a_target_size_is_kept(data):
    n_bytes = sum(file.path.stat().st_size for file in published_files(data / "log/visits/v1"))
    result = unskew("--log", data / "log", "--target-size", f"{n_bytes // 2_000} kB")

    assert result.exit_code == 0, result.output
    assert 2 < len(published_files(data / "log/visits/v1")) < 10


def test_a_damaged_file_is_named_and_makes_the_command_fail(data):
    damaged = published_files(data / "log/visits/v1")[4].path
    damaged.write_bytes(b"PAR1")

    result = unskew("--log", data / "log")

    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {damaged} is damaged")
    assert [len(published_files(data / f"log/{view}/v1")) for view in ("visits", "clicks")] == [4, 2]


def test_what_stays_apart_is_told_and_is_no_failure(data):
    (version,) = (data / "log/visits").iterdir()
    rows(0).rename({"n": "seq"}).write_parquet(
        published_files(version)[0].path, metadata={"unskew.layout": "1", "unskew.view": "other"}
    )

    result = unskew("--log", data / "log")

    assert result.exit_code == 0
    assert "has other columns or metadata than" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: there is nothing to compact: give --log, --archive, --dead-letters, or several of them"),
        (["clicks"], "error: a view is compacted in its log: give the log's folder with --log"),
        (["--log", "{data}/nowhere"], "error: {data}/nowhere: there is no such folder; give the folder of 'unskew run' with --log"),
        (["--archive", "{data}/nowhere"], "error: {data}/nowhere: there is no such folder; give the folder of 'unskew run' with --archive"),
        (["click", "--log", "{data}/log"], "error: {data}/log holds no view 'click'; did you mean 'clicks'?"),
        (["x", "--log", "{data}/log"], "error: {data}/log holds no view 'x'; it has clicks, visits"),
        (["--log", "{data}/log", "--target-size", "big"], "error: --target-size: 'big' is not a size; write a number and a unit, for example 128MiB"),
        (["--log", "{data}/log", "--target-size", "0MiB"], "error: --target-size: '0MiB' is not a size; write a number and a unit, for example 128MiB"),
        (["--log", "{data}/log", "--grace", "soon"], "error: --grace: 'soon' is not a duration; write a number and a unit, for example 5min, 1h or 30d"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said(data, arguments, message):
    result = unskew(*(each.format(data=data) for each in arguments))

    assert result.exit_code == 1
    assert result.stderr.splitlines() == [message.format(data=data)]
    assert on_disk(data / "log/visits/v1") == 10


def test_folders_without_files_are_no_error(tmp_path):
    result = unskew("--log", tmp_path)

    assert (result.exit_code, result.stdout) == (0, "there are no files yet\n")


@pytest.mark.parametrize("missing", [["dead_letters"], ["archive"], ["dead_letters", "archive"]])
def test_a_pipeline_that_refused_nothing_or_everything_has_fewer_folders_and_the_rest_is_merged(data, missing):
    for name in missing:
        shutil.rmtree(data / name)

    result = unskew("--log", data / "log", "--archive", data / "archive", "--dead-letters", data / "dead_letters")

    assert result.exit_code == 0
    assert "log visits@1" in result.stdout
    assert [line.split(":")[0] for line in result.stderr.splitlines()] == [str(data / name) for name in sorted(missing)]


def test_a_table_that_cannot_be_merged_does_not_keep_the_others_from_it(data):
    path = published_files(data / "log/clicks/v1")[0].path
    path.unlink()
    path.symlink_to("nowhere")

    result = unskew("--log", data / "log", "--min-files", 5)

    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {path} is a link to a file that is not there; restore")
    assert len(published_files(data / "log/visits/v1")) == 2


def test_days_of_few_rows_are_merged_across_if_that_is_asked_for(data):
    write(data / "rare", *(rows(n, day=n).rename({"n": "_offset"}) for n in range(40)), sequence_column="_offset")
    (data / "archive/topic").rename(data / "other")
    (data / "rare").rename(data / "archive/topic")

    assert unskew("--archive", data / "archive").exit_code == 0
    assert len(published_files(data / "archive/topic")) == 40
    assert unskew("--archive", data / "archive", "--span", "30d", "--grace", "0s").exit_code == 0

    folders = sorted(path.name for path in (data / "archive/topic").glob("day=*"))
    assert folders[0] == "day=1970-01-01--1970-01-30"
    assert folders[-1] == "day=1970-02-09"
    assert len(folders) == 3


def test_retain_says_which_files_of_several_days_stay(data):
    write(data / "other/topic", *(rows(n, day=n) for n in range(40)), sequence_column=None)
    assert unskew("--dead-letters", data / "other", "--span", "30d", "--grace", "0s").exit_code == 0

    def retained(keep: str) -> tuple[str, list[str]]:
        result = CliRunner().invoke(main, ["retain", f"--dead-letters={data / 'other'}", f"--keep-dead-letters={keep}"])
        assert result.exit_code == 0, result.output
        return result.stderr, sorted(path.name for path in (data / "other/topic").glob("day=*"))

    said, folders = retained("20d")
    assert "dead letters topic: files of earlier days that also have rows from 1970-01-20 on stay" in said
    assert "before the cut: 1, with rows from 1970-01-01 on" in said
    assert len(folders) == 3
    assert retained("9d") == ("", ["day=1970-01-31--1970-02-08", "day=1970-02-09"])


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ("soon", "--span: 'soon' is not a duration"),
        ("12h", "--span: '12h' is not a number of whole days from 1d to 366d"),
        ("36h", "'36h' is not a number of whole days"),
        ("367d", "'367d' is not a number of whole days"),
    ],
)
def test_a_span_is_a_bounded_number_of_days(data, span, message):
    result = unskew("--log", data / "log", "--span", span)

    assert result.exit_code == 1
    assert message in result.stderr
