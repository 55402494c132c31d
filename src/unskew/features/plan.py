"""What ``compile`` makes of the definitions: numbered slots, resolved windows, fingerprints.

A plan is what every other part reads. It is immutable, holds no text that still has to be parsed, and two
equal sets of definitions give equal fingerprints on every machine.
"""

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from unskew.features.types import Type

KeyType = Literal["int64", "string"]
PayloadFormat = Literal["avro", "json"]
KeyFormat = Literal["string", "int64", "int32"]
AggregationName = Literal[
    "count",
    "sum",
    "mean",
    "var",
    "std",
    "min",
    "max",
    "first",
    "last",
    "first_n",
    "last_n",
    "first_time",
    "last_time",
    "count_distinct",
    "approx_count_distinct",
    "mode",
    "top_k",
    "histogram",
    "quantile",
    "decayed_count",
    "decayed_sum",
]
WindowKind = Literal["sliding", "tumbling", "closed", "calendar", "lifetime", "session"]
CalendarUnit = Literal["day", "week", "month", "quarter", "year"]
Scalar = int | float | bool | str | dt.datetime | Decimal

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
    """A topic, or several, and how their records are read.

    ``topic``: the name under which the records are archived: that of the one topic, or the stream's where there are several.
    ``topics``: those several, or one pattern that begins with ^; empty where ``topic`` is the topic.

    ``schema``: the Avro reader schema, parsed JSON. ``columns``: payload column -> Polars type after decoding.
    ``settle_us``: how far behind the present a caught-up reader announces its clock; None where the definition does not say:
    then it is ``DEFAULT_SETTLE_US``, and a live topic on producer timestamps is refused.
    ``event_id``: the column that tells events apart; None where there is none. ``format``: of the values; of JSON, ``schema`` may
    also be a JSON Schema. ``key_column``: the column that is the record key, in ``key_format``; None where there is none.
    ``headers``: column -> the record header that it holds.
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
    dedupe_within_us: int | None = None
    description: str = ""
    format: PayloadFormat = "avro"
    key_column: str | None = None
    key_format: KeyFormat = "string"
    headers: Mapping[str, str] = field(default_factory=dict)
    topics: tuple[str, ...] = ()

    @property
    def sources(self) -> tuple[str, ...]:
        """The topics that are read, or the pattern of their names."""
        return self.topics or (self.topic,)


@dataclass(frozen=True, kw_only=True)
class WindowPlan:
    """A window as whole tiles.

    Tile ``k`` of a fixed grid covers effective times ``[k*hop_us, (k+1)*hop_us)``; of a calendar,
    ``[boundaries[k], boundaries[k+1])``. It is inside the window from its first instant until tile ``k+span+1``
    begins, which is when it leaves.

    ``kind``: ``closed`` is the last whole tumbling period: a tile counts from the end of its period, and leaves a period later.
    ``lifetime`` has one tile, which never leaves. ``session``: the running session, which is one tile, numbered by its latest
    event: it ends when that number's tile would leave a sliding window of ``extent_us`` (the gap) and ``hop_us``.
    ``span``: whole tiles behind the running one: ``L/h`` for sliding and session, 1 for closed, else 0.
    ``boundaries``: int64 microseconds, strictly increasing; None for a fixed grid.
    ``text``: canonical text, equal for equal windows; part of the fingerprint.
    ``hop_us`` and ``extent_us`` of a calendar are nominal (a day, 7, 30, 91 or 365 of them); of a lifetime 0.
    """

    kind: WindowKind
    text: str
    hop_us: int
    span: int
    extent_us: int
    tz: str | None = None
    unit: CalendarUnit | None = None
    boundaries: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True, kw_only=True)
class ValuePlan:
    """A row-by-row expression over payload columns, cast to the Polars type of ``dtype``."""

    text: str
    expr: pl.Expr
    dtype: Type


@dataclass(frozen=True, kw_only=True)
class FilterPlan:
    """A row-by-row boolean expression over payload columns; null counts as false."""

    text: str
    expr: pl.Expr


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """What an aggregation is told beside its value; 0 or empty where it does not apply.

    ``n``: most items of ``first_n``, ``last_n``, ``top_k``. ``ddof``: of ``var``, ``std``. ``q``: of ``quantile``, in [0, 1].
    ``bits``: mantissa bits that ``quantile`` keeps of a value, or bits that choose a register of ``approx_count_distinct``.
    ``edges``: ascending, of ``histogram``. ``half_life_hops``: of the decayed ones. ``keys``: most keys of a map.
    """

    n: int = 0
    ddof: int = 0
    q: float = 0.0
    bits: int = 0
    edges: tuple[float, ...] = ()
    half_life_hops: int = 0
    keys: int = 0


@dataclass(frozen=True, kw_only=True)
class FeaturePlan:
    """One numbered feature.

    ``filter``, ``value``, ``by``, ``window``: indexes into the view's tuples (``by`` into its values, of type string); -1 where
    there is none. ``dtype``: the type of the result. ``empty``: the value on an empty window: 0 for counts and sums, else None.
    ``default``: applied at reading where the value is null; never stored.
    """

    name: str
    function: AggregationName
    dtype: Type
    window: int
    filter: int
    value: int
    empty: Scalar | None
    default: Scalar | None
    description: str
    owner: str
    by: int = -1
    parameters: Parameters = field(default_factory=Parameters)


@dataclass(frozen=True, kw_only=True)
class DerivedPlan:
    """A feature that is an expression over the view's other features, evaluated on every row of theirs.

    ``expr`` gives null where ``text`` gives NaN or infinity. ``inputs``: names of the features it reads, in their order.
    """

    name: str
    text: str
    expr: pl.Expr
    inputs: tuple[str, ...]
    dtype: Type
    empty: Scalar | None
    default: Scalar | None
    description: str
    owner: str


Output = FeaturePlan | DerivedPlan


@dataclass(frozen=True, kw_only=True)
class ViewPlan:
    """One view: an entity, a stream, and features over shared filters, values and windows.

    ``derived``: features over the others. ``sessions``: where the view is over sessions of its stream, the inner view that keeps
    them: its one window is the session's, its features are the columns of a session; ``where``, ``filters`` and ``values`` are
    then over those columns.
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
    derived: tuple[DerivedPlan, ...] = ()
    sessions: "ViewPlan | None" = None

    @property
    def outputs(self) -> tuple[Output, ...]:
        """Every column of the view's values, in the order in which log, Redis and registry have them."""
        return (*self.features, *self.derived)

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
