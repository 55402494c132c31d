"""What decides from which day on a table is kept."""

import datetime as dt
from pathlib import Path

import polars as pl

from unskew.offline.compaction import archive_tables
from unskew.offline.retention import cut_of
from unskew.sinks.tables.kinds import ArchiveTable
from unskew.sinks.tables.layout import IMPORTED

DAY_US = 86_400_000_000
MARCH_US = 1_772_323_200_000_000  # 2026-03-01T00:00:00Z
INSTANT = pl.Datetime("us", "UTC")


def archived(root: Path, partition: int, days: range, *, imported: bool = False) -> None:
    """Publish one event at noon of each day of March."""
    at = pl.Series([MARCH_US + (day - 1) * DAY_US + DAY_US // 2 for day in days])
    first = IMPORTED if imported else 0
    events = pl.DataFrame({"user": [1] * len(days)}).with_columns(
        pl.lit(partition, pl.Int32).alias("_partition"),
        pl.int_range(first, first + len(days), dtype=pl.Int64).alias("_offset"),
        at.cast(INSTANT).alias("_arrival"),
        at.cast(INSTANT).alias("_event_time"),
    )
    table = ArchiveTable(root, "events", partition, None, imported=imported)
    table.append(events, first_us=at[0], clock_us=at[-1])
    table.snapshot()
    table.snapshot()
    table.settle()


def test_a_table_is_cut_before_what_all_partitions_have_reached_and_imports_hold_nothing_back(tmp_path: Path) -> None:
    archived(tmp_path, 0, range(10, 30))
    archived(tmp_path, 1, range(10, 28))
    (table,) = archive_tables(tmp_path)
    assert cut_of(table, 5 * DAY_US) == dt.date(2026, 3, 22)

    archived(tmp_path, 0, range(1, 10), imported=True)

    (table,) = archive_tables(tmp_path)
    assert cut_of(table, 5 * DAY_US) == dt.date(2026, 3, 22)


def test_a_duration_longer_than_all_history_cuts_nothing(tmp_path: Path) -> None:
    archived(tmp_path, 0, range(10, 30))
    (table,) = archive_tables(tmp_path)

    assert cut_of(table, 10**9 * DAY_US) == dt.date.min
