"""Other engines read each row of a log once by its Delta metadata, whenever they look and wherever writing ends."""

import json
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake.exceptions import DeltaError

from tests.offline.test_compaction import AT_ONCE, KEEP
from tests.support.plans import DAY, SECOND, Wanted, sliding, view
from tests.support.typed import DEFAULTS, EMPTY, FULL, ORDERS
from tests.support.updates import updates
from unskew.cli import main
from unskew.offline import delta
from unskew.offline.compaction import Table, compact, lock
from unskew.sinks import durable
from unskew.sinks.tables.kinds import LogTable
from unskew.sinks.tables.layout import file_name, published_files, view_root

COUNTS = view(Wanted("n", "count", sliding(DAY, DAY)), Wanted("day", "sum", sliding(DAY, DAY), "x"), name="counts")
NOW_MS = 1_700_000_000_000


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _descriptor: None)


class Log:
    """A log of two shards that grows by epochs, each of one file for each shard."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = view_root(folder, "counts", 1)
        self.table = Table(name="log counts@1", root=self.root, sequence="seq", gapless=True)
        self._writers = {name: LogTable(folder, COUNTS, name, None, now_us=lambda: 0) for name in ("h0", "h1")}
        self._n = 0

    def grow(self, n_epochs: int) -> None:
        """Publish what was staged before and stage more, a third of a day later: the last epoch is never published."""
        for _ in range(n_epochs):
            at = self._n * DAY // 3 + self._n * 1_234
            for writer, table in self._writers.items():
                seqs = [2 * self._n, 2 * self._n + 1]
                rows = [
                    {
                        "user": f"user {seq % 5}",
                        "n": seq,
                        "day": seq / 4,
                        "available_at": at + seq,
                        "cause": "hop",
                        "seq": seq,
                    }
                    for seq in seqs
                ]
                table.append(updates(COUNTS, at + SECOND, log_rows=rows, shard=writer))
                table.snapshot()
            self._n += 1

    def publish(self, **options: object) -> delta.Published:
        return delta.publish(self.root, "counts@1", now_ms=NOW_MS, **options)

    def compact(self, limits: object = KEEP) -> None:
        compact(self.table, limits, now_s=time.time(), publish=self.publish)

    @property
    def published(self) -> list[tuple[str, int]]:
        """Shard and number of every published row, as our own readers find them."""
        return sorted(
            row
            for file in published_files(self.root)
            for row in pl.read_parquet(file.path, hive_partitioning=False).select("shard", "seq").iter_rows()
        )

    @property
    def metadata(self) -> Path:
        return self.root / delta.DELTA_LOG

    def commits(self) -> list[list[dict[str, object]]]:
        return [
            [json.loads(line) for line in path.read_text().splitlines()]
            for path in sorted(self.metadata.glob("*.json"))
        ]


def delta_rows(root: Path) -> list[tuple[str, int]]:
    return sorted(pl.scan_delta(str(root)).select("shard", "seq").collect().iter_rows())


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log")


def test_each_row_is_read_once_before_during_and_after_compactions(log: Log) -> None:
    log.grow(9)
    first = log.publish()
    before = log.published
    log.grow(5)

    assert delta_rows(log.root) == before
    assert (first.rows, first.n_added, first.n_replaced) == (len(before), 16, 0)
    log.compact()
    while_sources_stay = delta_rows(log.root)
    assert while_sources_stay == log.published
    assert len(while_sources_stay) > len(before)
    # Whoever only lists files meets rows twice meanwhile.
    assert pl.read_parquet(log.root / "day=*/*.parquet", hive_partitioning=False).height > len(log.published)
    log.grow(6)
    log.compact(AT_ONCE)
    assert delta_rows(log.root) == log.published
    assert sorted(DeltaTable(log.root).to_pyarrow_table().column_names) == sorted(
        pl.read_parquet_schema(published_files(log.root)[0].path)
    )
    again = log.publish()
    assert (again.n_added, again.n_replaced) == (0, 0)


def test_whoever_follows_the_commits_gets_each_row_once(log: Log) -> None:
    log.grow(9)
    log.publish()
    log.grow(9)
    # Merged without being published first: the files that are in no commit come before the merged ones.
    compact(log.table, KEEP, now_s=time.time())
    log.publish()
    log.grow(4)
    log.compact(AT_ONCE)

    followed: list[tuple[str, int]] = []
    for commit in log.commits():
        for action in commit:
            if "add" in action and action["add"]["dataChange"]:
                path = log.root / action["add"]["path"]
                # Those of files that are gone by now are their names' numbers.
                writer, begin, end = path.name.removesuffix(".parquet").rsplit("-", 2)
                followed += [(writer, seq) for seq in range(int(begin), int(end) + 1)]
            assert "remove" not in action or not action["remove"]["dataChange"]
    assert sorted(followed) == log.published


def test_values_of_every_type_are_those_of_the_files(tmp_path: Path) -> None:
    table = LogTable(tmp_path, ORDERS, "h0", None, now_us=lambda: 0)
    for seq, values in enumerate([FULL, EMPTY, {}, DEFAULTS]):
        row = {"user": "é", **values, "available_at": 5 + seq, "cause": "hop", "seq": seq}
        table.append(updates(ORDERS, 9 + seq, log_rows=[row]))
        table.snapshot()
    table.settle()
    root = view_root(tmp_path, "orders", 1)

    delta.publish(root, "orders@1", now_ms=NOW_MS)

    files = [file.path for file in published_files(root)]
    assert pl.read_delta(str(root)).sort("seq").equals(pl.read_parquet(files, hive_partitioning=False))
    assert DeltaTable(root).to_pyarrow_table().num_rows == 4


def test_engines_prune_by_bounds_that_hold(log: Log) -> None:
    log.grow(12)
    log.publish()

    rows = pl.scan_delta(str(log.root))
    files = DeltaTable(log.root).get_add_actions(flatten=True)
    stated = pl.DataFrame(files).sort("path")  # type: ignore[arg-type]
    for path, n, low, high, first, last in stated.select(
        "path", "num_records", "min.available_at", "max.available_at", "min.seq", "max.seq"
    ).iter_rows():
        held = pl.read_parquet(log.root / path, hive_partitioning=False)
        assert (held.height, held["seq"].min(), held["seq"].max()) == (n, first, last)
        assert low <= held["available_at"].min() <= held["available_at"].max() <= high
    bound = pl.lit(5 * DAY // 3 + 20_000).cast(pl.Datetime("us", "UTC"))
    held = pl.read_parquet([file.path for file in published_files(log.root)], hive_partitioning=False)
    late = rows.filter(pl.col("available_at") >= bound).select("shard", "seq").collect()
    assert sorted(late.iter_rows()) == sorted(held.filter(pl.col("available_at") >= bound)["shard", "seq"].iter_rows())
    assert 0 < late.height < held.height


def test_metadata_stay_bounded_and_are_read_from_checkpoints(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "CHECKPOINT_EVERY", 5)
    counts = []
    log.grow(1)
    for _ in range(30):
        log.grow(1)
        log.publish()
        counts.append(len(list(log.metadata.iterdir())))
        if log.published:
            assert delta_rows(log.root) == log.published
    assert counts[-1] <= 15
    assert max(counts) <= 16
    assert len(list(log.metadata.glob("*.checkpoint.parquet"))) == 2
    assert DeltaTable(log.root).version() == 29


def test_a_publication_that_is_killed_anywhere_leaves_a_whole_table(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "CHECKPOINT_EVERY", 2)
    log.grow(6)
    log.publish()
    rename, write, left = durable.rename, durable.write, [0]

    def dying(real: object) -> object:
        def call(*arguments: object, **more: object) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            real(*arguments, **more)  # type: ignore[operator]

        return call

    n_kills = 0
    for step in range(1, 17):
        log.grow(2)
        before = delta_rows(log.root)
        left[0] = step % 9 + 1
        monkeypatch.setattr(durable, "rename", dying(rename))
        monkeypatch.setattr(durable, "write", dying(write))
        try:
            log.compact(AT_ONCE if step % 2 else KEEP)
        except Killed:
            n_kills += 1
        finally:
            monkeypatch.setattr(durable, "rename", rename)
            monkeypatch.setattr(durable, "write", write)
        found = delta_rows(log.root)
        assert found in (before, log.published)
        if step % 3 == 0:
            log.publish()
            assert delta_rows(log.root) == log.published
    assert n_kills > 6


def test_metadata_that_cannot_be_opened_are_written_anew(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "CHECKPOINT_EVERY", 3)
    log.grow(2)
    for _ in range(8):
        log.grow(1)
        log.publish()
    kept = {path.name: path.read_bytes() for path in log.metadata.iterdir()}
    damages = [
        *((name, data[: len(data) // 2]) for name, data in kept.items()),
        *((name, b"") for name in kept),
        *((name, None) for name in kept),
        *((name, b'{"add": 7}\n') for name in kept if name.endswith("json")),
    ]
    n_rebuilt = 0
    for name, data in damages:
        shutil.rmtree(log.metadata)
        log.metadata.mkdir()
        for each, bytes_ in kept.items():
            (log.metadata / each).write_bytes(bytes_)
        if data is None:
            (log.metadata / name).unlink()
        else:
            (log.metadata / name).write_bytes(data)

        n_rebuilt += bool(log.publish().rebuilt)

        assert delta_rows(log.root) == log.published
    # Pointers are mended, and what lies before the last checkpoint is not needed.
    assert 4 <= n_rebuilt < len(damages)


def test_other_writers_are_refused_and_what_they_wrote_is_replaced(log: Log, tmp_path: Path) -> None:
    log.grow(5)
    log.publish()
    more = pl.read_delta(str(log.root)).to_arrow()

    with pytest.raises(DeltaError):
        write_deltalake(log.root, more, mode="append", commit_properties=CommitProperties())
    with pytest.raises(DeltaError):
        DeltaTable(log.root).delete()
    assert delta_rows(log.root) == log.published
    shutil.rmtree(log.metadata)
    write_deltalake(tmp_path / "foreign", more)
    shutil.copytree(tmp_path / "foreign" / delta.DELTA_LOG, log.metadata)
    assert "not written by unskew" in log.publish().rebuilt
    assert delta_rows(log.root) == log.published


def test_a_file_that_was_written_again_under_its_name_is_stated_anew(log: Log) -> None:
    log.grow(5)
    log.publish()
    path = published_files(log.root)[0].path
    shorter = pl.read_parquet(path, hive_partitioning=False)[:1]
    shorter.write_parquet(path)

    assert log.publish().n_added == 1
    assert delta_rows(log.root) == log.published
    assert log.publish().n_added == 0


def test_a_file_that_stands_for_more_rows_than_it_has_is_a_change_of_data(log: Log) -> None:
    log.grow(4)
    log.publish()
    # As retention writes it: fewer rows under the name that covers all.
    first, second, *_ = (file for file in published_files(log.root) if file.writer == "h0")
    kept = pl.read_parquet(second.path, hive_partitioning=False)[1:]
    kept.write_parquet(first.path.with_name(file_name("h0", first.first, second.last)))
    first.path.unlink()
    second.path.unlink()

    delta.publish_again(log.root, "counts@1")

    assert delta_rows(log.root) == log.published
    changes = [one for action in log.commits()[-1] for kind, one in action.items() if kind in {"add", "remove"}]
    assert [one["dataChange"] for one in changes] == [True] * 3


def invoked(*arguments: str) -> Sequence[str]:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def test_the_commands_publish(log: Log) -> None:
    log.grow(9)
    folder = str(log.folder)

    assert invoked("publish", "--log", folder) == [
        "log counts@1: version 0, 32 rows in 16 files; 16 files are new, 0 were replaced by merged ones"
    ]
    invoked("compact", "--log", folder)
    assert delta_rows(log.root) == log.published
    assert "0 files are new" in invoked("publish", "counts", "--log", folder)[0]
    assert "written anew: as asked" in " ".join(invoked("publish", "--rebuild", "--log", folder))
    assert delta_rows(log.root) == log.published


def test_publish_fails_beside_another_command_unless_that_one_brings_the_metadata_up_to_date(log: Log) -> None:
    log.grow(2)

    def published(*more: str) -> tuple[int, str]:
        with lock(log.root):
            result = CliRunner().invoke(main, ["publish", f"--log={log.folder}", *more])
        return result.exit_code, result.output

    busy = "log counts@1: another command is at work on it (compact, retain, erase or publish)"
    assert published() == (1, f"error: {busy}; wait for its end and try again\n")
    log.publish()
    assert published() == (0, f"{busy}, which brings its metadata up to date; left alone\n")
    assert published("--rebuild")[0] == 1
