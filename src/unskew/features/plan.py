"""What ``compile`` makes of the definitions: numbered slots, resolved windows, fingerprints.

A plan is what every other part reads. It is immutable, holds no text that still has to be parsed, and two
equal sets of definitions give equal fingerprints on every machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

ValueType = Literal["int64", "float64", "bool"]
KeyType = Literal["int64", "string"]
AggregationName = Literal["count", "sum", "mean", "min", "max", "last"]
Scalar = int | float | bool

POLARS_TYPES: Mapping[str, pl.DataType] = {
    "int64": pl.Int64(),
    "float64": pl.Float64(),
    "bool": pl.Boolean(),
    "string": pl.String(),
}

DEFAULT_SETTLE_US = 500_000
MAX_FEATURES = 64
"""Features of one view: whether each is present is a bit of one word in the kernel's rows."""


@dataclass(frozen=True, kw_only=True)
class EntityPlan:
    """One or several key columns, in order, each with its type."""

    name: str
    keys: tuple[str, ...]
    types: tuple[KeyType, ...]


@dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """A topic and how its records are read.

    ``schema``: the Avro reader schema, parsed JSON. ``columns``: payload column -> Polars type after decoding.
    ``settle_us``: how far behind the present a caught-up reader announces its clock; None where the definition does not say:
    then it is ``DEFAULT_SETTLE_US``, and a live topic on producer timestamps is refused.
    ``event_id``: the column that tells events apart; None where there is none.
    """

    name: str
    topic: str
    schema: Mapping[str, Any]
    columns: Mapping[str, pl.DataType]
    event_time: str
    partitioned_by: tuple[str, ...]
    settle_us: int | None
    max_age_us: int | None
    owner: str
    event_id: str | None = None
    description: str = ""


@dataclass(frozen=True, kw_only=True)
class WindowPlan:
    """A window as whole tiles.

    Tile ``k`` of a fixed grid covers effective times ``[k*hop_us, (k+1)*hop_us)``; of a calendar,
    ``[boundaries[k], boundaries[k+1])``. It is inside the window from its first instant until tile ``k+span+1``
    begins, which is when it leaves.

    ``span``: whole tiles behind the running one: ``L/h`` for sliding, 0 for tumbling and calendar.
    ``boundaries``: int64 microseconds, strictly increasing; None for a fixed grid.
    ``text``: canonical text, equal for equal windows; part of the fingerprint.
    ``hop_us`` and ``extent_us`` of a calendar are a nominal day.
    """

    kind: Literal["sliding", "tumbling", "calendar"]
    text: str
    hop_us: int
    span: int
    extent_us: int
    tz: str | None = None
    boundaries: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True, kw_only=True)
class ValuePlan:
    """A row-by-row expression over payload columns, cast to the Polars type of ``dtype``."""

    text: str
    expr: pl.Expr
    dtype: ValueType


@dataclass(frozen=True, kw_only=True)
class FilterPlan:
    """A row-by-row boolean expression over payload columns; null counts as false."""

    text: str
    expr: pl.Expr


@dataclass(frozen=True, kw_only=True)
class FeaturePlan:
    """One numbered feature.

    ``filter``, ``value``, ``window``: indexes into the view's tuples; -1 where there is none.
    ``dtype``: the type of the result. ``empty``: the value on an empty window: 0 for count and sum, else None.
    ``default``: applied at reading where the value is null; never stored.
    """

    name: str
    function: AggregationName
    dtype: ValueType
    window: int
    filter: int
    value: int
    empty: Scalar | None
    default: Scalar | None
    description: str
    owner: str


@dataclass(frozen=True, kw_only=True)
class ViewPlan:
    """One view: an entity, a stream, and features over shared filters, values and windows.

    ``state_fingerprint``: hex digest of all that stored state depends on.
    ``presentation_fingerprint``: hex digest of defaults, descriptions and owners.
    """

    name: str
    version: int
    entity: EntityPlan
    stream: StreamPlan
    where: FilterPlan | None
    filters: tuple[FilterPlan, ...]
    values: tuple[ValuePlan, ...]
    windows: tuple[WindowPlan, ...]
    features: tuple[FeaturePlan, ...]
    state_fingerprint: str
    presentation_fingerprint: str
    owner: str
    description: str

    @property
    def id(self) -> str:
        """``name@version``: how the view is called in keys, shards and paths."""
        return f"{self.name}@{self.version}"

    @property
    def partitioned(self) -> bool:
        """Whether the stream's partitions are by exactly this view's entity."""
        return bool(self.stream.partitioned_by) and self.stream.partitioned_by == self.entity.keys


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All streams and views by name."""

    streams: Mapping[str, StreamPlan]
    views: Mapping[str, ViewPlan]
