"""Files that survive a loss of power."""

import os
import subprocess
import sys
from functools import partial

import pytest

from tests.support.disk import Disk, refuse
from unskew.features.errors import LayoutError, StoreUnavailable
from unskew.sinks import durable

STAYS_BEFORE_FSYNC = """
import os, sys, time
from pathlib import Path
from unskew.sinks import durable

def stay(file):
    print("written", flush=True)
    time.sleep(600)

os.fsync = stay
if sys.argv[1] == "at once":
    durable.replace(Path(sys.argv[2]), b"of another", at_once=True)
else:
    durable.create_whole(Path(sys.argv[2]), b"of another")
"""


def test_a_file_is_replaced_in_the_order_of_the_steps(tmp_path, monkeypatch):
    path = tmp_path / "root" / "file.json"
    path.parent.mkdir()
    disk = Disk(monkeypatch, tmp_path)

    durable.replace(path, b"new", lambda: disk.calls.append(("still ours", "")))

    assert disk.calls == [
        ("fsync", "root/file.tmp"),
        ("still ours", ""),
        ("rename", "root/file.json"),
        ("fsync", "root"),
    ]
    assert (path.read_bytes(), disk.faults, disk.lose()) == (b"new", [], [])


def test_nothing_is_replaced_where_another_process_has_taken_over(tmp_path):
    def taken_over():
        raise LayoutError("taken over")

    path = tmp_path / "file.json"
    path.write_bytes(b"old")

    with pytest.raises(LayoutError, match="taken over"):
        durable.replace(path, b"new", taken_over)

    assert path.read_bytes() == b"old"


def test_who_still_has_a_temporary_file_open_does_not_write_into_its_successor(tmp_path):
    path = tmp_path / "file.json"
    frozen = durable.create(path.with_suffix(".tmp"))
    durable.write_at(frozen, b"halfway", 0)

    durable.replace(path, b"new")
    durable.write_at(frozen, b"it wakes up", 0)
    os.close(frozen)

    assert path.read_bytes() == b"new"


def test_processes_that_replace_a_file_at_once_leave_it_as_the_last_of_them_wrote_it(tmp_path):
    path = tmp_path / "list.json"

    def meanwhile() -> None:
        durable.replace(path, b"of another", at_once=True)
        assert path.read_bytes() == b"of another"

    durable.replace(path, b"of this", meanwhile, at_once=True)

    assert path.read_bytes() == b"of this"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_could_not_be_replaced_leaves_nothing_behind_that_nobody_overwrites(tmp_path):
    path = tmp_path / "list.json"

    def refuse() -> None:
        raise LayoutError("taken over")

    with pytest.raises(LayoutError):
        durable.replace(path, b"new", refuse, at_once=True)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [partial(durable.replace, at_once=True), durable.create_whole])
def test_what_a_killed_process_left_is_removed_and_what_another_still_writes_is_not(tmp_path, write):
    path = tmp_path / "list[1].json"
    other = subprocess.Popen(
        [sys.executable, "-c", STAYS_BEFORE_FSYNC, "whole" if write is durable.create_whole else "at once", path],
        stdout=subprocess.PIPE,
        text=True,
    )
    with other:
        try:
            assert other.stdout.readline() == "written\n"
            (of_other,) = tmp_path.iterdir()

            write(path, b"of this")
            assert set(tmp_path.iterdir()) == {path, of_other}
        finally:
            other.kill()

    path.unlink()
    write(path, b"of this")
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"of this"


def test_folders_are_made_durable_from_the_top_or_together(tmp_path, monkeypatch):
    disk = Disk(monkeypatch, tmp_path.parent)
    durable.make_folder(tmp_path / "a" / "b")
    assert [name for _, name in disk.calls] == [tmp_path.name, f"{tmp_path.name}/a"]

    unsynced = set()
    for name in ("x", "y"):
        durable.make_folder(tmp_path / "c" / name, unsynced)
    assert unsynced == {tmp_path, tmp_path / "c"}
    durable.sync_folders(unsynced)
    assert (unsynced, disk.lose()) == (set(), [])


def test_a_folder_whose_name_cannot_be_made_durable_is_made_again(tmp_path, monkeypatch):
    disk = Disk(monkeypatch, tmp_path.parent)
    refuse(monkeypatch, tmp_path)

    with pytest.raises(OSError, match="the disk failed"):
        durable.make_folder(tmp_path / "a")
    durable.make_folder(tmp_path / "a")

    assert ((tmp_path / "a").is_dir(), disk.lose()) == (True, [])


def test_folders_that_could_not_be_fsynced_are_kept_for_the_next_try(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / name).mkdir()
    unsynced = {tmp_path / "a", tmp_path / "b"}
    refuse(monkeypatch, tmp_path / "b")

    with pytest.raises(StoreUnavailable, match="cannot write to"), durable.disk(tmp_path):
        durable.sync_folders(unsynced)
    assert tmp_path / "b" in unsynced

    durable.sync_folders(unsynced)
    assert not unsynced
