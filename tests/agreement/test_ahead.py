"""Rows that are encoded while the epoch goes on are those that are encoded at its end."""

import threading

import polars as pl
import pyarrow.parquet as pq
import pytest

from tests.support.pipeline import Bench, Outcome, agreed, history, plan
from unskew.pipelines.run import run
from unskew.pipelines.state import changelog
from unskew.sinks.aside import Aside
from unskew.sinks.tables import kinds, parquet
from unskew.sinks.tables.ahead import Ahead
from unskew.sinks.tables.layout import published_files

N_STOPS = 12


class Soon(threading.Event):
    """Is set by itself once it was asked so often."""

    def __init__(self, n_calls: int) -> None:
        super().__init__()
        self.n_calls = n_calls

    def is_set(self) -> bool:
        self.n_calls -= 1
        if self.n_calls < 0:
            self.set()
        return super().is_set()


def tables(outcome: Outcome) -> dict[str, pl.DataFrame]:
    logs = {view: outcome.log(view) for view in outcome.plan.views}
    return {**logs, "archive": outcome.archive(), "dead letters": outcome.dead_letters()}


@pytest.mark.parametrize("way", ["row groups", "near the end", "near the end, apart"])
@pytest.mark.parametrize("stopped", [False, True], ids=["at once", "stopped again and again"])
def test_tables_of_rows_that_are_encoded_ahead_are_those_of_rows_that_are_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, stopped: bool, way: str
) -> None:
    topic = bench.produce(history(400, seed=21))
    expected = tables(bench.run(topic))
    if way == "row groups":
        monkeypatch.setattr(parquet, "AHEAD_CELLS", 20)
        monkeypatch.setattr(kinds, "MOST_WAITING", 2)
    else:
        monkeypatch.setattr(parquet, "SOON_ROWS", 5)
        monkeypatch.setattr(changelog, "SOON_EVENTS", 5)
        monkeypatch.setattr(Aside, "near", lambda _: lambda: True)
    ended: list[Ahead] = []
    end_file = Ahead.end_file
    monkeypatch.setattr(Ahead, "end_file", lambda ahead: (ended.append(ahead), end_file(ahead)))
    if way == "near the end, apart":
        monkeypatch.setattr(parquet, "MERGED_BYTES", 0)
    outcome = Outcome(plan(topic), bench.deployment(epoch_s=1, poll_records=7))

    for number in range(N_STOPS if stopped else 0):
        run(outcome.plan, outcome.deployment, stop=Soon(40 + 25 * number))
    run(outcome.plan, outcome.deployment, stop=threading.Event())

    found = tables(outcome)
    assert [name for name in expected if not found[name].equals(expected[name])] == []
    agreed(outcome.plan, outcome.deployment, samples=200)
    roots = [outcome.deployment.archive / topic, *(outcome.deployment.log / view / "v1" for view in outcome.plan.views)]
    assert ended
    if way == "row groups":
        for root in roots:
            assert max(pq.read_metadata(file.path).num_row_groups for file in published_files(root)) > 1
