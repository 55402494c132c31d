"""Populations counted plainly: from the rows of a log's files, one after the other."""

import datetime as dt
import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from unskew.features.view import ViewFeature
from unskew.monitoring.bins import Bins, distribution_of
from unskew.monitoring.population import values_at
from unskew.offline.distribution import Distribution
from unskew.offline.log_reader import ViewLog

Row = Mapping[str, Any]


def binned(log: ViewLog, t_us: int) -> list[tuple[ViewFeature, Bins, Distribution]]:
    """The bins that a baseline at an instant fixes, each with what it counted."""
    values, _ = values_at(log, t_us)
    found = []
    for feature in log.view.features:
        one = distribution_of(feature, values[feature.name])
        found.append((feature, Bins.of(one, feature.dtype), one))
    return found


def raw_rows(root: Path, view: str) -> list[dict[str, Any]]:
    """The rows of the log's files, as they lie there, in their order."""
    files = root.glob(f"{view}/v1/day=*/*.parquet")
    rows = [row for file in files for row in pl.read_parquet(file, hive_partitioning=False).rows(named=True)]
    return sorted(rows, key=lambda row: (row["available_at"], row["shard"], row["seq"]))


def us(moment: dt.datetime) -> int:
    return (moment - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)


def naive_bin(value: Any, edges: list[Any], *, are_upper: bool) -> int:
    if value is None:
        return len(edges) + 1
    if isinstance(value, list):
        value = len(value)
    if isinstance(value, float) and math.isnan(value):
        return len(edges)
    return bisect_left(edges, value) if are_upper else edges.index(value) if value in edges else len(edges)


def naive(last: Iterable[Row], feature: ViewFeature, bins: Bins, is_gone: Callable[[Row], bool]) -> list[int]:
    """The counts of the last rows' values, each read with its default. ``is_gone``: of an entity without an event."""
    rows = list(last)
    there = [row[feature.name] for row in rows if not is_gone(row)]
    read = [feature.default if value is None else value for value in there]
    counted = Counter(naive_bin(value, bins.edges.to_list(), are_upper=bins.are_upper) for value in read)
    return [*(counted[one] for one in range(bins.n - 1)), len(rows) - len(there)]
