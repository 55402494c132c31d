"""One step's updates written out by hand."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from unskew.features.plan import ViewPlan
from unskew.features.updates import LATE_BOUNDS_US, StepRows, Updates
from unskew.sinks.tables.layout import log_schema


def current(view: ViewPlan, rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    """Current rows; what a row leaves out is null, and it is not gone."""
    schema = {
        "key": pl.String(),
        **{output.name: output.dtype.polars for output in view.outputs},
        "_at": pl.Int64(),
        "_until": pl.Int64(),
        "_empty_at": pl.Int64(),
        "_gone": pl.Boolean(),
    }
    complete = [{**dict.fromkeys(schema), "_gone": False, **row} for row in rows]
    return pl.DataFrame(complete, schema=schema, orient="row")


def closed(view: ViewPlan, rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    """Closed rows; instants in microseconds, but values as they are; what a row leaves out is null."""
    schema = {name: kind for name, kind in log_schema(view).items() if name not in {"written_at", "shard"}}
    outputs = {output.name for output in view.outputs}
    as_given = {
        name: pl.Int64() if isinstance(kind, pl.Datetime) and name not in outputs else kind
        for name, kind in schema.items()
    }
    complete = [{**dict.fromkeys(schema), **row} for row in rows]
    return pl.DataFrame(complete, schema=as_given, orient="row").cast(dict(schema))


def ledger_after(given: Updates, *late: Sequence[int], worst_us: int = 0, duplicates: int = 0) -> Updates:
    """Return the same step with late events. ``late``: for each window, the events' places in the histogram."""
    histograms = tuple(tuple(places.count(place) for place in range(len(LATE_BOUNDS_US) + 1)) for places in late)
    return replace(
        given,
        late_by_us=tuple(worst_us if places else 0 for places in late),
        late_histogram=histograms,
        duplicates_total=duplicates,
    )


def closing(view: ViewPlan, closed_us: int, rows: Sequence[dict[str, Any]] = (), **more: Any) -> Updates:
    """``updates`` of a step that closes every instant up to and including ``closed_us``."""
    return updates(view, closed_us + 1, rows, **more)


def updates(
    view: ViewPlan,
    clock_us: int,
    rows: Sequence[dict[str, Any]] = (),
    *,
    log_rows: Sequence[dict[str, Any]] = (),
    shard: str = "h0",
    since_us: int | None = 0,
) -> Updates:
    return Updates(
        view=view,
        shard=shard,
        clock_us=clock_us,
        since_us=since_us,
        closed_rows=StepRows(closed(view, log_rows), log_rows[0]["seq"] if log_rows else 0),
        current_rows=StepRows(current(view, rows)),
        late=(0,) * len(view.windows),
        late_by_us=(0,) * len(view.windows),
    )
