"""Tables that are merged while the pipeline writes them and others read them hold the same as untouched ones."""

import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import polars as pl
import pytest

from tests.agreement.test_retain import slowly
from tests.support.pipeline import Bench, Outcome, Record, history, plan
from tests.support.training import training_rows
from unskew.monitoring.audit import audit
from unskew.offline.compaction import Limits, archive_tables, compact, dead_letter_tables, log_tables
from unskew.offline.log_reader import ViewLog
from unskew.pipelines.run import run
from unskew.sinks.tables.layout import published_files, read_coverage, superseded_files

RECORDS = history(250, seed=11)
VIEWS = ["by_user", "by_item"]
# Nothing stays for those who have listed it: what a reader holds goes while it reads.
EAGER = Limits(min_files=3, grace_s=0)


@dataclass
class Others:
    """Compaction and readers beside a pipeline; ``faults``: whatever they found wrong."""

    reference: Outcome
    outcome: Outcome
    labels: dict[str, pl.DataFrame]
    answers: dict[str, pl.DataFrame]
    limits: Limits
    ended: threading.Event = field(default_factory=threading.Event)
    all_worked: threading.Event = field(default_factory=threading.Event)
    faults: list[str] = field(default_factory=list)
    n_rounds: int = 0
    n_deleted: int = 0
    n_read: int = 0
    n_joined: int = 0
    lengths: dict[str, int] = field(default_factory=dict)
    late_s: float = field(default_factory=lambda: time.monotonic() + 60)

    @contextmanager
    def at_work(self):
        """While the block runs; ``all_worked`` is set when each has done something, or is late."""
        threads = [threading.Thread(target=self._again, args=(each,)) for each in (self.merge, self.read)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.ended.set()
            for thread in threads:
                thread.join()

    def _again(self, step: Callable[[], None]) -> None:
        while not self.ended.wait(0.02):
            try:
                step()
            except Exception as error:  # noqa: BLE001 - any is a fault, and shown
                self.faults.append(f"{type(error).__name__}: {error}")
            if min(self.n_deleted, self.n_read, self.n_joined) > 0 or time.monotonic() > self.late_s:
                self.all_worked.set()

    def merge(self, limits: Limits | None = None) -> None:
        deployment = self.outcome.deployment
        for root, tables in (
            (deployment.log, log_tables),
            (deployment.archive, archive_tables),
            (deployment.dead_letters, dead_letter_tables),
        ):
            for table in tables(root) if root.is_dir() else ():
                found = compact(table, limits or self.limits, now_s=time.time())
                # Each was merged. How many fewer there are afterwards depends on what is published meanwhile.
                self.n_deleted += found.n_deleted
                self.faults += [*found.notes, *found.faults]
        self.n_rounds += 1

    def read(self) -> None:
        views = self.outcome.plan.published
        opened = {view: ViewLog(self.outcome.deployment.log, views[view]) for view in VIEWS}
        # A slow reader: meanwhile files are merged, and those that it has listed go.
        n_rounds = self.n_rounds + 2
        while self.n_rounds < n_rounds and not self.ended.wait(0.005):
            pass
        for view, log in opened.items():
            self._rows(view, log)
            if log.complete_to_us is not None:
                self._join(view, log.complete_to_us)
        self._archive()

    def _rows(self, view: str, log: ViewLog) -> None:
        """Each shard's rows are those from the first on, each once, in order; never fewer than before."""
        pieces = list(log.newest_first(["shard", "seq"]))
        if not pieces:
            return
        rows = pl.concat(reversed(pieces))
        n_rows = 0
        for (shard,), ones in rows.group_by("shard", maintain_order=True):
            if ones["seq"].to_list() != list(range(len(ones))):
                self.faults.append(f"{view}, shard {shard}: {ones['seq'].to_list()}")
            n_rows += len(ones)
        self._longer(view, n_rows)

    def _join(self, view: str, complete_to_us: int) -> None:
        known = pl.col("event_timestamp").dt.epoch("us") <= complete_to_us
        labels, expected = self.labels[view].filter(known), self.answers[view].filter(known)
        if not len(labels):
            return
        if not self._joined(self.outcome, view, labels).equals(expected):
            self.faults.append(f"{view}: the join to {complete_to_us} differs")
        self.n_joined += len(labels)

    def _archive(self) -> None:
        root = self.outcome.deployment.archive
        for table in archive_tables(root) if root.is_dir() else ():
            try:
                paths = [file.path for file in published_files(table.root)]
                rows = pl.read_parquet(paths, columns=["_partition", "_offset"], hive_partitioning=False)
            except FileNotFoundError:
                continue  # it was deleted after it was listed, which the grace period is for
            expected = self.reference.archive().select(rows.columns)
            for (partition,), ones in rows.group_by("_partition", maintain_order=True):
                offsets = expected.filter(pl.col("_partition") == partition)["_offset"].to_list()
                if ones["_offset"].to_list() != offsets[: len(ones)]:
                    self.faults.append(f"archive, partition {partition}: {ones['_offset'].to_list()}")
            self._longer("archive", len(rows))

    def _longer(self, what: str, n_rows: int) -> None:
        if n_rows < self.lengths.get(what, 0):
            self.faults.append(f"{what} has {n_rows} rows, and had {self.lengths[what]}")
        self.lengths[what] = n_rows
        self.n_read += 1

    @staticmethod
    def _joined(outcome: Outcome, view: str, labels: pl.DataFrame) -> pl.DataFrame:
        references = [f"{view}:{feature.name}" for feature in outcome.plan.views[view].features]
        return training_rows(outcome.deployment.log, outcome.plan.published, labels, references)


def labels_of(reference: Outcome, view: str) -> pl.DataFrame:
    """Every entity at a sample of the instants at which something changed, and just before and after them."""
    coverage = read_coverage(reference.deployment.log / view / "v1")
    (key,) = reference.plan.views[view].entity.keys
    rows = reference.log(view)
    step = pl.DataFrame({"step": [-1, 0, 1]}).select(step=pl.duration(microseconds="step"))
    instants = rows.select(event_timestamp=pl.col("available_at").unique()).sample(30, seed=3)
    labels = rows.select(pl.col(key).unique().sort()).join(instants, how="cross").join(step, how="cross")
    labels = labels.select(key, pl.col("event_timestamp") + pl.col("step"))
    known = pl.col("event_timestamp").dt.epoch("us").is_between(coverage.first_since_us, coverage.complete_to_us)
    return labels.filter(known)


def rows_of(root: Path) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(file.path, hive_partitioning=False) for file in published_files(root)])


@pytest.mark.parametrize(
    ("records", "limits"),
    [
        pytest.param(RECORDS, EAGER, id="days"),
        pytest.param(slowly(RECORDS, 1000), replace(EAGER, span_days=20), id="spans", marks=pytest.mark.long),
    ],
)
def test_a_pipeline_that_is_compacted_while_it_runs_and_is_read_is_as_one_that_is_not(
    bench: Bench, records: list[Record], limits: Limits
) -> None:
    topic = bench.produce(records)
    reference = bench.run(topic)
    labels = {view: labels_of(reference, view) for view in VIEWS}
    answers = {view: Others._joined(reference, view, labels[view]) for view in VIEWS}
    outcome = Outcome(plan(topic), bench.deployment(poll_records=5))
    others = Others(reference, outcome, labels, answers, limits)

    with others.at_work():
        # First for as long as it takes until everyone has worked beside it, then to the end of the topic.
        run(outcome.plan, replace(outcome.deployment, ends=None), stop=others.all_worked)
        run(outcome.plan, outcome.deployment, stop=threading.Event())

    assert others.faults == []
    assert min(others.n_deleted, others.n_read, others.n_joined) > 0
    # Once more, with everything published, and nobody reading.
    others.merge(replace(limits, min_files=2))
    assert others.faults == []
    log, archive = outcome.deployment.log, outcome.deployment.archive
    for view in VIEWS:
        files = published_files(log / view / "v1")
        assert any(file.first_day < file.last_day for file in files) == (limits.span_days > 1)
        assert not superseded_files(log / view / "v1")
        assert rows_of(log / view / "v1").drop("written_at").sort("shard", "seq").equals(reference.log(view))
    assert rows_of(archive / topic).sort("_partition", "_offset").equals(reference.archive())
    letters = rows_of(outcome.deployment.dead_letters / topic).sort("partition", "offset", "view")
    assert letters.equals(reference.dead_letters())
    report = audit(outcome.plan, log, archive, redis_source=bench.redis_url, prefix=outcome.deployment.prefix, samples=300)  # fmt: skip
    assert report.difference is None
    assert all(view.non_empty for view in report.views)
