"""An epoch's end: which tables' rows go into the states, and which are staged at once."""

import threading

import numpy as np
import polars as pl
import pytest

from unskew.features.plan import Plan
from unskew.pipelines.flow import FEW_BYTES, MOST_LARGE_BYTES, ParquetSink, Shards
from unskew.pipelines.progress import Epochs
from unskew.pipelines.routing import TableRows
from unskew.pipelines.state.saved import SINK_PARTITIONS
from unskew.pipelines.state.seeds import Seeds
from unskew.sinks.aside import Aside
from unskew.sinks.patience import Patience
from unskew.sinks.tables.layout import STAGED
from unskew.sinks.tables.parquet import rows_of

LARGE_BYTES = 3 << 19


@pytest.fixture
def sink(tmp_path):
    aside = Aside(epoch_s=5.0)
    yield ParquetSink(
        Plan(streams={}, views={}),
        tmp_path / "log",
        tmp_path / "archive",
        tmp_path / "dead",
        lambda: 1,
        Shards({}),
        Patience("the disk", threading.Event()),
        Patience("the object store", threading.Event()),
        Epochs(),
        lambda: None,
        lambda _n_bytes: None,
        Seeds(tmp_path / "state"),
        aside,
    )
    aside.close()


def events(n_bytes):
    """Numbers of which half cannot be compressed, at least 8 bytes an event."""
    count = n_bytes // 8
    random = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, count)
    at = pl.Series("_arrival", np.arange(count)).cast(pl.Datetime("us", "UTC"))
    return pl.DataFrame([pl.Series("n", random), pl.Series("_offset", np.arange(count)), at])


def test_large_tables_go_into_states_only_until_these_hold_four_mib_and_small_ones_always(sink, tmp_path):
    large, small = 2 * MOST_LARGE_BYTES // LARGE_BYTES, 3
    parts = {name: sink.build_part("tables", name, None) for name in SINK_PARTITIONS}
    for partition, n_bytes in enumerate([LARGE_BYTES] * large + [FEW_BYTES // 16] * small):
        rows = TableRows("events", partition, dead=False, rows=events(n_bytes), first_us=0, clock_us=10**6)
        parts[SINK_PARTITIONS[partition % len(parts)]].write_batch([rows])

    states = {name: state for part in parts.values() for name, state in part.snapshot().items()}

    held = {int(name.rpartition("/")[2]) for name, state in states.items() if rows_of(state)}
    n_large = len([partition for partition in held if partition < large])
    assert MOST_LARGE_BYTES / 2 < sink.n_held <= MOST_LARGE_BYTES + small * FEW_BYTES
    assert 0 < n_large < large
    assert held >= set(range(large, large + small))
    # The rows of the others are on the disk before the epoch is durable.
    staged = {path.name.partition("-")[0] for path in (tmp_path / "archive").rglob("*.parquet") if STAGED in path.parts}
    assert len(staged) >= large - n_large
