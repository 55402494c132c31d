"""Leases: who writes what under a folder, seen by processes of this machine and of others."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from unskew.features.errors import LayoutError, StoreUnavailable
from unskew.sinks.lease import LEASES, Lease, Owner

HOLDER = """
import sys, time
from pathlib import Path
from unskew.sinks.lease import Lease, Owner
lease = Lease(Path(sys.argv[1]), "--log", Owner(text="the other", group="b", member=0, machine=sys.argv[2]), frozenset(sys.argv[3:]))
print("held", flush=True)
time.sleep(60)
"""
HERE = Owner(text="this one", group="a", member=0)


def taken(root: Path, *writers: str, owner: Owner = HERE, **options: object) -> Lease:
    return Lease(root, "--log", owner, frozenset(writers), **options)  # type: ignore[arg-type]


@contextlib.contextmanager
def held_by_a_process(root: Path, machine: str, *writers: str) -> "Iterator[subprocess.Popen[bytes]]":
    command = [sys.executable, "-c", HOLDER, str(root), machine, *writers]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


def left(root: Path) -> list[str]:
    return sorted(json.loads(path.read_text())["owner"] for path in (root / LEASES).glob("*.json"))


def test_a_lease_that_a_full_disk_did_not_take_is_not_in_the_way_of_the_next_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(os, "pwrite", full)
        with pytest.raises(StoreUnavailable, match="No space left on device"):
            taken(tmp_path, "v@1/p0.0")

    assert left(tmp_path) == []
    lease = taken(tmp_path, "v@1/p0.0")
    assert left(tmp_path) == ["this one"]
    lease.release()


def test_a_second_writer_of_the_same_is_refused_with_owner_age_and_remedy(tmp_path: Path) -> None:
    with held_by_a_process(tmp_path, HERE.machine, "v@1/p0.0", "v@1/p1.0"):
        with pytest.raises(
            LayoutError,
            match=r"is in use by the other \(its lease was renewed \d+ s ago\), which writes v@1/p1.0 there too; stop that one "
            r"first, or name another --log",
        ):
            taken(tmp_path, "v@1/p1.0", "v@1/p2.0")

        assert left(tmp_path) == ["the other"]


def test_those_that_write_different_things_or_are_one_group_share_a_folder(tmp_path: Path) -> None:
    first = taken(tmp_path, "a", owner=Owner(text="0", group="cluster", member=0))
    other = taken(tmp_path, "b", owner=Owner(text="elsewhere", group="x", member=0))
    second = taken(tmp_path, "a", owner=Owner(text="1", group="cluster", member=1))

    with pytest.raises(LayoutError, match="is in use by 0"):
        taken(tmp_path, "a", owner=Owner(text="again", group="cluster", member=0))
    for lease in (first, other, second):
        lease.check()
        lease.release()
    assert left(tmp_path) == []


def test_a_folder_that_was_made_and_not_written_to_is_gone_with_the_lease(tmp_path: Path) -> None:
    taken(tmp_path / "empty", "a").release()
    lease = taken(tmp_path / "written", "a")
    (tmp_path / "written" / "file").write_text("")
    lease.release()

    assert [path.name for path in tmp_path.iterdir()] == ["written"]


def test_a_killed_process_of_this_machine_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    with held_by_a_process(tmp_path, HERE.machine, "a") as process:
        process.kill()
        process.wait()

        lease = taken(tmp_path, "a")

    assert left(tmp_path) == ["this one"]
    lease.release()


def test_a_lease_of_another_machine_that_is_not_renewed_is_watched_and_taken_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with held_by_a_process(tmp_path, "elsewhere", "a") as process:
        process.kill()
        process.wait()
    began_s = time.monotonic()

    lease = taken(tmp_path, "a", stale_s=0.3)

    assert time.monotonic() - began_s >= 0.3
    assert left(tmp_path) == ["this one"]
    assert [message.split("the other, ")[-1] for message in caplog.messages if "taken over" in message][-1].startswith(
        "renewed"
    )
    lease.release()


def test_asked_to_it_is_taken_over_at_once(tmp_path: Path) -> None:
    with held_by_a_process(tmp_path, "elsewhere", "a") as process:
        process.kill()
        process.wait()

    # Watched, it would take an hour.
    taken(tmp_path, "a", stale_s=3600.0, take_over=True).release()


def without_lock(lease: Lease) -> None:
    """As it looks from a machine that its locks do not reach."""
    fcntl.flock(lease._file, fcntl.LOCK_UN)


@pytest.mark.parametrize(
    "now_s",
    [time.time, lambda: 0.0, lambda: 4e9, lambda: 2e9 - time.monotonic()],
    ids=["right", "at 1970", "in 2096", "running back"],
)
def test_a_lease_that_is_renewed_is_left_alone_even_where_its_lock_cannot_be_seen(
    tmp_path: Path, now_s: Callable[[], float]
) -> None:
    elsewhere = Owner(text="the other", group="b", member=0, machine="elsewhere")
    other = taken(tmp_path, "a", owner=elsewhere, now_s=now_s)
    without_lock(other)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(0.01):
            other.renew()

    renewing = threading.Thread(target=renew)
    renewing.start()
    try:
        with pytest.raises(LayoutError, match="is in use by the other"):
            taken(tmp_path, "a", stale_s=30.0)
    finally:
        ended.set()
        renewing.join()
    other.check()
    other.release()


def test_who_lost_a_lease_finds_out(tmp_path: Path) -> None:
    stood_still = taken(tmp_path, "a", owner=Owner(text="the other", group="b", member=0, machine="elsewhere"))
    without_lock(stood_still)

    lease = taken(tmp_path, "a", stale_s=0.1)

    with pytest.raises(LayoutError, match="the lease of this process was taken over"):
        stood_still.check()
    stood_still.renew()
    lease.check()
    stood_still.release()
    lease.check()
    lease.release()


def test_a_lease_that_its_process_died_while_writing_is_removed(tmp_path: Path) -> None:
    (tmp_path / LEASES).mkdir()
    (tmp_path / LEASES / "half.json").write_text('{"owner": "the')

    lease = taken(tmp_path, "a")

    assert left(tmp_path) == ["this one"]
    lease.release()


def test_who_was_taken_over_by_a_process_that_has_ended_hears_that_the_folder_may_be_whole(tmp_path: Path) -> None:
    root = tmp_path / "log"
    root.mkdir()
    stood_still = taken(root, "a")
    for path in (root / LEASES).glob("*.json"):
        path.unlink()
    taken(root, "a").release()

    with pytest.raises(LayoutError, match=r"another process has taken it over and ended.*all there, start again"):
        stood_still.check()
    stood_still.release()


@pytest.mark.parametrize("how", ["deleted", "moved", "deleted and made again"])
def test_who_lost_the_folder_itself_hears_that_and_not_that_another_took_over(tmp_path: Path, how: str) -> None:
    root = tmp_path / "log"
    held = taken(root, "a")
    if how == "moved":
        root.rename(tmp_path / "elsewhere")
    else:
        shutil.rmtree(root)
    if how == "deleted and made again":
        # As the next write does, which makes the folder of a day.
        (root / "day=2017-01-01").mkdir(parents=True)

    with pytest.raises(LayoutError, match=f"{root} was deleted, moved or unmounted while this process wrote there"):
        held.check()
    held.release()
