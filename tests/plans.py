"""Plans written out by hand, for claims that compiling should have no say in."""

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from unskew.features.definitions import Calendar
from unskew.features.plan import (
    AggregationName,
    EntityPlan,
    FeaturePlan,
    FilterPlan,
    KeyType,
    Scalar,
    StreamPlan,
    ValuePlan,
    ValueType,
    ViewPlan,
    WindowPlan,
)
from unskew.features.windows import plan_window

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR


def sliding(extent_us: int, hop_us: int) -> WindowPlan:
    return WindowPlan(
        kind="sliding",
        text=f"sliding({extent_us}, {hop_us})",
        hop_us=hop_us,
        span=extent_us // hop_us,
        extent_us=extent_us,
    )


def tumbling(extent_us: int) -> WindowPlan:
    return WindowPlan(kind="tumbling", text=f"tumbling({extent_us})", hop_us=extent_us, span=0, extent_us=extent_us)


def local_day(tz: str) -> WindowPlan:
    return plan_window(Calendar("day", tz=tz))


@dataclass(frozen=True)
class Wanted:
    """A feature before numbering."""

    name: str
    function: AggregationName
    window: WindowPlan
    value: str | pl.Expr | None = None
    of: ValueType = "float64"
    filter: str | pl.Expr | None = None
    default: Scalar | None = None


def view(
    *wanted: Wanted,
    keys: Mapping[str, KeyType] | None = None,
    columns: Mapping[str, pl.DataType] | None = None,
    where: str | pl.Expr | None = None,
    name: str = "view",
) -> ViewPlan:
    keys = {"user": "string"} if keys is None else keys
    types: Mapping[KeyType, pl.DataType] = {"int64": pl.Int64(), "string": pl.String()}
    columns = {
        **{key: types[kind] for key, kind in keys.items()},
        "x": pl.Float64(),
        "n": pl.Int64(),
        **(columns or {}),
    }
    filters: list[FilterPlan] = []
    values: list[ValuePlan] = []
    windows: list[WindowPlan] = []
    features: list[FeaturePlan] = []
    for want in wanted:
        if want.filter is not None:
            filters.append(FilterPlan(text=_text(want.filter), expr=_expr(want.filter)))
        if want.value is not None:
            values.append(ValuePlan(text=_text(want.value), expr=_expr(want.value), dtype=want.of))
        windows.append(want.window)
        features.append(
            FeaturePlan(
                name=want.name,
                function=want.function,
                dtype=_dtype(want),
                window=len(windows) - 1,
                filter=len(filters) - 1 if want.filter is not None else -1,
                value=len(values) - 1 if want.value is not None else -1,
                empty=0.0
                if want.function == "sum" and want.of == "float64"
                else 0
                if want.function in {"count", "sum"}
                else None,
                default=want.default,
                description="",
                owner="",
            )
        )
    return ViewPlan(
        name=name,
        version=1,
        entity=EntityPlan(name="entity", keys=tuple(keys), types=tuple(keys.values())),
        stream=StreamPlan(
            name="stream",
            topic="stream",
            schema={},
            columns=columns,
            event_time="event_time",
            partitioned_by=(),
            settle_us=0,
            max_age_us=None,
            owner="",
        ),
        where=None if where is None else FilterPlan(text=_text(where), expr=_expr(where)),
        filters=tuple(filters),
        values=tuple(values),
        windows=tuple(windows),
        features=tuple(features),
        state_fingerprint="0" * 64,
        presentation_fingerprint="0" * 64,
        owner="",
        description="",
    )


def _dtype(want: Wanted) -> ValueType:
    if want.function == "count":
        return "int64"
    if want.function == "mean":
        return "float64"
    if want.function == "sum" and want.of == "bool":
        return "int64"
    return want.of


def _text(expression: str | pl.Expr) -> str:
    return expression if isinstance(expression, str) else str(expression)


def _expr(expression: str | pl.Expr) -> pl.Expr:
    return pl.sql_expr(expression) if isinstance(expression, str) else expression


def events(
    rows: list[tuple[int, int, dict[str, object]]],
    *,
    partition: int = 0,
    columns: Mapping[str, pl.DataType] | None = None,
) -> pl.DataFrame:
    """Decoded events from (arrival, event time, payload), offsets in the given order."""
    schema: dict[str, pl.DataType] = {"user": pl.String(), "x": pl.Float64(), "n": pl.Int64(), **(columns or {})}
    payload = pl.DataFrame(
        [{name: given.get(name) for name in schema} for _, _, given in rows], schema=schema, orient="row", strict=True
    )
    instant = pl.Datetime("us", "UTC")
    return payload.with_columns(
        pl.lit(partition, pl.Int32).alias("_partition"),
        pl.int_range(pl.len()).cast(pl.Int64).alias("_offset"),
        pl.Series("_arrival", [arrival for arrival, _, _ in rows], pl.Int64).cast(instant),
        pl.Series("_event_time", [event_time for _, event_time, _ in rows], pl.Int64).cast(instant),
    )
