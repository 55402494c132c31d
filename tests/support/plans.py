"""Plans written out by hand, for claims that compiling should have no say in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import msgspec
import polars as pl

from unskew.features.definitions.vocabulary import Calendar
from unskew.features.definitions.windows import plan_window
from unskew.features.plan import DerivedPlan, FeaturePlan, FilterPlan, StreamPlan, ValuePlan, ViewPlan
from unskew.features.types import Type
from unskew.features.view import (
    AggregationName,
    CalendarUnit,
    KeyType,
    Parameters,
    Scalar,
    View,
    ViewEntity,
    ViewFeature,
    ViewSessions,
    ViewWindow,
)

SECOND = 1_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR


def sliding(extent_us: int, hop_us: int) -> ViewWindow:
    return ViewWindow(
        kind="sliding",
        text=f"sliding({extent_us}, {hop_us})",
        hop_us=hop_us,
        span=extent_us // hop_us,
        extent_us=extent_us,
    )


def tumbling(extent_us: int) -> ViewWindow:
    return ViewWindow(kind="tumbling", text=f"tumbling({extent_us})", hop_us=extent_us, span=0, extent_us=extent_us)


def closed(extent_us: int) -> ViewWindow:
    return ViewWindow(kind="closed", text=f"closed({extent_us})", hop_us=extent_us, span=1, extent_us=extent_us)


def calendar(unit: CalendarUnit, tz: str = "UTC") -> ViewWindow:
    return plan_window(Calendar(unit, tz=tz))


def local_day(tz: str) -> ViewWindow:
    return calendar("day", tz)


def lifetime() -> ViewWindow:
    return ViewWindow(kind="lifetime", text="lifetime", hop_us=0, span=0, extent_us=0)


def session(gap_us: int, hop_us: int) -> ViewWindow:
    return ViewWindow(
        kind="session", text=f"session({gap_us}, {hop_us})", hop_us=hop_us, span=gap_us // hop_us, extent_us=gap_us
    )


@dataclass(frozen=True)
class Wanted:
    """A feature before numbering."""

    name: str
    function: AggregationName
    window: ViewWindow
    value: str | pl.Expr | None = None
    of: str = "float64"
    filter: str | pl.Expr | None = None
    default: Scalar | None = None
    by: str | pl.Expr | None = None
    parameters: Parameters = field(default_factory=Parameters)


@dataclass(frozen=True)
class WantedOfOthers:
    """A derived feature before it is put together."""

    name: str
    text: str | pl.Expr
    dtype: str = "float64"
    default: Scalar | None = None


def stream(**given: Any) -> StreamPlan:
    """A stream of which only what is ``given`` matters."""
    plain: dict[str, Any] = {
        "name": "stream",
        "topic": "topic",
        "schema": {},
        "columns": {},
        "event_time": "at",
        "partitioned_by": (),
        "settle_us": None,
        "max_age_us": None,
        "owner": "",
    }
    return StreamPlan(**plain | given)


def republished(plan: ViewPlan, **published: Any) -> ViewPlan:
    """The same view, published otherwise."""
    return replace(plan, published=msgspec.structs.replace(plan.published, **published))


def view(
    *wanted: Wanted,
    keys: Mapping[str, KeyType] | None = None,
    columns: Mapping[str, pl.DataType] | None = None,
    where: str | pl.Expr | None = None,
    name: str = "view",
    derived: Sequence[WantedOfOthers] = (),
    sessions: ViewPlan | None = None,
    shared: bool = False,
    event_id: str | None = None,
    dedupe_within_us: int | None = None,
) -> ViewPlan:
    """Put a view together.

    ``shared``: equal filters, values and windows have one number, as compiling has it; else each feature has its own.
    """
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
    windows: list[ViewWindow] = []
    features: list[FeaturePlan] = []

    def number(known: list[Any], new: Any) -> int:
        """The number of the equal one, where there is one and it may be shared."""
        texts = [(one.text, getattr(one, "dtype", None)) for one in known]
        if shared and (new.text, getattr(new, "dtype", None)) in texts:
            return texts.index((new.text, getattr(new, "dtype", None)))
        known.append(new)
        return len(known) - 1

    def number_value(expression: str | pl.Expr | None, dtype: str) -> int:
        if expression is None:
            return -1
        plan = ValuePlan(text=_text(expression), expr=_expr(expression), dtype=Type.parse(dtype))
        return number(values, plan)

    for want in wanted:
        condition = -1
        if want.filter is not None:
            plan = FilterPlan(text=_text(want.filter), expr=_expr(want.filter))
            condition = number(filters, plan)
        features.append(
            FeaturePlan(
                published=ViewFeature(
                    name=want.name,
                    type=_dtype(want),
                    function=want.function,
                    window=number(windows, want.window),
                    value=None if want.value is None else _text(want.value),
                    filter=None if want.filter is None else _text(want.filter),
                    empty=_empty(want),
                    default=want.default,
                    description="",
                    owner="",
                    by=None if want.by is None else _text(want.by),
                    parameters=want.parameters,
                ),
                filter=condition,
                value=number_value(want.value, want.of),
                by=number_value(want.by, "string"),
            )
        )
    others = [_derived(want, features) for want in derived]
    published = View(
        name=name,
        version=1,
        entity=ViewEntity(name="entity", keys=tuple(keys), types=tuple(keys.values())),
        stream="stream",
        topic="stream",
        partitioned=False,
        where=None if where is None else _text(where),
        windows=tuple(windows),
        features=tuple(plan.published for plan in (*features, *others)),
        state_fingerprint="0" * 64,
        presentation_fingerprint="0" * 64,
        description="",
        owner="",
        sessions=None if sessions is None else ViewSessions.of(sessions.published),
    )
    return ViewPlan(
        published=published,
        stream=stream(
            topic="stream",
            columns=columns,
            event_time="event_time",
            settle_us=0,
            event_id=event_id,
            dedupe_within_us=dedupe_within_us,
        ),
        where=None if where is None else FilterPlan(text=_text(where), expr=_expr(where)),
        filters=tuple(filters),
        values=tuple(values),
        features=tuple(features),
        derived=tuple(others),
        sessions=sessions,
    )


def sessions(
    gap_us: int, hop_us: int, *values: Wanted, where: str | pl.Expr | None = None, **given: object
) -> ViewPlan:
    """The inner view of one over sessions: ``values`` are over whichever window they say, made over the session's."""
    window = session(gap_us, hop_us)
    own = [
        Wanted("start", "first_time", window),
        Wanted("end", "last_time", window),
        Wanted("events", "count", window),
    ]
    return view(*own, *(replace(want, window=window) for want in values), where=where, shared=True, **given)


def _derived(want: WantedOfOthers, features: Sequence[FeaturePlan]) -> DerivedPlan:
    written = _expr(want.text)
    dtype = Type.parse(want.dtype)
    expr = written.cast(dtype.polars)
    if want.dtype == "float64":
        expr = pl.when(expr.is_finite()).then(expr)
    names = set(written.meta.root_names())
    empty = (
        pl.DataFrame({f.name: pl.Series([f.published.empty], dtype=f.dtype.polars) for f in features})
        .select(expr)
        .item()
    )
    published = ViewFeature(
        name=want.name,
        type=want.dtype,
        function="derived",
        window=None,
        value=_text(want.text),
        filter=None,
        empty=empty,
        default=want.default,
        description="",
        owner="",
        inputs=tuple(feature.name for feature in features if feature.name in names),
    )
    return DerivedPlan(published=published, expr=expr)


_SUMS: Mapping[str, str] = {"int64": "int64", "bool": "int64", "float64": "float64"}
_OWN_TYPE = {"min", "max", "first", "last", "mode"}
_LISTS = {"first_n", "last_n", "top_k"}
_FLOATS = {"mean", "var", "std", "quantile", "decayed_count", "decayed_sum"}


def _dtype(want: Wanted) -> str:
    if want.by is not None:
        return f"map[{_dtype(replace(want, by=None))}]"
    if want.function in {"count", "count_distinct", "approx_count_distinct"}:
        return "int64"
    if want.function in {"first_time", "last_time"}:
        return "timestamp"
    if want.function in _OWN_TYPE:
        return want.of
    if want.function in _LISTS:
        return f"list[{want.of}]"
    if want.function == "histogram":
        return "list[int64]"
    if want.function in _FLOATS:
        return "float64"
    assert want.function == "sum"
    return _SUMS.get(want.of, want.of)


def _empty(want: Wanted) -> Scalar | None:
    if want.by is not None:
        return None
    if want.function in {"count", "count_distinct", "approx_count_distinct"}:
        return 0
    if want.function in {"decayed_count", "decayed_sum"}:
        return 0.0
    if want.function != "sum":
        return None
    return {"int64": 0, "bool": 0, "float64": 0.0}.get(want.of, Decimal(0))


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
