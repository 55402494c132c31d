"""Logs and archives as the pipeline writes them: through the kernel and the sinks, without Kafka."""

from pathlib import Path

import polars as pl

from unskew.features.evaluate import evaluate
from unskew.features.keys import encode_keys, shard_of
from unskew.features.plan import ViewPlan
from unskew.features.shard_state import ShardState
from unskew.features.updates import Updates
from unskew.sinks.tables.kinds import ArchiveTable, LogTable

NOW_US = 1_700_000_000_000_000


def write_log(
    log_root: Path,
    view: ViewPlan,
    events: pl.DataFrame,
    clock_us: int,
    *,
    n_shards: int = 1,
    n_batches: int = 1,
) -> list[Updates]:
    """Feed decoded events, in their order, and publish an epoch after each batch; the updates of every step."""
    updates = []
    places = shard_of(encode_keys(events, view.entity).fill_null(""), n_shards)
    for shard in range(n_shards):
        mine = events.filter(pl.Series(places == shard))
        state = ShardState(view, f"h{shard}")
        table = LogTable(log_root, view, f"h{shard}", None, now_us=lambda: NOW_US)
        size = -(-len(mine) // n_batches) or 1
        batches = [mine[at : at + size] for at in range(0, len(mine), size)]
        for batch in batches:
            last = int(batch["_arrival"].to_physical()[-1])
            updates.append(_step(state, table, view, batch, last))
        updates.append(_step(state, table, view, None, clock_us))
        table.settle()
    return updates


def _step(state: ShardState, table: LogTable, view: ViewPlan, batch: pl.DataFrame | None, clock_us: int) -> Updates:
    step = state.apply(None if batch is None else evaluate(view, batch).events, clock_us)
    table.append(step)
    table.snapshot()
    return step


def write_archive(archive_root: Path, view: ViewPlan, events: pl.DataFrame, clock_us: int | None = None) -> None:
    """Publish decoded events as the archive of the view's topic, complete up to a clock if there is one."""
    for (partition,), mine in events.group_by("_partition"):
        table = ArchiveTable(archive_root, view.stream.topic, int(partition), None)
        first_us = None if clock_us is None else int(mine["_arrival"].to_physical().min())  # type: ignore[arg-type]
        table.append(mine.sort("_offset"), first_us=first_us, clock_us=clock_us)
        table.snapshot()
        table.settle()
