"""The result of ``compile``: views as they are published, and what is needed only to compute them.

A plan is immutable, and two equal sets of definitions give equal fingerprints on every machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl

from unskew.features.on_demand import OnDemandView
from unskew.features.service import Service
from unskew.features.types import Type
from unskew.features.versions import Versions
from unskew.features.view import AggregationName, Parameters, View, ViewEntity, ViewFeature, ViewWindow

PayloadFormat = Literal["avro", "json", "protobuf"]
KeyFormat = Literal["string", "int64", "int32"]
Envelope = Literal["connect", "debezium"]
Operation = Literal["c", "r", "u", "d", "t", "m"]
OtherOperations = Literal["ignore", "dead_letter"]
History = Literal["archive", "none"]

DEFAULT_SETTLE_US = 500_000
DEFAULT_MAX_AHEAD_US = 5_000_000
MAX_FEATURES = 64
"""The most features of one view: one word in the kernel's rows has a bit for the presence of each."""


@dataclass(frozen=True, kw_only=True)
class ReadAs:
    """How the values of a column are read, whose type the schema leaves open.

    ``text``: the words of the definition. ``dtype``: the column's type; ``raw``: the type before. ``per_second``: for a
    time that is a number, its units in a second; 0 for anything else. ``zone``: the time zone of times without offset;
    None refuses these.
    """

    text: str
    dtype: pl.DataType
    raw: pl.DataType
    per_second: int = 0
    zone: str | None = None


@dataclass(frozen=True, kw_only=True)
class TablePlan:
    """Where the rows of a table are, and when each became available.

    ``path``: a path, several, or a Polars LazyFrame. ``arrival``: the column that says when; None if that is
    ``delay_us`` after the event time. ``zone``: that of times without an offset; None refuses these. ``renamed``:
    column -> the column of the table, where that is another name.
    """

    path: Any
    arrival: str | None
    delay_us: int
    zone: str | None
    renamed: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """A topic, or several, and how their records are read; or a table.

    ``topic``: the name under which the records are archived: the name of the only topic, or the stream's name if there
    are several. ``topics``: these several topics, or one pattern that begins with ^; empty if ``topic`` is the topic.

    ``schema``: the Avro reader schema, parsed JSON. ``columns``: payload column -> Polars type after decoding.
    ``settle_us``: how far behind the present a reader that has caught up announces its clock. None if the definition
    does not say: then it is ``DEFAULT_SETTLE_US``, and a live topic with producer timestamps is refused.
    ``max_ahead_us``: how far past the present a producer's timestamp may lie.
    ``event_id``: the column that identifies events; None if there is none. ``format``: the format of the values; if it
    is JSON, ``schema`` may also be a JSON Schema. ``key_column``: the column that holds the record key, in
    ``key_format``; None if there is none. ``headers``: column -> the record header that it holds.
    ``schema_ids``: the schema ids that messages may carry; empty if the definition does not say. ``records``: the names
    of the Avro record types that are events; empty for that of ``schema``.

    ``paths``: column -> the names that lead to its value, for columns that are not fields of their own name. ``flat``:
    the Avro reader schema of the columns, where ``schema`` is not it. ``read_as``: column -> how its values are read.
    ``envelope``: what is around an event in a message. ``operations``: Debezium's operations that are events;
    ``refuses_others``: others are dead letters, not ignored. ``unread``: the schema's fields that have no column, with
    their types. ``table``: the table whose rows are the events; None for a topic.
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
    max_ahead_us: int = DEFAULT_MAX_AHEAD_US
    schema_ids: tuple[int, ...] = ()
    records: tuple[str, ...] = ()
    paths: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    flat: Mapping[str, Any] | None = None
    read_as: Mapping[str, ReadAs] = field(default_factory=dict)
    envelope: Envelope | None = None
    operations: tuple[str, ...] = ()
    refuses_others: bool = False
    unread: Mapping[str, str] = field(default_factory=dict)
    table: TablePlan | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def reader(self) -> Mapping[str, Any]:
        """The Avro reader schema of the columns."""
        return self.schema if self.flat is None else self.flat

    @property
    def sources(self) -> tuple[str, ...]:
        """The topics that are read, or the pattern of their names."""
        return self.topics or (self.topic,)


@dataclass(frozen=True, kw_only=True)
class ValuePlan:
    """A row-by-row expression over payload columns, cast to the Polars type of ``dtype``.

    Columns of whole numbers are int64 and those of floats float64 before they enter ``expr``. ``fails``: true, and
    never null, for a record on which it has no exact result; None if there can be none.
    """

    text: str
    expr: pl.Expr
    dtype: Type
    fails: pl.Expr | None = None


@dataclass(frozen=True, kw_only=True)
class FilterPlan:
    """A row-by-row boolean expression over payload columns; null counts as false. ``fails`` is as in ``ValuePlan``."""

    text: str
    expr: pl.Expr
    fails: pl.Expr | None = None


@dataclass(frozen=True, kw_only=True)
class _Output:
    """A column of a view's values; ``published``: what readers know about it."""

    published: ViewFeature

    @property
    def name(self) -> str:
        return self.published.name

    @property
    def dtype(self) -> Type:
        return self.published.dtype


@dataclass(frozen=True, kw_only=True)
class FeaturePlan(_Output):
    """One numbered feature.

    ``filter``, ``value``, ``by``: indexes into the view's tuples; -1 if there is none. ``by`` is the index of a value,
    which has the type string.
    """

    filter: int = -1
    value: int = -1
    by: int = -1

    @property
    def function(self) -> AggregationName:
        assert self.published.function != "derived"
        return self.published.function

    @property
    def window(self) -> int:
        """The index into the view's windows."""
        assert self.published.window is not None
        return self.published.window

    @property
    def parameters(self) -> Parameters:
        return self.published.parameters


@dataclass(frozen=True, kw_only=True)
class DerivedPlan(_Output):
    """A feature that is an expression over the view's other features, evaluated on each of their rows.

    ``expr`` gives null whenever ``text`` gives NaN or infinity, or has no exact result.
    """

    expr: pl.Expr

    @property
    def text(self) -> str:
        return self.published.value or ""

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the features that it reads, in their order."""
        return self.published.inputs


@dataclass(frozen=True, kw_only=True)
class ViewPlan:
    """One view: its published part, its stream, and expressions over the stream.

    ``features``, ``derived``: those of the published view, in its order. ``sessions``: if the view is over sessions of
    its stream, the inner view that keeps them. The only window of the inner view is the session's, and its features are
    the columns of a session; ``where``, ``filters`` and ``values`` of the view are then over these columns.
    ``history``: what the view knows when it is new to a running pipeline.
    """

    published: View
    stream: StreamPlan
    where: FilterPlan | None
    filters: tuple[FilterPlan, ...]
    values: tuple[ValuePlan, ...]
    features: tuple[FeaturePlan, ...]
    derived: tuple[DerivedPlan, ...] = ()
    sessions: "ViewPlan | None" = None
    history: History = "archive"

    @property
    def name(self) -> str:
        return self.published.name

    @property
    def version(self) -> int:
        return self.published.version

    @property
    def id(self) -> str:
        """``name@version``: the name of the view in keys, shards and paths."""
        return self.published.id

    @property
    def entity(self) -> ViewEntity:
        return self.published.entity

    @property
    def windows(self) -> tuple[ViewWindow, ...]:
        return self.published.windows

    @property
    def outputs(self) -> tuple[ViewFeature, ...]:
        """Every column of the view's values, in the order in which log and Redis have them."""
        return self.published.features

    @property
    def partitioned(self) -> bool:
        return self.published.partitioned

    @property
    def serving(self) -> bool:
        return self.published.serving

    @property
    def state_fingerprint(self) -> str:
        return self.published.state_fingerprint

    @property
    def presentation_fingerprint(self) -> str:
        return self.published.presentation_fingerprint


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All streams by name, all versions of views (see ``Versions``), and on-demand features and services by name."""

    streams: Mapping[str, StreamPlan]
    views: Versions[ViewPlan]
    on_demand: Mapping[str, OnDemandView] = field(default_factory=dict)
    services: Mapping[str, Service] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Any mapping will do.
        object.__setattr__(self, "views", Versions.of(self.views))

    @property
    def of_topics(self) -> "Plan":
        """The streams and views that a running pipeline computes."""
        return self._those(of_tables=False)

    @property
    def of_tables(self) -> "Plan":
        """The tables and the views over them, which are computed on a schedule."""
        return self._those(of_tables=True)

    def _those(self, *, of_tables: bool) -> "Plan":
        return Plan(
            streams={name: one for name, one in self.streams.items() if (one.table is not None) is of_tables},
            views=Versions(one for one in self.views.values() if (one.stream.table is not None) is of_tables),
            on_demand=self.on_demand,
            services=self.services,
        )

    @property
    def published(self) -> Versions[View]:
        """The published views: what readers know about them."""
        return Versions(view.published for view in self.views.values())
