"""A process that dies at any call to the file system loses no row and shows none twice."""

import os
import pickle
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.support.plans import DAY
from unskew.features.errors import StoreUnavailable
from unskew.sinks.aside import Aside
from unskew.sinks.tables import parquet
from unskew.sinks.tables.layout import INSTANT, published_files, read_coverage
from unskew.sinks.tables.parquet import KEPT_BYTES, KEPT_PARTS, StagedTable, rows_of

N_ROWS = 12
ROWS_PER_EPOCH = 4
ROWS_PER_DAY = 3
AHEAD = 2


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


class Later(Aside):
    """Makes the calls after ``wait`` more epochs; 0: within the epoch's end, None: never.

    Those of ``at_once`` are made at once with 0, and else never: whoever needs their result does their work. ``near``:
    whether the next epoch's end is always near.
    """

    def __init__(self, wait: int | None, *, near: bool = False) -> None:
        self._near = near
        self._wait = wait
        self._calls: list[Callable[[], None]] = []

    def soon(self, call: Callable[[], None]) -> None:
        self._calls.append(call)
        if self._wait == 0:
            self._calls.pop()()

    def near(self) -> Callable[[], bool]:
        return lambda: self._near

    def at_once(self, call: Callable[[], None]) -> None:
        if self._wait == 0:
            call()

    def epoch(self) -> None:
        if self._wait is not None:
            while len(self._calls) >= self._wait > 0:
                self._calls.pop(0)()


WAITS = {"at once": 0, "later": 1, "much later": 2, "never": None}
WAYS = ("kept", "ahead", "near", "near and apart", "ahead and near")
KINDS = {
    "staged": "staged",
    **{f"{way}, {when}": WAITS[when] for way in WAYS[:2] for when in WAITS},
    **{f"{way}, {when}": WAITS[when] for way in WAYS[2:] for when in ("at once", "never")},
}


@pytest.fixture
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kind of run.

    Rows of "ahead" are encoded as soon as there are ``AHEAD`` of them. Those of "near" are a file by then, and those
    that come after become one with it, or with "apart" another one.
    """
    way = request.param.partition(",")[0]
    if way.startswith("ahead"):
        monkeypatch.setattr(parquet, "AHEAD_CELLS", 2 * AHEAD)
    if "near" in way:
        monkeypatch.setattr(parquet, "SOON_ROWS", AHEAD)
    if "apart" in way:
        monkeypatch.setattr(parquet, "MERGED_BYTES", 0)
    return request.param


every_kind = pytest.mark.parametrize("kind", KINDS, indirect=True)


class Run:
    """A flow over ``N_ROWS`` rows with an epoch each ``ROWS_PER_EPOCH``; ``durable`` is its recovery store.

    ``kind``: how its states hold rows, and when these are published. ``staged``: the epochs whose rows are staged
    nevertheless, because there are too many.
    """

    def __init__(self, root: Path, kind: str = "staged", staged: Collection[int] = (1,)) -> None:
        self.root = root
        self.kind = KINDS[kind]
        self.near = "near" in kind
        self.staged = staged
        self.durable: dict[str, Any] | None = None

    def table(self) -> tuple[StagedTable, Later | None]:
        aside = None if self.kind == "staged" else Later(self.kind, near=self.near)
        saved = None if self.durable is None else pickle.loads(pickle.dumps(self.durable))
        arguments: Any = {"day_column": "t", "sequence_column": "n", "metadata": {}, "saved": saved, "aside": aside}
        return StagedTable(self.root, "p0", **arguments), aside

    def go(self) -> None:
        table, aside = self.table()
        while table.next_sequence < N_ROWS:
            low = table.next_sequence
            last = min(low + ROWS_PER_EPOCH, N_ROWS) - 1
            for number in range(low, last, 2):
                table.append(rows(range(number, min(number + 2, last))))
            table.append(rows(range(last, last + 1)))
            table.cover({"since": 0, "complete_to": table.next_sequence})
            state = None if low // ROWS_PER_EPOCH in self.staged else table.kept()
            self.durable = table.snapshot() if state is None else state
            if aside is not None:
                aside.epoch()
        table.settle()


def rows(numbers: range) -> pl.DataFrame:
    return pl.DataFrame({"n": numbers, "t": [n // ROWS_PER_DAY * DAY for n in numbers]}).select(
        pl.col("n").cast(pl.Int64), pl.col("t").cast(INSTANT)
    )


def of_one_day(numbers: range) -> pl.DataFrame:
    return pl.DataFrame({"n": numbers}).select(pl.col("n").cast(pl.Int64), pl.lit(DAY).cast(INSTANT).alias("t"))


def published(root: Path) -> list[int]:
    return sorted(n for file in published_files(root) for n in pl.read_parquet(file.path, hive_partitioning=False)["n"])


def calls_of_a_whole_run(tmp_path: Path, disk: Disk, kind: str) -> int:
    before = disk.calls
    Run(tmp_path / "whole", kind).go()
    return disk.calls - before


@every_kind
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_dying_at_any_disk_call_loses_nothing_and_doubles_nothing(tmp_path, monkeypatch, after, kind):
    disk = Disk(monkeypatch)
    disk.after = after
    n_calls = calls_of_a_whole_run(tmp_path, disk, kind)
    assert n_calls > 40

    for call in range(1, n_calls + 1):
        run = Run(tmp_path / f"{call}", kind)
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


@every_kind
def test_dying_again_while_recovering_loses_nothing(tmp_path, monkeypatch, kind):
    disk = Disk(monkeypatch)
    n_calls = calls_of_a_whole_run(tmp_path, disk, kind)

    for first in range(1, n_calls + 1, 5):
        for second in range(1, 20, 3):
            run = Run(tmp_path / f"{first}-{second}", kind)
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


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "staged"], indirect=True)
def test_a_state_that_was_settled_is_not_published_again(tmp_path, kind):
    run = Run(tmp_path, kind, staged=())
    run.go()
    before = {file.path: file.path.stat().st_ino for file in published_files(tmp_path)}
    assert run.durable is not None
    assert "kept" in run.durable

    run.go()

    assert {file.path: file.path.stat().st_ino for file in published_files(tmp_path)} == before


def test_a_disk_that_fails_aside_is_reported_by_the_next_epochs_end(tmp_path, monkeypatch):
    table, _ = Run(tmp_path, "kept, at once").table()
    table.append(rows(range(4)))
    table.cover({"since": 0, "complete_to": 4})
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", _full)
        # The failure is of what is staged aside; the rows are in the state.
        assert table.kept() is not None
        table.append(rows(range(4, 6)))
        table.cover({"complete_to": 6})
        assert table.kept() is None
        with pytest.raises(StoreUnavailable):
            table.snapshot()
    assert published(tmp_path) == []
    table.snapshot()
    table.settle()

    assert published(tmp_path) == list(range(6))


@pytest.mark.parametrize("kind", [f"{way}, at once" for way in WAYS], indirect=True)
def test_a_state_holds_the_rows_of_one_epoch_once_those_before_are_staged(tmp_path, kind):
    table, _ = Run(tmp_path, kind).table()
    held = []
    for low in range(0, N_ROWS, ROWS_PER_EPOCH):
        table.append(rows(range(low, low + ROWS_PER_EPOCH)))
        state = table.kept()
        held.append([n for part in rows_of(state) for n in part["n"]])

    assert held == [list(range(low, low + ROWS_PER_EPOCH)) for low in range(0, N_ROWS, ROWS_PER_EPOCH)]
    # What was staged last is not published before its epoch is durable.
    assert published(tmp_path) == list(range(N_ROWS - ROWS_PER_EPOCH))


def _full(_: int) -> None:
    raise OSError(28, "No space left on device")


def test_rows_that_a_state_holds_compressed_come_back(tmp_path):
    table, _ = Run(tmp_path, "kept, never").table()
    table.append(of_one_day(range(100_000)))
    state = pickle.dumps(table.kept())
    assert len(state) < 100_000 * 16 / 1.5

    arguments: Any = {"day_column": "t", "sequence_column": "n", "metadata": {}}
    StagedTable(tmp_path, "p0", saved=pickle.loads(state), **arguments)

    assert published(tmp_path) == list(range(100_000))


def test_many_rows_are_staged(tmp_path):
    table, _ = Run(tmp_path, "kept, never").table()
    count = KEPT_BYTES // 6
    # Half of the numbers have no order, so each takes its eight bytes in a file.
    noise = pl.Series("noise", np.random.default_rng(0).integers(-(2**63), 2**63 - 1, count))
    table.append(of_one_day(range(count)).with_columns(noise))

    assert table.kept() is None
    table.snapshot()
    table.settle()
    assert published(tmp_path) == list(range(count))


@pytest.mark.parametrize("wait", [0, None], ids=["in the thread", "at the end"])
def test_a_fault_of_rows_that_are_encoded_ahead_is_raised_at_the_epochs_end(tmp_path, wait):
    def refuse(found: pl.DataFrame) -> pl.DataFrame:
        raise ValueError(f"{found.height} rows of another table")

    arguments: Any = {"day_column": "t", "sequence_column": "n", "metadata": {}, "at_staging": refuse}
    table = StagedTable(tmp_path, "p0", saved=None, aside=Later(wait), **arguments)
    table.append(of_one_day(range(parquet.AHEAD_CELLS)))

    for end in (table.kept, table.snapshot):
        with pytest.raises(ValueError, match="rows of another table"):
            end()
    assert published(tmp_path) == []


def test_rows_are_encoded_by_another_thread_while_the_epoch_goes_on(tmp_path):
    encoded = threading.Event()
    threads: list[str] = []

    def note(found: pl.DataFrame) -> pl.DataFrame:
        threads.append(threading.current_thread().name)
        encoded.set()
        return found

    aside = Aside(epoch_s=5.0)
    arguments: Any = {"day_column": "t", "sequence_column": "n", "metadata": {}, "at_staging": note}
    table = StagedTable(tmp_path, "p0", saved=None, aside=aside, **arguments)
    count = parquet.AHEAD_CELLS // 2
    table.append(of_one_day(range(count)))
    assert encoded.wait(60)
    table.append(of_one_day(range(count, count + 3)))
    table.snapshot()
    table.settle()
    aside.close()

    assert len(threads) == 2
    assert threads[0] != threading.current_thread().name
    assert published(tmp_path) == list(range(count + 3))


@pytest.mark.parametrize("ahead_cells", [parquet.AHEAD_CELLS, 3], ids=["rows", "files"])
def test_dead_letters_that_a_state_holds_are_numbered_in_their_order(tmp_path, monkeypatch, ahead_cells):
    monkeypatch.setattr(parquet, "AHEAD_CELLS", ahead_cells)
    arguments: Any = {"day_column": "t", "sequence_column": None, "metadata": {}}
    table = StagedTable(tmp_path, "p0", saved=None, aside=Later(None), **arguments)
    for low in range(0, N_ROWS, ROWS_PER_EPOCH):
        for number in range(low, low + ROWS_PER_EPOCH):
            table.append(rows(range(number, number + 1)))
        table.cover({"since": 0})
        state = table.kept()

    StagedTable(tmp_path, "p0", saved=state, **arguments)

    assert published(tmp_path) == list(range(N_ROWS))
    assert published_files(tmp_path)[-1].last == N_ROWS - 1


def test_what_nobody_publishes_does_not_grow_without_end(tmp_path):
    table, _ = Run(tmp_path, "kept, never").table()
    for number in range(KEPT_PARTS):
        table.cover({"since": 0, "complete_to": number})
        assert table.kept() is not None

    assert table.kept() is None
    table.snapshot()
    assert read_coverage(tmp_path).complete_to_us == KEPT_PARTS - 1
    assert table.kept() is not None
