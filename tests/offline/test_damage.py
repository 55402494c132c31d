"""Whatever happened to a file of a table, every reader names it and says what to do, and none reads other values."""

import ctypes
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from tests.monitoring.test_audit import CLICKS, EVENTS, PLAN
from tests.monitoring.test_audit import CLOCK as END
from tests.support.written import write_archive, write_log
from unskew.features.errors import LayoutError
from unskew.monitoring.audit import audit
from unskew.offline.compaction import Limits, archive_tables, compact, dead_letter_tables, log_tables
from unskew.offline.dead_letters import Wanted, find, letters
from unskew.offline.join import joined
from unskew.offline.log_reader import ViewLog
from unskew.sinks.tables import reading
from unskew.sinks.tables.checksum import verify
from unskew.sinks.tables.kinds import DEAD_LETTER_SCHEMA, DeadLetterTable
from unskew.sinks.tables.layout import coverage_file, published_files, view_root

LIMITS = Limits(min_files=2, grace_s=3600)


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """Only lost power asks for syncing, which is slow."""
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Log, archive and dead letters, of several files each."""
    write_log(tmp_path / "log", CLICKS, EVENTS, END, n_batches=3)
    write_archive(tmp_path / "archive", CLICKS, EVENTS)
    table = DeadLetterTable(tmp_path / "dead_letters", "topic", "p0", None)
    for offset in range(3):
        letter = dict.fromkeys(DEAD_LETTER_SCHEMA) | {"topic": "topic", "partition": 0, "offset": offset}
        letter |= {"arrival": EVENTS["_arrival"][offset], "reason": "r", "value": b"v" * 40}
        table.append(pl.DataFrame([letter], schema=DEAD_LETTER_SCHEMA))
        table.snapshot()
    table.settle()
    return tmp_path


def join(root: Path) -> None:
    labels = EVENTS.select("user")
    joined(ViewLog(root / "log", CLICKS.published), labels, EVENTS["_arrival"].to_physical().to_numpy())


def stats(root: Path) -> None:
    ViewLog(root / "log", CLICKS.published).stats()


def head(root: Path) -> None:
    ViewLog(root / "log", CLICKS.published).head(10_000)


def audited(root: Path) -> None:
    audit(PLAN, root / "log", root / "archive", samples=20, patience_s=0.0)


def show(root: Path) -> None:
    list(letters(root / "dead_letters", find(root / "dead_letters", Wanted())))


def compacted(root: Path) -> None:
    tables = [
        *log_tables(root / "log"),
        *archive_tables(root / "archive"),
        *dead_letter_tables(root / "dead_letters"),
    ]
    faults = [fault for table in tables for fault in compact(table, LIMITS, now_s=0.0).faults]
    if faults:
        raise LayoutError(faults[0])


LOG = "log/clicks/v1"
ARCHIVE = f"archive/{CLICKS.stream.topic}"
LETTERS = "dead_letters/topic"
READERS: dict[str, list[Callable[[Path], None]]] = {
    LOG: [join, stats, head, audited, compacted],
    ARCHIVE: [audited],
    LETTERS: [show, compacted],
}


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


def link_to_nowhere(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def foreign(path: Path) -> None:
    pl.DataFrame({"a": [1]}).write_parquet(path)


def without_rows(path: Path) -> None:
    pl.read_parquet(path, hive_partitioning=False).clear().write_parquet(path, metadata=written_by_unskew(path))


def other_columns(path: Path) -> None:
    rows = pl.read_parquet(path, hive_partitioning=False).select(
        pl.all().cast(pl.String, strict=False).name.suffix("_")
    )
    rows.write_parquet(path, metadata=written_by_unskew(path))


def old_and_damaged(path: Path) -> None:
    """Without a checksum, as earlier versions wrote it."""
    pl.read_parquet(path, hive_partitioning=False).write_parquet(path, metadata=written_by_unskew(path))
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(len(content) // 2) + content[4 + len(content) // 2 :])


def written_by_unskew(path: Path) -> dict[str, str]:
    metadata = {name: text for name, text in pl.read_parquet_metadata(path).items() if name.startswith("unskew.")}
    metadata.pop("unskew.checksum")
    return metadata


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a flipped bit": (flipped, "is damaged: its bytes do not match their checksum; restore"),
    "cut": (
        lambda path: os.truncate(path, 300),
        "is damaged: its 300 bytes do not end as a Parquet file does; restore",
    ),
    "empty": (lambda path: os.truncate(path, 0), "is empty; restore"),
    "a folder": (folder_instead, "is a folder, not a file of this table; move it away, and restore"),
    "foreign": (foreign, "is damaged or not of this table: its metadata lack"),
    "old and damaged": (old_and_damaged, "damaged"),
}
OF_THE_LOG = {
    **DAMAGES,
    "a link to nowhere": (link_to_nowhere, "restore the file"),
    "without rows": (without_rows, "has 0 rows, and its name says"),
    "other columns": (other_columns, "cannot be read"),
}


@pytest.mark.parametrize(
    ("table", "kind"),
    [*((LOG, kind) for kind in OF_THE_LOG), *((table, kind) for table in (ARCHIVE, LETTERS) for kind in DAMAGES)],
)
def test_every_reader_names_a_damaged_file_and_the_remedy(stored, table, kind, capfd):
    damage, message = OF_THE_LOG[kind]
    files = published_files(stored / table)
    assert len(files) > 1 or table == ARCHIVE
    path = files[len(files) // 2].path
    damage(path)

    for read in READERS[table]:
        if read is compacted and (kind in {"a link to nowhere", "without rows", "other columns"}):
            continue
        with pytest.raises(LayoutError) as found:
            read(stored)

        assert path.name in str(found.value), read
        assert message in str(found.value), read
    capfd.readouterr()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"since": 1', '{"since": "x", "complete_to": 2, "seq": 3}', None])
@pytest.mark.parametrize("name", ["h0", "_shards"])
def test_damaged_coverage_is_named(stored, content, name):
    path = coverage_file(view_root(stored / "log", "clicks", 1), name)
    path.unlink(missing_ok=True)
    if content is None:
        path.mkdir()
    else:
        path.write_text(content)

    for read in (join, stats, head, audited):
        with pytest.raises(LayoutError, match=f"{path} does not say .*restart the pipeline, which writes it again"):
            read(stored)


def become(user: int) -> None:
    """Change the user of this thread alone: a change for all threads interrupts them, and an embedded broker ends."""
    number = {"x86_64": 117, "aarch64": 147}[platform.machine()]  # setresuid
    assert ctypes.CDLL(None, use_errno=True).syscall(number, -1, user, -1) == 0


def test_a_file_that_may_not_be_read_is_named(stored):
    """As another user than the one of the tests, who may read everything."""
    if os.geteuid() or sys.platform != "linux":
        pytest.skip("needs the right to become another user")
    path = published_files(stored / LOG)[1].path
    path.chmod(0o600)
    here = Path.cwd()
    os.chdir(path.parent)
    become(65534)
    try:
        with pytest.raises(LayoutError, match=r"parquet cannot be read \(Permission denied\): let this user read it"):
            verify(Path(path.name))
    finally:
        become(0)
        os.chdir(here)


def test_letters_and_events_that_compaction_moves_meanwhile_are_read_from_where_they_are(stored, monkeypatch):
    """Files go between their listing and their reading."""
    expected = find(stored / "dead_letters", Wanted())
    listed = published_files(stored / LETTERS)

    def late(root: Path, writer: str | None = None) -> object:
        found = published_files(root, writer)
        if root == stored / LETTERS and found == listed:
            compact(dead_letter_tables(stored / "dead_letters")[0], Limits(min_files=2, grace_s=0), now_s=0.0)
        return found

    monkeypatch.setattr(reading, "published_files", late)

    assert find(stored / "dead_letters", Wanted()).equals(expected)
    assert len(published_files(stored / LETTERS)) == 1
    assert not listed[0].path.exists()


def test_a_link_to_nowhere_among_letters_is_named_and_ends_the_search(stored):
    path = published_files(stored / LETTERS)[1].path
    link_to_nowhere(path)

    with pytest.raises(LayoutError, match=f"{path.name}.*restore the file"):
        show(stored)
    with pytest.raises(LayoutError, match=f"{path.name} is a link to a file that is not there; restore"):
        compacted(stored)


def test_a_merged_file_that_is_damaged_does_not_replace_what_it_covers(stored):
    (table,) = log_tables(stored / "log")
    compact(table, LIMITS, now_s=0.0)
    before = sorted((stored / LOG).glob("day=*/*.parquet"))
    widest = max(published_files(stored / LOG), key=lambda file: file.last - file.first).path
    flipped(widest)

    found = compact(table, Limits(min_files=2, grace_s=0), now_s=4e9)

    assert str(widest) in found.faults[0]
    covered = [path for path in before if path.parent == widest.parent]
    assert len(covered) > 1
    assert all(path.exists() for path in covered)
