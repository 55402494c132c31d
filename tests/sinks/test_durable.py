"""Files that survive a loss of power."""

import os

import pytest

from tests.support.disk import Disk, refuse
from unskew.features.errors import LayoutError, StoreUnavailable
from unskew.sinks import durable


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
