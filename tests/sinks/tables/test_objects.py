"""Tables in an object store: what one conditional write publishes, and who may not publish any more."""

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from tests.sinks.tables.test_parquet import rows
from unskew.features.errors import LayoutError, StoreUnavailable
from unskew.sinks.objects import ObjectPath, Superseded, at_hand
from unskew.sinks.tables.checksum import read_json
from unskew.sinks.tables.layout import coverage_file, file_name, published_files, read_coverage
from unskew.sinks.tables.parquet import StagedTable
from unskew.sinks.tables.reading import answer_of_table, metadata_of


def table(root: Path, saved: dict[str, int] | None = None, writer: str = "h0", **more) -> StagedTable:
    return StagedTable(
        root, writer, day_column="t", sequence_column="n", metadata={"unskew.view": "v"}, saved=saved, **more
    )


def published(root: Path) -> list[int]:
    return [n for file in published_files(root) for n in content(file.path)["n"]]


def content(path: Path) -> pl.DataFrame:
    with at_hand([path]) as there:
        return pl.read_parquet(there[path], hive_partitioning=False)


def objects(root: ObjectPath) -> list[str]:
    return sorted(one.name for one in root.objects() if one.name.endswith(".parquet"))


def test_rows_are_readable_only_after_the_next_snapshot_and_one_write_publishes_them(bucket):
    writer = table(bucket)
    writer.append(rows((0, 0), (1, 1)))
    writer.cover({"since": 5, "complete_to": 10})
    assert writer.snapshot() == {"next": 2, "since": 5, "complete_to": 10}
    assert len(objects(bucket)) == 2
    assert published(bucket) == []
    assert read_coverage(bucket) is None
    before = {one.key: one.e_tag for one in bucket.objects()}

    writer.snapshot()

    assert published(bucket) == [0, 1]
    assert read_coverage(bucket).complete_to_us == 10
    after = {one.key: one.e_tag for one in bucket.objects()}
    assert {key for key in after if after[key] != before.get(key)} == {coverage_file(bucket, "h0").key}
    assert metadata_of(published_files(bucket)[0].path)["unskew.view"] == "v"
    assert answer_of_table(bucket, lambda paths: pl.scan_parquet(paths).select("n").collect())["n"].to_list() == [0, 1]


def test_restart_publishes_what_was_staged_up_to_the_saved_sequence_and_removes_the_rest(bucket):
    before = table(bucket)
    before.append(rows((0, 0), (1, 0)))
    saved = before.snapshot()
    before.append(rows((2, 0)))
    before.snapshot()
    before.append(rows((3, 0)))

    after = table(bucket, saved)
    assert published(bucket) == [0, 1]
    assert len(objects(bucket)) == 1
    after.append(rows((2, 0), (3, 0)))
    after.snapshot()
    after.settle()

    assert published(bucket) == [0, 1, 2, 3]


def test_published_rows_past_the_saved_sequence_or_without_one_are_an_error_and_stay(bucket):
    before = table(bucket)
    before.append(rows((0, 0)))
    saved = before.snapshot()
    before.append(rows((1, 0)))
    before.snapshot()
    before.settle()

    with pytest.raises(LayoutError, match=r"h0-0+1-0+1\.\w+\.parquet holds rows past 0.*newest recovery store"):
        table(bucket, saved)
    with pytest.raises(LayoutError, match="earlier run"):
        table(bucket, None)
    with pytest.raises(LayoutError, match="lacks the rows of h0 up to 41"):
        table(bucket / "another", {"next": 42})
    assert published(bucket) == [0, 1]
    # Whoever was refused has not taken over.
    before.append(rows((2, 0)))
    before.snapshot()
    before.settle()
    assert published(bucket) == [0, 1, 2]


def test_a_writer_that_was_taken_over_is_refused_whatever_it_still_writes_and_nothing_is_lost_or_twice(
    bucket, tmp_path
):
    old = table(bucket)
    old.append(rows((0, 0), (1, 0)))
    saved = old.snapshot()
    # It stands still while it writes the next epoch: one of its two files is there, the other one comes later.
    old.append(rows((2, 0), (3, 0), (4, 1), (5, 1), (6, 1)))
    old.snapshot()
    late = max(published_path for published_path in bucket.objects() if published_path.name.endswith(".parquet"))
    frozen = late.read_bytes()
    late.unlink()

    new = table(bucket, saved)
    new.append(rows((2, 0), (3, 0), (4, 1)))
    saved = new.snapshot()
    late.write_bytes(frozen)
    new.append(rows((5, 1), (6, 1), (7, 1)))
    saved = new.snapshot()
    new.settle()
    assert published(bucket) == list(range(8))

    old.append(rows((7, 1)))
    with pytest.raises(
        LayoutError, match=r"h0\.json was written by another process, so this one was taken over and stops"
    ):
        old.snapshot()

    # Also when a third one goes on, and when all but the stray is merged.
    third = table(bucket, saved)
    third.append(rows((8, 1)))
    third.snapshot()
    third.settle()
    assert not late.exists()
    assert published(bucket) == list(range(9))
    new.append(rows((8, 1)))
    new.snapshot()
    with pytest.raises(LayoutError, match="taken over"):
        new.settle()
    for number, file in enumerate(published_files(bucket)):
        merged = content(file.path)
        file.path.unlink()
        copy = tmp_path / f"{number}"
        merged.write_parquet(copy)
        (file.path.parent / file_name("h0", file.first, file.last)).upload(copy)
        copy.unlink()
    table(bucket, {"next": 9})
    late.write_bytes(frozen)
    fourth = table(bucket, {"next": 9})
    assert published(bucket) == list(range(9))
    assert len(read_json(coverage_file(bucket, "h0").read_bytes())["runs"]) == 1
    fourth.settle()


def test_a_start_that_loses_the_race_removes_nothing_that_the_other_process_publishes(bucket, monkeypatch):
    old = table(bucket)
    old.append(rows((0, 0)))
    saved = old.snapshot()
    old.append(rows((1, 0)))
    old.snapshot()
    real = ObjectPath.objects

    def in_between(path, **more):
        # The new process has read the coverage; before it writes its own, the old one publishes.
        monkeypatch.setattr(ObjectPath, "objects", real)
        old.append(rows((2, 0)))
        old.snapshot()
        return real(path, **more)

    monkeypatch.setattr(ObjectPath, "objects", in_between)
    with pytest.raises(LayoutError, match="taken over"):
        table(bucket, saved)

    assert published(bucket) == [0, 1]
    old.settle()
    assert published(bucket) == [0, 1, 2]


def test_a_lost_answer_of_the_store_is_not_taken_for_another_writer(bucket, monkeypatch):
    real = ObjectPath.replace_if
    lose = False

    def losing(path, data, version):
        done = real(path, data, version)
        if lose:
            raise StoreUnavailable("the answer was lost")
        return done

    monkeypatch.setattr(ObjectPath, "replace_if", losing)
    lose = True
    with pytest.raises(StoreUnavailable):
        table(bucket)
    lose = False
    writer = table(bucket)
    writer.append(rows((0, 0)))
    saved = writer.snapshot()
    lose = True
    for _ in range(2):
        # The second try finds what the first one wrote.
        with contextlib.suppress(StoreUnavailable):
            writer.snapshot()
    lose = False

    assert writer.snapshot() == saved
    writer.append(rows((1, 0)))
    writer.snapshot()
    writer.settle()
    assert published(bucket) == [0, 1]


def test_a_lost_or_damaged_coverage_is_an_error_and_no_file_is_removed(bucket):
    writer = table(bucket)
    writer.append(rows((0, 0)))
    saved = writer.snapshot()
    writer.settle()
    path = coverage_file(bucket, "h0")
    data = path.read_bytes()

    for change in (
        path.unlink,
        lambda: path.write_bytes(data[:-3]),
        lambda: path.write_bytes(data.replace(b"0", b"1")),
    ):
        change()
        with pytest.raises(LayoutError, match=r"h0\.json (is gone|does not say which files are published).*restore"):
            table(bucket, saved)
    assert len(objects(bucket)) == 1
    path.write_bytes(data)
    table(bucket, saved)
    assert published(bucket) == [0]


def test_dead_letters_are_published_by_their_coverage_too_and_say_nothing_of_the_log(bucket):
    def unnumbered(saved):
        return StagedTable(bucket, "p0", day_column="t", sequence_column=None, metadata={}, saved=saved)

    writer = unnumbered(None)
    writer.append(rows((7, 0), (7, 1)))
    saved = writer.snapshot()
    assert published(bucket) == []
    writer = unnumbered(saved)
    writer.append(rows((7, 1)))
    writer.snapshot()
    writer.settle()

    assert [(file.first, file.last) for file in published_files(bucket)] == [(0, 0), (1, 1), (2, 2)]
    assert read_coverage(bucket) is None


def test_a_copy_of_the_objects_on_a_disk_shows_the_same_rows(bucket, tmp_path):
    writer = table(bucket)
    writer.append(rows((0, 0), (1, 1)))
    writer.snapshot()
    writer.append(rows((2, 1)))
    writer.snapshot()
    for one in bucket.objects():
        copy = tmp_path.joinpath(*one.parts[len(bucket.parts) :])
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(one.read_bytes())

    assert published(tmp_path) == published(bucket) == [0, 1]


WRITER = """
import json, sys
from tests.sinks.tables.test_objects import epochs
epochs(sys.argv[1], sys.argv[2])
"""
N_ROWS = 1_000


def epochs(address: str, store: str) -> None:
    """Write all rows, an epoch of a few at a time; ``store`` is what is durable of each epoch."""
    from unskew.sinks import durable
    from unskew.sinks.objects import table_path

    path = Path(store)
    path.with_suffix(".begun").touch()
    saved = json.loads(path.read_text()) if path.exists() else None
    writer = table(table_path(address, "--log"), saved)
    while writer.next_sequence < N_ROWS:
        low = writer.next_sequence
        writer.append(rows(*((n, n // 7) for n in range(low, min(low + 5, N_ROWS)))))
        writer.cover({"since": 0, "complete_to": writer.next_sequence})
        durable.replace(path, json.dumps(writer.snapshot()).encode())
    writer.settle()


@pytest.mark.long
def test_killed_at_random_moments_the_table_holds_each_row_once_and_readers_see_only_what_is_durable(bucket, tmp_path):
    chance = random.Random(5)
    store = tmp_path / "durable.json"
    kills = seen = 0
    for _ in range(60):
        with subprocess.Popen([sys.executable, "-c", WRITER, str(bucket), str(store)]) as process:
            until_s = time.monotonic() + 30
            while not store.with_suffix(".begun").exists() and time.monotonic() < until_s:
                time.sleep(0.005)
            store.with_suffix(".begun").unlink()
            until_s = time.monotonic() + (chance.random() * 0.3 if kills < 4 else 60)
            while process.poll() is None and time.monotonic() < until_s:
                coverage = read_coverage(bucket)
                visible = [n for file in published_files(bucket) for n in range(file.first, file.last + 1)]
                assert visible == list(range(len(visible)))
                assert len(visible) >= seen
                seen = len(visible)
                durably = json.loads(store.read_text())["next"] if store.exists() else 0
                assert seen <= durably
                assert coverage is None or coverage.complete_to_us <= durably
                time.sleep(0.01)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                kills += 1
                continue
        assert process.returncode == 0
        break
    assert kills >= 3
    assert published(bucket) == list(range(N_ROWS))
    assert read_coverage(bucket).complete_to_us == N_ROWS

    epochs(str(tmp_path / "disk"), str(tmp_path / "other.json"))
    on_disk = pl.concat([content(file.path) for file in published_files(tmp_path / "disk")])
    assert pl.concat([content(file.path) for file in published_files(bucket)]).equals(on_disk)


def test_a_store_that_refuses_a_write_while_another_is_under_way_is_asked_again(bucket, monkeypatch):
    writer = table(bucket)
    writer.append(rows((0, 0)))
    writer.snapshot()
    real = ObjectPath.replace_if

    def conflicting(path, *_):
        monkeypatch.setattr(ObjectPath, "replace_if", real)
        raise Superseded(str(path))

    monkeypatch.setattr(ObjectPath, "replace_if", conflicting)
    with pytest.raises(StoreUnavailable, match="nobody else has"):
        writer.settle()
    writer.settle()

    assert published(bucket) == [0]
