"""A process that dies at any call to the file system loses no row and shows none twice."""

import os
from pathlib import Path

import polars as pl
import pytest

from tests.support.plans import DAY
from unskew.sinks.tables.layout import INSTANT, published_files, read_coverage
from unskew.sinks.tables.parquet import StagedTable

N_ROWS = 12
ROWS_PER_EPOCH = 4
ROWS_PER_DAY = 3


class Died(BaseException):
    """Nothing catches it, as nothing catches a kill."""


class Disk:
    """Counts the calls that change the disk, and dies just before or just after one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.die_at: int | None = None
        self.after = False
        for owner, name in [
            (os, "fsync"),
            (Path, "rename"),
            (Path, "replace"),
            (Path, "unlink"),
            (Path, "mkdir"),
            (Path, "rmdir"),
            (Path, "write_bytes"),
            (os, "open"),
        ]:
            self._watch(monkeypatch, owner, name)

    def _watch(self, monkeypatch, owner, name):
        # A killed process leaves its writes to the system; only lost power asks for the sync itself, which is slow.
        real = getattr(owner, name) if name != "fsync" else lambda _: None

        def watched(*arguments, **options):
            self.calls += 1
            dies = self.calls == self.die_at
            if dies and not self.after:
                raise Died
            result = real(*arguments, **options)
            if dies:
                if name == "open":
                    os.close(result)
                raise Died
            return result

        monkeypatch.setattr(owner, name, watched)


class Run:
    """A flow over ``N_ROWS`` rows with an epoch each ``ROWS_PER_EPOCH``; ``durable`` is its recovery store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.durable: dict[str, int] | None = None

    def go(self) -> None:
        table = StagedTable(self.root, "p0", day_column="t", sequence_column="n", metadata={}, saved=self.durable)
        while table.next_sequence < N_ROWS:
            low = table.next_sequence
            table.append(rows(range(low, min(low + ROWS_PER_EPOCH, N_ROWS))))
            table.cover({"since": 0, "complete_to": table.next_sequence})
            self.durable = table.snapshot()
        table.settle()


def rows(numbers: range) -> pl.DataFrame:
    return pl.DataFrame({"n": numbers, "t": [n // ROWS_PER_DAY * DAY for n in numbers]}).select(
        pl.col("n").cast(pl.Int64), pl.col("t").cast(INSTANT)
    )


def published(root: Path) -> list[int]:
    return sorted(n for file in published_files(root) for n in pl.read_parquet(file.path, hive_partitioning=False)["n"])


def calls_of_a_whole_run(tmp_path: Path, disk: Disk) -> int:
    before = disk.calls
    Run(tmp_path / "whole").go()
    return disk.calls - before


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_dying_at_any_disk_call_loses_nothing_and_doubles_nothing(tmp_path, monkeypatch, after):
    disk = Disk(monkeypatch)
    disk.after = after
    n_calls = calls_of_a_whole_run(tmp_path, disk)
    assert n_calls > 40

    for call in range(1, n_calls + 1):
        run = Run(tmp_path / f"{call}")
        disk.calls, disk.die_at = 0, call
        with pytest.raises(Died):
            run.go()
        disk.die_at = None
        seen = published(run.root)
        coverage = read_coverage(run.root)

        # Only what is durable was ever readable, and coverage speaks of no more than that.
        assert seen == list(range(len(seen)))
        assert len(seen) <= (run.durable or {"next": 0})["next"]
        assert coverage is None or coverage.complete_to_us <= len(seen)

        run.go()
        assert published(run.root) == list(range(N_ROWS))
        assert read_coverage(run.root).complete_to_us == N_ROWS


def test_dying_again_while_recovering_loses_nothing(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    n_calls = calls_of_a_whole_run(tmp_path, disk)

    for first in range(1, n_calls + 1, 5):
        for second in range(1, 20, 3):
            run = Run(tmp_path / f"{first}-{second}")
            disk.calls, disk.die_at = 0, first
            with pytest.raises(Died):
                run.go()
            disk.calls, disk.die_at = 0, second
            try:
                run.go()
            except Died:
                disk.die_at = None
                run.go()
            assert published(run.root) == list(range(N_ROWS))


def test_an_epoch_that_did_not_become_durable_is_written_anew(tmp_path):
    run = Run(tmp_path)
    table = StagedTable(tmp_path, "p0", day_column="t", sequence_column="n", metadata={}, saved=None)
    table.append(rows(range(4)))
    run.durable = table.snapshot()
    table.append(rows(range(4, 9)))
    table.snapshot()  # and then the process died, before this epoch was durable

    run.go()

    assert published(tmp_path) == list(range(N_ROWS))
